"""The suites that are played or judged: simulated talks, EQ-Bench 3, and two stages' replies before a judge.

Rows go to `scores/SUITE.STAGE.jsonl`, a judge's to `scores/SUITE-judged.STAGE.jsonl`, replies to
`exports/SUITE.STAGE.jsonl`, whole talks to `talks/STAGE.jsonl` in the form of chat corpora, tables to `scores/SUITE.json`.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from warmline.dialogue.companion import Setting
from warmline.engine.engine import Engine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate import eq_bench3
from warmline.evaluate.export import ExportRow, Spoken, export_file
from warmline.evaluate.judge import Judge, RubricRow, score_rubric, summarise_rubric
from warmline.evaluate.pairwise import Pair, PairRow, PairScores, judge_pairs, summarise_pairs
from warmline.evaluate.prompt_sets import messages_of, personas, qualitative
from warmline.evaluate.prompted import COMFORT
from warmline.evaluate.rows import Progress, read_rows
from warmline.evaluate.seeker import NAME, ScriptedSeeker
from warmline.evaluate.simulate import (
    MAX_TURNS,
    SEEDS_A_TALK,
    TALK_RUBRIC,
    Seeker,
    Talk,
    export_talks,
    simulate,
    talk_items,
)
from warmline.evaluate.suites import Material, SuiteError, chosen, rows_file
from warmline.evaluate.talk_scores import report_talks
from warmline.evaluate.task import read
from warmline.evaluate.task_rows import FLOOR
from warmline.run_dir import STAGES, RunDir, write_text

JUDGED = "-judged"  # behind a suite's name in files
PAIRED = "qualitative"  # the suite whose replies are laid before a judge in pairs
Follow = Callable[[str], Progress]  # what shows progress, by what is done


@dataclass(frozen=True)
class Players:
    """Who takes part besides the model: a seeker, and a judge where there is one."""

    judge: Judge | None = None
    seeker: Seeker = field(default_factory=lambda: Seeker(ScriptedSeeker(SEEDS_A_TALK), NAME))
    max_turns: int = MAX_TURNS  # of the seeker
    retry_unscored: bool = False  # ask again where the judge failed before


class Subject(NamedTuple):
    """Who is evaluated."""

    engine: Engine
    setting: Setting  # the companion over that engine
    stage: str
    title: str


class Suite(NamedTuple):
    about: str
    needs_judge: bool
    has_floor: bool  # what always says the same is played and judged as a stage is
    play: Callable[[RunDir, Subject, Players, Material, Follow], None]
    tables: Callable[[RunDir, str, Material], object]  # of a stage; None where there is nothing


def scores_file(folder: RunDir, suite: str, stage: str) -> Path:
    """`scores/SUITE.STAGE.jsonl`."""
    return folder.path / "scores" / f"{suite}.{stage}.jsonl"


def play_talks(folder: RunDir, subject: Subject, players: Players, material: Material, follow: Follow) -> None:
    """Let the seeker talk with the companion, a talk a persona, and the judge score the talks where there is one."""
    file = scores_file(folder, "simulated", subject.stage)
    simulate(
        subject.setting,
        subject.title,
        players.seeker,
        chosen(personas(), material.limit, material.seed),
        file,
        seed=material.seed,
        max_turns=players.max_turns,
        progress=follow(f"talks {subject.stage}"),
    )
    talks = read_rows(file, Talk)
    if subject.stage != FLOOR:
        export_talks(talks, folder.path / "talks" / f"{subject.stage}.jsonl")
    decoding = {"companion": True, "seeker": players.seeker.name, "max_turns": players.max_turns}
    _export(folder, "simulated", subject, [_talk_row(each, subject.title, decoding) for each in talks])
    if players.judge is not None:
        score_rubric(
            players.judge,
            talk_items(talks),
            TALK_RUBRIC,
            scores_file(folder, f"simulated{JUDGED}", subject.stage),
            retry_unscored=players.retry_unscored,
            progress=follow(f"judge talks {subject.stage}"),
        )


def talk_tables(folder: RunDir, stage: str, material: Material) -> object:
    """What the rules say of a stage's talks, and the judge where it was asked."""
    draws = {"samples": material.bootstrap_samples, "seed": material.seed}
    if not (talks := read_rows(scores_file(folder, "simulated", stage), Talk)):
        return None
    judged = read_rows(scores_file(folder, f"simulated{JUDGED}", stage), RubricRow)
    return {
        "rules": plain(report_talks(talks, **draws)),
        "judge": plain(summarise_rubric(judged, **draws)) if judged else None,
    }


