"""What every ``ports.TableDatabase`` keeps, on real databases."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.errors import AccessDenied, ConnectionLost, MigrationError, NotFound, RunError, TransientError, Unsupported
from shared.policy.sql.names import TableName
from shared.ports.tables import KeyRange, RowRule, Selection, Window
from tests.sql.databases import World, quoted, rows_of, totals
from tests.support.postgres import PostgresDatabase, odbc_missing

ODD_NAMES = (
    "br]ack[ets", 'dou"ble', "sin'gle", "back`tick", "two words", " edges ", "ünï☃𝒳", "per%cent %s %(x)s", "co:lon :x",
    "quest?ion", "semi;colon -- x", "back\\slash", "{brace}", "$1 $$", "select", "q", "t", "n", "k", "_rule_0",
    "x\"; DROP TABLE canary; --", "x'); DROP TABLE canary; --", "/* x", "line\nbreak",
)  # fmt: skip


# -- columns -----------------------------------------------------------------------------------------------------------


def _type_cases() -> dict[str, list[tuple[str, str, list[tuple[str, Any]]]]]:
    """For each dialect: declared type, lake type, and SQL literals with what is to come of them."""
    text = 'it\'s ü€😀 \\ "x" % : ? \t\n{}'
    return {
        "sqlite": [
            ("INTEGER", "int64", [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1), ("0", 0)]),
            ("TINYINT", "int64", [("300", 300)]),
            ("REAL", "double", [("1e308", 1e308), ("-5e-324", -5e-324), ("1", 1.0), ("9e999", float("inf"))]),
            ("DECIMAL(10,2)", "double", [("0.1", 0.1), ("12", 12.0), ("-0.0", 0.0)]),
            ("TEXT", "string", [(f"'{text.replace(chr(39), chr(39) * 2)}'", text), ("''", ""), ("5", "5")]),
            ("VARCHAR(3)", "string", [("'longer than three'", "longer than three")]),
            ("BLOB", "binary", [("x'00ff'", b"\x00\xff"), ("x''", b"")]),
            ("BOOLEAN", "bool", [("1", True), ("0", False)]),
            ("DATETIME", "string", [("'2024-01-01 00:00:00.1234567'", "2024-01-01 00:00:00.1234567"), ("7", "7"),
                                    ("0.1", "0.1")]),
            ("", "string", [("'x'", "x"), ("5", "5"), ("1e100", "1e+100")]),
        ],
        "postgresql": [
            ("boolean", "bool", [("true", True), ("false", False)]),
            ("smallint", "int16", [("-32768", -32768), ("32767", 32767)]),
            ("integer", "int32", [("-2147483648", -(2**31)), ("2147483647", 2**31 - 1)]),
            ("bigint", "int64", [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)]),
            ("oid", "int64", [("4294967295", 2**32 - 1)]),
            ("real", "float", [("'-3.4028235e38'", -3.4028234663852886e38), ("'1e-45'", 1.401298464324817e-45),
                               ("'infinity'", float("inf")), ("'-0'", -0.0)]),
            ("double precision", "double", [("'1.7976931348623157e308'", 1.7976931348623157e308), ("0.1", 0.1),
                                            ("'5e-324'", 5e-324), ("'-infinity'", float("-inf"))]),
            ("numeric(38, 10)", "decimal128(38, 10)",
             [("9999999999999999999999999999.9999999999", Decimal("9999999999999999999999999999.9999999999")),
              ("-9999999999999999999999999999.9999999999", Decimal("-9999999999999999999999999999.9999999999")),
              ("0.0000000001", Decimal("0.0000000001"))]),
            ("numeric(38, 0)", "decimal128(38, 0)", [("-" + "9" * 38, Decimal("-" + "9" * 38))]),
            ("numeric(38, 38)", "decimal128(38, 38)", [("0." + "9" * 38, Decimal("0." + "9" * 38))]),
            ("numeric(5, 2)", "decimal128(5, 2)", [("999.99", Decimal("999.99")), ("-0.01", Decimal("-0.01"))]),
            ("numeric", "string", [("1.500", "1.500"), ("'NaN'", "NaN"), ("1e40", "1" + "0" * 40),
                                   ("1e-20", "0." + "0" * 19 + "1")]),
            ("numeric(50, 2)", "string", [("9" * 48 + ".99", "9" * 48 + ".99")]),
            ("text", "string", [(f"'{text.replace(chr(39), chr(39) * 2)}'", text), ("''", "")]),
            ("varchar(5)", "string", [("'abc  '", "abc  ")]),
            ("char(5)", "string", [("'ab'", "ab   ")]),
            ("name", "string", [("'nm'", "nm")]),
            ('"char"', "string", [("'c'", "c")]),
            ("bytea", "binary", [(r"'\x00ff27'", b"\x00\xff'"), ("''", b"")]),
            ("date", "date32", [("'0001-01-01'", date(1, 1, 1)), ("'9999-12-31'", date(9999, 12, 31))]),
            ("timestamp", "timestamp[us]",
             [("'0001-01-01'", datetime(1, 1, 1)),  # noqa: DTZ001
              ("'9999-12-31 23:59:59.999999'", datetime(9999, 12, 31, 23, 59, 59, 999999)),  # noqa: DTZ001
              ("'1969-12-31 23:59:59.999999'", datetime(1969, 12, 31, 23, 59, 59, 999999)),  # noqa: DTZ001
              ("'2024-02-29 12:34:56.000001'", datetime(2024, 2, 29, 12, 34, 56, 1))]),  # noqa: DTZ001
            ("timestamptz", "timestamp[us, UTC]",
             [("'0001-01-01 00:00:00+00'", datetime(1, 1, 1, tzinfo=UTC)),
              ("'2024-06-30 23:59:59.999999+05:30'", datetime(2024, 6, 30, 18, 29, 59, 999999, UTC))]),
            ("time", "string", [("'24:00:00'", "24:00:00"), ("'01:02:03.000004'", "01:02:03.000004")]),
            ("timetz", "string", [("'10:00:00.5-03'", "10:00:00.5-03")]),
            ("interval", "string", [("'1 year -2 months 3 days -04:05:06.789'", "P10M3DT-4H-5M-6.789S")]),
            ("uuid", "string", [("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11")]),
            ("money", "string", [("'-1234.5'::numeric::money", "-1234.50")]),
            ("json", "string", [("""'{"a":  [1, null]}'""", '{"a":  [1, null]}')]),
            ("jsonb", "string", [("""'{"b":1,"a":2}'""", '{"a": 2, "b": 1}')]),
            ("xml", "string", [("'<a>ü</a>'", "<a>ü</a>")]),
            ("int[]", "string", [("'{1,NULL,3}'", "{1,NULL,3}")]),
            ("text[]", "string", [("""'{"a,b","c\\"d"}'""", '{"a,b","c\\"d"}')]),
            ("int4range", "string", [("'[1,5]'", "[1,6)")]),
            ("inet", "string", [("'10.0.0.1/8'", "10.0.0.1/8")]),
            ("bit varying(9)", "string", [("B'10101'", "10101")]),
            ("point", "string", [("'(1.5,2)'", "(1.5,2)")]),
            ("tsvector", "string", [("'b a'", "'a' 'b'")]),
            ("mood", "string", [("'so so'", "so so")]),
            ("pair", "string", [("""'(1,"x,y")'""", '(1,"x,y")')]),
            ("posint", "int32", [("7", 7)]),
            ("price", "decimal128(9, 2)", [("7.10", Decimal("7.10"))]),
        ],
    }  # fmt: skip


TYPE_SETUP = {
    "sqlite": (),
    "postgresql": (
        "CREATE TYPE mood AS ENUM ('sad', 'so so')", "CREATE TYPE pair AS (a int, b text)",
        "CREATE DOMAIN posint AS int CHECK (VALUE > 0)", "CREATE DOMAIN amount AS numeric(9, 2)",
        "CREATE DOMAIN price AS amount NOT NULL DEFAULT 0",
    ),
}  # fmt: skip


def test_every_type_at_its_extremes(world: World) -> None:
    world.run(*TYPE_SETUP[world.dialect])
    for number, (declared, lake, cases) in enumerate(_type_cases()[world.dialect]):
        name = f"typed{number}"
        nulls = [] if declared == "price" else ["(-1, NULL)"]
        values = [f"({row}, {literal})" for row, (literal, _) in enumerate(cases)] + nulls
        world.run(
            f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, v {declared})",
            f"INSERT INTO {name} VALUES {', '.join(values)}",
        )
        shape = world.shape(name)
        assert [column.type for column in shape.lake_columns][1] == lake, declared
        with world.database.sessions(1, consistent=True) as (session,):
            rows = rows_of(session, Selection(shape, order_by=("id",)))
            summary = session.summary(Selection(shape), checksums=True)
        expected = ([None] if nulls else []) + [value for _, value in cases]
        assert [_exact(row["v"]) for row in rows] == [_exact(value) for value in expected], declared
        assert summary.rows == len(expected)
        assert {key: (sums.nulls, sums.total) for key, sums in summary.columns.items()} == totals(
            rows, shape, summary.definition
        ), declared


def _exact(value: Any) -> str:
    """Tells 1 from True and 0.0 from -0.0."""
    return value.astimezone(UTC).isoformat() if isinstance(value, datetime) and value.tzinfo else repr(value)


def test_every_watermark_comes_back_as_the_same_value(world: World) -> None:
    world.run(*TYPE_SETUP[world.dialect])
    unordered = ("json", "xml", "point", "pair", "")
    for number, (declared, _, cases) in enumerate(_type_cases()[world.dialect]):
        if declared in unordered:
            continue
        name = f"typed{number}"
        values = [f"({row}, {literal})" for row, (literal, _) in enumerate(cases)]
        world.run(
            f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, v {declared})",
            f"INSERT INTO {name} VALUES {', '.join(values)}",
        )
        shape = world.shape(name)
        with world.database.sessions(1, consistent=True) as (session,):
            greatest = session.position(shape, "watermark", "v")
            assert greatest is not None
            whole = Selection(shape, window=Window("watermark", None, greatest, "v"))
            tie = Selection(shape, window=Window("watermark", greatest, greatest, "v"))
            assert session.summary(whole, checksums=False).rows == len(cases), declared
            assert len(rows_of(session, tie)) == 1, declared


def test_batches_have_the_lake_types_in_order_and_are_bounded(world: World) -> None:
    world.run("CREATE TABLE wide (id INTEGER PRIMARY KEY, note TEXT)")
    world.insert("wide", [(number, "x" * (number % 7) * 5000) for number in range(2000)])
    shape = world.shape("wide")
    with world.database.sessions(1, consistent=True) as (session,):
        batches = list(session.batches(Selection(shape), batch_bytes=1 << 18))
    assert sum(batch.num_rows for batch in batches) == 2000
    assert {str(batch.schema) for batch in batches} == {
        "id: int64\nnote: string" if world.dialect == "sqlite" else "id: int32\nnote: string"
    }
    assert max(batch.nbytes for batch in batches) < 4 << 18


def test_a_value_of_many_megabytes(world: World) -> None:
    world.run(
        "CREATE TABLE lob (id INTEGER PRIMARY KEY, t TEXT, b " + ("BLOB)" if world.dialect == "sqlite" else "bytea)")
    )
    world.insert("lob", [(1, "é" * 9_000_000, bytes(range(256)) * 50_000), (2, None, b"")])
    shape = world.shape("lob")
    rows = world.read(Selection(shape, order_by=("id",)))
    assert rows == [
        {"id": 1, "t": "é" * 9_000_000, "b": bytes(range(256)) * 50_000},
        {"id": 2, "t": None, "b": b""},
    ]
    with world.database.sessions(1, consistent=True) as (session,):
        summary = session.summary(Selection(shape), checksums=True)
    assert {key: (sums.nulls, sums.total) for key, sums in summary.columns.items()} == totals(
        rows, shape, summary.definition
    )


def test_more_columns_than_a_statement_has_room_to_sum(world: World) -> None:
    names = [f"c{number}" for number in range(900)]
    world.run(f"CREATE TABLE broad ({', '.join(f'{name} INTEGER' for name in names)})")
    world.run(f"INSERT INTO broad VALUES ({', '.join(str(number) for number in range(900))})")
    shape = world.shape("broad")
    with world.database.sessions(1, consistent=True) as (session,):
        summary = session.summary(Selection(shape), checksums=True)
    assert {name: sums.total for name, sums in summary.columns.items()} == dict(zip(names, range(900), strict=True))


def test_an_empty_table(world: World) -> None:
    world.run("CREATE TABLE hollow (id INTEGER PRIMARY KEY, v TEXT)")
    shape = world.shape("hollow")
    with world.database.sessions(1, consistent=True) as (session,):
        assert rows_of(session, Selection(shape)) == []
        summary = session.summary(Selection(shape), checksums=True)
        assert session.position(shape, "watermark", "id") is None
        assert session.oldest(shape, "watermark", None) is None
        assert session.cut(shape, "id", 10) == [KeyRange("id", None, None, nulls=True)]
        assert session.broken_rows(Selection(shape), RowRule("not_null", ("v",))) == 0
    assert summary.rows == 0
    assert {(sums.nulls, sums.total) for sums in summary.columns.values()} == {(0, 0)}


def test_a_table_without_key_keeps_its_doubles(world: World) -> None:
    world.run("CREATE TABLE keyless (v TEXT)")
    world.insert("keyless", [("a",), ("a",), (None,)])
    shape = world.shape("keyless")
    assert shape.key == ()
    assert Counter(row["v"] for row in world.read(Selection(shape))) == {"a": 2, None: 1}


def test_the_key_in_its_own_order(world: World) -> None:
    world.run("CREATE TABLE keyed (a INTEGER NOT NULL, b TEXT NOT NULL, c INTEGER NOT NULL, PRIMARY KEY (c, a))")
    shape = world.shape("keyed")
    assert shape.key == ("c", "a")
    assert [column.name for column in shape.columns] == ["a", "b", "c"]
    assert [column.nullable for column in shape.columns] == [False, False, False]


def test_views_and_generated_columns_are_read(world: World) -> None:
    world.run(
        "CREATE TABLE base (id INTEGER PRIMARY KEY, v INTEGER, double_v INTEGER GENERATED ALWAYS AS (v * 2) STORED)",
        "INSERT INTO base (id, v) VALUES (1, 10), (2, 20)",
        "CREATE VIEW shown AS SELECT id, double_v FROM base WHERE v > 10",
    )
    assert world.shape("base").facts["generated"] == ["double_v"]
    assert world.read(Selection(world.shape("shown"))) == [{"id": 2, "double_v": 40}]
    assert {str(table).rpartition(".")[2] for table in world.database.tables()} == {"base", "shown"}


def test_a_query_is_read_with_its_comments(world: World) -> None:
    world.run("CREATE TABLE base (id INTEGER PRIMARY KEY, v TEXT)")
    world.insert("base", [(1, "a;b"), (2, ")"), (3, None)])
    shape = world.shape("mine", "WITH x AS (SELECT id, v FROM base) SELECT id, v FROM x WHERE v <> ';' -- the rest;")
    rows = world.read(Selection(shape, range=KeyRange("id", "2", None), rules=(RowRule("unique", ("v",)),)))
    assert rows == [{"id": 2, "v": ")", "_rule_0": False}]


# -- names, and what is no name ----------------------------------------------------------------------------------------


@pytest.fixture
def canary(world: World) -> World:
    world.run("CREATE TABLE canary (id INTEGER PRIMARY KEY)", "INSERT INTO canary VALUES (1)")
    return world


def _alive(world: World) -> bool:
    return world.read(Selection(world.shape("canary"))) == [{"id": 1}]


def test_odd_names_of_tables_and_columns(canary: World) -> None:
    world = canary
    for name in ODD_NAMES:
        column, table = quoted(name), quoted(f"{name} t")
        world.run(f"CREATE TABLE {table} ({column} INTEGER PRIMARY KEY, {quoted(name + ' 2')} TEXT)")
        world.insert(table, [(1, "a"), (2, "a"), (3, None)])
        shape = world.shape(f"{name} t")
        assert shape.key == (name,)
        rules = (
            RowRule("not_null", (name + " 2",)), RowRule("unique", (name + " 2",)),
            RowRule("range", (name,), minimum=2), RowRule("foreign_key", (name,), references=shape.table),
        )  # fmt: skip
        selection = Selection(
            shape, KeyRange(name, "2", "9"), Window("watermark", "1", "9", name), rules, order_by=(name,)
        )
        with world.database.sessions(1, consistent=True) as (session,):
            assert len(session.cut(shape, name, 2)) == 2
            assert session.position(shape, "watermark", name) == "3"
            assert session.summary(selection, checksums=True).rows == 2
            batches = list(session.batches(selection, batch_bytes=1000))
            assert [session.broken_rows(selection, rule) for rule in rules] == [1, 1, 0, 0]
        rows = [tuple(column.to_pylist() for column in batch.columns) for batch in batches]
        assert rows == [([2, 3], ["a", None], [False, True], [True, False], [False, False], [False, False])], name
    assert {table.name for table in world.database.tables()} >= {f"{name} t" for name in ODD_NAMES}
    assert _alive(world)


INJECTIONS = (
    "1; DROP TABLE canary", "1'; DROP TABLE canary; --", "1) OR (1=1", "1' OR '1'='1", "id) FROM canary; --", "1 --",
    '1"; DROP TABLE canary; --', "\\'; DROP TABLE canary; --", "1/*", "CAST((SELECT 1) AS INTEGER)", "\x00",
)  # fmt: skip


@pytest.mark.parametrize("evil", INJECTIONS)
def test_a_value_stays_a_value(canary: World, evil: str) -> None:
    """Text is compared with as it is, and what is no number is an error of a number's column."""
    world = canary
    world.run("CREATE TABLE victim (id INTEGER PRIMARY KEY, v TEXT)")
    world.insert("victim", [(1, "a"), (2, evil.replace("\x00", ""))])
    shape = world.shape("victim")
    selections = [
        Selection(shape, KeyRange("{}", evil, None)), Selection(shape, KeyRange("{}", None, evil)),
        Selection(shape, None, Window("watermark", evil, evil, "{}")),
        Selection(shape, None, None, (RowRule("range", ("{}",), minimum=evil, maximum=evil),)),
    ]  # fmt: skip
    for selection in selections:
        for column in ("id", "v"):
            aimed = _aimed(selection, column)
            with world.database.sessions(1, consistent=True) as (session,):
                if column == "id" or "\x00" in evil:
                    with pytest.raises(Unsupported):
                        rows_of(session, aimed)
                else:
                    assert evil in [row["v"] for row in rows_of(session, aimed)] or aimed.range is not None
    assert _alive(world)


