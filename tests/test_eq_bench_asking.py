"""How a model is asked EQ-Bench questions: the prompts, the retries, and the guided mode on real engines."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores
from warmline.engine.local import LocalEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.eq_bench import Answers, score, score_guided
from warmline.evaluate.eq_bench_questions import NAMES, QuestionsError, ask, prompt_for, request_for
from warmline.model.load import load_tokenizer

from .eq_bench_toys import plain, toy_questions
from .test_local import load

FIRST, *_ = toy_questions(1)
SHORT = [replace(each, prompt="How would I feel then?") for each in toy_questions(3)]  # a toy's context is short


def test_the_original_prompt_asks_for_a_revision_and_the_others_do_not() -> None:
    assert prompt_for(FIRST, "revision") == FIRST.prompt
    for mode in ("official", "lm-eval", "guided"):
        prompt = prompt_for(FIRST, mode)
        assert not re.search(r"revis|Critique|First pass", prompt)
        scores = "\n".join(f"{name}: <score>" for name in FIRST.emotions)
        assert f"with no additional commentary:\n\n{scores}\n\n\n[End of answer]\n\nRemember" in prompt
        assert prompt.endswith("one emotion > 0.\n\nYour answer:\n")
        assert prompt_for(replace(FIRST, prompt=prompt), mode) == prompt
        with pytest.raises(QuestionsError, match="asks for no revision"):
            prompt_for(replace(FIRST, prompt=prompt), "revision")


class Counting(ScriptedEngine):
    """A scripted engine that keeps what it was asked."""

    def __init__(self, *replies: str) -> None:
        super().__init__(replies)
        self.requests: list[GenerateRequest] = []

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        return super().generate(request)


def test_the_official_convention_asks_up_to_five_times_and_warmer_each_time() -> None:
    good = plain(FIRST, (1, 2, 3, 4))
    engine = Counting("no", "still no", good)
    asked = ask(engine, FIRST, "official", seed=5)
    assert (asked.response.split(), asked.tries) == (good.split(), 3)
    assert [each.sampling.temperature for each in engine.requests] == pytest.approx([0.01, 0.16, 0.31])
    assert [each.sampling.seed for each in engine.requests] == [5, 6, 7]
    assert ask(Counting("no"), FIRST, "official").tries == 5
    assert ask(Counting("no"), FIRST, "lm-eval") == ("no", 1)


def test_of_a_revision_that_never_comes_the_first_pass_is_kept() -> None:
    partial = f"First pass scores:\n{plain(FIRST, (1, 2, 3, 4))}\nRevised scores:\nnone"
    asked = ask(Counting("no", partial, "no"), FIRST, "revision")
    assert asked.tries == 5
    assert asked.response.startswith("First pass scores:")


def test_a_random_model_answers_in_form_when_guided(toy_base: Path) -> None:
    engine = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    answers = Answers({each.id: ask(engine, each, "guided").response for each in SHORT})
    for question in SHORT:
        form = "\n".join(f"{name}: (10|[0-9])" for name in question.emotions)
        assert re.fullmatch(form, answers.responses[question.id])
    assert score_guided(SHORT, answers).parseable == score(SHORT, answers).tolerant.parseable == 3


def test_guided_needs_an_engine_with_grammars() -> None:
    class Plain:
        def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
            raise AssertionError("it is never asked")

        def score(self, messages: object, reply: str) -> Scores:
            raise AssertionError("it is never asked")

        def capabilities(self) -> frozenset[Capability]:
            return frozenset()

    with pytest.raises(EngineError, match="follows a grammar"):
        ask(Plain(), FIRST, "guided")


def test_only_guided_has_a_constraint_and_its_name_says_so() -> None:
    assert request_for(FIRST, "official").constraint is None
    assert request_for(FIRST, "guided").constraint is not None
    assert request_for(FIRST, "lm-eval").messages == (Message("user", prompt_for(FIRST, "lm-eval")),)
    assert len(set(NAMES.values())) == 4
    assert "guided" in NAMES["guided"]
