"""Live curves: what TensorBoard and Weights & Biases get is what metrics.jsonl holds, and no text."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from warmline.config.reading import load_recipe
from warmline.train.stage import TrainError
from warmline.train.tracking import scalars, tracker, untracked

from .conftest import WORDS, ToyRecipe
from .runs import rows_of, train_here


def logged(folder: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), purge_orphaned_data=True)
    events.Reload()
    return {
        name: {event.step: event.value for event in events.Scalars(name)} for name in events.Tags().get("scalars", [])
    }


def test_tensorboard_shows_every_number_of_metrics_jsonl(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    run = train_here(toy_recipe(tracking="tensorboard"), tmp_path / "run")
    curves = logged(run.path / "tensorboard" / "sft")
    rows = rows_of(run)
    expected: dict[str, dict[int, float]] = {}
    for row in rows:
        for name, value in scalars(row):
            expected.setdefault(name, {})[row["step"]] = value
    assert {"sft/train/loss", "sft/train/lm", "sft/train/emotion", "sft/validation/loss"} <= expected.keys()
    assert curves.keys() == expected.keys()
    for name, points in expected.items():
        assert curves[name] == pytest.approx(points, rel=1e-6)


def test_a_resumed_run_takes_back_what_it_does_again(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    recipe = load_recipe(str(toy_recipe(tracking="tensorboard")))
    row = {"stage": "sft", "split": "train", "lr": 0.1, "grad_norm": None, "terms": {}}
    with tracker(recipe, tmp_path) as track:
        for step in range(1, 6):
            track(row | {"step": step, "loss": float(step)})
    with tracker(recipe, tmp_path) as track:
        track(row | {"step": 4, "loss": 40.0})
    assert logged(tmp_path / "tensorboard" / "sft")["sft/train/loss"] == {1: 1.0, 2: 2.0, 3: 3.0, 4: 40.0}


def test_wandb_gets_the_rows_and_no_text(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = train_here(toy_recipe(tracking="wandb"), tmp_path / "run")
    print("These words are none of a tracker's business.")
    (file,) = (run.path / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()  # protocol buffers: names and JSON values as they are
    for row in rows_of(run):
        for name, value in scalars(row):
            assert name.encode() in content
            assert json.dumps(value)[:12].encode() in content
    assert b"learning_rate" in content
    written = b"".join(file.read_bytes() for file in (run.path / "wandb").rglob("*") if file.is_file())
    assert b"none of a tracker" not in written
    assert not any(f"{word} {after}".encode() in written for word, after in pairwise(WORDS))


@pytest.mark.parametrize(("kind", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    recipe = load_recipe(str(toy_recipe(tracking=kind)))
    message = rf"tracking: {kind} is not installed: pip install 'warmline\[tracking\]'"
    with pytest.raises(TrainError, match=message), tracker(recipe, tmp_path):
        pass


def test_by_default_nothing_is_tracked(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    with tracker(load_recipe(str(toy_recipe())), tmp_path) as track:
        assert track is untracked
    assert not list(tmp_path.glob("tensorboard"))
