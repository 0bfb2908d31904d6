"""What a run never does to files that are not its own, whoever else writes, moves or fails at the same moment."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import shutil
from base64 import b64encode
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from shared.clients import http
from shared.clients.folder import OpenFile
from shared.clients.onelake import LakeFolder
from shared.engine import plan_page as planning
from shared.engine.files_run import FilesRun
from shared.engine.ledger import commit_ledger
from shared.engine.plan_page import plan_page
from shared.engine.survey import survey_target
from shared.engine.transfer_batch import transfer_batch
from shared.errors import ConnectionLost, MigrationError, TargetConflict
from shared.model.records import MovedFrom
from shared.ports import OpenItem, Written
from tests.support.emulated import Content, Lake
from tests.support.runs import PAIR, make_run, memory_store, plant

MIB = 1024 * 1024
# More than one block, so that it is uploaded block by block.
BIG = 9 * MIB


class Staged(Content):
    """Content that waits for others at its second block and at its end."""

    def __init__(
        self, data: bytes, at_second: Callable[[], Awaitable[Any]], at_end: Callable[[], Awaitable[Any]]
    ) -> None:
        super().__init__(data, before_block=at_second)
        self._at_end = at_end

    async def finish(self) -> None:
        await self._at_end()


async def carry_out(run: FilesRun, *, final: bool = True) -> dict[str, tuple[str, str | None]]:
    """A whole run of one page, with its ledger; status and error code of each path."""
    await run.records.save("prepared.json", {"pair": PAIR})
    if run.job.mode == "full":
        await survey_target(run, "before", 0, None)
    batches, _, _ = await plan_page(run, "p00001", 1, None)
    for batch in range(batches):
        await transfer_batch(run, "p00001", batch, 1, final=final)
    await commit_ledger(run.records, run.job.name)
    return {one["path"]: (one["status"], one["error_code"]) for one in await run.records.page_records("p00001")}


async def write_as_another(lake: Lake, path: str, data: bytes) -> None:
    await lake.open(owner="another", sequence="three_step").replace(path, Content(data))


# -- uploads ---------------------------------------------------------------------------------------------------------


async def test_a_large_upload_that_fails_leaves_what_another_wrote_meanwhile(lake: Lake) -> None:
    async def meanwhile() -> None:
        if "big" not in lake.on_disk() or lake.on_disk()["big"] != b"precious":
            await write_as_another(lake, "big", b"precious")

    with pytest.raises(MigrationError):
        await lake.folder.create("big", Content(b"x" * BIG, before_block=meanwhile))
    assert lake.on_disk() == {"big": b"precious"}


async def test_a_large_source_that_changes_leaves_what_another_wrote_meanwhile(lake: Lake) -> None:
    """Giving an upload up removes its own empty file and no other."""

    async def meanwhile() -> None:
        await write_as_another(lake, "big", b"precious")

    with pytest.raises(MigrationError):
        short = Content(b"x" * BIG, size_bytes=BIG + 1, before_block=meanwhile)
        await lake.folder.create("big", short)
    assert lake.on_disk() == {"big": b"precious"}


@pytest.mark.parametrize("how", ["create", "replace"])
async def test_two_versions_written_at_once_end_as_one_of_them(lake: Lake, how: str) -> None:
    """The blocks of the later one come between those of the earlier one, and its end before the earlier one's."""
    old, new = b"o" * 20 * MIB, b"n" * 20 * MIB
    begun, newer_sent, older_sent, newer_ended = (asyncio.Event() for _ in range(4))

    async def older_at_second() -> None:
        begun.set()
        await newer_sent.wait()

    async def older_at_end() -> None:
        older_sent.set()
        await newer_ended.wait()

    async def newer_at_second() -> None: ...

    async def newer_at_end() -> None:
        newer_sent.set()
        await older_sent.wait()

    async def write(
        folder: LakeFolder, how: str, content: OpenItem, before: asyncio.Event | None, *after: asyncio.Event
    ) -> Written | None:
        if before is not None:
            await before.wait()
        try:
            written: Written = await getattr(folder, how)("f", content)
        except MigrationError:
            return None
        else:
            return written
        finally:
            for event in after:
                event.set()

    if how == "replace":
        await lake.open(sequence="three_step").create("f", Content(b"before"))
    ended = await asyncio.gather(
        write(lake.folder, how, Staged(old, older_at_second, older_at_end), None, begun, older_sent),
        write(lake.open(), "replace", Staged(new, newer_at_second, newer_at_end), begun, newer_sent, newer_ended),
    )
    assert ended[1] is not None
    assert set(lake.on_disk()) == {"f"}
    # Compared outside the assertion: nobody wants to read the difference.
    whole = lake.on_disk()["f"] in (old, new)
    assert whole
    if how == "create":
        assert ended[0] is None, "what lies under the path is no longer what the create began"


