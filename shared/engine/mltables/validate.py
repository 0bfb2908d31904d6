"""The load test: the head of the table, loaded from the target's files and from the source's, and compared.

``mltable`` reads clouds with identities of its own and hangs where it cannot; so the blueprint and as many files as its
head needs are fetched with our credential into a folder, and it loads that.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shared.engine.mltables import excerpt
from shared.engine.mltables.copying import assert_still_there
from shared.engine.mltables.run import MltableRun
from shared.engine.mltables.scratch import scratch_folder
from shared.errors import ItemError
from shared.model.mltable_job import Validation
from shared.model.mltable_steps import AssetFile
from shared.policy.blueprint import Blueprint, Store, carried_path, covers, local_text, locate, parse_blueprint
from shared.ports import AssetBlobs, LoadedTable

# Fetched at once where they are small, since loading costs more than fetching a little more.
_FIRST_FILES = 32
_FIRST_BYTES = 16 * 1024 * 1024
_MOST_FILES = 512
_READ_BYTES = 4 * 1024 * 1024
_PACKED = (".gz", ".bz2", ".xz", ".zip", ".zst")


async def validate_version(run: MltableRun, group: int, version: int) -> dict[str, Any]:
    """Fields of the record: ``validation_loaded``, ``rows``, ``checks`` and ``warnings``.

    Raises:
        ItemError: code ``load_failed`` or ``tables_differ``, where the job's checks say so; ``integrity_mismatch``.
    """
    document = await run.records.version(group, version)
    await assert_still_there(run, document)
    options = run.options(document["spec"])
    wanted = options.validation
    record = document["record"]
    checks, warnings = dict(record["checks"]), list(record["warnings"])
    if not wanted.enabled:
        return {"validation_loaded": None, "checks": {**checks, "load": "skipped", "comparison": "skipped"}}
    blueprint = await asyncio.to_thread(parse_blueprint, document["target_text"].encode())
    source_print = await asyncio.to_thread(parse_blueprint, document["source_text"].encode())
    every = run.source.every_store
    home = run.source.home(
        document["home"]["root"], next(one for one in every if one.name == document["home"]["store"])
    )
    stores = [Store(one.name, one.account, one.container) for one in every]
    relatives: list[str | None] = [
        place.relative if place.kind == "inside"
        else None if place.kind == "public_url"
        else carried_path(place, home)
        for place in locate(source_print, home, run.storage_urls, stores=stores)
    ]  # fmt: skip
    files = await _files_of(run, group, version, document["parts"], blueprint, relatives)
    if not files or all(relative is None for relative in relatives):
        warnings.append("the table could not be loaded for a test: none of its files lies in the target's folder")
        return {"validation_loaded": None, "warnings": warnings,
                "checks": {**checks, "load": "warning", "comparison": "skipped"}}  # fmt: skip
    fitting = [file for file in files if file["size_bytes"] <= wanted.fetch]
    try:
        if fitting:
            loaded, before, count = await _load_both(run, document, blueprint, relatives, fitting, wanted)
        else:
            loaded, before = await _load_beginning(run, document, blueprint, relatives, files[0], wanted)
            count = 1
            warnings.append(f"no file of the table has at most {wanted.fetch:,} bytes; loaded was the beginning of one")
    except _NotHere as error:
        return {"validation_loaded": None, "warnings": [*warnings, str(error)],
                "checks": {**checks, "load": "warning", "comparison": "skipped"}}  # fmt: skip
    fields: dict[str, Any] = {"rows": loaded["rows"], "validation_loaded": not loaded["error"], "warnings": warnings}
    problem = loaded["error"]
    if not problem and wanted.require_rows and not loaded["rows"]:
        problem = f"it has no rows in its first {count} files"
    if problem:
        also = "; the source's does not load either" if before["error"] else ""
        checks |= {"load": "failed" if options.checks.load == "fail" else "warning", "comparison": "skipped"}
        if checks["load"] == "failed":
            raise ValidationFailed(f"the table does not load from the target: {problem}{also}", "load_failed",
                                   {**fields, "checks": checks})  # fmt: skip
        warnings.append(f"the table does not load from the target: {problem}{also}")
        return {**fields, "checks": checks}
    difference = _difference(before, loaded, is_random=blueprint.is_random)
    checks |= {"load": "passed", "comparison": "passed"}
    if difference:
        checks["comparison"] = "failed" if options.checks.comparison == "fail" else "warning"
        if checks["comparison"] == "failed":
            raise ValidationFailed(f"source and target load differently: {difference}", "tables_differ",
                                   {**fields, "checks": checks})  # fmt: skip
        warnings.append(f"source and target load differently: {difference}")
    return {**fields, "checks": checks}


class _NotHere(Exception):
    """The load test itself cannot be done; nothing is said about the table. The text names the remedy."""


class ValidationFailed(ItemError):
    """Carries what is known of the table into the record."""

    def __init__(self, detail: str, code: str, fields: dict[str, Any]) -> None:
        super().__init__(detail, code=code)
        self.fields = fields


async def _files_of(
    run: MltableRun, group: int, version: int, parts: int, blueprint: Blueprint, relatives: list[str | None]
) -> list[AssetFile]:
    """The files that the blueprint means, each entry's in path order, a few of each entry before more of any."""
    every = [file for part in range(parts) for file in await run.records.files(group, version, part)]
    there = {file["path"]: file for file in every}
    by_entry = [
        [] if relative is None
        else [there[relative]] if entry.kind == "file" and relative in there
        else [file for file in every if entry.kind != "file" and covers(entry.kind, relative, file["path"])]
        for entry, relative in zip(blueprint.paths, relatives, strict=True)
    ]  # fmt: skip
    found: dict[str, AssetFile] = {}
    for position in range(max((len(files) for files in by_entry), default=0)):
        for files in by_entry:
            if position < len(files):
                found.setdefault(files[position]["path"], files[position])
    return list(found.values())


