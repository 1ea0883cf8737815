"""EQ-Bench scores: hand-worked values, the three conventions, floors, and `warmline eq-bench score` with bad input."""

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from warmline.evaluate.eq_bench import (
    Answers,
    against_word_mean,
    as_json,
    errors_of,
    floors,
    question_score,
    score,
    score_guided,
)
from warmline.evaluate.eq_bench_questions import Question, QuestionsError, questions_from, read_questions

from .eq_bench_toys import hub_rows, original_rows, plain, toy_questions, write_lines
from .test_cli import refused, warmline

QUESTIONS = toy_questions(20)
FIRST, REVISED = "First pass scores:\n", "\nRevised scores:\n"


def right(question: Question, off: int = 0) -> str:
    """The reference, or every score `off` away from it."""
    return plain(question, [value + off for value in question.reference])


def answered(*responses: str) -> Answers:
    return Answers({question.id: text for question, text in zip(QUESTIONS, responses, strict=False)})


def sigmoid(difference: float) -> float:
    return 6.5 / (1 + math.exp(-1.2 * (difference - 4)))


def test_the_formula_by_hand() -> None:
    assert question_score((0, 5, 10, 3), (0, 5, 10, 3)) == 10
    assert question_score((1, 5, 10, 3), (0, 5, 10, 3)) == pytest.approx(10 - 0.7477 * sigmoid(1))
    assert question_score((5, 0, 0, 10), (0, 0, 6, 10)) == pytest.approx(10 - 0.7477 * (sigmoid(5) + 6))
    assert question_score((2.5, 0, 0, 0), (0, 0, 0, 0)) == pytest.approx(10 - 0.7477 * sigmoid(2.5))
    assert question_score((100, 0, 0, 0), (0, 0, 0, 0)) == pytest.approx(10 - 74.77)


def test_conventions_differ_as_published_when_some_answers_cannot_be_read() -> None:
    responses = [right(question) for question in QUESTIONS[:17]] + ["I cannot say."] * 3
    result = score(QUESTIONS, answered(*responses))
    assert (result.official_score, result.lm_eval, result.parse_scaled) == (100, 85, 85)
    assert (result.official.parseable, result.tolerant.parseable, result.tolerant.score) == (17, 17, 100)
    assert [each.id for each in result.unscored] == ["18", "19", "20"]


def test_below_83_percent_there_is_no_official_score() -> None:
    responses = [right(question) for question in QUESTIONS[:16]] + [""] * 4
    result = score(QUESTIONS, answered(*responses))
    assert result.official_score is None
    assert result.official.first_pass == 100
    assert result.parse_scaled == 80
    assert as_json(result)["official"] == {"score": None, "first_pass": 100, "revised": None}


def test_the_better_of_first_pass_and_revision_counts() -> None:
    better = [f"{FIRST}{right(each, 1)}{REVISED}{right(each)}" for each in QUESTIONS]
    result = score(QUESTIONS, answered(*better))
    one_off = 100 - 4 * 7.477 * sigmoid(1)
    assert result.official_score == result.official.revised == 100
    assert result.official.first_pass == pytest.approx(one_off)
    assert result.errors.mae == 0
    assert result.lm_eval == 100  # the last number of a name counts
    worse = [f"{FIRST}{right(each)}{REVISED}{right(each, 1)}" for each in QUESTIONS]
    result = score(QUESTIONS, answered(*worse))
    assert result.official_score == result.tolerant.score == 100
    assert result.official.revised == pytest.approx(one_off)
    assert result.lm_eval == pytest.approx(one_off)


@pytest.mark.parametrize(("num_revised", "counts"), [(19, True), (18, False)])
def test_a_revision_counts_only_with_95_percent_as_many_parseable(num_revised: int, counts: bool) -> None:
    revised = [f"{FIRST}{right(each, 1)}{REVISED}{right(each)}" for each in QUESTIONS[:num_revised]]
    lost = [f"{FIRST}{right(each, 1)}{REVISED}none" for each in QUESTIONS[num_revised:]]
    official = score(QUESTIONS, answered(*revised, *lost)).official
    assert official.revised == 100
    assert (official.chosen == "revised") == counts
    assert official.parseable == (19 if counts else 20)


