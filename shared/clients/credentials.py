"""Tokens: one source for each credential and scope, shared by everything in flight."""

import asyncio
import base64
import binascii
import json
import re
from collections.abc import Callable
from typing import Any, Protocol
from urllib.parse import parse_qsl

from azure.core.credentials import AccessToken
from azure.core.exceptions import ClientAuthenticationError, ServiceRequestError, ServiceResponseError

from shared.errors import Authentication, Configuration, ConnectionLost, ServiceUnavailable

STORAGE_SCOPE = "https://storage.azure.com/.default"
FABRIC_SCOPE = "https://api.fabric.microsoft.com/.default"

# Microsoft's clients treat a token as used up five minutes before it ends; a longer upload than that renews on the way.
REFRESH_BEFORE_EXPIRY_S = 300.0

_KINDS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    # kind: (required, optional)
    "default": ((), ()),
    "managed_identity": ((), ("client_id",)),
    "client_secret": (("tenant_id", "client_id", "client_secret"), ("authority",)),
    "certificate": (("tenant_id", "client_id", "certificate_path"), ("password", "authority")),
    "workload_identity": ((), ("tenant_id", "client_id", "token_file_path", "authority")),
    "cli": ((), ("tenant_id",)),
    "account_key": (("account_key",), ()),
    "sas": (("sas_token",), ()),
}

# What a storage account itself hands out. No token comes of it, so it opens blob sources and nothing else.
ACCOUNT_KINDS = ("account_key", "sas")


class _Credential(Protocol):
    async def get_token(self, *scopes: str, **kwargs: Any) -> AccessToken: ...
    async def close(self) -> None: ...


def parse_credential(setting: str, value: str) -> dict[str, str]:
    """Check the JSON of a ``CREDENTIAL_<NAME>`` setting.

    Raises:
        Configuration: naming the setting and the field, never the value.
    """
    try:
        fields = json.loads(value)
    except ValueError:
        raise Configuration(f"{setting} is not JSON; write an object such as {{\"kind\": \"managed_identity\"}}",
                            subject=setting) from None  # fmt: skip
    kind = fields.get("kind") if isinstance(fields, dict) else None
    if kind not in _KINDS:
        raise Configuration(f"{setting}: kind must be one of {', '.join(_KINDS)}", subject=setting)
    required, optional = _KINDS[kind]
    for field in required:
        if not isinstance(fields.get(field), str) or not fields[field]:
            raise Configuration(f"{setting}: {field} is missing, which kind {kind} needs", subject=setting)
    unknown = set(fields) - {"kind", *required, *optional}
    if unknown:
        raise Configuration(f"{setting}: {', '.join(sorted(unknown))} is not a field of kind {kind}", subject=setting)
    checked = {name: str(value) for name, value in fields.items()}
    if kind == "account_key":
        _check_account_key(setting, checked["account_key"])
    if kind == "sas":
        checked["sas_token"] = _check_sas(setting, checked["sas_token"])
    return checked


