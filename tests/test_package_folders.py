"""Packages as folders: the hub's; what travels with each, licences, checksums, and whole or not at all."""

import json
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

from warmline.commands.serve import served_models
from warmline.config.operator import OperatorSettings
from warmline.config.reading import load_operator, load_recipe, recipe_names
from warmline.embed import open_companion
from warmline.package import targets
from warmline.package.folder import check_sums, read_package
from warmline.package.licences import BASES, terms_of, warnings_of
from warmline.package.subject import PackageError
from warmline.run_dir import RunDir

from .conftest import ToyRecipe
from .packages import made, package, refused
from .runs import train_here

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
    once: list[RunDir] = []

    def run(recipe: Path) -> RunDir:
        if not once:
            once.append(train_here(recipe, tmp_path_factory.mktemp("folders") / "run"))
        return once[0]

    return run


@pytest.fixture
def run(trained: Callable[[Path], RunDir], toy_recipe: ToyRecipe) -> RunDir:
    return trained(toy_recipe(sft__steps=1, safety=SAFETY, serve=SERVE))


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
