"""The remote engine against a real HTTP server on loopback that plays canned bytes."""

import itertools
import json
import logging
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.engine.engine import Engine, EngineError, GenerateRequest, Message, Sampling
from warmline.engine.remote import RemoteEngine, sse_data

SECRET = "my sister hides the letters"
ASK = GenerateRequest((Message("system", "Be kind."), Message("user", SECRET)))
DONE = b"data: [DONE]\n\n"


def event(content: str | None = None, *, index: int = 0, finish: str | None = None) -> bytes:
    choice = {"index": index, "delta": {"content": content}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice]}, ensure_ascii=False).encode() + b"\n\n"


@dataclass
class Server:
    """What the server is told to answer, one entry per request (the last one again), and what it was asked."""

    url: str = ""
    answers: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)  # set when the test is over
    hung_up: threading.Event = field(default_factory=threading.Event)  # set when a client went away

    def streams(self, *blobs: bytes, end: bool = True) -> None:
        """Answer with these blobs as chunks of a stream; without `end` the connection is cut after them."""
        self.answers.append(lambda handler: _stream(handler, blobs, end=end))

    def fails(self, status: int, body: bytes, content_type: str = "application/json") -> None:
        self.answers.append(lambda handler: _plain(handler, status, body, content_type))


def _stream(handler: BaseHTTPRequestHandler, blobs: tuple[bytes, ...], *, end: bool) -> None:
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream; charset=utf-8")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for blob in blobs:
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(blob), blob))
    if end:
        handler.wfile.write(b"0\r\n\r\n")


def _plain(handler: BaseHTTPRequestHandler, status: int, body: bytes, content_type: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", content_type)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextmanager
def serving() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            state.paths.append(self.path)
            state.authorizations.append(self.headers["Authorization"])
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = state.answers.pop(0) if len(state.answers) > 1 else state.answers[0]
            self.close_connection = True
            try:
                answer(self)
            except (BrokenPipeError, ConnectionResetError):
                state.hung_up.set()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state
    finally:
        state.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


def replies(engine: Engine, request: GenerateRequest = ASK) -> list[str]:
    texts: dict[int, str] = defaultdict(str)
    for chunk in engine.generate(request):
        texts[chunk.index] += chunk.text
    return [texts[index] for index in range(request.n)]


def failure(url: str, request: GenerateRequest = ASK, timeout_s: float = 10.0) -> str:
    with pytest.raises(EngineError) as caught:
        replies(RemoteEngine(url, "m", timeout_s=timeout_s), request)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    assert f"{url}/v1/chat/completions" in message
    return message


def test_a_reply_streams_through_everything_servers_send(server: Server) -> None:
    server.streams(
        b": comment\n\n",
        b'data: {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}\n\n',
        event("I am "),
        b'event: message\nid: 7\ndata: {"choices": [{"delta":\ndata: {"content": "so sorry"}}]}\r\n\r\n',
        event(" … \u2028é"),
        b'data: {"choices": []}\n\n',
        event(finish="stop"),
        b'data: {"choices": [], "usage": {"total_tokens": 9}}\n\n',
        b'data: {"usage": {"total_tokens": 9}}\n\n',
        DONE,
        b"data: after the end\n\n",
    )
    chunks = list(RemoteEngine(server.url, "m").generate(ASK))
    assert [chunk.text for chunk in chunks] == ["I am ", "so sorry", " … \u2028é"]


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_url_may_have_v1_or_not(server: Server, suffix: str) -> None:
    server.streams(event("ok", finish="stop"), DONE)
    engine = RemoteEngine(server.url + suffix, "m", api_key="k-1")
    assert replies(engine) == ["ok"]
    assert engine.url == server.url + "/v1/chat/completions"
    assert server.paths == ["/v1/chat/completions"]
    assert server.authorizations == ["Bearer k-1"]


def test_sampling_is_sent_and_zero_stays_zero(server: Server) -> None:
    server.streams(event("ok", finish="stop"), DONE)
    engine = RemoteEngine(server.url, "some/model")
    sampling = Sampling(temperature=0, top_p=0.5, max_new_tokens=7, seed=0, stop=("User:",))
    assert replies(engine, GenerateRequest(ASK.messages, sampling)) == ["ok"]
    assert server.bodies[0] == {
        "model": "some/model",
        "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": SECRET}],
        "stream": True,
        "temperature": 0,
        "top_p": 0.5,
        "max_tokens": 7,
        "seed": 0,
        "stop": ["User:"],
    }
    replies(engine)
    assert "seed" not in server.bodies[1]
    assert "stop" not in server.bodies[1]
    assert server.authorizations == [None, None]


