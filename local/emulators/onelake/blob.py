# A Path object per call costs more than the call itself on these hot paths.
# ruff: noqa: PTH104, PTH108, PTH110
"""The Blob dialect: what the SDKs read through it, and block blobs for clients that know nothing else.

HEAD, GET, Put Blob, Put Block, both also From URL, Copy Blob, Put Block List, Delete, List Blobs, Set Blob Metadata and
Properties. Everything else is refused. Shapes: Microsoft's Blob service REST reference; what the clients send is on
docs/protocols/onelake.md sections 5 and 6. Chosen where the pages are silent:

* A block list may name uncommitted blocks only; one that names committed blocks is InvalidBlockList.
* Folders appear in a flat listing with ResourceType ``directory``, as with a hierarchical namespace.
* The workspace itself answers HEAD and a listing with a delimiter; other container calls are BadRequest.
* ``startFrom`` is inclusive; by friendly names such a listing is empty, as it was on the service until mid-2026.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import itertools
import os
import re
import uuid
from dataclasses import replace
from typing import Any
from urllib.parse import quote, urlsplit
from xml.sax.saxutils import escape, quoteattr

from local.emulators.onelake.addresses import Address, AddressBook, decode_path
from local.emulators.onelake.attributes import DEFAULT_CONTENT_TYPE, Attributes
from local.emulators.onelake.conditions import Conditions, read_conditions
from local.emulators.onelake.content import (
    http_time,
    properties_response,
    read_response,
    receive,
    require_query,
    version_headers,
    whole_number,
    with_content_headers,
)
from local.emulators.onelake.dfs import remove_empty_folder
from local.emulators.onelake.errors import ServiceError
from local.emulators.onelake.listing import Listed, Lister, continuation, read_continuation
from local.emulators.onelake.sources import MAX_BLOB_BYTES, MAX_BLOCK_BYTES, CopySources
from local.emulators.onelake.store import Entry, Store
from local.emulators.wire import Request, Response

MAX_LISTED = 5000
_BLOCK_LIST_LIMIT_BYTES = 8 * 1024 * 1024
_BLOCK_ID_LIMIT_BYTES = 64
_NOTHING: frozenset[str] = frozenset()
_LIST_QUERY = frozenset({"restype", "comp", "prefix", "delimiter", "marker", "maxresults", "include", "startFrom"})
_INCLUDABLE = {"", "metadata"}
_BLOCK_LIST = re.compile(
    r"\ufeff?\s*(<\?xml[^<>]*\?>)?\s*<BlockList>(?P<blocks>(\s*<(Latest|Uncommitted|Committed)>[^<]*</\4>)*)\s*</BlockList>\s*"
)
_BLOCK = re.compile(r"<(Latest|Uncommitted|Committed)>\s*([^<]*?)\s*</")
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")


def operation_of(request: Request) -> str:
    """Names the operation of a Blob request by what it does."""
    comp = request.query.get("comp", "")
    match request.method, comp:
        case "HEAD", _:
            return "properties"
        case "GET", "list":
            return "list"
        case "GET", _:
            return "read"
        case "PUT", "block":
            return "append"
        case "PUT", "blocklist":
            return "flush"
        case "PUT", "metadata" | "properties":
            return "properties_set"
        case "PUT", "":
            return "append_flush"
        case "DELETE", _:
            return "delete"
        case _:
            return "unknown"


def copied_within(request: Request) -> str | None:
    """The path of a Copy Blob's source where that lies in the same account; None for any other call."""
    if "x-ms-blob-type" in request.headers or "x-ms-copy-source" not in request.headers:
        return None
    source = urlsplit(request.headers["x-ms-copy-source"])
    return source.path if source.netloc == request.headers.get("host") else None


