"""The durable management API over HTTP: the public webhooks, and the local form that the SDK's client calls.

Source: https://learn.microsoft.com/azure/azure-functions/durable/durable-functions-http-api
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from urllib.parse import quote, unquote

from aiohttp import web

from local.host.app_index import IndexedFunction
from local.host.durable.engine import DurableEngine
from local.host.durable.events import EventType, utc_text
from local.host.durable.management import (
    ConflictError,
    GoneError,
    InstanceFilter,
    InvalidRequestError,
    NotFoundError,
)
from local.host.durable.store import Instance, Status

PUBLIC_PATH: Final = "/runtime/webhooks/durabletask/"
_LOCAL_PATH: Final = "/durabletask/"
_TOKEN_HEADER: Final = "x-ms-continuation-token"  # noqa: S105
_DEFAULT_PAGE: Final = 100
_POLL_S: Final = 0.1


class Webhooks:
    """Answers under `PUBLIC_PATH` and the local path of the client binding."""

    def __init__(self, engine: DurableEngine, hub_name: str) -> None:
        self._engine = engine
        self._hub_name = hub_name
        self._origin = ""

    def set_origin(self, origin: str) -> None:
        """Tell under which URL the server listens; before the first request."""
        self._origin = origin

    def bind_clients(self, function: IndexedFunction) -> dict[str, str]:
        """The text that each durable client parameter of a function receives."""
        return {name: self._client_text(hub or self._hub_name) for name, hub in function.client_hubs.items()}

    def _client_text(self, hub: str) -> str:
        base = f"{self._origin}{PUBLIC_PATH}"
        query = f"taskHub={quote(hub)}&connection=Storage"
        create = f"{base}orchestrators/{{functionName}}[/{{instanceId}}]?{query}"
        content = {
            "taskHubName": hub,
            "creationUrls": {
                "createNewInstancePostUri": create,
                "createAndWaitOnNewInstancePostUri": (
                    f"{create}&timeout={{timeoutInSeconds}}&pollingInterval={{intervalInSeconds}}"
                ),
            },
            "managementUrls": self._management_urls(self._origin, "INSTANCEID", hub),
            "baseUrl": base.rstrip("/"),
            "requiredQueryStringParameters": query,
            "rpcBaseUrl": f"{self._origin}{_LOCAL_PATH}",
        }
        return json.dumps(content)

    def _management_urls(self, origin: str, instance_id: str, hub: str) -> dict[str, str]:
        instance = f"{origin}{PUBLIC_PATH}instances/{instance_id}"
        query = f"taskHub={quote(hub)}&connection=Storage"
        reason = "reason={text}&"
        return {
            "id": instance_id,
            "statusQueryGetUri": f"{instance}?{query}",
            "sendEventPostUri": f"{instance}/raiseEvent/{{eventName}}?{query}",
            "terminatePostUri": f"{instance}/terminate?{reason}{query}",
            "rewindPostUri": f"{instance}/rewind?{reason}{query}",
            "purgeHistoryDeleteUri": f"{instance}?{query}",
            "restartPostUri": f"{instance}/restart?{query}",
            "suspendPostUri": f"{instance}/suspend?{reason}{query}",
            "resumePostUri": f"{instance}/resume?{reason}{query}",
        }

    async def __call__(self, request: web.Request) -> web.StreamResponse | None:
        raw_path = request.raw_path.partition("?")[0]
        for base in (PUBLIC_PATH, _LOCAL_PATH):
            if raw_path.lower().startswith(base):
                segments = [unquote(part) for part in raw_path[len(base) :].split("/") if part]
                return await self._answer(request, segments)
        return None

    async def _answer(self, request: web.Request, segments: list[str]) -> web.Response:
        try:
            return await self._route(request, segments)
        except NotFoundError:
            return web.Response(status=404)
        except GoneError:
            return web.Response(status=410)
        except ConflictError as error:
            return _error(409, str(error))
        except InvalidRequestError as error:
            return _error(400, str(error))

    async def _route(self, request: web.Request, segments: list[str]) -> web.Response:
        method = request.method
        collection = segments[0].lower() if segments else ""
        match collection, segments[1:]:
            case "orchestrators", [name, *rest] if method == "POST" and len(rest) <= 1:
                return await self._start(request, name, rest[0] if rest else None)
            case "instances", [] if method == "GET":
                return await self._list(request)
            case "instances", [] if method == "DELETE":
                return await self._purge_by(request)
            case "instances", [instance_id] if method == "GET":
                return await self._status(request, instance_id)
            case "instances", [instance_id] if method == "DELETE":
                count = await self._engine.submit(partial(self._engine.management.purge, instance_id))
                return web.json_response({"instancesDeleted": count})
            case "instances", [instance_id, operation] if method == "POST":
                return await self._operate(request, instance_id, operation.lower())
            case "instances", [instance_id, operation, name] if method == "POST" and operation.lower() == "raiseevent":
                return await self._raise_event(request, instance_id, name)
            case "entities", _:
                return _error(501, "Durable entities are not served by this host.")
        return web.Response(status=404)

    async def _start(self, request: web.Request, name: str, instance_id: str | None) -> web.Response:
        body = await _json_body(request)
        start = partial(self._engine.management.start, name, instance_id, body, request.query.get("version"))
        return await self._started(request, await self._engine.submit(start))

    async def _started(self, request: web.Request, instance_id: str) -> web.Response:
        timeout_s, interval_s = _number(request, "timeout"), _number(request, "pollingInterval")
        if timeout_s is not None and interval_s is not None:
            deadline_s = time.monotonic() + timeout_s
            while True:
                instance = await self._engine.submit(partial(self._engine.management.get, instance_id))
                if instance.status.is_final:
                    return _final_response(instance)
                if time.monotonic() >= deadline_s:
                    break
                await asyncio.sleep(_POLL_S)
        urls = self._management_urls(f"{request.scheme}://{request.host}", instance_id, self._hub_name)
        headers = {"Location": urls["statusQueryGetUri"], "Retry-After": "10"}
        return web.json_response(urls, status=202, headers=headers)

    async def _status(self, request: web.Request, instance_id: str) -> web.Response:
        management = self._engine.management
        with_history = _flag(request, "showHistory")

        def read() -> tuple[Instance, list[dict[str, Any]] | None]:
            return management.get(instance_id), management.history(instance_id) if with_history else None

        instance, history = await self._engine.submit(read)
        shows_input = _flag(request, "showInput", default=True)
        payload = _payload(instance, shows_input=shows_input)
        if history is not None:
            payload["historyEvents"] = _public_history(
                history, shows_output=_flag(request, "showHistoryOutput"), shows_input=shows_input
            )
        if not instance.status.is_final:
            location = f"{request.scheme}://{request.host}{request.raw_path}"
            return web.json_response(payload, status=202, headers={"Location": location, "Retry-After": "5"})
        is_error = instance.status is Status.FAILED and _flag(request, "returnInternalServerErrorOnFailure")
        return web.json_response(payload, status=500 if is_error else 200)

    async def _list(self, request: web.Request) -> web.Response:
        top = _number(request, "top")
        limit = int(top) if top is not None and top >= 1 else _DEFAULT_PAGE
        after = _read_token(request.headers.get(_TOKEN_HEADER))
        # One more than asked for tells whether there is another page.
        find = partial(self._engine.management.find, _filter(request), after=after, limit=limit + 1)
        found = await self._engine.submit(find)
        page = found[:limit]
        shows_input = _flag(request, "showInput", default=True)
        token = _write_token(page[-1]) if len(found) > limit else ""
        return web.json_response(
            [_payload(instance, shows_input=shows_input) for instance in page], headers={_TOKEN_HEADER: token}
        )

    async def _purge_by(self, request: web.Request) -> web.Response:
        wanted = _filter(request)
        if wanted.created_from is None:
            return web.json_response("Please provide value for 'createdTimeFrom' parameter.", status=400)
        count = await self._engine.submit(partial(self._engine.management.purge_by, wanted))
        return web.json_response({"instancesDeleted": count}) if count else web.Response(status=404)

    async def _operate(self, request: web.Request, instance_id: str, operation: str) -> web.Response:
        management = self._engine.management
        if operation == "restart":
            with_new_id = _flag(request, "restartWithNewInstanceId", default=True)
            restart = partial(management.restart, instance_id, with_new_id=with_new_id)
            return await self._started(request, await self._engine.submit(restart))
        operations: Mapping[str, Callable[[str, str], None]] = {
            "terminate": management.terminate,
            "suspend": management.suspend,
            "resume": management.resume,
            "rewind": management.rewind,
        }
        if operation not in operations:
            return web.Response(status=404)
        await self._engine.submit(partial(operations[operation], instance_id, request.query.get("reason", "")))
        return web.Response(status=202)

    async def _raise_event(self, request: web.Request, instance_id: str, name: str) -> web.Response:
        instance = await self._engine.submit(partial(self._engine.management.get, instance_id))
        if instance.status.is_final:
            raise GoneError(instance_id)
        if request.content_type != "application/json":
            return _error(400, "Only application/json request content is supported")
        body = await _json_body(request)
        await self._engine.submit(partial(self._engine.management.raise_event, instance_id, name, body or "null"))
        return web.Response(status=202)


def _payload(instance: Instance, *, shows_input: bool) -> dict[str, Any]:
    return {
        "name": instance.name,
        "instanceId": instance.instance_id,
        "runtimeStatus": instance.status.value,
        "input": json.loads(instance.input or "null") if shows_input else None,
        "customStatus": json.loads(instance.custom_status or "null"),
        "output": json.loads(instance.output or "null"),
        "createdTime": f"{instance.created_at[:19]}Z",
        "lastUpdatedTime": f"{instance.updated_at[:19]}Z",
    }


def _final_response(instance: Instance) -> web.Response:
    if instance.status is Status.COMPLETED:
        return web.Response(text=instance.output or "null", content_type="application/json")
    payload = _payload(instance, shows_input=True)
    return web.json_response(payload, status=500 if instance.status is Status.FAILED else 200)


def _public_history(events: list[dict[str, Any]], *, shows_output: bool, shows_input: bool) -> list[dict[str, Any]]:
    """The history as the management API shows it: a task's end carries its name and when it was scheduled."""
    scheduled: dict[int, dict[str, Any]] = {}
    shown: list[dict[str, Any]] = []
    for event in events:
        kind = EventType(event["EventType"])
        if kind in (EventType.TASK_SCHEDULED, EventType.SUB_ORCHESTRATION_CREATED, EventType.TIMER_CREATED):
            scheduled[event["EventId"]] = event
            continue
        if kind in (EventType.ORCHESTRATOR_STARTED, EventType.ORCHESTRATOR_COMPLETED):
            continue
        item: dict[str, Any] = {"EventType": _EVENT_NAMES[kind], "Timestamp": event["Timestamp"]}
        begin = scheduled.get(event.get("TaskScheduledId", event.get("TimerId", -1)))
        if begin is not None:
            item["ScheduledTime"] = begin["Timestamp"]
            if kind is not EventType.TIMER_FIRED:
                item["FunctionName"] = begin["Name"]
        if kind is EventType.EXECUTION_STARTED:
            item["FunctionName"] = event["Name"]
        for field in ("Name", "FireAt", "OrchestrationStatus", "Reason", "Details"):
            if field in event and not (field == "Name" and kind is EventType.EXECUTION_STARTED):
                item[field] = event[field]
        if shows_output and event.get("Result") is not None:
            item["Result"] = json.loads(event["Result"])
        if event.get("Input") is not None and (shows_output or (shows_input and kind is EventType.EXECUTION_STARTED)):
            item["Input"] = json.loads(event["Input"])
        shown.append(item)
    return shown


