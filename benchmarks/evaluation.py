"""How fast evaluation is: what the heads read, batched by length against one by one, on the tiny model's shape.

Weights are random (what a number costs does not hang on what it is), texts are GoEmotions' test split from
WARMLINE_DATA, or made-up words of like length without it.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch

from warmline.config.reading import load_recipe
from warmline.config.training import LoraSettings
from warmline.data.labels import EMOTIONS, RISKS, SITUATIONS, STRATEGIES, HeadSpec
from warmline.data.sources.goemotions import goemotions
from warmline.data.sources.reading import Rejections
from warmline.engine.engine import Message, Scores
from warmline.engine.local import LocalEngine
from warmline.model.support_model import SupportModel
from warmline.model.tiny import build_model, train_tokenizer

NUM_ROWS = 5427  # of GoEmotions' test split
GOAL = 60  # seconds of wall time for all of them, batched, on two cores
SPECS = {
    "emotion": HeadSpec("softmax", EMOTIONS),
    "situation": HeadSpec("softmax", SITUATIONS),
    "strategy": HeadSpec("softmax", STRATEGIES),
    "risk": HeadSpec("ordinal", RISKS),
}

Item = tuple[list[Message], str]


class Spent(NamedTuple):
    cpu: float  # seconds, over all threads
    wall: float  # seconds
    scores: list[Scores]


def texts(num: int) -> list[str]:
    """GoEmotions' test comments, or as many of made-up words: 1 to 30 of them, 12 on average, as there."""
    root = os.environ.get("WARMLINE_DATA")
    if root:
        rows = goemotions(str(Path(root) / "goemotions"), "test", Rejections())
        return [row.turns[0].text for row in rows][:num]
    random = Random(0)
    syllables = [first + second for first in "bdfgklmnprst" for second in "aeiou"]
    words = ["".join(random.choices(syllables, k=random.randint(1, 3))) for _ in range(4000)]
    return [" ".join(random.choices(words, k=min(30, 1 + int(random.expovariate(1 / 11))))) for _ in range(num)]


def engine_for(said: Sequence[str]) -> LocalEngine:
    """The tiny model with an adapter and four heads, untrained."""
    recipe = load_recipe("tiny")
    assert recipe.base is not None
    tokenizer = train_tokenizer(said, recipe.base.vocab_size)
    torch.manual_seed(recipe.seed)
    base = build_model(recipe.base, tokenizer, recipe.model.max_seq_len)
    base.requires_grad_(False)
    base.eval()
    model = SupportModel(base, "float32")
    model.add_stage("sft", LoraSettings(r=16, alpha=32, dropout=0.0), SPECS, "tiny")
    for parameter in model.stage_heads.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return LocalEngine(model, tokenizer, "sft")


def timed(score: Callable[[Sequence[Item]], list[Scores]], items: Sequence[Item]) -> Spent:
    cpu, wall = time.process_time(), time.monotonic()
    scores = score(items)
    return Spent(time.process_time() - cpu, time.monotonic() - wall, scores)


def furthest(one: Sequence[Scores], other: Sequence[Scores]) -> float:
    """The largest difference between two readings of the same item."""
    pairs = zip(one, other, strict=True)
    return max(
        abs(value - twin)
        for ours, theirs in pairs
        for reading, same in zip(ours.readings, theirs.readings, strict=True)
        for value, twin in zip(reading.values, same.values, strict=True)
    )


def main() -> None:
    """Print the rates of both ways, and whether they agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=NUM_ROWS, help="how many rows")
    parser.add_argument("--single", type=int, default=500, help="how many of them one by one, too")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch's")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    said = texts(arguments.rows)
    engine = engine_for(said)
    system = Message("system", str(load_recipe("tiny").model.system_prompt))
    items: list[Item] = [([system, Message("user", text)], "") for text in said]
    engine.score_batch(items[:64])  # what the first pass sets up is not counted
    many = timed(engine.score_batch, items)
    one = timed(lambda each: [engine.score(*item) for item in each], items[: arguments.single])
    print(
        f"{len(items):,} rows, {arguments.threads} threads, {'real' if os.environ.get('WARMLINE_DATA') else 'made-up'}"
    )
    print(
        "| way | rows | CPU seconds | wall seconds | rows per CPU second | rows per second |\n|:--|--:|--:|--:|--:|--:|"
    )
    for way, spent in {"batched by length": many, "one by one": one}.items():
        num = len(spent.scores)
        print(
            f"| {way} | {num:,} | {spent.cpu:.1f} | {spent.wall:.1f} | {num / spent.cpu:.0f} | {num / spent.wall:.0f} |"
        )
    print(f"largest difference of a reading: {furthest(many.scores[: len(one.scores)], one.scores):.1e}")
    if len(items) >= NUM_ROWS:
        print(f"under {GOAL} s of wall time: {'yes' if many.wall < GOAL else 'NO'}")


if __name__ == "__main__":
    main()
