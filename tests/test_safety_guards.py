"""External guards against a real HTTP server on loopback: what raises a level, and all that is unknown and never safe."""

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import Any

import pytest

from warmline.config.operator import GuardSettings
from warmline.dialogue.companion import Answer, Session, Setting, respond, resume
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.detect import Observation, load_detector
from warmline.safety.guards import CATEGORIES, Guard, Verdict, assess_all, with_verdicts
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.resources.card import Card
from warmline.safety.resources.directory import load_directory
from warmline.safety.validate.context import Turn

SECRET = "my sister hides the letters"
PLAIN = "We had soup for dinner."
RISK = "I want to kill myself tonight"
GOOD = (
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen."
)
UNKNOWN = None
SAFE = Verdict(Level.NONE)


@dataclass
class Server:
    """A guard that answers as it is told, and remembers what it was asked."""

    url: str = ""
    answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def says(self, content: object) -> None:
        """Answer each turn with a chat completion of this content."""
        self.sends(json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode())

    def sends(self, body: bytes, status: int = 200) -> None:
        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("Content-Length", str(len(body)))
            handler.send_header("Location", "/elsewhere")
            handler.end_headers()
            handler.wfile.write(body)

        self.answer = answer


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            state.paths.append(self.path)
            state.authorizations.append(self.headers["Authorization"])
            state.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.close_connection = True
            with suppress(BrokenPipeError, ConnectionResetError):
                state.answer(self)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}"
    try:
        yield state
    finally:
        state.over.set()
        http.shutdown()
        http.server_close()
        thread.join()


GuardAt = Callable[..., Guard]


@pytest.fixture
def guard_at() -> Iterator[GuardAt]:
    """Makes guards that have time, and closes them."""
    guards: list[Guard] = []

    def make(url: str, api_key: str | None = None, **settings: Any) -> Guard:
        about = {"url": url, "model": "llama-guard", "deadline_s": 5.0} | settings
        guards.append(Guard(GuardSettings.model_validate(about), api_key))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


# ---- what an answer means ----


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("safe", SAFE),
        ("\n\nsafe \n", SAFE),
        ("unsafe\nS11", Verdict(Level.HIGH, frozenset({"suicide"}), ("S11",))),
        ("\n\nUnsafe\ns11, S1", Verdict(Level.HIGH, frozenset({"suicide", "harm_others"}), ("S11", "S1"))),
        ("unsafe\nS1", Verdict(Level.ELEVATED, frozenset({"harm_others"}), ("S1",))),
        ("unsafe\nS7", Verdict(Level.NONE, frozenset(), ("S7",))),  # somebody else's privacy
        ("unsafe", Verdict(Level.ELEVATED)),
        ("unsafe\nS99", Verdict(Level.ELEVATED)),
        ('{"safe": true}', SAFE),
        ('{"safe": false, "categories": ["S11"]}', Verdict(Level.HIGH, frozenset({"suicide"}), ("S11",))),
        ('```json\n{"unsafe": true, "categories": "S1,S9"}\n```', Verdict(Level.ELEVATED, frozenset({"harm_others"}), ("S1", "S9"))),
        ('{"categories": {"S11": 0.93, "S1": 0.02}}', Verdict(Level.HIGH, frozenset({"suicide"}), ("S11",))),
        ('{"categories": {"S11": false, "S1": 0.02}}', SAFE),
        ('{"flagged": true}', Verdict(Level.ELEVATED)),
        ('{"safe": true, "categories": ["S11"]}', Verdict(Level.HIGH, frozenset({"suicide"}), ("S11",))),
        ('{"safe": true, "flagged": true}', Verdict(Level.ELEVATED)),
    ],
)  # fmt: skip
def test_an_answer_becomes_a_level_and_domains(
    server: Server, content: str, expected: Verdict, guard_at: GuardAt
) -> None:
    server.says(content)
    assert guard_at(server.url).assess(SECRET) == expected


@pytest.mark.parametrize(
    "content",
    [
        "", "   ", "I cannot help with that.", "safe\nunsafe", "safely", "S11", "yes", None, 3, ["unsafe"],
        "{", "{}", '{"categories": []}', '{"categories": {}}', '{"safe": "yes"}', '{"safe": 1}', '{"safe": null}',
        '{"categories": {"S11": NaN}}', '{"safe": true, "categories": {"S11": NaN}}', '{"categories": {"S11": -Infinity}}',
        '{"categories": {"S11": 93}}', '{"categories": {"S11": "0.9"}}', '{"categories": [11]}', '{"categories": 0.9}',
        '{"a":' * 5_000, "[" * 20_000,
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_unknown(server: Server, content: object, guard_at: GuardAt) -> None:
    server.says(content)
    assert guard_at(server.url).assess(SECRET) is UNKNOWN


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"unsafe\nS11",
        b"<html>",
        b"{}",
        b'{"choices": []}',
        b'{"choices": [{"message": {}}]}',
        b"[]",
        b"\xff\xfe",
        b"NaN",
    ],
)
def test_a_body_without_an_answer_is_unknown(server: Server, body: bytes, guard_at: GuardAt) -> None:
    server.sends(body)
    assert guard_at(server.url).assess(SECRET) is UNKNOWN


