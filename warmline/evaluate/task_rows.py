"""What a run's folder holds of the tasks: rows by suite and stage, tables that `warmline eval` wrote, talks, lengths."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from warmline.evaluate.compare import suites
from warmline.evaluate.responses import GOLD
from warmline.evaluate.rows import read_rows
from warmline.evaluate.simulate import Talk
from warmline.evaluate.task import Row, read
from warmline.run_dir import STAGES, RunDir

COMPANION = ".companion"  # at the end of a suite's name: asked through the companion
TASKS = ("responses", "qualitative", "redteam", "warm", "safety", "eq-bench")
TALKS = "simulated"
FLOOR = "floor"  # talks of an engine that always says the same, in the place of a stage

ByStage = Mapping[str, Sequence[Row]]


class TaskRows(NamedTuple):
    """Rows of every suite, `.companion` ones too; and what could not be read."""

    suites: Mapping[str, ByStage]
    talks: Mapping[str, Sequence[Talk]]  # by stage, or FLOOR
    problems: tuple[str, ...]


def read_tasks(run: RunDir) -> TaskRows:
    """All rows of tasks in `scores/`, suites in the order of TASKS; a broken file is a problem, not an error."""
    found: dict[str, dict[str, Sequence[Row]]] = {}
    talks: dict[str, Sequence[Talk]] = {}
    problems = []
    for stage in (*STAGES, FLOOR):
        for suite, file in suites(run, stage).items():
            try:
                if suite == TALKS:
                    talks[stage] = read_rows(file, Talk)
                elif suite.removesuffix(COMPANION) in TASKS and (rows := read(file)):
                    found.setdefault(suite, {})[stage] = rows
            except (ValueError, OSError) as error:
                problems.append(str(error).replace(f"{run.path}/", ""))
    order = sorted(found, key=lambda suite: (TASKS.index(suite.removesuffix(COMPANION)), suite))
    return TaskRows({suite: found[suite] for suite in order}, talks, tuple(problems))


def document(run: RunDir, suite: str) -> Mapping[str, Any]:
    """The tables of each stage in `scores/SUITE.json`; empty where there is no such file. Raises ValueError if broken."""
    file = run.path / "scores" / f"{suite}.json"
    if not file.is_file():
        return {}
    content = json.loads(file.read_text(encoding="utf-8"))
    stages = content.get("stages") if isinstance(content, dict) else None
    if not isinstance(stages, dict):
        raise ValueError(f"{file.name} holds no stages")
    return stages


def lengths(tasks: TaskRows) -> dict[str, dict[str, list[int]]]:
    """Words of each reply, parted at spaces: suite -> stage, or GOLD for recorded ones -> replies."""
    found: dict[str, dict[str, list[int]]] = {}
    for suite, stages in tasks.suites.items():
        if suite == "eq-bench":  # a form to fill in
            continue
        of_suite = {stage: [len(row.reply.split()) for row in rows if row.reply] for stage, rows in stages.items()}
        recorded = {row.id: row.about.get("reference") for rows in stages.values() for row in rows}
        of_suite[GOLD] = [len(text.split()) for text in recorded.values() if isinstance(text, str) and text]
        if kept := {who: counts for who, counts in of_suite.items() if counts}:
            found[suite] = kept
    return found
