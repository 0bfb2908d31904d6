"""What the values of a column add up to, as :mod:`shared.policy.sql.checksum` says: one column of one batch."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.engine.sql import lookup3
from shared.engine.sql.md5 import heads
from shared.policy.sql.checksum import (
    ARRAY_OF_ONE,
    DAYS_TO_2000,
    HASH_MASK,
    LOOKUP3,
    MD5_UTF_16,
    MINUS_ZERO,
    NAN_BITS,
    NOT_A_NUMBER,
    WHOLE,
    ZERO,
    Definition,
    P,
)
from shared.policy.sql.types import decimal_of

_WHOLE_NUMBERS = ("bool", "int16", "int32", "int64", "date32")
_TO_2000_US = DAYS_TO_2000 * 86_400_000_000
# Values among which equal ones are looked for; where more than every fourth is another one, looking for them in all
# costs more than it spares.
_SAMPLE, _REPEATED = 1024, 4
# So many values at a time that what is made of them stays in the processor's cache.
_AT_ONCE = 16384


def total_of(values: pa.Array, lake_type: str, definition: Definition) -> int:
    """The sum of the integers of all values that are not null, of the Arrow type that the lake type names."""
    if values.null_count == len(values):
        return 0
    if lake_type in ("string", "binary"):
        return _texts(values, lake_type, definition)
    if definition == LOOKUP3 or lake_type == "bool":
        return _exactly(values, lake_type)
    return _by_remainders(values, lake_type)


def _exactly(values: pa.Array, lake_type: str) -> int:
    digits = decimal_of(lake_type)
    if digits:
        return _sum_of_decimals(values, digits[0])
    if lake_type in _WHOLE_NUMBERS:
        return _sum_of_integers(values.view(pa.int32()) if lake_type == "date32" else values)
    hashes = _hashes_of_floats if lake_type in ("float", "double") else _hashes_of_times
    return sum(_sum(hashes(part)) for part in _parts(values))


def _parts(values: pa.Array) -> Iterator[pa.Array]:
    """Without what is null."""
    for first in range(0, len(values), _AT_ONCE):
        part = values.slice(first, _AT_ONCE)
        yield part.drop_null() if part.null_count else part


def _by_remainders(values: pa.Array, lake_type: str) -> int:
    if lake_type in ("float", "double"):
        numbers = _filled(values, 0.0).astype(np.float64)
        bits = numbers.view(np.int64)
        bits[np.isnan(numbers)] = NAN_BITS
        return _sum_of_remainders(bits)
    if decimal_of(lake_type):
        return _remainders_of_decimals(values)
    plain = values.view(pa.int32()) if lake_type == "date32" else values
    plain = plain.view(pa.int64()) if lake_type.startswith("timestamp") else plain
    return _sum_of_remainders(_filled(plain, 0).astype(np.int64, copy=False))


def _filled(values: pa.Array, blank: float) -> npt.NDArray[Any]:
    filled: npt.NDArray[Any] = (values.fill_null(blank) if values.null_count else values).to_numpy(zero_copy_only=False)
    return filled


def _sum_of_remainders(values: npt.NDArray[np.int64]) -> int:
    # Far quicker than %, for which numpy divides value by value; floor division by a constant is a multiplication.
    return int((values - values // P * P).sum())


def _remainders_of_decimals(values: pa.Array) -> int:
    """Of the 128-bit integer ``high * 2**64 + low``: since 2**31 leaves 1 when divided by P, 2**64 leaves 4."""
    words = np.frombuffer(values.buffers()[1], dtype=np.int64)[2 * values.offset : 2 * (values.offset + len(values))]
    low, high = words[0::2].view(np.uint64), words[1::2]
    modulus = np.uint64(P)
    remainders = (low - low // modulus * modulus).astype(np.int64) + 4 * (high - high // P * P)
    if values.null_count:
        # What lies below a null is not defined.
        remainders = remainders[values.is_valid().to_numpy(zero_copy_only=False)]
    return _sum_of_remainders(remainders)


def _sum_of_integers(values: pa.Array) -> int:
    if values.type == pa.int64():
        bounds = pc.min_max(values).as_py()
        if max(-bounds["min"], bounds["max"]) * len(values) >= 2**63:
            return _sum(values.drop_null().to_numpy())
    return int(pc.sum(values).as_py())


def _sum_of_decimals(values: pa.Array, precision: int) -> int:
    if precision + len(str(len(values))) <= 38:
        whole = pa.Array.from_buffers(
            pa.decimal128(precision, 0), len(values), values.buffers(), values.null_count, values.offset
        )
        return int(pc.sum(whole).as_py())
    present = values.drop_null()
    words = np.frombuffer(present.buffers()[1], np.uint32)[4 * present.offset : 4 * (present.offset + len(present))]
    low = [int(words[place::4].sum(dtype=np.uint64)) << 32 * place for place in range(3)]
    return sum(low) + (int(words.view(np.int32)[3::4].sum(dtype=np.int64)) << 96)


def _sum(numbers: npt.NDArray[Any], times: npt.NDArray[np.int64] | None = None) -> int:
    """Of integers of 64 bits, as signed ones, however large it is; each so many times."""
    high, low = numbers.view(np.int64) >> 32, numbers.view(np.int64) & 0xFFFFFFFF
    if times is not None:
        high, low = high * times, low * times
    return (int(high.sum()) << 32) + int(low.sum())


def _hashes_of_times(values: pa.Array) -> lookup3.Hashes:
    since = values.view(pa.int64()).to_numpy() - _TO_2000_US
    high = since >> 32
    return lookup3.of_words((since ^ high ^ (high >> 63)).astype(np.uint32))


def _hashes_of_floats(values: pa.Array) -> lookup3.Hashes:
    numbers = values.to_numpy().astype(np.float64, copy=False)
    found = lookup3.of_double_words(numbers.view(np.uint64))
    odd = np.flatnonzero((numbers == 0) | np.isnan(numbers))
    if len(odd):
        zeros = np.where(np.signbit(numbers[odd]), np.uint64(MINUS_ZERO), np.uint64(ZERO))
        found[odd] = np.where(np.isnan(numbers[odd]), np.uint64(NOT_A_NUMBER), zeros)
    return found


def _texts(values: pa.Array, lake_type: str, definition: Definition) -> int:
    few = values.slice(0, _SAMPLE)
    times = None
    if len(pc.unique(few)) * _REPEATED <= len(few):
        counted = pc.value_counts(values.drop_null())
        values, times = counted.field(0), counted.field(1).to_numpy()
    if definition == LOOKUP3:
        total = done = 0
        for part in _parts(values):
            total += _sum(hashes_of_bytes(part), None if times is None else times[done : done + len(part)])
            done += len(part)
        return total
    data, offsets = pieces(values.drop_null(), utf_16=definition == MD5_UTF_16 and lake_type == "string")
    numbers = heads(data, offsets[:-1], np.diff(offsets)) & HASH_MASK
    return int((numbers if times is None else numbers * times).sum())


def hashes_of_bytes(values: pa.Array) -> lookup3.Hashes:
    """Integers of texts or binaries of which none is null, by ``lookup3``, mod 2**64."""
    data, offsets = pieces(values)
    starts, lengths = offsets[:-1], np.diff(offsets)
    is_long = lengths > WHOLE
    if not is_long.any():
        return _of_short(data, starts, lengths, values.type)
    found = np.empty(len(values), np.uint64)
    short = values.filter(pa.array(~is_long))
    if len(short):
        short_data, short_offsets = pieces(short)
        found[~is_long] = _of_short(short_data, short_offsets[:-1], np.diff(short_offsets), values.type)
    long, view = np.flatnonzero(is_long), data.data
    digests = b"".join(
        hashlib.sha256(view[start:end], usedforsecurity=False).digest()
        for start, end in zip(starts[long].tolist(), offsets[long + 1].tolist(), strict=True)
    )
    places = np.arange(0, len(digests), 32)
    found[long] = _of_short(np.frombuffer(digests, np.uint8), places, np.full(len(long), 32), pa.binary())
    return found


def _of_short(
    data: npt.NDArray[np.uint8], starts: lookup3.Numbers, lengths: lookup3.Numbers, type_: pa.DataType
) -> lookup3.Hashes:
    found = lookup3.of_values(data, starts, lengths)
    return found + np.uint64(ARRAY_OF_ONE) if pa.types.is_binary(type_) else found


def pieces(values: pa.Array, *, utf_16: bool = False) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
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
