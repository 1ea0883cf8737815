"""One running batch: prompts are read between its steps and join it, replies that end leave it."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from warmline.engine.decoding import Row, draw_all
from warmline.engine.engine import Chunk, EngineError
from warmline.engine.prefix import PrefixCache
from warmline.engine.slots import Layers, Reader, SlotCache

if TYPE_CHECKING:
    from warmline.engine.local import LocalEngine, Prepared

LEAST_TOKENS = 32  # of a pass over prompts, however slow: less would not be worth a pass
NEIGHBOURS = 16  # prompts that are looked at for one pass


class Ticket:
    """One request on its way from its caller's thread to the model's, and its chunks on their way back."""

    def __init__(self, engine: "LocalEngine", prepared: "Prepared", *, urgent: bool = False) -> None:
        self.engine = engine
        self.prompt, self.last, self.rows, self.notes = prepared
        self.prepared = prepared
        self.urgent = urgent
        # As long as the reply at most, whoever reads it: nothing here waits for a reader.
        self.chunks: SimpleQueue[Chunk | EngineError | None] = SimpleQueue()
        self.is_closed = False  # set by whoever reads, from another thread
        self.is_over = False
        self.has_failed = False
        self.order = 0  # of arrival
        self.width = len(self.prompt) + self.rows[0].sampling.max_new_tokens  # positions that a row of it may take
        self.alone: Iterator[Chunk] | None = None  # where rows cannot be read side by side

    @property
    def is_gone(self) -> bool:
        """Whether nothing more is to be done for it."""
        return self.is_closed or self.is_over

    def say(self, text: str, index: int) -> None:
        if text:
            self.chunks.put(Chunk(text, index))

    def end(self, error: EngineError | None = None) -> None:
        """No more chunks; the last thing that happens to a ticket."""
        if not self.is_over:
            self.is_over, self.has_failed = True, error is not None
            self.chunks.put(error)


@dataclass(eq=False)
class _Reading:
    """A prompt that is not wholly read."""

    ticket: Ticket
    num_read: int = 0
    known: Layers = field(default_factory=list)  # of the tokens read so far, from an earlier prompt
    cache: SlotCache | None = None  # once a piece of it was read
    state_D: Tensor | None = None  # of the prompt's own last token, once it was read

    @property
    def num_left(self) -> int:
        return len(self.ticket.prompt) - self.num_read

    @property
    def has_prefill(self) -> bool:
        return self.ticket.last + 1 < len(self.ticket.prompt)

    def piece(self, most: int) -> list[int]:
        """The next tokens; the prompt's own last one ends a piece, for the heads read there."""
        prompt = self.ticket.prompt
        end = self.ticket.last + 1 if self.num_read <= self.ticket.last else len(prompt)
        return prompt[self.num_read : min(end, self.num_read + most)]


@dataclass(eq=False)
class _Live:
    """A reply that is being written. Its last token is not yet in its slot."""

    ticket: Ticket
    row: Row
    num_cached: int
    written: list[int] = field(default_factory=list)

    @property
    def is_gone(self) -> bool:
        return self.row.is_over or self.ticket.is_gone