def _aimed(selection: Selection, column: str) -> Selection:
    if selection.range:
        return replace(selection, range=replace(selection.range, column=column))
    if selection.window:
        return replace(selection, window=replace(selection.window, column=column))
    return replace(selection, rules=(replace(selection.rules[0], columns=(column,)),))


@pytest.mark.parametrize("evil", INJECTIONS[:-1])
def test_a_name_stays_a_name(canary: World, evil: str) -> None:
    world = canary
    shape = world.shape("canary")
    with pytest.raises((NotFound, Unsupported)):
        world.shape(evil)
    with pytest.raises((NotFound, Unsupported)):
        world.database.describe(TableName(evil, "canary"))
    everything = Selection(shape)
    tries = (
        lambda session: session.position(shape, "watermark", evil),
        lambda session: session.cut(shape, evil, 1),
        lambda session: session.age_s(shape, evil),
        lambda session: rows_of(session, Selection(shape, order_by=(evil,))),
        lambda session: rows_of(session, Selection(shape, KeyRange(evil, "1", None))),
        lambda session: session.broken_rows(everything, RowRule("not_null", (evil,))),
        lambda session: session.broken_rows(everything, RowRule("unique", (evil,))),
        lambda session: session.broken_rows(
            everything, RowRule("foreign_key", ("id",), references=TableName(world.schema, evil))
        ),
        lambda session: session.broken_rows(
            everything,
            RowRule("foreign_key", ("id",), references=TableName(world.schema, "canary"), reference_columns=(evil,)),
        ),
        lambda session: session.try_rule(
            shape,
            RowRule("foreign_key", ("id",), references=TableName(world.schema, "canary"), reference_columns=(evil,)),
        ),
    )
    for attempt in tries:
        with world.database.sessions(1, consistent=True) as (session,), pytest.raises((NotFound, Unsupported)):
            attempt(session)
    assert _alive(world)


