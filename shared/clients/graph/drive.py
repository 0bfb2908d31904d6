"""A SharePoint document library, or a folder of it, through Microsoft Graph."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

from shared.clients.graph.classify import FeedExpired, not_granted
from shared.clients.graph.download import Announced, Download
from shared.clients.graph.service import Graph
from shared.errors import (
    AccessDenied,
    Configuration,
    ItemError,
    NotFound,
    ServiceUnavailable,
    SourceMissing,
)
from shared.policy.paths import printable
from shared.ports import DriveItem, DrivePage

if TYPE_CHECKING:
    from shared.ports import SourceLoad

# What an item is made of here; the rest would only be sent to be thrown away.
_SELECT = (
    "id,name,size,eTag,cTag,file,folder,package,remoteItem,root,deleted,malware,parentReference,"
    "createdDateTime,createdBy,lastModifiedDateTime,lastModifiedBy,webUrl,publication"
)
# The service gives fewer where it does not like so many.
_PAGE_ITEMS = 1000
# Resource units (SharePoint, "Avoid getting throttled or blocked").
_ONE_ITEM = 1
_LISTING = 2

_HOST = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+(:\d{1,5})?")
_FORMS_PAGE = re.compile(r"/Forms/[^/]+\.aspx$", re.IGNORECASE)
# How long it is taken for granted that the library itself can be read, before an item's refusal is doubted again.
_TRUST_S = 30.0
# So that a ref stays below the kilobyte it may have; both are far shorter.
_MAX_ID = 256
_MAX_TAG = 128


class DrivePlace(NamedTuple):
    """What site, library and folder of a job turned out to be. ``folder_id`` is None for the whole library."""

    drive_id: str
    folder_id: str | None


class Drive:
    """Implements ``ports.DriveFeed``.

    Args:
        graph: Shared by all drives behind one credential.
        site: ``contoso.sharepoint.com:/sites/finance``, the same without the colon, or the site's address.
        library: Its name, whatever the case, or its address.
        folder: A folder below the library; empty for all of it.
        accept_rewrites: What to do with a document that SharePoint gives with other bytes than it announces, since it
            writes properties into it: take it and note both, or fail it (``sharepoint_rewrote``).
        place: What ``resolve`` answered before, to be spared the question.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        site: str,
        library: str,
        folder: str = "",
        accept_rewrites: bool,
        place: DrivePlace | None = None,
    ) -> None:
        self._graph = graph
        self._site = site
        self._library = library
        self._folder = folder.strip("/")
        self._accept_rewrites = accept_rewrites
        self._place = place
        self._resolving = asyncio.Lock()
        self._trusted_until_s = 0.0

    # -- what it is ------------------------------------------------------------------------------------------------

    async def resolve(self) -> DrivePlace:
        """The ids of library and folder; asked for once.

        Raises:
            SourceMissing: ``site_not_found``, ``library_not_found`` or ``folder_not_found``.
            Authentication: with what to grant.
            Configuration: a field that cannot be read, or that is ambiguous.
        """
        async with self._resolving:
            if self._place is None:
                site_id = await self._find_site()
                drive_id = await self._find_library(site_id)
                self._place = DrivePlace(drive_id, await self._find_folder(drive_id) if self._folder else None)
        return self._place

    async def check(self) -> None:
        """Resolve, and ask for the changes since this moment, as every run will.

        Raises:
            RunError: that says what to change.
        """
        url = f"{await self._drive_url()}/root/delta?token=latest&$select=id"
        await self._of_source(url, units=_ONE_ITEM)

    async def identity(self) -> str:
        """Ids of drive and folder: others once a library or folder is made anew under its old name."""
        place = await self.resolve()
        return f"{place.drive_id}/{place.folder_id or 'root'}"

    async def start_id(self) -> str | None:
        """The id of the job's folder; None where the whole library is meant."""
        return (await self.resolve()).folder_id

    async def place(self) -> list[str | None]:
        """What names of the job were resolved to, for JSON."""
        return list(await self.resolve())

    def load(self) -> "SourceLoad":
        """What all drives of this process behind the credential spent in the last minute, and may spend."""
        units, ceiling = self._graph.units.share()
        return {"units": units, "ceiling": ceiling}

    async def _find_site(self) -> str:
        host, path = split_site(self._site)
        url = f"{self._graph.url}/v1.0/sites/{host}" + (f":{quote(path)}" if path else "")
        try:
            found = await self._graph.get_json(url, units=_ONE_ITEM, subject="source.site")
        except AccessDenied:
            raise not_granted("source.site") from None
        except NotFound:
            raise SourceMissing(
                f"there is no site at {host}{path}, or the identity does not see it; check source.site, which is what "
                "stands before the library in its address",
                code="site_not_found",
                subject="source.site",
            ) from None
        except ItemError as error:
            raise Configuration(f"Graph does not take the site: {error.detail}", subject="source.site") from None
        return _id_of(found, "source.site")

    async def _find_library(self, site_id: str) -> str:
        url: str | None = f"{self._graph.url}/v1.0/sites/{quote(site_id, safe=',')}/drives?$select=id,name,webUrl"
        drives: list[dict[str, Any]] = []
        while url:
            try:
                page = await self._graph.get_json(url, units=_LISTING, subject="source.library")
            except AccessDenied:
                raise not_granted("source.library") from None
            except ItemError as error:
                raise Configuration(
                    f"Graph does not list the site's libraries: {error.detail}", subject="source.library"
                ) from None
            drives += [one for one in _list(page, "value") if isinstance(one, dict)]
            following = page.get("@odata.nextLink")
            url = self._graph.link(following, "source.library") if isinstance(following, str) else None
        wanted = self._library.strip()
        if "://" in wanted:
            address = _address(wanted)
            found = [one for one in drives if address and _address(_text(one, "webUrl")) == address]
        else:
            found = [one for one in drives if _text(one, "name").casefold() == wanted.casefold()]
            # The name in the address stays when a library is renamed, and people know it by that.
            last = wanted.casefold()
            found = found or [one for one in drives if _address(_text(one, "webUrl")).rpartition("/")[2] == last]
        if not found:
            names = ", ".join(sorted(repr(_text(one, "name")) for one in drives)) or "none"
            raise SourceMissing(
                f"the site has no library {wanted!r}; there are: {names}. Correct source.library",
                code="library_not_found",
                subject="source.library",
            )
        if len(found) > 1:
            addresses = ", ".join(sorted(_text(one, "webUrl") for one in found))
            raise Configuration(
                f"{len(found)} libraries are named {wanted!r}; give the address of one: {addresses}",
                subject="source.library",
            )
        return _id_of(found[0], "source.library")

    async def _find_folder(self, drive_id: str) -> str:
        url = f"{self._url_of(drive_id)}/root:/{quote(self._folder)}?$select=id,folder,root"
        try:
            found = await self._graph.get_json(url, units=_ONE_ITEM, subject="source.folder")
        except AccessDenied:
            raise not_granted("source.folder") from None
        except ItemError:
            raise SourceMissing(
                f"the library has no folder {self._folder!r}; correct source.folder, which is relative to the library",
                code="folder_not_found",
                subject="source.folder",
            ) from None
        if not isinstance(found.get("folder"), dict):
            raise Configuration(f"{self._folder!r} is no folder; name one", subject="source.folder")
        return _id_of(found, "source.folder")

    def _url_of(self, drive_id: str) -> str:
        return f"{self._graph.url}/v1.0/drives/{quote(drive_id, safe='!')}"

    async def _drive_url(self) -> str:
        return self._url_of((await self.resolve()).drive_id)

    async def _of_source(self, url: str, *, units: int) -> dict[str, Any]:
        """A call that is about the library as a whole, so that every refusal concerns the run.

        Raises:
            FeedExpired, RunError, TransientError.
        """
        try:
            return await self._graph.get_json(url, units=units, subject="source.library")
        except FeedExpired:
            raise
        except AccessDenied:
            raise not_granted("source.library") from None
        except NotFound:
            raise SourceMissing(
                "the library is gone, or the identity does not see it any more", code="library_not_found",
                subject="source.library",
            ) from None  # fmt: skip
        except ItemError as error:
            raise Configuration(
                f"Graph does not give the library's changes: {error.detail}", subject="source.library"
            ) from None

    # -- what is in it ---------------------------------------------------------------------------------------------

    async def page(self, cursor: str | None) -> DrivePage:
        """The next page of everything (from None on), or of what changed (from an earlier page's token on).

        Cursors and tokens are the service's own links, followed as they are; asking for one again is harmless. Where
        the service has forgotten one, the page has ``reset`` and the feed begins again at its cursor, which may be
        None.

        Raises:
            Configuration: a link leads to another service.
        """
        if cursor is None:
            url = f"{await self._drive_url()}/root/delta?$select={_SELECT}&$top={_PAGE_ITEMS}"
        else:
            url = self._graph.link(cursor, "source.library")
        try:
            document = await self._of_source(url, units=_LISTING if cursor is None else _ONE_ITEM)
        except FeedExpired as expired:
            if cursor is None:
                raise ServiceUnavailable(expired.detail, subject=expired.subject) from None
            at = self._graph.link(expired.location, "source.library") if expired.location else None
            return DrivePage([], at if at != cursor else None, None, reset=True)
        following, latest = document.get("@odata.nextLink"), document.get("@odata.deltaLink")
        if not isinstance(following, str):
            following = None
        if not isinstance(latest, str) or following:
            latest = None
        if following is None and latest is None:
            raise ServiceUnavailable("a page of changes leads nowhere", subject="source.library")
        for link in (following, latest):
            if link:
                self._graph.link(link, "source.library")
        return DrivePage([_item(one) for one in _list(document, "value")], following, latest)

    async def stat(self, ref: str) -> DriveItem | None:
        """The item as it is now; None if it is gone while the library is there.

        Raises:
            AccessDenied: this item only.
            RunError: the library as a whole.
        """
        announced = read_ref(ref)
        try:
            return _item(await self._graph.get_json(
                f"{await self._item_url(announced)}?$select={_SELECT}", units=_ONE_ITEM, subject=announced.id
            ))  # fmt: skip
        except NotFound:
            await self._assert_readable()
            return None
        except AccessDenied:
            await self._assert_readable()
            raise

    async def open(self, path: str, ref: str) -> Download:
        """Open for one consistent read; one call to Graph.

        Raises:
            NotFound, AccessDenied, Unsupported, ItemError: this item only, with what the service says of it.
            RunError: the library as a whole cannot be read any more.
        """
        announced = read_ref(ref)
        subject = printable(path)
        url = f"{await self._item_url(announced)}/content"

        async def address() -> str:
            answer = await self._graph.get(url, units=_ONE_ITEM, subject=subject, redirects=True)
            location = answer.headers.get("Location", "")
            if not location:
                raise ServiceUnavailable("Graph does not say where to download from", subject=subject)
            return location

        async def announced_now() -> Announced | None:
            item = await self.stat(ref)
            return read_ref(item.ref) if item is not None and item.kind == "file" else None

        download = Download(
            self._graph,
            subject=subject,
            announced=announced,
            address=address,
            announced_now=announced_now,
            accept_rewrites=self._accept_rewrites,
        )
        try:
            return await download.begin()
        except (NotFound, AccessDenied) as error:
            if error.code in ("access_denied", "source_gone"):
                # One by one, hundreds of thousands of items would be refused, or be taken for deleted.
                await self._assert_readable()
            raise

    async def _item_url(self, announced: Announced) -> str:
        return f"{await self._drive_url()}/items/{quote(announced.id, safe='!')}"

    async def _assert_readable(self) -> None:
        if time.monotonic() >= self._trusted_until_s:
            await self._of_source(f"{await self._drive_url()}?$select=id", units=_ONE_ITEM)
            self._trusted_until_s = time.monotonic() + _TRUST_S


