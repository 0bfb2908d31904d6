"""Batching: every item once, in order, within the bounds, and no batch smaller than it has to be."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shared.policy.batching import partition

SIZES = st.lists(st.integers(0, 60), max_size=40)


@given(SIZES, st.integers(1, 8), st.integers(1, 100))
def test_batches_cover_all_once_in_order_within_bounds(sizes: list[int], max_items: int, max_bytes: int) -> None:
    batches = partition(sizes, max_items, max_bytes)
    assert [index for start, end in batches for index in range(start, end)] == list(range(len(sizes)))
    for start, end in batches:
        assert 1 <= end - start <= max_items
        assert end - start == 1 or sum(sizes[start:end]) <= max_bytes


@given(SIZES, st.integers(1, 8), st.integers(1, 100))
def test_a_batch_ends_only_where_the_next_item_does_not_fit(sizes: list[int], max_items: int, max_bytes: int) -> None:
    for start, end in partition(sizes, max_items, max_bytes)[:-1]:
        assert end - start == max_items or sum(sizes[start : end + 1]) > max_bytes


def test_examples() -> None:
    assert partition([], 10, 10) == []
    assert partition([11], 10, 10) == [(0, 1)]
    assert partition([5, 5, 1], 10, 10) == [(0, 2), (2, 3)]
    assert partition([0, 0, 0], 2, 1) == [(0, 2), (2, 3)]
