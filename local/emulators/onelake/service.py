"""The front door of OneLake: which dialect, who calls, may they, and the headers every answer carries."""

from __future__ import annotations

import contextlib
import errno
import uuid
from dataclasses import dataclass

from local.emulators.estate import Estate
from local.emulators.faults import FaultRule
from local.emulators.onelake import blob, dfs
from local.emulators.onelake.addresses import Address, AddressBook
from local.emulators.onelake.errors import (
    CAPACITY_EXCEEDED_TEXT,
    CAPACITY_PAUSED_TEXT,
    ServiceError,
    error_response,
)
from local.emulators.onelake.sources import CopySources
from local.emulators.onelake.store import Store
from local.emulators.pipeline import Call, retry_after_header
from local.emulators.tokens import STORAGE_AUDIENCE, TokenAuthority, TokenRefused
from local.emulators.wire import Request, Response

# "Ignored" on the parity page: the call goes on, and the answer names them.
_REJECTED_HEADERS = (
    "x-ms-owner",
    "x-ms-group",
    "x-ms-permissions",
    "x-ms-acls",
    "x-ms-encryption-key",
    "x-ms-encryption-key-sha256",
    "x-ms-encryption-algorithm",
    "x-ms-access-tier",
)
# Each asks for something these emulators do not do; ignoring it would promise an effect that is not there.
_UNSUPPORTED_HEADERS = frozenset(
    {
        "x-ms-content-crc64",
        "x-ms-encryption-scope",
        "x-ms-expiry-option",
        "x-ms-expiry-time",
        "x-ms-if-tags",
        "x-ms-lease-action",
        "x-ms-lease-duration",
        "x-ms-lease-id",
        "x-ms-proposed-lease-id",
        "x-ms-source-lease-id",
        "x-ms-structured-body",
        "x-ms-tags",
    }
)
# Known to the two operations that read a source by its URL, and to no other.
_COPY_HEADERS = frozenset({"x-ms-copy-source", "x-ms-copy-source-authorization"})
_COPYING = frozenset({"append", "append_flush"})
_BLOB_QUERY = frozenset({"comp", "restype", "blockid"})
_READING = frozenset({"read", "list", "properties"})
_COMMON_HEADERS = {
    "Access-Control-Allow-Headers": "*",
    "Access-Control-Allow-Methods": "*",
    "Access-Control-Allow-Origin": "*",
    "Strict-Transport-Security": "max-age=31536000; includeSubDomains",
    "X-Content-Type-Options": "nosniff",
}
_FRONT_END_SERVER = "Microsoft-HTTPAPI/2.0"
_DFS_SERVER = f"Windows-Azure-HDFS/1.0,{_FRONT_END_SERVER}"
_BLOB_SERVER = f"Windows-Azure-Blob/1.0,{_FRONT_END_SERVER}"


@dataclass(slots=True)
class _Route:
    is_blob: bool
    address: Address | None
    refusal: ServiceError | None


