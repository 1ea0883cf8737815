"""Hand-worked values and properties of the statistics."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.evaluate.stats import (
    MIN_CLUSTERS,
    Interval,
    accuracy,
    accuracy_draws,
    macro_f1,
    macro_f1_draws,
    per_label,
    ratio_draws,
    resample,
    verdict,
    wilson,
)

LABELS = st.sampled_from("abcd")
ITEMS = st.lists(st.tuples(LABELS, LABELS, st.integers(0, 9)), min_size=1, max_size=40)  # gold, predicted, cluster


def test_accuracy_and_macro_f1_by_hand():
    gold = ["a", "a", "a", "b", "c"]
    predicted = ["a", "a", "b", "b", "d"]
    # a: 2*2/(3+2) = 0.8; b: 2*1/(1+2) = 2/3; c and d occur on one side only: 0
    assert accuracy(gold, predicted) == pytest.approx(3 / 5)
    assert macro_f1(gold, predicted) == pytest.approx((0.8 + 2 / 3 + 0 + 0) / 4)


def test_per_label_table_by_hand():
    by_label = {score.label: score for score in per_label(["a", "a", "a", "b", "c"], ["a", "a", "b", "b", "d"])}
    assert list(by_label) == ["a", "b", "c", "d"]  # by support
    assert by_label["a"][1:] == pytest.approx((1.0, 2 / 3, 0.8, 3, 2))
    assert by_label["b"][1:] == pytest.approx((0.5, 1.0, 2 / 3, 1, 2))
    assert by_label["c"][1:] == (0, 0, 0, 1, 0)
    assert by_label["d"][1:] == (0, 0, 0, 0, 1)


def test_nothing_to_score_is_an_error_and_no_zero():
    for score in (accuracy, macro_f1):
        with pytest.raises(ValueError, match="no items"):
            score([], [])
    with pytest.raises(ValueError, match="no items"):
        resample([], samples=10, seed=0)
    with pytest.raises(ValueError, match="2 gold labels but 1"):
        macro_f1(["a", "b"], ["a"])


def test_ratio_is_a_sum_over_a_sum():
    resampling = resample(["x", "x", "y"], samples=100, seed=1)
    draws = ratio_draws([2.0, 4.0, 6.0], [1, 3, 8], resampling)
    assert draws[0] == 12 / 12
    # Two clusters: both (1.0), x twice (6/4) or y twice (6/8), and nothing in between.
    assert set(np.round(draws, 9)) == {0.75, 1.0, 1.5}


def test_clusters_are_drawn_whole():
    """Ten copies of each item carry no more information: the interval must not shrink."""
    losses = np.linspace(0, 1, 20)
    once = resample(range(20), samples=400, seed=3)
    tenfold = resample([cluster for cluster in range(20) for _ in range(10)], samples=400, seed=3)
    single = once.interval(ratio_draws(losses, np.ones(20), once))
    repeated = tenfold.interval(ratio_draws(np.repeat(losses, 10), np.ones(200), tenfold))
    assert repeated == pytest.approx(single)


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
    values = np.random.default_rng(5).normal(10, 2, size=400)
    resampling = resample(range(400), samples=2000, seed=0)
    value, low, high = resampling.interval(ratio_draws(values, np.ones(400), resampling))
    half = 1.96 * values.std() / math.sqrt(400)
    assert value == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((value - half, value + half), abs=0.03)


def test_a_paired_difference_is_much_narrower_than_its_parts():
    generator = np.random.default_rng(2)
    hard = generator.normal(5, 3, size=60)  # conversations differ far more than the two predictors
    ours, theirs = hard - 0.2 + generator.normal(0, 0.1, 60), hard
    resampling = resample(range(60), samples=500, seed=0)
    draws = [ratio_draws(values, np.ones(60), resampling) for values in (ours, theirs)]
    gap, alone = resampling.interval(draws[0] - draws[1]), resampling.interval(draws[0])
    assert verdict(gap, "lower") == "beats"
    assert gap.low is not None
    assert alone.low is not None
    assert gap.value - gap.low < (alone.value - alone.low) / 10


def test_too_few_conversations_give_no_interval_and_no_verdict():
    clusters = list(range(MIN_CLUSTERS - 1))
    few = resample(clusters, samples=100, seed=0)
    interval = few.interval(ratio_draws(np.ones(len(clusters)), np.ones(len(clusters)), few))
    assert interval == Interval(1.0, None, None)
    assert verdict(interval, "higher") == "not distinguishable"
    enough = resample([*clusters, MIN_CLUSTERS], samples=100, seed=0)
    assert enough.interval(ratio_draws(np.ones(MIN_CLUSTERS), np.ones(MIN_CLUSTERS), enough)) == (1, 1, 1)


@pytest.mark.parametrize(
    ("bounds", "higher", "lower"),
    [
        ((0.1, 0.3), "beats", "below"),
        ((-0.3, -0.1), "below", "beats"),
        ((-0.1, 0.3), "not distinguishable", "not distinguishable"),
        ((0.0, 0.3), "not distinguishable", "not distinguishable"),  # the interval holds 0
    ],
)
def test_verdicts(bounds: tuple[float, float], higher: str, lower: str):
    interval = Interval(sum(bounds) / 2, *bounds)
    assert (verdict(interval, "higher"), verdict(interval, "lower")) == (higher, lower)


def test_wilson_by_hand():
    # 0 of 10: the upper bound is z^2 / (n + z^2) = 3.8415 / 13.8415
    assert wilson(0, 10) == pytest.approx((0.0, 0.0, 0.27753), abs=1e-5)
    assert wilson(5, 10) == pytest.approx((0.5, 0.23659, 0.76341), abs=1e-5)
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)
    with pytest.raises(ValueError, match="0 of 0"):
        wilson(0, 0)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_stays_in_bounds_and_is_symmetric(share: tuple[int, int]):
    k, n = share
    value, low, high = wilson(k, n)
    mirror = wilson(n - k, n)
    assert low is not None
    assert high is not None
    assert 0 <= low <= value <= high <= 1
    assert mirror.low == pytest.approx(1 - high)


@settings(deadline=None)
@given(ITEMS, st.integers(0, 5))
def test_draws_equal_the_plain_metrics_on_the_drawn_items(items: list[tuple[str, str, int]], seed: int):
    """Row 0 is the sample itself; every other row is the plain metric on items repeated by their cluster's weight."""
    gold, predicted, clusters = (list(column) for column in zip(*items, strict=True))
    resampling = resample(clusters, samples=8, seed=seed)
    assert np.all(resampling.weights_RC.sum(axis=1) == resampling.num_clusters)
    f1_R, accuracy_R = (draws(gold, predicted, resampling) for draws in (macro_f1_draws, accuracy_draws))
    for row, weights_C in enumerate(resampling.weights_RC):
        repeats = weights_C[resampling.cluster_N].astype(int)
        drawn_gold, drawn_predicted = (list(np.repeat(labels, repeats)) for labels in (gold, predicted))
        assert f1_R[row] == pytest.approx(macro_f1(drawn_gold, drawn_predicted))
        assert accuracy_R[row] == pytest.approx(accuracy(drawn_gold, drawn_predicted))


