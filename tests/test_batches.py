"""Examples to tensors: gathered positions, targets of every kind of head, safety replies, micro-batches in budget."""

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from warmline.data.batches import CHEAP_PADDING, Batch, collate, micro_batches
from warmline.data.conversation import Affect
from warmline.data.labels import AFFECTS, IGNORE, RISKS, HeadSpec
from warmline.data.tokenize import Anchor, Example
from warmline.objectives import HEAD_OBJECTIVES

PAD = 0
HEADS = {
    "emotion": HeadSpec("softmax", ("joy", "sadness", "fear")),
    "situation": HeadSpec("softmax", ("sad", "lonely")),
    "strategy": HeadSpec("softmax", ("Question", "Others")),
    "risk": HeadSpec("ordinal", RISKS),
    "affect": HeadSpec("regression", AFFECTS),
}
SIGMOID = {**HEADS, "emotion": HeadSpec("sigmoid", ("joy", "sadness", "fear"))}


def example(name: str, length: int, *anchors: Anchor) -> Example:
    """Tokens that say where they are: `name`'s letter times 100, and the position."""
    input_ids = 100 * (1 + ord(name) - ord("a")) + np.arange(length)
    labels = np.full(length, IGNORE)
    for anchor in anchors:
        span = slice(anchor.position + 1, anchor.position + 1 + anchor.num_answer_tokens)
        labels[span] = input_ids[span]
    return Example(name, "talks", input_ids, labels, anchors)


A = example("a", 9, Anchor(2, 2, ("sadness",), "sad", "Others", "none", Affect(-1.0, 0.5)), Anchor(6, 2, risk="high"))
B = example("b", 5, Anchor(1, 3, ("joy", "fear"), None, "Question", "elevated"))
C = example("c", 12, Anchor(4, 3, ("pride",), "proud", "Information", None, Affect(0.0, 0.0)), Anchor(11, 0, ("fear",)))
ROWS = (A, B, C)


def tokens_at(batch: Batch, index: Tensor) -> list[int]:
    return batch.input_ids_BT.reshape(-1)[index].tolist()


@pytest.mark.parametrize("packing", [False, True])
def test_gathered_positions_are_those_before_each_learned_token(packing: bool) -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD, packing=packing)
    assert tokens_at(batch, batch.lm_index_N) == [102, 103, 106, 107, 201, 202, 203, 304, 305, 306]
    assert batch.lm_labels_N.tolist() == [103, 104, 107, 108, 202, 203, 204, 305, 306, 307]
    assert tokens_at(batch, batch.anchor_index_A) == [102, 106, 201, 304, 311]
    assert (batch.num_tokens, batch.examples) == (26, ROWS)


def test_rows_are_padded_on_the_right() -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD)
    assert batch.input_ids_BT.shape == (3, 12)
    for row, one in zip(batch.input_ids_BT, ROWS, strict=True):
        assert row[: len(one)].tolist() == one.input_ids.tolist()
        assert (row[len(one) :] == PAD).all()
    assert batch.position_ids_BT is None


def test_packed_rows_stand_in_one_sequence_whose_positions_start_again() -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD, packing=True)
    assert batch.input_ids_BT[0].tolist() == [token for one in ROWS for token in one.input_ids]
    assert batch.position_ids_BT is not None
    assert batch.position_ids_BT.tolist() == [[*range(9), *range(5), *range(12)]]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize(
    ("min_risk", "expected"),
    [
        pytest.param("elevated", [106, 107, 201, 202, 203], id="elevated"),
        pytest.param("high", [106, 107], id="high"),
        pytest.param("emergency", [], id="emergency"),
        pytest.param(None, [], id="no safety KL"),
    ],
)
def test_safety_replies_are_found_in_student_and_teacher(
    min_risk: str | None, expected: list[int], packing: bool
) -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD, min_kl_risk=min_risk, packing=packing)
    assert tokens_at(batch, batch.lm_index_N[batch.kl_index_M]) == expected
    teacher_rows = batch.input_ids_BT[batch.kl_rows_R]
    assert teacher_rows.reshape(-1)[batch.kl_teacher_index_M].tolist() == expected
    assert batch.counts["safety_kl"] == len(expected)
    if not packing:  # only rows with a safety reply are read again
        assert batch.kl_rows_R.tolist() == sorted({token // 100 - 1 for token in expected})


def test_the_teacher_reads_the_right_rows_when_some_are_left_out() -> None:
    batch = collate((C, B, C, A), HEADS, pad_id=PAD, min_kl_risk="elevated")
    assert batch.kl_rows_R.tolist() == [1, 3]
    found = batch.input_ids_BT[batch.kl_rows_R].reshape(-1)[batch.kl_teacher_index_M]
    assert found.tolist() == tokens_at(batch, batch.lm_index_N[batch.kl_index_M]) == [201, 202, 203, 106, 107]


def test_a_risky_last_turn_without_an_answer_is_no_safety_reply() -> None:
    batch = collate([example("a", 5, Anchor(4, 0, risk="emergency"))], HEADS, pad_id=PAD, min_kl_risk="elevated")
    assert [len(index) for index in (batch.kl_rows_R, batch.kl_index_M, batch.lm_index_N)] == [0, 0, 0]
    assert batch.targets["risk"].tolist() == [3]


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        # of the anchors of A, A, B, C, C; `pride`, `proud` and `Information` are outside the label spaces
        ("emotion", [1, IGNORE, IGNORE, IGNORE, 2]),
        ("situation", [0, IGNORE, IGNORE, IGNORE, IGNORE]),
        ("strategy", [1, IGNORE, 0, IGNORE, IGNORE]),
        ("risk", [0, 2, 1, IGNORE, IGNORE]),
    ],
)
def test_targets_with_one_label(head: str, expected: list[int]) -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD)
    assert batch.targets[head].tolist() == expected
    assert batch.counts[head] == sum(label != IGNORE for label in expected)


