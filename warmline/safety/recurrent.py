"""A small recurrent network that reads a message word by word, beside the linear model: numpy and one file of weights.

A bidirectional GRU (Cho et al. 2014, arXiv 1406.1078) over word and letter-group embeddings, with attention and maximum over
the words. It sees order, which the linear model does not; together they miss less than either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from zlib import crc32

import numpy as np
from threadpoolctl import ThreadpoolController

from warmline.safety.matcher import Reading

NUM_PIECES = 4_096  # hashed letter groups; 0 stands for none
PIECE = 3  # letters of a group
MAX_PIECES = 8  # of a word
MAX_WORDS = 72  # that are read; of more, the first and last half
PADDING, UNKNOWN = 0, 1  # ids of words


@dataclass(frozen=True)
class Recurrent:
    """The weights, float32. E: embedding, H: hidden state, V: words, P: pieces; the first axis of 2 is the direction."""

    word_ids: Mapping[str, int]
    word_VE: np.ndarray
    piece_PE: np.ndarray
    input_23HE: np.ndarray  # shape (2, 3H, E): reset, update, new
    hidden_23HH: np.ndarray
    input_bias_23H: np.ndarray
    hidden_bias_23H: np.ndarray
    attention_2H: np.ndarray
    attention_bias: float
    output_K4H: np.ndarray  # K: level >= 1, 2, 3
    output_bias_K: np.ndarray

    def logits(self, readings: Sequence[Reading]) -> np.ndarray:
        """Log-odds of level >= 1, 2 and 3 for each message: shape (messages, 3)."""
        with _threads().limit(
            limits=1, user_api="blas"
        ):  # the products are too small for two, which would wait in a spin
            return self._logits(*encode([words_of(each) for each in readings], self.word_ids))

    def _logits(self, ids_BT: np.ndarray, pieces_BTP: np.ndarray) -> np.ndarray:
        real_BT = ids_BT != PADDING
        num_B1 = np.maximum((pieces_BTP > 0).sum(axis=2), 1)[..., None]
        embedded_BTE = self.word_VE[ids_BT] + self.piece_PE[pieces_BTP].sum(axis=2) / num_B1
        states_BTC = self._states(embedded_BTE, real_BT)
        scores_BT = states_BTC @ self.attention_2H + self.attention_bias
        scores_BT = np.where(real_BT, scores_BT, -1e9)
        weight_BT = np.exp(scores_BT - scores_BT.max(axis=1, keepdims=True))
        weight_BT /= weight_BT.sum(axis=1, keepdims=True)
        mean_BC = (weight_BT[..., None] * states_BTC).sum(axis=1)
        most_BC = np.where(real_BT[..., None], states_BTC, -1e9).max(axis=1)
        return np.concatenate([mean_BC, most_BC], axis=1) @ self.output_K4H.T + self.output_bias_K

    def _states(self, embedded_BTE: np.ndarray, real_BT: np.ndarray) -> np.ndarray:
        """Hidden states of both directions side by side: (B, T, 2H). What stands at padding means nothing.

        The second direction reads each message from its last word to its first, so that padding comes last in both.
        """
        batch, length, _ = embedded_BTE.shape
        size = self.hidden_23HH.shape[-1]
        last_B1 = real_BT.sum(axis=1)[:, None] - 1
        place_T = np.arange(length)
        turned_BT = np.where(place_T <= last_B1, last_B1 - place_T, place_T)
        turned_BTE = np.take_along_axis(embedded_BTE, turned_BT[..., None], axis=1)
        bias_2G = self.input_bias_23H.copy()
        bias_2G[:, : 2 * size] += self.hidden_bias_23H[:, : 2 * size]
        given_T2BG = np.empty((length, 2, batch, 3 * size), np.float32)
        for way, read_BTE in enumerate((embedded_BTE, turned_BTE)):
            given_T2BG[:, way] = (read_BTE @ self.input_23HE[way].T + bias_2G[way]).transpose(1, 0, 2)
        hidden_2HG = np.ascontiguousarray(self.hidden_23HH.transpose(0, 2, 1))
        new_bias_21H = self.hidden_bias_23H[:, None, 2 * size :]
        states_T2BH = np.zeros((length + 1, 2, batch, size), np.float32)
        for step in range(length):
            before, given = states_T2BH[step], given_T2BG[step]
            back = before @ hidden_2HG
            gates = back[..., : 2 * size]
            gates += given[..., : 2 * size]
            np.tanh(np.multiply(gates, 0.5, out=gates), out=gates)  # sigmoid(x) = (1 + tanh(x / 2)) / 2
            gates += 1
            gates *= 0.5
            new = back[..., 2 * size :]
            new += new_bias_21H
            new *= gates[..., :size]
            new += given[..., 2 * size :]
            np.tanh(new, out=new)
            states_T2BH[step + 1] = new + gates[..., size:] * (before - new)
        forward = states_T2BH[1:, 0].transpose(1, 0, 2)
        backward = np.take_along_axis(states_T2BH[1:, 1].transpose(1, 0, 2), turned_BT[..., None], axis=1)
        return np.concatenate([forward, backward], axis=2)


@cache
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def load_recurrent() -> Recurrent:
    """The shipped weights. Raises OSError, KeyError or ValueError when they are missing or broken."""
    with files("warmline.safety").joinpath("weights/recurrent.npz").open("rb") as file:
        stored = np.load(file, allow_pickle=False)
        words = str(stored["words"]).split("\n")
        arrays = {name: stored[name].astype(np.float32) for name in stored.files if name != "words"}
    bias = float(arrays.pop("attention_bias"))
    return Recurrent(word_ids=ids_of(words), attention_bias=bias, **arrays)


def ids_of(words: Sequence[str]) -> dict[str, int]:
    """Ids of words in their order, after those of padding and of unknown words."""
    return {word: number + 2 for number, word in enumerate(words)}


def words_of(reading: Reading) -> list[str]:
    """The words of a message, a full stop after each sentence."""
    words = [word for sentence in reading.words for word in (*sentence, ".")] or ["."]
    half = MAX_WORDS // 2
    return words if len(words) <= MAX_WORDS else [*words[:half], *words[-half:]]


def encode(messages: Sequence[Sequence[str]], word_ids: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Word ids (B, T) and piece ids (B, T, MAX_PIECES), padded with 0."""
    length = max(map(len, messages))
    ids_BT = np.zeros((len(messages), length), np.int64)
    pieces_BTP = np.zeros((len(messages), length, MAX_PIECES), np.int64)
    for row, words in enumerate(messages):
        ids_BT[row, : len(words)] = [word_ids.get(word, UNKNOWN) for word in words]
        for place, word in enumerate(words):
            found = pieces(word)
            pieces_BTP[row, place, : len(found)] = found
    return ids_BT, pieces_BTP


def pieces(word: str) -> list[int]:
    """Hashed letter groups of a word, its ends marked."""
    marked = f"<{word}>"
    starts = range(min(max(len(marked) - PIECE + 1, 1), MAX_PIECES))
    return [1 + crc32(marked[at : at + PIECE].encode("utf-8", "replace")) % (NUM_PIECES - 1) for at in starts]
