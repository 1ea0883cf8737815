"""EQ-Bench v2 scores of given answers: the three published conventions and the tolerant one, with errors and floors.

The formula and the official convention are those of Paech 2023 (arXiv:2312.06281) and its code, version 2; the lm-eval
convention is that of the task `eq_bench` 2.1 of lm-evaluation-harness. All scores here are on the scale of the
benchmark: 100 is every reference met, 0 about what random answers get, and there is no lower bound.
"""

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import correlation, fmean, stdev
from typing import Literal, NamedTuple

import numpy as np

from warmline.evaluate.eq_bench_parsing import (
    Reading,
    Sections,
    read_sections,
    reference_parse,
    tolerant_parse,
    tolerant_sections,
)
from warmline.evaluate.eq_bench_questions import MAX_SCORE, NAMES, Question
from warmline.evaluate.stats import Interval, Verdict, ratio_draws, resample, verdict

VERSION = "v2"
MIN_PARSEABLE = 0.83  # of all questions: with fewer the official convention gives no score
MIN_REVISED = 0.95  # of the parseable first passes: with fewer the revised scores do not count
THREES = 3  # what one constant answers best; also the word mean's guess for a word that it never saw
BOOTSTRAP = 2000
DIGITS = 6  # of numbers in JSON


class AnswersError(ValueError):
    """A file of answers cannot be read at all."""


class Unscored(NamedTuple):
    """An answer that the reference parser could not read, or a line that is no answer."""

    id: str | None
    why: str


@dataclass(frozen=True)
class Answers:
    responses: Mapping[str, str]  # by question id
    unscored: tuple[Unscored, ...] = ()  # lines that are no answer to a question


def read_answers(file: Path) -> Answers:
    """The answers of a file of `{"id", "response"}` lines. A line that is none is kept as unscored, with its number.

    Of two answers to one question the first counts. Raises AnswersError for a file that cannot be opened or is empty.
    """
    try:
        lines = file.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise AnswersError(f"{file}: cannot be read: {error.strerror}") from None
    responses: dict[str, str] = {}
    unscored: list[Unscored] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found = _answer(line)
        if isinstance(found, Unscored):
            unscored.append(Unscored(found.id, f"line {number}: {found.why}"))
        elif found[0] in responses:
            unscored.append(Unscored(found[0], f"line {number}: a second answer to this question; the first counts"))
        else:
            responses[found[0]] = found[1]
    if not responses and not unscored:
        raise AnswersError(f'{file}: no answers in it; expected lines of {{"id", "response"}}')
    return Answers(responses, tuple(unscored))


def _answer(line: bytes) -> tuple[str, str] | Unscored:
    try:
        row = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return Unscored(None, "not JSON")
    given = row.get("id") if isinstance(row, dict) else None
    if isinstance(given, bool) or not isinstance(given, str | int):
        return Unscored(None, "expected an object with id and response")
    response = row.get("response")
    return (str(given), response) if isinstance(response, str) else Unscored(str(given), "no text as its response")


def question_score(values: Sequence[float], reference: Sequence[float]) -> float:
    """Full-scale score of one question, 10 for the reference itself.

    >>> question_score((3, 3, 3, 3), (3, 3, 3, 3)), round(question_score((0, 6, 0, 9), (0, 6, 0, 7)), 4)
    (10.0, 9.5958)
    """
    return 10 - 0.7477 * sum(_penalty(abs(value - right)) for value, right in zip(values, reference, strict=True))


def _penalty(difference: float) -> float:
    if difference == 0:
        return 0.0
    return 6.5 / (1 + math.exp(-1.2 * (difference - 4))) if difference <= 5 else difference


class Passes(NamedTuple):
    """What one parser reads in the two parts of an answer."""

    first_pass: Reading
    revised: Reading


@dataclass(frozen=True)
class Marked:
    """One question with all readings of its answer."""

    question: Question
    whole: Reading  # reference parser over the whole answer, as lm-eval reads it
    official: Passes
    tolerant: Passes


def mark(question: Question, response: str | None) -> Marked:
    """Read one answer in every way; None for a question that was not answered."""
    if response is None:
        none = Reading(None, "no answer")
        return Marked(question, none, Passes(none, none), Passes(none, none))
    parse, tolerant = (partial(parser, emotions=question.emotions) for parser in (reference_parse, tolerant_parse))
    return Marked(
        question,
        parse(response),
        Passes(*(_read(part, parse) for part in read_sections(response))),
        Passes(*(_read(part, tolerant) for part in tolerant_sections(response))),
    )


