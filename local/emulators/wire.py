"""HTTP/1.1 on asyncio, only as much as the emulators need.

The rest of the package sees `Request` and `Response` and a handler ``async (Request) -> Response``; nothing else
knows how bytes travel. A general web framework spends more on a request than the emulated effect costs, and would
hide what the fault plan needs: a reset at a chosen moment, or a body shorter than it was announced.

Bodies need a Content-Length: Azure Storage answers 411 without one, so chunked uploads are refused the same way.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from typing import BinaryIO
from urllib.parse import unquote_plus

HEAD_LIMIT_BYTES = 256 * 1024
CHUNK_BYTES = 256 * 1024
BUFFER_HIGH_BYTES = 1024 * 1024
# A client that is still sending does not look for an early answer; closing on it would hide the refusal.
DRAIN_LIMIT_BYTES = 1024 * 1024 * 1024
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(slots=True)
class FileSlice:
    """Part of an open file as a response body; whoever sends it closes the file."""

    file: BinaryIO
    offset: int
    count: int


@dataclass(slots=True)
class Response:
    """An answer. ``Content-Length`` is filled in from the body unless the handler set it (HEAD does)."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | FileSlice = b""
    reason: str | None = None
    error_code: str = ""
    resets: bool = False
    """Abort the connection instead of answering."""
    cut_short: bool = False
    """Announce the whole body, send half of it, close."""
    corrupted: bool = False
    """Flip bytes of the body on its way out."""
    closes: bool = False


class ConnectionGone(ConnectionError):
    """The client went away in the middle of a request."""


def damaged(data: bytes) -> bytes:
    """Returns the bytes with the first one flipped, same length."""
    return bytes([data[0] ^ 0xFF]) + data[1:] if data else data


class Body:
    """The body of a request, read at most once, whole or in chunks."""

    __slots__ = ("_connection", "_expects_continue", "_left", "damage", "declared", "length")

    def __init__(self, connection: Connection, length: int | None, *, expects_continue: bool) -> None:
        self._connection = connection
        self.declared = length is not None
        self.length = length or 0
        self._left = self.length
        self._expects_continue = expects_continue
        self.damage = False

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yields the body as it arrives, so that memory stays bounded.

        Raises:
            ConnectionGone: the client stopped before the announced length.
        """
        if self._expects_continue and self._left:
            self._expects_continue = False
            self._connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while self._left:
            chunk = await self._connection.take(self._left)
            self._left -= len(chunk)
            if self.damage:
                self.damage = False
                chunk = damaged(chunk)
            yield chunk

    async def read(self) -> bytes:
        """Returns the whole body; for calls whose length was checked."""
        if not self._left:
            return b""
        parts = [chunk async for chunk in self.chunks()]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def drained(self) -> bool:
        """Skips what a handler left unread; False when that is too much or was never asked for."""
        if self._left == 0:
            return True
        if self._expects_continue or self._left > DRAIN_LIMIT_BYTES:
            return False
        async for _ in self.chunks():
            pass
        return True


@dataclass(slots=True)
class Request:
    """One request. Header names are lower-case; ``path`` is still percent-encoded."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Body
    secure: bool
    target: str = ""
    """Path and query as they were sent."""


Handler = Callable[[Request], Awaitable[Response]]


def parse_query(text: str) -> dict[str, str]:
    """Decodes a query string as a form does: ``+`` is a space, the last of equal names wins."""
    query: dict[str, str] = {}
    for pair in text.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            if "%" in value or "+" in value:
                value = unquote_plus(value, errors="strict")
            query[name] = value
    return query


class _Malformed(Exception):
    """The request cannot be read; the connection ends with this answer."""

    def __init__(self, response: Response) -> None:
        super().__init__(response.status)
        self.response = response


def _malformed(status: int, text: str, code: str = "") -> _Malformed:
    headers = {"Content-Type": "text/plain"}
    if code:
        headers["x-ms-error-code"] = code
    return _Malformed(Response(status, headers, text.encode(), error_code=code, closes=True))


class _HttpDate:
    """``Date`` changes once a second; formatting it for each answer would be a waste."""

    def __init__(self) -> None:
        self._second = 0
        self._text = ""

    def now(self) -> str:
        second = int(time.time())
        if second != self._second:
            self._second, self._text = second, formatdate(second, usegmt=True)
        return self._text


_DATE = _HttpDate()


