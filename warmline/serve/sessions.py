"""Risk that a client cannot make the server forget: what is kept of conversations between requests. No text."""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple, Protocol

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


class Heard(NamedTuple):
    """A state, and a digest of the user turns that it has heard."""

    digest: bytes
    state: RiskState


@dataclass(frozen=True)
class Kept:
    """A conversation between two requests."""

    session: Session  # without turns
    now: Heard
    before: Heard  # the last turn, which a client may ask to be answered anew
    expires: float  # on the monotonic clock


@dataclass
class OpenSession(Session):
    """A session of a request, which knows what was kept when it was opened."""

    origin: Kept | None = None
    opened: Heard | None = None


class Remembers(Protocol):
    """Where a request's conversation is opened and kept."""

    degraded: frozenset[str]  # what failed of it

    def open(
        self,
        key: str | None,
        setting: Setting,
        turns: Sequence[Turn],
        times: Sequence[float | None] = (),
        text: str | None = None,
    ) -> OpenSession: ...
    def heard(self, session: Session) -> None: ...
    def keep(self, key: str | None, session: Session) -> None: ...
    def act(self, key: str, action: Action) -> Session | None: ...


class Sessions:
    """Kept sessions by key, for 72 hours after the last turn; of too many, those without risk go first."""

    degraded: frozenset[str] = frozenset()  # memory does not fail

    def __init__(self, max_kept: int = 10_000) -> None:
        self._max_kept = max_kept
        self._secret = secrets.token_bytes(32)  # of this process: what is made with it says nothing outside
        self._lock = threading.Lock()
        self._calm: OrderedDict[str, Kept] = OrderedDict()  # the one that was used last stands last
        self._risky: OrderedDict[str, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._calm) + len(self._risky)

    def key(self, owner: str, session: str) -> str:
        """The name under which a client's conversation is kept: nothing of what the client said can be read from it."""
        named = f"{len(owner)} {owner} {session}".encode("utf-8", "surrogatepass")
        return hmac.new(self._secret, named, hashlib.sha256).hexdigest()

    def open(
        self,
        key: str | None,
        setting: Setting,
        turns: Sequence[Turn],
        times: Sequence[float | None] = (),
        text: str | None = None,
    ) -> OpenSession:
        """The session of a request that brings its earlier turns; without a key, what they show.

        `text`: the newest turn, by which one that is to be answered anew is known.
        Where exactly these turns were heard as they came, what is kept goes on, with the time that has passed since.
        Else they are read again, and what is kept and what they show are joined so that neither lowers the other.
        """
        kept = self._kept(key)
        digest = self._digest(turns)
        said = [turn for turn in turns if turn.role in ("user", "assistant")]
        if kept is None:
            session = resume(setting, turns, times)
        elif digest == kept.now.digest:
            session = replace(kept.session, turns=said)
        elif (
            text is not None
            and kept.before.digest == digest
            and kept.now.digest == self._digest((*turns, Turn("user", text)))
        ):  # the newest turn again: it was heard, and is heard a second time
            session = replace(kept.session, turns=said, state=higher(kept.before.state, kept.now.state))
        else:
            session = merged(kept.session, resume(setting, turns, times))
        return OpenSession(**vars(session), origin=kept, opened=Heard(digest, session.state))

    def keep(self, key: str | None, session: Session) -> None:
        """Keep a session after its turn. What another request has kept meanwhile is not lowered."""
        if key is None:
            return
        bare = Session(**{each.name: getattr(session, each.name) for each in fields(Session)})
        bare.turns = []
        now = Heard(self._digest(session.turns), bare.state)
        with self._lock:
            found = self._drop(key)
            if found is not None and found is not getattr(session, "origin", None):
                bare = merged(found.session, bare)
                now = Heard(now.digest, bare.state)
            kept = Kept(bare, now, getattr(session, "opened", None) or now, time.monotonic() + FORGET_AFTER)
            self._put(key, kept)
            while len(self) > self._max_kept:
                (self._calm or self._risky).popitem(last=False)

    def heard(self, session: Session) -> None:
        """The turn was heard, and its reply is still to come: in memory it is kept at the end."""

    def forget(self, key: str) -> None:
        """Forget what is kept of a conversation: its person asked for that."""
        with self._lock:
            self._drop(key)

    def act(self, key: str, action: Action) -> Session | None:
        """Do what a button of the card asks for; the session as it is then, None where nothing is kept."""
        with self._lock:
            found = self._drop(key)
            if found is None or found.expires <= time.monotonic():
                return None
            state = ACTIONS[action](found.session.state)
            now = Heard(found.now.digest, state)
            self._put(key, replace(found, session=replace(found.session, state=state), now=now))
            return replace(found.session, state=state)

    def _kept(self, key: str | None) -> Kept | None:
        if key is None:
            return None
        with self._lock:
            found = self._calm.get(key) or self._risky.get(key)
            if found is not None and found.expires <= time.monotonic():
                self._drop(key)
                return None
            return found

    def _put(self, key: str, kept: Kept) -> None:
        (self._risky if kept.session.state.floor > Level.NONE else self._calm)[key] = kept

    def _drop(self, key: str) -> Kept | None:
        return self._calm.pop(key, None) or self._risky.pop(key, None)

    def _digest(self, turns: Sequence[Turn]) -> bytes:
        """Of what the user said: nobody without the secret can tell what it was."""
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
        card_level=kept.card_level,  # shown is shown: a level above it brings the card anew
        minor="yes" if "yes" in minors else "no" if "no" in minors else "unknown",
        questions_asked=max(kept.questions_asked, replayed.questions_asked),
        use=kept.use,
    )


def higher(one: RiskState, other: RiskState) -> RiskState:
    """A state that is no lower than either of two, whatever calm turns follow.

    Their clocks began at different times, so that spans are compared.
    """
    base, rest = (one, other) if one.floor >= other.floor else (other, one)
    last_signal, calm, contact = base.last_signal, base.calm_turns, base.contact
    if rest.floor > Level.NONE:  # else it has nothing to hold
        last_signal = max(last_signal, base.clock - (rest.clock - rest.last_signal))
        calm = min(calm, rest.calm_turns) if rest.floor == base.floor else calm
        contact = contact and (rest.contact or rest.floor < Level.HIGH)
    delay = max(base.delayed_until - base.clock, rest.delayed_until - rest.clock, 0.0)
    turn = max(one.turn, other.turn)
    families: dict[str, int] = {}
    for state in (one, other):
        for name, at in state.families:
            families[name] = max(families.get(name, 0), at + turn - state.turn)
    return replace(
        base,
        last_signal=last_signal,
        calm_turns=calm,
        contact=contact,
        delayed_until=base.clock + delay if delay else 0.0,
        accum=max(one.accum, other.accum),
        families=tuple(sorted(families.items())),
        turn=turn,
        episode=max(one.episode, other.episode),
        domains=one.domains | other.domains,
    )
