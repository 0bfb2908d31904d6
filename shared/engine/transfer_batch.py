"""Moving one work package: every item concurrently, one record for each."""

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from shared.engine.emptied_folders import folders_above, remove_deepest_first
from shared.engine.files_run import FilesRun
from shared.engine.ledger import open_ledger
from shared.engine.meter import METER
from shared.engine.run_records import not_moved
from shared.errors import (
    ConnectionLost,
    MigrationError,
    NotFound,
    RunError,
    ServiceUnavailable,
    SourceChanged,
    SourceMissing,
    TargetConflict,
    TransientError,
    Unsupported,
)
from shared.model.records import FINAL_STATUSES, FileRecord, PlannedItem
from shared.model.steps import Abort, Concurrency, Counts, TransferBatchOutcome, no_counts
from shared.ports import Block, LakeProperties, OpenItem, Written

_READ_BLOCK = 1024 * 1024
# Up to here an item is read before it is its turn; reading more overlaps with its own sending.
_AHEAD_BYTES = 1024 * 1024
# A long batch saves what it has so far, so that a kill repeats seconds of it and not the whole.
_CHECKPOINT_EVERY_S = 10.0
# So many failures of the service in a row, with no success between them, mean that it is down.
_TRIPPING_FAILURES = 20
_WORKERS = 128
# An activity hands back after so long, far below any function timeout, and goes on in the next.
_BUDGET_S = 600.0
# Larger files are written in parts of this size, which outlive a kill and the end of an activity.
_PART_BYTES = 4 * 1024 * 1024 * 1024
# What a part may take where the job's own cap is all that holds it up.
_PART_S = 300
_ACHIEVED = frozenset({"uploaded", "skipped", "renamed", "deleted"})


@dataclass(frozen=True)
class _Stop:
    """The batch ends early; ``abort`` is None where somebody cancelled."""

    abort: Abort | None


async def transfer_batch(run: FilesRun, page: str, batch: int, attempt: int, *, final: bool) -> TransferBatchOutcome:
    """Move the items of a batch that are not moved yet.

    Idempotent: what an earlier delivery of the same batch recorded is not repeated, and what it moved without getting
    to record it is recognised in the lake.

    Args:
        run: The run.
        page: The page's name.
        batch: The batch's number in the page.
        attempt: 1, and more where failed items are tried again.
        final: No further attempt follows, so what fails now is failed.

    Returns:
        Counts of what this attempt settled, and how many items are left to retry.
    """
    return await _Batch(run, page, batch, attempt, final).carry_out()


