"""Learning rate, gradient scaling and seeding as functions of the step, so that nothing but weights must be restored."""

import math
import random

import numpy as np
import torch


def learning_rate_factor(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Linear warm-up, then cosine to zero. `step` counts from 0 and never starts at a factor of 0.

    >>> [round(learning_rate_factor(step, 10, 0.2), 2) for step in (0, 1, 2, 9)]
    [0.5, 1.0, 1.0, 0.04]
    """
    num_warmup = round(num_steps * warmup_ratio)
    if step < num_warmup:
        return (step + 1) / num_warmup
    done = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + math.cos(math.pi * done))


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make everything random in this step (dropout) depend on seed, step and process only."""
    mixed = int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0])
    random.seed(mixed)
    torch.manual_seed(mixed)
