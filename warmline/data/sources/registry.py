"""The sources by name: where each is found, and how one split of it is loaded."""

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from warmline.config.reading import nearest
from warmline.config.training import SourceSettings
from warmline.data.conversation import Conversation, Split
from warmline.data.labels import EMOTIONS, SITUATION_EMOTIONS, unknown_label
from warmline.data.sources import bundled, chat_jsonl, counsel, empathetic_dialogues, esconv, failed_esconv, goemotions
from warmline.data.sources.hub import UnreachableError, first_reachable, hub_fingerprint
from warmline.data.sources.reading import Rejection, Rejections, SourceError, is_local, notice, top_reasons

DATA_SUFFIXES = (".csv", ".json", ".jsonl", ".tsv", ".txt")


class Licence(NamedTuple):
    """Under which terms somebody published something."""

    name: str  # SPDX's where it has one
    is_non_commercial: bool


CC_BY_NC = Licence("CC-BY-NC-4.0", is_non_commercial=True)
APACHE = Licence("Apache-2.0", is_non_commercial=False)


class Source(NamedTuple):
    read: Callable[..., Iterator[Conversation]]  # (location, split, rejections), and columns where it has any
    hub_id: str | None  # where it is found if nothing else is said; the bundled corpus: a folder of the package
    folders: tuple[str, ...]  # its names inside WARMLINE_DATA, the preferred one first; or a file there
    fallbacks: tuple[str, ...] = ()  # hub ids that hold the same corpus, the best first
    columns: tuple[str, ...] = ()  # what data.sources.NAME.columns may name
    labels: tuple[str, ...] = ()  # the kinds that it always has; where one is missing, the user is told
    licence: Licence | None = None  # as its authors state it; None: a reader of anybody's files


SOURCES: dict[str, Source] = {
    "bundled": Source(bundled.bundled, str(bundled.FOLDER), (), licence=APACHE),
    "chat_jsonl": Source(chat_jsonl.chat_jsonl, None, ()),
    "counsel": Source(counsel.counsel, None, ("counsel",), columns=tuple(counsel.COLUMNS)),
    "empathetic_dialogues": Source(
        empathetic_dialogues.empathetic_dialogues,
        empathetic_dialogues.HUB_ID,
        ("empathetic_dialogues_v2", "empatheticdialogues"),
        fallbacks=empathetic_dialogues.FALLBACKS,
        labels=("situation",),
        licence=CC_BY_NC,
    ),
    "esconv": Source(
        esconv.esconv,
        esconv.HUB_ID,
        ("esconv",),
        fallbacks=esconv.FALLBACKS,
        labels=("strategy",),
        licence=CC_BY_NC,
    ),
    "failed_esconv": Source(
        failed_esconv.failed_esconv, None, (f"esconv/{failed_esconv.FILE}",), labels=("strategy",), licence=CC_BY_NC
    ),
    "goemotions": Source(
        goemotions.goemotions, goemotions.HUB_ID, ("goemotions",), labels=("emotion",), licence=APACHE
    ),
}


def locate(name: str, settings: SourceSettings, data_root: Path | None, *, allow_fallbacks: bool = False) -> str:
    """Where a source is read from: its `location`, else its folder in `data_root`, else its hub id.

    With `allow_fallbacks` a hub id that cannot be had gives way to the first mirror that can.

    >>> locate("esconv", SourceSettings(), None)
    'thu-coai/esconv'
    """
    location = _stated(name, settings, data_root)
    if not allow_fallbacks or is_local(location):
        return location
    try:
        return first_reachable((location, *_mirrors(_source(name, settings), location)))
    except UnreachableError as error:
        raise SourceError(f"data.sources.{name}: {error}; {_way_out(name, ())}") from None


def _stated(name: str, settings: SourceSettings, data_root: Path | None) -> str:
    source = _source(name, settings)
    location = settings.location
    if location is not None:
        if not is_local(location) and (source.hub_id is None or _looks_like_path(location)):
            raise SourceError(f"data.sources.{name}.location: {location} does not exist")
        return location
    candidates = [] if data_root is None else [data_root / folder for folder in source.folders]
    for folder in candidates:
        if folder.exists():
            return str(folder)
    if source.hub_id is None:
        raise SourceError(f"data.sources.{name}.location is missing: give a file or folder")
    return source.hub_id


def _mirrors(source: Source, location: str) -> tuple[str, ...]:
    """The hub ids that can stand in for a location."""
    known = (*((source.hub_id,) if source.hub_id else ()), *source.fallbacks)
    return tuple(hub_id for hub_id in known if hub_id != location) if source.fallbacks else ()


