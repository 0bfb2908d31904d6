"""A table of paths, sorted, in Parquet parts of an object store: the ledger, and what a listing of the lake showed.

A planner that walks a source in order needs only the rows between the first and the last path of its page, so a
catalog of a million rows costs a page two or three reads and no memory to speak of.
"""

import io
import json
from bisect import bisect_left, bisect_right
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shared.policy.paths import sort_key
from shared.ports import RunStore

ROWS_PER_PART = 20_000
# Rows that are Python objects at once; the rest of a part stays as Arrow has it, in a tenth of the memory.
_ROWS_AT_ONCE = 2_000

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


def _packed(rows: Sequence[Row]) -> Any:
    """Rows as an Arrow table."""
    import pyarrow as pa

    # Of all rows, since a part may hold older ones that lack a column.
    names = {name: None for row in rows for name in row}
    return pa.table({name: [row.get(name) for row in rows] for name in names})


async def write_part(store: RunStore, key: str, rows: Sequence[Row]) -> Part:
    """Write rows that are sorted by ``sort_key`` of their ``path``."""
    return await _write_part(store, key, _packed(rows))


async def _write_part(store: RunStore, key: str, table: Any) -> Part:
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    await store.put(key, sink.getvalue())
    paths = table.column("path")
    return Part(key, paths[0].as_py(), paths[-1].as_py(), table.num_rows)


class PartRows:
    """The rows of one part, in order, with the ``sort_key`` of each path."""

    def __init__(self, table: Any) -> None:
        self._table = table
        self.keys: list[str] = [sort_key(path) for path in table.column("path").to_pylist()]

    def rows(self, first: int = 0, end: int | None = None) -> Iterator[Row]:
        """Rows of these positions, a few at a time."""
        end = len(self.keys) if end is None else end
        for at in range(first, end, _ROWS_AT_ONCE):
            yield from self._table.slice(at, min(_ROWS_AT_ONCE, end - at)).to_pylist()


async def load_part(store: RunStore, part: Part) -> PartRows:
    """Raises LookupError where the part is gone."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = await store.get(part.key)
    if data is None:
        raise LookupError(f"the catalog part {part.key} is gone from the run store")
    # By the thread that asks: a part is too small for Arrow's own, each of which keeps memory of its own.
    return PartRows(pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False))


async def read_part(store: RunStore, part: Part) -> list[Row]:
    return list((await load_part(store, part)).rows())


def _first(keyed: tuple[str, Row]) -> str:
    return keyed[0]


class Catalog:
    """Sorted parts, read by range. Keeps what it read last, since pages follow each other."""

    def __init__(self, store: RunStore, parts: Sequence[Part]) -> None:
        self._store = store
        self.parts = list(parts)
        self._kept: dict[str, PartRows] = {}

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    async def between(self, after: str | None, last: str | None) -> dict[str, Row]:
        """Rows with ``after < path <= last`` in path order; None leaves that side open."""
        low = sort_key(after) if after is not None else None
        high = sort_key(last) if last is not None else None
        found: dict[str, Row] = {}
        for part in self.parts:
            if (low is not None and sort_key(part.last) <= low) or (high is not None and sort_key(part.first) > high):
                continue
            loaded = await self._load(part)
            begin = bisect_right(loaded.keys, low) if low is not None else 0
            end = bisect_right(loaded.keys, high) if high is not None else None
            for row in loaded.rows(begin, end):
                found[row["path"]] = row
        return found

    async def _load(self, part: Part) -> PartRows:
        """A part; the two that were read last are kept."""
        loaded = self._kept.pop(part.key, None) or await load_part(self._store, part)
        self._kept[part.key] = loaded
        while len(self._kept) > 2:
            del self._kept[next(iter(self._kept))]
        return loaded

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
                loaded = await self._load(part)
                at = bisect_left(loaded.keys, key)
                if at < len(loaded.keys) and loaded.keys[at] == key:
                    return next(loaded.rows(at, at + 1))
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
        for number, part in enumerate(parts):
            loaded = await self._load(part)
            begin = bisect_right(loaded.keys, low) if low is not None else 0
            # No more than can be among the first, with one to tell whether more follow.
            end = min(len(loaded.keys), begin + limit + 1)
            keyed = zip(loaded.keys[begin:end], loaded.rows(begin, end), strict=True)
            found = sorted([*found, *keyed], key=_first)[: limit + 1]
            following = sort_key(parts[number + 1].first) if number + 1 < len(parts) else None
            if len(found) > limit and (following is None or found[limit][0] <= following):
                break
        return [row for _, row in found[:limit]], len(found) > limit


class PartWriter:
    """Collects sorted rows into parts named ``<prefix>-00000.parquet`` and so on."""

    def __init__(self, store: RunStore, prefix: str) -> None:
        self._store = store
        self._prefix = prefix
        self._rows: list[Row] = []
        self._packed: list[Any] = []
        self._count = 0
        self._number = 0
        self.parts: list[Part] = []

    async def add(self, row: Row) -> None:
        self._rows.append(row)
        self._count += 1
        if len(self._rows) >= _ROWS_AT_ONCE:
            self._pack()
        if self._count >= 2 * ROWS_PER_PART:
            await self._write(ROWS_PER_PART)

    async def keep(self, part: Part) -> None:
        """Take over an existing part as it stands; its rows follow those added so far."""
        await self.flush()
        self.parts.append(part)

    async def flush(self) -> None:
        """Write what is held; in halves where it is more than a part, so that one row too many makes no part of one."""
        if self._count > ROWS_PER_PART:
            await self._write(self._count // 2)
        if self._count:
            await self._write(self._count)

    def _pack(self) -> None:
        if self._rows:
            self._packed.append(_packed(self._rows))
            self._rows = []

    async def _write(self, rows: int) -> None:
        import pyarrow as pa

        self._pack()
        table = pa.concat_tables(self._packed, promote_options="permissive")
        key = f"{self._prefix}-{self._number:05d}.parquet"
        self.parts.append(await _write_part(self._store, key, table.slice(0, rows)))
        self._number += 1
        self._packed = [table.slice(rows)] if rows < table.num_rows else []
        self._count -= rows


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
        for row in (await load_part(store, part)).rows():
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
