"""Memory: running out of it halves the micro-batch and changes nothing else; checkpointed activations need less."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from warmline.config.training import LoraSettings, ModelSettings
from warmline.data.batches import Batch, collate
from warmline.data.tokenize import Anchor, Example
from warmline.model.load import load_base
from warmline.model.support_model import SupportModel
from warmline.objectives import Term
from warmline.train import sft
from warmline.train.stage import TrainError

from .conftest import ToyRecipe
from .runs import rows_of, train_here, weights_of


def limited(monkeypatch: pytest.MonkeyPatch, tokens: int, error: RuntimeError) -> list[int]:
    """Passes over more than `tokens` fail with `error`, as on a device with that much memory; returns their sizes."""
    real, failed = sft.terms, []

    def terms(module: Any, model: Any, batch: Batch, settings: Any) -> dict[str, Term]:
        if batch.input_ids_BT.numel() > tokens and torch.is_grad_enabled():
            failed.append(batch.input_ids_BT.numel())
            raise error
        return real(module, model, batch, settings)

    monkeypatch.setattr(sft, "terms", terms)
    return failed


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
)
def test_out_of_memory_halves_the_micro_batch_and_keeps_every_step(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError, capsys: Any
) -> None:
    reference = train_here(toy_recipe(), tmp_path / "reference")
    failed = limited(monkeypatch, 260, error)
    run = train_here(toy_recipe(), tmp_path / "run")
    assert failed
    assert len(failed) <= 4, "what did not fit once is not tried again"
    for one, other in zip(rows_of(reference), rows_of(run), strict=True):
        assert (one["step"], one["split"], one["tokens"]) == (other["step"], other["split"], other["tokens"])
        assert {name: term["count"] for name, term in one["terms"].items()} == {
            name: term["count"] for name, term in other["terms"].items()
        }
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-5)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("out of memory")]
    assert len(said) == len(failed)
    assert said[0].startswith("out of memory in step 1: going on with micro-batches of ")


def test_a_resumed_run_knows_what_fits(toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second start finds the budget of the first, so that both make the same sums in the same order."""
    failed = limited(monkeypatch, 260, torch.OutOfMemoryError("CUDA out of memory."))
    reference = train_here(toy_recipe(), tmp_path / "reference")
    train_here(toy_recipe(), tmp_path / "run")
    stage = tmp_path / "run" / "stages" / "sft"
    (stage / "stage.json").unlink()
    trainer = stage / "trainer"
    for state in trainer.glob("step-*"):
        progress = json.loads((state / "progress.json").read_text())
        assert 0 < progress["micro_batch_tokens"] <= 260
    failed.clear()
    resumed = train_here(toy_recipe(), tmp_path / "run")
    assert not failed
    for name, weight in weights_of(reference).items():
        assert torch.equal(weights_of(resumed)[name], weight), name


def test_one_conversation_that_does_not_fit_stops_the_run_with_advice(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 10, torch.OutOfMemoryError("CUDA out of memory."))
    advice = r"out of memory in step 1 with one conversation of \d+ tokens at a time: set .*gradient_checkpointing=true"
    with pytest.raises(TrainError, match=advice):
        train_here(toy_recipe(), tmp_path / "run")


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    toy_recipe: ToyRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited(monkeypatch, 10, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train_here(toy_recipe(), tmp_path / "run")


REAL = """
import resource, sys
from pathlib import Path
import torch
from warmline.config.reading import load_recipe
from warmline.pipeline import accelerator, prepare, run_sft
from warmline.run_dir import RunDir
torch.set_num_threads(1)
recipe, run = load_recipe(sys.argv[1]), RunDir(Path(sys.argv[2]))
run.claim(recipe)
here = accelerator()
corpus, loaded = prepare(recipe, run, None, here)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[3]) * 2**20,) * 2)
run_sft(recipe, run, corpus, loaded, here)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
def test_a_real_lack_of_memory_is_survived(toy_recipe: ToyRecipe, toy_corpus: Path, tmp_path: Path) -> None:
    """The corpus many times over in one micro-batch, under a limit on the process's memory."""
    rows = [json.loads(line) for line in (toy_corpus / "train.jsonl").read_text().splitlines()]
    many = [row | {"id": f"{row['id']}-{copy}"} for row in rows for copy in range(40)]
    corpus = tmp_path / "many"
    corpus.mkdir()
    for name, content in {"train": many, "validation": rows[:2], "test": rows[:2]}.items():
        (corpus / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
    recipe = toy_recipe(data__sources__talks={"reader": "chat_jsonl", "location": str(corpus)}, sft__steps=2)
    tree = yaml.safe_load(recipe.read_text())
    tree["data"]["max_overlap_share"] = 1.0  # the evaluation splits are copies here
    tree["sft"]["optim"] |= {"batch_size": 512, "micro_batch_tokens": 200_000}
    recipe.write_text(yaml.safe_dump(tree))
    run = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", REAL, str(recipe), str(run), "300"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "out of memory in step 1: going on with micro-batches of " in done.stderr


def saved_bytes(model: SupportModel, batch: Batch) -> int:
    """What the forward pass keeps for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    parameters = {parameter.data_ptr() for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(batch).hidden_ND.sum()
    return sum(size for pointer, size in sizes.items() if pointer not in parameters)


def test_checkpointed_activations_need_less_memory_and_only_in_training(toy_base: Path) -> None:
    settings = ModelSettings(base=str(toy_base))
    ids = torch.arange(3, 195).numpy()
    batch = collate([Example("a", "toy", ids, ids.copy(), (Anchor(5, 180),))], {}, pad_id=0)
    sizes: dict[str, int] = {}
    for name, checkpointed in (("kept", False), ("again", True)):
        model = SupportModel(load_base(toy_base, settings, torch.device("cpu")), "float32")
        model.add_stage("sft", LoraSettings(r=4, alpha=8, dropout=0.1), {}, "toy")
        if checkpointed:
            model.checkpoint_activations()
        model.train()
        sizes[name] = saved_bytes(model, batch)
        model.eval()
        sizes[f"{name}, eval"] = saved_bytes(model, batch)
    assert sizes["again"] < 0.2 * sizes["kept"]
    assert sizes["again, eval"] > 0.9 * sizes["kept, eval"]


def test_the_order_of_sizes_is_what_is_tried(toy_base: Path) -> None:
    """Half of the largest micro-batch, not half of a budget that was never filled."""
    from warmline.train.memory import halved

    def batch(*lengths: int) -> Batch:
        rows = [torch.arange(length).numpy() for length in lengths]
        return collate([Example(str(at), "toy", row, row, ()) for at, row in enumerate(rows)], {}, pad_id=0)

    batches: Sequence[Batch] = [batch(30, 28), batch(10, 10, 10)]
    assert halved(batches, 0, 1) == 30
    with pytest.raises(TrainError, match="lower sft"):
        halved(batches, 0, 2)
    with pytest.raises(TrainError, match="one conversation of 30 tokens"):
        halved([batch(30), batch(10)], 0, 1)
