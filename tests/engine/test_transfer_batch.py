"""Moving a batch: what is recorded, and what another delivery of the same batch does."""

from __future__ import annotations

import asyncio
import gc
import hashlib
import itertools
import os
import weakref
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.clients import http
from shared.clients.onelake.service import SMALL_BLOCK_BYTES, ByteBudget
from shared.engine import transfer_batch as transferring
from shared.engine.files_run import FilesRun
from shared.engine.transfer_batch import transfer_batch
from shared.model.records import PlannedItem
from shared.model.steps import no_counts
from tests.support.emulated import Content, Lake
from tests.support.runs import make_run, plant

FILES = {"a": b"1", "b/c": b"22", "d": b"", "e": b"4444"}


def planned(path: str, action: str = "create", etag: str = "") -> PlannedItem:
    return {
        "path": path,
        "size_bytes": len(FILES.get(path, b"")),
        "source_version": "v",
        "action": action,
        "etag": etag,
        "own": False,
    }


@pytest.fixture
async def run(lake: Lake, tmp_path: Path) -> FilesRun:
    plant(tmp_path, FILES)
    made = make_run(tmp_path, lake=lake.folder)
    await made.records.put_batch("p00001", 0, [planned(path) for path in FILES])
    return made


async def deliver(run: FilesRun, attempt: int = 1, *, final: bool = False) -> Any:
    return await transfer_batch(run, "p00001", 0, attempt, final=final)


async def statuses(run: FilesRun) -> dict[str, str]:
    return {one["path"]: one["status"] for one in await run.records.page_records("p00001")}


async def test_a_batch_is_moved_and_recorded(run: FilesRun, lake: Lake) -> None:
    outcome = await deliver(run)
    assert outcome["counts"] == {**no_counts(), "uploaded": 4, "bytes_done": 7}
    assert (outcome["abort"], outcome["cancelled"], outcome["retry"]) == (None, False, 0)
    assert lake.on_disk() == FILES
    listed = {file.path: file for file in (await lake.folder.list_page(None)).files}
    for one in await run.records.page_records("p00001"):
        data = FILES[one["path"]]
        assert (one["status"], one["size_bytes"], one["attempts"]) == ("uploaded", len(data), 1)
        assert one["hash"] == hashlib.md5(data).hexdigest()
        assert one["etag"] == listed[one["path"]].etag, "what the ledger remembers is what a listing shows"
        assert one["target"] == f"Files/job/{one['path']}"


async def test_a_second_delivery_moves_nothing_and_counts_the_same(run: FilesRun, lake: Lake) -> None:
    first = await deliver(run)
    effects = len(lake.effects())
    assert await deliver(run) == first
    assert len(lake.effects()) == effects


async def test_a_delivery_after_a_kill_before_anything_was_recorded_recognises_its_files(
    run: FilesRun, lake: Lake
) -> None:
    first = await deliver(run)
    await run.records.store.delete([run.records.key("results/p00001/b0000.jsonl")])
    again = await deliver(run)
    assert again["counts"] == first["counts"]
    assert lake.on_disk() == FILES
    assert len(lake.effects("append_flush")) == 3, "no content was sent twice"


async def test_a_delivery_after_a_kill_goes_on_from_the_checkpoint(run: FilesRun, lake: Lake, tmp_path: Path) -> None:
    """A checkpoint holds what is done and, as planned, what is not."""
    batch = transferring._Batch(run, "p00001", 0, 1, False)
    batch.items = await run.records.batch("p00001", 0)
    batch._record(batch.items[0], await batch._move(batch.items[0]))  # type: ignore[arg-type]
    await batch._save()
    assert (await statuses(run))["e"] == "planned"
    outcome = await deliver(run)
    assert outcome["counts"]["uploaded"] == 4
    assert lake.on_disk() == FILES
    assert set((await statuses(run)).values()) == {"uploaded"}


