"""What a sentence of a reply says, by its wording: a small linear model for what no phrase covers. numpy, one file.

It adds to the phrases of a rule and never lifts what they block. It reads English at `elevated` and above; fitted by
`python -m warmline.safety.validate.fit_wording` from sentences that the project wrote.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from importlib.resources import files

import numpy as np

from warmline.safety.grams import char_grams, word_grams
from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext, known_stems, stem
from warmline.safety.validate.violations import Check, Violation, violation
from warmline.safety.validate.words import Span, View, read
from warmline.safety.windows import FIRST, LAST

NUM_CHARS, NUM_WORDS = 1 << 14, 1 << 15  # hashed features of each kind
SHARE = (1.0, 1.5)  # length of each kind's part of a sentence's features
MIN_WORDS = 5  # of a sentence that breaks a rule by its wording alone
BROKEN: Mapping[str, Level] = {  # rules that a sentence may break by its wording, and the level from which it counts
    "probing_question": Level.HIGH,
    "invalidating": Level.ELEVATED,
    "fabricated_memory": Level.ELEVATED,
    "directive_or_actionable_advice": Level.HIGH,
    "diagnosis": Level.ELEVATED,
    "promise_of_secrecy": Level.ELEVATED,
    "human_claim": Level.ELEVATED,
    "unsafe_validation": Level.ELEVATED,
    "dependency_hook": Level.ELEVATED,
    "abandonment": Level.ELEVATED,
    "no_suicide_contract": Level.ELEVATED,
    "delusion_confirmed": Level.ELEVATED,
    "ed_content": Level.ELEVATED,
}
GIVEN = ("ack", "support", "urgent")  # what a sentence may contribute
LABELS = (*BROKEN, *GIVEN)
TOLD = ("fabricated_memory", "diagnosis")  # rules that nothing breaks which the user said
TURNED: Mapping[str, set[str]] = {  # words with which a sentence speaks of the thing and does not do it
    "diagnosis": {"whether", "not", "no", "never", "if"},
    "no_suicide_contract": {"not", "no", "never", "without"},
}
LONG = 6  # letters of a word that shows what a sentence is about
THEMES = {"delusion_confirmed": "psychosis_mania", "ed_content": "eating"}  # rules that hold in such talk only


@dataclass(frozen=True)
class Wording:
    """Weights, and for each label the log-odds from which it counts."""

    weight_DL: np.ndarray
    bias_L: np.ndarray
    limit_L: np.ndarray

    def logits(self, words: Sequence[str]) -> np.ndarray:
        """Log-odds of each label for one sentence, shape (labels,)."""
        index, value = features(words)
        return value @ self.weight_DL[index] + self.bias_L


def features(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashed characters and words of a sentence: where, and how much."""
    marked = [FIRST, *words, LAST]
    kinds = char_grams(marked, NUM_CHARS).all(), NUM_CHARS + word_grams(marked, NUM_WORDS).all()
    kinds = tuple(np.unique(kind) for kind in kinds)
    values = [np.full(len(kind), share / np.sqrt(max(len(kind), 1))) for kind, share in zip(kinds, SHARE, strict=True)]
    return np.concatenate(kinds), np.concatenate(values).astype(np.float32)


@cache
def load_wording() -> Wording | None:
    """The shipped weights; None where they are missing or broken: the phrases go on without them."""
    try:
        with files("warmline.safety.validate").joinpath("wording.npz").open("rb") as file:
            stored = np.load(file, allow_pickle=False)
            weight_DL = np.ascontiguousarray(stored["weight"].astype(np.float32))
            found = Wording(weight_DL, stored["bias"], stored["limit"])
    except (OSError, ValueError, KeyError):
        return None
    return found if found.weight_DL.shape == (NUM_CHARS + NUM_WORDS, len(LABELS)) else None


@lru_cache(maxsize=8)  # every rule reads the same reply; few, so that text does not stay in memory
def margins(line: str) -> np.ndarray | None:
    """By how much each sentence passes each label's limit, in log-odds, shape (sentences, labels). `line` of a `View`."""
    wording = load_wording()
    sentences = [part.split() for part in line.split("|") if part.strip()]
    if wording is None or not sentences:
        return None
    return np.stack([wording.logits(words) for words in sentences]) - wording.limit_L


def says(label: str, view: View, context: ReplyContext, *, least: float = 0.0) -> list[Span]:
    """The sentences that say it by their wording, `least` log-odds over the limit.

    Where wording cannot be read, all sentences may say it (`least` under 0) and none is known to.
    """
    found = margins(view.line) if context.lang == "en" else None
    if found is None or len(found) != len(view.sentences):
        return [Span(each.first, each.last) for each in view.sentences] if least < 0 else []
    passed_S = found[:, LABELS.index(label)] >= least
    return [
        Span(each.first, each.last)
        for each, yes in zip(view.sentences, passed_S, strict=True)
        if yes and not (label in GIVEN and each.mark == "?")
    ]


def worded(rule: str, check: Check) -> Check:
    """A rule's check with what its sentences say by their wording."""
    return partial(_checked, rule, check)


def _checked(rule: str, check: Check, text: str, context: ReplyContext) -> list[Violation]:
    violations = check(text, context)
    theme = THEMES.get(rule)
    if context.level < BROKEN[rule] or (theme and theme not in context.themes) or violations:
        return violations
    view = read(text)
    allowed = (
        {*says("urgent", view, context)} if context.level == Level.EMERGENCY and rule.startswith("directive") else ()
    )
    why = "is worded like replies that break this rule"
    found = (span for span in says(rule, view, context) if span.last - span.first >= MIN_WORDS and span not in allowed)
    return [
        violation(rule, view, span, why)
        for span in found
        if not TURNED.get(rule, set()) & {*view.words[span.first : span.last]}
        and not (rule in TOLD and _was_told(view, span, context))
    ]


def _was_told(view: View, span: Span, context: ReplyContext) -> bool:
    """Whether a sentence takes up a longer word of the user's own, or of the memory's."""
    known = known_stems(context)
    return any(len(word) >= LONG and stem(word) in known for word in view.words[span.first : span.last])
