"""Which rows of the lake lie in a range of keys that the source cut.

Bounds come as the dialect's text. Numbers, dates and times order alike everywhere; text does not (a database orders it
by its collation), so of text only the range of all rows can be told.
"""

import re
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import Unsupported
from shared.policy.sql.types import TICKS_SUFFIX
from shared.ports.tables import KeyRange

_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?)?\s*(Z|[+-]\d\d(?::?\d\d)?)?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def columns_for(within: KeyRange | None, names: list[str]) -> list[str]:
    """The columns that :func:`rows_within` looks at, of those that a table has."""
    if within is None:
        return []
    return [name for name in (within.column, within.column + TICKS_SUFFIX) if name in names]


def is_everything(within: KeyRange) -> bool:
    return within.lower is None and within.upper is None and within.nulls


def rows_within(table: pa.Table, within: KeyRange) -> pa.Array:
    """Whether each row lies in the range; never null.

    Raises:
        Unsupported: code ``range_of_text``, or the column or a bound makes no sense.
    """
    if is_everything(within):
        return pa.array([True] * table.num_rows) if table.num_rows else pa.array([], pa.bool_())
    if within.column not in table.column_names:
        raise Unsupported(f"the table in the lake has no column {within.column!r}", subject=within.column)
    values, convert = _comparable(table, within.column)
    mask = pc.is_valid(values)
    for bound, compare in ((within.lower, pc.greater_equal), (within.upper, pc.less)):
        if bound is not None:
            mask = pc.and_(mask, pc.fill_null(compare(values, convert(bound)), False))
    if within.nulls:
        mask = pc.or_(mask, pc.is_null(values))
    return mask.combine_chunks() if isinstance(mask, pa.ChunkedArray) else mask


def may_hold(field: pa.Field, low: Any, high: Any, nulls: int | None, within: KeyRange) -> bool:
    """Whether rows of the range can be among rows whose column has these bounds; None is not known."""
    if is_everything(within) or (within.nulls and nulls != 0):
        return True
    if low is None or high is None:
        return True
    values, convert = _comparable(pa.table([pa.array([low, high], field.type)], [field.name]), field.name)
    # A time's bound says nothing of the digit beside it.
    slack = 9 if pa.types.is_timestamp(field.type) else None
    if within.lower is not None:
        top = values[1] if slack is None else pc.add(values[1], slack)
        if pc.less(top, convert(within.lower)).as_py():
            return False
    return within.upper is None or bool(pc.less(values[0], convert(within.upper)).as_py())


def _comparable(table: pa.Table, name: str) -> tuple[Any, Any]:
    column = table.column(name)
    type_ = column.type
    if pa.types.is_timestamp(type_):
        ticks = pc.multiply(column.cast(pa.int64()), 10)
        if name + TICKS_SUFFIX in table.column_names:
            ticks = pc.add(ticks, pc.fill_null(table.column(name + TICKS_SUFFIX), 0).cast(pa.int64()))
        return ticks, lambda text: _ticks(text, name)
    if pa.types.is_date(type_):
        return column, lambda text: pa.scalar(_date(text, name))
    if pa.types.is_integer(type_):
        return column.cast(pa.int64()), lambda text: pa.scalar(_number(text, name, int), pa.int64())
    if pa.types.is_decimal(type_):
        return column, lambda text: pa.scalar(_number(text, name, Decimal))
    if pa.types.is_floating(type_):
        return column, lambda text: pa.scalar(_number(text, name, float))

    def refuse(_: str) -> Any:
        raise Unsupported(
            f"the lake orders column {name!r} ({type_}) differently than the database; cut the table by a column of "
            "numbers or times, or take all of it at once",
            code="range_of_text",
            subject=name,
        )

    return column, refuse


def _number(text: str, name: str, kind: Any) -> Any:
    try:
        return kind(text)
    except (ValueError, InvalidOperation):
        raise _senseless(text, name) from None


def _date(text: str, name: str) -> date:
    try:
        return date.fromisoformat(text[:10])
    except ValueError:
        raise _senseless(text, name) from None


def _ticks(text: str, name: str) -> int:
    """Steps of 100 ns since 1970, UTC where the text tells its offset."""
    found = _MOMENT.fullmatch(text.strip())
    if found is None:
        raise _senseless(text, name)
    day, hour, minute, second, fraction, offset = found.groups()
    try:
        moment = datetime.fromisoformat(f"{day}T{hour or '00'}:{minute or '00'}:{second or '00'}")
        zone = UTC if offset in (None, "Z") else timezone(_offset(offset))
    except ValueError:
        raise _senseless(text, name) from None
    return (moment.replace(tzinfo=zone) - _EPOCH) // _MICROSECOND * 10 + int((fraction or "0").ljust(9, "0")[:7])


def _offset(text: str) -> timedelta:
    digits = text[1:].replace(":", "").ljust(4, "0")
    found = timedelta(hours=int(digits[:2]), minutes=int(digits[2:]))
    return -found if text[0] == "-" else found


def _senseless(text: str, name: str) -> Unsupported:
    return Unsupported(f"{text!r} is no bound of column {name!r}", subject=name)
