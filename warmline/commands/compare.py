"""`warmline compare`: two runs, or two stages of one, on the samples that both scored."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from warmline.commands.shared import errors, failure, run_dir

if TYPE_CHECKING:
    from warmline.evaluate.compare import Side

RunStage = Annotated[str, typer.Argument(metavar="RUN[:STAGE]", help="A run's name or folder; its latest stage.")]


def compare_runs(
    ours: RunStage,
    theirs: RunStage,
    allow_unfair: Annotated[
        bool, typer.Option("--allow-unfair", help="Compare sides that were not asked alike; the table says so.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The comparison as JSON.")] = False,
) -> None:
    """Compare two runs or stages: paired bootstrap of the samples that both scored.

    Refused with exit code 1 where dtype, chat template, system prompt or decoding differ.

    Example: warmline compare tiny:sft tiny:base
    """
    with errors():
        from warmline.evaluate.compare import UnfairError, as_markdown, compare

        one, other = _side(ours), _side(theirs)
        samples, seed = _bootstrap(one)
        try:
            found = compare(one, other, allow_unfair=allow_unfair, samples=samples, seed=seed)
        except UnfairError as error:
            raise failure(str(error), code=1) from None
        if as_json:
            lines = [line._asdict() | {"gap": None if line.gap is None else line.gap._asdict()} for line in found.lines]
            typer.echo(json.dumps(found._asdict() | {"lines": lines}, indent=2, ensure_ascii=False))
        else:
            typer.echo(as_markdown(found), nl=False)


def _side(name: str) -> "Side":
    from warmline.evaluate.compare import side_of
    from warmline.run_dir import STAGES

    run, colon, stage = name.rpartition(":")
    if colon and stage in STAGES:
        return side_of(run_dir(run), stage)
    if colon and not run_dir(name).path.is_dir():
        raise ValueError(f"{name}: {stage!r} is no stage (one of {', '.join(STAGES)})")
    return side_of(run_dir(name), None)


def _bootstrap(side: "Side") -> tuple[int, int]:
    """Resamples and seed, as the first run's recipe has them."""
    from warmline.config.training import EvalSettings

    if not (side.run.path / "recipe.yaml").is_file():
        return EvalSettings().bootstrap_samples, 7
    recipe = side.run.recipe()
    return recipe.eval.bootstrap_samples, recipe.seed
