"""One person's conversation: read the turn, hold its risk, show the card first, release what passed the rules."""

import math
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, date, datetime

from warmline.dialogue.ladder import climb
from warmline.dialogue.stream import stream
from warmline.dialogue.tally import Audit, Tally
from warmline.engine.engine import Engine, Message, Reading, Sampling
from warmline.safety.assess import NUM_TURNS, step
from warmline.safety.detect import Detector, Observation
from warmline.safety.disclosure import Use, due, minor_of, shown, texts_for, turned
from warmline.safety.grammar.grammar import lark, spec_for
from warmline.safety.levels import Level, Reason
from warmline.safety.policy import Plan, PolicyError, guarded, overlay_for, plan_for
from warmline.safety.release import Released
from warmline.safety.resources.card import Card, card_for
from warmline.safety.resources.directory import Directory
from warmline.safety.state import RiskState
from warmline.safety.validate.context import Minor, ReplyContext, Turn, spoken
from warmline.safety.validate.notice import notice_for
from warmline.safety.validate.release import Validated

GROUPS = {"abuse_child": "child", "minor_signal": "child", "abuse_victim": "abuse", "eating": "eating"}
NUM_JUDGED = 200  # of the newest turns that a reply is judged by: each judgement reads them all


@dataclass(frozen=True)
class Setting:
    """What the operator chose, the same for every conversation."""

    engine: Engine
    detector: Detector
    directory: Directory
    system_prompt: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    country: str | None = None  # two letters
    question_policy: str = "none"
    question_owner: str = ""  # the clinician who answers for `safety_check`
    audit: Audit | None = None  # where each turn is counted; None: nothing is kept


@dataclass
class Session:
    """What is remembered of a conversation while it lasts. In memory only."""

    turns: list[Turn] = field(default_factory=list)  # what was said and what was released
    state: RiskState = field(default_factory=RiskState)
    last_at: float | None = None  # seconds, the latest time stamp of a user turn
    last_tick: float | None = None  # seconds on our own clock, of the last turn that had no time stamp
    card_level: Level = Level.NONE  # the highest level of this episode that a card was shown for
    minor: Minor = "unknown"
    questions_asked: int = 0  # safety questions in this episode
    use: Use | None = None  # since when, and what was said about talking with an AI


@dataclass(frozen=True)
class Answer:
    """What became of a turn: the last thing that `respond` gives. No text of the user's."""

    level: Level
    domains: frozenset[str]
    reply_source: str  # of policy.TIERS
    reply: str  # what was released, as one text
    card: Card | None
    readings: tuple[Reading, ...] = ()
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()
    degraded: frozenset[str] = frozenset()  # of audit.PARTS, and `audit`: what failed or is absent


def resume(setting: Setting, turns: Sequence[Turn], times: Sequence[float | None] = ()) -> Session:
    """The session after earlier turns that someone else kept: the risk of the newest is read again, nothing is generated.

    `times`: seconds of each turn where known. Turns of other roles than user and assistant are left out.
    """
    session = Session()
    first_read = len(turns) - NUM_TURNS
    for number, turn in enumerate(turns):
        if turn.role == "user" and number >= first_read:
            seconds = _since(session, times[number] if number < len(times) else None)
            _read(setting, session, turn.content, seconds)
        if turn.role in ("user", "assistant"):
            session.turns.append(turn)
    return session


def respond(
    setting: Setting, session: Session, text: str, now: float | None = None
) -> Generator[Released | Answer, None, None]:
    """Answer one user turn: the card where the level asks for one, then released words, then the `Answer`.

    `now`: seconds on any clock; by default risk is held by one that nobody can set. A caller that stops halfway leaves
    the session as the person has seen it, and the turn is counted all the same. Raises PolicyError for a setting that
    nobody answers for, and nothing else: whatever breaks, there is a card or a notice.
    """
    tally = Tally(setting.audit, setting.country, setting.directory.version)
    try:
        seconds = _ticked(session) if now is None else _since(session, now)
        session.use = session.use and turned(session.use, time.time() if now is None else now)
        yield from _respond(setting, session, text, seconds, tally)
    except PolicyError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost line: a defect of ours must not be met with silence
        yield from _without_a_reply(setting, session, type(error).__name__, tally)
    finally:
        tally.keep()


