"""The bundled corpus: big enough, labelled throughout with known labels, unique, and safe to learn from."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

import pytest

from warmline.config.reading import load_recipe
from warmline.data.conversation import SPLITS, Conversation, Split, Turn
from warmline.data.labels import EMOTIONS, RISKS, SITUATIONS, STRATEGIES
from warmline.data.prepare import Corpus, load_corpus
from warmline.data.sources.bundled import FOLDER, bundled
from warmline.data.sources.chat_jsonl import split_of
from warmline.data.sources.reading import Rejections

FORBIDDEN = {
    "a dose": r"\d\s*(mg|mcg|ml|milligrams?|grams?|g|pills?|tablets?|capsules?|units?|drops?)\b",
    "a link": r"https?:|www\.|\b[\w-]+\.(com|org|net|io|gov|info|co\.uk)\b",
    "an address": r"[\w.]+@[\w.]+",
    "a phone number": r"\d[\d ()-]{6,}\d",
    "a blaming phrase": r"\bcommit\w*\s+suicide\b",
    "a template's token": r"<\|.*?\|>",
}


@pytest.fixture(scope="module")
def by_split() -> dict[Split, list[Conversation]]:
    rejections = Rejections()
    found: dict[Split, list[Conversation]] = {split: list(bundled(None, split, rejections)) for split in SPLITS}
    assert rejections.rows == []
    assert rejections.pieces == []
    return found


@pytest.fixture(scope="module")
def rows(by_split: dict[Split, list[Conversation]]) -> list[Conversation]:
    return [conversation for conversations in by_split.values() for conversation in conversations]


@pytest.fixture(scope="module")
def talks(rows: list[Conversation]) -> list[Conversation]:
    return [row for row in rows if len(row.turns) > 1]


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(load_recipe("tiny"), None)


def turns(rows: list[Conversation], role: str) -> Iterator[Turn]:
    return (turn for row in rows for turn in row.turns if turn.role == role)


def answers(talks: list[Conversation]) -> Iterator[tuple[Conversation, Turn, Turn]]:
    """Every assistant turn with the user turn that it answers."""
    for talk in talks:
        for before, turn in zip(talk.turns, talk.turns[1:], strict=False):
            if turn.role == "assistant":
                yield talk, before, turn


def num_lines(name: str) -> int:
    return len((FOLDER / name).read_text(encoding="utf-8").strip().split("\n"))


def words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[a-z0-9']+", text.lower().replace("\u2019", "'")))


def test_nothing_of_the_files_is_lost_on_the_way(rows: list[Conversation], talks: list[Conversation]) -> None:
    assert len(talks) == num_lines("conversations.jsonl") >= 100
    assert len(rows) - len(talks) == num_lines("utterances.jsonl") >= 400


def test_conversations_have_6_to_14_turns_and_end_with_an_answer(talks: list[Conversation]) -> None:
    lengths = Counter(len(talk.turns) for talk in talks)
    assert min(lengths) >= 6
    assert max(lengths) <= 14
    assert len(lengths) >= 4  # of all lengths, not one
    assert {(talk.turns[0].role, talk.turns[-1].role) for talk in talks} == {("user", "assistant")}


def test_utterances_are_single_user_turns(rows: list[Conversation]) -> None:
    assert {row.turns[0].role for row in rows if len(row.turns) == 1} == {"user"}


def test_every_label_of_the_field_occurs_and_no_other(rows: list[Conversation]) -> None:
    said = list(turns(rows, "user"))
    assert {label for turn in said for label in turn.emotions} == {*EMOTIONS}
    assert {turn.situation for turn in said} - {None} == {*SITUATIONS}
    assert {turn.risk for turn in said} == {*RISKS}
    assert {label for turn in turns(rows, "assistant") for label in turn.strategy} == {*STRATEGIES}


def test_every_turn_is_labelled(rows: list[Conversation], talks: list[Conversation]) -> None:
    for turn in turns(rows, "user"):
        assert turn.emotions, turn.text
        assert turn.risk, turn.text
        assert turn.affect, turn.text
    for turn in turns(talks, "user"):
        assert turn.situation, turn.text
    for turn in turns(talks, "assistant"):
        assert len(turn.strategy) == 1, turn.text


def test_a_conversation_tells_one_situation(talks: list[Conversation]) -> None:
    assert [talk.id for talk in talks if len({turn.situation for turn in talk.turns if turn.role == "user"}) != 1] == []


def test_affect_agrees_with_plain_feelings(rows: list[Conversation]) -> None:
    """One feeling alone decides the sign of valence: joy is not bad, grief is not good."""
    for turn in turns(rows, "user"):
        assert turn.affect is not None
        if turn.emotions == ("joy",):
            assert turn.affect.valence > 0, turn.text
        if turn.emotions == ("grief",):
            assert turn.affect.valence < 0, turn.text


def test_ids_are_unique_over_both_files() -> None:
    ids = [
        json.loads(line)["id"]
        for name in ("conversations.jsonl", "utterances.jsonl")
        for line in (FOLDER / name).read_text(encoding="utf-8").strip().split("\n")
    ]
    assert len(ids) == len(set(ids))


def test_no_text_of_eight_words_or_more_stands_in_two_conversations(rows: list[Conversation]) -> None:
    owners: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    for row in rows:
        for turn in row.turns:
            if len(words(turn.text)) >= 8:
                owners[words(turn.text)].add(row.id)
    assert len(owners) > 1000
    assert {" ".join(text): ids for text, ids in owners.items() if len(ids) > 1} == {}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_text_holds(what: str, rows: list[Conversation]) -> None:
    pattern = re.compile(FORBIDDEN[what], re.IGNORECASE)
    assert [(row.id, turn.text) for row in rows for turn in row.turns if pattern.search(turn.text)] == []


def test_the_patterns_above_find_what_they_name() -> None:
    examples = {
        "a dose": "take 20 mg",
        "a link": "see example.org",
        "an address": "write to a@b.cd",
        "a phone number": "ring 0800 123 4567",
        "a blaming phrase": "he committed suicide",
        "a template's token": "<|im_end|>",
    }
    for what, text in examples.items():
        assert re.search(FORBIDDEN[what], text, re.IGNORECASE), what


def test_answers_at_high_risk_and_above_ask_nothing(talks: list[Conversation]) -> None:
    at_risk = [(talk.id, turn.text) for talk, said, turn in answers(talks) if said.risk in {"high", "emergency"}]
    assert len(at_risk) >= 5
    assert [entry for entry in at_risk if "?" in entry[1]] == []


def test_the_supporter_never_claims_to_be_a_person(talks: list[Conversation]) -> None:
    claim = re.compile(
        r"\bI('m| am) (human|a human|a real person|a person|not an AI|a therapist|a doctor)\b", re.IGNORECASE
    )
    assert [turn.text for turn in turns(talks, "assistant") if claim.search(turn.text)] == []


def test_a_split_depends_on_the_id_alone(by_split: dict[Split, list[Conversation]]) -> None:
    assert all(split_of(row.id) == split for split, found in by_split.items() for row in found)
    assert all(len([row for row in found if len(row.turns) > 1]) >= 5 for found in by_split.values())


def test_the_demonstration_can_learn_every_label(corpus: Corpus) -> None:
    """What the train split lacks, no head could ever predict."""
    labels = {name: set(spec.labels) for name, spec in corpus.specs.items()}
    assert labels["emotion"] == {*EMOTIONS}
    assert labels["situation"] == {*SITUATIONS}
    assert labels["strategy"] == {*STRATEGIES}
    train_risks = {turn.risk for turn in turns(corpus.conversations["train"]["bundled"], "user")}
    assert train_risks == {*RISKS}


def test_the_corpus_ships_in_the_package(corpus: Corpus) -> None:
    assert corpus.about["bundled"]["location"] == str(FOLDER)
    assert corpus.about["bundled"]["rejected"] == {}
    assert FOLDER.parent.name == "warmline"
