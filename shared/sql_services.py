"""From settings to the two sides of a SQL migration."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from shared.clients.allocation import give_back_what_is_freed
from shared.engine.sql import prepare as preparing
from shared.engine.sql.run import SqlRun, table_options
from shared.errors import Configuration, ConnectionLost
from shared.model.job import parse_job
from shared.model.sql_job import SqlJob
from shared.ports.tables import DatabaseFacts, LakeTable, TableDatabase

if TYPE_CHECKING:
    from shared.model.sql_steps import SqlCounts
    from shared.services import Services

_TOKEN_WAIT_S = 60.0


def open_source(services: "Services", job: SqlJob) -> TableDatabase:
    """The database of a job; no connection is opened. Called in the event loop, whose tokens its threads ask for.

    Raises:
        Configuration: the setting is missing, or its value is no connection. The value is not in the message.
    """
    from shared.clients.sql import open_database

    value = services.connection(job.source.connection)
    return open_database(value, job.source, job.types, token=_token_of(services), ca_bundle=services.settings.ca_bundle)


def _token_of(services: "Services") -> Callable[[], str]:
    """Gives, in any thread but the loop's own, a token of the credential ``sql`` for Azure SQL."""
    loop = asyncio.get_running_loop()

    async def fetch() -> str:
        from shared.clients.sql.connection import SQL_SCOPE

        return (await services.tokens("sql", SQL_SCOPE).get()).token

    def token() -> str:
        waiting = asyncio.run_coroutine_threadsafe(fetch(), loop)
        try:
            return waiting.result(timeout=_TOKEN_WAIT_S)
        except TimeoutError:
            waiting.cancel()
            raise ConnectionLost("the identity provider gives no answer", subject="CREDENTIAL_SQL") from None

    return token


async def prepare(services: "Services", run: str, round_number: int) -> tuple[SqlJob, list[int], "SqlCounts", int]:
    """Prove that both sides can be reached, and write the list of tables down.

    Returns:
        The job, the numbers of the tables to migrate, what was settled already, and how many tables at once.

    Raises:
        RunError: one of them cannot be reached.
    """
    records = services.sql_records(run)
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {run}")
    job = _job(document["spec"])
    workspace_id, lakehouse_id = await services.resolve(job.target)
    folder = services.target_folder(job.name, job.target, workspace_id, lakehouse_id)
    await folder.check(write=not job.dry_run)
    target = {"workspace_id": workspace_id, "lakehouse_id": lakehouse_id}
    database = open_source(services, job)
    _, numbers, counts = await preparing.prepare(
        job, records, database, round_number, target, services.clock().strftime("%Y-%m-%dT%H:%M:%SZ")
    )
    return job, numbers, counts, preparing.table_window(job, len(await records.numbers()))[0]


async def open_run(services: "Services", run: str) -> tuple[SqlRun, str]:
    """The run, and what tells its target from another one. Raises LookupError where nothing was prepared."""
    give_back_what_is_freed()
    records = services.sql_records(run)
    document, prepared = await records.load("run.json"), await records.load("prepared.json")
    if document is None or prepared is None:
        raise LookupError(f"the run store holds no run {run}")
    job = _job(document["spec"])
    workspace_id, lakehouse_id = prepared["workspace_id"], prepared["lakehouse_id"]
    lake = services.onelake(job.target.credential)

    def open_table(path: str, form: Literal["parquet", "delta"]) -> LakeTable:
        from shared.clients.lake_tables import open_lake_table

        return open_lake_table(
            lake,
            workspace_id,
            lakehouse_id,
            path,
            form,
            owner=job.name,
            run=run,
            options=table_options(job),
            memory_bytes=job.limits.memory,
            now=services.clock,
        )

    from shared.engine.sql.quality import quarantine_path

    opened = SqlRun(
        job=job,
        records=records,
        database=open_source(services, job),
        facts=DatabaseFacts(**prepared["database"]),
        lake=lambda path: open_table(path, job.target.format),
        quarantine=lambda path: open_table(quarantine_path(path), "parquet"),
        clock=services.clock,
        connections_per_table=preparing.table_window(job, len(await records.numbers()))[1],
    )
    return opened, f"{workspace_id}/{lakehouse_id}/{job.target.path}"


def _job(spec: object) -> SqlJob:
    job = parse_job(spec)
    if not isinstance(job, SqlJob):
        raise Configuration(f"a job of kind {job.kind} where one of tables belongs")
    return job
