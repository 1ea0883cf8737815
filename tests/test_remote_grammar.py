"""Grammars through a server: which parameter carries one, whether it is obeyed, and what a turn in danger gives."""

import random
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from llguidance.gbnf_to_lark import any_to_lark

from warmline.dialogue.companion import Answer
from warmline.engine import remote
from warmline.engine.engine import EngineError, GenerateRequest, Message, Sampling
from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.engine.structured import PROBE_WORDS, gbnf
from warmline.safety.grammar.grammar import Spec, derive, frames_of, lark, spec_for
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.release import Released
from warmline.safety.resources.card import Card
from warmline.safety.validate.notice import Notice
from warmline.safety.validate.release import Validated

from .test_companion import GOOD, RISK, SETTING, answer
from .test_remote import DONE, SECRET, Server, _plain, _stream, event, replies, serving

CATS = 'start: BIG " sleeps" | BIG " and " BIG " play"\nBIG: CHOICE_0 ("lynx" | "puma")\nCHOICE_0: ("the " | "a ")?\n'
GUIDED = GenerateRequest((Message("user", SECRET),), Sampling(seed=3), constraint=CATS)


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


def decodes(server: Server, obeys: str | None, engine: ScriptedEngine | None = None) -> None:
    """Answer with a real decoder, which keeps to the grammar of parameter `obeys` and knows no other parameter."""
    engine = engine or ScriptedEngine()

    def say(handler: BaseHTTPRequestHandler) -> None:
        body = server.bodies[-1]
        text = body.get(obeys) if obeys else None
        if obeys == "structured_outputs" and text is not None:
            text = text["grammar"]
        request = GenerateRequest(
            tuple(Message(**message) for message in body["messages"]),
            Sampling(
                body["temperature"], body["top_p"], body["max_tokens"], body.get("seed"), tuple(body.get("stop", ()))
            ),
            n=body.get("n", 1),
            constraint=None if text is None else any_to_lark(text),  # as the servers' own llguidance backends do
        )
        blobs = [event(chunk.text, index=chunk.index) for chunk in engine.generate(request)]
        blobs += [event(index=index, finish="stop") for index in range(request.n)]
        _stream(handler, (*blobs, DONE), end=True)

    server.answers.append(say)


def refuses(server: Server, engine: ScriptedEngine, status: int = 400) -> None:
    """Answer with an error if the body holds a parameter that OpenAI does not document; else decode."""
    decodes(server, None, engine)
    say = server.answers.pop()

    def check(handler: BaseHTTPRequestHandler) -> None:
        if PROBE_WORDS.keys() & server.bodies[-1].keys():
            _plain(
                handler, status, b'{"error": {"message": "Unrecognized request argument supplied"}}', "application/json"
            )
        else:
            say(handler)

    server.answers.append(check)


def specs(count: int) -> Iterator[Spec]:
    rng = random.Random(7)
    for _ in range(count):
        domains = rng.sample(list(DOMAINS), 2)
        level = rng.choice([Level.ELEVATED, Level.HIGH, Level.EMERGENCY])
        minor, other, follow_up = (rng.random() < 0.3 for _ in range(3))
        yield spec_for(level, domains, (), minor=minor, about_other=other, follow_up=follow_up)


def regex_of(text: str) -> re.Pattern[str]:
    """The GBNF as one regular expression: it never comes back to a rule of its own, so names can be written out."""
    rules = dict(line.split(" ::= ", 1) for line in text.splitlines())

    def written_out(expression: str) -> str:
        parts = re.findall(r'"([^"]*)"|([\w-]+)|([()|?])', expression)
        return "".join(re.escape(quoted) or sign or f"(?:{written_out(rules[name])})" for quoted, name, sign in parts)

    return re.compile(written_out("root"))


def test_the_servers_syntax_says_what_ours_says() -> None:
    rng = random.Random(1)
    for spec in specs(6):
        pattern = regex_of(gbnf(lark(spec)))
        for _ in range(20):
            text, _ = derive(spec, rng)
            assert pattern.fullmatch(text), text
            at = rng.randrange(len(text))
            less = text[:at] + text[at + 1 :]
            assert bool(pattern.fullmatch(less)) == (frames_of(spec, less) is not None), less


def test_what_is_decoded_inside_the_servers_syntax_is_a_reply_of_ours() -> None:
    for seed, spec in enumerate(specs(4)):
        constraint = any_to_lark(gbnf(lark(spec)))
        request = GenerateRequest((Message("user", "hi"),), Sampling(1.0, 1.0, 900, seed), constraint=constraint)
        for text in replies(ScriptedEngine(), replace(request, n=2)):
            assert frames_of(spec, text) is not None, text


