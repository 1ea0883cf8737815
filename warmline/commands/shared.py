"""What every command shares: parameters, where the data is, and errors as one line and an exit code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from warmline.run_dir import RunDir

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a .yaml or .json file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting; repeatable.")]


@contextmanager
def errors() -> Iterator[None]:
    """Every expected error becomes one message on standard error and an exit code."""
    try:
        yield
    except ValueError as error:
        from pydantic import ValidationError

        if isinstance(error, ValidationError) or not str(error):
            raise
        raise failure(str(error), code=2) from None
    except OSError as error:
        raise failure(str(error), code=1) from None


def failure(message: str, code: int) -> typer.Exit:
    typer.echo(f"warmline: {message}", err=True)
    return typer.Exit(code)


def run_dir(name: str) -> "RunDir":
    """A run by its folder, or by its name under ./runs."""
    from warmline.run_dir import RunDir

    return RunDir(Path(name) if (Path(name) / "recipe.yaml").is_file() else Path("runs") / name)


def data_root() -> Path | None:
    configured = os.environ.get("WARMLINE_DATA")
    return Path(configured) if configured else None
