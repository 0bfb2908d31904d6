"""Compare a table in the lake with its source at any time, and mend what differs.

1. One session, of one moment where the database offers it, says what the source holds.
2. The source cuts the table by its key. Rows and checksums of each range are computed on both sides, by the database
   and over what a reader of the lake finds; where they agree, nothing more is read.
3. Of a range that differs, rows of both sides are read and told apart by key: missing in the lake, different, extra.
   Rows that the next increment will bring (*pending*: their key is among the changes since the cursor) and rows that
   quality rules keep apart are no differences. Nor are rows that the job leaves in the lake on purpose (*kept*).
4. ``repair`` reads the rows that differ once more and merges them, and marks or removes what is extra, in one commit,
   then compares those ranges again. What cannot be merged is read anew from its beginning by the ordinary way.

Counts and bounds of ranges are reported, never values. The cursor stays where it is: increments are applied by key, so
that one that brings a mended row again does no harm.

A large table takes several calls, each with a session of its own; what a call has found and mended is kept.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shared.engine.sql.cursor import Cursor, load_cursor, mended, save_cursor
from shared.engine.sql.extract import Cancelled
from shared.engine.sql.plan_table import CHANGE_TYPES, chosen_columns, rules_for
from shared.engine.sql.reach import TELLS_CHANGES, is_ahead, reached
from shared.engine.sql.run import REPAIR, SqlRun, cursor_key, table_options
from shared.engine.sql.sessions import SessionThread, apart, opened
from shared.engine.sql.two_sides import Difference, TwoSides, comparable
from shared.errors import IntegrityMismatch, Unsupported
from shared.model.sql_job import TableWish
from shared.policy.sql.names import TableName
from shared.policy.sql.schema import SchemaPlan, plan_schema
from shared.policy.sql.types import decimal_of
from shared.ports.tables import KeyRange, LakeColumn, LakeTable, LakeTableState, TableCommit, TableShape, Window

_LEAF_ROWS = 100_000
"""Of ranges whose rows are told apart by key; both sides' digests of one are in memory."""
_SHOWN_RANGES = 100
_BUDGET_S = 20 * 60.0
"""Of one call; the rest of the ranges is left to the next, so that none meets the host's timeout."""
_MOST_MENDED = 5_000_000
"""Beyond, reading a table anew costs less than mending it."""
_CUT_BY = ("int16", "int32", "int64", "date32", "timestamp[us]", "timestamp[us, UTC]")


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What was found so far, for the record of the table.

    ``reload`` says why all of it is to be read anew, where it is; ``goes_on``: there are ranges left.
    """

    document: dict[str, Any]
    reload: str = ""
    goes_on: bool = False


async def reconcile_table(run: SqlRun, target: str, table: int) -> Reconciled:
    """Compare and, where the job says so, repair. Idempotent: what was mended is found equal.

    Raises:
        Unsupported: the table is none that can be compared, or mended.
        IntegrityMismatch: code ``still_differs``: it differs after the repair.
        Cancelled: the run is to end.
    """
    before = await run.records.reconciled(table)
    if before is not None and before["next"] is None:
        return Reconciled(before, reload=(before["repair"] or {}).get("why", ""))
    entry = await run.records.entry(table)
    wish = run.wish(entry)
    shape = await apart(run.database.describe, TableName(entry["schema"], entry["name"]), entry["query"])
    shape = chosen_columns(shape, wish)
    lake = run.lake(entry["path"])
    state = await lake.state()
    key = cursor_key(run.job, target, entry)
    cursor, _ = mended(await load_cursor(run.records.store, key), state)
    work = _Reconciling(run, table, entry, wish, shape, lake, state, cursor, key, before)
    return await work.run_all()


@dataclass
class _Reconciling:
    run: SqlRun
    table: int
    entry: dict[str, Any]
    wish: TableWish
    shape: TableShape
    lake: LakeTable
    state: LakeTableState
    cursor: Cursor | None
    cursor_key: str
    before: dict[str, Any] | None
    notes: list[str] = field(default_factory=list)

    async def run_all(self) -> Reconciled:
        self.disposition, self.deletes = self.run.job.write_of(self.wish, has_key=bool(self.shape.key))
        if self.disposition == "append" and self.wish.change in TELLS_CHANGES:
            raise Unsupported(
                "the lake has every change of this table as a row of its own (write.disposition: append), which is not "
                "what the source has; it cannot be compared",
                code="not_comparable",
            )
        if not self.state.exists:
            document: dict[str, Any] = {
                "verdict": "differs", "compared_at": self.run.now(), "notes": ["the table is not in the lake"],
                "repair": None, "next": None,
            }  # fmt: skip
            return self._unmended(document, "the table was not in the lake")
        schema = self._schema()
        columns = comparable(self.shape.lake_columns, self.state.columns, schema.names)
        self._note_columns(schema, columns)
        rules = await apart(rules_for, self.run, self.entry, self.shape)
        async with opened(self.run.database, 1, consistent=self.run.facts.snapshots, shape=self.shape) as sessions:
            session = sessions[0]
            if not session.session.consistent:
                self.notes.append("rows that changed while they were compared may be among those that differ")
            sides = TwoSides(
                session, self.lake, self.shape, self.state.columns, columns, rules,
                by_key=self._by_key, window=self._as_of_cursor(),
            )  # fmt: skip
            if self._by_key:
                await self._read_pending(session, sides)
            found, left = await self._compare(session, sides, self.before["next"] if self.before else 0)
            document = {**_added(self.before, self._document(found, sides)), "next": left}
            goes_on = left is not None
            found = [one for one in found if self._is_wrong(one)]
            if not found or self.run.job.reconcile != "repair":
                return Reconciled(document, goes_on=goes_on)
            if schema.failures:
                raise Unsupported("; ".join(schema.failures), code="schema_changed")
            why = self._why_reload(found)
            if why:
                return self._unmended(document, why)
            repair = await self._repair(sides, schema, found)
            await self._assert_mended(sides, found)
        return Reconciled(_added(document, {"verdict": "repaired", "repair": repair}), goes_on=goes_on)

    @property
    def _by_key(self) -> bool:
        """Whether a row of the source is one row of the lake."""
        return bool(self.shape.key) and self.disposition != "append"

    @property
    def _keeps_extra(self) -> bool:
        """Whether rows stay in the lake that the source no longer has."""
        return self.disposition == "append" or (self.disposition in ("merge", "history") and self.deletes == "ignore")

    # -- what is compared ----------------------------------------------------------------------------------------------

    def _schema(self) -> SchemaPlan[LakeColumn]:
        return plan_schema(
            self.shape.lake_columns,
            self.state.columns,
            policy=self.run.job.schema_policy,
            delta=self.run.is_delta,
            key=self.shape.key if self._by_key else (),
        )

    def _note_columns(self, schema: SchemaPlan[LakeColumn], columns: Sequence[Any]) -> None:
        self.notes += [one.sentence for one in schema.differences if one.kind != "narrowed"]
        compared = {one.source.name for one in columns}
        lost = [one.name for one in self.shape.lake_columns if one.name not in compared]
        if lost:
            self.notes.append(f"not compared: {', '.join(lost)}")
        first = {one.name: one.lake for one in self.shape.columns}
        if any(lake.name not in compared for name in self.shape.key for lake in first[name]):
            raise Unsupported(
                "columns of the key differ in type between source and lake, so that rows cannot be found again; name "
                "the table in reset",
                code="schema_changed",
            )

    def _as_of_cursor(self) -> Window | None:
        """Where rows are appended and tell their place in time: the rows that were there at the last run."""
        change, cursor = self.wish.change, self.cursor
        if self._by_key or change is None or cursor is None or cursor.position is None or cursor.change != change:
            return None
        self.notes.append("the source is compared as of the last run")
        return Window(change, None, cursor.position, cursor.column)

    async def _read_pending(self, session: SessionThread, sides: TwoSides) -> None:
        change, cursor = self.wish.change, self.cursor
        if change is None or cursor is None or cursor.position is None or cursor.change != change:
            if change is None and cursor is not None:
                self.notes.append("the source is compared as it is now; the lake is as of the last run")
            return
        if change in TELLS_CHANGES:
            oldest = await session.call(session.session.oldest, self.shape, change, cursor.capture)
            if oldest is not None and not reached(change, cursor.position, oldest):
                self.notes.append("changes since the last run are no longer kept, so that none are told as pending")
                return
        upto = await session.call(session.session.position, self.shape, change, cursor.column)
        if upto is None or (change != "watermark" and upto == cursor.position):
            return
        if not is_ahead(change, upto, cursor.position):
            self.notes.append("the source is behind what was read of it before, so that no changes are told as pending")
            return
        lookback_s = self.wish.lookback or 0.0
        # Of CDC all changes, which every capture instance can tell.
        window = Window(
            change, cursor.position, upto, cursor.column, lookback_s, net=change != "cdc", capture=cursor.capture
        )
        await sides.read_pending(window)

    async def _compare(
        self, session: SessionThread, sides: TwoSides, first: int
    ) -> tuple[list[Difference], int | None]:
        """Differences by range, and the group to go on with; a range that is equal has none."""
        known = await self.run.records.reconcile_ranges(self.table)
        if known is None:
            known = [[asdict(one) if one else None for one in group] for group in await self._ranges(session)]
            await self.run.records.put_reconcile_ranges(self.table, known)
        groups = [[KeyRange(**one) if one else None for one in group] for group in known]
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _BUDGET_S
        found: list[Difference] = []
        for number in range(first, len(groups)):
            if number > first and loop.time() >= deadline_s:
                return found, number
            found += await self._compare_group(sides, groups[number])
        return found, None

    async def _compare_group(self, sides: TwoSides, group: Sequence[KeyRange | None]) -> list[Difference]:
        if await self._is_equal(sides, _hull(group), counted=True):
            return []
        found = []
        for one in group:
            if len(group) > 1 and await self._is_equal(sides, one, counted=False):
                continue
            difference = await sides.difference(one)
            if difference:
                found.append(difference)
        return found

    async def _is_equal(self, sides: TwoSides, within: KeyRange | None, *, counted: bool) -> bool:
        if await self.run.records.cancelled():
            raise Cancelled
        return await sides.is_equal(within, counted=counted)

    async def _ranges(self, session: SessionThread) -> list[list[KeyRange | None]]:
        """Small ranges, in groups of about a slice; one of all rows where the lake cannot tell ranges apart."""
        rows = self.run.job.partition_of(self.wish).rows
        column = self._cut_by()
        if column is None or 0 <= self.shape.rows <= _LEAF_ROWS:
            return [[None]]
        cut: list[KeyRange | None] = [
            *await session.call(session.session.cut, self.shape, column, min(rows, _LEAF_ROWS))
        ]
        count = max(1, rows // _LEAF_ROWS)
        return [cut[start : start + count] for start in range(0, len(cut), count)]

    def _cut_by(self) -> str | None:
        """A column whose order is the same everywhere, and which the lake holds without loss."""
        # A row whose place in another column's order differs would be missing in one range and extra in another.
        other = self.run.job.partition_of(self.wish).column
        candidates = [*self.shape.key[:1], *([other] if other and not self._by_key else [])]
        lake = {one.name.casefold(): one.lake[0].type for one in self.shape.columns}
        is_cut_off = self.run.job.types.sub_microsecond == "truncate"
        for name in candidates:
            type_ = lake.get(name.casefold(), "")
            if type_.startswith("timestamp") and is_cut_off:
                continue
            if type_ in _CUT_BY or decimal_of(type_):
                return name
        return None

    def _document(self, found: Sequence[Difference], sides: TwoSides) -> dict[str, Any]:
        totals = {name: sum(len(getattr(one, name)) for one in found) for name in ("missing", "different", "extra")}
        kept = totals["extra"] if self._keeps_extra else 0
        totals["extra"] -= kept
        differs = any(totals.values())
        where = [
            {
                "column": one.within.column if one.within else None,
                "lower": one.within.lower if one.within else None,
                "upper": one.within.upper if one.within else None,
                **{name: len(getattr(one, name)) for name in ("missing", "different", "extra")},
            }
            for one in found
        ]
        return {
            "verdict": "differs" if differs else "equal", "compared_at": self.run.now(), **totals, "kept": kept,
            "pending": sum(one.pending for one in found), "quarantined": sum(one.quarantined for one in found),
            "source_rows": sides.source_rows, "lake_rows": sides.lake_rows, "ranges": sides.ranges,
            "columns": sorted({name for one in found for name in one.columns}) if differs else [],
            "where": where[:_SHOWN_RANGES], "notes": self.notes, "repair": None,
        }  # fmt: skip

    def _is_wrong(self, one: Difference) -> bool:
        return bool(len(one.missing) or len(one.different) or (len(one.extra) and not self._keeps_extra))

    # -- repair ----------------------------------------------------------------------------------------------------

    def _why_reload(self, found: Sequence[Difference]) -> str:
        """Why rows cannot be merged, empty where they can."""
        if not self.run.is_delta:
            return "Parquet files are not changed in place"
        if not self._by_key:
            return "the table has no key by which rows could be merged"
        if self.cursor is None:
            return "the table in the lake is not of this job"
        if sum(len(one.missing) + len(one.different) + len(one.extra) for one in found) > _MOST_MENDED:
            return "so many rows differ that reading all of them anew costs less"
        return ""

    def _unmended(self, document: dict[str, Any], why: str) -> Reconciled:
        """Reload, unless that would lose what the lake alone has."""
        if self.run.job.reconcile != "repair":
            return Reconciled(document)
        if self.disposition == "append" and self.state.exists:
            raise Unsupported(
                f"the lake differs ({summary_of(document)}) and cannot be mended row by row, and reading it anew would "
                "lose rows that were appended before and are no longer in the source; where that is wanted, name the "
                "table in reset",
                code="not_mendable",
            )
        return Reconciled({**document, "repair": {"how": "reload", "why": why}, "next": None}, reload=why)

    async def _repair(
        self, sides: TwoSides, schema: SchemaPlan[LakeColumn], found: Sequence[Difference]
    ) -> dict[str, Any]:
        cursor = self.cursor
        assert cursor is not None
        writer = self.lake.writer("repair", [*schema.columns, *CHANGE_TYPES], table_options(self.run.job), changes=True)
        upserted = removed = 0
        try:
            for one in found:
                async for batch in sides.upserts(one, schema.names, order=upserted + removed):
                    upserted += batch.num_rows
                    await writer.write(batch)
                if len(one.extra) and not self._keeps_extra:
                    async for batch in sides.removals(one, order=upserted + removed):
                        removed += batch.num_rows
                        await writer.write(batch)
            parts = await writer.close()
        except BaseException:
            await writer.abort()
            raise
        key = [schema.names[lake.name] for name in self.shape.key for lake in self._lake_of(name)]
        cursor = replace(cursor, number=max(self.state.applied, cursor.number) + 1, run=self.run.records.run)
        if await self.run.records.end(self.table, 0, REPAIR, "commit") == "clear":
            raise Cancelled
        committed = await self.lake.commit(
            TableCommit(
                number=cursor.number,
                run=self.run.records.run,
                disposition="history" if self.disposition == "history" else "merge",
                deletes="hard" if self.disposition == "replace" else self.deletes,
                columns=tuple(schema.columns),
                key=tuple(key),
                parts=tuple(parts),
                position=cursor.document(),
                token=self.run.records.run,
            )
        )
        await save_cursor(self.run.records.store, self.cursor_key, cursor)
        return {"how": "rows", "written": upserted, "removed": removed, "version": committed.version}

    def _lake_of(self, column: str) -> tuple[LakeColumn, ...]:
        """Of a key column; rows are merged by its first one, as increments are."""
        return next(one.lake[:1] for one in self.shape.columns if one.name == column)

    async def _assert_mended(self, sides: TwoSides, found: Sequence[Difference]) -> None:
        sides.lake_changed((await self.lake.state()).columns)
        left = 0
        for one in found:
            again = await sides.difference(one.within)
            if again:
                left += len(again.missing) + len(again.different) + (0 if self._keeps_extra else len(again.extra))
        if left:
            raise IntegrityMismatch(
                f"{left:,} rows differ after the repair; somebody else may be changing the table in the lake, or its "
                "key does not tell rows apart; to read it anew, name it in reset",
                code="still_differs",
            )


def summary_of(document: dict[str, Any]) -> str:
    """``3 rows missing, 1 different``; for an error's sentence."""
    said = [
        f"{document[name]:,} rows {words}"
        for name, words in (("missing", "missing"), ("different", "different"), ("extra", "only in the lake"))
        if document.get(name)
    ]
    return ", ".join(said) or "; ".join(document["notes"])