@pytest.mark.parametrize(
    "sql",
    ["1=1); DROP TABLE canary; --", "1=1; DELETE FROM canary", "id > 0) OR (1=1", "'", '"', "/* x", "", "(", "id > 'x"],
)
def test_sql_of_the_user_keeps_to_its_place(canary: World, sql: str) -> None:
    world = canary
    shape = world.shape("canary")
    with world.database.sessions(1, consistent=True) as (session,), pytest.raises(Unsupported):
        session.broken_rows(Selection(shape), RowRule("sql", sql=sql))
    with world.database.sessions(1, consistent=True) as (session,), pytest.raises(Unsupported):
        session.try_rule(shape, RowRule("sql", sql=sql))
    with pytest.raises(Unsupported):
        world.shape("mine", f"SELECT * FROM canary WHERE {sql}")
    assert _alive(world)


def test_nothing_can_be_written(canary: World) -> None:
    world = canary
    if world.dialect == "postgresql":
        world.run("CREATE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM canary RETURNING id'")
        with pytest.raises(MigrationError):
            world.read(Selection(world.shape("mine", "SELECT wipe() AS id")))
    with pytest.raises(MigrationError):
        world.read(Selection(world.shape("mine", "DELETE FROM canary RETURNING id")))
    assert _alive(world)


