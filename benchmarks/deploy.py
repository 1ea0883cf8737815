"""What a small model costs on a CPU in each form it can be deployed in: `python -m benchmarks.deploy`.

A base of Qwen2.5-0.5B's shape with random weights, batch 1, greedy. Every way runs in a process of its own; rounds alternate
between the ways. Printed: tokens per CPU second of prefill and of decoding, each beside float32 of the same round; memory
resident once the model is loaded, and at most; drift of the logits from float32's on the same tokens.
"""

import argparse
import importlib
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.meter import _status, resident_mib
from benchmarks.table import machine, spread
from warmline.config.training import ModelSettings
from warmline.model.device import bfloat16_slowdown
from warmline.model.load import load_base
from warmline.model.support_model import SupportModel

REFERENCE = "float32"
# Final states are scaled so that logits spread as a trained model's do: those of random weights are all but equal.
LOGIT_SCALE = 4.0
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
    "quick": {
        "vocab_size": 2048,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}


class Way(NamedTuple):
    about: str
    load: Callable[[Path], SupportModel]
    package: str | None = None  # that it needs


class Measure(NamedTuple):
    way: str
    prefill: float  # tokens per CPU second
    decode: float  # tokens per CPU second
    resident_mib: float  # that loading added
    peak_mib: float  # at most, over what was there before loading
    kl: float  # nats, mean over positions; 0 for the reference
    top1: float


def plain(dtype: str, quantization: str = "none") -> Callable[[Path], SupportModel]:
    """A way that warmline loads by itself."""

    def load(folder: Path) -> SupportModel:
        settings = ModelSettings(base=str(folder), dtype=dtype, quantization=quantization)  # type: ignore[arg-type]
        return SupportModel(load_base(folder, settings, torch.device("cpu")), settings.dtype)

    return load


def torchao(config: str) -> Callable[[Path], SupportModel]:
    """The float32 model with its decoder's linear layers quantised by torchao."""

    def load(folder: Path) -> SupportModel:
        quantization = importlib.import_module("torchao.quantization")  # not among what is installed for tests
        model = plain("float32")(folder)
        quantization.quantize_(model._decoder, getattr(quantization, config)())
        return model

    return load


def torch_dynamic(folder: Path) -> SupportModel:
    """torch's own dynamic int8: weights by output row, activations by tensor."""
    from torch.ao.quantization import quantize_dynamic

    model = plain("float32")(folder)
    quantize_dynamic(model._decoder, {torch.nn.Linear}, dtype=torch.qint8, inplace=True)
    return model


WAYS: dict[str, Way] = {
    "float32": Way("as trained", plain("float32")),
    "bfloat16": Way("--to merged --dtype bfloat16", plain("bfloat16")),
    "int8, bitsandbytes": Way("--to int8", plain("float32", "int8"), "bitsandbytes"),
    "nf4, bitsandbytes": Way("--to nf4", plain("float32", "nf4"), "bitsandbytes"),
    "int8, torch dynamic": Way("torch.ao's quantize_dynamic, at load", torch_dynamic),
    "int8, torchao dynamic": Way(
        "torchao's Int8DynamicActivationInt8WeightConfig, at load",
        torchao("Int8DynamicActivationInt8WeightConfig"),
        "torchao",
    ),
    "int8, torchao weights": Way("torchao's Int8WeightOnlyConfig, at load", torchao("Int8WeightOnlyConfig"), "torchao"),
}


