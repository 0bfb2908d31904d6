"""Results over ODBC, on a real PostgreSQL: blocks and long rows bring the same values, complete, and can be ended."""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from psycopg import sql

from shared.clients.sql.classify import Record
from shared.clients.sql.conform import arrow_schema, conform
from shared.clients.sql.connection import parse_connection
from shared.clients.sql.dialect import DriverConnection, Statement
from shared.clients.sql.odbc import OdbcConnection, OdbcDriver, long_rows
from shared.clients.sql.odbc_blocks import _C_WCHAR, BlockReader, BoundColumn, _array, is_failure, layout
from shared.errors import ConnectionLost, IntegrityMismatch, TransientError, Unsupported
from shared.ports.tables import LakeColumn
from tests.support.postgres import PostgresDatabase, odbc_missing

needs_odbc = pytest.mark.skipif(bool(odbc_missing()), reason=odbc_missing() or "-")

COLUMNS = {
    "b": ("bool", "boolean", ["true", "false"]),
    "i2": ("int16", "int2", ["-32768", "32767", "0"]),
    "i4": ("int32", "int4", ["-2147483648", "2147483647"]),
    "i8": ("int64", "int8", ["-9223372036854775808", "9223372036854775807"]),
    "r4": ("float", "float4", ["3.4028235e38", "1.4e-45", "-0.0", "'Infinity'"]),
    "r8": ("double", "float8", ["1.7976931348623157e308", "5e-324", "0.1", "'NaN'"]),
    "d": ("date32", "date", ["'0001-01-01'", "'1969-12-31'", "'2000-02-29'", "'9999-12-31'"]),
    "ts": ("timestamp[us]", "timestamp", [
        "'0001-01-01 00:00:00.000001'", "'1969-12-31 23:59:59.999999'", "'9999-12-31 23:59:59.999999'",
    ]),
    "n": ("decimal128(38, 10)", "numeric(38,10)", [
        "9999999999999999999999999999.9999999999", "-9999999999999999999999999999.9999999999", "-0.5", "0.0000000001",
    ]),
    "s": ("string", "varchar(60)", ["''", "' x '", "'äöü'", "'漢字'", "'😀'", "'a😀'", "'😀z'", "repeat('😀', 60)"]),
}  # fmt: skip


@pytest.fixture
def connection(postgres: PostgresDatabase) -> Iterator[DriverConnection]:
    if odbc_missing():
        pytest.skip(odbc_missing())
    opened = OdbcDriver(parse_connection("DB", postgres.odbc), statement_timeout_s=60).connect()
    opened.execute("SET extra_float_digits = 3")
    yield opened
    opened.close()


def extremes(columns: dict[str, tuple[str, str, list[str]]]) -> Statement:
    """One row for each value of each column, beside NULLs, and rows of NULLs in between."""
    selects = []
    for name, (_, _, values) in columns.items():
        for value in [*values, "NULL"]:
            row = ", ".join(
                f"CAST({value if other == name else 'NULL'} AS {declared})"
                for other, (_, declared, _) in columns.items()
            )
            selects.append(f"SELECT {len(selects)} AS nr, {row}")
    text = " UNION ALL ".join(selects)
    lake = [LakeColumn("nr", "int32"), *(LakeColumn(name, kind) for name, (kind, _, _) in columns.items())]
    named = ", ".join(column.name for column in lake)
    return Statement(f"SELECT * FROM ({text}) AS x ({named}) ORDER BY nr", (), tuple(lake))


def table(batches: Iterator[pa.RecordBatch], statement: Statement) -> pa.Table:
    found = [conform(batch, statement.columns, "x") for batch in batches]
    return pa.Table.from_batches(found, arrow_schema(statement.columns))


@needs_odbc
@pytest.mark.parametrize("batch_bytes", [1, 2000, 1 << 20])
def test_every_type_at_its_extremes_in_blocks_and_in_long_rows(
    connection: OdbcConnection, postgres: PostgresDatabase, batch_bytes: int
) -> None:
    statement = extremes(COLUMNS)
    in_blocks = table(connection.batches(statement, batch_bytes=batch_bytes), statement)
    cursor = connection._begin(statement.sql, ())
    assert layout(cursor, statement.columns, longest=7999) is not None
    in_rows = table(long_rows(cursor, statement, batch_bytes), statement)
    connection._end(cursor)

    expected = postgres.run("SET extra_float_digits = 3", statement.sql)
    for number, row in enumerate(expected):
        for column, value, block, long in zip(
            statement.columns, row, in_blocks.slice(number, 1), in_rows.slice(number, 1), strict=True
        ):
            for found in (block[0].as_py(), long[0].as_py()):
                # By their text, for NaN and the sign of zero.
                assert repr(found) == repr(single(value) if column.type == "float" else value), column.name
    assert in_blocks.num_rows == len(expected)


def single(value: Any) -> Any:
    return None if value is None else float(np.float32(value))


