"""A task: samples to answer and a way to score a reply. What could not be answered or scored is unscored, never zero."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict

from warmline.engine.engine import Message
from warmline.evaluate.rows import Progress, fill, read_rows

Score = bool | int | float | str | None  # None: this score does not apply to the sample
Scores = Mapping[str, Score]


class UnscoredError(ValueError):
    """A reply that there is but that cannot be scored; the message says why."""


@dataclass(frozen=True)
class Sample:
    """What is asked, without the system message, and what scoring and tables need to know of it."""

    id: str
    messages: tuple[Message, ...]
    about: Mapping[str, Any] = field(default_factory=dict)  # JSON: gold, category and the like


class Reply(NamedTuple):
    """What was answered."""

    text: str
    meta: Mapping[str, Any] = {}  # JSON: of the companion level, reply_source and the like


class Failure(NamedTuple):
    """Why there is no reply."""

    reason: str


class Answerer(Protocol):
    """Whoever answers samples, in any order."""

    @property
    def decoding(self) -> Mapping[str, Any]:
        """How: JSON, equal for replies that may stand in one file."""
        ...

    def __call__(self, samples: Sequence[Sample]) -> Iterable[tuple[Sample, Reply | Failure]]:
        """Each sample with its reply, or why there is none."""
        ...


@dataclass(frozen=True)
class Task:
    name: str
    samples: tuple[Sample, ...]
    score: Callable[[Sample, Reply], Scores]  # may raise UnscoredError


class Row(BaseModel):
    """One sample as it stands in `scores/SUITE.STAGE.jsonl`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    status: Literal["scored", "unscored"]
    reason: str | None = None  # why it is unscored
    reply: str | None = None  # None: there is none
    meta: dict[str, Any] = {}  # of the reply
    scores: dict[str, bool | int | float | str | None] = {}
    about: dict[str, Any] = {}  # of the sample
    decoding: dict[str, Any] = {}

    @property
    def scored(self) -> bool:
        return self.status == "scored"


def run(task: Task, answer: Answerer, file: Path, progress: Progress | None = None) -> list[Row]:
    """Answer and score every sample of the task into `file`, one row each as it finishes; returns all in order.

    Rows that stand in the file are kept, whatever their status, and not answered again; those of another decoding, or
    of a sample that is about something else now, are. Raises ValueError if two samples share an id.
    """
    # As they come back from a file: a tuple that was written is read as a list.
    by_id = {sample.id: replace(sample, about=_plain(sample.about)) for sample in task.samples}
    if len(by_id) != len(task.samples):
        twice = next(each for each, count in Counter(sample.id for sample in task.samples).items() if count > 1)
        raise ValueError(f"task {task.name}: two samples have the id {twice!r}")
    decoding = _plain(answer.decoding)

    def make(ids: Sequence[str]) -> Iterator[Row]:
        todo = [by_id[each] for each in ids]
        for sample, reply in answer(todo):
            yield _row(task, sample, reply, decoding)

    def is_current(row: Row) -> bool:
        return row.decoding == decoding and row.about == by_id[row.id].about

    return fill(file, [*by_id], Row, lambda row: row.id, make, is_current=is_current, progress=progress)


def read(file: Path) -> list[Row]:
    """The rows of a task's file. Raises ValueError for a line that is none."""
    return read_rows(file, Row)


def unscored(rows: Iterable[Row]) -> dict[str, int]:
    """How many rows are unscored, by reason, the most frequent first."""
    counts: dict[str, int] = {}
    for row in rows:
        if not row.scored:
            reason = row.reason or "no reason given"
            counts[reason] = counts.get(reason, 0) + 1
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))


def _row(task: Task, sample: Sample, reply: Reply | Failure, decoding: dict[str, Any]) -> Row:
    row = Row(id=sample.id, status="unscored", about=dict(sample.about), decoding=decoding)
    if isinstance(reply, Failure):
        return row.model_copy(update={"reason": reply.reason})
    row = row.model_copy(update={"reply": reply.text, "meta": _plain(reply.meta)})
    try:
        scores = dict(task.score(sample, reply))
    except UnscoredError as error:
        return row.model_copy(update={"reason": str(error)})
    return row.model_copy(update={"status": "scored", "scores": scores})
