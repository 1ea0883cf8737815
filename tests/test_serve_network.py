"""The server as a neighbour: slow and cut connections, keys, other hosts' pages, headers, health, counters, the protocol."""

import json
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from warmline.serve import listen
from warmline.serve.keys import Key, Keys, KeysError, digest_of, line_of, new_key, read_keys
from warmline.serve.limits import RETRY_AFTER_S

from .servers import GOOD, RISK, app_of, body, connect, serving, until

REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(app_of()) as url:
        yield url


def read_all(client: socket.socket) -> bytes:
    found = b""
    while piece := client.recv(65536):
        found += piece
    return found


# -- slow and cut connections ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: b\r\n"])
def test_headers_that_do_not_arrive_end_the_connection(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_HEADERS_S", 0.4)
    with serving(app_of()) as url, connect(url) as client:
        client.sendall(sent)
        started = time.monotonic()
        assert read_all(client) == b""
        assert 0.2 < time.monotonic() - started < 5


def test_headers_drop_by_drop_end_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listen, "MAX_HEADERS_S", 0.5)
    with serving(app_of()) as url, connect(url) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: keep-alive\r\n\r\n")
        assert b" 200 " in client.recv(65536)
        ends = time.monotonic() + 10
        try:
            while time.monotonic() < ends:
                client.sendall(b"X")  # of the second request on the same connection
                time.sleep(0.1)
        except OSError:  # the server has closed the connection
            return
        pytest.fail("the server waits for ever")


def test_a_body_that_does_not_arrive_is_refused() -> None:
    with serving(app_of(max_body_s=0.4)) as url, connect(url) as client:
        client.sendall(REQUEST + b'{"model"')
        head, _, rest = read_all(client).partition(b"\r\n\r\n")
        assert b" 408 " in head
        assert json.loads(rest)["error"]["code"] == "timeout"


def test_connections_that_are_cut_anywhere_leave_the_server_well(url: str) -> None:
    payload = json.dumps(body("hi", stream=True)).encode()
    whole = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(payload), payload)
    for length in (1, 20, len(whole) - len(payload), len(whole) - 1, len(whole)):
        with connect(url) as client:
            client.sendall(whole[:length])
    with connect(url) as client:  # half open: the client will say no more, but reads
        client.sendall(whole.replace(b"Host: x", b"Host: x\r\nConnection: close"))
        client.shutdown(socket.SHUT_WR)
    ends = time.monotonic() + 10
    while (found := httpx.get(f"{url}/health").json()["replies"]) != {"running": 0, "waiting": 0}:
        assert time.monotonic() < ends, found
        time.sleep(0.05)


def test_a_reader_who_stops_reading_holds_up_nobody(url: str) -> None:
    with connect(url) as client:
        payload = json.dumps(body(RISK, stream=True)).encode()
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(payload))
        client.sendall(payload)
        answer = httpx.post(f"{url}/v1/chat/completions", json=body("hi"), timeout=30)
        assert answer.json()["choices"][0]["message"]["content"] == GOOD
        assert until(lambda: httpx.get(f"{url}/health").json()["replies"]["running"] == 0)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_where_words_and_counters_are_and_for_help_it_is_not() -> None:
    key = new_key()
    with serving(app_of(keys=Keys((Key("a", digest_of("another")), Key("b", digest_of(key)))))) as url:
        for path in ("/v1/models", "/metrics"):
            assert httpx.get(f"{url}{path}").status_code == 401
            assert httpx.get(f"{url}{path}", headers={"Authorization": f"Bearer {key}"}).status_code == 200
            for wrong in (f"Basic {key}", f"Bearer {key}x", "Bearer", f"Bearer {digest_of(key)}", "Bearer \u00e9"):
                answer = httpx.get(f"{url}{path}", headers=[(b"authorization", wrong.encode())])
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/chat/completions", "/v1/sessions/s/actions"):
            assert httpx.post(f"{url}{path}", json=body()).status_code == 401
        for path in ("/resources", "/health", "/safety"):
            assert httpx.get(f"{url}{path}").status_code == 200


def test_whoever_has_another_key_has_other_sessions() -> None:
    keys = [new_key(), new_key()]
    with serving(app_of(keys=Keys(tuple(Key(f"k{at}", digest_of(key)) for at, key in enumerate(keys))))) as url:

        def level(key: str, text: str) -> str:
            headers = {"Authorization": f"Bearer {key}"}
            answer = httpx.post(f"{url}/v1/chat/completions", json=body(text, user="s"), headers=headers, timeout=30)
            return answer.json()["warmline"]["level"]

        assert level(keys[0], RISK) == "high"
        assert level(keys[1], "what is on tv") == "none"
        assert level(keys[0], "what is on tv") == "high"


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    key = new_key()
    file.write_text(f"# who\n\n{line_of('alice', key)}\n{line_of('bob', new_key())}\n")
    keys = read_keys(file)
    assert keys.name_of(key) == "alice"
    assert keys.name_of(key + "x") is None
    assert key not in repr(keys)
    for wrong in (key, "alice", "alice abc", f"{line_of('a', key)}\n{line_of('a', key)}", "", "# none"):
        file.write_text(wrong)
        with pytest.raises(KeysError) as refused:
            read_keys(file)
        assert key not in str(refused.value)  # somebody may have written a key itself into the file
    file.write_bytes(b"\xff")
    with pytest.raises(KeysError, match="UTF-8"):
        read_keys(file)
    with pytest.raises(KeysError):
        line_of("two words", key)