_EVENT_NAMES: Final = {
    EventType.EXECUTION_STARTED: "ExecutionStarted",
    EventType.EXECUTION_COMPLETED: "ExecutionCompleted",
    EventType.EXECUTION_TERMINATED: "ExecutionTerminated",
    EventType.TASK_COMPLETED: "TaskCompleted",
    EventType.TASK_FAILED: "TaskFailed",
    EventType.SUB_ORCHESTRATION_COMPLETED: "SubOrchestrationInstanceCompleted",
    EventType.SUB_ORCHESTRATION_FAILED: "SubOrchestrationInstanceFailed",
    EventType.TIMER_FIRED: "TimerFired",
    EventType.EVENT_RAISED: "EventRaised",
    EventType.EXECUTION_SUSPENDED: "ExecutionSuspended",
    EventType.EXECUTION_RESUMED: "ExecutionResumed",
}


async def _json_body(request: web.Request) -> str | None:
    """The body as JSON text, None when there is none.

    Raises:
        InvalidRequestError: It is not JSON.
    """
    body = await request.read()
    if not body:
        return None
    try:
        text = body.decode("utf-8-sig")
        json.loads(text)
    except ValueError as error:
        raise InvalidRequestError(f"Invalid JSON content: {error}") from error
    return None if text.strip() == "null" else text


