"""Examples to tensors: length-sorted micro-batches under a token budget, positions gathered, targets by head.

Rows are padded on the right and attention is causal, so no real token can see padding: no mask is needed.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from warmline.config.fields import HeadKind
from warmline.data.labels import IGNORE, RISKS, HeadSpec
from warmline.data.tokenize import Anchor, Example


@dataclass(frozen=True)
class Batch:
    """One forward pass. Indices count through the flattened [B * T] positions."""

    input_ids_BT: Tensor
    position_ids_BT: Tensor | None  # only where rows are packed into one
    lm_index_N: Tensor  # the positions whose next token is to be learned
    lm_labels_N: Tensor
    kl_rows_R: Tensor  # the rows that the teacher reads
    kl_index_M: Tensor  # into the N positions: those of safety replies
    kl_teacher_index_M: Tensor  # the same positions in the flattened [R * T] of the teacher's rows
    anchor_index_A: Tensor
    targets: dict[str, Tensor]  # by head: [A] label ids, [A, C] multi-hot or [A, 2] values
    counts: dict[str, int]  # by term: what its total is divided by
    num_tokens: int  # without padding
    examples: tuple[Example, ...]  # in row order

    def to(self, device: torch.device) -> "Batch":
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved, targets={name: target.to(device) for name, target in self.targets.items()})


CHEAP_PADDING = 32  # tokens of padding a row that cost less than another forward pass


def micro_batches(examples: Sequence[Example], budget: int) -> list[list[Example]]:
    """Groups of similar length whose padded size stays within `budget` tokens; a longer row stands alone.

    A row joins where at most a fifth of it, or CHEAP_PADDING tokens, would be padding.
    """
    groups: list[list[Example]] = []
    for example in sorted(examples, key=len, reverse=True):
        longest = len(groups[-1][0]) if groups else 0
        padding = longest - len(example)
        if groups and (len(groups[-1]) + 1) * longest <= budget and padding <= max(CHEAP_PADDING, longest // 5):
            groups[-1].append(example)
        else:
            groups.append([example])
    return groups


def collate(
    examples: Sequence[Example],
    heads: Mapping[str, HeadSpec],
    *,
    pad_id: int,
    min_kl_risk: str | None = None,
    ordinary_kl_share: float = 0.0,
    packing: bool = False,
) -> Batch:
    """Stack `examples` into one Batch.

    `min_kl_risk`: replies to a turn at this risk or above are held near the base; None: no reply is.
    `ordinary_kl_share`: of all conversations, drawn by their ids, whose every reply is held near it too.
    `packing`: all rows in one sequence whose position ids start again at each example, instead of padding.
    """
    width = sum(map(len, examples)) if packing else max(map(len, examples))
    input_ids = torch.full((1 if packing else len(examples), width), pad_id, dtype=torch.long)
    flat = input_ids.view(-1)
    offsets = [sum(map(len, examples[:row])) if packing else row * width for row in range(len(examples))]
    lm_index, lm_labels, kl_index, kl_rows = [], [], [], []
    anchors: list[Anchor] = []
    anchor_index = []
    for row, (offset, example) in enumerate(zip(offsets, examples, strict=True)):
        flat[offset : offset + len(example)] = torch.from_numpy(example.input_ids)
        labels = torch.from_numpy(example.labels)
        learned = (labels != IGNORE).nonzero().squeeze(1)
        before = sum(map(len, lm_index))
        lm_index.append(learned - 1 + offset)
        lm_labels.append(labels[learned])
        if min_kl_risk is not None and (held := _held_positions(example, min_kl_risk, ordinary_kl_share)):
            wanted = torch.isin(learned - 1, torch.tensor(held))
            kl_index.append(wanted.nonzero().squeeze(1) + before)
            kl_rows.append(row)
        anchor_index += [anchor.position + offset for anchor in example.anchors]
        anchors += example.anchors
    rows = torch.tensor([0] if packing and kl_rows else kl_rows, dtype=torch.long)
    lm_index_N, kl_index_M = _join(lm_index), _join(kl_index)
    row_of_M = lm_index_N[kl_index_M] // width
    targets = {name: _targets(anchors, name, spec) for name, spec in heads.items()}
    counts = {"lm": len(lm_index_N), "safety_kl": len(kl_index_M)}
    counts |= {name: _num_labelled(targets[name], spec.kind) for name, spec in heads.items()}
    return Batch(
        input_ids_BT=input_ids,
        position_ids_BT=torch.cat([torch.arange(len(example)) for example in examples])[None] if packing else None,
        lm_index_N=lm_index_N,
        lm_labels_N=_join(lm_labels),
        kl_rows_R=rows,
        kl_index_M=kl_index_M,
        kl_teacher_index_M=torch.searchsorted(rows, row_of_M) * width + lm_index_N[kl_index_M] % width,
        anchor_index_A=torch.tensor(anchor_index, dtype=torch.long),
        targets=targets,
        counts=counts,
        num_tokens=sum(map(len, examples)),
        examples=tuple(examples),
    )


def _join(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat([torch.empty(0, dtype=torch.long), *parts])


def _held_positions(example: Example, min_risk: str, ordinary_share: float) -> list[int]:
    """Positions whose next token belongs to a reply that is to stay near the base."""
    ordinary = zlib.crc32(example.id.encode()) < ordinary_share * 2**32
    return [
        position
        for anchor in example.anchors
        if ordinary or (anchor.risk is not None and RISKS.index(anchor.risk) >= RISKS.index(min_risk))
        for position in range(anchor.position, anchor.position + anchor.num_answer_tokens)
    ]


def _targets(anchors: Sequence[Anchor], head: str, spec: HeadSpec) -> Tensor:
    if spec.kind == "regression":
        return torch.tensor([anchor.affect or (float("nan"),) * 2 for anchor in anchors]).reshape(-1, 2)
    known = {label: index for index, label in enumerate(spec.labels)}
    labels = [anchor.emotions if head == "emotion" else _single(getattr(anchor, head)) for anchor in anchors]
    ids = [[known[label] for label in of_anchor if label in known] for of_anchor in labels]
    if spec.kind == "sigmoid":
        return torch.tensor(
            [[int(index in row) for index in range(len(known))] if row else [IGNORE] * len(known) for row in ids],
            dtype=torch.long,
        ).reshape(-1, len(known))
    # A softmax head learns from rows with one label only: several would contradict each other.
    single = [row[0] if len(row) == len(of_anchor) == 1 else IGNORE for row, of_anchor in zip(ids, labels, strict=True)]
    return torch.tensor(single, dtype=torch.long)


def _single(label: str | None) -> tuple[str, ...]:
    return () if label is None else (label,)


def _num_labelled(target: Tensor, kind: HeadKind) -> int:
    if kind == "regression":
        return int((~target.isnan().any(dim=1)).sum())
    return int((target != IGNORE).all(dim=1).sum() if kind == "sigmoid" else (target != IGNORE).sum())