class _Batch:
    def __init__(self, run: FilesRun, page: str, batch: int, attempt: int, final: bool) -> None:
        self.run = run
        self.page = page
        self.name = f"b{batch:04d}"
        self.batch = batch
        self.attempt = attempt
        self.final = final
        self.done: dict[str, FileRecord] = {}
        self.items: list[PlannedItem] = []
        self.failures_in_a_row = 0
        self.retry_after_s: float | None = None
        self.stop: _Stop | None = None
        self.began_s = time.monotonic()
        self.is_unfinished = False
        self.part_bytes = min(_PART_BYTES, (run.job.limits.bandwidth or _PART_BYTES) * _PART_S)
        self.lake_known = run.job.mode == "full" and page.startswith("p")
        # Items whose file was renamed in the lake by this delivery, with its new ETag; empty where it was gone.
        self.renamed: dict[str, str] = {}

    async def carry_out(self) -> TransferBatchOutcome:
        levels_before = self.run.lake.concurrency().changes
        records = self.run.records
        self.items, earlier, is_cancelled = await asyncio.gather(
            records.batch(self.page, self.batch), records.results(self.page, self.name), records.cancelled()
        )
        self.done = {record["path"]: record for record in earlier or []}
        pending = [item for item in self.items if self._is_pending(item)]
        stopped: _Stop | None = None
        if is_cancelled:
            stopped = _Stop(None)
        elif pending:
            stopped = await self._move_all(pending)
        if pending:
            await self._save()
        if stopped is not None:
            # Nobody may ever take up what was handed back.
            await self.run.lake.close_parked()
        level = self.run.lake.concurrency()
        concurrency: Concurrency = {"level": level.level, "reason": level.reason}
        if changes := [change for change in level.changes if change not in levels_before]:
            concurrency["changes"] = [{"at": one.at, "level": one.level, "reason": one.reason} for one in changes]
        outcome: TransferBatchOutcome = {
            "concurrency": concurrency,
            "source_load": self.run.source.load(),
            "abort": stopped.abort if stopped else None,
            "cancelled": stopped is not None and stopped.abort is None,
            "counts": self._counts(),
            "retry": sum(record["status"] == "retrying" for record in self.done.values()),
            "retry_after_s": self.retry_after_s,
        }
        if self.is_unfinished and stopped is None:
            # The delivery that goes on counts for this one as well.
            outcome |= {"unfinished": True, "counts": no_counts(), "retry": 0, "retry_after_s": None}
        METER.add(outcome["counts"], level.level)
        return outcome

    def _is_over(self) -> bool:
        """Whether nothing more is begun in this activity."""
        return self.stop is not None or time.monotonic() - self.began_s > _BUDGET_S

    def _is_pending(self, item: PlannedItem) -> bool:
        record = self.done.get(item["path"])
        return record is None or record["status"] not in FINAL_STATUSES

    async def _move_all(self, pending: list[PlannedItem]) -> _Stop | None:
        queue = iter(pending)
        over = asyncio.Event()
        watch = asyncio.create_task(self._watch(over))
        try:
            async with asyncio.TaskGroup() as workers:
                for _ in range(min(_WORKERS, len(pending))):
                    workers.create_task(self._work(queue))
        finally:
            # Not cancelled: a write that is given up half-way may still arrive, after the one that follows.
            over.set()
            await watch
        return self.stop

    async def _work(self, queue: Iterator[PlannedItem]) -> None:
        for item in queue:
            if self.failures_in_a_row >= _TRIPPING_FAILURES and not self.final:
                error: MigrationError = ServiceUnavailable("not tried: the service was down", subject=item["path"])
                self._record(item, self._failed(item, error))
                continue
            if self._is_over():
                # What is in flight is finished, so that nobody finds half a file; nothing new is begun.
                self.is_unfinished = True
                return
            record = await self._move(item)
            if record is not None:
                self._record(item, record)

    async def _watch(self, over: asyncio.Event) -> None:
        """Save now and then, and notice that somebody cancelled."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), _CHECKPOINT_EVERY_S)
            if over.is_set():
                return
            # The store may be away for a moment; the batch itself says so if it still is at its end.
            with suppress(MigrationError):
                await self._save()
                if await self.run.records.cancelled():
                    self.stop = self.stop or _Stop(None)

    async def _save(self) -> None:
        # Another delivery of this batch may have been at work meanwhile, and what it achieved is true.
        for record in await self.run.records.results(self.page, self.name) or []:
            mine = self.done.get(record["path"])
            if record["status"] in _ACHIEVED and (mine is None or mine["status"] not in _ACHIEVED):
                self.done[record["path"]] = record
        records = [self.done[item["path"]] if item["path"] in self.done else self._untouched(item)
                   for item in self.items]  # fmt: skip
        await self.run.records.put_results(self.page, self.name, records)

    def _record(self, item: PlannedItem, record: FileRecord) -> None:
        if item["path"] in self.renamed:
            # Whatever came after the rename: the file is not where the ledger has it.
            record["renamed_from"] = item["moved"]["path"]
            if record["status"] not in _ACHIEVED:
                record["etag"] = self.renamed[item["path"]]
        self.done[item["path"]] = record

    # -- one item ------------------------------------------------------------------------------------------------

    async def _move(self, item: PlannedItem) -> FileRecord | None:
        try:
            record = await (self._delete(item) if item["action"] == "delete" else self._put(item))
        except RunError as error:
            self.stop = self.stop or _Stop({"code": error.code, "detail": error.detail})
            return None
        except MigrationError as error:
            if isinstance(error, ConnectionLost | ServiceUnavailable):
                self.failures_in_a_row += 1
            record = self._failed(item, error)
            if record["status"] == "failed" and item["action"] == "create" and not isinstance(error, TargetConflict):
                await self._remove_leftover(item)
            return record
        self.failures_in_a_row = 0
        self.is_unfinished = self.is_unfinished or record is None
        return record

    async def _put(self, item: PlannedItem) -> FileRecord | None:
        """Its record, or None where it goes on in the next activity."""
        try:
            record = await self._copy(item)
        except TargetConflict as error:
            if error.code != "path_conflict" or not await self._clear_way(item["path"]):
                raise
            record = await self._copy(item)
        if record is None:
            return None
        if item["action"] == "rename" and item["path"] not in self.renamed and record["status"] in _ACHIEVED:
            # It could not be renamed, and is at its new place all the same: what this job left at the old one goes.
            with suppress(NotFound, TargetConflict):
                await self.run.lake.delete(item["moved"]["path"], etag=item["moved"]["etag"])
            self.renamed[item["path"]] = ""
        return record

    async def _clear_way(self, path: str) -> bool:
        """Remove the folder that stands where a file should be, once what this job had in it is gone.

        Returns:
            Whether it is gone; False as well where no folder is in the way, or one that was never this job's.
        """
        if self.run.ledger is None:
            self.run.ledger = await open_ledger(self.run.records.store, self.run.job.name, self.run.pair)
        below = await self.run.ledger.between(f"{path}/", f"{path}/\U0010ffff")
        if not below and self.run.job.deleted != "mirror":
            return False
        inside = {folder for folder in folders_above(below) if folder.startswith(f"{path}/")}
        await remove_deepest_first(self.run, inside)
        return await self.run.lake.remove_empty_folder(path)

    async def _copy(self, item: PlannedItem) -> FileRecord | None:
        path, action = item["path"], item["action"]
        lake = self.run.lake
        if action == "rename":
            renamed, action = await self._rename(item)
            if renamed is not None:
                return renamed
            # What stands at the new place is the job's only if it was renamed there just now.
            item = {**item, "own": bool(self.renamed.get(path)), "etag": self.renamed.get(path, "")}
        if action == "create":
            if (copied := await self._copy_by_service(item)) is not None:
                return copied
            try:
                return await self._write(item, new=True)
            except TargetConflict as error:
                if error.code != "target_exists":
                    raise
        # The job may replace its own file only, and only while it is that.
        only_over = item["etag"] if self.run.job.existing == "fail" and action == "replace" else None
        if action != "replace":
            async with lake.room(item["size_bytes"]) as room, room.turn():
                listed = _as_listed(item)
                if listed is not None and (same := await self._compare(item, listed)) is not None:
                    return same
                found = await lake.properties(path)
                is_news = found is not None and (listed is None or found.etag != listed.etag)
                if found is not None and is_news and (same := await self._compare(item, found)) is not None:
                    return same
            # Empty where the listing before the run showed nothing: an upload of this batch that broke off.
            own_leftover = action == "create" and self.lake_known and found is not None and not found.size_bytes
            own_leftover = own_leftover and self._may_leave_empty(item)
            if self.run.job.existing == "fail" and found is not None:
                if not own_leftover and not item["own"]:
                    raise TargetConflict("another file is there already", code="target_exists", subject=path)
                only_over = found.etag
        return await self._write(item, only_over=only_over or None)

    async def _write(self, item: PlannedItem, *, new: bool = False, only_over: str | None = None) -> FileRecord | None:
        lake, path = self.run.lake, item["path"]
        if item["size_bytes"] > self.part_bytes:
            return await self._write_long(item, new=new, only_over=only_over)

        async def write(content: OpenItem) -> Written:
            if new:
                return await lake.create(path, content)
            return await lake.replace(path, content, only_over=only_over)

        content, written = await self._send(item, write)
        return self._moved(item, "uploaded", content.version, content.facts, written)

    async def _write_long(self, item: PlannedItem, *, new: bool, only_over: str | None) -> FileRecord | None:
        journal = self.run.records.upload_journal(self.page, item["path"])
        async with self.run.lake.room(item["size_bytes"]) as room, room.turn():
            done = await self.run.lake.upload_long(
                item["path"], lambda: self._open(item), journal, new=new, only_over=only_over,
                part_bytes=self.part_bytes, is_over=self._is_over,
            )  # fmt: skip
        return self._moved(item, "uploaded", done.version, done.facts, done.written) if done is not None else None

    async def _send(
        self, item: PlannedItem, write: Callable[[OpenItem], Awaitable[Written]]
    ) -> tuple[OpenItem, Written]:
        """Read and write one item when its turn comes; a small one is read before, while others are in flight."""
        size_bytes = item["size_bytes"]
        async with self.run.lake.room(size_bytes) as room:
            while True:
                content = await self._read_ahead(item) if size_bytes <= _AHEAD_BYTES else None
                try:
                    async with room.turn():
                        if content is None:
                            content = await self._open(item)
                        # It may have grown since it was planned; memory is taken by what is to be held now.
                        if room.holds(content.size_bytes):
                            return content, await write(content)
                finally:
                    if content is not None:
                        await content.close()
                size_bytes, content = content.size_bytes, None
                await room.widen(size_bytes)

    async def _read_ahead(self, item: PlannedItem) -> OpenItem:
        content = await self._open(item)
        if content.size_bytes > _AHEAD_BYTES:
            return content
        try:
            return _InMemory(content, await content.read(content.size_bytes) if content.size_bytes else b"")
        except BaseException:
            await content.close()
            raise

    async def _open(self, item: PlannedItem) -> OpenItem:
        # Tried again, what was listed may be another version by now, and asking for the old one fails every time.
        return await self.run.source.open(item["path"], item.get("ref", ""), fresh=self.attempt > 1)

    async def _copy_by_service(self, item: PlannedItem) -> FileRecord | None:
        """Let OneLake fetch a new file by itself, where both sides allow it; None where the bytes have to go through.

        Only where the source promises an MD5, since nobody here sees the bytes.
        """
        if not self.run.job.limits.server_side_copy or self.attempt > 1:
            return None
        source = await self.run.source.copy_source(item["path"], item.get("ref", ""))
        if source is None or not source.md5:
            return None
        try:
            async with self.run.lake.room(0) as room, room.turn():
                written = await self.run.lake.copy(item["path"], source, new=True)
        except Unsupported:
            return None
        except TargetConflict as error:
            if error.code != "target_exists":
                raise
            return None
        return self._done(item, "uploaded", source.etag, written)

    async def _rename(self, item: PlannedItem) -> tuple[FileRecord | None, str]:
        """Follow a rename of the source; a record if that is all there is to do, else what to do instead."""
        moved = item["moved"]
        was = Written(moved["size_bytes"], moved["hash"], moved["etag"])
        try:
            etag = await self.run.lake.move(moved["path"], item["path"], was)
        except (NotFound, TargetConflict):
            # Somebody changed or removed the file, or something else is at its new place: as if nothing were known.
            if await self.run.lake.properties(moved["path"]) is None:
                self.renamed[item["path"]] = ""
            return None, "compare"
        if not moved["same"]:
            self.renamed[item["path"]] = etag
            return None, "replace"
        written = Written(was.size_bytes, was.md5, etag)
        return {**self._done(item, "renamed", item["source_version"], written), "renamed_from": moved["path"]}, ""

    async def _compare(self, item: PlannedItem, found: LakeProperties) -> FileRecord | None:
        """A record if the lake holds the very same bytes, else None."""
        path = item["path"]
        if found.is_directory:
            raise TargetConflict("a folder stands where the file should be", code="path_conflict", subject=path)
        content = await self._open(item)
        try:
            if content.size_bytes != found.size_bytes:
                return None
            own = await _hash_source(content)
            if own != (found.md5 or await hash_lake(self.run, path, found.size_bytes)):
                return None
        finally:
            await content.close()
        # Nothing was here when the run began, so an earlier delivery of this batch wrote it.
        ours = item["action"] == "create" and self._is_new(found)
        written = Written(content.size_bytes, own, found.etag)
        record = self._moved(item, "uploaded" if ours else "skipped", content.version, content.facts, written)
        return {**record, "own": ours or item["own"]}

    async def _remove_leftover(self, item: PlannedItem) -> None:
        """Where an upload was given up, delete the empty file that its beginning left, if it is that."""
        path = item["path"]
        with suppress(MigrationError):
            found = await self.run.lake.properties(path)
            is_empty = found is not None and not found.is_directory and not found.size_bytes and item["size_bytes"]
            if found is not None and is_empty and self._is_new(found) and self._may_leave_empty(item):
                await self.run.lake.delete(path, etag=found.etag)

    def _may_leave_empty(self, item: PlannedItem) -> bool:
        """Whether an upload that broke off leaves an empty file in its place; else what is there is somebody's.

        Put Blob leaves nothing half-way, and what is written in parts is staged.
        """
        return self.run.job.limits.upload_sequence != "put_blob" and item["size_bytes"] <= self.part_bytes

    def _is_new(self, found: LakeProperties) -> bool:
        """Whether a file that was to be created came to be since the run began."""
        began, written_at = self.run.prepared_at, found.modified_at
        return self.lake_known or (began is not None and written_at is not None and written_at >= began)

    async def _delete(self, item: PlannedItem) -> FileRecord:
        path = item["path"]
        if await self.run.source.identity() != self.run.source_identity:
            raise SourceMissing(
                "the source folder is not the one that the run began with, or is empty now; nothing more is deleted. "
                "Check that it is mounted, and start the job again",
                code="source_empty",
                subject="source",
            )
        if await self.run.source.stat(path, item.get("ref", "")) is not None:
            return {**self._untouched(item), "status": "skipped", "error_code": "source_not_gone",
                    "error_detail": "the source has it after all; nothing was deleted",
                    "attempts": self.attempt, "finished_at": self.run.now()}  # fmt: skip
        try:
            await self.run.lake.delete(path, etag=item["etag"])
        except TargetConflict as error:
            if error.code == "target_changed":
                raise TargetConflict(
                    "somebody changed the file in the lake since it was moved, so it was not deleted",
                    code="target_changed", subject=path,
                ) from None  # fmt: skip
            raise
        return {**self._untouched(item), "status": "deleted", "attempts": self.attempt, "finished_at": self.run.now()}

    # -- records -------------------------------------------------------------------------------------------------

    def _moved(
        self,
        item: PlannedItem,
        status: str,
        version: str,
        facts: Mapping[str, str | int | None] | None,
        written: Written,
    ) -> FileRecord:
        record = self._done(item, status, version, written)
        if facts:
            record["source"] = {**record.get("source", {}), **facts}
        return record

    def _done(self, item: PlannedItem, status: str, version: str, written: Written) -> FileRecord:
        return {
            **self._untouched(item), "status": status, "size_bytes": written.size_bytes, "hash": written.md5,
            "hash_kind": "md5", "source_version": version, "etag": written.etag.strip('"'),
            "own": True, "attempts": self.attempt, "finished_at": self.run.now(),
        }  # fmt: skip

    def _failed(self, item: PlannedItem, error: MigrationError) -> FileRecord:
        # Where a file became a folder, what is mirrored deletes the one before the other fits; so do renames, which
        # are all under way in the first attempt.
        clears = (
            isinstance(error, TargetConflict)
            and error.code == "path_conflict"
            and (self.run.job.deleted == "mirror" or (bool(item.get("id")) and self.attempt == 1))
        )
        retry = (isinstance(error, TransientError) or clears) and not self.final
        if retry and isinstance(error, TransientError) and error.retry_after_s:
            self.retry_after_s = max(self.retry_after_s or 0.0, error.retry_after_s)
        return {
            **self._untouched(item), "status": "retrying" if retry else "failed", "attempts": self.attempt,
            "error_code": error.code, "error_detail": error.detail, "finished_at": self.run.now(),
        }  # fmt: skip

    def _untouched(self, item: PlannedItem) -> FileRecord:
        return not_moved(item, f"{self.page}/{self.name}", self.run.job.target.path)

    def _counts(self) -> Counts:
        """What this attempt settled: each record carries the attempt that settled it, so a repeat counts the same."""
        counts = no_counts()
        for record in self.done.values():
            status = record["status"]
            if record["attempts"] != self.attempt or status in ("retrying", "planned"):
                continue
            counts[status] += 1  # type: ignore[literal-required]
            if status in ("uploaded", "skipped", "renamed"):
                counts["bytes_done"] += record["size_bytes"]
        return counts


def _as_listed(item: PlannedItem) -> LakeProperties | None:
    """What the listing showed of the file that the item is compared with, where that is enough."""
    found = item.get("found")
    return LakeProperties(False, found["size_bytes"], found["etag"], found["md5"]) if found is not None else None


class _InMemory:
    """A small item that was read already; implements ``ports.OpenItem``."""

    def __init__(self, content: OpenItem, data: Block) -> None:
        self._content = content
        self._data = data
        self.size_bytes = content.size_bytes
        self.version = content.version

    @property
    def facts(self) -> Mapping[str, str | int | None] | None:
        return self._content.facts

    async def read(self, size_bytes: int) -> Block:
        block, self._data = self._data[:size_bytes], self._data[size_bytes:]
        return block

    async def finish(self) -> None:
        await self._content.finish()

    async def close(self) -> None:
        await self._content.close()


async def _hash_source(content: OpenItem) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    left = content.size_bytes
    while left:
        block = await content.read(min(left, _READ_BLOCK))
        if not block:
            raise SourceChanged("the source file became shorter while it was read")
        digest.update(block)
        left -= len(block)
    await content.finish()
    return digest.hexdigest()


async def hash_lake(run: FilesRun, path: str, size_bytes: int) -> str:
    """MD5 (hex) of the bytes that the lake gives back for a path, where a file of this size should stand."""
    digest = hashlib.md5(usedforsecurity=False)
    async for block in run.lake.read(path, size_bytes):
        digest.update(block)
    return digest.hexdigest()
