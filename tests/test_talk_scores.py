"""The rules over simulated talks: each measure on a worked example, farewells, and drift with the length of a talk."""

import pytest

from warmline.evaluate.simulate import Talk, TalkTurn
from warmline.evaluate.stats import Interval
from warmline.evaluate.talk_scores import advises_first, overlap, report_talks, score_talk, score_turn
from warmline.safety.validate.context import Turn

SAID = [Turn("user", "I lost my job last week.")]


def talk(name: str, *texts: str, persona: str | None = None, source: str = "model") -> Talk:
    turns = [
        TalkTurn(role="assistant", text=text, level="none", reply_source=source)
        if at % 2
        else TalkTurn(role="user", text=text)
        for at, text in enumerate(texts)
    ]
    return Talk(
        id=name, persona=persona or name, domain="work", risk="none", seeker="s", companion="c", seed=0, made_with="",
        status="scored", ended="turns", turns=tuple(turns),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "question", "advice", "acknowledgement"),
    [
        ("That sounds exhausting.", False, False, True),
        ("What happened next?", True, False, False),
        ("Tell me more.", False, False, False),
        ("Take care. Have a quiet evening.", False, False, False),
        ("You should call them tomorrow.", False, True, False),
        ("I hear how hard this is. Try going for a walk.", False, True, True),
        ("Congratulations, that is wonderful!", False, False, False),
    ],
)
def test_a_turn_is_read_by_the_validators(reply: str, question: bool, advice: bool, acknowledgement: bool) -> None:
    scores = score_turn(reply, SAID)
    assert (scores.advice, scores.acknowledgement) == (advice, acknowledgement)
    assert scores.question or not question
    assert ("?" in reply) <= scores.question


def test_an_invented_memory_is_one_that_nobody_told() -> None:
    assert score_turn("You told me about your sister in Rome.", SAID).invented_memory
    assert not score_turn("You told me about your job.", [*SAID, Turn("user", "It is quiet.")]).invented_memory


def test_repetition_is_the_share_of_trigrams_said_before() -> None:
    assert overlap("that sounds so hard", []) == 0
    assert overlap("That sounds so hard.", ["that sounds so hard"]) == 1
    assert overlap("that sounds so good", ["that sounds so hard", "nothing else"]) == 0.5
    assert overlap("yes", ["yes"]) == 1
    assert overlap("", ["yes"]) == 0


def test_a_farewell_is_answered_freely_or_held_back() -> None:
    leaving = [Turn("user", "thanks, i have to go now. bye!")]
    kind = score_turn("Take care. I am glad that you wrote.", leaving)
    holding = score_turn("Wait, what about tomorrow?", leaving)
    assert (kind.after_goodbye, kind.holds_back) == (True, False)
    assert (holding.after_goodbye, holding.holds_back) == (True, True)
    assert not score_turn("Wait, what about tomorrow?", SAID).after_goodbye


def test_advice_before_listening_is_of_the_first_turns_alone() -> None:
    advice = score_turn("You should call them tomorrow.", SAID)
    heard = score_turn("That sounds exhausting.", SAID)
    plain = score_turn("It is Monday.", SAID)
    assert advises_first([advice])
    assert advises_first([plain, plain, advice])
    assert not advises_first([heard, advice])
    assert not advises_first([plain, plain, plain, advice])
    assert not advises_first([])


def test_notices_are_the_apps_words_and_not_scored() -> None:
    assert score_talk(talk("a", "hi", "Please try again later.", source="notice")) == []
    report = report_talks([talk("a", "hi", "Please try again.", source="notice")], samples=100, seed=1)
    assert (report.num_talks, report.silent, report.measures) == (0, 1, {})


def test_a_report_counts_and_gives_intervals_over_personas() -> None:
    talks = [
        talk(f"p{number}#{repeat}", "hi", "You should ring her.", "ok, bye!", "Take care.", persona=f"p{number}")
        for number in range(7)
        for repeat in range(2)
    ]
    broken = talks[0].model_copy(update={"status": "unscored", "ended": "seeker failed"})
    report = report_talks([*talks, broken], samples=200, seed=1)
    assert (report.num_talks, report.num_personas, report.num_turns, report.unscored) == (14, 7, 28, 1)
    assert report.measures["advice"].value == Interval(0.5, 0.5, 0.5)
    assert report.advice_first == Interval(1.0, 1.0, 1.0)
    assert (report.farewells, report.held_back) == (14, Interval(0.0, 0.0, 0.0))
    assert report.levels == {"none": 28}
    assert report.reply_sources == {"model": 28}


def test_a_planted_drift_is_found_and_early_ends_make_none() -> None:
    """Each talk starts at its own length and grows by two words a turn: the slope is 2 whoever talks how long."""

    def growing(name: str, start: int, num_turns: int) -> Talk:
        texts = [text for at in range(num_turns) for text in ("go on", " ".join(["rain"] * (start + 2 * at)) + ".")]
        return talk(name, *texts)

    talks = [growing(f"p{number}", 3 + 10 * (number % 3), 3 + number) for number in range(8)]
    drift = report_talks(talks, samples=200, seed=1).measures["num_words"].drift
    assert drift is not None
    assert tuple(drift) == pytest.approx((2.0, 2.0, 2.0))
    flat = [talk(f"p{number}", *["hi", "So it is."] * (1 + number % 4)) for number in range(8)]
    drift = report_talks(flat, samples=200, seed=1).measures["num_words"].drift
    assert drift is not None
    assert drift.value == 0
    one_turn = [talk(f"p{number}", "hi", "So it is.") for number in range(8)]
    assert report_talks(one_turn, samples=100, seed=1).measures["num_words"].drift is None


def test_repeating_oneself_shows_as_drift() -> None:
    talks = [
        talk(f"p{number}", "a", "The rain is loud today.", "b", "It was a long night.", "c", "The rain is loud today.")
        for number in range(6)
    ]
    measure = report_talks(talks, samples=100, seed=1).measures["repetition"]
    assert measure.value.value == pytest.approx(1 / 3)
    assert measure.drift is not None
    assert measure.drift.value == pytest.approx(0.5)