@pytest.mark.parametrize(
    "text",
    [
        "start: /a+/\n",
        'start: "a"i\n',
        'start: "a"*\n',
        'start: "a" | B\n',
        'start: "a\\n"\n',
        'start: "a\n',
        'start: "a"\n | "b"\n',
        'start: "a"\nstart: "b"\n',
        'start: root\nroot: "b"\n',
        "%llguidance {}\nstart: A\n",
        "start:\n",
        'A: "a"\n',
        "",
    ],
)
def test_a_grammar_that_cannot_be_sent_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(EngineError, match="grammar") as caught:
        gbnf(text)
    assert "\n" not in str(caught.value)
    assert '"' not in str(caught.value)


@pytest.mark.parametrize("parameter", PROBE_WORDS)
def test_the_parameter_that_is_obeyed_is_found_once_and_then_sent_alone(server: Server, parameter: str) -> None:
    decodes(server, parameter)
    engine = RemoteEngine(server.url, "m")
    assert server.bodies == []  # nothing is asked before it is needed
    assert engine.capabilities() == engine.capabilities() == {"n", "grammar"}
    (probe,) = server.bodies
    assert probe.keys() >= PROBE_WORDS.keys()
    pattern = regex_of(gbnf(CATS))
    for reply in replies(engine, replace(GUIDED, n=3)):
        assert pattern.fullmatch(reply)
    assert len(server.bodies) == 2
    assert PROBE_WORDS.keys() & server.bodies[1].keys() == {parameter}
    assert not pattern.fullmatch(replies(engine, replace(GUIDED, constraint=None))[0])
    assert PROBE_WORDS.keys() & server.bodies[2].keys() == set()


def test_a_probe_says_nothing_that_anyone_said(server: Server) -> None:
    decodes(server, "grammar")
    replies(RemoteEngine(server.url, "m"), GUIDED)
    assert [body["messages"][0]["content"] for body in server.bodies] == ["Say hello.", SECRET]


@pytest.mark.parametrize("says", ["Hello!", "otter or heron", '("otter" | "heron")', "", "otter " * 1000])
def test_a_server_that_ignores_a_grammar_is_not_trusted_with_one(server: Server, says: str) -> None:
    decodes(server, None, ScriptedEngine([says]))
    engine = RemoteEngine(server.url, "m")
    assert engine.capabilities() == engine.capabilities() == {"n"}
    assert len(server.bodies) == 1
    with pytest.raises(EngineError, match="follows no grammar"):
        engine.generate(GUIDED)
    assert len(server.bodies) == 1
    assert replies(engine, replace(GUIDED, constraint=None)) == [says]


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_parameter_is_asked_once(
    server: Server, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "RETRY_S", 0.0)
    refuses(server, ScriptedEngine(["ok"]), status)
    engine = RemoteEngine(server.url, "m")
    assert engine.capabilities() == engine.capabilities() == {"n"}
    assert len(server.bodies) == 1
    assert replies(engine, replace(GUIDED, constraint=None)) == ["ok"]


def test_a_server_that_was_not_ready_is_asked_again_later(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fails(503, b'{"error": {"message": "Loading model"}}')
    decodes(server, "grammar")
    engine = RemoteEngine(server.url, "m")
    assert engine.capabilities() == engine.capabilities() == {"n"}
    assert len(server.bodies) == 1  # not at once
    monkeypatch.setattr(remote, "RETRY_S", 0.0)
    server.fails(503, b"")
    decodes(server, "grammar")
    server.answers[:] = server.answers[1:]
    engine = RemoteEngine(server.url, "m")
    assert engine.capabilities() == {"n"}
    assert engine.capabilities() == {"n", "grammar"}


def trickles(server: Server) -> Callable[[BaseHTTPRequestHandler], None]:
    def say(handler: BaseHTTPRequestHandler) -> None:
        _stream(handler, (), end=False)
        while not server.released.wait(0.05):
            blob = event("o")
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(blob), blob))

    return say


def silent(server: Server) -> Callable[[BaseHTTPRequestHandler], None]:
    def say(handler: BaseHTTPRequestHandler) -> None:
        server.released.wait(5)

    return say


