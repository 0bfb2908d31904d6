"""Changes by key into a Delta table: copy on write, in memory that does not grow with the table.

1. The changes are held in memory; where they are too many, those of one range of keys after another (by the values of
   that column of the key which has the most; all changes of one value are held together).
2. Files whose bounds leave no room for any of these keys are not looked at. Of the others the key columns are read,
   row group by row group; only where a key is found, the rest of the row group, to see whether it changes anything.
3. A file in which a row changes is read once more and written anew, row group by row group; what is new goes behind it.

Nothing that is there changes before the caller commits the files to add and to remove.

``merge``: a row's last change is its state. ``history``: each state that differs from the one before it is a row,
valid from the moment of the commit; several of one key lie a microsecond apart, in their order.

=========== ====================================================== ===================================================
deletes     merge                                                  history
=========== ====================================================== ===================================================
``soft``    ``_deleted`` and ``_deleted_at`` are set; a row that   the last state ends, and is marked so
            comes again loses the mark
``hard``    the row goes                                           every state of the row goes
``ignore``  the row stays                                          the last state stays current
=========== ====================================================== ===================================================
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.clients.lake_tables.arrow import as_nullable, conform
from shared.clients.lake_tables.keys import Ids, KeyIndex, Mask, as_mask, assert_key
from shared.clients.lake_tables.log import DataFile
from shared.clients.lake_tables.parts import LakePartsWriter
from shared.clients.lake_tables.ranges import columns_for, may_hold, rows_within
from shared.clients.lake_tables.reading import LakeParquet
from shared.clients.lake_tables.states import History, Last, States
from shared.clients.onelake.tree import LakeTree
from shared.errors import MigrationError
from shared.policy.sql.schema import DELETED, DELETED_AT, IS_CURRENT, VALID_FROM, VALID_TO
from shared.ports.tables import OPERATION_COLUMN, ORDER_COLUMN, LakeColumn, PartFile, TableCommit

MOMENT = "timestamp[us, UTC]"
SOFT_DELETE = (LakeColumn(DELETED, "bool"), LakeColumn(DELETED_AT, MOMENT))
HISTORY = (LakeColumn(VALID_FROM, MOMENT), LakeColumn(VALID_TO, MOMENT), LakeColumn(IS_CURRENT, "bool"))
_OURS = (DELETED, DELETED_AT, VALID_FROM, VALID_TO, IS_CURRENT)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Copies that sorting and taking make of the changes in hand.
_COPIES = 4
_SAMPLE_OF_GROUP = 1000
# What Spark cuts off a time's upper bound.
_BOUND_SLACK_US = 1000


def added_columns(commit: TableCommit) -> tuple[LakeColumn, ...]:
    """Columns that the table has beside those of the commit."""
    wanted = (HISTORY if commit.disposition == "history" else ()) + (SOFT_DELETE if commit.deletes == "soft" else ())
    names = {column.name for column in commit.columns}
    return tuple(column for column in wanted if column.name not in names)


@dataclass(slots=True)
class Merged:
    """What a merge has written, and what it did."""

    parts: list[PartFile] = field(default_factory=list)
    removed: list[DataFile] = field(default_factory=list)
    kept: list[DataFile] = field(default_factory=list)
    superseded: list[PartFile] = field(default_factory=list)
    inserted: int = 0
    updated: int = 0
    deleted: int = 0


class Merge:
    """One commit's changes into one version of a table.

    Args:
        tree: The table's folder.
        schema: Of the table after the commit.
        commit: With disposition merge or history.
        memory_bytes: Of changes in memory at once, about.
        moment: Of the commit.
        writer: Makes a writer of files of the table.
        rewrite_all: Every file is to be written anew, since a type becomes wider.
    """

    def __init__(
        self,
        tree: LakeTree,
        schema: pa.Schema,
        commit: TableCommit,
        *,
        memory_bytes: int,
        moment: datetime,
        writer: Callable[[], LakePartsWriter],
        rewrite_all: bool,
    ) -> None:
        assert_key(schema, commit.key, commit.disposition)
        self.tree = tree
        self.schema = as_nullable(schema)
        self.commit = commit
        self.key = list(commit.key)
        self.data = [name for name in schema.names if name not in _OURS]
        self.moment_us = (moment - _EPOCH) // timedelta(microseconds=1)
        self.rewrite_all = rewrite_all
        self._change_schema = pa.schema(
            [self.schema.field(name) for name in self.data]
            + [pa.field(OPERATION_COLUMN, pa.string()), pa.field(ORDER_COLUMN, pa.int64())]
        )
        self._memory_bytes = max(1, memory_bytes // _COPIES)
        self._writer = writer

    async def run(self, files: Sequence[DataFile]) -> Merged:
        """Write the files; on a failure none of them is left."""
        done = Merged(kept=list(files))
        try:
            async for chunk in self._chunks():
                await (await asyncio.to_thread(_Pass, self, chunk, done)).run()
        except BaseException:
            for part in (*done.parts, *done.superseded):
                with suppress(MigrationError):
                    await self.tree.delete(part.path, etag="")
            raise
        return done

    def begin(self) -> LakePartsWriter:
        return self._writer()

    # -- the changes ---------------------------------------------------------------------------------------------

    async def _chunks(self) -> AsyncIterator["Chunk"]:
        held: list[pa.Table] = []
        total_bytes = 0
        sample: list[pa.Table] = []
        async for table in self._changes():
            total_bytes += table.nbytes
            sample.append(_thin(table.select(self.key), _SAMPLE_OF_GROUP))
            if total_bytes <= self._memory_bytes:
                held.append(table)
            else:
                held = []
        if total_bytes <= self._memory_bytes:
            yield Chunk(await asyncio.to_thread(self._joined, held), None)
            return
        count = -(-total_bytes // self._memory_bytes)
        column, bounds = _cuts(pa.concat_tables(sample), self.key, count)
        for low, high in zip([None, *bounds], [*bounds, None], strict=True):
            place = _Place(column, low, high)
            held = [table.filter(place.mask(table)) async for table in self._changes()]
            yield Chunk(await asyncio.to_thread(self._joined, held), place)

    async def _changes(self) -> AsyncIterator[pa.Table]:
        """The rows of the parts with all data columns, an operation and an order."""
        wanted = self._change_schema
        arrived = 0
        for part in self.commit.parts:
            file = await LakeParquet.open(self.tree, part.path, part.size_bytes)
            has_order = ORDER_COLUMN in file.schema.names
            async for group in file.row_groups(wanted.names):
                table = conform(group, wanted)
                if not has_order:
                    order = pa.array(np.arange(arrived, arrived + table.num_rows))
                    table = table.set_column(table.num_columns - 1, wanted.field(ORDER_COLUMN), order)
                arrived += table.num_rows
                if self.commit.deletes == "ignore":
                    table = table.filter(pc.fill_null(pc.not_equal(table[OPERATION_COLUMN], "delete"), True))
                yield table

    def _joined(self, tables: Sequence[pa.Table]) -> pa.Table:
        """In the order in which they happened."""
        table = pa.concat_tables(tables) if tables else self._change_schema.empty_table()
        return table.take(pc.sort_indices(table, sort_keys=[(ORDER_COLUMN, "ascending")])).combine_chunks()


@dataclass(frozen=True, slots=True)
class _Place:
    """The rows whose ``column`` lies in [low, high); the first place has those without a value."""

    column: str
    low: Any
    high: Any

    def mask(self, table: pa.Table) -> pa.Array:
        values = table.column(self.column)
        mask = pc.is_valid(values)
        if self.low is not None:
            mask = pc.and_(mask, pc.fill_null(pc.greater_equal(values, self.low), False))
        else:
            mask = pc.or_(mask, pc.is_null(values))
        if self.high is not None:
            mask = pc.and_(mask, pc.fill_null(pc.less(values, self.high), self.low is None))
        return mask


@dataclass(frozen=True, slots=True)
class Chunk:
    """Changes in their order, of all keys of one place or of all."""

    rows: pa.Table
    place: _Place | None


class _Pass:
    """Applies one chunk of changes to the files of the table as the chunks before it have left them."""

    def __init__(self, merge: Merge, chunk: Chunk, done: Merged) -> None:
        self._merge = merge
        self._place = chunk.place
        self._done = done
        self._index = KeyIndex(chunk.rows, merge.key)
        self._keys = chunk.rows.select(merge.key)
        self._range = merge.commit.whole_key_range if merge.commit.deletes != "ignore" else None
        of = History if merge.commit.disposition == "history" else Last
        self._states: States = of(merge.commit, merge.schema, merge.data, merge.moment_us, chunk.rows, self._index)
        self._writer: LakePartsWriter | None = None

    async def run(self) -> None:
        try:
            await self._run()
        except BaseException:
            if self._writer is not None:
                await self._writer.abort()
            raise

    async def _run(self) -> None:
        candidates = await asyncio.to_thread(lambda: [one for one in self._done.kept if self._is_candidate(one)])
        changing = {one.path for one in candidates if await self._look(one)}
        await asyncio.to_thread(self._states.settle)
        touched = [
            one for one in candidates if one.path in changing or self._states.concerns(one.path) or self._is_old(one)
        ]
        for file in touched:
            await self._rewrite(file)
        await self._write(await asyncio.to_thread(self._states.new_rows))
        self._done.inserted += self._states.inserted
        self._done.updated += self._states.updated
        self._done.deleted += self._states.deleted
        written = await self._writer.close() if self._writer is not None else []
        self._take(touched, written)

    def _take(self, touched: Sequence[DataFile], written: Sequence[PartFile]) -> None:
        done = self._done
        own = {part.path: part for part in done.parts}
        for file in touched:
            done.kept.remove(file)
            if file.path in own:
                done.parts.remove(own[file.path])
                done.superseded.append(own[file.path])
            else:
                done.removed.append(file)
        done.parts += written
        done.kept += [DataFile(part.path, part.rows, part.size_bytes, {}, {}, {}) for part in written]

    # -- which files ---------------------------------------------------------------------------------------------

    def _is_candidate(self, file: DataFile) -> bool:
        return self._is_old(file) or self._may_hold(file.low, file.high, file.nulls)

    def _is_old(self, file: DataFile) -> bool:
        """Whether the file has to be written anew in any case."""
        return self._merge.rewrite_all and file.path not in {part.path for part in self._done.parts}

    def _may_hold(self, low: Any, high: Any, nulls: Any) -> bool:
        """Whether rows with these bounds can be of the keys in hand, or of the range whose other rows are to go."""
        if self._range is not None:
            place = self._merge.schema.get_field_index(self._range.column)
            name = self._range.column
            if place < 0 or may_hold(
                self._merge.schema.field(place), low.get(name), high.get(name), nulls.get(name), self._range
            ):
                return True
        mask: Any = None
        for name in self._merge.key:
            type_ = self._merge.schema.field(name).type
            if low.get(name) is None or high.get(name) is None:
                continue
            try:
                first, last = pa.scalar(low[name], type_), pa.scalar(high[name], type_)
            except (pa.ArrowInvalid, pa.ArrowTypeError):
                continue
            values = self._keys.column(name)
            if pa.types.is_timestamp(type_):
                values, first, last = values.cast(pa.int64()), first.cast(pa.int64()), last.cast(pa.int64())
                last = pc.add(last, _BOUND_SLACK_US)
            inside = pc.and_(pc.greater_equal(values, first), pc.less_equal(values, last))
            inside = pc.fill_null(inside, nulls.get(name) != 0)
            mask = inside if mask is None else pc.and_(mask, inside)
        if mask is None:
            return bool(self._keys.num_rows)
        return bool(pc.any(mask).as_py())

    def _may_hold_group(self, file: LakeParquet, number: int) -> bool:
        group = file.metadata.row_group(number)
        low, high, nulls = {}, {}, {}
        wanted = {*self._merge.key, *([self._range.column] if self._range else [])}
        for place in range(group.num_columns):
            chunk = group.column(place)
            found = chunk.statistics
            if chunk.path_in_schema not in wanted or found is None or not found.has_min_max:
                continue
            if found.has_null_count:
                nulls[chunk.path_in_schema] = found.null_count
            low[chunk.path_in_schema], high[chunk.path_in_schema] = found.min, found.max
        return self._may_hold(low, high, nulls)

    # -- looking at rows -----------------------------------------------------------------------------------------

    async def _look(self, file: DataFile) -> bool:
        """Read the keys of a file; whether any of its rows changes, as far as that can be told yet."""
        merge = self._merge
        opened = await LakeParquet.open(merge.tree, file.path, file.size_bytes)
        own = [name for name in _OURS if name in merge.schema.names]
        names = list(dict.fromkeys([*merge.key, *own, *columns_for(self._range, merge.schema.names), *self._placed()]))
        narrow = pa.schema([merge.schema.field(name) for name in names])
        changes: bool = False
        for number in range(opened.metadata.num_row_groups):
            if not await asyncio.to_thread(self._may_hold_group, opened, number):
                continue
            rows = conform(await opened.row_group(number, names), narrow)
            ids, gone = await asyncio.to_thread(self._find, rows)
            changes |= self._states.look(file.path, rows, ids, gone)
            if (self._states.needs_all or not changes) and self._states.wants_values(rows, ids):
                rows = conform(await opened.row_group(number), merge.schema)
                changes = await asyncio.to_thread(self._states.look_at_values, rows, ids) or changes
            if changes and not self._states.needs_all:
                break
        return changes

    def _placed(self) -> list[str]:
        return [self._place.column] if self._place is not None else []

    def _find(self, rows: pa.Table) -> tuple[Ids, Mask]:
        """Each row's key, and whether it is one that the source no longer has."""
        ids = self._index.find(rows)
        if self._range is None:
            return ids, np.zeros(len(ids), np.bool_)
        gone = as_mask(rows_within(rows, self._range)) & (ids < 0)
        if self._place is not None:
            gone &= as_mask(self._place.mask(rows))
        return ids, gone

    # -- writing -------------------------------------------------------------------------------------------------

    async def _rewrite(self, file: DataFile) -> None:
        merge = self._merge
        opened = await LakeParquet.open(merge.tree, file.path, file.size_bytes)
        async for group in opened.row_groups():
            await self._write(await asyncio.to_thread(self._rewritten, group))

    def _rewritten(self, group: pa.Table) -> pa.Table:
        rows = conform(group, self._merge.schema)
        ids, gone = self._find(rows)
        return self._states.apply(rows, ids, gone)

    async def _write(self, rows: pa.Table) -> None:
        if not rows.num_rows:
            return
        if self._writer is None:
            self._writer = self._merge.begin()
        for batch in rows.to_batches():
            await self._writer.write(batch)


def _thin(table: pa.Table, rows: int) -> pa.Table:
    """Some rows, evenly taken."""
    step = max(1, table.num_rows // max(1, rows))
    return table.take(pa.array(np.arange(0, table.num_rows, step)))


def _cuts(sample: pa.Table, key: Sequence[str], count: int) -> tuple[str, list[Any]]:
    """The key's column with the most values, and where to cut it into so many ranges of about as many rows."""
    column = max(key, key=lambda name: pc.count_distinct(sample.column(name)).as_py())
    values = sample.column(column).drop_null()
    ordered = values.take(pc.sort_indices(values))
    places = [len(ordered) * number // count for number in range(1, count)]
    bounds: list[Any] = []
    for place in places if len(ordered) else []:
        bound = ordered[place]
        if not bounds or not bound.equals(bounds[-1]):
            bounds.append(bound)
    return column, bounds
