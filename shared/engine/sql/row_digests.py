"""A number of 64 bits for each row, the same for equal rows wherever they come from.

Rows are told apart by it, never trusted by it alone: what is found to differ is read again. Equal means equal as
:mod:`shared.policy.sql.checksum` sums values up: every NaN is one, 0.0 and -0.0 are two.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shared.engine.sql.sums import arrow_type
from shared.engine.sql.texts import hashes_of
from shared.policy.sql.checksum import NAN_BITS
from shared.ports.tables import LakeColumn

Digests = npt.NDArray[np.uint64]

# Of SplitMix64: an odd constant, and two that mix the bits of a number well.
_STEP, _FIRST, _SECOND = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_NULL = np.uint64(0x6E756C6C6E756C6C)


def row_digests(batch: pa.RecordBatch, columns: Sequence[LakeColumn]) -> Digests:
    """Of the values of these columns, in this order.

    Raises:
        ValueError: a column is missing, or a value does not fit its type.
    """
    found = np.full(batch.num_rows, _STEP)
    for column in columns:
        place = batch.schema.get_field_index(column.name)
        if place < 0:
            raise ValueError(f"the batch has no column {column.name!r}")
        values = batch.column(place)
        wanted = arrow_type(column.type)
        if values.type != wanted:
            values = values.cast(wanted)
        found = _mixed(found * _STEP + _value_digests(values))
    return found


def _value_digests(values: pa.Array) -> Digests:
    if values.null_count == len(values):
        return np.full(len(values), _NULL)
    found = _present(_filled(values) if values.null_count else values)
    if values.null_count:
        found[values.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return found


def _present(values: pa.Array) -> Digests:
    type_ = values.type
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return hashes_of(values)
    if pa.types.is_decimal128(type_):
        words = np.frombuffer(values.buffers()[1], np.uint64)[2 * values.offset : 2 * (values.offset + len(values))]
        return _mixed(words[0::2] + _mixed(words[1::2] + _STEP))
    if pa.types.is_floating(type_):
        numbers = values.to_numpy(zero_copy_only=False).astype(np.float64)
        bits = numbers.view(np.uint64).copy()
        bits[np.isnan(numbers)] = NAN_BITS
        return _mixed(bits)
    if pa.types.is_boolean(type_):
        return _mixed(values.to_numpy(zero_copy_only=False).astype(np.uint64))
    plain = values.view(pa.int64()) if pa.types.is_timestamp(type_) else values
    plain = values.view(pa.int32()) if pa.types.is_date32(type_) else plain
    return _mixed(plain.to_numpy(zero_copy_only=False).astype(np.int64).view(np.uint64))


def _filled(values: pa.Array) -> pa.Array:
    """Something in the place of nulls, which are put right afterwards."""
    type_ = values.type
    if pa.types.is_decimal128(type_):
        # Taken from memory as it is.
        return values
    if pa.types.is_string(type_) or pa.types.is_binary(type_):
        return values.fill_null(pa.scalar("" if pa.types.is_string(type_) else b"", type_))
    if pa.types.is_boolean(type_):
        return values.fill_null(False)
    return values.fill_null(pa.scalar(0, pa.int32() if pa.types.is_date32(type_) else pa.int64()).cast(type_))


def _mixed(numbers: Digests) -> Digests:
    """Each number to another, one to one; overflow is meant."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _FIRST
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _SECOND
    return numbers ^ (numbers >> np.uint64(31))
