"""PostgreSQL's own checksums: what its functions give is what the lake's side computes, or they are not used."""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from shared.clients.sql.postgresql import PROBED, PostgresqlDialect
from shared.engine.sql.sums import Sums, arrow_type
from shared.errors import Unsupported
from shared.model.sql_job import Types
from shared.policy.sql.checksum import LOOKUP3, MD5_UTF_8, WHOLE, Definition
from shared.ports.tables import KeyRange, LakeColumn, Selection
from tests.sql.databases import World, totals
from tests.support.checksums import integer_of
from tests.support.postgres import PostgresDatabase, odbc_missing


@pytest.fixture(params=["native", "odbc"])
def world(request: pytest.FixtureRequest, postgres: PostgresDatabase) -> World:
    return _world(postgres, request.param)


def _world(postgres: PostgresDatabase, transport: str = "native") -> World:
    if transport == "odbc" and (missing := odbc_missing()):
        pytest.skip(missing)
    return World("postgresql", "public", postgres.url if transport == "native" else postgres.odbc, postgres.connect)


_KINDS = (
    "id int PRIMARY KEY, b bool, i2 int2, i4 int4, i8 int8, d date, t timestamp, z timestamptz, n numeric(12, 3), "
    "w numeric(38, 10), f float4, g float8, s text, c char(7), u uuid, j jsonb, y bytea"
)
_VALUES = (
    "n, n % 2 = 0, n - 50, n * 7919, n * 92233720368547758, date '0001-01-01' + n * 30000, "
    "timestamp '0001-01-01' + n * interval '31415926.535897 s', timestamptz '1969-12-31Z' + n * interval '1.000001 s', "
    "(n - 50) * 1234567.891, (n - 50) * 12345678901234567890.1234567891, (n - 50) / 3.0, "
    "CASE n WHEN 7 THEN 'NaN' WHEN 8 THEN '-0' WHEN 9 THEN '-infinity' WHEN 10 THEN 'infinity' ELSE (n - 50) / 7.0 END"
    ", repeat('0aé€😀', n), n::text, "
    "md5(n::text)::uuid, jsonb_build_object('n', n), convert_to(repeat('0aé€😀', 2 * n), 'UTF8')"
)


def _fill(world: World, name: str) -> None:
    """Text of 0 to 1,200 bytes, binary to 2,400, with a row of long ones and one without any value."""
    numbers = ", NULL" * 11
    long = f"SELECT -2{numbers}, repeat('ß', 300000), NULL, NULL, NULL, convert_to(repeat('ß', 300000), 'UTF8')"
    world.run(
        f"CREATE TABLE {name} ({_KINDS})",
        f"INSERT INTO {name} SELECT {_VALUES} FROM generate_series(0, 100) n",
        f"INSERT INTO {name} (id) VALUES (-1)",
        f"INSERT INTO {name} {long}",
    )


def test_what_hashes_are_expected_to_be_is_what_the_lakes_side_computes() -> None:
    texts = ["ß" * WHOLE if n == 40 else ("0aé€😀" * 8)[:n] for n in range(41)]
    odd = {0: math.nan, 1: -0.0, 2: math.inf}
    values: dict[str, list[Any]] = {
        "string": texts,
        "binary": [text.encode() for text in texts],
        "double": [odd.get(n, (n - 20) / 7) for n in range(41)],
        "timestamp[us]": [
            datetime(2000, 1, 1) + (n - 20) * timedelta(microseconds=123456789123457)  # noqa: DTZ001
            for n in range(41)
        ],
    }
    found = Sums([LakeColumn(kind, kind) for kind in values], LOOKUP3)
    found.add(pa.record_batch({kind: pa.array(some, arrow_type(kind)) for kind, some in values.items()}))
    assert tuple(str(one.total) for one in found.result().values()) == PROBED
    assert PROBED[0] == str(sum(integer_of(text, "string", LOOKUP3) for text in texts))


