"""Addresses of data in Azure ML and in the storage accounts behind it, read and compared as text.

Forms (docs/protocols/azureml.md, section 4): ``azureml://datastores/<ds>/paths/<p>``, the same behind
``azureml://subscriptions/<s>/resourcegroups/<rg>/workspaces/<ws>/``, ``https://<account>.blob.<suffix>/<container>/<p>``,
``wasbs://<container>@<account>.blob.<suffix>/<p>`` and ``abfss://<filesystem>@<account>.dfs.<suffix>/<p>``.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

_LONG = re.compile(
    r"azureml://subscriptions/(?P<subscription>[^/]+)/resource_?groups/(?P<group>[^/]+)"
    r"(?:/providers/Microsoft\.MachineLearningServices)?/workspaces/(?P<workspace>[^/]+)"
    r"/datastores/(?P<datastore>[^/]+)/paths/(?P<path>.*)",
    re.IGNORECASE | re.DOTALL,
)
_SHORT = re.compile(r"azureml://datastores/(?P<datastore>[^/]+)/paths/(?P<path>.*)", re.IGNORECASE | re.DOTALL)
_HTTPS = re.compile(
    r"https?://(?P<account>[a-z0-9]{3,24})\.(?:blob|dfs)\.[^/?#]+/(?P<container>[^/?#]+)(?:/(?P<path>[^?#]*))?",
    re.IGNORECASE | re.DOTALL,
)
_HADOOP = re.compile(
    r"(?:wasbs?|abfss?)://(?P<container>[^@/]+)@(?P<account>[^./]+)\.(?:blob|dfs)\.[^/]+(?:/(?P<path>.*))?",
    re.IGNORECASE | re.DOTALL,
)
_PASSWORD = re.compile(r"//[^/@]*:[^/@]*@")


@dataclass(frozen=True, slots=True)
class WorkspaceName:
    """A workspace; names of Resource Manager do not tell upper case from lower."""

    subscription_id: str
    resource_group: str
    name: str

    def is_same(self, other: "WorkspaceName") -> bool:
        return (
            self.subscription_id.lower() == other.subscription_id.lower()
            and self.resource_group.lower() == other.resource_group.lower()
            and self.name.lower() == other.name.lower()
        )

    @property
    def arm_id(self) -> str:
        return (
            f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{self.name}"
        )


@dataclass(frozen=True, slots=True)
class DatastorePath:
    """A path below a datastore; ``workspace`` is None in the short form. ``spans`` are positions in the text."""

    workspace: WorkspaceName | None
    datastore: str
    path: str
    spans: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class StoragePath:
    """A path below a container of a storage account. ``spans`` are positions in the text."""

    account: str
    container: str
    path: str
    spans: Mapping[str, tuple[int, int]]


def parse_datastore_path(uri: str) -> DatastorePath | None:
    """The parts of an ``azureml://`` path of a datastore; None for anything else."""
    if match := _LONG.fullmatch(uri):
        workspace = WorkspaceName(match["subscription"], match["group"], match["workspace"])
        spans = {name: match.span(name) for name in ("subscription", "group", "workspace", "datastore", "path")}
        return DatastorePath(workspace, match["datastore"], match["path"], spans)
    if match := _SHORT.fullmatch(uri):
        return DatastorePath(
            None, match["datastore"], match["path"], {name: match.span(name) for name in ("datastore", "path")}
        )
    return None


def parse_storage_path(uri: str, storage_urls: Mapping[str, str]) -> StoragePath | None:
    """The parts of an address of a storage account; None for anything else.

    Args:
        uri: The address.
        storage_urls: Accounts whose blobs are reached at another URL than their usual one (AZUREML_STORAGE_URLS).
    """
    for account, url in storage_urls.items():
        base = url.rstrip("/") + "/"
        if uri.lower().startswith(base.lower()):
            rest = uri[len(base) :].partition("?")[0].partition("#")[0]
            container, _, path = rest.partition("/")
            begin = len(base)
            spans = {"base": (0, begin), "container": (begin, begin + len(container)),
                     "path": (begin + len(container) + 1, begin + len(rest))}  # fmt: skip
            return StoragePath(account, container, path, spans)
    match = _HTTPS.match(uri) or _HADOOP.fullmatch(uri)
    if match is None:
        return None
    end = match.end()
    path_span = match.span("path") if match["path"] is not None else (end, end)
    spans = {"account": match.span("account"), "container": match.span("container"), "path": path_span}
    return StoragePath(match["account"].lower(), match["container"], match["path"] or "", spans)


def long_uri(workspace: WorkspaceName, datastore: str, path: str) -> str:
    """The long form, with a slash at the end, as an MLTable's folder is registered."""
    return (
        f"azureml://subscriptions/{workspace.subscription_id}/resourcegroups/{workspace.resource_group}"
        f"/workspaces/{workspace.name}/datastores/{datastore}/paths/{path.strip('/')}/"
    )


def normal_path(path: str) -> str:
    """Without empty and ``.`` segments and outer slashes."""
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def is_same_uri(one: str, other: str, workspace: WorkspaceName) -> bool:
    """Whether two URIs of one workspace name the same folder, in whatever form."""
    first, second = parse_datastore_path(one), parse_datastore_path(other)
    if first is None or second is None:
        return one.rstrip("/") == other.rstrip("/")
    return (
        first.datastore == second.datastore
        and normal_path(first.path) == normal_path(second.path)
        and (first.workspace or workspace).is_same(second.workspace or workspace)
    )


def is_below(path: str, root: str) -> bool:
    """Whether a normal path is the root or lies below it."""
    return not root or path == root or path.startswith(f"{root}/")


def shown_uri(uri: str) -> str:
    """An address for a report: what follows ``?`` may be a signature, what stands before ``@`` a password."""
    return _PASSWORD.sub("//", uri.partition("?")[0], count=1)
