"""The history over HTTP, against a real server: opt in, load, export, forget, and plain refusals in OpenAI's shape."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from warmline.commands.shared import companion
from warmline.engine.engine import Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.app import create_app
from warmline.serve.keys import Key, Keys, digest_of, new_key
from warmline.serve.models import Model, Options
from warmline.serve.store.database import CONVERSATIONS
from warmline.serve.store.history import Store
from warmline.serve.store.sealed import client_key

from .servers import serving
from .stores import key_text

KIND = (
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen."
)
SAD = "I want to kill myself tonight."
CALM = "The bus was late and it rained."


def app_of(store: Store | None, keys: Keys | None = None) -> Any:
    setting = companion(ScriptedEngine([KIND]), None, Sampling(), "GB")
    return create_app({"m": Model("m", setting)}, Options(keys=keys), store=store)


class Served(NamedTuple):
    """Two gateways before one database."""

    client: httpx.Client
    second: httpx.Client
    store: Store


def keyed(key: str) -> dict[str, str]:
    return {"Warmline-Key": key}


def turns_of(*said: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


def fresh_name() -> str:
    """A conversation's: what gateways remember of one must not reach the next test."""
    return key_text()[:12]


def chat(client: httpx.Client, text: str, session: str, key: str | None, *earlier: str) -> dict[str, Any]:
    body = {"model": "m", "messages": turns_of(*earlier, text), "warmline": {"session": session, "renders_card": True}}
    answer = client.post("/v1/chat/completions", json=body, headers={} if key is None else keyed(key))
    assert answer.status_code == 200, answer.text
    return answer.json()["warmline"]


