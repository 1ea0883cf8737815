"""The audit: figures of a small corpus that were counted by hand, and the known figures of the real ones."""

import json
import os
import time
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from warmline.config.reading import load_recipe
from warmline.data.audit import CROWD_WORK, NUM_REASONS, Audit, SplitFigures, audit, has_debris, num_steps, without_text
from warmline.data.prepare import load_corpus, read_splits
from warmline.data.sources.reading import Rejections, SourceError
from warmline.serve.audit_view import FIGURES, WHOLES, show_audit

from .conftest import ToyRecipe
from .test_overlap import LONG, ONE_WORD_CHANGED

MOJIBAKE = "It\u00e2\u20ac\u2122s over"


def user(text: str, **labels: object) -> dict[str, object]:
    return {"role": "user", "content": text, **labels}


def supporter(text: str, *strategy: str) -> dict[str, object]:
    return {"role": "assistant", "content": text, **({"strategy": list(strategy)} if strategy else {})}


TRAIN = [
    (
        "a",
        supporter("Hello there.", "Others"),  # opens, and is short
        user("My cat ran away.", emotions=["sadness"]),
        supporter("When was that.", "Question"),  # no question mark
        supporter(
            "Cats often come back. Text me at 0161 496 0000 or see www.example.org/cats", "Information"
        ),  # merged
        user("On Sunday.", emotions=["sadness", "fear"], situation="lonely"),  # ends on the user
    ),
    ("b", user(LONG, emotions=["annoyance"]), supporter("Cold tea!", "Restatement or Paraphrasing")),
    ("c", user("The survey asks for caf\u00e9s & bars.", risk="none"), supporter("Which one?", "Question")),
    ("d", user("The survey asks for caf\u00e9s, bars.", affect={"valence": 0.5, "arousal": 0}), supporter("which ONE")),
    ("e", user(f"{MOJIBAKE}, write to ann@example.org"), supporter("I will listen.", "Others")),
]
VALIDATION = [
    ("v", user(ONE_WORD_CHANGED, emotions=["annoyance"]), supporter("Cold tea!")),
    (
        "w",
        user("I took the day off to walk by the sea.", emotions=["relief"]),
        supporter("How was the sea?", "Question"),
    ),
]
TEST = [
    ("x", user("I took the day off to walk by the sea!"), supporter("Good for you.", "Affirmation and Reassurance"))
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    for split, rows in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
        lines = [json.dumps({"id": name, "messages": messages}) for name, *messages in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def audited(toy_recipe: ToyRecipe, folder: Path, **changes: object) -> Audit:
    recipe = load_recipe(str(toy_recipe(data__sources__talks__location=str(folder), **changes)))
    rejections = Rejections()
    steps: list[int] = []

    def advance(count: int, _note: str) -> None:
        steps.append(count)

    splits = read_splits(recipe, None, rejections, advance)
    result = audit(recipe.name, recipe.data, splits, rejections, advance)
    assert sum(steps) == num_steps(recipe.data)
    return result


def test_sizes_and_artefacts(toy_recipe: ToyRecipe, corpus: Path) -> None:
    train, validation, test = audited(toy_recipe, corpus).splits
    assert asdict(train) == {
        "source": "talks",
        "split": "train",
        "conversations": 5,
        "user_turns": 6,
        "supporter_turns": 6,
        "words": 2 + 4 + 14 + 2 + 27 + 2 + 7 + 2 + 6 + 2 + 5 + 3,
        "opened_by_supporter": 1,
        "ended_by_user": 1,
        "merged_replies": 1,
        "short_replies": 4,  # Hello there. Cold tea! Which one? which ONE
        "questions_unmarked": 1,
        "crowd_work": 2,
        "user_contacts": 1,
        "masked": {"link": 1, "phone": 1},
        "emotion_turns": 3,
        "multi_label": 1,
        "non_ascii": 3,
        "debris": 1,
    }
    assert (validation.conversations, validation.user_turns, validation.supporter_turns) == (2, 2, 2)
    assert (validation.short_replies, validation.emotion_turns, validation.masked) == (1, 2, {})
    assert (test.conversations, test.words, test.ended_by_user) == (1, 13, 0)


def test_repeats(toy_recipe: ToyRecipe, corpus: Path) -> None:
    found = [tuple(asdict(each).values()) for each in audited(toy_recipe, corpus).repeats]
    talks = "talks"
    assert found == [
        (talks, "train", talks, "train", 2, 0, 0, (("c", "d"),)),
        (talks, "train", talks, "validation", 0, 1, 0, (("b", "v"),)),
        (talks, "validation", talks, "train", 0, 1, 0, (("v", "b"),)),
        (talks, "validation", talks, "test", 0, 0, 1, (("w", "x"),)),
        (talks, "test", talks, "validation", 0, 0, 1, (("x", "w"),)),
    ]


def test_labels(toy_recipe: ToyRecipe, corpus: Path) -> None:
    result = audited(toy_recipe, corpus)
    assert {(each.head, each.split): each.counts for each in result.labels} == {
        ("emotion", "train"): {"annoyance": 1, "fear": 1, "sadness": 2},
        ("emotion", "validation"): {"annoyance": 1, "relief": 1},
        ("situation", "train"): {"lonely": 1},
        ("strategy", "train"): {"Question": 2, "Restatement or Paraphrasing": 1, "Information": 1, "Others": 2},
        ("strategy", "validation"): {"Question": 1},
        ("strategy", "test"): {"Affirmation and Reassurance": 1},
        ("risk", "train"): {"none": 1},
        ("affect", "train"): {"valence": 1, "arousal": 1},
    }
    assert result.evaluation_only_labels == {"emotion": ("relief",), "strategy": ("Affirmation and Reassurance",)}


def test_overlaps_are_counted_before_any_is_left_out_and_fail_above_the_limit(
    toy_recipe: ToyRecipe, corpus: Path
) -> None:
    result = audited(toy_recipe, corpus)
    (source,) = result.sources
    assert (source.overlaps, source.overlap_share) == (1, 0.25)  # c and d are one text
    assert result.failures == (
        "talks: 25.0% of the train texts stand in an evaluation split too, at most 1.0% allowed (data.max_overlap_share)",
    )
    assert audited(toy_recipe, corpus, data__max_overlap_share=0.25).failures == ()


def test_the_audit_fails_where_a_run_refuses(toy_recipe: ToyRecipe, corpus: Path) -> None:
    (failure,) = audited(toy_recipe, corpus).failures
    with pytest.raises(SourceError) as caught:
        load_corpus(load_recipe(str(toy_recipe(data__sources__talks__location=str(corpus)))), None)
    assert str(caught.value).startswith(failure)


def test_rejected_rows_are_counted_by_reason_and_fail_above_the_limit(toy_recipe: ToyRecipe, corpus: Path) -> None:
    bad = [json.dumps({"id": f"bad{at}", "messages": [user("Well.", situation=f"nowhere{at}")]}) for at in range(14)]
    odd = json.dumps({"id": "odd", "messages": [user("Hm.", emotions=["I feel so empty today"])]})
    with (corpus / "train.jsonl").open("a") as file:
        file.write("\n".join([*bad, odd, "{broken"]) + "\n")
    (source,) = (result := audited(toy_recipe, corpus, data__max_overlap_share=1.0)).sources
    assert (source.rows, source.rejected, source.rejected_share) == (24, 16, 16 / 24)
    assert len(source.reasons) == NUM_REASONS + 1
    assert source.reasons["other reasons"] == 14 + 2 + 2 - NUM_REASONS  # two pieces were masked
    assert result.failures == ("talks: 66.7% of 24 rows rejected, at most 2.0% allowed (data.max_rejected_share)",)
    assert "empty" not in json.dumps(asdict(result))


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("strategy 'Questoin' is not a known label", "strategy 'Questoin' is not a known label"),
        ("strategy 'Reflection of feelings' ...", "strategy 'Reflection of feelings' ..."),
        ("no 'messages'", "no 'messages'"),
        ("emotion 'I cry' is not a known label", "emotion '...' is not a known label"),
        ('emotion "I can\'t" is not a known label', "emotion '...' is not a known label"),
        (r"emotion 'a \'b\' c' is not a known label", "emotion '...' is not a known label"),
        ("3 columns, expected 2", "3 columns, expected 2"),
    ],
)
def test_reasons_quote_labels_only(reason: str, expected: str) -> None:
    assert without_text(reason) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("press the Quit button", True),
        ("are you on MTurk?", True),
        ("m-turk", True),
        ("Mechanical Turk pays", True),
        ("this HIT ends soon", True),
        ("two HITs", True),
        ("the survey", True),
        ("we hit a wall", False),
        ("a white turkey", False),
        ("I surveyed it", False),
        ("quit my job", False),
    ],
)
def test_crowd_work(text: str, expected: bool) -> None:
    assert (CROWD_WORK.search(text) is not None) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MOJIBAKE, True),
        ("caf\u00c3\u00a9", True),
        ("2\u00c2\u00a0000", True),
        ("\u00f0\u0178\u02dc\u0160", True),
        ("what\ufffds", True),
        ("a\x07b", True),
        ("a\x92b", True),
        ("fish &amp; chips", True),
        ("&#x27;", True),
        ("caf\u00e9, na\u00efve, \u00c2ge, \u00c3o, 5 \u20ac", False),
        ("AT&T; fish & chips; R&D", False),
        ("\U0001f60a", False),
    ],
)
def test_debris(text: str, expected: bool) -> None:
    assert has_debris(text) is expected


