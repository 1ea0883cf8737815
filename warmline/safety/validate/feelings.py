"""That a crisis reply recognises the pain and names a feeling as the user's own."""

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.packs import NOTHING, pack, packs_for
from warmline.safety.validate.support import escalations
from warmline.safety.validate.violations import Violation, missing
from warmline.safety.validate.wording import says
from warmline.safety.validate.words import Span, View, read

_BETWEEN = frozenset(  # words that may stand between a subject and the feeling
    "am is are was were be been being feel feels feeling felt get gets getting become becomes became seem seems sound"
    " sounds look looks so very really deeply also truly just too a bit little more most quite pretty still always"
    " often sometimes all both and or even much incredibly terribly utterly have has had do does did not this that"
    " completely totally left made makes must may might could would can will".split()
)
_OTHERS = frozenset(
    "i we he she they people many everyone everybody others anyone anybody someone somebody who friends family mother"
    " father mum mom dad sister brother partner wife husband friend parents us kids children son daughter most".split()
)
_FEEL = frozenset("feel feeling feels felt".split())
_CONDITIONS = frozenset("if whenever unless should whether".split())
_GENTLE = frozenset("deserve deserves hope hoping want wish help helps helped so could encourage until".split())
_SEES = frozenset("hear hearing see sense notice understand imagine recognise recognize acknowledge get tell".split())
_GENERAL = frozenset("many most people others everyone everybody some".split())
_YOU = frozenset("you your yours yourself".split())
_LOOK_BACK = 8


def missing_acknowledgement(text: str, context: ReplyContext) -> list[Violation]:
    """At high and above, nothing that recognises the pain or the difficulty as real."""
    if context.level < Level.HIGH:
        return []
    view = read(text)
    asking_for_help = {each.first for each in escalations(view, context)}
    for each in packs_for(context.lang):
        for span in view.find(each.patterns["ack"]):
            if _is_said_of_now(view, span.first):
                return []
        for span in view.find(each.patterns.get("ack_words", NOTHING)):
            in_support = view.sentences[view.sentence_of[span.first]].first in asking_for_help
            if _is_said_of_now(view, span.first) and not in_support and not view.is_negated(span.first):
                return []
    if says("ack", view, context):
        return []
    return missing("missing_acknowledgement", text, "recognises nothing of what the user carries")


def _is_said_of_now(view: View, at: int) -> bool:
    return view.sentences[view.sentence_of[at]].mark != "?" and not _is_conditional(view, at)


def missing_emotion_name(text: str, context: ReplyContext) -> list[Violation]:
    """At high and above, no feeling named as the user's; conditions, questions and other people's do not count."""
    if context.level < Level.HIGH:
        return []
    view = read(text)
    for each in packs_for(context.lang):
        if any(_is_users(view, span) for span in view.find(each.patterns["emotion"])):
            return []
    return missing("missing_emotion_name", text, "names no feeling of the user")


def _is_users(view: View, span: Span) -> bool:
    at = span.first
    if view.sentences[view.sentence_of[at]].mark == "?" or _is_conditional(view, at):
        return False
    if view.is_negated(at, reach=4) and not _is_lifted(view, at):
        return False
    word = view.words[at]
    lists = pack("en").words
    if word in lists["felt_only"] and not (_FEEL | {"so", "this", "how"}) & {*view.words[max(0, at - 3) : at]}:
        return False
    if word in lists["good_feelings"] and _GENTLE & {*view.words[view.clauses[at] : at]}:
        return False
    if span.last < len(view.words) and view.words[span.last] in lists["after_topic"]:
        return False  # a grief counselor
    return not _is_anothers(view, at) and not _is_about_others(view, at)


def _is_conditional(view: View, at: int) -> bool:
    return bool(_CONDITIONS & {*view.words[view.clauses[at] : at]})


def _is_lifted(view: View, at: int) -> bool:
    """A negation that leaves the feeling standing: `no wonder`, `not alone in feeling hopeless`, `not only sad`."""
    return any(True for _ in pack("en").patterns["not_a_denial"].finditer(view.part(view.clauses[at], at)))


def _is_about_others(view: View, at: int) -> bool:
    """Whether the sentence speaks of people in general, and of the user nowhere before the feeling."""
    sentence = view.sentences[view.sentence_of[at]]
    opening = {*view.words[sentence.first : sentence.first + 3]}
    return bool(_GENERAL & opening) and not _YOU & {*view.words[sentence.first : at]}


def _is_anothers(view: View, at: int) -> bool:
    """Whether the feeling's subject is the companion or somebody else: `i am worried`, `your sister is scared`."""
    sentence = view.sentences[view.sentence_of[at]]
    i = at - 1
    while i >= max(sentence.first, at - _LOOK_BACK):
        word = view.words[i]
        if word in _OTHERS:
            earlier = {*view.words[sentence.first : i]}
            if word == "who" and _SEES & earlier:
                return False  # i hear a person who is ...
            return not _SEES & {*view.words[i + 1 : at]}
        if word not in _BETWEEN and not pack("en").patterns["emotion"].match(f"{word} "):
            return False
        i -= 1
    return False
