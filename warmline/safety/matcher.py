"""Read one message with a lexicon: words, sentences, the classes in them, and the rules that they fit."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple

from warmline.safety.levels import Frame, Level
from warmline.safety.lexicon import END, FIRST, Lexicon, Pattern, Rule
from warmline.safety.normalize import Speller, joined, plain

MACHINE = "machine"  # the context of what is said to the program
REACH = 3  # words before a statement in which a negation turns it

_TOKEN = re.compile(r"[\w@$*](?:[\w*@$!+|#'€]*[\w*$])?|[.!?…]+|[,;:\n\"()]")
_STOPS = re.compile(r"[.!?…]|\n|[!?…]+")
_ENDINGS = {"n't": "not", "'m": "am", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would"}
_IS = frozenset({"it's", "that's", "he's", "she's", "there's", "what's", "who's", "here's", "where's", "everything's"})


class Span(NamedTuple):
    """Where a class stands in a sentence: words `start` to `end`, the end excluded."""

    start: int
    end: int


class Places:
    """Where the classes stand in a sentence. Phrases are many and found once; classes are looked up when a rule asks."""

    def __init__(self, words: Sequence[str], lexicon: Lexicon) -> None:
        self._found: dict[int, list[Span]] = {}  # phrase -> where
        for start, word in enumerate(words):
            for beginning, number in lexicon.beginnings.get(word[:FIRST], {}).items():
                if word.startswith(beginning):
                    self._found.setdefault(number, []).append(Span(start, start + 1))
            node, end = lexicon.trie.get(word), start + 1
            while node is not None:
                if END in node:
                    self._found.setdefault(node[END], []).append(Span(start, end))
                node = node.get(words[end]) if end < len(words) else None
                end += 1
        self._phrases = lexicon.phrases
        self.classes = set().union(*(lexicon.phrases[number] for number in self._found))
        self._starts: dict[int, dict[int, list[int]]] = {}

    def starts(self, class_id: int) -> dict[int, list[int]]:
        """Where the class starts -> where it may end, the end excluded; in the order of the words."""
        if class_id not in self._starts:
            starts: dict[int, list[int]] = {}
            phrases = (spans for number, spans in self._found.items() if class_id in self._phrases[number])
            for span in sorted(chain.from_iterable(phrases)):
                starts.setdefault(span.start, []).append(span.end)
            self._starts[class_id] = starts
        return self._starts[class_id]

    def spans(self, class_id: int) -> list[Span]:
        """The same as a list."""
        return [Span(start, end) for start, ends in self.starts(class_id).items() for end in ends]


class Sentence(NamedTuple):
    """The words of a sentence, and for each whether it stands between double quotes."""

    words: tuple[str, ...]
    quoted: tuple[bool, ...]


class Hit(NamedTuple):
    """A rule that a sentence fits."""

    rule: Rule
    span: Span
    negated: bool
    quoted: bool


class Parsed(NamedTuple):
    """What one sentence shows: its words, its classes by name, and the rules that it fits."""

    words: tuple[str, ...]
    classes: tuple[str, ...]
    hits: tuple[Hit, ...]

    @property
    def is_for_machines(self) -> bool:
        """Whether it speaks to the program and not to the companion."""
        return any(hit.rule.says == "context" and hit.rule.what == MACHINE for hit in self.hits)


@dataclass(frozen=True)
class Reading:
    """What the rules read in one message. No text of it is kept but the words, which the models read."""

    sentences: tuple[Parsed, ...]  # repaired
    frames: tuple[Frame, ...]  # what counts, time and subject settled
    denied: tuple[Frame, ...]  # what was said not to be so
    signals: frozenset[str]
    contexts: frozenset[str]
    stances: frozenset[str]

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """The words of each sentence."""
        return tuple(sentence.words for sentence in self.sentences)

    @property
    def level(self) -> Level:
        """The highest level of the frames."""
        return max((frame.level for frame in self.frames), default=Level.NONE)


def read(text: str, lexicon: Lexicon, speller: Speller | None = None, only: frozenset[str] | None = None) -> Reading:
    """Read a message, both as it stands and with its unknown words repaired; what either shows counts.

    `only`: of its sentences, read those that hold one of these words.
    """
    first = plain(text)
    as_is = sentences(first, lexicon)
    if only is not None:
        as_is = tuple(each for each in as_is if not only.isdisjoint(each.words))
    readings = [as_is]
    if speller is not None:
        repaired = sentences(joined(first), lexicon, speller)
        if repaired != as_is:
            readings.append(repaired)
    parsed = {sentence: _parse(sentence, lexicon) for sentence in dict.fromkeys(chain(*readings))}
    return _merge([reading_of([parsed[sentence] for sentence in each]) for each in readings])


def sentences(text: str, lexicon: Lexicon, speller: Speller | None = None) -> tuple[Sentence, ...]:
    """Sentences of a text that `plain` made; short forms are written out (`don't` -> do not)."""
    result: list[Sentence] = []
    words: list[str] = []
    quoted: list[bool] = []
    in_quotes, num_quotes = False, text.count('"')
    known: dict[str, tuple[str, ...]] = {}
    for token in _TOKEN.findall(text):
        if token[0].isalnum() or token[0] in "@$*_":
            written = known.get(token)
            if written is None:
                written = known[token] = _written_out(token, lexicon, speller)
            words += written
            quoted += [in_quotes] * len(written)
        elif token == '"':
            in_quotes = not in_quotes and num_quotes > 1
            num_quotes -= 1
        elif _STOPS.fullmatch(token):
            _close(result, words, quoted)
    _close(result, words, quoted)
    return tuple(_rejoin(result))


def _close(result: list[Sentence], words: list[str], quoted: list[bool]) -> None:
    if words:
        result.append(Sentence(tuple(words), tuple(quoted)))
        words.clear()
        quoted.clear()


def _rejoin(parts: Sequence[Sentence]) -> Iterator[Sentence]:
    """`I. Want. To. Go.` is one sentence."""
    row: list[Sentence] = []
    for part in (*parts, None):
        if part is not None and len(part.words) == 1:
            row.append(part)
            continue
        if len(row) > 2:
            yield Sentence(tuple(each.words[0] for each in row), tuple(each.quoted[0] for each in row))
        else:
            yield from row
        row = []
        if part is not None:
            yield part


def _written_out(token: str, lexicon: Lexicon, speller: Speller | None) -> tuple[str, ...]:
    word = token.strip("*'_") if token.count("*") == 2 * token.startswith("*") else token.rstrip("'")
    expanded = lexicon.expand.get(word)
    if expanded:
        return expanded
    if "'" in word:
        for ending, meaning in _ENDINGS.items():
            if word.endswith(ending):
                return (word.removesuffix(ending) or meaning, meaning)
        if word.endswith("'s"):
            return (word[:-2], "is") if word in _IS else (word[:-2],)
        word = word.replace("'", "")
    if speller is not None and (repaired := speller.repair(word)):
        return tuple(part for each in repaired for part in lexicon.expand.get(each, (each,)))
    return (word,) if word else ()


def _parse(sentence: Sentence, lexicon: Lexicon) -> Parsed:
    places = Places(sentence.words, lexicon)
    classes = tuple(lexicon.names[class_id] for class_id in sorted(places.classes) if class_id in lexicon.names)
    return Parsed(sentence.words, classes, tuple(_hits(sentence, places, lexicon)))


def reading_of(sentences: Sequence[Parsed]) -> Reading:
    """What sentences show together."""
    hits = [hit for sentence in sentences for hit in sentence.hits]
    contexts = frozenset(hit.rule.what for hit in hits if hit.rule.says == "context")
    stances = {hit.rule.what for hit in hits if hit.rule.says == "stance" and not hit.negated}
    signals = frozenset(hit.rule.what for hit in hits if hit.rule.says == "signal" and not hit.negated)
    counted, denied = _settle(hits, contexts, stances)
    return Reading(tuple(sentences), counted, denied, signals, contexts, frozenset(stances))


def _settle(hits: Sequence[Hit], contexts: frozenset[str], stances: set[str]) -> tuple[tuple[Frame, ...], ...]:
    """Frames that count and frames that were denied, with time settled from what stands around them."""
    counted: dict[Frame, None] = {}
    denied: dict[Frame, None] = {}
    for hit in hits:
        frame = hit.rule.frame
        if frame is None or hit.rule.unless & contexts or (hit.quoted and "work" in contexts):
            continue
        if hit.negated:
            denied[frame] = None
            continue
        if hit.rule.past and frame.subject == "self":
            recovered = "recovered" in stances and "distress" not in stances
            if "recently" not in stances and ("long_ago" in stances or recovered):
                frame = replace(frame, time="past_resolved" if "distress" not in stances else "past_open")
        counted[frame] = None
    return tuple(counted), tuple(denied)


def _hits(sentence: Sentence, places: Places, lexicon: Lexicon) -> Iterator[Hit]:
    outer = {at for span in places.spans(lexicon.class_ids.get("NOT_REALLY", -1)) for at in range(*span)}
    turning = [span.start for span in places.spans(lexicon.class_ids.get("NOT", -1)) if span.start not in outer]
    for class_id in sorted(places.classes):
        for rule in lexicon.by_anchor.get(class_id, ()):
            matched = match(rule.pattern, places, len(sentence.words))
            if matched is None:
                continue
            span, taken = matched
            negated = not rule.pattern.negates and any(
                span.start - REACH <= at < span.end and at not in taken for at in turning
            )
            yield Hit(rule, span, negated, all(sentence.quoted[span.start : span.end]))


def match(pattern: Pattern, places: Places, num_words: int) -> tuple[Span, frozenset[int]] | None:
    """Where the pattern stands in a sentence, and the words that its elements took; None if it does not.

    Each pair of an element and a place is tried once, so that time grows with the words, not with their combinations.
    """
    if not pattern.required <= places.classes:
        return None
    dead: set[tuple[int, int]] = set()
    first = pattern.elements[0]
    for start in (0,) if pattern.at_start else range(num_words) if first.optional else places.starts(first.class_id):
        found = _follow(pattern, 0, start, places, num_words, dead)
        if found:
            return Span(found[0].start, found[-1].end), frozenset(at for span in found for at in range(*span))
    return None


def _follow(
    pattern: Pattern, index: int, at: int, places: Places, num_words: int, dead: set[tuple[int, int]]
) -> list[Span] | None:
    """The spans of elements `index` and on, from word `at`."""
    if index == len(pattern.elements):
        return [] if pattern.tail is None or num_words - at <= pattern.tail else None
    if (index, at) in dead:
        return None
    element = pattern.elements[index]
    starts = places.starts(element.class_id)
    for start in range(at, at + (element.gap if index or pattern.at_start else 0) + 1):
        if start > at and any(start - 1 in places.starts(each) for each in element.forbidden):
            break
        for end in starts.get(start, ()):
            rest = _follow(pattern, index + 1, end, places, num_words, dead)
            if rest is not None:
                return [Span(start, end), *rest]
    if element.optional:
        rest = _follow(pattern, index + 1, at, places, num_words, dead)
        if rest is not None:
            return rest
    dead.add((index, at))
    return None


def _merge(readings: Sequence[Reading]) -> Reading:
    """What any of the readings shows; the sentences of the last, the most repaired."""
    if len(readings) == 1:
        return readings[0]
    return Reading(
        readings[-1].sentences,
        tuple(dict.fromkeys(frame for each in readings for frame in each.frames)),
        tuple(dict.fromkeys(frame for each in readings for frame in each.denied)),
        frozenset().union(*(each.signals for each in readings)),
        frozenset().union(*(each.contexts for each in readings)),
        frozenset().union(*(each.stances for each in readings)),
    )
