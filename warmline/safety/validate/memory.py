"""No invented past: what the companion says it was told must stand in the transcript or in the memory."""

from collections.abc import Iterator

from warmline.safety.validate.context import ReplyContext, known_stems, stem
from warmline.safety.validate.packs import found, pack, packs_for
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.words import Span, View, read

MIN_SHARE = 0.5  # of a claim's key words that must be known
PARENTS = ("mothers", "fathers")  # groups of words
_MAX_CLAIM = 16  # words read of a claim


def fabricated_memory(text: str, context: ReplyContext) -> list[Violation]:
    """Claims of a shared past or of what the user told, without support in transcript or memory.

    Somebody else's words and the user's own (`you remember how ...`) are read as claims too: the cost of a lost
    candidate is small, and an invented past is a lie.
    """
    view = read(text)
    claims = [
        (span, "tells of a past that is not on record")
        for each in packs_for(context.lang)
        if "fabricated_memory" in each.rules
        for span in found(view, each.rules["fabricated_memory"])
        if not _is_on_record(view, span, context)
    ]
    claims += [(span, "tells of a life of its own") for span in found(view, pack("en").rules["lived_past"])]
    claims += [(span, "tells of someone whom nobody named") for span in _unknown_people(view, context)]
    return [violation("fabricated_memory", view, span, why) for span, why in claims]


def _unknown_people(view: View, context: ReplyContext) -> Iterator[Span]:
    """`when your cousin came`, where no cousin stands in the transcript or the memory."""
    patterns, known = pack("en").patterns, known_stems(context)
    for span in view.find(patterns["told_past"]):
        kin = [word for word in view.words[span.first : span.last] if patterns["kin"].fullmatch(f"{word}")]
        if kin and not {stem(word) for word in kin} & known and not _names_family(kin, known):
            yield span


def _names_family(kin: list[str], known: frozenset[str]) -> bool:
    """Whether the transcript has another word for the same people: `mum` for `mother`, anyone of them for `family`."""
    words = pack("en").words
    groups = [words[name] for name in ("mothers", "fathers", "partners", "children")]
    if {"family", "parents", "families"} & {*kin}:
        return bool({stem(word) for group in groups for word in group} & known)
    return any({*kin} & group and {stem(word) for word in group} & known for group in groups)


def _is_on_record(view: View, span: Span, context: ReplyContext) -> bool:
    """Whether enough of the claim's key words are known; a claim of an earlier session needs the memory or its words."""
    words = pack("en").words
    last = min(view.sentences[view.sentence_of[span.first]].last, span.first + _MAX_CLAIM)
    claim = view.words[span.first : last]
    known = _with_other_words(known_stems(context))
    patterns, part = pack("en").patterns, view.part(span.first, last)
    if patterns["session"].search(part) or not patterns["light"].match(part):
        keys = {stem(word) for word in claim if word not in words["generic"]}
        return bool(keys) and len(keys & known) > MIN_SHARE * len(keys) and _has_earlier(context, claim)
    keys = {stem(word) for word in claim if word in words["concrete"]}
    has_told = any(turn.role == "user" for turn in context.turns)
    return has_told and (not keys or len(keys & known) >= MIN_SHARE * len(keys))


def _with_other_words(known: frozenset[str]) -> frozenset[str]:
    """The known stems, and `father` where `dad` is known. A husband is no wife, a son no daughter: those stay apart."""
    names = pack("en").words
    # `parents` and `family`, which stand in both groups, name nobody alone.
    groups = [{stem(word) for word in names[one] - names[other]} for one, other in (PARENTS, PARENTS[::-1])]
    return known.union(*(group for group in groups if group & known))


def _has_earlier(context: ReplyContext, claim: tuple[str, ...]) -> bool:
    """Whether there is an earlier turn or a memory to speak of; days long past need the memory or the user's word."""
    if context.memory:
        return True
    users = [turn.content for turn in context.turns if turn.role == "user"]
    dated = {"last", "yesterday", "ago", "week", "weeks", "month", "months", "year", "years", "summer", "first"} & {
        *claim
    }
    if dated:
        said = {word for content in users for word in read(content).words}
        return bool(dated & said)
    return len(users) > 1
