"""Duplicates: what counts as the same text, what as nearly the same, and that a run trains on none of its evaluation."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.config.reading import load_recipe
from warmline.config.recipe import Recipe
from warmline.data.conversation import SPLITS, Conversation, Split, Turn
from warmline.data.overlap import (
    MAX_ALIKE,
    MIN_NEAR_WORDS,
    MIN_SIMILARITY,
    SHINGLE_WORDS,
    folded,
    jaccard,
    overlap_share,
    same_openings,
    train_overlaps,
    twins,
)
from warmline.data.prepare import load_corpus
from warmline.data.sources.reading import SourceError

from .conftest import ToyRecipe

WORDS = "river stone lamp green walk never after morning slow bread cold window paper seven bright garden".split()
LONG = (
    "The kettle broke on Monday, and by Friday I had drunk so much cold tea "
    "that my sister drove over with her own kettle in a hatbox."
)
ONE_WORD_CHANGED = LONG.replace("Friday", "Sunday")
TWENTY = " ".join(f"word{number}" for number in range(20))


def relation(one: str, other: str) -> str | None:
    found = twins([one, other], ["here", "there"])
    if not found:
        return None
    assert found.keys() == {0, 1}
    assert found[0]["there"].exact == found[1]["here"].exact
    return "exact" if found[0]["there"].exact else "near"


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (LONG, LONG, "exact"),
        (LONG, LONG.upper().replace(",", " -- "), "exact"),
        ("Don't go.", "dont\u00a0 GO!!", "exact"),
        ("I\u2019m  fine_", "im fine", "exact"),
        ("Thank you!", "thank you", "exact"),  # short texts too
        ("\uff26ine.", "fine", "exact"),  # full-width letters
        ("so\u200bon", "soon", "exact"),
        (":)", ":)", "exact"),
        (":)", ":(", None),  # nothing but signs: they are not all one
        ("Gut gemacht", "Gute Nacht", None),
        (LONG, ONE_WORD_CHANGED, "near"),
        (LONG, LONG + " Then she stayed for tea.", "near"),
        (TWENTY, TWENTY.replace("word9 ", "another "), "near"),
        (
            "it was the best day of all days",
            "it was the best day of all weeks",
            "near",
        ),  # 8 words, the last one changed
        ("it was the best day of days", "it was the best day of weeks", None),  # 7 words
        (TWENTY, TWENTY.replace("word9 ", "another ").replace("word14 ", "third "), None),
        (LONG, " ".join(reversed(LONG.split())), None),  # the same words are not the same text
        (LONG, LONG + " " + TWENTY, None),
        ("", "", "exact"),
    ],
)
def test_pairs(one: str, other: str, expected: str | None) -> None:
    assert relation(one, other) == expected


def test_a_text_does_not_repeat_itself_and_names_another_of_its_place() -> None:
    assert twins(["yes", "no", "yes"], ["here"] * 3) == {
        0: {"here": (2, True)},
        2: {"here": (0, True)},
    }


def test_each_place_names_one_twin_and_an_exact_one_before_a_near_one() -> None:
    texts = [LONG, ONE_WORD_CHANGED, LONG, ONE_WORD_CHANGED, TWENTY]
    found = twins(texts, ["train", "test", "test", "validation", "test"])
    assert found[0] == {"test": (2, True), "validation": (3, False)}
    assert found[1] == {"train": (0, False), "validation": (3, True), "test": (2, False)}
    assert found.keys() == {0, 1, 2, 3}


def test_of_a_thousand_copies_of_a_template_each_has_its_twins() -> None:
    """Only some stand for all in the index; the one in test comes after them, and finds and is found."""
    copies = [f"{LONG} This was my kettle number {number}." for number in range(3 * MAX_ALIKE)]
    found = twins(copies, ["train"] * (len(copies) - 1) + ["test"])
    assert all(found[index]["test"] == (len(copies) - 1, False) for index in range(len(copies) - 1))
    assert all(found[index]["train"].other != index for index in range(len(copies)))


def test_no_texts_have_no_twins() -> None:
    assert twins([], []) == {}


def shingles(text: str) -> frozenset[int]:
    words = folded(text).split()
    found = [tuple(words[at : at + SHINGLE_WORDS]) for at in range(len(words) - SHINGLE_WORDS + 1)]
    return frozenset(map(hash, found))


def test_what_is_found_is_what_comparing_all_pairs_finds() -> None:
    """Neither the filter nor the hashing loses a near pair or invents one; seeds of both are fixed."""
    draw = random.Random(3)
    texts: list[str] = []
    for _ in range(60):
        words = draw.choices(WORDS, k=draw.randint(4, 40))
        texts.append(" ".join(words))
        for _ in range(draw.randint(0, 4)):
            words = [draw.choice(WORDS) if draw.random() < 0.04 else word for word in words]
            texts.append(" ".join(words[: draw.randint(len(words) * 3 // 4, len(words))]))
    places = [draw.choice("abc") for _ in texts]
    expected: dict[int, dict[str, bool]] = {}
    for one, text in enumerate(texts):
        for other, another in enumerate(texts):
            is_long = min(len(text.split()), len(another.split())) >= MIN_NEAR_WORDS
            if one != other and folded(text) == folded(another):
                expected.setdefault(one, {})[places[other]] = True
            elif one != other and is_long and jaccard(shingles(text), shingles(another)) >= MIN_SIMILARITY:
                expected.setdefault(one, {}).setdefault(places[other], False)
    found = twins(texts, places)
    assert {index: {at: twin.exact for at, twin in near.items()} for index, near in found.items()} == expected
    kinds = [exact for at in expected.values() for exact in at.values()]
    assert min(kinds.count(True), kinds.count(False)) > 20


@given(st.text())
def test_folding_twice_changes_nothing(text: str) -> None:
    assert folded(folded(text)) == folded(text)


@given(st.lists(st.sampled_from(["ab", "Ab!", "c", "?", "\u00e9t\u00e9", "\ufb01"]), max_size=12))
def test_punctuation_at_the_end_changes_no_text_with_a_word(words: list[str]) -> None:
    text = " ".join(words)
    assert folded(text + "!?") == folded(text) or folded(text).strip("? ") == ""


# ---- the overlap of a run's splits ----


def said(name: str, *texts: str, source: str = "talks") -> Conversation:
    turns = (Turn("assistant" if at % 2 else "user", text) for at, text in enumerate(texts))
    return Conversation(name, source, tuple(turns))


def splits(**of_split: Sequence[Conversation]) -> dict[Split, dict[str, list[Conversation]]]:
    found: dict[Split, dict[str, list[Conversation]]] = {split: {} for split in SPLITS}
    for split in SPLITS:
        for conversation in of_split.get(split, ()):
            found[split].setdefault(conversation.source, []).append(conversation)
    return found


def test_train_is_compared_with_the_evaluation_splits_of_every_source() -> None:
    found = train_overlaps(
        splits(
            train=[
                said("a", LONG, "Oh no."),
                said("b", "I won!", source="notes"),
                said("c", TWENTY),
                said("d", TWENTY),  # a repeat within train is no overlap
                said("e", "I won!", "Congratulations!"),  # the whole conversation counts
            ],
            validation=[said("f", "i won", source="talks")],
            test=[said("g", ONE_WORD_CHANGED, "Oh no!"), said("h", "Something else.")],
        )
    )
    assert [
        (each.conversation.id, each.exact, each.other_source, each.other_split, each.other_id) for each in found
    ] == [
        ("a", False, "talks", "test", "g"),
        ("b", True, "talks", "validation", "f"),
    ]


def test_the_share_counts_texts_and_not_how_often_each_is_said() -> None:
    rows = [said("a", "Thank you!"), said("b", "thank you"), said("c", LONG), said("d", TWENTY), said("e", "No.")]
    assert overlap_share(rows[:2], rows) == 0.25
    assert overlap_share([], []) == 0


def test_openings_are_first_user_turns_of_conversations() -> None:
    opening = "My bicycle was stolen from the yard last night."
    rows = [
        said("a", opening, "How awful."),
        said("b", opening.upper(), "Did you lock it?", "No."),
        said("c", opening),  # one turn: a repeat would be one of the whole text
        said("d", "My bicycle was stolen.", "Oh."),
        said("e", "My bicycle was stolen.", "No!"),  # too short to say anything
        Conversation("f", "talks", (Turn("assistant", "Hello."), Turn("user", opening))),
    ]
    assert sorted(same_openings(rows, ["train", "test", "test", "train", "test", "train"])) == [
        (0, "test", 1),
        (0, "train", 5),
        (1, "train", 0),
        (5, "test", 1),
        (5, "train", 0),
    ]


# ---- a corpus with planted overlaps ----


def chat(name: str, *texts: str) -> str:
    roles = ("user", "assistant")
    messages = [{"role": roles[at % 2], "content": text, "emotions": None} for at, text in enumerate(texts)]
    return json.dumps({"id": name, "messages": messages}) + "\n"


def sentence(seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=14))


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """20 train rows; two of them stand in test, one nearly in validation."""
    folder = tmp_path / "planted"
    folder.mkdir()
    train = [chat(f"t{seed}", sentence(seed), sentence(seed + 100)) for seed in range(17)]
    planted = [chat("same", "Well, that's it.", "I see."), chat("again", "well thats IT", "I see!"), chat("near", LONG)]
    (folder / "train.jsonl").write_text("".join([*train[:5], *planted, *train[5:]]))
    (folder / "validation.jsonl").write_text(chat("v", ONE_WORD_CHANGED) + chat("w", "Quite new.") + chat("x", "Hm."))
    (folder / "test.jsonl").write_text(chat("q", "Well, that's it.", "I see."))
    return folder


def recipe_over(toy_recipe: ToyRecipe, folder: Path, **changes: object) -> Recipe:
    return load_recipe(str(toy_recipe(data__sources__talks__location=str(folder), **changes)))


def test_overlaps_are_left_out_counted_and_written_down(toy_recipe: ToyRecipe, planted: Path, tmp_path: Path) -> None:
    recipe = recipe_over(toy_recipe, planted, data__max_overlap_share=0.2, data__max_rejected_share=0.0)
    rejected = tmp_path / "run" / "rejected.jsonl"
    corpus = load_corpus(recipe, None, rejected)
    kept = [each.id for each in corpus.conversations["train"]["talks"]]
    assert kept == [f"t{seed}" for seed in range(17)]
    about = corpus.about["talks"]
    assert about["counts"] == {"train": 17, "validation": 3, "test": 1}
    assert about["overlaps"] == 3
    assert about["rejected"] == {}  # they are no rejections: no row was bad
    entries = [json.loads(line) for line in rejected.read_text().splitlines()]
    assert [(entry["source"], entry["split"], entry["id"], entry["reason"]) for entry in entries] == [
        ("talks", "train", "same", "overlap: the same text as q in test of talks"),
        ("talks", "train", "again", "overlap: the same text as q in test of talks"),
        ("talks", "train", "near", "overlap: nearly the same text as v in validation of talks"),
    ]
    assert entries[2]["row"]["turns"][0]["text"] == LONG


def test_too_many_overlaps_refuse_and_are_written_down(toy_recipe: ToyRecipe, planted: Path, tmp_path: Path) -> None:
    recipe = recipe_over(toy_recipe, planted, data__max_overlap_share=0.1)
    with pytest.raises(SourceError) as caught:
        load_corpus(recipe, None, tmp_path / "rejected.jsonl")
    assert str(caught.value) == (
        "talks: 10.5% of the train texts stand in an evaluation split too, at most 10.0% allowed "
        "(data.max_overlap_share); `warmline data audit RECIPE` shows where"
    )
    assert len((tmp_path / "rejected.jsonl").read_text().splitlines()) == 3


def test_a_source_that_is_all_overlap_is_refused_whatever_is_allowed(toy_recipe: ToyRecipe, planted: Path) -> None:
    (planted / "train.jsonl").write_text((planted / "test.jsonl").read_text())
    recipe = recipe_over(toy_recipe, planted, data__max_overlap_share=1.0)
    with pytest.raises(SourceError, match=r"data\.sources\.talks: no train conversation is left"):
        load_corpus(recipe, None)


def test_what_trains_does_not_depend_on_how_much_of_validation_is_looked_at(
    toy_recipe: ToyRecipe, planted: Path
) -> None:
    """Caps come after overlaps: the near twin of v is left out although v itself is not looked at."""
    (planted / "validation.jsonl").write_text(chat("w", "Quite new.") + chat("v", ONE_WORD_CHANGED))
    recipe = recipe_over(
        toy_recipe,
        planted,
        data__max_overlap_share=0.2,
        data__sources__talks__max_validation_conversations=1,
        data__sources__talks__max_conversations=16,
    )
    corpus = load_corpus(recipe, None)
    assert [each.id for each in corpus.conversations["validation"]["talks"]] == ["w"]
    train = {each.id for each in corpus.conversations["train"]["talks"]}
    assert len(train) == 16
    assert train < {f"t{seed}" for seed in range(17)}
    assert corpus.about["talks"]["overlaps"] == 3


def test_the_bundled_corpus_has_no_overlap() -> None:
    corpus = load_corpus(load_recipe("tiny"), None)
    assert corpus.about["bundled"]["overlaps"] == 0
