"""Checksums of columns over Arrow batches, as :mod:`shared.policy.sql.checksum` defines them.

A database computes the same sums in SQL; that both agree is what ``validate: [checksum]`` shows. Sums do not depend on
the order of rows and can be added, so that those of slices give those of a table.

A lone UTF-16 surrogate, which SQL Server's ``nvarchar`` can hold, has no UTF-8 form and so cannot be in the lake: the
driver replaces it, and the column's sums then differ, which is how such a value is found.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

import pyarrow as pa

from shared.engine.sql.texts import Texts
from shared.engine.sql.totals import total_of
from shared.policy.sql.checksum import LOOKUP3, MD5_UTF_8, Definition
from shared.policy.sql.types import decimal_of
from shared.ports.tables import ColumnSum, LakeColumn, Summary

_SHOWN_COLUMNS = 8
# Of texts that wait to be added up, in all columns.
_HELD_BYTES = 4 * 1024 * 1024


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
    """Adds up the columns of batches. Not thread-safe; of batches, no more than a few mebibytes are kept.

    Args:
        columns: Lake columns to look at; others of a batch are left alone.
        definition: By which the database makes integers of values, as its Summary says.
    """

    def __init__(self, columns: Sequence[LakeColumn], definition: Definition = MD5_UTF_8) -> None:
        if definition not in get_args(Definition):
            raise ValueError(f"there is no checksum {definition}; there are {', '.join(get_args(Definition))}")
        self._columns = {column.name: column.type for column in columns}
        self._definition = definition
        self._nulls = dict.fromkeys(self._columns, 0)
        self._totals = dict.fromkeys(self._columns, 0)
        self._texts = {
            column.name: Texts(column.type)
            for column in columns
            if definition == LOOKUP3 and column.type in ("string", "binary")
        }
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
            if name in self._texts:
                self._texts[name].add(values)
            else:
                self._totals[name] += total_of(values, lake_type, self._definition)
        self._rows += batch.num_rows
        if sum(one.held_bytes for one in self._texts.values()) > _HELD_BYTES:
            self._settle()

    @property
    def rows(self) -> int:
        return self._rows

    def result(self) -> Mapping[str, ColumnSum]:
        self._settle()
        totals = self._totals | {name: one.total for name, one in self._texts.items()}
        return {name: ColumnSum(self._nulls[name], totals[name]) for name in self._columns}

    def summary(self) -> Summary:
        return Summary(rows=self._rows, columns=self.result(), definition=self._definition)

    def _settle(self) -> None:
        for one in self._texts.values():
            one.settle()


def together(summaries: Iterable[Summary]) -> Summary:
    """Of slices that share no row, the summary of all of them. Raises ValueError where they cannot be added."""
    rows, definition = 0, MD5_UTF_8
    columns: dict[str, ColumnSum] | None = None
    for one in summaries:
        rows += one.rows
        if columns is None:
            columns, definition = dict(one.columns), one.definition
            continue
        if columns.keys() != one.columns.keys() or definition != one.definition:
            raise ValueError("checksums of different columns or definitions cannot be added")
        columns = {
            name: ColumnSum(ours.nulls + one.columns[name].nulls, ours.total + one.columns[name].total)
            for name, ours in columns.items()
        }
    return Summary(rows=rows, columns=columns or {}, definition=definition)


def differences(source: Summary, target: Summary) -> list[str]:
    """Sentences for a report, none where both are the same. What the source did not sum up is not compared.

    Raises:
        ValueError: the checksums are of different definitions.
    """
    found = []
    if source.rows != target.rows:
        found.append(f"the source has {source.rows:,} rows, the lake {target.rows:,}")
    if source.columns and target.columns and source.definition != target.definition:
        raise ValueError(f"checksums {source.definition} and {target.definition} cannot be compared")
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
    lines = [f"{summary.definition}\n"]
    lines += [f"{name!r} {one.nulls} {one.total}\n" for name, one in sorted(summary.columns.items())]
    return f"{summary.rows}:{hashlib.sha256(''.join(lines).encode()).hexdigest()[:16]}"


def to_document(summary: Summary) -> dict[str, Any]:
    """As JSON, for a record of what a slice held."""
    columns = {name: [one.nulls, one.total] for name, one in summary.columns.items()}
    return {"rows": summary.rows, "columns": columns, "definition": summary.definition}


def from_document(document: Mapping[str, Any]) -> Summary:
    columns = {name: ColumnSum(nulls, total) for name, (nulls, total) in document["columns"].items()}
    return Summary(document["rows"], columns, document["definition"])
