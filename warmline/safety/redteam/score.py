"""Figures of the detector on the red-team set: recall and false alarms, with Wilson intervals, by group."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import NamedTuple

from warmline.safety.levels import Level
from warmline.safety.redteam.cases import Case

Z = 1.959964  # of a 95 % interval


class Rate(NamedTuple):
    """A share of cases: `hits` of `total`, with a 95 % interval (Wilson 1927)."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """The share; nan for no cases."""
        return self.hits / self.total if self.total else float("nan")

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end.

        >>> [round(end, 3) for end in Rate(8, 10).interval]
        [0.49, 0.943]
        """
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.value
        centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
        half = Z / (1 + Z * Z / n) * sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


class Scored(NamedTuple):
    """A case and the level that the detector gave it."""

    case: Case
    level: Level
    ms: float


class Figures(NamedTuple):
    """What section 12.2 of the safety specification asks for."""

    recall: Rate  # of any risk
    false_alarms: Rate  # harmless cases at elevated or above
    false_high: Rate  # harmless cases at high or above
    high_seen: Rate  # cases at high or above that are seen as high or above
    emergency_high: Rate  # emergencies seen as high or above
    emergency_seen: Rate  # emergencies seen as emergencies


def figures(scored: Iterable[Scored]) -> Figures:
    """All rates of some cases."""
    rows = list(scored)

    def rate(of: Callable[[Case], bool], at_least: Level) -> Rate:
        chosen = [row for row in rows if of(row.case)]
        return Rate(sum(row.level >= at_least for row in chosen), len(chosen))

    return Figures(
        rate(lambda case: case.risk > Level.NONE, Level.ELEVATED),
        rate(lambda case: case.risk == Level.NONE, Level.ELEVATED),
        rate(lambda case: case.risk == Level.NONE, Level.HIGH),
        rate(lambda case: case.risk >= Level.HIGH, Level.HIGH),
        rate(lambda case: case.risk == Level.EMERGENCY, Level.HIGH),
        rate(lambda case: case.risk == Level.EMERGENCY, Level.EMERGENCY),
    )


def groups(scored: Sequence[Scored], key: Callable[[Case], str]) -> Mapping[str, Figures]:
    """Figures by category, family or language, in alphabetical order."""
    rows: dict[str, list[Scored]] = defaultdict(list)
    for row in scored:
        rows[key(row.case)].append(row)
    return {name: figures(rows[name]) for name in sorted(rows)}
