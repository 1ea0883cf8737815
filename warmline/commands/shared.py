"""What every command shares: parameters, where the data is, and errors as one line and an exit code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from warmline.config.operator import CompanionSettings, OperatorSettings, SafetySettings
    from warmline.dialogue.companion import Setting
    from warmline.engine.engine import Engine, Sampling
    from warmline.run_dir import RunDir
    from warmline.safety.head import RiskHead

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's name, or a .yaml or .json file.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a setting; repeatable.")]

Country = Annotated[str | None, typer.Option(metavar="XX", help="Country of the helplines, two letters.")]
OperatorFile = Annotated[
    str | None,
    typer.Option(
        "--settings",
        metavar="FILE",
        help="A YAML file with sections safety, companion, serve; they win over the run's.",
    ),
]


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


def operator_settings(file: str | None) -> "OperatorSettings":
    """What the operator's own file says; nothing without one."""
    from warmline.config.operator import OperatorSettings
    from warmline.config.reading import load_operator

    return OperatorSettings() if file is None else load_operator(file)


def data_root() -> Path | None:
    configured = os.environ.get("WARMLINE_DATA")
    return Path(configured) if configured else None


def audit_folder() -> Path:
    """Where `warmline chat` counts and `warmline safety report` looks."""
    from warmline.run_dir import home

    return home() / "audit"


def companion(
    engine: "Engine",
    system_prompt: str | None,
    sampling: "Sampling",
    country: str | None,
    safety: "SafetySettings | None" = None,
    risk_head: "RiskHead | None" = None,
    audit: Path | None = None,
    wanted: "CompanionSettings | None" = None,
) -> "Setting":
    """What an engine needs to be talked to; says on standard error what the operator's settings make one say.

    `country`: wins over the settings'. `audit`: the folder of daily counts, None for none. Raises ValueError for a
    country that is not two letters, for settings that nobody may choose and for a policy.yaml that is altered.
    """
    from warmline.config.operator import SafetySettings
    from warmline.embed import setting_of

    setting, notices = setting_of(
        engine, system_prompt, sampling, country, safety or SafetySettings(), risk_head, audit, wanted
    )
    for notice in notices:
        typer.echo(f"warmline: {notice}", err=True)
    return setting


def country_here() -> str | None:
    """The country that this terminal's locale or time zone names, if any."""
    from warmline.safety.resources.country import choose_country

    locale = os.environ.get("LC_ALL") or os.environ.get("LC_MESSAGES") or os.environ.get("LANG")
    return choose_country(None, None, locale, os.environ.get("TZ"))
