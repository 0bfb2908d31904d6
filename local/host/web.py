"""Serves the HTTP triggers and, beside them, the management webhooks, on the loopback interface only."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from aiohttp import web
from azure.functions import meta

from local.host.app_index import HTTP_TRIGGER, AppIndex, IndexedFunction, binding_converter
from local.host.invoke import FunctionRunner
from local.host.routes import Route, compile_route
from local.host.settings import HostError, HostOptions, LocalSettings

_log = logging.getLogger("Host.Results")
ADDRESS: Final = "127.0.0.1"
_ALL_METHODS: Final = ("GET", "POST", "DELETE", "HEAD", "PATCH", "PUT", "OPTIONS")
_DEFAULT_BODY_LIMIT_BYTES: Final = 100 * 1024 * 1024
_WRITE_BYTES: Final = 1024 * 1024
_HOP_HEADERS: Final = frozenset({"content-length", "transfer-encoding", "connection"})


class PathHandler(Protocol):
    """Answers what lies under a path of its own; None when it does not."""

    async def __call__(self, request: web.Request) -> web.StreamResponse | None: ...


@dataclass(frozen=True, slots=True)
class HttpFunction:
    """An HTTP trigger with its place in the URL space."""

    function: IndexedFunction
    methods: Sequence[str]
    route: Route


def http_functions(app: AppIndex, route_prefix: str) -> list[HttpFunction]:
    """The HTTP triggers in the order in which routes are tried.

    Raises:
        HostError: A route is not a route.
    """
    found = []
    for function in app.of_type(HTTP_TRIGGER):
        template = "/".join(part for part in (route_prefix, str(function.trigger["route"]).strip("/")) if part)
        methods = tuple(str(method).upper() for method in function.trigger.get("methods") or _ALL_METHODS)
        found.append(HttpFunction(function, methods, compile_route(template)))
    return sorted(found, key=lambda item: item.route.precedence)


def listen(port: int) -> socket.socket:
    """Open the port on the loopback interface; 0 takes a free one.

    Raises:
        HostError: The port is taken or may not be used.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # Connections of a host that has just ended must not keep the next one from starting.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((ADDRESS, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise HostError(f"Port {port} is in use: end what listens there, or give another with --port.") from error
        raise HostError(f"Port {port} cannot be listened on: {error.strerror}.") from error
    return listener


