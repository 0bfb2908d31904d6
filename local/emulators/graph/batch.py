"""``$batch``: up to twenty requests in one, each counted and answered as if it had come alone.

Source: Microsoft's "Combine multiple HTTP requests using JSON batching". Dependencies are either none or one chain, in
the order of the requests; whoever depends on a failure is answered 424.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from local.emulators.graph.errors import GraphError, invalid
from local.emulators.wire import Request, Response, parse_query

if TYPE_CHECKING:
    from local.emulators.graph.service import Graph

_MOST_REQUESTS = 20
_SHARED_HEADERS = ("authorization", "host", "user-agent")
_LIMIT_BYTES = 4 * 1024 * 1024


async def answer(graph: Graph, request: Request) -> Response:
    """Answers a batch; the outer status is 200 whatever happened inside.

    Raises:
        GraphError: the batch itself is not in order.
    """
    if request.method != "POST":
        raise GraphError(405, "notAllowed", "The action is not allowed by the system.")
    if request.body.length > _LIMIT_BYTES:
        raise GraphError(413, "invalidRequest", "The batch is too large.")
    entries = _entries(await request.body.read())
    statuses: dict[str, int] = {}
    responses = []
    for entry in entries:
        needed = [str(one).lower() for one in entry.get("dependsOn", [])]
        if any(statuses.get(one, 424) >= 400 for one in needed):
            response = graph.failed(request, GraphError(424, "failedDependency", "A dependency failed."))
        else:
            response = _one(graph, request, entry)
        statuses[entry["id"].lower()] = response.status
        responses.append(_shown(entry["id"], response))
    # The order of the answers is nobody's to rely on.
    return Response(200, {"Content-Type": "application/json"}, json.dumps({"responses": responses[::-1]}).encode())


def _entries(body: bytes) -> list[dict[str, Any]]:
    try:
        entries = json.loads(body)["requests"]
        ids = [entry["id"].lower() for entry in entries if entry["url"].strip() and entry["method"].strip()]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise invalid("The batch must hold requests with id, method and url.") from None
    if not 0 < len(ids) == len(entries) <= _MOST_REQUESTS:
        raise invalid(f"A batch holds between 1 and {_MOST_REQUESTS} requests.")
    if len(set(ids)) != len(ids):
        raise invalid("The ids in a batch must differ.")
    found: list[dict[str, Any]] = entries
    return found


def _one(graph: Graph, outer: Request, entry: dict[str, Any]) -> Response:
    path, _, query_text = entry["url"].partition("?")
    headers = {str(name).lower(): str(value) for name, value in entry.get("headers", {}).items()}
    headers = {name: outer.headers.get(name, "") for name in _SHARED_HEADERS} | headers
    inner = Request(
        entry["method"].upper(),
        f"/v1.0/{path.lstrip('/')}",
        parse_query(query_text),
        headers,
        outer.body,
        outer.secure,
    )
    try:
        target = graph.target_of(inner)
        if target.kind == "batch":
            raise invalid("A batch cannot hold a batch.")
        return graph.answer(inner, target)
    except GraphError as error:
        return graph.failed(inner, error)


def _shown(entry_id: str, response: Response) -> dict[str, Any]:
    shown: dict[str, Any] = {"id": entry_id, "status": response.status, "headers": response.headers}
    if response.body:
        assert isinstance(response.body, bytes)
        shown["body"] = json.loads(response.body)
    return shown
