"""An engine without a model: it replays given replies, or decodes a byte vocabulary from seeded logits."""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Reading, Sampling, Scores
from warmline.engine.grammar import Grammar, tokenizer_of_bytes
from warmline.engine.stop_texts import until_stop

VOCABULARY = bytes(range(0x20, 0x7F))  # printable ASCII; token i is VOCABULARY[i]
END_TOKEN = len(VOCABULARY)
UNKNOWN_TOKEN = VOCABULARY.index(b"?")  # what a byte outside the vocabulary is read as
LOGIT_SPREAD = 2.0  # standard deviation of the logits: peaked enough that top_p matters, flat enough that seeds differ
BYTES_PER_CHUNK = 4

Readings = Sequence[Reading] | Callable[[Sequence[Message]], tuple[Reading, ...]]


class ScriptedEngine:
    """Replays `replies` in turn (cycling), whatever the sampling says except `stop`; without replies, decodes.

    A request with a grammar is decoded inside it, with replies or without. Decoding draws printable ASCII from logits that depend on nothing but `seed`, the messages and the reply so far,
    so that generation and `score` agree. A draw without a seed of its own differs from call to call, and a new engine
    with the same `seed` repeats the whole sequence of calls. `readings` are the same for every prompt, or a function
    of the messages. A reply's chunks leave out the request's `prefill`.

    >>> engine = ScriptedEngine(["That sounds hard."])
    >>> [chunk.text for chunk in engine.generate(GenerateRequest((Message("user", "My dog died."),)))]
    ['That', ' sounds', ' hard.']
    """

    def __init__(self, replies: Sequence[str] = (), *, seed: int = 0, readings: Readings = ()) -> None:
        if isinstance(replies, str):
            raise EngineError("replies is one text; expected a list of texts")
        self._replies = tuple(replies)
        self._seed = seed
        self._readings = readings
        self._num_started = itertools.count()  # replies begun; count() stays correct under a server's threads

    def capabilities(self) -> frozenset[Capability]:
        """`n` and `grammar` always; `logits` when it decodes; `heads` when it was given readings."""
        capabilities: set[Capability] = {"n", "grammar"}
        if not self._replies:
            capabilities.add("logits")
        if self._readings:
            capabilities.add("heads")
        return frozenset(capabilities)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """Stream `request.n` replies, a piece of each in turn; readings stand on the first chunk."""
        if request.n < 1:
            raise EngineError(f"n is {request.n}; expected at least 1 reply")
        streams = [
            until_stop(self._pieces(request, index, next(self._num_started)), request.sampling.stop)
            for index in range(request.n)
        ]
        return _alternate(streams, self._read(request.messages))

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """Log-probability of the reply's bytes and the end token at temperature 1; a byte out of vocabulary is `?`."""
        readings = self._read(messages)
        if reply == "":
            return Scores(0.0, 0, readings)
        if self._replies:
            raise EngineError("an engine that replays given replies has no log-probabilities")
        tokens = [*_encode(reply), END_TOKEN]
        logprob = 0.0
        for position, token in enumerate(tokens):
            logits_V = self.next_logits(messages, tokens[:position])
            logprob += float(logits_V[token] - _log_sum_exp(logits_V))
        return Scores(logprob, len(tokens), readings)

    def count(self, messages: Sequence[Message], reply: str) -> tuple[int, int]:
        """Bytes, which are this engine's tokens."""
        return sum(len(_encode(message.content)) for message in messages), len(_encode(reply))

    def next_logits(self, messages: Sequence[Message], tokens: Sequence[int]) -> NDArray[np.float64]:
        """The logits over `VOCABULARY` and the end token after `messages` and the reply's `tokens` so far."""
        context = (self._seed, [tuple(message) for message in messages], list(tokens))
        return _generator(context).normal(0.0, LOGIT_SPREAD, size=END_TOKEN + 1)

    def _read(self, messages: Sequence[Message]) -> tuple[Reading, ...]:
        if callable(self._readings):
            return self._readings(messages)
        return tuple(self._readings)

    def _pieces(self, request: GenerateRequest, index: int, started: int) -> Iterator[str]:
        if not self._replies or request.constraint is not None:
            return self._decode(request, index, started)
        reply = self._replies[started % len(self._replies)].removeprefix(request.prefill)
        return iter(re.findall(r"\s*\S+|\s+", reply))

    def _decode(self, request: GenerateRequest, index: int, started: int) -> Iterator[str]:
        sampling = request.sampling
        # Without a seed of its own the draw hangs on how many replies came before.
        generator = _generator((self._seed, started) if sampling.seed is None else (sampling.seed, index, "own"))
        grammar = None if request.constraint is None else Grammar(_tokenizer(), request.constraint, END_TOKEN)
        tokens = _encode(request.prefill)
        piece = ""
        for _ in range(sampling.max_new_tokens):
            logits_V = self.next_logits(request.messages, tokens)
            if grammar is not None:
                logits_V[~grammar.allowed(END_TOKEN + 1)] = -np.inf
            token = _draw(logits_V, sampling, generator)
            if grammar is not None:
                grammar.take(token)
            if token == END_TOKEN:
                break
            tokens.append(token)
            piece += chr(VOCABULARY[token])
            if len(piece) == BYTES_PER_CHUNK:
                yield piece
                piece = ""
        if piece:
            yield piece


@cache
def _tokenizer():
    return tokenizer_of_bytes([bytes([byte]) for byte in VOCABULARY] + [b"\xff<end>"], END_TOKEN)


def _alternate(streams: list[Iterator[str]], readings: tuple[Reading, ...]) -> Iterator[Chunk]:
    """One piece of each stream in turn; a stream without text still gives one empty chunk, to carry readings."""
    live = dict(enumerate(streams))
    first_round = True
    while live:
        for index, stream in list(live.items()):
            piece = next(stream, None)
            if piece is None:
                del live[index]
            if piece is not None or first_round:
                yield Chunk(piece or "", index, readings)
                readings = ()
        first_round = False


def _encode(text: str) -> list[int]:
    found = (VOCABULARY.find(byte) for byte in text.encode("utf-8", errors="replace"))
    return [UNKNOWN_TOKEN if token < 0 else token for token in found]


def _generator(key: object) -> np.random.Generator:
    """Random numbers that hang on `key` alone: `hash` would change from process to process."""
    digest = hashlib.blake2b(repr(key).encode("utf-8", errors="replace"), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _log_sum_exp(logits_V: NDArray[np.float64]) -> float:
    highest = float(logits_V.max())
    return highest + float(np.log(np.exp(logits_V - highest).sum()))


def _draw(logits_V: NDArray[np.float64], sampling: Sampling, generator: np.random.Generator) -> int:
    """A token: the most likely at temperature 0, else one of the smallest set whose probability reaches top_p."""
    if sampling.temperature == 0:
        return int(logits_V.argmax())
    # The highest logit is taken off first: a tiny temperature would else overflow to infinity minus infinity.
    scaled_V = (logits_V - logits_V.max()) / sampling.temperature
    probabilities_V = np.exp(scaled_V - _log_sum_exp(scaled_V))
    order = np.argsort(-probabilities_V)
    num_kept = int(np.searchsorted(np.cumsum(probabilities_V[order]), sampling.top_p)) + 1
    kept = order[:num_kept]
    return int(generator.choice(kept, p=probabilities_V[kept] / probabilities_V[kept].sum()))
