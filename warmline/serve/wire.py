"""OpenAI's chat shapes: what a request may say, strictly typed, and how answers, pieces and errors are written."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warmline.config.fields import StyleSettings
from warmline.safety.validate.context import Turn

FENCE = "-" * 40  # a line between the card and the reply, for clients that do not render the card
IGNORED = {  # parameters that change nothing here, and what is said of them
    "tools": "tools are ignored",
    "tool_choice": "tools are ignored",
    "functions": "tools are ignored",
    "function_call": "tools are ignored",
    "response_format": "response_format is ignored",
    "logit_bias": "logit_bias is ignored",
    "logprobs": "logprobs are withheld",
    "top_logprobs": "logprobs are withheld",
    "frequency_penalty": "frequency_penalty is ignored",
    "presence_penalty": "presence_penalty is ignored",
    "audio": "audio is ignored",
    "modalities": "modalities is ignored",
    "prediction": "prediction is ignored",
    "reasoning_effort": "reasoning_effort is ignored",
    "store": "nothing is stored: store is ignored",
}


class ApiError(Exception):
    """A refusal in OpenAI's shape. Its words are ours alone: nothing of a request is quoted, but a parameter's name."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": code}}
        self.headers = dict(headers or {})


class Shape(BaseModel):
    """Unknown fields are left out: clients of OpenAI's send many."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Part(Shape):
    type: str
    text: str | None = None


class WireMessage(Shape):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None


class StreamOptions(Shape):
    include_usage: bool | None = None


class WarmlineOptions(Shape):
    session: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    renders_card: bool = False
    style: StyleSettings | None = None
    country: Annotated[str, Field(pattern="^[A-Za-z]{2}$")] | None = None


class ChatRequest(Shape):
    """The body of POST /v1/chat/completions."""

    model: str
    messages: Annotated[list[WireMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stop: str | Annotated[list[str], Field(max_length=4)] | None = None
    user: str | None = None
    warmline: WarmlineOptions | None = None


class ActionRequest(Shape):
    """The body of POST /v1/sessions/{session}/actions."""

    action: Literal["with_me", "not_me", "hide"]


class SavedTurnPart(Shape):
    role: Literal["user", "assistant"]
    content: Annotated[str, Field(max_length=100_000)]
    t: Annotated[float, Field(ge=-1e11, le=1e11, allow_inf_nan=False)] | None = None  # epoch seconds


class SaveRequest(Shape):
    """The body of PUT /v1/history/{session}. A `risk` is not read: the server keeps its own, which nobody can lower."""

    turns: Annotated[list[SavedTurnPart], Field(max_length=10_000)]
    version: Annotated[int, Field(ge=1, lt=2**31)] | None = None  # of what these turns replace


class Asked(NamedTuple):
    """A request as the turn needs it."""

    earlier: tuple[Turn, ...]  # user's and assistant's
    text: str  # the user's newest turn
    system: str  # what the client's system and developer messages say
    notes: tuple[str, ...]


def parse(body: bytes) -> tuple[ChatRequest, tuple[str, ...]]:
    """The request, and notes of what in it is ignored. Raises ApiError, which names the parameter and quotes nothing."""
    tree = tree_of(body)
    try:
        request = ChatRequest.model_validate(tree)
    except ValidationError as error:
        raise refusal(error) from None
    given = [IGNORED[name] for name in tree if name in IGNORED and tree[name] not in (None, False, [], {})]
    return request, tuple(dict.fromkeys(given))


def tree_of(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. Halves of surrogate pairs become U+FFFD, so that a cut emoji is no reason to refuse."""
    try:
        tree = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON in UTF-8.", code="invalid_json") from None
    if not isinstance(tree, dict):
        raise ApiError(400, "The body is not a JSON object.", code="invalid_json")
    return _whole(tree)


def _no_constant(_: str) -> None:
    raise ValueError


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole(each) for each in value]
    if isinstance(value, dict):
        return {_whole(key): _whole(each) for key, each in value.items()}
    return value


def refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a request, by the name of its parameter. Nothing of the request is quoted."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ""
    for each in first["loc"]:
        if isinstance(each, int):
            param += f"[{each}]"
        elif each in _FIELDS:  # not the names of types, and not what a client has made up
            param += f".{each}"
    param = param.lstrip(".")
    said = "Not what is expected" if first["type"] == "value_error" else first["msg"]
    return ApiError(400, f"{param or 'The body'}: {said}.", param=param or None, code=first["type"])


_FIELDS = frozenset(
    name
    for shape in (ChatRequest, ActionRequest, WireMessage, Part, StreamOptions, WarmlineOptions, StyleSettings)
    for name in shape.model_fields
)


def asked(request: ChatRequest) -> Asked:
    """The conversation of a request: what follows the user's newest message is left out.

    Raises ApiError if no message is the user's, or the newest says nothing.
    """
    last = max((at for at, each in enumerate(request.messages) if each.role == "user"), default=None)
    if last is None:
        raise ApiError(400, "messages: none of them is from the user.", param="messages")
    notes: list[str] = []
    turns: list[Turn] = []
    system: list[str] = []
    for at, message in enumerate(request.messages):
        text = _text_of(message, notes)
        if message.role in ("system", "developer"):
            system.append(text)
        elif message.role in ("tool", "function"):
            notes.append("tool messages are ignored")
        elif at > last:
            notes.append("what follows the newest user message is ignored")
        elif message.role == "user":
            turns.append(Turn("user", text))
        elif text:
            turns.append(Turn("assistant", without_card(text)))
    if not turns[-1].content.strip():
        raise ApiError(400, "messages: the newest user message has no text.", param=f"messages[{last}].content")
    said = "\n\n".join(each for each in system if each.strip())
    return Asked(tuple(turns[:-1]), turns[-1].content, said, tuple(dict.fromkeys(notes)))


def _text_of(message: WireMessage, notes: list[str]) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    if any(part.text is None for part in message.content):
        notes.append("content that is not text is ignored")
    return "\n".join(part.text for part in message.content if part.text is not None)


def without_card(text: str) -> str:
    """A reply as the companion gave it, without the card that stood above it."""
    return re.split(rf"^{FENCE}$\n*", text, flags=re.MULTILINE)[-1]


def sse(payload: Mapping[str, Any]) -> bytes:
    """One event of a stream."""
    return b"data: " + json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": \n\n"  # a comment, which clients skip, so that nothing between takes silence for a cut


def usage_of(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def chunk_of(base: Mapping[str, Any], choices: Sequence[Mapping[str, Any]], **more: Any) -> dict[str, Any]:
    """A `chat.completion.chunk`; `base`: id, created and model, the same for all of a stream."""
    return {**base, "object": "chat.completion.chunk", "choices": [*choices], **more}


def delta_of(index: int, delta: Mapping[str, str], finish_reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": dict(delta), "logprobs": None, "finish_reason": finish_reason}


def completion_of(base: Mapping[str, Any], texts: Sequence[tuple[str, str]], **more: Any) -> dict[str, Any]:
    """A `chat.completion`; `texts`: content and finish reason of each choice."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": None},
            "logprobs": None,
            "finish_reason": reason,
        }
        for index, (content, reason) in enumerate(texts)
    ]
    return {**base, "object": "chat.completion", "choices": choices, **more}
