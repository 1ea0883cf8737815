"""What a message says however it is spelled: invisible characters, look-alikes, leet, spaced and masked letters."""

import re
import unicodedata
from functools import lru_cache

EDGE = 8_000  # characters read of each end of a message
NUM_PASSAGES = 20  # read of the middle of a longer one, around words that may matter
PASSAGE = 300  # characters on each side of such a word
REMEMBERED = 4_096  # words whose repair is kept in memory

# Letters of other scripts that look like Latin ones, after lower-casing (a part of Unicode's confusables, UTS 39).
_LOOK_ALIKES = {
    "a": "аɑαᴀ",
    "b": "ьвʙβ",
    "c": "сϲᴄ",
    "d": "ԁᴅɗ",
    "e": "еєэᴇε",
    "f": "ғꜰƒ",
    "g": "ɡɢց",
    "h": "һнʜհ",
    "i": "іıɩιɪӏ",
    "j": "јᴊʝ",
    "k": "кᴋκ",
    "l": "ⅼʟɭ",
    "m": "мᴍ",
    "n": "пɴռη",
    "o": "оοᴏσօ",
    "p": "рρᴘ",
    "q": "ԛզ",
    "r": "гʀɾ",
    "s": "ѕꜱʂ",
    "t": "тᴛτ",
    "u": "цυᴜսμ",
    "v": "ѵνᴠ",
    "w": "ԝωᴡшɯ",
    "x": "хχ×",
    "y": "уүʏγ",
    "z": "ᴢʐ",
}
_CONFUSABLE = {ord(other): latin for latin, others in _LOOK_ALIKES.items() for other in others}
# Letters in filled circles and squares, which NFKC leaves alone.
_CONFUSABLE |= {start + i: chr(ord("a") + i) for start in (0x1F150, 0x1F170) for i in range(26)}
_FLAG_LETTERS = {0x1F1E6 + i: chr(ord("a") + i) for i in range(26)}

_EMOJI = {
    "pill": "💊",
    "blade": "🔪🗡🪒🪓",
    "coffin": "⚰🪦⚱",
    "skull": "💀☠",
    "gun": "🔫",
    "noose": "🪢➰",
    "cry": "😭😢😞😔😥💔🥺",
    "laugh": "😂🤣😆😅😹",
    "blood": "🩸",
    "wave": "👋",
    "dove": "🕊👼😇",
    "bridge": "🌉",
}
_EMOJI_WORD = {ord(sign): f" emo_{word} " for word, signs in _EMOJI.items() for sign in signs}
_QUOTES = str.maketrans("‘’‚‛`´ʼ“”„‟«»", "'" * 7 + '"' * 6)
_FLAGS = re.compile("[\U0001f1e6-\U0001f1ff\\s]{3,}")
_TAGS = re.compile("[\U000e0020-\U000e007e]+")
_LETTERS = re.compile(r"[^\W\d_]+")
_SPACED = re.compile(r"(?<![^\W_])(?:[a-z0-9@$!][ .\-_·*|/\\]{1,3}){2,}[a-z0-9@$!](?![^\W_])")
_BETWEEN = re.compile(r"[ .\-_·*|/\\]+")
_REPEAT = re.compile(r"(.)\1{2,}")
_LEET = str.maketrans("03457@$+€", "oeastaste")
_LEET_SIGNS = re.compile(r"[0-9@$!+|€]")
_LETTER = re.compile(r"[a-z]")
_WORD = re.compile(r"[^\W\d_]{3,30}")


def plain(text: str) -> str:
    """The text in lower-case Latin letters without accents or invisible signs; emoji that matter become words.

    Idempotent. Raises nothing, whatever the code points (lone surrogates too).

    >>> plain("I w\u200ba\u200bnt to d\u0456e 💊").split()
    ['i', 'want', 'to', 'die', 'emo_pill']
    """
    if not text.isascii():
        text = " ".join([text, *("".join(chr(ord(c) - 0xE0000) for c in hidden) for hidden in _TAGS.findall(text))])
        text = _FLAGS.sub(lambda found: found[0].translate(_FLAG_LETTERS), text)
        text = unicodedata.normalize("NFKC", text).translate(_EMOJI_WORD).translate(_QUOTES)
        text = _without_marks(text.lower())
        text = _without_marks(_LETTERS.sub(_latin_if_confusable, text))
    return text.lower().replace("\r\n", "\n").replace("\r", "\n")


def _without_marks(text: str) -> str:
    """Without format characters, and without marks over Latin letters."""
    kept: list[str] = []
    latin = False
    for char in unicodedata.normalize("NFD", text):
        if char.isascii():
            kept.append(char)
            latin = True
            continue
        category = unicodedata.category(char)
        if category == "Cf" or 0xFE00 <= ord(char) <= 0xFE0F or category == "Me":
            continue
        if category == "Mn":
            if not latin:
                kept.append(char)
            continue
        latin = char < "\u0250"
        kept.append(char)
    return "".join(kept)


def _latin_if_confusable(found: re.Match[str]) -> str:
    """A word that mixes scripts, or whose every letter has a Latin twin, in Latin letters; any other word as it is."""
    word = found[0]
    if word.isascii():
        return word
    latin = word.translate(_CONFUSABLE)
    return latin if latin.isascii() else word


