"""The mixture: shares and exact counts, an order that only seed and step decide, every example equally often."""

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from warmline.data.mixture import Item, epoch_counts, shares, step_items

SIZES = {"esconv": 9, "empathetic": 36, "mine": 4}  # square roots 3, 6 and 2
LENGTH = sum(SIZES.values())


def draws(num_steps: int, batch_size: int = 7, seed: int = 1, alpha: float = 0.5) -> list[Item]:
    return [item for step in range(num_steps) for item in step_items(SIZES, alpha, seed, batch_size, step)]


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        (1.0, {"esconv": 9 / 49, "empathetic": 36 / 49, "mine": 4 / 49}),
        (0.5, {"esconv": 3 / 11, "empathetic": 6 / 11, "mine": 2 / 11}),
        (1e-9, {"esconv": 1 / 3, "empathetic": 1 / 3, "mine": 1 / 3}),
    ],
)
def test_shares_are_sizes_to_the_power_alpha(alpha: float, expected: dict[str, float]) -> None:
    assert shares(SIZES, alpha) == pytest.approx(expected)


@pytest.mark.parametrize("alpha", [0.0, -0.5, 1.0001, 2.0, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"is not in \(0, 1\]"):
        shares(SIZES, alpha)


def test_counts_of_an_epoch_by_hand() -> None:
    # 49 draws at 3/11, 6/11, 2/11: 13.36, 26.73, 8.91; the two largest remainders get one more
    assert epoch_counts(SIZES, 0.5) == {"esconv": 13, "empathetic": 27, "mine": 9}
    assert epoch_counts(SIZES, 1.0) == SIZES


@given(
    sizes=st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 10**6), min_size=1),
    alpha=st.floats(0.05, 1.0),
)
def test_counts_sum_to_the_epoch_and_stay_within_one_of_the_shares(sizes: dict[str, int], alpha: float) -> None:
    counts, length = epoch_counts(sizes, alpha), sum(sizes.values())
    assert sum(counts.values()) == length
    assert counts.keys() == sizes.keys()
    for name, share in shares(sizes, alpha).items():
        assert abs(counts[name] - Fraction(share) * length) < 1
        assert counts[name] >= 1


def test_an_epoch_draws_exactly_its_counts_whatever_the_batch_size() -> None:
    for batch_size in (1, 7, 49):
        items = draws(LENGTH // batch_size, batch_size)
        assert Counter(item.source for item in items) == epoch_counts(SIZES, 0.5)


def test_batch_size_only_cuts_the_order() -> None:
    assert draws(14, 7) == draws(98, 1) == draws(2, 49)
    assert len(step_items(SIZES, 0.5, 1, 120, 3)) == 120  # a batch may be longer than two epochs


@pytest.mark.parametrize("num_epochs", [1, 2, 5, 11])
@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_examples_of_a_source_are_seen_equally_often(alpha: float, num_epochs: int) -> None:
    seen = Counter(draws(num_epochs * 7, alpha=alpha))
    for name, size in SIZES.items():
        times = [seen[Item(name, row)] for row in range(size)]
        assert sum(times) == num_epochs * epoch_counts(SIZES, alpha)[name]
        assert max(times) - min(times) <= 1
    assert set(seen) <= {Item(name, row) for name, size in SIZES.items() for row in range(size)}


def test_a_step_depends_on_seed_and_step_alone() -> None:
    forward = [step_items(SIZES, 0.5, 1, 7, step) for step in range(40)]
    step_items(SIZES, 0.5, 2, 7, 3)  # another seed's epochs in between
    assert [step_items(SIZES, 0.5, 1, 7, step) for step in reversed(range(40))] == forward[::-1]


def test_another_process_draws_the_same_step() -> None:
    # recorded once: a run that is resumed tomorrow must meet the order it was begun with
    recorded = [("a", 2), ("b", 1), ("b", 0), ("a", 1), ("a", 0)]
    assert [tuple(item) for item in step_items({"a": 3, "b": 2}, 0.5, 7, 5, 4)] == recorded


def test_seeds_and_epochs_differ_in_order_and_not_in_counts() -> None:
    first, second, other = draws(7), draws(14)[LENGTH:], draws(7, seed=2)
    assert first != second
    assert first != other
    assert [item.source for item in first] != [item.source for item in other]
    assert [item.row for item in first if item.source == "mine"] != [
        item.row for item in other if item.source == "mine"
    ]
    assert Counter(item.source for item in first) == Counter(item.source for item in other)


def test_sources_are_mixed_within_an_epoch() -> None:
    halves = [Counter(item.source for item in draws(7)[half : half + 24]) for half in (0, 25)]
    assert all(half[name] > 0 for half in halves for name in SIZES)
