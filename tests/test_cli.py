"""The command line: help without torch, one message and an exit code for every mistake."""

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from warmline import __version__
from warmline.cli import app
from warmline.config.reading import recipe_names
from warmline.data.sources.registry import SOURCES

from .conftest import ToyRecipe, toy_row

HELP_WITHOUT_TORCH = """
import contextlib, io, json, sys
from warmline.cli import main
shown = {}
for line in sys.stdin:
    sys.argv = ["warmline", *line.split(), "--help"]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    shown[line.strip()] = out.getvalue()
print(json.dumps({"shown": shown, "torch": "torch" in sys.modules}))
"""


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every command and group (of click) by what is typed after `warmline`."""
    yield path.strip(), group
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, f"{path} {name}")


COMMANDS = dict(commands(typer.main.get_command(app)))


def warmline(*words: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], input=stdin)


def refused(result: Result, code: int = 2) -> str:
    """The one message of a command that was refused."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    messages = [at.start() for at in re.finditer(r"^warmline: ", result.stderr, re.MULTILINE)]
    assert len(messages) == 1
    return result.stderr[messages[0] :].removeprefix("warmline: ").strip()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


CorpusWith = Callable[..., Path]


@pytest.fixture
def corpus_with(tmp_path: Path) -> CorpusWith:
    """A corpus folder whose train split holds 8 good rows and, after them, these lines."""

    def write(*lines: str) -> Path:
        folder = tmp_path / "corpus"
        folder.mkdir()
        for split, count, first in (("train", 8, 0), ("validation", 2, 8), ("test", 2, 10)):
            rows = [json.dumps(toy_row(f"{split}-{seed}", seed, 2)) for seed in range(first, first + count)]
            added = lines if split == "train" else ()
            (folder / f"{split}.jsonl").write_text("".join(f"{row}\n" for row in [*rows, *added]), encoding="utf-8")
        return folder

    return write


def labelled(**labels: object) -> str:
    """A conversation of one pair with other labels than the toy ones."""
    row: dict[str, Any] = toy_row("odd", 3, 1)
    for message in row["messages"]:
        message.update({key: value for key, value in labels.items() if key in message})
    return json.dumps(row)


# ---- help ----


def test_help_of_every_command_has_an_example_and_loads_no_torch() -> None:
    names = "".join(f"{name}\n" for name in COMMANDS)
    command = [sys.executable, "-c", HELP_WITHOUT_TORCH]
    done = subprocess.run(command, input=names, capture_output=True, text=True, check=True)
    answer = json.loads(done.stdout)
    assert answer["torch"] is False
    assert answer["shown"].keys() == COMMANDS.keys()
    assert {"", "run", "train", "eval", "report", "chat", "demo", "recipes", "data show"} <= COMMANDS.keys()
    for name, text in answer["shown"].items():
        assert f"Example: warmline {name}".strip() in text, name


@pytest.mark.parametrize("name", COMMANDS)
def test_the_example_of_a_command_is_one_that_it_accepts(name: str) -> None:
    example = re.search(r"Example: warmline (.+)", COMMANDS[name].help or "")
    assert example is not None
    words = shlex.split(re.split(r" (?:<|>>?) ", example[1])[0])  # what a shell does with files is no argument
    leaf = max((each for each in COMMANDS if words[: len(each.split())] == each.split()), key=len)
    context = COMMANDS[leaf].make_context(leaf, words[len(leaf.split()) :])
    recipe = context.params.get("recipe")
    assert recipe is None or recipe in recipe_names()


def test_the_installed_program_starts() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("warmline"), "--version"], check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{__version__}\n", "")


def test_the_recipes_are_listed_with_what_they_are_for() -> None:
    lines = warmline("recipes").stdout.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(len(line.split()) > 3 for line in lines)


# ---- mistakes in what is asked for ----


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "tniy"], "no recipe 'tniy' (did you mean 'tiny'?); `warmline recipes` lists them"),
        (["train", "none.yaml"], "recipe file none.yaml does not exist"),
        (["run", "tiny", "--set", "sft.optm.batch_size=1"], "sft.optm: unknown key (did you mean 'optim'?)"),
        (["report", "nothing"], "runs/nothing is not a run folder: it has no recipe.yaml"),
    ],
)
def test_a_real_process_refuses_with_2_and_one_line(here: Path, words: Sequence[str], message: str) -> None:
    done = subprocess.run([sys.executable, "-m", "warmline", *words], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"warmline: {message}\n")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("command", ["run", "train", "data show"])
