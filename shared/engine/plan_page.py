"""Planning: one page of the source becomes work packages and settled records."""

import asyncio

from shared.engine.catalog import Row
from shared.engine.files_run import FilesRun
from shared.engine.ledger import open_ledger
from shared.engine.run_records import RunRecords
from shared.engine.survey import BEFORE, open_survey
from shared.errors import AccessDenied, SourceMissing
from shared.model.job import Limits
from shared.model.records import FileRecord, MovedFrom, PlannedItem
from shared.model.steps import Counts, no_counts
from shared.policy.batching import partition
from shared.policy.copying import LakeEntry, LedgerEntry, decide
from shared.policy.paths import printable, sort_key, too_long_reason, unmappable_reason
from shared.ports import Moved, SourceItem, SourcePage, SourceTree

PAGE_ITEMS = 5000
# With the batches of a page as one sub-orchestration's activities, its history stays far below 1,000 tasks.
PAGE_BATCHES = 200
MIB = 1024 * 1024
_WRITES_AT_ONCE = 8
# How long a package may take that is held up by nothing but the job's own cap.
ACTIVITY_S = 300


class FailedItems:
    """The failed items of a run's earlier rounds, as a source to plan from."""

    def __init__(self, source: SourceTree, records: RunRecords) -> None:
        self._source = source
        self._records = records

    async def list_page(self, cursor: str | None, limit: int) -> SourcePage:
        """Failed items after the cursor, each as the source has it now."""
        after = sort_key(cursor) if cursor is not None else None
        items: list[SourceItem] = []
        async for record in self._records.records():
            if record["status"] != "failed" or (after is not None and sort_key(record["path"]) <= after):
                continue
            if len(items) == limit:
                return SourcePage(items, items[-1].path)
            if record["error_code"] == "folder_unreadable":
                # Not one item but all that lies below it, which only a walk can find.
                problem = ("folder_unreadable", "could not be listed; start the job again once it can be read")
                items.append(SourceItem(record["path"], 0, "", problem))
            else:
                items.append(await self._look(record["path"]))
        return SourcePage(items, None)

    async def _look(self, path: str) -> SourceItem:
        try:
            found = await self._source.stat(path)
        except AccessDenied as error:
            return SourceItem(path, 0, "", (error.code, error.detail))
        return found or SourceItem(path, 0, "", ("source_gone", "the source file is gone"))


