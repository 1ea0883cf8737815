"""Reading EQ-Bench answers: what each parser takes, what it refuses and says, and that neither is ever fooled or slow."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warmline.evaluate.eq_bench_parsing import (
    read_sections,
    reference_pairs,
    reference_parse,
    tolerant_parse,
    tolerant_sections,
)

NAMES = ("Anger", "Joy", "Pity", "Calm")
PLAIN = "Anger: 7\nJoy: 3\nPity: 2\nCalm: 1"
REST = "\nJoy: 3\nPity: 2\nCalm: 1"

FORMS = {
    "plain": PLAIN,
    "bold": "**Anger**: 7\n**Joy:** 3\n*Pity*: *2*\n__Calm__: **1**",
    "no space": "Anger:7\nJoy:3\nPity:2\nCalm:1",
    "decimals": "Anger: 7.0\nJoy: 3.00\nPity: 2.0\nCalm: 1.0",
    "one line": "Anger: 7, Joy: 3, Pity: 2, Calm: 1.",
    "one line, no commas": "Anger: 7 Joy: 3 Pity: 2 Calm: 1",
    "commas, no space": "Anger:7,Joy:3,Pity:2,Calm:1",
    "JSON": '{"Anger": 7, "Joy": 3, "Pity": "2", "Calm": 1}',
    "JSON in a fence": '```json\n{\n  "Anger": 7,\n  "Joy": 3,\n  "Pity": 2,\n  "Calm": 1\n}\n```',
    "table": "| Emotion | Score |\n|:--|--:|\n| Anger | 7 |\n| Joy | 3 |\n| Pity | 2 |\n| Calm | 1 |",
    "numbered table": "| 1 | Anger | 7 |\n| 2 | Joy | 3 |\n| 3 | Pity | 2 |\n| 4 | Calm | 1 |",
    "bullets": "- Anger: 7\n* Joy: 3\n• Pity: 2\n+ Calm: 1",
    "numbered": "1. Anger: 7\n2) Joy: 3\n(c) Pity: 2\n4. **Calm**: 1",
    "dashes": "Anger - 7\nJoy – 3\nPity — 2\nCalm - 1",
    "equals": "Anger = 7\nJoy=3\nPity -> 2\nCalm → 1",
    "spaces": "Anger 7\nJoy\t3\n- Pity 2\nCalm 1/10",
    "case": "anger: 7\nJOY: 3\nPiTy: 2\ncalm: 1",
    "out of ten": "Anger: 7/10\nJoy: 3 / 10\nPity: 2 out of 10\nCalm: 1 of 10",
    "brackets": "Anger: <7>\nJoy: (3)\nPity: [2]\nCalm: 1",
    "reordered": "Calm: 1\nPity: 2\nJoy: 3\nAnger: 7",
    "repeated": f"{PLAIN}\n\nSo again: Anger: 7, Joy: 3, Pity: 2, Calm: 1",
    "reasons": "Anger: 7 (he lost)\nJoy: 3 - he hides it\nPity: 2, mostly for her\nCalm: 1. It is late",
    "preamble": f"Sure! On a scale of 0-10, at 10:30, here they are:\n{PLAIN}\n[End of answer]",
    "place-holders first": f"Anger: <score>\nJoy: <score>\n{PLAIN}",
    "emoji": "😡 Anger: 7\n😀 Joy: 3\nPity: 2\nCalm: 1",
    "full-width colon": "Anger：7\nJoy： 3\nPity：2\nCalm：1",
    "no-break space and CRLF": "Anger:\xa07\r\nJoy:\xa03\r\nPity: 2\r\nCalm: 1",
}
REFUSED = {
    "range": ("Anger: 7-8" + REST, "followed by"),
    "range in words": ("Anger: 7 to 8" + REST, "followed by 'to'"),
    "range with a dash": ("Anger: 7–8" + REST, "more than one number"),
    "change": ("Anger: 7 → 8" + REST, "followed by"),
    "above 10": ("Anger: 11" + REST, "not within 0 to 10"),
    "far above 10": ("Anger: 100" + REST, "not within 0 to 10"),
    "many digits": (f"Anger: {'9' * 5000}" + REST, "not a number"),
    "negative": ("Anger: -3" + REST, "not one number"),
    "maybe negative": ("Anger -3" + REST, "no score for Anger"),
    "less than": ("Anger: <5" + REST, "not one number"),
    "about": ("Anger: ~5" + REST, "not one number"),
    "percent": ("Anger: 70%" + REST, "not within"),
    "small percent": ("Anger: 7%" + REST, "followed by '%'"),
    "out of 100": ("Anger: 7/100" + REST, "not out of 10"),
    "out of 5": ("Anger: 4 out of 5" + REST, "not out of 10"),
    "comma number": ("Anger: 7,5" + REST, "'7,5' for Anger is not a number"),
    "ordinal": ("Anger: 7th" + REST, "not a number"),
    "two columns": ("| Anger | 7 | 8 |" + REST, "more than one number"),
    "a word after": ("Anger: 7 is too high" + REST, "followed by 'is'"),
    "missing": ("Anger: 7\nJoy: 3\nPity: 2", "no score for Calm"),
    "words for numbers": ("Anger: high" + REST, "no score for Anger"),
    "extra": (f"{PLAIN}\nSadness: 4", "'Sadness' is not an emotion"),
    "extra without separator": ("Sadness 4\nAnger 7\nJoy 3\nPity 2\nCalm 1", "something that is not an emotion"),
    "total": (f"{PLAIN}\nTotal: 13", "'Total' is not an emotion"),
    "negated": ("Not Anger: 7" + REST, "'Not Anger' is not an emotion"),
    "another emotion": ("Anger: 7\nJoy: 3\nSelf-Pity: 2\nCalm: 1", "'Self-Pity' is not an emotion"),
    "two at once": ("Joy/Anger: 7" + REST, "stands before Anger"),
    "two values": (f"{PLAIN}\nAnger: 8", "Anger has two different scores"),
    "two values in JSON": ('{"Anger": 7, "Joy": 3, "Pity": 2, "Calm": 1, "Anger": 8}', "two different scores"),
    "second thoughts": (f"{PLAIN}\nActually, make Anger 8", "stands before Anger"),
    "another number beside it": (f"{PLAIN}\nAnger, 8", "two different numbers"),
    "revised in brackets": (f"Anger (revised): 9\n{PLAIN}", "belongs to no emotion"),
    "numbers before names": ("7 | Anger | 3 | Joy | 2 | Pity | 1 | Calm | 5", "not clear"),
    "numbers on the left": ("| 7 | Anger |\n| 3 | Joy |\n| 2 | Pity |\n| 1 | Calm |", "no score for Anger"),
    "empty": ("", "the answer is empty"),
    "white space": (" \n\t ", "the answer is empty"),
    "prose": ("Ada is angry and not at all calm.", "no score for Anger, Joy, Pity, Calm"),
    "French": ("Colère : 7\nJoie : 3\nPitié : 2\nCalme : 1", "'Colère' is not an emotion"),
    "Japanese": ("怒り: 7\n喜び: 3", "'怒り' is not an emotion"),
    "Arabic digits": ("Anger: ٧\nJoy: ٣\nPity: ٢\nCalm: ١", "no score for Anger"),
    "lone surrogate": ("Anger: 7 \ud800" + REST, "followed by"),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_tolerant_parser_reads_every_common_form(form: str) -> None:
    assert tolerant_parse(FORMS[form], NAMES) == ((7, 3, 2, 1), None)


@pytest.mark.parametrize("form", REFUSED)
def test_the_tolerant_parser_refuses_what_is_in_doubt_and_says_why(form: str) -> None:
    text, why = REFUSED[form]
    reading = tolerant_parse(text, NAMES)
    assert reading.values is None
    assert why in str(reading.why)
    assert len(str(reading.why)) < 120


def test_decimals_are_kept() -> None:
    assert tolerant_parse("Anger: 7.5\nJoy: 0.25\nPity: 10.0\nCalm: 0", NAMES).values == (7.5, 0.25, 10, 0)


@pytest.mark.parametrize(
    "big", ["a", ":", ": ", "Anger: 7 ", "1a", "First pass scores: ", "Revised scores:\n", " ", "| "]
)
def test_100_kb_are_read_in_a_moment(big: str) -> None:
    text = "Anger:" + big * (100_000 // len(big))
    start = time.perf_counter()
    read_sections(text)
    tolerant_sections(text)
    assert reference_parse(text, NAMES).values is None
    assert tolerant_parse(text, NAMES).values is None
    assert time.perf_counter() - start < 20  # measured 0.3 to 2; a quadratic pass takes minutes


def test_100_kb_of_talk_around_an_answer_are_read() -> None:
    text = "It is a long story. " * 2500 + "\n" + PLAIN + "\n" + "And so on. " * 5000
    assert reference_parse(text, NAMES).values == tolerant_parse(text, NAMES).values == (7, 3, 2, 1)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet=st.sampled_from("aZ_1٣é:: \n\t-*7"), max_size=60))
def test_the_linear_reader_of_pairs_equals_the_published_pattern(text: str) -> None:
    assert reference_pairs(text) == dict(re.findall(r"(\w+):\s+(\d+)", text))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("**Anger**: 7\nJoy: 3\nPity: 2\nCalm: 1", "found 3"),
        ("Anger:7\nJoy:3\nPity:2\nCalm:1", "found 0"),
        ("", "the answer is empty"),
        (f"{PLAIN}\nTotal: 13", "found 5"),
        ("anger: 7\nJoy: 3\nPity: 2\nCalm: 1", "no score for Anger"),
        (f"Anger: {'9' * 400}{REST}", "more than 15 digits"),
    ],
)
def test_what_the_reference_parser_misses(text: str, why: str) -> None:
    reading = reference_parse(text, NAMES)
    assert reading.values is None
    assert why in str(reading.why)


def test_the_reference_parser_cuts_decimals_and_takes_any_number() -> None:
    assert reference_parse("Anger: 7.5\nJoy: 30\nPity:\n2\nCalm: 1 Calm: 4", NAMES).values == (7, 30, 2, 4)


BOTH = (
    "First pass scores:\nAnger: 1\n\nCritique: Anger: 5 is what it is.\n\nRevised scores:\nAnger: 2\n\n[End of answer]"
)


def test_sections_are_cut_as_the_official_code_cuts_them() -> None:
    first, revised = read_sections(BOTH)
    assert first == "\nAnger: 1\n\nCritique: Anger: 5 is what it is.\n\n"
    assert revised == "\nAnger: 2\n\n[End of answer]"
    assert read_sections(PLAIN) == (PLAIN, None)
    assert read_sections("First pass scores:\nAnger: 1") == ("First pass scores:\nAnger: 1", None)
    assert read_sections("Revised scores:\nAnger: 2") == (None, "\nAnger: 2")


def test_tolerant_sections_know_mark_up_and_leave_the_critique_out() -> None:
    marked = "## **first pass scores:**\nAnger: 1\n**Critique:** Anger: 5 was too much\n### Revised Scores:\nAnger: 2"
    first, revised = tolerant_sections(marked)
    assert first is not None
    assert first.strip("*\n") == "Anger: 1"
    assert revised == "\nAnger: 2"
    assert tolerant_sections("My revised scores: none\n" + PLAIN)[1] is None
    assert tolerant_sections("First pass scores: Anger: 1") == (" Anger: 1", None)


names_in_any_case = st.sampled_from([*NAMES, *map(str.lower, NAMES), "Sadness", "Self-Pity", "not", "or", "revised"])
numbers = st.one_of(
    st.integers(0, 12).map(str), st.sampled_from(["7.5", "7,5", "-3", "3/10", "7-8", "1e3", "٣", "10/10"])
)
signs = st.sampled_from(
    [": ", ":", " ", "\n", ", ", " - ", "-", "|", " | ", "=", "→", "**", "_", '"', "(", ")", "/", ".", "<", "[", "~"]
)
salads = st.lists(st.one_of(names_in_any_case, numbers, signs, signs), max_size=40).map("".join)
few_scores = st.sampled_from(["0", "1", "7", "10", "2.5"])


@st.composite
def nearly_right(draw: st.DrawFn) -> str:
    """Answers of which many are right, so that the parser's promise is tested where it accepts."""
    lines = []
    for name in draw(st.permutations(NAMES)):
        separator = draw(st.sampled_from([": ", ":", " - ", " = ", " | ", " "]))
        tail = draw(st.sampled_from(["", "", "", ",", "/10", " (so)", " or", "-8", ". " + draw(salads)]))
        lines.append(f"{draw(st.sampled_from(['', '', '- ', '1. ']))}{name}{separator}{draw(few_scores)}{tail}")
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, 4)), draw(salads))
    return draw(st.sampled_from(["\n", "\n", ", ", " "])).join(lines)


