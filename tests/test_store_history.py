"""What people chose to keep: it comes back whole with their key, with no other, and not at all once it is forgotten."""

import threading
from pathlib import Path

import pytest
from sqlalchemy import func, select

from warmline.serve.store.database import CONVERSATIONS, StoreError, url_of
from warmline.serve.store.history import DAY, ConflictError, SavedTurn, Store, TooMuchError
from warmline.serve.store.sealed import AlteredError, KeyFormatError, client_key

from . import postgres
from .stores import Clock, folder_of, found_in, key_text, new_key, talk


def num_rows(store: Store) -> int:
    return store.database.rows(select(func.count()).select_from(CONVERSATIONS))[0][0]


def test_a_conversation_comes_back_as_it_was_saved(store: Store, clock: Clock) -> None:
    key = new_key()
    turns = [SavedTurn("user", "Ich bin müde 🌧 \ud83d \0 'x'; --", 12.5), SavedTurn("assistant", "", None)]
    saved = store.save(key, "Tägliches/…", turns)
    kept = store.load(key, "Tägliches/…")
    assert kept is not None
    assert kept.turns == tuple(turns)
    assert kept.saved == saved == ("Tägliches/…", 1, clock.now, clock.now, clock.now + 30 * DAY)
    assert store.conversations(key) == [saved]
    assert [*store.export(key)] == [kept]


def test_nothing_is_there_before_somebody_saves(store: Store) -> None:
    key = new_key()
    assert store.load(key, "a") is None
    assert (store.conversations(key), [*store.export(key)]) == ([], [])
    assert (store.forget(key, "a"), store.forget_all(key)) == (False, 0)
    assert num_rows(store) == 0


def test_another_key_finds_nothing_and_forgets_nothing(store: Store) -> None:
    key, other = new_key(), new_key()
    store.save(key, "a", talk("hello"))
    assert store.load(other, "a") is None
    assert store.conversations(other) == []
    assert [*store.export(other)] == []
    assert (store.forget(other, "a"), store.forget_all(other)) == (False, 0)
    assert store.load(key, "a") is not None


def test_the_same_name_under_two_keys_is_two_conversations(store: Store) -> None:
    keys = [new_key(), new_key()]
    for number, key in enumerate(keys):
        store.save(key, "default", talk(f"number {number}"))
    kept = [store.load(key, "default") for key in keys]
    assert [each.turns[0].content for each in kept if each] == ["number 0", "number 1"]
    rows = store.database.rows(select(CONVERSATIONS))
    assert len({row.id for row in rows}) == len({row.owner for row in rows}) == 2


@pytest.mark.parametrize("text", ["", "short", "A" * 43, "A" * 44, "!" * 43, "é" * 43, "x7Qf" * 10 + "x7", "x7Qf" * 11])
def test_what_is_no_key_of_32_random_bytes_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(KeyFormatError) as caught:
        client_key(text)
    assert len(text) < 6 or text not in str(caught.value)


def test_a_key_shows_nowhere_and_padding_does_not_change_it() -> None:
    text = key_text()
    key = client_key(text)
    assert key == client_key(text + "=")
    assert repr(key) == "ClientKey()"
    assert len({key.owner, key.wrapping, key.naming, key.hearing}) == 4
    assert client_key(key_text()) != key


@pytest.mark.parametrize("column", ["wrapped_key", "name", "turns"])
def test_what_was_altered_or_swapped_does_not_open(store: Store, column: str) -> None:
    key, other = new_key(), new_key()
    store.save(key, "a", talk("one"))
    store.save(key, "b", talk("two"))
    store.save(other, "a", talk("three"))
    before = {(row.owner, row.id): getattr(row, column) for row in store.database.rows(select(CONVERSATIONS))}
    own = before.pop((key.owner, key.id_of("a")))
    here = (CONVERSATIONS.c.owner == key.owner, CONVERSATIONS.c.id == key.id_of("a"))
    flipped = bytes([*own[:-1], own[-1] ^ 1])
    for wrong in (flipped, own[:-1], own[:5], b"", *before.values()):
        store.database.change(CONVERSATIONS.update().where(*here).values({column: wrong}))
        with pytest.raises(AlteredError, match=r"it was altered$"):
            store.load(key, "a")
        assert "one" not in [turn.content for each in store.export(key) for turn in each.turns]
    store.database.change(CONVERSATIONS.update().where(*here).values({column: own}))
    assert store.load(key, "a") is not None


