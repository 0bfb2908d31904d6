"""Checksums of columns over Arrow batches, as :mod:`shared.policy.sql.checksum` defines them.

A database computes the same sums in SQL; that both agree is what ``validate: [checksum]`` shows. Sums do not depend on
the order of rows and can be added, so that those of slices give those of a table.

A lone UTF-16 surrogate, which SQL Server's ``nvarchar`` can hold, has no UTF-8 form and so cannot be in the lake: the
driver replaces it, and the column's sums then differ, which is how such a value is found.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.engine.sql.md5 import heads
from shared.policy.sql.checksum import HASH_MASK, NAN_BITS, P
from shared.policy.sql.types import decimal_of
from shared.ports.tables import ColumnSum, LakeColumn, Summary

UTF_8, UTF_16 = "utf-8", "utf-16-le"
_INTEGERS = ("int16", "int32", "int64", "date32", "timestamp[us]", "timestamp[us, UTC]")
# Values among which equal ones are looked for, to see whether looking for them in all is worth it.
_SAMPLE = 1024
_SHOWN_COLUMNS = 8


def arrow_type(lake_type: str) -> pa.DataType:
    """The Arrow type that a lake type's text names. Raises ValueError for any other text."""
    digits = decimal_of(lake_type)
    if digits:
        return pa.decimal128(*digits)
    if lake_type == "timestamp[us]":
        return pa.timestamp("us")
    if lake_type == "timestamp[us, UTC]":
        return pa.timestamp("us", tz="UTC")
    return pa.type_for_alias(lake_type)


