"""One file being read from SharePoint."""

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import aiohttp

from shared.clients.graph.classify import AddressRefused, classify_download, has_malware, malware_detected
from shared.clients.graph.service import Graph
from shared.errors import (
    ConnectionLost,
    IntegrityMismatch,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    TransientError,
)
from shared.policy.quick_xor import QuickXorHash

# A file up to this size is read at once, so that its connection serves the next one.
WHOLE_BYTES = 8 * 1024 * 1024

_CHUNK_BYTES = 1024 * 1024
_MAX_BREAKS = 5
_MAX_ADDRESSES = 3
_ERROR_BYTES = 64 * 1024
_TAKEN_AT_FIRST = (HTTPStatus.OK,)
_TAKEN_LATER = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")

# SharePoint writes properties of the library into these, so that neither size nor hash need be those it announces
# (OneDrive/onedrive-api-docs issue 935; rclone's and abraunegg's documentation).
_REWRITTEN = frozenset({
    "docx", "docm", "dotx", "dotm", "xlsx", "xlsm", "xltx", "xltm", "xlsb", "pptx", "pptm", "potx", "potm", "ppsx",
    "ppsm", "htm", "html", "aspx", "jpg", "jpeg",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Announced:
    """What the listing said of a file. ``hash`` is empty where it had none."""

    id: str
    size_bytes: int
    hash: str
    etag: str

    @property
    def version(self) -> str:
        """Differs when the content differs; equal over changes of the metadata where there is a hash."""
        if not self.size_bytes:
            return f"qx:{QuickXorHash().base64()}:0"
        return f"qx:{self.hash}:{self.size_bytes}" if self.hash else f"etag:{self.etag}"

    def is_changed(self, now: "Announced") -> bool:
        """Whether the item was changed since; a hash that only came to be (the service is late) is no change."""
        return (
            now.size_bytes != self.size_bytes
            or (bool(self.hash) and now.hash != self.hash)
            or (bool(self.etag) and bool(now.etag) and now.etag != self.etag)
        )


class Download:
    """Implements ``ports.OpenItem``. Made by :meth:`Drive.open`.

    One call to Graph gives an address from which the file is read without a token; it lives some minutes, and is asked
    for again when it is refused later. A broken connection is taken up at the byte where it broke.

    Attributes:
        size_bytes: What the download announces, which need not be what the listing said.
        version: That of the listing; ``finish`` sees to it that it is this one which was read.
        facts: What ``finish`` found worth a note in the manifest: that there was no hash to compare with, or that
            SharePoint gave other bytes than it announced. None if there is nothing.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        subject: str,
        announced: Announced,
        address: Callable[[], Coroutine[Any, Any, str]],
        announced_now: Callable[[], Coroutine[Any, Any, Announced | None]],
        accept_rewrites: bool,
    ) -> None:
        self.size_bytes = announced.size_bytes
        self.version = announced.version
        self.facts: Mapping[str, str | int | None] | None = None
        self._graph = graph
        self._subject = subject
        self._announced = announced
        self._ask_address = address
        self._ask_announced = announced_now
        self._accept_rewrites = accept_rewrites
        self._address: str | None = None
        self._response: aiohttp.ClientResponse | None = None
        self._etag = ""
        self._has_length = True
        self._hash = QuickXorHash()
        self._held: bytes | None = None
        self._position = 0

    async def begin(self) -> "Download":
        """Send the first request; a small file is read whole.

        Raises:
            NotFound, AccessDenied, ItemError: for what the service says of this file.
        """
        self._response = await self._request(0)
        if self._held is not None:
            self._response = None
            self._hash.update(self._held)
        return self

    async def read(self, size_bytes: int) -> bytes:
        """The next block; shorter only at the end.

        Raises:
            SourceChanged: after a break the file is another one.
            ConnectionLost: it breaks off again and again.
        """
        if self._held is not None:
            block = self._held[self._position : self._position + size_bytes]
            self._position += len(block)
            return block
        parts: list[bytes] = []
        wanted = min(size_bytes, self.size_bytes - self._position)
        breaks = 0
        while wanted > 0:
            chunk = await self._chunk(wanted)
            if chunk:
                breaks = 0
                self._hash.update(chunk)
                parts.append(chunk)
                self._position += len(chunk)
                wanted -= len(chunk)
                continue
            breaks += 1
            if breaks > _MAX_BREAKS:
                raise ConnectionLost("the download breaks off again and again", subject=self._subject)
            await self._resume()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def finish(self) -> None:
        """Assert that what was read is what SharePoint announces.

        Raises:
            SourceChanged: it was changed since it was listed.
            IntegrityMismatch: ``sharepoint_rewrote``, where that is not accepted. It is read twice before this is said.
            TransientError: ``integrity_mismatch``: other bytes than announced, of a file that did not change.
        """
        if self._position < self.size_bytes:
            raise SourceChanged(f"ended at {self._position} of {self.size_bytes} bytes", subject=self._subject)
        received = self._hash.base64()
        announced = self._announced
        if self._held is None and not self._has_length and await self._chunk(1):
            raise SourceChanged(f"holds more than the {self.size_bytes} bytes announced", subject=self._subject)
        same_size = self.size_bytes == announced.size_bytes
        if same_size and received == announced.hash:
            return
        if same_size and not announced.hash:
            if self.size_bytes:
                self.facts = {"hash_checked": False, "received_hash": received}
            return
        now = await self._ask_announced()
        if now is None:
            raise NotFound("the source file is gone", code="source_gone", subject=self._subject)
        if announced.is_changed(now):
            raise SourceChanged("the source file changed since it was listed", subject=self._subject)
        if not self._is_rewritten_type() or not await self._is_same_again():
            raise TransientError(
                f"the bytes that arrived ({self.size_bytes}, {received}) are not those that SharePoint announces "
                f"({announced.size_bytes}, {announced.hash or 'no hash'})",
                code="integrity_mismatch",
                subject=self._subject,
            )
        if not self._accept_rewrites:
            raise IntegrityMismatch(
                f"SharePoint gives {self.size_bytes} bytes where it announces {announced.size_bytes}, as it does with "
                "documents that it writes properties into",
                code="sharepoint_rewrote",
                subject=self._subject,
            )
        self.facts = {
            "rewritten": True,
            "announced_size": announced.size_bytes,
            "announced_hash": announced.hash or None,
            "received_size": self.size_bytes,
            "received_hash": received,
        }

    async def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            # Not released: what is left of the body would have to be read first.
            response.close()

    def _is_rewritten_type(self) -> bool:
        return self._subject.rpartition(".")[2].lower() in _REWRITTEN

    async def _is_same_again(self) -> bool:
        """Whether a second read gives the same bytes: then it is SharePoint that wrote them, and not the way here."""
        again = Download(
            self._graph,
            subject=self._subject,
            announced=self._announced,
            address=self._ask_address,
            announced_now=self._ask_announced,
            accept_rewrites=self._accept_rewrites,
        )
        again._address = self._address
        try:
            await again.begin()
            while await again.read(_CHUNK_BYTES):
                pass
        finally:
            await again.close()
        return (again.size_bytes, again._hash.digest()) == (self.size_bytes, self._hash.digest())

    async def _chunk(self, size_bytes: int) -> bytes:
        """What has arrived, at most so much; empty where the connection broke."""
        if self._response is None:
            return b""
        try:
            return await self._response.content.read(min(size_bytes, _CHUNK_BYTES))
        except (aiohttp.ClientError, TimeoutError, OSError):
            return b""

    async def _resume(self) -> None:
        """Go on at the byte where it broke; without a connection if it breaks again at once.

        Raises:
            SourceChanged: what is there now is not what the first bytes were of.
        """
        await self.close()
        response = self._response = await self._request(self._position)
        changed = SourceChanged("the source file changed while it was read", subject=self._subject)
        etag = response.headers.get("ETag", "")
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or (
            etag and self._etag and etag != self._etag
        ):
            raise changed
        if response.status == HTTPStatus.PARTIAL_CONTENT:
            found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if found is None or int(found[1]) != self._position or found[3] not in ("*", str(self.size_bytes)):
                raise changed
            return
        # The range was ignored, as a server may: the beginning comes once more.
        if response.content_length not in (None, self.size_bytes):
            raise changed
        left = self._position
        while left and (chunk := await self._chunk(left)):
            left -= len(chunk)
        if left:
            await self.close()

    async def _request(self, position: int) -> aiohttp.ClientResponse:
        """An answer to a GET from ``position`` on, at an address that is renewed where it is refused."""
        addresses = 0
        while True:
            if self._address is None:
                self._address = await self._ask_address()
            addresses += 1
            try:
                return await self._graph.transport.attempts(lambda _: self._attempt(position), self._subject)
            except AddressRefused as refused:
                self._address = None
                if addresses >= _MAX_ADDRESSES:
                    raise refused.error from None

    async def _attempt(self, position: int) -> aiohttp.ClientResponse:
        assert self._address is not None
        response = await self._graph.download(self._address, {"Range": f"bytes={position}-"} if position else {})
        try:
            await self._judge(response, position)
        except BaseException:
            response.close()
            raise
        return response

    async def _judge(self, response: aiohttp.ClientResponse, position: int) -> None:
        """Raises what a refusal means; of the first answer, takes what it says."""
        if response.status not in (_TAKEN_LATER if position else _TAKEN_AT_FIRST):
            body = await _at_most(response, _ERROR_BYTES)
            raise classify_download(response.status, response.headers, body, self._subject)
        if has_malware(response.headers):
            raise malware_detected(self._subject)
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ServiceUnavailable("the download is compressed, which was not asked for", subject=self._subject)
        if not position:
            await self._look(response)

    async def _look(self, response: aiohttp.ClientResponse) -> None:
        """Take what the first answer says of the file, and the file itself if it is small."""
        self._etag = response.headers.get("ETag", "")
        length = response.content_length
        self._has_length = length is not None
        self.size_bytes = self._announced.size_bytes if length is None else length
        if self.size_bytes > WHOLE_BYTES:
            return
        if length is not None:
            self._held = await response.read()
            return
        self._held = await _at_most(response, 2 * WHOLE_BYTES)
        self.size_bytes = len(self._held)
        if self.size_bytes == 2 * WHOLE_BYTES:
            raise ServiceUnavailable("the download has neither a length nor an end", subject=self._subject)


async def _at_most(response: aiohttp.ClientResponse, size_bytes: int) -> bytes:
    parts: list[bytes] = []
    while size_bytes and (chunk := await response.content.read(min(size_bytes, _CHUNK_BYTES))):
        parts.append(chunk)
        size_bytes -= len(chunk)
    return b"".join(parts)
