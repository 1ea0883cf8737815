"""Which token rows are read together: those that begin alike share a row, rows of like length share a pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Encoded(NamedTuple):
    """A prompt and its reply as tokens."""

    ids: list[int]
    first: int  # position of the last prompt token: heads read there, and it predicts the reply's first token

    @property
    def answer(self) -> list[int]:
        return self.ids[self.first + 1 :]


@dataclass(frozen=True)
class SharedRow:
    """Tokens of one row of a batch, and the numbers of the items that are a beginning of it."""

    ids: list[int]
    items: tuple[int, ...]


def plan(encoded: Sequence[Encoded], max_tokens: int) -> list[list[SharedRow]]:
    """Batches of at most `max_tokens` tokens, padding included (a row that is longer stands alone); longest first.

    An item whose tokens begin another's is read in that row: no position sees what follows it. So the decision points
    of one conversation cost one pass over it.

    >>> turns = [Encoded([5, 6, 7], 1), Encoded([8, 9], 1), Encoded([5, 6, 7, 4, 3], 3)]
    >>> [[(row.ids, row.items) for row in batch] for batch in plan(turns, 8)]
    [[([5, 6, 7, 4, 3], (2, 0))], [([8, 9], (1,))]]
    """
    batches: list[list[SharedRow]] = []
    for row in sorted(_rows(encoded), key=lambda row: -len(row.ids)):  # stable: the same items give the same batches
        if batches and len(batches[-1][0].ids) * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def _rows(encoded: Sequence[Encoded]) -> list[SharedRow]:
    # Sorted, whatever begins with an item's tokens comes right behind it: its neighbour tells whether there is such a row.
    order = sorted(range(len(encoded)), key=lambda number: (encoded[number].ids, -number), reverse=True)
    rows: list[SharedRow] = []
    longer: list[int] = []
    for number in order:
        ids = encoded[number].ids
        if rows and longer[: len(ids)] == ids:
            rows[-1] = SharedRow(rows[-1].ids, (*rows[-1].items, number))
        else:
            rows.append(SharedRow(ids, (number,)))
        longer = ids
    return rows


def common_start(rows: Sequence[list[int]]) -> int:
    """How many tokens all rows begin with.

    >>> common_start([[1, 2, 3], [1, 2, 4, 5], [1, 2]])
    2
    """
    low, high = min(rows), max(rows)  # in lexicographic order the first and the last share least
    return next((at for at, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
