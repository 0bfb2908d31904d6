"""One storage account: connections, authorization, and a request that is sent until it has an answer."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import quote, urlsplit

import aiohttp
from yarl import URL

from shared.clients.blob.access import Access, KeyAccess, SasAccess, TokenAccess
from shared.clients.blob.classify import classifier
from shared.clients.credentials import TokenSource
from shared.clients.http import Answer, Classify, Transport
from shared.errors import SourceMissing
from shared.policy.account_url import account_name
from shared.ports import CopyingLearned

# Old enough for every cloud and appliance, new enough for Encoded names in listings (2021-02-12).
API_VERSION = "2023-11-03"
_CONNECT_S = 10.0
_SILENCE_S = 60.0


def open_account(
    url: str, fields: Mapping[str, str], tokens: Callable[[], TokenSource], *, ca_bundle: str | None
) -> "BlobAccount":
    """The account, with the credential that a job names.

    Args:
        url: As :func:`shared.policy.account_url.check_account_url` gave it.
        fields: Of the credential, as ``parse_credential`` gave them.
        tokens: Makes the source of tokens for the storage audience; asked only if the kind of credential has tokens.
        ca_bundle: A PEM file to trust in place of the system's, or None.
    """
    access: Access
    match fields["kind"]:
        case "account_key":
            access = KeyAccess(account_name(url), fields["account_key"], is_https=url.startswith("https:"))
        case "sas":
            access = SasAccess(fields["sas_token"])
        case _:
            access = TokenAccess(tokens())
    return BlobAccount(url, access, ca_bundle=ca_bundle)


class BlobAccount:
    """What all reads of one process from one account share. Belongs to one event loop.

    Attributes:
        url: Scheme, host and, for path-style addresses, account.
        access: How requests are authorized.
        copying: What was learned about copying from here on the target's side.
    """

    def __init__(self, url: str, access: Access, *, ca_bundle: str | None, classify: Classify | None = None) -> None:
        self.url = url
        self.access = access
        self._classify = classify or classifier(access.remedy)
        self.copying = CopyingLearned()
        self._ca_bundle = ca_bundle
        # Its attempts, Retry-After and token renewal; the requests are ours, since a SAS goes into the query and with
        # no Authorization header.
        self._transport = Transport(access.tokens, self._classify, ca_bundle=ca_bundle)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self._transport.close()

    def blob_url(self, container: str, name: str = "") -> str:
        """The address without authorization; ``name`` is literal, slashes stay."""
        return f"{self.url}/{quote(container, safe='$')}" + (f"/{quote(name, safe='/~')}" if name else "")

    async def send(
        self, method: str, url: str, *, query: str = "", headers: Mapping[str, str] | None = None, subject: str
    ) -> Answer:
        """One request without a body, until it succeeds, fails for good or the attempts are used up.

        Raises:
            MigrationError: as the account's classifier sees it.
        """

        async def once(attempt: int) -> Answer:
            async with self._request(method, url, query, headers, subject) as response:
                return Answer(response.status, response.headers, await response.read(), attempt)

        return await self._transport.attempts(once, subject)

    async def stream(
        self, url: str, headers: Mapping[str, str], opened: AsyncExitStack, *, subject: str
    ) -> aiohttp.ClientResponse:
        """A GET whose body is left to be read; ``opened`` ends it. What breaks off later is aiohttp's own error."""

        async def once(_: int) -> aiohttp.ClientResponse:
            async with AsyncExitStack() as mine:
                response = await mine.enter_async_context(self._request("GET", url, "", headers, subject))
                opened.push_async_exit(mine.pop_all())
                return response

        return await self._transport.attempts(once, subject)

    async def assert_known(self) -> None:
        """Raises SourceMissing if the host of the account has no address, which is how an unknown account shows."""
        parts = urlsplit(self.url)
        try:
            await asyncio.get_running_loop().getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
        except socket.gaierror as error:
            if error.errno not in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return
            raise SourceMissing(
                f"there is no storage account at {parts.hostname}: the name has no address; check source.account_url",
                subject="source.account_url",
            ) from None

    @asynccontextmanager
    async def _request(
        self, method: str, url: str, query: str, headers: Mapping[str, str] | None, subject: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        granted, signature = await self.access.authorize()
        whole = "&".join(part for part in (query, signature) if part)
        sent = {"x-ms-version": API_VERSION, **granted, **(headers or {})}
        target = URL(f"{url}?{whole}" if whole else url, encoded=True)
        # A redirect would take the credential to a host that nobody has allowed.
        async with self._pool().request(method, target, headers=sent, allow_redirects=False) as response:
            if response.status >= 300:
                body = await response.read()
                raise self._classify(response.status, response.headers, body, subject)
            yield response

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Made on the first request: a session belongs to the loop that runs at that moment.
            trust = ssl.create_default_context(cafile=self._ca_bundle) if self._ca_bundle else True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=trust, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S, sock_read=_SILENCE_S),
                # What is stored compressed is moved as it is stored.
                auto_decompress=False,
                skip_auto_headers=("Accept-Encoding",),
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._session
