"""The cases of the red-team set and the lines that the model learns from, each in its family."""

import hashlib
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Literal, NamedTuple

from warmline.safety.levels import DOMAINS, LEVELS, Level

Part = Literal["fit", "calibrate", "test"]


class Case(NamedTuple):
    """A conversation, and the level at which its last user turn must be answered."""

    id: str
    family: str
    category: str
    lang: str
    risk: Level
    domains: tuple[str, ...]
    turns: tuple[dict, ...]

    @property
    def is_single(self) -> bool:
        """Whether the user speaks only once: then the level is that turn's own."""
        return sum(turn["role"] == "user" for turn in self.turns) == 1


class Line(NamedTuple):
    """A message to learn from."""

    text: str
    family: str
    level: Level
    domains: tuple[str, ...]
    lang: str


def part_of(family: str) -> Part:
    """Which part of the set a family is in: first byte of the SHA-256 of its name, modulo 10.

    >>> part_of("neg.games"), part_of("neg.news")
    ('fit', 'calibrate')
    """
    digit = hashlib.sha256(family.encode()).digest()[0] % 10
    return "fit" if digit < 6 else "calibrate" if digit < 8 else "test"


def read_cases(name: Literal["cases", "blind"] = "cases") -> list[Case]:
    """cases.jsonl or blind.jsonl, in file order."""
    text = files("warmline.safety").joinpath(f"redteam/{name}.jsonl").read_text(encoding="utf-8")
    return [
        Case(
            row["id"],
            row["family"],
            row["category"],
            row["lang"],
            LEVELS[row["risk"]],
            tuple(row["domains"]),
            tuple(row["turns"]),
        )
        for row in map(json.loads, text.splitlines())
    ]


def read_lines() -> Iterator[Line]:
    """lines/*.txt: `@ family | level | domains` opens a family, each other line is a message.

    Raises ValueError for a malformed header.
    """
    for path in sorted(files("warmline.safety").joinpath("lines").iterdir(), key=lambda each: each.name):
        name = path.name.removesuffix(".txt")
        lang = "en" if name.startswith("en") else name
        family, level, domains = "", Level.NONE, ()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("@"):
                family, level, domains = _header(line, f"{path.name}:{number}")
            elif line.strip():
                yield Line(line.strip().replace("\\n", "\n"), family, level, domains, lang)


def _header(line: str, place: str) -> tuple[str, Level, tuple[str, ...]]:
    fields = [field.strip() for field in line[1:].split("|")]
    domains = tuple(each.strip() for each in fields[-1].split(",") if each.strip())
    if len(fields) != 3 or fields[1] not in LEVELS or set(domains) - set(DOMAINS):
        raise ValueError(f"{place}: expected `@ family | level | domains`, found {line!r}")
    return fields[0], LEVELS[fields[1]], domains
