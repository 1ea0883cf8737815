"""One person's conversation: read the turn, hold its risk, show the card first, release what passed the rules."""

import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime

from warmline.dialogue.ladder import Attempt, climb, hang_up, reason_of
from warmline.engine.engine import Engine, GenerateRequest, Message, Reading, Sampling
from warmline.safety.assess import step
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
from warmline.safety.validate.release import Validated, release_sentence_if_valid

HOLD = 400  # characters after which a sentence without an end is checked as it stands
NUM_RESAMPLES = 2  # of a sentence that was refused, at the levels none and elevated
GROUPS = {"abuse_child": "child", "minor_signal": "child", "abuse_victim": "abuse", "eating": "eating"}

_WORDS = re.compile(rf"(?s).{{1,{HOLD}}}(?=\s)|\s*\S+(?=\s)")  # as many as fit, or one that is longer
_END = re.compile(r"[.!?…][\"')\]]*\s+|\n+")


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


@dataclass
class Session:
    """What is remembered of a conversation while it lasts. In memory only."""

    turns: list[Turn] = field(default_factory=list)  # what was said and what was released
    state: RiskState = field(default_factory=RiskState)
    last_at: float | None = None  # seconds, of the user's last turn
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
    degraded: frozenset[str] = frozenset()


def resume(setting: Setting, turns: Sequence[Turn], times: Sequence[float | None] = ()) -> Session:
    """The session after earlier turns that someone else kept: their risk is read again, nothing is generated.

    `times`: seconds of each turn where known. Turns of other roles than user and assistant are left out.
    """
    session = Session()
    for number, turn in enumerate(turns):
        if turn.role == "user":
            at = times[number] if number < len(times) else None
            _read(setting, session, turn.content, at)
        if turn.role in ("user", "assistant"):
            session.turns.append(turn)
    return session


def respond(
    setting: Setting, session: Session, text: str, now: float | None = None
) -> Generator[Released | Answer, None, None]:
    """Answer one user turn: the card where the level asks for one, then released words, then the `Answer`.

    `now`: seconds on any clock that does not run backwards; time.time() by default. A caller that stops halfway leaves
    the session as the person has seen it. Raises PolicyError for a setting that nobody answers for, and nothing else:
    whatever breaks, there is a card or a notice.
    """
    at = time.time() if now is None else now
    try:
        yield from _respond(setting, session, text, at)
    except PolicyError:
        raise
    except Exception as error:  # noqa: BLE001 - the outermost line: a defect of ours must not be met with silence
        yield from _without_a_reply(setting, session, type(error).__name__)


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


def _respond(setting: Setting, session: Session, text: str, at: float) -> Generator[Released | Answer, None, None]:
    seen, level = _read(setting, session, text, at)
    session.turns.append(Turn("user", text))
    domains = session.state.domains | seen.domains
    plan = _plan(setting, session, seen, level)
    card = _card(setting, session, level, domains, text) if plan.card in ("first", "full") else None
    if card is not None and level > session.card_level:
        session.card_level = level
        yield card
    context = _context(session, domains, level, text, plan)
    pieces: list[Validated] = []
    try:
        attempt = yield from _speak(setting, session, plan, context, pieces)
    finally:  # someone who goes away has seen what was released until then
        reply = " ".join(pieces)
        if pieces:
            session.turns.append(Turn("assistant", reply))
            session.questions_asked += "?" in reply and level >= Level.HIGH
    if not pieces:
        yield notice_for("no_reply_with_card" if card else "no_reply", context.lang)
    yield Answer(
        level,
        domains,
        attempt.source if pieces else "notice",
        reply,
        card,
        attempt.readings,
        seen.reasons,
        attempt.notes,
        seen.degraded,
    )


def _speak(
    setting: Setting, session: Session, plan: Plan, context: ReplyContext, pieces: list[Validated]
) -> Generator[Validated, None, Attempt]:
    """The reply, whole or sentence by sentence as the plan says; `pieces` holds what was released."""
    messages = _messages(setting, session, plan, context)
    if plan.release != "whole":
        return (yield from _stream(setting, messages, plan, context, pieces))
    attempt = climb(setting.engine, messages, plan, context, setting.sampling, _grammar(session, context))
    if attempt.reply is not None:
        pieces.append(attempt.reply)
        yield attempt.reply
    return attempt


