"""The targets by name, and a package made whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from warmline.config.training import ModelSettings
from warmline.data.tokenize import Example
from warmline.model.load import fingerprint, load_base
from warmline.model.support_model import SupportModel
from warmline.package import gguf, hub, ollama, vllm
from warmline.package.card import card
from warmline.package.drift import Drift, bundled_examples, drift_of, states_of
from warmline.package.folder import is_package, licences_json, load_heads, write_companion, write_sums
from warmline.package.licences import terms_of
from warmline.package.merge import refuse_broken_tie, write_merged
from warmline.package.quantised import write_quantised
from warmline.package.subject import PackageError, Subject
from warmline.progress import say
from warmline.run_dir import write_atomic

RISK_MOVES = 0.01  # a measured risk head stays measured where no reading of any head moved by more

USE_MODEL = (
    "`warmline chat THIS_FOLDER` and `warmline serve THIS_FOLDER` use it with its heads, its system prompt and its safety "
    "settings. Any program that loads a transformers folder loads the weights, and none of the rest."
)


@dataclass(frozen=True)
class Job:
    """One package in the making."""

    subject: Subject
    dtype: str
    model: SupportModel | None  # with the stage in use; only for targets that need weights
    draft: Path


class Made(NamedTuple):
    usage: str  # Markdown
    drift: Drift | None = None
    weights: str | None = None  # fingerprint of the model that the package holds, for its risk head


class Target(NamedTuple):
    about: str  # for --help
    make: Callable[[Job], Made]
    needs_weights: bool
    check: Callable[[Subject], object]  # raises before anything is loaded
    takes_dtype: bool = True


def make_package(
    subject: Subject, to: str, out: Path, dtype: str, open_model: Callable[[], SupportModel], *, force: bool
) -> Path:
    """Make the folder `out`; it appears whole or not at all. Raises PackageError, and OSError for a full disk.

    `open_model`: the run's model; called only where weights are needed, after all that can be refused without them.
    """
    target = TARGETS[to]
    refuse_existing(out, force=force)
    target.check(subject)
    model = open_model() if target.needs_weights else None
    if model is not None:
        model.use(subject.stage)
    write_atomic(out, partial(_write, subject, to, dtype, model))
    return out


def refuse_existing(out: Path, *, force: bool) -> None:
    """Raises PackageError for a folder that is there; `force` replaces a package and nothing else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not force:
        raise PackageError(f"{out} is there already: name another folder with --out, or replace it with --force")
    if not is_package(out):
        raise PackageError(f"{out} is no package of warmline's: --force does not replace it")


def _write(subject: Subject, to: str, dtype: str, model: SupportModel | None, draft: Path) -> None:
    draft.mkdir()
    made = TARGETS[to].make(Job(subject, dtype, model, draft))
    terms = terms_of(subject.recipe)
    about: dict[str, Any] = {
        "target": to,
        "dtype": dtype,
        "licences": licences_json(terms),
        "drift": made.drift._asdict() if made.drift else None,
        "risk_head": _risk_head(subject, made),
    }
    write_companion(subject, draft, about, public=to == "hub")
    text = card(subject, to, made.usage, terms, made.drift, for_hub=to == "hub")
    (draft / "README.md").write_text(text, encoding="utf-8")
    write_sums(draft)


def _risk_head(subject: Subject, made: Made) -> Any:
    """The measurement of the risk head, of the package's weights where they read as those that were measured."""
    measured, trained = subject.about.get("risk_head"), subject.about["fingerprint"]
    if not isinstance(measured, dict) or made.drift is None or made.weights is None:
        return measured
    was_these = (measured.get("base_model_hash"), measured.get("quant")) == (
        trained["weights"],
        trained["quantization"],
    )
    if not was_these or made.drift.heads_max > RISK_MOVES:
        return measured
    return measured | {"base_model_hash": made.weights, "quant": "none"}


def _merged(job: Job) -> Made:
    drift, weights = _write_weights(job, job.draft, job.dtype, None)
    return Made(USE_MODEL, drift, weights)


def _quantised(to: Literal["int8", "nf4"], job: Job) -> Made:
    drift, weights = _write_weights(job, job.draft, job.dtype, to)
    return Made(USE_MODEL, drift, weights)


def _vllm(job: Job) -> Made:
    return Made(vllm.write_vllm(job.subject, job.draft, job.dtype))


def _hub(job: Job) -> Made:
    return Made(hub.write_hub(job.subject, job.draft))


