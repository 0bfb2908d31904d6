"""A folder of a lakehouse whose files are written as they come, read in ranges, and renamed a folder at a time."""

import asyncio
import hashlib
import json
import secrets
from base64 import b64encode
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from shared.clients.http import Answer
from shared.clients.onelake.folder import LakeFolder
from shared.clients.onelake.service import API_VERSION, SMALL_BLOCK_BYTES, OneLake, encode_path
from shared.errors import (
    ConnectionLost,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    TargetConflict,
)
from shared.policy.paths import staging_prefix
from shared.ports import Block, Written

_VERSION = {"x-ms-version": API_VERSION}
_LIST_PAGE = 5000
# Of one file, where the memory has room for them.
_BLOCKS_IN_FLIGHT = 4
_RANGE_BYTES = 8 * 1024 * 1024
_RANGES_IN_FLIGHT = 4


@dataclass(frozen=True, slots=True)
class LakeEntry:
    """A file or folder of a listing; ``path`` is relative to the folder that was opened."""

    path: str
    is_directory: bool
    size_bytes: int
    etag: str


class LakeTree(LakeFolder):
    """What a table's folder needs beyond the uploads of whole files. Retries as all calls of the transport do."""

    def __init__(self, lake: OneLake, workspace_id: str, item_id: str, root: str, *, owner: str) -> None:
        super().__init__(lake, workspace_id, item_id, root, owner=owner)

    @property
    def root(self) -> str:
        return self._root

    # -- writing -------------------------------------------------------------------------------------------------

    async def stream(self, path: str) -> "StreamedFile":
        """Begin a file that is not there yet, under a name that nobody else uses.

        Raises:
            TargetConflict: code ``target_exists``.
        """
        created = await self._create_path(path, path, None, new=True)
        return StreamedFile(self, path, created.headers.get("ETag", ""))

    async def put(self, path: str, data: bytes, *, only_over: str | None = None) -> Written:
        """A small file at once: new, or over the one with this ETag.

        Readers meet the old bytes or the new ones, and never a file that is empty as yet.

        Raises:
            TargetConflict: code ``target_exists`` or ``target_changed``.
        """
        if only_over is None:
            return await self._put_new(path, HeldBytes(data))
        return await self.replace(path, HeldBytes(data), only_over=only_over)

    async def _put_new(self, path: str, content: "HeldBytes") -> Written:
        folder, slash, _ = path.rpartition("/")
        staging = f"{folder}{slash}{staging_prefix(self.owner)}{unique_suffix()}"
        try:
            written = await self.create(staging, content)
            etag = await self.move(staging, path, written)
        except ItemError:
            with suppress(MigrationError):
                await self.delete(staging, etag="")
            raise
        return Written(written.size_bytes, written.md5, etag)

    async def make_folder(self, path: str) -> None:
        """Make a folder, and those above it; one that is there stays as it is."""
        with suppress(TargetConflict):
            await self._lake.transport.send(
                "PUT",
                f"{self._url(path)}?resource=directory",
                headers={**_VERSION, "If-None-Match": "*"},
                subject=path,
            )

    async def rename_folder(self, old: str, new: str) -> None:
        """Rename a folder with all that it holds, in one step; its new place is free, and the parent is there.

        Idempotent: a repeat after a lost answer finds the folder where it was to go.

        Raises:
            NotFound: there is no such folder.
            TargetConflict: code ``target_exists``: something stands at the new place.
        """
        headers = {
            **_VERSION, "If-None-Match": "*",
            "x-ms-rename-source": f"/{self._workspace}/{self._item}/{encode_path(self._below(old))}",
        }  # fmt: skip
        tries, more = 0, ""

        async def once(attempt: int) -> Answer:
            nonlocal tries
            tries = attempt
            url = f"{self._url(new)}?mode=legacy{more}"
            return await self._lake.transport.send_once("PUT", url, headers, b"", new, attempt)

        try:
            while True:
                answer = await self._lake.transport.attempts(once, new)
                token = answer.headers.get("x-ms-continuation", "")
                if not token:
                    return
                more = f"&continuation={quote(token, safe='')}"
        except (NotFound, TargetConflict):
            if tries == 1 or await self.properties(old) is not None or await self.properties(new) is None:
                raise

    async def delete_folder(self, path: str) -> bool:
        """Delete a folder with all that it holds. False if it was gone."""
        more = ""
        while True:
            try:
                answer = await self._lake.transport.send(
                    "DELETE", f"{self._url(path)}?recursive=true{more}", headers=_VERSION, subject=path
                )
            except NotFound:
                return bool(more)
            token = answer.headers.get("x-ms-continuation", "")
            if not token:
                return True
            more = f"&continuation={quote(token, safe='')}"

    # -- reading -------------------------------------------------------------------------------------------------

    async def entries(self, path: str = "", *, recursive: bool = False) -> list[LakeEntry]:
        """Files and folders below a folder, by name; of a missing folder, none."""
        base = f"{self._lake.dfs_url}/{self._workspace}?resource=filesystem&recursive={str(recursive).lower()}"
        base += f"&maxResults={_LIST_PAGE}&directory={quote(f'{self._item}/{self._below(path)}', safe='')}"
        found: list[LakeEntry] = []
        more = ""
        while True:
            try:
                answer = await self._lake.transport.send("GET", base + more, headers=_VERSION, subject=path)
            except NotFound:
                return found
            try:
                listed = json.loads(answer.body)["paths"]
            except (ValueError, KeyError, TypeError):
                raise ServiceUnavailable("a listing of the lake makes no sense", subject=path) from None
            for one in listed:
                found.append(
                    LakeEntry(
                        self._relative(one["name"]),
                        one.get("isDirectory") == "true",
                        int(one.get("contentLength") or 0),
                        str(one.get("etag", "")).strip('"'),
                    )
                )
            token = answer.headers.get("x-ms-continuation", "")
            if not token:
                return found
            more = f"&continuation={quote(token, safe='')}"

    async def read_whole(self, path: str) -> bytes | None:
        """A small file, or None where there is none."""
        try:
            return (await self._lake.transport.send("GET", self._url(path), headers=_VERSION, subject=path)).body
        except NotFound:
            return None

    async def read_ranges(self, path: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes [start, end) of a file for each range, some of them at once."""
        gate = asyncio.Semaphore(_RANGES_IN_FLIGHT)

        async def one(start: int, end: int) -> bytes:
            async with gate:
                return await self._read_range(path, start, end)

        pieces = [
            [(begin, min(begin + _RANGE_BYTES, end)) for begin in range(start, end, _RANGE_BYTES)]
            for start, end in ranges
        ]
        tasks = [[asyncio.create_task(one(*piece)) for piece in of_range] for of_range in pieces]
        every = [task for of_range in tasks for task in of_range]
        try:
            await asyncio.gather(*every)
        except BaseException:
            for task in every:
                task.cancel()
            await asyncio.gather(*every, return_exceptions=True)
            raise
        return [b"".join(task.result() for task in of_range) for of_range in tasks]

    async def _read_range(self, path: str, start: int, end: int) -> bytes:
        headers = {**_VERSION, "Range": f"bytes={start}-{end - 1}"}

        async def once(attempt: int) -> bytes:
            answer = await self._lake.transport.send_once("GET", self._url(path), headers, b"", path, attempt)
            if answer.status != 206 or len(answer.body) != end - start:
                raise ConnectionLost(f"{len(answer.body)} of {end - start} bytes arrived", subject=path)
            return answer.body

        return await self._lake.transport.attempts(once, path)


class HeldBytes:
    """Bytes in memory as an open item."""

    version = ""
    facts = None

    def __init__(self, data: bytes) -> None:
        self.size_bytes = len(data)
        self._data = memoryview(data)

    async def read(self, size_bytes: int) -> bytes:
        block, self._data = bytes(self._data[:size_bytes]), self._data[size_bytes:]
        return block

    async def finish(self) -> None:
        """Nothing can have changed."""

    async def close(self) -> None:
        """Nothing is open."""


class StreamedFile:
    """A file whose size is known only at its end: what is written goes out in blocks, several in flight.

    Nobody sees a byte of it before ``close``. Memory of the process is taken for each block only while it is on the
    wire, so that any number of open files cannot keep each other waiting; beside that a file holds less than a block.
    One task at a time.
    """

    def __init__(self, tree: LakeTree, path: str, etag: str) -> None:
        self.path = path
        self.size_bytes = 0
        self._tree = tree
        self._etag = etag
        self._pending = bytearray()
        self._sent_bytes = 0
        self._whole = hashlib.md5(usedforsecurity=False)
        self._sending: deque[asyncio.Task[None]] = deque()

    async def write(self, data: Block) -> None:
        """Take bytes; waits where too much is on its way already."""
        self._pending += data
        self.size_bytes += len(data)
        while len(self._pending) >= SMALL_BLOCK_BYTES:
            block = bytes(memoryview(self._pending)[:SMALL_BLOCK_BYTES])
            del self._pending[:SMALL_BLOCK_BYTES]
            await self._send(block)

    async def close(self) -> Written:
        """Send what is left and make the file visible, whole."""
        if self._pending:
            block, self._pending = bytes(self._pending), bytearray()
            await self._send(block)
        while self._sending:
            await self._sending.popleft()
        md5 = b64encode(self._whole.digest()).decode("ascii")
        answer = await self._tree._flush(self.path, self.path, self.size_bytes, md5, self._etag)
        etag = answer.headers.get("ETag", "").strip('"')
        return Written(self.size_bytes, self._whole.hexdigest(), etag)

    async def abort(self) -> None:
        """Delete what was begun; never raises."""
        for task in self._sending:
            task.cancel()
        await asyncio.gather(*self._sending, return_exceptions=True)
        self._sending.clear()
        self._pending.clear()
        with suppress(MigrationError):
            await self._tree.delete(self.path, etag="")

    async def _send(self, block: bytes) -> None:
        memory = self._tree._lake.memory
        while self._sending and self._sending[0].done():
            await self._sending.popleft()
        while self._sending:
            if len(self._sending) < _BLOCKS_IN_FLIGHT and memory.take_now(len(block)):
                taken = len(block)
                break
            await self._sending.popleft()
        else:
            taken = await memory.take(len(block))
        try:
            digest, _ = await asyncio.gather(
                asyncio.to_thread(lambda: hashlib.md5(block, usedforsecurity=False).digest()),
                asyncio.to_thread(self._whole.update, block),
            )
        except BaseException:
            memory.give(taken)
            raise
        position, self._sent_bytes = self._sent_bytes, self._sent_bytes + len(block)
        task = asyncio.create_task(self._append(position, block, b64encode(digest).decode("ascii")))
        # Also where the task is cancelled before it begins.
        task.add_done_callback(lambda _: memory.give(taken))
        self._sending.append(task)

    async def _append(self, position: int, block: bytes, md5: str) -> None:
        await self._tree._append(self.path, self.path, position, block, md5, flush=False)


def unique_suffix() -> str:
    """Tells attempts apart: 64 random bits, as hex."""
    return secrets.token_hex(8)
