"""The red-team set's figures and the audit's report as tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from warmline.safety.audit import Report
from warmline.safety.redteam.score import Figures, Rate, Scored, figures, groups
from warmline.serve.tables import print_table, stdout_console

COLUMNS = ("cases", "recall", "false alarms", "into high", "high seen", "emergency seen")


@dataclass(frozen=True)
class Evaluation:
    """What `warmline safety eval` measured: `held_out` with each family left out; the shipped detector on the parts."""

    held_out: Sequence[Scored]
    test: Sequence[Scored]
    blind: Sequence[Scored]  # cases by other authors, of which nothing was learned


def show_evaluation(evaluation: Evaluation) -> None:
    """Print all tables, the honest one first."""
    console = stdout_console()
    if evaluation.held_out:
        rows = {"every case": figures(evaluation.held_out)}
        print_table(console, "Each family left out of rules and fit", ("",), COLUMNS, _rows(rows))
    shipped = {"test part": figures(evaluation.test), "blind set": figures(evaluation.blind)}
    print_table(console, "As shipped", ("",), COLUMNS, _rows(shipped))
    print_table(
        console,
        "The blind set by group",
        ("group",),
        COLUMNS,
        _rows(groups(evaluation.blind, lambda case: case.family)),
    )
    keys = {
        "language": lambda case: case.lang,
        "category": lambda case: case.category,
        "family": lambda case: case.family,
    }
    source = evaluation.held_out or evaluation.test
    for name, key in keys.items():
        title = f"By {name}, {'families left out' if evaluation.held_out else 'test part'}"
        print_table(console, title, (name,), COLUMNS, _rows(groups(source, key)))


def as_json(evaluation: Evaluation) -> dict[str, object]:
    """The same for programs: each rate as value, interval and counts."""
    source = evaluation.held_out or evaluation.test
    return {
        "left_out": _json(figures(evaluation.held_out)) if evaluation.held_out else None,
        "test": _json(figures(evaluation.test)),
        "blind": _json(figures(evaluation.blind)),
        "by_language": {name: _json(each) for name, each in groups(source, lambda case: case.lang).items()},
        "by_category": {name: _json(each) for name, each in groups(source, lambda case: case.category).items()},
        "by_family": {name: _json(each) for name, each in groups(source, lambda case: case.family).items()},
    }


def _rows(named: Mapping[str, Figures]) -> list[list[str]]:
    return [
        [
            name,
            str(each.recall.total + each.false_alarms.total),
            *(_text(rate) for rate in (each.recall, each.false_alarms, each.false_high, each.high_seen)),
            _text(each.emergency_seen),
        ]
        for name, each in named.items()
    ]


def _text(rate: Rate) -> str:
    low, high = rate.interval
    return f"{rate.value:.3f} [{low:.3f}, {high:.3f}]" if rate.total else "-"


def _json(each: Figures) -> dict[str, object]:
    return {
        name: {"value": rate.value if rate.total else None, "interval": rate.interval, "n": rate.total}
        for name, rate in each._asdict().items()
    }


def show_report(report: Report) -> None:
    """Print an audit's report as a small table."""
    rows = [
        ["times crisis services were newly shown", str(report.referrals)],
        ["replies", str(report.replies)],
        ["days with counts", str(report.num_days)],
        ["protocol version", ", ".join(report.policies) or "-"],
    ]
    title = f"{report.start} to {report.end}, profile {report.profile}"
    print_table(stdout_console(), title, ("",), ("",), rows)


def report_as_json(report: Report) -> dict[str, object]:
    """The same for programs. A count under 10 is the text `<10`."""
    return {
        "profile": report.profile,
        "from": report.start.isoformat(),
        "to": report.end.isoformat(),
        "referrals": report.referrals,
        "replies": report.replies,
        "days": report.num_days,
        "policy_versions": [*report.policies],
        "broken_days": [*report.broken],
    }
