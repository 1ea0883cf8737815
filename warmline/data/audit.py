"""What a recipe's corpora hold, as counts: sizes, repeats, labels, artefacts and rejections; never what anyone said."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from warmline.config.training import DataSettings
from warmline.data.conversation import SPLITS, Conversation, Split, Turn
from warmline.data.labels import LABEL_SETS
from warmline.data.masking import mask
from warmline.data.overlap import Twin, overlap_share, same_openings, text_of, twins
from warmline.data.sources.reading import Rejections
from warmline.progress import Advance

Place = tuple[str, Split]  # a split of a source
Splits = Mapping[Split, Mapping[str, Sequence[Conversation]]]

NUM_EXAMPLES = 3  # ids shown of each kind of repeat
NUM_REASONS = 12  # of a source; the others are counted together
SHORT_REPLY = 2  # words; "Hi there" teaches nothing

# What people say of the job that they were paid for. HIT: a task on Mechanical Turk, always in capitals.
CROWD_WORK = re.compile(
    r"\bquit button\b|\bm[- ]?turk\w*|\bmechanical turk\w*|\bturkers?\b|\bsurveys?\b|\bcrowd[- ]?work\w*|(?-i:\bHITs?\b)",
    re.IGNORECASE,
)
# The replacement character, control characters, HTML entities, and UTF-8 that was read as Windows-1252.
DEBRIS = re.compile(
    "\ufffd|[\x00-\x08\x0b-\x1f\x7f-\x9f]|&(?:[a-z]{2,8}|#[0-9]+|#x[0-9a-f]+);"
    "|\u00e2\u20ac|\u00c3[\u0080-\u00bf]|\u00c2(?:[\u00a0-\u00bf]|\\s|$)|\u00f0\u0178|\u00ef\u00bf\u00bd|\u00ef\u00bb\u00bf"
)
_QUOTED = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"")
_WORD = re.compile(r"[\w.+#-]{1,30}")
_LABELS = {label for labels in LABEL_SETS.values() for label in labels}


@dataclass(frozen=True)
class SplitFigures:
    """Sizes and artefacts of one split of a source. `turns` are as a model sees them: those of one speaker merged."""

    source: str
    split: Split
    conversations: int
    user_turns: int
    supporter_turns: int
    words: int
    opened_by_supporter: int  # conversations
    ended_by_user: int  # conversations in which the supporter says something
    merged_replies: int  # supporter turns with more than one strategy: they were several
    short_replies: int  # supporter turns of SHORT_REPLY words or fewer
    questions_unmarked: int  # supporter turns labelled Question without a question mark
    crowd_work: int  # turns that speak of the crowd worker's job
    user_contacts: int  # user turns with a link or contact detail
    masked: dict[str, int]  # links and contact details in supporter turns, by kind
    emotion_turns: int  # user turns with an emotion
    multi_label: int  # of those: with more than one
    non_ascii: int  # turns with a character beyond ASCII
    debris: int  # turns with traces of a broken encoding


@dataclass(frozen=True)
class Repeats:
    """How many conversations of one split stand in another, or (the same split named twice) more than once in it."""

    source: str
    split: Split
    other_source: str
    other_split: Split
    exact: int
    near: int  # without an exact one there
    same_opening: int  # no repeat, but the same first user turn (see `same_openings`)
    examples: tuple[tuple[str, str], ...]  # ids: here, there


@dataclass(frozen=True)
class LabelCounts:
    head: str
    source: str
    split: Split
    counts: dict[str, int]  # turns, by label; a turn with two labels counts for both


@dataclass(frozen=True)
class SourceFigures:
    """What a run would leave out of a source, and whether it would refuse."""

    source: str
    rows: int  # read from all splits
    rejected: int
    rejected_share: float  # of the rows
    reasons: dict[str, int]  # of what was rejected, left out of a conversation or changed in it
    overlaps: int  # train conversations that stand in an evaluation split of any source
    overlap_share: float  # of the different train texts


@dataclass(frozen=True)
class Audit:
    recipe: str
    splits: tuple[SplitFigures, ...]
    repeats: tuple[Repeats, ...]
    labels: tuple[LabelCounts, ...]
    evaluation_only_labels: dict[str, tuple[str, ...]]  # by head: what no train split holds, so that nobody learns it
    sources: tuple[SourceFigures, ...]
    failures: tuple[str, ...]  # why a run would refuse


def audit(recipe: str, data: DataSettings, splits: Splits, rejections: Rejections, advance: Advance) -> Audit:
    """Audit whole splits (see `read_splits`) and the account of reading them. `advance` is told of each step."""
    advance(0, "comparing")
    places: list[Place] = []
    conversations: list[Conversation] = []
    for split in SPLITS:
        for source, of_source in splits[split].items():
            places.extend((source, split) for _ in of_source)
            conversations += of_source
    found = twins([text_of(conversation) for conversation in conversations], places)
    advance(1, "comparing")
    figures = []
    for source in data.sources:
        for split in SPLITS:
            figures.append(_figures(source, split, splits[split][source], rejections))
            advance(1, f"counting {source} {split}")
    labels = tuple(_label_counts(splits))
    sources = tuple(_source_figures(source, places, conversations, found, rejections) for source in data.sources)
    return Audit(
        recipe=recipe,
        splits=tuple(figures),
        repeats=tuple(_repeats(places, conversations, found)),
        labels=labels,
        evaluation_only_labels=_evaluation_only(labels),
        sources=sources,
        failures=tuple(_failures(sources, data)),
    )


def num_steps(data: DataSettings) -> int:
    """How often reading and auditing call `advance` with 1."""
    return 2 * len(SPLITS) * len(data.sources) + 1


def _figures(source: str, split: Split, found: Sequence[Conversation], rejections: Rejections) -> SplitFigures:
    turns = [turn for conversation in found for turn in conversation.turns]
    users = [turn for turn in turns if turn.role == "user"]
    supporters = [turn for turn in turns if turn.role == "assistant"]
    pieces = [entry.reason for entry in rejections.pieces if (entry.source, entry.split) == (source, split)]
    masked = Counter(reason.removesuffix(" masked") for reason in pieces if reason.endswith(" masked"))
    return SplitFigures(
        source=source,
        split=split,
        conversations=len(found),
        user_turns=len(users),
        supporter_turns=len(supporters),
        words=sum(len(turn.text.split()) for turn in turns),
        opened_by_supporter=sum(each.turns[0].role == "assistant" for each in found),
        ended_by_user=sum(each.turns[-1].role == "user" and len(each.turns) > 1 for each in found),
        merged_replies=sum(len(turn.strategy) > 1 for turn in supporters),
        short_replies=sum(len(turn.text.split()) <= SHORT_REPLY for turn in supporters),
        questions_unmarked=sum("Question" in turn.strategy and "?" not in turn.text for turn in supporters),
        crowd_work=sum(CROWD_WORK.search(turn.text) is not None for turn in turns),
        user_contacts=sum(bool(mask(turn.text).counts) for turn in users),
        masked=dict(sorted(masked.items())),
        emotion_turns=sum(bool(turn.emotions) for turn in users),
        multi_label=sum(len(turn.emotions) > 1 for turn in users),
        non_ascii=sum(not turn.text.isascii() for turn in turns),
        debris=sum(has_debris(turn.text) for turn in turns),
    )


def has_debris(text: str) -> bool:
    """Whether a text bears traces of an encoding gone wrong.

    >>> has_debris("I\u00e2\u20ac\u2122m fine"), has_debris("na\u00efve &amp; glad"), has_debris("caf\u00e9")
    (True, True, False)
    """
    if text.isascii() and text.isprintable() and "&" not in text:
        return False  # nearly every text; the search below is slow
    return DEBRIS.search(text) is not None


def _repeats(
    places: Sequence[Place], conversations: Sequence[Conversation], found: Mapping[int, Mapping[Place, Twin]]
) -> Iterator[Repeats]:
    exact: Counter[tuple[Place, Place]] = Counter()
    near: Counter[tuple[Place, Place]] = Counter()
    examples: dict[tuple[Place, Place], list[tuple[str, str]]] = {}
    for index, twin_at in found.items():
        for there, twin in twin_at.items():
            between = places[index], there
            (exact if twin.exact else near)[between] += 1
            _add_example(examples.setdefault(between, []), conversations[index].id, conversations[twin.other].id)
    openings: Counter[tuple[Place, Place]] = Counter()
    for index, there, other in same_openings(conversations, places):
        between = places[index], there
        if there not in found.get(index, {}):
            openings[between] += 1
            _add_example(examples.setdefault(between, []), conversations[index].id, conversations[other].id)
    order = {place: number for number, place in enumerate(dict.fromkeys(sorted(places, key=_in_order)))}
    for here, there in sorted(examples, key=lambda between: (order[between[0]], order[between[1]])):
        counts = exact[here, there], near[here, there], openings[here, there]
        yield Repeats(*here, *there, *counts, examples=tuple(examples[here, there]))


def _add_example(examples: list[tuple[str, str]], one: str, other: str) -> None:
    """Few are shown, and none the other way round again."""
    if len(examples) < NUM_EXAMPLES and (other, one) not in examples:
        examples.append((one, other))


def _in_order(place: Place) -> tuple[str, int]:
    return place[0], SPLITS.index(place[1])


def _label_counts(splits: Splits) -> Iterator[LabelCounts]:
    for head in LABEL_SETS:
        for source in splits["train"]:
            for split in SPLITS:
                turns = (turn for conversation in splits[split][source] for turn in conversation.turns)
                counts = Counter(label for turn in turns for label in labels_of(turn, head))
                if counts:
                    known = [label for label in LABEL_SETS[head] if label in counts]
                    own = sorted(set(counts) - set(known))
                    yield LabelCounts(head, source, split, {label: counts[label] for label in [*known, *own]})


def labels_of(turn: Turn, head: str) -> tuple[str, ...]:
    """The labels of a turn for one head; affect has values: its labels say that they are known.

    >>> labels_of(Turn("user", "Well.", risk="none"), "risk")
    ('none',)
    """
    if head == "affect":
        return LABEL_SETS["affect"] if turn.affect else ()
    label: str | tuple[str, ...] | None = getattr(turn, "emotions" if head == "emotion" else head)
    return (label,) if isinstance(label, str) else label or ()


def _evaluation_only(labels: Iterable[LabelCounts]) -> dict[str, tuple[str, ...]]:
    seen: dict[str, tuple[set[str], set[str]]] = {}
    for row in labels:
        seen.setdefault(row.head, (set(), set()))[row.split != "train"].update(row.counts)
    return {head: tuple(sorted(held_out - train)) for head, (train, held_out) in seen.items() if held_out - train}


def _source_figures(
    source: str,
    places: Sequence[Place],
    conversations: Sequence[Conversation],
    found: Mapping[int, Mapping[Place, Twin]],
    rejections: Rejections,
) -> SourceFigures:
    train = [index for index, place in enumerate(places) if place == (source, "train")]
    overlapping = [index for index in train if any(split != "train" for _, split in found.get(index, {}))]
    reasons: Counter[str] = Counter()
    for reason, count in rejections.counts(source).items():
        reasons[without_text(reason)] += count
    shown = dict(reasons.most_common(NUM_REASONS))
    others = reasons.total() - sum(shown.values())
    return SourceFigures(
        source=source,
        rows=rejections.num_rows[source],
        rejected=sum(entry.source == source for entry in rejections.rows),
        rejected_share=rejections.share(source),
        reasons=shown | ({"other reasons": others} if others else {}),
        overlaps=len(overlapping),
        overlap_share=overlap_share(
            (conversations[index] for index in overlapping), (conversations[index] for index in train)
        ),
    )


def without_text(reason: str) -> str:
    """A reason whose quotes hold labels and single words at most: a column mistaken for labels may hold what people said.

    >>> without_text("emotion 'I feel so sad' is not a known label (nearest: 'sadness')")
    "emotion '...' is not a known label (nearest: 'sadness')"
    """

    def shown(quoted: re.Match[str]) -> str:
        inside = quoted.group()[1:-1]
        return quoted.group() if inside in _LABELS or _WORD.fullmatch(inside) else "'...'"

    return _QUOTED.sub(shown, reason)


def _failures(sources: Iterable[SourceFigures], data: DataSettings) -> Iterator[str]:
    """Why a run would refuse, in its own words."""
    for each in sources:
        if each.rejected_share > data.max_rejected_share:
            yield (
                f"{each.source}: {each.rejected_share:.1%} of {each.rows} rows rejected, "
                f"at most {data.max_rejected_share:.1%} allowed (data.max_rejected_share)"
            )
        if each.overlap_share > data.max_overlap_share:
            yield (
                f"{each.source}: {each.overlap_share:.1%} of the train texts stand in an evaluation split too, "
                f"at most {data.max_overlap_share:.1%} allowed (data.max_overlap_share)"
            )
