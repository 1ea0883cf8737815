"""The API server: OpenAI's chat shapes before the companion, and help that works without a model."""

import asyncio
import logging
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warmline import __version__
from warmline.safety.levels import Level
from warmline.safety.release import text_of
from warmline.safety.resources.card import card_for
from warmline.serve.completions import Began, Closed, Ended, Piece, Running, Wording, level_now, prepare
from warmline.serve.limits import Places, read_body
from warmline.serve.models import Model, Options
from warmline.serve.sessions import Sessions
from warmline.serve.wire import (
    DONE,
    ActionRequest,
    ApiError,
    asked,
    chunk_of,
    completion_of,
    delta_of,
    parse,
    refusal,
    sse,
    tree_of,
    usage_of,
)

logger = logging.getLogger("warmline.serve")
WEB = Path(__file__).parent / "web"  # the page; the API works without it
HEADERS = {
    b"content-security-policy": b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
}


def create_app(models: Mapping[str, Model], options: Options, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """The application. `models`: by the name that clients say; `routers`: routes of other parts, as the history's."""
    app = FastAPI(title="warmline", version=__version__, docs_url=None, redoc_url=None)
    app.state.models, app.state.options = dict(models), options
    app.state.sessions = Sessions(options.max_sessions)
    app.state.places = Places(options.max_running, options.max_waiting, options.max_wait_s)
    app.include_router(routes)
    for router in routers:
        app.include_router(router)
    if (WEB / "index.html").is_file():
        app.mount("/static", StaticFiles(directory=WEB), name="static")
        app.get("/", include_in_schema=False)(lambda: FileResponse(WEB / "index.html"))
        app.get("/sw.js", include_in_schema=False)(lambda: FileResponse(WEB / "sw.js"))  # here its scope is every page
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_middleware(Shield)
    return app


routes = APIRouter()


@routes.get("/v1/models")
def list_models(request: Request) -> Response:
    """The models, as OpenAI lists them."""
    models: Mapping[str, Model] = request.app.state.models
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "warmline"} for name in models]
    return JSONResponse({"object": "list", "data": rows})


@routes.get("/resources")
def resources(request: Request, country: str | None = None, format: str = "json") -> Response:  # noqa: A002
    """The card of a country. No model takes part."""
    models: Mapping[str, Model] = request.app.state.models
    setting = next(iter(models.values())).setting
    chosen = country or setting.country
    card = card_for(setting.directory, chosen, Level.NONE, today=datetime.now(UTC).date())
    return PlainTextResponse(text_of(card)) if format == "text" else JSONResponse(card.as_json())


@routes.post("/v1/sessions/{session}/actions")
async def act(request: Request, session: str) -> Response:
    """A button of the card: someone is with me, this is not about me, hide."""
    state = request.app.state
    tree = tree_of(await read_body(request, state.options.max_body_bytes, state.options.max_body_s))
    try:
        wanted = ActionRequest.model_validate(tree)
    except ValidationError as error:
        raise refusal(error) from None
    known = state.sessions.act(state.sessions.key("", session), wanted.action)
    level = Level.NONE if known is None else known.state.floor
    return JSONResponse({"action": wanted.action, "known": known is not None, "level": level.label})


@routes.post("/v1/chat/completions")
async def chat_completions(request: Request) -> Response:
    """Answer a conversation, in one piece or as a stream."""
    state = request.app.state
    options: Options = state.options
    body = await read_body(request, options.max_body_bytes, options.max_body_s)
    wanted, notes = parse(body)
    model = state.models.get(wanted.model)
    if model is None:
        raise ApiError(404, "There is no such model; GET /v1/models lists them.", param="model", code="model_not_found")
    if len(wanted.messages) > options.max_turns:
        raise ApiError(400, f"messages: more than {options.max_turns}.", param="messages", code="too_many_messages")
    said = asked(wanted)
    named = wanted.warmline.session if wanted.warmline and wanted.warmline.session else wanted.user
    key = state.sessions.key("", named) if named else None
    work = await asyncio.to_thread(prepare, model, wanted, said, notes, state.sessions, key, options)
    urgent = state.places.is_full and await asyncio.to_thread(level_now, work) >= Level.HIGH
    await state.places.enter(urgent=urgent)
    running = Running(work, state.places.leave)
    base = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": wanted.model}
    renders_card = bool(wanted.warmline and wanted.warmline.renders_card)
    if not wanted.stream:
        return await _whole(running, base, renders_card)
    with_usage = bool(wanted.stream_options and wanted.stream_options.include_usage)
    stream = _stream(running, base, renders_card, with_usage)
    return StreamingResponse(stream, media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


async def _whole(running: Running, base: dict[str, Any], renders_card: bool) -> Response:
    wordings: dict[int, Wording] = {}
    reasons: dict[int, str] = {}
    closed: Closed | None = None
    while (event := await running.next()) is not None:
        if isinstance(event, Piece):
            wordings.setdefault(event.index, Wording(renders_card=renders_card)).add(event.released)
        elif isinstance(event, Ended):
            reasons[event.index] = event.finish_reason
        elif isinstance(event, Closed):
            closed = event
    assert closed is not None
    texts = [(wordings[index].text, reason) for index, reason in sorted(reasons.items())]
    usage = usage_of(closed.prompt_tokens, closed.completion_tokens)
    return JSONResponse(completion_of(base, texts, usage=usage, warmline=closed.warmline))


async def _stream(running: Running, base: dict[str, Any], renders_card: bool, with_usage: bool) -> AsyncIterator[bytes]:
    wordings: dict[int, Wording] = {}
    level = "none"
    try:
        while (event := await running.next()) is not None:
            if isinstance(event, Began):
                level = event.level.label
                card = None if event.card is None else event.card.as_json()
                yield sse(chunk_of(base, [], warmline={"level": level, "card": card}))
            elif isinstance(event, Piece):
                fresh = event.index not in wordings
                wording = wordings.setdefault(event.index, Wording(renders_card=renders_card))
                more = wording.add(event.released)
                if more:
                    role = {"role": "assistant"} if fresh or len(wording.text) == len(more) else {}
                    yield sse(chunk_of(base, [delta_of(event.index, {**role, "content": more})]))
            elif isinstance(event, Ended):
                yield sse(chunk_of(base, [delta_of(event.index, {}, event.finish_reason)]))
            else:
                usage = {"usage": usage_of(event.prompt_tokens, event.completion_tokens)} if with_usage else {}
                yield sse(chunk_of(base, [], warmline=event.warmline, **usage))
                yield DONE
    finally:
        running.gone.set()


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "There is no such page.", 405: "This address does not take that method."}
    refused = ApiError(error.status_code, messages.get(error.status_code, "The request was refused."))
    return JSONResponse(refused.body, error.status_code, error.headers)


class Shield:
    """The outermost line of a request: headers on every answer, and no trace of what broke, which could quote somebody."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def guarded(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                present = {name for name, _ in message["headers"]}
                more = {**HEADERS, b"cache-control": b"no-store"}
                message["headers"] = [*message["headers"], *((k, v) for k, v in more.items() if k not in present)]
            await send(message)

        try:
            await self._app(scope, receive, guarded)
        except ClientDisconnect:
            pass
        except Exception as error:  # noqa: BLE001 - the outermost line of a request
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("a request failed: %s at %s:%s", type(error).__name__, place.name, place.lineno)
            if not started:
                body = ApiError(500, "The server failed to answer.", kind="server_error", code="internal_error").body
                await JSONResponse(body, 500)(scope, receive, guarded)
