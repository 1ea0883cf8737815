"""`warmline eval --suite`: what each suite asks of a run's stages or of a model, where it writes, and how it goes on."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.conftest import ToyRecipe
from warmline.cli import app
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.answers import FromEngine
from warmline.evaluate.suites import (
    SUITES,
    FromQuestions,
    Material,
    SuiteError,
    eq_bench_task,
    limited,
    questions_of,
    rows_file,
    run_suite,
    sum_up,
)
from warmline.run_dir import RunDir

QUESTIONS = {
    str(number): {
        "prompt": f"Read the dialogue:\n\nScene {number}\n\nAt the end of this dialogue, rate.",
        "reference_answer_fullscale": {
            key: value
            for at, (name, score) in enumerate({"Sad": 6, "Glad": 0, "Mad": 3, "Bored": 1}.items(), 1)
            for key, value in ((f"emotion{at}", name), (f"emotion{at}_score", score))
        },
    }
    for number in range(1, 9)
}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(QUESTIONS))
    return file


def test_eq_bench_of_an_engine_is_scored_as_its_saved_answers_are(tmp_path: Path, questions: Path) -> None:
    folder, material = RunDir(tmp_path / "run"), Material(questions=questions)
    engine = ScriptedEngine(["Sad: 6\nGlad: 0\nMad: 3\nBored: 1"])
    by_id = {each.id: each for each in questions_of(material)}
    rows = run_suite("eq-bench", folder, "base", FromQuestions(engine, by_id, "lm-eval", {}), material, companion=False)
    assert [row.scores["parsed"] for row in rows] == [True] * 8
    tables = json.loads(sum_up("eq-bench", folder, material, companion=False).read_text())["stages"]["base"]
    assert tables["lm_eval"]["score"] == pytest.approx(100)
    assert tables["floors"]["threes"] < 100
    assert tables["n"] == 8


def test_without_questions_eq_bench_says_where_they_could_be() -> None:
    with pytest.raises(SuiteError, match="--questions"):
        eq_bench_task(Material())


@pytest.mark.parametrize("name", [name for name, suite in SUITES.items() if name not in ("eq-bench", "responses")])
def test_a_suite_gives_rows_exports_and_tables(name: str, tmp_path: Path) -> None:
    from warmline.dialogue.companion import Setting
    from warmline.evaluate.answers import FromCompanion
    from warmline.safety.detect import load_detector
    from warmline.safety.resources.directory import load_directory

    folder, material = RunDir(tmp_path), Material(limit=8)
    engine = ScriptedEngine(["That sounds really hard. I'm here with you."])
    through = SUITES[name].needs_companion
    answer = FromCompanion(Setting(engine, load_detector(), load_directory())) if through else FromEngine(engine)
    for stage in ("base", "sft"):
        rows = run_suite(name, folder, stage, answer, material, companion=through)
        assert len(rows) == 8
        assert all(row.scored for row in rows)
    assert len((tmp_path / "exports" / f"{name}.sft.jsonl").read_text().splitlines()) == 8
    document = json.loads(sum_up(name, folder, material, companion=through).read_text())
    assert [*document["stages"]] == ["base", "sft"]
    assert all(document["stages"].values())
    assert ("changes" in document) == (name == "warm")


def test_a_limit_is_a_choice_that_stays(tmp_path: Path) -> None:
    task = SUITES["qualitative"].task(Material())
    some = limited(task, 5, seed=3)
    assert some == limited(task, 5, seed=3)
    assert some != limited(task, 5, seed=4)
    assert [each for each in task.samples if each in some.samples] == [*some.samples]
    assert limited(task, 10_000, seed=3) is task


def test_files_of_the_companion_stand_beside_those_of_the_bare_model(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    assert rows_file(run, "redteam", "sft", companion=False).name == "redteam.sft.jsonl"
    assert rows_file(run, "redteam", "sft", companion=True).name == "redteam.companion.sft.jsonl"
    assert rows_file(run, "safety", "sft", companion=True).name == "safety.sft.jsonl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite", "humour"], "--suite 'humour': expected some of held-out"),
        (["--suite", ","], "--suite names no suite"),
        (["--suite", "responses"], "no corpora"),
        (["--suite", "held-out,warm"], "no corpora"),
        ([], "is not a run folder"),
        (["--stage", "rlhf", "--suite", "warm"], "--stage 'rlhf': there is base"),
        (["--suite", "warm"], "neither a run under ./runs nor a model"),
        (["--limit", "0"], "should be greater than or equal to 1"),
    ],
)
def test_bad_input_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["eval", str(tmp_path / "nowhere"), *arguments])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_stages_of_a_run_and_a_second_call_that_asks_nothing(
    toy_recipe: ToyRecipe, questions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real run of a toy: both stages from one loaded base, replies written together, the second call adds nothing."""
    monkeypatch.chdir(tmp_path)
    trained = CliRunner().invoke(app, ["train", str(toy_recipe(sft__steps=1))])
    assert trained.exit_code == 0, trained.output
    words = ["eval", "toy", "--suite", "warm,eq-bench,responses", "--limit", "3", "--questions", str(questions)]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    scores = tmp_path / "runs" / "toy" / "scores"
    files = {file: file.read_bytes() for file in scores.glob("*.jsonl")}
    assert {file.name for file in files} == {
        f"{suite}.{stage}.jsonl" for suite in ("warm", "eq-bench", "responses") for stage in ("base", "sft")
    }
    assert [*json.loads((scores / "responses.json").read_text())["stages"]] == ["base", "sft"]
    assert CliRunner().invoke(app, words).exit_code == 0
    assert {file: file.read_bytes() for file in files} == files