class Lane:
    """Requests of one stage and of like length: prompts that wait to be read, and the rows that are written together."""

    def __init__(
        self,
        engine: "LocalEngine",
        reader: Reader,
        prefixes: PrefixCache | None,
        prefill_tokens: int,
        prefill_s: float,
    ) -> None:
        self._engine = engine
        self._reader = reader
        self._prefixes = prefixes
        self._prefill_tokens = prefill_tokens
        self._prefill_s = prefill_s
        self._cache = reader.slots(0, 0)
        self._readings: list[_Reading] = []
        self._rows: list[_Live] = []
        self._busy: list[Ticket] = []  # whose work is at hand

    def add(self, ticket: Ticket) -> None:
        """Let the prompt wait to be read: an urgent one before all that are not."""
        ahead = sum(each.ticket.urgent for each in self._readings) if ticket.urgent else len(self._readings)
        self._readings.insert(ahead, _Reading(ticket))

    def drop_gone(self) -> None:
        """Let go of what has ended or was closed; the last row moves into the slot of one that leaves."""
        self._readings = [each for each in self._readings if not each.ticket.is_gone]
        at = 0
        while at < len(self._rows):
            if not self._rows[at].is_gone:
                at += 1
                continue
            self._remember(self._rows[at], at)
            last = self._rows.pop()
            if at < len(self._rows):
                self._cache.fill(at, self._cache.row(len(self._rows), last.num_cached))
                self._rows[at] = last
        if not self._rows:
            self._cache = self._reader.slots(0, 0)

    @property
    def num_rows(self) -> int:
        """Rows that are written or will be."""
        return len(self._rows) + sum(len(each.ticket.rows) for each in self._readings)

    @property
    def tickets(self) -> list[Ticket]:
        return [each.ticket for each in (*self._rows, *self._readings)]

    @property
    def width(self) -> int:
        """Positions of the widest of them."""
        return max((ticket.width for ticket in self.tickets), default=0)

    @property
    def first_reading(self) -> Ticket | None:
        return self._readings[0].ticket if self._readings else None

    def fail(self, error: EngineError) -> None:
        """The work at hand failed: its requests get the error, the others go on."""
        for ticket in self._busy:
            ticket.end(error)
        if all(live.is_gone for live in self._rows):  # their slots may be half written
            self._rows, self._cache = [], self._reader.slots(0, 0)
        self.drop_gone()

    def step(self) -> None:
        """Write one token of each row."""
        if not self._rows:
            return
        self._busy = [live.ticket for live in self._rows]
        pieces = [live.written[-1:] for live in self._rows]
        states_BD = self._reader.read(self._cache, pieces, [live.num_cached for live in self._rows])
        for live in self._rows:
            live.num_cached += 1
        self._advance(self._rows, self._engine.logits(states_BD))
        self.drop_gone()

    def prefill(self) -> None:
        """Read a piece of a long prompt, or some short ones whole: as many tokens as their bounds allow."""
        begun, num_tokens = time.perf_counter(), self._read_some()
        if num_tokens >= LEAST_TOKENS:  # a few tokens tell nothing: the pass itself is what takes the time
            pace = (time.perf_counter() - begun) / num_tokens
            self._reader.pace = (self._reader.pace + pace) / 2 if self._reader.pace else pace

    def _budget(self) -> int:
        """Tokens that a pass may read, by how long the last ones took."""
        in_time = int(self._prefill_s / self._reader.pace) if self._reader.pace else self._prefill_tokens
        return min(self._prefill_tokens, max(in_time, LEAST_TOKENS))

    def _read_some(self) -> int:
        """One pass over prompts; how many tokens it read."""
        if not self._readings:
            return 0
        self._busy = [self._readings[0].ticket]
        budget = self._budget()
        group = self._group(budget)
        self._busy = [each.ticket for each in group]
        left = max(each.num_left for each in group)
        cache = group[0].cache
        if cache is None:
            cache = self._reader.slots(len(group), max(each.num_read for each in group) + left)
            for at, each in enumerate(group):
                if each.known:
                    cache.fill(at, each.known)
                each.known = []
        starts = [each.num_read for each in group]
        pieces = [each.piece(budget) for each in group]
        states_BD = self._reader.read(cache, pieces, starts)
        for at, (each, piece) in enumerate(zip(group, pieces, strict=True)):
            each.num_read += len(piece)
            if each.num_read == each.ticket.last + 1:
                each.state_D = states_BD[at]
        if group[0].num_left:
            group[0].cache = cache
        else:
            self._readings = [each for each in self._readings if each not in group]
            self._begin(group, cache, states_BD)
        return sum(len(piece) for piece in pieces)

    def _group(self, budget: int) -> list[_Reading]:
        """The first prompt, and such others behind it as fit into one pass beside it."""
        first, *others = self._readings
        if first.cache is not None:
            return [first]
        self._look_up(first)
        group, left = [first], first.num_left
        for other in others[:NEIGHBOURS] if not first.has_prefill else ():
            if other.cache is None and not other.has_prefill and 2 * left <= budget:
                self._look_up(other)
                wider = max(left, other.num_left)
                if wider * (len(group) + 1) <= budget:
                    group, left = [*group, other], wider
        return group

    def _look_up(self, reading: _Reading) -> None:
        if self._prefixes is not None:
            reading.num_read, reading.known = self._prefixes.find(
                self._engine, reading.ticket.prompt[: reading.ticket.last + 1]
            )

    def _begin(self, group: list[_Reading], cache: SlotCache, states_BD: Tensor) -> None:
        """What the heads read goes out, the first token is drawn, and replies that go on get slots."""
        begun: list[_Live] = []
        rows: list[int] = []  # of `cache`
        prompts_BD = torch.stack([each.state_D for each in group if each.state_D is not None])
        tickets = [each.ticket for each in group]
        for at, (ticket, readings) in enumerate(zip(tickets, self._engine.read(prompts_BD), strict=True)):
            ticket.chunks.put(Chunk("", 0, readings, ticket.notes))
            if self._prefixes is not None:
                self._prefixes.keep(self._engine, ticket.prompt, cache.row(at, len(ticket.prompt)))
            begun += [_Live(ticket, row, len(ticket.prompt)) for row in ticket.rows]
            rows += [at] * len(ticket.rows)
        self._advance(begun, self._engine.logits(states_BD[rows]))
        going_on = [(live, at) for live, at in zip(begun, rows, strict=True) if not live.is_gone]
        widest = max((live.ticket.width for live, _ in going_on), default=0)
        self._cache.reserve(len(self._rows) + len(going_on), widest)
        for live, at in going_on:
            self._cache.fill(len(self._rows), cache.row(at, live.num_cached))
            self._rows.append(live)

    def _advance(self, rows: list[_Live], logits_BV: Tensor) -> None:
        """Draw the next token of each row and say what it completes; a row that cannot go on takes only its request along."""
        for at, live in enumerate(rows):
            try:
                live.row.confine(logits_BV[at : at + 1])
            except EngineError as error:
                live.ticket.end(error)
        for at in (~logits_BV.amax(dim=-1).isfinite()).nonzero().flatten().tolist():
            rows[at].ticket.end(EngineError("the model's numbers are not finite"))
            logits_BV[at] = 0
        tokens = draw_all([live.row for live in rows], logits_BV)
        for live, token in zip(rows, tokens, strict=True):
            if live.is_gone:
                continue
            try:
                live.ticket.say(live.row.push(token, is_stop=self._engine.is_stop(token)), live.row.index)
            except EngineError as error:
                live.ticket.end(error)
            live.written.append(token)
            if all(row.is_over for row in live.ticket.rows):
                live.ticket.end()

    def _remember(self, live: _Live, at: int) -> None:
        """Keep what was read and written, for the next turn begins so; of several replies none is known to be it."""
        if self._prefixes is None or len(live.ticket.rows) > 1 or live.ticket.has_failed:
            return
        ids = [*live.ticket.prompt, *live.written][: live.num_cached]
        with suppress(MemoryError, torch.OutOfMemoryError):
            self._prefixes.keep(self._engine, ids, self._cache.row(at, live.num_cached))
