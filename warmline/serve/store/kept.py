"""A session's risk as it is kept for 72 hours: its state, its use and its card, as JSON that is checked on the way back."""

import time
from collections.abc import Callable, Collection
from dataclasses import asdict, replace
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from warmline.dialogue.session import Session
from warmline.safety.disclosure import Use
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.state import FORGET_AFTER, HOUR, SIGNALS, RiskState, reopen

# From this silence on, what comes is a new session, and the state reopens a level lower. The table of decay has no
# shorter "new session"; until then the silence is time that passes in the old one, which lowers nothing by itself.
NEW_SESSION = 24 * HOUR

Count = Annotated[int, Field(ge=0, le=2**31)]
Seconds = Annotated[float, Field(ge=0, le=1e11, allow_inf_nan=False)]
Moment = Annotated[float, Field(ge=-1e11, le=1e11, allow_inf_nan=False)]  # epoch seconds, by somebody's clock
Floor = Annotated[int, Field(ge=Level.NONE, le=Level.EMERGENCY)]


def _one_of(names: Collection[str]) -> Callable[[str], str]:
    def checked(name: str) -> str:
        if name not in names:
            raise ValueError("not a name that is known")
        return name

    return checked


Family = Annotated[str, AfterValidator(_one_of(SIGNALS))]
Domain = Annotated[str, AfterValidator(_one_of(DOMAINS))]


class KeptFormatError(ValueError):
    """A kept state that is none of ours, or of another version of warmline."""


class Kept(NamedTuple):
    session: Session  # without turns
    digest: str  # of the user's turns that the state has heard
    at: float  # epoch seconds


class _Shape(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class _State(_Shape):
    floor: Floor
    clock: Seconds
    last_signal: Seconds
    calm_turns: Count
    contact: bool
    delayed_until: Seconds
    accum: Seconds
    families: Annotated[list[tuple[Family, Count]], Field(max_length=len(SIGNALS))]
    turn: Count
    episode: Count
    domains: list[Domain]


class _Use(_Shape):
    started: Moment
    last_notice: Moment | None
    last_turn: Moment
    active_s: Seconds
    night_break_shown: bool


class _Kept(_Shape):
    format: Literal[1]
    at: Moment
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    state: _State
    use: _Use | None
    card_level: Floor
    minor: Literal["yes", "no", "unknown"]
    questions_asked: Count
    last_at: Moment | None


def to_json(kept: Kept) -> bytes:
    """What is kept, as JSON."""
    session = kept.session
    state = asdict(session.state) | {
        "floor": int(session.state.floor),
        "families": [tuple(each) for each in session.state.families],
        "domains": sorted(session.state.domains),
    }
    tree = {
        "format": 1,
        "at": kept.at,
        "digest": kept.digest,
        "state": state,
        "use": None if session.use is None else asdict(session.use),
        "card_level": int(session.card_level),
        "minor": session.minor,
        "questions_asked": session.questions_asked,
        "last_at": session.last_at,
    }
    return _Kept.model_validate(tree).model_dump_json().encode()


def from_json(data: bytes) -> Kept:
    """What was kept. Raises KeptFormatError, which quotes nothing."""
    try:
        tree = _Kept.model_validate_json(data)
    except ValidationError:
        raise KeptFormatError("a kept risk state is none of this version's") from None
    fields = tree.state.model_dump()
    state = RiskState(
        **fields
        | {
            "floor": Level(tree.state.floor),
            "families": tuple(tree.state.families),
            "domains": frozenset(tree.state.domains),
        }
    )
    session = Session(
        state=state,
        last_at=tree.last_at,
        card_level=Level(tree.card_level),
        minor=tree.minor,
        questions_asked=tree.questions_asked,
        use=None if tree.use is None else Use(**tree.use.model_dump()),
    )
    return Kept(session, tree.digest, tree.at)


def continued(kept: Kept, now: float) -> Session:
    """The session that goes on at `now`: the same one, for which the silence was time, or after a day a new one.

    A clock that jumped back passes no time. After 72 hours nothing is left.
    """
    gap = max(0.0, now - kept.at)
    if gap >= NEW_SESSION:
        return carried(kept, now)
    return replace(kept.session, last_tick=time.monotonic() - gap)


def carried(kept: Kept, now: float) -> Session:
    """What a new session of the same person begins with: the state reopened, and nothing else but that they are a minor."""
    gap = max(0.0, now - kept.at)
    if gap >= FORGET_AFTER:
        return Session()
    minor = "yes" if kept.session.minor == "yes" else "unknown"
    return Session(state=reopen(kept.session.state, gap), minor=minor)
