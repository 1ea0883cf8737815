"""The reply is in the user's language, where there is a pack that can tell."""

from warmline.safety.levels import Level
from warmline.safety.validate.context import ReplyContext, lead
from warmline.safety.validate.packs import LANGUAGES
from warmline.safety.validate.violations import Violation, missing
from warmline.safety.validate.words import read

MIN_WORDS = 5  # of a reply, below which nobody can tell
_LATIN = 0x250  # the first code point after the Latin letters


def language_mismatch(text: str, context: ReplyContext) -> list[Violation]:
    """From elevated on, a reply, or a sentence of it, that is clearly in another language than the user's."""
    if context.level < Level.ELEVATED or context.lang not in LANGUAGES:
        return []
    letters = [char for char in text if char.isalpha()]
    if letters and sum(ord(char) >= _LATIN for char in letters) > len(letters) / 2 and read(text).words:
        plain_letters = sum(char.isascii() for word in read(text).words for char in word)
        if plain_letters * 2 < len(letters):  # look-alikes are Latin after normalisation, another script is not
            return missing("language_mismatch", text, "is in another script")
    view = read(text)
    pieces = [view.words, *(view.words[each.first : each.last] for each in view.sentences)]
    for words in pieces:
        if len(words) < MIN_WORDS:
            continue
        for language in LANGUAGES:
            if language != context.lang and lead(words, language, context.lang):
                return missing("language_mismatch", text, f"is in {language}")
    return []
