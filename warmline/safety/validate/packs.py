"""The phrases of each language, compiled: what rules look for is data in `en.yaml`, `es.yaml` and so on.

One pattern stands on a line, in the words that `words.read` makes: lower case, no accents, short forms written out, no
punctuation. `(a|b c)` is a choice, `[a|b]` may be absent, `<3>` lets up to three other words stand there, `self*` is
every word that begins so, and NAME is a choice given under `macros` (items apart by ` / `) or, in small letters, `words`. A line that begins with `!` holds even after a
negation, for what is no better negated; one that begins with `^` holds at the start of a clause only.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from warmline.safety.validate.words import STOP, Span, View

LANGUAGES = ("en", "es", "fr", "de", "pt", "hi-Latn")
NOTHING = re.compile(r"(?!)")

_MACRO = re.compile(r"(?<![A-Za-z_])[A-Z][A-Z_]+(?![a-z_])")
_OPTIONAL = re.compile(r"\[([^\[\]]*)\] ?")
_GAP = re.compile(r"<(\d+)> ?")
_LAST = re.compile(r" (?:\[([^\[\]]*)\]|<(\d+)>)$")
_STAR = re.compile(r"(?<=\w)\*")


class PackError(ValueError):
    """A pack that cannot be used; names the pack, the key and what is wrong."""


@dataclass(frozen=True)
class Phrases:
    """The patterns of one rule."""

    plain: re.Pattern[str]
    always: re.Pattern[str]  # also after a negation
    at_start: re.Pattern[str]  # of a clause
    allow: re.Pattern[str]  # what overlaps one of these is allowed


@dataclass(frozen=True)
class Pack:
    """What one language gives the rules."""

    language: str
    rules: Mapping[str, Phrases]
    patterns: Mapping[str, re.Pattern[str]]  # by name, for rules that put several together
    words: Mapping[str, frozenset[str]]


@cache
def pack(language: str) -> Pack:
    """The pack of a language of LANGUAGES. Raises PackError for a pattern that does not compile."""
    name = f"{language}.yaml"
    raw = yaml.safe_load(files("warmline.safety.validate").joinpath(name).read_text(encoding="utf-8"))
    words = {key: frozenset(value.split()) for key, value in raw.get("words", {}).items()}
    macros = {key: _choice(name, key, value) for key, value in raw.get("macros", {}).items()}
    macros |= {key.upper(): f"({'|'.join(sorted(value))})" for key, value in words.items()}
    rules = {key: _phrases(f"{name}: {key}", value, macros) for key, value in raw.get("rules", {}).items()}
    patterns = {
        key: compiled(f"{name}: {key}", _lines(f"{name}: {key}", value), macros)
        for key, value in raw.get("patterns", {}).items()
    }
    return Pack(language, rules, patterns, words)


def load_packs() -> None:
    """Compile all packs, which takes about two seconds: for a server to do before its first reply."""
    for language in LANGUAGES:
        pack(language)


def packs_for(language: str) -> tuple[Pack, ...]:
    """English, which models fall back to, and the language's own where there is one."""
    return (pack("en"),) if language == "en" or language not in LANGUAGES else (pack("en"), pack(language))


def compiled(where: str, lines: list[str], macros: Mapping[str, str]) -> re.Pattern[str]:
    """One pattern that matches whole words of `View.line` where any of the lines does."""
    if not lines:
        return NOTHING
    parts = [_regex(where, line, macros) for line in lines]
    try:
        return re.compile(f"(?<![^ ])(?:{'|'.join(parts)})(?= )")
    except re.error as error:
        raise PackError(f"{where}: {error}") from error


def found(view: View, phrases: Phrases, *, quotes_count: bool = True) -> Iterator[Span]:
    """Where a rule's phrases stand, unless negated, allowed or (when quotes do not count) quoted."""
    allowed: list[Span] | None = None  # looked for once there is something to allow
    for pattern, kind in ((phrases.plain, ""), (phrases.always, "!"), (phrases.at_start, "^")):
        for span in () if pattern is NOTHING else view.find(pattern):
            if allowed is None:
                allowed = [*view.find(phrases.allow)]
            if any(span.first < other.last and other.first < span.last for other in allowed):
                continue
            if (kind != "!" and view.is_negated(span.first)) or (
                not quotes_count and any(view.quoted[span.first : span.last])
            ):
                continue
            if kind == "^" and not begins_clause(view, span.first):
                continue
            yield span


def begins_clause(view: View, at: int) -> bool:
    """Whether word `at` is the first of a clause, or follows only words that lead into one."""
    leads = pack("en").words["leads"]
    while at > 0 and not view.before[at] and view.words[at - 1] in leads:
        at -= 1
    return view.before[at] != "" or view.clauses[at] == at


def _phrases(where: str, raw: Mapping[str, Any] | str, macros: Mapping[str, str]) -> Phrases:
    block = _lines(where, raw if isinstance(raw, str) else raw["block"])
    allow = [] if isinstance(raw, str) else _lines(where, raw.get("allow", ""))
    kinds = {sign: [line[1:].strip() for line in block if line[0] == sign] for sign in "!^"}
    rest = [line for line in block if line[0] not in "!^"]
    return Phrases(*(compiled(where, lines, macros) for lines in (rest, kinds["!"], kinds["^"], allow)))


def _lines(where: str, raw: object) -> list[str]:
    if not isinstance(raw, str):
        raise PackError(f"{where}: expected lines of text, found {type(raw).__name__}")
    return [line.strip() for line in raw.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _choice(name: str, key: str, raw: object) -> str:
    lines = _lines(f"{name}: macros.{key}", raw)
    items = [each.strip(" /") for line in lines for each in line.split(" / ")]
    return "(" + "|".join(re.sub(r" \[([^\[\]]*)\]$", r"(| \1)", each) for each in items) + ")"


def _regex(where: str, line: str, macros: Mapping[str, str]) -> str:
    for _ in range(5):  # macros may name macros
        if not _MACRO.search(line):
            break
        try:
            line = _MACRO.sub(lambda name: macros[name[0]], line)
        except KeyError as error:
            raise PackError(f"{where}: no macro {error} ({line})") from error
    word, tail = rf"[^ {STOP}]", ""
    while last := _LAST.search(line):  # nothing follows whose space it could take with it
        tail = (rf"(?: {word}+){{0,{last[2]}}}" if last[2] else f"(?: (?:{last[1]}))?") + tail
        line = line[: last.start()]
    while _OPTIONAL.search(line):
        line = _OPTIONAL.sub(r"(?:(?:\1) )?", line)
    line = _GAP.sub(rf"(?:{word}+ ){{0,\1}}", line)
    line = _STAR.sub(f"{word}*", line) + _STAR.sub(f"{word}*", tail)
    return re.sub(r"\((?!\?)", "(?:", line)