# -- other hosts' pages, and headers -----------------------------------------------------------------------------------


def test_pages_of_other_hosts_may_not_talk() -> None:
    with serving(app_of(hosts=("127.0.0.1",), cors_origins=("https://my.app",))) as url:
        talk = f"{url}/v1/chat/completions"
        assert httpx.post(talk, json=body(), headers={"Origin": url}).status_code == 200
        for origin in ("https://evil.example", "null", "http://127.0.0.1:1", "http://["):
            answer = httpx.post(talk, json=body(), headers={"Origin": origin})
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "wrong_origin")
        allowed = httpx.post(talk, json=body(), headers={"Origin": "https://my.app"})
        assert allowed.headers["access-control-allow-origin"] == "https://my.app"
        for host in ("evil.example", "127.0.0.1.evil.example", "", "["):  # a name that was made to point here
            assert httpx.get(f"{url}/health", headers={"Host": host}).status_code in (400, 421)


def test_no_other_page_may_read_by_default(url: str) -> None:
    asks = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = httpx.options(f"{url}/v1/chat/completions", headers=asks)
    assert answer.status_code == 405
    assert not [name for name in answer.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path", ["/v1/models", "/resources", "/safety", "/health", "/metrics", "/nothing", "/static/x"]
)
def test_every_answer_has_the_headers(url: str, path: str) -> None:
    headers = httpx.get(f"{url}{path}").headers
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == ("no-cache" if path.startswith("/static") else "no-store")
    assert "server" not in headers
    assert "set-cookie" not in headers


# -- what stands without a model ---------------------------------------------------------------------------------------


def test_health(url: str) -> None:
    found = httpx.get(f"{url}/health").json()
    assert (found["status"], found["card_self_test"], found["degraded"]) == ("ok", "ok", [])
    assert found["models"] == [{"id": "m"}]
    assert 0 < found["thresholds"]["elevated"] < 1
    assert found["directory"]["oldest_days"] >= 0
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", found["directory"]["unchecked_from"])


def test_resources_as_json_and_as_text(url: str) -> None:
    assert httpx.get(f"{url}/resources?country=US").json()["emergency"][0]["number"] == "911"
    text = httpx.get(f"{url}/resources?country=IE&format=text")
    assert text.headers["content-type"].startswith("text/plain")
    assert "116 123" in text.text
    assert httpx.get(f"{url}/resources?country=DE&language=de").json()["language"] == "de"


def test_the_public_protocol_says_what_it_cannot_do_and_runs_no_script(url: str) -> None:
    answer = httpx.get(f"{url}/safety")
    assert answer.headers["content-type"].startswith("text/html")
    page = answer.text
    for words in (
        "No clinician",
        "misses some people in danger",
        "not a crisis service",
        "contacts nobody",
        "best in English",
        "VERA-MH",
        "Helplines change",
        "not an assessment",
    ):
        assert words in page
    assert "<script" not in page
    assert "style=" not in page
    assert "{" not in page  # nothing was left to be filled in
    assert httpx.get(url, follow_redirects=True).status_code == 200


def test_the_counters_hold_no_words() -> None:
    with serving(app_of()) as url:
        secret = "xyzzy-my-own-words"
        httpx.post(f"{url}/v1/chat/completions", json=body(f"{secret} {RISK}", user=secret), timeout=30)
        httpx.post(f"{url}/v1/chat/completions", json=body(model=secret) | {"model": secret})
        httpx.get(f"{url}/{secret}?q={secret}")
        httpx.post(f"{url}/v1/sessions/{secret}/actions", json={"action": "hide"})
        answer = httpx.get(f"{url}/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    lines = answer.text.splitlines()
    assert 'warmline_replies_total{level="high",source="model"} 1.0' in lines
    assert 'warmline_requests_total{route="/v1/chat/completions",status="200"} 1.0' in lines
    assert 'warmline_requests_total{route="/v1/chat/completions",status="404"} 1.0' in lines
    assert "warmline_first_text_seconds_count 1.0" in lines
    assert secret not in answer.text
    assert RETRY_AFTER_S > 0