class OneLake:
    """Serves both dialects of one lake.

    Args:
        sources: reads what a copy by URL names.
        always_blob: for an endpoint that speaks the Blob dialect only, whatever the host name says.
    """

    name = "onelake"

    def __init__(
        self,
        estate: Estate,
        tokens: TokenAuthority,
        store: Store,
        sources: CopySources,
        *,
        always_blob: bool = False,
    ) -> None:
        self._estate = estate
        self._tokens = tokens
        self._always_blob = always_blob
        self._book = AddressBook(estate)
        self._dfs = dfs.Dfs(store, self._book)
        self._blob = blob.Blob(store, self._book, sources)
        self._roles = {client.id: client.roles for client in estate.clients}
        self._request_prefix = str(uuid.uuid4())[:24]
        self._requests = 0

    def classify(self, request: Request) -> Call:
        """Names the call; a path that cannot be resolved is refused later, after authentication."""
        is_blob = self._speaks_blob(request)
        operation = (blob if is_blob else dfs).operation_of(request)
        try:
            address: Address | None = self._book.resolve(request.path)
            refusal = None
        except ServiceError as error:
            address, refusal = None, error
        path = address.canonical if address is not None else request.path
        folder = request.query.get("prefix" if is_blob else "directory", "").strip("/")
        if operation == "list" and address is not None and folder:
            path = self._canonical_folder(address, folder)
        return Call(operation, path, _Route(is_blob, address, refusal))

    def _canonical_folder(self, address: Address, folder: str) -> str:
        workspace = address.workspace
        for label in (workspace.name, workspace.id):
            with contextlib.suppress(ServiceError):
                return self._book.resolve_segments([label, *folder.split("/")]).canonical
        return f"{address.canonical}/{folder}"

    async def handle(self, request: Request, call: Call) -> Response:
        """Authenticates, authorises and carries the call out."""
        route: _Route = call.detail
        try:
            client_id = self._authenticate(request)
            if route.refusal is not None:
                raise route.refusal
            assert route.address is not None
            self._authorise(client_id, route.address, call.operation)
            source = blob.copied_within(request)
            if source is not None:
                self._authorise(client_id, self._book.resolve(source), "read")
            rejected = self._check_headers(request, copies=route.is_blob and call.operation in _COPYING)
            dialect = self._blob if route.is_blob else self._dfs
            response = await dialect.handle(request, call.operation, route.address)
            if rejected:
                response.headers["x-ms-rejected-headers"] = rejected
        except ServiceError as error:
            return self._failed(request, route, error)
        except OSError as error:
            # Segments are shortened to fit; a whole path below a deep root may still be too long.
            if error.errno != errno.ENAMETOOLONG:
                raise
            return self._failed(request, route, ServiceError("InvalidResourceName"))
        return self._finished(request, route, response)

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Answers as OneLake does under the fault."""
        headers = retry_after_header(rule.retry_after_s)
        match rule.fault:
            case "throttle":
                error = ServiceError("CapacityLimitExceeded", CAPACITY_EXCEEDED_TEXT, headers=headers)
            case "unavailable":
                error = ServiceError("ServerBusy", headers=headers)
            case "expired_token":
                error = self._unauthenticated("Lifetime validation failed. The token is expired.")
            case "capacity_paused":
                error = ServiceError("CapacityNotActive", CAPACITY_PAUSED_TEXT, headers=headers)
            case _:
                error = ServiceError("InternalError", headers=headers)
        return self._failed(request, call.detail, error)

    def _speaks_blob(self, request: Request) -> bool:
        if self._always_blob:
            return True
        headers = request.headers
        host = headers.get("host", "")
        if ".blob." in host:
            return True
        if ".dfs." in host:
            return False
        return (
            not _BLOB_QUERY.isdisjoint(request.query)
            or "x-ms-blob-type" in headers
            or "x-ms-copy-source" in headers
            or "x-ms-range" in headers
            or headers.get("accept", "").startswith("application/xml")
        )

    # who calls

    def _unauthenticated(self, detail: str, code: str = "InvalidAuthenticationInfo") -> ServiceError:
        challenge = (
            f"Bearer authorization_uri=https://login.microsoftonline.com/{self._estate.tenant_id}/oauth2/authorize "
            f"resource_id={STORAGE_AUDIENCE}"
        )
        return ServiceError(code, detail=detail, headers={"WWW-Authenticate": challenge})

    def _authenticate(self, request: Request) -> str:
        authorization = request.headers.get("authorization")
        if not authorization:
            if "sig" in request.query:
                raise ServiceError("AuthenticationFailed", detail="Delegated SAS is not enabled for the workspace.")
            raise self._unauthenticated("", "NoAuthenticationInformation")
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer":
            raise self._unauthenticated("Authentication scheme is not supported.")
        try:
            return self._tokens.check(token.strip(), STORAGE_AUDIENCE).client_id
        except TokenRefused as refused:
            raise self._unauthenticated(str(refused)) from refused

    def _authorise(self, client_id: str, address: Address, operation: str) -> None:
        role = self._roles.get(client_id, {}).get(address.workspace.name)
        if role is None or (role == "reader" and operation not in _READING):
            raise ServiceError("AuthorizationPermissionMismatch")
        if address.workspace.capacity == "paused":
            raise ServiceError("CapacityNotActive", CAPACITY_PAUSED_TEXT)

    @staticmethod
    def _check_headers(request: Request, *, copies: bool) -> str:
        headers = request.headers
        if not copies and not _COPY_HEADERS.isdisjoint(headers):
            raise ServiceError("UnsupportedHeader")
        # The SDK sends an empty x-ms-source-lease-id with every rename.
        for name in _UNSUPPORTED_HEADERS & headers.keys():
            if headers[name]:
                raise ServiceError("UnsupportedHeader")
        version = headers.get("x-ms-version")
        if version is not None and not (len(version) == 10 and version.replace("-", "").isdigit()):
            raise ServiceError("InvalidHeaderValue")
        return ",".join(name for name in _REJECTED_HEADERS if name in headers)

    # the answer

    def _failed(self, request: Request, route: _Route, error: ServiceError) -> Response:
        response = error_response(error, blob_dialect=route.is_blob, has_body=request.method != "HEAD")
        server = _FRONT_END_SERVER if error.from_front_end else None
        return self._finished(request, route, response, server)

    def _finished(self, request: Request, route: _Route, response: Response, server: str | None = None) -> Response:
        headers = response.headers
        headers.update(_COMMON_HEADERS)
        headers["Server"] = server or (_BLOB_SERVER if route.is_blob or request.method == "HEAD" else _DFS_SERVER)
        if "x-ms-request-id" not in headers:
            self._requests += 1
            headers["x-ms-request-id"] = f"{self._request_prefix}{self._requests:012x}"
        for name in ("x-ms-version", "x-ms-client-request-id"):
            if name in request.headers:
                headers[name] = request.headers[name]
        return response
