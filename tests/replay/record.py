"""Records histories of real runs on the embedded host, for ``test_histories.py``.

``python -m tests.replay.record`` those of files migrations, with the argument ``mltables`` those of MLTables, and
with ``sql`` those of tables of a database.
To be run again when an orchestrator is changed on purpose; then the old histories no longer fit, and neither do the
instances that are alive when the change is deployed.
"""

from __future__ import annotations

import json
import sqlite3
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

from local.emulators.launch import launch
from tests.support.mltables import App, Workspaces
from tests.support.platform import Platform, make_files, running

HISTORIES = Path(__file__).parent / "histories"


def _plain(platform: Platform) -> str:
    make_files(platform.source("plain"), 6)
    spec = platform.spec("plain", limits={"batch_items": 2}, verify="all")
    platform.run(spec)
    return str(platform.run(spec)["id"])


def _retried(platform: Platform) -> str:
    make_files(platform.source("retried"), 4)
    platform.emulators.set_faults([
        {"operation": "create", "path": "*/Files/retried/d0/*", "fault": "server_error", "times": 6}
    ])  # fmt: skip
    return str(platform.run(platform.spec("retried", limits={"batch_items": 2}))["id"])


def _stopped(platform: Platform) -> str:
    make_files(platform.source("stopped"), 4)
    platform.emulators.set_faults([
        {"operation": "create", "path": "*/Files/stopped/d*", "fault": "capacity_paused"}
    ])  # fmt: skip
    return str(platform.run(platform.spec("stopped"), "failed")["id"])


def _library(platform: Platform) -> str:
    spec = platform.spec("library", mode="incremental")
    spec["source"] = {"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/finance", "library": "Invoices"}
    return str(platform.run(spec)["id"])


def record() -> None:
    """Replace everything in ``histories``."""
    with tempfile.TemporaryDirectory() as folder, running(Path(folder) / "platform") as platform:
        runs = {
            "plain": _plain(platform),
            "retried": _retried(platform),
            "library": _library(platform),
            "stopped": _stopped(platform),
        }
        state = platform.state
        for old in HISTORIES.glob("*.json"):
            if not old.name.startswith(("mltables", "sql")):
                old.unlink()
        for file in state.iterdir():
            if file.suffix in (".db", ".sqlite", ".sqlite3"):
                with sqlite3.connect(file) as database:
                    for name, run in runs.items():
                        _write(database, name, run, folder)


def _write(database: sqlite3.Connection, name: str, run: str, private: str) -> None:
    rows = database.execute(
        "SELECT i.instance_id, i.name, n.input, i.output, i.status FROM instances i JOIN inputs n USING (instance_id)"
        " WHERE i.instance_id = ? OR i.parent_id = ? ORDER BY i.instance_id",
        (run, run),
    ).fetchall()
    for instance_id, function, given, output, status in rows:
        events: list[Any] = [
            json.loads(text)
            for (text,) in database.execute(
                "SELECT event FROM history WHERE instance_id = ? ORDER BY position", (instance_id,)
            )
        ]
        document = {
            "instance": instance_id, "function": function, "input": given, "output": output, "status": status,
            "events": events,
        }  # fmt: skip
        text = json.dumps(document, indent=1)
        assert private not in text, "a history must not name a path of the machine that recorded it"
        suffix = instance_id.removeprefix(run)
        (HISTORIES / f"{name}{suffix}.json").write_text(text + "\n", encoding="utf-8")


def record_mltables() -> None:
    """Replace the histories of MLTable migrations; needs what the emulated Azure ML needs."""
    with tempfile.TemporaryDirectory() as folder, launch(Path(folder) / "emulators", azureml=True) as emulators:
        workspaces = Workspaces(emulators)
        for name, version in (("one", "1"), ("one", "2"), ("two", "1")):
            workspaces.add(name, version)
        workspaces.register("target", "two", "1", "azureml://datastores/workspaceblobstore/paths/other/")
        app = App(workspaces, Path(folder) / "app")
        try:
            manifest = app.run("recorded", [{"name": "*", "versions": ["*"]}], validation={})
        finally:
            app.close()
        for old in HISTORIES.glob("mltables*.json"):
            old.unlink()
        with sqlite3.connect(app.root / "state" / "host.db") as database:
            _write(database, "mltables", manifest["id"], folder)


def record_sql() -> None:
    """Replace the histories of a migration of tables: one by slices that catches up, one whole, one that fails."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shop.db"
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, at INTEGER)")
            database.executemany("INSERT INTO orders VALUES (?, ?)", [(n, n) for n in range(100)])
            database.execute("CREATE TABLE notes (text TEXT)")
        with running(Path(folder) / "platform", SHOP=f"sqlite:///{path}") as platform:
            target = {"workspace": "Migration", "lakehouse": "Landing", "path": "Tables/shop", "format": "delta"}
            by_slice = {"connection": "SHOP", "consistency": "slice"}
            tables = [{"table": "orders", "mode": "incremental", "change": "watermark", "column": "at"},
                      {"table": "notes"}, {"table": "missing"}]  # fmt: skip
            run = platform.run(
                {"kind": "sql", "name": "recorded", "source": by_slice, "tables": tables, "target": target,
                 "partition": {"rows": 30}}, "completed_with_failures",
            )["id"]  # fmt: skip
            state = platform.state
        for old in HISTORIES.glob("sql*.json"):
            old.unlink()
        with closing(sqlite3.connect(state / "host.db")) as database:
            _write(database, "sql", run, folder)


if __name__ == "__main__":
    if "mltables" in sys.argv[1:]:
        record_mltables()
    elif "sql" in sys.argv[1:]:
        record_sql()
    else:
        record()
