"""One request's turn without the network: the conversation is read again, the companion answers, events come out."""

import math
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from warmline.dialogue.companion import Answer, Session, Setting, help_now, respond, told
from warmline.dialogue.style import styled
from warmline.engine.engine import CountsTokens, Message, Reading, Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.engine.wrapped import Interruptible
from warmline.safety.assess import look
from warmline.safety.disclosure import Use, due
from warmline.safety.levels import Level
from warmline.safety.policy import POLICY_VERSION
from warmline.safety.release import text_of
from warmline.safety.resources.card import Card
from warmline.safety.validate.context import spoken
from warmline.safety.validate.notice import notice_for
from warmline.serve.models import Model, Options
from warmline.serve.sessions import Remembers
from warmline.serve.wire import Asked, ChatRequest

NUM_LABELS = 5  # of a head that are told
MAX_NEW_TOKENS = 1024  # of a reply, whatever a request asks for
GREEDY_TOP_P = 1e-6  # what top_p 0 is read as: the likeliest token alone
SEEDS_A_REPLY = 10_007  # between two replies to one request, so that the draws of one are none of the next


class Began(NamedTuple):
    """The turn was read: its level, and the API's object of the card that is new or stays pinned."""

    level: Level
    card: dict[str, Any] | None


@dataclass(frozen=True)
class Piece:
    """Released words of a reply."""

    index: int  # of the reply
    text: str
    is_card: bool


@dataclass(frozen=True)
class Ended:
    index: int
    level: Level
    source: str  # of policy.TIERS
    finish_reason: str


class Closed(NamedTuple):
    """The last of a turn: what stands in the field `warmline`, and the counts of tokens."""

    warmline: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int


Event = Began | Piece | Ended | Closed


@dataclass(frozen=True)
class Work:
    """What one request needs to be answered."""

    engine: object  # the model's own, which may count tokens
    setting: Setting  # the model's, with what a request may change
    session: Session
    asked: Asked
    notes: tuple[str, ...]
    num_replies: int
    max_tokens: int | None  # as asked for
    options: Options
    keep: Callable[[Session], None]  # when the turn has ended
    heard: Callable[[Session], None]  # when it has been read, and its reply is still to come
    trouble: Callable[[], frozenset[str]]  # what of the two failed


def prepare(
    model: Model,
    request: ChatRequest,
    asked: Asked,
    notes: Sequence[str],
    sessions: Remembers,
    key: str | None,
    options: Options,
) -> Work:
    """Read the conversation again. Takes milliseconds for each turn that is not known yet: for a thread."""
    setting = setting_of(model.setting, request, asked)
    session = sessions.open(key, setting, asked.earlier, text=asked.text)
    if key is None and asked.earlier:  # nobody knows since when; the notice of the start was due before
        now = time.time()
        session.use = Use(now, now, now, 0.0, night_break_shown=False)
    return Work(
        model.setting.engine,
        setting,
        session,
        asked,
        (*notes, *asked.notes),
        request.n or 1,
        request.max_completion_tokens or request.max_tokens,
        options,
        lambda each: sessions.keep(key, each),
        sessions.heard,
        lambda: sessions.degraded,
    )


def setting_of(setting: Setting, request: ChatRequest, asked: Asked) -> Setting:
    """The model's setting with what a request may change: sampling, style, and words behind the operator's prompt."""
    changes: dict[str, Any] = {}
    if request.seed is not None:
        changes["seed"] = abs(request.seed)
    if request.temperature is not None:
        changes["temperature"] = request.temperature
    if request.top_p is not None:
        changes["top_p"] = max(request.top_p, GREEDY_TOP_P)
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None:
        changes["max_new_tokens"] = min(limit, MAX_NEW_TOKENS)
    if request.stop is not None:
        stop = (request.stop,) if isinstance(request.stop, str) else request.stop
        changes["stop"] = tuple(each for each in stop if each)
    prompt = "\n\n".join(part for part in (setting.system_prompt, asked.system) if part) or None
    wishes = request.warmline
    if wishes is not None and wishes.style is not None:
        setting = styled(setting, wishes.style)
    country = wishes.country.upper() if wishes is not None and wishes.country else setting.country
    return replace(setting, sampling=replace(setting.sampling, **changes), system_prompt=prompt, country=country)


def warm_up(setting: Setting) -> None:
    """Let every part be made that is made at its first use: the first one in danger must not wait for that."""
    silent = replace(setting, engine=ScriptedEngine(), audit=None, guards=(), risk_head=None)
    for text in ("hello", "I want to die"):
        for _ in respond(silent, Session(), text):
            pass


def level_now(work: Work) -> Level:
    """The level that the newest turn would be answered at, by the detector alone; the session stays as it is."""
    session = work.session
    said = [turn.content for turn in session.turns if turn.role == "user"]
    question = session.turns[-1].content if session.turns and session.turns[-1].role == "assistant" else ""
    _, seen = look(session.state, work.asked.text, work.setting.detector, said, question)
    return max(session.state.floor, seen.level)