def _gguf(job: Job) -> Made:
    converter = gguf.find_converter(os.environ)
    with _within(job.draft) as merged:
        drift, _ = _write_weights(job, merged, job.dtype, None)
        gguf.write_gguf(converter, merged, job.draft, job.dtype)
    name = job.subject.name
    usage = (
        f"```sh\nllama-server -m {gguf.FILE} --jinja --host 127.0.0.1 --port 8001\n"
        f"warmline serve {name} --engine remote --url http://127.0.0.1:8001 --settings companion/settings.yaml\n```\n\n"
        "llama.cpp reads the chat template in the file. The drift below is of the merged weights before they were converted."
    )
    return Made(usage, drift)


def _ollama(job: Job) -> Made:
    subject = job.subject
    assert job.model is not None
    layout = ollama.layout_for(subject)
    drift = None
    if ollama.needs_gguf(subject):
        drift = _gguf(job).drift
        source = f"./{gguf.FILE}"
    else:
        (job.draft / ollama.MODEL).mkdir()
        drift, _ = _write_weights(job, job.draft / ollama.MODEL, job.dtype, None)
        source = f"./{ollama.MODEL}"
    causal = job.model.causal
    stops = ollama.stops_of(subject, causal.generation_config.eos_token_id)
    num_ctx = ollama.num_ctx_of(subject, int(causal.config.max_position_embeddings))
    text = ollama.modelfile(layout, stops, subject.system_prompt, source, num_ctx)
    (job.draft / "Modelfile").write_text(text, encoding="utf-8")
    return Made(ollama.usage(subject), drift)


def _write_weights(job: Job, folder: Path, dtype: str, to: Literal["int8", "nf4"] | None) -> tuple[Drift, str]:
    """The merged model in `folder`, quantised if `to` says so, read back and compared; and its fingerprint."""
    subject, model = job.subject, job.model
    assert model is not None
    examples = bundled_examples(subject)
    pad_id = subject.tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    say(f"reading {len(examples)} conversations with the adapter")
    reference = states_of(model, examples, pad_id)
    say("merging the adapter")
    if to is None:
        write_merged(model, subject.stage, folder, dtype)
    else:
        with _within(folder) as merged:
            write_merged(model, subject.stage, merged, dtype)
            write_quantised(merged, folder, to, dtype, model.device)
    subject.tokenizer.save_pretrained(folder)
    say("reading them with the package")
    again = _reopened(job, folder, dtype, model.device)
    specs = model.specs[subject.stage]
    drift = drift_of(reference, states_of(again, examples, pad_id), specs, _num_talks(examples))
    settings = ModelSettings(base=str(folder))
    return drift, fingerprint(folder, settings, str(subject.tokenizer.chat_template or ""))["weights"]


def _reopened(job: Job, folder: Path, dtype: str, device: torch.device) -> SupportModel:
    """What was written, loaded as whoever gets the package loads it, with the stage's heads."""
    settings = ModelSettings(base=str(folder), dtype=dtype)  # type: ignore[arg-type]
    again = SupportModel(load_base(folder, settings, device), settings.dtype)
    load_heads(again, job.subject.folder / "heads.safetensors", job.subject.about)
    return again


def _num_talks(examples: list[Example]) -> int:
    return len({example.id for example in examples})


@contextmanager
def _within(folder: Path) -> Iterator[Path]:
    """A folder inside a draft, on the same disk, that is gone afterwards; with the draft where this process is killed."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as name:
        yield Path(name)


def _check_gguf(subject: Subject) -> None:
    refuse_broken_tie(subject)
    gguf.find_converter(os.environ)


def _check_ollama(subject: Subject) -> None:
    refuse_broken_tie(subject)
    ollama.layout_for(subject)
    if ollama.needs_gguf(subject):
        gguf.find_converter(os.environ)


def _check_vllm(subject: Subject) -> None:
    vllm.check_adapter(subject, vllm.adapter_config(subject))


TARGETS: dict[str, Target] = {
    "merged": Target("one plain model in 16 or 32 bits", _merged, True, refuse_broken_tie),
    "int8": Target("the merged model in bitsandbytes' int8", partial(_quantised, "int8"), True, refuse_broken_tie),
    "nf4": Target("the merged model in bitsandbytes' NF4", partial(_quantised, "nf4"), True, refuse_broken_tie),
    "vllm": Target("the adapter, and the command that serves it", _vllm, False, _check_vllm),
    "ollama": Target("the merged model with a Modelfile", _ollama, True, _check_ollama),
    "gguf": Target("the merged model through llama.cpp's converter", _gguf, True, _check_gguf),
    "hub": Target("the adapter with a model card", _hub, False, lambda _: None, takes_dtype=False),
}
