"""What the app itself says when the companion has nothing safe to say: interface copy, never in the companion's voice."""

from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

import yaml

Kind = Literal["no_reply", "no_reply_with_card", "reply_ended"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_MADE_HERE = object()


@dataclass(frozen=True)
class Notice:
    """One thing that the app says. Made by `notice_for` only: elsewhere, construction raises TypeError."""

    kind: Kind
    language: str
    text: str
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_HERE:
            raise TypeError("a Notice is made by notice_for alone")


@cache
def notice_for(kind: Kind, language: str) -> Notice:
    """The notice in a language, in English where there is none. Raises KeyError for a kind that does not exist."""
    texts = _texts()
    chosen = language if language in texts else "en"
    return Notice(kind, chosen, texts[chosen][kind], token=_MADE_HERE)


@cache
def _texts() -> Mapping[str, Mapping[str, str]]:
    return yaml.safe_load(files("warmline.safety.validate").joinpath("notices.yaml").read_text(encoding="utf-8"))