def test_an_older_version_of_the_turns_does_not_pass_for_the_newest(store: Store) -> None:
    key = new_key()
    store.save(key, "a", talk("one"))
    old = store.database.rows(select(CONVERSATIONS.c.turns))[0].turns
    store.save(key, "a", talk("one", "two"))
    store.database.change(CONVERSATIONS.update().values(turns=old))
    with pytest.raises(AlteredError):
        store.load(key, "a")


def test_rows_say_nothing_of_the_person_and_little_of_the_length(store: Store) -> None:
    key = new_key()
    store.save(key, "a-name-of-theirs", talk("x"))
    store.save(key, "b", talk("x" * 500))
    rows = store.database.rows(select(CONVERSATIONS))
    assert all(b"a-name-of-theirs" not in bytes(value) for row in rows for value in row if isinstance(value, bytes))
    assert len({len(row.turns) for row in rows}) == 1
    assert len({row.turns[:12] for row in rows} | {row.name[:12] for row in rows}) == 4  # nonces


def test_a_save_goes_on_from_what_is_kept(store: Store, clock: Clock) -> None:
    key = new_key()
    store.save(key, "a", talk("one", "two"))
    clock.now += 60
    saved = store.save(key, "a", talk("one", "two", "three"))
    assert (saved.version, saved.created, saved.used) == (2, clock.now - 60, clock.now)
    late = store.save(key, "a", talk("one", "two"))  # came late: nothing of it is missing
    assert late == saved
    kept = store.load(key, "a")
    assert kept is not None
    assert [turn.content for turn in kept.turns] == ["one", "two", "three"]


def test_a_save_that_would_lose_turns_is_refused(store: Store) -> None:
    key = new_key()
    store.save(key, "a", talk("one", "two"))
    with pytest.raises(ConflictError, match="do not go on"):
        store.save(key, "a", talk("one", "another"))
    store.save(key, "a", talk("one", "another"), version=1)
    with pytest.raises(ConflictError, match="version 1 was saved over: the newest is 2"):
        store.save(key, "a", talk("one", "third"), version=1)
    kept = store.load(key, "a")
    assert kept is not None
    assert [turn.content for turn in kept.turns] == ["one", "another"]


def test_a_save_of_a_version_does_not_bring_back_what_was_forgotten(store: Store) -> None:
    key = new_key()
    version = store.save(key, "a", talk("one")).version
    store.forget(key, "a")
    with pytest.raises(ConflictError, match="not kept any more"):
        store.save(key, "a", talk("one", "two"), version)
    assert num_rows(store) == 0


