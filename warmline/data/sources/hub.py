"""Rows of datasets on the Hugging Face hub, and what to do when they cannot be had."""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from warmline.data.conversation import Split
from warmline.data.sources.reading import SPLIT_NAMES, SourceError

MIRRORS = {"empathetic_dialogues": "Adapting/empathetic_dialogues_v2"}  # of repositories that are only a script


def hub_rows(source: str, hub_id: str, split: Split, columns: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    """The rows of one split. Raises SourceError if a column is missing."""
    dataset = hub_split(source, hub_id, split)
    require_columns(f"hub dataset {hub_id}", dataset.column_names, columns)
    yield from dataset


def hub_split(source: str, hub_id: str, split: Split) -> Any:
    """One split of a hub dataset (a `datasets.Dataset`), under any of its usual names."""
    dataset = _load(source, hub_id)
    for name in SPLIT_NAMES[split]:
        if name in dataset:
            return dataset[name]
    names = " or ".join(SPLIT_NAMES[split])
    raise SourceError(f"hub dataset {hub_id} has no split {names} (found: {', '.join(dataset)})")


def hub_fingerprint(hub_id: str) -> str:
    """A hash of a hub dataset's id and of the fingerprints that `datasets` gives to its splits."""
    splits = {name: split._fingerprint for name, split in sorted(_load("NAME", hub_id).items())}
    return hashlib.sha256(f"{hub_id} {splits}".encode()).hexdigest()


def require_columns(where: str, found: list[str], expected: tuple[str, ...]) -> None:
    """Raise SourceError unless all expected columns are there.

    >>> require_columns("train.csv", ["id", "text", "labels"], ("text", "labels"))
    """
    if not set(expected) <= set(found):
        raise SourceError(f"{where} has columns {', '.join(found)}; expected {', '.join(expected)}")


def _load(source: str, hub_id: str) -> Any:
    import datasets  # here: it takes a second, and most runs need none
    from datasets.exceptions import DatasetsError

    local = f"give a local folder in data.sources.{source}.location or set WARMLINE_DATA"
    try:
        return datasets.load_dataset(hub_id)
    except (OSError, RuntimeError, ValueError, DatasetsError) as error:
        found = " ".join(str(error).split())
    if found.startswith("Dataset scripts are no longer supported"):
        mirror = MIRRORS.get(hub_id.rpartition("/")[2])
        instead = f"use its mirror {mirror}" if mirror else f"use a mirror that has data files, or {local}"
        raise SourceError(f"hub dataset {hub_id} is only a loading script, which `datasets` no longer runs: {instead}")
    raise SourceError(f"hub dataset {hub_id} cannot be read: {found.rstrip('.')}; {local}")
