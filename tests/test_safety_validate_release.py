"""What may be shown: the type that only validated text has, verdicts, single sentences, and what a context changes."""

import copy
import pickle
from typing import Any

import pytest

from warmline.safety.levels import LEVELS, Level
from warmline.safety.validate import notice, release, rules
from warmline.safety.validate.context import ContextError, ReplyContext, Turn, context_from_case
from warmline.safety.validate.packs import LANGUAGES
from warmline.safety.validate.questions import SIGNS
from warmline.safety.validate.release import (
    Validated,
    is_validated,
    release_if_valid,
    release_sentence_if_valid,
    validate,
    validate_sentence,
)

from .test_safety_validate import GOOD, high


def test_validated_text_is_made_here_alone() -> None:
    text = release_if_valid(GOOD, high())
    assert is_validated(text)
    assert text == GOOD
    for token in (None, object(), "token", True):
        with pytest.raises(TypeError):
            Validated(GOOD, token)
    with pytest.raises(TypeError):
        Validated(GOOD)
    with pytest.raises(TypeError):
        type("Forged", (Validated,), {})
    assert not is_validated(str.__new__(Validated, GOOD))
    assert not is_validated(GOOD)
    with pytest.raises(AttributeError):
        text._seal = object()


def test_copies_stay_and_pickles_are_refused() -> None:
    text = release_if_valid(GOOD, high())
    assert text is not None
    assert copy.copy(text) is text
    assert copy.deepcopy([text])[0] is text
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError):
            pickle.dumps(text, protocol)


def test_what_is_made_of_validated_text_is_plain() -> None:
    text = release_if_valid(GOOD, high())
    assert text is not None
    made = (text[:], text[3:], text + "", "" + text, text * 1, text.strip(), text.replace("I", "I"), f"{text}")
    for each in (*made, str(text), "".join([text]), text.lower(), text.format(), text.partition("?")[0]):
        assert type(each) is str or each is text


def test_a_reply_that_breaks_a_hard_rule_is_not_released() -> None:
    assert release_if_valid("Promise me you will stay.", high()) is None
    assert release_sentence_if_valid("I won't tell anyone.", "", ReplyContext(Level.NONE)) is None
    assert is_validated(release_sentence_if_valid("Soup sounds good.", "Hello. ", ReplyContext(Level.NONE)))


def test_a_broken_rule_fails_the_reply_and_only_its_own_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(text: str, context: ReplyContext) -> list[Any]:
        raise RecursionError

    assert validate(GOOD, high()).passed
    monkeypatch.setattr(release, "RULES", {**rules.RULES, "diagnosis": broken})
    verdict = validate(GOOD, high())
    assert verdict.violations == verdict.degraded == ("diagnosis",)
    assert release_if_valid(GOOD, high()) is None


def test_the_line_of_safety_validate() -> None:
    line = validate("Promise me.", ReplyContext(Level.ELEVATED)).as_json("a")
    assert line == {
        "id": "a",
        "violations": ["no_suicide_contract"],
        "soft": [],
        "spans": [{"rule": "no_suicide_contract", "start": 0, "end": 10}],
    }


def test_notices_say_that_the_app_speaks() -> None:
    for language in LANGUAGES:
        for kind in notice.KINDS:
            found = notice.notice_for(kind, language)
            assert found.language == language
            assert "warmline" in found.text
            assert not any(char.isdigit() or char in SIGNS for char in found.text)
    assert notice.notice_for("no_reply", "xx").language == "en"
    with pytest.raises(TypeError):
        notice.Notice("no_reply", "en", "I am here.", object())


# One sentence at a time


def test_a_sentence_lacks_nothing() -> None:
    context = ReplyContext(Level.ELEVATED, turns=(Turn("user", "everything is grey"),))
    assert validate_sentence("I hear you.", "", context).violations == ()


def test_a_sentence_is_judged_with_what_was_shown_before() -> None:
    context = ReplyContext(Level.NONE)
    before = "I won't tell anyone. "
    verdict = validate_sentence("It stays between us.", before, context)
    assert verdict.violations == ("promise_of_secrecy",)
    assert all(0 <= span.start < span.end <= len("It stays between us.") for span in verdict.spans)
    assert validate_sentence("How was your day?", before, context).violations == ()


@pytest.mark.parametrize("level", [Level.HIGH, Level.EMERGENCY])
def test_sentences_are_not_released_in_danger(level: Level) -> None:
    with pytest.raises(ValueError, match="the whole reply"):
        validate_sentence("I hear you.", "", ReplyContext(level))


# Settings of a rule


def test_one_question_about_safety_may_be_allowed() -> None:
    asked = f"{GOOD} Are you safe right now?"
    assert validate(asked, high()).violations == ("probing_question",)
    assert validate(asked, high(question_policy="safety_check")).passed
    again = high(question_policy="safety_check", previous_replies=("I hear you. Are you safe tonight?",))
    assert not validate(asked, again).passed
    assert not validate(f"{GOOD} Do you have a plan?", high(question_policy="safety_check")).passed
    assert not validate(f"{asked} Are you safe at home?", high(question_policy="safety_check")).passed