# -- ranges ------------------------------------------------------------------------------------------------------------

_TEXT = st.text(st.characters(blacklist_characters="\x00", blacklist_categories=["Cs"]), max_size=4)
_KEYS = {
    "INTEGER": st.integers(-(2**31), 2**31 - 1) | st.integers(-3, 3),
    "BIGINT": st.integers(-(2**63), 2**63 - 1),
    "TEXT": _TEXT | st.sampled_from(["a", "A", "ä", "a ", " a", "", "'", "Z", "ß", "ss"]),
    "REAL": st.floats(allow_nan=False, width=32),
    "DOUBLE PRECISION": st.floats(allow_nan=False),
}


@pytest.mark.parametrize("declared", _KEYS)
def test_ranges_hold_each_row_once(world: World, declared: str) -> None:
    world.run(f"CREATE TABLE cut (n INTEGER PRIMARY KEY, k {declared})")

    @settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(keys=st.lists(st.none() | _KEYS[declared], max_size=40), rows=st.integers(1, 15))
    def holds(keys: list[Any], rows: int) -> None:
        world.run("DELETE FROM cut")
        world.insert("cut", list(enumerate(keys)))
        shape = world.shape("cut")
        with world.database.sessions(1, consistent=True) as (session,):
            ranges = session.cut(shape, "k", rows)
            found: Counter[int] = Counter()
            for part in ranges:
                found.update(row["n"] for row in rows_of(session, Selection(shape, part)))
        assert found == Counter(range(len(keys)))
        # Also what nobody has written yet has a place.
        assert (ranges[0].lower, ranges[-1].upper) == (None, None)
        assert [part.nulls for part in ranges] == [True] + [False] * (len(ranges) - 1)
        assert all(one.upper == other.lower for one, other in pairwise(ranges))

    holds()


