"""One SQL migration as its activities see it: the job, the database, the lake, and where its documents lie.

::

    runs/<run>/run.json                          the job as it was posted
    runs/<run>/prepared.json                     what the connection leads to, the target's GUIDs, warnings
    runs/<run>/plan/<page>.json                  a table: its name, the wish it comes from, its folder
    runs/<run>/tables/<page>-t0.json             what was decided about it: columns, window, slices, commit number
    runs/<run>/tables/<page>-t1.json             the same for the increment that catches up with a load by slices
    runs/<run>/slices/<page>-t0/s00000-….json    what a slice became: its files, checksums, counts; named by the
                                                 decision's token, so that nothing of an earlier round is taken for it
    runs/<run>/seen/<page>-t0/s00000-….bin       digests of its rows at the watermark's boundary, as one attempt read
    runs/<run>/reading/<page>-t0-s00000.json     how far an activity is that is reading
    runs/<run>/quality/<page>-t0.json            verdicts of quality rules
    runs/<run>/ends/<page>-t0/….json             whether its files are committed or cleared away, once one of both
                                                 has begun
    runs/<run>/done/<page>-t0.json               what the commit did
    runs/<run>/reconciled/<page>.json            what a comparison of source and lake found, and mended
    runs/<run>/reconciled/<page>-ranges.json     by which ranges of its key it is compared
    runs/<run>/records/<page>.json               what became of the table
    jobs/<job>/sql/<table>.json                  how far a table has been read: the cursor, over all runs
    jobs/<job>/sql/<table>-<token>.seen          digests of rows at its boundary; a cursor says which
"""

import hashlib
import json
import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from shared.engine.run_records import RunRecords
from shared.errors import ItemError, RunError
from shared.model.sql_job import SqlJob, TableWish
from shared.model.sql_steps import SqlCounts, TableRecord, no_sql_counts, table_page
from shared.policy.sql.names import TableName, delta_name
from shared.ports import Clock
from shared.ports.tables import (
    Capture,
    DatabaseFacts,
    LakeColumn,
    LakeTable,
    PartFile,
    PartOptions,
    SourceColumn,
    TableDatabase,
    TableShape,
    Tracking,
)

REPAIR = "repair"
"""In place of a decision's token, of files that a repair writes before there is one."""
_UNFIT = re.compile(r"[^\w$#@ ()-]+")


@dataclass
class SqlRun:
    """Everything that stays the same while one run goes on.

    Attributes:
        job: As it was posted.
        records: The run's documents.
        database: The source.
        facts: What the connection leads to, as it was when the run was prepared.
        lake: Opens a table by its path in the lakehouse, in the format of the job.
        quarantine: Opens the table of a table's quarantined rows, by the table's own path.
        clock: The time.
        connections_per_table: How many connections one table may have.
    """

    job: SqlJob
    records: "SqlRecords"
    database: TableDatabase
    facts: DatabaseFacts
    lake: Callable[[str], LakeTable]
    quarantine: Callable[[str], LakeTable]
    clock: Clock
    connections_per_table: int

    def now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def wish(self, entry: Mapping[str, Any]) -> TableWish:
        number: int = entry["wish"]
        return self.job.tables[number]

    @property
    def is_delta(self) -> bool:
        return self.job.target.format == "delta"


