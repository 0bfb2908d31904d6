"""Which earlier run says how fast this one may be."""

from __future__ import annotations

import json
from typing import Any

from shared.clients.run_store import ObjectRunStore
from shared.engine import past_runs
from shared.engine.past_runs import measured_rate
from shared.policy.durations import Load, Measured
from tests.support.runs import job_spec, memory_store

LIBRARY = {"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/finance", "library": "Invoices"}


async def remember(store: ObjectRunStore, number: int, job: str = "job", **changes: Any) -> str:
    """A run that has ended: claim, index entry and summary."""
    run = f"files-{job}-20261121T02{number:02d}00Z"
    claims = len(await store.list(f"jobs/{job}/runs"))
    await store.put(f"jobs/{job}/runs/{claims + 1:08d}.json", json.dumps({"run": run, "claimed_at": "x"}).encode())
    await store.put(f"index/20261121T02{number:02d}00Z_{run}.json", b"{}")
    summary = {
        "status": "completed", "round": 1, "spec": job_spec(), "counts": {"items": 500, "uploaded": 500},
        "bytes": {"items": 9000, "uploaded": 9000}, "started_at": "2026-11-21T02:00:00Z",
        "ended_at": "2026-11-21T02:01:40Z", **changes,
    }  # fmt: skip
    await store.put(f"runs/{run}/summary.json", json.dumps(summary).encode())
    return run


async def found(
    store: ObjectRunStore, types: set[str] | None = None, without: str = "files-job-now"
) -> Measured | None:
    return await measured_rate(store, "job", types or {"folder"}, without=without)


async def test_the_jobs_last_run_counts() -> None:
    store = memory_store()
    await remember(store, 1)
    last = await remember(store, 2, counts={"uploaded": 200})
    await remember(store, 3, "other")
    assert await found(store) == Measured(last, True, Load(200, 9000), 100.0)


async def test_none_counts_where_there_is_none() -> None:
    assert await found(memory_store()) is None


async def test_runs_that_say_nothing_about_a_rate_do_not_count() -> None:
    store = memory_store()
    first = await remember(store, 1)
    await remember(store, 2, status="cancelled")
    await remember(store, 3, status="failed")
    await remember(store, 4, counts={"items": 9, "skipped": 9})  # dry runs, too, have uploaded nothing
    await remember(store, 5, round=2)
    await remember(store, 6, spec=job_spec(source=None, sources=[{**LIBRARY, "target_path": "x"}]))
    asking = await remember(store, 7)
    await store.put("jobs/job/runs/00000008.json", json.dumps({"run": "purged", "claimed_at": "x"}).encode())
    measured = await found(store, without=asking)
    assert measured is not None
    assert measured.run == first


async def test_a_small_run_counts_only_where_no_larger_one_is() -> None:
    store = memory_store()
    small = await remember(store, 1, counts={"uploaded": 3})
    measured = await found(store)
    assert measured is not None
    assert (measured.run, measured.is_rough) == (small, True)
    await remember(store, 2, "other")
    measured = await found(store)
    assert measured is not None
    assert (measured.own, measured.is_rough) == (False, False)


async def test_another_jobs_run_counts_if_its_sources_are_of_the_same_kinds() -> None:
    store = memory_store()
    library = await remember(store, 1, "other", spec=job_spec(source=LIBRARY))
    folder = await remember(store, 2, "third")
    mixed = await remember(store, 3, "mixed", spec=job_spec(source=None, sources=[
        {**LIBRARY, "target_path": "a"}, {"type": "folder", "path": "/x", "target_path": "b"},
    ]))  # fmt: skip
    for types, run in (({"sharepoint"}, library), ({"folder"}, folder), ({"folder", "sharepoint"}, mixed)):
        measured = await found(store, types)
        assert measured is not None
        assert (measured.run, measured.own) == (run, False)
    assert await found(store, {"blob"}) is None


async def test_it_does_not_read_without_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(past_runs, "_LOOK_UPS", 3)
    store = memory_store()
    await remember(store, 1)
    for number in range(2, 6):
        await remember(store, number, counts={})
        await remember(store, number + 10, "other", counts={})
    assert await found(store) is None


async def test_a_run_of_less_than_a_second_divides_by_nothing() -> None:
    store = memory_store()
    await remember(store, 1, ended_at="2026-11-21T02:00:00Z")
    measured = await found(store)
    assert measured is not None
    assert measured.elapsed_s == 1.0
