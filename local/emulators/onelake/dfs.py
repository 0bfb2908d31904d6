# A Path object per call costs more than the call itself on these hot paths.
# ruff: noqa: PTH104, PTH106, PTH108, PTH110
"""The DFS dialect: create, append, flush, read, properties, list, rename, delete.

Shapes are recorded or specified (docs/protocols/onelake.md sections 3 to 5). Chosen where the page is silent:

* An append without bytes, or with conditional headers, is refused (InvalidHeaderValue, UnsupportedHeader).
* A flush may neither cut a block nor leave data behind it uncommitted, unless retainUncommittedData is true.
* A failed ``If-None-Match: *`` is 409 PathAlreadyExists on create and rename, 412 ConditionNotMet on flush.
* Creating a folder that exists keeps what it holds; a file and a folder never replace each other (PathConflict).
* A rename stays within its item; onto a folder that holds something it is PathAlreadyExists in both modes.
* Listing a file is 404 PathNotFound; reading a folder is 409 ResourceTypeMismatch.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import errno
import itertools
import json
import os
import shutil
from dataclasses import replace
from typing import Any

from local.emulators.onelake.addresses import Address, AddressBook, decode_path
from local.emulators.onelake.attributes import Attributes
from local.emulators.onelake.conditions import Conditions, read_conditions
from local.emulators.onelake.content import (
    SMALL_BODY_BYTES,
    Received,
    flag,
    http_time,
    properties_response,
    read_response,
    receive,
    require_empty_body,
    require_query,
    version_headers,
    whole_number,
    with_content_headers,
)
from local.emulators.onelake.errors import ServiceError
from local.emulators.onelake.listing import Listed, Lister, continuation, read_continuation
from local.emulators.onelake.store import Entry, Store, read_file
from local.emulators.wire import Request, Response

MAX_LISTED = 5000
_OWNER = "5f6e0000-0000-4000-8000-000000000001"
_COPIED_INLINE_BYTES = 8 * 1024 * 1024
# Windows counts 100 ns ticks from 1601.
_FILETIME_EPOCH_TICKS = 116_444_736_000_000_000

_CREATE_QUERY = frozenset({"resource"})
_RENAME_QUERY = frozenset({"mode", "continuation"})
_APPEND_QUERY = frozenset({"action", "position", "flush", "close"})
_FLUSH_QUERY = frozenset({"action", "position", "retainUncommittedData", "close"})
_SET_QUERY = frozenset({"action"})
_READ_QUERY: frozenset[str] = frozenset()
_HEAD_QUERY = frozenset({"action", "upn"})
_LIST_QUERY = frozenset(
    {"resource", "directory", "recursive", "continuation", "maxResults", "upn", "getShortcutMetadata"}
)
_DELETE_QUERY = frozenset({"recursive", "continuation", "paginated"})


def operation_of(request: Request) -> str:
    """Names the operation of a DFS request."""
    match request.method:
        case "PUT":
            return "rename" if "x-ms-rename-source" in request.headers else "create"
        case "PATCH":
            action = request.query.get("action")
            if action == "append":
                return "append_flush" if request.query.get("flush", "").lower() == "true" else "append"
            return "flush" if action == "flush" else "properties_set"
        case "GET":
            return "list" if "resource" in request.query else "read"
        case "HEAD":
            return "properties"
        case "DELETE":
            return "delete"
        case _:
            return "unknown"


def read_properties(text: str) -> dict[str, str]:
    """Decodes x-ms-properties: comma-separated ``name=base64``.

    Raises:
        ServiceError: a part cannot be read.
    """
    metadata: dict[str, str] = {}
    for pair in filter(None, text.split(",")):
        name, separator, value = pair.strip().partition("=")
        if not name:
            raise ServiceError("InvalidPropertyName")
        try:
            metadata[name] = base64.b64decode(value, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            raise ServiceError("InvalidHeaderValue") from None
        # Values come back as headers, where a line break would end the header.
        if not separator or not metadata[name].isprintable():
            raise ServiceError("InvalidHeaderValue")
    return metadata


class Dfs:
    """Carries DFS calls out on a store."""

    def __init__(self, store: Store, book: AddressBook) -> None:
        self._store = store
        self._book = book
        self._lister = Lister(store)

    async def handle(self, request: Request, operation: str, address: Address) -> Response:
        """Carries one call out.

        Raises:
            ServiceError: the service's refusal.
        """
        match operation:
            case "create":
                return self._create(request, address)
            case "append" | "append_flush":
                return await self._append(request, address)
            case "flush":
                return await self._flush(request, address)
            case "read":
                require_query(request, _READ_QUERY)
                return read_response(request, self._store, self._store.path_of(address), blob_dialect=False)
            case "properties":
                require_query(request, _HEAD_QUERY)
                if request.query.get("action", "getStatus") not in ("getStatus", "getAccessControl"):
                    raise ServiceError("InvalidQueryParameterValue")
                return properties_response(request, self._store, self._store.path_of(address), blob_dialect=False)
            case "properties_set":
                return self._set_properties(request, address)
            case "list":
                return await self._list(request, address)
            case "rename":
                return self._rename(request, address)
            case "delete":
                return await self._delete(request, address)
            case _:
                raise ServiceError("UnsupportedHttpVerb")

    # create

    def _create(self, request: Request, address: Address) -> Response:
        require_query(request, _CREATE_QUERY)
        resource = request.query.get("resource")
        if resource is None:
            raise ServiceError("MissingRequiredQueryParameter")
        if resource not in ("file", "directory"):
            raise ServiceError("InvalidQueryParameterValue")
        require_empty_body(request)
        conditions = read_conditions(request.headers)
        store, path = self._store, self._store.path_of(address)
        if len(address.segments) == 1 and resource == "directory" and conditions.must_be_absent and store.look(path):
            raise ServiceError("PathAlreadyExists")
        address.require_writable("PUT")
        attributes = with_content_headers(store.fresh(), request.headers, "x-ms-")
        if "x-ms-properties" in request.headers:
            attributes.metadata = read_properties(request.headers["x-ms-properties"])
        with store.holding(path):
            entry = store.look(path)
            _check_new(conditions, entry)
            if entry is not None and entry.is_directory is not (resource == "directory"):
                raise ServiceError("PathConflict")
            if resource == "directory":
                if "content-type" in request.headers and "x-ms-content-type" not in request.headers:
                    attributes.content_type = request.headers["content-type"]
                if entry is None:
                    store.make_parents(path)
                    store.make_directory(path)
                else:
                    attributes.created_ns = entry.attributes.created_ns
                store.attributes.write_path(path, attributes)
            elif entry is None:
                store.create_new(path, attributes)
            else:
                store.create_empty_over(path, attributes)
        return _changed(201, attributes)

    # append and flush

    def _appendable(self, path: str) -> Entry:
        entry = self._store.look(path)
        if entry is None:
            raise ServiceError("PathNotFound")
        if entry.is_directory:
            raise ServiceError("ResourceTypeMismatch")
        if entry.attributes.by_blob:
            raise ServiceError("InvalidFlushOperation")
        return entry

    async def _append(self, request: Request, address: Address) -> Response:
        require_query(request, _APPEND_QUERY)
        position = whole_number(request, "position")
        commits = flag(request, "flush")
        flag(request, "close")
        address.require_writable("PATCH")
        if read_conditions(request.headers) != Conditions():
            raise ServiceError("UnsupportedHeader")
        if request.body.declared and not request.body.length:
            raise ServiceError("InvalidHeaderValue")
        path = self._store.path_of(address)
        self._appendable(path)
        received = await receive(request, self._store)
        headers = {"Content-MD5": received.md5} if received.md5 else {}
        try:
            with self._store.holding(path):
                entry = self._appendable(path)
                if commits and position == 0 and entry.size_bytes == 0:
                    attributes = with_content_headers(self._next_state(entry), request.headers, "x-ms-")
                    if received.data is not None:
                        self._store.fill(path, entry, received.data, attributes)
                    else:
                        self._store.commit_part(*received.into_part(self._store), path, attributes)
                    return _changed(202, attributes, headers)
                self._stage(entry, position, received)
        finally:
            received.discard()
        if not commits:
            return Response(202, {**headers, "x-ms-request-server-encrypted": "true"})
        attributes = await self._commit(path, position + received.length, request, Conditions(), retains=False)
        return _changed(202, attributes, headers)

    def _stage(self, entry: Entry, position: int, received: Received) -> None:
        descriptor, part = received.into_part(self._store)
        os.close(descriptor)
        os.rename(part, self._store.staged(entry.attributes.generation, position))

    def _next_state(self, entry: Entry, *, keeps_generation: bool = False) -> Attributes:
        fresh = self._store.fresh()
        generation = entry.attributes.generation if keeps_generation else fresh.generation
        return replace(entry.attributes, modified_ns=fresh.modified_ns, generation=generation)

    async def _flush(self, request: Request, address: Address) -> Response:
        require_query(request, _FLUSH_QUERY)
        require_empty_body(request)
        position = whole_number(request, "position")
        retains = flag(request, "retainUncommittedData")
        flag(request, "close")
        conditions = read_conditions(request.headers)
        address.require_writable("PATCH")
        if "x-ms-properties" in request.headers:
            raise ServiceError("UnsupportedHeader")
        attributes = await self._commit(self._store.path_of(address), position, request, conditions, retains=retains)
        return _changed(200, attributes)

    async def _commit(
        self, path: str, length: int, request: Request, conditions: Conditions, *, retains: bool
    ) -> Attributes:
        """Makes the staged blocks up to ``length`` part of the file."""
        store = self._store
        assembled: tuple[int, str] | None = None
        assembled_for = ""
        while True:
            try:
                with store.holding(path):
                    entry = self._appendable(path)
                    if conditions.failure(entry.etag, entry.attributes.modified_s):
                        raise ServiceError("ConditionNotMet")
                    blocks = self._blocks_to_commit(entry, length, retains=retains)
                    attributes = with_content_headers(
                        self._next_state(entry, keeps_generation=retains), request.headers, "x-ms-"
                    )
                    if not blocks:
                        store.rewrite_attributes(path, entry, attributes)
                        return attributes
                    if entry.size_bytes == 0 and length <= SMALL_BODY_BYTES:
                        store.fill(path, entry, b"".join(map(read_file, blocks)), attributes)
                        store.spare(blocks)
                        return attributes
                    if len(blocks) == 1 and entry.size_bytes == 0:
                        store.commit_block(blocks[0], path, attributes)
                        return attributes
                    sources = [path, *blocks] if entry.size_bytes else blocks
                    if assembled is None and length <= _COPIED_INLINE_BYTES:
                        assembled, assembled_for = store.assemble(sources), entry.etag
                    if assembled is not None and assembled_for == entry.etag:
                        ready, assembled = assembled, None
                        store.commit_part(*ready, path, attributes)
                        store.spare(blocks)
                        return attributes
            finally:
                # Left over when a check failed, or when the file changed while a long copy was made.
                if assembled is not None:
                    os.close(assembled[0])
                    os.unlink(assembled[1])
                    assembled = None
            assembled, assembled_for = await asyncio.to_thread(store.assemble, sources), entry.etag

    def _blocks_to_commit(self, entry: Entry, length: int, *, retains: bool) -> list[str]:
        generation = entry.attributes.generation
        blocks = self._store.chain(generation, entry.size_bytes, length) if length >= entry.size_bytes else None
        if blocks is None:
            raise ServiceError("InvalidFlushPosition")
        if not retains and os.path.exists(self._store.staged(generation, length)):
            raise ServiceError("InvalidFlushPosition")
        return blocks

    # properties

    def _set_properties(self, request: Request, address: Address) -> Response:
        action = request.query.get("action")
        if action is None:
            raise ServiceError("MissingRequiredQueryParameter")
        if action != "setProperties":
            # setAccessControl and setAccessControlRecursive among them: "Rejected" on the parity page.
            raise ServiceError("UnsupportedQueryParameter")
        require_query(request, _SET_QUERY)
        require_empty_body(request)
        address.require_writable("PATCH")
        conditions = read_conditions(request.headers)
        path = self._store.path_of(address)
        with self._store.holding(path):
            entry = self._store.look(path)
            if entry is None:
                raise ServiceError("PathNotFound")
            if conditions.failure(entry.etag, entry.attributes.modified_s):
                raise ServiceError("ConditionNotMet")
            attributes = with_content_headers(self._next_state(entry, keeps_generation=True), request.headers, "x-ms-")
            if "x-ms-properties" in request.headers:
                attributes.metadata = read_properties(request.headers["x-ms-properties"])
            self._store.rewrite_attributes(path, entry, attributes)
        return _changed(200, attributes)

    # listing

    async def _list(self, request: Request, address: Address) -> Response:
        require_query(request, _LIST_QUERY)
        if request.query["resource"] != "filesystem":
            raise ServiceError("InvalidQueryParameterValue")
        if "recursive" not in request.query:
            raise ServiceError("MissingRequiredQueryParameter")
        recursive = flag(request, "recursive")
        limit = MAX_LISTED
        if "maxResults" in request.query:
            limit = min(whole_number(request, "maxResults"), MAX_LISTED)
            if limit == 0:
                raise ServiceError("OutOfRangeQueryParameterValue")
        directory = request.query.get("directory", "").strip("/")
        if directory:
            if address.item is not None:
                raise ServiceError("InvalidQueryParameterValue")
            address = self._book.resolve_segments([decode_path(request.path)[0], *directory.split("/")])
        scope: list[object] = [address.canonical, recursive]
        token = request.query.get("continuation", "")
        after = read_continuation(token, scope) if token else ()
        if address.item is None:
            if recursive:
                raise ServiceError("BadRequest", "Either WorkspaceId or ArtifactId are missing in the request")
            paths, next_token = self._listed_items(request, address), ""
        else:
            prefix = "/".join((address.item_label, *address.segments))
            entry = self._store.look(self._store.path_of(address))
            if entry is None or not entry.is_directory:
                raise ServiceError("PathNotFound")
            listed = await asyncio.to_thread(self._page, address, after, limit, recursive=recursive)
            next_token = continuation(listed[limit - 1].path, scope) if len(listed) > limit else ""
            paths = [_listed(f"{prefix}/{found.path}", found.entry) for found in listed[:limit]]
        body = json.dumps(
            {"paths": paths, "ContinuationToken": next_token or None}, ensure_ascii=False, separators=(",", ":")
        )
        headers = {"Content-Type": "application/json; charset=utf-8"}
        if next_token:
            headers["x-ms-continuation"] = next_token
        return Response(200, headers, body.encode("utf-8", "surrogateescape"))

    def _page(self, address: Address, after: tuple[str, ...], limit: int, *, recursive: bool) -> list[Listed]:
        walk = self._lister.walk(self._store.path_of(address), recursive=recursive, after=after)
        return list(itertools.islice(walk, limit + 1))

    def _listed_items(self, request: Request, address: Address) -> list[dict[str, Any]]:
        by_name = decode_path(request.path)[0] == address.workspace.name
        listed = []
        for item in address.workspace.items:
            label = item.full_name if by_name else item.id
            entry = self._store.look(self._store.path_of(Address(address.workspace, item, label, ())))
            if entry is not None:
                listed.append(_listed(label, entry))
        return sorted(listed, key=lambda document: str(document["name"]))

    # rename and delete

    def _source(self, request: Request, destination: Address) -> Address:
        header = request.headers["x-ms-rename-source"]
        if not header.startswith("/") or "?" in header:
            raise ServiceError("InvalidSourceUri")
        source = self._book.resolve(header)
        source.require_writable("PUT")
        if source.workspace is not destination.workspace or source.item is not destination.item:
            raise ServiceError("InvalidSourceUri")
        return source

    def _rename(self, request: Request, address: Address) -> Response:
        require_query(request, _RENAME_QUERY)
        require_empty_body(request)
        if request.query.get("mode", "posix") not in ("posix", "legacy"):
            raise ServiceError("InvalidQueryParameterValue")
        if "x-ms-properties" in request.headers:
            raise ServiceError("UnsupportedHeader")
        conditions = read_conditions(request.headers)
        source_conditions = read_conditions(request.headers, "x-ms-source-")
        address.require_writable("PUT")
        source_address = self._source(request, address)
        source, destination = self._store.path_of(source_address), self._store.path_of(address)
        with self._store.holding(source, destination):
            moved = self._store.look(source)
            if moved is None:
                raise ServiceError("SourcePathNotFound")
            if source_conditions.failure(moved.etag, moved.attributes.modified_s):
                raise ServiceError("SourceConditionNotMet")
            replaced = self._store.look(destination)
            _check_new(conditions, replaced)
            if moved.is_directory and f"{destination}/".startswith(f"{source}/"):
                raise ServiceError("InvalidRenameSourcePath")
            self._move(source, destination, moved, replaced)
        return _changed(201, moved.attributes)

    def _move(self, source: str, destination: str, moved: Entry, replaced: Entry | None) -> None:
        if replaced is None:
            parent = self._store.look(destination.rpartition("/")[0])
            if parent is None:
                raise ServiceError("RenameDestinationParentPathNotFound")
            if not parent.is_directory:
                raise ServiceError("PathConflict")
        elif replaced.is_directory is not moved.is_directory:
            raise ServiceError("InvalidSourceOrDestinationResourceType")
        try:
            os.rename(source, destination)
        except FileNotFoundError:
            raise ServiceError("SourcePathNotFound") from None
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise ServiceError("PathAlreadyExists") from None
            raise

    async def _delete(self, request: Request, address: Address) -> Response:
        require_query(request, _DELETE_QUERY)
        recursive = flag(request, "recursive")
        flag(request, "paginated")
        conditions = read_conditions(request.headers)
        address.require_writable("DELETE")
        path = self._store.path_of(address)
        aside = None
        with self._store.holding(path):
            entry = self._store.look(path)
            if entry is None:
                raise ServiceError("PathNotFound")
            if conditions.failure(entry.etag, entry.attributes.modified_s):
                raise ServiceError("ConditionNotMet")
            if not entry.is_directory:
                os.unlink(path)
            elif recursive:
                aside = self._store.set_aside(path)
            else:
                remove_empty_folder(path, "DirectoryNotEmpty")
        if aside is not None:
            await asyncio.to_thread(shutil.rmtree, aside)
        return Response(200)


def remove_empty_folder(path: str, error_code: str) -> None:
    """Removes a folder, or refuses with the code if it holds anything."""
    try:
        os.rmdir(path)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise ServiceError(error_code) from None
        raise


def _check_new(conditions: Conditions, entry: Entry | None) -> None:
    if entry is not None and conditions.must_be_absent:
        raise ServiceError("PathAlreadyExists")
    if conditions.failure(entry.etag if entry else None, entry.attributes.modified_s if entry else 0):
        raise ServiceError("ConditionNotMet")


def _changed(status: int, attributes: Attributes, headers: dict[str, str] | None = None) -> Response:
    return Response(status, {**version_headers(attributes), "x-ms-request-server-encrypted": "true", **(headers or {})})


def _listed(name: str, entry: Entry) -> dict[str, Any]:
    attributes = entry.attributes
    document: dict[str, Any] = {"name": name}
    if entry.is_directory:
        document["isDirectory"] = "true"
    document.update(
        creationTime=str(attributes.created_ns // 100 + _FILETIME_EPOCH_TICKS),
        lastModified=http_time(attributes.modified_s),
        etag=attributes.etag,
        contentLength=str(entry.size_bytes),
        owner=_OWNER,
        group=_OWNER,
        permissions="rwxr-x---" if entry.is_directory else "rw-r-----",
        expiryTime="0",
    )
    return document
