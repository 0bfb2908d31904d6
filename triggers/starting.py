"""Starting a run: the same steps for a request, a schedule and a retry."""

import asyncio
import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from azure.durable_functions import DurableOrchestrationClient, OrchestrationRuntimeStatus
from azure.durable_functions.models.DurableOrchestrationStatus import DurableOrchestrationStatus

from shared import names
from shared.errors import Configuration, JobBusy, MigrationError, SourceMissing
from shared.model.job import BlobSource, FilesJob, FolderSource, Job, SharePointSource, SpecError
from shared.model.mltable_job import MltableJob
from shared.model.sql_job import SqlJob
from shared.model.steps import Counts, MigrateFilesInput
from shared.services import Services

ALIVE = {
    OrchestrationRuntimeStatus.Pending,
    OrchestrationRuntimeStatus.Running,
    OrchestrationRuntimeStatus.Suspended,
    OrchestrationRuntimeStatus.ContinuedAsNew,
}
ALIVE_STATUSES = sorted(ALIVE, key=lambda status: str(status.name))
# A claim whose instance does not exist yet is one that is being started right now.
_STARTING_S = 60.0
_PREFLIGHT_S = 10.0
_SHOWN_FIELDS = ("path", "container", "folder")


async def start_job(services: Services, client: DurableOrchestrationClient, job: Job) -> str:
    """Check what the text alone cannot tell, claim the job, write the run down and start it.

    Returns:
        The run's id.

    Raises:
        SpecError: a field is at fault; nothing was started.
        JobBusy: a run of the job is alive.
    """
    found = await check_surroundings(services, job)
    now = services.clock()
    slot = now.strftime("%Y%m%dT%H%M%SZ")
    run = names.run_id(job.kind, job.name, slot)
    suffix = 1
    while await services.records(run).load("run.json") is not None:
        suffix += 1
        run = names.run_id(job.kind, job.name, f"{slot}-{suffix}")
    claim, earlier = await claim_job(services, client, job.name, run)
    started_at = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    records = services.records(run)
    try:
        await records.save("run.json", {
            "id": run, "kind": job.kind, "name": job.name, "spec": job.model_dump(mode="json"),
            "source_paths": found.source_paths, "target_ids": found.target_ids, "started_at": started_at, "round": 1,
            "earlier_runs": earlier,
        })  # fmt: skip
        await services.store.put(index_key(run, started_at), b"{}")
        await _start(client, run, job.kind, job.name, started_at, 1, None)
    except BaseException:
        await services.store.delete([claim])
        raise
    return run


async def start_round(
    services: Services, client: DurableOrchestrationClient, run: str, job: str, after_round: int, base: Counts
) -> None:
    """Start the next round of a run that ended its ``after_round``: its failed items, under the same id.

    Raises:
        JobBusy: a run of the job is alive, or the next round was started by another request meanwhile.
        LookupError: the run store holds nothing of this run.
    """
    claim, _ = await claim_job(services, client, job, run)
    try:
        records = services.records(run)
        document = await _load_round(services, client, run, after_round)
        await records.save("run.json", {**document, "round": after_round + 1})
        # A cancel that came when the round before was all but over is no wish about this one.
        await services.store.delete([records.key("folded"), records.key("cancel")])
        await _start(client, run, document["kind"], document["name"], document["started_at"], after_round + 1, base)
    except BaseException:
        await services.store.delete([claim])
        raise


async def _load_round(
    services: Services, client: DurableOrchestrationClient, run: str, after_round: int
) -> dict[str, Any]:
    document = await services.records(run).load("run.json")
    if document is None:
        raise LookupError(run)
    # The instance and not the document says which round was the last: a start that was cut short has written the one
    # without having started the other, and must not keep the next try out.
    found = await client.get_status(run, show_input=True)
    given = json.loads(found.input_) if isinstance(found.input_, str) else found.input_
    if given["round"] != after_round:
        raise JobBusy(run)
    return document


async def _start(
    client: DurableOrchestrationClient,
    run: str,
    kind: str,
    name: str,
    started_at: str,
    number: int,
    base: Counts | None,
) -> None:
    given: MigrateFilesInput = {
        "run": run, "round": number, "kind": kind, "name": name, "started_at": started_at, "base": base, "state": None,
    }  # fmt: skip
    await client.start_new(names.ORCHESTRATOR_OF_KIND[kind], run, given)


async def claim_job(
    services: Services, client: DurableOrchestrationClient, job: str, run: str
) -> tuple[str, list[str]]:
    """Make ``run`` the job's current run; see :func:`shared.engine.admission.claim`."""

    async def is_alive(current: str, claimed_at: str) -> bool:
        status = await client.get_status(current)
        claimed = datetime.fromisoformat(claimed_at)
        # Of a clock that was put back since, the claim may lie in the future; it is none of this moment then.
        is_fresh = abs((services.clock() - claimed).total_seconds()) < _STARTING_S
        if status is None or status.runtime_status is None:
            return is_fresh
        if (
            status.runtime_status not in ALIVE
            and is_fresh
            and status.last_updated_time < claimed.replace(microsecond=0)
        ):
            # It ended before it was claimed once more: its next round is being started.
            return True
        # A parent that was terminated from outside leaves its children at work.
        return status.runtime_status in ALIVE or bool(await children_of(client, current, ALIVE_STATUSES))

    return await services.claim(job, run, is_alive)


