"""One way to send a request: token, pool, Retry-After for the whole process, a bounded number of attempts."""

import asyncio
import math
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import aiohttp
from yarl import URL

from shared.clients.credentials import TokenSource
from shared.clients.exchange import CONNECT_S, SILENCE_S, ConnectFailed, Exchanges
from shared.errors import (
    Authentication,
    ConnectionLost,
    MigrationError,
    ServiceUnavailable,
    SourceChanged,
    Throttled,
    TransientError,
)
from shared.policy.backoff import transport_delay_s
from shared.ports import Block

_T = TypeVar("_T")

MAX_ATTEMPTS = 6
BUDGET_S = 45.0
# A service that says "in a year" is asked again before that.
LONGEST_PAUSE_S = 900.0
# All wait for the same moment; over this share of the pause, a second at most, they come back one after the other.
_SPREAD = 0.25
_LONGEST_SPREAD_S = 1.0
_MAX_REFRESHES = 3

Classify = Callable[[int, Mapping[str, str], bytes, str], MigrationError]
"""(status, headers, body, subject) -> the error that it means."""


@dataclass(slots=True)
class Answer:
    """A successful response. ``attempt`` tells whether an earlier try may have taken effect unseen."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    attempt: int


class Pacing:
    """What all requests of one process to one service have in common: Retry-After and a bandwidth cap."""

    def __init__(self, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        self._sleep = sleep
        self._not_before_s = 0.0
        self._spread_s = 0.0
        self._bytes_free_at_s = 0.0

    def pause(self, seconds: float) -> None:
        """Nobody sends anything for so long: the service has spoken to one for all. Then it is asked again."""
        seconds = min(seconds, LONGEST_PAUSE_S)
        not_before_s = time.monotonic() + seconds
        if not_before_s > self._not_before_s:
            self._not_before_s = not_before_s
            self._spread_s = min(seconds * _SPREAD, _LONGEST_SPREAD_S)

    def left_s(self) -> float:
        """Seconds until requests may be sent; 0 or less if they may be."""
        return self._not_before_s - time.monotonic()

    async def turn(self, until_s: float = math.inf) -> bool:
        """Wait until requests may be sent; False, and at once, where that is after ``until_s`` (monotonic).

        A pause may become longer while it is waited for.
        """
        while (wait_s := self.left_s()) > 0:
            if time.monotonic() + wait_s > until_s:
                return False
            await self._sleep(wait_s + random.random() * self._spread_s)  # noqa: S311 - spreads load
        return True

    async def spend(self, size_bytes: int, bytes_per_s: int | None) -> None:
        """Wait until ``size_bytes`` fit under the cap. Callers are served in the order in which they come."""
        if bytes_per_s is None:
            return
        now_s = time.monotonic()
        start_s = max(now_s, self._bytes_free_at_s)
        self._bytes_free_at_s = start_s + size_bytes / bytes_per_s
        if start_s > now_s:
            await self._sleep(start_s - now_s)


class Transport:
    """Sends requests to one service.

    Args:
        tokens: Where bearer tokens come from.
        classify: The service's own classifier.
        ca_bundle: A PEM file to trust in place of the system's, or None.
    """

    def __init__(self, tokens: TokenSource, classify: Classify, *, ca_bundle: str | None) -> None:
        self.tokens = tokens
        self.pacing = Pacing()
        self.on_refused: Callable[[str], None] | None = None
        self._classify = classify
        self._ca_bundle = ca_bundle
        self._exchanges = Exchanges(ca_bundle)
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        self._exchanges.close()
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        data: Block = b"",
        subject: str,
    ) -> Answer:
        """Send until it succeeds, fails for good or the attempts are used up.

        Args:
            method: HTTP method.
            url: Already percent-encoded.
            headers: Beside the authorization.
            data: The body; sent again whole at each attempt.
            subject: What an error is about, for the report.

        Raises:
            MigrationError: as the service's classifier sees it.
        """

        async def once(attempt: int) -> Answer:
            return await self.send_once(method, url, headers, data, subject, attempt)

        return await self.attempts(once, subject)

    async def send_once(
        self, method: str, url: str, headers: Mapping[str, str] | None, data: Block, subject: str, attempt: int
    ) -> Answer:
        """One attempt, for use inside :meth:`attempts`."""
        token = await self.tokens.get()
        sent = {"Authorization": f"Bearer {token.token}", **(headers or {})}
        status, received, body = await self._exchanges.exchange(method, url, sent, data)
        if status >= 300:
            raise self._classify(status, received, body, subject)
        return Answer(status, received, body, attempt)

    async def attempts(self, once: Callable[[int], Awaitable[_T]], subject: str) -> _T:
        """Call ``once(attempt)`` until it does not raise a TransientError, within the bounds.

        A 401 is answered by one fresh token (a token that has merely expired, by up to three).
        """
        started_s = time.monotonic()
        refreshes = 0
        attempt = 0
        while True:
            attempt += 1
            if not await self.pacing.turn(started_s + BUDGET_S):
                # A pause for durable timers: an activity that slept through it would run into its timeout.
                left_s = self.pacing.left_s()
                raise Throttled("the service asked for a long pause", subject=subject, retry_after_s=left_s)
            token = await self.tokens.get()
            try:
                return await once(attempt)
            except Authentication as error:
                if error.code not in ("token_rejected", "token_expired"):
                    raise
                refreshes += 1
                if refreshes > (_MAX_REFRESHES if error.code == "token_expired" else 1):
                    raise
                self.tokens.reject(token)
                continue
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure: TransientError = ConnectionLost(f"{_named(error)}", subject=subject)
            except SourceChanged:
                # The same condition fails again, however often it is sent; who set it has to look anew.
                raise
            except TransientError as error:
                failure = error
            if isinstance(failure, Throttled | ServiceUnavailable):
                self.pacing.pause(failure.retry_after_s or 0.0)
                if self.on_refused is not None:
                    self.on_refused(failure.detail)
            delay_s = transport_delay_s(attempt, failure.retry_after_s, random.random())  # noqa: S311 - spreads load
            if attempt >= MAX_ATTEMPTS or time.monotonic() - started_s + delay_s > BUDGET_S:
                raise failure from None
            await asyncio.sleep(delay_s)

    @asynccontextmanager
    async def stream(
        self, url: str, *, headers: Mapping[str, str] | None = None, subject: str
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """One GET whose body is read block by block.

        Its beginning has the attempts of :meth:`send`; what breaks off later is a ConnectionLost, since only the reader
        knows from where to go on.
        """
        async with AsyncExitStack() as opened:

            async def once(_: int) -> aiohttp.ClientResponse:
                token = await self.tokens.get()
                sent = {"Authorization": f"Bearer {token.token}", **(headers or {})}
                response = await opened.enter_async_context(
                    self._pool().get(URL(url, encoded=True), headers=sent, allow_redirects=False)
                )
                if response.status >= 300:
                    raise self._classify(response.status, response.headers, await response.read(), subject)
                return response

            response = await self.attempts(once, subject)
            try:
                yield response
            except (aiohttp.ClientError, TimeoutError) as error:
                raise ConnectionLost(_named(error), subject=subject) from None

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            # Made on the first request: a session belongs to the loop that runs at that moment.
            trust = ssl.create_default_context(cafile=self._ca_bundle) if self._ca_bundle else True
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, ssl=trust, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S),
                auto_decompress=False,
            )
        return self._session


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """The Retry-After header in seconds; the date form is not used by these services and counts as absent."""
    value = headers.get("Retry-After", "").strip()
    return float(value) if value.isascii() and value.isdigit() and len(value) < 9 else None


def _named(error: BaseException) -> str:
    # The text of an aiohttp error may hold a URL with its query; the name and host are enough.
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectFailed):
        return str(error)
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot connect to {error.host}:{error.port}"
    if isinstance(error, aiohttp.ServerDisconnectedError | ConnectionError | aiohttp.ClientOSError):
        return "the connection was reset"
    return f"the connection failed ({type(error).__name__})"
