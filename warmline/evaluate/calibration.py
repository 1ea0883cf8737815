"""Whether a head's probabilities can be trusted: calibration errors, proper scores, and what abstaining is worth.

Axes: N items, L labels, M bins, R = 1 + resamples (see stats.py). The *confidence* of an item is the probability of its
predicted label, the one with the largest probability.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from warmline.evaluate.stats import Floats, Interval, Resampling, ratio_draws, wilson

NUM_BINS = 15  # as in Guo et al. 2017
COVERAGES = (0.5, 0.8, 0.9)  # shares of items answered, of which the accuracy is reported
NUM_CURVE_POINTS = 40  # of an abstain curve, at most
SMALLEST = 5e-7  # rows hold six decimals: a probability that reads 0 is below this
ROWS_AT_ONCE = 64  # resamples whose curves exist at one time

Ints = NDArray[np.intp]


class ReliabilityPoint(NamedTuple):
    """One equal-mass bin of a reliability curve."""

    n: int
    confidence: float  # mean
    accuracy: Interval  # Wilson's, which takes the items for independent


class AbstainPoint(NamedTuple):
    """If only items of at least this confidence are answered."""

    threshold: float
    coverage: float  # the share of items answered
    accuracy: float  # of those


class Judged(NamedTuple):
    """Items as calibration sees them."""

    confidence_N: Floats
    correct_N: Floats  # 1 or 0


def judged(gold: Sequence[str], readings: Sequence[Mapping[str, float]]) -> Judged:
    """Confidence and correctness of the label with the largest probability; of equal ones the first.

    >>> judged(["a", "b"], [{"a": 0.75, "b": 0.25}, {"a": 0.5, "b": 0.5}])
    Judged(confidence_N=array([0.75, 0.5 ]), correct_N=array([1., 0.]))
    """
    tops = [max(reading, key=reading.__getitem__) for reading in readings]
    confidence_N = np.array([reading[top] for reading, top in zip(readings, tops, strict=True)], dtype=np.float64)
    correct_N = np.array([top == right for top, right in zip(tops, gold, strict=True)], dtype=np.float64)
    return Judged(confidence_N, correct_N)


def sums_to_one(readings: Sequence[Mapping[str, float]]) -> bool:
    """Whether these are distributions over labels (softmax, ordinal), not one probability per label (sigmoid)."""
    return all(abs(sum(reading.values()) - 1) < 0.01 for reading in readings)


def equal_width_bins(confidence_N: Floats, num_bins: int = NUM_BINS) -> Ints:
    """The bin of each item: bin m holds confidences in (m / num_bins, (m + 1) / num_bins] (Guo et al. 2017)."""
    return np.clip(np.ceil(confidence_N * num_bins).astype(np.intp) - 1, 0, num_bins - 1)


def equal_mass_bins(confidence_N: Floats, num_bins: int = NUM_BINS) -> Ints:
    """The bin of each item: of N sorted by confidence, bin m begins at rank N m / num_bins (Nguyen and O'Connor 2015).

    Items of one confidence stay together, in the bin of the first of them, so that their order makes no difference.
    """
    first_rank_N = np.searchsorted(np.sort(confidence_N), confidence_N, side="left")
    return first_rank_N * num_bins // len(confidence_N)


def ece_draws(items: Judged, bin_N: Ints, resampling: Resampling) -> Floats:
    """Draws of the expected calibration error: sum over bins of |B| / N * |accuracy(B) - mean confidence(B)|.

    Naeini et al. 2015; Guo et al. 2017, equation 3. Bins are those of the items as they are. The error is an absolute
    value: small samples overstate it, and resamples of them more so.
    """
    _, column_N = np.unique(bin_N, return_inverse=True)
    gaps_NM = np.zeros((len(column_N), column_N.max() + 1))
    gaps_NM[np.arange(len(column_N)), column_N] = items.correct_N - items.confidence_N
    return np.abs(resampling.sums(gaps_NM)).sum(axis=1) / resampling.sums(np.ones(len(column_N)))


def reliability(items: Judged, num_bins: int = NUM_BINS) -> tuple[ReliabilityPoint, ...]:
    """The reliability curve over equal-mass bins, least confident first; empty bins have no point."""
    bin_N = equal_mass_bins(items.confidence_N, num_bins)
    points = []
    for number in np.unique(bin_N):
        inside = bin_N == number
        n = int(inside.sum())
        accuracy = wilson(int(items.correct_N[inside].sum()), n)
        points.append(ReliabilityPoint(n, float(items.confidence_N[inside].mean()), accuracy))
    return tuple(points)


def brier_draws(gold: Sequence[str], readings: Sequence[Mapping[str, float]], resampling: Resampling) -> Floats:
    """Draws of the mean over items of sum over labels of (p - y)^2 (Brier 1950: from 0 to 2)."""
    scores = []
    for right, reading in zip(gold, readings, strict=True):
        missing = 0.0 if right in reading else 1.0  # a label that the head does not know has probability 0
        scores.append(missing + sum((p - (label == right)) ** 2 for label, p in reading.items()))
    return ratio_draws(scores, np.ones(len(scores)), resampling)


def nll_draws(gold: Sequence[str], readings: Sequence[Mapping[str, float]], resampling: Resampling) -> Floats:
    """Draws of the mean negative log-likelihood of the gold label, in nats; probabilities count as at least 5e-7."""
    losses = [-math.log(max(reading.get(right, 0.0), SMALLEST)) for right, reading in zip(gold, readings, strict=True)]
    return ratio_draws(losses, np.ones(len(losses)), resampling)


def aurc_draws(items: Judged, resampling: Resampling) -> Floats:
    """Draws of the area under the risk-coverage curve (Geifman and El-Yaniv 2017); lower is better.

    The mean over coverages of the error rate among the most confident items. A threshold answers all items of one
    confidence or none: for each distinct confidence the coverage that it adds, times the error rate down to it. A
    confidence that ranks nothing gives the error rate itself.
    """
    return np.concatenate([_areas(answered, wrong) for answered, wrong in _curves(items, resampling)])


def accuracy_at_draws(items: Judged, coverage: float, resampling: Resampling) -> Floats:
    """Draws of the accuracy among the most confident items, at the least share answered that reaches `coverage`."""
    found = []
    for answered_RG, wrong_RG in _curves(items, resampling):
        reached_RG = answered_RG >= coverage * answered_RG[:, -1:] - 1e-9
        at_R = reached_RG.argmax(axis=1)[:, None]
        wrong_R, answered_R = (np.take_along_axis(each, at_R, axis=1)[:, 0] for each in (wrong_RG, answered_RG))
        found.append(1 - wrong_R / answered_R)
    return np.concatenate(found)


def abstain_curve(items: Judged) -> tuple[AbstainPoint, ...]:
    """Accuracy by share of items answered, the most confident first; thinned to at most NUM_CURVE_POINTS points."""
    order = np.argsort(-items.confidence_N, kind="stable")
    confidence_N, correct_N = items.confidence_N[order], items.correct_N[order]
    ends = _ends(confidence_N)
    if len(ends) > NUM_CURVE_POINTS:
        shares = np.arange(1, NUM_CURVE_POINTS + 1) / NUM_CURVE_POINTS * len(order)
        ends = np.unique(ends[np.searchsorted(ends + 1, shares - 1e-9)])
    hits_N = np.cumsum(correct_N)
    return tuple(
        AbstainPoint(float(confidence_N[end]), (int(end) + 1) / len(order), float(hits_N[end]) / (int(end) + 1))
        for end in ends
    )


def _ends(sorted_N: Floats) -> Ints:
    """The index of the last item of each run of equal values."""
    return np.append(np.flatnonzero(np.diff(sorted_N)), len(sorted_N) - 1)


def _curves(items: Judged, resampling: Resampling):
    """Some rows of weights at a time: how many items are answered, and answered wrongly, down to each confidence."""
    order = np.argsort(-items.confidence_N, kind="stable")
    ends = _ends(items.confidence_N[order])
    cluster_N, wrong_N = resampling.cluster_N[order], 1 - items.correct_N[order]
    for start in range(0, len(resampling.weights_RC), ROWS_AT_ONCE):
        weights_RN = resampling.weights_RC[start : start + ROWS_AT_ONCE][:, cluster_N]
        yield np.cumsum(weights_RN, axis=1)[:, ends], np.cumsum(weights_RN * wrong_N, axis=1)[:, ends]


def _areas(answered_RG: Floats, wrong_RG: Floats) -> Floats:
    added_RG = np.diff(answered_RG, axis=1, prepend=0)
    risk_RG = wrong_RG / np.maximum(answered_RG, 1)
    return (added_RG * risk_RG).sum(axis=1) / answered_RG[:, -1]
