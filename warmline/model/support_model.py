"""The model of every stage: one frozen base, an adapter and heads for each stage, switched and never loaded twice."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from warmline.config.fields import Dtype
from warmline.config.training import LoraSettings
from warmline.data.batches import Batch
from warmline.data.labels import HeadSpec
from warmline.model.heads import build_heads
from warmline.model.load import DTYPES, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Outputs:
    hidden_ND: Tensor  # final hidden states at the positions whose next token is to be learned
    heads: dict[str, Tensor]  # by head: [A, outputs]
    teacher_MD: Tensor | None  # the base's final hidden states at the safety positions


class SupportModel(nn.Module):
    """`base` with adapters and heads named by stage; the stage in use is `self.stage` (`base`: no adapter, no heads)."""

    def __init__(self, base: "PreTrainedModel", dtype: Dtype) -> None:
        super().__init__()
        self.causal: Any = base  # becomes a PeftModel with the first adapter
        self.stage = "base"
        self.dtype = DTYPES[dtype]
        self.specs: dict[str, dict[str, HeadSpec]] = {}
        self.stage_heads = nn.ModuleDict()
        self._decoder: Any = base.base_model  # the layers without lm_head
        self.lm_head: Any = _Unregistered(base.get_output_embeddings())
        self.train(False)

    @property
    def lm_weight_VD(self) -> Tensor:  # noqa: N802
        return self.lm_head.module.weight

    @property
    def device(self) -> torch.device:
        return self.lm_weight_VD.device

    @property
    def hidden_size(self) -> int:
        return self.lm_weight_VD.shape[1]

    def add_stage(self, stage: str, lora: LoraSettings, specs: Mapping[str, HeadSpec], base_name: str) -> None:
        """A fresh trainable adapter and heads for `stage`, and make it the one in use."""
        from peft import LoraConfig, get_peft_model

        config = LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets[0] if lora.targets == ("all-linear",) else list(lora.targets),
            task_type="CAUSAL_LM",
        )
        try:
            if self.specs:
                self.causal.add_adapter(stage, config)
            else:
                self.causal = get_peft_model(self.causal, config, adapter_name=stage)
        except ValueError as error:
            raise ModelError(f"model.lora.targets {list(lora.targets)}: {str(error).splitlines()[0]}") from None
        self.causal.peft_config[stage].base_model_name_or_path = base_name
        self._register(stage, specs)

    def load_stage(self, stage: str, adapter: str, specs: Mapping[str, HeadSpec], heads: Mapping[str, Tensor]) -> None:
        """The adapter folder and head weights of a saved stage, and make it the one in use."""
        from peft import PeftModel

        if self.specs:
            self.causal.load_adapter(adapter, adapter_name=stage)
        else:
            self.causal = PeftModel.from_pretrained(self.causal, adapter, adapter_name=stage)
        self._register(stage, specs)
        self.heads.load_state_dict(dict(heads))

    def load_merged(self, stage: str, specs: Mapping[str, HeadSpec], heads: Mapping[str, Tensor]) -> None:
        """The heads of a stage whose adapter is in the weights already; it is the only stage then."""
        self.specs[stage] = dict(specs)
        self.stage_heads[stage] = build_heads(specs, self.hidden_size).to(self.device)
        self.stage = stage
        self.heads.load_state_dict(dict(heads))
        self.train(False)

    def _register(self, stage: str, specs: Mapping[str, HeadSpec]) -> None:
        # peft wraps a layer instead of changing it; embeddings may be the same matrix as lm_head
        adapted = (module.base_layer for module in self.causal.modules() if hasattr(module, "base_layer"))
        if any(getattr(layer, "weight", None) is self.lm_weight_VD for layer in adapted):
            raise ModelError(
                "model.lora.targets: an adapter on lm_head, or on embeddings that share its weights, "
                "does not go with the chunked loss; leave it out"
            )
        self.specs[stage] = dict(specs)
        self.stage_heads[stage] = build_heads(specs, self.hidden_size).to(self.device)
        self.train(False)  # peft's new modules come in training mode
        self.use(stage)

    def use(self, stage: str) -> None:
        """Switch to a loaded stage, or to `base`."""
        if stage == self.stage:  # peft goes through every layer for each of the calls below
            return
        if self.stage != "base" and not hasattr(self.causal, "peft_config"):
            raise ModelError(f"stage {stage!r} is not loaded: stage {self.stage!r} is merged into these weights")
        if stage == "base":
            self.causal.base_model.disable_adapter_layers()
        elif stage in self.specs:
            self.causal.base_model.enable_adapter_layers()
            self.causal.set_adapter(stage)
        else:
            raise ModelError(f"stage {stage!r} is not loaded (there are: base {' '.join(self.specs)})")
        self.stage = stage

    @property
    def heads(self) -> nn.ModuleDict:
        """The heads of the stage in use."""
        return self.stage_heads[self.stage] if self.stage != "base" else nn.ModuleDict()  # type: ignore[return-value]

    @contextmanager
    def adapter_off(self) -> Iterator[None]:
        """The base, whatever the stage."""
        if self.stage == "base":
            yield
            return
        with self.causal.disable_adapter():
            yield

    def hidden(self, input_ids_BT: Tensor, **options: Any) -> Any:
        """The decoder's output (final hidden states, cache) of the stage in use; `options` go to the decoder."""
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            return self._decoder(input_ids=input_ids_BT, **options)

    def forward(self, batch: Batch) -> Outputs:
        """One pass over the batch, and over its safety rows with the adapter off."""
        states = self.hidden(batch.input_ids_BT, position_ids=batch.position_ids_BT, use_cache=False).last_hidden_state
        flat = states.reshape(-1, states.shape[-1])
        anchors_AD = flat[batch.anchor_index_A].float()
        return Outputs(
            hidden_ND=flat[batch.lm_index_N].to(self.lm_weight_VD.dtype),
            heads={name: head(anchors_AD) for name, head in self.heads.items()},
            teacher_MD=self._teacher(batch) if len(batch.kl_index_M) else None,
        )

    @torch.no_grad()
    def _teacher(self, batch: Batch) -> Tensor:
        with self.adapter_off():
            rows = batch.input_ids_BT[batch.kl_rows_R]
            states = self.hidden(rows, position_ids=batch.position_ids_BT, use_cache=False).last_hidden_state
        return states.reshape(-1, states.shape[-1])[batch.kl_teacher_index_M]

    def checkpoint_activations(self) -> None:
        """Keep only the inputs of each decoder layer, and compute the rest again in the backward pass."""
        self.causal.get_base_model().activation_checkpointing_enable({"use_reentrant": False})

    def train(self, mode: bool = True) -> "SupportModel":
        """Only adapters and heads have a training mode: dropout in the base would make its teacher noisy.

        bitsandbytes' 4-bit layers always stand in it: in eval mode on CPU they repack their weights for a kernel
        without a gradient, for good (bitsandbytes 0.50, nn/modules.py). Layers that checkpoint their activations are
        told the mode without their parts: transformers checkpoints only in training, and a layer as such has no dropout.
        """
        super().train(False)
        for name, module in self.named_modules():
            if type(module).__module__.startswith("bitsandbytes."):  # peft's wrapper is a Linear4bit too
                module.train(True)
            elif "lora_dropout" in name:
                module.train(mode)
            elif getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self


class _Unregistered:
    """Holds a module that belongs to another one, so that it is not registered (and counted) twice."""

    def __init__(self, module: Any) -> None:
        self.module = module


def trainable_groups(model: nn.Module, learning_rate: float, head_learning_rate: float) -> Sequence[dict[str, Any]]:
    """Optimizer groups: heads learn from scratch and want a larger step than the adapter."""
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    adapter = [parameter for name, parameter in named if "stage_heads." not in name]
    heads = [parameter for name, parameter in named if "stage_heads." in name]
    groups = [{"params": adapter, "lr": learning_rate}, {"params": heads, "lr": head_learning_rate}]
    return [group for group in groups if group["params"]]
