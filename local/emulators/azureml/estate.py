"""What the emulated Azure ML holds from the start: tenants with their clients, storage accounts, workspaces.

Identifiers of the default estate are constants, so that documentation can show them; the secrets and keys are made
up and open nothing but these emulators. Data assets are no part of it: they are registered (see `seeding`).
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from local.emulators.estate import ConfigurationMistake, Role, first_mistake

SecretsType = Literal["AccountKey", "Sas", "None"]
DatastoreType = Literal["AzureBlob", "AzureDataLakeGen2"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AzureMLClient(_Strict):
    """An application registration of one tenant.

    Attributes:
        roles: what it may do in a workspace, or in every workspace of a resource group, by the name of either; a
            reader gets no secrets.
        storage_roles: what it may do with its token at a storage account (Blob Data Contributor or Reader).
    """

    name: str
    id: str
    secret: str
    roles: dict[str, Role] = Field(default_factory=dict)
    storage_roles: dict[str, Role] = Field(default_factory=dict)

    def role(self, resource_group: str, workspace: str) -> Role | None:
        """Returns what it may do in a workspace, whether there is such a one or not; the higher role counts."""
        found = {self.roles[name] for name in self.roles if name.lower() in (resource_group.lower(), workspace.lower())}
        return "contributor" if "contributor" in found else "reader" if found else None


class Tenant(_Strict):
    """A directory; its tokens are good for its own subscriptions and accounts only."""

    name: str
    tenant_id: str
    clients: list[AzureMLClient]

    def client(self, client_id: str) -> AzureMLClient | None:
        """Returns the client with that id, or None."""
        return next((client for client in self.clients if client.id == client_id), None)


class Account(_Strict):
    """A storage account; ``public_containers`` are made with anonymous read access."""

    name: str
    key: str
    tenant: str
    public_containers: list[str] = Field(default_factory=list)


class Datastore(_Strict):
    """A datastore of a workspace; its container is made on start."""

    name: str
    account: str
    container: str
    credentials: SecretsType = "AccountKey"
    type: DatastoreType = "AzureBlob"
    is_default: bool = False


class MLWorkspace(_Strict):
    """A workspace. Names of workspaces are unique in an estate, so that they can stand for it in its files."""

    name: str
    tenant: str
    subscription_id: str
    resource_group: str
    id: str
    account: str
    location: str = "westeurope"
    datastores: list[Datastore]


class AzureMLEstate(_Strict):
    """Everything."""

    tenants: list[Tenant]
    accounts: list[Account]
    workspaces: list[MLWorkspace]

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Self:
        tenants = {tenant.name for tenant in self.tenants}
        accounts = {account.name: account.tenant for account in self.accounts}
        names = [workspace.name for workspace in self.workspaces]
        scopes = [*names, *(workspace.resource_group for workspace in self.workspaces)]
        if len(set(names)) != len(names):
            raise ValueError("two workspaces have the same name")
        owners = [*accounts.items(), *((workspace.name, workspace.tenant) for workspace in self.workspaces)]
        for name, owner in owners:
            if owner not in tenants:
                raise ValueError(f"{name!r} is in an unknown tenant {owner!r}")
        for workspace in self.workspaces:
            for account in (workspace.account, *(datastore.account for datastore in workspace.datastores)):
                if account not in accounts:
                    raise ValueError(f"workspace {workspace.name!r} uses an unknown account {account!r}")
        for client in (client for tenant in self.tenants for client in tenant.clients):
            for unknown in {*client.roles} - {*scopes} | {*client.storage_roles} - {*accounts}:
                raise ValueError(f"client {client.name!r} has a role on an unknown {unknown!r}")
        return self

    def tenant(self, name: str) -> Tenant:
        """Returns the tenant with that name.

        Raises:
            KeyError: there is none.
        """
        return {tenant.name: tenant for tenant in self.tenants}[name]


def _key(text: str) -> str:
    return base64.b64encode(text.encode().ljust(64, b".")).decode()


def _client(tenant: str, number: int, name: str, role: Role | None) -> AzureMLClient:
    account = f"aml{tenant}store"
    # The contributor has the whole resource group, and so learns of a workspace that it is missing.
    scope = f"rg-{tenant}" if role == "contributor" else f"ws-{tenant}"
    return AzureMLClient(
        name=name,
        id=f"c2000000-0000-4000-8000-{'a' if tenant == 'source' else 'b'}{number:011d}",
        secret=f"emulator-only-{tenant}-{name}",
        roles={} if role is None else {scope: role},
        storage_roles={} if role is None else {account: role},
    )


def _workspace(tenant: str, number: str) -> MLWorkspace:
    account = f"aml{tenant}store"
    workspace_id = f"5b000000-{number * 4}-4000-8000-000000000001"
    container = f"azureml-blobstore-{workspace_id}"
    return MLWorkspace(
        name=f"ws-{tenant}",
        tenant=tenant,
        subscription_id=f"5c000000-{number * 4}-4000-8000-000000000001",
        resource_group=f"rg-{tenant}",
        id=workspace_id,
        account=account,
        datastores=[
            Datastore(name="workspaceblobstore", account=account, container=container, is_default=True),
            Datastore(name="sas_store", account=account, container="by-sas", credentials="Sas"),
            Datastore(name="identity_store", account=account, container="by-identity", credentials="None"),
        ],
    )


DEFAULT_AZUREML_ESTATE = AzureMLEstate(
    tenants=[
        Tenant(
            name=tenant,
            tenant_id=f"7e0a1d00-0000-4000-8000-0000000000{suffix}",
            clients=[
                _client(tenant, 1, "migrator", "contributor"),
                _client(tenant, 2, "reader", "reader"),
                _client(tenant, 3, "outsider", None),
            ],
        )
        for tenant, suffix in (("source", "0a"), ("target", "0b"))
    ],
    accounts=[
        Account(name="amlsourcestore", key=_key("source"), tenant="source", public_containers=["public"]),
        Account(name="amltargetstore", key=_key("target"), tenant="target"),
    ],
    workspaces=[_workspace("source", "a"), _workspace("target", "b")],
)


def load_azureml_estate(path: Path) -> AzureMLEstate:
    """Reads an estate from YAML or JSON.

    Raises:
        ConfigurationMistake: the file cannot be read or does not describe an estate.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationMistake(f"The configuration {path} cannot be read: {error}") from error
    try:
        return AzureMLEstate.model_validate(document)
    except ValidationError as error:
        raise ConfigurationMistake(f"The configuration {path} is wrong at {first_mistake(error)}") from error