def _check_account_key(setting: str, key: str) -> None:
    try:
        decoded = base64.b64decode(key, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise Configuration(f"{setting}: account_key is not Base64; copy key1 or key2 from the account's Access keys",
                            subject=setting)  # fmt: skip


def _check_sas(setting: str, token: str) -> str:
    """The query of a SAS, without the question mark that portals put in front."""
    query = token.strip().removeprefix("?")
    fields = dict(parse_qsl(query))
    if "://" in query or not query.isascii() or not query.isprintable() or "#" in query:
        raise Configuration(f"{setting}: sas_token is the query alone (sv=...&sig=...), without the URL in front",
                            subject=setting)  # fmt: skip
    if not fields.get("sig") or not fields.get("sv"):
        raise Configuration(f"{setting}: sas_token holds no sv or no sig, so it is no shared access signature",
                            subject=setting)  # fmt: skip
    return query


def build_credential(fields: dict[str, str], ca_bundle: str | None) -> _Credential:
    """The azure-identity credential for checked fields.

    Raises:
        Configuration: the kind opens storage accounts only, and something else is to be opened.
    """
    if fields["kind"] in ACCOUNT_KINDS:
        raise Configuration(
            f"a credential of kind {fields['kind']} opens a blob source and nothing else; name one that is known to "
            "Microsoft Entra here, such as kind managed_identity or client_secret",
            subject="credential",
        )
    from azure.identity import aio

    given: dict[str, Any] = {name: value for name, value in fields.items() if name != "kind"}
    transport: dict[str, Any] = {"connection_verify": ca_bundle} if ca_bundle else {}
    if given.get("authority"):
        # Another authority than Microsoft's public cloud is not in the list that instance discovery would ask.
        transport["disable_instance_discovery"] = True
    match fields["kind"]:
        case "client_secret":
            return aio.ClientSecretCredential(**given, **transport)
        case "certificate":
            return aio.CertificateCredential(**given, **transport)
        case "managed_identity":
            return aio.ManagedIdentityCredential(**given)
        case "workload_identity":
            return aio.WorkloadIdentityCredential(**given, **transport)
        case "cli":
            return aio.AzureCliCredential(**given)
        case _:
            return aio.DefaultAzureCredential()


class TokenSource:
    """Bearer tokens for one credential and scope; one refresh at a time, whoever asks.

    A token is renewed five minutes before it ends (or at half its life, if it lives shorter than ten minutes), in the
    background while it is still good.
    """

    def __init__(self, build: Callable[[], _Credential], scope: str, now_s: Callable[[], float]) -> None:
        self._build = build
        self._scope = scope
        self._now_s = now_s
        self._credential: _Credential | None = None
        self._retired: list[_Credential] = []
        self._token: AccessToken | None = None
        self._renew_at_s = 0.0
        self._refresh: asyncio.Task[AccessToken] | None = None

    @property
    def scope(self) -> str:
        return self._scope

    async def get(self) -> AccessToken:
        """A token that is valid now.

        Raises:
            Authentication: the identity provider refuses; the sentence names what to check.
            ConnectionLost, ServiceUnavailable: the identity provider does not answer, or has trouble of its own.
        """
        token, now_s = self._token, self._now_s()
        if token is not None and now_s < self._renew_at_s:
            return token
        refresh = self._start_refresh()
        if token is not None and now_s < token.expires_on:
            return token
        # Shielded: one caller that is cancelled must not take the refresh away from the others.
        return await asyncio.shield(refresh)

    def reject(self, token: AccessToken) -> None:
        """Say that the service refused this token, so that the next caller gets a fresh one."""
        if self._token is token:
            self._token = None
            # azure-identity would hand the same token out of its cache again.
            if self._credential is not None:
                self._retired.append(self._credential)
            self._credential = None

    async def close(self) -> None:
        credential, self._credential = self._credential, None
        if self._refresh is not None and not self._refresh.done():
            self._refresh.cancel()
        if credential is not None:
            await credential.close()
        await self._close_retired()

    async def _close_retired(self) -> None:
        while self._retired:
            await self._retired.pop().close()

    def _start_refresh(self) -> "asyncio.Task[AccessToken]":
        if self._refresh is None or self._refresh.done():
            self._refresh = asyncio.get_running_loop().create_task(self._fetch())
            self._refresh.add_done_callback(_retrieve)
        return self._refresh

    async def _fetch(self) -> AccessToken:
        # No other refresh runs, so nobody uses them any more.
        await self._close_retired()
        if self._credential is None:
            self._credential = self._build()
        credential = self._credential
        try:
            token = await credential.get_token(self._scope)
        except ClientAuthenticationError as error:
            status = getattr(error.response, "status_code", None)
            if status is not None and (status == 429 or status >= 500):
                raise ServiceUnavailable(f"the identity provider answers {status}") from None
            raise Authentication(
                f"the identity provider gives no token for {self._scope}: {_first_line(error)}. "
                "Check the credential's tenant, client and secret, and that the identity is allowed this resource.",
                code="token_refused",
            ) from None
        except (ServiceRequestError, ServiceResponseError, OSError, TimeoutError) as error:
            raise ConnectionLost(f"the identity provider does not answer: {type(error).__name__}") from None
        now_s = self._now_s()
        life_s = max(0.0, token.expires_on - now_s)
        self._token = token
        self._renew_at_s = token.expires_on - min(REFRESH_BEFORE_EXPIRY_S, life_s / 2)
        return token


def _retrieve(task: "asyncio.Task[AccessToken]") -> None:
    # A refresh in the background that fails is tried again by the next caller, who gets the error then.
    if not task.cancelled():
        task.exception()


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return re.sub(r"\s+(Trace ID|Correlation ID|Timestamp):.*", "", line)[:300].rstrip(".")


class SdkCredential:
    """The face of a :class:`TokenSource` that the Azure SDKs know."""

    def __init__(self, tokens: TokenSource) -> None:
        self._tokens = tokens

    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return await self._tokens.get()

    async def close(self) -> None:
        """The token source belongs to others too; nothing to close here."""

    async def __aenter__(self) -> "SdkCredential":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
