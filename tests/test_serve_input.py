"""Bad input to the server: an error in OpenAI's shape that names what is wrong and quotes nothing, or a sane answer."""

import http.server
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine

from .servers import GOOD, RISK, app_of, body, connect, serving, setting_of

SECRET = "my-own-words-xyzzy"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(app_of(ScriptedEngine([GOOD]), max_body_bytes=100_000)) as url:
        yield url


def post(url: str, content: bytes | str) -> httpx.Response:
    return httpx.post(f"{url}/v1/chat/completions", content=content, timeout=30)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"\xff\xfe\x00", None),
        (b"[]", None),
        (b'"text"', None),
        (b"[" * 100_000, None),
        (b'{"model": "m", "n": NaN}', None),
        (b'{"n": ' + b"9" * 5000 + b"}", None),
        (json.dumps({"messages": [{"role": "user", "content": SECRET}]}), "model"),
        (json.dumps({"model": SECRET}), "messages"),
        (json.dumps(body(SECRET) | {"messages": []}), "messages"),
        (json.dumps(body(SECRET) | {"messages": {"role": "user", "content": SECRET}}), "messages"),
        (json.dumps(body() | {"messages": [SECRET]}), "messages[0]"),
        (json.dumps(body() | {"messages": [{"role": SECRET, "content": "hi"}]}), "messages[0].role"),
        (json.dumps(body() | {"messages": [{"role": "user", "content": 7}]}), "messages[0].content"),
        (json.dumps(body() | {"messages": [{"role": "user", "content": [{"text": SECRET}]}]}), "messages[0].content"),
        (json.dumps(body() | {"messages": [{"role": "user", "content": "  "}]}), "messages[0].content"),
        (json.dumps(body() | {"messages": [{"role": "user", "content": None}]}), "messages[0].content"),
        (json.dumps(body() | {"messages": [{"role": "assistant", "content": SECRET}]}), "messages"),
        (json.dumps(body(SECRET, temperature=-0.1)), "temperature"),
        (json.dumps(body(SECRET, temperature=2.1)), "temperature"),
        (json.dumps(body(SECRET, temperature="0.5")), "temperature"),
        (json.dumps(body(SECRET, temperature=True)), "temperature"),
        (json.dumps(body(SECRET, top_p=1.5)), "top_p"),
        (json.dumps(body(SECRET, max_tokens=0)), "max_tokens"),
        (json.dumps(body(SECRET, max_completion_tokens=1.5)), "max_completion_tokens"),
        (json.dumps(body(SECRET, n=0)), "n"),
        (json.dumps(body(SECRET, n=9)), "n"),
        (json.dumps(body(SECRET, n="2")), "n"),
        (json.dumps(body(SECRET, seed=1.5)), "seed"),
        (json.dumps(body(SECRET, seed=2**70)), "seed"),
        (json.dumps(body(SECRET, stop=["a"] * 5)), "stop"),
        (json.dumps(body(SECRET, stop=3)), "stop"),
        (json.dumps(body(SECRET, stream="yes")), "stream"),
        (json.dumps(body(SECRET, user=7)), "user"),
        (json.dumps(body(SECRET, warmline=[])), "warmline"),
        (json.dumps(body(SECRET, warmline={"session": 3})), "warmline.session"),
        (json.dumps(body(SECRET, warmline={"style": {"tone": SECRET}})), "warmline.style.tone"),
        (json.dumps(body(SECRET, warmline={"style": {SECRET: 1}})), "warmline.style"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_is_quoted(
    url: str, sent: bytes | str, param: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    answer = post(url, sent)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert "\n" not in error["message"]
    assert SECRET not in answer.text
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err


@pytest.mark.parametrize(
    "content",
    [
        "\ud800 I want to kill myself tonight \udfff",  # halves of pairs: an emoji that was cut
        [{"type": "text", "text": "I want to kill"}, {"type": "text", "text": "myself tonight"}],
        [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": RISK}],
        "\x00\x1b[2J\u202e I want to kill myself tonight \u200b",
    ],
)
def test_odd_but_readable_words_are_read(url: str, content: object) -> None:
    sent = json.dumps({"model": "m", "messages": [{"role": "user", "content": content}]})
    answer = post(url, sent)
    assert answer.status_code == 200
    assert answer.json()["warmline"]["level"] == "high"


def test_unknown_fields_are_left_out(url: str) -> None:
    sent = body("hi", foo={"bar": 1}, metadata={"a": "b"}, service_tier="auto")
    sent["messages"][0]["name"] = "bob"
    assert post(url, json.dumps(sent)).json()["choices"][0]["message"]["content"] == GOOD


def test_tool_messages_and_what_follows_the_user_are_left_out_with_a_note(url: str) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": []},
        {"role": "tool", "content": "42", "tool_call_id": "x"},
        {"role": "user", "content": "and now?"},
        {"role": "assistant", "content": "Sure, here is"},
    ]
    answer = post(url, json.dumps({"model": "m", "messages": messages})).json()
    assert answer["warmline"]["notes"] == [
        "tool messages are ignored",
        "what follows the newest user message is ignored",
    ]


def test_a_body_that_is_too_large_is_refused_and_its_client_hears_of_it(url: str) -> None:
    answer = post(url, b" " * 8_000_000)  # more than the buffers between the two hold
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "body_too_large"
    with connect(url) as client:  # one that lies about its length is cut off as well
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        block = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
        for _ in range(7):
            client.sendall(block)
        assert b" 413 " in client.recv(4096)


def test_too_many_messages() -> None:
    with serving(app_of(max_turns=3)) as url:
        turns = [{"role": "user", "content": SECRET}] * 4
        answer = httpx.post(f"{url}/v1/chat/completions", json={"model": "m", "messages": turns})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "messages")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/chat/completions", 405),
        ("PUT", "/v1/models", 405),
        ("GET", f"/{SECRET}", 404),
        ("GET", "/static/../app.py", 404),
        ("GET", "/static/..%2f..%2fapp.py", 404),
        ("GET", "/static/%2e%2e/%2e%2e/keys.py", 404),
        ("GET", "/static/....//app.py", 404),
        ("GET", "/static/%00", 404),
        ("GET", "//etc/passwd", 404),
        ("POST", f"/v1/sessions/..%2f{SECRET}/actions", 404),
        ("GET", "/resources?format=exe", 400),
        ("TRACE", "/", 405),
    ],
)
def test_addresses_and_methods_that_lead_nowhere(url: str, method: str, path: str, status: int) -> None:
    with connect(url) as client:  # httpx would tidy the path
        client.sendall(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b""
        while piece := client.recv(4096):
            answer += piece
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    assert json.loads(rest)["error"]["type"] == "invalid_request_error"
    assert SECRET.encode() not in answer


@pytest.mark.parametrize("country", ["", "ZZ", "../..", "<script>", "\u0130E", "a" * 5000])
def test_resources_answer_whatever_country_is_asked_for(url: str, country: str) -> None:
    answer = httpx.get(f"{url}/resources", params={"country": country})
    assert answer.status_code == 200
    assert answer.json()["international"]


# -- a remote engine that misbehaves -----------------------------------------------------------------------------------


@contextmanager
def bad_engine(how: str) -> Iterator[str]:
    """A real HTTP server in place of the engine, which is down, slow, cuts its streams or breaks their shape."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            if how == "slow":
                time.sleep(1.5)
            self.send_response(500 if how == "error" else 200)
            self.send_header("Content-Type", "text/event-stream")
            if how == "cut":
                self.send_header("Content-Length", "100000")
            self.end_headers()
            said = {"choices": [{"index": 0, "delta": {"content": "I hear "}}]}
            if how in ("cut", "broken"):
                self.wfile.write(b"data: " + json.dumps(said).encode() + b"\n\n")
            if how == "broken":
                self.wfile.write(b"data: {" + SECRET.encode() + b"\n\nevent: ???\n\n")
            if how == "error":
                self.wfile.write(json.dumps({"error": {"message": SECRET}}).encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class' name
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    port = server.server_port
    if how == "down":
        server.shutdown()
        server.server_close()
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        if how != "down":
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("how", ["down", "slow", "cut", "broken", "error"])
def test_a_crisis_reply_arrives_whatever_the_engine_does(
    how: str, stream: bool, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with bad_engine(how) as engine:
        app = app_of(setting=setting_of(RemoteEngine(engine, "x", timeout_s=0.5)))
        with serving(app) as url:
            answer = httpx.post(f"{url}/v1/chat/completions", json=body(RISK, stream=stream), timeout=60)
            calm = httpx.post(f"{url}/v1/chat/completions", json=body("hi", stream=stream), timeout=60)
    assert (answer.status_code, calm.status_code) == (200, 200)
    assert "116 123" in answer.text
    assert "This is the warmline app" in answer.text
    assert '"notice"' in answer.text
    assert "card" in calm.text
    shown = capfd.readouterr()
    assert SECRET not in answer.text + calm.text + shown.out + shown.err + caplog.text
    if stream:
        assert answer.text.endswith("data: [DONE]\n\n")
