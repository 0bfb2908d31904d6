"""Pages of List Blobs, from XML to items.

Source: List Blobs of the Blob service REST reference. Parsed here rather than by the SDK, which spends about a second
of CPU on a page of 5,000.
"""

import json
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from shared.clients.blob.classify import ARCHIVED
from shared.errors import ServiceUnavailable
from shared.ports import SourceItem

_MISFIT = "is a blob with content whose name is the prefix itself, so it has no name of its own below it"


def parse_page(document: bytes, prefix: str) -> tuple[list[SourceItem], str | None]:
    """Items of a page and the marker of the next; None at the end.

    Left out: what marks a folder, and whatever is not the current version (neither is asked for).

    Raises:
        ServiceUnavailable: no listing, or half of one.
    """
    if b"<!DOCTYPE" in document[:4096] or b"<!ENTITY" in document[:4096]:
        raise ServiceUnavailable("the source account's listing is no listing", subject="source")
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - without a DOCTYPE no entity can be declared
    except ElementTree.ParseError:
        raise ServiceUnavailable("the source account's listing is not well-formed", subject="source") from None
    blobs = root.find("Blobs")
    if root.tag != "EnumerationResults" or blobs is None:
        raise ServiceUnavailable("the source account's listing is no listing", subject="source")
    items = [item for blob in blobs.iter("Blob") if (item := _item(blob, prefix)) is not None]
    return items, root.findtext("NextMarker") or None


def item_of_headers(headers: Mapping[str, str], path: str) -> SourceItem | None:
    """The item that an answer to HEAD or GET describes; None if it marks a folder."""
    size = int(headers.get("Content-Length", "0"))
    marker = headers.get("x-ms-meta-hdi_isfolder", "")
    if headers.get("x-ms-resource-type") == "directory" or _is_marker(path, size, marker):
        return None
    return _made(
        path,
        size,
        etag=headers.get("ETag", ""),
        md5=headers.get("Content-MD5", ""),
        modified=headers.get("Last-Modified", ""),
        content_type=headers.get("Content-Type", ""),
        blob_type=headers.get("x-ms-blob-type", ""),
        tier=headers.get("x-ms-access-tier", ""),
        rehydration=headers.get("x-ms-archive-status", ""),
        version_id=headers.get("x-ms-version-id", ""),
    )


def _item(blob: ElementTree.Element, prefix: str) -> SourceItem | None:
    told = blob.find("Properties")
    named = blob.find("Name")
    if told is None or named is None:
        return None
    if blob.find("Snapshot") is not None or blob.findtext("Deleted") == "true":
        return None
    if blob.find("VersionId") is not None and blob.findtext("IsCurrentVersion", "true") == "false":
        return None
    name = named.text or ""
    if named.get("Encoded") == "true":
        name = unquote(name)
    size = int(told.findtext("Content-Length") or "0")
    marker = next((one.text or "" for one in blob.iterfind("Metadata/*") if one.tag.lower() == "hdi_isfolder"), "")
    path = name.removeprefix(prefix)
    if told.findtext("ResourceType") == "directory" or _is_marker(path, size, marker):
        return None
    if not path:
        return SourceItem("/", size, "", ("unmappable_path", _MISFIT))
    return _made(
        path,
        size,
        etag=told.findtext("Etag", ""),
        md5=told.findtext("Content-MD5") or "",
        modified=told.findtext("Last-Modified", ""),
        content_type=told.findtext("Content-Type") or "",
        blob_type=told.findtext("BlobType", ""),
        tier=told.findtext("AccessTier", ""),
        rehydration=told.findtext("ArchiveStatus", ""),
        version_id=blob.findtext("VersionId", ""),
    )


def _is_marker(path: str, size: int, hdi_isfolder: str) -> bool:
    # Hadoop's marker by its metadata; other tools make an empty blob whose name ends in a slash, as no file's does.
    return size == 0 and (hdi_isfolder.lower() == "true" or path.endswith("/") or not path)


def _made(
    path: str,
    size: int,
    *,
    etag: str,
    md5: str,
    modified: str,
    content_type: str,
    blob_type: str,
    tier: str,
    rehydration: str,
    version_id: str,
) -> SourceItem:
    bare = etag.strip('"')
    problem = None
    if tier == "Archive":
        problem = ("archived", f"is being rehydrated ({rehydration}); start again when that is done"
                   if rehydration else ARCHIVED)  # fmt: skip
    facts: dict[str, str | int | None] = {
        "blob_etag": bare,
        "content_md5": md5 or None,
        "last_modified": _iso(modified),
        "content_type": content_type or None,
        "blob_type": blob_type or None,
        "access_tier": tier or None,
        "version_id": version_id or None,
    }
    return SourceItem(path, size, bare, problem, ref=write_ref(bare, size, promised_md5(md5, blob_type)), facts=facts)


def promised_md5(md5: str, blob_type: str) -> str:
    """The stored MD5 (Base64) where it is one of the content; empty where it may be stale.

    Put Page and Append Block change the content and leave the stored hash as it was.
    """
    return md5 if blob_type == "BlockBlob" else ""


def write_ref(etag: str, size_bytes: int, md5: str) -> str:
    return json.dumps({"e": etag, "s": size_bytes, "m": md5}, separators=(",", ":"))


def read_ref(ref: str) -> tuple[str, int, str]:
    """ETag, size and promised MD5 (Base64) of a ref; empty, 0 and empty of an empty one."""
    fields: dict[str, Any] = json.loads(ref) if ref else {}
    return str(fields.get("e", "")), int(fields.get("s", 0)), str(fields.get("m", ""))


def _iso(text: str) -> str | None:
    try:
        return parsedate_to_datetime(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except ValueError:
        return None