def split_site(site: str) -> tuple[str, str]:
    """Host and path (with a leading slash, or empty for the root site) of a site as a job names it.

    Raises:
        Configuration: naming the field and the form to write.
    """
    text = site.strip()
    if "://" in text:
        try:
            parts = urlsplit(text)
        except ValueError:
            raise _no_site() from None
        host, path = parts.netloc, unquote(parts.path)
    else:
        host, _, path = text.partition("/")
        host, path = host.removesuffix(":"), f"/{path}"
    path = path.rstrip("/")
    if not _HOST.fullmatch(host) or any(part in ("", ".", "..") for part in path.split("/")[1:]) or ":" in path:
        raise _no_site()
    return host.lower(), path


def _no_site() -> Configuration:
    # Not repeated: an address may hold a password.
    return Configuration(
        "source.site is no site; write host and path, such as contoso.sharepoint.com:/sites/finance",
        subject="source.site",
    )


def read_ref(ref: str) -> Announced:
    """What a listing's ``ref`` says: id, size, hash and ETag."""
    item_id, size_bytes, quick_xor_hash, etag = json.loads(ref)
    return Announced(item_id, size_bytes, quick_xor_hash, etag)


def _write_ref(announced: Announced) -> str:
    return json.dumps([announced.id, announced.size_bytes, announced.hash, announced.etag], separators=(",", ":"))


