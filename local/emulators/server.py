"""Puts the services on loopback ports, remembers the ports, and announces the addresses.

The main process serves everything. Further processes (``--processes``) serve OneLake only, on the same ports
(SO_REUSEPORT): the lake's truth is on disk, so they need nothing of each other. They end with the main process. The
libraries of Graph are in memory, and so served by the main process alone.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import json
import multiprocessing
import os
import secrets
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from typing import Any

from local.emulators.admin import Admin
from local.emulators.azureml.emulated import AzureMLOptions, EmulatedAzureML
from local.emulators.certificates import Certificates, ensure_certificates
from local.emulators.entra import Entra
from local.emulators.estate import FOLDERS_BY_TYPE, ConfigurationMistake, Estate
from local.emulators.fabric import Fabric
from local.emulators.faults import FaultPlan, FaultRule
from local.emulators.graph.service import Graph
from local.emulators.graph.switchboard import GraphSwitchboard
from local.emulators.graph.tenant import Tenant
from local.emulators.journal import Journal, Stats
from local.emulators.onelake.service import OneLake
from local.emulators.onelake.sources import CopySources
from local.emulators.onelake.store import Store
from local.emulators.pipeline import Pipeline, Service
from local.emulators.tokens import TokenAuthority
from local.emulators.wire import Connection, Handler

LOOPBACK = "127.0.0.1"
_BACKLOG = 1024
_ANSWER_WITHIN_S = 5
_FREED_WITHIN_S = 2


@dataclass(frozen=True)
class Options:
    """How to start; a port of 0 means the one remembered in the root, or a free one."""

    root: Path
    estate: Estate
    ports: dict[str, int] = field(default_factory=dict)
    plain: bool = False
    rules: tuple[FaultRule, ...] = ()
    latency_ms: float = 0
    seed: int = 0
    token_lifetime_s: int = 3600
    journal: bool = False
    processes: int = 1
    page_items: int = 100
    copy_source_ca: Path | None = None
    azureml: AzureMLOptions | None = None


_PLAIN = ("onelake_plain", "graph_plain")
_SERVICES = ("onelake", "onelake_blob", "fabric", "graph", "authority", "admin", *_PLAIN, "azureml", "azureml_blob")


class Emulators:
    """Everything of one root, in this process and perhaps others."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._root = options.root
        self._state = options.root / "state"
        self._connections: set[Connection] = set()
        self._servers: list[asyncio.Server] = []
        self._workers: list[tuple[Any, Pipe]] = []
        self._azureml: EmulatedAzureML | None = None

    def prepare(self) -> None:
        """Makes the root ready, takes it, and starts the further processes; outside an event loop.

        Raises:
            ConfigurationMistake: another process serves the root, or a port is taken.
        """
        self._state.mkdir(parents=True, exist_ok=True)
        self._take_root()
        self._certificates = ensure_certificates(self._state / "tls")
        self._key = _token_key(self._state / "token-key")
        if self._options.azureml is not None:
            self._azureml = EmulatedAzureML(
                self._options.azureml,
                self._root,
                self._key,
                self._certificates,
                self._options.token_lifetime_s,
                self._options.page_items,
            )
        for workspace in self._options.estate.workspaces:
            for item in workspace.items:
                for folder in FOLDERS_BY_TYPE[item.type]:
                    path = self._root / "onelake" / workspace.name / item.full_name / folder
                    path.mkdir(parents=True, exist_ok=True)
        self._sockets = self._bind()
        if (self._state / "LOCK").exists():
            sys.stderr.write(
                f"Warning: {self._root} is on a file system that takes names of different case for one; "
                "the real service does not.\n"
            )
        Store(self._root).clean()
        self._tenant = Tenant(self._options.estate, self._state)
        self._start_workers()

    def _take_root(self) -> None:
        # Held open, and with it the lock, until the process ends however it ends.
        self._lock = os.open(self._state / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        # Further processes of emulators that were killed hold it until they notice.
        deadline_s = time.monotonic() + _FREED_WITHIN_S
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise ConfigurationMistake(f"Other emulators are running on {self._root}.") from None
                time.sleep(0.05)
            else:
                return

    def _bind(self) -> dict[str, socket.socket]:
        memory = self._state / "ports.json"
        remembered: dict[str, int] = json.loads(memory.read_text()) if memory.exists() else {}
        sockets = {}
        for name in _SERVICES:
            if name in _PLAIN and not self._options.plain:
                continue
            if name.startswith("azureml") and self._azureml is None:
                continue
            wanted = self._options.ports.get(name, 0) or remembered.get(name, 0)
            shared = self._options.processes > 1 and name.startswith("onelake")
            sockets[name] = _listening(wanted, shared=shared)
            remembered[name] = sockets[name].getsockname()[1]
        _write_atomically(memory, json.dumps(remembered, indent=2))
        return sockets

    # this process

    def _pipeline(self, journal: Journal | None) -> Pipeline:
        faults = FaultPlan(self._options.rules, self._options.seed)
        return Pipeline(faults, Stats(), journal, self._options.latency_ms)

    def _journal(self) -> Journal | None:
        return Journal(self._root / "journal.jsonl") if self._options.journal else None

    def _tokens(self) -> TokenAuthority:
        return TokenAuthority(self._key, self._options.estate.tenant_id, self._options.token_lifetime_s)

    async def _serve(self, name: str, handler: Handler, context: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            lambda: Connection(handler, self._connections), sock=self._sockets[name], ssl=context, backlog=_BACKLOG
        )
        self._servers.append(server)

    async def _serve_onelake(self, pipeline: Pipeline, tokens: TokenAuthority, context: ssl.SSLContext) -> None:
        store = Store(self._root, shared=self._options.processes > 1)
        estate = self._options.estate
        extra = self._options.copy_source_ca
        self._sources = CopySources([self._certificates.ca, *([extra] if extra else [])])
        onelake = functools.partial(_answer, pipeline, OneLake(estate, tokens, store, self._sources))
        blob_only = functools.partial(
            _answer, pipeline, OneLake(estate, tokens, store, self._sources, always_blob=True)
        )
        await self._serve("onelake", onelake, context)
        await self._serve("onelake_blob", blob_only, context)
        if "onelake_plain" in self._sockets:
            await self._serve("onelake_plain", onelake, None)

    async def run(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Serves until SIGINT or SIGTERM; calls ``announce`` with the addresses once everything listens."""
        stopped = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        journal = self._journal()
        pipeline, tokens = self._pipeline(journal), self._tokens()
        context = self._certificates.server_context()
        await self._serve_onelake(pipeline, tokens, context)
        fabric = Fabric(self._options.estate, tokens, self._options.page_items)
        await self._serve("fabric", functools.partial(_answer, pipeline, fabric), context)
        azureml = self._azureml
        if azureml is not None:
            await azureml.start()
            for name, service in azureml.services.items():
                await self._serve(name, functools.partial(_answer, pipeline, service), context)
        entra = Entra(self._options.estate, tokens, azureml.directories if azureml is not None else ())
        await self._serve("authority", functools.partial(_answer, pipeline, entra), context)
        graph = Graph(self._tenant, tokens, self._key, self._options.estate.graph)
        await self._serve("graph", functools.partial(_answer, pipeline, graph), context)
        if "graph_plain" in self._sockets:
            await self._serve("graph_plain", functools.partial(_answer, pipeline, graph), None)
        parts = {"graph": GraphSwitchboard(graph).handle}
        if azureml is not None:
            parts["azureml"] = azureml.admin
        await self._serve("admin", Admin(pipeline, self._ask_workers, parts).handle, None)
        document = self._announcement()
        _write_atomically(self._root / "emulators.json", json.dumps(document, indent=2, ensure_ascii=False))
        announce(document)
        await stopped.wait()
        for server in self._servers:
            server.close()
        for connection in list(self._connections):
            connection.close()
        await self._sources.close()
        if azureml is not None:
            await azureml.stop()
        for process, pipe in self._workers:
            pipe.close()
            process.join(_ANSWER_WITHIN_S)
        if journal is not None:
            journal.close()

    def _announcement(self) -> dict[str, Any]:
        ports = {name: found.getsockname()[1] for name, found in self._sockets.items()}
        estate = self._options.estate
        plain = {name: f"http://{LOOPBACK}:{ports[name]}" if name in ports else None for name in _PLAIN}
        return {
            "pid": os.getpid(),
            "onelake_dfs_url": f"https://{LOOPBACK}:{ports['onelake']}",
            "onelake_blob_url": f"https://{LOOPBACK}:{ports['onelake_blob']}",
            "onelake_plain_url": plain["onelake_plain"],
            "fabric_url": f"https://{LOOPBACK}:{ports['fabric']}",
            "graph_url": f"https://{LOOPBACK}:{ports['graph']}",
            "graph_plain_url": plain["graph_plain"],
            "authority_url": f"https://{LOOPBACK}:{ports['authority']}",
            "admin_url": f"http://{LOOPBACK}:{ports['admin']}",
            "ca_bundle": str(self._certificates.ca.resolve()),
            "lake_folder": str((self._root / "onelake").resolve()),
            "tenant_id": estate.tenant_id,
            "clients": {
                client.name: {"client_id": client.id, "client_secret": client.secret, "roles": client.roles}
                for client in estate.clients
            },
            "workspaces": [workspace.model_dump() for workspace in estate.workspaces],
            "sites": [
                {"address": site.address, "libraries": [library.name for library in site.libraries]}
                for site in estate.sites
            ],
            "azureml": self._azureml.announcement(LOOPBACK, ports) if self._azureml is not None else None,
        }

    # further processes

    def _start_workers(self) -> None:
        context = multiprocessing.get_context("fork")
        for _ in range(self._options.processes - 1):
            ours, theirs = context.Pipe()
            sockets = {
                name: _listening(found.getsockname()[1], shared=True)
                for name, found in self._sockets.items()
                if name.startswith("onelake")
            }
            process = context.Process(target=self._run_worker, args=(theirs, ours, sockets), daemon=True)
            process.start()
            theirs.close()
            for found in sockets.values():
                found.close()
            self._workers.append((process, ours))

    def _run_worker(self, pipe: Pipe, other_end: Pipe, sockets: dict[str, socket.socket]) -> None:
        # While a copy of the other end is open here, the end of the main process would go unnoticed.
        other_end.close()
        for _, inherited in self._workers:
            inherited.close()
        for found in self._sockets.values():
            found.close()
        self._workers, self._sockets = [], sockets
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asyncio.run(self._work(pipe))

    async def _work(self, pipe: Pipe) -> None:
        pipeline = self._pipeline(self._journal())
        await self._serve_onelake(pipeline, self._tokens(), self._certificates.server_context())
        threading.Thread(target=_answer_parent, args=(pipe, pipeline.stats), daemon=True).start()
        await asyncio.Event().wait()

    def _ask_workers(self, question: str) -> list[dict[str, Any]]:
        answers = []
        for _, pipe in self._workers:
            pipe.send(question)
            if pipe.poll(_ANSWER_WITHIN_S):
                answers.append(pipe.recv())
        return answers


def _answer_parent(pipe: Pipe, stats: Stats) -> None:
    """Answers questions until the parent's end of the pipe is gone, however it went, then ends this process."""
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            os._exit(0)
        document = stats.document()
        if question == "reset":
            stats.reset()
        pipe.send(document)


async def _answer(pipeline: Pipeline, service: Service, request: Any) -> Any:
    return await pipeline.answer(service, request)


def _listening(port: int, *, shared: bool) -> socket.socket:
    found = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((LOOPBACK, port))
        found.listen(_BACKLOG)
    except OSError as error:
        found.close()
        raise ConfigurationMistake(f"Port {port} on {LOOPBACK} cannot be opened: {error.strerror}.") from error
    found.setblocking(False)
    return found


def _token_key(path: Path) -> bytes:
    if not path.exists():
        temporary = path.with_name("token-key.new")
        temporary.touch(mode=0o600)
        temporary.write_bytes(secrets.token_bytes(32))
        temporary.replace(path)
    return path.read_bytes()


def _write_atomically(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


__all__ = ["Certificates", "Emulators", "Options"]
