"""Reading the four scores out of an answer to an EQ-Bench question: the published parser, and a tolerant one.

Both say why they read nothing, and both take time that grows with the answer's length and no faster: answers come from
models, and a model may write 100 kB of one letter.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

FIRST_PASS, REVISED = "First pass scores:", "Revised scores:"
MAX_SHOWN = 30  # characters of an answer in a reason
MAX_DIGITS = 15  # beyond, sums are no longer exact, and soon no longer finite


class Reading(NamedTuple):
    """The scores in the order of the question's emotions, or why there are none."""

    values: tuple[float, ...] | None
    why: str | None = None


class Sections(NamedTuple):
    first_pass: str | None
    revised: str | None


def read_sections(text: str) -> Sections:
    """The two parts of an answer with headings, as the official code cuts it; without them all is a first pass."""
    revised_at = text.find(REVISED)
    if revised_at < 0:
        return Sections(text, None)
    first_at = text.find(FIRST_PASS)
    end = text.find(REVISED, first_at + len(FIRST_PASS)) if first_at >= 0 else -1
    first_pass = text[first_at + len(FIRST_PASS) : end] if end >= 0 else None
    return Sections(first_pass, text[revised_at + len(REVISED) :])


def tolerant_sections(text: str) -> Sections:
    """The same with headings in any case and mark-up at the start of a line; a critique belongs to neither part."""
    revised = _REVISED_HEADING.search(text)
    first = _FIRST_HEADING.search(text)
    critique = _CRITIQUE_HEADING.search(text, first.end() if first else 0)
    if first is None:
        return Sections(None, text[revised.end() :]) if revised else Sections(text, None)
    ends = [match.start() for match in (critique, revised) if match and match.start() >= first.end()]
    return Sections(text[first.end() : min(ends, default=len(text))], text[revised.end() :] if revised else None)


_MARKUP = r"^[ \t#*_>-]*"
_FIRST_HEADING = re.compile(_MARKUP + r"first[ -]?pass[ ]?(?:scores?)?[ *_]*:", re.IGNORECASE | re.MULTILINE)
_REVISED_HEADING = re.compile(_MARKUP + r"revised[ ]?scores?[ *_]*:", re.IGNORECASE | re.MULTILINE)
_CRITIQUE_HEADING = re.compile(_MARKUP + r"critique[ *_]*:", re.IGNORECASE | re.MULTILINE)


def reference_pairs(text: str) -> dict[str, str]:
    r"""What `dict(re.findall(r"(\w+):\s+(\d+)", text))` gives, in time linear in the text: the last of a name counts.

    >>> reference_pairs("Anger: 7 **Joy**: 3 Fear: 2.5")
    {'Anger': '7', 'Fear': '2'}
    """
    pairs: dict[str, str] = {}
    floor = 0  # where the last match ended
    for match in re.finditer(r":\s+(\d+)", text):
        begin = match.start()
        while begin > floor and (text[begin - 1].isalnum() or text[begin - 1] == "_"):
            begin -= 1
        if begin < match.start():
            pairs[text[begin : match.start()]] = match[1]
            floor = match.end()
    return pairs


def reference_parse(text: str, emotions: Sequence[str]) -> Reading:
    """The parser of both published conventions: exactly four pairs, with the question's names.

    Any number is taken, also one above 10. Only one of more than MAX_DIGITS is not, where lm-eval would count it.
    """
    pairs = reference_pairs(text)
    if len(pairs) != len(emotions):
        found = f"found {len(pairs)} of the form `Name: 7`" if text.strip() else "the answer is empty"
        return Reading(None, f"expected {len(emotions)} scores, {found}")
    if missing := [name for name in emotions if name not in pairs]:
        return Reading(None, f"no score for {', '.join(missing)}")
    if any(len(pairs[name]) > MAX_DIGITS for name in emotions):
        return Reading(None, f"a score has more than {MAX_DIGITS} digits")
    return Reading(tuple(float(pairs[name]) for name in emotions))


Kind = Literal["word", "number", "separator", "end", "other"]


class _Token(NamedTuple):
    kind: Kind
    text: str
    spaced: bool  # whether white space stands before it


_LEXER = re.compile(
    r"(?P<end>[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]+)"
    r"|(?P<word>[^\W\d_]\w*(?:['’-][^\W\d_]\w*)*)"
    r"|(?P<number>[0-9]+(?:[.,][0-9]+)*[^\W_]*)"
    r"|(?P<separator>=>|->|[:：=→⇒|–—])"
    r"|(?P<other>\S)"
)
_NUMBER = re.compile(r"[0-9]{1,3}(?:\.[0-9]{1,12})?")
_AFTER_VALUE = {",", ";", ".", ")", "]", "}", "(", "!", "–", "—", "|"}  # and a hyphen between spaces
_BEFORE_LABEL = {
    ",",
    ";",
    ".",
    ")",
    "(",
    "[",
    "{",
    "|",
    "!",
    "?",
    "•",
    "·",
    "‣",
    "-",
    "–",
    "—",
    ":",
    "：",
    "→",
    "⇒",
    "->",
    "=>",
}
_CLOSING = {"(": ")", "[": "]", "<": ">"}


