"""Put Blob From URL and Put Block From URL: from one place of the lake to another, as the service reads it itself."""

from __future__ import annotations

import base64
import hashlib

import pytest

from local.emulators.launch import RunningEmulators
from tests.emulators.wire_client import Answer, WireClient, quoted

BLOB = "onelake_blob_url"


@pytest.fixture
def source(emulators: RunningEmulators, wire: WireClient, folder: str) -> dict[str, str]:
    """A file of the lake, and the headers with which it is copied."""
    wire.send(
        "PUT", f"/Migration/{quoted(folder)}/source",
        {"x-ms-blob-type": "BlockBlob", "x-ms-blob-content-type": "text/plain"}, b"0123456789", url_key=BLOB,
    )  # fmt: skip
    return {
        "x-ms-blob-type": "BlockBlob",
        "x-ms-copy-source": f"{emulators.addresses[BLOB]}/Migration/{quoted(folder)}/source",
        "x-ms-copy-source-authorization": f"Bearer {wire.token()}",
    }


def put(wire: WireClient, folder: str, headers: dict[str, str], query: str = "") -> Answer:
    return wire.send("PUT", f"/Migration/{quoted(folder)}/x{query}", headers, b"", url_key=BLOB)


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


def test_a_copy(wire: WireClient, folder: str, source: dict[str, str]) -> None:
    answer = put(wire, folder, {**source, "If-None-Match": "*", "x-ms-source-content-md5": md5(b"0123456789")})
    assert (answer.status, answer.headers["content-md5"]) == (201, md5(b"0123456789"))
    read = wire.send("GET", f"/Migration/{quoted(folder)}/x", url_key=BLOB)
    assert (read.body, read.headers["content-type"]) == (b"0123456789", "text/plain")
    assert read.headers["etag"] == answer.headers["etag"]
    put(wire, folder, {**source, "x-ms-blob-content-type": "text/html"})
    assert wire.send("HEAD", f"/Migration/{quoted(folder)}/x").headers["content-type"] == "text/html"
    put(wire, folder, {**source, "x-ms-copy-source-blob-properties": "false"})
    assert wire.send("HEAD", f"/Migration/{quoted(folder)}/x").headers["content-type"] == "application/octet-stream"


def test_blocks(wire: WireClient, folder: str, source: dict[str, str]) -> None:
    for block, wanted in (("YQ==", "bytes=7-9"), ("Yg==", "bytes=0-1")):
        answer = put(wire, folder, {**source, "x-ms-source-range": wanted}, f"?comp=block&blockid={quoted(block)}")
        assert answer.status == 201
    blocks = b"<BlockList><Latest>YQ==</Latest><Latest>Yg==</Latest></BlockList>"
    target = f"/Migration/{quoted(folder)}/x"
    assert wire.send("PUT", f"{target}?comp=blocklist", body=blocks, url_key=BLOB).status == 201
    assert wire.send("GET", target, url_key=BLOB).body == b"78901"


def test_refusals(emulators: RunningEmulators, wire: WireClient, folder: str, source: dict[str, str]) -> None:
    wrong_scope = f"Bearer {wire.token(scope='https://api.fabric.microsoft.com/.default')}"
    missing = f"{emulators.addresses[BLOB]}/Migration/{quoted(folder)}/nothing"
    cases = [
        ({"x-ms-copy-source-authorization": "Bearer x"}, 401, "CannotVerifyCopySource"),
        ({"x-ms-copy-source-authorization": wrong_scope}, 401, "CannotVerifyCopySource"),
        ({"x-ms-copy-source": missing}, 404, "CannotVerifyCopySource"),
        ({"x-ms-copy-source": "https://acct.blob.core.windows.net/c/b"}, 403, "CannotVerifyCopySource"),
        ({"x-ms-copy-source": "https://127.0.0.1:1/c/b"}, 500, "CannotVerifyCopySource"),
        ({"x-ms-copy-source": "file:///etc/passwd"}, 400, "InvalidHeaderValue"),
        ({"x-ms-source-if-match": '"0x1"'}, 412, "SourceConditionNotMet"),
        ({"x-ms-source-content-md5": md5(b"other")}, 400, "Md5Mismatch"),
        ({"x-ms-source-range": "bytes=99-100"}, 416, "CannotVerifyCopySource"),
        ({"If-Match": '"0x1"'}, 412, "ConditionNotMet"),
    ]
    for headers, status, code in cases:
        answer = put(wire, folder, {**source, **headers})
        assert (answer.status, answer.code) == (status, code), headers
    answer = put(wire, folder, {**source, "x-ms-copy-source": missing})
    assert answer.headers["x-ms-copy-source-status-code"] == "404"
    assert answer.headers["x-ms-copy-source-error-code"] == "BlobNotFound"
    answer = wire.send("PUT", f"/Migration/{quoted(folder)}/x", source, b"body", url_key=BLOB)
    assert answer.code == "ContentLengthMustBeZero"
    answer = wire.send("PUT", f"/Migration/{quoted(folder)}/x?comp=metadata", source, b"", url_key=BLOB)
    assert answer.code == "UnsupportedHeader"
    answer = wire.send("HEAD", f"/Migration/{quoted(folder)}/x", url_key=BLOB)
    assert answer.status == 404
    put(wire, folder, source)
    assert put(wire, folder, {**source, "If-None-Match": "*"}).code == "BlobAlreadyExists"


def test_a_range_past_the_end_of_a_block_is_refused(wire: WireClient, folder: str, source: dict[str, str]) -> None:
    answer = put(wire, folder, {**source, "x-ms-source-range": "bytes=0-"}, "?comp=block&blockid=YQ==")
    assert answer.code == "InvalidHeaderValue"


def test_no_secret_in_the_journal(
    emulators: RunningEmulators, wire: WireClient, folder: str, source: dict[str, str]
) -> None:
    put(wire, folder, {**source, "x-ms-copy-source": f"{source['x-ms-copy-source']}?sig=SECRET"})
    effect = next(one for one in reversed(emulators.journal()) if one["path"].endswith("/x"))
    assert effect["copy_source"] == source["x-ms-copy-source"]
    assert "SECRET" not in (emulators.root / "journal.jsonl").read_text()