def test_ranges_are_about_as_large_as_asked(world: World) -> None:
    world.run("CREATE TABLE even (id INTEGER PRIMARY KEY)")
    world.insert("even", [(number * 3,) for number in range(1000)])
    if world.dialect == "postgresql":
        world.run("ANALYZE even")
    shape = world.shape("even")
    assert 900 <= shape.rows <= 3000
    with world.database.sessions(1, consistent=True) as (session,):
        counts = [
            session.summary(Selection(shape, part), checksums=False).rows for part in session.cut(shape, "id", 100)
        ]
    assert sum(counts) == 1000
    assert max(counts) <= 100


# -- windows -----------------------------------------------------------------------------------------------------------


def test_both_ends_of_a_watermark_belong_to_it(world: World) -> None:
    world.run("CREATE TABLE log (id INTEGER PRIMARY KEY, at INTEGER)")
    world.insert("log", [(1, 10), (2, 20), (3, 20), (4, 30), (5, 40), (6, None)])
    shape = world.shape("log")

    def ids(**window: Any) -> list[int]:
        rows = world.read(Selection(shape, window=Window("watermark", column="at", **window), order_by=("id",)))
        return [row["id"] for row in rows]

    assert ids(after=None, upto="30") == [1, 2, 3, 4]
    assert ids(after="20", upto="30") == [2, 3, 4]
    assert ids(after="30", upto="30", lookback_s=10) == [2, 3, 4]
    assert ids(after="30", upto="40", lookback_s=9.5) == [2, 3, 4, 5]
    assert ids(after="30", upto="30", lookback_s=1e300) == [1, 2, 3, 4]


