"""Answers as the OpenAPI schema describes them; nothing is made from these, they say what is made elsewhere."""

from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from warmline.serve.wire import ActionRequest, ChatRequest, SaveRequest


class ErrorBody(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorShape(BaseModel):
    """OpenAI's."""

    error: ErrorBody


ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorShape, "description": what}
    for status, what in {
        400: "A parameter is wrong",
        401: "The API key is missing or wrong",
        403: "A page of another host asks",
        404: "There is no such thing",
        405: "This address does not take that method",
        408: "The body did not arrive in time",
        413: "The body is too large",
        421: "The host is not one of this server's",
        429: "Too many replies are being written",
        500: "The server failed",
    }.items()
}


class ModelShape(BaseModel):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelsShape(BaseModel):
    object: Literal["list"]
    data: list[ModelShape]


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    role: Literal["assistant"]
    content: str
    refusal: None


class Choice(BaseModel):
    index: int
    message: ReplyMessage
    logprobs: None
    finish_reason: Literal["stop", "length"]


class LabelShape(BaseModel):
    label: str
    p: float


class ReadingsShape(BaseModel):
    emotion: list[LabelShape]
    strategy: list[LabelShape]
    risk: list[LabelShape]
    affect: dict[str, float]


class DisclosureShape(BaseModel):
    ai_notice_due: bool
    break_due: bool
    texts: list[str]  # what the app must show


class WarmlineShape(BaseModel):
    level: Literal["none", "elevated", "high", "emergency"]
    domains: list[str]
    reply_source: Literal["model", "rewrite", "drop_sentence", "slots", "guided", "notice"]
    card: dict[str, Any] | None
    readings: ReadingsShape
    disclosure: DisclosureShape
    notes: list[str]
    degraded: list[str]
    policy_version: str
    directory_version: str


class CompletionShape(BaseModel):
    id: str
    created: int
    model: str
    object: Literal["chat.completion"]
    choices: list[Choice]
    usage: Usage
    warmline: WarmlineShape


class ActionShape(BaseModel):
    action: Literal["with_me", "not_me", "hide"]
    known: bool  # whether anything is kept of the conversation
    level: Literal["none", "elevated", "high", "emergency"]


class DirectoryShape(BaseModel):
    version: str
    oldest_days: int | None  # since the entry that was checked longest ago
    unchecked_from: str | None  # the day from which a card says that nobody has checked it
    hidden_from: str | None  # the day from which it is not shown


class RepliesShape(BaseModel):
    running: int
    waiting: int


class HealthShape(BaseModel):
    status: Literal["ok", "degraded"]
    version: str
    policy_version: str
    models: list[dict[str, Any]]
    thresholds: dict[str, float]
    degraded: list[str]
    card_self_test: str
    directory: DirectoryShape
    replies: RepliesShape
    sessions: int  # of which risk is kept


class HistoryShape(BaseModel):
    """A conversation that is kept, without a word of it."""

    object: Literal["history"]
    session: str
    version: int
    created: float  # epoch seconds, as all times here
    used: float
    expires: float


class HistoriesShape(BaseModel):
    object: Literal["list"]
    data: list[HistoryShape]


class KeptTurnShape(BaseModel):
    role: Literal["user", "assistant"]
    content: str
    t: float | None = None


class KeptShape(HistoryShape):
    turns: list[KeptTurnShape]


class ExportedShape(KeptShape):
    risk: dict[str, Any] | None  # what is kept of it besides the words


class ExportShape(BaseModel):
    object: Literal["export"]
    format: int
    exported: str
    conversations: list[ExportedShape]


class ForgottenShape(BaseModel):
    object: Literal["history.forgotten"]
    forgotten: int  # conversations


def body_of(shape: type[BaseModel]) -> dict[str, Any]:
    """How the schema names a body that is read by hand, so that its size and its time are limited."""
    schema = {"$ref": f"#/components/schemas/{shape.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def schema_of(app: FastAPI, models: list[str], *, needs_key: bool) -> dict[str, Any]:
    """The application's OpenAPI schema, with the bodies that are read by hand and the models that are served."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        _, bodies = models_json_schema(
            [(shape, "validation") for shape in (ChatRequest, ActionRequest, SaveRequest)],
            ref_template="#/components/schemas/{model}",
        )
        bodies["$defs"]["ChatRequest"]["properties"]["model"]["enum"] = models
        said = [{"role": "user", "content": "I didn't get the job."}]
        chat = schema["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
        chat["examples"] = {
            name: {"value": {"model": models[0], "messages": said, "stream": name == "streamed"}}
            for name in ("whole", "streamed")
            if models
        }
        parts = schema.setdefault("components", {})
        parts.setdefault("schemas", {}).update(bodies["$defs"])
        if needs_key:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                for method in methods.values() if path.startswith(("/v1/", "/metrics")) else ():
                    method["security"] = [{"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema
