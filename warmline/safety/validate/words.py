"""A reply as the rules read it: plain words in sentences and clauses, each with its place in the original."""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

from warmline.safety.normalize import plain

MAX_CHARS = 8_000  # read of a reply; length_form fails what is longer, so that nothing unread is ever shown
STOP = "|"  # stands between sentences in `View.line`; no word contains it
MAX_PIECE = 100  # characters of a word that are told apart when normalisation changes its length
REACH = 6  # words before a statement in which a negation turns it

_PIECE = re.compile(r"\s+|\S{1,200}")  # a longer row of letters is no word
_TOKEN = re.compile(r"\[[a-z_ ]{1,20}\]|\w+(?:'\w+)*|[.!?…؟‽⁇¿¡]+|[,;:()\n\"—\u2013]|-{2,}|(?<=\s)-(?=\s)|[?]")
_DOUBLE = re.compile(r'"[^"\n]{1,400}"')
_SINGLE = re.compile(r"(?<![^\s(,:;—])'(?=\w)(?:[^'\n]|(?<=\w)'(?=\w)){1,400}'(?!\w)")
_ENDINGS = {"n't": "not", "'m": "am", "'re": "are", "'ve": "have", "'ll": "will", "'d": "would"}
_IS = frozenset(
    "it that he she there what who here where how why everything something nobody someone everyone this".split()
)
_WRITTEN_OUT = {
    "can't": "can not", "cannot": "can not", "cant": "can not", "won't": "will not", "wont": "will not",
    "ain't": "is not", "aint": "is not", "shan't": "shall not", "let's": "let us", "y'all": "you all",
    "dont": "do not", "didnt": "did not", "doesnt": "does not", "isnt": "is not", "arent": "are not",
    "wasnt": "was not", "werent": "were not", "wouldnt": "would not", "couldnt": "could not",
    "shouldnt": "should not", "havent": "have not", "hasnt": "has not", "im": "i am", "ive": "i have",
    "youre": "you are", "youve": "you have", "youll": "you will", "theyre": "they are", "thats": "that is",
    "whats": "what is", "theres": "there is", "gonna": "going to", "wanna": "want to", "gotta": "have to",
    "lemme": "let me", "gimme": "give me", "dunno": "do not know", "kinda": "kind of", "sorta": "sort of",
    "o'clock": "oclock", "okay": "ok", "alright": "all right", "counsellor": "counselor",
    "counsellors": "counselors", "pls": "please", "plz": "please",
}  # fmt: skip
_ABBREVIATED = frozenset("dr mr mrs ms st vs etc eg ie prof".split())
SUBJECTS = frozenset(
    "i you he she it we they this that these those there what your my our his her their someone somebody people"
    " everyone everybody nobody the".split()
)
_TURNS = frozenset("but because although whereas".split())
_TURNS_AFTER_COMMA = frozenset("so yet though however while".split())  # elsewhere they mean degree or time
_NEGATORS = frozenset(
    "not never no none nor neither without nobody nothing hardly instead rather nunca ni sin ne pas jamais sans ni"
    " nicht kein keine keinen nie niemals ohne nao nem sem nahi nahin mat bina".split()
)
_NO_NEGATION = frozenset("doubt wonder matter question".split())  # after `no`


class Span(NamedTuple):
    """Words `first` to `last`, the last excluded."""

    first: int
    last: int


class Sentence(NamedTuple):
    """Words `first` to `last`, the last excluded, and what it ends with (`` if nothing)."""

    first: int
    last: int
    mark: str


@dataclass(frozen=True)
class View:
    """A text by its words. `line` has each word once, followed by a space, and `|` between sentences."""

    words: tuple[str, ...]  # lower case, without accents, short forms written out
    places: tuple[tuple[int, int], ...]  # of each word in the original, in code points
    before: tuple[
        str, ...
    ]  # what stands before each word: `|` a sentence's start, `,`, `;` a stronger mark, `` nothing
    clauses: tuple[int, ...]  # the first word of each word's clause
    quoted: tuple[bool, ...]
    sentences: tuple[Sentence, ...]
    line: str
    starts: tuple[int, ...]  # of each word in `line`

    @cached_property
    def sentence_of(self) -> tuple[int, ...]:
        """The number of each word's sentence."""
        return tuple(number for number, each in enumerate(self.sentences) for _ in range(each.first, each.last))

    def find(self, pattern: re.Pattern[str]) -> Iterator[Span]:
        """Where the pattern stands, in words."""
        for found in pattern.finditer(self.line):
            first = bisect_right(self.starts, found.start()) - 1
            last = bisect_right(self.starts, max(found.end() - 1, found.start())) - 1
            yield Span(first, last + 1)

    def place(self, span: Span) -> tuple[int, int]:
        """Where the words stand in the original."""
        return self.places[span.first][0], max(end for _, end in self.places[span.first : span.last])

    def part(self, first: int, last: int) -> str:
        """The words from `first` to `last`, each followed by a space: what patterns are searched in."""
        return "".join(f"{word} " for word in self.words[first:last])

    def is_negated(self, at: int, reach: int = REACH) -> bool:
        """Whether a negation in the same clause, `reach` words before at most, turns what stands at word `at`."""
        for i in range(at - 1, max(self.clauses[at], at - reach) - 1, -1):
            if self.words[i] in _NEGATORS and self.words[i + 1] not in _NO_NEGATION:
                return True
        return False