def build(shape: str, folder: Path) -> None:
    """The base with random weights, the same ones each time."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[shape], tie_word_embeddings=True))
    with torch.no_grad():
        model.model.norm.weight.mul_(LOGIT_SCALE)
    model.save_pretrained(folder)


@torch.inference_mode()
def measure(way: str, folder: Path, prompt: int, new_tokens: int) -> Measure:
    """Load one way in this process and time it; the reference leaves its states in `folder` for the others."""
    from transformers import DynamicCache

    torch.manual_seed(1)
    before = resident_mib()
    model = WAYS[way].load(folder)
    ids_BT = torch.randint(0, len(model.lm_weight_VD), (1, prompt))
    model.hidden(ids_BT[:, :8], use_cache=False)  # a first pass may repack weights
    resident = resident_mib() - before
    cache: Any = DynamicCache(config=model.causal.config)
    started = time.process_time()
    states = model.hidden(ids_BT, past_key_values=cache, use_cache=True).last_hidden_state
    prefill = prompt / (time.process_time() - started)
    token = logits(model, states[:, -1]).argmax(-1)
    started = time.process_time()
    for _ in range(new_tokens):
        state = model.hidden(token[:, None], past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        token = logits(model, state).argmax(-1)
    decode = new_tokens / (time.process_time() - started)
    peak = _status("VmHWM") - before
    kl, top1 = drift(way, folder, logits(model, states[0]))
    return Measure(way, prefill, decode, resident, peak, kl, top1)


def logits(model: SupportModel, states_ND: Tensor) -> Tensor:
    """Float32, as the engine computes them."""
    return (states_ND.to(model.lm_weight_VD.dtype) @ model.lm_weight_VD.T).float()


def drift(way: str, folder: Path, logits_NV: Tensor) -> tuple[float, float]:
    """Mean KL(float32 || this) and the share of positions with the same likeliest token."""
    file = folder / "reference.pt"
    if way == REFERENCE and not file.is_file():
        torch.save(logits_NV, file)
    ours, theirs = torch.load(file).log_softmax(-1), logits_NV.log_softmax(-1)
    kl = (ours.exp() * (ours - theirs)).sum(-1).mean()
    return float(kl.clamp(min=0)), float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())


def table(rounds: Sequence[Sequence[Measure]]) -> str:
    """Markdown; gains are over the float32 of the same round."""
    lines = [
        "| way | decode, tokens per CPU second | over float32 | prefill | over float32 | resident, MiB | of float32 | "
        "at most, MiB | KL, nats | same likeliest token |",
        "|:--|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for way in dict.fromkeys(each.way for of_round in rounds for each in of_round):
        pairs = [(found, by_way(of_round, REFERENCE)) for of_round in rounds if (found := by_way(of_round, way))]
        both = [(one, reference) for one, reference in pairs if reference is not None]
        ones = [one for one, _ in both]
        lines.append(
            f"| {way} | {spread([one.decode for one in ones])} | {spread([a.decode / b.decode for a, b in both])}x | "
            f"{spread([one.prefill for one in ones])} | {spread([a.prefill / b.prefill for a, b in both])}x | "
            f"{median(one.resident_mib for one in ones):,.0f} | "
            f"{median(a.resident_mib / b.resident_mib for a, b in both):.2f} | "
            f"{median(one.peak_mib for one in ones):,.0f} | {ones[0].kl:.1e} | {ones[0].top1:.1%} |"
        )
    return "\n".join(lines)


def by_way(of_round: Sequence[Measure], way: str) -> Measure | None:
    return next((each for each in of_round if each.way == way), None)


def spawn(way: str, folder: Path, options: argparse.Namespace) -> Measure | str:
    """One way in a process of its own; its measure, or why there is none."""
    command = [sys.executable, "-m", "benchmarks.deploy", "--child", way, "--folder", str(folder)]
    command += [
        "--prompt",
        str(options.prompt),
        "--new-tokens",
        str(options.new_tokens),
        "--threads",
        str(options.threads),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    return Measure(**json.loads(done.stdout.splitlines()[-1]))


def available() -> list[str]:
    return [name for name, way in WAYS.items() if way.package is None or importlib.util.find_spec(way.package)]


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--prompt", type=int, default=256, help="tokens")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ways", nargs="*", default=available(), choices=list(WAYS))
    parser.add_argument("--quick", action="store_true", help="a toy's shape: to see that it runs, no figures to quote")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    torch.set_num_threads(options.threads)
    if options.child:
        print(json.dumps(measure(options.child, options.folder, options.prompt, options.new_tokens)._asdict()))
        return
    ways = [REFERENCE, *(way for way in options.ways if way != REFERENCE)]
    rounds: list[list[Measure]] = []
    with tempfile.TemporaryDirectory() as name:
        build("quick" if options.quick else "0.5b", Path(name))
        for number in range(options.rounds):
            rounds.append([])
            for way in list(ways):
                found = spawn(way, Path(name), options)
                if isinstance(found, str):
                    print(f"{way}: left out: {found}", file=sys.stderr)
                    ways.remove(way)
                    continue
                rounds[-1].append(found)
                print(f"round {number + 1}: {way}: {found.decode:.2f} tokens per CPU second", file=sys.stderr)
    print(
        f"{machine(options.threads)}; {options.prompt} tokens read, {options.new_tokens} written, {options.rounds} rounds"
    )
    slowdown = bfloat16_slowdown(torch.device("cpu"))
    print(f"A bfloat16 matrix product takes {slowdown:.1f} times a float32 one here.\n")
    print(table(rounds))
    print("\n" + "\n".join(f"* {way}: {WAYS[way].about}" for way in ways))


if __name__ == "__main__":
    main()
