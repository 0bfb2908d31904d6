"""A container of a storage account, or what lies below a prefix of it, as a source."""

import asyncio
import hashlib
from base64 import b64decode
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import quote

import aiohttp

from shared.clients.blob.account import BlobAccount
from shared.clients.blob.listing import item_of_headers, parse_page, promised_md5, read_ref
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ConnectionLost,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    TransientError,
    Unsupported,
)
from shared.policy.paths import printable
from shared.ports import CopySource, ListedItems, SourceItem

MAX_PAGE_ITEMS = 5000
# A blob up to this size is read in one go, so that no connection is kept open while it is written elsewhere.
WHOLE_BYTES = 8 * 1024 * 1024
_READ_BLOCK = 1024 * 1024
_HASH_IN_THREAD_BYTES = 512 * 1024
# Each is a request with attempts of its own; between them at least one byte must have come.
_BARREN_RESUMES = 3


class BlobContainer:
    """Blobs below a prefix.

    The prefix is a folder: ``p`` and ``p/`` are the same, and paths are relative to it. A path is the blob's own name
    below the prefix, whatever it holds; what a lake cannot take is decided where paths are mapped.

    ``version`` of an item is its ETag. The stored MD5 would stay the same over a new ETag with the same content, but it
    is the writer's to set and to leave: it is absent from most blobs over 256 MiB, and Append Block and Put Page do not
    touch it. A version that stays the same while the content changes loses data, and one that changes too often costs a
    copy; the MD5 is among the facts for whoever wants to save that one.

    Args:
        account: The account, shared by all its containers.
        container: Its name.
        prefix: Of the names, or empty.
    """

    def __init__(self, account: BlobAccount, container: str, prefix: str = "") -> None:
        self._account = account
        self._container = container
        self._prefix = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"

    async def check(self) -> None:
        """Find out whether the source can be listed.

        Raises:
            RunError: names the field (``source.account_url``, ``source.container``, ``source.credential``) and what
                to change or grant.
            ConnectionLost: the account does not answer.
        """
        self._account.access.check()
        await self._account.assert_known()
        try:
            await self.list_page(None, 1)
        except ConnectionLost as error:
            raise ConnectionLost(
                f"{error.detail}; check source.account_url, which is {self._account.url}, and the way there: the "
                "account's firewall or private endpoint",
                subject="source.account_url",
            ) from None

    async def identity(self) -> str | None:
        """Account, container and prefix; None where no blob lies below the prefix.

        The service tells nothing by which a container that was deleted and made again differs: no creation time, and
        its ETag changes with every change of its metadata or access policy. What guards a mirror is therefore that an
        empty source has no identity.
        """
        cursor = None
        while True:
            page = await self.list_page(cursor, 1 if cursor is None else MAX_PAGE_ITEMS)
            if page.items:
                return f"{self._account.url}/{self._container}/{self._prefix}"
            cursor = page.cursor
            if cursor is None:
                return None

    async def list_page(self, cursor: str | None, limit: int) -> ListedItems:
        """The next blobs in the service's order (that of UTF-8 or UTF-16 names; it does not say).

        Committed blobs in their current version: no snapshots, old versions, deleted or uncommitted ones, no markers
        of folders. A page may be empty and have a cursor all the same.

        Args:
            cursor: The service's own continuation, of an earlier answer; None for the beginning.
            limit: Most items; at most 5,000.

        Raises:
            RunError: the source cannot be listed.
        """
        query = f"restype=container&comp=list&include=metadata&maxresults={max(1, min(limit, MAX_PAGE_ITEMS))}"
        if self._prefix:
            query += f"&prefix={quote(self._prefix, safe='')}"
        if cursor is not None:
            query += f"&marker={quote(cursor, safe='')}"
        try:
            answer = await self._account.send(
                "GET", self._account.blob_url(self._container), query=query, subject="source.container"
            )
        except AccessDenied as error:
            raise Authentication(error.detail, code="source_permission_denied", subject="source.credential") from None
        except (NotFound, Unsupported) as error:
            raise Configuration(error.detail, code="source_endpoint", subject="source.container") from None
        # 5,000 items take a tenth of a second, during which every transfer would stand still.
        items, following = await asyncio.to_thread(parse_page, answer.body, self._prefix)
        return ListedItems(items, following)

    async def stat(self, path: str) -> SourceItem | None:
        """The blob as it is now; None only where the service says that it is gone.

        Raises:
            AccessDenied: that cannot be told.
            RunError: the container is gone, or the credential no longer good.
        """
        try:
            answer = await self._account.send("HEAD", self._url(path), subject=printable(path))
        except NotFound as error:
            if error.code == "source_gone":
                return None
            raise
        return item_of_headers(answer.headers, path)

    async def open(self, path: str, ref: str = "") -> "OpenBlob":
        """Open one version for reading.

        Args:
            path: Below the prefix.
            ref: Of the listing: that version or none. Empty: the version that is there now.

        Raises:
            SourceChanged: the blob is no longer that version; ask ``stat`` for the present one.
            NotFound, AccessDenied: this item only.
            Unsupported: archived, or encrypted with a key that only its writer has.
        """
        etag, _, _ = read_ref(ref)
        blob = OpenBlob(self._account, self._url(path), printable(path))
        try:
            await blob.begin(etag)
        except BaseException:
            await blob.close()
            raise
        return blob

    async def copy_source(self, path: str, ref: str) -> CopySource | None:
        """What a target needs to read this blob by itself; None where it cannot, or has refused this account before.

        A key becomes a SAS of one hour for this blob alone. A SAS bound to addresses and an account without HTTPS
        cannot be handed to another service.

        Raises:
            NotFound: nothing is there, and ``ref`` is empty.
        """
        if self._account.copying.refusal or not self._account.url.startswith("https:"):
            return None
        if not ref:
            found = await self.stat(path)
            if found is None:
                raise NotFound("the source blob is gone", code="source_gone", subject=printable(path))
            ref = found.ref
        etag, size, md5 = read_ref(ref)
        name = self._prefix + path
        first = await self._account.access.for_copy(self._container, name)
        if first is None:
            return None

        async def headers() -> dict[str, str]:
            nonlocal first
            # To sign one costs a small file more than to send its request.
            granted, first = first or await self._account.access.for_copy(self._container, name), None
            assert granted is not None
            url = self._account.blob_url(self._container, name)
            return {"x-ms-copy-source": f"{url}?{granted[1]}" if granted[1] else url, **granted[0]}

        return CopySource(
            account=self._account.url, etag=etag, size_bytes=size, md5=_hex(md5), headers=headers,
            learned=self._account.copying,
        )  # fmt: skip

    def _url(self, path: str) -> str:
        return self._account.blob_url(self._container, self._prefix + path)


