"""An engine around an engine, which stops when nobody waits any more."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing

from warmline.engine.engine import Capability, Chunk, Engine, GenerateRequest, Message, Scores


class Gone(BaseException):
    """Nobody waits for the reply any more. No Exception: nothing may take it for an engine's failure and go on."""


class Interruptible:
    """`engine`, for one reply: once `gone` is set it raises `Gone` before the next piece, and hangs up."""

    def __init__(self, engine: Engine, gone: threading.Event) -> None:
        self._engine = engine
        self._gone = gone

    def capabilities(self) -> frozenset[Capability]:
        return self._engine.capabilities()

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self._check()
        with closing(_closable(self._engine.generate(request))) as chunks:
            for chunk in chunks:
                self._check()
                yield chunk

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        self._check()
        return self._engine.score(messages, reply)

    def _check(self) -> None:
        if self._gone.is_set():
            raise Gone


def _closable(chunks: Iterator[Chunk]):
    """The stream as a generator, which can be closed; closing it closes the stream, if that can be."""
    try:
        yield from chunks
    finally:
        close = getattr(chunks, "close", None)
        if close is not None:
            close()
