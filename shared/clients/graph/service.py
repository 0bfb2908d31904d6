"""One Graph endpoint: its transport, its pace, and the downloads that it refers to."""

import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from shared.clients.credentials import TokenSource
from shared.clients.exchange import CONNECT_S, SILENCE_S, Exchanges
from shared.clients.graph.classify import classify
from shared.clients.graph.units import ResourceUnits
from shared.clients.http import Answer, Transport
from shared.errors import Configuration, ServiceUnavailable

# SharePoint, "Avoid getting throttled or blocked": traffic that does not say whose it is has the lowest priority.
USER_AGENT = "NONISV|OneLakeMigration|Migrate/1.0"

_READ_AHEAD_BYTES = 1024 * 1024


@dataclass
class Graph:
    """What all drives of one process behind one credential share: connections, pauses and resource units.

    Args:
        url: ``https://graph.microsoft.com``, another cloud's or an emulator's.
        tokens: For Graph's audience.
        ca_bundle: A PEM file to trust, or None for the system's.
        units_per_minute: Resource units that may be spent, or None to learn the limit from the service.
    """

    url: str
    tokens: TokenSource
    ca_bundle: str | None = None
    units_per_minute: int | None = None
    transport: Transport = field(init=False)
    units: ResourceUnits = field(init=False)
    _exchanges: Exchanges = field(init=False)
    _session: aiohttp.ClientSession | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("https", "http") or not parts.netloc or parts.path not in ("", "/") or parts.query:
            raise Configuration(
                f"GRAPH_URL is {self.url!r}; write scheme and host alone, such as https://graph.microsoft.com",
                code="wrong_endpoint",
                subject="GRAPH_URL",
            )
        self.url = f"{parts.scheme}://{parts.netloc}"
        self.transport = Transport(self.tokens, classify, ca_bundle=self.ca_bundle)
        self.units = ResourceUnits(self.units_per_minute, paused_s=self.transport.pacing.left_s)
        self._exchanges = Exchanges(self.ca_bundle)

    async def close(self) -> None:
        self._exchanges.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        await self.transport.close()

    def link(self, url: str, subject: str) -> str:
        """A link of the service, unchanged, once it is certain that it leads nowhere else: the token goes with it.

        Raises:
            Configuration: it leads to another origin.
        """
        try:
            parts, own = urlsplit(url), urlsplit(self.url)
        except ValueError:
            raise ServiceUnavailable("the service refers to what is no address", subject=subject) from None
        if (parts.scheme, parts.netloc.lower()) != (own.scheme, own.netloc.lower()):
            raise Configuration(
                f"the service refers to another one ({parts.scheme}://{parts.hostname}), which gets no token; "
                "check GRAPH_URL",
                code="wrong_endpoint",
                subject=subject,
            )
        return url

    async def get(self, url: str, *, units: int, subject: str, redirects: bool = False) -> Answer:
        """One GET with a token, at the pace of the resource units; sent again where that may help.

        Args:
            url: Of this endpoint, percent-encoded.
            units: What the call costs (SharePoint, "Resource units").
            subject: What an error is about.
            redirects: Whether a 302 is an answer; it is never followed here.

        Raises:
            MigrationError: as ``classify`` sees it.
        """

        async def once(attempt: int) -> Answer:
            await self.units.spend(units)
            token = await self.tokens.get()
            sent = {"Authorization": f"Bearer {token.token}", "User-Agent": USER_AGENT, "Accept": "application/json"}
            status, headers, body = await self._exchanges.exchange("GET", url, sent, b"")
            self.units.observe(headers)
            if status >= 300 and not (redirects and status == 302):
                raise classify(status, headers, body, subject)
            return Answer(status, headers, body, attempt)

        return await self.transport.attempts(once, subject)

    async def get_json(self, url: str, *, units: int, subject: str) -> dict[str, Any]:
        """The same, for an answer that is a JSON object."""
        answer = await self.get(url, units=units, subject=subject)
        try:
            document = json.loads(answer.body)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise ServiceUnavailable("Graph's answer is not a JSON object", subject=subject)
        return document

    async def download(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """One GET of a pre-authenticated address, without a token; the caller closes the answer and judges its status.

        To be called inside ``transport.attempts``, so that downloads wait as well when the service asks to.

        Raises:
            ServiceUnavailable: the address is none, or is not encrypted where Graph is.
            aiohttp.ClientError, TimeoutError, OSError: no answer came.
        """
        # Never in an error or a log: whoever has the address can read the file.
        try:
            address = URL(url, encoded=True)
        except ValueError:
            address = URL()
        schemes = ("https",) if self.url.startswith("https:") else ("https", "http")
        if address.scheme not in schemes or not address.host:
            raise ServiceUnavailable("Graph refers to no address that a file can be safely downloaded from")
        sent = {"User-Agent": USER_AGENT, "Accept-Encoding": "identity", **headers}
        return await self._pool().get(address, headers=sent, allow_redirects=False)

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Made on the first request: a session belongs to the loop that runs at that moment.
            trust = ssl.create_default_context(cafile=self.ca_bundle) if self.ca_bundle else True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=trust, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
                auto_decompress=False,
                read_bufsize=_READ_AHEAD_BYTES,
                cookie_jar=aiohttp.DummyCookieJar(),
            )
            # Attempts are counted and paced in one place.
            self._session._retry_connection = False
        return self._session
