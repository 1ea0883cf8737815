"""Ends a streamed reply at a stop text, however the stream was cut into pieces."""

from collections.abc import Iterable, Iterator, Sequence


class StopTexts:
    """What has come of one reply so far. `done` once a stop text was met."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(text for text in stop if text)
        self._held = ""  # text that may turn out to be the beginning of a stop text
        self.done = False

    def push(self, piece: str) -> str:
        """The next piece of the reply; returns what can be shown of it now, the stop text left out."""
        held = self._held + piece
        # The text that is complete first wins, so that the result does not hang on how the pieces were cut.
        found = [(start + len(text), start) for text in self._stop if (start := held.find(text)) >= 0]
        if found:
            self.done = True
            self._held = ""
            return held[: min(found)[1]]
        keep = self._num_held(held)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]

    def rest(self) -> str:
        """What was held back, now that the reply has ended."""
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """The length of the longest end of `text` that begins a stop text."""
        lengths = (length for word in self._stop for length in range(1, len(word)) if text.endswith(word[:length]))
        return max(lengths, default=0)


def until_stop(pieces: Iterable[str], stop: Sequence[str]) -> Iterator[str]:
    """The pieces up to the first of the `stop` texts, which may lie across pieces and is left out.

    >>> list(until_stop(["Yes. U", "ser: no"], ("User:",)))
    ['Yes. ']
    """
    texts = StopTexts(stop)
    for piece in pieces:
        if shown := texts.push(piece):
            yield shown
        if texts.done:
            return
    if rest := texts.rest():
        yield rest
