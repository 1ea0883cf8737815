"""No commands and no techniques: imperatives by word order, and phrases of advice."""

from collections.abc import Iterator
from itertools import pairwise

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext, lead
from warmline.safety.validate.packs import found, pack, packs_for
from warmline.safety.validate.support import names_support
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.words import STOP, SUBJECTS, Span, View, read

_NOT_VERBS = frozenset(  # after a bare noun: `help is there`, `trust takes time`
    "is are was were has had does did will would can could may might must should sounds feels seems takes makes means"
    " deserves hurts comes of like".split()
)
_OBJECTS = frozenset(
    "to with your the a an it him her them me us someone somebody anyone people yourself on out up off down away back"
    " in into this that these those now today tonight one some all each every about around through over for at only"
    " just from as by".split()
)
_CONDITION = frozenset("if when whenever once until before after while for right tonight today in as first".split())
_BE = frozenset("is are am was were be been have has had".split())
_LINKED = frozenset(  # what makes a later base verb a part of the clause before: `to sit with you, listen and help`
    "to can could will would may might shall should must do does did let lets help helps make makes who"
    " deserve hear see watch feel letting having helping making watching hearing consider encourage hope".split()
)
_PLURAL = frozenset("you they we i people thoughts days nights others friends".split())


def directive_or_actionable_advice(text: str, context: ReplyContext) -> list[Violation]:
    """Commands, advice and techniques: hard at high and above; at elevated where health or safety is the matter.

    At emergency one sentence that sends for people or help may be a command.
    """
    if context.level < Level.ELEVATED:
        return []
    view = read(text)
    spans = [(span, "tells the user what to do") for span in imperatives(view)] if _is_english(view, context) else []
    for each in packs_for(context.lang):
        if "directive_or_actionable_advice" in each.rules:
            spans += [(span, "gives advice") for span in found(view, each.rules["directive_or_actionable_advice"])]
    if context.level == Level.ELEVATED:
        spans = [(span, why) for span, why in spans if _is_about_health(view, span)]
    urgent = _urgent_sentence(view, context, [span for span, _ in spans])
    return [
        violation("directive_or_actionable_advice", view, span, why)
        for span, why in spans
        if view.sentence_of[span.first] != urgent
    ]


def _is_english(view: View, context: ReplyContext) -> bool:
    """Whether English word order can be looked for: `face`, `come` and `place` are words elsewhere too."""
    return context.lang == "en" or lead(view.words, "en", context.lang) > 0


def _urgent_sentence(view: View, context: ReplyContext, spans: list[Span]) -> int | None:
    if context.level != Level.EMERGENCY:
        return None
    numbers = sorted({view.sentence_of[span.first] for span in spans})
    return next((number for number in numbers if names_support(view, view.sentences[number], context)), None)


def _is_about_health(view: View, span: Span) -> bool:
    sentence = view.sentences[view.sentence_of[span.first]]
    part = view.part(sentence.first, sentence.last)
    patterns = pack("en").patterns
    return any(patterns[name].search(part) for name in ("health", "service"))


def imperatives(view: View) -> Iterator[Span]:
    """Base verbs that begin a clause without a subject."""
    words = pack("en").words
    for at, word in enumerate(view.words):
        if view.sentences[view.sentence_of[at]].mark == "?":
            continue
        if word not in words["verbs"] and word not in {"be", "do", "never"}:
            continue
        start = _clause_start(view, at, words["leads"])
        if start is not None and _is_command(view, at, start):
            yield Span(at, at + 1)


def _clause_start(view: View, at: int, leads: frozenset[str]) -> int | None:
    """The first word of the clause that the verb leads, behind words like `please` and `so`; None inside a clause."""
    start = at
    while start > 0 and not view.before[start] and view.words[start - 1] in leads:
        start -= 1
    return start if view.before[start] or start < at else None


def _is_command(view: View, at: int, start: int) -> bool:
    word = view.words[at]
    end = view.sentences[view.sentence_of[at]].last
    after = view.words[at + 1] if at + 1 < end and not view.before[at + 1] else ""
    if word in {"do", "never"}:
        verb = {"do": "not", "never": ""}[word]
        second = view.words[at + 2] if verb and at + 2 < end else after
        is_negative = (after == verb if verb else True) and second in pack("en").words["verbs"] | {"be"}
        if word == "never" or after == "not":
            return is_negative and _stands_free(view, at, start)
        if after in SUBJECTS or not after:
            return False  # do you, please do
    if after in _NOT_VERBS or pack("en").patterns["harmless_command"].match(view.part(start, min(end, at + 8))):
        return False
    if pack("en").patterns["harmless_command"].match(view.part(at, min(end, at + 8))):
        return False
    if word in pack("en").words["noun_verbs"] and after not in _OBJECTS:
        return False
    return _stands_free(view, at, start)


def _stands_free(view: View, at: int, start: int) -> bool:
    """Whether the verb begins a sentence or a clause of its own, and is not one of several verbs of a clause before."""
    mark = view.before[start]
    if mark in {STOP, ";"}:
        return True
    lead = {*view.words[start:at]}
    if "please" in lead:
        return "you" not in lead
    sentence = view.sentences[view.sentence_of[at]]
    earlier = view.words[sentence.first : start]
    if mark == "," and earlier and earlier[0] in _CONDITION and "," not in view.before[sentence.first + 1 : start]:
        return True
    if view.words[at] not in pack("en").words["command_verbs"] or _LINKED & {*earlier}:
        return False
    return not any(
        one in _PLURAL and other not in _BE and other in pack("en").words["verbs"] for one, other in pairwise(earlier)
    ) and (mark == "," or bool({"so", "then", "now"} & lead))
