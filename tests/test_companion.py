"""The only door to a reply: what comes first, what is held, which tier speaks, and that nothing unchecked gets out."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

from warmline.dialogue.companion import Answer, Session, Setting, respond
from warmline.engine.engine import Capability, Chunk, EngineError, GenerateRequest, Message, Scores
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.detect import load_detector
from warmline.safety.levels import Level
from warmline.safety.policy import PolicyError
from warmline.safety.release import Released, text_of
from warmline.safety.resources.card import Card
from warmline.safety.resources.directory import load_directory
from warmline.safety.validate.notice import Notice
from warmline.safety.validate.release import Validated

GOOD = (
    "I hear how much pain you are carrying, and it sounds exhausting and lonely. You deserve to have someone with you in "
    "this, a person you trust and someone trained to listen."
)
RISK = "I want to kill myself tonight"
SETTING = Setting(ScriptedEngine(), load_detector(), load_directory(), "You are a friend.", country="IE")


class Says:
    """An engine that answers as it is told, and remembers what it was asked."""

    def __init__(self, say: Callable[[GenerateRequest], Sequence[str]], can: Sequence[Capability] = ("n",)) -> None:
        self._say = say
        self._can: frozenset[Capability] = frozenset(can)
        self.requests: list[GenerateRequest] = []

    def capabilities(self) -> frozenset[Capability]:
        return self._can

    def generate(self, request: GenerateRequest) -> Iterator[Chunk]:
        self.requests.append(request)
        for index, text in enumerate(self._say(request)):
            for piece in re.findall(r"\s*\S+", text):
                yield Chunk(piece, index)

    def score(self, messages: Sequence[Message], reply: str) -> Scores:
        raise EngineError("not asked here")


def answer(setting: Setting, *said: str, session: Session | None = None) -> tuple[list[Released], Answer]:
    """What the last of some turns gave: what was released, and the answer."""
    session = session or Session()
    pieces: list[Released] = []
    last: Answer | None = None
    for at, text in enumerate(said):
        pieces, last = [], None
        for each in respond(setting, session, text, float(at)):
            if isinstance(each, Answer):
                last = each
            else:
                assert last is None, "something came after the answer"
                pieces.append(each)
    assert last is not None
    return pieces, last


def test_an_ordinary_turn_is_answered_sentence_by_sentence_without_a_card() -> None:
    pieces, last = answer(
        replace(SETTING, engine=ScriptedEngine(["That sounds lovely. I like soup too."])), "I made soup."
    )
    assert [text_of(piece) for piece in pieces] == ["That sounds lovely.", "I like soup too."]
    assert (last.level, last.card, last.reply_source) == (Level.NONE, None, "model")
    assert all(isinstance(piece, Validated) for piece in pieces)


def test_in_danger_the_card_comes_before_the_engine_is_asked_at_all() -> None:
    engine = Says(lambda request: [GOOD] * request.n)
    stream = respond(replace(SETTING, engine=engine), Session(), RISK, 0.0)
    assert isinstance(next(stream), Card)
    assert engine.requests == []
    pieces = list(stream)
    assert pieces[0] == GOOD
    [request] = engine.requests
    assert request.n == 4
    assert request.messages[0].role == "system"
    assert "friend" not in request.messages[0].content  # the persona is off
    assert request.sampling.max_new_tokens <= 90


def test_the_card_is_shown_again_only_when_the_level_rises() -> None:
    setting = replace(SETTING, engine=Says(lambda request: [f"{GOOD} {len(request.messages)}"] * request.n))
    session = Session()
    shown = []
    for text in (RISK, "it is so dark", "I took all the pills just now", "ok"):
        pieces, last = answer(setting, text, session=session)
        shown.append(any(isinstance(piece, Card) for piece in pieces))
        assert last.card is not None
    assert shown == [True, False, True, False]


def test_a_reply_that_breaks_a_rule_is_rewritten_or_replaced_and_never_shown() -> None:
    bad = "You must promise me not to do it. Why do you feel like that?"

    def say(request: GenerateRequest) -> list[str]:
        repairs = "must not be sent" in request.messages[-1].content
        return [GOOD if repairs else bad] * request.n

    pieces, last = answer(replace(SETTING, engine=Says(say)), RISK)
    assert (last.reply, last.reply_source) == (GOOD, "rewrite")
    assert bad not in " ".join(map(text_of, pieces))


def test_two_halves_make_a_reply_where_no_whole_one_passes() -> None:
    first, second = GOOD.split(". ", 1)

    def say(request: GenerateRequest) -> list[str]:
        last = request.messages[-1].content
        if "names what they seem to feel" in last:
            return [first + "."] * request.n
        return [second if "invites them" in last else "You should call now."] * request.n

    _, last = answer(replace(SETTING, engine=Says(say)), RISK)
    assert (last.reply, last.reply_source) == (GOOD, "slots")


@pytest.mark.parametrize(
    "text", [RISK, "I took all my pills just now and feel fine", "my dad is hitting my mum downstairs"]
)
def test_with_random_logits_the_guided_tier_speaks_and_what_it_says_passes(text: str) -> None:
    pieces, last = answer(SETTING, text)
    assert last.reply_source == "guided"
    assert isinstance(pieces[0], Card)
    assert len(last.reply.split()) >= 20
    assert "?" not in last.reply
    assert not re.search(r"\d", last.reply)


def test_guided_replies_differ_from_prompt_to_prompt() -> None:
    replies = {answer(SETTING, f"I want to kill myself, {name} does not know")[1].reply for name in range(20)}
    assert len(replies) >= 19


def failing(request: GenerateRequest) -> list[str]:
    raise EngineError("out of memory")


@pytest.mark.parametrize("text", [RISK, "hello there"])
def test_an_engine_that_fails_gives_a_notice_and_the_card(text: str) -> None:
    pieces, last = answer(replace(SETTING, engine=Says(failing, ("n", "grammar"))), text)
    assert isinstance(pieces[-1], Notice)
    assert isinstance(pieces[0], Card) == (text == RISK)
    assert (last.reply, last.reply_source) == ("", "notice")
    assert any("EngineError" in note for note in last.notes)


def test_denial_does_not_end_the_care() -> None:
    _, last = answer(SETTING, RISK, "I was joking, forget it", "what is the capital of France")
    assert last.level == Level.HIGH
    assert last.card is not None


def test_an_invented_memory_is_dropped_and_drawn_again() -> None:
    def say(request: GenerateRequest) -> list[str]:
        return ["I like it."] if request.prefill else ["That is nice. I remember when we met last week."]

    engine = Says(say)
    pieces, last = answer(replace(SETTING, engine=engine), "I bought a lamp.")
    assert last.reply == "That is nice. I like it."
    assert engine.requests[1].prefill == "That is nice."
    assert len(pieces) == 2


def test_a_safety_question_needs_an_owner() -> None:
    with pytest.raises(PolicyError, match="named owner"):
        answer(replace(SETTING, question_policy="safety_check"), RISK)


def test_with_no_detector_working_whole_replies_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("warmline.safety.detect.read_message", broken)
    _, last = answer(replace(SETTING, engine=Says(lambda request: ["That sounds good."] * request.n)), "hi")
    assert last.level == Level.ELEVATED
    assert "guarded" in last.degraded


@pytest.mark.parametrize("text", ["", "\ud800\ud800", "😀" * 3, "\u202etxet", "x" * 1_000_000])
def test_any_text_is_answered(text: str) -> None:
    pieces, last = answer(replace(SETTING, engine=ScriptedEngine(["I am here."])), text)
    assert pieces
    assert last.level in Level


def test_a_sink_takes_released_text_only() -> None:
    for forged in ("a str", str.__new__(Validated, "a lookalike"), b"bytes", None):
        with pytest.raises(TypeError, match="was not released"):
            text_of(forged)  # type: ignore[arg-type]
