"""A real server with the web page before a scripted engine, for tests in a browser."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager

from fastapi import APIRouter, FastAPI

from warmline.commands.shared import companion
from warmline.config import SafetySettings
from warmline.engine.engine import Chunk, GenerateRequest, Message, Reading, Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.app import create_app
from warmline.serve.models import Model, Options

from .servers import serving

REPLIES = (
    "That sounds like a heavy week. You kept going through all of it, and being tired after that makes sense.",
    "It sounds lonely to carry this by yourself. I am glad that you put it into words here.",
    "You sound a little lighter today. It is good to hear that your sister called.",
)
DANGER = "i want to kill myself tonight"
EMERGENCY = "I took all the pills just now"
HEAVY = "everyone would be better off without me"


class PacedEngine(ScriptedEngine):
    """A scripted engine that takes `seconds` for each word and remembers what it was asked."""

    def __init__(self, replies: Sequence[str] = REPLIES, seconds: float = 0.0) -> None:
        super().__init__(replies, readings=readings_of)
        self.seconds = seconds
        self.requests: list[GenerateRequest] = []
        self.num_words = 0

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        for chunk in super().generate(request):
            time.sleep(self.seconds)
            self.num_words += 1
            yield chunk


def readings_of(messages: Sequence[Message]) -> tuple[Reading, ...]:
    """What heads would read: heavier with each word of loss in the newest turn."""
    said = messages[-1].content.lower()
    if "called" in said or "thank" in said:
        return Reading("emotion", ("joy", "gratitude"), (0.6, 0.3)), Reading("affect", ("valence", "arousal"), (0.5, 0.1))
    if "alone" in said or "lost" in said:
        return Reading("emotion", ("grief", "sadness"), (0.5, 0.4)), Reading("affect", ("valence", "arousal"), (-0.8, 0.2))
    return Reading("emotion", ("sadness", "fear"), (0.7, 0.1)), Reading("affect", ("valence", "arousal"), (-0.4, 0.2))


def web_app(
    engine: ScriptedEngine | None = None,
    *,
    country: str | None = "US",
    options: Options | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The application of one model called `scripted`."""
    setting = companion(engine or PacedEngine(), None, Sampling(), country, SafetySettings(), None, None)
    return create_app({"scripted": Model("scripted", setting)}, options or Options(), routers)


def web_server(engine: ScriptedEngine | None = None, **changes) -> AbstractContextManager[str]:
    """The same, served on loopback; gives its URL."""
    return serving(web_app(engine, **changes))
