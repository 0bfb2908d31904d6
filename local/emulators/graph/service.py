"""The front door of Graph: which resource, who calls, may they, what it costs, and the answer.

Paths and answers: Microsoft's Graph v1.0 reference, one page a call, as collected in docs/protocols/graph.md. Where no
page says what the service does, that file says so too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import io
import json
import struct
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import formatdate
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote

from local.emulators.estate import GraphBehaviour
from local.emulators.faults import FaultRule
from local.emulators.graph import batch, feed
from local.emulators.graph.content import Content, ContentFile
from local.emulators.graph.errors import GraphError, invalid, not_found, throttled, unauthenticated
from local.emulators.graph.items import (
    Drive,
    Site,
    View,
    content_type,
    ctag,
    etag,
    item_document,
    parse_select,
)
from local.emulators.graph.library import FILE, FOLDER, MARKS, NOTEBOOK, SECTION
from local.emulators.graph.tenant import Tenant
from local.emulators.graph.throttle import Throttle
from local.emulators.pipeline import Call, retry_after_header
from local.emulators.tokens import GRAPH_AUDIENCE, TokenAuthority, TokenRefused
from local.emulators.wire import FileSlice, Request, Response

_VERSION = "/v1.0"
_DOWNLOADS = "/_download/"
_IN_MEMORY_BYTES = 1024 * 1024
_NONCE = struct.Struct(">HI")
_PASS = struct.Struct(">dI")
_SIGNATURE_BYTES = 16
_OPERATIONS = {
    "site": "site",
    "drives": "list",
    "drive": "site",
    "item": "item",
    "children": "list",
    "delta": "delta",
    "delta_token": "delta",
    "content": "content",
    "download": "download",
    "permissions": "list",
    "batch": "batch",
}
_QUERIES = {
    "site": {"select"},
    "drive": {"select"},
    "drives": {"select", "top", "skiptoken"},
    "item": {"select"},
    "children": {"select", "top", "skiptoken"},
    "delta": {"select", "top", "token"},
    "delta_token": {"select", "top", "token"},
    "content": {"avoverride"},
}


@dataclass(slots=True)
class Target:
    """What a request is about. ``refusal`` is told once the caller has been let in."""

    kind: str
    site: Site | None = None
    drive: Drive | None = None
    slot: int = 0
    token: str | None = None
    token_in_path: bool = False
    query: dict[str, str] = field(default_factory=dict)
    refusal: GraphError | None = None


class Graph:
    """Serves the libraries of one tenant.

    Args:
        key: signs delta tokens and download URLs.
    """

    name = "graph"

    def __init__(self, tenant: Tenant, tokens: TokenAuthority, key: bytes, behaviour: GraphBehaviour) -> None:
        self.tenant = tenant
        self.behaviour = behaviour
        self.throttle = Throttle(behaviour)
        self._tokens = tokens
        self._delta_tokens = feed.Tokens(key)
        self._key = hashlib.blake2b(b"download urls", digest_size=32, key=key[:64]).digest()
        self._request_prefix = str(uuid.uuid4())[:24]
        self._requests = 0

    def follow(self, behaviour: GraphBehaviour) -> None:
        """Answers in another way from now on."""
        self.behaviour = behaviour
        self.throttle.follow(behaviour)

    # what a request is about

    def classify(self, request: Request) -> Call:
        """Names the call: ``<path of the site>/<library>/<path>``, and how it is looked at."""
        is_download = request.path.startswith(_DOWNLOADS)
        target = self._download_target(request) if is_download else self.target_of(request)
        return Call(_OPERATIONS[target.kind], _label(target) or request.path, target)

    def target_of(self, request: Request) -> Target:
        """Reads path and query; never raises."""
        target = Target("item", query=_known_names(request.query))
        try:
            self._resolve(unquote(request.path, errors="strict").rstrip("/"), target)
            unknown = target.query.keys() - _QUERIES.get(target.kind, set())
            if unknown:
                raise invalid(f"The query parameter '{min(unknown)}' is not supported here.")
        except UnicodeDecodeError:
            target.refusal = invalid("The path is not UTF-8.")
        except GraphError as error:
            target.refusal = error
        return target

    def _resolve(self, path: str, target: Target) -> None:
        if not path.startswith(f"{_VERSION}/"):
            raise GraphError(400, "BadRequest", "Invalid version.")
        path = path[len(_VERSION) + 1 :]
        head, _, rest = path.partition("/")
        if path == "$batch":
            target.kind = "batch"
        elif head == "sites":
            self._resolve_site(rest, target)
        elif head == "drives":
            drive_id, _, rest = rest.partition("/")
            self._resolve_drive(self.tenant.drive(drive_id), rest, target)
        else:
            raise _no_segment(head)

    def _resolve_site(self, path: str, target: Target) -> None:
        target.kind = "site"
        first, _, rest = path.partition("/")
        if first.endswith(":"):
            # sites/{hostname}:/{path}, and :/ again before what is wanted of the site.
            server_path, _, rest = rest.partition(":")
            rest = rest.lstrip("/")
            wanted = (first[:-1].lower(), server_path.strip("/").lower())
            target.site = self._site(lambda site: (site.hostname, site.path.lower()) == wanted)
        elif first == "root" or "," not in first:
            hosts = [site.hostname for site in self.tenant.sites]
            host = hosts[0] if first == "root" and hosts else first.lower()
            target.site = self._site(lambda site: (site.hostname, site.path) == (host, ""))
            if target.site is None and host in hosts:
                # Every host has a root site; where the estate has none, nobody was granted anything on it.
                raise _denied()
        else:
            target.site = self._site(lambda site: site.id == first.lower())
        if target.site is None:
            raise GraphError(404, "itemNotFound", "Requested site could not be found")
        drives = self.tenant.drives_of(target.site)
        what, _, below = rest.partition("/")
        if what == "drive" and drives:
            self._resolve_drive(drives[0], below, target)
        elif what == "drives" and below:
            drive_id, _, below = below.partition("/")
            found = self.tenant.drive(drive_id)
            self._resolve_drive(found if found in drives else None, below, target)
        elif rest in ("drives", "permissions"):
            target.kind = rest
        elif rest:
            raise _no_segment(what)

    def _site(self, matches: Callable[[Site], bool]) -> Site | None:
        return next((site for site in self.tenant.sites if matches(site)), None)

    def _resolve_drive(self, drive: Drive | None, path: str, target: Target) -> None:
        target.kind = "drive"
        if drive is None:
            raise GraphError(
                404,
                "itemNotFound",
                "The provided drive id appears to be malformed, or does not represent a valid drive.",
            )
        target.site, target.drive = drive.site, drive
        if not path:
            return
        target.kind = "item"
        library = drive.library
        head, _, rest = path.partition("/")
        if head == "items":
            item_id, _, rest = rest.partition("/")
            slot = 0 if item_id == "root" else library.slot_of(item_id)
        elif head == "root:":
            item_path, colon, rest = rest.partition(":")
            rest = rest.lstrip("/") if colon else ""
            slot = library.find(item_path)
        elif head == "root":
            slot = 0
        else:
            raise _no_segment(head)
        if rest in ("children", "content", "delta"):
            target.kind = rest
        elif rest.startswith("delta(") and rest.endswith(")"):
            name, _, value = rest[len("delta(") : -1].partition("=")
            target.kind, target.token_in_path = "delta", True
            if name.strip() != "token":
                raise invalid("The function delta has one parameter, token.")
            target.token = value.strip().strip("'")
        elif rest:
            raise _no_segment(rest)
        if slot is None or (library.gone[slot] and target.kind != "delta"):
            raise not_found()
        target.slot = slot
        if target.kind == "delta":
            target.token = target.token or target.query.get("token")
            target.kind = "delta_token" if target.token else "delta"
            if slot:
                raise GraphError(400, "notSupported", "delta is supported on the root of a drive only.")

    # the call

    async def handle(self, request: Request, call: Call) -> Response:
        """Answers one request."""
        target: Target = call.detail
        try:
            if target.kind == "download":
                self.throttle.count("download")
                response = self._download(request, target)
            elif target.kind == "batch" and target.refusal is None:
                self._authenticate(request)
                self.throttle.count("batch")
                response = await batch.answer(self, request)
            else:
                response = self.answer(request, target)
        except GraphError as error:
            return self.failed(request, error)
        return self._finished(request, response)

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Answers as Graph does under a fault."""
        headers = retry_after_header(rule.retry_after_s)
        target: Target = call.detail
        match rule.fault:
            case "throttle":
                error = throttled(headers)
            case "unavailable":
                error = GraphError(503, "serviceNotAvailable", "The service is not available.", headers=headers)
            case "expired_token" if target.kind == "download":
                return _download_refused()
            case "expired_token":
                error = unauthenticated("Lifetime validation failed, the token is expired.")
            case "resync" if target.drive is not None and target.kind.startswith("delta"):
                error = self._resync(request, target.drive, target)
            case _:
                error = GraphError(500, "generalException", "General exception while processing", headers=headers)
        return self.failed(request, error)

    def answer(self, request: Request, target: Target) -> Response:
        """Lets the caller in, charges the request and carries it out.

        Raises:
            GraphError: what the client is told instead.
        """
        client_id = self._authenticate(request)
        told = self.throttle.charge(client_id, target.kind, request.headers.get("user-agent", ""))
        try:
            response = self._carried_out(request, target, client_id)
        except GraphError as error:
            error.headers |= told
            raise
        response.headers |= told
        return response

    def _authenticate(self, request: Request) -> str:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise unauthenticated("Access token is empty.")
        try:
            return self._tokens.check(token.strip(), GRAPH_AUDIENCE).client_id
        except TokenRefused as refused:
            if "expired" in str(refused):
                raise unauthenticated("Lifetime validation failed, the token is expired.") from refused
            aspect = "audience" if "Audience" in str(refused) else "signature"
            raise unauthenticated(f"Access token validation failure. Invalid {aspect}.") from refused

    def _carried_out(self, request: Request, target: Target, client_id: str) -> Response:
        if target.site is not None and not self.tenant.may_read(client_id, target.site):
            raise _denied()
        if target.refusal is not None:
            raise target.refusal
        if request.method != "GET":
            raise GraphError(405, "notAllowed", "The action is not allowed by the system.")
        assert target.site is not None
        match target.kind:
            case "site":
                return _json(_chosen(target, target.site.document()))
            case "drives":
                return self._drives(request, target, target.site)
            case "permissions":
                # Only an application that may control every site may look at grants.
                raise _denied()
        drive = target.drive
        assert drive is not None
        match target.kind:
            case "drive":
                return _json(_chosen(target, drive.document()))
            case "item":
                select = parse_select(target.query.get("select"))
                return _json(item_document(self._view(request, drive), target.slot, select))
            case "children":
                return self._children(request, target, drive)
            case "content":
                return self._redirect(request, target, drive)
            case _:
                return self._delta(request, target, drive)

    # listings

    def _drives(self, request: Request, target: Target, site: Site) -> Response:
        hidden = "system" not in target.query.get("select", "").split(",")
        drives = [drive for drive in self.tenant.drives_of(site) if not (hidden and drive.library.system)]
        return self._paged(request, target, [_chosen(target, drive.document()) for drive in drives])

    def _children(self, request: Request, target: Target, drive: Drive) -> Response:
        select = parse_select(target.query.get("select"))
        view = self._view(request, drive)
        slots = drive.library.children(target.slot)
        return self._paged(request, target, slots, lambda slot: item_document(view, slot, select))

    def _paged(
        self, request: Request, target: Target, entries: Sequence[Any], shown: Callable[[Any], Any] = lambda one: one
    ) -> Response:
        top = min(_top(target) or self.behaviour.page_items, self.behaviour.most_page_items)
        start = _skipped(target.query.get("skiptoken"), len(entries))
        document: dict[str, Any] = {"value": [shown(one) for one in entries[start : start + top]]}
        if start + top < len(entries):
            token = base64.urlsafe_b64encode(f"from:{start + top}".encode()).decode()
            query = "&".join(
                f"${name}={quote(value, safe=',@.')}" for name, value in {**target.query, "skiptoken": token}.items()
            )
            document["@odata.nextLink"] = f"{_origin(request)}{request.path}?{query}"
        return _json(document)

    def _view(self, request: Request, drive: Drive, *, in_feed: bool = False) -> View:
        origin = _origin(request)
        return View(drive, self.tenant.id, in_feed, lambda slot: self._download_url(origin, drive.number, slot))

    # changes

    def _delta(self, request: Request, target: Target, drive: Drive) -> Response:
        library = drive.library
        select = parse_select(target.query.get("select"))
        place = self._place(request, target, drive)
        if target.token == "latest":  # noqa: S105 - a keyword of the protocol
            return _json({"value": [], "@odata.deltaLink": self._link(request, target, drive, place)})
        with_parents = "deltaexcludeparent" not in request.headers
        page = feed.read_page(library, place, self.behaviour, with_parents=with_parents)
        view = self._view(request, drive, in_feed=True)
        link = self._link(request, target, drive, page.next)
        return _json(
            {
                "@odata.context": f"{_origin(request)}{_VERSION}/$metadata#Collection(driveItem)",
                ("@odata.deltaLink" if page.ends else "@odata.nextLink"): link,
                "value": [item_document(view, slot, select) for slot in page.slots],
            }
        )

    def _place(self, request: Request, target: Target, drive: Drive) -> feed.Place:
        library, token, top = drive.library, target.token, _top(target)
        if token is None:
            return feed.beginning(library, drive.number, top)
        if token == "latest":  # noqa: S105
            return feed.changes_since(library, drive.number, len(library.log), top)
        moment = _moment(token)
        if moment is not None:
            return feed.changes_since(library, drive.number, feed.position_at(library, moment), top)
        try:
            place = self._delta_tokens.read(token, feed.link_of(in_path=target.token_in_path, query=target.query))
        except feed.TokenUnknown:
            raise self._resync(request, drive, target) from None
        except feed.LinkRebuilt:
            raise invalid("The link is not one that was given out: links are to be followed as they are.") from None
        if place.library != drive.number:
            raise invalid("The token belongs to another drive.")
        if place.epoch != library.epoch or place.position > len(library.log):
            raise self._resync(request, drive, target)
        return place

    def _resync(self, request: Request, drive: Drive, target: Target) -> GraphError:
        start = feed.beginning(drive.library, drive.number, 0)
        return GraphError(
            410,
            "resyncRequired",
            "Resync required. Replace any local items with the server's version (including deletes).",
            inner=self.behaviour.resync,
            headers={"Location": self._link(request, target, drive, start)},
        )

    def _link(self, request: Request, target: Target, drive: Drive, place: feed.Place) -> str:
        """The link that stands for a place, in one of the shapes that were seen of the service."""
        base = f"{_origin(request)}{_VERSION}/drives/{drive.id}/root/delta"
        select = target.query.get("select")
        if select:
            token = self._delta_tokens.write(place, feed.link_of(in_path=False, query={"select": select}))
            return f"{base}?$select={quote(select, safe='*@.')}&token={token}"
        in_path = place.page % 2 == 0
        token = self._delta_tokens.write(place, feed.link_of(in_path=in_path, query={}))
        return f"{base}(token='{token}')" if in_path else f"{base}?token={token}"

    # downloads

    def _redirect(self, request: Request, target: Target, drive: Drive) -> Response:
        library, slot = drive.library, target.slot
        tags = {tag.strip().removeprefix("W/") for tag in _split_tags(request.headers.get("if-none-match", ""))}
        _check_content(drive, slot, override="avoverride" in target.query)
        if tags & {etag(library, slot), ctag(library, slot)}:
            return Response(304, {"ETag": etag(library, slot)})
        location = self._download_url(_origin(request), drive.number, slot)
        return Response(302, {"Location": location, "Cache-Control": "private"})

    def _download_url(self, origin: str, drive: int, slot: int) -> str:
        nonce = _NONCE.pack(drive, slot)
        admitted = _PASS.pack(time.time() + self.behaviour.download_lifetime_s, self.tenant.download_epoch)
        signature = hashlib.blake2b(nonce + admitted, digest_size=_SIGNATURE_BYTES, key=self._key).digest()
        return f"{origin}{_DOWNLOADS}{_plain64(nonce)}?tempauth={_plain64(admitted + signature)}"

    def _download_target(self, request: Request) -> Target:
        target = Target("download")
        try:
            number, slot = _NONCE.unpack(_from_plain64(request.path[len(_DOWNLOADS) :]))
            drive = self.tenant.drives[number]
            drive.library.names[slot]
        except (ValueError, struct.error, IndexError):
            return target
        target.site, target.drive, target.slot = drive.site, drive, slot
        return target

    def _admitted(self, request: Request) -> bool:
        if "authorization" in request.headers:
            return False
        try:
            nonce = _from_plain64(request.path[len(_DOWNLOADS) :])
            raw = _from_plain64(request.query.get("tempauth", ""))
            admitted, signature = raw[: _PASS.size], raw[_PASS.size :]
            expires_s, epoch = _PASS.unpack(admitted)
        except (ValueError, struct.error):
            return False
        expected = hashlib.blake2b(nonce + admitted, digest_size=_SIGNATURE_BYTES, key=self._key).digest()
        if not hmac.compare_digest(signature, expected):
            return False
        return bool(expires_s > time.time() and epoch == self.tenant.download_epoch)

    def _download(self, request: Request, target: Target) -> Response:
        if not self._admitted(request):
            return _download_refused()
        if request.method not in ("GET", "HEAD"):
            raise GraphError(405, "notAllowed", "The action is not allowed by the system.")
        drive, slot = target.drive, target.slot
        assert drive is not None
        library = drive.library
        if library.gone[slot]:
            raise not_found()
        _check_content(drive, slot, override=True)
        content = library.content(slot)
        size = content.size
        headers = {
            "Content-Type": content_type(library, slot),
            "ETag": etag(library, slot),
            "Last-Modified": formatdate(library.modified[slot], usegmt=True),
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=0",
        }
        status, start, stop = 200, 0, size
        asked = "" if self.behaviour.ignore_ranges else request.headers.get("range", "")
        span = _span(asked, size)
        if span is not None:
            start, stop = span
            if start >= stop:
                headers = {"Content-Range": f"bytes */{size}"}
                raise GraphError(416, "invalidRange", "The specified byte range is invalid.", headers=headers)
            status = 206
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        if request.method == "HEAD":
            return Response(status, {**headers, "Content-Length": str(stop - start)})
        library.downloads[slot] += 1
        return Response(status, headers, _body(content, start, stop))

    # the answer

    def failed(self, request: Request, error: GraphError) -> Response:
        """Returns the answer that a refusal becomes."""
        request_id = self._request_id()
        asked_id = request.headers.get("client-request-id", request_id)
        body = json.dumps(error.document(request_id, asked_id)).encode()
        response = Response(error.status, {"Content-Type": "application/json", **error.headers}, body)
        response.error_code = error.code
        return self._finished(request, response, request_id)

    def _request_id(self) -> str:
        self._requests += 1
        return f"{self._request_prefix}{self._requests:012x}"

    def _finished(self, request: Request, response: Response, request_id: str = "") -> Response:
        request_id = request_id or self._request_id()
        response.headers["request-id"] = request_id
        response.headers["client-request-id"] = request.headers.get("client-request-id", request_id)
        response.headers["Strict-Transport-Security"] = "max-age=31536000"
        return response


