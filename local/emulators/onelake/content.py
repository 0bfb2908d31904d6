# A Path object per call costs more than the call itself on these hot paths.
# ruff: noqa: PTH108
"""What both dialects do with bytes and properties: take a body in, give a range out, describe an entry."""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import formatdate

from local.emulators.onelake.attributes import DEFAULT_CONTENT_TYPE, Attributes
from local.emulators.onelake.conditions import read_conditions
from local.emulators.onelake.errors import ServiceError
from local.emulators.onelake.store import Entry, Store, write_all
from local.emulators.wire import CHUNK_BYTES, FileSlice, Request, Response

SMALL_BODY_BYTES = 1024 * 1024
MAX_APPEND_BYTES = 4000 * 1024 * 1024
_READ_AT_ONCE_BYTES = 64 * 1024
_RANGE_MD5_LIMIT_BYTES = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_KEPT_HEADERS = ("Cache-Control", "Content-Disposition", "Content-Encoding", "Content-Language")


def require_query(request: Request, allowed: frozenset[str]) -> None:
    """Refuses query parameters that the operation does not have."""
    for name in request.query:
        if name not in allowed and name != "timeout":
            raise ServiceError("UnsupportedQueryParameter")


def require_empty_body(request: Request) -> None:
    """Refuses a call whose Content-Length is absent or not zero."""
    if not request.body.declared or request.body.length:
        raise ServiceError("ContentLengthMustBeZero")


def flag(request: Request, name: str) -> bool:
    """Reads a boolean query parameter; absent is false."""
    value = request.query.get(name, "false").lower()
    if value not in ("true", "false"):
        raise ServiceError("InvalidQueryParameterValue")
    return value == "true"


def whole_number(request: Request, name: str) -> int:
    """Reads a required, non-negative query parameter."""
    text = request.query.get(name)
    if text is None:
        raise ServiceError("MissingRequiredQueryParameter")
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise ServiceError("InvalidQueryParameterValue")
    if digits != text or len(digits) > 18:
        raise ServiceError("OutOfRangeQueryParameterValue")
    return int(text)


def read_md5(headers: Mapping[str, str], name: str, error_code: str) -> str:
    """Returns a base64 MD5 from a header, "" if absent."""
    text = headers.get(name, "")
    if not text:
        return ""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != hashlib.md5(usedforsecurity=False).digest_size:
        raise ServiceError(error_code)
    return text


def with_content_headers(attributes: Attributes, headers: Mapping[str, str], prefix: str) -> Attributes:
    """Returns the attributes with the stored properties a request names (``x-ms-`` or ``x-ms-blob-`` headers)."""
    content_type = headers.get(f"{prefix}content-type")
    if content_type is not None:
        attributes = replace(attributes, content_type=content_type or DEFAULT_CONTENT_TYPE)
    if f"{prefix}content-md5" in headers:
        attributes = replace(attributes, md5=read_md5(headers, f"{prefix}content-md5", "InvalidHeaderValue"))
    kept = {name: headers[prefix + name.lower()] for name in _KEPT_HEADERS if prefix + name.lower() in headers}
    if kept:
        merged = {**attributes.headers, **kept}
        attributes = replace(attributes, headers={name: value for name, value in merged.items() if value})
    return attributes


@functools.lru_cache(maxsize=1024)
def _http_second(second: int) -> str:
    return formatdate(second, usegmt=True)


def http_time(modified_s: float) -> str:
    """Formats a time as HTTP does."""
    return _http_second(int(modified_s))


def version_headers(attributes: Attributes) -> dict[str, str]:
    """Returns ETag and Last-Modified."""
    return {"ETag": f'"{attributes.etag}"', "Last-Modified": http_time(attributes.modified_s)}


