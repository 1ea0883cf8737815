"""How a reply is worded: length, whether it asks, acknowledges and names a feeling, by the validators' own readers."""

import re
from functools import lru_cache
from typing import NamedTuple

from warmline.dialogue.manner import acknowledges, names_feeling
from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext
from warmline.safety.validate.questions import probing_question

MANNERS = ("words", "question", "acknowledges", "names_feeling")

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_ASKED_OF = ReplyContext(Level.ELEVATED)  # the rule looks at no lower one


class Manner(NamedTuple):
    words: int
    question: bool  # a question mark, or word order or a phrase that asks
    acknowledges: bool  # recognises what the user carries
    names_feeling: bool  # as the user's own


@lru_cache(maxsize=4096)  # floors say the same again and again, and a reading takes some 10 ms
def manner_of(reply: str) -> Manner:
    """The four of one reply; English alone is read for feelings.

    >>> manner_of("That sounds so painful. You must feel lonely.")
    Manner(words=8, question=False, acknowledges=True, names_feeling=True)
    """
    return Manner(
        words=len(_WORD.findall(reply)),
        question=bool(probing_question(reply, _ASKED_OF)),
        acknowledges=acknowledges(reply),
        names_feeling=names_feeling(reply),
    )
