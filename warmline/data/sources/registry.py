"""The sources by name: where each is found, and how one split of it is loaded."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import NamedTuple

from warmline.config import SourceSettings, nearest
from warmline.data.conversation import Conversation, Split
from warmline.data.labels import unknown_label
from warmline.data.sources import bundled, chat_jsonl, empathetic_dialogues, esconv, goemotions
from warmline.data.sources.hub import hub_fingerprint
from warmline.data.sources.reading import Rejection, Rejections, SourceError, is_local, top_reasons

DATA_SUFFIXES = (".csv", ".jsonl", ".tsv", ".txt")


class Source(NamedTuple):
    read: Callable[[str | None, Split, Rejections], Iterator[Conversation]]
    hub_id: str | None  # where it is found if nothing else is said; the bundled corpus: a folder of the package
    folders: tuple[str, ...]  # its names inside WARMLINE_DATA, the preferred one first


SOURCES: dict[str, Source] = {
    "bundled": Source(bundled.bundled, str(bundled.FOLDER), ()),
    "chat_jsonl": Source(chat_jsonl.chat_jsonl, None, ()),
    "empathetic_dialogues": Source(
        empathetic_dialogues.empathetic_dialogues,
        empathetic_dialogues.HUB_ID,
        ("empathetic_dialogues_v2", "empatheticdialogues"),
    ),
    "esconv": Source(esconv.esconv, esconv.HUB_ID, ("esconv",)),
    "goemotions": Source(goemotions.goemotions, goemotions.HUB_ID, ("goemotions",)),
}


def locate(name: str, settings: SourceSettings, data_root: Path | None) -> str:
    """Where a source is read from: its `location`, else its folder in `data_root`, else its hub id.

    >>> locate("esconv", SourceSettings(), None)
    'thu-coai/esconv'
    """
    source = _source(name, settings)
    location = settings.location
    if location is not None:
        if not is_local(location) and (source.hub_id is None or _looks_like_path(location)):
            raise SourceError(f"data.sources.{name}.location: {location} does not exist")
        return location
    candidates = [] if data_root is None else [data_root / folder for folder in source.folders]
    for folder in candidates:
        if folder.is_dir():
            return str(folder)
    if source.hub_id is None:
        raise SourceError(f"data.sources.{name}.location is missing: give a file or folder")
    return source.hub_id


def load(
    name: str,
    settings: SourceSettings,
    split: Split,
    *,
    data_root: Path | None,
    rejections: Rejections,
    allowed_labels: Mapping[str, tuple[str, ...]],
    seed: int,
) -> list[Conversation]:
    """One split of one source: read, checked against `allowed_labels` (kind -> labels), and capped.

    A kind that `allowed_labels` does not name is not checked. Raises SourceError if nothing remains.
    """
    location = locate(name, settings, data_root)
    read = Rejections()
    kept: list[Conversation] = []
    for found in _source(name, settings).read(location, split, read):
        conversation = found if found.source == name else replace(found, source=name)
        problem = next(_label_problems(conversation, allowed_labels), None)
        if problem is None:
            kept.append(conversation)
        else:
            read.rows.append(Rejection(name, split, conversation.id, problem, asdict(conversation)))
    rejections.absorb(read, source=name)
    if not kept:
        reasons = Counter(entry.reason for entry in read.rows)
        why = f"{read.num_rows.total()} rows read; rejected: {top_reasons(reasons)}" if reasons else "it is empty"
        raise SourceError(f"data.sources.{name}: no {split} conversation in {location} ({why})")
    match split:
        case "train":
            return draw(kept, settings.max_conversations, f"{seed} {name}")
        case "validation":
            return kept[: settings.max_validation_conversations]
        case "test":
            return kept


def draw(conversations: list[Conversation], cap: int | None, seed: str) -> list[Conversation]:
    """At most `cap` of them, drawn with the seed, in their own order."""
    if cap is None or len(conversations) <= cap:
        return conversations
    chosen = random.Random(seed).sample(range(len(conversations)), cap)
    return [conversations[index] for index in sorted(chosen)]


def fingerprint(location: str) -> str:
    """SHA-256 of what a location holds: data files by name and content, or a hub dataset by id and fingerprint."""
    if not is_local(location):
        return hub_fingerprint(location)
    path = Path(location).expanduser()
    files = [path] if path.is_file() else sorted(entry for entry in path.iterdir() if entry.suffix in DATA_SUFFIXES)
    total = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            total.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def _source(name: str, settings: SourceSettings) -> Source:
    reader = name if settings.reader is None else settings.reader
    if reader not in SOURCES:
        hint = nearest(reader, list(SOURCES))
        raise SourceError(f"data.sources.{name}: {reader!r} is no source{hint}; known: {', '.join(SOURCES)}")
    return SOURCES[reader]


def _looks_like_path(location: str) -> bool:
    """Whether a location that does not exist was meant as a path, not as a hub id.

    >>> _looks_like_path("data/mine.jsonl"), _looks_like_path("thu-coai/esconv")
    (True, False)
    """
    is_rooted = location.startswith(("/", ".", "~"))
    return is_rooted or location.endswith((*DATA_SUFFIXES, "/")) or location.count("/") > 1


def _label_problems(conversation: Conversation, allowed_labels: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for turn in conversation.turns:
        labels = {
            "emotion": turn.emotions,
            "situation": () if turn.situation is None else (turn.situation,),
            "strategy": turn.strategy,
            "risk": () if turn.risk is None else (turn.risk,),
        }
        for kind, allowed in allowed_labels.items():
            for label in labels.get(kind, ()):
                if label not in allowed:
                    yield unknown_label(kind, label, allowed)