def test_every_command_with_a_recipe_refuses_a_mistyped_key(here: Path, command: str) -> None:
    message = refused(warmline(*command.split(), "tiny", "--set", "data.aplha=1"))
    assert message == "data.aplha: unknown key (did you mean 'alpha'?)"


@pytest.mark.parametrize("command", ["report", "eval"])
def test_what_is_no_run_is_refused_and_not_created(here: Path, command: str) -> None:
    assert refused(warmline(command, "nothing")) == "runs/nothing is not a run folder: it has no recipe.yaml"
    assert list(here.iterdir()) == []


@pytest.mark.parametrize("words", [["chat", "gpt-nothing"], ["chat", "no/such/model"], ["chat", "not a name"]])
def test_chat_with_what_is_neither_run_nor_model_names_both(here: Path, words: Sequence[str]) -> None:
    message = refused(warmline(*words))
    assert message.startswith(f"{words[1]!r} is neither a run under ./runs nor a model: ")
    assert "\n" not in message


def test_an_error_of_the_file_system_is_a_message_with_code_1(here: Path) -> None:
    Path("runs").write_text("a file where a folder should be")
    assert "runs" in refused(warmline("run", "tiny"), code=1)


# ---- mistakes in data and base ----


def test_a_data_file_that_does_not_exist_is_named_with_its_setting(here: Path, toy_recipe: ToyRecipe) -> None:
    missing = here / "none.jsonl"
    message = refused(warmline("run", toy_recipe(data__sources__talks__location=str(missing))))
    assert message == f"data.sources.talks.location: {missing} does not exist"


def test_a_corpus_folder_without_a_split_says_what_it_holds(here: Path, toy_recipe: ToyRecipe) -> None:
    (here / "half").mkdir()
    (here / "half" / "train.jsonl").write_text(json.dumps(toy_row("a", 1, 2)) + "\n")
    message = refused(warmline("run", toy_recipe(data__sources__talks__location=str(here / "half"))))
    assert message == (f"{here / 'half'} has no validation.jsonl or valid.jsonl or dev.jsonl (found: train.jsonl)")


@pytest.mark.parametrize("source", ["esconv", "goemotions", "empathetic_dialogues"])
def test_an_unreachable_hub_source_names_the_ways_out(here: Path, toy_recipe: ToyRecipe, source: str) -> None:
    sources = {source: {"location": "nobody/has-this"}}
    message = refused(warmline("run", toy_recipe(data__sources=sources)))
    assert message.startswith(f"data.sources.{source}: hub dataset nobody/has-this cannot be read: ")
    assert message.endswith(f"give a local folder in data.sources.{source}.location or set WARMLINE_DATA")
    has_mirrors = bool(SOURCES[source].fallbacks)
    assert ("; allow a mirror (" in message) is ("--set data.allow_fallbacks=true" in message) is has_mirrors
    assert "\n" not in message


def test_a_mistyped_source_names_the_nearest(here: Path, toy_recipe: ToyRecipe) -> None:
    message = refused(warmline("run", toy_recipe(data__sources={"escnov": {}})))
    assert message.startswith("data.sources.escnov: 'escnov' is no source (did you mean 'esconv'?); known: ")


def test_a_base_that_is_neither_local_nor_reachable_is_one_line(here: Path, toy_recipe: ToyRecipe) -> None:
    message = refused(warmline("run", toy_recipe(model__base="nobody/has-this-base")))
    assert message.startswith("base model 'nobody/has-this-base' is neither a local folder nor reachable on the hub")
    assert "model.base" in message
    assert "\n" not in message


def test_a_base_folder_that_is_missing_or_holds_no_model_is_named(here: Path, toy_recipe: ToyRecipe) -> None:
    missing = here / "none"
    assert refused(warmline("run", toy_recipe(model__base=str(missing)))) == f"model folder {missing} does not exist"
    missing.mkdir()
    assert "has no config.json" in refused(warmline("run", toy_recipe(model__base=str(missing)), "--name", "other"))


