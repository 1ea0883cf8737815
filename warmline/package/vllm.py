"""The adapter as vLLM takes it, and the commands that serve it behind the companion."""

import json
import shlex
from pathlib import Path
from typing import Any

from safetensors import safe_open

from warmline.model.load import architecture
from warmline.package.folder import COMPANION, SETTINGS
from warmline.package.subject import PackageError, Subject

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that --max-lora-rank takes
LLAMA_LIKE = frozenset("q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split())
# The layers that vLLM can adapt, by architecture; None: it serves the model and no adapter of it.
ADAPTED: dict[str, frozenset[str] | None] = {
    "GPT2LMHeadModel": None,
    "LlamaForCausalLM": LLAMA_LIKE,
    "MistralForCausalLM": LLAMA_LIKE,
    "Phi3ForCausalLM": frozenset("qkv_proj o_proj gate_up_proj down_proj".split()),
    "Qwen2ForCausalLM": LLAMA_LIKE,
    "Qwen3ForCausalLM": LLAMA_LIKE,
}
ADAPTER = "adapter"
TEMPLATE = "chat_template.jinja"


def write_vllm(subject: Subject, draft: Path, dtype: str) -> str:
    """Adapter folder and chat template; returns the usage. Raises PackageError for what vLLM would refuse."""
    config = adapter_config(subject)
    rank = check_adapter(subject, config)
    write_adapter(subject, draft / ADAPTER, config)
    (draft / TEMPLATE).write_text(str(subject.tokenizer.chat_template), encoding="utf-8")
    return _usage(subject, rank, dtype)


def adapter_config(subject: Subject) -> dict[str, Any]:
    """peft's, with the base named as others know it."""
    config = json.loads((subject.folder / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    return config | {"base_model_name_or_path": subject.base_name, "inference_mode": True}


def write_adapter(subject: Subject, folder: Path, config: dict[str, Any]) -> None:
    """peft's two files, and nothing else: heads stand elsewhere."""
    folder.mkdir(exist_ok=True)
    weights = (subject.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_adapter(subject: Subject, config: dict[str, Any]) -> int:
    """What --max-lora-rank must say. Raises PackageError for what vLLM would refuse, in its order."""
    found = architecture(subject.base)
    known = ADAPTED.get(found, frozenset())
    if known is None:
        raise PackageError(
            f"vLLM serves {found} but no adapter of it: make a --to merged package and `vllm serve` that"
        )
    for name, wanted in (("modules_to_save", (None, [])), ("bias", ("none",)), ("use_dora", (None, False))):
        if config.get(name) not in wanted:
            raise PackageError(f"vLLM takes no adapter with {name} {config[name]!r}: make a --to merged package")
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    if rank > RANKS[-1]:
        raise PackageError(
            f"vLLM takes adapters up to rank {RANKS[-1]}, this one has {rank}: make a --to merged package"
        )
    modules = adapted_modules(subject)
    if known and (unknown := sorted(modules - known)):
        raise PackageError(
            f"vLLM adapts {', '.join(sorted(known))} of a {found}, and this adapter has {', '.join(unknown)}: "
            "make a --to merged package"
        )
    return min(each for each in RANKS if each >= rank)


def adapted_modules(subject: Subject) -> set[str]:
    """The layers' own names, as `q_proj`. Raises PackageError for weights that are not named as peft names LoRA's."""
    modules = set()
    with safe_open(subject.folder / "adapter" / "adapter_model.safetensors", framework="np") as weights:  # type: ignore[no-untyped-call]
        for name in weights.keys():  # noqa: SIM118 (no mapping)
            path, _, end = name.rpartition(".lora_")
            if not path.startswith("base_model.model.") or end not in {"A.weight", "B.weight"}:
                raise PackageError(f"{subject.folder / 'adapter'}: {name} is no weight of a plain LoRA adapter")
            modules.add(path.rpartition(".")[2])
    return modules


def _usage(subject: Subject, rank: int, dtype: str) -> str:
    model, name = subject.recipe.model, subject.name
    base = '"${BASE:?the folder of the base model}"' if subject.is_local else shlex.quote(subject.base_name)
    options = [
        f"vllm serve {base}",
        *([f"--revision {shlex.quote(model.revision)}"] if model.revision and not subject.is_local else []),
        f"--dtype {dtype}",
        *(["--quantization bitsandbytes"] if model.quantization == "nf4" else []),
        f"--enable-lora --max-lora-rank {rank} --lora-modules {name}=./{ADAPTER}",
        f"--chat-template ./{TEMPLATE}",
        # the base's own sampling settings apply otherwise wherever a client says nothing
        """--override-generation-config '{"repetition_penalty": 1.0, "top_k": -1}'""",
        "--host 127.0.0.1 --port 8001",
    ]
    command = " \\\n    ".join(options)
    gateway = f"warmline serve {name} --engine remote --url http://127.0.0.1:8001 --settings {COMPANION}/{SETTINGS} --port 8000"
    notes = [
        "vLLM speaks to whoever reaches it, without any safety: keep it on 127.0.0.1 and let people talk to the gateway. "
        "Behind a server the heads are not read."
    ]
    if model.quantization == "nf4":
        notes.append(
            "The adapter learned on NF4 weights; vLLM's are NF4 without double quantisation, so replies may differ."
        )
    if model.quantization == "int8":
        notes.append(
            "The adapter learned on int8 weights, which vLLM does not make; it adapts the base's own here. "
            "`--to merged` keeps the weights that it learned on."
        )
    if architecture(subject.base) not in ADAPTED:
        notes.append(f"Which layers of a {architecture(subject.base)} vLLM adapts was not checked.")
    return (
        f"In this folder, the model:\n\n```sh\n{command}\n```\n\nand the companion before it:\n\n```sh\n{gateway}\n```\n\n"
        + "\n\n".join(notes)
    )