class Blob:
    """Carries Blob calls out on a store."""

    def __init__(self, store: Store, book: AddressBook, sources: CopySources) -> None:
        self._store = store
        self._sources = sources
        self._book = book
        self._lister = Lister(store)

    async def handle(self, request: Request, operation: str, address: Address) -> Response:
        """Carries one call out.

        Raises:
            ServiceError: the service's refusal.
        """
        if operation == "list":
            return await self._list(request, address)
        if address.item is None:
            return self._workspace(request, address)
        if operation == "unknown":
            raise ServiceError("UnsupportedHttpVerb")
        path = self._store.path_of(address)
        match operation:
            case "properties":
                require_query(request, _NOTHING)
                return properties_response(request, self._store, path, blob_dialect=True)
            case "read":
                require_query(request, _NOTHING)
                return read_response(request, self._store, path, blob_dialect=True)
            case "append_flush":
                return await self._put_blob(request, address, path)
            case "append":
                return await self._put_block(request, address, path)
            case "flush":
                return await self._put_block_list(request, address, path)
            case "properties_set":
                return self._set(request, address, path)
            case _:
                return self._delete(request, address, path)

    def _workspace(self, request: Request, address: Address) -> Response:
        if request.method == "HEAD" and set(request.query) <= {"restype", "timeout"}:
            return properties_response(request, self._store, self._store.path_of(address), blob_dialect=True)
        raise ServiceError("BadRequest", "Either WorkspaceId or ArtifactId are missing in the request")

    # writing

    def _described(self, request: Request) -> Attributes:
        headers = request.headers
        attributes = replace(self._store.fresh(), by_blob=True, metadata=_metadata(request))
        if "content-type" in headers and "comp" not in request.query:
            attributes.content_type = headers["content-type"] or DEFAULT_CONTENT_TYPE
        return with_content_headers(attributes, headers, "x-ms-blob-")

    def _check_target(self, path: str, conditions: Conditions) -> None:
        entry = self._store.look(path)
        if entry is not None and conditions.must_be_absent:
            raise ServiceError("BlobAlreadyExists")
        if conditions.failure(entry.etag if entry else None, entry.attributes.modified_s if entry else 0):
            raise ServiceError("ConditionNotMet")
        if entry is not None and entry.is_directory:
            raise ServiceError("ResourceTypeMismatch")

    async def _put_blob(self, request: Request, address: Address, path: str) -> Response:
        require_query(request, _NOTHING)
        kind = request.headers.get("x-ms-blob-type")
        if kind is None and "x-ms-copy-source" in request.headers:
            return await self._copy_blob(request, address, path)
        if kind is None:
            raise ServiceError("MissingRequiredHeader")
        if kind != "BlockBlob":
            raise ServiceError("InvalidHeaderValue")
        address.require_writable("PUT")
        conditions = read_conditions(request.headers)
        attributes = self._described(request)
        self._check_target(path, conditions)
        if "x-ms-copy-source" in request.headers:
            received, described = await self._sources.fetch(request, self._store, MAX_BLOB_BYTES)
            if request.headers.get("x-ms-copy-source-blob-properties", "true").lower() != "false":
                taken = {f"x-ms-blob-{name.lower()}": value for name, value in described.items()}
                attributes = with_content_headers(attributes, {**taken, **request.headers}, "x-ms-blob-")
        else:
            received = await receive(request, self._store, wants_md5=True)
        try:
            with self._store.holding(path):
                self._check_target(path, conditions)
                attributes.md5 = attributes.md5 or received.md5
                attributes.modified_ns = self._store.clock.tick_ns()
                self._store.commit_part(*received.into_part(self._store), path, attributes, makes_parents=True)
        finally:
            received.discard()
        return _changed(201, attributes, {"Content-MD5": received.md5})

    async def _copy_blob(self, request: Request, address: Address, path: str) -> Response:
        """Copy Blob, done by the time it is answered, as it may be within one account."""
        address.require_writable("PUT")
        if request.body.length:
            raise ServiceError("ContentLengthMustBeZero")
        conditions = read_conditions(request.headers)
        self._check_target(path, conditions)
        attributes = self._described(request)
        source = copied_within(request)
        if source is None:
            received, described = await self._sources.fetch(request, self._store, MAX_BLOB_BYTES)
            taken = {f"x-ms-blob-{name.lower()}": value for name, value in described.items()}
            attributes = with_content_headers(attributes, taken, "x-ms-blob-")
            attributes.md5 = attributes.md5 or received.md5
            descriptor, part = received.into_part(self._store)
        else:
            source_path = self._store.path_of(self._book.resolve(source))
            entry = self._store.look(source_path)
            if entry is None or entry.is_directory:
                raise ServiceError("CannotVerifyCopySource", status=404)
            wanted = {name.removeprefix("x-ms-source-"): value for name, value in request.headers.items()
                      if name.startswith("x-ms-source-if-")}  # fmt: skip
            if read_conditions(wanted).failure(entry.etag, entry.attributes.modified_s):
                raise ServiceError("SourceConditionNotMet")
            kept = entry.attributes
            attributes = replace(
                attributes, content_type=kept.content_type, md5=kept.md5, headers=kept.headers,
                metadata=attributes.metadata or kept.metadata,
            )  # fmt: skip
            sources = [source_path] if entry.size_bytes else []
            descriptor, part = await asyncio.to_thread(self._store.assemble, sources)
        with self._store.holding(path):
            try:
                self._check_target(path, conditions)
            except BaseException:
                os.close(descriptor)
                os.unlink(part)
                raise
            attributes.modified_ns = self._store.clock.tick_ns()
            self._store.commit_part(descriptor, part, path, attributes, makes_parents=True)
        return _changed(202, attributes, {"x-ms-copy-id": str(uuid.uuid4()), "x-ms-copy-status": "success"})

    async def _put_block(self, request: Request, address: Address, path: str) -> Response:
        require_query(request, frozenset({"comp", "blockid"}))
        block_id = _block_id(request.query.get("blockid"))
        address.require_writable("PUT")
        if "x-ms-copy-source" in request.headers:
            received, _ = await self._sources.fetch(request, self._store, MAX_BLOCK_BYTES)
        else:
            if not request.body.length and request.body.declared:
                raise ServiceError("InvalidHeaderValue")
            received = await receive(request, self._store, wants_md5=True)
        try:
            descriptor, part = received.into_part(self._store)
            os.close(descriptor)
            os.rename(part, self._store.block_path(path, block_id))
        finally:
            received.discard()
        return Response(201, {"Content-MD5": received.md5, "x-ms-request-server-encrypted": "true"})

    async def _put_block_list(self, request: Request, address: Address, path: str) -> Response:
        require_query(request, frozenset({"comp"}))
        address.require_writable("PUT")
        if request.body.length > _BLOCK_LIST_LIMIT_BYTES:
            raise ServiceError("RequestBodyTooLarge")
        conditions = read_conditions(request.headers)
        attributes = self._described(request)
        received = await receive(request, self._store)
        assert received.data is not None or received.descriptor >= 0
        try:
            document = received.data if received.data is not None else _read_all(received.descriptor)
        finally:
            received.discard()
        blocks = self._staged_blocks(path, document)
        self._check_target(path, conditions)
        descriptor, part = await asyncio.to_thread(self._store.assemble, blocks)
        try:
            with self._store.holding(path):
                self._check_target(path, conditions)
                attributes.modified_ns = self._store.clock.tick_ns()
                taken, descriptor = descriptor, -1
                self._store.commit_part(taken, part, path, attributes, makes_parents=True)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
                os.unlink(part)
        self._store.drop_blocks(path)
        return _changed(201, attributes)

    def _staged_blocks(self, path: str, document: bytes) -> list[str]:
        blocks = [self._store.block_path(path, _block_id(block)) for block in _listed_blocks(document)]
        if not all(os.path.exists(block) for block in blocks):
            raise ServiceError("InvalidBlockList")
        return blocks

    # properties and delete

    def _set(self, request: Request, address: Address, path: str) -> Response:
        require_query(request, frozenset({"comp"}))
        address.require_writable("PUT")
        conditions = read_conditions(request.headers)
        with self._store.holding(path):
            entry = self._existing(path, conditions)
            attributes = replace(entry.attributes, modified_ns=self._store.clock.tick_ns())
            if request.query["comp"] == "metadata":
                attributes.metadata = _metadata(request)
            else:
                # "If this property is not specified on the request, then the property is cleared"
                cleared = replace(attributes, content_type=DEFAULT_CONTENT_TYPE, md5="", headers={})
                attributes = with_content_headers(cleared, request.headers, "x-ms-blob-")
            self._store.rewrite_attributes(path, entry, attributes)
        return _changed(200, attributes)

    def _existing(self, path: str, conditions: Conditions) -> Entry:
        entry = self._store.look(path)
        if entry is None:
            raise ServiceError("BlobNotFound")
        if conditions.failure(entry.etag, entry.attributes.modified_s):
            raise ServiceError("ConditionNotMet")
        return entry

    def _delete(self, request: Request, address: Address, path: str) -> Response:
        require_query(request, _NOTHING)
        address.require_writable("DELETE")
        conditions = read_conditions(request.headers)
        with self._store.holding(path):
            entry = self._existing(path, conditions)
            if entry.is_directory:
                remove_empty_folder(path, "DirectoryIsNotEmpty")
            else:
                os.unlink(path)
        return Response(202, {"x-ms-delete-type-permanent": "true"})

    # listing

    async def _list(self, request: Request, address: Address) -> Response:
        query = request.query
        require_query(request, _LIST_QUERY)
        if query.get("restype") != "container" or address.item is not None:
            raise ServiceError("InvalidQueryParameterValue")
        delimiter, prefix = query.get("delimiter", ""), query.get("prefix", "")
        if delimiter not in ("", "/") or query.get("include", "") not in _INCLUDABLE:
            raise ServiceError("InvalidQueryParameterValue")
        limit = min(whole_number(request, "maxresults"), MAX_LISTED) if "maxresults" in query else MAX_LISTED
        if limit == 0:
            raise ServiceError("OutOfRangeQueryParameterValue")
        folder, separator, start = prefix.rpartition("/")
        if not separator and not delimiter:
            raise ServiceError("BadRequest", "Either WorkspaceId or ArtifactId are missing in the request")
        label = decode_path(request.path)[0]
        begin = query.get("startFrom", "")
        scope: list[object] = ["blob", address.canonical, prefix, delimiter, begin]
        after = read_continuation(query["marker"], scope) if query.get("marker") else ()
        if separator:
            listed_in = self._book.resolve_segments([label, *folder.split("/")])
            by_name = label == address.workspace.name
            found = await asyncio.to_thread(
                self._page, listed_in, start, after, limit, recursive=not delimiter, first=begin[len(folder) + 1 :]
            )
            if begin and (by_name or not begin.startswith(f"{folder}/")):
                found = []
        else:
            found = self._items(address, label, start)
        marker = continuation(found[limit - 1].path, scope) if len(found) > limit else ""
        shown = "".join(
            _listed_xml(
                f"{folder}{separator}{listed.path}",
                listed.entry,
                as_prefix=bool(delimiter) and listed.entry.is_directory,
                with_metadata=query.get("include") == "metadata",
            )
            for listed in found[:limit]
        )
        body = (
            f'\ufeff<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName={quoteattr(label)}>'
            f"<Prefix>{escape(prefix)}</Prefix><MaxResults>{limit}</MaxResults>"
            + (f"<Delimiter>{delimiter}</Delimiter>" if delimiter else "")
            + f"<Blobs>{shown}</Blobs><NextMarker>{marker}</NextMarker></EnumerationResults>"
        )
        return Response(200, {"Content-Type": "application/xml"}, body.encode("utf-8", "surrogateescape"))

    def _page(
        self, address: Address, start: str, after: tuple[str, ...], limit: int, *, recursive: bool, first: str
    ) -> list[Listed]:
        walk = self._lister.walk(self._store.path_of(address), recursive=recursive, after=after)
        wanted = (found for found in walk if found.path.startswith(start) and found.path.split("/") >= first.split("/"))
        return list(itertools.islice(wanted, limit + 1))

    def _items(self, address: Address, label: str, start: str) -> list[Listed]:
        listed = []
        for item in address.workspace.items:
            name = item.full_name if label == address.workspace.name else item.id
            entry = self._store.look(self._store.path_of(Address(address.workspace, item, name, ())))
            if entry is not None and name.startswith(start):
                listed.append(Listed(name, entry))
        return sorted(listed, key=lambda found: found.path)


