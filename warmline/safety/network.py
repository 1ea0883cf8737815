"""A small network that reads words in their order, beside the linear model: numpy and one file of weights.

Gated convolutions (Dauphin et al. 2017, arXiv 1612.08083) over word and letter-group embeddings, each looking further than
the one before, with attention and maximum over the words. It sees order, which the linear model does not; together they
miss less than either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import chain
from typing import NamedTuple
from zlib import crc32

import numpy as np
from threadpoolctl import ThreadpoolController

from warmline.safety.windows import LAST

NUM_PIECES = 4_096  # hashed letter groups; 0 stands for none
PIECE = 3  # letters of a group
MAX_PIECES = 8  # of a word
MAX_WORDS = 80  # that are read at once; of more, the first and last half
DILATIONS = (1, 2, 4)  # words to each side of one that each layer sees besides it
PADDING, UNKNOWN = 0, 1  # ids of words


class Encoded(NamedTuple):
    """Rows of words, padded with place 0, which stands for no word; D: different words, P: pieces of each."""

    word_D: np.ndarray  # ids
    piece_DP: np.ndarray  # hashed letter groups
    place_BT: np.ndarray  # of each word of each row, among the D


@dataclass(frozen=True)
class Network:
    """The weights, float32. E: embedding and state, L: layers, V: words, P: pieces, K: level >= 1, 2, 3."""

    word_ids: Mapping[str, int]
    word_VE: np.ndarray
    piece_PE: np.ndarray
    filter_L3EF: np.ndarray  # F = 2E: what may be added to a state, then how much of it
    filter_bias_LF: np.ndarray
    attention_E: np.ndarray
    attention_bias: float
    output_KF: np.ndarray  # attended, then highest states
    output_bias_K: np.ndarray

    def logits(self, rows: Sequence[Sequence[str]]) -> np.ndarray:
        """Log-odds of level >= 1, 2 and 3 for each row of words: shape (rows, 3)."""
        with _threads().limit(limits=1, user_api="blas"):  # the products are too small for two, which would spin
            return self._logits(encode(rows, self.word_ids))

    def _logits(self, rows: Encoded) -> np.ndarray:
        real_BT1 = (rows.place_BT > 0)[..., None]
        num_D1 = np.maximum((rows.piece_DP > 0).sum(axis=1), 1)[:, None].astype(np.float32)
        embedded_DE = self.word_VE[rows.word_D] + self.piece_PE[rows.piece_DP].sum(axis=1) / num_D1
        state_BTE = embedded_DE[rows.place_BT] * real_BT1
        for weights, bias, dilation in zip(self.filter_L3EF, self.filter_bias_LF, DILATIONS, strict=True):
            state_BTE = (state_BTE + _gated(state_BTE, weights, bias, dilation)) * real_BT1
        scores_BT1 = np.where(real_BT1, (state_BTE @ self.attention_E)[..., None] + self.attention_bias, -1e9)
        weight_BT1 = np.exp(scores_BT1 - scores_BT1.max(axis=1, keepdims=True))
        weight_BT1 /= weight_BT1.sum(axis=1, keepdims=True)
        mean_BE = (weight_BT1 * state_BTE).sum(axis=1)
        most_BE = np.where(real_BT1, state_BTE, -1e9).max(axis=1)
        return np.concatenate([mean_BE, most_BE], axis=1) @ self.output_KF.T + self.output_bias_K


def _gated(state_BTE: np.ndarray, weights_3EF: np.ndarray, bias_F: np.ndarray, dilation: int) -> np.ndarray:
    """tanh(a) * sigmoid(b) of each word and its neighbours `dilation` words before and after it."""
    batch, length, size = state_BTE.shape
    padded = np.zeros((batch, length + 2 * dilation, size), np.float32)
    padded[:, dilation : dilation + length] = state_BTE
    near_BTG = np.concatenate([padded[:, at * dilation : at * dilation + length] for at in range(3)], axis=2)
    given_BTF = near_BTG.reshape(batch * length, 3 * size) @ weights_3EF.reshape(3 * size, -1) + bias_F
    given_BTF[:, size:] *= 0.5  # sigmoid(x) = (1 + tanh(x / 2)) / 2
    np.tanh(given_BTF, out=given_BTF)
    return (given_BTF[:, :size] * (0.5 + 0.5 * given_BTF[:, size:])).reshape(state_BTE.shape)


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def load_network() -> Network:
    """The shipped weights. Raises OSError, KeyError or ValueError when they are missing or broken."""
    with files("warmline.safety").joinpath("weights/network.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        words = str(stored["words"]).split("\n")
        arrays = {name: stored[name].astype(np.float32) for name in stored.files if name != "words"}
    bias = float(arrays.pop("attention_bias"))
    return Network(word_ids=ids_of(words), attention_bias=bias, **arrays)


def ids_of(words: Sequence[str]) -> dict[str, int]:
    """Ids of words in their order, after those of padding and of unknown words."""
    return {word: number + 2 for number, word in enumerate(words)}


def encode(rows: Sequence[Sequence[str]], word_ids: Mapping[str, int]) -> Encoded:
    """The rows as the network reads them."""
    read = [_read_of(words) for words in rows]
    places = {word: place for place, word in enumerate(dict.fromkeys(chain(*read)), 1)}
    word_D, piece_DP = np.zeros(len(places) + 1, np.int64), np.zeros((len(places) + 1, MAX_PIECES), np.int64)
    for word, place in places.items():
        word_D[place] = word_ids.get(word, UNKNOWN)
        found = pieces(word)
        piece_DP[place, : len(found)] = found
    place_BT = np.zeros((len(read), max(map(len, read))), np.int64)
    for number, words in enumerate(read):
        place_BT[number, : len(words)] = [places[word] for word in words]
    return Encoded(word_D, piece_DP, place_BT)


def _read_of(words: Sequence[str]) -> Sequence[str]:
    half = MAX_WORDS // 2
    return (words if len(words) <= MAX_WORDS else [*words[:half], *words[-half:]]) or [LAST]


def pieces(word: str) -> list[int]:
    """Hashed letter groups of a word, its ends marked."""
    marked = f"<{word}>"
    starts = range(min(max(len(marked) - PIECE + 1, 1), MAX_PIECES))
    return [1 + crc32(marked[at : at + PIECE].encode("utf-8", "replace")) % (NUM_PIECES - 1) for at in starts]
