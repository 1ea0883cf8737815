"""Our lm-eval convention against lm-evaluation-harness' own scorer, loaded from the installed package."""

import ast
import contextlib
import importlib.util
import io
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from warmline.evaluate.eq_bench import Answers, lm_eval_score, score
from warmline.evaluate.eq_bench_parsing import reference_parse
from warmline.evaluate.eq_bench_questions import MAX_NEW_TOKENS, Question, questions_from, read_questions, request_for

from .eq_bench_toys import any_answer, hub_rows, original_rows

NUM_SETS = 1000
Scorer = Callable[[dict[str, str], list[str]], dict[str, float]]


@pytest.fixture(scope="module")
def task() -> Path:
    """The harness' folder of this task. Nothing of the harness is imported for it."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None, "lm_eval is a development requirement: pip install -e '.[dev]'"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "tasks" / "eq_bench"


@pytest.fixture(scope="module")
def theirs(task: Path) -> Scorer:
    spec = importlib.util.spec_from_file_location("lm_eval_eq_bench_utils", task / "utils.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.calculate_score_fullscale


def literal(question: Question) -> str:
    """A reference as the hub copy has it."""
    pairs: dict[str, object] = {f"emotion{at}": name for at, name in enumerate(question.emotions, start=1)}
    return repr(pairs | {f"emotion{at}_score": str(value) for at, value in enumerate(question.reference, start=1)})


def their_mean(theirs: Scorer, references: list[str], responses: list[str]) -> float:
    """The harness' metric: the mean of `eqbench` over all documents."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot read
        scores = [
            theirs({"reference_answer_fullscale": reference}, [response]).get("eqbench", 0)
            for reference, response in zip(references, responses, strict=True)
        ]
    return sum(scores) / len(scores)


def test_1000_generated_answer_sets_score_the_same(theirs: Scorer) -> None:
    rows = hub_rows(original_rows(10))
    questions = questions_from((str(number), row) for number, row in enumerate(rows, start=1))
    references = [str(row["reference_answer_fullscale"]) for row in rows]
    means, parseable = set(), 0
    for seed in range(NUM_SETS):
        rng = random.Random(seed)
        responses = [any_answer(question, rng) for question in questions]
        expected = their_mean(theirs, references, responses)
        answers = Answers({question.id: text for question, text in zip(questions, responses, strict=True)})
        found = score(questions, answers)
        assert found.lm_eval == pytest.approx(expected, abs=1e-9), seed
        means.add(round(expected, 6))
        parseable += sum(each.whole.values is not None for each in found.marked)
    assert len(means) > 800  # the sets differ
    assert 0.2 < parseable / (10 * NUM_SETS) < 0.8  # and hold both kinds of answers


@pytest.mark.real
def test_1000_generated_answer_sets_to_the_real_questions_score_the_same(theirs: Scorer) -> None:
    root = os.environ.get("WARMLINE_DATA")
    if not root:
        pytest.skip("WARMLINE_DATA is not set")
    questions = read_questions(Path(root) / "eq-bench" / "eq_bench_v2_questions_171.json")
    references = [literal(question) for question in questions]
    for seed in range(NUM_SETS):
        rng = random.Random(seed)
        sample = sorted(rng.sample(range(171), 20))
        asked = [questions[at] for at in sample]
        responses = [any_answer(question, rng) for question in asked]
        expected = their_mean(theirs, [references[at] for at in sample], responses)
        readings = [reference_parse(text, each.emotions) for text, each in zip(responses, asked, strict=True)]
        assert lm_eval_score(asked, readings) == pytest.approx(expected, abs=1e-9), seed


def test_we_ask_as_their_task_does(task: Path) -> None:
    text = re.sub(r"!function \S+", "''", (task / "default.yaml").read_text(encoding="utf-8"))
    settings: dict[str, Any] = yaml.safe_load(text)
    sampling = request_for(questions_from(original_rows(1).items())[0], "lm-eval").sampling
    assert settings["generation_kwargs"]["max_gen_toks"] == sampling.max_new_tokens == MAX_NEW_TOKENS["lm-eval"]
    assert settings["generation_kwargs"]["temperature"] == sampling.temperature == 0
    assert settings["doc_to_text"] == "prompt"
    assert {each["metric"]: each["aggregation"] for each in settings["metric_list"]}["eqbench"] == "mean"


def test_references_of_the_toy_rows_are_literals_that_mix_numbers_and_text() -> None:
    kinds = {
        type(value)
        for row in hub_rows(original_rows(10))
        for name, value in ast.literal_eval(str(row["reference_answer_fullscale"])).items()
        if name.endswith("_score")
    }
    assert kinds == {int, str}
