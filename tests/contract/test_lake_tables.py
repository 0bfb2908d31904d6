"""The contract of a table in the lake, held by both formats against the emulated service; read back by others."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import os
import struct
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, Schema, write_deltalake
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clients.lake_tables.stats import FileStatistics
from shared.clients.onelake.tree import LakeTree
from shared.errors import IntegrityMismatch, ItemError, TargetConflict, Unsupported
from shared.ports.tables import KeyRange, LakeColumn, PartOptions
from tests.support.emulated import Lake
from tests.support.lake_tables import SMALL, EmulatedTable, Row, discarded

ORDERS = (LakeColumn("id", "int64", False), LakeColumn("text", "string"))
CHANGES = (*ORDERS, LakeColumn("_operation", "string"), LakeColumn("_order", "int64"))
EVERY_TYPE = (
    LakeColumn("b", "bool"), LakeColumn("i2", "int16"), LakeColumn("i4", "int32"), LakeColumn("i8", "int64"),
    LakeColumn("f4", "float"), LakeColumn("f8", "double"), LakeColumn("d", "date32"), LakeColumn("t", "timestamp[us]"),
    LakeColumn("tz", "timestamp[us, UTC]"), LakeColumn("s", "string"), LakeColumn("x", "binary"),
    LakeColumn("n", "decimal128(38, 4)"),
)  # fmt: skip
NAIVE_MIN, NAIVE_MAX = datetime.min, datetime.max  # noqa: DTZ901
ROWS = [
    {
        "b": True, "i2": -5, "i4": 2**31 - 1, "i8": -(2**63), "f4": 0.5, "f8": 1e300, "d": date(1, 1, 1),
        "t": NAIVE_MAX, "tz": datetime(1969, 12, 31, 23, 59, 59, 999999, UTC),
        "s": "\U0010ffff" * 40, "x": b"\x00\xff", "n": Decimal("9999999999999999999999999999999999.9999"),
    },
    dict.fromkeys(["b", "i2", "i4", "i8", "f4", "f8", "d", "t", "tz", "s", "x", "n"]),
    {
        "b": False, "i2": 7, "i4": 0, "i8": 2**53 + 1, "f4": float("inf"), "f8": -0.0, "d": date(9999, 12, 31),
        "t": NAIVE_MIN, "tz": datetime(2024, 2, 29, 12, 0, 0, 1, UTC),
        "s": "", "x": b"", "n": Decimal("-0.0001"),
    },
]  # fmt: skip

FORMATS = pytest.mark.parametrize("table", ["parquet", "delta"], indirect=True)


@pytest.fixture
async def table(lake: Lake, request: pytest.FixtureRequest) -> EmulatedTable:
    return EmulatedTable(lake, request.param)


@FORMATS
async def test_every_type_comes_back_as_it_was(table: EmulatedTable) -> None:
    opened = table.open()
    assert not (await opened.state()).exists
    parts = await table.write(opened, EVERY_TYPE, ROWS)
    assert table.rows() == [], "nobody sees what is not committed"
    assert [row async for batch in opened.read_parts(parts) for row in batch.to_pylist()] == ROWS
    done = await table.commit(opened, EVERY_TYPE, parts, position={"at": "7"})
    assert (done.inserted, done.already) == (3, False)
    assert table.rows() == ROWS
    state = await table.open().state()
    assert (state.exists, state.columns, state.applied, state.position) == (True, EVERY_TYPE, 0, {"at": "7"})
    assert [row async for batch in table.open().read() for row in batch.to_pylist()] == ROWS


@FORMATS
async def test_append_replace_and_a_second_delivery(table: EmulatedTable) -> None:
    opened = table.open()
    first = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    await table.commit(opened, ORDERS, first)
    again = await table.commit(table.open(), ORDERS, first)
    assert (again.already, again.inserted) == (True, 1), "what it has done, for a record that was lost"
    second = await table.write(opened, ORDERS, [{"id": 2, "text": "b"}])
    await table.commit(opened, ORDERS, second, number=1, run="run-2")
    assert table.rows() == [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    third = await table.write(table.open(run="run-3"), ORDERS, [{"id": 3, "text": None}])
    done = await table.commit(table.open(run="run-3"), ORDERS, third, number=2, run="run-3", disposition="replace")
    assert (done.inserted, done.deleted) == (1, 2)
    assert table.rows() == [{"id": 3, "text": None}]
    late = await table.commit(table.open(), ORDERS, second, number=1, run="run-2")
    assert late.already
    again = await table.commit(table.open(), ORDERS, third, number=2, run="run-3", disposition="replace")
    assert (again.already, again.inserted, again.deleted) == (True, 1, 2)
    assert table.rows() == [{"id": 3, "text": None}]
    assert await discarded(table.open()) == 0


@FORMATS
@pytest.mark.parametrize(
    "fault", ["throttle", "unavailable", "server_error", "reset_before", "reset_after", "expired_token"]
)
async def test_a_service_that_stumbles(table: EmulatedTable, fault: str) -> None:
    """Each kind of call fails once, then the next ones do; the commit is made, and made once."""
    for number in range(3):
        rules = [
            {"operation": operation, "fault": fault, "after": number, "times": 1, "retry_after_s": 0}
            for operation in ("create", "append", "flush", "append_flush", "read", "properties", "list", "rename")
        ]
        if fault not in ("throttle", "unavailable"):
            rules = [{key: value for key, value in rule.items() if key != "retry_after_s"} for rule in rules]
        table.lake.emulators.set_faults(rules)
        opened = table.open(run=f"run-{number}")
        parts = await table.write(opened, ORDERS, [{"id": number, "text": "a" * number}])
        read = [row async for batch in opened.read_parts(parts) for row in batch.to_pylist()]
        done = await table.commit(opened, ORDERS, parts, number=number, run=f"run-{number}", position={"n": number})
        assert (done.inserted, done.already, read) == (1, False, [{"id": number, "text": "a" * number}])
        state = await opened.state()
        assert (state.applied, state.position) == (number, {"n": number})
        assert sum(table.lake.emulators.fault_hits())
        table.lake.emulators.set_faults([])
    assert table.rows("id") == [{"id": number, "text": "a" * number} for number in range(3)]
    assert await discarded(table.open()) == 0
    assert table.left_over() == []


# -- one format or the other -----------------------------------------------------------------------------------------

delta = pytest.mark.parametrize("table", ["delta"], indirect=True)
parquet = pytest.mark.parametrize("table", ["parquet"], indirect=True)


@FORMATS
async def test_many_files_of_about_the_asked_size(table: EmulatedTable) -> None:
    columns = (LakeColumn("id", "int64"), LakeColumn("noise", "binary"))
    options = PartOptions("snappy", file_bytes=400_000, row_group_bytes=100_000)
    rows = [{"id": number, "noise": os.urandom(1000)} for number in range(2000)]
    opened = table.open()
    parts = await table.write(opened, columns, rows, options=options)
    assert 4 <= len(parts) <= 6
    assert all(300_000 < part.size_bytes < 600_000 for part in parts[:-1])
    assert sum(part.rows for part in parts) == 2000
    await table.commit(opened, columns, parts)
    assert table.rows("id") == rows
    groups = [pq.ParquetFile(file).metadata for file in table.files()]
    assert all(meta.row_group(at).total_byte_size < 130_000 for meta in groups for at in range(meta.num_row_groups))
    for part, file in zip(parts, sorted(table.files()), strict=True):
        assert hashlib.md5(file.read_bytes()).hexdigest() == part.md5


@FORMATS
async def test_without_rows_there_is_a_table_with_columns(table: EmulatedTable) -> None:
    opened = table.open()
    parts = await table.write(opened, ORDERS, [])
    assert [part.rows for part in parts] == [0]
    await table.commit(opened, ORDERS, parts)
    assert len(table.files()) == (1 if table.format == "parquet" else 0)
    assert table.left_over() == []
    assert (await table.open().state()).columns == ORDERS
    assert table.rows() == []
    assert [row async for batch in table.open().read() for row in batch.to_pylist()] == []


@FORMATS
async def test_what_is_given_up_or_forgotten_goes(table: EmulatedTable) -> None:
    opened = table.open()
    writer = opened.writer("0", ORDERS, SMALL)
    await writer.write(pa.record_batch({"id": [1], "text": ["a"]}))
    await writer.abort()
    forgotten = await table.write(opened, ORDERS, [{"id": 2, "text": "b"}])
    kept = await table.write(opened, ORDERS, [{"id": 3, "text": "c"}], name="kept")
    other = await table.write(table.open(owner="another"), ORDERS, [{"id": 4, "text": "d"}])
    assert await discarded(table.open(run="later"), [part.path for part in kept]) == len(forgotten)
    await table.commit(table.open(run="later"), ORDERS, kept, run="later")
    await table.commit(table.open(owner="another"), ORDERS, other, run="another")
    assert table.rows("id") == [{"id": 3, "text": "c"}, {"id": 4, "text": "d"}]
    assert await discarded(table.open()) == 0
    assert table.left_over() == []
    state = await table.open(owner="another").state()
    assert (state.applied, (await table.open().state()).applied) == (0, 0)


@FORMATS
async def test_a_column_that_is_never_null_is_held_to_it(table: EmulatedTable) -> None:
    with pytest.raises(ItemError) as caught:
        await table.write(table.open(), ORDERS, [{"id": None, "text": "a"}])
    assert caught.value.code == "null_in_not_null"


@FORMATS
async def test_a_reader_takes_columns_and_a_range(table: EmulatedTable) -> None:
    opened = table.open()
    for number in range(3):
        rows = [{"id": 10 * number + one, "text": str(one)} for one in range(10)]
        parts = await table.write(opened, ORDERS, rows)
        await table.commit(opened, ORDERS, parts, number=number, run=f"run-{number}")

    async def ids(within: KeyRange) -> list[int]:
        read = table.open().read(["id"], within=within)
        return sorted([row["id"] async for batch in read for row in batch.to_pylist()])

    assert await ids(KeyRange("id", "8", "12")) == [8, 9, 10, 11]
    assert await ids(KeyRange("id", None, "2", nulls=True)) == [0, 1]
    assert await ids(KeyRange("id", "29", None)) == [29]
    assert await ids(KeyRange("id", None, None, nulls=True)) == list(range(30))
    assert await ids(KeyRange("text", None, None, nulls=True)) == list(range(30))
    with pytest.raises(Unsupported) as caught:
        await ids(KeyRange("text", "a", None))
    assert caught.value.code == "range_of_text"


@delta
async def test_columns_come_and_types_grow(table: EmulatedTable) -> None:
    opened = table.open()
    steps: list[tuple[tuple[LakeColumn, ...], Row]] = [
        ((LakeColumn("a", "int16", False), LakeColumn("n", "decimal128(9, 2)"), LakeColumn("f", "float")),
         {"a": 1, "n": Decimal("1.25"), "f": 0.1}),
        ((LakeColumn("a", "int16"), LakeColumn("n", "decimal128(9, 2)"), LakeColumn("f", "float"),
          LakeColumn("t", "timestamp[us]", False)), {"a": None, "n": None, "f": None, "t": NAIVE_MAX}),
        ((LakeColumn("a", "int64"), LakeColumn("n", "decimal128(38, 4)"), LakeColumn("f", "double"),
          LakeColumn("t", "timestamp[us]")),
         {"a": 2**40, "n": Decimal("99999999999999999999.9999"), "f": 0.1, "t": None}),
    ]  # fmt: skip
    for number, (columns, row) in enumerate(steps):
        parts = await table.write(opened, columns, [row])
        done = await table.commit(opened, columns, parts, number=number)
        assert done.inserted == 1
    single = struct.unpack("f", struct.pack("f", 0.1))[0]
    assert table.rows("a NULLS FIRST") == [
        {"a": None, "n": None, "f": None, "t": NAIVE_MAX},
        {"a": 1, "n": Decimal("1.2500"), "f": single, "t": None},
        {"a": 2**40, "n": Decimal("99999999999999999999.9999"), "f": 0.1, "t": None},
    ]
    state = await table.open().state()
    assert [(one.type, one.nullable) for one in state.columns] == [
        ("int64", True), ("decimal128(38, 4)", True), ("double", True), ("timestamp[us]", True)
    ]  # fmt: skip
    # A column that the source has no longer stays.
    fewer = (LakeColumn("a", "int64"),)
    await table.commit(opened, fewer, await table.write(opened, fewer, [{"a": 4}]), number=3)
    assert table.rows()[-1] == {"a": 4, "n": None, "f": None, "t": None}
    # And a table that is written anew has the columns that are asked for.
    anew = (LakeColumn("a", "string"),)
    await table.commit(opened, anew, await table.write(opened, anew, [{"a": "x"}]), number=4, disposition="replace")
    assert table.rows() == [{"a": "x"}]
    with pytest.raises(Unsupported) as caught:
        await table.commit(opened, fewer, await table.write(opened, fewer, [{"a": 4}]), number=5)
    assert caught.value.code == "schema_conflict"
    assert "'a' is string" in caught.value.detail
    assert table.rows() == [{"a": "x"}]


@delta
async def test_a_writer_that_was_faster(table: EmulatedTable) -> None:
    """Somebody else commits each time that this app is about to; both get what they wanted."""
    opened: Any = table.open()
    await table.commit(opened, ORDERS, await table.write(opened, ORDERS, [{"id": 0, "text": "a"}]))
    others = itertools.count(100)
    make = opened._make

    async def overtaken(work: Any, stamp: Any) -> None:
        if (number := next(others)) < 103:
            write_deltalake(
                str(table.folder), pa.table({"id": [number], "text": ["foreign"]}), mode="append", schema_mode="merge"
            )
        await make(work, stamp)

    opened._make = overtaken
    done = await table.commit(opened, ORDERS, await table.write(opened, ORDERS, [{"id": 1, "text": "b"}]), number=1)
    assert (done.already, done.version) == (False, 4)
    assert [row["id"] for row in table.rows("id")] == [0, 1, 100, 101, 102]
    others = itertools.count(101)
    parts = await table.write(opened, CHANGES, [{"id": 101, "text": "mine", "_operation": "update", "_order": 0}],
                              changes=True)  # fmt: skip
    done = await table.commit(opened, ORDERS, parts, number=2, disposition="merge", key=("id",))
    assert {"id": 101, "text": "mine", "_deleted": False, "_deleted_at": None} in table.rows()
    assert done.updated == 2, "one of them from after the first attempt"
    others = itertools.count(-1000)
    before = table.rows("id")
    parts = await table.write(opened, CHANGES, [{"id": 1, "text": "x", "_operation": "update", "_order": 0}],
                              changes=True)  # fmt: skip
    with pytest.raises(TargetConflict):
        await table.commit(opened, ORDERS, parts, number=3, disposition="merge", key=("id",))
    assert [row for row in table.rows("id") if row["id"] >= 0] == before, "of ours, nothing"
    assert (await table.open().state()).applied == 2
    assert len(table.left_over()) == len(parts), "but the changes, for the next attempt"
    done = await table.commit(table.open(), ORDERS, parts, number=3, disposition="merge", key=("id",))
    assert done.updated == 1
    assert table.left_over() == []


@delta
@pytest.mark.parametrize(
    ("configuration", "partition_by", "said"),
    [
        ({"delta.enableDeletionVectors": "true"}, None, "deletionVectors"),
        ({"delta.enableChangeDataFeed": "true"}, None, "version"),
        ({}, ["text"], "partitioned by text"),
    ],
)
async def test_tables_that_this_app_must_not_write(
    table: EmulatedTable, configuration: dict[str, str], partition_by: list[str] | None, said: str
) -> None:
    DeltaTable.create(
        str(table.folder), Schema.from_arrow(pa.schema([("id", pa.int64()), ("text", pa.string())])),
        configuration=configuration, partition_by=partition_by,
    )  # fmt: skip
    before = sorted((table.folder / "_delta_log").iterdir())
    opened = table.open()
    assert (await opened.state()).exists
    with pytest.raises(Unsupported):
        _ = [batch async for batch in opened.read()]
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    for disposition in ("append", "replace", "merge"):
        with pytest.raises(Unsupported) as caught:
            await table.commit(opened, ORDERS, parts, disposition=disposition, key=("id",))
        assert caught.value.code == "table_features"
        assert said in caught.value.detail
    assert sorted((table.folder / "_delta_log").iterdir()) == before
    assert await discarded(table.open()) == 1


@delta
async def test_a_table_that_takes_only_new_rows(table: EmulatedTable) -> None:
    DeltaTable.create(
        str(table.folder), Schema.from_arrow(pa.schema([("id", pa.int64()), ("text", pa.string())])),
        configuration={"delta.appendOnly": "true"},
    )  # fmt: skip
    opened = table.open()
    await table.commit(opened, ORDERS, await table.write(opened, ORDERS, [{"id": 1, "text": "a"}]))
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "b"}])
    for disposition in ("replace", "merge"):
        with pytest.raises(Unsupported, match="appendOnly"):
            await table.commit(opened, ORDERS, parts, number=1, disposition=disposition, key=("id",))
    assert table.rows() == [{"id": 1, "text": "a"}]


@delta
async def test_a_column_of_somebody_else_that_cannot_be_written_again(table: EmulatedTable) -> None:
    foreign = pa.table({"id": [1], "text": ["a"], "tags": [["x", "y"]]})
    write_deltalake(str(table.folder), foreign)
    opened = table.open()
    await table.commit(opened, ORDERS, await table.write(opened, ORDERS, [{"id": 2, "text": "b"}]))
    assert table.rows("id") == [
        {"id": 1, "text": "a", "tags": ["x", "y"]},
        {"id": 2, "text": "b", "tags": None},
    ]
    parts = await table.write(opened, ORDERS, [{"id": 2, "text": "c"}], changes=True)
    with pytest.raises(Unsupported, match="'tags'") as caught:
        await table.commit(opened, ORDERS, parts, number=1, disposition="merge", key=("id",), deletes="hard")
    assert caught.value.code == "table_features"
    assert table.rows("id")[1]["text"] == "b"


@delta
async def test_checkpoints_are_made_and_read(table: EmulatedTable) -> None:
    for number in range(23):
        opened = table.open()
        parts = await table.write(opened, ORDERS, [{"id": number, "text": None}])
        await table.commit(opened, ORDERS, parts, number=number, position={"n": number})
    assert len(list((table.folder / "_delta_log").glob("*.checkpoint.parquet"))) == 2
    for old in sorted((table.folder / "_delta_log").glob("*.json"))[:15]:
        old.unlink()
    state = await table.open().state()
    assert (state.applied, state.position) == (22, {"n": 22})
    assert len(table.rows()) == 23
    assert table.lake.emulators.stats()["onelake"].get("unknown") is None, "no batch of deletes"


@delta
async def test_statistics_are_bounds(table: EmulatedTable) -> None:
    opened = table.open()
    parts = await table.write(opened, EVERY_TYPE, ROWS)
    stats = json.loads(parts[0].stats, parse_float=Decimal)
    assert stats["numRecords"] == 3
    assert set(stats["nullCount"].values()) == {1}
    low, high = stats["minValues"], stats["maxValues"]
    assert (low["i8"], high["i8"]) == (-(2**63), 2**53 + 1)
    assert (low["tz"], high["tz"]) == ("1969-12-31T23:59:59.999Z", "2024-02-29T12:00:00.001Z")
    assert low["t"] == "0001-01-01T00:00:00.000"
    assert "t" not in high, "the year 10000 cannot be written"
    assert (low["s"], "s" in high) == ("", False), "nothing is greater than the greatest characters"
    assert (low["n"], high["n"]) == (Decimal("-0.0001"), Decimal("9999999999999999999999999999999999.9999"))
    assert "f4" not in high, "there is no infinity in JSON"
    assert not {"b", "x"} & set(low)
    text = (LakeColumn("s", "string"), LakeColumn("f", "double"))
    [part] = await table.write(opened, text, [{"s": "\ud7ff" * 50, "f": 1.0}, {"s": "z" * 32 + "a", "f": float("nan")}])
    high = json.loads(part.stats)["maxValues"]
    assert high == {"s": "\ud7ff" * 31 + "\ue000"}
    assert json.loads(part.stats)["minValues"] == {"s": "z" * 32}


@settings(max_examples=150, deadline=None)
@given(
    values=st.lists(st.text(max_size=40), min_size=1, max_size=5),
    moments=st.lists(st.integers(-62_135_596_800_000_000, 253_402_300_799_999_999), min_size=1, max_size=5),
)
def test_no_value_lies_outside_of_its_bounds(values: list[str], moments: list[int]) -> None:
    schema = pa.schema([("s", pa.string()), ("t", pa.timestamp("us", "UTC"))])
    found = FileStatistics(schema)
    for value, moment in itertools.zip_longest(values, moments):
        found.add(pa.table([[value], pa.array([moment], pa.int64()).cast(pa.timestamp("us", "UTC"))], schema=schema))
    stats = json.loads(found.as_json())
    assert all(stats["minValues"]["s"] <= value for value in values)
    if "s" in stats["maxValues"]:
        assert all(value <= stats["maxValues"]["s"] for value in values)
    low = datetime.fromisoformat(stats["minValues"]["t"]) - datetime(1970, 1, 1, tzinfo=UTC)
    assert low // timedelta(microseconds=1) <= min(moments)
    if "t" in stats["maxValues"]:
        high = datetime.fromisoformat(stats["maxValues"]["t"]) - datetime(1970, 1, 1, tzinfo=UTC)
        assert max(moments) <= high // timedelta(microseconds=1) < max(moments) + 1000


@parquet
async def test_two_commits_of_one_run_and_a_pointer_of_somebody_else(table: EmulatedTable) -> None:
    for number in range(2):
        opened = table.open()
        parts = await table.write(opened, ORDERS, [{"id": number, "text": "a"}])
        await table.commit(opened, ORDERS, parts, number=number)
        assert [row async for batch in opened.read_parts(parts) for row in batch.to_pylist()] == [
            {"id": number, "text": "a"}
        ]
    assert sorted(entry.name for entry in table.folder.iterdir()) == [
        "_current.json", "_staging-5e8c9902-run-1", "run-1", "run-1-1"
    ]  # fmt: skip
    assert [row["id"] for row in table.rows("id")] == [0, 1]
    with pytest.raises(Unsupported, match="delta"):
        await table.commit(table.open(), ORDERS, [], number=2, disposition="merge", key=("id",))
    (table.folder / "_current.json").write_text("[]")
    with pytest.raises(Unsupported) as caught:
        await table.open().state()
    assert caught.value.code == "foreign_table"


@parquet
async def test_a_file_that_is_not_what_was_written_is_not_committed(table: EmulatedTable) -> None:
    opened = table.open()
    [part] = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    with pytest.raises((TargetConflict, IntegrityMismatch)):
        await table.commit(opened, ORDERS, [replace(part, etag="0x1", md5="0" * 32)])
    assert table.rows() == []
    assert (await table.open().state()).applied == -1
    await table.commit(opened, ORDERS, [part])
    assert len(table.rows()) == 1


@FORMATS
async def test_a_file_that_is_gone_or_another_by_now_is_not_committed(table: EmulatedTable) -> None:
    opened = table.open()
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    await discarded(opened)
    with pytest.raises(ItemError):
        await table.commit(table.open(), ORDERS, parts)
    assert table.rows() == []
    assert not (await table.open().state()).exists


@FORMATS
async def test_a_commit_of_another_plan_is_not_taken_for_this_one(table: EmulatedTable) -> None:
    """A worker of a run that was given up may still commit, under the number that the next run has chosen as well."""
    opened = table.open()
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "given up"}])
    await table.commit(opened, ORDERS, parts, token="one")
    later = table.open(run="later")
    parts = await table.write(later, ORDERS, [{"id": 2, "text": "later"}])
    with pytest.raises(TargetConflict) as refused:
        await table.commit(later, ORDERS, parts, run="later", token="two")
    assert refused.value.code == "overtaken"
    again = await table.commit(opened, ORDERS, parts, token="one")
    assert again.already
    assert [row["id"] for row in table.rows()] == [1]


@FORMATS
async def test_what_was_left_over_and_is_committed_meanwhile_stays(table: EmulatedTable) -> None:
    opened = table.open()
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    left_over = await table.open(run="later").leftovers()
    await table.commit(opened, ORDERS, parts)
    assert await table.open(run="later").remove(left_over) == 0
    assert table.rows() == [{"id": 1, "text": "a"}]


@parquet
@pytest.mark.parametrize("at", ["_gather", "_write_record"])
async def test_a_file_that_is_cleared_away_during_its_commit_is_missed(
    table: EmulatedTable, at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a later run, while a worker of one that was given up is still at work."""
    opened = table.open()
    kind = type(opened)
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}], name="1")
    parts += await table.write(opened, ORDERS, [{"id": 2, "text": "b"}], name="2")
    make_it = getattr(kind, at)

    async def with_another(*given: Any) -> Any:
        if at == "_gather":
            await make_it(*given)
        await discarded(table.open(run="later"), [parts[0].path])
        if at != "_gather":
            await make_it(*given)

    monkeypatch.setattr(kind, at, with_another)
    with pytest.raises(ItemError):
        await table.commit(opened, ORDERS, parts)
    monkeypatch.undo()
    assert table.rows() == []
    assert (await table.open().state()).applied == -1


