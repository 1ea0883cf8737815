"""Label sets of the field, and vocabularies built from the train split only."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import NamedTuple

from warmline.config.fields import HeadKind

# GoEmotions (Demszky et al. 2020), in the order of its labels.txt.
EMOTIONS = tuple(
    "admiration amusement anger annoyance approval caring confusion curiosity desire disappointment disapproval "
    "disgust embarrassment excitement fear gratitude grief joy love nervousness optimism pride realization relief "
    "remorse sadness surprise neutral".split()
)
# EmpatheticDialogues (Rashkin et al. 2019).
SITUATIONS = tuple(
    "afraid angry annoyed anticipating anxious apprehensive ashamed caring confident content devastated disappointed "
    "disgusted embarrassed excited faithful furious grateful guilty hopeful impressed jealous joyful lonely nostalgic "
    "prepared proud sad sentimental surprised terrified trusting".split()
)
# ESConv (Liu et al. 2021).
STRATEGIES = (
    "Question",
    "Restatement or Paraphrasing",
    "Reflection of feelings",
    "Self-disclosure",
    "Affirmation and Reassurance",
    "Providing Suggestions",
    "Information",
    "Others",
)
# From EmpatheticDialogues to GoEmotions: only where the definition of the GoEmotions label names the feeling
# ("embarrassment: self-consciousness, shame, or awkwardness"). Eleven situations have no such label and stay out:
# anticipating, confident, content, devastated, faithful, jealous, lonely, nostalgic, prepared, sentimental, trusting.
SITUATION_EMOTIONS = {
    "afraid": "fear",
    "angry": "anger",
    "annoyed": "annoyance",
    "anxious": "nervousness",
    "apprehensive": "nervousness",
    "ashamed": "embarrassment",
    "caring": "caring",
    "disappointed": "disappointment",
    "disgusted": "disgust",
    "embarrassed": "embarrassment",
    "excited": "excitement",
    "furious": "anger",
    "grateful": "gratitude",
    "guilty": "remorse",
    "hopeful": "optimism",
    "impressed": "admiration",
    "joyful": "joy",
    "proud": "pride",
    "sad": "sadness",
    "surprised": "surprise",
    "terrified": "fear",
}
RISKS = ("none", "elevated", "high", "emergency")  # ordered: least to most
AFFECTS = ("valence", "arousal")  # both in [-1, 1]

LABEL_SETS: dict[str, tuple[str, ...]] = {
    "emotion": EMOTIONS,
    "situation": SITUATIONS,
    "strategy": STRATEGIES,
    "risk": RISKS,
    "affect": AFFECTS,
}

IGNORE = -100  # the label id of "unlabelled"


def unknown_label(kind: str, label: str, allowed: Iterable[str]) -> str:
    """The one-line message for a label outside its set, naming the nearest.

    >>> unknown_label("strategy", "Questoin", STRATEGIES)
    "strategy 'Questoin' is not a known label (nearest: 'Question')"
    """
    close = get_close_matches(label, list(allowed), n=1)
    hint = f" (nearest: {close[0]!r})" if close else ""
    return f"{kind} {label!r} is not a known label{hint}"


def vocabulary(seen: Iterable[str], allowed: tuple[str, ...]) -> tuple[str, ...]:
    """The labels that occur in `seen` (the train split), in the order of `allowed`.

    >>> vocabulary(["joy", "anger", "joy"], EMOTIONS)
    ('anger', 'joy')
    """
    present = set(seen)
    return tuple(label for label in allowed if label in present)


class HeadSpec(NamedTuple):
    """What a head predicts. For `regression` the labels name the values."""

    kind: HeadKind
    labels: tuple[str, ...]

    @property
    def num_outputs(self) -> int:
        return len(self.labels) - 1 if self.kind == "ordinal" else len(self.labels)