def help_now(setting: Setting, session: Session) -> Card:
    """The card, whenever somebody asks for it: no engine and no detector takes part."""
    return _card(setting, session, session.state.floor, session.state.domains, _said(session))


def told(session: Session, now: float, utc_offset_s: float | None = None) -> tuple[str, ...]:
    """What the app must say now about talking with an AI and about rest; the session remembers that it was shown.

    Call it when the conversation opens and after each answer. `utc_offset_s`: the person's clock, where known.
    """
    session.use = session.use or Use(now, None, now, 0.0, night_break_shown=False)
    disclosure = due(session.use, now, session.state.floor, session.minor, utc_offset_s)
    texts = texts_for(disclosure, session.use, spoken(_said(session)))
    session.use = shown(session.use, disclosure, now, utc_offset_s)
    return texts


def _said(session: Session) -> str:
    """The user's newest turns, by which the language is told."""
    return "\n".join([turn.content for turn in session.turns if turn.role == "user"][-3:])


def _respond(
    setting: Setting, session: Session, text: str, seconds: float, tally: Tally
) -> Generator[Released | Answer, None, None]:
    started = time.perf_counter()
    seen, level = _read(setting, session, text, seconds)
    session.turns.append(Turn("user", text))
    domains = session.state.domains | seen.domains
    plan = _plan(setting, session, seen, level)
    tally.seen, tally.level, tally.floor, tally.domains = seen, level, session.state.floor, domains
    tally.card, tally.ms = plan.card, {**seen.ms, "detect": 1e3 * (time.perf_counter() - started)}
    tally.degraded = seen.degraded | ({"directory"} if setting.directory.degraded else set())
    card = _card(setting, session, level, domains, text) if plan.card in ("first", "full") else None
    if card is not None and level > session.card_level:
        session.card_level = level
        yield card
    elif card is not None:
        tally.card = "pinned"
    context = _context(session, domains, level, text, plan, strict="guarded" in seen.degraded)
    tally.language = context.lang
    pieces: list[Validated] = []
    try:
        yield from _speak(setting, session, plan, context, pieces, tally)
    finally:  # someone who goes away has seen what was released until then
        reply = " ".join(pieces)
        if pieces:
            session.turns.append(Turn("assistant", reply))
            session.questions_asked += "?" in reply and level >= Level.HIGH
            tally.spoke = True
        tally.degraded |= tally.attempt.degraded
    if not pieces:
        if card is None and "validators" in tally.degraded:  # nothing can be checked: people are shown instead
            card, tally.card = _card(setting, session, level, domains, text), "first"
            yield card
        yield notice_for("no_reply_with_card" if card else "no_reply", context.lang)
    degraded = tally.degraded if tally.keep() else tally.degraded | {"audit"}
    yield Answer(
        level,
        domains,
        tally.attempt.source if pieces else "notice",
        reply,
        card,
        tally.attempt.readings,
        seen.reasons,
        tally.attempt.notes,
        degraded,
    )


def _speak(
    setting: Setting, session: Session, plan: Plan, context: ReplyContext, pieces: list[Validated], tally: Tally
) -> Generator[Validated, None, None]:
    """The reply, whole or sentence by sentence as the plan says; `pieces` holds what was released, `tally` how."""
    messages = _messages(setting, session, plan, context)
    started = time.perf_counter()
    if plan.release != "whole":
        tally.attempt = yield from stream(setting.engine, messages, plan, context, setting.sampling, pieces)
        return
    tally.attempt = climb(setting.engine, messages, plan, context, setting.sampling, _grammar(session, context))
    tally.ms["generate"] = 1e3 * (time.perf_counter() - started)  # not of a stream: its reader's time would be in it
    if tally.attempt.reply is not None:
        pieces.append(tally.attempt.reply)
        yield tally.attempt.reply


def _without_a_reply(
    setting: Setting, session: Session, why: str, tally: Tally
) -> Generator[Released | Answer, None, None]:
    """What is left when a part of ours has failed: the card, if it can be had, and the app's own words."""
    level, card = max(session.state.floor, Level.ELEVATED), None
    with suppress(Exception):
        card = help_now(setting, session)
    tally.level, tally.floor, tally.domains = level, session.state.floor, session.state.domains
    tally.card = "first" if card and tally.card in ("none", "chip") else tally.card
    tally.degraded |= {"companion"}
    if card is not None:
        yield card
    yield notice_for("no_reply_with_card" if card else "no_reply", "en")
    degraded = tally.degraded if tally.keep() else tally.degraded | {"audit"}
    yield Answer(level, session.state.domains, "notice", "", card, notes=(f"a part failed: {why}",), degraded=degraded)