class OpenBlob:
    """One version of a blob being read; implements ``ports.OpenItem``.

    A connection that breaks is taken up again where it broke, on the condition that the blob is still that version.
    """

    def __init__(self, account: BlobAccount, url: str, subject: str) -> None:
        self._account = account
        self._url = url
        self._subject = subject
        self._opened = AsyncExitStack()
        self._response: aiohttp.ClientResponse | None = None
        self._buffer = bytearray()
        self._held: memoryview | None = None
        self._position = 0
        self._etag = ""
        self._promised = b""
        self._md5 = hashlib.md5(usedforsecurity=False)
        self.size_bytes = 0
        self.version = ""
        self.facts: dict[str, Any] = {}
        self.headers: Mapping[str, str] = {}
        """Of the first answer: the blob's properties and metadata."""

    async def begin(self, etag: str) -> None:
        """Send the request; for a blob of up to 8 MiB, read it to its end."""
        response = await self._get(etag, None)
        self.headers = response.headers
        if response.content_length is None:
            raise ServiceUnavailable("the source account does not say how long the blob is", subject=self._subject)
        self.size_bytes = response.content_length
        self.version = self._etag = response.headers.get("ETag", "").strip('"')
        stored = promised_md5(response.headers.get("Content-MD5", ""), response.headers.get("x-ms-blob-type", ""))
        self._promised = b64decode(stored) if stored else b""
        if not self._etag:
            raise ServiceUnavailable("the source account gives no ETag", subject=self._subject)
        if self.size_bytes <= WHOLE_BYTES:
            whole = await self._take(self.size_bytes)
            await self._disconnect()
            self._held = memoryview(whole)

    async def read(self, size_bytes: int) -> bytes:
        """The next block, shorter only at the end.

        Raises:
            SourceChanged: the blob was written or shortened meanwhile.
            NotFound: it was deleted meanwhile.
            ConnectionLost: nothing more comes, however often it is asked for.
        """
        if self._held is not None:
            block, self._held = bytes(self._held[:size_bytes]), self._held[size_bytes:]
            return block
        return await self._take(min(size_bytes, self.size_bytes - self._position))

    async def finish(self) -> None:
        """Compare what was read with the MD5 that the account keeps, if it keeps one.

        That it is one consistent version is the ETag's doing: each request carries it as a condition.

        Raises:
            TransientError: code ``integrity_mismatch``. Another attempt helps against damage on the way; a hash that
                was stored wrongly fails the item at the last one.
        """
        if self._position != self.size_bytes:
            raise SourceChanged(f"{self._position} of {self.size_bytes} bytes were read", subject=self._subject)
        found = self._md5.digest()
        if self._promised and found != self._promised:
            raise TransientError(
                f"the content's MD5 is {found.hex()}, and the blob's Content-MD5 says {self._promised.hex()}; if this "
                "stays so, the property was stored wrongly or the blob is damaged",
                code="integrity_mismatch",
                subject=self._subject,
            )

    async def close(self) -> None:
        await self._disconnect()

    async def _take(self, size_bytes: int) -> bytes:
        barren = 0
        while len(self._buffer) < size_bytes:
            before = len(self._buffer)
            try:
                await self._fill(size_bytes)
            except (aiohttp.ClientError, TimeoutError, OSError):
                await self._disconnect()
                barren = barren + 1 if len(self._buffer) == before else 0
                if barren >= _BARREN_RESUMES:
                    raise ConnectionLost(
                        f"the source account's answer broke off at {self._position + before} of {self.size_bytes} "
                        "bytes", subject=self._subject,
                    ) from None  # fmt: skip
        block = bytes(self._buffer[:size_bytes])
        del self._buffer[:size_bytes]
        self._position += len(block)
        if len(block) < _HASH_IN_THREAD_BYTES:
            self._md5.update(block)
        else:
            await asyncio.to_thread(self._md5.update, block)
        return block

    async def _fill(self, size_bytes: int) -> None:
        """Read until the buffer holds so much. Raises aiohttp's errors, with what came before them in the buffer."""
        if self._response is None:
            self._response = await self._resume()
        while len(self._buffer) < size_bytes:
            data = await self._response.content.read(_READ_BLOCK)
            if not data:
                raise aiohttp.ClientPayloadError("the answer ended early")
            self._buffer += data

    async def _resume(self) -> aiohttp.ClientResponse:
        at = self._position + len(self._buffer)
        response = await self._get(self._etag, at)
        began = response.headers.get("Content-Range", "").startswith(f"bytes {at}-")
        if response.status != 206 or not began:
            raise ServiceUnavailable("the source account answers another range than asked for", subject=self._subject)
        return response

    async def _get(self, etag: str, at: int | None) -> aiohttp.ClientResponse:
        headers = {}
        if etag:
            headers["If-Match"] = f'"{etag}"'
        if at is not None:
            headers["Range"] = f"bytes={at}-"
        try:
            self._response = await self._account.stream(self._url, headers, self._opened, subject=self._subject)
        except SourceChanged:
            # The condition fails too where nothing is there to fulfil it.
            await self._account.send("HEAD", self._url, subject=self._subject)
            raise
        return self._response

    async def _disconnect(self) -> None:
        response, self._response = self._response, None
        if response is not None and not response.closed and not response.content.at_eof():
            # What is left of the body is not worth waiting for.
            response.close()
        opened, self._opened = self._opened, AsyncExitStack()
        await opened.aclose()


def _hex(md5: str) -> str:
    try:
        return b64decode(md5, validate=True).hex()
    except ValueError:
        return ""
