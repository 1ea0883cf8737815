"""What each level does, and what the model is told there."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.commands.shared import companion
from warmline.engine.engine import Sampling
from warmline.safety import policy
from warmline.safety.levels import DOMAINS, Level
from warmline.safety.policy import POLICY_VERSION, TIERS, PolicyError, check_policy, guarded, overlay_for, plan_for
from warmline.safety.resources.card import Card

from .test_companion import RISK, SETTING, answer

NONE, ELEVATED, HIGH, EMERGENCY = Level
CRISIS = (HIGH, EMERGENCY)
MINOR = ("yes", "no", "unknown")
EVERY_LEVEL = pytest.mark.parametrize("level", Level)

# From 6.1 of the specification, row by row.
TABLE = {
    "num_candidates": (1, 1, 4, 4),
    "ban_questions": (False, False, True, True),
    "ban_digits": (False, False, True, True),
    "bans": ("none", "soft", "hard", "hard"),
    "max_questions": (None, 1, 0, 0),
    "max_sentences": (None, None, 4, 3),
    "release": ("sentence", "sentence", "whole", "whole"),
    "card": ("none", "chip", "first", "full"),
    "persona_allowed": (True, True, False, False),
    "memory": ("normal", "recall_only", "none", "none"),
}


@pytest.mark.parametrize(("field", "values"), TABLE.items())
def test_each_level_does_what_the_table_says(field: str, values: tuple[object, ...]) -> None:
    assert tuple(getattr(plan_for(level), field) for level in Level) == values


def test_crisis_replies_are_short_and_have_their_slots() -> None:
    for level in CRISIS:
        plan = plan_for(level)
        assert (plan.min_new_tokens, plan.max_new_tokens) == (25, 90)
        assert {"promise", "secret", "calm down", "at least", "as a human"} <= {*plan.banned_phrases}
    assert plan_for(NONE).slots == ()
    assert plan_for(ELEVATED).slots == ("acknowledgement",)
    assert plan_for(HIGH).slots == ("acknowledgement", "emotion", "support")
    assert plan_for(EMERGENCY).slots == ("acknowledgement", "emotion", "urgent_support")


def test_the_ladder_ends_in_the_notice_and_an_emergency_waits_least() -> None:
    for level in Level:
        ladder = plan_for(level).ladder
        assert [*ladder] == sorted(ladder, key=TIERS.index)
        assert (ladder[0], ladder[-1]) == ("model", "notice")
    assert plan_for(HIGH).ladder == plan_for(EMERGENCY).ladder == ("model", "rewrite", "slots", "guided", "notice")
    assert (plan_for(HIGH, device="gpu").deadline_s, plan_for(HIGH).deadline_s) == (6, 20)
    assert (plan_for(EMERGENCY, device="gpu").deadline_s, plan_for(EMERGENCY).deadline_s) == (3, 10)


@given(st.sampled_from(Level), st.sets(st.sampled_from(DOMAINS)), st.floats(0, 2), st.sampled_from(["gpu", "cpu"]))
def test_the_level_decides_on_the_temperature_and_no_domain_loosens_it(level, domains, wanted, device) -> None:
    plan, bare = plan_for(level, domains, temperature=wanted, device=device), plan_for(level, temperature=wanted)
    lowest, highest = {NONE: (0, 2), ELEVATED: (0, 0.7), HIGH: (0.6, 0.8), EMERGENCY: (0.6, 0.8)}[level]
    assert lowest <= plan.temperature <= highest
    assert plan.temperature == wanted or not lowest <= wanted <= highest
    assert plan.ban_digits >= bare.ban_digits
    assert {*plan.banned_phrases} >= {*bare.banned_phrases}
    assert plan == plan_for(level, sorted(domains), temperature=wanted, device=device)


@EVERY_LEVEL
@pytest.mark.parametrize("owner", ["", "  \n"])
def test_nobody_asks_people_in_danger_without_a_named_owner(level: Level, owner: str) -> None:
    with pytest.raises(PolicyError, match="needs a named owner: the clinician"):
        plan_for(level, (), "safety_check", owner=owner)


def test_an_unknown_question_policy_is_refused() -> None:
    with pytest.raises(PolicyError, match="'probing'; it is one of none, safety_check"):
        plan_for(NONE, (), "probing", owner="Dr. A")
    assert issubclass(PolicyError, ValueError)


def test_one_safety_question_an_episode_and_only_at_high() -> None:
    def allowed(level: Level, asked: int = 0) -> int | None:
        return plan_for(level, (), "safety_check", owner="Dr. A", questions_asked=asked).max_questions

    assert [allowed(level) for level in Level] == [None, 1, 1, 0]
    assert allowed(HIGH, asked=1) == 0
    assert not plan_for(HIGH, (), "safety_check", owner="Dr. A").ban_questions
    told = overlay_for(HIGH, (), "no", max_questions=1)
    assert "one question, and only this one" in told
    assert "Do not ask anything" not in told
    for level, questions in ((HIGH, 0), (EMERGENCY, 0), (EMERGENCY, 1)):
        assert "Do not ask anything" in overlay_for(level, (), "no", max_questions=questions)


def test_numbers_are_banned_where_food_is_the_matter() -> None:
    assert plan_for(ELEVATED, {"eating"}).ban_digits
    assert not plan_for(NONE, {"eating"}).ban_digits
    assert not plan_for(ELEVATED, {"suicide"}).ban_digits


@EVERY_LEVEL
def test_without_a_detector_replies_are_held_whole_and_help_is_in_sight(level: Level) -> None:
    plan = guarded(plan_for(level, device="gpu"))
    assert plan.release == "whole"
    assert plan.level == max(level, ELEVATED)
    assert plan.card != "none"
    assert plan.deadline_s == plan_for(level, device="gpu").deadline_s


@pytest.mark.parametrize(
    "change",
    [
        {"ladder": ["notice", "model"]},
        {"ladder": ["model", "improvise", "notice"]},
        {"ladder": ["model"]},
        {"ladder": []},
        {"temperature": None},
        {"deadline_s": {"gpu": 1}},
        {"colour": "blue"},
    ],
)
def test_an_altered_policy_is_refused_with_its_place(change: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    table = dict(policy._table())
    row = table["levels"]["high"] | change
    monkeypatch.setattr(policy, "_table", lambda: table | {"levels": table["levels"] | {"high": row}})
    policy._rows.cache_clear()
    try:
        with pytest.raises(PolicyError, match=r"policy\.yaml: high: "):
            plan_for(HIGH)
    finally:
        policy._rows.cache_clear()


def test_an_ordinary_turn_of_an_adult_gets_no_overlay() -> None:
    assert overlay_for(NONE, (), "no") == ""
    assert overlay_for(NONE, {"suicide"}, "no") == ""  # past and resolved


def test_overlays_differ_by_level() -> None:
    gentle, crisis, urgent = (overlay_for(level, (), "no") for level in (ELEVATED, HIGH, EMERGENCY))
    assert "one soft, open question" in gentle
    assert "advice unless they ask" in gentle
    for text in (crisis, urgent):
        assert "an AI, not a human being" in text
        assert "Never agree to secrecy" in text
        assert "Do not tell them what to do" in text
        assert "soft, open question" not in text
    assert "two to four short sentences" in crisis
    assert "never an order" in crisis
    assert "emergency services" not in crisis
    assert "two or three short sentences" in urgent
    assert "Exactly one sentence may be direct and urgent" in urgent


def test_domains_add_theirs_once_and_in_one_order() -> None:
    base = overlay_for(HIGH, (), "no")
    bare = {"suicide"}  # the crisis overlay itself is written for it
    for domain in DOMAINS:
        told = overlay_for(HIGH, {domain}, "no")
        assert (told == base) == (domain in bare), domain
        assert told.startswith(base)
    everything = overlay_for(HIGH, DOMAINS, "unknown")
    assert everything == overlay_for(HIGH, [*reversed(DOMAINS), *DOMAINS], "unknown")
    parts = everything.split("\n\n")
    assert len(parts) == len({*parts})
    assert "people too" in overlay_for(NONE, {"dependency"}, "no")


def test_the_young_are_protected_and_the_unknown_are_taken_for_young_where_it_matters() -> None:
    for level in Level:
        child = overlay_for(level, (), "yes")
        assert "safe adult" in child
        assert "Never ask who they are" in child
        assert overlay_for(level, {"minor_signal"}, "no") == child
        for minor in ("yes", "unknown", "something else"):
            assert "Nothing romantic or sexual" in overlay_for(level, (), minor)
    assert "safe adult" not in overlay_for(HIGH, (), "no")


@given(st.sampled_from(Level), st.sets(st.sampled_from(DOMAINS)), st.sampled_from(MINOR), st.sampled_from([None, 0, 1]))
def test_an_overlay_is_an_instruction_and_nothing_to_copy(level, domains, minor, questions) -> None:
    text = overlay_for(level, domains, minor, max_questions=questions)
    assert not re.search(r"[0-9?\"“”<>{}*#]|https?:|\bI\b|\bI'", text)
    assert "\n\n\n" not in text
    assert text == text.strip()


def test_every_name_in_the_file_is_a_domain() -> None:
    table = policy._table()
    assert {*table["domains"], *table["domain_overlays"]} <= {*DOMAINS}
    assert {*table["levels"]} == {level.label for level in Level}
    assert {f"minor_{minor}" for minor in MINOR} <= {*table["overlays"]}


def test_a_plan_does_not_change_under_anybody() -> None:
    plan = plan_for(HIGH)
    with pytest.raises(FrozenInstanceError):
        plan.temperature = 2.0  # type: ignore[misc]
    assert plan_for(HIGH) == plan
    assert re.fullmatch(r"\d{4}\.\d{2}(\.\d+)?", POLICY_VERSION)


@pytest.fixture
def damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A copy of policy.yaml that is the one in use."""
    file = tmp_path / "policy.yaml"
    shutil.copy(Path(policy.__file__).parent / "policy.yaml", file)
    monkeypatch.setattr(policy, "files", lambda _: tmp_path)
    for each in (policy._table, policy._rows):
        each.cache_clear()
    yield file
    for each in (policy._table, policy._rows):
        each.cache_clear()


