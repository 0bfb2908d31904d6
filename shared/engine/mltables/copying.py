"""Copy a version's files, and look afterwards whether they have arrived."""

import asyncio
import hashlib
import json
from base64 import b64decode
from collections.abc import Sequence
from typing import Any

from shared.engine.mltables.run import MltableRun
from shared.errors import (
    IntegrityMismatch,
    ItemError,
    MigrationError,
    NotFound,
    TargetConflict,
    TransientError,
    Unsupported,
)
from shared.model.mltable_job import Options
from shared.model.mltable_steps import AssetFile, CopiedFile
from shared.model.steps import Counts, no_counts
from shared.policy.blueprint import BLUEPRINT
from shared.ports import AssetBlobs, SourceItem, Written

_READ_BYTES = 4 * 1024 * 1024
# Above that a file is no "small file" of a hash sample; where all are larger, the smallest are taken.
_SAMPLE_BYTES = 64 * 1024 * 1024
_HASHED_AT_ONCE = 4
_JOURNAL_FILES = 25
# Of what a rollback may delete; what was merely found may be another run's.
_OURS = ("service", "stream")


async def copy_part(run: MltableRun, group: int, version: int, part: int) -> Counts:
    """Copy the files of a part that are not there yet.

    Idempotent: what the journal holds is done, and what was copied after its last page is found at the target.

    Raises:
        TransientError: some files failed in a way that is worth another try; the others are in the journal.
        ItemError: a file cannot be copied.
    """
    document = await run.records.version(group, version)
    options = run.options(document["spec"])
    files = await run.records.files(group, version, part)
    refs = {file["path"]: file["ref"] for file in files}
    done = {
        file["path"]: file for file in await run.records.copied(group, version, part)
        if refs.get(file["path"]) == file["ref"]
    }  # fmt: skip
    waiting = iter([file for file in files if file["path"] not in done])
    failures: list[MigrationError] = []
    counts = no_counts()
    since_journal = 0
    writing = asyncio.Lock()

    async def journal() -> None:
        async with writing:
            await run.records.put_copied(group, version, part, list(done.values()))

    async def work() -> None:
        nonlocal since_journal
        for file in waiting:
            if failures and not isinstance(failures[-1], TransientError):
                return
            try:
                copied = await copy_file(run, document["root"], file, options, may_replace=document["may_replace"])
            except MigrationError as error:
                failures.append(error)
                if len(failures) > options.parallel_copies:
                    return
                continue
            done[file["path"]] = copied
            if copied["how"] != "present":
                counts["bytes_done"] += file["size_bytes"]
            since_journal += 1
            if since_journal >= _JOURNAL_FILES:
                since_journal = 0
                await journal()

    await asyncio.gather(*(work() for _ in range(min(options.parallel_copies, max(1, len(files))))))
    await journal()
    if failures:
        final = [error for error in failures if not isinstance(error, TransientError)]
        raise (final or failures)[0]
    return counts


async def copy_file(run: MltableRun, root: str, file: AssetFile, options: Options, *, may_replace: bool) -> CopiedFile:
    """Bring one file to the target, unless the same is there.

    Args:
        run: The run.
        root: The folder at the target.
        file: Which.
        options: Of the asset.
        may_replace: Whether the file that the plan found there may be written over.

    Raises:
        TargetConflict: other content came to stand there since the plan was made, or must stay.
        MigrationError: of either side.
    """
    source, target = run.source.holding(file), run.target.container
    name = f"{root}/{file['path']}"
    only_over: str | None = None
    if file["there"] is not None:
        # From the plan: this asset's own folder, or one with nothing else in it.
        size, md5, etag = file["there"]
        if size == file["size_bytes"] and md5 and md5 == file["md5"]:
            return _copied(file, Written(size, md5, etag), "present")
        same = await _same_there(source, target, file, name)
        if same is not None:
            return same
        if not may_replace:
            raise TargetConflict(
                f"{name!r} at the target has other content, and its folder is registered; give the asset another "
                "destination_subpath",
                code="folder_taken",
            )
        only_over = etag
    try:
        return await _write(source, target, file, name, only_over, options)
    except TargetConflict:
        # A write whose answer was lost, or another run that copies the same.
        same = await _same_there(source, target, file, name)
        if same is None:
            raise
        return {**same, "how": "found"}


