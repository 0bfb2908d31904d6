"""The Fabric REST calls that turn workspace and lakehouse names into GUIDs.

Shapes: Microsoft's Fabric REST reference, "List Workspaces", "List Items", "List Lakehouses", "Pagination" and
"Error response". Its audience is its own: a Storage token is refused here as a Fabric token is at OneLake.
"""

from __future__ import annotations

import base64
import binascii
import json
import uuid
from typing import Any
from urllib.parse import quote, unquote

from local.emulators.estate import Estate, Item, Workspace
from local.emulators.faults import FaultRule
from local.emulators.pipeline import Call, retry_after_header
from local.emulators.tokens import FABRIC_AUDIENCE, TokenAuthority, TokenRefused
from local.emulators.wire import Request, Response


class _Refusal(Exception):
    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


class Fabric:
    """Lists what the caller may see.

    Args:
        page_items: entries of one page; the reference names no figure, so it is an argument for tests of paging.
    """

    name = "fabric"

    def __init__(self, estate: Estate, tokens: TokenAuthority, page_items: int = 100) -> None:
        self._estate = estate
        self._tokens = tokens
        self._page_items = page_items

    def classify(self, request: Request) -> Call:
        """Every call here lists."""
        return Call("list", request.path)

    async def handle(self, request: Request, call: Call) -> Response:
        """Answers the three listings; other paths are 404, other methods 405."""
        try:
            return self._answer(request)
        except _Refusal as refusal:
            return _error(refusal.status, refusal.code, refusal.message)

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Answers as Fabric does under a fault."""
        match rule.fault:
            case "throttle":
                response = _error(
                    429, "RequestBlocked", "Request is blocked by the upstream service until its limit is renewed."
                )
            case "unavailable":
                response = _error(503, "ServiceUnavailable", "The service is temporarily unavailable.")
            case "expired_token":
                response = _expired()
            case "capacity_paused":
                response = _error(403, "CapacityNotActive", "The capacity of the workspace is not active.")
            case _:
                response = _error(500, "InternalServerError", "An unexpected error occurred.")
        response.headers.update(retry_after_header(rule.retry_after_s))
        return response

    def _answer(self, request: Request) -> Response:
        client_id = self._client_id(request)
        if client_id is None:
            return _expired()
        parts = [unquote(part) for part in request.path.strip("/").split("/")]
        if parts[:2] != ["v1", "workspaces"] or len(parts) > 4:
            raise _Refusal(404, "EntityNotFound", "The requested resource could not be found.")
        if request.method != "GET":
            raise _Refusal(405, "MethodNotAllowed", "The method is not allowed for this resource.")
        client = self._estate.client(client_id)
        roles = client.roles if client is not None else {}
        visible = [workspace for workspace in self._estate.workspaces if workspace.name in roles]
        if len(parts) == 2:
            return self._page(request, [_workspace(workspace) for workspace in visible], {"roles"})
        workspace = next((found for found in self._estate.workspaces if found.id == parts[2].lower()), None)
        if workspace is None:
            raise _Refusal(404, "WorkspaceNotFound", "The requested workspace could not be found.")
        if workspace not in visible:
            raise _Refusal(
                403,
                "InsufficientPrivileges",
                "The caller does not have sufficient permissions to perform this operation",
            )
        if len(parts) == 3:
            return _json(200, _workspace(workspace))
        if parts[3] == "items":
            wanted = request.query.get("type")
            items = [item for item in workspace.items if wanted in (None, item.type)]
            return self._page(request, [_item(workspace, item) for item in items], {"type"})
        if parts[3] == "lakehouses":
            lakehouses = [item for item in workspace.items if item.type == "Lakehouse"]
            return self._page(request, [_item(workspace, item) for item in lakehouses], set())
        raise _Refusal(404, "EntityNotFound", "The requested resource could not be found.")

    def _client_id(self, request: Request) -> str | None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise _Refusal(401, "InvalidToken", "The caller is not authenticated to access this resource")
        try:
            return self._tokens.check(token.strip(), FABRIC_AUDIENCE).client_id
        except TokenRefused as refused:
            if "expired" in str(refused):
                return None
            raise _Refusal(401, "InvalidToken", f"The access token is not valid. {refused}") from refused

    def _page(self, request: Request, entries: list[dict[str, Any]], filters: set[str]) -> Response:
        unknown = set(request.query) - filters - {"continuationToken"}
        if unknown:
            raise _Refusal(400, "InvalidParameter", f"The query parameter '{sorted(unknown)[0]}' is not supported.")
        start = _position(request.query.get("continuationToken"), len(entries))
        document: dict[str, Any] = {"value": entries[start : start + self._page_items]}
        if start + self._page_items < len(entries):
            token = base64.urlsafe_b64encode(f"from:{start + self._page_items}".encode()).decode()
            query = "&".join(
                f"{name}={quote(value, safe='')}"
                for name, value in {**request.query, "continuationToken": token}.items()
            )
            document["continuationToken"] = token
            document["continuationUri"] = f"https://{request.headers.get('host', '')}{request.path}?{query}"
        return _json(200, document)


def _position(token: str | None, count: int) -> int:
    if token is None:
        return 0
    try:
        text = base64.urlsafe_b64decode(token).decode()
        position = int(text.removeprefix("from:"))
    except (binascii.Error, ValueError):
        position = -1
    if not 0 <= position <= count:
        raise _Refusal(400, "InvalidParameter", "The continuation token is not valid.")
    return position


def _workspace(workspace: Workspace) -> dict[str, Any]:
    return {
        "id": workspace.id,
        "displayName": workspace.name,
        "description": "",
        "type": "Workspace",
        "capacityId": str(uuid.uuid5(uuid.NAMESPACE_URL, workspace.id)),
    }


def _item(workspace: Workspace, item: Item) -> dict[str, Any]:
    return {
        "id": item.id,
        "type": item.type,
        "displayName": item.name,
        "description": "",
        "workspaceId": workspace.id,
    }


def _json(status: int, document: dict[str, Any]) -> Response:
    headers = {"Content-Type": "application/json; charset=utf-8", "requestId": str(uuid.uuid4())}
    return Response(status, headers, json.dumps(document).encode())


def _error(status: int, code: str, message: str) -> Response:
    request_id = str(uuid.uuid4())
    response = _json(status, {"errorCode": code, "message": message, "requestId": request_id})
    response.headers |= {"requestId": request_id, "x-ms-public-api-error-code": code}
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer error="invalid_token"'
    response.error_code = code
    return response


def _expired() -> Response:
    return _error(401, "TokenExpired", "Access token has expired, resubmit with a new access token")
