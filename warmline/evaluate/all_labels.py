"""The all-label emotion task: each label is predicted from its own threshold on, tuned on the validation split only."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from warmline.evaluate.calibration import sums_to_one
from warmline.evaluate.floors import Floors
from warmline.evaluate.held_out import Key, Row
from warmline.evaluate.metric import HEAD, metric
from warmline.evaluate.results import AllLabels
from warmline.evaluate.stats import Floats, Resampling, f1_draws, label_scores

Thresholds = Mapping[str, float | None]


@dataclass(frozen=True)
class Tuned:
    thresholds: Thresholds  # label -> predicted where p >= it; None: never
    num_rows: int
    num_left_out: int  # rows that stand in the scored split too


def tune(rows: Sequence[Row], scored: Collection[Key]) -> Tuned | None:
    """The threshold of each label with the highest F1 on `rows`, which are of the validation split; None without any.

    A row that is scored too is not looked at, whatever file it came from. Of equally good thresholds the highest is
    taken; a label that no row has is never predicted.
    """
    labelled = [row for row in rows if row.gold.emotion and row.readings.get("emotion")]
    kept = [row for row in labelled if row.key not in scored]
    if not kept:
        return None
    labels = list(kept[0].readings["emotion"])
    gold_NL, p_NL = _gold(kept, labels), _probabilities(kept, labels)
    thresholds = {label: best_threshold(gold_NL[:, at], p_NL[:, at]) for at, label in enumerate(labels)}
    return Tuned(thresholds, len(kept), len(labelled) - len(kept))


def best_threshold(gold_N: Floats, p_N: Floats) -> float | None:
    """The threshold t for which "p >= t" has the highest F1; None where nothing is gold.

    >>> best_threshold(np.array([1.0, 0.0, 1.0]), np.array([0.5, 0.2, 0.3]))
    0.3
    """
    if not gold_N.any():
        return None
    order = np.argsort(-p_N, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(p_N[order])), len(order) - 1)  # of runs of equal probabilities
    f1 = 2 * np.cumsum(gold_N[order])[ends] / (ends + 1 + gold_N.sum())
    return float(p_N[order][ends[f1.argmax()]])


def score_all_labels(
    rows: Sequence[Row], tuned: Tuned, floors: Floors, draw: Callable[[Sequence[tuple[str, str]]], Resampling]
) -> AllLabels | None:
    """Every row with an emotion label, those with one label too; None if no row was read."""
    labelled = [row for row in rows if row.gold.emotion]
    read = [row for row in labelled if row.readings.get("emotion")]
    if not read:
        return None
    labels = list(dict.fromkeys([*tuned.thresholds, *(label for row in read for label in row.gold.emotion)]))
    gold_NL, p_NL = _gold(read, labels), _probabilities(read, labels)
    never = np.inf
    at_least_L = [never if (t := tuned.thresholds.get(label)) is None else t for label in labels]
    predicted_NL = (p_NL >= np.array(at_least_L)).astype(np.float64)
    resampling = draw([(row.source, row.conversation) for row in read])
    guesses = {HEAD: predicted_NL} | floors.indicators(labels, len(read))
    draws = {who: f1_draws(gold_NL, guess_NL, resampling) for who, guess_NL in guesses.items()}
    return AllLabels(
        n=len(read),
        num_conversations=resampling.num_clusters,
        unscored=len(labelled) - len(read),
        tuned_on=tuned.num_rows,
        left_out_of_tuning=tuned.num_left_out,
        probabilities="softmax" if sums_to_one([row.readings["emotion"] for row in read]) else "sigmoid",
        thresholds=dict(tuned.thresholds),
        metrics={
            "macro_f1": metric({who: f1.macro for who, f1 in draws.items()}, resampling),
            "micro_f1": metric({who: f1.micro for who, f1 in draws.items()}, resampling),
        },
        labels=label_scores(labels, gold_NL, predicted_NL),
    )


def _gold(rows: Sequence[Row], labels: Sequence[str]) -> Floats:
    return np.array([[float(label in row.gold.emotion) for label in labels] for row in rows])


def _probabilities(rows: Sequence[Row], labels: Sequence[str]) -> Floats:
    """A label that the head does not know has probability 0."""
    return np.array([[row.readings["emotion"].get(label, 0.0) for label in labels] for row in rows])
