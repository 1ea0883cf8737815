"""The levels at which a turn must be answered, and the frames of evidence that they come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from importlib.resources import files

import yaml


class Level(IntEnum):
    """How the companion must behave. Not a clinical score: users never see one."""

    NONE = 0
    ELEVATED = 1
    HIGH = 2
    EMERGENCY = 3

    @property
    def label(self) -> str:
        """The level's name in files and answers: `none`, `elevated`, `high` or `emergency`."""
        return self.name.lower()


LEVELS = {level.label: level for level in Level}
DOMAINS = (
    "suicide",
    "self_harm",
    "harm_others",
    "abuse_victim",
    "abuse_child",
    "abuse_perpetration_fear",
    "eating",
    "psychosis_mania",
    "substance_medical",
    "third_party",
    "dependency",
    "minor_signal",
    "method_seeking",
    "sexual_minor",
    "financial_harm",
)


@dataclass(frozen=True)
class Frame:
    """One piece of evidence in one turn: what a rule read. It holds no text."""

    rule: str  # stable id, e.g. SUI.INTENT.03
    domain: str
    act: str  # a key of the domain in levels.yaml: wish, thought, urge, plan, ...
    subject: str = "self"  # self, other or unknown
    time: str = "now"  # now, past_open or past_resolved

    @property
    def level(self) -> Level:
        """By the table in levels.yaml."""
        return level_of(self.domain, self.act, self.subject, self.time)


@dataclass(frozen=True)
class Reason:
    """Why a level was given, in words for an operator: never what the user said."""

    rule: str
    text: str


@cache
def level_table() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    """levels.yaml: domain or `any` -> `subject time` -> act -> level."""
    return yaml.safe_load(files("warmline.safety").joinpath("levels.yaml").read_text(encoding="utf-8"))


def level_of(domain: str, act: str, subject: str = "self", time: str = "now") -> Level:
    """The level of a frame: the domain's own row where it has one, else the row for any domain.

    Raises KeyError for a combination that the table does not know: a rule must not invent one.

    >>> level_of("suicide", "plan"), level_of("third_party", "concern", "other")
    (<Level.HIGH: 2>, <Level.ELEVATED: 1>)
    """
    table = level_table()
    row = f"{subject} {time}"
    for name in (domain, "any"):
        level = table.get(name, {}).get(row, {}).get(act)
        if level is not None:
            return Level(level)
    raise KeyError(f"levels.yaml has no level for {domain} {act} ({row})")
