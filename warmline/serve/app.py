"""The API server: OpenAI's chat shapes before the companion, and help that works without a model."""

import logging
import traceback
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from warmline import __version__
from warmline.safety.levels import Level
from warmline.serve.completions import Serving, chat_completions, remembers
from warmline.serve.keys import owner_of
from warmline.serve.limits import Places, read_body
from warmline.serve.metrics import Metrics
from warmline.serve.models import Model, Options
from warmline.serve.pages import WEB, pages
from warmline.serve.sessions import Sessions
from warmline.serve.shapes import ERRORS, ActionShape, CompletionShape, ModelsShape, body_of, schema_of
from warmline.serve.store.history import Store
from warmline.serve.store.routes import history_router
from warmline.serve.wire import ActionRequest, ApiError, ChatRequest, refusal, tree_of

logger = logging.getLogger("warmline.serve")
HEADERS = {
    b"content-security-policy": b"default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    b"object-src 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"x-frame-options": b"DENY",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"permissions-policy": b"camera=(), microphone=(), geolocation=()",
    b"cache-control": b"no-store",
}
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


def create_app(
    models: Mapping[str, Model], options: Options, routers: Sequence[APIRouter] = (), store: Store | None = None
) -> FastAPI:
    """The application. `models`: by the name that clients say; `routers`: routes of other parts, behind the same keys;
    `store`: where those who want to keep a history keep it, None for nowhere."""
    app = FastAPI(title="warmline", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    places = Places(options.max_running, options.max_waiting, options.max_wait_s)
    app.state.serving = Serving(dict(models), options, Sessions(options.max_sessions), places, Metrics(), store)
    app.include_router(api)
    app.include_router(pages)
    for router in (history_router(store, _forget), *routers):
        app.include_router(router, dependencies=[Depends(_authorised)])
    if WEB.is_dir():
        app.mount("/static", StaticFiles(directory=WEB), name="static")
    app.openapi = lambda: schema_of(app, [*models], needs_key=options.keys is not None)  # type: ignore[method-assign]
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    if options.cors_origins:
        app.add_middleware(CORSMiddleware, allow_origins=options.cors_origins, allow_methods=["*"], allow_headers=["*"])
    app.add_middleware(Shield, options=options, metrics=app.state.serving.metrics)
    return app


def _authorised(request: Request) -> None:
    owner_of(request, request.app.state.serving.options.keys)


def _forget(request: Request, session: str) -> None:
    """What this process remembers of a conversation whose owner wants it forgotten."""
    serving: Serving = request.app.state.serving
    serving.sessions.forget(serving.sessions.key(owner_of(request, serving.options.keys), session))


api = APIRouter()
api.post(
    "/v1/chat/completions",
    response_model=CompletionShape,
    responses={200: {"content": {"text/event-stream": {}}}, **ERRORS},
    openapi_extra=body_of(ChatRequest),
)(chat_completions)


@api.get("/v1/models", response_model=ModelsShape, responses=ERRORS)
def list_models(request: Request) -> Response:
    """The models, as OpenAI lists them."""
    serving: Serving = request.app.state.serving
    owner_of(request, serving.options.keys)
    rows = [{"id": name, "object": "model", "created": 0, "owned_by": "warmline"} for name in serving.models]
    return JSONResponse({"object": "list", "data": rows})


@api.post(
    "/v1/sessions/{session}/actions",
    response_model=ActionShape,
    responses=ERRORS,
    openapi_extra=body_of(ActionRequest),
)
async def act(request: Request, session: str) -> Response:
    """A button of the card: someone is with me, this is not about me, hide."""
    serving: Serving = request.app.state.serving
    owner = owner_of(request, serving.options.keys)
    tree = tree_of(await read_body(request, serving.options.max_body_bytes, serving.options.max_body_s))
    try:
        wanted = ActionRequest.model_validate(tree)
    except ValidationError as error:
        raise refusal(error) from None
    sessions, _ = remembers(serving, request, session)
    known = await run_in_threadpool(sessions.act, serving.sessions.key(owner, session), wanted.action)
    level = Level.NONE if known is None else known.state.floor
    return JSONResponse({"action": wanted.action, "known": known is not None, "level": level.label})


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.body, error.status, error.headers)


async def _http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    messages = {404: "There is nothing at this address.", 405: "This address does not take that method."}
    refused = ApiError(error.status_code, messages.get(error.status_code, "The request was refused."))
    return JSONResponse(refused.body, error.status_code, error.headers)


async def _validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    name = str(error.errors()[0]["loc"][-1])
    known = name if name in {"format", "country", "language", "about"} else None
    return JSONResponse(ApiError(400, f"{known or 'A parameter'}: not what is expected.", param=known).body, 400)


class Shield:
    """The outermost line of a request: whose page asks, headers on every answer, and no trace, which could quote somebody."""

    def __init__(self, app: ASGIApp, options: Options, metrics: Metrics) -> None:
        self._app, self._options, self._metrics = app, options, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ())]
                if scope["path"].startswith("/static/"):  # what of the page has not changed is not sent again
                    headers.append((b"cache-control", b"no-cache"))
                present = {name.lower() for name, _ in headers}
                message["headers"] = headers + [pair for pair in HEADERS.items() if pair[0] not in present]
            await send(message)

        try:
            refused = self._refusal(scope)
            if refused is not None:
                await JSONResponse(refused.body, refused.status)(scope, receive, guarded)
            else:
                await self._app(scope, receive, guarded)
        except ClientDisconnect:
            pass
        except Exception as error:  # noqa: BLE001 - the outermost line of a request
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("a request failed: %s at %s:%s", type(error).__name__, place.name, place.lineno)
            if not status:
                body = ApiError(500, "The server failed to answer.", kind="server_error", code="internal_error").body
                await JSONResponse(body, 500)(scope, receive, guarded)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(route, str(status or "gone")).inc()

    def _refusal(self, scope: Scope) -> ApiError | None:
        """What a browser does for a page of another host: such a page must not talk through somebody's own server."""
        headers = dict(scope["headers"])
        host = headers.get(b"host", b"").decode("latin-1")
        if self._options.hosts is not None and _name_of(host) not in self._options.hosts:
            return ApiError(421, "This server does not answer to that host name.", code="wrong_host")
        origin = headers.get(b"origin", b"").decode("latin-1")
        is_own = not origin or origin in self._options.cors_origins or _host_of(origin) == host.lower()
        if not is_own and scope["method"] not in SAFE_METHODS:
            return ApiError(403, "Pages of other hosts may not use this server.", code="wrong_origin")
        return None


def _name_of(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _host_of(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
