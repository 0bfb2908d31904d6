"""Refusals: status, code and body for each way a call can be wrong."""

from __future__ import annotations

import base64
import hashlib
import re
from email.utils import formatdate

import pytest

from local.emulators.launch import RunningEmulators
from tests.emulators.wire_client import FABRIC, WireClient, quoted

FILES = "/Migration/Landing.Lakehouse/Files"
WORKSPACE = "a1b2c3d4-0001-4000-8000-00000000000a"
LAKEHOUSE = "a1b2c3d4-0001-4000-8000-000000000001"


def md5(content: bytes) -> str:
    return base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()


@pytest.mark.parametrize(
    ("method", "target", "headers", "status", "code"),
    [
        ("PUT", f"{FILES}/x", {}, 400, "MissingRequiredQueryParameter"),
        ("PUT", f"{FILES}/x?resource=link", {}, 400, "InvalidQueryParameterValue"),
        ("PUT", f"{FILES}/x?resource=file&colour=red", {}, 400, "UnsupportedQueryParameter"),
        ("PUT", f"{FILES}/x?resource=file", {"x-ms-lease-id": "1"}, 400, "UnsupportedHeader"),
        ("PUT", f"{FILES}/x?resource=file", {"x-ms-properties": "a=%%"}, 400, "InvalidHeaderValue"),
        ("PUT", f"{FILES}/x?resource=file", {"x-ms-version": "latest"}, 400, "InvalidHeaderValue"),
        ("PUT", f"{FILES}/x?resource=file", {"If-Match": '"0x1"'}, 412, "ConditionNotMet"),
        (
            "PUT",
            f"{FILES}/x?resource=file",
            {"If-Match": '"a"', "If-None-Match": "*"},
            400,
            "MultipleConditionHeadersNotSupported",
        ),
        ("PATCH", f"{FILES}/absent?action=append&position=0", {}, 400, "InvalidHeaderValue"),
        ("PATCH", f"{FILES}/absent?action=flush&position=0", {}, 404, "PathNotFound"),
        ("PATCH", f"{FILES}/absent?action=flush", {}, 400, "MissingRequiredQueryParameter"),
        ("PATCH", f"{FILES}/absent?action=flush&position=x", {}, 400, "InvalidQueryParameterValue"),
        ("PATCH", f"{FILES}/absent?action=flush&position=-1", {}, 400, "OutOfRangeQueryParameterValue"),
        ("PATCH", f"{FILES}/absent?action=setAccessControl", {}, 400, "UnsupportedQueryParameter"),
        ("GET", f"{FILES}/absent", {}, 404, "PathNotFound"),
        ("HEAD", f"{FILES}/absent", {}, 404, "BlobNotFound"),
        ("DELETE", f"{FILES}/absent", {}, 404, "PathNotFound"),
        ("DELETE", FILES, {}, 400, "OperationNotAllowedOnThePath"),
        ("DELETE", "/Migration/Landing.Lakehouse?recursive=true", {}, 400, "OperationNotAllowedOnThePath"),
        ("DELETE", "/Migration?restype=container", {}, 400, "BadRequest"),
        ("PUT", "/Migration/Landing.Lakehouse/Other/x?resource=file", {}, 400, "OperationNotAllowedOnThePath"),
        ("PUT", "/Migration/Finance.Warehouse/Files/x?resource=file", {}, 400, "OperationNotAllowedOnThePath"),
        ("PUT", f"{FILES}?resource=directory", {"If-None-Match": "*"}, 409, "PathAlreadyExists"),
        ("PUT", f"{FILES}?resource=directory", {}, 400, "OperationNotAllowedOnThePath"),
        ("PUT", f"{FILES}/x", {"x-ms-rename-source": f"{FILES}/absent"}, 404, "SourcePathNotFound"),
        ("PUT", f"{FILES}/x", {"x-ms-rename-source": "no-slash"}, 400, "InvalidSourceUri"),
        ("PUT", f"{FILES}/x", {"x-ms-rename-source": FILES}, 400, "OperationNotAllowedOnThePath"),
        (
            "PUT",
            f"{FILES}/x",
            {"x-ms-rename-source": "/Second%20Workspace/Landing.Lakehouse/Files/x"},
            400,
            "InvalidSourceUri",
        ),
        ("HEAD", "/Migration/Nothing.Lakehouse/Files", {}, 404, "ArtifactNotFound"),
        ("HEAD", f"/{WORKSPACE}/{WORKSPACE}/Files", {}, 404, "ArtifactNotFound"),
        ("HEAD", f"/{WORKSPACE}/Landing.Lakehouse/Files", {}, 400, "FriendlyNameSupportDisabled"),
        ("HEAD", f"/{WORKSPACE}/{LAKEHOUSE}.Lakehouse/Files", {}, 400, "FriendlyNameSupportDisabled"),
        ("HEAD", f"/Migration/{LAKEHOUSE}/Files", {}, 400, "FriendlyNameSupportDisabled"),
        ("HEAD", "/Migration/Landing/Files", {}, 400, "FriendlyNameSupportDisabled"),
        ("HEAD", "/Nowhere/Landing.Lakehouse/Files", {}, 404, "WorkspaceNotFound"),
        ("HEAD", "/Paused/Landing.Lakehouse/Files", {}, 403, "CapacityNotActive"),
        ("GET", "/Migration?resource=filesystem", {}, 400, "MissingRequiredQueryParameter"),
        ("GET", "/Migration?resource=filesystem&recursive=true", {}, 400, "BadRequest"),
        (
            "GET",
            "/Migration?resource=filesystem&recursive=false&directory=Landing.Lakehouse/Files/no",
            {},
            404,
            "PathNotFound",
        ),
        (
            "GET",
            "/Migration/Landing.Lakehouse?resource=filesystem&recursive=false&maxResults=0",
            {},
            400,
            "OutOfRangeQueryParameterValue",
        ),
        (
            "GET",
            "/Migration/Landing.Lakehouse?resource=filesystem&recursive=false&continuation=bm8=",
            {},
            400,
            "InvalidQueryParameterValue",
        ),
        ("GET", "/Migration?restype=container", {}, 400, "BadRequest"),
        ("POST", f"{FILES}/x", {}, 405, "UnsupportedHttpVerb"),
        ("PUT", f"{FILES}/x?comp=page", {}, 405, "UnsupportedHttpVerb"),
        ("PUT", f"{FILES}/x", {"x-ms-blob-type": "PageBlob"}, 400, "InvalidHeaderValue"),
        ("GET", f"{FILES}/x?comp=blocklist", {}, 400, "UnsupportedQueryParameter"),
    ],
)
def test_refusals(wire: WireClient, method: str, target: str, headers: dict[str, str], status: int, code: str) -> None:
    answer = wire.send(method, target, headers)
    assert (answer.status, answer.code) == (status, code), answer
    if method == "HEAD":
        assert answer.body == b""
    elif b"<?xml" not in answer.body:
        assert answer.json["error"]["code"] == code


def test_body_of_an_error(wire: WireClient) -> None:
    answer = wire.send("GET", f"{FILES}/absent", {"x-ms-version": "2023-11-03", "x-ms-client-request-id": "c-1"})
    message = answer.json["error"]["message"]
    assert re.fullmatch(
        r"The specified path does not exist\.\nRequestId:[0-9a-f-]{36}\nTime:\d{4}-\d\d-\d\dT[\d:]{8}\.\d{7}Z", message
    )
    assert answer.headers["x-ms-request-id"] in message
    assert (answer.headers["x-ms-version"], answer.headers["x-ms-client-request-id"]) == ("2023-11-03", "c-1")


def test_front_end_error(wire: WireClient) -> None:
    answer = wire.send("DELETE", FILES)
    assert answer.json == {
        "error": {"code": "OperationNotAllowedOnThePath", "message": "DELETE call is not allowed on Files path"}
    }
    assert answer.headers["server"].startswith("Microsoft-HTTPAPI")


def test_blob_errors_are_xml(wire: WireClient) -> None:
    for host in ({"Host": "onelake.blob.localhost"}, {"Accept": "application/xml"}, {"x-ms-range": "bytes=0-1"}):
        answer = wire.send("GET", f"{FILES}/absent", host)
        assert answer.code == "BlobNotFound"
        assert b"<Error><Code>BlobNotFound</Code>" in answer.body
    answer = wire.send("GET", f"{FILES}/absent", {"Host": "onelake.dfs.localhost", "Accept": "application/xml"})
    assert answer.code == "PathNotFound"
    assert wire.send("GET", f"{FILES}/absent", url_key="onelake_blob_url").code == "BlobNotFound"


