"""Packages as folders: vLLM's, Ollama's, GGUF and the hub's; what travels with each, licences, and whole or not at all."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from warmline.cli import app
from warmline.commands.serve import served_models
from warmline.config.operator import OperatorSettings
from warmline.config.reading import load_operator, load_recipe, recipe_names
from warmline.data.tokenize import render
from warmline.embed import open_companion
from warmline.model.load import load_tokenizer
from warmline.package import targets
from warmline.package.folder import check_sums, read_package
from warmline.package.gguf import MISSING, SCRIPT, find_converter
from warmline.package.licences import BASES, terms_of, warnings_of
from warmline.package.subject import PackageError
from warmline.run_dir import RunDir

from .conftest import ToyRecipe
from .go_templates import ollama
from .runs import train_here
from .test_package_ollama import conversations, parsed

SAFETY = {
    "country": "IE",
    "question_policy": "safety_check",
    "question_owner": "Dr. Ada Example",
    "guards": [{"url": "http://10.0.0.9:8000/v1", "model": "guard"}],
}
SERVE = {"store": "postgresql://me:secret@db/history", "max_running": 5}
HUB = ("--to", "hub")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], RunDir]:
    made: list[RunDir] = []

    def run(recipe: Path) -> RunDir:
        if not made:
            made.append(train_here(recipe, tmp_path_factory.mktemp("folders") / "run"))
        return made[0]

    return run


@pytest.fixture
def run(trained: Callable[[Path], RunDir], toy_recipe: ToyRecipe) -> RunDir:
    return trained(toy_recipe(sft__steps=1, safety=SAFETY, serve=SERVE))


def package(run: RunDir, out: Path | None, *options: str) -> Any:
    where = [] if out is None else ["--out", str(out)]
    return CliRunner().invoke(app, ["package", str(run.path), *where, *options])


def made(run: RunDir, out: Path, *options: str) -> Path:
    done = package(run, out, *options)
    assert done.exit_code == 0, done.output
    return out


def refused(done: Any, code: int = 2) -> str:
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    [line] = [line for line in done.stderr.splitlines() if line.startswith("warmline: ")]
    return line


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
    from .test_package_merge import reseal

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


# ---- the hub ----


def test_the_hub_folder_has_a_card_and_no_secrets(run: RunDir, tmp_path: Path) -> None:
    out = made(run, tmp_path / "out", *HUB)
    _, metadata, text = (out / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "peft"
    assert "No clinician has reviewed" in text
    assert "licence unknown to warmline" in text
    assert "Not therapy" in text
    assert "This stage was not evaluated" in text
    assert peft.PeftConfig.from_pretrained(str(out)).peft_type == "LORA"
    everything = "".join(
        file.read_text(encoding="utf-8")
        for file in out.rglob("*")
        if file.suffix in {".md", ".json", ".yaml", ".jinja"}
    )
    for secret in ("10.0.0.9", "Ada Example", "secret@db", str(Path(run.recipe().model.base).parent), str(run.path)):
        assert secret not in everything, secret
    own = read_package(out)
    assert own.safety.country == "IE"


def test_nothing_is_uploaded_without_a_token_or_without_being_told(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, Any]] = []
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda _, name, **how: asked.append((name, how)) or "there"
    )
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda _, **how: asked.append((how["repo_id"], how)))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert "--push needs a token" in refused(package(run, tmp_path / "out", *HUB, "--push", "me/toy"))
    assert "is no hub id" in refused(package(run, tmp_path / "out", *HUB, "--push", "me/to/y"))
    assert "--push uploads a --to hub package" in refused(
        package(run, tmp_path / "out", "--to", "vllm", "--push", "me/x")
    )
    assert not (tmp_path / "out").exists()
    made(run, tmp_path / "one", *HUB)
    assert asked == []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    done = package(run, tmp_path / "two", *HUB, "--push", "me/toy")
    assert done.exit_code == 0, done.output
    assert [name for name, _ in asked] == ["me/toy", "me/toy"]
    assert asked[0][1]["private"] is True
    assert asked[1][1]["folder_path"] == tmp_path / "two"
    assert "hf_secret" not in done.output


def test_an_upload_that_fails_says_so_and_keeps_the_package(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")  # HF_HUB_OFFLINE is set: there is no hub here
    done = package(run, tmp_path / "out", *HUB, "--push", "me/toy")
    assert done.exit_code == 1
    assert "is made, and was not uploaded to me/toy" in done.stderr
    assert "hf_secret" not in done.output
    check_sums(tmp_path / "out")


# ---- licences ----


def test_every_recipe_names_the_licences_of_what_it_learns_from() -> None:
    found = {name: terms_of(load_recipe(name)) for name in recipe_names()}
    assert found["tiny"].non_commercial() == []
    assert found["tiny"].unknown() == []
    assert found["qwen2.5-7b"].non_commercial() == [
        "esconv (CC-BY-NC-4.0)",
        "empathetic_dialogues (CC-BY-NC-4.0)",
    ]
    assert "the base model (Qwen Research License)" in found["qwen2.5-3b"].non_commercial()
    assert found["phi-3-mini-counsel"].unknown() == ["counsel"]
    assert {load_recipe(name).model.base for name in recipe_names()} - {"tiny"} == BASES.keys()


def test_a_non_commercial_package_says_so(run: RunDir, tmp_path: Path) -> None:
    recipe = load_recipe("tiny-real")
    [line] = warnings_of(terms_of(recipe))
    assert line.startswith("non-commercial: this package is made from esconv (CC-BY-NC-4.0), empathetic_dialogues")
    done = package(run, tmp_path / "out", *HUB)
    assert "no licence is known to warmline of talks, the base model" in done.stderr


# ---- what travels, and how ----


@pytest.mark.parametrize("to", ["vllm", "hub"])
def test_heads_labels_and_settings_travel(to: str, run: RunDir, tmp_path: Path) -> None:
    out = made(run, tmp_path / "out", "--to", to)
    stage = json.loads((run.stage("sft") / "stage.json").read_text(encoding="utf-8"))
    labels = json.loads((out / "companion" / "heads.json").read_text(encoding="utf-8"))
    assert labels["heads"] == stage["heads"]
    ours, theirs = (load_file(place / "heads.safetensors") for place in (out / "companion", run.stage("sft")))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    own = load_operator(str(out / "companion" / "settings.yaml"))
    assert own.serve is not None
    assert own.serve.max_running == 5
    assert own.serve.store is None, "a store's address may hold a password"
    if to == "vllm":
        assert own.safety == run.recipe().safety


def test_a_merged_package_is_served_and_talked_to_with_its_own_settings(run: RunDir, tmp_path: Path) -> None:
    out = made(run, tmp_path / "out", "--to", "merged")
    [model] = served_models(str(out), "local", None, OperatorSettings(), None, None).values()
    assert (model.setting.system_prompt, model.setting.country) == ("Listen.", "IE")
    assert model.setting.question_owner == "Dr. Ada Example"
    assert model.setting.risk_head is not None
    assert not model.setting.risk_head.trusted
    with open_companion(str(out)) as companion:
        reply = companion.reply([("user", "I lost my job today .")])
    assert {reading.head for reading in reply.readings} == {"emotion", "situation", "strategy", "risk", "affect"}


def test_checksums_name_every_file_and_what_was_altered(run: RunDir, tmp_path: Path) -> None:
    out = made(run, tmp_path / "out", "--to", "vllm")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    files = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert {line.split("  ")[1] for line in (out / "SHA256SUMS").read_text().splitlines()} == files - {"SHA256SUMS"}
    check_sums(out)
    for name in sorted(files - {"SHA256SUMS"}):
        whole = (out / name).read_bytes()
        (out / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(PackageError, match="truncated or altered"):
            check_sums(out)
        (out / name).write_bytes(whole)
    (out / "companion" / "settings.yaml").write_text("safety: {country: XX}\n")
    with pytest.raises(PackageError, match=r"settings\.yaml is truncated or altered"):
        read_package(out)
    (out / "SHA256SUMS").write_text("")
    with pytest.raises(PackageError, match=r"does not name companion/package\.json"):
        read_package(out)


def test_a_folder_that_is_there_is_kept(run: RunDir, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    assert "is there already" in refused(package(run, tmp_path / "mine", *HUB))
    assert "is no package of warmline's" in refused(package(run, tmp_path / "mine", *HUB, "--force"))
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    out = made(run, tmp_path / "out", *HUB)
    assert "is there already" in refused(package(run, out, "--to", "vllm"))
    assert (out / "adapter_config.json").is_file()
    made(run, out, "--to", "vllm", "--force")
    assert not (out / "adapter_config.json").exists()


def test_a_package_appears_whole_or_not_at_all(run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "place").mkdir()
    kept = made(run, tmp_path / "place" / "out", *HUB)
    before = {file: file.read_bytes() for file in kept.rglob("*") if file.is_file()}
    monkeypatch.setattr(targets, "write_sums", full)
    line = refused(package(run, kept, "--to", "vllm", "--force"), code=1)
    assert "No space left on device" in line
    assert {file: file.read_bytes() for file in kept.rglob("*") if file.is_file()} == before
    refused(package(run, tmp_path / "place" / "new", *HUB), code=1)
    assert list((tmp_path / "place").iterdir()) == [kept]


def test_a_run_without_a_finished_stage_and_a_stage_that_is_not(
    run: RunDir, toy_recipe: ToyRecipe, tmp_path: Path
) -> None:
    empty = RunDir(tmp_path / "empty")
    empty.claim(load_recipe(str(toy_recipe())))
    assert "has no finished stage to package" in refused(package(empty, None, *HUB))
    assert "--stage 'base': there is sft to package" in refused(package(run, None, *HUB, "--stage", "base"))
    assert "is not a run folder" in refused(package(RunDir(tmp_path / "none"), None, *HUB))
    assert "--dtype says nothing for --to hub" in refused(package(run, None, *HUB, "--dtype", "bf16"))


def test_packages_stand_in_the_runs_folder_by_default(run: RunDir) -> None:
    done = package(run, None, *HUB)
    assert done.stdout == f"{run.path / 'packages' / 'hub.sft'}\n"
    assert (run.path / "packages" / "hub.sft" / "SHA256SUMS").is_file()


def test_help_loads_no_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom warmline.cli import app\n"
        "print(CliRunner().invoke(app, ['package', '--help']).exit_code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "0 False\n"
