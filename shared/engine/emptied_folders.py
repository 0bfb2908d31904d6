"""Folders of the lake that renames and deletions have emptied: removed, unless somebody keeps something in them."""

import asyncio
from collections.abc import Iterable

from shared.engine.catalog import read_part
from shared.engine.files_run import FilesRun
from shared.engine.ledger import open_ledger
from shared.errors import ItemError, MigrationError
from shared.policy.paths import sort_key

# Two calls each; what is left beyond stays, and does no harm.
_MOST_FOLDERS = 5_000
_AT_ONCE = 16


def folders_above(paths: Iterable[str]) -> set[str]:
    """All folders that the paths lie in."""
    found: set[str] = set()
    for path in paths:
        folder = path.rpartition("/")[0]
        while folder and folder not in found:
            found.add(folder)
            folder = folder.rpartition("/")[0]
    return found


async def remove_emptied_folders(run: FilesRun) -> int:
    """Remove what the run's renames and deletions left empty, once they are in the ledger; how many folders.

    Idempotent, and no part of the run's outcome: where the service does not answer, the folders stay.
    """
    if run.job.deleted != "mirror" and all(source.type == "folder" for source, _ in run.job.places()):
        # Nothing is deleted, and a folder does not tell what was renamed.
        return 0
    left = [
        record.get("renamed_from") or record["path"]
        async for record in run.records.records()
        if record["status"] == "deleted" or record.get("renamed_from")
    ]
    emptied = folders_above(left)
    if not emptied:
        return 0
    emptied -= await _in_use(run, emptied)
    return await remove_deepest_first(run, emptied)


async def remove_deepest_first(run: FilesRun, folders: Iterable[str]) -> int:
    """Remove those of the folders that hold nothing; how many there were."""
    by_depth: dict[int, list[str]] = {}
    for folder in sorted(folders, key=lambda one: (-one.count("/"), one))[:_MOST_FOLDERS]:
        by_depth.setdefault(folder.count("/"), []).append(folder)
    places = asyncio.Semaphore(_AT_ONCE)
    is_down = False

    async def remove(folder: str) -> bool:
        nonlocal is_down
        async with places:
            if is_down:
                return False
            try:
                return await run.lake.remove_empty_folder(folder)
            except ItemError:
                return False
            except MigrationError:
                is_down = True
                return False

    removed = 0
    for level in by_depth.values():
        removed += sum(await asyncio.gather(*(remove(folder) for folder in level)))
    return removed


async def _in_use(run: FilesRun, folders: set[str]) -> set[str]:
    """Those of the folders in which the job still has files."""
    store = run.records.store
    ledger = await open_ledger(store, run.job.name, run.pair)
    found: set[str] = set()
    ordered = sorted(folders, key=sort_key)
    first, last = sort_key(ordered[0]), sort_key(ordered[-1])
    for part in ledger.parts:
        # Whatever lies in the last folder begins with its name.
        if sort_key(part.last) < first or (sort_key(part.first) > last and not part.first.startswith(ordered[-1])):
            continue
        found |= folders_above(row["path"] for row in await read_part(store, part)) & folders
    return found
