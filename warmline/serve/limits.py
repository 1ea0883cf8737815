"""Places for replies that are written at once, a queue that ends, and bodies that end and arrive in time."""

import asyncio
from collections import deque
from contextlib import suppress

from starlette.requests import Request

from warmline.serve.wire import ApiError

RETRY_AFTER_S = 5
REST_BYTES, REST_S = 32 * 2**20, 2.0  # of a body that is refused: so much is read and thrown away, for so long


class Places:
    """At most `max_running` replies at once; `max_waiting` wait, first come first served; the next is told to come back.

    Whoever may be in danger neither waits nor is sent away. For one event loop.
    """

    def __init__(self, max_running: int, max_waiting: int, max_wait_s: float) -> None:
        self._max_running, self._max_waiting, self._max_wait_s = max_running, max_waiting, max_wait_s
        self.num_running = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether the next one has to wait."""
        return self.num_running >= self._max_running

    async def enter(self, *, urgent: bool = False) -> None:
        """Take a place; `leave` gives it back. Raises ApiError 429 where the queue is full or the wait too long."""
        if urgent or not self.is_full:
            self.num_running += 1
            return
        if len(self._waiting) >= self._max_waiting:
            raise self._too_many()
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            async with asyncio.timeout(self._max_wait_s):
                await place
        except (TimeoutError, asyncio.CancelledError) as ended:
            got_it = place.done() and not place.cancelled()
            if isinstance(ended, TimeoutError):
                if got_it:
                    return
                raise self._too_many() from None
            if got_it:
                self.leave()
            raise
        finally:
            if place in self._waiting:
                self._waiting.remove(place)

    def leave(self) -> None:
        """Give a place back: to the one who has waited longest, where nobody in danger holds it beyond the limit."""
        self.num_running -= 1
        while self._waiting and not self.is_full:
            place = self._waiting.popleft()
            if not place.done():
                self.num_running += 1
                place.set_result(None)

    def _too_many(self) -> ApiError:
        return ApiError(
            429,
            "Too many replies are being written. Try again in a few seconds.",
            kind="rate_limit_error",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(RETRY_AFTER_S)},
        )


async def read_body(request: Request, max_bytes: int, max_s: float) -> bytes:
    """The whole body. Raises ApiError 413 for one that is too large and 408 for one that does not arrive in time."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        await _throw_away_rest(request)
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(max_s):
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    break
                pieces.append(piece)
    except TimeoutError:
        raise ApiError(
            408, "The body did not arrive in time.", code="timeout", headers={"Connection": "close"}
        ) from None
    if size > max_bytes:
        pieces.clear()
        await _throw_away_rest(request)
        raise _too_large(max_bytes)
    return b"".join(pieces)


async def _throw_away_rest(request: Request) -> None:
    """Let a client that is still sending finish: the reset of a connection with unread bytes loses it the answer."""
    if "expect" in request.headers:  # it waits for our word before it sends anything
        return
    size = 0
    with suppress(TimeoutError):
        async with asyncio.timeout(REST_S):
            async for piece in request.stream():
                size += len(piece)
                if size > REST_BYTES:
                    return


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is larger than {max_bytes} bytes."
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
