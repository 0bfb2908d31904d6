"""A file so large that moving it can outlive an activity: in parts, each of which is kept.

1. An empty file beside the target, under a staging name that is used once.
2. Appends. After each part a flush that keeps what is appended behind it makes the part durable, and the journal says
   how far it got. When the caller's time is up, the same, and the upload is handed back.
3. The last flush stores the MD5 of the whole; the journal learns it; then a rename puts the file in its place.

Whoever goes on asks the lake how far it got. The MD5 goes on as well where the same process does; in another one what
was sent is read and hashed once more, in as many deliveries as that takes, which also means that it is the same version
of the source, or it begins anew.

Source: Path - Update, "retainUncommittedData" (docs/protocols/onelake.md, section 4); AzCopy flushes in between, too.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from shared.clients.onelake.service import block_bytes
from shared.errors import ItemError, MigrationError, NotFound, SourceChanged, TargetConflict, TransientError
from shared.policy.paths import staging_prefix
from shared.ports import LongWritten, OpenItem, UploadJournal, Written

if TYPE_CHECKING:
    from shared.clients.onelake.folder import LakeFolder


# Content of uploads that were handed back is held open for so many.
PARKED = 64
# Of what is in the lake already, so many parts are hashed however late it is, or it might never come to an end.
_CATCH_UP_PARTS = 16


@dataclass
class Reading:
    """Content that is read to ``position``, with the hash of what was read."""

    content: OpenItem
    whole: Any = field(default_factory=lambda: hashlib.md5(usedforsecurity=False))
    position: int = 0


class LongUpload:
    """One upload in parts; see :meth:`LakeFolder.upload_long` for what is given."""

    def __init__(
        self,
        lake: LakeFolder,
        path: str,
        journal: UploadJournal,
        *,
        new: bool,
        only_over: str | None,
        part_bytes: int,
        is_over: Callable[[], bool],
    ) -> None:
        self._lake = lake
        self._path = path
        self._journal = journal
        self._new = new
        self._only_over = only_over
        self._part_bytes = part_bytes
        self._is_over = is_over
        self._staging = ""

    async def carry_out(self, open_content: Callable[[], Awaitable[OpenItem]]) -> LongWritten | None:
        known = await self._journal.load()
        if known is not None and known["md5"] and (landed := await self._landed(known)) is not None:
            return landed
        if self._new and await self._lake.properties(self._path) is not None:
            raise TargetConflict("a file is there already", code="target_exists", subject=self._path)
        reading = self._lake.parked.pop(known["staging"], None) if known else None
        reading = reading or Reading(await open_content())
        is_parked = False
        try:
            resumed = await self._resume(known, reading)
            if resumed is None and reading.position:
                await reading.content.close()
                reading = Reading(await open_content())
            start, etag = resumed or await self._begin(known, reading)
            written = await self._append_parts(reading, etag) if await self._catch_up(reading, start) else None
            if written is None:
                self._lake.parked[self._staging] = reading
                is_parked = True
                await self._lake.close_parked(keep=PARKED)
                return None
            return await self._place(reading, written)
        except (ItemError, SourceChanged, TransientError) as error:
            await self._give_up(error)
            raise
        finally:
            if not is_parked:
                await reading.content.close()

    async def _landed(self, known: dict[str, Any]) -> LongWritten | None:
        """What an earlier delivery brought all the way and did not get to say so."""
        staged = await self._lake.properties(known["staging"])
        found = staged or await self._lake.properties(self._path)
        if found is None or (found.size_bytes, found.md5) != (known["size_bytes"], known["md5"]):
            return None
        written = Written(found.size_bytes, found.md5, found.etag)
        if staged is not None:
            etag = await self._lake.put_in_place(known["staging"], self._path, written, self._only_over, new=self._new)
            written = Written(found.size_bytes, found.md5, etag)
        await self._journal.clear()
        return LongWritten(known["version"], known["facts"], written)

    async def _resume(self, known: dict[str, Any] | None, reading: Reading) -> tuple[int, str] | None:
        """From where to go on, and the staged file's ETag; None where it has to begin anew."""
        content = reading.content
        if known is None or (known["version"], known["size_bytes"]) != (content.version, content.size_bytes):
            return None
        staged = await self._lake.properties(known["staging"])
        least = max(known["position"], reading.position)
        if staged is None or not least <= staged.size_bytes <= content.size_bytes:
            return None
        self._staging = known["staging"]
        return staged.size_bytes, staged.etag

    async def _begin(self, known: dict[str, Any] | None, reading: Reading) -> tuple[int, str]:
        if known is not None:
            await self._remove(known["staging"])
        folder, slash, _ = self._path.rpartition("/")
        self._staging = f"{folder}{slash}{staging_prefix(self._lake.owner)}{secrets.token_hex(8)}"
        etag = await self._lake.create_staged(self._path, self._staging)
        await self._note(reading, 0)
        return 0, etag

    async def _note(self, reading: Reading, position: int, md5: str = "") -> None:
        content = reading.content
        facts = dict(content.facts) if md5 and content.facts else None
        await self._journal.save({
            "staging": self._staging, "version": content.version, "size_bytes": content.size_bytes,
            "position": position, "md5": md5, "facts": facts,
        })  # fmt: skip

    async def _catch_up(self, reading: Reading, start: int) -> bool:
        """Hash what is in the lake already, from the source; False where the time was up before."""
        block = block_bytes(reading.content.size_bytes)
        least = reading.position + _CATCH_UP_PARTS * self._part_bytes
        while reading.position < start:
            if reading.position >= least and self._is_over():
                return False
            data = await reading.content.read(min(block, start - reading.position))
            if not data:
                raise SourceChanged(f"ended at {reading.position} bytes", subject=self._path)
            await asyncio.to_thread(reading.whole.update, data)
            reading.position += len(data)
        return True

    async def _append_parts(self, reading: Reading, etag: str) -> Written | None:
        """Append to the end, part by part; the staged file, or None where the time was up before."""
        content, staging = reading.content, self._staging
        size = content.size_bytes
        # One part at least, or an upload whose hash takes all the time would never end.
        is_over: Callable[[], bool] = _never
        try:
            while reading.position < size:
                end = min(reading.position + self._part_bytes, size)
                await self._lake.append_blocks(self._path, staging, reading, end, is_over)
                is_over = self._is_over
                if reading.position == size:
                    break
                etag = await self._lake.flush_part(self._path, staging, reading.position, etag)
                await self._note(reading, reading.position)
                if is_over():
                    return None
            await content.finish()
            stored = b64encode(reading.whole.digest()).decode("ascii")
            etag = await self._lake.flush_whole(self._path, staging, size, stored, etag)
        except TargetConflict as error:
            raise TransientError(
                "another delivery of the item goes on with the upload", code="upload_taken_over", subject=self._path
            ) from error
        except NotFound as error:
            raise await self._staging_gone() from error
        return Written(size, reading.whole.hexdigest(), etag)

    async def _place(self, reading: Reading, written: Written) -> LongWritten:
        content = reading.content
        await self._note(reading, content.size_bytes, written.md5)
        try:
            etag = await self._lake.put_in_place(self._staging, self._path, written, self._only_over, new=self._new)
        except NotFound as error:
            raise await self._staging_gone() from error
        await self._journal.clear()
        return LongWritten(content.version, content.facts, Written(written.size_bytes, written.md5, etag))

    async def _staging_gone(self) -> TransientError:
        await self._journal.clear()
        return TransientError("the staged file is gone", code="staging_gone", subject=self._path)

    async def _give_up(self, error: MigrationError) -> None:
        """Where going on is no use, forget the journal, so that the next attempt begins anew."""
        if isinstance(error, ItemError | SourceChanged) or error.code == "flush_position":
            await self._remove(self._staging)
            await self._journal.clear()

    async def _remove(self, staging: str) -> None:
        if staging:
            with suppress(MigrationError):
                await self._lake.delete(staging, etag="")


def _never() -> bool:
    return False
