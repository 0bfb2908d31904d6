"""What every call of every service passes through: latency, faults, counting, journal.

A service only knows its protocol. Here a call is first named (operation and path), then perhaps harmed, then
carried out, counted and recorded, in that order.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any, Protocol

from local.emulators.faults import FaultPlan, FaultRule
from local.emulators.journal import Journal, Stats
from local.emulators.wire import Request, Response

EFFECTS = frozenset({"create", "append", "flush", "append_flush", "rename", "delete", "properties_set"})
_CONDITIONAL = ("if-match", "if-none-match", "if-modified-since", "if-unmodified-since")


@dataclass(slots=True)
class Call:
    """One request, named. ``detail`` belongs to the service that made it."""

    operation: str
    path: str
    detail: Any = None


class Service(Protocol):
    """An emulated service."""

    name: str

    def classify(self, request: Request) -> Call:
        """Names the call; never raises, whatever the client sent."""
        ...

    async def handle(self, request: Request, call: Call) -> Response:
        """Carries the call out and answers."""
        ...

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Returns the answer this service gives for the fault of the rule."""
        ...


def retry_after_header(retry_after_s: float | None) -> dict[str, str]:
    """Returns the Retry-After header in whole seconds, rounded up, or nothing."""
    return {} if retry_after_s is None else {"Retry-After": str(math.ceil(retry_after_s))}


_REFUSALS = frozenset({"throttle", "unavailable", "expired_token", "server_error", "capacity_paused", "resync"})


class Pipeline:
    """Binds services to one fault plan, one set of counters and perhaps a journal."""

    def __init__(self, faults: FaultPlan, stats: Stats, journal: Journal | None, latency_ms: float) -> None:
        self.faults = faults
        self.stats = stats
        self._journal = journal
        self._latency_s = latency_ms / 1000

    async def answer(self, service: Service, request: Request) -> Response:
        """Serves one request of a service."""
        call = service.classify(request)
        operation = "properties" if call.operation == "properties_set" else call.operation
        verdict = self.faults.draw(service.name, operation, call.path)
        if self._latency_s or verdict.delay_s:
            await asyncio.sleep(self._latency_s + verdict.delay_s)
        rule = verdict.rule
        fault = rule.fault if rule is not None else ""
        if fault == "reset_before":
            self.stats.count(service.name, operation, 0)
            return Response(0, resets=True)
        if rule is not None and fault in _REFUSALS:
            response = service.refuse(request, call, rule)
            self.stats.count(service.name, operation, response.status)
            return response
        writes = operation in ("append", "append_flush", "create")
        if fault == "corrupt_body" and writes:
            request.body.damage = True
        response = await service.handle(request, call)
        if self._journal is not None and call.operation in EFFECTS:
            self._record(self._journal, service, request, call, response, fault)
        if fault == "reset_after":
            response.resets = True
            self.stats.count(service.name, operation, 0)
            return response
        if fault == "corrupt_body" and not writes:
            response.corrupted = True
        elif fault == "short_body":
            response.cut_short = True
        self.stats.count(service.name, operation, response.status)
        return response

    @staticmethod
    def _record(
        journal: Journal, service: Service, request: Request, call: Call, response: Response, fault: str
    ) -> None:
        fields: dict[str, Any] = {
            "service": service.name,
            "operation": call.operation,
            "path": call.path,
            "bytes": request.body.length,
            "status": response.status,
        }
        for name in _CONDITIONAL:
            if name in request.headers:
                fields[name.replace("-", "_")] = request.headers[name]
        for name in ("position", "flush", "recursive"):
            if name in request.query:
                fields[name] = request.query[name]
        if "x-ms-rename-source" in request.headers:
            fields["source"] = request.headers["x-ms-rename-source"]
        if "x-ms-copy-source" in request.headers:
            # Its query may be a SAS.
            fields["copy_source"] = request.headers["x-ms-copy-source"].partition("?")[0]
        if response.error_code:
            fields["error_code"] = response.error_code
        if fault:
            fields["fault"] = fault
        journal.record(**fields)
