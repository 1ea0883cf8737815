"""Every shipped recipe builds and trains on a toy of its architecture, quantised as it says."""

from pathlib import Path

import pytest
import torch
import transformers

from warmline.config.reading import load_recipe, recipe_names
from warmline.config.recipe import Recipe
from warmline.data.labels import IGNORE
from warmline.data.prepare import encode, load_corpus
from warmline.model.load import load_base, load_tokenizer
from warmline.model.support_model import SupportModel
from warmline.pipeline import encoder_for, open_run

from .conftest import WORDS
from .runs import rows_of, train_here, weights_of
from .toys import save_toy

ARCHITECTURE = {
    "dialogpt-medium-counsel": "gpt2",
    "phi-3-mini-counsel": "phi3",
} | dict.fromkeys(
    ("no-emotion", "no-strategy", "qwen2.5-0.5b-cpu", "qwen2.5-3b", "qwen2.5-3b-4gb", "qwen2.5-7b", "with-safety-kl"),
    "qwen2",
)
LAYERS = {"none": {"Linear", "Conv1D"}, "nf4": {"Linear4bit"}, "int8": {"Linear8bitLt"}}


def with_toy(name: str, base: Path, corpus: Path, *more: str) -> Recipe:
    """The recipe with a toy in the base's place, the toy corpus, and two steps."""
    sources = [f"data.sources.{source}=null" for source in load_recipe(name).data.sources]
    talks = f"data.sources.talks={{reader: chat_jsonl, location: {corpus}}}"
    return load_recipe(name, [f"model.base={base}", *sources, talks, "sft.steps=2", "sft.epochs=null", *more])


def test_every_recipe_with_a_base_from_the_hub_is_here() -> None:
    assert {name for name in recipe_names() if load_recipe(name).model.base != "tiny"} == ARCHITECTURE.keys()


@pytest.mark.parametrize("name", ARCHITECTURE)
def test_a_recipe_takes_two_steps_on_a_toy_of_its_architecture(name: str, toy_corpus: Path, tmp_path: Path) -> None:
    base = save_toy(ARCHITECTURE[name], " ".join(WORDS), tmp_path / "base")
    recipe = with_toy(name, base, toy_corpus)
    run = train_here(recipe, tmp_path / "run")
    train_rows = [row for row in rows_of(run) if row["split"] == "train"]
    assert [row["step"] for row in train_rows] == [1, 2]
    assert all(row["terms"]["lm"]["count"] > 0 for row in train_rows)
    assert set(train_rows[0]["terms"]) >= {head for head, _ in recipe.heads.active()}
    model = open_run(run).model
    adapted = {type(module.base_layer).__name__ for module in model.modules() if hasattr(module, "base_layer")}
    assert adapted
    assert adapted <= LAYERS[recipe.model.quantization]
    assert any(name.endswith("lora_B.weight") and tensor.any() for name, tensor in weights_of(run).items())


def test_phi_3_mini_counsel_trains_589_824_parameters() -> None:
    recipe = load_recipe("phi-3-mini-counsel")
    with torch.device("meta"):
        config = transformers.Phi3Config()  # its defaults are Phi-3-mini's
        model = SupportModel(transformers.Phi3ForCausalLM(config), "float32")
        model.add_stage("sft", recipe.model.lora, {}, recipe.model.base)
    assert sum(each.numel() for each in model.parameters() if each.requires_grad) == 589_824


def test_dialogpt_ends_every_turn_and_pads_on_the_right(toy_corpus: Path, tmp_path: Path) -> None:
    base = save_toy("gpt2", " ".join(WORDS), tmp_path / "base")
    recipe = with_toy("dialogpt-medium-counsel", base, toy_corpus)
    tokenizer = load_tokenizer(base, recipe.model.chat_template)
    assert tokenizer.pad_token == tokenizer.eos_token
    corpus = load_corpus(recipe, None)
    conversation = corpus.conversations["train"]["talks"][0]
    (example,) = encode({"talks": [conversation]}, encoder_for(recipe, tokenizer))["talks"]
    end = str(tokenizer.eos_token)
    assert tokenizer.decode(example.input_ids) == "".join(turn.text + end for turn in conversation.turns)
    learned = example.labels != IGNORE
    answers = [turn.text + end for turn in conversation.turns if turn.role == "assistant"]
    assert tokenizer.decode(example.input_ids[learned]) == "".join(answers)
    assert all(example.input_ids[anchor.position] == tokenizer.eos_token_id for anchor in example.anchors)


def test_the_safety_kl_ablation_acts_on_ordinary_conversations(toy_corpus: Path, tmp_path: Path) -> None:
    base = save_toy("qwen2", " ".join(WORDS), tmp_path / "base")
    counts = {}
    for share in ("0", "0.5", "1"):
        recipe = with_toy("with-safety-kl", base, toy_corpus, f"sft.safety_kl.ordinary_share={share}")
        terms = rows_of(train_here(recipe, tmp_path / f"run-{share}"))[0]["terms"]
        counts[share] = terms["safety_kl"]["count"]
        assert terms["safety_kl"]["count"] <= terms["lm"]["count"]
    assert counts["0"] < counts["0.5"] < counts["1"]
    assert counts["1"] == terms["lm"]["count"]


def test_load_base_is_what_the_recipe_says(tmp_path: Path) -> None:
    base = save_toy("phi3", " ".join(WORDS), tmp_path)
    recipe = load_recipe("phi-3-mini-counsel")
    model = load_base(base, recipe.model, torch.device("cpu"))
    assert type(model.model.layers[0].self_attn.qkv_proj).__name__ == "Linear8bitLt"
