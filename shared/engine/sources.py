"""The sources of a job as one tree: what the plan walks, and what the transfer reads.

A folder is walked in order. What lists itself in another order, or tells changes instead of a listing, was read into a
sorted catalog first (``index_source``) and is walked there.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from shared.engine.catalog import Catalog, Row, decode_index
from shared.engine.run_records import RunRecords
from shared.policy.paths import lake_path, sort_key, source_path
from shared.ports import (
    CopySource,
    DriveFeed,
    Listing,
    Moved,
    OpenItem,
    SourceItem,
    SourceLoad,
    SourcePage,
    SourceTree,
)


def rows_key(number: int) -> str:
    """Where in a run's records the sorted catalog of a source lies."""
    return f"source-{number}/rows"


class IndexedTree:
    """A source that ``index_source`` has read; implements ``ports.SourceTree``.

    Args:
        records: Of the run that holds the catalog.
        number: Of the source.
    """

    def __init__(self, records: RunRecords, number: int) -> None:
        self._records = records
        self._number = number
        self._catalog: Catalog | None = None

    async def _rows(self) -> Catalog:
        if self._catalog is None:
            data = await self._records.store.get(self._records.key(f"{rows_key(self._number)}/index.json"))
            if data is None:
                raise LookupError(f"source {self._number} of {self._records.run} was not read yet")
            self._catalog = Catalog(self._records.store, decode_index(data))
        return self._catalog

    async def list_page(self, cursor: str | None, limit: int) -> SourcePage:
        """The next items of the catalog."""
        rows, more = await (await self._rows()).page(cursor, limit)
        items = [item_of(row) for row in rows if not row.get("gone")]
        gone = {row["path"]: row["ref"] for row in rows if row.get("gone")} if self.tells_changes else None
        moved = {row["path"]: Moved(**json.loads(row["moved"])) for row in rows if row.get("moved")}
        return SourcePage(items, rows[-1]["path"] if more else None, gone, moved or None)

    tells_changes = False

    async def copy_source(self, path: str, ref: str) -> CopySource | None:
        return None

    def load(self) -> SourceLoad | None:
        return None


class ListedTree(IndexedTree):
    """A source that lists itself in its own order."""

    def __init__(self, records: RunRecords, number: int, listing: Listing) -> None:
        super().__init__(records, number)
        self.listing = listing

    async def check(self) -> None:
        await self.listing.check()

    async def identity(self) -> str | None:
        return await self.listing.identity()

    async def stat(self, path: str, ref: str = "") -> SourceItem | None:
        found = await self.listing.stat(source_path(path))
        return replace(found, path=path) if found is not None else None

    async def open(self, path: str, ref: str = "", *, fresh: bool = False) -> OpenItem:
        return await self.listing.open(source_path(path), "" if fresh else ref)

    async def copy_source(self, path: str, ref: str) -> CopySource | None:
        return await self.listing.copy_source(source_path(path), ref)


class DriveTree(IndexedTree):
    """A drive that tells its changes.

    With ``incremental``, its catalog holds what is not in the lake as it should be, and what the drive has lost; else
    all that is there.
    """

    def __init__(self, records: RunRecords, number: int, feed: DriveFeed, *, incremental: bool) -> None:
        super().__init__(records, number)
        self.feed = feed
        self.tells_changes = incremental

    async def check(self) -> None:
        await self.feed.check()

    async def identity(self) -> str | None:
        return await self.feed.identity()

    async def stat(self, path: str, ref: str = "") -> SourceItem | None:
        if not ref:
            row = await (await self._rows()).get(path)
            if row is None or row.get("gone"):
                return None
            ref = row["ref"]
        found = await self.feed.stat(ref)
        if found is None or found.kind == "gone":
            return None
        return SourceItem(path, found.size_bytes, found.version, found.problem, found.skip, found.id, found.ref,
                          found.facts)  # fmt: skip

    async def open(self, path: str, ref: str = "", *, fresh: bool = False) -> OpenItem:
        if fresh and (found := await self.feed.stat(ref)) is not None and found.kind == "file":
            ref = found.ref
        return await self.feed.open(source_path(path), ref)

    def load(self) -> SourceLoad | None:
        return self.feed.load()


@dataclass(frozen=True)
class SourcePart:
    """One source of a job and its folder below the target's; empty for a job's only one."""

    sub: str
    tree: SourceTree


