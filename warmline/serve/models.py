"""What is served: models by the names that clients say, and what the operator of the server chose."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from warmline.dialogue.companion import Setting
from warmline.serve.keys import Keys


@dataclass(frozen=True)
class Model:
    """A model as clients see it. `name`: what they say, as `tiny:sft`; `about`: facts for /health, no paths."""

    name: str
    setting: Setting
    about: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What the operator chose for all models."""

    keys: Keys | None = None  # None: whoever reaches the port may talk
    show_readings: bool = True  # what the heads read, in each answer
    show_reasons: bool = False  # which rules gave the level: for operators, never for end users
    max_running: int = 64  # replies written at once
    max_waiting: int = 64  # replies that wait for one of these places; one more is told to come back
    max_wait_s: float = 30.0  # for a place
    max_reply_s: float = 120.0  # from the place to the end of the reply
    max_body_bytes: int = 1 << 20
    max_body_s: float = 20.0  # until the whole body has arrived
    max_turns: int = 10_000  # messages of a request
    max_n: int = 8  # replies to one request
    max_sessions: int = 10_000  # conversations whose risk is kept in memory
    cors_origins: tuple[str, ...] = ()  # web pages of other hosts that may call the API
    hosts: tuple[str, ...] | None = None  # host names that are answered to; None: any
