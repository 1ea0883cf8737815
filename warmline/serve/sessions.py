"""Risk that a client cannot make the server forget: what is kept of conversations between requests. No text."""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

from warmline.dialogue.session import Session, Setting, resume
from warmline.safety.levels import Level
from warmline.safety.state import FORGET_AFTER, RiskState, confirm_contact, repair
from warmline.safety.validate.context import Minor, Turn

Action = Literal["with_me", "not_me", "hide"]
ACTIONS: Mapping[Action, Callable[[RiskState], RiskState]] = {
    "with_me": confirm_contact,
    "not_me": repair,
    "hide": lambda state: state,  # the card is folded up, no more
}


@dataclass(frozen=True)
class Kept:
    """A conversation between two requests: its session without turns, and a digest of what its user has said."""

    session: Session
    digest: bytes  # of the user turns that the state has heard
    expires: float  # on the monotonic clock


@dataclass
class OpenSession(Session):
    """A session of a request, which knows what was kept when it was opened."""

    origin: Kept | None = None


class Sessions:
    """Kept sessions by key, for 72 hours after the last turn; of too many, those without risk go first."""

    def __init__(self, max_kept: int = 10_000) -> None:
        self._max_kept = max_kept
        self._secret = secrets.token_bytes(32)  # of this process: digests say nothing outside it
        self._lock = threading.Lock()
        self._calm: OrderedDict[str, Kept] = OrderedDict()
        self._risky: OrderedDict[str, Kept] = OrderedDict()

    def key(self, owner: str, session: str) -> str:
        """The name under which a client's conversation is kept: nothing of what the client said can be read from it."""
        named = f"{len(owner)} {owner} {session}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, named, hashlib.sha256).hexdigest()

    def open(
        self, key: str | None, setting: Setting, turns: Sequence[Turn], times: Sequence[float | None] = ()
    ) -> Session:
        """The session of a request that brings its earlier turns: the higher of what is kept and what they show.

        What is kept has heard the same turns when they came, so that they are not read again.
        """
        kept = self.kept(key)
        if kept is None:
            session = resume(setting, turns, times)
        elif kept.digest == self._digest(turns):
            spoken = [turn for turn in turns if turn.role in ("user", "assistant")]
            session = replace(kept.session, turns=spoken)
        else:
            session = merged(kept.session, resume(setting, turns, times))
        return OpenSession(**vars(session), origin=kept)

    def keep(self, key: str | None, session: Session) -> None:
        """Keep a session after its turn. If another request has kept one meanwhile, neither lowers the other."""
        if key is None:
            return
        bare = Session(**{each.name: getattr(session, each.name) for each in fields(Session)})
        bare.turns = []
        digest = self._digest(session.turns)
        with self._lock:
            before = self._drop(key)
            if before is not None and before is not getattr(session, "origin", None):
                bare = merged(before.session, bare)
            home = self._risky if bare.state.floor > Level.NONE else self._calm
            home[key] = Kept(bare, digest, time.monotonic() + FORGET_AFTER)
            while len(self._calm) + len(self._risky) > self._max_kept:
                (self._calm or self._risky).popitem(last=False)

    def act(self, key: str, action: Action) -> Session | None:
        """Do what a button of the card asks for; the session as it is then, None where nothing is kept."""
        with self._lock:
            home = self._risky if key in self._risky else self._calm
            found = home.get(key)
            if found is None or found.expires <= time.monotonic():
                return None
            session = replace(found.session, state=ACTIONS[action](found.session.state))
            home[key] = replace(found, session=session)
            return session

    def kept(self, key: str | None) -> Kept | None:
        if key is None:
            return None
        with self._lock:
            found = self._calm.get(key) or self._risky.get(key)
            if found is not None and found.expires <= time.monotonic():
                self._drop(key)
                return None
            return found

    def _drop(self, key: str) -> Kept | None:
        return self._calm.pop(key, None) or self._risky.pop(key, None)

    def _digest(self, turns: Sequence[Turn]) -> bytes:
        digest = hashlib.blake2b(key=self._secret, digest_size=32)
        for turn in turns:
            if turn.role == "user":
                said = turn.content.encode("utf-8", "surrogatepass")
                digest.update(len(said).to_bytes(8) + said)
        return digest.digest()


def merged(kept: Session, replayed: Session) -> Session:
    """One session of two that know of the same conversation: where they differ, the more careful of both."""
    minors: tuple[Minor, ...] = (kept.minor, replayed.minor)
    return Session(
        turns=replayed.turns,
        state=higher(kept.state, replayed.state),
        last_at=replayed.last_at,
        last_tick=kept.last_tick,
        card_level=min(kept.card_level, max(kept.state.floor, replayed.state.floor)),
        minor="yes" if "yes" in minors else "no" if "no" in minors else "unknown",
        questions_asked=max(kept.questions_asked, replayed.questions_asked),
        use=kept.use,
    )


def higher(one: RiskState, other: RiskState) -> RiskState:
    """A state that neither of two lowers. Their clocks began at different times, so that spans are compared."""
    base, rest = (one, other) if one.floor >= other.floor else (other, one)
    equal = one.floor == other.floor
    quiet = min(base.clock - base.last_signal, rest.clock - rest.last_signal if equal else base.clock)
    delay = max(base.delayed_until - base.clock, rest.delayed_until - rest.clock, 0.0)
    turn = max(one.turn, other.turn)
    families: dict[str, int] = {}
    for state in (one, other):
        for name, at in state.families:
            families[name] = max(families.get(name, 0), at + turn - state.turn)
    return replace(
        base,
        last_signal=base.clock - quiet,
        calm_turns=min(one.calm_turns, other.calm_turns) if equal else base.calm_turns,
        contact=one.contact and other.contact if equal else base.contact,
        delayed_until=base.clock + delay if delay else 0.0,
        accum=max(one.accum, other.accum),
        families=tuple(sorted(families.items())),
        turn=turn,
        episode=max(one.episode, other.episode),
        domains=one.domains | other.domains,
    )
