"""Replies at ordinary levels: drawn again where they begin without warmth, with one question at most; and their style."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from warmline.config.fields import StyleSettings
from warmline.dialogue.companion import respond, resume
from warmline.dialogue.manner import advises, asks_for_advice, reframes
from warmline.dialogue.style import PERSONAS, TONES, StyleError, guidance_for, style_in, style_of, styled
from warmline.engine.engine import Chunk, EngineError, GenerateRequest, Reading, Sampling
from warmline.engine.scripted import ScriptedEngine
from warmline.safety.levels import Level
from warmline.safety.release import text_of

from .test_companion import GOOD, RISK, SETTING, Says, answer

COLD = "Noted. Tell me more about the weather there."
WARM = "That sounds really painful. You must feel so let down."
LOST = "I lost my job today, after nine years."


def draws(*replies: str) -> Says:
    """The replies one after the other, however they are asked for."""
    waiting = list(replies)

    def say(request: GenerateRequest) -> Sequence[str]:
        return [waiting.pop(0) for _ in range(request.n)]

    return Says(say)


def test_a_cold_reply_is_drawn_again_and_the_warmest_is_given() -> None:
    engine = draws(COLD, "It happens.", WARM)
    _, last = answer(replace(SETTING, engine=engine, candidates=3, sampling=Sampling(seed=5)), LOST)
    assert last.reply == WARM
    assert [request.n for request in engine.requests] == [1, 2]
    seeds = [request.sampling.seed for request in engine.requests]
    assert len({*seeds}) == 2


def test_a_reply_that_begins_well_is_passed_on_as_it_comes() -> None:
    seen: list[str] = []
    waiting = iter(["That sounds really painful. ", "And ", "then some."])

    class Streams(Says):
        def generate(self, request: GenerateRequest):
            self.requests.append(request)
            for text in waiting:
                seen.append(text)
                yield Chunk(text)

    engine = Streams(lambda request: [])
    stream = respond(replace(SETTING, engine=engine, candidates=4), resume(SETTING, ()), LOST)
    assert text_of(next(stream)) == "That sounds really painful."  # type: ignore[arg-type]
    assert len(seen) == 1
    stream.close()
    assert len(engine.requests) == 1


def test_of_equals_the_first_is_given_and_one_candidate_is_never_judged() -> None:
    _, last = answer(replace(SETTING, engine=draws(COLD, COLD + " Yes."), candidates=2), LOST)
    assert last.reply == COLD
    engine = draws(COLD)
    _, last = answer(replace(SETTING, engine=engine), LOST)
    assert (last.reply, len(engine.requests)) == (COLD, 1)


@pytest.mark.parametrize("said", ["Hello!", "ok thanks"])
def test_a_greeting_needs_no_second_draw(said: str) -> None:
    engine = draws("Hi there.", WARM)
    _, last = answer(replace(SETTING, engine=engine, candidates=2), said)
    assert (last.reply, len(engine.requests)) == ("Hi there.", 1)


def test_what_the_emotion_head_reads_as_neutral_needs_none_either() -> None:
    neutral = Reading("emotion", ("neutral", "joy"), (0.9, 0.1))
    engine = ScriptedEngine(["It is on Monday.", WARM], readings=(neutral,))
    _, last = answer(replace(SETTING, engine=engine, candidates=2), "On which day is the meeting again?")
    assert last.reply == "It is on Monday."


def test_a_second_question_is_left_out() -> None:
    asks = "That sounds painful. What happened? Who told you? I hear you."
    _, last = answer(replace(SETTING, engine=draws(asks), candidates=2), LOST)
    assert last.reply == "That sounds painful. What happened? I hear you."


def test_a_second_draw_that_fails_leaves_the_first() -> None:
    def say(request: GenerateRequest) -> list[str]:
        if request.n > 1:
            raise EngineError("something the server said")
        return [COLD]

    _, last = answer(replace(SETTING, engine=Says(say), candidates=3), LOST)
    assert last.reply == COLD
    assert "one reply alone: EngineError" in last.notes


def test_in_danger_the_ladder_alone_decides() -> None:
    engine = Says(lambda request: [GOOD] * request.n)
    answer(replace(SETTING, engine=engine, candidates=4), RISK)
    assert [request.n for request in engine.requests] == [4]


def test_the_friend_gives_no_unasked_advice_and_the_counselor_may() -> None:
    advice = "That sounds painful. You could try a walk."
    plain = "Hm. That sounds painful."
    for persona, said, expected in (
        ("best friend", LOST, plain),
        ("best friend", f"{LOST} What should I do?", "Well. " + advice),
        ("counselor", LOST, "Well. " + advice),
    ):
        setting = replace(SETTING, engine=draws("Noted.", "Well. " + advice, plain), candidates=3)
        _, last = answer(styled(setting, style_of(persona=persona)), said)
        assert last.reply == expected, (persona, said)


def test_the_readers_of_manner() -> None:
    for text in (
        "Another way to see it: you tried.",
        "Maybe it says how much you cared.",
        "It doesn't have to mean you failed.",
    ):
        assert reframes(text), text
    for text in ("That sounds hard.", "Maybe tomorrow.", "He lives the other way."):
        assert not reframes(text), text
    for text in ("You could try writing it down.", "Have you thought about calling her?", "Call her tomorrow."):
        assert advises(text), text
    for text in ("That sounds hard.", "You could hear it in her voice.", "I hope it eases."):
        assert not advises(text), text
    assert asks_for_advice("Any advice?")
    assert not asks_for_advice("I don't want to hear from him.")


# -- style -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tone", TONES)
@pytest.mark.parametrize("persona", PERSONAS)
def test_every_style_stands_in_the_system_turn_as_in_training(tone: str, persona: str) -> None:
    engine = Says(lambda request: ["I see."])
    answer(styled(replace(SETTING, engine=engine), style_of(tone, persona)), "I made soup today.")
    system = engine.requests[0].messages[0].content
    assert system.startswith(f"You are a friend.\n<tone:{tone}><persona:{persona}>")
    guidance = guidance_for(style_of(tone, persona), Level.NONE)
    assert system.endswith(guidance)
    assert bool(guidance) == (persona in ("best friend", "counselor"))


def test_where_the_level_takes_the_persona_away_the_style_goes_too() -> None:
    engine = Says(lambda request: [GOOD] * request.n)
    setting = styled(replace(SETTING, engine=engine), style_of("warm", "counselor"))
    answer(setting, RISK)
    assert "<tone" not in engine.requests[0].messages[0].content
    _, last = answer(setting, "I wish I was dead")
    assert last.level == Level.ELEVATED
    elevated = engine.requests[-1].messages[0].content
    assert "<tone:warm><persona:counselor>" in elevated
    assert "one small step" not in elevated  # no advice there


def test_a_style_that_is_none_is_refused_with_those_that_are() -> None:
    with pytest.raises(StyleError, match=r"tone: expected one of warm, .*did you mean 'warm'"):
        style_of("wram")
    with pytest.raises(StyleError, match="persona: expected one of best friend"):
        style_of(persona="therapist")
    assert style_of("  WARM ", "Best  Friend") == StyleSettings(tone="warm", persona="best friend")
    assert style_of() == StyleSettings()


def test_a_style_in_words() -> None:
    calm = StyleSettings(tone="calm")
    assert style_in(["mentor"], calm) == StyleSettings(tone="calm", persona="mentor")
    assert style_in(["off"], calm) == StyleSettings()
    for words in ([], ["warm", "calm"], ["warm", "of", "you"], ["best"]):
        assert style_in(words, calm) is None, words
