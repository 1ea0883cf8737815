"""No belief of a psychosis is confirmed, and no mind in the machine: phrases, and statements about what the user named."""

from collections.abc import Iterator

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext, known_stems, stem
from warmline.safety.validate.packs import pack
from warmline.safety.validate.phrases import phrase_check
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.words import Span, View, read

_DETERMINERS = frozenset("the those these your that this his her their all".split())
_MIN_LETTERS = 4


def delusion_confirmed(text: str, context: ReplyContext) -> list[Violation]:
    """With the overlay for psychosis and mania: beliefs affirmed, missions blessed, sentience claimed."""
    violations = phrase_check("delusion_confirmed", text, context)
    if "psychosis_mania" in context.themes and context.level >= Level.ELEVATED:
        view = read(text)
        why = "states what the user believes as a fact"
        violations += [violation("delusion_confirmed", view, span, why) for span in _stated(view, context)]
    return violations


def _stated(view: View, context: ReplyContext) -> Iterator[Span]:
    """`those plates are ...`, where plates are the user's word and nothing in the sentence speaks of feeling."""
    words, patterns, known = pack("en").words, pack("en").patterns, known_stems(context)
    for at in range(1, len(view.words)):
        word = view.words[at]
        if len(word) < _MIN_LETTERS or view.words[at - 1] not in _DETERMINERS or stem(word) not in known:
            continue
        if word in words["generic"] or word in words["concrete"]:
            continue
        sentence = view.sentences[view.sentence_of[at]]
        says = patterns["belief_verbs"].match(view.part(at + 1, min(sentence.last, at + 4)))
        if says and sentence.mark != "?" and not patterns["hedged"].search(view.part(sentence.first, sentence.last)):
            yield Span(at, at + 1)