class SqlRecords(RunRecords):
    """The documents of one run; a page of ``final_pages`` is one table."""

    # -- of a table ----------------------------------------------------------------------------------------------

    async def entry(self, table: int) -> dict[str, Any]:
        return await self._there(f"plan/{table_page(table)}.json")

    async def decided(self, table: int, turn: int) -> dict[str, Any]:
        return await self._there(_turn("tables", table, turn))

    async def put_decided(self, table: int, turn: int, document: dict[str, Any]) -> dict[str, Any]:
        """Write a decision down unless there is one; the one that holds."""
        name = _turn("tables", table, turn)
        if await self.store.put_new(self.key(name), json.dumps(document).encode()):
            return document
        return await self._there(name)

    async def done(self, table: int, turn: int) -> dict[str, Any] | None:
        return await self.load(_turn("done", table, turn))

    async def put_done(self, table: int, turn: int, document: dict[str, Any]) -> None:
        await self.save(_turn("done", table, turn), document)

    async def end(self, table: int, turn: int, token: str, wanted: Literal["commit", "clear"]) -> str:
        """Say what is about to be done with a turn's files, unless that was said before; what holds.

        Of deliveries side by side one may commit files while another is about to delete them: only one of both is done.
        """
        name = f"ends/{table_page(table)}-t{turn}/{token}.json"
        if await self.store.put_new(self.key(name), json.dumps({"end": wanted}).encode()):
            return wanted
        return str((await self._there(name))["end"])

    async def quality(self, table: int, turn: int) -> dict[str, Any] | None:
        return await self.load(_turn("quality", table, turn))

    async def put_quality(self, table: int, turn: int, document: dict[str, Any]) -> None:
        await self.save(_turn("quality", table, turn), document)

    async def reconcile_ranges(self, table: int) -> list[Any] | None:
        found = await self.load(f"reconciled/{table_page(table)}-ranges.json")
        return None if found is None else list(found["groups"])

    async def put_reconcile_ranges(self, table: int, groups: list[Any]) -> None:
        await self.save(f"reconciled/{table_page(table)}-ranges.json", {"groups": groups})

    async def reconciled(self, table: int) -> dict[str, Any] | None:
        return await self.load(f"reconciled/{table_page(table)}.json")

    async def put_reconciled(self, table: int, document: dict[str, Any]) -> None:
        await self.save(f"reconciled/{table_page(table)}.json", document)

    async def record(self, table: int) -> TableRecord | None:
        found: Any = await self.load(f"records/{table_page(table)}.json")
        return found  # type: ignore[no-any-return]

    async def put_record(self, table: int, record: TableRecord) -> TableRecord:
        """Write a table's record unless it has one; the one that holds."""
        name = f"records/{table_page(table)}.json"
        if await self.store.put_new(self.key(name), json.dumps(record).encode()):
            return record
        return await self._there(name)  # type: ignore[return-value]

    async def forget_table(self, table: int) -> None:
        """Everything but what was asked: the table is to be migrated once more."""
        page = table_page(table)
        keys = [self.key(f"records/{page}.json"), self.key(f"reconciled/{page}.json")]
        keys.append(self.key(f"reconciled/{page}-ranges.json"))
        for turn in (0, 1):
            keys += [self.key(_turn(folder, table, turn)) for folder in ("tables", "quality", "done")]
            for folder in ("slices", "seen", "ends"):
                keys += await self.store.list(self.key(f"{folder}/{page}-t{turn}"))
        await self.store.delete(keys)

    # -- of a slice ----------------------------------------------------------------------------------------------

    async def slice_result(self, table: int, turn: int, number: int, token: str) -> dict[str, Any] | None:
        """``token`` is the decision's."""
        return await self.load(_slice(table, turn, number, token))

    async def put_slice(self, table: int, turn: int, number: int, token: str, result: dict[str, Any]) -> dict[str, Any]:
        """Write a slice's result unless there is one; the one that holds."""
        name = _slice(table, turn, number, token)
        if await self.store.put_new(self.key(name), json.dumps(result).encode()):
            return result
        return await self._there(name)

    async def put_seen(self, table: int, turn: int, number: int, data: bytes) -> str:
        """Of several attempts each keeps its own: what one of them saw, another may not have delivered."""
        digest = hashlib.sha256(data).hexdigest()[:16]
        key = self.key(f"seen/{table_page(table)}-t{turn}/s{number:05d}-{digest}.bin")
        await self.store.put(key, data)
        return key

    async def put_under_way(self, table: int, turn: int, number: int, rows: int) -> None:
        """How many rows an activity has read so far; ``number`` is that of its first slice."""
        await self.save(_under_way(table, turn, number), {"rows": rows})

    async def forget_under_way(self, table: int, turn: int, number: int) -> None:
        await self.store.delete([self.key(_under_way(table, turn, number))])

    async def rows_under_way(self) -> int:
        """Rows that activities which have not ended yet have read, as of some seconds ago."""
        found = [await self.store.get(key) for key in await self.store.list(self.key("reading"))]
        return sum(int(json.loads(data)["rows"]) for data in found if data is not None)

    # -- of all --------------------------------------------------------------------------------------------------

    async def numbers(self) -> list[int]:
        """Every table's number, in order."""
        keys = [key for key in await self.store.list(self.key("plan")) if key.endswith(".json")]
        return sorted(int(key.rpartition("/p")[2].removesuffix(".json")) for key in keys)

    async def final_pages(self, after: str | None = None) -> AsyncIterator[tuple[str, list[Any]]]:
        """Tables after the named page, a page and a record each; one that nothing came of yet is planned."""
        for number in await self.numbers():
            if after is None or number > int(after.removeprefix("p")):
                yield table_page(number), [await self.record(number) or not_reached(await self.entry(number))]

    async def _there(self, name: str) -> dict[str, Any]:
        document = await self.load(name)
        if document is None:
            raise LookupError(f"{name} of {self.run} is gone from the run store")
        return document


def _turn(folder: str, table: int, turn: int) -> str:
    return f"{folder}/{table_page(table)}-t{turn}.json"


def _under_way(table: int, turn: int, number: int) -> str:
    return f"reading/{table_page(table)}-t{turn}-s{number:05d}.json"


def _slice(table: int, turn: int, number: int, token: str) -> str:
    return f"slices/{table_page(table)}-t{turn}/s{number:05d}-{token}.json"


