"""Risk states of those who keep a history, in the same rows and under the same keys: any gateway finds them again."""

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Row, select

from warmline.serve.store.database import CONVERSATIONS, StoreError
from warmline.serve.store.history import TRIES, Store
from warmline.serve.store.sealed import AlteredError, ClientKey, Place, opened, seal, unwrap

NUM_OTHERS = 50  # of a person's other conversations whose risk a new one looks at: those kept longest from now


class RiskStore(Protocol):
    """Where a conversation's risk outlives its gateway. `key`: the conversation's name, as its client says it."""

    def load(self, key: str, client_key: ClientKey) -> bytes | None: ...
    def save(self, key: str, client_key: ClientKey, data: bytes, expires: float) -> bool: ...
    def forget(self, key: str, client_key: ClientKey) -> None: ...


class Found(NamedTuple):
    data: bytes
    version: int  # what a save must name to replace it


class StoredRisks:
    """A `RiskStore` in the conversations' rows. Nothing is kept of a conversation that nobody opted in to save.

    Raises StoreError and AlteredError.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def load(self, key: str, client_key: ClientKey) -> bytes | None:
        """What was saved last, until it expires."""
        found = self.find(key, client_key)
        return found.data if found is not None and found.data else None

    def find(self, key: str, client_key: ClientKey) -> Found | None:
        """None where the conversation is not kept; with empty data where its risk is not."""
        row = self._row(client_key, client_key.id_of(key))
        return None if row is None else Found(self._data(client_key, row), row.risk_version)

    def others(self, key: str, client_key: ClientKey) -> Iterator[bytes]:
        """The risk of the same person's other conversations. One that does not open is left out."""
        table = CONVERSATIONS.c
        now = self._store.now()
        of_others = (table.owner == client_key.owner, table.id != client_key.id_of(key))
        kept = select(table.id, table.wrapped_key, table.risk, table.risk_until, table.risk_version).where(
            *of_others, table.expires > now, table.risk_until > now
        )
        for row in self._store.database.rows(kept.order_by(table.risk_until.desc()).limit(NUM_OTHERS)):
            try:
                data = self._data(client_key, row)
            except AlteredError:
                continue
            if data:
                yield data

    def save(self, key: str, client_key: ClientKey, data: bytes, expires: float) -> bool:
        """Keep a state until `expires` (epoch seconds), whatever is kept; whether the conversation is one that is kept."""
        for _ in range(TRIES):
            found = self.find(key, client_key)
            if found is None:
                return False
            if self.replace(key, client_key, data, expires, found.version):
                return True
        raise StoreError("the store is busy")

    def replace(self, key: str, client_key: ClientKey, data: bytes, expires: float, version: int) -> bool:
        """Keep a state in place of that version; False if it was replaced meanwhile, or the conversation forgotten."""
        id_ = client_key.id_of(key)
        row = self._row(client_key, id_)
        if row is None:
            return False
        own = unwrap(client_key, row.wrapped_key, id_)
        table = CONVERSATIONS.c
        here = (table.owner == client_key.owner, table.id == id_, table.risk_version == version)
        new = {
            "risk": seal(own, data, Place(client_key.owner, id_, "risk", version + 1)),
            "risk_until": expires,
            "risk_version": version + 1,
        }
        return self._store.database.change(CONVERSATIONS.update().where(*here).values(new)) > 0

    def forget(self, key: str, client_key: ClientKey) -> None:
        """Forget a conversation's risk, and keep its turns."""
        table = CONVERSATIONS.c
        here = (table.owner == client_key.owner, table.id == client_key.id_of(key))
        gone = CONVERSATIONS.update().where(*here).values(risk=None, risk_until=None)
        if self._store.database.change(gone):
            self._store.database.scrub()

    def _row(self, client_key: ClientKey, id_: bytes) -> Row[Any] | None:
        table = CONVERSATIONS.c
        here = (table.owner == client_key.owner, table.id == id_, table.expires > self._store.now())
        columns = (table.id, table.wrapped_key, table.risk, table.risk_until, table.risk_version)
        return next(iter(self._store.database.rows(select(*columns).where(*here))), None)

    def _data(self, client_key: ClientKey, row: Row[Any]) -> bytes:
        if row.risk is None or row.risk_until <= self._store.now():
            return b""
        own = unwrap(client_key, row.wrapped_key, row.id)
        return opened(own, row.risk, Place(client_key.owner, row.id, "risk", row.risk_version))
