"""A very large file whose worker is killed (kill -9) in the middle: the next one goes on where the lake has it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from obstore.store import LocalStore

from shared.clients.onelake.service import SMALL_BLOCK_BYTES
from shared.clients.run_store import ObjectRunStore
from shared.engine import transfer_batch as transferring
from shared.engine.transfer_batch import transfer_batch
from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID, Lake
from tests.support.runs import make_run, plant

PARTS = 12
_WORKER = """
import asyncio, json, sys, time
from pathlib import Path
from obstore.store import LocalStore
from shared.clients.run_store import ObjectRunStore
from shared.engine import transfer_batch as transferring
from shared.model.job import parse_files_job
from shared.services import Services
from shared.settings import read_settings
from tests.support.runs import make_run

given = json.load(sys.stdin)
transferring._PART_BYTES = given["part_bytes"]

async def main():
    services = Services(read_settings(given["environment"]))
    job = parse_files_job({"kind": "files", "name": "job", "source": {"type": "folder", "path": given["source"]},
        "target": {"workspace": given["workspace"], "lakehouse": given["lakehouse"], "path": given["root"]}})
    lake = services.lake_folder(job, given["workspace"], given["lakehouse"])
    run = make_run(Path(given["source"]), lake=lake, store=ObjectRunStore(LocalStore(prefix=given["store"])))
    await transferring.transfer_batch(run, "p00001", 0, 1, final=False)

asyncio.run(main())
"""


async def test_a_worker_that_is_killed_in_the_middle_of_a_large_file(
    lake: Lake, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(transferring, "_PART_BYTES", SMALL_BLOCK_BYTES)
    source, store = tmp_path / "source", tmp_path / "store"
    store.mkdir()
    files = {"large": os.urandom(PARTS * SMALL_BLOCK_BYTES + 5)}
    plant(source, files)
    run = make_run(source, lake=lake.folder, store=ObjectRunStore(LocalStore(prefix=store)))
    await run.records.put_batch("p00001", 0, [
        {"path": "large", "size_bytes": len(files["large"]), "source_version": "v", "action": "create", "etag": "",
         "own": False}
    ])  # fmt: skip
    # Slow enough to be met on the way.
    lake.faults({"operation": "flush", "fault": "latency", "latency_ms": 30})
    given = {
        "environment": {**lake.emulators.environment(), "RUN_STORE_URL": f"file:{store}",
                        "FOLDER_SOURCE_ROOTS": str(source)},
        "source": str(source), "store": str(store), "workspace": WORKSPACE_ID, "lakehouse": LAKEHOUSE_ID,
        "root": f"Files/{lake.name}", "part_bytes": SMALL_BLOCK_BYTES,
    }  # fmt: skip
    for kill in (1, 2):
        _work_and_be_killed(given, lake, after_flushes=4 * kill)
    lake.faults()
    outcome = await transfer_batch(run, "p00001", 0, 1, final=False)
    assert outcome["counts"]["uploaded"] == 1
    assert lake.on_disk() == files, "whole, and nothing staged is left"
    sent = sum(one["bytes"] for one in lake.effects("append"))
    # What was on the wire at each kill is sent again: four blocks at the most.
    assert len(files["large"]) <= sent <= len(files["large"]) + 2 * 4 * SMALL_BLOCK_BYTES


def _work_and_be_killed(given: dict[str, Any], lake: Lake, after_flushes: int) -> None:
    worker = subprocess.Popen(
        [sys.executable, "-c", _WORKER], stdin=subprocess.PIPE, cwd=Path(__file__).parents[2], text=True
    )
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(given))
    worker.stdin.close()
    try:
        while len(lake.effects("flush")) < after_flushes:
            assert worker.poll() is None, "it was done before it could be killed"
            time.sleep(0.005)
    finally:
        worker.kill()
        worker.wait()
