"""POST /v1/chat/completions: who is let in, the turn in a thread of its own, and its pieces as they come."""

import asyncio
import logging
import threading
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from warmline.engine.wrapped import Gone
from warmline.safety.levels import Level
from warmline.serve.keys import owner_of
from warmline.serve.limits import Places, read_body
from warmline.serve.metrics import Metrics
from warmline.serve.models import Model, Options
from warmline.serve.sessions import Remembers, Sessions
from warmline.serve.store.history import Store
from warmline.serve.store.sealed import KEY_HEADER, KeyFormatError, client_key
from warmline.serve.store.sessions import StoredSessions
from warmline.serve.turns import Began, Closed, Ended, Event, Piece, Work, broken_off, events_of, level_now, prepare
from warmline.serve.wire import (
    DONE,
    FENCE,
    KEEP_ALIVE,
    ApiError,
    Asked,
    ChatRequest,
    asked,
    chunk_of,
    completion_of,
    delta_of,
    parse,
    sse,
    usage_of,
)

logger = logging.getLogger("warmline.serve")
KEEP_ALIVE_S = 10.0  # of silence in a stream
LONG = 100  # turns: to read more than these again is a long piece of work


@dataclass
class Serving:
    """What all requests share."""

    models: dict[str, Model]
    options: Options
    sessions: Sessions
    places: Places
    metrics: Metrics
    store: Store | None = None  # of those who keep a history
    readers: Executor = field(default_factory=lambda: ThreadPoolExecutor(8, "reader"))
    long_readers: Executor = field(default_factory=lambda: ThreadPoolExecutor(1, "long-reader"))


