"""What the values of a column add up to, as :mod:`shared.policy.sql.checksum` says: one column of one batch."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.engine.sql import lookup3
from shared.engine.sql.md5 import heads
from shared.engine.sql.texts import distinct, is_repetitive, parts, pieces, sum_of
from shared.policy.sql.checksum import (
    DAYS_TO_2000,
    HASH_MASK,
    LOOKUP3,
    MD5_UTF_16,
    MINUS_ZERO,
    NAN_BITS,
    NOT_A_NUMBER,
    ZERO,
    Definition,
    P,
)
from shared.policy.sql.types import decimal_of

_WHOLE_NUMBERS = ("bool", "int16", "int32", "int64", "date32")
_TO_2000_US = DAYS_TO_2000 * 86_400_000_000


def total_of(values: pa.Array, lake_type: str, definition: Definition) -> int:
    """The sum of the integers of all values that are not null, of the Arrow type that the lake type names.

    By ``lookup3``, texts and binaries are added up by :class:`shared.engine.sql.texts.Texts` alone.
    """
    if values.null_count == len(values):
        return 0
    if lake_type in ("string", "binary"):
        return _md5_of_texts(values, utf_16=definition == MD5_UTF_16 and lake_type == "string")
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
    return sum(sum_of(hashes(part)) for part in parts(values))


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
            return sum_of(values.drop_null().to_numpy())
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


def _md5_of_texts(values: pa.Array, *, utf_16: bool) -> int:
    values, times = distinct(values) if is_repetitive(values) else (values.drop_null(), None)
    data, offsets = pieces(values, utf_16=utf_16)
    numbers = heads(data, offsets[:-1], np.diff(offsets)) & HASH_MASK
    return int((numbers if times is None else numbers * times).sum())