@pytest.mark.parametrize("definition", [LOOKUP3, MD5_UTF_8])
@pytest.mark.parametrize("transport", ["native", "odbc"])
def test_both_definitions_are_those_of_the_lakes_side(
    postgres: PostgresDatabase, transport: str, definition: Definition
) -> None:
    world = _world(postgres, transport)
    if definition == MD5_UTF_8:
        # As a server whose hashes are others.
        postgres.run(
            "ALTER FUNCTION pg_catalog.hashtextextended(text, int8) RENAME TO hashtextextended_of_old",
            "CREATE FUNCTION pg_catalog.hashtextextended(text, int8) RETURNS int8 IMMUTABLE STRICT LANGUAGE sql AS "
            "'SELECT hashtextextended_of_old($1, $2) # 1'",
        )
    _fill(world, "kinds")
    shape = world.shape("kinds")
    with world.database.sessions(1, consistent=True) as (session,):
        batches = list(session.batches(Selection(shape), batch_bytes=1 << 16))
        summary = session.summary(Selection(shape), checksums=True)
    assert summary.definition == definition
    found = Sums(shape.lake_columns, definition)
    for batch in batches:
        found.add(batch)
    assert found.summary() == summary
    rows = [row for batch in batches for row in batch.to_pylist()]
    assert {name: (one.nulls, one.total) for name, one in summary.columns.items()} == totals(rows, shape, definition)


def test_a_server_without_a_function_is_asked_for_md5(postgres: PostgresDatabase) -> None:
    postgres.run("ALTER FUNCTION pg_catalog.hash_array_extended(anyarray, int8) RENAME TO hash_array_extended_of_old")
    world = _world(postgres)
    world.run("CREATE TABLE words (v text)", "INSERT INTO words VALUES ('a')")
    with world.database.sessions(1, consistent=True) as (session,):
        summary = session.summary(Selection(world.shape("words")), checksums=True)
    assert summary.definition == MD5_UTF_8


@pytest.mark.parametrize("definition", [LOOKUP3, MD5_UTF_8])
def test_workers_may_share_the_sums(postgres: PostgresDatabase, definition: Definition) -> None:
    world = _world(postgres)
    _fill(world, "kinds")
    dialect = PostgresqlDialect(Types())
    dialect.definition = definition
    (statement,) = dialect.summaries(Selection(world.shape("kinds")), checksums=True)
    with postgres.connect() as connection:
        connection.execute("SET parallel_setup_cost = 0")
        connection.execute("SET parallel_tuple_cost = 0")
        connection.execute("SET min_parallel_table_scan_size = 0")
        plan = connection.execute(f"EXPLAIN {statement.sql}".encode()).fetchall()
    assert any("Partial Aggregate" in line for (line,) in plan), plan


_TAMPERED = {
    "b": "NOT b", "i2": "i2 + 1", "i4": "i4 # 1", "i8": "i8 # (1::int8 << 62)", "d": "d + 1",
    "t": "t + interval '1 microsecond'", "z": "z - interval '4294.967296 seconds'", "n": "-n", "w": "w + 0.0000000001",
    "f": "f * 1.000001", "g": "-g", "s": "left(s, -1)", "c": "lower(c) || '!'", "u": "gen_random_uuid()",
    "j": "j || '[]'", "y": "substr(y, 2)",
}  # fmt: skip


@pytest.mark.parametrize("row", [8, 60, 100, -2])
def test_each_changed_value_shows_in_its_column_alone(world: World, row: int) -> None:
    _fill(world, "kinds")
    shape = world.shape("kinds")
    with world.database.sessions(1, consistent=True) as (session,):
        before = session.summary(Selection(shape), checksums=True)
    changed = {
        name: new for name, new in _TAMPERED.items()
        if world.read(Selection(shape, KeyRange("id", str(row), str(row + 1))))[0][name] is not None
    }  # fmt: skip
    assert len(changed) in (2, len(_TAMPERED))
    for name, new in changed.items():
        world.run(
            f"CREATE TABLE kept AS SELECT {name} FROM kinds WHERE id = {row}",
            f"UPDATE kinds SET {name} = {new} WHERE id = {row}",
        )
        with world.database.sessions(1, consistent=True) as (session,):
            after = session.summary(Selection(shape), checksums=True)
        differing = [other for other, one in after.columns.items() if one != before.columns[other]]
        assert differing == [name]
        world.run(f"UPDATE kinds SET {name} = (SELECT {name} FROM kept) WHERE id = {row}", "DROP TABLE kept")


def test_not_a_number_in_a_decimal_is_an_error_of_the_sums_too(world: World) -> None:
    world.run("CREATE TABLE d (id int PRIMARY KEY, v numeric(5, 2))", "INSERT INTO d VALUES (1, 'NaN'), (2, 1)")
    shape = world.shape("d")
    with world.database.sessions(1, consistent=True) as (session,), pytest.raises(Unsupported) as refused:
        session.summary(Selection(shape), checksums=True)
    assert refused.value.code == "value_unfit"
