"""Puts the parts together for the server: two services, the tenants' tokens, a part of the switchboard."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from local.emulators.azureml.azurite import Azurite, install
from local.emulators.azureml.errors import Refusal, json_response
from local.emulators.azureml.estate import DEFAULT_AZUREML_ESTATE, AzureMLEstate
from local.emulators.azureml.registry import Conflict, Registry
from local.emulators.azureml.service import AzureML, Behaviour, check_version
from local.emulators.azureml.storage import Storage
from local.emulators.certificates import Certificates
from local.emulators.entra import Directory
from local.emulators.pipeline import Service
from local.emulators.tokens import TokenAuthority
from local.emulators.wire import Request, Response

_BODY_LIMIT_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class AzureMLOptions:
    """What to emulate, and the service's answer where it is not known."""

    estate: AzureMLEstate = DEFAULT_AZUREML_ESTATE
    conflict_status: Literal[400, 409] = 400


class EmulatedAzureML:
    """The control plane and the blobs of one root.

    Args:
        root: ``<root>/azureml`` keeps the assets and the blobs.
        key: signs the tokens of every tenant.

    Raises:
        AzuriteMissing: Azurite cannot be run here; the text says how to enable it.
    """

    def __init__(
        self,
        options: AzureMLOptions,
        root: Path,
        key: bytes,
        certificates: Certificates,
        token_lifetime_s: int,
        page_items: int,
    ) -> None:
        install()
        self._estate = estate = options.estate
        self._authorities = {
            tenant.name: TokenAuthority(key, tenant.tenant_id, token_lifetime_s) for tenant in estate.tenants
        }
        self._registry = Registry(estate, root / "azureml" / "registry")
        self._behaviour = Behaviour(conflict_status=options.conflict_status)
        azurite = Azurite(
            root / "azureml" / "blobs", {account.name: account.key for account in estate.accounts}, certificates
        )
        azurite.await_the_last()
        self._storage = Storage(
            estate, self._authorities, azurite, ssl.create_default_context(cafile=str(certificates.ca))
        )
        control = AzureML(estate, self._authorities, self._registry, self._behaviour, page_items)
        self.services: dict[str, Service] = {"azureml": control, "azureml_blob": self._storage}

    @property
    def directories(self) -> Sequence[tuple[Directory, TokenAuthority]]:
        """The tenants, for the token issuer."""
        return [(tenant, self._authorities[tenant.name]) for tenant in self._estate.tenants]

    async def start(self) -> None:
        """Starts Azurite.

        Raises:
            AzuriteMissing: it did not start.
        """
        await self._storage.start()

    async def stop(self) -> None:
        """Ends Azurite."""
        await self._storage.stop()

    def announcement(self, host: str, ports: Mapping[str, int]) -> dict[str, Any]:
        """Where everything is and who may use it."""
        storage = f"https://{host}:{ports['azureml_blob']}"
        return {
            "url": f"https://{host}:{ports['azureml']}",
            "storage_urls": {account.name: f"{storage}/{account.name}" for account in self._estate.accounts},
            "storage_endpoint": f"localhost:{ports['azureml_blob']}",
            "account_keys": {account.name: account.key for account in self._estate.accounts},
            "public_containers": {
                account.name: account.public_containers
                for account in self._estate.accounts
                if account.public_containers
            },
            "tenants": {
                tenant.name: {
                    "tenant_id": tenant.tenant_id,
                    "clients": {
                        client.name: {
                            "client_id": client.id,
                            "client_secret": client.secret,
                            "roles": client.roles,
                            "storage_roles": client.storage_roles,
                        }
                        for client in tenant.clients
                    },
                }
                for tenant in self._estate.tenants
            },
            "workspaces": {workspace.name: workspace.model_dump() for workspace in self._estate.workspaces},
        }

    async def admin(self, request: Request) -> Response:
        """The switchboard below ``/azureml``: ``settings`` and ``assets``, without authentication."""
        if request.body.length > _BODY_LIMIT_BYTES:
            return json_response(413, {"error": "That is too large."})
        try:
            document = json.loads(await request.body.read() or b"null")
            match request.method, request.path:
                case "PUT", "/azureml/settings":
                    self._behaviour.change(document)
                    return json_response(200, vars(self._behaviour))
                case "PUT", "/azureml/assets":
                    return json_response(200, {"registered": self._register(document)})
                case "DELETE", "/azureml/assets":
                    self._registry.clear(None if document is None else [str(name) for name in document])
                    return Response(204)
        except ValueError as mistake:
            return json_response(400, {"error": str(mistake)})
        return json_response(404, {"error": "Only /azureml/settings and /azureml/assets are here."})

    def _register(self, assets: Any) -> int:
        """Registers versions as the service itself would, whoever may do what.

        Raises:
            ValueError: names the asset that will not do; those before it are registered.
        """
        for asset in assets if isinstance(assets, list) else [assets]:
            if not isinstance(asset, dict) or set(asset) != {"workspace", "name", "version", "properties"}:
                raise ValueError("An asset has workspace, name, version and properties.")
            called = f"{asset['workspace']}/{asset['name']}:{asset['version']}"
            registered = self._registry.workspaces.get(asset["workspace"])
            if registered is None:
                raise ValueError(f"{called}: there is no such workspace.")
            try:
                check_version(registered, asset["name"], asset["version"], asset["properties"])
                self._registry.put_version(registered, asset["name"], asset["version"], asset["properties"], "Emulator")
            except Refusal as refusal:
                raise ValueError(f"{called}: {refusal.message}") from refusal
            except Conflict as conflict:
                raise ValueError(f"{called}: it exists and says something else.") from conflict
        return len(assets) if isinstance(assets, list) else 1