def _added(before: dict[str, Any] | None, found: dict[str, Any]) -> dict[str, Any]:
    """What two calls have found, one after the other."""
    if before is None:
        return found
    order = ("equal", "differs", "repaired")
    both: dict[str, Any] = {**before, **found}
    for name in (
        "missing",
        "different",
        "extra",
        "kept",
        "pending",
        "quarantined",
        "source_rows",
        "lake_rows",
        "ranges",
    ):
        both[name] = before[name] + found.get(name, 0)
    both["columns"] = sorted({*before["columns"], *found.get("columns", ())})
    both["where"] = [*before["where"], *found.get("where", ())][:_SHOWN_RANGES]
    both["notes"] = list(dict.fromkeys([*before["notes"], *found.get("notes", ())]))
    both["verdict"] = max(before["verdict"], found["verdict"], key=order.index)
    old, new = before["repair"], found["repair"]
    both["repair"] = new or old
    if old and new:
        both["repair"] = {**new, "written": old["written"] + new["written"], "removed": old["removed"] + new["removed"]}
    return both


def _hull(ranges: Sequence[KeyRange | None]) -> KeyRange | None:
    first, last = ranges[0], ranges[-1]
    if first is None or last is None:
        return None
    return KeyRange(first.column, first.lower, last.upper, any(one is not None and one.nulls for one in ranges))
