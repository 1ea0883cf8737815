"""The sources by name: where each is found, caps, refusals, and the real corpora whole."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from warmline.config import SourceSettings
from warmline.data.conversation import Split
from warmline.data.labels import LABEL_SETS
from warmline.data.sources import goemotions
from warmline.data.sources.reading import Rejections
from warmline.data.sources.registry import fingerprint, load, locate

from .test_sources import load_all, refusal


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

    def loaded(split: Split, seed: int, rejections: Rejections) -> list[str]:
        found = load("mine", settings, split, data_root=None, rejections=rejections, allowed_labels=allowed, seed=seed)
        assert {conversation.source for conversation in found} == {"mine"}
        return [conversation.id for conversation in found]

    rejections = Rejections()
    train = loaded("train", 1, rejections)
    assert [(entry.source, entry.id, entry.reason) for entry in rejections.rows] == [
        ("mine", "id0", "emotion 'admiration' is not a known label"),
        ("mine", "id28", "emotion 'admiration' is not a known label"),
    ]
    assert rejections.num_rows == {"mine": 50}
    assert rejections.share("mine") == 0.04
    assert len(train) == 9
    assert train == sorted(train, key=lambda row_id: int(row_id[2:])) == loaded("train", 1, Rejections())
    assert train != loaded("train", 2, Rejections())
    assert loaded("validation", 1, Rejections()) == ["id1", "id2", "id3"]


def test_a_source_that_yields_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("{}\n{\n{}\n")
    (tmp_path / "test.txt").write_text("\n")
    settings = SourceSettings(location=str(tmp_path))
    reasons: dict[Split, str] = {
        "train": "3 rows read; rejected: no 'dialog' (2), malformed JSON: Expecting property name enclosed",
        "test": "it is empty)",
    }
    for split, why in reasons.items():
        found = refusal(
            partial(load, "esconv", settings, split, data_root=None, rejections=Rejections(), allowed_labels={}, seed=1)
        )
        assert found.startswith(f"data.sources.esconv: no {split} conversation in {tmp_path} ({why}")


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