def test_the_tolerant_number_reads_what_the_published_parser_misses() -> None:
    bold = [right(each).replace(": ", "**: ") for each in QUESTIONS]
    result = score(QUESTIONS, answered(*bold))
    assert (result.official_score, result.official.parseable, result.lm_eval) == (None, 0, 0)
    assert (result.tolerant.score, result.tolerant.parseable) == (100, 20)
    assert all("the tolerant parser reads it" in each.why for each in result.unscored)
    assert result.errors.mae is None


def test_errors_by_hand() -> None:
    questions = [
        Question("1", "", ("A", "B", "C", "D"), (0, 2, 4, 6)),
        Question("2", "", ("A", "B", "C", "D"), (1, 3, 5, 7)),
    ]
    errors = errors_of(questions, [(0, 2, 4, 6), (3, 3, 5, 7)])
    loss = 7.477 * sigmoid(2)
    assert errors.score == pytest.approx(100 - loss / 2)
    assert errors.mae == 2 / 8
    assert errors.se == pytest.approx(loss / math.sqrt(2) / math.sqrt(2))
    assert errors.pearson_r == pytest.approx(37 / math.sqrt(35.5 * 42))
    assert errors_of(questions, [None, (3, 3, 3, 3)]).pearson_r is None
    assert errors_of(questions, [None, (3, 3, 3, 3)]).se is None
    assert errors_of(questions, [None, None]).n == 0


def test_floors_by_hand() -> None:
    questions = [
        Question("1", "", ("Sad", "Glad", "Mad", "Bored"), (0, 8, 3, 3)),
        Question("2", "", ("Sad", "Glad", "Calm", "Proud"), (5, 2, 0, 0)),
        Question("3", "", ("Sad", "Shy", "Calm", "Numb"), (4, 1, 1, 9)),
    ]
    found = floors(questions)
    assert found.word_means == ((4, 2, 3, 3), (2, 8, 1, 3), (2, 3, 0, 3))  # 4.5 and 2.5 are rounded to even
    assert found.threes.score == pytest.approx(
        sum(10 * question_score((3, 3, 3, 3), each.reference) for each in questions) / 3
    )
    every = [question_score((guess, 8, 3, 3), (0, 8, 3, 3)) for guess in range(11)]
    one = Question("1", "", ("Sad", "Glad", "Mad", "Bored"), (0, 0, 0, 0))
    assert floors([one]).random == pytest.approx(100 - 4 * (100 - 10 * sum(every) / 11))


def test_the_gain_over_the_floor_is_paired_and_clustered_by_scene() -> None:
    assert QUESTIONS[2].scene == QUESTIONS[3].scene != QUESTIONS[0].scene
    found = against_word_mean(score(QUESTIONS, answered(*map(right, QUESTIONS))))
    assert found is not None
    assert found.verdict == "beats"
    nothing = score(QUESTIONS, answered(*[""] * 20))
    assert against_word_mean(nothing) is None
    words = floors(QUESTIONS).word_means
    same = score(QUESTIONS, answered(*[plain(each, mean) for each, mean in zip(QUESTIONS, words, strict=True)]))
    found = against_word_mean(same)
    assert found is not None
    assert (found.difference.value, found.verdict) == (0, "not distinguishable")


def test_guided_answers_have_a_name_of_their_own() -> None:
    guided = score_guided(QUESTIONS, answered(*map(right, QUESTIONS)))
    assert guided.name == "EQ-Bench v2, guided"
    assert (guided.parseable, guided.errors.score) == (20, 100)


