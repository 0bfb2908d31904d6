"""What is PostgreSQL's own: kinds of tables, statistics, values beyond those of a lake, privileges, failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.clients.sql.postgresql import classify_postgresql
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ConnectionLost,
    NotFound,
    RunError,
    ServiceUnavailable,
    SourceMissing,
    Throttled,
    TransientError,
    Unsupported,
)
from shared.policy.sql.checksum import MD5_UTF_8
from shared.policy.sql.names import TableName
from shared.ports.tables import KeyRange, RowRule, Selection, Window
from tests.sql.databases import World, rows_of, totals
from tests.support.postgres import PostgresDatabase, PostgresServer, odbc_missing


@pytest.fixture(params=["native", "odbc"])
def world(request: pytest.FixtureRequest, postgres: PostgresDatabase) -> World:
    return _world(postgres, request.param)


def _world(postgres: PostgresDatabase, transport: str = "native") -> World:
    if transport == "odbc" and (missing := odbc_missing()):
        pytest.skip(missing)
    return World("postgresql", "public", postgres.url if transport == "native" else postgres.odbc, postgres.connect)


@pytest.mark.parametrize(
    ("declared", "literal"),
    [
        ("timestamp", "'infinity'"), ("timestamp", "'-infinity'"), ("timestamptz", "'infinity'"),
        ("timestamptz", "'-infinity'"), ("date", "'infinity'"), ("date", "'-infinity'"), ("date", "'0044-03-15 BC'"),
        ("date", "'10000-01-01'"), ("timestamp", "'0001-12-31 23:59:59.999999 BC'"),
        ("timestamp", "'10000-01-01'"), ("timestamptz", "'294276-12-31'"), ("timestamp", "'4713-01-01 BC'"),
        ("date", "'5874897-12-31'"), ("numeric(5, 2)", "'NaN'"),
    ],
)  # fmt: skip
def test_what_a_lake_cannot_hold_is_an_error_that_names_the_column(world: World, declared: str, literal: str) -> None:
    world.run(f"CREATE TABLE far (id int PRIMARY KEY, v {declared})", f"INSERT INTO far VALUES (1, {literal})")
    with pytest.raises(Unsupported) as raised:
        world.read(Selection(world.shape("far")))
    assert raised.value.code == "value_unfit"
    assert "public.far" in raised.value.detail
    # The way out that the error names.
    rows = world.read(Selection(world.shape("mine", "SELECT id, v::text AS v FROM far")))
    assert rows[0]["v"]


def test_a_lookback_of_more_digits_than_python_keeps(world: World) -> None:
    top = 10**40
    world.run(
        "CREATE TABLE wide (id int PRIMARY KEY, at numeric)",
        f"INSERT INTO wide VALUES (1, {top}), (2, {top - 4}), (3, {top - 5}.5), (4, {top - 6})",
    )
    window = Window("watermark", str(top), str(top), "at", lookback_s=4.5)
    rows = world.read(Selection(world.shape("wide", "SELECT id, at::text AS shown, at FROM wide"), window=window))
    assert sorted(row["id"] for row in rows) == [1, 2, 3]


def test_partitions_are_read_once_with_their_table(world: World) -> None:
    world.run(
        "CREATE TABLE part (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)",
        "CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM ('2024-01-01') TO ('2024-02-01')",
        "CREATE TABLE part_2 PARTITION OF part DEFAULT",
        "INSERT INTO part SELECT n, date '2024-01-01' + n % 60 FROM generate_series(1, 5000) n", "ANALYZE",
    )  # fmt: skip
    assert world.database.tables() == [TableName("public", "part")]
    shape = world.shape("part")
    assert (shape.key, shape.rows, shape.facts["kind"]) == (("id", "day"), 5000, "partitioned table")
    assert shape.size_bytes > 100_000
    with world.database.sessions(1, consistent=True) as (session,):
        ranges = session.cut(shape, "day", 500)
        counts = [session.summary(Selection(shape, one), checksums=False).rows for one in ranges]
    assert sum(counts) == 5000
    assert len(counts) > 5


def test_inherited_rows_belong_to_their_table(world: World) -> None:
    world.run("CREATE TABLE base (id int)", "CREATE TABLE child (more text) INHERITS (base)")
    world.run("INSERT INTO base VALUES (1)", "INSERT INTO child VALUES (2, 'x')")
    shape = world.shape("base")
    assert "inherited_by" in shape.facts
    assert sorted(row["id"] for row in world.read(Selection(shape))) == [1, 2]


def test_materialized_views_and_foreign_tables_are_read(world: World, postgres: PostgresDatabase) -> None:
    world.run(
        "CREATE EXTENSION file_fdw", "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        "CREATE FOREIGN TABLE abroad (v text) SERVER files OPTIONS (program 'echo hello', format 'text')",
        "CREATE MATERIALIZED VIEW kept AS SELECT n AS id FROM generate_series(1, 3) n",
    )  # fmt: skip
    assert [table.name for table in world.database.tables()] == ["abroad", "kept"]
    assert world.read(Selection(world.shape("abroad"))) == [{"v": "hello"}]
    assert len(world.read(Selection(world.shape("kept")))) == 3


def test_a_table_without_columns_is_told(world: World) -> None:
    world.run("CREATE TABLE bare ()")
    with pytest.raises(Unsupported) as raised:
        world.shape("bare")
    assert raised.value.code == "no_columns"


def test_sizes_are_known_without_statistics(world: World) -> None:
    world.run("CREATE TABLE fresh (id int, note text)", "CREATE TABLE hollow (id int)")
    world.run("INSERT INTO fresh SELECT n, 'some words' FROM generate_series(1, 20000) n")
    assert 5_000 <= world.shape("fresh").rows <= 80_000
    assert world.shape("hollow").rows == 0


@pytest.mark.parametrize("statistics", ["fresh", "stale", "none"])
def test_large_tables_are_cut_by_statistics_or_a_sample(postgres: PostgresDatabase, statistics: str) -> None:
    world = _world(postgres)
    world.run("CREATE TABLE large (id bigint, code text, few int)")
    world.run("INSERT INTO large SELECT n * 7, md5(n::text), nullif(n % 3, 0) FROM generate_series(1, 600000) n")
    if statistics != "none":
        world.run("ANALYZE large")
    if statistics == "stale":
        world.run("UPDATE large SET id = id + 4200000 WHERE id > 3000000")
    shape = world.shape("large")
    with world.database.sessions(1, consistent=True) as (session,):
        for column in ("id", "code", "few"):
            ranges = session.cut(shape, column, 60_000)
            counts = [session.summary(Selection(shape, one), checksums=False).rows for one in ranges]
            assert sum(counts) == 600_000
            if column != "few":
                assert 8 <= len(ranges) <= 14
                assert max(counts) < 2 * 60_000
        assert len(session.cut(shape, "id", 6_000)) > 80


def test_a_failed_statement_leaves_the_session_and_its_moment(world: World) -> None:
    world.run("CREATE TABLE log (id int)", "INSERT INTO log VALUES (0)")
    everything = Selection(world.shape("log"))
    with world.database.sessions(2, consistent=True) as (session, _):
        world.run("INSERT INTO log VALUES (1)")
        with pytest.raises(Unsupported):
            session.broken_rows(everything, RowRule("sql", sql="no_such_function(id)"))
        with pytest.raises(NotFound):
            session.broken_rows(everything, RowRule("sql", sql="no_such_column > 1"))
        with pytest.raises(Unsupported):
            rows_of(session, Selection(everything.shape, rules=(RowRule("sql", sql="1 / id > 1"),)))
        assert rows_of(session, everything) == [{"id": 0}]


def test_a_server_that_ends_the_session(world: World) -> None:
    world.run(
        "CREATE TABLE log (id int, note text)",
        "INSERT INTO log SELECT n, repeat('x', 200) FROM generate_series(1, 200000) n",
    )
    shape = world.shape("log")
    with world.database.sessions(1, consistent=True) as (session,):
        batches = session.batches(Selection(shape), batch_bytes=50_000)
        next(batches)
        world.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
                  "AND datname = current_database() AND backend_type = 'client backend'")  # fmt: skip
        with pytest.raises((ServiceUnavailable, ConnectionLost)):
            for _ in batches:
                pass
        with pytest.raises((ServiceUnavailable, ConnectionLost)):
            session.summary(Selection(shape), checksums=False)


def test_a_query_where_no_view_may_be_made(postgres: PostgresDatabase, world: World) -> None:
    role = f"plain_{postgres.name}"
    world.run(
        "CREATE TABLE base (id int, n numeric(9, 2), d timestamptz)", "INSERT INTO base VALUES (1, 1.50, now())",
        f"REVOKE TEMP ON DATABASE {postgres.name} FROM PUBLIC", f"CREATE ROLE {role} LOGIN PASSWORD 'plain'",
        f"GRANT SELECT ON base TO {role}",
    )  # fmt: skip
    value = world.value.replace(postgres.password, "plain").replace("postgres:plain", f"{role}:plain")
    value = value.replace("UID=postgres", f"UID=plain_{postgres.name}")
    plain = World("postgresql", "public", value, postgres.connect)
    shape = plain.shape("mine", 'SELECT id, n AS "the n", d FROM base')
    assert [(column.name, column.type) for column in shape.lake_columns] == [
        ("id", "int32"), ("the n", "string"), ("d", "timestamp[us, UTC]"),
    ]  # fmt: skip
    assert plain.read(Selection(shape))[0]["the n"] == "1.50"


@pytest.mark.parametrize("transport", ["native", "odbc"])
def test_text_of_another_encoding_is_hashed_as_utf8(postgres_server: PostgresServer, transport: str) -> None:
    world = _world(postgres_server.make_database(encoding="LATIN1"), transport)
    world.run("CREATE TABLE words (v text)", "INSERT INTO words VALUES (U&'\\00C4pfel'), ('x')")
    shape = world.shape("words")
    with world.database.sessions(1, consistent=True) as (session,):
        rows = rows_of(session, Selection(shape))
        summary = session.summary(Selection(shape), checksums=True)
    assert {row["v"] for row in rows} == {"Äpfel", "x"}
    sums = summary.columns["v"]
    assert summary.definition == MD5_UTF_8
    assert (sums.nulls, sums.total) == totals(rows, shape, summary.definition)["v"]


def test_text_without_an_encoding_is_refused(postgres_server: PostgresServer) -> None:
    with pytest.raises(RunError) as raised:
        _world(postgres_server.make_database(encoding="SQL_ASCII")).database.check()
    assert raised.value.code == "no_encoding"


def test_collations_that_take_different_text_for_equal(world: World) -> None:
    world.run(
        "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)",
        "CREATE TABLE words (id int, v text COLLATE nocase)",
        "INSERT INTO words SELECT n, substr('aAbBäÄc', n % 7 + 1, 1) FROM generate_series(1, 70) n",
    )
    shape = world.shape("words")
    with world.database.sessions(1, consistent=True) as (session,):
        ranges = session.cut(shape, "v", 10)
        counts = [session.summary(Selection(shape, one), checksums=False).rows for one in ranges]
        assert sum(counts) == 70
        assert len(counts) > 2
        assert session.summary(Selection(shape, KeyRange("v", "A", "b")), checksums=False).rows == 40


@pytest.mark.parametrize(
    ("state", "said", "kind", "code"),
    [
        ("28P01", "", Authentication, "login_refused"), ("28000", "", Authentication, "login_refused"),
        ("3D000", "", SourceMissing, "database_missing"), ("40001", "", Throttled, "throttled"),
        ("40P01", "", Throttled, "throttled"), ("53300", "", Throttled, "throttled"),
        ("53200", "", Throttled, "throttled"), ("57P01", "", ServiceUnavailable, "service_unavailable"),
        ("57P03", "", ServiceUnavailable, "service_unavailable"),
        ("58030", "", ServiceUnavailable, "service_unavailable"),
        ("57014", "canceling statement due to statement timeout", TransientError, "statement_timeout"),
        ("57014", "canceling statement due to user request", TransientError, "cancelled"),
        ("42501", "ERROR:  permission denied for table x", AccessDenied, "access_denied"),
        ("42P01", 'ERROR:  relation "x" does not exist', NotFound, "table_not_found"),
        ("22P02", 'ERROR:  invalid input syntax: "4111-1111"', Unsupported, "value_unfit"),
        ("42601", "ERROR:  syntax error", Unsupported, "statement_refused"),
        (None, 'FATAL:  password authentication failed for user "x"', Authentication, "login_refused"),
        (None, 'connection to server failed: FATAL:  database "x" does not exist', SourceMissing, "database_missing"),
        ("08001", "connection failed: FATAL:  sorry, too many clients already", Throttled, "throttled"),
        (None, 'FATAL:  too many connections for database "x"', Throttled, "throttled"),
        (None, 'FATAL:  too many connections for role "x"', Throttled, "throttled"),
        (None, "FATAL:  the database system is starting up", ServiceUnavailable, "service_unavailable"),
        (None, "FATAL:  the database system is in recovery mode", ServiceUnavailable, "service_unavailable"),
        (None, "connection to server failed: Connection refused", ConnectionLost, "connection_lost"),
        ("08006", "server closed the connection unexpectedly", ConnectionLost, "connection_lost"),
        (None, "PQgetCopyData() failed: SSL error: unexpected eof while reading", ConnectionLost, "connection_lost"),
        ("08S01", "SSL SYSCALL error: EOF detected ; The connection has been lost", ConnectionLost, "connection_lost"),
        (None, "SSL connection has been closed unexpectedly", ConnectionLost, "connection_lost"),
        (None, "SSL error: certificate verify failed", Configuration, "certificate_not_trusted"),
        (None, "server does not support SSL, but SSL was required", Configuration, "certificate_not_trusted"),
    ],
)  # fmt: skip
def test_what_a_state_means(state: str | None, said: str, kind: type, code: str) -> None:
    error = classify_postgresql(state, said, setting="ERP_DB", subject="public.t")
    assert (type(error), error.code) == (kind, code)
    # A value of a row is nobody's business.
    assert "4111" not in error.detail


def test_a_silent_connection_is_kept_alive_and_a_dead_one_noticed(world: World, postgres: PostgresDatabase) -> None:
    """What lies between (a load balancer, a firewall) forgets a connection on which nothing is said for minutes."""
    if not Path("/proc/net/tcp").exists():
        pytest.skip("only Linux shows the timers of its connections")
    with world.database.sessions(1, consistent=True):
        timers = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # State and timer as the kernel's Documentation/networking/proc_net_tcp.rst has them; hundredths of a second.
        ours = [one for one in timers if int(one[2].partition(":")[2], 16) == postgres.port and one[3] == "01"]
        assert ours
        for one in ours:
            kind, _, left = one[5].partition(":")
            assert kind == "02" and int(left, 16) <= 6000, "a first probe within a minute"
