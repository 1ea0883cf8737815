"""How numbers and verdicts read in the report: plain sentences, Markdown tables, and the words of others made harmless."""

import math
import re
from collections.abc import Callable, Sequence

from warmline.evaluate.results import Comparison, Head, Metric, Summary
from warmline.evaluate.stats import MIN_CLUSTERS, Interval, Verdict
from warmline.run_dir import STAGES

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "valence_mae": "valence error",
    "arousal_mae": "arousal error",
    "micro_f1": "micro-F1",
    "preference_bias": "preference bias",
    "ece_equal_width": "calibration error, equal width",
    "ece_equal_mass": "calibration error, equal mass",
    "brier": "Brier score",
    "nll": "log loss",
    "aurc": "area under the risk-coverage curve",
    "accuracy_at_0.5": "accuracy where half is answered",
    "accuracy_at_0.8": "accuracy where 80 % is answered",
    "accuracy_at_0.9": "accuracy where 90 % is answered",
}
MAX_QUOTED = 1500  # characters of what somebody said
_MARKS = re.compile(r"[\\`*_\[\]<>&|~#$]")  # what Markdown may read as markup anywhere in a line
_AT_START = re.compile(r"^(?:[-+=:]|\d{1,9}(?=[.)]))")  # and at its start alone: lists, rules, headings, tables
# What a page cannot show, or what turns the direction of the text after it.
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufffe\uffff]")
_VERBS: dict[Verdict, str] = {
    "beats": "beats its best floor",
    "below": "does worse than its best floor",
    "not distinguishable": "is not distinguishable from its best floor",
}


def number(value: float) -> str:
    """Three decimals, one from 100 on, and no minus before zero.

    >>> number(-0.0001), number(0.12345)
    ('0.000', '0.123')
    """
    text = f"{value:.3f}" if abs(value) < 100 else f"{value:.1f}"
    return "0.000" if text == "-0.000" else text


def signed(value: float) -> str:
    text = number(value)
    return text if text.startswith("-") or text == "0.000" else f"+{text}"


def estimate(interval: Interval | None) -> str:
    """An estimate with its interval.

    >>> estimate(Interval(0.5, 0.41, 0.6)), estimate(Interval(0.5, None, None))
    ('0.500 [0.410, 0.600]', '0.500 (no interval)')
    """
    return _spell(interval, number)


def difference(interval: Interval | None) -> str:
    """A difference with its interval, signs shown."""
    return _spell(interval, signed)