def test_both_layouts_give_the_same_questions(tmp_path: Path) -> None:
    rows = original_rows(6)
    original = tmp_path / "original.json"
    original.write_text(json.dumps(rows), encoding="utf-8")
    hub = tmp_path / "hub.json"
    hub.write_text(json.dumps(hub_rows(rows)), encoding="utf-8")
    lines = write_lines(tmp_path / "hub.jsonl", hub_rows(rows))
    assert read_questions(original) == read_questions(hub) == read_questions(lines) == toy_questions(6)
    assert all(isinstance(value, int) for question in read_questions(lines) for value in question.reference)


def changed(**fields: object) -> dict[str, Any]:
    row = original_rows(1)["1"]
    return row | {"reference_answer_fullscale": {**row["reference_answer_fullscale"], **fields}}  # type: ignore[dict-item]


BAD_QUESTIONS = {
    "not JSON": ("{", "neither JSON nor JSON Lines"),
    "not text": (b"\xff\xfe\x00", "not UTF-8"),
    "empty": ("", "no questions"),
    "a number": ("7", "no questions"),
    "an empty object": ("{}", "no questions"),
    "nested without end": ("[" * 100_000, "nested too deeply"),
    "no prompt": ('{"1": {"reference_answer_fullscale": {}}}', "expected an object with a prompt"),
    "a row that is a list": ('{"1": []}', "question '1': expected an object"),
    "version 1 only": ('{"1": {"prompt": "p", "reference_answer": {}}}', "no reference_answer_fullscale"),
    "code for a literal": (
        json.dumps({"1": {"prompt": "p", "reference_answer_fullscale": "__import__('os').getcwd()"}}),
        "not a Python literal",
    ),
    "a literal list": (json.dumps({"1": {"prompt": "p", "reference_answer_fullscale": "[1]"}}), "not an object"),
    "three emotions": (json.dumps({"1": changed(emotion4=None)}), "emotion1 to emotion4"),
    "two words": (json.dumps({"1": changed(emotion4="very sad")}), "one word each"),
    "twice": (json.dumps({"1": changed(emotion3="Numb", emotion4="numb")}), "stands twice"),
    "no score": (json.dumps({"1": changed(emotion2_score=None)}), "emotion2_score is 'None', expected 0 to 10"),
    "a score in words": (json.dumps({"1": changed(emotion2_score="high")}), "'high'"),
    "a score above 10": (json.dumps({"1": changed(emotion2_score=11)}), "'11'"),
    "a truth": (json.dumps({"1": changed(emotion2_score=True)}), "'True'"),
}