class JoinedTree:
    """All sources of a job, each below its folder of the target; implements ``ports.SourceTree``.

    Args:
        parts: In the order of ``sort_key`` of their folders, none of which lies in another.
    """

    def __init__(self, parts: Sequence[SourcePart]) -> None:
        self.parts = list(parts)

    async def check(self) -> None:
        for part in self.parts:
            await part.tree.check()

    async def identity(self) -> str | None:
        """Of all of them; None where one of them holds nothing, since nothing proves then that it is the same one."""
        found = [await part.tree.identity() for part in self.parts]
        if len(found) == 1:
            return found[0]
        return None if None in found else json.dumps(found)

    async def list_page(self, cursor: str | None, limit: int) -> SourcePage:
        """The next items of one source: a page never holds those of two."""
        for number, part in enumerate(self.parts):
            if cursor is not None and sort_key(cursor) >= sort_key(_end_of(part.sub)) and part.sub:
                continue
            inner = _below(part.sub, cursor)
            page = await part.tree.list_page(inner, limit)
            is_last = number == len(self.parts) - 1
            whole = _above(part.sub, page, None if is_last else _end_of(part.sub))
            return replace(whole, begins=inner is None)
        return SourcePage([], None)

    async def stat(self, path: str, ref: str = "") -> SourceItem | None:
        part = self._part(path)
        found = await part.tree.stat(_relative(part.sub, path), ref)
        return replace(found, path=path) if found is not None else None

    async def open(self, path: str, ref: str = "", *, fresh: bool = False) -> OpenItem:
        part = self._part(path)
        return await part.tree.open(_relative(part.sub, path), ref, fresh=fresh)

    async def copy_source(self, path: str, ref: str) -> CopySource | None:
        part = self._part(path)
        return await part.tree.copy_source(_relative(part.sub, path), ref)

    def load(self) -> SourceLoad | None:
        """Of the first that tells."""
        return next((load for part in self.parts if (load := part.tree.load()) is not None), None)

    def relative(self, path: str) -> str:
        """The path within its source as the source has it, which a job's filters are about."""
        part = self._part(path)
        within = _relative(part.sub, path)
        return source_path(within) if isinstance(part.tree, IndexedTree) else within

    def _part(self, path: str) -> SourcePart:
        for part in self.parts:
            if not part.sub or path.startswith(f"{part.sub}/"):
                return part
        raise LookupError(f"no source of the job has {path!r}")


def item_of(row: Row) -> SourceItem:
    """A catalog's row as an item."""
    problem = (row["problem_code"], row["problem_detail"]) if row["problem_code"] else None
    facts = json.loads(row["facts"]) if row["facts"] else None
    return SourceItem(
        row["path"], row["size_bytes"], row["version"], problem, row["skip"], row["id"], row["ref"], facts
    )


def row_of(item: SourceItem) -> Row:
    """An item as a catalog's row, under the name that the lake takes; the source's own goes with its facts."""
    path = lake_path(item.path)
    facts = dict(item.facts or {})
    if path != item.path:
        facts["source_path"] = item.path
    code, detail = item.problem or ("", "")
    return {
        "path": path, "size_bytes": item.size_bytes, "version": item.version, "problem_code": code,
        "problem_detail": detail, "skip": item.skip, "id": item.id, "ref": item.ref,
        "facts": json.dumps(facts) if facts else "", "gone": False, "moved": "",
    }  # fmt: skip


def _end_of(sub: str) -> str:
    # After everything below the folder and before whatever follows it, since no path holds a control character.
    return f"{sub}\x01"


def _below(sub: str, cursor: str | None) -> str | None:
    if cursor is None or not sub:
        return cursor
    return cursor[len(sub) + 1 :] if cursor.startswith(f"{sub}/") else None


def _relative(sub: str, path: str) -> str:
    return path[len(sub) + 1 :] if sub else path


def _above(sub: str, page: SourcePage, end: str | None) -> SourcePage:
    """The page with paths below the source's folder; ``end`` stands for the end of a source that others follow."""
    if not sub:
        return page

    def full(path: str) -> str:
        return f"{sub}/{path}"

    return SourcePage(
        [replace(item, path=full(item.path)) for item in page.items],
        full(page.cursor) if page.cursor is not None else end,
        {full(path): ref for path, ref in page.gone.items()} if page.gone is not None else None,
        {full(path): replace(moved, path=full(moved.path)) for path, moved in page.moved.items()}
        if page.moved is not None
        else None,
    )