def play_eq_bench3(folder: RunDir, subject: Subject, players: Players, material: Material, follow: Follow) -> None:
    """Have the bare model play the scenarios, and the judge score them. Raises MaterialError, SuiteError."""
    if players.judge is None:
        raise SuiteError("eq-bench3: it needs a judge")
    of_bench = eq_bench3.load_material(material.data_root)
    some = replace(of_bench, scenarios=tuple(chosen(of_bench.scenarios, material.limit, material.seed)))
    played = eq_bench3.play(
        subject.engine,
        subject.title,
        some,
        scores_file(folder, "eq-bench3", subject.stage),
        progress=follow(f"eq-bench3 {subject.stage}"),
    )
    _export(folder, "eq-bench3", subject, [_played_row(each, some, subject.title) for each in played])
    eq_bench3.judge_played(
        players.judge,
        some,
        played,
        scores_file(folder, f"eq-bench3{JUDGED}", subject.stage),
        retry_unscored=players.retry_unscored,
        progress=follow(f"judge eq-bench3 {subject.stage}"),
    )


class Bench3(NamedTuple):
    """EQ-Bench 3 of a stage as it stands in the folder."""

    played: Sequence[eq_bench3.Played]
    judged: Sequence[RubricRow]  # of both files


def read_bench3(folder: RunDir, stage: str) -> Bench3 | None:
    """What was played and judged; None where nothing was."""
    played = read_rows(scores_file(folder, "eq-bench3", stage), eq_bench3.Played)
    judged = scores_file(folder, f"eq-bench3{JUDGED}", stage)
    rows = [*read_rows(judged, RubricRow), *read_rows(eq_bench3.analysis_file(judged), RubricRow)]
    return Bench3(played, rows) if played else None


def bench3_tables(folder: RunDir, stage: str, material: Material) -> object:
    """The benchmark of a stage, and where the base is 100."""
    draws = {"samples": material.bootstrap_samples, "seed": material.seed}
    if (ours := read_bench3(folder, stage)) is None:
        return None
    base = read_bench3(folder, STAGES[0])
    relative = None if base is None else eq_bench3.normalised(*ours, *base, **draws)
    return {**plain(eq_bench3.summarise(*ours, **draws)), "base_is_100": plain(relative)}


def judge_replies(folder: RunDir, subject: Subject, players: Players, _: Material, follow: Follow) -> None:
    """Lay a tuned stage's replies to everyday situations beside the base's. Of the base there is nothing to judge."""
    if players.judge is None:
        raise SuiteError("pairwise: it needs a judge")
    if subject.stage == STAGES[0]:
        return
    judge_pairs(
        players.judge,
        pairs_of(folder, subject.stage),
        scores_file(folder, f"pairwise{JUDGED}", subject.stage),
        retry_unscored=players.retry_unscored,
        progress=follow(f"judge pairs {subject.stage}"),
    )


def pairs_of(folder: RunDir, stage: str) -> list[Pair]:
    """The prompts to which both stages said something. Raises SuiteError where one of them was not asked."""
    prompts = {row.id: messages_of(row.turns) for row in qualitative()}
    asked = {each: read(rows_file(folder, PAIRED, each, companion=False)) for each in (stage, STAGES[0])}
    if missing := [each for each, rows in asked.items() if not rows]:
        raise SuiteError(f"pairwise: stage {missing[0]} has no replies to hold; ask it with --suite {PAIRED}")
    ours, base = ({row.id: row.reply for row in rows if row.reply} for rows in asked.values())
    return [
        Pair(name, name, "\n".join(f"{turn.role}: {turn.content}" for turn in prompts[name]), reply, base[name])
        for name, reply in ours.items()
        if name in base and name in prompts
    ]


