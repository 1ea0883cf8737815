"""The grammar of supportive replies: what every derivation must and must not say, and that decoding stays inside."""

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from warmline.data.labels import EMOTIONS, SITUATIONS
from warmline.model.tiny import train_tokenizer
from warmline.safety.grammar import grammar
from warmline.safety.grammar.grammar import GrammarError, Spec, derive, frames_of, lark, num_derivations, spec_for
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.validate.context import ReplyContext, Turn
from warmline.safety.validate.release import validate

NONE, ELEVATED, HIGH, EMERGENCY = Level
TOLD = (Turn("user", "everything is too much and i do not know how to go on"),)
LABELS = (
    (),
    ("fear",),
    ("sadness", "anger"),
    ("guilt", "lonely"),
    ("joy",),
    ("shame", "depression", "anxiety"),
    ("xyz",),
)

BANNED = re.compile(
    r"\b(at least|promise|secret|between us|no one will know|better|calm|breathe|breath|journal|cheer|worse|others have"
    r"|everyone feels|phase|reason|positive|strong enough|you should|must not|have to (?!be |hide |decide |carry|hold|bear|face|go through)"
    r"|need to|try|make sure|tell me|let me|i wonder|may i|remember|again|last time|yesterday|always|never|forever|i've"
    r"|i was|when i|me too|as a human|my (own|friend|life|family)|i understand|i know|disorder|depress|diagnos|suicid"
    r"|die|dying|death|kill|pill|dose|cut|http|www|selfish|attention|crazy|weak|overreact|get over|it gets|will pass"
    r"|confidential|voices?|god|chosen|weight loss|calories|food)\b",
    re.IGNORECASE,
)
FAULTS = re.compile(  # of language: articles, agreement, words and spaces twice
    r"\ba [aeiou]|\ban [^aeiouA]|\b(\w+),? \1\b|  | [,.;]|,,|\.\.|\b(someone|person|adult|line|helpline|it|this) (are|have)\b"
    r"|\b(people|listeners|they|things) (is|has|was)\b|\b(feel|feeling) (fear|dread|grief)\b|[{}()|]",
    re.IGNORECASE,
)
PEOPLE = re.compile(
    r"trust|feels safe to you|kind to you|nearby|close by|another person|near them|beside them", re.IGNORECASE
)
TRAINED = re.compile(
    r"crisis|trained|helpline|mental health|doctor|nurse|advocate|support line|listener|counselor|medical help|emergency (services|medical)",
    re.IGNORECASE,
)


def specs(
    rng: random.Random, *, levels: Sequence[Level] = (HIGH, ELEVATED, EMERGENCY)
) -> Iterator[tuple[Spec, Level, str]]:
    """Turns of all kinds, without end."""
    while True:
        level, domain = rng.choice(levels), rng.choice(DOMAINS)
        minor, other, later = rng.random() < 0.3, rng.random() < 0.15, rng.random() < 0.4
        emotions = rng.choice(LABELS)
        yield spec_for(level, [domain], emotions, minor=minor, about_other=other, follow_up=later), level, domain


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=[.!?]) ", text)


@cache
def drawn() -> list[tuple[str, tuple[str, ...], Spec, Level, str]]:
    rng = random.Random(11)
    turns = specs(rng)
    return [(*derive(spec, rng), spec, level, domain) for _ in range(2000) for spec, level, domain in [next(turns)]]


def every_frame() -> dict[str, Spec]:
    """A grammar for each frame in which its slot has no other."""
    alone: dict[str, Spec] = {}
    for level, later in ((HIGH, False), (HIGH, True), (EMERGENCY, False)):
        for domain in DOMAINS:
            whole = spec_for(level, [domain], ["fear"], follow_up=later)
            ids = [each for _, frames in whole.frames for each in frames]
            for each in ids:
                if each not in alone:
                    avoid = [other for other in ids if other != each and other.split(".")[0] == each.split(".")[0]]
                    alone[each] = spec_for(level, [domain], ["fear"], follow_up=later, avoid_frames=avoid)
    return alone