def test_a_prefill_is_continued(server: Server) -> None:
    server.streams(event(" here", finish="stop"), DONE)
    assert replies(RemoteEngine(server.url, "m"), GenerateRequest(ASK.messages, prefill="I am")) == [" here"]
    body = server.bodies[0]
    assert body["messages"][-1] == {"role": "assistant", "content": "I am"}
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)


def test_half_a_surrogate_pair_can_be_sent(server: Server) -> None:
    server.streams(event("ok", finish="stop"), DONE)
    assert replies(RemoteEngine(server.url, "m"), GenerateRequest((Message("user", "a\udc80b"),))) == ["ok"]
    assert server.bodies[0]["messages"][0]["content"] == "a?b"


def test_several_replies_are_told_apart_by_index(server: Server) -> None:
    server.streams(
        event("b1", index=1), event("a1"), event("b2", index=1, finish="stop"), event("a2"), event(finish="stop"), DONE
    )
    assert replies(RemoteEngine(server.url, "m"), GenerateRequest(ASK.messages, n=2)) == ["a1a2", "b1b2"]
    assert server.bodies[0]["n"] == 2


def test_a_server_that_ignores_n_is_asked_again_with_another_seed(server: Server) -> None:
    for text in ("a", "b", "c"):
        server.streams(event(text), event(finish="stop"), DONE)
    request = GenerateRequest(ASK.messages, Sampling(seed=5), n=3)
    assert replies(RemoteEngine(server.url, "m"), request) == ["a", "b", "c"]
    assert [body["seed"] for body in server.bodies] == [5, 6, 7]


def test_an_end_is_either_done_or_a_finish_reason(server: Server) -> None:
    server.streams(event("x"), DONE)
    assert replies(RemoteEngine(server.url, "m")) == ["x"]
    server.answers.clear()
    server.streams(event("x"), event(finish="length"))
    assert replies(RemoteEngine(server.url, "m")) == ["x"]
    server.answers.clear()
    server.streams(event("x", finish="stop"), end=False)
    assert replies(RemoteEngine(server.url, "m")) == ["x"]


def test_closing_the_stream_hangs_up(server: Server) -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        _stream(handler, (event("word "),), end=False)
        while not server.released.wait(0.001):
            blob = event("word " * 1000)
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(blob), blob))

    server.answers.append(endless)
    stream = RemoteEngine(server.url, "m").generate(ASK)
    assert next(stream).text == "word "
    stream.close()  # type: ignore[attr-defined]
    assert server.hung_up.wait(5)


def test_nobody_listens() -> None:
    with socket.socket() as bound:  # bound but not listening: nobody else can take the port meanwhile
        bound.bind(("127.0.0.1", 0))
        assert failure(f"http://127.0.0.1:{bound.getsockname()[1]}").startswith("cannot connect to")


def test_a_silent_server_times_out(server: Server) -> None:
    def silence(handler: BaseHTTPRequestHandler) -> None:
        server.released.wait(5)

    server.answers.append(silence)
    assert failure(server.url, timeout_s=0.1).endswith("sent nothing for 0.1 s")


def test_a_server_that_falls_silent_in_a_reply_times_out(server: Server) -> None:
    def stall(handler: BaseHTTPRequestHandler) -> None:
        _stream(handler, (event("half"),), end=False)
        server.released.wait(5)

    server.answers.append(stall)
    assert failure(server.url, timeout_s=0.1).endswith("sent nothing for 0.1 s")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (404, b'{"error": {"message": "model m\\ndoes not exist", "code": 404}}', "HTTP 404: model m does not exist"),
        (400, b'{"object": "error", "message": "too long", "code": 400}', "HTTP 400: too long"),
        (500, b'{"error": "out of memory"}', "HTTP 500: out of memory"),
        (401, b'{"detail": "no key"}', "HTTP 401: no key"),
        (422, json.dumps({"detail": [{"input": SECRET}]}).encode(), "HTTP 422: Unprocessable"),
        (502, b"<html>bad gateway</html>", "HTTP 502: Bad Gateway"),
        (503, b"\xff", "HTTP 503: Service Unavailable"),
        (307, b"", "HTTP 307: Temporary Redirect"),
    ],
)
def test_a_status_is_passed_on_with_the_servers_message(server: Server, status: int, body: bytes, said: str) -> None:
    server.fails(status, body)
    assert f"answered {said}" in failure(server.url)


def test_a_long_message_is_cut(server: Server) -> None:
    server.fails(400, json.dumps({"error": {"message": "x" * 10_000}}).encode())
    assert len(failure(server.url)) < 500


def test_a_page_that_is_no_stream(server: Server) -> None:
    server.fails(200, b"<html>welcome</html>", "text/html")
    assert failure(server.url).endswith("answered with text/html; expected a stream of events")


