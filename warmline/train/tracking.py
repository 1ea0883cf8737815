"""Live curves of a run in TensorBoard or Weights & Biases, beside metrics.jsonl. Numbers only, never a text."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from warmline.config.recipe import Recipe
from warmline.train.stage import TrainError

Track = Callable[[Mapping[str, Any]], None]  # takes a row of metrics.jsonl


def untracked(_row: Mapping[str, Any]) -> None:
    """For runs that keep to metrics.jsonl."""


@contextmanager
def tracker(recipe: Recipe, folder: Path) -> Iterator[Track]:
    """What the loop hands each of its rows to; nothing unless `recipe.tracking` asks for it.

    Raises TrainError if the tracker is not installed.
    """
    with ExitStack() as opened:
        try:
            match recipe.tracking:
                case "none":
                    track = untracked
                case "tensorboard":
                    track = _tensorboard(folder, opened)
                case "wandb":
                    track = _wandb(recipe, folder, opened)
        except ImportError:
            raise TrainError(
                f"tracking: {recipe.tracking} is not installed: pip install 'warmline[tracking]', "
                "or set tracking to none"
            ) from None
        yield track


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name.

    >>> row = {"stage": "sft", "split": "train", "loss": 2.0, "lr": 0.1, "grad_norm": None}
    >>> list(scalars(row | {"terms": {"lm": {"value": 2.0, "count": 9}, "risk": {"value": None, "count": 0}}}))
    [('sft/train/loss', 2.0), ('sft/train/lr', 0.1), ('sft/train/lm', 2.0)]
    """
    values = {name: row[name] for name in ("loss", "lr", "grad_norm")}
    values |= {name: term["value"] for name, term in row["terms"].items()}
    for name, value in values.items():
        if value is not None:
            yield f"{row['stage']}/{row['split']}/{name}", value


def _tensorboard(folder: Path, opened: ExitStack) -> Track:
    from torch.utils.tensorboard import SummaryWriter

    writer: SummaryWriter | None = None

    def track(row: Mapping[str, Any]) -> None:
        nonlocal writer
        if writer is None:  # on resume, what an earlier start wrote from this step on no longer counts
            writer = SummaryWriter(str(folder / "tensorboard" / row["stage"]), purge_step=row["step"])
            opened.callback(writer.close)
        for name, value in scalars(row):
            writer.add_scalar(name, value, row["step"])
        writer.flush()

    return track


def _wandb(recipe: Recipe, folder: Path, opened: ExitStack) -> Track:
    import wandb

    quiet = wandb.Settings(console="off", disable_git=True, disable_code=True)  # a chat may follow in this process
    run = wandb.init(
        project="warmline",
        name=folder.name,
        id=folder.name,
        resume="allow",
        dir=str(folder),
        config=recipe.model_dump(mode="json"),
        settings=quiet,
    )
    opened.callback(run.finish)
    return lambda row: run.log(dict(scalars(row)), step=row["step"])
