"""Style tags: plain text at the end of the system message that asks for a tone and a persona.

Plain text because new tokens would need rows of their own in the embedding, which breaks merging where it is tied.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from warmline.config.fields import StyleSettings
from warmline.config.training import DataSettings


def tag(style: StyleSettings) -> str:
    """The tag as the model reads it.

    >>> tag(StyleSettings(tone="warm", persona="best friend"))
    '<tone:warm><persona:best friend>'
    """
    parts = {"tone": style.tone, "persona": style.persona}
    return "".join(f"<{key}:{value}>" for key, value in parts.items() if value is not None)


def styled_prompt(system_prompt: str | None, style: StyleSettings) -> str | None:
    r"""The system prompt with the tag on a line of its own; used alike in training and in conversation.

    >>> styled_prompt("You listen.", StyleSettings(tone="calm"))
    'You listen.\n<tone:calm>'
    """
    return "\n".join(part for part in (system_prompt, tag(style)) if part) or None


@dataclass(frozen=True)
class Styling:
    """Which training conversations are told the style of their source."""

    styles: Mapping[str, StyleSettings]  # by source; one without a style is never told one
    share: float  # of a source's conversations; the others keep the model usable without tags
    seed: int

    def tells(self, conversation_id: str) -> bool:
        """Whether this conversation is among the share: a function of seed and id alone."""
        drawn = hashlib.sha256(f"{self.seed} {conversation_id}".encode()).digest()[:8]
        return int.from_bytes(drawn) < self.share * 2**64


UNSTYLED = Styling({}, 0.0, 0)


def styling_of(data: DataSettings, seed: int) -> Styling:
    """The styling that a recipe asks for."""
    styles = {name: source.style for name, source in data.sources.items() if source.style and tag(source.style)}
    return Styling(styles, data.style_share, seed)
