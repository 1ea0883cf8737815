"""The leak test's sink over real sockets: a real server, a client that reads bytes as it likes and leaves when it likes."""

import json
import random
import socket
import threading
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import uvicorn
from fastapi import FastAPI

from warmline.dialogue.companion import Setting
from warmline.serve.app import create_app
from warmline.serve.listen import settings
from warmline.serve.models import Model, Options

MAX_STOP_S = 60.0  # until a reply that nobody reads has ended


@cache
def server() -> tuple[FastAPI, int]:
    """One server for all schedules of this process, and its port. Each schedule puts its own model in."""
    app = create_app({}, Options(show_reasons=True))
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    running = uvicorn.Server(uvicorn.Config(app, **settings()))
    threading.Thread(target=running.run, kwargs={"sockets": [listener]}, daemon=True).start()
    while not running.started:
        time.sleep(0.01)
    return app, listener.getsockname()[1]


def exchange(port: int, request: dict[str, Any], rng: random.Random) -> bytes:
    """All bytes that a client reads, which may go away after any."""
    payload = json.dumps(request).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\nConnection: close\r\n\r\n"
    )
    leaves_after = rng.randint(0, 6_000) if rng.random() < 0.2 else None
    size = rng.choice((7, 512, 65_536))
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=MAX_STOP_S) as client:
        client.sendall(head.encode() + payload)
        while leaves_after is None or len(received) < leaves_after:
            piece = client.recv(size)
            if not piece:
                break
            received += piece
    return received


def objects(received: bytes) -> list[dict[str, Any]]:
    """The JSON objects of an answer, streamed or not, as far as it was read."""
    found = []
    for line in received.decode("utf-8", "replace").splitlines():
        text = line.removeprefix("data: ")
        if text.startswith("{") and text.endswith("}"):
            found.append(json.loads(text))
    return found


def over_http(setting: Setting, said: Sequence[str], rng: random.Random, record: Any) -> None:
    """A conversation with the server; whatever it sends, counts and keeps is recorded."""
    app, port = server()
    serving = app.state.serving
    serving.models["m"] = Model("m", setting)
    messages: list[dict[str, str]] = []
    for text in said:
        messages.append({"role": "user", "content": text})
        wishes = {"renders_card": rng.random() < 0.5, "session": str(rng.random())}
        request = {"model": "m", "messages": messages, "stream": rng.random() < 0.8, "warmline": wishes}
        request |= {"n": rng.choice((1, 1, 1, 2)), "logprobs": True, "max_tokens": rng.choice((50, 200))}
        received = exchange(port, request, rng)
        record.shown["sse" if request["stream"] else "http"].append(received.decode("utf-8", "replace"))
        content = ""
        for each in objects(received):
            for choice in each.get("choices", ()):
                content += (choice.get("delta") or choice.get("message"))["content"] if _speaks(choice) else ""
            last = each.get("warmline", {})
            if "reply_source" in last:
                record.answers.append((last["level"], last["reply_source"]))
        messages.append({"role": "assistant", "content": content})
        ends = time.monotonic() + MAX_STOP_S
        while serving.places.num_running and time.monotonic() < ends:
            time.sleep(0.002)
    record.shown["metrics"].append(serving.metrics.text().decode())
    record.shown["kept"].append(repr(vars(serving.sessions)))


def _speaks(choice: dict[str, Any]) -> bool:
    return bool((choice.get("delta") or choice.get("message") or {}).get("content"))
