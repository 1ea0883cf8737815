"""Runs that are killed, find the disk full, or come back to a damaged state go on to the uninterrupted result; so does
a run that reads every conversation once instead of once per turn."""

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from benchmarks import one_pass_equality
from benchmarks.endurance import Pace, Place, differences, one_life
from warmline.config.reading import load_recipe
from warmline.model.checkpoint import CheckpointError
from warmline.pipeline import open_run
from warmline.run_dir import RunDir, append_row, write_atomic, write_text
from warmline.train import loop, trainer_state

from .conftest import ToyRecipe
from .runs import train_here, weights_of
from .test_checkpoint import DAMAGES, alter, remove
from .test_cli import refused, warmline
from .test_run_dir import content, write_folder

STEPS = 12


@pytest.fixture(scope="module")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def recipe(toy_recipe: ToyRecipe, shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Several micro-batches a step, dropout, and saves and validations that do not coincide.

    What is encoded is kept for the whole file: a full disk is then met where it is meant to be.
    """
    monkeypatch.setenv("WARMLINE_HOME", str(shared_folder / "home"))
    return toy_recipe(
        sft__steps=STEPS,
        sft__validate_every=5,
        sft__save_every=4,
        sft__optim={"learning_rate": 0.01, "batch_size": 8, "micro_batch_tokens": 128},
        model__lora={"r": 4, "alpha": 8, "dropout": 0.1},
    )


@pytest.fixture
def reference(shared_folder: Path, recipe: Path) -> RunDir:
    """The uninterrupted run, made once for this file."""
    run = RunDir(shared_folder / "reference")
    return run if run.path.exists() else train_here(recipe, run.path)


@pytest.fixture
def stopped(shared_folder: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    """A run that was asked to stop in the middle and saved itself: `runs/toy` below the working folder.

    Its states are those of step 5, the best so far, and of step 6.
    """
    monkeypatch.chdir(tmp_path)
    kept = shared_folder / "stopped"
    if not kept.exists():

        def append_and_ask(file: Path, row: Mapping[str, object]) -> None:
            append_row(file, row)
            if file.name == "timing.jsonl" and row["step"] == 5:
                os.kill(os.getpid(), signal.SIGTERM)  # as a cluster would; heard at the end of the next step

        with monkeypatch.context() as patch:
            patch.setattr(loop, "append_row", append_and_ask)
            message = refused(warmline("train", recipe), code=1)
        assert message == "stopped after step 6 of 12; the same command goes on from there"
        shutil.copytree("runs", kept)
    shutil.copytree(kept, "runs", dirs_exist_ok=True)
    return RunDir(Path("runs") / "toy")


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """A disk on which no file can grow beyond this; the operating system refuses the write itself."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def assert_goes_on(recipe: Path, run: RunDir, reference: RunDir) -> None:
    """The same command ends with the uninterrupted result, and nothing is left of what went wrong."""
    result = warmline("train", recipe)
    assert result.exit_code == 0, result.output
    assert run.metrics.read_bytes() == reference.metrics.read_bytes()
    assert weights_of(run).keys() == weights_of(reference).keys()
    for name, weight in weights_of(reference).items():
        assert torch.equal(weights_of(run)[name], weight), name
    stage = snapshot(run.stage("sft"))
    assert stage.keys() == snapshot(reference.stage("sft")).keys()
    assert stage["stage.json"] == snapshot(reference.stage("sft"))["stage.json"]
    assert not [path for path in run.path.rglob(".*") if path.name != ".lock"]


# ---- killed ----


def test_a_run_that_is_killed_in_a_save_and_at_its_end_equals_the_one_that_was_not(
    recipe: Path, reference: RunDir, tmp_path: Path
) -> None:
    """The short form of `python -m benchmarks.endurance`; kills inside a step are in test_train.py."""
    place = Place(tmp_path / "place", str(recipe), ())
    kills = []
    for aim in ("draft", "stage written"):
        kills.append(one_life(place, aim, random.Random(1), Pace(to_first_step=5, step=0.1), gap=2))
        if kills[-1] is None:  # a busy machine looked away, and the run came to its end
            break
    assert kills[0] is not None
    train_here(recipe, place.run)
    assert differences(reference.path, place.run) == [], kills


def test_every_difference_between_two_runs_is_found(reference: RunDir, tmp_path: Path) -> None:
    """The comparison that the kills rest on sees one bit of a weight, a torn line, and a file too many."""
    one, other = tmp_path / "one", tmp_path / "other"
    for folder in (one, other):
        shutil.copytree(reference.path, folder)
    assert differences(one, other) == []
    weights = other / "stages" / "sft" / "heads.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (other / "stages" / "sft" / ".adapter.draft").write_text("left behind")
    assert differences(one, other) == [
        "stages/sft/.adapter.draft is only in other",
        "stages/sft/heads.safetensors differs",
    ]
    with (other / "timing.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 1')
    with pytest.raises(ValueError, match=r"timing\.jsonl ends on a torn line"):
        differences(one, other)


# ---- a full disk ----


def size_of(run: RunDir, name: str) -> int:
    return max(file.stat().st_size for file in run.path.rglob(name))


FULL = "[Errno 27] File too large"


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("weights.safetensors", "{state} cannot be written: Error while serializing: I/O error: File too large"),
        ("optimizer.pt", f"{FULL}: '{{state}}'"),
    ],
)
def test_a_disk_that_is_full_in_a_save_keeps_the_state_before(
    file: str, told: str, recipe: Path, stopped: RunDir, reference: RunDir
) -> None:
    trainer = stopped.stage("sft") / "trainer"
    before = snapshot(trainer)
    with largest_file(size_of(stopped, file) - 1):
        message = refused(warmline("train", recipe), code=1)
    assert message.removesuffix(" (os error 27)") == told.format(state=trainer / "step-000008")
    assert snapshot(trainer) == before
    assert_goes_on(recipe, stopped, reference)


