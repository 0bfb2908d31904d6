"""What a Graph, or a host it refers to, may answer but should not: the client takes no harm and tells no secret."""

from __future__ import annotations

import json
import logging
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from azure.core.credentials import AccessToken

from shared.clients import http
from shared.clients.credentials import TokenSource
from shared.clients.graph import Drive, DrivePlace, Graph
from shared.clients.graph.classify import classify, classify_download
from shared.clients.graph.download import WHOLE_BYTES
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ConnectionLost,
    ItemError,
    MigrationError,
    NotFound,
    RunError,
    ServiceUnavailable,
    SourceChanged,
    Throttled,
    TransientError,
    Unsupported,
)
from shared.policy.quick_xor import QuickXorHash

SECRET = "tempauth=v1.eyJsecret"
TOKEN = "bearer-of-graph"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def hang_up(request: web.Request, response: web.StreamResponse) -> web.StreamResponse:
    """End the connection after what was written."""
    assert request.transport is not None
    request.transport.close()
    return response


class Credential:
    async def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        return AccessToken(TOKEN, int(time.time()) + 3600)

    async def close(self) -> None: ...


class Services:
    """A Graph and a download host of our own making; what they are asked is kept."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.graph_answers: Handler = self.refer
        self.download_answers: Handler = self.whole
        self.data = b"0123456789" * 500
        self.location = ""

    async def start(self) -> None:
        self.servers = [TestServer(self._app("graph")), TestServer(self._app("host"))]
        for server in self.servers:
            await server.start_server()
        self.graph_url, self.host_url = (str(server.make_url("/")).rstrip("/") for server in self.servers)
        self.location = f"{self.host_url}/_layouts/15/download.aspx?UniqueId=1&{SECRET}"
        tokens = TokenSource(Credential, "scope", time.time)
        self.graph = Graph(self.graph_url, tokens)
        self.drive = Drive(
            self.graph, site="s.example.com", library="L", accept_rewrites=False, place=DrivePlace("b!drive", None)
        )

    async def stop(self) -> None:
        await self.graph.close()
        for server in self.servers:
            await server.close()

    def _app(self, name: str) -> web.Application:
        async def answer(request: web.Request) -> web.StreamResponse:
            self.asked.append((name, request.path_qs, dict(request.headers)))
            return await (self.graph_answers if name == "graph" else self.download_answers)(request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", answer)
        return app

    async def refer(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/content"):
            return web.Response(status=302, headers={"Location": self.location})
        return web.json_response({"id": "1", "name": "f.bin", "size": len(self.data), "eTag": '"e"', "file": {
            "hashes": {"quickXorHash": QuickXorHash(self.data).base64()}}})  # fmt: skip

    async def whole(self, request: web.Request) -> web.StreamResponse:
        return web.Response(body=self.data, headers={"ETag": '"e"'})

    def ref(self) -> str:
        return json.dumps(["1", len(self.data), QuickXorHash(self.data).base64(), '"e"'])

    async def read(self, name: str = "f.bin", block: int = 1 << 20) -> bytes:
        content = await self.drive.open(name, self.ref())
        try:
            parts = []
            while data := await content.read(block):
                parts.append(data)
            await content.finish()
            return b"".join(parts)
        finally:
            await content.close()


@pytest.fixture
async def services(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Services]:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    made = Services()
    await made.start()
    yield made
    await made.stop()


async def test_the_download_host_gets_no_token(services: Services) -> None:
    assert await services.read() == services.data
    (first, path, to_graph), (second, _, to_host) = services.asked
    assert (first, second) == ("graph", "host")
    assert path == "/v1.0/drives/b!drive/items/1/content"
    assert to_graph["Authorization"] == f"Bearer {TOKEN}"
    assert "Authorization" not in to_host
    assert TOKEN not in json.dumps(to_host)
    for headers in (to_graph, to_host):
        assert headers["User-Agent"] == "NONISV|OneLakeMigration|Migrate/1.0"


@pytest.mark.parametrize(
    "location",
    ["", "/relative", "ftp://host/x", "http://[", "javascript:1", "https://", f"//host/x?{SECRET}", f"{SECRET}"],
)
async def test_addresses_that_are_none(services: Services, location: str) -> None:
    services.location = location
    with pytest.raises(ServiceUnavailable) as raised:
        await services.read()
    assert SECRET not in "".join(traceback.format_exception(raised.value))


async def test_where_graph_is_encrypted_the_download_is(services: Services) -> None:
    encrypted = Graph("https://graph.microsoft.com", services.graph.tokens)
    with pytest.raises(ServiceUnavailable, match="safely") as raised:
        await encrypted.download(services.location, {})
    assert SECRET not in str(raised.value)
    await encrypted.close()
    assert services.asked == []


@pytest.mark.parametrize("status", [301, 302, 400, 401, 403, 404, 405, 409, 410, 416, 418, 429, 500, 503])
async def test_a_refused_download_tells_no_secret(
    services: Services, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def refuse(request: web.Request) -> web.StreamResponse:
        body = json.dumps({"error": {"code": f"{SECRET}", "message": f"{request.url}"}})
        return web.Response(status=status, text=body, headers={"Location": f"/elsewhere?{SECRET}", "Retry-After": "0"})

    services.download_answers = refuse
    with pytest.raises(MigrationError) as raised:
        await services.read()
    assert not isinstance(raised.value, RunError), "one file's download says nothing of the run"
    told = "".join(traceback.format_exception(raised.value)) + repr(vars(raised.value))
    client_log = "".join(record.getMessage() for record in caplog.records if record.name != "aiohttp.access")
    assert "tempauth" not in told + client_log
    assert all(path.startswith("/_layouts") for name, path, _ in services.asked if name == "host"), (
        "nothing is followed"
    )


async def test_a_download_that_never_comes_tells_no_secret(services: Services) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    services.download_answers = cut
    with pytest.raises(ConnectionLost) as raised:
        await services.read()
    assert "tempauth" not in "".join(traceback.format_exception(raised.value))


@pytest.mark.parametrize("size", [0, 5000, WHOLE_BYTES + 5])
async def test_a_download_without_a_length(services: Services, size: int) -> None:
    services.data = bytes(size)

    async def chunked(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        for start in range(0, size, 1 << 16):
            await response.write(services.data[start : start + (1 << 16)])
        await response.write_eof()
        return response

    services.download_answers = chunked
    assert await services.read() == services.data
    ref = services.ref()
    services.data += b"more"
    size += 4
    # The listing still says the old size; so does the item, as if nobody had changed it.
    services.ref = lambda: ref  # type: ignore[method-assign]
    with pytest.raises(TransientError):
        await services.read()


async def test_a_compressed_download_is_not_taken_for_the_file(services: Services) -> None:
    async def compressed(request: web.Request) -> web.StreamResponse:
        return web.Response(body=services.data, headers={"Content-Encoding": "br"})

    services.download_answers = compressed
    with pytest.raises(ServiceUnavailable, match="compressed"):
        await services.read()


async def test_a_flagged_success_is_malware(services: Services) -> None:
    async def flagged(request: web.Request) -> web.StreamResponse:
        return web.Response(body=services.data, headers={"X-Virus-Infected": "EICAR"})

    services.download_answers = flagged
    with pytest.raises(ItemError) as raised:
        await services.read()
    assert raised.value.code == "malware_detected"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (206, {"Content-Range": "bytes 0-9/{total}"}),
        (206, {"Content-Range": "bytes {at}-9/1"}),
        (206, {"Content-Range": "nonsense"}),
        (206, {}),
        (206, {"Content-Range": "bytes {at}-9/{total}", "ETag": '"other"'}),
        (416, {}),
        (200, {"ETag": '"other"'}),
        (200, {"ETag": '"e"'}),
    ],
)
async def test_a_resumed_download_of_something_else(services: Services, status: int, headers: dict[str, str]) -> None:
    services.data = bytes(WHOLE_BYTES * 2)

    async def broken(request: web.Request) -> web.StreamResponse:
        if "Range" not in request.headers:
            response = web.StreamResponse(headers={"Content-Length": str(len(services.data)), "ETag": '"e"'})
            await response.prepare(request)
            await response.write(services.data[:100_000])
            return hang_up(request, response)
        at = request.headers["Range"].removeprefix("bytes=").rstrip("-")
        filled = {name: value.format(at=at, total=len(services.data)) for name, value in headers.items()}
        return web.Response(status=status, body=b"x" * 10, headers=filled)

    services.download_answers = broken
    with pytest.raises(SourceChanged):
        await services.read()


async def test_a_download_that_never_gets_further(services: Services) -> None:
    services.data = bytes(WHOLE_BYTES * 2)

    async def stuck(request: web.Request) -> web.StreamResponse:
        status, headers = 200, {"Content-Length": str(len(services.data))}
        if "Range" in request.headers:
            at = int(request.headers["Range"].removeprefix("bytes=").rstrip("-"))
            total = len(services.data)
            status = 206
            headers = {"Content-Length": str(total - at), "Content-Range": f"bytes {at}-{total - 1}/{total}"}
        response = web.StreamResponse(status=status, headers=headers)
        await response.prepare(request)
        if status == 200:
            await response.write(services.data[:100_000])
        return hang_up(request, response)

    services.download_answers = stuck
    with pytest.raises(ConnectionLost, match="again and again"):
        await services.read()


@pytest.mark.parametrize(
    "body",
    [
        "[]", "{", "", "null", "{}", '{"value": {}}', '{"value": []}', '{"value": [], "@odata.nextLink": 5}',
        '{"value": [5], "@odata.deltaLink": "GRAPH/x"}', '{"value": [{}], "@odata.deltaLink": "GRAPH/x"}',
        '{"value": [{"id": 5}], "@odata.deltaLink": "GRAPH/x"}',
    ],
)  # fmt: skip
async def test_pages_that_make_no_sense(services: Services, body: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.Response(text=body.replace("GRAPH", services.graph_url))

    services.graph_answers = answer
    with pytest.raises(ServiceUnavailable):
        await services.drive.page(None)


async def test_items_of_every_sort_are_read(services: Services) -> None:
    odd = [
        {"id": "1"},
        {"id": "2", "deleted": {}},
        {"id": "3", "file": {}, "size": -5, "name": None, "parentReference": 5, "createdBy": {"user": 7}},
        {"id": "4", "file": {"hashes": None}, "size": "9", "eTag": "x" * 5000, "publication": []},
        {"id": "5", "package": {"type": 5}, "folder": {}},
        {"id": "6", "folder": {}, "remoteItem": {"id": "x"}},
        {"id": "7", "root": {}, "folder": {}, "parentReference": {"id": "x"}},
        {"id": "8", "file": {}, "size": 1, "malware": {}, "createdBy": {"application": {"displayName": "A"}}},
    ]  # fmt: skip

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"value": odd, "@odata.deltaLink": f"{services.graph_url}/x"})

    services.graph_answers = answer
    items = (await services.drive.page(None)).items
    assert [item.kind for item in items] == ["other", "gone", "file", "file", "other", "other", "root", "file"]
    assert items[2].size_bytes == items[3].size_bytes == 0
    assert items[6].parent_id is None
    assert items[7].facts is not None
    assert items[7].facts["created_by"] == "A"
    assert all(len(item.ref.encode()) <= 1024 for item in items)


async def test_links_within_answers_are_looked_at_too(services: Services) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return web.json_response({"value": [], "@odata.nextLink": f"{services.host_url}/x"})

    async def gone(request: web.Request) -> web.StreamResponse:
        error = {"code": "x", "innererror": {"innerError": {"code": "ResyncRequired"}}}
        return web.json_response({"error": error}, status=400, headers={"Location": f"{services.host_url}/x"})

    for hostile in (answer, gone):
        services.graph_answers = hostile
        with pytest.raises(Configuration, match="gets no token"):
            await services.drive.page(f"{services.graph_url}/v1.0/x")
    assert {name for name, _, _ in services.asked} == {"graph"}


async def test_a_feed_that_begins_again_without_saying_where(services: Services) -> None:
    async def gone(request: web.Request) -> web.StreamResponse:
        return web.json_response({"error": {"code": "resyncRequired"}}, status=410)

    services.graph_answers = gone
    page = await services.drive.page(f"{services.graph_url}/v1.0/x")
    assert (page.reset, page.cursor, page.token) == (True, None, None)
    with pytest.raises(ServiceUnavailable):
        await services.drive.page(None)


# -- the classifier ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "error", "named"),
    [
        (400, "invalidRequest", Unsupported, "refused_by_source"),
        (400, "", Configuration, "wrong_endpoint"),
        (401, "InvalidAuthenticationToken", Authentication, "token_rejected"),
        (403, "accessDenied", AccessDenied, "access_denied"),
        (403, "MALWAREDETECTED", ItemError, "malware_detected"),
        (403, "accessRestricted", AccessDenied, "blocked_by_policy"),
        (404, "itemNotFound", NotFound, "source_gone"),
        (423, "resourceLocked", ItemError, "locked"),
        (423, "", ItemError, "locked"),
        (429, "activityLimitReached", Throttled, "throttled"),
        (509, "", Throttled, "throttled"),
        (503, "serviceNotAvailable", ServiceUnavailable, "service_unavailable"),
        (500, "generalException", ServiceUnavailable, "service_unavailable"),
        (418, "", Configuration, "wrong_endpoint"),
    ],
)
@pytest.mark.parametrize("where", ["outer", "innerError", "innererror"])
def test_the_catalogue(status: int, code: str, error: type[MigrationError], named: str, where: str) -> None:
    inner: dict[str, Any] = {"code": code, "message": "secret text"}
    document = inner if where == "outer" else {"code": "generic", where: {"date": "x", where: inner}}
    if where != "outer" and not code:
        return
    found = classify(status, {}, json.dumps({"error": document}).encode(), "the/path")
    assert type(found) is error
    assert found.code == named
    assert "secret text" not in found.detail


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b'{"error": []}', b'{"error": {"code": 5, "innerError": 7}}', b"\xff"]
)
def test_answers_that_make_no_sense_are_errors_all_the_same(body: bytes) -> None:
    for status in (301, 400, 401, 403, 404, 409, 410, 418, 500):
        assert isinstance(classify(status, {}, body, "x"), MigrationError)
        assert not isinstance(classify_download(status, {}, body, "x"), RunError)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "7", "RateLimit-Reset": "30"}, 30.0),
        ({"Retry-After": "31", "RateLimit-Reset": "30"}, 31.0),
        ({"RateLimit-Reset": "30"}, 30.0),
        ({"Retry-After": "soon", "RateLimit-Reset": "-1"}, None),
        ({}, None),
    ],
)
def test_the_longer_of_two_waits_counts(headers: dict[str, str], seconds: float | None) -> None:
    found = classify(429, headers, b"", "x")
    assert isinstance(found, TransientError)
    assert found.retry_after_s == seconds
