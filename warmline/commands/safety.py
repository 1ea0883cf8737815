"""`warmline safety ...`: how danger is noticed, and how well."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from warmline.commands.shared import (
    Country,
    OperatorFile,
    audit_folder,
    companion,
    errors,
    failure,
    operator_settings,
    run_dir,
)

if TYPE_CHECKING:
    from warmline.config.operator import SafetySettings
    from warmline.dialogue.companion import Setting
    from warmline.engine.engine import Engine
    from warmline.safety.head import RiskHead

safety_app = typer.Typer(
    help="Notice danger, show help, and measure how well.\n\nExample: warmline safety eval", no_args_is_help=True
)
EngineName = Literal["scripted", "tiny", "local"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, to standard output.")]


@safety_app.command(name="assess")
def safety_assess() -> None:
    """Read conversations as JSON lines; write the level at which each one's last user turn must be answered.

    A line is {"id", "turns": [{"role", "content", "t"?}]}, t in seconds. A malformed line gives `elevated`, and the
    command goes on.

    Example: warmline safety assess < cases.jsonl
    """
    with errors():
        from warmline.safety.detect import load_detector

        load_detector()
        for row in _stdin_rows():
            typer.echo(json.dumps(_assessed(row)))


def _stdin_rows() -> Iterator[object]:
    """Each line of standard input as JSON; None for one that is not. Blank lines are skipped."""
    for line in sys.stdin.buffer:
        text = line.decode("utf-8", "replace")
        if not text.strip():
            continue
        try:
            yield json.loads(text)
        except (ValueError, RecursionError):
            yield None


def _id_of(row: object) -> str | int | float | None:
    """The id of a line, None where it has none that JSON can give back."""
    case_id = row.get("id") if isinstance(row, dict) else None
    return case_id if isinstance(case_id, str | int) or (isinstance(case_id, float) and isfinite(case_id)) else None


def _assessed(row: object) -> dict[str, object]:
    from warmline.safety.assess import TurnError, assess

    case_id = _id_of(row)
    try:
        if not isinstance(row, dict) or not isinstance(row.get("turns"), list):
            raise TurnError("expected an object with id and turns")
        found = assess(row["turns"])
    except TurnError as error:
        reason = {"rule": "INPUT", "text": f"The line could not be read: {error}"}
        return {"id": case_id, "level": "elevated", "score": 0.5, "ms": 0.0, "reasons": [reason], "degraded": ["input"]}
    return {
        "id": case_id,
        "level": found.level.label,
        "score": round(found.p, 4),
        "ms": round(found.ms, 3),
        "reasons": [{"rule": reason.rule, "text": reason.text} for reason in found.reasons],
        "degraded": sorted(found.degraded),
    }


@safety_app.command(name="validate")
def safety_validate() -> None:
    """Read candidate replies as JSON lines; write the rules that each one breaks. Only hard rules are violations.

    A line is {"id", "risk", "turns", "candidate"}. A malformed line gives the violation `input`, and the command goes on.

    Example: warmline safety validate < replies.jsonl
    """
    with errors():
        for row in _stdin_rows():
            typer.echo(json.dumps(_validated(row)))


def _validated(row: object) -> dict[str, object]:
    from warmline.safety.validate.context import ContextError, context_from_case
    from warmline.safety.validate.release import validate

    case_id = _id_of(row)
    if isinstance(row, dict) and isinstance(row.get("candidate"), str):
        with suppress(ContextError):
            return validate(row["candidate"], context_from_case(row)).as_json(case_id)
    return {"id": case_id, "violations": ["input"], "soft": [], "spans": []}


@safety_app.command(name="reply")
def safety_reply(
    run_or_model: Annotated[str, typer.Argument(metavar="[RUN]", help="A run or model for tiny and local.")] = "tiny",
    engine: Annotated[EngineName, typer.Option(help="scripted needs no RUN: seeded logits without a model.")] = "tiny",
    country: Country = None,
    seed: Annotated[int | None, typer.Option(help="Makes the draw repeatable.")] = None,
    settings: OperatorFile = None,
) -> None:
    """Read conversations as JSON lines; answer each one's last user turn through the whole safety system.

    A line is {"id", "turns": [{"role", "content", "t"?}]}. A malformed line gives no reply, and the command goes on.

    Example: warmline safety reply --engine scripted < cases.jsonl
    """
    with errors():
        from warmline.engine.engine import Sampling

        own = operator_settings(settings)
        opened, system_prompt, safety, risk_head = _engine(run_or_model, engine)
        sampling, safety = Sampling(seed=seed), own.safety or safety
        setting = companion(opened, system_prompt, sampling, country, safety, risk_head, wanted=own.companion)
        for row in _stdin_rows():
            typer.echo(json.dumps(_replied(setting, row)))


def _engine(name: str, kind: str) -> tuple["Engine", str | None, "SafetySettings", "RiskHead | None"]:
    if kind == "scripted":
        from warmline.config.operator import SafetySettings
        from warmline.engine.scripted import ScriptedEngine

        return ScriptedEngine(), None, SafetySettings(), None
    from warmline.pipeline import open_engine

    opened = open_engine(name, run_dir(name), None)
    return opened.engine, opened.system_prompt, opened.safety, opened.risk_head


def _replied(setting: "Setting", row: object) -> dict[str, object]:
    from warmline.dialogue.companion import Answer, respond, resume
    from warmline.safety.assess import clock_of
    from warmline.safety.validate.context import ContextError, turns_from_case

    case_id = _id_of(row)
    try:
        if not isinstance(row, dict):
            raise ContextError("expected an object")
        turns = turns_from_case(row.get("turns"))
        last = max(at for at, turn in enumerate(turns) if turn.role == "user")
    except (ContextError, ValueError):
        return {"id": case_id, "level": "elevated", "reply": "", "reply_source": "notice", "card": None}
    times = [clock_of(each) for each in row["turns"]]
    session = resume(setting, turns[:last], times)
    at = times[last]
    *_, answer = respond(setting, session, turns[last].content, session.last_at or 0.0 if at is None else at)
    assert isinstance(answer, Answer)
    return {
        "id": case_id,
        "level": answer.level.label,
        "reply": answer.reply,
        "reply_source": answer.reply_source,
        "card": answer.card.as_json() if answer.card else None,
    }


@safety_app.command(name="eval")
def safety_eval(
    as_json: AsJson = False,
    shipped_only: Annotated[bool, typer.Option(help="Skip the fits with families left out (minutes).")] = False,
) -> None:
    """Measure the detector on the public red-team set: first with each family left out, then as shipped.

    Example: warmline safety eval
    """
    with errors():
        from warmline.progress import progress
        from warmline.safety.detect import load_detector
        from warmline.safety.redteam.cases import part_of, read_cases
        from warmline.safety.redteam.evaluate import leave_families_out, score
        from warmline.serve import safety_view

        cases = read_cases()
        test = [case for case in cases if part_of(case.family) == "test"]
        blind = read_cases("blind")
        folds = 0 if shipped_only else _steps_of_fits(cases)
        with progress("assess", folds + len(test) + len(blind)) as advance:
            on_test = list(score(test, load_detector(), advance))
            on_blind = list(score(blind, load_detector(), advance))
            held_out = [] if shipped_only else list(leave_families_out(cases, advance))
        evaluation = safety_view.Evaluation(held_out, on_test, on_blind)
        if as_json:
            typer.echo(json.dumps(safety_view.as_json(evaluation), indent=1))
        else:
            safety_view.show_evaluation(evaluation)


def _steps_of_fits(cases) -> int:
    from warmline.safety.redteam.evaluate import num_steps

    try:
        import sklearn  # noqa: F401
    except ImportError:
        raise failure("leaving families out needs scikit-learn: pip install 'warmline[dev]'", code=2) from None
    return num_steps(cases)


@safety_app.command(name="card")
def safety_card(
    country: Annotated[str, typer.Option("--country", metavar="XX", help="Two letters, as IE.")],
    as_json: AsJson = False,
    level: Annotated[str, typer.Option(help="high or emergency")] = "high",
    language: Annotated[str, typer.Option(help="en, es, fr, de, pt or hi-Latn")] = "en",
) -> None:
    """Show the card with helplines of a country, as the companion's users see it.

    Example: warmline safety card --country IE
    """
    with errors():
        from warmline.safety.levels import LEVELS
        from warmline.safety.resources.card import card_for
        from warmline.safety.resources.country import checked_country
        from warmline.safety.resources.directory import load_directory

        if level not in ("high", "emergency"):
            raise ValueError(f"--level {level!r}: expected high or emergency")
        today = datetime.now(UTC).date()
        card = card_for(load_directory(), checked_country(country), LEVELS[level], language=language, today=today)
        typer.echo(json.dumps(card.as_json(), indent=1, ensure_ascii=False) if as_json else card.text())


@safety_app.command(name="report")
def safety_report(
    start: Annotated[str, typer.Option("--from", metavar="DATE", help="The first day, as 2026-11-01 (UTC).")],
    end: Annotated[str, typer.Option("--to", metavar="DATE", help="The last day, included.")],
    profile: Annotated[str, typer.Option(help="all, or whose law asks: ca, ny, or, wa")] = "all",
    folder: Annotated[
        Path | None, typer.Option(metavar="F", help="Where the counts are; default: $WARMLINE_HOME/audit.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How often somebody was shown crisis services, over some days, and under which protocol. Nothing personal.

    Counts under 10 are shown as <10. A day that cannot be read is named, and the exit code is 1.

    Example: warmline safety report --from 2026-11-01 --to 2026-11-30 --profile ca
    """
    with errors():
        from warmline.safety.audit import report
        from warmline.serve import safety_view

        found = report(folder or audit_folder(), _day("--from", start), _day("--to", end), profile)
        if as_json:
            typer.echo(json.dumps(safety_view.report_as_json(found), indent=1))
        else:
            safety_view.show_report(found)
        if found.broken:
            days = ", ".join(found.broken)
            raise failure(f"truncated or altered, so that their counts are missing: {days}", code=1)


def _day(option: str, text: str) -> date:
    """A date. Raises ValueError for any other way to write one than 2026-11-30."""
    with suppress(ValueError):
        found = date.fromisoformat(text)
        if found.isoformat() == text:
            return found
    raise ValueError(f"{option} {text!r}: expected a date, as 2026-11-30")
