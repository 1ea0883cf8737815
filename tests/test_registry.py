"""The sources by name: where each is found, caps, refusals, and the real corpora whole."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from warmline.config.reading import load_recipe
from warmline.config.training import SourceSettings
from warmline.data.conversation import SPLITS, Conversation, Split
from warmline.data.labels import EMOTIONS, LABEL_SETS, SITUATION_EMOTIONS, SITUATIONS
from warmline.data.prepare import load_corpus
from warmline.data.sources import goemotions
from warmline.data.sources.hub import first_reachable
from warmline.data.sources.reading import Rejections, notice
from warmline.data.sources.registry import fingerprint, load, locate

from .conftest import ToyRecipe
from .test_sources import load_all, refusal
from .test_sources_layouts import LAYOUTS

HUB = {str(layout.location): layout.content for layout in LAYOUTS.values() if isinstance(layout.content, list)}
GONE = DatasetNotFoundError("Dataset doesn't exist on the Hub.")
SCRIPT = RuntimeError("Dataset scripts are no longer supported, but found esconv.py")
ORIGINAL, SORTED = "Ashokajou51/ESConv_Original", "Ashokajou51/ESConv_Sorted"
ALLOW = "--set data.allow_fallbacks=true"
BreakHub = Callable[..., None]


@pytest.fixture
def break_hub(monkeypatch: pytest.MonkeyPatch) -> BreakHub:
    """A hub in memory with the rows of every layout in all splits, of which some datasets fail."""
    first_reachable.cache_clear()
    notice.cache_clear()

    def fail(errors: dict[str, Exception]) -> None:
        def load_dataset(hub_id: str) -> Any:
            if hub_id in errors:
                raise errors[hub_id]
            rows = HUB[hub_id]
            assert isinstance(rows, list)
            return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split in SPLITS})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return fail


def loaded(name: str, settings: SourceSettings, split: Split = "train", **changes: Any) -> list[Conversation]:
    known: dict[str, Any] = {"data_root": None, "rejections": Rejections(), "allowed_labels": {}, "seed": 7}
    return load(name, settings, split, **(known | changes))


def test_locate(tmp_path: Path) -> None:
    (tmp_path / "empatheticdialogues").mkdir()
    assert locate("empathetic_dialogues", SourceSettings(), tmp_path) == str(tmp_path / "empatheticdialogues")
    (tmp_path / "empathetic_dialogues_v2").mkdir()
    assert locate("empathetic_dialogues", SourceSettings(), tmp_path) == str(tmp_path / "empathetic_dialogues_v2")
    assert locate("goemotions", SourceSettings(), tmp_path) == goemotions.HUB_ID
    assert locate("esconv", SourceSettings(location="some/mirror"), tmp_path) == "some/mirror"
    for settings, expected in (
        (SourceSettings(location="./gone"), "data.sources.esconv.location: ./gone does not exist"),
        (SourceSettings(reader="chat_jsonl"), "data.sources.esconv.location is missing: give a file or folder"),
        (SourceSettings(reader="chat_jsonl", location="a/b"), "data.sources.esconv.location: a/b does not exist"),
        (SourceSettings(reader="escon"), "data.sources.esconv: 'escon' is no source (did you mean 'esconv'?); known: "),
    ):
        assert refusal(partial(locate, "esconv", settings, None)).startswith(expected)


def test_load_names_caps_and_checks_labels(tmp_path: Path) -> None:
    rows = [f"Row {n} here.\t{n % 28}\tid{n}" for n in range(50)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / name).write_text("\n".join(rows))
    settings = SourceSettings(
        reader="goemotions", location=str(tmp_path), max_conversations=9, max_validation_conversations=3
    )
    allowed = {"emotion": LABEL_SETS["emotion"][1:]}  # without admiration: rows 0 and 28

    def ids(split: Split, seed: int, rejections: Rejections) -> list[str]:
        found = loaded("mine", settings, split, rejections=rejections, allowed_labels=allowed, seed=seed)
        assert {conversation.source for conversation in found} == {"mine"}
        return [conversation.id for conversation in found]

    rejections = Rejections()
    train = ids("train", 1, rejections)
    assert [(entry.source, entry.id, entry.reason) for entry in rejections.rows] == [
        ("mine", "id0", "emotion 'admiration' is not a known label"),
        ("mine", "id28", "emotion 'admiration' is not a known label"),
    ]
    assert rejections.num_rows == {"mine": 50}
    assert rejections.share("mine") == 0.04
    assert len(train) == 9
    assert train == sorted(train, key=lambda row_id: int(row_id[2:])) == ids("train", 1, Rejections())
    assert train != ids("train", 2, Rejections())
    assert ids("validation", 1, Rejections()) == ["id1", "id2", "id3"]


def test_a_source_that_yields_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("{}\n{\n{}\n")
    (tmp_path / "test.txt").write_text("\n")
    settings = SourceSettings(location=str(tmp_path))
    reasons: dict[Split, str] = {
        "train": "3 rows read; rejected: no 'dialog' (2), malformed JSON: Expecting property name enclosed",
        "test": "it is empty)",
    }
    for split, why in reasons.items():
        found = refusal(partial(loaded, "esconv", settings, split))
        assert found.startswith(f"data.sources.esconv: no {split} conversation in {tmp_path} ({why}")


def test_unknown_columns_are_refused_and_known_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("asked,said\nWhat now?,Rest.\n")
    columns = {"question": "asked", "answer": "said"}
    settings = SourceSettings(reader="counsel", location=str(path), columns=columns)
    [found] = loaded("mine", settings)
    assert (found.source, [turn.text for turn in found.turns]) == ("mine", ["What now?", "Rest."])
    for reader, key, message in (
        ("counsel", "anwser", "unknown key 'anwser' (did you mean 'answer'?); known: question, answer"),
        ("esconv", "text", "unknown key 'text'; known: none, its layout is fixed"),
    ):
        wrong = SourceSettings(reader=reader, location=str(tmp_path), columns={key: "said"})
        assert refusal(partial(loaded, "mine", wrong)) == f"data.sources.mine.columns: {message}"


def test_situations_label_emotions_only_where_asked_and_only_where_one_matches(tmp_path: Path) -> None:
    assert SITUATION_EMOTIONS.keys() < {*SITUATIONS}
    assert {*SITUATION_EMOTIONS.values()} < {*EMOTIONS}
    says = [("proud", None), ("nostalgic", None), ("sad", "grief"), ("furious", None)]
    rows = [
        {"messages": [{"role": "user", "content": "Hm.", "situation": situation, "emotions": emotion}]}
        for situation, emotion in says
    ]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row | {"id": n}) for n, row in enumerate(rows)))

    def labels(rejections: Rejections, **changes: Any) -> list[tuple[str | None, tuple[str, ...]]]:
        settings = SourceSettings(reader="chat_jsonl", location=str(tmp_path), **changes)
        found = loaded("mine", settings, rejections=rejections, allowed_labels={"emotion": ("pride", "grief")})
        return [(talk.turns[0].situation, talk.turns[0].emotions) for talk in found]

    rejections = Rejections()
    assert labels(rejections) == [("proud", ()), ("nostalgic", ()), ("sad", ("grief",)), ("furious", ())]
    assert rejections.counts("mine") == {}
    mapped = labels(rejections, map_situations=True)
    assert mapped == [("proud", ("pride",)), ("nostalgic", ()), ("sad", ("grief",)), ("furious", ())]
    assert rejections.counts("mine") == {"situation without a matching emotion": 2}  # anger is not allowed here
    assert rejections.rows == []


@pytest.mark.parametrize("error", [GONE, SCRIPT, ConnectionError("Couldn't reach the Hub"), OSError("timed out")])
def test_an_unreachable_dataset_names_its_mirrors_and_how_to_allow_them(
    error: Exception, break_hub: BreakHub, capsys: pytest.CaptureFixture[str]
) -> None:
    break_hub({"thu-coai/esconv": error})
    message = refusal(partial(loaded, "esconv", SourceSettings()))
    assert message.startswith("data.sources.esconv: hub dataset thu-coai/esconv ")
    assert message.endswith(
        f"; allow a mirror ({ORIGINAL}, {SORTED}) with {ALLOW}, "
        "give a local folder in data.sources.esconv.location or set WARMLINE_DATA"
    )
    assert capsys.readouterr().err == ""


def test_an_allowed_mirror_stands_in_for_every_split_and_is_said_once(
    break_hub: BreakHub, capsys: pytest.CaptureFixture[str]
) -> None:
    break_hub({"thu-coai/esconv": SCRIPT, ORIGINAL: GONE})
    parts = [loaded("esconv", SourceSettings(), split, allow_fallbacks=True) for split in SPLITS]
    assert [len(part) for part in parts] == [2, 2, 2]
    assert capsys.readouterr().err == (
        "hub dataset thu-coai/esconv is only a loading script, which `datasets` no longer runs; "
        f"reading {SORTED} instead\n"
    )
    break_hub({})  # back again: this process stays with what it found
    assert locate("esconv", SourceSettings(), None, allow_fallbacks=True) == SORTED
    assert locate("esconv", SourceSettings(), None) == "thu-coai/esconv"


def test_a_stated_dataset_falls_back_to_the_usual_one_first(break_hub: BreakHub, tmp_path: Path) -> None:
    script = "facebook/empathetic_dialogues"
    break_hub({script: SCRIPT})
    settings = SourceSettings(location=script)
    assert locate("empathetic_dialogues", settings, None, allow_fallbacks=True) == "Adapting/empathetic_dialogues_v2"
    assert "allow a mirror (Adapting/empathetic_dialogues_v2, Estwld/" in refusal(
        partial(loaded, "empathetic_dialogues", settings)
    )
    (tmp_path / "esconv").mkdir()
    assert locate("esconv", SourceSettings(), tmp_path, allow_fallbacks=True) == str(tmp_path / "esconv")


def test_only_what_cannot_be_had_is_replaced(break_hub: BreakHub) -> None:
    break_hub({"thu-coai/esconv": DatasetGenerationError("An error occurred"), ORIGINAL: GONE})
    assert refusal(partial(loaded, "esconv", SourceSettings(), allow_fallbacks=True)) == (
        "hub dataset thu-coai/esconv is malformed: An error occurred"
    )
    break_hub({"thu-coai/esconv": GONE, ORIGINAL: GONE, SORTED: SCRIPT})
    assert refusal(partial(loaded, "esconv", SourceSettings(), allow_fallbacks=True)) == (
        f"data.sources.esconv: none of thu-coai/esconv, {ORIGINAL}, {SORTED} can be had; hub dataset thu-coai/esconv "
        "cannot be read: Dataset doesn't exist on the Hub; "
        "give a local folder in data.sources.esconv.location or set WARMLINE_DATA"
    )
    break_hub({"google-research-datasets/go_emotions": GONE})
    assert "mirror" not in refusal(partial(loaded, "goemotions", SourceSettings(), allow_fallbacks=True))


def test_a_mirror_without_labels_works_and_is_named_once(
    break_hub: BreakHub, capsys: pytest.CaptureFixture[str]
) -> None:
    v2, estwld, helm, bare = (hub_id for hub_id in HUB if "empathetic" in hub_id)
    break_hub({v2: SCRIPT, estwld: GONE, helm: GONE})
    for split in SPLITS:
        assert len(loaded("empathetic_dialogues", SourceSettings(), split, allow_fallbacks=True)) == 2
    notices = capsys.readouterr().err.splitlines()
    assert notices[1:] == [
        f"data.sources.empathetic_dialogues: {bare} has no situation labels; no head learns situation from it"
    ]


def test_the_manifest_names_the_mirror_and_a_head_without_labels_is_left_out(
    break_hub: BreakHub, toy_recipe: ToyRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = "pixelsandpointers/empathetic_dialogues_for_lm"
    said = {"train": ["We moved.", "Far?"], "validation": ["A flat tyre", "Again?"], "test": ["Snow", "In May?"]}
    hub = datasets.DatasetDict({split: datasets.Dataset.from_list([{"conv": conv}]) for split, conv in said.items()})
    break_hub({})

    def load_dataset(hub_id: str) -> Any:
        if hub_id != bare:
            raise GONE
        return hub

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = {"sources": {"empathetic_dialogues": {}}, "allow_fallbacks": True}
    corpus = load_corpus(load_recipe(str(toy_recipe(data=data))), None)
    assert corpus.about["empathetic_dialogues"]["location"] == bare
    assert corpus.specs.keys() == set()


def test_fingerprint_follows_content(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("one")
    before = fingerprint(str(tmp_path))
    (tmp_path / "notes.md").write_text("not data")
    assert fingerprint(str(tmp_path)) == before
    (tmp_path / "train.txt").write_text("two")
    assert fingerprint(str(tmp_path)) != before
    assert fingerprint(str(tmp_path / "train.txt")) == fingerprint(str(tmp_path))


def test_bundled_corpus_loads_whole() -> None:
    parts = load_all("bundled", Path("nowhere"))
    assert all(parts)
    assert any(turn.affect for turn in parts[0][0].turns)


def test_importing_the_sources_loads_nothing_heavy() -> None:
    code = "import sys, warmline.data.sources.registry; print({'torch', 'datasets', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.fixture
def real_data() -> Path:
    if not os.environ.get("WARMLINE_DATA"):
        pytest.skip("WARMLINE_DATA is not set")
    return Path(os.environ["WARMLINE_DATA"])


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "folder", "counts"),
    [
        ("esconv", "esconv", (910, 195, 195)),
        ("empathetic_dialogues", "empathetic_dialogues_v2", (19530, 2768, 2546)),
        ("goemotions", "goemotions", (43410, 5426, 5427)),
        ("failed_esconv", "esconv/FailedESConv.json", (165, 14, 17)),
        ("counsel", "counsel", (1676, 168, 165)),
    ],
)
def test_real_counts(name: str, folder: str, counts: tuple[int, ...], real_data: Path) -> None:
    assert locate(name, SourceSettings(), real_data) == str(real_data / folder)
    assert tuple(map(len, load_all(name, real_data))) == counts


@pytest.mark.real
def test_real_v2_conversations_are_the_beginnings_of_the_original_ones(real_data: Path) -> None:
    v2 = load_all("empathetic_dialogues", real_data)
    original = load_all("empathetic_dialogues", real_data, str(real_data / "empatheticdialogues"))
    assert tuple(map(len, original)) == (19532, 2769, 2546)
    for found, expected in zip(v2, original, strict=True):
        turns = {conversation.id: conversation.turns for conversation in expected}
        for conversation in found:
            assert turns.pop(conversation.id)[: len(conversation.turns)] == conversation.turns
        assert all(len(alone) == 1 for alone in turns.values())  # v2 has replies only


@pytest.mark.real
def test_real_counselling_answers_hold_no_contact_details_and_no_question_stands_in_two_splits(real_data: Path) -> None:
    rejections = Rejections()
    parts = [loaded("counsel", SourceSettings(), split, data_root=real_data, rejections=rejections) for split in SPLITS]
    questions = [{talk.turns[0].text for talk in part} for part in parts]
    assert sum(map(len, questions)) == len(set.union(*questions)) == 824
    masked = {entry.id for entry in rejections.pieces if entry.reason.endswith(" masked")}
    assert len(masked) == 152
    answers = " ".join(talk.turns[1].text for part in parts for talk in part)
    assert "\u00a0" not in answers
    assert [found for found in ("http", "www.", "@") if found in answers] == []


@pytest.mark.real
def test_real_failed_conversations_have_strategies_in_esconv_spelling(real_data: Path) -> None:
    found = [talk for part in load_all("failed_esconv", real_data) for talk in part]
    turns = [turn for talk in found for turn in talk.turns if turn.role == "assistant"]
    assert {name for turn in turns for name in turn.strategy} == {*LABEL_SETS["strategy"]}
    assert sum(len(turn.strategy) for turn in turns) == 2377