def _item(document: object) -> DriveItem:
    """An item of the service's JSON; every property but the id may be missing."""
    if not isinstance(document, dict):
        raise ServiceUnavailable("an item of the change feed is none", subject="source.library")
    item_id, name = _id_of(document, "source.library"), _text(document, "name")
    parent_id = _text(_object(document, "parentReference"), "id") or None
    if "deleted" in document and document["deleted"] is not None:
        return DriveItem(item_id, parent_id, name, "gone")
    if isinstance(document.get("root"), dict):
        return DriveItem(item_id, None, name, "root")
    facts = _facts(document)
    if isinstance(document.get("remoteItem"), dict):
        return _other(item_id, parent_id, name, facts, "shortcut_not_followed", "is a shortcut to another library")
    if isinstance(package := document.get("package"), dict):
        kind = "a OneNote notebook" if _text(package, "type").casefold() == "onenote" else "a package"
        return _other(item_id, parent_id, name, facts, "package_not_a_file", f"is {kind}, which is no file")
    if isinstance(document.get("folder"), dict):
        return DriveItem(item_id, parent_id, name, "folder", facts=facts)
    if not isinstance(document.get("file"), dict):
        return _other(item_id, parent_id, name, facts, "not_a_file", "is neither a file nor a folder")
    size = document.get("size")
    announced = Announced(
        item_id,
        size if isinstance(size, int) and size >= 0 else 0,
        _text(_object(_object(document, "file"), "hashes"), "quickXorHash")[:64],
        _tag(document),
    )
    problem = None
    if document.get("malware") is not None:
        problem = ("malware_detected", "SharePoint found malware in the file and does not give it out")
    return DriveItem(
        item_id, parent_id, name, "file", announced.size_bytes, announced.version, _write_ref(announced), facts, problem
    )