def _read(part: str | None, parse: "partial[Reading]") -> Reading:
    return Reading(None, "this part is missing") if part is None else parse(part)


class Convention(NamedTuple):
    """A benchmark score over parseable answers: the better of both passes, if enough revised ones can be read."""

    chosen: Literal["first_pass", "revised"]
    score: float | None  # None: nothing could be read
    parseable: int
    first_pass: float | None
    revised: float | None


def convention(questions: Sequence[Question], passes: Sequence[Passes]) -> Convention:
    """The official choice between first pass and revision, with any parser's readings; no minimum of parseable ones."""
    scores = {
        name: [
            10 * question_score(values, question.reference)
            for question, both in zip(questions, passes, strict=True)
            if (values := getattr(both, name).values) is not None
        ]
        for name in Sections._fields
    }
    first, revised = scores["first_pass"], scores["revised"]
    first_mean, revised_mean = (fmean(each) if each else None for each in (first, revised))
    enough = len(revised) > 0 and len(revised) >= MIN_REVISED * len(first)
    if revised_mean is not None and enough and (first_mean is None or revised_mean >= first_mean):
        return Convention("revised", revised_mean, len(revised), first_mean, revised_mean)
    return Convention("first_pass", first_mean, len(first), first_mean, revised_mean)


@dataclass(frozen=True)
class Errors:
    """How far given values are from the references, over all questions that have values."""

    n: int  # questions
    score: float | None
    mae: float | None  # mean absolute error of one emotion's score, 0 to 10
    pearson_r: float | None  # over all emotions of all questions; None for a constant answer
    se: float | None  # standard error of the score, over questions


def errors_of(questions: Sequence[Question], values: Sequence[Sequence[float] | None]) -> Errors:
    """Errors of the values that there are; None stands for a question without them."""
    pairs = [(each, given) for each, given in zip(questions, values, strict=True) if given is not None]
    if not pairs:
        return Errors(0, None, None, None, None)
    scores = [10 * question_score(given, question.reference) for question, given in pairs]
    answered = [float(value) for _, given in pairs for value in given]
    right = [float(value) for question, _ in pairs for value in question.reference]
    is_constant = len(set(answered)) == 1 or len(set(right)) == 1
    return Errors(
        len(pairs),
        fmean(scores),
        fmean(abs(one - other) for one, other in zip(answered, right, strict=True)),
        None if is_constant else correlation(answered, right),
        stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None,
    )


@dataclass(frozen=True)
class Floors:
    """What is reached without reading the dialogue."""

    random: float  # expected score of integers drawn evenly from 0 to 10: exact, nothing is drawn
    threes: Errors  # 3 for everything
    word_mean: Errors
    word_means: tuple[tuple[int, ...], ...]  # the answers of that floor, by question


def floors(questions: Sequence[Question]) -> Floors:
    """Floors on these questions.

    The word mean answers with each emotion word's mean reference in all other questions, rounded half to even, and 3
    for a word that stands in no other question.
    """
    total: defaultdict[str, int] = defaultdict(int)
    count: defaultdict[str, int] = defaultdict(int)
    for question in questions:
        for name, value in zip(question.emotions, question.reference, strict=True):
            total[name] += value
            count[name] += 1
    means = tuple(
        tuple(
            round((total[name] - value) / (count[name] - 1)) if count[name] > 1 else THREES
            for name, value in zip(question.emotions, question.reference, strict=True)
        )
        for question in questions
    )
    expected = [
        sum(fmean(_penalty(abs(guess - right)) for guess in range(MAX_SCORE + 1)) for right in question.reference)
        for question in questions
    ]
    threes = [[THREES] * len(question.reference) for question in questions]
    return Floors(
        fmean(10 * (10 - 0.7477 * each) for each in expected),
        errors_of(questions, threes),
        errors_of(questions, means),
        means,
    )


@dataclass(frozen=True)
class Result:
    """Every number of one set of answers. `errors` are of the readings that the official convention counts."""

    marked: tuple[Marked, ...]
    official: Convention
    lm_eval: float | None  # unparseable answers count 0, the whole answer is read; None: nothing was answered
    tolerant: Convention
    errors: Errors
    floors: Floors
    stray: tuple[Unscored, ...] = field(default=())  # answers and lines that belong to no question

    @property
    def n(self) -> int:
        return len(self.marked)

    @property
    def official_score(self) -> float | None:
        """None where fewer than 83 % of the questions have an answer that can be read."""
        return self.official.score if self.official.parseable >= MIN_PARSEABLE * self.n else None

    @property
    def parse_scaled(self) -> float | None:
        """The score over parseable answers, times the share of them."""
        if self.lm_eval is None:
            return None
        return (self.official.score or 0.0) * self.official.parseable / self.n

    @property
    def values(self) -> list[tuple[float, ...] | None]:
        """By question, what counts in the official score."""
        return [getattr(each.official, self.official.chosen).values for each in self.marked]

    @property
    def unscored(self) -> tuple[Unscored, ...]:
        """The questions that are not in the official score, and what belongs to no question."""
        own = [
            Unscored(each.question.id, _why(each, self.official.chosen, self.tolerant.chosen))
            for each, values in zip(self.marked, self.values, strict=True)
            if values is None
        ]
        return (*own, *self.stray)


