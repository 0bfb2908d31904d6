# ruff: noqa: E501 - the texts are the service's own, one a line
"""The error catalogue: code, status and text, and the two shapes they travel in.

Texts are those of the DFS specification of 2018-11-09; the four front-end codes of OneLake are as recorded
(docs/protocols/onelake.md, sections 2 and 4).
"""

from __future__ import annotations

import json
import time
import uuid
from xml.sax.saxutils import escape

from local.emulators.wire import Response

_RESOURCE_TYPE = (
    "The specified path, or an element of the path, exists and its resource type is invalid for this operation."
)

CATALOGUE: dict[str, tuple[int, str]] = {
    "AuthenticationFailed": (403, "Server failed to authenticate the request. Make sure the value of Authorization header is formed correctly including the signature."),
    "AuthorizationPermissionMismatch": (403, "This request is not authorized to perform this operation using this permission."),
    "BlobAlreadyExists": (409, "The specified blob already exists."),
    "BlobNotFound": (404, "The specified blob does not exist."),
    "CannotVerifyCopySource": (500, "Could not verify the copy source within the specified time."),
    "ConditionNotMet": (412, "The condition specified using HTTP conditional header(s) is not met."),
    "ContentLengthMustBeZero": (400, "The Content-Length request header must be zero."),
    "DirectoryIsNotEmpty": (409, "This operation is not permitted on a non-empty directory."),
    "DirectoryNotEmpty": (409, "The recursive query parameter value must be true to delete a non-empty directory."),
    "InternalError": (500, "The server encountered an internal error. Please retry the request."),
    "InvalidAuthenticationInfo": (401, "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."),
    "InvalidBlockId": (400, "The specified block ID is invalid. The block ID must be Base64-encoded."),
    "InvalidBlockList": (400, "The specified block list is invalid."),
    "InvalidFlushOperation": (409, "The resource was created or modified by the Blob Service API and cannot be written to by the Data Lake Storage Service API."),
    "InvalidFlushPosition": (400, "The uploaded data is not contiguous or the position query parameter value is not equal to the length of the file after appending the uploaded data."),
    "InvalidHeaderValue": (400, "The value for one of the HTTP headers is not in the correct format."),
    "InvalidInput": (400, "One of the request inputs is not valid."),
    "InvalidMd5": (400, "The MD5 value specified in the request is invalid. MD5 value must be 128 bits and base64-encoded."),
    "InvalidPropertyName": (400, "A property name cannot be empty."),
    "InvalidQueryParameterValue": (400, "Value for one of the query parameters specified in the request URI is invalid."),
    "InvalidRange": (416, "The range specified is invalid for the current size of the resource."),
    "InvalidRenameSourcePath": (409, "The source directory cannot be the same as the destination directory, nor can the destination be a subdirectory of the source directory."),
    "InvalidResourceName": (400, "The specified resource name contains invalid characters."),
    "InvalidSourceOrDestinationResourceType": (409, "The source and destination resource type must be identical."),
    "InvalidSourceUri": (400, "The source URI is invalid."),
    "InvalidUri": (400, "The request URI is invalid."),
    "InvalidXmlDocument": (400, "XML specified is not syntactically valid."),
    "Md5Mismatch": (400, "The MD5 value specified in the request did not match with the MD5 value calculated by the server."),
    "MissingContentLengthHeader": (411, "The Content-Length header was not specified."),
    "MissingRequiredHeader": (400, "An HTTP header that's mandatory for this request is not specified."),
    "MissingRequiredQueryParameter": (400, "A required query parameter was not specified for this request."),
    "MultipleConditionHeadersNotSupported": (400, "Multiple condition headers are not supported."),
    "NoAuthenticationInformation": (401, "Server failed to authenticate the request. Please refer to the information in the www-authenticate header."),
    "OutOfRangeInput": (400, "One of the request inputs is out of range."),
    "OutOfRangeQueryParameterValue": (400, "One of the query parameters specified in the request URI is outside the permissible range."),
    "PathAlreadyExists": (409, "The specified path already exists."),
    "PathConflict": (409, _RESOURCE_TYPE),
    "PathIsTooDeep": (409, "The specified path is too deep."),
    "PathNotFound": (404, "The specified path does not exist."),
    "RenameDestinationParentPathNotFound": (404, "The parent directory of the destination path does not exist."),
    "RequestBodyTooLarge": (413, "The request body is too large and exceeds the maximum permissible limit."),
    "ResourceTypeMismatch": (409, "The specified resource type is invalid for this operation."),
    "ServerBusy": (503, "The server is currently unable to receive requests. Please retry your request."),
    "SourceConditionNotMet": (412, "The source condition specified using HTTP conditional header(s) is not met."),
    "SourcePathNotFound": (404, "The source path for a rename operation does not exist."),
    "UnsupportedHeader": (400, "One of the headers specified in the request is not supported."),
    "UnsupportedHttpVerb": (405, "The resource doesn't support the specified HTTP verb."),
    "UnsupportedQueryParameter": (400, "One of the query parameters specified in the request URI is not supported."),
}  # fmt: skip

