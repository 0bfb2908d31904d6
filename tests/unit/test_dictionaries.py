"""Which columns of a Parquet file get a dictionary."""

import io
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shared.clients.lake_tables.arrow import schema_of
from shared.clients.lake_tables.parts import _OpenFile, repetitive
from shared.ports.tables import LakeColumn

VALUES: dict[str, tuple[Any, Any]] = {
    "bool": (True, False), "int16": (1, 2), "int32": (1, 2), "int64": (1, 2), "float": (1.5, 2.5), "double": (1.5, 2.5),
    "date32": (date(2024, 1, 1), date(2024, 1, 2)), "decimal128(38, 4)": (Decimal("1.5"), Decimal("2.5")),
    "timestamp[us]": (datetime(2024, 1, 1), datetime(2024, 1, 2)),  # noqa: DTZ001 - without a zone
    "timestamp[us, UTC]": (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)),
    "string": ("a", ""), "binary": (b"a", b""),
}  # fmt: skip


@pytest.mark.parametrize("lake_type", VALUES)
def test_values_that_come_again_and_again_have_one(lake_type: str) -> None:
    schema = schema_of([LakeColumn("v", lake_type)])
    assert repetitive(pa.table([pa.array([*VALUES[lake_type], None] * 50, schema.field("v").type)], schema)) == ["v"]
    assert repetitive(pa.table([pa.array(VALUES[lake_type], schema.field("v").type)], schema)) == []
    assert repetitive(pa.table([pa.nulls(9, schema.field("v").type)], schema)) == ["v"]


def test_the_first_rows_decide_for_the_file() -> None:
    schema = pa.schema([("id", pa.int64()), ("country", pa.string())])
    file = _OpenFile("part.parquet", None, schema, "zstd")  # type: ignore[arg-type]
    data = bytearray()
    for start in (0, 1000):
        ids = list(range(start, start + 1000))
        data += file.encode(pa.table([ids, [("AT", "NO")[one % 2] for one in ids]], schema=schema))
    data += file.end()
    read = pq.ParquetFile(io.BytesIO(bytes(data)))
    assert read.read().column("id").to_pylist() == list(range(2000))
    for group in range(2):
        columns = [read.metadata.row_group(group).column(place) for place in range(2)]
        assert [column.has_dictionary_page for column in columns] == [False, True]


def test_a_file_without_rows_has_its_columns() -> None:
    schema = pa.schema([("id", pa.int64())])
    read = pq.read_table(io.BytesIO(bytes(_OpenFile("part.parquet", None, schema, "zstd").end())))  # type: ignore[arg-type]
    assert (read.num_rows, read.schema.names) == (0, ["id"])
