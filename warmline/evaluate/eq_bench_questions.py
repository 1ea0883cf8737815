"""The questions of EQ-Bench v2: reading them, and the prompts and grammar with which a model is asked.

Paech 2023, "EQ-Bench: An Emotional Intelligence Benchmark for Large Language Models", arXiv:2312.06281; version 2 has
171 questions with full-scale references. A question gives a dialogue and four emotions, each to be rated 0 to 10.
"""

import ast
import csv
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from warmline.engine.engine import Engine, EngineError, GenerateRequest, Message, Sampling
from warmline.evaluate.eq_bench_parsing import REVISED, read_sections, reference_parse

NUM_QUESTIONS = 171  # of version 2; version 1 has 60
NUM_EMOTIONS = 4
MAX_SCORE = 10

# How a model is asked. Only answers asked for as "official", "revision" or "lm-eval" may be called EQ-Bench.
Mode = Literal["official", "revision", "lm-eval", "guided"]
NAMES: Mapping[Mode, str] = {
    "official": "EQ-Bench v2",
    "revision": "EQ-Bench v2 with revision",
    "lm-eval": "EQ-Bench v2 (lm-eval)",
    "guided": "EQ-Bench v2, guided",
}
MAX_TRIES = 5  # of the official convention, each at a temperature higher by TEMPERATURE_STEP
FIRST_TEMPERATURE, TEMPERATURE_STEP = 0.01, 0.15
MAX_NEW_TOKENS: Mapping[Mode, int] = {"official": 60, "revision": 1000, "lm-eval": 80, "guided": 80}

# What the original file's prompts say about revising, and what the official code and the hub copy have instead.
_REVISION = " Then critique your answer by thinking it through step by step. Finally, give your revised scores."
_CRITIQUE, _END, _YOURS = "Critique: <your critique here>", "[End of answer]", "\nYour answer:\n"
_HUB_FIELDS = {"prompt", "reference_answer_fullscale"}


class QuestionsError(ValueError):
    """A question file cannot be used; says where and why."""


@dataclass(frozen=True)
class Question:
    id: str
    prompt: str
    emotions: tuple[str, ...]  # the four names as the reference writes them
    reference: tuple[int, ...]  # their scores, 0 to 10

    @property
    def scene(self) -> str:
        """The dialogue's first line. Questions that share it are parts of one scene, and not independent."""
        _, _, dialogue = self.prompt.partition("dialogue:")
        return dialogue.strip().partition("\n")[0]


def read_questions(file: Path) -> tuple[Question, ...]:
    """The questions of the original JSON file, or of a copy of the hub's rows as JSON, JSON Lines or CSV.

    The hub's rows (pbevan11/EQ-Bench) have no ids: they are numbered from 1, as in the original file. Raises
    QuestionsError for a file that is broken or has no full-scale references.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise QuestionsError(f"{file}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise QuestionsError(f"{file}: not a question file: it is not UTF-8 text") from None
    try:
        found = list(csv.DictReader(text.splitlines(keepends=True))) if file.suffix == ".csv" else json.loads(text)
    except RecursionError:
        raise QuestionsError(f"{file}: not a question file: nested too deeply") from None
    except csv.Error as error:
        raise QuestionsError(f"{file}: not a question file: {error}") from None
    except ValueError as error:
        found = _json_lines(file, text, str(error))
    if isinstance(found, dict) and found.keys() >= _HUB_FIELDS:  # one row alone
        found = [found]
    rows = found if isinstance(found, dict) else dict(enumerate(found, start=1)) if isinstance(found, list) else {}
    return questions_from(((str(name), row) for name, row in rows.items()), str(file))


def _json_lines(file: Path, text: str, problem: str) -> list[object]:
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        return [json.loads(line) for line in lines]
    except (ValueError, RecursionError):
        raise QuestionsError(f"{file}: not a question file: neither JSON nor JSON Lines ({problem})") from None


def questions_from(rows: Iterable[tuple[str, object]], where: str = "questions") -> tuple[Question, ...]:
    """Questions from (id, row) pairs, rows of either layout: references as objects or as Python literals."""
    found = tuple(_question(name, row, f"{where}: question {name!r}") for name, row in rows)
    if not found:
        raise QuestionsError(f"{where}: no questions in it")
    if len({each.id for each in found}) < len(found):
        raise QuestionsError(f"{where}: two questions have the same id")
    return found


def _question(name: str, row: object, where: str) -> Question:
    if not isinstance(row, dict) or not isinstance(prompt := row.get("prompt"), str) or not prompt.strip():
        raise QuestionsError(f"{where}: expected an object with a prompt")
    if "reference_answer_fullscale" not in row:
        raise QuestionsError(f"{where}: no reference_answer_fullscale, by which version 2 is scored")
    reference = _literal(row["reference_answer_fullscale"], where)
    names = tuple(reference.get(f"emotion{number}") for number in range(1, NUM_EMOTIONS + 1))
    if not all(isinstance(each, str) and re.fullmatch(r"\w+", each) for each in names):
        raise QuestionsError(f"{where}: expected emotion1 to emotion4, one word each")
    emotions = tuple(str(each) for each in names)
    if len({each.casefold() for each in emotions}) < NUM_EMOTIONS:
        raise QuestionsError(f"{where}: an emotion stands twice")
    scores = tuple(_score(reference, number, where) for number in range(1, NUM_EMOTIONS + 1))
    return Question(name, prompt, emotions, scores)


def _literal(value: object, where: str) -> dict[str, object]:
    """A reference: an object, or the text of a Python literal as in the hub copy. Nothing in it is executed."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            raise QuestionsError(f"{where}: its reference is not a Python literal") from None
    if not isinstance(value, dict):
        raise QuestionsError(f"{where}: its reference is not an object")
    return value


