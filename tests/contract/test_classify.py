"""What each answer of the service means; after the DFS REST API's error catalogue and OneLake's recorded answers."""

from __future__ import annotations

import json

import pytest

from shared.clients.onelake.classify import classify, unsupported_flush
from shared.errors import (
    AccessDenied,
    Authentication,
    CapacityPaused,
    Configuration,
    DestinationMissing,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    TargetConflict,
    Throttled,
    TransientError,
)

TABLE = [
    (400, "Md5Mismatch", TransientError, "block_damaged"),
    (400, "InvalidFlushPosition", TransientError, "flush_position"),
    (400, "FriendlyNameSupportDisabled", Configuration, "configuration"),
    *((400, code, ItemError, "refused_by_lake") for code in (
        "InvalidResourceName", "InvalidUri", "PathIsTooDeep", "OperationNotAllowedOnThePath", "OutOfRangeInput")),
    *((400, code, Configuration, "wrong_endpoint") for code in (
        "UnsupportedQueryParameter", "MissingRequiredHeader", "UnsupportedRestVersion", "")),
    (403, "AuthorizationFailure", Authentication, "permission_denied"),
    (403, "AuthorizationPermissionMismatch", Authentication, "permission_denied"),
    (403, "CapacityNotActive", CapacityPaused, "capacity_paused"),
    *((404, code, DestinationMissing, "destination_missing") for code in (
        "ArtifactNotFound", "WorkspaceNotFound", "FilesystemNotFound")),
    *((404, code, NotFound, "not_found") for code in (
        "PathNotFound", "BlobNotFound", "SourcePathNotFound", "")),
    (404, "RenameDestinationParentPathNotFound", NotFound, "parent_missing"),
    (409, "PathAlreadyExists", TargetConflict, "target_exists"),
    (409, "PathConflict", TargetConflict, "path_conflict"),
    (409, "LeaseIdMissing", AccessDenied, "target_locked"),
    (409, "DestinationPathIsBeingDeleted", ServiceUnavailable, "service_unavailable"),
    (409, "SourcePathIsBeingDeleted", ServiceUnavailable, "service_unavailable"),
    (409, "InvalidFlushOperation", TargetConflict, "target_conflict"),
    (412, "ConditionNotMet", TargetConflict, "target_changed"),
    (413, "RequestBodyTooLarge", ItemError, "refused_by_lake"),
    (429, "CapacityLimitExceeded", Throttled, "throttled"),
    (503, "CapacityLimitExceeded", Throttled, "throttled"),
    (503, "ServerBusy", Throttled, "throttled"),
    (408, "", ServiceUnavailable, "service_unavailable"),
    (500, "InternalError", ServiceUnavailable, "service_unavailable"),
    (500, "OperationTimedOut", ServiceUnavailable, "service_unavailable"),
    (502, "", ServiceUnavailable, "service_unavailable"),
    (504, "", ServiceUnavailable, "service_unavailable"),
]  # fmt: skip


@pytest.mark.parametrize("where", ["header", "json", "xml"])
@pytest.mark.parametrize(("status", "code", "error", "named"), TABLE)
def test_the_catalogue(status: int, code: str, error: type[MigrationError], named: str, where: str) -> None:
    headers = {"x-ms-error-code": code} if where == "header" and code else {}
    body = {
        "header": b"", "json": json.dumps({"error": {"code": code, "message": "secret text"}}).encode(),
        "xml": f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>secret text</Message></Error>".encode(),
    }[where]  # fmt: skip
    found = classify(status, headers, body, "the/path")
    assert type(found) is error
    assert (found.code, found.subject) == (named, "the/path")
    assert "secret text" not in found.detail


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("0", 0.0), ("", None), ("soon", None), ("-1", None)])
def test_retry_after(value: str, seconds: float | None) -> None:
    for status in (429, 503, 500):
        found = classify(status, {"Retry-After": value}, b"", "x")
        assert isinstance(found, TransientError)
        assert found.retry_after_s == seconds


def test_only_a_refused_query_parameter_means_that_the_one_call_is_unknown() -> None:
    assert unsupported_flush(classify(400, {"x-ms-error-code": "UnsupportedQueryParameter"}, b"", "x"))
    assert not unsupported_flush(classify(400, {"x-ms-error-code": "InvalidHeaderValue"}, b"", "x"))
    assert not unsupported_flush(classify(400, {"x-ms-error-code": "InvalidFlushPosition"}, b"", "x"))


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"error": []}', b'{"error": {"code": 5}}', b"\xff\xfe", b"<Code>"]
)
def test_answers_that_make_no_sense_are_errors_all_the_same(body: bytes) -> None:
    for status in (301, 400, 401, 404, 409, 418, 500):
        assert isinstance(classify(status, {}, body, "x"), MigrationError)
