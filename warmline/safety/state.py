"""Risk that was noticed stays noticed: what a conversation's state is, and the only ways in which it falls."""

from dataclasses import dataclass, replace

from warmline.safety.levels import Level

MINUTE, HOUR = 60.0, 3600.0
DELAYED_DANGER = 48 * HOUR  # after taking something one may feel fine, and not be
FORGET_AFTER = 72 * HOUR  # how long a server may keep a state

# What lowers nothing and is no calm turn either: taking it back is not the same as being safe.
UNCALM = frozenset({"deny", "retract", "joke"})

# Weak signals: how much each adds, at most once in two turns.
SIGNALS = {
    "sleep": 0.10,
    "isolation": 0.15,
    "loss_event": 0.15,
    "hopeless": 0.25,
    "burden": 0.35,
    "entrapment": 0.25,
    "giving_away": 0.35,
    "arrangements": 0.30,
    "finality": 0.35,
    "sudden_calm": 0.20,
    "means_or_place_query": 0.40,
    "countdown_or_date": 0.30,
    "apology_round": 0.25,
    "anger_self": 0.20,
}
GRAVE = frozenset({"burden", "giving_away", "arrangements", "finality", "means_or_place_query", "countdown_or_date"})
KEPT = 0.85  # of the sum, from turn to turn
SUM_ELEVATED, SUM_HIGH = 0.50, 0.80


@dataclass(frozen=True)
class RiskState:
    """What is remembered of the turns so far. No text."""

    floor: Level = Level.NONE
    clock: float = 0.0  # seconds that have passed in this conversation
    last_signal: float = 0.0  # on that clock
    calm_turns: int = 0
    contact: bool = False  # somebody is with them, or a service was reached
    delayed_until: float = 0.0  # on that clock: until then the floor is `emergency`
    accum: float = 0.0
    families: tuple[tuple[str, int], ...] = ()  # weak signals seen, and the turn of each
    turn: int = 0
    episode: int = 0  # counts up whenever risk begins anew
    domains: frozenset[str] = frozenset()


def add_signals(state: RiskState, signals: frozenset[str]) -> tuple[RiskState, Level]:
    """The state after the weak signals of one more user turn, and the level that their sum gives."""
    seen = {name: turn for name, turn in state.families if state.turn + 1 - turn < 8}
    fresh = [name for name in signals if name in SIGNALS and state.turn + 1 - seen.get(name, -9) >= 2]
    accum = KEPT * state.accum + sum(SIGNALS[name] for name in fresh)
    seen |= dict.fromkeys(fresh, state.turn + 1)
    new = replace(state, accum=accum, families=tuple(sorted(seen.items())), turn=state.turn + 1)
    if accum >= SUM_HIGH and len(seen) >= 2 and GRAVE & seen.keys() and len({*seen.values()}) >= 2:
        return new, Level.HIGH
    return new, Level.ELEVATED if accum >= SUM_ELEVATED and len(seen) >= 2 else Level.NONE


def advance(
    state: RiskState,
    observed: Level,
    *,
    stances: frozenset[str] = frozenset(),
    domains: frozenset[str] = frozenset(),
    delayed: bool = False,
    seconds: float = 0.0,
) -> RiskState:
    """The state after one more user turn, whose weak signals `add_signals` has counted.

    `observed`: the turn's own level. `delayed`: it told of something taken, which harms later. `seconds`: time since the
    turn before; a clock that jumps back passes no time.
    """
    clock = state.clock + max(0.0, seconds)
    contact = state.contact or "contact" in stances
    if observed > Level.NONE:
        return replace(
            state,
            floor=max(state.floor, observed),
            clock=clock,
            last_signal=clock,
            calm_turns=0,
            contact=contact and observed < Level.HIGH,
            delayed_until=clock + DELAYED_DANGER if delayed else state.delayed_until,
            episode=state.episode + (state.floor == Level.NONE),
            domains=state.domains | domains,
        )
    calm = state.calm_turns + (not stances & UNCALM)
    state = replace(state, clock=clock, calm_turns=calm, contact=contact)
    return _step_down(state) if may_fall(state) else state


def may_fall(state: RiskState) -> bool:
    """Whether the floor may go down by one, by the table of decay."""
    quiet = state.clock - state.last_signal  # seconds
    if state.clock < state.delayed_until:
        return False
    if state.floor == Level.EMERGENCY:
        return state.contact or (quiet >= 12 * HOUR and state.calm_turns >= 3)
    if state.floor == Level.HIGH:
        return (state.calm_turns >= 6 and quiet >= 30 * MINUTE) or (state.contact and state.calm_turns >= 2)
    if state.floor == Level.ELEVATED:
        return (state.calm_turns >= 6 and quiet >= 60 * MINUTE) or quiet >= 24 * HOUR
    return False


def _step_down(state: RiskState) -> RiskState:
    floor = Level(state.floor - 1)
    if floor == Level.NONE:
        return replace(state, floor=floor, calm_turns=0, accum=0.0, families=(), contact=False, domains=frozenset())
    return replace(state, floor=floor, calm_turns=0)


def confirm_contact(state: RiskState) -> RiskState:
    """The card's button "Someone is with me"."""
    return replace(state, contact=True)


def repair(state: RiskState) -> RiskState:
    """The button "This isn't about me being in danger": ends `elevated` at once; no single press ends more."""
    if state.floor != Level.ELEVATED:
        return state
    return _step_down(state)


def reopen(state: RiskState, seconds: float) -> RiskState:
    """The state at the start of a new session, `seconds` after the last turn: one level lower; nothing after 72 hours."""
    if seconds >= FORGET_AFTER:
        return RiskState()
    if state.clock + seconds < state.delayed_until:
        return replace(state, clock=state.clock + seconds, calm_turns=0)
    floor = Level(max(state.floor - 1, Level.NONE))
    if state.floor == Level.ELEVATED and seconds < 24 * HOUR:
        floor = Level.ELEVATED
    return replace(RiskState(), floor=floor, clock=0.0, domains=state.domains if floor else frozenset())
