"""Activities are delivered at least once: two deliveries of one side by side, and what an earlier one left behind."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from shared.clients.lake_tables.delta import DeltaLakeTable
from shared.clients.lake_tables.parquet import ParquetLakeTable
from shared.clients.onelake.tree import LakeTree, StreamedFile
from shared.engine.sql import prepare, steps
from shared.engine.sql.quality import quarantine_path
from shared.engine.sql.run import SqlRecords, SqlRun
from shared.model.job import parse_job
from shared.model.sql_job import SqlJob
from shared.model.sql_steps import TableOutcome
from shared.model.steps import Transient
from shared.ports.tables import LakeTable, Leftovers
from tests.support.emulated import Lake
from tests.support.tables import Engine, item

Make = Callable[..., Engine]
WATERMARK = {"table": "t", "mode": "incremental", "change": "watermark", "column": "at"}


@pytest.fixture
def make(lake: Lake, tmp_path: Path) -> Make:
    def engine(*tables: dict[str, Any], **spec: Any) -> Engine:
        made = Engine(lake, tmp_path, list(tables) or [WATERMARK], **spec)
        made.source.run("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)")
        made.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(100)])
        return made

    return engine


async def opened(engine: Engine, name: str) -> SqlRun:
    """A run as an activity opens it, to carry out single steps."""
    job = parse_job(engine.spec)
    assert isinstance(job, SqlJob)
    records = SqlRecords(engine.store, name)
    database = engine.source.database(job)
    facts, numbers, _ = await prepare.prepare(job, records, database, 1, {}, "2026-11-21T02:00:00Z")
    return SqlRun(
        job=job, records=records, database=database, facts=facts, lake=lambda path: engine.open(path, name, job),
        quarantine=lambda path: engine.open(quarantine_path(path), name, job, form="parquet"),
        clock=lambda: datetime.now(UTC), connections_per_table=prepare.table_window(job, len(numbers))[1],
    )  # fmt: skip


@pytest.mark.parametrize("consistency", ["snapshot", "slice"])
async def test_what_a_slower_delivery_saw_is_not_taken_for_delivered(make: Make, consistency: str) -> None:
    engine = make(
        format="parquet", source={"connection": "DB", "name": "src", "consistency": consistency},
        write={"disposition": "append"},
    )  # fmt: skip
    await engine.run()
    engine.source.run("INSERT INTO t VALUES (500, 'first', 500)")
    run = await opened(engine, engine.begin())
    await steps.plan_step(run, "target", 1, 0)

    def extract() -> Coroutine[Any, Any, TableOutcome]:
        return steps.table_step(run, 1, 0) if consistency == "snapshot" else steps.slice_step(run, 1, 0, 0)

    put, put_new = engine.store.put, engine.store.put_new
    first_is_read, second_is_read, first_is_done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    is_first = True

    async def held(key: str, data: bytes) -> None:
        if "/seen/" in key and first_is_read.is_set():
            second_is_read.set()
            await first_is_done.wait()
        await put(key, data)

    async def held_new(key: str, data: bytes) -> bool:
        nonlocal is_first
        if "/slices/" in key and is_first:
            is_first = False
            first_is_read.set()
            await second_is_read.wait()
        return await put_new(key, data)

    engine.store.put, engine.store.put_new = held, held_new  # type: ignore[method-assign]
    first = asyncio.create_task(extract())
    await first_is_read.wait()
    engine.source.run("INSERT INTO t VALUES (501, 'tied', 500)")
    second = asyncio.create_task(extract())
    await first
    first_is_done.set()
    await second
    engine.store.put, engine.store.put_new = put, put_new  # type: ignore[method-assign]
    await steps.commit_step(run, "target", 1, 0)
    await engine.run()
    engine.assert_same()


@pytest.mark.parametrize(("form", "disposition", "consistency"), [
    ("parquet", "append", "snapshot"), ("parquet", "append", "slice"), ("delta", "append", "slice"),
    ("delta", "merge", "snapshot"), ("delta", "history", "slice"),
])  # fmt: skip
async def test_every_step_delivered_twice_at_once(make: Make, form: str, disposition: str, consistency: str) -> None:
    engine = make(
        format=form, source={"connection": "DB", "name": "src", "consistency": consistency},
        write={"disposition": disposition}, partition={"rows": 20, "parallel": 2},
    )  # fmt: skip
    new = 1000
    for number in range(3):
        run = await opened(engine, engine.begin())
        turn, done = 0, (await asyncio.gather(*[steps.plan_step(run, "target", 1, 0) for _ in range(2)]))[0]
        while done["next"] != "settled":
            turn = done["turn"]
            match done["next"]:
                case "plan":
                    bodies = [steps.plan_step(run, "target", 1, turn) for _ in range(2)]
                case "table":
                    bodies = [steps.table_step(run, 1, turn) for _ in range(2)]
                case "slices":
                    bodies = [steps.slice_step(run, 1, turn, one) for one in range(done["slices"]) for _ in range(2)]
                case _:
                    bodies = [steps.commit_step(run, "target", 1, turn) for _ in range(2)]
            found = await asyncio.gather(*bodies, return_exceptions=True)
            assert [one for one in found if isinstance(one, BaseException)] == []
            done = next(one for one in found if not isinstance(one, BaseException))
            new += 1
            engine.source.run(f"INSERT INTO t VALUES ({new}, 'new', {100 + number})")
        record = await run.records.record(1)
        assert record is not None
        assert record["status"] == "success", (record["error_code"], record["error_detail"])
    assert item(await engine.run())["status"] == "success"
    engine.assert_same()
    assert engine.table().left_over() == []


@pytest.mark.parametrize("disposition", ["merge", "history"])
@pytest.mark.parametrize("ahead", ["first", "second"])
async def test_a_commit_that_another_delivery_overtakes(
    make: Make, disposition: str, ahead: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have begun to write. Whichever is through first, the other one neither harms it nor fails."""
    engine = make(write={"disposition": disposition})
    await engine.run()
    engine.source.run("UPDATE t SET name = 'changed', at = 500 WHERE id < 10")
    run = await opened(engine, engine.begin())
    await steps.plan_step(run, "target", 1, 0)
    await steps.table_step(run, 1, 0)
    begun: asyncio.Queue[asyncio.Event] = asyncio.Queue()
    stream = LakeTree.stream

    async def held(tree: LakeTree, path: str) -> StreamedFile:
        file = await stream(tree, path)
        may_go_on = asyncio.Event()
        begun.put_nowait(may_go_on)
        await may_go_on.wait()
        return file

    monkeypatch.setattr(LakeTree, "stream", held)
    deliveries, goes_on = [], []
    for _ in range(2):
        deliveries.append(asyncio.create_task(steps.commit_step(run, "target", 1, 0)))
        goes_on.append(await begun.get())
    monkeypatch.setattr(LakeTree, "stream", stream)
    if ahead == "second":
        deliveries.reverse()
        goes_on.reverse()
    done = []
    for delivery, may_go_on in zip(deliveries, goes_on, strict=True):
        may_go_on.set()
        done.append(await delivery)
    assert done[0] == done[1]
    record = await run.records.record(1)
    assert record is not None and record["status"] == "success", record
    engine.assert_same()
    await engine.run()
    assert engine.table().left_over() == []


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_plan_delivered_late_deletes_nothing_of_what_came_after_it(make: Make, form: str) -> None:
    engine = make(
        format=form, source={"connection": "DB", "name": "src", "consistency": "slice"},
        write={"disposition": "append"},
    )  # fmt: skip
    run = await opened(engine, engine.begin())
    get = engine.store.get
    asked, slices_are_there = asyncio.Event(), asyncio.Event()

    async def held(key: str) -> bytes | None:
        found = await get(key)
        if key.endswith("-t0.json") and not asked.is_set():
            asked.set()
            await slices_are_there.wait()
        return found

    engine.store.get = held  # type: ignore[method-assign]
    late = asyncio.create_task(steps.plan_step(run, "target", 1, 0))
    await asked.wait()
    await steps.plan_step(run, "target", 1, 0)
    await steps.slice_step(run, 1, 0, 0)
    slices_are_there.set()
    await late
    done = await steps.commit_step(run, "target", 1, 0)
    while done["next"] != "settled":
        turn = done["turn"]
        await steps.plan_step(run, "target", 1, turn)
        await (steps.slice_step(run, 1, turn, 0) if done["next"] == "slices" else steps.table_step(run, 1, turn))
        done = await steps.commit_step(run, "target", 1, turn)
    record = await run.records.record(1)
    assert record is not None and record["status"] == "success", record
    engine.assert_same()