def passages(text: str, triggers: frozenset[str]) -> str:
    """The part of a long text that is read: both ends, and the surroundings of words that may matter between them."""
    if len(text) <= 2 * EDGE:
        return text
    kept, at = [text[:EDGE]], EDGE
    for found in _WORD.finditer(text, EDGE, len(text) - EDGE):
        if found.start() < at or found[0].lower() not in triggers:
            continue
        kept.append(text[max(at, found.start() - PASSAGE) : found.end() + PASSAGE])
        at = found.end() + PASSAGE
        if len(kept) > NUM_PASSAGES:
            break
    return "\n".join([*kept, text[-EDGE:]])


def joined(text: str) -> str:
    """Single letters put together: `k i l l` -> `kill`.

    >>> joined("i want to d-i-e. ok")
    'i want to die. ok'
    """
    return _SPACED.sub(lambda found: _BETWEEN.sub("", found[0]), text)


class Speller:
    """Repairs words that no dictionary knows, towards words that matter.

    `known`: every ordinary word. `risk`: the words that rules look for.
    """

    def __init__(self, known: frozenset[str], risk: frozenset[str]) -> None:
        self._known = known
        self._risk = risk
        self._masked = [word for word in risk if 4 <= len(word) <= 12]
        self._near: dict[str, set[str]] = {}
        self._bare: dict[str, str] = {}
        for word in sorted(risk):
            if len(word) >= 4:
                for variant in _deletions(word):
                    self._near.setdefault(variant, set()).add(word)
            if len(bare := _consonants(word)) >= 3:
                self._bare.setdefault(bare, word)
        self.repair = lru_cache(REMEMBERED)(self._repair)

    def _repair(self, word: str) -> tuple[str, ...] | None:
        """The words that an unknown `word` stands for; None when it is known or beyond repair."""
        if word in self._known or word in self._risk or len(word) > 200:
            return None
        for candidate in (*_unleet(word), *_squeezed(word)):
            if candidate in self._known or candidate in self._risk:
                return (candidate,)
            if len(candidate) >= 10 and (parts := self._split(candidate)):
                return parts
        if any(sign in word for sign in "*#_") and (found := self._unmask(word)):
            return (found,)
        squeezed = _squeezed(word)[-1] if _squeezed(word) else word
        near = self._nearest(squeezed)
        return (near,) if near else None

    def _unmask(self, word: str) -> str | None:
        pattern = re.compile("".join("." if sign in "*#_" else re.escape(sign) for sign in word))
        if sum(sign.isalpha() for sign in word) < 2:
            return None
        return next((each for each in self._masked if pattern.fullmatch(each)), None)

    def _nearest(self, word: str) -> str | None:
        """A risk word at Damerau distance 1 with the same first letter, or the one that it is without its vowels."""
        if not word.isalpha():
            return None
        if len(word) >= 3 and word == _consonants(word):
            return self._bare.get(word)
        if len(word) < 4:
            return None
        found = {each for variant in _deletions(word) for each in self._near.get(variant, ())}
        close = sorted(each for each in found if each[0] == word[0] and _is_near(word, each))
        return close[0] if close else None

    def _split(self, word: str) -> tuple[str, ...] | None:
        """`iwanttodie` -> i want to die: the split into known words with the fewest parts."""
        best: list[tuple[float, int] | None] = [(0.0, 0)] + [None] * len(word)
        for end in range(1, len(word) + 1):
            for start in range(max(0, end - 14), end):
                before, part = best[start], word[start:end]
                if before is None or not (part in self._known or part in self._risk):
                    continue
                cost = before[0] + (1.0 if len(part) > 1 or part in "ia" else 4.0) + 3.0 / len(part)
                if best[end] is None or cost < best[end][0]:  # type: ignore[index]
                    best[end] = (cost, start)
        if best[-1] is None:
            return None
        parts: list[str] = []
        at = len(word)
        while at:
            start = best[at][1]  # type: ignore[index]
            parts.append(word[start:at])
            at = start
        return tuple(reversed(parts)) if len(parts) <= len(word) / 2 else None


def _unleet(word: str) -> tuple[str, ...]:
    """Readings of digits and signs as letters; 1, ! and | are i or l."""
    if not _LEET_SIGNS.search(word) or not _LETTER.search(word):
        return (word,) if len(word) >= 10 else ()
    letters = word.translate(_LEET)
    return tuple(dict.fromkeys(re.sub(r"[1!|]", sign, letters) for sign in "il"))


def _squeezed(word: str) -> tuple[str, ...]:
    """Letters repeated three times or more, twice and once."""
    if not _REPEAT.search(word):
        return ()
    return _REPEAT.sub(r"\1\1", word), _REPEAT.sub(r"\1", word)


def _consonants(word: str) -> str:
    return re.sub(r"[aeiou]", "", word)


def _deletions(word: str) -> set[str]:
    return {word} | {word[:i] + word[i + 1 :] for i in range(len(word))}


def _is_near(left: str, right: str) -> bool:
    """Whether one insertion, deletion, substitution or swap of neighbours makes one of the other."""
    if abs(len(left) - len(right)) > 1:
        return False
    i = 0
    while i < min(len(left), len(right)) and left[i] == right[i]:
        i += 1
    a, b = left[i:], right[i:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