async def test_what_an_unreadable_source_file_ends_is_the_item(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A share that loses a large file at the end of its read fails that file; the batch goes on, and leaves nothing."""
    plant(tmp_path, {"big": b"x" * BIG, "small": b"1"})
    has_changed = OpenFile._has_changed

    def stale(self: OpenFile) -> bool:
        if self.size_bytes == BIG:
            raise OSError(errno.ESTALE, "Stale file handle")
        return has_changed(self)

    monkeypatch.setattr(OpenFile, "_has_changed", stale)
    ended = await carry_out(make_run(tmp_path, lake=lake.folder))
    assert ended == {"big": ("failed", "source_unreadable"), "small": ("uploaded", None)}
    assert lake.on_disk() == {"small": b"1"}


async def test_a_create_that_is_given_up_leaves_no_empty_file(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    plant(tmp_path, {"a": b"content"})
    lake.faults({"operation": "append_flush", "fault": "server_error"})
    assert await carry_out(make_run(tmp_path, lake=lake.folder)) == {"a": ("failed", "service_unavailable")}
    assert 201 in [one["status"] for one in lake.effects("create")], "there was something to leave behind"
    assert lake.on_disk() == {}


async def test_an_empty_file_of_another_stays_where_an_item_fails(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the lake was not listed, an empty file need not be what an upload of this run began."""
    plant(tmp_path, {"a": b"content"})
    await write_as_another(lake, "a", b"")
    run = make_run(tmp_path, lake=lake.folder, mode="incremental", existing="fail")

    async def refused(path: str, *_: Any, **__: Any) -> Any:
        raise ConnectionLost("the share is away", subject=path)

    monkeypatch.setattr(run.source, "open", refused)
    assert (await carry_out(run))["a"][0] == "failed"
    assert lake.on_disk() == {"a": b""}


# -- whose file it is ------------------------------------------------------------------------------------------------


async def test_what_was_merely_found_identical_is_not_mirrored_away(lake: Lake, tmp_path: Path) -> None:
    """Not after any number of runs that skipped it; what the job wrote itself goes."""
    store = memory_store()
    await write_as_another(lake, "theirs", b"same")
    plant(tmp_path, {"theirs": b"same", "mine": b"1", "stays": b"2"})
    changes: dict[str, Any] = {"store": store, "lake": lake.folder, "mode": "incremental", "deleted": "mirror"}
    first = await carry_out(make_run(tmp_path, run="files-job-1", **changes))
    assert first["theirs"] == ("skipped", None)
    await carry_out(make_run(tmp_path, run="files-job-2", **changes))
    for gone in ("theirs", "mine"):
        (tmp_path / gone).unlink()
    last = await carry_out(make_run(tmp_path, run="files-job-3", **changes))
    assert last == {"mine": ("deleted", None), "stays": ("skipped", None)}
    assert lake.on_disk() == {"theirs": b"same", "stays": b"2"}


@pytest.mark.parametrize("mode", ["full", "incremental"])
async def test_what_was_merely_found_identical_is_not_replaced_where_existing_fails(
    lake: Lake, tmp_path: Path, mode: str
) -> None:
    """The source's file changes; the one in the lake is still somebody else's. The job's own is replaced."""
    store = memory_store()
    await write_as_another(lake, "theirs", b"same")
    plant(tmp_path, {"theirs": b"same", "mine": b"1"})
    changes: dict[str, Any] = {"store": store, "lake": lake.folder, "mode": mode, "existing": "fail"}
    first = await carry_out(make_run(tmp_path, run="files-job-1", **changes))
    assert first == {"theirs": ("skipped", None), "mine": ("uploaded", None)}
    plant(tmp_path, {"theirs": b"source changed", "mine": b"source changed"})
    last = await carry_out(make_run(tmp_path, run="files-job-2", **changes))
    assert last == {"theirs": ("failed", "target_exists"), "mine": ("uploaded", None)}
    assert lake.on_disk() == {"theirs": b"same", "mine": b"source changed"}


@pytest.mark.parametrize("mode", ["full", "incremental"])
async def test_what_was_edited_in_the_lake_is_not_replaced_where_existing_fails(
    lake: Lake, tmp_path: Path, mode: str
) -> None:
    store = memory_store()
    plant(tmp_path, {"a": b"one"})
    changes: dict[str, Any] = {"store": store, "lake": lake.folder, "mode": mode, "existing": "fail"}
    await carry_out(make_run(tmp_path, run="files-job-1", **changes))
    await write_as_another(lake, "a", b"edited in the lake")
    plant(tmp_path, {"a": b"two two"})
    assert (await carry_out(make_run(tmp_path, run="files-job-2", **changes)))["a"][0] == "failed"
    assert lake.on_disk() == {"a": b"edited in the lake"}


async def test_what_is_edited_between_plan_and_rename_is_not_replaced_where_existing_fails(lake: Lake) -> None:
    written = await lake.folder.create("a", Content(b"one"))
    await write_as_another(lake, "a", b"edited in the lake")
    with pytest.raises(TargetConflict):
        await lake.folder.replace("a", Content(b"two"), only_over=written.etag)
    assert lake.on_disk() == {"a": b"edited in the lake"}


# -- the source ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("now_there", [{}, {"other": b"1"}])
async def test_a_mirror_whose_source_is_exchanged_deletes_nothing_and_stops(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now_there: dict[str, bytes]
) -> None:
    """After a restart in the middle of the plan the share is not there, and its mount point is empty, or another's."""
    source, files = tmp_path / "source", {f"f{number}": b"%d" % number for number in range(8)}
    changes: dict[str, Any] = {
        "store": memory_store(), "lake": lake.folder, "mode": "incremental", "deleted": "mirror",
    }  # fmt: skip
    plant(source, files)
    await carry_out(make_run(source, run="files-job-1", **changes))
    monkeypatch.setattr(planning, "PAGE_ITEMS", 2)
    run = make_run(source, run="files-job-2", **changes)
    began_with = run.source_identity
    _, _, cursor = await plan_page(run, "p00001", 1, None)
    source.rename(tmp_path / "unmounted")
    plant(source, now_there)
    source.mkdir(exist_ok=True)
    restarted = make_run(source, run="files-job-2", **changes)
    restarted.source_identity = began_with
    batches, _, _ = await plan_page(restarted, "p00002", 1, cursor)
    stopped = [await transfer_batch(restarted, "p00002", batch, 1, final=True) for batch in range(batches)]
    assert [outcome["abort"] and outcome["abort"]["code"] for outcome in stopped] == ["source_empty"]
    assert all(lake.on_disk()[path] == data for path, data in files.items())
    assert lake.effects("delete") == []


async def test_a_mirror_whose_source_is_emptied_deletes_nothing_and_stops(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the same one, and nothing is in it any more."""
    files = {f"f{number}": b"%d" % number for number in range(8)}
    changes: dict[str, Any] = {
        "store": memory_store(), "lake": lake.folder, "mode": "incremental", "deleted": "mirror",
    }  # fmt: skip
    plant(tmp_path, files)
    await carry_out(make_run(tmp_path, run="files-job-1", **changes))
    monkeypatch.setattr(planning, "PAGE_ITEMS", 2)
    run = make_run(tmp_path, run="files-job-2", **changes)
    _, _, cursor = await plan_page(run, "p00001", 1, None)
    for path in files:
        (tmp_path / path).unlink()
    restarted = make_run(tmp_path, run="files-job-2", **changes)
    batches, _, _ = await plan_page(restarted, "p00002", 1, cursor)
    stopped = [await transfer_batch(restarted, "p00002", batch, 1, final=True) for batch in range(batches)]
    assert [outcome["abort"] and outcome["abort"]["code"] for outcome in stopped] == ["source_empty"]
    assert lake.on_disk() == files


@pytest.mark.parametrize("link", ["d", "d/e"])
async def test_a_folder_that_became_a_link_does_not_lead_out_of_the_source(
    lake: Lake, tmp_path: Path, link: str
) -> None:
    """It is exchanged between the listing and the reading, and what it leads to has the right names."""
    source, outside = tmp_path / "source", tmp_path / "outside"
    plant(source, {"d/e/file": b"listed", "other": b"1"})
    plant(outside, {"file": b"not to be read", "e/file": b"not to be read"})
    run = make_run(source, lake=lake.folder)
    await plan_page(run, "p00001", 1, None)
    shutil.rmtree(source / link)
    (source / link).symlink_to(outside)
    await transfer_batch(run, "p00001", 0, 1, final=True)
    assert {one["path"]: one["status"] for one in await run.records.page_records("p00001")} == {
        "d/e/file": "failed", "other": "uploaded",
    }  # fmt: skip
    assert lake.on_disk() == {"other": b"1"}


# -- two deliveries --------------------------------------------------------------------------------------------------


async def test_a_slow_delivery_does_not_overrule_what_another_achieved(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is delivered a second time while the first is held up; the first one fails, and saves last."""
    plant(tmp_path, {"a": b"1", "b": b"2"})
    store = memory_store()
    slow, fast = (make_run(tmp_path, store=store, lake=folder) for folder in (lake.folder, lake.open()))
    await plan_page(slow, "p00001", 1, None)
    held, released = asyncio.Event(), asyncio.Event()
    read = slow.source.open

    async def hold(path: str, *arguments: Any, **options: Any) -> Any:
        if path != "b":
            return await read(path)
        held.set()
        await released.wait()
        raise ConnectionLost("the share is away", subject=path)

    monkeypatch.setattr(slow.source, "open", hold)
    first = asyncio.create_task(transfer_batch(slow, "p00001", 0, 1, final=False))
    await held.wait()
    assert (await transfer_batch(fast, "p00001", 0, 1, final=False))["counts"]["uploaded"] == 2
    released.set()
    assert (await first)["counts"]["uploaded"] == 2
    assert {one["path"]: one["status"] for one in await fast.records.page_records("p00001")} == {
        "a": "uploaded", "b": "uploaded",
    }  # fmt: skip
    assert lake.on_disk() == {"a": b"1", "b": b"2"}


# -- existing: fail --------------------------------------------------------------------------------------------------


async def test_a_rename_onto_somebody_elses_file_leaves_it(lake: Lake, tmp_path: Path) -> None:
    plant(tmp_path, {"new": b"mine"})
    run = make_run(tmp_path, lake=lake.folder, existing="fail", mode="incremental")
    written = await lake.folder.create("old", Content(b"mine"))
    await lake.folder.create("new", Content(b"somebody else's"))
    moved: MovedFrom = {"path": "old", "etag": written.etag, "hash": written.md5, "size_bytes": 4, "same": True}
    await run.records.put_batch("p00001", 0, [{
        "path": "new", "size_bytes": 4, "source_version": "v", "action": "rename", "etag": "", "own": True,
        "moved": moved,
    }])  # fmt: skip
    await transfer_batch(run, "p00001", 0, 1, final=True)
    assert lake.on_disk()["new"] == b"somebody else's"


async def test_what_could_not_be_renamed_leaves_nothing_at_its_old_place(lake: Lake, tmp_path: Path) -> None:
    plant(tmp_path, {"new": b"mine"})
    run = make_run(tmp_path, lake=lake.folder, mode="incremental")
    written = await lake.folder.create("old", Content(b"mine"))
    await lake.folder.create("new", Content(b"somebody else's"))
    moved: MovedFrom = {"path": "old", "etag": written.etag, "hash": written.md5, "size_bytes": 4, "same": True}
    await run.records.put_batch("p00001", 0, [{
        "path": "new", "size_bytes": 4, "source_version": "v", "action": "rename", "etag": "", "own": True,
        "moved": moved,
    }])  # fmt: skip
    await transfer_batch(run, "p00001", 0, 1, final=True)
    assert lake.on_disk() == {"new": b"mine"}
    (record,) = await run.records.page_records("p00001")
    assert (record["status"], record["renamed_from"]) == ("uploaded", "old")


@pytest.mark.parametrize("sequence", ["auto", "put_blob"])
async def test_a_file_that_somebody_is_uploading_is_not_overwritten(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sequence: str
) -> None:
    """It is created after the listing, empty when it is met, and filled a moment later."""
    plant(tmp_path, {"f": b"mine"})
    ours = lake.open(sequence=sequence)
    run = make_run(tmp_path, lake=ours, existing="fail", limits={"upload_sequence": sequence})
    await lake.open(owner="other")._create_path("f", "f", None, new=True)
    look = ours.properties

    async def properties(path: str) -> Any:
        found = await look(path)
        if path == "f" and found and not found.size_bytes:
            md5 = b64encode(hashlib.md5(b"theirs").digest()).decode()
            await lake.open(owner="other")._append("f", "f", 0, b"theirs", md5, flush=True)
        return found

    monkeypatch.setattr(ours, "properties", properties)
    await run.records.put_batch("p00001", 0, [
        {"path": "f", "size_bytes": 4, "source_version": "v", "action": "create", "etag": "", "own": False}
    ])  # fmt: skip
    await transfer_batch(run, "p00001", 0, 1, final=True)
    assert lake.on_disk()["f"] == b"theirs"
