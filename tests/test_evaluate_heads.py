"""The heads' further tasks: emotions with any number of labels, strategies by history, and what the report shows."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from warmline.config.reading import load_recipe
from warmline.config.training import EvalSettings
from warmline.data.conversation import Conversation, Turn
from warmline.evaluate.all_labels import best_threshold, score_all_labels, tune
from warmline.evaluate.floors import BIGRAM, CHANCE, EVERY, MAJORITY, Floors, fit_floors
from warmline.evaluate.held_out import START, Gold, Row, read_rows
from warmline.evaluate.report import write_report
from warmline.evaluate.results import read_summary
from warmline.evaluate.stats import resample
from warmline.evaluate.strategy_history import (
    preference,
    preference_bias_draws,
    previous_predicted,
    score_history,
)
from warmline.evaluate.summary import held_out_file, summarise, tuning_file
from warmline.pipeline import accelerator, prepare, run_sft, score_stages
from warmline.run_dir import RunDir, append_row, write_text

from .conftest import ToyRecipe

SETTINGS = EvalSettings(bootstrap_samples=100)
DRAW = partial(resample, samples=100, seed=7)
LABELS: tuple[str, ...] = ("joy", "fear", "anger")


def emotion_row(name: str, gold: Sequence[str], *values: float) -> Row:
    readings: dict[str, dict[str, float]] = {"emotion": dict(zip(LABELS, values, strict=True))}
    return Row(
        id=name,
        conversation=name,
        source="goemotions",
        status="scored",
        num_chars=0,
        logprob=0.0,
        num_tokens=0,
        gold=Gold(emotion=tuple(gold)),
        readings=readings,
    )


def strategy_row(talk: int, turn: int, gold: str, before: str, **values: float) -> Row:
    return Row(
        id=f"c{talk}#{turn}",
        conversation=f"c{talk}",
        source="esconv",
        status="scored",
        num_chars=5,
        logprob=-1.0,
        num_tokens=2,
        gold=Gold(strategy=gold, previous_strategy=before),
        readings={"strategy": values},
    )


def put(file: Path, rows: Sequence[Row]) -> None:
    for row in rows:
        append_row(file, row.model_dump(mode="json"))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=1, max_size=25))
def test_a_threshold_is_the_best_of_all_that_differ(rows: list[tuple[bool, int]]) -> None:
    gold_N, p_N = np.array([float(gold) for gold, _ in rows]), np.array([n / 8 for _, n in rows])

    def f1(threshold: float) -> float:
        return float(f1_score(gold_N, p_N >= threshold))

    found = best_threshold(gold_N, p_N)
    if not gold_N.any():
        assert found is None
        return
    best = max(map(f1, p_N))
    assert found == max(value for value in p_N if f1(value) == pytest.approx(best))


VALIDATION = [
    emotion_row("v1", ["joy"], 0.6, 0.3, 0.1),
    emotion_row("v2", ["joy", "fear"], 0.5, 0.4, 0.1),
    emotion_row("v3", ["fear"], 0.4, 0.35, 0.25),
    emotion_row("v4", [], 0.9, 0.05, 0.05),
]
TEST = [
    emotion_row("t1", ["joy"], 0.7, 0.2, 0.1),
    emotion_row("t2", ["joy", "fear"], 0.2, 0.45, 0.35),
    emotion_row("t3", ["anger"], 0.1, 0.36, 0.54),
]


def test_all_labels_by_hand() -> None:
    tuned = tune(VALIDATION, {row.key for row in TEST})
    assert tuned is not None
    assert tuned.thresholds == {"joy": 0.5, "fear": 0.35, "anger": None}
    assert (tuned.num_rows, tuned.num_left_out) == (3, 0)  # the row without a label says nothing
    unread = emotion_row("t4", ["joy"], 0, 0, 0).model_copy(update={"readings": {}})
    floors = Floors(emotion_rates={"joy": 1.0, "fear": 0.25})
    task = score_all_labels([*TEST, unread], tuned, floors, DRAW)
    assert task is not None
    # predicted: {joy}, {fear}, {fear}: joy 2/3, fear 2/3, anger 0
    assert task.metrics["macro_f1"].value.value == pytest.approx(4 / 9)
    assert task.metrics["micro_f1"].value.value == pytest.approx(4 / 7)
    assert (task.n, task.unscored, task.tuned_on, task.probabilities) == (3, 1, 3, "softmax")
    assert {score.label: score.predicted for score in task.labels} == {"joy": 1, "fear": 2, "anger": 0}
    floors_of = task.metrics["micro_f1"].floors
    assert set(floors_of) == {MAJORITY, CHANCE, EVERY}
    assert floors_of[MAJORITY].value == pytest.approx(2 * 2 / (4 + 3))
    assert floors_of[EVERY].value == pytest.approx(2 * 4 / (4 + 9))


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(st.sets(st.sampled_from(LABELS), min_size=1), st.lists(st.integers(0, 4), min_size=3, max_size=3)),
        min_size=1,
        max_size=20,
    )
)
def test_all_label_scores_are_scikit_learns(rows: list[tuple[set[str], list[int]]]) -> None:
    found = [emotion_row(f"r{at}", sorted(gold), *(n / 4 for n in values)) for at, (gold, values) in enumerate(rows)]
    tuned = tune(found, set())
    assert tuned is not None
    task = score_all_labels(found, tuned, Floors(), DRAW)
    assert task is not None
    gold = np.array([[label in gold for label in LABELS] for gold, _ in rows])
    bars = [math.inf if bar is None else bar for bar in map(tuned.thresholds.__getitem__, LABELS)]
    guessed = np.array([[n / 4 >= bar for n, bar in zip(values, bars, strict=True)] for _, values in rows])
    occurs = [at for at in range(3) if gold[:, at].any() or guessed[:, at].any()]
    by_label = [f1_score(gold[:, at], guessed[:, at]) for at in occurs]
    assert task.metrics["macro_f1"].value.value == pytest.approx(np.mean(by_label))
    assert task.metrics["micro_f1"].value.value == pytest.approx(f1_score(gold, guessed, average="micro"))


def test_thresholds_never_see_the_scored_split(tmp_path: Path) -> None:
    """Rows of the test split, planted among those of validation, and other test labels change no threshold."""
    clean, planted, altered = (RunDir(tmp_path / name) for name in ("clean", "planted", "altered"))
    for run in (clean, planted, altered):
        put(tuning_file(run, "sft"), VALIDATION)
        put(held_out_file(run, "sft"), TEST)
    put(tuning_file(planted, "sft"), TEST)
    write_text(held_out_file(altered, "sft"), "")
    put(held_out_file(altered, "sft"), [row.model_copy(update={"gold": Gold(emotion=("anger",))}) for row in TEST])
    tasks = [
        summarise(run, Floors(), SETTINGS, seed=7).stages["sft"].emotion_all_labels for run in (clean, planted, altered)
    ]
    assert all(tasks)
    one, other, third = (task for task in tasks if task)
    assert one.thresholds == other.thresholds == third.thresholds == {"joy": 0.5, "fear": 0.35, "anger": None}
    assert (one.left_out_of_tuning, other.left_out_of_tuning) == (0, 3)
    assert other.model_copy(update={"left_out_of_tuning": 0}) == one
    # had they been seen, the thresholds would be others
    seen = tune([*VALIDATION, *TEST], set())
    assert seen is not None
    assert seen.thresholds != one.thresholds


def test_all_labels_are_not_scored_without_validation_readings_or_on_validation_itself(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    put(held_out_file(run, "sft"), TEST)
    stage = summarise(run, Floors(), SETTINGS, seed=7).stages["sft"]
    assert stage.emotion_all_labels is None
    assert stage.not_scored == ("emotion, all labels: the validation split has no emotion that the head has read",)
    put(tuning_file(run, "sft"), VALIDATION)
    on_validation = SETTINGS.model_copy(update={"split": "validation"})
    stage = summarise(run, Floors(), on_validation, seed=7).stages["sft"]
    assert stage.emotion_all_labels is None
    assert stage.not_scored == ("emotion, all labels: the scored split is the one that its thresholds are tuned on",)


def test_emotion_floors_count_every_label_of_train() -> None:
    train = [
        Conversation(str(at), "g", (Turn("user", "a", emotions=each),))
        for at, each in enumerate([("joy", "fear"), ("joy",)])
    ]
    floors = fit_floors(train)
    assert floors.emotion_rates == {"joy": 1.0, "fear": 0.5}
    drawn = floors.indicators(LABELS, 2000)[CHANCE]
    assert drawn.mean(axis=0) == pytest.approx([1.0, 0.5, 0.0], abs=0.04)
    assert Floors().indicators(LABELS, 3) == {}


def test_predicted_history_is_the_heads_own() -> None:
    rows = [
        strategy_row(1, 1, "Question", START, Question=0.9, Others=0.1),
        strategy_row(1, 3, "Others", "Question", Question=0.8, Others=0.2),
        strategy_row(1, 5, "Question", "Others", Question=0.4, Others=0.6),
        strategy_row(2, 1, "Others", "Question", Question=0.3, Others=0.7),  # a supporter opened, unasked
    ]
    assert list(previous_predicted(rows).values()) == [START, "Question", "Question", START]
    floors = Floors(
        counts={"strategy": {"Question": 2, "Others": 1}},
        next_strategy={START: "Question", "Question": "Others", "Others": "Question"},
    )
    found = score_history(rows, floors, DRAW)
    assert found is not None
    assert found.gold["accuracy"].floors[BIGRAM].value == 1.0
    assert found.predicted["accuracy"].floors[BIGRAM].value == 0.5  # Question, Others, Others, Question
    assert found.gold["accuracy"].value == found.predicted["accuracy"].value
    assert found.agreement.value == 0.5
    bias = found.predicted["preference_bias"]
    assert (bias.best_floor, bias.verdict) == (None, None)
    assert bias.floors[MAJORITY].value == pytest.approx(1.0, abs=0.02)  # one of two is all that is ever said
    assert sum(found.preference.values()) == pytest.approx(2)
    assert score_history([], floors, DRAW) is None


WRONG = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=60)


@settings(deadline=None, max_examples=50)
@given(WRONG)
def test_preferences_are_bradley_terry_strengths(pairs: list[tuple[str, str]]) -> None:
    """At the likelihood's maximum each strategy is said in error exactly as often as its strength expects."""
    gold, predicted = (list(each) for each in zip(*pairs, strict=True))
    found = preference(gold, predicted, "abcd")
    assert sum(found.values()) == pytest.approx(4)
    errors = {(i, j): 0.01 + sum(p == i and g == j for g, p in pairs) for i in "abcd" for j in "abcd" if i != j}
    for i in "abcd":
        said = sum(errors[i, j] for j in "abcd" if j != i)
        expected = sum((errors[i, j] + errors[j, i]) * found[i] / (found[i] + found[j]) for j in "abcd" if j != i)
        assert said == pytest.approx(expected, rel=1e-2, abs=1e-3)


