"""Runs of tables under an operator's hands: pause, resume, cancel, retry, purge, reset, schedules, what is shown.

Every answer of the API is held against the description that it serves.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sql.test_e2e_faults import WATERMARK, left_over
from tests.sql.test_e2e_sql import SLOW_WRITES, Source, folder, item, lake_rows, orphans, queued, spec
from tests.support.described import Description
from tests.support.platform import FINISHED, REPOSITORY, Answer, Platform, files_below, make_files, until

ALIVE = ("planning", "transferring", "verifying", "paused")
ACTIONS = ("pause", "resume", "cancel", "retry-failed")


class Described(Platform):
    """A platform whose every answer has to be as the API describes it."""

    description: Description | None = None

    def call(self, method: str, path: str, document: Any = None, *, raw: bytes | None = None,
             headers: Mapping[str, str] | None = None) -> Answer:  # fmt: skip
        answer = super().call(method, path, document, raw=raw, headers=headers)
        if path != "/openapi.json":
            if self.description is None:
                self.description = Description(self)
            self.description.check(method, path, answer)
        return answer


@pytest.fixture(scope="module")
def module_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("operations")


@pytest.fixture(scope="module")
def platform(module_root: Path) -> Iterator[Described]:
    settings = {f"DB_{n}": f"sqlite:///{module_root}/db{n}.db" for n in range(6)}
    one = Described(module_root / "platform", SCHEDULE_TICK="* * * * * *", **settings)
    try:
        yield one
    finally:
        one.close()


def runs_of(platform: Platform, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = platform.get(f"/migrations?name={name}&top=500").json["value"]
    return found


def act(platform: Platform, run: str, action: str, status: int) -> None:
    answer = platform.post(f"/migrations/{run}/{action}")
    assert answer.status == status, (action, answer.body)
    if status == 409:
        assert answer.error["code"] == "wrong_state"


def test_pause_holds_over_a_kill_and_what_comes_after_is_whole(platform: Described, module_root: Path) -> None:
    source = Source(module_root / "db0.db", rows=600)
    job = spec("held", "DB_0", {"table": "t", **WATERMARK}, partition={"rows": 60, "parallel": 1},
               source={"consistency": "slice"})  # fmt: skip
    table = folder(platform, job)
    platform.emulators.set_faults(SLOW_WRITES)
    run = platform.start(job)
    act(platform, run, "resume", 409)
    until(lambda: platform.status(run)["progress"]["rows_done"] > 0, "the first slice")
    act(platform, run, "pause", 202)
    for action in ("pause", "retry-failed"):
        act(platform, run, action, 409)
    assert platform.call("DELETE", f"/migrations/{run}").status == 409
    assert platform.get(f"/migrations/{run}/manifest").status == 409
    assert platform.post("/migrations", job).error["code"] == "job_busy"
    until(lambda: not queued(platform), "what was under way to end")
    held = platform.status(run)["progress"]["rows_done"]
    assert 0 < held < 600
    platform.kill_host()
    platform.start_host()
    mark = platform.mark()
    source.many("INSERT INTO t VALUES (?, ?, ?)", [(1000 + n, "late", 1000 + n) for n in range(20)])
    time.sleep(0.7)
    shown = platform.status(run)
    assert (shown["status"], shown["progress"]["rows_done"]) == ("paused", held)
    assert [one for one in platform.emulators.journal()[mark:] if "/held/" in one["path"]] == []
    assert lake_rows(table) == []
    act(platform, run, "resume", 202)
    platform.emulators.set_faults([])
    platform.wait(run, "completed")
    # The increment that follows a load by slices brings what came in the pause.
    assert lake_rows(table) == source.rows()
    for action in ACTIONS:
        act(platform, run, action, 409)

    # A run that is cancelled in its pause has moved nothing, and the next one takes all of it up.
    source.run("UPDATE t SET name = 'changed', at = 5000 WHERE id < 300")
    platform.emulators.set_faults(SLOW_WRITES)
    run = platform.start(job)
    until(lambda: queued(platform), "a step")
    act(platform, run, "pause", 202)
    act(platform, run, "cancel", 202)
    platform.emulators.set_faults([])
    platform.wait(run, "cancelled", "paused")
    platform.wait(run, "cancelled")
    assert item(platform, run)["status"] in ("planned", "success")
    last = platform.run(job)
    assert lake_rows(table) == source.rows()
    assert orphans(table) == left_over(table, last["id"]) == []

    # A purge takes the run, and not what the job knows.
    assert platform.call("DELETE", f"/migrations/{last['id']}").status == 200
    for path in ("", "/manifest", "/items"):
        assert platform.get(f"/migrations/{last['id']}{path}").status == 404
    assert not files_below(platform.store / "runs" / last["id"])
    source.run("INSERT INTO t VALUES (7000, 'after', 7000)")
    following = platform.run(job)
    assert item(platform, following["id"])["load"] == "increment"
    assert lake_rows(table) == source.rows()


def test_one_table_is_reset_or_tried_again_and_the_other_goes_on(platform: Described, module_root: Path) -> None:
    source = Source(module_root / "db1.db", rows=50)
    source.run("CREATE TABLE u (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)", "INSERT INTO u SELECT * FROM t")
    job = spec("parts", "DB_1", {"table": "t", **WATERMARK}, {"table": "u", **WATERMARK})
    platform.run(job)
    # Nothing tells of it but a reading from the beginning.
    for name in "tu":
        source.run(f"DELETE FROM {name} WHERE id < 10", f"INSERT INTO {name} VALUES (100, 'new', 100)")
    run = platform.run({**job, "reset": ["u"]})["id"]
    assert (item(platform, run, "t")["load"], item(platform, run, "t")["reload_reason"]) == ("increment", None)
    assert (item(platform, run, "u")["load"], item(platform, run, "u")["reload_reason"]) == (
        "full", "reset, as the job asks",
    )  # fmt: skip
    assert lake_rows(folder(platform, job, "u")) == source.rows("u")
    assert len(lake_rows(folder(platform, job, "t"))) == len(source.rows("t")) + 10

    source.run("INSERT INTO u VALUES (101, 'new', 'no number')", "INSERT INTO t VALUES (101, 'new', 101)")
    first = platform.run(job, "completed_with_failures")["id"]
    failed = platform.get(f"/migrations/{first}/items?status=failed").json["value"]
    assert [(one["table"], one["error_code"]) for one in failed] == [("u", "value_unfit")]
    second = platform.run(job, "completed_with_failures")["id"]
    answer = platform.post(f"/migrations/{first}/retry-failed")
    assert (answer.status, answer.error["code"]) == (409, "superseded")
    source.run("UPDATE u SET at = 101 WHERE id = 101")
    act(platform, second, "retry-failed", 202)
    ended = platform.wait(second, "completed")
    assert (ended["round"], ended["progress"]["uploaded"], ended["progress"]["failed"]) == (2, 2, 0)
    assert lake_rows(folder(platform, job, "u")) == source.rows("u")
    for form in ("csv", "md", "html", "summary"):
        assert platform.get(f"/migrations/{second}/manifest?format={form}").status == 200
    # As a clock leaves it that was put back since: nobody starts a run at a time that has not come.
    claim = max((platform.store / "jobs" / "parts" / "runs").iterdir())
    ahead = (datetime.now(UTC) + timedelta(hours=5)).isoformat()
    claim.write_text(json.dumps({**json.loads(claim.read_text()), "claimed_at": ahead}))
    platform.run(job)


def test_the_timer_starts_increments_one_at_a_time(platform: Described, module_root: Path) -> None:
    source = Source(module_root / "db2.db", rows=50)
    job = spec("timed", "DB_2", {"table": "t", **WATERMARK}, form="parquet")
    table = folder(platform, job)
    platform.emulators.set_faults([{"fault": "latency", "path": "*/timed/*", "latency_ms": 100}])
    for status in (201, 200):
        assert platform.call("PUT", "/schedules/timed", {**job, "schedule": "* * * * * *"}).status == status
    written, alive = 0, 0
    passed_over = False
    while len(runs := runs_of(platform, "timed")) < 3:
        written += 1
        source.run(f"INSERT INTO t VALUES ({1000 + written}, 'new', {1000 + written})")
        alive = max(alive, sum(run["status"] in ALIVE for run in runs))
        (shown,) = platform.get("/schedules").json["value"]
        passed_over = passed_over or "still alive" in (shown["last_result"] or "")
        # Whatever a reader meets meanwhile is rows of the source, each once.
        ids = [row["id"] for row in lake_rows(table)]
        assert len(set(ids)) == len(ids)
        time.sleep(0.1)
    assert (alive, passed_over) == (1, True)
    assert platform.call("DELETE", "/schedules/timed").status == 204
    platform.emulators.set_faults([])
    until(lambda: all(run["status"] == "completed" for run in runs_of(platform, "timed")), "the last run")
    spans = sorted((run["started_at"], run["ended_at"]) for run in runs_of(platform, "timed"))
    assert all(ended <= started for (_, ended), (started, _) in pairwise(spans))
    platform.run(job)
    assert lake_rows(table) == source.rows()
    assert {item(platform, run["id"])["load"] for run in runs_of(platform, "timed")[:-1]} == {"increment"}


def test_progress_is_shown_and_all_answers_are_as_described(platform: Described, module_root: Path) -> None:
    """A table read in one go shows its rows while it is read."""
    source = Source(module_root / "db3.db", rows=0)
    source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, "x" * 20_000, n) for n in range(800)])
    source.run("ANALYZE")
    job = spec("shown", "DB_3", source={"rows_per_s": 130}, limits={"memory": "32MiB"})
    run = platform.start(job)
    seen: list[dict[str, Any]] = []
    while (document := platform.status(run))["status"] not in FINISHED:
        seen.append(document["progress"])
        time.sleep(0.1)
    assert document["status"] == "completed"
    under_way = [one for one in seen if 0 < one["rows_done"] < 800]
    assert under_way, "rows while they are read"
    assert all(one["bytes_per_s"] > 0 and one["bytes_done"] > 0 for one in under_way)
    assert all(one["eta_s"] is not None and 0 <= one["eta_s"] < 600 for one in under_way)
    assert [one["rows_done"] for one in seen] == sorted(one["rows_done"] for one in seen)
    last = document["progress"]
    assert (last["rows_planned"], last["rows_done"], last["uploaded"], last["eta_s"]) == (800, 800, 1, 0)
    planned = platform.run({**job, "dry_run": True})
    assert item(platform, planned["id"])["status"] == "planned"
    platform.wait(platform.start(spec("not-there", "DB_5")), "failed")

    # A migration of files, whose level moves, for what tables do not show.
    make_files(platform.source("levels"), 60)
    platform.emulators.set_faults([{"fault": "throttle", "retry_after_s": 1, "operation": "create", "after": 20,
                                    "times": 2, "path": "*/levels/*"}])  # fmt: skip
    files = platform.run(platform.spec("levels"))
    platform.emulators.set_faults([])
    assert files["concurrency"]["changes"]
    platform.manifest(files["id"])
    assert platform.get(f"/migrations/{files['id']}/items").json["value"]

    assert platform.post("/migrations", spec("wrong", "NO_SUCH_SETTING")).status == 400
    assert platform.post("/migrations/sql-nobody-20200101T000000Z/pause").status == 404
    assert platform.call("PUT", "/schedules/bad", {**spec("bad", "DB_3"), "schedule": "soon"}).status == 400
    assert platform.post("/schedules/none/run").status == 404
    assert platform.get("/health").status == 200
    assert platform.description is not None
    for example in (REPOSITORY / "docs" / "examples").glob("*.yaml"):
        platform.description.validate("#/components/schemas/Job", yaml.safe_load(example.read_text(encoding="utf-8")))
