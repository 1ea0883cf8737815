"""One request's turn: the conversation is read again, the companion answers in a thread, and pieces go out as they come."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from warmline.data.style import styled_prompt
from warmline.dialogue.companion import Answer, Session, Setting, help_now, respond, told
from warmline.engine.engine import Capability, Chunk, CountsTokens, Engine, GenerateRequest, Message, Reading, Scores
from warmline.safety.disclosure import Disclosure, Use, due
from warmline.safety.levels import Level
from warmline.safety.policy import POLICY_VERSION
from warmline.safety.release import Released, text_of
from warmline.safety.resources.card import Card
from warmline.serve.models import Model, Options
from warmline.serve.sessions import Sessions
from warmline.serve.wire import FENCE, Asked, ChatRequest

NUM_LABELS = 5  # of a head that are told


class Gone(BaseException):
    """Nobody waits for the reply any more. No Exception: nothing may take it for an engine's failure and go on."""


class Began(NamedTuple):
    """The turn was read: its level, and the card that belongs to it."""

    level: Level
    card: Card | None


class Piece(NamedTuple):
    index: int  # of the reply
    released: Released


class Ended(NamedTuple):
    index: int
    answer: Answer
    finish_reason: str


class Closed(NamedTuple):
    """The last of a turn: what stands in the field `warmline`, and what is billed elsewhere."""

    warmline: dict[str, Any]
    prompt_tokens: int
    completion_tokens: int


Event = Began | Piece | Ended | Closed


@dataclass
class Work:
    """What one request needs to be answered."""

    model: Model
    setting: Setting  # the model's, with what the request may change
    session: Session
    asked: Asked
    notes: tuple[str, ...]
    num_replies: int
    max_tokens: int | None
    options: Options
    keep: Callable[[Session], None]
    is_known: bool  # whether the client named the conversation


def prepare(
    model: Model,
    request: ChatRequest,
    asked: Asked,
    notes: Sequence[str],
    sessions: Sessions,
    key: str | None,
    options: Options,
) -> Work:
    """Read the conversation again. Takes milliseconds for each turn that is not known yet: for a thread."""
    setting = setting_of(model.setting, request, asked)
    session = sessions.open(key, setting, asked.earlier)
    if key is None and asked.earlier:  # nobody knows since when; the notice of the start was due before
        now = time.time()
        session.use = Use(now, now, now, 0.0, night_break_shown=False)
    asked_tokens = request.max_completion_tokens or request.max_tokens
    return Work(
        model,
        setting,
        session,
        asked,
        (*notes, *asked.notes),
        min(request.n or 1, options.max_n),
        asked_tokens,
        options,
        lambda each: sessions.keep(key, each),
        key is not None,
    )


def setting_of(setting: Setting, request: ChatRequest, asked: Asked) -> Setting:
    """The model's setting with what a request may change: sampling, style, and words behind the operator's prompt."""
    sampling = setting.sampling
    changes: dict[str, Any] = {"seed": sampling.seed if request.seed is None else request.seed}
    if request.temperature is not None:
        changes["temperature"] = request.temperature
    if request.top_p is not None:
        changes["top_p"] = max(request.top_p, 1e-6)  # 0 is the likeliest token alone, as OpenAI reads it
    limit = request.max_completion_tokens or request.max_tokens
    if limit is not None:
        changes["max_new_tokens"] = min(limit, max(sampling.max_new_tokens, 1024))
    if request.stop is not None:
        stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop)
        changes["stop"] = tuple(each for each in stop if each)
    prompt = "\n\n".join(part for part in (setting.system_prompt, asked.system) if part) or None
    wishes = request.warmline
    if wishes is not None and wishes.style is not None:
        prompt = styled_prompt(prompt, wishes.style)
    country = wishes.country.upper() if wishes is not None and wishes.country else setting.country
    return replace(setting, sampling=replace(sampling, **changes), system_prompt=prompt, country=country)


def turn(work: Work, gone: threading.Event) -> Generator[Event, None, None]:
    """The events of a turn. The session is kept however it ends, an early end by the client's leaving included."""
    before = replace_turns(work.session)
    setting = replace(work.setting, engine=Leaving(work.setting.engine, gone))
    answers: list[Answer] = []
    completion = 0
    try:
        for index in range(work.num_replies):
            session = work.session if index == 0 else replace_turns(before)
            if index:
                setting = replace(setting, audit=None, sampling=_next_draw(work, index))
            answer = yield from _reply(work, setting, session, index)
            answers.append(answer)
            if answer.level >= Level.HIGH:
                break
    finally:
        work.keep(work.session)
    prompt, counts, is_estimate = count(work, [answer.reply for answer in answers])
    completion = sum(counts)
    yield Closed(_object(work, answers, is_estimate), prompt, completion)


def replace_turns(session: Session) -> Session:
    """The same session with a list of turns of its own."""
    return replace(session, turns=[*session.turns])


def _next_draw(work: Work, index: int):
    sampling = work.setting.sampling
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + 10_007 * index)


def _reply(work: Work, setting: Setting, session: Session, index: int) -> Generator[Event, None, Answer]:
    answer: Answer | None = None
    began = index > 0
    for each in respond(setting, session, work.asked.text):
        if not began:
            began = True
            yield Began(session.state.floor, _first_card(setting, session, each))
        if isinstance(each, Answer):
            answer = each
        else:
            yield Piece(index, each)
    assert answer is not None
    yield Ended(index, answer, _finish_reason(work, answer))
    return answer


