"""A message as the models read it: its words in a row, and the runs of words in it that are each read for themselves."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, groupby
from typing import NamedTuple

FIRST, LAST = "<", ">"  # before and after each sentence
PART_WORDS = 100  # more or less, that are read at once; a longer message is read in parts
PASSAGE_WORDS, FEWEST = 12, 6  # words: of a passage, of the shortest
MOST = 60  # passages, more or less, of the longest message


class Window(NamedTuple):
    """Words `start` to `end` of a row, the end excluded: of the sentences `first` to `last`, the last included."""

    start: int
    end: int
    first: int
    last: int
    is_passage: bool = False  # of a message that is also read as a whole, or in longer parts


class _Piece(NamedTuple):
    """A sentence, or a part of a long one, with the marks at its ends."""

    start: int
    end: int
    sentence: int
    num_words: int


def row(sentences: Sequence[Sequence[str]]) -> list[str]:
    """The words of all sentences, with their ends marked.

    >>> row([("so", "tired"), ("bye",)])
    ['<', 'so', 'tired', '>', '<', 'bye', '>']
    """
    return [word for sentence in sentences for word in (FIRST, *sentence, LAST)]


def windows(sentences: Sequence[Sequence[str]], apart: Sequence[bool] = ()) -> Iterator[Window]:
    """The message, or its parts of about PART_WORDS; of one with several sentences also its passages.

    What one sentence says must not drown in what stands before and after it. `apart`: of each sentence, whether it is
    no part of what is told; the sentences between such are read by themselves too.
    """
    num_words = sum(map(len, sentences))
    if any(apart) and num_words <= 1.5 * PART_WORDS:
        yield from _between(sentences, apart)
    if num_words <= 1.5 * PART_WORDS:
        yield Window(0, num_words + 2 * len(sentences), 0, len(sentences) - 1)
    else:
        yield from _parts(sentences)
    if len(sentences) > 1 or num_words > PART_WORDS // 4:
        yield from _passages(sentences, max(num_words // MOST, PASSAGE_WORDS))


def _between(sentences: Sequence[Sequence[str]], apart: Sequence[bool]) -> Iterator[Window]:
    """Each run of sentences that are not apart."""
    ends = list(accumulate(len(sentence) + 2 for sentence in sentences))
    numbers = range(len(sentences))
    for is_apart, run in groupby(numbers, key=apart.__getitem__):
        if not is_apart:
            first, *rest = run
            last = rest[-1] if rest else first
            yield Window(ends[first] - len(sentences[first]) - 2, ends[last], first, last)


def _parts(sentences: Sequence[Sequence[str]]) -> Iterator[Window]:
    """Each begins with the last piece of the one before."""
    part: list[_Piece] = []
    for piece in _pieces(sentences):
        part.append(piece)
        if _size(part) >= PART_WORDS:
            yield _window(part)
            part = part[-1:]
    if len(part) > 1:
        yield _window(part)


def _passages(sentences: Sequence[Sequence[str]], size: int) -> Iterator[Window]:
    """For each sentence, the fewest that end with it and have `size` words; of a very long message longer ones, half over half."""
    part: list[_Piece] = []
    step = size if size > PASSAGE_WORDS else 0
    for piece in _pieces(sentences):
        part.append(piece)
        if _size(part) < step:
            continue
        while _size(part[1:]) >= size:
            part.pop(0)
        if _size(part) >= FEWEST:
            yield _window(part, is_passage=True)
        if step:
            part = part[(len(part) + 1) // 2 :]
    if step and part:
        yield _window(part, is_passage=True)


def _window(pieces: Sequence[_Piece], *, is_passage: bool = False) -> Window:
    return Window(pieces[0].start, pieces[-1].end, pieces[0].sentence, pieces[-1].sentence, is_passage)


def _size(pieces: Sequence[_Piece]) -> int:
    return sum(piece.num_words for piece in pieces)


def _pieces(sentences: Sequence[Sequence[str]]) -> Iterator[_Piece]:
    """Sentences, none longer than a quarter of a part."""
    most = PART_WORDS // 4
    at = 0  # the mark before the sentence
    for number, sentence in enumerate(sentences):
        last = at + len(sentence) + 1  # the mark after it
        for start in range(at + 1, last, most):
            end = min(start + most, last)
            yield _Piece(start - (start == at + 1), end + (end == last), number, end - start)
        at = last + 1
