"""One request's sessions where its client keeps a history: what this process remembers, joined with what the store does."""

import hmac
from collections.abc import Sequence
from dataclasses import fields, replace
from hashlib import sha256

from warmline.dialogue.session import Session, Setting
from warmline.safety.levels import Level
from warmline.safety.state import FORGET_AFTER
from warmline.safety.validate.context import Turn
from warmline.serve.sessions import ACTIONS, Action, Heard, OpenSession, Sessions, higher, merged
from warmline.serve.store.database import StoreError
from warmline.serve.store.history import TRIES, Store
from warmline.serve.store.kept import Kept, KeptFormatError, carried, continued, from_json, to_json
from warmline.serve.store.risks import Found, StoredRisks
from warmline.serve.store.sealed import AlteredError, ClientKey


class StoredSessions:
    """As `Sessions`, for one conversation of one client. Nothing the store does raises: `degraded` says that it failed.

    A conversation that nobody opted in to keep is only remembered here, in memory.
    """

    def __init__(self, sessions: Sessions, store: Store, client_key: ClientKey, name: str) -> None:
        self._sessions = sessions
        self._risks = StoredRisks(store)
        self._now = store.now
        self._key, self._name = client_key, name
        self._seen: int | None = None  # the version of the risk that this request knows of
        self.degraded: frozenset[str] = frozenset()

    def open(
        self,
        key: str | None,
        setting: Setting,
        turns: Sequence[Turn],
        times: Sequence[float | None] = (),
        text: str | None = None,
    ) -> OpenSession:
        """The session of a request: what another gateway kept goes on here, as if this one had heard it.

        Where the store fails and neither turns nor memory say how things stood, they are taken to be elevated.
        """
        session = self._sessions.open(key, setting, turns, times, text)
        try:
            kept = self._load()
            others = self._others() if kept is None and session.origin is None else []
        except (StoreError, AlteredError, KeptFormatError):
            self.degraded = frozenset({"store"})
            if session.origin is None and not turns:
                session.state = replace(session.state, floor=max(session.state.floor, Level.ELEVATED))
            return session
        if kept is not None:
            return self._joined(session, kept, turns)
        for other in others:
            known = carried(other, self._now())
            session.state = higher(session.state, known.state)
            session.minor = "yes" if known.minor == "yes" else session.minor
        return session

    def keep(self, key: str | None, session: Session) -> None:
        """Keep a session after its turn, here and in the store."""
        self._sessions.keep(key, session)
        self.heard(session)

    def heard(self, session: Session) -> None:
        """Keep a session in the store as soon as its turn was heard: a gateway may end before the reply does.

        What another gateway has kept meanwhile is not lowered.
        """
        try:
            for _ in range(TRIES):
                found = self._risks.find(self._name, self._key)
                if found is None or self._replaced(found, session):
                    return
            raise StoreError("the store is busy")
        except (StoreError, AlteredError):
            self.degraded = frozenset({"store"})

    def act(self, key: str, action: Action) -> Session | None:
        """What a button of the card asks for, here and in the store."""
        session = self._sessions.act(key, action)
        try:
            kept = self._load()
            if kept is None:
                return session
            changed = replace(kept.session, state=ACTIONS[action](kept.session.state))
            data = to_json(kept._replace(session=changed))
            if self._risks.replace(self._name, self._key, data, kept.at + FORGET_AFTER, self._seen or 0):
                return session or changed
        except (StoreError, AlteredError, KeptFormatError):
            self.degraded = frozenset({"store"})
        return session

    def _load(self) -> Kept | None:
        found = self._risks.find(self._name, self._key)
        if found is None or not found.data:
            return None
        self._seen = found.version
        return from_json(found.data)

    def _others(self) -> list[Kept]:
        return [from_json(data) for data in self._risks.others(self._name, self._key)]

    def _joined(self, session: OpenSession, kept: Kept, turns: Sequence[Turn]) -> OpenSession:
        """Where the state in the store has heard exactly these turns it goes on; else neither lowers the other."""
        known = continued(kept, self._now())
        if kept.digest != self._digest(turns):
            known = merged(known, session)
        elif session.origin is not None and session.opened == session.origin.now:
            return session  # so has the one in memory
        known.turns, known.use = session.turns, known.use or session.use
        heard = session.opened and Heard(session.opened.digest, known.state)
        return OpenSession(
            **{each.name: getattr(known, each.name) for each in fields(Session)}, origin=session.origin, opened=heard
        )

    def _replaced(self, found: Found, session: Session) -> bool:
        now = self._now()
        bare = Session(**{each.name: getattr(session, each.name) for each in fields(Session)})
        bare.turns = []
        if found.data and found.version != self._seen:
            try:
                bare = merged(continued(from_json(found.data), now), bare)
            except KeptFormatError:
                self.degraded = frozenset({"store"})
        data = to_json(Kept(bare, self._digest(session.turns), now))
        done = self._risks.replace(self._name, self._key, data, now + FORGET_AFTER, found.version)
        if done:
            self._seen = found.version + 1
        return done

    def _digest(self, turns: Sequence[Turn]) -> str:
        """Of what the user said, the same in every gateway: nobody without the client's key can tell what it was."""
        digest = hmac.new(self._key.hearing, digestmod=sha256)
        for turn in turns:
            if turn.role == "user":
                said = turn.content.encode("utf-8", "surrogatepass")
                digest.update(len(said).to_bytes(8, "big") + said)
        return digest.hexdigest()
