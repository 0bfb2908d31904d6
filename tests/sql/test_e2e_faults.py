"""Whole runs of tables while the lake, the source or the way to it fails.

Whatever happens, a reader of the lake finds a state of the source and nothing else, and at the end the very rows.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from deltalake import write_deltalake

from tests.sql.test_e2e_sql import Source, files, folder, item, lake_rows, orphans, spec
from tests.support.cutting_proxy import CuttingProxy, cutting
from tests.support.platform import FINISHED, Platform, running, until
from tests.support.postgres import PostgresDatabase, PostgresServer, odbc_missing

WATERMARK = {"mode": "incremental", "change": "watermark", "column": "at"}
FORMS = ("parquet", "delta")
# By what each table is written; those of the merge and the history that are read in full also tell what is gone.
TABLES: dict[str, dict[str, Any]] = {
    "added": {**WATERMARK, "write": {"disposition": "append"}},
    "replaced": {"mode": "full"},
    "merged": {**WATERMARK, "write": {"disposition": "merge"}},
    "mirrored": {"mode": "full", "write": {"disposition": "merge", "deletes": "soft"}},
    "kept": {"mode": "full", "write": {"disposition": "history", "deletes": "soft"}},
}
OF_PARQUET = ("added", "replaced")
WORK = ("_staging-", "_pending-", "_commit-", ".olm-staging-")


@pytest.fixture(scope="module")
def module_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def platform(module_root: Path) -> Iterator[Platform]:
    settings = {f"DB_{n}": f"sqlite:///{module_root}/db{n}.db" for n in range(6)}
    with running(module_root / "platform", RETRY_ATTEMPTS="2", RETRY_FIRST_DELAY_S="0.1", **settings) as one:
        yield one


def tables_of(form: str) -> list[str]:
    return [name for name in TABLES if form == "delta" or name in OF_PARQUET]


def wishes(form: str) -> list[dict[str, Any]]:
    return [{"table": name, **TABLES[name]} for name in tables_of(form)]


def make_tables(path: Path) -> Source:
    source = Source(path, rows=0)
    source.run(*(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)" for name in TABLES))
    for name in TABLES:
        source.many(f"INSERT INTO {name} VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(200)])
    return source


def change_tables(source: Source, by: int) -> None:
    """Rows come everywhere; they change and go where what is read can tell."""
    for name in TABLES:
        source.many(f"INSERT INTO {name} VALUES (?, ?, ?)", [(n, "new", n) for n in range(by, by + 20)])
        if name != "added":
            source.run(f"UPDATE {name} SET name = 'changed', at = {by} WHERE id % 50 = 7")
        if name in ("replaced", "mirrored", "kept"):
            source.run(f"DELETE FROM {name} WHERE id % 40 = {by % 40}")


def shown(table: Path, name: str) -> list[dict[str, Any]]:
    """What a reader takes for the table's rows now."""
    if name != "kept":
        return lake_rows(table)
    with duckdb.connect() as connection:
        names = ", ".join(f"'{file}'" for file in files(table))
        found = connection.sql(f"""
            SELECT id, name, "at" FROM read_parquet([{names}], union_by_name = true) WHERE _is_current ORDER BY id
        """)
        rows: list[dict[str, Any]] = found.to_arrow_table().to_pylist()
    return rows


def states(table: Path) -> list[tuple[int, int, int]]:
    """Of a history, how many rows, how many of them different, and how many current."""
    with duckdb.connect() as connection:
        names = ", ".join(f"'{file}'" for file in files(table))
        return connection.sql(f"""
            SELECT count(*), count(DISTINCT (id, name, "at")), count(*) FILTER (WHERE _is_current)
            FROM read_parquet([{names}], union_by_name = true)
        """).fetchall()


def assert_same(platform: Platform, job: dict[str, Any], source: Source) -> None:
    for name in tables_of(job["target"]["format"]):
        table = folder(platform, job, name)
        assert shown(table, name) == source.rows(name), (job["name"], name)
        assert orphans(table) == [], (job["name"], name)


def left_over(table: Path, run: str) -> list[str]:
    """Files of work under way, and folders of it that are neither empty nor of this run."""
    found = (file for file in table.rglob("*") if any(part.startswith(WORK) for part in file.relative_to(table).parts))
    return sorted(
        str(file.relative_to(table))
        for file in found
        if file.is_file() or (file.name.startswith("_staging-") and "sql-" in file.name and run not in file.name)
    )