def _label(target: Target) -> str:
    if target.drive is None:
        return target.site.path if target.site is not None else ""
    library = target.drive.library
    parts = (target.drive.site.path, library.name, library.path(target.slot))
    return "/".join(part for part in parts if part)


def _known_names(query: dict[str, str]) -> dict[str, str]:
    """Names of parameters without their ``$``, which Graph does not insist on, and in one case."""
    return {unquote(name).removeprefix("$").lower(): value for name, value in query.items()}


def _origin(request: Request) -> str:
    return f"http{'s' if request.secure else ''}://{request.headers.get('host', '')}"


def _no_segment(name: str) -> GraphError:
    return GraphError(400, "BadRequest", f"Resource not found for the segment '{name}'.")


def _denied() -> GraphError:
    return GraphError(403, "accessDenied", "Either scp or roles claim need to be present in the token.")


def _chosen(target: Target, document: dict[str, Any]) -> dict[str, Any]:
    """The properties of a site or a drive that were selected, or all of them."""
    select = target.query.get("select")
    if not select:
        return document
    wanted = {name.strip().partition("/")[0] for name in select.split(",")}
    return {name: value for name, value in document.items() if name in wanted}


def _top(target: Target) -> int:
    text = target.query.get("top")
    if text is None:
        return 0
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) < 65536:
        raise invalid("The value of $top must be a positive number.")
    return int(text)


