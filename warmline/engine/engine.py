"""The seam between whatever produces text and everyone who uses it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, runtime_checkable

Capability = Literal["logits", "heads", "n", "grammar"]


class EngineError(ValueError):
    """An engine could not do what was asked; the message is for whoever runs it.

    Up to the first colon and space it is this layer's own words, which may be shown to whoever talks. Behind them may
    stand what a server or a library answered, which could quote the conversation.
    """


class Message(NamedTuple):
    role: str  # system, user or assistant
    content: str


class Reading(NamedTuple):
    """What one head read at the last prompt token."""

    head: str  # emotion, situation, strategy, risk, affect
    labels: tuple[str, ...]
    values: tuple[float, ...]  # a probability per label; for affect the values themselves

    def top(self, n: int = 1) -> list[tuple[str, float]]:
        """The n labels with the largest values, largest first."""
        ranked = sorted(zip(self.labels, self.values, strict=True), key=lambda pair: -pair[1])
        return ranked[:n]


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature` 0 is greedy; a seed makes a draw repeatable."""

    temperature: float = 0.7
    top_p: float = 0.9
    max_new_tokens: int = 192
    seed: int | None = None
    stop: tuple[str, ...] = ()  # texts that end the reply and are not part of it

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise EngineError(f"temperature {self.temperature} is negative")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p {self.top_p} is not in (0, 1]")
        if self.max_new_tokens < 1:
            raise EngineError(f"max_new_tokens {self.max_new_tokens} is less than 1")


@dataclass(frozen=True)
class GenerateRequest:
    messages: tuple[Message, ...]
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    constraint: str | None = None  # a grammar, for engines that are capable of it
    prefill: str = ""  # the reply's first words, given
    urgent: bool = False  # somebody in danger waits: where requests queue, to the head of the queue


@dataclass(frozen=True)
class Chunk:
    """A piece of reply `index`. `readings` and `notes` stand on the first chunk only."""

    text: str
    index: int = 0
    readings: tuple[Reading, ...] = ()
    notes: tuple[str, ...] = ()  # what the engine did and the caller should know: "the oldest 2 turns were left out"


def whole(chunks: Iterable[Chunk]) -> Chunk:
    """One reply's pieces as one chunk, without readings."""
    pieces = [*chunks]
    return Chunk("".join(each.text for each in pieces), notes=tuple(note for each in pieces for note in each.notes))


class Scores(NamedTuple):
    """How likely a reply is. An empty reply has no tokens and still gives readings."""

    logprob: float  # natural log, summed over the reply's tokens and its stop token
    num_tokens: int
    readings: tuple[Reading, ...] = ()


class Engine(Protocol):
    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """Stream `request.n` replies; pieces of different replies may alternate."""
        ...

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """Log-probability of `reply` (with its stop token) after `messages`."""
        ...

    def capabilities(self) -> frozenset[Capability]:
        """What this engine can do beyond plain text."""
        ...


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that writes replies to many requests at once."""

    def generate_batch(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, "Chunk | EngineError"]]:
        """Number and whole reply of each request as it ends, in one chunk, or why there is none; in any order."""
        ...


@runtime_checkable
class ScoresMany(Protocol):
    """What an engine may offer beside `score`: many replies at once, at less cost. Ask with `isinstance`."""

    def score_batch(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Scores]:
        """What `score` gives for each pair of messages and reply, in order.

        Raises EngineError if one of them cannot be scored; nothing is scored then.
        """
        ...


@runtime_checkable
class CountsTokens(Protocol):
    """What an engine may offer for bills and limits: the tokens that a prompt and a reply are. Ask with `isinstance`."""

    def count(self, messages: Sequence[Message], reply: str) -> tuple[int, int]:
        """Tokens of the conversation as the model reads it, and of the reply alone."""
        ...
