"""Decide what is read of a table, how, and what becomes of it; write it down before the first row is read.

Everything after this follows the document, so that a step that is carried out again does the same again.
"""

import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from shared.engine.sql import quality, reach
from shared.engine.sql.cursor import Cursor, load_cursor, mended
from shared.engine.sql.prepare import applies
from shared.engine.sql.reach import TELLS_CHANGES
from shared.engine.sql.run import (
    SqlRun,
    columns_document,
    columns_of,
    cursor_key,
    shape_document,
)
from shared.engine.sql.sessions import apart
from shared.errors import TargetConflict, Unsupported
from shared.model.sql_job import TableWish
from shared.policy.sql import plan as scale
from shared.policy.sql.names import TableName
from shared.policy.sql.schema import plan_schema, reserved_names
from shared.ports.tables import (
    CHANGE_COLUMNS,
    Capture,
    KeyRange,
    LakeColumn,
    LakeTableState,
    RowRule,
    Selection,
    TableSession,
    TableShape,
    Window,
)

CHANGE_TYPES = (LakeColumn("_operation", "string"), LakeColumn("_position", "string"), LakeColumn("_order", "int64"))
# An increment larger than so many slices is cut as a full load is; counting it first costs a pass over its rows.
_LARGE_INCREMENT_SLICES = 2


async def plan_table(run: SqlRun, target: str, table: int, turn: int) -> dict[str, Any]:
    """The decision about a table. In a dry run nothing is written but the plan.

    Raises:
        ItemError: the table cannot be migrated as the job asks.
    """
    entry = await run.records.entry(table)
    wish = run.wish(entry)
    name = TableName(entry["schema"], entry["name"])
    found = await apart(run.database.describe, name, entry["query"])
    shape = chosen_columns(found, wish)
    state = await run.lake(entry["path"]).state()
    rules = await apart(rules_for, run, entry, shape)
    kept_apart = -1
    if any(rule.action == "quarantine" for rule in rules):
        kept_apart = (await run.quarantine(entry["path"]).state()).applied + 1
    stored = await load_cursor(run.records.store, cursor_key(run.job, target, entry))
    cursor, void = mended(stored, state)
    if cursor and cursor.seen and await run.records.store.get(cursor.seen) is None:
        cursor, void = None, "which rows at the watermark's boundary were delivered is no longer known"
    planned = _Planned(run, entry, wish, shape, state, cursor, void, turn, rules)
    document = await apart(planned.document)
    document |= {"rules": quality.to_documents(rules), "quarantine_number": kept_apart}
    document["stored"] = [stored.run, stored.number] if stored else None
    return await run.records.put_decided(table, turn, document)


def chosen_columns(shape: TableShape, wish: TableWish) -> TableShape:
    """The shape with the columns and the key that the job asks for. Raises Unsupported for names that are not there."""
    known = {column.name.casefold(): column.name for column in shape.columns}

    def meant(names: Sequence[str], field: str) -> list[str]:
        missing = [name for name in names if name.casefold() not in known]
        # A pattern's tables need not all have a column that is to be left out.
        if missing and (field != "exclude_columns" or wish.query is not None):
            raise Unsupported(
                f"{shape.table} has no column {missing[0]!r} ({field}); it has "
                f"{', '.join(sorted(known.values()))[:500]}",
                code="column_not_found",
            )
        return [known[name.casefold()] for name in names if name.casefold() in known]

    wanted = set(meant(wish.columns, "columns")) if wish.columns else set(known.values())
    wanted -= set(meant(wish.exclude_columns, "exclude_columns"))
    key = tuple(meant(wish.key, "key")) or shape.key
    columns = tuple(column for column in shape.columns if column.name in wanted)
    if not columns:
        raise Unsupported(f"{shape.table} has no columns left to be read", code="no_columns")
    lost = [name for name in key if name not in wanted]
    if lost:
        if wish.key:
            raise Unsupported(
                f"the key column {lost[0]!r} of {shape.table} is not among those read", code="key_missing"
            )
        key = ()
    return replace(shape, columns=columns, key=key)


def rules_for(run: SqlRun, entry: dict[str, Any], shape: TableShape) -> list[quality.Rule]:
    """The job's rules for a table. Asks the database; blocks."""

    def is_meant(text: str) -> bool:
        return applies(text, run, entry)

    rules = quality.rules_of(run.job, is_meant, shape, run.database.tables, run.facts.default_schema)
    return quality.tried(rules, run.database, shape)


