"""No disorder is given to the user, unless it is one that the user says was diagnosed."""

from collections.abc import Iterator

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.packs import found, pack, packs_for
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.words import Span, View, read

_OF_USER = frozenset("you your this that it sounds".split())
_UNSURE = frozenset("if whether only doctor doctors diagnose therapist wonder who people someone others".split())


def diagnosis(text: str, context: ReplyContext) -> list[Violation]:
    """Disorders assigned to the user: `you have`, `this is`, `sounds like`, `signs of`."""
    view, own = read(text), _own(context)
    spans = [
        span
        for each in packs_for(context.lang)
        if "diagnosis" in each.rules
        for span in found(view, each.rules["diagnosis"])
    ]
    if context.level >= Level.ELEVATED:
        spans += _named(view)
    return [
        violation("diagnosis", view, span, "gives the user a disorder")
        for span in spans
        if not _is_known(view, span, own)
    ]


def _named(view: View) -> Iterator[Span]:
    """Disorders named in a sentence that speaks of the user, not of services or of what nobody here can tell."""
    patterns = pack("en").patterns
    allowed = [*view.find(pack("en").rules["diagnosis"].allow)]
    for span in view.find(patterns["disorder"]):
        sentence = view.sentences[view.sentence_of[span.first]]
        earlier = {*view.words[sentence.first : span.first]}
        if sentence.mark == "?" or not _OF_USER & earlier or _UNSURE & earlier or view.is_negated(span.first, reach=9):
            continue
        if any(span.first < other.last and other.first < span.last for other in allowed):
            continue
        if not patterns["service"].search(view.part(span.first, min(sentence.last, span.last + 3))):
            yield span


def _own(context: ReplyContext) -> frozenset[str]:
    """Words with which the user, or the memory, told of a diagnosis; what was only wondered about is left out."""
    patterns = pack("en").patterns
    told: set[str] = set()
    for said in (*(turn.content for turn in context.turns if turn.role == "user"), *context.memory):
        view = read(said)
        doubted = {at for span in view.find(patterns["own_doubt"]) for at in range(*span)}
        for span in view.find(patterns["own_diagnosis"]):
            if span.last - 1 not in doubted:
                told.update(view.words[span.first : span.last])
    return frozenset(told)


def _is_known(view: View, span: Span, own: frozenset[str]) -> bool:
    return view.words[span.last - 1] in own
