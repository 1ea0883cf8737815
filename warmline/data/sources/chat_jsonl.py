"""Your own conversations: JSON Lines with a list of chat messages, labelled or not."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

from warmline.config.reading import nearest
from warmline.data.conversation import Affect, Conversation, Split, Turn
from warmline.data.sources.reading import (
    Rejections,
    SourceError,
    conversations,
    parse_object,
    read_lines,
    split_file,
    spoken,
    take,
)

Raw = TypeVar("Raw")

KEYS = ("role", "content", "emotions", "situation", "strategy", "risk", "affect")


def chat_jsonl(location: str | None, split: Split, rejections: Rejections) -> Iterator[Conversation]:
    """Conversations from a folder with {train,validation,test}.jsonl, or from one file, split by `split_of`."""
    if location is None:
        raise SourceError(
            "chat_jsonl: give a JSONL file, or a folder with train.jsonl ..., in data.sources.NAME.location"
        )
    path = Path(location).expanduser()
    if not path.exists():
        raise SourceError(f"{path} does not exist, expected a JSONL file or a folder with train.jsonl ...")
    own_file = split_file(location, split, ".jsonl") if path.is_dir() else None
    rows = chat_rows(own_file) if own_file else of_split(path, chat_rows(path), split)
    yield from conversations("chat_jsonl", split, rows, turns_of, rejections)


def chat_rows(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file with their ids: the field `id`, else a hash of the line (file and number if malformed)."""
    for number, line in read_lines(path):
        try:
            row_id = parse_object(line).get("id")
        except ValueError:
            yield f"{path.name}:{number}", line
            continue
        yield str(row_id) if row_id is not None else hashlib.sha256(line.encode()).hexdigest()[:16], line


def split_of(conversation_id: str) -> Split:
    """A split that depends on the id alone: of ten conversations, eight train, one validates, one tests.

    >>> [split_of(name) for name in ("ada", "ben", "cleo")]
    ['validation', 'train', 'train']
    """
    bucket = int.from_bytes(hashlib.sha256(conversation_id.encode()).digest()[:8]) % 10
    return "test" if bucket == 9 else "validation" if bucket == 8 else "train"


def of_split(
    path: Path,
    rows: Iterable[tuple[str, Raw]],
    split: Split,
    key: Callable[[tuple[str, Raw]], str] = itemgetter(0),
) -> Iterator[tuple[str, Raw]]:
    """Of the rows (id, row) of a file without splits those whose key, by default the id, falls into `split`.

    Raises SourceError if the file is too short to have any.
    """
    keys: set[str] = set()
    is_empty = True
    for row in rows:
        name = key(row)
        keys.add(name)
        if split_of(name) == split:
            is_empty = False
            yield row
    if is_empty and keys:
        raise SourceError(
            f"{path} is too short to split: none of its {len(keys)} different entries falls into {split} "
            "(8 of 10 train, 1 validates, 1 tests, by a hash)"
        )


def turns_of(line: str) -> Iterator[Turn | str]:
    """The turns of one row; a system message may stand first and is left out: the recipe has its own.

    >>> list(turns_of('{"messages": [{"role": "user", "content": "I got in!", "emotions": ["joy"], "risk": "none"}]}'))
    [Turn(role='user', text='I got in!', emotions=('joy',), situation=None, strategy=(), risk='none', affect=None)]
    """
    for index, message in enumerate(take(parse_object(line), "messages", list)):
        role: Any = take(message, "role", str)
        if role == "system":
            if index > 0:
                raise ValueError("a system message that is not the first message")
            yield "system message"
            continue
        for key in message:
            if key not in KEYS:
                raise ValueError(f"unknown key {key!r} in a message{nearest(key, KEYS)}")
        yield spoken(
            role,
            take(message, "content", str),
            emotions=_names(message, "emotions"),
            situation=_name(message, "situation"),
            strategy=_names(message, "strategy"),
            risk=_name(message, "risk"),
            affect=_affect(message),
        )


def _name(message: dict[str, Any], key: str) -> str | None:
    return take(message, key, str) if message.get(key) is not None else None


def _names(message: dict[str, Any], key: str) -> tuple[str, ...]:
    value = message.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ValueError(f"{key!r} is neither a label nor a list of labels")
    return tuple(value)


def _affect(message: dict[str, Any]) -> Affect | None:
    value = message.get("affect")
    if value is None:
        return None
    if not isinstance(value, dict) or set(value) != set(Affect._fields) or not all(map(_is_number, value.values())):
        raise ValueError("'affect' is not {valence: number, arousal: number}")
    return Affect(float(value["valence"]), float(value["arousal"]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
