"""Scores with intervals: cluster bootstrap over conversations, paired by construction; Wilson for plain shares.

Axes: N items, C clusters (conversations), R = 1 + resamples, L labels, K quantities. Turns of one conversation are not
independent, so whole conversations are drawn, with replacement. Every metric here is a function of sums over items;
a `Resampling` gives each sum once as it is (row 0) and once per resample. Two metrics on the same items share the
resamples: the difference of their draws is the paired bootstrap.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Verdict = Literal["beats", "below", "not distinguishable"]
Better = Literal["higher", "lower"]

CONFIDENCE = 0.95  # of every interval
# With 5 clusters that all lie on one side, a sign test still gives p = 2 / 2^5 = 0.06: no honest interval at 95 %.
MIN_CLUSTERS = 6


class Interval(NamedTuple):
    """An estimate and its 95 % interval; without one (None) where there are too few conversations to say."""

    value: float
    low: float | None
    high: float | None


class LabelScore(NamedTuple):
    """One label: precision tp / predicted, recall tp / support, f1 2 tp / (support + predicted); 0 for 0 / 0."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int  # items whose gold label it is
    predicted: int  # items for which it was predicted


class F1Draws(NamedTuple):
    macro: Floats  # R
    micro: Floats  # R


@dataclass(frozen=True)
class Resampling:
    """How often each cluster counts: once in row 0, multinomially in every other row."""

    cluster_N: NDArray[np.intp]
    weights_RC: Floats

    @property
    def num_clusters(self) -> int:
        return self.weights_RC.shape[1]

    def sums(self, values: ArrayLike) -> Floats:
        """Sums over items of `values` (N or N x K), for every row of weights (R or R x K)."""
        values_NK = np.asarray(values, dtype=np.float64)
        cluster_sums = np.zeros((self.num_clusters, *values_NK.shape[1:]))
        np.add.at(cluster_sums, self.cluster_N, values_NK)
        return self.weights_RC @ cluster_sums

    def interval(self, draws_R: Floats) -> Interval:
        """The estimate (draw 0) with the percentile interval of the other draws."""
        value = float(draws_R[0])
        if self.num_clusters < MIN_CLUSTERS:
            return Interval(value, None, None)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.quantile(draws_R[1:], (tail, 1 - tail))
        return Interval(value, float(low), float(high))


def resample(clusters: Sequence[Hashable], *, samples: int, seed: int) -> Resampling:
    """Draw as many clusters as there are, with replacement, `samples` times. Same clusters and seed: same draws."""
    if not clusters:
        raise ValueError("nothing to resample: no items")
    numbers: dict[Hashable, int] = {}
    cluster_N = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters], dtype=np.intp)
    num = len(numbers)
    weights_RC = np.ones((1 + samples, num))
    weights_RC[1:] = np.random.default_rng(seed).multinomial(num, np.full(num, 1 / num), size=samples)
    return Resampling(cluster_N, weights_RC)


def ratio_draws(numerators: ArrayLike, denominators: ArrayLike, resampling: Resampling) -> Floats:
    """Draws of sum(numerators) / sum(denominators), as loss per token; with denominators of 1, of a mean."""
    return resampling.sums(numerators) / resampling.sums(denominators)


def accuracy_draws(gold: Sequence[str], predicted: Sequence[str], resampling: Resampling) -> Floats:
    hits = [right == guess for right, guess in zip(gold, predicted, strict=True)]
    return ratio_draws(hits, np.ones(len(hits)), resampling)


def macro_f1_draws(gold: Sequence[str], predicted: Sequence[str], resampling: Resampling) -> Floats:
    """Draws of macro-F1; in each, over the labels that occur in that draw."""
    _, gold_NL, predicted_NL = _indicators(gold, predicted)
    return f1_draws(gold_NL, predicted_NL, resampling).macro


