"""Hashed n-grams of characters and words, kept by place, so that the sums of any run of words cost two look-ups."""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple
from zlib import crc32

import numpy as np

CHAR_SIZES = (3, 4, 5)
WORD_SIZES = (1, 2, 3)
_START, _PRIME = np.uint32(2_166_136_261), np.uint32(16_777_619)  # FNV-1
_FIFTEEN = np.uint32(15)


class Grams(NamedTuple):
    """N-grams of some words, or of their characters: for each size the hashes, by the first item of the n-gram."""

    sizes: tuple[int, ...]
    hashes: tuple[np.ndarray, ...]  # int64
    starts_W: np.ndarray  # the first item of each word, the space before it included; of words the word itself
    ends_W: np.ndarray  # after the last item of each, the space after it included

    def all(self) -> np.ndarray:
        """Every hash, repeated ones too."""
        return np.concatenate(self.hashes)

    def sums(self, weights_DK: np.ndarray, first_N: np.ndarray, last_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each run of words `first` to `last` (included) the sum of its n-grams' weights (N, K), and their number (N)."""
        start_N, end_N = self.starts_W[first_N], self.ends_W[last_N]
        sum_NK, num_N = np.zeros((len(first_N), weights_DK.shape[1])), np.zeros(len(first_N))
        for size, hashes in zip(self.sizes, self.hashes, strict=True):
            up_to_K = np.zeros((len(hashes) + 1, weights_DK.shape[1]))
            np.cumsum(weights_DK[hashes], axis=0, out=up_to_K[1:])
            begin_N = np.minimum(start_N, len(hashes))
            stop_N = np.maximum(begin_N, end_N - size + 1)
            sum_NK += up_to_K[stop_N] - up_to_K[begin_N]
            num_N += stop_N - begin_N
        return sum_NK, num_N


def word_grams(words: Sequence[str], num_places: int) -> Grams:
    """N-grams of words, hashed into so many places (a power of two)."""
    places = np.arange(len(words))
    return Grams(WORD_SIZES, _grams(hashes(words), WORD_SIZES, num_places), places, places + 1)


def char_grams(words: Sequence[str], num_places: int) -> Grams:
    """N-grams of the UTF-8 bytes of words with one space around each."""
    encoded = [word.encode("utf-8", "replace") for word in words]
    codes = np.frombuffer(b" " + b" ".join(encoded) + b" ", np.uint8).astype(np.uint32)
    starts = np.array([0, *accumulate(len(word) + 1 for word in encoded)])
    return Grams(CHAR_SIZES, _grams(codes, CHAR_SIZES, num_places), starts[:-1], starts[1:] + 1)


def hashes(names: Sequence[str]) -> np.ndarray:
    """A hash of each, uint32."""
    return np.fromiter((crc32(name.encode("utf-8", "replace")) for name in names), np.uint32, len(names))


def pairs(hashes_N: np.ndarray) -> np.ndarray:
    """A hash of each pair in the order given, uint32."""
    first, second = _pairs_of(len(hashes_N))
    return _mixed(_mixed(_START, hashes_N[first]), hashes_N[second])


@lru_cache(256)
def _pairs_of(count: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(count, 1)


def folded(hashes_N: np.ndarray, num_places: int) -> np.ndarray:
    """Hashes among so many places, int64."""
    return (hashes_N & np.uint32(num_places - 1)).astype(np.int64)


def _grams(codes_N: np.ndarray, sizes: tuple[int, ...], num_places: int) -> tuple[np.ndarray, ...]:
    found = []
    for size in sizes:
        count = max(0, len(codes_N) - size + 1)
        hashed = np.full(count, _START + np.uint32(size), np.uint32)
        for at in range(size):
            hashed = _mixed(hashed, codes_N[at : at + count])
        found.append(folded(hashed, num_places))
    return tuple(found)


def _mixed(hashed, code):
    mixed = (hashed ^ code) * _PRIME
    return mixed ^ (mixed >> _FIFTEEN)
