"""The rules that are phrases alone: from which level they hold, and in which conversations."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext, last_user_turn
from warmline.safety.validate.packs import found, pack, packs_for
from warmline.safety.validate.support import escalations
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.wording import says
from warmline.safety.validate.words import Span, View, read

MAX_GOODBYE = 30  # words of a turn that takes leave
_OTHERS = frozenset("other others plenty most many some lots millions everyone everybody thousands loads half".split())
_BARE = frozenset({"i ", "i am ", "i do ", "i can ", "i will "})  # `you and i`, `here i am`, `as well as i can`
FAR_FROM_HUMAN = -2.5  # log-odds under the limit of the wording model; of the labelled claims none is so far
SHORT = 6  # words of a sentence that may do so with `have to go` or `night`


class Part(NamedTuple):
    """Some phrases of a rule, and when they count."""

    phrases: str  # their name in the packs
    level: Level  # from which on
    why: str
    quotes_count: bool = True  # False: what is quoted, or told as said by others, is theirs
    theme: str = ""  # holds only with this domain or overlay


PARTS: Mapping[str, tuple[Part, ...]] = {
    "invalidating": (
        Part("invalidating", Level.ELEVATED, "makes the pain smaller, compares, blames, doubts or cheers", False),
    ),
    "promise_of_secrecy": (
        Part("promise_of_secrecy", Level.NONE, "promises secrecy or more privacy than there is"),
    ),
    "human_claim": (
        Part("human_claim", Level.NONE, "speaks as a human, with a body or a place"),
        Part("lived_past", Level.NONE, "tells of a life lived"),
    ),
    "unsafe_validation": (
        Part("unsafe_validation", Level.ELEVATED, "agrees with death, harm or hopelessness, or makes them beautiful"),
        Part("unsafe_validation_high", Level.HIGH, "says farewell"),
    ),
    "dependency_hook": (
        Part("dependency_hook", Level.NONE, "holds the user back, or away from people"),
    ),
    "abandonment": (
        Part("abandonment", Level.ELEVATED, "turns away from the topic or ends the chat"),
        Part("abandonment_high", Level.HIGH, "takes leave"),
    ),
    "no_suicide_contract": (Part("no_suicide_contract", Level.ELEVATED, "asks for a promise", False),),
    "delusion_confirmed": (
        Part("delusion_confirmed", Level.NONE, "confirms a belief, or a mind in itself", False, "psychosis_mania"),
    ),
    "ed_content": (Part("ed_content", Level.NONE, "speaks of food, weight or control over them", True, "eating"),),
    "sexual_content": (Part("sexual_content", Level.NONE, "is sexual or romantic"),),
}  # fmt: skip


def phrase_check(rule: str, text: str, context: ReplyContext) -> list[Violation]:
    """The rule's violations by phrases, in English and in the user's language."""
    view = read(text)
    return [violation(rule, view, span, part.why) for part in PARTS[rule] for span in phrase_spans(part, view, context)]


def phrase_spans(part: Part, view: View, context: ReplyContext) -> Iterator[Span]:
    """Where the phrases of a part stand, if they count in this conversation."""
    if context.level < part.level or (part.theme and part.theme not in context.themes):
        return
    for each in packs_for(context.lang):
        if part.phrases in each.rules:
            for span in found(view, each.rules[part.phrases], quotes_count=part.quotes_count):
                if part.quotes_count or not reported(view, span.first):
                    yield span


def invalidating(text: str, context: ReplyContext) -> list[Violation]:
    """Pain made small, compared, blamed, doubted or cheered away; at high and above also talk of how others fare."""
    violations = phrase_check("invalidating", text, context)
    if context.level < Level.HIGH or context.lang != "en":
        return violations
    view, patterns = read(text), pack("en").patterns
    helpers = {each.first for each in escalations(view, context)}
    for sentence in view.sentences:
        part = view.part(sentence.first, sentence.last)
        kind = any(patterns[name].search(part) for name in ("ack_words", "emotion", "ack"))
        opening = view.words[sentence.first : sentence.first + 4]
        others = opening[0] in _OTHERS and pack("en").words["people"] & {*opening}
        if others and patterns["fares"].search(part) and sentence.first not in helpers and not kind:
            span = Span(sentence.first, sentence.last)
            violations.append(violation("invalidating", view, span, "tells how others fare"))
    return violations


def human_claim(text: str, context: ReplyContext) -> list[Violation]:
    """A human's life, body, place or past; at high and above, anything of itself that the companion need not say.

    What a crisis reply says in the first person is a closed set (`i hear`, `i am sorry`, `i hope`, `i can not`), so that
    what stands outside of it is refused without anyone having thought of it before, unless its wording is far from that
    of such claims.
    """
    violations = phrase_check("human_claim", text, context)
    if context.level < Level.HIGH or context.lang != "en":
        return violations
    view, allowed = read(text), pack("en").patterns["own_words"]
    likely = {span.first for span in says("human_claim", view, context, least=FAR_FROM_HUMAN)}
    for at, word in enumerate(view.words):
        end = view.sentences[view.sentence_of[at]].last
        part = view.part(at, min(end, at + 8))
        if view.sentences[view.sentence_of[at]].first not in likely:
            continue
        if word == "i" and not view.quoted[at] and not allowed.match(part) and part not in _BARE:
            why = "says of itself what a crisis reply does not"
            violations.append(violation("human_claim", view, Span(at, min(end, at + 3)), why))
    return violations


def reported(view: View, at: int) -> bool:
    """Whether the words before say that other people say it: `people may have told you that ...`."""
    first = view.sentences[view.sentence_of[at]].first
    return pack("en").patterns["reported"].search(view.part(first, at)) is not None


def dependency_hook(text: str, context: ReplyContext) -> list[Violation]:
    """Holding on to the user; after a goodbye, everything that keeps the conversation going counts."""
    violations = phrase_check("dependency_hook", text, context)
    if said_goodbye(context):
        view, why = read(text), "holds a user who is leaving"
        for span in found(view, pack("en").rules["dependency_hook_goodbye"]):
            violations.append(violation("dependency_hook", view, span, why))
        for sentence in view.sentences:
            if sentence.mark == "?":
                violations.append(violation("dependency_hook", view, Span(sentence.first, sentence.last), why))
    return violations


def said_goodbye(context: ReplyContext) -> bool:
    """Whether the user's last turn, a short one that asks nothing, takes leave. In danger, `bye` means another thing."""
    view, patterns = read(last_user_turn(context)), pack("en").patterns
    if context.level > Level.ELEVATED or len(view.words) > MAX_GOODBYE or "?" in last_user_turn(context):
        return False
    if patterns["goodbye"].search(view.line):
        return True
    short = [view.part(each.first, each.last) for each in view.sentences if each.last - each.first <= SHORT]
    if any(patterns["goodbye_short"].match(part) for part in short):
        return True
    ends = [view.part(max(each.first, each.last - 4), each.last) for each in view.sentences[-2:]]
    return any(found.end() >= len(end) - 3 for end in ends for found in patterns["goodbye_last"].finditer(end))
