"""The command line: the composition root. Commands import what they need, so that `--help` loads no torch."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline import __version__
from warmline.commands.ablate import ablate
from warmline.commands.chat import chat, converse
from warmline.commands.compare import compare_runs
from warmline.commands.data import data_app
from warmline.commands.eq_bench import eq_bench_app
from warmline.commands.evaluate import evaluate_run
from warmline.commands.export import export_app
from warmline.commands.package import package
from warmline.commands.safety import safety_app
from warmline.commands.serve import serve, serve_key
from warmline.commands.shared import (
    Overrides,
    RecipeName,
    companion,
    country_here,
    data_root,
    errors,
    failure,
    run_dir,
)
from warmline.commands.suites import Asked, evaluate_suites

if TYPE_CHECKING:
    from warmline.config.recipe import Recipe
    from warmline.data.prepare import Corpus
    from warmline.pipeline import Loaded
    from warmline.run_dir import RunDir

app = typer.Typer(
    help="Turn an open-weights chat model into an empathetic companion, and prove what it did."
    "\n\nExample: warmline run tiny",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")
app.add_typer(eq_bench_app, name="eq-bench")
app.add_typer(safety_app, name="safety")
app.command()(chat)
app.command(name="eval")(evaluate_run)
app.command(name="compare")(compare_runs)
app.command(name="ablate")(ablate)
app.command(name="package")(package)
app.command(name="serve")(serve)
app.command(name="serve-key")(serve_key)
app.add_typer(export_app, name="export")

Name = Annotated[str | None, typer.Option("--name", help="The run's folder under ./runs; default: the recipe's name.")]
DEMO = (
    "I didn't get the job. I'd already told my mum I would.",
    "She was so proud on the phone. Now I have to ring her again.",
    "Maybe I'll call her after dinner. Thanks for listening.",
)


def main() -> None:
    """The `warmline` command. Exit codes: 0 done; 1 it ran but was refused or stopped; 2 bad usage or bad input."""
    from dotenv import load_dotenv

    load_dotenv(Path.cwd() / ".env")  # HF_TOKEN and the like; what is set already wins
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # measured: on a busy machine, spinning threads halve the speed
    app()


@app.command()
def run(recipe: RecipeName = "tiny", overrides: Overrides = None, name: Name = None) -> None:
    """The whole pipeline: data, SFT, evaluation of every stage, report. Resumes where it stopped.

    Example: warmline run tiny
    """
    with errors():
        settings, folder = _recipe_and_run(recipe, overrides, name)
        report_file, _ = _run(settings, folder)
        typer.echo(str(report_file))


def _recipe_and_run(recipe: str, overrides: list[str] | None, name: str | None) -> "tuple[Recipe, RunDir]":
    from warmline.config.reading import load_recipe
    from warmline.run_dir import RunDir
    from warmline.safety.operator_settings import chosen

    settings = load_recipe(recipe, overrides or ())
    chosen(settings.safety, os.environ)  # refused before hours of training rather than after
    return settings, RunDir(Path("runs") / (name or settings.name))


def _run(settings: "Recipe", folder: "RunDir") -> "tuple[Path, Loaded | None]":
    """The report of a finished run, and its model if this process had to load it."""
    report_file = folder.path / "report.md"
    with folder.lock():
        folder.claim(settings)
        if report_file.is_file() and folder.manifest().get("finished"):  # a report alone may be of an unfinished run
            return report_file, None
        from warmline.evaluate.report import write_report
        from warmline.pipeline import score_stages

        corpus, loaded = _train(settings, folder)
        score_stages(settings, folder, corpus, loaded)
        asked = Asked(settings.eval.suites, limit=settings.eval.limit)
        evaluate_suites(str(folder.path), folder, asked, settings, corpus, loaded)
        report_file = write_report(folder)
        folder.add_to_manifest(finished=True)
        return report_file, loaded


@app.command()
def train(recipe: RecipeName, overrides: Overrides = None, name: Name = None) -> None:
    """Supervised fine-tuning alone; `accelerate launch -m warmline train ...` uses several devices.

    Example: warmline train qwen2.5-3b --set sft.steps=2 --set sft.epochs=null
    """
    with errors():
        settings, folder = _recipe_and_run(recipe, overrides, name)
        is_main = os.environ.get("RANK", "0") == "0"
        with folder.lock() if is_main else nullcontext():
            if is_main:
                folder.claim(settings)
            _train(settings, folder)
        if is_main:
            typer.echo(str(folder.stage("sft")))


@app.command()
def report(run_name: Annotated[str, typer.Argument(metavar="RUN")]) -> None:
    """Write a run's report.md, report.html and plots anew from its scores.

    Example: warmline report tiny
    """
    with errors():
        from warmline.evaluate.report import write_report

        folder = run_dir(run_name)
        folder.recipe()
        typer.echo(str(write_report(folder)))


@app.command()
def demo() -> None:
    """Run `tiny` if it has not run yet, then talk: with you in a terminal, elsewhere three exchanges.

    Example: warmline demo
    """
    with errors():
        from warmline.engine.engine import Sampling
        from warmline.serve.terminal import console_write, exchanges

        settings, folder = _recipe_and_run("tiny", None, None)
        report_file, loaded = _run(settings, folder)
        typer.echo(f"report: {report_file}")
        from warmline.pipeline import open_engine

        opened = open_engine("tiny", folder, None, loaded)
        if sys.stdin.isatty() and sys.stdout.isatty():
            country = opened.safety.country or country_here()
            talked = companion(
                opened.engine, opened.system_prompt, Sampling(), country, opened.safety, opened.risk_head
            )
            converse(talked, opened.title)
            return
        sampling = Sampling(max_new_tokens=60, seed=settings.seed)
        talked = companion(opened.engine, opened.system_prompt, sampling, None, opened.safety, opened.risk_head)
        exchanges(talked, DEMO, write=console_write())


@app.command()
def recipes() -> None:
    """List the recipes that ship with warmline.

    Example: warmline recipes
    """
    from warmline.config.reading import load_recipe, recipe_names

    for name in recipe_names():
        typer.echo(f"{name:24} {load_recipe(name).description}")


@app.command()
def doctor(
    online: Annotated[bool, typer.Option(help="Also ask whether the hub can be reached.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Findings as JSON, one list.")] = False,
) -> None:
    """What this machine can run: versions, arithmetic, quantisation, memory, corpora, the hub.

    Example: warmline doctor --no-online
    """
    from warmline.doctor import examine

    findings = []
    for finding in examine(data_root(), online=online):
        findings.append(finding)
        if not as_json:
            typer.echo(f"{finding.status:5} {finding.what:10} {finding.found}")
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def _train(settings: "Recipe", folder: "RunDir") -> "tuple[Corpus, Loaded]":
    """Corpus and model with the finished SFT stage, trained now or loaded."""
    from warmline.pipeline import accelerator, prepare, run_sft
    from warmline.train.loop import Stopped

    here = accelerator()
    try:
        corpus, loaded = prepare(settings, folder, data_root(), here)
        run_sft(settings, folder, corpus, loaded, here)
    except Stopped as stopped:
        raise failure(str(stopped), code=1) from None
    here.wait_for_everyone()  # gloo processes that leave early make the others abort
    here.end_training()
    return corpus, loaded
