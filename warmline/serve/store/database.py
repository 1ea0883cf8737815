"""The database under the store: one table, SQLite or PostgreSQL, and its failures as one line."""

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import Column, Double, Index, Integer, LargeBinary, MetaData, Table, create_engine, event, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import URL, Engine, Row, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError, TimeoutError  # noqa: A004
from sqlalchemy.sql import Executable

BUSY_S = 5.0  # how long a statement may wait for another writer
CONNECT_S = 2  # how long a server may take to answer at all; libpq takes no less
REST_S = 10.0  # after a server could not be reached: so long nobody waits for it again
SWEEP_EVERY_S = 3600.0

METADATA = MetaData()
CONVERSATIONS = Table(
    "warmline_conversations_1",
    METADATA,
    Column("owner", LargeBinary(32), primary_key=True),
    Column("id", LargeBinary(32), primary_key=True),
    Column("version", Integer, nullable=False),  # counts up with each change of the turns
    Column("created", Double, nullable=False),  # epoch seconds, as all times here
    Column("used", Double, nullable=False),
    Column("expires", Double, nullable=False),
    Column("wrapped_key", LargeBinary, nullable=False),
    Column("name", LargeBinary, nullable=False),  # what the client calls the conversation, sealed
    Column("turns", LargeBinary, nullable=False),  # sealed
    Column("risk", LargeBinary),  # sealed
    Column("risk_until", Double),
    Column("risk_version", Integer, nullable=False, default=0),
)
Index("warmline_conversations_1_expires", CONVERSATIONS.c.expires)

_INSERTS: dict[str, Callable[[Table], Any]] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
# What went wrong, by SQLite's error name (its first two words) and by PostgreSQL's SQLSTATE (appendix A of its manual).
_WHY = {
    "SQLITE_FULL": "is full",
    "SQLITE_READONLY": "is read-only",
    "SQLITE_BUSY": "is busy",
    "SQLITE_LOCKED": "is busy",
    "SQLITE_CANTOPEN": "cannot be opened",
    "SQLITE_NOTADB": "is damaged or not a database",
    "SQLITE_CORRUPT": "is damaged or not a database",
    "SQLITE_IOERR": "cannot be read or written",
    "25006": "is read-only",
    "42501": "is not open to this user",
    "53100": "is full",
    "53300": "has too many connections",
    "57014": "is busy",
    "55P03": "is busy",
}


class StoreError(ValueError):
    """The store cannot do what was asked, in one line: no address, no key, no word of a conversation."""


def url_of(text_: str) -> URL:
    """The address of a store: a database URL, or the file of an SQLite database. Raises StoreError.

    >>> str(url_of("history.db")), str(url_of("postgresql://gateway@db/warmline"))
    ('sqlite:///history.db', 'postgresql+psycopg://gateway@db/warmline')
    """
    try:
        url = make_url(text_) if "://" in text_ else URL.create("sqlite", database=text_)
    except (ArgumentError, ValueError):  # the latter for a port that is none, and it quotes what stands there
        raise StoreError("store: expected sqlite:///FILE or postgresql://USER@HOST/NAME") from None
    name = url.get_backend_name()
    if name not in _INSERTS:
        raise StoreError(f"store: found a database of kind {name!r}, expected sqlite or postgresql")
    if name == "sqlite" and url.database in (None, "", ":memory:"):
        raise StoreError("store: an SQLite database needs a file: sqlite:///FILE")
    return url.set(drivername="postgresql+psycopg") if name == "postgresql" else url


