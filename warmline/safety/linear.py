"""A small linear model of risk over hashed n-grams, for what no rule says: numpy and one file of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import numpy as np

from warmline.safety.grams import char_grams, folded, hashes, pairs, word_grams
from warmline.safety.levels import DOMAINS
from warmline.safety.matcher import Reading, reading_of
from warmline.safety.windows import Window, row

NUM_CHARS, NUM_WORDS, NUM_CLASSES = 1 << 17, 1 << 18, 1 << 14  # hashed features of each kind
DIM = NUM_CHARS + NUM_WORDS + NUM_CLASSES  # characters, then words, then classes
SHARE = (1.0, 1.5, 0.5)  # length of each kind's part of a message's features; chosen by leaving families out
DOMAIN_DIM = 1 << 15  # of the features that the domains are read from: the index modulo this


class Features(NamedTuple):
    """Hashed features of a message: where, and how much. A feature that occurs twice stands there twice."""

    column: np.ndarray  # int64, in [0, DIM)
    value: np.ndarray  # float32


@dataclass(frozen=True)
class Linear:
    """Ordinal logistic regression: `level_DK` holds the weights of P(level >= k) for k in 1 to 3."""

    level_DK: np.ndarray
    level_bias_K: np.ndarray
    domain_ND: np.ndarray
    domain_bias_N: np.ndarray

    def logits(self, reading: Reading, windows: Sequence[Window]) -> np.ndarray:
        """Log-odds of level >= 1, 2 and 3 of each window, shape (windows, 3), float64.

        The same as of its `features`, but what windows share is hashed and looked up once.
        """
        words = row(reading.words)
        if not words:
            return np.tile(self.level_bias_K, (len(windows), 1))
        first_W = np.array([each.start for each in windows])
        last_W = np.array([each.end - 1 for each in windows])
        total_WK = np.tile(self.level_bias_K.astype(np.float64), (len(windows), 1))
        kinds = (char_grams(words, NUM_CHARS), 0), (word_grams(words, NUM_WORDS), NUM_CHARS)
        for (found, at), share in zip(kinds, SHARE, strict=False):
            sum_WK, num_W = found.sums(self.level_DK[at:], first_W, last_W)
            total_WK += share * sum_WK / np.sqrt(np.maximum(num_W, 1))[:, None]
        for number, window in enumerate(windows):
            is_whole = window.last - window.first + 1 == len(reading.sentences) and not window.is_passage
            part = reading if is_whole else reading_of(reading.sentences[window.first : window.last + 1])
            told = NUM_CHARS + NUM_WORDS + _told(part)
            total_WK[number] += self.level_DK[told].sum(axis=0) * SHARE[2] / np.sqrt(max(len(told), 1))
        return total_WK

    def domain(self, reading: Reading) -> str:
        """The likeliest domain."""
        found = features(reading)
        index = found.column & (DOMAIN_DIM - 1)
        return DOMAINS[int(np.argmax(self.domain_ND[:, index] @ found.value + self.domain_bias_N))]


@cache
def load_linear() -> Linear:
    """The shipped weights. Raises OSError, KeyError or ValueError when they are missing or broken."""
    with files("warmline.safety").joinpath("weights/linear.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        level_DK = np.ascontiguousarray(stored["level"].astype(np.float32).T)
        return Linear(level_DK, stored["level_bias"], stored["domain"].astype(np.float32), stored["domain_bias"])


def features(reading: Reading) -> Features:
    """Features of a message: characters of its words, words, and what the rules found."""
    words = row(reading.words)
    told = NUM_CHARS + NUM_WORDS + _told(reading)
    kinds = char_grams(words, NUM_CHARS).all(), NUM_CHARS + word_grams(words, NUM_WORDS).all(), told
    values = [share / np.sqrt(max(len(kind), 1)) for kind, share in zip(kinds, SHARE, strict=True)]
    return Features(np.concatenate(kinds), np.repeat(np.array(values, np.float32), [len(kind) for kind in kinds]))


def _told(reading: Reading) -> np.ndarray:
    """Places of what the rules said, of the classes that stand in the message and of pairs of these."""
    said = {f"={part}" for frame in reading.frames for part in (frame.rule, frame.rule[:-3])}
    said |= {f"!{frame.rule[:-3]}" for frame in reading.denied}
    said |= {f"~{name}" for name in reading.signals | reading.contexts | reading.stances}
    classes = hashes([f"#{name}" for name in sorted({name for each in reading.sentences for name in each.classes})])
    return np.unique(folded(np.concatenate([hashes(sorted(said)), classes, pairs(classes)]), NUM_CLASSES))
