"""Stages and trainer states on disk: what is altered, cut or of another base is refused, and says which part."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from warmline.config.training import LoraSettings, ModelSettings
from warmline.data.labels import AFFECTS, RISKS, HeadSpec
from warmline.model.checkpoint import STAGE_FILES, CheckpointError, load_stage, read_stage, save_stage
from warmline.model.load import SAMPLED_BYTES, fingerprint, load_base, load_tokenizer
from warmline.model.support_model import SupportModel, trainable_groups
from warmline.model.tiny import train_tokenizer
from warmline.train import trainer_state
from warmline.train.trainer_state import Best, Saved, State

CPU = torch.device("cpu")
LORA = LoraSettings(r=2, alpha=4, dropout=0.0)
SPECS = {"risk": HeadSpec("ordinal", RISKS), "affect": HeadSpec("regression", AFFECTS)}
IDS = torch.tensor([[1, 20, 30, 40, 50, 2]])


def load(base: Path) -> SupportModel:
    return SupportModel(load_base(base, ModelSettings(base=str(base)), CPU), "float32")


def with_stage(base: Path, stage: str = "sft") -> SupportModel:
    model = load(base)
    model.add_stage(stage, LORA, SPECS, str(base))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.1)
    return model


def identity(base: Path, **settings: Any) -> dict[str, str]:
    """The fingerprint of a base as the pipeline takes it."""
    wanted = ModelSettings(base=str(base), **settings)
    tokenizer = load_tokenizer(base, wanted.chat_template)
    return fingerprint(base, wanted, str(tokenizer.chat_template))


@torch.no_grad()
def outputs(model: SupportModel) -> dict[str, Tensor]:
    state = model.hidden(IDS, use_cache=False).last_hidden_state
    return {"lm": state @ model.lm_weight_VD.T} | {name: head(state) for name, head in model.heads.items()}


def truncate(file: Path) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])


def alter(file: Path) -> None:
    """One bit from the middle on: in JSON a letter of some value, in weights a digit of some number."""
    whole = bytearray(file.read_bytes())
    at = next(at for at in range(len(whole) // 2, len(whole)) if file.suffix != ".json" or whole[at : at + 1].isalpha())
    whole[at] ^= 1
    file.write_bytes(whole)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def remove(file: Path) -> None:
    file.unlink()


DAMAGES: list[Callable[[Path], None]] = [truncate, alter, empty, remove]


@pytest.fixture(scope="module")
def stage(toy_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved SFT stage of the toy base."""
    folder = tmp_path_factory.mktemp("stage") / "sft"
    save_stage(with_stage(toy_base), folder, fingerprint=identity(toy_base), about={"step": 3, "recipe": "toy"})
    return folder


