"""The floor of a language model: it reads nothing, and knows only how often each word stands in train's replies."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

PIECE = re.compile(r"\s?\w+|\s?[^\w\s]+|\s+")  # a word or signs with the space before them: together the whole reply
END = ""  # the piece that ends a reply, as the stop token does
NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class WordFloor:
    """Words by their frequency; a word that train does not have is spelled, letters by theirs.

    What was never seen weighs together as much as the number of kinds that were (Witten and Bell 1991, method C).
    """

    words: Mapping[str, int]
    characters: Mapping[str, int]  # of the words, one END a word

    def losses(self, replies: Iterable[str]) -> list[float]:
        """-ln p of each reply with its end, nats.

        >>> floor = fit_words(["Oh no.", "Oh dear."])
        >>> [round(loss, 1) for loss in floor.losses(["Oh no.", "Oh my."])]
        [8.2, 40.9]
        """
        of_word = _surprise(self.words)
        of_character = _surprise(self.characters)

        def loss(piece: str) -> float:
            if piece in self.words:
                return of_word[piece]
            spelled = sum(of_character.get(each, of_unseen) for each in (*piece, END))
            return of_word[None] + spelled

        of_unseen = of_character[None] + math.log(NUM_CODE_POINTS)
        return [sum(map(loss, (*PIECE.findall(reply), END))) for reply in replies]


def fit_words(replies: Iterable[str]) -> WordFloor:
    """Count train's replies."""
    words: Counter[str] = Counter()
    for reply in replies:
        words.update((*PIECE.findall(reply), END))
    characters: Counter[str] = Counter()
    for word in words.keys() - {END}:
        characters.update({each: words[word] * number for each, number in Counter((*word, END)).items()})
    return WordFloor(dict(words), dict(characters))


def _surprise(counts: Mapping[str, int]) -> dict[str | None, float]:
    """-ln of each key's share, and under None that of all which was never seen."""
    total = sum(counts.values()) + max(1, len(counts))
    return {key: math.log(total / count) for key, count in counts.items()} | {
        None: math.log(total / max(1, len(counts)))
    }