def rendered(result: Audit, **console: object) -> str:
    out = StringIO()
    show_audit(result, Console(file=out, highlight=False, **console))  # type: ignore[arg-type]
    return out.getvalue()


def test_tables_fit_a_terminal_and_say_all_figures(toy_recipe: ToyRecipe, corpus: Path) -> None:
    result = audited(toy_recipe, corpus)
    narrow = rendered(result, width=90, force_terminal=True, color_system=None)
    assert max(map(len, narrow.splitlines())) <= 90
    plain = rendered(result, width=400)
    lines = [" ".join(line.split()) for line in plain.splitlines()]
    assert "conversations that end on the user 1 (20%) 0 (0%) 0 (0%)" in lines
    assert "turns with several emotions 1 (33%) 0 (0%) 0" in lines
    assert "phones masked in supporter turns 1 0 0" in lines
    assert "talks train itself c = d 2 0 0" in lines
    assert "talks train rows that stand in an evaluation split 1 25.00% of its texts" in lines
    assert "sadness 2 0" in lines
    assert "no train split has the emotion labels relief: nothing learns them" in lines
    assert lines[-1].startswith("FAILED: talks: 25.0% of the train texts")
    assert rendered(audited(toy_recipe, corpus, data__max_overlap_share=0.5)).splitlines()[-1].startswith("passed")