@settings(deadline=None)
@given(ITEMS)
def test_metrics_do_not_depend_on_order_or_names(items: list[tuple[str, str, int]]):
    gold, predicted = [item[0] for item in items], [item[1] for item in items]
    renamed = {"a": "z", "b": "y", "c": "x", "d": "w"}
    assert macro_f1(gold[::-1], predicted[::-1]) == pytest.approx(macro_f1(gold, predicted))
    assert macro_f1([renamed[label] for label in gold], [renamed[label] for label in predicted]) == pytest.approx(
        macro_f1(gold, predicted)
    )
    assert 0 <= macro_f1(gold, predicted) <= 1
    assert macro_f1(gold, gold) == 1


@settings(deadline=None)
@given(ITEMS, st.integers(0, 3))
def test_the_same_seed_draws_the_same(items: list[tuple[str, str, int]], seed: int):
    clusters = [item[2] for item in items]
    first, again = (resample(clusters, samples=5, seed=seed) for _ in range(2))
    assert np.array_equal(first.weights_RC, again.weights_RC)


def test_a_predictor_equals_itself_exactly():
    gold, predicted = list("abcabcabca"), list("abbabbabba")
    resampling = resample(range(10), samples=50, seed=0)
    draws = macro_f1_draws(gold, predicted, resampling)
    assert resampling.interval(draws - macro_f1_draws(gold, predicted, resampling)) == (0, 0, 0)
