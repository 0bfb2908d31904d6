"""The same rows in a database and in the lake: sums and digests agree for every type, and tell what does not."""

from __future__ import annotations

import random
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any, Literal

import pytest

from shared.engine.sql.sessions import opened
from shared.engine.sql.two_sides import Difference, TwoSides, comparable
from shared.ports.tables import KeyRange, LakeColumn, Selection, TableShape
from tests.sql.databases import BATCH_BYTES, World
from tests.support.emulated import Lake
from tests.support.lake_tables import SMALL, EmulatedTable

ROWS = 3_000
# Reconciling cuts by these.
CUT_BY = re.compile(r"int\d\d|date32|timestamp.*|decimal128.*")
DECLARED = {
    "sqlite": "b BOOLEAN, i INTEGER, f REAL, t TEXT, x BLOB, d DATE, ts DATETIME",
    "postgresql": (
        "b boolean, i bigint, f double precision, t text, x bytea, d date, ts timestamp, s smallint, r real, "
        "n numeric(38, 10), z timestamptz"
    ),
}
FIRST = date(1, 1, 1)
LETTERS = "aZ09 '\"\\%\n\táßüœ€漢字😀𝒳"


def rows_for(world: World) -> list[tuple[Any, ...]]:
    """The same for each run: numbers at both ends, times before 1970, text of all planes, and nulls."""
    drawn = random.Random(7)

    def maybe(value: Any) -> Any:
        return None if drawn.random() < 0.1 else value

    def number(bits: int) -> int:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        return drawn.choice([low, high, 0, -1, 2**31 - 1 if bits > 32 else 1, drawn.randint(low, high)])

    found = []
    for row in range(ROWS):
        moment = datetime(1, 1, 1) + timedelta(microseconds=drawn.randrange(9_990 * 365 * 86_400 * 10**6))  # noqa: DTZ001
        day = FIRST + timedelta(days=drawn.randrange(9_990 * 365))
        text = "".join(drawn.choices(LETTERS, k=drawn.choice([0, 1, 7, 80, 300])))
        values = [drawn.random() < 0.5, number(64), drawn.choice([0.0, 1.5e300, -2.5, drawn.gauss(0, 1e6)]), text,
                  drawn.randbytes(drawn.choice([0, 3, 90]))]  # fmt: skip
        if world.dialect == "sqlite":
            values += [day.isoformat(), moment.isoformat(" ")]
        else:
            wide = Decimal(drawn.randint(-(10**38) + 1, 10**38 - 1)).scaleb(-10, Context(prec=38))
            real = drawn.choice([-0.0, 1.0e-45, float("nan"), drawn.random()])
            values += [day, moment, number(16), real, wide, f"{moment.isoformat(' ')}+00"]
        found.append((row, *(maybe(value) for value in values)))
    return found


async def copied(world: World, table: EmulatedTable) -> None:
    """The rows of the database into the lake."""
    opened_table, shape = table.open(), world.shape("t")
    async with opened(world.database, 1, consistent=True, shape=shape) as (session,):
        writer = opened_table.writer("0", shape.lake_columns, SMALL)
        async for batch in session.batches(Selection(shape), BATCH_BYTES):
            await writer.write(batch)
        await table.commit(opened_table, shape.lake_columns, await writer.close(), disposition="replace")


@asynccontextmanager
async def sides_of(world: World, table: EmulatedTable) -> AsyncIterator[TwoSides]:
    shape: TableShape = replace(world.shape("t"), key=("id",))
    columns = comparable(shape.lake_columns, shape.lake_columns, {one.name: one.name for one in shape.lake_columns})
    async with opened(world.database, 1, consistent=True, shape=shape) as (session,):
        yield TwoSides(session, table.open(), shape, shape.lake_columns, columns, [], by_key=True, window=None)


@pytest.fixture
def filled(world: World) -> World:
    world.run(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {DECLARED[world.dialect]})")
    world.insert("t", rows_for(world))
    return world


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_copy_is_equal_by_sums_and_by_rows_in_every_range(
    filled: World, lake: Lake, form: Literal["parquet", "delta"]
) -> None:
    table = EmulatedTable(lake, form)
    await copied(filled, table)
    async with sides_of(filled, table) as sides:
        for within in (None, KeyRange("id", None, "1000", nulls=True), KeyRange("id", "1000", "2999")):
            assert await sides.is_equal(within, counted=False), within
            assert await sides.difference(within) is None, within


async def test_ranges_that_the_database_cuts_are_the_same_rows_in_the_lake(filled: World, lake: Lake) -> None:
    table = EmulatedTable(lake, "delta")
    await copied(filled, table)
    shape = filled.shape("t")
    columns = [one for one in shape.columns if CUT_BY.fullmatch(one.lake[0].type)]
    assert len(columns) >= (2 if filled.dialect == "sqlite" else 6)
    async with sides_of(filled, table) as sides:
        for column in columns:
            async with opened(filled.database, 1, consistent=True, shape=shape) as (session,):
                ranges = await session.call(session.session.cut, shape, column.name, 700)
            assert len(ranges) > 2, column
            for within in ranges:
                assert await sides.is_equal(within, counted=True), within
        assert sides.lake_rows == sides.source_rows == len(columns) * ROWS


async def test_every_column_tells_when_a_value_is_another(filled: World, lake: Lake) -> None:
    columns = [one.partition(" ")[0] for one in DECLARED[filled.dialect].replace("(38, 10)", "").split(", ")]
    table = EmulatedTable(lake, "delta")
    await copied(filled, table)
    for number, column in enumerate(columns):
        filled.run(
            f"UPDATE t SET {column} = (SELECT {column} FROM t AS o WHERE o.{column} <> t.{column} LIMIT 1) "
            f"WHERE id = (SELECT MIN(id) FROM t AS o WHERE o.{column} IS NOT NULL AND id > {number * 100})"
        )
    async with sides_of(filled, table) as sides:
        assert not await sides.is_equal(None, counted=False)
        found = await sides.difference(None)
        assert isinstance(found, Difference)
        assert (len(found.missing), len(found.different), len(found.extra)) == (0, len(columns), 0)
        assert set(found.columns) == set(columns)


async def test_what_others_write_meanwhile_is_no_difference(filled: World, lake: Lake) -> None:
    table = EmulatedTable(lake, "delta")
    await copied(filled, table)
    async with sides_of(filled, table) as sides:
        filled.run("DELETE FROM t WHERE id < 100", "UPDATE t SET i = 7 WHERE id = 1000")
        assert await sides.is_equal(None, counted=False)
        assert await sides.difference(None) is None
    async with sides_of(filled, table) as sides:
        found = await sides.difference(None)
        assert found is not None
        assert (len(found.missing), len(found.different), len(found.extra)) == (0, 1, 100)


def test_types_are_compared_where_one_holds_the_other() -> None:
    source = [LakeColumn("a", "int32"), LakeColumn("b", "int64"), LakeColumn("c", "string"), LakeColumn("d", "date32")]
    lake = [LakeColumn("A", "int64"), LakeColumn("b", "int16"), LakeColumn("c", "binary")]
    found = comparable(source, lake, {"a": "A", "b": "b", "c": "c", "d": "d"})
    assert [(one.source.name, one.lake_name, one.type) for one in found] == [("a", "A", "int64"), ("b", "b", "int64")]
