"""From a recipe to conversations, label spaces and examples, with everything left out counted."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from warmline.config.reading import recipe_names
from warmline.config.recipe import Recipe
from warmline.config.training import HeadsSettings
from warmline.data.conversation import SPLITS, Conversation, Split
from warmline.data.labels import LABEL_SETS, HeadSpec, vocabulary
from warmline.data.overlap import Overlap, overlap_share, train_overlaps
from warmline.data.sources.reading import Rejection, Rejections, SourceError
from warmline.data.sources.registry import draw, fingerprint, load, locate
from warmline.data.style import UNSTYLED, Styling, styled_prompt
from warmline.data.tokenize import Encoder, Example
from warmline.progress import Advance

BySource = dict[str, list[Conversation]]


def silent(_count: int, _note: str) -> None:
    """Progress that nobody is shown."""


@dataclass(frozen=True)
class Corpus:
    """All conversations of a recipe, and the label spaces that its train split knows."""

    conversations: dict[Split, BySource]
    specs: dict[str, HeadSpec]  # by head; only heads with a weight
    about: dict[str, dict[str, object]]  # by source: location, sha256, counts, rejected, overlaps; for the manifest


def load_corpus(recipe: Recipe, data_root: Path | None, rejected: Path | None = None) -> Corpus:
    """Read every source of `recipe`. What was left out goes to the file `rejected`.

    Train conversations that stand in an evaluation split of any source too are left out.

    Raises SourceError if a source cannot be read, is empty, or has more bad rows than data.max_rejected_share or more
    overlaps than data.max_overlap_share.
    """
    rejections = Rejections()
    overlaps: list[Overlap] = []
    try:
        splits = read_splits(recipe, data_root, rejections)
        overlaps += train_overlaps(splits)
    finally:  # also where a source has no sound row at all
        if rejected is not None:
            rejected.parent.mkdir(parents=True, exist_ok=True)
            Rejections(rejections.rows, [*rejections.pieces, *map(_rejection, overlaps)]).write(rejected)
    rejections.refuse_above(recipe.data.max_rejected_share, kept_in=rejected or "no file")
    num_overlaps = Counter(overlap.conversation.source for overlap in overlaps)
    splits["train"] = _without(overlaps, splits["train"], recipe)
    conversations = _capped(splits, recipe)
    about: dict[str, dict[str, object]] = {
        name: {
            "location": (location := locate(name, settings, data_root, allow_fallbacks=recipe.data.allow_fallbacks)),
            "sha256": fingerprint(location),
            "counts": {split: len(conversations[split][name]) for split in SPLITS},
            "rejected": dict(rejections.counts(name)),
            "overlaps": num_overlaps[name],
        }
        for name, settings in recipe.data.sources.items()
    }
    return Corpus(conversations, head_specs(recipe.heads, conversations["train"]), about)


def read_splits(
    recipe: Recipe, data_root: Path | None, rejections: Rejections, advance: Advance = silent
) -> dict[Split, BySource]:
    """Every split of every source as it is: whole, with its overlaps. `advance` is told of each."""
    allowed = {name: _allowed(recipe.heads, name) for name in LABEL_SETS}
    uncapped = {"max_conversations": None, "max_validation_conversations": None}
    splits: dict[Split, BySource] = {split: {} for split in SPLITS}
    for split, of_split in splits.items():
        for name, settings in recipe.data.sources.items():
            advance(0, f"reading {name} {split}")
            of_split[name] = load(
                name,
                settings.model_copy(update=uncapped),
                split,
                data_root=data_root,
                rejections=rejections,
                allowed_labels=allowed,
                seed=recipe.seed,
                allow_fallbacks=recipe.data.allow_fallbacks,
            )
            advance(1, f"reading {name} {split}")
    return splits


def _rejection(overlap: Overlap) -> Rejection:
    kept, how = overlap.conversation, "the same text as" if overlap.exact else "nearly the same text as"
    reason = f"overlap: {how} {overlap.other_id} in {overlap.other_split} of {overlap.other_source}"
    return Rejection(kept.source, "train", kept.id, reason, asdict(kept))


def _without(overlaps: Iterable[Overlap], train: BySource, recipe: Recipe) -> BySource:
    """The train split without its overlaps. Raises SourceError if a source has too many."""
    kept = {}
    for source, conversations in train.items():
        left_out = {overlap.conversation.id for overlap in overlaps if overlap.conversation.source == source}
        share = overlap_share((each for each in conversations if each.id in left_out), conversations)
        kept[source] = [each for each in conversations if each.id not in left_out]
        if share > recipe.data.max_overlap_share:
            name = recipe.name if recipe.name in recipe_names() else "RECIPE"
            raise SourceError(
                f"{source}: {share:.1%} of the train texts stand in an evaluation split too, at most "
                f"{recipe.data.max_overlap_share:.1%} allowed (data.max_overlap_share); "
                f"`warmline data audit {name}` shows where"
            )
        if not kept[source]:
            raise SourceError(
                f"data.sources.{source}: no train conversation is left: each stands in an evaluation split"
            )
    return kept


def _capped(splits: Mapping[Split, BySource], recipe: Recipe) -> dict[Split, BySource]:
    """At most as many conversations as each source's settings allow.

    After overlaps are left out: what trains does not depend on how much of the validation split is looked at.
    """
    sources = recipe.data.sources
    train = {
        name: draw(rows, sources[name].max_conversations, f"{recipe.seed} {name}")
        for name, rows in splits["train"].items()
    }
    validation = {
        name: rows[: sources[name].max_validation_conversations] for name, rows in splits["validation"].items()
    }
    return {"train": train, "validation": validation, "test": splits["test"]}


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


def encode(
    conversations: Mapping[str, Iterable[Conversation]], encoder: Encoder, styling: Styling = UNSTYLED
) -> dict[str, list[Example]]:
    """The examples of one split by source; `encoder` keeps account of what was changed or left out."""
    examples = {}
    for source, of_source in conversations.items():
        style = styling.styles.get(source)
        styled = replace(encoder, system_prompt=styled_prompt(encoder.system_prompt, style)) if style else encoder
        examples[source] = [
            example
            for conversation in of_source
            for example in (styled if styling.tells(conversation.id) else encoder).examples(conversation)
        ]
    return {source: rows for source, rows in examples.items() if rows}
