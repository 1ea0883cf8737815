"""A language model as a judge: asked over any `Engine`, read strictly, and never mistaken for the model it judges.

What a judge fails at (silence, an HTTP error, half a stream, prose) is tried again and then *unscored*: it is counted,
and stands in no number of the model.
"""

import json
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

from pydantic import Field

from warmline.engine.engine import Engine, EngineError, GenerateRequest, Message, Sampling
from warmline.evaluate.held_out import Progress, Progressed
from warmline.evaluate.rows import StrictRow, add_row, digest, resume_rows
from warmline.evaluate.stats import Interval, ratio_draws, resample

MAX_ANSWER = 100_000  # characters of a judge's answer that are read
MAX_LINE = 300  # characters of a line that may be `name: number`
GREEDY = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=1024, seed=0)
WARMER = 0.15  # added to the temperature for each answer that could not be read: the same words would come again

Parsed = TypeVar("Parsed")
Status = Literal["scored", "unscored"]

_THOUGHT = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
_FENCED = re.compile(r"```(?:json|JSON)?[ \t]*\n(.*?)```", re.DOTALL)
_LINE = re.compile(
    r"[\s>*_|#•-]*(?:\d{1,2}[.)]\s*)?[*_\"]*(?P<name>[A-Za-z][A-Za-z_ -]{0,60}?)[*_\"\s]*[:=|][*_\s]*"
    r"(?P<score>-?\d+(?:\.\d+)?)(?:\s*/\s*(?P<of>\d+(?:\.\d+)?))?[*_\s.,;|]*"
)
_NUMBER = re.compile(r"\s*(?P<score>-?\d+(?:\.\d+)?)(?:\s*/\s*(?P<of>\d+(?:\.\d+)?))?\s*")


class UnreadableError(ValueError):
    """A judge's answer is not in the form that was asked for. The message holds no word of the answer."""


@dataclass(frozen=True)
class Judge:
    """Who judges, and how patiently it is asked."""

    engine: Engine
    name: str  # stands in every row
    sampling: Sampling = GREEDY
    num_tries: int = 4  # for one judgement
    backoff_s: float = 1.0  # seconds before the second try; doubled for each one after


class Asked(NamedTuple, Generic[Parsed]):
    """What came of a question: the verdict, or why there is none."""

    parsed: Parsed | None
    num_tries: int
    reason: str | None  # begins with `judge: `


def ask(judge: Judge, prompt: str, parse: Callable[[str], Parsed]) -> Asked[Parsed]:
    """Ask until the answer can be read or the tries are used up. Raises nothing that a judge could cause."""
    reason, num_unreadable = "", 0
    for tries in range(judge.num_tries):
        if tries:
            time.sleep(judge.backoff_s * 2 ** (tries - 1))
        temperature = judge.sampling.temperature + WARMER * num_unreadable
        seed = None if judge.sampling.seed is None else judge.sampling.seed + tries
        sampling = replace(judge.sampling, temperature=temperature, seed=seed)
        try:
            request = GenerateRequest((Message("user", prompt),), sampling)
            answer = "".join(chunk.text for chunk in judge.engine.generate(request))
            return Asked(parse(answer), tries + 1, None)
        except UnreadableError as error:
            num_unreadable += 1
            reason = str(error)
        except EngineError as error:
            reason = str(error)
    return Asked(None, judge.num_tries, f"judge: {reason}")


@dataclass(frozen=True)
class Rubric:
    """What is scored, from `low` to `high`."""

    criteria: tuple[str, ...]
    low: float = 0.0
    high: float = 20.0

    def __post_init__(self) -> None:
        if not self.criteria or len({_plain(name) for name in self.criteria}) != len(self.criteria):
            raise ValueError("a rubric needs criteria with different names")
        if not self.low < self.high:
            raise ValueError(f"a rubric's scale must rise, found {self.low:g} to {self.high:g}")

    def answer_form(self) -> str:
        """The JSON that a judge is asked for."""
        scale = f"{self.low:g}-{self.high:g}"
        return "{\n" + ",\n".join(f'  "{name}": {scale}' for name in self.criteria) + "\n}"


class RubricItem(NamedTuple):
    """Something to be scored by a rubric."""

    id: str
    cluster: str  # what is drawn as a whole when intervals are made: the conversation, the scenario
    prompt: str  # the whole question to the judge


class RubricRow(StrictRow):
    """One judgement as it stands in its file."""

    id: str
    cluster: str
    judge: str
    asked: str  # digest of the prompt: an answer that changed is judged anew
    status: Status
    reason: str | None = None  # why it is unscored
    num_tries: int
    scores: dict[str, float] = Field(default_factory=dict)  # by criterion; empty where unscored


class RubricScores(NamedTuple):
    """What a judge said of a set of items."""

    num_scored: int
    unscored: int  # the judge failed: they are in no number
    criteria: Mapping[str, Interval]  # means, on the rubric's scale


