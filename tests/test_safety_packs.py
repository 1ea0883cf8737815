"""The rule packs of the languages other than English: what they must notice, and what they must leave alone."""

import unicodedata
from pathlib import Path

import pytest
import yaml

from warmline.safety.detect import load_detector
from warmline.safety.levels import Level
from warmline.safety.lexicon import Lexicon, load_lexicon
from warmline.safety.matcher import read
from warmline.safety.normalize import plain
from warmline.safety.redteam.cases import read_lines

NAMED = (
    "NOT NOT_REALLY I WANT DIE LIVE END_LIFE RECENT TOO_MUCH MEANS TOOK DRUGS HIT ABUSER HE PEOPLE WITHOUT_ME BURDEN"
    " HOPELESS TRAPPED TIRED CUT EAT_SIGN VOICES RECOVER DISTRESS HELP_PAST WORK GAME"
)
SAID = {
    "context": {"work", "fiction", "game", "code"},
    "stance": {"distress", "recovered", "long_ago", "recently", "deny", "retract", "contact", "yes", "no"},
}

_TABLE = yaml.safe_load((Path(__file__).parent / "safety_packs.yaml").read_text(encoding="utf-8"))
LINES, NEGATED, NOT_DENIED, SPELLINGS = (_TABLE[name] for name in ("lines", "negated", "not_denied", "spellings"))


def level(text: str, lang: str) -> Level:
    return read(text, load_lexicon(lang)).level


def lines(lang: str) -> list[tuple[Level, str]]:
    return [(Level(int(line[0])), line[2:]) for line in LINES[lang].split("\n") if line]


def without_accents(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFD", text) if unicodedata.category(each) != "Mn")


@pytest.fixture(params=list(LINES))
def lang(request: pytest.FixtureRequest) -> str:
    return request.param


def test_statements_are_read_at_their_level_or_above(lang: str) -> None:
    stated = [(least, text) for least, text in lines(lang) if least > Level.NONE]
    assert len(stated) >= 25
    assert [text for least, text in stated if level(text, lang) < least] == []


def test_harmless_lines_are_read_as_nothing(lang: str) -> None:
    harmless = [text for least, text in lines(lang) if least == Level.NONE]
    assert len(harmless) >= 20
    assert [text for text in harmless if level(text, lang) > Level.NONE] == []


def test_harmless_lines_of_one_language_mean_nothing_in_another(lang: str) -> None:
    others = [text for other in LINES if other != lang for least, text in lines(other) if least == Level.NONE]
    assert [text for text in others if level(text, lang) > Level.NONE] == []


def test_a_pack_is_read_where_its_language_is_written_and_hardly_elsewhere(lang: str) -> None:
    distinctive = load_detector().foreign[lang]
    holds = {
        written: [not distinctive.isdisjoint(plain(line.text).split()) for line in read_lines() if line.lang == written]
        for written in ("en", lang)
    }
    assert sum(holds[lang]) >= 0.97 * len(holds[lang])
    assert sum(holds["en"]) <= 0.01 * len(holds["en"])


def test_a_negation_turns_a_statement(lang: str) -> None:
    for stated, negated in NEGATED[lang]:
        assert level(stated, lang) > Level.NONE, stated
        reading = read(negated, load_lexicon(lang))
        assert reading.level == Level.NONE, negated
        assert reading.denied or not reading.frames


def test_a_negation_of_something_else_turns_nothing(lang: str) -> None:
    assert level(NOT_DENIED[lang], lang) >= Level.HIGH


def test_accents_and_capitals_make_no_difference(lang: str) -> None:
    for _, text in lines(lang):
        assert level(text, lang) == level(without_accents(text), lang) == level(text.upper(), lang), text


def test_informal_spelling_makes_no_difference(lang: str) -> None:
    for written, typed in SPELLINGS[lang]:
        assert level(written, lang) == level(typed, lang) > Level.NONE, typed


def test_a_pack_has_the_classes_contexts_and_stances_that_the_matcher_looks_for(lang: str) -> None:
    lexicon: Lexicon = load_lexicon(lang)
    assert set(NAMED.split()) <= lexicon.class_ids.keys()
    for kind, names in SAID.items():
        assert names <= {rule.what for rule in lexicon.rules if rule.says == kind}
    assert len(lexicon.rules) >= 100
    assert all(isinstance(word, str) for word in lexicon.expand)


def test_every_phrase_can_occur_in_a_plain_text(lang: str) -> None:
    lexicon = load_lexicon(lang)
    assert [word for word in lexicon.words if word != without_accents(word.lower()) or "'" in word] == []


def test_frames_and_signals_say_why_and_for_what(lang: str) -> None:
    frames = [rule for rule in load_lexicon(lang).rules if rule.frame is not None]
    assert all(rule.reason and rule.families for rule in frames)
    assert {rule.frame.domain for rule in frames if rule.frame} >= {
        "suicide",
        "self_harm",
        "harm_others",
        "abuse_victim",
        "abuse_child",
        "eating",
        "psychosis_mania",
        "substance_medical",
        "third_party",
        "dependency",
        "method_seeking",
    }
