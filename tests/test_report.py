"""The report and its plots, over invented scores and over missing and broken files."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.data.conversation import Affect, Conversation, Turn
from warmline.data.labels import AFFECTS, EMOTIONS
from warmline.engine.engine import Message, Reading
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.floors import fit_floors
from warmline.evaluate.held_out import Gold, Row, score_held_out
from warmline.evaluate.plots import draw_plots, read_curves
from warmline.evaluate.report import write_report
from warmline.evaluate.stats import Interval
from warmline.evaluate.summary import held_out_file, summarise
from warmline.evaluate.wording import difference, estimate
from warmline.run_dir import RunDir, RunError, append_row, write_text

PNG = b"\x89PNG\r\n"


def make_run(folder: Path, *, base: str = "tiny") -> tuple[RunDir, Recipe]:
    recipe = load_recipe("tiny", [f"model.base={base}"])
    run = RunDir(folder)
    run.claim(recipe)
    return run, recipe


def conversation(number: int) -> Conversation:
    emotion = EMOTIONS[number % 3]
    turns = (
        Turn("user", f"I feel {emotion}, {number}.", emotions=(emotion,), affect=Affect(0.1 * (number % 9), 0.2)),
        Turn("assistant", "Ok."),
    )
    return Conversation(f"c{number}", "bundled", turns)


def knowing(messages: Sequence[Message]) -> tuple[Reading, ...]:
    """Reads the emotion that the text names, and an affect that is far off."""
    named = messages[-1].content.split()[2].rstrip(",")
    values = tuple(float(label == named) for label in EMOTIONS)
    return Reading("emotion", EMOTIONS, values), Reading("affect", AFFECTS, (-1.0, -1.0))


def score(run: RunDir, recipe: Recipe, num: int = 12) -> None:
    held_out = [conversation(number) for number in range(num)]
    for stage, engine in {"base": ScriptedEngine(), "sft": ScriptedEngine(seed=1, readings=knowing)}.items():
        score_held_out(engine, held_out, held_out_file(run, stage))
    train = [conversation(100 + number) for number in range(30)]
    summarise(run, fit_floors(train), recipe.eval, seed=recipe.seed, conversations=held_out)


def metrics_row(step: int, split: str, **terms: float | None) -> dict[str, object]:
    values = {name: {"value": value, "count": 3} for name, value in terms.items()}
    return {"step": step, "stage": "sft", "split": split, "loss": 2.0, "terms": values, "lr": 1e-3, "tokens": 9}


def test_a_report_says_what_came_out_in_plain_sentences(tmp_path: Path):
    run, recipe = make_run(tmp_path / "tiny")
    score(run, recipe)
    for step in range(4):
        append_row(run.metrics, metrics_row(step, "train", lm=3.0 - step, emotion=1.0))
    append_row(run.metrics, metrics_row(3, "validation", lm=1.0, emotion=1.5))
    run.add_to_manifest(
        git="abc123",
        versions={"torch": "2.13.0", "datasets": None},
        device="cpu",
        seed=7,
        data={
            "bundled": {
                "location": "package",
                "sha256": "f" * 64,
                "counts": {"train": 30, "test": 12},
                "rejected": {"empty turn": 2},
            }
        },
        examples={"bundled": {"windows": 3}},
    )
    file = write_report(run)
    text = file.read_text()
    assert file == tmp_path / "tiny" / "report.md"
    assert text.splitlines()[2].startswith("**This is a demonstration.**")
    assert "No clinician has reviewed" in text
    assert "is not therapy" in text
    lead = text.split("## In short")[1].split("\n- ")[0]
    assert "It reads emotion" in lead
    assert "better than the best guess that looks at no text." in lead
    assert "The **emotion** head beats its best floor in accuracy (1.000 against" in text
    assert "The **affect** head does worse than its best floor in valence error" in text
    assert "held-out loss" in text
    assert "| floor: words as often as in train, bundled | 12 | 12 |" in text
    assert "| bundled | package | train 30, test 12 | 2 | ffffffffffff |" in text
    assert "- bundled: 2 x empty turn" in text
    assert "- bundled: windows 3" in text
    assert "abc123" in text
    assert "torch 2.13.0" in text
    assert "datasets None" not in text
    assert "warmline run tiny " in text
    assert "### emotion, stage sft" in text
    for name in ("loss.sft", "heads.sft", "labels.emotion.sft"):
        assert f"(plots/{name}.png)" in text
        assert (run.path / "plots" / f"{name}.png").read_bytes().startswith(PNG)
    assert write_report(run).read_text() == text  # the same run gives the same page


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (1.0, "Stage **sft** has a lower held-out loss than stage base (sft minus base: -0.250 [-0.250, -0.250]"),
        (-1.0, "Stage **sft** has a higher held-out loss than stage base (sft minus base: +0.250 [+0.250, +0.250]"),
        (0.0, "The held-out losses of stages sft and base are not distinguishable"),
    ],
)
def test_stages_in_one_sentence(tmp_path: Path, gain: float, sentence: str):
    run, recipe = make_run(tmp_path / "tiny")
    for stage, loss in {"base": 8.0, "sft": 8.0 - gain}.items():
        for number in range(8):
            row = Row(
                id=f"{number}#1",
                conversation=str(number),
                source="bundled",
                status="scored",
                num_chars=9,
                logprob=-loss,
                num_tokens=4,
                gold=Gold(),
            )
            append_row(held_out_file(run, stage), row.model_dump(mode="json"))
    summarise(run, fit_floors([]), recipe.eval, seed=7)
    text = write_report(run).read_text()
    assert sentence in text
    assert "No head was scored." in text


def test_unscored_samples_and_few_conversations_are_said(tmp_path: Path):
    run, recipe = make_run(tmp_path / "tiny")
    score_held_out(ScriptedEngine(["Fixed."]), [conversation(1), conversation(2)], held_out_file(run, "base"))
    score_held_out(ScriptedEngine(readings=knowing), [conversation(1), conversation(2)], held_out_file(run, "sft"))
    summarise(run, fit_floors([]), recipe.eval, seed=7)
    text = write_report(run).read_text()
    assert "Some samples could not be scored (2 in stage base)." in text
    assert "2 x an engine that replays given replies has no log-probabilities" in text
    assert "Stages sft and base have no scored reply in common" in text
    assert "fewer than 6 conversations: too few to decide anything" in text
    assert "has no floor to be held against in accuracy (1.000)" in text


def test_a_report_without_anything_says_so(tmp_path: Path):
    run, _ = make_run(tmp_path / "other-name", base="some/model")
    text = write_report(run).read_text()
    assert "demonstration" not in text
    assert "Nothing has been scored yet" in text
    assert "The manifest does not say which data was used." in text
    assert "Left out. Loss curves: metrics.jsonl has no losses." in text
    assert "Left out. Heads: nothing is scored." in text
    recipe_file = run.path / "recipe.yaml"
    assert f"warmline run {recipe_file} --name other-name" in text  # an override: the recipe's name is not enough


def test_broken_files_are_said_and_never_a_crash(tmp_path: Path):
    run, _ = make_run(tmp_path / "tiny")
    write_text(run.path / "scores" / "summary.json", '{"split": "test"')
    write_text(run.path / "manifest.json", '{"data": ')
    write_text(
        run.metrics, '{"step": 1}\n[]\n{"step": 1, "stage": "sft", "split": "train", "terms": [], "loss": 1}\n{"st'
    )
    text = write_report(run).read_text()
    assert "The scores cannot be shown:" in text
    assert "summary.json: not a summary" in text
    assert "Left out. Loss curves" in text
    write_text(run.path / "manifest.json", json.dumps({"data": {"bundled": None, "b|c": {"counts": 3}}, "versions": 1}))
    text = write_report(run).read_text()
    assert "| bundled | unknown | unknown | 0 | unknown |" in text
    assert "| b\\|c | unknown | unknown | 0 | unknown |" in text


def test_only_a_run_folder_has_a_report(tmp_path: Path):
    with pytest.raises(RunError, match="not a run folder"):
        write_report(RunDir(tmp_path))


def test_curves_leave_out_what_was_not_measured(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    append_row(file, metrics_row(1, "train", lm=2.5, emotion=None, risk=float("nan")))
    uncounted = metrics_row(2, "train") | {"terms": {"lm": {"value": 0.0, "count": 0}}}
    append_row(file, uncounted)
    append_row(file, metrics_row(2, "validation", lm=2.0))
    assert read_curves(file) == {
        "sft": {
            "total": {"train": [(1, 2.0), (2, 2.0)], "validation": [(2, 2.0)]},
            "lm": {"train": [(1, 2.5)], "validation": [(2, 2.0)]},
        }
    }
    plots = draw_plots(RunDir(tmp_path))
    assert [path.name for _, path in plots.drawn] == ["loss.sft.png"]
    assert plots.left_out == ("Heads: nothing is scored.",)


def test_numbers_read_the_same_everywhere():
    assert estimate(None) == "not scored"
    assert estimate(Interval(619.3284, 547.0, 699.0)) == "619.3 [547.0, 699.0]"
    assert difference(Interval(0.2, -0.1, 0.5)) == "+0.200 [-0.100, +0.500]"
    assert difference(Interval(-0.0001, None, None)) == "0.000 (no interval)"