class Sums:
    """Adds up the columns of batches. Not thread-safe; nothing of a batch is kept.

    Args:
        columns: Lake columns to look at; others of a batch are left alone.
        text_encoding: In which the database hashes text (``utf-8``, ``utf-16-le``), as its Summary says.
    """

    def __init__(self, columns: Sequence[LakeColumn], text_encoding: str = UTF_8) -> None:
        if text_encoding not in (UTF_8, UTF_16):
            raise ValueError(f"text is hashed as utf-8 or utf-16-le, not as {text_encoding}")
        self._columns = {column.name: column.type for column in columns}
        self._encoding = text_encoding
        self._nulls = dict.fromkeys(self._columns, 0)
        self._totals = dict.fromkeys(self._columns, 0)
        self._rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Raises ValueError where a column is missing, or holds what its lake type cannot."""
        for name, lake_type in self._columns.items():
            index = batch.schema.get_field_index(name)
            if index < 0:
                raise ValueError(f"the batch has no column {name!r}")
            values = batch.column(index)
            if not len(values):
                continue
            wanted = arrow_type(lake_type)
            if values.type != wanted:
                values = values.cast(wanted)
            self._nulls[name] += values.null_count
            self._totals[name] += _total(values, lake_type, self._encoding)
        self._rows += batch.num_rows

    @property
    def rows(self) -> int:
        return self._rows

    def result(self) -> Mapping[str, ColumnSum]:
        return {name: ColumnSum(self._nulls[name], self._totals[name]) for name in self._columns}

    def summary(self) -> Summary:
        return Summary(rows=self._rows, columns=self.result(), text_encoding=self._encoding)


def together(summaries: Iterable[Summary]) -> Summary:
    """Of slices that share no row, the summary of all of them. Raises ValueError where they cannot be added."""
    rows, encoding = 0, ""
    columns: dict[str, ColumnSum] | None = None
    for one in summaries:
        rows += one.rows
        if columns is None:
            columns, encoding = dict(one.columns), one.text_encoding
            continue
        if columns.keys() != one.columns.keys() or encoding != one.text_encoding:
            raise ValueError("checksums of different columns or encodings cannot be added")
        columns = {
            name: ColumnSum(ours.nulls + one.columns[name].nulls, ours.total + one.columns[name].total)
            for name, ours in columns.items()
        }
    return Summary(rows=rows, columns=columns or {}, text_encoding=encoding or UTF_8)


def differences(source: Summary, target: Summary) -> list[str]:
    """Sentences for a report, none where both are the same. What the source did not sum up is not compared.

    Raises:
        ValueError: text was hashed in different encodings.
    """
    found = []
    if source.rows != target.rows:
        found.append(f"the source has {source.rows:,} rows, the lake {target.rows:,}")
    if source.columns and target.columns and source.text_encoding != target.text_encoding:
        raise ValueError(f"text was hashed as {source.text_encoding} and as {target.text_encoding}")
    by_column = []
    for name, ours in source.columns.items() if target.columns or not target.rows else ():
        theirs = target.columns.get(name)
        if theirs is None:
            if target.columns:
                by_column.append(f"column {name} was not found in the lake")
        elif ours.nulls != theirs.nulls:
            by_column.append(f"column {name} has {ours.nulls:,} nulls in the source, {theirs.nulls:,} in the lake")
        elif ours.total != theirs.total:
            by_column.append(f"column {name} has other values in the lake than in the source")
    found += by_column[:_SHOWN_COLUMNS]
    if len(by_column) > _SHOWN_COLUMNS:
        found.append(f"and {len(by_column) - _SHOWN_COLUMNS:,} more columns differ")
    return found


def compact(summary: Summary) -> str:
    """``rows:digest`` for a manifest: equal for equal tables. Only rows where no checksums were asked for."""
    if not summary.columns:
        return str(summary.rows)
    lines = [f"{summary.text_encoding}\n"]
    lines += [f"{name!r} {one.nulls} {one.total}\n" for name, one in sorted(summary.columns.items())]
    return f"{summary.rows}:{hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]}"


def to_document(summary: Summary) -> dict[str, Any]:
    """As JSON, for a record of what a slice held."""
    columns = {name: [one.nulls, one.total] for name, one in summary.columns.items()}
    return {"rows": summary.rows, "columns": columns, "text_encoding": summary.text_encoding}


def from_document(document: Mapping[str, Any]) -> Summary:
    columns = {name: ColumnSum(nulls, total) for name, (nulls, total) in document["columns"].items()}
    return Summary(document["rows"], columns, document["text_encoding"])


# -- one column of one batch -------------------------------------------------------------------------------------------


def _total(values: pa.Array, lake_type: str, encoding: str) -> int:
    if values.null_count == len(values):
        return 0
    if lake_type == "bool":
        return int(pc.sum(values).as_py())
    if lake_type in _INTEGERS:
        plain = values.view(pa.int32()) if lake_type == "date32" else values
        plain = plain.view(pa.int64()) if lake_type.startswith("timestamp") else plain
        return _sum_of_remainders(_filled(plain, 0).astype(np.int64, copy=False))
    if lake_type in ("float", "double"):
        numbers = _filled(values, 0.0).astype(np.float64)
        bits = numbers.view(np.int64)
        bits[np.isnan(numbers)] = NAN_BITS
        return _sum_of_remainders(bits)
    if decimal_of(lake_type):
        return _decimals(values)
    return _hashes(values, encoding if lake_type == "string" else "")


def _filled(values: pa.Array, blank: float) -> npt.NDArray[Any]:
    filled: npt.NDArray[Any] = (values.fill_null(blank) if values.null_count else values).to_numpy(zero_copy_only=False)
    return filled


def _sum_of_remainders(values: npt.NDArray[np.int64]) -> int:
    # Far quicker than %, for which numpy divides value by value; floor division by a constant is a multiplication.
    return int((values - values // P * P).sum())


def _decimals(values: pa.Array) -> int:
    """Of the 128-bit integer ``high * 2**64 + low``: since 2**31 leaves 1 when divided by P, 2**64 leaves 4."""
    words = np.frombuffer(values.buffers()[1], dtype=np.int64)[2 * values.offset : 2 * (values.offset + len(values))]
    low, high = words[0::2].view(np.uint64), words[1::2]
    modulus = np.uint64(P)
    remainders = (low - low // modulus * modulus).astype(np.int64) + 4 * (high - high // P * P)
    if values.null_count:
        # What lies below a null is not defined.
        remainders = remainders[values.is_valid().to_numpy(zero_copy_only=False)]
    return _sum_of_remainders(remainders)


def _hashes(values: pa.Array, encoding: str) -> int:
    values = values.drop_null()
    few = values.slice(0, _SAMPLE)
    if len(pc.unique(few)) * 2 > len(few):
        return int((_heads(values, encoding) & HASH_MASK).sum())
    counted = pc.value_counts(values)
    return int(((_heads(counted.field(0), encoding) & HASH_MASK) * counted.field(1).to_numpy()).sum())


def _heads(values: pa.Array, encoding: str) -> npt.NDArray[np.int64]:
    data, offsets = pieces(values, encoding)
    return heads(data, offsets[:-1], np.diff(offsets))


def pieces(values: pa.Array, encoding: str) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Bytes of texts or binaries of which none is null, and where each begins, with the end at the end.

    ``encoding`` is that of texts; anything but ``utf-16-le`` takes the bytes as they are.
    """
    _, offsets_buffer, data_buffer = values.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[values.offset : values.offset + len(values) + 1].astype(np.int64)
    first, last = int(offsets[0]), int(offsets[-1])
    data = np.frombuffer(data_buffer, np.uint8)[first:last] if last > first else np.empty(0, np.uint8)
    offsets -= first
    if encoding == UTF_16:
        # Each character is a unit of two bytes, but one of four bytes in UTF-8 is two.
        units = pc.utf8_length(values).to_numpy(zero_copy_only=False).astype(np.int64)
        pairs = np.flatnonzero(data >= 0xF0)
        if len(pairs):
            units += np.bincount(np.searchsorted(offsets, pairs, side="right") - 1, minlength=len(values))
        offsets = np.concatenate(([0], np.cumsum(2 * units)))
        data = np.frombuffer(data.tobytes().decode().encode(UTF_16), np.uint8)
    return data, offsets
