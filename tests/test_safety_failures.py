"""Each row of the failure matrix of docs/safety.md, through the real door (`respond`, `assess`) and with real breakage.

What comes from outside (clocks, forged turns, odd text and bytes) stands in test_safety_odd_input.py.
Left out, because they belong to the server or to parts that do not exist yet: the state store that is down, `/health`
that turns red, HTTP 200 in place of an error, and a risk head that raises late (no head takes part in noticing).
"""

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import warmline
from warmline.dialogue import companion, session
from warmline.dialogue.companion import Session, Setting, respond
from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores
from warmline.engine.scripted import ScriptedEngine
from warmline.safety import detect
from warmline.safety.assess import assess
from warmline.safety.audit import Event, read_day
from warmline.safety.detect import Detector, load_detector, observe
from warmline.safety.levels import Level
from warmline.safety.policy import PolicyError
from warmline.safety.release import text_of
from warmline.safety.resources.card import Card
from warmline.safety.resources.directory import load_directory
from warmline.safety.validate.context import ReplyContext, Turn
from warmline.safety.validate.notice import Notice
from warmline.safety.validate.release import Validated
from warmline.safety.validate.rules import OF_A_SENTENCE, RULES
from warmline.safety.validate.violations import Violation

from .test_companion import GOOD, RISK, SETTING, Says, answer
from .test_safety_audit import run_python

CALM = "We had soup for dinner."
DETECTOR = load_detector()
observe(CALM, DETECTOR)  # the first reading of a process fills tables
GOOD_ENGINE = Says(lambda request: [GOOD] * request.n)
SPOKEN = replace(SETTING, engine=GOOD_ENGINE)


def broken(*_: object) -> Any:
    raise RuntimeError("broken")


class Fails:
    """Speaks some words, then raises; inside a grammar it decodes, if it still can."""

    def __init__(self, words: str, error: BaseException, *, decodes: bool) -> None:
        self.words, self.error, self.decodes = words, error, decodes
        self.num_closed = 0

    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"n", "grammar"})

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        raise EngineError("not asked here")

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        try:
            if request.constraint is not None and self.decodes:
                yield from ScriptedEngine().generate(request)
                return
            yield Chunk(self.words)
            raise self.error
        finally:
            self.num_closed += 1


class Drips(Fails):
    """Says a few letters at a time and never comes to an end."""

    def __init__(self, *, decodes: bool) -> None:
        super().__init__("", EngineError(""), decodes=decodes)

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        if request.constraint is not None and self.decodes:
            yield from ScriptedEngine().generate(request)
            return
        yield Chunk("It is good to hear from you. ")
        while True:
            time.sleep(0.02)
            yield Chunk("and ")


# -- detection -----------------------------------------------------------------------------------------------------------


def with_broken(part: str, how: str) -> Detector:
    """The shipped detector with weights that are no numbers, or that a cut file left."""
    linear, network = DETECTOR.linear, DETECTOR.network
    assert linear is not None
    assert network is not None
    if part == "linear":
        level_DK = linear.level_DK[:8] if how == "cut" else np.full_like(linear.level_DK, np.nan)
        return replace(DETECTOR, linear=replace(linear, level_DK=level_DK, domain_ND=linear.domain_ND[:, :8]))
    word_VE = network.word_VE[:1] if how == "cut" else np.full_like(network.word_VE, np.nan)
    return replace(DETECTOR, network=replace(network, word_VE=word_VE))


@pytest.mark.parametrize("how", ["cut", "nan"])
@pytest.mark.parametrize("part", ["linear", "network"])
def test_a_model_that_breaks_is_dropped_and_the_others_decide(part: str, how: str) -> None:
    setting = replace(SPOKEN, detector=with_broken(part, how))
    for text, least in ((RISK, Level.HIGH), (CALM, Level.NONE), ("nobody would notice if I was not here", Level.NONE)):
        _, last = answer(setting, text)
        assert last.degraded == {part}
        assert last.level >= least
        assert last.reply_source == "model"
    assert answer(setting, CALM)[1].level == Level.NONE
    assert assess([{"role": "user", "content": RISK}], setting.detector).degraded == {part}


