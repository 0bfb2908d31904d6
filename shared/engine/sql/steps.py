"""The steps of one table as activities call them: each leaves it a step further, or settled with a record.

A failure that is the table's own becomes its record, here and nowhere else. One that stops the run is recorded too, so
that the manifest says where it happened, and goes on up.
"""

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from shared.engine.sql.commit import commit_table
from shared.engine.sql.extract import Cancelled, extract_slice, extract_table
from shared.engine.sql.plan_table import plan_table
from shared.engine.sql.reconcile import reconcile_table, summary_of
from shared.engine.sql.run import REPAIR, SqlRun, empty_record, error_fields, settled_counts
from shared.errors import ItemError, MigrationError, RunError
from shared.model.sql_steps import TableOutcome, TableRecord, no_sql_counts, outcome
from shared.model.steps import Transient

Body = Callable[[], Awaitable[TableOutcome]]
Asked = Callable[[], Awaitable[Any]]


async def plan_step(run: SqlRun, target: str, table: int, turn: int) -> TableOutcome:
    async def planned() -> dict[str, Any] | None:
        return await run.records.load(f"tables/p{table:05d}-t{turn}.json")

    async def is_begun() -> Any:
        return await planned() or await run.records.reconcile_ranges(table)

    async def is_done() -> Any:
        compared = await run.records.reconciled(table)
        return await planned() or (compared is not None and compared["next"] is None)

    async def body() -> TableOutcome:
        known = await planned()
        if known is None and turn == 0:
            if run.job.reconcile != "compare":
                # What runs before this one left behind; once more is known, files may be this one's.
                await _clear(run, table, unless=is_begun)
            if run.job.reconcile:
                reconciled = await reconcile_table(run, target, table)
                await run.records.put_reconciled(table, reconciled.document)
                if reconciled.goes_on:
                    return outcome("plan")
                if not reconciled.reload:
                    return await _settle_reconciled(run, table, reconciled.document)
        decided = known or await plan_table(run, target, table, turn)
        if run.job.dry_run:
            return await _settle(run, table, await _record(run, table, "planned"))
        counts = no_sql_counts()
        if turn == 0:
            counts["rows_planned"] = max(0, decided["plan"]["rows"]) if decided["load"] == "full" else 0
            counts["bytes_planned"] = max(0, decided["plan"]["lake_bytes"]) if decided["load"] == "full" else 0
        by_slice = decided["moments"] == "slice"
        return outcome(
            "slices" if by_slice else "table", counts, turn=turn, slices=len(decided["ranges"]),
            parallel=decided["parallel"],
        )  # fmt: skip

    return await _guarded(run, table, "plan", body, is_done)


async def slice_step(run: SqlRun, table: int, turn: int, number: int) -> TableOutcome:
    async def body() -> TableOutcome:
        return outcome("commit", await extract_slice(run, table, turn, number), turn=turn)

    return await _guarded(run, table, "extract", body, _extracted(run, table, turn, number), alone=False)


async def table_step(run: SqlRun, table: int, turn: int) -> TableOutcome:
    async def body() -> TableOutcome:
        return outcome("commit", await extract_table(run, table, turn), turn=turn)

    return await _guarded(run, table, "extract", body, _extracted(run, table, turn, 0))


async def commit_step(run: SqlRun, target: str, table: int, turn: int) -> TableOutcome:
    """The last one, but where a load by slices has to catch up."""

    async def body() -> TableOutcome:
        await commit_table(run, target, table, turn)
        if turn == 0 and (await run.records.decided(table, 0))["catch_up"]:
            return outcome("plan", turn=1)
        return await _settle(run, table, await _record(run, table, "success"))

    return await _guarded(run, table, "commit", body, lambda: run.records.done(table, turn))


async def fail_table(run: SqlRun, table: int, step: str, error: Transient) -> TableOutcome:
    """Settle a table whose attempts are used up."""
    settled = await _already(run, table)
    if settled is not None:
        return settled
    step = {"slices": "extract", "table": "extract"}.get(step, step)
    detail = f"{error['detail']} (all attempts)"
    done = await _failed(run, table, {"step": step, "error_code": error["code"], "error_detail": detail})
    await _clear(run, table, unless=await _once_ended(run, table, _open(run, table)))
    return done


# -- parts -------------------------------------------------------------------------------------------------------------


def _extracted(run: SqlRun, table: int, turn: int, number: int) -> Asked:
    async def asked() -> Any:
        decided = await run.records.decided(table, turn)
        return await run.records.slice_result(table, turn, number, decided["token"])

    return asked


def _open(run: SqlRun, table: int) -> Asked:
    async def asked() -> Any:
        return await run.records.record(table) is None

    return asked


def _goes_on(run: SqlRun) -> Asked:
    async def asked() -> Any:
        return not await run.records.cancelled()

    return asked


async def _once_ended(run: SqlRun, table: int, unless: Asked) -> Asked:
    """``unless``, or another delivery may have made a commit since; once asked, none begins one."""
    turns = []
    for turn in (0, 1):
        decided = await run.records.load(f"tables/p{table:05d}-t{turn}.json")
        if decided is not None and await run.records.done(table, turn) is None:
            turns.append((turn, decided["token"]))
        elif decided is None and turn == 0:
            turns.append((turn, REPAIR))

    async def asked() -> Any:
        if await unless():
            return True
        ends = [await run.records.end(table, turn, token, "clear") for turn, token in turns]
        return "commit" in ends

    return asked


