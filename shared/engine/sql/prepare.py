"""From a job's wishes to the list of tables that a run migrates."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from shared.engine.sql import quality
from shared.engine.sql.run import SqlRecords, SqlRun, empty_record, folder_of, source_folder
from shared.engine.sql.sessions import apart
from shared.errors import Configuration
from shared.model.sql_job import SqlJob, TableWish
from shared.model.sql_steps import SqlCounts, no_sql_counts, table_page
from shared.policy.sql.names import TableName, is_wish_for_many, matching
from shared.ports.tables import DatabaseFacts, TableDatabase


@dataclass(frozen=True, slots=True)
class Chosen:
    """A table of the source with the wish it comes from; ``table`` is None where an exact wish means none."""

    wish: int
    table: TableName | None


def choose(
    wishes: Sequence[TableWish], tables: Iterable[TableName], default_schema: str
) -> tuple[list[Chosen], list[str]]:
    """The tables that the wishes mean, in the wishes' order, and warnings about patterns that mean none.

    A table that a wish names exactly is left to that wish; of several patterns the first has it.
    """
    tables = list(tables)
    found: list[list[Chosen]] = []
    taken: set[TableName] = set()
    warnings: list[str] = []
    exact: list[list[TableName]] = []
    for wish in wishes:
        is_exact = wish.table is not None and not is_wish_for_many(wish.table)
        exact.append(matching(wish.table, tables, default_schema) if is_exact and wish.table else [])
        taken.update(exact[-1])
    for number, wish in enumerate(wishes):
        if wish.table is None:
            found.append([Chosen(number, TableName("", wish.name or ""))])
        elif not is_wish_for_many(wish.table):
            found.append([Chosen(number, table) for table in exact[number]] or [Chosen(number, None)])
        else:
            left_out = {table for text in wish.exclude for table in matching(text, tables, default_schema)}
            meant = [one for one in matching(wish.table, tables, default_schema) if one not in left_out]
            if not meant:
                warnings.append(f"{wish.table} matches no table")
            found.append([Chosen(number, table) for table in meant if table not in taken])
            taken.update(meant)
    return [one for group in found for one in group], warnings


async def prepare(
    job: SqlJob, records: SqlRecords, database: TableDatabase, round_number: int, target: dict[str, str], now: str
) -> tuple[DatabaseFacts, list[int], SqlCounts]:
    """Ask the database what it is, write the plan down, one document a table; in a later round, open failures again.

    Returns:
        What the connection leads to, the numbers of the tables to migrate, and the counts of what was settled here.

    Raises:
        RunError: the database cannot be reached, or two tables would lie in one folder.
    """
    facts = await apart(database.check)
    known = await records.load("prepared.json")
    tables = await apart(database.tables)
    if round_number > 1 and known is not None:
        numbers, counts = await _again(job, records, facts, tables)
        return facts, numbers, counts
    quality.check_patterns(job)
    chosen, warnings = choose(job.tables, tables, facts.default_schema)
    entries = [_entry(job, facts, one) for one in chosen]
    _check_folders(job, entries)
    warnings += _idle(job, entries, facts.default_schema)
    counts = no_sql_counts()
    numbers = []
    for number, entry in enumerate(entries, start=1):
        await records.save(f"plan/{table_page(number)}.json", entry)
        counts["planned"] += 1
        if not entry["missing"]:
            numbers.append(number)
            continue
        record = empty_record(entry, "failed")
        record |= {
            "step": "prepare", "error_code": "not_found", "started_at": now, "finished_at": now,
            "error_detail": f"{entry['shown_wish']} is no table or view that the identity may see",
        }  # fmt: skip
        await records.put_record(number, record)
        counts["failed"] += 1
    await records.save("prepared.json", {
        **target, "warnings": warnings, "prepared_at": now,
        "database": {
            "dialect": facts.dialect, "product": facts.product, "database": facts.database,
            "identity": facts.identity, "default_schema": facts.default_schema, "snapshots": facts.snapshots,
            "why_not": facts.why_not, "fork": facts.fork,
        },
    })  # fmt: skip
    return facts, numbers, counts


def table_window(job: SqlJob, tables: int) -> tuple[int, int]:
    """How many tables at once, and how many connections each of them may have; together max_connections at most."""
    at_once = max(1, min(job.limits.parallel_tables, job.source.max_connections, tables))
    return at_once, job.source.max_connections // at_once


def _entry(job: SqlJob, facts: DatabaseFacts, one: Chosen) -> dict[str, Any]:
    wish = job.tables[one.wish]
    shown_wish = wish.table or wish.name or ""
    table = one.table or TableName("", shown_wish)
    folder = folder_of(source_folder(job, facts), table, wish.name, delta=job.target.format == "delta")
    return {
        "wish": one.wish, "shown_wish": shown_wish, "schema": table.schema, "name": table.name, "query": wish.query,
        "shown": str(table), "mode": wish.mode, "change": wish.change, "folder": folder,
        "path": f"{job.target.path}/{folder}", "missing": one.table is None,
    }  # fmt: skip


def _idle(job: SqlJob, entries: list[dict[str, Any]], default_schema: str) -> list[str]:
    """Warnings about rules and resets that mean no table of the run: they would be taken for done."""
    tables = [(TableName(one["schema"], one["name"]), one["query"]) for one in entries]

    def means_none(text: str) -> bool:
        return not any(matching(text, [table], "" if query else default_schema) for table, query in tables)

    rules = [
        f"quality[{number}]: {rule.table} means no table of this run, so that {rule.rule} is not checked"
        for number, rule in enumerate(job.quality)
        if means_none(rule.table)
    ]
    resets = [f"reset: {text} means no table of this run, so that nothing is reset" for text in job.reset]
    return rules + [one for one, text in zip(resets, job.reset, strict=True) if means_none(text)]


def _check_folders(job: SqlJob, entries: list[dict[str, Any]]) -> None:
    owner: dict[str, dict[str, Any]] = {}
    for entry in entries:
        if entry["missing"]:
            continue
        # Neither the lakehouse's SQL endpoint nor Spark tells names apart by case.
        other = owner.setdefault(entry["folder"].casefold(), entry)
        if other is not entry:
            raise Configuration(
                f"{other['shown']} and {entry['shown']} would both be written to {entry['path']}; give one of them a "
                "name of its own, or leave it out with exclude",
                code="output_collision",
                subject="tables",
            )
    for folder, entry in owner.items():
        parts = folder.split("/")
        for depth in range(1, len(parts)):
            if above := owner.get("/".join(parts[:depth])):
                # Who reads the one would read both.
                raise Configuration(
                    f"{entry['shown']} would be written to {entry['path']}, which is inside the folder of "
                    f"{above['shown']} ({above['path']}); give one of them a name of its own",
                    code="output_collision",
                    subject="tables",
                )


async def _again(
    job: SqlJob, records: SqlRecords, facts: DatabaseFacts, tables: Sequence[TableName]
) -> tuple[list[int], SqlCounts]:
    """A round of retry-failed: tables without success become open again, those that were missing if they are there."""
    counts = no_sql_counts()
    numbers = []
    for number in await records.numbers():
        record = await records.record(number)
        if record is not None and record["status"] not in ("failed", "planned"):
            continue
        counts["planned"] += 1
        entry = await records.entry(number)
        if entry["missing"]:
            there = matching(entry["shown_wish"], tables, facts.default_schema)
            if not there:
                counts["failed"] += 1
                continue
            found = _entry(job, facts, Chosen(entry["wish"], there[0]))
            await records.save(f"plan/{table_page(number)}.json", found)
        numbers.append(number)
        await records.forget_table(number)
    return numbers, counts


def applies(text: str, run: SqlRun, entry: dict[str, Any]) -> bool:
    """Whether a name or pattern of the job (a rule's table, ``reset``) means this table."""
    table = TableName(entry["schema"], entry["name"])
    return bool(matching(text, [table], "" if entry["query"] else run.facts.default_schema))