def _skipped(token: str | None, count: int) -> int:
    if token is None:
        return 0
    try:
        position = int(base64.urlsafe_b64decode(token).decode().removeprefix("from:"))
    except (binascii.Error, ValueError):
        position = -1
    if not 0 <= position <= count:
        raise invalid("The value of $skiptoken is not valid.")
    return position


def _moment(token: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(token)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else None


def _split_tags(header: str) -> list[str]:
    # Commas stand inside these tags too.
    return [f'"{part}"' for part in header.split('"')[1::2]]


def _check_content(drive: Drive, slot: int, *, override: bool) -> None:
    library = drive.library
    kind, marks = library.kinds[slot], library.marks[slot]
    if kind == SECTION:
        raise GraphError(400, "notSupported", "The content of a OneNote section cannot be read as a file.")
    if kind != FILE:
        what = {FOLDER: "folder", NOTEBOOK: "package"}.get(kind, "remote item")
        raise invalid(f"The content of a {what} cannot be read.")
    if marks & MARKS["malware"] and not override:
        headers = {"X-Virus-Infected": "Virus:DOS/EICAR_Test_File"}
        message = "Malware was detected in the requested resource."
        raise GraphError(403, "malwareDetected", message, inner="virusSuspicious", headers=headers)
    if marks & MARKS["dlp_blocked"]:
        message = "Access restricted to the item's owner."
        raise GraphError(403, "accessDenied", message, inner="accessRestricted")
    if marks & MARKS["locked"]:
        message = "The file is currently checked out or locked for editing by another user."
        raise GraphError(423, "accessDenied", message)


def _span(header: str, size: int) -> tuple[int, int] | None:
    """The bytes asked for, from and up to; None where the header is not one single range."""
    unit, _, text = header.partition("=")
    first, dash, last = text.strip().partition("-")
    if unit.strip() != "bytes" or not dash or not (first + last).isdigit() or not (first + last).isascii():
        return None
    if not first:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last else size


def _body(content: Content, start: int, stop: int) -> bytes | FileSlice:
    if stop - start <= _IN_MEMORY_BYTES:
        return content.read(start, stop)
    return FileSlice(cast(BinaryIO, io.BufferedReader(ContentFile(content))), start, stop - start)


def _download_refused() -> Response:
    response = Response(401, {"Content-Type": "text/plain; charset=utf-8"}, b"401 UNAUTHORIZED")
    response.error_code = "unauthenticated"
    return response


def _plain64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def _from_plain64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _json(document: dict[str, Any]) -> Response:
    headers = {"Content-Type": "application/json;odata.metadata=minimal;charset=utf-8", "OData-Version": "4.0"}
    return Response(200, headers, json.dumps(document, separators=(",", ":")).encode())
