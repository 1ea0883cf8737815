"""Every objective: hand-worked values, nothing labelled, parity with the field's formula, and its gradient."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.loss.loss_utils import ForCausalLMLoss

from warmline.data.labels import IGNORE
from warmline.objectives import (
    HEAD_OBJECTIVES,
    MISS_WEIGHT,
    Term,
    chunked_lm_and_kl,
    classification,
    combine,
    lm,
    multi_label,
    ordinal,
    regression,
    safety_kl,
)

LN2, LN3 = math.log(2), math.log(3)
NAN = float("nan")


def random(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    """A leaf of float64 noise."""
    noise = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise * scale).requires_grad_()


def gradients(total: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(total, leaves, retain_graph=True)


@pytest.mark.parametrize(
    ("objective", "logits", "targets", "total", "count"),
    [
        # softmax of (0, ln 3) is (1/4, 3/4): label 1 costs ln 4/3, label 0 costs ln 4
        pytest.param(lm, [[0.0, LN3], [0.0, LN3]], [1, 0], math.log(4 / 3) + math.log(4), 2, id="lm"),
        pytest.param(lm, [[0.0, LN3], [9.0, -9.0]], [1, IGNORE], math.log(4 / 3), 1, id="lm, one ignored"),
        pytest.param(classification, [[0.0, 0.0, 0.0]], [2], LN3, 1, id="classification"),
        # sigmoid of ln 3 is 3/4: wanted costs ln 4/3, unwanted ln 4; the mean over the three labels
        pytest.param(
            multi_label,
            [[LN3, LN3, 0.0], [5.0, 5.0, 5.0]],
            [[1, 0, 1], [IGNORE] * 3],
            (math.log(4 / 3) + math.log(4) + LN2) / 3,
            1,
            id="multi_label",
        ),
        # level 1 of 4: above threshold 0 (a miss, weight 4), not above 1 and 2
        pytest.param(
            ordinal,
            [[-LN3, LN3, 0.0], [7.0, 7.0, 7.0]],
            [1, IGNORE],
            4 * math.log(4) + math.log(4) + LN2,
            1,
            id="ordinal",
        ),
        pytest.param(regression, [[0.5, -1.0], [3.0, 3.0]], [[0.0, 1.0], [NAN, 0.0]], 0.25 + 4.0, 1, id="regression"),
    ],
)
def test_hand_worked_values(
    objective: Callable[[Tensor, Tensor], Term], logits: object, targets: object, total: float, count: int
) -> None:
    term = objective(torch.tensor(logits), torch.tensor(targets))
    assert term.total.item() == pytest.approx(total, rel=1e-6)
    assert (term.count.item(), term.count.dtype, term.total.shape) == (count, torch.int64, ())


def test_safety_kl_by_hand_and_scaled_by_tau_squared() -> None:
    # teacher (1/2, 1/2), student (1/4, 3/4): KL = 1/2 ln 2 + 1/2 ln 2/3
    expected = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    teacher, student = torch.zeros(1, 2), torch.tensor([[0.0, LN3]])
    assert safety_kl(student, teacher, tau=1.0).total.item() == pytest.approx(expected, rel=1e-6)
    assert safety_kl(student * 2, teacher, tau=2.0).total.item() == pytest.approx(4 * expected, rel=1e-6)
    assert safety_kl(student, teacher, tau=1.0).count.item() == 1


@pytest.mark.parametrize("tau", [0.5, 1.0, 3.0])
def test_safety_kl_is_zero_for_equal_logits_and_positive_otherwise(tau: float) -> None:
    one, other = random(20, 7, seed=1), random(20, 7, seed=2)
    equal = safety_kl(one, one.detach() + 5.0, tau)  # logits are free up to a constant
    assert equal.total.item() == pytest.approx(0, abs=1e-12)
    assert gradients(equal.total, one)[0].abs().max() < 1e-12
    each = [safety_kl(one[row : row + 1], other[row : row + 1], tau).total.item() for row in range(20)]
    assert min(each) > 0
    assert safety_kl(one, other, tau).total.item() == pytest.approx(sum(each))


def test_safety_kl_points_from_teacher_to_student() -> None:
    student, teacher = random(3, 5, seed=3), random(3, 5, seed=4)
    p_teacher = (teacher / 2).softmax(-1)
    expected = (p_teacher * (p_teacher.log() - (student / 2).log_softmax(-1))).sum() * 4
    assert safety_kl(student, teacher, 2.0).total.item() == pytest.approx(expected.item(), rel=1e-12)
    reverse = safety_kl(teacher, student, 2.0).total.item()
    assert abs(reverse - expected.item()) > 1e-3


UNLABELLED = {
    "softmax": (4, lambda rows: torch.full((rows,), IGNORE)),
    "sigmoid": (4, lambda rows: torch.full((rows, 4), IGNORE)),
    "ordinal": (3, lambda rows: torch.full((rows,), IGNORE)),
    "regression": (2, lambda rows: torch.full((rows, 2), NAN)),
}


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("kind", HEAD_OBJECTIVES)
def test_a_batch_without_labels_costs_zero_with_gradient_zero(kind: str, rows: int) -> None:
    width, targets = UNLABELLED[kind]
    logits = random(rows, width)
    term = HEAD_OBJECTIVES[kind](logits, targets(rows))
    assert (term.total.item(), term.count.item()) == (0, 0)
    assert torch.equal(gradients(term.total, logits)[0], torch.zeros_like(logits))


@pytest.mark.parametrize("rows", [0, 3])
def test_no_learned_token_and_no_safety_reply_cost_zero_with_gradient_zero(rows: int) -> None:
    hidden, weight = random(rows, 4), random(9, 4, seed=1).detach()
    for term in chunked_lm_and_kl(hidden, torch.full((rows,), IGNORE), weight, chunk=2):
        assert (term.total.item(), term.count.item()) == (0, 0)
        assert torch.equal(gradients(term.total, hidden)[0], torch.zeros_like(hidden))
    student = random(0, 9)
    kl = safety_kl(student, random(0, 9), 2.0)
    assert (kl.total.item(), kl.count.item()) == (0, 0)
    assert gradients(kl.total, student)[0].shape == (0, 9)


@pytest.mark.parametrize("kind", HEAD_OBJECTIVES)
def test_head_objectives_pass_gradcheck(kind: str) -> None:
    width = UNLABELLED[kind][0]
    targets = {
        "softmax": torch.tensor([0, IGNORE, 3]),
        "sigmoid": torch.tensor([[1, 0, 1, 0], [IGNORE] * 4, [0, 0, 0, 1]]),
        "ordinal": torch.tensor([0, IGNORE, 3]),
        "regression": torch.tensor([[0.5, -1.0], [NAN, 0.0], [1.0, 1.0]], dtype=torch.float64),
    }[kind]
    logits = random(3, width)
    assert torch.autograd.gradcheck(lambda values: HEAD_OBJECTIVES[kind](values, targets).total, logits)
    grad = gradients(HEAD_OBJECTIVES[kind](logits, targets).total, logits)[0]
    assert torch.equal(grad[1], torch.zeros(width, dtype=torch.float64))  # the unlabelled row
    assert grad[[0, 2]].abs().min() > 0


def test_unlabelled_rows_change_nothing() -> None:
    for kind, (width, unlabelled) in UNLABELLED.items():
        targets = {"sigmoid": torch.tensor([[0, 1, 1, 0]]), "regression": torch.tensor([[0.2, 0.4]])}.get(
            kind, torch.tensor([2])
        )
        logits = random(1, width)
        alone = HEAD_OBJECTIVES[kind](logits, targets)
        among = HEAD_OBJECTIVES[kind](
            torch.cat([random(2, width, seed=8), logits]), torch.cat([unlabelled(2), targets])
        )
        assert among.total.item() == pytest.approx(alone.total.item(), rel=1e-12)
        assert among.count.item() == alone.count.item() == 1


def test_a_missed_risk_weighs_four_false_alarms() -> None:
    undecided = torch.zeros(1, 3)
    missed = ordinal(undecided, torch.tensor([3])).total.item()
    false_alarm = ordinal(undecided, torch.tensor([0])).total.item()
    assert MISS_WEIGHT == 4
    assert (missed, false_alarm) == pytest.approx((4 * 3 * LN2, 3 * LN2))


def test_lm_is_the_loss_of_transformers() -> None:
    logits_BTV, labels_BT = random(2, 9, 30), torch.randint(0, 30, (2, 9), generator=torch.Generator().manual_seed(1))
    labels_BT[:, :4] = IGNORE
    reference = ForCausalLMLoss(logits_BTV, labels_BT, vocab_size=30, num_items_in_batch=torch.tensor(1))
    learned = labels_BT[:, 1:] != IGNORE
    term = lm(logits_BTV[:, :-1][learned], labels_BT[:, 1:][learned])
    assert term.count.item() == 10
    assert term.total.item() == pytest.approx(reference.item(), rel=1e-6)  # transformers computes it in float32


@pytest.mark.parametrize("chunk", [1, 3, 4, 11, 1024])
@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_chunked_loss_equals_full_logits_in_value_and_gradient(chunk: int, tau: float) -> None:
    hidden, weight = random(11, 6), random(23, 6, seed=1).detach()
    labels = torch.tensor([3, 22, IGNORE, 0, 7, 7, 1, IGNORE, 5, 19, 11])
    teacher, kl_index = random(4, 6, seed=2).detach(), torch.tensor([1, 4, 5, 10])
    full = hidden @ weight.T
    expected = lm(full, labels), safety_kl(full[kl_index], teacher @ weight.T, tau)
    found = chunked_lm_and_kl(hidden, labels, weight, teacher, kl_index, tau=tau, chunk=chunk)
    assert [term.count.item() for term in found] == [term.count.item() for term in expected] == [9, 4]
    for one, other in zip(found, expected, strict=True):
        assert one.total.dtype == torch.float64
        assert one.total.item() == pytest.approx(other.total.item(), rel=1e-12)
    for weights in ((1.0, 0.0), (0.0, 1.0), (0.3, -1.7)):  # each gradient alone, then mixed
        ours, theirs = (
            gradients(weights[0] * terms[0].total + weights[1] * terms[1].total, hidden)[0]
            for terms in (found, expected)
        )
        assert theirs.abs().max() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-12)


def test_chunked_loss_without_safety_replies_is_lm_alone() -> None:
    hidden, weight, labels = random(5, 6), random(23, 6, seed=1).detach(), torch.tensor([3, 22, 9, 0, 7])
    found, kl = chunked_lm_and_kl(hidden, labels, weight, chunk=2)
    expected = lm(hidden @ weight.T, labels)
    assert found.total.item() == pytest.approx(expected.total.item(), rel=1e-12)
    torch.testing.assert_close(gradients(found.total, hidden), gradients(expected.total, hidden))
    assert (kl.total.item(), kl.count.item()) == (0, 0)


def test_chunked_loss_passes_gradcheck() -> None:
    hidden, weight = random(5, 4, scale=1.0), random(7, 4, seed=1).detach()
    labels, kl_index, teacher = torch.tensor([3, IGNORE, 6, 0, 2]), torch.tensor([0, 3]), random(2, 4, seed=2).detach()

    def both(values: Tensor) -> tuple[Tensor, ...]:
        return tuple(
            term.total for term in chunked_lm_and_kl(values, labels, weight, teacher, kl_index, tau=2.0, chunk=2)
        )

    assert torch.autograd.gradcheck(both, hidden)


def test_chunked_loss_sums_16_bit_states_in_float32() -> None:
    hidden, weight = random(600, 8).detach().bfloat16().requires_grad_(), random(40, 8, seed=1).detach().bfloat16()
    labels = torch.arange(600) % 40
    found, _ = chunked_lm_and_kl(hidden, labels, weight, chunk=64)
    assert found.total.dtype == torch.float32
    assert found.total.item() == pytest.approx(lm(hidden @ weight.T, labels).total.item(), rel=1e-6)
    assert gradients(found.total, hidden)[0].dtype == torch.bfloat16


def test_a_trained_output_matrix_is_refused() -> None:
    hidden, weight = random(3, 4), random(9, 4, seed=1)
    with pytest.raises(ValueError, match="frozen lm_head"):
        chunked_lm_and_kl(hidden, torch.tensor([1, 2, 3]), weight)


def test_combine_divides_each_total_by_the_count_of_the_step() -> None:
    totals = {"lm": torch.tensor(30.0, requires_grad=True), "risk": torch.tensor(8.0, requires_grad=True)}
    loss = combine(totals, {"lm": 1.0, "risk": 0.5, "emotion": 9.0}, {"lm": 60, "risk": 16, "emotion": 3})
    assert loss.item() == pytest.approx(0.5 + 0.25)
    assert torch.stack(gradients(loss, *totals.values())).tolist() == pytest.approx([1 / 60, 0.5 / 16])


def test_combine_over_micro_batches_is_the_mean_over_all_labels_not_of_means() -> None:
    logits, labels = random(6, 5), torch.tensor([0, 1, IGNORE, IGNORE, IGNORE, 4])
    counts, weights = {"emotion": 3}, {"emotion": 2.0}
    parts = [lm(logits[rows], labels[rows]) for rows in (slice(0, 2), slice(2, 4), slice(4, 6))]
    loss = torch.stack([combine({"emotion": part.total}, weights, counts) for part in parts]).sum()
    expected = 2 * F.cross_entropy(logits, labels, ignore_index=IGNORE)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    torch.testing.assert_close(gradients(loss, logits), gradients(expected, logits))


def test_combine_adds_nothing_for_a_count_of_zero() -> None:
    logits = random(2, 4)
    empty = lm(logits, torch.full((2,), IGNORE))
    loss = combine(
        {"emotion": empty.total, "lm": torch.tensor(6.0)}, {"emotion": 3.0, "lm": 1.0}, {"emotion": 0, "lm": 2}
    )
    assert loss.item() == 3
    assert torch.equal(gradients(loss, logits)[0], torch.zeros_like(logits))
