"""Rows of a table into files that nobody sees yet, checked against the source before anything refers to them.

Rows and the source's own count and checksums come from one session, so where that shows one moment they must agree to
the last bit. The files are read back from the lake for the comparison; rows that were set aside on the way
(quarantined, or delivered before) count as found.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from shared.engine.sql import quality, sums
from shared.engine.sql.plan_table import CHANGE_TYPES
from shared.engine.sql.reach import reached
from shared.engine.sql.run import SqlRun, columns_of, shape_of
from shared.engine.sql.sessions import SessionThread, opened
from shared.engine.sql.ties import Ties, load_seen
from shared.errors import IntegrityMismatch, ServiceUnavailable, SourceChanged, TransientError, Unsupported
from shared.model.sql_steps import SqlCounts, no_sql_counts
from shared.policy.sql.checksum import MD5_UTF_8
from shared.ports.tables import (
    OPERATION_COLUMN,
    ORDER_COLUMN,
    POSITION_COLUMN,
    KeyRange,
    LakeTable,
    PartFile,
    PartOptions,
    PartsWriter,
    Selection,
    Summary,
    TableShape,
    Window,
)

if TYPE_CHECKING:
    import pyarrow as pa

_MIB = 1024 * 1024
_LOOK_UP_S = 3.0


class Cancelled(Exception):
    """Somebody asked to cancel the run; nothing of the slice was kept."""


async def extract_slice(run: SqlRun, table: int, turn: int, number: int) -> SqlCounts:
    """One slice as of a moment of its own. Idempotent: a slice that has its result keeps it.

    Raises:
        TransientError: to be tried again; the files of this attempt are gone.
        ItemError: the table cannot be migrated.
        Cancelled: the run is to end.
    """
    decided = await run.records.decided(table, turn)
    done = await run.records.slice_result(table, turn, number, decided["token"])
    if done is None:
        shape = shape_of(decided["shape"])
        consistent = run.facts.snapshots
        async with opened(run.database, 1, consistent=consistent, shape=shape) as sessions:
            reading = _Reading(run, table, turn, decided, shape, decided["upto"], streams=decided["parallel"])
            await reading.check_reach(sessions[0])
            ages = await reading.ages(sessions[0]) if number == 0 else {}
            async with reading.shown(number):
                result = await reading.slice(sessions[0], number)
        document = {"upto": decided["upto"], "ages": ages, "slices": [result]}
        done = await run.records.put_slice(table, turn, number, decided["token"], document)
    return _counts(done)


async def extract_table(run: SqlRun, table: int, turn: int) -> SqlCounts:
    """All slices as of one moment, which is also the moment of the position that the next increment begins at.

    Idempotent: a table that has its result keeps it; one that was cut short is read again from its beginning.
    """
    decided = await run.records.decided(table, turn)
    done = await run.records.slice_result(table, turn, 0, decided["token"])
    if done is None:
        shape = shape_of(decided["shape"])
        streams = decided["parallel"]
        async with opened(run.database, streams, consistent=run.facts.snapshots, shape=shape) as sessions:
            first = sessions[0]
            upto = None
            if decided["change"]:
                upto = await first.call(first.session.position, shape, decided["change"], decided["column"])
            reading = _Reading(run, table, turn, decided, shape, upto, streams=len(sessions))
            await reading.check_reach(first)
            ages = await reading.ages(first)
            async with reading.shown(0):
                results = await reading.all_slices(sessions)
        document = {"upto": upto, "ages": ages, "slices": results}
        done = await run.records.put_slice(table, turn, 0, decided["token"], document)
    return _counts(done)


def _counts(done: dict[str, Any]) -> SqlCounts:
    counts = no_sql_counts()
    for one in done["slices"]:
        counts["rows_done"] += one["rows"]
        counts["bytes_done"] += sum(part["size_bytes"] for part in one["parts"])
    return counts


class _Reading:
    """What the slices of one attempt have in common."""

    def __init__(
        self,
        run: SqlRun,
        table: int,
        turn: int,
        decided: dict[str, Any],
        shape: TableShape,
        upto: str | None,
        *,
        streams: int,
    ) -> None:
        self.run = run
        self.table = table
        self.turn = turn
        self.decided = decided
        self.shape = shape
        self.upto = upto
        self.rules = quality.from_documents(decided["rules"])
        self.columns = columns_of(decided["columns"])
        window = Window(**decided["window"]) if decided["window"] else None
        self.window = replace(window, upto=upto or "") if window else None
        self.tells_changes = self.window is not None and self.window.change in ("tracking", "cdc")
        self.is_merged = decided["written_as"] in ("merge", "history")
        if self.is_merged and self.tells_changes:
            self.columns += CHANGE_TYPES
        memory = run.job.limits.memory // max(1, streams)
        # A batch is being read, one looked at, one written; a row group collected, one encoded, its blocks sent. Larger
        # batches cost no less time, and what numpy and Arrow take for them on the way stays with their allocators.
        self.batch_bytes = max(256 * 1024, min(4 * _MIB, memory // 16))
        files = run.job.files_of(run.job.tables[decided["wish"]])
        self.options = PartOptions(run.job.compression, files.size, max(64 * 1024, min(files.row_group, memory // 8)))
        self.sort_by = tuple(name for name in files.sort_by if name in {one.name for one in shape.columns})
        self.looked_at_s = asyncio.get_running_loop().time()
        self.rows = 0
        self.first_slice = 0

    @property
    def has_nothing(self) -> bool:
        """Whether the window is empty without asking: no rows at all, or nothing happened since."""
        if self.window is None:
            return False
        is_exclusive = self.window.change != "watermark"
        return self.upto is None or (is_exclusive and self.window.after == self.upto)

    async def check_reach(self, session: SessionThread) -> None:
        """In the moment that is read; changes that were cleaned up since the plan would be missing without a word.

        Raises:
            Unsupported: code ``position_expired``.
        """
        window = self.window
        if window is None or window.after is None or not self.tells_changes or self.has_nothing:
            return
        oldest = await session.call(session.session.oldest, self.shape, window.change, window.capture)
        if oldest is not None and not reached(window.change, window.after, oldest):
            raise Unsupported(
                f"changes since {window.after} were cleaned up after this run began (the oldest that is left is "
                f"{oldest}); the next run reads the table anew; a longer retention spares that",
                code="position_expired",
            )

    async def ages(self, session: SessionThread) -> dict[str, float | None]:
        return await session.call(quality.ages_of, session.session, self.shape, self.rules)

    async def all_slices(self, sessions: Sequence[SessionThread]) -> list[dict[str, Any]]:
        """Every slice, each session taking the next that is left."""
        results: dict[int, dict[str, Any]] = {}
        waiting = iter(range(len(self.decided["ranges"])))

        async def work(session: SessionThread) -> None:
            for number in waiting:
                results[number] = await self.slice(session, number)

        try:
            async with asyncio.TaskGroup() as tasks:
                for session in sessions:
                    tasks.create_task(work(session))
        except BaseExceptionGroup as group:
            # The others were stopped because of the first.
            raise _first(group) from group
        return [results[number] for number in sorted(results)]

    async def slice(self, session: SessionThread, number: int) -> dict[str, Any]:
        """Read, write, read back, compare. Leaves no file behind when it fails."""
        given = self.decided["ranges"][number]
        selection = Selection(self.shape, KeyRange(**given) if given else None, self.window, order_by=self.sort_by)
        path = (await self.run.records.entry(self.table))["path"]
        lake = self.run.lake(path)
        source = await self._source(session, selection)
        slice_ = _Slice(self, source, await self._ties())
        selection = replace(selection, rules=slice_.checks.compiled)
        apart_in = self.run.quarantine(path) if self.decided["quarantine_number"] >= 0 else None
        kept_apart: PartsWriter | None = None
        writer = lake.writer(f"t{self.turn}-s{number:05d}", self.columns, self.options, changes=self.is_merged)
        try:
            if not self.has_nothing:
                async with aclosing(session.batches(selection, self.batch_bytes)) as batches:
                    async for batch in batches:
                        await self._look_up(batch.num_rows)
                        written, bad = await asyncio.to_thread(slice_.take, batch)
                        if written.num_rows:
                            await writer.write(written)
                        if bad is not None and apart_in is not None:
                            kept_apart = kept_apart or self._quarantine_writer(apart_in, number)
                            await kept_apart.write(bad)
            parts = await writer.close()
            apart_parts = await kept_apart.close() if kept_apart else []
            if self.run.job.checks:
                await _read_back(lake, parts, slice_.target)
            verdict = slice_.compared(sum(part.rows for part in parts), consistent=session.session.consistent)
        except BaseException:
            await asyncio.shield(writer.abort())
            if kept_apart:
                await asyncio.shield(kept_apart.abort())
            raise
        seen = ""
        if slice_.ties is not None:
            data = await asyncio.to_thread(lambda ties: ties.seen().dump(), slice_.ties)
            seen = await self.run.records.put_seen(self.table, self.turn, number, data)
        return {
            "parts": [asdict(part) for part in parts], "rows": sum(part.rows for part in parts),
            "read": slice_.read, "repeated": slice_.repeated.rows, "seen": seen, "quality": slice_.checks.result(),
            "quarantined": [asdict(part) for part in apart_parts], **verdict,
        }  # fmt: skip

    def _quarantine_writer(self, lake: LakeTable, number: int) -> PartsWriter:
        columns = quality.quarantine_columns(self.shape.lake_columns)
        return lake.writer(f"t{self.turn}-s{number:05d}", columns, self.options)

    async def _source(self, session: SessionThread, selection: Selection) -> Summary | None:
        """What the database says that it will deliver; None where nobody asked, or it cannot say."""
        checks = self.run.job.checks
        if not checks:
            return None
        if self.has_nothing:
            return Summary(0)
        try:
            return await session.call(session.session.summary, selection, checksums="checksum" in checks)
        except Unsupported:
            if not self.tells_changes:
                raise
            return None

    async def _ties(self) -> Ties | None:
        if not self.decided["remembers_ties"]:
            return None
        first = {one.name: one.lake[0].name for one in self.shape.columns}
        cursor = self.decided["cursor"]
        before = None
        if cursor and cursor["seen"] and self.decided["load"] == "increment":
            before = await load_seen(self.run.records.store, cursor["seen"])
        names = [one.name for one in self.shape.lake_columns]
        return Ties(first[self.decided["column"]], names, self.decided["lookback_s"], before)

    @asynccontextmanager
    async def shown(self, number: int) -> AsyncIterator[None]:
        """While the context lasts, how far the activity is can be seen; ``number`` is that of its first slice."""
        self.first_slice = number
        try:
            yield
        finally:
            await self.run.records.forget_under_way(self.table, self.turn, number)

    async def _look_up(self, rows: int) -> None:
        """Now and then, say how far it is, and see whether somebody has cancelled."""
        self.rows += rows
        now_s = asyncio.get_running_loop().time()
        if now_s - self.looked_at_s >= _LOOK_UP_S:
            self.looked_at_s = now_s
            await self.run.records.put_under_way(self.table, self.turn, self.first_slice, self.rows)
            if await self.run.records.cancelled():
                raise Cancelled


async def _read_back(lake: LakeTable, parts: Sequence[PartFile], found: sums.Sums) -> None:
    """Add up what lies in the lake. Raises ServiceUnavailable for a file that does not come back as it was written."""
    import pyarrow as pa

    try:
        async for batch in lake.read_parts(parts):
            await asyncio.to_thread(found.add, batch)
    except (OSError, pa.ArrowException) as error:
        raise ServiceUnavailable(
            f"a file that was just written cannot be read back ({type(error).__name__})", code="file_unreadable"
        ) from error


class _Slice:
    """Rows of one slice on their way."""

    def __init__(self, reading: _Reading, source: Summary | None, ties: Ties | None) -> None:
        self.reading = reading
        self.source = source
        self.ties = ties
        self.read = 0
        definition = source.definition if source else MD5_UTF_8
        self.lake_name: dict[str, str] = dict(reading.decided["names"])
        columns = reading.shape.lake_columns if "checksum" in reading.run.job.checks else ()
        self.checks = quality.RowChecks(reading.rules)
        self.repeated = sums.Sums(columns, definition)
        self.quarantined = sums.Sums(columns, definition)
        # Of the lake's names and the source's types: what became wider adds up as what it was.
        self.target = sums.Sums([replace(one, name=self.lake_name[one.name]) for one in columns], definition)

    def take(self, batch: "pa.RecordBatch") -> "tuple[pa.RecordBatch, pa.RecordBatch | None]":
        """The rows of a batch that are to be written, under the lake's names, and those for quarantine.

        Called in threads, one at a time.
        """
        self.read += batch.num_rows
        if self.ties is not None:
            batch, repeated = self.ties.fresh(batch)
            if repeated is not None:
                self.repeated.add(repeated)
        batch, bad = self.checks.split(batch)
        if bad is not None:
            self.quarantined.add(bad)
        return self.named(batch), bad

    def named(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        import pyarrow as pa

        columns = {self.lake_name.get(name, name): batch.column(name) for name in batch.schema.names}
        if self.reading.decided["is_log"] and not self.reading.tells_changes:
            rows = batch.num_rows
            columns |= {
                OPERATION_COLUMN: pa.repeat("insert", rows), ORDER_COLUMN: pa.repeat(pa.scalar(0, pa.int64()), rows),
                POSITION_COLUMN: pa.repeat(pa.scalar(self.reading.upto, pa.string()), rows),
            }  # fmt: skip
        return pa.RecordBatch.from_pydict(columns)

    def compared(self, written: int, *, consistent: bool) -> dict[str, Any]:
        """Both sides' sums.

        Raises:
            IntegrityMismatch: they differ, and one moment was read.
            SourceChanged: they differ, and rows may have changed between the two statements.
        """
        left_out = self.repeated.rows + self.quarantined.rows
        if self.read != written + left_out:
            raise IntegrityMismatch(
                f"{self.read:,} rows were read, {written:,} written and {left_out:,} left out",
                code="row_count_mismatch",
            )
        if self.source is None:
            return {"source": None, "target": None}
        back = {lake: name for name, lake in self.lake_name.items()}
        found = self.target.summary()
        target = replace(found, columns={back[name]: one for name, one in found.columns.items()})
        target = sums.together([target, self.repeated.summary(), self.quarantined.summary()])
        differences = sums.differences(self.source, target)
        if differences and consistent:
            raise IntegrityMismatch("; ".join(differences), code="checksum_mismatch")
        if differences:
            raise SourceChanged(
                f"rows changed while they were read ({'; '.join(differences)}); where the database offers snapshots of "
                f"one moment they do no harm: {self.reading.run.facts.why_not or 'switch them on'}"
            )
        return {"source": sums.to_document(self.source), "target": sums.to_document(target)}


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure that ended the others; a final one before one that is worth another try."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found.append(_first(error) if isinstance(error, BaseExceptionGroup) else error)
    return min(found, key=lambda error: isinstance(error, TransientError))