@pytest.mark.parametrize(
    ("headers", "status", "code", "detail"),
    [
        ({}, 401, "NoAuthenticationInformation", ""),
        ({"Authorization": "Bearer nonsense"}, 401, "InvalidAuthenticationInfo", "Signature validation failed"),
        ({"Authorization": "SharedKey onelake:abc"}, 401, "InvalidAuthenticationInfo", "not supported"),
    ],
)
def test_unauthenticated(
    emulators: RunningEmulators, wire: WireClient, headers: dict[str, str], status: int, code: str, detail: str
) -> None:
    answer = wire.send("GET", f"{FILES}/x", headers, client=None)
    assert (answer.status, answer.code) == (status, code)
    assert detail in str(answer.json)
    tenant = emulators.addresses["tenant_id"]
    assert answer.headers["www-authenticate"] == (
        f"Bearer authorization_uri=https://login.microsoftonline.com/{tenant}/oauth2/authorize "
        "resource_id=https://storage.azure.com"
    )
    assert wire.send("GET", f"{FILES}/x?sv=2020-12-06&sig=abc", client=None).status == 403


def test_audiences_are_not_exchangeable(wire: WireClient) -> None:
    answer = wire.send("GET", f"{FILES}/x", {"Accept": "application/xml"}, scope=FABRIC)
    assert answer.status == 401
    assert b"Audience validation failed. Audience did not match." in answer.body
    answer = wire.send("GET", "/v1/workspaces", url_key="fabric_url")
    assert (answer.status, answer.json["errorCode"]) == (401, "InvalidToken")


