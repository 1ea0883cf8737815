"""The prompt sets that ship with the package, each row strict: `prompts/CARD.md` says what they are and who wrote them."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from warmline.engine.engine import Message
from warmline.safety.validate.rules import RULES

Category = Literal[
    "self_harm",
    "harm_others",
    "dishonesty",
    "dependency",
    "medical",
    "secrecy",
    "identity",
    "farewell",
    "belief",
    "injection",
]
Domain = Literal[
    "grief",
    "loneliness",
    "work_stress",
    "study",
    "relationship",
    "family",
    "health",
    "money",
    "good_news",
    "pride",
    "gratitude",
    "moving",
    "anger",
    "guilt",
    "everyday",
]
Mood = Literal["neutral", "sad", "anxious", "angry", "lonely", "joyful", "ashamed", "grieving"]
Stance = Literal["engages", "refuses", "deflects"]
Text = Annotated[str, Field(min_length=1, max_length=1000)]


class PromptError(ValueError):
    """A prompt set that cannot be used; names file and line."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Said(_Strict):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Text


def _conversation(turns: tuple[Said, ...]) -> tuple[Said, ...]:
    expected = [("user", "assistant")[number % 2] for number in range(len(turns))]
    if not turns or [turn.role for turn in turns] != expected or turns[-1].role != "user":
        raise ValueError("turns go from user to assistant and back, and end on the user's")
    return turns


def _rules(names: tuple[str, ...]) -> tuple[str, ...]:
    unknown = sorted(set(names) - set(RULES))
    if unknown or len(set(names)) != len(names):
        raise ValueError(f"not rules of warmline.safety.validate, or named twice: {unknown or names}")
    return names


Turns = Annotated[tuple[Said, ...], Field(strict=False), AfterValidator(_conversation)]


class Qualitative(_Strict):
    """An everyday situation to answer."""

    id: str = Field(pattern=r"^qual-\d{3}$")
    domain: Domain
    turns: Turns


class RedTeam(_Strict):
    """A request that tests a limit, or a harmless one that looks like it."""

    id: str = Field(pattern=r"^red-\d{3}$")
    category: Category
    turns: Turns
    expected: Text  # what a good reply does, for a reader
    refuse: bool  # whether a good reply declines what is asked
    must_not: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_rules)]  # rules it must not break


class Persona(_Strict):
    """Who talks in a simulated conversation. `risk` and `domain` are for tables; the seeker is not told them."""

    id: Text
    age: int = Field(ge=9, le=110)
    situation: Text
    mood: Text
    openness: Literal["guarded", "hesitant", "open", "talkative"]
    goal: Text
    style: Text
    opening: Text  # the seeker's first turn, as it stands
    risk: Literal["none", "elevated", "high", "emergency"]
    domain: Text


Phrases = Annotated[tuple[Text, ...], Field(strict=False)]


class Fact(_Strict):
    """A fact with a well-known false belief about it."""

    id: str = Field(pattern=r"^warm-\d{3}$")
    topic: Text
    question: Text
    correct: Annotated[Phrases, Field(min_length=1)]  # any of them answers it
    wrong: Annotated[Phrases, Field(min_length=1)]  # the false belief, in several wordings
    other_wrong: Phrases = ()  # false too, but not what the user believes
    belief: Text  # as the user says it


class Framing(_Strict):
    """What the user says before the question."""

    id: str = Field(pattern=r"^[a-z]+-\d$")
    mood: Mood
    before: Text


class WarmSet(_Strict):
    facts: Annotated[tuple[Fact, ...], Field(strict=False)]
    framings: Annotated[tuple[Framing, ...], Field(strict=False)]


class LabelledReply(_Strict):
    """A reply with what it does, to measure the stance classifier with."""

    id: str = Field(pattern=r"^stance-\d{3}$")
    part: Literal["tune", "held"]  # the classifier was written looking at `tune` alone
    label: Stance
    reply: Text


R = TypeVar("R", bound=BaseModel)


@cache
def qualitative() -> tuple[Qualitative, ...]:
    """prompts/qualitative.jsonl."""
    return parse_rows("qualitative.jsonl", _text("qualitative.jsonl"), Qualitative)


@cache
def red_team() -> tuple[RedTeam, ...]:
    """prompts/redteam.jsonl."""
    return parse_rows("redteam.jsonl", _text("redteam.jsonl"), RedTeam)


@cache
def personas() -> tuple[Persona, ...]:
    """prompts/personas.jsonl."""
    return parse_rows("personas.jsonl", _text("personas.jsonl"), Persona)


@cache
def labelled_replies() -> tuple[LabelledReply, ...]:
    """prompts/stances.jsonl."""
    return parse_rows("stances.jsonl", _text("stances.jsonl"), LabelledReply)


@cache
def warm() -> WarmSet:
    """prompts/warm.json."""
    try:
        found = WarmSet.model_validate(json.loads(_text("warm.json")))
    except ValidationError as error:
        raise PromptError(f"warm.json: {_first(error)}") from None
    _once("warm.json", [each.id for each in (*found.facts, *found.framings)])
    return found


def parse_rows(name: str, text: str, row_type: type[R]) -> tuple[R, ...]:
    """The rows of a JSONL text. Raises PromptError that names the line for a bad one, and for an id that stands twice.

    >>> parse_rows("a.jsonl", '{"id": "qual-001", "domain": "grief"}', Qualitative)
    Traceback (most recent call last):
    ...
    warmline.evaluate.prompt_sets.PromptError: a.jsonl, line 1: turns: Field required
    """
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines() would also split inside a string
        if not line.strip():
            continue
        try:
            rows.append(row_type.model_validate_json(line))
        except ValidationError as error:
            raise PromptError(f"{name}, line {number}: {_first(error)}") from None
    _once(name, [getattr(row, "id") for row in rows])  # noqa: B009 - every row has one, which the type does not say
    return tuple(rows)


def messages_of(turns: Sequence[Said]) -> tuple[Message, ...]:
    """The turns as an engine takes them."""
    return tuple(Message(turn.role, turn.content) for turn in turns)


def _text(name: str) -> str:
    return files("warmline.evaluate").joinpath(f"prompts/{name}").read_text(encoding="utf-8")


def _once(name: str, ids: Sequence[str]) -> None:
    if twice := [each for each, count in Counter(ids).items() if count > 1]:
        raise PromptError(f"{name}: the id {twice[0]!r} stands twice")


def _first(error: ValidationError) -> str:
    found: Any = error.errors()[0]
    return f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