def test_every_figure_has_its_words() -> None:
    numbers = {each.name for each in fields(SplitFigures) if each.type is int}
    assert {*FIGURES, *WHOLES.values()} == numbers


# ---- the real corpora ----


@pytest.mark.real
def test_the_real_corpora_are_audited_within_a_minute_and_have_their_known_figures(toy_recipe: ToyRecipe) -> None:
    if not os.environ.get("WARMLINE_DATA"):
        pytest.skip("WARMLINE_DATA is not set")
    root = Path(os.environ["WARMLINE_DATA"])
    sources = ("esconv", "empathetic_dialogues", "goemotions", "counsel", "failed_esconv")
    recipe = load_recipe(str(toy_recipe(data__sources={name: {} for name in sources})))
    rejections = Rejections()
    started = time.process_time()
    splits = read_splits(recipe, root, rejections)
    result = audit(recipe.name, recipe.data, splits, rejections, lambda _count, _note: None)
    assert time.process_time() - started < 60
    assert result.failures == ()
    figures = {(each.source, each.split): each for each in result.splits}
    sizes = {source: [figures[source, split].conversations for split in splits] for source in sources}
    assert sizes["esconv"] == [910, 195, 195]
    assert sizes["empathetic_dialogues"] == [19_530, 2_768, 2_546]
    assert sizes["goemotions"] == [43_410, 5_426, 5_427]
    assert sum(sizes["counsel"]) == 2_009
    assert sum(sizes["failed_esconv"]) == 196
    # ESConv has 634 supporter turns of two words or fewer; 437 are left once turns of one speaker are joined.
    assert sum(figures["esconv", split].short_replies for split in splits) == 437
    assert figures["goemotions", "train"].multi_label == 7_102
    strategies = next(each for each in result.labels if (each.head, each.source) == ("strategy", "esconv"))
    assert strategies.counts["Question"] == 2_622
    emotions = next(each for each in result.labels if (each.head, each.split) == ("emotion", "test"))
    assert (emotions.counts["grief"], emotions.counts["relief"], emotions.counts["pride"]) == (6, 11, 16)
    # 37 test comments stand in train letter by letter; folded, 111 do, and 2 more nearly.
    texts = {split: [each.turns[0].text for each in splits[split]["goemotions"]] for split in splits}
    assert len([text for text in texts["test"] if text in set(texts["train"])]) == 37
    repeats = {(each.source, each.split, each.other_source, each.other_split): each for each in result.repeats}
    in_train = repeats["goemotions", "test", "goemotions", "train"]
    assert (in_train.exact, in_train.near) == (111, 2)
    goemotions = next(each for each in result.sources if each.source == "goemotions")
    assert goemotions.overlaps == 453
    assert 0.004 < goemotions.overlap_share < 0.0041
    assert all(each.overlaps == 0 for each in result.sources if each.source != "goemotions")
