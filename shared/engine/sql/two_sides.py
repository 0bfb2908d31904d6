"""The same range of a table's rows in the source and in the lake: equal or not, and which rows are not."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.engine.sql import quality, sums
from shared.engine.sql.row_digests import Digests, row_digests
from shared.engine.sql.sessions import SessionThread
from shared.policy.sql.schema import DELETED, IS_CURRENT, is_wider
from shared.ports.tables import (
    OPERATION_COLUMN,
    ORDER_COLUMN,
    KeyRange,
    LakeColumn,
    LakeTable,
    Selection,
    TableShape,
    Window,
)

_BATCH_BYTES = 8 * 1024 * 1024
_NONE: Digests = np.empty(0, np.uint64)


@dataclass(frozen=True, slots=True)
class Compared:
    """A column that both sides have: as the source has it, its name in the lake, and a type that holds both."""

    source: LakeColumn
    lake_name: str
    type: str


@dataclass(frozen=True, slots=True)
class Difference:
    """Of one range: digests of keys (of whole rows, where there is no key).

    Attributes:
        within: The range, None for all rows.
        missing: In the source alone.
        different: In both, with other values.
        extra: In the lake alone.
        pending: How many differ because the next increment will bring them.
        quarantined: How many differ because quality rules keep them apart.
        columns: Whose sums differ.
    """

    within: KeyRange | None
    missing: Digests
    different: Digests
    extra: Digests
    pending: int
    quarantined: int
    columns: tuple[str, ...]


def comparable(source: Sequence[LakeColumn], lake: Sequence[LakeColumn], names: Mapping[str, str]) -> list[Compared]:
    """Columns of both sides whose types go together; ``names`` are those in the lake by the source's."""
    types = {column.name: column.type for column in lake}
    found = []
    for column in source:
        name = names[column.name]
        theirs = types.get(name)
        if theirs is None:
            continue
        if theirs == column.type or is_wider(theirs, column.type):
            found.append(Compared(column, name, theirs))
        elif is_wider(column.type, theirs):
            found.append(Compared(column, name, column.type))
    return found


