"""Two answers to the same words held against each other by a judge, in both orders; and what biases the judge.

With n pairs that were judged in both orders, `x` = 1 where our answer won, 0.5 for a tie, 0 where theirs did, averaged
over the pair's two orders:

* win rate: mean of x.
* position bias: (verdicts for the answer that stood first - verdicts for the second) / all verdicts. Each answer stands
  first once, so who is better cancels out; a judge that follows the position in a share p of its verdicts, and the
  content in the others, has a bias of p (of -p if it follows the second).
* disagreement: the share of pairs whose two orders do not name the same winner.
* length bias: mean of x where ours is the longer one - mean of x where theirs is: the slope of winning on being longer,
  at equal wins otherwise. A judge that follows the length in a share q of its verdicts has a bias of q. It is also
  positive where the longer answers are the better ones: only pairs whose lengths have nothing to do with their worth
  tell the two apart. The same as odds: [w1 / (1 - w1)] / [w2 / (1 - w2)] of these two means, each with half a win and
  half a loss added (Haldane). Pairs of equal length are in neither mean.

Intervals are bootstrap intervals over clusters of pairs.
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from warmline.evaluate.held_out import Progress, Progressed
from warmline.evaluate.judge import Judge, Status, UnreadableError, ask, json_object, readable
from warmline.evaluate.rows import StrictRow, add_row, digest, resume_rows
from warmline.evaluate.stats import MIN_CLUSTERS, Floats, Interval, Resampling, ratio_draws, resample

Order = Literal["ours first", "theirs first"]
ORDERS: tuple[Order, ...] = ("ours first", "theirs first")
Choice = Literal["first", "second", "tie"]

PROMPT = """Two assistants were given the same conversation. Decide which of the two answers is the better one for the \
person who wrote. A good answer takes in what the person said, is honest, does not push, and leaves them better heard. \
The order of the answers and their length say nothing about their worth.

[CONVERSATION]
{context}
[END OF CONVERSATION]

[ANSWER A]
{first}
[END OF ANSWER A]

[ANSWER B]
{second}
[END OF ANSWER B]

