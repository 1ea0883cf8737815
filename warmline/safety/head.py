"""Whether the model's risk head is trusted, and what it may change of a turn's level: raise it, or lower what models gave."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from warmline.safety.detect import Observation
from warmline.safety.levels import Level, Reason

MIN_RECALL = 0.85  # of any risk, on the dev set, where 5 % of harmless turns are false alarms
MAX_CALIBRATION_ERROR = 0.08  # expected calibration error (ECE)
# P(level >= elevated), >= high, >= emergency from which the head gives that level. A takeover of the conversation needs
# more than an even chance; a calibrated head is what makes these numbers mean something.
RAISES_FROM = (0.5, 0.7, 0.7)
LOWERS_BELOW = 0.1  # P(level >= k) under which k, if only models gave it, is lowered by one
GRAVE_ACTS = frozenset({"attempt", "means", "command_means"})  # one of them beside the head, or there is no `emergency`

LABELS = tuple(level.label for level in Level)


@dataclass(frozen=True)
class RiskHead:
    """The risk head of the loaded stage. One that is not trusted is ignored, and turns say so in `degraded`."""

    trusted: bool
    reason: str = ""  # why it is not trusted, for an operator
    raises_from: tuple[float, float, float] = RAISES_FROM


def judge_head(measured: object, base_model_hash: str, quant: str) -> RiskHead:
    """The trust gate. `measured`: what the checkpoint says of its head, as
    `{"dev_recall_at_5fpr": 0.91, "calibration_ece": 0.03, "base_model_hash": "9f2c", "quant": "nf4"}`, or None.

    `base_model_hash`, `quant`: of what is loaded. A head that nobody measured, or not on this base in this
    quantisation, is not trusted.
    """
    if not isinstance(measured, Mapping):
        return RiskHead(trusted=False, reason="the checkpoint has no measurement of its risk head")
    recall, error = _share(measured.get("dev_recall_at_5fpr")), _share(measured.get("calibration_ece"))
    if recall is None or recall < MIN_RECALL:
        return RiskHead(trusted=False, reason=f"dev_recall_at_5fpr is not at least {MIN_RECALL}")
    if error is None or error > MAX_CALIBRATION_ERROR:
        return RiskHead(trusted=False, reason=f"calibration_ece is not at most {MAX_CALIBRATION_ERROR}")
    if measured.get("base_model_hash") != base_model_hash:
        return RiskHead(trusted=False, reason="it was measured on another base")
    if measured.get("quant") != quant:
        return RiskHead(trusted=False, reason=f"it was not measured with quantisation {quant}")
    return RiskHead(trusted=True)


def _share(value: object) -> float | None:
    """A number in [0, 1]; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return None
    return float(value)


def at_least(labels: Sequence[str], values: Sequence[float]) -> tuple[float, float, float] | None:
    """P(level >= elevated), >= high, >= emergency from a reading of the head; None for what is no distribution.

    >>> at_least(("none", "elevated", "high", "emergency"), (0.5, 0.25, 0.25, 0.0))
    (0.5, 0.25, 0.0)
    """
    if tuple(labels) != LABELS or len(values) != len(LABELS):
        return None
    if any(_share(value) is None for value in values) or not math.isclose(sum(values), 1, abs_tol=0.01):
        return None
    return sum(values[1:]), sum(values[2:]), values[3]


def fused_level(
    level: Level, settled: Level, p_K: Sequence[float], raises_from: Sequence[float], *, under_way: bool
) -> Level:
    """The level once a trusted head has been heard.

    `level`: the other detectors'. `settled`: what of it no head lowers: definite rules, guards, the floor that holds
    from earlier turns. `p_K`: P(level >= 1), >= 2, >= 3 by the head. `under_way`: a rule read an act or a means; without
    one the head alone gives no `emergency`.
    """
    head = max((k for k, p in enumerate(p_K, 1) if p >= raises_from[k - 1]), default=0)
    if not under_way:
        head = min(head, Level.HIGH)
    if head > level:
        return Level(head)
    if settled < level and p_K[level - 1] < LOWERS_BELOW:
        return Level(max(level - 1, settled))
    return level


def with_head(
    seen: Observation, floor: Level, head: RiskHead, labels: Sequence[str], values: Sequence[float]
) -> Observation:
    """What a turn shows once the head's reading has come; `floor`: the level that held before this turn.

    A head that is not trusted, or whose reading is no distribution over the four levels, changes nothing.
    """
    p_K = at_least(labels, values) if head.trusted else None
    if p_K is None:
        return replace(seen, degraded=seen.degraded | {"head"})
    under_way = not GRAVE_ACTS.isdisjoint(seen.acts)
    level = fused_level(seen.level, max(seen.settled, floor), p_K, head.raises_from, under_way=under_way)
    if level > seen.level:
        reason = Reason(f"HEAD.{level:d}", "The model's risk head reads this level")
        p = max(seen.p, 0.5 + 0.15 * level)
        return replace(seen, level=level, settled=level, p=p, reasons=(*seen.reasons, reason))
    if level < seen.level:
        reason = Reason("HEAD.LOWER", "The model's risk head finds the level of the wording unlikely")
        return replace(seen, level=level, reasons=(*seen.reasons, reason))
    return seen
