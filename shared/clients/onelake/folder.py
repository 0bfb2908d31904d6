"""A folder of a lakehouse: upload, replace, list, read, delete.

The upload is OneLake's create -> append -> flush, on the bare protocol, because three calls of 0.2 ms CPU beat the
SDK's three of 1 ms. So is what is asked about every file, its listing and properties; deletes are Microsoft's SDK.
"""

import asyncio
import hashlib
import json
import logging
import secrets
import time
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal
from urllib.parse import quote

from azure.core import MatchConditions
from azure.core.exceptions import HttpResponseError, ServiceRequestError, ServiceResponseError

from shared.clients.http import Answer
from shared.clients.onelake.blob_listing import UNREADABLE, parse_page
from shared.clients.onelake.classify import SHORTER, classify, unsupported_flush
from shared.clients.onelake.copying import put_from_url
from shared.clients.onelake.long_upload import LongUpload, Reading
from shared.clients.onelake.room import Room
from shared.clients.onelake.service import API_VERSION, SMALL_BLOCK_BYTES, OneLake, block_bytes, encode_path
from shared.errors import (
    Configuration,
    ConnectionLost,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    TargetConflict,
    TransientError,
)
from shared.policy.paths import staging_prefix
from shared.ports import (
    Block,
    Concurrency,
    CopySource,
    LakeFile,
    LakePage,
    LakeProperties,
    LongWritten,
    OpenItem,
    UploadJournal,
    Written,
)

_log = logging.getLogger("migration.onelake")

UploadSequence = Literal["auto", "three_step", "put_blob"]

_VERSION = {"x-ms-version": API_VERSION}
_LIST_PAGE = 5000
# Tells a continuation of the Blob endpoint's listing from one of the DFS endpoint's.
_BLOB_MARKER = "blob:"
# Appends of one file at once, where the memory has room for them: at 100 ms a call, 8 MiB alone would be 80 MB/s.
_BLOCKS_IN_FLIGHT = 4
_READ_BLOCK = 1024 * 1024
# With more than this, the time that a call takes tells of the size and not of the service.
_TELLING_BYTES = 64 * 1024
# Above this, hashing on the loop would hold up the other uploads for longer than a thread switch costs.
_HASH_IN_THREAD_BYTES = 512 * 1024