def _score(reference: Mapping[str, object], number: int, where: str) -> int:
    """A reference score; the files write some as numbers and some as text."""
    value = reference.get(f"emotion{number}_score")
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,2}", text) or int(text) > MAX_SCORE:
        raise QuestionsError(f"{where}: emotion{number}_score is {str(value)[:20]!r}, expected 0 to {MAX_SCORE}")
    return int(text)


def prompt_for(question: Question, mode: Mode) -> str:
    """The words a model is asked with.

    "revision" is the original file's prompt. The others have no revision in it: the official code cuts it out, and the
    hub copy that lm-eval reads stands so. A prompt that asks for no revision is left as it is; raises QuestionsError if
    one is wanted of it.
    """
    prompt = question.prompt
    if mode == "revision" and REVISED not in prompt:
        raise QuestionsError(f"question {question.id!r}: its prompt asks for no revision; the original file's do")
    if mode == "revision" or _CRITIQUE not in prompt or _END not in prompt:
        return prompt
    prompt = prompt.replace(_REVISION, "").replace("First pass scores:\n", "")
    return f"{prompt[: prompt.index(_CRITIQUE)]}\n{prompt[prompt.index(_END) :]}{_YOURS}"


def guided_grammar(question: Question) -> str:
    """A Lark grammar of the answers that give each of the four emotions, in order, an integer from 0 to 10.

    >>> print(guided_grammar(Question("1", "", ("Sad", "Glad", "Mad", "Bored"), (0, 0, 0, 0))))
    start: "Sad: " SCORE "\\nGlad: " SCORE "\\nMad: " SCORE "\\nBored: " SCORE
    SCORE: /10|[0-9]/
    """
    lines = (f"{start}{name}: " for start, name in zip(("", "\n", "\n", "\n"), question.emotions, strict=True))
    return f"start: {' '.join(f'{json.dumps(line)} SCORE' for line in lines)}\nSCORE: /10|[0-9]/"


def request_for(question: Question, mode: Mode, *, tries: int = 0, seed: int | None = None) -> GenerateRequest:
    """What is asked of an engine after `tries` answers that could not be read. lm-eval and guided are greedy."""
    greedy = mode in ("lm-eval", "guided")
    sampling = Sampling(
        temperature=0.0 if greedy else FIRST_TEMPERATURE + tries * TEMPERATURE_STEP,
        top_p=1.0,
        max_new_tokens=MAX_NEW_TOKENS[mode],
        seed=seed,
    )
    constraint = guided_grammar(question) if mode == "guided" else None
    return GenerateRequest((Message("user", prompt_for(question, mode)),), sampling, constraint=constraint)


class Asked(NamedTuple):
    response: str
    tries: int  # how often the engine was asked


def ask(engine: Engine, question: Question, mode: Mode, *, seed: int | None = None) -> Asked:
    """One answer of an engine, asked again as the official convention does while the reference parser cannot read it.

    With revision, an answer of which one part can be read is kept if no better one comes. Raises EngineError, also for
    "guided" with an engine that knows no grammar.
    """
    if mode == "guided" and "grammar" not in engine.capabilities():
        raise EngineError("the guided mode needs an engine that follows a grammar")
    partial: str | None = None
    response = ""
    num_tries = MAX_TRIES if mode in ("official", "revision") else 1
    for tries in range(num_tries):
        own_seed = None if seed is None else seed + tries
        chunks = engine.generate(request_for(question, mode, tries=tries, seed=own_seed))
        response = "".join(chunk.text for chunk in chunks)
        sections = read_sections(response)
        parts = [sections.first_pass, sections.revised] if mode == "revision" else [sections.first_pass]
        read = [part is not None and reference_parse(part, question.emotions).values is not None for part in parts]
        if all(read):
            return Asked(response, tries + 1)
        if any(read) and partial is None:
            partial = response
    return Asked(response if partial is None else partial, num_tries)
