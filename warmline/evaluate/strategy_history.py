"""The strategy head with recorded and with its own predicted strategies before, and how much it favours some of them."""

from collections.abc import Callable, Sequence

import numpy as np

from warmline.evaluate.floors import Floors
from warmline.evaluate.held_out import START, Gold, Row
from warmline.evaluate.metric import HEAD, metric
from warmline.evaluate.results import Metric, StrategyHistory
from warmline.evaluate.stats import Floats, Resampling, accuracy_draws, macro_f1_draws, ratio_draws

PRIOR = 0.01  # of an error, added between any two strategies: else the strength of one never confused has no bound
NUM_SWEEPS = 500  # at most
TOLERANCE = 1e-6  # of the logarithm of a strength


def score_history(
    rows: Sequence[Row], floors: Floors, draw: Callable[[Sequence[tuple[str, str]]], Resampling]
) -> StrategyHistory | None:
    """None if no row has a strategy and a reading of it. `rows` stand in the order of their conversations' turns.

    The head reads what was said and is told no label: its own predictions are the same under either history. What
    changes is the floor that goes by the previous strategy.
    """
    items = [row for row in rows if row.gold.strategy and row.readings.get("strategy")]
    if not items:
        return None
    before = previous_predicted(rows)
    golds = {
        "gold": [row.gold for row in items],
        "predicted": [row.gold.model_copy(update={"previous_strategy": before[row.key]}) for row in items],
    }
    gold = [row.gold.strategy or "" for row in items]
    resampling = draw([(row.source, row.conversation) for row in items])
    strategies = sorted({*gold, *(label for row in items for label in row.readings["strategy"])})
    same = [row.gold.previous_strategy == before[row.key] for row in items]
    ours = [_top(row) for row in items]
    return StrategyHistory(
        n=len(items),
        agreement=resampling.interval(ratio_draws(same, np.ones(len(same)), resampling)),
        gold=_metrics(gold, ours, golds["gold"], strategies, floors, resampling),
        predicted=_metrics(gold, ours, golds["predicted"], strategies, floors, resampling),
        preference=preference(gold, ours, strategies),
    )


def previous_predicted(rows: Sequence[Row]) -> dict[tuple[str, str], str]:
    """By row: the head's prediction at the supporter turn before it in its conversation, START before the first."""
    last: dict[tuple[str, str], str] = {}
    before = {}
    for row in rows:
        conversation = (row.source, row.conversation)
        before[row.key] = last.get(conversation, START)
        if row.num_chars and row.readings.get("strategy"):
            last[conversation] = _top(row)
    return before


def _top(row: Row) -> str:
    reading = row.readings["strategy"]
    return max(reading, key=reading.__getitem__)


def _metrics(
    gold: Sequence[str],
    ours: Sequence[str],
    golds: Sequence[Gold],
    strategies: Sequence[str],
    floors: Floors,
    resampling: Resampling,
) -> dict[str, Metric]:
    predictions = {HEAD: ours} | floors.predictions("strategy", golds)
    bias = {who: preference_bias_draws(gold, guesses, strategies, resampling) for who, guesses in predictions.items()}
    return {
        "accuracy": metric(
            {who: accuracy_draws(gold, each, resampling) for who, each in predictions.items()}, resampling
        ),
        "macro_f1": metric(
            {who: macro_f1_draws(gold, each, resampling) for who, each in predictions.items()}, resampling
        ),
        "preference_bias": metric(bias, resampling, "lower", floors_compete=False),
    }


def preference_bias_draws(
    gold: Sequence[str], predicted: Sequence[str], strategies: Sequence[str], resampling: Resampling
) -> Floats:
    """Draws of the preference bias: the standard deviation of `preference` over strategies (Kang et al. 2024,
    arXiv 2402.13211). 0: none is favoured; sqrt(S - 1) of S strategies: one is all that is ever said."""
    errors_NLL = np.zeros((len(gold), len(strategies) ** 2))
    errors_NLL[np.arange(len(gold)), _cells(gold, predicted, strategies)] = 1
    errors_RLL = resampling.sums(errors_NLL).reshape(-1, len(strategies), len(strategies))
    return _strengths(errors_RLL).std(axis=1)


def preference(gold: Sequence[str], predicted: Sequence[str], strategies: Sequence[str]) -> dict[str, float]:
    """How strongly each strategy is favoured over the others where it is wrong; above 1: favoured.

    Kang et al. 2024: with w_ij the times that i is predicted where j is right, the Bradley-Terry strengths p for which
    p_i = sum_j [w_ij p_j / (p_i + p_j)] / sum_j [w_ji / (p_i + p_j)] (the iteration of Newman 2023), scaled to add up to
    the number of strategies. What is right has no part in it. `PRIOR` is ours: theirs has none.

    >>> preference(["a", "a", "b"], ["a", "b", "b"], ["a", "b"])["b"] > 1.9
    True
    """
    num = len(strategies)
    counts = np.bincount(_cells(gold, predicted, strategies), minlength=num**2).reshape(1, num, num)
    return dict(zip(strategies, _strengths(counts.astype(np.float64))[0].tolist(), strict=True))


def _cells(gold: Sequence[str], predicted: Sequence[str], strategies: Sequence[str]) -> np.ndarray:
    """The cell of [predicted, gold], flattened, that each item falls in."""
    number = {strategy: at for at, strategy in enumerate(strategies)}
    pairs = zip(gold, predicted, strict=True)
    return np.array([number[guess] * len(strategies) + number[right] for right, guess in pairs])


def _strengths(errors_RLL: Floats) -> Floats:
    num = errors_RLL.shape[1]
    if num < 2:
        return np.ones(errors_RLL.shape[:2])
    wins_RLL = (errors_RLL + PRIOR) * (1 - np.eye(num))
    p_RL = np.ones(errors_RLL.shape[:2])
    for _ in range(NUM_SWEEPS):
        before = p_RL.copy()
        for i in range(num):  # one after the other: all at once, two strategies would swap for ever
            sums_RL = p_RL[:, [i]] + p_RL
            p_RL[:, i] = (wins_RLL[:, i] * p_RL / sums_RL).sum(axis=1) / (wins_RLL[:, :, i] / sums_RL).sum(axis=1)
        p_RL /= np.exp(np.log(p_RL).mean(axis=1, keepdims=True))
        if np.abs(np.log(p_RL) - np.log(before)).max() < TOLERANCE:
            break
    return p_RL / p_RL.sum(axis=1, keepdims=True) * num