def test_preference_bias_at_its_ends() -> None:
    resampling = DRAW([str(at) for at in range(8)])
    gold = list("abcdabcd")
    right = preference_bias_draws(gold, gold, "abcd", resampling)
    assert right == pytest.approx(np.zeros(101), abs=1e-9)  # what is right is no preference
    one = preference_bias_draws(gold, ["a"] * 8, "abcd", resampling)
    assert one[0] == pytest.approx(math.sqrt(3), abs=0.05)


def full_run(folder: Path) -> RunDir:
    run = RunDir(folder)
    run.claim(load_recipe("tiny"))
    put(tuning_file(run, "sft"), VALIDATION)
    rows = [emotion_row(f"e{at}", [LABELS[at % 3]], *np.roll([0.6, 0.3, 0.1], at % 4 % 3)) for at in range(24)]
    for at in range(8):
        rows += [
            strategy_row(at, 1, "Question", START, Question=0.9, Others=0.1),
            strategy_row(at, 3, "Others", "Question", Question=0.7 - at / 20, Others=0.3 + at / 20),
        ]
    put(held_out_file(run, "sft"), rows)
    train = [
        Conversation(
            str(at),
            "t",
            (Turn("user", "a", emotions=(LABELS[at % 3],)), Turn("assistant", "b", strategy=("Question",))),
        )
        for at in range(6)
    ]
    summarise(run, fit_floors(train), SETTINGS, seed=7)
    return run