async def children_of(
    client: DurableOrchestrationClient, run: str, statuses: list[OrchestrationRuntimeStatus] | None
) -> list[DurableOrchestrationStatus]:
    """Sub-orchestrations of a run; at most the first hundred of each query, which is what the client gives."""
    found: list[DurableOrchestrationStatus] = []
    for letter in ("p", "r"):
        found += await client.get_status_by(runtime_status=statuses, instance_id_prefix=f"{run}-{letter}")
    return found


@dataclass(frozen=True)
class Surroundings:
    """What a spec's names stand for at the moment of the start.

    Attributes:
        source_paths: The real paths of the folders among the sources, in the order of ``job.places()``; None for other
            sources.
        target_ids: GUIDs of the target's workspace and lakehouse, if they could be resolved in time.
    """

    source_paths: list[str | None] = field(default_factory=list)
    target_ids: list[str] | None = None


async def check_surroundings(services: Services, job: Job) -> Surroundings:
    """What a spec's text cannot tell: sources, credentials, and that the target is not a file.

    Raises:
        SpecError: naming the field.
    """
    if isinstance(job, MltableJob):
        _check_workspaces(services, job)
        return Surroundings()
    if isinstance(job, SqlJob):
        await _check_sql(services, job)
        return Surroundings()
    source_paths: list[str | None] = []
    for number, (source, _) in enumerate(job.places()):
        try:
            source_paths.append(await _check_source(services, job, source))
        except Configuration as error:
            at = error.subject.removeprefix("source").lstrip(".")
            if not error.subject.startswith(("source", "credential")):
                raise
            at = "credential" if error.subject == "credential" else at
            # Not what may hold a secret: a signature or a password in an address.
            given = getattr(source, at, None) if at in _SHOWN_FIELDS else None
            shown = f" (got {given!r})" if given is not None else ""
            where = f"{job.field_of(number)}.{at}" if at else job.field_of(number)
            raise _spec_error(where, f"{error.detail}{shown}", error.code) from None
    try:
        services.credential_fields(job.target.credential)
    except Configuration as error:
        raise _spec_error("target.credential", error.detail, error.code) from None
    target_ids: list[str] | None = None
    try:
        async with asyncio.timeout(_PREFLIGHT_S):
            workspace_id, lakehouse_id = await services.resolve(job.target)
            target_ids = [workspace_id, lakehouse_id]
            await services.lake_folder(job, workspace_id, lakehouse_id).check(write=False)
    except MigrationError as error:
        # Only what is surely the spec's fault is refused here; the rest stops the run, where everybody can see it.
        if error.code == "target_is_file":
            raise _spec_error("target.path", error.detail, error.code) from None
    except TimeoutError:
        return Surroundings(source_paths, target_ids)
    return Surroundings(source_paths, target_ids)


async def _check_source(
    services: Services, job: FilesJob, source: FolderSource | SharePointSource | BlobSource
) -> str | None:
    """The real path of a folder; for others, that the spec cannot be at fault.

    Raises:
        Configuration: with the field as subject.
    """
    if source.type == "folder":
        return await asyncio.to_thread(services.check_source, source.path)
    if source.type == "blob":
        services.check_account(source.account_url)
    services.credential_fields(source.credential)
    try:
        async with asyncio.timeout(_PREFLIGHT_S):
            if source.type == "sharepoint":
                await services.drive(job, source, None).place()
            else:
                services.blob_account(source)
    except SourceMissing as error:
        raise Configuration(error.detail, code=error.code, subject=error.subject) from None
    except Configuration as error:
        # What else Graph answers, such as a refusal, is for the run to say: it may be granted by then.
        if error.subject.startswith("source."):
            raise
    except (MigrationError, TimeoutError):
        return None
    return None


async def _check_sql(services: Services, job: SqlJob) -> None:
    """That the connection's setting is there and can be read, and that the target is not a file."""
    try:
        services.check_connection(job)
    except Configuration as error:
        raise _spec_error("source.connection", error.detail, error.code) from None
    try:
        services.credential_fields(job.target.credential)
    except Configuration as error:
        raise _spec_error("target.credential", error.detail, error.code) from None
    try:
        async with asyncio.timeout(_PREFLIGHT_S):
            workspace_id, lakehouse_id = await services.resolve(job.target)
            await services.target_folder(job.name, job.target, workspace_id, lakehouse_id).check(write=False)
    except MigrationError as error:
        # What else is wrong stops the run, where everybody can see it.
        if error.code == "target_is_file":
            raise _spec_error("target.path", error.detail, error.code) from None
    except TimeoutError:
        return


def _check_workspaces(services: Services, job: MltableJob) -> None:
    """That both credentials are configured, are no keys, and are of the workspaces' tenants."""
    for side, config, credential in (
        ("source", job.config.source_workspace_config, job.source_credential),
        ("target", job.config.target_workspace_config, job.target_credential),
    ):
        try:
            services.workspace_credential(credential, config.tenant_id)
        except Configuration as error:
            raise _spec_error(f"config.{side}_workspace_config.{error.subject}", error.detail, error.code) from None


def _spec_error(path: str, message: str, code: str) -> SpecError:
    return SpecError(f"{path}: {message}", [{"path": path, "message": message}], code=code)


def index_key(run: str, started_at: str) -> str:
    """Where a run is listed; keys sort by time."""
    moment = started_at.replace("-", "").replace(":", "")
    return f"index/{moment}_{run}.json"
