"""All the loss mathematics on one page: pure functions that return a sum and what it is divided by.

Axes: N supervised positions, M of them with a safety target, A labelled anchors, C classes, D hidden width,
V vocabulary. The loop divides every total by the count of the whole optimizer step, over micro-batches and processes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from warmline.data.labels import IGNORE


@dataclass(frozen=True)
class Term:
    total: Tensor  # scalar, nats; attached to the graph even when count is 0
    count: Tensor  # scalar int64: what total is divided by, over the whole step


def _wide(values: Tensor) -> Tensor:
    """In at least float32: sums of 16-bit losses lose what they add."""
    return values if values.dtype == torch.float64 else values.float()


def lm(logits_NV: Tensor, labels_N: Tensor) -> Term:
    """Next-token cross-entropy; positions labelled IGNORE count for nothing."""
    total = F.cross_entropy(_wide(logits_NV), labels_N, ignore_index=IGNORE, reduction="sum")
    return Term(total, (labels_N != IGNORE).sum())


def safety_kl(student_MV: Tensor, teacher_MV: Tensor, tau: float) -> Term:
    """KL(softmax(z_T / tau) || softmax(z_S / tau)) tau^2, summed over positions (Hinton et al. 2015 for tau^2)."""
    student = F.log_softmax(_wide(student_MV) / tau, dim=-1)
    teacher = F.log_softmax(_wide(teacher_MV) / tau, dim=-1)
    total = F.kl_div(student, teacher, reduction="sum", log_target=True) * tau**2
    return Term(total, torch.tensor(len(student_MV), device=student_MV.device))


def chunked_lm_and_kl(
    hidden_ND: Tensor,
    labels_N: Tensor,
    weight_VD: Tensor,
    teacher_MD: Tensor | None = None,
    kl_index_M: Tensor | None = None,
    *,
    tau: float = 1.0,
    chunk: int = 1024,
) -> tuple[Term, Term]:
    """`lm` and `safety_kl` from hidden states and a frozen output matrix, `chunk` positions at a time.

    The gradient by the hidden states is computed in the same pass, so no logits outlive their chunk: measured at a
    vocabulary of 151,936, half the time and a tenth of the memory of full logits. `teacher_MD` are the teacher's final
    hidden states for the rows `kl_index_M` of `hidden_ND`.
    Raises ValueError if the output matrix is trained: its gradient is not computed here.
    """
    if weight_VD.requires_grad:
        raise ValueError("the chunked loss needs a frozen lm_head without an adapter")
    if kl_index_M is None or teacher_MD is None:
        kl_index_M = labels_N.new_empty(0)
        teacher_MD = hidden_ND.new_empty(0, hidden_ND.shape[1])
    lm_total, kl_total = _ChunkedLmAndKl.apply(hidden_ND, labels_N, weight_VD, teacher_MD, kl_index_M, tau, chunk)  # type: ignore[misc]
    num_kl = torch.tensor(len(kl_index_M), device=hidden_ND.device)
    return Term(lm_total, (labels_N != IGNORE).sum()), Term(kl_total, num_kl)


class _ChunkedLmAndKl(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        hidden_ND, labels_N, weight_VD, teacher_MD, kl_index_M, tau, chunk = inputs
        lm_grad_ND = torch.zeros_like(hidden_ND)
        kl_grad_ND = torch.zeros_like(hidden_ND) if len(kl_index_M) else None
        lm_total, kl_total = _wide(hidden_ND.new_zeros(())), _wide(hidden_ND.new_zeros(()))
        for start in range(0, len(hidden_ND), chunk):
            rows = slice(start, start + chunk)
            logits = _wide(hidden_ND[rows] @ weight_VD.T)
            total, grad = _lm_and_gradient(logits, labels_N[rows])
            lm_total += total
            lm_grad_ND[rows] = grad.to(weight_VD.dtype) @ weight_VD
            if kl_grad_ND is None:
                continue
            mine = ((kl_index_M >= start) & (kl_index_M < start + chunk)).nonzero().squeeze(1)
            if len(mine):
                at = kl_index_M[mine]
                teacher = _wide(teacher_MD[mine].to(weight_VD.dtype) @ weight_VD.T)
                total, grad = _kl_and_gradient(logits[at - start], teacher, tau)
                kl_total += total
                kl_grad_ND[at] = grad.to(weight_VD.dtype) @ weight_VD
        ctx.has_kl = kl_grad_ND is not None
        ctx.save_for_backward(*(grad for grad in (lm_grad_ND, kl_grad_ND) if grad is not None))
        return lm_total, kl_total

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        lm_outer, kl_outer = outer
        gradients = ctx.saved_tensors
        grad_ND = gradients[0] * lm_outer.to(gradients[0].dtype)
        if ctx.has_kl:
            grad_ND = grad_ND + gradients[1] * kl_outer.to(gradients[1].dtype)
        return (grad_ND, None, None, None, None, None, None)


def _lm_and_gradient(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """d CE / d z = softmax(z) - onehot(label), and 0 where the label is IGNORE."""
    supervised = labels_N != IGNORE
    labels = labels_N.masked_fill(~supervised, 0)[:, None]
    log_probs = F.log_softmax(logits_NV, dim=-1)
    total = -(log_probs.gather(1, labels).squeeze(1) * supervised).sum()
    grad = log_probs.exp_()
    grad.scatter_add_(1, labels, torch.full_like(labels, -1, dtype=grad.dtype))
    return total, grad * supervised[:, None]


def _kl_and_gradient(student_MV: Tensor, teacher_MV: Tensor, tau: float) -> tuple[Tensor, Tensor]:
    """d [tau^2 KL(p_T || p_S)] / d z_S = tau (p_S - p_T), both at temperature tau."""
    student = F.log_softmax(student_MV / tau, dim=-1)
    teacher = F.log_softmax(teacher_MV / tau, dim=-1)
    total = (teacher.exp() * (teacher - student)).sum() * tau**2
    return total, (student.exp() - teacher.exp()) * tau


def classification(logits_AC: Tensor, labels_A: Tensor) -> Term:
    """Cross-entropy over one label per anchor."""
    return lm(logits_AC, labels_A)


def multi_label(logits_AC: Tensor, targets_AC: Tensor) -> Term:
    """Sigmoid cross-entropy, the mean over labels of each anchor; rows of IGNORE are unlabelled."""
    labelled = (targets_AC != IGNORE).all(dim=1)
    logits = _wide(logits_AC)
    targets = targets_AC.masked_fill(~labelled[:, None], 0).to(logits.dtype)
    per_anchor = F.binary_cross_entropy_with_logits(logits, targets, reduction="none").mean(dim=1)
    return Term((per_anchor * labelled).sum(), labelled.sum())


MISS_WEIGHT = 4.0  # a risk read too low costs this many times a risk read too high


def ordinal(logits_AK: Tensor, levels_A: Tensor) -> Term:
    """Cumulative logits of K = levels - 1 thresholds, P(level > k) (Frank and Hall 2001); misses weigh more."""
    labelled = levels_A != IGNORE
    thresholds = torch.arange(logits_AK.shape[1], device=logits_AK.device)
    logits = _wide(logits_AK)
    above_AK = (levels_A[:, None] > thresholds).to(logits.dtype)
    weight = above_AK.new_tensor(MISS_WEIGHT)
    losses = F.binary_cross_entropy_with_logits(logits, above_AK, reduction="none", pos_weight=weight)
    return Term((losses.sum(dim=1) * labelled).sum(), labelled.sum())


def regression(values_AR: Tensor, targets_AR: Tensor) -> Term:
    """Squared error, summed over the targets of an anchor; rows with NaN are unlabelled."""
    labelled = ~targets_AR.isnan().any(dim=1)
    errors = (_wide(values_AR) - targets_AR.nan_to_num()) ** 2
    return Term((errors.sum(dim=1) * labelled).sum(), labelled.sum())


HEAD_OBJECTIVES = {
    "softmax": classification,
    "sigmoid": multi_label,
    "ordinal": ordinal,
    "regression": regression,
}


def combine(totals: Mapping[str, Tensor], weights: Mapping[str, float], counts: Mapping[str, int]) -> Tensor:
    """Sum of weight * total / count over the terms; `counts` are those of the whole step. A count of 0 adds nothing."""
    parts = [totals[name] * (weights[name] / max(counts[name], 1)) for name in totals]
    return torch.stack([_wide(part) for part in parts]).sum()
