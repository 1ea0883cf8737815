"""Trains twice from the same start, with one example per conversation and with one per turn, and compares the curves.

    WARMLINE_DATA=data python -m benchmarks.one_pass_equality --source esconv --steps 60 --seeds 0 1 2
    python -m benchmarks.one_pass_equality --source bundled

An optimizer step takes the same conversations in both designs, and so has the same supervised turns; float32, no
dropout, a small base that is pre-trained here first. Both are judged on the same held-out conversations.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.data.batches import Batch, micro_batches
from warmline.data.conversation import Conversation
from warmline.data.labels import HeadSpec
from warmline.data.mixture import step_items
from warmline.data.prepare import load_corpus
from warmline.data.tokenize import Encoder, Example
from warmline.pipeline import accelerator, base_of, encoder_for, load
from warmline.progress import progress
from warmline.train.loop import train
from warmline.train.sft import sft_stage
from warmline.train.stage import Files

if TYPE_CHECKING:
    from accelerate import Accelerator

SMALL = (
    "model.max_seq_len=1536",
    "model.lora.dropout=0",
    "base.vocab_size=2000",
    "base.hidden_size=64",
    "base.intermediate_size=128",
    "base.num_layers=2",
    "base.steps=100",
    "sft.epochs=null",
    "sft.optim.batch_size=8",
    "sft.optim.micro_batch_tokens=4096",
    "sft.optim.learning_rate=5.0e-3",  # the adapter is to go somewhere in a few steps
)
SOURCES = {
    "bundled": (),
    "esconv": ("data.sources={bundled: null, esconv: {max_validation_conversations: 60}}", "base.sources=[esconv]"),
}
Design = Callable[[Encoder, Conversation], list[Example]]
DESIGNS: dict[str, Design] = {"one pass": Encoder.examples, "per turn": Encoder.per_turn}


@dataclass(frozen=True)
class Ground:
    """What both designs share."""

    recipe: Recipe
    base: Path
    here: "Accelerator"
    specs: dict[str, HeadSpec]
    train: list[Conversation]  # that fit whole: longer ones are cut into other windows by each design
    held_out: list[Conversation]
    num_longer: int


class Curve(NamedTuple):
    """One training run."""

    train: list[float]  # the loss of each step
    held_out: list[float]  # language-model loss per token at each validation
    counts: list[dict[str, int]]  # by term, of each step
    tokens: int  # that were read, over all steps
    cpu_seconds: float


def prepare(recipe: Recipe, data_root: Path | None) -> Ground:
    here = accelerator()
    corpus = load_corpus(recipe, data_root)
    base = base_of(recipe, corpus, here)
    encoder = encoder_for(recipe, load(recipe.model, base, here.device).tokenizer)

    def fits(conversation: Conversation) -> bool:
        return len(encoder.examples(conversation)) == 1 and not encoder.counts["longer than max_seq_len: windows"]

    kept: dict[str, list[Conversation]] = {"train": [], "validation": []}
    num_longer = 0
    for split, conversations in kept.items():
        for conversation in (each for rows in corpus.conversations[split].values() for each in rows):  # type: ignore[index]
            encoder.counts.clear()
            if fits(conversation):
                conversations.append(conversation)
            num_longer += encoder.counts["longer than max_seq_len: windows"]
    return Ground(recipe, base, here, corpus.specs, kept["train"], kept["validation"], num_longer)


def curve(ground: Ground, design: Design, seed: int, folder: Path) -> Curve:
    """Train one design; `seed` is of the adapter, the heads and the order."""
    recipe = ground.recipe.model_copy(update={"seed": seed})
    loaded = load(recipe.model, ground.base, ground.here.device)
    encoder = encoder_for(recipe, loaded.tokenizer)
    torch.manual_seed(seed)
    loaded.model.add_stage("sft", recipe.model.lora, ground.specs, recipe.model.base)
    rows, held_out = (
        {"all": [example for conversation in conversations for example in encoder.examples(conversation)]}
        for conversations in (ground.train, ground.held_out)
    )
    pad_id = loaded.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    stage = sft_stage(recipe, loaded.model, rows, held_out, ground.here, pad_id)
    optim = recipe.sft.optim

    def batches(step: int, micro_batch_tokens: int) -> list[Batch]:
        items = step_items({"all": len(ground.train)}, 1.0, seed, optim.batch_size, step)
        examples = [example for item in items for example in design(encoder, ground.train[item.row])]
        return [stage.collate(group) for group in micro_batches(examples, micro_batch_tokens)]

    started = time.process_time()
    files = Files(folder / "trainer", folder / "metrics.jsonl", folder / "timing.jsonl")
    train(replace(stage, batches=batches), optim, ground.here, files)
    cpu_seconds = time.process_time() - started
    lines = [json.loads(line) for line in files.metrics.read_text(encoding="utf-8").splitlines()]
    steps = [row for row in lines if row["split"] == "train"]
    return Curve(
        train=[row["loss"] for row in steps],
        held_out=[row["terms"]["lm"]["value"] for row in lines if row["split"] == "validation"],
        counts=[{name: term["count"] for name, term in row["terms"].items()} for row in steps],
        tokens=sum(row["tokens"] for row in steps),
        cpu_seconds=cpu_seconds,
    )


def largest_gap(one: Sequence[float], other: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=SOURCES, default="bundled")
    parser.add_argument("--steps", type=int, default=60, help="optimizer steps of 8 conversations")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", dest="overrides", metavar="A.B=C", action="append", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds would count threads that wait
    budget = (f"sft.steps={options.steps}", f"sft.save_every={options.steps}", "sft.validate_every=10")
    recipe = load_recipe("tiny", [*SMALL, *SOURCES[options.source], *budget, *options.overrides])
    root = os.environ.get("WARMLINE_DATA")
    ground = prepare(recipe, Path(root) if root else None)
    turns = sum(turn.role == "assistant" for conversation in ground.train for turn in conversation.turns)
    print(
        f"{options.source}: {len(ground.train)} conversations with {turns} replies to train on, "
        f"{len(ground.held_out)} held out; {ground.num_longer} longer than {recipe.model.max_seq_len} tokens left out"
    )
    print(
        "seed  held-out loss, one pass  per turn  difference  largest on the way  largest of a training step  same turns"
    )
    curves: list[dict[str, Curve]] = []
    with progress("runs", len(options.seeds) * len(DESIGNS)) as advance, tempfile.TemporaryDirectory() as folder:
        for seed in options.seeds:
            found: dict[str, Curve] = {}
            for name, design in DESIGNS.items():
                found[name] = curve(ground, design, seed, Path(folder) / f"{name} {seed}")
                advance(1, f"seed {seed}, {name}")
            one, other = found["one pass"], found["per turn"]
            gaps = largest_gap(one.held_out, other.held_out), largest_gap(one.train, other.train)
            last = (
                f"{one.held_out[-1]:23.6f}  {other.held_out[-1]:8.6f}  {one.held_out[-1] - other.held_out[-1]:+10.1e}"
            )
            same = "yes" if one.counts == other.counts else "NO"
            print(f"{seed:4}  {last}  {gaps[0]:18.1e}  {gaps[1]:26.1e}  {same:>10}", flush=True)
            curves.append(found)
    for name in DESIGNS:
        seconds = [found[name].cpu_seconds for found in curves]
        tokens = sum(found[name].tokens for found in curves)
        print(f"{name}: {tokens:,} tokens read, CPU seconds {', '.join(f'{each:.0f}' for each in seconds)}")
    before = [found["one pass"].held_out[0] - found["one pass"].held_out[-1] for found in curves]
    print(f"held-out loss fell from step 10 to the end by {', '.join(f'{each:.3f}' for each in before)}")
    return 0 if all(found["one pass"].counts == found["per turn"].counts for found in curves) else 1


if __name__ == "__main__":
    sys.exit(main())
