"""The risk head: when it is trusted, what it may change of a level, and that a late raise drops what was begun."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from warmline.dialogue.companion import Answer, Session, Setting, respond
from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Reading, Scores
from warmline.model import checkpoint
from warmline.pipeline import open_engine, open_run
from warmline.safety.detect import Detector, Observation, load_detector, observe
from warmline.safety.head import (
    LOWERS_BELOW,
    MAX_CALIBRATION_ERROR,
    MIN_RECALL,
    RAISES_FROM,
    RiskHead,
    at_least,
    fused_level,
    judge_head,
    with_head,
)
from warmline.safety.levels import Level, Reason
from warmline.safety.release import Released, text_of
from warmline.safety.resources.card import Card
from warmline.safety.resources.directory import load_directory
from warmline.safety.state import RiskState

from .conftest import ToyRecipe
from .runs import train_here

LABELS = ("none", "elevated", "high", "emergency")
GOOD = (
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen."
)
PLAIN = "We had soup for dinner."
RISK = "I want to kill myself tonight"
TRUSTED = RiskHead(trusted=True)
MEASURED = {"dev_recall_at_5fpr": 0.91, "calibration_ece": 0.03, "base_model_hash": "9f2c", "quant": "nf4"}
SURE = {  # readings that are sure of a level
    Level.NONE: (0.97, 0.01, 0.01, 0.01),
    Level.ELEVATED: (0.05, 0.9, 0.03, 0.02),
    Level.HIGH: (0.01, 0.02, 0.95, 0.02),
    Level.EMERGENCY: (0.01, 0.01, 0.03, 0.95),
}


# ---- the trust gate ----


@pytest.mark.parametrize(
    ("changes", "trusted"),
    [
        ({}, True),
        ({"dev_recall_at_5fpr": MIN_RECALL, "calibration_ece": MAX_CALIBRATION_ERROR}, True),
        ({"dev_recall_at_5fpr": 1, "calibration_ece": 0}, True),
        ({"dev_recall_at_5fpr": 0.8499}, False),
        ({"calibration_ece": 0.0801}, False),
        ({"base_model_hash": "9f2d"}, False),
        ({"quant": "none"}, False),
        ({"quant": None}, False),
        ({"dev_recall_at_5fpr": math.nan}, False),
        ({"calibration_ece": math.nan}, False),
        ({"calibration_ece": -0.1}, False),
        ({"dev_recall_at_5fpr": math.inf}, False),
        ({"dev_recall_at_5fpr": 91}, False),
        ({"dev_recall_at_5fpr": True}, False),
        ({"dev_recall_at_5fpr": "0.91"}, False),
        ({"dev_recall_at_5fpr": None}, False),
    ],
)
def test_the_gate_row_by_row(changes: dict[str, object], trusted: bool) -> None:
    head = judge_head(MEASURED | changes, "9f2c", "nf4")
    assert head.trusted is trusted
    assert bool(head.reason) is not trusted


@pytest.mark.parametrize("measured", [None, {}, [], "trusted", *({k: v for k, v in MEASURED.items() if k != gone} for gone in MEASURED)])  # fmt: skip
def test_a_head_that_was_not_wholly_measured_is_not_trusted(measured: object) -> None:
    assert not judge_head(measured, "9f2c", "nf4").trusted


def test_a_freshly_trained_stage_has_a_head_that_is_not_trusted(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    run = train_here(toy_recipe(sft__steps=1), tmp_path / "run")
    loaded = open_run(run)
    head = open_engine("run", run, "sft", loaded).risk_head
    assert head is not None
    assert not head.trusted
    assert open_engine("run", run, "base", loaded).risk_head is None
    loaded.model.use("sft")
    good = MEASURED | {"base_model_hash": loaded.fingerprint["weights"], "quant": "none"}
    for measured, trusted in ((good, True), (good | {"quant": "nf4"}, False)):
        checkpoint.save_stage(
            loaded.model, run.stage("sft"), fingerprint=loaded.fingerprint, about={"risk_head": measured}
        )
        assert open_engine("run", run, "sft", loaded).risk_head == RiskHead(
            trusted=trusted, reason="" if trusted else "it was not measured with quantisation none"
        )


# ---- fusion ----


@pytest.mark.parametrize(
    ("labels", "values"),
    [
        (LABELS, (0.5, 0.5, 0.5, 0.5)),
        (LABELS, (math.nan, 0.0, 0.0, 1.0)),
        (LABELS, (1.2, -0.2, 0.0, 0.0)),
        (LABELS, (0.5, 0.5, 0.0)),
        (LABELS, (None, 0.0, 0.0, 1.0)),
        (LABELS[:3], (0.5, 0.25, 0.25)),
        (LABELS[::-1], (0.25, 0.25, 0.25, 0.25)),
        ((), ()),
    ],
)
def test_a_reading_that_is_no_distribution_changes_nothing_and_is_said(labels: Any, values: Any) -> None:
    assert at_least(labels, values) is None
    seen = Observation(Level.HIGH, 0.8, reasons=(Reason("WORDING.2", ""),))
    assert with_head(seen, Level.NONE, TRUSTED, labels, values) == replace(seen, degraded=frozenset({"head"}))


def test_a_head_that_is_not_trusted_changes_nothing() -> None:
    for level, reading in product(Level, SURE.values()):
        seen = Observation(level, 0.5)
        after = with_head(seen, Level.NONE, RiskHead(trusted=False), LABELS, reading)
        assert after == replace(seen, degraded=frozenset({"head"}))


SHARES = (0.0, 0.05, LOWERS_BELOW, 0.3, 0.5, 0.7, 0.9, 1.0)
FALLING = [p_K for p_K in product(SHARES, repeat=3) if p_K[0] >= p_K[1] >= p_K[2]]


@pytest.mark.parametrize("under_way", [True, False])
def test_fusion_over_all_levels_and_a_grid_of_readings(under_way: bool) -> None:
    raised, lowered = set(), set()
    for level, settled, p_K in product(Level, Level, FALLING):
        fused = fused_level(level, settled, p_K, RAISES_FROM, under_way=under_way)
        head = max((k for k in (1, 2, 3) if p_K[k - 1] >= RAISES_FROM[k - 1]), default=0)
        assert fused >= level - 1
        assert fused >= min(level, settled)
        if fused > level:
            assert fused <= head
            assert fused < Level.EMERGENCY or under_way
            raised.add((level, fused))
        if fused < level:
            assert head < level
            assert p_K[level - 1] < LOWERS_BELOW
            lowered.add((level, fused))
        if head >= level and (under_way or head < Level.EMERGENCY):
            assert fused == head
        for more in FALLING:  # a head that is more afraid never gives less
            if all(a >= b for a, b in zip(more, p_K, strict=True)):
                assert fused_level(level, settled, more, RAISES_FROM, under_way=under_way) >= fused
    assert {step for step in raised if step[0] == Level.NONE} >= {(0, 1), (0, 2)}
    assert ((2, 3) in raised) is under_way
    assert lowered == {(1, 0), (2, 1), (3, 2)}


def test_lowered_is_only_what_models_gave_and_never_below_rule_guard_or_floor() -> None:
    calm = SURE[Level.NONE]
    wording = Observation(Level.HIGH, 0.8, reasons=(Reason("WORDING.2", ""),))
    assert with_head(wording, Level.NONE, TRUSTED, LABELS, calm).level == Level.ELEVATED
    for settled, floor in product(Level, Level):
        after = with_head(replace(wording, settled=settled), floor, TRUSTED, LABELS, calm)
        assert after.level == (Level.ELEVATED if max(settled, floor) < Level.HIGH else Level.HIGH)
    by_rule = observe(RISK, load_detector())
    assert by_rule.level == by_rule.settled == Level.HIGH
    assert with_head(by_rule, Level.NONE, TRUSTED, LABELS, calm) == by_rule


def eager_detector() -> Detector:
    """One whose models call every turn `high`."""
    detector = load_detector()
    calibration = replace(detector.calibration, elevated=1e-9, sure=-100.0, high=1e-9, emergency=1.0)
    return replace(detector, calibration=calibration)


def test_what_rules_give_is_settled_and_what_wording_alone_gives_is_not() -> None:
    eager = eager_detector()
    seen = observe(PLAIN, eager)
    assert (seen.level, seen.settled) == (Level.HIGH, Level.NONE)
    assert [reason.rule for reason in seen.reasons] == ["WORDING.2"]


def test_the_head_alone_gives_no_emergency_and_with_an_act_it_does() -> None:
    reading = SURE[Level.EMERGENCY]
    assert with_head(Observation(Level.NONE, 0.0), Level.NONE, TRUSTED, LABELS, reading).level == Level.HIGH
    means = Observation(Level.HIGH, 0.8, acts=frozenset({"means"}), settled=Level.HIGH)
    raised = with_head(means, Level.NONE, TRUSTED, LABELS, reading)
    assert raised.level == raised.settled == Level.EMERGENCY
    intent = replace(means, acts=frozenset({"intent"}))
    assert with_head(intent, Level.NONE, TRUSTED, LABELS, reading).level == Level.HIGH
    # what the head has raised, a second reading does not take back
    assert with_head(raised, Level.NONE, TRUSTED, LABELS, SURE[Level.NONE]) == raised


# ---- in the companion ----


@dataclass
class Reads:
    """An engine whose first chunk carries a reading, and which then says what it is told; remembers how far it came."""

    read: Callable[[GenerateRequest], Sequence[float]]
    say: Callable[[GenerateRequest], str]
    with_text: bool = False  # the reading comes on a chunk that holds the whole reply
    requests: list[GenerateRequest] = field(default_factory=list)
    given: list[str] = field(default_factory=list)
    closed: int = 0

    def capabilities(self) -> frozenset[Capability]:
        return frozenset({"n", "heads"})

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        reading = Reading("risk", LABELS, tuple(self.read(request)))
        text = self.say(request)
        try:
            yield Chunk(text if self.with_text else "", 0, (reading,))
            for index in range(request.n):
                for piece in [] if self.with_text and index == 0 else text.split(" "):
                    self.given.append(piece)
                    yield Chunk(f"{piece} ", index)
        finally:
            self.closed += 1

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        raise EngineError("not asked here")


def in_crisis(request: GenerateRequest) -> bool:
    return bool(request.messages) and "serious danger" in request.messages[0].content


def setting_of(engine: Any, head: RiskHead | None = TRUSTED) -> Setting:
    return Setting(engine, load_detector(), load_directory(), "You are a friend.", country="IE", risk_head=head)


def answered(setting: Setting, session: Session, text: str) -> tuple[list[Released], Answer]:
    pieces: list[Released] = []
    for each in respond(setting, session, text, 0.0):
        if isinstance(each, Answer):
            return pieces, each
        pieces.append(each)
    raise AssertionError("no answer")


@pytest.mark.parametrize("with_text", [False, True])
def test_a_late_raise_drops_the_stream_and_answers_anew_card_first(with_text: bool) -> None:
    """Failure matrix: risk head raises late; restart with the crisis plan; nothing was released."""
    engine = Reads(
        lambda request: SURE[Level.HIGH], lambda request: GOOD if in_crisis(request) else "Canary soup. More canary.", with_text
    )  # fmt: skip
    session = Session()
    pieces, last = answered(setting_of(engine), session, PLAIN)
    assert isinstance(pieces[0], Card)
    assert [text_of(piece) for piece in pieces[1:]] == [GOOD]
    assert (last.level, last.reply, last.reply_source) == (Level.HIGH, GOOD, "model")
    assert last.reasons[-1].rule == "HEAD.2"
    assert last.degraded == frozenset()
    assert "anary" not in repr(session) + repr(last) + "".join(engine.given)
    first, second = engine.requests
    assert (in_crisis(first), in_crisis(second)) == (False, True)
    assert "friend" in first.messages[0].content
    assert "friend" not in second.messages[0].content
    assert engine.closed == 2
    assert session.state.floor == Level.HIGH
    assert [turn.role for turn in session.turns] == ["user", "assistant"]


def test_a_raise_to_elevated_answers_anew_without_a_card() -> None:
    engine = Reads(lambda request: SURE[Level.ELEVATED], lambda request: f"That sounds heavy {len(engine.requests)}.")
    session = Session()
    pieces, last = answered(setting_of(engine), session, PLAIN)
    assert [text_of(piece) for piece in pieces] == ["That sounds heavy 2."]
    assert (last.level, last.card, session.state.floor) == (Level.ELEVATED, None, Level.ELEVATED)


def test_step_by_step_raises_end() -> None:
    """A head that is more afraid under each plan: elevated, then high; and no emergency without an act."""

    def read(request: GenerateRequest) -> Sequence[float]:
        return SURE[Level(min(len(engine.requests), 3))]

    engine = Reads(read, lambda request: GOOD)
    _, last = answered(setting_of(engine), Session(), PLAIN)
    assert last.level == Level.HIGH
    assert len(engine.requests) == 3


def test_at_high_a_raise_to_emergency_ends_the_climb_at_once() -> None:
    text = "I have the pills in my hand and I want to kill myself tonight"
    before = observe(text, load_detector())
    assert before.level == Level.HIGH
    assert "means" in before.acts
    assert "attempt" not in observe("When I was 17 I tried to end my life. That is long over.", load_detector()).acts
    engine = Reads(lambda request: SURE[Level.EMERGENCY], lambda request: GOOD)
    session = Session()
    pieces, last = answered(setting_of(engine), session, text)
    assert last.level == session.state.floor == Level.EMERGENCY
    assert [isinstance(piece, Card) for piece in pieces[:2]] == [True, True]  # the first card, then the full one
    urgent = ["two or three short sentences" in each.messages[0].content for each in engine.requests]
    assert urgent == [False, *[True] * (len(urgent) - 1)]  # no second draw, rewrite or half under the plan of `high`
    assert len(urgent) > 1


@pytest.mark.parametrize("head", [None, RiskHead(trusted=False, reason="not measured")])
def test_without_a_trusted_head_the_stream_goes_on(head: RiskHead | None) -> None:
    engine = Reads(lambda request: SURE[Level.EMERGENCY], lambda request: "That sounds good.")
    pieces, last = answered(setting_of(engine, head), Session(), PLAIN)
    assert [text_of(piece) for piece in pieces] == ["That sounds good."]
    assert (last.level, len(engine.requests)) == (Level.NONE, 1)
    assert last.degraded == (frozenset() if head is None else frozenset({"head"}))


def test_a_trusted_head_that_says_nothing_usable_is_named() -> None:
    engine = Reads(lambda request: (math.nan,) * 4, lambda request: "That sounds good.")
    _, last = answered(setting_of(engine), Session(), PLAIN)
    assert (last.level, last.degraded) == (Level.NONE, frozenset({"head"}))


def test_a_lowered_level_answers_this_turn_with_full_care_and_holds_less_after_it() -> None:
    eager = eager_detector()
    engine = Reads(lambda request: SURE[Level.NONE], lambda request: GOOD)
    session = Session()
    pieces, last = answered(replace(setting_of(engine), detector=eager), session, PLAIN)
    assert isinstance(pieces[0], Card)
    assert (last.level, last.reasons[-1].rule) == (Level.HIGH, "HEAD.LOWER")
    assert session.state.floor == Level.ELEVATED
    # a floor that stood before stays, and the turn is no calm one
    session = Session(state=RiskState(floor=Level.HIGH, calm_turns=5, clock=1e6, last_signal=0.0, episode=1))
    answered(replace(setting_of(engine), detector=eager), session, PLAIN)
    assert (session.state.floor, session.state.calm_turns) == (Level.HIGH, 0)


def test_a_floor_that_falls_in_this_turn_is_kept_by_a_head_that_raises() -> None:
    """The level is held from before the turn: a calm turn that was none does not count."""
    calm = RiskState(floor=Level.HIGH, calm_turns=5, clock=1e6, last_signal=0.0, episode=1)
    quiet = Session(state=calm)
    answered(setting_of(Reads(lambda request: SURE[Level.NONE], lambda request: "Nice.")), quiet, PLAIN)
    assert quiet.state.floor == Level.ELEVATED
    heard = Session(state=calm)
    answered(setting_of(Reads(lambda request: SURE[Level.HIGH], lambda request: GOOD)), heard, PLAIN)
    assert (heard.state.floor, heard.state.calm_turns) == (Level.HIGH, 0)


def test_a_client_that_leaves_at_the_card_of_a_late_raise_leaves_the_risk_held() -> None:
    session = Session()
    engine = Reads(lambda request: SURE[Level.HIGH], lambda request: GOOD)
    stream = respond(setting_of(engine), session, PLAIN, 0.0)
    assert isinstance(next(stream), Card)
    stream.close()
    assert session.state.floor == Level.HIGH
    assert len(engine.requests) == 1
