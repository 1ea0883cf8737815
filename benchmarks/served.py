"""The server of `benchmarks.serving_http`: `python -m benchmarks.served RUN THREADS` prints its port and a model's name.

It is the API server as people start it, with one route more: the engine alone, streamed.
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace

import torch
import uvicorn
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from benchmarks.meter import resident_mib
from warmline.commands.serve import served_models
from warmline.config.operator import OperatorSettings
from warmline.engine.engine import Capability, Chunk, Engine, GenerateRequest, Message, Scores
from warmline.engine.local import LocalEngine
from warmline.serve.app import create_app
from warmline.serve.listen import settings
from warmline.serve.models import Options
from warmline.serve.turns import warm_up


class Meter:
    """Counts the tokens that are decoded; while `endless`, no token ends a reply, so that all go on to their limit."""

    def __init__(self) -> None:
        self.tokens = 0
        self.endless = False
        asked = LocalEngine.is_stop

        def is_stop(engine: LocalEngine, token: int) -> bool:
            self.tokens += 1
            return not self.endless and asked(engine, token)

        LocalEngine.is_stop = is_stop  # type: ignore[method-assign]


class Recording:
    """An engine that remembers the first request of each last user turn."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.seen: dict[str, GenerateRequest] = {}

    def capabilities(self) -> frozenset[Capability]:
        """The engine's own."""
        return self._engine.capabilities()

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        """The engine's own."""
        return self._engine.score(messages, reply)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        """The engine's own."""
        self.seen.setdefault(request.messages[-1].content, request)
        return self._engine.generate(request)


def routes(engine: Recording, meter: Meter) -> APIRouter:
    """`/bench/bare`: what the engine says to the prompt that the companion made of a request; `/bench/state`;
    `/bench/endless`: whether replies go on to their limit."""
    router = APIRouter()

    @router.get("/bench/state", include_in_schema=False)
    def state() -> Response:
        return JSONResponse({"cpu": time.process_time(), "tokens": meter.tokens, "mib": resident_mib()})

    @router.post("/bench/endless", include_in_schema=False)
    async def endless(request: Request) -> Response:
        meter.endless = (await request.json())["endless"]
        return JSONResponse({})

    @router.post("/bench/bare", include_in_schema=False)
    async def bare(request: Request) -> Response:
        wanted = await request.json()
        known = engine.seen[wanted["messages"][-1]["content"]]
        sampling = replace(known.sampling, max_new_tokens=wanted["max_tokens"])
        return StreamingResponse(_pieces(engine, replace(known, sampling=sampling)), media_type="text/event-stream")

    return router


async def _pieces(engine: Engine, request: GenerateRequest) -> AsyncIterator[bytes]:
    """As a server without a controller would: a thread for the reply, an event for each piece."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[str | None]()

    def run() -> None:
        for chunk in engine.generate(request):
            if chunk.text:
                loop.call_soon_threadsafe(queue.put_nowait, chunk.text)
        loop.call_soon_threadsafe(queue.put_nowait, None)

    threading.Thread(target=run, daemon=True).start()
    while (text := await queue.get()) is not None:
        yield f"data: {json.dumps({'choices': [{'index': 0, 'delta': {'content': text}}]})}\n\n".encode()
    yield b"data: [DONE]\n\n"


def main() -> None:
    """Serve until terminated."""
    run, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    meter = Meter()
    models = served_models(run, "local", None, OperatorSettings(), None, None)
    name, model = next(iter(models.items()))
    engine = Recording(model.setting.engine)
    setting = replace(model.setting, engine=engine)
    warm_up(setting)
    app = create_app({name: replace(model, setting=setting)}, Options(max_running=256), [routes(engine, meter)])
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    print(listener.getsockname()[1], name, flush=True)
    uvicorn.Server(uvicorn.Config(app, **settings())).run([listener])


if __name__ == "__main__":
    main()
