"""`warmline export ...`: check files of replies before anyone compares them."""

import json
from pathlib import Path
from typing import Annotated

import typer

from warmline.commands.shared import errors, failure

export_app = typer.Typer(
    help="Files of what each stage answered.\n\nExample: warmline export validate runs/tiny/exports/*.jsonl",
    no_args_is_help=True,
)


@export_app.callback()
def _export() -> None:
    """Files of what each stage answered."""


@export_app.command(name="validate")
def export_validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSONL exports, named SUITE.STAGE.jsonl.")],
    check_pairs: Annotated[
        bool,
        typer.Option("--check-pairs", help="Also hold each SUITE.STAGE.jsonl against SUITE.base.jsonl."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")] = False,
) -> None:
    """Check exports: every row's fields, no prompt twice; with --check-pairs that stages answered the same prompts.

    Ends with 1 where something is wrong.

    Example: warmline export validate runs/tiny/exports/*.jsonl --check-pairs
    """
    with errors():
        from warmline.evaluate import export

        checked = [export.check_file(file) for file in files]
        pairs = export.check_pairs(checked) if check_pairs else []
        if as_json:
            found = [{"file": str(each.file), "rows": len(each.rows), "problems": [*each.problems]} for each in checked]
            typer.echo(json.dumps({"files": found, "pairs": pairs}, indent=2, ensure_ascii=False))
        else:
            for each in checked:
                typer.echo(f"{each.file}: {len(each.rows)} rows{'' if each.problems else ', fine'}")
                for problem in each.problems:
                    typer.echo(f"  {problem}")
            for problem in pairs:
                typer.echo(problem)
        count = sum(len(each.problems) for each in checked) + len(pairs)
        if count:
            raise failure(f"{count} problem{'s' if count > 1 else ''} in {len(files)} files", code=1)
