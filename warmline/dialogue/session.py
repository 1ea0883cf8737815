"""What is remembered of one person's conversation, and what each turn of theirs shows: rules, models, guards, the risk head."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from warmline.config.fields import StyleSettings
from warmline.dialogue.tally import Audit
from warmline.engine.engine import Engine, Reading, Sampling
from warmline.safety.assess import NUM_TURNS, hold, look
from warmline.safety.detect import Detector, Observation
from warmline.safety.disclosure import Use, minor_of
from warmline.safety.guards import Guard, assess_all, with_verdicts
from warmline.safety.head import RiskHead, with_head
from warmline.safety.levels import Level
from warmline.safety.resources.directory import Directory
from warmline.safety.state import RiskState
from warmline.safety.validate.context import Minor, Turn


@dataclass(frozen=True)
class Setting:
    """What the operator chose, the same for every conversation."""

    engine: Engine
    detector: Detector
    directory: Directory
    system_prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    country: str | None = None  # two letters
    question_policy: str = "none"
    question_owner: str = ""  # the clinician who answers for `safety_check`
    guards: tuple[Guard, ...] = ()  # asked about the newest turn
    risk_head: RiskHead | None = None  # of the engine's heads; None: it has none
    audit: Audit | None = None  # where each turn is counted; None: nothing is kept
    style: StyleSettings = field(
        default_factory=StyleSettings
    )  # told to the model wherever the level leaves the persona on
    reflection: bool = False  # whether a hidden line comes before each reply, below `high`
    candidates: int = 1  # below `high`; above 1: a reply that begins without warmth is drawn again


@dataclass
class Session:
    """What is remembered of a conversation while it lasts. In memory only."""

    turns: list[Turn] = field(default_factory=list)  # what was said and what was released
    state: RiskState = field(default_factory=RiskState)
    last_at: float | None = None  # seconds, the latest time stamp of a user turn
    last_tick: float | None = None  # seconds on our own clock, of the last turn that had no time stamp
    card_level: Level = Level.NONE  # the highest level of this episode that a card was shown for
    minor: Minor = "unknown"
    questions_asked: int = 0  # safety questions in this episode
    use: Use | None = None  # since when, and what was said about talking with an AI


class Heard(NamedTuple):
    """A turn that was read, and what it takes to read it anew once the risk head has been heard."""

    seen: Observation
    before: RiskState  # with the turn's weak signals, its level not yet held
    seconds: float  # since the turn before


def resume(setting: Setting, turns: Sequence[Turn], times: Sequence[float | None] = ()) -> Session:
    """The session after earlier turns that someone else kept: the risk of the newest is read again, nothing is generated.

    `times`: seconds of each turn where known. Turns of other roles than user and assistant are left out.
    """
    session = Session()
    first_read = len(turns) - NUM_TURNS
    for number, turn in enumerate(turns):
        if turn.role == "user" and number >= first_read:
            seconds = since(session, times[number] if number < len(times) else None)
            hear(setting, session, turn.content, seconds)
        if turn.role in ("user", "assistant"):
            session.turns.append(turn)
    return session


def hear(setting: Setting, session: Session, text: str, seconds: float, guards: Sequence[Guard] = ()) -> Heard:
    """What the turn shows before the model is asked; the session's state goes on."""
    said = [turn.content for turn in session.turns if turn.role == "user"]
    question = session.turns[-1].content if session.turns and session.turns[-1].role == "assistant" else ""
    before, seen = look(session.state, text, setting.detector, said, question)
    # A guard that could not raise what the rules have seen already is not sent those words.
    seen = with_verdicts(seen, assess_all([guard for guard in guards if guard.highest > seen.level], text))
    session.state = hold(before, seen, seconds)
    session.minor = minor_of(text, session.minor)
    if session.state.episode != before.episode or session.state.floor < Level.HIGH:
        session.card_level, session.questions_asked = Level.NONE, 0
    return Heard(seen, before, seconds)


def with_readings(setting: Setting, turn: Heard, readings: Sequence[Reading]) -> Observation:
    """What the turn shows, the risk head's reading included."""
    if setting.risk_head is None:
        return turn.seen
    risk = next((reading for reading in readings if reading.head == "risk"), None)
    labels, values = ((), ()) if risk is None else (risk.labels, risk.values)
    return with_head(turn.seen, turn.before.floor, setting.risk_head, labels, values)


def since(session: Session, at: float | None) -> float:
    """Seconds since the turn before, by time stamps. A clock that jumps back passes no time, nor does its way forward
    to where it has been; nor does a time stamp that is absent or no finite number."""
    if at is None or not math.isfinite(at):
        return 0.0
    before = at if session.last_at is None else session.last_at
    session.last_at = max(before, at)
    return session.last_at - before


def ticked(session: Session) -> float:
    """Seconds since the turn before, where there are no time stamps: on a clock that nobody can set."""
    tick = time.monotonic()
    before, session.last_tick = session.last_tick, tick
    return 0.0 if before is None else tick - before