def test_a_whole_policy_passes_the_check(damaged: Path) -> None:
    check_policy()
    assert plan_for(HIGH).card == "first"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"levels:", b"lev"),
        (b"  emergency:\n    temperature", b"  panic:\n    temperature"),
        (b"  no_questions: >-", b"  questions: >-"),
        (b"    ban_digits: true\n  psychosis", b"    ban_letters: true\n  psychosis"),
        (b"levels:", b"levels: ["),
        (b"# What", b"\xff\xfe"),
        (b"overlays:", b"overlays: 3\nold:"),
    ],
)
def test_a_damaged_policy_is_refused_before_the_first_turn(damaged: Path, old: bytes, new: bytes) -> None:
    whole = damaged.read_bytes()
    damaged.write_bytes(whole.replace(old, new, 1))
    assert damaged.read_bytes() != whole
    with pytest.raises(PolicyError, match=r"^policy\.yaml[^\n]*$"):
        check_policy()
    with pytest.raises(PolicyError, match=r"policy\.yaml"):
        companion(SETTING.engine, None, Sampling(), "IE")


@pytest.mark.parametrize("damage", ["missing", "cut"])
def test_without_a_policy_nothing_starts_and_a_turn_still_gets_the_card(damaged: Path, damage: str) -> None:
    if damage == "missing":
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:900])
    with pytest.raises(PolicyError, match=r"^policy\.yaml"):
        companion(SETTING.engine, None, Sampling(), "IE")
    pieces, last = answer(SETTING, RISK)
    assert isinstance(pieces[0], Card)
    assert (last.reply, last.reply_source, last.degraded) == ("", "notice", {"companion"})
