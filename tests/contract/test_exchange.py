"""The HTTP exchange of the upload, against servers that answer as they should and as they should not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from shared.clients import exchange
from shared.clients.exchange import Exchanges

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Kind: plain\r\n\r\nok"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[tuple[str, list[int]]]:
    """A server on a free port of the loopback, its URL, and a count of its connections."""
    connections = [0]

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections[0] += 1
        try:
            await serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", connections
    finally:
        server.close()


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head and body of the next request."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head, await reader.readexactly(length)


def answering(*parts: bytes) -> Serve:
    """Answers every request of a connection with these parts, each sent by itself."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            for part in parts:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0.005)

    return serve


@pytest.fixture
async def exchanges() -> AsyncIterator[Exchanges]:
    made = Exchanges(None)
    yield made
    made.close()


async def test_request_and_answer_are_whole(exchanges: Exchanges) -> None:
    seen: list[tuple[bytes, bytes]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            seen.append(await request(reader))
            writer.write(OK)

    async with serving(serve) as (url, connections):
        for body in (b"", b"x", b"y" * 3_000_000):
            status, headers, answer = await exchanges.exchange("PUT", f"{url}/a%20b?q=1", {"If-Match": "*"}, body)
            assert (status, answer, headers["x-kind"]) == (200, b"ok", "plain")
        assert connections == [1], "one connection, kept"
    assert [body for _, body in seen] == [b"", b"x", b"y" * 3_000_000]
    head = seen[0][0].decode()
    assert head.startswith("PUT /a%20b?q=1 HTTP/1.1\r\nHost: 127.0.0.1:")
    assert "\r\nIf-Match: *\r\n" in head


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        pytest.param([bytes([byte]) for byte in OK], (200, b"ok"), id="byte by byte"),
        pytest.param([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"],
                     (200, b"abcde"), id="chunked"),
        pytest.param([b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n"],
                     (201, b""), id="interim answer"),
        pytest.param([b"HTTP/1.1 204 No Content\r\n\r\n"], (204, b""), id="no content"),
        pytest.param([b"HTTP/1.1 412 Failed\r\nContent-Length: 3\r\n\r\nnay"], (412, b"nay"), id="refused"),
    ],
)  # fmt: skip
async def test_answers_in_every_form(exchanges: Exchanges, parts: list[bytes], expected: tuple[int, bytes]) -> None:
    async with serving(answering(*parts)) as (url, connections):
        for _ in range(3):
            status, _, body = await exchanges.exchange("PUT", url, {}, b"data")
            assert (status, body) == expected
        assert connections == [1]


async def test_an_answer_to_head_has_no_body(exchanges: Exchanges) -> None:
    async with serving(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 12345\r\n\r\n")) as (url, connections):
        for _ in range(3):
            status, headers, body = await exchanges.exchange("HEAD", url, {}, b"")
            assert (status, headers["Content-Length"], body) == (200, "12345", b"")
        assert connections == [1]


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([OK + OK], id="a second answer in one piece"),
        pytest.param([OK, OK], id="a second answer afterwards"),
        pytest.param([OK + b"left over"], id="a longer body than announced"),
        pytest.param([OK.replace(b"X-Kind: plain", b"Connection: close")], id="a server that closes"),
        pytest.param([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok"], id="an old protocol"),
    ],
)
async def test_a_connection_that_may_hold_something_else_is_not_used_again(
    exchanges: Exchanges, parts: list[bytes]
) -> None:
    async with serving(answering(*parts)) as (url, connections):
        for number in range(1, 4):
            status, _, body = await exchanges.exchange("PUT", url, {}, b"")
            assert (status, body) == (200, b"ok")
            assert connections == [number]
            await asyncio.sleep(0.03)


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
     b"220 mail.example ESMTP\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nok",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
     b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
     b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: other\r\n\r\nab"],
)  # fmt: skip
async def test_half_an_answer_is_an_error_and_nothing_is_sent_twice(exchanges: Exchanges, answer: bytes) -> None:
    requests = [0]

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        requests[0] += 1
        writer.write(answer)
        await writer.drain()

    async with serving(serve) as (url, _):
        with pytest.raises((aiohttp.ClientError, OSError)):
            await exchanges.exchange("PUT", url, {}, b"data")
    assert requests == [1]


@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_body_may_end_with_the_connection(exchanges: Exchanges, version: str) -> None:
    """As a proxy's own pages do; what they say is worth more than that the connection was lost."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(f"HTTP/{version} 403 Forbidden\r\nConnection: close\r\n\r\nask the ".encode())
        await writer.drain()
        await asyncio.sleep(0.01)
        writer.write(b"administrator")
        await writer.drain()

    async with serving(serve) as (url, connections):
        for number in (1, 2):
            status, _, body = await exchanges.exchange("PUT", url, {}, b"")
            assert (status, body) == (403, b"ask the administrator")
            assert connections == [number]


async def test_an_answer_without_end_is_given_up(exchanges: Exchanges) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while not writer.is_closing():
            writer.write(b"X-Filler: " + b"y" * 1000 + b"\r\n")
            await writer.drain()

    async with serving(serve) as (url, _):
        with pytest.raises(aiohttp.ClientPayloadError):
            await exchanges.exchange("PUT", url, {}, b"")


async def test_a_kept_connection_that_broke_meanwhile_is_not_used(exchanges: Exchanges) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(OK)
        await writer.drain()

    async with serving(serve) as (url, connections):
        for number in range(1, 4):
            assert (await exchanges.exchange("PUT", url, {}, b""))[0] == 200
            assert connections == [number]
            await asyncio.sleep(0.03)


async def test_a_refusal_in_the_middle_of_a_body_is_the_answer(exchanges: Exchanges) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        await asyncio.sleep(1)

    async with serving(serve) as (url, connections):
        for number in (1, 2):
            status, _, body = await exchanges.exchange("PUT", url, {}, b"x" * 50_000_000)
            assert (status, body) == (413, b"no")
            assert connections == [number], "the rest of the body would be taken for a request"


@pytest.mark.parametrize("size", [0, 50_000_000])
async def test_silence_ends(exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    monkeypatch.setattr(exchange, "SILENCE_S", 0.2)
    released = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await released.wait()

    async with serving(serve) as (url, _):
        with pytest.raises(TimeoutError):
            await exchanges.exchange("PUT", url, {}, b"x" * size)
        released.set()


async def test_an_answer_that_takes_long_and_is_never_silent_is_waited_for(
    exchanges: Exchanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "SILENCE_S", 1.0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n")
        for _ in range(15):
            await asyncio.sleep(0.1)
            writer.write(b"x")

    async with serving(serve) as (url, _):
        assert (await exchanges.exchange("PUT", url, {}, b"small"))[2] == b"x" * 15


async def test_an_exchange_that_is_cancelled_leaves_no_connection_behind(exchanges: Exchanges) -> None:
    begun = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            if not begun.is_set():
                begun.set()
                await asyncio.sleep(0.05)
            writer.write(OK)

    async with serving(serve) as (url, connections):
        first = asyncio.create_task(exchanges.exchange("PUT", url, {}, b""))
        await begun.wait()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await exchanges.exchange("PUT", url, {}, b""))[2] == b"ok"
        assert connections == [2]


async def test_no_header_smuggles_a_request(exchanges: Exchanges) -> None:
    for headers in ({"X": "1\r\nEvil: 1"}, {"X": "1\nEvil: 1"}, {"X": "1\rEvil: 1"}):
        with pytest.raises(ValueError, match="line break"):
            await exchanges.exchange("PUT", "http://127.0.0.1:9/", headers, b"")
    with pytest.raises(ValueError, match="line break"):
        await exchanges.exchange("PUT /\r\nX: 1", "http://127.0.0.1:9/", {}, b"")


async def test_nobody_there_is_said_with_host_and_port_alone(exchanges: Exchanges) -> None:
    async with serving(answering(OK)) as (url, _):
        pass
    with pytest.raises(exchange.ConnectFailed) as raised:
        await exchanges.exchange("PUT", f"{url}/path?sig=secret", {"Authorization": "Bearer secret"}, b"")
    assert str(raised.value) == f"cannot connect to {url.removeprefix('http://')}"