# -- the lake ----------------------------------------------------------------------------------------------------------

_OPERATIONS = ("create", "append", "flush", "append_flush", "rename", "list", "delete", "properties", "read")
_FAULTS = ("throttle", "unavailable", "server_error", "reset_before", "reset_after")
# Every kind of failure at every kind of call, spread over the first calls of each kind; more of them for what makes
# rows visible, whose answer then gets lost for good.
STUMBLES = [
    {"operation": "append_flush", "path": "*/_delta_log/*.json", "fault": "reset_after", "times": 4},
    {"operation": "rename", "path": "*/_commit-*", "fault": "reset_after", "times": 1},
    {"operation": "rename", "path": "*/sql-stumble-*", "fault": "reset_after", "times": 3},
    *(
        {"operation": operation, "path": "*/stumble-*", "after": 2 * number, "times": 1, "fault": fault}
        for operation in _OPERATIONS for number, fault in enumerate(_FAULTS)
    ),
    {"operation": "read", "path": "*/stumble-*", "after": 1, "times": 2, "fault": "short_body"},
    {"operation": "create", "path": "*/stumble-*", "after": 7, "times": 1, "fault": "expired_token"},
    {"operation": "append", "path": "*/stumble-*", "after": 7, "times": 1, "fault": "throttle", "retry_after_s": 1},
]  # fmt: skip


def test_a_lake_that_stumbles_at_every_call(platform: Platform, module_root: Path) -> None:
    source = make_tables(module_root / "db0.db")
    jobs = [spec(f"stumble-{form}", "DB_0", *wishes(form), form=form, partition={"rows": 60, "parallel": 2})
            for form in FORMS]  # fmt: skip
    for load in range(2):
        platform.emulators.set_faults(STUMBLES)
        runs = [platform.start(job) for job in jobs]
        for run in runs:
            platform.wait(run, "completed")
        assert all(platform.emulators.fault_hits()), "each of them was met"
        platform.emulators.set_faults([])
        for job in jobs:
            assert_same(platform, job, source)
        change_tables(source, 1000 * (load + 1))
    for job in jobs:
        run = platform.run(job)["id"]
        assert_same(platform, job, source)
        for name in tables_of(job["target"]["format"]):
            assert left_over(folder(platform, job, name), run) == []
            one = item(platform, run, name)
            assert one["source_checksum"] == one["target_checksum"] is not None
    rows, different, current = states(folder(platform, jobs[1], "kept"))[0]
    assert rows == different
    assert current == len(source.rows("kept"))


def test_tables_that_cannot_be_written_are_named_and_mended(platform: Platform, module_root: Path) -> None:
    """One cannot be begun, one comes back other than it was written; a lake that refuses both has the others."""
    source = make_tables(module_root / "db1.db")
    jobs = [spec(f"mend-{form}", "DB_1", *wishes(form), form=form) for form in FORMS]
    for job in jobs:
        platform.run(job)
    before = source.rows("added")
    change_tables(source, 1000)
    platform.emulators.set_faults([
        {"operation": "create", "path": "*/mend-*/added/*", "fault": "server_error"},
        {"operation": "read", "path": "*/mend-*/replaced/*part-*", "fault": "corrupt_body"},
    ])  # fmt: skip
    runs = [platform.start(job) for job in jobs]
    for job, run in zip(jobs, runs, strict=True):
        platform.wait(run, "completed_with_failures")
        manifest = platform.manifest(run)
        found = {one["table"]: (one["status"], one["error_code"], one["step"]) for one in manifest["items"]}
        assert found.pop("added") == ("failed", "service_unavailable", "extract")
        status, code, step = found.pop("replaced")
        assert (status, step) == ("failed", "extract")
        assert code in ("file_unreadable", "checksum_mismatch", "row_count_mismatch"), code
        assert set(found.values()) <= {("success", None, None)}
        assert shown(folder(platform, job, "added"), "added") == before
        for name in ("added", "replaced"):
            assert orphans(folder(platform, job, name)) == []
    platform.emulators.set_faults([])
    for run in runs:
        assert platform.post(f"/migrations/{run}/retry-failed").status == 202
    for job, run in zip(jobs, runs, strict=True):
        platform.wait(run, "completed")
        assert_same(platform, job, source)
        assert {one["status"] for one in platform.manifest(run)["items"]} == {"success"}
        for name in tables_of(job["target"]["format"]):
            assert left_over(folder(platform, job, name), run) == []


