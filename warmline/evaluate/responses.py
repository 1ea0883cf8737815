"""What a stage answers on held-out turns, generated from the gold history: overlap with the gold reply, variety, manner."""

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict

from warmline.data.conversation import Conversation
from warmline.engine.engine import Message
from warmline.evaluate.held_out import samples as decisions
from warmline.evaluate.manner import MANNERS, manner_of
from warmline.evaluate.overlap import (
    DISTINCT,
    ORDERS,
    bleu_draws,
    bleu_signature,
    distinct_in_sentences,
    distinct_interval,
    overlap,
)
from warmline.evaluate.results import Estimate
from warmline.evaluate.stats import Interval, Resampling, ratio_draws, resample
from warmline.evaluate.task import Row, Sample, Task

GOLD = "gold replies"  # what people wrote: no floor, a point of reference
CONSTANT = "most frequent train reply"
RANDOM = "random train reply"


class ResponseScores(BaseModel):
    """The replies of one stage and, on the same turns, of what never read them.

    `scores` and each of `floors`: BLEU 0 to 100, ROUGE-L and Distinct 0 to 1, words per reply, and shares of replies.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_turns: int
    num_conversations: int
    unscored: int
    scores: dict[str, Estimate | None]
    floors: dict[str, dict[str, Estimate | None]]  # and GOLD, where overlap with itself is left out
    signatures: dict[str, str]  # sacrebleu's


def responses_task(conversations: Sequence[Conversation], *, max_turns: int | None = None, seed: int = 0) -> Task:
    """Every reply after a user turn, its gold history given. `max_turns`: a seeded choice of so many, in file order."""
    turns = [each for conversation in conversations for each in decisions(conversation) if each.reply]
    if max_turns is not None and len(turns) > max_turns:
        chosen = sorted(random.Random(seed).sample(range(len(turns)), max_turns))
        turns = [turns[at] for at in chosen]
    samples = [
        Sample(
            f"{each.source}/{each.id}",
            tuple(Message(turn.role, turn.text) for turn in each.history),
            {"source": each.source, "conversation": each.conversation, "reference": each.reply},
        )
        for each in turns
    ]
    return Task("responses", tuple(samples), lambda _, reply: manner_of(reply.text)._asdict())


def train_replies(conversations: Iterable[Conversation]) -> list[str]:
    """What the floors draw from: every reply that training learns."""
    return [each.reply for conversation in conversations for each in decisions(conversation) if each.reply]


def summarise(
    rows: Sequence[Row], train: Sequence[str], *, samples: int = 1000, seed: int = 0
) -> ResponseScores | None:
    """All numbers of the scored rows, each with its interval over conversations; None where nothing was scored.

    `train`: replies of the train split; the constant floor says the most frequent one, the random floor a seeded one
    for each turn.
    """
    scored = [row for row in rows if row.scored and row.reply is not None]
    if not scored:
        return None
    clusters = [f"{row.about['source']}/{row.about['conversation']}" for row in scored]
    references = [str(row.about["reference"]) for row in scored]
    resampling = resample(clusters, samples=samples, seed=seed)

    def measured(
        replies: Sequence[str], manners: Sequence[Mapping[str, object]] | None = None
    ) -> dict[str, Interval | None]:
        found = manners or [manner_of(reply)._asdict() for reply in replies]
        return {
            **_overlaps(replies, references, resampling),
            **_variety(replies, clusters, resampling),
            **_manner(found, resampling),
        }

    floors: dict[str, dict[str, Interval | None]] = {}
    if train:
        counts = Counter(train)
        constant = min(counts, key=lambda reply: (-counts[reply], reply))
        rng = random.Random(seed)
        floors[CONSTANT] = measured([constant] * len(scored))
        floors[RANDOM] = measured([rng.choice(train) for _ in scored])
    gold = {**_variety(references, clusters, resampling)}
    floors[GOLD] = gold | _manner([manner_of(reply)._asdict() for reply in references], resampling)
    return ResponseScores(
        num_turns=len(scored),
        num_conversations=resampling.num_clusters,
        unscored=len(rows) - len(scored),
        scores=measured([str(row.reply) for row in scored], [row.scores for row in scored]),
        floors=floors,
        signatures={f"bleu_{order}": bleu_signature(order) for order in ORDERS},
    )


def _overlaps(replies: Sequence[str], references: Sequence[str], resampling: Resampling) -> dict[str, Interval | None]:
    each = [overlap(reply, reference) for reply, reference in zip(replies, references, strict=True)]
    found: dict[str, Interval | None] = {
        f"bleu_{order}": resampling.interval(bleu_draws(each, order, resampling)) for order in ORDERS
    }
    return found | {"rouge_l": _mean([one.rouge_l for one in each], resampling)}


def _variety(replies: Sequence[str], clusters: Sequence[str], resampling: Resampling) -> dict[str, Interval | None]:
    found: dict[str, Interval | None] = {
        f"distinct_{n}_corpus": distinct_interval(replies, clusters, n) for n in DISTINCT
    }
    for n in DISTINCT:
        with np.errstate(invalid="ignore"):  # a draw, or all, in which no reply has an n-gram
            draws = distinct_in_sentences(replies, n, resampling)
        found[f"distinct_{n}_sentence"] = resampling.interval(draws) if np.isfinite(draws).all() else None
    return found


def _manner(manners: Sequence[Mapping[str, object]], resampling: Resampling) -> dict[str, Interval | None]:
    return {name: _mean([float(each[name]) for each in manners], resampling) for name in MANNERS}  # type: ignore[arg-type]


def _mean(values: Sequence[float], resampling: Resampling) -> Interval:
    return resampling.interval(ratio_draws(values, np.ones(len(values)), resampling))
