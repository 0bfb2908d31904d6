"""The steps of one version as activities call them: each leaves it a step further, or settled with a record.

A failure that is the version's own becomes its record, here and nowhere else. One that stops the run is recorded too,
so that the manifest says where it happened, and goes on up.
"""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from shared.engine.mltables import copying, plan, register, validate
from shared.engine.mltables.run import MltableRun, error_fields, settled_counts
from shared.errors import ItemError, MigrationError, RunError
from shared.model.mltable_steps import AssetRecord, Step, StepOutcome, outcome
from shared.model.steps import Transient, no_counts

Body = Callable[[], Awaitable[StepOutcome]]


async def plan_step(run: MltableRun, group: int, version: int) -> StepOutcome:
    async def body() -> StepOutcome:
        made = await plan.plan_version(run, group, version)
        if isinstance(made, plan.Settled):
            return await _settle(run, group, version, made.record)
        counts = no_counts()
        counts["bytes_planned"] = made["record"]["source_bytes"]
        parallel = 2 if made["parts"] > 1 else 1
        first: Step = "copy" if made["parts"] else "check"
        return outcome(first, counts, parts=made["parts"], parallel=parallel)

    return await _guarded(run, group, version, "plan", body)


async def copy_step(run: MltableRun, group: int, version: int, part: int) -> StepOutcome:
    async def body() -> StepOutcome:
        counts = await copying.copy_part(run, group, version, part)
        return outcome("check", counts)

    return await _guarded(run, group, version, "copy", body)


async def check_step(run: MltableRun, group: int, version: int) -> StepOutcome:
    async def body() -> StepOutcome:
        await copying.check_files(run, group, version)
        return outcome("register", no_counts())

    return await _guarded(run, group, version, "check", body)


async def register_step(run: MltableRun, group: int, version: int) -> StepOutcome:
    async def body() -> StepOutcome:
        document = await register.register_version(run, group, version)
        if document["record"]["status"] == "skipped":
            return await _settle(run, group, version, _timed(run, document, document["record"]))
        return outcome("validate", no_counts())

    return await _guarded(run, group, version, "register", body)


async def validate_step(run: MltableRun, group: int, version: int) -> StepOutcome:
    """The last one: a version that passes is a success, or skipped where nothing was to be done."""

    async def body() -> StepOutcome:
        fields = await validate.validate_version(run, group, version)
        document = await run.records.version(group, version)
        record: AssetRecord = {**document["record"], **fields}  # type: ignore[typeddict-item]
        was_there = record["skipped_existing"] and not document["is_new"]
        record["status"] = "skipped" if was_there else "success"
        record = _timed(run, document, record)
        key = plan.done_key(run, document["source"]["id"])
        done = {"record": record, "source_state": document["source_state"]}
        await run.records.store.put(key, json.dumps(done).encode())
        return await _settle(run, group, version, record)

    return await _guarded(run, group, version, "validate", body)


async def fail_version(run: MltableRun, group: int, version: int, step: str, error: Transient) -> StepOutcome:
    """Settle a version whose attempts are used up."""
    settled = await _already(run, group, version)
    if settled is not None:
        return settled
    detail = f"{error['detail']} (all attempts)"
    return await _failed(run, group, version, {"step": step, "error_code": error["code"], "error_detail": detail})


# -- parts -------------------------------------------------------------------------------------------------------------


async def _guarded(run: MltableRun, group: int, version: int, step: str, body: Body) -> StepOutcome:
    settled = await _already(run, group, version)
    if settled is not None:
        return settled
    if await run.records.cancelled():
        return outcome("settled", no_counts(), cancelled=True)
    try:
        return await body()
    except validate.ValidationFailed as error:
        return await _failed(run, group, version, {**error_fields(error, step), **error.fields})
    except ItemError as error:
        return await _failed(run, group, version, error_fields(error, step))
    except RunError as error:
        await _record_failure(run, group, version, error_fields(error, step))
        raise


async def _already(run: MltableRun, group: int, version: int) -> StepOutcome | None:
    """An activity that is delivered again after its record was written changes nothing."""
    record = await run.records.record(group, version)
    return None if record is None else outcome("settled", settled_counts(record))


async def _settle(run: MltableRun, group: int, version: int, record: AssetRecord) -> StepOutcome:
    await run.records.put_record(group, version, record)
    return outcome("settled", settled_counts(record))


async def _failed(run: MltableRun, group: int, version: int, fields: dict[str, Any]) -> StepOutcome:
    """Write the record, after the rollback where the job wants one."""
    wish = await run.records.wish(group, version)
    if run.options(wish["spec"]).rollback_on_failure and fields["step"] != "plan":
        # A rollback that fails leaves what it could not delete; the record says so.
        with suppress(ItemError):
            document = await run.records.version(group, version)
            if fields["step"] == "validate":
                await register.unregister(run, document)
            if await register.is_registered_by_others(run, document):
                fields = {**fields, "reason": "nothing was rolled back: another version is registered over these files"}
            else:
                await copying.roll_back(run, group, version)
                await register.release_claim(run, document)
                fields = {**fields, "rolled_back": True}
    record = await _record_failure(run, group, version, fields)
    return outcome("settled", settled_counts(record))


async def _record_failure(run: MltableRun, group: int, version: int, fields: dict[str, Any]) -> AssetRecord:
    document = await run.records.load(run.records.version_key(group, version))
    wish = await run.records.wish(group, version)
    record: AssetRecord = document["record"] if document is not None else plan.start_record(run, wish)
    record = {**record, "status": "failed", **fields}  # type: ignore[typeddict-item]
    record = _timed(run, document, record)
    with suppress(MigrationError):
        await run.records.put_record(group, version, record)
    return record


def _timed(run: MltableRun, document: dict[str, Any] | None, record: AssetRecord) -> AssetRecord:
    began = document["started_at"] if document is not None else None
    spent = (run.clock() - datetime.fromisoformat(began)).total_seconds() if began else 0.0
    return {**record, "migrated_on_utc": run.now(), "duration_s": round(spent, 3)}
