"""Rubric judging: strict reading, and a judge's failures over real HTTP that never become a score."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.engine.remote import RemoteEngine
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.held_out import Progressed
from warmline.evaluate.judge import (
    Judge,
    Rubric,
    RubricItem,
    RubricRow,
    UnreadableError,
    ask,
    parse_rubric,
    score_rubric,
)
from warmline.evaluate.rows import read_rows

from .test_remote import DONE, Server, event, serving

RUBRIC = Rubric(("warmth", "depth_of_insight"))
GOOD = '{"warmth": 12, "depth_of_insight": 7.5}'
ITEMS = [RubricItem(f"i{number}", f"c{number}", f"Judge answer {number}.") for number in range(3)]


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as state:
        yield state


def judge_at(server: Server, num_tries: int = 4, timeout_s: float = 10.0) -> Judge:
    engine = RemoteEngine(server.url, "judge", timeout_s=timeout_s)
    return Judge(engine, "judge", num_tries=num_tries, backoff_s=0.01)


@pytest.mark.parametrize(
    "answer",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"My reasons are these.\n{GOOD}\nThat is all.",
        f'<think>{{"warmth": 1}} perhaps</think>\n{GOOD}',
        '{"why": "it listens", "warmth": "12/20", "Depth of insight": "7.5"}',
        "warmth: 12\ndepth_of_insight: 7.5",
        "**Warmth**: 12/20\n- *Depth-of-insight* = 7.5 / 20\n",
        "| warmth | 12 |\n| depth of insight | 7.5 |",
        "1. Warmth: 12\n2. Depth of insight: 7.5.",
    ],
)
def test_scores_are_read_in_every_form_that_judges_use(answer: str) -> None:
    assert parse_rubric(answer, RUBRIC) == {"warmth": 12.0, "depth_of_insight": 7.5}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("", "empty"),
        ("I find it rather warm, say twelve.", "no score"),
        ('{"warmth": 12}', "depth_of_insight no score"),
        ("warmth: 12\nwarmth: 13\ndepth_of_insight: 7", "warmth 2 scores"),
        ('{"warmth": 12, "warmth": 12, "depth_of_insight": 7}', "twice"),
        ('{"warmth": 21, "depth_of_insight": 7}', "outside 0 to 20"),
        ('{"warmth": -1, "depth_of_insight": 7}', "outside 0 to 20"),
        ('{"warmth": 1e999, "depth_of_insight": 7}', "outside"),
        ('{"warmth": NaN, "depth_of_insight": 7}', "no number"),
        ('{"warmth": true, "depth_of_insight": 7}', "no number"),
        ('{"warmth": null, "depth_of_insight": 7}', "no number"),
        ('{"warmth": [12], "depth_of_insight": 7}', "no number"),
        ('{"warmth": "7/10", "depth_of_insight": 7}', "another scale"),
        ("warmth: 7/10\ndepth_of_insight: 7/10", "another scale"),
        ("warmth: " + "9" * 5000 + "\ndepth_of_insight: 3", "warmth no score"),
        ('{"warmth": ' + "9" * 5000 + ', "depth_of_insight": 3}', "no score"),
        ("[" * 100_000, "no score"),
        ("x" * 100_001, "100,000"),
        ('{"warmth": 12, "depth', "no score"),
    ],
)
def test_what_cannot_be_read_is_refused_and_not_quoted(answer: str, why: str) -> None:
    with pytest.raises(UnreadableError, match=why) as caught:
        parse_rubric(answer, RUBRIC)
    assert len(str(caught.value)) < 100


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | st.from_regex(r"(warmth|depth of insight|\{|\}|\"|: ?|-?\d{1,4}|/20|\n|,){0,20}"))
def test_no_text_is_accepted_without_each_score_inside_the_scale(answer: str) -> None:
    try:
        scores = parse_rubric(answer, RUBRIC)
    except UnreadableError:
        return
    assert list(scores) == list(RUBRIC.criteria)
    assert all(math.isfinite(score) and 0 <= score <= 20 for score in scores.values())
    assert "warmth" in answer.lower()


@given(st.floats(0, 20).map(lambda x: round(x, 3)), st.integers(0, 20))
def test_what_a_judge_gave_comes_back_as_it_was(one: float, other: int) -> None:
    expected = {"warmth": one, "depth_of_insight": float(other)}
    assert parse_rubric(json.dumps({"depth_of_insight": other, "warmth": one}), RUBRIC) == expected
    assert parse_rubric(f"depth_of_insight: {other}\nWarmth: {one:.3f}/20", RUBRIC) == expected


def test_a_rubric_has_different_names_and_a_rising_scale() -> None:
    for bad in ({"criteria": ()}, {"criteria": ("Warmth", "warmth")}, {"criteria": ("a",), "low": 5, "high": 5}):
        with pytest.raises(ValueError, match="rubric"):
            Rubric(**bad)  # type: ignore[arg-type]


# ---- over real HTTP ----


def hangs(server: Server) -> None:
    def silence(_handler: object) -> None:
        server.released.wait(5)

    server.answers.append(silence)


def cuts(server: Server) -> None:
    server.streams(event('{"warmth": 12, '), end=False)


def fails(server: Server) -> None:
    server.fails(503, b'{"error": {"message": "overloaded"}}')


def refuses(server: Server) -> None:
    server.fails(401, b'{"error": {"message": "no such key"}}')


def talks(server: Server) -> None:
    server.streams(event("A warm answer, I think.", finish="stop"), DONE)


def is_html(server: Server) -> None:
    server.fails(200, b"<html>hello</html>", "text/html")


def answers(server: Server, text: str = GOOD) -> None:
    server.streams(event(text, finish="stop"), DONE)


@pytest.mark.parametrize("breaks", [hangs, cuts, fails, refuses, talks, is_html])
def test_a_judge_that_fails_is_asked_again(server: Server, breaks) -> None:
    breaks(server)
    breaks(server)
    answers(server)
    asked = ask(judge_at(server, timeout_s=0.2), "Judge this.", lambda text: parse_rubric(text, RUBRIC))
    assert asked.parsed == {"warmth": 12.0, "depth_of_insight": 7.5}
    assert (asked.num_tries, asked.reason) == (3, None)


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        (hangs, "sent nothing for 0.2 s"),
        (cuts, "broke off in the middle"),
        (fails, "HTTP 503: overloaded"),
        (refuses, "HTTP 401"),
        (talks, "gives warmth no score"),
        (is_html, "text/html"),
    ],
)
def test_a_judge_that_goes_on_failing_leaves_the_sample_unscored(
    server: Server, tmp_path: Path, breaks, why: str
) -> None:
    breaks(server)
    file = tmp_path / "scores" / "rubric.jsonl"
    done = score_rubric(judge_at(server, 2, timeout_s=0.2), ITEMS[:1], RUBRIC, file)
    assert done == Progressed(0, 1)
    [row] = read_rows(file, RubricRow)
    assert (row.status, row.scores, row.num_tries) == ("unscored", {}, 2)
    assert row.reason is not None
    assert row.reason.startswith("judge: ")
    assert why in row.reason
    assert len(server.bodies) == 2


def test_a_judge_that_cannot_be_reached_is_the_judges_failure(tmp_path: Path) -> None:
    judge = Judge(RemoteEngine("http://127.0.0.1:9", "judge"), "judge", num_tries=2, backoff_s=0.0)
    assert score_rubric(judge, ITEMS, RUBRIC, tmp_path / "rows.jsonl") == Progressed(0, 3)


def test_prose_is_asked_again_a_little_warmer_and_with_another_seed(server: Server) -> None:
    talks(server)
    fails(server)
    talks(server)
    answers(server)
    assert ask(judge_at(server), "Judge this.", lambda text: parse_rubric(text, RUBRIC)).num_tries == 4
    assert [round(body["temperature"], 2) for body in server.bodies] == [0.0, 0.15, 0.15, 0.3]
    assert [body["seed"] for body in server.bodies] == [0, 1, 2, 3]


def test_what_is_judged_is_kept_and_the_rest_is_resumed(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    answers(server)
    judge = judge_at(server)
    assert score_rubric(judge, ITEMS[:2], RUBRIC, file) == Progressed(2, 0)
    with file.open("a", encoding="utf-8") as handle:
        handle.write('{"id": "i2", "clust')  # killed in the middle of a row
    assert score_rubric(judge, ITEMS, RUBRIC, file) == Progressed(3, 0)
    assert len(server.bodies) == 3
    assert [row.id for row in read_rows(file, RubricRow)] == ["i0", "i1", "i2"]
    changed = [ITEMS[0]._replace(prompt="Judge another answer."), *ITEMS[1:]]
    score_rubric(judge, changed, RUBRIC, file)
    assert len(server.bodies) == 4, "an answer that changed is judged anew"
    score_rubric(Judge(judge.engine, "other judge"), changed, RUBRIC, file)
    assert len(server.bodies) == 7, "two judges do not share a score"


def test_unscored_rows_stay_until_somebody_asks_for_them_again(server: Server, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    fails(server)
    judge = judge_at(server, num_tries=1)
    assert score_rubric(judge, ITEMS, RUBRIC, file) == Progressed(0, 3)
    answers(server)
    server.answers.pop(0)
    assert score_rubric(judge, ITEMS, RUBRIC, file) == Progressed(0, 3)
    assert len(server.bodies) == 3
    assert score_rubric(judge, ITEMS, RUBRIC, file, retry_unscored=True) == Progressed(3, 0)


def test_any_engine_can_judge(tmp_path: Path) -> None:
    judge = Judge(ScriptedEngine([GOOD, "Well.", "Well.", GOOD]), "scripted", num_tries=2, backoff_s=0.0)
    assert score_rubric(judge, ITEMS, RUBRIC, tmp_path / "rows.jsonl") == Progressed(2, 1)


def test_two_items_of_one_id_and_broken_files_are_named(tmp_path: Path) -> None:
    judge = Judge(ScriptedEngine([GOOD]), "scripted")
    with pytest.raises(ValueError, match="same id"):
        score_rubric(judge, [ITEMS[0], ITEMS[0]], RUBRIC, tmp_path / "rows.jsonl")
    file = tmp_path / "broken.jsonl"
    file.write_text('{"id": 1}\n')
    with pytest.raises(ValueError, match=r"broken\.jsonl, line 1"):
        read_rows(file, RubricRow)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_rows(file, RubricRow)
