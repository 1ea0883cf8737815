"""The rules of a language: classes of words, and patterns over them, compiled for one pass over a sentence.

A pattern is a row of elements: a class (`DIE`), a word (`want`), or a choice (`(want|WISH)`), each with `?` when it may be
absent. `.3` lets up to three other words stand between its neighbours; `!NOT` forbids a class there. `^` and `$` are the
ends of the sentence, which a gap may keep at some distance too. A class lists words, phrases and other classes; `suicid*` stands for every word that begins so.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import NamedTuple

import yaml

from warmline.safety.levels import Frame

LANGUAGES = ("en", "es", "fr", "de", "pt", "hi-Latn")
END = ""  # the key of a trie node under which the number of the phrase that ends there stands
FIRST = 3  # letters, the fewest of a beginning that stands for many words
COMMON = {"I", "NOT", "BE", "HAVE", "MY", "YOU", "THEY", "TO", "IT", "WILL"}  # never what a rule is looked up by

_ELEMENT = re.compile(r"\([^)]*\)\??|\S+")


class LexiconError(ValueError):
    """A rule pack that cannot be used; names the pack, the rule and what is wrong."""


class Element(NamedTuple):
    """One place of a pattern."""

    class_id: int
    gap: int  # words that may stand before it
    optional: bool
    forbidden: tuple[int, ...]  # classes that must not stand in the gap before it


class Pattern(NamedTuple):
    """A row of elements; `anchor` is the class by which the pattern is looked up."""

    elements: tuple[Element, ...]
    required: frozenset[int]  # the classes of those that may not be absent
    anchor: int
    at_start: bool
    tail: int | None  # words that may follow it in the sentence; None: as many as like
    negates: bool  # it has a negation of its own, so that a negation near it says nothing


@dataclass(frozen=True)
class Rule:
    """One pattern of an idea, and what it says: a frame, a weak signal, a context or a stance."""

    id: str  # the idea's name and the number of the pattern in its list, as SUI.INTENT.03
    says: str  # `frame`, `signal`, `context` or `stance`
    what: str  # of a signal, context or stance: its name
    frame: Frame | None
    families: frozenset[str]  # of the red-team set, for which it was written
    unless: frozenset[str]  # contexts in which it says nothing
    past: bool  # its words may tell of a time long past
    definite: bool  # sets a level whatever the lines showed of its precision
    reason: str
    pattern: Pattern


@dataclass
class Lexicon:
    """A compiled pack. `trie` and `beginnings` find phrases, `phrases` their classes, `by_anchor` the rules to try."""

    trie: dict = field(default_factory=dict)
    beginnings: dict[str, dict[str, int]] = field(default_factory=dict)  # of words, by their first FIRST letters
    phrases: list[set[int]] = field(default_factory=list)  # the classes of each phrase
    class_ids: dict[str, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)  # of the classes that have a name of their own
    expand: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rules: list[Rule] = field(default_factory=list)
    by_anchor: dict[int, list[Rule]] = field(default_factory=dict)
    words: frozenset[str] = frozenset()  # every whole word in the classes
    triggers: frozenset[str] = frozenset()  # the class TRIGGER: words that are worth looking around in a very long text

    def without(self, families: Iterable[str]) -> "Lexicon":
        """The same without the rules that were written for any of these families."""
        gone = frozenset(families)
        kept = [rule for rule in self.rules if not rule.families & gone]
        return Lexicon(
            self.trie,
            self.beginnings,
            self.phrases,
            self.class_ids,
            self.names,
            self.expand,
            kept,
            _by_anchor(kept),
            self.words,
            self.triggers,
        )


@cache
def load_lexicon(lang: str) -> Lexicon:
    """The pack of one language, compiled. Raises LexiconError for a broken one."""
    text = files("warmline.safety").joinpath(f"rules/{lang}.yaml").read_text(encoding="utf-8")
    return compile_lexicon(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), lang)


def compile_lexicon(pack: Mapping, lang: str) -> Lexicon:
    """A pack as it stands in its file, compiled. Raises LexiconError."""
    lexicon = Lexicon()
    classes: Mapping[str, Sequence[str]] = {name: _items(items) for name, items in pack["classes"].items()}
    lexicon.expand = {word: tuple(str(into).split()) for word, into in pack.get("expand", {}).items()}
    for name in classes:
        number = lexicon.class_ids[name] = len(lexicon.class_ids)
        lexicon.names[number] = name
        for phrase in _phrases(classes, name, lang):
            _add(lexicon, phrase, number)
    for rule_id, fields in pack["rules"].items():
        try:
            lexicon.rules += _rules(lexicon, classes, rule_id, fields, lang)
        except (KeyError, TypeError, ValueError) as error:
            raise LexiconError(f"rules/{lang}.yaml: {rule_id}: {error}") from error
    lexicon.by_anchor = _by_anchor(lexicon.rules)
    lexicon.words = frozenset(_words_of(lexicon.trie))
    lexicon.triggers = frozenset(classes.get("TRIGGER", ()))
    return lexicon


def _items(items: str | Sequence[str]) -> Sequence[str]:
    """Phrases, as a list or as one string with commas."""
    return [item.strip() for item in items.split(",") if item.strip()] if isinstance(items, str) else items


def _phrases(classes: Mapping[str, Sequence[str]], name: str, lang: str, above: tuple[str, ...] = ()) -> Iterable[str]:
    if name in above:
        raise LexiconError(f"rules/{lang}.yaml: class {name} contains itself")
    for item in map(str, classes[name]):
        if item.isupper() and item in classes:
            yield from _phrases(classes, item, lang, (*above, name))
        else:
            yield item


def _add(lexicon: Lexicon, phrase: str, class_id: int) -> None:
    if phrase.endswith("*") and " " not in phrase:
        number = lexicon.beginnings.setdefault(phrase[:FIRST], {}).setdefault(phrase[:-1], len(lexicon.phrases))
    else:
        node = lexicon.trie
        for word in phrase.split():
            node = node.setdefault(word, {})
        number = node.setdefault(END, len(lexicon.phrases))
    if number == len(lexicon.phrases):
        lexicon.phrases.append(set())
    lexicon.phrases[number].add(class_id)


def _words_of(trie: Mapping) -> Iterable[str]:
    for word, node in trie.items():
        if word != END:
            yield word
            yield from _words_of(node)


def _rules(
    lexicon: Lexicon, classes: Mapping[str, Sequence[str]], name: str, fields: Mapping, lang: str
) -> Iterator[Rule]:
    kind, _, what = fields["says"].partition(" ")
    is_frame = kind not in ("signal", "context", "stance")
    default = ("fiction", "game", "code") if is_frame else ()
    for number, text in enumerate(fields["patterns"], 1):
        rule_id = f"{name}.{number:02}"
        frame = Frame(rule_id, kind, *what.split()) if is_frame else None
        assert frame is None or frame.level is not None  # the table knows it; it raises KeyError otherwise
        yield Rule(
            rule_id,
            "frame" if is_frame else kind,
            "" if is_frame else what,
            frame,
            frozenset(fields.get("families", ())),
            frozenset(fields.get("unless", default)),
            bool(fields.get("past", False)),
            bool(fields.get("definite", False)),
            fields.get("reason", ""),
            _pattern(lexicon, classes, text, lang),
        )


def _pattern(lexicon: Lexicon, classes: Mapping[str, Sequence[str]], text: str, lang: str) -> Pattern:
    elements: list[Element] = []
    gap, forbidden, negates = 0, [], False
    parts = _ELEMENT.findall(text)
    at_start, at_end = parts[0] == "^", parts[-1] == "$"
    for part in parts[at_start : len(parts) - at_end]:
        if part[0] == "." and part[1:].isdigit():
            gap = int(part[1:])
        elif part[0] == "!":
            forbidden.append(_class_of(lexicon, classes, part[1:], lang))
        else:
            optional = part.endswith("?")
            name = part.removesuffix("?")
            negates = negates or "NOT" in re.split(r"\W", name)
            elements.append(Element(_class_of(lexicon, classes, name, lang), gap, optional, tuple(forbidden)))
            gap, forbidden = 0, []
    required = [element.class_id for element in elements if not element.optional]
    if not required or forbidden or (gap and not at_end):
        raise ValueError(f"the pattern {text!r} has nothing to look for, or ends with `!` or a gap")
    names = {number: name for name, number in lexicon.class_ids.items()}
    anchor = next((each for each in reversed(required) if names[each] not in COMMON), required[-1])
    return Pattern(tuple(elements), frozenset(required), anchor, at_start, gap if at_end else None, negates)


def _class_of(lexicon: Lexicon, classes: Mapping[str, Sequence[str]], name: str, lang: str) -> int:
    """The id of a class, of a word, or of a choice of them, which is made a class when it is first seen."""
    if name in lexicon.class_ids:
        return lexicon.class_ids[name]
    options = name[1:-1].split("|") if name.startswith("(") else [name]
    number = lexicon.class_ids[name] = len(lexicon.class_ids)
    for option in map(str.strip, options):
        if option.isupper() and option not in classes:
            raise ValueError(f"there is no class {option}")
        words = option if option.startswith("emo_") else option.replace("_", " ")
        for phrase in _phrases(classes, option, lang) if option in classes else [words]:
            _add(lexicon, phrase, number)
    return number


def _by_anchor(rules: Iterable[Rule]) -> dict[int, list[Rule]]:
    index: dict[int, list[Rule]] = {}
    for rule in rules:
        index.setdefault(rule.pattern.anchor, []).append(rule)
    return index
