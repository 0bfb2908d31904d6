"""``python -m local.host``: serve a Functions app until Ctrl-C.

Exit status: 0 after a drained stop, 1 when the state file broke while running, 2 when the host could not start, 130
when a second Ctrl-C cut the drain short.
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import logging
import os
import signal
import socket
import sqlite3
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Final

from aiohttp import web
from azure.durable_functions.models.utils.http_utils import _close_session as close_client_session

from local.host.app_index import AppIndex, load_app
from local.host.console import configure_logging, print_line
from local.host.durable.engine import DurableEngine
from local.host.durable.replay import use_fast_timestamps
from local.host.durable.store import Store
from local.host.durable.webhooks import Webhooks
from local.host.invoke import FunctionRunner
from local.host.settings import (
    HostError,
    HostOptions,
    LocalSettings,
    apply_settings,
    read_host_options,
    read_local_settings,
)
from local.host.timers import TimerLoop, timer_functions
from local.host.web import ADDRESS, HttpFunction, WebServer, http_functions, listen

_DEFAULT_PORT: Final = 7071
_log = logging.getLogger("Host.Startup")


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m local.host", description="Serve an Azure Functions app locally.")
    parser.add_argument("--app", type=Path, default=Path(), help="directory of function_app.py (default: here)")
    parser.add_argument("--state", type=Path, help="directory of the history (default: .state in the app's directory)")
    parser.add_argument("--port", type=int, help="0 takes a free one (default: Host.LocalHttpPort, else 7071)")
    parser.add_argument("--settings", type=Path, help="default: local.settings.json in the app's directory")
    arguments = parser.parse_args()
    app_dir: Path = arguments.app.resolve()
    state_dir = (arguments.state or app_dir / ".state").resolve()
    settings_path = (arguments.settings or app_dir / "local.settings.json").resolve()
    try:
        _require(app_dir.is_dir(), f"There is no directory {app_dir}: give the app's directory with --app.")
        _require(arguments.settings is None or settings_path.is_file(), f"There is no settings file {settings_path}.")
        settings = read_local_settings(settings_path)
        apply_settings(settings)
        options = read_host_options(app_dir / "host.json")
        configure_logging(options.log_levels)
        lock = _lock(state_dir)
        port = arguments.port if arguments.port is not None else settings.http_port
        listener = listen(_DEFAULT_PORT if port is None else port)
        port = listener.getsockname()[1]
        os.environ.setdefault("AZURE_FUNCTIONS_ENVIRONMENT", "Development")
        os.environ.setdefault("WEBSITE_HOSTNAME", f"localhost:{port}")
        os.chdir(app_dir)
        app = _load(app_dir)
        store = _open_store(state_dir)
        use_fast_timestamps()
        # Episodes are pure Python on their own thread. At the usual 5 ms the event loop, with the uploads on it, waits
        # 0.9 ms for its turn on average while they run; so it waits 0.6 ms, and the shorter interval costs nothing.
        sys.setswitchinterval(0.001)
        try:
            return asyncio.run(_Host(app, store, options, settings).run(listener))
        finally:
            store.close()
            os.close(lock)
    except HostError as error:
        sys.stdout.flush()
        sys.stderr.write(f"{error}\n")
        return 2


def _require(is_met: bool, otherwise: str) -> None:
    if not is_met:
        raise HostError(otherwise)


def _load(app_dir: Path) -> AppIndex:
    try:
        return load_app(app_dir)
    except HostError:
        raise
    except Exception as error:
        traceback.print_exc()
        raise HostError(
            f"The app in {app_dir} could not be loaded: {type(error).__name__}: {error}. The traceback is above."
        ) from error


def _lock(state_dir: Path) -> int:
    """Hold the state directory; the operating system lets go of it however this process ends."""
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        lock = os.open(state_dir / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"The state directory {state_dir} cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
        os.close(lock)
        raise HostError(
            f"Another host (process {holder or 'unknown'}) uses the state directory {state_dir}:"
            " stop it, or give another directory with --state."
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def _open_store(state_dir: Path) -> Store:
    path = state_dir / "host.db"
    try:
        return Store(path)
    except sqlite3.Error as error:
        raise HostError(f"The state file {path} cannot be used: {error}.") from error


class _Host:
    """The parts of a running host, and the order in which they start and stop."""

    def __init__(self, app: AppIndex, store: Store, options: HostOptions, settings: LocalSettings) -> None:
        self._app = app
        self._store = store
        self._options = options
        self._settings = settings
        self._stopping = asyncio.Event()
        self._broken: sqlite3.Error | None = None

    async def run(self, listener: socket.socket) -> int:
        runner = FunctionRunner(self._options.function_timeout_s)
        functions = http_functions(self._app, self._options.route_prefix)
        timers = timer_functions(self._app)
        engine = DurableEngine(
            self._store,
            self._app,
            runner,
            lambda function: webhooks.bind_clients(function),
            self._options.max_activities,
            self._break,
        )
        webhooks = Webhooks(engine, self._options.hub_name)
        timer_loop = TimerLoop(timers, self._store, engine.submit, runner, webhooks.bind_clients)
        admin = partial(_fire_timer, timer_loop)
        server = WebServer(functions, [webhooks, admin], runner, webhooks.bind_clients, self._options, self._settings)
        origin = f"http://{ADDRESS}:{listener.getsockname()[1]}"
        webhooks.set_origin(origin)
        await server.start(listener)
        loop = asyncio.get_running_loop()
        for signal_number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(signal_number, self._interrupt)
        engine.start()
        timer_loop.start()
        _print_functions(self._app, functions, origin)
        print_line(f"Host ready on {origin}")
        await self._stopping.wait()
        server.refuse_new_requests()
        if self._broken is None:
            await timer_loop.drain()
            await engine.drain()
            await runner.wait_idle()
            await engine.stop()
        # The SDK's client keeps one session for good and leaves closing it to the end of the process.
        await close_client_session()
        await server.stop()
        if self._broken is not None:
            _log.critical("The state file can no longer be used: %s. What it holds is kept; start again.", self._broken)
            sys.stdout.flush()
            # Functions on threads cannot be waited for: what they report could not be recorded.
            os._exit(1)
        print_line("Host stopped.")
        if runner.has_abandoned_threads:
            logging.shutdown()
            os._exit(0)
        return 0

    def _break(self, error: sqlite3.Error) -> None:
        self._broken = error
        self._stopping.set()

    def _interrupt(self) -> None:
        if self._stopping.is_set():
            print_line("Host stopped without waiting for what runs; it is delivered again at the next start.")
            # A user function on a thread would hold up an orderly exit for as long as it likes.
            os._exit(130)
        print_line("Stopping: waiting for running functions to end. Press Ctrl-C again to stop at once.")
        self._stopping.set()


async def _fire_timer(timers: TimerLoop, request: web.Request) -> web.StreamResponse | None:
    """``POST /admin/functions/<name>`` calls a timer function by hand, as with Core Tools."""
    head, _, name = request.path.rpartition("/")
    if head.lower() != "/admin/functions" or request.method != "POST":
        return None
    return web.Response(status=202 if await timers.fire_by_hand(name) else 404)


def _print_functions(app: AppIndex, http: list[HttpFunction], origin: str) -> None:
    urls = {item.function.name: f"[{','.join(item.methods)}] {origin}/{item.route.template}" for item in http}
    print_line()
    print_line("Functions:")
    for function in sorted(app.functions, key=lambda item: (item.name not in urls, item.name.lower())):
        print_line()
        print_line(f"\t{function.name}: {urls.get(function.name, function.trigger_type)}")
    for name in app.disabled:
        print_line()
        print_line(f"\tFunction {name} is disabled.")
    print_line()


if __name__ == "__main__":
    sys.exit(main())
