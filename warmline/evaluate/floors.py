"""What can be predicted without reading anything: the floors that heads and replies have to beat, fitted on train only."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from warmline.data.conversation import Affect, Conversation
from warmline.evaluate.held_out import Gold, samples
from warmline.evaluate.word_floor import WordFloor, fit_words

MAJORITY = "majority"  # the most frequent label of train
CHANCE = "chance"  # a label drawn with train's frequencies, seeded: of independent guesses the best macro-F1
EVERY = "every label"  # of emotions: all at once, which beats chance where an item may have any number of labels
BIGRAM = "previous strategy"  # the label that most often follows the previous supporter turn's, in train
MEAN = "mean"  # of train
MEDIAN = "median"  # of train: no constant has a lower mean absolute error there

CHANCE_SEED = 0
CLASSIFIED = ("emotion", "situation", "strategy", "risk")  # heads with one label per item


@dataclass(frozen=True)
class Floors:
    """Predictors without a model. A head that has no label in train has no floor.

    `chance` keeps a head that only guesses from beating "majority" in macro-F1, where one constant label scores little.
    """

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # head -> label -> decision points of train
    next_strategy: Mapping[str, str] = field(default_factory=dict)  # previous strategy or START -> label
    affect: Mapping[str, Affect] = field(default_factory=dict)  # MEAN and MEDIAN -> the constant
    emotion_rates: Mapping[str, float] = field(default_factory=dict)  # label -> share of train's labelled points
    words: WordFloor | None = None  # of train's replies

    def predictions(self, head: str, golds: Sequence[Gold]) -> dict[str, list[str]]:
        """What each floor of a classified head predicts for the decision points `golds`."""
        counts = self.counts.get(head)
        if not counts:
            return {}
        majority = _most_frequent(counts)
        labels = sorted(counts)
        shares = np.array([counts[label] for label in labels]) / sum(counts.values())
        drawn = np.random.default_rng(CHANCE_SEED).choice(len(labels), size=len(golds), p=shares)
        floors = {MAJORITY: [majority] * len(golds), CHANCE: [labels[number] for number in drawn]}
        if head == "strategy":
            floors[BIGRAM] = [self.next_strategy.get(gold.previous_strategy or "", majority) for gold in golds]
        return floors

    def indicators(self, labels: Sequence[str], num: int) -> dict[str, NDArray[np.float64]]:
        """What each floor says of `num` turns that may have any number of emotions: ones and zeros, [num, labels].

        `chance` draws each label by itself with its frequency in train.
        """
        if not self.emotion_rates:
            return {}
        rates_L = np.array([self.emotion_rates.get(label, 0.0) for label in labels])
        majority = min(self.emotion_rates, key=lambda label: (-self.emotion_rates[label], label))
        majority_L = np.array([float(label == majority) for label in labels])
        drawn_NL = np.random.default_rng(CHANCE_SEED).random((num, len(labels))) < rates_L
        return {
            MAJORITY: np.tile(majority_L, (num, 1)),
            CHANCE: drawn_NL.astype(np.float64),
            EVERY: np.ones((num, len(labels))),
        }


def label_of(head: str, gold: Gold) -> str | None:
    """The one gold label of a classified head; None if unlabelled, or where several emotions are named."""
    if head == "emotion":
        return gold.emotion[0] if len(gold.emotion) == 1 else None
    label = getattr(gold, head)
    assert label is None or isinstance(label, str)
    return label


def fit_floors(conversations: Iterable[Conversation]) -> Floors:
    """Fit every floor on the train split, at the decision points that training learns from.

    Of two equally frequent labels the alphabetically first is predicted.
    """
    labels: dict[str, Counter[str]] = {head: Counter() for head in CLASSIFIED}
    followers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    affects: list[tuple[float, float]] = []
    emotions: Counter[str] = Counter()
    num_with_emotion = 0
    replies: list[str] = []
    for conversation in conversations:
        for sample in samples(conversation):
            gold = sample.gold
            replies += [sample.reply] if sample.reply else []
            for head, counts in labels.items():
                if (label := label_of(head, gold)) is not None:
                    counts[label] += 1
            if gold.strategy and gold.previous_strategy:
                followers[gold.previous_strategy][gold.strategy] += 1
            emotions.update(gold.emotion)
            num_with_emotion += bool(gold.emotion)
            if gold.affect:
                affects.append(gold.affect)
    return Floors(
        counts={head: dict(counts) for head, counts in labels.items() if counts},
        next_strategy={previous: _most_frequent(counts) for previous, counts in followers.items()},
        affect=_constants(affects),
        emotion_rates={label: count / num_with_emotion for label, count in emotions.items()},
        words=fit_words(replies) if replies else None,
    )


def _most_frequent(counts: Mapping[str, int]) -> str:
    return min(counts, key=lambda label: (-counts[label], label))


def _constants(affects: Sequence[tuple[float, float]]) -> dict[str, Affect]:
    if not affects:
        return {}
    valences, arousals = zip(*affects, strict=True)
    return {
        MEAN: Affect(fmean(valences), fmean(arousals)),
        MEDIAN: Affect(median(valences), median(arousals)),
    }
