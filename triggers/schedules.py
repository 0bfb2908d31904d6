"""``/api/schedules``: job specs with a NCRONTAB schedule, and the timer that starts those that are due."""

import json
import logging
import re
from datetime import datetime
from typing import Any

import azure.functions as func
from azure.durable_functions import DurableOrchestrationClient

from shared.errors import JobBusy, MigrationError
from shared.model.job import SpecError, parse_job
from shared.policy.due import is_due
from shared.policy.ncrontab import parse as parse_ncrontab
from shared.services import Services
from triggers.answers import Refused, answer
from triggers.migrations import read_document, started
from triggers.starting import check_surroundings, start_job

_NAME = re.compile(r"[a-z0-9-]{1,40}")
_log = logging.getLogger("migration.schedules")


async def list_all(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``GET /schedules``."""
    documents = [await _load(services, key) for key in await services.store.list("schedules")]
    return answer({"value": [_shown(services, document) for document in documents if document]})


async def put(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``PUT /schedules/{name}``: 201 if new, 200 if replaced. Counts from now on."""
    name = _name(req)
    job = parse_job(read_document(req))
    if job.name != name:
        message = f"must be the schedule's name {name!r} (got {job.name!r})"
        raise SpecError(f"name: {message}", [{"path": "name", "message": message}])
    if job.schedule is None:
        message = "missing; write a six-field NCRONTAB expression such as '0 0 2 * * *'"
        raise SpecError(f"schedule: {message}", [{"path": "schedule", "message": message}])
    await check_surroundings(services, job)
    before = await _load(services, _key(name))
    document = {
        "name": name, "schedule": job.schedule, "spec": job.model_dump(mode="json", exclude={"schedule"}),
        "considered_at": services.clock().isoformat(), "last_run": before["last_run"] if before else None,
        "last_result": before["last_result"] if before else None,
    }  # fmt: skip
    await services.store.put(_key(name), json.dumps(document).encode())
    return answer(_shown(services, document), 200 if before else 201)


async def delete(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``DELETE /schedules/{name}``: runs that are alive go on."""
    name = _name(req)
    await _known(services, name)
    await services.store.delete([_key(name)])
    return func.HttpResponse(status_code=204)


async def run_now(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``POST /schedules/{name}/run``: start now, whatever the schedule says."""
    document = await _known(services, _name(req))
    job = parse_job(document["spec"])
    run = await start_job(services, client, job)
    stored = await _load(services, _key(job.name))
    if stored is not None:
        changed = {**stored, "last_run": run, "last_result": "started"}
        await services.store.put(_key(job.name), json.dumps(changed).encode())
    return started(client, req, run, job.kind, job.name)


async def start_due(services: Services, client: DurableOrchestrationClient) -> None:
    """Start every schedule that has come due since it was last considered; one job's fault does not hold up others.

    A job whose run is still alive is passed over until its next occurrence.
    """
    for key in await services.store.list("schedules"):
        document = await _load(services, key)
        if document is None:
            continue
        now = services.clock()
        if not is_due(document["schedule"], datetime.fromisoformat(document["considered_at"]), now):
            continue
        run, result = document["last_run"], "started"
        try:
            run = await start_job(services, client, parse_job(document["spec"]))
        except JobBusy as busy:
            result = f"passed over: {busy.run} is still alive"
        except SpecError as error:
            result = f"refused: {error.message}"
        except MigrationError as error:
            result = f"failed: {error.code}: {error.detail}"
        if result != "started":
            _log.warning("schedule %s: %s", document["name"], result)
        # Written after the start: a kill between the two starts the job again, which finds its run alive or skips.
        # Onto what is stored by now: a start takes its time, and the schedule may have been replaced or deleted.
        latest = await _load(services, key)
        if latest is not None:
            considered_at = max(now, datetime.fromisoformat(latest["considered_at"])).isoformat()
            changed = {**latest, "considered_at": considered_at, "last_run": run, "last_result": result}
            await services.store.put(key, json.dumps(changed).encode())


def _key(name: str) -> str:
    return f"schedules/{name}.json"


def _name(req: func.HttpRequest) -> str:
    name: str = req.route_params.get("name", "")
    if not _NAME.fullmatch(name):
        raise Refused(404, "not_found", "there is no such schedule; names are [a-z0-9-]{1,40}")
    return name


async def _load(services: Services, key: str) -> dict[str, Any] | None:
    data = await services.store.get(key)
    return json.loads(data) if data is not None else None


async def _known(services: Services, name: str) -> dict[str, Any]:
    document = await _load(services, _key(name))
    if document is None:
        raise Refused(404, "not_found", "there is no such schedule")
    return document


def _shown(services: Services, document: dict[str, Any]) -> dict[str, Any]:
    following = parse_ncrontab(document["schedule"]).next_after(services.clock())
    return {**document, "next_at": following.isoformat()}