@needs_odbc
def test_long_values_are_complete_and_a_batch_holds_little_more_than_asked(connection: OdbcConnection) -> None:
    rows, size = 40, 300_000
    statement = Statement(
        f"SELECT n::int4, repeat('ä😀' || n, {size}), decode(repeat('00ff', {size}), 'hex') "
        f"FROM generate_series(1, {rows}) n",
        (),
        (LakeColumn("n", "int32"), LakeColumn("t", "string"), LakeColumn("b", "binary")),
    )
    seen = 0
    for batch in connection.batches(statement, batch_bytes=3_000_000):
        assert batch.num_rows <= 3
        for row in batch.to_pylist():
            seen += 1
            assert row["n"] == seen
            assert row["t"] == f"ä😀{seen}" * size
            assert row["b"] == b"\x00\xff" * size
    assert seen == rows


@needs_odbc
def test_nothing_of_a_long_value_is_kept_while_the_next_one_is_read(connection: OdbcConnection) -> None:
    size = 4_000_000
    statement = Statement(
        f"SELECT repeat('x', {size}), n FROM generate_series(1, 3) n",
        (),
        (LakeColumn("t", "string"), LakeColumn("n", "int32")),
    )
    batches = connection.batches(statement, batch_bytes=1000)
    next(batches)
    tracemalloc.start()
    try:
        second = next(batches)
        # The driver's text, and the row that holds it; Arrow's own memory is not Python's.
        assert tracemalloc.get_traced_memory()[0] < size / 4
        assert second["t"][0].as_py() == "x" * size
        del second
        held = pa.total_allocated_bytes()
        next(batches)
        # The batch before is the reader's own to keep.
        assert pa.total_allocated_bytes() - held < size * 1.5
    finally:
        tracemalloc.stop()


@needs_odbc
def test_a_value_longer_than_the_driver_said_is_an_error_not_a_shorter_value(connection: OdbcConnection) -> None:
    columns = (LakeColumn("s", "string"),)
    cursor = connection._begin("SELECT CAST('abcdefgh' AS varchar(20))", ())
    try:
        bound = [BoundColumn(columns[0], _C_WCHAR, np.dtype("(5,)<u2"))]
        with pytest.raises(IntegrityMismatch) as caught:
            list(BlockReader(cursor, bound, 1000).batches())
    finally:
        connection._end(cursor)
    assert caught.value.code == "value_cut"


@needs_odbc
def test_a_result_without_rows(connection: OdbcConnection) -> None:
    for kind in ("varchar(10)", "text"):
        statement = Statement(f"SELECT CAST('x' AS {kind}) WHERE false", (), (LakeColumn("s", "string"),))
        assert list(connection.batches(statement, batch_bytes=1000)) == []


@needs_odbc
@pytest.mark.parametrize("kind", ["varchar(20)", "text"])
def test_an_error_on_the_way_is_raised_and_the_connection_is_good_again(
    connection: OdbcConnection, postgres: PostgresDatabase, kind: str
) -> None:
    driver = OdbcDriver(parse_connection("DB", postgres.odbc))
    statement = Statement(
        f"SELECT CAST(1000000 / (50000 - n) AS {kind}) FROM generate_series(1, 60000) n",
        (),
        (LakeColumn("s", "string"),),
    )
    with pytest.raises(driver.errors) as caught:
        list(connection.batches(statement, batch_bytes=1000))
    assert driver.classify(caught.value, "x").code == "value_unfit"

    # Its transaction is left as it is: a snapshot must not end unnoticed.
    connection.execute("ROLLBACK")
    assert connection.rows("SELECT 1") == [(1,)]


@needs_odbc
@pytest.mark.parametrize("kind", ["varchar(20)", "text"])
def test_a_result_may_be_left_in_its_midst(connection: OdbcConnection, kind: str) -> None:
    statement = Statement(
        f"SELECT CAST(n AS {kind}) FROM generate_series(1, 50000) n", (), (LakeColumn("s", "string"),)
    )
    batches = connection.batches(statement, batch_bytes=500)
    assert next(batches).num_rows > 0
    batches.close()  # type: ignore[attr-defined]

    assert connection.rows("SELECT 2") == [(2,)]


@needs_odbc
def test_another_thread_breaks_a_statement_off(connection: OdbcConnection, postgres: PostgresDatabase) -> None:
    driver = OdbcDriver(parse_connection("DB", postgres.odbc))
    ended: list[BaseException] = []

    def endless() -> None:
        try:
            connection.rows("SELECT count(*) FROM generate_series(1, 100000000000)")
        except driver.errors as error:
            ended.append(error)

    thread = threading.Thread(target=endless)
    thread.start()
    until = time.monotonic() + 60
    while thread.is_alive() and time.monotonic() < until:
        connection.cancel()
        thread.join(0.05)
    assert not thread.is_alive()
    assert isinstance(driver.classify(ended[0], "x"), TransientError)


