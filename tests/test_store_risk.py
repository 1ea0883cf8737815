"""Risk that outlives its gateway: found again with the client's key, for 72 hours, and only what was ours comes back."""

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from warmline.dialogue.session import Session
from warmline.safety.disclosure import Use
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.state import HOUR, SIGNALS, RiskState
from warmline.serve.store.database import CONVERSATIONS
from warmline.serve.store.history import Store
from warmline.serve.store.kept import Kept, KeptFormatError, carried, continued, from_json, to_json
from warmline.serve.store.risks import StoredRisks
from warmline.serve.store.sealed import AlteredError

from .stores import Clock, new_key, talk

HIGH = RiskState(
    Level.HIGH,
    clock=120.5,
    last_signal=60.0,
    calm_turns=1,
    accum=0.35,
    families=(("burden", 2), ("sleep", 1)),
    turn=3,
    episode=1,
    domains=frozenset({"suicide"}),
)
SESSION = Session(
    state=HIGH, last_at=5.0, card_level=Level.HIGH, minor="yes", questions_asked=1, use=Use(1.0, 2.0, 3.0, 4.5, True)
)
KEPT = Kept(SESSION, "ab" * 32, 1_800_000_000.0)


seconds = st.floats(0, 1e10)
states = st.builds(
    RiskState,
    floor=st.sampled_from(Level),
    clock=seconds,
    last_signal=seconds,
    calm_turns=st.integers(0, 1000),
    contact=st.booleans(),
    delayed_until=seconds,
    accum=st.floats(0, 10),
    families=st.dictionaries(st.sampled_from([*SIGNALS]), st.integers(0, 1000)).map(lambda d: tuple(sorted(d.items()))),
    turn=st.integers(0, 100_000),
    episode=st.integers(0, 1000),
    domains=st.frozensets(st.sampled_from(DOMAINS)),
)


@given(states)
def test_any_state_comes_back_exactly(state: RiskState) -> None:
    kept = KEPT._replace(session=replace(SESSION, state=state, use=None))
    assert from_json(to_json(kept)) == kept


def test_what_is_kept_of_a_session_is_all_but_its_words() -> None:
    session = replace(SESSION, turns=[], last_tick=None)
    assert from_json(to_json(KEPT)) == KEPT._replace(session=session)
    said = replace(SESSION, turns=[*talk("a-word-of-theirs")])  # type: ignore[list-item]
    assert b"a-word-of-theirs" not in to_json(KEPT._replace(session=said))


def spoilt(**changes: Any) -> bytes:
    tree = json.loads(to_json(KEPT))
    for path, value in changes.items():
        *parents, last = path.split("__")
        section = tree
        for name in parents:
            section = section[name]
        section[last] = value
    return json.dumps(tree).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        spoilt(format=2),
        spoilt(more=1),
        spoilt(state__floor=4),
        spoilt(state__floor=-1),
        spoilt(state__floor="2"),
        spoilt(state__floor=True),
        spoilt(state__clock=float("inf")),
        spoilt(state__clock=float("nan")),
        spoilt(state__clock=-1.0),
        spoilt(state__domains=["weather"]),
        spoilt(state__families=[["sleep", -1]]),
        spoilt(state__families=[["mood", 1]]),
        spoilt(state__contact=1),
        spoilt(card_level=9),
        spoilt(minor="maybe"),
        spoilt(digest="x"),
        spoilt(use={"started": 1.0}),
    ],
)
def test_what_is_no_state_of_ours_is_refused(data: bytes) -> None:
    with pytest.raises(KeptFormatError, match=r"none of this version's$"):
        from_json(data)


def test_a_conversation_goes_on_where_it_was_and_the_silence_was_time() -> None:
    for gap in (0.0, 1.0, 3600.0, 23 * HOUR):
        session = continued(KEPT, KEPT.at + gap)
        assert session.state == HIGH  # silence alone lowers nothing
        assert (session.card_level, session.minor, session.use) == (Level.HIGH, "yes", SESSION.use)
    assert continued(KEPT, KEPT.at - 1000).state == HIGH  # a clock that jumped back


def test_after_a_day_it_is_a_new_session_one_level_lower_and_after_three_nothing() -> None:
    for gap, floor in ((24 * HOUR, Level.ELEVATED), (71 * HOUR, Level.ELEVATED), (72 * HOUR, Level.NONE)):
        session = continued(KEPT, KEPT.at + gap)
        assert session.state.floor == floor
        assert (session.card_level, session.questions_asked, session.use) == (Level.NONE, 0, None)
    taken = KEPT._replace(session=replace(SESSION, state=replace(HIGH, floor=Level.EMERGENCY, delayed_until=1e9)))
    assert continued(taken, KEPT.at + 47 * HOUR).state.floor == Level.EMERGENCY  # what was taken still harms


