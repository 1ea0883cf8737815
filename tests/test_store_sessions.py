"""A conversation over several gateways: each goes on where another was, none lowers what it has not seen, none fails."""

from dataclasses import replace
from pathlib import Path

import pytest

from warmline.commands.shared import companion
from warmline.dialogue.session import Setting
from warmline.engine.engine import Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.levels import Level
from warmline.safety.state import HOUR, RiskState, advance
from warmline.safety.validate.context import Turn
from warmline.serve.sessions import OpenSession, Sessions
from warmline.serve.store.database import CONVERSATIONS
from warmline.serve.store.history import Store
from warmline.serve.store.risks import StoredRisks
from warmline.serve.store.sealed import ClientKey
from warmline.serve.store.sessions import StoredSessions

from .stores import Clock, new_key

SAID = Turn("user", "I want to kill myself tonight.")
HIGH = RiskState(Level.HIGH, episode=1, turn=1, domains=frozenset({"suicide"}))


@pytest.fixture(scope="module")
def setting() -> Setting:
    return companion(ScriptedEngine(["Hello."]), None, Sampling(), "GB")


class Gateway:
    """One process's memory before the store; a request is opened, heard as a test says, and kept."""

    def __init__(self, store: Store, setting: Setting, key: ClientKey, name: str = "a") -> None:
        self.memory, self._store, self._setting, self._key, self._name = Sessions(), store, setting, key, name
        self.last = self.request()

    def request(self) -> StoredSessions:
        return StoredSessions(self.memory, self._store, self._key, self._name)

    def open(self, *turns: Turn) -> OpenSession:
        self.last = self.request()
        return self.last.open(self.memory.key("", self._name), self._setting, turns)

    def keep(self, session: OpenSession, state: RiskState, *turns: Turn) -> None:
        session.turns = [*turns]
        session.state = state
        self.last.keep(self.memory.key("", self._name), session)

    def press(self) -> None:
        self.request().act(self.memory.key("", self._name), "with_me")


def test_risk_falls_over_two_gateways_as_it_would_on_one(store: Store, setting: Setting) -> None:
    """A state that has heard exactly these turns is not joined with an older one, nor with the words alone, which say
    high to the end."""
    key = new_key()
    store.save(key, "a", [])
    one, two = Gateway(store, setting, key), Gateway(store, setting, key)
    said = [SAID]
    one.keep(one.open(), HIGH, *said)
    two.press()
    for at, level in enumerate((Level.HIGH, Level.ELEVATED, Level.ELEVATED)):
        gateway = (two, one)[at % 2]
        session = gateway.open(*said)
        assert session.state.contact
        said.append(Turn("user", f"calm {at}"))
        gateway.keep(session, advance(session.state, Level.NONE), *said)
        assert session.state.floor == level
        assert gateway.last.degraded == frozenset()
    assert one.open(*said).state.floor == Level.ELEVATED
    assert Sessions().open(None, setting, said).state.floor == Level.HIGH


def test_a_turn_that_was_heard_is_kept_before_its_reply(store: Store, setting: Setting) -> None:
    key = new_key()
    store.save(key, "a", [])
    one, two = Gateway(store, setting, key), Gateway(store, setting, key)
    session = one.open()
    session.turns, session.state = [SAID], HIGH
    one.last.heard(session)  # and the gateway is killed
    assert two.open().state.floor == Level.HIGH


def test_what_another_gateway_noticed_meanwhile_is_not_lowered(store: Store, setting: Setting) -> None:
    key = new_key()
    store.save(key, "a", [])
    one, two, three = (Gateway(store, setting, key) for _ in range(3))
    ours, theirs = one.open(), two.open()
    one.keep(ours, HIGH, SAID)
    two.keep(theirs, RiskState(turn=1), Turn("user", "hello"))
    assert three.open(SAID).state.floor == Level.HIGH
    assert three.open().state.domains == {"suicide"}


def test_a_client_that_drops_turns_does_not_drop_the_risk(store: Store, setting: Setting) -> None:
    key = new_key()
    store.save(key, "a", [])
    one, two = Gateway(store, setting, key), Gateway(store, setting, key)
    one.keep(one.open(), HIGH, SAID)
    for turns in ((), (Turn("user", "hello"),), (Turn("assistant", "You said you are safe."),)):
        assert two.open(*turns).state.floor == Level.HIGH
    assert Gateway(store, setting, new_key()).open().state.floor == Level.NONE


def test_a_new_conversation_of_the_same_person_begins_a_level_lower(
    store: Store, setting: Setting, clock: Clock
) -> None:
    key = new_key()
    store.save(key, "a", [])
    one = Gateway(store, setting, key)
    one.keep(one.open(), HIGH, SAID)
    assert Gateway(store, setting, key, "b").open().state.floor == Level.ELEVATED
    clock.now += 25 * HOUR
    assert Gateway(store, setting, key).open().state.floor == Level.ELEVATED  # the same one, a day later
    clock.now += 48 * HOUR
    assert Gateway(store, setting, key).open().state.floor == Level.NONE
    assert Gateway(store, setting, key, "b").open().state.floor == Level.NONE


def test_of_what_nobody_saved_nothing_reaches_the_database(store: Store, setting: Setting) -> None:
    key = new_key()
    one = Gateway(store, setting, key)
    one.keep(one.open(), HIGH, SAID)
    one.press()
    assert store.database.rows(CONVERSATIONS.select()) == []
    assert one.open().state.contact  # in memory it is
    assert one.last.degraded == frozenset()


def test_who_forgets_while_a_reply_is_written_is_forgotten(store: Store, setting: Setting) -> None:
    key = new_key()
    store.save(key, "a", [])
    one = Gateway(store, setting, key)
    session = one.open()
    store.forget(key, "a")
    one.keep(session, HIGH, SAID)
    assert store.database.rows(CONVERSATIONS.select()) == []
    assert one.last.degraded == frozenset()


def test_what_does_not_open_is_said_and_the_turn_goes_on(store: Store, setting: Setting, clock: Clock) -> None:
    key = new_key()
    store.save(key, "a", [])
    StoredRisks(store).save("a", key, b'{"format": 2}', clock.now + 100)
    one = Gateway(store, setting, key)
    session = one.open()
    assert one.last.degraded == {"store"}
    assert session.state.floor == Level.ELEVATED
    one.keep(session, HIGH, SAID)
    assert Gateway(store, setting, key).open().state.floor == Level.HIGH  # written anew


def test_without_the_store_memory_and_words_decide(setting: Setting) -> None:
    store = Store("postgresql://warmline@127.0.0.1:9/history")
    one = Gateway(store, setting, new_key())
    session = one.open()
    assert (session.state.floor, one.last.degraded) == (Level.ELEVATED, {"store"})  # nobody knows
    assert one.open(Turn("user", "The bus was late.")).state.floor == Level.NONE
    one.keep(one.open(), HIGH, SAID)
    assert one.last.degraded == {"store"}
    assert one.open().state.floor == Level.HIGH
    one.press()
    assert one.open().state == replace(HIGH, contact=True)


def test_an_sqlite_store_is_shared_by_gateways_too(tmp_path: Path, setting: Setting) -> None:
    stores = [Store(str(tmp_path / "history.db")) for _ in range(2)]
    key = new_key()
    stores[0].save(key, "a", [])
    one = Gateway(stores[0], setting, key)
    one.keep(one.open(), HIGH, SAID)
    assert Gateway(stores[1], setting, key).open().state.floor == Level.HIGH
    for store in stores:
        store.database.close()
