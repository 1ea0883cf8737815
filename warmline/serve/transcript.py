"""Files of a conversation that somebody asked for: a transcript to read, and one to go on with. Plain text, mode 0600."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warmline.config.fields import StyleSettings
from warmline.safety.validate.context import Turn

MAX_BYTES = 16 * 2**20  # of a file that is read
MAX_TURNS = 10_000


class TranscriptError(ValueError):
    """A file that cannot be written or read as a conversation; names it, and nothing that it holds."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SavedTurn(_Strict):
    role: Literal["user", "assistant"]
    content: str
    t: float | None = None  # epoch seconds


class Saved(_Strict):
    """What /save writes. No risk state: it is read again from the turns."""

    warmline_chat: Literal[1] = 1
    style: StyleSettings = StyleSettings()
    turns: tuple[SavedTurn, ...] = Field(max_length=MAX_TURNS)


def write_saved(file: Path, turns: Sequence[Turn], times: Sequence[float | None], style: StyleSettings) -> None:
    """Write a conversation to go on with. Raises TranscriptError where a file stands already or none can be made."""
    rows = [
        SavedTurn(role=turn.role, content=_whole(turn.content), t=at)  # type: ignore[arg-type]
        for turn, at in zip(turns, times, strict=True)
    ]
    _write_new(file, Saved(style=style, turns=tuple(rows)).model_dump())


def write_export(file: Path, turns: Sequence[Turn], times: Sequence[float | None], title: str) -> None:
    """Write a transcript to read: who said what and when. Raises TranscriptError as `write_saved`."""
    rows = [
        {"role": turn.role, "content": _whole(turn.content), "at": _clock(at)}
        for turn, at in zip(turns, times, strict=True)
    ]
    about = "A conversation with an AI, a computer program. Not a person, and not a crisis service."
    _write_new(
        file, {"about": about, "companion": title, "exported": _clock(datetime.now(UTC).timestamp()), "turns": rows}
    )


def read_saved(file: Path) -> Saved:
    """What `write_saved` wrote. Raises TranscriptError, which says nothing of what the file holds."""
    try:
        if file.stat().st_size > MAX_BYTES:
            raise TranscriptError(f"{file}: larger than {MAX_BYTES // 2**20} MiB: not a saved conversation")
        return Saved.model_validate_json(file.read_bytes())
    except OSError as error:
        raise TranscriptError(f"{file}: {error.strerror or type(error).__name__}") from None
    except ValidationError:
        raise TranscriptError(f"{file}: not a conversation that /save wrote") from None


def default_file(kind: str) -> Path:
    """A name in the current folder that is free: `warmline-chat-20261122-031500.json`."""
    name = f"warmline-{kind}-{datetime.now().astimezone():%Y%m%d-%H%M%S}"
    numbers = ("", *(f"-{number}" for number in range(2, 100)))
    return next((file for each in numbers if not (file := Path(f"{name}{each}.json")).exists()), Path(f"{name}.json"))


def _write_new(file: Path, tree: dict[str, Any]) -> None:
    """Write a new file that its owner alone can read, or none at all: a file that stands there already stays as it is."""
    data = json.dumps(tree, ensure_ascii=False, indent=2).encode() + b"\n"
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except FileExistsError:
        raise TranscriptError(f"{file} exists already: nothing was written. Name another file") from None
    except OSError as error:
        raise TranscriptError(f"{file}: {error.strerror or type(error).__name__}: nothing was written") from None
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(data)
    except BaseException as error:  # half a conversation is none, also after Ctrl-C or on a full disk
        with suppress(OSError):
            file.unlink()
        if isinstance(error, OSError):
            raise TranscriptError(f"{file}: {error.strerror or type(error).__name__}: nothing was written") from None
        raise


def _whole(text: str) -> str:
    """A terminal may give half of a surrogate pair, which no UTF-8 file can hold."""
    return text.encode("utf-8", errors="replace").decode()


def _clock(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds")