def test_another_conversation_of_the_same_person_begins_one_level_lower() -> None:
    assert carried(KEPT, KEPT.at).state == RiskState(Level.ELEVATED, domains=frozenset({"suicide"}))
    assert carried(KEPT, KEPT.at).minor == "yes"
    grown = KEPT._replace(session=replace(SESSION, minor="no"))
    assert carried(grown, KEPT.at).minor == "unknown"


def test_a_state_is_kept_for_those_who_opted_in_and_for_nobody_else(store: Store, clock: Clock) -> None:
    risks, key = StoredRisks(store), new_key()
    assert not risks.save("a", key, b"{}", clock.now + 10)
    assert store.database.rows(select(CONVERSATIONS)) == []
    store.save(key, "a", [])
    assert risks.load("a", key) is None
    assert risks.save("a", key, to_json(KEPT), clock.now + 10)
    found = risks.load("a", key)
    assert found is not None
    assert from_json(found).session.state == HIGH
    assert risks.load("a", new_key()) is None
    assert risks.load("b", key) is None
    assert b"suicide" not in store.database.rows(select(CONVERSATIONS.c.risk))[0].risk


def test_it_expires_by_itself_and_the_turns_stay(store: Store, clock: Clock) -> None:
    risks, key = StoredRisks(store), new_key()
    store.save(key, "a", talk("one"))
    risks.save("a", key, to_json(KEPT), clock.now + 72 * HOUR)
    clock.now += 72 * HOUR
    assert risks.load("a", key) is None
    store.database.sweep()
    assert store.database.rows(select(CONVERSATIONS.c.risk))[0].risk is None
    assert store.load(key, "a") is not None


def test_saving_turns_keeps_the_risk_and_forgetting_takes_it(store: Store, clock: Clock) -> None:
    risks, key = StoredRisks(store), new_key()
    store.save(key, "a", talk("one"))
    risks.save("a", key, to_json(KEPT), clock.now + 10)
    store.save(key, "a", talk("one", "two"))
    assert risks.load("a", key) is not None
    risks.forget("a", key)
    assert risks.load("a", key) is None
    assert store.load(key, "a") is not None
    risks.save("a", key, to_json(KEPT), clock.now + 10)
    store.forget(key, "a")
    assert risks.load("a", key) is None
    assert not risks.save("a", key, to_json(KEPT), clock.now + 10)


def test_of_two_gateways_the_later_cannot_overwrite_what_it_has_not_seen(store: Store, clock: Clock) -> None:
    risks, key = StoredRisks(store), new_key()
    store.save(key, "a", [])
    seen = risks.find("a", key)
    assert seen is not None
    assert risks.replace("a", key, b"high", clock.now + 10, seen.version)
    assert not risks.replace("a", key, b"none", clock.now + 10, seen.version)
    found = risks.load("a", key)
    assert found is not None
    assert found.strip() == b"high"


def test_an_older_or_another_conversations_risk_does_not_open(store: Store, clock: Clock) -> None:
    risks, key = StoredRisks(store), new_key()
    for name in ("a", "b"):
        store.save(key, name, [])
        risks.save(name, key, to_json(KEPT), clock.now + 10)
    here = CONVERSATIONS.c.id == key.id_of("a")
    rows = {row.id: row.risk for row in store.database.rows(select(CONVERSATIONS))}
    old = rows[key.id_of("a")]
    risks.save("a", key, b"{}", clock.now + 10)
    for wrong in (old, rows[key.id_of("b")], b""):
        store.database.change(CONVERSATIONS.update().where(here).values(risk=wrong))
        with pytest.raises(AlteredError):
            risks.load("a", key)
        assert len([*risks.others("b", key)]) == 0


def test_the_persons_other_conversations_are_found(store: Store, clock: Clock) -> None:
    risks, key = StoredRisks(store), new_key()
    for name, on in (("a", key), ("b", key), ("c", new_key())):
        store.save(on, name, [])
        risks.save(name, on, to_json(KEPT._replace(at=ord(name))), clock.now + 10)
    assert [from_json(data).at for data in risks.others("a", key)] == [ord("b")]
    assert len([*risks.others("new", key)]) == 2
    clock.now += 10
    assert [*risks.others("new", key)] == []
