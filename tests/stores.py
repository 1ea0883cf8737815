"""What the tests of the store share: keys, a clock that they set, conversations, and a search of everything on disk."""

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from warmline.serve.store.history import SavedTurn, Store
from warmline.serve.store.sealed import ClientKey, client_key


@dataclass
class Clock:
    """Epoch seconds, which stand still until a test moves them."""

    now: float = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


def key_text() -> str:
    """A new client's key, as it travels."""
    return base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


def new_key() -> ClientKey:
    return client_key(key_text())


def talk(*said: str) -> list[SavedTurn]:
    """Turns of the user and the companion in turn, a minute apart."""
    return [SavedTurn(("user", "assistant")[at % 2], text, 60.0 * at) for at, text in enumerate(said)]


def found_in(folders: Iterable[Path], needles: Sequence[bytes]) -> Iterator[tuple[Path, bytes]]:
    """Which needles stand in which files under the folders."""
    for file in (file for folder in folders for file in sorted(folder.rglob("*")) if file.is_file()):
        content = file.read_bytes()
        yield from ((file, needle) for needle in needles if needle in content)


def folder_of(store: Store) -> Path:
    """Where an SQLite store's files lie."""
    return Path(str(store.database.engine.url.database)).parent