# The front end answers these before storage sees the call: no RequestId in the text, another Server header.
FRONT_END: dict[str, tuple[int, str]] = {
    "ArtifactNotFound": (404, "NotFound"),
    "BadRequest": (400, "BadRequest"),
    "CapacityLimitExceeded": (429, "TooManyRequests"),
    "CapacityNotActive": (403, "Forbidden"),
    "FriendlyNameSupportDisabled": (400, "BadRequest"),
    "OperationNotAllowedOnThePath": (400, "BadRequest"),
    "WorkspaceNotFound": (404, "NotFound"),
}

CAPACITY_EXCEEDED_TEXT = "Your organization's Fabric compute capacity has exceeded its limits. Try again later"
CAPACITY_PAUSED_TEXT = "Unable to complete the action because this Fabric capacity is currently paused."


class ServiceError(Exception):
    """A refusal in the service's words.

    Args:
        code: key of `CATALOGUE` or `FRONT_END`.
        message: for front-end codes, whose text depends on the call.
        status: where one code has several.
        headers: to be added to the answer.
        detail: AuthenticationErrorDetail.
    """

    def __init__(
        self,
        code: str,
        message: str | None = None,
        *,
        status: int | None = None,
        headers: dict[str, str] | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(code)
        self.code = code
        self.from_front_end = code in FRONT_END
        if self.from_front_end:
            self.status, self.reason = FRONT_END[code]
            self.message = message or ""
        else:
            self.status, self.message = CATALOGUE[code]
            self.reason = None  # type: ignore[assignment]
        if status is not None:
            self.status = status
        self.headers = headers or {}
        self.detail = detail


def error_response(error: ServiceError, *, blob_dialect: bool, has_body: bool) -> Response:
    """Returns the error as the service sends it: JSON from the DFS endpoint, XML from the Blob endpoint."""
    request_id = str(uuid.uuid4())
    headers = {"x-ms-error-code": error.code, "x-ms-request-id": request_id, **error.headers}
    response = Response(error.status, headers, reason=error.reason, error_code=error.code)
    if not has_body:
        headers["Content-Length"] = "0"
        return response
    message = error.message
    if not error.from_front_end:
        now_s = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s)) + f".{int(now_s % 1 * 1e7):07d}Z"
        message = f"{message}\nRequestId:{request_id}\nTime:{stamp}"
    # Reported as JSON from the Blob endpoint too (a batch delete, section 2).
    if blob_dialect and error.code != "BadRequest":
        detail = (
            f"<AuthenticationErrorDetail>{escape(error.detail)}</AuthenticationErrorDetail>" if error.detail else ""
        )
        headers["Content-Type"] = "application/xml"
        response.body = (
            '\ufeff<?xml version="1.0" encoding="utf-8"?>'
            f"<Error><Code>{error.code}</Code><Message>{escape(message)}</Message>{detail}</Error>"
        ).encode()
    else:
        headers["Content-Type"] = "application/json;charset=utf-8"
        document: dict[str, dict[str, object]] = {"error": {"code": error.code, "message": message}}
        if error.detail:
            document["error"]["detail"] = {"AuthenticationErrorDetail": error.detail}
        response.body = json.dumps(document).encode()
    return response