def test_somebody_else_commits_at_the_same_moment(platform: Platform, module_root: Path) -> None:
    """Between the look at the table and the commit; both get what they wanted, and what is replaced is replaced."""
    source = make_tables(module_root / "db2.db")
    job = spec("race", "DB_2", *wishes("delta"))
    platform.run(job)
    change_tables(source, 1000)
    names = ("added", "replaced", "merged")
    platform.emulators.set_faults([
        {"operation": "append_flush", "path": f"*/race/{name}/_delta_log/*.json", "fault": "latency", "times": 1,
         "latency_ms": 1500}
        for name in names
    ])  # fmt: skip
    run = platform.start(job)
    until(lambda: all(platform.emulators.fault_hits()), "the commits to be on their way")
    mark = platform.mark()
    foreign = {"id": 77_777, "name": "somebody else's", "at": 0}
    for name in names:
        write_deltalake(str(folder(platform, job, name)), pa.Table.from_pylist([foreign]), mode="append",
                        schema_mode="merge")  # fmt: skip
    platform.wait(run, "completed")
    platform.emulators.set_faults([])
    refused = {one["path"].split("/race/")[1].split("/")[0] for one in platform.emulators.journal()[mark:]
               if "/race/" in one["path"] and "_delta_log" in one["path"] and one["status"] in (409, 412)}  # fmt: skip
    assert refused == set(names), "somebody else was faster"
    for name in names:
        kept = [] if name == "replaced" else [foreign]
        assert lake_rows(folder(platform, job, name)) == source.rows(name) + kept, name
        assert orphans(folder(platform, job, name)) == []
        assert left_over(folder(platform, job, name), run) == []


# -- the source --------------------------------------------------------------------------------------------------------

# More at once than sockets hold, for what is sent in one go; more rows than psqlodbc asks for at once.
LARGE = (
    "CREATE TABLE large (id integer PRIMARY KEY, body text NOT NULL)",
    "ALTER TABLE large ALTER body SET STORAGE EXTERNAL",
)
OF_DRIVER = {
    "NATIVE": "INSERT INTO large SELECT n, repeat(md5(n::text), 2000) FROM generate_series(1, 400) AS n",
    "ODBC": "INSERT INTO large SELECT n, repeat(md5(n::text), 5) FROM generate_series(1, 40000) AS n",
}


@pytest.fixture(scope="module")
def banks(postgres_server: PostgresServer) -> dict[str, PostgresDatabase]:
    """By the setting that leads there."""
    found = {name: postgres_server.make_database() for name in OF_DRIVER}
    for name, bank in found.items():
        bank.run(*LARGE, OF_DRIVER[name], "ANALYZE")
    return found


@pytest.fixture(scope="module")
def proxy(banks: dict[str, PostgresDatabase]) -> Iterator[CuttingProxy]:
    with cutting(banks["NATIVE"].port) as one:
        yield one


@pytest.fixture(scope="module")
def far(module_root: Path, banks: dict[str, PostgresDatabase], proxy: CuttingProxy) -> Iterator[Platform]:
    direct = {
        "NATIVE": banks["NATIVE"].url,
        "ODBC": banks["ODBC"].odbc,
        "TLS": f"{banks['NATIVE'].url}?sslmode=require",
    }
    cut = {f"CUT_{name}": value.replace(str(proxy.port_behind), str(proxy.port)) for name, value in direct.items()}
    with running(module_root / "far", RETRY_ATTEMPTS="6", RETRY_FIRST_DELAY_S="0.1", **direct, **cut) as one:
        yield one


def digests(table: Path) -> list[tuple[int, str]]:
    with duckdb.connect() as connection:
        names = ", ".join(f"'{file}'" for file in files(table))
        return connection.sql(f"SELECT id, md5(body) FROM read_parquet([{names}]) ORDER BY id").fetchall()


def assert_equal_large(platform: Platform, job: dict[str, Any], run: str, bank: PostgresDatabase) -> None:
    table = folder(platform, job, "public/large")
    assert digests(table) == bank.run("SELECT id, md5(body) FROM large ORDER BY id")
    assert orphans(table) == []
    record = item(platform, run, "public.large")
    assert record["source_checksum"] == record["target_checksum"] is not None


# Two slices, each of them in several batches.
IN_BATCHES: dict[str, Any] = {"form": "parquet", "limits": {"memory": "32MiB"}}