async def _load_both(
    run: MltableRun,
    document: dict[str, Any],
    blueprint: Blueprint,
    relatives: list[str | None],
    files: list[AssetFile],
    wanted: Validation,
) -> tuple[LoadedTable, LoadedTable, int]:
    """The target's table and the source's, with more files until the head is full, nothing is left, or enough is."""
    count = len(_within(files[:_FIRST_FILES], _FIRST_BYTES))
    with scratch_folder() as folder:
        mine, theirs = folder / "target", folder / "source"
        fetched = 0
        while True:
            chosen = _within(files[:count], wanted.fetch)
            with _on_this_machine():
                await _fetch(run, chosen[fetched:], document["root"], mine, theirs)
            fetched = len(chosen)
            names = [file["path"] for file in chosen]
            text = local_text(blueprint, relatives, names)
            assert text is not None
            loaded, before = await _load(run, text, [mine, theirs], wanted)
            is_full = loaded["rows"] >= max(wanted.head_rows, wanted.count_rows)
            if loaded["error"] or before["error"] or is_full or count >= min(len(files), _MOST_FILES):
                return loaded, before, fetched
            if len(chosen) < count:
                return loaded, before, fetched
            count = min(count * 4, len(files), _MOST_FILES)


async def _load(run: MltableRun, text: str, folders: list[Path], wanted: Validation) -> list[LoadedTable]:
    for folder in folders:
        await asyncio.to_thread(Path(folder, "MLTable").write_text, text, encoding="utf-8")
    return await run.loader.load(
        [str(folder) for folder in folders], head_rows=wanted.head_rows, count_rows=wanted.count_rows,
        timeout_s=wanted.timeout_s, memory_bytes=wanted.memory,
    )  # fmt: skip


def _within(files: list[AssetFile], most_bytes: int) -> list[AssetFile]:
    """As many as fit, at least the first."""
    found: list[AssetFile] = []
    left = most_bytes
    for file in files:
        if found and file["size_bytes"] > left:
            break
        found.append(file)
        left -= file["size_bytes"]
    return found


