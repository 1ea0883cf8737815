"""What a rule reports, and the shape of a rule."""

from collections.abc import Callable
from typing import NamedTuple

from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.words import Span, View


class Violation(NamedTuple):
    """One place where a reply breaks a rule. It holds no text of the reply."""

    rule: str
    start: int  # code points in the reply
    end: int  # excluded
    why: str
    hard: bool  # blocks the reply


Check = Callable[[str, ReplyContext], list[Violation]]


def violation(rule: str, view: View, span: Span, why: str, *, hard: bool = True) -> Violation:
    """The violation at some words."""
    start, end = view.place(span)
    return Violation(rule, start, end, why, hard)


def missing(rule: str, text: str, why: str) -> list[Violation]:
    """A violation of the whole reply, for what it lacks."""
    return [Violation(rule, 0, len(text), why, True)]
