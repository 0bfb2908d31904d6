"""What a job has already moved: the memory that makes a rerun skip and an incremental load small."""

import json
from collections.abc import AsyncIterator

from shared.engine.catalog import Catalog, Change, Part, apply_changes, decode_index, encode_index
from shared.engine.run_records import RunRecords
from shared.policy.paths import sort_key
from shared.ports import RunStore

_REMEMBERED = {"uploaded", "skipped", "renamed"}
# Codes that verification gives; see shared/engine/verify_page.py.
_DAMAGED = {"missing_in_lake", "size_mismatch", "integrity_mismatch"}
# Also where somebody changed the job's file: it is not the job's any more.
_DOUBTED = {"not_verified", "target_changed"}


def _index_key(job: str) -> str:
    return f"jobs/{job}/ledger/index.json"


def pair_of(source: str, target: str) -> str:
    """What a ledger is about. A job of the same name with another source or target has nothing to remember."""
    return f"{source} -> {target}"


async def open_ledger(store: RunStore, job: str, pair: str) -> Catalog:
    """The ledger as the last committed run left it; empty for a new job, or one that moves between other places now."""
    return Catalog(store, await _parts(store, job, pair))


async def _parts(store: RunStore, job: str, pair: str) -> list[Part]:
    data = await store.get(_index_key(job))
    return decode_index(data) if data is not None and json.loads(data)["pair"] == pair else []


async def commit_ledger(records: RunRecords, job: str) -> int:
    """Fold a run's records into its job's ledger.

    Idempotent: the same records applied again give the same rows. The index is switched in one write, so a kill
    leaves the old ledger or the new one. A run that never got to know its target has moved nothing and changes nothing.

    Returns:
        Rows of the new ledger.
    """
    store = records.store
    prepared = await records.load("prepared.json")
    if prepared is None:
        await store.put(records.key("folded"), b"{}")
        return 0
    old = await _parts(store, job, prepared["pair"])
    # A part's name is never used twice, so a repeat of this commit does not overwrite a part that the index names.
    used = {part.key for part in old}
    attempt = 0
    while any(key.startswith(f"jobs/{job}/ledger/{records.run}-{attempt}-") for key in used):
        attempt += 1
    new = await apply_changes(store, old, _changes(records), f"jobs/{job}/ledger/{records.run}-{attempt}")
    await store.put(_index_key(job), encode_index(new, pair=prepared["pair"]))
    named = {part.key for part in new} | {_index_key(job)}
    await store.delete([key for key in await store.list(f"jobs/{job}/ledger") if key not in named])
    await records.store.put(records.key("folded"), b"{}")
    return sum(part.rows for part in new)


async def _changes(records: RunRecords) -> AsyncIterator[Change]:
    """What the records say, with the paths that renamed files have left, in path order."""
    # Only what knows its items by their ids follows renames; for the others this would be one reading more.
    prepared = await records.load("prepared.json") or {}
    follows = any(not source.get("real_path") for source in prepared.get("sources", [{}]))
    left = sorted(
        [record["renamed_from"] async for record in records.records() if record.get("renamed_from")] if follows else [],
        key=sort_key,
    )
    waiting = 0
    async for change in _recorded(records):
        while waiting < len(left) and sort_key(left[waiting]) < sort_key(change[0]):
            yield left[waiting], None
            waiting += 1
        if waiting < len(left) and left[waiting] == change[0]:
            # Another file stands there now.
            waiting += 1
        yield change
    for path in left[waiting:]:
        yield path, None


async def _recorded(records: RunRecords) -> AsyncIterator[Change]:
    async for record in records.records():
        if record["status"] == "deleted":
            yield record["path"], None
        elif record["status"] in _REMEMBERED and record.get("hash") and record.get("source_version"):
            yield (
                record["path"],
                {
                    "path": record["path"],
                    "size_bytes": record["size_bytes"],
                    "source_version": record["source_version"],
                    "hash": record["hash"],
                    "etag": record.get("etag") or "",
                    "own": record.get("own", record["status"] == "uploaded"),
                    "moved_at": record["finished_at"],
                    "source_id": record.get("source_id", ""),
                    "source_ref": record.get("source_ref", ""),
                },
            )
        elif record["error_code"] in _DAMAGED or (record.get("renamed_from") and record.get("etag")):
            # No hash and no version: to be moved anew, whatever the lake says of it. The ETag still guards a delete.
            # So what was renamed in the lake, and then failed.
            yield (
                record["path"],
                {
                    "path": record["path"],
                    "size_bytes": record["size_bytes"],
                    "source_version": "",
                    "hash": "",
                    "etag": record.get("etag") or "",
                    "own": record.get("own", True),
                    "moved_at": record["finished_at"],
                    "source_id": record.get("source_id", ""),
                    "source_ref": record.get("source_ref", ""),
                },
            )
        elif record["error_code"] in _DOUBTED:
            # What is in the lake is not what the ledger remembers, so it must not be skipped the next time.
            yield record["path"], None


async def fold_unfinished(records: RunRecords, job: str) -> bool:
    """Take over what an earlier run moved but did not get to commit, because it was terminated or its host died.

    Returns:
        Whether there was such a thing.
    """
    if await records.load("run.json") is None or await records.load("folded") is not None:
        return False
    document = await records.load("run.json")
    if document is None or document["spec"].get("dry_run"):
        return False
    await commit_ledger(records, job)
    return True
