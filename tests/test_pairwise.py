"""Pairwise judging in both orders: a judge with planted biases behind a real HTTP server, and what is found of them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.held_out import Progressed
from warmline.evaluate.judge import Judge, UnreadableError
from warmline.evaluate.pairwise import (
    Choice,
    Order,
    Pair,
    PairRow,
    PairScores,
    judge_pairs,
    parse_choice,
    summarise_pairs,
)
from warmline.evaluate.rows import read_rows
from warmline.evaluate.stats import Interval

from .test_remote import DONE, Server, event, serving

WITHIN = 0.02


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ('{"winner": "A"}', "first"),
        ('```json\n{"reason": "B pushes", "winner": "a"}\n```', "first"),
        ('Both are kind.\n{"winner": "Answer B"}', "second"),
        ('{"winner": "tie"}', "tie"),
        ("Winner: B", "second"),
        ("A pushes, B listens.\n**Winner:** B.", "second"),
        ("[[A]]", "first"),
        ("Answer B.", "second"),
        ("tie", "tie"),
    ],
)
def test_verdicts_are_read_in_every_form_that_judges_use(answer: str, choice: Choice) -> None:
    assert parse_choice(answer) == choice


@pytest.mark.parametrize(
    "answer",
    ["", "Both are good.", "A is warmer, B is deeper.", '{"winner": "C"}', '{"winner": null}', '{"score": 3}',
     '{"winner": "A", "winner": "B"}', "Winner: A\nWinner: B", "A" * 100_001, "winner: A or B", "An answer"],
)  # fmt: skip
def test_no_verdict_is_made_up(answer: str) -> None:
    with pytest.raises(UnreadableError):
        parse_choice(answer)


@given(st.text(max_size=60))
def test_any_text_is_a_verdict_or_refused(answer: str) -> None:
    try:
        assert parse_choice(answer) in {"first", "second", "tie"}
    except UnreadableError:
        assert answer.strip().lower() not in {"a", "b", "tie"}


# ---- planted biases, over real HTTP ----


def pairs(num: int) -> list[Pair]:
    """Pairs in which who is better and who is longer are fully crossed, as a study would draw them."""
    made = []
    for number in range(num):
        ours_better, ours_longer = number % 2 == 0, number // 2 % 2 == 0
        ours = f"pair {number} worth {5 if ours_better else 3}" + " and so on" * (4 if ours_longer else 1)
        theirs = f"pair {number} worth {3 if ours_better else 5}" + " and so on" * (1 if ours_longer else 4)
        made.append(Pair(f"p{number}", f"c{number}", "User: it was a long day", ours, theirs))
    return made


def answers_of(prompt: str) -> tuple[str, str]:
    first, second = re.findall(r"\[ANSWER [AB]\]\n(.*?)\n\[END", prompt)
    return first, second


def worth(answer: str) -> int:
    return int(re.findall(r"worth (\d)", answer)[0])


def by_content(prompt: str) -> str:
    first, second = answers_of(prompt)
    return "A" if worth(first) > worth(second) else "B"


def by_length(prompt: str) -> str:
    first, second = answers_of(prompt)
    return "A" if len(first) > len(second) else "B"


def planted(position: float, length: float, seed: int) -> Callable[[str], str]:
    """A judge that follows the position, the length or the content. For prompts of each kind (who of the two is better,
    who longer) it draws without replacement from a deck of 50, so that its shares are exact; what meets which pair is
    chance."""
    deck = ["position"] * round(50 * position) + ["length"] * round(50 * length)
    deck += ["content"] * (50 - len(deck))
    random = np.random.default_rng(seed)
    decks: dict[tuple[str, str], list[str]] = {}

    def judge(prompt: str) -> str:
        left = decks.setdefault((by_content(prompt), by_length(prompt)), [])
        if not left:
            left.extend(random.permutation(deck))
        drawn = left.pop()
        return "A" if drawn == "position" else by_length(prompt) if drawn == "length" else by_content(prompt)

    return judge


def judged(tmp_path: Path, judge: Callable[[str], str], num: int) -> PairScores:
    """What `judge` says of `num` pairs, asked over HTTP."""
    file = tmp_path / "pairs.jsonl"
    with serving() as server:
        server.answers.append(lambda handler: answer(handler, server, judge))
        engine = RemoteEngine(server.url, "judge")
        assert judge_pairs(Judge(engine, "judge"), pairs(num), file) == Progressed(2 * num, 0)
        assert len(server.bodies) == 2 * num
    return summarise_pairs(read_rows(file, PairRow), samples=500, seed=1)


def answer(handler, server: Server, judge: Callable[[str], str]) -> None:
    winner = judge(server.bodies[-1]["messages"][-1]["content"])
    body = event(f'{{"winner": "{winner}"}}', finish="stop") + DONE
    handler.send_response(200)
    handler.send_header("Content-Type", "text/event-stream")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def is_near(found: Interval | None, expected: float) -> None:
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert abs(found.value - expected) <= WITHIN, found
    assert found.low <= expected <= found.high, found


def test_planted_biases_are_found_within_two_points(tmp_path: Path) -> None:
    scores = judged(tmp_path, planted(0.24, 0.12, seed=4), 200)
    assert (scores.num_pairs, scores.left_out, scores.unscored) == (200, 0, 0)
    is_near(scores.position_bias, 0.24)
    is_near(scores.length_bias, 0.12)
    is_near(scores.win_rate, 0.5)


def test_an_honest_judge_shows_no_bias_at_all(tmp_path: Path) -> None:
    scores = judged(tmp_path, by_content, 40)
    assert (scores.wins, scores.losses, scores.ties) == (20, 20, 0)
    for found in (scores.position_bias, scores.length_bias, scores.disagreement):
        assert found is not None
        assert found.value == 0
    assert scores.first_share is not None
    assert scores.first_share.value == 0.5
    assert scores.length_odds is not None
    assert scores.length_odds.value == pytest.approx(1)


def test_a_judge_that_only_sees_positions_disagrees_with_itself_every_time(tmp_path: Path) -> None:
    scores = judged(tmp_path, lambda _prompt: "B", 20)
    assert scores.position_bias == Interval(-1.0, -1.0, -1.0)
    assert scores.disagreement == Interval(1.0, 1.0, 1.0)
    assert scores.win_rate == Interval(0.5, 0.5, 0.5)


def test_a_judge_that_only_sees_length_has_great_odds(tmp_path: Path) -> None:
    scores = judged(tmp_path, by_length, 40)
    assert scores.length_bias == Interval(1.0, 1.0, 1.0)
    assert scores.length_odds is not None
    assert scores.length_odds.value == pytest.approx((20.5 / 0.5) ** 2)


# ---- without HTTP ----


def row(pair: int, order: Order, choice: Choice | None, ours: int = 5, theirs: int = 5) -> PairRow:
    return PairRow(
        id=f"p{pair}",
        order=order,
        cluster=f"c{pair}",
        judge="j",
        asked="",
        status="scored" if choice else "unscored",
        reason=None if choice else "judge: silent",
        num_tries=1,
        choice=choice,
        num_chars_ours=ours,
        num_chars_theirs=theirs,
    )


@pytest.mark.parametrize(("position", "length", "wins"), [(0.2, 0.1, 0.5), (-0.15, 0.3, 0.7), (0.0, -0.1, 0.35)])
def test_biases_are_found_at_any_win_rate(position: float, length: float, wins: float) -> None:
    """Independent draws, 20,000 pairs: content says that ours wins in a share `wins` of the pairs."""
    random = np.random.default_rng(3)
    rows = []
    for pair in range(20_000):
        better, longer = random.random() < wins, random.random() < 0.5
        for order in ("ours first", "theirs first"):
            ours_is_first, drawn = order == "ours first", random.random()
            if drawn < abs(position):
                first = position > 0
            elif drawn < abs(position) + abs(length):
                first = (longer == (length > 0)) == ours_is_first
            else:
                first = better == ours_is_first
            rows.append(row(pair, order, "first" if first else "second", 9 if longer else 5, 5 if longer else 9))
    scores = summarise_pairs(rows, samples=200, seed=1)
    for found, expected in ((scores.position_bias, position), (scores.length_bias, length)):
        assert found is not None
        assert abs(found.value - expected) <= WITHIN


def test_ties_count_half_and_unscored_orders_leave_the_pair_out() -> None:
    rows = [row(0, "ours first", "tie"), row(0, "theirs first", "tie")]
    rows += [row(1, "ours first", "first"), row(1, "theirs first", "tie")]
    rows += [row(2, "ours first", "first"), row(2, "theirs first", None), row(3, "ours first", "first")]
    scores = summarise_pairs(rows, samples=100, seed=1)
    assert (scores.num_pairs, scores.left_out, scores.unscored) == (2, 2, 1)
    assert (scores.wins, scores.ties, scores.losses) == (0, 2, 0)
    assert scores.win_rate == Interval(0.625, None, None)
    assert scores.disagreement == Interval(0.5, None, None)
    assert scores.position_bias == Interval(0.25, None, None)
    assert scores.length_bias is None


def test_nothing_judged_is_no_number() -> None:
    scores = summarise_pairs([row(0, "ours first", None)], samples=100, seed=1)
    assert (scores.num_pairs, scores.left_out, scores.unscored, scores.win_rate) == (0, 1, 1, None)
    only_ties = [row(0, "ours first", "tie"), row(0, "theirs first", "tie")]
    assert summarise_pairs(only_ties, samples=100, seed=1).first_share is None


def test_a_judge_that_fails_at_an_order_is_resumed(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    engine = ScriptedEngine(["A", "no idea", "tie", "B", "B"])
    judge = Judge(engine, "scripted", num_tries=1)
    assert judge_pairs(judge, pairs(2), file) == Progressed(3, 1)
    assert judge_pairs(judge, pairs(2), file) == Progressed(3, 1)
    assert judge_pairs(judge, pairs(2), file, retry_unscored=True) == Progressed(4, 0)
    with pytest.raises(ValueError, match="same id"):
        judge_pairs(judge, [*pairs(1), *pairs(1)], file)
