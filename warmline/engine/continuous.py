"""Many conversations at once over one model: a single thread owns it, and requests join and leave its running batch."""

import atexit
import itertools
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores, whole
from warmline.engine.lanes import Lane, Ticket
from warmline.engine.local import LocalEngine
from warmline.engine.prefix import MAX_AGE_S, MAX_BYTES, PrefixCache
from warmline.engine.slots import Reader

NARROW = 1024  # positions: wider requests are batched apart, each class four times as wide as the one before
SCORED_AT_ONCE = 32  # replies, between two steps
LARGEST_N = 16  # replies to one request that are served, though it be alone, where `max_rows` is less
CLOSED = "the engine is closed"

T = TypeVar("T")


@dataclass(frozen=True)
class Batching:
    """How much one process writes at once."""

    max_rows: int = 64  # replies
    max_tokens: int = (
        65_536  # positions of all rows, prompt and room for the reply, each as wide as the widest beside it
    )
    urgent_rows: int = 8  # more than `max_rows`, for urgent requests alone
    prefill_tokens: int = 512  # of prompts, at most, between two steps of the replies that are being written
    prefill_s: float = 0.25  # for as long as reading them may hold up those replies, judged by how long it took before
    prefix_bytes: int = MAX_BYTES  # of keys and values kept of recent prompts; 0: none
    prefix_age_s: float = MAX_AGE_S  # how long they are kept unused

    def __post_init__(self) -> None:
        if self.max_rows < 1 or self.prefill_tokens < 1:
            raise EngineError("max_rows and prefill_tokens must be at least 1")


class Load(NamedTuple):
    """How busy a runner is."""

    num_waiting: int  # requests that have no place yet
    num_rows: int  # replies that are being written, or whose prompt is being read


class Stream(Iterator[Chunk]):
    """The chunks of one request. Closed, or no longer held by anyone, it gives its place free."""

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    def __next__(self) -> Chunk:
        if self._ticket.is_closed:
            raise StopIteration
        chunk = self._ticket.chunks.get()
        if isinstance(chunk, Chunk):
            return chunk
        self.close()
        if chunk is None:
            raise StopIteration
        raise type(chunk)(*chunk.args)  # anew: those that fail together share one

    def close(self) -> None:
        if not self._ticket.is_closed:
            self._ticket.is_closed = True
            self._ticket.chunks.put(None)  # for a reader in another thread who waits for a chunk

    def __del__(self) -> None:
        self.close()


