"""The lake's types in Arrow, and rows brought into a table's shape."""

from collections.abc import Iterable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import ItemError, Unsupported
from shared.policy.sql.types import decimal_of
from shared.ports.tables import LakeColumn

_ARROW = {
    "bool": pa.bool_(),
    "int16": pa.int16(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date32": pa.date32(),
    "timestamp[us]": pa.timestamp("us"),
    "timestamp[us, UTC]": pa.timestamp("us", "UTC"),
    "string": pa.string(),
    "binary": pa.binary(),
}
_LAKE = {arrow: text for text, arrow in _ARROW.items()}


def arrow_type(lake_type: str) -> pa.DataType:
    """Raises KeyError for what is no lake type."""
    found = decimal_of(lake_type)
    return pa.decimal128(*found) if found else _ARROW[lake_type]


def lake_type(arrow: pa.DataType) -> str:
    """The lake's name of a type; of one that is no lake type (somebody else's column), Arrow's own."""
    if pa.types.is_decimal128(arrow):
        return f"decimal128({arrow.precision}, {arrow.scale})"
    return _LAKE.get(arrow, str(arrow))


def schema_of(columns: Iterable[LakeColumn]) -> pa.Schema:
    return pa.schema([pa.field(one.name, arrow_type(one.type), one.nullable) for one in columns])


def columns_of(schema: pa.Schema) -> tuple[LakeColumn, ...]:
    return tuple(LakeColumn(one.name, lake_type(one.type), one.nullable) for one in schema)


def as_nullable(schema: pa.Schema) -> pa.Schema:
    """The same columns as files hold them: whether a column may be null is the table's affair, not the file's."""
    return pa.schema([pa.field(one.name, one.type) for one in schema])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, in its order: those that the rows lack are null, narrower types become the wider ones.

    Raises:
        Unsupported: a value does not fit its column.
    """
    if table.schema.equals(schema):
        return table
    columns = []
    for field in schema:
        place = table.schema.get_field_index(field.name)
        if place < 0:
            columns.append(pa.nulls(table.num_rows, field.type))
            continue
        column = table.column(place)
        if column.type != field.type:
            options = pc.CastOptions(target_type=field.type, allow_time_truncate=True)
            try:
                column = pc.cast(column, options=options)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                raise Unsupported(
                    f"column {field.name!r} holds values of type {column.type} that {field.type} cannot hold",
                    code="schema_conflict",
                    subject=field.name,
                ) from None
        columns.append(column)
    return pa.table(columns, schema=as_nullable(schema))


def assert_no_nulls(table: pa.Table, columns: Sequence[str]) -> None:
    """Raises ItemError, code ``null_in_not_null``, where a column that is never null holds one."""
    for name in columns:
        if table.column(name).null_count:
            raise ItemError(
                f"column {name!r} is declared never to be null and holds nulls; exclude the column, or let it be null",
                code="null_in_not_null",
                subject=name,
            )
