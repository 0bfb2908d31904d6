"""What is registered in the workspaces: datastores, data containers and their versions.

Everything is in memory and, one file a workspace, on disk before a change is answered, so that emulators started
again on the same root know the same assets. The rules of what may change are here; HTTP is not.
"""

from __future__ import annotations

import copy
import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from local.emulators.azureml.estate import AzureMLEstate, MLWorkspace
from local.emulators.azureml.uris import Scope, parse

Document = dict[str, Any]
ListView = Literal["ActiveOnly", "ArchivedOnly", "All"]


class Conflict(Exception):
    """The version exists and says something else."""


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0Z").replace("Z", "+00:00")


def _by(who: str) -> Document:
    now = _now()
    return {
        "createdAt": now,
        "createdBy": who,
        "createdByType": "Application",
        "lastModifiedAt": now,
        "lastModifiedBy": who,
        "lastModifiedByType": "Application",
    }


def _touched(system: Document, who: str) -> Document:
    return {**system, "lastModifiedAt": _now(), "lastModifiedBy": who, "lastModifiedByType": "Application"}


@dataclass
class Registered:
    """A workspace with what is in it. Versions keep the order in which they were registered."""

    workspace: MLWorkspace
    datastores: dict[str, Document] = field(default_factory=dict)
    data: dict[str, Document] = field(default_factory=dict)

    @property
    def scope(self) -> Scope:
        """How URIs name it."""
        return Scope(self.workspace.subscription_id, self.workspace.resource_group, self.workspace.name)


