"""The clients of the upload benchmark that are Python: each runs in a process of its own, and times itself.

``python -m bench._clients engine|sdk|raw`` reads one JSON line from its standard input (a `Plan`), gets ready, answers
``ready``, waits for a line, uploads, and answers with ``{"elapsed_s", "cpu_s"}``. Imports, tokens and the source's
listing are done before ``ready``, so that only the upload is timed. It ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import multiprocessing
import os
import resource
import select
import socket
import sys
import time
from base64 import b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

BLOCK_BYTES = 32 * 1024 * 1024
SDK_IN_FLIGHT = 20
_VERSION = "x-ms-version: 2023-11-03"


@dataclass(frozen=True)
class Plan:
    """What one client uploads, and where to.

    Attributes:
        source: Folder whose files are uploaded.
        target: Path in the lakehouse, ``Files/...``.
        dfs_url: Scheme and host of the DFS endpoint.
        workspace_id: GUID.
        item_id: GUID of the lakehouse.
        token: A bearer token, for the clients that do not get one themselves.
        environment: The app's settings.
        in_flight: Requests at once, for ``raw``.
        processes: Processes, for ``raw``.
        block_bytes: Largest append, for ``raw``, each with its MD5, as ours sends them; 0 sends every file in one
            append without.
    """

    source: str
    target: str
    dfs_url: str
    workspace_id: str
    item_id: str
    token: str
    environment: dict[str, str]
    in_flight: int = 64
    processes: int = 1
    block_bytes: int = 0

    def line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


def files_below(folder: Path) -> list[tuple[str, int]]:
    """Relative path and size of every file, sorted."""
    found = []
    for current, _, names in os.walk(folder):
        for name in names:
            path = Path(current, name)
            found.append((path.relative_to(folder).as_posix(), path.stat().st_size))
    return sorted(found)


# -- ours, without an orchestration ----------------------------------------------------------------------------------


async def _engine(plan: Plan) -> Callable[[], Awaitable[None]]:
    from shared.clients.folder import FolderTree
    from shared.engine.files_run import FilesRun
    from shared.engine.sources import JoinedTree, SourcePart
    from shared.engine.transfer_batch import transfer_batch
    from shared.model.job import parse_files_job
    from shared.policy.batching import partition
    from shared.services import Services
    from shared.settings import read_settings

    services = Services(read_settings(plan.environment))
    job = parse_files_job({
        "kind": "files", "name": "bench", "source": {"type": "folder", "path": plan.source},
        "target": {"workspace": plan.workspace_id, "lakehouse": plan.item_id, "path": plan.target},
    })  # fmt: skip
    run = FilesRun(
        job=job,
        records=services.records(f"bench-{os.getpid()}"),
        source=JoinedTree([SourcePart("", FolderTree(plan.source))]),
        lake=services.lake_folder(job, plan.workspace_id, plan.item_id),
        clock=services.clock,
        pair="bench",
    )
    await run.lake.check(write=True)
    items = list((await run.source.list_page(None, 1_000_000)).items)
    parts = partition([item.size_bytes for item in items], job.limits.batch_items, job.limits.batch_bytes)
    for number, (start, end) in enumerate(parts):
        await run.records.put_batch("p00001", number, [
            {"path": item.path, "size_bytes": item.size_bytes, "source_version": item.version, "action": "create",
             "etag": "", "own": False}
            for item in items[start:end]
        ])  # fmt: skip
    at_once = asyncio.Semaphore(job.limits.parallel_batches)

    async def one(number: int) -> int:
        async with at_once:
            outcome = await transfer_batch(run, "p00001", number, 1, final=True)
        return outcome["counts"]["uploaded"]

    async def upload() -> None:
        uploaded = sum(await asyncio.gather(*(one(number) for number in range(len(parts)))))
        if uploaded != len(items):
            raise SystemExit(f"{len(items) - uploaded} of {len(items)} files were not uploaded")

    return upload


# -- Microsoft's SDK -------------------------------------------------------------------------------------------------


async def _sdk(plan: Plan) -> Callable[[], Awaitable[None]]:
    from azure.storage.filedatalake.aio import DataLakeServiceClient

    def authorize(request: Any) -> None:
        # A credential of azure-core refuses to send a token without TLS; a header is the caller's own business.
        request.http_request.headers["Authorization"] = f"Bearer {plan.token}"

    client = DataLakeServiceClient(plan.dfs_url, raw_request_hook=authorize)
    files = client.get_file_system_client(plan.workspace_id)
    waiting = deque(files_below(Path(plan.source)))

    async def work() -> None:
        while waiting:
            path, size_bytes = waiting.popleft()
            target = files.get_file_client(f"{plan.item_id}/{plan.target}/{path}")
            with Path(plan.source, path).open("rb") as content:  # noqa: ASYNC230 - in memory, and done by everybody
                small = content.read() if size_bytes <= BLOCK_BYTES else None
                await target.upload_data(content if small is None else small, length=size_bytes, overwrite=True)

    async def upload() -> None:
        async with client:
            await asyncio.gather(*(work() for _ in range(SDK_IN_FLIGHT)))

    return upload


# -- the emulator's ceiling ------------------------------------------------------------------------------------------

_Piece = tuple[bytes, tuple[int, int, int] | None]
"""What goes out before an answer is waited for: bytes, then perhaps (descriptor, offset, count) of a file."""


class _Wire:
    """One connection that sends requests made in advance, one after the other, and looks at the status alone."""

    def __init__(self, host: str, port: int, requests: Iterator[_Piece]) -> None:
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._requests = requests
        self._left = memoryview(b"")
        self._file: tuple[int, int, int] | None = None

    def begin(self) -> bool:
        """Take the next request; False if there is none."""
        piece = next(self._requests, None)
        if piece is None:
            return False
        self._left, self._file = memoryview(piece[0]), piece[1]
        return True

    def send(self) -> bool:
        """Send what fits; whether the whole request is out."""
        try:
            while self._left:
                self._left = self._left[self.socket.send(self._left) :]
            while self._file is not None and self._file[2]:
                descriptor, offset, count = self._file
                sent = os.sendfile(self.socket.fileno(), descriptor, offset, min(count, 1 << 20))
                self._file = (descriptor, offset + sent, count - sent)
        except BlockingIOError:
            return False
        return True

    def answered(self) -> None:
        answer = self.socket.recv(65536)
        if answer[9:10] != b"2":
            raise SystemExit(f"a raw request was answered with {answer[:200]!r}")


def _requests(plan: Plan, files: list[tuple[str, int]], host: str) -> Iterator[list[_Piece]]:
    """Every request of each file, ready to be sent."""

    def head(method: str, path: str, query: str, length: int, more: str = "") -> bytes:
        return (
            f"{method} /{plan.workspace_id}/{plan.item_id}/{plan.target}/{path}?{query} HTTP/1.1\r\nHost: {host}\r\n"
            f"Authorization: Bearer {plan.token}\r\n{_VERSION}\r\n{more}Content-Length: {length}\r\n\r\n"
        ).encode()

    def md5(descriptor: int, at: int, count: int) -> str:
        if not plan.block_bytes:
            return ""
        digest = hashlib.md5(os.pread(descriptor, count, at), usedforsecurity=False).digest()
        return f"Content-MD5: {b64encode(digest).decode()}\r\n"

    for path, size_bytes in files:
        source = Path(plan.source, path)
        create: _Piece = (head("PUT", path, "resource=file", 0), None)
        if size_bytes <= BLOCK_BYTES:
            append = head("PATCH", path, "action=append&position=0&flush=true", size_bytes) + source.read_bytes()
            yield [create, (append, None)]
            continue
        descriptor = os.open(source, os.O_RDONLY)
        block = plan.block_bytes or size_bytes
        blocks: list[_Piece] = [
            (
                head("PATCH", path, f"action=append&position={at}", count, md5(descriptor, at, count)),
                (descriptor, at, count),
            )
            for at in range(0, size_bytes, block)
            for count in (min(block, size_bytes - at),)
        ]
        yield [create, *blocks, (head("PATCH", path, f"action=flush&position={size_bytes}", 0), None)]


def _push(host: str, port: int, ready: list[list[_Piece]], in_flight: int) -> None:
    waiting = iter(ready)

    def requests() -> Iterator[_Piece]:
        for pieces in waiting:
            yield from pieces

    poll = select.epoll()
    wires: dict[int, _Wire] = {}
    for _ in range(min(in_flight, len(ready))):
        wire = _Wire(host, port, requests())
        wires[wire.socket.fileno()] = wire
        poll.register(wire.socket, select.EPOLLOUT)
        wire.begin()
    while wires:
        for number, event in poll.poll():
            wire = wires[number]
            if not event & select.EPOLLOUT:
                wire.answered()
                if not wire.begin():
                    poll.unregister(number)
                    wires.pop(number).socket.close()
                    continue
                poll.modify(number, select.EPOLLIN if wire.send() else select.EPOLLOUT)
            elif wire.send():
                poll.modify(number, select.EPOLLIN)


async def _raw(plan: Plan) -> Callable[[], Awaitable[None]]:
    where = urlsplit(plan.dfs_url)
    host, port = where.hostname or "", where.port or 80
    files = files_below(Path(plan.source))
    shares = [list(_requests(plan, files[number :: plan.processes], where.netloc)) for number in range(plan.processes)]

    async def upload() -> None:
        if plan.processes == 1:
            _push(host, port, shares[0], plan.in_flight)
            return
        context = multiprocessing.get_context("fork")
        pushing = [
            context.Process(target=_push, args=(host, port, share, max(1, plan.in_flight // plan.processes)))
            for share in shares
        ]
        for process in pushing:
            process.start()
        for process in pushing:
            process.join()
        if any(process.exitcode for process in pushing):
            raise SystemExit("a raw client failed")

    return upload


# -- how each is run -------------------------------------------------------------------------------------------------

_CLIENTS = {"engine": _engine, "sdk": _sdk, "raw": _raw}


def _cpu_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


async def _main(name: str) -> None:
    upload = await _CLIENTS[name](Plan(**json.loads(sys.stdin.readline())))
    print("ready", flush=True)
    sys.stdin.readline()
    cpu_s, started_s = _cpu_s(), time.perf_counter()
    await upload()
    print(json.dumps({"elapsed_s": time.perf_counter() - started_s, "cpu_s": _cpu_s() - cpu_s}), flush=True)
    # Whoever measures looks at the peak of memory now, while the process is still there.
    sys.stdin.readline()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))