async def test_only_what_failed_is_tried_again(
    run: FilesRun, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    (tmp_path / "e").unlink()
    lake.faults({"operation": "create", "path": f"*/{lake.name}/b/c", "fault": "unavailable", "times": 2})
    first = await deliver(run)
    assert (first["retry"], first["counts"]["uploaded"], first["counts"]["failed"]) == (1, 2, 1)
    assert await statuses(run) == {"a": "uploaded", "b/c": "failed", "d": "uploaded", "e": "failed"}
    before = len(lake.effects())
    second = await deliver(run, attempt=2)
    assert second["counts"] == {**no_counts(), "uploaded": 1, "bytes_done": 2}
    assert second["retry"] == 0
    assert [one["operation"] for one in lake.effects()[before:]] == ["create", "append_flush"]


async def test_what_fails_at_the_last_attempt_has_failed(
    run: FilesRun, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    lake.faults({"operation": "create", "path": f"*/{lake.name}/a", "fault": "server_error"})
    outcome = await deliver(run, attempt=3, final=True)
    assert (outcome["retry"], outcome["counts"]["failed"], outcome["counts"]["uploaded"]) == (0, 1, 3)
    failed = [one for one in await run.records.page_records("p00001") if one["status"] == "failed"]
    assert [(one["path"], one["error_code"], one["attempts"]) for one in failed] == [("a", "service_unavailable", 3)]


async def test_what_must_stop_the_run_stops_it_and_what_is_left_is_not_failed(run: FilesRun, lake: Lake) -> None:
    lake.faults({"operation": "create", "fault": "capacity_paused"})
    outcome = await deliver(run)
    assert outcome["abort"]["code"] == "capacity_paused"
    assert outcome["counts"] == no_counts()
    assert set((await statuses(run)).values()) == {"planned"}
    lake.faults()
    assert (await deliver(run, attempt=2))["counts"]["uploaded"] == 4


async def test_a_cancelled_run_begins_nothing(run: FilesRun, lake: Lake) -> None:
    await run.records.store.put(run.records.key("cancel"), b"")
    outcome = await deliver(run)
    assert outcome["cancelled"]
    assert outcome["counts"] == no_counts()
    assert lake.on_disk() == {}
    await run.records.store.delete([run.records.key("cancel")])
    assert (await deliver(run))["counts"]["uploaded"] == 4


@pytest.mark.parametrize("existing", ["skip_identical", "overwrite", "fail"])
async def test_a_file_that_appeared_since_the_plan(lake: Lake, tmp_path: Path, existing: str) -> None:
    plant(tmp_path, FILES)
    run = make_run(tmp_path, lake=lake.folder, existing=existing)
    await run.records.put_batch("p00001", 0, [planned("a")])
    await lake.folder.create("a", Content(b"somebody's"))
    await deliver(run)
    assert lake.on_disk() == {"a": b"somebody's" if existing == "fail" else b"1"}
    assert await statuses(run) == {"a": "failed" if existing == "fail" else "uploaded"}


@pytest.mark.parametrize("existing", ["skip_identical", "overwrite", "fail"])
async def test_a_kill_between_create_and_append_is_repaired(lake: Lake, tmp_path: Path, existing: str) -> None:
    plant(tmp_path, FILES)
    run = make_run(tmp_path, lake=lake.folder, existing=existing)
    await run.records.put_batch("p00001", 0, [planned("a")])
    await lake.folder.create("a", Content(b""))
    assert (await deliver(run))["counts"]["uploaded"] == 1
    assert lake.on_disk() == {"a": b"1"}


async def test_identical_bytes_are_skipped_and_others_replaced(lake: Lake, tmp_path: Path) -> None:
    plant(tmp_path, FILES)
    run = make_run(tmp_path, lake=lake.folder)
    await run.records.put_batch("p00001", 0, [planned("a", "compare"), planned("b/c", "compare")])
    await lake.folder.create("a", Content(b"1"))
    await lake.folder.create("b/c", Content(b"xx"))
    await deliver(run)
    assert await statuses(run) == {"a": "skipped", "b/c": "uploaded"}
    assert lake.on_disk() == {"a": b"1", "b/c": b"22"}
    assert [one["status"] for one in lake.effects("rename")] == [201]


async def test_deletes_ask_source_and_lake_once_more(lake: Lake, tmp_path: Path) -> None:
    plant(tmp_path, {"came-back": b"1"})
    run = make_run(tmp_path, lake=lake.folder, mode="incremental", deleted="mirror")
    etags = {
        path: (await lake.folder.create(path, Content(b"1"))).etag for path in ("came-back", "changed", "gone", "lost")
    }
    await run.records.put_batch("p00001", 0, [planned(path, "delete", etag) for path, etag in etags.items()])
    await lake.folder.replace("changed", Content(b"2"))
    await lake.folder.delete("lost", etag=etags["lost"])
    await deliver(run)
    assert await statuses(run) == {"came-back": "skipped", "changed": "failed", "gone": "deleted", "lost": "deleted"}
    assert lake.on_disk() == {"came-back": b"1", "changed": b"2"}


async def test_reading_back_survives_a_token_that_expired_and_a_broken_answer(lake: Lake, tmp_path: Path) -> None:
    """Where the service keeps no MD5, comparing reads the file back."""
    plant(tmp_path, FILES)
    run = make_run(tmp_path, lake=lake.folder)
    await run.records.put_batch("p00001", 0, [planned("a", "compare"), planned("e", "compare")])
    for path in ("a", "e"):
        await lake.folder.create(path, Content(FILES[path]))
    properties = lake.folder.properties

    async def without_md5(path: str) -> Any:
        found = await properties(path)
        return found and replace(found, md5="")

    lake.folder.properties = without_md5  # type: ignore[method-assign]
    lake.faults(
        {"operation": "read", "path": f"*/{lake.name}/a", "fault": "expired_token", "times": 1},
        {"operation": "read", "path": f"*/{lake.name}/e", "fault": "short_body", "times": 1},
    )
    first = await deliver(run)
    assert first["abort"] is None, "a token that has merely expired is no reason to stop"
    second = await deliver(run, attempt=2) if first["retry"] else first
    assert second["retry"] == 0
    assert set((await statuses(run)).values()) == {"skipped"}


async def test_a_service_that_is_down_is_not_asked_for_every_item(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transferring, "_TRIPPING_FAILURES", 3)
    monkeypatch.setattr(transferring, "_WORKERS", 1)
    files = {f"f{number:02d}": b"1" for number in range(12)}
    plant(tmp_path, files)
    run = make_run(tmp_path, lake=lake.folder)
    await run.records.put_batch("p00001", 0, [planned(path) for path in files])
    asked: list[str] = []
    create = lake.folder.create

    async def counting(path: str, *arguments: Any, **options: Any) -> Any:
        asked.append(path)
        return await create(path, *arguments, **options)

    lake.folder.create = counting  # type: ignore[method-assign]
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 1)
    lake.faults({"operation": "create", "fault": "server_error"})
    outcome = await deliver(run)
    assert asked == ["f00", "f01", "f02"]
    assert (outcome["retry"], outcome["counts"]["failed"]) == (12, 0)


async def test_small_files_are_read_before_their_turn_and_no_more_than_there_is_room_for(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One upload in flight, which is held up: what follows is read meanwhile, within the memory."""
    files = {f"f{number}": bytes([number]) * 100 for number in range(10)}
    plant(tmp_path, files)
    lake.onelake.memory = ByteBudget(450)
    run = make_run(tmp_path, lake=lake.open(in_flight=1))
    items = [{**planned(path), "size_bytes": 100} for path in files]
    await run.records.put_batch("p00001", 0, items)  # type: ignore[arg-type]
    opened: list[str] = []
    four_are_open, may_go_on = asyncio.Event(), asyncio.Event()
    open_item, create = run.source.open, run.lake.create

    async def watched_open(path: str, ref: str = "", *, fresh: bool = False) -> Any:
        opened.append(path)
        if len(opened) == 4:
            four_are_open.set()
        return await open_item(path, ref, fresh=fresh)

    async def held_up(path: str, content: Any) -> Any:
        await may_go_on.wait()
        return await create(path, content)

    monkeypatch.setattr(run.source, "open", watched_open)
    monkeypatch.setattr(run.lake, "create", held_up)
    under_way = asyncio.create_task(deliver(run))
    await four_are_open.wait()
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(opened) == 4, "the fifth does not fit"
    may_go_on.set()
    assert (await under_way)["counts"]["uploaded"] == 10
    assert lake.on_disk() == files


async def test_a_file_that_grew_since_the_plan_takes_the_memory_that_it_needs(lake: Lake, tmp_path: Path) -> None:
    grown = b"x" * 1000
    plant(tmp_path, {"grown": grown, "other": b"1" * 600})
    lake.onelake.memory = memory = ByteBudget(1200)
    run = make_run(tmp_path, lake=lake.folder)
    items = [{**planned("other"), "size_bytes": 600}, {**planned("grown"), "size_bytes": 10}]
    await run.records.put_batch("p00001", 0, items)  # type: ignore[arg-type]
    held: list[int] = []
    create = run.lake.create

    async def watched(path: str, content: Any) -> Any:
        held.append(1200 - memory._free)
        assert content.size_bytes <= held[-1]
        return await create(path, content)

    run.lake.create = watched  # type: ignore[method-assign]
    assert (await deliver(run))["counts"]["uploaded"] == 2
    assert sorted(held)[-1] <= 1200
    assert memory._free == 1200, "everything is given back"
    assert lake.on_disk()["grown"] == grown


async def test_a_batch_hands_back_when_its_time_is_up_and_counts_once(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One very large file beside small ones: every delivery moves a part of it."""
    monkeypatch.setattr(transferring, "_PART_BYTES", 2 * SMALL_BLOCK_BYTES)
    ticks = itertools.count()
    monkeypatch.setattr(transferring, "time", SimpleNamespace(monotonic=lambda: next(ticks) * 250.0))
    files = {"large": os.urandom(5 * SMALL_BLOCK_BYTES), "small": b"1"}
    plant(tmp_path, files)
    run = make_run(tmp_path, lake=lake.folder)
    items = [{**planned(path), "size_bytes": len(data)} for path, data in files.items()]
    await run.records.put_batch("p00001", 0, items)  # type: ignore[arg-type]
    outcomes = [await deliver(run)]
    while outcomes[-1].get("unfinished"):
        assert (outcomes[-1]["counts"], outcomes[-1]["retry"]) == (no_counts(), 0)
        outcomes.append(await deliver(run))
    assert len(outcomes) == 3
    size = sum(map(len, files.values()))
    assert outcomes[-1]["counts"] == {**no_counts(), "uploaded": 2, "bytes_done": size}
    assert lake.on_disk() == files
    assert sum(one["bytes"] for one in lake.effects("append", "append_flush")) == size
    assert await run.records.store.list(run.records.key("uploads")) == []


async def test_a_cancelled_batch_leaves_a_large_file_to_be_taken_up(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transferring, "_PART_BYTES", SMALL_BLOCK_BYTES)
    monkeypatch.setattr(transferring, "_CHECKPOINT_EVERY_S", 0.001)
    data = os.urandom(6 * SMALL_BLOCK_BYTES)
    plant(tmp_path, {"large": data})
    run = make_run(tmp_path, lake=lake.folder)
    await run.records.put_batch("p00001", 0, [{**planned("large"), "size_bytes": len(data)}])
    append = run.lake.append_blocks  # type: ignore[attr-defined]

    async def cancelled_meanwhile(*arguments: Any) -> None:
        await run.records.store.put(run.records.key("cancel"), b"")
        await asyncio.sleep(0.1)
        await append(*arguments)

    monkeypatch.setattr(run.lake, "append_blocks", cancelled_meanwhile)
    outcome = await deliver(run)
    assert outcome["cancelled"]
    assert "unfinished" not in outcome
    assert (await statuses(run)) == {"large": "planned"}
    assert run.lake.parked == {}, "nobody may ever take it up, so no file is left open"  # type: ignore[attr-defined]
    monkeypatch.setattr(run.lake, "append_blocks", append)
    await run.records.store.delete([run.records.key("cancel")])
    assert (await deliver(run))["counts"]["uploaded"] == 1
    assert lake.on_disk() == {"large": data}
    assert sum(one["bytes"] for one in lake.effects("append")) == len(data)


@pytest.mark.parametrize("document", [b"", b'{"stag', b"[]", b'{"staging": "large"}'])
async def test_a_journal_that_cannot_be_read_is_as_none(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, document: bytes
) -> None:
    """As a machine leaves it that loses its power."""
    monkeypatch.setattr(transferring, "_PART_BYTES", SMALL_BLOCK_BYTES)
    data = os.urandom(SMALL_BLOCK_BYTES + 1)
    plant(tmp_path, {"large": data})
    run = make_run(tmp_path, lake=lake.folder)
    await run.records.put_batch("p00001", 0, [{**planned("large"), "size_bytes": len(data)}])
    journal = run.records.upload_journal("p00001", "large")
    await run.records.store.put(journal._key, document)
    assert (await deliver(run))["counts"]["uploaded"] == 1
    assert lake.on_disk() == {"large": data}
    assert await run.records.store.list(run.records.key("uploads")) == []


async def test_while_a_grown_file_waits_for_memory_its_content_is_not_held(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, {"grown": b"x" * 1000})
    lake.onelake.memory = memory = ByteBudget(1200)
    run = make_run(tmp_path, lake=lake.folder)
    await run.records.put_batch("p00001", 0, [{**planned("grown"), "size_bytes": 10}])
    others = await memory.take(600)
    opened: list[weakref.ref[Any]] = []
    is_waiting = asyncio.Event()
    open_item, take = run.source.open, memory.take

    async def watched_open(path: str, ref: str = "", *, fresh: bool = False) -> Any:
        content = await open_item(path, ref, fresh=fresh)
        opened.append(weakref.ref(content))
        return content

    async def watched_take(size_bytes: int) -> int:
        if size_bytes == 1000:
            is_waiting.set()
        return await take(size_bytes)

    monkeypatch.setattr(run.source, "open", watched_open)
    monkeypatch.setattr(memory, "take", watched_take)
    under_way = asyncio.create_task(deliver(run))
    await is_waiting.wait()
    gc.collect()
    assert [one() for one in opened] == [None]
    memory.give(others)
    assert (await under_way)["counts"]["uploaded"] == 1


async def test_an_empty_file_in_the_place_of_a_large_one_is_somebodys(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written in parts is staged, so no kill of this run leaves an empty file there."""
    monkeypatch.setattr(transferring, "_PART_BYTES", SMALL_BLOCK_BYTES)
    data = os.urandom(SMALL_BLOCK_BYTES + 1)
    plant(tmp_path, {"large": data})
    run = make_run(tmp_path, lake=lake.folder, existing="fail")
    await run.records.put_batch("p00001", 0, [{**planned("large"), "size_bytes": len(data)}])
    await lake.folder.create("large", Content(b""))
    assert (await deliver(run))["counts"]["failed"] == 1
    assert lake.on_disk() == {"large": b""}
