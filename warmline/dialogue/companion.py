"""The only door to a reply: the turn is read, the card comes first, and what passed the rules is released."""

import time
from collections.abc import Generator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime

from warmline.data.style import styled_prompt
from warmline.dialogue.ladder import Overtaken, climb
from warmline.dialogue.repair import considered
from warmline.dialogue.session import Heard, Session, Setting, hear, resume, since, ticked, with_readings
from warmline.dialogue.stream import stream
from warmline.dialogue.style import guidance_for
from warmline.dialogue.tally import Tally
from warmline.engine.engine import Message, Reading
from warmline.safety.assess import hold
from warmline.safety.detect import Observation
from warmline.safety.disclosure import Use, due, shown, texts_for, turned
from warmline.safety.grammar.grammar import lark, spec_for
from warmline.safety.levels import Level, Reason
from warmline.safety.policy import Plan, check_question_policy, guarded, overlay_for, plan_for
from warmline.safety.release import Released
from warmline.safety.resources.card import Card, card_for
from warmline.safety.validate.context import ReplyContext, Turn, spoken
from warmline.safety.validate.notice import notice_for
from warmline.safety.validate.release import Validated

__all__ = ["Answer", "Session", "Setting", "help_now", "respond", "resume", "told"]

GROUPS = {"abuse_child": "child", "minor_signal": "child", "abuse_victim": "abuse", "eating": "eating"}
SEEDS_A_TURN = 100  # between two turns, so that the draws of one are none of the next
MIN_TOP_P = 0.5  # of a reply that is chosen from several
NUM_JUDGED = 200  # of the newest turns that a reply is judged by: each judgement reads them all


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


def respond(
    setting: Setting, session: Session, text: str, now: float | None = None
) -> Generator[Released | Answer, None, None]:
    """Answer one user turn: the card where the level asks for one, then released words, then the `Answer`.

    `now`: seconds on any clock; by default risk is held by one that nobody can set. A caller that stops halfway leaves
    the session as the person has seen it, and the turn is counted all the same. Raises PolicyError for a setting that
    nobody answers for, and nothing else: whatever breaks, there is a card or a notice.
    """
    check_question_policy(setting.question_policy, setting.question_owner)
    tally = Tally(setting.audit, setting.country, setting.directory.version)
    try:
        seconds = ticked(session) if now is None else since(session, now)
        session.use = session.use and turned(session.use, time.time() if now is None else now)
        yield from _respond(setting, session, text, seconds, tally)
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
    turn = hear(setting, session, text, seconds, setting.guards)
    tally.ms = {**turn.seen.ms, "detect": 1e3 * (time.perf_counter() - started)}
    tally.degraded = frozenset({"directory"} if setting.directory.degraded else ())
    session.turns.append(Turn("user", text))
    answer = None
    while answer is None:  # again whenever the risk head raises the level, which is at most once for each
        turn, answer = yield from _answer(setting, session, text, turn, tally)
    yield answer


def _answer(
    setting: Setting, session: Session, text: str, turn: Heard, tally: Tally
) -> Generator[Released, None, tuple[Heard, Answer | None]]:
    """Answer by the plan of the turn's level. No answer where the risk head called for a higher one before a word of the
    reply was released: the turn that comes back has that level."""
    level = max(session.state.floor, turn.seen.level)
    domains = session.state.domains | turn.seen.domains
    plan = _plan(setting, session, turn.seen, level)
    tally.reads(turn.seen, level, session.state.floor, domains)
    card = _card(setting, session, level, domains, text) if plan.card in ("first", "full") else None
    is_new = card is not None and level > session.card_level
    tally.shows(plan.card if card is None or is_new else "pinned")
    if card is not None and is_new:
        session.card_level = level
        yield card
    context = _context(session, domains, level, text, plan, strict="guarded" in turn.seen.degraded)
    tally.language = context.lang
    pieces: list[Validated] = []

    def overtaken(readings: tuple[Reading, ...]) -> bool:
        return with_readings(setting, turn, readings).level > level

    try:
        yield from _speak(setting, session, plan, context, pieces, tally, overtaken)
    finally:  # someone who goes away has seen what was released until then
        reply = " ".join(pieces)
        if pieces:
            session.turns.append(Turn("assistant", reply))
            session.questions_asked += "?" in reply and level >= Level.HIGH
            tally.spoke = True
        tally.degraded |= tally.attempt.degraded
    seen = with_readings(setting, turn, tally.attempt.readings)
    if seen.level != turn.seen.level:  # a lower one counts from the next turn on: with this one the card has come
        session.state = hold(turn.before, seen, turn.seconds)
    if seen.level > level and not pieces:
        return turn._replace(seen=seen), None
    tally.reads(seen, level, session.state.floor, domains)
    if not pieces:
        if card is None and "validators" in tally.degraded:  # nothing can be checked: people are shown instead
            card = _card(setting, session, level, domains, text)
            tally.shows("first")
            yield card
        yield notice_for("no_reply_with_card" if card else "no_reply", context.lang)
    source = tally.attempt.source if pieces else "notice"
    return turn, _answered(tally, level, domains, source, reply, card)


def _answered(
    tally: Tally, level: Level, domains: frozenset[str], source: str, reply: str, card: Card | None
) -> Answer:
    """The turn's `Answer`; whatever it holds, the turn is counted first."""
    degraded = tally.degraded if tally.keep() else tally.degraded | {"audit"}
    attempt = tally.attempt
    return Answer(level, domains, source, reply, card, attempt.readings, tally.seen.reasons, attempt.notes, degraded)


def _speak(
    setting: Setting,
    session: Session,
    plan: Plan,
    context: ReplyContext,
    pieces: list[Validated],
    tally: Tally,
    overtaken: Overtaken,
) -> Generator[Validated, None, None]:
    """The reply, whole or sentence by sentence as the plan says; `pieces` holds what was released, `tally` how."""
    messages = _messages(setting, session, plan, context)
    engine, sampling = considered(setting, messages, context), setting.sampling
    if sampling.seed is not None:  # each turn draws anew, or replies would begin alike
        sampling = replace(sampling, seed=sampling.seed + SEEDS_A_TURN * len(session.turns))
    if plan.release != "whole":
        tally.attempt = yield from stream(engine, messages, plan, context, sampling, pieces, overtaken)
        return
    # What a request asks for must neither cut such a reply short nor make all its candidates one and the same.
    sampling = replace(sampling, stop=(), top_p=max(sampling.top_p, MIN_TOP_P))
    started = time.perf_counter()
    tally.attempt = climb(engine, messages, plan, context, sampling, _grammar(session, context), overtaken)
    spent = 1e3 * (time.perf_counter() - started)  # not of a stream: its reader's time would be in it
    tally.ms["generate"] = tally.ms.get("generate", 0.0) + spent
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
    if card is not None and tally.card in ("none", "chip"):
        tally.card = "first"
    tally.degraded |= {"companion"}
    if card is not None:
        yield card
    yield notice_for("no_reply_with_card" if card else "no_reply", "en")
    degraded = tally.degraded if tally.keep() else tally.degraded | {"audit"}
    yield Answer(level, session.state.domains, "notice", "", card, notes=(f"a part failed: {why}",), degraded=degraded)


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
    persona = styled_prompt(setting.system_prompt, setting.style) if plan.persona_allowed else None
    guidance = guidance_for(setting.style, plan.level)
    system = "\n\n".join(part for part in (persona, guidance, overlay if plan.level else "") if part)
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