def test_lookback_of_a_time(world: World) -> None:
    declared = "TEXT" if world.dialect == "sqlite" else "TIMESTAMP"
    world.run(f"CREATE TABLE log (id INTEGER PRIMARY KEY, at {declared})")
    world.insert(
        "log",
        [
            (1, "2024-02-29 23:59:29.9"),
            (2, "2024-02-29 23:59:30"),
            (3, "2024-02-29 23:59:30.5"),
            (4, "2024-03-01 00:00:30"),
        ],
    )
    shape = world.shape("log")
    with world.database.sessions(1, consistent=True) as (session,):
        newest = session.position(shape, "watermark", "at")
        assert newest is not None
        window = Window("watermark", newest, newest, "at", lookback_s=60)
        assert [row["id"] for row in rows_of(session, Selection(shape, window=window, order_by=("id",)))] == [2, 3, 4]
        for more_than_there_is in (1.3e11, 1e12, 1e300):
            window = replace(window, lookback_s=more_than_there_is)
            assert len(rows_of(session, Selection(shape, window=window))) == 4, more_than_there_is
        age = session.age_s(shape, "at")
    assert age is not None
    passed = datetime.now(UTC) - datetime(2024, 3, 1, 0, 0, 30, tzinfo=UTC)
    assert abs(age - passed.total_seconds()) < 86_400


def test_a_window_over_a_column_that_is_not_read(world: World) -> None:
    world.run("CREATE TABLE log (id INTEGER PRIMARY KEY, at INTEGER, v TEXT)")
    world.insert("log", [(1, 10, "a"), (2, 20, "b")])
    shape = world.shape("log")
    narrow = replace(shape, columns=shape.columns[2:])
    rows = world.read(Selection(narrow, KeyRange("ID", "2", None), Window("watermark", "5", "20", "At")))
    assert rows == [{"v": "b"}]


@pytest.mark.parametrize("change", ["rowversion", "tracking", "cdc"])
def test_a_change_that_the_database_does_not_have(world: World, change: Any) -> None:
    world.run("CREATE TABLE log (id INTEGER PRIMARY KEY)")
    shape = world.shape("log")
    with world.database.sessions(1, consistent=True) as (session,):
        with pytest.raises(Unsupported) as raised:
            session.position(shape, change, None)
        assert raised.value.code == "change_unsupported"
        with pytest.raises(Unsupported):
            rows_of(session, Selection(shape, window=Window(change, None, "1")))


# -- rules -------------------------------------------------------------------------------------------------------------


