"""A real SQL Server (2016 or later) or Azure SQL, named by TEST_MSSQL_URL: what T-SQL by the letter cannot show.

TEST_MSSQL_URL is a SQLAlchemy URL or an ODBC connection string. Where its login may create databases, a database of the
tests' own is made and dropped, with snapshots, Change Tracking and CDC switched on; else a schema of their own in the
database that it names, whose options stay as they are, and what they do not allow is skipped, with the reason.
CDC wants SQL Server Agent; where it does not run, the tests scan the log themselves, for which the login has to be
db_owner.

What is expected is written here in Python, or asked by a connection of the tests' own; nothing is taken from the code.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import secrets
import struct
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, date, datetime
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import pytest

from shared.errors import ItemError, MigrationError, NotFound, TransientError, Unsupported
from shared.policy.sql.names import TableName
from shared.ports.tables import KeyRange, RowRule, Selection, TableDatabase, TableSession, TableShape, Window

URL = os.environ.get("TEST_MSSQL_URL", "")
pytestmark = pytest.mark.skipif(
    not URL,
    reason="TEST_MSSQL_URL is not set: set it to a SQL Server (2016 or later) or Azure SQL, such as "
    "mssql+pyodbc://sa:...@localhost/master?TrustServerCertificate=yes, whose login may create databases",
)

BATCH_BYTES = 1 << 20
MERSENNE = 2**31 - 1
_SETTINGS = itertools.count(1)
_NAMES = itertools.count(1)
_WIDE = Context(prec=80)


class Live:
    """A database, and a schema in it, that nobody else works with."""

    def __init__(self, value: str, schema: str, *, is_own: bool) -> None:
        self.value, self.schema, self.is_own = value, schema, is_own
        self._default: TableDatabase | None = None

    def connect(self) -> Any:
        """A connection of the tests' own, in autocommit."""
        import pyodbc

        from shared.clients.sql.connection import parse_connection
        from shared.clients.sql.odbc import packed_token

        connection = parse_connection("TEST_MSSQL_URL", self.value)
        attributes = {1256: packed_token(token())} if connection.needs_token else {}
        return pyodbc.connect(connection.text, autocommit=True, timeout=30, attrs_before=attributes)

    def run(self, *statements: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of the last statement."""
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            rows: list[tuple[Any, ...]] = []
            # Braces in names are no escapes of ODBC's.
            cursor.noscan = True
            for statement in statements:
                cursor.execute(statement, *parameters)
                while cursor.description is None and cursor.nextset():
                    pass
                rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
                while cursor.nextset():
                    pass
            return rows

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        with closing(self.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def name(self) -> str:
        return f"t{next(_NAMES):04d}"

    def make(self, columns: str, *, options: str = "") -> tuple[str, str]:
        """A table: its name, and how statements write it."""
        name = self.name()
        self.run(f"CREATE TABLE [{self.schema}].[{name}] ({columns}) {options}")
        return name, f"[{self.schema}].[{name}]"

    def open(self, **source: Any) -> TableDatabase:
        from shared.clients.sql import open_database
        from shared.model.sql_job import SqlSource, Types

        types = source.pop("types", Types())
        return open_database(self.value, SqlSource(connection=f"DB_{next(_SETTINGS)}", **source), types, token=token)

    @property
    def database(self) -> TableDatabase:
        if self._default is None:
            self._default = self.open(max_connections=16)
        return self._default

    def shape(self, name: str, query: str | None = None) -> TableShape:
        return self.database.describe(TableName("" if query else self.schema, name), query)

    def read(self, selection: Selection, *, consistent: bool = False) -> list[dict[str, Any]]:
        with self.database.sessions(1, consistent=consistent, for_table=selection.shape) as (session,):
            return rows_of(session, selection)

    def has(self, what: str) -> bool:
        """Whether the database allows ``snapshot``, ``tracking`` or ``cdc``."""
        asked = {
            "snapshot": "SELECT snapshot_isolation_state FROM sys.databases WHERE database_id = DB_ID()",
            "tracking": "SELECT COUNT(*) FROM sys.change_tracking_databases WHERE database_id = DB_ID()",
            "cdc": "SELECT CAST(is_cdc_enabled AS int) FROM sys.databases WHERE database_id = DB_ID()",
        }
        return bool(self.run(asked[what])[0][0] == 1)


def token() -> str:
    from azure.identity import DefaultAzureCredential

    return str(DefaultAzureCredential().get_token("https://database.windows.net/.default").token)


def rows_of(session: TableSession, selection: Selection) -> list[dict[str, Any]]:
    return [row for batch in session.batches(selection, batch_bytes=BATCH_BYTES) for row in batch.to_pylist()]


def integer_of(value: Any, lake_type: str) -> int:
    """As the definition of the checksum says, in plain Python."""
    if lake_type == "bool" or lake_type.startswith("int"):
        return int(value) % MERSENNE
    if lake_type == "date32":
        return (value - date(1970, 1, 1)).days % MERSENNE
    if lake_type.startswith("timestamp"):
        passed = value - datetime(1970, 1, 1, tzinfo=UTC if "UTC" in lake_type else None)
        return ((passed.days * 86_400 + passed.seconds) * 1_000_000 + passed.microseconds) % MERSENNE
    if lake_type.startswith("decimal128"):
        scale = int(lake_type.rstrip(")").rpartition(", ")[2])
        return int(Decimal(value).scaleb(scale, context=_WIDE)) % MERSENNE
    if lake_type in ("float", "double"):
        return int(struct.unpack("<q", struct.pack("<d", value))[0]) % MERSENNE
    data = value.encode("utf-16-le") if isinstance(value, str) else value
    return int.from_bytes(hashlib.md5(data).digest()[:4], "big") & 0x7FFFFFFF


def assert_summary(live: Live, selection: Selection, rows: list[dict[str, Any]]) -> None:
    """The server's own sums are those of the rows that were read."""
    with live.database.sessions(1, consistent=False) as (session,):
        summary = session.summary(selection, checksums=True)
        assert session.summary(selection, checksums=False).rows == len(rows)
    assert summary.rows == len(rows) and summary.definition == "md5 utf-16-le"
    for column in selection.shape.lake_columns:
        values = [row[column.name] for row in rows]
        expected = sum(integer_of(value, column.type) for value in values if value is not None)
        found = summary.columns[column.name]
        assert (found.nulls, found.total) == (values.count(None), expected), column


# -- a place of our own ------------------------------------------------------------------------------------------------


def _at(value: str, database: str) -> str:
    """The same server, another database; of a keyword that is there twice the first counts."""
    from shared.clients.sql.connection import parse_connection

    return f"Database={database};{parse_connection('TEST_MSSQL_URL', value).text}"


@pytest.fixture(scope="module")
def live() -> Iterator[Live]:
    import pyodbc

    given = Live(URL, "", is_own=False)
    name = f"lakehouse_test_{secrets.token_hex(4)}"
    ((engine, may_create),) = given.run(
        "SELECT CAST(SERVERPROPERTY('EngineEdition') AS int), HAS_PERMS_BY_NAME(NULL, NULL, N'CREATE ANY DATABASE')"
    )
    refused = "" if may_create and engine not in (5, 11, 12) else "its login may not"
    if not refused:
        try:
            # Case does not tell values apart here, and the code page is not that of the tests' other text.
            given.run(f"CREATE DATABASE [{name}] COLLATE Latin1_General_100_CI_AS")
        except pyodbc.Error as error:
            refused = str(error)
    if refused:
        warnings.warn(
            f"tested in a schema of the given database, since no database can be made: {refused}", stacklevel=1
        )
        schema = Live(URL, name, is_own=False)
        schema.run(f"CREATE SCHEMA [{name}]")
        try:
            yield schema
        finally:
            _drop_schema(schema)
        return
    own = Live(_at(URL, name), name, is_own=True)
    try:
        given.run(f"ALTER DATABASE [{name}] SET ALLOW_SNAPSHOT_ISOLATION ON")
        given.run(f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 2 DAYS, AUTO_CLEANUP = ON)")
        own.run(f"CREATE SCHEMA [{name}]")
        with suppress(Exception):
            # An edition without CDC: what needs it says so.
            own.run("EXEC sys.sp_cdc_enable_db")
        yield own
    finally:
        with suppress(Exception):
            # Else the Agent's capture might be the single user that is left.
            own.run("EXEC sys.sp_cdc_disable_db")
        given.run(f"ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE", f"DROP DATABASE [{name}]")


def _drop_schema(live: Live) -> None:
    for kind, word in (("V", "VIEW"), ("U", "TABLE")):
        for (name,) in live.run(
            "SELECT name FROM sys.objects WHERE schema_id = SCHEMA_ID(?) AND type = ? ORDER BY object_id DESC",
            parameters=(live.schema, kind),
        ):
            with suppress(Exception):
                live.run(f"ALTER TABLE [{live.schema}].[{name}] SET (SYSTEM_VERSIONING = OFF)")
            live.run(f"DROP {word} [{live.schema}].[{name.replace(']', ']]')}]")
    for (name,) in live.run("SELECT name FROM sys.types WHERE schema_id = SCHEMA_ID(?)", parameters=(live.schema,)):
        live.run(f"DROP TYPE [{live.schema}].[{name}]")
    live.run(f"DROP SCHEMA [{live.schema}]")


@pytest.fixture
def snapshots(live: Live) -> Live:
    if not live.has("snapshot"):
        pytest.skip("the database does not allow snapshots: ALTER DATABASE ... SET ALLOW_SNAPSHOT_ISOLATION ON")
    return live


@pytest.fixture
def tracking(live: Live) -> Live:
    if not live.has("tracking"):
        pytest.skip("the database tracks no changes: ALTER DATABASE ... SET CHANGE_TRACKING = ON")
    return live


@pytest.fixture
def cdc(live: Live) -> Live:
    if not live.has("cdc"):
        pytest.skip("CDC is off in the database: EXEC sys.sp_cdc_enable_db, by a member of db_owner")
    return live


# -- what the connection leads to --------------------------------------------------------------------------------------


def test_facts(live: Live) -> None:
    facts = live.database.check()
    ((database, schema, snapshots),) = live.run(
        "SELECT DB_NAME(), SCHEMA_NAME(), snapshot_isolation_state FROM sys.databases WHERE database_id = DB_ID()"
    )
    assert (facts.dialect, facts.database, facts.default_schema) == ("mssql", database, schema)
    assert facts.snapshots is (snapshots == 1)
    assert facts.identity == live.open().check().identity
    assert bool(facts.why_not) is not facts.snapshots


def test_tables_and_views_without_those_of_the_system(live: Live) -> None:
    name, table = live.make("id int")
    view = live.name()
    live.run(f"CREATE VIEW [{live.schema}].[{view}] AS SELECT id FROM {table}")
    found = live.database.tables()
    assert {TableName(live.schema, name), TableName(live.schema, view)} <= set(found)
    assert not {one.schema for one in found} & {"sys", "cdc", "INFORMATION_SCHEMA"}
    assert len(found) == len(set(found))


def test_a_table_that_is_not_there(live: Live) -> None:
    with pytest.raises(NotFound):
        live.shape("no such table")


def test_a_wrong_password_is_no_secret_but_its_remedy_is_told(live: Live) -> None:
    from shared.clients.sql import open_database
    from shared.clients.sql.connection import parse_connection
    from shared.errors import Authentication, RunError
    from shared.model.sql_job import SqlSource, Types

    if parse_connection("X", live.value).facts["identity"] != "login":
        pytest.skip("the connection is not by user and password")
    wrong = f"UID=nobody_{secrets.token_hex(3)};PWD=Hx9secret;{parse_connection('X', live.value).text}"
    with pytest.raises(RunError) as caught:
        open_database(wrong, SqlSource(connection="WRONG_DB"), Types()).check()
    assert isinstance(caught.value, Authentication) and "WRONG_DB" in caught.value.detail
    assert "Hx9secret" not in caught.value.detail


# -- types -------------------------------------------------------------------------------------------------------------

M = datetime
LONG_AGO, THE_END = M(1, 1, 1), M(9999, 12, 31, 23, 59, 59, 999999)
LATIN = "COLLATE Latin1_General_100_CI_AS"
# Of each type: literals of T-SQL, and what is to be read, for each lake column.
TYPES: dict[str, tuple[str, list[str], dict[str, list[Any]]]] = {
    "bit": ("bit", ["0", "1"], {"c": [False, True]}),
    "tinyint": ("tinyint", ["0", "255"], {"c": [0, 255]}),
    "smallint": ("smallint", ["-32768", "32767"], {"c": [-32768, 32767]}),
    "int": ("int", ["-2147483648", "2147483647", "0"], {"c": [-(2**31), 2**31 - 1, 0]}),
    "bigint": ("bigint", ["-9223372036854775808", "9223372036854775807", "2147483647", "-2147483648"],
               {"c": [-(2**63), 2**63 - 1, 2**31 - 1, -(2**31)]}),
    "decimal_38_10": ("decimal(38,10)", ["9999999999999999999999999999.9999999999",
                                          "-9999999999999999999999999999.9999999999", "-0.5", "0.0000000001", "0"],
                      {"c": [Decimal(x) for x in ("9999999999999999999999999999.9999999999",
                       "-9999999999999999999999999999.9999999999", "-0.5000000000", "1E-10", "0E-10")]}),
    "decimal_38_0": ("decimal(38,0)", ["9" * 38, "-" + "9" * 38],
                     {"c": [Decimal("9" * 38), Decimal("-" + "9" * 38)]}),
    "decimal_38_38": ("decimal(38,38)", ["'0." + "9" * 38 + "'", "'-0." + "9" * 38 + "'"],
                      {"c": [Decimal("0." + "9" * 38), Decimal("-0." + "9" * 38)]}),
    "numeric_1_0": ("numeric(1,0)", ["9", "-9"], {"c": [Decimal(9), Decimal(-9)]}),
    "money": ("money", ["922337203685477.5807", "-922337203685477.5808", "0.0001"],
              {"c": [Decimal("922337203685477.5807"), Decimal("-922337203685477.5808"), Decimal("0.0001")]}),
    "smallmoney": ("smallmoney", ["214748.3647", "-214748.3648"],
                   {"c": [Decimal("214748.3647"), Decimal("-214748.3648")]}),
    "float": ("float", ["1.7976931348623157E+308", "2.2250738585072014E-308", "0.1E0", "-1.5E0", "0"],
              {"c": [1.7976931348623157e308, 2.2250738585072014e-308, 0.1, -1.5, 0.0]}),
    "real": ("real", ["3.4028234663852886E+38", "1.1754943508222875E-38", "CAST(0.1 AS real)"],
             {"c": [struct.unpack("<f", struct.pack("<f", x))[0]
                   for x in (3.4028234663852886e38, 1.1754943508222875e-38, 0.1)]}),
    "date": ("date", ["'0001-01-01'", "'1969-12-31'", "'2000-02-29'", "'9999-12-31'"],
             {"c": [date(1, 1, 1), date(1969, 12, 31), date(2000, 2, 29), date(9999, 12, 31)]}),
    "smalldatetime": ("smalldatetime", ["'1900-01-01T00:00:00'", "'2079-06-06T23:59:00'"],
                      {"c": [M(1900, 1, 1), M(2079, 6, 6, 23, 59)]}),
    "datetime": ("datetime", ["'1753-01-01T00:00:00.000'", "'9999-12-31T23:59:59.997'", "'2024-01-01T00:00:00.003'",
                              "'2024-01-01T00:00:00.007'", "'1969-12-31T23:59:59.997'"],
                 {"c": [M(1753, 1, 1), M(9999, 12, 31, 23, 59, 59, 997000), M(2024, 1, 1, 0, 0, 0, 3000),
                        M(2024, 1, 1, 0, 0, 0, 7000), M(1969, 12, 31, 23, 59, 59, 997000)]}),
    "datetime2_0": ("datetime2(0)", ["'0001-01-01T00:00:00'", "'9999-12-31T23:59:59'"],
                    {"c": [LONG_AGO, M(9999, 12, 31, 23, 59, 59)]}),
    "datetime2_3": ("datetime2(3)", ["'0001-01-01T00:00:00.001'", "'9999-12-31T23:59:59.999'"],
                    {"c": [M(1, 1, 1, 0, 0, 0, 1000), M(9999, 12, 31, 23, 59, 59, 999000)]}),
    "datetime2_6": ("datetime2(6)", ["'1969-12-31T23:59:59.999999'"], {"c": [M(1969, 12, 31, 23, 59, 59, 999999)]}),
    "datetime2_7": ("datetime2(7)", ["'0001-01-01T00:00:00.0000001'", "'9999-12-31T23:59:59.9999999'",
                                     "'1969-12-31T23:59:59.9999999'", "'2024-01-01T00:00:00.1234560'"],
                    {"c": [LONG_AGO, THE_END, M(1969, 12, 31, 23, 59, 59, 999999), M(2024, 1, 1, 0, 0, 0, 123456)],
                     "c_100ns": [1, 9, 9, 0]}),
    "datetimeoffset_7": ("datetimeoffset(7)",
                         ["'0001-01-01T00:00:00.0000001+00:00'", "'9999-12-31T23:59:59.9999999+00:00'",
                          "'2024-06-30T23:30:00.1234567+05:30'", "'2024-01-01T00:00:00.0000000-14:00'"],
                         {"c": [LONG_AGO.replace(tzinfo=UTC), THE_END.replace(tzinfo=UTC),
                                M(2024, 6, 30, 18, 0, 0, 123456, UTC), M(2024, 1, 1, 14, tzinfo=UTC)],
                          "c_100ns": [1, 9, 7, 0], "c_offset_min": [0, 0, 330, -840]}),
    "datetimeoffset_0": ("datetimeoffset(0)", ["'2024-06-30T23:30:00+14:00'"],
                         {"c": [M(2024, 6, 30, 9, 30, tzinfo=UTC)], "c_offset_min": [840]}),
    "time_0": ("time(0)", ["'00:00:00'", "'23:59:59'"], {"c": ["00:00:00.0000000", "23:59:59.0000000"]}),
    "time_7": ("time(7)", ["'00:00:00'", "'23:59:59.9999999'", "'12:30:00.0000001'"],
               {"c": ["00:00:00.0000000", "23:59:59.9999999", "12:30:00.0000001"]}),
    "char_5": ("char(5)", ["'ab'", "''"], {"c": ["ab   ", "     "]}),
    "varchar_50": (f"varchar(50) {LATIN}", ["''", "' x '", "N'äöüß€'", "'O''Brien'"],
                   {"c": ["", " x ", "äöüß€", "O'Brien"]}),
    "varchar_greek": ("varchar(20) COLLATE Greek_CI_AS", ["N'Ωμέγα'", "'a'"], {"c": ["Ωμέγα", "a"]}),
    "varchar_undefined": (f"varchar(5) {LATIN}", ["CAST(0x818D8F9D AS varchar(5))"], {"c": ["\x81\x8d\x8f\x9d"]}),
    "varchar_8000": (f"varchar(8000) {LATIN}", ["REPLICATE(CAST(N'ä' AS nvarchar(max)), 8000)", "''"],
                     {"c": ["ä" * 8000, ""]}),
    "nchar_3": ("nchar(3)", ["N'漢'", "N'😀'"], {"c": ["漢  ", "😀 "]}),
    "nvarchar_50": ("nvarchar(50)", ["N''", "N'漢字😀'", "N'a😀'", "N'😀a'", "NCHAR(0) + N'x'", "NCHAR(65535)"],
                    {"c": ["", "漢字😀", "a😀", "😀a", "\x00x", "\uffff"]}),
    "nvarchar_4000": ("nvarchar(4000)", ["REPLICATE(N'漢', 4000)", "REPLICATE(N'😀', 2000)"],
                      {"c": ["漢" * 4000, "😀" * 2000]}),
    "varchar_max": (f"varchar(max) {LATIN}", ["REPLICATE(CAST(N'ä' AS nvarchar(max)), 8001)", "''", "'x'"],
                    {"c": ["ä" * 8001, "", "x"]}),
    "nvarchar_max": ("nvarchar(max)", ["REPLICATE(CAST(N'😀' AS nvarchar(max)), 4001)", "N''", "N'x'"],
                     {"c": ["😀" * 4001, "", "x"]}),
    "text": (f"text {LATIN}", ["REPLICATE(CAST(N'ä' AS nvarchar(max)), 8001)", "''"],
            {"c": ["ä" * 8001, ""]}),
    "ntext": ("ntext", ["REPLICATE(CAST(N'漢' AS nvarchar(max)), 4001)", "N''"], {"c": ["漢" * 4001, ""]}),
    "xml": ("xml", ["N'<a b=\"1\">漢</a>'", "N''"], {"c": ['<a b="1">漢</a>', ""]}),
    "binary_4": ("binary(4)", ["0xDEADBEEF", "0x01"], {"c": [b"\xde\xad\xbe\xef", b"\x01\x00\x00\x00"]}),
    "varbinary_8000": ("varbinary(8000)", ["0x", "0x00FF00", "CAST(REPLICATE('ab', 4000) AS varbinary(8000))"],
                       {"c": [b"", b"\x00\xff\x00", b"ab" * 4000]}),
    "varbinary_max": ("varbinary(max)", ["0x", "CAST(REPLICATE(CAST('ab' AS varchar(max)), 5000) AS varbinary(max))"],
                      {"c": [b"", b"ab" * 5000]}),
    "image": ("image", ["0x00FF", "0x"], {"c": [b"\x00\xff", b""]}),
    "uniqueidentifier": ("uniqueidentifier", ["'6F9619FF-8B86-D011-B42D-00C04FC964FF'"],
                         {"c": ["6f9619ff-8b86-d011-b42d-00c04fc964ff"]}),
    "hierarchyid": ("hierarchyid", ["'/'", "'/1/3.5/'"], {"c": ["/", "/1/3.5/"]}),
    "variant": ("sql_variant", [
        "CAST(1 AS int)", "CAST(N'漢' AS nvarchar(10))", "CAST('ä' AS varchar(10))", "CAST(0.1E0 AS float)",
        "CAST('2024-01-01T00:00:00.1234567' AS datetime2(7))", "CAST(0x00FF AS varbinary(4))",
        "CAST(922337203685477.5807 AS money)", "CAST('1.50' AS decimal(5,2))",
    ], {"c": ["1", "漢", "ä", "1.0000000000000001e-001", "2024-01-01T00:00:00.1234567", "0x00FF",
              "922337203685477.5807", "1.50"],
        "c_base_type": ["int", "nvarchar", "varchar", "float", "datetime2", "varbinary", "money", "decimal"]}),
}  # fmt: skip


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_at_its_extremes(live: Live, kind: str) -> None:
    if kind == "varchar_undefined" and not live.is_own:
        pytest.skip("bytes become text in the code page of the database, which is not the tests' own")
    declared, literals, expected = TYPES[kind]
    name, table = live.make(f"id int PRIMARY KEY, c {declared} NULL")
    for number, literal in enumerate([*literals, "NULL"]):
        live.run(f"INSERT INTO {table} VALUES ({number}, {literal})")
    shape = live.shape(name)
    assert [column.name for column in shape.lake_columns] == ["id", *expected]

    selection = Selection(shape, order_by=("id",))
    rows = live.read(selection)
    assert [row["id"] for row in rows] == list(range(len(literals) + 1))
    for column, values in expected.items():
        for row, value in zip(rows, [*values, None], strict=True):
            assert repr(row[column]) == repr(value) or row[column] == value, (kind, column)
    assert_summary(live, selection, rows)


@pytest.mark.parametrize("batch_bytes", [1, 5000, BATCH_BYTES])
def test_blocks_and_single_rows_bring_the_same(live: Live, batch_bytes: int) -> None:
    """A column of unbounded length makes the driver give row by row what it else fills into arrays."""
    kinds = {
        kind: (declared, literals)
        for kind, (declared, literals, _) in TYPES.items()
        if "max" not in kind and kind not in ("text", "ntext", "xml", "image", "variant", "hierarchyid")
        if kind != "varchar_undefined" or live.is_own
    }
    name, table = live.make(
        "id int PRIMARY KEY, " + ", ".join(f"[{kind}] {made[0]} NULL" for kind, made in kinds.items())
        + ", long nvarchar(max) NULL"
    )  # fmt: skip
    number = itertools.count(1)
    for kind, (_, literals) in kinds.items():
        # One by one: rows of one VALUES would be brought to a common type first.
        rows = [f"INSERT INTO {table} (id, [{kind}], long) VALUES ({next(number)}, {text}, N'x')" for text in literals]
        live.run("; ".join(rows))
    whole = live.shape(name)
    short = replace(whole, columns=tuple(column for column in whole.columns if column.name != "long"))
    with live.database.sessions(1, consistent=False) as (session,):
        one_by_one, in_blocks = (
            [row for batch in session.batches(Selection(shape, order_by=("id",)), batch_bytes=batch_bytes)
             for row in batch.to_pylist()]
            for shape in (whole, short)
        )  # fmt: skip
    assert len(in_blocks) == next(number) - 1
    for long_row, row in zip(one_by_one, in_blocks, strict=True):
        assert long_row.pop("long") == "x"
        assert long_row == row


def test_a_position_of_each_type_means_its_value_again(live: Live) -> None:
    """Through text and back: exactly the rows of the greatest value lie between it and itself."""
    for kind, (declared, literals, _) in TYPES.items():
        if kind in ("bit", "text", "ntext", "xml", "image", "variant", "hierarchyid") or "max" in kind:
            continue
        if kind == "varchar_undefined" and not live.is_own:
            continue
        name, table = live.make(f"id int PRIMARY KEY, c {declared} NULL")
        for number, literal in enumerate([*literals, *literals, "NULL"]):
            live.run(f"INSERT INTO {table} VALUES ({number}, {literal})")
        shape = live.shape(name)
        with live.database.sessions(1, consistent=False) as (session,):
            position = session.position(shape, "watermark", "c")
            assert position is not None
            window = Window("watermark", position, position, column="c")
            found = sorted(row["id"] for row in rows_of(session, Selection(shape, window=window)))
        expected = live.run(f"SELECT id FROM {table} WHERE c = (SELECT MAX(c) FROM {table}) ORDER BY id")
        assert found == [row[0] for row in expected] and len(found) >= 2, kind


def test_spatial_values_with_all_their_dimensions(live: Live) -> None:
    name, table = live.make("id int PRIMARY KEY, g geography NULL, p geometry NULL")
    live.run(
        f"INSERT INTO {table} VALUES (1, geography::STGeomFromText('POINT(10 50 7 8)', 4326), "
        "geometry::STGeomFromText('LINESTRING(0 0 1, 3 4 2)', 3857)), (2, NULL, NULL)"
    )
    first, second = live.read(Selection(live.shape(name), order_by=("id",)))
    # Little-endian, a point with Z and M (3001), a line with Z (1002).
    assert first["g"] == struct.pack("<BI4d", 1, 3001, 10, 50, 7, 8) and first["g_srid"] == 4326
    assert first["p"] == struct.pack("<BII6d", 1, 1002, 2, 0, 0, 1, 3, 4, 2) and first["p_srid"] == 3857
    assert (second["g"], second["g_srid"], second["p"], second["p_srid"]) == (None, None, None, None)


def test_finer_than_a_microsecond_as_the_job_wishes(live: Live) -> None:
    from shared.model.sql_job import Types

    name, table = live.make("a datetime2(7), b datetimeoffset(7)")
    live.run(f"INSERT INTO {table} VALUES ('2024-01-01T10:00:00.1234567', '2024-01-01T10:00:00.0000000+02:00')")

    def read(**wishes: str) -> dict[str, Any]:
        database = live.open(types=Types.model_validate(wishes))
        shape = database.describe(TableName(live.schema, name))
        with database.sessions(1, consistent=False) as (session,):
            (row,) = rows_of(session, Selection(shape))
        return row

    assert read(sub_microsecond="text") == {
        "a": "2024-01-01T10:00:00.1234567", "b": "2024-01-01T10:00:00.0000000+02:00",
    }  # fmt: skip
    assert read(sub_microsecond="truncate", offset="utc") == {
        "a": M(2024, 1, 1, 10, 0, 0, 123456), "b": M(2024, 1, 1, 8, tzinfo=UTC),
    }  # fmt: skip
    assert read(offset="text")["b"] == "2024-01-01T10:00:00.0000000+02:00"


def test_text_that_is_no_unicode_is_an_error_not_another_text(live: Live) -> None:
    for declared in ("nvarchar(10)", "nvarchar(max)"):
        name, table = live.make(f"c {declared}")
        live.run(f"INSERT INTO {table} VALUES (NCHAR(0xD83D))")
        with pytest.raises(Unsupported) as caught:
            live.read(Selection(live.shape(name)))
        assert caught.value.code == "value_unfit"


def test_long_values_are_complete_one_by_one(live: Live) -> None:
    name, table = live.make(
        "id int PRIMARY KEY, t nvarchar(max), v varchar(max) " + LATIN + ", b varbinary(max), x xml"
    )
    sizes = [0, 1, 3999, 4000, 4001, 7999, 8000, 8001, 100_000, 5_000_000]
    for number, size in enumerate(sizes):
        live.run(
            f"INSERT INTO {table} VALUES ({number}, REPLICATE(CAST(N'漢' AS nvarchar(max)), {size}), "
            f"REPLICATE(CAST(N'ä' AS nvarchar(max)), {size}), "
            f"CAST(REPLICATE(CAST('ab' AS varchar(max)), {size}) AS varbinary(max)), "
            f"CAST(N'<a>' + REPLICATE(CAST(N'ß' AS nvarchar(max)), {size}) + N'</a>' AS xml))"
        )
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        batches = list(session.batches(Selection(shape, order_by=("id",)), batch_bytes=50_000))
    assert max(batch.num_rows for batch in batches) < len(sizes)
    rows = [row for batch in batches for row in batch.to_pylist()]
    for row, size in zip(rows, sizes, strict=True):
        assert row["t"] == "漢" * size and row["v"] == "ä" * size and row["b"] == b"ab" * size
        assert row["x"] == ("<a>" + "ß" * size + "</a>" if size else "<a/>")
    assert_summary(live, Selection(shape), rows)


def test_empty_tables_wide_tables_and_tables_without_a_key(live: Live) -> None:
    name, _ = live.make("a int, b nvarchar(max)")
    shape = live.shape(name)
    assert shape.key == () and live.read(Selection(shape)) == []
    assert_summary(live, Selection(shape), [])
    wide, table = live.make(", ".join(f"c{n} int" for n in range(900)))
    live.insert(table, [list(range(900)), [None] * 900])
    shape = live.shape(wide)
    rows = live.read(Selection(shape))
    assert sorted(rows, key=lambda row: row["c0"] is None)[0]["c899"] == 899
    assert_summary(live, Selection(shape), rows)


def test_what_the_catalog_knows_of_a_table(live: Live) -> None:
    name, table = live.make(
        "b int NOT NULL, a int IDENTITY NOT NULL, c AS b * 2, d decimal(38,10) NULL, s sysname NULL, "
        "v rowversion, CONSTRAINT [pk_of] PRIMARY KEY (b, a)".replace("pk_of", f"pk_{secrets.token_hex(4)}")
    )
    live.run(f"INSERT INTO {table} (b) SELECT TOP (1000) 1 FROM sys.all_columns")
    shape = live.shape(name)
    assert [(one.name, one.type) for one in shape.columns] == [
        ("b", "int"), ("a", "int"), ("c", "int"), ("d", "decimal(38,10)"), ("s", "nvarchar(128)"), ("v", "timestamp"),
    ]  # fmt: skip
    assert [one.nullable for one in shape.columns if one.name in "bads"] == [False, False, True, True]
    assert shape.key == ("b", "a") and shape.rows == 1000 and shape.size_bytes > 0
    assert shape.facts["identity"] == ["a"] and shape.facts["computed"] == ["c"]
    assert {row["c"] for row in live.read(Selection(shape))} == {2}
    # A name in another case, where the database takes it, is the catalog's own in what follows.
    with suppress(NotFound):
        assert live.shape(name.upper()).table == shape.table


def test_temporal_tables_hidden_columns_and_types_of_the_databases_own(live: Live) -> None:
    alias = f"phone_{secrets.token_hex(3)}"
    live.run(f"CREATE TYPE [{live.schema}].[{alias}] FROM varchar(20) NOT NULL")
    name, history = live.name(), live.name()
    live.run(
        f"CREATE TABLE [{live.schema}].[{name}] (id int PRIMARY KEY, p [{live.schema}].[{alias}], "
        "f datetime2(7) GENERATED ALWAYS AS ROW START HIDDEN NOT NULL, "
        "u datetime2(7) GENERATED ALWAYS AS ROW END HIDDEN NOT NULL, PERIOD FOR SYSTEM_TIME (f, u)) "
        f"WITH (SYSTEM_VERSIONING = ON (HISTORY_TABLE = [{live.schema}].[{history}]))"
    )
    try:
        live.run(f"INSERT INTO [{live.schema}].[{name}] (id, p) VALUES (1, '42')")
        shape = live.shape(name)
        assert shape.facts["temporal"] == "current" and live.shape(history).facts["temporal"] == "history"
        (row,) = live.read(Selection(shape))
        assert (row["id"], row["p"], row["u"], row["u_100ns"]) == (1, "42", THE_END, 9)
    finally:
        live.run(f"ALTER TABLE [{live.schema}].[{name}] SET (SYSTEM_VERSIONING = OFF)")
        live.run(f"DROP TABLE [{live.schema}].[{name}]", f"DROP TABLE [{live.schema}].[{history}]")
        live.run(f"DROP TYPE [{live.schema}].[{alias}]")


NAMES = [
    "a]b",
    "a'b",
    'a"b',
    "a;b",
    "a b",
    "ä漢",
    "a]; DROP TABLE x; --",
    "--",
    "/*",
    "a.b",
    "select",
    "%s",
    "?",
    "{x}",
]


@pytest.mark.parametrize("name", NAMES)
def test_odd_names_and_injections(live: Live, name: str) -> None:
    quoted = "[" + name.replace("]", "]]") + "]"
    table = f"[{live.schema}].{quoted}"
    canary, canary_table = live.make("id int")
    live.run(f"CREATE TABLE {table} ({quoted} nvarchar(50) NOT NULL PRIMARY KEY, other int)")
    try:
        if live.has("tracking"):
            live.run(f"ALTER TABLE {table} ENABLE CHANGE_TRACKING")
        live.run(f"INSERT INTO {table} VALUES (N'1', 1), (N'''; DROP TABLE x; --', 2), (N']', 3)")
        shape = live.shape(name)
        assert shape.table == TableName(live.schema, name) and shape.key == (name,)
        rules = (
            RowRule("not_null", (name,)), RowRule("unique", (name,)), RowRule("range", (name,), minimum="'; DROP"),
            RowRule("foreign_key", (name,), references=shape.table, reference_columns=(name,)),
        )  # fmt: skip
        rows = live.read(Selection(shape, rules=rules, range=KeyRange(name, "'", None), order_by=(name,)))
        assert {row["other"] for row in rows} == {
            row[0] for row in live.run(f"SELECT other FROM {table} WHERE {quoted} >= N''''")
        }
        if live.has("tracking"):
            changes = live.read(Selection(shape, window=Window("tracking", "0", str(version(live)))))
            assert len(changes) == 3
        with live.database.sessions(1, consistent=False) as (session,):
            ranges = session.cut(shape, name, 1)
            assert sum(session.summary(Selection(shape, range=one), checksums=False).rows for one in ranges) == 3
        assert live.run(f"SELECT COUNT(*) FROM {canary_table}") == [(0,)], canary
    finally:
        live.run(f"DROP TABLE {table}")


# -- queries, views, rules ---------------------------------------------------------------------------------------------


def test_a_query_with_its_types(live: Live) -> None:
    _, table = live.make("id int PRIMARY KEY, at datetime2(7), g geography")
    live.run(f"INSERT INTO {table} VALUES (1, '2024-01-01T00:00:00.1234567', geography::Point(50, 10, 4326))")
    shape = live.shape("wide", f"SELECT id, at, g, CAST(NULL AS nvarchar(max)) AS n FROM {table} -- all\n;")
    assert [one.type for one in shape.columns] == ["int", "datetime2(7)", "geography", "nvarchar(max)"]
    (row,) = live.read(Selection(shape))
    assert (row["at"], row["at_100ns"], row["g_srid"], row["n"]) == (M(2024, 1, 1, 0, 0, 0, 123456), 7, 4326, None)


@pytest.mark.parametrize(
    "query",
    ["SELECT nothing FROM nowhere", "WITH a AS (SELECT 1 AS x) SELECT * FROM a", "SELECT 1", "SELECT 1 AS a ORDER BY a",
     "SELECT 1 AS a; DROP TABLE x", "EXEC sp_who"],
)  # fmt: skip
def test_a_query_that_cannot_be_read_says_so(live: Live, query: str) -> None:
    with pytest.raises(ItemError) as caught:
        live.shape("wrong", query)
    assert len(caught.value.detail) > 20


def test_a_view_is_read_without_sizes(live: Live) -> None:
    _, table = live.make("id int PRIMARY KEY")
    live.insert(table, [(number,) for number in range(10)])
    view = live.name()
    live.run(f"CREATE VIEW [{live.schema}].[{view}] AS SELECT id, id * 2 AS twice FROM {table}")
    shape = live.shape(view)
    assert shape.facts["view"] is True and shape.rows == -1 and shape.key == ()
    assert sorted(row["twice"] for row in live.read(Selection(shape))) == list(range(0, 20, 2))
    with live.database.sessions(1, consistent=False) as (session,):
        ranges = session.cut(shape, "id", 3)
        assert len(ranges) >= 3
        assert sum(session.summary(Selection(shape, range=one), checksums=False).rows for one in ranges) == 10


def test_rules_tell_which_rows_break_them(live: Live) -> None:
    people, people_table = live.make("no int PRIMARY KEY")
    live.insert(people_table, [(1,), (2,)])
    name, table = live.make("id int PRIMARY KEY, n nvarchar(20) NULL, person int NULL, v decimal(10,2) NULL")
    live.insert(table, [(1, "a", 1, 5), (2, "A", 9, 15), (3, None, None, None), (4, "b", 2, "0.5")])
    shape = live.shape(name)
    rules = (
        RowRule("not_null", ("n",)), RowRule("unique", ("n",)), RowRule("range", ("v",), minimum=1, maximum=10.5),
        RowRule("foreign_key", ("person",), references=TableName(live.schema, people), reference_columns=("no",)),
        RowRule("sql", sql="v > 1 OR n = 'b' -- comment"),
    )  # fmt: skip
    rows = live.read(Selection(shape, rules=rules, order_by=("id",)))
    is_blind = live.run("SELECT CASE WHEN N'a' = N'A' THEN 1 ELSE 0 END") == [(1,)]
    broken = [[number for number in range(5) if row[f"_rule_{number}"]] for row in rows]
    doubled = [1] if is_blind else []
    assert broken == [doubled, sorted([*doubled, 2, 3]), [0], [2]]
    with live.database.sessions(1, consistent=False) as (session,):
        counts = [session.broken_rows(Selection(shape), rule) for rule in rules]
        for rule in rules:
            session.try_rule(shape, rule)
    assert counts == [1, 2 if is_blind else 0, 2, 1, 0]
    refused = (RowRule("sql", sql="nowhere > 1"),
               RowRule("foreign_key", ("person",), references=TableName(live.schema, people)))  # fmt: skip
    for rule in refused:
        with live.database.sessions(1, consistent=False) as (session,), pytest.raises((NotFound, Unsupported)):
            session.try_rule(shape, rule)


def test_freshness(live: Live) -> None:
    name, table = live.make("a datetime2(7), b datetimeoffset(7), c datetime, d int")
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        assert session.age_s(shape, "a") is None
    live.run(
        f"INSERT INTO {table} VALUES (DATEADD(second, -100, SYSDATETIME()), "
        "SWITCHOFFSET(DATEADD(second, -100, SYSDATETIMEOFFSET()), '+09:00'), DATEADD(second, -100, GETDATE()), 1)"
    )
    with live.database.sessions(1, consistent=False) as (session,):
        for column in ("a", "b", "c"):
            age = session.age_s(shape, column)
            assert age is not None and 99 < age < 160


# -- cuts --------------------------------------------------------------------------------------------------------------

KEYS = {
    "int": "n", "bigint": "CAST(n AS bigint) * 1000000007 - 5000000000000", "decimal(20,4)": "n / 7.0",
    "nvarchar(40)": "CONVERT(nvarchar(40), HASHBYTES('MD5', CAST(n AS varchar(10))), 2)",
    "varchar(40) COLLATE Greek_CI_AS": "CONVERT(varchar(40), HASHBYTES('MD5', CAST(n AS varchar(10))), 2)",
    "uniqueidentifier": "CAST(HASHBYTES('MD5', CAST(n AS varchar(10))) AS uniqueidentifier)",
    "datetime2(7)": "DATEADD(nanosecond, n * 100, CAST('2024-01-01' AS datetime2(7)))",
    "datetime": "DATEADD(millisecond, n * 10, CAST('20240101' AS datetime))",
    "datetimeoffset(7)": "TODATETIMEOFFSET(DATEADD(second, n, CAST('2024-01-01' AS datetime2(7))), (n % 20) * 30)",
    "binary(16)": "CAST(HASHBYTES('MD5', CAST(n AS varchar(10))) AS binary(16))", "float": "n / 3.0E0",
    "date": "DATEADD(day, n, CAST('0001-01-01' AS date))",
    "time(7)": "DATEADD(millisecond, n, CAST('00:00' AS time(7)))",
    "money": "CAST(n / 100.0 AS money)",
}  # fmt: skip


@pytest.mark.parametrize("declared", KEYS)
@pytest.mark.parametrize("source", ["statistics", "sample", "all rows"])
def test_cuts_cover_every_row_once(live: Live, declared: str, source: str) -> None:
    count = 5000
    name, table = live.make(f"id int PRIMARY KEY, k {declared} NULL")
    live.run(
        f"INSERT INTO {table} SELECT n, {KEYS[declared]} FROM (SELECT TOP ({count}) CAST(ROW_NUMBER() OVER "
        "(ORDER BY (SELECT 1)) AS int) AS n FROM sys.all_columns AS a CROSS JOIN sys.all_columns AS b) AS x"
    )
    live.run(f"INSERT INTO {table} VALUES (-1, NULL), (-2, NULL)")
    if source == "statistics":
        live.run(f"CREATE INDEX ix ON {table} (k)")
    shape = live.shape(name)
    if source == "sample":
        # As many as make the whole too much to look at.
        shape = replace(shape, rows=100_000_000)
    with live.database.sessions(1, consistent=False) as (session,):
        ranges = session.cut(shape, "k", 500)
        seen: list[int] = []
        for one in ranges:
            rows = rows_of(session, Selection(shape, range=one))
            seen += [row["id"] for row in rows]
            assert session.summary(Selection(shape, range=one), checksums=False).rows == len(rows)
            if source == "all rows":
                assert len(rows) <= 2000
    assert sorted(seen) == sorted([*range(1, count + 1), -1, -2])
    if source != "sample":
        assert len(ranges) >= 4


# -- watermarks --------------------------------------------------------------------------------------------------------


def test_ties_at_the_boundary_in_seven_digits(live: Live) -> None:
    name, table = live.make("id int PRIMARY KEY, at datetime2(7) NULL")
    for number, text in enumerate(["00.1234566", "00.1234567", "00.1234567", "00.1234568"]):
        live.run(f"INSERT INTO {table} VALUES ({number}, '2024-01-01T00:00:{text}')")
    live.run(f"INSERT INTO {table} VALUES (9, NULL)")
    shape = live.shape(name)

    def between(after: str | None, upto: str, lookback_s: float = 0.0) -> list[int]:
        window = Window("watermark", after, upto, column="at", lookback_s=lookback_s)
        return sorted(row["id"] for row in live.read(Selection(shape, window=window)))

    first, tied, last = (f"2024-01-01T00:00:00.123456{digit}" for digit in (6, 7, 8))
    assert between(None, tied) == [0, 1, 2]
    assert between(tied, tied) == [1, 2]
    assert between(tied, last) == [1, 2, 3]
    assert between(last, last) == [3]
    assert between(last, last, lookback_s=1) == [0, 1, 2, 3]
    with live.database.sessions(1, consistent=False) as (session,):
        assert session.position(shape, "watermark", "AT") == last
    live.run(f"DELETE FROM {table}")
    with live.database.sessions(1, consistent=False) as (session,):
        assert session.position(shape, "watermark", "at") is None
    assert first < tied


def test_a_watermark_of_datetime_takes_up_where_it_stopped(live: Live) -> None:
    """1/300 s, shown as .003 and .007: compared in any other precision, rows at the boundary are lost or doubled."""
    name, table = live.make("id int PRIMARY KEY, at datetime")
    live.run(
        f"INSERT INTO {table} SELECT n, DATEADD(millisecond, n * 3, CAST('2024-01-01T00:00:00' AS datetime)) "
        "FROM (SELECT TOP (300) CAST(ROW_NUMBER() OVER (ORDER BY (SELECT 1)) AS int) AS n FROM sys.all_columns) AS x"
    )
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        for (text,) in live.run(f"SELECT DISTINCT CONVERT(varchar(27), at, 126) FROM {table}"):
            found = rows_of(session, Selection(shape, window=Window("watermark", text, text, column="at")))
            asked = live.run(
                f"SELECT COUNT(*) FROM {table} WHERE CONVERT(varchar(27), at, 126) = ?", parameters=(text,)
            )
            assert len(found) == asked[0][0] >= 1


# -- rowversion --------------------------------------------------------------------------------------------------------


def test_a_rowversion_of_an_open_transaction_is_left_for_the_next_window(snapshots: Live) -> None:
    live = snapshots
    name, table = live.make("id int PRIMARY KEY, n int, v rowversion")
    shape = live.shape(name)
    live.run(f"INSERT INTO {table} (id, n) VALUES (1, 0)")
    with closing(live.connect()) as slow, closing(slow.cursor()) as cursor:
        cursor.execute("BEGIN TRANSACTION")
        cursor.execute(f"INSERT INTO {table} WITH (ROWLOCK) (id, n) VALUES (2, 0)")
        live.run(f"INSERT INTO {table} (id, n) VALUES (3, 0)")
        with live.database.sessions(1, consistent=True, for_table=shape) as (session,):
            first = session.position(shape, "rowversion", None)
            assert first is not None
            early = rows_of(session, Selection(shape, window=Window("rowversion", None, first)))
        cursor.execute("COMMIT TRANSACTION")
    with live.database.sessions(1, consistent=False) as (session,):
        second = session.position(shape, "rowversion", "v")
        assert second is not None
        late = rows_of(session, Selection(shape, window=Window("rowversion", first, second)))
    assert [row["id"] for row in early] == [1]
    assert sorted(row["id"] for row in late) == [2, 3]
    live.run(f"UPDATE {table} SET n = 1 WHERE id = 1")
    with live.database.sessions(1, consistent=False) as (session,):
        third = session.position(shape, "rowversion", None)
        assert third is not None
        assert [
            row["id"] for row in rows_of(session, Selection(shape, window=Window("rowversion", second, third)))
        ] == [1]
        nothing = Window("rowversion", third, session.position(shape, "rowversion", None) or "")
        assert rows_of(session, Selection(shape, window=nothing)) == []


def test_rowversions_through_many_writers_arrive_at_last(live: Live) -> None:
    """Windows one behind the other, while others write: the last state of every row is in one of them."""
    name, table = live.make("id int PRIMARY KEY, n int, v rowversion")
    live.insert(f"{table} (id, n)", [(number, 0) for number in range(50)])
    shape = live.shape(name)
    stop = threading.Event()
    writers = [threading.Thread(target=_update, args=(live, table, stop, seed)) for seed in range(3)]
    for writer in writers:
        writer.start()
    lake: dict[int, int] = {}
    after = None
    try:
        for _ in range(15):
            after = _follow(live, shape, after, lake)
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    _follow(live, shape, after, lake)
    assert lake == dict(live.run(f"SELECT id, n FROM {table}"))


def _update(live: Live, table: str, stop: threading.Event, seed: int) -> None:
    with closing(live.connect()) as connection, closing(connection.cursor()) as cursor:
        number = seed
        while not stop.is_set():
            number += 7
            cursor.execute("BEGIN TRANSACTION")
            cursor.execute(f"UPDATE {table} SET n = n + 1 WHERE id = {number % 50}")
            if number % 5 == 0:
                cursor.execute("WAITFOR DELAY '00:00:00.020'")
            cursor.execute("COMMIT TRANSACTION")


def _follow(live: Live, shape: TableShape, after: str | None, lake: dict[int, int]) -> str:
    with live.database.sessions(1, consistent=live.has("snapshot"), for_table=shape) as (session,):
        upto = session.position(shape, "rowversion", None)
        assert upto is not None
        for row in rows_of(session, Selection(shape, window=Window("rowversion", after, upto))):
            lake[row["id"]] = row["n"]
    return upto


# -- Change Tracking ---------------------------------------------------------------------------------------------------


def version(live: Live) -> int:
    return int(live.run("SELECT CHANGE_TRACKING_CURRENT_VERSION()")[0][0])


def tracked(live: Live, columns: str = "id int PRIMARY KEY, n nvarchar(20) NULL") -> tuple[str, str]:
    name, table = live.make(columns)
    live.run(f"ALTER TABLE {table} ENABLE CHANGE_TRACKING")
    return name, table


def changed(live: Live, shape: TableShape, after: int, upto: int) -> list[tuple[Any, ...]]:
    rows = live.read(Selection(shape, window=Window("tracking", str(after), str(upto))))
    return sorted((row["_operation"], row["id"], row["n"], int(row["_position"])) for row in rows)


def test_tracked_changes_with_neither_gap_nor_overlap(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live)
    shape = live.shape(name)
    assert shape.tracked
    versions = [version(live)]
    for statement in (
        f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')", f"UPDATE {table} SET n = 'c' WHERE id = 1",
        f"DELETE FROM {table} WHERE id = 2", f"INSERT INTO {table} VALUES (2, NULL)",
    ):  # fmt: skip
        live.run(statement)
        versions.append(version(live))
    start, inserted, updated, deleted, again = versions
    assert changed(live, shape, start, again) == [("insert", 1, "c", updated), ("insert", 2, None, again)]
    assert changed(live, shape, inserted, again) == [
        ("update", 1, "c", updated),
        ("update", 2, None, again),
    ] or changed(live, shape, inserted, again) == [("insert", 2, None, again), ("update", 1, "c", updated)]
    assert changed(live, shape, again, again) == []
    assert [row[:2] for row in changed(live, shape, updated, again)] in ([("insert", 2)], [("update", 2)])
    assert {row[1] for row in changed(live, shape, deleted, again)} == {2}
    live.run(f"DELETE FROM {table} WHERE id = 1")
    last = version(live)
    assert changed(live, shape, again, last) == [("delete", 1, None, last)]


def test_a_changed_key_is_a_delete_and_an_insert(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live)
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    before = version(live)
    live.run(f"UPDATE {table} SET id = 10 WHERE id = 1")
    found = changed(live, live.shape(name), before, version(live))
    assert [(row[0], row[1]) for row in found] == [("delete", 1), ("insert", 10)]


def test_deletes_and_sums_of_tracked_changes(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live, "a int, b nvarchar(10), n datetime2(7), id int, PRIMARY KEY (a, b)")
    live.run(f"INSERT INTO {table} VALUES (1, N'x', SYSDATETIME(), 1), (1, N'Y', SYSDATETIME(), 2)")
    before = version(live)
    live.run(f"DELETE FROM {table} WHERE b = N'x'", f"UPDATE {table} SET id = 3 WHERE b = N'Y'")
    shape = live.shape(name)
    selection = Selection(
        shape, window=Window("tracking", str(before), str(version(live))), rules=(RowRule("not_null", ("id",)),)
    )
    rows = sorted(live.read(selection), key=lambda row: row["_operation"])
    assert [(row["_operation"], row["a"], row["b"], row["id"]) for row in rows] == [
        ("delete", 1, "x", None), ("update", 1, "Y", 3),
    ]  # fmt: skip
    assert rows[0]["n"] is None and rows[0]["n_100ns"] is None
    assert [row["_rule_0"] for row in rows] == [False, False]
    assert_summary(live, replace(selection, rules=()), rows)


def test_what_is_changed_after_the_moment_belongs_to_the_next_window(tracking: Live, snapshots: Live) -> None:
    live = tracking
    name, table = tracked(live)
    live.run(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'a')")
    shape, start = live.shape(name), version(live)
    live.run(f"UPDATE {table} SET n = 'b' WHERE id = 1")
    with live.database.sessions(1, consistent=True, for_table=shape) as (session,):
        live.run(f"UPDATE {table} SET n = 'c' WHERE id = 1", f"DELETE FROM {table} WHERE id = 2")
        upto = session.position(shape, "tracking", None)
        assert upto is not None
        seen = rows_of(session, Selection(shape, window=Window("tracking", str(start), upto)))
        assert [(row["id"], row["n"]) for row in seen] == [(1, "b")]
        assert sorted((row["id"], row["n"]) for row in rows_of(session, Selection(shape))) == [(1, "b"), (2, "a")]
    later = changed(live, shape, int(upto), version(live))
    assert [(row[0], row[1], row[2]) for row in later] == [("delete", 2, None), ("update", 1, "c")]


def test_expiry_is_seen_before_rows_are_missed(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live)
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    shape, position = live.shape(name), version(live)
    with live.database.sessions(1, consistent=False) as (session,):
        oldest = session.oldest(shape, "tracking", None)
        assert oldest is not None and int(oldest) <= position
    # Takes all that was tracked of the table with it, as the clean-up after the retention does.
    live.run(f"INSERT INTO {table} VALUES (3, 'c')", f"TRUNCATE TABLE {table}", f"INSERT INTO {table} VALUES (2, 'b')")
    with live.database.sessions(1, consistent=False) as (session,):
        oldest = session.oldest(shape, "tracking", None)
        assert oldest is not None and int(oldest) > position


def test_a_table_that_is_not_tracked(live: Live) -> None:
    name, _ = live.make("id int PRIMARY KEY")
    with live.database.sessions(1, consistent=False) as (session,), pytest.raises(Unsupported) as caught:
        session.position(live.shape(name), "tracking", None)
    assert caught.value.code == "not_tracked"


def test_tracked_changes_through_many_writers_arrive_at_last(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live, "id int PRIMARY KEY, n int")
    live.insert(table, [(number, 0) for number in range(50)])
    shape = live.shape(name)
    stop = threading.Event()

    def churn(seed: int) -> None:
        with closing(live.connect()) as connection, closing(connection.cursor()) as cursor:
            number = seed
            while not stop.is_set():
                number += 3
                key = number % 50
                # A deadlock's victim goes on with the next.
                with suppress(Exception):
                    cursor.execute(f"UPDATE {table} SET n = n + 1 WHERE id = {key}")
                    if number % 4 == 0:
                        cursor.execute(f"DELETE FROM {table} WHERE id = {key}")
                    if number % 8 == 0:
                        cursor.execute(
                            f"IF NOT EXISTS (SELECT 1 FROM {table} WITH (UPDLOCK, HOLDLOCK) WHERE id = {key}) "
                            f"INSERT INTO {table} VALUES ({key}, 0)"
                        )

    lake: dict[int, int] = {}
    with live.database.sessions(1, consistent=live.has("snapshot"), for_table=shape) as (session,):
        after = session.position(shape, "tracking", None)
        lake = {row["id"]: row["n"] for row in rows_of(session, Selection(shape))}
    writers = [threading.Thread(target=churn, args=(seed,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    try:
        for number in range(16):
            if number == 15:
                stop.set()
                for writer in writers:
                    writer.join()
            with live.database.sessions(1, consistent=live.has("snapshot"), for_table=shape) as (session,):
                upto = session.position(shape, "tracking", None)
                assert upto is not None
                for row in rows_of(session, Selection(shape, window=Window("tracking", after, upto))):
                    if row["_operation"] == "delete":
                        lake.pop(row["id"], None)
                    else:
                        lake[row["id"]] = row["n"]
            after = upto
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert lake == dict(live.run(f"SELECT id, n FROM {table}"))


# -- Change Data Capture -----------------------------------------------------------------------------------------------


def capture(live: Live, name: str, instance: str, *, net: bool = True) -> None:
    try:
        live.run(
            f"EXEC sys.sp_cdc_enable_table @source_schema = N'{live.schema}', @source_name = N'{name}', "
            f"@role_name = NULL, @capture_instance = N'{instance}', @supports_net_changes = {int(net)}"
        )
    except Exception as error:
        # That the Agent does not run, and so cannot be told of its jobs, may come as an error; the instance is there.
        made = live.run("SELECT COUNT(*) FROM cdc.change_tables WHERE capture_instance = ?", parameters=(instance,))
        if made != [(1,)]:
            if "Agent" in str(error):
                pytest.skip(f"CDC cannot be switched on for a table without SQL Server Agent: {error}")
            raise
    # Beside a capture that is running, the server does not know for some seconds where a new one begins.
    _captures_until(live, f"SELECT CASE WHEN sys.fn_cdc_get_min_lsn(N'{instance}') > 0x00 THEN 1 ELSE 0 END", 1)


def captured(live: Live, instance: str, least: int) -> None:
    """Waits until so many rows of the log are in the capture's table."""
    _captures_until(live, f"SELECT COUNT(*) FROM [cdc].[{instance}_CT]", least)


def _captures_until(live: Live, asked: str, least: int) -> None:
    until = time.monotonic() + 120
    while True:
        if live.run(asked)[0][0] >= least:
            return
        if time.monotonic() > until:
            pytest.skip(
                "CDC captures nothing: SQL Server Agent does not run, and the login may not scan the log itself"
            )
        with suppress(Exception):
            # Refused where the Agent's own job does it.
            live.run("EXEC sys.sp_cdc_scan")
        time.sleep(0.5)


def instance_of(
    live: Live, columns: str = "id int PRIMARY KEY, n nvarchar(20) NULL", **options: Any
) -> tuple[str, str, str]:
    name, table = live.make(columns)
    instance = f"c_{secrets.token_hex(4)}"
    capture(live, name, instance, **options)
    return name, table, instance


def test_net_and_all_changes_in_the_order_of_the_log(cdc: Live) -> None:
    live = cdc
    name, table, instance = instance_of(live)
    shape = live.shape(name)
    ((found),) = shape.captures
    assert (found.name, found.columns, found.net) == (instance, ("id", "n"), True)
    with live.database.sessions(1, consistent=False) as (session,):
        after = session.position(shape, "cdc", None)
        oldest = session.oldest(shape, "cdc", instance)
        assert after is not None and oldest is not None and after >= oldest
    live.run(
        f"BEGIN TRANSACTION; INSERT INTO {table} VALUES (1, 'a'), (2, 'a'); UPDATE {table} SET n = 'b' WHERE id = 1; "
        f"UPDATE {table} SET n = 'c' WHERE id = 1; DELETE FROM {table} WHERE id = 2; "
        f"INSERT INTO {table} VALUES (2, 'z'); COMMIT TRANSACTION"
    )
    live.run(f"DELETE FROM {table} WHERE id = 1")
    captured(live, instance, 9)
    with live.database.sessions(1, consistent=False) as (session,):
        upto = session.position(shape, "cdc", None)
        assert upto is not None
        every = rows_of(session, Selection(shape, window=Window("cdc", after, upto, net=False, capture=instance)))
        net = rows_of(session, Selection(shape, window=Window("cdc", after, upto, net=True, capture=instance)))
    every.sort(key=lambda row: row["_order"])
    assert [(row["_operation"], row["id"], row["n"]) for row in every] == [
        ("insert", 1, "a"), ("insert", 2, "a"), ("update", 1, "b"), ("update", 1, "c"), ("delete", 2, None),
        ("insert", 2, "z"), ("delete", 1, None),
    ]  # fmt: skip
    assert [row["_order"] for row in every] == list(range(1, 8))
    positions = [row["_position"] for row in every]
    assert positions == sorted(positions) and len(set(positions)) == 2
    assert [(row["_operation"], row["id"], row["n"]) for row in net if row["id"] == 2] == [("insert", 2, "z")]
    assert [row for row in net if row["id"] == 1] in ([], [row for row in net if row["_operation"] == "delete"])
    # From the middle on: the first transaction is over, the second is all that is left.
    rest = live.read(Selection(shape, window=Window("cdc", positions[0], upto, net=False, capture=instance)))
    assert [(row["_operation"], row["id"]) for row in rest] == [("delete", 1)]
    until_first = live.read(Selection(shape, window=Window("cdc", after, positions[0], net=False, capture=instance)))
    assert len(until_first) == 6


def test_a_new_capture_that_has_seen_nothing_has_a_position(cdc: Live) -> None:
    live = cdc
    name, table, instance = instance_of(live)
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        position = session.position(shape, "cdc", None)
        oldest = session.oldest(shape, "cdc", instance)
        assert position is not None and oldest is not None and int(position, 16) >= int(oldest, 16)
        assert int(position, 16) >= int(shape.captures[0].since, 16)
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    captured(live, instance, 1)
    with live.database.sessions(1, consistent=False) as (session,):
        upto = session.position(shape, "cdc", None)
        assert upto is not None
        window = Window("cdc", position, upto, capture=instance)
        assert [row["id"] for row in rows_of(session, Selection(shape, window=window))] == [1]


def test_cleaned_changes_are_seen_as_gone(cdc: Live) -> None:
    live = cdc
    name, table, instance = instance_of(live)
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        start = session.position(shape, "cdc", None)
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    captured(live, instance, 1)
    live.run(f"INSERT INTO {table} VALUES (2, 'b')")
    captured(live, instance, 2)
    ((mark,),) = live.run(f"SELECT MAX(__$start_lsn) FROM [cdc].[{instance}_CT]")
    live.run(
        f"EXEC sys.sp_cdc_cleanup_change_table @capture_instance = N'{instance}', "
        f"@low_water_mark = 0x{bytes(mark).hex()}, @threshold = 5000"
    )
    with live.database.sessions(1, consistent=False) as (session,):
        oldest = session.oldest(shape, "cdc", instance)
        assert start is not None and oldest is not None and int(oldest, 16) > int(start, 16)
        gone = session.oldest(replace(shape, captures=(replace(shape.captures[0], name="gone"),)), "cdc", "gone")
        assert gone is not None and int(gone, 16) > int(oldest, 16)


def test_a_second_capture_after_a_new_column(cdc: Live) -> None:
    live = cdc
    name, table, old = instance_of(live)
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    live.run(f"ALTER TABLE {table} ADD extra int NULL")
    shape = live.shape(name)
    with pytest.raises(Unsupported) as caught:
        live.read(Selection(shape, window=Window("cdc", "0x" + "0" * 20, "0x" + "F" * 20, capture=old)))
    assert caught.value.code == "capture_outdated" and "extra" in caught.value.detail
    new = f"c_{secrets.token_hex(4)}"
    capture(live, name, new, net=False)
    shape = live.shape(name)
    assert [one.name for one in shape.captures] == [old, new]
    assert [one.net for one in shape.captures] == [True, False]
    assert shape.captures[1].columns == ("id", "n", "extra")
    live.run(f"INSERT INTO {table} VALUES (2, 'b', 7)")
    captured(live, new, 1)
    with live.database.sessions(1, consistent=False) as (session,):
        upto = session.position(shape, "cdc", None)
        assert upto is not None
        window = Window("cdc", shape.captures[1].since, upto, net=False, capture=new)
        rows = rows_of(session, Selection(shape, window=window))
        assert [(row["id"], row["n"], row["extra"]) for row in rows] == [(2, "b", 7)]
        with pytest.raises(Unsupported) as refused:
            rows_of(session, Selection(shape, window=replace(window, net=True)))
        assert refused.value.code == "no_net_changes"


def test_every_type_through_cdc(cdc: Live) -> None:
    live = cdc
    kinds = {kind: made for kind, made in TYPES.items() if kind not in ("text", "ntext", "image", "varchar_greek")}
    name, table, instance = instance_of(
        live, "id int PRIMARY KEY, " + ", ".join(f"[{kind}] {made[0]} NULL" for kind, made in kinds.items())
    )
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        after = session.position(shape, "cdc", None)
    live.run(f"INSERT INTO {table} VALUES (1, {', '.join(made[1][0] for made in kinds.values())})")
    captured(live, instance, 1)
    with live.database.sessions(1, consistent=False) as (session,):
        upto = session.position(shape, "cdc", None)
        assert upto is not None
        selection = Selection(shape, window=Window("cdc", after, upto, capture=instance))
        (change,) = rows_of(session, selection)
    (row,) = live.read(Selection(shape))
    assert {name: change[name] for name in row} == row
    assert_summary(live, selection, [change])


# -- sessions ----------------------------------------------------------------------------------------------------------


def test_sessions_of_one_moment_while_others_write(snapshots: Live) -> None:
    """Money moves between accounts all the time; no session, and not all of them together, ever see some on its way."""
    live = snapshots
    name, table = live.make("id int PRIMARY KEY, amount bigint NOT NULL")
    live.insert(table, [(number, 1000) for number in range(400)])
    shape = live.shape(name)
    stop = threading.Event()

    def move(seed: int) -> None:
        with closing(live.connect()) as connection, closing(connection.cursor()) as cursor:
            cursor.execute("SET LOCK_TIMEOUT 10000")
            number = seed
            while not stop.is_set():
                number += 1
                low, high = sorted(((number * 7) % 400, (number * 13 + 1) % 400))
                if low == high:
                    continue
                cursor.execute(
                    f"BEGIN TRANSACTION; UPDATE {table} SET amount = amount - 1 WHERE id = {low}; "
                    f"UPDATE {table} SET amount = amount + 1 WHERE id = {high}; COMMIT TRANSACTION"
                )

    writers = [threading.Thread(target=move, args=(seed * 1000,)) for seed in range(3)]
    for writer in writers:
        writer.start()
    several = 0
    try:
        for _ in range(10):
            with live.database.sessions(4, consistent=True, for_table=shape) as sessions:
                assert all(session.consistent for session in sessions)
                several = max(several, len(sessions))
                ranges = sessions[0].cut(shape, "id", 100)
                read: list[dict[str, Any]] = []
                for number, one in enumerate(ranges):
                    session = sessions[number % len(sessions)]
                    rows = rows_of(session, Selection(shape, range=one))
                    summary = session.summary(Selection(shape, range=one), checksums=True)
                    assert summary.columns["amount"].total == sum(row["amount"] for row in rows)
                    read += rows
                assert sorted(row["id"] for row in read) == list(range(400))
                assert sum(row["amount"] for row in read) == 400_000
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert several == 4
    assert live.run(f"SELECT SUM(amount) FROM {table}") == [(400_000,)]


def test_a_table_that_somebody_holds_is_read_by_one_session_soon(snapshots: Live) -> None:
    live = snapshots
    name, table = live.make("id int PRIMARY KEY, n int")
    live.insert(table, [(number, 0) for number in range(10)])
    shape = live.shape(name)
    with closing(live.connect()) as writer, closing(writer.cursor()) as cursor:
        cursor.execute(f"BEGIN TRANSACTION; UPDATE {table} SET n = 1")
        began = time.monotonic()
        with live.database.sessions(4, consistent=True, for_table=shape) as sessions:
            assert len(sessions) == 1 and sessions[0].consistent
            assert {row["n"] for row in rows_of(sessions[0], Selection(shape))} == {0}
        assert time.monotonic() - began < 60
        cursor.execute("ROLLBACK TRANSACTION")
    # The lock that was tried for is not left behind.
    live.run(f"SET LOCK_TIMEOUT 5000; UPDATE {table} SET n = 2")


def test_no_lock_outlives_the_beginning(snapshots: Live) -> None:
    live = snapshots
    name, table = live.make("id int PRIMARY KEY, n int")
    live.insert(table, [(number, 0) for number in range(10)])
    shape = live.shape(name)
    with live.database.sessions(3, consistent=True, for_table=shape) as sessions:
        assert len(sessions) == 3
        live.run(f"SET LOCK_TIMEOUT 5000; UPDATE {table} SET n = 5")
        for session in sessions:
            assert {row["n"] for row in rows_of(session, Selection(shape))} == {0}


def test_without_snapshots_the_remedy_is_told(live: Live) -> None:
    if not live.is_own:
        pytest.skip("the database is not the tests' own, so its options stay as they are")
    database = live.schema
    live.run(f"ALTER DATABASE [{database}] SET ALLOW_SNAPSHOT_ISOLATION OFF")
    try:
        facts = live.open().check()
        assert not facts.snapshots and "ALLOW_SNAPSHOT_ISOLATION" in facts.why_not
        with pytest.raises(Unsupported) as caught, live.open().sessions(1, consistent=True):
            pass
        assert caught.value.code == "no_snapshot"
        with live.open().sessions(2, consistent=False) as sessions:
            assert [session.consistent for session in sessions] == [False, False]
    finally:
        live.run(f"ALTER DATABASE [{database}] SET ALLOW_SNAPSHOT_ISOLATION ON")


ENDLESS = (
    "SELECT a.object_id AS n FROM sys.all_columns AS a CROSS JOIN sys.all_columns AS b CROSS JOIN sys.all_columns AS c "
    "WHERE a.object_id + CAST(b.column_id AS bigint) * c.column_id = -1"
)


def test_another_thread_breaks_a_statement_off(live: Live) -> None:
    shape = live.shape("endless", ENDLESS)
    with live.database.sessions(1, consistent=False) as (session,):
        failures: list[BaseException] = []

        def read() -> None:
            try:
                rows_of(session, Selection(shape))
            except MigrationError as error:
                failures.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        time.sleep(1)
        began = time.monotonic()
        session.close()
        thread.join(60)
        assert not thread.is_alive() and time.monotonic() - began < 30
    assert isinstance(failures[0], TransientError)


_BROKEN_OFF_OFTEN = """
import os, sys, threading
from shared.clients.sql.connection import parse_connection
from shared.clients.sql.odbc import OdbcDriver
from tests.sql.test_mssql_live import token

driver = OdbcDriver(parse_connection("X", os.environ["TEST_MSSQL_URL"]), token=token)
connection, ended = driver.connect(), 0

def endless():
    global ended
    try:
        connection.rows(sys.argv[1])
    except driver.errors:
        ended += 1

for number in range(20):
    thread = threading.Thread(target=endless)
    thread.start()
    while thread.is_alive():
        connection.cancel()
        thread.join(0.05 if number % 2 else 0.001)
print(ended, connection.rows("SELECT 1"))
"""


def test_a_process_outlives_the_statements_that_it_breaks_off() -> None:
    """A driver that comes back into a handle that was freed in the meantime ends the whole process."""
    told = subprocess.run(
        [sys.executable, "-c", _BROKEN_OFF_OFTEN, f"SELECT COUNT(*) FROM ({ENDLESS}) AS x"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert (told.returncode, told.stdout) == (0, "20 [(1,)]\n"), told.stderr[-2000:]


def test_a_statement_may_take_only_so_long(live: Live) -> None:
    database = live.open(statement_timeout_s=5)
    shape = live.shape("endless", ENDLESS)
    with database.sessions(1, consistent=False) as (session,), pytest.raises(TransientError) as caught:
        session.summary(Selection(shape), checksums=False)
    assert caught.value.code == "statement_timeout"


def test_a_result_may_be_left_in_its_midst_and_the_moment_stays(snapshots: Live) -> None:
    live = snapshots
    name, table = live.make("id int PRIMARY KEY, n nvarchar(max)")
    live.run(
        f"INSERT INTO {table} SELECT n, REPLICATE(N'x', 1000) FROM (SELECT TOP (3000) CAST(ROW_NUMBER() OVER "
        "(ORDER BY (SELECT 1)) AS int) AS n FROM sys.all_columns AS a CROSS JOIN sys.all_columns AS b) AS x"
    )
    shape = live.shape(name)
    with live.database.sessions(1, consistent=True, for_table=shape) as (session,):
        batches = session.batches(Selection(shape), batch_bytes=100_000)
        next(batches)
        batches.close()  # type: ignore[attr-defined]
        live.run(f"DELETE FROM {table}")
        assert session.summary(Selection(shape), checksums=False).rows == 3000


def test_an_error_on_the_way_is_of_the_table_and_not_of_the_connection(live: Live) -> None:
    name, table = live.make("id int PRIMARY KEY, n int")
    live.insert(table, [(1, 1), (2, 0)])
    shape = live.shape("divided", f"SELECT 10 / n AS q FROM {table}")
    with live.database.sessions(1, consistent=False) as (session,):
        with pytest.raises(ItemError):
            rows_of(session, Selection(shape))
        assert len(rows_of(session, Selection(live.shape(name)))) == 2


def test_the_hint_is_taken_everywhere(live: Live) -> None:
    name, table = live.make("id int PRIMARY KEY, at datetime2(7), n nvarchar(max)")
    live.run(f"INSERT INTO {table} VALUES (1, SYSDATETIME(), N'x')")
    database = live.open(maxdop=1)
    shape = database.describe(TableName(live.schema, name))
    with database.sessions(1, consistent=False) as (session,):
        session.cut(replace(shape, rows=-1), "id", 1)
        assert session.position(shape, "watermark", "at") is not None
        selection = Selection(shape, rules=(RowRule("unique", ("id",)),), order_by=("id",))
        assert len(rows_of(session, selection)) == session.summary(selection, checksums=True).rows == 1
        assert session.broken_rows(selection, selection.rules[0]) == 0
        assert session.age_s(shape, "at") is not None


def test_a_table_in_memory(live: Live) -> None:
    if not live.is_own:
        pytest.skip("the database is not the tests' own, so it gets no files for tables in memory")
    ((supported, folder),) = live.run(
        "SELECT CAST(SERVERPROPERTY('IsXTPSupported') AS int), "
        "CAST(SERVERPROPERTY('InstanceDefaultDataPath') AS nvarchar(400))"
    )
    if not supported or not folder:
        pytest.skip("this edition has no tables in memory")
    live.run(f"ALTER DATABASE [{live.schema}] ADD FILEGROUP memory CONTAINS MEMORY_OPTIMIZED_DATA")
    live.run(
        f"ALTER DATABASE [{live.schema}] ADD FILE (NAME = 'memory', FILENAME = '{folder}{live.schema}_memory') "
        "TO FILEGROUP memory"
    )
    name, table = live.make(
        "id int NOT NULL PRIMARY KEY NONCLUSTERED, n nvarchar(20)", options="WITH (MEMORY_OPTIMIZED = ON)"
    )
    live.insert(table, [(number, "x") for number in range(100)])
    shape = live.shape(name)
    assert shape.facts["memory_optimized"] is True
    with live.database.sessions(4, consistent=True, for_table=shape) as sessions:
        assert len(sessions) == 1
        live.run(f"DELETE FROM {table} WHERE id < 50")
        rows = rows_of(sessions[0], Selection(shape))
        assert len(rows) == sessions[0].summary(Selection(shape), checksums=True).rows == 100


# -- the whole way -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["tracking", "rowversion", "watermark", "cdc"])
def test_from_the_server_into_the_lake_and_what_changed_after(live: Live, change: str, tmp_path: Path) -> None:
    """Through the API and the embedded host into Delta; read back by DuckDB, compared with the server row by row."""
    from tests.sql.test_e2e_sql import folder, item, lake_rows, orphans, spec
    from tests.support.platform import running

    if change in ("tracking", "cdc") and not live.has(change):
        pytest.skip(f"the database has no {change}")
    name, table = live.make(
        "id int PRIMARY KEY, name nvarchar(50) NULL, amount decimal(38,10) NULL, at datetime2(7) NOT NULL, "
        "body nvarchar(max) NULL" + (", v rowversion" if change == "rowversion" else "")
    )
    columns = "(id, name, amount, at, body)"
    live.run(
        f"INSERT INTO {table} {columns} SELECT n, N'name ' + CAST(n AS nvarchar(10)), n / 7.0, "
        "DATEADD(nanosecond, n * 100, SYSDATETIME()), REPLICATE(N'漢', n % 50) FROM (SELECT TOP (2000) "
        "CAST(ROW_NUMBER() OVER (ORDER BY (SELECT 1)) AS int) AS n FROM sys.all_columns) AS x"
    )
    instance = f"c_{secrets.token_hex(4)}"
    if change == "tracking":
        live.run(f"ALTER TABLE {table} ENABLE CHANGE_TRACKING")
    if change == "cdc":
        capture(live, name, instance)
    wish: dict[str, Any] = {"table": f"[{live.schema}].[{name}]", "mode": "incremental", "change": change}
    if change == "watermark":
        wish["column"] = "at"
    job = spec(f"live-{change}", "LIVE_DB", wish, partition={"rows": 500, "parallel": 3})

    def expected() -> list[tuple[Any, ...]]:
        return live.run(f"SELECT id, name, amount, CONVERT(varchar(27), at, 121), body FROM {table} ORDER BY id")

    def arrived(path: Path) -> list[tuple[Any, ...]]:
        rows = sorted(lake_rows(path), key=lambda row: row["id"])
        return [
            (row["id"], row["name"], row["amount"], f"{row['at']:%Y-%m-%d %H:%M:%S.%f}{row['at_100ns']}", row["body"])
            for row in rows
        ]

    with running(tmp_path / "platform", LIVE_DB=live.value) as platform:
        status = platform.run(job)
        place = folder(platform, job, f"{live.schema}_{name}")
        assert arrived(place) == expected()
        record = item(platform, status["id"], f"{live.schema}.{name}")
        assert record["rows"] == 2000 and record["source_checksum"] == record["target_checksum"] is not None

        live.run(
            f"UPDATE {table} SET name = NULL, at = DATEADD(second, 1, SYSDATETIME()) WHERE id % 10 = 0",
            f"INSERT INTO {table} {columns} VALUES (9001, N'new', 1, DATEADD(second, 2, SYSDATETIME()), N'😀')",
        )
        if change in ("tracking", "cdc"):
            live.run(f"DELETE FROM {table} WHERE id % 7 = 0")
        if change == "cdc":
            captured(live, instance, 400 + 1 + 285)
        status = platform.run(job)
        assert arrived(place) == expected()
        assert orphans(place) == []
        status = platform.run(job)
        assert arrived(place) == expected(), "nothing changed, nothing changes"


# -- what a source no longer tells -------------------------------------------------------------------------------------


def test_a_database_says_on_which_recovery_fork_it_is(live: Live) -> None:
    fork = live.database.check().fork
    ((engine,),) = live.run("SELECT CAST(SERVERPROPERTY('EngineEdition') AS int)")
    if engine in (5, 12):
        # There is no such view; a restored database is another one.
        assert fork == live.run("SELECT CONVERT(nvarchar(23), create_date, 126) FROM sys.databases "
                                "WHERE database_id = DB_ID()")[0][0]  # fmt: skip
        return
    found = live.run("SELECT recovery_fork_guid FROM sys.database_recovery_status WHERE database_id = DB_ID()")
    assert fork == (str(found[0][0]).lower() if found else "")


def test_a_restored_database_is_on_another_recovery_fork(live: Live) -> None:
    """Its backup, named as below, is left in the server's folder for them, and is written over by the next."""
    if not live.is_own:
        pytest.skip("the login may not create databases, and so restore none")
    name = f"{live.schema}_restored"
    server = Live(URL, "", is_own=False)
    server.run(f"CREATE DATABASE [{name}]")
    try:
        server.run(f"ALTER DATABASE [{name}] SET CHANGE_TRACKING = ON (CHANGE_RETENTION = 2 DAYS, AUTO_CLEANUP = ON)")
        restored = Live(_at(URL, name), "dbo", is_own=True)
        table, written = tracked(restored)
        restored.run(f"INSERT INTO {written} VALUES (1, 'a')")
        before, at = restored.open().check(), version(restored)
        server.run(f"BACKUP DATABASE [{name}] TO DISK = N'lakehouse_test.bak' WITH INIT, FORMAT")
        restored.run(f"INSERT INTO {written} VALUES (2, 'lost')")
        assert version(restored) > at
        assert restored.open().check().fork == before.fork
        server.run(
            f"ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE",
            f"RESTORE DATABASE [{name}] FROM DISK = N'lakehouse_test.bak' WITH REPLACE",
        )
        server.run(f"ALTER DATABASE [{name}] SET MULTI_USER")
        after = restored.open().check()
        assert version(restored) == at
        assert (after.identity, restored.shape(table).tracking) == (before.identity, restored.shape(table).tracking)
        assert after.fork != before.fork
    finally:
        server.run(f"ALTER DATABASE [{name}] SET SINGLE_USER WITH ROLLBACK IMMEDIATE", f"DROP DATABASE [{name}]")


def test_a_version_beyond_an_int_is_taken(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live)
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    shape = live.shape(name)
    assert changed(live, shape, 2**31, 2**63 - 1) == []
    assert changed(live, shape, 2**63 - 1, 2**63 - 1) == []
    assert [row[1] for row in changed(live, shape, version(live) - 1, 2**63 - 1)] == [1]


@pytest.mark.parametrize("since", ["filled", "empty"])
def test_a_truncated_table_is_empty_in_the_lake_too(tracking: Live, since: str, tmp_path: Path) -> None:
    """Also where no version tells, because nothing that is tracked has happened between."""
    from tests.sql.test_e2e_sql import folder, item, lake_rows, spec
    from tests.support.platform import running

    live = tracking
    name, table = live.make("id int PRIMARY KEY, n nvarchar(20) NULL")
    if since == "empty":
        live.run(f"ALTER TABLE {table} ENABLE CHANGE_TRACKING")
    live.run(f"INSERT INTO {table} VALUES (1, 'a'), (2, 'b')")
    if since == "filled":
        live.run(f"ALTER TABLE {table} ENABLE CHANGE_TRACKING")
    wish = {"table": f"[{live.schema}].[{name}]", "mode": "incremental", "change": "tracking"}
    job = spec(f"live-truncated-{since}", "LIVE_DB", wish)

    def alive(place: Path) -> list[int]:
        return sorted(row["id"] for row in lake_rows(place) if not row.get("_deleted"))

    with running(tmp_path / "platform", LIVE_DB=live.value) as platform:
        platform.run(job)
        place = folder(platform, job, f"{live.schema}_{name}")
        assert alive(place) == [1, 2]
        live.run(f"TRUNCATE TABLE {table}")
        status = platform.run(job)
        assert item(platform, status["id"], f"{live.schema}.{name}")["load"] == "full"
        assert alive(place) == []
        live.run(f"INSERT INTO {table} VALUES (3, 'c'), (4, 'd')")
        platform.run(job)
        assert alive(place) == [3, 4]
        live.run(f"TRUNCATE TABLE {table}", f"INSERT INTO {table} VALUES (3, 'e')")
        platform.run(job)
        assert alive(place) == [3]


def test_tracking_that_was_switched_off_and_on_is_another(tracking: Live) -> None:
    live = tracking
    name, table = tracked(live)
    before = live.shape(name).tracking
    assert before is not None and before == live.shape(name).tracking
    live.run(f"ALTER TABLE {table} DISABLE CHANGE_TRACKING", f"ALTER TABLE {table} ENABLE CHANGE_TRACKING")
    assert live.shape(name).tracking != before


def test_a_second_capture_does_no_harm_before_it_has_begun(cdc: Live) -> None:
    live = cdc
    name, table, old = instance_of(live)
    shape = live.shape(name)
    with live.database.sessions(1, consistent=False) as (session,):
        after = session.position(shape, "cdc", None)
        assert after is not None
    live.run(f"INSERT INTO {table} VALUES (1, 'a')")
    captured(live, old, 1)
    new = f"c_{secrets.token_hex(4)}"
    with suppress(Exception):
        # That the Agent does not run comes as an error; the instance is there.
        live.run(
            f"EXEC sys.sp_cdc_enable_table @source_schema = N'{live.schema}', @source_name = N'{name}', "
            f"@role_name = NULL, @capture_instance = N'{new}', @supports_net_changes = 1"
        )
    # Not waited for: where it begins may not be known yet.
    both = live.shape(name)
    assert [one.name for one in both.captures] == [old, new]
    with live.database.sessions(1, consistent=False) as (session,):
        upto = session.position(both, "cdc", None)
        assert upto is not None and int(upto, 16) >= int(after, 16)
        rows = rows_of(session, Selection(both, window=Window("cdc", after, upto, capture=old)))
        assert [row["id"] for row in rows] == [1]
        oldest = session.oldest(both, "cdc", new)
        assert oldest is not None and int(oldest, 16) > int(after, 16)
        last = ((bytes(live.run("SELECT sys.fn_cdc_get_max_lsn()")[0][0])).hex(), after[2:].lower())
        assert int(upto, 16) <= max(int(one, 16) for one in last), "nothing that was not captured is passed over"


def test_text_of_another_code_page_is_told_of_where_it_is_captured(cdc: Live) -> None:
    live = cdc
    name, _, _ = instance_of(live, f"id int PRIMARY KEY, g varchar(20) COLLATE Greek_CI_AS, l varchar(20) {LATIN}, "
                             "n nvarchar(20) COLLATE Greek_CI_AS")  # fmt: skip
    ((page, greek, latin),) = live.run(
        "SELECT CAST(COLLATIONPROPERTY(CAST(DATABASEPROPERTYEX(DB_NAME(), 'Collation') AS nvarchar(128)), 'CodePage') "
        "AS int), CAST(COLLATIONPROPERTY('Greek_CI_AS', 'CodePage') AS int), "
        "CAST(COLLATIONPROPERTY('Latin1_General_100_CI_AS', 'CodePage') AS int)"
    )
    told = ", ".join(column for column, own in (("g", greek), ("l", latin)) if own != page)
    (capture_,) = live.shape(name).captures
    assert (f"({told})" in capture_.note) if told else not capture_.note


def test_every_type_at_its_extremes_into_the_lake(live: Live, tmp_path: Path) -> None:
    """One run of a table for each type, into Delta: what stands there is what the literals mean."""
    import pyodbc
    from deltalake import DeltaTable

    from tests.sql.test_e2e_sql import folder, item, spec
    from tests.support.platform import running

    tables: dict[str, str] = {}
    for kind, (declared, literals, _) in TYPES.items():
        if kind == "varchar_undefined" and not live.is_own:
            continue
        try:
            name, table = live.make(f"id int PRIMARY KEY, c {declared} NULL")
            rows = [f"INSERT INTO {table} VALUES ({n}, {text})" for n, text in enumerate([*literals, "NULL"])]
            live.run("; ".join(rows))
        except pyodbc.Error as error:
            # Not every server has every type.
            warnings.warn(f"{kind} is left out: {error}", stacklevel=1)
            continue
        tables[kind] = name
    assert {"int", "decimal_38_10", "nvarchar_max", "varbinary_max", "datetime2_3"} <= set(tables)
    job = spec("live-types", "LIVE_DB", *({"table": f"[{live.schema}].[{name}]"} for name in tables.values()))
    with running(tmp_path / "platform", LIVE_DB=live.value) as platform:
        status = platform.wait(platform.start(job), "completed", patience_s=900)
        for kind, name in tables.items():
            record = item(platform, status["id"], f"{live.schema}.{name}")
            assert record["source_checksum"] == record["target_checksum"] is not None, kind
            found = DeltaTable(str(folder(platform, job, f"{live.schema}_{name}"))).to_pyarrow_table().to_pylist()
            found.sort(key=lambda row: row["id"])
            for column, values in TYPES[kind][2].items():
                arrived = [row[column] for row in found]
                assert [repr(value) for value in arrived] == [repr(value) for value in [*values, None]] or (
                    arrived == [*values, None]
                ), (kind, column)