def mentions(text: str, name: str) -> set[float]:
    """Independently of the parser: each number that stands after a name with nothing but signs between."""
    found = re.findall(
        rf"(?<!\w)(?<![^\W\d_][-'’]){name}(?!\w)(?:[^\w\n]|_)*([0-9]+(?:\.[0-9]+)?)", text, re.IGNORECASE
    )
    return {float(number) for number in found}


@settings(max_examples=300, deadline=None)
@given(st.one_of(nearly_right(), salads))
def test_nothing_is_accepted_by_mistake(text: str) -> None:
    """What is accepted has each name, always before the same number, and that number is within 0 to 10."""
    values = tolerant_parse(text, NAMES).values
    if values is not None:
        assert [mentions(text, name) for name in NAMES] == [{value} for value in values]
        assert all(0 <= value <= 10 for value in values)


@settings(max_examples=150, deadline=None)
@given(
    scores=st.lists(st.one_of(st.integers(0, 10), st.integers(0, 40).map(lambda n: n / 4)), min_size=4, max_size=4),
    order=st.permutations(range(4)),
    separator=st.sampled_from([": ", ":", " - ", " = ", "=", " → ", " – ", ":\t", "** : **"]),
    bullet=st.sampled_from(["", "- ", "* ", "1. ", "**", "> "]),
    tail=st.sampled_from(["", "/10", " out of 10", ",", ".", " (a reason)", "**"]),
)
def test_well_formed_answers_are_always_read(
    scores: list[float], order: list[int], separator: str, bullet: str, tail: str
) -> None:
    text = "\n".join(f"{bullet}{NAMES[at]}{separator}{scores[at]}{tail}" for at in order)
    assert tolerant_parse(text, NAMES).values == tuple(scores)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=300))
def test_any_text_gets_a_reading_or_a_reason(text: str) -> None:
    for reading in (tolerant_parse(text, NAMES), reference_parse(text, NAMES)):
        assert (reading.values is None) == (reading.why is not None)
    tolerant_sections(text)
    read_sections(text)
