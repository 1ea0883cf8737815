"""Masking: what becomes a placeholder, what only looks like contact details, and that it always comes to an end."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.data.conversation import Turn
from warmline.data.masking import mask
from warmline.data.sources.reading import Rejection, Rejections, conversations

MASKED = {
    "See https://www.example.org/a/b?c=1#d for more.": "See [link] for more.",
    "See www.example.org.": "See [link].",
    "Sites (www.Example.com), http://example.net; and WWW.EXAMPLE.ORG!": "Sites ([link]), [link]; and [link]!",
    "It is at example.org/help-now, I think.": "It is at [link], I think.",
    "Try Example.com or sub.example.co.uk today.": "Try [link] or [link] today.",
    "A wiki has it: https://example.org/wiki/Sleep_(human).": "A wiki has it: [link].",
    "Earlwww.example.org": "Earl [link]",
    "Read http://example.org/home/There are tips.": "Read [link] There are tips.",
    "Read www.example.org.Then call.": "Read [link].Then call.",
    "Write to ana.b+c@mail.example.org, please.": "Write to [email], please.",
    "Call 555-010-0199 today": "Call [phone] today",
    "Call (555) 010-0199.": "Call [phone].",
    "1-800-555-0199, 1 800 555 0199, 800.555.0199 and 5552010199": "[phone], [phone], [phone] and [phone]",
    "Dial 1-800-555-TALK or 1-800-4-A-CHILD now": "Dial [phone] or [phone] now",
    "From abroad +44 20 7946 0958 or +1 (555) 010-0199": "From abroad [phone] or [phone]",
    "In Leeds 0113 496 0000 or (0113) 496 0000": "In Leeds [phone] or [phone]",
    "Just call 555-0199.": "Just call [phone].",
    "phone: 555-0199": "phone: [phone]",
    "Find me: @quiet_hours": "Find me: [handle]",
    "@quiet_hours@late_hours": "[handle]",
    "example.com555.010.0199": "[link] [phone]",
}
KEPT = [
    "In a crisis call 988, 911, 9-1-1, 111 or 112, 24/7.",
    "Samaritans answer on 116 123, Lifeline on 13 11 14.",
    "Text HOME to 741741 or SHOUT to 85258; press 1.",
    "Wait 10-15 minutes, 2-3 times a day, for 4-6 weeks.",
    "It cost $1,200 or $1200.50, not €1.000.000.",
    "From 1998 to 2019, in 2019-2020 and in 1931-1932.",
    "On 2020-01-15, 12/05/2019 or 5.12.2019 at 10:30.",
    "About 500-1000 words, 1,000,000 people, 3.14159265.",
    "Breathe in 4-7-8, that is 4, 7, 8.",
    "ISBN 978-0-00-000000-2 and order #1234567890",
    "It helps.Then rest... e.g. a walk, i.e. fresh air, vs.that.",
    "Dr. Who, Ph.D., M.Ed., at 5 p.m. @ home or @ 6",
    "Awwww... sweet! Ewwww...the smell. Awww.No.",
    "and/or him/her 50/50, U.S. A.M.",
    "Match point. Com on, the net. The info. Me.You.",
]


@pytest.mark.parametrize("text", MASKED)
def test_contact_details_and_links_become_placeholders(text: str) -> None:
    expected = MASKED[text]
    masked, counts = mask(text)
    assert masked == expected
    placeholders = {kind: expected.count(f"[{kind}]") for kind in ("link", "email", "phone", "handle")}
    assert counts == Counter({kind: count for kind, count in placeholders.items() if count})


@pytest.mark.parametrize("text", KEPT)
def test_other_numbers_and_dots_stay(text: str) -> None:
    assert mask(text) == (text, Counter())


@given(st.text(st.sampled_from("aZ1 .@-+/()www:com[]link\u00e9"), max_size=80))
def test_masking_twice_is_masking_once_and_adds_nothing_uncounted(text: str) -> None:
    masked, counts = mask(text)
    assert mask(masked).text == masked
    assert bool(counts) == (masked != text)


@pytest.mark.parametrize("piece", ["a.", "1", "1-", "www.", "(", "a@", "+1 ", "http://a/(", "@a", "0113 496 "])
def test_long_nonsense_takes_no_time(piece: str) -> None:
    mask(piece * 20_000)  # a pattern that backtracks would never return


def test_only_answers_are_masked_and_each_replacement_is_counted() -> None:
    rejections = Rejections()
    text = "Mine is 555-010-0199, see www.example.org"
    rows = [("row-1", [Turn("user", text), Turn("assistant", text, strategy=("Others",)), Turn("assistant", text)])]
    [found] = conversations("mine", "train", rows, lambda turns: turns, rejections)
    once = "Mine is [phone], see [link]"
    assert found.turns == (Turn("user", text), Turn("assistant", f"{once} {once}", strategy=("Others",)))
    assert rejections.counts("mine") == {"phone masked": 2, "link masked": 2}
    assert {entry._replace(reason="...") for entry in rejections.pieces} == {
        Rejection("mine", "train", "row-1", "...", None)  # never what was said
    }
    assert rejections.share("mine") == 0
