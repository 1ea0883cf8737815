"""The command line on a run: finished, changed, held by another; looked at, reported again, and talked with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ToyRecipe, toy_row
from .test_cli import refused, warmline

RUN_WITHOUT_TORCH = """
import contextlib, sys
from warmline.cli import main
sys.argv = ["warmline", *sys.argv[1:]]
with contextlib.suppress(SystemExit):
    main()
print("torch" in sys.modules)
"""
HOLD = """
import sys
from pathlib import Path
from warmline.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


def snapshot(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file with its content, its age and its identity."""
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != ".lock")
    return {str(file): (file.read_bytes(), (stat := file.stat()).st_mtime_ns, stat.st_ino) for file in files}


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def finished(shared_folder: Path, toy_recipe: ToyRecipe, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy run that went through, made once for this file; the working folder is the one above `runs`."""
    monkeypatch.chdir(shared_folder)
    run = Path("runs") / "toy"
    if not run.exists():
        result = warmline("run", toy_recipe(), "--set", "sft.steps=2", "--set", "sft.validate_every=1")
        assert result.exit_code == 0, result.output
        assert result.stdout.strip() == str(run / "report.md")
    assert (run / "report.md").is_file()
    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---- a run that is there already ----


def test_changed_settings_on_a_run_are_refused_with_the_difference(finished: Path, toy_recipe: ToyRecipe) -> None:
    before = snapshot(finished)
    changes = ["--set", "sft.steps=2", "--set", "sft.validate_every=1", "--set", "sft.optim.learning_rate=0.5"]
    message = refused(warmline("run", toy_recipe(), *changes))
    assert "runs/toy was started with other settings" in message
    assert "  sft.optim.learning_rate: 0.01 -> 0.5" in message.splitlines()
    assert "--name" in message
    assert snapshot(finished) == before


def test_a_run_that_another_process_holds_is_refused(finished: Path, toy_recipe: ToyRecipe) -> None:
    command = [sys.executable, "-c", HOLD, str(finished)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        for words in (["run", str(toy_recipe())], ["train", str(toy_recipe())], ["eval", "toy"]):
            assert refused(warmline(*words)) == "runs/toy is in use by another process; wait for it, or use --name"
        other.kill()


def test_a_second_run_of_a_finished_one_returns_at_once_and_changes_nothing(
    finished: Path, toy_recipe: ToyRecipe
) -> None:
    before = snapshot(finished)
    words = ["run", str(toy_recipe()), "--set", "sft.steps=2", "--set", "sft.validate_every=1"]
    command = [sys.executable, "-c", RUN_WITHOUT_TORCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{finished / 'report.md'}\nFalse\n"  # it did not even load torch
    assert done.stderr == ""
    assert snapshot(finished) == before


def test_a_report_written_too_early_does_not_end_the_run(here: Path, toy_recipe: ToyRecipe) -> None:
    recipe = toy_recipe(sft__steps=1)
    assert warmline("train", recipe).exit_code == 0
    assert warmline("report", "toy").exit_code == 0
    assert not Path("runs/toy/scores/summary.json").exists()
    result = warmline("run", recipe)
    assert result.exit_code == 0, result.output
    assert Path("runs/toy/scores/summary.json").is_file()


def test_a_finished_run_is_whole(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert manifest["seed"] == 7
    assert manifest["data"]["talks"]["counts"] == {"train": 16, "validation": 4, "test": 4}
    assert re.fullmatch(r"[0-9a-f]{64}", manifest["data"]["talks"]["sha256"])
    assert {"git", "versions", "device", "labels", "base"} <= manifest.keys()
    for file in ("recipe.yaml", "metrics.jsonl", "rejected.jsonl", "stages/sft/stage.json", "scores/summary.json"):
        assert (finished / file).is_file(), file
    assert not [file for file in finished.rglob("*") if file.name.endswith((".draft", ".old"))]


def test_eval_and_report_of_a_finished_run_say_the_same_again(finished: Path) -> None:
    files = [finished / "report.md", finished / "scores" / "summary.json"]
    before = [file.read_bytes() for file in files]
    report = warmline("report", "toy")
    assert (report.exit_code, report.stdout) == (0, f"{finished / 'report.md'}\n")
    evaluated = warmline("eval", finished)  # by its folder
    assert (evaluated.exit_code, evaluated.stdout) == (0, f"{files[1]}\n{files[0]}\n")
    assert [file.read_bytes() for file in files] == before


# ---- looking at data, and talking ----


def test_data_show_marks_what_is_trained_and_where_the_heads_look(here: Path, toy_recipe: ToyRecipe) -> None:
    result = warmline("data", "show", toy_recipe(), "--count", "1")
    assert result.exit_code == 0, result.output
    row = toy_row("train-0", 0, 2)
    said = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
    assert [text.removesuffix("<|im_end|>") for text in re.findall(r"\[\[(.*?)\]\]", result.stdout)] == said
    assert result.stdout.startswith("talks train-0: ")
    assert ", 2 anchors\n" in result.stdout
    anchors = re.findall(r"\^<(.*?)>", result.stdout)
    assert anchors == [
        "emotion: sadness+joy, situation: sad, strategy: Question, risk: none, affect: -1.0/-0.5",
        "emotion: joy, situation: sad, strategy: Reflection of feelings, risk: none, affect: -0.5/+0.0",
    ]
    assert list(here.iterdir()) == []  # looking leaves no run behind


def test_data_show_of_two_conversations_shows_two(here: Path, toy_recipe: ToyRecipe) -> None:
    result = warmline("data", "show", toy_recipe())
    assert re.findall(r"^talks (\S+):", result.stdout, re.MULTILINE) == ["train-0", "train-1"]


def test_chat_with_a_finished_run_gives_notice_reply_and_readings(finished: Path) -> None:
    before = snapshot(finished)
    words = ["chat", "toy", "--temperature", "1.5", "--top-p", "1", "--seed", "1", "--max-new-tokens", "12"]
    result = warmline(*words, stdin="/why\nI lost my job today.\n/why\n/quit\nnever read\n")
    assert result.exit_code == 0, result.output
    head, _, after = result.stdout.partition("companion: ")
    assert "toy, stage sft" in head
    assert "You are talking with an AI" in head
    assert "no reply yet" in head
    reply, emotion, readings = after.partition("\nemotion ")
    assert reply.strip()
    assert "no words came" not in reply
    assert emotion
    assert "companion: " not in readings
    found = [line.split()[0] for line in readings.splitlines()[1:] if not line.startswith(" ")]
    assert found == ["situation", "strategy", "risk", "affect"]
    assert re.search(r"^risk +(none|elevated|high|emergency) .*\d\.\d\d$", readings, re.MULTILINE)
    assert re.search(r"^affect +valence [+-]\d\.\d\d  arousal [+-]\d\.\d\d$", readings, re.MULTILINE)
    assert snapshot(finished) == before  # nothing said is kept


def test_chat_ends_with_its_input_and_a_seed_repeats_it(finished: Path) -> None:
    words = ["chat", str(finished), "--stage", "base", "--seed", "3", "--max-new-tokens", "5"]
    one, two = (warmline(*words, stdin="Hello there.\nStill here.") for _ in range(2))
    assert one.exit_code == 0
    assert "toy, stage base" in one.stdout
    assert one.stdout.count("companion: ") == 2
    assert one.stdout == two.stdout


def test_chat_with_a_stage_that_a_run_does_not_have_names_those_that_it_has(finished: Path) -> None:
    assert refused(warmline("chat", "toy", "--stage", "dpo")) == "runs/toy has no stage 'dpo' (it has base, sft)"


def test_chat_with_a_plain_model_folder_has_no_heads(here: Path, toy_base: Path) -> None:
    result = warmline("chat", toy_base, "--max-new-tokens", "4", stdin="Hello.\n/why\n")
    assert result.exit_code == 0, result.output
    assert "this engine has no heads" in result.stdout
    assert "has no stage 'sft'" in refused(warmline("chat", toy_base, "--stage", "sft"))