class TwoSides:
    """A table in one session of the source, and in the lake. Counts what it has compared.

    Args:
        session: Of one moment, where there is such a thing.
        lake: The table in the lake.
        shape: The table in the source, with the columns that are read.
        lake_columns: All that the lake has.
        columns: Those that are compared, by :func:`comparable`.
        rules: Quality rules of the table; rows that one of them quarantines are in no lake.
        by_key: Whether rows are known by the shape's key, else by all their values.
        window: Which of the source's rows the lake ought to have; None: all.
    """

    def __init__(
        self,
        session: SessionThread,
        lake: LakeTable,
        shape: TableShape,
        lake_columns: Sequence[LakeColumn],
        columns: Sequence[Compared],
        rules: Sequence[quality.Rule],
        *,
        by_key: bool,
        window: Window | None,
    ) -> None:
        self._session, self._lake, self._window = session, lake, window
        compared = {one.source.name for one in columns}
        whole = tuple(one for one in shape.columns if all(lake.name in compared for lake in one.lake))
        self._shape = shape
        self._compared_shape = replace(shape, columns=whole)
        names = {one.name for one in self._compared_shape.lake_columns}
        self._columns = [one for one in columns if one.source.name in names]
        self._lake_names = {one.source.name: one.lake_name for one in self._columns}
        key = {lake.name for one in shape.columns if one.name in shape.key for lake in one.lake}
        self._key = [one for one in self._columns if one.source.name in key] if by_key else self._columns
        self._key_shape = replace(shape, columns=tuple(one for one in shape.columns if one.name in shape.key))
        self._rules = [rule for rule in rules if rule.action == "quarantine"]
        self.lake_changed(lake_columns)
        self._by_key = by_key
        self._pending = _NONE
        self.source_rows = self.lake_rows = self.ranges = 0

    def lake_changed(self, lake_columns: Sequence[LakeColumn]) -> None:
        """A commit may have brought the columns by which readers know deleted rows."""
        there = {column.name for column in lake_columns}
        self._ours = [name for name in (DELETED, IS_CURRENT) if name in there]
        self._read = [one.lake_name for one in self._columns] + self._ours

    async def read_pending(self, window: Window) -> None:
        """Remember the keys of changed rows, whose differences are none."""
        selection = Selection(self._key_shape, window=window)
        columns = [replace(one.source, type=one.type) for one in self._key]
        found = [_NONE]
        async with aclosing(self._session.batches(selection, _BATCH_BYTES)) as batches:
            async for batch in batches:
                found.append(await asyncio.to_thread(row_digests, batch, columns))
        self._pending = np.unique(np.concatenate(found))

    async def is_equal(self, within: KeyRange | None, *, counted: bool) -> bool:
        """Whether rows and checksums agree, as computed by the database and over the lake.

        ``counted``: these rows have not been looked at before.
        """
        self.ranges += 1
        return not await self._unequal(within, counted=counted)

    async def difference(self, within: KeyRange | None) -> Difference | None:
        """Which rows differ; None where none do."""
        source = await self._source_digests(within)
        lake = await self._lake_digests(within)
        missing, different, extra = _differing(source.rows, lake, by_key=self._by_key)
        pending = sum(int(np.isin(one, self._pending).sum()) for one in (missing, different, extra))
        # Of a row that is pending, and kept apart too, the first is told.
        missing, different, extra = (_without(one, self._pending) for one in (missing, different, extra))
        apart = int(np.isin(extra, source.quarantined).sum())
        extra = _without(extra, source.quarantined)
        if not (len(missing) or len(different) or len(extra) or pending or apart):
            return None
        columns = await self._unequal(within, counted=False)
        return Difference(within, missing, different, extra, pending, apart, tuple(columns))

    # -- rows that are to be mended ----------------------------------------------------------------------------------

    async def upserts(
        self, difference: Difference, names: Mapping[str, str], *, order: int
    ) -> AsyncIterator[pa.RecordBatch]:
        """The source's rows that are missing or different, with all columns under the lake's names, as changes."""
        wanted = np.concatenate((difference.missing, difference.different))
        if not len(wanted):
            return
        checks = quality.RowChecks(self._rules)
        selection = Selection(self._shape, difference.within, self._window, rules=checks.compiled)
        async with aclosing(self._session.batches(selection, _BATCH_BYTES)) as batches:
            async for batch in batches:
                rows, _ = await asyncio.to_thread(checks.split, batch)
                chosen = rows.filter(pa.array(np.isin(self._key_of_source(rows), wanted)))
                if chosen.num_rows:
                    columns = {names[name]: chosen.column(name) for name in chosen.schema.names}
                    yield _as_changes(columns, chosen.num_rows, "upsert", order)
                    order += chosen.num_rows

    async def removals(self, difference: Difference, *, order: int) -> AsyncIterator[pa.RecordBatch]:
        """Keys of the lake's rows that are extra, as changes."""
        async for batch in self._lake_batches(difference.within):
            chosen = batch.filter(pa.array(np.isin(self._key_of_lake(batch), difference.extra)))
            if chosen.num_rows:
                columns = {one.lake_name: chosen.column(one.lake_name) for one in self._key}
                yield _as_changes(columns, chosen.num_rows, "delete", order)
                order += chosen.num_rows

    # -- sums --------------------------------------------------------------------------------------------------------

    async def _unequal(self, within: KeyRange | None, *, counted: bool) -> list[str]:
        """Names of columns whose sums differ, or ``""`` where the numbers of rows do."""
        selection = Selection(self._compared_shape, within, self._window)
        source = await self._session.call(self._session.session.summary, selection, checksums=True)
        columns = [replace(one.source, name=one.lake_name) for one in self._columns]
        found = sums.Sums(columns, source.definition)
        fits = True
        async with aclosing(self._lake_batches(within)) as batches:
            async for batch in batches:
                try:
                    await asyncio.to_thread(found.add, batch)
                except ValueError:
                    # A value of the lake's wider type that the source's cannot hold is none of the source's.
                    fits = False
                    break
        if counted:
            self.source_rows += source.rows
        if counted:
            self.lake_rows += found.rows
        if not fits:
            return [""]
        theirs = found.result()
        unequal = [name for name, one in source.columns.items() if theirs[self._lake_names[name]] != one]
        return unequal or ([""] if source.rows != found.rows else [])

    # -- rows --------------------------------------------------------------------------------------------------------

    async def _source_digests(self, within: KeyRange | None) -> "Apart":
        checks = quality.RowChecks(self._rules)
        keys, rows, bad_keys = [_NONE], [_NONE], [_NONE]
        # A rule may look at a column that is not compared.
        shape = self._shape if self._rules else self._compared_shape
        selection = Selection(shape, within, self._window, rules=checks.compiled)
        async with aclosing(self._session.batches(selection, _BATCH_BYTES)) as batches:
            async for batch in batches:
                good, bad = await asyncio.to_thread(checks.split, batch)
                if bad is not None:
                    bad_keys.append(self._key_of_source(bad))
                found = await asyncio.to_thread(self._of_source, good)
                keys.append(found[0])
                rows.append(found[1])
        return Apart((np.concatenate(keys), np.concatenate(rows)), np.unique(np.concatenate(bad_keys)))

    async def _lake_digests(self, within: KeyRange | None) -> tuple[Digests, Digests]:
        keys, rows = [_NONE], [_NONE]
        columns = [LakeColumn(one.lake_name, one.type) for one in self._columns]
        async for batch in self._lake_batches(within):
            keys.append(self._key_of_lake(batch))
            rows.append(await asyncio.to_thread(row_digests, batch, columns))
        return np.concatenate(keys), np.concatenate(rows)

    def _of_source(self, batch: pa.RecordBatch) -> tuple[Digests, Digests]:
        columns = [replace(one.source, type=one.type) for one in self._columns]
        return self._key_of_source(batch), row_digests(batch, columns)

    def _key_of_source(self, batch: pa.RecordBatch) -> Digests:
        return row_digests(batch, [replace(one.source, type=one.type) for one in self._key])

    def _key_of_lake(self, batch: pa.RecordBatch) -> Digests:
        return row_digests(batch, [LakeColumn(one.lake_name, one.type) for one in self._key])

    async def _lake_batches(self, within: KeyRange | None) -> AsyncGenerator[pa.RecordBatch]:
        """Rows that are, for a reader, the source's: neither deleted nor of the past."""
        place = None
        if within is not None:
            place = replace(within, column=self._lake_names_of(within.column))
        async for batch in self._lake.read(self._read, within=place):
            if self._ours:
                alive = pa.array([True] * batch.num_rows, pa.bool_())
                if DELETED in self._ours:
                    alive = pc.and_(alive, pc.invert(pc.fill_null(batch.column(DELETED), False)))
                if IS_CURRENT in self._ours:
                    alive = pc.and_(alive, pc.fill_null(batch.column(IS_CURRENT), False))
                batch = batch.filter(alive)
            yield batch.select([one.lake_name for one in self._columns])

    def _lake_names_of(self, source_column: str) -> str:
        first = next(one.lake[0].name for one in self._shape.columns if one.name == source_column)
        return self._lake_names[first]


