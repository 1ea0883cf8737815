"""Places for replies that are written at once, a queue that ends, and bodies that end and arrive in time."""

import asyncio
from collections import deque

from starlette.requests import Request

from warmline.serve.wire import ApiError

RETRY_AFTER_S = 5


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
        raise _too_large(max_bytes)
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(max_s):
            async for piece in request.stream():
                size += len(piece)
                if size > max_bytes:
                    raise _too_large(max_bytes)
                pieces.append(piece)
    except TimeoutError:
        raise ApiError(
            408, "The body did not arrive in time.", code="timeout", headers={"Connection": "close"}
        ) from None
    return b"".join(pieces)


def _too_large(max_bytes: int) -> ApiError:
    message = f"The body is larger than {max_bytes} bytes."
    return ApiError(413, message, code="body_too_large", headers={"Connection": "close"})