@parquet
async def test_a_second_delivery_takes_no_record_away_from_the_first(
    table: EmulatedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is about to rename the folder, the second has looked at what is in it."""
    opened = table.open()
    kind = type(opened)
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    gather, rename = kind._gather, LakeTree.rename_folder  # type: ignore[attr-defined]
    is_near, is_gathered = asyncio.Event(), asyncio.Event()

    async def renamed(*given: Any) -> None:
        if asyncio.current_task() is first:
            is_near.set()
            await is_gathered.wait()
        await rename(*given)

    async def gathered(*given: Any) -> None:
        await gather(*given)
        if asyncio.current_task() is not first:
            is_gathered.set()
            await asyncio.wait([first])

    monkeypatch.setattr(LakeTree, "rename_folder", renamed)
    monkeypatch.setattr(kind, "_gather", gathered)
    first = asyncio.create_task(table.commit(opened, ORDERS, parts))
    await is_near.wait()
    again = await table.commit(table.open(), ORDERS, parts)
    assert (again.already, (await first).already) == (True, False)
    assert table.rows() == [{"id": 1, "text": "a"}]
    await discarded(table.open())
    assert table.left_over() == []


@parquet
async def test_two_deliveries_write_the_record_of_a_commit_at_once(
    table: EmulatedTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they say of the time that was needed differs."""
    opened = table.open()
    parts = await table.write(opened, ORDERS, [{"id": 1, "text": "a"}])
    put, rename, at_record = LakeTree.put, LakeTree.rename_folder, asyncio.Barrier(2)
    winner: list[Any] = []

    async def put_at_once(tree: LakeTree, path: str, data: bytes, **how: Any) -> Any:
        if path.endswith("/_commit.json"):
            await at_record.wait()
            done = await put(tree, path, data, **how)
            winner.append(asyncio.current_task())
            return done
        return await put(tree, path, data, **how)

    async def renamed(*given: Any) -> None:
        if asyncio.current_task() is winner[0]:
            await asyncio.wait([one for one in deliveries if one is not winner[0]])
        await rename(*given)

    monkeypatch.setattr(LakeTree, "put", put_at_once)
    monkeypatch.setattr(LakeTree, "rename_folder", renamed)
    deliveries = [
        asyncio.create_task(table.commit(table.open(), ORDERS, parts, position={"seconds": number}))
        for number in range(2)
    ]
    found = await asyncio.gather(*deliveries)
    assert sorted(one.already for one in found) == [False, True]
    assert table.rows() == [{"id": 1, "text": "a"}]


@FORMATS
async def test_a_table_that_another_job_has_made_meanwhile_is_left_alone(table: EmulatedTable) -> None:
    ours, theirs = table.open(), table.open(owner="theirs", run="their-run")
    parts = await table.write(ours, ORDERS, [{"id": 1, "text": "ours"}])
    their_parts = await table.write(theirs, ORDERS, [{"id": 2, "text": "theirs"}])
    await table.commit(theirs, ORDERS, their_parts, run="their-run", disposition="replace", only_new=True)
    with pytest.raises(TargetConflict) as refused:
        await table.commit(ours, ORDERS, parts, disposition="replace", only_new=True)
    assert refused.value.code == "target_exists"
    assert [row["id"] for row in table.rows()] == [2]
    again = table.open(owner="theirs", run="their-next")
    parts = await table.write(again, ORDERS, [{"id": 3, "text": "theirs"}])
    await table.commit(again, ORDERS, parts, number=1, run="their-next", disposition="replace", only_new=True)
    assert [row["id"] for row in table.rows()] == [3]
    assert await discarded(ours) == 1


async def test_of_two_jobs_that_make_one_table_of_parquet_files_at_once_one_is_refused(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have found that nothing is there; the rename that comes first makes the table."""
    table = EmulatedTable(lake, "parquet")
    ours, theirs = table.open(), table.open(owner="theirs", run="their-run")
    parts = await table.write(ours, ORDERS, [{"id": 1, "text": "ours"}])
    their_parts = await table.write(theirs, ORDERS, [{"id": 2, "text": "theirs"}])
    rename = LakeTree.rename_folder
    is_through = False

    async def held(tree: LakeTree, old: str, new: str) -> None:
        nonlocal is_through
        if not is_through:
            is_through = True
            await table.commit(theirs, ORDERS, their_parts, run="their-run", disposition="replace", only_new=True)
        await rename(tree, old, new)

    monkeypatch.setattr(LakeTree, "rename_folder", held)
    with pytest.raises(TargetConflict) as refused:
        await table.commit(ours, ORDERS, parts, disposition="replace", only_new=True)
    assert refused.value.code == "target_exists"
    assert [row["id"] for row in table.rows()] == [2]
    assert not (table.folder / "run-1").exists()