def test_the_slots_have_frames_enough() -> None:
    counts = {slot: len(ids) for slot, ids in spec_for(HIGH, ["suicide"], []).frames}
    counts |= {slot: len(ids) for slot, ids in spec_for(HIGH, [], [], follow_up=True).frames}
    counts |= {slot: len(ids) for slot, ids in spec_for(EMERGENCY, [], []).frames}
    least = {"ACK": 24, "EMO": 24, "SUP": 24, "PRESENCE": 12, "DOOR": 12, "URGENT": 12}
    assert {slot: counts[slot] for slot, least_of in least.items() if counts[slot] < least_of} == {}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("level", Level)
def test_a_turn_has_a_million_derivations(level: Level, domain: str) -> None:
    for later in (False, True):
        for emotions in ([], ["fear"], ["jealous"]):
            assert num_derivations(spec_for(level, [domain], emotions, follow_up=later)) >= 10**6


def test_few_derivations_are_counted_by_hand() -> None:
    whole = spec_for(EMERGENCY, [], ["fear"])
    only = ("ACK.any.2", "EMO.sense.3", "URGENT.any.5")
    avoid = [each for _, ids in whole.frames for each in ids if each not in only]
    spec = spec_for(EMERGENCY, [], ["fear"], avoid_frames=avoid)
    texts = {derive(spec, random.Random(seed))[0] for seed in range(1000)}
    # loads, degrees, words, ends; words of fear, degrees, ends; reach, services, get, people
    assert num_derivations(spec) == (4 * 3 * 4 * 2) * (4 * 2 * 3) * (3 * 2 * 2 * 4)
    assert len(texts) > 950
    assert all(frames_of(spec, text) == only for text in texts)


def test_every_reply_is_short_and_has_two_to_four_sentences() -> None:
    for text, frames, _, level, _ in drawn():
        parts = sentences(text)
        assert len(parts) == len(frames), text
        assert len(parts) == 3 if level == EMERGENCY else 2 <= len(parts) <= 4
        assert 25 <= len(text.split()) <= 90, text
        assert all(part[0].isupper() and part.endswith(".") and part.count(".") == 1 for part in parts), text
        supports = [part for part, name in zip(parts, frames, strict=True) if name[:3] in {"SUP", "DOO", "URG"}]
        assert len(supports) == 1
        assert len(supports[0].split()) <= 35, supports


def test_every_reply_keeps_to_the_language_of_the_rules() -> None:
    for text, *_ in drawn():
        assert not re.search(r"[?!\d\n@#*_<>“”\"]|[^\x00-\x7f]", text), text
        assert BANNED.search(text) is None, (BANNED.search(text), text)
        assert FAULTS.search(text) is None, (FAULTS.search(text), text)


def test_every_reply_points_to_trusted_people_and_to_trained_help_once() -> None:
    for text, frames, *_ in drawn():
        for part, name in zip(sentences(text), frames, strict=True):
            both = bool(TRAINED.search(part)), bool(PEOPLE.search(part))
            if name.startswith(("SUP", "DOOR", "URGENT")):
                assert both[0], (name, part)
                assert both[1] or "adult" in part or "grown-up" in part, (name, part)
            else:
                assert both == (False, False), (name, part)


def test_replies_differ() -> None:
    texts = [text for text, *_ in drawn()]
    assert len({*texts}) >= 0.95 * len(texts)
    assert len({sentences(text)[0] for text in texts}) > 500


def test_no_feeling_stands_twice_in_a_sentence() -> None:
    words = [word for row in grammar._table()["feelings"].values() for word in row["adj"] + row["noun"]]
    for text, frames, *_ in drawn():
        emo = next(part for part, name in zip(sentences(text), frames, strict=True) if name.startswith("EMO"))
        named = [word for word in {*words} for _ in re.findall(rf"\b{word}\b", emo)]
        assert named, emo
        assert len(named) == len({*named}) <= 2, emo


