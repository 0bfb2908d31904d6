"""Two runs at once, kill -9 in every phase, pause, resume and cancel."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import time
from collections import Counter
from pathlib import Path
from typing import Any

from azure.storage.blob import ContentSettings

from tests.support.mltables import App, Workspaces, rows
from tests.support.platform import until

STEPS = {"prepare_mltables", "discover_assets", "plan_asset_version", "copy_asset_files", "check_asset_files",
         "register_asset_version", "validate_asset_version", "write_asset_reports"}  # fmt: skip


def test_two_runs_of_the_same_assets(app: App, ws: Workspaces, job: str) -> None:
    for number in range(4):
        ws.add(f"race{number}", files={f"{n}.csv": rows(3) for n in range(10)})
    names = [f"race{number}" for number in range(4)]
    runs = [app.start(app.spec(f"{job}-{one}", names, parallel_assets=4)) for one in "ab"]
    assert [app.wait(run)["status"] for run in runs] == ["completed", "completed"]
    for name in names:
        assert ws.versions(name) == ["1"]
        assert len(ws.migrated(name)) == 11
        finals = {item["final_version"] for run in runs for item in app.manifest(run)["items"]}
        assert finals == {"1"}


def test_two_hosts_with_other_data_under_one_name(app: App, ws: Workspaces, job: str, tmp_path: Path) -> None:
    """Two operators, who know nothing of each other, and two folders that both want to be ``same:1``.

    The source keeps no hash of its file, so that nobody takes the other's folder for the same data.
    """
    ws.add("same", files={"a.csv": rows(3)})
    with ws.container("source") as client:
        client.get_blob_client("data/same/1/a.csv").set_http_headers(ContentSettings(content_type="text/csv"))
    other = App(ws, tmp_path)
    try:
        # Slow enough that both have looked before either has registered.
        ws.emulators.set_faults([
            {"service": "azureml", "path": "ws-target/data/same/*", "operation": "create", "fault": "latency",
             "latency_ms": 700}
        ])  # fmt: skip
        first = app.start(app.spec(job, ["same"], destination_prefix="one"))
        second = other.start(other.spec(job, ["same"], destination_prefix="two"))
        assert app.wait(first)["status"] == other.wait(second)["status"] == "completed"
        items = [app.manifest(first)["items"][0], other.manifest(second)["items"][0]]
    finally:
        other.close()
    assert {item["final_version"] for item in items} == {"1", "1_m1"}
    assert ws.versions("same") == ["1", "1_m1"]
    for item in items:
        found = ws.get("same", item["final_version"])
        assert found is not None
        assert str(found.path) == item["target_uri"]
        assert found.tags["final_version"] == item["final_version"]


def queued(app: App) -> list[tuple[str, dict[str, Any]]]:
    with sqlite3.connect(f"file:{app.root / 'state' / 'host.db'}?mode=ro", uri=True) as database:
        found = database.execute("SELECT name, input FROM activities").fetchall()
    database.close()
    return [(name, json.loads(given)) for name, given in found]


def has_ended(app: App, run: str) -> bool:
    with sqlite3.connect(f"file:{app.root / 'state' / 'host.db'}?mode=ro", uri=True) as database:
        (status,) = database.execute("SELECT status FROM instances WHERE instance_id = ?", (run,)).fetchone()
    database.close()
    return status not in ("Pending", "Running")


def test_kill_in_every_phase(ws: Workspaces, tmp_path: Path) -> None:
    """The host runs in slices and is killed a little after a step that it was not yet killed in was queued."""
    ws.emulators.set_faults([
        {"service": "azureml_blob", "fault": "latency", "latency_ms": 15},
        {"service": "azureml", "fault": "latency", "latency_ms": 30},
    ])  # fmt: skip
    ws.add("killed", files={f"{n:02d}.csv": rows(5, n) for n in range(16)})
    (tmp_path / "scratch").mkdir()
    app = App(ws, tmp_path, TMPDIR=str(tmp_path / "scratch"))
    try:
        wishes = [{"name": "killed", "versions": ["*"]}]
        run = app.start(app.spec("kills", wishes, validation={"count_rows": 10}, server_side_copy="never"))
        hit: Counter[str] = Counter()
        while not has_ended(app, run):
            os.kill(app.host.pid, signal.SIGSTOP)
            fresh = {name for name, _ in queued(app)} - set(hit)
            os.kill(app.host.pid, signal.SIGCONT)
            if not fresh:
                time.sleep(0.002)
                continue
            time.sleep(0.12)
            hit.update(fresh)
            app.restart()
        assert set(hit) == STEPS
        assert app.wait(run)["status"] == "completed"
        manifest = app.manifest(run)
    finally:
        app.close()
    assert [(item["status"], item["final_version"], item["dest_file_count"]) for item in manifest["items"]] == [
        ("success", "1", 16)
    ]  # fmt: skip
    assert ws.versions("killed") == ["1"]
    assert list((tmp_path / "scratch").glob("mltable-*")) == []
    there = ws.migrated("killed")
    assert {path: there[path] for path in there if path != "MLTable"} == {f"{n:02d}.csv": rows(5, n) for n in range(16)}


def test_a_copy_that_was_killed_goes_on_from_its_journal(app: App, ws: Workspaces, job: str, tmp_path: Path) -> None:
    ws.add("resumed", files={f"{n:03d}.csv": rows(3, n) for n in range(60)})
    slow = {"service": "azureml_blob", "path": "amltargetstore/*", "operation": "append_flush", "fault": "latency",
            "latency_ms": 60}  # fmt: skip
    ws.emulators.set_faults([slow])
    mine = App(ws, tmp_path)
    try:
        run = mine.start(mine.spec(job, ["resumed"], server_side_copy="never", parallel_copies=2))
        until(lambda: len(ws.migrated("resumed")) > 10, "some files")
        mine.host.kill()
        there = set(ws.migrated("resumed"))
        ws.emulators.set_faults([])
        ws.emulators.reset_stats()
        mine.restart()
        assert mine.wait(run)["status"] == "completed"
    finally:
        mine.close()
    writes = ws.emulators.stats()["azureml_blob"]["append_flush"]
    # What was there was met with a refused write at most, and never written again.
    written = sum(count for status, count in writes.items() if int(status) < 300)
    # Two were in flight at the kill, and may have arrived since.
    assert 61 - len(there) - 2 <= written <= 61 - len(there)
    assert len(ws.migrated("resumed")) == 61


def test_pause_resume_cancel(app: App, ws: Workspaces, job: str) -> None:
    for number in range(6):
        ws.add(f"slow{number}", files={f"{n}.csv": rows(2) for n in range(6)})
    ws.emulators.set_faults([
        {"service": "azureml_blob", "path": "amltargetstore/*", "fault": "latency", "latency_ms": 60}
    ])  # fmt: skip
    names = [f"slow{number}" for number in range(6)]
    run = app.start(app.spec(job, names, parallel_assets=1))
    until(lambda: app.status(run)["progress"]["uploaded"] >= 1, "the first asset")
    assert app.call("POST", f"/migrations/{run}/pause").status == 202
    app.wait(run, "paused")
    assert app.call("POST", f"/migrations/{run}/resume").status == 202
    before = app.status(run)["progress"]["uploaded"]
    until(lambda: app.status(run)["progress"]["uploaded"] > before, "the next asset")
    assert app.call("POST", f"/migrations/{run}/cancel").status == 202
    assert app.wait(run)["status"] == "cancelled"
    manifest = app.manifest(run)
    statuses = Counter(item["status"] for item in manifest["items"])
    assert statuses["success"] >= 2
    assert statuses["planned"] >= 1
    assert manifest["signoff"]["may_delete_source"] == "no"
    ws.emulators.set_faults([])
    again = app.run(job, names)
    assert again["counts"]["items"] == 6
    assert app.call("DELETE", f"/migrations/{run}").status == 200
    assert not (app.store / "runs" / run).exists() or not any(Path(app.store / "runs" / run).rglob("*.json"))


def test_a_registration_is_never_of_half_a_folder(app: App, ws: Workspaces, job: str) -> None:
    """What is registered is whole at every moment: the emulator is asked while the copy runs."""
    ws.add("atomic", files={f"{n}.csv": rows(2) for n in range(20)})
    ws.emulators.set_faults([
        {"service": "azureml_blob", "path": "amltargetstore/*", "fault": "latency", "latency_ms": 25}
    ])  # fmt: skip
    run = app.start(app.spec(job, ["atomic"], parallel_copies=2))
    while app.status(run)["status"] not in ("completed", "failed", "completed_with_failures"):
        if ws.get("atomic", "1") is not None:
            assert len(ws.migrated("atomic")) == 21
    assert app.status(run)["status"] == "completed"
