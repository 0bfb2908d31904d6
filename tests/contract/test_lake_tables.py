"""The contract of a table in the lake, held by both formats against the emulated service; read back by others."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal

import pytest

from shared.ports.tables import LakeColumn
from tests.support.emulated import Lake
from tests.support.lake_tables import EmulatedTable

ORDERS = (LakeColumn("id", "int64", False), LakeColumn("text", "string"))
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
    assert (again.already, again.inserted) == (True, 0)
    second = await table.write(opened, ORDERS, [{"id": 2, "text": "b"}])
    await table.commit(opened, ORDERS, second, number=1, run="run-2")
    assert table.rows() == [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    third = await table.write(table.open(run="run-3"), ORDERS, [{"id": 3, "text": None}])
    done = await table.commit(table.open(run="run-3"), ORDERS, third, number=2, run="run-3", disposition="replace")
    assert (done.inserted, done.deleted) == (1, 2)
    assert table.rows() == [{"id": 3, "text": None}]
    assert (await table.commit(table.open(), ORDERS, second, number=1, run="run-2")).already
    assert table.rows() == [{"id": 3, "text": None}]
    assert await table.open().discard() == 0


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
    assert await table.open().discard() == 0
    assert table.left_over() == []
