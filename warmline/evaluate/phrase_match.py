"""Whether a text asserts one of some phrases: at word bounds, and neither denied, asked, nor laid in another's mouth."""

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache

_CLAUSE = re.compile(r"[;:,\n()]|(?<=\w)\s[-\u2013\u2014]\s|\u2014|\s(?=but\b|yet\b|however\b)")
_SENTENCE = re.compile(r"(?<=[.!?])(?=\s|$)|\n+")
_REACH = 6  # words before the phrase in which a negation counts
_DENIES = re.compile(
    r"(?:\bnot|n't|\bnever|\bno|\bnor|\bneither|\brather than|\binstead of|\bunlike|\bcontrary to|\bless than|\bfar from"
    r"|\bisnt|\bcannot)\b(?! (?:only|just|doubt|question|wonder|need|matter|worries|problem|surprise)\b)"
)
_OTHERS_SAY = re.compile(
    r"\b(?:people|many|most|some|others|you|they|we|folks|everyone|everybody)\b(?: \w+){0,3}? (?:think|thinks|thought|believe"
    r"|believes|believed|assume|assumes|assumed|guess|guessed|say|said|mention|mentioned|confuse|heard|hear|expect|imagine)\b"
    r"|\bmyth|\bmisconception|\bmistaken|\bmistake\b|\bconfused with|\bnicknamed|\bcommon(?:ly)? (?:belie\w+|error|assum\w+)"
)
_DENIED_AFTER = re.compile(
    r"^(?:'s name|s)?\W*(?:\w+\W+){0,2}?(?:(?:is|was|are|were|does|do|did|has|can|could|would|will)(?: not|n't)\b(?! only)"
    r"|cannot\b|never\b|(?:is|was|are) (?:wrong|incorrect|false|a (?:common )?(?:myth|misconception|mistake)))"
)


def asserts(text: str, phrases: Sequence[str]) -> bool:
    """Whether the text says one of the phrases as its own.

    >>> asserts("It's Canberra.", ["canberra"]), asserts("It isn't Sydney.", ["sydney"]), asserts("Sydneysiders!", ["sydney"])
    (True, False, False)
    """
    return any(
        _stands(clause, found) for clause in _clauses(text) for found in _pattern(tuple(phrases)).finditer(clause)
    )


def _stands(clause: str, found: re.Match[str]) -> bool:
    before = clause[: found.start()]
    near = " ".join(before.split()[-_REACH:]) + " "
    return not (
        _DENIES.search(near) or _OTHERS_SAY.search(before) or _DENIED_AFTER.match(clause[found.end() :].strip())
    )


def _clauses(text: str) -> Iterator[str]:
    """The clauses of the sentences that do not ask; `or Perth` takes over the negation of the clause before."""
    plain = text.lower().replace("\u2019", "'").replace("\u2018", "'")
    for sentence in _SENTENCE.split(plain):
        if sentence.rstrip().endswith("?"):
            continue
        before = ""
        for part in _CLAUSE.split(_numbers_joined(sentence)):
            joined = f"{before} {part}" if re.match(r"\s*(?:or|nor)\b", part) else part
            yield joined
            before = joined


def _numbers_joined(sentence: str) -> str:
    """`1,210` is one number, not two clauses."""
    return re.sub(r"(?<=\d),(?=\d{3}\b)", "\u0001", sentence)


@lru_cache(maxsize=512)
def _pattern(phrases: tuple[str, ...]) -> re.Pattern[str]:
    """Any phrase between word bounds; a number is not found inside a longer one, nor before its decimals."""
    escaped = (re.escape(_numbers_joined(phrase.lower())) for phrase in sorted(phrases, key=len, reverse=True))
    return (
        re.compile(rf"(?<![\w\u0001])(?<!\d[.,/])(?:{'|'.join(escaped)})(?![\w\u0001])(?![.,/]\d)")
        if phrases
        else _NOTHING
    )


_NOTHING = re.compile(r"(?!)")
