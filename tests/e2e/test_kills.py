"""kill -9 of the host, again and again: nothing is lost, nothing is done twice that need not be, nothing is hidden."""

import json
import os
import random
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.platform import Platform, compare, files_below, make_files, running

# Reading back takes longer than the host is ever left alone, so that the run cannot end before the last kill.
_SLOW = [{"fault": "latency", "operation": operation, "latency_ms": 200 if operation == "read" else 40}
         for operation in ("create", "append", "flush", "append_flush", "read", "rename", "list")]  # fmt: skip
_STEPS = {"prepare_run", "survey_target", "plan_page", "transfer_batch", "verify_page", "commit_ledger",
          "write_manifest"}  # fmt: skip


def queued(platform: Platform) -> list[tuple[str, dict[str, Any]]]:
    """The activities that the host has scheduled and not settled, as its file shows them."""
    with sqlite3.connect(f"file:{platform.state / 'host.db'}?mode=ro", uri=True) as database:
        rows = database.execute("SELECT name, input FROM activities").fetchall()
    database.close()
    return [(name, json.loads(given)) for name, given in rows]


def in_flight_items(platform: Platform) -> Iterator[str]:
    """Paths of the items whose batches are in flight."""
    for name, request in queued(platform):
        if name == "transfer_batch":
            plan = platform.store / f"runs/{request['run']}/plan/{request['page']}/b{request['batch']:04d}.jsonl"
            for line in plan.read_text().splitlines():
                yield json.loads(line)["path"]


def assert_right(platform: Platform, run: str, name: str, in_flight: Counter[str]) -> None:
    """Every file there, right, once; the manifest says so; no commit that a kill does not explain."""
    assert not compare(platform.source(name), platform.lake(name))
    manifest = platform.assert_agreement(run, name)
    assert {item["path"] for item in manifest["items"]} == set(files_below(platform.source(name)))
    assert {item["status"] for item in manifest["items"]} == {"uploaded"}
    assert manifest["status"] == "completed"
    assert manifest["verification"]["verdict"] == "passed"
    assert manifest["verification"]["hashes_checked"] == len(manifest["items"])
    commits = platform.commits(name)
    too_often = {path: (count, in_flight[path]) for path, count in commits.items() if count > 1 + in_flight[path]}
    assert not too_often, "committed more often than its batch was in flight at a kill"
    assert set(commits) == {item["path"] for item in manifest["items"]}


@pytest.mark.parametrize("seed", [20261121])
def test_twenty_kills_at_random_moments(root: Path, seed: int) -> None:
    drawn = random.Random(seed)
    with running(root, fault_plan=_SLOW, VERIFY_SAMPLE_ITEMS="1000") as platform:
        make_files(platform.source("kills"), 100, seed=seed)
        make_files(platform.source("kills") / "large", 2, seed=seed, low=9_000_000, high=18_000_000, folders=1)
        spec = platform.spec("kills", verify="all", limits={"batch_items": 8, "parallel_batches": 4, "concurrency": 6})
        run = platform.start(spec)
        in_flight: Counter[str] = Counter()
        hit: Counter[str] = Counter()
        for _ in range(20):
            time.sleep(drawn.uniform(0.05, 1.1))
            platform.kill_host()
            hit.update({name for name, _ in queued(platform)})
            in_flight.update(set(in_flight_items(platform)))
            platform.start_host()
            assert not has_ended(platform, run), "the run ended before the last kill"
        assert platform.wait(run, "completed")
        assert hit["transfer_batch"] >= 3, f"the kills missed the transfer: {hit}"
        assert_right(platform, run, "kills", in_flight)
        mark = platform.mark()
        again = platform.run(spec)
        assert again["progress"]["skipped"] == 102
        assert platform.bytes_uploaded("kills", mark) == 0


def has_ended(platform: Platform, run: str) -> bool:
    with sqlite3.connect(f"file:{platform.state / 'host.db'}?mode=ro", uri=True) as database:
        (status,) = database.execute("SELECT status FROM instances WHERE instance_id = ?", (run,)).fetchone()
    database.close()
    return status not in ("Pending", "Running")


def test_kills_in_every_step(root: Path) -> None:
    """The short steps are seldom met by chance, so the host runs in slices and is killed when one is in the queue.

    Each step is met twice: as soon as it is queued, and a little into it.
    """
    drawn = random.Random(7)
    hit: Counter[str] = Counter()
    with running(root, fault_plan=_SLOW) as platform:
        # Where the machine leaves this program waiting for longer than a step takes, another migration has it again.
        for name in ("steps", "more", "last"):
            kill_in_every_step(platform, name, drawn, hit)
            if set(hit) == _STEPS:
                return
        pytest.fail(f"only these were met: {hit}")


def kill_in_every_step(platform: Platform, name: str, drawn: random.Random, hit: Counter[str]) -> None:
    make_files(platform.source(name), 60, seed=7)
    spec = platform.spec(name, verify="all", limits={"batch_items": 10, "parallel_batches": 2, "concurrency": 4})
    run = platform.start(spec)
    in_flight: Counter[str] = Counter()
    while not has_ended(platform, run):
        os.kill(platform.host.pid, signal.SIGSTOP)
        steps = {step for step, _ in queued(platform) if hit[step] < 2}
        if steps and any(hit[step] for step in steps):
            os.kill(platform.host.pid, signal.SIGCONT)
            time.sleep(drawn.uniform(0, 0.03))
        if steps:
            platform.kill_host()
            hit.update({step for step, _ in queued(platform)})
            in_flight.update(set(in_flight_items(platform)))
            platform.start_host()
        else:
            os.kill(platform.host.pid, signal.SIGCONT)
            time.sleep(0.002)
    platform.wait(run, "completed")
    assert_right(platform, run, name, in_flight)
