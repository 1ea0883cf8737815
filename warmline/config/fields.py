"""What settings are made of."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

Dtype = Literal["float32", "bfloat16", "float16"]
HeadKind = Literal["softmax", "sigmoid", "ordinal", "regression"]
Tone = Literal["warm", "gentle", "supportive", "calm", "encouraging", "empathetic"]
Persona = Literal["best friend", "counselor", "mentor", "peer", "companion"]


class ConfigError(ValueError):
    """A recipe or an override is wrong; the message names the dotted path."""


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def as_country(value: Any) -> Any:
    """Two letters in upper case. YAML reads Norway's as false."""
    value = "NO" if value is False else value
    if isinstance(value, str):
        if len(value) != 2 or not value.isascii() or not value.isalpha():
            raise ValueError("expected two letters, as IE")
        return value.upper()
    return value


class StyleSettings(Settings):
    """What a style tag says: how a reply should sound, and whose voice it has."""

    tone: Tone | None = None
    persona: Persona | None = None