@needs_odbc
def test_a_handle_is_freed_only_when_nobody_breaks_its_statement_off_any_more(connection: OdbcConnection) -> None:
    """SQL Server's driver comes back from a cancellation into the handle, and takes the process along if it is gone."""
    cursor = connection._begin("SELECT 1", ())
    freed = threading.Event()

    def end() -> None:
        connection._end(cursor)
        freed.set()

    thread = threading.Thread(target=end)
    with connection._handle:
        thread.start()
        assert not freed.wait(0.3)
        assert connection._running is cursor
    thread.join(60)
    assert freed.is_set() and connection._running is None
    connection.cancel()
    assert connection.rows("SELECT 2") == [(2,)]


@needs_odbc
def test_a_connection_ends_its_transaction_before_it_is_closed(postgres: PostgresDatabase) -> None:
    driver = OdbcDriver(parse_connection("DB", postgres.odbc), statement_timeout_s=60)
    watching = driver.connect()
    watching.execute("CREATE TABLE ends (said text)")
    for last in ("INSERT INTO ends VALUES ('ended')", "not even SQL"):
        opened = driver.connect()
        assert isinstance(opened, OdbcConnection)
        OdbcConnection(opened._connection, 100, at_end=last).close()
    assert watching.rows("SELECT said FROM ends") == [("ended",)]
    watching.execute("DROP TABLE ends")
    watching.close()


@needs_odbc
def test_what_a_closed_connection_is_asked_is_a_lost_connection(postgres: PostgresDatabase) -> None:
    driver = OdbcDriver(parse_connection("DB", postgres.odbc))
    opened = driver.connect()
    opened.close()

    with pytest.raises(driver.errors) as caught:
        opened.rows("SELECT 1")
    assert isinstance(driver.classify(caught.value, "x"), ConnectionLost)


@needs_odbc
@pytest.mark.parametrize("form", ["odbc", "url"])
def test_a_password_of_odd_signs_opens_the_door(postgres: PostgresDatabase, form: str) -> None:
    password = "Hx9;}{=!@(ü) %'\"+"
    with psycopg.connect(postgres.url, autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(sql.Identifier(f"odd_{form}"), sql.Literal(password))
        )
    place = f"{postgres.host}:{postgres.port}/{postgres.name}"
    value = (
        f"postgresql+pyodbc://odd_{form}:{quote(password, safe='')}@{place}"
        if form == "url"
        else f"Driver={{PostgreSQL Unicode}};Server={postgres.host};Port={postgres.port};Database={postgres.name};"
        f"UID=odd_odbc;PWD={{{password.replace('}', '}}')}}}"
    )
    opened = OdbcDriver(parse_connection("DB", value)).connect()
    try:
        assert opened.rows("SELECT current_user::text") == [(f"odd_{form}",)]
    finally:
        opened.close()


# -- text, without a database ------------------------------------------------------------------------------------------

WIDTH = 12
COLUMN = BoundColumn(LakeColumn("s", "string"), _C_WCHAR, np.dtype(f"({WIDTH},)<u2"))


def bound_text(values: list[bytes | None]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """As a driver leaves it: UTF-16, a zero behind it, and what was there before behind that."""
    cells = np.full((len(values), WIDTH), 0xD83D, "<u2")
    lengths = np.full(len(values), -1, np.int64)
    for number, value in enumerate(values):
        if value is not None:
            units = np.frombuffer(value, "<u2")
            cells[number, : len(units)] = units
            cells[number, len(units)] = 0
            lengths[number] = len(value)
    return cells, lengths


@given(st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=20))
@settings(max_examples=300, deadline=None)
def test_text_of_any_signs_arrives_as_it_is(values: list[str | None]) -> None:
    cells, lengths = bound_text([None if value is None else value.encode("utf-16-le") for value in values])
    found = _array(COLUMN, cells, lengths, len(values))

    found.validate(full=True)
    assert found.to_pylist() == values


@pytest.mark.parametrize(
    "values",
    [
        [b"\x3d\xd8"],
        [b"\x00\xde"],
        [b"a\x00", b"\x3d\xd8", b"\x00\xde"],
        [b"\x3d\xd8a\x00"],
        [None, b"\x3d\xd8", None, b"\x00\xdeb\x00"],
    ],
)
def test_half_of_a_pair_is_told_even_where_the_next_row_has_the_other_half(values: list[bytes | None]) -> None:
    cells, lengths = bound_text(values)

    with pytest.raises(Unsupported, match="no Unicode"):
        _array(COLUMN, cells, lengths, len(values))


@pytest.mark.parametrize(
    ("states", "is_lost"),
    [((), False), (("01004",), False), (("01000", "01003"), False), (("01S01",), True), (("01000", "22012"), True)],
)
def test_a_block_of_which_a_row_failed_is_no_block(states: tuple[str, ...], is_lost: bool) -> None:
    assert is_failure([Record(state, 0, "") for state in states]) is is_lost
