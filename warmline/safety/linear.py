"""A small linear model of risk over hashed n-grams, for what no rule says: numpy and one file of weights."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import pairwise
from zlib import crc32

import numpy as np

from warmline.safety.levels import DOMAINS
from warmline.safety.matcher import Reading

NUM_CHARS, NUM_WORDS, NUM_CLASSES = 1 << 17, 1 << 18, 1 << 14  # hashed features of each kind
DIM = NUM_CHARS + NUM_WORDS + NUM_CLASSES
SHARE = (1.0, 1.5, 0.5)  # length of each kind's part of a message's features; chosen by leaving families out
DOMAIN_DIM = 1 << 15  # of the features that the domains are read from: the index modulo this
CHAR_SIZES = (3, 4, 5)
_PRIME = np.uint32(0x01000193)  # FNV-1


@dataclass(frozen=True)
class Features:
    """Hashed features of a text: where, and how much."""

    index: np.ndarray  # int64, in [0, DIM): characters, then words, then classes
    value: np.ndarray  # float32


@dataclass(frozen=True)
class Linear:
    """Ordinal logistic regression: `level_KD` holds the weights of P(level >= k) for k in 1 to 3."""

    level_KD: np.ndarray
    level_bias_K: np.ndarray
    domain_ND: np.ndarray
    domain_bias_N: np.ndarray

    def logits(self, features: Features) -> np.ndarray:
        """Log-odds of level >= 1, 2 and 3, float64."""
        return self.level_KD[:, features.index].astype(np.float64) @ features.value + self.level_bias_K

    def domain(self, features: Features) -> str:
        """The likeliest domain."""
        index = features.index & (DOMAIN_DIM - 1)
        return DOMAINS[int(np.argmax(self.domain_ND[:, index] @ features.value + self.domain_bias_N))]


@cache
def load_linear() -> Linear:
    """The shipped weights. Raises OSError, KeyError or ValueError when they are missing or broken."""
    with files("warmline.safety").joinpath("weights/linear.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        level_KD, domain_ND = stored["level"].astype(np.float32), stored["domain"].astype(np.float32)
        return Linear(level_KD, stored["level_bias"], domain_ND, stored["domain_bias"])


def features(reading: Reading) -> Features:
    """Features of what was read of a message: characters of its words, words, and the classes that stand in them."""
    words = [word for sentence in reading.words for word in ("<", *sentence, ">")]
    kinds = (
        characters(reading.words),
        NUM_CHARS + hashes(ngrams(words), NUM_WORDS),
        NUM_CHARS + NUM_WORDS + hashes(_classes(reading), NUM_CLASSES),
    )
    values = [np.full(len(kind), share / np.sqrt(max(len(kind), 1))) for kind, share in zip(kinds, SHARE, strict=True)]
    return Features(np.concatenate(kinds), np.concatenate(values).astype(np.float32))


def characters(sentences: Iterable[Sequence[str]]) -> np.ndarray:
    """Hashes of the character n-grams, words bounded by one space. Unique."""
    text = " " + " ".join(word for sentence in sentences for word in sentence) + " "
    codes = np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.uint32)
    found = [np.zeros(0, np.uint32)]
    for size in CHAR_SIZES:
        if len(codes) < size:
            break
        hashed = np.full(len(codes) - size + 1, 2166136261 + size, np.uint32)
        for at in range(size):
            hashed = (hashed ^ codes[at : len(codes) - size + 1 + at]) * _PRIME
        found.append((hashed ^ (hashed >> np.uint32(17))) & np.uint32(NUM_CHARS - 1))
    return np.unique(np.concatenate(found)).astype(np.int64)


def ngrams(words: Sequence[str]) -> set[str]:
    grams = set(words)
    grams.update(f"{a} {b}" for a, b in pairwise(words))
    grams.update(f"{a} {b} {c}" for a, b, c in zip(words, words[1:], words[2:], strict=False))
    return grams


def _classes(reading: Reading) -> set[str]:
    """Classes, pairs of classes, and what the rules said."""
    seen = list(dict.fromkeys(reading.classes))
    said = {f"={part}" for frame in reading.frames for part in (frame.rule, frame.rule[:-3])}
    said |= {f"!{frame.rule[:-3]}" for frame in reading.denied}
    said |= {f"~{name}" for name in reading.signals | reading.contexts | reading.stances}
    return said | {f"#{name}" for name in seen} | {f"{a}+{b}" for a in seen for b in seen if a < b}


def hashes(grams: Iterable[str], size: int) -> np.ndarray:
    return np.array(sorted({crc32(gram.encode("utf-8", "replace")) & (size - 1) for gram in grams}), np.int64)
