"""Merged and quantised packages: the same replies as the adapter, the heads with them, and what cannot be merged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from warmline.engine.engine import GenerateRequest, Message, Sampling
from warmline.engine.local import LocalEngine
from warmline.evaluate.prompt_sets import qualitative
from warmline.model import checkpoint
from warmline.model.load import load_tokenizer
from warmline.package.subject import DTYPES, PackageError, dtype_of
from warmline.pipeline import open_engine, open_run
from warmline.run_dir import RunDir, write_json

from .conftest import ToyRecipe
from .packages import package, refused, reseal, shaken
from .runs import train_here
from .toys import save_toy

GREEDY = Sampling(temperature=0, max_new_tokens=12)
PROMPTS = [tuple(Message(turn.role, turn.content) for turn in row.turns) for row in qualitative()]


def prompts(count: int = 50) -> list[tuple[Message, ...]]:
    """Different prompts, each under the toy recipe's system prompt."""
    system = Message("system", "Listen.")
    return [(system, *each) for each in PROMPTS[:count]]


def replies(engine: LocalEngine, count: int = 50) -> list[str]:
    return ["".join(chunk.text for chunk in engine.generate(GenerateRequest(each, GREEDY))) for each in prompts(count)]


def refusal(run: RunDir, out: Path, *options: str) -> str:
    """The one line of a refusal; nothing is left behind."""
    before = sorted(out.parent.iterdir())
    line = refused(package(run, out, *options))
    assert sorted(out.parent.iterdir()) == before
    return line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunDir]:
    """Runs by a name, each trained once, with adapters and heads that change much: what is merged must be seen."""
    made: dict[str, RunDir] = {}

    def run(name: str, recipe: Path) -> RunDir:
        if name not in made:
            made[name] = shaken(train_here(recipe, tmp_path_factory.mktemp(name) / "run"))
        return made[name]

    return run


@pytest.fixture
def run(trained: Callable[..., RunDir], toy_recipe: ToyRecipe) -> RunDir:
    return trained("toy", toy_recipe(sft__steps=1))


def test_there_are_fifty_different_prompts() -> None:
    assert len(set(prompts())) == 50


def test_a_merged_package_says_what_the_adapter_says(run: RunDir, tmp_path: Path) -> None:
    done = package(run, tmp_path / "out", "--to", "merged")
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{tmp_path / 'out'}\n"
    adapter, merged = open_engine("run", run, "sft"), open_engine(str(tmp_path / "out"), RunDir(tmp_path / "no"), None)
    base = open_engine("run", run, "base")
    theirs = replies(adapter.engine)
    assert replies(merged.engine) == theirs
    assert len(set(theirs)) > 25, "not one reply to everything"
    assert replies(base.engine, 5) != theirs[:5], "the adapter changes something"
    assert merged.system_prompt == "Listen."
    assert merged.title == "toy, stage sft, packaged as merged"
    wanted, found = (each.engine.score(PROMPTS[0], "And then?") for each in (adapter, merged))
    assert found.logprob == pytest.approx(wanted.logprob, abs=1e-4)
    assert [(each.head, each.labels) for each in found.readings] == [
        (each.head, each.labels) for each in wanted.readings
    ]
    assert len(found.readings) == 5
    for one, other in zip(found.readings, wanted.readings, strict=True):
        assert one.values == pytest.approx(other.values, abs=1e-5)


