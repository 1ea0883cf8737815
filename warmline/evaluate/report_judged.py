"""The report's part on what was played and judged: simulated talks, EQ-Bench 3, pairs of replies."""

from collections.abc import Mapping

from warmline.evaluate.eq_bench3 import Benchmark, normalised, summarise
from warmline.evaluate.judge import RubricRow, RubricScores, summarise_rubric
from warmline.evaluate.judged_tables import (
    FLOOR_NAME,
    eq_bench3_table,
    judge_failures,
    pair_table,
    rubric_table,
    talk_table,
)
from warmline.evaluate.played import JUDGED, read_bench3, read_pairs, scores_file
from warmline.evaluate.rows import read_rows
from warmline.evaluate.stats import Interval
from warmline.evaluate.talk_scores import report_talks
from warmline.evaluate.task_rows import FLOOR, TaskRows
from warmline.evaluate.wording import quoted
from warmline.run_dir import STAGES, RunDir

ABOUT = (
    "Talks between the companion and a seeker that is no person, and what a judge said that is a language model too. These "
    "numbers compare companions with each other and with a floor; they say nothing about people."
)
NONE = "Nobody has talked with a stage yet: `warmline eval` does it with `--suite simulated`; `eq-bench3` and `pairwise` need a judge."
DEFINITIONS = (
    "*Simulated talks*: a seeker, played by a script or a model from a persona card, talks with the companion as people meet "
    "it. Rules over words score the companion's turns. *Change a turn*: the slope of a measure over the turns of a talk.",
    "*Floor: always the same sentence*: the same seeker or scenario before an engine that says one kind sentence, whatever "
    "it is told; the companion's guards stand before it as before a model.",
    "*EQ-Bench 3 rubric*: a judge's marks for role-plays, 0 to 100; *base = 100* is 100 x the mean mark / the base's, on "
    "scenarios that both have. With another judge, or a part of the scenarios, it is not comparable with published numbers.",
    "*Pairs*: a judge says which of two replies is better, in both orders. *Position bias* and *length bias* are of the "
    "judge: how much of its verdicts follows the place or the length of an answer.",
)
ROWS = (*STAGES, FLOOR)


def judged(run: RunDir, tasks: TaskRows, *, samples: int, seed: int) -> list[str]:
    """Tables of talks, of EQ-Bench 3 and of pairs; what is broken says so, what there is not is left out."""
    parts: list[str] = []
    for title, build in (("Simulated talks", _talks), ("EQ-Bench 3", _bench3), ("Pairs of replies", _pairs)):
        try:
            found = build(run, tasks, samples, seed)
        except ValueError as error:
            found = f"The rows cannot be shown: {quoted(str(error).replace(f'{run.path}/', ''))}."
        if found:
            parts += [f"### {title}", found]
    return [ABOUT, *parts] if parts else [NONE]


def _talks(run: RunDir, tasks: TaskRows, samples: int, seed: int) -> str:
    reports = {stage: report_talks(talks, samples=samples, seed=seed) for stage, talks in tasks.talks.items() if talks}
    if not reports:
        return ""
    floor = reports.pop(FLOOR, None)
    seekers = dict.fromkeys(talk.seeker for talks in tasks.talks.values() for talk in talks)
    parts = [f"The seeker: {', '.join(map(quoted, seekers))}.", talk_table(reports, floor)]
    judgements = {stage: read_rows(scores_file(run, f"simulated{JUDGED}", stage), RubricRow) for stage in ROWS}
    return "\n\n".join([*parts, *_rubric("What the judge said of the talks, 0 to 20", judgements, samples, seed)])


def _bench3(run: RunDir, tasks: TaskRows, samples: int, seed: int) -> str:  # noqa: ARG001 - as its siblings
    found = {stage: each for stage in ROWS if (each := read_bench3(run, stage)) is not None}
    if not found:
        return ""
    scores: dict[str, Benchmark] = {}
    relative: dict[str, Interval | None] = {}
    for stage, each in found.items():
        scores[_who(stage)] = summarise(*each, samples=samples, seed=seed)
        base = found.get(STAGES[0])
        relative[_who(stage)] = None if base is None else normalised(*each, *base, samples=samples, seed=seed)
    criteria = {
        who: RubricScores(each.num_scenarios, each.unscored_by_judge, each.criteria) for who, each in scores.items()
    }
    failures = [line for each in found.values() for line in judge_failures(each.judged)]
    shown = [eq_bench3_table(scores, relative), "Its criteria, 0 to 20:", rubric_table(criteria)]
    return "\n\n".join([*shown, *_failures(failures)])


def _pairs(run: RunDir, tasks: TaskRows, samples: int, seed: int) -> str:  # noqa: ARG001 - as its siblings
    tables = [
        pair_table(found, stage, STAGES[0])
        for stage in STAGES[1:]
        if (found := read_pairs(run, stage, samples=samples, seed=seed)) is not None
    ]
    return "\n\n".join(tables)


def _rubric(title: str, judgements: Mapping[str, list[RubricRow]], samples: int, seed: int) -> list[str]:
    found = {
        _who(stage): summarise_rubric(rows, samples=samples, seed=seed) for stage, rows in judgements.items() if rows
    }
    if not found:
        return []
    names = dict.fromkeys(row.judge for rows in judgements.values() for row in rows)
    failures = [line for rows in judgements.values() for line in judge_failures(rows)]
    return [f"{title} (judge: {', '.join(map(quoted, names))}):", rubric_table(found), *_failures(failures)]


def _failures(lines: list[str]) -> list[str]:
    return ["Where the judge failed:", "\n".join(f"- {quoted(line)}" for line in lines)] if lines else []


def _who(stage: str) -> str:
    return FLOOR_NAME if stage == FLOOR else stage
