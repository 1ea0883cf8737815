"""A real server with the web page before a scripted engine, for tests in a browser."""

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cache

from fastapi import FastAPI

from warmline.commands.shared import companion
from warmline.config.operator import SafetySettings
from warmline.dialogue.companion import Session, respond
from warmline.engine.engine import Chunk, GenerateRequest, Message, Reading, Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.serve.app import create_app
from warmline.serve.models import Model, Options
from warmline.serve.store.history import Store

from .servers import serving

REPLIES = (
    "That sounds like a heavy week. You kept going through all of it, and being tired after that makes sense.",
    "It sounds lonely to carry this by yourself. I am glad that you put it into words here.",
    "You sound a little lighter today. It is good to hear that your sister called.",
)
CRISIS = (  # what the rules of a crisis pass
    "I hear how worn out and alone you feel. A friend you trust, or a crisis line, could be with you in this.",
    "It sounds as if everything has become too much tonight. Someone close to you, or a counselor on a crisis line, "
    "could stay beside you while it hurts.",
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
        self._in_crisis = ScriptedEngine(CRISIS, readings=readings_of)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        said = {message.content.split("\n")[0] for message in request.messages if message.role == "user"}
        chunks = (
            super().generate(request) if said.isdisjoint((DANGER, EMERGENCY)) else self._in_crisis.generate(request)
        )
        for chunk in chunks:
            time.sleep(self.seconds)
            self.num_words += 1
            yield chunk


def readings_of(messages: Sequence[Message]) -> tuple[Reading, ...]:
    """What heads would read: heavier with each word of loss in the newest turn."""
    said = messages[-1].content.lower()
    if "called" in said or "thank" in said:
        return Reading("emotion", ("joy", "gratitude"), (0.6, 0.3)), Reading(
            "affect", ("valence", "arousal"), (0.5, 0.1)
        )
    if "alone" in said or "lost" in said:
        return Reading("emotion", ("grief", "sadness"), (0.5, 0.4)), Reading(
            "affect", ("valence", "arousal"), (-0.8, 0.2)
        )
    return Reading("emotion", ("sadness", "fear"), (0.7, 0.1)), Reading("affect", ("valence", "arousal"), (-0.4, 0.2))


@cache
def warm() -> None:
    """Read rules, models and word lists once: on a busy machine that takes longer than a browser waits."""
    setting = companion(PacedEngine(), None, Sampling(), "US", SafetySettings(), None, None)
    for text in ("Hello.", DANGER):
        list(respond(setting, Session(), text))


def web_app(
    engine: ScriptedEngine | None = None,
    *,
    country: str | None = "US",
    options: Options | None = None,
    store: Store | None = None,
) -> FastAPI:
    """The application of one model called `scripted`."""
    warm()
    setting = companion(engine or PacedEngine(), None, Sampling(), country, SafetySettings(), None, None)
    return create_app({"scripted": Model("scripted", setting)}, options or Options(), store=store)


def web_server(engine: ScriptedEngine | None = None, **changes) -> AbstractContextManager[str]:
    """The same, served on loopback; gives its URL."""
    return serving(web_app(engine, **changes))