@dataclass(slots=True)
class Received:
    """A request body that was taken in: in memory if small, else in a staged file."""

    length: int
    md5: str
    data: bytes | None
    descriptor: int
    part: str

    def into_part(self, store: Store) -> tuple[int, str]:
        """Returns an open staged file that holds the body."""
        if self.data is not None:
            self.descriptor, self.part = store.open_part()
            write_all(self.descriptor, self.data)
            self.data = None
        descriptor, self.descriptor = self.descriptor, -1
        return descriptor, self.part

    def discard(self) -> None:
        """Drops a staged file that nobody took over."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            os.unlink(self.part)
            self.descriptor = -1


async def receive(request: Request, store: Store, *, wants_md5: bool = False) -> Received:
    """Takes the body in and checks the transactional MD5.

    Raises:
        ServiceError: no Content-Length, too large, or another MD5 than Content-MD5 says.
    """
    body = request.body
    if not body.declared:
        raise ServiceError("MissingContentLengthHeader")
    if body.length > MAX_APPEND_BYTES:
        raise ServiceError("RequestBodyTooLarge")
    expected = read_md5(request.headers, "content-md5", "InvalidHeaderValue")
    digest = hashlib.md5(usedforsecurity=False) if expected or wants_md5 else None
    received = Received(body.length, "", None, -1, "")
    if body.length <= SMALL_BODY_BYTES:
        received.data = await body.read()
        if digest is not None:
            digest.update(received.data)
    else:
        received.descriptor, received.part = store.open_part()
        try:
            async for chunk in body.chunks():
                write_all(received.descriptor, chunk)
                if digest is not None:
                    digest.update(chunk)
        except BaseException:
            received.discard()
            raise
    if digest is not None:
        received.md5 = base64.b64encode(digest.digest()).decode()
        if expected and received.md5 != expected:
            received.discard()
            raise ServiceError("Md5Mismatch")
    return received


def describe(entry: Entry, *, blob_dialect: bool) -> dict[str, str]:
    """Returns the headers that describe an entry, without its length."""
    attributes = entry.attributes
    headers = {
        "Content-Type": attributes.content_type,
        **version_headers(attributes),
        **attributes.headers,
        "Accept-Ranges": "bytes",
        "x-ms-resource-type": "directory" if entry.is_directory else "file",
        "x-ms-owner": "$superuser",
        "x-ms-group": "$superuser",
        "x-ms-permissions": "---------",
        "x-ms-server-encrypted": "true",
    }
    if blob_dialect:
        headers["x-ms-blob-type"] = "BlockBlob"
        headers["x-ms-creation-time"] = http_time(attributes.created_ns / 1e9)
        headers["x-ms-lease-status"] = "unlocked"
        headers["x-ms-lease-state"] = "available"
        if entry.is_directory:
            headers["x-ms-meta-hdi_isfolder"] = "true"
        for name, value in attributes.metadata.items():
            headers[f"x-ms-meta-{name}"] = value
    elif attributes.metadata:
        headers["x-ms-properties"] = ",".join(
            f"{name}={base64.b64encode(value.encode()).decode()}" for name, value in attributes.metadata.items()
        )
    return headers


def check_read_conditions(request: Request, entry: Entry) -> bool:
    """Judges conditions of a read; returns whether the answer is 304 Not Modified.

    Raises:
        ServiceError: ConditionNotMet for If-Match and If-Unmodified-Since.
    """
    conditions = read_conditions(request.headers)
    if not conditions.failure(entry.etag, entry.attributes.modified_s):
        return False
    if conditions.none_match is not None or conditions.modified_since_s is not None:
        return True
    raise ServiceError("ConditionNotMet")


def not_modified(entry: Entry) -> Response:
    """Returns the 304 for a read whose condition says the caller is up to date."""
    headers = {**version_headers(entry.attributes), "x-ms-error-code": "ConditionNotMet"}
    return Response(304, headers, error_code="ConditionNotMet")


def properties_response(request: Request, store: Store, path: str, *, blob_dialect: bool) -> Response:
    """Answers HEAD. What is missing is BlobNotFound in both dialects, as recorded."""
    entry = store.look(path)
    if entry is None:
        raise ServiceError("BlobNotFound")
    if check_read_conditions(request, entry):
        return not_modified(entry)
    headers = describe(entry, blob_dialect=blob_dialect)
    headers["Content-Length"] = str(entry.size_bytes)
    if entry.attributes.md5:
        headers["Content-MD5"] = entry.attributes.md5
    return Response(200, headers)


def _wanted_range(request: Request, size_bytes: int) -> tuple[int, int] | None:
    text = request.headers.get("x-ms-range") or request.headers.get("range")
    if not text:
        return None
    found = _RANGE.fullmatch(text.strip())
    if found is None or (found[2] and int(found[2]) < int(found[1])):
        raise ServiceError("InvalidHeaderValue")
    start = int(found[1])
    if start >= size_bytes:
        raise ServiceError("InvalidRange", headers={"Content-Range": f"bytes */{size_bytes}"})
    return start, min(int(found[2]) if found[2] else size_bytes - 1, size_bytes - 1)


def read_response(request: Request, store: Store, path: str, *, blob_dialect: bool) -> Response:
    """Answers GET of a file, whole or one range (``bytes=from-`` or ``bytes=from-to``; others are refused)."""
    opened = store.open(path)
    if opened is None:
        raise ServiceError("BlobNotFound" if blob_dialect else "PathNotFound")
    descriptor, entry = opened
    handed_over = False
    try:
        if entry.is_directory:
            raise ServiceError("ResourceTypeMismatch")
        if check_read_conditions(request, entry):
            return not_modified(entry)
        headers = describe(entry, blob_dialect=blob_dialect)
        wanted = _wanted_range(request, entry.size_bytes)
        wants_md5 = request.headers.get("x-ms-range-get-content-md5", "").lower() == "true"
        offset, count = 0, entry.size_bytes
        if wanted is not None:
            offset, count = wanted[0], wanted[1] - wanted[0] + 1
            headers["Content-Range"] = f"bytes {wanted[0]}-{wanted[1]}/{entry.size_bytes}"
            if entry.attributes.md5:
                headers["x-ms-blob-content-md5"] = entry.attributes.md5
        elif entry.attributes.md5:
            headers["Content-MD5"] = entry.attributes.md5
        if wants_md5:
            if wanted is None:
                raise ServiceError("InvalidHeaderValue")
            if count > _RANGE_MD5_LIMIT_BYTES:
                raise ServiceError("OutOfRangeInput")
        response = Response(200 if wanted is None else 206, headers)
        if wants_md5 or count <= _READ_AT_ONCE_BYTES:
            response.body = _read_exactly(descriptor, offset, count)
            if wants_md5:
                digest = hashlib.md5(response.body, usedforsecurity=False).digest()
                headers["Content-MD5"] = base64.b64encode(digest).decode()
        else:
            response.body = FileSlice(os.fdopen(descriptor, "rb", buffering=CHUNK_BYTES), offset, count)
            handed_over = True
        return response
    finally:
        if not handed_over:
            os.close(descriptor)


def _read_exactly(descriptor: int, offset: int, count: int) -> bytes:
    parts = []
    while count:
        data = os.pread(descriptor, count, offset)
        if not data:
            break
        parts.append(data)
        offset, count = offset + len(data), count - len(data)
    return parts[0] if len(parts) == 1 else b"".join(parts)