@lru_cache(maxsize=8)  # every rule reads the same reply; few, so that text does not stay in memory
def read(text: str) -> View:
    """The view of a text's first MAX_CHARS. Raises nothing, whatever the code points.

    >>> read("I\u2019m here. It se\u200bems heavy").line
    'i am here | it seems heavy '
    """
    spelled, starts, ends = plain_with_places(text[:MAX_CHARS])
    quotes = _quoted(spelled)
    words: list[str] = []
    places: list[tuple[int, int]] = []
    before: list[str] = []
    quoted: list[bool] = []
    marks: dict[int, str] = {}  # by the number of words before the mark
    mark = STOP
    for found in _TOKEN.finditer(spelled):
        token = found[0]
        if token[0] == "[" or token[0].isalnum() or token[0] == "_":
            place = (starts[found.start()], ends[found.end() - 1])
            for word in _written_out(token):
                words.append(word)
                places.append(place)
                before.append(mark)
                quoted.append(quotes[found.start()])
                mark = ""
        elif (what := _mark(token, found, spelled, text, starts, words)) > mark:
            mark = what
            if what == STOP:
                marks.setdefault(len(words), "")
        if "?" in token and words:
            marks[len(words)] = "?"
            mark = STOP
    return _view(words, places, before, quoted, marks)


@lru_cache(maxsize=8)  # as for `read`: several rules ask for it
def plain_with_places(text: str) -> tuple[str, Sequence[int], Sequence[int]]:
    """The plain text, and for each of its characters the start and end of what it stands for in the original.

    A word whose characters cannot be told apart (normalisation joined some) maps as a whole.
    """
    if text.isascii():
        return text.lower(), range(len(text)), range(1, len(text) + 1)
    parts: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for found in _PIECE.finditer(text):
        piece, at = found[0], found.start()
        spelled = ("\n" if "\n" in piece else " ") if piece.isspace() else plain(piece)
        apart = len(spelled) != len(piece) and len(piece) <= MAX_PIECE
        each = [plain(char) for char in piece] if apart else [*spelled]
        if "".join(each) == spelled and len(each) == len(piece) and not piece.isspace():
            for offset, chars in enumerate(each):
                starts += [at + offset] * len(chars)
                ends += [at + offset + 1] * len(chars)
        else:
            starts += [at] * len(spelled)
            ends += [at + len(piece)] * len(spelled)
        parts.append(spelled)
    return "".join(parts), starts, ends


def _quoted(spelled: str) -> list[bool]:
    inside = [False] * (len(spelled) + 1)
    for pattern in (_DOUBLE, _SINGLE):
        for found in pattern.finditer(spelled):
            inside[found.start() : found.end()] = [True] * (found.end() - found.start())
    return inside


def _written_out(token: str) -> list[str]:
    """The words of a token: none for an emoji's name, several for a short form."""
    if token[0] == "[":
        return ["placeholder_" + token[1:-1].strip().replace(" ", "_")]
    if token.startswith("emo_"):
        return []
    token = token.strip("_'")
    if token in _WRITTEN_OUT or "'" not in token:
        return _WRITTEN_OUT.get(token, token).split()
    for ending, meaning in _ENDINGS.items():
        if token.endswith(ending):
            return [token.removesuffix(ending) or meaning, meaning]
    if token.endswith("'s"):
        return [token[:-2], "is"] if token[:-2] in _IS else [token[:-2]]
    return [part for part in token.split("'") if part]


def _mark(token: str, found: re.Match[str], spelled: str, text: str, starts: Sequence[int], words: list[str]) -> str:
    """What a mark between words does: `|` ends a sentence, `;` a clause, `,` perhaps; `` nothing."""
    if token[0] in ".…":
        return _stop(token, found.end(), spelled, text, starts, words)
    if token in {'"', "¿", "¡"}:
        return ""
    if token == ",":
        return ","
    return STOP if token[0] in "!?؟‽⁇\n" else ";"


def _stop(token: str, end: int, spelled: str, text: str, starts: Sequence[int], words: list[str]) -> str:
    """A full stop inside `3.5` or after `dr` does nothing; `... and` parts clauses only."""
    after = spelled[end : end + 1]
    if after and not (after.isspace() or after in "\"')*_"):
        return ""
    if token == ".":
        return "" if words and words[-1] in _ABBREVIATED else STOP
    rest = text[starts[end] :].lstrip() if end < len(starts) else ""
    return ";" if rest[:1].islower() else STOP


def _view(
    words: list[str], places: list[tuple[int, int]], before: list[str], quoted: list[bool], marks: dict[int, str]
) -> View:
    clauses: list[int] = []
    bounds: list[int] = []
    for i, word in enumerate(words):
        if before[i] == STOP:
            bounds.append(i)
        clauses.append(i if i == 0 or _starts_clause(words, before, i, word) else clauses[-1])
    sentences = [Sentence(first, last, marks.get(last, "")) for first, last in pairwise([*bounds, len(words)])]
    starts: list[int] = []
    parts: list[str] = []
    at = 0
    for i, word in enumerate(words):
        lead = f"{STOP} " if i and before[i] == STOP else ""
        starts.append(at + len(lead))
        parts.append(f"{lead}{word} ")
        at += len(lead) + len(word) + 1
    return View(
        tuple(words),
        tuple(places),
        tuple(before),
        tuple(clauses),
        tuple(quoted),
        tuple(sentences),
        "".join(parts),
        tuple(starts),
    )


def _starts_clause(words: list[str], before: list[str], i: int, word: str) -> bool:
    if before[i] in {STOP, ";"} or word in _TURNS:
        return True
    follows = words[i + 1] if i + 1 < len(words) else ""
    if before[i] == ",":
        return word in SUBJECTS | _TURNS_AFTER_COMMA or (word in {"and", "or", "then"} and follows in SUBJECTS)
    return word in {"and", "or"} and follows in SUBJECTS - {"the", "your", "my", "his", "her", "their", "our", "that"}