Answer with JSON alone: {{"winner": "A"}}, {{"winner": "B"}}, or {{"winner": "tie"}} if neither is better."""

MAX_BARE = 40  # characters of an answer that is a letter and its trimmings
_CHOICES: dict[str, Choice] = {"a": "first", "b": "second", "tie": "tie"}
_LINE = re.compile(r"(?im)^[\s*_#>-]*(?:winner|verdict)[\s*_]*[:=][\s*_]*(?:answer )?\[{0,2}(a|b|tie)\]{0,2}[\s*_.]*$")
_BARE = re.compile(r"(?i)[\s*_\[\"]*(?:answer )?(a|b|tie)[\s*_\].\"]*")


class Pair(NamedTuple):
    """Two answers to the same words."""

    id: str
    cluster: str
    context: str  # the conversation so far, as the judge reads it
    ours: str
    theirs: str


class PairRow(StrictRow):
    """One judgement of a pair, in one order."""

    id: str
    order: Order
    cluster: str
    judge: str
    asked: str  # digest of the prompt
    status: Status
    reason: str | None = None
    num_tries: int
    choice: Choice | None = None  # by position
    num_chars_ours: int
    num_chars_theirs: int

    @property
    def won(self) -> float:
        """1 if ours won, 0 if theirs did, 0.5 for a tie."""
        if self.choice == "tie":
            return 0.5
        return float((self.choice == "first") == (self.order == "ours first"))


class PairScores(NamedTuple):
    """What a judge said of two sides, and how much of it follows position and length."""

    num_pairs: int  # judged in both orders: all numbers are of these
    left_out: int  # pairs of which an order is unscored
    unscored: int  # judgements that the judge failed at
    wins: int  # pairs that ours won in both orders
    losses: int
    ties: int  # all others: ties, and pairs whose orders disagree
    win_rate: Interval | None  # None: no pair
    first_share: Interval | None  # of the verdicts that named a winner, those for the answer that stood first
    position_bias: Interval | None
    disagreement: Interval | None
    length_bias: Interval | None  # None: too few pairs of different lengths
    length_odds: Interval | None


def judge_pairs(
    judge: Judge,
    pairs: Sequence[Pair],
    file: Path,
    *,
    prompt: str = PROMPT,
    retry_unscored: bool = False,
    progress: Progress | None = None,
) -> Progressed:
    """Have every pair judged in both orders into `file`, a row each as it finishes; what is judged already is kept.

    `prompt` has the places {context}, {first} and {second}. Rows of other pairs, judges or prompts are dropped.
    Raises ValueError if two pairs share an id.
    """
    questions: dict[tuple[str, Order], tuple[Pair, str]] = {
        (pair.id, order): (pair, _asked(prompt, pair, order)) for pair in pairs for order in ORDERS
    }
    if len(questions) != 2 * len(pairs):
        raise ValueError("two pairs to be judged have the same id")
    digests = {key: digest(question) for key, (_, question) in questions.items()}

    def is_wanted(row: PairRow) -> bool:
        is_same = (row.judge, row.asked) == (judge.name, digests.get((row.id, row.order)))
        return is_same and (row.status == "scored" or not retry_unscored)

    rows = {(row.id, row.order): row for row in resume_rows(file, PairRow, is_wanted)}
    with progress(len(questions), len(rows)) if progress else nullcontext(_silent) as advance:
        for key, (pair, question) in questions.items():
            if key in rows:
                continue
            asked = ask(judge, question, parse_choice)
            rows[key] = PairRow(
                id=pair.id,
                order=key[1],
                cluster=pair.cluster,
                judge=judge.name,
                asked=digests[key],
                status="unscored" if asked.parsed is None else "scored",
                reason=asked.reason,
                num_tries=asked.num_tries,
                choice=asked.parsed,
                num_chars_ours=len(pair.ours),
                num_chars_theirs=len(pair.theirs),
            )
            add_row(file, rows[key])
            advance(1, "")
    num_unscored = sum(row.status == "unscored" for row in rows.values())
    return Progressed(len(rows) - num_unscored, num_unscored)


def parse_choice(answer: str) -> Choice:
    """Which position won, from JSON `{"winner": ...}`, a line `winner: A`, or the bare letter. Raises UnreadableError.

    >>> parse_choice('{"why": "it listens", "winner": "B"}'), parse_choice("Winner: A"), parse_choice("[[tie]]")
    ('second', 'first', 'tie')
    """
    text = readable(answer)
    found = json_object(text)
    if found is not None:
        named = str(found.get("winner", "")).strip().lower().removeprefix("answer ")
        if named not in _CHOICES:
            raise UnreadableError("the answer names no winner")
        return _CHOICES[named]
    if len(text) <= MAX_BARE and (bare := _BARE.fullmatch(text)):
        return _CHOICES[bare[1].lower()]
    lines = {each.lower() for each in _LINE.findall(text)}
    if len(lines) != 1:
        raise UnreadableError("the answer names " + ("two winners" if lines else "no winner"))
    return _CHOICES[lines.pop()]


def summarise_pairs(rows: Sequence[PairRow], *, samples: int, seed: int) -> PairScores:
    """Win rate and biases, by the formulas above. Pairs that were not scored in both orders are left out of all."""
    by_pair: dict[str, dict[Order, PairRow]] = {}
    for row in rows:
        by_pair.setdefault(row.id, {})[row.order] = row
    both = [
        (orders[ORDERS[0]], orders[ORDERS[1]])
        for orders in by_pair.values()
        if len(orders) == 2 and all(row.status == "scored" for row in orders.values())
    ]
    unscored = sum(row.status == "unscored" for row in rows)
    if not both:
        return PairScores(0, len(by_pair), unscored, 0, 0, 0, None, None, None, None, None, None)
    draw = resample([row.cluster for row, _ in both], samples=samples, seed=seed)
    won_N = np.array([(one.won + other.won) / 2 for one, other in both])
    first_N = np.array([sum(row.choice == "first" for row in pair) for pair in both])
    second_N = np.array([sum(row.choice == "second" for row in pair) for pair in both])
    twos_N = np.full(len(both), 2.0)
    decided_N = first_N + second_N
    bias, odds = _length(both, won_N, draw)
    return PairScores(
        num_pairs=len(both),
        left_out=len(by_pair) - len(both),
        unscored=unscored,
        wins=int((won_N == 1).sum()),
        losses=int((won_N == 0).sum()),
        ties=int(((won_N > 0) & (won_N < 1)).sum()),
        win_rate=draw.interval(ratio_draws(won_N, twos_N / 2, draw)),
        first_share=draw.interval(_safe_ratio(first_N, decided_N, draw)) if decided_N.any() else None,
        position_bias=draw.interval(ratio_draws(first_N - second_N, twos_N, draw)),
        disagreement=draw.interval(ratio_draws([one.won != other.won for one, other in both], twos_N / 2, draw)),
        length_bias=bias,
        length_odds=odds,
    )


def _length(
    both: Sequence[tuple[PairRow, PairRow]], won_N: Floats, draw: Resampling
) -> tuple[Interval | None, Interval | None]:
    longer_N = np.array([float(row.num_chars_ours > row.num_chars_theirs) for row, _ in both])
    shorter_N = np.array([float(row.num_chars_ours < row.num_chars_theirs) for row, _ in both])
    if min(longer_N.sum(), shorter_N.sum()) < MIN_CLUSTERS:
        return None, None
    slope_R = _safe_ratio(won_N * longer_N, longer_N, draw) - _safe_ratio(won_N * shorter_N, shorter_N, draw)

    def odds(group_N: Floats) -> Floats:
        wins_R = draw.sums(won_N * group_N)
        return (wins_R + 0.5) / (draw.sums(group_N) - wins_R + 0.5)

    return draw.interval(slope_R), draw.interval(odds(longer_N) / odds(shorter_N))


def _safe_ratio(numerators: Floats, denominators: Floats, draw: Resampling) -> Floats:
    """Draws of a share; a draw without any of the group gives the share of all."""
    top_R, bottom_R = draw.sums(numerators), draw.sums(denominators)
    return np.where(bottom_R > 0, top_R / np.where(bottom_R > 0, bottom_R, 1), top_R[0] / bottom_R[0])


def _asked(prompt: str, pair: Pair, order: Order) -> str:
    first, second = (pair.ours, pair.theirs) if order == "ours first" else (pair.theirs, pair.ours)
    return prompt.format(context=pair.context, first=first, second=second)


def _silent(count: int, note: str) -> None:
    """No progress shown."""