async def _guarded(
    run: SqlRun, table: int, step: str, body: Body, is_done: Asked, *, alone: bool = True
) -> TableOutcome:
    """Settle what cannot be.

    Args:
        run: The run.
        table: Its number.
        step: For the record.
        body: The step; where it was carried out already, it says what it says then.
        is_done: Something where another delivery has carried it out; this one trips over what that has cleared away.
        alone: No other step of the table is at work, so that what it leaves behind can be cleared away.
    """
    settled = await _already(run, table)
    if settled is not None:
        return settled
    done = outcome("settled", cancelled=True)
    unless: Asked = _goes_on(run)
    try:
        if not await run.records.cancelled():
            return await body()
    except Cancelled:
        done = await _already(run, table) or done
    except ItemError as error:
        if await is_done():
            return await body()
        done = await _failed(run, table, error_fields(error, step))
        unless = _open(run, table)
    except RunError as error:
        await _record_failure(run, table, error_fields(error, step))
        raise
    if alone:
        await _clear(run, table, unless=await _once_ended(run, table, unless))
    return done


async def _already(run: SqlRun, table: int) -> TableOutcome | None:
    """An activity that is delivered again after its record was written changes nothing."""
    record = await run.records.record(table)
    return None if record is None else outcome("settled", settled_counts(record))


async def _settle(run: SqlRun, table: int, record: TableRecord) -> TableOutcome:
    return outcome("settled", settled_counts(await run.records.put_record(table, record)))


async def _settle_reconciled(run: SqlRun, table: int, document: dict[str, Any]) -> TableOutcome:
    if document["verdict"] == "differs":
        detail = f"the lake is not what the source is: {summary_of(document)}; reconcile: repair mends it"
        return await _failed(run, table, {"step": "compare", "error_code": "lake_differs", "error_detail": detail})
    return await _settle(run, table, await _record(run, table, "success"))


async def _failed(run: SqlRun, table: int, fields: dict[str, Any]) -> TableOutcome:
    # Of slices that fail side by side the first has told why.
    settled = await _already(run, table)
    if settled is not None:
        return settled
    return outcome("settled", settled_counts(await _record_failure(run, table, fields)))


async def _clear(run: SqlRun, table: int, *, unless: Asked) -> None:
    """Delete files that no commit refers to. No reader sees what cannot be deleted now; it goes with the next run.

    ``unless`` is asked between looking and deleting: a delivery that was overtaken must not touch what came after it.
    """
    if not run.job.dry_run:
        with suppress(MigrationError):
            path = (await run.records.entry(table))["path"]
            tables = [run.lake(path)]
            if any(rule.action == "quarantine" for rule in run.job.quality):
                tables.append(run.quarantine(path))
            found = [(one, await one.leftovers()) for one in tables]
            if not await unless():
                for one, left_over in found:
                    await one.remove(left_over)


async def _record_failure(run: SqlRun, table: int, fields: dict[str, Any]) -> TableRecord:
    record: TableRecord = {**await _record(run, table, "failed"), **fields}  # type: ignore[typeddict-item]
    return await run.records.put_record(table, record)


async def _record(run: SqlRun, table: int, status: str) -> TableRecord:
    """What the documents of the table say."""
    records, entry = run.records, await run.records.entry(table)
    record = empty_record(entry, status)
    record["finished_at"] = run.now()
    reconciled = record["reconcile"] = await records.reconciled(table)
    if reconciled:
        del reconciled["next"]
    if reconciled and status == "success" and reconciled["verdict"] == "differs":
        # By reading it anew; otherwise it would not be here.
        reconciled["verdict"] = "repaired"
    turns = [await records.load(f"tables/p{table:05d}-t{turn}.json") for turn in (0, 1)]
    first = turns[0]
    if first is None:
        return record
    record |= {
        "load": first["load"], "reload_reason": first["reload_reason"], "disposition": first["disposition"],
        "deletes": first["deletes"], "plan": first["plan"], "started_at": first["planned_at"],
        "schema_changes": [one for turn in turns if turn for one in turn["schema_changes"]],
        "warnings": list(dict.fromkeys(one for turn in turns if turn for one in turn["warnings"])),
    }  # fmt: skip
    checked = [found for turn in (0, 1) if (found := await records.quality(table, turn)) is not None]
    if checked:
        # Of two turns the one that says more.
        record["quality"] = {name: value for name, value in max(checked, key=_severity).items() if name != "warnings"}
        record["warnings"] += [one for found in checked for one in found["warnings"]]
    done = [found for turn in (0, 1) if (found := await records.done(table, turn)) is not None]
    if not done:
        return record
    record |= {
        "from_watermark": done[0]["from"], "to_watermark": done[-1]["to"], "passes": [_shown(one) for one in done],
        "source_rows": sum(one["read"] for one in done), "table_version": done[-1]["version"],
        "source_checksum": done[0]["source"], "target_checksum": done[0]["target"],
    }  # fmt: skip
    for name in ("rows", "files", "bytes", "inserted", "updated", "deleted", "repeated", "quarantined"):
        record[name] = sum(one[name] for one in done)
    return record


def _shown(done: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in done.items() if name != "cursor"}


def _severity(verdict: dict[str, Any]) -> int:
    order = ("not checked", "not applicable", "passed", "warned", "quarantined", "failed")
    return order.index(verdict["verdict"])