def test_the_report_shows_what_the_heads_can_be_trusted_with(tmp_path: Path) -> None:
    run = full_run(tmp_path / "tiny")
    text = write_report(run).read_text()
    for heading in (
        "### Emotion, all labels, stage sft",
        "### Strategy by history, stage sft",
        "### How far probabilities can be trusted, stage sft",
    ):
        assert heading in text
    assert "tuned on 3 turns of the validation split" in text
    assert "| anger |" in text
    assert "never" in text
    assert "the head's own strategies before, preference bias" in text
    assert "emotion, calibration error, equal mass" in text
    assert "accuracy where 80 % is answered" in text
    for name in ("reliability.sft", "abstain.sft", "confusion.emotion.sft", "confusion.strategy.sft"):
        assert f"(plots/{name}.png)" in text
        assert (run.path / "plots" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_a_summary_of_before_is_still_read(tmp_path: Path) -> None:
    run = full_run(tmp_path / "tiny")
    file = run.path / "scores" / "summary.json"
    tree = json.loads(file.read_text())
    stage = tree["stages"]["sft"]
    for name in ("emotion_all_labels", "strategy_history", "not_scored"):
        del stage[name]
    for head in stage["heads"].values():
        del head["calibration"], head["confusion"]
    file.write_text(json.dumps(tree))
    summary = read_summary(run)
    assert summary is not None
    assert summary.stages["sft"].heads["emotion"].calibration is None
    text = write_report(run).read_text()
    assert "Emotion, all labels, stage" not in text
    assert "reliability.sft" not in text


def test_a_run_tunes_on_its_validation_split(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(str(toy_recipe(sft__steps=2, sft__validate_every=1, sft__save_every=1)))
    run = RunDir(tmp_path / "run")
    run.claim(recipe)
    here = accelerator()
    corpus, loaded = prepare(recipe, run, None, here)
    run_sft(recipe, run, corpus, loaded, here)
    score_stages(recipe, run, corpus, loaded)
    tuned_on = {row.conversation.split("-")[0] for row in read_rows(tuning_file(run, "sft"))}
    scored = {row.conversation.split("-")[0] for row in read_rows(held_out_file(run, "sft"))}
    assert (tuned_on, scored) == ({"validation"}, {"test"})
    assert not tuning_file(run, "base").exists()
    summary = read_summary(run)
    assert summary is not None
    task = summary.stages["sft"].emotion_all_labels
    assert task is not None
    assert task.left_out_of_tuning == 0
    assert summary.stages["sft"].strategy_history is not None
    assert summary.stages["base"].not_scored == ()