def test_a_disk_that_is_full_for_a_row_keeps_what_was_saved(recipe: Path, stopped: RunDir, reference: RunDir) -> None:
    before = snapshot(stopped.stage("sft") / "trainer")
    room = max(size_of(stopped, name) for name in ("metrics.jsonl", "manifest.json", "recipe.yaml"))
    with largest_file(room + 10):
        message = refused(warmline("train", recipe), code=1)
    assert message == f"{FULL}: 'runs/toy/metrics.jsonl'"
    assert snapshot(stopped.stage("sft") / "trainer") == before
    assert not stopped.metrics.read_bytes().endswith(b"\n"), "the row is torn"
    assert_goes_on(recipe, stopped, reference)


def test_a_disk_that_is_full_when_the_stage_is_written_leaves_no_stage_that_looks_whole(
    recipe: Path, reference: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir(Path("runs") / "toy")
    shutil.copytree(reference.path, run.path)
    for name in ("stage.json", "heads.safetensors"):
        (run.stage("sft") / name).unlink()
    with largest_file(size_of(reference, "adapter_model.safetensors") - 1):
        message = refused(warmline("train", recipe), code=1)
    assert message.startswith("runs/toy/stages/sft/adapter cannot be written: ")
    assert "File too large" in message
    assert "\n" not in message
    assert not (run.stage("sft") / "stage.json").exists()
    assert_goes_on(recipe, run, reference)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full: not Linux")
def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    """/dev/full refuses every byte, and a file of /proc to be synced: both at the operating system's own hands."""
    write_atomic(tmp_path / "adapter", write_folder("old"))
    write_text(tmp_path / "text", "old")
    (tmp_path / "rows.jsonl").symlink_to("/dev/full")

    def fill(draft: Path) -> None:
        draft.symlink_to("/dev/full")
        draft.write_text("new")

    def fill_in_folder(draft: Path) -> None:
        draft.mkdir()
        fill(draft / "weights")

    attempts: list[tuple[str, Callable[[], None]]] = [
        ("text", lambda: write_atomic(tmp_path / "text", fill)),
        ("text", lambda: write_atomic(tmp_path / "text", lambda draft: draft.symlink_to("/proc/version"))),
        ("adapter", lambda: write_atomic(tmp_path / "adapter", fill_in_folder)),
        ("rows.jsonl", lambda: append_row(tmp_path / "rows.jsonl", {"step": 1})),
    ]
    for name, attempt in attempts:
        with pytest.raises(OSError, match=r"No space left on device|Invalid argument") as caught:
            attempt()
        assert caught.value.filename == str(tmp_path / name)
    (tmp_path / "rows.jsonl").unlink()
    assert content(tmp_path) == {"adapter/config": "old", "adapter/inner/weights": "old", "text": "old"}


# ---- damaged files ----


def test_every_damaged_file_of_a_real_stage_and_of_its_states_is_refused_and_named(
    reference: RunDir, tmp_path: Path
) -> None:
    """The files are found by listing what training wrote, so that none can be forgotten."""
    run = RunDir(tmp_path / "run")
    shutil.copytree(reference.path, run.path)
    model = open_run(run).model
    trainer = run.stage("sft") / "trainer"

    def read(file: Path) -> None:
        if trainer in file.parents:
            trainer_state.load_weights(trainer, int(file.parent.name.removeprefix("step-")), model)
        else:
            open_run(run)

    files = [file for file in run.stage("sft").rglob("*") if file.is_file()]
    assert len(files) == 4 + 4 * len([*trainer.iterdir()])
    for file in files:
        whole = file.read_bytes()
        for damage in DAMAGES:
            if (file.name, damage) == ("stage.json", remove):
                continue  # the stage is not finished then, and is not loaded
            damage(file)
            with pytest.raises(CheckpointError) as caught:
                read(file)
            assert file.name in str(caught.value)
            assert str(file.parent) in str(caught.value)
            file.write_bytes(whole)
            read(file)


def test_a_damaged_newest_state_says_what_to_delete_and_then_the_run_goes_on(
    recipe: Path, stopped: RunDir, reference: RunDir
) -> None:
    before = stopped.metrics.read_bytes()
    newest = stopped.stage("sft") / "trainer" / "step-000006"
    alter(newest / "optimizer.pt")
    assert refused(warmline("train", recipe)) == (
        f"{newest}/optimizer.pt is truncated or altered: its checksum is not the one that checksums.json recorded; "
        f"delete {newest} to go on from step 5"
    )
    assert stopped.metrics.read_bytes() == before
    shutil.rmtree(newest)
    assert_goes_on(recipe, stopped, reference)


def test_a_damaged_best_state_is_refused_before_the_rest_is_trained_in_vain(
    recipe: Path, stopped: RunDir, reference: RunDir
) -> None:
    trainer = stopped.stage("sft") / "trainer"
    alter(trainer / "step-000005" / "weights.safetensors")
    message = refused(warmline("train", recipe))
    assert message.startswith(f"{trainer}/step-000005/weights.safetensors is truncated or altered")
    assert message.endswith(f"; delete {trainer} to train this stage from its start")
    shutil.rmtree(trainer)
    assert_goes_on(recipe, stopped, reference)


# ---- one pass and per turn ----


def test_training_in_one_pass_and_per_turn_follow_the_same_curve(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    """The short form of `python -m benchmarks.one_pass_equality`."""
    ground = one_pass_equality.prepare(load_recipe(str(toy_recipe(sft__validate_every=2))), None)
    one, other = (
        one_pass_equality.curve(ground, design, seed=0, folder=tmp_path / name)
        for name, design in one_pass_equality.DESIGNS.items()
    )
    assert (len(one.train), len(one.held_out)) == (6, 3)
    assert one.counts == other.counts
    assert one.tokens < other.tokens / 1.5
    assert one.train == pytest.approx(other.train, abs=1e-4)
    assert one.held_out == pytest.approx(other.held_out, abs=1e-4)
    assert one.held_out[-1] < one.held_out[0] - 0.01