def test_after_such_a_mistake_the_corrected_recipe_runs_under_the_same_name(here: Path, toy_recipe: ToyRecipe) -> None:
    refused(warmline("train", toy_recipe(model__base=str(here / "none"))))
    result = warmline("train", toy_recipe(), "--set", "sft.steps=1")
    assert result.exit_code == 0, result.output
    assert result.stdout == "runs/toy/stages/sft\n"


def test_too_many_malformed_rows_stop_the_run_and_are_kept(
    here: Path, toy_recipe: ToyRecipe, corpus_with: CorpusWith
) -> None:
    bad = ['{"id": "cut", "messages": [{"role": "us', "[1, 2]", '{"id": "empty"}']
    message = refused(warmline("run", toy_recipe(data__sources__talks__location=str(corpus_with(*bad)))))
    assert message.startswith("talks: 20.0% of 15 rows rejected, at most 2.0% allowed (data.max_rejected_share): ")
    assert message.endswith("they are kept in runs/toy/rejected.jsonl")
    kept = [json.loads(line) for line in Path("runs/toy/rejected.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["row"] for entry in kept] == bad
    assert {(entry["source"], entry["split"]) for entry in kept} == {("talks", "train")}
    assert [entry["reason"].split(":")[0] for entry in kept] == [
        "malformed JSON",
        "JSON list, expected an object",
        "no 'messages'",
    ]


def test_rejected_rows_are_kept_even_where_none_is_sound(here: Path, toy_recipe: ToyRecipe) -> None:
    (here / "all-bad.jsonl").write_text("".join(f'{{"id": {number}}}\n' for number in range(30)))
    message = refused(warmline("run", toy_recipe(data__sources__talks__location=str(here / "all-bad.jsonl"))))
    assert "no train conversation" in message
    kept = Path("runs/toy/rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["reason"] for line in kept} == {"no 'messages'"}


def test_few_malformed_rows_are_counted_in_the_manifest_and_the_run_goes_on(
    here: Path, toy_recipe: ToyRecipe, corpus_with: CorpusWith
) -> None:
    location = str(corpus_with("{not json", "{not json either"))
    recipe = toy_recipe(data__sources__talks__location=location, data__max_rejected_share=0.15, sft__steps=1)
    result = warmline("train", recipe)
    assert result.exit_code == 0, result.output
    about = json.loads(Path("runs/toy/manifest.json").read_text())["data"]["talks"]
    assert about["counts"] == {"train": 8, "validation": 2, "test": 2}
    assert sum(about["rejected"].values()) == 2
    assert all(reason.startswith("malformed JSON") for reason in about["rejected"])
    assert len(Path("runs/toy/rejected.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"strategy": "Questoin"}, "strategy 'Questoin' is not a known label (nearest: 'Question')"),
        ({"emotions": ["sadnes"]}, "emotion 'sadnes' is not a known label (nearest: 'sadness')"),
        ({"situation": "lonley"}, "situation 'lonley' is not a known label (nearest: 'lonely')"),
        ({"risk": "hihg"}, "risk 'hihg' is not a known label (nearest: 'high')"),
    ],
)
def test_a_label_outside_its_vocabulary_names_the_nearest(
    here: Path, toy_recipe: ToyRecipe, corpus_with: CorpusWith, labels: dict[str, object], problem: str
) -> None:
    recipe = toy_recipe(data__sources__talks__location=str(corpus_with(labelled(**labels))))
    assert problem in refused(warmline("run", recipe))


def test_an_unknown_risk_is_named_also_where_two_turns_of_a_person_are_merged(
    here: Path, toy_recipe: ToyRecipe, corpus_with: CorpusWith
) -> None:
    said = [
        {"role": "user", "content": f"I said {number}.", "risk": risk} for number, risk in enumerate(("none", "hihg"))
    ]
    row = json.dumps({"id": "twice", "messages": [*said, {"role": "assistant", "content": "I hear you."}]})
    recipe = toy_recipe(data__sources__talks__location=str(corpus_with(row)))
    assert "risk 'hihg' is not a known label (nearest: 'high')" in refused(warmline("run", recipe))
