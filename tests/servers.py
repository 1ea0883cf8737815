"""Real servers on a loopback port, for tests."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi import FastAPI

from warmline.dialogue.companion import Setting
from warmline.engine.engine import Engine
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.detect import load_detector
from warmline.safety.resources.directory import load_directory
from warmline.serve.app import create_app
from warmline.serve.listen import settings
from warmline.serve.models import Model, Options

GOOD = (
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen."
)
RISK = "I want to kill myself tonight"
DETECTOR, DIRECTORY = load_detector(), load_directory()


def setting_of(engine: Engine | None = None, **more: Any) -> Setting:
    """A companion in Ireland; without an engine it says one good reply."""
    return Setting(engine or ScriptedEngine([GOOD]), DETECTOR, DIRECTORY, "You are a friend.", country="IE", **more)


def app_of(engine: Engine | None = None, setting: Setting | None = None, **options: Any) -> FastAPI:
    """An application with one model, `m`."""
    return create_app({"m": Model("m", setting or setting_of(engine))}, Options(**options))


def body(text: str = "hello", **more: Any) -> dict[str, Any]:
    """A request of one turn."""
    return {"model": "m", "messages": [{"role": "user", "content": text}], **more}


def connect(url: str) -> socket.socket:
    """A raw connection."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 80), timeout=30)


def until(condition: Any, seconds: float = 10.0) -> bool:
    """Whether a condition comes true in time."""
    ends = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True


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
