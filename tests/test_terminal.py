"""The conversation in the terminal, through the companion, with scripted engines and lists of lines."""

import os
import pty
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import pytest

from warmline.dialogue.companion import Setting
from warmline.engine.engine import (
    Capability,
    Chunk,
    Engine,
    EngineError,
    GenerateRequest,
    Message,
    Reading,
    Scores,
)
from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.detect import load_detector
from warmline.safety.resources.directory import load_directory
from warmline.serve.terminal import chat, exchanges

EMOTION = Reading("emotion", ("joy", "sadness", "fear", "anger"), (0.05, 0.7, 0.2, 0.05))
AFFECT = Reading("affect", ("valence", "arousal"), (-0.6, 0.25))
SETTING = Setting(ScriptedEngine(), load_detector(), load_directory(), country="IE")
RISK = "I want to kill myself tonight"
PROGRAM = """
from warmline.commands.shared import companion
from warmline.engine.engine import Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.terminal import chat, console_lines, console_write
setting = companion(ScriptedEngine(["I hear you \\u2026"]), None, Sampling(), "IE")
chat(setting, read_line=console_lines(), write=console_write(), title="warmline chat: scripted")
"""


class Recorded:
    """An engine that keeps what it was asked and streams what `answer` gives, a real failure included."""

    def __init__(self, answer: Callable[[int], Iterable[Chunk]]) -> None:
        self.asked: list[tuple[Message, ...]] = []
        self.num_closed = 0
        self._answer = answer

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.asked.append(request.messages)
        try:
            yield from self._answer(len(self.asked))
        finally:
            self.num_closed += 1

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        return Scores(0.0, 0)

    def capabilities(self) -> frozenset[Capability]:
        return frozenset()


def talk(engine: Engine, lines: Iterable[str], system_prompt: str | None = None) -> str:
    """What is written after the opening."""
    out: list[str] = []
    waiting = iter(lines)
    setting = replace(SETTING, engine=engine, system_prompt=system_prompt)
    chat(setting, read_line=lambda: next(waiting, None), write=out.append, title="warmline chat: scripted")
    opening, _, rest = "".join(out).partition("/help for all commands.\n\n")
    assert opening.startswith("warmline chat: scripted\n\nYou are talking with an AI")
    return rest


def test_the_opening_says_what_must_be_known() -> None:
    out: list[str] = []
    chat(SETTING, read_line=lambda: None, write=out.append, title="t")
    for words in ("an AI, a computer program", "not a crisis service", "contacts nobody", "/help-now"):
        assert words in " ".join("".join(out).split())


def test_a_conversation_grows_by_both_sides() -> None:
    engine = Recorded(lambda turn: [Chunk(f"reply {turn}")])
    assert talk(engine, ["  hello ", "", "more"], "Be kind.") == "companion: reply 1\ncompanion: reply 2\n"
    assert engine.asked[1] == (
        Message("system", "Be kind."),
        Message("user", "hello"),
        Message("assistant", "reply 1"),
        Message("user", "more"),
    )


def test_sentences_are_written_as_they_are_complete() -> None:
    out: list[str] = []
    seen: list[str] = []

    def answer(_: int) -> Iterator[Chunk]:
        yield Chunk("One thing. ")
        yield Chunk("And ")
        seen.append("".join(out))
        yield Chunk("another.")

    lines = iter(["hi"])
    exchanges(replace(SETTING, engine=Recorded(answer)), lines, write=out.append)
    assert seen == ["you: hi\ncompanion: One thing."]
    assert "".join(out) == "you: hi\ncompanion: One thing. And another.\n"


def test_in_danger_the_card_stands_before_the_reply() -> None:
    out = talk(ScriptedEngine(), [RISK])
    card, _, reply = out.partition("companion: ")
    assert "116 123" in card
    assert "has not contacted anyone" in card
    assert len(reply.split()) >= 20
    assert "?" not in reply


def test_help_now_needs_no_danger_and_no_engine() -> None:
    engine = Recorded(lambda turn: [Chunk("never asked")])
    out = talk(engine, ["/help-now", "/quit"])
    assert "116 123" in out
    assert engine.asked == []


def test_reset_forgets_the_words_and_keeps_the_care() -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    talk(engine, ["first", "/reset", "second"])
    assert engine.asked[1] == (Message("user", "second"),)
    assert "no reply yet" in talk(ScriptedEngine(["a"], readings=[EMOTION]), ["hi", "/reset", "/why"])

    engine = Recorded(lambda turn: [Chunk("That sounds nice.")])
    talk(engine, [RISK, "/reset", "what is for dinner"])
    last = engine.asked[-1]
    assert last[0].role == "system"  # the overlay of someone in danger
    assert all(RISK not in message.content for message in last)


def test_why_shows_bars_and_two_numbers() -> None:
    out = talk(ScriptedEngine(["I see."], readings=[EMOTION, AFFECT]), ["/why", "my dog died", "/why", "/quit"])
    assert out == (
        "no reply yet: the heads have read nothing\n"
        "companion: I see.\n"
        "emotion    sadness              ############## 0.70\n"
        "           fear                 #### 0.20\n"
        "           joy                  # 0.05\n"
        "affect     valence -0.60  arousal +0.25\n"
    )


