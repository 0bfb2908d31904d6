"""HTTP/1.1 requests with whole answers, on kept connections, as cheap as asyncio allows.

An upload is two such exchanges a file. A general client spends more CPU on one than reading, hashing and encrypting the
file take together, so requests are written here by hand; answers are read by llhttp, the parser of Node.js.
"""

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp
import httptools
from multidict import CIMultiDict

from shared.ports import Block

CONNECT_S = 10.0
# How long nothing may move, in neither direction. What the kernel has taken counts as sent.
SILENCE_S = 60.0
_LOOKS = 4
_KEPT_S = 60.0
# RFC 8305: when to try the next address of a host that has several.
_NEXT_ADDRESS_S = 0.25
_LONGEST_HEAD_BYTES = 256 * 1024
_LONGEST_BODY_BYTES = 256 * 1024 * 1024
# What is handed to the transport at once: handed over whole, a block would be copied, and once more encrypted.
_SLICE_BYTES = 256 * 1024
_BUFFER_BYTES = 256 * 1024

Exchanged = tuple[int, Mapping[str, str], bytes]
"""Status, headers and the whole body of an answer."""


class Exchanges:
    """Kept connections, by origin; as many as there are exchanges at once. Belongs to one event loop."""

    def __init__(self, ca_bundle: str | None) -> None:
        self._ca_bundle = ca_bundle
        self._trust: ssl.SSLContext | None = None
        self._kept: dict[str, deque[_Connection]] = {}
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))
        self._places: dict[str, tuple[str, str, str, int | None]] = {}

    def close(self) -> None:
        for kept in self._kept.values():
            for connection in kept:
                connection.abort()
        self._kept.clear()

    async def exchange(self, method: str, url: str, headers: Mapping[str, str], data: Block) -> Exchanged:
        """Send one request, once, and read its whole answer.

        Args:
            method: HTTP method.
            url: Percent-encoded already.
            headers: Beside Host and Content-Length.
            data: The body.

        Raises:
            aiohttp.ClientError, TimeoutError, OSError: no whole answer came; whether it took effect is unknown.
            ValueError: a line break in a header or the URL, which would be another request.
        """
        slash = url.find("/", url.find("://") + 3)
        origin, target = (url[:slash], url[slash:]) if slash > 0 else (url, "/")
        place = self._places.get(origin)
        if place is None:
            parts = urlsplit(origin)
            place = self._places[origin] = (parts.scheme, parts.netloc, parts.hostname or "", parts.port)
        scheme, netloc, host, port = place
        lines = [f"{method} {target} HTTP/1.1", f"Host: {netloc}", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        head = "\r\n".join(lines)
        if head.count("\r") != len(lines) - 1 or head.count("\n") != len(lines) - 1:
            raise ValueError(f"a line break in a request to {origin}")
        sent = f"{head}\r\n\r\n".encode("latin-1")
        kept = self._kept.get(origin)
        if kept is None:
            kept = self._kept[origin] = deque()
        connection = _usable(kept) or await self._open(scheme, host, port)
        answer = await connection.exchange(sent, data, is_head=method == "HEAD")
        if connection.is_open:
            connection.idle_since_s = time.monotonic()
            kept.append(connection)
        return answer

    async def _open(self, scheme: str, host: str, port: int | None) -> "_Connection":
        loop = asyncio.get_running_loop()
        trust = None
        if scheme == "https":
            trust = self._trust = self._trust or ssl.create_default_context(cafile=self._ca_bundle)
        try:
            async with asyncio.timeout(CONNECT_S):
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, self._buffer),
                    host,
                    port or (443 if trust else 80),
                    ssl=trust,
                    happy_eyeballs_delay=_NEXT_ADDRESS_S,
                )
        except OSError as error:
            # A name that does not resolve, a refused connection, a certificate that is not trusted: said without a URL.
            raise ConnectFailed(f"cannot connect to {host}:{port or (443 if trust else 80)}") from error
        return connection


class ConnectFailed(aiohttp.ClientError):
    """No connection came about; the text names host and port."""


def _usable(kept: "deque[_Connection]") -> "_Connection | None":
    # The one used last first, so that those beyond what is needed grow old and go.
    while kept:
        connection = kept.pop()
        if connection.is_open and time.monotonic() - connection.idle_since_s < _KEPT_S:
            return connection
        connection.abort()
    return None


