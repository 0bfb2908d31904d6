"""A table as a folder of Parquet files.

::

    {run}/part-….parquet     rows of one commit; it appears with one rename
    {run}/_commit.json       what that commit was
    _current.json            the folders whose rows are the table's, and what each job did last
    _staging-{job}-{run}/    files that no commit refers to yet
    _commit-{job}-{number}/  the files of a commit just before they appear

The rename is the commit: whatever happens after it, ``_commit.json`` tells what is to be made true of
``_current.json``, and whoever opens the table next does so. A replacement appears first, then the pointer names it
alone, then what it replaces is deleted. A reader that follows the pointer meets one state or the next.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from shared.clients.lake_tables.arrow import conform, schema_of
from shared.clients.lake_tables.ownership import overtaken, owner_mark, taken_meanwhile
from shared.clients.lake_tables.parts import LakePartsWriter, part_prefix
from shared.clients.lake_tables.ranges import columns_for, rows_within
from shared.clients.lake_tables.reading import LakeParquet
from shared.clients.onelake import OneLake
from shared.clients.onelake.tree import LakeEntry, LakeTree
from shared.errors import IntegrityMismatch, NotFound, ServiceUnavailable, SourceChanged, TargetConflict, Unsupported
from shared.policy.paths import staging_prefix
from shared.ports import Written
from shared.ports.tables import (
    Committed,
    KeyRange,
    LakeColumn,
    LakeTableState,
    Leftovers,
    PartFile,
    PartOptions,
    TableCommit,
)

POINTER = "_current.json"
RECORD = "_commit.json"
_RENAMES_AT_ONCE = 8
_POINTER_ATTEMPTS = 8
# Of so many earlier commits a job's later delivery is known again.
_TOKENS_KEPT = 20


@dataclass(slots=True)
class _Current:
    """The pointer: folder names with rows and bytes, the columns, and of each job its last commit."""

    version: int = -1
    folders: dict[str, dict[str, int]] = field(default_factory=dict)
    columns: tuple[LakeColumn, ...] = ()
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def applied(self, owner: str) -> int:
        return int(self.jobs.get(owner, {}).get("applied", -1))

    def as_json(self) -> bytes:
        document = {
            "version": self.version,
            "folders": self.folders,
            "columns": [asdict(column) for column in self.columns],
            "jobs": self.jobs,
        }
        return json.dumps(document, indent=1).encode()

    @classmethod
    def parse(cls, text: bytes | None) -> "_Current":
        if text is None:
            return cls()
        try:
            read = json.loads(text)
            columns = tuple(LakeColumn(**column) for column in read["columns"])
            return cls(int(read["version"]), dict(read["folders"]), columns, dict(read["jobs"]))
        except (ValueError, KeyError, TypeError):
            raise Unsupported(
                f"{POINTER} in the table's folder is not what this app writes; name another target.path, or delete it",
                code="foreign_table",
                subject=POINTER,
            ) from None


@dataclass(slots=True)
class _Loaded:
    """The table as it is, with commits that the pointer does not know of yet, and folders that nobody needs."""

    current: _Current
    etag: str | None
    pending: list[dict[str, Any]]
    superseded: list[str]
    entries: list[LakeEntry]


class ParquetLakeTable:
    """Implements ``ports.tables.LakeTable``; see ``open_lake_table``."""

    def __init__(self, lake: OneLake, workspace_id: str, lakehouse_id: str, path: str, *, owner: str, run: str) -> None:
        self._tree = LakeTree(lake, workspace_id, lakehouse_id, path.strip("/"), owner=owner)
        self._owner = owner
        self._run = run
        self._mark = owner_mark(owner)
        self._staging = f"_staging-{self._mark}-{run}"

    # -- what there is -------------------------------------------------------------------------------------------

    async def state(self) -> LakeTableState:
        current = (await self._load()).current
        job = current.jobs.get(self._owner, {})
        return LakeTableState(
            exists=current.version >= 0,
            columns=current.columns,
            version=current.version,
            applied=current.applied(self._owner),
            position=job.get("position"),
        )

    async def _load(self) -> _Loaded:
        for _ in range(_POINTER_ATTEMPTS):
            before = await self._tree.properties(POINTER)
            text = await self._tree.read_whole(POINTER) if before else None
            entries = await self._tree.entries()
            after = await self._tree.properties(POINTER)
            if (before and before.etag) == (after and after.etag) and (text is None) == (before is None):
                break
        else:
            raise ServiceUnavailable("the table is replaced again and again while it is looked at")
        current = _Current.parse(text)
        pending, superseded = [], []
        for entry in entries:
            if not entry.is_directory or entry.path[:1] in "_." or entry.path in current.folders:
                continue
            record = await self._tree.read_whole(f"{entry.path}/{RECORD}")
            if record is None:
                continue
            commit = json.loads(record)
            if commit["number"] > current.applied(commit["owner"]):
                pending.append(commit)
            else:
                superseded.append(entry.path)
        for commit in sorted(pending, key=lambda one: (one["owner"], one["number"])):
            superseded += _apply(current, commit)
        return _Loaded(current, before.etag if before else None, pending, superseded, entries)

    async def _settle(self) -> _Loaded:
        """Make the pointer true, and delete what it has replaced."""
        for _ in range(_POINTER_ATTEMPTS):
            loaded = await self._load()
            if loaded.pending:
                try:
                    await self._tree.put(POINTER, loaded.current.as_json(), only_over=loaded.etag)
                except TargetConflict:
                    continue
            for folder in loaded.superseded:
                await self._tree.delete_folder(folder)
            return loaded
        raise TargetConflict("other jobs change the table again and again", code="target_changed", subject=POINTER)

    # -- writing -------------------------------------------------------------------------------------------------

    def writer(
        self, name: str, columns: Sequence[LakeColumn], options: PartOptions, *, changes: bool = False
    ) -> LakePartsWriter:
        del changes  # Files of changes are rows like others here: what happened is appended.
        return LakePartsWriter(self._tree, self._staging, self._run, part_prefix(name), columns, options)

    async def commit(self, commit: TableCommit) -> Committed:
        if commit.disposition not in ("append", "replace"):
            raise Unsupported(
                f"write.disposition: {commit.disposition} needs target.format: delta", subject=commit.disposition
            )
        loaded = await self._settle()
        if commit.number <= loaded.current.applied(self._owner):
            return self._committed(loaded.current, commit, already=True)
        if not _is_taken(commit.only_new, loaded.current, self._owner):
            raise taken_meanwhile(self._tree.root)
        before = loaded.current.folders
        folder = commit.run if commit.run not in before else f"{commit.run}-{commit.number}"
        ready = f"_commit-{self._mark}-{commit.number}"
        try:
            await self._gather(commit, ready)
            await self._write_record(commit, ready, folder)
            await self._assert_whole(commit, ready)
            await self._tree.rename_folder(ready, folder)
        except (NotFound, TargetConflict):
            # Where the same commit is carried out twice at once, one finds that the other was faster.
            current = (await self._settle()).current
            if current.applied(self._owner) < commit.number:
                raise
            return self._committed(current, commit, already=True)
        current = (await self._settle()).current
        if not _is_taken(commit.only_new, current, self._owner):
            raise taken_meanwhile(self._tree.root)
        if current.applied(self._owner) < commit.number:
            raise ServiceUnavailable("a commit was made and cannot be found again", code="commit_lost", subject=folder)
        return self._committed(current, commit)

    async def _gather(self, commit: TableCommit, ready: str) -> None:
        """Exactly the files of the commit into a folder that no writer knows of."""
        await self._tree.make_folder(ready)
        wanted = {_name(part): part for part in commit.parts}
        for entry in await self._tree.entries(ready):
            # Another delivery of this commit may have written its record and be about to rename the folder.
            is_ours = _base(entry.path) in wanted or await self._is_record_of(commit, entry.path)
            if not is_ours:
                await self._tree.delete(entry.path, etag="")
        gate = asyncio.Semaphore(_RENAMES_AT_ONCE)

        async def move(name: str, part: PartFile) -> None:
            async with gate:
                there = await self._tree.properties(f"{ready}/{name}")
                if there is None:
                    was = Written(part.size_bytes, part.md5, part.etag)
                    try:
                        await self._tree.move(self._staged(part), f"{ready}/{name}", was)
                    except (NotFound, TargetConflict):
                        # Another delivery of this commit has moved it meanwhile.
                        there = await self._tree.properties(f"{ready}/{name}")
                        if there is None or (there.size_bytes, there.md5) != (part.size_bytes, part.md5):
                            raise
                elif (there.size_bytes, there.md5) != (part.size_bytes, part.md5):
                    raise IntegrityMismatch("a file is not what was written", subject=part.path)

        await asyncio.gather(*(move(name, part) for name, part in wanted.items()))

    async def _assert_whole(self, commit: TableCommit, ready: str) -> None:
        """Raises NotFound for a file that a later run, which takes this one for given up, has cleared away."""
        there = {_base(entry.path) for entry in await self._tree.entries(ready)}
        lost = [path for path in (*(part.path for part in commit.parts), RECORD) if _base(path) not in there]
        if lost:
            raise NotFound(f"{lost[0]} was written and is gone before its commit", code="file_lost", subject=lost[0])

    def _staged(self, part: PartFile) -> str:
        # Under the run that wrote it, which may be an earlier one than commits it.
        return f"_staging-{self._mark}-{part.path}"

    async def _write_record(self, commit: TableCommit, ready: str, folder: str) -> None:
        record = {
            "owner": self._owner,
            "number": commit.number,
            "run": commit.run,
            "token": commit.token,
            "folder": folder,
            "disposition": commit.disposition,
            "only_new": commit.only_new,
            "columns": [asdict(column) for column in commit.columns],
            "position": dict(commit.position),
            "rows": sum(part.rows for part in commit.parts),
            "size_bytes": sum(part.size_bytes for part in commit.parts),
            "files": {_name(part): {"rows": part.rows, "md5": part.md5} for part in commit.parts},
        }
        path, data = f"{ready}/{RECORD}", json.dumps(record, indent=1).encode()
        if await self._tree.read_whole(path) != data:
            there = await self._tree.properties(path)
            try:
                await self._tree.put(path, data, only_over=there.etag if there else None)
            except TargetConflict:
                # Another delivery of this commit, which may say another time that it took.
                if not await self._is_record_of(commit, path):
                    raise

    async def _is_record_of(self, commit: TableCommit, path: str) -> bool:
        if _base(path) != RECORD:
            return False
        said = json.loads(await self._tree.read_whole(path) or b"{}")
        return (said.get("number"), said.get("token")) == (commit.number, commit.token)

    def _committed(self, current: _Current, commit: TableCommit, *, already: bool = False) -> Committed:
        job = current.jobs[self._owner]
        if job["tokens"].get(str(commit.number)) != commit.token:
            raise overtaken(self._tree.root)
        inserted, deleted, files = job["rows"] if job["applied"] == commit.number else (0, 0, 0)
        return Committed(
            version=current.version,
            inserted=inserted,
            updated=0,
            deleted=deleted,
            files=files,
            size_bytes=sum(sizes["size_bytes"] for sizes in current.folders.values()),
            already=already,
        )

    async def leftovers(self, keep: Sequence[str] = ()) -> Leftovers:
        loaded = await self._settle()
        kept = {_base(path) for path in keep}
        files: list[str] = []
        records: list[str] = []
        folders: list[str] = []
        for entry in loaded.entries:
            if entry.path.startswith(staging_prefix(self._owner)):
                files.append(entry.path)
            if not entry.path.startswith((f"_staging-{self._mark}-", f"_commit-{self._mark}-")):
                continue
            held = [one for one in await self._tree.entries(entry.path, recursive=True) if not one.is_directory]
            files += [one.path for one in held if _base(one.path) not in {*kept, RECORD}]
            if not kept.intersection(_base(one.path) for one in held):
                # Without its record what is about to be renamed would be a folder that no commit speaks of.
                records += [one.path for one in held if _base(one.path) == RECORD]
            folders.append(entry.path)
        return Leftovers(tuple(files), tuple(records), tuple(folders))

    async def remove(self, leftovers: Leftovers) -> int:
        count = 0
        for path in leftovers.files:
            count += await self._tree.delete(path, etag="")
        for path in leftovers.marks:
            await self._tree.delete(path, etag="")
        for folder in leftovers.folders:
            await self._tree.remove_empty_folder(folder)
        return count

    # -- reading -------------------------------------------------------------------------------------------------

    async def read_parts(self, parts: Sequence[PartFile]) -> AsyncIterator[pa.RecordBatch]:
        for part in parts:
            file = await self._open_part(part)
            async for batch in file.batches():
                yield batch

    async def _open_part(self, part: PartFile) -> LakeParquet:
        for path in (self._staged(part), part.path):
            with suppress(NotFound):
                return await LakeParquet.open(self._tree, path, part.size_bytes)
        for entry in await self._tree.entries(recursive=True):
            if _base(entry.path) == _name(part):
                return await LakeParquet.open(self._tree, entry.path, part.size_bytes)
        raise NotFound("a file that was written is gone", subject=part.path)

    async def read(
        self, columns: Sequence[str] | None = None, *, within: KeyRange | None = None
    ) -> AsyncIterator[pa.RecordBatch]:
        loaded = await self._load()
        schema = schema_of(loaded.current.columns)
        names = schema.names if columns is None else list(columns)
        looked_at = list(dict.fromkeys([*names, *columns_for(within, schema.names)]))
        read_as = pa.schema([schema.field(name) for name in looked_at])
        try:
            for folder in loaded.current.folders:
                for entry in await self._tree.entries(folder):
                    if _base(entry.path)[:1] in "_.":
                        continue
                    file = await LakeParquet.open(self._tree, entry.path, entry.size_bytes)
                    async for group in file.row_groups(looked_at):
                        table = conform(group, read_as)
                        if within is not None:
                            table = table.filter(rows_within(table, within))
                        for batch in table.select(names).to_batches():
                            yield batch
        except NotFound:
            raise SourceChanged("the table was replaced while it was read", subject=self._tree.root) from None


def _is_taken(only_new: bool, current: _Current, owner: str) -> bool:
    """Whether a commit is taken into the table: not one that was to make it, where somebody else has done so."""
    return not only_new or current.version < 0 or owner in current.jobs


def _apply(current: _Current, commit: Mapping[str, Any]) -> list[str]:
    """Take a commit into the pointer; the folders that it replaces, or its own where it is not taken."""
    if not _is_taken(commit["only_new"], current, commit["owner"]):
        return [commit["folder"]]
    replaced = list(current.folders) if commit["disposition"] == "replace" else []
    deleted = sum(current.folders.pop(folder)["rows"] for folder in replaced)
    current.folders[commit["folder"]] = {"rows": commit["rows"], "size_bytes": commit["size_bytes"]}
    current.columns = tuple(LakeColumn(**column) for column in commit["columns"])
    current.version += 1
    earlier = list(current.jobs.get(commit["owner"], {}).get("tokens", {}).items())
    current.jobs[commit["owner"]] = {
        "applied": commit["number"],
        "tokens": {**dict(earlier[-_TOKENS_KEPT:]), str(commit["number"]): commit["token"]},
        "position": commit["position"],
        "rows": [commit["rows"], deleted, len(commit["files"])],
    }
    return replaced


def _name(part: PartFile) -> str:
    return _base(part.path)


def _base(path: str) -> str:
    return path.rpartition("/")[2]
