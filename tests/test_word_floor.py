"""The floor of held-out replies: words by how often they stand in train, unseen words spelled."""

import math
from pathlib import Path

import pytest

from warmline.config.training import EvalSettings
from warmline.data.conversation import Conversation, Turn
from warmline.evaluate.floors import Floors, fit_floors
from warmline.evaluate.held_out import Row, samples
from warmline.evaluate.rows import append_row
from warmline.evaluate.summary import held_out_file, summarise
from warmline.evaluate.word_floor import END, PIECE, WordFloor, fit_words
from warmline.run_dir import RunDir

REPLIES = ["That sounds hard.", "That is  good!", "I am glad.\nSo glad."]


def talk(name: str, reply: str) -> Conversation:
    return Conversation(name, "mine", (Turn("user", "Hello."), Turn("assistant", reply)))


def loss(floor: WordFloor, reply: str) -> float:
    [found] = floor.losses([reply])
    return found


def test_pieces_are_the_whole_reply() -> None:
    for reply in (*REPLIES, " a  b ", "...", "no\n\nline", "naïve, 1 '", ""):
        assert "".join(PIECE.findall(reply)) == reply


def test_a_reply_by_hand() -> None:
    floor = fit_words(["yes yes", "no"])  # yes, " yes", no, and two ends: 5 pieces of 4 kinds
    assert floor.words == {"yes": 1, " yes": 1, "no": 1, END: 2}
    assert loss(floor, "no") == pytest.approx(math.log(9 / 1) + math.log(9 / 2))
    # " no" is new: the escape, then a space, n, o and the end of the word, of 12 characters of 7 kinds
    letters = math.log(19 / 1) * 3 + math.log(19 / 3)
    assert loss(floor, "no no") == pytest.approx(math.log(9) + math.log(9 / 2) + math.log(9 / 4) + letters)


def test_shares_of_what_is_known_and_of_all_else_are_one() -> None:
    floor = fit_words(REPLIES)
    empty = loss(floor, "")
    known = [math.exp(empty - loss(floor, word)) for word in floor.words if word != END and PIECE.fullmatch(word)]
    total = sum(floor.words.values()) + len(floor.words)
    assert sum(known) + math.exp(-empty) == pytest.approx(1 - len(floor.words) / total)


def test_frequent_words_are_likelier_and_any_reply_has_a_finite_loss() -> None:
    floor = fit_words(REPLIES)
    assert (
        loss(floor, "That glad.")
        < loss(floor, "That good.")
        < loss(floor, "That zebra.")
        < loss(floor, "That 斑馬斑馬斑.")
    )
    assert math.isfinite(loss(fit_words([]), "Anything."))


def test_the_summary_has_the_floor_in_the_tokens_of_the_stages(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    held_out = [talk(f"c{number}", "That is hard.") for number in range(6)]
    for conversation in held_out:
        [sample] = samples(conversation)
        row = Row(
            id=sample.id,
            conversation=sample.conversation,
            source=sample.source,
            status="scored",
            num_chars=len(sample.reply),
            logprob=-9.0,
            num_tokens=6,
            gold=sample.gold,
        )
        append_row(held_out_file(run, "base"), row.model_dump(mode="json"))
    train = [talk(f"t{number}", reply) for number, reply in enumerate(REPLIES)]
    settings = EvalSettings(bootstrap_samples=100)
    summary = summarise(run, fit_floors(train), settings, seed=7, conversations=held_out)
    assert summary.word_floor
    of_all = summary.word_floor.overall
    expected = loss(fit_words(REPLIES), "That is hard.")
    assert of_all.loss_per_token
    assert of_all.bits_per_char
    assert of_all.loss_per_token.value == pytest.approx(expected / 6)
    assert of_all.bits_per_char.value == pytest.approx(expected / len("That is hard.") / math.log(2))
    assert summary.word_floor.by_source.keys() == {"mine"}
    assert summarise(run, Floors(), settings, seed=7, conversations=held_out).word_floor is None