@pytest.mark.parametrize("ended", ["cancelled", "given up"])
@pytest.mark.parametrize(("form", "disposition", "at", "waits"), [
    ("delta", "append", "_make", "to ask"), ("delta", "append", "_make", "to delete"),
    ("delta", "merge", "_make", "to ask"), ("delta", "merge", "_make", "to delete"),
    ("parquet", "append", "_gather", "not"), ("parquet", "append", "_write_record", "not"),
])  # fmt: skip
async def test_what_is_being_committed_is_not_cleared_away(
    make: Make, form: str, disposition: str, at: str, waits: str, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One delivery is about to make its commit, another finds the run cancelled, or the attempts used up."""
    engine = make(
        format=form, source={"connection": "DB", "name": "src", "consistency": "snapshot"},
        write={"disposition": disposition},
    )  # fmt: skip
    await engine.run()
    engine.source.run("INSERT INTO t VALUES (500, 'first', 500)")
    run = await opened(engine, engine.begin())
    await steps.plan_step(run, "target", 1, 0)
    await steps.table_step(run, 1, 0)
    kind = DeltaLakeTable if form == "delta" else ParquetLakeTable
    make_it, leftovers, remove = getattr(kind, at), kind.leftovers, kind.remove
    is_near, may_go_on = asyncio.Event(), asyncio.Event()

    async def held(*given: Any) -> Any:
        is_near.set()
        await may_go_on.wait()
        return await make_it(*given)

    async def seen_before(lake: LakeTable, keep: Sequence[str] = ()) -> Leftovers:
        found = await leftovers(lake, keep)  # type: ignore[arg-type]
        if asyncio.current_task() is not first and waits == "to ask":
            may_go_on.set()
            await asyncio.wait([first])
        return found

    async def removed_late(lake: LakeTable, left_over: Leftovers) -> int:
        if asyncio.current_task() is not first and waits == "to delete":
            may_go_on.set()
            await asyncio.wait([first])
        return await remove(lake, left_over)  # type: ignore[arg-type]

    monkeypatch.setattr(kind, at, held)
    monkeypatch.setattr(kind, "leftovers", seen_before)
    monkeypatch.setattr(kind, "remove", removed_late)
    first = asyncio.create_task(steps.commit_step(run, "target", 1, 0))
    await is_near.wait()
    if ended == "cancelled":
        await engine.store.put(run.records.key("cancel"), b"")
        await steps.commit_step(run, "target", 1, 0)
    else:
        error: Transient = {"code": "connection_lost", "detail": "it broke", "retry_after_s": None}
        await steps.fail_table(run, 1, "commit", error)
    may_go_on.set()
    await first
    monkeypatch.undo()
    engine.assert_same()
    assert item(await engine.run())["status"] == "success"
    engine.assert_same()
    assert engine.table().left_over() == []


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_what_is_being_cleared_away_is_not_committed(make: Make, form: str) -> None:
    engine = make(
        format=form, source={"connection": "DB", "name": "src", "consistency": "snapshot"},
        write={"disposition": "append"},
    )  # fmt: skip
    run = await opened(engine, engine.begin())
    await steps.plan_step(run, "target", 1, 0)
    await steps.table_step(run, 1, 0)
    put_quality, is_near, may_go_on = run.records.put_quality, asyncio.Event(), asyncio.Event()

    async def held(table: int, turn: int, document: dict[str, Any]) -> None:
        is_near.set()
        await may_go_on.wait()
        await put_quality(table, turn, document)

    run.records.put_quality = held  # type: ignore[method-assign]
    first = asyncio.create_task(steps.commit_step(run, "target", 1, 0))
    await is_near.wait()
    error: Transient = {"code": "connection_lost", "detail": "it broke", "retry_after_s": None}
    await steps.fail_table(run, 1, "commit", error)
    may_go_on.set()
    assert (await first)["counts"]["failed"] == 1
    assert engine.lake_rows() == []
    assert item(await engine.run())["status"] == "success"
    engine.assert_same()
    assert engine.table().left_over() == []


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_late_delivery_does_not_set_the_cursor_back(make: Make, form: str) -> None:
    """It has made its commit and is about to save the cursor, when another one has come to the end of the run."""
    engine = make(
        format=form, source={"connection": "DB", "name": "src", "consistency": "slice"},
        write={"disposition": "append"}, partition={"rows": 60},
    )  # fmt: skip
    run = await opened(engine, engine.begin())
    planned = await steps.plan_step(run, "target", 1, 0)
    for number in range(planned["slices"]):
        await steps.slice_step(run, 1, 0, number)
    put, is_done, may_go_on = engine.store.put, asyncio.Event(), asyncio.Event()

    async def held(key: str, data: bytes) -> None:
        await put(key, data)
        if "/done/" in key and not is_done.is_set():
            is_done.set()
            await may_go_on.wait()

    engine.store.put = held  # type: ignore[method-assign]
    late = asyncio.create_task(steps.commit_step(run, "target", 1, 0))
    await is_done.wait()
    engine.source.run("INSERT INTO t VALUES (500, 'later', 500)")
    assert await _to_the_end(run) == "success"
    may_go_on.set()
    await late
    found = item(await engine.run())
    assert (found["load"], found["reload_reason"]) == ("increment", None)
    engine.assert_same()


async def _to_the_end(run: SqlRun) -> str:
    done = await steps.commit_step(run, "target", 1, 0)
    while done["next"] != "settled":
        turn = done["turn"]
        done = await steps.plan_step(run, "target", 1, turn)
        for number in range(done["slices"]):
            await steps.slice_step(run, 1, turn, number)
        done = await steps.commit_step(run, "target", 1, turn)
    record = await run.records.record(1)
    assert record is not None
    return record["status"]


async def test_a_repair_delivered_twice_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has written what it mends, and applies it once the second is as far."""
    engine = make(write={"disposition": "merge"})
    await engine.run()
    engine.source.run("UPDATE t SET name = 'changed' WHERE id < 5", "DELETE FROM t WHERE id = 77")
    engine.spec["reconcile"] = "repair"
    run = await opened(engine, engine.begin())
    merge, is_near, may_go_on = DeltaLakeTable._merge, asyncio.Event(), asyncio.Event()

    async def held(*given: Any) -> Any:
        if asyncio.current_task() is first:
            is_near.set()
            await may_go_on.wait()
        else:
            may_go_on.set()
            await asyncio.wait([first])
        return await merge(*given)

    monkeypatch.setattr(DeltaLakeTable, "_merge", held)
    first = asyncio.create_task(steps.plan_step(run, "target", 1, 0))
    await is_near.wait()
    assert await steps.plan_step(run, "target", 1, 0) == await first
    record = await run.records.record(1)
    assert record is not None and record["status"] == "success", record
    engine.assert_same()
    assert engine.table().left_over() == []


async def test_what_is_being_mended_is_not_cleared_away(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(write={"disposition": "merge"})
    await engine.run()
    engine.source.run("UPDATE t SET name = 'changed' WHERE id < 5", "DELETE FROM t WHERE id = 77")
    engine.spec["reconcile"] = "repair"
    run = await opened(engine, engine.begin())
    make_it, delete, is_near, may_go_on = DeltaLakeTable._make, DeltaLakeTable._delete, asyncio.Event(), asyncio.Event()

    async def held(*given: Any) -> None:
        is_near.set()
        await may_go_on.wait()
        await make_it(*given)

    async def deleted_late(lake: DeltaLakeTable, paths: Sequence[str]) -> int:
        if asyncio.current_task() is not first and paths:
            may_go_on.set()
            await asyncio.wait([first])
        return await delete(lake, paths)

    monkeypatch.setattr(DeltaLakeTable, "_make", held)
    monkeypatch.setattr(DeltaLakeTable, "_delete", deleted_late)
    first = asyncio.create_task(steps.plan_step(run, "target", 1, 0))
    await is_near.wait()
    await engine.store.put(run.records.key("cancel"), b"")
    await steps.plan_step(run, "target", 1, 0)
    may_go_on.set()
    await first
    engine.assert_same()


@pytest.mark.parametrize(("disposition", "harm"), [
    ("append", "damaged"), ("append", "gone"), ("append", "digests gone"), ("append", "all gone"), ("merge", "damaged"),
])  # fmt: skip
async def test_a_cursor_that_is_damaged_or_gone_costs_no_row(make: Make, disposition: str, harm: str) -> None:
    engine = make(write={"disposition": disposition})
    await engine.run()
    engine.source.run("INSERT INTO t VALUES (500, 'first', 500)")
    await engine.run()
    for key in await engine.store.list("jobs"):
        is_seen = key.endswith(".seen")
        if harm == "damaged" and not is_seen:
            await engine.store.put(key, b'{"number": 1, "ident')
        elif harm == "all gone" or is_seen == (harm == "digests gone"):
            await engine.store.delete([key])
    engine.source.run("INSERT INTO t VALUES (501, 'tied', 500)", "INSERT INTO t VALUES (502, 'next', 502)")
    found = item(await engine.run())
    assert found["status"] == "success"
    is_known = disposition == "merge" or harm in ("damaged", "gone")
    assert found["load"] == ("increment" if is_known else "full")
    assert (found["reload_reason"] is None) == is_known
    engine.assert_same()


@pytest.mark.parametrize("harm", [
    {"number": "1"}, {"position": 5}, {"identity": None}, {"key": "id"}, {"columns": [["id"]]}, {"seen": 0},
    {"measured": {"rows": 1}}, {"measured": {"rows": 1, "lake_bytes": 1, "seconds": "1", "parallel": 1}},
])  # fmt: skip
async def test_a_cursor_that_is_half_edited_is_taken_from_the_lake(make: Make, harm: dict[str, Any]) -> None:
    engine = make(write={"disposition": "merge"})
    await engine.run()
    for key in await engine.store.list("jobs"):
        document = json.loads(await engine.store.get(key) or b"")
        await engine.store.put(key, json.dumps({**document, **harm}).encode())
    engine.source.run("INSERT INTO t VALUES (500, 'next', 500)")
    found = item(await engine.run())
    assert (found["status"], found["load"]) == ("success", "increment")
    engine.assert_same()
