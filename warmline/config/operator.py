"""What whoever runs the companion may choose. Nothing here belongs to training."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator

from warmline.config.fields import Settings, StyleSettings, as_country, as_tuple


class CategorySettings(Settings):
    """What one category of a guard means here."""

    level: Literal["none", "elevated", "high", "emergency"]
    domain: str | None = None  # one of safety/levels.py's


class GuardSettings(Settings):
    """A guard model behind an OpenAI-compatible server, asked about the user's last turn."""

    url: str  # with or without /v1
    model: str = Field(min_length=1)
    api_key_env: str | None = Field(default=None, pattern="^[A-Z_][A-Z0-9_]*$")  # the variable that holds the key
    deadline_s: float = Field(default=0.2, gt=0, le=10, allow_inf_nan=False)  # seconds; a later answer counts as none
    categories: dict[str, CategorySettings] = Field(default={})  # beside Llama Guard's, which safety/guards.py names

    @field_validator("url")
    @classmethod
    def _of_a_server(cls, url: str) -> str:
        try:
            parsed = urlsplit(url)
            sound = parsed.scheme in {"http", "https"} and parsed.hostname and not parsed.username and parsed.port != 0
        except ValueError:  # whose message quotes what stands in the port's place
            sound = False
        if not sound:
            raise ValueError("expected a server's URL without a user name, as http://127.0.0.1:8000/v1")
        return url


class ThresholdSettings(Settings):
    """P(level >= k) from which the models give a level. None: as shipped; higher than that misses more people."""

    elevated: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    high: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    emergency: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)


class SafetySettings(Settings):
    """What whoever runs the companion may choose of its safety. Nothing here belongs to training."""

    country: Annotated[str | None, BeforeValidator(as_country)] = None  # of the helplines
    question_policy: Literal["none", "safety_check"] = "none"
    question_owner: str = ""  # the clinician who answers for safety_check, by name
    guards: tuple[GuardSettings, ...] = ()
    thresholds: ThresholdSettings = ThresholdSettings()
    accept_missed_crises: bool = False  # allows thresholds above the shipped ones; said at every start


class CompanionSettings(Settings):  # how it speaks where nothing is at risk
    style: StyleSettings = StyleSettings()  # a conversation may choose another
    system_prompt: str | None = None  # opens every conversation; default: the one that the run was trained with
    reflection: bool = False  # a hidden line before each reply: what happened, what they feel, what to do next
    candidates: int = Field(default=1, ge=1, le=4)  # above 1: a reply that begins without warmth is drawn again


class ServeSettings(Settings):
    """How `warmline serve` listens and what it keeps; each has an option of the same name, which wins."""

    host: str = "127.0.0.1"  # an address that other machines reach needs api_keys
    port: int = Field(default=8000, ge=0, le=65535)  # 0: any that is free
    api_keys: str | None = None  # file of lines that `warmline serve-key` makes
    store: str | None = None  # where people may keep a history: sqlite:///FILE or postgresql://...
    keep_days: float = Field(default=30.0, ge=0.01, allow_inf_nan=False)  # after so many without use a history goes
    audit: bool = True  # daily counts without any words
    show_readings: bool = True  # what the heads read, in each answer
    show_reasons: bool = False  # which rules gave a level: not for users
    max_running: int = Field(default=64, ge=1)  # replies written at once
    max_waiting: int = Field(default=64, ge=0)  # requests that wait for a place; one more gets 429
    allow_host: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()  # host names answered to as well
    cors_origin: Annotated[tuple[str, ...], BeforeValidator(as_tuple)] = ()  # web pages that may call the API


class OperatorSettings(Settings):
    """What a file of an operator's own says; a section that it leaves out is the run's."""

    safety: SafetySettings | None = None
    companion: CompanionSettings | None = None
    serve: ServeSettings | None = None
