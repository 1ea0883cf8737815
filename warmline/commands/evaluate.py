"""`warmline eval`: score a run's stages, or any model, on the suites that are asked for."""

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline.commands.shared import companion, data_root, errors, run_dir

if TYPE_CHECKING:
    from warmline.config import Recipe
    from warmline.data.prepare import Corpus
    from warmline.evaluate.suites import Material
    from warmline.evaluate.task import Answerer
    from warmline.pipeline import OpenedEngine
    from warmline.run_dir import RunDir

HELD_OUT = ("held-out", "emotions", "strategy")  # names of the one pass that reads heads and scores recorded replies
ALL = "all"


def evaluate_run(
    name: Annotated[
        str, typer.Argument(metavar="RUN|MODEL", help="A run (name or folder), a model folder or a hub id.")
    ],
    stage: Annotated[str, typer.Option(help="base, sft, dpo or all that are finished.")] = ALL,
    suite: Annotated[
        str,
        typer.Option(
            metavar="A,B",
            help="held-out (emotions, strategy), eq-bench, responses, redteam, qualitative, safety, warm, or all.",
        ),
    ] = "held-out",
    through_companion: Annotated[
        bool, typer.Option("--companion", help="Ask the companion as people meet it, not the bare model.")
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Samples of each generating suite, a seeded choice.")] = None,
    questions: Annotated[Path | None, typer.Option(metavar="FILE", help="EQ-Bench's question file.")] = None,
) -> None:
    """Score finished stages of a run, or a model, on held-out conversations and on tasks.

    What is scored already is kept; a killed evaluation goes on where it was. Tables go to `scores/`, replies to
    `exports/`. A model that is no run is evaluated into `runs/eval-NAME/`.

    Example: warmline eval tiny --stage sft --suite qualitative,redteam --limit 20
    """
    with errors():
        folder = _folder(name)
        if suite == HELD_OUT[0] and not _is_run(folder):
            run_dir(name).recipe()  # raises: only a run holds something out
        suites = _suites(suite, is_run=_is_run(folder))
        with folder.lock():
            for written in _evaluate(name, folder, stage, suites, through_companion, limit, questions):
                typer.echo(str(written))


def _suites(text: str, *, is_run: bool) -> list[str]:
    """The names, each once. Raises ValueError for one that there is not, and for one that a bare model cannot have."""
    from warmline.evaluate.suites import SUITES

    of_runs = [HELD_OUT[0], *(name for name, each in SUITES.items() if each.needs_corpus)]
    known = [HELD_OUT[0], *SUITES]
    asked = [HELD_OUT[0] if each in HELD_OUT else each for each in map(str.strip, text.split(",")) if each]
    if ALL in asked:
        return [each for each in known if is_run or each not in of_runs]
    for each in asked:
        if each not in known:
            raise ValueError(f"--suite {each!r}: expected some of {', '.join([*HELD_OUT, *SUITES, ALL])}")
        if not is_run and each in of_runs:
            raise ValueError(f"--suite {each}: a model that is no run has no corpora to hold out; name other suites")
    if not asked:
        raise ValueError("--suite names no suite")
    return [*dict.fromkeys(asked)]


def _is_run(folder: "RunDir") -> bool:
    return (folder.path / "recipe.yaml").is_file()


def _folder(name: str) -> "RunDir":
    """The run, or where a model's scores go."""
    from warmline.run_dir import RunDir

    found = run_dir(name)
    if _is_run(found):
        return found
    return RunDir(Path("runs") / f"eval-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}")


def _evaluate(
    name: str,
    folder: "RunDir",
    stage: str,
    suites: Sequence[str],
    through_companion: bool,
    limit: int | None,
    questions: Path | None,
) -> list[Path]:
    from warmline.data.prepare import load_corpus
    from warmline.evaluate.report import write_report
    from warmline.evaluate.suites import SUITES, Material, sum_up
    from warmline.pipeline import evaluate, finished_stages, open_engine, open_run

    recipe = folder.recipe() if _is_run(folder) else None
    loaded = open_run(folder) if recipe else None
    material, written = Material(), []
    if recipe and loaded:
        needs_corpus = any(each == HELD_OUT[0] or SUITES[each].needs_corpus for each in suites)
        corpus = load_corpus(recipe, data_root()) if needs_corpus else None
        material = _material(recipe, corpus)
        if HELD_OUT[0] in suites:
            assert corpus is not None
            evaluate(recipe, folder, corpus, loaded)
            written.append(folder.path / "scores" / "summary.json")
    material = replace(material, data_root=data_root(), questions=questions, limit=limit)
    asked = [each for each in suites if each != HELD_OUT[0]]
    for each in _stages(stage, finished_stages(folder) if recipe else ["base"]) if asked else ():
        opened = open_engine(name, folder, each, loaded)
        for suite in asked:
            _run_suite(suite, folder, each, opened, material, through_companion)
    written += [
        sum_up(suite, folder, material, companion=through_companion or SUITES[suite].needs_companion) for suite in asked
    ]
    if recipe and asked:
        written.append(write_report(folder))
    return written


def _stages(asked: str, finished: Sequence[str]) -> Sequence[str]:
    if asked == ALL:
        return finished
    if asked not in finished:
        raise ValueError(f"--stage {asked!r}: there is {', '.join(finished)}")
    return [asked]


def _material(recipe: "Recipe", corpus: "Corpus | None") -> "Material":
    from warmline.evaluate.suites import Material

    if corpus is None:
        return Material(bootstrap_samples=recipe.eval.bootstrap_samples, seed=recipe.seed)
    held_out, train = (
        [
            conversation
            for conversations in corpus.conversations[split].values()
            for conversation in conversations[: recipe.eval.max_conversations if split != "train" else None]
        ]
        for split in (recipe.eval.split, "train")
    )
    return Material(held_out, train, bootstrap_samples=recipe.eval.bootstrap_samples, seed=recipe.seed)


def _run_suite(
    suite: str, folder: "RunDir", stage: str, opened: "OpenedEngine", material: "Material", through_companion: bool
) -> None:
    from warmline.evaluate.suites import SUITES, run_suite
    from warmline.progress import progress

    through = through_companion or SUITES[suite].needs_companion
    run_suite(
        suite,
        folder,
        stage,
        _answerer(suite, stage, opened, material, through),
        material,
        companion=through,
        progress=partial(progress, f"{suite} {stage}"),
    )


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
