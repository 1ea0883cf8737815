"""The model: loading a base, adapters and heads on it, and that the adapter off is the base, bit for bit."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import Tensor

from warmline.config.training import LoraSettings, ModelSettings
from warmline.data.batches import collate
from warmline.data.labels import AFFECTS, IGNORE, RISKS, HeadSpec
from warmline.data.tokenize import Anchor, Example, render
from warmline.model import checkpoint
from warmline.model.load import ModelError, architecture, check_positions, load_base, load_tokenizer, resolve
from warmline.model.support_model import SupportModel, trainable_groups

from .toys import saved, small

CPU = torch.device("cpu")
LORA = LoraSettings(r=4, alpha=8, dropout=0.0)
SPECS = {
    "emotion": HeadSpec("sigmoid", ("anger", "joy", "fear")),
    "situation": HeadSpec("softmax", ("sad", "joyful")),
    "risk": HeadSpec("ordinal", RISKS),
    "affect": HeadSpec("regression", AFFECTS),
}
IDS = torch.tensor([[1, 20, 30, 40, 50, 60, 70, 2], [1, 25, 35, 45, 55, 65, 75, 2]])
KINDS = [("none", "float32"), ("none", "bfloat16"), ("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32")]
LAYERS = {"none": "Linear", "nf4": "Linear4bit", "int8": "Linear8bitLt"}


def load(base: Path, quantization: str = "none", dtype: str = "float32") -> SupportModel:
    settings = ModelSettings.model_validate({"base": str(base), "quantization": quantization, "dtype": dtype})
    return SupportModel(load_base(base, settings, CPU), settings.dtype)


def stir(model: SupportModel, seed: int = 0) -> None:
    """Give adapter and heads of the stage in use weights of their own: peft's B and the heads start at 0."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if f".{model.stage}." in name:
                parameter.normal_(0, 0.1)


def with_stage(
    base: Path, quantization: str = "none", dtype: str = "float32", lora: LoraSettings = LORA
) -> SupportModel:
    model = load(base, quantization, dtype)
    model.add_stage("sft", lora, SPECS, str(base))
    stir(model)
    return model


@torch.no_grad()
def logits(model: SupportModel, ids_BT: Tensor = IDS) -> Tensor:
    return model.hidden(ids_BT, use_cache=False).last_hidden_state @ model.lm_weight_VD.T


@torch.no_grad()
def head_logits(model: SupportModel) -> dict[str, Tensor]:
    state = model.hidden(IDS, use_cache=False).last_hidden_state[:, -1].float()
    return {name: head(state) for name, head in model.heads.items()}


@pytest.mark.parametrize(("quantization", "dtype"), KINDS)
def test_a_base_is_loaded_frozen_in_the_form_asked_for(toy_base: Path, quantization: str, dtype: str) -> None:
    model = load(toy_base, quantization, dtype)
    layer = model.causal.model.layers[0].mlp.up_proj
    assert type(layer).__name__ == LAYERS[quantization]
    if quantization == "nf4":
        assert layer.weight.quant_state.quant_type == "nf4"
        assert layer.weight.quant_state.nested
    wanted = getattr(torch, dtype)
    assert {each.dtype for each in model.parameters() if each.is_floating_point()} == {wanted}
    assert model.lm_weight_VD.dtype == logits(model).dtype == wanted
    assert not any(each.requires_grad for each in model.parameters())


def test_quantised_and_half_precision_bases_are_near_the_full_one(toy_base: Path) -> None:
    full = logits(load(toy_base))
    bfloat16, nf4, int8 = (logits(load(toy_base, *KINDS[kind])).float() for kind in (1, 2, 4))
    assert 0 < (bfloat16 - full).norm() / full.norm() < 0.02
    assert 0 < (int8 - full).norm() / full.norm() < 0.05
    assert 0 < (nf4 - full).norm() / full.norm() < 0.3