def events_of(work: Work, gone: threading.Event) -> Generator[Event, None, None]:
    """The events of a turn. The session is kept however it ends, also when the client leaves: `gone` tells of that."""
    setting = replace(work.setting, engine=Interruptible(work.setting.engine, gone))
    before = replace(work.session, turns=[*work.session.turns])
    answers: list[Answer] = []
    try:
        for index in range(work.num_replies):
            session = work.session
            if index:
                setting = replace(setting, audit=None, sampling=_next_draw(work.setting.sampling, index))
                session = replace(before, turns=[*before.turns])
            answers.append((yield from _reply(work, setting, session, index)))
            if answers[-1].level >= Level.HIGH:
                break
        prompt, counts, is_estimate = count(work, [answer.reply for answer in answers])
        closed = Closed(_object(work, answers, is_estimate), prompt, sum(counts))
    finally:
        work.keep(work.session)
    closed.warmline["degraded"] = sorted({*closed.warmline["degraded"], *work.trouble()})
    yield closed


def _next_draw(sampling: Sampling, index: int) -> Sampling:
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + SEEDS_A_REPLY * index)


def _reply(work: Work, setting: Setting, session: Session, index: int) -> Generator[Event, None, Answer]:
    answer: Answer | None = None
    is_first = index == 0
    for each in respond(setting, session, work.asked.text):
        if is_first:
            is_first = False
            pinned = None
            if isinstance(each, Card):
                pinned = each.as_json()
            elif session.state.floor >= Level.HIGH:
                pinned = help_now(setting, session).as_json()
            yield Began(session.state.floor, pinned)
            work.heard(session)  # after the card: nothing may delay that
        if isinstance(each, Answer):
            answer = each
        else:
            yield Piece(index, text_of(each), isinstance(each, Card))
    assert answer is not None
    yield Ended(index, answer.level, answer.reply_source, _finish_reason(work, answer))
    return answer


def broken_off(work: Work, *, has_begun: bool, has_spoken: bool) -> list[Event]:
    """What is said where a turn ends without its last event: it took too long, or a part of ours has failed.

    Never an error in place of a reply: the app's own words, and the card for somebody who may be in danger.
    """
    session, level = work.session, max(work.session.state.floor, Level.ELEVATED)
    card: Card | None = None
    with suppress(Exception):
        card = help_now(work.setting, session) if level >= Level.HIGH or not has_spoken else None
    found: list[Event] = [] if has_begun else [Began(level, card.as_json() if card else None)]
    if card is not None and not has_spoken:
        found.append(Piece(0, text_of(card), is_card=True))
    kind = "reply_ended" if has_spoken else "no_reply_with_card" if card else "no_reply"
    found.append(Piece(0, text_of(notice_for(kind, spoken(work.asked.text))), is_card=False))
    found.append(Ended(0, level, "notice", "stop"))
    answer = Answer(level, session.state.domains, "notice", "", card, degraded=frozenset({"deadline"}))
    return [*found, Closed(_object(work, [answer], is_estimate=True), count(work, [])[0], 0)]


def _finish_reason(work: Work, answer: Answer) -> str:
    if work.max_tokens is None or answer.level >= Level.HIGH or answer.reply_source == "notice":
        return "stop"
    return "length" if sum(count(work, [answer.reply])[1]) >= work.max_tokens else "stop"


def count(work: Work, replies: Sequence[str]) -> tuple[int, list[int], bool]:
    """Tokens of the prompt and of each reply, and whether they are an estimate: of four bytes to a token."""
    system = [Message("system", work.setting.system_prompt)] if work.setting.system_prompt else []
    messages = [*system, *(Message(*each) for each in work.asked.earlier), Message("user", work.asked.text)]
    if isinstance(work.engine, CountsTokens):
        with suppress(Exception):
            counted = [work.engine.count(messages, reply) for reply in replies or ("",)]
            return counted[0][0], [each for _, each in counted], False
    return sum(_estimate(each.content) for each in messages), [_estimate(reply) for reply in replies], True


def _estimate(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def _object(work: Work, answers: Sequence[Answer], is_estimate: bool) -> dict[str, Any]:
    """The field `warmline` of an answer."""
    first = answers[0]
    notes = [*work.notes, *(note for answer in answers for note in answer.notes)]
    notes += ["usage is an estimate"] if is_estimate else []
    notes += ["n is ignored"] if len(answers) < work.num_replies else []
    found: dict[str, Any] = {
        "level": max(answer.level for answer in answers).label,
        "domains": sorted(first.domains),
        "reply_source": first.reply_source,
        "card": None if first.card is None else first.card.as_json(),
        "readings": readings_of(first.readings if work.options.show_readings else ()),
        "disclosure": _disclosure(work.session),
        "notes": [*dict.fromkeys(notes)],
        "degraded": sorted(work.trouble().union(*(answer.degraded for answer in answers))),
        "policy_version": POLICY_VERSION,
        "directory_version": work.setting.directory.version,
    }
    if work.options.show_reasons:
        found["reasons"] = [{"rule": each.rule, "text": each.text} for each in first.reasons]
    return found


def _disclosure(session: Session) -> dict[str, Any]:
    now = time.time()
    use = session.use or Use(now, None, now, 0.0, night_break_shown=False)
    found = due(use, now, session.state.floor, session.minor)
    texts = told(session, now)
    return {"ai_notice_due": found.ai_notice_due, "break_due": found.break_due, "texts": [*texts]}


def readings_of(readings: Sequence[Reading]) -> dict[str, Any]:
    """What the heads read, the likeliest labels first."""
    found: dict[str, Any] = {"emotion": [], "strategy": [], "risk": [], "affect": {}}
    for reading in readings:
        if reading.head == "affect":
            pairs = zip(reading.labels, reading.values, strict=True)
            found["affect"] = {label: round(value, 4) for label, value in pairs}
        else:
            found[reading.head] = [{"label": name, "p": round(p, 4)} for name, p in reading.top(NUM_LABELS)]
    return found
