"""Tables of unusual shapes and names, lakes in which two of them would meet, clocks that go backwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.sql.test_e2e_sql import Source, folder, lake_rows, orphans, spec
from tests.support.emulated import Lake
from tests.support.platform import Platform, running
from tests.support.postgres import PostgresDatabase, PostgresServer, odbc_missing
from tests.support.tables import Crash, Engine, ordered
from tests.support.tables import item as record_of

WATERMARK = {"mode": "incremental", "change": "watermark", "column": "at"}


@pytest.fixture(scope="module")
def module_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


@pytest.fixture(scope="module")
def bank(postgres_server: PostgresServer) -> PostgresDatabase:
    return postgres_server.make_database()


@pytest.fixture(scope="module")
def platform(module_root: Path, bank: PostgresDatabase) -> Iterator[Platform]:
    with running(
        module_root / "platform", SQLITE=f"sqlite:///{module_root}/db.db", NATIVE=bank.url, ODBC=bank.odbc
    ) as one:
        yield one


def rows_of(bank: PostgresDatabase, table: str) -> list[tuple[Any, ...]]:
    with bank.connect(options="-c datestyle=ISO -c timezone=UTC") as connection:
        return connection.execute(f"SELECT * FROM {table} ORDER BY 1".encode()).fetchall()


def values(rows: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    return sorted(tuple(row.values()) for row in rows)


# -- columns -----------------------------------------------------------------------------------------------------------


def test_as_many_columns_as_a_database_takes(platform: Platform, module_root: Path, bank: PostgresDatabase) -> None:
    """PostgreSQL's 1,600 and SQLite's 2,000: a load, an increment that is merged, and files of the same."""
    source = Source(module_root / "db.db", rows=0)
    for make, most in ((bank.run, 1600), (source.run, 2000)):
        names = [f"c{n}" for n in range(most - 2)]
        columns = ", ".join(f"{name} {'TEXT' if n % 400 == 7 else 'INTEGER'}" for n, name in enumerate(names))
        filled = ", ".join(f"'t{n}'" if n % 400 == 7 else str(n) for n in range(len(names)))
        make(f"CREATE TABLE wide (id INTEGER PRIMARY KEY, at INTEGER, {columns})",
             *(f"INSERT INTO wide VALUES ({n}, {n}, {filled})" for n in range(5)))  # fmt: skip
    table = {"table": "wide", **WATERMARK}
    jobs = [(spec("wide-native", "NATIVE", table), "public_wide"), (spec("wide-sqlite", "SQLITE", table), "wide")]
    if not odbc_missing():
        jobs.append((spec("wide-odbc", "ODBC", {"table": "wide"}, form="parquet"), "public/wide"))

    def assert_same() -> None:
        runs = [platform.start(job) for job, _ in jobs]
        for (job, name), run in zip(jobs, runs, strict=True):
            platform.wait(run, "completed")
            there = [tuple(row.values()) for row in source.rows("wide")]
            wanted = there if job["name"] == "wide-sqlite" else rows_of(bank, "wide")
            assert values(lake_rows(folder(platform, job, name))) == wanted, job["name"]
            (record,) = platform.manifest(run)["items"]
            assert record["source_checksum"] == record["target_checksum"] is not None
            assert record["load"] == expected or record["mode"] == "full"

    expected = "full"
    assert_same()
    jobs = jobs[:2]
    for run in (bank.run, source.run):
        run("UPDATE wide SET c7 = 'changed', c1500 = NULL, at = 10 WHERE id = 3",
            "INSERT INTO wide (id, at, c0) VALUES (11, 11, 11)")  # fmt: skip
    expected = "increment"
    assert_same()


# -- names -------------------------------------------------------------------------------------------------------------

# As long as PostgreSQL takes them: 63 bytes.
SCHEMA = "sch\u00f6n" + "\u00e4" * 28 + "z"
TABLE = "\u8868\u683c" * 10 + "abc"
COLUMN = "\u0441\u0442\u043e\u043b\u0431" * 6 + "abc"


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_names_of_63_bytes_of_many_scripts(platform: Platform, bank: PostgresDatabase, form: str) -> None:
    assert {len(name.encode()) for name in (SCHEMA, TABLE, COLUMN)} == {63}
    table = f'"{SCHEMA}"."{TABLE}"'
    bank.run(
        f'CREATE SCHEMA IF NOT EXISTS "{SCHEMA}"', f"DROP TABLE IF EXISTS {table}",
        f'CREATE TABLE {table} (id integer PRIMARY KEY, at integer, "{COLUMN}" text)',
        f"INSERT INTO {table} SELECT n, n, 'v' || n FROM generate_series(1, 20) AS n",
    )  # fmt: skip
    job = spec(f"names-{form}", "NATIVE", {"table": f'"{SCHEMA}".*', **WATERMARK}, form=form)
    for number in (50, 51):
        run = platform.run(job)["id"]
        (record,) = platform.manifest(run)["items"]
        assert record["table"] == f"{SCHEMA}.{TABLE}"
        lake = platform.emulators.lake_folder / "Migration/Landing.Lakehouse" / record["path"]
        found = lake_rows(lake)
        assert values(found) == rows_of(bank, table)
        assert list(found[0]) == ["id", "at", COLUMN]
        assert orphans(lake) == []
        bank.run(f"INSERT INTO {table} VALUES ({number}, {number}, 'new')")


def test_tables_that_would_lie_in_one_folder_are_refused_before_anything_moves(
    platform: Platform, bank: PostgresDatabase
) -> None:
    bank.run('CREATE SCHEMA "m"', 'CREATE SCHEMA "m_n"', 'CREATE TABLE "m"."n_o" (id integer)',
             'CREATE TABLE "m_n"."o" (id integer)', 'CREATE TABLE "m_n"."O" (id integer)')  # fmt: skip
    mark = platform.mark()
    query = {"query": "SELECT 1 AS id", "name": "m"}
    for name, tables, form, parts in (
        ("meet-delta", [{"table": "m.*"}, {"table": "m_n.o"}], "delta", ["m.n_o", "m_n.o"]),
        ("meet-case", [{"table": "m_n.*"}], "parquet", ["m_n.o", "m_n.O"]),
        # One folder in the other: what reads the one would read both.
        ("meet-inside", [query, {"table": "m.*"}], "parquet", ["m.n_o", "m"]),
    ):
        run = platform.start(spec(name, "NATIVE", *tables, form=form))
        error = platform.wait(run, "failed")["error"]
        assert error["code"] == "output_collision", error
        assert all(part in error["message"] for part in parts), error
        assert platform.manifest(run)["error"]["code"] == "output_collision"
    # What the job's text tells by itself is refused at once.
    same = [{"table": "m.n_o", "name": "both"}, {"table": "m_n.o", "name": "Both"}]
    for tables, form in ((same, "delta"), ([query, {**query, "name": "M"}], "parquet")):
        refused = platform.post("/migrations", spec("meet-names", "NATIVE", *tables, form=form))
        assert refused.status == 400
        assert "two tables would be written under the name" in refused.error["message"]
    written = [one for one in platform.emulators.journal()[mark:] if "/meet-" in one["path"]]
    assert [one for one in written if "part" in one["path"] or one["operation"] == "rename"] == []


# -- time and what is left of it ---------------------------------------------------------------------------------------

TABLE_T = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)"


def make(lake: Lake, tmp_path: Path, **spec: Any) -> Engine:
    engine = Engine(lake, tmp_path, [{"table": "t", **WATERMARK}], **spec)
    engine.source.run(TABLE_T)
    engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(60)])
    return engine


@pytest.mark.parametrize("disposition", ["append", "merge", "history"])
async def test_a_clock_that_goes_backwards_between_runs(lake: Lake, tmp_path: Path, disposition: str) -> None:
    """How far a table was read is the source's to say, not the clock's; and no state ends before it began."""
    engine = make(lake, tmp_path, write={"disposition": disposition})
    now = datetime(2026, 11, 21, 12, tzinfo=UTC)
    engine.clock = lambda: now  # type: ignore[method-assign]
    for step in range(4):
        record = record_of(await engine.run())
        assert (record["status"], record["load"]) == ("success", "increment" if step else "full")
        engine.assert_same()
        now -= timedelta(hours=5)
        moment = 100 + step
        engine.source.run(f"INSERT INTO t VALUES ({moment}, 'new', {moment})")
        if disposition != "append":
            engine.source.run(f"UPDATE t SET name = 'changed {step}', at = {moment} WHERE id = 7")
    if disposition == "history":
        states = [row for row in engine.table().rows() if row["id"] == 7]
        assert len(states) == 4
        assert [row["_is_current"] for row in states].count(True) == 1
        for row in states:
            assert row["_valid_to"] is None or row["_valid_from"] < row["_valid_to"], row


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_what_an_earlier_round_read_is_not_committed_by_a_later_one(
    lake: Lake, tmp_path: Path, form: str
) -> None:
    """Documents of slices that another plan has asked for stay, as after a kill while they were deleted."""
    engine = make(lake, tmp_path, format=form, partition={"rows": 20, "parallel": 1},
                  source={"connection": "DB", "name": "src", "consistency": "slice"})  # fmt: skip
    run = engine.begin()
    kept: dict[str, bytes] = {}

    async def between(turn: int, step: str) -> None:
        if step == "commit" and turn == 0 and not kept:
            for key in await engine.store.list(f"runs/{run}/slices/p00001-t0"):
                kept[key] = await engine.store.get(key) or b""
            raise Crash("before the commit")

    engine.between = between  # type: ignore[method-assign]
    with pytest.raises(Crash):
        await engine.go_on(run, engine.spec)
    assert kept
    engine.source.run("DELETE FROM t WHERE id > 30", "UPDATE t SET name = 'later', at = at + 100")
    # The round that follows forgets what was decided, and its worker died before it forgot the slices.
    records = f"runs/{run}"
    await engine.store.delete([f"{records}/tables/p00001-t0.json"])
    await engine.store.put(f"{records}/records/p00001.json", json.dumps({"status": "failed"}).encode())
    later = 0

    async def planted(turn: int, step: str) -> None:
        nonlocal later
        if step == "commit" and turn == 0:
            for key, data in kept.items():
                later += 1
                await engine.store.put(key, data)

    engine.between = planted  # type: ignore[method-assign]
    manifest = await engine.go_on(run, engine.spec, round_number=2)
    assert (record_of(manifest)["status"], later) == ("success", len(kept))
    engine.assert_same()
    assert ordered(engine.lake_rows())[0]["name"] == "later"
    assert engine.table().left_over() == []
