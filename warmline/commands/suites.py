"""What `warmline eval` and the end of `warmline run` share: the suites that are asked for, over stages of a run or a model."""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from warmline.commands.shared import companion, data_root

if TYPE_CHECKING:
    from warmline.config.recipe import Recipe
    from warmline.data.prepare import Corpus
    from warmline.evaluate.played import Players, Subject
    from warmline.evaluate.suites import Material
    from warmline.evaluate.task import Answerer
    from warmline.pipeline import Loaded, OpenedEngine
    from warmline.progress import Advance
    from warmline.run_dir import RunDir

HELD_OUT = ("held-out", "emotions", "strategy")  # names of the one pass that reads heads and scores recorded replies
ALL = "all"
JUDGE_KEY, SEEKER_KEY = "WARMLINE_JUDGE_KEY", "WARMLINE_SEEKER_KEY"  # environment variables: a key is no argument


@dataclass(frozen=True)
class Server:
    """A model behind an OpenAI-compatible server."""

    url: str
    model: str
    key: str | None


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated, and with whom."""

    suites: Sequence[str]
    stage: str = ALL
    through_companion: bool = False
    limit: int | None = None
    questions: Path | None = None
    judge: Server | None = None
    seeker: Server | None = None  # None: the scripted one
    turns: int | None = None  # of the seeker; None: as many as a talk may have
    retry_unscored: bool = False


def server(url: str | None, model: str | None, variable: str, option: str) -> Server | None:
    """Who plays a part, if anybody is named; its key is in the environment variable. Raises ValueError for half a name."""
    if (url is None) != (model is None):
        raise ValueError(f"--{option}-url and --{option}-model go together: one names the server, the other its model")
    return None if url is None or model is None else Server(url, model, os.environ.get(variable) or None)


def suites_of(text: str, *, is_run: bool, has_judge: bool, questions: Path | None) -> list[str]:
    """The names, each once; what `all` leaves out is said on standard error.

    Raises ValueError for a name that there is not, one that a bare model cannot have, and one without its judge.
    """
    from warmline.evaluate import played
    from warmline.evaluate.suites import SUITES

    of_runs = [HELD_OUT[0], *(name for name, each in SUITES.items() if each.needs_corpus), "pairwise"]
    known = [HELD_OUT[0], *SUITES, *played.SUITES]
    judged = [name for name, each in played.SUITES.items() if each.needs_judge]
    asked = [HELD_OUT[0] if each in HELD_OUT else each for each in map(str.strip, text.split(",")) if each]
    if ALL in asked:
        left_out = _left_out(judged, has_judge=has_judge, questions=questions)
        for name, why in left_out.items():
            typer.echo(f"warmline: all leaves out {name}: {why}", err=True)
        return [each for each in known if each not in left_out and (is_run or each not in of_runs)]
    for each in asked:
        if each not in known:
            raise ValueError(f"--suite {each!r}: expected some of {', '.join([*HELD_OUT, *known[1:], ALL])}")
        if not is_run and each in of_runs:
            why = "one stage" if each == "pairwise" else "no corpora to hold out"
            raise ValueError(f"--suite {each}: a model that is no run has {why}; name other suites")
        if each in judged and not has_judge:
            raise ValueError(f"--suite {each}: it needs a judge; name one with --judge-url and --judge-model")
    if not asked:
        raise ValueError("--suite names no suite")
    if "pairwise" in asked and played.PAIRED not in asked:
        asked.insert(0, played.PAIRED)  # whose replies are judged; those that are there are kept
    return [*dict.fromkeys(asked)]


def _left_out(judged: Sequence[str], *, has_judge: bool, questions: Path | None) -> dict[str, str]:
    """What `all` cannot have here, and why."""
    from warmline.evaluate.eq_bench3 import FOLDER
    from warmline.evaluate.suites import QUESTIONS

    root = data_root()
    left_out = {} if has_judge else dict.fromkeys(judged, "it needs a judge (--judge-url, --judge-model)")
    if questions is None and not (root and (root / QUESTIONS).is_file()):
        left_out["eq-bench"] = f"no question file (--questions, or WARMLINE_DATA with {QUESTIONS})"
    if has_judge and not (root and (root / FOLDER).is_dir()):
        left_out["eq-bench3"] = f"no material (WARMLINE_DATA with {FOLDER}/)"
    return left_out


def evaluate_suites(
    name: str, folder: "RunDir", asked: Asked, recipe: "Recipe | None", corpus: "Corpus | None", loaded: "Loaded | None"
) -> list[Path]:
    """Ask every suite but the held-out pass of every stage, and sum them up; returns the files of tables."""
    from warmline.evaluate import played, suites
    from warmline.pipeline import finished_stages, open_engine

    wanted = [each for each in asked.suites if each != HELD_OUT[0]]
    material = _material(recipe, corpus, asked)
    players = _players(asked)
    for stage in stages_of(asked.stage, finished_stages(folder) if recipe else ["base"]) if wanted else ():
        opened = open_engine(name, folder, stage, loaded)
        for suite in wanted:
            if suite in played.SUITES:
                played.play(suite, folder, _subject(opened, stage), players, material, _follow)
            else:
                _ask(suite, folder, stage, opened, material, asked.through_companion)
    return [
        played.sum_up(suite, folder, material)
        if suite in played.SUITES
        else suites.sum_up(
            suite, folder, material, companion=asked.through_companion or suites.SUITES[suite].needs_companion
        )
        for suite in wanted
    ]


def stages_of(asked: str, finished: Sequence[str]) -> Sequence[str]:
    """Those that are asked for. Raises ValueError for one that there is not."""
    if asked == ALL:
        return finished
    if asked not in finished:
        raise ValueError(f"--stage {asked!r}: there is {', '.join(finished)}")
    return [asked]


def _material(recipe: "Recipe | None", corpus: "Corpus | None", asked: Asked) -> "Material":
    from warmline.evaluate.suites import Material

    material = Material(data_root=data_root(), questions=asked.questions, limit=asked.limit)
    if recipe is None:
        return material
    material = replace(material, bootstrap_samples=recipe.eval.bootstrap_samples, seed=recipe.seed)
    if corpus is None:
        return material
    held_out, train = (
        [
            conversation
            for conversations in corpus.conversations[split].values()
            for conversation in conversations[: recipe.eval.max_conversations if split != "train" else None]
        ]
        for split in (recipe.eval.split, "train")
    )
    return replace(material, held_out=held_out, train=train)


def _players(asked: Asked) -> "Players":
    from warmline.engine.remote import RemoteEngine
    from warmline.evaluate.judge import Judge
    from warmline.evaluate.played import Players
    from warmline.evaluate.simulate import Seeker

    players = Players(retry_unscored=asked.retry_unscored)
    if asked.judge is not None:
        engine = RemoteEngine(asked.judge.url, asked.judge.model, api_key=asked.judge.key, structured="none")
        players = replace(players, judge=Judge(engine, asked.judge.model))
    if asked.seeker is not None:
        engine = RemoteEngine(asked.seeker.url, asked.seeker.model, api_key=asked.seeker.key, structured="none")
        players = replace(players, seeker=Seeker(engine, asked.seeker.model))
    return players if asked.turns is None else replace(players, max_turns=asked.turns)


def _subject(opened: "OpenedEngine", stage: str) -> "Subject":
    from warmline.engine.engine import Sampling
    from warmline.evaluate.played import Subject

    setting = companion(opened.engine, opened.system_prompt, Sampling(), None, opened.safety, opened.risk_head)
    return Subject(opened.engine, setting, stage, opened.title)


def _follow(what: str) -> "Callable[[int, int], AbstractContextManager[Advance]]":
    from warmline.progress import progress

    return partial(progress, what)


def _ask(
    suite: str, folder: "RunDir", stage: str, opened: "OpenedEngine", material: "Material", through_companion: bool
) -> None:
    from warmline.evaluate.suites import SUITES, run_suite

    through = through_companion or SUITES[suite].needs_companion
    answer = _answerer(suite, stage, opened, material, through)
    run_suite(suite, folder, stage, answer, material, companion=through, progress=_follow(f"{suite} {stage}"))


def _answerer(suite: str, stage: str, opened: "OpenedEngine", material: "Material", through: bool) -> "Answerer":
    from warmline.evaluate.answers import GREEDY, FromCompanion, FromEngine
    from warmline.evaluate.suites import FromQuestions, questions_of

    about = {"stage": stage, "model": opened.title}
    if suite == "eq-bench" and not through:
        return FromQuestions(opened.engine, {each.id: each for each in questions_of(material)}, "lm-eval", about)
    if through:
        setting = companion(opened.engine, opened.system_prompt, GREEDY, None, opened.safety, opened.risk_head)
        return FromCompanion(setting, about)
    return FromEngine(opened.engine, opened.system_prompt, GREEDY, about)