def test_young_people_are_pointed_to_adults_and_lines_for_them() -> None:
    rng = random.Random(3)
    for domain in DOMAINS:
        for level, later in ((HIGH, False), (HIGH, True), (EMERGENCY, False)):
            spec = spec_for(level, [domain], [], minor=True, follow_up=later)
            text, frames = derive(spec, rng)
            part = next(
                each
                for each, name in zip(sentences(text), frames, strict=True)
                if not name.startswith(("ACK", "EMO", "PRE"))
            )
            assert re.search(r"adult|grown-up|someone is near|near them|another person", part), part
            assert level == EMERGENCY or re.search(
                r"doctor|nurse|medical|youth" if spec.theme in {"medical", "unusual"} else "young people|child|youth",
                part,
            ), part


def test_situations_are_met_in_their_own_way() -> None:
    for text, frames, spec, level, _ in drawn():
        first = sentences(text)[0]
        if spec.theme == "abuse":
            assert re.search(r"believe|safe|should be|matters", first), first
            assert not re.search(r"fault|blame|did nothing|nothing you did", text), "it may be who hurts that writes"
            assert not re.search(r"\b(leave|leaving|confront|record|go back|stay with (him|her|them))\b", text), text
        if spec.theme == "unusual":
            assert not re.search(r"believe|not real|isn't real|it's real|is true|listening|experience is real", text), (
                text
            )
        if spec.theme == "medical" and level != EMERGENCY:
            assert not re.search(r"hurry|\bpace\b|time you like|own time|later|decide", text), text
        if spec.theme == "other":
            assert not any(".self." in name for name in frames)


def test_an_unusual_experience_decides_before_abuse_and_a_friend_before_all() -> None:
    assert spec_for(HIGH, ["abuse_victim", "psychosis_mania"], []).theme == "unusual"
    assert spec_for(HIGH, ["abuse_child"], [], about_other=True).theme == "other"
    assert spec_for(HIGH, ["suicide", "self_harm", "third_party"], []).theme == "self_harm"
    assert spec_for(HIGH, ["suicide", "third_party"], []).theme == "default"
    assert spec_for(HIGH, ["dependency"], []).theme == spec_for(NONE, [], []).theme == "default"
    assert spec_for(HIGH, ["sexual_minor"], []).minor


def test_frames_of_the_last_reply_are_not_used_in_the_next() -> None:
    rng = random.Random(5)
    for spec, level, domain in (each for each, _ in zip(specs(rng), range(200), strict=False)):
        _, used = derive(spec, rng)
        text, frames = derive(spec_for(level, [domain], [], avoid_frames=used), rng)
        assert {*used}.isdisjoint(frames), text


def test_a_slot_whose_frames_are_all_to_be_avoided_keeps_them() -> None:
    spec = spec_for(HIGH, [], [])
    every = [each for _, ids in spec.frames for each in ids]
    assert spec_for(HIGH, [], [], avoid_frames=every) == spec


@pytest.mark.parametrize("label", [*EMOTIONS, *SITUATIONS, "depression", "nervousness", "pain", "jealousy", "guilt"])
def test_labels_of_the_field_name_feelings(label: str) -> None:
    spec = spec_for(HIGH, ["suicide"], [label])
    text, _ = derive(spec, random.Random(label))
    assert spec.feelings
    assert not re.search(r"\b(joyful|happy|proud|excited|grateful|amused|hopeful|relieved)\b", text)


def test_feelings_come_in_the_order_given_and_unknown_ones_fall_back() -> None:
    broad = spec_for(HIGH, ["suicide"], []).feelings
    assert len(broad) >= 5
    assert spec_for(HIGH, ["suicide"], ["nonsense", "joy", "neutral"]).feelings == broad
    assert spec_for(HIGH, [], ["Fear", "hopeless", "afraid"]).feelings == ("fear", "hopelessness")
    assert len(spec_for(HIGH, [], ["fear", "sad", "angry", "lonely", "guilty", "numb"]).feelings) == 4
    # guilt is never put to someone who is being abused, nor called understandable to anyone
    assert "guilt" not in spec_for(HIGH, ["abuse_victim"], ["guilt"]).feelings
    assert not any(".sense." in each for _, ids in spec_for(HIGH, [], ["guilt"]).frames for each in ids)