def read_pairs(folder: RunDir, stage: str, *, samples: int, seed: int) -> PairScores | None:
    """What the judge said of a stage against the base; None where it was not asked."""
    rows = read_rows(scores_file(folder, f"pairwise{JUDGED}", stage), PairRow)
    return summarise_pairs(rows, samples=samples, seed=seed) if rows else None


def pair_tables(folder: RunDir, stage: str, material: Material) -> object:
    """Win rate and biases of a stage against the base."""
    found = read_pairs(folder, stage, samples=material.bootstrap_samples, seed=material.seed)
    return None if found is None else plain(found)


SUITES: Mapping[str, Suite] = {
    "simulated": Suite("talks of a seeker with the companion", False, True, play_talks, talk_tables),
    "eq-bench3": Suite("role-plays, scored by a judge", True, True, play_eq_bench3, bench3_tables),
    "pairwise": Suite(
        "replies to everyday situations, held against the base's", True, False, judge_replies, pair_tables
    ),
}


def play(name: str, folder: RunDir, subject: Subject, players: Players, material: Material, follow: Follow) -> None:
    """Play a suite with a stage and, once, with what it is held against; what is done already is kept.

    Raises SuiteError without the judge that the suite needs, ValueError for material or rows that cannot be read.
    """
    suite = SUITES[name]
    suite.play(folder, subject, players, material, follow)
    if suite.has_floor:
        engine = ScriptedEngine([COMFORT])
        setting = replace(subject.setting, engine=engine, risk_head=None)
        suite.play(folder, Subject(engine, setting, FLOOR, "always the same sentence"), players, material, follow)


def sum_up(name: str, folder: RunDir, material: Material) -> Path:
    """Write `scores/SUITE.json`: the tables of every stage that has rows."""
    tables = {
        stage: found
        for stage in (*STAGES, FLOOR)
        if (found := SUITES[name].tables(folder, stage, material)) is not None
    }
    document = {"suite": name, "companion": name == "simulated", "stages": tables}
    file = folder.path / "scores" / f"{name}.json"
    write_text(file, json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    return file


def plain(value: Any) -> Any:
    """Named tuples and what they hold as JSON.

    >>> plain({"answer": Spoken(role="user", content="Hi").role, "pair": Bench3((), [])})
    {'answer': 'user', 'pair': {'played': [], 'judged': []}}
    """
    if hasattr(value, "_asdict"):
        return {key: plain(each) for key, each in value._asdict().items()}
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def _talk_row(talk: Talk, title: str, decoding: Mapping[str, Any]) -> ExportRow:
    """A talk by its first exchange: what was said later hangs on the replies. `meta.turns` has the whole."""
    first = next(iter(talk.turns[1:]), None)
    is_reply = first is not None and first.reply_source != "notice" and bool(first.text.strip())
    meta = talk.model_dump(mode="json", include={"persona", "domain", "risk", "ended", "status", "turns", "made_with"})
    if not is_reply:
        meta["reason"] = talk.reason or "the companion released no reply"
    return ExportRow(
        prompt_id=talk.id,
        prompt=(Spoken(role="user", content=talk.turns[0].text),),
        model=title,
        response=first.text if first is not None and is_reply else None,
        meta=meta,
        decoding={**decoding, "seed": talk.seed},
    )


def _played_row(played: eq_bench3.Played, material: eq_bench3.Material, title: str) -> ExportRow:
    """A scenario by its first exchange; `meta` has every turn and the debrief."""
    meta = played.model_dump(mode="json", include={"kind", "status", "turns", "debrief"})
    if not played.turns:
        meta["reason"] = played.reason or "no reason given"
    return ExportRow(
        prompt_id=played.id,
        prompt=(Spoken(role="user", content=eq_bench3.asked(material, played.id)[0]),),
        model=title,
        response=next(iter(played.turns), None),
        meta=meta,
        decoding={"played_with": played.played_with},
    )


def _export(folder: RunDir, suite: str, subject: Subject, rows: Sequence[ExportRow]) -> None:
    if subject.stage == FLOOR:
        return
    lines = (json.dumps(row.model_dump(mode="json"), ensure_ascii=False) for row in rows)
    write_text(export_file(folder, suite, subject.stage), "".join(f"{line}\n" for line in lines))