class WebServer:
    """The server.

    Args:
        handlers: Tried in order before the functions.
        bind_clients: Gives the values of a function's durable client parameters.
    """

    def __init__(
        self,
        functions: Sequence[HttpFunction],
        handlers: Sequence[PathHandler],
        runner: FunctionRunner,
        bind_clients: Callable[[IndexedFunction], dict[str, str]],
        options: HostOptions,
        settings: LocalSettings,
    ) -> None:
        self._functions = functions
        self._handlers = handlers
        self._runner = runner
        self._bind_clients = bind_clients
        self._options = options
        self._settings = settings
        self._outstanding = 0
        limit = options.max_concurrent_requests
        self._turn = asyncio.Semaphore(limit) if limit is not None else None
        self._is_draining = False
        body_limit = os.environ.get("FUNCTIONS_REQUEST_BODY_SIZE_LIMIT", "")
        self._body_limit_bytes = int(body_limit) if body_limit.isdigit() else _DEFAULT_BODY_LIMIT_BYTES
        application = web.Application(client_max_size=self._body_limit_bytes)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner_of_server = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)

    async def start(self, listener: socket.socket) -> None:
        """Serve what `listen` opened."""
        await self._runner_of_server.setup()
        await web.SockSite(self._runner_of_server, listener).start()

    def refuse_new_requests(self) -> None:
        """Answer 503 to calls of functions from now on; the management API still answers, for those that run."""
        self._is_draining = True

    async def stop(self) -> None:
        await self._runner_of_server.cleanup()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        cors = self._cors_headers(request)
        if cors and request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            return web.Response(status=204, headers=cors | _preflight_headers(request))
        headers = {**cors, **self._options.response_headers}
        for handler in self._handlers:
            answer = await handler(request)
            if answer is not None:
                answer.headers.update(headers)
                return answer
        return await self._call_function(request, headers)

    async def _call_function(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        found = self._find(request)
        if found is None:
            # Also for a known route with another method: the platform answers 404 there, not 405.
            return web.Response(status=404, headers=headers)
        if self._is_draining:
            return web.Response(status=503, headers=headers, text="The host is shutting down.")
        limit = self._options.max_outstanding_requests
        if limit is not None and self._outstanding >= limit:
            return web.Response(status=429, headers=headers)
        self._outstanding += 1
        try:
            if self._turn is None:
                return await self._invoke(request, *found, headers)
            async with self._turn:
                return await self._invoke(request, *found, headers)
        finally:
            self._outstanding -= 1

    def _find(self, request: web.Request) -> tuple[IndexedFunction, dict[str, str]] | None:
        path = request.raw_path.partition("?")[0]
        for item in self._functions:
            if request.method in item.methods and (parameters := item.route.match(path)) is not None:
                return item.function, parameters
        return None

    async def _invoke(
        self, request: web.Request, function: IndexedFunction, parameters: dict[str, str], headers: Mapping[str, str]
    ) -> web.StreamResponse:
        if (request.content_length or 0) > self._body_limit_bytes:
            return web.Response(status=413, headers=headers)
        arguments = {function.trigger_param: _http_request(request, await request.read(), parameters)}
        arguments.update(self._bind_clients(function))
        try:
            result = await self._runner.call(function, arguments, "This function was programmatically called via HTTP")
            answer = _encode(function, result)
        except Exception:  # noqa: BLE001
            _log.exception("Function 'Functions.%s' failed.", function.name)
            return web.Response(status=500, headers=headers)
        return await _send(request, answer, headers)

    def _cors_headers(self, request: web.Request) -> dict[str, str]:
        origin = request.headers.get("Origin", "")
        allowed = self._settings.cors_origins
        if not origin or not ("*" in allowed or origin in allowed):
            return {}
        if self._settings.cors_credentials:
            return {
                "Access-Control-Allow-Origin": origin,
                "Access-Control-Allow-Credentials": "true",
                "Vary": "Origin",
            }
        if "*" in allowed:
            return {"Access-Control-Allow-Origin": "*"}
        return {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}


def _preflight_headers(request: web.Request) -> dict[str, str]:
    headers = {"Access-Control-Allow-Methods": request.headers["Access-Control-Request-Method"]}
    wanted = request.headers.get("Access-Control-Request-Headers")
    return headers | ({"Access-Control-Allow-Headers": wanted} if wanted else {})


def _joined(pairs: Any) -> dict[str, Any]:
    """One text for each name, repeated ones joined by commas, as the platform hands them to the worker."""
    values: dict[str, list[str]] = {}
    for name, value in pairs:
        values.setdefault(name, []).append(value)
    return {name: meta.Datum(",".join(texts), "string") for name, texts in values.items()}


def _http_request(request: web.Request, body: bytes, parameters: Mapping[str, str]) -> Any:
    datum = meta.Datum(
        {
            "method": meta.Datum(request.method, "string"),
            "url": meta.Datum(f"{request.scheme}://{request.host}{request.raw_path}", "string"),
            "headers": _joined((name.lower(), value) for name, value in request.headers.items()),
            "query": _joined(request.query.items()),
            "params": _joined(parameters.items()),
            "body": meta.Datum(body, "bytes"),
        },
        "http",
    )
    return binding_converter(HTTP_TRIGGER).decode(datum, trigger_metadata=None)


def _encode(function: IndexedFunction, result: Any) -> Any:
    converter = binding_converter("http")
    try:
        return converter.encode(result, expected_type=None)
    except NotImplementedError:
        raise TypeError(
            f"Function '{function.name}' returned {type(result).__name__}: an HTTP trigger returns"
            " azure.functions.HttpResponse or text."
        ) from None


async def _send(request: web.Request, datum: Any, headers: Mapping[str, str]) -> web.StreamResponse:
    if datum.type == "string":
        return web.Response(text=datum.value, headers=headers)
    answer = datum.value
    response = web.StreamResponse(status=int(answer["status_code"].value), headers=headers)
    for name, value in answer["headers"].items():
        if name.lower() not in _HOP_HEADERS:
            response.headers[name] = value.value
    for cookie in answer["cookies"] or ():
        for morsel in cookie.values():
            response.headers.add("Set-Cookie", morsel.OutputString())
    body = memoryview(answer["body"].value)
    if response.status not in (204, 304):
        response.content_length = len(body)
    await response.prepare(request)
    if request.method != "HEAD" and response.status not in (204, 304):
        # In slices, so that what the socket has not taken yet is one slice and not a second copy of the whole.
        for start in range(0, len(body), _WRITE_BYTES):
            await response.write(body[start : start + _WRITE_BYTES])
    await response.write_eof()
    return response