def _why(marked: Marked, chosen: str, chosen_tolerant: str) -> str:
    reference, tolerant = getattr(marked.official, chosen), getattr(marked.tolerant, chosen_tolerant)
    if tolerant.values is not None:
        return f"{reference.why}; the tolerant parser reads it"
    return reference.why if tolerant.why == reference.why else f"{reference.why}; tolerant: {tolerant.why}"


def score(questions: Sequence[Question], answers: Answers) -> Result:
    """Score answers in every convention. A question without an answer counts like one that cannot be read."""
    marked = tuple(mark(question, answers.responses.get(question.id)) for question in questions)
    official = convention(questions, [each.official for each in marked])
    tolerant = convention(questions, [each.tolerant for each in marked])
    known = {question.id for question in questions}
    strangers = [Unscored(each, "no question has this id") for each in answers.responses if each not in known]
    return Result(
        marked,
        official,
        lm_eval_score(questions, [each.whole for each in marked]) if known & answers.responses.keys() else None,
        tolerant,
        errors_of(questions, [getattr(each.official, official.chosen).values for each in marked]),
        floors(questions),
        (*strangers, *answers.unscored),
    )


def lm_eval_score(questions: Sequence[Question], readings: Sequence[Reading]) -> float:
    """The mean over all questions, in which an answer that cannot be read counts 0."""
    return fmean(
        0.0 if reading.values is None else 10 * question_score(reading.values, question.reference)
        for question, reading in zip(questions, readings, strict=True)
    )


class AgainstFloor(NamedTuple):
    difference: Interval  # official minus word mean, on the questions that were scored
    verdict: Verdict


def against_word_mean(result: Result, *, seed: int = 0) -> AgainstFloor | None:
    """Whether the answers beat the word mean: paired bootstrap over scenes. None if nothing was scored."""
    rows = [
        (each.question, values, means)
        for each, values, means in zip(result.marked, result.values, result.floors.word_means, strict=True)
        if values is not None
    ]
    if not rows:
        return None
    gains = [10 * (question_score(v, each.reference) - question_score(m, each.reference)) for each, v, m in rows]
    draws = resample([each.scene for each, _, _ in rows], samples=BOOTSTRAP, seed=seed)
    difference = draws.interval(ratio_draws(gains, np.ones(len(gains)), draws))
    return AgainstFloor(difference, verdict(difference, "higher"))


class Guided(NamedTuple):
    """The score of answers that a grammar kept in form. It is never called EQ-Bench alone."""

    name: str
    parseable: int
    errors: Errors


def score_guided(questions: Sequence[Question], answers: Answers) -> Guided:
    readings = [mark(question, answers.responses.get(question.id)).whole for question in questions]
    errors = errors_of(questions, [reading.values for reading in readings])
    return Guided(NAMES["guided"], errors.n, errors)


def as_json(result: Result) -> dict[str, object]:
    """What `warmline eq-bench score --json` prints."""
    return {
        "version": VERSION,
        "n": result.n,
        "parseable": result.official.parseable,
        "official": {
            "score": _rounded(result.official_score),
            "first_pass": _rounded(result.official.first_pass),
            "revised": _rounded(result.official.revised),
        },
        "lm_eval": {"score": _rounded(result.lm_eval)},
        "parse_scaled": {"score": _rounded(result.parse_scaled)},
        "tolerant": {"score": _rounded(result.tolerant.score), "parseable": result.tolerant.parseable},
        "mae": _rounded(result.errors.mae),
        "pearson_r": _rounded(result.errors.pearson_r),
        "se": _rounded(result.errors.se),
        "floors": {
            "random": _rounded(result.floors.random),
            "threes": _rounded(result.floors.threes.score),
            "word_mean": _rounded(result.floors.word_mean.score),
        },
        "unscored": [each._asdict() for each in result.unscored],
    }


def _rounded(number: float | None) -> float | None:
    return None if number is None else round(number, DIGITS)
