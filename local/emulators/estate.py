"""What the emulated tenant holds from the start: workspaces, items, clients and their roles.

Workspaces and items are known in advance because OneLake makes neither: they come from Fabric. The identifiers of
the default estate are constants, so that documentation can show them; the secrets are made up and open nothing
but these emulators.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

Role = Literal["contributor", "reader"]

FOLDERS_BY_TYPE: dict[str, tuple[str, ...]] = {"Lakehouse": ("Files", "Tables"), "Warehouse": ("Files", "Tables")}
"""First-level folders of an item; the service owns them."""

WRITABLE_BY_TYPE: dict[str, tuple[str, ...]] = {"Lakehouse": ("Files", "Tables"), "Warehouse": ()}
"""Where a client may write: a PUT under Warehouse/Files is refused (recorded, docs/protocols/onelake.md section 2)."""


class ConfigurationMistake(Exception):
    """A file the user wrote cannot be used; the message is one sentence for that user."""


def first_mistake(error: ValidationError) -> str:
    """Returns the first validation error as `where: what`."""
    details = error.errors()[0]
    return f"{'.'.join(str(part) for part in details['loc']) or 'document'}: {details['msg']}"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Item(_Strict):
    """A lakehouse or warehouse."""

    name: str
    id: str
    type: Literal["Lakehouse", "Warehouse"]

    @property
    def full_name(self) -> str:
        """The item as a path segment by name, e.g. ``Landing.Lakehouse``."""
        return f"{self.name}.{self.type}"


class Workspace(_Strict):
    """A workspace; on a paused capacity every OneLake call is refused."""

    name: str
    id: str
    capacity: Literal["active", "paused"] = "active"
    items: list[Item] = Field(default_factory=list)

    @field_validator("name")
    @classmethod
    def _is_a_folder_name(cls, name: str) -> str:
        if not name or name in (".", "..") or "/" in name or "\0" in name:
            raise ValueError("a workspace name must be usable as a folder name")
        return name


class Client(_Strict):
    """An application registration. ``roles`` maps workspace names to what it may do there."""

    name: str
    id: str
    secret: str
    roles: dict[str, Role] = Field(default_factory=dict)


class Estate(_Strict):
    """The whole tenant."""

    tenant_id: str
    workspaces: list[Workspace]
    clients: list[Client]

    def client(self, client_id: str) -> Client | None:
        """Returns the client with that id, or None."""
        return next((client for client in self.clients if client.id == client_id), None)


_EVERYWHERE = ("Migration", "Second Workspace", "Paused")

DEFAULT_ESTATE = Estate(
    tenant_id="7e0a1d00-0000-4000-8000-000000000001",
    workspaces=[
        Workspace(
            name="Migration",
            id="a1b2c3d4-0001-4000-8000-00000000000a",
            items=[
                Item(name="Landing", id="a1b2c3d4-0001-4000-8000-000000000001", type="Lakehouse"),
                Item(name="Archive", id="a1b2c3d4-0001-4000-8000-000000000002", type="Lakehouse"),
                Item(name="Finance", id="a1b2c3d4-0001-4000-8000-000000000003", type="Warehouse"),
            ],
        ),
        Workspace(
            name="Second Workspace",
            id="a1b2c3d4-0002-4000-8000-00000000000a",
            items=[Item(name="Landing", id="a1b2c3d4-0002-4000-8000-000000000001", type="Lakehouse")],
        ),
        Workspace(
            name="Paused",
            id="a1b2c3d4-0003-4000-8000-00000000000a",
            capacity="paused",
            items=[Item(name="Landing", id="a1b2c3d4-0003-4000-8000-000000000001", type="Lakehouse")],
        ),
    ],
    clients=[
        Client(
            name="migrator",
            id="c1000000-0000-4000-8000-000000000001",
            secret="emulator-only-migrator",  # noqa: S106 - opens nothing but the emulators
            roles=dict.fromkeys(_EVERYWHERE, "contributor"),
        ),
        Client(
            name="reader",
            id="c1000000-0000-4000-8000-000000000002",
            secret="emulator-only-reader",  # noqa: S106
            roles=dict.fromkeys(_EVERYWHERE, "reader"),
        ),
        Client(
            name="outsider",
            id="c1000000-0000-4000-8000-000000000003",
            secret="emulator-only-outsider",  # noqa: S106
        ),
    ],
)


def load_estate(path: Path) -> Estate:
    """Reads an estate from YAML or JSON.

    Raises:
        ConfigurationMistake: the file cannot be read or does not describe an estate.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationMistake(f"The configuration {path} cannot be read: {error}") from error
    try:
        estate = Estate.model_validate(document)
    except ValidationError as error:
        raise ConfigurationMistake(f"The configuration {path} is wrong at {first_mistake(error)}") from error
    known = {workspace.name for workspace in estate.workspaces}
    for client in estate.clients:
        for workspace in client.roles:
            if workspace not in known:
                raise ConfigurationMistake(
                    f"The configuration {path} gives {client.name!r} a role on an unknown workspace {workspace!r}"
                )
    return estate
