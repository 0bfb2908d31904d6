"""Sizes and rates as people write them, and as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy.quantities import parse_bytes, parse_bytes_per_s, show_bytes, show_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("256MiB", 256 * 2**20), ("256MB", 256_000_000), ("1.5 GB", 1_500_000_000), ("0", 0), ("12", 12), ("12 b", 12),
        (" 1 kib ", 1024), ("1K", 1000), ("2TiB", 2 * 2**40), ("1t", 10**12), ("0.5KiB", 512),
    ],
)  # fmt: skip
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize(
    "text", ["", "MiB", "-1", "1 PB", "1e3", "1,5GB", "0x10", "1 MiB/s", "1.2.3", "٣MB", "1MiB\x00"]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="such as 256MiB"):
        parse_bytes(text)


def test_rates() -> None:
    assert parse_bytes_per_s("50MiB/s") == 50 * 2**20
    assert parse_bytes_per_s("1 kB / sec") == 1000


@pytest.mark.parametrize("text", ["50MiB", "50MiB/min", "50MiB/s/s", "/s"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="such as"):
        parse_bytes_per_s(text)


@given(st.integers(0, 10**15 - 1), st.sampled_from(["", "B", "kB", "KiB", "MiB", "GiB"]))
def test_whole_numbers_are_kept_to_the_byte(number: int, unit: str) -> None:
    factor = {"": 1, "B": 1, "kB": 1000, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}[unit]
    assert parse_bytes(f"{number}{unit}") == number * factor


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1.5 * 2**30, "1.5 GiB"), (2**50, "1024.0 TiB")],
)
def test_shown_sizes(count: float, shown: str) -> None:
    assert show_bytes(count) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3600, "1 h 00 min"), (3840, "1 h 04 min")],
)
def test_shown_durations(seconds: float, shown: str) -> None:
    assert show_duration(seconds) == shown
