"""One pass over held-out conversations: how likely each reply is, and what the heads read before it."""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from warmline.data.conversation import Conversation, Turn
from warmline.engine.engine import Engine, EngineError, Message, Scores, ScoresMany
from warmline.evaluate import rows
from warmline.evaluate.rows import Progress, fill

START = "<start>"  # what stands for the previous strategy before a supporter's first labelled turn
DIGITS = 6  # of numbers in rows
CHUNK = 256  # samples that an engine with `score_batch` is given at once, or somewhat more: no conversation is cut

Key = tuple[str, str]  # source and sample id: conversation ids are unique within a source only


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Gold(_Strict):
    """The labels at one decision point: of the user turn just before the reply, and the reply's strategy."""

    emotion: tuple[str, ...] = ()
    situation: str | None = None
    strategy: str | None = None  # the reply's first
    previous_strategy: str | None = None  # of the supporter turn before, or START; only where `strategy` is known
    risk: str | None = None
    affect: tuple[float, float] | None = None  # valence, arousal


class Row(_Strict):
    """One sample as it stands in `scores/held-out.STAGE.jsonl`."""

    id: str  # conversation id # index of the turn
    conversation: str
    source: str
    status: Literal["scored", "unscored"]
    reason: str | None = None  # why it is unscored
    num_chars: int  # of the reply; 0: the conversation ends on a labelled user turn, and only heads are read
    logprob: float | None = None  # natural log, summed over the reply's tokens and its stop token
    num_tokens: int | None = None
    gold: Gold
    readings: dict[str, dict[str, float]] = {}  # head -> label -> probability (affect: the value itself)

    @property
    def key(self) -> Key:
        return self.source, self.id


@dataclass(frozen=True)
class Sample:
    """A decision point of a conversation: everything before turn `at`, the reply that followed, what is known."""

    id: str
    conversation: str
    source: str
    history: tuple[Turn, ...]
    reply: str  # empty: the conversation ends here
    gold: Gold

    @property
    def key(self) -> Key:
        return self.source, self.id


class Progressed(NamedTuple):
    """What stands in the file after a pass."""

    num_scored: int
    num_unscored: int


def samples(conversation: Conversation) -> Iterator[Sample]:
    """Every assistant turn after the first user turn, and a labelled user turn at the very end.

    >>> turns = (Turn("user", "Hi."), Turn("assistant", "Hello.", strategy=("Question",)))
    >>> [(sample.id, sample.reply) for sample in samples(Conversation("c7", "esconv", turns))]
    [('c7#1', 'Hello.')]
    """
    user: Turn | None = None
    previous = START
    for at, turn in enumerate(conversation.turns):
        if turn.role == "user":
            user = turn
            continue
        if user is not None:
            yield _sample(conversation, at, _gold(user, turn, previous))
        if turn.strategy:
            previous = turn.strategy[0]
    last = conversation.turns[-1]
    if last.role == "user" and (last.emotions or last.situation or last.risk or last.affect):
        yield _sample(conversation, len(conversation.turns), _gold(last, None, previous))


def _sample(conversation: Conversation, at: int, gold: Gold) -> Sample:
    turns = conversation.turns
    reply = turns[at].text if at < len(turns) else ""
    return Sample(f"{conversation.id}#{at}", conversation.id, conversation.source, turns[:at], reply, gold)


def _gold(user: Turn, assistant: Turn | None, previous: str) -> Gold:
    strategy = assistant.strategy[0] if assistant and assistant.strategy else None
    return Gold(
        emotion=user.emotions,
        situation=user.situation,
        strategy=strategy,
        previous_strategy=previous if strategy else None,
        risk=user.risk,
        affect=user.affect,
    )


def score_held_out(
    engine: Engine,
    conversations: Sequence[Conversation],
    file: Path,
    *,
    system_prompt: str | None = None,
    progress: Progress | None = None,
) -> Progressed:
    """Score every sample of `conversations` into `file`, one row each as it finishes, in order.

    Without heads there is nothing to read where no reply follows: those samples are left out. An engine that offers
    `score_batch` is asked for some hundred samples at a time, and their rows are written once it answers.
    Rows that already stand in the file are kept, whatever their status, and not scored again; a cut last line and rows
    of other samples are dropped. What the engine refuses, or answers with a number that is not finite, is written as
    unscored with the reason. Raises ValueError if two samples share source and id.
    """
    has_heads = "heads" in engine.capabilities()
    wanted = [each for conversation in conversations for each in samples(conversation) if each.reply or has_heads]
    return _score_all(engine, wanted, file, system_prompt, progress)


