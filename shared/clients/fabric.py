"""Names of workspaces and lakehouses to GUIDs, through the Fabric REST API."""

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

from shared.clients.credentials import TokenSource
from shared.clients.http import Transport, retry_after_s
from shared.errors import (
    Authentication,
    Configuration,
    DestinationMissing,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    Throttled,
)


class Fabric:
    """The few control-plane calls that a migration needs.

    Source: Fabric REST API, "Workspaces - List Workspaces" and "Items - List Lakehouses".
    """

    def __init__(self, url: str, tokens: TokenSource, ca_bundle: str | None) -> None:
        self._url = url.rstrip("/")
        self._transport = Transport(tokens, _classify, ca_bundle=ca_bundle)

    async def workspace_id(self, name: str) -> str:
        """The GUID of the one workspace of this display name that the identity sees.

        Raises:
            DestinationMissing, Configuration (ambiguous), Authentication.
        """
        return await self._one("/v1/workspaces", name, "target.workspace", "workspace")

    async def lakehouse_id(self, workspace_id: str, name: str) -> str:
        """The GUID of a lakehouse by its display name."""
        path = f"/v1/workspaces/{quote(workspace_id)}/lakehouses"
        return await self._one(path, name, "target.lakehouse", "lakehouse")

    async def close(self) -> None:
        await self._transport.close()

    async def _one(self, path: str, name: str, field: str, noun: str) -> str:
        found = [one["id"] async for one in self._list(path, field) if one.get("displayName") == name]
        if not found:
            raise DestinationMissing(
                f"the identity sees no {noun} named {name!r}; check {field}, or give it a role there", subject=field
            )
        if len(found) > 1:
            raise Configuration(f"{len(found)} of them are named {name!r}; give the {noun}'s GUID", subject=field)
        return str(found[0])

    async def _list(self, path: str, field: str) -> AsyncIterator[dict[str, Any]]:
        url: str | None = self._url + path
        while url:
            answer = await self._transport.send("GET", url, subject=field)
            try:
                page = json.loads(answer.body)
                items = page["value"]
            except (ValueError, KeyError, TypeError):
                raise Configuration(
                    "an answer that the Fabric REST API does not give; check FABRIC_API_URL, which is "
                    "https://api.fabric.microsoft.com for the public cloud",
                    code="wrong_endpoint",
                    subject="FABRIC_API_URL",
                ) from None
            for item in items:
                yield item
            token = page.get("continuationToken")
            url = f"{self._url}{path}?continuationToken={quote(token, safe='')}" if token else None


def _classify(status: int, headers: Mapping[str, str], body: bytes, subject: str) -> MigrationError:
    try:
        code = str(json.loads(body).get("errorCode", ""))[:80]
    except (ValueError, AttributeError):
        code = ""
    said = f"{status} {code}".rstrip()
    if status == 429:
        return Throttled(f"Fabric asks to slow down ({said})", subject=subject, retry_after_s=retry_after_s(headers))
    if status in (408, 500, 502, 503, 504):
        return ServiceUnavailable(f"Fabric answers {said}", subject=subject, retry_after_s=retry_after_s(headers))
    if status == 401:
        expired = "expired" in code.lower() or b"expired" in body[:2048].lower()
        return Authentication(
            f"Fabric rejects the token ({said}); names are resolved with https://api.fabric.microsoft.com/.default, "
            "so check FABRIC_SCOPE and the credential, or give GUIDs in place of names",
            code="token_expired" if expired else "token_rejected",
            subject=subject,
        )
    if status == 403:
        return Authentication(
            f"the identity may not look up names ({said}); give it a role on the workspace, or give GUIDs",
            code="permission_denied",
            subject=subject,
        )
    if status == 404 and code:
        return NotFound(f"not there ({said})", subject=subject)
    return Configuration(
        f"an answer that the Fabric REST API does not give ({said}); check FABRIC_API_URL",
        code="wrong_endpoint",
        subject="FABRIC_API_URL",
    )