@pytest.mark.parametrize("kind", [trickles, silent])
def test_a_slow_server_holds_up_no_turn(
    server: Server, kind: Callable[[Server], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "PROBE_TIMEOUT_S", 0.2)
    server.answers.append(kind(server))
    began = time.monotonic()
    assert RemoteEngine(server.url, "m").capabilities() == {"n"}
    assert time.monotonic() - began < 3


def test_threads_that_ask_together_send_one_probe(server: Server) -> None:
    decodes(server, "ebnf")
    engine = RemoteEngine(server.url, "m")
    found: list[frozenset[str]] = []
    threads = [threading.Thread(target=lambda: found.append(engine.capabilities())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [{"n", "grammar"}] * 8
    assert len(server.bodies) == 1


def test_the_user_may_say_which_parameter_or_none(server: Server) -> None:
    decodes(server, "ebnf")
    assert RemoteEngine(server.url, "m", structured="none").capabilities() == {"n"}
    assert server.bodies == []
    assert RemoteEngine(server.url, "m", structured="grammar").capabilities() == {"n"}
    assert PROBE_WORDS.keys() & server.bodies[0].keys() == {"grammar"}
    assert RemoteEngine(server.url, "m", structured="ebnf").capabilities() == {"n", "grammar"}
    with pytest.raises(EngineError, match="structured is 'gbnf'; expected auto, none or one of structured_outputs"):
        RemoteEngine(server.url, "m", structured="gbnf")  # type: ignore[arg-type]


@pytest.mark.parametrize("streamed", [False, True])
def test_an_error_about_a_grammar_shows_nothing_that_the_server_said(server: Server, streamed: bool) -> None:
    decodes(server, "grammar")
    quote = b'{"error": {"message": "cannot parse: %s"}}' % SECRET.encode()
    if streamed:
        server.streams(b"data: " + quote + b"\n\n")
    else:
        server.fails(400, quote)
    with pytest.raises(EngineError) as caught:
        replies(RemoteEngine(server.url, "m"), GUIDED)
    assert "parse" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert server.url in str(caught.value)


def crisis(url: str) -> tuple[list[Released], Answer]:
    """A turn in danger, answered through the server; the card came first, whatever the server did."""
    pieces, last = answer(replace(SETTING, engine=RemoteEngine(url, "m")), RISK)
    assert isinstance(pieces[0], Card)
    assert last.level >= Level.HIGH
    assert not any(RISK in note for note in last.notes)
    return pieces, last


@pytest.mark.parametrize("parameter", PROBE_WORDS)
def test_in_danger_a_server_with_grammars_gives_a_guided_reply(server: Server, parameter: str) -> None:
    decodes(server, parameter)  # of random logits: no other tier has words to say
    pieces, last = crisis(server.url)
    assert last.reply_source == "guided"
    assert isinstance(pieces[-1], Validated)
    assert str(pieces[-1]).endswith(".")


def test_in_danger_a_server_without_grammars_gives_its_best_of_several(server: Server) -> None:
    decodes(server, None, ScriptedEngine(["Just stay calm and do not tell anyone.", "Why?", GOOD]))
    pieces, last = crisis(server.url)
    assert (last.reply_source, str(pieces[-1])) == ("model", GOOD)
    assert max(body.get("n", 1) for body in server.bodies) > 1


def test_in_danger_a_server_without_grammars_or_sense_gives_a_notice(server: Server) -> None:
    decodes(server, None)
    pieces, last = crisis(server.url)
    assert last.reply_source == "notice"
    assert isinstance(pieces[-1], Notice)


@pytest.mark.parametrize(("says", "source"), [(GOOD, "model"), ("You should try yoga.", "notice")])
def test_in_danger_a_server_that_refuses_the_parameter_still_speaks(server: Server, says: str, source: str) -> None:
    refuses(server, ScriptedEngine([says]))
    _, last = crisis(server.url)
    assert last.reply_source == source
    assert last.notes == ()


def test_in_danger_a_server_that_is_down_gives_a_notice() -> None:
    with socket.socket() as bound:  # bound but not listening
        bound.bind(("127.0.0.1", 0))
        pieces, last = crisis(f"http://127.0.0.1:{bound.getsockname()[1]}")
    assert last.reply_source == "notice"
    assert isinstance(pieces[-1], Notice)
    assert "cannot connect" in last.notes[0]


def test_in_danger_a_server_that_fails_at_the_grammar_gives_a_notice(server: Server) -> None:
    decodes(server, "grammar")
    say = server.answers.pop()

    def only_small_ones(handler: BaseHTTPRequestHandler) -> None:
        if len(server.bodies[-1].get("grammar", "")) > 200:
            _plain(handler, 400, b'{"error": {"message": "grammar too large"}}', "application/json")
        else:
            say(handler)

    server.answers.append(only_small_ones)
    pieces, last = crisis(server.url)
    assert last.reply_source == "notice"
    assert isinstance(pieces[-1], Notice)
    assert [note for note in last.notes if note.startswith("guided: ")]
