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
from pathlib import Path

from rich.console import Console
from rich.text import Text

from warmline.config.fields import StyleSettings
from warmline.data.style import tag
from warmline.dialogue.companion import Answer, Session, Setting, help_now, respond, resume, told
from warmline.dialogue.style import NO_STYLE, PERSONAS, TONES, style_in, styled
from warmline.engine.engine import Engine, Reading
from warmline.safety.release import text_of
from warmline.safety.validate.context import Turn
from warmline.safety.validate.release import Validated
from warmline.serve.transcript import Saved, TranscriptError, default_file, write_export, write_saved

ReadLine = Callable[[], str | None]  # a line without its end, or None when there are no more
Write = Callable[[str], None]

COMMANDS = {
    "/help-now": "people who can help, at any time",
    "/why": "what the heads read just before the last reply",
    "/style": "how you are spoken to: /style warm best friend, /style off; alone: what there is",
    "/save": "keep the conversation in a file, to go on with later: /save, or /save NAME.json",
    "/export": "write down what was said, to read: /export, or /export NAME.json",
    "/forget": "forget the conversation, and delete the files that it was kept in",
    "/reset": "forget the conversation, and leave files where they are",
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
    style: StyleSettings = field(default_factory=StyleSettings)
    times: list[float | None] = field(default_factory=list)  # epoch seconds of each turn
    files: list[Path] = field(default_factory=list)  # that it was kept in
    title: str = ""


def chat(
    setting: Setting, *, read_line: ReadLine, write: Write, title: str, saved: tuple[Path, Saved] | None = None
) -> None:
    """Hold a conversation until `/quit`, the end of input or Ctrl-C at the prompt.

    `saved`: one to go on with, and its file. The risk of its turns is read again.
    """
    talk = _Talk(style=setting.style, title=title)
    if saved is not None:
        file, kept = saved
        talk.times = [turn.t for turn in kept.turns]
        talk.session = resume(setting, [Turn(turn.role, turn.content) for turn in kept.turns], talk.times)
        talk.style, talk.files = kept.style if tag(kept.style) else setting.style, [file]
    write(f"{_styled(title, 'bold')}\n\n")
    _tell(talk, write)
    if saved is not None:
        write(f"Going on with {saved[0]}: {len(talk.times)} turns. /forget deletes it.\n\n")
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

    talk = _Talk(style=setting.style)
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
        command = _command(text)
        if command is not None:
            try:
                write(_obey(*command, talk, setting))
            except KeyboardInterrupt:
                write(_styled("(stopped)\n", "dim"))
        elif text:
            _answer(styled(setting, talk.style), talk, text, write)
            _tell(talk, write)


def _command(text: str) -> tuple[str, str] | None:
    """A command and its argument. A sentence that begins with a slash is none: a command stands alone on its line, or
    with a style or the name of a JSON file behind it.

    >>> _command("/save talk.json"), _command("/save me"), _command("/style calm"), _command("/style matters to nobody")
    (('/save', 'talk.json'), None, ('/style', 'calm'), None)
    """
    name, _, rest = text.partition(" ")
    rest = rest.strip()
    if not name.startswith("/"):
        return None
    if not rest:
        return name, ""
    words = rest.split()
    if name == "/style":
        known = [*TONES, *PERSONAS, NO_STYLE]
        is_near = len(words) <= 2 and bool(difflib.get_close_matches(rest.lower(), known, n=1, cutoff=0.75))
        return (name, rest) if is_near or style_in(words, StyleSettings()) is not None else None
    is_quoted = len(rest) > 2 and rest[0] == rest[-1] and rest[0] in "\"'"
    file = rest[1:-1] if is_quoted else rest
    is_file = file.lower().endswith(".json") and (is_quoted or len(words) == 1)
    return (name, file) if name in ("/save", "/export") and is_file else None


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
    talk.times += [time.time()] * (len(talk.session.turns) - len(talk.times))
    if answer is not None:
        talk.readings = answer.readings
        write("".join(_styled(f"({' '.join(_printable(note).split())})", "dim") + "\n" for note in answer.notes))


def _tell(talk: _Talk, write: Write) -> None:
    """What the app has to say about itself now, if anything."""
    offset = datetime.now().astimezone().utcoffset()
    for text in told(talk.session, time.time(), offset.total_seconds() if offset is not None else None):
        write(_styled(textwrap.fill(text, WIDTH), "dim") + "\n\n")


def _obey(command: str, argument: str, talk: _Talk, setting: Setting) -> str:
    """Carry out a command but /quit; what to print."""
    obeyed: dict[str, Callable[[], str]] = {
        "/help-now": lambda: f"\n{text_of(help_now(setting, talk.session))}\n",
        "/why": lambda: _why(talk, setting.engine),
        "/style": lambda: _choose_style(talk, argument),
        "/save": lambda: _keep(talk, command, argument),
        "/export": lambda: _keep(talk, command, argument),
        "/reset": lambda: _forget(talk),
        "/forget": lambda: _forget(talk) + _delete(talk),
        "/help": lambda: "".join(f"{name:<11}{meaning}\n" for name, meaning in COMMANDS.items()),
    }
    if command in obeyed:
        return obeyed[command]()
    nearest = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0)[0]
    return f"Unknown command {_printable(command)}; the nearest is {nearest}. /help lists them all.\n"


def _forget(talk: _Talk) -> str:
    talk.session.turns.clear()  # the words; that somebody was in danger a moment ago is not forgotten
    talk.times.clear()
    talk.readings = ()
    return "What was said is forgotten.\n"


def _choose_style(talk: _Talk, words: str) -> str:
    chosen = style_in(words.split(), talk.style) if words else talk.style
    if chosen is None or not words:
        unknown = "" if chosen is not None else "That is none of the styles.\n"
        return f"{unknown}{_style_of(talk)}tones: {', '.join(TONES)}\npersonas: {', '.join(PERSONAS)}\n"
    talk.style = chosen
    return _style_of(talk)


def _style_of(talk: _Talk) -> str:
    said = ", ".join(part for part in (talk.style.tone, talk.style.persona) if part)
    return f"style: {said or NO_STYLE}\n"


def _keep(talk: _Talk, command: str, name: str) -> str:
    """Write the conversation into a new file; what to print."""
    turns = talk.session.turns
    if not turns:
        return "Nothing was said yet: nothing was written.\n"
    file = Path(name).expanduser() if name else default_file("chat" if command == "/save" else "export")
    try:
        if command == "/save":
            write_saved(file, turns, talk.times, talk.style)
        else:
            write_export(file, turns, talk.times, talk.title)
    except TranscriptError as error:
        return f"{_printable(str(error))}\n"
    talk.files.append(file)
    then = f" Go on with it: warmline chat ... --resume {file}." if command == "/save" else ""
    told = f"Written to {file}: {len(turns)} turns, not encrypted; whoever can read your files can read it."
    return _printable(f"{told}{then} /forget deletes it.") + "\n"


def _delete(talk: _Talk) -> str:
    """Delete the files that the conversation was kept in; what to print of each."""
    lines = []
    for file in talk.files:
        try:
            file.unlink(missing_ok=True)
            lines.append(f"Deleted: {file}\n")
        except OSError as error:
            lines.append(f"Could not delete {file}: {error.strerror or type(error).__name__}\n")
    talk.files.clear()
    return _printable("".join(lines))


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
