"""Statistics of a data file as a Delta log holds them, such that a reader never skips a row that it looks for.

Source of the rules: Delta protocol, "Per-file Statistics". Minimum and maximum are bounds, not values of the file: long
strings are cut, down for a minimum and up for a maximum; timestamps are full milliseconds, down and up. Where no bound
can be given (NaN, infinity, a string of the highest characters, a time beyond the year 9999) there is none.
"""

import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

INDEXED_COLUMNS = 32
"""Delta's default: only so many columns from the left have statistics."""

_STRING_LIMIT = 32
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MS_RANGE = (
    -62_135_596_800_000,  # 0001-01-01
    253_402_300_799_999,  # 9999-12-31
)


class FileStatistics:
    """Of one file, row group by row group."""

    def __init__(self, schema: pa.Schema) -> None:
        self.rows = 0
        self._fields = list(schema)[:INDEXED_COLUMNS]
        self._nulls = [0] * len(self._fields)
        self._low: list[Any] = [None] * len(self._fields)
        self._high: list[Any] = [None] * len(self._fields)
        self._unbounded = [not _has_bounds(field.type) for field in self._fields]

    def add(self, table: pa.Table) -> None:
        self.rows += table.num_rows
        for place, field in enumerate(self._fields):
            column = table.column(field.name)
            self._nulls[place] += column.null_count
            if self._unbounded[place] or column.null_count == table.num_rows:
                continue
            if pa.types.is_floating(field.type) and pc.any(pc.is_nan(column)).as_py():
                # Engines do not agree on where NaN stands among numbers.
                self._unbounded[place] = True
                continue
            if pa.types.is_timestamp(field.type):
                column = column.cast(pa.int64())
            found = pc.min_max(column)
            low, high = found["min"].as_py(), found["max"].as_py()
            if self._low[place] is None or low < self._low[place]:
                self._low[place] = low
            if self._high[place] is None or high > self._high[place]:
                self._high[place] = high

    def as_json(self) -> str:
        low: dict[str, str] = {}
        high: dict[str, str] = {}
        for place, field in enumerate(self._fields):
            if self._unbounded[place] or self._low[place] is None:
                continue
            for bounds, text in (
                (low, _bound(self._low[place], field.type, is_upper=False)),
                (high, _bound(self._high[place], field.type, is_upper=True)),
            ):
                if text is not None:
                    bounds[field.name] = text
        nulls = {field.name: str(count) for field, count in zip(self._fields, self._nulls, strict=True)}
        return (
            f'{{"numRecords":{self.rows},"minValues":{_object(low)},"maxValues":{_object(high)},'
            f'"nullCount":{_object(nulls)}}}'
        )


def _has_bounds(type_: pa.DataType) -> bool:
    return not (pa.types.is_boolean(type_) or pa.types.is_binary(type_))


def _object(values: dict[str, str]) -> str:
    # By hand, since a decimal's digits would not survive Python's JSON.
    return "{" + ",".join(f"{json.dumps(name)}:{text}" for name, text in values.items()) + "}"


def _bound(value: Any, type_: pa.DataType, *, is_upper: bool) -> str | None:
    """A JSON value, or None where there is no bound."""
    if pa.types.is_timestamp(type_):
        return _moment(value, with_zone=type_.tz is not None, is_upper=is_upper)
    if isinstance(value, str):
        cut = _cut_up(value) if is_upper else value[:_STRING_LIMIT]
        return None if cut is None else json.dumps(cut)
    if isinstance(value, Decimal):
        return format(value, "f")
    if isinstance(value, float):
        return repr(value) if value - value == 0 else None
    if isinstance(value, date):
        return json.dumps(value.isoformat())
    return str(value)


def _moment(value_us: int, *, with_zone: bool, is_upper: bool) -> str | None:
    value_ms = -(-value_us // 1000) if is_upper else value_us // 1000
    if not _MS_RANGE[0] <= value_ms <= _MS_RANGE[1]:
        return None
    text = (_EPOCH + timedelta(milliseconds=value_ms)).strftime("%H:%M:%S.%f")[:-3]
    day = (_EPOCH + timedelta(milliseconds=value_ms)).date().isoformat()
    return json.dumps(f"{day}T{text}{'Z' if with_zone else ''}")


def _cut_up(text: str) -> str | None:
    """A short string that is not less than ``text`` by its code points, or None where there is none."""
    if len(text) <= _STRING_LIMIT:
        return text
    for end in range(_STRING_LIMIT, 0, -1):
        code = ord(text[end - 1])
        if code < 0x10FFFF:
            following = 0xE000 if code == 0xD7FF else code + 1
            return text[: end - 1] + chr(following)
    return None