def test_the_database_goes_away_while_it_is_read(
    far: Platform, banks: dict[str, PostgresDatabase], postgres_server: PostgresServer
) -> None:
    """First every connection is ended by an administrator, then the server dies and comes back."""
    bank = banks["NATIVE"]
    job = spec("away", "NATIVE", {"table": "large"}, partition={"rows": 200, "parallel": 2},
               source={"consistency": "snapshot", "rows_per_s": 200}, **IN_BATCHES)  # fmt: skip
    run = far.start(job)
    until(lambda: _is_sending(bank), "rows to be on their way")
    bank.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
             "WHERE datname = current_database() AND pid <> pg_backend_pid()")  # fmt: skip
    until(lambda: _is_sending(bank), "rows to be on their way once more")
    postgres_server.crash()
    assert files(folder(far, job, "public/large")) == []
    postgres_server.start()
    far.wait(run, "completed")
    assert_equal_large(far, job, run, bank)


def _is_sending(bank: PostgresDatabase) -> bool:
    """The server cannot say more before it is listened to."""
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'ClientWrite'"
    return bool(bank.run(waiting)[0][0])


@pytest.mark.parametrize(("setting", "rows", "cuts"), [
    # psqlodbc up to 13.02 crashes where a connection breaks in what is fetched after the first 10,000 rows.
    ("NATIVE", 200, [1_000_001, 5_200_003, 270_007]), ("ODBC", 20_000, [1_000_001, 270_007]),
    # In the handshake, at the run's very beginning, and in what follows.
    ("TLS", 200, [700, 1_000_001, 270_007]),
])  # fmt: skip
def test_the_connection_breaks_in_the_middle_of_a_row(
    far: Platform, banks: dict[str, PostgresDatabase], postgres_server: PostgresServer, proxy: CuttingProxy,
    setting: str, rows: int, cuts: list[int],
) -> None:  # fmt: skip
    if setting == "ODBC" and (why := odbc_missing()):
        pytest.skip(why)
    job = spec(f"cut-{setting.lower()}", f"CUT_{setting}", {"table": "large"},
               partition={"rows": rows, "parallel": 2}, source={"consistency": "slice"}, **IN_BATCHES)  # fmt: skip
    with postgres_server.offering_tls() if setting == "TLS" else nullcontext():
        proxy.cuts = list(cuts)
        run = far.run(job)["id"]
        assert proxy.cuts == [], "each of them was met"
    assert_equal_large(far, job, run, banks["ODBC" if setting == "ODBC" else "NATIVE"])


# -- a file that others hold -------------------------------------------------------------------------------------------


def test_a_file_that_a_writer_holds_for_long(platform: Platform, module_root: Path) -> None:
    """SQLite without WAL lets nobody read meanwhile: for longer than it is waited for, and then again and again."""
    source = Source(module_root / "db3.db", rows=1000)
    source.run("PRAGMA journal_mode = DELETE")
    job = spec("held", "DB_3", {"table": "t", **WATERMARK}, partition={"rows": 200, "parallel": 2},
               source={"consistency": "slice"})  # fmt: skip
    writer = sqlite3.connect(source.path, isolation_level=None, timeout=30)
    writer.execute("BEGIN EXCLUSIVE")
    run = platform.start(job)
    until(lambda: _waits(platform, run), "the first attempt to be given up")
    writer.execute("COMMIT")
    rows = 0
    while platform.status(run)["status"] not in FINISHED:
        rows += 1
        writer.execute("BEGIN EXCLUSIVE")
        writer.execute(f"INSERT INTO t VALUES ({10_000 + rows}, 'late', {10_000 + rows})")
        writer.execute(f"UPDATE t SET name = 'changed', at = {10_000 + rows} WHERE id = {rows}")
        time.sleep(0.1)
        writer.execute("COMMIT")
        time.sleep(0.02)
    writer.close()
    platform.wait(run, "completed")
    platform.run(job)
    assert lake_rows(folder(platform, job)) == source.rows()
    assert orphans(folder(platform, job)) == []


def _waits(platform: Platform, run: str) -> bool:
    """Whether the run waits for a timer, or has ended."""
    with sqlite3.connect(f"file:{platform.state / 'host.db'}?mode=ro", uri=True) as database:
        (timers,) = database.execute("SELECT count(*) FROM timers WHERE instance_id = ?", (run,)).fetchone()
    database.close()
    return bool(timers) or platform.status(run)["status"] in FINISHED
