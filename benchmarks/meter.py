"""One contender in this process: CPU seconds of each optimizer step, and peak memory over what the model takes."""

import ctypes
import gc
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks.contenders import CONTENDERS
from benchmarks.workload import Workload
from warmline.config.fields import Dtype
from warmline.data.labels import IGNORE
from warmline.data.tokenize import Ints


class Measure(NamedTuple):
    contender: str
    vocab: str
    dtype: Dtype
    seconds: list[float]  # CPU, of each timed step, over all threads
    turns: list[int]  # supervised, in each timed step
    tokens: list[int]  # supervised, in each timed step
    loss: float  # nats per supervised token of the first conversation, before training
    base_mib: float  # resident once the model is built
    peak_mib: float  # the most that training had resident, over that

    def rate(self, num_steps: int | None = None) -> float:
        """Supervised turns per CPU second, over the first `num_steps` timed steps."""
        return sum(self.turns[:num_steps]) / sum(self.seconds[:num_steps])


def measure(name: str, work: Workload, *, vocab: str, dtype: Dtype, num_steps: int | None = None) -> Measure:
    """Build the contender, check its loss, let it train; the first step is a warm-up and not counted.

    `num_steps`: how many of the workload's steps it trains; all of them if None.
    """
    steps = work.first_steps(num_steps)
    base = work.build_base(vocab, dtype)
    prepared = CONTENDERS[name].prepare(steps, base, dtype)
    _touch(base)
    base_mib = resident_mib()
    loss = prepared.loss()
    _give_back_memory()
    meter = _Meter()
    prepared.train(meter.mark)
    assert len(meter.cpu) == steps.num_steps + 1, "one mark after the warm-up and one after every step"
    counts = [_count(rows) for rows in prepared.labels[1:]]
    return Measure(
        contender=name,
        vocab=vocab,
        dtype=dtype,
        seconds=[round(after - before, 4) for before, after in zip(meter.cpu, meter.cpu[1:], strict=False)],
        turns=[turns for turns, _ in counts],
        tokens=[tokens for _, tokens in counts],
        loss=loss,
        base_mib=round(base_mib, 1),
        peak_mib=round(meter.peak_mib - base_mib, 1),
    )


@dataclass
class _Meter:
    cpu: list[float] = field(default_factory=list)  # process CPU seconds at each mark
    peak_mib: float = 0.0

    def __post_init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now (proc(5))

    def mark(self) -> None:
        self.cpu.append(time.process_time())
        self.peak_mib = max(self.peak_mib, _status("VmHWM"))


def resident_mib() -> float:
    """Memory of this process, freed memory given back before."""
    _give_back_memory()
    return _status("VmRSS")


def _status(key: str) -> float:
    """A memory figure of this process, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    [line] = [line for line in lines if line.startswith(f"{key}:")]
    return int(line.split()[1]) / 1024  # kB


def _touch(base: torch.nn.Module) -> None:
    """Read every weight, so that none becomes resident only in training."""
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.sum()


def _give_back_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # glibc keeps freed memory resident


def _count(rows: list[Ints]) -> tuple[int, int]:
    """Supervised turns (runs of supervised tokens) and tokens."""
    learned = [labels != IGNORE for labels in rows]
    starts = [row & ~np.concatenate([[False], row[:-1]]) for row in learned]
    return int(sum(row.sum() for row in starts)), int(sum(row.sum() for row in learned))