def test_multi_hot_targets() -> None:
    mixed = example("d", 3, Anchor(2, 0, ("pride", "joy")))  # one known, one not
    batch = collate((*ROWS, mixed), SIGMOID, pad_id=PAD)
    nothing = [IGNORE] * 3
    assert batch.targets["emotion"].tolist() == [[0, 1, 0], nothing, [1, 0, 1], nothing, [0, 0, 1], [1, 0, 0]]
    assert batch.counts["emotion"] == 4


def test_one_known_of_two_labels_is_not_learned_as_the_only_one() -> None:
    mixed = example("d", 3, Anchor(2, 0, ("pride", "joy")))
    assert collate([mixed], HEADS, pad_id=PAD).targets["emotion"].tolist() == [IGNORE]


def test_regression_targets() -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD)
    assert batch.targets["affect"].isnan().tolist() == [[False] * 2, [True] * 2, [True] * 2, [False] * 2, [True] * 2]
    assert batch.targets["affect"][[0, 3]].tolist() == [[-1.0, 0.5], [0.0, 0.0]]  # (0, 0) is a label
    assert batch.counts["affect"] == 2


@pytest.mark.parametrize("heads", [HEADS, SIGMOID], ids=["softmax", "sigmoid"])
@pytest.mark.parametrize("rows", [ROWS, (B,), (example("z", 4, Anchor(1, 2)),)], ids=["all", "one", "unlabelled"])
def test_counts_are_what_the_objectives_count(rows: tuple[Example, ...], heads: Mapping[str, HeadSpec]) -> None:
    batch = collate(rows, heads, pad_id=PAD, min_kl_risk="elevated")
    assert batch.counts.keys() == {"lm", "safety_kl", *heads}
    assert batch.counts["lm"] == len(batch.lm_labels_N) == sum((row.labels != IGNORE).sum() for row in rows)
    for name, spec in heads.items():
        logits = torch.zeros(len(batch.anchor_index_A), spec.num_outputs)
        term = HEAD_OBJECTIVES[spec.kind](logits, batch.targets[name])
        assert term.count.item() == batch.counts[name]
        assert term.total.isfinite()


def test_packing_changes_positions_and_nothing_else() -> None:
    padded = collate(ROWS, HEADS, pad_id=PAD, min_kl_risk="elevated")
    packed = collate(ROWS, HEADS, pad_id=PAD, min_kl_risk="elevated", packing=True)
    assert padded.counts == packed.counts
    assert padded.num_tokens == packed.num_tokens
    assert torch.equal(padded.lm_labels_N, packed.lm_labels_N)
    assert torch.equal(padded.kl_index_M, packed.kl_index_M)
    for name, target in padded.targets.items():
        assert torch.equal(target.nan_to_num(9), packed.targets[name].nan_to_num(9))


def test_a_batch_moves_with_everything_in_it() -> None:
    batch = collate(ROWS, HEADS, pad_id=PAD, packing=True).to(torch.device("meta"))
    tensors = [value for value in [*vars(batch).values(), *batch.targets.values()] if isinstance(value, Tensor)]
    assert len(tensors) == 8 + len(HEADS)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@given(lengths=st.lists(st.integers(1, 300), max_size=30), budget=st.integers(1, 1000))
def test_micro_batches_hold_every_example_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = [example("a", length) for length in lengths]
    groups = micro_batches(rows, budget)
    assert sorted(id(row) for group in groups for row in group) == sorted(map(id, rows))
    for group in groups:
        longest = max(map(len, group))
        assert len(group) == 1 or longest * len(group) <= budget
        assert all(longest - len(row) <= max(CHEAP_PADDING, longest // 5) for row in group)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (1000, [[200, 170, 160], [110, 100]]),  # 110 would be padded by 90, more than a fifth of 200
        (400, [[200, 170], [160], [110, 100]]),
        (199, [[200], [170], [160], [110], [100]]),
        (220, [[200], [170], [160], [110, 100]]),
    ],
)
def test_micro_batches_by_hand(budget: int, expected: list[list[int]]) -> None:
    rows = [example("a", length) for length in (100, 200, 110, 160, 170)]
    assert [[len(row) for row in group] for group in micro_batches(rows, budget)] == expected