async def plan_page(run: FilesRun, page: str, round_number: int, cursor: str | None) -> tuple[int, Counts, str | None]:
    """Plan the items after ``cursor``.

    Idempotent until the first of its batches is transferred: a repeat writes the page anew.

    Args:
        run: The run.
        page: The page's name.
        round_number: 1 for the source as a whole; later rounds plan what failed in the earlier ones.
        cursor: Where the page before ended, or None.

    Returns:
        The number of batches, the page's counts, and the cursor to go on with (None at the end).

    Raises:
        SourceMissing: the source as a whole cannot be read, or is empty where a mirror would delete everything.
    """
    records = run.records
    first_round = round_number == 1
    source = run.source if first_round else FailedItems(run.source, records)
    if first_round:
        _, listed = await asyncio.gather(_clear(records, page), source.list_page(cursor, PAGE_ITEMS))
    else:
        # Failed items are found by the records, of which those of an earlier delivery are no part.
        await _clear(records, page)
        listed = await source.list_page(cursor, PAGE_ITEMS)
    if run.ledger is None:
        run.ledger = await open_ledger(records.store, run.job.name, run.pair)
    mirror = run.job.deleted == "mirror"
    is_empty = first_round and listed.begins and not listed.items and listed.gone is None
    if is_empty and mirror and await run.ledger.between(cursor, listed.cursor):
        raise SourceMissing(
            "the source is empty, but this job has moved files from it before; deleted: mirror would delete them all. "
            "Check that it is mounted. If it is meant to be empty: delete what the job has moved from it in the lake, "
            f"and the job's memory in the run store (jobs/{run.job.name}/ledger)",
            code="source_empty",
            subject="source",
        )
    planned, settled = await _sort_out(run, page, listed, cursor, first_round=first_round)
    limits = run.job.limits
    batches = partition([item["size_bytes"] for item in planned], limits.batch_items, _batch_bytes(limits))
    following = listed.cursor
    if len(batches) > PAGE_BATCHES:
        batches = batches[:PAGE_BATCHES]
        following = planned[batches[-1][1] - 1]["path"]
        planned = planned[: batches[-1][1]]
        settled = [record for record in settled if sort_key(record["path"]) <= sort_key(following)]
    if run.job.dry_run:
        settled += [_settled(run, page, _item(item), "planned", action=_action(item)) for item in planned]
        settled.sort(key=lambda record: sort_key(record["path"]))
        batches = []
    numbered = enumerate(batches)

    async def write() -> None:
        for number, (start, end) in numbered:
            await records.put_batch(page, number, planned[start:end])

    await asyncio.gather(*(write() for _ in range(_WRITES_AT_ONCE)))
    if settled:
        await records.put_results(page, "settled", settled)
    counts = no_counts()
    counts["planned"] = len(planned) + len(settled) if not run.job.dry_run else len(settled)
    counts["bytes_planned"] = sum(item["size_bytes"] for item in planned)
    counts["skipped"] = sum(record["status"] == "skipped" for record in settled)
    counts["failed"] = sum(record["status"] == "failed" for record in settled)
    return len(batches), counts, following


async def _clear(records: RunRecords, page: str) -> None:
    """Remove what an earlier delivery has planned of a page."""
    folders = [records.key(f"plan/{page}"), records.key(f"results/{page}")]
    await records.store.delete([key for folder in folders for key in await records.store.list(folder)])


async def _sort_out(
    run: FilesRun, page: str, listed: SourcePage, cursor: str | None, *, first_round: bool
) -> tuple[list[PlannedItem], list[FileRecord]]:
    """Decide for each item of a page: to be moved, or settled already."""
    assert run.ledger is not None
    job = run.job
    last = listed.cursor if listed.cursor is not None else (None if first_round else _last(listed))
    remembered = await run.ledger.between(cursor, last)
    lake_known = job.mode == "full" and first_round
    if lake_known and run.survey is None:
        run.survey = await open_survey(run.records, BEFORE)
    there = await run.survey.between(cursor, last) if lake_known and run.survey else {}
    planned: list[PlannedItem] = []
    settled: list[FileRecord] = []
    moved = listed.moved or {}
    for item in listed.items:
        memory = remembered.pop(item.path, None)
        if not run.wanted(item.path):
            continue
        if item.problem is not None:
            code, detail = item.problem
            if code == "source_gone" and memory is not None and job.deleted == "mirror" and _is_ours(memory):
                planned.append(_deletion(run, item.path, memory["etag"]))
                continue
            settled.append(_settled(run, page, item, "skipped" if item.skip else "failed", code=code, detail=detail))
            continue
        reason = unmappable_reason(item.path) or too_long_reason(run.target(item.path))
        if reason:
            settled.append(_settled(run, page, item, "failed", code="unmappable_path", detail=f"the path {reason}"))
            continue
        ledger = (
            LedgerEntry(memory["size_bytes"], memory["source_version"], memory["hash"], memory["etag"], memory["own"])
            if memory
            else None
        )
        found = there.get(item.path)
        lake = LakeEntry(found["size_bytes"], found["etag"]) if found else None
        action = decide(item.size_bytes, item.version, ledger, lake, lake_known=lake_known, existing=job.existing)
        if action == "skip":
            assert ledger is not None
            settled.append(_settled(run, page, item, "skipped", md5=ledger.hash, etag=ledger.etag, own=ledger.own))
        elif action == "fail":
            settled.append(
                _settled(run, page, item, "failed", code="target_exists", detail="another file is there already")
            )
        else:
            todo: PlannedItem = {
                "path": item.path, "size_bytes": item.size_bytes, "source_version": item.version, "action": action,
                "etag": ledger.etag if ledger else "",
                "own": ledger is not None and ledger.own and (not lake_known or (
                    lake is not None and lake.etag == ledger.etag)),
            }  # fmt: skip
            if action == "compare" and found is not None and found.get("md5"):
                todo["found"] = {"etag": found["etag"], "md5": found["md5"], "size_bytes": found["size_bytes"]}
            if action == "create" and not lake_known and item.path in moved:
                todo |= {"action": "rename", "own": True, "moved": _moved(moved[item.path])}
            if item.id or item.ref:
                todo |= {"id": item.id, "ref": item.ref}
            if item.facts:
                todo["facts"] = dict(item.facts)
            planned.append(todo)
    if job.deleted == "mirror" and first_round:
        # What the ledger remembers and the source does not have. The transfer asks the source once more before it
        # deletes. What the job only found there with the same content was never its to delete.
        gone = dict.fromkeys(remembered, "") if listed.gone is None else listed.gone
        planned += [
            _deletion(run, path, remembered[path]["etag"], ref)
            for path, ref in gone.items()
            if path in remembered and run.wanted(path) and _is_ours(remembered[path])
        ]
        planned.sort(key=lambda item: sort_key(item["path"]))
    return planned, settled


