"""The part of Microsoft Entra that a client with a secret needs: discovery and the token endpoint.

Shapes: Microsoft's "OAuth 2.0 client credentials flow" and "Entra authentication and authorization error codes"
pages. MSAL first reads the tenant's OpenID configuration, azure-identity's asynchronous credentials go straight to
the token endpoint; both work with ``authority=<this>, disable_instance_discovery=True``.
"""

from __future__ import annotations

import hmac
import json
import time
import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from local.emulators.estate import Estate
from local.emulators.faults import FaultRule
from local.emulators.pipeline import Call, retry_after_header
from local.emulators.tokens import KNOWN_AUDIENCES, TokenAuthority
from local.emulators.wire import Request, Response, parse_query

_FORM_LIMIT_BYTES = 64 * 1024
_GRANT = "client_credentials"


class Application(Protocol):
    """What the issuer knows of a client."""

    @property
    def id(self) -> str:
        """The client id."""
        ...

    @property
    def secret(self) -> str:
        """The only secret it has."""
        ...


class Directory(Protocol):
    """A tenant."""

    @property
    def tenant_id(self) -> str:
        """What its URLs and its tokens name."""
        ...

    def client(self, client_id: str) -> Application | None:
        """Returns the client with that id, or None."""
        ...


class Entra:
    """Issues tokens to the clients of the estate.

    Args:
        others: further tenants with those who sign for them; a client of one is unknown in the others. One with the
            estate's tenant id adds its clients to that tenant.
    """

    name = "entra"

    def __init__(
        self, estate: Estate, tokens: TokenAuthority, others: Sequence[tuple[Directory, TokenAuthority]] = ()
    ) -> None:
        self._tenants: dict[str, list[tuple[Directory, TokenAuthority]]] = {}
        directory: Directory
        for directory, authority in ((estate, tokens), *others):
            self._tenants.setdefault(directory.tenant_id, []).append((directory, authority))

    def classify(self, request: Request) -> Call:
        """A POST asks for a token; everything else is discovery."""
        return Call("token" if request.method == "POST" else "properties", request.path)

    async def handle(self, request: Request, call: Call) -> Response:
        """Answers discovery and token requests; anything else is 404."""
        tenant, _, rest = request.path.lstrip("/").partition("/")
        if request.method == "GET" and rest == "v2.0/.well-known/openid-configuration":
            return self._discovery(request, tenant)
        if request.method == "POST" and rest == "oauth2/v2.0/token":
            return await self._token(request, tenant)
        return _json(404, {"error": "not_found"})

    def refuse(self, request: Request, call: Call, rule: FaultRule) -> Response:
        """Answers as a busy or broken directory does."""
        retry = retry_after_header(rule.retry_after_s)
        if rule.fault == "throttle":
            response = _failure(
                429, "temporarily_unavailable", 90033, "A transient error has occurred. Please try again."
            )
        elif rule.fault == "expired_token":
            response = _failure(401, "invalid_client", 7000222, "The provided client secret keys are expired.")
        elif rule.fault == "unavailable":
            response = _failure(
                503, "temporarily_unavailable", 90033, "A transient error has occurred. Please try again."
            )
        else:
            response = _failure(500, "server_error", 90019, "The service encountered an internal error.")
        response.headers.update(retry)
        return response

    def _discovery(self, request: Request, tenant: str) -> Response:
        if tenant not in self._tenants:
            return self._unknown_tenant(tenant)
        base = f"https://{request.headers.get('host', '')}/{tenant}"
        return _json(
            200,
            {
                "issuer": f"{base}/v2.0",
                "authorization_endpoint": f"{base}/oauth2/v2.0/authorize",
                "token_endpoint": f"{base}/oauth2/v2.0/token",
                "token_endpoint_auth_methods_supported": ["client_secret_post"],
                "response_types_supported": ["token"],
                "subject_types_supported": ["pairwise"],
            },
        )

    @staticmethod
    def _unknown_tenant(tenant: str) -> Response:
        return _failure(
            400,
            "invalid_tenant",
            90002,
            f"Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID.",
        )

    async def _token(self, request: Request, tenant: str) -> Response:
        if tenant not in self._tenants:
            return self._unknown_tenant(tenant)
        if request.body.length > _FORM_LIMIT_BYTES:
            return _failure(413, "invalid_request", 900144, "The request body is too large.")
        form = parse_query((await request.body.read()).decode("utf-8", "replace"))
        if form.get("grant_type") != _GRANT:
            return _failure(
                400,
                "unsupported_grant_type",
                70003,
                f"The app requested an unsupported grant type '{form.get('grant_type', '')}'.",
            )
        client_id = form.get("client_id", "")
        known = [(directory.client(client_id), authority) for directory, authority in self._tenants[tenant]]
        client, tokens = next((found for found in known if found[0] is not None), known[0])
        if client is None:
            return _failure(
                400,
                "unauthorized_client",
                700016,
                f"Application with identifier '{form.get('client_id', '')}' was not found in the directory.",
            )
        if not hmac.compare_digest(client.secret.encode(), form.get("client_secret", "").encode()):
            return _failure(
                401,
                "invalid_client",
                7000215,
                f"Invalid client secret provided. Ensure the secret being sent in the request is the client "
                f"secret value, not the client secret ID, for a secret added to app '{client.id}'.",
            )
        # MSAL may add the OpenID scopes beside the resource's own.
        scopes = [scope for scope in form.get("scope", "").split() if "/" in scope]
        if len(scopes) != 1 or not scopes[0].endswith("/.default"):
            return _failure(
                400,
                "invalid_scope",
                1002012,
                f"The provided value for scope {form.get('scope', '')} is not valid. Client credential "
                "flows must have a scope value with /.default suffixed to the resource identifier "
                "(application ID URI).",
            )
        audience = scopes[0].removesuffix("/.default").rstrip("/")
        if audience not in KNOWN_AUDIENCES:
            return _failure(
                400, "invalid_resource", 500011, f"The resource principal named {audience} was not found in the tenant."
            )
        lifetime_s = tokens.lifetime_s
        return _json(
            200,
            {
                "token_type": "Bearer",
                "expires_in": lifetime_s,
                "ext_expires_in": lifetime_s,
                "access_token": tokens.issue(client.id, audience),
            },
        )


def _json(status: int, document: dict[str, Any]) -> Response:
    headers = {"Content-Type": "application/json; charset=utf-8", "Cache-Control": "no-store, no-cache"}
    return Response(status, headers, json.dumps(document).encode())


def _failure(status: int, error: str, code: int, text: str) -> Response:
    trace, correlation = str(uuid.uuid4()), str(uuid.uuid4())
    stamp = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
    response = _json(
        status,
        {
            "error": error,
            "error_description": (
                f"AADSTS{code}: {text} Trace ID: {trace} Correlation ID: {correlation} Timestamp: {stamp}"
            ),
            "error_codes": [code],
            "timestamp": stamp,
            "trace_id": trace,
            "correlation_id": correlation,
        },
    )
    response.error_code = error
    return response
