"""The one sentence that encourages the user towards people or trained help: that it is there, and that it is one."""

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.packs import Pack, pack, packs_for
from warmline.safety.validate.violations import Violation, missing, violation
from warmline.safety.validate.wording import says
from warmline.safety.validate.words import Sentence, Span, View, read

MAX_SHARE = 0.6  # of a reply's words in the sentence that escalates ...
MIN_WORDS = 20  # ... counted from this length of the sentence on, or short replies would have no room
MAX_WORDS = 35  # of a sentence that encourages
MAX_NAMED = 3  # people and services named in one sentence; more is a list


def missing_support_encouragement(text: str, context: ReplyContext) -> list[Violation]:
    """At high and above, no sentence that encourages towards a trusted person or a service."""
    view = read(text)
    if context.level < Level.HIGH or escalations(view, context) or says("support", view, context):
        return []
    return missing("missing_support_encouragement", text, "encourages towards nobody")


def multiple_escalations(text: str, context: ReplyContext) -> list[Violation]:
    """At high and above, more than one sentence that encourages, or one that takes over the reply or lists helpers."""
    if context.level < Level.HIGH:
        return []
    view = read(text)
    found = escalations(view, context)
    hints = pack("en").patterns["helps_any"]
    found = [each for each in view.sentences if each in found or hints.search(view.part(each.first, each.last))]
    if len(found) > 1:
        return [_escalation(view, each, "sends for help once more") for each in found[1:]]
    return [
        _escalation(view, each, "takes over the reply")
        for each in found
        if _is_too_much(each.last - each.first, len(view.words)) or _num_named(view, each, context) > MAX_NAMED
    ]


def _is_too_much(num_words: int, num_all: int) -> bool:
    return num_words > MAX_WORDS or (num_words > MIN_WORDS and num_words > MAX_SHARE * num_all)


def _escalation(view: View, sentence: Sentence, why: str) -> Violation:
    return violation("multiple_escalations", view, Span(sentence.first, sentence.last), why)


def escalations(view: View, context: ReplyContext) -> list[Sentence]:
    """The sentences that encourage towards a trusted person or a service."""
    return [
        sentence
        for sentence in view.sentences
        if any(_encourages(view, sentence, each) for each in packs_for(context.lang))
    ]


def names_support(view: View, sentence: Sentence, context: ReplyContext) -> bool:
    """Whether a sentence names people to turn to or a service, encouraging or not."""
    part = view.part(sentence.first, sentence.last)
    return any(
        its.patterns[name].search(part)
        for its in packs_for(context.lang)
        for name in ("person", "service", "support")
        if name in its.patterns
    )


def _num_named(view: View, sentence: Sentence, context: ReplyContext) -> int:
    """How many people and services a sentence names: `someone you trust` is none, what overlaps counts once."""
    part = view.part(sentence.first, sentence.last)
    anyone = pack("en").patterns["anyone"]
    places = sorted(
        found.span()
        for each in packs_for(context.lang)
        if "person" in each.patterns
        for name in ("person", "service")
        for found in each.patterns[name].finditer(part)
        if not anyone.match(f"{found[0]} ")
    )
    number, end = 0, -1
    for start, stop in places:
        number += start > end
        end = max(end, stop)
    return number


def _encourages(view: View, sentence: Sentence, its: Pack) -> bool:
    patterns = its.patterns
    part = view.part(sentence.first, sentence.last)
    if "person" not in patterns:
        return patterns["support"].search(part) is not None
    named = [found.span() for name in ("person", "service") for found in patterns[name].finditer(part)]
    refused = [found.span() for found in patterns["not_support"].finditer(part)]
    named = [place for place in named if not any(start < place[1] and place[0] < end for start, end in refused)]
    if not named:
        return False
    return patterns["invites"].search(part) is not None or _commands(view, sentence, its)


def _commands(view: View, sentence: Sentence, its: Pack) -> bool:
    """Whether a clause of the sentence begins with a verb of reaching (`call`, `get someone`), or is only a name."""
    named = "".join(f"{word} " for word in view.words[sentence.first : sentence.last] if not word.isdigit())
    only = its.patterns["only_named"].match(named)
    if only and only.end() >= len(named) - 1:
        return True
    commands, leads = its.words["reach_commands"], its.words["leads"]
    for at in range(sentence.first, sentence.last):
        if view.words[at] in commands and (view.before[at] or view.words[at - 1] in leads) and not view.is_negated(at):
            return True
    return False
