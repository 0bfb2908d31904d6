"""``/api/migrations``: start, follow, control, read and delete runs."""

import asyncio
import json
import re
from typing import Any

import azure.functions as func
from azure.durable_functions import DurableOrchestrationClient, OrchestrationRuntimeStatus

from shared import names
from shared.model.job import KINDS, MAX_SPEC_BYTES, SpecError, parse_job
from shared.model.records import shown
from shared.services import Services
from triggers.answers import Refused, answer, choice, page_size
from triggers.starting import ALIVE_STATUSES, children_of, index_key, start_job, start_round
from triggers.status import FINISHED, STATUSES, RowsUnderWay, links, status_document

_RUN = re.compile(r"[a-z]{1,10}-[a-z0-9-]{1,40}-[0-9]{8}T[0-9]{6}Z(-[0-9]{1,6})?")
_FORMATS = {"json": "application/json", "csv": "text/csv; charset=utf-8", "md": "text/markdown; charset=utf-8",
            "summary": "application/json",
            "html": "text/html; charset=utf-8", "signoff": "text/html; charset=utf-8"}  # fmt: skip
_POLL_S = 10
_ITEM_STATUSES = ("uploaded", "skipped", "renamed", "failed", "deleted", "planned", "success", "missing")
# One answer reads at most so many pages of records, whatever it finds on them.
_PAGES_READ = 10


