"""How judgements and simulated talks read in the report: Markdown tables with what is not in the numbers."""

from collections import Counter
from collections.abc import Mapping, Sequence

from warmline.evaluate.eq_bench3 import Benchmark
from warmline.evaluate.judge import RubricRow, RubricScores
from warmline.evaluate.pairwise import PairScores
from warmline.evaluate.stats import Interval
from warmline.evaluate.talk_scores import TalkReport
from warmline.evaluate.wording import difference, estimate, table

FLOOR_NAME = "floor: always the same sentence"
MEASURE_NAMES = {
    "question": "turns that ask",
    "advice": "turns that advise",
    "acknowledgement": "turns that acknowledge",
    "repetition": "words said before (trigrams)",
    "invented_memory": "turns with an invented memory",
    "holds_back": "turns that hold the person",
    "num_words": "words a turn",
}


def rubric_table(stages: Mapping[str, RubricScores]) -> str:
    """Criteria in rows, stages in columns."""
    names = dict.fromkeys(name for scores in stages.values() for name in scores.criteria)
    rows = [(name, *(estimate(scores.criteria.get(name)) for scores in stages.values())) for name in names]
    rows.append(("scored", *(str(scores.num_scored) for scores in stages.values())))
    rows.append(("unscored: judge", *(str(scores.unscored) for scores in stages.values())))
    return table(("criterion", *stages), rows)


def pair_table(scores: PairScores, ours: str, theirs: str) -> str:
    """Who won, and how much of the verdicts follows position and length."""
    rows = [
        (f"{ours} wins, a tie counts half (chance: 0.5)", estimate(scores.win_rate)),
        ("position bias: first minus second (none: 0)", _or_none(scores.position_bias)),
        ("orders that disagree on the winner", estimate(scores.disagreement)),
        ("length bias: wins when longer minus when shorter (none: 0)", _or_none(scores.length_bias)),
        ("length bias as odds (none: 1)", estimate(scores.length_odds)),
    ]
    counts = (
        f"{scores.num_pairs} pairs in both orders: {ours} won {scores.wins}, {theirs} won {scores.losses}, "
        f"{scores.ties} tied or disagreed. Left out: {scores.left_out} pairs; the judge failed {scores.unscored} times."
    )
    return f"{table(('measure', 'value [95 %]'), rows)}\n\n{counts}"


def eq_bench3_table(stages: Mapping[str, Benchmark], normalised: Mapping[str, Interval | None]) -> str:
    """Raw and normalised scores, failures of model and judge apart."""
    rows = [
        (
            name,
            estimate(found.raw),
            estimate(normalised.get(name)),
            found.num_scenarios,
            found.unscored_by_model,
            found.unscored_by_judge,
        )
        for name, found in stages.items()
    ]
    header = ("stage", "EQ-Bench 3 rubric, 0 to 100", "base = 100", "scenarios", "unscored: model", "unscored: judge")
    return table(header, rows)


def talk_table(stages: Mapping[str, TalkReport], floor: TalkReport | None = None) -> str:
    """The rules over simulated talks by stage, beside a companion that always says the same; drift by turn."""
    columns = {**stages, FLOOR_NAME: floor} if floor else dict(stages)
    names = dict.fromkeys(name for report in columns.values() for name in report.measures)
    measures = {who: report.measures for who, report in columns.items()}
    rows: list[tuple[object, ...]] = []
    for name in names:
        label = MEASURE_NAMES.get(name, name)
        found = [each.get(name) for each in measures.values()]
        rows.append((label, *(estimate(each.value if each else None) for each in found)))
        rows.append((f"{label}: change a turn", *(_or_none(each.drift) if each else "too few" for each in found)))
    rows.append(("talks with advice before listening", *(estimate(each.advice_first) for each in columns.values())))
    rows.append(
        ("farewells that were held back", *(_of_some(each.held_back, each.farewells) for each in columns.values()))
    )
    counts = [f"- {who}: {_talk_counts(report)}" for who, report in columns.items()]
    return "\n\n".join([table(("measure, mean [95 %]", *columns), rows), "\n".join(counts)])


def _of_some(interval: Interval | None, count: int) -> str:
    return estimate(interval) if count else "nobody took leave"


def _talk_counts(report: TalkReport) -> str:
    return (
        f"{report.num_talks} talks of {report.num_personas} personas, {report.num_turns} turns of the companion, "
        f"{report.farewells} farewells. Levels: {_counts(report.levels)}. Replies: {_counts(report.reply_sources)}. "
        f"Cards shown: {report.num_cards}. Left out: {report.unscored} talks that the seeker broke off, "
        f"{report.silent} without a reply."
    )


def judge_failures(rows: Sequence[RubricRow], at_most: int = 10) -> list[str]:
    """Why judgements are missing, the most frequent first."""
    reasons = Counter(row.reason or "no reason given" for row in rows if row.status == "unscored")
    return [f"{count} times: {reason}" for reason, count in reasons.most_common(at_most)]


def _or_none(interval: Interval | None) -> str:
    return "too few" if interval is None else difference(interval)


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"
