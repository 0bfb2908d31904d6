"""QuickXorHash against its definition, byte by byte, and against published values."""

from __future__ import annotations

from base64 import b64decode, b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.policy.quick_xor import QuickXorHash


def reference(data: bytes) -> bytes:
    """The definition: each byte rotated to its place, then the length."""
    bits = 0
    for number, byte in enumerate(data):
        by = 11 * number % 160
        bits ^= (byte << by | byte << by >> 160) & ((1 << 160) - 1)
    return (bits ^ len(data) << 96).to_bytes(20, "little")


# rclone's vectors, backend/onedrive/quickxorhash/quickxorhash_test.go.
@pytest.mark.parametrize(
    ("data", "value"),
    [
        ("", "AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("Sg==", "SgAAAAAAAAAAAAAAAQAAAAAAAAA="),
        ("tbQ=", "taAFAAAAAAAAAAAAAgAAAAAAAAA="),
    ],
)
def test_published_values(data: str, value: str) -> None:
    found = QuickXorHash(b64decode(data))
    assert found.base64() == value
    assert found.digest() == b64decode(value)


@given(st.binary(max_size=2000))
def test_it_is_the_definition(data: bytes) -> None:
    assert QuickXorHash(data).digest() == reference(data)


@pytest.mark.parametrize("size", [159, 160, 161, 1759, 1760, 1761, 20479, 20480, 20481, 40960, 61441])
def test_around_the_sizes_at_which_it_folds(size: int) -> None:
    data = bytes((number * 7 + number // 251) % 256 for number in range(size))
    assert QuickXorHash(data).digest() == reference(data)
    assert QuickXorHash(b"\xff" * size).digest() == reference(b"\xff" * size)


@given(st.lists(st.integers(0, 45000), max_size=6), st.integers(0, 255))
def test_any_division_into_updates_is_the_same(sizes: list[int], first: int) -> None:
    data = bytes((first + number * 31 + number // 97) % 256 for number in range(sum(sizes)))
    parts = QuickXorHash()
    at = 0
    for size in sizes:
        parts.update(memoryview(data)[at : at + size])
        at += size
    assert parts.digest() == QuickXorHash(data).digest()


def test_the_digest_can_be_asked_on_the_way() -> None:
    running = QuickXorHash(b"abc")
    assert running.digest() == running.digest() == reference(b"abc")
    running.update(bytearray(b"def"))
    assert running.base64() == b64encode(reference(b"abcdef")).decode()
