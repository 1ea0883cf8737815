"""Exports: what each stage answered, one JSON line a prompt, and the checks that two stages can be laid side by side."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from warmline.evaluate.task import Row, Task
from warmline.run_dir import RunDir, write_text

BASE = "base"
OF_THE_MODEL = frozenset({"model", "stage"})  # keys of `decoding` in which stages differ by nature
MAX_SHOWN = 20  # problems of one kind and file


class ExportError(ValueError):
    """Files that cannot be checked as asked."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Spoken(_Strict):
    role: Literal["system", "user", "assistant"]
    content: str


class ExportRow(_Strict):
    """A prompt and what one model answered."""

    prompt_id: Annotated[str, Field(min_length=1)]
    prompt: Annotated[tuple[Spoken, ...], Field(strict=False, min_length=1)]  # without the system message
    model: Annotated[str, Field(min_length=1)]
    response: str | None  # None: there is none; `meta.reason` says why
    meta: dict[str, Any]
    decoding: dict[str, Any]


class Checked(NamedTuple):
    """A file and what is wrong with it."""

    file: Path
    rows: dict[str, ExportRow]  # by prompt id, the first of each
    problems: tuple[str, ...]


def export_file(run: RunDir, suite: str, stage: str) -> Path:
    """`exports/SUITE.STAGE.jsonl` of a run."""
    return run.path / "exports" / f"{suite}.{stage}.jsonl"


def export(task: Task, rows: Sequence[Row], file: Path, *, model: str) -> None:
    """Write the replies of a task beside their prompts, in the task's order. `model` says whose: the run and its stage."""
    by_id = {row.id: row for row in rows}
    lines = []
    for sample in task.samples:
        row = by_id.get(sample.id)
        if row is None:
            continue
        meta = {"suite": task.name, **row.about, **row.meta, "scores": row.scores}
        if row.reason is not None:
            meta["reason"] = row.reason
        exported = ExportRow(
            prompt_id=sample.id,
            prompt=tuple(Spoken(role=each.role, content=each.content) for each in sample.messages),  # type: ignore[arg-type]
            model=model,
            response=row.reply,
            meta=meta,
            decoding=row.decoding,
        )
        lines.append(json.dumps(exported.model_dump(mode="json"), ensure_ascii=False) + "\n")
    write_text(file, "".join(lines))


def check_file(file: Path) -> Checked:
    """Read an export. What is no row, an id that stands twice, no row at all: each is a problem with its line.

    Raises ExportError where there is no file.
    """
    if not file.is_file():
        raise ExportError(f"{file}: there is no such file")
    rows: dict[str, ExportRow] = {}
    problems: list[str] = []
    lines = file.read_text(encoding="utf-8", errors="replace").split("\n")  # splitlines() would split inside a string
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = ExportRow.model_validate_json(line)
        except ValidationError as error:
            first = error.errors()[0]
            problems.append(f"line {number}: {'.'.join(map(str, first['loc']))}: {first['msg']}".replace(": : ", ": "))
            continue
        if row.prompt_id in rows:
            problems.append(f"line {number}: prompt_id {row.prompt_id!r} stands twice")
        elif row.response is None and not row.meta.get("reason"):
            problems.append(f"line {number}: no response, and meta.reason does not say why")
        rows.setdefault(row.prompt_id, row)
    if not rows and not problems:
        problems.append("no row")
    models = Counter(row.model for row in rows.values())
    if len(models) > 1:
        problems.append(f"rows of several models: {', '.join(sorted(models))}")
    return Checked(file, rows, tuple(problems))


def check_pairs(files: Sequence[Checked]) -> list[str]:
    """In what each tuned export differs from the base's of its suite: prompts, their text, decoding.

    Files are `SUITE.STAGE.jsonl`. Raises ExportError for another name.
    """
    suites: dict[str, dict[str, Checked]] = {}
    for each in files:
        suite, stage = _named(each.file)
        if stage in suites.setdefault(suite, {}):
            raise ExportError(f"{each.file}: a second file of suite {suite}, stage {stage}")
        suites[suite][stage] = each
    problems = []
    for suite, stages in sorted(suites.items()):
        base = stages.pop(BASE, None)
        if base is None or not stages:
            there = "no base" if base is None else "no tuned stage"
            problems.append(f"{suite}: nothing to compare with, {there}")
            continue
        for stage, tuned in sorted(stages.items()):
            problems += [f"{suite}: {stage} and base: {each}" for each in _differences(base.rows, tuned.rows)]
    return problems


def _named(file: Path) -> tuple[str, str]:
    parts = file.name.split(".")
    if len(parts) != 3 or parts[2] != "jsonl" or not parts[0] or not parts[1]:
        raise ExportError(f"{file}: expected a name as SUITE.STAGE.jsonl")
    return parts[0], parts[1]


def _differences(base: Mapping[str, ExportRow], tuned: Mapping[str, ExportRow]) -> list[str]:
    found = [f"prompt {each!r} is missing in the tuned file" for each in base if each not in tuned]
    found += [f"prompt {each!r} is missing in the base file" for each in tuned if each not in base]
    both = [each for each in base if each in tuned]
    found += [f"prompt {each!r} has another text" for each in both if base[each].prompt != tuned[each].prompt]
    unlike = Counter(
        key
        for each in both
        for key in sorted({*base[each].decoding, *tuned[each].decoding} - OF_THE_MODEL)
        if base[each].decoding.get(key) != tuned[each].decoding.get(key)
    )
    found += [f"decoding.{key} differs on {count} prompts" for key, count in unlike.items()]
    if len(found) > MAX_SHOWN:
        return [*found[:MAX_SHOWN], f"and {len(found) - MAX_SHOWN} more"]
    return found
