"""Pauses between attempts: growing, never below what the service asked for, bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy.backoff import durable_delay_s, transport_delay_s

SECONDS = st.floats(0, 1e5)


@pytest.mark.parametrize(
    ("attempt", "asked_s", "expected_s"),
    [(2, None, 15), (3, None, 30), (4, None, 60), (8, None, 600), (900, None, 600), (2, 40, 40), (3, 20, 30),
     (2, 9999, 600), (1, None, 15)],
)  # fmt: skip
def test_durable_delays(attempt: int, asked_s: float | None, expected_s: float) -> None:
    assert durable_delay_s(attempt, 15, asked_s) == expected_s


@given(st.integers(1, 1000), st.floats(0.1, 3600), st.none() | SECONDS)
def test_durable_delays_grow_to_a_cap(attempt: int, first_s: float, asked_s: float | None) -> None:
    delay_s = durable_delay_s(attempt, first_s, asked_s)
    assert min(600.0, first_s) <= delay_s <= 600.0
    assert delay_s >= min(600.0, asked_s or 0.0)
    assert durable_delay_s(attempt + 1, first_s, asked_s) >= delay_s


@given(st.integers(1, 30), st.none() | SECONDS, st.floats(0, 1, exclude_max=True))
def test_transport_delays_obey_retry_after_and_stay_short_without(
    attempt: int, asked_s: float | None, jitter: float
) -> None:
    delay_s = transport_delay_s(attempt, asked_s, jitter)
    if asked_s is None:
        assert 0 < delay_s <= 8
    else:
        assert asked_s <= delay_s <= asked_s + 2


def test_jitter_spreads_callers() -> None:
    assert len({transport_delay_s(3, None, jitter / 10) for jitter in range(10)}) == 10
    assert len({transport_delay_s(3, 5.0, jitter / 10) for jitter in range(10)}) == 10
