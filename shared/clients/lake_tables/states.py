"""What becomes of rows by the changes to their keys; :mod:`shared.clients.lake_tables.merging` says what is meant."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shared.clients.lake_tables.arrow import conform
from shared.clients.lake_tables.keys import Ids, KeyIndex, Mask, as_mask, differing, whole_column
from shared.policy.sql.schema import DELETED, DELETED_AT, IS_CURRENT, VALID_FROM, VALID_TO
from shared.ports.tables import OPERATION_COLUMN, TableCommit

_UTC = pa.timestamp("us", "UTC")
_LONG_AGO = np.iinfo(np.int64).min


class States:
    """What becomes of rows. ``ids`` are keys by their numbers in the index; ``gone`` are rows that the source lost."""

    needs_all = False
    """Whether every row of a file has to be looked at, also once it is known that the file changes."""

    def __init__(self, commit: TableCommit, schema: pa.Schema, data: Sequence[str], moment_us: int) -> None:
        self.inserted = 0
        self.updated = 0
        self.deleted = 0
        self._schema = schema
        self._key = commit.key
        self._data = data
        self._moment_us = moment_us
        self._is_soft = commit.deletes == "soft"

    def look(self, path: str, rows: pa.Table, ids: Ids, gone: Mask) -> bool:
        """Whether a row changes, told from its key and the columns that are ours."""
        raise NotImplementedError

    def wants_values(self, rows: pa.Table, ids: Ids) -> bool:
        """Whether the other columns of these rows matter."""
        raise NotImplementedError

    def look_at_values(self, rows: pa.Table, ids: Ids) -> bool:
        """Whether a row changes, told from all its columns."""
        raise NotImplementedError

    def settle(self) -> None:
        """All files have been looked at."""

    def concerns(self, path: str) -> bool:
        """Once settled: whether a row of this file changes, where that could not be told before."""
        del path
        return False

    def apply(self, rows: pa.Table, ids: Ids, gone: Mask) -> pa.Table:
        """The rows of a file as they are written anew."""
        raise NotImplementedError

    def new_rows(self) -> pa.Table:
        """Rows that no file had."""
        raise NotImplementedError

    def _marked(self, rows: pa.Table, lost: Mask, at: Any) -> pa.Table:
        """Rows with the mark of a soft delete where they are lost."""
        rows = _set(rows, DELETED, pc.if_else(pa.array(lost), True, whole_column(rows, DELETED)))
        return _set(rows, DELETED_AT, pc.if_else(pa.array(lost), at, whole_column(rows, DELETED_AT)))

    def _in_order(self, rows: pa.Table, *then: str) -> pa.Table:
        keys = [(name, "ascending") for name in (*self._key, *then)]
        return rows.take(pc.sort_indices(rows, sort_keys=keys)) if rows.num_rows else rows


class Last(States):
    """``merge``: the last change of a key is its state."""

    def __init__(
        self,
        commit: TableCommit,
        schema: pa.Schema,
        data: Sequence[str],
        moment_us: int,
        changes: pa.Table,
        index: KeyIndex,
    ) -> None:
        super().__init__(commit, schema, data, moment_us)
        last = np.zeros(index.count, np.int64)
        last[index.ids] = np.arange(len(index.ids))
        final = changes.take(pa.array(last))
        # One more, that is found by the number -1.
        self._is_delete = np.append(as_mask(pc.equal(final[OPERATION_COLUMN], "delete")), False)
        self._seen = np.zeros(index.count + 1, np.bool_)
        self._final = conform(final.select(data), schema)
        if DELETED in schema.names:
            self._final = _set(self._final, DELETED, pa.array([False] * index.count, pa.bool_()))
        self._compared = [*data, *([DELETED] if DELETED in schema.names else [])]
        self._moment = pa.scalar(moment_us, pa.int64()).cast(_UTC)

    def look(self, path: str, rows: pa.Table, ids: Ids, gone: Mask) -> bool:
        del path
        self._seen[ids] = True
        return bool(self._lost(rows, ids, gone).any())

    def wants_values(self, rows: pa.Table, ids: Ids) -> bool:
        del rows
        return bool(self._upserts(ids).any())

    def look_at_values(self, rows: pa.Table, ids: Ids) -> bool:
        return bool(self._differing(rows, ids).any())

    def apply(self, rows: pa.Table, ids: Ids, gone: Mask) -> pa.Table:
        self._seen[ids] = True
        lost = self._lost(rows, ids, gone)
        differ = self._differing(rows, ids)
        self.updated += int(differ.sum())
        self.deleted += int(lost.sum())
        if differ.any():
            places = np.where(differ, ids + rows.num_rows, np.arange(rows.num_rows))
            rows = pa.concat_tables([rows, self._final]).take(pa.array(places))
        if not lost.any():
            return rows
        return self._marked(rows, lost, self._moment) if self._is_soft else rows.filter(pa.array(~lost))

    def new_rows(self) -> pa.Table:
        places = np.flatnonzero(~(self._seen | self._is_delete)[:-1])
        self.inserted += len(places)
        return self._in_order(self._final.take(pa.array(places)))

    def _upserts(self, ids: Ids) -> Mask:
        found: Mask = (ids >= 0) & ~self._is_delete[ids]
        return found

    def _lost(self, rows: pa.Table, ids: Ids, gone: Mask) -> Mask:
        lost: Mask = gone | self._is_delete[ids]
        if self._is_soft:
            lost &= ~as_mask(rows[DELETED])
        return lost

    def _differing(self, rows: pa.Table, ids: Ids) -> Mask:
        places = np.flatnonzero(self._upserts(ids))
        found = np.zeros(len(ids), np.bool_)
        if len(places):
            ours, theirs = rows.take(pa.array(places)), self._final.take(pa.array(ids[places]))
            if DELETED in rows.column_names:
                ours = _set(ours, DELETED, pc.fill_null(whole_column(ours, DELETED), False))
            found[places] = differing(ours, theirs, self._compared)
        return found


class History(States):
    """``history``: each state is a row with the time of its validity.

    A key's states in their order; one that is like the state before it is none, nor is the end of what has ended. What
    is current in the lake is the state before the first.
    """

    needs_all = True
    _OPEN = np.iinfo(np.int64).max

    def __init__(
        self,
        commit: TableCommit,
        schema: pa.Schema,
        data: Sequence[str],
        moment_us: int,
        changes: pa.Table,
        index: KeyIndex,
    ) -> None:
        super().__init__(commit, schema, data, moment_us)
        order = np.argsort(index.ids, kind="stable")
        self._rows = changes.take(pa.array(order))
        self._ids = index.ids[order]
        self._is_end = as_mask(pc.equal(self._rows[OPERATION_COLUMN], "delete"))
        # All by the number of a key, and one more that is found by -1.
        self._erased = np.zeros(index.count + 1, np.bool_)
        if commit.deletes == "hard":
            self._erase(index.count)
        self._first = np.full(index.count + 1, -1, np.int64)
        firsts = np.flatnonzero(np.diff(self._ids, prepend=-1))
        self._first[self._ids[firsts]] = firsts
        self._has_current = np.zeros(index.count + 1, np.bool_)
        self._current_from = np.full(index.count + 1, _LONG_AGO, np.int64)
        self._is_same = np.zeros(index.count + 1, np.bool_)
        self._ends_at = np.full(index.count + 1, self._OPEN, np.int64)
        self._ends_lost = np.zeros(index.count + 1, np.bool_)
        self._keys_of: dict[str, list[Ids]] = {}
        self._erased_in: set[str] = set()

    def _erase(self, count: int) -> None:
        """Of a key that was deleted, only what came after that is left."""
        last_end = np.full(count, -1, np.int64)
        ends = np.flatnonzero(self._is_end)
        last_end[self._ids[ends]] = ends
        self._erased[:-1] = last_end >= 0
        after = np.flatnonzero(np.arange(len(self._ids)) > last_end[self._ids])
        self._rows, self._ids = self._rows.take(pa.array(after)), self._ids[after]
        self._is_end = self._is_end[after]

    def look(self, path: str, rows: pa.Table, ids: Ids, gone: Mask) -> bool:
        current = self._current(rows)
        mine = current & (ids >= 0) & ~self._erased[ids]
        found = ids[mine]
        self._has_current[found] = True
        np.maximum.at(self._current_from, found, _times(rows, VALID_FROM, _LONG_AGO)[mine])
        if len(found):
            self._keys_of.setdefault(path, []).append(np.unique(found))
        if self._erased[ids].any():
            self._erased_in.add(path)
        return bool((gone & current).any() if self._is_soft else gone.any())

    def wants_values(self, rows: pa.Table, ids: Ids) -> bool:
        return bool(self._comparable(rows, ids).any())

    def look_at_values(self, rows: pa.Table, ids: Ids) -> bool:
        places = np.flatnonzero(self._comparable(rows, ids))
        ours, theirs = rows.take(pa.array(places)), self._rows.take(pa.array(self._first[ids[places]]))
        same = ~differing(ours, theirs, self._data)
        self._is_same[ids[places][same]] = True
        return False

    def settle(self) -> None:
        count = len(self._ids)
        is_first = np.diff(self._ids, prepend=-1) != 0
        like_before = np.zeros(count, np.bool_)
        if count > 1:
            unlike = differing(self._rows.slice(1), self._rows.slice(0, count - 1), self._data)
            both_rows = ~self._is_end[1:] & ~self._is_end[:-1]
            like_before[1:] = (both_rows & ~unlike) | (self._is_end[1:] & self._is_end[:-1])
        nothing_new = np.where(self._is_end, ~self._has_current[self._ids], self._is_same[self._ids])
        kept = np.flatnonzero(~np.where(is_first, nothing_new, like_before))
        self._rows, self._ids, self._is_end = self._rows.take(pa.array(kept)), self._ids[kept], self._is_end[kept]
        count = len(kept)
        is_first = np.diff(self._ids, prepend=-1) != 0
        begins = np.maximum.accumulate(np.where(is_first, np.arange(count), 0)) if count else np.empty(0, np.int64)
        base = np.maximum(self._moment_us, self._current_from + 1)
        self._at = base[self._ids] + np.arange(count) - begins
        self._is_first = is_first
        firsts = np.flatnonzero(is_first)
        self._ends_at[self._ids[firsts]] = self._at[firsts]
        self._ends_lost[self._ids[firsts]] = self._is_end[firsts]
        self.deleted += int(self._is_end.sum())

    def concerns(self, path: str) -> bool:
        if path in self._erased_in:
            return True
        return any((self._ends_at[ids] != self._OPEN).any() for ids in self._keys_of.get(path, ()))

    def apply(self, rows: pa.Table, ids: Ids, gone: Mask) -> pa.Table:
        if not self._is_soft:
            erased = gone | self._erased[ids]
            self.deleted += int(erased.sum())
            rows, ids, gone = rows.filter(pa.array(~erased)), ids[~erased], gone[~erased]
        current = self._current(rows)
        lost = gone & current
        self.deleted += int(lost.sum())
        since = _times(rows, VALID_FROM, _LONG_AGO)
        at = np.where(lost, np.maximum(self._moment_us, since + 1), self._ends_at[ids])
        ends = current & (lost | ((ids >= 0) & (at != self._OPEN)))
        if not ends.any():
            return rows
        mask, when = pa.array(ends), pa.array(at).cast(_UTC)
        rows = _set(rows, VALID_TO, pc.if_else(mask, when, whole_column(rows, VALID_TO)))
        rows = _set(rows, IS_CURRENT, pc.if_else(mask, False, whole_column(rows, IS_CURRENT)))
        if self._is_soft:
            rows = self._marked(rows, ends & (lost | self._ends_lost[ids]), when)
        return rows

    def new_rows(self) -> pa.Table:
        count = len(self._ids)
        has_next = np.append(~self._is_first[1:], False) if count else np.empty(0, np.bool_)
        following = np.append(self._at[1:], 0) if count else np.empty(0, np.int64)
        ends_lost = has_next & (np.append(self._is_end[1:], False) if count else has_next)
        states = np.flatnonzero(~self._is_end)
        begins_key = self._is_first & ~self._has_current[self._ids]
        after_end = ~self._is_first & np.append(False, self._is_end[:-1])[:count]
        fresh = int((begins_key | after_end)[states].sum())
        self.inserted += fresh
        self.updated += len(states) - fresh
        rows = conform(self._rows.take(pa.array(states)).select(self._data), self._schema)
        rows = _set(rows, VALID_FROM, pa.array(self._at[states]).cast(_UTC))
        until = pa.array(following[states], mask=~has_next[states]).cast(_UTC)
        rows = _set(rows, VALID_TO, until)
        rows = _set(rows, IS_CURRENT, pa.array(~has_next[states]))
        if DELETED in rows.column_names:
            lost = ends_lost[states]
            rows = _set(rows, DELETED, pa.array(lost))
            rows = _set(rows, DELETED_AT, pc.if_else(pa.array(lost), until, pa.scalar(None, _UTC)))
        return self._in_order(rows, VALID_FROM)

    def _current(self, rows: pa.Table) -> Mask:
        # Rows from before the table kept a history are current.
        return as_mask(pc.fill_null(whole_column(rows, IS_CURRENT), True))

    def _comparable(self, rows: pa.Table, ids: Ids) -> Mask:
        first = self._first[ids]
        is_state = (first >= 0) & ~np.append(self._is_end, True)[first]
        found: Mask = self._current(rows) & (ids >= 0) & ~self._erased[ids] & is_state
        return found


def _set(rows: pa.Table, name: str, values: Any) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place), values)


def _times(rows: pa.Table, name: str, null: int) -> Ids:
    values = pc.fill_null(whole_column(rows, name).cast(pa.int64()), null)
    times: Ids = values.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    return times
