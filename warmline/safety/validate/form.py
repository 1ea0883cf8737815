"""The shape of a reply: length and marks, numbers and links, repetition."""

import re
import unicodedata
from collections.abc import Iterator

from warmline.safety.levels import Level
from warmline.safety.validate.context import NUM_PREVIOUS, ReplyContext
from warmline.safety.validate.packs import pack
from warmline.safety.validate.violations import Violation, missing
from warmline.safety.validate.words import MAX_CHARS, View, plain_with_places, read

MAX_SENTENCES = 4
MAX_WORDS = 110
SOFT_OVERLAP, HARD_OVERLAP = 0.3, 0.6  # Jaccard of word trigrams with an earlier reply

_LIST = re.compile(r"(?m)^[ \t]*(?:[-*•‣◦·][ \t]+|\(?\d{1,2}[.)][ \t]|\(?[a-z][)][ \t]|#{1,6}[ \t]|>[ \t])")
_MARKDOWN = re.compile(r"\*\*|__|\]\(|(?<![\w*])\*[^*\n]{1,80}\*(?![\w*])|(?m:^\|.*\|$)|</?[a-z][^>\n]{0,40}>")
_EMOTICON = re.compile(r"(?<![\w:])(?:[:;=]-?[()dpo3/|]|<3|\^_\^|xd)(?!\w)")
_WEB = re.compile(
    r"(?:https?://|www\.)\S+|\b[\w.+-]{1,64}@[\w-]{1,64}\.\w{2,10}|(?<!\w)@\w{2,30}"
    r"|\b[\w-]{2,40}\.(?!\d)[a-z]{2,12}\b(?:/\S*)?"
)
_DIGITS = re.compile(r"\d+(?:[\s().,:/-]{0,2}\d+)*")
_PHONE = re.compile(r"\+?\d[\d\s().-]{1,18}\d")
_SPOKEN = re.compile(
    r"(?<![^ ])(?:(?:zero|oh|one|two|three|four|five|six|seven|eight|nine|double|triple) ){2,}"
    r"(?:zero|oh|one|two|three|four|five|six|seven|eight|nine)(?= )|(?<![^ ])(?:triple|double) "
    r"(?:zero|one|two|three|four|five|six|seven|eight|nine)(?= )|(?<![^ ])nine eleven(?= )"
)


def length_form(text: str, context: ReplyContext) -> list[Violation]:
    """At high and above: sentences, words, lists, headings, markdown, emoji. At every level: nothing, or too much."""
    if not text.strip():
        return missing("length_form", text, "says nothing")
    violations = []
    if len(text) > MAX_CHARS:
        violations.append(Violation("length_form", MAX_CHARS, len(text), "is longer than what the rules read", True))
    if context.level < Level.HIGH:
        return violations
    view = read(text)
    if len(view.sentences) > MAX_SENTENCES:
        start = view.places[view.sentences[MAX_SENTENCES].first][0]
        violations.append(Violation("length_form", start, len(text), f"has over {MAX_SENTENCES} sentences", True))
    if len(_SPACE.split(text.strip())) > MAX_WORDS:
        violations.append(Violation("length_form", 0, len(text), f"has over {MAX_WORDS} words", True))
    part = text[:MAX_CHARS]
    spelled, starts, ends = plain_with_places(part)
    for pattern, why in ((_LIST, "a list or heading"), (_MARKDOWN, "markdown"), (_EMOTICON, "an emoticon")):
        places = [(starts[each.start()], ends[each.end() - 1]) for each in pattern.finditer(spelled)]
        violations += [Violation("length_form", *place, why, True) for place in places]
    violations += [Violation("length_form", at, at + 1, "markdown", True) for at, c in enumerate(part) if c == "`"]
    violations += [Violation("length_form", at, at + 1, "an emoji", True) for at, c in enumerate(part) if _is_emoji(c)]
    return violations


_SPACE = re.compile(r"\s+")


def _is_emoji(char: str) -> bool:
    code = ord(char)
    return code > 0x2190 and (
        0x1F000 <= code <= 0x1FAFF or 0x2600 <= code <= 0x27BF or 0x2B00 <= code <= 0x2BFF or code == 0x2764
    )


def number_in_model_text(text: str, context: ReplyContext) -> list[Violation]:
    """Digits, spoken numbers to dial, links and handles: all at high and above; below, those near help words."""
    view = read(text)
    spelled, starts, ends = plain_with_places(text[:MAX_CHARS])

    def found_by(pattern: re.Pattern[str]) -> Iterator[tuple[int, int]]:
        for each in pattern.finditer(spelled):
            yield starts[each.start()], ends[each.end() - 1]

    found = [(place, "a link or handle") for place in found_by(_WEB) if not _is_missing_space(text, place)]
    found += [(view.place(span), "a number to dial in words") for span in view.find(_SPOKEN)]
    if context.level >= Level.HIGH:
        found += [(place, "a number") for place in found_by(_DIGITS)]
        found += [((at, at + 1), "a number") for at, c in enumerate(text[:MAX_CHARS]) if _is_other_digit(c)]
    else:
        found += [(place, "a number to dial") for place in found_by(_PHONE)]
        found = [(place, why) for place, why in found if _is_near_help(view, place)]
    return [Violation("number_in_model_text", *place, why, True) for place, why in found]


def _is_missing_space(text: str, place: tuple[int, int]) -> bool:
    """`heavy.You` is the end of a sentence."""
    before, _, after = text[place[0] : place[1]].partition(".")
    return before[-1:].islower() and after[:1].isupper()


def _is_other_digit(char: str) -> bool:
    return not char.isascii() and unicodedata.category(char) in {"Nd", "No", "Nl"}


def _is_near_help(view: View, place: tuple[int, int]) -> bool:
    """Whether the sentence at a place, or one beside it, has words about help."""
    pattern = pack("en").patterns["help_words"]
    for number, sentence in enumerate(view.sentences):
        if view.places[sentence.first][0] <= place[1] and place[0] <= view.places[sentence.last - 1][1]:
            near = view.sentences[max(0, number - 1) : number + 2]
            return any(pattern.search(view.part(each.first, each.last)) for each in near)
    return False


def repetition(text: str, context: ReplyContext) -> list[Violation]:
    """At high and above, a reply whose word trigrams were in one of the last three: soft, and hard over HARD_OVERLAP."""
    if context.level < Level.HIGH:
        return []
    own = _trigrams(text)
    overlaps = [_jaccard(own, _trigrams(reply)) for reply in context.previous_replies[-NUM_PREVIOUS:]]
    worst = max(overlaps, default=0.0)
    if worst <= SOFT_OVERLAP:
        return []
    return [Violation("repetition", 0, len(text), "repeats an earlier reply", worst > HARD_OVERLAP)]


def _trigrams(text: str) -> set[tuple[str, ...]]:
    words = read(text).words
    return {words[i : i + 3] for i in range(max(1, len(words) - 2))}


def _jaccard(one: set[tuple[str, ...]], other: set[tuple[str, ...]]) -> float:
    return len(one & other) / len(one | other)