@dataclass(frozen=True, slots=True)
class Apart:
    """Digests of keys and of rows of the source; and of the keys of rows that are kept apart."""

    rows: tuple[Digests, Digests]
    quarantined: Digests


def _as_changes(columns: Mapping[str, pa.Array], rows: int, operation: str, order: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({
        **columns,
        OPERATION_COLUMN: pa.repeat(operation, rows),
        ORDER_COLUMN: pa.array(np.arange(order, order + rows, dtype=np.int64)),
    })  # fmt: skip


def _without(digests: Digests, others: Digests) -> Digests:
    return digests[~np.isin(digests, others)] if len(others) else digests


def _differing(
    source: tuple[Digests, Digests], lake: tuple[Digests, Digests], *, by_key: bool
) -> tuple[Digests, Digests, Digests]:
    """Keys that are missing in the lake, with other rows, or extra; without a key as often as they are."""
    our_keys, our_sums, our_counts = _grouped(*source)
    their_keys, their_sums, their_counts = _grouped(*lake)
    _, ours, theirs = np.intersect1d(our_keys, their_keys, assume_unique=True, return_indices=True)
    missing = np.setdiff1d(our_keys, their_keys, assume_unique=True)
    extra = np.setdiff1d(their_keys, our_keys, assume_unique=True)
    if by_key:
        unlike = (our_sums[ours] != their_sums[theirs]) | (our_counts[ours] != their_counts[theirs])
        return missing, our_keys[ours][unlike], extra
    more = our_counts[ours] - their_counts[theirs]
    both = our_keys[ours]
    missing = np.repeat(missing, our_counts[np.isin(our_keys, missing)])
    extra = np.repeat(extra, their_counts[np.isin(their_keys, extra)])
    return (
        np.concatenate((missing, np.repeat(both, np.maximum(more, 0)))),
        _NONE,
        np.concatenate((extra, np.repeat(both, np.maximum(-more, 0)))),
    )


def _grouped(keys: Digests, rows: Digests) -> tuple[Digests, Digests, npt.NDArray[np.int64]]:
    """Distinct keys in order, the sum of the digests of each one's rows, and how many they are."""
    if not len(keys):
        return _NONE, _NONE, np.empty(0, np.int64)
    order = np.argsort(keys)
    keys, rows = keys[order], rows[order]
    starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
    return keys[starts], np.add.reduceat(rows, starts), np.diff(np.append(starts, len(keys)))