class _Refused(Exception):  # noqa: N818 - it is a way out of the walk below, and no error
    """The answer cannot be read without guessing; the message says why."""


def tolerant_parse(text: str, emotions: Sequence[str]) -> Reading:
    """Scores in any common form: bold, JSON, tables, lists, no space, decimals, `7/10`, other separators, any case.

    It reads `NAME SEPARATOR NUMBER` and `NAME NUMBER` within a line. It refuses
    rather than guesses: names that are missing, not asked for or given two values, ranges, numbers outside 0 to 10, and
    whatever follows a number without a stop between.

    >>> tolerant_parse("- **sad**: 7/10\\n| Mad | 2.5 |\\nGlad=0, Calm - 1", ("Sad", "Mad", "Glad", "Calm")).values
    (7.0, 2.5, 0.0, 1.0)
    """
    names = {name.casefold(): name for name in emotions}
    values: dict[str, float] = {}
    if not text.strip():
        return Reading(None, "the answer is empty")
    try:
        lines = [_Line(tokens, names) for tokens in _lines(text)]
        for name, value in (pair for line in lines for pair in line.pairs()):
            if values.setdefault(name, value) != value:
                raise _Refused(f"{name} has two different scores")
        if any(map(_Line.has_bare_pair, lines)) and any(map(_Line.is_bare_extra, lines)):
            raise _Refused("there is a score for something that is not an emotion of the question")
    except _Refused as refused:
        return Reading(None, str(refused))
    if missing := [name for name in emotions if name not in values]:
        return Reading(None, f"no score for {', '.join(missing)}")
    if doubtful := [name for line in lines for name in line.other_scores(values)]:
        return Reading(None, f"{doubtful[0]} stands before two different numbers")
    return Reading(tuple(values[name] for name in emotions))


def _lines(text: str) -> list[list[_Token]]:
    """The tokens of each line. Marks of emphasis and quotation count as white space."""
    lines: list[list[_Token]] = [[]]
    last_end = 0
    plain = re.sub(r"[*_`\"“”]", " ", text)
    for match in _LEXER.finditer(plain):
        kind: Kind = match.lastgroup  # type: ignore[assignment]  # a group of the lexer, as Kind lists them
        if kind == "end":
            lines.append([])
        else:
            lines[-1].append(_Token(kind, match[0], match.start() > last_end))
        last_end = match.end()
    return lines


