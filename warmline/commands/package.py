"""`warmline package`: a finished stage of a run as what people deploy."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from warmline.commands.shared import errors, failure, run_dir

Target = Literal["merged", "int8", "nf4", "vllm", "ollama", "gguf", "hub"]


def package(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="A run's name or folder.")],
    to: Annotated[Target, typer.Option(help="merged, int8, nf4: a model folder; vllm, hub: the adapter.")],
    stage: Annotated[str | None, typer.Option(help="sft or dpo; default: the run's latest.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Default: packages/TARGET.STAGE in the run's folder.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16, of the weights; default: the recipe's.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a package that is there.")] = False,
    push: Annotated[
        str | None, typer.Option(metavar="NAME", help="Upload the hub package to this repository, private if new.")
    ] = None,
) -> None:
    """Make a package of a run: weights or adapter, heads, labels, safety settings, licences, checksums, README.

    Nothing is uploaded without --push and a token in HF_TOKEN. See docs/packaging.md.

    Example: warmline package tiny --to merged
    """
    with errors():
        from warmline.package.hub import TOKEN, check_push
        from warmline.package.hub import push as upload
        from warmline.package.licences import terms_of, warnings_of
        from warmline.package.subject import PackageError, dtype_of, subject_of
        from warmline.package.targets import TARGETS, make_package, refuse_existing
        from warmline.pipeline import base_folder, finished_stages, open_run

        run = run_dir(run_name)
        recipe = run.recipe()
        chosen = stage_of(stage, finished_stages(run))
        wanted = dtype_of(dtype, recipe.model.dtype, to)
        if dtype is not None and not TARGETS[to].takes_dtype:
            raise PackageError(f"--dtype says nothing for --to {to}: the adapter stays as it was trained")
        if push is not None and to != "hub":
            raise PackageError(f"--push uploads a --to hub package, not {to}")
        token = None if push is None else check_push(push, os.environ.get(TOKEN))
        folder = out or run.path / "packages" / f"{to}.{chosen}"
        refuse_existing(folder, force=force)
        with run.lock():
            subject = subject_of(run, chosen, base_folder(run))
            make_package(subject, to, folder, wanted, lambda: open_run(run).model, force=force)
        for line in warnings_of(terms_of(recipe)):
            typer.echo(f"warmline: {line}", err=True)
        typer.echo(str(folder))
        if push is not None and token is not None:
            try:
                typer.echo(f"warmline: uploaded to {upload(folder, push, token)}", err=True)
            except PackageError as error:
                raise failure(str(error), code=1) from None


def stage_of(asked: str | None, finished: list[str]) -> str:
    """The stage to package. Raises ValueError for one that has nothing to package."""
    trained = finished[1:]
    if not trained:
        raise ValueError("this run has no finished stage to package: `warmline run` or `warmline train` makes one")
    if asked is None:
        return trained[-1]
    if asked not in trained:
        raise ValueError(f"--stage {asked!r}: there is {', '.join(trained)} to package")
    return asked