def test_rules_tell_the_rows_that_break_them(world: World) -> None:
    world.run(
        "CREATE TABLE parent (a INTEGER, b TEXT)", "CREATE TABLE child (id INTEGER PRIMARY KEY, a INTEGER, b TEXT)"
    )
    world.insert("parent", [(1, "x"), (1, "x"), (2, "y"), (None, "z")])
    world.insert(
        "child", [(1, 1, "x"), (2, 1, "x"), (3, 2, "x"), (4, None, "x"), (5, 9, None), (6, 2, "y"), (7, 7, "y")]
    )
    shape = world.shape("child")
    parent = TableName(world.schema, "parent")
    rules = {
        RowRule("not_null", ("a", "b")): {4, 5},
        RowRule("unique", ("a", "b")): {1, 2},
        RowRule("unique", ("b",)): {1, 2, 3, 4, 6, 7},
        RowRule("range", ("a",), minimum=2): {1, 2},
        RowRule("range", ("a",), minimum="2", maximum=8): {1, 2, 5},
        RowRule("range", ("b",), maximum="x"): {6, 7},
        RowRule("foreign_key", ("a", "b"), references=parent): {3, 7},
        RowRule("foreign_key", ("b",), references=parent, reference_columns=("b",)): set(),
        RowRule("foreign_key", ("a",), references=parent, reference_columns=("a",)): {5, 7},
        RowRule("sql", sql="a < id OR id = 1 -- and so on"): {5, 7},
    }  # fmt: skip
    selection = Selection(shape, rules=tuple(rules), order_by=("id",))
    with world.database.sessions(1, consistent=True) as (session,):
        rows = rows_of(session, selection)
        counts = [session.broken_rows(Selection(shape), rule) for rule in rules]
        for rule in rules:
            session.try_rule(shape, rule)
        part = Selection(shape, KeyRange("id", "2", None), rules=(RowRule("unique", ("a", "b")),))
        within = {row["id"] for row in rows_of(session, part) if row["_rule_0"]}
    found = [{row["id"] for row in rows if row[f"_rule_{number}"]} for number in range(len(rules))]
    assert found == list(rules.values())
    assert counts == [len(broken) for broken in rules.values()]
    assert [row["id"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    # Its double lies in another slice.
    assert within == {2}


# -- one moment --------------------------------------------------------------------------------------------------------


def test_sessions_of_one_moment_while_others_write(world: World) -> None:
    world.run("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER)")
    world.insert("account", [(number, 100) for number in range(50)])
    shape = world.shape("account")
    stop, wrote = threading.Event(), threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            one, other = number % 50, (number * 7 + 1) % 50
            world.run(
                f"UPDATE account SET amount = amount - 1 WHERE id = {one}",
                f"INSERT INTO account VALUES ({1000 + number}, 0)",
                f"UPDATE account SET amount = amount + 1 WHERE id = {other}",
            )
            wrote.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        states = set()
        for _ in range(8):
            with world.database.sessions(3, consistent=True) as sessions:
                assert [session.consistent for session in sessions] == [True] * 3
                seen = []
                for session in sessions:
                    wrote.clear()
                    assert wrote.wait(60)
                    seen.append(rows_of(session, Selection(shape, order_by=("id",))))
                    summary = session.summary(Selection(shape), checksums=True)
                    assert summary.rows == len(seen[-1])
                    assert summary.columns["amount"].total == totals(seen[-1], shape, summary.definition)["amount"][1]
            assert seen[0] == seen[1] == seen[2]
            assert sum(row["amount"] for row in seen[0]) == 5000
            states.add(len(seen[0]))
        assert len(states) > 1
    finally:
        stop.set()
        writer.join()


def test_each_session_sees_a_state_of_its_own_where_that_is_enough(world: World) -> None:
    world.run("CREATE TABLE log (id INTEGER PRIMARY KEY)")
    shape = world.shape("log")
    everything = Selection(shape)
    with world.database.sessions(2, consistent=False) as (one, other):
        world.insert("log", [(1,)])
        assert one.summary(everything, checksums=False).rows == other.summary(everything, checksums=False).rows == 0
        with world.database.sessions(1, consistent=False) as (later,):
            assert later.summary(everything, checksums=False).rows == 1
        assert one.summary(everything, checksums=False).rows == 0


# -- breaking off ------------------------------------------------------------------------------------------------------

ENDLESS = "SELECT a.id AS n FROM many a, many b, many c, many d, many e"


@pytest.fixture
def many(world: World) -> World:
    """A table that can be joined to something without end."""
    world.run("CREATE TABLE many (id INTEGER PRIMARY KEY)")
    world.insert("many", [(number,) for number in range(1000)])
    return world


def test_another_thread_breaks_a_statement_off(many: World) -> None:
    world = many
    shape = world.shape("mine", ENDLESS + " WHERE a.id + b.id + c.id + d.id + e.id < 0")
    failures: list[BaseException] = []
    with world.database.sessions(1, consistent=False) as (session,):

        def count() -> None:
            try:
                session.summary(Selection(shape), checksums=False)
            except MigrationError as error:
                failures.append(error)

        reader = threading.Thread(target=count)
        reader.start()
        session.close()
        reader.join()
        with pytest.raises(ConnectionLost):
            session.summary(Selection(shape), checksums=False)
    assert [(type(failure), failure.code) for failure in failures] == [(ConnectionLost, "session_closed")]  # type: ignore[attr-defined]


def test_another_thread_breaks_batches_off(many: World) -> None:
    world = many
    shape = world.shape("mine", ENDLESS)
    with world.database.sessions(1, consistent=False) as (session,):
        batches = session.batches(Selection(shape), batch_bytes=10_000)
        next(batches)
        closer = threading.Thread(target=session.close)
        closer.start()
        with pytest.raises(ConnectionLost) as raised:
            for _ in batches:
                pass
        closer.join()
    assert raised.value.code == "session_closed"


def test_an_iterator_that_is_closed_early_leaves_the_session_usable(many: World) -> None:
    world = many
    world.run("CREATE TABLE log (id INTEGER PRIMARY KEY)")
    shape, endless = world.shape("log"), world.shape("mine", ENDLESS)
    with world.database.sessions(1, consistent=True) as (session,):
        batches = session.batches(Selection(endless), batch_bytes=10_000)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        assert session.summary(Selection(shape), checksums=False).rows == 0


def test_a_statement_may_take_only_so_long(many: World) -> None:
    world = many
    database = world.open(statement_timeout_s=1)
    shape = world.shape("mine", ENDLESS + " WHERE a.id + b.id + c.id + d.id + e.id < 0")
    with database.sessions(1, consistent=False) as (session,), pytest.raises(TransientError) as raised:
        session.summary(Selection(shape), checksums=False)
    assert raised.value.code == "statement_timeout"


# -- caps --------------------------------------------------------------------------------------------------------------


def test_no_more_connections_than_the_job_allows(world: World) -> None:
    world.run("CREATE TABLE log (id INTEGER PRIMARY KEY)")
    database = world.open(max_connections=2)
    order: list[str] = []
    with database.sessions(5, consistent=True) as sessions:
        assert len(sessions) == 2

        def describe() -> None:
            database.describe(TableName(world.schema, "log"))
            order.append("described")

        waiting = threading.Thread(target=describe)
        waiting.start()
        order.append("read")
    waiting.join()
    assert order == ["read", "described"]


# -- errors ------------------------------------------------------------------------------------------------------------


def test_what_is_not_there(world: World) -> None:
    with pytest.raises(NotFound):
        world.shape("nowhere")
    world.run("CREATE TABLE gone (id INTEGER PRIMARY KEY)")
    shape = world.shape("gone")
    world.run("DROP TABLE gone")
    with pytest.raises(NotFound) as raised:
        world.read(Selection(shape))
    assert "gone" in raised.value.subject


def test_facts_name_the_database(world: World) -> None:
    facts = world.database.check()
    assert facts.dialect == world.dialect
    assert facts.default_schema == world.schema
    assert facts.snapshots
    assert "password" not in facts.identity
    assert facts == world.open().check()


@pytest.mark.parametrize("odbc", [False, True])
def test_what_a_server_refuses(postgres: PostgresDatabase, odbc: bool) -> None:
    if odbc and (missing := odbc_missing()):
        pytest.skip(missing)
    value = postgres.odbc if odbc else postgres.url
    cases = {
        value.replace(postgres.password, "wrong-secret"): "login_refused",
        value.replace(postgres.name, "no_such_database"): "database_missing",
        value.replace(f"{postgres.port}", "1"): "connection_lost",
    }
    for wrong, code in cases.items():
        # What may only be restarting is asked again before a run ends.
        with pytest.raises(ConnectionLost if code == "connection_lost" else RunError) as raised:
            World("postgresql", "public", wrong, postgres.connect).open().check()
        assert raised.value.code == code
        assert "secret" not in str(raised.value)
        assert postgres.password not in str(raised.value)
    guest = f"guest_{postgres.name}"
    postgres.run(
        "CREATE TABLE hidden (id int, name text)", f"CREATE ROLE {guest} LOGIN PASSWORD '{guest}'",
        f"GRANT SELECT (id) ON hidden TO {guest}",
    )  # fmt: skip
    value = value.replace(postgres.password, guest).replace("//postgres:", f"//{guest}:")
    value = value.replace("UID=postgres", f"UID={guest}")
    database = World("postgresql", "public", value, postgres.connect).open()
    with pytest.raises(AccessDenied):
        database.describe(TableName("public", "hidden"))
    assert [column.name for column in database.describe(TableName("", "q"), "SELECT id FROM hidden").columns] == ["id"]
