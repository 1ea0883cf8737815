"""What the rules know besides the reply: the level, what was said so far, and what the companion may remember."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any, Literal, NamedTuple

from warmline.safety.levels import LEVELS, Level
from warmline.safety.validate.packs import LANGUAGES, pack
from warmline.safety.validate.words import read

QuestionPolicy = Literal["none", "safety_check"]
Minor = Literal["yes", "no", "unknown"]
NUM_PREVIOUS = 3  # replies that a new one must not repeat

_STEM = re.compile(r"(?:ing|ings|ed|es|s|ly)$")


class ContextError(ValueError):
    """A case that no context can be made of; names the field, what stands there and what was expected."""


class Turn(NamedTuple):
    role: str  # user, assistant or system
    content: str


@dataclass(frozen=True)
class ReplyContext:
    """What a reply is judged against."""

    level: Level
    domains: frozenset[str] = frozenset()
    turns: tuple[Turn, ...] = ()  # all so far, the user's last one included
    lang: str = "en"  # the user's, as in LANGUAGES; another code where there is no pack
    minor: Minor = "unknown"
    question_policy: QuestionPolicy = "none"
    previous_replies: tuple[str, ...] = ()  # the companion's, oldest first
    memory: tuple[str, ...] = ()  # what the store gave for this turn, a note each
    overlays: frozenset[str] = field(default=frozenset())  # domains whose extra rules hold without being named above

    @property
    def themes(self) -> frozenset[str]:
        """Domains and overlays together: what switches the rules of a domain on."""
        return self.domains | self.overlays


def context_from_case(case: Mapping[str, Any]) -> ReplyContext:
    """The context of a line of `safety validate`: `{"id","risk","turns","candidate","domains"?,"lang"?,"memory"?}`.

    A line does not have to name domains; what the user's words show then switches the overlays on.
    Raises ContextError.
    """
    if not isinstance(case.get("risk"), str) or case["risk"] not in LEVELS:
        raise ContextError(f"risk: found {case.get('risk')!r}, expected one of {', '.join(LEVELS)}")
    turns = turns_from_case(case.get("turns"))
    said = " \n".join(turn.content for turn in turns if turn.role == "user")
    lang = case.get("lang")
    if lang is not None and not isinstance(lang, str):
        raise ContextError(f"lang: found {lang!r}, expected a language code")
    return ReplyContext(
        level=LEVELS[case["risk"]],
        domains=frozenset(_texts(case, "domains")),
        turns=turns,
        lang=lang or spoken(said),
        previous_replies=tuple(turn.content for turn in turns if turn.role == "assistant")[-NUM_PREVIOUS:],
        memory=_texts(case, "memory"),
        overlays=shown_themes(said),
    )


def _texts(case: Mapping[str, Any], key: str) -> tuple[str, ...]:
    raw = case.get(key) or []
    if not isinstance(raw, list) or not all(isinstance(each, str) for each in raw):
        raise ContextError(f"{key}: expected a list of texts")
    return tuple(raw)


def turns_from_case(raw: object) -> tuple[Turn, ...]:
    """The turns of a line. Raises ContextError."""
    if not isinstance(raw, list):
        raise ContextError(f"turns: found {type(raw).__name__}, expected a list")
    turns: list[Turn] = []
    for number, each in enumerate(raw):
        role, content = (each.get("role"), each.get("content")) if isinstance(each, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            raise ContextError(f"turns.{number}: expected role and content as text")
        turns.append(Turn(role, content))
    return tuple(turns)


def spoken(said: str) -> str:
    """The language of a text, English where it cannot be told.

    >>> spoken("no puedo mas con todo esto, estoy muy cansada de mi vida")
    'es'
    """
    words = read(said).words
    return max(LANGUAGES, key=lambda language: 0 if language == "en" else lead(words, language, "en"))


def lead(words: Sequence[str], language: str, other: str) -> int:
    """How clearly words are in a language and not in the other: 0 if not, else how many common words say so.

    >>> lead("estoy muy triste y no puedo mas".split(), "es", "en") > 2
    True
    """
    own = sum(word in _only(language, other) for word in words)
    others = sum(word in _only(other, language) for word in words) if own >= 3 else 0
    return own if own >= 3 and own > 2 * others else 0


@cache
def _only(language: str, other: str) -> frozenset[str]:
    """Words common in one language and not in the other."""
    return pack(language).words["common"] - pack(other).words["common"]


@lru_cache(maxsize=8)
def shown_themes(said: str) -> frozenset[str]:
    """The domains with rules of their own that the user's words show, for callers without an assessment."""
    view = read(said)
    patterns = pack("en").patterns
    return frozenset(
        theme for theme in ("psychosis_mania", "eating") if any(True for _ in view.find(patterns[f"theme_{theme}"]))
    )


@lru_cache(maxsize=8)
def known_stems(context: ReplyContext) -> frozenset[str]:
    """Stems of all words in the transcript and the memory: what the companion may say that it was told.

    The companion's own turns count as evidence of nothing, so that an invention is not its own proof.
    """
    told = [turn.content for turn in context.turns if turn.role == "user"]
    return frozenset(stem(word) for text in (*told, *context.memory) for word in read(text).words)


def stem(word: str) -> str:
    """A word without its commonest endings, at least three letters of it.

    >>> stem("sisters"), stem("losing"), stem("is")
    ('sister', 'los', 'is')
    """
    bare = _STEM.sub("", word)
    return bare.removesuffix("e") if len(bare) > 3 else bare if len(bare) == 3 else word


def last_user_turn(context: ReplyContext) -> str:
    """What the user said last; empty if nothing."""
    return next((turn.content for turn in reversed(context.turns) if turn.role == "user"), "")