def test_the_drift_of_a_merge_is_written_down(run: RunDir, tmp_path: Path) -> None:
    package(run, tmp_path / "fp32", "--to", "merged")
    package(run, tmp_path / "bf16", "--to", "merged", "--dtype", "bf16")
    exact, rounded = (drift_of(tmp_path / name) for name in ("fp32", "bf16"))
    assert exact["num_positions"] > 300
    assert exact["kl"] < 1e-6
    assert (exact["top1"], {*exact["heads"].values()}) == (1.0, {1.0})
    assert exact["heads_max"] < 1e-4 < rounded["heads_max"]
    assert exact["kl"] < rounded["kl"] < 1e-3
    assert rounded["top1"] > 0.9
    config = json.loads((tmp_path / "bf16" / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "bfloat16"
    assert "## Drift" in (tmp_path / "bf16" / "README.md").read_text(encoding="utf-8")


def drift_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "companion" / "package.json").read_text(encoding="utf-8"))["drift"]


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_a_quantised_base_is_merged_from_its_dequantised_weights(
    quantization: str, trained: Callable[..., RunDir], toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    run = trained(quantization, toy_recipe(model__quantization=quantization, sft__steps=1))
    done = package(run, tmp_path / "out", "--to", "merged")
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    assert "quantization_config" not in config
    drift = drift_of(tmp_path / "out")
    if quantization == "nf4":  # the same numbers, multiplied as they are
        assert drift["kl"] < 1e-6
        assert drift["top1"] == 1.0
        merged = open_engine(str(tmp_path / "out"), RunDir(tmp_path / "no"), None).engine
        assert replies(merged, 10) == replies(open_engine("run", run, "sft").engine, 10)
    else:  # int8 also rounds what goes in
        assert drift["kl"] < 1e-2
        assert drift["top1"] > 0.8


@pytest.mark.parametrize("to", ["int8", "nf4"])
def test_a_quantised_package_loads_again_and_drifts_little(to: str, run: RunDir, tmp_path: Path) -> None:
    done = package(run, tmp_path / "out", "--to", to)
    assert done.exit_code == 0, done.output
    drift = drift_of(tmp_path / "out")
    assert 0 < drift["kl"] < 0.1
    opened = open_engine(str(tmp_path / "out"), RunDir(tmp_path / "no"), None)
    layers = {type(module).__module__ for module in opened.engine._model.causal.modules()}
    assert any(name.startswith("bitsandbytes.") for name in layers)
    assert len(replies(opened.engine, 2)) == 2
    assert "heads" in opened.engine.capabilities()
    weights, plain = (tmp_path / "out" / "model.safetensors"), run.recipe().model.base
    assert weights.stat().st_size < (Path(plain) / "model.safetensors").stat().st_size
    assert not [file for file in (tmp_path / "out").iterdir() if file.name.startswith(".")]


def test_gpt2_with_its_own_kind_of_layers_is_merged(
    trained: Callable[..., RunDir], toy_recipe: ToyRecipe, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    base = save_toy("gpt2", "I lost my job today . Thank you for listening to me", tmp_path_factory.mktemp("gpt2"))
    template = "{% for message in messages %}{{ message['content'] + eos_token }}{% endfor %}"
    recipe = toy_recipe(model__base=str(base), model__chat_template=template, model__system_prompt=None, sft__steps=1)
    run = trained("gpt2", recipe)
    assert package(run, tmp_path / "out", "--to", "merged").exit_code == 0
    assert drift_of(tmp_path / "out")["kl"] < 1e-6
    assert load_tokenizer(tmp_path / "out").chat_template == template


def test_a_measured_risk_head_is_trusted_where_it_reads_the_same(run: RunDir, toy_base: Path, tmp_path: Path) -> None:
    copy = copied(run, toy_base, tmp_path)
    file = copy.stage("sft") / "stage.json"
    about = checkpoint.read_stage(copy.stage("sft"))
    base = about["fingerprint"]
    measured = {"dev_recall_at_5fpr": 0.9, "calibration_ece": 0.01}
    for weights, to, trusted in (
        (base["weights"], "merged", True),
        (base["weights"], "nf4", False),
        ("x", "merged", False),
    ):
        about["risk_head"] = measured | {"base_model_hash": weights, "quant": "none"}
        write_json(file, about | {"checksum": checkpoint._digest(about)})
        out = tmp_path / f"{weights[:1]}-{to}"
        assert package(copy, out, "--to", to).exit_code == 0
        head = open_engine(str(out), RunDir(tmp_path / "no"), None).risk_head
        assert head is not None
        assert head.trusted is trusted, (to, drift_of(out))


# ---- what is refused ----


@pytest.mark.parametrize("dtype", ["nf4", "int4", "4bit", "fp8"])
def test_a_merge_into_fewer_than_16_bits_is_refused(dtype: str, run: RunDir, tmp_path: Path) -> None:
    line = refusal(run, tmp_path / "out", "--to", "merged", "--dtype", dtype)
    assert f"--dtype {dtype}: an adapter is merged into 16 or 32 bits only" in line
    assert "--to int8 or nf4 quantises" in line
    with pytest.raises(PackageError):
        dtype_of(dtype, "float32", "merged")
    assert {dtype_of(each, "float32", "merged") for each in DTYPES} == {"float32", "bfloat16", "float16"}


def copied(run: RunDir, toy_base: Path, folder: Path) -> RunDir:
    """The run over a copy of its base, which may be changed."""
    shutil.copytree(run.path, folder / "run")
    shutil.copytree(toy_base, folder / "base")
    copy = RunDir(folder / "run")
    copy.add_to_manifest(base=copy.manifest()["base"] | {"folder": str(folder / "base")})
    return copy


def test_an_adapter_of_another_base_is_refused(run: RunDir, toy_base: Path, tmp_path: Path) -> None:
    copy = copied(run, toy_base, tmp_path)
    weights = load_file(tmp_path / "base" / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, tmp_path / "base" / "model.safetensors", metadata={"format": "pt"})
    for to in ("merged", "vllm", "hub"):
        line = refusal(copy, tmp_path / "out", "--to", to)
        assert "was trained on another base: its weights is not that of the loaded base" in line


def test_added_tokens_in_a_tied_model_are_refused(run: RunDir, toy_base: Path, tmp_path: Path) -> None:
    copy = copied(run, toy_base, tmp_path)
    tokenizer = load_tokenizer(tmp_path / "base")
    tokenizer.add_tokens([f"<tone{number}>" for number in range(400)])
    tokenizer.save_pretrained(tmp_path / "base")
    reseal(copy, tmp_path / "base")
    line = refusal(copy, tmp_path / "out", "--to", "merged")
    assert "embeddings" in line
    assert "which lm_head shares: the added tokens have no weights to merge" in line


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"modules_to_save": ["embed_tokens"]}, "embed_tokens"),
        ({"modules_to_save": ["lm_head"]}, "lm_head"),
        ({"trainable_token_indices": [4]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "embed_tokens"),
    ],
)
def test_a_merge_that_would_break_the_tie_is_refused(
    changes: dict[str, Any], named: str, run: RunDir, toy_base: Path, tmp_path: Path
) -> None:
    copy = copied(run, toy_base, tmp_path)
    file = copy.stage("sft") / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    reseal(copy, tmp_path / "base")
    for to in ("merged", "nf4", "ollama"):
        line = refusal(copy, tmp_path / "out", "--to", to)
        assert f"the adapter changes {named}, and this base's embeddings and lm_head are one matrix" in line


def test_the_base_is_not_there_any_more_in_a_merged_package(run: RunDir, tmp_path: Path) -> None:
    package(run, tmp_path / "out", "--to", "merged")
    model = open_engine(str(tmp_path / "out"), RunDir(tmp_path / "no"), None).engine._model
    with pytest.raises(ValueError, match="stage 'base' is not loaded: stage 'sft' is merged into these weights"):
        model.use("base")
    model.use("sft")
    assert torch.equal(model.lm_weight_VD, open_run(run).model.lm_weight_VD)
