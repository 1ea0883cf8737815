"""From the held-out rows of every stage to `scores/summary.json`."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from warmline.config import EvalSettings
from warmline.data.labels import AFFECTS
from warmline.evaluate.floors import CLASSIFIED, Floors, label_of
from warmline.evaluate.held_out import Key, Row, read_rows
from warmline.evaluate.results import SUMMARY, AllResponses, Comparison, Head, Metric, Responses, Stage, Summary
from warmline.evaluate.stats import (
    Better,
    Floats,
    Interval,
    Resampling,
    accuracy_draws,
    macro_f1_draws,
    per_label,
    ratio_draws,
    resample,
    verdict,
)
from warmline.run_dir import STAGES, RunDir, write_text

NUM_REASONS = 10  # reasons of unscored rows that the summary names

Resample = Callable[[Sequence[tuple[str, str]]], Resampling]
Draws = Mapping[str, Floats]  # predictor -> draws of one metric; HEAD is the head itself
HEAD = "head"


def held_out_file(run: RunDir, stage: str) -> Path:
    """Where the rows of a stage stand."""
    return run.path / "scores" / f"held-out.{stage}.jsonl"


def summarise(run: RunDir, floors: Floors, settings: EvalSettings, *, seed: int) -> Summary:
    """Score every stage that has rows, beside the floors, and write `scores/summary.json`.

    Raises ValueError if a file of rows is broken.
    """
    rows = {stage: found for stage in STAGES if (found := read_rows(held_out_file(run, stage)))}
    draw = partial(resample, samples=settings.bootstrap_samples, seed=seed)
    summary = Summary(
        split=settings.split,
        bootstrap_samples=settings.bootstrap_samples,
        seed=seed,
        stages={stage: _stage(found, floors, draw) for stage, found in rows.items()},
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


def _stage(rows: Sequence[Row], floors: Floors, draw: Resample) -> Stage:
    replies = _replies(rows)
    unscored = Counter(row.source for row in rows if row.num_chars and row.status == "unscored")
    by_source = {
        source: _responses([reply for reply in replies if reply.source == source], unscored[source], draw)
        for source in sorted({row.source for row in rows if row.num_chars})
    }
    heads = {head: _classified(head, rows, floors, draw) for head in CLASSIFIED}
    heads["affect"] = _affect(rows, floors, draw)
    reasons = Counter(row.reason or "no reason given" for row in rows if row.status == "unscored")
    return Stage(
        responses=AllResponses(overall=_responses(replies, unscored.total(), draw), by_source=by_source),
        heads={name: head for name, head in heads.items() if head is not None},
        unscored=reasons.total(),
        unscored_reasons=dict(reasons.most_common(NUM_REASONS)),
    )


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


def _classified(head: str, rows: Sequence[Row], floors: Floors, draw: Resample) -> Head | None:
    """A head with one label per decision point; None if the stage has no reading of it or no row is labelled."""
    labelled = [(row, label) for row in rows if (label := label_of(head, row.gold)) is not None]
    read = [(row, label) for row, label in labelled if row.readings.get(head)]
    if not read:
        return None
    items = [row for row, _ in read]
    gold = [label for _, label in read]
    predicted = [max(row.readings[head], key=row.readings[head].__getitem__) for row in items]
    predictions = {HEAD: predicted} | floors.predictions(head, [row.gold for row in items])
    resampling = draw(_clusters(items))
    metrics = {
        name: _metric({who: draws(gold, guesses, resampling) for who, guesses in predictions.items()}, resampling)
        for name, draws in {"accuracy": accuracy_draws, "macro_f1": macro_f1_draws}.items()
    }
    return Head(
        n=len(items),
        num_conversations=resampling.num_clusters,
        unscored=len(labelled) - len(read),
        excluded_multi_label=sum(len(row.gold.emotion) > 1 for row in rows) if head == "emotion" else 0,
        metrics=metrics,
        labels=per_label(gold, predicted),
    )


def _affect(rows: Sequence[Row], floors: Floors, draw: Resample) -> Head | None:
    labelled = [(row, row.gold.affect) for row in rows if row.gold.affect is not None]
    read = [(row, gold) for row, gold in labelled if all(name in row.readings.get("affect", {}) for name in AFFECTS)]
    if not read:
        return None
    resampling = draw(_clusters([row for row, _ in read]))
    ones = np.ones(len(read))
    metrics = {}
    for at, name in enumerate(AFFECTS):
        gold = np.array([affect[at] for _, affect in read])
        predictions = {HEAD: np.array([row.readings["affect"][name] for row, _ in read])}
        predictions |= {floor: np.full(len(read), constant[at]) for floor, constant in floors.affect.items()}
        errors = {who: ratio_draws(np.abs(guesses - gold), ones, resampling) for who, guesses in predictions.items()}
        metrics[f"{name}_mae"] = _metric(errors, resampling, better="lower")
    return Head(
        n=len(read),
        num_conversations=resampling.num_clusters,
        unscored=len(labelled) - len(read),
        excluded_multi_label=0,
        metrics=metrics,
        labels=(),
    )


def _metric(draws: Draws, resampling: Resampling, better: Better = "higher") -> Metric:
    floors = {name: resampling.interval(draws_R) for name, draws_R in draws.items() if name != HEAD}
    best = (max if better == "higher" else min)(floors, key=lambda name: floors[name].value, default=None)
    difference = None if best is None else resampling.interval(draws[HEAD] - draws[best])
    return Metric(
        value=resampling.interval(draws[HEAD]),
        better=better,
        floors=floors,
        best_floor=best,
        difference=difference,
        verdict=None if difference is None else verdict(difference, better),
    )


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


def _clusters(items: Sequence[Row] | Sequence[_Reply]) -> list[tuple[str, str]]:
    return [(item.source, item.conversation) for item in items]