async def start(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``POST /migrations``: 202 with the run's id and links."""
    job = parse_job(read_document(req))
    if job.schedule is not None:
        message = "belongs to PUT /schedules/{name}; leave it away to start now"
        raise SpecError(f"schedule: {message}", [{"path": "schedule", "message": message}])
    run = await start_job(services, client, job)
    return started(client, req, run, job.kind, job.name)


def started(
    client: DurableOrchestrationClient, req: func.HttpRequest, run: str, kind: str, name: str
) -> func.HttpResponse:
    """The 202 of a run that was started."""
    to = links(run, api_url(req))
    durable = client.get_client_response_links(req, run)
    headers = {"Location": to["self"], "Retry-After": str(_POLL_S)}
    return answer({**durable, "id": run, "kind": kind, "name": name, "links": to}, 202, headers)


async def list_runs(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``GET /migrations``: newest first."""
    top = page_size(req, 50, 500)
    kind, status = choice(req, "kind", KINDS), choice(req, "status", STATUSES)
    name, after = req.params.get("name"), req.params.get("continuation")
    found: list[dict[str, Any]] = []
    continuation, last = None, ""
    # Without what follows the names, which would put a second run of the same second before the first.
    for entry in sorted((_entry(key) for key in await services.store.list("index")), reverse=True):
        if after and entry >= after:
            continue
        run = entry.partition("_")[2]
        if kind and not run.startswith(f"{kind}-"):
            continue
        if name and not run.partition("-")[2].startswith(f"{name}-"):
            continue
        document = await status_document(client, run, api_url(req))
        if document is None or (status and document["status"] != status) or (name and document["name"] != name):
            continue
        if len(found) == top:
            continuation = last
            break
        found.append(document)
        last = entry
    return answer({"value": found, "continuation": continuation})


def _entry(key: str) -> str:
    return key.removeprefix("index/").removesuffix(".json")


async def get(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``GET /migrations/{id}``: the status document."""
    document = await known(client, req, services.rows_under_way)
    running = document["status"] not in FINISHED
    return answer(document, headers={"Retry-After": str(_POLL_S)} if running else None)


async def control(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``POST /migrations/{id}/pause|resume|cancel|retry-failed``."""
    document = await known(client, req)
    run, action, status = document["id"], req.route_params["action"], document["status"]
    if action == "pause":
        _only_if(status not in FINISHED and status != "paused", action, status)
        await _pause(client, run)
    elif action == "resume":
        _only_if(status == "paused", action, status)
        await _resume(client, run)
    elif action == "cancel":
        _only_if(status not in FINISHED, action, status)
        # The marker first: batches see it, whatever happens to the event.
        await services.store.put(services.records(run).key("cancel"), b"{}")
        await client.raise_event(run, names.CANCEL_EVENT, {})
        if status == "paused":
            await _resume(client, run)
    elif action == "retry-failed":
        await _retry_failed(services, client, document)
    else:
        raise Refused(404, "not_found", "there is no such action; one of pause, resume, cancel, retry-failed")
    shown = await status_document(client, run, api_url(req)) or document
    return answer(shown, 202, {"Location": document["links"]["self"], "Retry-After": str(_POLL_S)})


async def _retry_failed(services: Services, client: DurableOrchestrationClient, document: dict[str, Any]) -> None:
    status = document["status"]
    if status != "completed_with_failures":
        raise Refused(
            409, "wrong_state",
            f"retry-failed is for runs that completed with failures, and this one is {status}; to go on with a run "
            "that stopped, start its job again: what is done is skipped",
        )  # fmt: skip
    if later := await services.followed_by(document["name"], document["id"]):
        # What this run recorded is no longer what the lake holds, and its ledger would roll back the later one's.
        raise Refused(
            409, "superseded",
            f"the job has run again since ({later}); start the job instead: what failed here is planned anew",
        )  # fmt: skip
    progress = document["progress"]
    kept = ("planned", "bytes_planned", "uploaded", "skipped", "renamed", "failed", "deleted", "bytes_done",
            "rows_planned", "rows_done")  # fmt: skip
    base = {name: progress[name] for name in kept if name in progress}
    try:
        await start_round(services, client, document["id"], document["name"], document["round"], base)  # type: ignore[arg-type]
    except LookupError:
        raise Refused(404, "not_found", "the run store holds nothing of this run") from None


async def purge(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``DELETE /migrations/{id}``: history and run store of a finished run; the job's ledger stays."""
    document = await known(client, req)
    _only_if(document["status"] in FINISHED, "delete", document["status"])
    run = document["id"]
    records = services.records(run)
    stored = await records.load("run.json") or {}
    has_ledger = stored.get("kind") == "files" and not stored["spec"]["dry_run"]
    if has_ledger and await records.load("folded") is None:
        raise Refused(
            409,
            "not_remembered",
            "this run ended before the ledger took in what it moved; start the job once more first",
        )
    if await children_of(client, run, ALIVE_STATUSES):
        raise Refused(409, "wrong_state", "parts of the run are still at work; try again when they have ended")
    while ended := await children_of(client, run, None):
        for child in ended:
            await client.purge_instance_history(child.instance_id)
    await services.store.delete(await services.store.list(f"runs/{run}"))
    services.forget_run(run)
    await services.withdraw_claims(document["name"], run)
    # The index and the instance last: until they are gone, a purge that was cut short can be asked for again.
    await services.store.delete([index_key(run, document["started_at"])])
    await client.purge_instance_history(run)
    return answer({"id": run, "purged": True})


async def manifest(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``GET /migrations/{id}/manifest?format=json|csv|md|html|summary``; the last is JSON without the items."""
    wanted = choice(req, "format", tuple(_FORMATS)) or "json"
    document = await known(client, req)
    name = "summary.json" if wanted == "summary" else f"manifest.{wanted}"
    data = await services.store.get(services.records(document["id"]).key(name))
    if data is None:
        raise Refused(
            409,
            "not_finished",
            f"there is no manifest: it is written when a run ends by itself; this one is {document['status']}",
        )
    headers = {"X-Content-Type-Options": "nosniff",
               "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}  # fmt: skip
    return func.HttpResponse(data, mimetype=_FORMATS[wanted].partition(";")[0], charset="utf-8", headers=headers)


async def items(services: Services, client: DurableOrchestrationClient, req: func.HttpRequest) -> func.HttpResponse:
    """``GET /migrations/{id}/items``: records of items as they stand now, a page at a time.

    An answer can hold fewer items than ``top``, or none, and still have a continuation.
    """
    top = page_size(req, 100, 1000)
    status = choice(req, "status", _ITEM_STATUSES)
    page_after, skip = _position(req.params.get("continuation"))
    document = await known(client, req)
    found: list[Any] = []
    read = 0
    current = page_after
    async for page, records in services.records(document["id"]).final_pages(page_after):
        if read == _PAGES_READ:
            return answer({"value": found, "continuation": f"{current}.0" if current else None})
        for number, record in enumerate(records):
            if number < skip or (status and record["status"] != status):
                continue
            if len(found) == top:
                return answer({"value": found, "continuation": f"{current or ''}.{number}"})
            found.append(shown(record))
        skip = 0
        read += 1
        current = page
    return answer({"value": found, "continuation": None})


def _position(continuation: str | None) -> tuple[str | None, int]:
    if not continuation:
        return None, 0
    match = re.fullmatch(r"(p[0-9]{5})?\.([0-9]{1,6})", continuation)
    if not match:
        raise Refused(400, "invalid_parameter", "continuation: give back what the answer before gave",
                      [{"path": "continuation", "message": "not one of ours"}])  # fmt: skip
    return match[1], int(match[2])


# -- parts -------------------------------------------------------------------------------------------------------


def read_document(req: func.HttpRequest) -> Any:
    """The JSON body of a request; SpecError where it is none."""
    kind = (req.headers.get("Content-Type") or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        message = f"send the job spec as application/json (got {kind[:60]!r})"
        raise SpecError(f"Content-Type: {message}", [{"path": "Content-Type", "message": message}])
    body = req.get_body()
    if len(body) > MAX_SPEC_BYTES:
        message = f"{len(body):,} bytes; a job spec has at most {MAX_SPEC_BYTES:,}"
        raise SpecError(f"the body is too large: {message}", [{"path": "body", "message": message}])
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        where = f" at line {error.lineno}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        message = f"not valid JSON{where}"
        raise SpecError(f"the body is {message}", [{"path": "body", "message": message}]) from None


async def known(
    client: DurableOrchestrationClient, req: func.HttpRequest, rows_under_way: RowsUnderWay | None = None
) -> dict[str, Any]:
    """The status document of the run that the route names; 404 if there is none."""
    run = req.route_params.get("id", "")
    found = status_document(client, run, api_url(req), rows_under_way) if _RUN.fullmatch(run) else None
    document = await found if found is not None else None
    if document is None:
        raise Refused(404, "not_found", "there is no such run")
    return document


def api_url(req: func.HttpRequest) -> str:
    """This API's own address, as the caller reached it."""
    return str(req.url).partition("?")[0].partition("/api/")[0] + "/api"


def _only_if(allowed: bool, action: str, status: str) -> None:
    if not allowed:
        raise Refused(409, "wrong_state", f"cannot {action} a run that is {status}")


async def _pause(client: DurableOrchestrationClient, run: str) -> None:
    """Suspend the parent first, so that it starts nothing more, then what it has started."""
    await client.suspend(run, "paused by request")
    for _ in range(100):
        status = await client.get_status(run)
        if status is None or status.runtime_status is None or status.runtime_status.name != "Running":
            break
        await asyncio.sleep(0.1)
    for child in await children_of(client, run, ALIVE_STATUSES):
        await client.suspend(child.instance_id, "paused by request")


async def _resume(client: DurableOrchestrationClient, run: str) -> None:
    for child in await children_of(client, run, [OrchestrationRuntimeStatus.Suspended]):
        await client.resume(child.instance_id, "resumed by request")
    await client.resume(run, "resumed by request")
