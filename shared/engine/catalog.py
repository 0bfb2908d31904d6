"""A table of paths, sorted, in Parquet parts of an object store: the ledger, and what a listing of the lake showed.

A planner that walks a source in order needs only the rows between the first and the last path of its page, so a
catalog of a million rows costs a page two or three reads and no memory to speak of.
"""

import io
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shared.policy.paths import sort_key
from shared.ports import RunStore

ROWS_PER_PART = 20_000

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Part:
    """One Parquet object; ``first`` and ``last`` are paths."""

    key: str
    first: str
    last: str
    rows: int


def encode_index(parts: Sequence[Part], **about: str) -> bytes:
    """The parts of a catalog, and what else its owner wants to know of it."""
    return json.dumps({**about, "parts": [asdict(part) for part in parts]}).encode()


def decode_index(data: bytes | None) -> list[Part]:
    return [Part(**part) for part in json.loads(data)["parts"]] if data else []


async def write_part(store: RunStore, key: str, rows: Sequence[Row]) -> Part:
    """Write rows that are sorted by ``sort_key`` of their ``path``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Of all rows, since a part may hold older ones that lack a column.
    names = {name: None for row in rows for name in row}
    sink = io.BytesIO()
    pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in names}), sink, compression="zstd")
    await store.put(key, sink.getvalue())
    return Part(key, rows[0]["path"], rows[-1]["path"], len(rows))


async def read_part(store: RunStore, part: Part) -> list[Row]:
    import pyarrow.parquet as pq

    data = await store.get(part.key)
    if data is None:
        raise LookupError(f"the catalog part {part.key} is gone from the run store")
    rows: list[Row] = pq.read_table(io.BytesIO(data)).to_pylist()
    return rows


def _first(keyed: tuple[str, Row]) -> str:
    return keyed[0]


class Catalog:
    """Sorted parts, read by range. Keeps the last part that it read, since pages follow each other."""

    def __init__(self, store: RunStore, parts: Sequence[Part]) -> None:
        self._store = store
        self.parts = list(parts)
        self._kept: dict[str, list[Row]] = {}

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    async def between(self, after: str | None, last: str | None) -> dict[str, Row]:
        """Rows with ``after < path <= last`` in path order; None leaves that side open."""
        low = sort_key(after) if after is not None else None
        high = sort_key(last) if last is not None else None
        found: dict[str, Row] = {}
        kept: dict[str, list[Row]] = {}
        for part in self.parts:
            if (low is not None and sort_key(part.last) <= low) or (high is not None and sort_key(part.first) > high):
                continue
            rows = self._kept.get(part.key) or await read_part(self._store, part)
            kept[part.key] = rows
            for row in rows:
                key = sort_key(row["path"])
                if (low is None or key > low) and (high is None or key <= high):
                    found[row["path"]] = row
        self._kept = dict(list(kept.items())[-1:])
        return found

    async def spanning(self, first: str, last: str) -> dict[str, Row]:
        """Rows with ``first <= path <= last`` in path order."""
        found = await self.between(first, last)
        row = await self.get(first)
        return {first: row, **found} if row is not None else found

    async def get(self, path: str) -> Row | None:
        """The row of one path."""
        key = sort_key(path)
        for part in self.parts:
            if sort_key(part.first) <= key <= sort_key(part.last):
                rows = self._kept.get(part.key) or await read_part(self._store, part)
                self._kept = {part.key: rows}
                found = next((row for row in rows if row["path"] == path), None)
                if found is not None:
                    return found
        return None

    async def page(self, after: str | None, limit: int) -> tuple[list[Row], bool]:
        """The first ``limit`` rows with ``after < path``, in path order, and whether more follow.

        Parts may overlap, as those of a listing in another order do; only those that can hold one of these rows are
        read.
        """
        low = sort_key(after) if after is not None else None
        parts = sorted(
            (part for part in self.parts if low is None or sort_key(part.last) > low), key=lambda p: sort_key(p.first)
        )
        found: list[tuple[str, Row]] = []
        kept: dict[str, list[Row]] = {}
        for number, part in enumerate(parts):
            rows = self._kept.get(part.key) or await read_part(self._store, part)
            kept[part.key] = rows
            keyed = [(sort_key(row["path"]), row) for row in rows]
            found = sorted([*found, *((key, row) for key, row in keyed if low is None or key > low)], key=_first)
            following = sort_key(parts[number + 1].first) if number + 1 < len(parts) else None
            if len(found) > limit and (following is None or found[limit][0] <= following):
                break
        self._kept = dict(list(kept.items())[-2:])
        return [row for _, row in found[:limit]], len(found) > limit


class PartWriter:
    """Collects sorted rows into parts named ``<prefix>-00000.parquet`` and so on."""

    def __init__(self, store: RunStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._rows: list[Row] = []
        self._number = 0
        self.parts: list[Part] = []

    async def add(self, row: Row) -> None:
        self._rows.append(row)
        if len(self._rows) >= 2 * ROWS_PER_PART:
            await self._write(ROWS_PER_PART)

    async def keep(self, part: Part) -> None:
        """Take over an existing part as it stands; its rows follow those added so far."""
        await self.flush()
        self.parts.append(part)

    async def flush(self) -> None:
        """Write what is held; in halves where it is more than a part, so that one row too many makes no part of one."""
        if len(self._rows) > ROWS_PER_PART:
            await self._write(len(self._rows) // 2)
        if self._rows:
            await self._write(len(self._rows))

    async def _write(self, rows: int) -> None:
        key = f"{self._prefix}-{self._number:05d}.parquet"
        self.parts.append(await write_part(self._store, key, self._rows[:rows]))
        self._number += 1
        del self._rows[:rows]


Change = tuple[str, Row | None]
"""A path and its new row; None removes it."""


async def apply_changes(
    store: RunStore, old: Sequence[Part], changes: AsyncIterator[Change], prefix: str
) -> list[Part]:
    """Merge sorted changes into sorted parts; parts that no change touches are kept, not copied.

    Args:
        store: Where the parts lie.
        old: The catalog's parts, in order.
        changes: In the order of ``sort_key``, each path at most once.
        prefix: Key prefix of new parts; must differ from that of any part in ``old``.

    Returns:
        The new catalog's parts. The old ones stay; whoever switches the index deletes what it no longer names.
    """
    writer = PartWriter(store, prefix)
    pending = await anext(changes, None)
    for index, part in enumerate(old):
        is_last = index == len(old) - 1
        # A short last part takes what comes after it, so that runs of a few files each do not leave a part each.
        grows = is_last and part.rows < ROWS_PER_PART // 2
        if pending is None or (sort_key(pending[0]) > sort_key(part.last) and not grows):
            await writer.keep(part)
            continue
        for row in await read_part(store, part):
            key = sort_key(row["path"])
            while pending is not None and sort_key(pending[0]) < key:
                if pending[1] is not None:
                    await writer.add(pending[1])
                pending = await anext(changes, None)
            if pending is not None and pending[0] == row["path"]:
                if pending[1] is not None:
                    await writer.add(pending[1])
                pending = await anext(changes, None)
            else:
                await writer.add(row)
        if not grows:
            await writer.flush()
    while pending is not None:
        if pending[1] is not None:
            await writer.add(pending[1])
        pending = await anext(changes, None)
    await writer.flush()
    return writer.parts
