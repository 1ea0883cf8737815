"""Rounds of measurements to tables: the contender against which warmline gains least stands first."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median

import torch

from benchmarks.contenders import CONTENDERS
from benchmarks.meter import Measure
from warmline.config.fields import Dtype

Rounds = list[list[Measure]]

OURS = "warmline"
TOLERANCE: dict[Dtype, float] = {"float32": 1e-4, "bfloat16": 2e-2, "float16": 2e-2}  # nats per token


class UnlikeError(ValueError):
    """Contenders did not do the same work, so that their times must not be compared."""


def check(rounds: Rounds) -> None:
    """Raises UnlikeError unless all supervise the same turns and tokens in every step, with the same loss."""
    of_all = [each for of_round in rounds for each in of_round]
    for vocab in {each.vocab for each in of_all}:
        group = [each for each in of_all if each.vocab == vocab]
        first = max(group, key=lambda each: len(each.seconds))
        for each in group:
            steps = len(each.seconds)
            for what in ("turns", "tokens"):
                here, there = getattr(each, what), getattr(first, what)[:steps]
                if here != there:
                    raise UnlikeError(f"{each.contender} supervises {here} {what}, {first.contender} {there}")
            if abs(each.loss - first.loss) > TOLERANCE[each.dtype]:
                raise UnlikeError(f"{each.contender} has loss {each.loss}, {first.contender} {first.loss}")


def report(rounds: Rounds, asked: Sequence[str], *, dtype: Dtype, was_asked: bool, threads: int) -> str:
    """All tables, and what they were measured on, in Markdown. `asked`: the contenders that were to run."""
    lines = [machine(threads)]
    if dtype == "float32" and not was_asked:
        lines.append("bfloat16 is not native to this CPU: everything is measured in float32 in its place.")
    for vocab in dict.fromkeys(each.vocab for each in rounds[0]):
        lines.append(table(rounds, vocab))
        failed = [name for name in asked if not any(_find(of_round, name, vocab) for of_round in rounds)]
        if failed:
            lines.append(f"Out of memory: {', '.join(failed)}.")
    lines.append("\n".join(f"* {name}: {CONTENDERS[name].about}" for name in asked))
    return "\n\n".join(lines)


def machine(threads: int) -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft"))
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} CPU, {capability}, {threads} thread(s) per process; {packages}"


def table(rounds: Rounds, vocab: str) -> str:
    """One vocabulary's rows, the least gain first, our own row last."""
    by_name = {
        name: [each for each in (_find(of_round, name, vocab) for of_round in rounds) if each] for name in CONTENDERS
    }
    ours = by_name.pop(OURS)
    rows = {name: (theirs, _gains(rounds, name, vocab)) for name, theirs in by_name.items() if theirs}
    order = sorted(rows, key=lambda name: median(rows[name][1]))
    lines = [
        f"**Vocabulary {vocab}**, {ours[0].dtype}: {sum(ours[0].turns)} supervised turns, "
        f"{sum(ours[0].tokens)} supervised tokens in {len(ours[0].seconds)} step(s) of {len(rounds)} round(s).",
        "",
        "| contender | supervised turns per CPU second | warmline is faster by | peak over base, MiB | warmline's peak is |",
        "|:--|:--|:--|:--|:--|",
    ]
    for name in order:
        theirs, gains = rows[name]
        peak = median(each.peak_mib for each in theirs)
        share = median(each.peak_mib for each in ours) / peak
        rates = spread([each.rate() for each in theirs])
        lines.append(f"| {name} | {rates} | {spread(gains)}x | {peak:,.0f} | {share:.2f} of it |")
    peak = median(each.peak_mib for each in ours)
    lines.append(f"| **warmline** | {spread([each.rate() for each in ours])} | | {peak:,.0f} | |")
    if order:
        gain = median(rows[order[0]][1])
        lines += ["", f"The honest row is the first: against {order[0]!r} warmline is {gain:.2f} times as fast."]
    return "\n".join(lines)


def _find(of_round: Sequence[Measure], name: str, vocab: str) -> Measure | None:
    return next((each for each in of_round if (each.contender, each.vocab) == (name, vocab)), None)


def _gains(rounds: Rounds, name: str, vocab: str) -> list[float]:
    """Our rate by theirs in each round that has both, over the steps that both did."""
    gains = []
    for of_round in rounds:
        ours, theirs = (_find(of_round, each, vocab) for each in (OURS, name))
        if ours and theirs:
            steps = min(len(ours.seconds), len(theirs.seconds))
            gains.append(ours.rate(steps) / theirs.rate(steps))
    return gains


def spread(values: Sequence[float]) -> str:
    """The median, and the range where there is one.

    >>> spread([2.0]), spread([1.0, 4.0, 2.0])
    ('2.00', '2.00 [1.00, 4.00]')
    """
    middle = f"{median(values):.2f}"
    return middle if len(values) == 1 else f"{middle} [{min(values):.2f}, {max(values):.2f}]"
