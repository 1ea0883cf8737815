"""The engine of the leak test: what it says must be held back, and it fails in every way."""

import json
import random
from collections.abc import Callable, Iterator, Sequence

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Reading, Scores
from warmline.engine.remote import sse_data

BLOCKED = (  # at every level, whatever stands around them
    "I promise this stays our secret, {}.",
    "As a human I have been there too, {}.",
    "Remember when you told me about {} last week.",
    "You have borderline personality disorder, {}.",
    "I pro\u0301mise this stays our se\u0301cret, {}.",  # accents that are code points of their own
    "I pro\u200bmise this stays our sec\u200bret, {}.",
    "I pr\u043emise this stays our s\u0435cret, {}.",  # two Cyrillic letters
    "\U0001f642 I promise this stays our secret \U0001f642 {}\u2026",
)
CRISIS = (  # whole replies that pass at high and emergency
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen.",
    "It sounds so heavy, and I hear how hopeless and tired you feel. I hope you will let someone you trust and a trained "
    "crisis counselor be with you in this.",
)
ALLOWED = (  # at none and elevated
    "That sounds heavy.",
    "I hear how tired you are.",
    "It makes sense that this hurts.",
    "A cafe\u0301 by the sea sounds lovely \U0001f642.",
)
RUN_ON = (
    "rain and sun and rain and bread and soup and a bus and a tree and some tea and "  # no end to hold a sentence by
)
LETTERS, LENGTH, PART = "bcdfghjklmnpqrstvwxz", 12, 6  # of a canary; any PART of its letters in a row is a leak
READINGS = tuple(  # of the risk head: one half of them calls for another plan
    Reading("risk", ("none", "elevated", "high", "emergency"), values)
    for values in ((0.97, 0.01, 0.01, 0.01), (0.0, 0.0, 0.0, 0.0), (0.2, 0.7, 0.1, 0.0), (0.1, 0.1, 0.8, 0.0))
)


class Clock:
    """Stands in for `time` where deadlines are kept: it jumps where a real part would be slow."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        """Seconds."""
        self.now += 0.001
        return self.now


class Leaky:
    """Streams allowed and blocked sentences in pieces of any size; fails, stalls and is interrupted anywhere."""

    def __init__(self, rng: random.Random, clock: Clock) -> None:
        self._rng = rng
        self._clock = clock
        self._can: frozenset[Capability] = frozenset(name for name in ("n", "grammar", "heads") if rng.random() < 0.5)
        self._trouble = rng.choice((0.0, 0.0, 0.02, 0.1))  # chance of each piece to be the last
        self._largest = rng.choice((1, 8, 64, 64, 64, 2000))  # code points of a piece
        self._whole = rng.choice((0.0, 0.3, 0.6))  # share of whole replies that pass, at high and above
        self._by_wire = rng.random() < 0.3
        self.canaries: list[str] = []

    def capabilities(self) -> frozenset[Capability]:
        """Any."""
        return self._can

    def score(self, messages: Sequence[Message], reply: str) -> Scores:  # noqa: ARG002 (the protocol's signature)
        """Never asked."""
        raise EngineError(self._canary())

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """Replies that follow no grammar, whatever is asked."""
        if self._rng.random() < self._trouble:
            self._fail()
        return self._stream(request)

    def _stream(self, request: GenerateRequest) -> Iterator[Chunk]:
        rng = self._rng
        texts = [self._text(request) for _ in range(request.n)]
        pieces = self._pieces(texts)
        try:
            for index, text in _over_the_wire(pieces, rng) if self._by_wire else pieces:
                yield Chunk(text, index, (rng.choice(READINGS),) if rng.random() < 0.05 else ())
                if rng.random() < 0.01:
                    self._clock.now += rng.choice((1.0, 30.0))
                if rng.random() < self._trouble:
                    self._fail()
        finally:
            if rng.random() < self._trouble:
                raise RuntimeError(self._canary())  # an engine that cannot even be closed

    def _fail(self) -> None:
        word = self._canary()
        errors: tuple[Callable[[], BaseException], ...] = (
            lambda: EngineError(f"the server said {word}"),
            lambda: RuntimeError(word),
            lambda: KeyError(word),
            lambda: OSError(5, word),
            lambda: UnicodeDecodeError("utf-8", word.encode(), 0, 1, word),
            lambda: MemoryError(word),
            KeyboardInterrupt,
        )
        try:
            raise ValueError(word)
        except ValueError:
            raise self._rng.choice(errors)()  # noqa: B904 - its context holds a canary too

    def _text(self, request: GenerateRequest) -> str:
        rng = self._rng
        if request.sampling.max_new_tokens <= 90 or request.constraint is not None:  # as at high and above
            whole = 0.6 if request.constraint is not None else self._whole
            if rng.random() < whole:
                return rng.choice(CRISIS)
            if rng.random() < 0.3:
                return rng.choice(CRISIS).partition(". ")[rng.choice((0, 2))].strip(".") + "."
        return " ".join(self._sentence() for _ in range(rng.randint(1, 4)))

    def _sentence(self) -> str:
        rng = self._rng
        if rng.random() < 0.5:
            return rng.choice((*ALLOWED, *CRISIS))
        blocked = rng.choice(BLOCKED).format(self._canary())
        if rng.random() < 0.07:  # as one endless sentence that has to be cut somewhere
            lead = RUN_ON * 8
            return lead[: rng.randint(350, 400)] + " " + blocked
        return blocked

    def _canary(self) -> str:
        self.canaries.append("".join(self._rng.choices(LETTERS, k=LENGTH)))
        return self.canaries[-1]

    def _pieces(self, texts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Pieces of the texts, theirs in order, the texts' in any."""
        rng, rest = self._rng, dict(enumerate(texts))
        while rest:
            index = rng.choice([*rest])
            size = rng.randint(1, self._largest)
            yield index, rest[index][:size]
            rest[index] = rest[index][size:]
            if not rest[index]:
                del rest[index]


def _over_the_wire(pieces: Iterator[tuple[int, str]], rng: random.Random) -> Iterator[tuple[int, str]]:
    """The same, sent as server-sent events whose bytes the network cut anywhere."""

    def blobs() -> Iterator[bytes]:
        for index, text in pieces:
            event = json.dumps({"index": index, "text": text}, ensure_ascii=False)
            data = f"data: {event}\n\n".encode()
            while data:
                size = rng.randint(1, 64)
                yield data[:size]
                data = data[size:]

    for data in sse_data(blobs()):
        event = json.loads(data)
        yield event["index"], event["text"]