def test_without_any_model_the_rules_decide() -> None:
    setting = replace(SPOKEN, detector=replace(DETECTOR, linear=None, network=None))
    _, last = answer(setting, RISK)
    assert (last.level, last.degraded) == (Level.HIGH, {"linear", "network"})
    assert answer(setting, CALM)[1].level == Level.NONE


def test_a_part_that_takes_too_long_is_named_and_still_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    read = detect.linear_logits

    def slow(*given: Any) -> Any:
        until = time.thread_time() + 2e-3 * detect.SLOW_MS
        while time.thread_time() < until:
            pass
        return read(*given)

    before = observe(RISK, DETECTOR)
    monkeypatch.setattr(detect, "linear_logits", slow)
    found = observe(RISK, DETECTOR)
    assert found.degraded == {"linear_slow"}
    assert found.ms["linear"] > detect.SLOW_MS
    assert (found.level, found.p) == (before.level, before.p)
    assert "linear_slow" in answer(SPOKEN, RISK)[1].degraded


def test_with_no_detector_left_it_acts_as_elevated_and_holds_the_whole_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "read_message", broken)
    events: list[Event] = []
    said = ["That sounds heavy. I promise this stays our secret."]
    pieces, last = answer(replace(SETTING, engine=Says(lambda request: said * request.n), audit=events.append), CALM)
    assert last.level == Level.ELEVATED
    assert last.degraded == {"rules", "linear", "network", "guarded"}
    assert [type(piece) for piece in pieces] == [Notice]  # sentence by sentence, the first one would have been shown
    assert "heavy" not in text_of(pieces[0])
    assert (events[0].card, events[0].level) == ("chip", Level.ELEVATED)
    assert dict(events[0].violations)["promise_of_secrecy"] >= 1
    pieces, _ = answer(replace(SETTING, engine=Says(lambda request: ["That sounds heavy."] * request.n)), CALM)
    assert [text_of(piece) for piece in pieces] == ["That sounds heavy."]


def test_with_no_detector_left_methods_are_judged_as_strictly_as_if_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[ReplyContext] = []

    def rule(_: str, context: ReplyContext) -> list[Violation]:
        seen.append(context)
        return []

    monkeypatch.setitem(RULES, "method_information", rule)
    monkeypatch.setattr(detect, "read_message", broken)
    answer(SPOKEN, CALM)
    assert all("method_seeking" in context.themes and context.level == Level.ELEVATED for context in seen)
    assert seen


# -- the reply -----------------------------------------------------------------------------------------------------------


def test_a_candidate_that_a_validator_raises_at_counts_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    better = GOOD.replace("exhausting", "heavy")

    def rule(text: str, _: ReplyContext) -> list[Violation]:
        return broken() if "exhausting" in text else []

    monkeypatch.setitem(RULES, "diagnosis", rule)
    engine = Says(lambda request: [GOOD, better, GOOD, GOOD])
    pieces, last = answer(replace(SETTING, engine=engine), RISK)
    assert isinstance(pieces[0], Card)
    assert (last.reply, last.reply_source) == (better, "model")
    assert "validators" in last.degraded


