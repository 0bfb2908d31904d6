"""Decimals and times that take a short way through PostgreSQL and Arrow arrive, and add up, as on the long one."""

from datetime import datetime, timedelta
from decimal import Decimal

import pyarrow as pa
import pytest

from shared.clients.sql.conform import conform
from shared.engine.sql.sums import Sums
from shared.errors import Unsupported
from shared.ports.tables import LakeColumn, Selection
from tests.sql.databases import World

DECIMALS = {
    "numeric(18, 4)": ["99999999999999.9999", "-99999999999999.9999", "0.0001", "-0.0001", "0", None, "12.5"],
    "numeric(18, 0)": ["999999999999999999", "-999999999999999999", "1", None],
    "numeric(18, 18)": ["0.999999999999999999", "-0.000000000000000001", None],
    "numeric(19, 4)": ["999999999999999.9999", "-0.0001", None],
    "numeric(1, 0)": ["9", "-9", None],
}
TIMES = [
    datetime(1930, 1, 1) + timedelta(microseconds=step)  # noqa: DTZ001 - as a timestamp without a zone is
    for step in (-1, 0, 1, 999_999, 123_457)
] + [
    datetime(2030, 1, 1) + timedelta(microseconds=step)  # noqa: DTZ001
    for step in (-999_999, -1, 0, 1, 333_333)
]


@pytest.fixture
def postgresql(world: World) -> World:
    if world.dialect != "postgresql":
        pytest.skip("is about PostgreSQL alone")
    return world


@pytest.mark.parametrize("declared", DECIMALS)
def test_decimals(postgresql: World, declared: str) -> None:
    values = DECIMALS[declared]
    postgresql.run(f"CREATE TABLE d (id int PRIMARY KEY, v {declared})")
    rows = ", ".join(f"({row}, {value or 'NULL'})" for row, value in enumerate(values))
    postgresql.run(f"INSERT INTO d VALUES {rows}")
    shape = postgresql.shape("d")
    with postgresql.database.sessions(1, consistent=True) as (session,):
        batches = list(session.batches(Selection(shape, order_by=("id",)), batch_bytes=1 << 20))
        summary = session.summary(Selection(shape), checksums=True)
    table = pa.Table.from_batches(batches)
    assert str(table.schema.field("v").type) == "decimal128" + declared.removeprefix("numeric")
    assert table.column("v").to_pylist() == [None if value is None else Decimal(value) for value in values]
    added = Sums(shape.lake_columns, summary.definition)
    for batch in batches:
        added.add(batch)
    assert added.result() == summary.columns


def test_not_a_number_has_no_place_in_a_decimal(postgresql: World) -> None:
    postgresql.run("CREATE TABLE d (id int PRIMARY KEY, v numeric(5, 2))", "INSERT INTO d VALUES (1, 'NaN')")
    shape = postgresql.shape("d")
    with postgresql.database.sessions(1, consistent=True) as (session,), pytest.raises(Unsupported) as refused:
        list(session.batches(Selection(shape), batch_bytes=1 << 20))
    assert refused.value.code == "value_unfit"


@pytest.mark.parametrize("declared", ["timestamp", "timestamptz"])
def test_microseconds_add_up_on_both_sides_of_what_a_double_holds(postgresql: World, declared: str) -> None:
    spread = [datetime(1931, 5, 4) + timedelta(days=97 * step, microseconds=7919 * step) for step in range(370)]  # noqa: DTZ001
    zone = "+00" if declared == "timestamptz" else ""
    rows = ", ".join(f"({row}, '{at.isoformat()}{zone}')" for row, at in enumerate([*TIMES, *spread]))
    postgresql.run(f"CREATE TABLE t (id int PRIMARY KEY, v {declared})", f"INSERT INTO t VALUES {rows}")
    shape = postgresql.shape("t")
    with postgresql.database.sessions(1, consistent=True) as (session,):
        batches = list(session.batches(Selection(shape), batch_bytes=1 << 20))
        summary = session.summary(Selection(shape), checksums=True)
    added = Sums(shape.lake_columns, summary.definition)
    for batch in batches:
        added.add(batch)
    assert added.result() == summary.columns


def test_an_integer_for_a_decimal_is_its_digits() -> None:
    batch = pa.record_batch([pa.array([1, None, -25, 10**18 - 1], pa.int64()).slice(1)], names=["v"])
    (column,) = conform(batch, [LakeColumn("v", "decimal128(18, 2)")], "t").columns
    assert column.to_pylist() == [None, Decimal("-0.25"), Decimal("9999999999999999.99")]
