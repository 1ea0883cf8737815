"""Style tags: plain text in the system message, on a share of a source's conversations that the seed fixes."""

from pathlib import Path

import pytest

from warmline.config.fields import StyleSettings
from warmline.config.reading import load_recipe
from warmline.config.training import DataSettings
from warmline.data.labels import IGNORE
from warmline.data.prepare import encode, load_corpus
from warmline.data.style import UNSTYLED, Styling, styled_prompt, styling_of
from warmline.model.load import load_tokenizer
from warmline.pipeline import encoder_for

from .conftest import ToyRecipe
from .runs import rows_of, train_here

WARM = StyleSettings(tone="warm", persona="best friend")
TAG = "<tone:warm><persona:best friend>"


@pytest.mark.parametrize(
    ("prompt", "style", "expected"),
    [
        ("You listen.", WARM, f"You listen.\n{TAG}"),
        (None, WARM, TAG),
        ("You listen.", StyleSettings(), "You listen."),
        (None, StyleSettings(), None),
    ],
)
def test_the_tag_stands_on_its_own_line(prompt: str | None, style: StyleSettings, expected: str | None) -> None:
    assert styled_prompt(prompt, style) == expected


def test_a_share_of_conversations_is_told_and_the_seed_says_which() -> None:
    ids = [f"conversation-{number}" for number in range(2000)]

    def told(share: float, seed: int = 7) -> set[str]:
        return {each for each in ids if Styling({}, share, seed).tells(each)}

    assert told(0) == set()
    assert told(1) == set(ids)
    assert 900 < len(told(0.5)) < 1100
    assert told(0.3) < told(0.5)
    assert told(0.5) == told(0.5) != told(0.5, seed=8)


def test_only_sources_with_a_style_and_a_share_take_part() -> None:
    sources = {"one": {"style": {"tone": "calm"}}, "two": {}, "three": {"style": {}}}
    data = DataSettings.model_validate({"sources": sources, "style_share": 0.5})
    assert styling_of(data, 7) == Styling({"one": StyleSettings(tone="calm")}, 0.5, 7)


def test_told_conversations_begin_with_the_tag_and_learn_the_same_words(toy_recipe: ToyRecipe, toy_base: Path) -> None:
    recipe = load_recipe(str(toy_recipe()))
    tokenizer = load_tokenizer(toy_base)
    rows = load_corpus(recipe, None).conversations["train"]
    plain = encode(rows, encoder_for(recipe, tokenizer))["talks"]
    styling = Styling({"talks": WARM}, 0.5, 7)
    mixed = encode(rows, encoder_for(recipe, tokenizer), styling)["talks"]
    told = [styling.tells(example.id) for example in mixed]
    assert 0 < sum(told) < len(told)
    for one, other, is_told in zip(plain, mixed, told, strict=True):
        text = str(tokenizer.decode(other.input_ids))
        assert text.startswith(
            f"<|im_start|>system\nListen.\n{TAG}<|im_end|>" if is_told else "<|im_start|>system\nListen.<|im_end|>"
        )
        assert (one.labels[one.labels != IGNORE] == other.labels[other.labels != IGNORE]).all()
    assert encode(rows, encoder_for(recipe, tokenizer), UNSTYLED)["talks"][0].id == plain[0].id


def test_training_sees_the_tags_and_validation_does_not(toy_recipe: ToyRecipe, tmp_path: Path) -> None:
    plain = rows_of(train_here(toy_recipe(sft__steps=1), tmp_path / "plain"))
    recipe = toy_recipe(sft__steps=1, data__sources__talks__style={"tone": "calm"}, data__style_share=1.0)
    styled = rows_of(train_here(recipe, tmp_path / "styled"))
    assert styled[0]["tokens"] > plain[0]["tokens"]
    assert styled[0]["terms"]["lm"]["count"] == plain[0]["terms"]["lm"]["count"]
    assert styled[1]["terms"]["lm"]["count"] == plain[1]["terms"]["lm"]["count"]