class Runner:
    """The thread that owns a model. Build all `LocalEngine`s of the model before the first request."""

    def __init__(self, batching: Batching | None = None) -> None:
        self._batching = batching or Batching()
        self.prefixes: PrefixCache | None = None
        if self._batching.prefix_bytes:
            self.prefixes = PrefixCache(self._batching.prefix_bytes, self._batching.prefix_age_s)
        # Shared with the callers' threads, under `_wake`.
        self._wake = threading.Condition()
        self._urgent: deque[Ticket] = deque()
        self._ordinary: deque[Ticket] = deque()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._order = itertools.count()
        self._is_closed = False
        # The thread's own.
        self._lanes: dict[tuple[LocalEngine, int], Lane] = {}
        self._alone: list[Ticket] = []
        self._readers: dict[LocalEngine, Reader | None] = {}
        self._num_rows = 0
        self._num_threads = torch.get_num_threads()  # torch's: each thread of Python has a count of its own
        self._thread = threading.Thread(target=self._run, name="warmline-engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a thread inside torch must not meet the end of the interpreter

    def engine(self, local: LocalEngine) -> "ContinuousEngine":
        """The same stage, for many threads."""
        return ContinuousEngine(self, local)

    def submit(self, ticket: Ticket) -> Stream:
        """Queue a request. Raises EngineError if it could never be served."""
        most = max(self._batching.max_rows, LARGEST_N)
        if len(ticket.rows) > most:
            raise EngineError(f"n is {len(ticket.rows)}; at most {most} replies are written at once")
        with self._wake:
            self._check_open()
            ticket.order = next(self._order)
            (self._urgent if ticket.urgent else self._ordinary).append(ticket)
            self._wake.notify()
        return Stream(ticket)

    def call(self, function: Callable[[], T]) -> T:
        """What `function` gives, run between two steps of the batch."""
        future: Future[T] = Future()
        with self._wake:
            self._check_open()
            self._jobs.append((future, function))
            self._wake.notify()
        return future.result()

    def load(self) -> Load:
        """How busy the model is, as a queue before it wants to know."""
        with self._wake:
            waiting = sum(not ticket.is_gone for queue in (self._urgent, self._ordinary) for ticket in queue)
            return Load(waiting, self._num_rows)

    def close(self) -> None:
        """End the thread after the step at hand; whatever was not finished gets an error."""
        with self._wake:
            self._is_closed = True
            self._wake.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> "Runner":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._is_closed:
            raise EngineError(CLOSED)

    def _run(self) -> None:
        torch.set_num_threads(self._num_threads)
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._turn()
        finally:
            self._end_all()

    def _has_work(self) -> bool:
        """Wait for something to do; False once the runner is closed."""
        with self._wake:
            while not any((self._is_closed, self._jobs, self._urgent, self._ordinary, self._lanes, self._alone)):
                self._wake.wait(None if self.prefixes is None else self.prefixes.expire())
            return not self._is_closed

    def _turn(self) -> None:
        """One job, one token of every reply, one piece of what is to be read."""
        self._do_a_job()
        self._admit()
        for lane in self._lanes.values():
            self._work(lane, lane.step)
        reading = [(lane.first_reading, lane) for lane in self._lanes.values() if lane.first_reading is not None]
        if reading:
            _, lane = min(reading, key=lambda pair: (not pair[0].urgent, pair[0].order))
            self._work(lane, lane.prefill)
        for ticket in self._alone:
            _write_alone(ticket)
        self._alone = [ticket for ticket in self._alone if not ticket.is_gone]
        self._lanes = {key: lane for key, lane in self._lanes.items() if lane.num_rows}
        self._num_rows = self._rows_now()

    def _work(self, lane: Lane, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # noqa: BLE001 - the outermost line of these requests: all others go on
            lane.fail(_failure(error))
            if self.prefixes is not None:  # the first thing to do without when memory is short
                self.prefixes.clear()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _do_a_job(self) -> None:
        with self._wake:
            if not self._jobs:
                return
            future, function = self._jobs.popleft()
        try:
            future.set_result(function())
        except Exception as error:  # noqa: BLE001 - whoever waits for the job gets it
            future.set_exception(error if isinstance(error, EngineError) else _failure(error))

    def _admit(self) -> None:
        """Give a place to waiting requests, as long as the first of them fits."""
        for lane in self._lanes.values():
            lane.drop_gone()
        while (ticket := self._next()) is not None:
            engine = ticket.engine
            try:
                if engine not in self._readers:
                    self._readers[engine] = engine.reader()
            except Exception as error:  # noqa: BLE001 - the outermost line of this request
                ticket.end(_failure(error))
                continue
            reader = self._readers[engine]
            if reader is None:
                ticket.alone = engine.stream(ticket.prepared)
                self._alone.append(ticket)
                continue
            lane = self._lanes.get(_lane_of(ticket))
            if lane is None:
                lane = Lane(engine, reader, self.prefixes, self._batching.prefill_tokens, self._batching.prefill_s)
                self._lanes[_lane_of(ticket)] = lane
            lane.add(ticket)

    def _next(self) -> Ticket | None:
        with self._wake:
            for queue in (self._urgent, self._ordinary):
                while queue and queue[0].is_gone:
                    queue.popleft()
                if queue:  # first come, first served: who waits behind it waits on, though there were room for them
                    return queue.popleft() if self._fits(queue[0]) else None
        return None

    def _fits(self, ticket: Ticket) -> bool:
        num_rows = self._rows_now()
        if num_rows == 0:
            return True
        own = _lane_of(ticket)
        tokens = sum(lane.num_rows * lane.width for key, lane in self._lanes.items() if key != own)
        mine, width = (self._lanes[own].num_rows, self._lanes[own].width) if own in self._lanes else (0, 0)
        tokens += (mine + len(ticket.rows)) * max(width, ticket.width)
        most = self._batching.max_rows + (self._batching.urgent_rows if ticket.urgent else 0)
        most_tokens = self._batching.max_tokens * most // self._batching.max_rows
        return num_rows + len(ticket.rows) <= most and tokens <= most_tokens

    def _rows_now(self) -> int:
        return sum(lane.num_rows for lane in self._lanes.values()) + sum(len(each.rows) for each in self._alone)

    def _end_all(self) -> None:
        with self._wake:
            self._is_closed = True
            written = [ticket for lane in self._lanes.values() for ticket in lane.tickets]
            for ticket in (*self._urgent, *self._ordinary, *self._alone, *written):
                ticket.end(EngineError(CLOSED))
            for future, _ in self._jobs:
                future.set_exception(EngineError(CLOSED))
            self._lanes, self._alone = {}, []
        if self.prefixes is not None:
            self.prefixes.clear()


class ContinuousEngine:
    """One stage of a model that many threads talk to at once."""

    def __init__(self, runner: Runner, local: LocalEngine) -> None:
        self._runner = runner
        self._local = local

    def capabilities(self) -> frozenset[Capability]:
        return self._local.capabilities()

    def generate(self, request: GenerateRequest) -> Stream:
        """What `LocalEngine.generate` gives, up to the rounding of sums in another order: a tie of two tokens may fall
        otherwise. Close the stream to give its place free."""
        return self._runner.submit(Ticket(self._local, self._local.prepare(request), urgent=request.urgent))

    def generate_batch(self, requests: Sequence[GenerateRequest]) -> Iterator[tuple[int, Chunk | EngineError]]:
        """Number and whole reply of each request, in order, or why there is none."""
        streams: list[Stream | EngineError] = []
        try:
            for request in requests:
                try:
                    streams.append(self.generate(request) if request.n == 1 else _refusal(request.n))
                except EngineError as error:
                    streams.append(error)
            for index, stream in enumerate(streams):
                try:
                    yield index, stream if isinstance(stream, EngineError) else whole(stream)
                except EngineError as error:
                    yield index, error
        finally:
            for stream in streams:
                if isinstance(stream, Stream):
                    stream.close()

    def count(self, messages: Sequence[Message], reply: str) -> tuple[int, int]:
        """Tokens of the prompt and of the reply: no weight is touched."""
        return self._local.count(messages, reply)

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        return self._runner.call(lambda: self._local.score(messages, reply))

    def score_batch(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[Scores]:
        """Some at a time, so that the replies that are being written go on between them."""
        scores: list[Scores] = []
        for start in range(0, len(items), SCORED_AT_ONCE):
            piece = items[start : start + SCORED_AT_ONCE]
            scores += self._runner.call(lambda piece=piece: self._local.score_batch(piece))
        return scores


def _lane_of(ticket: Ticket) -> tuple[LocalEngine, int]:
    """Who is batched with whom: a row is as wide as the widest beside it."""
    return ticket.engine, max(0, math.ceil(math.log(ticket.width / NARROW, 4)))


def _write_alone(ticket: Ticket) -> None:
    """The next chunk of a request whose rows cannot stand beside others'."""
    assert ticket.alone is not None
    if ticket.is_gone:
        return
    try:
        chunk = next(ticket.alone, None)
    except Exception as error:  # noqa: BLE001 - the outermost line of this request
        ticket.end(_failure(error))
        return
    if chunk is None:
        ticket.end()
    else:
        ticket.chunks.put(chunk)


def _failure(error: Exception) -> EngineError:
    if isinstance(error, EngineError):
        return error
    return EngineError(f"the model failed: {type(error).__name__}: {error}")


def _refusal(n: int) -> EngineError:
    return EngineError(f"n is {n}; a batch writes one reply a request")