class Database:
    """Statements, each a transaction of its own. What needs two is made safe by the version in the second."""

    def __init__(self, address: str, now: Callable[[], float] = time.time) -> None:
        """Raises StoreError for an address that is none. A database that is down is only asked when it is needed."""
        self._now = now
        self.engine = _engine(url_of(address))
        self.insert = _INSERTS[self.engine.dialect.name]
        self._setting_up = threading.Lock()
        self._is_set_up = False
        self._rest_until = 0.0  # on the monotonic clock
        self._swept_at = 0.0

    def rows(self, statement: Executable) -> list[Row[Any]]:
        """What a SELECT finds. Raises StoreError."""
        return self._run(statement)[0]

    def change(self, statement: Executable) -> int:
        """How many rows a statement changed. Raises StoreError."""
        return self._run(statement)[1]

    def _run(self, statement: Executable) -> tuple[list[Row[Any]], int]:
        self._set_up()
        found = self._execute(statement)
        if self._now() - self._swept_at >= SWEEP_EVERY_S:
            with suppress(StoreError):  # a database that is read-only keeps what it has; nobody is shown it
                self.sweep()
        return found

    def _execute(self, statement: Executable) -> tuple[list[Row[Any]], int]:
        if time.monotonic() < self._rest_until:
            raise StoreError("the store cannot be reached")
        try:
            with self.engine.connect() as connection:
                result = connection.execute(statement)
                return (list(result), 0) if result.returns_rows else ([], result.rowcount)
        except SQLAlchemyError as error:
            raise self._failed(error) from None

    def _failed(self, error: SQLAlchemyError) -> StoreError:
        why = _why(error)
        if why == "cannot be reached":
            self._rest_until = time.monotonic() + REST_S
        return StoreError(f"the store {why}")

    def _set_up(self) -> None:
        """The table, once there is a database to hold it, and what has expired goes."""
        with self._setting_up:
            if self._is_set_up:
                return
            if time.monotonic() < self._rest_until:
                raise StoreError("the store cannot be reached")
            try:
                with suppress(DBAPIError):  # another gateway may be creating it at this moment
                    METADATA.create_all(self.engine)
                METADATA.create_all(self.engine)
                if self.engine.dialect.name == "sqlite":
                    with suppress(DBAPIError), self.engine.connect() as connection:
                        connection.execute(text("PRAGMA journal_mode = WAL"))
            except SQLAlchemyError as error:
                raise self._failed(error) from None
            self._is_set_up = True

    def sweep(self) -> int:
        """Remove what has expired; how many conversations went. Raises StoreError."""
        self._set_up()
        now = self._swept_at = self._now()
        table = CONVERSATIONS.c
        gone = self._execute(CONVERSATIONS.delete().where(table.expires <= now))[1]
        old = CONVERSATIONS.update().where(table.risk_until <= now)
        self._execute(old.values(risk=None, risk_until=None))
        self.scrub()
        return gone

    def scrub(self) -> None:
        """After rows were removed: what SQLite's write-ahead log still holds of them goes too. Raises StoreError."""
        if self.engine.dialect.name == "sqlite":
            self._execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))

    def close(self) -> None:
        """Give back every connection."""
        self.engine.dispose()


def _engine(url: URL) -> Engine:
    """An engine that logs nothing, puts no parameter into an error, and waits for nobody for long."""
    if url.get_backend_name() == "sqlite":
        _own_file(url)
        engine = create_engine(
            url, isolation_level="AUTOCOMMIT", hide_parameters=True, connect_args={"timeout": BUSY_S}
        )
        event.listen(engine, "connect", _on_connect)
        return engine
    options = f"{url.query.get('options', '')} -c statement_timeout={int(1000 * BUSY_S)}".strip()
    try:
        return create_engine(
            url.difference_update_query(["options"]),
            isolation_level="AUTOCOMMIT",
            hide_parameters=True,
            pool_pre_ping=True,
            pool_timeout=BUSY_S,
            connect_args={
                "connect_timeout": CONNECT_S,
                "tcp_user_timeout": 1000 * CONNECT_S,  # of a connection whose other end has vanished
                "options": options,
            },
        )
    except (ImportError, NoSuchModuleError):
        raise StoreError("store: PostgreSQL needs psycopg: pip install 'warmline[postgres]'") from None


def _own_file(url: URL) -> None:
    """Nobody but this user may read a new database file; SQLite gives its logs the same rights."""
    file = Path(str(url.database))
    if not str(url.database).startswith("file:") and not file.exists():
        with suppress(OSError):  # opening it says what is wrong
            file.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_WRONLY, 0o600))


def _on_connect(connection: Any, _record: object) -> None:
    """Deleted bytes are overwritten with zeros; a commit survives a kill of the process (of power: up to a checkpoint)."""
    for pragma in ("secure_delete = ON", "synchronous = NORMAL", "temp_store = MEMORY"):
        connection.execute(f"PRAGMA {pragma}")


def _why(error: SQLAlchemyError) -> str:
    if isinstance(error, TimeoutError):
        return "is busy"  # all connections are taken
    orig = getattr(error, "orig", None)
    name = "_".join(str(getattr(orig, "sqlite_errorname", "")).split("_")[:2])
    state = getattr(orig, "sqlstate", None)
    if name in _WHY or state in _WHY:
        return _WHY.get(name) or _WHY[str(state)]
    if name or (state and not state.startswith(("08", "57P", "28", "3D"))):
        return f"failed ({name or state})"
    return "cannot be reached"
