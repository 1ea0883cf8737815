"""A conversation in the terminal: what is said stays in memory and is gone at the end."""

import difflib
import importlib
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text

from warmline.engine.engine import Chunk, Engine, EngineError, GenerateRequest, Message, Reading, Sampling

ReadLine = Callable[[], str | None]  # a line without its end, or None when there are no more
Write = Callable[[str], None]

COMMANDS = {
    "/why": "what the heads read just before the last reply",
    "/reset": "forget the conversation",
    "/help": "this list",
    "/quit": "leave",
}
BAR_WIDTH = 20  # characters that stand for a probability of 1
# A reply must not move the cursor or rename the window: control characters but tab and line feed are left out.
CONTROL_CHARACTERS = {code: None for code in [*range(0x20), *range(0x7F, 0xA0)] if chr(code) not in "\t\n"}


@dataclass
class _Talk:
    """What the loop remembers between lines."""

    turns: list[Message] = field(default_factory=list)
    readings: tuple[Reading, ...] = ()  # of the last reply


def notice() -> str:
    """What a person must know before the first word; a later safety system replaces it."""
    return (
        "You are talking to an AI, not a person. No safety controller is active in this version.\n"
        "If you may be in danger, contact your local emergency number or find a helpline at https://findahelpline.com."
    )


def chat(
    engine: Engine, *, system_prompt: str | None, sampling: Sampling, read_line: ReadLine, write: Write, title: str
) -> None:
    """Hold a conversation until `/quit`, the end of input or Ctrl-C at the prompt."""
    write(f"{_styled(title, 'bold')}\n{notice()}\nType /help for the commands.\n\n")
    _converse(engine, system_prompt=system_prompt, sampling=sampling, read_line=read_line, write=write)


def exchanges(
    engine: Engine, prompts: Iterable[str], *, system_prompt: str | None, sampling: Sampling, write: Write
) -> None:
    """The conversation that `prompts` would make, written as `you: ...` and `companion: ...` lines."""
    lines = iter(prompts)

    def read_line() -> str | None:
        line = next(lines, None)
        if line is not None:
            write(f"you: {line}\n")
        return line

    _converse(engine, system_prompt=system_prompt, sampling=sampling, read_line=read_line, write=write)


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


def _converse(
    engine: Engine, *, system_prompt: str | None, sampling: Sampling, read_line: ReadLine, write: Write
) -> None:
    talk = _Talk()
    system = [] if system_prompt is None else [Message("system", system_prompt)]
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
            write(_obey(text, talk, engine))
        elif text:
            talk.turns.append(Message("user", text))
            request = GenerateRequest((*system, *talk.turns), sampling)
            _answer(engine, request, talk, write)


def _answer(engine: Engine, request: GenerateRequest, talk: _Talk, write: Write) -> None:
    """Stream a reply to the last turn into the talk; without one, take the turn back."""
    write(_styled("companion: ", "bold"))
    chunks: list[Chunk] = []
    ending = "\n"
    try:
        _stream(engine, request, chunks, write)
    except KeyboardInterrupt:
        ending = _styled(" (stopped)", "dim") + "\n"
    except EngineError as error:
        # Half a reply would stand in the conversation as if it had been meant: it goes, and the turn with it.
        talk.turns.pop()
        reason = " ".join(_printable(str(error)).split())
        write("\n" + _styled(f"no reply: {reason} (your message was taken back; you can send it again)", "red") + "\n")
        return
    notes = [note for chunk in chunks for note in chunk.notes]
    write(ending + "".join(_styled(f"({_printable(note)})", "dim") + "\n" for note in notes))
    text = "".join(chunk.text for chunk in chunks)
    if not text.strip():
        talk.turns.pop()
        write(_styled("(no words came; your message was taken back)", "dim") + "\n")
        return
    talk.turns.append(Message("assistant", text))
    talk.readings = next((chunk.readings for chunk in chunks if chunk.readings), ())


def _stream(engine: Engine, request: GenerateRequest, chunks: list[Chunk], write: Write) -> None:
    """Write the chunks as they come and append each to `chunks`, which an interruption leaves half filled."""
    stream = engine.generate(request)
    try:
        for chunk in stream:
            chunks.append(chunk)
            write(_printable(chunk.text))
    finally:
        close = getattr(stream, "close", None)
        if close is not None:  # a generator that is only dropped would keep its server busy
            close()


def _obey(command: str, talk: _Talk, engine: Engine) -> str:
    """Carry out a command but /quit; what to print."""
    if command == "/why":
        return _why(talk, engine)
    if command == "/reset":
        talk.turns.clear()
        talk.readings = ()
        return "The conversation is forgotten.\n"
    if command == "/help":
        return "".join(f"{name:<8}{meaning}\n" for name, meaning in COMMANDS.items())
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
