"""The wording model beside the validators' phrases: what it adds, what it leaves alone, and that it is made anew alike."""

from pathlib import Path

import numpy as np
import pytest

from warmline.safety.levels import Level
from warmline.safety.validate import wording
from warmline.safety.validate.context import ReplyContext, Turn
from warmline.safety.validate.fit_wording import Sentence, fit, read_examples, read_sentences
from warmline.safety.validate.release import validate
from warmline.safety.validate.wording import BROKEN, LABELS, load_wording, margins, says
from warmline.safety.validate.words import read

HIGH = ReplyContext(Level.HIGH, turns=(Turn("user", "i can't do this anymore"),))
LEAD = "I hear how worn out and alone you feel. "
SUPPORT = " A friend you trust, or a crisis line, could be with you in this."


def test_the_shipped_model_reads_every_label() -> None:
    found = load_wording()
    assert found is not None
    assert found.weight_DL.shape[1] == len(LABELS) == len(found.limit_L)


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        ("fabricated_memory", "Back when your aunt was still visiting, you talked of the same weight."),
        ("promise_of_secrecy", "Your boss will never get wind of this from me."),
        ("abandonment", "This is where I hand the matter back to you and go quiet."),
    ],
)
def test_it_finds_what_no_phrase_covers(rule: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = LEAD + sentence + SUPPORT
    assert rule in validate(text, HIGH).violations
    monkeypatch.setattr(wording, "load_wording", lambda: None)
    margins.cache_clear()
    without = validate(text, HIGH)
    margins.cache_clear()
    assert rule not in without.violations


def test_without_its_file_the_phrases_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "load_wording", lambda: None)
    margins.cache_clear()
    assert "promise_of_secrecy" in validate("I promise to keep this between us.", HIGH).violations
    assert "human_claim" in validate(LEAD + "I lost my own brother to this." + SUPPORT, HIGH).violations
    assert validate(LEAD + SUPPORT.strip(), HIGH).violations == ()
    margins.cache_clear()


def test_it_reads_english_above_none_only() -> None:
    text = "We came through that storm in autumn together, you and I."
    view = read(text)
    assert says("fabricated_memory", view, HIGH)
    assert says("fabricated_memory", view, ReplyContext(Level.HIGH, lang="de")) == []
    assert not any(each.why.startswith("is worded") for each in validate(text, ReplyContext(Level.NONE)).spans)


def test_what_the_user_told_is_no_invention() -> None:
    told = ReplyContext(Level.HIGH, turns=(Turn("user", "my brother left in the storm, in autumn"),))
    text = "We came through that storm in autumn together, you and I."
    assert not any(each.why.startswith("is worded") for each in validate(text, told).spans)


def test_each_sentence_has_its_margins() -> None:
    view = read("I hear you. That sounds heavy. A friend could sit with you.")
    found = margins(view.line)
    assert found is not None
    assert found.shape == (3, len(LABELS))


def test_the_sentences_are_wellformed_and_many() -> None:
    sentences = list(read_sentences())
    assert len(sentences) > 8_000
    assert len({each.family for each in sentences}) > 2_000
    for rule in BROKEN:
        assert sum(rule in each.labels for each in sentences) >= 100, rule


def test_a_header_with_an_unknown_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("@ ack, wit | x\nOh well.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a.txt:1: no label \['wit'\]"):
        list(read_sentences(tmp_path))


def test_a_fit_is_the_same_again_and_learns() -> None:
    rows = [each for each in read_examples() if each.labels or each.known]
    rows += [
        Sentence(("i", "hear", "you", str(at)), frozenset({"ack", "support", "urgent"}), f"f{at}") for at in range(10)
    ]
    rows += [Sentence(("soup", "is", "good", str(at)), frozenset(), f"g{at}") for at in range(10)]
    one, two = fit(rows), fit(rows)
    assert np.array_equal(one.weight_DL, two.weight_DL)
    assert np.array_equal(one.limit_L, two.limit_L)
    k = LABELS.index("no_suicide_contract")
    words = "promise me that you will not hurt yourself".split()
    assert one.logits(words)[k] > one.logits("soup is good today".split())[k]
