"""Files of one JSON row per finished sample: read strictly, cut back to what is wanted, resumed."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from warmline.run_dir import append_row, cut_back


class StrictRow(BaseModel):
    """A row of a file: no unknown field, nothing changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Row = TypeVar("Row", bound=BaseModel)


def read_rows(file: Path, kind: type[Row]) -> list[Row]:
    """The rows of a file, none where there is no file. Raises ValueError that names the file and the line."""
    if not file.is_file():
        return []
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # splitlines() would also split inside a string
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            rows.append(kind.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            raise ValueError(f"{file}, line {number}: {f'{where}: ' if where else ''}{problem['msg']}") from None
    return rows


def resume_rows(file: Path, kind: type[Row], wanted: Callable[[Row], bool]) -> list[Row]:
    """The finished rows that are still wanted; all others, and a line that was cut off, are dropped from the file."""

    def keep(raw: object) -> bool:
        try:
            return wanted(kind.model_validate(raw))
        except ValidationError:
            return False  # of an older format, or altered: it is made again

    cut_back(file, keep)
    return read_rows(file, kind)


def add_row(file: Path, row: BaseModel) -> None:
    """Append a finished sample."""
    append_row(file, row.model_dump(mode="json"))


def digest(*texts: str) -> str:
    """What tells whether a sample is still the one that was scored.

    >>> digest("a", "b") == digest("a", "b") != digest("ab")
    True
    """
    parts = hashlib.sha256()
    for text in texts:
        parts.update(f"{len(text)}:".encode() + text.encode("utf-8", errors="replace"))
    return parts.hexdigest()[:16]