class LakeFolder:
    """One folder of one lakehouse, addressed by GUIDs; implements ``ports.LakeStore``.

    Args:
        lake: The endpoint.
        workspace_id: GUID of the workspace.
        item_id: GUID of the lakehouse.
        root: ``Files/...`` or ``Tables/...``, without outer slashes.
        owner: The job; part of the names of what is staged.
        in_flight: Most uploads at once, or None for what the endpoint's uploads share.
        sequence: The calls of a small file. ``auto``: create, then append and flush in one; ``three_step``: each by
            itself; ``put_blob``: one call through the Blob endpoint.
        bandwidth: Cap in bytes a second, or None.
    """

    def __init__(
        self,
        lake: OneLake,
        workspace_id: str,
        item_id: str,
        root: str,
        *,
        owner: str,
        in_flight: int | None = None,
        sequence: UploadSequence = "auto",
        bandwidth: int | None = None,
    ) -> None:
        self._lake = lake
        self._workspace = workspace_id
        self._item = item_id
        self._root = root
        self.owner = owner
        self._bandwidth = bandwidth
        self._uploads = lake.fixed_limit(owner, in_flight) if in_flight else lake.uploads
        self._sequence = sequence
        self._base = f"{lake.dfs_url}/{workspace_id}/{item_id}/"
        self.parked: dict[str, Reading] = {}
        """Content of uploads that were handed back, by their staging names, for a delivery to this process."""

    # -- reaching it ---------------------------------------------------------------------------------------------

    async def check(self, *, write: bool) -> bool:
        """Find out whether the run can work at all: endpoint, scope, permission, lakehouse, folder.

        With ``write`` the folder is made, which is the cheapest question that only a writer gets a yes to. The
        questions are asked at the same time; what the first one is answered has the first word.

        Returns:
            Whether this very call made the folder, so that it is known to be empty.

        Raises:
            RunError: with the sentence that says what to change.
        """
        root = self._root.partition("/")[0]
        is_below = self._root != root
        asked = await asyncio.gather(
            self._properties(root),
            *([self._properties(self._root)] if is_below else []),
            *([self._make_directory()] if is_below and write else []),
            return_exceptions=True,
        )
        found = asked[0]
        if isinstance(found, ConnectionLost):
            raise ConnectionLost(
                f"{found.detail}; check ONELAKE_DFS_URL, which is {self._lake.dfs_url}, and the way there",
                subject="ONELAKE_DFS_URL",
            ) from None
        if isinstance(found, BaseException):
            raise found
        if not isinstance(found, LakeProperties) or not found.is_directory:
            raise Configuration(
                f"the lakehouse shows no {root} folder at {self._lake.dfs_url}; check ONELAKE_DFS_URL, which is "
                "https://onelake.dfs.fabric.microsoft.com for the public cloud, and that the target is a lakehouse",
                code="wrong_endpoint",
                subject="target",
            )
        if not is_below:
            return False
        made = asked[2] if write else False
        if made is not True:
            await self._assert_folder(root, asked[1])
        if isinstance(made, BaseException):
            raise made
        return made is True

    async def _assert_folder(self, root: str, shown: LakeProperties | bool | BaseException | None) -> None:
        """That the target, or what there is of the way to it, is a folder; ``shown`` is what the target itself is."""
        part, nearest = self._root, shown
        while nearest is None:
            part = part.rpartition("/")[0]
            if part == root:
                return
            nearest = await self._properties(part)
        if isinstance(nearest, BaseException):
            raise nearest
        if isinstance(nearest, LakeProperties) and not nearest.is_directory:
            raise Configuration(
                f"target.path: {part!r} is a file; name a folder", code="target_is_file", subject="target.path"
            )

    async def _make_directory(self) -> bool:
        """Make the folder; whether it was not there, as far as the first answer tells."""
        try:
            answer = await self._lake.transport.send(
                "PUT",
                f"{self._url('')}?resource=directory",
                headers={"x-ms-version": API_VERSION, "If-None-Match": "*"},
                subject=self._root,
            )
        except TargetConflict as error:
            if error.code == "path_conflict":
                raise Configuration(
                    f"a part of target.path {self._root!r} is a file; name a folder",
                    code="target_is_file", subject="target.path",
                ) from None  # fmt: skip
            return False
        return answer.attempt == 1

    # -- writing -------------------------------------------------------------------------------------------------

    def concurrency(self) -> Concurrency:
        """The present level of uploads in flight, and how it came to it."""
        return self._uploads.now()

    def room(self, size_bytes: int) -> Room:
        """Room for one upload, as a context: in memory at once, and in flight inside its ``turn``."""
        return Room(size_bytes, self._lake.memory, self._lake.ahead, self._uploads)

    async def create(self, path: str, content: OpenItem) -> Written:
        """Write a file that is not there: create (on that condition) -> append -> flush, in place.

        Idempotent: a repeat after a lost answer finds its own empty file and goes on.

        Raises:
            TargetConflict: code ``target_exists`` if a file was there before.
            SourceChanged: the source changed while it was read; nothing is left in the lake.
        """
        return await self._upload(path, path, content, new=True)

    async def replace(self, path: str, content: OpenItem, *, only_over: str | None = None) -> Written:
        """Write beside the target and rename over it, so that a reader meets the old file or the new one.

        Idempotent in its effect. The staging name is never used twice: of two deliveries of one item at the same time
        each writes its own file, and the later rename wins whole. What a kill leaves is removed by the job's next
        listing.
        """
        if self._sequence == "put_blob" and content.size_bytes <= SMALL_BLOCK_BYTES and only_over is None:
            # One call is one commit: the old bytes or the new ones, without a rename.
            return await self._upload(path, path, content, new=False)
        folder, slash, _ = path.rpartition("/")
        staging = f"{folder}{slash}{staging_prefix(self.owner)}{secrets.token_hex(8)}"
        try:
            written = await self._upload(path, staging, content, new=False, staged=True)
            etag = await self._rename(staging, path, written, only_over)
        except (ItemError, SourceChanged):
            # Under a name that nobody else uses; where the service itself is the trouble, the next listing removes it.
            with suppress(MigrationError):
                await self.delete(staging, etag="")
            raise
        return Written(written.size_bytes, written.md5, etag)

    async def _upload(self, subject: str, path: str, content: OpenItem, *, new: bool, staged: bool = False) -> Written:
        size = content.size_bytes
        block = block_bytes(size)
        if size > block:
            return await self._write_large(subject, path, content, block, new=new)
        data = await content.read(size) if size else b""
        await content.finish()
        if len(data) != size:
            raise SourceChanged(f"holds {len(data)} bytes where {size} were announced", subject=subject)
        return await self._write_small(subject, path, data, new=new, staged=staged)

    async def _write_small(self, subject: str, path: str, data: Block, *, new: bool, staged: bool) -> Written:
        digest = await _md5(data)
        md5 = b64encode(digest).decode("ascii")
        if self._sequence == "put_blob" and not staged:
            put = await self._put_whole(subject, path, data, md5, new=new)
            return Written(len(data), digest.hex(), _etag(put.headers.get("ETag")) or await self._etag(path))
        created = await self._create_path(subject, path, md5, new=new)
        etag = created.headers.get("ETag", "")
        if not data:
            return Written(0, digest.hex(), _etag(etag))
        if self._lake.one_call_commit and self._sequence != "three_step":
            try:
                answer = await self._append(subject, path, 0, data, md5, flush=True)
                return Written(len(data), digest.hex(), _etag(answer.headers.get("ETag")) or await self._etag(path))
            except Configuration as error:
                if not unsupported_flush(error):
                    raise
                # Learned for the whole process, so that the question costs one call and not one for each file.
                self._lake.one_call_commit = False
            except TransientError as error:
                if error.code != "flush_position":
                    raise
                return await self._settle(path, data, digest, error)
        await self._append(subject, path, 0, data, md5, flush=False)
        answer = await self._flush(subject, path, len(data), md5, etag)
        return Written(len(data), digest.hex(), _etag(answer.headers.get("ETag")))

    async def _put_whole(self, subject: str, path: str, data: Block, md5: str, *, new: bool) -> Answer:
        """Put Blob: the file is there whole or not at all."""
        await self._lake.transport.pacing.spend(len(data), self._bandwidth)
        url = f"{self._lake.blob_url}/{self._workspace}/{self._item}/{encode_path(self._below(path))}"
        headers = {
            "x-ms-version": API_VERSION, "x-ms-blob-type": "BlockBlob", "Content-Type": "application/octet-stream",
            "Content-MD5": md5, "x-ms-blob-content-md5": md5, **({"If-None-Match": "*"} if new else {}),
        }  # fmt: skip
        tries = 0

        async def once(attempt: int) -> Answer:
            nonlocal tries
            tries = attempt
            if attempt > 1:
                await self._lake.transport.pacing.spend(len(data), self._bandwidth)
            began_s = time.perf_counter()
            answer = await self._lake.transport.send_once("PUT", url, headers, data, subject, attempt)
            if len(data) <= _TELLING_BYTES:
                self._uploads.answered(time.perf_counter() - began_s)
            return answer

        try:
            return await self._lake.transport.attempts(once, subject)
        except TargetConflict as error:
            # After a lost answer the file that is in the way is most likely our own.
            if error.code == "target_exists" and tries > 1:
                found = await self.properties(path)
                if found and not found.is_directory and found.size_bytes == len(data) and found.md5 == _hex(md5):
                    return Answer(201, {"ETag": f'"{found.etag}"'}, b"", tries)
            raise

    async def _settle(self, path: str, data: Block, digest: bytes, error: TransientError) -> Written:
        """An earlier try may have committed unseen, and a repeat at position 0 is then refused: look."""
        found = await self.properties(path)
        if found and found.size_bytes == len(data) and found.md5 == digest.hex():
            return Written(len(data), digest.hex(), found.etag)
        raise error

    async def _write_large(self, subject: str, path: str, content: OpenItem, block: int, *, new: bool) -> Written:
        created = await self._create_path(subject, path, None, new=new)
        etag = created.headers.get("ETag", "")
        try:
            return await self._write_blocks(subject, path, content, block, etag)
        except SourceChanged:
            # The empty file of an upload that cannot be goes again, if it is still that and nobody else's.
            with suppress(MigrationError):
                await self.delete(path, etag=_etag(etag))
            raise

    async def _write_blocks(self, subject: str, path: str, content: OpenItem, block: int, etag: str) -> Written:
        reading = Reading(content)
        await self.append_blocks(subject, path, reading, content.size_bytes, lambda: False)
        await content.finish()
        md5 = b64encode(reading.whole.digest()).decode("ascii")
        answer = await self._flush(subject, path, content.size_bytes, md5, etag)
        return Written(content.size_bytes, reading.whole.hexdigest(), _etag(answer.headers.get("ETag")))

    async def append_blocks(
        self, subject: str, path: str, reading: Reading, end: int, is_over: Callable[[], bool]
    ) -> None:
        """Append up to ``end``, or until ``is_over``: while some blocks are on the wire, the next is read and hashed.

        All that was read has arrived when this returns.
        """
        content, block = reading.content, block_bytes(reading.content.size_bytes)
        memory = self._lake.memory
        sending: deque[asyncio.Task[Answer]] = deque()
        # The slot holds room for one block, so that every upload goes on however little is left for others.
        rooms = 1
        try:
            while reading.position < end and not is_over():
                if len(sending) == rooms:
                    if rooms < _BLOCKS_IN_FLIGHT and memory.take_now(block):
                        rooms += 1
                    else:
                        await sending.popleft()
                at = reading.position
                data = await content.read(min(block, end - at))
                if not data:
                    raise SourceChanged(f"ended at {at} of {content.size_bytes} bytes", subject=subject)
                digest, _ = await asyncio.gather(_md5(data), asyncio.to_thread(reading.whole.update, data))
                reading.position += len(data)
                md5 = b64encode(digest).decode("ascii")
                sending.append(asyncio.create_task(self._append(subject, path, at, data, md5, flush=False)))
            for task in sending:
                await task
        finally:
            for task in sending:
                task.cancel()
            try:
                await asyncio.gather(*sending, return_exceptions=True)
            finally:
                memory.give((rooms - 1) * block)

    async def _create_path(self, subject: str, path: str, md5: str | None, *, new: bool) -> Answer:
        headers = {"x-ms-version": API_VERSION}
        if md5 is not None:
            headers["x-ms-content-md5"] = md5
        if new:
            headers["If-None-Match"] = "*"
        url = f"{self._url(path)}?resource=file"
        tries = 0

        async def once(attempt: int) -> Answer:
            nonlocal tries
            tries = attempt
            began_s = time.perf_counter()
            answer = await self._lake.transport.send_once("PUT", url, headers, b"", subject, attempt)
            # A create has no body, so the time it takes is the service's, whatever the size of the file.
            self._uploads.answered(time.perf_counter() - began_s)
            return answer

        try:
            return await self._lake.transport.attempts(once, subject)
        except TargetConflict as error:
            # After a lost answer the file that is in the way is most likely our own, still empty.
            if error.code == "target_exists" and tries > 1:
                found = await self.properties(path)
                if found and not found.is_directory and found.size_bytes == 0:
                    return Answer(201, {"ETag": f'"{found.etag}"'}, b"", tries)
            raise

    async def _append(self, subject: str, path: str, position: int, data: Block, md5: str, *, flush: bool) -> Answer:
        transport = self._lake.transport
        url = f"{self._url(path)}?action=append&position={position}{'&flush=true' if flush else ''}"
        headers = {"x-ms-version": API_VERSION, "Content-MD5": md5, "Content-Type": "application/octet-stream"}
        # Outside of the attempts, whose time is bounded: under a cap, many wait here for long.
        await transport.pacing.spend(len(data), self._bandwidth)

        async def once(attempt: int) -> Answer:
            if attempt > 1:
                # What is sent again crosses the wire again.
                await transport.pacing.spend(len(data), self._bandwidth)
            return await transport.send_once("PATCH", url, headers, data, subject, attempt)

        return await transport.attempts(once, subject)

    async def _flush(self, subject: str, path: str, position: int, md5: str, etag: str) -> Answer:
        headers = {"x-ms-version": API_VERSION, "x-ms-content-md5": md5}
        try:
            return await self._lake.transport.send(
                "PATCH", f"{self._url(path)}?action=flush&position={position}&close=true",
                headers=headers | ({"If-Match": etag} if etag else {}), subject=subject,
            )  # fmt: skip
        except TargetConflict as error:
            if error.code != "target_changed":
                raise
            # The condition fails too where a first flush succeeded and only its answer was lost.
            found = await self.properties(path)
            if found and found.size_bytes == position and found.md5 == _hex(md5):
                return Answer(200, {"ETag": found.etag}, b"", 2)
            raise

    async def upload_long(
        self,
        path: str,
        open_content: Callable[[], Awaitable[OpenItem]],
        journal: UploadJournal,
        *,
        new: bool,
        only_over: str | None = None,
        part_bytes: int,
        is_over: Callable[[], bool],
    ) -> LongWritten | None:
        """Write a very large file in parts that are kept; see :mod:`shared.clients.onelake.long_upload`.

        Returns:
            None where ``is_over`` said so first; the next call with the same journal goes on from there.
        """
        upload = LongUpload(self, path, journal, new=new, only_over=only_over, part_bytes=part_bytes, is_over=is_over)
        return await upload.carry_out(open_content)

    async def close_parked(self, keep: int = 0) -> None:
        """Close content of uploads that were handed back, but for the last ``keep``; if need be it is opened again."""
        while len(self.parked) > keep:
            await self.parked.pop(next(iter(self.parked))).content.close()

    async def create_staged(self, subject: str, path: str) -> str:
        """An empty file under a name that nobody else uses; its ETag."""
        return (await self._create_path(subject, path, None, new=False)).headers.get("ETag", "")

    async def flush_part(self, subject: str, path: str, position: int, etag: str) -> str:
        """Make what was appended so far durable, on the condition that nobody else did; the new ETag."""
        try:
            answer = await self._lake.transport.send(
                "PATCH", f"{self._url(path)}?action=flush&position={position}&retainUncommittedData=true",
                headers=_VERSION | {"If-Match": _quoted(etag)}, subject=subject,
            )  # fmt: skip
        except TargetConflict as error:
            # The condition fails too where a first flush succeeded and only its answer was lost.
            found = await self.properties(path) if error.code == "target_changed" else None
            if found is None or found.size_bytes != position:
                raise
            return found.etag
        return _etag(answer.headers.get("ETag"))

    async def flush_whole(self, subject: str, path: str, size_bytes: int, md5: str, etag: str) -> str:
        """The last flush of an upload in parts; ``md5`` in Base64."""
        return _etag((await self._flush(subject, path, size_bytes, md5, _quoted(etag))).headers.get("ETag"))

    async def put_in_place(self, staging: str, path: str, written: Written, only_over: str | None, *, new: bool) -> str:
        """Rename what is staged over the target; with ``new`` only where nothing is. Its ETag there."""
        try:
            return await self._rename(staging, path, written, only_over, new=new)
        except TargetConflict as error:
            # After a lost answer what is in the way is our own, and the staged file is gone.
            found = await self.properties(path) if error.code == "target_exists" else None
            if found is None or (found.size_bytes, found.md5) != (written.size_bytes, written.md5):
                raise
            if await self.properties(staging) is not None:
                raise
            return found.etag

    async def _rename(
        self, source: str, path: str, written: Written, only_over: str | None, *, new: bool = False
    ) -> str:
        try:
            answer = await self._lake.transport.send(
                "PUT",
                # Not the SDK's rename: it unquotes the name once more, which breaks names that hold a literal %41.
                f"{self._url(path)}?mode=legacy",
                headers={
                    "x-ms-version": API_VERSION,
                    "x-ms-rename-source": f"/{self._workspace}/{self._item}/{encode_path(self._below(source))}",
                    **({"If-Match": f'"{only_over}"'} if only_over is not None else {}),
                    **({"If-None-Match": "*"} if new else {}),
                },
                subject=path,
            )
        except NotFound:
            found = await self.properties(path)
            if found is not None and await self._holds(path, found, written):
                return found.etag
            raise
        return _etag(answer.headers.get("ETag")) or await self._etag(path)

    async def _holds(self, path: str, found: LakeProperties, written: Written) -> bool:
        """Whether what stands there is what was written, by its bytes where no hash is stored with it."""
        if found.is_directory or found.size_bytes != written.size_bytes:
            return False
        if found.md5:
            return found.md5 == written.md5
        digest = hashlib.md5(usedforsecurity=False)
        async for block in self.read(path, found.size_bytes):
            digest.update(block)
        return digest.hexdigest() == written.md5

    async def copy(self, path: str, source: CopySource, *, new: bool) -> Written:
        """Let the service read a file from another account by itself; see :func:`copying.put_from_url`.

        Raises:
            Unsupported: code ``copy_refused``; nothing was written.
            TargetConflict: code ``target_exists`` with ``new``.
            SourceChanged: the source is another version by now.
        """
        url = f"{self._lake.blob_url}/{self._workspace}/{self._item}/{encode_path(self._below(path))}"
        answer = await put_from_url(self._lake, url, source, source.size_bytes, source.md5, new=new, subject=path)
        return Written(source.size_bytes, source.md5, _etag(answer.headers.get("ETag")) or await self._etag(path))

    async def move(self, old: str, path: str, was: Written) -> str:
        """Rename a file, if it is still that one and nothing stands at its new place; parents are made.

        Idempotent: a repeat after a lost answer finds the file where it was to go.

        Returns:
            Its ETag at the new place.

        Raises:
            NotFound: there is no such file.
            TargetConflict: code ``target_changed`` or ``target_exists``.
        """

        async def rename() -> Answer:
            return await self._lake.transport.send(
                "PUT",
                f"{self._url(path)}?mode=legacy",
                headers={
                    **_VERSION, "If-None-Match": "*", "x-ms-source-if-match": f'"{was.etag}"',
                    "x-ms-rename-source": f"/{self._workspace}/{self._item}/{encode_path(self._below(old))}",
                },
                subject=path,
            )  # fmt: skip

        try:
            try:
                answer = await rename()
            except NotFound as error:
                if error.code != "parent_missing":
                    raise
                await self._make_parent(path)
                answer = await rename()
        except SourceChanged:
            raise TargetConflict(
                "somebody else changed the file in the lake meanwhile", code="target_changed", subject=old
            ) from None
        except (NotFound, TargetConflict):
            # Where only the answer was lost, it stands there with the very bytes, and no longer where it was.
            found = await self.properties(path)
            is_it = found is not None and (found.size_bytes, found.md5) == (was.size_bytes, was.md5)
            if found is None or not is_it or await self.properties(old) is not None:
                raise
            return found.etag
        return _etag(answer.headers.get("ETag")) or await self._etag(path)

    async def _make_parent(self, path: str) -> None:
        with suppress(TargetConflict):
            await self._lake.transport.send(
                "PUT",
                f"{self._url(path.rpartition('/')[0])}?resource=directory",
                headers={**_VERSION, "If-None-Match": "*"},
                subject=path,
            )

    # -- the rest ------------------------------------------------------------------------------------------------

    async def list_page(self, continuation: str | None, *, hashes: bool = False) -> LakePage:
        """Up to 5,000 paths below the folder, recursively. A missing folder is an empty one.

        With ``hashes`` through the Blob endpoint, whose listing shows the stored MD5; where that is refused or cannot
        be read, without. On the bare protocol as well: the SDK spends 40 microseconds on each path, most of them on
        dates and owners.
        """
        if continuation is None and hashes:
            try:
                return await self._list_blobs("")
            except MigrationError as error:
                if isinstance(error, TransientError) and error.code != UNREADABLE:
                    raise
                _log.info(
                    "the Blob endpoint does not list the lake (%s), so hashes are asked for one by one", error.code
                )
        if continuation is not None and continuation.startswith(_BLOB_MARKER):
            return await self._list_blobs(continuation.removeprefix(_BLOB_MARKER))
        directory = encode_path(f"{self._item}/{self._root}").replace("/", "%2F")
        url = (
            f"{self._lake.dfs_url}/{self._workspace}?resource=filesystem&recursive=true&maxResults={_LIST_PAGE}"
            f"&directory={directory}"
        )
        if continuation:
            url += f"&continuation={quote(continuation, safe='')}"
        try:
            answer = await self._lake.transport.send("GET", url, headers=_VERSION, subject=self._root)
        except NotFound:
            return LakePage((), None)
        try:
            files = [
                LakeFile(self._relative(one["name"]), int(one.get("contentLength") or 0), _etag(one.get("etag")))
                for one in json.loads(answer.body)["paths"]
                if str(one.get("isDirectory", "")).lower() != "true"
            ]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ServiceUnavailable("the service answers a listing that cannot be read", subject=self._root) from None
        return LakePage(files, answer.headers.get("x-ms-continuation") or None)

    async def _list_blobs(self, marker: str) -> LakePage:
        prefix = f"{self._item}/{self._root}/"
        url = (
            f"{self._lake.blob_url}/{self._workspace}?restype=container&comp=list&maxresults={_LIST_PAGE}"
            f"&prefix={quote(prefix, safe='')}"
        )
        if marker:
            url += f"&marker={quote(marker, safe='')}"
        try:
            answer = await self._lake.transport.send("GET", url, headers=_VERSION, subject=self._root)
        except NotFound:
            return LakePage((), None)
        files, following = parse_page(answer.body, prefix)
        return LakePage(files, f"{_BLOB_MARKER}{following}" if following else None)

    async def properties(self, path: str) -> LakeProperties | None:
        """Size, ETag and stored MD5 of a path, or None where there is none."""
        return await self._properties(self._below(path))

    async def delete(self, path: str, *, etag: str) -> bool:
        """Delete the file if it is still the one with this ETag (any, if it is empty). False if it was gone."""

        async def once(_: int) -> None:
            condition: dict[str, Any] = (
                {"etag": f'"{etag.strip(chr(34))}"', "match_condition": MatchConditions.IfNotModified} if etag else {}
            )
            with _sdk_errors(path):
                await self._files().get_file_client(f"{self._item}/{self._below(path)}").delete_file(**condition)

        try:
            await self._lake.transport.attempts(once, path)
        except NotFound:
            return False
        return True

    async def remove_empty_folder(self, path: str) -> bool:
        """Delete a folder that holds nothing. False if it holds something, is no folder, or is gone."""
        found = await self.properties(path)
        if found is None or not found.is_directory:
            return False
        try:
            # On condition, since the same call would delete a file that took the folder's place meanwhile.
            condition = {"If-Match": f'"{found.etag}"'}
            await self._lake.transport.send(
                "DELETE", f"{self._url(path)}?recursive=false", headers=_VERSION | condition, subject=path
            )
        except (NotFound, TargetConflict):
            return False
        return True

    async def read(self, path: str, size_bytes: int = 0) -> AsyncIterator[bytes]:
        """The committed bytes, block by block, exactly as many as the service announced.

        Args:
            path: Of the file.
            size_bytes: What it should have, if known: a small file comes in one answer, and of a longer one that stands
                there instead no more than tells it apart.
        """
        headers = {"x-ms-version": API_VERSION}
        if 0 < size_bytes <= _READ_BLOCK:
            ranged = {**headers, "Range": f"bytes=0-{size_bytes}"}
            try:
                yield (await self._lake.transport.send("GET", self._url(path), headers=ranged, subject=path)).body
            except TargetConflict as error:
                # It is empty by now.
                if error.code != SHORTER:
                    raise
            return
        async with self._lake.transport.stream(self._url(path), headers=headers, subject=path) as response:
            announced = response.content_length
            received = 0
            async for data in response.content.iter_chunked(_READ_BLOCK):
                received += len(data)
                yield data
            if announced is not None and received != announced:
                raise ConnectionLost(f"{received} of {announced} bytes arrived", subject=path)

    async def _properties(self, below: str) -> LakeProperties | None:
        # A HEAD on the DFS endpoint itself: the SDK asks the Blob endpoint, which does not say whether it is a folder.
        url = self._base + encode_path(below)
        try:
            found = await self._lake.transport.send("HEAD", url, headers={"x-ms-version": API_VERSION}, subject=below)
        except NotFound:
            return None
        return LakeProperties(
            is_directory=found.headers.get("x-ms-resource-type") == "directory",
            size_bytes=int(found.headers.get("Content-Length", "0")),
            etag=_etag(found.headers.get("ETag", "")),
            md5=_hex(found.headers.get("Content-MD5", "")),
            modified_at=_moment(found.headers.get("Last-Modified", "")),
        )

    async def _etag(self, path: str) -> str:
        found = await self.properties(path)
        return found.etag if found else ""

    def _files(self) -> Any:
        return self._lake.sdk().get_file_system_client(self._workspace)

    def _below(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _url(self, path: str) -> str:
        return self._base + encode_path(self._below(path))

    def _relative(self, name: str) -> str:
        # The service answers with the item's GUID or name in front, as the request named it.
        return name.partition("/")[2].removeprefix(f"{self._root}/")


async def _md5(data: Block) -> bytes:
    if len(data) < _HASH_IN_THREAD_BYTES:
        return hashlib.md5(data, usedforsecurity=False).digest()
    return await asyncio.to_thread(lambda: hashlib.md5(data, usedforsecurity=False).digest())


def _hex(md5: str) -> str:
    """Base64, as headers carry it, to hex, as the manifest does."""
    try:
        return b64decode(md5, validate=True).hex()
    except ValueError:
        return ""


def _moment(header: str) -> datetime | None:
    try:
        return parsedate_to_datetime(header)
    except ValueError:
        return None


def _quoted(etag: str) -> str:
    return f'"{_etag(etag)}"'


def _etag(text: str | None) -> str:
    # Listings give it bare, headers in quotes.
    return (text or "").strip('"')


@contextmanager
def _sdk_errors(subject: str) -> Iterator[None]:
    """What the SDK raises, as this platform's errors."""
    try:
        yield
    except HttpResponseError as error:
        if error.status_code is None or error.response is None:
            raise ConnectionLost("the answer broke off", subject=subject) from None
        raise classify(
            error.status_code, dict(getattr(error.response, "headers", {})), str(error).encode(), subject
        ) from None
    except (ServiceRequestError, ServiceResponseError):
        raise ConnectionLost("the connection failed", subject=subject) from None
