"""A database that is down, read-only, full, busy or no database: one plain line each time, and what can be read is read."""

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import event

from warmline.serve.store import database
from warmline.serve.store.database import StoreError
from warmline.serve.store.history import DAY, Store
from warmline.serve.store.risks import StoredRisks
from warmline.serve.store.sealed import ClientKey

from . import postgres
from .stores import Clock, new_key, talk

CANARY = "canary-of-the-failures"


@pytest.fixture
def own_server() -> Iterator[postgres.Server]:
    """A PostgreSQL server that a test may stop."""
    with postgres.running() as server:
        if server is None:
            pytest.skip("PostgreSQL is not installed")
        yield server


def told(do: Callable[[], object]) -> str:
    """The one line of a StoreError, which shows nothing of a statement, its values or the address."""
    with pytest.raises(StoreError) as caught:
        do()
    line = str(caught.value)
    assert "\n" not in line
    assert len(line) < 100
    assert not any(word in line for word in ("INSERT", "SELECT", CANARY, "history.db", "warmline-pg"))
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    return line


def everything(store: Store) -> list[Callable[[], object]]:
    key = new_key()
    risks = StoredRisks(store)
    return [
        lambda: store.save(key, "a", talk(CANARY)),
        lambda: store.load(key, "a"),
        lambda: store.conversations(key),
        lambda: [*store.export(key)],
        lambda: store.forget(key, "a"),
        lambda: store.forget_all(key),
        lambda: risks.load("a", key),
        lambda: risks.save("a", key, b"{}", 1.0),
        lambda: risks.forget("a", key),
        lambda: [*risks.others("a", key)],
    ]


def test_a_server_that_is_down_is_said_at_once_and_found_again(
    own_server: postgres.Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "REST_S", 0.5)
    address, key = own_server.new_database(), new_key()
    store = Store(address)
    store.save(key, "a", talk(CANARY))
    own_server.stop()
    assert told(lambda: store.load(key, "a")) == "the store cannot be reached"
    started = time.perf_counter()
    for do in everything(store):
        assert told(do) == "the store cannot be reached"
    assert time.perf_counter() - started < 0.1  # nobody waits for it again meanwhile
    starts_without = Store(address)  # a gateway starts whatever the database does
    assert told(lambda: starts_without.load(key, "a")) == "the store cannot be reached"
    own_server.start()
    time.sleep(0.6)
    for each in (store, starts_without):
        kept = each.load(key, "a")
        assert kept is not None
        assert kept.turns == tuple(talk(CANARY))
        each.database.close()


def test_a_host_that_nobody_answers_for_is_down() -> None:
    store = Store("postgresql://warmline@127.0.0.1:9/history")
    assert told(lambda: store.load(new_key(), "a")) == "the store cannot be reached"


def test_a_read_only_server_is_read_and_refuses_the_rest(database_server: postgres.Server) -> None:
    address, key, clock = database_server.new_database(), new_key(), Clock()
    writer = Store(address, now=clock)
    writer.save(key, "a", talk("one"))
    clock.now += 2 * DAY
    reader = Store(f"{address}&options=-c%20default_transaction_read_only%3Don", now=clock)
    assert [*told_of_writes(writer, reader, key)] == ["the store is read-only"] * 4


def test_a_read_only_file_is_read_and_refuses_the_rest(tmp_path: Path) -> None:
    key, clock = new_key(), Clock()
    writer = Store(str(tmp_path / "history.db"), now=clock)
    writer.save(key, "a", talk("one"))
    clock.now += 2 * DAY
    reader = Store(f"sqlite:///file:{tmp_path / 'history.db'}?mode=ro&uri=true", now=clock)
    assert [*told_of_writes(writer, reader, key)] == ["the store is read-only"] * 4


def told_of_writes(writer: Store, reader: Store, key: ClientKey) -> Iterator[str]:
    """What each kind of write to a store that can be read says; both are closed."""
    assert reader.load(key, "a") is not None
    assert len(reader.conversations(key)) == 1
    for do in (
        lambda: reader.save(key, "a", talk("one", CANARY)),
        lambda: reader.save(key, "b", talk(CANARY)),
        lambda: reader.forget(key, "a"),
        lambda: StoredRisks(reader).save("a", key, b"{}", 1.0),
    ):
        yield told(do)
    for store in (writer, reader):
        store.database.close()


def test_a_full_disk_is_said_and_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    key = new_key()
    store = Store(str(tmp_path / "history.db"))
    store.save(key, "a", talk("one"))
    store.database.close()
    event.listen(store.database.engine, "connect", lambda connection, _: connection.execute("PRAGMA max_page_count=12"))
    assert told(lambda: store.save(key, "a", talk("one", CANARY * 5000))) == "the store is full"
    kept = store.load(key, "a")
    assert kept is not None
    assert kept.turns == tuple(talk("one"))
    assert store.forget(key, "a")
    store.database.close()


def test_a_server_whose_disk_is_full_is_said(database_server: postgres.Server) -> None:
    address, key = database_server.new_database(), new_key()
    store = Store(address)
    store.save(key, "a", talk("one"))
    with database_server.connect(address.split("/")[3].split("?")[0]) as connection:
        connection.execute(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$;"
            "CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON warmline_conversations_1 EXECUTE FUNCTION no_room()"
        )
    assert told(lambda: store.save(key, "a", talk("one", CANARY))) == "the store is full"
    assert store.load(key, "a") is not None
    store.database.close()


def test_a_file_that_another_process_holds_is_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "BUSY_S", 0.1)
    store, key = Store(str(tmp_path / "history.db")), new_key()
    store.save(key, "a", talk("one"))
    other = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert told(lambda: store.save(key, "b", talk(CANARY))) == "the store is busy"
    assert store.load(key, "a") is not None
    other.execute("ROLLBACK")
    store.save(key, "b", talk("two"))
    other.close()
    store.database.close()


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    (tmp_path / "history.db").write_text("a diary of somebody's, which must stay as it is\n" * 100)
    before = (tmp_path / "history.db").read_bytes()
    store = Store(str(tmp_path / "history.db"))
    for do in everything(store):
        assert told(do) == "the store is damaged or not a database"
    assert (tmp_path / "history.db").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = Store(str(tmp_path / "file" / "history.db"))
    assert told(lambda: store.load(new_key(), "a")) == "the store cannot be opened"


def test_many_threads_share_the_connections(address: str) -> None:
    store, failed = Store(address), []

    def use(number: int) -> None:
        key = new_key()
        try:
            for at in range(5):
                store.save(key, str(number), talk(*(str(each) for each in range(at + 1))))
            assert len(store.conversations(key)) == 1
        except (StoreError, AssertionError) as error:
            failed.append(error)

    threads = [threading.Thread(target=use, args=[number]) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert failed == []
    store.database.close()