def _without_a_reply(setting: Setting, session: Session, why: str) -> Generator[Released | Answer, None, None]:
    """What is left when a part of ours has failed: the card, if it can be had, and the app's own words."""
    level, card = max(session.state.floor, Level.ELEVATED), None
    with suppress(Exception):
        card = help_now(setting, session)
    if card is not None:
        yield card
    yield notice_for("no_reply_with_card" if card else "no_reply", "en")
    degraded = frozenset({"companion"})
    yield Answer(level, session.state.domains, "notice", "", card, notes=(f"a part failed: {why}",), degraded=degraded)


def _read(setting: Setting, session: Session, text: str, at: float | None) -> tuple[Observation, Level]:
    """What the turn shows, and the level at which it is answered; the session goes on. Without a time, none passes."""
    said = [turn.content for turn in session.turns if turn.role == "user"]
    question = session.turns[-1].content if session.turns and session.turns[-1].role == "assistant" else ""
    seconds = 0.0 if at is None or session.last_at is None else at - session.last_at
    before = session.state.episode
    session.state, seen = step(session.state, text, setting.detector, said, question, seconds)
    if at is not None:
        session.last_at = at
        session.use = session.use and turned(session.use, at)
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


def _context(session: Session, domains: frozenset[str], level: Level, text: str, plan: Plan) -> ReplyContext:
    replies = tuple(turn.content for turn in session.turns if turn.role == "assistant")
    return ReplyContext(
        level=level,
        domains=domains,
        turns=tuple(session.turns),
        lang=spoken(text),
        minor=session.minor,
        question_policy="safety_check" if level >= Level.HIGH and plan.max_questions else "none",
        previous_replies=replies[-3:],
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


def _stream(
    setting: Setting, messages: tuple[Message, ...], plan: Plan, context: ReplyContext, pieces: list[Validated]
) -> Generator[Validated, None, Attempt]:
    """Sentence by sentence: each is held until it has passed. A refused one is drawn again, then the reply ends there.

    Returns the attempt; `pieces` holds what was released.
    """
    readings: tuple[Reading, ...] = ()
    notes: tuple[str, ...] = ()
    sampling = replace(setting.sampling, temperature=plan.temperature)
    for draw in range(1 + NUM_RESAMPLES):
        seed = None if sampling.seed is None else sampling.seed + draw
        request = GenerateRequest(messages, replace(sampling, seed=seed), prefill=_so_far(pieces))
        refused = False
        try:
            chunks = setting.engine.generate(request)
            for sentence, read, noted in _sentences(chunks):
                readings, notes = readings or read, notes or noted
                released = release_sentence_if_valid(sentence, _so_far(pieces), context) if sentence else None
                if released is not None:
                    pieces.append(released)
                    yield released
                elif sentence:
                    refused = True
                    break
        except Exception as error:  # noqa: BLE001 - whatever an engine raises, what was released stands
            notes = (*notes, reason_of(error))
            break
        if not refused:
            break
    return Attempt(None, "model", readings, notes)


def _so_far(pieces: Sequence[str]) -> str:
    return " ".join(pieces)


def _sentences(chunks: Iterator) -> Iterator[tuple[str, tuple[Reading, ...], tuple[str, ...]]]:
    """Whole sentences as they are complete, with readings and notes; the last without waiting for its end.

    One that does not end is cut between words: half a word could hide from the rules what it is a part of.
    """
    buffer = ""
    try:
        for chunk in chunks:
            buffer += chunk.text
            if chunk.readings or chunk.notes:
                yield "", chunk.readings, chunk.notes
            start = 0
            for found in _END.finditer(buffer):
                yield buffer[start : found.end()].strip(), (), ()
                start = found.end()
            buffer = buffer[start:]
            while len(buffer) > HOLD and (words := _WORDS.match(buffer)):
                yield words[0].strip(), (), ()
                buffer = buffer[words.end() :]
        if buffer.strip():
            yield buffer.strip(), (), ()
    finally:
        hang_up(chunks)