def _error(status: int, message: str) -> web.Response:
    # Two spellings, because the SDK's client reads the second and people read the first.
    return web.json_response({"Message": message, "ExceptionMessage": message}, status=status)


def _filter(request: web.Request) -> InstanceFilter:
    names = ",".join(request.query.getall("runtimeStatus", [])).split(",")
    known = {status.value.lower(): status.value for status in Status}
    return InstanceFilter(
        statuses=[known.get(name.strip().lower(), name.strip()) for name in names if name.strip()],
        created_from=_moment(request, "createdTimeFrom"),
        created_to=_moment(request, "createdTimeTo"),
        id_prefix=request.query.get("instanceIdPrefix"),
    )


def _moment(request: web.Request, name: str) -> str | None:
    try:
        moment = datetime.fromisoformat(request.query[name])
    except (KeyError, ValueError):
        return None
    return utc_text(moment if moment.tzinfo else moment.replace(tzinfo=UTC))


def _flag(request: web.Request, name: str, *, default: bool = False) -> bool:
    text = request.query.get(name, "").lower()
    return text == "true" if text in {"true", "false"} else default


def _number(request: web.Request, name: str) -> float | None:
    try:
        return float(request.query[name])
    except (KeyError, ValueError):
        return None


def _write_token(last: Instance) -> str:
    return base64.urlsafe_b64encode(json.dumps([last.created_at, last.instance_id]).encode()).decode()


def _read_token(token: str | None) -> tuple[str, str] | None:
    if not token:
        return None
    try:
        created_at, instance_id = json.loads(base64.urlsafe_b64decode(token.encode()))
    except (ValueError, binascii.Error) as error:
        raise InvalidRequestError(f"The {_TOKEN_HEADER} header is not a token that this API gave out.") from error
    return str(created_at), str(instance_id)
