"""`warmline ablate`: a grid of ordinary runs, each in a process of its own, and a table over seeds."""

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline.commands.shared import Overrides, RecipeName, errors, failure

if TYPE_CHECKING:
    from warmline.evaluate.ablate import Cell

RUNS = Path("runs")


def ablate(
    recipe: RecipeName,
    vary: Annotated[
        list[str] | None, typer.Option("--vary", metavar="A.B=X,Y,Z", help="A setting and its values; repeatable.")
    ] = None,
    variant: Annotated[
        list[str] | None, typer.Option("--variant", metavar="RECIPE", help="One more recipe to run; repeatable.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="1,2,3", help="Every cell once with each seed.")] = None,
    overrides: Overrides = None,
) -> None:
    """Run a recipe with every combination of values and every seed, and compare the variants over seeds.

    Each cell is an ordinary run under ./runs; finished ones are kept, so that the same command goes on after a stop.
    Exits with 1 if a cell has no scores.

    Example: warmline ablate tiny --vary model.lora.r=4,16 --seeds 1,2,3
    """
    with errors():
        from warmline.config.reading import load_recipe
        from warmline.evaluate.ablate import (
            as_markdown,
            grid,
            parse_seeds,
            parse_variation,
            rows_of,
            run_cells,
            write_rows,
        )
        from warmline.progress import say
        from warmline.run_dir import write_text

        given = (recipe, *(variant or ()))
        recipes = {load_recipe(each).name: each for each in given}
        if len(recipes) != len(given):
            raise ValueError(f"two recipes have the same name: {', '.join(given)}")
        variations = [parse_variation(each) for each in vary or ()]
        cells = grid(recipes, variations, parse_seeds(seeds) if seeds else (), overrides or ())
        for cell in cells:  # a value that no recipe may have is refused before hours of training
            load_recipe(cell.recipe, cell.overrides)
        for number, cell in enumerate(cells, start=1):
            say(f"cell {number} of {len(cells)}: {cell.run}")
        failed = run_cells(cells, RUNS, _run)
        rows = rows_of(cells, RUNS, failed)
        folder = RUNS / f"ablate-{next(iter(recipes))}"
        shown = as_markdown(rows, cells)
        write_rows(rows, folder / "ablation.jsonl")
        write_text(folder / "ablation.md", shown)
        typer.echo(shown, nl=False)
        if failed:
            raise failure(f"{len(failed)} of {len(cells)} runs have no scores: {', '.join(failed)}", code=1)


def _run(cell: "Cell") -> int:
    """A process a cell: memory, random numbers and devices of one run are none of the next one's."""
    settings = [part for each in cell.overrides for part in ("--set", each)]
    command = [sys.executable, "-m", "warmline", "run", cell.recipe, "--name", cell.run, *settings]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
