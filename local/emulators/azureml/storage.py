"""The accounts' blob endpoint: checks what Azurite does not, then hands the call on to Azurite.

Azurite takes any token whose issuer looks like Entra's: it checks neither signature nor tenant nor role
(docs/protocols/azureml.md, section 9). So bearer tokens are checked here, and faults are played here; keys, shared
access signatures, anonymous reads and everything about blobs are Azurite's own answer.

Both spellings of an account are taken: ``https://127.0.0.1:port/account/container/blob`` and, where such a name can
be resolved, ``https://account.blob.localhost:port/container/blob``.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from urllib.parse import unquote

import aiohttp
from yarl import URL

from local.emulators.azureml.azurite import Azurite
from local.emulators.azureml.estate import AzureMLEstate, Tenant
from local.emulators.faults import FaultRule
from local.emulators.onelake.errors import ServiceError, error_response
from local.emulators.pipeline import Call, retry_after_header
from local.emulators.tokens import STORAGE_AUDIENCE, TokenAuthority, TokenRefused
from local.emulators.wire import Request, Response

_HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "content-length", "date", "expect"})
# Node closes an idle connection after five seconds.
_IDLE_S = 2
_READS = frozenset({"GET", "HEAD"})
_CHUNK_BYTES = 256 * 1024


class Storage:
    """Stands before Azurite.

    Args:
        authorities: who issues the tokens of a tenant, by the tenant's name.
        trusted: a context that trusts Azurite's certificate.
    """

    name = "azureml_blob"

    def __init__(
        self,
        estate: AzureMLEstate,
        authorities: Mapping[str, TokenAuthority],
        azurite: Azurite,
        trusted: ssl.SSLContext,
    ) -> None:
        self._estate = estate
        self._authorities = authorities
        self._azurite = azurite
        self._trusted = trusted
        self._owner: dict[str, Tenant] = {account.name: estate.tenant(account.tenant) for account in estate.accounts}

    async def start(self) -> None:
        """Starts Azurite and makes the containers of the estate.

        Raises:
            AzuriteMissing: it cannot be run here.
        """
        self._address = await self._azurite.start()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._trusted, limit=0, keepalive_timeout=_IDLE_S),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )
        wanted = {
            (datastore.account, datastore.container, False)
            for workspace in self._estate.workspaces
            for datastore in workspace.datastores
        } | {(account.name, name, True) for account in self._estate.accounts for name in account.public_containers}
        for account, container, is_public in sorted(wanted):
            token = self._authorities[self._owner[account].name].issue("estate", STORAGE_AUDIENCE)
            headers = {"Authorization": f"Bearer {token}", "x-ms-version": "2023-11-03", "Content-Length": "0"}
            if is_public:
                headers["x-ms-blob-public-access"] = "container"
            url = f"{self._address}/{account}/{container}?restype=container"
            async with self._session.put(url, headers=headers) as answer:
                if answer.status not in (201, 409):
                    raise RuntimeError(f"The container {account}/{container} was not made: {await answer.text()}")

    async def stop(self) -> None:
        """Ends Azurite."""
        if hasattr(self, "_session"):
            await self._session.close()
        await self._azurite.stop()

    def classify(self, request: Request) -> Call:
        """Names the call by what it does; its path is ``account/container/blob``."""
        account, rest = self._account(request)
        path = f"{account}/{rest}".rstrip("/")
        query = request.query
        comp = query.get("comp", "")
        match request.method:
            case "GET":
                operation = "list" if comp == "list" else "properties" if comp else "read"
            case "HEAD":
                operation = "properties"
            case "DELETE":
                operation = "delete"
            case "PUT" if comp in ("block", "appendblock"):
                operation = "append"
            case "PUT" if comp == "blocklist":
                operation = "flush"
            case "PUT" if "restype" in query or comp:
                operation = "create" if not comp else "properties_set"
            case "PUT":
                operation = "append_flush"
            case _:
                operation = "read"
        return Call(operation, path, account)

    @staticmethod
    def _account(request: Request) -> tuple[str, str]:
        host = request.headers.get("host", "").partition(":")[0]
        path = unquote(request.path).lstrip("/")
        if ".blob." in host:
            return host.partition(".")[0], path
        account, _, rest = path.partition("/")
        return account, rest

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Answers as Blob storage does under a fault; it is busy with 503, never with 429, unless the plan says so."""
        match rule.fault:
            case "throttle":
                error = ServiceError("ServerBusy", status=429)
            case "unavailable":
                error = ServiceError("ServerBusy")
            case "expired_token":
                error = self._unauthenticated(call.detail, "Lifetime validation failed. The token is expired.")
            case _:
                error = ServiceError("InternalError")
        error.headers |= retry_after_header(rule.retry_after_s)
        return error_response(error, blob_dialect=True, has_body=request.method != "HEAD")

    async def handle(self, request: Request, call: Call) -> Response:
        """Checks a token, if there is one, and hands the call on."""
        try:
            self._check(request, call.detail)
            if _reads_a_source(request):
                return await self._copied(request)
        except ServiceError as error:
            return error_response(error, blob_dialect=True, has_body=request.method != "HEAD")
        return await self._forwarded(request)

    def _check(self, request: Request, account: str) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        owner = self._owner.get(account)
        if scheme.lower() != "bearer" or owner is None:
            return
        try:
            principal = self._authorities[owner.name].check(token.strip(), STORAGE_AUDIENCE)
        except TokenRefused as refused:
            raise self._unauthenticated(account, str(refused)) from None
        client = owner.client(principal.client_id)
        role = client.storage_roles.get(account) if client is not None else None
        # A user delegation key is asked for with POST, and a reader may have one.
        reads = request.method in _READS or request.query.get("comp") == "userdelegationkey"
        if role is None or (role == "reader" and not reads):
            raise ServiceError("AuthorizationPermissionMismatch")

    async def _copied(self, request: Request) -> Response:
        """Put Blob From URL and Put Block From URL, which Azurite does not do or not behind another address.

        The source must be a blob of these accounts; it is read from Azurite and handed to Azurite, chunk by chunk.
        """
        source = URL(request.headers["x-ms-copy-source"], encoded=True)
        if source.authority != request.headers.get("host"):
            raise ServiceError("CannotVerifyCopySource", status=403)
        asked = {"x-ms-version": request.headers.get("x-ms-version", "2023-11-03")}
        asked |= {name: request.headers[f"x-ms-source-{name}"] for name in ("range", "if-match", "if-none-match")
                  if f"x-ms-source-{name}" in request.headers}  # fmt: skip
        if bearer := request.headers.get("x-ms-copy-source-authorization"):
            self._check_source(bearer, source.path.lstrip("/").partition("/")[0])
            asked["Authorization"] = bearer
        sent = {
            name: value for name, value in request.headers.items()
            if name not in _HOP_BY_HOP and not name.startswith(("x-ms-copy-source", "x-ms-source-"))
        }  # fmt: skip
        if promised := request.headers.get("x-ms-source-content-md5"):
            sent["content-md5"] = promised
        try:
            async with self._session.get(
                URL(f"{self._address}{source.raw_path_qs}", encoded=True), headers=asked
            ) as read:
                if read.status not in (200, 206):
                    raise (
                        ServiceError("SourceConditionNotMet")
                        if read.status == 412
                        else ServiceError("CannotVerifyCopySource", status=max(400, read.status))
                    )
                sent["content-length"] = str(read.content_length or 0)
                sent.setdefault("content-type", "application/octet-stream")
                if request.query.get("comp") != "block":
                    sent = {**_properties(read.headers), **sent}
                target = URL(f"{self._address}{request.target}", encoded=True)
                data = read.content.iter_chunked(_CHUNK_BYTES) if read.content_length else None
                async with self._session.put(target, headers=sent, data=data) as answer:
                    response = Response(answer.status, body=await answer.read(), reason=answer.reason)
                    for name, value in answer.headers.items():
                        if name.lower() not in _HOP_BY_HOP:
                            response.headers[name] = value
                    response.error_code = answer.headers.get("x-ms-error-code", "")
                    return response
        except (TimeoutError, aiohttp.ClientError):
            raise ServiceError("CannotVerifyCopySource") from None

    def _check_source(self, bearer: str, account: str) -> None:
        owner = self._owner.get(account)
        try:
            if owner is None:
                raise ServiceError("CannotVerifyCopySource", status=404)
            principal = self._authorities[owner.name].check(bearer.partition(" ")[2].strip(), STORAGE_AUDIENCE)
        except TokenRefused:
            raise ServiceError("CannotVerifyCopySource", status=401) from None
        client = owner.client(principal.client_id)
        if client is None or account not in client.storage_roles:
            raise ServiceError("CannotVerifyCopySource", status=403)

    def _unauthenticated(self, account: str, detail: str) -> ServiceError:
        owner = self._owner.get(account)
        tenant_id = owner.tenant_id if owner is not None else "common"
        challenge = (
            f"Bearer authorization_uri=https://login.microsoftonline.com/{tenant_id}/oauth2/authorize "
            f"resource_id={STORAGE_AUDIENCE}"
        )
        return ServiceError("InvalidAuthenticationInfo", headers={"WWW-Authenticate": challenge}, detail=detail)

    async def _forwarded(self, request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        data = None
        if request.body.declared:
            # Beside a length of its own the client would not be sent in chunks, which Azurite's signature check needs.
            headers["content-length"] = str(request.body.length)
            data = request.body.chunks() if request.body.length else None
        url = URL(f"{self._address}{request.target}", encoded=True)
        try:
            async with self._session.request(
                request.method, url, headers=headers, data=data, allow_redirects=False
            ) as answer:
                body = await answer.read()
                response = Response(answer.status, body=body, reason=answer.reason)
                for name, value in answer.headers.items():
                    if name.lower() not in _HOP_BY_HOP:
                        response.headers[name] = value
                if request.method == "HEAD" and "Content-Length" in answer.headers:
                    response.headers["Content-Length"] = answer.headers["Content-Length"]
                response.error_code = answer.headers.get("x-ms-error-code", "")
                return response
        except (TimeoutError, aiohttp.ClientError):
            return error_response(ServiceError("InternalError"), blob_dialect=True, has_body=request.method != "HEAD")


def _properties(headers: Mapping[str, str]) -> dict[str, str]:
    """What Put Blob From URL takes over from the source where the call does not say it otherwise."""
    names = ("content-type", "content-encoding", "content-language", "content-disposition", "cache-control")
    found = {f"x-ms-blob-{name}": headers[name] for name in names if name in headers}
    return found | {name: value for name, value in headers.items() if name.lower().startswith("x-ms-meta-")}


def _reads_a_source(request: Request) -> bool:
    """Whether the call makes the service read another blob, other than by Copy Blob, which Azurite knows."""
    if request.method != "PUT" or "x-ms-copy-source" not in request.headers:
        return False
    comp = request.query.get("comp", "")
    return comp == "block" or (not comp and request.headers.get("x-ms-blob-type", "").lower() == "blockblob")
