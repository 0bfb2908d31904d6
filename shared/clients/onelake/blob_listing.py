"""Pages of List Blobs of the lake: beside what a DFS listing shows, the MD5 that is stored with each file.

Source: List Blobs of the Blob service REST reference; what OneLake shows is in docs/protocols/onelake.md, section 6.
"""

from base64 import b64decode
from urllib.parse import unquote
from xml.etree import ElementTree

from shared.errors import ServiceUnavailable
from shared.ports import LakeFile

UNREADABLE = "listing_unreadable"


def parse_page(document: bytes, prefix: str) -> tuple[list[LakeFile], str | None]:
    """Files of a page by their paths below ``prefix``, and the marker of the next page; None at the end.

    Raises:
        ServiceUnavailable: code ``listing_unreadable``: no listing, or half of one.
    """
    if b"<!DOCTYPE" in document[:4096] or b"<!ENTITY" in document[:4096]:
        raise _unreadable("is no listing")
    try:
        root = ElementTree.fromstring(document)  # noqa: S314 - without a DOCTYPE no entity can be declared
    except ElementTree.ParseError:
        raise _unreadable("is not well-formed") from None
    blobs = root.find("Blobs")
    if root.tag != "EnumerationResults" or blobs is None:
        raise _unreadable("is no listing")
    try:
        files = [file for blob in blobs.iter("Blob") if (file := _file(blob, prefix)) is not None]
    except ValueError:
        raise _unreadable("names a size that is no number") from None
    return files, root.findtext("NextMarker") or None


def _unreadable(why: str) -> ServiceUnavailable:
    return ServiceUnavailable(f"the lake's listing {why}", code=UNREADABLE, subject="target")


def _file(blob: ElementTree.Element, prefix: str) -> LakeFile | None:
    told, named = blob.find("Properties"), blob.find("Name")
    if told is None or named is None or told.findtext("ResourceType") == "directory":
        return None
    if any(one.tag.lower() == "hdi_isfolder" for one in blob.iterfind("Metadata/*")):
        return None
    name = unquote(named.text or "") if named.get("Encoded") == "true" else named.text or ""
    path = name.removeprefix(prefix)
    if not path or path.endswith("/"):
        return None
    etag = (told.findtext("Etag") or "").strip('"')
    return LakeFile(path, int(told.findtext("Content-Length") or 0), etag, _hex(told.findtext("Content-MD5") or ""))


def _hex(md5: str) -> str:
    try:
        return b64decode(md5, validate=True).hex()
    except ValueError:
        return ""
