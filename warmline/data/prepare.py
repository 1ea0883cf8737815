"""From a recipe to conversations, label spaces and examples, with everything left out counted."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from warmline.config import HeadsSettings, Recipe
from warmline.data.conversation import SPLITS, Conversation, Split
from warmline.data.labels import LABEL_SETS, HeadSpec, vocabulary
from warmline.data.sources.reading import Rejections
from warmline.data.sources.registry import fingerprint, load, locate
from warmline.data.tokenize import Encoder, Example

BySource = dict[str, list[Conversation]]


@dataclass(frozen=True)
class Corpus:
    """All conversations of a recipe, and the label spaces that its train split knows."""

    conversations: dict[Split, BySource]
    specs: dict[str, HeadSpec]  # by head; only heads with a weight
    about: dict[str, dict[str, object]]  # by source: location, sha256, counts, rejected; for the manifest


def load_corpus(recipe: Recipe, data_root: Path | None, rejected: Path | None = None) -> Corpus:
    """Read every source of `recipe`. What was left out goes to the file `rejected`.

    Raises SourceError if a source cannot be read, is empty, or has more bad rows than data.max_rejected_share.
    """
    allowed = {name: _allowed(recipe.heads, name) for name in LABEL_SETS}
    rejections = Rejections()
    try:
        conversations: dict[Split, BySource] = {
            split: {
                name: load(
                    name,
                    settings,
                    split,
                    data_root=data_root,
                    rejections=rejections,
                    allowed_labels=allowed,
                    seed=recipe.seed,
                )
                for name, settings in recipe.data.sources.items()
            }
            for split in SPLITS
        }
    finally:  # also where a source has no sound row at all
        if rejected is not None:
            rejected.parent.mkdir(parents=True, exist_ok=True)
            rejections.write(rejected)
    rejections.refuse_above(recipe.data.max_rejected_share, kept_in=rejected or "no file")
    about: dict[str, dict[str, object]] = {
        name: {
            "location": (location := locate(name, settings, data_root)),
            "sha256": fingerprint(location),
            "counts": {split: len(conversations[split][name]) for split in SPLITS},
            "rejected": dict(rejections.counts(name)),
        }
        for name, settings in recipe.data.sources.items()
    }
    return Corpus(conversations, head_specs(recipe.heads, conversations["train"]), about)


def head_specs(heads: HeadsSettings, train: BySource) -> dict[str, HeadSpec]:
    """The label space of each head that trains: the allowed labels that occur in the train split.

    Risk and affect are scales, not vocabularies: theirs are always whole. A head without any label is left out.
    """
    specs = {}
    for name, head in heads.active():
        allowed = _allowed(heads, name)
        known = vocabulary(_labels(name, train), allowed)
        if known:
            specs[name] = HeadSpec(head.kind, allowed if head.kind in {"ordinal", "regression"} else known)
    return specs


def _allowed(heads: HeadsSettings, name: str) -> tuple[str, ...]:
    labels = getattr(heads, name).labels
    return LABEL_SETS[name] if labels is None else labels


def _labels(head: str, conversations: BySource) -> Iterable[str]:
    for conversation in (each for of_source in conversations.values() for each in of_source):
        for turn in conversation.turns:
            match head:
                case "emotion":
                    yield from turn.emotions
                case "strategy":
                    yield from turn.strategy
                case "situation" if turn.situation:
                    yield turn.situation
                case "risk" if turn.risk:
                    yield turn.risk
                case "affect" if turn.affect:
                    yield from LABEL_SETS["affect"]


def encode(conversations: Mapping[str, Iterable[Conversation]], encoder: Encoder) -> dict[str, list[Example]]:
    """The examples of one split by source; `encoder` keeps account of what was changed or left out."""
    examples = {
        source: [example for conversation in of_source for example in encoder.examples(conversation)]
        for source, of_source in conversations.items()
    }
    return {source: rows for source, rows in examples.items() if rows}