def test_content_length(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    answer = wire.send("PUT", f"{target}?resource=file", bare=True)
    assert (answer.status, answer.code) == (400, "ContentLengthMustBeZero")
    assert wire.send("PUT", f"{target}?resource=file", body=b"x").code == "ContentLengthMustBeZero"
    wire.put_file(f"{folder}/x", b"")
    assert wire.send("PATCH", f"{target}?action=flush&position=0", bare=True).code == "ContentLengthMustBeZero"
    answer = wire.send("PATCH", f"{target}?action=append&position=0", bare=True)
    assert (answer.status, answer.code) == (411, "MissingContentLengthHeader")
    answer = wire.send("PATCH", f"{target}?action=append&position=0", {"Transfer-Encoding": "chunked"}, bare=True)
    assert answer.status == 411
    answer = wire.send("PATCH", f"{target}?action=append&position=0", {"Content-Length": str(5000 << 20)}, bare=True)
    assert (answer.status, answer.code) == (413, "RequestBodyTooLarge")


def test_positions(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    wire.put_file(f"{folder}/x", b"")

    def append(position: int, content: bytes) -> int:
        return wire.send("PATCH", f"{target}?action=append&position={position}", body=content).status

    def flush(position: int, more: str = "") -> tuple[int, str]:
        answer = wire.send("PATCH", f"{target}?action=flush&position={position}{more}")
        return answer.status, answer.code

    refused = (400, "InvalidFlushPosition")
    assert flush(3) == refused
    assert append(5, b"gap") == 202
    assert flush(8) == refused
    assert append(0, b"12345") == 202
    assert flush(5) == refused, "data beyond the position would be lost"
    assert flush(5, "&retainUncommittedData=true") == (200, "")
    assert wire.send("GET", target).body == b"12345"
    assert flush(7) == refused, "in the middle of a block"
    assert flush(8) == (200, "")
    assert wire.send("GET", target).body == b"12345gap"
    assert flush(5) == refused, "shorter than the file"
    answer = wire.send("PATCH", f"{target}?action=append&position=3&flush=true", body=b"x")
    assert (answer.status, answer.code) == refused
    assert wire.send("PATCH", f"{target}?action=append&position=8&flush=true", body=b"!").status == 202
    assert append(9, b"stale") == 202
    wire.put_file(f"{folder}/x", b"")
    assert wire.send("GET", target).body == b""
    assert append(0, b"123456789") == 202
    assert flush(14) == refused, "what was appended before the file was created anew is gone"


def test_append_again_replaces(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    wire.put_file(f"{folder}/x", b"")
    for content in (b"first", b"again"):
        assert wire.send("PATCH", f"{target}?action=append&position=0", body=content).status == 202
    assert wire.send("PATCH", f"{target}?action=flush&position=5").status == 200
    assert wire.send("GET", target).body == b"again"


def test_transactional_md5(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x?action=append&position=0&flush=true"
    wire.put_file(f"{folder}/x", b"")
    answer = wire.send("PATCH", target, {"Content-MD5": md5(b"other")}, b"data")
    assert (answer.status, answer.code) == (400, "Md5Mismatch")
    assert wire.send("PATCH", target, {"Content-MD5": "short"}, b"data").code == "InvalidHeaderValue"
    large = b"data" * 1_000_000
    assert wire.send("PATCH", target, {"Content-MD5": md5(b"other")}, large).code == "Md5Mismatch"
    assert wire.send("HEAD", f"/Migration/{quoted(folder)}/x").headers["content-length"] == "0"
    answer = wire.send("PATCH", target, {"Content-MD5": md5(large)}, large)
    assert (answer.status, answer.headers["content-md5"]) == (202, md5(large))
    assert wire.send("GET", f"/Migration/{quoted(folder)}/x").body == large


def test_conditions(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    etag = wire.put_file(f"{folder}/x", b"data").headers["etag"]
    past, future = formatdate(1_000_000_000, usegmt=True), formatdate(4_000_000_000, usegmt=True)

    def status(method: str, query: str = "", **conditions: str) -> int:
        headers = {name.replace("_", "-"): value for name, value in conditions.items()}
        return wire.send(method, target + query, headers).status

    assert status("GET", If_None_Match=etag) == 304
    assert status("GET", If_None_Match='"0x1"') == 200
    assert status("GET", If_Match='"0x1"') == 412
    assert status("GET", If_Match=f'"0x1", {etag}') == 200
    assert status("GET", If_Modified_Since=future) == 304
    assert status("GET", If_Modified_Since="yesterday") == 400
    assert status("HEAD", If_Unmodified_Since=past) == 412
    assert status("HEAD", If_Match=etag, If_Unmodified_Since=past) == 200, "the pair: If-Match decides"
    assert status("PATCH", "?action=flush&position=4", If_None_Match="*") == 412
    assert status("PATCH", "?action=flush&position=4", If_Match=etag) == 200
    assert status("PATCH", "?action=flush&position=4", If_Match=etag) == 412, "the flush changed it"
    assert status("DELETE", If_Match=etag) == 412
    assert status("DELETE", If_Unmodified_Since=past) == 412
    assert status("PUT", "?resource=file", If_Match=etag) == 412
    assert status("DELETE", If_Match="*") == 200
    assert status("DELETE", If_Match="*") == 404
    source = {"x-ms-rename-source": target}
    wire.put_file(f"{folder}/x", b"data")
    answer = wire.send("PUT", target + "2", {**source, "x-ms-source-if-match": '"0x1"'})
    assert (answer.status, answer.code) == (412, "SourceConditionNotMet")
    assert wire.send("PUT", target + "2", {**source, "x-ms-source-if-match": "*"}).status == 201


def test_ranges(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    content = bytes(range(200)) * 1000
    wire.put_file(f"{folder}/x", content)
    answer = wire.send("GET", target, {"Range": "bytes=10-19"})
    assert (answer.status, answer.body, answer.headers["content-range"]) == (
        206,
        content[10:20],
        f"bytes 10-19/{len(content)}",
    )
    assert wire.send("GET", target, {"Range": "bytes=199990-"}).body == content[199990:]
    assert wire.send("GET", target, {"x-ms-range": "bytes=100-900000"}).body == content[100:]
    answer = wire.send("GET", target, {"Range": "bytes=200000-"})
    assert (answer.status, answer.code) == (416, "InvalidRange")
    for refused in ("bytes=-5", "bytes=5-1", "bytes=0-1,3-4", "lines=1-2"):
        assert wire.send("GET", target, {"Range": refused}).code == "InvalidHeaderValue"
    checked = wire.send("GET", target, {"x-ms-range": "bytes=0-99", "x-ms-range-get-content-md5": "true"})
    assert checked.headers["content-md5"] == md5(content[:100])
    wire.put_file(f"{folder}/empty", b"")
    answer = wire.send("GET", f"/Migration/{quoted(folder)}/empty", {"x-ms-range": "bytes=0-33554431"})
    assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")


def test_files_and_folders_do_not_replace_each_other(wire: WireClient, folder: str) -> None:
    base = f"/Migration/{quoted(folder)}"
    wire.put_file(f"{folder}/dir/file", b"x")
    wire.send("PUT", f"{base}/empty?resource=directory")
    wire.send("PUT", f"{base}/full/sub?resource=directory")

    def code(method: str, path: str, **headers: str) -> str:
        return wire.send(method, f"{base}/{path}", {k.replace("_", "-"): v for k, v in headers.items()}).code

    assert code("PUT", "dir?resource=file") == "PathConflict"
    assert code("PUT", "dir/file?resource=directory") == "PathConflict"
    assert code("PUT", "dir/file/below?resource=file") == "PathConflict"
    assert code("GET", "dir") == "ResourceTypeMismatch"
    assert code("DELETE", "dir") == "DirectoryNotEmpty"
    assert code("PATCH", "dir?action=flush&position=0") == "ResourceTypeMismatch"
    rename = "x_ms_rename_source"
    assert code("PUT", "dir/sub", **{rename: f"{base}/dir"}) == "InvalidRenameSourcePath"
    assert code("PUT", "no/where", **{rename: f"{base}/dir"}) == "RenameDestinationParentPathNotFound"
    assert code("PUT", "dir", **{rename: f"{base}/dir/file"}) == "InvalidSourceOrDestinationResourceType"
    assert code("PUT", "full", **{rename: f"{base}/dir"}) == "PathAlreadyExists"
    assert code("PUT", "empty?mode=sideways", **{rename: f"{base}/dir"}) == "InvalidQueryParameterValue"
    assert code("PUT", "empty", **{rename: f"{base}/dir"}) == ""
    assert wire.send("GET", f"{base}/empty/file").body == b"x"


def test_ignored_headers_are_named(wire: WireClient, folder: str) -> None:
    headers = {"x-ms-permissions": "0777", "x-ms-owner": "me", "x-ms-umask": "0022"}
    answer = wire.send("PUT", f"/Migration/{quoted(folder)}/x?resource=file", headers)
    assert answer.status == 201
    assert answer.headers["x-ms-rejected-headers"] == "x-ms-owner,x-ms-permissions"


def test_recorded_listing(wire: WireClient, folder: str) -> None:
    created = wire.put_file(f"{folder}/x.txt", b"13 bytes long")
    wire.send("PUT", f"/Migration/{quoted(folder)}/d/?resource=directory", {"Content-Type": "application/json"})
    answer = wire.send("GET", f"/Migration/?recursive=false&resource=filesystem&directory={quoted(folder)}")
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    listed = answer.json["paths"]
    assert answer.json["ContinuationToken"] is None
    assert listed[0]["isDirectory"] == "true"
    assert set(listed[1]) == {
        "name", "creationTime", "lastModified", "etag", "contentLength", "owner", "group", "permissions", "expiryTime"
    }  # fmt: skip
    assert listed[1]["name"] == f"{folder}/x.txt"
    assert (listed[1]["contentLength"], f'"{listed[1]["etag"]}"') == ("13", created.headers["etag"])
    assert all(isinstance(value, str) for value in listed[1].values())
    directory = wire.send("HEAD", f"/Migration/{quoted(folder)}/d")
    assert directory.headers["x-ms-resource-type"] == "directory"
    assert directory.headers["content-type"] == "application/json"
    answer = wire.send("GET", "/Migration/Landing.Lakehouse/?recursive=false&resource=filesystem")
    assert [path["name"] for path in answer.json["paths"]] == ["Landing.Lakehouse/Files", "Landing.Lakehouse/Tables"]
    answer = wire.send("GET", f"/{WORKSPACE}?recursive=false&resource=filesystem")
    assert LAKEHOUSE in [path["name"] for path in answer.json["paths"]]


def test_continuation_tokens(wire: WireClient, folder: str) -> None:
    for number in range(5):
        wire.put_file(f"{folder}/{number}", b"")
    query = f"/Migration?resource=filesystem&recursive=true&maxResults=2&directory={quoted(folder)}"
    first = wire.send("GET", query)
    token = first.headers["x-ms-continuation"]
    assert first.json["ContinuationToken"] == token
    wire.send("DELETE", f"/Migration/{quoted(folder)}/2")
    second = wire.send("GET", f"{query}&continuation={quoted(token).replace('/', '%2F')}")
    assert [path["name"][-1] for path in second.json["paths"]] == ["3", "4"]
    assert "x-ms-continuation" not in second.headers
    other = query.replace("true", "false", 1)
    assert wire.send("GET", f"{other}&continuation={quoted(token)}").code == "InvalidQueryParameterValue"
