"""Batches as a driver makes them, turned into the lake's types; what does not fit is an error, never another value."""

from collections.abc import Sequence
from datetime import date

import pyarrow as pa
import pyarrow.compute as pc

from shared.clients.sql.dialect import INTEGER_DIGITS
from shared.errors import Unsupported
from shared.policy.sql.types import decimal_of
from shared.ports.tables import LakeColumn

_FIRST_DAY = (date(1, 1, 1) - date(1970, 1, 1)).days
_LAST_DAY = (date(9999, 12, 31) - date(1970, 1, 1)).days
_DAY_US = 86_400_000_000
_RANGES = {
    "date32": (pa.int32(), _FIRST_DAY, _LAST_DAY),
    "timestamp[us]": (pa.int64(), _FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1),
    "timestamp[us, UTC]": (pa.int64(), _FIRST_DAY * _DAY_US, (_LAST_DAY + 1) * _DAY_US - 1),
}
_PLAIN = {
    "bool": pa.bool_(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(), "float": pa.float32(),
    "double": pa.float64(), "date32": pa.date32(), "timestamp[us]": pa.timestamp("us"),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"), "string": pa.string(), "binary": pa.binary(),
}  # fmt: skip


def arrow_type(lake_type: str) -> pa.DataType:
    """The Arrow type that the text of a lake type names."""
    decimal = decimal_of(lake_type)
    return pa.decimal128(*decimal) if decimal else _PLAIN[lake_type]


def arrow_schema(columns: Sequence[LakeColumn]) -> pa.Schema:
    """Every field may be null: what a source says about that is not what Arrow checks."""
    return pa.schema([pa.field(column.name, arrow_type(column.type)) for column in columns])


def conform(batch: pa.RecordBatch, columns: Sequence[LakeColumn], subject: str) -> pa.RecordBatch:
    """The batch with exactly the types and names of ``columns``.

    Raises:
        Unsupported: code ``value_unfit``: a value that its column's type cannot hold without loss, or a time that
            readers of a lake do not know (before year 1, after year 9999, infinity).
    """
    schema = arrow_schema(columns)
    if batch.num_columns != len(columns):
        raise AssertionError(f"{batch.num_columns} columns came for {[column.name for column in columns]}")
    arrays = [
        _conformed(array, field.type, column, subject)
        for array, field, column in zip(batch.columns, schema, columns, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _conformed(array: pa.Array, wanted: pa.DataType, column: LakeColumn, subject: str) -> pa.Array:
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    try:
        if pa.types.is_int64(array.type) and pa.types.is_decimal(wanted) and wanted.precision <= INTEGER_DIGITS:
            digits = array.cast(pa.decimal128(19, 0))
            array = pa.Array.from_buffers(wanted, len(digits), digits.buffers(), digits.null_count, digits.offset)
        elif array.type != wanted:
            array = array.cast(wanted)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise _unfit(column, subject, str(error).partition("\n")[0][:200]) from error
    if column.type in _RANGES:
        integer, first, last = _RANGES[column.type]
        found = pc.min_max(array.view(integer)).as_py()
        if found["min"] is not None and (found["min"] < first or found["max"] > last):
            raise _unfit(column, subject, "a time outside of the years 1 to 9999, or infinity")
    return array


def _unfit(column: LakeColumn, subject: str, why: str) -> Unsupported:
    return Unsupported(
        f"column {column.name} of {subject} holds a value that {column.type} cannot: {why}; read the table by a query "
        "that casts the column to text, or leave it out by exclude_columns",
        code="value_unfit",
        subject=subject,
    )
