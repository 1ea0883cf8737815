"""Risk holds: the state graph checked over its buckets, and random walks."""

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.safety.levels import Level
from warmline.safety.policy import plan_for
from warmline.safety.state import (
    DELAYED_DANGER,
    HOUR,
    MINUTE,
    SIGNALS,
    RiskState,
    add_signals,
    advance,
    confirm_contact,
    may_fall,
    reopen,
    repair,
)

TIMES = (0.0, 30 * MINUTE, 60 * MINUTE, 12 * HOUR, 24 * HOUR, 48 * HOUR, 72 * HOUR)
BUCKETS = list(product(Level, range(7), TIMES, (False, True), (False, True)))  # floor, calm, quiet, contact, delayed
STANCES = (frozenset(), frozenset({"deny"}), frozenset({"retract"}), frozenset({"joke"}), frozenset({"contact"}))


def bucket(floor: Level, calm: int, quiet: float, contact: bool, delayed: bool) -> RiskState:
    until = 1e6 + DELAYED_DANGER if delayed and floor == Level.EMERGENCY else 0.0
    return RiskState(floor, 1e6 + quiet, 1e6, calm, contact, until, episode=1 if floor else 0)


def allowed(state: RiskState) -> bool:
    """The table of decay, written again: whether a harmless turn in this state may end one level lower."""
    quiet = state.clock - state.last_signal
    if state.clock < state.delayed_until:
        return False
    return {
        Level.NONE: False,
        Level.ELEVATED: quiet >= 24 * HOUR or (quiet >= 60 * MINUTE and state.calm_turns >= 6),
        Level.HIGH: (quiet >= 30 * MINUTE and state.calm_turns >= 6) or (state.contact and state.calm_turns >= 2),
        Level.EMERGENCY: state.contact or (quiet >= 12 * HOUR and state.calm_turns >= 3),
    }[state.floor]


@pytest.mark.parametrize("stances", STANCES)
def test_no_floor_falls_without_a_listed_condition_nor_by_more_than_one(stances: frozenset[str]) -> None:
    fell = 0
    for floor, calm, quiet, contact, delayed in BUCKETS:
        before = bucket(floor, calm, quiet, contact, delayed)
        counted = replace(
            before,
            calm_turns=calm + (not stances & {"deny", "retract", "joke"}),
            contact=contact or "contact" in stances,
        )
        after = advance(before, Level.NONE, stances=stances)
        assert after.floor == floor - 1 if allowed(counted) else after.floor == floor
        fell += after.floor < floor
    assert fell > 20


def test_a_denial_alone_never_lowers_anything() -> None:
    for floor, calm, quiet, contact, delayed in BUCKETS:
        before = bucket(floor, calm, quiet, contact, delayed)
        if not allowed(before):
            assert advance(before, Level.NONE, stances=frozenset({"deny"})).floor == floor


def test_there_is_no_dead_end() -> None:
    """From every bucket, calm turns and time lead to `none`."""
    for each in BUCKETS:
        state = bucket(*each)
        for _ in range(40):
            state = advance(state, Level.NONE, seconds=6 * HOUR)
        assert state.floor == Level.NONE, each


def test_risk_raises_the_floor_at_once_and_every_entry_to_high_has_a_card() -> None:
    for floor, calm, quiet, contact, delayed in BUCKETS:
        for observed in (Level.ELEVATED, Level.HIGH, Level.EMERGENCY):
            after = advance(bucket(floor, calm, quiet, contact, delayed), observed)
            assert after.floor == max(floor, observed)
            assert after.calm_turns == 0
            if after.floor >= Level.HIGH:
                assert plan_for(after.floor, frozenset()).card in ("first", "full")


def test_what_was_taken_holds_emergency_for_48_hours_whoever_is_there() -> None:
    state = advance(RiskState(), Level.EMERGENCY, delayed=True)
    state = confirm_contact(state)
    for _ in range(20):
        state = advance(state, Level.NONE, seconds=2 * HOUR)
    assert state.floor == Level.EMERGENCY
    assert reopen(state, 1 * HOUR).floor == Level.EMERGENCY
    assert advance(state, Level.NONE, seconds=9 * HOUR).floor == Level.HIGH


def test_without_time_stamps_no_time_passes_and_a_clock_that_jumps_back_passes_none() -> None:
    state = advance(RiskState(), Level.HIGH)
    for _ in range(50):
        state = advance(state, Level.NONE, seconds=-3600.0)
    assert (state.floor, state.clock) == (Level.HIGH, 0.0)


def test_the_repair_button_ends_elevated_and_no_more() -> None:
    assert repair(advance(RiskState(), Level.ELEVATED)).floor == Level.NONE
    high = advance(RiskState(), Level.HIGH)
    assert repair(high) == high


@pytest.mark.parametrize(
    ("floor", "hours", "expected"),
    [(3, 1, 2), (2, 1, 1), (1, 1, 1), (1, 25, 0), (2, 71, 1), (3, 73, 0), (0, 1, 0)],
)
def test_a_new_session_opens_one_lower_and_forgets_after_72_hours(floor: int, hours: int, expected: int) -> None:
    assert reopen(RiskState(Level(floor)), hours * HOUR).floor == expected


def test_weak_signals_add_up_over_turns_only() -> None:
    once, level = add_signals(RiskState(), frozenset({"burden", "giving_away", "sleep"}))
    assert level < Level.HIGH  # one turn, however much it holds
    again, level = add_signals(once, frozenset({"finality", "arrangements"}))
    assert level == Level.HIGH
    _, level = add_signals(replace(again, accum=0.0, families=()), frozenset({"sleep"}))
    assert level == Level.NONE


def test_a_signal_counts_once_in_two_turns() -> None:
    state, _ = add_signals(RiskState(), frozenset({"sleep"}))
    state, _ = add_signals(state, frozenset({"sleep"}))
    assert state.accum == pytest.approx(0.85 * SIGNALS["sleep"])


turns = st.lists(
    st.tuples(
        st.sampled_from(list(Level)),
        st.sampled_from(STANCES),
        st.sampled_from([0.0, 60.0, 31 * MINUTE, 7 * HOUR, 30 * HOUR]),
        st.booleans(),
        st.frozensets(st.sampled_from(sorted(SIGNALS)), max_size=3),
    ),
    max_size=30,
)


@settings(max_examples=300, deadline=None)
@given(turns)
def test_random_walks_never_fall_by_two_nor_below_what_was_seen(walk: list) -> None:
    state = RiskState()
    for observed, stances, seconds, delayed, signals in walk:
        before, (state, by_sum) = state, add_signals(state, signals)
        seen = max(observed, by_sum)
        state = advance(state, seen, stances=stances, seconds=seconds, delayed=delayed and seen == Level.EMERGENCY)
        assert state.floor >= seen
        assert state.floor >= before.floor - 1
        assert state.clock >= before.clock
        if state.floor < before.floor:
            assert seen == Level.NONE


def test_may_fall_says_what_advance_does() -> None:
    for each in BUCKETS:
        state = bucket(*each)
        assert may_fall(state) == allowed(state)
