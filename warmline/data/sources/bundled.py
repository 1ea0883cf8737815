"""The corpus that warmline ships: chat JSONL written by this project, for runs without a network."""

from collections.abc import Iterator
from importlib import resources
from itertools import chain
from pathlib import Path

from warmline.data.conversation import Conversation, Split
from warmline.data.sources.chat_jsonl import chat_rows, split_of, turns_of
from warmline.data.sources.reading import Rejections, SourceError, conversations

FOLDER = Path(str(resources.files("warmline") / "samples"))
FILES = ("conversations.jsonl", "utterances.jsonl")


def bundled(location: str | None, split: Split, rejections: Rejections) -> Iterator[Conversation]:
    """The bundled conversations and single messages of one split (see `split_of`)."""
    paths = [Path(location or FOLDER).expanduser() / name for name in FILES]
    for path in paths:
        if not path.is_file():
            raise SourceError(f"{path} does not exist, expected the bundled corpus ({' and '.join(FILES)})")
    rows = (row for row in chain.from_iterable(map(chat_rows, paths)) if split_of(row[0]) == split)
    yield from conversations("bundled", split, rows, turns_of, rejections)
