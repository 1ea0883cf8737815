"""A conversation in the terminal: what is said stays in memory and is gone at the end."""

import difflib
import importlib
import sys
import textwrap
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from rich.console import Console
from rich.text import Text

from warmline.dialogue.companion import Answer, Session, Setting, help_now, respond, told
from warmline.engine.engine import Engine, Reading
from warmline.safety.release import text_of
from warmline.safety.validate.release import Validated

ReadLine = Callable[[], str | None]  # a line without its end, or None when there are no more
Write = Callable[[str], None]

COMMANDS = {
    "/help-now": "people who can help, at any time",
    "/why": "what the heads read just before the last reply",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "leave",
}
WIDTH = 100  # characters of a line of the app's own words
BAR_WIDTH = 20  # characters that stand for a probability of 1
# A reply must not move the cursor or rename the window: control characters but tab and line feed are left out.
CONTROL_CHARACTERS = {code: None for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\t\n"}


@dataclass
class _Talk:
    """What the loop remembers between lines."""

    session: Session = field(default_factory=Session)
    readings: tuple[Reading, ...] = ()  # of the last reply


def chat(setting: Setting, *, read_line: ReadLine, write: Write, title: str) -> None:
    """Hold a conversation until `/quit`, the end of input or Ctrl-C at the prompt."""
    talk = _Talk()
    write(f"{_styled(title, 'bold')}\n\n")
    _tell(talk, write)
    write("Type /help-now for people who can help, /help for all commands.\n\n")
    _converse(setting, talk, read_line=read_line, write=write)


def exchanges(setting: Setting, prompts: Iterable[str], *, write: Write) -> None:
    """The conversation that `prompts` would make, written as `you: ...` and `companion: ...` lines."""
    lines = iter(prompts)

    def read_line() -> str | None:
        line = next(lines, None)
        if line is not None:
            write(f"you: {line}\n")
        return line

    talk = _Talk()
    told(talk.session, time.time())  # who runs this knows what it is
    _converse(setting, talk, read_line=read_line, write=write)


def console_lines() -> ReadLine:
    """A `read_line` that asks on standard input, with a prompt only where a person can see it."""
    if hasattr(sys.stdin, "reconfigure"):  # a mistyped byte must not end the conversation
        sys.stdin.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    prompt = ""
    if sys.stdin.isatty():
        prompt = "you: "
        with suppress(ImportError):  # gives `input` the arrow keys; absent on Windows
            importlib.import_module("readline")

    def read_line() -> str | None:
        try:
            return input(prompt)
        except (EOFError, KeyboardInterrupt):
            if prompt:  # the cursor still stands behind it
                sys.stdout.write("\n")
            return None

    return read_line


def console_write() -> Write:
    """A `write` to standard output that shows each piece at once and survives characters it cannot encode."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    return write


def _converse(setting: Setting, talk: _Talk, *, read_line: ReadLine, write: Write) -> None:
    while True:
        try:
            line = read_line()
        except KeyboardInterrupt:
            line = None
        text = "/quit" if line is None else line.strip()
        if text == "/quit":
            return
        # A command stands alone on its line, so that no sentence of a person is taken for one.
        if text.startswith("/") and len(text.split()) == 1:
            write(_obey(text, talk, setting))
        elif text:
            _answer(setting, talk, text, write)
            _tell(talk, write)


def _answer(setting: Setting, talk: _Talk, text: str, write: Write) -> None:
    """Write the card, the reply as it is released, and what there is to note. Ctrl-C ends the reply, not the card."""
    answer = None
    spoke = False
    stream = respond(setting, talk.session, text)
    try:
        for piece in stream:
            if isinstance(piece, Answer):
                answer = piece
            elif isinstance(piece, Validated):
                write((" " if spoke else _styled("companion: ", "bold")) + _printable(text_of(piece)))
                spoke = True
            else:
                write(f"\n{_printable(text_of(piece)).strip()}\n\n")
    except KeyboardInterrupt:
        stream.close()
        write(_styled(" (stopped)" if spoke else "(stopped)\n", "dim"))
    write("\n" if spoke else "")
    if answer is not None:
        talk.readings = answer.readings
        write("".join(_styled(f"({' '.join(_printable(note).split())})", "dim") + "\n" for note in answer.notes))


def _tell(talk: _Talk, write: Write) -> None:
    """What the app has to say about itself now, if anything."""
    offset = datetime.now().astimezone().utcoffset()
    for text in told(talk.session, time.time(), offset.total_seconds() if offset is not None else None):
        write(_styled(textwrap.fill(text, WIDTH), "dim") + "\n\n")


def _obey(command: str, talk: _Talk, setting: Setting) -> str:
    """Carry out a command but /quit; what to print."""
    if command == "/help-now":
        return f"\n{text_of(help_now(setting, talk.session))}\n"
    if command == "/why":
        return _why(talk, setting.engine)
    if command == "/reset":
        talk.session.turns.clear()  # the words; that somebody was in danger a moment ago is not forgotten
        talk.readings = ()
        return "What was said is forgotten.\n"
    if command == "/help":
        return "".join(f"{name:<11}{meaning}\n" for name, meaning in COMMANDS.items())
    nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0)[0]
    return f"Unknown command {_printable(command)}; the nearest is {nearest}. /help lists them all.\n"


def _why(talk: _Talk, engine: Engine) -> str:
    if "heads" not in engine.capabilities():
        return "this engine has no heads\n"
    if not talk.readings:
        return "no reply yet: the heads have read nothing\n"
    return "".join(_bars(reading) for reading in talk.readings)


def _bars(reading: Reading) -> str:
    """One head's reading as lines: its three likeliest labels, or the two numbers of affect.

    >>> print(_bars(Reading("risk", ("none", "elevated"), (0.75, 0.25))), end="")
    risk       none                 ############### 0.75
               elevated             ##### 0.25
    """
    if reading.head == "affect":
        numbers = (f"{label} {value:+.2f}" for label, value in zip(reading.labels, reading.values, strict=True))
        return f"{reading.head:<11}{'  '.join(numbers)}\n"
    lines: list[str] = []
    for label, value in reading.top(3):
        bar = "#" * round(BAR_WIDTH * min(max(value, 0.0), 1.0))
        lines.append(f"{'' if lines else reading.head:<11}{label:<21}{bar}{' ' if bar else ''}{value:.2f}\n")
    return "".join(lines)


def _printable(text: str) -> str:
    return text.translate(CONTROL_CHARACTERS)


def _styled(text: str, style: str) -> str:
    """`text` in one of rich's styles where standard output is a terminal, else as it is."""
    if not sys.stdout.isatty():
        return text
    console = Console()
    with console.capture() as capture:
        console.print(Text(text, style), end="", soft_wrap=True)
    return capture.get()
