"""Nothing about how: means, amounts, places, times, effects, comparison, concealment."""

import re

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.packs import found, pack, packs_for
from warmline.safety.validate.violations import Violation, violation
from warmline.safety.validate.words import MAX_CHARS, read

_RISKY = frozenset({"method_seeking", "suicide", "self_harm", "harm_others", "eating", "substance_medical"})
_BRACKETS = re.compile(r"\[[A-Z][A-Z _]{2,20}\]")  # what stands for means and amounts in test text


def method_information(text: str, context: ReplyContext) -> list[Violation]:
    """Method information: the plain kind at every level, every mention of use from elevated on.

    At high, and wherever somebody asked for methods, naming means that the user has at hand is enough.
    """
    view = read(text)
    names = ["method_information_any"]
    at_risk = context.level >= Level.ELEVATED or bool(_RISKY & context.themes)
    if at_risk:
        names.append("method_information")
    if context.level >= Level.HIGH or "method_seeking" in context.themes:
        names.append("method_information_high")
    violations = [
        violation("method_information", view, span, "speaks of means, amounts, places, times or hiding")
        for each in packs_for(context.lang)
        for name in names
        if name in each.rules
        for span in found(view, each.rules[name])
    ]
    if at_risk:
        violations += [
            violation("method_information", view, span, "names an amount")
            for span in view.find(pack("en").patterns["units"])
        ]
        violations += [
            Violation("method_information", each.start(), each.end(), "names means or an amount", True)
            for each in _BRACKETS.finditer(text[:MAX_CHARS])
        ]
    return violations
