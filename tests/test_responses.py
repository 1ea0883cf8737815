"""Responses on held-out turns: overlap is sacrebleu's own, Distinct is counted by hand, every number has floors."""

from pathlib import Path

import numpy as np
import pytest
import sacrebleu

from warmline.data.conversation import Conversation, Turn
from warmline.engine.scripted import ScriptedEngine
from warmline.evaluate.answers import FromEngine
from warmline.evaluate.overlap import bleu_draws, distinct, distinct_interval, ngrams, overlap
from warmline.evaluate.responses import CONSTANT, GOLD, RANDOM, responses_task, summarise, train_replies
from warmline.evaluate.stats import resample
from warmline.evaluate.task import run

PAIRS = [
    ("I am so sorry to hear that, it sounds painful.", "I am sorry to hear that. That sounds really painful!"),
    ("How long has it been going on?", "Since when has it been going on like this?"),
    ("", "Nothing was said here."),
    ("Hello.", "Hello."),
    ("Take care of yourself, and sleep well tonight.", "Take good care, and sleep well."),
]


def talk(number: int, reply: str = "That sounds hard.") -> Conversation:
    turns = (
        Turn("user", f"My day {number} was bad."),
        Turn("assistant", reply),
        Turn("user", "Yes."),
        Turn("assistant", "I see."),
    )
    return Conversation(f"c{number}", "toys", turns)


@pytest.mark.parametrize("order", [2, 4])
def test_bleu_is_that_of_sacrebleu_on_the_corpus(order: int) -> None:
    replies, references = zip(*PAIRS, strict=True)
    found = bleu_draws([overlap(*pair) for pair in PAIRS], order, resample([*range(5)], samples=100, seed=0))
    own = sacrebleu.BLEU(max_ngram_order=order).corpus_score(list(replies), [list(references)])
    assert found[0] == pytest.approx(own.score, abs=1e-9)
    assert own.score > 10
    assert len(found) == 101
    assert np.isfinite(found).all()


def test_rouge_l_by_hand() -> None:
    assert overlap("a b c", "a x c d").rouge_l == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert overlap("", "a b").rouge_l == 0


def test_distinct_counts_by_hand_and_its_jackknife_covers() -> None:
    assert ngrams("I hear, I hear!", 2) == [("i", "hear"), ("hear", ","), (",", "i"), ("i", "hear"), ("hear", "!")]
    assert distinct(["I hear, I hear!"], 2) == 4 / 5
    assert distinct(["", ""], 1) is None
    assert distinct_interval(["", ""], ["a", "b"], 1) is None
    replies = [f"word{number % 20} and {number % 7}" for number in range(60)]
    found = distinct_interval(replies, [str(number) for number in range(60)], 1)
    assert found is not None
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    few = distinct_interval(replies[:3], ["a", "b", "c"], 1)
    assert few is not None
    assert few.low is None


def test_replies_come_from_the_gold_history_and_every_number_has_floors(tmp_path: Path) -> None:
    task = responses_task([talk(number) for number in range(8)])
    assert len(task.samples) == 16
    assert [message.content for message in task.samples[1].messages] == [
        "My day 0 was bad.",
        "That sounds hard.",
        "Yes.",
    ]
    rows = run(task, FromEngine(ScriptedEngine(["That sounds hard.", "I see."])), tmp_path / "responses.base.jsonl")
    train = train_replies([talk(1, "Okay."), talk(2, "Fine then.")])
    assert sorted(train) == ["Fine then.", "I see.", "I see.", "Okay."]
    found = summarise(rows, train, samples=200)
    assert found is not None
    assert (found.num_turns, found.num_conversations, found.unscored) == (16, 8, 0)
    value = {name: each.value for name, each in found.scores.items() if each is not None}
    assert value["bleu_2"] == pytest.approx(100)
    assert value["rouge_l"] == 1
    assert value["words"] == 2.5
    assert value["acknowledges"] > 0
    assert found.floors[CONSTANT]["words"].value == 2  # type: ignore[union-attr]
    assert found.floors[CONSTANT]["bleu_2"].value < 100  # type: ignore[union-attr]
    assert {*found.floors} == {CONSTANT, RANDOM, GOLD}
    assert {*found.floors[RANDOM]} == {*found.scores}
    assert found.floors[GOLD]["words"] == found.scores["words"]
    assert "order:4" in found.signatures["bleu_4"]
    assert found == summarise(rows, train, samples=200), "the same numbers each time"
    assert found.model_dump(mode="json")["scores"]["rouge_l"]["value"] == 1


def test_silence_and_failures_are_no_crash(tmp_path: Path) -> None:
    task = responses_task([talk(number) for number in range(3)])
    rows = run(task, FromEngine(ScriptedEngine([""])), tmp_path / "rows.jsonl")
    found = summarise(rows, [])
    assert found is not None
    assert found.scores["bleu_4"].value == 0  # type: ignore[union-attr]
    assert found.scores["distinct_1_corpus"] is None
    assert {*found.floors} == {GOLD}
    gone = [row.model_copy(update={"status": "unscored", "reply": None}) for row in rows]
    assert summarise(gone, ["a"]) is None
    partly = summarise([*gone[:2], *rows[2:]], ["a"])
    assert partly is not None
    assert partly.unscored == 2


def test_a_seeded_choice_of_turns_stays_in_order() -> None:
    talks = [talk(number) for number in range(8)]
    some = responses_task(talks, max_turns=5)
    assert len(some.samples) == 5
    assert some.samples == responses_task(talks, max_turns=5).samples
    every = [each.id for each in responses_task(talks).samples]
    assert [each.id for each in some.samples] == [each for each in every if each in {one.id for one in some.samples}]