def _first_card(setting: Setting, session: Session, first: Released | Answer) -> Card | None:
    """The card that is new with this turn, or the one that stays pinned."""
    if isinstance(first, Card):
        return first
    return help_now(setting, session) if session.state.floor >= Level.HIGH else None


def _finish_reason(work: Work, answer: Answer) -> str:
    if work.max_tokens is None or answer.level >= Level.HIGH or answer.reply_source == "notice":
        return "stop"
    return "length" if count(work, [answer.reply])[1][0] >= work.max_tokens else "stop"


def count(work: Work, replies: Sequence[str]) -> tuple[int, list[int], bool]:
    """Tokens of the prompt and of each reply, and whether they are an estimate."""
    engine = work.model.setting.engine
    messages = [Message("system", work.setting.system_prompt or ""), *map(Message._make, work.asked.earlier)]
    messages = [*messages, Message("user", work.asked.text)]
    if isinstance(engine, CountsTokens):
        with suppress(Exception):
            counted = [engine.count(messages, reply) for reply in replies]
            return counted[0][0], [each for _, each in counted], False
    prompt = sum(_estimate(message.content) for message in messages)
    return prompt, [_estimate(reply) for reply in replies], True


def _estimate(text: str) -> int:
    return math.ceil(len(text.encode("utf-8", "replace")) / 4)


def _object(work: Work, answers: Sequence[Answer], is_estimate: bool) -> dict[str, Any]:
    """The field `warmline` of an answer."""
    first = answers[0]
    level = max(answer.level for answer in answers)
    notes = [*work.notes, *(note for answer in answers for note in answer.notes)]
    notes += ["usage is an estimate"] if is_estimate else []
    notes += ["n is ignored"] if len(answers) < work.num_replies else []
    told_now = _disclosure(work.session)
    found: dict[str, Any] = {
        "level": level.label,
        "domains": sorted(first.domains),
        "reply_source": first.reply_source,
        "card": None if first.card is None else first.card.as_json(),
        "readings": readings_of(first.readings if work.options.show_readings else ()),
        "disclosure": told_now,
        "notes": list(dict.fromkeys(notes)),
        "degraded": sorted(frozenset().union(*(answer.degraded for answer in answers))),
        "policy_version": POLICY_VERSION,
        "directory_version": work.setting.directory.version,
    }
    if work.options.show_reasons:
        found["reasons"] = [{"rule": each.rule, "text": each.text} for each in first.reasons]
    return found


def _disclosure(session: Session) -> dict[str, Any]:
    now = time.time()
    use = session.use or Use(now, None, now, 0.0, night_break_shown=False)
    found: Disclosure = due(use, now, session.state.floor, session.minor)
    texts = told(session, now)
    return {"ai_notice_due": found.ai_notice_due, "break_due": found.break_due, "texts": [*texts]}


def readings_of(readings: Sequence[Reading]) -> dict[str, Any]:
    """What the heads read, the likeliest labels first."""
    found: dict[str, Any] = {"emotion": [], "strategy": [], "risk": [], "affect": {}}
    for reading in readings:
        if reading.head == "affect":
            found["affect"] = {
                label: round(value, 4) for label, value in zip(reading.labels, reading.values, strict=True)
            }
        else:
            found[reading.head] = [{"label": name, "p": round(p, 4)} for name, p in reading.top(NUM_LABELS)]
    return found


class Leaving:
    """An engine that stops as soon as nobody waits: between two pieces, by raising `Gone`."""

    def __init__(self, engine: Engine, gone: threading.Event) -> None:
        self._engine, self._gone = engine, gone

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        chunks = self._engine.generate(request)
        try:
            for chunk in chunks:
                if self._gone.is_set():
                    raise Gone
                yield chunk
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        return self._engine.score(messages, reply)

    def capabilities(self) -> frozenset[Capability]:
        return self._engine.capabilities()


class Wording:
    """The text of one reply, piece by piece. Each piece passes `text_of`: nothing else has a way out."""

    def __init__(self, *, renders_card: bool) -> None:
        self._renders_card = renders_card
        self.text = ""

    def add(self, piece: Released) -> str:
        """What a piece adds to the text; nothing for a card that the client draws itself."""
        if isinstance(piece, Card) and self._renders_card:
            return ""
        said = text_of(piece)
        if isinstance(piece, Card):
            more = ("\n\n" if self.text else "") + f"{said}{FENCE}\n\n"
        else:
            more = said if not self.text or self.text[-1].isspace() else f" {said}"
        self.text += more
        return more


class Running:
    """A turn that is written in a thread of its own; events are taken from the event loop."""

    def __init__(self, work: Work, on_end: Callable[[], None]) -> None:
        self.work = work
        self.gone = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        self._on_end = on_end
        threading.Thread(target=self._run, name="reply", daemon=True).start()

    async def next(self) -> Event | None:
        """The next event; None after the last, and where the turn broke off."""
        return await self._events.get()

    def _run(self) -> None:
        events = turn(self.work, self.gone)
        try:
            for event in events:
                self._tell(event)
                if self.gone.is_set():
                    break
        except Gone:
            pass
        finally:
            with suppress(Gone):
                events.close()
            self._tell(None)
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._on_end)

    def _tell(self, event: Event | None) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)


def level_now(work: Work) -> Level:
    """The level that the newest turn would be answered at, by the detector alone; the session stays as it is."""
    from warmline.safety.assess import look

    session = work.session
    said = [turn.content for turn in session.turns if turn.role == "user"]
    question = session.turns[-1].content if session.turns and session.turns[-1].role == "assistant" else ""
    _, seen = look(session.state, work.asked.text, work.setting.detector, said, question)
    return max(session.state.floor, seen.level)
