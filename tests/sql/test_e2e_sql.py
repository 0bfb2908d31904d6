"""Tables through the whole app: API, embedded host, emulated lake; the source SQLite, the reader DuckDB.

Nothing here imports the app: what is claimed rests on HTTP answers, on files on the disk and on readers that know
nothing of this program.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from deltalake import DeltaTable

from tests.support.platform import LAKEHOUSE, Platform, running, until
from tests.support.postgres import PostgresDatabase

Row = dict[str, Any]
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)"
WATERMARK = {"table": "t", "mode": "incremental", "change": "watermark", "column": "at"}
SLOW_WRITES = [{"fault": "latency", "operation": operation, "latency_ms": 120}
               for operation in ("create", "append", "flush", "append_flush", "rename")]  # fmt: skip


class Source:
    """A SQLite database that others write to."""

    def __init__(self, path: Path, rows: int = 1000) -> None:
        self.path = path
        self.run("PRAGMA journal_mode = WAL")
        self.run(TABLE)
        self.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(rows)])

    def many(self, sql: str, rows: list[tuple[Any, ...]]) -> None:
        connection = sqlite3.connect(self.path, timeout=30)
        with connection:
            connection.executemany(sql, rows)
        connection.close()

    def run(self, *statements: str) -> None:
        connection = sqlite3.connect(self.path, timeout=30)
        with connection:
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def rows(self, table: str = "t") -> list[Row]:
        connection = sqlite3.connect(self.path, timeout=30)
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f'SELECT * FROM "{table}" ORDER BY 1')]
        connection.close()
        return found


@pytest.fixture(scope="module")
def module_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sql")


@pytest.fixture(scope="module")
def platform(module_root: Path) -> Iterator[Platform]:
    with running(
        module_root / "platform", **{f"DB_{n}": f"sqlite:///{module_root}/db{n}.db" for n in range(20)}
    ) as one:
        yield one


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "platform"


def spec(name: str, setting: str, *tables: dict[str, Any], form: str = "delta", **changes: Any) -> dict[str, Any]:
    base = "Tables" if form == "delta" else "Files"
    source = {"connection": setting, "name": "src", **changes.pop("source", {})}
    target = {"workspace": "Migration", "lakehouse": "Landing", "path": f"{base}/{name}", "format": form}
    return {"kind": "sql", "name": name, "source": source, "tables": list(tables) or [{"table": "t"}],
            "target": target, **changes}  # fmt: skip


def folder(platform: Platform, job: dict[str, Any], table: str = "t") -> Path:
    root = platform.emulators.lake_folder / LAKEHOUSE / job["target"]["path"]
    return root / table if job["target"]["format"] == "delta" else root / "src" / table


def files(table: Path) -> list[Path]:
    """The data files that a reader follows."""
    if (table / "_delta_log").exists():
        return [Path(uri) for uri in DeltaTable(str(table)).file_uris()]
    pointer = table / "_current.json"
    if not pointer.exists():
        return []
    folders = json.loads(pointer.read_text())["folders"]
    return [file for one in folders for file in (table / one).glob("[!_.]*.parquet")]


def lake_rows(table: Path) -> list[Row]:
    found = files(table)
    if not found:
        return []
    with duckdb.connect() as connection:
        names = ", ".join(f"'{file}'" for file in found)
        rows: list[Row] = connection.sql(
            f"SELECT * FROM read_parquet([{names}], union_by_name = true) ORDER BY ALL"
        ).to_arrow_table().to_pylist()  # fmt: skip
    return [
        {name: value for name, value in row.items() if not name.startswith("_")}
        for row in rows
        if not row.get("_deleted")
    ]


def orphans(table: Path) -> list[str]:
    """Parquet files that a reader of the folder could meet, and that the table does not have."""
    known = set(files(table))
    if (table / "_delta_log").exists():
        known |= {
            table / json.loads(line)["add"]["path"]
            for entry in (table / "_delta_log").glob("*.json")
            for line in entry.read_text().splitlines()
            if "add" in json.loads(line)
        }
    return [
        str(file.relative_to(table))
        for file in table.rglob("*.parquet")
        if file not in known and not any(part[:1] in "_." for part in file.relative_to(table).parts)
    ]


def item(platform: Platform, run: str, table: str = "t") -> dict[str, Any]:
    (found,) = [one for one in platform.manifest(run)["items"] if one["table"] == table]
    record: dict[str, Any] = found
    return record


def queued(platform: Platform) -> list[tuple[str, dict[str, Any]]]:
    """The activities that the host has scheduled and not settled, as its file shows them."""
    with sqlite3.connect(f"file:{platform.state / 'host.db'}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT name, input FROM activities").fetchall()
    database.close()
    return [(name, json.loads(given)) for name, given in rows]


# -- runs --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_full_then_what_changed(platform: Platform, module_root: Path, form: str) -> None:
    number = 0 if form == "parquet" else 1
    source = Source(module_root / f"db{number}.db")
    job = spec(f"load-{form}", f"DB_{number}", WATERMARK, form=form, partition={"rows": 300, "parallel": 3},
               write={"disposition": "append" if form == "parquet" else "merge"})  # fmt: skip
    status = platform.run(job)
    table = folder(platform, job)
    assert lake_rows(table) == source.rows()
    record = item(platform, status["id"])
    assert (record["status"], record["rows"], record["mode"], record["load"]) == (
        "success",
        1000,
        "incremental",
        "full",
    )
    assert record["source_checksum"] == record["target_checksum"] is not None
    assert record["to_watermark"] == "999"
    assert status["progress"]["rows_done"] == 1000
    assert status["progress"]["uploaded"] == 1
    listed = platform.get(f"/migrations/{status['id']}/items?status=success").json["value"]
    assert [one["table"] for one in listed] == ["t"]
    source.many("INSERT INTO t VALUES (?, ?, ?)", [(5000, "tied", 999), (5001, "new", 1001)])
    status = platform.run(job)
    assert lake_rows(table) == source.rows()
    record = item(platform, status["id"])
    assert (record["from_watermark"], record["to_watermark"], record["rows"] - record["repeated"]) in [
        ("999", "1001", 2 - 1), ("999", "1001", 3),
    ]  # fmt: skip
    for wanted in ("csv", "md", "html"):
        assert platform.get(f"/migrations/{status['id']}/manifest?format={wanted}").status == 200
    assert orphans(table) == []


def test_a_dry_run_shows_the_plan_and_touches_nothing(platform: Platform, module_root: Path) -> None:
    Source(module_root / "db2.db")
    job = spec("dry", "DB_2", {"table": "*"}, dry_run=True)
    mark = platform.mark()
    status = platform.run(job)
    record = item(platform, status["id"])
    assert (record["status"], record["plan"]["rows"], record["plan"]["moments"]) == ("planned", 1000, "snapshot")
    assert record["plan"]["seconds"] > 0
    assert {one["operation"] for one in platform.emulators.journal()[mark:] if "/dry" in one["path"]} <= {
        "properties", "list", "read",
    }  # fmt: skip
    assert not folder(platform, job).exists()


def test_many_tables_and_the_one_that_fails_is_seen(platform: Platform, module_root: Path) -> None:
    """More tables than one generation of the orchestrator takes; five hundred take three, and nothing else."""
    tables = 220
    source = Source(module_root / "db3.db", rows=3)
    source.run(*(f"CREATE TABLE t{n:03d} (id INTEGER PRIMARY KEY, v INTEGER)" for n in range(tables)))
    source.run(*(f"INSERT INTO t{n:03d} VALUES (1, {n})" for n in range(tables)))
    source.run("INSERT INTO t150 VALUES (2, 'no number')")
    job = spec("many", "DB_3", {"table": "t*", "exclude": ["t"]}, form="parquet", limits={"parallel_tables": 8})
    status = platform.wait(platform.start(job), "completed_with_failures", patience_s=400)
    assert (status["progress"]["uploaded"], status["progress"]["failed"]) == (tables - 1, 1)
    manifest = platform.manifest(status["id"])
    (failed,) = [one for one in manifest["items"] if one["status"] == "failed"]
    assert (failed["table"], failed["error_code"]) == ("t150", "value_unfit")
    text = platform.get(f"/migrations/{status['id']}/manifest?format=md").body.decode()
    assert text.index("t150") < text.index("t000"), "what failed stands first"
    assert [
        one["table"] for one in platform.get(f"/migrations/{status['id']}/items?status=failed&top=1000").json["value"]
    ] in (["t150"], [])
    source.run("DELETE FROM t150 WHERE id = 2")
    assert platform.post(f"/migrations/{status['id']}/retry-failed").status == 202
    status = platform.wait(status["id"], "completed")
    assert (status["progress"]["uploaded"], status["progress"]["failed"]) == (tables, 0)
    assert lake_rows(folder(platform, job, "t150")) == source.rows("t150")


def test_what_is_wrong_with_a_job_is_said_at_once(platform: Platform) -> None:
    missing = platform.post("/migrations", spec("wrong", "NO_SUCH_SETTING"))
    assert (missing.status, missing.fields) == (400, ["source.connection"])
    assert "NO_SUCH_SETTING" in missing.error["message"]
    unfit = platform.post("/migrations", spec("wrong", "CREDENTIAL_ONELAKE"))
    assert (unfit.status, unfit.fields) == (400, ["source.connection"])
    secret = json.loads(platform.environment["CREDENTIAL_ONELAKE"])["client_secret"]
    assert secret not in unfit.body.decode()


def test_a_database_that_is_not_there_fails_the_run_with_a_sentence(platform: Platform, module_root: Path) -> None:
    status = platform.wait(platform.start(spec("gone", "DB_19")), "failed")
    assert "DB_19" in status["error"]["message"]
    assert platform.manifest(status["id"])["error"]["code"] == status["error"]["code"]


def test_cancel_ends_it_and_the_next_run_begins_anew(root: Path, tmp_path: Path) -> None:
    source = Source(tmp_path / "db.db", rows=2000)
    with running(root, fault_plan=SLOW_WRITES, DB=f"sqlite:///{source.path}") as platform:
        job = spec("cancel", "DB", partition={"rows": 50, "parallel": 1}, source={"consistency": "slice"})
        run = platform.start(job)
        until(lambda: platform.status(run)["progress"]["rows_done"] > 0, "the first slice")
        assert platform.post(f"/migrations/{run}/cancel").status == 202
        status = platform.wait(run, "cancelled")
        assert lake_rows(folder(platform, job)) == []
        assert item(platform, run)["status"] == "planned"
        assert status["progress"]["rows_done"] < 2000
        platform.emulators.set_faults([])
        platform.run(job)
        assert lake_rows(folder(platform, job)) == source.rows()
        assert orphans(folder(platform, job)) == []


# -- kills -------------------------------------------------------------------------------------------------------------


def _reached(platform: Platform, run: str, phase: str) -> Callable[[], bool]:
    """Whether the phase is under way, or the run over."""
    return lambda: any(name == phase for name, _ in queued(platform)) or _ended(platform, run)


PHASES = ["plan_table", "extract_slice", "extract_table", "commit_table", "write_sql_reports"]


@pytest.mark.parametrize(("form", "consistency"), [("parquet", "snapshot"), ("delta", "slice")])
def test_kill_in_every_phase(root: Path, tmp_path: Path, form: str, consistency: str) -> None:
    """Load and increment; in each phase of both the host is killed, with pauses of the lake at different places."""
    source = Source(tmp_path / "db.db", rows=600)
    stop = threading.Event()

    def others() -> None:
        number = 10_000
        while not stop.wait(0.05):
            number += 1
            source.run(f"INSERT INTO t VALUES ({number}, 'new', {number})",
                       f"UPDATE t SET name = 'changed', at = {number} WHERE id = {number % 600}")  # fmt: skip

    with running(root, fault_plan=SLOW_WRITES, DB=f"sqlite:///{source.path}") as platform:
        # A change log keeps every state; it is compared once nobody writes any more.
        disposition = "append" if form == "parquet" else "merge"
        job = spec("kill", "DB", WATERMARK, form=form, partition={"rows": 100, "parallel": 2},
                   source={"consistency": consistency}, write={"disposition": disposition})  # fmt: skip
        table = folder(platform, job)
        writer = threading.Thread(target=others)
        if form == "delta":
            writer.start()
        try:
            for load in range(2):
                run = platform.start(job)
                for phase in PHASES:
                    if (phase == "extract_slice") != (consistency == "slice") and phase.startswith("extract"):
                        continue
                    until(_reached(platform, run, phase), f"{phase} of {run}")
                    time.sleep(0.05 + 0.1 * load)
                    platform.kill_host()
                    assert orphans(table) == [] or form == "delta"
                    platform.start_host()
                platform.wait(run, "completed")
                if form == "parquet":
                    assert lake_rows(table) == source.rows()
                    source.many(
                        "INSERT INTO t VALUES (?, ?, ?)",
                        [(n, "late", 5000 + n) for n in range(700 + 500 * load, 900 + 500 * load)],
                    )
        finally:
            stop.set()
            if form == "delta":
                writer.join()
        platform.emulators.set_faults([])
        last = platform.run(job)
        assert lake_rows(table) == source.rows()
        assert orphans(table) == []
        assert item(platform, last["id"])["load"] == "increment"


def _ended(platform: Platform, run: str) -> bool:
    return bool(platform.status(run)["status"] in ("completed", "completed_with_failures", "failed", "cancelled"))


def test_a_kill_repeats_no_more_than_the_slices_in_hand(root: Path, tmp_path: Path) -> None:
    source = Source(tmp_path / "db.db", rows=1000)
    with running(root, fault_plan=SLOW_WRITES, DB=f"sqlite:///{source.path}") as platform:
        job = spec("repeat", "DB", form="parquet", partition={"rows": 50, "parallel": 1},
                   source={"consistency": "slice"})  # fmt: skip
        run = platform.start(job)
        kills = 3
        for wanted in (2, 6, 11):
            slices = platform.store / f"runs/{run}/slices/p00001-t0"
            until(
                lambda wanted=wanted, slices=slices: slices.exists() and len(list(slices.iterdir())) >= wanted, "slices"
            )
            platform.kill_host()
            platform.start_host()
        platform.wait(run, "completed")
        assert lake_rows(folder(platform, job)) == source.rows()
        begun = [
            one for one in platform.effects("repeat") if one["operation"] == "create" and "part-t0-s" in one["path"]
        ]
        written = item(platform, run)["passes"][0]["slices"]
        assert len({one["path"].split("part-t0-")[1][:6] for one in begun}) == written
        assert len(begun) <= written + kills


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_the_password_of_a_connection_stands_nowhere(root: Path, postgres: PostgresDatabase) -> None:
    secret = "p4ssw0rd-never-shown"
    value = f"postgresql://someone:{secret}@127.0.0.1:{postgres.port}/{postgres.name}"
    with running(root, DB=value) as platform:
        run = platform.start(spec("secret", "DB"))
        status = platform.wait(run, "failed")
        assert status["error"]["code"] == "login_refused"
        seen = json.dumps(status) + json.dumps(platform.manifest(run)) + platform.host.log()
        assert platform.post("/migrations", spec("secret2", "DB", form="parquet", tables=[])).status == 400
        for place in (platform.state, platform.store):
            for file in place.rglob("*"):
                if file.is_file():
                    seen += file.read_bytes().decode("latin-1")
        assert secret not in seen
