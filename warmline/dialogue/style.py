"""How a conversation may choose to be spoken to: the tones and personas that training tells the model of."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.resources import files
from typing import cast, get_args

import yaml

from warmline.config.fields import Persona, StyleSettings, Tone
from warmline.config.reading import nearest
from warmline.dialogue.session import Setting
from warmline.safety.levels import Level

TONES: tuple[str, ...] = get_args(Tone)
PERSONAS: tuple[str, ...] = get_args(Persona)
NO_STYLE = "off"


class StyleError(ValueError):
    """A tone or a persona that there is not; the message names those that there are."""


def style_of(tone: str | None = None, persona: str | None = None) -> StyleSettings:
    """A style by its words, in any case; None asks for nothing. Raises StyleError.

    >>> style_of("Warm", "best friend")
    StyleSettings(tone='warm', persona='best friend')
    """
    tone, persona = _one_of("tone", tone, TONES), _one_of("persona", persona, PERSONAS)
    return StyleSettings(tone=cast("Tone | None", tone), persona=cast("Persona | None", persona))


def styled(setting: Setting, style: StyleSettings) -> Setting:
    """The same setting for a conversation that asks for `style`."""
    return replace(setting, style=style)


def style_in(words: Sequence[str], before: StyleSettings) -> StyleSettings | None:
    """`before` with a tone, a persona or both from words in any order; `off` takes both away; None if a word is neither.

    >>> style_in(["best", "friend", "calm"], StyleSettings())
    StyleSettings(tone='calm', persona='best friend')
    """
    said = " ".join(words).lower().strip()
    if said == NO_STYLE:
        return StyleSettings()
    found: dict[str, str] = {}
    while said:
        kind, name = next(
            (
                (kind, name)
                for kind, names in (("tone", TONES), ("persona", PERSONAS))
                for name in names
                if kind not in found and f"{said} ".startswith(f"{name} ")
            ),
            ("", ""),
        )
        if not name:
            return None
        found[kind] = name
        said = said[len(name) :].strip()
    return style_of(found.get("tone", before.tone), found.get("persona", before.persona)) if found else None


def guidance_for(style: StyleSettings, level: Level) -> str:
    """What a persona may do, for the system turn; at `none` alone. Empty where there is nothing to say."""
    if style.persona is None or level != Level.NONE:
        return ""
    return _guidance().get(style.persona, "")


def _one_of(what: str, word: str | None, names: Sequence[str]) -> str | None:
    if word is None:
        return None
    plain = " ".join(word.lower().split())
    if plain not in names:
        raise StyleError(f"{what}: expected one of {', '.join(names)}{nearest(plain[:40], names)}")
    return plain


@cache
def _guidance() -> Mapping[str, str]:
    return yaml.safe_load(files("warmline.dialogue").joinpath("personas.yaml").read_text(encoding="utf-8"))