def _metadata(request: Request) -> dict[str, str]:
    prefix = "x-ms-meta-"
    found = {name[len(prefix) :]: value for name, value in request.headers.items() if name.startswith(prefix)}
    if found.get("hdi_isfolder", "").lower() == "true":
        raise ServiceError("UnsupportedHeader")
    return found


def _block_id(text: str | None) -> str:
    if text is None:
        raise ServiceError("MissingRequiredQueryParameter")
    try:
        decoded = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not 0 < len(decoded) <= _BLOCK_ID_LIMIT_BYTES:
        raise ServiceError("InvalidBlockId")
    return text


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _listed_blocks(document: bytes) -> list[str]:
    try:
        found = _BLOCK_LIST.fullmatch(document.decode("utf-8"))
    except UnicodeDecodeError:
        found = None
    if found is None:
        raise ServiceError("InvalidXmlDocument")
    blocks = _BLOCK.findall(found["blocks"])
    if any(kind == "Committed" for kind, _ in blocks):
        raise ServiceError("InvalidBlockList")
    return [block_id for _, block_id in blocks]


def _changed(status: int, attributes: Attributes, headers: dict[str, str] | None = None) -> Response:
    return Response(status, {**version_headers(attributes), "x-ms-request-server-encrypted": "true", **(headers or {})})