def _spell(interval: Interval | None, spell: Callable[[float], str]) -> str:
    if interval is None:
        return "not scored"
    if interval.low is None or interval.high is None:
        return f"{spell(interval.value)} (no interval)"
    return f"{spell(interval.value)} [{spell(interval.low)}, {spell(interval.high)}]"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; columns of plain numbers stand to the right.

    >>> print(table(["label", "n"], [["a|b", 3]]))
    | label | n |
    |:--|--:|
    | a\\|b | 3 |
    """
    plain = [all(isinstance(row[at], int | float) for row in rows) for at in range(len(header))]
    rule = "".join("--:|" if right else ":--|" for right in plain)
    lines = (f"| {' | '.join(map(_cell, line))} |" for line in (header, *rows))
    return "\n".join([next(lines), f"|{rule}", *lines])


def _cell(value: object) -> str:
    """Text that cannot end a cell or a line early."""
    return " ".join(str(value).replace("|", "\\|").split())


def quoted(text: str) -> str:
    """What a person wrote or a model answered as Markdown that shows exactly that: no mark in it does anything.

    Empty lines are dropped, and what is too long is cut.

    >>> print(quoted("**Hi** <b>\\n\\n1. [a](b)"))
    \\*\\*Hi\\*\\* \\<b\\>\\
    1\\. \\[a\\](b)
    """
    cut = f"{text[:MAX_QUOTED]} (cut here)" if len(text) > MAX_QUOTED else text
    lines = (" ".join(_UNSEEN.sub("\ufffd", line).split()) for line in cut.splitlines())
    return "\\\n".join(_harmless(line) for line in lines if line)


def _harmless(line: str) -> str:
    escaped = _MARKS.sub(r"\\\g<0>", line)
    found = _AT_START.match(escaped)
    if not found:
        return escaped
    end = found.end()
    return f"{escaped[:end]}\\{escaped[end:]}" if found[0].isdigit() else f"\\{escaped}"


def stage_sentence(comparison: Comparison) -> str:
    """Which of two stages gives the held-out replies the lower loss, and by how much."""
    ours, theirs = comparison.stage, comparison.reference
    gap = comparison.loss_per_token
    if gap is None:
        return f"Stages {ours} and {theirs} have no scored reply in common: their losses are not compared."
    amount = f"{ours} minus {theirs}: {difference(gap)} nats per token over {comparison.num_turns} replies"
    if comparison.verdict == "beats":
        return f"Stage **{ours}** has a lower held-out loss than stage {theirs} ({amount})."
    if comparison.verdict == "below":
        return f"Stage **{ours}** has a higher held-out loss than stage {theirs} ({amount}): it got worse."
    return f"The held-out losses of stages {ours} and {theirs} are not distinguishable ({amount})."


def head_sentence(name: str, head: Head) -> str:
    """Whether a head beats its best floor, in each of its metrics."""
    parts = [_metric_phrase(metric_name, metric) for metric_name, metric in head.metrics.items()]
    return f"The **{name}** head {'; it '.join(parts)}."


def _metric_phrase(name: str, metric: Metric) -> str:
    label = METRIC_NAMES.get(name, name)
    if metric.best_floor is None or metric.verdict is None:
        return f"has no floor to be held against in {label} ({number(metric.value.value)})"
    floor = metric.floors[metric.best_floor]
    return (
        f"{_VERBS[metric.verdict]} in {label} ({number(metric.value.value)} against {number(floor.value)} for "
        f'"{metric.best_floor}", difference {difference(metric.difference)})'
    )


def plainly(summary: Summary) -> str:
    """What was found, for a reader who knows none of the terms; the numbers stand below it."""
    parts = [_stages_plainly(each) for each in summary.comparisons]
    with_heads = [stage for stage in STAGES if stage in summary.stages and summary.stages[stage].heads]
    if with_heads:
        heads = summary.stages[with_heads[-1]].heads
        verdicts = {name: {metric.verdict for metric in head.metrics.values()} - {None} for name, head in heads.items()}
        better = [name for name, found in verdicts.items() if found == {"beats"}]
        some = [name for name, found in verdicts.items() if "beats" in found and found != {"beats"}]
        none = [name for name, found in verdicts.items() if "beats" not in found]
        said = (
            (better, "better than the best guess that looks at no text"),
            (some, "better than such a guess by one measure and not by another"),
            (none, "no better than a guess that looks at no text"),
        )
        parts += [f"It reads {_listed(names)} {how}." for names, how in said if names]
    return " ".join(parts)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _stages_plainly(found: Comparison) -> str:
    gap = found.loss_per_token
    if gap is None or found.verdict not in {"beats", "below"}:
        return f"What people really answered is as likely to stage {found.stage} as to stage {found.reference}."
    change = 100 * abs(math.exp(-gap.value) - 1)
    more = "more" if found.verdict == "beats" else "less"
    amount = "under 1 %" if change < 1 else f"about {change:.0f} %"
    return (
        f"Word piece by word piece, what people really answered is {amount} {more} likely to stage {found.stage} than to "
        f"stage {found.reference}."
    )


def headline(summary: Summary) -> list[str]:
    """The run's results in plain sentences: stages against each other, then the last stage's heads."""
    sentences = [stage_sentence(comparison) for comparison in summary.comparisons]
    with_heads = [stage for stage in STAGES if stage in summary.stages and summary.stages[stage].heads]
    if with_heads:
        heads = summary.stages[with_heads[-1]].heads
        sentences += [head_sentence(name, head) for name, head in heads.items()]
    else:
        sentences.append("No head was scored.")
    unscored = {name: stage.unscored for name, stage in summary.stages.items() if stage.unscored}
    if unscored:
        counts = ", ".join(f"{count} in stage {name}" for name, count in unscored.items())
        sentences.append(
            f"Some samples could not be scored ({counts}). They are in no number, and none counts as zero."
        )
    if _too_few(summary):
        sentences.append(
            f'Numbers with "no interval" rest on fewer than {MIN_CLUSTERS} conversations: too few to decide anything.'
        )
    return sentences


def _too_few(summary: Summary) -> bool:
    parts = [part for stage in summary.stages.values() for part in stage.responses.by_source.values()]
    heads = [head for stage in summary.stages.values() for head in stage.heads.values()]
    return any(0 < part.num_conversations < MIN_CLUSTERS for part in (*parts, *heads))
