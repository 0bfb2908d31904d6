"""A SQL migration's engine over a real SQLite file and the emulated lake, its steps in the workflow's order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from obstore.store import MemoryStore

from shared.clients.lake_tables import open_lake_table
from shared.clients.run_store import ObjectRunStore
from shared.engine.sql import prepare, report, steps
from shared.engine.sql.quality import quarantine_path
from shared.engine.sql.run import SqlRecords, SqlRun, table_options
from shared.errors import TransientError
from shared.model.job import parse_job
from shared.model.sql_job import SqlJob
from shared.model.sql_steps import TableOutcome
from shared.model.steps import Transient
from shared.ports.tables import LakeTable
from tests.support.change_tables import ChangingSource
from tests.support.emulated import LAKEHOUSE, LAKEHOUSE_ID, WORKSPACE_ID, Lake
from tests.support.lake_tables import EmulatedTable

Row = dict[str, Any]


class Crash(BaseException):
    """The worker is gone in the middle of a step."""


class FragileStore(ObjectRunStore):
    """A run store whose worker dies just before, or just after, it writes a key that matches."""

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.before: re.Pattern[str] | None = None
        self.after: re.Pattern[str] | None = None

    async def put(self, key: str, data: bytes) -> None:
        self._may_die("before", key)
        await super().put(key, data)
        self._may_die("after", key)

    async def put_new(self, key: str, data: bytes) -> bool:
        self._may_die("before", key)
        written = await super().put_new(key, data)
        self._may_die("after", key)
        return written

    def _may_die(self, when: str, key: str) -> None:
        pattern = getattr(self, when)
        if pattern is not None and pattern.search(key):
            setattr(self, when, None)
            raise Crash(key)


class Engine:
    """A job and its source. Each :meth:`run` is a run of its own.

    Attributes:
        source: The database.
        store: The run store.
        spec: Of the job; change it between runs.
    """

    def __init__(self, lake: Lake, folder: Path, tables: list[Mapping[str, Any]], **spec: Any) -> None:
        self.lake = lake
        self.source = ChangingSource(folder / f"{lake.name}.db")
        self.store = FragileStore()
        form = spec.pop("format", "delta")
        root = "Tables" if form == "delta" else "Files"
        self.spec: dict[str, Any] = {
            "kind": "sql", "name": f"job-{lake.name}", "source": {"connection": f"DB_{lake.name}", "name": "src"},
            "tables": [dict(table) for table in tables],
            "target": {"workspace": "W", "lakehouse": "L", "path": f"{root}/{lake.name}", "format": form}, **spec,
        }  # fmt: skip
        self.runs = 0

    # -- running -------------------------------------------------------------------------------------------------

    async def run(self, **changes: Any) -> dict[str, Any]:
        """All of a run; its manifest."""
        run = self.begin(**changes)
        return await self.go_on(run, self.spec | changes)

    def begin(self, **changes: Any) -> str:
        self.runs += 1
        return f"sql-{self.spec['name']}-{self.runs}"

    async def go_on(self, name: str, spec: Mapping[str, Any], round_number: int = 1) -> dict[str, Any]:
        """Carry a run out, or what is left of it after a crash: steps that were done change nothing."""
        job = parse_job(spec)
        assert isinstance(job, SqlJob)
        records = SqlRecords(self.store, name)
        database = self.source.database(job)
        facts, numbers, _ = await prepare.prepare(job, records, database, round_number, {}, "2026-11-21T02:00:00Z")
        opened = SqlRun(
            job=job, records=records, database=database, facts=facts, lake=lambda path: self.open(path, name, job),
            quarantine=lambda path: self.open(quarantine_path(path), name, job, form="parquet"),
            clock=self.clock,
            connections_per_table=prepare.table_window(job, len(numbers))[1],
        )  # fmt: skip
        for number in numbers:
            await self._migrate(opened, number)
        header = {"id": name, "kind": "sql", "name": job.name, "status": "completed", "started_at": "", "ended_at": "",
                  "error": None, "spec": job.model_dump(mode="json")}  # fmt: skip
        await report.write_reports(records, header)
        manifest: dict[str, Any] = json.loads(await self.store.get(records.key("manifest.json")) or b"")
        return manifest

    def open(self, path: str, run: str, job: SqlJob, form: Any = None) -> LakeTable:
        return open_lake_table(
            self.lake.onelake, WORKSPACE_ID, LAKEHOUSE_ID, path, form or job.target.format, owner=job.name, run=run,
            options=table_options(job), memory_bytes=job.limits.memory, now=self.clock,
        )  # fmt: skip

    def clock(self) -> datetime:
        """The time; replaced by a test."""
        return datetime.now(UTC)

    async def between(self, turn: int, step: str) -> None:
        """What somebody else does before a step; replaced by a test."""

    async def _migrate(self, run: SqlRun, number: int) -> None:
        done: TableOutcome = await steps.plan_step(run, "target", number, 0)
        while done["next"] != "settled":
            turn, step = done["turn"], done["next"]
            await self.between(turn, step)
            try:
                done = await self._step(run, number, done)
            except TransientError as error:
                failure: Transient = {"code": error.code, "detail": error.detail, "retry_after_s": None}
                done = await steps.fail_table(run, number, step, failure)

    async def _step(self, run: SqlRun, number: int, done: TableOutcome) -> TableOutcome:
        turn = done["turn"]
        if done["next"] == "plan":
            return await steps.plan_step(run, "target", number, turn)
        if done["next"] == "commit":
            return await steps.commit_step(run, "target", number, turn)
        if done["next"] == "table":
            return await steps.table_step(run, number, turn)
        for one in range(done["slices"]):
            await self.between(turn, f"slice {one}")
            extracted = await steps.slice_step(run, number, turn, one)
        return extracted

    # -- what there is -------------------------------------------------------------------------------------------

    def table(self, name: str = "t") -> EmulatedTable:
        """A table of the lake, for readers that are none of ours."""
        found = EmulatedTable(self.lake, self.spec["target"]["format"])
        below = name if found.format == "delta" else f"src/{name}"
        found.path = f"{self.spec['target']['path']}/{below}"
        found.folder = self.lake.emulators.lake_folder / LAKEHOUSE / found.path
        return found

    def lake_rows(self, name: str = "t", *, alive: bool = True) -> list[Row]:
        """Rows that readers find; of a table with soft deletes those that are not deleted, without our columns."""
        rows = self.table(name).rows()
        if alive:
            rows = [row for row in rows if not row.get("_deleted") and row.get("_is_current") in (None, True)]
        ours = ("_deleted", "_deleted_at", "_valid_from", "_valid_to", "_is_current")
        return [{key: value for key, value in row.items() if key not in ours} for row in rows]

    def assert_same(self, name: str = "t") -> None:
        """The lake's rows are the source's, each as often."""
        lake, source = ordered(self.lake_rows(name)), ordered(self.source.rows(name))
        lacking = [row for row in source if row not in lake][:5]
        assert lake == source, (
            f"not in the lake: {lacking}, not in the source: {[r for r in lake if r not in source][:5]}"
        )


def ordered(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True, default=repr))


def item(manifest: Mapping[str, Any], table: str = "t") -> dict[str, Any]:
    """The record of a table."""
    (found,) = [one for one in manifest["items"] if one["table"] == table]
    record: dict[str, Any] = found
    return record
