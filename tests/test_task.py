"""Tasks: a row a sample as it finishes, gone on with, in order; engines and the companion answer; unscored is said."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from warmline.dialogue.companion import Setting
from warmline.engine.engine import EngineError, GenerateRequest, Message, Sampling
from warmline.engine.local import LocalEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.answers import FromCompanion, FromEngine, seeded
from warmline.evaluate.task import Failure, Reply, Sample, Scores, Task, UnscoredError, read, run, unscored
from warmline.model.load import load_tokenizer
from warmline.safety.detect import load_detector
from warmline.safety.resources.directory import load_directory

from .test_local import load


def sample(number: int, text: str = "I lost my job", **about: Any) -> Sample:
    return Sample(f"s{number}", (Message("user", f"{text} {number}"),), about)


def length(_: Sample, reply: Reply) -> Scores:
    if "nonsense" in reply.text:
        raise UnscoredError("no number in the answer")
    return {"length": len(reply.text), "asked": "?" in reply.text, "word": reply.text[:1], "none": None}


SAMPLES = tuple(sample(number, gold=("a", number)) for number in range(5))
TASK = Task("lengths", SAMPLES, length)


class Watched:
    """Answers in the order that it is told, and remembers what it was asked."""

    decoding = {"temperature": 0, "stop": ("x",)}  # noqa: RUF012

    def __init__(self, order: Sequence[int] = range(5), dies_after: int | None = None) -> None:
        self.order, self.dies_after, self.asked = order, dies_after, []

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Reply | Failure]]:
        by_id = {each.id: each for each in samples}
        self.asked = [*by_id]
        for done, number in enumerate(each for each in self.order if f"s{each}" in by_id):
            if done == self.dies_after:
                raise KeyboardInterrupt
            found = by_id[f"s{number}"]
            yield found, Failure("the server is gone") if number == 3 else Reply(f"reply {number}", {"level": "none"})


def test_rows_stand_in_the_order_of_the_samples_and_say_what_there_is(tmp_path: Path) -> None:
    file = tmp_path / "scores" / "lengths.base.jsonl"
    rows = run(TASK, Watched([4, 1, 3, 0, 2]), file)
    assert [row.id for row in rows] == ["s0", "s1", "s2", "s3", "s4"]
    assert read(file) == rows
    assert rows[0].scores == {"length": 7, "asked": False, "word": "r", "none": None}
    assert rows[0].about == {"gold": ["a", 0]}
    assert rows[0].decoding == {"temperature": 0, "stop": ["x"]}
    assert rows[0].meta == {"level": "none"}
    assert (rows[3].status, rows[3].reason, rows[3].reply, rows[3].scores) == (
        "unscored",
        "the server is gone",
        None,
        {},
    )
    assert unscored(rows) == {"the server is gone": 1}
    written = json.loads(file.read_text().splitlines()[0])
    assert {"id", "status", "reason", "reply", "scores", "about", "decoding"} <= written.keys()


@pytest.mark.parametrize("dies_after", [1, 3])
def test_a_killed_run_goes_on_without_asking_twice(tmp_path: Path, dies_after: int) -> None:
    whole, file = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    run(TASK, Watched(), whole)
    with pytest.raises(KeyboardInterrupt):
        run(TASK, Watched([2, 4, 0, 1, 3], dies_after), file)
    with file.open("a") as handle:
        handle.write('{"id": "s1", "sta')  # the kill came in the middle of a line
    again = Watched()
    run(TASK, again, file)
    assert len(again.asked) == 5 - dies_after
    assert not {"s2", "s4", "s0"} & {*again.asked} if dies_after == 3 else "s2" not in again.asked
    assert file.read_text() == whole.read_text()
    last = Watched()
    run(TASK, last, file)
    assert last.asked == [], "unscored rows stand too"


def test_rows_of_another_decoding_or_gold_are_answered_again(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    run(TASK, Watched(), file)
    other = Watched()
    other.decoding = {"temperature": 1}
    run(TASK, other, file)
    assert len(other.asked) == 5
    changed = Task("lengths", (*SAMPLES[:2], sample(2, gold="new"), *SAMPLES[3:]), length)
    again = Watched()
    again.decoding = {"temperature": 1}
    run(changed, again, file)
    assert again.asked == ["s2"]


def test_a_reply_that_cannot_be_scored_is_kept_and_no_zero(tmp_path: Path) -> None:
    rows = run(TASK, FromEngine(ScriptedEngine(["nonsense", "Hello."])), tmp_path / "rows.jsonl")
    assert [row.status for row in rows] == ["unscored", "scored"] * 2 + ["unscored"]
    assert (rows[0].reply, rows[0].reason, rows[0].scores) == ("nonsense", "no number in the answer", {})


def test_two_samples_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="task t: two samples have the id 's1'"):
        run(Task("t", (SAMPLES[1], SAMPLES[1]), length), Watched(), tmp_path / "rows.jsonl")


def test_a_line_that_is_no_row_names_file_and_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 1: not a row of scores"):
        read(file)


class Refusing(ScriptedEngine):
    def generate(self, request: GenerateRequest) -> Any:
        if "2" in request.messages[-1].content:
            raise EngineError("the conversation cannot be rendered: no")
        return super().generate(request)


def test_an_engine_answers_with_its_system_prompt_and_a_refusal_is_a_failure() -> None:
    seen: list[tuple[Message, ...]] = []

    def remember(messages: Sequence[Message]) -> tuple[()]:
        seen.append(tuple(messages))
        return ()

    answer = FromEngine(Refusing([" Hello. "], readings=remember), "Be kind.")
    found = {each.id: reply for each, reply in answer(SAMPLES)}
    assert found["s1"] == Reply("Hello.")
    assert found["s2"] == Failure("the conversation cannot be rendered: no")
    assert seen[0] == (Message("system", "Be kind."), *SAMPLES[0].messages)
    assert answer.decoding["system_prompt"] == "Be kind."
    assert answer.decoding["temperature"] == 0


def test_an_engine_that_writes_batches_gives_what_it_gives_one_by_one(toy_base: Path) -> None:
    engine = LocalEngine(load(toy_base), load_tokenizer(toy_base))
    sampling = Sampling(temperature=1.0, max_new_tokens=8, seed=3)
    together = {each.id: reply for each, reply in FromEngine(engine, None, sampling)(SAMPLES)}

    class OneByOne:
        generate, score, capabilities = engine.generate, engine.score, engine.capabilities

    alone = {each.id: reply for each, reply in FromEngine(OneByOne(), None, sampling)(SAMPLES)}
    assert together == alone
    assert len({str(reply) for reply in together.values()}) == 5
    part = {each.id: reply for each, reply in FromEngine(engine, None, sampling)(SAMPLES[3:])}
    assert part == {key: together[key] for key in ("s3", "s4")}, "a draw hangs on its sample, not on what else is left"


def test_seeds_differ_from_sample_to_sample_and_repeat() -> None:
    sampling = Sampling(seed=1)
    assert seeded(sampling, "a") == seeded(sampling, "a") != seeded(sampling, "b")
    assert seeded(sampling, "a") != seeded(Sampling(seed=2), "a")


def companion(replies: Iterable[str]) -> FromCompanion:
    return FromCompanion(
        Setting(ScriptedEngine([*replies]), load_detector(), load_directory(), "You listen.", country="IE")
    )


def test_the_companion_answers_each_sample_in_a_session_of_its_own() -> None:
    crisis = Sample("high", (Message("user", "I want to kill myself tonight."),))
    calm = Sample("calm", (Message("user", "The tomatoes on my balcony are ripe!"),))
    turns = (Message("user", "Hello."), Message("assistant", "Hello, how are you?"), Message("user", "Fine, I baked."))
    answer = companion(["How lovely! What will you make of them?"])
    found = {each.id: reply for each, reply in answer([crisis, calm, Sample("turns", turns)])}
    high, low, several = (found[name] for name in ("high", "calm", "turns"))
    assert isinstance(high, Reply)
    assert isinstance(low, Reply)
    assert isinstance(several, Reply)
    assert high.meta["level"] in {"high", "emergency"}
    assert high.meta["card"] is True
    assert "?" not in high.text
    assert (low.meta["level"], low.meta["card"], low.meta["reply_source"]) == ("none", False, "model")
    assert low.text == several.text == "How lovely! What will you make of them?"
    assert answer.decoding["companion"] is True


def test_a_conversation_that_ends_on_the_assistant_is_a_failure_and_silence_a_notice() -> None:
    ends = Sample("ends", (Message("user", "Hi"), Message("assistant", "Hello")))
    ((_, failure),) = companion(["Hello."])([ends])
    assert failure == Failure("the conversation does not end on a user turn")
    ((_, silent),) = companion([""])([sample(1, "The tomatoes are ripe")])
    assert isinstance(silent, Reply)
    assert (silent.text, silent.meta["reply_source"]) == ("", "notice")
    assert silent.meta["notice"]