def test_why_without_heads() -> None:
    assert talk(ScriptedEngine(["I see."]), ["hi", "/why", "/quit"]) == "companion: I see.\nthis engine has no heads\n"


def test_help_names_every_command() -> None:
    out = talk(ScriptedEngine(["a"]), ["/help"])
    assert all(command in out for command in ("/help-now", "/why", "/reset", "/help", "/quit"))


@pytest.mark.parametrize(("typed", "nearest"), [("/qiut", "/quit"), ("/wy", "/why"), ("/rest", "/reset"), ("/", "/")])
def test_an_unknown_command_names_the_nearest(typed: str, nearest: str) -> None:
    assert f"Unknown command {typed}; the nearest is {nearest}" in talk(ScriptedEngine(["a"]), [typed])


def test_a_sentence_that_begins_like_a_command_is_a_sentence() -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    talk(engine, ["/why me of all people"])
    assert engine.asked[0] == (Message("user", "/why me of all people"),)


def test_an_error_is_a_notice_and_the_conversation_goes_on() -> None:
    def answer(turn: int) -> Iterator[Chunk]:
        if turn == 1:
            yield Chunk("half a")
            raise EngineError("I was told: my secret")
        yield Chunk("ok")

    out = talk(Recorded(answer), ["first", "again"])
    assert "half a" not in out
    assert "This is the warmline app" in out
    assert out.endswith("(EngineError)\ncompanion: ok\n")


def test_what_the_engine_layer_says_itself_is_shown() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        assert f"(cannot connect to {url}/v1/chat/completions" in talk(RemoteEngine(url, "m"), ["hi"])


def test_what_an_engine_says_in_an_unexpected_error_is_not_shown() -> None:
    def answer(_: int) -> Iterator[Chunk]:
        raise RuntimeError("the prompt was: my secret")
        yield

    out = talk(Recorded(answer), ["hi", RISK])
    assert "secret" not in out
    assert "(RuntimeError)" in out
    assert "116 123" in out


def test_an_empty_reply_is_a_notice() -> None:
    out = talk(Recorded(lambda turn: [Chunk("\n")] if turn == 1 else [Chunk("ok")]), ["first", "again"])
    assert "could not be prepared this time" in out
    assert out.endswith("companion: ok\n")


def test_ctrl_c_stops_the_reply_and_keeps_what_was_shown() -> None:
    def answer(turn: int) -> Iterator[Chunk]:
        yield Chunk("So far. ")
        yield Chunk("And ")
        if turn == 1:
            signal.raise_signal(signal.SIGINT)
        yield Chunk("on.")

    engine = Recorded(answer)
    out = talk(engine, ["first", "second"])
    assert out == "companion: So far. (stopped)\ncompanion: So far. And on.\n"
    assert engine.asked[1][:2] == (Message("user", "first"), Message("assistant", "So far."))
    assert engine.num_closed == 2


def test_ctrl_c_while_writing_closes_the_stream() -> None:
    engine = Recorded(lambda turn: [Chunk("One. "), Chunk("Two. "), Chunk("Three.")])

    def write(text: str) -> None:
        if "One." in text:
            signal.raise_signal(signal.SIGINT)

    exchanges(replace(SETTING, engine=engine), ["hi"], write=write)
    assert engine.num_closed == 1


def test_notes_are_shown_and_control_characters_are_not() -> None:
    engine = Recorded(lambda turn: [Chunk("a\x1b]0;title\x07\tb \x9bc", notes=("the oldest 2\nturns were left out",))])
    assert talk(engine, ["hi"]) == "companion: a]0;title\tb c\n(the oldest 2 turns were left out)\n"


def test_ctrl_c_at_the_prompt_leaves() -> None:
    def lines() -> Iterator[str]:
        yield "hi"
        signal.raise_signal(signal.SIGINT)
        yield "never read"

    assert talk(ScriptedEngine(["ok"]), lines()) == "companion: ok\n"


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_piped_input_gives_plain_text(encoding: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=b"hello \xff\n/why\n",
        capture_output=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": encoding, "FORCE_COLOR": "1"},
    )
    assert done.stderr == b""
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "you: " not in text
    dots = "…" if encoding == "utf-8" else "?"
    assert text.startswith("warmline chat: scripted\n\nYou are talking with an AI")
    assert text.endswith(f"companion: I hear you {dots}\nthis engine has no heads\n")


def test_a_terminal_gets_colours_and_a_prompt() -> None:
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    environment.pop("NO_COLOR", None)
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=slave, stdout=slave, stderr=slave, env=environment
    ) as process:
        os.close(slave)
        os.write(master, b"hello\n/quit\n")
        assert process.wait(60) == 0
        shown = b""
        try:
            while piece := os.read(master, 4096):
                shown += piece
        except OSError:  # Linux reports the closed other end so
            pass
        os.close(master)
    assert b"\x1b[1mcompanion: \x1b[0m" in shown
    assert b"you: " in shown


def test_the_terminal_needs_no_torch() -> None:
    code = "import sys, warmline.serve.terminal, warmline.engine.remote, warmline.engine.scripted; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
