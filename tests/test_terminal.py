"""The conversation in the terminal, with a scripted engine and lists of lines."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest

from warmline.engine.engine import (
    Capability,
    Chunk,
    Engine,
    EngineError,
    GenerateRequest,
    Message,
    Reading,
    Sampling,
    Scores,
)
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.terminal import chat, exchanges, notice

EMOTION = Reading("emotion", ("joy", "sadness", "fear", "anger"), (0.05, 0.7, 0.2, 0.05))
AFFECT = Reading("affect", ("valence", "arousal"), (-0.6, 0.25))
PROGRAM = """
from warmline.engine.engine import Sampling, Scores
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.terminal import chat, console_lines, console_write
chat(ScriptedEngine(["I hear you \\u2026"]), system_prompt=None, sampling=Sampling(),
     read_line=console_lines(), write=console_write(), title="warmline chat: scripted")
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
    out: list[str] = []
    waiting = iter(lines)
    chat(
        engine,
        system_prompt=system_prompt,
        sampling=Sampling(),
        read_line=lambda: next(waiting, None),
        write=out.append,
        title="warmline chat: scripted",
    )
    opening, _, rest = "".join(out).partition("Type /help for the commands.\n\n")
    assert opening == f"warmline chat: scripted\n{notice()}\n"
    return rest


def test_the_notice_says_what_must_be_known() -> None:
    for words in ("an AI, not a person", "No safety controller is active", "emergency", "https://findahelpline.com"):
        assert words in notice()


def test_a_conversation_grows_by_both_sides() -> None:
    engine = Recorded(lambda turn: [Chunk(f"reply {turn}")])
    assert talk(engine, ["  hello ", "", "more"], "Be kind.") == "companion: reply 1\ncompanion: reply 2\n"
    assert engine.asked[1] == (
        Message("system", "Be kind."),
        Message("user", "hello"),
        Message("assistant", "reply 1"),
        Message("user", "more"),
    )


def test_chunks_are_written_as_they_come() -> None:
    out: list[str] = []
    seen: list[str] = []

    def answer(_: int) -> Iterator[Chunk]:
        yield Chunk("one ")
        seen.append("".join(out))
        yield Chunk("two")

    lines = iter(["hi"])
    engine = Recorded(answer)
    chat(
        engine,
        system_prompt=None,
        sampling=Sampling(),
        read_line=lambda: next(lines, None),
        write=out.append,
        title="t",
    )
    assert seen[0].endswith("companion: one ")


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


def test_reset_forgets_turns_and_readings() -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    talk(engine, ["first", "/reset", "second"])
    assert engine.asked[1] == (Message("user", "second"),)
    out = talk(ScriptedEngine(["a"], readings=[EMOTION]), ["hi", "/reset", "/why"])
    assert "no reply yet" in out


def test_help_names_every_command() -> None:
    out = talk(ScriptedEngine(["a"]), ["/help"])
    assert all(command in out for command in ("/why", "/reset", "/help", "/quit"))


@pytest.mark.parametrize(("typed", "nearest"), [("/qiut", "/quit"), ("/wy", "/why"), ("/rest", "/reset"), ("/", "/")])
def test_an_unknown_command_names_the_nearest(typed: str, nearest: str) -> None:
    assert f"Unknown command {typed}; the nearest is {nearest}" in talk(ScriptedEngine(["a"]), [typed])


def test_a_sentence_that_begins_like_a_command_is_a_sentence() -> None:
    engine = Recorded(lambda turn: [Chunk("ok")])
    talk(engine, ["/why me of all people"])
    assert engine.asked[0] == (Message("user", "/why me of all people"),)


def test_an_error_takes_the_turn_back() -> None:
    def answer(turn: int) -> Iterator[Chunk]:
        if turn == 1:
            yield Chunk("half a")
            raise EngineError("http://host\nbroke off")
        yield Chunk("ok")

    engine = Recorded(answer)
    out = talk(engine, ["first", "again"])
    assert "\nno reply: http://host broke off (your message was taken back" in out
    assert engine.asked[1] == (Message("user", "again"),)


def test_an_error_at_the_call_itself_is_an_error_too() -> None:
    class Refuses(Recorded):
        def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
            raise EngineError("too long")

    assert "no reply: too long" in talk(Refuses(lambda turn: []), ["hi"])


def test_an_empty_reply_takes_the_turn_back() -> None:
    engine = Recorded(lambda turn: [Chunk("\n")] if turn == 1 else [Chunk("ok")])
    assert "(no words came; your message was taken back)" in talk(engine, ["first", "again"])
    assert engine.asked[1] == (Message("user", "again"),)


def test_ctrl_c_stops_the_reply_and_keeps_the_conversation() -> None:
    def answer(turn: int) -> Iterator[Chunk]:
        yield Chunk("so far")
        if turn == 1:
            signal.raise_signal(signal.SIGINT)
        yield Chunk(" and on")

    engine = Recorded(answer)
    out = talk(engine, ["first", "second"])
    assert out == "companion: so far (stopped)\ncompanion: so far and on\n"
    assert engine.asked[1][:2] == (Message("user", "first"), Message("assistant", "so far"))


def test_ctrl_c_while_writing_closes_the_stream() -> None:
    engine = Recorded(lambda turn: [Chunk("a"), Chunk("b")])
    lines = iter(["hi"])

    def write(text: str) -> None:
        if text == "a":
            signal.raise_signal(signal.SIGINT)

    exchanges(engine, lines, system_prompt=None, sampling=Sampling(), write=write)
    assert engine.num_closed == 1


def test_ctrl_c_at_the_prompt_leaves() -> None:
    def lines() -> Iterator[str]:
        yield "hi"
        signal.raise_signal(signal.SIGINT)
        yield "never read"

    assert talk(ScriptedEngine(["ok"]), lines()) == "companion: ok\n"


def test_notes_are_shown_and_control_characters_are_not() -> None:
    engine = Recorded(lambda turn: [Chunk("a\x1b]0;title\x07\tb\n\x9bc", notes=("the oldest 2 turns were left out",))])
    assert talk(engine, ["hi"]) == "companion: a]0;title\tb\nc\n(the oldest 2 turns were left out)\n"


def test_exchanges_are_you_and_companion_lines() -> None:
    out: list[str] = []
    engine = ScriptedEngine(["I hear you.", "Tell me more."])
    exchanges(engine, ["I am sad.", "Very."], system_prompt=None, sampling=Sampling(), write=out.append)
    text = "".join(out)
    assert text == "you: I am sad.\ncompanion: I hear you.\nyou: Very.\ncompanion: Tell me more.\n"


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
    assert text.startswith(f"warmline chat: scripted\n{notice()}\n")
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