class _Connection(asyncio.BufferedProtocol):
    """One connection, one exchange at a time.

    What arrives is parsed at once, so all connections of a loop read into the same buffer; the other kind of protocol
    is given a new one of 256 KiB for each answer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        self._loop = loop
        self._buffer = buffer
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[Exchanged] | None = None
        self._is_head = False
        self._is_writable: asyncio.Event | None = None
        self._headers: list[tuple[str, str]] = []
        self._body: list[bytes] = []
        self._received = 0
        self._is_complete_head = False
        self._silence: asyncio.TimerHandle | None = None
        self._moved_s = 0.0
        self._unsent = 0
        self.is_open = True
        self.idle_since_s = 0.0

    async def exchange(self, head: bytes, data: Block, *, is_head: bool) -> Exchanged:
        self._is_head = is_head
        self._waiter = waiter = self._loop.create_future()
        try:
            self._transport.write(head + data if 0 < len(data) <= _SLICE_BYTES else head)
            self._moved_s = self._loop.time()
            self._unsent = self._transport.get_write_buffer_size()
            self._silence = self._loop.call_later(SILENCE_S / _LOOKS, self._listen)
            if len(data) > _SLICE_BYTES:
                for at in range(0, len(data), _SLICE_BYTES):
                    self._transport.write(memoryview(data)[at : at + _SLICE_BYTES])
                    if self._is_writable is not None:
                        await self._is_writable.wait()
                    if waiter.done():
                        # Refused before it was read: what is left of the body would be taken for the next request.
                        self.abort()
                        break
            answer: Exchanged = await waiter
        except BaseException:
            self.abort()
            raise
        finally:
            if self._silence is not None:
                self._silence.cancel()
        if self._transport.get_write_buffer_size():
            self.abort()
        return answer

    def abort(self) -> None:
        self.is_open = False
        self._transport.abort()

    def _listen(self) -> None:
        """Give the exchange up where nothing has moved for too long; else look again."""
        now_s, unsent = self._loop.time(), self._transport.get_write_buffer_size()
        if unsent != self._unsent:
            self._moved_s, self._unsent = now_s, unsent
        # The clock of timers is coarse.
        if now_s - self._moved_s >= SILENCE_S * (1 - 0.5 / _LOOKS):
            self._fail(TimeoutError())
            return
        self._silence = self._loop.call_later(SILENCE_S / _LOOKS, self._listen)

    # -- asyncio.BufferedProtocol --------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._waiter is None or self._waiter.done():
            # Nobody asked: it would be taken for the answer to the next request.
            self.abort()
            return
        self._moved_s = self._loop.time()
        try:
            self._parser.feed_data(self._buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            # Also raised for what follows the head of an answer to HEAD, which has been taken by then.
            self._fail(aiohttp.ClientPayloadError("the answer is not HTTP"))
            self.abort()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if exc is None and self._is_complete_head and not self._announces_an_end():
            # The old way to say where a body ends, which proxies use for pages of their own.
            self._answered()
        self._fail(exc or aiohttp.ServerDisconnectedError())

    def pause_writing(self) -> None:
        self._is_writable = asyncio.Event()

    def resume_writing(self) -> None:
        if self._is_writable is not None:
            self._is_writable.set()
            self._is_writable = None

    def _settle(self) -> None:
        # Whoever waits to write more need not: there is an answer, or there will be none.
        if self._is_writable is not None:
            self._is_writable.set()

    # -- llhttp's callbacks ----------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._waiter is None or self._waiter.done():
            # A second answer behind the first.
            self.abort()
        self._headers, self._body, self._received = [], [], 0
        self._is_complete_head = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._received += len(name) + len(value)
        if self._received > _LONGEST_HEAD_BYTES:
            self._fail(aiohttp.ClientPayloadError("the head of the answer has no end"))
            self.abort()
        self._headers.append((name.decode("latin-1"), value.decode("latin-1").strip()))

    def on_headers_complete(self) -> None:
        if self._is_head and self._parser.get_status_code() >= 200:
            # llhttp would wait for as many bytes as the header announces, and none follow.
            self._answered()
            self._parser = httptools.HttpResponseParser(self)
            return
        # An interim answer (1xx) says nothing of what became of the request, also where nothing follows.
        self._is_complete_head = self._parser.get_status_code() >= 200

    def _announces_an_end(self) -> bool:
        return any(name.lower() in ("content-length", "transfer-encoding") for name, _ in self._headers)

    def on_body(self, body: bytes) -> None:
        self._received += len(body)
        if self._received > _LONGEST_BODY_BYTES:
            self._fail(aiohttp.ClientPayloadError("the body of the answer has no end"))
            self.abort()
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._parser.get_status_code() >= 200:
            self._answered()

    def _answered(self) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if not self._parser.should_keep_alive():
            # Its end may still be on the way; nobody sends anything behind it.
            self.is_open = False
            self._transport.close()
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._waiter.set_result((self._parser.get_status_code(), CIMultiDict(self._headers), body))
        self._settle()

    def _fail(self, error: BaseException) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self._settle()
