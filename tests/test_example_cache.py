"""Encoded examples on disk: the same as made anew, for exactly the same input, and never half of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from warmline.config.fields import StyleSettings
from warmline.config.reading import load_recipe
from warmline.data import example_cache
from warmline.data.conversation import Affect, Conversation, Turn
from warmline.data.example_cache import Encoded, encoded
from warmline.data.prepare import load_corpus
from warmline.data.style import UNSTYLED, Styling
from warmline.data.tokenize import Encoder
from warmline.model.load import load_tokenizer
from warmline.run_dir import home

from .conftest import ToyRecipe

Rows = dict[str, Sequence[Conversation]]


@pytest.fixture
def rows(toy_recipe: ToyRecipe) -> Rows:
    found: Rows = dict(load_corpus(load_recipe(str(toy_recipe())), None).conversations["train"])
    long = Turn("user", "lost " * 200, affect=Affect(-1.0, 0.5))
    found["more"] = [Conversation("é", "more", (long, Turn("assistant", "here", strategy=("Others",))))]
    return found


@pytest.fixture
def encoder(toy_base: Path) -> Encoder:
    return Encoder(load_tokenizer(toy_base), 120, "Listen.")


def same(one: Encoded, other: Encoded) -> bool:
    if (one.changes, one.left_out, list(one.examples)) != (other.changes, other.left_out, list(other.examples)):
        return False
    mine, theirs = ([each for rows in found.examples.values() for each in rows] for found in (one, other))
    return len(mine) == len(theirs) and all(
        (a.id, a.source, a.anchors) == (b.id, b.source, b.anchors)
        and a.input_ids.dtype == b.input_ids.dtype == a.labels.dtype == b.labels.dtype
        and np.array_equal(a.input_ids, b.input_ids)
        and np.array_equal(a.labels, b.labels)
        for a, b in zip(mine, theirs, strict=True)
    )


def fresh(encoder: Encoder, **changes: object) -> Encoder:
    return replace(encoder, counts=type(encoder.counts)(), left_out=[], **changes)  # type: ignore[arg-type]


def test_a_second_start_reads_what_the_first_one_made(
    rows: Rows, encoder: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = encoded(rows, encoder, UNSTYLED)
    assert first.examples
    assert first.left_out
    assert first.changes

    def refuse(*_arguments: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(example_cache, "encode", refuse)
    assert same(first, encoded(rows, fresh(encoder), UNSTYLED))


def test_anything_that_examples_depend_on_makes_a_new_entry(rows: Rows, encoder: Encoder, toy_base: Path) -> None:
    first = rows["talks"][0]
    relabelled = replace(first, turns=(replace(first.turns[0], risk="emergency"), *first.turns[1:]))
    other_template = load_tokenizer(toy_base, str(encoder.tokenizer.chat_template).replace("\n", "\n\n"))
    other_tokenizer = load_tokenizer(toy_base)
    other_tokenizer.add_tokens(["lost my"])
    variants = [
        (rows, encoder, UNSTYLED),
        (rows | {"talks": rows["talks"][1:]}, encoder, UNSTYLED),
        (rows | {"talks": [relabelled, *rows["talks"][1:]]}, encoder, UNSTYLED),
        (rows, replace(encoder, max_seq_len=119), UNSTYLED),
        (rows, replace(encoder, system_prompt=None), UNSTYLED),
        (rows, replace(encoder, tokenizer=other_template), UNSTYLED),
        (rows, replace(encoder, tokenizer=other_tokenizer), UNSTYLED),
        (rows, encoder, Styling({"talks": StyleSettings(tone="calm")}, 0.5, 7)),
        (rows, encoder, Styling({"talks": StyleSettings(tone="calm")}, 0.5, 8)),
    ]
    for number, (conversations, changed, styling) in enumerate(variants, 1):
        encoded(conversations, fresh(changed), styling)
        assert len([entry for entry in (home() / "examples").iterdir() if entry.is_dir()]) == number


@pytest.mark.parametrize("file", ["examples.json", "tokens.safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "gone", "empty", "altered"])
def test_a_damaged_entry_is_made_anew(rows: Rows, encoder: Encoder, file: str, damage: str) -> None:
    first = encoded(rows, encoder, UNSTYLED)
    (entry,) = [each for each in (home() / "examples").iterdir() if each.is_dir()]
    target = entry / file
    match damage:
        case "truncated":
            target.write_bytes(target.read_bytes()[:-20])
        case "altered" if file == "tokens.safetensors":
            content = bytearray(target.read_bytes())
            content[-9] ^= 1
            target.write_bytes(content)
        case "gone":
            target.unlink()
        case _:
            target.write_bytes(b"")
    assert same(first, encoded(rows, fresh(encoder), UNSTYLED))
    assert target.stat().st_size > 0