@pytest.mark.parametrize("text", [RISK, "I feel so low and worthless lately", CALM])
def test_with_all_validators_down_there_is_no_model_text_but_notice_and_card(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for rules in (RULES, OF_A_SENTENCE):
        for name in rules:
            monkeypatch.setitem(rules, name, broken)
    for engine in (GOOD_ENGINE, ScriptedEngine()):
        pieces, last = answer(replace(SETTING, engine=engine), text)
        assert [type(piece) for piece in pieces] == [Card, Notice]
        assert (last.reply, last.reply_source) == ("", "notice")
        assert "validators" in last.degraded
        assert last.card is pieces[0]


OUT_OF_MEMORY = [MemoryError(), RuntimeError("CUDA out of memory"), EngineError("the model ran out of memory")]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_in_the_middle_of_a_reply(error: Exception) -> None:
    said = "That sounds lovely. And I pro"
    engine = Fails(said, error, decodes=True)
    pieces, last = answer(replace(SETTING, engine=engine), CALM)
    assert [text_of(piece) for piece in pieces] == ["That sounds lovely."]
    assert (last.reply_source, last.degraded) == ("model", {"engine"})

    pieces, last = answer(replace(SETTING, engine=engine), RISK)
    assert [type(piece) for piece in pieces] == [Card, Validated]
    assert (last.reply_source, last.degraded) == ("guided", {"engine"})
    assert "lovely" not in last.reply
    assert engine.num_closed >= 4

    pieces, last = answer(replace(SETTING, engine=Fails(said, error, decodes=False)), RISK)
    assert [type(piece) for piece in pieces] == [Card, Notice]
    assert (last.reply_source, last.degraded) == ("notice", {"engine"})


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans with a quarter of a second for the reply."""
    plan_for = companion.plan_for

    def short(*given: Any, **named: Any) -> Any:
        return replace(plan_for(*given, **named), deadline_s=0.25)

    monkeypatch.setattr(companion, "plan_for", short)


def test_when_the_time_is_over_the_guided_tier_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    plan_for = companion.plan_for
    monkeypatch.setattr(companion, "plan_for", lambda *a, **k: replace(plan_for(*a, **k), deadline_s=4.0))
    _, last = answer(replace(SETTING, engine=Drips(decodes=True)), RISK)
    assert (last.reply_source, last.degraded) == ("guided", {"deadline"})


@pytest.mark.usefixtures("hurried")
def test_when_no_time_is_left_for_that_either_there_is_a_notice_and_the_card() -> None:
    started = time.monotonic()
    pieces, last = answer(replace(SETTING, engine=Drips(decodes=False)), RISK)
    assert time.monotonic() - started < 5
    assert [type(piece) for piece in pieces] == [Card, Notice]
    assert (last.reply_source, last.degraded) == ("notice", {"deadline"})


@pytest.mark.usefixtures("hurried")
def test_when_the_time_is_over_what_was_said_so_far_stands() -> None:
    pieces, last = answer(replace(SETTING, engine=Drips(decodes=False)), CALM)
    assert [text_of(piece) for piece in pieces] == ["It is good to hear from you."]
    assert last.degraded == {"deadline"}
    assert last.notes == ("the reply took too long",)


# -- the person, the directory, the settings -----------------------------------------------------------------------------


def test_who_goes_away_before_the_reply_leaves_the_state_and_no_text() -> None:
    events: list[Event] = []
    engine, session = Says(lambda request: [GOOD] * request.n), Session()
    stream = respond(replace(SETTING, engine=engine, audit=events.append), session, RISK, 0.0)
    assert isinstance(next(stream), Card)
    stream.close()
    assert engine.requests == []
    assert (session.turns, session.state.floor) == ([Turn("user", RISK)], Level.HIGH)
    [event] = events
    assert (event.card, event.source, event.level) == ("first", "notice", Level.HIGH)  # the card was shown


def test_who_goes_away_while_the_whole_reply_is_held_leaves_the_state_and_no_text() -> None:
    events: list[Event] = []
    engine, session = Fails("I promise this stays our", KeyboardInterrupt(), decodes=True), Session()
    list(respond(SPOKEN, session, RISK, 0.0))
    turns = len(session.turns)
    with pytest.raises(KeyboardInterrupt):
        next(respond(replace(SETTING, engine=engine, audit=events.append), session, "it is so dark", 1.0))
    assert engine.num_closed == 1
    assert session.turns[turns:] == [Turn("user", "it is so dark")]
    assert "promise" not in repr(session)
    assert session.state.floor == Level.HIGH
    assert [(event.card, event.source) for event in events] == [("pinned", "notice")]
    _, last = answer(SETTING, "hello again", session=session)
    assert (last.level, last.reply_source) == (Level.HIGH, "guided")


FOLDER = Path(warmline.__file__).parent / "safety" / "resources"


@pytest.mark.parametrize("damage", ["missing", "hash", "altered", "truncated", "not_text"])
def test_a_broken_directory_leaves_emergency_numbers_and_says_so(damage: str, tmp_path: Path) -> None:
    for name in ("directory.json", "directory.json.sha256"):
        shutil.copy(FOLDER / name, tmp_path / name)
    file = tmp_path / "directory.json"
    whole = file.read_bytes()
    if damage == "missing":
        file.unlink()
    elif damage == "hash":
        (tmp_path / "directory.json.sha256").unlink()
    else:
        file.write_bytes(
            {"altered": whole.replace(b"116 123", b"116 124"), "truncated": whole[:900], "not_text": b"\xff\xfe" * 99}[
                damage
            ]
        )
    events: list[Event] = []
    pieces, last = answer(replace(SPOKEN, directory=load_directory(tmp_path), audit=events.append), RISK)
    card = text_of(pieces[0])
    assert "112" in card
    assert "116 124" not in card
    assert "findahelpline.com" in card
    assert "could not be read" in card
    assert (last.reply, last.degraded) == (GOOD, {"directory"})
    assert (events[0].directory, events[0].degraded) == ("fallback", {"directory"})


def test_a_directory_that_nobody_checked_for_years_shows_no_old_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(companion, "_today", lambda: date(2031, 1, 1))
    pieces, last = answer(SPOKEN, RISK)
    assert last.card is not None
    assert last.card.degraded
    assert "116 123" not in text_of(pieces[0])
    assert "112" in text_of(pieces[0])


@pytest.mark.parametrize("changes", [{"question_policy": "safety_check"}, {"question_policy": "ask_everything"}])
def test_settings_that_nobody_answers_for_are_refused(changes: dict[str, Any]) -> None:
    events: list[Event] = []
    with pytest.raises(PolicyError, match="question_policy"):
        answer(replace(SPOKEN, **changes, audit=events.append), RISK)
    assert events == []


def test_a_defect_of_ours_gives_card_and_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Event] = []
    for module, name in ((companion, "_context"), (session, "minor_of")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            pieces, last = answer(replace(SPOKEN, audit=events.append), CALM)
        assert [type(piece) for piece in pieces] == [Card, Notice]
        assert (last.level, last.degraded) == (Level.ELEVATED, {"companion"})
    assert [(event.card, event.source, event.degraded) for event in events] == [("first", "notice", {"companion"})] * 2


# -- the audit -----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="Windows has no limit on the size of files")
def test_a_full_disk_drops_the_count_and_not_the_reply(tmp_path: Path) -> None:
    code = """
import resource
from tests.test_companion import *
setting = replace(SETTING, engine=Says(lambda request: [GOOD] * request.n), audit=Path(sys.argv[1]))
results = []
for limit in (resource.RLIM_INFINITY, 64, resource.RLIM_INFINITY):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    pieces, last = answer(setting, RISK)
    results.append([[type(piece).__name__ for piece in pieces], last.reply == GOOD, sorted(last.degraded & {"audit"})])
print(json.dumps(results))
"""
    output, errors = run_python(code, tmp_path).communicate(timeout=120)
    shown = ["Card", "Validated"]
    assert json.loads(output or "[]") == [[shown, True, []], [shown, True, ["audit"]], [shown, True, []]], errors
    [day] = tmp_path.glob("*.json")
    assert read_day(day)["referrals/all"] == 2


def test_settings_of_these_tests_are_whole() -> None:
    """Nothing above would be shown if the undisturbed companion were degraded."""
    assert isinstance(SPOKEN, Setting)
    assert answer(SPOKEN, RISK)[1].degraded == frozenset()