def test_questions_are_soft_at_elevated() -> None:
    verdict = validate("That sounds heavy. What was today like?", ReplyContext(Level.ELEVATED))
    assert verdict.violations == ()
    assert verdict.soft == ("probing_question",)


@pytest.mark.parametrize("sign", sorted(SIGNS))
def test_every_question_mark_counts(sign: str) -> None:
    assert "probing_question" in validate(f"You are alone{sign}", high()).violations


def test_at_emergency_one_sentence_may_send_for_help() -> None:
    urgent = "I'm so scared for you, and you sound desperate. Please contact emergency services now, or get someone near you."
    danger = ReplyContext(Level.EMERGENCY, turns=(Turn("user", "i took it"),))
    assert validate(urgent, danger).passed
    assert "directive_or_actionable_advice" in validate(urgent, high()).violations
    assert "directive_or_actionable_advice" in validate(f"{urgent} Sit down and breathe slowly.", danger).violations


def test_what_the_transcript_or_the_memory_has_may_be_said() -> None:
    claim = "You told me last week that your sister moved to Leeds."
    assert "fabricated_memory" in validate(claim, ReplyContext(Level.NONE)).violations
    told = ReplyContext(Level.NONE, memory=("last week: the user's sister moved to Leeds",))
    assert validate(claim, told).violations == ()
    turns = (Turn("user", "my sister moved to leeds last week"), Turn("assistant", "That is far."), Turn("user", "yes"))
    assert validate(claim, ReplyContext(Level.NONE, turns=turns)).violations == ()
    only_claimed = (Turn("assistant", "Last week your sister moved to Leeds."), Turn("user", "yes"))
    assert "fabricated_memory" in validate(claim, ReplyContext(Level.NONE, turns=only_claimed)).violations


@pytest.mark.parametrize(
    ("told", "claim", "invented"),
    [
        ("Dad says it doesn't matter.", "You mentioned your father says it does not matter.", False),
        ("Dad says it doesn't matter.", "You mentioned your mother says it does not matter.", True),
        ("My mum moved to Leeds.", "You told me that your mother moved to Leeds.", False),
        ("My parents moved to Leeds.", "You told me that your mother died in Leeds.", True),
        ("My wife moved to Leeds.", "You told me that your husband died in Leeds.", True),
    ],
)
def test_a_parent_by_another_word_is_the_same_and_nobody_else_is(told: str, claim: str, invented: bool) -> None:
    turns = (Turn("user", told), Turn("assistant", "I see."), Turn("user", "I failed my test again yesterday."))
    found = validate(claim, ReplyContext(Level.NONE, turns=turns)).violations
    assert ("fabricated_memory" in found) == invented


def test_a_diagnosis_that_the_user_names_may_be_named() -> None:
    reply = "Living with bipolar disorder sounds exhausting, and it is your bipolar that makes it heavier."
    told = ReplyContext(Level.ELEVATED, turns=(Turn("user", "i was diagnosed with bipolar disorder"),))
    assert "diagnosis" not in validate(reply, told).violations
    asked = ReplyContext(Level.ELEVATED, turns=(Turn("user", "do i have bipolar disorder"),))
    assert "diagnosis" in validate("You have bipolar disorder.", asked).violations


def test_a_goodbye_is_let_go() -> None:
    leaving = ReplyContext(Level.NONE, turns=(Turn("user", "ok, gotta go to bed. good night!"),))
    assert validate("Good night, sleep well.", leaving).violations == ()
    assert "dependency_hook" in validate("Before you go, guess what happened!", leaving).violations
    staying = ReplyContext(Level.NONE, turns=(Turn("user", "i had soup"),))
    assert validate("What kind of soup?", staying).violations == ()


@pytest.mark.parametrize(
    "case",
    [
        {}, {"risk": "grave", "turns": []}, {"risk": 2, "turns": []}, {"risk": "high"}, {"risk": "high", "turns": "hi"},
        {"risk": "high", "turns": [{"role": "user"}]}, {"risk": "high", "turns": ["hi"]},
        {"risk": "high", "turns": [], "lang": 3}, {"risk": "high", "turns": [], "domains": "suicide"},
        {"risk": "high", "turns": [], "memory": [1]},
    ],
)  # fmt: skip
def test_a_case_that_is_none_is_refused(case: dict[str, Any]) -> None:
    with pytest.raises(ContextError):
        context_from_case(case)


def test_a_case_shows_its_language_and_themes() -> None:
    turns = [{"role": "user", "content": "no puedo mas con esto y estoy muy sola en mi casa"}]
    assert context_from_case({"risk": "high", "turns": turns}).lang == "es"
    turns = [{"role": "user", "content": "the voices say the cameras are for me"}]
    assert "psychosis_mania" in context_from_case({"risk": "high", "turns": turns}).themes
    assert set(LEVELS) == {"none", "elevated", "high", "emergency"}