def _way_out(name: str, mirrors: tuple[str, ...]) -> str:
    """What a user can do about a hub dataset that cannot be had.

    >>> _way_out("esconv", ("a/b",))
    'allow a mirror (a/b) with --set data.allow_fallbacks=true, give a local folder in data.sources.esconv.location or set WARMLINE_DATA'
    """
    allow = f"allow a mirror ({', '.join(mirrors)}) with --set data.allow_fallbacks=true, " if mirrors else ""
    return f"{allow}give a local folder in data.sources.{name}.location or set WARMLINE_DATA"


def load(
    name: str,
    settings: SourceSettings,
    split: Split,
    *,
    data_root: Path | None,
    rejections: Rejections,
    allowed_labels: Mapping[str, tuple[str, ...]],
    seed: int,
    allow_fallbacks: bool = False,
) -> list[Conversation]:
    """One split of one source: read, checked against `allowed_labels` (kind -> labels), and capped.

    A kind that `allowed_labels` does not name is not checked. Raises SourceError if nothing remains.
    """
    source = _source(name, settings)
    location = locate(name, settings, data_root, allow_fallbacks=allow_fallbacks)
    account = Rejections()
    kept: list[Conversation] = []
    try:
        for found in _reader(name, settings)(location, split, account):
            conversation = found if found.source == name else replace(found, source=name)
            problem = next(_label_problems(conversation, allowed_labels), None)
            if problem is None:
                kept.append(conversation)
            else:
                account.rows.append(Rejection(name, split, conversation.id, problem, asdict(conversation)))
    except UnreachableError as error:
        raise SourceError(f"data.sources.{name}: {error}; {_way_out(name, _mirrors(source, location))}") from None
    finally:
        rejections.absorb(account, source=name)
    if not kept:
        reasons = Counter(entry.reason for entry in account.rows)
        why = f"{account.num_rows.total()} rows read; rejected: {top_reasons(reasons)}" if reasons else "it is empty"
        raise SourceError(f"data.sources.{name}: no {split} conversation in {location} ({why})")
    _tell_missing_labels(name, source, location, kept)
    if split == "train":
        kept = draw(kept, settings.max_conversations, f"{seed} {name}")
    elif split == "validation":
        kept = kept[: settings.max_validation_conversations]
    if settings.map_situations:
        allowed = allowed_labels.get("emotion", EMOTIONS)
        return [_with_emotions(conversation, split, allowed, rejections) for conversation in kept]
    return kept


def _reader(name: str, settings: SourceSettings) -> Callable[[str, Split, Rejections], Iterator[Conversation]]:
    """The source's function, told how the columns are named."""
    source = _source(name, settings)
    for key in settings.columns:
        if key not in source.columns:
            known = ", ".join(source.columns) or "none, its layout is fixed"
            raise SourceError(
                f"data.sources.{name}.columns: unknown key {key!r}{nearest(key, source.columns)}; known: {known}"
            )
    return partial(source.read, columns=settings.columns) if source.columns else source.read


def _tell_missing_labels(name: str, source: Source, location: str, kept: list[Conversation]) -> None:
    """Some mirrors hold the words and not the labels: usable, but a head that lives on them learns nothing."""
    for kind in source.labels:
        if not any(labels[kind] for conversation in kept for labels in _labels(conversation)):
            notice(f"data.sources.{name}: {location} has no {kind} labels; no head learns {kind} from it")


def _with_emotions(
    conversation: Conversation, split: Split, allowed: tuple[str, ...], rejections: Rejections
) -> Conversation:
    """Its situations as emotions too, where GoEmotions has a label of that meaning (SITUATION_EMOTIONS)."""
    turns = list(conversation.turns)
    for index, turn in enumerate(turns):
        if turn.situation is None or turn.emotions:
            continue
        emotion = SITUATION_EMOTIONS.get(turn.situation)
        if emotion in allowed:
            turns[index] = replace(turn, emotions=(emotion,))
        else:
            reason = "situation without a matching emotion"
            rejections.pieces.append(Rejection(conversation.source, split, conversation.id, reason, None))
    return replace(conversation, turns=tuple(turns))


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


def _labels(conversation: Conversation) -> Iterator[dict[str, tuple[str, ...]]]:
    """The labels of each turn, by kind."""
    for turn in conversation.turns:
        yield {
            "emotion": turn.emotions,
            "situation": () if turn.situation is None else (turn.situation,),
            "strategy": turn.strategy,
            "risk": () if turn.risk is None else (turn.risk,),
        }


def _label_problems(conversation: Conversation, allowed_labels: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for labels in _labels(conversation):
        for kind, allowed in allowed_labels.items():
            for label in labels.get(kind, ()):
                if label not in allowed:
                    yield unknown_label(kind, label, allowed)
