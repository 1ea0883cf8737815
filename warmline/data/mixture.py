"""Which example comes when: temperature mixture over sources, a seeded function of the step."""

import random
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple


class Item(NamedTuple):
    source: str
    row: int  # of the source's examples


def shares(sizes: Mapping[str, int], alpha: float) -> dict[str, float]:
    """p_i = n_i^alpha / sum_j n_j^alpha.

    >>> shares({"a": 100, "b": 400}, 0.5)
    {'a': 0.3333333333333333, 'b': 0.6666666666666666}
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha {alpha} is not in (0, 1]")
    powers = {name: size**alpha for name, size in sizes.items()}
    return {name: power / sum(powers.values()) for name, power in powers.items()}


def epoch_counts(sizes: Mapping[str, int], alpha: float) -> dict[str, int]:
    """How many draws of an epoch (as many as there are examples) fall to each source, by largest remainder.

    >>> epoch_counts({"a": 100, "b": 400}, 0.5)
    {'a': 167, 'b': 333}
    """
    length = sum(sizes.values())
    exact = {name: share * length for name, share in shares(sizes, alpha).items()}
    counts = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: counts[name] - exact[name])
    for name in by_remainder[: length - sum(counts.values())]:
        counts[name] += 1
    return counts


def step_items(sizes: Mapping[str, int], alpha: float, seed: int, batch_size: int, step: int) -> list[Item]:
    """The `batch_size` examples of optimizer step `step` (from 0)."""
    frozen = tuple(sizes.items())
    length = sum(sizes.values())
    positions = range(step * batch_size, (step + 1) * batch_size)
    return [_epoch(frozen, alpha, seed, at // length)[at % length] for at in positions]


@lru_cache(maxsize=2)
def _epoch(sizes: tuple[tuple[str, int], ...], alpha: float, seed: int, epoch: int) -> list[Item]:
    """One epoch's order. A source's draws go on through its own shuffles from epoch to epoch, so that all its
    examples are seen equally often."""
    items = []
    for (name, size), count in zip(sizes, epoch_counts(dict(sizes), alpha).values(), strict=True):
        drawn = range(epoch * count, (epoch + 1) * count)
        items += [Item(name, _shuffled(size, f"{seed}/{name}/{at // size}")[at % size]) for at in drawn]
    random.Random(f"{seed}/order/{epoch}").shuffle(items)
    return items


@lru_cache(maxsize=16)
def _shuffled(size: int, seed: str) -> list[int]:
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order
