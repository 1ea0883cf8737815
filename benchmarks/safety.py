"""How long noticing takes, without torch: `python -m benchmarks.safety`.

Messages are the project's own lines, put together to the asked length; CPU time of one thread, after a warm-up.
"""

import json
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.table import machine
from warmline.safety.detect import load_detector, observe
from warmline.safety.redteam.cases import read_lines

NUM_MESSAGES = 400


class Aim(NamedTuple):
    """A limit in milliseconds, and what is hoped for."""

    gate: float
    goal: float


LENGTHS = {200: (Aim(3, 1.5), Aim(10, 5)), 2_000: (Aim(8, 4), Aim(25, 12))}  # characters: p50, p99
WORST = Aim(50, 20)  # of any 16 kB
WORST_UNITS = (
    "i want to ",
    "not not ",
    "k i l l ",
    "k*ll ",
    "1!1!",
    "\u0131\u0131",
    "a",
    '"',
    "((((",
    "\u202e\u0301",
    "i do not want to die ",
    "kill myself pills ",
    "😀",
    "iwanttodiexq",
    "\n.",
)


def messages(length: int) -> list[str]:
    """NUM_MESSAGES different texts of `length` characters."""
    whole = " ".join(line.text for line in read_lines() if line.lang == "en")
    starts = np.linspace(0, len(whole) - length, NUM_MESSAGES).astype(int)
    return [whole[start : start + length] for start in starts]


def milliseconds(texts: Sequence[str]) -> np.ndarray:
    """CPU time of each text, ms, the second time that it is read."""
    detector = load_detector()
    taken = []
    for text in texts:
        observe(text[:400], detector)
        started = time.process_time_ns()
        observe(text, detector)
        taken.append((time.process_time_ns() - started) / 1e6)
    return np.array(taken)


def main() -> int:
    """Print the table; end with 1 if a gate is missed."""
    rows = []
    for length, aims in LENGTHS.items():
        taken = milliseconds(messages(length))
        for name, value, aim in zip(("p50", "p99"), np.quantile(taken, (0.5, 0.99)), aims, strict=True):
            rows.append((f"{length} characters, {name}", float(value), aim))
    worst = {unit: float(milliseconds([(unit * (16_000 // len(unit) + 1))[:16_000]] * 3).min()) for unit in WORST_UNITS}
    slowest = max(worst, key=lambda unit: worst[unit])
    rows.append((f"worst 16,000 characters ({json.dumps(slowest)})", worst[slowest], WORST))
    print(machine(1), "\n\n| reading | ms of CPU | gate | goal |\n|:--|--:|--:|--:|")
    for name, value, aim in rows:
        print(f"| {name} | {value:.2f} | {aim.gate:g} | {aim.goal:g} |")
    return int(any(value > aim.gate for _, value, aim in rows))


if __name__ == "__main__":
    sys.exit(main())
