"""Real servers on a loopback port, for tests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from warmline.serve.listen import settings


@contextmanager
def serving(app: Any, **changes: Any) -> Iterator[str]:
    """A real uvicorn before `app`, in a thread; gives its URL. `changes`: of uvicorn's settings."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, **{**settings(), **changes}))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        ends = time.monotonic() + 30
        while not server.started and thread.is_alive() and time.monotonic() < ends:
            time.sleep(0.01)
        assert server.started, "the server did not start"
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive(), "the server did not stop"