def f1_draws(gold_NL: Floats, predicted_NL: Floats, resampling: Resampling) -> F1Draws:
    """Draws of F1 where an item has any number of labels: macro over the labels that occur in a draw, micro over all."""
    # Of each conversation's confusion matrix only the diagonal and the two margins matter.
    hits_RL = resampling.sums(gold_NL * predicted_NL)
    occurrences_RL = resampling.sums(gold_NL) + resampling.sums(predicted_NL)
    occurs_RL = occurrences_RL > 0
    f1_RL = 2 * hits_RL / np.where(occurs_RL, occurrences_RL, 1)
    return F1Draws(
        macro=f1_RL.sum(axis=1) / np.maximum(occurs_RL.sum(axis=1), 1),
        micro=2 * hits_RL.sum(axis=1) / np.maximum(occurrences_RL.sum(axis=1), 1),
    )


def accuracy(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The share of items whose prediction is the gold label."""
    if not gold:
        raise ValueError("nothing to score: no items")
    return sum(right == guess for right, guess in zip(gold, predicted, strict=True)) / len(gold)


def macro_f1(gold: Sequence[str], predicted: Sequence[str]) -> float:
    """The unweighted mean of F1 over the labels that occur in gold or predictions.

    >>> round(macro_f1(["a", "a", "b"], ["a", "b", "b"]), 3)
    0.667
    """
    if not gold:
        raise ValueError("nothing to score: no items")
    scores = per_label(gold, predicted)
    return sum(score.f1 for score in scores) / len(scores)


def per_label(gold: Sequence[str], predicted: Sequence[str]) -> tuple[LabelScore, ...]:
    """Each label that occurs in gold or predictions, the most frequent in gold first."""
    return label_scores(*_indicators(gold, predicted))


def label_scores(labels: Sequence[str], gold_NL: Floats, predicted_NL: Floats) -> tuple[LabelScore, ...]:
    """Each label by its columns of ones and zeros, the most frequent in gold first; those that never occur are left out."""
    columns = zip(
        labels, (gold_NL * predicted_NL).sum(axis=0), gold_NL.sum(axis=0), predicted_NL.sum(axis=0), strict=True
    )
    scores = [
        LabelScore(
            label,
            precision=float(hits / max(num_predicted, 1)),
            recall=float(hits / max(support, 1)),
            f1=float(2 * hits / (support + num_predicted)),
            support=int(support),
            predicted=int(num_predicted),
        )
        for label, hits, support, num_predicted in columns
        if support or num_predicted
    ]
    return tuple(sorted(scores, key=lambda score: (-score.support, score.label)))


def wilson(k: int, n: int) -> Interval:
    """A share k / n of independent trials with its Wilson score interval (Wilson 1927), 95 %.

    >>> [round(number, 3) for number in wilson(9, 10) if number is not None]
    [0.9, 0.596, 0.982]
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"{k} of {n} is not a share")
    z = 1.959963984540054  # of the normal distribution at 97.5 %
    share = k / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # At k = 0 and k = n the bound is exactly 0 or 1; rounding may land beside it.
    low = 0.0 if k == 0 else centre - half
    high = 1.0 if k == n else centre + half
    return Interval(share, low, high)


def verdict(difference: Interval, better: Better) -> Verdict:
    """What an interval of a difference (ours minus the other's) says; "below" always means worse.

    >>> verdict(Interval(-0.2, -0.3, -0.1), "lower")
    'beats'
    """
    if difference.low is None or difference.high is None:
        return "not distinguishable"
    if difference.low > 0:
        return "beats" if better == "higher" else "below"
    if difference.high < 0:
        return "below" if better == "higher" else "beats"
    return "not distinguishable"


def _indicators(gold: Sequence[str], predicted: Sequence[str]) -> tuple[list[str], Floats, Floats]:
    """The labels that occur, and for gold and predictions one column per label that is 1 where it stands."""
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} gold labels but {len(predicted)} predictions")
    labels = sorted({*gold, *predicted})
    eye_LL = np.eye(len(labels))
    column = {label: number for number, label in enumerate(labels)}
    return labels, eye_LL[[column[label] for label in gold]], eye_LL[[column[label] for label in predicted]]