# -- records -----------------------------------------------------------------------------------------------------------


def empty_record(entry: Mapping[str, Any], status: str) -> TableRecord:
    return {
        "table": entry["shown"], "mode": entry["mode"], "from_watermark": None, "to_watermark": None, "rows": 0,
        "files": 0, "bytes": 0, "source_checksum": None, "target_checksum": None, "quality": {"verdict": "not checked"},
        "status": status, "path": entry["path"], "wish": entry["shown_wish"], "load": None, "reload_reason": None,
        "disposition": None, "deletes": None, "change": entry["change"], "source_rows": 0, "inserted": 0, "updated": 0,
        "deleted": 0, "quarantined": 0, "repeated": 0, "table_version": None, "passes": [], "plan": {},
        "schema_changes": [], "warnings": [], "reason": None, "reconcile": None,
        "step": None, "error_code": None, "error_detail": None,
        "started_at": None, "finished_at": None,
    }  # fmt: skip


def not_reached(entry: Mapping[str, Any]) -> TableRecord:
    """The record of a table that the run has not come to."""
    return {**empty_record(entry, "planned"), "reason": "the run has not come to it"}


def settled_counts(record: TableRecord) -> SqlCounts:
    """What a table adds to the run's counts once nothing more will be done about it."""
    counts = no_sql_counts()
    name = {"success": "uploaded", "failed": "failed"}.get(record["status"])
    if name:
        counts[name] += 1  # type: ignore[literal-required]
    return counts


def error_fields(error: ItemError | RunError, step: str) -> dict[str, Any]:
    return {"step": step, "error_code": error.code, "error_detail": error.detail}


# -- names in the lake -------------------------------------------------------------------------------------------------


def folder_of(run_source: str, table: TableName, name: str | None, *, delta: bool) -> str:
    """A table's folder below ``target.path``: ``erp/dbo/Orders`` for Parquet, ``dbo_Orders`` for Delta."""
    if delta:
        return delta_name(TableName("", name)) if name else delta_name(table)
    schema = [_folder(table.schema)] if table.schema else []
    return "/".join([run_source, *schema, name or _folder(table.name)])


def source_folder(job: SqlJob, facts: DatabaseFacts) -> str:
    return job.source.name or _folder(facts.database)


def table_options(job: SqlJob) -> PartOptions:
    """Of files that no slice was asked for, such as those that a merge rewrites."""
    return PartOptions(job.compression, job.files.size, job.files.row_group)


def _folder(name: str) -> str:
    """A name that OneLake takes as a folder's; the report says what each table's is."""
    return _UNFIT.sub("_", name).strip(" _") or "table"


def cursor_key(job: SqlJob, target: str, entry: Mapping[str, Any]) -> str:
    """Where the cursor of a table lies: one for each table, folder and lakehouse."""
    about = "\0".join([target, entry["path"], entry["schema"], entry["name"], entry["query"] or ""])
    return f"jobs/{job.name}/sql/{hashlib.sha256(about.encode()).hexdigest()[:40]}.json"


# -- dataclasses of the ports, as JSON ---------------------------------------------------------------------------------


def columns_of(document: list[list[Any]]) -> tuple[LakeColumn, ...]:
    return tuple(LakeColumn(*one) for one in document)


def columns_document(columns: Any) -> list[list[Any]]:
    return [[one.name, one.type, one.nullable] for one in columns]


def shape_document(shape: TableShape) -> dict[str, Any]:
    return {
        "table": [shape.table.schema, shape.table.name], "query": shape.query, "key": list(shape.key),
        "rows": shape.rows, "size_bytes": shape.size_bytes, "tracked": shape.tracked, "facts": dict(shape.facts),
        "columns": [
            [one.name, one.type, one.nullable, columns_document(one.lake), one.note] for one in shape.columns
        ],
        "captures": [[one.name, list(one.columns), one.net, one.since, one.note] for one in shape.captures],
        "tracking": [shape.tracking.name, shape.tracking.since] if shape.tracking else None,
    }  # fmt: skip


def shape_of(document: Mapping[str, Any]) -> TableShape:
    return TableShape(
        table=TableName(*document["table"]),
        query=document["query"],
        columns=tuple(
            SourceColumn(name, kind, nullable, columns_of(lake), note)
            for name, kind, nullable, lake, note in document["columns"]
        ),
        key=tuple(document["key"]),
        rows=document["rows"],
        size_bytes=document["size_bytes"],
        tracked=document["tracked"],
        captures=tuple(Capture(name, tuple(columns), *more) for name, columns, *more in document["captures"]),
        facts=document["facts"],
        tracking=Tracking(*document["tracking"]) if document.get("tracking") else None,
    )


def part_of(document: Mapping[str, Any]) -> PartFile:
    return PartFile(**document)
