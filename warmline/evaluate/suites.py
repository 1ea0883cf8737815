"""The suites of `warmline eval` that generate: what each asks, what is made of the replies, and where it stands.

A suite is a task and a way to sum its rows up; `SUITES` is all there is to know of one. Rows go to
`scores/SUITE.STAGE.jsonl`, replies to `exports/SUITE.STAGE.jsonl`, tables of every stage to `scores/SUITE.json`.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from warmline.data.conversation import Conversation
from warmline.engine.engine import Engine, EngineError, Message
from warmline.evaluate import warm
from warmline.evaluate.eq_bench import Answers, against_word_mean, as_json, mark
from warmline.evaluate.eq_bench import score as score_answers
from warmline.evaluate.eq_bench_questions import MAX_NEW_TOKENS, NAMES, Mode, Question, ask, prompt_for, read_questions
from warmline.evaluate.export import export, export_file
from warmline.evaluate.prompted import (
    qualitative_tables,
    qualitative_task,
    red_team_tables,
    red_team_task,
    safety_table,
    safety_task,
)
from warmline.evaluate.responses import responses_task, summarise, train_replies
from warmline.evaluate.rows import Progress
from warmline.evaluate.task import Answerer, Failure, Reply, Row, Sample, Task, read, run
from warmline.run_dir import STAGES, RunDir, write_text

QUESTIONS = "eq-bench/eq_bench_v2_questions_171.json"  # under the folder of data
COMPANION = "companion"  # in the names of files: how people meet a stage
T = TypeVar("T")


class SuiteError(ValueError):
    """A suite cannot be run as asked."""


@dataclass(frozen=True)
class Material:
    """What suites may need besides the model."""

    held_out: Sequence[Conversation] = ()
    train: Sequence[Conversation] = ()
    data_root: Path | None = None
    questions: Path | None = None  # of EQ-Bench; None: where the folder of data has them
    limit: int | None = None  # samples of each suite, a seeded choice
    bootstrap_samples: int = 1000
    seed: int = 0


class Suite(NamedTuple):
    about: str
    task: Callable[[Material], Task]
    tables: Callable[[Sequence[Row], Material], object]  # of one stage; a pydantic model, a dict of them, or JSON
    needs_companion: bool = False  # its scores are of what the companion does, not of a model's bare words
    needs_corpus: bool = False


def questions_of(material: Material) -> tuple[Question, ...]:
    """The questions of EQ-Bench v2. Raises SuiteError where there is no file of them."""
    file = material.questions or (material.data_root / QUESTIONS if material.data_root else None)
    if file is None or not file.is_file():
        raise SuiteError(f"eq-bench: no question file; name one with --questions or set WARMLINE_DATA ({QUESTIONS})")
    return read_questions(file)


def eq_bench_task(material: Material) -> Task:
    """Each question as lm-eval asks it; the score of a reply is the tolerant parser's, on the scale of 100."""
    by_id = {question.id: question for question in questions_of(material)}
    samples = [
        Sample(question.id, (Message("user", prompt_for(question, "lm-eval")),), {"scene": question.scene})
        for question in by_id.values()
    ]

    def score(sample: Sample, reply: Reply) -> Mapping[str, bool]:
        marked = mark(by_id[sample.id], reply.text)
        return {
            "parsed": marked.whole.values is not None,
            "parsed_tolerantly": marked.tolerant.first_pass.values is not None,
        }

    return Task("eq-bench", tuple(samples), score)


def eq_bench_tables(rows: Sequence[Row], material: Material) -> dict[str, object]:
    """What `eq-bench score --json` prints, of the questions that were asked, and the difference to the word mean."""
    asked = {row.id for row in rows}
    questions = [question for question in questions_of(material) if question.id in asked]
    result = score_answers(questions, Answers({row.id: row.reply for row in rows if row.reply is not None}))
    beside = against_word_mean(result, seed=material.seed)
    return {
        **as_json(result),
        "against_word_mean": None if beside is None else {**beside.difference._asdict(), "verdict": beside.verdict},
    }


@dataclass(frozen=True)
class FromQuestions:
    """Answers to EQ-Bench as one of its conventions asks for them, one question at a time."""

    engine: Engine
    questions: Mapping[str, Question]
    mode: Mode
    about: Mapping[str, Any]

    @property
    def decoding(self) -> dict[str, Any]:
        """The convention: it fixes temperature, tries and length."""
        return {"mode": self.mode, "name": NAMES[self.mode], "max_new_tokens": MAX_NEW_TOKENS[self.mode], **self.about}

    def __call__(self, samples: Sequence[Sample]) -> Iterator[tuple[Sample, Reply | Failure]]:
        """Each sample with its answer."""
        for sample in samples:
            try:
                asked = ask(self.engine, self.questions[sample.id], self.mode, seed=0)
            except EngineError as error:
                yield sample, Failure(str(error))
            else:
                yield sample, Reply(asked.response, {"tries": asked.tries})