@contextmanager
def _on_this_machine() -> Iterator[None]:
    """What its file system refuses says nothing of the table."""
    try:
        yield
    except OSError as error:
        raise _NotHere(
            f"the load test cannot keep the table's files on this machine ({error.strerror or error}); see that its "
            "temporary folder has room, or set validation.enabled: false for this asset"
        ) from None


async def _fetch(run: MltableRun, files: list[AssetFile], root: str, mine: Path, theirs: Path) -> None:
    for file in files:
        await _download(run.target.container, f"{root}/{file['path']}", "", _below(mine, file["path"]))
        await _download(run.source.holding(file), file["name"], file["ref"], _below(theirs, file["path"]))


async def _load_beginning(
    run: MltableRun,
    document: dict[str, Any],
    blueprint: Blueprint,
    relatives: list[str | None],
    file: AssetFile,
    wanted: Validation,
) -> tuple[LoadedTable, LoadedTable]:
    """The head of a file that is too large to be fetched as a whole, from both sides.

    Raises:
        _NotHere: it has none that could be told from a broken one.
    """
    too_large = _NotHere(
        f"every file of the table is larger than validation.fetch ({wanted.fetch:,} bytes), {file['path']!r} has "
        f"{file['size_bytes']:,}, and its beginning alone is no table; raise it to have the table loaded for a test"
    )
    is_parquet = blueprint.reader == "read_parquet"
    if not is_parquet and (not blueprint.reads_lines or file["path"].lower().endswith(_PACKED)):
        raise too_large
    rows = max(wanted.head_rows, wanted.count_rows)
    with scratch_folder() as folder:
        folders = [folder / "target", folder / "source"]
        sides = [(run.target.container, f"{document['root']}/{file['path']}", ""),
                 (run.source.holding(file), file["name"], file["ref"])]  # fmt: skip
        for (blobs, name, ref), below in zip(sides, folders, strict=True):
            to = _below(below, file["path"])
            with _on_this_machine():
                to.parent.mkdir(parents=True, exist_ok=True)
                try:
                    if is_parquet:
                        rows = min(rows, await excerpt.parquet(blobs, name, ref, to, wanted.fetch, rows))
                    else:
                        await excerpt.lines(blobs, name, ref, to, wanted.fetch)
                except excerpt.TooLarge:
                    raise too_large from None
                except excerpt.Unreadable as error:
                    # What is there is for the engine to judge.
                    to.write_text(str(error), encoding="utf-8")
        text = local_text(blueprint, relatives, [file["path"]])
        assert text is not None
        head = wanted.model_copy(update={"head_rows": min(wanted.head_rows, rows), "count_rows": rows})
        loaded, before = await _load(run, text, folders, head)
    if is_parquet and loaded["error"] and before["error"]:
        # A filter may have asked for rows behind the beginning.
        raise too_large
    return loaded, before


def _below(folder: Path, path: str) -> Path:
    """Where a file goes in the folder; a name must not lead out of it."""
    if any(part in ("", ".", "..") for part in path.split("/")) or "\x00" in path:
        raise _NotHere(
            f"the load test cannot have a file {path!r} on this machine; set validation.enabled: false for this asset"
        )
    return Path(folder, path)


async def _download(blobs: AssetBlobs, name: str, ref: str, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    content = await blobs.open(name, ref)
    try:
        with to.open("wb") as file:
            left = content.size_bytes
            while left:
                block = await content.read(min(left, _READ_BYTES))
                await asyncio.to_thread(file.write, block)
                left -= len(block)
        await content.finish()
    finally:
        await content.close()


def _difference(before: LoadedTable, after: LoadedTable, *, is_random: bool) -> str:
    """What is not the same, in words without values; empty if nothing is."""
    if before["error"]:
        return f"the source's table does not load: {before['error']}"
    if before["columns"] != after["columns"]:
        return f"columns are {before['columns']} and {after['columns']}"
    if is_random:
        return ""
    if before["rows"] != after["rows"]:
        return f"{before['rows']} and {after['rows']} rows"
    if before["head_digest"] != after["head_digest"]:
        return "the values of the first rows"
    return "" if before["sample_digest"] == after["sample_digest"] else "the values of later rows"
