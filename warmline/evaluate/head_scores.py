"""What one head gets right: accuracy, macro-F1 or error beside floors, calibration, confusions."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from warmline.data.labels import AFFECTS
from warmline.evaluate.calibration import (
    COVERAGES,
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
from warmline.evaluate.floors import Floors, label_of
from warmline.evaluate.held_out import Row
from warmline.evaluate.metric import HEAD, metric
from warmline.evaluate.results import AbstainAt, Calibration, Head, ReliabilityBin
from warmline.evaluate.stats import Resampling, accuracy_draws, macro_f1_draws, per_label, ratio_draws

BASE_RATES = "base rates"  # the distribution of train's labels, whatever is said
UNRANKED = "unranked"  # the head's own accuracy if its confidence said nothing

Resample = Callable[[Sequence[tuple[str, str]]], Resampling]


def score_classified(head: str, rows: Sequence[Row], floors: Floors, draw: Resample) -> Head | None:
    """A head with one label per decision point; None if the stage has no reading of it or no row is labelled."""
    labelled = [(row, label) for row in rows if (label := label_of(head, row.gold)) is not None]
    read = [(row, label) for row, label in labelled if row.readings.get(head)]
    if not read:
        return None
    items = [row for row, _ in read]
    gold = [label for _, label in read]
    predicted = [max(row.readings[head], key=row.readings[head].__getitem__) for row in items]
    predictions = {HEAD: predicted} | floors.predictions(head, [row.gold for row in items])
    resampling = draw(clusters(items))
    metrics = {
        name: metric({who: draws(gold, guesses, resampling) for who, guesses in predictions.items()}, resampling)
        for name, draws in {"accuracy": accuracy_draws, "macro_f1": macro_f1_draws}.items()
    }
    return Head(
        n=len(items),
        num_conversations=resampling.num_clusters,
        unscored=len(labelled) - len(read),
        excluded_multi_label=sum(len(row.gold.emotion) > 1 for row in rows) if head == "emotion" else 0,
        metrics=metrics,
        labels=per_label(gold, predicted),
        calibration=_calibration(gold, [row.readings[head] for row in items], floors.counts.get(head), resampling),
        confusion=_confusion(gold, predicted),
    )


def score_affect(rows: Sequence[Row], floors: Floors, draw: Resample) -> Head | None:
    """Mean absolute errors of valence and arousal beside constants; None if the stage has no reading of them."""
    labelled = [(row, row.gold.affect) for row in rows if row.gold.affect is not None]
    read = [(row, gold) for row, gold in labelled if all(name in row.readings.get("affect", {}) for name in AFFECTS)]
    if not read:
        return None
    resampling = draw(clusters([row for row, _ in read]))
    ones = np.ones(len(read))
    metrics = {}
    for at, name in enumerate(AFFECTS):
        gold = np.array([affect[at] for _, affect in read])
        predictions = {HEAD: np.array([row.readings["affect"][name] for row, _ in read])}
        predictions |= {floor: np.full(len(read), constant[at]) for floor, constant in floors.affect.items()}
        errors = {who: ratio_draws(np.abs(guesses - gold), ones, resampling) for who, guesses in predictions.items()}
        metrics[f"{name}_mae"] = metric(errors, resampling, better="lower")
    return Head(
        n=len(read),
        num_conversations=resampling.num_clusters,
        unscored=len(labelled) - len(read),
        excluded_multi_label=0,
        metrics=metrics,
        labels=(),
    )


def _calibration(
    gold: Sequence[str],
    readings: Sequence[Mapping[str, float]],
    train_counts: Mapping[str, int] | None,
    resampling: Resampling,
) -> Calibration:
    items = judged(gold, readings)
    width_N, mass_N = equal_width_bins(items.confidence_N), equal_mass_bins(items.confidence_N)
    error_R = ratio_draws(1 - items.correct_N, np.ones(len(gold)), resampling)
    metrics = {
        "ece_equal_width": metric({HEAD: ece_draws(items, width_N, resampling)}, resampling, "lower"),
        "ece_equal_mass": metric({HEAD: ece_draws(items, mass_N, resampling)}, resampling, "lower"),
    }
    if sums_to_one(readings):
        guesses = {HEAD: readings}
        if train_counts:
            guesses[BASE_RATES] = [_base_rates(train_counts, readings[0])] * len(gold)
        for name, draws in {"brier": brier_draws, "nll": nll_draws}.items():
            found = {who: draws(gold, each, resampling) for who, each in guesses.items()}
            metrics[name] = metric(found, resampling, "lower")
    metrics["aurc"] = metric({HEAD: aurc_draws(items, resampling), UNRANKED: error_R}, resampling, "lower")
    for coverage in COVERAGES:
        found = {HEAD: accuracy_at_draws(items, coverage, resampling), UNRANKED: 1 - error_R}
        metrics[f"accuracy_at_{coverage}"] = metric(found, resampling)
    return Calibration(
        metrics=metrics,
        reliability=tuple(ReliabilityBin(**point._asdict()) for point in reliability(items)),
        abstain=tuple(AbstainAt(**point._asdict()) for point in abstain_curve(items)),
    )


def _base_rates(counts: Mapping[str, int], labels: Mapping[str, float]) -> dict[str, float]:
    """Train's frequencies, one more of each label: none is impossible."""
    known = dict.fromkeys([*labels, *counts])
    total = sum(counts.values()) + len(known)
    return {label: (counts.get(label, 0) + 1) / total for label in known}


def _confusion(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, dict[str, int]]:
    """How often each label was predicted where another, or it, was right; pairs that never were are left out."""
    counts = Counter(zip(gold, predicted, strict=True))
    return {
        right: {guess: counts[right, guess] for guess in sorted(set(predicted)) if counts[right, guess]}
        for right in sorted(set(gold))
    }


def clusters(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """The conversation of each row, within its source."""
    return [(row.source, row.conversation) for row in rows]
