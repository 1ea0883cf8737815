"""The stages of a run in order, each reusing what is already done: corpus, base, SFT, evaluation, report."""

import logging
import time
import warnings
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from warmline.config.operator import CompanionSettings, SafetySettings
from warmline.config.recipe import Recipe
from warmline.config.training import ModelSettings
from warmline.data.example_cache import encoded
from warmline.data.prepare import Corpus, load_corpus
from warmline.data.style import UNSTYLED, styling_of
from warmline.data.tokenize import Encoder
from warmline.engine.local import LocalEngine
from warmline.evaluate.floors import fit_floors
from warmline.evaluate.held_out import read_emotions, score_held_out
from warmline.evaluate.summary import TUNED_ON, held_out_file, summarise, tuning_file
from warmline.model import checkpoint
from warmline.model.device import SLOW_BFLOAT16, bfloat16_slowdown, threads_for_one_row
from warmline.model.load import ModelError, check_positions, fingerprint, load_base, load_tokenizer, resolve
from warmline.model.support_model import SupportModel
from warmline.package.folder import is_package, load_heads, read_package
from warmline.progress import progress, say
from warmline.run_dir import STAGES, RunDir, RunError, append_row, provenance
from warmline.safety.head import RiskHead, judge_head
from warmline.train.base import ensure_base, ensure_tokenizer
from warmline.train.loop import train
from warmline.train.sft import sft_stage
from warmline.train.stage import Files
from warmline.train.tracking import tracker, untracked

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Loaded:
    """A base in memory with its tokenizer, and what identifies it."""

    model: SupportModel
    tokenizer: "PreTrainedTokenizerBase"
    fingerprint: Mapping[str, str]


def accelerator() -> "Accelerator":
    """This process's device and its peers, as `accelerate launch` or a plain start set them up."""
    from accelerate import Accelerator
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # peft 0.21 asks transformers 5 for it
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
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
    # a finished stage has written down what it left out, turns that did not fit included
    writes = here.is_main_process and len(finished_stages(run)) == 1
    corpus = load_corpus(recipe, data_root, run.path / "rejected.jsonl" if writes else None)
    refuse_other_labels(run, corpus)
    folder = base_of(recipe, corpus, here)
    loaded = load(recipe.model, folder, here.device)
    check_positions(folder, recipe.model.max_seq_len)
    if recipe.model.dtype == "bfloat16" and (slowdown := bfloat16_slowdown(here.device)) > SLOW_BFLOAT16:
        say(f"bfloat16 is emulated here, {slowdown:.0f} times slower than float32: consider model.dtype=float32")
    if here.is_main_process:
        run.add_to_manifest(
            recipe=recipe.name,
            seed=recipe.seed,
            data=corpus.about,
            labels=labels_of(corpus),
            base={"name": recipe.model.base, "folder": str(folder), **loaded.fingerprint},
            device=str(here.device),
            processes=here.num_processes,
            **provenance(),
        )
    return corpus, loaded


def labels_of(corpus: Corpus) -> dict[str, list[str]]:
    """What each head's outputs mean, in their order."""
    return {name: list(spec.labels) for name, spec in corpus.specs.items()}


def refuse_other_labels(run: RunDir, corpus: Corpus) -> None:
    """Raises RunError if the corpora changed so that a stage begun in this run has heads with other outputs."""
    then, now = run.manifest().get("labels"), labels_of(corpus)
    if then in (None, now) or not any(run.stage(stage).exists() for stage in STAGES[1:]):
        return
    head = next(name for name in (*then, *now) if then.get(name) != now.get(name))
    raise RunError(
        f"{run.path} was started with other labels for the head {head!r}: {', '.join(then.get(head, ())) or 'none'}; "
        f"now the train split has {', '.join(now.get(head, ())) or 'none'}. Give it the corpora that it had, "
        "or start another run with --name"
    )


