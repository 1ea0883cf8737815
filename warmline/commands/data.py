"""`warmline data ...`: look at the data of a recipe before training on it."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from warmline.commands.shared import Overrides, RecipeName, data_root, errors, failure

if TYPE_CHECKING:
    from warmline.data.canonical import Canonical

data_app = typer.Typer(
    help="Look at the data of a recipe.\n\nExample: warmline data show tiny --count 1", no_args_is_help=True
)


@data_app.command(name="show")
def data_show(
    recipe: RecipeName,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Conversations of each source.")] = 2,
) -> None:
    """Show conversations as the model learns them: trained tokens, untrained tokens, anchors with their labels.

    Example: warmline data show tiny --count 1
    """
    with errors():
        from warmline.config.reading import load_recipe
        from warmline.data.prepare import encode, load_corpus
        from warmline.pipeline import encoder_for, tokenizer_of
        from warmline.serve.data_view import show

        settings = load_recipe(recipe, overrides or ())
        corpus = load_corpus(settings, data_root())
        tokenizer = tokenizer_of(settings, corpus)
        first = {source: rows[:count] for source, rows in corpus.conversations["train"].items()}
        examples = encode(first, encoder_for(settings, tokenizer))
        for example in (each for rows in examples.values() for each in rows):
            show(tokenizer, example)


@data_app.command(name="audit")
def data_audit(
    recipe: RecipeName,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")] = False,
) -> None:
    """Count what the corpora hold: sizes, repeats, labels, artefacts, what was rejected. No text is shown.

    Ends with 1 where a run would refuse: too many rejected rows, or too many train texts in an evaluation split.

    Example: warmline data audit tiny-real
    """
    with errors():
        from warmline.config.reading import load_recipe
        from warmline.data.audit import audit, num_steps
        from warmline.data.prepare import read_splits
        from warmline.data.sources.reading import Rejections
        from warmline.progress import progress
        from warmline.serve.audit_view import show_audit

        settings = load_recipe(recipe, overrides or ())
        rejections = Rejections()
        with progress("audit", num_steps(settings.data)) as advance:
            splits = read_splits(settings, data_root(), rejections, advance)
            result = audit(settings.name, settings.data, splits, rejections, advance)
        if as_json:
            typer.echo(json.dumps(asdict(result), indent=2, ensure_ascii=False))
        else:
            show_audit(result)
        if result.failures:
            raise failure(f"the audit failed: {'; '.join(result.failures)}", code=1)


@data_app.command(name="materialize")
def data_materialize(
    recipe: RecipeName,
    overrides: Overrides = None,
    count: Annotated[int, typer.Option(min=1, help="Conversations of each source to show and write.")] = 1,
    split: Annotated[Literal["train", "validation", "test"], typer.Option(help="Which split.")] = "train",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write their examples here, as JSON Lines.")] = None,
) -> None:
    """Encode a split and show figures: roles, lengths, tokens, which heads have labels. Text goes to --out alone.

    Example: warmline data materialize tiny --count 2 --out examples.jsonl
    """
    with errors():
        from warmline.config.reading import load_recipe
        from warmline.data.canonical import Canonical, materialize, recorder
        from warmline.data.prepare import load_corpus
        from warmline.data.style import UNSTYLED, styling_of
        from warmline.pipeline import encoder_for, tokenizer_of
        from warmline.progress import progress
        from warmline.serve.canonical_view import show_canonical, show_totals

        settings = load_recipe(recipe, overrides or ())
        corpus = load_corpus(settings, data_root())
        encoder = recorder(encoder_for(settings, tokenizer_of(settings, corpus)))
        styling = styling_of(settings.data, settings.seed) if split == "train" else UNSTYLED  # as a run has it
        shown: list[Canonical] = []
        totals = {}
        for source, conversations in corpus.conversations[split].items():
            with progress(f"encode {source}", len(conversations)) as advance:
                found = materialize(source, split, conversations, encoder, styling, count=count, advance=advance)
            shown += found.shown
            totals[source] = found.totals
        for example in shown:
            show_canonical(example)
        left_out = Counter(f"turn left out: {turn.reason}" for turn in encoder.left_out)
        show_totals(totals, encoder.counts + left_out)
        if out is not None:
            _write(out, shown)


def _write(out: Path, rows: "Sequence[Canonical]") -> None:
    from warmline.data.canonical import as_row
    from warmline.run_dir import write_text

    write_text(out, "".join(json.dumps(as_row(row), ensure_ascii=False) + "\n" for row in rows))
    typer.echo(f"{len(rows)} examples are in {out}", err=True)


@data_app.command(name="keys")
def data_keys(
    location: Annotated[str, typer.Argument(metavar="LOCATION", help="A file, a folder, or a hub dataset's id.")],
) -> None:
    """Show a new dataset by its keys: splits, rows, columns, types, and which source could read it. No value is shown.

    Example: warmline data keys data/mine.jsonl
    """
    with errors():
        from warmline.data.keys import inspect
        from warmline.serve.keys_view import show_keys

        for split in inspect(location):
            show_keys(split)
