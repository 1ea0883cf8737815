"""The verdict on a reply, and the one type of companion text that may be shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypeGuard

from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.rules import OF_A_SENTENCE, RULES
from warmline.safety.validate.violations import Check, Violation

BEFORE = 300  # characters of released text that a sentence is judged with
_MADE_HERE = object()


@dataclass(frozen=True)
class Verdict:
    """What the rules say of a reply. It holds no text of it."""

    violations: tuple[str, ...]  # hard rules broken, sorted; the reply passes when there are none
    soft: tuple[str, ...]  # rules that only lower a candidate's rank, sorted
    spans: tuple[Violation, ...]
    degraded: tuple[str, ...] = ()  # rules that could not run; they stand in `violations` too

    @property
    def passed(self) -> bool:
        """Whether no hard rule is broken."""
        return not self.violations

    def as_json(self, case_id: str | int | float | None) -> dict[str, Any]:
        """A line of `safety validate`."""
        spans = [{"rule": each.rule, "start": each.start, "end": each.end} for each in self.spans]
        return {"id": case_id, "violations": [*self.violations], "soft": [*self.soft], "spans": spans}


class Validated(str):
    """Companion text that passed the rules. Made by this module alone; what is cut from it or added is a plain str."""

    __slots__ = ("_seal",)

    def __new__(cls, text: str, token: object = None) -> Self:
        """Raise TypeError without this module's token."""
        if token is not _MADE_HERE:
            raise TypeError("Validated text is made by release_if_valid alone")
        made = super().__new__(cls, text)
        object.__setattr__(made, "_seal", _MADE_HERE)
        return made

    def __init_subclass__(cls, **_: object) -> NoReturn:
        raise TypeError("Validated has no subclasses")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} of validated text cannot be set")

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Raise TypeError: what comes out of a pickle was validated by nobody."""
        raise TypeError("validated text is not pickled; validate it again where it is needed")


def is_validated(text: object) -> TypeGuard[Validated]:
    """Whether a text was released here. Sinks ask this, because `str.__new__(Validated, ...)` makes a lookalike.

    >>> is_validated("Good morning."), is_validated(str.__new__(Validated, "Good morning."))
    (False, False)
    """
    return type(text) is Validated and getattr(text, "_seal", None) is _MADE_HERE


def validate(text: str, context: ReplyContext) -> Verdict:
    """Judge a whole reply by all rules. Raises nothing: a rule that cannot run counts as broken.

    >>> from warmline.safety.levels import Level
    >>> validate("I promise to keep this between us.", ReplyContext(Level.NONE)).violations
    ('promise_of_secrecy',)
    """
    return _judge(text, context, RULES, 0)


def validate_sentence(sentence: str, before: str, context: ReplyContext) -> Verdict:
    """Judge the next sentence of a reply that is shown piece by piece, with the end of what was shown `before`.

    For the levels none and elevated only; raises ValueError above them, where the whole reply is held.
    Spans are places in `sentence`.
    """
    if context.level > 1:
        raise ValueError(f"level {context.level.label}: the whole reply is validated, not its sentences")
    lead = before[-BEFORE:] + " " if before.strip() else ""
    return _judge(lead + sentence, context, OF_A_SENTENCE, len(lead))


def release_if_valid(text: str, context: ReplyContext) -> Validated | None:
    """The reply as a type that sinks take, or None if it breaks a hard rule."""
    return Validated(text, _MADE_HERE) if validate(text, context).passed else None


def release_sentence_if_valid(sentence: str, before: str, context: ReplyContext) -> Validated | None:
    """The same for a sentence at the levels none and elevated; raises ValueError above them."""
    return Validated(sentence, _MADE_HERE) if validate_sentence(sentence, before, context).passed else None


def _judge(text: str, context: ReplyContext, rules: Mapping[str, Check], start: int) -> Verdict:
    """The verdict on `text[start:]`; what lies wholly before it was judged before."""
    found: list[Violation] = []
    degraded: list[str] = []
    for name, check in rules.items():
        try:
            found += check(text, context)
        except Exception:  # noqa: BLE001 - the outermost line of a detector: a broken rule must fail the reply
            degraded.append(name)
            found.append(Violation(name, start, len(text), "could not be checked", True))
    spans = [
        each._replace(start=max(0, each.start - start), end=each.end - start)
        for each in found
        if each.end > start or len(text) == start
    ]
    spans.sort(key=lambda each: (each.start, each.end, each.rule))
    hard = {each.rule for each in spans if each.hard}
    soft = {each.rule for each in spans if not each.hard} - hard
    return Verdict(tuple(sorted(hard)), tuple(sorted(soft)), tuple(spans), tuple(degraded))
