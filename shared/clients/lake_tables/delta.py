"""A Delta table in a lakehouse.

Data files lie in the table's folder, unseen until one commit of the log names them; a transaction of the job's name and
the commit's number in the same commit makes a repeat do nothing. Beside the data::

    _pending-{job}/part-….json   an attempt that has begun files of this name; gone when they are committed
    _staging-{job}/              files of changes, which are applied and never become the table's

Commits are made on top of the very version that was looked at. If somebody else was faster, the table is looked at anew
and the commit made again (append, replace: as often as it takes; merge, history: a few times, since files are written
each time).

New columns, and columns that may be null from now on, are commits of their own before the rows'; readers meet nulls.
Wider types are part of the rows' commit, in which then every file is written anew.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar

import pyarrow as pa

from shared.clients.lake_tables import log
from shared.clients.lake_tables.arrow import as_nullable, columns_of, conform, lake_type, schema_of
from shared.clients.lake_tables.log import DataFile, Snapshot, Stamp
from shared.clients.lake_tables.merging import Merge, added_columns
from shared.clients.lake_tables.ownership import overtaken, owner_mark, taken_meanwhile
from shared.clients.lake_tables.parts import LakePartsWriter, part_prefix
from shared.clients.lake_tables.ranges import columns_for, may_hold, rows_within
from shared.clients.lake_tables.reading import LakeParquet
from shared.clients.onelake import OneLake
from shared.clients.onelake.tree import LakeTree
from shared.errors import IntegrityMismatch, MigrationError, NotFound, SourceChanged, TargetConflict, Unsupported
from shared.policy.sql.schema import is_wider
from shared.policy.sql.types import is_lake_type
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

_T = TypeVar("_T")
_ATTEMPTS = 12
_MERGE_ATTEMPTS = 4
_DELETES_AT_ONCE = 16


class DeltaLakeTable:
    """Implements ``ports.tables.LakeTable``; see ``open_lake_table``."""

    def __init__(
        self,
        lake: OneLake,
        workspace_id: str,
        lakehouse_id: str,
        path: str,
        *,
        owner: str,
        options: PartOptions,
        memory_bytes: int,
        now: Callable[[], datetime],
    ) -> None:
        self._lake = lake
        self._path = path.strip("/")
        self._uri = f"az://{workspace_id}/{lakehouse_id}/{self._path}"
        self._tree = LakeTree(lake, workspace_id, lakehouse_id, self._path, owner=owner)
        self._owner = owner
        self._options = options
        self._memory_bytes = memory_bytes
        self._now = now
        self._staging = f"_staging-{owner_mark(owner)}"
        self._pending = f"_pending-{owner_mark(owner)}"
        self._seen_version: int | None = None

    # -- what there is -------------------------------------------------------------------------------------------

    async def state(self) -> LakeTableState:
        def look(options: dict[str, str]) -> LakeTableState:
            found = log.load(self._uri, options, self._owner)
            if found is None:
                return LakeTableState(exists=False, columns=(), version=-1, applied=-1)
            said = log.said(found.table, self._owner, found.applied) if found.applied >= 0 else {}
            return LakeTableState(True, columns_of(found.schema), found.version, found.applied, said.get("position"))

        return await self._log(look)

    async def _load(self) -> Snapshot | None:
        found = await self._log(lambda options: log.load(self._uri, options, self._owner))
        self._seen_version = -1 if found is None else found.version
        return found

    async def _log(self, work: Callable[[dict[str, str]], _T]) -> _T:
        """Run something of delta-rs in a thread, with a token of this moment, and with the transport's attempts."""
        transport = self._lake.transport

        def mapped(token: str) -> _T:
            try:
                return work(log.storage_options(self._lake.blob_url, token, self._lake.ca_bundle))
            except MigrationError:
                raise
            except Exception as error:
                meant = log.meant_by(error, self._path)
                if meant is None:
                    raise
                raise meant from None

        async def once(_: int) -> _T:
            token = await transport.tokens.get()
            return await asyncio.to_thread(mapped, token.token)

        return await transport.attempts(once, self._path)

    # -- writing -------------------------------------------------------------------------------------------------

    def writer(
        self, name: str, columns: Sequence[LakeColumn], options: PartOptions, *, changes: bool = False
    ) -> LakePartsWriter:
        prefix = part_prefix(name)
        if changes:
            # Of a deleted row, only the key is there.
            columns = [replace(column, nullable=True) for column in columns]
            return LakePartsWriter(self._tree, self._staging, self._staging, prefix, columns, options)

        async def announce() -> None:
            if self._seen_version is None:
                await self._load()
            said = json.dumps({"version": self._seen_version}).encode()
            await self._tree.put(f"{self._pending}/{prefix}.json", said)

        return LakePartsWriter(self._tree, "", "", prefix, columns, options, announce)

    async def commit(self, commit: TableCommit) -> Committed:
        is_by_key = commit.disposition in ("merge", "history")
        if not is_by_key and commit.disposition not in ("append", "replace"):
            raise Unsupported(f"there is no disposition {commit.disposition!r}", subject=commit.disposition)
        stamp = Stamp(self._owner, commit.number, commit.run, commit.token, commit.position)
        conflict: TargetConflict | None = None
        for _ in range(_MERGE_ATTEMPTS if is_by_key else _ATTEMPTS):
            snapshot = await self._load()
            if snapshot is not None and snapshot.applied >= commit.number:
                return await self._already(snapshot, commit)
            if commit.only_new and snapshot is not None and snapshot.applied < 0:
                raise taken_meanwhile(self._path)
            try:
                try:
                    if is_by_key:
                        work = await self._merge(snapshot, commit)
                    else:
                        work = await self._take(snapshot, commit)
                except (NotFound, IntegrityMismatch):
                    # Another delivery of this commit, once through, clears away what this one was about to read.
                    snapshot = await self._load()
                    if snapshot is None or snapshot.applied < commit.number:
                        await self._assert_whole(snapshot)
                        raise
                    return await self._already(snapshot, commit)
                try:
                    await self._make(work, stamp)
                except MigrationError:
                    # What failed may have been the answer, or what comes after a commit (a checkpoint).
                    if not await self._is_made(work, commit.number):
                        await self._drop(work.written)
                        raise
            except TargetConflict as error:
                if error.code != "target_changed":
                    raise
                conflict = error
                continue
            await self._clean(commit, work)
            return work.outcome
        assert conflict is not None
        raise conflict

    async def _take(self, snapshot: Snapshot | None, commit: TableCommit) -> "_Work":
        """Append or replace: which files come and which go."""
        # The schema is in the log, so a file without rows is good for nothing.
        parts = [part for part in commit.parts if part.rows]
        await self._assert_there(parts)
        rows = sum(part.rows for part in parts)
        size_bytes = sum(part.size_bytes for part in parts)
        schema = schema_of(commit.columns)
        if snapshot is None:
            return _Work(None, schema, parts, (), Committed(0, rows, 0, 0, len(parts), size_bytes))
        if commit.disposition == "replace":
            snapshot = await self._with_features(snapshot, schema, rewrites=True)
            before = sum(one.rows or 0 for one in snapshot.files)
            outcome = Committed(snapshot.version + 1, rows, 0, before, len(parts), size_bytes)
            return _Work(snapshot, schema, parts, (), outcome, overwrites=True)
        snapshot, schema, widens = await self._evolve(snapshot, schema)
        if not widens:
            outcome = Committed(
                snapshot.version + 1, rows, 0, 0, len(snapshot.files) + len(parts),
                size_bytes + sum(one.size_bytes for one in snapshot.files),
            )  # fmt: skip
            return _Work(snapshot, schema, parts, (), outcome)
        written = await self._rewrite(snapshot, schema)
        outcome = Committed(
            snapshot.version + 1, rows, 0, 0, len(written) + len(parts),
            size_bytes + sum(one.size_bytes for one in written),
        )  # fmt: skip
        return _Work(snapshot, schema, (*written, *parts), (), outcome, overwrites=True, written=tuple(written))

    async def _assert_there(self, parts: Sequence[PartFile]) -> None:
        """Raises IntegrityMismatch for a file that is not the one that was written: the log would name it for good."""
        gate = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def one(part: PartFile) -> None:
            async with gate:
                found = await self._tree.properties(part.path)
            if found is None or found.etag != part.etag:
                raise IntegrityMismatch(
                    f"{part.path} was written and is {'gone' if found is None else 'another file'} before its commit",
                    code="file_lost",
                    subject=part.path,
                )

        await asyncio.gather(*(one(part) for part in parts))

    async def _assert_whole(self, snapshot: Snapshot | None) -> None:
        """Raises Unsupported, code ``table_unreadable``, for a file that is gone and that the newest version names."""
        gate = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def one(path: str) -> None:
            async with gate:
                if await self._tree.properties(path) is None:
                    raise Unsupported(
                        f"{path} of the Delta table is gone, and its rows with it; bring it back, or name the table in "
                        "reset, so that it is written anew",
                        code="table_unreadable",
                        subject=self._path,
                    ) from None

        await asyncio.gather(*(one(file.path) for file in (snapshot.files if snapshot else ())))

    async def _merge(self, snapshot: Snapshot | None, commit: TableCommit) -> "_Work":
        schema, widens = schema_of((*commit.columns, *added_columns(commit))), False
        if snapshot is not None:
            snapshot, schema, widens = await self._evolve(snapshot, schema, rewrites=True)
        writer = partial(self._own_writer, commit.disposition, schema)
        # Made and not begun, for what it has to say of the columns before anything is read.
        writer()
        merge = Merge(
            self._tree,
            schema,
            commit,
            memory_bytes=self._memory_bytes,
            moment=self._now(),
            writer=writer,
            rewrite_all=widens,
        )
        done = await merge.run(() if snapshot is None else snapshot.files)
        await self._drop(done.superseded)
        await self._assert_there(done.parts)
        outcome = Committed(
            0 if snapshot is None else snapshot.version + 1, done.inserted, done.updated, done.deleted,
            len(done.kept), sum(one.size_bytes for one in done.kept),
        )  # fmt: skip
        return _Work(snapshot, schema, done.parts, done.removed, outcome, overwrites=widens, written=tuple(done.parts))

    async def _make(self, work: "_Work", stamp: Stamp) -> None:
        """The commit itself."""
        properties = stamp.properties(work.outcome)
        tries = 0

        def commit(options: dict[str, str]) -> None:
            nonlocal tries
            tries += 1
            if work.snapshot is None:
                log.create(self._uri, options, work.schema, work.parts, properties)
                return
            snapshot = work.snapshot
            if tries > 1:
                anew = log.load(self._uri, options, self._owner)
                if anew is None or anew.version != snapshot.version:
                    raise TargetConflict(
                        "somebody else changed the Delta table meanwhile", code="target_changed", subject=self._path
                    )
                snapshot = anew
            if work.overwrites:
                log.overwrite(snapshot, work.schema, work.parts, properties)
            else:
                log.change(snapshot, work.schema, work.parts, work.removed, properties)

        await self._log(commit)

    async def _is_made(self, work: "_Work", number: int) -> bool:
        """Whether the table has this very attempt's files."""
        snapshot = await self._load()
        if snapshot is None or snapshot.applied != number:
            return False
        return {part.path for part in work.parts} <= {one.path for one in snapshot.files}

    async def _already(self, snapshot: Snapshot, commit: TableCommit) -> Committed:
        said = await self._log(lambda _: log.said(snapshot.table, self._owner, commit.number))
        if said.get("token", "") != commit.token:
            raise overtaken(self._path)
        if commit.disposition in ("merge", "history"):
            await self._drop(commit.parts)
        inserted, updated, deleted = said.get("rows", (0, 0, 0))
        size_bytes = sum(one.size_bytes for one in snapshot.files)
        return Committed(snapshot.version, inserted, updated, deleted, len(snapshot.files), size_bytes, already=True)

    # -- columns -------------------------------------------------------------------------------------------------

    async def _with_features(self, snapshot: Snapshot, schema: pa.Schema, *, rewrites: bool) -> Snapshot:
        snapshot.assert_writable(rewrites=rewrites)
        needs_ntz = any(pa.types.is_timestamp(field.type) and field.type.tz is None for field in schema)
        if needs_ntz and not snapshot.has_ntz:
            return await self._alter(snapshot, log.widen_protocol)
        return snapshot

    async def _alter(self, snapshot: Snapshot, work: Callable[[Snapshot], None]) -> Snapshot:
        await self._log(lambda _: work(snapshot))
        found = await self._load()
        if found is None:
            raise TargetConflict("somebody deleted the Delta table", code="target_changed", subject=self._path)
        return found

    async def _evolve(
        self, snapshot: Snapshot, wanted: pa.Schema, *, rewrites: bool = False
    ) -> tuple[Snapshot, pa.Schema, bool]:
        """Bring the table's columns to what the commit says; the schema, and whether a type becomes wider.

        Raises:
            Unsupported: code ``schema_conflict``.
        """
        there = {field.name: field for field in snapshot.schema}
        folded = {name.casefold(): name for name in there}
        added, widened, relaxed = [], {}, []
        for field in wanted:
            if field.name not in there:
                if field.name.casefold() in folded:
                    raise Unsupported(
                        f"columns {folded[field.name.casefold()]!r} and {field.name!r} differ only in case, which "
                        "Delta cannot hold; read the table by a query that names the column as it is in the lake",
                        code="schema_conflict",
                        subject=field.name,
                    )
                added.append(field.with_nullable(True))
                continue
            was, now = lake_type(there[field.name].type), lake_type(field.type)
            if was != now and not is_wider(now, was):
                raise Unsupported(
                    f"column {field.name!r} is {was} in the lake and would be {now}; name the table in reset, so that "
                    "it is written anew",
                    code="schema_conflict",
                    subject=field.name,
                )
            if was != now:
                widened[field.name] = field.type
        names = set(wanted.names)
        for field in snapshot.schema:
            if not field.nullable and (field.name not in names or wanted.field(field.name).nullable):
                relaxed.append(field.name)
        schema = pa.schema(
            [
                pa.field(one.name, widened.get(one.name, one.type), one.nullable or one.name in relaxed)
                for one in snapshot.schema
            ]
            + added
        )
        snapshot = await self._with_features(snapshot, schema, rewrites=rewrites or bool(widened))
        if not widened:
            for name in relaxed:
                snapshot = await self._alter(snapshot, partial(log.let_be_null, column=name))
            if added:
                snapshot = await self._alter(snapshot, partial(log.add_columns, fields=added))
        return snapshot, schema, bool(widened)

    async def _rewrite(self, snapshot: Snapshot, schema: pa.Schema) -> list[PartFile]:
        """All rows of the table in new files with the wider types."""
        writer = self._own_writer("widened", schema)
        try:
            for file in snapshot.files:
                opened = await LakeParquet.open(self._tree, file.path, file.size_bytes)
                async for group in opened.row_groups():
                    for batch in conform(group, as_nullable(schema)).to_batches():
                        await writer.write(batch)
            return await writer.close()
        except BaseException:
            await writer.abort()
            raise

    def _own_writer(self, name: str, schema: pa.Schema) -> LakePartsWriter:
        """Raises Unsupported, code ``table_features``: rows of the table hold what this app cannot write again."""
        columns = columns_of(schema)
        for column in columns:
            if not is_lake_type(column.type):
                raise Unsupported(
                    f"column {column.name!r} of the Delta table is of type {column.type}, which this app does not "
                    "write; take it away, or name another table",
                    code="table_features",
                    subject=column.name,
                )
        return self.writer(name, columns, self._options)

    # -- what is left over ---------------------------------------------------------------------------------------

    async def _clean(self, commit: TableCommit, work: "_Work") -> None:
        """Once committed, nothing is pending; what a kill leaves of this, ``discard`` does."""
        used = {part.path for part in work.parts}
        await self._drop([part for part in commit.parts if part.path not in used])
        markers = {_marker(part.path) for part in (*work.parts, *work.written)}
        with suppress(MigrationError):
            await self._delete([f"{self._pending}/{name}" for name in markers])

    async def _drop(self, parts: Sequence[PartFile]) -> None:
        """Files that nobody needs any more, with their markers; never raises."""
        with suppress(MigrationError):
            await self._delete([part.path for part in parts])
            await self._delete([f"{self._pending}/{_marker(part.path)}" for part in parts if "/" not in part.path])

    async def _delete(self, paths: Sequence[str]) -> int:
        gate = asyncio.Semaphore(_DELETES_AT_ONCE)

        async def one(path: str) -> bool:
            async with gate:
                return await self._tree.delete(path, etag="")

        return sum(await asyncio.gather(*(one(path) for path in dict.fromkeys(paths))))

    async def leftovers(self, keep: Sequence[str] = ()) -> Leftovers:
        kept = set(keep)
        staged = [one.path for one in await self._tree.entries(self._staging) if one.path not in kept]
        folders = (self._staging,) if staged else ()
        markers = [one.path for one in await self._tree.entries(self._pending)]
        pending = await self._pending_files(markers, kept) if markers else Leftovers()
        return Leftovers((*staged, *pending.files), pending.marks, (*folders, *pending.folders))

    async def remove(self, leftovers: Leftovers) -> int:
        files = leftovers.files
        if any("/" not in path for path in files):
            # A run that was taken for given up may have committed some of them since.
            snapshot = await self._load()
            named = set() if snapshot is None else {one.path for one in snapshot.files}
            files = tuple(path for path in files if path not in named)
        count = await self._delete(files)
        # Last, since without them nobody would find the files again.
        await self._delete(leftovers.marks)
        for folder in leftovers.folders:
            await self._tree.remove_empty_folder(folder)
        return count

    async def _pending_files(self, markers: Sequence[str], kept: set[str]) -> Leftovers:
        snapshot = await self._load()
        named = {} if snapshot is None else {one.path for one in snapshot.files}
        prefixes = {marker.rpartition("/")[2].removesuffix(".json"): marker for marker in markers}
        files = [one.path for one in await self._tree.entries() if not one.is_directory]
        gone: list[str] = []
        done: list[str] = []
        for prefix, marker in prefixes.items():
            own = [path for path in files if path.startswith(f"{prefix}-")]
            loose = [path for path in own if path not in named and path not in kept]
            if loose:
                since = await self._named_since(marker, snapshot)
                # Where the log no longer tells, VACUUM will know.
                loose = [] if since is None else [path for path in loose if path not in since]
            gone += loose
            if not kept.intersection(own):
                done.append(marker)
        # Of a table that never came to be, a folder in Tables would be shown as one that cannot be read.
        folders = (self._pending,) if snapshot is not None else (self._pending, "")
        return Leftovers(tuple(gone), tuple(done), folders)

    async def _named_since(self, marker: str, snapshot: Snapshot | None) -> set[str] | None:
        """Every file that commits have added since an attempt began; None if that is no longer known."""
        found: set[str] = set()
        if snapshot is None:
            return found
        text = await self._tree.read_whole(marker)
        try:
            began = int(json.loads(text or b"")["version"])
        except (ValueError, KeyError, TypeError):
            return None
        for version in range(began + 1, snapshot.version + 1):
            entry = await self._tree.read_whole(f"_delta_log/{version:020d}.json")
            if entry is None:
                return None
            for line in entry.splitlines():
                action = json.loads(line)
                if "add" in action:
                    found.add(action["add"]["path"])
        return found

    # -- reading -------------------------------------------------------------------------------------------------

    async def read_parts(self, parts: Sequence[PartFile]) -> AsyncIterator[pa.RecordBatch]:
        for part in parts:
            file = await LakeParquet.open(self._tree, part.path, part.size_bytes)
            async for batch in file.batches():
                yield batch

    async def read(
        self, columns: Sequence[str] | None = None, *, within: KeyRange | None = None
    ) -> AsyncIterator[pa.RecordBatch]:
        snapshot = await self._load()
        if snapshot is None:
            return
        snapshot.assert_readable()
        names = snapshot.schema.names if columns is None else list(columns)
        looked_at = list(dict.fromkeys([*names, *columns_for(within, snapshot.schema.names)]))
        read_as = pa.schema([snapshot.schema.field(name) for name in looked_at])
        try:
            for one in snapshot.files:
                if within is not None and not _may_hold(snapshot.schema, one, within):
                    continue
                file = await LakeParquet.open(self._tree, one.path, one.size_bytes)
                async for group in file.row_groups(looked_at):
                    table = conform(group, read_as)
                    if within is not None:
                        table = table.filter(rows_within(table, within))
                    for batch in table.select(names).to_batches():
                        yield batch
        except NotFound:
            await self._assert_whole(await self._load())
            raise SourceChanged("the Delta table was changed while it was read", subject=self._path) from None


@dataclass(frozen=True, slots=True)
class _Work:
    """A commit that is ready to be made on top of ``snapshot`` (None: of a table that is not there yet).

    ``written`` are those of the parts that this attempt has written itself.
    """

    snapshot: Snapshot | None
    schema: pa.Schema
    parts: Sequence[PartFile]
    removed: Sequence[DataFile]
    outcome: Committed
    overwrites: bool = False
    written: Sequence[PartFile] = ()


def _marker(path: str) -> str:
    return f"{path.rpartition('/')[2].rpartition('-')[0]}.json"


def _may_hold(schema: pa.Schema, file: DataFile, within: KeyRange) -> bool:
    place = schema.get_field_index(within.column)
    if place < 0:
        return True
    name = within.column
    return may_hold(schema.field(place), file.low.get(name), file.high.get(name), file.nulls.get(name), within)
