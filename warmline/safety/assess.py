"""The level at which a conversation's last user turn must be answered: each turn read, risk held from turn to turn."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from warmline.safety.detect import Detector, Observation, load_detector, observe
from warmline.safety.levels import Level, Reason
from warmline.safety.state import RiskState, add_signals, advance

DELAYED = frozenset({"SUI.ATTEMPT", "MED.INGESTED"})  # rules of what was taken, which harms later
NUM_TURNS = 2_000  # of the newest that are replayed; state is kept, so that older ones need not be read again


class TurnError(ValueError):
    """A conversation that cannot be read: no turns, or none of them the user's."""


@dataclass(frozen=True)
class Assessment:
    """How a conversation's last user turn must be answered, and why. No text."""

    level: Level
    observed: Level  # by the last turn alone
    p: float  # of any risk, in [0, 1]
    domains: frozenset[str]
    reasons: tuple[Reason, ...]
    degraded: frozenset[str]
    state: RiskState
    ms: float


def assess(turns: Sequence[Mapping[str, object]], detector: Detector | None = None) -> Assessment:
    """Replay a conversation. `turns`: `role`, `content`, and `t` in seconds where time matters.

    Only user turns are read for risk; what anyone claims to be the companion's or the system's words is context for a
    bare answer, never evidence of safety. Raises TurnError.
    """
    started = time.perf_counter()
    detector = detector or load_detector()
    state, last = RiskState(), None
    said: list[str] = []
    question, before_t = "", None
    for turn in list(turns)[-NUM_TURNS:]:
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if not isinstance(content, str) or not isinstance(role, str):
            raise TurnError("a turn needs a role and content, both text")
        if role != "user":
            question = content if role == "assistant" else question
            continue
        t = clock_of(turn)
        seconds = t - before_t if t is not None and before_t is not None else 0.0
        if t is not None:  # a clock that jumps back passes no time, nor does its way forward to where it has been
            before_t = t if before_t is None else max(before_t, t)
        state, last = step(state, content, detector, said, question, seconds)
        said.append(content)
        question = ""
    if last is None:
        raise TurnError("there is no user turn")
    return Assessment(
        max(state.floor, last.level),
        last.level,
        max(last.p, 0.5 + 0.15 * state.floor if state.floor else 0.0),
        state.domains | last.domains,
        last.reasons or ((Reason("STATE.FLOOR", "Risk was noticed earlier and holds"),) if state.floor else ()),
        last.degraded,
        state,
        1e3 * (time.perf_counter() - started),
    )


def clock_of(turn: Mapping[str, object]) -> float | None:
    """A turn's time stamp in seconds; None for one that is absent, no number or not finite: no time passes then."""
    t = turn.get("t")
    try:
        return float(t) if isinstance(t, int | float) and math.isfinite(t) else None
    except OverflowError:  # a whole number of 400 digits
        return None


def step(
    state: RiskState, text: str, detector: Detector, before: Sequence[str], question: str, seconds: float
) -> tuple[RiskState, Observation]:
    """The state after one more user turn, and what that turn showed, weak signals included."""
    state, seen = look(state, text, detector, before, question)
    return hold(state, seen, seconds), seen


def look(
    state: RiskState, text: str, detector: Detector, before: Sequence[str], question: str
) -> tuple[RiskState, Observation]:
    """The first half of a step: the state with the turn's weak signals, its level not yet held, and what the turn showed."""
    seen = observe(text, detector, before, question)
    state, by_sum = add_signals(state, seen.signals)
    if by_sum > seen.level:
        seen = replace(
            seen,
            level=by_sum,
            domains=seen.domains | {"suicide"},
            reasons=(*seen.reasons, Reason("SIGNALS", "Several weak signs over the turns add up")),
        )
    return state, seen


def hold(state: RiskState, seen: Observation, seconds: float) -> RiskState:
    """The second half: the state that `look` gave, after a turn that showed `seen`, `seconds` after the turn before."""
    delayed = any(frame.level == Level.EMERGENCY and frame.rule[:-3] in DELAYED for frame in seen.frames)
    return advance(
        state, seen.level, stances=seen.stances, domains=seen.domains, delayed=delayed, seconds=max(0.0, seconds)
    )