def lake_names_of(shape: TableShape, names: Sequence[str], mapping: dict[str, str]) -> tuple[str, ...]:
    """The lake's names of the first lake column of source columns."""
    first = {column.name: column.lake[0].name for column in shape.columns}
    return tuple(mapping[first[name]] for name in names)


@dataclass
class _Planned:
    run: SqlRun
    entry: dict[str, Any]
    wish: TableWish
    shape: TableShape
    state: LakeTableState
    cursor: Cursor | None
    void: str
    turn: int
    rules: Sequence[quality.Rule]

    # -- decisions ---------------------------------------------------------------------------------------------------

    def document(self) -> dict[str, Any]:
        """Asks the database; blocks."""
        run, wish, shape = self.run, self.wish, self.shape
        self.warnings: list[str] = [f"{one.name}: {one.note}" for one in shape.columns if one.note]
        for name in run.job.files_of(wish).sort_by:
            if name not in {one.name for one in shape.columns}:
                self.warnings.append(f"files.sort_by names {name!r}, which is no column that is read here")
        column = self._change_column()
        change = wish.change
        self._check_change()
        consistent = run.facts.snapshots
        with run.database.sessions(1, consistent=consistent, for_table=shape) as sessions:
            session = sessions[0]
            load, reason, capture = self._load(session, column)
            if capture and capture.note:
                self.warnings.append(f"the capture instance {capture.name}: {capture.note}")
            disposition, deletes, written_as = self._write(load, reason)
            plan = scale.plan_table(self._facts(load))
            if plan.failure:
                raise Unsupported(plan.failure, code="no_snapshot")
            # Before the first row: what happens from here on is told by the next increment.
            upto = session.position(shape, change, column) if change and plan.moments == "slice" else None
            is_load = load == "full"
            window = self._window(load, plan.moments, column, capture, upto)
            ranges = self._ranges(session, plan, window)
            if change == "watermark" and column and self._is_nullable(column):
                self._warn_nulls(session, column, are_read=load == "full" and plan.moments == "snapshot")
        moments = plan.moments if is_load else ("snapshot" if run.facts.snapshots else "slice")
        if not is_load and run.job.source.consistency == "slice":
            moments = "slice"
        is_log = disposition == "append" and change in TELLS_CHANGES
        schema = plan_schema(
            shape.lake_columns,
            self.state.columns if self.state.exists else None,
            policy=run.job.schema_policy,
            delta=run.is_delta,
            last=columns_of(self.cursor.columns) if self.cursor else None,
            key=shape.key if disposition in ("merge", "history") else (),
            reserved=reserved_names(
                changes=CHANGE_COLUMNS if change in TELLS_CHANGES else (), disposition=disposition, deletes=deletes,
                rules=sum(rule.is_by_database for rule in self.rules),
                quarantine=any(rule.action == "quarantine" for rule in self.rules),
            ),
            anew=written_as == "replace" and (self._is_reset() or not self._is_ours()),
        )  # fmt: skip
        if schema.failures:
            raise Unsupported("; ".join(schema.failures), code="schema_changed")
        columns = tuple(one for one in schema.columns if not (is_log and one.name in CHANGE_COLUMNS))
        parallel = max(1, min(plan.parallel if is_load else run.job.partition_of(wish).parallel,
                              run.connections_per_table, len(ranges)))  # fmt: skip
        return {
            "wish": self.entry["wish"], "planned_at": run.clock().isoformat(), "token": uuid.uuid4().hex[:12],
            "shape": shape_document(shape), "load": load, "reload_reason": reason, "change": change, "column": column,
            "capture": reach.told_by(shape, change, capture), "disposition": disposition, "deletes": deletes,
            "written_as": written_as, "only_new": written_as != "append" and not self.state.exists,
            "moments": moments, "catch_up": is_load and plan.catch_up and change is not None,
            "window": asdict(window) if window else None, "upto": upto,
            "ranges": [asdict(one) if one else None for one in ranges], "parallel": parallel,
            "names": dict(schema.names), "is_log": is_log,
            "columns": columns_document([*columns, *(CHANGE_TYPES if is_log else ())]),
            "key": list(lake_names_of(shape, shape.key, dict(schema.names))),
            "number": max(self.state.applied, self.cursor.number if self.cursor else -1) + 1,
            "cursor": self.cursor.document() if self.cursor else None,
            "remembers_ties": change == "watermark" and disposition == "append", "lookback_s": wish.lookback or 0.0,
            "schema_changes": [asdict(one) for one in schema.differences],
            "warnings": [*self.warnings, *plan.warnings] if is_load else self.warnings,
            "plan": {
                **plan.document(), "load": load, "moments": moments, "slices": len(ranges), "parallel": parallel,
                "disposition": disposition,
            },
        }  # fmt: skip

    def _applies(self, text: str) -> bool:
        return applies(text, self.run, self.entry)

    def _is_reset(self) -> bool:
        # A repair comes here only where a table has to be read anew.
        return self.run.job.reconcile == "repair" or any(self._applies(text) for text in self.run.job.reset)

    def _is_ours(self) -> bool:
        return self.state.applied >= 0

    def _change_column(self) -> str | None:
        if self.wish.change == "rowversion" and self.wish.column is None:
            found = [one.name for one in self.shape.columns if one.type in ("rowversion", "timestamp")]
            return found[0] if found else None
        if self.wish.column is None:
            return None
        known = {one.name.casefold(): one.name for one in self.shape.columns}
        name = known.get(self.wish.column.casefold())
        if name is None:
            raise Unsupported(
                f"the column {self.wish.column!r} by which {self.shape.table} changes is not among those read",
                code="column_not_found",
            )
        return name

    def _is_nullable(self, column: str) -> bool:
        return any(one.nullable for one in self.shape.columns if one.name == column)

    def _check_change(self) -> None:
        shape, change = self.shape, self.wish.change
        if change == "tracking" and not shape.tracked:
            raise Unsupported(
                f"change tracking is off for {shape.table}; switch it on with ALTER TABLE ... ENABLE CHANGE_TRACKING, "
                "or choose change: watermark",
                code="not_tracked",
            )
        if change == "cdc" and not shape.captures:
            raise Unsupported(
                f"{shape.table} has no CDC capture instance; make one with sys.sp_cdc_enable_table, or choose another "
                "change",
                code="not_captured",
            )
        disposition, _ = self.run.job.write_of(self.wish, has_key=bool(shape.key))
        if change == "watermark" and disposition == "append" and self.run.facts.dialect != "sqlite":
            lake = {one.name: one.lake[0].type for one in shape.columns}
            if lake[self._change_column() or ""] == "string":
                raise Unsupported(
                    f"{self.wish.column} of {shape.table} is text, whose order is the collation's own, so that rows at "
                    "its boundary cannot be told apart; choose a time or a number, or write.disposition: merge",
                    code="watermark_unfit",
                )
        if disposition in ("merge", "history") and not shape.key:
            raise Unsupported(
                f"{shape.table} has no primary key, and disposition: {disposition} finds rows by their key; name one "
                "with key, or choose disposition: append",
                code="no_key",
            )

    def _load(self, session: TableSession, column: str | None) -> tuple[str, str | None, Capture | None]:
        """Full or increment, why it is full where an increment was to be expected, and the capture instance."""
        wish, cursor, change = self.wish, self.cursor, self.wish.change
        newest = (self.shape.whole_captures or self.shape.captures)[-1] if change == "cdc" else None
        if change is None:
            return "full", None, None
        if self._is_reset() and self.turn == 0:
            asked = "reconcile: repair" if self.run.job.reconcile else "reset"
            return "full", f"{asked}, as the job asks" if cursor else None, newest
        if cursor is None:
            return "full", self.void or None, newest
        if cursor.identity != self.run.facts.identity:
            return "full", "the setting leads to another database than before", newest
        if cursor.fork and self.run.facts.fork and cursor.fork != self.run.facts.fork:
            why = (
                "the database was restored, or lost something in a failover (it is on another recovery fork than "
                "before), so that it need not have what was read"
            )
            return "full", why, newest
        if cursor.change != change or (cursor.column or "").casefold() != (column or "").casefold():
            return "full", f"changes were told by {cursor.change or 'nothing'} before, and are by {change} now", newest
        disposition, _ = self.run.job.write_of(wish, has_key=bool(self.shape.key))
        if disposition in ("merge", "history") and cursor.key != list(self.shape.key):
            return "full", "rows are known by another key than before", newest
        if cursor.position is None:
            return ("full" if change in TELLS_CHANGES else "increment"), None, newest
        capture = reach.capture_of(self.shape, cursor) if change == "cdc" else None
        why = reach.why_anew(session, self.shape, change, column, cursor, capture)
        return ("full", why, newest) if why else ("increment", None, capture)

    def _write(self, load: str, reason: str | None) -> tuple[str, str, str]:
        """Disposition, deletes, and what this commit is: the first load of an incremental table replaces."""
        disposition, deletes = self.run.job.write_of(self.wish, has_key=bool(self.shape.key))
        why = self.run.job.unmergeable(self.wish, has_key=bool(self.shape.key))
        if why:
            self.warnings.append(f"write.disposition is {disposition} here, since {why}")
        if load == "increment" or (self.wish.mode == "full" and disposition == "append"):
            return disposition, deletes, disposition
        if self.state.exists and not self._is_ours() and not self._is_reset():
            raise TargetConflict(
                f"{self.entry['path']} holds a table that this job has not written; name the table in reset to replace "
                "it, or choose another name or path",
                code="target_exists",
            )
        if self.wish.mode == "full":
            return disposition, deletes, disposition
        if disposition == "history" and self.state.exists:
            return disposition, deletes, "history"
        if reason and disposition == "merge" and deletes == "soft":
            self.warnings.append("rows that were marked as deleted before are gone, since all rows were read anew")
        return disposition, deletes, "history" if disposition == "history" else "replace"

    def _facts(self, load: str) -> scale.Table:
        run, shape = self.run, self.shape
        partition = run.job.partition_of(self.wish)
        measured = self.cursor.measured if self.cursor else {}
        return scale.Table(
            rows=shape.rows, size_bytes=shape.size_bytes, change=self.wish.change,
            cut_by=self._cut_by(), snapshots=run.facts.snapshots, why_not=run.facts.why_not,
            consistency=run.job.source.consistency, slice_rows=partition.rows, parallel=partition.parallel,
            max_connections=run.connections_per_table, rows_per_s=run.job.source.rows_per_s,
            file_bytes=run.job.files_of(self.wish).size, compression=run.job.compression,
            earlier=scale.Measured(
                rows=int(measured["rows"]), lake_bytes=int(measured["lake_bytes"]), seconds=measured["seconds"],
                parallel=int(measured["parallel"]),
            ) if measured else None,
        )  # fmt: skip

    def _cut_by(self) -> str | None:
        partition = self.run.job.partition_of(self.wish)
        return partition.column or (self.shape.key[0] if self.shape.key else None)

    def _window(
        self, load: str, moments: str, column: str | None, capture: Capture | None, upto: str | None
    ) -> Window | None:
        """The window of this load; ``upto`` is empty where it is taken in the moment that is read."""
        change, wish = self.wish.change, self.wish
        if change is None or (load == "full" and change in TELLS_CHANGES):
            return None
        if load == "full" and change == "watermark" and moments == "snapshot":
            # All that one moment shows lies below its greatest watermark, or has none.
            return None
        after = self.cursor.position if load == "increment" and self.cursor else None
        is_net = wish.changes == "net" and (capture.net if capture else True)
        if capture is not None and wish.changes == "net" and not capture.net:
            self.warnings.append(f"the capture instance {capture.name} gives no net changes; all of them were read")
        return Window(
            change=change, after=after, upto=upto or "", column=column,
            lookback_s=(wish.lookback or 0.0) if after is not None else 0.0, net=is_net,
            capture=capture.name if capture else None,
        )  # fmt: skip

    def _ranges(self, session: TableSession, plan: scale.TablePlan, window: Window | None) -> Sequence[KeyRange | None]:
        cut_by = self._cut_by()
        slice_rows = self.run.job.partition_of(self.wish).rows
        if cut_by is None or (window is not None and window.change in TELLS_CHANGES):
            return [None]
        if window is None or window.after is None:
            return session.cut(self.shape, cut_by, slice_rows) if plan.slices > 1 else [None]
        if self.shape.rows <= _LARGE_INCREMENT_SLICES * slice_rows:
            return [None]
        upto = window.upto or session.position(self.shape, window.change, window.column)
        if upto is None:
            return [None]
        rows = session.summary(Selection(self.shape, window=replace(window, upto=upto)), checksums=False).rows
        if rows <= _LARGE_INCREMENT_SLICES * slice_rows:
            return [None]
        return session.cut(self.shape, cut_by, slice_rows * self.shape.rows // rows)

    def _warn_nulls(self, session: TableSession, column: str, *, are_read: bool) -> None:
        nulls = session.broken_rows(Selection(self.shape), RowRule("not_null", (column,)))
        if nulls:
            then = "they are read this time, and by no increment" if are_read else "they are not read"
            self.warnings.append(
                f"{nulls:,} rows have no value in {column}, so that no watermark ever reaches them; {then}"
            )
