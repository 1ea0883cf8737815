"""The reply does not repeat other people's data that stand in the user's turns."""

import re
from collections.abc import Iterator

from warmline.safety.levels import Level
from warmline.safety.normalize import plain
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.packs import pack
from warmline.safety.validate.violations import Violation
from warmline.safety.validate.words import MAX_CHARS, plain_with_places, read

MIN_DIGITS = 5  # of a number that may be somebody's

_PHONE = re.compile(r"\+?\d[\d\s().-]{3,18}\d")
_MAIL = re.compile(r"[\w.+-]{1,64}@[\w-]{1,64}\.\w{2,10}|(?<!\w)@\w{2,30}")
_ADDRESS = re.compile(
    r"\b\d{1,5}[a-zA-Z]? (?:[A-Z][a-z]+ ){1,3}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Close|Way|Court|Place)\b"
)
_NAME = re.compile(r"(?<=[a-z,;:'\u2019] )([A-Z][a-z]{2,20})(?: ([A-Z][a-z]{2,20}))?\b")
_OWN = ("my name is ", "i'm ", "i am ", "call me ", "name's ", "im ")


def pii_echo(text: str, context: ReplyContext) -> list[Violation]:
    """Other people's data from the user's turns: numbers and addresses always, names at high and above."""
    said = [turn.content[:MAX_CHARS] for turn in context.turns if turn.role == "user"]
    private = {each[0] for content in said for pattern in (_ADDRESS, _MAIL) for each in pattern.finditer(content)}
    numbers = {each[0] for content in said for each in _PHONE.finditer(content)}
    private |= {each for each in numbers if sum(char.isdigit() for char in each) >= MIN_DIGITS}
    names: set[str] = set()
    if context.level >= Level.HIGH:
        names = {name for content in said for name in _names(content)} | _names_in_both(text[:MAX_CHARS], said)
    spelled, starts, ends = plain_with_places(text[:MAX_CHARS])
    return [
        Violation("pii_echo", starts[each.start()], ends[each.end() - 1], "repeats somebody's data", True)
        for piece in sorted(private | names)
        for each in re.finditer(rf"(?<!\w){re.escape(plain(piece))}(?!\w)", spelled)
        if piece in private or not text[starts[each.start()]].islower()  # a name, not `will` or `grace`
    ]


def _names(content: str) -> Iterator[str]:
    """Capitalised words inside sentences that are no days, months, languages and so on, and not the user's name."""
    ordinary = pack("en").words["capitalised"]
    for each in _NAME.finditer(content):
        if not _introduces_user(content, each.start()):
            yield from (name for name in each.groups() if name and name.lower() not in ordinary)


def _names_in_both(text: str, said: list[str]) -> set[str]:
    """Capitalised words inside the reply's sentences that the user wrote, in capitals or not: `jake`."""
    words = {word for content in said for word in read(content).words}
    return {name for name in _names(text) if name.lower() in words and not _is_users_own(name, said)}


def _is_users_own(name: str, said: list[str]) -> bool:
    return any(
        _introduces_user(content, each.start())
        for content in said
        for each in re.finditer(rf"(?i)\b{re.escape(name)}\b", content)
    )


def _introduces_user(content: str, at: int) -> bool:
    return content[max(0, at - 14) : at].lower().endswith(_OWN)