def read_emotions(
    engine: Engine,
    conversations: Sequence[Conversation],
    file: Path,
    *,
    system_prompt: str | None = None,
    progress: Progress | None = None,
) -> Progressed:
    """What the heads read before each decision point that has an emotion label, into `file`, as `score_held_out` does.

    Replies are not scored, and an engine without heads is not asked.
    """
    if "heads" not in engine.capabilities():
        return Progressed(0, 0)
    found = (sample for conversation in conversations for sample in samples(conversation))
    wanted = [replace(sample, reply="") for sample in found if sample.gold.emotion]
    return _score_all(engine, wanted, file, system_prompt, progress)


def _score_all(
    engine: Engine, wanted: Sequence[Sample], file: Path, system_prompt: str | None, progress: Progress | None
) -> Progressed:
    by_key = {sample.key: sample for sample in wanted}
    if len(by_key) != len(wanted):
        twice = next(sample for sample in wanted if by_key[sample.key] is not sample)
        raise ValueError(f"{twice.source}: two samples have the id {twice.id!r}")
    system = [Message("system", system_prompt)] if system_prompt else []

    def make(keys: Sequence[Key]) -> Iterator[Row]:
        return _scored(engine, [by_key[key] for key in keys], system)

    done = fill(file, [*by_key], Row, lambda row: row.key, make, progress=progress)
    num_unscored = sum(row.status == "unscored" for row in done)
    return Progressed(len(done) - num_unscored, num_unscored)


def read_rows(file: Path) -> list[Row]:
    """The rows of a held-out file; a last line that was cut off is not one. Raises ValueError on any other bad line."""
    return rows.read_rows(file, Row, "held-out row")


def _scored(engine: Engine, todo: Sequence[Sample], system: Sequence[Message]) -> Iterator[Row]:
    """A row for each sample in order: many at a time where the engine can, else one by one."""
    for chunk in _chunks(todo) if isinstance(engine, ScoresMany) else ([sample] for sample in todo):
        items = [([*system, *(Message(turn.role, turn.text) for turn in each.history)], each.reply) for each in chunk]
        for sample, scores in zip(chunk, _ask(engine, items), strict=True):
            yield _row(sample, scores)


def _chunks(todo: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Whole conversations together: an engine may read the turns of one in a single pass."""
    chunk: list[Sample] = []
    for _, of_one in itertools.groupby(todo, key=lambda sample: (sample.source, sample.conversation)):
        chunk += of_one
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _ask(engine: Engine, items: Sequence[tuple[Sequence[Message], str]]) -> Iterable[Scores | EngineError]:
    """The scores of each item, or why it has none. What is refused together is asked in halves, down to the culprit."""
    try:
        if isinstance(engine, ScoresMany):
            return engine.score_batch(items)
        return [engine.score(messages, reply) for messages, reply in items]
    except EngineError as error:
        if len(items) == 1:
            return [error]
    half = len(items) // 2
    return [*_ask(engine, items[:half]), *_ask(engine, items[half:])]


def _row(sample: Sample, scores: Scores | EngineError) -> Row:
    row = Row(
        id=sample.id,
        conversation=sample.conversation,
        source=sample.source,
        status="unscored",
        num_chars=len(sample.reply),
        gold=sample.gold,
    )
    if problem := str(scores) if isinstance(scores, EngineError) else _problem(scores, sample):
        return row.model_copy(update={"reason": problem})
    assert isinstance(scores, Scores)
    readings = {
        reading.head: {
            label: round(float(value), DIGITS) for label, value in zip(reading.labels, reading.values, strict=True)
        }
        for reading in scores.readings
    }
    return row.model_copy(
        update={
            "status": "scored",
            "logprob": round(float(scores.logprob), DIGITS),
            "num_tokens": scores.num_tokens,
            "readings": readings,
        }
    )


def _problem(scores: Scores, sample: Sample) -> str | None:
    """Why these scores cannot be used."""
    if not math.isfinite(scores.logprob):
        return f"the log-probability is {scores.logprob}"
    if sample.reply and scores.num_tokens < 1:
        return "the engine counted no token in the reply"
    for reading in scores.readings:
        if not all(math.isfinite(value) for value in reading.values):
            return f"the {reading.head} head read a number that is not finite"
    return None