async def check_files(run: MltableRun, group: int, version: int) -> dict[str, Any]:
    """Compare what lies at the target with the plan: count, bytes, and the hash of a sample, read on both sides.

    Beside the sample, what the listing itself tells of every file is compared: its stored MD5, and whether it is still
    the blob that was written. And the source is listed once more: what changed while it was copied is no copy of it.

    Returns:
        Fields of the record, ``checks`` among them: each ``passed``, ``failed``, ``warning`` or ``skipped``.

    Raises:
        IntegrityMismatch: a check failed whose severity is that.
        ItemError: code ``source_changed``.
    """
    document = await run.records.version(group, version)
    options = run.options(document["spec"])
    root = document["root"]
    parts = range(document["parts"])
    files = [file for part in parts for file in await run.records.files(group, version, part)]
    found = {
        path: item for item in await list_items(run.target.container, root)
        if (path := item.path.removeprefix(f"{root}/")) != BLUEPRINT
    }  # fmt: skip
    sizes = [item.size_bytes for item in found.values()]
    copied = await run.records.all_copied(group, version, document["parts"])
    etags = {file["path"]: file["etag"] for file in copied}
    sample = _sample(files, options.hash_sample_files)
    sampled = {file["path"] for file in sample}
    touched = [
        file for file in files
        if (item := found.get(path := file["path"])) and item.version != etags.get(path) and path not in sampled
    ]  # fmt: skip
    mismatches, unread = await _compare_hashes(run, root, [*sample, *touched])
    mismatches = sorted({*mismatches, *(
        file["path"] for file in files
        if file["md5"] and file["path"] in found and stored_md5(found[file["path"]]) not in ("", file["md5"])
    )})  # fmt: skip
    moved = [one for one in copied if one["how"] != "present"]
    checks = {
        "file_count": _verdict(len(found) == len(files), options.checks.file_count),
        "total_bytes": _verdict(sum(sizes) == sum(file["size_bytes"] for file in files), options.checks.total_bytes),
        "hash_sample": _verdict(not mismatches, options.checks.hash_sample) if sample or mismatches else "skipped",
    }
    warnings = list(document["record"]["warnings"])
    if unread:
        warnings.append(f"{len(unread)} files of the hash sample could not be read: {', '.join(unread[:5])}")
        checks["hash_sample"] = checks["hash_sample"] if mismatches else "warning"
    record = {
        "dest_file_count": len(found), "dest_bytes": sum(sizes),
        "hash_sample_count": len(sample) + len(touched) - len(unread),
        "hash_mismatches": len(mismatches), "checks": checks, "warnings": warnings, "files_copied": len(moved),
        "files_by_service": sum(one["how"] == "service" for one in moved),
        "bytes_copied": sum(one["size_bytes"] for one in moved), "skipped_existing": not moved,
    }  # fmt: skip
    document["record"] |= record
    await run.records.save(run.records.version_key(group, version), document)
    _raise_failed(document["record"], files, {path: item.size_bytes for path, item in found.items()}, mismatches)
    await _assert_unchanged(run, document)
    return record


async def assert_still_there(run: MltableRun, document: dict[str, Any]) -> None:
    """That what is registered now is what was checked: another run's rollback may have come between.

    Raises:
        IntegrityMismatch: files went, or came.
    """
    root, record = document["root"], document["record"]
    there = {item.path: item.size_bytes for item in await list_items(run.target.container, root)}
    blueprint = there.pop(f"{root}/{BLUEPRINT}", None)
    if blueprint is None or (len(there), sum(there.values())) != (record["dest_file_count"], record["dest_bytes"]):
        raise IntegrityMismatch(
            f"files in {root!r} went or came after they were checked, before the version was registered; start again"
        )


async def _assert_unchanged(run: MltableRun, document: dict[str, Any]) -> None:
    store = next(one for one in run.source.every_store if one.name == document["home"]["store"])
    blobs = run.source.blobs(store, store.container)
    if source_state(await list_items(blobs, document["home"]["root"])) != document["source_state"]:
        raise ItemError(
            "files of the asset were written, added or deleted in the source while it was copied; retry-failed, or "
            "another run, copies it as it is by then",
            code="source_changed",
        )


def source_state(listed: Sequence[SourceItem]) -> str:
    """A digest that differs once any blob was written, added or deleted."""
    made = hashlib.sha256()
    for item in sorted(listed, key=lambda one: one.path.encode("utf-8", "surrogatepass")):
        made.update(json.dumps([item.path, item.version]).encode())
    return made.hexdigest()


def stored_md5(item: SourceItem) -> str:
    """What the account keeps as MD5 of a blob, as hex; empty where it keeps none, or one that may be stale."""
    facts = item.facts or {}
    stored = str(facts.get("content_md5") or "")
    return b64decode(stored).hex() if stored and facts.get("blob_type") == "BlockBlob" else ""