def test_the_recipes_template_takes_the_place_of_the_tokenizers_own(toy_base: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    own = render(load_tokenizer(toy_base), messages, add_generation_prompt=True)
    assert own == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    template = "{% for message in messages %}{{ message['content'] }}!{% endfor %}"
    assert render(load_tokenizer(toy_base, template), messages, add_generation_prompt=True) == "hi!"


def test_a_tokenizer_without_padding_pads_with_its_stop_token(toy_base: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(toy_base)
    assert tokenizer.pad_token == "<|endoftext|>"
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == tokenizer.eos_token == "<|im_end|>"


def test_a_local_folder_resolves_to_itself_and_names_its_architecture(toy_base: Path) -> None:
    assert resolve(str(toy_base)) == toy_base
    assert architecture(toy_base) == "Qwen2ForCausalLM"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all"])
def test_a_missing_folder_is_named(name: str) -> None:
    with pytest.raises(ModelError, match=f"model folder {name} does not exist"):
        resolve(name)


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no model: it has no config\.json") as caught:
        resolve(str(tmp_path))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("name", ["someone/not-a-model", "not a hub id"])
def test_an_unreachable_hub_id_says_what_to_do(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(name)
    message = str(caught.value)
    assert repr(name) in message
    assert "state a local folder in model.base" in message
    assert "HF_TOKEN" in message
    assert "\n" not in message


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_truncated_base_is_an_error_in_one_line(toy_base: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "cut"
    shutil.copytree(toy_base, folder)
    whole = (folder / file).read_bytes()
    (folder / file).write_bytes(whole[: len(whole) // 2])
    read = load_tokenizer if file == "tokenizer.json" else load
    with pytest.raises(ModelError, match=str(folder)) as caught:
        read(folder)
    assert "\n" not in str(caught.value)


def test_examples_longer_than_the_model_reads_are_refused(toy_base: Path) -> None:
    check_positions(toy_base, 2048)
    with pytest.raises(ModelError, match=r"model\.max_seq_len 2049 is more than the 2048 positions"):
        check_positions(toy_base, 2049)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_quantisation_without_bitsandbytes_is_refused(
    toy_base: Path, monkeypatch: pytest.MonkeyPatch, quantization: str
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.functional", None)
    message = rf"model\.quantization {quantization} needs bitsandbytes, which does not work here .*model\.quantization to none"
    with pytest.raises(ModelError, match=message):
        load(toy_base, quantization)


def test_targets_that_match_nothing_are_named(toy_base: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets \['q_porj'\].*not found"):
        load(toy_base).add_stage("sft", LoraSettings(targets=("q_porj",)), {}, "toy")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("targets", [("lm_head",), ("q_proj", "lm_head"), ("embed_tokens",)])
def test_an_adapter_on_the_output_matrix_is_refused(toy_base: Path, targets: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets: an adapter on lm_head"):
        load(toy_base).add_stage("sft", LoraSettings(targets=targets), {}, "toy")


SEPARATE = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
ARCHITECTURES: dict[str, tuple[Callable[[], transformers.PretrainedConfig], set[str]]] = {
    "qwen2": (lambda: small(transformers.Qwen2Config), SEPARATE),
    "llama": (lambda: small(transformers.LlamaConfig), SEPARATE),
    "phi3": (lambda: small(transformers.Phi3Config), {"qkv_proj", "o_proj", "gate_up_proj", "down_proj"}),
    "gpt2": (
        lambda: transformers.GPT2Config(vocab_size=96, n_embd=64, n_layer=2, n_head=4, n_positions=64, eos_token_id=2),
        {"c_attn", "c_proj", "c_fc"},
    ),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_all_linear_finds_the_layers_of_every_architecture(name: str, tmp_path: Path) -> None:
    build, expected = ARCHITECTURES[name]
    model = load(saved(build(), tmp_path))
    base = logits(model)
    assert torch.equal(base, model.causal(IDS).logits), "logits are hidden states times lm_head"
    model.add_stage("sft", LORA, SPECS, name)
    adapted = {key.rsplit(".lora_A", 1)[0].rsplit(".", 1)[-1] for key, _ in model.named_parameters() if "lora_A" in key}
    assert adapted == expected
    assert torch.equal(logits(model), base), "a fresh adapter changes nothing"
    stir(model)
    assert not torch.allclose(logits(model), base, atol=1e-3)
    assert torch.equal(logits(model), model.causal(IDS).logits)
    with model.adapter_off():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (
            lambda: small(transformers.Gemma3TextConfig, head_dim=16, final_logit_softcapping=30.0),
            "final_logit_softcapping",
        ),
        (lambda: small(transformers.CohereConfig, logit_scale=0.06), "logit_scale"),
        (lambda: small(transformers.GraniteConfig, logits_scaling=8.0), "logits_scaling"),
        (lambda: small(transformers.PhiConfig, num_key_value_heads=4), r"lm_head\.bias"),
    ],
)
def test_logits_that_are_more_than_one_product_are_refused(
    build: Callable[[], transformers.PretrainedConfig], named: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=rf"more than hidden states times lm_head \({named}\)"):
        load(saved(build(), tmp_path))


@pytest.mark.parametrize(("quantization", "dtype"), KINDS)
def test_with_the_adapter_off_a_trained_model_is_the_base_bit_for_bit(
    toy_base: Path, quantization: str, dtype: str
) -> None:
    base = logits(load(toy_base, quantization, dtype))
    model = load(toy_base, quantization, dtype)
    model.add_stage("sft", LoraSettings(r=4, alpha=8, dropout=0.1), SPECS, "toy")
    optimizer = torch.optim.AdamW(trainable_groups(model, 0.02, 0.02), weight_decay=0.1)
    model.train()
    for _ in range(3):
        states = model.hidden(IDS, use_cache=False).last_hidden_state.float()
        loss = states.square().mean() + sum(head(states).square().mean() for head in model.heads.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    trained = logits(model)
    assert not torch.allclose(trained, base, rtol=0, atol=0.05)
    with model.adapter_off():
        assert torch.equal(logits(model), base)
    model.use("base")
    assert torch.equal(logits(model), base)
    assert not model.heads
    model.use("sft")
    assert torch.equal(logits(model), trained)


def test_only_adapters_and_heads_are_trained_at_their_own_rates(toy_base: Path) -> None:
    model = with_stage(toy_base)
    adapter, heads = trainable_groups(model, 0.1, 0.2)
    assert (adapter["lr"], heads["lr"]) == (0.1, 0.2)
    num_lora = sum("lora_" in name for name, _ in model.named_parameters())
    assert (len(adapter["params"]), len(heads["params"])) == (num_lora, 2 * len(SPECS))
    assert num_lora == 2 * 7 * 2  # layers, matrices, A and B


@pytest.mark.parametrize(("quantization", "dtype"), KINDS)
def test_a_saved_stage_gives_equal_logits_of_the_language_model_and_all_heads(
    toy_base: Path, tmp_path: Path, quantization: str, dtype: str
) -> None:
    model = with_stage(toy_base, quantization, dtype)
    checkpoint.save_stage(model, tmp_path, fingerprint={}, about={})
    again = load(toy_base, quantization, dtype)
    checkpoint.load_stage(again, tmp_path, {})
    assert again.stage == "sft"
    assert again.specs == {"sft": SPECS}
    assert torch.equal(logits(again), logits(model))
    expected = head_logits(model)
    assert expected.keys() == SPECS.keys()
    assert all(torch.equal(found, expected[name]) for name, found in head_logits(again).items())
    assert all(each.abs().max() > 0.01 for each in expected.values())


def test_the_adapter_folder_loads_in_plain_peft_and_merges_without_changing_the_model(
    toy_base: Path, tmp_path: Path
) -> None:
    model = with_stage(toy_base)
    checkpoint.save_stage(model, tmp_path, fingerprint={}, about={})
    about = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert about["base_model_name_or_path"] == str(toy_base)
    assert about["inference_mode"]
    plain = transformers.AutoModelForCausalLM.from_pretrained(toy_base, dtype=torch.float32)
    base = plain(IDS).logits
    adapted: Any = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    expected = logits(model)
    torch.testing.assert_close(adapted(IDS).logits, expected, rtol=0, atol=1e-6)
    merged = adapted.merge_and_unload()
    assert not any("lora" in name for name, _ in merged.named_parameters())
    torch.testing.assert_close(merged(IDS).logits, expected, rtol=0, atol=1e-4)
    assert (expected - base).abs().max() > 0.1


def test_stages_share_one_base_and_keep_their_own_weights(toy_base: Path) -> None:
    model = with_stage(toy_base)
    sft, sft_heads = logits(model), head_logits(model)
    model.add_stage("dpo", LORA, {"risk": SPECS["risk"]}, "toy")
    stir(model, seed=1)
    assert not torch.allclose(logits(model), sft, atol=1e-3)
    assert list(model.heads) == ["risk"]
    model.use("sft")
    assert torch.equal(logits(model), sft)
    assert torch.equal(head_logits(model)["risk"], sft_heads["risk"])
    with pytest.raises(ModelError, match=r"stage 'nope' is not loaded \(there are: base sft dpo\)"):
        model.use("nope")


@pytest.mark.parametrize(("quantization", "dtype"), KINDS[:3])
def test_the_base_stays_in_eval_mode_while_the_adapter_trains(toy_base: Path, quantization: str, dtype: str) -> None:
    model = with_stage(toy_base, quantization, dtype, LoraSettings(r=4, alpha=8, dropout=0.5))

    def in_training() -> set[str]:
        """What is in training mode, but for bitsandbytes' layers, to which it means no more than a choice of kernel."""
        ours = [each for each in model.named_modules() if not type(each[1]).__module__.startswith("bitsandbytes.")]
        return {re.sub(r".*lora_dropout.*", "lora_dropout", name) for name, module in ours if module.training}

    assert in_training() == set()
    evaluated = logits(model)
    model.train()
    assert in_training() == {"lora_dropout"}
    assert not torch.equal(logits(model), logits(model)), "the adapter's dropout is on"
    with model.adapter_off():
        assert torch.equal(logits(model), logits(load(toy_base, quantization, dtype)))
    model.eval()
    assert in_training() == set()
    assert torch.equal(logits(model), evaluated)


def test_the_teacher_is_the_base_reading_the_safety_rows(toy_base: Path) -> None:
    model = with_stage(toy_base, lora=LoraSettings(r=4, alpha=8, dropout=0.5))
    model.train()
    rows = []
    for risk in ("none", "high", "elevated"):
        ids = np.arange(12 + len(rows)) + 50 * len(rows)
        labels = np.where(np.arange(len(ids)) >= 8, ids, IGNORE)
        rows.append(Example(risk, "toy", ids, labels, (Anchor(7, len(ids) - 8, risk=risk),)))
    batch = collate(rows, SPECS, pad_id=0, min_kl_risk="elevated")
    outputs = model(batch)
    base = load(toy_base).hidden(batch.input_ids_BT[1:], use_cache=False).last_hidden_state
    expected = torch.cat([base[0, 7:12], base[1, 7:13]])
    assert outputs.teacher_MD is not None
    torch.testing.assert_close(outputs.teacher_MD, expected, rtol=0, atol=1e-6)
    assert not outputs.teacher_MD.requires_grad
    assert not torch.allclose(outputs.hidden_ND[batch.kl_index_M], expected, atol=1e-2)
    assert model(collate(rows, SPECS, pad_id=0)).teacher_MD is None


def test_new_heads_have_no_opinion(toy_base: Path) -> None:
    model = load(toy_base)
    model.add_stage("sft", LORA, SPECS, "toy")
    assert all(not found.any() for found in head_logits(model).values())