def _item(planned: PlannedItem) -> SourceItem:
    return SourceItem(planned["path"], planned["size_bytes"], planned["source_version"], facts=planned.get("facts"))


def _action(planned: PlannedItem) -> str:
    """What is told of an item that is not touched: one that was renamed and changed has to be read as well."""
    moved = planned.get("moved")
    return "replace" if moved is not None and not moved["same"] else planned["action"]


def _last(listed: SourcePage) -> str | None:
    return listed.items[-1].path if listed.items else None


def _deletion(run: FilesRun, path: str, etag: str, ref: str = "") -> PlannedItem:
    item: PlannedItem = {"path": path, "size_bytes": 0, "source_version": "", "action": "delete", "etag": etag,
                         "own": True, "ref": ref}  # fmt: skip
    name = run.source.relative(path)
    return item if path.endswith(name) else {**item, "facts": {"source_path": name}}


def _batch_bytes(limits: Limits) -> int:
    """Bytes of a package: fewer under a cap that all packages of a worker share, so that none outlives its activity."""
    if limits.bandwidth is None:
        return limits.batch_bytes
    return max(MIB, min(limits.batch_bytes, limits.bandwidth * ACTIVITY_S // limits.parallel_batches))


def _moved(moved: Moved) -> MovedFrom:
    return {"path": moved.path, "etag": moved.etag, "hash": moved.hash, "size_bytes": moved.size_bytes,
            "same": moved.same}  # fmt: skip


def _is_ours(row: Row) -> bool:
    return bool(row["own"] and row["etag"])


def _settled(
    run: FilesRun,
    page: str,
    item: SourceItem,
    status: str,
    *,
    md5: str | None = None,
    etag: str | None = None,
    own: bool = False,
    code: str | None = None,
    detail: str | None = None,
    action: str | None = None,
) -> FileRecord:
    record: FileRecord = {
        "path": item.path, "target": run.target(printable(item.path)), "status": status,
        "size_bytes": item.size_bytes, "hash": md5, "hash_kind": "md5" if md5 else None,
        "source_version": item.version or None, "etag": etag, "own": own, "attempts": 0, "error_code": code,
        "error_detail": detail, "batch": page, "finished_at": run.now(),
    }  # fmt: skip
    if action is not None:
        record["action"] = action
    if item.facts:
        record["source"] = dict(item.facts)
    if item.id:
        record |= {"source_id": item.id, "source_ref": item.ref}
    return record
