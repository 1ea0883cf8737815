"""How the server listens: headers that arrive in time, no access log, no core dumps."""

import asyncio
import ctypes
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_HEADERS_S = 10.0  # from the first byte of a request, or the start of a connection, to the end of the headers
MAX_HEADER_BYTES = 32 * 1024
STOP_S = 60  # that replies have to end in when the server is told to stop
PR_SET_DUMPABLE = 4  # of <sys/prctl.h>


class Punctual(H11Protocol):
    """HTTP/1.1 whose clients must send their headers in time: uvicorn itself would wait for ever."""

    headers_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self.headers_timer is None:
            self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        self.headers_timer = self.loop.call_later(MAX_HEADERS_S, self._too_late)

    def _stop_timer(self) -> None:
        if self.headers_timer is not None:
            self.headers_timer.cancel()
            self.headers_timer = None

    def _too_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def settings() -> Mapping[str, Any]:
    """What uvicorn is told wherever warmline is served: no access log, because an address may quote what somebody typed."""
    return {
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "http": Punctual,
        "ws": "none",
        "lifespan": "off",
        "h11_max_incomplete_event_size": MAX_HEADER_BYTES,
        "timeout_keep_alive": 10,  # seconds between two requests
        "timeout_graceful_shutdown": STOP_S,
    }


def no_core_dumps() -> None:
    """A crash must not write what people said to disk: no core file, and on Linux none for a crash reporter either."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
