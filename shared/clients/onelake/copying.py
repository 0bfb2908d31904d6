"""Let OneLake read a file from another storage account by itself, so that no byte passes through this process.

``Put Blob From URL`` in one call, or ``Put Block From URL`` for each block and then ``Put Block List``. That OneLake
takes them is known from Microsoft's own AzCopy, which copies into OneLake so (docs/protocols/onelake.md, section 8);
how it refuses is not recorded. Whatever reads as a refusal is therefore answered by :class:`Unsupported`, after which
the bytes are streamed, and no answer is believed before the file in the lake has the size of the source.
"""

import asyncio
import secrets
from base64 import b64decode, b64encode
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from urllib.parse import quote

from shared.clients.http import Answer
from shared.clients.onelake.classify import COPY_REFUSED, COPY_SOURCE_BUSY
from shared.clients.onelake.service import API_VERSION, MIB, OneLake
from shared.errors import (
    Authentication,
    Configuration,
    IntegrityMismatch,
    ItemError,
    MigrationError,
    NotFound,
    TargetConflict,
    TransientError,
    Unsupported,
)
from shared.ports import CopySource

SINGLE_CALL_BYTES = 256 * MIB
BLOCK_BYTES = 100 * MIB
_BLOCKS_AT_ONCE = 4
_MAX_BLOCKS = 40_000
_VERSION = {"x-ms-version": API_VERSION}

# Of answers that would stop the run elsewhere. If it is not the copying that is refused, streaming meets them too.
_MAY_BE_ABOUT_COPYING = ("wrong_endpoint", "permission_denied")

_Once = Callable[[int], Awaitable[Answer]]