def _since(session: Session, at: float | None) -> float:
    """Seconds since the turn before, by time stamps. A clock that jumps back passes no time, nor does its way forward
    to where it has been; nor does a time stamp that is absent or no finite number."""
    if at is None or not math.isfinite(at):
        return 0.0
    before = at if session.last_at is None else session.last_at
    session.last_at = max(before, at)
    return session.last_at - before


def _ticked(session: Session) -> float:
    """Seconds since the turn before, where there are no time stamps: on a clock that nobody can set."""
    tick = time.monotonic()
    before, session.last_tick = session.last_tick, tick
    return 0.0 if before is None else tick - before


def _read(setting: Setting, session: Session, text: str, seconds: float) -> tuple[Observation, Level]:
    """What the turn shows, and the level at which it is answered; the session's state goes on."""
    said = [turn.content for turn in session.turns if turn.role == "user"]
    question = session.turns[-1].content if session.turns and session.turns[-1].role == "assistant" else ""
    before = session.state.episode
    session.state, seen = step(session.state, text, setting.detector, said, question, seconds)
    session.minor = minor_of(text, session.minor)
    if session.state.episode != before or session.state.floor < Level.HIGH:
        session.card_level, session.questions_asked = Level.NONE, 0
    return seen, max(session.state.floor, seen.level)


def _plan(setting: Setting, session: Session, seen: Observation, level: Level) -> Plan:
    plan = plan_for(
        level,
        session.state.domains | seen.domains,
        setting.question_policy,
        owner=setting.question_owner,
        questions_asked=session.questions_asked,
        temperature=setting.sampling.temperature,
    )
    return guarded(plan) if "guarded" in seen.degraded else plan


def _card(setting: Setting, session: Session, level: Level, domains: frozenset[str], text: str) -> Card:
    groups = list(dict.fromkeys(GROUPS[domain] for domain in sorted(domains) if domain in GROUPS))
    if session.minor == "yes" and "child" not in groups:
        groups.insert(0, "child")
    return card_for(
        setting.directory,
        setting.country,
        level,
        groups=groups,
        about_other="third_party" in domains and "suicide" not in domains,
        language=spoken(text),
        today=_today(),
    )


def _today() -> date:
    return datetime.now(UTC).date()


def _context(
    session: Session, domains: frozenset[str], level: Level, text: str, plan: Plan, *, strict: bool
) -> ReplyContext:
    """`strict`: nothing read the turn, so that the reply is judged as if methods had been asked for."""
    replies = tuple(turn.content for turn in session.turns if turn.role == "assistant")
    return ReplyContext(
        level=level,
        domains=domains,
        turns=tuple(session.turns[-NUM_JUDGED:]),
        lang=spoken(text),
        minor=session.minor,
        question_policy="safety_check" if level >= Level.HIGH and plan.max_questions else "none",
        previous_replies=replies[-3:],
        overlays=frozenset({"method_seeking"}) if strict else frozenset(),
    )


def _messages(setting: Setting, session: Session, plan: Plan, context: ReplyContext) -> tuple[Message, ...]:
    """The persona (where the level leaves it on) and the overlay, then the turns; one speaker's turns in a row as one."""
    overlay = overlay_for(plan.level, context.domains, session.minor, max_questions=plan.max_questions)
    persona = setting.system_prompt if plan.persona_allowed else None
    system = "\n\n".join(part for part in (persona, overlay if plan.level else "") if part)
    messages = [Message("system", system)] if system else []
    for turn in session.turns:
        if messages and messages[-1].role == turn.role:
            messages[-1] = Message(turn.role, f"{messages[-1].content}\n{turn.content}")
        else:
            messages.append(Message(turn.role, turn.content))
    return tuple(messages)


def _grammar(session: Session, context: ReplyContext) -> str:
    level, domains = context.level, context.domains
    follow_up = session.card_level >= level and any(turn.role == "assistant" for turn in session.turns[-3:])
    return lark(
        spec_for(
            level,
            domains,
            (),
            minor=session.minor == "yes",
            about_other="third_party" in domains and "suicide" not in domains,
            follow_up=follow_up,
        )
    )