SUITES: Mapping[str, Suite] = {
    "eq-bench": Suite("EQ-Bench v2 by the lm-eval convention, beside its floors", eq_bench_task, eq_bench_tables),
    "responses": Suite(
        "replies generated on held-out turns: overlap, variety, manner",
        lambda material: responses_task(material.held_out, max_turns=material.limit, seed=material.seed),
        lambda rows, material: summarise(
            rows, train_replies(material.train), samples=material.bootstrap_samples, seed=material.seed
        ),
        needs_corpus=True,
    ),
    "qualitative": Suite(
        "everyday situations by domain, replies to read",
        lambda _: qualitative_task(),
        lambda rows, material: qualitative_tables(rows, samples=material.bootstrap_samples, seed=material.seed),
    ),
    "redteam": Suite(
        "requests that test a limit beside harmless look-alikes, with the behaviour that is expected",
        lambda _: red_team_task(),
        lambda rows, _: red_team_tables(rows),
    ),
    "warm": Suite(
        "warm but not wrong: facts behind feelings and false beliefs",
        lambda material: warm.warm_task(seed=material.seed),
        lambda rows, _: {name: _mean(rows, value) for name, value in warm.METRICS.items()},
    ),
    "safety": Suite(
        "the public red-team cases through the companion: levels, cards, rules broken",
        lambda _: safety_task(),
        lambda rows, _: safety_table(rows),
        needs_companion=True,
    ),
}


def limited(task: Task, limit: int | None, seed: int) -> Task:
    """The task with a seeded choice of so many samples, in their order."""
    if limit is None or len(task.samples) <= limit:
        return task
    return replace(task, samples=tuple(chosen(task.samples, limit, seed)))


def chosen(items: Sequence[T], limit: int | None, seed: int) -> list[T]:
    """A seeded choice of so many, in their order; all where there are no more."""
    if limit is None or len(items) <= limit:
        return [*items]
    return [items[at] for at in sorted(random.Random(seed).sample(range(len(items)), limit))]


def rows_file(folder: RunDir, suite: str, stage: str, *, companion: bool) -> Path:
    """`scores/SUITE.STAGE.jsonl`; of replies through the companion `scores/SUITE.companion.STAGE.jsonl`."""
    return folder.path / "scores" / f"{named(suite, companion=companion)}.{stage}.jsonl"


def named(suite: str, *, companion: bool) -> str:
    """The suite's name in files."""
    return f"{suite}.{COMPANION}" if companion and not SUITES[suite].needs_companion else suite


def run_suite(
    name: str,
    folder: RunDir,
    stage: str,
    answer: Answerer,
    material: Material,
    *,
    companion: bool,
    progress: Progress | None = None,
) -> list[Row]:
    """Ask what the suite asks, keep what is there, export the replies. Raises ValueError for broken files of rows."""
    task = limited(SUITES[name].task(material), material.limit, material.seed)
    rows = run(task, answer, rows_file(folder, name, stage, companion=companion), progress)
    export(
        task,
        rows,
        export_file(folder, named(name, companion=companion), stage),
        model=f"{folder.path.name}, stage {stage}",
    )
    return rows


def sum_up(name: str, folder: RunDir, material: Material, *, companion: bool) -> Path:
    """Write `scores/SUITE.json`: the tables of every stage that has rows, and of `warm` the change between stages."""
    found = {stage: rows for stage in STAGES if (rows := read(rows_file(folder, name, stage, companion=companion)))}
    tables: dict[str, object] = {stage: SUITES[name].tables(rows, material) for stage, rows in found.items()}
    document: dict[str, object] = {"suite": name, "companion": companion, "stages": tables}
    if name == "warm":
        document["changes"] = {
            f"{later} against {earlier}": change for later, earlier, change in _changes(found, material)
        }
    file = folder.path / "scores" / f"{named(name, companion=companion)}.json"
    write_text(file, json.dumps(document, default=_plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def _changes(found: Mapping[str, Sequence[Row]], material: Material) -> Iterator[tuple[str, str, warm.Comparison]]:
    stages = [*found]
    for number, earlier in enumerate(stages):
        for later in stages[number + 1 :]:
            yield (
                later,
                earlier,
                warm.compare(found[earlier], found[later], samples=material.bootstrap_samples, seed=material.seed),
            )


def _mean(rows: Iterable[Row], value: Callable[[Row], float | None]) -> dict[str, float | int | None]:
    values = [each for row in rows if row.scored and (each := value(row)) is not None]
    return {"n": len(values), "share": sum(values) / len(values) if values else None}


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} is not JSON")
