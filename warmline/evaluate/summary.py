"""From the held-out rows of every stage to `scores/summary.json`."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from warmline.config.training import EvalSettings
from warmline.data.conversation import Conversation
from warmline.evaluate.all_labels import score_all_labels, tune
from warmline.evaluate.floors import CLASSIFIED, Floors
from warmline.evaluate.head_scores import Resample, score_affect, score_classified
from warmline.evaluate.held_out import Key, Row, read_rows, samples
from warmline.evaluate.results import SUMMARY, AllLabels, AllResponses, Comparison, Responses, Stage, Summary
from warmline.evaluate.stats import Floats, Interval, Resampling, ratio_draws, resample, verdict
from warmline.evaluate.strategy_history import score_history
from warmline.evaluate.word_floor import WordFloor
from warmline.run_dir import STAGES, RunDir, write_text

ALL_LABELS = "emotion, all labels"  # the task's name
TUNED_ON = "validation"  # the split of thresholds; a number on it would be one of tuning
NUM_REASONS = 10  # reasons of unscored rows that the summary names


def held_out_file(run: RunDir, stage: str) -> Path:
    """Where the rows of a stage stand."""
    return run.path / "scores" / f"held-out.{stage}.jsonl"


def tuning_file(run: RunDir, stage: str) -> Path:
    """Where a stage's readings of the validation split stand, which thresholds are tuned on."""
    return run.path / "scores" / f"tuning.{stage}.jsonl"


def summarise(
    run: RunDir, floors: Floors, settings: EvalSettings, *, seed: int, conversations: Iterable[Conversation] = ()
) -> Summary:
    """Score every stage that has rows, beside the floors, and write `scores/summary.json`.

    `conversations` are those that the rows come from: what the floor of words makes of their replies. Raises ValueError if a file of rows is broken.
    """
    rows = {stage: found for stage in STAGES if (found := read_rows(held_out_file(run, stage)))}
    tuning = {stage: None if settings.split == TUNED_ON else read_rows(tuning_file(run, stage)) for stage in rows}
    draw = partial(resample, samples=settings.bootstrap_samples, seed=seed)
    summary = Summary(
        split=settings.split,
        bootstrap_samples=settings.bootstrap_samples,
        seed=seed,
        stages={stage: _stage(found, tuning[stage], floors, draw) for stage, found in rows.items()},
        word_floor=_word_floor(next(iter(rows.values()), ()), floors.words, conversations, draw),
        comparisons=tuple(
            _compare(later, rows[later], earlier, rows[earlier], draw)
            for earlier, later in itertools.combinations(rows, 2)
        ),
    )
    write_text(run.path / SUMMARY, summary.model_dump_json(indent=2) + "\n")
    return summary


class _Reply(NamedTuple):
    """A reply that was scored."""

    key: Key
    source: str
    conversation: str
    loss: float  # nats
    num_tokens: int
    num_chars: int


def _all_labels(
    rows: Sequence[Row], tuning: Sequence[Row] | None, floors: Floors, draw: Resample
) -> tuple[AllLabels | None, str | None]:
    """The all-label emotion task, or why it is not scored; neither where no turn with an emotion was read."""
    if not any(row.gold.emotion and row.readings.get("emotion") for row in rows):
        return None, None
    if tuning is None:
        return None, f"{ALL_LABELS}: the scored split is the one that its thresholds are tuned on"
    tuned = tune(tuning, {row.key for row in rows})
    if tuned is None:
        return None, f"{ALL_LABELS}: the validation split has no emotion that the head has read"
    return score_all_labels(rows, tuned, floors, draw), None


def _stage(rows: Sequence[Row], tuning: Sequence[Row] | None, floors: Floors, draw: Resample) -> Stage:
    heads = {head: score_classified(head, rows, floors, draw) for head in CLASSIFIED}
    heads["affect"] = score_affect(rows, floors, draw)
    all_labels, why_not = _all_labels(rows, tuning, floors, draw)
    reasons = Counter(row.reason or "no reason given" for row in rows if row.status == "unscored")
    return Stage(
        responses=_all_responses(rows, _replies(rows), draw),
        heads={name: head for name, head in heads.items() if head is not None},
        emotion_all_labels=all_labels,
        strategy_history=score_history(rows, floors, draw),
        not_scored=(why_not,) if why_not else (),
        unscored=reasons.total(),
        unscored_reasons=dict(reasons.most_common(NUM_REASONS)),
    )


