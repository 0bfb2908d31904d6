"""One OneLake endpoint: its transport, its SDK client and what was learned about it."""

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from shared.clients.credentials import SdkCredential, TokenSource
from shared.clients.http import Transport
from shared.clients.onelake.classify import classify
from shared.clients.onelake.concurrency import AdaptiveLimit
from shared.errors import Configuration

if TYPE_CHECKING:
    from azure.storage.filedatalake.aio import DataLakeServiceClient

# The version that object_store sends to OneLake; the SDK's own default is newer than any that was seen there.
API_VERSION = "2023-11-03"

MIB = 1024 * 1024
# A write is metered for each 4 MiB block, so a block of a multiple of that wastes nothing.
SMALL_BLOCK_BYTES = 8 * MIB
# Azure Storage's scale targets: 50,000 blocks of a file.
_MAX_BLOCKS = 40_000
# Uploads whose content is read before it is their turn: enough that a place in flight never waits for a disk.
_AHEAD = 64


@dataclass
class OneLake:
    """What all uploads of one process to one endpoint share.

    Args:
        dfs_url: ``https://onelake.dfs.fabric.microsoft.com`` or an emulator's.
        blob_url: The same for the Blob endpoint; made from ``dfs_url`` if empty.
        tokens: For the storage audience.
        ca_bundle: A PEM file to trust, or None for the system's.
        in_flight: Most uploads at once; below that the number finds its own level.
        memory_bytes: Most bytes of blocks in memory at once, whatever the number and size of files.
    """

    dfs_url: str
    tokens: TokenSource
    blob_url: str = ""
    ca_bundle: str | None = None
    in_flight: int = 256
    memory_bytes: int = 128 * MIB
    one_call_commit: bool = True
    """Whether the service takes append with flush in one call; learned once a process."""
    transport: Transport = field(init=False)
    uploads: AdaptiveLimit = field(init=False)
    memory: "ByteBudget" = field(init=False)
    ahead: asyncio.Semaphore = field(init=False)
    _fixed: dict[tuple[str, int], AdaptiveLimit] = field(init=False, default_factory=dict)
    _sdk: Any = field(init=False, default=None)

    def __post_init__(self) -> None:
        self.dfs_url = _origin("ONELAKE_DFS_URL", self.dfs_url)
        self.blob_url = _origin("ONELAKE_BLOB_URL", self.blob_url or self.dfs_url.replace(".dfs.", ".blob.", 1))
        self.transport = Transport(self.tokens, classify, ca_bundle=self.ca_bundle)
        self.uploads = AdaptiveLimit(self.in_flight)
        self.transport.on_refused = self.uploads.refused
        self.memory = ByteBudget(self.memory_bytes)
        self.ahead = asyncio.Semaphore(_AHEAD)

    def fixed_limit(self, owner: str, in_flight: int) -> AdaptiveLimit:
        """The places of a job that names their number: the same ones for all that this process does of it."""
        key = (owner, in_flight)
        if key not in self._fixed:
            self._fixed[key] = AdaptiveLimit(in_flight, fixed=True)
        return self._fixed[key]

    def sdk(self) -> "DataLakeServiceClient":
        """Microsoft's client, for what is not the upload itself. Its retries are off: ours honour Retry-After."""
        if self._sdk is None:
            from azure.storage.filedatalake.aio import DataLakeServiceClient

            verify: Any = self.ca_bundle or True
            self._sdk = DataLakeServiceClient(
                self.dfs_url,
                credential=SdkCredential(self.tokens),
                api_version=API_VERSION,
                retry_total=0,
                connection_verify=verify,
            )
        return self._sdk  # type: ignore[no-any-return]

    async def close(self) -> None:
        await self.transport.close()
        if self._sdk is not None:
            await self._sdk.close()


def _origin(setting: str, url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.netloc or parts.path not in ("", "/") or parts.query:
        raise Configuration(
            f"{setting} is {url!r}; write scheme and host alone, such as https://onelake.dfs.fabric.microsoft.com",
            code="wrong_endpoint",
            subject=setting,
        )
    return f"{parts.scheme}://{parts.netloc}"


class ByteBudget:
    """Bytes that may be held at once, first come, first served.

    A single request larger than the whole budget waits until it is alone.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._free = total_bytes
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    def at_most(self, size_bytes: int) -> int:
        """What ``take`` takes for a request of this size."""
        return min(size_bytes, self._total)

    async def take(self, size_bytes: int) -> int:
        """Wait for room; returns what to give back."""
        wanted = self.at_most(size_bytes)
        if self.take_now(wanted):
            return wanted
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, room))
        try:
            await room
        except asyncio.CancelledError:
            if room.done() and not room.cancelled():
                # Given in the same moment.
                self.give(wanted)
            else:
                with suppress(ValueError):
                    self._waiting.remove((wanted, room))
                self._admit()
            raise
        return wanted

    def take_now(self, size_bytes: int) -> bool:
        """Take it if there is room at once and nobody waits for it."""
        if self._waiting or self._free < size_bytes:
            return False
        self._free -= size_bytes
        return True

    def give(self, size_bytes: int) -> None:
        self._free += size_bytes
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._free >= self._waiting[0][0]:
            wanted, room = self._waiting.popleft()
            if not room.done():
                self._free -= wanted
                room.set_result(None)


def block_bytes(size_bytes: int) -> int:
    """The size of the blocks of a file: one for a small file, and never more than the service's 50,000."""
    if size_bytes <= SMALL_BLOCK_BYTES:
        return SMALL_BLOCK_BYTES
    needed = -(-size_bytes // _MAX_BLOCKS)
    return max(SMALL_BLOCK_BYTES, -(-needed // (4 * MIB)) * 4 * MIB)


def encode_path(path: str) -> str:
    """Percent-encode a path as the service expects it: everything but unreserved characters and slashes."""
    return quote(path, safe="/~")
