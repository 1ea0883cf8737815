"""A stage as one artefact: adapter (peft's format), heads, label spaces, and what base it belongs to."""

import hashlib
import json
from collections.abc import Mapping
from copy import copy
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from warmline.data.labels import HeadSpec
from warmline.model.support_model import SupportModel
from warmline.run_dir import sha256, write_atomic, write_json


class CheckpointError(ValueError):
    """A checkpoint is missing, altered, or belongs to something else."""


def checksums(folder: Path, files: list[str]) -> dict[str, str]:
    return {name: sha256(folder / name) for name in files}


def check(folder: Path, sums: Mapping[str, str], recorded_in: str) -> None:
    """Raises CheckpointError naming the first file that is missing or not what was written."""
    for name, expected in sums.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: the checkpoint is not whole")
        if sha256(file) != expected:
            raise CheckpointError(
                f"{file} is truncated or altered: its checksum is not the one that {recorded_in} recorded"
            )


STAGE_FILES = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "heads.safetensors"]


def save_stage(model: SupportModel, folder: Path, *, fingerprint: Mapping[str, str], about: Mapping[str, Any]) -> None:
    """Write the stage in use to `folder`. `stage.json` comes last: with it the stage is whole."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stage.json").unlink(missing_ok=True)
    adapter = {
        name: tensor.contiguous()
        for name, tensor in get_peft_model_state_dict(
            model.causal, adapter_name=model.stage, save_embedding_layers=False
        ).items()
    }

    def write_adapter(draft: Path) -> None:
        draft.mkdir()
        save_file(adapter, draft / "adapter_model.safetensors", metadata={"format": "pt"})
        config = copy(model.causal.peft_config[model.stage])
        config.inference_mode = True
        for name, value in vars(config).items():
            if isinstance(value, set):  # the target modules, in another order in every process
                setattr(config, name, sorted(value))
        config.save_pretrained(draft)

    write_atomic(folder / "adapter", write_adapter)
    write_atomic(folder / "heads.safetensors", lambda draft: save_file(model.heads.state_dict(), draft))
    specs = {name: {"kind": spec.kind, "labels": spec.labels} for name, spec in model.specs[model.stage].items()}
    content = {
        "stage": model.stage,
        **about,
        "fingerprint": dict(fingerprint),
        "heads": specs,
        "files": checksums(folder, STAGE_FILES),
    }
    write_json(folder / "stage.json", content | {"checksum": _digest(content)})


def load_stage(model: SupportModel, folder: Path, fingerprint: Mapping[str, str]) -> None:
    """Load a saved stage into `model`. Raises CheckpointError if it is not whole or not for this base."""
    about = verified(folder, fingerprint)
    try:
        heads = load_file(folder / "heads.safetensors")
        model.load_stage(about["stage"], str(folder / "adapter"), specs_of(about["heads"]), heads)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"{folder}: cannot be loaded: {str(error).splitlines()[0]}") from None


def verified(folder: Path, fingerprint: Mapping[str, str]) -> dict[str, Any]:
    """stage.json of a stage whose files are all as written. Raises CheckpointError if not, or if it is another base's."""
    about = read_stage(folder)
    for part, here in fingerprint.items():
        if about["fingerprint"].get(part) != here:
            raise CheckpointError(f"{folder} was trained on another base: its {part} is not that of the loaded base")
    check(folder, about["files"], "stage.json")
    return about


def specs_of(heads: Mapping[str, Any]) -> dict[str, HeadSpec]:
    """Head kinds and labels as stage.json holds them."""
    return {name: HeadSpec(spec["kind"], tuple(spec["labels"])) for name, spec in heads.items()}


def read_stage(folder: Path) -> dict[str, Any]:
    """stage.json without its checksum. Raises CheckpointError if there is no finished stage in `folder`."""
    file = folder / "stage.json"
    if not file.is_file():
        raise CheckpointError(f"{folder} holds no finished stage: it has no stage.json")
    content = read_json(file)
    if not isinstance(content, dict) or content.pop("checksum", None) != _digest(content):
        raise CheckpointError(f"{file} is truncated or altered: its checksum is not the one recorded when it was saved")
    return content


def read_json(file: Path) -> Any:
    """The value in a file of a checkpoint. Raises CheckpointError if it is not JSON."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:  # not JSON, or not UTF-8
        raise CheckpointError(f"{file} is truncated or altered: {error}") from None


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