@pytest.mark.parametrize("end", [True, False])
def test_a_stream_that_breaks_off(server: Server, end: bool) -> None:
    server.streams(event(SECRET), b'data: {"choices": [{"delta"', end=end)
    assert "broke off in the middle of a reply" in failure(server.url)
    server.answers.clear()
    server.streams(b": nothing\n\n", end=end)
    assert "broke off before the first word" in failure(server.url)


def test_one_of_two_replies_breaks_off(server: Server) -> None:
    server.streams(event("a", finish="stop"), event("b", index=1), end=True)
    request = GenerateRequest(ASK.messages, n=2)
    assert "broke off in the middle of a reply" in failure(server.url, request)
    server.answers.clear()
    server.streams(event("a", finish="stop"), end=False)
    assert "broke off" in failure(server.url, request)


def test_a_stream_without_any_reply(server: Server) -> None:
    server.streams(b'data: {"choices": []}\n\n', DONE)
    assert failure(server.url).endswith("ended its answer without a reply")


def test_an_error_inside_the_stream(server: Server) -> None:
    server.streams(event("half"), b'data: {"error": {"message": "worker died", "code": 500}}\n\n')
    assert failure(server.url).endswith("reports: worker died")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"choices": [' + SECRET.encode() + b"]}", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[]", "not a chat completion chunk"),
        (b'{"choices": ["my sister"]}', "not a chat completion chunk"),
        (b'{"choices": [{"index": "0"}]}', "not a chat completion chunk"),
        (b'{"choices": [{"delta": {"content": 3}}]}', "not a chat completion chunk"),
        (b'{"choices": 3}', "not a chat completion chunk"),
        (b'{"choices": [{"index": 1, "delta": {}}]}', "reply number 2; 1 asked for"),
    ],
)
def test_events_of_a_wrong_form(server: Server, data: bytes, said: str) -> None:
    server.streams(b"data: " + data + b"\n\n")
    assert said in failure(server.url)


def test_nothing_said_is_logged(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    server.streams(event("I hear you", finish="stop"), DONE)
    assert replies(RemoteEngine(server.url, "m", api_key="k-1")) == ["I hear you"]
    assert SECRET not in caplog.text
    assert "hear you" not in caplog.text


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://[::1", "http://host:port"])
def test_what_is_not_a_url_is_refused_at_once(url: str) -> None:
    with pytest.raises(EngineError, match="URL"):
        RemoteEngine(url, "m")


def test_secrets_in_the_url_and_key_stay_out_of_messages() -> None:
    engine = RemoteEngine("http://me:pass@host/api?key=abc", "m")
    assert engine.url == "http://host/api/v1/chat/completions"
    with pytest.raises(EngineError) as caught:
        RemoteEngine("http://host", "m", api_key="ké\n")
    assert "ké" not in str(caught.value)


def test_what_it_cannot_do_is_an_error() -> None:
    engine = RemoteEngine("http://host", "m", structured="none")
    assert engine.capabilities() == {"n"}
    with pytest.raises(EngineError, match="no log-probabilities of given text"):
        engine.score(ASK.messages, "ok")
    with pytest.raises(EngineError, match="grammar"):
        engine.generate(GenerateRequest(ASK.messages, constraint="root ::= 'a'"))
    with pytest.raises(EngineError, match="n is 0"):
        engine.generate(GenerateRequest(ASK.messages, n=0))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    bounds = sorted({0, len(data), *(place % len(data) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(bounds)]


@given(
    st.lists(st.text(max_size=5), min_size=1, max_size=5),
    st.lists(st.integers(0, 10_000), max_size=30),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_events_do_not_hang_on_where_the_bytes_are_cut(texts: list[str], places: list[int], line_end: bytes) -> None:
    payloads = [json.dumps({"t": text}, ensure_ascii=False) for text in texts if text.isprintable()]
    whole = b": hi\n\n" + b"".join(b"data: " + payload.encode() + b"\n\n" for payload in payloads) + DONE
    blobs = cut(whole.replace(b"\n", line_end), places)
    assert list(sse_data(blobs)) == [*(payload.encode() for payload in payloads), b"[DONE]"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_a_reply_over_http_does_not_hang_on_where_the_bytes_are_cut(places: list[int]) -> None:
    whole = event("I am ") + b": ping\r\n\r\n" + event("só 悲しい ") + event("🫂\u2028", finish="stop") + DONE
    with serving() as server:
        server.streams(*cut(whole, places))
        assert replies(RemoteEngine(server.url, "m")) == ["I am só 悲しい 🫂\u2028"]


def test_a_reply_that_comes_byte_by_byte(server: Server) -> None:
    whole = event("só 🫂") + event(finish="stop") + DONE
    server.streams(*(bytes([byte]) for byte in whole))
    assert replies(RemoteEngine(server.url, "m")) == ["só 🫂"]
