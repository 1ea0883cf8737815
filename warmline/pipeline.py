"""The stages of a run in order, each reusing what is already done: corpus, base, SFT, evaluation, report."""

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warmline.config import ModelSettings, Recipe
from warmline.data.prepare import Corpus, encode, load_corpus
from warmline.engine.local import LocalEngine
from warmline.model import checkpoint
from warmline.model.load import fingerprint, load_base, load_tokenizer, resolve
from warmline.model.support_model import SupportModel
from warmline.run_dir import STAGES, RunDir, provenance
from warmline.train.base import ensure_base
from warmline.train.loop import Files, train
from warmline.train.sft import sft_stage

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A base in memory with its tokenizer, and what identifies it."""

    model: SupportModel
    tokenizer: "PreTrainedTokenizerBase"
    fingerprint: Mapping[str, str]


def say(text: str) -> None:
    """One line of progress for a person; results go to standard output, this does not."""
    print(text, file=sys.stderr, flush=True)


def accelerator() -> "Accelerator":
    """This process's device and its peers, as `accelerate launch` or a plain start set them up."""
    from accelerate import Accelerator

    return Accelerator(cpu=not torch.cuda.is_available())


def load(settings: ModelSettings, folder: Path, device: torch.device) -> Loaded:
    """Base and tokenizer from a local folder, once."""
    tokenizer = load_tokenizer(folder, settings.chat_template)
    model = SupportModel(load_base(folder, settings, device), settings.dtype)
    identity = fingerprint(folder, settings, str(tokenizer.chat_template or ""))
    return Loaded(model, tokenizer, identity)


def base_of(recipe: Recipe, corpus: Corpus, here: "Accelerator") -> Path:
    """The folder of the recipe's base: pre-trained now, found locally, or downloaded."""
    if recipe.model.base == "tiny":
        return ensure_base(recipe, corpus, here)
    return resolve(recipe.model.base, recipe.model.revision)


def prepare(recipe: Recipe, run: RunDir, data_root: Path | None, here: "Accelerator") -> tuple[Corpus, Loaded]:
    """The corpus and the loaded base of a run; both go into its manifest."""
    say(f"reading {', '.join(recipe.data.sources)}")
    corpus = load_corpus(recipe, data_root, run.path / "rejected.jsonl" if here.is_main_process else None)
    folder = base_of(recipe, corpus, here)
    loaded = load(recipe.model, folder, here.device)
    if here.is_main_process:
        run.add_to_manifest(
            recipe=recipe.name,
            seed=recipe.seed,
            data=corpus.about,
            labels={name: spec.labels for name, spec in corpus.specs.items()},
            base={"name": recipe.model.base, "folder": str(folder), **loaded.fingerprint},
            device=str(here.device),
            processes=here.num_processes,
            **provenance(),
        )
    return corpus, loaded


def run_sft(recipe: Recipe, run: RunDir, corpus: Corpus, loaded: Loaded, here: "Accelerator") -> None:
    """Train the SFT stage, or load it if it is finished."""
    folder = run.stage("sft")
    if (folder / "stage.json").is_file():
        checkpoint.load_stage(loaded.model, folder, loaded.fingerprint)
        return
    options: dict[str, Any] = {"max_seq_len": recipe.model.max_seq_len, "system_prompt": recipe.model.system_prompt}
    examples, changes = encode(corpus.conversations["train"], loaded.tokenizer, **options)
    validation, _ = encode(corpus.conversations["validation"], loaded.tokenizer, **options)
    for what, count in changes.items():
        say(f"{count} conversations: {what}")
    torch.manual_seed(recipe.seed)
    loaded.model.add_stage("sft", recipe.model.lora, corpus.specs, recipe.model.base)
    pad_id = loaded.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    stage = sft_stage(recipe, loaded.model, examples, validation, here, pad_id)
    started = time.monotonic()
    best = train(stage, recipe.sft.optim, here, Files(folder / "trainer", run.metrics, run.timing))
    if not here.is_main_process:
        return
    trained = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    run.add_to_manifest(
        examples={source: len(rows) for source, rows in examples.items()},
        changes=dict(changes),
        sft={
            "steps": stage.num_steps,
            "best_step": best.step,
            "trained_parameters": trained,
            "seconds_of_last_start": round(time.monotonic() - started, 1),
        },
    )
    about = {"step": best.step, "validation_loss": best.loss, "base": recipe.model.base, "recipe": recipe.name}
    checkpoint.save_stage(loaded.model, folder, fingerprint=loaded.fingerprint, about=about)


def finished_stages(run: RunDir) -> list[str]:
    """`base` and the stages whose artefact is whole."""
    return ["base", *(stage for stage in STAGES[1:] if (run.stage(stage) / "stage.json").is_file())]


def open_run(run: RunDir) -> Loaded:
    """The base of a run with every finished stage, from its folder alone."""
    recipe = run.recipe()
    manifest = run.manifest()
    if "base" not in manifest:
        raise checkpoint.CheckpointError(f"{run.path} has no base yet: run it first")
    folder = Path(manifest["base"]["folder"])
    if not folder.is_dir():
        if recipe.model.base == "tiny":
            raise checkpoint.CheckpointError(f"the cached base {folder} is gone: `warmline run` makes it again")
        folder = resolve(recipe.model.base, recipe.model.revision)
    loaded = load(recipe.model, folder, accelerator().device)
    for stage in finished_stages(run)[1:]:
        checkpoint.load_stage(loaded.model, run.stage(stage), loaded.fingerprint)
    return loaded


def engines(loaded: Loaded, stages: list[str]) -> dict[str, LocalEngine]:
    """One engine for each stage, all over the same weights."""
    return {stage: LocalEngine(loaded.model, loaded.tokenizer, stage) for stage in stages}