def _word_floor(
    rows: Sequence[Row], words: WordFloor | None, conversations: Iterable[Conversation], draw: Resample
) -> AllResponses | None:
    if words is None:
        return None
    texts = {sample.key: sample.reply for conversation in conversations for sample in samples(conversation)}
    replies = [reply for reply in _replies(rows) if reply.key in texts]
    losses = words.losses(texts[reply.key] for reply in replies)
    floored = [reply._replace(loss=loss) for reply, loss in zip(replies, losses, strict=True)]
    return _all_responses(rows, floored, draw) if floored else None


def _all_responses(rows: Sequence[Row], replies: Sequence[_Reply], draw: Resample) -> AllResponses:
    unscored = Counter(row.source for row in rows if row.num_chars and row.status == "unscored")
    by_source = {
        source: _responses([reply for reply in replies if reply.source == source], unscored[source], draw)
        for source in sorted({row.source for row in rows if row.num_chars})
    }
    return AllResponses(overall=_responses(replies, unscored.total(), draw), by_source=by_source)


def _responses(replies: Sequence[_Reply], unscored: int, draw: Resample) -> Responses:
    loss = bits = None
    if replies:
        resampling = draw(_clusters(replies))
        losses = [reply.loss for reply in replies]
        num_chars = [reply.num_chars for reply in replies]
        loss = resampling.interval(_loss_draws(replies, resampling))
        bits = resampling.interval(ratio_draws(losses, num_chars, resampling) / math.log(2))
    return Responses(
        num_turns=len(replies),
        num_conversations=len(set(_clusters(replies))),
        num_tokens=sum(reply.num_tokens for reply in replies),
        unscored=unscored,
        loss_per_token=loss,
        bits_per_char=bits,
        perplexity=_exp(loss) if loss else None,
    )


def _loss_draws(replies: Sequence[_Reply], resampling: Resampling) -> Floats:
    return ratio_draws([reply.loss for reply in replies], [reply.num_tokens for reply in replies], resampling)


def _replies(rows: Sequence[Row]) -> list[_Reply]:
    return [
        _Reply(row.key, row.source, row.conversation, -row.logprob, row.num_tokens, row.num_chars)
        for row in rows
        if row.num_chars and row.logprob is not None and row.num_tokens is not None
    ]


def _exp(interval: Interval) -> Interval:
    # A float ends at exp(709), and JSON has no infinity.
    return Interval(*(None if bound is None else math.exp(min(bound, 700)) for bound in interval))  # type: ignore[arg-type]


def _compare(
    stage: str, rows: Sequence[Row], reference: str, reference_rows: Sequence[Row], draw: Resample
) -> Comparison:
    ours = {reply.key: reply for reply in _replies(rows)}
    theirs = {reply.key: reply for reply in _replies(reference_rows)}
    pairs = [(ours[key], theirs[key]) for key in ours if key in theirs]
    overall = _loss_difference(pairs, draw)
    by_source = {
        source: _loss_difference([pair for pair in pairs if pair[0].source == source], draw)
        for source in sorted({reply.source for reply, _ in pairs})
    }
    return Comparison(
        stage=stage,
        reference=reference,
        num_turns=len(pairs),
        left_out=len(ours.keys() ^ theirs.keys()),
        loss_per_token=overall,
        verdict=verdict(overall, "lower") if overall else None,
        by_source={source: difference for source, difference in by_source.items() if difference is not None},
    )


def _loss_difference(pairs: Sequence[tuple[_Reply, _Reply]], draw: Resample) -> Interval | None:
    if not pairs:
        return None
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    resampling = draw(_clusters(ours))
    return resampling.interval(_loss_draws(ours, resampling) - _loss_draws(theirs, resampling))


def _clusters(items: Sequence[_Reply]) -> list[tuple[str, str]]:
    return [(item.source, item.conversation) for item in items]