def test_of_two_gateways_that_write_at_once_neither_loses_a_turn(address: str) -> None:
    """Each writer loads, adds a turn of its own and saves, again until its save is taken."""
    stores = [Store(address), Store(address)]
    key = new_key()
    stores[0].save(key, "a", [])
    conflicts, failed = [], []

    def write(number: int) -> None:
        store = stores[number % 2]
        for at in range(10):
            while True:
                kept = store.load(key, "a")
                assert kept is not None
                try:
                    store.save(key, "a", [*kept.turns, SavedTurn("user", f"{number}.{at}")], kept.saved.version)
                    break
                except ConflictError:
                    conflicts.append(number)
                except StoreError as error:
                    failed.append(str(error))

    threads = [threading.Thread(target=write, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    kept = stores[1].load(key, "a")
    assert kept is not None
    assert sorted(turn.content for turn in kept.turns) == sorted(f"{n}.{at}" for n in range(4) for at in range(10))
    assert kept.saved.version == 41
    assert failed == []
    for store in stores:
        store.database.close()


def test_two_gateways_that_create_one_conversation_at_once_make_one(address: str) -> None:
    stores = [Store(address) for _ in range(4)]
    key = new_key()
    results: list[object] = []

    def create(store: Store) -> None:
        try:
            results.append(store.save(key, "a", talk("one")).version)
        except ConflictError as error:
            results.append(error)

    threads = [threading.Thread(target=create, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == [1, 1, 1, 1]
    assert num_rows(stores[0]) == 1
    for store in stores:
        store.database.close()


def test_thirty_days_after_the_last_use_it_is_gone(store: Store, clock: Clock) -> None:
    key = new_key()
    store.save(key, "read", talk("one"))
    store.save(key, "left", talk("two"))
    clock.now += 29 * DAY
    assert store.load(key, "read") is not None
    clock.now += 2 * DAY
    assert store.load(key, "left") is None  # whether it was swept or not
    assert [each.session for each in store.conversations(key)] == ["read"]
    assert num_rows(store) == 1  # the statements before have swept it
    clock.now += 29 * DAY
    assert [*store.export(key)] == []
    assert num_rows(store) == 0


def test_what_expired_while_nobody_was_there_goes_at_the_start(address: str, clock: Clock) -> None:
    key = new_key()
    first = Store(address, keep_days=2, now=clock)
    first.save(key, "a", talk("one"))
    first.database.close()
    clock.now += 2 * DAY
    second = Store(address, now=clock)
    assert num_rows(second) == 0
    second.save(key, "a", talk("anew"))
    assert len(second.conversations(key)) == 1
    second.database.close()


def test_an_expired_row_that_still_stands_is_no_obstacle(store: Store, clock: Clock) -> None:
    key = new_key()
    store.save(key, "a", talk("old"))
    store.database.change(CONVERSATIONS.update().values(expires=clock.now))
    assert store.save(key, "a", talk("new")).version == 1


def test_a_conversation_too_long_or_one_too_many_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_key()
    monkeypatch.setattr("warmline.serve.store.history.MAX_BYTES", 1000)
    monkeypatch.setattr("warmline.serve.store.history.MAX_CONVERSATIONS", 2)
    with pytest.raises(TooMuchError, match="too long to keep: at most 1000"):
        store.save(key, "a", talk("x" * 1000))
    store.save(key, "a", [])
    store.save(key, "b", [])
    with pytest.raises(TooMuchError, match="2 conversations are kept already"):
        store.save(key, "c", [])
    store.save(key, "a", talk("goes on"))
    store.save(new_key(), "c", [])


def test_after_forgetting_the_right_key_finds_nothing(store: Store) -> None:
    key = new_key()
    store.save(key, "a", talk("one"))
    store.save(key, "b", talk("two"))
    assert store.forget(key, "a")
    assert store.load(key, "a") is None
    assert store.load(key, "b") is not None
    assert store.forget_all(key) == 1
    assert num_rows(store) == 0


def test_the_wrapped_key_of_what_was_forgotten_is_in_no_file(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path / 'db' / 'history.db'}")
    key = new_key()
    for name in ("a", "b"):
        store.save(key, name, talk("one", name * 5000))
    store.save(key, "a", talk("one", "a" * 5000, "three"))
    wrapped, turns = {}, {}
    for row in store.database.rows(select(CONVERSATIONS)):
        wrapped[row.id], turns[row.id] = row.wrapped_key, row.turns[2000:2050]
    a, b = key.id_of("a"), key.id_of("b")
    folder = folder_of(store)
    assert {needle for _, needle in found_in([folder], [wrapped[a], turns[a]])} == {wrapped[a], turns[a]}
    store.forget(key, "a")
    assert [*found_in([folder], [wrapped[a], turns[a]])] == []
    assert [*found_in([folder], [wrapped[b]])] != []  # the search can find what is there
    assert oct((folder / "history.db").stat().st_mode)[-3:] == "600"
    store.database.close()


def test_the_wrapped_key_of_what_was_forgotten_is_in_no_row(database_server: postgres.Server) -> None:
    address = database_server.new_database()
    store = Store(address)
    key = new_key()
    store.save(key, "a", talk("one"))
    wrapped = store.database.rows(select(CONVERSATIONS.c.wrapped_key))[0].wrapped_key
    with database_server.connect(address.split("/")[3].split("?")[0]) as connection:
        query = b"SELECT count(*) FROM warmline_conversations_1 WHERE wrapped_key = %s"
        assert connection.execute(query, [wrapped]).fetchall() == [(1,)]
        store.forget(key, "a")
        assert connection.execute(query, [wrapped]).fetchall() == [(0,)]
    store.database.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("mysql://a:secret@b/c", "'mysql', expected sqlite or postgresql"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("://", "expected sqlite:///FILE"),
    ],
)
def test_an_address_that_is_none_is_refused_in_one_line(text: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        url_of(text)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)
