"""Contact details and links in answers become placeholders: a model must not learn them by heart.

Short helpline codes (988, 116 123, text 741741), years, ranges, prices and `24/7` stay as they are.
"""

import re
from collections import Counter
from typing import NamedTuple

TLD = r"(?:com|org|net|edu|gov|info|(?:co|org|ac|gov)\.uk|(?:com|org|net|gov)\.au)"
IN_LINK = r"[^\s<>\"“”¿¡]"
# `www.` may touch the word before it (people forget the space); "Awwww..." is no link.
LINK = re.compile(rf"(?:https?://|www\.(?=[a-z0-9-]+\.[a-z])){IN_LINK}+", re.IGNORECASE)
EMAIL = re.compile(r"(?<![\w.+%-])[\w.+%-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}", re.IGNORECASE)
DOMAIN = re.compile(rf"(?<![\w@.-])[a-z0-9-]+(?:\.[a-z0-9-]+)*\.{TLD}\b(?:[/?#]{IN_LINK}*)?", re.IGNORECASE)
HANDLE = re.compile(r"(?<![\w@/.])(?:@[a-z]\w{2,29}\b)+", re.IGNORECASE)  # several that touch are one
PHONE = re.compile(
    r"""
    (?=[+(\d])(?<!\d)(?<![\d$€£#+][.,/-])(?<![$€£#+])  # the first test is for speed
    (?:
        \+(?=(?:[ ().-]{0,2}\d){8})\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}           # +44 20 7946 0958
      | (?:\+?1[ .-]?)?(?:\(\d{3}\)|\d{3})[ .-]?\d{3}[ .-]\d{4}                  # (555) 010-0199, 1-800-555-0199
      | (?:1[ .-])?8(?:00|33|44|55|66|77|88)[ .-](?=[\d-]*[A-Z])[\dA-Z-]{5,12}\b # 1-800-555-TALK, 1-800-4-A-CHILD
      | \(?0\d{2,4}\)?[ -]\d{3,4}[ -]?\d{3,4}                                    # 0161 496 0000
      | [2-9]\d{2}[2-9]\d{6}                                                     # 5552010199
      | (?:(?<=\b[Cc]all[ ])|(?<=\b[Tt]ext[ ])|(?<=[Pp]hone[ ])|(?<=[Pp]hone:[ ])|(?<=[Tt]el:[ ]))\d{3}[-.]\d{4}
    )
    (?!\w)(?![.,/-]?\d)
    """,
    re.VERBOSE,
)
# A link swallows the sentence that follows without a space: `.../home/There are ...`, `....org.Hope ...`
JOINED = re.compile(r"(?:/\.?|\.(?:[a-z]{2,3}|html|info|aspx)[/.)]*)(?=[A-Z][a-z]*[,.!?]?$)")
CLOSING = ".,;:!?'*_~\u2019"


class Masked(NamedTuple):
    text: str
    counts: Counter[str]  # by kind: link, email, phone, handle


def mask(text: str) -> Masked:
    """`text` with every link, address, phone number and handle replaced, and how many of each.

    >>> mask("Call (555) 010-0199. In a crisis call 988, 24/7.")
    Masked(text='Call [phone]. In a crisis call 988, 24/7.', counts=Counter({'phone': 1}))
    """
    counts: Counter[str] = Counter()
    # Links first: digits inside one are no phone number. Bare domains after the phone number that one may touch.
    for kind, pattern in (("link", LINK), ("email", EMAIL), ("phone", PHONE), ("link", DOMAIN), ("handle", HANDLE)):
        text = _replaced(text, kind, pattern, counts)
    return Masked(text, counts)


def has_address(text: str) -> bool:
    """Whether a link, a bare domain or an e-mail address stands in `text`.

    >>> has_address("at example.org/A.Page"), has_address("at home.Then")
    (True, False)
    """
    return any(pattern.search(text) for pattern in (LINK, EMAIL, DOMAIN))


def _replaced(text: str, kind: str, pattern: re.Pattern[str], counts: Counter[str]) -> str:
    parts: list[str] = []
    done = 0
    for match in pattern.finditer(text):
        end = match.start() + (_link_length(match.group()) if kind == "link" else len(match.group()))
        before, after = text[done : match.start()], text[end : end + 1]
        # the placeholder is a word of its own
        parts += [before, " " if before[-1:].isalnum() else "", f"[{kind}]", " " if after.isalnum() else ""]
        done = end
        counts[kind] += 1
    return "".join(parts) + text[done:]


def _link_length(link: str) -> int:
    """How much of a match is the link: not the punctuation that closes it, not a sentence that touches it.

    >>> [link[:_link_length(link)] for link in ("www.a.org/b_(c)).", "http://a.org/home/There", "www.a.org).To")]
    ['www.a.org/b_(c)', 'http://a.org/home/', 'www.a.org']
    """
    joined = JOINED.search(link)
    if joined:
        link = link[: joined.end()]
    while link:
        unopened = any(link.endswith(close) and link.count(open_) < link.count(close) for open_, close in ("()", "[]"))
        if not unopened and link[-1] not in CLOSING:
            break
        link = link[:-1]
    return len(link)
