"""How requests to a storage account are authorized: a token of Microsoft Entra, a SAS, or the account's key.

A key never signs requests here. A SAS of one hour that can read and list is made of it, and nothing else can be done
with what goes over the wire.
"""

import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import NoReturn, Protocol
from urllib.parse import parse_qsl

from azure.core.credentials import AccessToken

from shared.clients.credentials import TokenSource
from shared.errors import Authentication

_SAS_LIFE_S = 3600.0
_RENEW_BEFORE_S = 600.0
# The account's clock may be behind ours.
_CLOCK_SKEW_S = 900.0


class Access(Protocol):
    """Attributes: ``tokens`` is what the transport renews when a token is refused."""

    tokens: TokenSource
    remedy: str
    """What to grant or check, as the end of a sentence."""

    def check(self) -> None:
        """Raises Authentication where the credential itself shows that it cannot do."""

    async def authorize(self) -> tuple[Mapping[str, str], str]:
        """Headers and query (without ``?`` or ``&``) of a request, either possibly empty."""

    async def for_copy(self, container: str, name: str) -> tuple[Mapping[str, str], str] | None:
        """Headers and query with which another service reads this one blob; None where it cannot."""


class NoTokens(TokenSource):
    """Stands where a transport wants tokens and there are none."""

    def __init__(self) -> None:
        super().__init__(_no_credential, "", time.time)

    async def get(self) -> AccessToken:
        return AccessToken("", 0)

    def reject(self, token: AccessToken) -> None:
        """Nothing to renew."""


def _no_credential() -> NoReturn:
    raise AssertionError("there is no credential behind this access")


class TokenAccess:
    """A token for the storage audience."""

    remedy = "give the identity the Storage Blob Data Reader role on the container"

    def __init__(self, tokens: TokenSource) -> None:
        self.tokens = tokens

    def check(self) -> None:
        """A token shows nothing beforehand."""

    async def authorize(self) -> tuple[Mapping[str, str], str]:
        token = await self.tokens.get()
        return {"Authorization": f"Bearer {token.token}"}, ""

    async def for_copy(self, container: str, name: str) -> tuple[Mapping[str, str], str] | None:
        token = await self.tokens.get()
        return {"x-ms-copy-source-authorization": f"Bearer {token.token}"}, ""


class SasAccess:
    """A shared access signature that somebody made."""

    remedy = "the SAS needs the permissions read and list on the container, and must not have expired"

    def __init__(self, query: str, now_s: Callable[[], float] = time.time) -> None:
        self.tokens: TokenSource = NoTokens()
        self._query = query
        self._fields = dict(parse_qsl(query))
        self._now_s = now_s

    def check(self) -> None:
        """Expiry, and the permissions where the SAS names them itself and not by a stored policy."""
        ends = _moment(self._fields.get("se", ""))
        if ends is not None and ends.timestamp() <= self._now_s():
            raise Authentication(
                f"the SAS of the source expired at {ends:%Y-%m-%dT%H:%M:%SZ}; make a new one",
                code="source_credential_refused",
                subject="source.credential",
            )
        allowed = self._fields.get("sp")
        if allowed is not None and not {"r", "l"} <= set(allowed):
            raise Authentication(
                f"the SAS of the source allows {allowed!r} and needs r and l, read and list, on the container",
                code="source_permission_denied",
                subject="source.credential",
            )

    async def authorize(self) -> tuple[Mapping[str, str], str]:
        return {}, self._query

    async def for_copy(self, container: str, name: str) -> tuple[Mapping[str, str], str] | None:
        # Bound to addresses, of which the target's is none.
        return None if "sip" in self._fields else ({}, self._query)


class KeyAccess:
    """The account's key."""

    remedy = "copy key1 or key2 of this very account, and see that the account allows access by key"

    def __init__(self, account: str, key: str, *, is_https: bool, now_s: Callable[[], float] = time.time) -> None:
        self.tokens: TokenSource = NoTokens()
        self._account = account
        self._key = key
        self._protocol = "https" if is_https else "https,http"
        self._now_s = now_s
        self._query = ""
        self._renew_at_s = 0.0

    def check(self) -> None:
        """A key shows nothing beforehand."""

    async def authorize(self) -> tuple[Mapping[str, str], str]:
        from azure.storage.blob import AccountSasPermissions, ResourceTypes, generate_account_sas

        now_s = self._now_s()
        if now_s >= self._renew_at_s:
            self._query = generate_account_sas(
                self._account,
                self._key,
                ResourceTypes(container=True, object=True),
                AccountSasPermissions(read=True, list=True),
                expiry=_utc(now_s + _SAS_LIFE_S),
                start=_utc(now_s - _CLOCK_SKEW_S),
                protocol=self._protocol,
            )
            self._renew_at_s = now_s + _SAS_LIFE_S - _RENEW_BEFORE_S
        return {}, self._query

    async def for_copy(self, container: str, name: str) -> tuple[Mapping[str, str], str] | None:
        from azure.storage.blob import BlobSasPermissions, generate_blob_sas

        now_s = self._now_s()
        return {}, generate_blob_sas(
            self._account,
            container,
            name,
            account_key=self._key,
            permission=BlobSasPermissions(read=True),
            expiry=_utc(now_s + _SAS_LIFE_S),
            start=_utc(now_s - _CLOCK_SKEW_S),
            protocol=self._protocol,
        )


def _utc(seconds: float) -> datetime:
    return datetime.fromtimestamp(0, UTC) + timedelta(seconds=int(seconds))


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