@pytest.mark.parametrize("status", [201, 204, 302, 307, 400, 401, 404, 429, 500, 503])
def test_only_200_is_an_answer_and_no_redirect_is_followed(server: Server, status: int, guard_at: GuardAt) -> None:
    body = json.dumps({"choices": [{"message": {"content": "safe"}}]}).encode()
    server.sends(b"" if status == 204 else body, status)
    assert guard_at(server.url).assess(SECRET) is UNKNOWN
    assert server.paths == ["/v1/chat/completions"]


# ---- what goes wrong on the way ----


def slow(state: Server) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        state.over.wait(5)

    return answer


def dripping(state: Server) -> Callable[[BaseHTTPRequestHandler], None]:
    """Each read is in time, the whole never ends."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100000")
        handler.end_headers()
        while not state.over.wait(0.02):
            handler.wfile.write(b" ")

    return answer


@pytest.mark.parametrize("how", [slow, dripping])
def test_an_answer_after_the_deadline_is_unknown_and_nobody_waits(
    server: Server, how: Callable, guard_at: GuardAt
) -> None:
    server.answer = how(server)
    guard = guard_at(server.url, deadline_s=0.2)
    started = time.monotonic()
    assert guard.assess(SECRET) is UNKNOWN
    assert 0.15 < time.monotonic() - started < 2


def test_a_dropped_connection_is_unknown(server: Server, guard_at: GuardAt) -> None:
    def before_a_word(handler: BaseHTTPRequestHandler) -> None:
        handler.connection.close()

    def in_the_middle(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b'{"choices": [{"message": {"content": "safe"}}]}')

    for how in (before_a_word, in_the_middle):
        server.answer = how
        assert guard_at(server.url).assess(SECRET) is UNKNOWN


def test_an_endless_answer_is_cut(server: Server, guard_at: GuardAt) -> None:
    server.sends(b" " * 200_000 + json.dumps({"choices": [{"message": {"content": "safe"}}]}).encode())
    assert guard_at(server.url).assess(SECRET) is UNKNOWN


def test_nobody_listening_is_unknown(server: Server, guard_at: GuardAt) -> None:
    assert guard_at("http://127.0.0.1:9").assess(SECRET) is UNKNOWN


def test_several_guards_are_asked_at_once(server: Server, guard_at: GuardAt) -> None:
    server.answer = slow(server)
    guards = [guard_at(server.url, deadline_s=0.3) for _ in range(8)]
    started = time.monotonic()
    assert assess_all(guards, SECRET) == [UNKNOWN] * 8
    assert time.monotonic() - started < 1.5


# ---- what is sent ----


def test_a_guard_whose_key_is_missing_is_never_asked(server: Server, guard_at: GuardAt) -> None:
    server.says("safe")
    assert guard_at(server.url, api_key_env="GUARD_KEY").assess(SECRET) is UNKNOWN
    assert server.bodies == []
    assert guard_at(server.url, "k-1", api_key_env="GUARD_KEY").assess(SECRET) == SAFE
    assert guard_at(server.url).assess(SECRET) == SAFE
    assert server.authorizations == ["Bearer k-1", None]


def test_a_key_that_no_header_can_carry_is_unknown(server: Server, guard_at: GuardAt) -> None:
    server.says("safe")
    for key in ("schlüssel", "two\nlines", "\ud800"):
        assert guard_at(server.url, key, api_key_env="GUARD_KEY").assess(SECRET) is UNKNOWN


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_the_turn_alone_is_sent_to_the_chat_endpoint(server: Server, suffix: str, guard_at: GuardAt) -> None:
    server.says("safe")
    guard_at(server.url + suffix).assess(SECRET)
    assert server.paths == ["/v1/chat/completions"]
    [body] = server.bodies
    assert body["messages"] == [{"role": "user", "content": SECRET}]
    assert (body["model"], body["temperature"]) == ("llama-guard", 0)


def test_of_a_long_turn_both_ends_are_sent_and_odd_characters_do_not_turn_the_guard_off(
    server: Server, guard_at: GuardAt
) -> None:
    server.says("unsafe\nS11")
    for text in (f"{SECRET}{'x' * 1_000_000}{SECRET}", f"{SECRET}\ud800\x00{SECRET}"):
        assert guard_at(server.url).assess(text) == Verdict(Level.HIGH, frozenset({"suicide"}), ("S11",))
        content = server.bodies[-1]["messages"][0]["content"]
        assert content.startswith(SECRET)
        assert content.endswith(SECRET)
        assert len(content) < 10_000


def test_settings_map_categories_and_alone_allow_emergency(server: Server, guard_at: GuardAt) -> None:
    server.says("unsafe\nS11,Panic,s1")
    own = {
        "S11": {"level": "emergency", "domain": "self_harm"},
        "panic": {"level": "elevated"},
        "S1": {"level": "none"},
    }
    found = guard_at(server.url, categories=own).assess(SECRET)
    assert found == Verdict(Level.EMERGENCY, frozenset({"self_harm"}), ("S11", "panic", "S1"))
    assert guard_at(server.url, categories=own).highest == Level.EMERGENCY
    assert guard_at(server.url).highest == Level.HIGH
    assert max(category.level for category in CATEGORIES.values()) == Level.HIGH
    assert {category.domain for category in CATEGORIES.values()} - {None} <= {*DOMAINS}


def test_nothing_said_is_logged_or_printed_whatever_happens(
    server: Server, guard_at: GuardAt, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    verdicts: list[Verdict | None] = []
    for answer in (SECRET, f"unsafe\n{SECRET}", "safe", '{"a":' * 5_000):
        server.says(answer)
        verdicts.append(guard_at(server.url, "k-secret").assess(SECRET))
    server.answer = slow(server)
    verdicts.append(guard_at(server.url, deadline_s=0.05).assess(SECRET))
    verdicts.append(guard_at("http://127.0.0.1:9").assess(SECRET))
    seen = with_verdicts(Observation(Level.NONE, 0.0), verdicts)
    captured = capfd.readouterr()
    shown = captured.out + captured.err + caplog.text + repr(verdicts) + repr(seen)
    assert SECRET not in shown
    assert "k-secret" not in shown
    assert seen.level == Level.ELEVATED  # the category that quoted the turn


# ---- fusion ----


def test_a_guard_only_ever_raises() -> None:
    verdicts = [UNKNOWN, *(Verdict(level, frozenset({"suicide"}), ("S11",)) for level in Level)]
    for level, settled, pair in product(Level, Level, product(verdicts, repeat=2)):
        if settled > level:
            continue
        before = Observation(level, 0.1, domains=frozenset({"eating"}), settled=settled)
        after = with_verdicts(before, pair)
        asked = [verdict.level for verdict in pair if verdict is not None]
        assert after.level == max(level, *asked, Level.NONE)
        assert after.settled == max(settled, *asked, Level.NONE)
        assert after.p >= before.p
        assert after.domains >= before.domains
        assert after.degraded == (frozenset({"guard"}) if UNKNOWN in pair else frozenset())
        assert len(after.reasons) == sum(each > Level.NONE for each in asked)


def answered(setting: Setting, session: Session, text: str) -> tuple[Sequence[object], Answer]:
    *pieces, last = respond(setting, session, text, 0.0)
    assert isinstance(last, Answer)
    return pieces, last


def setting_with(guards: Sequence[Guard]) -> Setting:
    return Setting(ScriptedEngine([GOOD]), load_detector(), load_directory(), country="IE", guards=tuple(guards))


def test_the_companion_answers_by_what_a_guard_raised_and_holds_it(server: Server, guard_at: GuardAt) -> None:
    server.says("unsafe\nS11")
    setting, session = setting_with([guard_at(server.url)]), Session()
    pieces, last = answered(setting, session, PLAIN)
    assert isinstance(pieces[0], Card)
    assert (last.level, last.degraded) == (Level.HIGH, frozenset())
    assert "suicide" in last.domains
    assert [reason.rule for reason in last.reasons] == ["GUARD.2"]
    server.says("safe")
    assert answered(setting, session, "never mind")[1].level == Level.HIGH
    assert [body["messages"] for body in server.bodies] == [
        [{"role": "user", "content": PLAIN}],
        [{"role": "user", "content": "never mind"}],  # the newest turn, nothing before it
    ]


@pytest.mark.parametrize("text", [PLAIN, RISK])
def test_without_a_verdict_the_other_detectors_decide_and_it_is_said(
    server: Server, text: str, guard_at: GuardAt
) -> None:
    server.sends(b"", 500)
    guard = guard_at(server.url, categories={"S11": {"level": "emergency"}})
    _, with_guard = answered(setting_with([guard]), Session(), text)
    _, without = answered(setting_with([]), Session(), text)
    assert (with_guard.level, with_guard.reasons) == (without.level, without.reasons)
    assert with_guard.degraded == without.degraded | {"guard"}
    server.says("safe")
    assert answered(setting_with([guard]), Session(), text)[1].level == without.level


def test_what_a_guard_cannot_raise_is_not_sent_to_it_and_old_turns_neither(server: Server, guard_at: GuardAt) -> None:
    server.says("safe")
    setting = setting_with([guard_at(server.url)])
    _, last = answered(setting, Session(), RISK)
    assert (last.level, server.bodies) == (Level.HIGH, [])
    resume(setting, [Turn("user", PLAIN), Turn("assistant", "Nice."), Turn("user", PLAIN)])
    assert server.bodies == []
