"""How a reply is worded, read by the validators' own readers; nothing of it is kept. English alone is read for feelings."""

import re

from warmline.safety.levels import Level
from warmline.safety.validate.advice import directive_or_actionable_advice
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.feelings import missing_acknowledgement, missing_emotion_name

# The rules look at crisis replies alone, so each is asked as it would be of one.
_READ_AS = ReplyContext(Level.HIGH)
_ASKS = re.compile(r"[?？؟]")  # noqa: RUF001 - the marks of other scripts ask too
_SENTENCE = re.compile(r"(?<=[.!?…])[\"')\]]*\s+|\n+")
_PERHAPS = r"(?:maybe|perhaps|it (?:could|might|may)(?: also)? be|i wonder if|could it be)"
_REFRAMES = re.compile(
    r"\b(?:an?other|a (?:different|gentler|kinder|new)) (?:way|side|angle|light|view|reading|perspective|look)\b"
    r"|\blook(?:ed|ing)? at (?:it|this|that) (?:differently|another way|from)\b"
    rf"|\b{_PERHAPS}\b[^.!?]*\b(?:says|means|meant|shows|is less about|was less about|isn't about|wasn't about|more about)\b"
    r"|\b(?:less|not so much) (?:a|about)\b[^.!?]*\b(?:than|as)\b|\bon the other hand\b|\bdoesn't (?:have to|need to) mean\b"
)
_SUGGESTS = re.compile(
    r"\b(?:you (?:could|might|may|can) (?:try|want to|also|always|maybe|perhaps|just)|you (?:should|ought to|need to|have to"
    r"|must|'d better)|why (?:don't|not) you|have you (?:tried|thought (?:of|about)|considered)|how about|what about \w+ing"
    r"|it (?:could|might|may) help to|i(?:'d| would) (?:suggest|recommend|advise)|my advice|if i were you|one small (?:step|thing))\b"
)
_ASKS_ADVICE = re.compile(
    r"\b(?:what (?:should|can|do|could|would) (?:i|you) (?:do|say|suggest|advise|recommend)|should i\b|any (?:advice|ideas|tips)"
    r"|how (?:do|can|should|could) i\b|what would you|help me (?:decide|figure|with)|(?:your|some) advice|do you think i)"
)


def acknowledges(reply: str) -> bool:
    """Whether it recognises what the user carries."""
    return not missing_acknowledgement(reply, _READ_AS)


def names_feeling(reply: str) -> bool:
    """Whether it names a feeling as the user's own."""
    return not missing_emotion_name(reply, _READ_AS)


def asks(text: str) -> bool:
    """Whether a sentence of it ends as a question."""
    return bool(_ASKS.search(text))


def num_questions(reply: str) -> int:
    """Sentences that ask.

    >>> num_questions("Oh no. What happened? Are you all right?")
    2
    """
    return sum(asks(sentence) for sentence in _SENTENCE.split(reply))


def advises(reply: str) -> bool:
    """Whether it suggests something to do, or tells the user to.

    >>> advises("You could try a walk."), advises("That sounds heavy.")
    (True, False)
    """
    return bool(_SUGGESTS.search(_plain(reply)) or directive_or_actionable_advice(reply, _READ_AS))


def reframes(reply: str) -> bool:
    """Whether it offers another way of seeing the matter.

    >>> reframes("Maybe it says how much you cared."), reframes("That sounds heavy.")
    (True, False)
    """
    return bool(_REFRAMES.search(_plain(reply)))


def asks_for_advice(said: str) -> bool:
    """Whether a user turn asks what to do.

    >>> asks_for_advice("What should I do?"), asks_for_advice("I don't know.")
    (True, False)
    """
    return bool(_ASKS_ADVICE.search(_plain(said)))


def _plain(text: str) -> str:
    return text.lower().replace("\u2019", "'")