def _other(
    item_id: str, parent_id: str | None, name: str, facts: Mapping[str, str | int | None], code: str, sentence: str
) -> DriveItem:
    return DriveItem(item_id, parent_id, name, "other", facts=facts, problem=(code, sentence), skip=True)


def _facts(document: Mapping[str, Any]) -> dict[str, str | int | None]:
    publication = _object(document, "publication")
    return {
        "drive_item_id": _text(document, "id"),
        "etag": _text(document, "eTag") or None,
        "ctag": _text(document, "cTag") or None,
        "quick_xor_hash": _text(_object(_object(document, "file"), "hashes"), "quickXorHash") or None,
        "created_at": _text(document, "createdDateTime") or None,
        "created_by": _who(document, "createdBy"),
        "modified_at": _text(document, "lastModifiedDateTime") or None,
        "modified_by": _who(document, "lastModifiedBy"),
        "web_url": _text(document, "webUrl") or None,
        "version_label": _text(publication, "versionId") or None,
        "checked_out_by": (
            _who(publication, "checkedOutBy") or "somebody" if _text(publication, "level") == "checkout" else None
        ),
    }


def _who(document: Mapping[str, Any], name: str) -> str | None:
    """Whoever did it: a person by address, else by name; an application or device by name."""
    identities = _object(document, name)
    for kind in ("user", "group", "application", "device"):
        identity = _object(identities, kind)
        if who := _text(identity, "email") or _text(identity, "displayName"):
            return who
    return None


def _tag(document: Mapping[str, Any]) -> str:
    found = _text(document, "eTag")
    return found if len(found) <= _MAX_TAG and found.isascii() else ""


def _id_of(document: Mapping[str, Any], subject: str) -> str:
    found = _text(document, "id")
    if not (0 < len(found) <= _MAX_ID and found.isascii()):
        raise ServiceUnavailable("Graph's answer has an item without an id", subject=subject)
    return found


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _list(document: Mapping[str, Any], name: str) -> list[Any]:
    value = document.get(name)
    if not isinstance(value, list):
        raise ServiceUnavailable("Graph's answer has no list where there is one", subject="source.library")
    return value


def _text(document: Mapping[str, Any], name: str) -> str:
    value = document.get(name)
    return value if isinstance(value, str) else ""


def _address(url: str) -> str:
    """An address to compare: without the page of a view, query, case and percent signs."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    return f"{parts.netloc}{_FORMS_PAGE.sub('', unquote(parts.path)).rstrip('/')}".casefold()