@pytest.mark.parametrize("what", BAD_QUESTIONS)
def test_a_broken_question_file_is_named_with_its_fault(what: str, tmp_path: Path) -> None:
    content, message = BAD_QUESTIONS[what]
    file = tmp_path / "questions.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(QuestionsError) as caught:
        read_questions(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    answers = write_lines(tmp_path / "answers.jsonl", [{"id": "1", "response": "x"}])
    assert message in refused(warmline("eq-bench", "score", "--questions", file, "--answers", answers))


def test_two_questions_with_one_id_are_refused() -> None:
    row = original_rows(1)["1"]
    with pytest.raises(QuestionsError, match="the same id"):
        questions_from([("1", row), ("1", row)])


@pytest.fixture
def questions_file(tmp_path: Path) -> Path:
    file = tmp_path / "questions.json"
    file.write_text(json.dumps(original_rows(20)), encoding="utf-8")
    return file


def scored(questions: Path, answers: Path) -> dict[str, Any]:
    done = warmline("eq-bench", "score", "--questions", questions, "--answers", answers, "--json")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_the_command_prints_the_agreed_json(questions_file: Path, tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {"id": number, "response": right(each)} for number, each in enumerate(QUESTIONS, start=1)
    ]
    rows[0]["id"] = "1"  # a number or text
    found = scored(questions_file, write_lines(tmp_path / "answers.jsonl", rows))
    scores = {"score": 100.0}
    assert found.pop("floors").keys() == {"random", "threes", "word_mean"}
    assert found.pop("pearson_r") == pytest.approx(1)
    assert found == {
        "version": "v2",
        "n": 20,
        "parseable": 20,
        "official": {"score": 100.0, "first_pass": 100.0, "revised": None},
        "lm_eval": scores,
        "parse_scaled": scores,
        "tolerant": {"score": 100.0, "parseable": 20},
        "mae": 0.0,
        "se": 0.0,
        "unscored": [],
    }


BAD_ANSWERS = {
    "empty": ("", "the answer is empty"),
    "white space": ("  \n", "the answer is empty"),
    "100 kB of one letter": ("a" * 100_000, "found 0"),
    "100 kB of digits": ("Anger: " + "9" * 100_000, "found 1"),
    "100 kB of pairs": ("Anger: 7 " * 11_000, "found 1"),
    "French": ("Colère : 7\nJoie : 3", "found 0"),
    "Chinese": ("愤怒\uff1a7\n喜悦\uff1a3", "found 0"),
    "refusal": ("I'm sorry, I can't do that.", "found 0"),
    "only headings": (f"{FIRST}{REVISED}", "the answer is empty"),
    "lone surrogate": ("\ud83d", "found 0"),
    "control characters": ("\x00\x1b[31m", "found 0"),
    "not text": (None, "no text as its response"),
    "a list": (["7"], "no text as its response"),
}


@pytest.mark.parametrize("what", BAD_ANSWERS)
def test_an_answer_that_cannot_be_read_is_counted_and_is_no_official_zero(
    what: str, questions_file: Path, tmp_path: Path
) -> None:
    response, why = BAD_ANSWERS[what]
    rows = [{"id": each.id, "response": right(each)} for each in QUESTIONS]
    rows[6] = {"id": "7", "response": response}  # type: ignore[dict-item]
    answers = write_lines(tmp_path / "answers.jsonl", rows)
    found = scored(questions_file, answers)
    assert (found["n"], found["parseable"]) == (20, 19)
    assert found["official"]["score"] == found["tolerant"]["score"] == 100
    assert found["lm_eval"]["score"] == found["parse_scaled"]["score"] == 95
    assert {each["id"] for each in found["unscored"]} == {"7"}
    assert any(why in each["why"] for each in found["unscored"])
    table = warmline("eq-bench", "score", "--questions", questions_file, "--answers", answers)
    assert table.exit_code == 0
    assert "\x1b" not in table.stdout


def test_lines_that_are_no_answer_are_counted_and_the_rest_is_scored(questions_file: Path, tmp_path: Path) -> None:
    rows = [{"id": each.id, "response": right(each)} for each in QUESTIONS]
    answers = write_lines(tmp_path / "answers.jsonl", rows)
    extra = [
        b"not json",
        b"[1]",
        b"[" * 100_000,
        b'{"response": "x"}',
        b'{"id": true, "response": "x"}',
        b'{"id": 1e999, "response": "x"}',
        b'{"id": "404", "response": "x"}',
        b'{"id": "3", "response": "\xff"}',
        b"",
    ]
    answers.write_bytes(b"\xef\xbb\xbf" + answers.read_bytes() + b"\n".join(extra))
    found = scored(questions_file, answers)
    assert found["official"]["score"] == found["lm_eval"]["score"] == 100
    assert [each["id"] for each in found["unscored"]] == ["404", None, None, None, None, None, None, "3"]
    reasons = [each["why"] for each in found["unscored"]]
    assert reasons[:3] == [
        "no question has this id",
        "line 21: not JSON",
        "line 22: expected an object with id and response",
    ]
    assert reasons[-1] == "line 28: a second answer to this question; the first counts"


def test_questions_without_an_answer_are_unscored(questions_file: Path, tmp_path: Path) -> None:
    answers = write_lines(
        tmp_path / "some.jsonl", [{"id": each.id, "response": right(each)} for each in QUESTIONS[:18]]
    )
    found = scored(questions_file, answers)
    assert (found["official"]["score"], found["lm_eval"]["score"]) == (100, 90)
    assert found["unscored"] == [{"id": "19", "why": "no answer"}, {"id": "20", "why": "no answer"}]


def test_wrong_ids_alone_give_no_number_and_say_so(questions_file: Path, tmp_path: Path) -> None:
    answers = write_lines(tmp_path / "wrong.jsonl", [{"id": "q1", "response": "Anger: 7"}])
    done = warmline("eq-bench", "score", "--questions", questions_file, "--answers", answers, "--json")
    found = json.loads(done.stdout)
    numbers = [found["official"], found["lm_eval"], found["parse_scaled"], found["tolerant"]]
    assert [each["score"] for each in numbers] == [None] * 4
    assert (found["mae"], found["pearson_r"], found["se"]) == (None, None, None)
    assert "nothing to score" in done.stderr
    assert len(found["unscored"]) == 21
    assert warmline("eq-bench", "score", "--questions", questions_file, "--answers", answers).exit_code == 0


@pytest.mark.parametrize(
    ("content", "message"), [("", "no answers in it"), ("\n \n", "no answers in it"), (None, "cannot be read")]
)
def test_no_answers_at_all_are_bad_input(
    content: str | None, message: str, questions_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "answers.jsonl"
    if content is not None:
        file.write_text(content)
    assert message in refused(warmline("eq-bench", "score", "--questions", questions_file, "--answers", file))


def test_the_table_shows_scores_floors_and_reasons(questions_file: Path, tmp_path: Path) -> None:
    responses = [right(each, 1) for each in QUESTIONS[:18]] + ["no", "no"]
    rows = [{"id": each.id, "response": text} for each, text in zip(QUESTIONS, responses, strict=True)]
    answers = write_lines(tmp_path / "answers.jsonl", rows)
    done = warmline("eq-bench", "score", "--questions", questions_file, "--answers", answers)
    assert done.exit_code == 0
    for words in (
        "official",
        "lm-eval",
        "parse-scaled",
        "tolerant",
        "18 of 20",
        "floor: 3 for everything",
        "Pearson r",
    ):
        assert words in done.stdout
    assert "  19: expected 4 scores" in done.stdout
    assert "beats it" in done.stdout
    assert "EQ-Bench v2 has 171" in done.stderr


@pytest.mark.real
def test_the_published_floors_come_out_of_the_command(tmp_path: Path) -> None:
    root = os.environ.get("WARMLINE_DATA")
    if not root:
        pytest.skip("WARMLINE_DATA is not set")
    file = Path(root) / "eq-bench" / "eq_bench_v2_questions_171.json"
    questions = read_questions(file)
    threes = [{"id": each.id, "response": plain(each, [3] * 4)} for each in questions]
    found = scored(file, write_lines(tmp_path / "threes.jsonl", threes))
    assert found["floors"] == {
        "random": pytest.approx(1.435, abs=1e-3),
        "threes": pytest.approx(38.89, abs=5e-3),
        "word_mean": pytest.approx(54.83, abs=5e-3),
    }
    assert found["official"]["score"] == found["lm_eval"]["score"] == found["floors"]["threes"]
    assert (found["n"], round(found["mae"], 2), found["pearson_r"]) == (171, 2.97, None)
    means = floors(questions)
    said = [
        {"id": each.id, "response": plain(each, mean)} for each, mean in zip(questions, means.word_means, strict=True)
    ]
    found = scored(file, write_lines(tmp_path / "means.jsonl", said))
    assert found["official"]["score"] == found["floors"]["word_mean"]
    assert (round(found["se"], 2), round(found["mae"], 2), round(found["pearson_r"], 3)) == (2.33, 2.31, 0.485)
