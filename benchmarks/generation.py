"""How much faster replies are written together than one by one: `python -m benchmarks.generation`.

A base of the tiny recipe's shape with random weights and its own tokenizer, prompts of mixed lengths, greedy, a fixed
number of new tokens each: nothing ends early, so both sides write the same number. Rounds alternate between the two,
and CPU seconds and wall seconds of each are printed; so is how many replies are equal, token for token.
"""

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from warmline.config.reading import load_recipe
from warmline.config.training import ModelSettings
from warmline.engine.engine import Chunk, GenerateRequest, Message, Sampling
from warmline.engine.local import LocalEngine
from warmline.evaluate.prompt_sets import qualitative
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel
from warmline.model.tiny import build_model, train_tokenizer


class Round(NamedTuple):
    cpu: float  # seconds, over all threads
    wall: float  # seconds
    replies: list[str]


def engine_of_tiny_shape(folder: Path) -> LocalEngine:
    """The tiny recipe's base before any training."""
    settings = load_recipe("tiny").base
    assert settings is not None
    texts = [turn.content for row in qualitative() for turn in row.turns]
    tokenizer = train_tokenizer(texts * 3, settings.vocab_size)
    torch.manual_seed(0)
    build_model(settings, tokenizer, 640).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    model = SupportModel(load_base(folder, ModelSettings(base=str(folder)), torch.device("cpu")), "float32")
    engine = LocalEngine(model, load_tokenizer(folder))
    engine._stop_ids = frozenset()
    return engine


def requests_of(count: int, new_tokens: int, seed: int) -> list[GenerateRequest]:
    """Prompts of the qualitative set in a seeded order, as often as it takes."""
    rows, rng = qualitative(), random.Random(seed)
    chosen = [rows[number % len(rows)] for number in range(count)]
    rng.shuffle(chosen)
    sampling = Sampling(temperature=0, max_new_tokens=new_tokens)
    return [GenerateRequest(tuple(Message(turn.role, turn.content) for turn in row.turns), sampling) for row in chosen]


def one_by_one(engine: LocalEngine, requests: Sequence[GenerateRequest]) -> list[str]:
    return ["".join(chunk.text for chunk in engine.generate(request)) for request in requests]


def together(engine: LocalEngine, requests: Sequence[GenerateRequest]) -> list[str]:
    written = dict(engine.generate_batch(requests))
    return [each.text for index in range(len(requests)) if isinstance(each := written[index], Chunk)]


def timed(write: Callable[[], list[str]]) -> Round:
    cpu, wall = time.process_time(), time.perf_counter()
    replies = write()
    return Round(time.process_time() - cpu, time.perf_counter() - wall, replies)


def main() -> int:
    """Measure and print; end with 1 where batches are less than three times as fast."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of_tiny_shape(Path(folder))
        requests = requests_of(options.prompts, options.new_tokens, options.seed)
        together(engine, requests[:2])  # warm-up
        rounds: dict[str, list[Round]] = {"one by one": [], "together": []}
        for _ in range(options.rounds):
            rounds["one by one"].append(timed(lambda: one_by_one(engine, requests)))
            rounds["together"].append(timed(lambda: together(engine, requests)))
    num_tokens = options.prompts * options.new_tokens
    for name, found in rounds.items():
        cpu, wall = median(each.cpu for each in found), median(each.wall for each in found)
        print(f"{name}: {num_tokens / cpu:,.0f} tokens per CPU second, {num_tokens / wall:,.0f} per second")
    pairs = [*zip(rounds["one by one"], rounds["together"], strict=True)]
    gains = [[alone.cpu / both.cpu for alone, both in pairs], [alone.wall / both.wall for alone, both in pairs]]
    for unit, ratios in zip(("CPU time", "wall time"), gains, strict=True):
        print(f"faster by {median(ratios):.1f} in {unit} (least {min(ratios):.1f}, most {max(ratios):.1f})")
    alone, both = pairs[0][0].replies, pairs[0][1].replies
    print(f"equal replies: {sum(a == b for a, b in zip(alone, both, strict=True))} of {len(alone)}")
    return int(median(gains[0]) < 3)


if __name__ == "__main__":
    sys.exit(main())