def refusal(answer: httpx.Response, status: int) -> str:
    """The message of a refusal in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["cache-control"] == "no-store"
    error = answer.json()["error"]
    assert {*error} == {"message", "type", "param", "code"}
    assert "\n" not in error["message"]
    return error["message"]


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    if request.param == "sqlite":
        address = str(tmp_path_factory.mktemp("store") / "history.db")
    else:
        address = request.getfixturevalue("database_server").new_database()
    stores = [Store(address), Store(address)]
    with (
        serving(app_of(stores[0])) as url,
        serving(app_of(stores[1])) as other,
        httpx.Client(base_url=url, timeout=60) as client,
        httpx.Client(base_url=other, timeout=60) as second,
    ):
        yield Served(client, second, stores[0])
    for store in stores:
        store.database.close()


@pytest.fixture(scope="module")
def without_a_store() -> Iterator[httpx.Client]:
    with serving(app_of(None)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def test_opt_in_load_list_export_and_forget(served: Served) -> None:
    key, turns = (
        key_text(),
        [{"role": "user", "content": "hi ☕", "t": 12.0}, {"role": "assistant", "content": "hello"}],
    )
    client = served.client
    assert client.get("/v1/history", headers=keyed(key)).json() == {"object": "list", "data": []}
    saved = client.put("/v1/history/a%20b", json={"turns": turns, "risk": {"floor": 0}}, headers=keyed(key))
    assert saved.status_code == 200
    assert (saved.json()["session"], saved.json()["version"]) == ("a b", 1)
    assert saved.json()["expires"] == saved.json()["used"] + 30 * 86_400
    loaded = client.get("/v1/history/a%20b", headers=keyed(key))
    assert loaded.json() == {**saved.json(), "turns": turns}
    client.put("/v1/history/b", json={"turns": []}, headers=keyed(key))
    listed = client.get("/v1/history", headers=keyed(key)).json()["data"]
    assert sorted(each["session"] for each in listed) == ["a b", "b"]
    assert "turns" not in listed[0]
    export = client.get("/v1/export", headers=keyed(key))
    assert "attachment" in export.headers["content-disposition"]
    exported = {each["session"]: each for each in export.json()["conversations"]}
    assert exported["a b"] == {**loaded.json(), "risk": None}
    for answer in (saved, loaded, export):
        assert answer.headers["cache-control"] == "no-store"
    assert client.delete("/v1/history/b", headers=keyed(key)).json()["forgotten"] == 1
    assert client.delete("/v1/history/b", headers=keyed(key)).json()["forgotten"] == 0
    assert client.delete("/v1/history", headers=keyed(key)).json()["forgotten"] == 1
    assert "no such conversation" in refusal(client.get("/v1/history/a%20b", headers=keyed(key)), 404)
    assert client.get("/v1/export", headers=keyed(key)).json()["conversations"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/history/a"),
        ("GET", "/v1/history"),
        ("GET", "/v1/history/a"),
        ("GET", "/v1/export"),
        ("DELETE", "/v1/history/a"),
        ("DELETE", "/v1/history"),
    ],
)
def test_without_a_key_or_a_store_nothing_is_said(
    served: Served, without_a_store: httpx.Client, method: str, path: str
) -> None:
    body = {"turns": []} if method == "PUT" else None
    assert "Warmline-Key is missing" in refusal(served.client.request(method, path, json=body), 401)
    for wrong in ("short", key_text() + "AA", "A" * 43, "ü" * 43):
        headers = {b"Warmline-Key": wrong.encode("latin-1")}
        said = refusal(served.client.request(method, path, json=body, headers=headers), 400)
        assert wrong not in said
    other = served.client.request(method, path, json=body, headers=keyed(key_text()))
    assert other.status_code in (200, 404)
    off = without_a_store.request(method, path, json=body, headers=keyed(key_text()))
    assert "History is off" in refusal(off, 404)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"turns": 1}',
        b'{"turns": [{"role": "system", "content": "x"}]}',
        b'{"turns": [{"role": "user"}]}',
        b'{"turns": [{"role": "user", "content": 1}]}',
        b'{"turns": [{"role": "user", "content": "x", "t": NaN}]}',
        b'{"turns": [{"role": "user", "content": "x", "t": 1e400}]}',
        b'{"turns": [], "version": 0}',
        b'{"turns": [], "version": true}',
        b'{"turns": ' + b"[" * 100_000,
    ],
)
def test_a_body_that_is_none_is_refused_and_keeps_nothing(served: Served, body: bytes) -> None:
    key = key_text()
    refusal(served.client.put("/v1/history/a", content=body, headers=keyed(key)), 400)
    assert served.client.get("/v1/history", headers=keyed(key)).json()["data"] == []


def test_odd_text_comes_back(served: Served) -> None:
    key = key_text()
    body = b'{"turns": [{"role": "user", "content": "a\\u0000b \\ud83c\\udf27 <script>", "t": 1}]}'
    assert served.client.put("/v1/history/%F0%9F%8C%A7%00", content=body, headers=keyed(key)).status_code == 200
    loaded = served.client.get("/v1/history/%F0%9F%8C%A7%00", headers=keyed(key)).json()
    assert (loaded["session"], loaded["turns"][0]["content"]) == ("🌧\0", "a\0b 🌧 <script>")
    half = b'{"turns": [{"role": "user", "content": "cut \\ud83c"}]}'
    assert served.client.put("/v1/history/half", content=half, headers=keyed(key)).status_code == 200
    assert served.client.get("/v1/export", headers=keyed(key)).status_code == 200


def test_sizes_end(served: Served) -> None:
    key = key_text()
    long = {"turns": [{"role": "user", "content": "x"}] * 10_001}
    refusal(served.client.put("/v1/history/a", json=long, headers=keyed(key)), 400)
    refusal(served.client.put("/v1/history/a", json=turns_body("x" * 100_001), headers=keyed(key)), 400)
    much = {"turns": [{"role": "user", "content": "x" * 100_000}] * 43}
    assert "too long to keep" in refusal(served.client.put("/v1/history/a", json=much, headers=keyed(key)), 413)
    more = {"turns": [{"role": "user", "content": "x" * 100_000}] * 60}
    refusal(served.client.put("/v1/history/a", json=more, headers=keyed(key)), 413)
    refusal(served.client.put("/v1/history/" + "n" * 257, json={"turns": []}, headers=keyed(key)), 400)
    full = {"turns": [{"role": "user", "content": "x" * 400}] * 10_000}
    assert served.client.put("/v1/history/a", json=full, headers=keyed(key)).status_code == 200


def turns_body(*said: str, **more: Any) -> dict[str, Any]:
    return {"turns": turns_of(*said), **more}


def test_a_save_over_somebody_elses_is_a_conflict(served: Served) -> None:
    key, client = key_text(), served.client
    client.put("/v1/history/a", json=turns_body("one"), headers=keyed(key))
    assert client.put("/v1/history/a", json=turns_body("one", "two"), headers=keyed(key)).json()["version"] == 2
    late = client.put("/v1/history/a", json=turns_body("one", "other", version=1), headers=keyed(key))
    assert "version 1 was saved over" in refusal(late, 409).lower()
    assert late.json()["error"]["code"] == "history_conflict"
    client.delete("/v1/history/a", headers=keyed(key))
    refusal(client.put("/v1/history/a", json=turns_body("one", version=2), headers=keyed(key)), 409)


def test_what_was_altered_is_said_and_does_not_hide_the_rest(served: Served) -> None:
    key, client = key_text(), served.client
    for name in ("a", "b"):
        client.put(f"/v1/history/{name}", json=turns_body("one"), headers=keyed(key))
    here = CONVERSATIONS.c.id == client_key(key).id_of("a")
    served.store.database.change(CONVERSATIONS.update().where(here).values(turns=b"x" * 60))
    assert "altered" in refusal(client.get("/v1/history/a", headers=keyed(key)), 500)
    assert [each["session"] for each in client.get("/v1/export", headers=keyed(key)).json()["conversations"]] == ["b"]
    assert client.delete("/v1/history/a", headers=keyed(key)).json()["forgotten"] == 1


def test_the_api_key_is_asked_for_too(tmp_path: Path) -> None:
    api_key, key = new_key(), key_text()
    store = Store(str(tmp_path / "history.db"))
    with serving(app_of(store, Keys((Key("alice", digest_of(api_key)),)))) as url:
        assert "API key" in refusal(httpx.get(f"{url}/v1/history", headers=keyed(key)), 401)
        headers = {**keyed(key), "Authorization": f"Bearer {api_key}"}
        assert httpx.get(f"{url}/v1/history", headers=headers).status_code == 200
    store.database.close()


def test_a_store_that_fails_is_503_on_its_routes_and_costs_no_reply(tmp_path: Path) -> None:
    store = Store("postgresql://warmline@127.0.0.1:9/history")
    with serving(app_of(store)) as url, httpx.Client(base_url=url, timeout=30) as client:
        key = key_text()
        for method, path in (("GET", "/v1/history"), ("GET", "/v1/export"), ("DELETE", "/v1/history/a")):
            answer = client.request(method, path, headers=keyed(key))
            assert refusal(answer, 503) == "The store cannot be reached."
            assert int(answer.headers["retry-after"]) > 0
        started = time.perf_counter()
        told = chat(client, SAD, "a", key)
        assert time.perf_counter() - started < 5
        assert (told["level"], told["degraded"]) == ("high", ["store"])
        assert told["card"]["services"]
        assert chat(client, CALM, "new", key)["level"] == "elevated"  # nobody knows how things stood
        assert chat(client, CALM, "known", key, CALM, KIND)["level"] == "none"
        assert chat(client, CALM, "no-key", None)["degraded"] == []


def test_a_key_that_is_none_is_no_reason_to_refuse_a_reply(served: Served) -> None:
    told = chat(served.client, SAD, "a", "none")
    assert told["level"] == "high"
    assert any("Warmline-Key" in note for note in told["notes"])


def risk_of(client: httpx.Client, key: str, session: str) -> dict[str, Any] | None:
    exported = client.get("/v1/export", headers=keyed(key)).json()["conversations"]
    return next(each["risk"] for each in exported if each["session"] == session)


def test_risk_is_found_on_another_gateway_by_those_who_opted_in(served: Served) -> None:
    key, other, name, other_name = key_text(), key_text(), fresh_name(), fresh_name()
    served.client.put(f"/v1/history/{name}", json={"turns": []}, headers=keyed(key))
    assert chat(served.client, SAD, name, key)["level"] == "high"
    kept = risk_of(served.client, key, name)
    assert kept is not None
    assert (kept["state"]["floor"], kept["card_level"]) == (2, 2)
    assert chat(served.second, CALM, name, other)["level"] == "none"
    assert chat(served.second, CALM, name, None)["level"] == "none"
    told = chat(served.second, CALM, name, key)  # the client has dropped all that was said before
    assert told["level"] == "high"
    assert told["card"]["services"]
    assert told["degraded"] == []
    assert chat(served.second, CALM, fresh_name(), key)["level"] == "elevated"  # of the same person, reopened
    chat(served.client, SAD, other_name, other)
    assert chat(served.second, CALM, other_name, other)["level"] == "none"
    assert served.second.get("/v1/history", headers=keyed(other)).json()["data"] == []


def test_the_cards_button_reaches_the_other_gateway(served: Served) -> None:
    key, name = key_text(), fresh_name()
    served.client.put(f"/v1/history/{name}", json={"turns": []}, headers=keyed(key))
    chat(served.client, SAD, name, key)
    pressed = served.second.post(f"/v1/sessions/{name}/actions", json={"action": "with_me"}, headers=keyed(key))
    assert (pressed.json()["known"], pressed.json()["level"]) == (True, "high")
    kept = risk_of(served.client, key, name)
    assert kept is not None
    assert kept["state"]["contact"]


def test_forgetting_takes_the_risk_with_it(served: Served) -> None:
    key, name, other = key_text(), fresh_name(), fresh_name()
    served.client.put(f"/v1/history/{name}", json={"turns": []}, headers=keyed(key))
    chat(served.client, SAD, name, key)
    served.client.delete("/v1/history", headers=keyed(key))
    assert chat(served.client, CALM, name, key)["level"] == "none"
    assert served.client.get("/v1/history", headers=keyed(key)).json()["data"] == []
    chat(served.client, SAD, other, None)
    served.client.delete(f"/v1/history/{other}", headers=keyed(key))  # not kept: nobody's key makes its risk forgotten
    assert chat(served.client, CALM, other, None)["level"] == "high"