class _Line:
    """One line's tokens, walked from left to right."""

    def __init__(self, tokens: list[_Token], names: dict[str, str]) -> None:
        self._tokens = tokens
        self._names = names  # casefolded -> as the question writes it

    def pairs(self) -> list[tuple[str, float]]:
        """Each name with its score. Raises _Refused where there is doubt."""
        found: list[tuple[str, float]] = []
        end = 0  # behind the last pair's value
        for at in range(len(self._tokens)):
            if at < end or not (self._is_separator(at) or self._is_bare(at)):
                continue
            value_at = at if self._is_bare(at) else at + 1
            start = self._label_start(at, end)
            label = " ".join(token.text for token in self._tokens[start:at])
            name = self._names.get(label.casefold())
            if name is None:
                self._check_no_score(at, start, end)
                continue
            behind = self._value_end(value_at, name)
            if behind is None:
                continue  # prose or a place-holder after the name, as `Anger: <score>`
            self._check_before(start, end, name)
            if found:
                self._check_after(end, start, found[-1][0])
                self._check_between(end, start, at)
            found.append((name, self._value(value_at, name)))
            end = behind
        if found:
            self._check_after(end, len(self._tokens), found[-1][0])
        return found

    def other_scores(self, values: dict[str, float]) -> Iterator[str]:
        """Names that stand before a number, with only signs between, which is not the score that was read."""
        last: str | None = None  # the name after which no other word has come yet
        for token in self._tokens:
            if token.kind == "word":
                last = self._names.get(token.text.casefold())
            elif token.kind == "number":
                if last is not None and not (_NUMBER.fullmatch(token.text) and float(token.text) == values[last]):
                    yield last
                last = None

    def is_bare_extra(self) -> bool:
        """Whether the line is a word and a number alone, and the word is no emotion of the question."""
        kinds = [token.kind for token in self._tokens if token.kind != "other"]
        word = next((token.text for token in self._tokens if token.kind == "word"), "")
        return kinds == ["word", "number"] and word.casefold() not in self._names

    def has_bare_pair(self) -> bool:
        return any(
            self._is_bare(at) and self._text(at - 1).casefold() in self._names for at in range(len(self._tokens))
        )

    def _is_bare(self, at: int) -> bool:
        """A number straight after a word, as in `Anger 7`."""
        return self._kind(at) == "number" and self._kind(at - 1) == "word"

    def _is_separator(self, at: int) -> bool:
        token = self._tokens[at]
        return token.kind == "separator" or self._is_dash(at)

    def _is_dash(self, at: int) -> bool:
        """A hyphen with a space on both sides; any other one could be a minus or part of a range."""
        return self._text(at) == "-" and self._tokens[at].spaced and self._spaced(at + 1)

    def _text(self, at: int) -> str:
        return self._tokens[at].text if 0 <= at < len(self._tokens) else ""

    def _kind(self, at: int) -> Kind:
        return self._tokens[at].kind if 0 <= at < len(self._tokens) else "end"

    def _spaced(self, at: int) -> bool:
        return at >= len(self._tokens) or self._tokens[at].spaced

    def _label_start(self, at: int, floor: int) -> int:
        start = at
        while start > floor and self._kind(start - 1) == "word":
            start -= 1
        return start

    def _check_no_score(self, at: int, start: int, end: int) -> None:
        """A number after a label that was not asked for, or without one, may be a score that somebody meant."""
        if self._is_bare(at):
            if self._text(at - 1).casefold() in self._names:
                raise _Refused(f"it is not clear what stands before {self._text(at - 1)}")
            return  # prose, as `about 3`
        if self._kind(at + 1) != "number":
            return
        if start < at:
            label = " ".join(token.text for token in self._tokens[start:at])
            raise _Refused(f"{label[-MAX_SHOWN:]!r} is not an emotion of the question")
        is_time = self._kind(at - 1) == "number" and not self._tokens[at].spaced and not self._tokens[at + 1].spaced
        is_row_number = self._text(at) == "|" and at == 0
        if not is_time and not is_row_number and end == 0:
            raise _Refused(f"{self._text(at + 1)[:MAX_SHOWN]!r} belongs to no emotion")

    def _check_before(self, start: int, end: int, name: str) -> None:
        before = self._text(start - 1)
        starts_list = start == 1 and self._kind(0) == "number"
        if start > end and before not in _BEFORE_LABEL and not starts_list and not self._is_bullet(start):
            raise _Refused(f"it is not clear what stands before {name}")

    def _is_bullet(self, start: int) -> bool:
        """Whether nothing but signs stands between the start of the line and a label, as a bullet or an emoji."""
        if start == 1 and self._text(0) in "+>":  # a list or a quotation in Markdown
            return self._spaced(1)
        return all(token.kind == "other" and token.text not in "/&+<>~≈" for token in self._tokens[:start])

    def _value_end(self, at: int, name: str) -> int | None:
        """Behind the value that begins at `at` and its `/10`; None if no number stands there."""
        closing = _CLOSING.get(self._text(at))
        number = at + (closing is not None)
        if self._kind(number) != "number":
            # A sign or mark between name and number, as in `Anger: -3` or `Anger: >5`.
            if self._kind(number) in ("other", "separator") and self._kind(number + 1) == "number":
                raise _Refused(f"what stands after {name} is not one number")
            return None
        end = number + 1
        if self._text(end) in ("/", "of") or (self._text(end), self._text(end + 1)) == ("out", "of"):
            end += 1 if self._text(end) != "out" else 2
            if self._text(end) not in ("10", "10.0"):
                raise _Refused(f"the score of {name} is not out of 10")
            end += 1
        if closing is not None:
            if self._text(end) != closing:
                raise _Refused(f"what stands after {name} is not one number")
            end += 1
        return end

    def _value(self, at: int, name: str) -> float:
        text = self._text(at) if self._kind(at) == "number" else self._text(at + 1)
        if not _NUMBER.fullmatch(text):
            raise _Refused(f"{text[:MAX_SHOWN]!r} for {name} is not a number")
        value = float(text)
        if not 0 <= value <= 10:
            raise _Refused(f"{text} for {name} is not within 0 to 10")
        return value

    def _check_between(self, end: int, start: int, separator: int) -> None:
        """In `7 | Anger | 3 | Joy | 2` nothing says to which name a number belongs."""
        if self._is_separator(separator) and self._text(separator) in {token.text for token in self._tokens[end:start]}:
            raise _Refused(f"it is not clear to which emotion {self._text(separator + 1)[:MAX_SHOWN]!r} belongs")

    def _check_after(self, end: int, until: int, name: str) -> None:
        """Between a value and the next label, or the end of the line, stands no other number and no loose word."""
        rest = self._tokens[end:until]
        if not rest:
            return
        if rest[0].text not in _AFTER_VALUE and not self._is_dash(end):
            raise _Refused(f"the score of {name} is followed by {rest[0].text[:MAX_SHOWN]!r}")
        if any(token.kind == "number" for token in rest):
            raise _Refused(f"more than one number stands after {name}")
