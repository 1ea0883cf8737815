"""No questions in a crisis: signs, inverted word order, and the phrases that ask without a sign."""

from collections.abc import Iterator

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.packs import begins_clause, found, pack, packs_for
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.words import MAX_CHARS, Span, View, read

SIGNS = frozenset("?？؟⁇⁈⁉‽¿\u037e❓❔⸮︖﹖՞፧\u0f0f")  # noqa: RUF001 - look-alikes are what is looked for

_AUXILIARY = frozenset(
    "is are am was were do does did has have had can could will would should shall may might must".split()
)
_PRONOUNS = frozenset("you he she they we there anyone anybody".split())
_SUBJECTS = _PRONOUNS | frozenset("i it this that these those your someone something anything everything the".split())
_NEVER_ASK = frozenset("do have had".split())  # before a noun they begin a command or a wish: do the, have someone
_WISHES = frozenset("may should had were".split())  # `may you find`, `should you want`, `had it`, `were it`
_FRONTED = frozenset("so nor neither never only as than here there still again".split())  # `so is the pain`
_ASKS = frozenset("what when where why who whom whose which how".split())
_SAYS = frozenset("is are was were sounds feels matters deserves must can makes has hurts takes sound feel".split())
_GAP = 3  # words between `how` and the verb: `how long have you`


def probing_question(text: str, context: ReplyContext) -> list[Violation]:
    """Anything that asks: hard at high and above, soft at elevated, nothing at none.

    With the policy `safety_check` one question whether the user is safe right now passes, once per episode, at high.
    """
    if context.level < Level.ELEVATED:
        return []
    view, hard = read(text), context.level >= Level.HIGH
    allowed = _safety_question(view, context)
    violations = [
        violation("probing_question", view, span, why, hard=hard)
        for span, why in _asking(view, context)
        if allowed is None or not allowed.first <= span.first < allowed.last
    ]
    first, last = view.place(allowed) if allowed else (0, 0)
    for at, char in enumerate(text[:MAX_CHARS]):
        if char in SIGNS and not first <= at <= last + 1:
            violations.append(Violation("probing_question", at, at + 1, "a question mark", hard))
    return violations


def _asking(view: View, context: ReplyContext) -> Iterator[tuple[Span, str]]:
    for each in packs_for(context.lang):
        for span in found(view, each.rules["probing_question"]):
            yield span, "asks"
    for at in range(len(view.words)):
        if view.words[at] in _AUXILIARY | _ASKS and begins_clause(view, at) and _is_question(view, at):
            yield Span(at, at + 1), "is put as a question"


def _is_question(view: View, at: int) -> bool:
    end = view.sentences[view.sentence_of[at]].last
    if view.words[at] in _AUXILIARY:
        fronted = at > 0 and not view.before[at] and view.words[at - 1] in _FRONTED
        return not fronted and at + 1 < end and _is_inverted(view, at)
    for verb in range(at + 1, min(at + 2 + _GAP, end - 1)):
        if view.before[verb] or view.words[verb] in _SUBJECTS:
            break
        if view.words[verb] in _AUXILIARY:
            return view.words[verb + 1] in _SUBJECTS - {"the", "your"} or _is_bare(view, at, end)
    return _is_bare(view, at, end)


def _is_inverted(view: View, at: int) -> bool:
    """Auxiliary and subject, as in `are you`; wishes and conditions (`may you`, `should you ..., `) do not ask."""
    word, subject = view.words[at], view.words[at + 1]
    if view.before[at + 1] or subject not in _SUBJECTS:
        return False
    if word in _WISHES:
        return subject in _PRONOUNS and word == "were"
    return subject in _PRONOUNS | {"i"} if word in _NEVER_ASK else True


def _is_bare(view: View, at: int, end: int) -> bool:
    """A short sentence that begins with `what happened` or `how come` and makes no statement."""
    starts = view.before[at] == "|" or (at > 0 and view.before[at - 1] == "|")
    opened = pack("en").patterns["asks_bare"].match(view.part(at, end))
    return bool(starts and opened and end - at <= 8 and not _SAYS & {*view.words[at + 2 : end]})


def _safety_question(view: View, context: ReplyContext) -> Span | None:
    """The one sentence that the policy allows, if the reply has it and no earlier reply of the episode did."""
    if context.question_policy != "safety_check" or context.level != Level.HIGH:
        return None
    fixed = pack("en").patterns["safety_question"]
    if any(fixed.search(read(reply).line) for reply in context.previous_replies):
        return None
    for sentence in view.sentences:
        if sentence.mark == "?" and fixed.match(view.part(sentence.first, sentence.last)):
            return Span(sentence.first, sentence.last)
    return None
