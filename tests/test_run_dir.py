"""A run's folder: atomic writes, claims, the lock, and rows that survive an interruption."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import yaml

import warmline
from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.run_dir import (
    PACKAGES,
    RunDir,
    RunError,
    append_row,
    cut_back,
    home,
    provenance,
    recover,
    sha256,
    write_atomic,
    write_json,
    write_text,
)

from .conftest import ToyRecipe

HOLD = """
import sys
from pathlib import Path
from warmline.run_dir import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""
CUT_BETWEEN_RENAMES = """
import os, sys
from pathlib import Path
from warmline.run_dir import write_atomic


def cut(frame, event, function):
    # The rename of the draft is the second one: a process that is killed there has done the first.
    if event == "c_call" and function is os.rename:
        if renames:
            os._exit(9)
        renames.append(function)

def write(draft):
    draft.mkdir()
    (draft / "weights").write_text("new")
    sys.setprofile(cut)

renames = []
write_atomic(Path(sys.argv[1]), write)
"""


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder, by its path inside it."""
    return {str(file.relative_to(folder)): file.read_text() for file in folder.rglob("*") if file.is_file()}


def write_folder(text: str, *, then: BaseException | None = None) -> Callable[[Path], None]:
    def write(draft: Path) -> None:
        (draft / "inner").mkdir(parents=True)
        (draft / "inner" / "weights").write_text(text)
        if then is not None:
            raise then
        (draft / "config").write_text(text)

    return write


def run_with(recipe: Recipe, path: Path, **manifest: object) -> RunDir:
    run = RunDir(path)
    run.claim(recipe)
    run.add_to_manifest(**manifest)
    return run


# ---- write_atomic ----


def test_a_file_is_created_with_its_parents_and_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b" / "text"
    write_text(file, "old")
    write_text(file, "new\u2028ü")
    assert content(tmp_path) == {"a/b/text": "new\u2028ü"}


def test_a_folder_is_created_and_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "stages" / "adapter"
    write_atomic(folder, write_folder("old"))
    (folder / "left over").write_text("from before")
    write_atomic(folder, write_folder("new"))
    assert content(tmp_path) == {"stages/adapter/config": "new", "stages/adapter/inner/weights": "new"}


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    file = tmp_path / "text"
    file.write_text("old")

    def write(draft: Path) -> None:
        draft.write_text("half of the n")
        raise failure

    with pytest.raises(type(failure)):
        write_atomic(file, write)
    assert content(tmp_path) == {"text": "old"}


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_write_that_fails_keeps_the_old_folder_and_leaves_nothing(tmp_path: Path, failure: BaseException) -> None:
    folder = tmp_path / "adapter"
    write_atomic(folder, write_folder("old"))
    with pytest.raises(type(failure)):
        write_atomic(folder, write_folder("new", then=failure))
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]
    assert content(folder) == {"config": "old", "inner/weights": "old"}


def test_content_is_on_disk_before_its_name_and_the_name_before_the_old_content_goes(tmp_path: Path) -> None:
    calls: list[str] = []

    def watch(frame: FrameType, event: str, function: object) -> None:
        if event == "c_call" and function in {os.fsync, os.rename, os.replace}:
            calls.append(getattr(function, "__name__", ""))

    def watched(path: Path, write: Callable[[Path], object]) -> list[str]:
        calls.clear()
        sys.setprofile(watch)
        try:
            write_atomic(path, write)
        finally:
            sys.setprofile(None)
        return calls.copy()

    assert watched(tmp_path / "text", lambda draft: draft.write_text("new")) == ["fsync", "replace", "fsync"]
    folder = tmp_path / "adapter"
    of_content = ["fsync"] * 4  # two files and two folders
    assert watched(folder, write_folder("old")) == [*of_content, "replace", "fsync"]
    assert watched(folder, write_folder("new")) == [*of_content, "rename", "rename", "fsync"]


def test_a_failed_first_write_leaves_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "scores.json", {"not": object()})
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "adapter", write_folder("new", then=OSError(errno.ENOSPC, "No space left on device")))
    assert content(tmp_path) == {}


def test_the_rest_of_an_earlier_cut_write_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".adapter.draft").mkdir()
    (tmp_path / ".adapter.draft" / "half").write_text("cut")
    (tmp_path / ".text.draft").write_text("cut")
    write_atomic(tmp_path / "adapter", write_folder("new"))
    write_text(tmp_path / "text", "new")
    assert content(tmp_path) == {"adapter/config": "new", "adapter/inner/weights": "new", "text": "new"}


def test_a_folder_whose_replacement_was_killed_between_its_two_renames_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_atomic(folder, write_folder("old"))
    killed = subprocess.run([sys.executable, "-c", CUT_BETWEEN_RENAMES, str(folder)], check=False)
    assert killed.returncode == 9
    assert not folder.exists()
    recover(folder)
    assert content(folder) == {"config": "old", "inner/weights": "old"}


def test_after_such_a_cut_a_write_that_fails_still_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_atomic(folder, write_folder("old"))
    folder.rename(tmp_path / ".adapter.old")
    with pytest.raises(OSError, match="No space"):
        write_atomic(folder, write_folder("new", then=OSError(errno.ENOSPC, "No space left on device")))
    assert content(folder) == {"config": "old", "inner/weights": "old"}


def test_recover_leaves_a_whole_folder_alone(tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    write_atomic(folder, write_folder("new"))
    write_atomic(tmp_path / ".adapter.old", write_folder("old"))
    recover(folder)
    recover(tmp_path / "never written")
    assert content(folder)["config"] == "new"
    assert not (tmp_path / "never written").exists()


def test_a_hash_is_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---- claim ----


def test_a_claimed_run_gives_its_recipe_back(tmp_path: Path) -> None:
    recipe = load_recipe("qwen2.5-7b", ["model.system_prompt=Höre zu."])
    run = RunDir(tmp_path / "run")
    run.claim(recipe)
    assert run.recipe() == recipe
    assert "Höre zu." in (run.path / "recipe.yaml").read_text(encoding="utf-8")


def test_going_on_with_the_same_settings_is_fine_and_writes_nothing(tmp_path: Path, toy_recipe: ToyRecipe) -> None:
    recipe = load_recipe(str(toy_recipe()))
    run = run_with(recipe, tmp_path / "run", seed=7)
    before = (run.path / "recipe.yaml").stat()
    run.claim(load_recipe(str(toy_recipe())))
    after = (run.path / "recipe.yaml").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_changed_settings_on_a_run_are_refused_with_every_difference(tmp_path: Path, toy_recipe: ToyRecipe) -> None:
    file = str(toy_recipe())
    run = run_with(load_recipe(file), tmp_path / "run", seed=7)
    changes = ["sft.optim.batch_size=4", "model.lora.targets=[q_proj]", "data.sources.bundled={}"]
    with pytest.raises(RunError) as refused:
        run.claim(load_recipe(file, changes))
    first, *differences, last = str(refused.value).splitlines()
    assert first == f"{run.path} was started with other settings:"
    assert [line.strip().split(": ")[0] for line in differences] == [
        "model.lora.targets",
        "data.sources.bundled",
        "sft.optim.batch_size",
    ]
    assert differences[0] == "  model.lora.targets: ['all-linear'] -> ['q_proj']"
    assert differences[2] == "  sft.optim.batch_size: 8 -> 4"
    assert "--name" in last
    assert run.recipe() == load_recipe(file)


def test_a_setting_that_was_wrong_before_anything_was_made_can_be_corrected(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.claim(load_recipe("tiny", ["data.sources.bundled.location=/no/such/folder"]))
    run.claim(load_recipe("tiny"))  # there is no manifest yet: the data was never read
    assert run.recipe() == load_recipe("tiny")


def test_a_folder_without_a_recipe_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"nothing is not a run folder: it has no recipe\.yaml"):
        RunDir(tmp_path / "nothing").recipe()


@pytest.mark.parametrize("text", [b"name: [cut", b"name: x\nforgotten_knob: 7\n", b"", b"name: \xff"])
def test_a_recipe_file_that_this_version_cannot_read_is_a_message(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "recipe.yaml").write_bytes(text)
    with pytest.raises(RunError) as refused:
        RunDir(tmp_path).recipe()
    assert str(refused.value).startswith(f"{tmp_path / 'recipe.yaml'} was written by another version")
    assert "\n" not in str(refused.value)


# ---- lock ----


def test_a_run_that_another_process_holds_is_refused_until_it_ends(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(RunError) as refused, run.lock():
            pytest.fail("two processes hold one run")
        assert str(refused.value) == f"{run.path} is in use by another process; wait for it, or use --name"
        other.stdin.write("\n")
        other.stdin.flush()
        assert other.wait() == 0
    with run.lock():
        pass


def test_a_process_that_is_killed_leaves_no_lock_behind(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    command = [sys.executable, "-c", HOLD, str(run.path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        other.kill()
        other.wait()
    held = False
    with run.lock():
        held = True
    assert held


def test_an_error_under_the_lock_passes_through_and_frees_it(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(ZeroDivisionError), run.lock():
        _ = 1 // 0
    with run.lock():
        assert run.path.is_dir()


# ---- rows ----


def test_rows_that_are_no_longer_wanted_and_a_cut_last_line_go(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    for step in range(1, 6):
        append_row(file, {"step": step, "note": "a\u2028b\u0085c ü"})  # line breaks to str.splitlines
    kept = file.read_text(encoding="utf-8").split("\n")[:3]
    with file.open("a", encoding="utf-8") as handle:
        handle.write('{"step": 3, "note": "a\u2028')
    cut_back(file, lambda row: row["step"] <= 3)
    assert file.read_text(encoding="utf-8") == "".join(f"{line}\n" for line in kept)


def test_a_last_line_cut_inside_a_character_goes_too(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    append_row(file, {"step": 1})
    with file.open("ab") as handle:
        handle.write('{"note": "ü'.encode()[:-1])
    cut_back(file, lambda row: True)
    assert file.read_text(encoding="utf-8") == '{"step": 1}\n'


def test_a_last_row_that_only_lacks_its_line_end_is_kept_and_can_be_appended_to(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": 2}')
    cut_back(file, lambda row: True)
    append_row(file, {"step": 3})
    assert file.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_cutting_back_what_is_not_there_makes_no_file(tmp_path: Path) -> None:
    cut_back(tmp_path / "none.jsonl", lambda row: True)
    assert not (tmp_path / "none.jsonl").exists()


def test_appended_rows_are_read_back_as_they_were(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": None, "note": "two\nlines"}]
    for row in rows:
        append_row(tmp_path / "deep" / "metrics.jsonl", row)
    assert [json.loads(line) for line in (tmp_path / "deep" / "metrics.jsonl").read_text().splitlines()] == rows


# ---- manifest, places, provenance ----


def test_parts_of_the_manifest_join_and_replace_by_top_level_key(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    assert run.manifest() == {}
    run.add_to_manifest(seed=7, sft={"steps": 3, "best_step": 2})
    run.add_to_manifest(sft={"steps": 4}, device="cpu")
    assert run.manifest() == {"seed": 7, "sft": {"steps": 4}, "device": "cpu"}
    assert [file.name for file in run.path.iterdir()] == ["manifest.json"]


@pytest.mark.parametrize("damaged", [b"", b'{"seed": 7', b"[]", b'{"seed": "\xff"}'])
def test_a_manifest_that_was_altered_is_an_error_that_names_it(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(damaged)
    with pytest.raises(RunError, match=r"manifest\.json is truncated or altered"):
        RunDir(tmp_path).add_to_manifest(seed=8)
    assert (tmp_path / "manifest.json").read_bytes() == damaged


def test_the_recipe_file_of_a_run_is_a_recipe_file(tmp_path: Path, toy_recipe: ToyRecipe) -> None:
    recipe = load_recipe(str(toy_recipe()))
    run = run_with(recipe, tmp_path / "run")
    assert load_recipe(str(run.path / "recipe.yaml")) == recipe
    assert yaml.safe_load((run.path / "recipe.yaml").read_text())["sft"]["epochs"] is None


def test_caches_live_where_warmline_home_says_else_in_the_user_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARMLINE_HOME", str(tmp_path / "here"))
    assert home() == tmp_path / "here"
    for empty in ("", None):
        monkeypatch.delenv("WARMLINE_HOME", raising=False)
        if empty is not None:
            monkeypatch.setenv("WARMLINE_HOME", empty)
        assert home().name == "warmline"
        assert home().is_absolute()


def test_provenance_names_the_version_of_every_package() -> None:
    versions = provenance()["versions"]
    assert isinstance(versions, dict)
    assert set(versions) == set(PACKAGES)
    assert versions["warmline"] == warmline.__version__
    assert all(versions.values())