def test_a_stage_says_what_it_is(stage: Path, toy_base: Path) -> None:
    about = read_stage(stage)
    assert (about["stage"], about["step"], about["recipe"]) == ("sft", 3, "toy")
    assert about["fingerprint"] == identity(toy_base)
    assert about["heads"]["risk"] == {"kind": "ordinal", "labels": list(RISKS)}
    assert list(about["files"]) == STAGE_FILES
    modules = json.loads((stage / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert modules == sorted(modules), "peft keeps a set: its order is another one in every process"
    assert {str(file.relative_to(stage)) for file in stage.rglob("*") if file.is_file()} == {*STAGE_FILES, "stage.json"}


def test_a_stage_loads_on_its_own_base_wherever_that_lies(stage: Path, toy_base: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_base, tmp_path / "moved")
    model = load(tmp_path / "moved")
    load_stage(model, stage, identity(tmp_path / "moved"))
    expected = outputs(with_stage(toy_base))
    assert all(torch.equal(found, expected[name]) for name, found in outputs(model).items())


def other_weights(folder: Path) -> dict[str, str]:
    file = folder / "model.safetensors"
    weights = load_file(file)
    next(iter(weights.values())).view(-1)[0] += 0.5
    save_file(weights, file, metadata={"format": "pt"})
    return identity(folder)


def other_tokenizer(folder: Path) -> dict[str, str]:
    template = load_tokenizer(folder).chat_template
    other = train_tokenizer(["quite other words than those"], 400)
    other.chat_template = template
    other.save_pretrained(folder)
    return identity(folder)


def other_template(folder: Path) -> dict[str, str]:
    return identity(folder, chat_template="{{ messages[0]['content'] }}")


def other_quantization(folder: Path) -> dict[str, str]:
    return identity(folder, quantization="nf4")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("weights", other_weights),
        ("tokenizer", other_tokenizer),
        ("template", other_template),
        ("quantization", other_quantization),
    ],
)
def test_a_stage_of_another_base_is_refused_and_the_part_named(
    part: str, change: Callable[[Path], dict[str, str]], stage: Path, toy_base: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(toy_base, base)
    here = change(base)
    assert [name for name, value in identity(toy_base).items() if here[name] != value] == [part]
    model = load(base)
    with pytest.raises(CheckpointError, match=f"trained on another base: its {part} is not that of the loaded base"):
        load_stage(model, stage, here)
    assert model.specs == {}, "nothing of it was loaded"


@pytest.mark.parametrize("at", [0, -1])
def test_both_ends_of_a_large_weight_file_identify_it(at: int, toy_base: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(toy_base, base)
    content = bytearray(3 * SAMPLED_BYTES)
    (base / "model-00002.safetensors").write_bytes(content)
    before = identity(base)["weights"]
    assert before != identity(toy_base)["weights"]
    content[at] = 1
    (base / "model-00002.safetensors").write_bytes(content)
    assert identity(base)["weights"] != before


@pytest.mark.parametrize("file", [*STAGE_FILES, "stage.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_stage_is_refused_and_the_file_named(
    file: str, damage: Callable[[Path], None], stage: Path, toy_base: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "sft"
    shutil.copytree(stage, folder)
    damage(folder / file)
    model = load(toy_base)
    with pytest.raises(CheckpointError) as caught:
        load_stage(model, folder, identity(toy_base))
    expected = (
        "truncated or altered" if damage is not remove else "no stage.json" if file == "stage.json" else "missing"
    )
    assert expected in str(caught.value)
    assert file in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert model.specs == {}


@pytest.mark.parametrize("content", [b"", b"[]", b'"sft"', b"{}", b"\xff\xfe"])
def test_a_stage_file_that_is_something_else_is_refused(content: bytes, stage: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    shutil.copytree(stage, folder)
    (folder / "stage.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"stage\.json is truncated or altered"):
        read_stage(folder)


def test_a_stage_with_another_label_is_altered(stage: Path, toy_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sft"
    shutil.copytree(stage, folder)
    about = json.loads((folder / "stage.json").read_text(encoding="utf-8"))
    about["heads"]["risk"]["labels"].reverse()
    (folder / "stage.json").write_text(json.dumps(about), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"stage\.json is truncated or altered"):
        load_stage(load(toy_base), folder, identity(toy_base))


def test_a_save_that_was_cut_leaves_no_stage_that_looks_whole(toy_base: Path, tmp_path: Path) -> None:
    model = with_stage(toy_base)
    save_stage(model, tmp_path, fingerprint=identity(toy_base), about={})
    with pytest.raises(TypeError):
        save_stage(model, tmp_path, fingerprint=identity(toy_base), about={"step": object()})
    with pytest.raises(CheckpointError, match="holds no finished stage"):
        load_stage(load(toy_base), tmp_path, identity(toy_base))
    save_stage(model, tmp_path, fingerprint=identity(toy_base), about={})
    load_stage(load(toy_base), tmp_path, identity(toy_base))


def test_two_stages_are_saved_and_loaded_beside_each_other(toy_base: Path, tmp_path: Path) -> None:
    model = with_stage(toy_base)
    expected = {"sft": outputs(model)}
    model.add_stage("dpo", LORA, {"risk": SPECS["risk"]}, "toy")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dpo." in name:
                parameter.normal_(0, 0.2)
    expected["dpo"] = outputs(model)
    assert not torch.equal(expected["dpo"]["lm"], expected["sft"]["lm"])
    again = load(toy_base)
    for name in expected:
        model.use(name)
        save_stage(model, tmp_path / name, fingerprint=identity(toy_base), about={})
        load_stage(again, tmp_path / name, identity(toy_base))
    for name, wanted in expected.items():
        again.use(name)
        found = outputs(again)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[each], wanted[each]) for each in wanted)


def session(base: Path) -> tuple[SupportModel, Saved]:
    model = with_stage(base)
    optimizer = torch.optim.AdamW(trainable_groups(model, 0.01, 0.01))
    return model, Saved(model, optimizer, torch.amp.GradScaler("cpu", enabled=True))


def step(model: SupportModel, saved: Saved) -> None:
    states = model.hidden(IDS, use_cache=False).last_hidden_state
    loss = states.square().mean() + sum(head(states).square().mean() for head in model.heads.values())
    saved.optimizer.zero_grad()
    saved.scaler.scale(loss).backward()
    saved.scaler.step(saved.optimizer)
    saved.scaler.update()


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_resumed_state_goes_on_as_if_nothing_had_been(toy_base: Path, tmp_path: Path) -> None:
    model, saved = session(toy_base)
    for _ in range(3):
        step(model, saved)
    state = State(step=3, best=Best(3, 1.5), num_skipped=4, skips_in_row=1)
    trainer_state.save(tmp_path, saved, state)
    other, resumed = session(toy_base)
    assert trainer_state.resume(tmp_path, resumed) == state
    assert resumed.scaler.state_dict() == saved.scaler.state_dict()
    for each in (model, saved), (other, resumed):
        step(*each)
    named = dict(other.named_parameters())
    assert all(torch.equal(parameter, named[name]) for name, parameter in model.named_parameters())
    fresh, _ = session(toy_base)
    assert not torch.equal(outputs(other)["lm"], outputs(fresh)["lm"])


def test_without_a_state_everything_starts(toy_base: Path, tmp_path: Path) -> None:
    assert trainer_state.resume(tmp_path / "none", session(toy_base)[1]) == State(0, Best(0, None))


def test_only_the_newest_and_the_best_state_are_kept(toy_base: Path, tmp_path: Path) -> None:
    model, saved = session(toy_base)
    best = {2: 2, 4: 4, 6: 4, 8: 4}
    weights = {}
    for at, of_best in best.items():
        step(model, saved)
        weights[at] = outputs(model)["lm"]
        trainer_state.save(tmp_path, saved, State(at, Best(of_best, 1.0)))
    assert steps_in(tmp_path) == ["step-000004", "step-000008"]
    trainer_state.load_weights(tmp_path, 4, model)
    assert torch.equal(outputs(model)["lm"], weights[4])
    assert trainer_state.resume(tmp_path, saved).step == 8
    assert torch.equal(outputs(model)["lm"], weights[8])


def test_validation_keeps_the_best_step() -> None:
    state = State()
    bests = []
    for loss in (3.0, 2.0, 2.0, 2.5, None):
        state = state.after_step(skipped=False).with_validation(loss)
        bests.append(state.best.step)
    assert bests == [1, 2, 2, 2, 5]
    assert State().after_step(skipped=True).after_step(skipped=True).skips_in_row == 2
    assert State(num_skipped=2, skips_in_row=2).after_step(skipped=False) == State(step=1, num_skipped=2)


@pytest.mark.parametrize("file", [*trainer_state.FILES, "checksums.json"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_the_file_named(
    file: str, damage: Callable[[Path], None], toy_base: Path, tmp_path: Path
) -> None:
    _, saved = session(toy_base)
    trainer_state.save(tmp_path, saved, State(5, Best(5, 1.0)))
    damage(tmp_path / "step-000005" / file)
    for read in (
        lambda: trainer_state.resume(tmp_path, saved),
        lambda: trainer_state.load_weights(tmp_path, 5, saved.model),
    ):
        with pytest.raises(CheckpointError, match=r"missing|truncated or altered") as caught:
            read()
        assert "step-000005" in str(caught.value)
        assert file in str(caught.value)


def test_every_file_of_a_state_is_damaged_above(toy_base: Path, tmp_path: Path) -> None:
    _, saved = session(toy_base)
    trainer_state.save(tmp_path, saved, State(5, Best(5, 1.0)))
    assert steps_in(tmp_path / "step-000005") == sorted([*trainer_state.FILES, "checksums.json"])


@pytest.mark.parametrize(
    ("damaged", "way_on"),
    [
        (8, "delete {folder}/step-000008 to go on from step 4"),
        (4, "delete {folder} to train this stage from its start"),  # nothing else holds the best weights
    ],
)
def test_a_damaged_state_says_what_to_delete_to_go_on(
    damaged: int, way_on: str, toy_base: Path, tmp_path: Path
) -> None:
    model, saved = session(toy_base)
    for at in (4, 8):
        step(model, saved)
        trainer_state.save(tmp_path, saved, State(at, Best(4, 1.0)))
    alter(tmp_path / f"step-{damaged:06d}" / "weights.safetensors")
    with pytest.raises(CheckpointError) as caught:
        trainer_state.resume(tmp_path, saved)
    assert str(caught.value).startswith(f"{tmp_path / f'step-{damaged:06d}' / 'weights.safetensors'} is truncated or")
    assert str(caught.value).endswith("; " + way_on.format(folder=tmp_path))
    assert steps_in(tmp_path) == ["step-000004", "step-000008"], "nothing was removed"
    if damaged == 8:
        shutil.rmtree(tmp_path / "step-000008")
        assert trainer_state.resume(tmp_path, saved) == State(4, Best(4, 1.0))


def test_a_state_without_the_best_one_is_refused(toy_base: Path, tmp_path: Path) -> None:
    _, saved = session(toy_base)
    trainer_state.save(tmp_path, saved, State(5, Best(3, 1.0)))
    with pytest.raises(CheckpointError, match=r"step-000003.* is missing: the checkpoint is not whole; delete"):
        trainer_state.resume(tmp_path, saved)


def test_what_killed_saves_left_behind_is_removed_and_what_is_not_ours_stays(toy_base: Path, tmp_path: Path) -> None:
    _, saved = session(toy_base)

    def leave_behind() -> None:
        (tmp_path / ".step-000007.draft").mkdir()
        (tmp_path / ".step-000007.draft" / "weights.safetensors").write_bytes(b"half")

    leave_behind()
    (tmp_path / "step-000002.bak").mkdir()
    assert trainer_state.resume(tmp_path, saved) == State()
    assert steps_in(tmp_path) == ["step-000002.bak"]
    trainer_state.save(tmp_path, saved, State(5, Best(5, 1.0)))
    leave_behind()
    (tmp_path / "step-000004").mkdir()  # killed while it was dropped: the newer one was whole by then
    assert trainer_state.resume(tmp_path, saved).step == 5
    assert steps_in(tmp_path) == ["step-000002.bak", "step-000005"]


@pytest.mark.parametrize("content", ["{}", "[]", '{"weights.safetensors": "0"}'])
def test_checksums_that_leave_files_out_do_not_pass(content: str, toy_base: Path, tmp_path: Path) -> None:
    _, saved = session(toy_base)
    trainer_state.save(tmp_path, saved, State(5, Best(5, 1.0)))
    (tmp_path / "step-000005" / "checksums.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"checksums\.json is truncated or altered"):
        trainer_state.resume(tmp_path, saved)


def test_a_state_of_another_adapter_is_refused(toy_base: Path, tmp_path: Path) -> None:
    _, saved = session(toy_base)
    trainer_state.save(tmp_path, saved, State(5, Best(5, 1.0)))
    other = load(toy_base)
    other.add_stage("sft", LoraSettings(r=2, targets=("q_proj",)), SPECS, "toy")
    with pytest.raises(CheckpointError, match="holds other weights than this stage trains"):
        trainer_state.load_weights(tmp_path, 5, other)
    other = load(toy_base)
    other.add_stage("sft", LoraSettings(r=8), SPECS, "toy")
    with pytest.raises(CheckpointError, match="holds other weights than this stage trains"):
        trainer_state.load_weights(tmp_path, 5, other)
