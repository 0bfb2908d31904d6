"""Texts and binaries of Arrow, and the integers that ``lookup3`` of :mod:`shared.policy.sql.checksum` makes of them."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.engine.sql import lookup3
from shared.policy.sql.checksum import ARRAY_OF_ONE, WHOLE

Bytes = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.int64]

# So many values at a time stay in the processor's cache with what is made of them; so many are worth the calls.
_AT_ONCE, _ENOUGH = 16384, 8192
# Values among which equal ones are looked for; where more than every fourth is another one, looking for them in all
# costs more than it spares.
_SAMPLE, _REPEATED = 1024, 4
_DIGEST = 32
_ADDED = np.uint64(ARRAY_OF_ONE)


class Texts:
    """Adds up the values of one column. Not thread-safe.

    The short ones of small batches are kept until there are many, since a step of the algorithm costs for a few of them
    what it costs for a thousand; nothing else of a batch is.

    Attributes:
        held_bytes: What is kept; gone after :meth:`settle`.
        total: Of all that was settled.
    """

    def __init__(self, lake_type: str) -> None:
        self._added = _ADDED if lake_type == "binary" else np.uint64(0)
        self._waiting: list[tuple[Bytes, Numbers]] = []
        self._digests: list[bytes] = []
        self._count = 0
        self.held_bytes = 0
        self.total = 0

    def add(self, values: pa.Array) -> None:
        if len(values) >= _AT_ONCE and is_repetitive(values):
            values, times = distinct(values)
            self.total += sum_of(hashes_of(values), times)
            return
        for part in parts(values):
            data, offsets = pieces(part)
            lengths = np.diff(offsets)
            is_long = lengths > WHOLE
            if is_long.any():
                self._digests.append(_digests(data, offsets, is_long))
                data, offsets = pieces(part.filter(pa.array(~is_long)))
                lengths = np.diff(offsets)
            elif self._count + len(part) < _ENOUGH:
                # Not the batch that they are part of.
                data = data.copy()
            self._waiting.append((data, lengths))
            self._count += len(part)
            self.held_bytes += len(data) + lengths.nbytes + _DIGEST * (len(part) - len(lengths))
            if self._count >= _ENOUGH:
                self.settle()

    def settle(self) -> None:
        """Add up what is kept."""
        waiting, digests = self._waiting, b"".join(self._digests)
        self._waiting, self._digests, self._count, self.held_bytes = [], [], 0, 0
        if waiting:
            data = waiting[0][0] if len(waiting) == 1 else np.concatenate([one for one, _ in waiting])
            lengths = waiting[0][1] if len(waiting) == 1 else np.concatenate([one for _, one in waiting])
            self.total += sum_of(lookup3.of_values(data, np.cumsum(lengths) - lengths, lengths) + self._added)
        if digests:
            self.total += sum_of(_of_digests(digests))


def hashes_of(values: pa.Array) -> lookup3.Hashes:
    """The integers of texts or binaries of which none is null, mod 2**64."""
    data, offsets = pieces(values)
    is_long = np.diff(offsets) > WHOLE
    found = np.empty(len(values), np.uint64)
    if is_long.any():
        found[is_long] = _of_digests(_digests(data, offsets, is_long))
        data, offsets = pieces(values.filter(pa.array(~is_long)))
    short = lookup3.of_values(data, offsets[:-1], np.diff(offsets))
    found[~is_long] = short + _ADDED if pa.types.is_binary(values.type) else short
    return found


def sum_of(numbers: npt.NDArray[Any], times: Numbers | None = None) -> int:
    """Of integers of 64 bits, as signed ones, however large it is; each so many times."""
    high, low = numbers.view(np.int64) >> 32, numbers.view(np.int64) & 0xFFFFFFFF
    if times is not None:
        high, low = high * times, low * times
    return (int(high.sum()) << 32) + int(low.sum())


def parts(values: pa.Array) -> Iterator[pa.Array]:
    """A little at a time, without what is null."""
    for first in range(0, len(values), _AT_ONCE):
        part = values.slice(first, _AT_ONCE)
        yield part.drop_null() if part.null_count else part


def is_repetitive(values: pa.Array) -> bool:
    """Whether it is worth it to look for equal ones."""
    few = values.slice(0, _SAMPLE)
    return len(pc.unique(few)) * _REPEATED <= len(few)


def distinct(values: pa.Array) -> tuple[pa.Array, Numbers]:
    """Those that are not null, each once, and how often it is there."""
    counted = pc.value_counts(values.drop_null())
    return counted.field(0), counted.field(1).to_numpy()


def pieces(values: pa.Array, *, utf_16: bool = False) -> tuple[Bytes, Numbers]:
    """Bytes of texts or binaries of which none is null, and where each begins, with the end at the end.

    ``utf_16``: of texts in that encoding, little-endian, in place of the bytes as they are.
    """
    _, offsets_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last] if last > first else np.empty(0, np.uint8)
    offsets -= first
    if utf_16:
        # Each character is a unit of two bytes, but one of four bytes in UTF-8 is two.
        units = pc.utf8_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
        pairs = np.flatnonzero(data >= 0xF0)
        if len(pairs):
            units += np.bincount(np.searchsorted(offsets, pairs, side="right") - 1, minlength=len(values))
        offsets = np.concatenate(([0], np.cumsum(2 * units)))
        data = np.frombuffer(data.tobytes().decode().encode("utf-16-le"), np.uint8)
    return data, offsets


def _digests(data: Bytes, offsets: Numbers, wanted: npt.NDArray[np.bool_]) -> bytes:
    places, view = np.flatnonzero(wanted), data.data
    return b"".join(
        hashlib.sha256(view[start:end], usedforsecurity=False).digest()
        for start, end in zip(offsets[places].tolist(), offsets[places + 1].tolist(), strict=True)
    )


def _of_digests(digests: bytes) -> lookup3.Hashes:
    starts = np.arange(0, len(digests), _DIGEST)
    data = np.frombuffer(digests, np.uint8)
    return lookup3.of_values(data, starts, np.full(len(starts), _DIGEST)) + _ADDED
