"""`warmline eq-bench ...`: score saved answers to EQ-Bench v2 in every published convention."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from warmline.commands.shared import errors

if TYPE_CHECKING:
    from warmline.evaluate.eq_bench import Errors, Result

eq_bench_app = typer.Typer(
    help="Score saved answers to EQ-Bench v2."
    "\n\nExample: warmline eq-bench score --questions eq_bench_v2_questions_171.json --answers answers.jsonl",
    no_args_is_help=True,
)
MAX_LISTED = 10  # unscored answers in the table; JSON has them all


@eq_bench_app.callback()
def _group() -> None:
    """Without this, Typer would take the only command for the group itself."""


@eq_bench_app.command(name="score")
def eq_bench_score(
    questions: Annotated[Path, typer.Option(metavar="FILE", help="The original questions, or the hub's rows.")],
    answers: Annotated[Path, typer.Option(metavar="FILE", help='JSON lines: {"id", "response"}.')],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")] = False,
) -> None:
    """Score answers by the official, the lm-eval and the parse-scaled convention, and with the tolerant parser.

    Floors that read no dialogue stand beside the scores. An answer that cannot be read is unscored, with the reason.

    Example: warmline eq-bench score --questions eq_bench_v2_questions_171.json --answers answers.jsonl --json
    """
    with errors():
        from warmline.evaluate.eq_bench import as_json as to_json
        from warmline.evaluate.eq_bench import read_answers, score
        from warmline.evaluate.eq_bench_questions import NUM_QUESTIONS, read_questions

        result = score(read_questions(questions), read_answers(answers))
        if result.n != NUM_QUESTIONS:
            typer.echo(
                f"warmline: {result.n} questions; EQ-Bench v2 has {NUM_QUESTIONS}: do not call it that", err=True
            )
        if result.lm_eval is None:
            typer.echo("warmline: no answer has the id of a question: there is nothing to score", err=True)
        if as_json:
            typer.echo(json.dumps(to_json(result), indent=2, allow_nan=False))
        else:
            _show(result)


def _show(result: "Result") -> None:
    """Scores, errors and floors as tables; what could not be scored with its reason."""
    from warmline.evaluate.eq_bench import MIN_PARSEABLE, against_word_mean
    from warmline.evaluate.wording import difference
    from warmline.serve.tables import print_table, stdout_console

    console = stdout_console()
    n, official, floors = result.n, result.official, result.floors
    chosen = official.chosen.replace("_", " ")
    gate = f"mean of what can be read, at least {MIN_PARSEABLE:.0%} of all questions; counted: the {chosen}"
    rows = [
        ("official", gate, f"{official.parseable} of {n}", _number(result.official_score)),
        ("  first pass", "mean of what can be read", "", _number(official.first_pass)),
        ("  revised", "mean of what can be read", "", _number(official.revised)),
        ("lm-eval", "what cannot be read counts 0", "", _number(result.lm_eval)),
        ("parse-scaled", "the official mean times the share that can be read", "", _number(result.parse_scaled)),
        (
            "tolerant",
            "as official, any common form is read, no minimum",
            f"{result.tolerant.parseable} of {n}",
            _number(result.tolerant.score),
        ),
    ]
    print_table(console, f"EQ-Bench v2, {n} questions", ("number", "what it is"), ("parseable", "score"), rows)
    errors_of = [
        ("these answers", _number(official.score), *map(_number, _error(result.errors))),
        ("floor: a word's mean elsewhere", _number(floors.word_mean.score), *map(_number, _error(floors.word_mean))),
        ("floor: 3 for everything", _number(floors.threes.score), *map(_number, _error(floors.threes))),
        ("floor: random, expected", _number(floors.random), "-", "-", "-"),
    ]
    columns = ("score", "standard error", "MAE", "Pearson r")
    print_table(console, "Against floors that read no dialogue", ("",), columns, errors_of)
    if found := against_word_mean(result):
        says = {"beats": "beats it", "below": "does worse"}.get(found.verdict, found.verdict)
        console.print(
            f"These answers minus the word's mean: {difference(found.difference)}, {says} (scenes resampled)."
        )
    if result.unscored:
        console.print(f"Unscored: {len(result.unscored)}, in no official mean")
        for each in result.unscored[:MAX_LISTED]:
            console.print(f"  {_printable(each.id or 'no id')}: {_printable(each.why)}")
        if len(result.unscored) > MAX_LISTED:
            console.print(f"  and {len(result.unscored) - MAX_LISTED} more; --json lists them all")


def _error(errors_of: "Errors") -> tuple[float | None, ...]:
    return errors_of.se, errors_of.mae, errors_of.pearson_r


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _printable(text: str) -> str:
    """A given id or reason on one line, short, and without what a terminal cannot show."""
    return "".join(each if each.isprintable() else "?" for each in text[:100])