def test_the_file_is_whole() -> None:
    table = grammar._table()
    families = {*table["feelings"]}
    assert {each for row in table["labels"].values() for each in row} <= families
    assert {each for row in table["themes"].values() for each in (*row["feelings"], *row.get("drop", ()))} <= families
    assert {each for row in table["themes"].values() for each in row["domains"]} <= {*DOMAINS}
    used = {
        (slot, group) for row in table["themes"].values() for slot, groups in row["groups"].items() for group in groups
    }
    assert used == {(slot, group) for slot, groups in table["slots"].items() for group in groups}
    texts = [text for groups in table["slots"].values() for frames in groups.values() for text in frames.values()]
    assert len(texts) == len({*texts}) > 150
    for row in table["feelings"].values():
        assert len(row["adj"]) == len({*row["adj"]}) >= 2
        assert row["noun"]


@pytest.mark.parametrize("text", ["(a|b", "a|b", "a)", "so {sad", "{}"])
def test_a_frame_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(GrammarError, match="do not fit together"):
        grammar._tree(text, {}, {})


def test_a_text_outside_the_grammar_has_no_frames() -> None:
    spec = spec_for(HIGH, [], [])
    text, frames = derive(spec, random.Random(1))
    assert frames_of(spec, text) == frames
    assert frames_of(spec, text.replace(".", "!", 1)) is None
    assert frames_of(spec, text + " Yes.") is None
    assert frames_of(spec, "") is None


def test_every_frame_alone_compiles() -> None:
    matcher = pytest.importorskip("llguidance").LLMatcher
    alone = every_frame()
    assert len(alone) > 150
    for name, spec in alone.items():
        assert [ids for slot, ids in spec.frames if name.startswith(slot)] == [(name,)]
        text, frames = derive(spec, random.Random(name))
        assert (name in frames) == (name.split(".")[0] in {each.split(".")[0] for each in frames}), text
        assert matcher.validate_grammar(matcher.grammar_from_lark(lark(spec))) == "", name


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer([text for text, *_ in drawn()[:100]], 400)


def test_llguidance_accepts_what_is_derived(tokenizer: Any) -> None:
    matcher = pytest.importorskip("llguidance").LLMatcher
    entries = pytest.importorskip("llguidance.hf").from_tokenizer(tokenizer)
    for text, _, spec, *_ in drawn()[:100]:
        state = matcher(entries, matcher.grammar_from_lark(lark(spec)))
        ids = entries.tokenize_str(text)
        assert state.try_consume_tokens(ids) == len(ids), text
        assert state.is_accepting(), text


def test_random_logits_decode_to_a_derivation(tokenizer: Any) -> None:
    matcher = pytest.importorskip("llguidance").LLMatcher
    entries = pytest.importorskip("llguidance.hf").from_tokenizer(tokenizer)
    texts = set()
    for seed, (spec, level, domain) in zip(range(40), specs(random.Random(2)), strict=False):
        logits_of = np.random.default_rng(seed)
        state = matcher(entries, matcher.grammar_from_lark(lark(spec)))
        ids: list[int] = []
        while not state.is_stopped():
            bias = np.frombuffer(state.compute_logit_bias(), dtype=np.uint8)
            ids.append(int(np.where(bias > 0, logits_of.normal(size=len(bias)), -np.inf).argmax()))
            assert state.consume_token(ids[-1]), state.get_error()
            assert len(ids) < 700
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert frames_of(spec, text) is not None, text
        assert validate(text, ReplyContext(level, frozenset({domain}), TOLD)).passed, text
        texts.add(text)
    assert len(texts) == 40


def test_every_derivation_passes_the_validators() -> None:
    broken = [
        (verdict.violations, frames, text)
        for text, frames, spec, level, domain in drawn()[:500]
        for verdict in [
            validate(text, ReplyContext(level, frozenset({domain}), TOLD, minor="yes" if spec.minor else "no"))
        ]
        if not verdict.passed or verdict.degraded
    ]
    assert broken == []
