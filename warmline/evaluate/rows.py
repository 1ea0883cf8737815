"""A file of scores, one JSON line a sample as it finishes: gone on with after a kill, and nothing scored twice."""

import hashlib
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from warmline.progress import Advance
from warmline.run_dir import append_row, cut_back, write_text

K = TypeVar("K", bound=Hashable)
R = TypeVar("R", bound=BaseModel)

Progress = Callable[[int, int], AbstractContextManager[Advance]]  # given how many samples, and how many are done


class StrictRow(BaseModel):
    """A row of a file: no unknown field, nothing changed after it was made."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def fill(
    file: Path,
    wanted: Sequence[K],
    row_type: type[R],
    key: Callable[[R], K],
    make: Callable[[Sequence[K]], Iterable[R]],
    *,
    is_current: Callable[[R], bool] = lambda _: True,
    progress: Progress | None = None,
) -> list[R]:
    """Let `make` give the rows that the file lacks, write each as it comes, and return all in the order of `wanted`.

    Rows that stand in the file are kept, whatever they say, unless nobody wants them, they are not current or they do
    not read as a row; so is no last line that was cut off. `make` may give its rows in any order; the file is put into
    the order of `wanted` at the end.
    """
    order = {each: number for number, each in enumerate(wanted)}
    if len(order) != len(wanted):
        raise ValueError(f"{file}: two samples have the same key")
    met: set[K] = set()

    def keep(raw: Mapping[str, Any]) -> bool:
        row = _row(raw, row_type)
        if row is None or key(row) in met or key(row) not in order or not is_current(row):
            return False
        met.add(key(row))
        return True

    cut_back(file, keep)
    rows = {key(row): row for row in read_rows(file, row_type)}
    todo = [each for each in wanted if each not in rows]
    with progress(len(wanted), len(rows)) if progress else nullcontext(_silent) as advance:
        for row in make(todo):
            add_row(file, row)
            rows[key(row)] = row
            advance(1, "")
    ordered = sorted(rows.values(), key=lambda row: order[key(row)])
    if [key(row) for row in ordered] != [*rows]:
        write_text(file, "".join(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n" for row in ordered))
    return ordered


def resume_rows(file: Path, row_type: type[R], wanted: Callable[[R], bool]) -> list[R]:
    """The finished rows that are still wanted; all others, and a line that was cut off, are dropped from the file."""

    def keep(raw: object) -> bool:
        row = _row(raw, row_type)
        return row is not None and wanted(row)

    cut_back(file, keep)
    return read_rows(file, row_type)


def add_row(file: Path, row: BaseModel) -> None:
    """Append a finished sample."""
    append_row(file, row.model_dump(mode="json"))


def read_rows(file: Path, row_type: type[R], what: str = "row of scores") -> list[R]:
    """The rows of a file; a last line that was cut off is not one.

    Raises ValueError that names the file and the line of any other that is none.
    """
    if not file.is_file():
        return []
    try:
        *lines, rest = file.read_text(encoding="utf-8").split("\n")  # splitlines() would also split inside a string
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}") from None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(row_type.model_validate_json(line))
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(map(str, problem["loc"]))
            said = f"{where}: {problem['msg']}" if where else problem["msg"]
            raise ValueError(f"{file}, line {number}: not a {what}: {said}") from None
    if rest:
        row = _parsed(rest, row_type)
        rows += [] if row is None else [row]
    return rows


def digest(*texts: str) -> str:
    """What tells whether a sample is still the one that was scored.

    >>> digest("a", "b") == digest("a", "b") != digest("ab")
    True
    """
    parts = hashlib.sha256()
    for text in texts:
        parts.update(f"{len(text)}:".encode() + text.encode("utf-8", errors="replace"))
    return parts.hexdigest()[:16]


def _row(raw: object, row_type: type[R]) -> R | None:
    """The row, or None for what was cut off inside or is of an older format: it is scored again."""
    return _parsed(json.dumps(raw), row_type)


def _parsed(text: str, row_type: type[R]) -> R | None:
    try:
        return row_type.model_validate_json(text)
    except ValidationError:
        return None


def _silent(count: int, note: str) -> None:
    """No progress shown."""
