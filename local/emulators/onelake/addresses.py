"""From the path of a URL to a place in the lake, or to the refusal the service would give.

Both forms, `/<workspace name>/<item>.<type>/...` and `/<workspace GUID>/<item GUID>/...`, never mixed
(docs/protocols/onelake.md section 2). The path is decoded once, whole: an encoded slash separates as a plain one does.

Names. 1 to 1,024 UTF-16 units for item and path together, fewer than 60 segments; a segment must not be empty,
`.` or `..`, end with a dot, or hold U+0000 to U+001F, U+007F or U+E000. The page lists these as invalid with
status 400; the code chosen is InvalidResourceName.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from local.emulators.estate import FOLDERS_BY_TYPE, WRITABLE_BY_TYPE, Estate, Item, Workspace
from local.emulators.onelake.errors import ServiceError

_GUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_INVALID = re.compile("[\x00-\x1f\x7f\ue000]")
_MIXED = "Request Failed with WorkspaceId and ArtifactId should be either valid Guids or valid Names"
MAX_PATH_UNITS = 1024
MAX_SEGMENTS = 59


@dataclass(frozen=True, slots=True)
class Address:
    """A place below a workspace.

    Attributes:
        item: None for the workspace itself.
        segments: below the item, decoded.
        item_label: the item as the caller wrote it; listings answer in the same form.
    """

    workspace: Workspace
    item: Item | None
    item_label: str
    segments: tuple[str, ...]

    @property
    def canonical(self) -> str:
        """The path by names, whichever form the caller used."""
        if self.item is None:
            return self.workspace.name
        return "/".join((self.workspace.name, self.item.full_name, *self.segments))

    @property
    def is_managed(self) -> bool:
        """Whether this is an item or one of its first-level folders, which belong to the service."""
        return len(self.segments) <= 1

    def require_writable(self, verb: str) -> None:
        """Refuses paths that no client may write.

        Raises:
            ServiceError: OperationNotAllowedOnThePath, worded as recorded.
        """
        if self.item is None:
            raise ServiceError("BadRequest", "Either WorkspaceId or ArtifactId are missing in the request")
        if self.is_managed or self.segments[0] not in WRITABLE_BY_TYPE[self.item.type]:
            folder = self.segments[0] if self.segments else self.item_label
            raise ServiceError("OperationNotAllowedOnThePath", f"{verb} call is not allowed on {folder} path")


def decode_path(encoded: str) -> list[str]:
    """Splits a percent-encoded path into decoded segments; one trailing slash is dropped.

    Raises:
        ServiceError: InvalidUri for bytes that are not UTF-8, InvalidResourceName or PathIsTooDeep for names the
            service does not take.
    """
    try:
        path = encoded.encode("latin-1").decode("utf-8") if not encoded.isascii() else encoded
        if "%" in path:
            path = unquote(path, errors="strict")
    except UnicodeDecodeError:
        raise ServiceError("InvalidUri") from None
    path = path.removeprefix("/").removesuffix("/")
    return path.split("/") if path else []


def _check_names(segments: list[str]) -> None:
    path = "/".join(segments)
    units = len(path) if path.isascii() else len(path.encode("utf-16-le", "surrogatepass")) // 2
    if units > MAX_PATH_UNITS or _INVALID.search(path):
        raise ServiceError("InvalidResourceName")
    for segment in segments:
        if not segment or segment[-1] == ".":
            raise ServiceError("InvalidResourceName")
    if len(segments) > MAX_SEGMENTS:
        raise ServiceError("PathIsTooDeep")


class AddressBook:
    """Resolves addresses against the estate."""

    def __init__(self, estate: Estate) -> None:
        self._by_name = {workspace.name: workspace for workspace in estate.workspaces}
        self._by_id = {workspace.id.lower(): workspace for workspace in estate.workspaces}

    def resolve(self, encoded_path: str) -> Address:
        """Resolves the path of a URL.

        Raises:
            ServiceError: the refusal that belongs to the path.
        """
        return self.resolve_segments(decode_path(encoded_path))

    def resolve_segments(self, segments: list[str]) -> Address:
        """As `resolve`, for a path that is decoded already."""
        if not segments:
            raise ServiceError("BadRequest", "Either WorkspaceId or ArtifactId are missing in the request")
        _check_names(segments[1:])
        label = segments[0]
        by_guid = _GUID.fullmatch(label) is not None
        item_label = segments[1] if len(segments) > 1 else ""
        if item_label and (_GUID.fullmatch(item_label) is not None) is not by_guid:
            raise ServiceError("FriendlyNameSupportDisabled", _MIXED)
        workspace = self._by_id.get(label.lower()) if by_guid else self._by_name.get(label)
        if workspace is None:
            raise ServiceError("WorkspaceNotFound", f"Workspace '{label}' is not found.")
        if not item_label:
            return Address(workspace, None, "", ())
        item = self._item(workspace, item_label, by_guid=by_guid)
        if item is None:
            message = f"Artifact '{item_label}' is not found in workspace '{label}'."
            raise ServiceError("ArtifactNotFound", message)
        return Address(workspace, item, item_label, tuple(segments[2:]))

    @staticmethod
    def _item(workspace: Workspace, label: str, *, by_guid: bool) -> Item | None:
        if by_guid:
            return next((item for item in workspace.items if item.id.lower() == label.lower()), None)
        name, dot, kind = label.rpartition(".")
        if not dot or kind.lower() not in {known.lower() for known in FOLDERS_BY_TYPE}:
            raise ServiceError("FriendlyNameSupportDisabled", _MIXED)
        return next((item for item in workspace.items if item.name == name and item.type.lower() == kind.lower()), None)
