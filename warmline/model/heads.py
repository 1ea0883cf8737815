"""What is read off the last prompt token: one linear head for each kind of label, in float32."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from warmline.data.labels import HeadSpec


def build_heads(specs: Mapping[str, HeadSpec], hidden_size: int) -> nn.ModuleDict:
    """Linear heads by name. Their outputs start at zero: no head has an opinion before it has learned."""
    heads = nn.ModuleDict()
    for name, spec in specs.items():
        head = nn.Linear(hidden_size, spec.num_outputs)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        heads[name] = head
    return heads


def values(spec: HeadSpec, outputs_AK: Tensor) -> Tensor:
    """A probability for each label; for regression the values, held within [-1, 1]. Shape [A, len(spec.labels)]."""
    outputs = outputs_AK.float()
    match spec.kind:
        case "softmax":
            return outputs.softmax(dim=-1)
        case "sigmoid":
            return outputs.sigmoid()
        case "regression":
            return outputs.clamp(-1, 1)
        case "ordinal":  # P(level > k) made to fall with k, and differenced
            above = outputs.sigmoid().cummin(dim=-1).values
            edge = torch.ones_like(above[:, :1])
            return torch.cat([edge, above], dim=1) - torch.cat([above, torch.zeros_like(edge)], dim=1)
