"""Conversations that people chose to keep: saved, found again, exported and forgotten, with the key of their client only."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Row, func, select

from warmline.serve.store.database import CONVERSATIONS, Database, StoreError
from warmline.serve.store.sealed import AlteredError, ClientKey, Place, fresh_key, opened, seal, unwrap, wrap

DAY = 86_400.0  # seconds
KEEP_DAYS = 30.0  # since the last use
USED_AGAIN = DAY  # reading renews the term at most once in this time
MAX_BYTES = 4 * 1024**2  # of one conversation, as JSON
MAX_CONVERSATIONS = 1_000  # of one client's key
TRIES = 8  # of a save that other gateways overtake


class SavedTurn(NamedTuple):
    role: str  # user or assistant
    content: str
    t: float | None = None  # epoch seconds, where the client says them


class Saved(NamedTuple):
    """What a list shows of a conversation: no word of it."""

    session: str  # what the client calls it
    version: int
    created: float  # epoch seconds, as all times here
    used: float
    expires: float


class Conversation(NamedTuple):
    saved: Saved
    turns: tuple[SavedTurn, ...]


class ConflictError(ValueError):
    """A save that would lose turns which someone else saved, or bring back what was forgotten."""


class TooMuchError(ValueError):
    """A conversation that is too long to keep, or one too many."""


class Store:
    """The conversations of everybody who opted in. Saving one is opting in: what was not saved is not here.

    Raises StoreError when the database fails, AlteredError for a row that does not open.
    """

    def __init__(self, address: str, *, keep_days: float = KEEP_DAYS, now: Callable[[], float] = time.time) -> None:
        """`address`: a database URL or an SQLite file; `keep_days`: since the last use. Raises StoreError."""
        self.database = Database(address, now)
        self.now = now
        self._keep_s = keep_days * DAY
        with suppress(StoreError):  # a database that is down now may be up when somebody needs it
            self.database.sweep()

    def save(self, key: ClientKey, session: str, turns: Sequence[SavedTurn], version: int | None = None) -> Saved:
        """Keep a conversation. No turn that somebody saved is ever lost to somebody else's save:

        with `version`, the turns replace those of that version, and only those; without, they must go on from what is
        kept (if they are its beginning, all of them are kept already). Raises ConflictError and TooMuchError.
        """
        text = json.dumps(turns, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")
        if len(text) > MAX_BYTES:
            raise TooMuchError(f"a conversation of {len(text)} bytes is too long to keep: at most {MAX_BYTES}")
        was_there = version is not None
        for _ in range(TRIES):
            row = self._row(key, session)
            if row is None:
                if was_there:
                    raise ConflictError("the conversation is not kept any more: it was forgotten or has expired")
                saved = self._insert(key, session, text)
            else:
                was_there = True
                before = self._open(key, row)
                if version is None and before.turns[: len(turns)] == tuple(turns):
                    return before.saved
                if version not in (None, row.version):
                    raise ConflictError(f"version {version} was saved over: the newest is {row.version}")
                if version is None and tuple(turns[: len(before.turns)]) != before.turns:
                    raise ConflictError("the turns do not go on from those that are kept: load them, or send `version`")
                saved = self._replace(key, row, before.saved, text)
            if saved is not None:
                return saved
        raise StoreError("the store is busy")

    def load(self, key: ClientKey, session: str) -> Conversation | None:
        """A conversation, None if this key has none of that name. Reading is a use."""
        row = self._row(key, session)
        return None if row is None else self._renewed(key, self._open(key, row))

    def conversations(self, key: ClientKey) -> list[Saved]:
        """All of this key, the last used first. One that was altered is left out: it cannot say its name."""
        columns = [CONVERSATIONS.c[name] for name in ("id", "version", "created", "used", "expires", "wrapped_key")]
        found = select(*columns, CONVERSATIONS.c.name).where(*self._of(key)).order_by(CONVERSATIONS.c.used.desc())
        saved = []
        for row in self.database.rows(found):
            with suppress(AlteredError):
                saved.append(_saved(key, row))
        return saved

    def export(self, key: ClientKey) -> Iterator[Conversation]:
        """All of this key, one at a time. One that was altered is left out."""
        for row in self.database.rows(select(CONVERSATIONS.c.id).where(*self._of(key))):
            for whole in self.database.rows(select(CONVERSATIONS).where(*self._of(key, row.id))):
                with suppress(AlteredError):
                    yield self._open(key, whole)

    def forget(self, key: ClientKey, session: str) -> bool:
        """Destroy a conversation's key, its turns and its risk state; whether there was one."""
        return self._forget(*self._mine(key, key.id_of(session))) > 0

    def forget_all(self, key: ClientKey) -> int:
        """Everything of this key; how many conversations that were."""
        return self._forget(*self._mine(key))

    def _forget(self, *which: ColumnElement[bool]) -> int:
        gone = self.database.change(CONVERSATIONS.delete().where(*which))
        if gone:
            self.database.scrub()
        return gone

    def _mine(self, key: ClientKey, id_: bytes | None = None) -> list[ColumnElement[bool]]:
        table = CONVERSATIONS.c
        return [table.owner == key.owner, *([] if id_ is None else [table.id == id_])]

    def _of(self, key: ClientKey, id_: bytes | None = None) -> list[ColumnElement[bool]]:
        """As `_mine`, without what has expired."""
        return [*self._mine(key, id_), CONVERSATIONS.c.expires > self.now()]

    def _row(self, key: ClientKey, session: str) -> Row[Any] | None:
        return next(iter(self.database.rows(select(CONVERSATIONS).where(*self._of(key, key.id_of(session))))), None)

    def _insert(self, key: ClientKey, session: str, text: bytes) -> Saved | None:
        """None where another gateway was first."""
        counted = self.database.rows(select(func.count()).select_from(CONVERSATIONS).where(*self._of(key)))
        if counted[0][0] >= MAX_CONVERSATIONS:
            raise TooMuchError(f"{MAX_CONVERSATIONS} conversations are kept already; forget one first")
        id_, now = key.id_of(session), self.now()
        self.database.change(CONVERSATIONS.delete().where(*self._mine(key, id_), CONVERSATIONS.c.expires <= now))
        own = fresh_key()
        row = {
            "owner": key.owner,
            "id": id_,
            "version": 1,
            "created": now,
            "used": now,
            "expires": now + self._keep_s,
            "wrapped_key": wrap(key, own, id_),
            "name": seal(own, json.dumps(session).encode(), Place(key.owner, id_, "name")),
            "turns": seal(own, text, Place(key.owner, id_, "turns", 1)),
            "risk_version": 0,
        }
        done = self.database.change(self.database.insert(CONVERSATIONS).values(row).on_conflict_do_nothing())
        return Saved(session, 1, now, now, row["expires"]) if done else None

    def _replace(self, key: ClientKey, row: Row[Any], before: Saved, text: bytes) -> Saved | None:
        """None where another gateway was faster."""
        now, version = self.now(), row.version + 1
        own = unwrap(key, row.wrapped_key, row.id)
        new = {
            "version": version,
            "used": now,
            "expires": now + self._keep_s,
            "turns": seal(own, text, Place(key.owner, row.id, "turns", version)),
        }
        same = CONVERSATIONS.c.version == row.version
        done = self.database.change(CONVERSATIONS.update().where(*self._of(key, row.id), same).values(new))
        return before._replace(version=version, used=now, expires=now + self._keep_s) if done else None

    def _renewed(self, key: ClientKey, kept: Conversation) -> Conversation:
        now = self.now()
        if now - kept.saved.used < USED_AGAIN:
            return kept
        new = {"used": now, "expires": now + self._keep_s}
        with suppress(StoreError):  # read-only: it can still be read
            self.database.change(
                CONVERSATIONS.update().where(*self._of(key, key.id_of(kept.saved.session))).values(new)
            )
            return kept._replace(saved=kept.saved._replace(**new))
        return kept

    def _open(self, key: ClientKey, row: Row[Any]) -> Conversation:
        own = unwrap(key, row.wrapped_key, row.id)
        text = opened(own, row.turns, Place(key.owner, row.id, "turns", row.version))
        turns = json.loads(text.decode("utf-8", "surrogatepass"))
        return Conversation(_saved(key, row), tuple(SavedTurn(*turn) for turn in turns))


def _saved(key: ClientKey, row: Row[Any]) -> Saved:
    own = unwrap(key, row.wrapped_key, row.id)
    name = json.loads(opened(own, row.name, Place(key.owner, row.id, "name")))
    return Saved(name, row.version, row.created, row.used, row.expires)