def _name_xml(name: str) -> str:
    if _NOT_IN_XML.search(name):
        return f'<Name Encoded="true">{quote(name, errors="surrogateescape")}</Name>'
    return f"<Name>{escape(name)}</Name>"


def _listed_xml(name: str, entry: Entry, *, as_prefix: bool, with_metadata: bool) -> str:
    if as_prefix:
        return f"<BlobPrefix>{_name_xml(f'{name}/')}</BlobPrefix>"
    attributes = entry.attributes
    properties: dict[str, Any] = {
        "Creation-Time": http_time(attributes.created_ns / 1e9),
        "Last-Modified": http_time(attributes.modified_s),
        "Etag": attributes.etag,
        "ResourceType": "directory" if entry.is_directory else "file",
        "Content-Length": entry.size_bytes,
        "Content-Type": attributes.content_type,
        **attributes.headers,
        "Content-MD5": attributes.md5,
        "BlobType": "BlockBlob",
        "LeaseStatus": "unlocked",
        "LeaseState": "available",
        "ServerEncrypted": "true",
    }
    shown = "".join(f"<{key}>{escape(str(value))}</{key}>" for key, value in properties.items())
    metadata = ""
    if with_metadata:
        pairs = dict(attributes.metadata)
        if entry.is_directory:
            pairs["hdi_isfolder"] = "true"
        metadata = "<Metadata>" + "".join(f"<{k}>{escape(v)}</{k}>" for k, v in pairs.items()) + "</Metadata>"
    return f"<Blob>{_name_xml(name)}<Properties>{shown}</Properties>{metadata}</Blob>"