def score_rubric(
    judge: Judge,
    items: Sequence[RubricItem],
    rubric: Rubric,
    file: Path,
    *,
    retry_unscored: bool = False,
    progress: Progress | None = None,
) -> Progressed:
    """Have every item scored into `file`, a row each as it finishes; what is judged already is kept.

    Rows of other items, of another judge or of another prompt are dropped. `retry_unscored`: those that the judge
    failed at before are asked again. Raises ValueError if two items share an id.
    """
    wanted = {item.id: digest(item.prompt) for item in items}
    if len(wanted) != len(items):
        raise ValueError("two items to be judged have the same id")

    def is_wanted(row: RubricRow) -> bool:
        is_same = (row.judge, row.asked) == (judge.name, wanted.get(row.id))
        return is_same and (row.status == "scored" or not retry_unscored)

    rows = {row.id: row for row in resume_rows(file, RubricRow, is_wanted)}
    with progress(len(items), len(rows)) if progress else nullcontext(_silent) as advance:
        for item in items:
            if item.id in rows:
                continue
            asked = ask(judge, item.prompt, lambda answer: parse_rubric(answer, rubric))
            row = RubricRow(
                id=item.id,
                cluster=item.cluster,
                judge=judge.name,
                asked=wanted[item.id],
                status="unscored" if asked.parsed is None else "scored",
                reason=asked.reason,
                num_tries=asked.num_tries,
                scores=asked.parsed or {},
            )
            add_row(file, row)
            rows[item.id] = row
            advance(1, "")
    num_unscored = sum(row.status == "unscored" for row in rows.values())
    return Progressed(len(rows) - num_unscored, num_unscored)


def summarise_rubric(rows: Sequence[RubricRow], *, samples: int, seed: int) -> RubricScores:
    """Each criterion's mean over the judgements that there are, with an interval over clusters."""
    scored = [row for row in rows if row.status == "scored"]
    criteria: dict[str, Interval] = {}
    for name in dict.fromkeys(name for row in scored for name in row.scores):
        having = [row for row in scored if name in row.scores]
        draw = resample([row.cluster for row in having], samples=samples, seed=seed)
        values = [row.scores[name] for row in having]
        criteria[name] = draw.interval(ratio_draws(values, [1.0] * len(values), draw))
    return RubricScores(len(scored), len(rows) - len(scored), criteria)


def parse_rubric(answer: str, rubric: Rubric) -> dict[str, float]:
    """The score of each criterion, from one JSON object or from lines `name: number`.

    Every criterion must stand there once, with a number inside the scale; what else a judge says is left out. Raises
    UnreadableError.

    >>> parse_rubric('I would say: {"warmth": 12, "depth": "7/20"}', Rubric(("warmth", "depth")))
    {'warmth': 12.0, 'depth': 7.0}
    >>> parse_rubric("**Warmth**: 12\\n- depth: 7.5/20", Rubric(("warmth", "depth")))
    {'warmth': 12.0, 'depth': 7.5}
    """
    text = readable(answer)
    found = json_object(text)
    named = list(_in_lines(text)) if found is None else [(_plain(name), value) for name, value in found.items()]
    scores: dict[str, float] = {}
    for criterion in rubric.criteria:
        values = [value for name, value in named if name == _plain(criterion)]
        if len(values) != 1:
            raise UnreadableError(f"the answer gives {criterion} {len(values) or 'no'} score{'s' * (len(values) > 1)}")
        scores[criterion] = _score(values[0], criterion, rubric)
    return scores


def readable(answer: str) -> str:
    """The answer without the thoughts before it. Raises UnreadableError if there is nothing, or too much."""
    if len(answer) > MAX_ANSWER:
        raise UnreadableError(f"the answer has over {MAX_ANSWER:,} characters")
    text = _THOUGHT.sub("", answer).strip()
    if not text:
        raise UnreadableError("the answer is empty")
    return text


def json_object(text: str) -> dict[str, object] | None:
    """The one JSON object in a text: the whole of it, a fenced block, or from the first brace to the last; else None.

    Raises UnreadableError if the object names something twice: nobody knows which was meant.
    """
    fenced = _FENCED.findall(text)
    inner = text[text.find("{") : text.rfind("}") + 1]
    for candidate in (text, *(fenced if len(fenced) == 1 else ()), inner):
        try:
            found = json.loads(candidate, object_pairs_hook=_once, parse_constant=_no_number)
        except (json.JSONDecodeError, RecursionError):
            continue
        except UnreadableError:
            raise
        except ValueError:  # Python reads no integer of over 4,300 digits
            continue
        if isinstance(found, dict):
            return found
    return None


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len({_plain(name) for name, _ in pairs}) != len(pairs):
        raise UnreadableError("the answer names one thing twice")
    return dict(pairs)


def _no_number(_: str) -> float:
    raise UnreadableError("the answer has a score that is no number")


def _in_lines(text: str) -> list[tuple[str, str]]:
    found = (_LINE.fullmatch(line) for line in text.splitlines() if len(line) <= MAX_LINE)
    return [(_plain(each["name"]), each["score"] + (f"/{each['of']}" if each["of"] else "")) for each in found if each]


def _score(value: object, criterion: str, rubric: Rubric) -> float:
    if isinstance(value, str) and (match := _NUMBER.fullmatch(value)):
        if match["of"] is not None and float(match["of"]) != rubric.high:
            raise UnreadableError(f"the score of {criterion} is on another scale")
        value = float(match["score"])
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UnreadableError(f"the score of {criterion} is no number")
    if not (rubric.low <= value <= rubric.high and math.isfinite(value)):
        raise UnreadableError(f"the score of {criterion} lies outside {rubric.low:g} to {rubric.high:g}")
    return float(value)


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().lower())


def _silent(count: int, note: str) -> None:
    """No progress shown."""
