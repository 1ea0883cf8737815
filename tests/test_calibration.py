"""Calibration against slow direct definitions, and against scikit-learn where it has the same function."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from warmline.evaluate.calibration import (
    COVERAGES,
    NUM_CURVE_POINTS,
    Judged,
    abstain_curve,
    accuracy_at_draws,
    aurc_draws,
    brier_draws,
    ece_draws,
    equal_mass_bins,
    equal_width_bins,
    judged,
    nll_draws,
    reliability,
    sums_to_one,
)
from warmline.evaluate.stats import Resampling, resample, wilson

LABELS = ("a", "b", "c")
# few distinct confidences, so that ties are common
ITEMS = st.lists(st.tuples(st.integers(0, 20).map(lambda n: n / 20), st.booleans()), min_size=1, max_size=40)


def items_of(pairs: list[tuple[float, bool]]) -> Judged:
    confidence, correct = zip(*pairs, strict=True)
    return Judged(np.array(confidence, dtype=float), np.array(correct, dtype=float))


def resampling_of(num: int, per_cluster: int = 3) -> Resampling:
    return resample([number // per_cluster for number in range(num)], samples=100, seed=3)


def repeated(items: Judged, resampling: Resampling, row: int) -> Judged:
    """The items as that row of weights draws them, copies and all."""
    times = resampling.weights_RC[row, resampling.cluster_N].astype(int)
    return Judged(np.repeat(items.confidence_N, times), np.repeat(items.correct_N, times))


def slow_ece(items: Judged, bins: list[int]) -> float:
    error = 0.0
    for number in set(bins):
        inside = [at for at, each in enumerate(bins) if each == number]
        accuracy = sum(items.correct_N[at] for at in inside) / len(inside)
        confidence = sum(items.confidence_N[at] for at in inside) / len(inside)
        error += len(inside) / len(bins) * abs(accuracy - confidence)
    return error


def slow_aurc(items: Judged) -> float:
    """Every threshold in turn: what it adds to the coverage, times the error rate of what it answers."""
    area, before = 0.0, 0
    for threshold in sorted(set(items.confidence_N), reverse=True):
        answered = items.correct_N[items.confidence_N >= threshold]
        area += (len(answered) - before) / len(items.correct_N) * (1 - answered.mean())
        before = len(answered)
    return area


def slow_accuracy_at(items: Judged, coverage: float) -> float:
    for threshold in sorted(set(items.confidence_N), reverse=True):
        answered = items.correct_N[items.confidence_N >= threshold]
        if len(answered) >= coverage * len(items.correct_N) - 1e-9:
            return float(answered.mean())
    raise AssertionError("the lowest threshold answers all")


@settings(deadline=None, max_examples=50)
@given(ITEMS)
def test_ece_is_its_definition_in_every_resample(pairs: list[tuple[float, bool]]) -> None:
    items, resampling = items_of(pairs), resampling_of(len(pairs))
    for bin_N in (equal_width_bins(items.confidence_N), equal_mass_bins(items.confidence_N)):
        draws = ece_draws(items, bin_N, resampling)
        assert draws.shape == (101,)
        assert draws[0] == pytest.approx(slow_ece(items, bin_N.tolist()), abs=1e-12)
        drawn = repeated(items, resampling, 7)
        times = resampling.weights_RC[7, resampling.cluster_N].astype(int)
        assert draws[7] == pytest.approx(slow_ece(drawn, np.repeat(bin_N, times).tolist()), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(ITEMS)
def test_risk_and_coverage_are_their_definitions_in_every_resample(pairs: list[tuple[float, bool]]) -> None:
    items, resampling = items_of(pairs), resampling_of(len(pairs))
    areas = aurc_draws(items, resampling)
    assert areas.shape == (101,)
    for row in (0, 5, 100):
        drawn = repeated(items, resampling, row)
        assert areas[row] == pytest.approx(slow_aurc(drawn), abs=1e-12)
        for coverage in COVERAGES:
            draws = accuracy_at_draws(items, coverage, resampling)
            assert draws[row] == pytest.approx(slow_accuracy_at(drawn, coverage), abs=1e-12)


@settings(deadline=None, max_examples=50)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.randoms())
def test_without_ties_the_area_is_the_mean_risk_over_ranks(correct: list[bool], random) -> None:
    confidence = random.sample(range(1000), len(correct))
    items = Judged(np.array(confidence) / 1000, np.array(correct, dtype=float))
    ranked = [right for _, right in sorted(zip(confidence, correct, strict=True), reverse=True)]
    risks = [1 - sum(ranked[:k]) / k for k in range(1, len(ranked) + 1)]
    assert aurc_draws(items, resampling_of(len(correct)))[0] == pytest.approx(sum(risks) / len(risks))


def test_the_area_by_hand() -> None:
    """The best ranking, the worst, and none at all of two right and two wrong."""
    resampling = resampling_of(4, 1)

    def area(*confidence: float) -> float:
        return float(aurc_draws(Judged(np.array(confidence), np.array([1.0, 1.0, 0.0, 0.0])), resampling)[0])

    assert area(0.9, 0.8, 0.2, 0.1) == pytest.approx((0 + 0 + 1 / 3 + 1 / 2) / 4)
    assert area(0.1, 0.2, 0.8, 0.9) == pytest.approx((1 + 1 + 2 / 3 + 1 / 2) / 4)
    assert area(0.5, 0.5, 0.5, 0.5) == 0.5


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(0, 1000).map(lambda n: n / 1000), min_size=1, max_size=60), st.integers(1, 20))
def test_bins_hold_what_their_names_say(confidence: list[float], num_bins: int) -> None:
    confidence_N = np.array(confidence)
    for value, number in zip(confidence, equal_width_bins(confidence_N, num_bins), strict=True):
        exact = Fraction(round(value * 1000), 1000)
        expected = max(0, math.ceil(exact * num_bins) - 1)
        # a product that rounds at an edge may land beside it
        assert abs(int(number) - expected) <= (1 if (exact * num_bins).denominator == 1 else 0)
    mass_N = equal_mass_bins(confidence_N, num_bins)
    assert 0 <= mass_N.min() <= mass_N.max() < num_bins
    order = np.argsort(confidence_N, kind="stable")
    assert (np.diff(mass_N[order]) >= 0).all()
    if len(set(confidence)) == len(confidence):
        sizes = np.bincount(mass_N, minlength=num_bins)
        assert sizes.max() - sizes.min() <= 1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000), st.integers(6, 60))
def test_the_averages_in_equal_width_bins_are_scikit_learns(seed: int, num: int) -> None:
    random = np.random.default_rng(seed)
    items = Judged((random.permutation(num * 7)[:num] + 0.5) / (num * 7), random.integers(0, 2, num).astype(float))
    accuracy, confidence = calibration_curve(items.correct_N, items.confidence_N, n_bins=5)  # uniform bins
    bin_N = equal_width_bins(items.confidence_N, 5)
    assert np.allclose(accuracy, [items.correct_N[bin_N == number].mean() for number in np.unique(bin_N)])
    assert np.allclose(confidence, [items.confidence_N[bin_N == number].mean() for number in np.unique(bin_N)])


@settings(deadline=None, max_examples=50)
@given(ITEMS, st.integers(1, 12))
def test_reliability_points_add_up(pairs: list[tuple[float, bool]], num_bins: int) -> None:
    items = items_of(pairs)
    points = reliability(items, num_bins)
    assert sum(point.n for point in points) == len(pairs)
    assert sum(point.n * point.accuracy.value for point in points) == pytest.approx(items.correct_N.sum())
    assert sum(point.n * point.confidence for point in points) == pytest.approx(items.confidence_N.sum())
    assert all(point.accuracy == wilson(round(point.accuracy.value * point.n), point.n) for point in points)
    gap = sum(point.n * abs(point.accuracy.value - point.confidence) for point in points) / len(pairs)
    bins = equal_mass_bins(items.confidence_N, num_bins)
    assert gap == pytest.approx(ece_draws(items, bins, resampling_of(len(pairs)))[0])


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.lists(st.integers(1, 9), min_size=3, max_size=3)), min_size=1))
def test_proper_scores_are_scikit_learns(rows: list[tuple[str, list[int]]]) -> None:
    gold = [label for label, _ in rows]
    readings = [{label: n / sum(parts) for label, n in zip(LABELS, parts, strict=True)} for _, parts in rows]
    table = np.array([[reading[label] for label in LABELS] for reading in readings])
    resampling = resampling_of(len(rows))
    assert nll_draws(gold, readings, resampling)[0] == pytest.approx(log_loss(gold, table, labels=list(LABELS)))
    brier = brier_score_loss(gold, table, labels=list(LABELS))
    assert brier_draws(gold, readings, resampling)[0] == pytest.approx(brier)
    times = resampling.weights_RC[9, resampling.cluster_N]
    weighted = log_loss(gold, table, labels=list(LABELS), sample_weight=times)
    assert nll_draws(gold, readings, resampling)[9] == pytest.approx(weighted)


def test_a_label_that_the_head_does_not_know_is_a_miss_and_no_infinity() -> None:
    reading = {"a": 1.0, "b": 0.0}
    resampling = resampling_of(1)
    assert brier_draws(["z"], [reading], resampling)[0] == 2.0
    assert brier_draws(["b"], [reading], resampling)[0] == 2.0
    assert nll_draws(["z"], [reading], resampling)[0] == pytest.approx(-math.log(5e-7))
    assert judged(["z"], [reading]).correct_N.tolist() == [0.0]


def test_perfect_and_overconfident_heads_by_hand() -> None:
    resampling = resampling_of(10, 1)
    sure = Judged(np.full(10, 0.8), np.array([1.0] * 8 + [0.0] * 2))
    over = Judged(np.full(10, 1.0), sure.correct_N)
    for binned in (equal_width_bins, equal_mass_bins):
        assert ece_draws(sure, binned(sure.confidence_N), resampling)[0] == pytest.approx(0)
        assert ece_draws(over, binned(over.confidence_N), resampling)[0] == pytest.approx(0.2)


@settings(deadline=None, max_examples=50)
@given(ITEMS)
def test_the_abstain_curve_ends_at_everything_and_falls_in_confidence(pairs: list[tuple[float, bool]]) -> None:
    items = items_of(pairs)
    points = abstain_curve(items)
    assert points[-1].coverage == 1
    assert points[-1].accuracy == pytest.approx(items.correct_N.mean())
    assert len(points) == len({confidence for confidence, _ in pairs})
    for point in points:
        answered = items.correct_N[items.confidence_N >= point.threshold]
        assert point.coverage == pytest.approx(len(answered) / len(pairs))
        assert point.accuracy == pytest.approx(answered.mean())


def test_a_long_abstain_curve_is_thinned() -> None:
    items = Judged(np.arange(1, 401) / 401, np.ones(400))
    points = abstain_curve(items)
    assert len(points) == NUM_CURVE_POINTS
    assert (points[0].coverage, points[-1].coverage) == (1 / 40, 1)


def test_distributions_are_told_from_probabilities_of_single_labels() -> None:
    assert sums_to_one([{"a": 0.333333, "b": 0.333333, "c": 0.333333}])
    assert not sums_to_one([{"a": 0.5, "b": 0.5}, {"a": 0.1, "b": 0.2}])
