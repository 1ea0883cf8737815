"""An engine behind any OpenAI-compatible server (vLLM, llama.cpp, SGLang, Ollama), spoken to over HTTP."""

import json
import re
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import httpx

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores
from warmline.engine.structured import (
    PROBE_PROMPT,
    PROBE_SAMPLING,
    Structured,
    grammar_fields,
    obeyed,
    parameters_to_try,
    probe_fields,
)

MAX_SERVER_MESSAGE = 300  # characters of a server's error message that are passed on
PROBE_TIMEOUT_S = 5.0  # for the whole answer: somebody in danger may be waiting
PROBE_LENGTH = 100  # characters; a longer answer keeps to no grammar of ours
RETRY_S = 10.0  # after a probe that had no answer
REFUSALS = (httpx.codes.BAD_REQUEST, httpx.codes.UNPROCESSABLE_ENTITY)  # of a parameter that a server does not know


class _RefusedError(EngineError):
    """The server understood that it was asked, and does not do it."""


class RemoteEngine:
    """Streams replies of `model` from the server at `url`, given with or without `/v1`.

    `timeout_s` bounds the silence before and between pieces, not the whole reply. Chunks leave out the request's
    `prefill`. Every failure is an EngineError of one line that names the URL and nothing that was said. `structured`:
    the parameter that carries a grammar; `auto` finds it with one small request, `none` sends no grammar.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        structured: Structured = "auto",
    ) -> None:
        self._endpoint = _chat_endpoint(url)
        self._model = model
        self._timeout_s = timeout_s
        self._certificates = httpx.create_ssl_context()  # reading them anew costs some 50 ms a request
        self._untried = parameters_to_try(structured)  # empty once the server has answered a probe
        self._parameter: str | None = None  # that the server obeyed
        self._next_probe = 0.0  # on the monotonic clock
        self._probing = threading.Lock()
        self._headers = {}
        if api_key is not None:
            if not (api_key.isascii() and api_key.isprintable()):
                raise EngineError(f"the API key for {self.url} has characters that no HTTP header can carry")
            self._headers["Authorization"] = f"Bearer {api_key}"

    @property
    def url(self) -> str:
        """The address that replies come from, without a password or a query that it may carry."""
        return str(self._endpoint.copy_with(userinfo=b"", query=None))

    def capabilities(self) -> frozenset[Capability]:
        """`n`; and `grammar` if the server keeps to one, for which the first call sends it one small request.

        What it answers is kept. A server that gives no answer has no grammar for now and is asked again later.
        """
        return frozenset(("n",) if self._obeyed_parameter() is None else ("n", "grammar"))

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """Stream `request.n` replies; closing the iterator closes the connection, which stops the server."""
        if request.n < 1:
            raise EngineError(f"n is {request.n}; expected at least 1 reply")
        if request.constraint is None:
            return self._generate(request, {})
        parameter = self._obeyed_parameter()
        if parameter is None:
            raise EngineError(f"{self.url} follows no grammar")
        return self._generate(request, grammar_fields(parameter, request.constraint))

    def score(self, messages: Sequence[Message], reply: str) -> Scores:  # noqa: ARG002 (the protocol's signature)
        """Always an EngineError: what servers do with `echo` and `logprobs` differs too much to be trusted."""
        raise EngineError(f"{self.url} gives no log-probabilities of given text; score with a local engine")

    def _obeyed_parameter(self) -> str | None:
        """The parameter whose grammar the server keeps to, as far as is known."""
        with self._probing:  # a second thread waits for the answer to the first one's question
            if self._untried and time.monotonic() >= self._next_probe:
                self._probe()
            return self._parameter

    def _probe(self) -> None:
        request = GenerateRequest((Message("user", PROBE_PROMPT),), PROBE_SAMPLING)
        body = self._body(request, 1, 0) | probe_fields(self._untried)
        text, ends = "", time.monotonic() + PROBE_TIMEOUT_S
        try:
            with closing(self._stream(body, 1, PROBE_TIMEOUT_S, quotes=False)) as pieces:
                for piece in pieces:
                    text += piece.text
                    if time.monotonic() > ends:
                        raise EngineError(f"{self.url} answers too slowly to be asked for a grammar")
                    if len(text) > PROBE_LENGTH:
                        break
        except _RefusedError:
            pass  # an answer too: it knows no such parameter
        except EngineError:
            self._next_probe = time.monotonic() + RETRY_S
            return
        self._parameter = obeyed(text.strip())
        self._untried = ()

    def _generate(self, request: GenerateRequest, fields: dict[str, Any]) -> Iterator[Chunk]:
        num_done = 0
        while num_done < request.n:  # some servers (Ollama) ignore n and give one reply at a time
            indices: set[int] = set()
            num_missing = request.n - num_done
            body = self._body(request, num_missing, num_done) | fields
            # A server that cannot read a grammar may quote what it was sent.
            for piece in self._stream(body, num_missing, self._timeout_s, quotes=not fields):
                indices.add(piece.index)
                if piece.text:
                    yield Chunk(piece.text, num_done + piece.index)
            if indices != set(range(max(len(indices), 1))):
                raise EngineError(f"{self.url} ended its answer without a reply")
            num_done += len(indices)

    def _body(self, request: GenerateRequest, n: int, num_done: int) -> dict[str, Any]:
        sampling = request.sampling
        body: dict[str, Any] = {
            "model": self._model,
            "messages": [_wire_message(message.role, message.content) for message in request.messages],
            "stream": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.max_new_tokens,
        }
        if sampling.seed is not None:
            body["seed"] = sampling.seed + num_done  # the same seed again would give the same reply again
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        if n > 1:
            body["n"] = n
        if request.prefill:
            body["messages"].append(_wire_message("assistant", request.prefill))
            body |= {"continue_final_message": True, "add_generation_prompt": False}
        return body

    def _stream(
        self, body: dict[str, Any], n: int, timeout_s: float, *, quotes: bool
    ) -> Generator["_Piece", None, None]:
        """The pieces of up to `n` replies, until `[DONE]` or an end after every reply's finish_reason.

        `quotes`: whether an error may say what the server said.
        """
        seen: set[int] = set()
        finished: set[int] = set()
        reason = ""
        try:
            with httpx.stream(
                "POST",
                self._endpoint,
                json=body,
                headers=self._headers,
                timeout=timeout_s,
                verify=self._certificates,
            ) as response:
                self._check_status(response, quotes=quotes)
                for data in sse_data(response.iter_bytes()):
                    if data.strip() == b"[DONE]":
                        return
                    for piece in self._pieces(data, n, quotes=quotes):
                        seen.add(piece.index)
                        if piece.finished:
                            finished.add(piece.index)
                        yield piece
        except httpx.ConnectError as error:
            raise EngineError(f"cannot connect to {self.url}: {_one_line(str(error))}") from None
        except httpx.TimeoutException:
            raise EngineError(f"{self.url} sent nothing for {timeout_s:g} s") from None
        except httpx.HTTPError as error:
            reason = f": {_one_line(str(error))}"
        # A clean end after fewer replies than asked for is the server's choice; a cut connection is not.
        if not finished or seen != finished or (reason and len(finished) < n):
            where = "in the middle of a reply" if seen else "before the first word"
            raise EngineError(f"the stream from {self.url} broke off {where}{reason if quotes else ''}")

    def _check_status(self, response: httpx.Response, *, quotes: bool) -> None:
        if response.status_code == httpx.codes.OK:
            content_type = response.headers.get("content-type", "text/event-stream")
            if content_type.startswith(("application/json", "text/html")):
                raise EngineError(f"{self.url} answered with {_one_line(content_type)}; expected a stream of events")
            return
        try:
            message = _server_message(json.loads(response.read())) if quotes else ""
        except ValueError:
            message = ""
        status = response.status_code
        message = message or httpx.codes.get_reason_phrase(status) or "no reason given"
        kind = _RefusedError if status in REFUSALS else EngineError
        raise kind(f"{self.url} answered HTTP {status}: {message}")

    def _pieces(self, data: bytes, n: int, *, quotes: bool) -> list["_Piece"]:
        # No error here says what the data was: it may hold words of the conversation.
        try:
            event = json.loads(data)
        except ValueError:
            raise EngineError(f"{self.url} sent an event that is not valid JSON") from None
        if isinstance(event, dict) and event.get("error"):
            message = _server_message(event) if quotes else ""
            raise EngineError(f"{self.url} reports: {message or 'an error without a message'}")
        try:
            pieces = [_piece(choice) for choice in event.get("choices") or []]
        except (AttributeError, TypeError):
            raise EngineError(f"{self.url} sent an event that is not a chat completion chunk") from None
        for piece in pieces:
            if piece.index not in range(n):
                raise EngineError(f"{self.url} sent reply number {piece.index + 1}; {n} asked for")
        return pieces


@dataclass(frozen=True)
class _Piece:
    index: int
    text: str
    finished: bool


def sse_data(blobs: Iterable[bytes]) -> Iterator[bytes]:
    r"""The data of each server-sent event, wherever the network cut the bytes; comments and other fields are left out.

    >>> list(sse_data([b": ping\n\ndata: {\"a\"", b": 1}\r\n\r", b"\ndata: [DONE]\n\n"]))
    [b'{"a": 1}', b'[DONE]']
    """
    data: list[bytes] = []
    for line in _lines(blobs):
        if line.startswith(b"data:"):
            data.append(line.removeprefix(b"data:").removeprefix(b" "))
        elif line == b"" and data:
            yield b"\n".join(data)
            data = []
    if data:  # servers forget the blank line after the last event
        yield b"\n".join(data)


def _lines(blobs: Iterable[bytes]) -> Iterator[bytes]:
    """The lines that were ended; what a broken stream leaves behind the last line end is half an event."""
    rest = b""
    for blob in blobs:
        # Only bytes of ASCII separate lines, so that no character is ever cut; a last \r may be half of \r\n.
        *lines, rest = re.split(rb"\r\n|\n|\r(?!\Z)", rest + blob)
        yield from lines


def _chat_endpoint(url: str) -> httpx.URL:
    try:
        parsed = httpx.URL(url.strip())
    except httpx.InvalidURL as error:
        raise EngineError(f"{_one_line(url)!r} is not a URL: {error}") from None
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise EngineError(f"{_one_line(url)!r} is not a server's URL; expected one like http://127.0.0.1:8000/v1")
    base = parsed.path.rstrip("/").removesuffix("/chat/completions").removesuffix("/v1")
    return parsed.copy_with(path=f"{base}/v1/chat/completions")


def _wire_message(role: str, content: str) -> dict[str, str]:
    # A terminal may give half of a surrogate pair, which no UTF-8 body can hold.
    return {"role": role, "content": content.encode("utf-8", errors="replace").decode("utf-8")}


def _piece(choice: dict[str, Any]) -> _Piece:
    index = choice.get("index") or 0
    text = (choice.get("delta") or {}).get("content") or ""
    if not isinstance(index, int) or not isinstance(text, str):
        raise TypeError
    return _Piece(index, text, bool(choice.get("finish_reason")))


def _server_message(body: object) -> str:
    """The message of an error object in any of the forms that servers send, or an empty text.

    >>> _server_message({"error": {"message": "model 'x' does not exist", "code": 404}})
    "model 'x' does not exist"
    """
    if not isinstance(body, dict):
        return ""
    error = body.get("error")
    if isinstance(error, dict):
        return _server_message(error)
    texts = (error, body.get("message"), body.get("detail"))
    return next((_one_line(text) for text in texts if isinstance(text, str) and text), "")


def _one_line(text: str) -> str:
    return " ".join(text.split())[:MAX_SERVER_MESSAGE]
