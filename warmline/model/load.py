"""Load a base once: hub id or folder, tokenizer with its template, quantisation, and what identifies it."""

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from warmline.config.training import ModelSettings
from warmline.run_dir import sha256

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SMALL_FILES = ("*.json", "*.model", "*.txt", "*.jinja")  # of a hub repository
TORCH_WEIGHTS = "pytorch_model*.bin"  # where there are no safetensors
SAMPLED_BYTES = 1 << 20  # of each end of a weight file, for its fingerprint


class ModelError(ValueError):
    """A base model cannot be loaded or used as asked."""


def resolve(base: str, revision: str | None = None) -> Path:
    """The local folder of a base: the folder itself, or the hub's snapshot (downloaded if it is not there).

    Raises ModelError if there is neither.
    """
    folder = Path(base).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{folder} holds no model: it has no config.json")
        return folder
    if base.startswith((".", "/", "~")):
        raise ModelError(f"model folder {base} does not exist")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(base, revision=revision, allow_patterns=[*SMALL_FILES, "*.safetensors"]))
        if not _weight_files(folder):  # an older repository, as DialoGPT's
            folder = Path(snapshot_download(base, revision=revision, allow_patterns=[*SMALL_FILES, TORCH_WEIGHTS]))
        return folder
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"base model {base!r} is neither a local folder nor reachable on the hub ({reason}); "
            "state a local folder in model.base, or set HF_TOKEN for a gated one"
        ) from None


def load_tokenizer(folder: Path, chat_template: str | None = None) -> "PreTrainedTokenizerBase":
    """The base's own tokenizer, with the recipe's template in place of its own if there is one."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}: no usable tokenizer: {str(error).strip().splitlines()[0]}") from None
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_base(folder: Path, settings: ModelSettings, device: torch.device) -> "PreTrainedModel":
    """The causal language model, frozen, quantised as `settings` say, in eval mode on `device`."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": DTYPES[settings.dtype], "attn_implementation": "sdpa"}
    if settings.quantization != "none":
        options |= {"quantization_config": _quantization(settings), "device_map": {"": device}}
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot load the model: {str(error).strip().splitlines()[0]}") from None
    _check_head(model, folder)
    model.requires_grad_(False)
    model.eval()
    if settings.quantization == "none":
        nn.Module.to(model, device)
    return model


def check_positions(folder: Path, max_seq_len: int) -> None:
    """Raises ModelError if examples may be longer than the model reads."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    positions = config.get("max_position_embeddings", config.get("n_positions"))
    if positions is not None and max_seq_len > positions:
        raise ModelError(f"model.max_seq_len {max_seq_len} is more than the {positions} positions of {folder}")


def _quantization(settings: ModelSettings) -> "BitsAndBytesConfig":
    """How bitsandbytes is to store the linear layers. Raises ModelError where it cannot work."""
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes.functional  # noqa: F401
    except (ImportError, OSError, RuntimeError) as error:  # not installed, or no library for this machine
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.quantization {settings.quantization} needs bitsandbytes, which does not work here ({reason}); "
            "install it, or set model.quantization to none"
        ) from None
    if settings.quantization == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[settings.dtype],
    )


def _check_head(model: "PreTrainedModel", folder: Path) -> None:
    """The chunked loss multiplies final hidden states by the output matrix, and that must be all there is to logits."""
    head = model.get_output_embeddings()
    extra = [
        name
        for name in ("final_logit_softcapping", "logit_scale", "logits_scaling")
        if getattr(model.config, name, None)
    ]
    if getattr(head, "bias", None) is not None:
        extra.append("lm_head.bias")
    if extra:
        raise ModelError(f"{folder}: its logits are more than hidden states times lm_head ({', '.join(extra)})")


def fingerprint(folder: Path, settings: ModelSettings, template: str) -> dict[str, str]:
    """What a checkpoint must agree with: weights, tokenizer, template, quantisation.

    Weights are identified by every file's size, header and both ends, so that 15 GB take no minute to read.
    """
    weights = hashlib.sha256()
    files = _weight_files(folder)
    if not files:
        raise ModelError(f"{folder} holds no weights: neither .safetensors nor {TORCH_WEIGHTS}")
    for file in files:
        size = file.stat().st_size
        weights.update(f"{file.name} {size}".encode())
        with file.open("rb") as handle:
            weights.update(handle.read(SAMPLED_BYTES))
            handle.seek(max(0, size - SAMPLED_BYTES))
            weights.update(handle.read())
    tokenizer_file = folder / "tokenizer.json"
    return {
        "weights": weights.hexdigest(),
        "tokenizer": sha256(tokenizer_file) if tokenizer_file.is_file() else "none",
        "template": hashlib.sha256(template.encode()).hexdigest(),
        "quantization": settings.quantization,
    }


def _weight_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors")) or sorted(folder.glob(TORCH_WEIGHTS))


def architecture(folder: Path) -> str:
    """The model class that a folder's config names, as `Qwen2ForCausalLM`."""
    return json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures", ["unknown"])[0]
