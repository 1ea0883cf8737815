"""The adapter added to its base's weights, in 16 or 32 bits: quantised weights are dequantised first, exactly."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from warmline.model.load import DTYPES
from warmline.model.support_model import SupportModel
from warmline.package.subject import PackageError, Subject

EMBEDDINGS = ("embed", "wte", "lm_head")  # in the names of matrices that hold a row for each token


def refuse_broken_tie(subject: Subject) -> None:
    """Raises PackageError where input and output embeddings are one matrix and the adapter means to change one of them.

    Read from files: before any weight is loaded.
    """
    adapter = json.loads((subject.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    config = json.loads((subject.base / "config.json").read_text(encoding="utf-8"))
    tied = config.get("tie_word_embeddings", True)  # transformers' default
    changed = [
        str(name)
        for name in (*(adapter.get("modules_to_save") or ()), *_leaves(adapter.get("target_modules")))
        if any(part in str(name) for part in EMBEDDINGS)
    ]
    if adapter.get("trainable_token_indices"):
        changed.append("trainable_token_indices")
    if tied and changed:
        raise PackageError(
            f"{subject.folder}: the adapter changes {', '.join(changed)}, and this base's embeddings and lm_head are one "
            "matrix: merging would change both or break them apart; package it with --to vllm or hub, unmerged"
        )
    rows = config.get("vocab_size")
    if rows is not None and len(subject.tokenizer) > rows:
        raise PackageError(
            f"{subject.base}: its tokenizer has {len(subject.tokenizer)} tokens and its embeddings "
            f"{rows} rows{', which lm_head shares' if tied else ''}: the added tokens have no weights to merge; use plain "
            "text in their place (data.style_share does)"
        )


def write_merged(model: SupportModel, stage: str, folder: Path, dtype: str) -> None:
    """The stage's adapter in the weights of a plain model of the same architecture, in `folder`."""
    from transformers import AutoModelForCausalLM

    base: Any = model.causal.get_base_model()
    config = copy.deepcopy(base.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.device("meta"):  # names and ties only; the weights are those below
        plain = AutoModelForCausalLM.from_config(config, dtype=DTYPES[dtype])
    plain.generation_config = base.generation_config
    state = dict(merged_weights(base, stage, DTYPES[dtype]))
    if missing := plain.state_dict().keys() ^ state.keys():
        raise PackageError(
            f"the merged weights are not those of a {type(plain).__name__}: {', '.join(sorted(missing)[:3])}"
        )
    plain.save_pretrained(folder, state_dict=state)


@torch.no_grad()
def merged_weights(base: nn.Module, stage: str, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Names of the plain architecture with their weights on the CPU; tied names give one tensor.

    The sum is taken in float32 and rounded once. Raises PackageError for an adapter that is more than LoRA.
    """
    made: dict[int, Tensor] = {}
    wrapped: list[str] = []
    for name, module in base.named_modules():
        if any(name.startswith(f"{outer}.") for outer in wrapped):
            continue
        is_adapted = hasattr(module, "base_layer")
        if is_adapted:
            wrapped.append(name)
        layer: Any = module.base_layer if is_adapted else module
        for key, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in made:
                weight = _full(layer, parameter)
                if is_adapted and key == "weight":
                    weight = weight.float() + _delta(module, stage, name)
                made[id(parameter)] = weight.detach().to("cpu", dtype).contiguous()
            yield f"{name}.{key}".removeprefix("."), made[id(parameter)]
        for key, buffer in layer.named_buffers(recurse=False):
            if key not in layer._non_persistent_buffers_set:
                yield f"{name}.{key}", buffer.detach().cpu()


def _full(layer: nn.Module, parameter: nn.Parameter) -> Tensor:
    """A parameter without its quantisation."""
    if not type(parameter).__module__.startswith("bitsandbytes."):
        return parameter
    from peft.utils.integrations import dequantize_bnb_weight

    return dequantize_bnb_weight(parameter, state=getattr(layer, "state", None))


def _delta(module: Any, stage: str, name: str) -> Tensor:
    """What the adapter adds to a weight; nothing where another stage's adapter alone has this layer."""
    if stage in getattr(module, "lora_A", {}):
        return module.get_delta_weight(stage).float()
    if hasattr(module, "lora_A"):
        return torch.zeros(())
    raise PackageError(f"{name}: it has an adapter of another kind than LoRA, which cannot be merged here")


def _leaves(targets: Any) -> list[str]:
    return [targets] if isinstance(targets, str) else list(targets or ())
