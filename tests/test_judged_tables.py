"""How judgements read: every number with its interval, and what is in no number said beside it."""

from warmline.evaluate.eq_bench3 import Benchmark
from warmline.evaluate.judge import RubricRow, summarise_rubric
from warmline.evaluate.judged_tables import eq_bench3_table, judge_failures, pair_table, rubric_table, talk_table
from warmline.evaluate.pairwise import summarise_pairs
from warmline.evaluate.stats import Interval
from warmline.evaluate.talk_scores import report_talks

from .test_pairwise import row as pair_row
from .test_talk_scores import talk


def rubric_row(number: int, score: float | None) -> RubricRow:
    return RubricRow(
        id=f"i{number}",
        cluster=f"c{number}",
        judge="j",
        asked="",
        status="unscored" if score is None else "scored",
        reason="judge: silent" if score is None else None,
        num_tries=1,
        scores={} if score is None else {"warmth": score},
    )


def test_a_rubric_is_shown_by_stage_with_the_judges_failures() -> None:
    rows = [rubric_row(number, 10.0) for number in range(8)] + [rubric_row(8, None), rubric_row(9, None)]
    scores = summarise_rubric(rows, samples=100, seed=1)
    assert scores == (8, 2, {"warmth": Interval(10.0, 10.0, 10.0)})
    shown = rubric_table({"base": scores, "sft": summarise_rubric([], samples=100, seed=1)})
    assert "| warmth | 10.000 [10.000, 10.000] | not scored |" in shown
    assert "| unscored: judge | 2 | 0 |" in shown
    assert judge_failures(rows) == ["2 times: judge: silent"]


def test_pairs_are_shown_with_their_biases() -> None:
    rows = [pair_row(n, order, "first") for n in range(8) for order in ("ours first", "theirs first")]
    rows.append(pair_row(8, "ours first", None))
    shown = pair_table(summarise_pairs(rows, samples=100, seed=1), "sft", "base")
    assert "| sft wins, a tie counts half (chance: 0.5) | 0.500 [0.500, 0.500] |" in shown
    assert "| position bias: first minus second (none: 0) | +1.000 [+1.000, +1.000] |" in shown
    assert "(none: 0) | too few |" in shown
    assert "sft won 0, base won 0, 8 tied or disagreed. Left out: 1 pairs; the judge failed 1 times." in shown


def test_eq_bench3_tells_the_models_failures_from_the_judges() -> None:
    found = Benchmark(20, Interval(40.0, 38.0, 42.0), {}, 3, 4)
    nothing = Benchmark(0, None, {}, 45, 0)
    shown = eq_bench3_table({"base": found, "sft": nothing}, {"base": Interval(100.0, 100.0, 100.0)})
    assert "| base | 40.000 [38.000, 42.000] | 100.0 [100.0, 100.0] | 20 | 3 | 4 |" in shown
    assert "| sft | not scored | not scored | 0 | 45 | 0 |" in shown


def test_talks_are_shown_with_drift_and_counts() -> None:
    talks = [talk(f"p{n}", "hi", "You should ring her.", "ok, bye!", "Take care.") for n in range(7)]
    report = report_talks(talks, samples=100, seed=1)
    shown = talk_table({"sft": report}, report)
    assert "| measure, mean [95 %] | sft | floor: always the same sentence |" in shown
    assert "| turns that advise | 0.500 [0.500, 0.500] | 0.500 [0.500, 0.500] |" in shown
    assert "| turns that advise: change a turn | -1.000 [-1.000, -1.000] |" in shown
    assert "| talks with advice before listening | 1.000 [1.000, 1.000] |" in shown
    assert "- sft: 7 talks of 7 personas, 14 turns of the companion, 7 farewells. Levels: none 14." in shown
    assert "nobody took leave" in talk_table({"sft": report_talks([], samples=100, seed=1)})
