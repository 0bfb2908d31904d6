"""The switchboard for tests and benchmarks: faults and counters, on loopback, without authentication.

``PUT /faults`` puts a plan in force (JSON list of rules), ``GET /faults`` tells how often each rule has fired,
``GET /stats`` and ``DELETE /stats`` read and reset the counters. What lies below the name of a part, such as
``/azureml/...``, that part answers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from local.emulators.estate import ConfigurationMistake
from local.emulators.faults import parse_rules
from local.emulators.journal import merged
from local.emulators.pipeline import Pipeline
from local.emulators.wire import Handler, Request, Response

AskWorkers = Callable[[str], list[dict[str, Any]]]
_PLAN_LIMIT_BYTES = 1024 * 1024


class Admin:
    """Answers the switchboard.

    Args:
        ask_workers: puts a question (``stats`` or ``reset``) to every other process of the emulators.
        parts: who answers below a first path segment.
    """

    def __init__(self, pipeline: Pipeline, ask_workers: AskWorkers, parts: Mapping[str, Handler] | None = None) -> None:
        self._parts = parts or {}
        self._pipeline = pipeline
        self._ask_workers = ask_workers

    async def handle(self, request: Request) -> Response:
        """Answers one request."""
        if (part := self._parts.get(request.path.split("/")[1])) is not None:
            return await part(request)
        match request.method, request.path:
            case "GET", "/stats":
                return _json(200, merged([self._pipeline.stats.document(), *self._ask_workers("stats")]))
            case "DELETE", "/stats":
                self._pipeline.stats.reset()
                self._ask_workers("reset")
                return Response(204)
            case "GET", "/faults":
                return _json(200, {"hits": self._pipeline.faults.hits()})
            case "PUT", "/faults":
                return await self._replace(request)
            case _:
                return _json(404, {"error": "Only /faults and /stats are here."})

    async def _replace(self, request: Request) -> Response:
        if request.body.length > _PLAN_LIMIT_BYTES:
            return _json(413, {"error": "The fault plan is too large."})
        try:
            rules = parse_rules(json.loads(await request.body.read() or b"[]"))
        except ValueError as error:
            return _json(400, {"error": f"The fault plan is not JSON: {error}"})
        except ConfigurationMistake as mistake:
            return _json(400, {"error": str(mistake)})
        if rules and self._ask_workers("stats"):
            return _json(409, {"error": "A fault plan counts in one process; start without --processes."})
        self._pipeline.faults.replace(rules)
        return _json(200, {"rules": len(rules)})


def _json(status: int, document: dict[str, Any]) -> Response:
    return Response(status, {"Content-Type": "application/json"}, json.dumps(document).encode())
