"""The history over HTTP: save, list, load, export and forget, for whoever sends the key that opens it."""

import json
from collections.abc import Callable, Coroutine, Iterator
from datetime import UTC, datetime
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, StreamingResponse
from fastapi.routing import APIRoute
from pydantic import ValidationError

from warmline.serve.limits import read_body
from warmline.serve.shapes import (
    ERRORS,
    ErrorShape,
    ExportShape,
    ForgottenShape,
    HistoriesShape,
    HistoryShape,
    KeptShape,
    body_of,
)
from warmline.serve.store.database import REST_S, StoreError
from warmline.serve.store.history import MAX_BYTES, ConflictError, Conversation, Saved, SavedTurn, Store, TooMuchError
from warmline.serve.store.kept import KeptFormatError, from_json
from warmline.serve.store.risks import StoredRisks
from warmline.serve.store.sealed import KEY_HEADER, AlteredError, ClientKey, KeyFormatError, client_key
from warmline.serve.wire import ApiError, SaveRequest, tree_of
from warmline.serve.wire import refusal as wrong

MAX_NAME = 256  # characters, as `warmline.session` of a chat request
MAX_BODY_BYTES, MAX_BODY_S = MAX_BYTES + 2**20, 30.0
NO_STORE = {"Cache-Control": "no-store"}
REFUSALS: dict[int | str, dict[str, Any]] = {
    **ERRORS,
    409: {"model": ErrorShape, "description": "Somebody saved or forgot meanwhile"},
    503: {"model": ErrorShape, "description": "The store is down, read-only, full or busy"},
}


def name_of(session: str) -> str:
    """What the client calls a conversation. Raises ApiError."""
    if len(session) > MAX_NAME:
        raise ApiError(400, f"session: more than {MAX_NAME} characters.", param="session")
    return session


Session = Annotated[str, Depends(name_of)]


def _parsed(body: bytes) -> SaveRequest:
    try:
        return SaveRequest.model_validate(tree_of(body))
    except ValidationError as error:
        raise wrong(error) from None


def key_of(
    given: Annotated[str | None, Header(alias=KEY_HEADER, description="base64url of 32 random bytes")] = None,
) -> ClientKey:
    """The key of a request. Raises ApiError."""
    if given is None:
        raise ApiError(401, f"The header {KEY_HEADER} is missing.", param=KEY_HEADER, code="no_client_key")
    try:
        return client_key(given)
    except KeyFormatError as error:
        text = str(error)
        raise ApiError(400, f"{KEY_HEADER}: {text}.", param=KEY_HEADER, code="bad_client_key") from None


Key = Annotated[ClientKey, Depends(key_of)]


def refusal(error: Exception) -> ApiError:
    """What a client is told of what the store cannot do."""
    text = str(error)
    sentence = f"{text[:1].upper()}{text[1:]}."
    if isinstance(error, ConflictError):
        return ApiError(409, sentence, code="history_conflict")
    if isinstance(error, TooMuchError):
        return ApiError(413, sentence, code="history_too_large")
    if isinstance(error, AlteredError):
        return ApiError(500, sentence, kind="server_error", code="history_altered")
    headers = {"Retry-After": str(int(REST_S))}
    return ApiError(503, sentence, kind="server_error", code="history_unavailable", headers=headers)


