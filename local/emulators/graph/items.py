"""Sites, drives and items as JSON, property by property, so that a selection costs what it shows.

Shapes: Microsoft's "driveItem", "drive" and "site" resource pages; docs/protocols/graph.md section 3 has what differs
in SharePoint. ``restricted`` is on none of them: it is what a caller saw of a file that a policy keeps to its owner
(microsoft-graph-docs-contrib issue 442).
"""

from __future__ import annotations

import base64
import functools
import mimetypes
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from local.emulators.estate import Site as SiteSpecification
from local.emulators.graph.errors import GraphError
from local.emulators.graph.library import FILE, FOLDER, MARKS, NOTEBOOK, SECTION, SHORTCUT, Library, braced

_OTHER_DRIVE = "b!emulated-drive-elsewhere"
_PERSON = {"user": {"displayName": "Megan Bowen", "email": "meganb@contoso.com", "id": str(uuid.UUID(int=0x48D31887))}}
_DOWNLOAD_URL = "@microsoft.graph.downloadUrl"
_CONTENT_TYPES = {".one": "application/msonenote", ".csv": "text/csv", ".txt": "text/plain", ".xml": "text/xml"}


def timestamp(seconds: float) -> str:
    """Returns a time as Graph writes it, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


class Site:
    """A site and its ids, which follow from its address."""

    def __init__(self, specification: SiteSpecification) -> None:
        self.address = specification.address
        self.hostname, self.path = specification.hostname, specification.path
        self.collection_id = uuid.uuid5(uuid.NAMESPACE_URL, f"collection {self.address}")
        self.web_id = uuid.uuid5(uuid.NAMESPACE_URL, f"web {self.address}")
        self.id = f"{self.hostname},{self.collection_id},{self.web_id}"
        self.name = self.path.rpartition("/")[2] or "root"
        self.url = f"https://{self.hostname}/{quote(self.path)}".rstrip("/")

    def document(self) -> dict[str, Any]:
        """Returns the site as Graph shows it."""
        return {
            "createdDateTime": "2024-01-01T08:00:00Z",
            "description": "",
            "id": self.id,
            "lastModifiedDateTime": "2024-01-01T08:00:00Z",
            "name": self.name,
            "webUrl": self.url,
            "displayName": self.name.capitalize(),
            **({} if self.path else {"root": {}}),
            "siteCollection": {"hostname": self.hostname},
        }


@dataclass(frozen=True, slots=True)
class Drive:
    """A library in its site."""

    number: int
    site: Site
    library: Library
    id: str
    url: str

    def document(self) -> dict[str, Any]:
        """Returns the drive as Graph shows it."""
        library = self.library
        used = library.sizes[0]
        document: dict[str, Any] = {
            "createdDateTime": timestamp(library.created_s),
            "description": "",
            "id": self.id,
            "lastModifiedDateTime": timestamp(library.log_times[-1]),
            "name": library.name,
            "webUrl": self.url,
            "driveType": "documentLibrary",
            "createdBy": _PERSON,
            "owner": _PERSON,
            "quota": {
                "deleted": 0,
                "remaining": 27487790694400 - used,
                "state": "normal",
                "total": 27487790694400,
                "used": used,
            },
        }
        if library.system:
            document["system"] = {}
        return document


def make_drive(number: int, site: Site, library: Library) -> Drive:
    """Returns the drive of a library; its id holds those of the site collection, the web and the list, as the real."""
    raw = site.collection_id.bytes_le + site.web_id.bytes_le + library.list_id.bytes_le
    return Drive(
        number,
        site,
        library,
        "b!" + base64.urlsafe_b64encode(raw).decode(),
        f"{site.url}/{quote(library.name)}",
    )


@dataclass(frozen=True, slots=True)
class View:
    """How items are shown to one request.

    Attributes:
        in_feed: by the rules of the change feed.
        download_url: makes a pre-authenticated URL for an item.
    """

    drive: Drive
    tenant_id: str
    in_feed: bool
    download_url: Callable[[int], str]


_Property = Callable[[View, Library, int], Any]


def _parent(view: View, library: Library, slot: int) -> dict[str, Any]:
    drive = view.drive
    found: dict[str, Any] = {"driveType": "documentLibrary", "driveId": drive.id}
    if slot:
        parent = library.parents[slot]
        found["id"] = library.item_id(parent)
        if not view.in_feed:
            found["name"] = library.names[parent] if parent else library.name
            found["path"] = f"/drives/{drive.id}/root:" + (f"/{quote(library.path(parent))}" if parent else "")
    found["siteId"] = drive.site.id
    return found


@functools.lru_cache(maxsize=1024)
def _type_by_extension(extension: str) -> str:
    guessed = mimetypes.guess_type(f"x{extension}")[0]
    return _CONTENT_TYPES.get(extension) or guessed or "application/octet-stream"


def content_type(library: Library, slot: int) -> str:
    """Returns the MIME type, which goes by the extension."""
    _, dot, extension = library.names[slot].rpartition(".")
    return _type_by_extension(f".{extension.lower()}" if dot else "")


def _file(view: View, library: Library, slot: int) -> dict[str, Any] | None:
    if library.kinds[slot] not in (FILE, SECTION):
        return None
    if library.gone[slot]:
        return {}
    shown: dict[str, Any] = {"mimeType": content_type(library, slot)}
    if not library.marks[slot] & MARKS["hash_pending"]:
        shown["hashes"] = {"quickXorHash": library.listed_content(slot).quick_xor_hash()}
    return shown


def _folder(view: View, library: Library, slot: int) -> dict[str, Any] | None:
    if library.kinds[slot] != FOLDER:
        return None
    return {} if library.gone[slot] else {"childCount": len(library.children(slot))}


def _marked(mark: str, facet: dict[str, Any]) -> _Property:
    return lambda view, library, slot: facet if library.marks[slot] & MARKS[mark] else None


def _name(view: View, library: Library, slot: int) -> str | None:
    return None if library.gone[slot] else library.names[slot]


def _size(view: View, library: Library, slot: int) -> int:
    return 0 if library.gone[slot] else library.sizes[slot]


def etag(library: Library, slot: int) -> str:
    """Returns the tag of metadata and content."""
    return braced(library.unique_id(slot), library.versions[slot])


def ctag(library: Library, slot: int) -> str:
    """Returns the tag of the content."""
    return f'"c:{braced(library.unique_id(slot), library.contents[slot])[1:]}'


def _ctag(view: View, library: Library, slot: int) -> str | None:
    return None if view.in_feed or library.kinds[slot] == FOLDER else ctag(library, slot)


def _unless_gone(value: Callable[[Library, int], Any]) -> _Property:
    return lambda view, library, slot: None if library.gone[slot] else value(library, slot)


def _web_url(view: View, library: Library, slot: int) -> str | None:
    if library.gone[slot]:
        return None
    return f"{view.drive.url}/{quote(library.path(slot))}".rstrip("/")


def _publication(view: View, library: Library, slot: int) -> dict[str, Any] | None:
    if library.kinds[slot] != FILE:
        return None
    version = f"{library.contents[slot]}.0"
    if library.marks[slot] & MARKS["checked_out"]:
        return {"level": "checkout", "versionId": version, "checkedOutBy": _PERSON}
    return {"level": "published", "versionId": version}


def _sharepoint_ids(view: View, library: Library, slot: int) -> dict[str, str]:
    site = view.drive.site
    return {
        "listId": str(library.list_id),
        "listItemId": str(slot),
        "listItemUniqueId": library.unique_id(slot),
        "siteId": str(site.collection_id),
        "siteUrl": site.url,
        "tenantId": view.tenant_id,
        "webId": str(site.web_id),
    }


def _remote_item(view: View, library: Library, slot: int) -> dict[str, Any] | None:
    if library.kinds[slot] != SHORTCUT:
        return None
    return {
        "id": library.item_id(slot)[::-1],
        "name": library.names[slot],
        "size": 0,
        "folder": {"childCount": 0},
        "webUrl": f"https://{view.drive.site.hostname}/sites/elsewhere/Shared%20Documents",
        "parentReference": {"driveType": "documentLibrary", "driveId": _OTHER_DRIVE},
    }


def _download_url(view: View, library: Library, slot: int) -> str | None:
    refused = MARKS["malware"] | MARKS["dlp_blocked"]
    if library.kinds[slot] != FILE or library.gone[slot] or library.marks[slot] & refused:
        return None
    return view.download_url(slot)


_BY_DEFAULT: dict[str, _Property] = {
    "createdDateTime": _unless_gone(lambda library, slot: timestamp(library.created[slot])),
    "eTag": lambda view, library, slot: etag(library, slot),
    "id": lambda view, library, slot: library.item_id(slot),
    "lastModifiedDateTime": _unless_gone(lambda library, slot: timestamp(library.modified[slot])),
    "name": _name,
    "webUrl": _web_url,
    "cTag": _ctag,
    "size": _size,
    "createdBy": _unless_gone(lambda library, slot: _PERSON),
    "lastModifiedBy": _unless_gone(lambda library, slot: _PERSON),
    "parentReference": _parent,
    "fileSystemInfo": _unless_gone(
        lambda library, slot: {
            "createdDateTime": timestamp(library.created[slot]),
            "lastModifiedDateTime": timestamp(library.modified[slot]),
        }
    ),
    "root": lambda view, library, slot: None if slot else {},
    "folder": _folder,
    "file": _file,
    "package": lambda view, library, slot: {"type": "oneNote"} if library.kinds[slot] == NOTEBOOK else None,
    "remoteItem": _remote_item,
    "deleted": lambda view, library, slot: {"state": "deleted"} if library.gone[slot] else None,
    "malware": _marked("malware", {"description": "Virus:DOS/EICAR_Test_File"}),
    "restricted": _marked("dlp_blocked", {"decision": "Restricted", "restrictionType": "OwnerOnly"}),
}
_WHEN_SELECTED: dict[str, _Property] = {
    "publication": _publication,
    "sharepointIds": _sharepoint_ids,
    _DOWNLOAD_URL: _download_url,
}
# Known to Graph, and empty for everything in these libraries.
_ABSENT = frozenset({"audio", "bundle", "description", "image", "location", "photo", "searchResult", "shared", "video"})
_SPELLINGS = {"content.downloadUrl": _DOWNLOAD_URL}


def parse_select(text: str | None) -> tuple[str, ...] | None:
    """Returns the properties of a ``$select``; None stands for those shown by default.

    Raises:
        GraphError: one of them is none of a driveItem.
    """
    if not text:
        return None
    found: dict[str, None] = {}
    for given in text.split(","):
        name = given.strip()
        name = _SPELLINGS.get(name, name).partition("/")[0]
        if name == "*":
            found.update(dict.fromkeys(_BY_DEFAULT))
        elif name in _BY_DEFAULT or name in _WHEN_SELECTED or name in _ABSENT:
            found[name] = None
        else:
            raise GraphError(
                400,
                "BadRequest",
                f"Parsing OData Select and Expand failed: Could not find a property named '{name}' on type "
                "'microsoft.graph.driveItem'.",
            )
    return tuple(found)


def item_document(view: View, slot: int, select: tuple[str, ...] | None) -> dict[str, Any]:
    """Returns one item as this request asked to see it."""
    library = view.drive.library
    if select is None:
        properties = _BY_DEFAULT if view.in_feed else {**_BY_DEFAULT, _DOWNLOAD_URL: _download_url}
    else:
        properties = {name: _BY_DEFAULT.get(name) or _WHEN_SELECTED[name] for name in select if name not in _ABSENT}
    document = {}
    for name, value_of in properties.items():
        value = value_of(view, library, slot)
        if value is not None:
            document[name] = value
    return document