async def put_from_url(
    lake: OneLake,
    url_of_target: str,
    source: CopySource,
    size_bytes: int,
    md5: str,
    *,
    new: bool,
    subject: str,
    only_over: str | None = None,
    single_call_bytes: int = SINGLE_CALL_BYTES,
    block_bytes: int = BLOCK_BYTES,
) -> Answer:
    """Write one file whole or not at all, from what the service itself reads.

    Readers meet what was there before or the whole new file. Idempotent: a repeat after a lost answer finds its own
    file, if the source has an MD5; without one it cannot be told from another's and is a TargetConflict.

    Args:
        lake: The target's endpoint.
        url_of_target: On the Blob endpoint, percent-encoded.
        source: The version to copy.
        size_bytes: Of that version.
        md5: Hex, stored with the file; in a single call the service also checks the content against it. Empty where
            the source has none.
        new: Only if nothing is there.
        subject: What an error is about.
        only_over: An ETag without quotes; only over that file.
        single_call_bytes: Up to here in one call; the service takes 5,000 MiB.
        block_bytes: Above that, of each block; the service takes 4,000 MiB.

    Returns:
        The service's answer, with the file's ``ETag``.

    Raises:
        Unsupported: code ``copy_refused``. Nothing was written; stream the bytes instead. ``source.learned`` knows
            whether to ask again for the next item of the account. Also for whatever could go over another file, until
            one new file of the account has been seen to arrive: a service that ignored the header would empty it.
        TargetConflict: code ``target_exists`` with ``new``, ``target_changed`` with ``only_over``.
        SourceChanged: the source is another version by now.
        TransientError: code ``integrity_mismatch`` where the content is not what ``md5`` says.
    """
    if source.learned.refusal:
        raise Unsupported(source.learned.refusal, code=COPY_REFUSED, subject=subject)
    if not new and not source.learned.has_copied:
        raise Unsupported("no copy from this account is proven yet", code=COPY_REFUSED, subject=subject)
    condition = {"If-None-Match": "*"} if new else {"If-Match": f'"{only_over}"'} if only_over is not None else {}
    stored = b64encode(bytes.fromhex(md5)).decode("ascii")
    copy = _Copy(lake, url_of_target, source, size_bytes, stored, condition, subject)
    try:
        if size_bytes == 0:
            return await copy.empty()
        if size_bytes <= single_call_bytes:
            answer = await copy.whole()
        else:
            smallest = -(-size_bytes // _MAX_BLOCKS)
            answer = await copy.blocks(max(block_bytes, -(-smallest // (4 * MIB)) * 4 * MIB))
        is_proven = await copy.has_arrived(answer)
    except Unsupported as error:
        if error.code == COPY_REFUSED:
            source.learned.refused(error.detail)
        raise
    except TransientError as error:
        if error.code != COPY_SOURCE_BUSY:
            raise
        # It stays so at every attempt, as a private endpoint does that only this process can reach.
        source.learned.refused(error.detail)
        raise Unsupported(error.detail, code=COPY_REFUSED, subject=subject) from None
    if is_proven:
        source.learned.copied()
    return answer


class _Copy:
    """One file on its way."""

    def __init__(
        self,
        lake: OneLake,
        url: str,
        source: CopySource,
        size_bytes: int,
        md5: str,
        condition: Mapping[str, str],
        subject: str,
    ) -> None:
        self._lake = lake
        self._url = url
        self._source = source
        self._size = size_bytes
        self._md5 = md5
        self._condition = condition
        self._subject = subject

    async def empty(self) -> Answer:
        # Copied by URL, an empty source is refused: the service asks it for a range (azure-sdk-for-js, issue 6577).
        return await self._committing(
            self._url,
            {"x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream"},
            b"",
            from_source=False,
        )

    async def whole(self) -> Answer:
        headers = {"x-ms-blob-type": "BlockBlob"}
        if self._md5:
            headers |= {"x-ms-source-content-md5": self._md5, "x-ms-blob-content-md5": self._md5}
        return await self._committing(self._url, headers, b"", from_source=True)

    async def blocks(self, block_bytes: int) -> Answer:
        # Ids that no other delivery of the item uses; all of a blob must be of one length.
        upload = secrets.token_hex(8)
        starts = range(0, self._size, block_bytes)
        ids = [b64encode(f"{upload}-{number:05d}".encode()).decode("ascii") for number in range(len(starts))]
        places = asyncio.Semaphore(_BLOCKS_AT_ONCE)

        async def put(block_id: str, start: int) -> None:
            async with places:
                end = min(start + block_bytes, self._size) - 1
                await self._from_source(
                    f"{self._url}?comp=block&blockid={quote(block_id, safe='')}",
                    {"x-ms-source-range": f"bytes={start}-{end}"},
                )

        try:
            async with asyncio.TaskGroup() as group:
                for block_id, start in zip(ids, starts, strict=True):
                    group.create_task(put(block_id, start))
        except* MigrationError as failures:
            # What is final says more than a lost connection beside it.
            final = [one for one in failures.exceptions if isinstance(one, ItemError)]
            raise (final or failures.exceptions)[0] from None
        listed = "".join(f"<Uncommitted>{block_id}</Uncommitted>" for block_id in ids)
        document = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'
        headers = {"Content-Type": "application/xml", "x-ms-blob-content-type": "application/octet-stream"}
        if self._md5:
            headers["x-ms-blob-content-md5"] = self._md5
        return await self._committing(f"{self._url}?comp=blocklist", headers, document.encode(), from_source=False)

    async def has_arrived(self, answer: Answer) -> bool:
        """Ask for the size, since a service that does not know the headers makes an empty file of such a call.

        Once a file of the account was seen to arrive, the hash that the service computed says as much.

        Returns:
            False where it cannot be told, since the file is another one by now.

        Raises:
            Unsupported: nothing was copied; what was made is removed again.
        """
        if self._source.learned.has_copied and self._md5 and answer.headers.get("Content-MD5", "") == self._md5:
            return True
        etag = answer.headers.get("ETag", "")
        found = await self._head()
        if found is None or found.headers.get("ETag", "") != etag:
            return False
        if int(found.headers.get("Content-Length", "-1")) == self._size:
            return True
        with suppress(NotFound, TargetConflict):
            await self._lake.transport.send(
                "DELETE", self._url, headers={**_VERSION, "If-Match": etag}, subject=self._subject
            )
        raise Unsupported("the service took the call and did not copy", code=COPY_REFUSED, subject=self._subject)

    async def _committing(self, url: str, headers: Mapping[str, str], data: bytes, *, from_source: bool) -> Answer:
        """A call that makes the file, on the condition; told from a conflict if only its answer was lost."""
        tries = 0

        async def once(attempt: int) -> Answer:
            nonlocal tries
            tries = attempt
            return await self._send(url, {**headers, **self._condition}, data, attempt, from_source=from_source)

        try:
            return await self._attempts(once)
        except (TargetConflict, TransientError) as error:
            if tries > 1 and error.code in ("target_exists", "target_changed", "block_list"):
                found = await self._head()
                if found is not None and self._is_ours(found):
                    return found
            raise

    def _is_ours(self, found: Answer) -> bool:
        same_size = int(found.headers.get("Content-Length", "-1")) == self._size
        return same_size and bool(self._md5) and found.headers.get("Content-MD5", "") == self._md5

    async def _from_source(self, url: str, headers: Mapping[str, str]) -> Answer:
        async def once(attempt: int) -> Answer:
            return await self._send(url, headers, b"", attempt, from_source=True)

        return await self._attempts(once)

    async def _send(
        self, url: str, headers: Mapping[str, str], data: bytes, attempt: int, *, from_source: bool
    ) -> Answer:
        sent = {**_VERSION, **headers}
        if from_source:
            # Made for each attempt: a token or SAS of the source may end before a large file is through.
            sent |= await self._source.headers()
            if self._source.etag:
                sent["x-ms-source-if-match"] = f'"{self._source.etag}"'
        try:
            return await self._lake.transport.send_once("PUT", url, sent, data, self._subject, attempt)
        except TransientError as error:
            if error.code == "block_damaged" and from_source:
                # Not for the transport to repeat: the service has read and hashed it all.
                raise IntegrityMismatch(
                    f"the source's content is not what its Content-MD5 says ({b64decode(self._md5).hex()})",
                    subject=self._subject,
                ) from None
            raise
        except (Configuration, Authentication) as error:
            if not from_source or error.code not in _MAY_BE_ABOUT_COPYING:
                raise
            raise Unsupported(
                f"the service does not take a copy from a URL: {error.detail}", code=COPY_REFUSED, subject=self._subject
            ) from None

    async def _attempts(self, once: _Once) -> Answer:
        try:
            return await self._lake.transport.attempts(once, self._subject)
        except IntegrityMismatch as error:
            raise TransientError(error.detail, code="integrity_mismatch", subject=self._subject) from None

    async def _head(self) -> Answer | None:
        try:
            return await self._lake.transport.send("HEAD", self._url, headers=_VERSION, subject=self._subject)
        except NotFound:
            return None