class HistoryRoute(APIRoute):
    """A route whose answers no cache keeps, and whose refusals are in OpenAI's shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handled(request: Request) -> Response:
            try:
                response = await handle(request)
            except (StoreError, AlteredError, ConflictError, TooMuchError) as error:
                response = _refused(refusal(error))
            except ApiError as error:
                response = _refused(error)
            response.headers.update(NO_STORE)
            return response

        return handled


def _refused(error: ApiError) -> Response:
    return JSONResponse(error.body, error.status, error.headers)


def history_router(store: Store | None, forgotten: Callable[[Request, str], None] | None = None) -> APIRouter:
    """The routes of the history; without a store each says that history is off.

    `forgotten`: told of each conversation that its owner wants forgotten, for what is remembered elsewhere.
    """
    router = APIRouter(prefix="/v1", tags=["history"], route_class=HistoryRoute, responses=REFUSALS)

    def on() -> Store:
        if store is None:
            raise ApiError(404, "History is off on this server: it keeps nothing.", code="history_off")
        return store

    _add_keeping(router, on)
    _add_forgetting(router, on, forgotten)
    return router


def _add_keeping(router: APIRouter, on: Callable[[], Store]) -> None:
    @router.put("/history/{session}", response_model=HistoryShape, openapi_extra=body_of(SaveRequest))
    async def save(request: Request, kept: Annotated[Store, Depends(on)], key: Key, session: Session) -> JSONResponse:
        """Opt in to keep this conversation, and save it."""
        body = await read_body(request, MAX_BODY_BYTES, MAX_BODY_S)
        wanted = await run_in_threadpool(_parsed, body)
        turns = [SavedTurn(turn.role, turn.content, turn.t) for turn in wanted.turns]
        return JSONResponse(_shown(await run_in_threadpool(kept.save, key, session, turns, wanted.version)))

    @router.get("/history", response_model=HistoriesShape)
    def conversations(kept: Annotated[Store, Depends(on)], key: Key) -> JSONResponse:
        """What is kept under this key: names and dates."""
        return JSONResponse({"object": "list", "data": [_shown(each) for each in kept.conversations(key)]})

    @router.get("/history/{session}", response_model=KeptShape)
    def load(kept: Annotated[Store, Depends(on)], key: Key, session: Session) -> JSONResponse:
        """One conversation with its turns."""
        found = kept.load(key, session)
        if found is None:
            raise ApiError(404, "There is no such conversation under this key.", code="history_not_found")
        return JSONResponse(_whole(found))

    @router.get("/export", response_model=ExportShape)
    def export(kept: Annotated[Store, Depends(on)], key: Key) -> StreamingResponse:
        """Everything that is kept under this key."""
        headers = {"Content-Disposition": 'attachment; filename="warmline-export.json"'}
        return StreamingResponse(_export(kept, key), media_type="application/json", headers=headers)


def _add_forgetting(
    router: APIRouter, on: Callable[[], Store], forgotten: Callable[[Request, str], None] | None
) -> None:
    def forget_elsewhere(request: Request, *sessions: str) -> None:
        if forgotten is not None:
            for session in sessions:
                forgotten(request, session)

    @router.delete("/history/{session}", response_model=ForgottenShape)
    def forget(request: Request, kept: Annotated[Store, Depends(on)], key: Key, session: Session) -> JSONResponse:
        """Forget one conversation and its risk state."""
        was_kept = kept.forget(key, session)
        if was_kept:  # who has not the key of a kept conversation makes nobody forget its risk
            forget_elsewhere(request, session)
        return JSONResponse({"object": "history.forgotten", "forgotten": int(was_kept)})

    @router.delete("/history", response_model=ForgottenShape)
    def forget_all(request: Request, kept: Annotated[Store, Depends(on)], key: Key) -> JSONResponse:
        """Forget everything that is kept under this key."""
        names = [each.session for each in kept.conversations(key)]
        gone = kept.forget_all(key)
        forget_elsewhere(request, *names)
        return JSONResponse({"object": "history.forgotten", "forgotten": gone})


def _shown(saved: Saved) -> dict[str, Any]:
    return {"object": "history", **saved._asdict()}


def _whole(kept: Conversation) -> dict[str, Any]:
    return {**_shown(kept.saved), "turns": [_turn(turn) for turn in kept.turns]}


def _turn(turn: SavedTurn) -> dict[str, Any]:
    return {name: value for name, value in turn._asdict().items() if value is not None}


def _export(store: Store, key: ClientKey) -> Iterator[bytes]:
    """Everything of a key as one JSON object, a conversation at a time: all of them need not fit into memory."""
    found = iter(store.export(key))
    first = next(found, None)  # a database that is down is told before the answer begins
    return _pieces(store, key, chain([] if first is None else [first], found))


def _pieces(store: Store, key: ClientKey, found: Iterator[Conversation]) -> Iterator[bytes]:
    at = datetime.fromtimestamp(store.now(), UTC).isoformat(timespec="seconds")
    yield b'{"object":"export","format":1,"exported":%s,"conversations":[' % json.dumps(at).encode()
    for number, each in enumerate(found):
        tree = {**_whole(each), "risk": _risk(store, key, each.saved.session)}
        yield (b",\n" if number else b"\n") + json.dumps(tree, ensure_ascii=True).encode()
    yield b"\n]}\n"


def _risk(store: Store, key: ClientKey, session: str) -> dict[str, Any] | None:
    """What is kept of a conversation's risk: it is the person's too."""
    try:
        data = StoredRisks(store).load(session, key)
        return None if data is None else json.loads(data) if from_json(data) else None
    except (AlteredError, KeptFormatError):
        return None
