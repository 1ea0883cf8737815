"""What a stage of training hands to the loop."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from warmline.config.training import OptimSettings
from warmline.data.batches import Batch, micro_batches
from warmline.data.mixture import step_items
from warmline.data.tokenize import Example
from warmline.objectives import Term

if TYPE_CHECKING:
    from accelerate import Accelerator


class TrainError(ValueError):
    """Training cannot go on; nothing of the last good step is lost."""


@dataclass(frozen=True)
class Stage:
    """A model, its data and its terms."""

    name: str
    model: nn.Module
    parameters: Sequence[dict[str, Any]]  # optimizer groups
    batches: Callable[[int, int], Sequence[Batch]]  # of a step and a token budget: this process's, at least one
    collate: Callable[[Sequence[Example]], Batch]
    validation: Sequence[Batch]  # this process's share; may be empty on some or all processes
    terms: Callable[[nn.Module, Batch], dict[str, Term]]
    weights: Mapping[str, float]  # by term
    num_steps: int
    validate_every: int
    save_every: int
    seed: int
    dtype: str


@dataclass(frozen=True)
class Files:
    trainer: Path  # folder of resumable states
    metrics: Path
    timing: Path


Rows = Mapping[str, Sequence[Example]]  # by source
Collate = Callable[[Sequence[Example]], Batch]


def sampled_batches(
    rows: Rows, collate: Collate, optim: OptimSettings, accelerator: "Accelerator", *, alpha: float, seed: int
) -> Callable[[int, int], list[Batch]]:
    """This process's micro-batches of any step, drawn from the mixture of sources.

    Raises TrainError if there is nothing to draw from, or less to a step than one conversation a process.
    """
    sizes = {source: len(examples) for source, examples in rows.items()}
    rank, world = accelerator.process_index, accelerator.num_processes
    if not sum(sizes.values()):
        raise TrainError("no training example is left: see rejected.jsonl and the counts in manifest.json")
    if optim.batch_size < world:
        raise TrainError(f"optim.batch_size {optim.batch_size} is less than the {world} processes")

    def batches(step: int, budget: int) -> list[Batch]:
        items = step_items(sizes, alpha, seed, optim.batch_size, step)
        mine = [rows[item.source][item.row] for item in items[rank::world]]
        return [collate(group) for group in micro_batches(mine, budget)]

    return batches


def held_out_batches(rows: Rows, collate: Collate, optim: OptimSettings, accelerator: "Accelerator") -> list[Batch]:
    """This process's share of a validation split."""
    examples = [example for of_source in rows.values() for example in of_source]
    mine = examples[accelerator.process_index :: accelerator.num_processes]
    return [collate(group) for group in micro_batches(mine, optim.micro_batch_tokens)]