def run_sft(recipe: Recipe, run: RunDir, corpus: Corpus, loaded: Loaded, here: "Accelerator") -> None:
    """Train the SFT stage, or load it if it is finished."""
    folder = run.stage("sft")
    if (folder / "stage.json").is_file():
        checkpoint.load_stage(loaded.model, folder, loaded.fingerprint)
        return
    train_rows = encoded(
        corpus.conversations["train"], encoder_for(recipe, loaded.tokenizer), styling_of(recipe.data, recipe.seed)
    )
    held_out = encoded(corpus.conversations["validation"], encoder_for(recipe, loaded.tokenizer), UNSTYLED)
    changes = train_rows.changes + Counter(f"turn left out: {turn.reason}" for turn in train_rows.left_out)
    for what, count in changes.items():
        say(f"{count} times: {what}")
    torch.manual_seed(recipe.seed)
    loaded.model.add_stage("sft", recipe.model.lora, corpus.specs, recipe.model.base)
    pad_id = loaded.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    stage = sft_stage(recipe, loaded.model, train_rows.examples, held_out.examples, here, pad_id)
    started = time.monotonic()
    files = Files(folder / "trainer", run.metrics, run.timing)
    with tracker(recipe, run.path) if here.is_main_process else nullcontext(untracked) as track:
        best = train(stage, recipe.sft.optim, here, files, track)
    if not here.is_main_process:
        return
    for turn in train_rows.left_out:
        append_row(run.path / "rejected.jsonl", {"split": "train", **turn._asdict()})
    trained = sum(parameter.numel() for parameter in loaded.model.parameters() if parameter.requires_grad)
    run.add_to_manifest(
        examples={source: len(rows) for source, rows in train_rows.examples.items()},
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


def encoder_for(recipe: Recipe, tokenizer: "PreTrainedTokenizerBase") -> Encoder:
    return Encoder(tokenizer, recipe.model.max_seq_len, recipe.model.system_prompt)


def finished_stages(run: RunDir) -> list[str]:
    """`base` and the stages whose artefact is whole."""
    return ["base", *(stage for stage in STAGES[1:] if (run.stage(stage) / "stage.json").is_file())]


def base_folder(run: RunDir) -> Path:
    """Where the base of a run lies now. Raises CheckpointError if it has none, or no longer."""
    recipe = run.recipe()
    manifest = run.manifest()
    if "base" not in manifest:
        raise checkpoint.CheckpointError(f"{run.path} has no base yet: run it first")
    folder = Path(manifest["base"]["folder"])
    if folder.is_dir():
        return folder
    if recipe.model.base == "tiny":
        raise checkpoint.CheckpointError(f"the cached base {folder} is gone: `warmline run` makes it again")
    return resolve(recipe.model.base, recipe.model.revision)


def open_run(run: RunDir) -> Loaded:
    """The base of a run with every finished stage, from its folder alone."""
    loaded = load(run.recipe().model, base_folder(run), accelerator().device)
    for stage in finished_stages(run)[1:]:
        checkpoint.load_stage(loaded.model, run.stage(stage), loaded.fingerprint)
    return loaded


def score_stages(recipe: Recipe, run: RunDir, corpus: Corpus, loaded: Loaded) -> None:
    """Score the finished stages on held-out conversations, and summarise."""
    held_out, tuning = (
        [
            conversation
            for conversations in corpus.conversations[split].values()
            for conversation in conversations[: recipe.eval.max_conversations]
        ]
        for split in (recipe.eval.split, TUNED_ON)
    )
    with threads_for_one_row(loaded.model.device, loaded.model.hidden_size):
        for stage in finished_stages(run):
            engine = LocalEngine(loaded.model, loaded.tokenizer, stage)
            score_held_out(
                engine,
                held_out,
                held_out_file(run, stage),
                system_prompt=recipe.model.system_prompt,
                progress=partial(progress, f"score {stage}"),
            )
            if recipe.eval.split != TUNED_ON:
                read_emotions(
                    engine,
                    tuning,
                    tuning_file(run, stage),
                    system_prompt=recipe.model.system_prompt,
                    progress=partial(progress, f"read {stage} for thresholds"),
                )
    train_conversations = [each for conversations in corpus.conversations["train"].values() for each in conversations]
    summarise(run, fit_floors(train_conversations), recipe.eval, seed=recipe.seed, conversations=held_out)


class OpenedEngine(NamedTuple):
    engine: LocalEngine
    system_prompt: str | None
    title: str
    safety: SafetySettings  # the run's; a model's are the defaults
    risk_head: RiskHead | None  # None: the stage has none


def open_engine(name: str, run: RunDir, stage: str | None, loaded: Loaded | None = None) -> OpenedEngine:
    """What `name` stands for: a stage of the run `run` (its latest unless named), else a model folder or hub id.

    `loaded`: the run's model where this process has it already.
    """
    if (run.path / "recipe.yaml").is_file():
        recipe = run.recipe()
        stages = finished_stages(run)
        chosen = stages[-1] if stage is None else stage
        if chosen not in stages:
            raise RunError(f"{run.path} has no stage {chosen!r} (it has {', '.join(stages)})")
        loaded = loaded or open_run(run)
        return OpenedEngine(
            LocalEngine(loaded.model, loaded.tokenizer, chosen),
            recipe.model.system_prompt,
            f"{recipe.name}, stage {chosen}",
            recipe.safety,
            risk_head_of(run, chosen, loaded),
        )
    if stage not in {None, "base"}:
        raise RunError(f"{name} is not a run: it has no stage {stage!r}")
    try:
        folder = resolve(name)
    except ModelError as error:
        raise ModelError(f"{name!r} is neither a run under ./runs nor a model: {error}") from None
    if is_package(folder):
        return open_package(folder)
    loaded = load(ModelSettings(base=name), folder, accelerator().device)
    return OpenedEngine(LocalEngine(loaded.model, loaded.tokenizer), None, name, SafetySettings(), None)


def open_package(folder: Path) -> OpenedEngine:
    """A merged or quantised package with the heads and settings that travel with it. Raises PackageError if altered."""
    package = read_package(folder)
    settings = ModelSettings(base=str(folder), dtype=package.about["dtype"])
    loaded = load(settings, folder, accelerator().device)
    load_heads(loaded.model, package.heads, package.about)
    head = None
    if "risk" in package.about["heads"]:
        measured = package.about["risk_head"]
        head = judge_head(measured, loaded.fingerprint["weights"], loaded.fingerprint["quantization"])
    engine = LocalEngine(loaded.model, loaded.tokenizer, loaded.model.stage)
    return OpenedEngine(engine, package.about["system_prompt"], package.title, package.safety, head)


def companion_of(name: str, run: RunDir) -> CompanionSettings:
    """How the companion of a run or a package speaks; a model's are the defaults."""
    if (run.path / "recipe.yaml").is_file():
        return run.recipe().companion
    folder = Path(name).expanduser()
    return read_package(folder).companion if is_package(folder) else CompanionSettings()


def risk_head_of(run: RunDir, stage: str, loaded: Loaded) -> RiskHead | None:
    """Whether the stage's risk head may be listened to on the base that is loaded; None where the stage has none."""
    if "risk" not in loaded.model.specs.get(stage, {}):
        return None
    measured = checkpoint.read_stage(run.stage(stage)).get("risk_head")
    return judge_head(measured, loaded.fingerprint["weights"], loaded.fingerprint["quantization"])


def tokenizer_of(recipe: Recipe, corpus: Corpus) -> "PreTrainedTokenizerBase":
    """The tokenizer that the recipe trains with; the embedded base's is made without training the base."""
    if recipe.model.base == "tiny":
        return ensure_tokenizer(recipe, corpus)
    return load_tokenizer(resolve(recipe.model.base, recipe.model.revision), recipe.model.chat_template)