class Connection(asyncio.Protocol):
    """One client connection: reads a request, awaits the handler, answers, again."""

    def __init__(self, handler: Handler, open_connections: set[Connection]) -> None:
        self._handler = handler
        self._open_connections = open_connections
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None
        self._drain_waiter: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._writing_paused = False
        self._ended = False
        self._secure = False
        self.busy = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._secure = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=BUFFER_HIGH_BYTES)
        self._open_connections.add(self)
        self._task = asyncio.get_running_loop().create_task(self._serve())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if len(self._buffer) > BUFFER_HIGH_BYTES and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._open_connections.discard(self)

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if self._drain_waiter is not None and not self._drain_waiter.done():
            self._drain_waiter.set_result(None)

    def _end(self) -> None:
        self._ended = True
        for waiter in (self._waiter, self._drain_waiter):
            if waiter is not None and not waiter.done():
                waiter.set_result(None)

    def close(self) -> None:
        """Ends the connection without waiting for a request in flight."""
        self._task.cancel()
        self._transport.abort()

    # reading

    async def _more(self) -> None:
        if self._ended:
            raise ConnectionGone
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def take(self, limit: int) -> bytes:
        """Returns between 1 and ``limit`` bytes that have arrived."""
        while not self._buffer:
            await self._more()
        if len(self._buffer) <= limit:
            data, self._buffer = bytes(self._buffer), bytearray()
        else:
            data = bytes(self._buffer[:limit])
            del self._buffer[:limit]
        return data

    async def _head(self) -> str | None:
        searched = 0
        while (end := self._buffer.find(b"\r\n\r\n", searched)) < 0:
            searched = max(0, len(self._buffer) - 3)
            if len(self._buffer) > HEAD_LIMIT_BYTES:
                raise _malformed(431, "Request header too large.")
            try:
                await self._more()
            except ConnectionGone:
                return None
        head = self._buffer[:end].decode("latin-1")
        del self._buffer[: end + 4]
        return head

    def _request(self, head: str) -> Request:
        lines = head.split("\r\n")
        try:
            method, target, version = lines[0].split(" ")
        except ValueError:
            raise _malformed(400, "Bad Request - Invalid Request Line") from None
        if not version.startswith("HTTP/1.") or not method.isalpha():
            raise _malformed(400, "Bad Request - Invalid Request Line")
        if head.count("\n") != len(lines) - 1 or "\0" in head:
            raise _malformed(400, "Bad Request - Invalid Header")
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise _malformed(400, "Bad Request - Invalid Header")
            name = name.lower()
            headers[name] = f"{headers[name]},{value.strip()}" if name in headers else value.strip()
        if version == "HTTP/1.0":
            headers.setdefault("connection", "close")
        if "transfer-encoding" in headers:
            raise _malformed(411, "The Content-Length header was not specified.", "MissingContentLengthHeader")
        declared = headers.get("content-length")
        if declared is not None and not (declared.isascii() and declared.isdigit()):
            raise _malformed(400, "Bad Request - Invalid Content Length")
        if not target.startswith("/"):
            scheme, separator, rest = target.partition("://")
            if not separator or scheme not in ("http", "https"):
                raise _malformed(400, "Bad Request - Invalid URL")
            target = "/" + rest.partition("/")[2]
        path, _, query_text = target.partition("?")
        try:
            query = parse_query(query_text)
        except UnicodeDecodeError:
            raise _malformed(400, "Bad Request - Invalid URL") from None
        body = Body(
            self,
            None if declared is None else int(declared),
            expects_continue=headers.get("expect", "").lower() == "100-continue",
        )
        return Request(method, path, query, headers, body, self._secure, target)

    # answering

    async def _serve(self) -> None:
        try:
            while True:
                head = await self._head()
                if head is None:
                    break
                self.busy = True
                request = self._request(head)
                try:
                    response = await self._handler(request)
                except ConnectionGone:
                    break
                except Exception:  # noqa: BLE001 - a bug must be seen, and must not take the other connections with it
                    traceback.print_exc(file=sys.stderr)
                    response = Response(500, {"x-ms-error-code": "InternalError"}, closes=True)
                keeps = await self._send(request, response)
                self.busy = False
                if not keeps:
                    break
        except _Malformed as refusal:
            self._write_head(refusal.response, len(refusal.response.body))  # type: ignore[arg-type]
            self.write(refusal.response.body)  # type: ignore[arg-type]
        except ConnectionError:
            pass  # the client is gone: nobody is left to tell
        finally:
            self._transport.close()

    def write(self, data: bytes) -> None:
        if not self._transport.is_closing():
            self._transport.write(data)

    async def _drain(self) -> None:
        while self._writing_paused:
            if self._ended:
                raise ConnectionGone
            self._drain_waiter = asyncio.get_running_loop().create_future()
            await self._drain_waiter

    def _head_bytes(self, response: Response, length: int) -> bytes:
        headers = response.headers
        reason = response.reason or _REASONS.get(response.status, "Unknown")
        lines = [f"HTTP/1.1 {response.status} {reason}"]
        if "Content-Length" not in headers and response.status != 304:
            lines.append(f"Content-Length: {length}")
        lines.extend([f"{name}: {value}" for name, value in headers.items()])
        if response.closes:
            lines.append("Connection: close")
        lines.append(f"Date: {_DATE.now()}\r\n\r\n")
        return "\r\n".join(lines).encode("latin-1", "replace")

    def _write_head(self, response: Response, length: int) -> None:
        self.write(self._head_bytes(response, length))

    def _reset(self) -> None:
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._transport.abort()

    async def _send(self, request: Request, response: Response) -> bool:
        """Sends the answer; returns whether the connection can serve another request."""
        if response.resets:
            if isinstance(response.body, FileSlice):
                response.body.file.close()
            self._reset()
            return False
        if request.headers.get("connection", "").lower() == "close":
            response.closes = True
        if request.body._left and not await request.body.drained():
            response.closes = True
        if isinstance(response.body, FileSlice):
            return await self._send_file(response, response.body)
        body = response.body
        if response.corrupted:
            body = damaged(body)
        head = self._head_bytes(response, len(body))
        if request.method == "HEAD":
            # Whatever the service meant to say: what follows the head would be taken for the next answer.
            body = b""
        if response.cut_short:
            self.write(head + body[: len(body) // 2])
            return False
        self.write(head + body if body else head)
        if self._writing_paused:
            await self._drain()
        return not response.closes

    async def _send_file(self, response: Response, body: FileSlice) -> bool:
        with body.file:
            self._write_head(response, body.count)
            left = body.count // 2 if response.cut_short else body.count
            if not self._secure and not response.corrupted and not response.cut_short:
                if self._transport.is_closing():
                    return False
                await asyncio.get_running_loop().sendfile(self._transport, body.file, body.offset, left)
                return not response.closes
            body.file.seek(body.offset)
            damage = response.corrupted
            while left:
                chunk = body.file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    return False
                left -= len(chunk)
                self.write(damaged(chunk) if damage else chunk)
                damage = False
                await self._drain()
                if self._ended:
                    return False
        return not (response.closes or response.cut_short)