async def chat_completions(request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream."""
    serving: Serving = request.app.state.serving
    options = serving.options
    owner = owner_of(request, options.keys)
    wanted, notes = parse(await read_body(request, options.max_body_bytes, options.max_body_s))
    model = serving.models.get(wanted.model)
    if model is None:
        raise ApiError(404, "There is no such model; GET /v1/models lists them.", param="model", code="model_not_found")
    said = _checked(wanted, options)
    watch = asyncio.ensure_future(_gone(request))
    try:
        named = (wanted.warmline and wanted.warmline.session) or wanted.user
        key = serving.sessions.key(owner, named) if named else None
        sessions, more = remembers(serving, request, named)
        notes = (*notes, *more)
        readers = serving.long_readers if len(said.earlier) > LONG else serving.readers
        loop = asyncio.get_running_loop()
        work = await loop.run_in_executor(readers, prepare, model, wanted, said, notes, sessions, key, options)
        await _enter(serving, work, watch)
    except BaseException:
        watch.cancel()
        raise
    running = Running(serving, work, watch)
    base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}
    renders_card = bool(wanted.warmline and wanted.warmline.renders_card)
    if wanted.stream:
        with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
        return Stream(running, streamed(running, base, renders_card=renders_card, with_usage=with_usage))
    return JSONResponse(await whole(running, base, renders_card=renders_card))


def remembers(serving: Serving, request: Request, named: str | None) -> tuple[Remembers, tuple[str, ...]]:
    """Where a request's conversation is kept, and a note if its client's key is none: that is no reason to refuse a reply."""
    given = request.headers.get(KEY_HEADER)
    if serving.store is None or given is None or named is None:
        return serving.sessions, ()
    try:
        return StoredSessions(serving.sessions, serving.store, client_key(given), named), ()
    except KeyFormatError:
        return serving.sessions, (f"the header {KEY_HEADER} is no key and is ignored",)


def _checked(wanted: ChatRequest, options: Options) -> Asked:
    if len(wanted.messages) > options.max_turns:
        raise ApiError(400, f"messages: more than {options.max_turns}.", param="messages", code="too_many_messages")
    if (wanted.n or 1) > options.max_n:
        raise ApiError(400, f"n: more than {options.max_n}.", param="n", code="less_than_equal")
    return asked(wanted)


async def _enter(serving: Serving, work: Work, watch: "asyncio.Future[None]") -> None:
    """Take a place, or wait for one for as long as the client does. Who may be in danger neither waits nor is refused."""
    places, loop = serving.places, asyncio.get_running_loop()
    urgent = places.is_full and await loop.run_in_executor(serving.readers, level_now, work) >= Level.HIGH
    entering = asyncio.ensure_future(places.enter(urgent=urgent))
    await asyncio.wait({entering, watch}, return_when=asyncio.FIRST_COMPLETED)
    if not entering.done():
        entering.cancel()
        with suppress(asyncio.CancelledError, ApiError):
            await entering
            places.leave()
        raise ClientDisconnect
    entering.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Running:
    """A turn that is written in a thread of its own; `events` gives what it says, on the event loop."""

    def __init__(self, serving: Serving, work: Work, watch: "asyncio.Future[None]") -> None:
        self._serving, self._work, self._watch = serving, work, watch
        self._gone = threading.Event()  # tells the engine
        self.is_left = False  # by the client
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event | None] = asyncio.Queue()
        watch.add_done_callback(lambda _: self._has_left())
        threading.Thread(target=self._run, name="reply", daemon=True).start()

    def leave(self) -> None:
        """Nobody waits any more: the engine is told, and the place is free as soon as it has listened."""
        self._has_left()
        self._watch.cancel()

    def _has_left(self) -> None:
        self.is_left = True
        self._gone.set()

    async def events(self) -> AsyncGenerator[Event | None, None]:
        """All events of the turn, the last one included whatever breaks; None after a while of silence."""
        began = self._loop.time()
        ends = began + self._serving.options.max_reply_s
        metrics, has_begun, has_spoken = self._serving.metrics, False, False
        while True:
            try:
                wait = min(KEEP_ALIVE_S, ends - self._loop.time())
                event = await asyncio.wait_for(self._queue.get(), wait)
            except TimeoutError:
                if self._loop.time() < ends:
                    yield None
                    continue
                self._gone.set()
                event = None
            if event is None:
                break
            if isinstance(event, Piece) and not has_spoken:
                metrics.first_text.observe(self._loop.time() - began)
            has_begun |= isinstance(event, Began)
            has_spoken |= isinstance(event, Piece)
            if isinstance(event, Ended):
                metrics.replies.labels(event.level.label, event.source).inc()
            yield event
            if isinstance(event, Closed):
                metrics.reply.observe(self._loop.time() - began)
                return
        for event in broken_off(self._work, has_begun=has_begun, has_spoken=has_spoken):
            if isinstance(event, Ended):
                metrics.replies.labels(event.level.label, event.source).inc()
            yield event

    def _run(self) -> None:
        events = events_of(self._work, self._gone)
        try:
            for event in events:
                self._call(self._queue.put_nowait, event)
        except Gone:
            pass
        except BaseException as error:  # noqa: BLE001 - a trace on standard error could quote somebody
            logger.error("a reply failed: %s", type(error).__name__)
        finally:
            self._call(self._queue.put_nowait, None)
            self._call(self._serving.places.leave)

    def _call(self, what: Callable[..., object], *values: object) -> None:
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(what, *values)


class Wording:
    """The text of one reply, piece by piece, as its client reads it."""

    def __init__(self, *, renders_card: bool) -> None:
        self._renders_card = renders_card
        self.text = ""

    def add(self, piece: Piece) -> str:
        """What a piece adds to the text; nothing for a card that the client draws itself."""
        if piece.is_card:
            more = "" if self._renders_card else ("\n\n" if self.text else "") + f"{piece.text}{FENCE}\n\n"
        else:
            more = piece.text if not self.text or self.text[-1].isspace() else f" {piece.text}"
        self.text += more
        return more


async def whole(running: Running, base: dict[str, Any], *, renders_card: bool) -> dict[str, Any]:
    """The answer in one piece."""
    wordings: dict[int, Wording] = {}
    reasons: dict[int, str] = {}
    more: dict[str, Any] = {}
    try:
        async for event in running.events():
            if isinstance(event, Piece):
                wordings.setdefault(event.index, Wording(renders_card=renders_card)).add(event)
            elif isinstance(event, Ended):
                reasons[event.index] = event.finish_reason
            elif isinstance(event, Closed):
                usage = usage_of(event.prompt_tokens, event.completion_tokens)
                more = {"usage": usage, "warmline": event.warmline}
    finally:
        running.leave()
    texts = [(wordings[index].text, reason) for index, reason in sorted(reasons.items())]
    return completion_of(base, texts, **more)


async def streamed(
    running: Running, base: dict[str, Any], *, renders_card: bool, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """The answer as server-sent events: level and card, the words, why each reply ended, and the rest."""
    wordings: dict[int, Wording] = {}
    level = Level.NONE
    async for event in running.events():
        if event is None:
            yield KEEP_ALIVE
        elif isinstance(event, Began):
            level = event.level
            yield sse(chunk_of(base, [], warmline={"level": level.label, "card": event.card}))
        elif isinstance(event, Piece):
            wording = wordings.setdefault(event.index, Wording(renders_card=renders_card))
            role = {} if wording.text else {"role": "assistant"}
            more = wording.add(event)
            if more:
                yield sse(chunk_of(base, [delta_of(event.index, {**role, "content": more})]))
        elif isinstance(event, Ended):
            yield sse(chunk_of(base, [delta_of(event.index, {}, event.finish_reason)]))
        else:
            usage = {"usage": usage_of(event.prompt_tokens, event.completion_tokens)} if with_usage else {}
            yield sse(chunk_of(base, [], warmline=event.warmline, **usage))
            yield DONE


class Stream(Response):
    """A response whose client may leave at any time: then the turn is told, and nothing more is written."""

    media_type = "text/event-stream"

    def __init__(self, running: Running, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._running, self._events = running, events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - ASGI's
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async with aclosing(self._events) as events:
                async for event in events:
                    if self._running.is_left:
                        break
                    await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self._running.leave()
