"""Packages for other servers: vLLM's adapter, Ollama's Modelfile, llama.cpp's GGUF."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from warmline.commands.serve import served_models
from warmline.config.reading import load_operator
from warmline.data.tokenize import render
from warmline.model.load import load_tokenizer
from warmline.package.gguf import MISSING, SCRIPT, find_converter
from warmline.run_dir import RunDir

from .conftest import ToyRecipe
from .go_templates import ollama
from .packages import made, package, refused, reseal
from .runs import train_here
from .test_package_ollama import conversations, parsed


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], RunDir]:
    once: list[RunDir] = []

    def run(recipe: Path) -> RunDir:
        if not once:
            once.append(train_here(recipe, tmp_path_factory.mktemp("servers") / "run"))
        return once[0]

    return run


@pytest.fixture
def run(trained: Callable[[Path], RunDir], toy_recipe: ToyRecipe) -> RunDir:
    return trained(toy_recipe(sft__steps=1, safety={"country": "IE"}))


# ---- vLLM ----


def test_vllm_gets_a_plain_adapter_without_heads(run: RunDir, toy_base: Path, tmp_path: Path) -> None:
    folder = made(run, tmp_path / "out", "--to", "vllm") / "adapter"
    assert {file.name for file in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["bias"], config["modules_to_save"], config["use_dora"]) == (4, "none", None, False)
    assert config["base_model_name_or_path"] == toy_base.name, "no path of this machine"
    assert not [
        name for name in load_file(folder / "adapter_model.safetensors") if "head" in name.replace("lm_head", "")
    ]
    plain = AutoModelForCausalLM.from_pretrained(toy_base)
    adapted = peft.PeftModel.from_pretrained(plain, str(folder))
    weights = load_file(run.stage("sft") / "adapter" / "adapter_model.safetensors")
    ours = {name.replace(".default", ""): tensor for name, tensor in adapted.state_dict().items() if "lora_" in name}
    assert ours.keys() == weights.keys()
    assert all(torch.equal(ours[name], weights[name]) for name in weights)


def test_vllm_is_told_how_to_be_started(run: RunDir, tmp_path: Path) -> None:
    out = made(run, tmp_path / "out", "--to", "vllm")
    text = (out / "README.md").read_text(encoding="utf-8")
    command = text.split("```sh\n")[1].split("\n```")[0]
    assert subprocess.run(["sh", "-n", "-c", command], check=False).returncode == 0
    assert "--max-lora-rank 8 --lora-modules toy=./adapter" in command
    assert '"${BASE:?the folder of the base model}"' in command
    gateway = text.split("```sh\n")[2].split("\n```")[0].split()
    assert gateway[:2] == ["warmline", "serve"]
    tokenizer = load_tokenizer(Path(run.recipe().model.base))
    assert (out / "chat_template.jinja").read_text(encoding="utf-8") == tokenizer.chat_template
    settings = load_operator(str(out / gateway[gateway.index("--settings") + 1]))
    model = served_models(gateway[2], "remote", "http://127.0.0.1:8001", settings, None, None)["toy"]
    assert model.setting.system_prompt == "Listen.", "a server knows nothing of the run's system prompt"
    assert model.setting.country == "IE"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save ['lm_head']"),
        ({"use_dora": True}, "use_dora True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"r": 513}, "up to rank 512, this one has 513"),
    ],
)
def test_what_vllm_would_refuse_is_refused_here(
    changes: dict[str, Any], said: str, run: RunDir, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    copy = RunDir(tmp_path / "run")
    file = copy.stage("sft") / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")
    reseal(copy, Path(run.recipe().model.base))
    line = refused(package(copy, tmp_path / "out", "--to", "vllm"))
    assert said in line
    assert "make a --to merged package" in line


# ---- Ollama and GGUF ----


def test_ollama_gets_merged_weights_and_a_template_that_says_the_same(run: RunDir, tmp_path: Path) -> None:
    out = made(run, tmp_path / "out", "--to", "ollama")
    found = parsed((out / "Modelfile").read_text(encoding="utf-8"))
    assert found["SYSTEM"] == "Listen."
    assert ("stop", "<|im_end|>") in found["PARAMETER"]
    assert ("num_ctx", "2048") in found["PARAMETER"], "as far as the model reads"
    model = out / found["FROM"]
    assert (model / "model.safetensors").is_file()
    assert {file.name for file in model.glob("*.safetensors")} == {"model.safetensors"}, (
        "heads are no weights of Ollama's"
    )
    tokenizer = load_tokenizer(model)
    for talk in conversations():
        assert ollama(found["TEMPLATE"], talk) == render(tokenizer, talk, add_generation_prompt=True)


def test_a_missing_converter_is_said_before_anything_is_loaded(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("warmline.pipeline.open_run", lambda _: pytest.fail("weights were loaded"))
    line = refused(package(run, tmp_path / "out", "--to", "gguf"))
    assert line == f"warmline: {MISSING}"
    assert "git clone https://github.com/ggml-org/llama.cpp" in line


def converter(folder: Path, body: str) -> Path:
    """A stand-in for llama.cpp's script."""
    folder.mkdir(exist_ok=True)
    file = folder / SCRIPT
    file.write_text(f"import sys\nfrom pathlib import Path\n{body}\n", encoding="utf-8")
    return file


@pytest.mark.parametrize("how", ["folder", "file", "path"])
def test_the_converter_is_found_where_people_put_it(how: str, tmp_path: Path) -> None:
    file = converter(tmp_path / "llama.cpp", "")
    environment = {
        "folder": {"LLAMA_CPP": str(file.parent)},
        "file": {"LLAMA_CPP": str(file)},
        "path": {"PATH": f"/nowhere{os.pathsep}{file.parent}"},
    }[how]
    assert find_converter(environment) == file


def test_the_converter_is_given_the_merged_model(
    run: RunDir, toy_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = (
        "model, _, out, _, kind = sys.argv[1:]\n"
        "assert (Path(model) / 'config.json').is_file() and (Path(model) / 'tokenizer.json').is_file()\n"
        "Path(out).write_bytes(b'GGUF' + kind.encode() + (Path(model) / 'model.safetensors').read_bytes())"
    )
    monkeypatch.setenv("LLAMA_CPP", str(converter(tmp_path / "llama", body).parent))
    out = made(run, tmp_path / "out", "--to", "gguf", "--dtype", "fp16")
    written = (out / "model.gguf").read_bytes()
    assert written[:7] == b"GGUFf16"
    assert len(written) < (toy_base / "model.safetensors").stat().st_size
    assert {file.name for file in out.iterdir()} == {"README.md", "SHA256SUMS", "companion", "model.gguf"}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("sys.exit('BPE pre-tokenizer was not recognized')", "convert_hf_to_gguf.py failed: BPE pre-tokenizer was not"),
        ("pass", "left no GGUF file"),
        ("Path(sys.argv[3]).write_bytes(b'half')", "left no GGUF file"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(
    body: str, said: str, run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_CPP", str(converter(tmp_path / "llama", body).parent))
    (tmp_path / "place").mkdir()
    assert said in refused(package(run, tmp_path / "place" / "out", "--to", "gguf"))
    assert list((tmp_path / "place").iterdir()) == []
