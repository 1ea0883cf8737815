"""`warmline eval`: score a run's stages, or any model, on the suites that are asked for."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline.commands.shared import data_root, errors, run_dir
from warmline.commands.suites import (
    ALL,
    HELD_OUT,
    JUDGE_KEY,
    SEEKER_KEY,
    Asked,
    evaluate_suites,
    server,
    suites_of,
)

if TYPE_CHECKING:
    from warmline.run_dir import RunDir


RunOrModel = Annotated[
    str, typer.Argument(metavar="RUN|MODEL", help="A run (name or folder), a model folder or a hub id.")
]
Suites = Annotated[
    str,
    typer.Option(
        metavar="A,B",
        help="held-out (emotions, strategy), eq-bench, responses, redteam, qualitative, safety, warm, simulated; with a "
        "judge eq-bench3 and pairwise; or all.",
    ),
]
ThroughCompanion = Annotated[
    bool, typer.Option("--companion", help="Ask the companion as people meet it, not the bare model.")
]
Limit = Annotated[int | None, typer.Option(min=1, help="Samples, talks or scenarios of each suite, a seeded choice.")]
JudgeUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help=f"An OpenAI-compatible server that judges; its key is read from {JUDGE_KEY}."),
]
SeekerUrl = Annotated[
    str | None,
    typer.Option(metavar="URL", help=f"A server that plays the person in talks; key: {SEEKER_KEY}. Else a script."),
]
Turns = Annotated[int | None, typer.Option(min=1, max=30, help="The most turns of a seeker; 30 unless told.")]


def evaluate_run(
    name: RunOrModel,
    stage: Annotated[str, typer.Option(help="base, sft, dpo or all that are finished.")] = ALL,
    suite: Suites = HELD_OUT[0],
    through_companion: ThroughCompanion = False,
    limit: Limit = None,
    questions: Annotated[Path | None, typer.Option(metavar="FILE", help="EQ-Bench's question file.")] = None,
    judge_url: JudgeUrl = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="The judge's name there.")] = None,
    seeker_url: SeekerUrl = None,
    seeker_model: Annotated[str | None, typer.Option(metavar="NAME", help="The seeker's name there.")] = None,
    turns: Turns = None,
    retry_unscored: Annotated[
        bool, typer.Option("--retry-unscored", help="Ask the judge again where it failed before.")
    ] = False,
) -> None:
    """Score finished stages of a run, or a model, on held-out conversations and on tasks.

    What is scored already is kept; a killed evaluation goes on where it was. Tables go to `scores/`, replies to
    `exports/`, talks to `talks/`. A model that is no run is evaluated into `runs/eval-NAME/`.

    Example: warmline eval tiny --stage sft --suite qualitative,redteam --limit 20
    """
    with errors():
        folder = _folder(name)
        is_run = _is_run(folder)
        if suite == HELD_OUT[0] and not is_run:
            run_dir(name).recipe()  # raises: only a run holds something out
        judge = server(judge_url, judge_model, JUDGE_KEY, "judge")
        asked = Asked(
            suites_of(suite, is_run=is_run, has_judge=judge is not None, questions=questions),
            stage,
            through_companion,
            limit,
            questions,
            judge,
            server(seeker_url, seeker_model, SEEKER_KEY, "seeker"),
            turns,
            retry_unscored,
        )
        with folder.lock():
            for written in _evaluate(name, folder, asked):
                typer.echo(str(written))


def _is_run(folder: "RunDir") -> bool:
    return (folder.path / "recipe.yaml").is_file()


def _folder(name: str) -> "RunDir":
    """The run, or where a model's scores go."""
    from warmline.run_dir import RunDir

    found = run_dir(name)
    if _is_run(found):
        return found
    return RunDir(Path("runs") / f"eval-{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}")


def _evaluate(name: str, folder: "RunDir", asked: Asked) -> list[Path]:
    from warmline.data.prepare import load_corpus
    from warmline.evaluate.report import write_report
    from warmline.evaluate.suites import SUITES
    from warmline.pipeline import open_run, score_stages

    if not _is_run(folder):
        return evaluate_suites(name, folder, asked, None, None, None)
    recipe, loaded = folder.recipe(), open_run(folder)
    needs_corpus = any(each == HELD_OUT[0] or (each in SUITES and SUITES[each].needs_corpus) for each in asked.suites)
    corpus = load_corpus(recipe, data_root()) if needs_corpus else None
    written = []
    if HELD_OUT[0] in asked.suites:
        assert corpus is not None
        score_stages(recipe, folder, corpus, loaded)
        written.append(folder.path / "scores" / "summary.json")
    written += evaluate_suites(name, folder, asked, recipe, corpus, loaded)
    return [*written, write_report(folder)]
