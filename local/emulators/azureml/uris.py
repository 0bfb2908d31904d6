"""Datastore URIs in their short and their long form."""

from __future__ import annotations

import re
from dataclasses import dataclass

_SHORT = re.compile(r"azureml://datastores/([^/]+)/paths/(.*)", re.DOTALL)
_LONG = re.compile(
    r"azureml://subscriptions/([^/]+)/resource[gG]roups/([^/]+)/workspaces/([^/]+)/datastores/([^/]+)/paths/(.*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Scope:
    """The workspace that a URI speaks of."""

    subscription_id: str
    resource_group: str
    workspace: str

    def matches(self, other: Scope) -> bool:
        """Resource Manager tells no names apart by their case."""
        return (self.subscription_id.lower(), self.resource_group.lower(), self.workspace.lower()) == (
            other.subscription_id.lower(),
            other.resource_group.lower(),
            other.workspace.lower(),
        )


@dataclass(frozen=True)
class DatastoreUri:
    """A parsed URI; a short one has no scope."""

    scope: Scope | None
    datastore: str
    path: str

    def long(self, home: Scope) -> str:
        """Returns the long form, for a short one that of the workspace that keeps it."""
        scope = self.scope or home
        return (
            f"azureml://subscriptions/{scope.subscription_id}/resourcegroups/{scope.resource_group}"
            f"/workspaces/{scope.workspace}/datastores/{self.datastore}/paths/{self.path}"
        )


def parse(text: str) -> DatastoreUri | None:
    """Returns the parts, or None for a URI of another kind."""
    if found := _SHORT.fullmatch(text):
        return DatastoreUri(None, found[1], found[2])
    if found := _LONG.fullmatch(text):
        return DatastoreUri(Scope(found[1], found[2], found[3]), found[4], found[5])
    return None