async def list_items(blobs: AssetBlobs, folder: str) -> list[SourceItem]:
    """Every blob below a folder, under its whole name."""
    found: list[SourceItem] = []
    cursor: str | None = None
    while True:
        page = await blobs.list_below(f"{folder}/" if folder else "", cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


async def roll_back(run: MltableRun, group: int, version: int) -> int:
    """Delete what this version's copy wrote, each only if it is still that very blob; how many were deleted."""
    document = await run.records.version(group, version)
    copied = await run.records.all_copied(group, version, document["parts"])
    target = run.target.container
    deleted = 0
    wrote = [(f"{document['root']}/{one['path']}", one["etag"]) for one in copied if one["how"] in _OURS]
    if document.get("blueprint_etag"):
        wrote.append((f"{document['root']}/{BLUEPRINT}", document["blueprint_etag"]))
    for name, etag in wrote:
        deleted += await target.delete(name, etag=etag)
    await run.records.forget_copied(group, version, document["parts"])
    return deleted


# -- parts -------------------------------------------------------------------------------------------------------------


async def _write(
    source: AssetBlobs, target: AssetBlobs, file: AssetFile, name: str, only_over: str | None, options: Options
) -> CopiedFile:
    if options.server_side_copy == "auto" and file["size_bytes"]:
        grant = await source.copy_source(file["name"], file["ref"])
        if grant is not None:
            try:
                written = await target.copy(name, grant, only_over=only_over)
            except Unsupported:
                pass
            else:
                return _copied(file, written, "service")
    content = await source.open(file["name"], file["ref"])
    try:
        written = await target.put(name, content, only_over=only_over)
    finally:
        await content.close()
    if file["md5"] and written.md5 != file["md5"]:
        raise IntegrityMismatch(f"what was read of {file['name']!r} is not what its Content-MD5 says")
    return _copied(file, written, "stream")


def _copied(file: AssetFile, written: Written, how: str) -> CopiedFile:
    return {"path": file["path"], "size_bytes": written.size_bytes, "md5": written.md5, "etag": written.etag,
            "how": how, "ref": file["ref"]}  # fmt: skip


async def _same_there(source: AssetBlobs, target: AssetBlobs, file: AssetFile, name: str) -> CopiedFile | None:
    """The file at the target, if it has the source's content: by size and stored MD5, else by reading both."""
    found = await target.stat(name)
    if found is None or found.size_bytes != file["size_bytes"]:
        return None
    there = stored_md5(found)
    if not there or not file["md5"]:
        there = await hash_of(target, name, found.ref)
        own = file["md5"] or await hash_of(source, file["name"], file["ref"])
    else:
        own = file["md5"]
    if own != there:
        return None
    return _copied(file, Written(found.size_bytes, own, found.version), "present")


async def hash_of(blobs: AssetBlobs, name: str, ref: str) -> str:
    """MD5 of the content, read."""
    content = await blobs.open(name, ref)
    made = hashlib.md5(usedforsecurity=False)
    try:
        left = content.size_bytes
        while left:
            block = await content.read(min(left, _READ_BYTES))
            await asyncio.to_thread(made.update, block)
            left -= len(block)
        await content.finish()
    finally:
        await content.close()
    return made.hexdigest()


def _sample(files: list[AssetFile], count: int) -> list[AssetFile]:
    small = [file for file in files if file["size_bytes"] <= _SAMPLE_BYTES][:count]
    return small or sorted(files, key=lambda file: file["size_bytes"])[: min(count, 1)]


async def _compare_hashes(run: MltableRun, root: str, sample: list[AssetFile]) -> tuple[list[str], list[str]]:
    """Paths whose content differs, and those that could not be read."""
    mismatches: list[str] = []
    unread: list[str] = []
    places = asyncio.Semaphore(_HASHED_AT_ONCE)

    async def compare(file: AssetFile) -> None:
        async with places:
            try:
                own = await hash_of(run.source.holding(file), file["name"], file["ref"])
                there = await hash_of(run.target.container, f"{root}/{file['path']}", "")
            except NotFound:
                mismatches.append(file["path"])
                return
            except TransientError as error:
                if error.code != "integrity_mismatch":
                    raise
                # What was read is not what the account says that it keeps.
                mismatches.append(file["path"])
                return
            except ItemError:
                unread.append(file["path"])
                return
            if own != there:
                mismatches.append(file["path"])

    await asyncio.gather(*(compare(file) for file in sample))
    return sorted(mismatches), sorted(unread)


def _verdict(is_good: bool, severity: str) -> str:
    return "passed" if is_good else "failed" if severity == "fail" else "warning"


def _raise_failed(record: dict[str, Any], files: list[AssetFile], found: dict[str, int], mismatches: list[str]) -> None:
    checks = record["checks"]
    if "failed" not in checks.values():
        return
    wanted = {file["path"]: file["size_bytes"] for file in files}
    wrong = [f"missing: {path}" for path in wanted if path not in found]
    wrong += [f"not of the source: {path}" for path in found if path not in wanted]
    wrong += [f"other size: {path}" for path in wanted if path in found and found[path] != wanted[path]]
    wrong += [f"other content: {path}" for path in mismatches]
    failed = [name for name, verdict in checks.items() if verdict == "failed"]
    raise IntegrityMismatch(
        f"what lies at the target is not what the source has ({', '.join(failed)}): {'; '.join(wrong[:5])}"
        + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
    )