class Registry:
    """All workspaces.

    Args:
        folder: one JSON file a workspace; what is there is read, and datastores of the estate are added.
    """

    def __init__(self, estate: AzureMLEstate, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.workspaces: dict[str, Registered] = {}
        for workspace in estate.workspaces:
            registered = Registered(workspace)
            path = self._path(workspace.name)
            if path.exists():
                document = json.loads(path.read_text(encoding="utf-8"))
                registered.datastores, registered.data = document["datastores"], document["data"]
            for datastore in workspace.datastores:
                properties = {
                    "datastoreType": datastore.type,
                    "description": "",
                    "tags": {},
                    "properties": {},
                    "isDefault": datastore.is_default,
                    "credentials": {"credentialsType": datastore.credentials},
                    "subscriptionId": workspace.subscription_id,
                    "resourceGroup": workspace.resource_group,
                    "accountName": datastore.account,
                    "endpoint": "core.windows.net",
                    "protocol": "https",
                    "serviceDataAccessAuthIdentity": "None",
                    ("containerName" if datastore.type == "AzureBlob" else "filesystem"): datastore.container,
                }
                registered.datastores.setdefault(
                    datastore.name, {"properties": properties, "systemData": _by("azureml")}
                )
            self.workspaces[workspace.name] = registered

    def _path(self, workspace: str) -> Path:
        return self._folder / f"{quote(workspace, safe='')}.json"

    def _save(self, registered: Registered) -> None:
        path = self._path(registered.workspace.name)
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"datastores": registered.datastores, "data": registered.data}), "utf-8")
        temporary.replace(path)

    def find(self, subscription_id: str, resource_group: str, name: str) -> Registered | None:
        """Returns the workspace, or None."""
        wanted = Scope(subscription_id, resource_group, name)
        return next((found for found in self.workspaces.values() if found.scope.matches(wanted)), None)

    # datastores

    def put_datastore(self, registered: Registered, name: str, properties: Document, who: str) -> tuple[Document, bool]:
        """Adds or replaces one; also returns whether it is new."""
        before = registered.datastores.get(name)
        system = _by(who) if before is None else _touched(before["systemData"], who)
        # Being the default is no property that a PUT takes away.
        is_default = bool(properties.get("isDefault") or (before or {}).get("properties", {}).get("isDefault"))
        if is_default:
            for other in registered.datastores.values():
                other["properties"]["isDefault"] = False
        registered.datastores[name] = {"properties": {**properties, "isDefault": is_default}, "systemData": system}
        self._save(registered)
        return registered.datastores[name], before is None

    def delete_datastore(self, registered: Registered, name: str) -> bool:
        """Forgets one; returns whether it was there."""
        found = registered.datastores.pop(name, None) is not None
        self._save(registered)
        return found

    # data

    def container(self, registered: Registered, name: str) -> Document | None:
        """Returns the container with its latest and next version, or None."""
        found = registered.data.get(name)
        if found is None:
            return None
        versions = list(found["versions"])
        numbers = [int(version) for version in versions if version.isascii() and version.isdigit()]
        properties = {
            **found["properties"],
            "latestVersion": versions[-1] if versions else None,
            "nextVersion": str(max(numbers, default=0) + 1),
        }
        return {"properties": properties, "systemData": found["systemData"]}

    def put_container(self, registered: Registered, name: str, properties: Document, who: str) -> tuple[Document, bool]:
        """Adds an empty container or updates description, tags and isArchived; also returns whether it is new.

        Raises:
            Conflict: it holds data of another type.
        """
        before = registered.data.get(name)
        if before is None:
            self._new_container(registered, name, properties, who)
        else:
            if properties.get("dataType", before["properties"]["dataType"]) != before["properties"]["dataType"]:
                raise Conflict
            changes = {key: properties[key] for key in ("description", "tags", "isArchived") if key in properties}
            before["properties"] = {**before["properties"], **changes}
            before["systemData"] = _touched(before["systemData"], who)
        self._save(registered)
        document = self.container(registered, name)
        assert document is not None
        return document, before is None

    @staticmethod
    def _new_container(registered: Registered, name: str, properties: Document, who: str) -> Document:
        kept: Document = {key: properties[key] for key in ("description", "tags", "dataType") if key in properties}
        registered.data[name] = {"properties": _container_properties(kept), "systemData": _by(who), "versions": {}}
        return registered.data[name]

    def delete_container(self, registered: Registered, name: str) -> bool:
        """Forgets one with its versions; returns whether it was there."""
        found = registered.data.pop(name, None) is not None
        self._save(registered)
        return found

    def version(self, registered: Registered, name: str, version: str) -> Document | None:
        """Returns a version, or None."""
        found = registered.data.get(name, {"versions": {}})["versions"].get(version)
        return copy.deepcopy(found) if found is not None else None

    def put_version(
        self, registered: Registered, name: str, version: str, properties: Document, who: str
    ) -> tuple[Document, bool]:
        """Adds a version, or updates description, tags and isArchived; also returns whether it is new.

        The data URI is kept in its long form. Of an existing version everything else that differs is ignored.

        Raises:
            Conflict: the version has another data URI or type, or the container holds another type.
        """
        uri = parse(properties["dataUri"])
        data_uri = uri.long(registered.scope) if uri else properties["dataUri"]
        container = registered.data.get(name)
        if container is not None and container["properties"]["dataType"] != properties["dataType"]:
            raise Conflict
        if container is None:
            container = self._new_container(registered, name, {"dataType": properties["dataType"]}, who)
        before = container["versions"].get(version)
        if before is not None:
            if not _same_uri(before["properties"]["dataUri"], data_uri):
                raise Conflict
            changes = {key: properties[key] for key in ("description", "tags", "isArchived") if key in properties}
            before["properties"] = {**before["properties"], **changes}
            before["systemData"] = _touched(before["systemData"], who)
        else:
            container["versions"][version] = {
                "properties": {
                    "description": None,
                    "tags": {},
                    "properties": {},
                    "isAnonymous": False,
                    "isArchived": False,
                    **properties,
                    "dataUri": data_uri,
                },
                "systemData": _by(who),
            }
        self._save(registered)
        return copy.deepcopy(container["versions"][version]), before is None

    def delete_version(self, registered: Registered, name: str, version: str) -> bool:
        """Forgets one, and the container with the last of them; returns whether it was there."""
        container = registered.data.get(name)
        if container is None or container["versions"].pop(version, None) is None:
            return False
        if not container["versions"]:
            del registered.data[name]
        self._save(registered)
        return True

    def containers(self, registered: Registered, view: ListView) -> list[tuple[str, Document]]:
        """Returns the containers of the view by name."""
        found = []
        for name in sorted(registered.data):
            document = self.container(registered, name)
            if document is not None and _in_view(document["properties"]["isArchived"], view):
                found.append((name, document))
        return found

    def versions(self, registered: Registered, name: str, view: ListView) -> list[tuple[str, Document]]:
        """Returns the versions of the view, the latest first; those of an archived container are archived."""
        container = registered.data.get(name)
        if container is None:
            return []
        archived = container["properties"]["isArchived"]
        found = [
            (version, copy.deepcopy(document))
            for version, document in container["versions"].items()
            if _in_view(archived or document["properties"]["isArchived"], view)
        ]
        return found[::-1]

    def clear(self, names: Iterable[str] | None = None) -> None:
        """Forgets all data assets of the workspaces, or of all."""
        for name, registered in self.workspaces.items():
            if names is None or name in names:
                registered.data.clear()
                self._save(registered)


def _container_properties(properties: Document) -> Document:
    return {"description": None, "tags": {}, "properties": {}, "isArchived": False, **properties}


def _in_view(archived: bool, view: ListView) -> bool:
    return view == "All" or archived is (view == "ArchivedOnly")


def _same_uri(one: str, other: str) -> bool:
    first, second = parse(one), parse(other)
    if first is None or second is None or first.scope is None or second.scope is None:
        return one == other
    return (first.datastore, first.path) == (second.datastore, second.path) and first.scope.matches(second.scope)
