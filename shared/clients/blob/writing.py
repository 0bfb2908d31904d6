"""A container of a storage account that is written to, and how both ends of a copy between accounts are told apart.

Small blobs go up in one call, large ones in blocks; where the service can read the source by itself, no byte passes
through here. Every write is on a condition, so that nothing that is there is written over unawares.
"""

import asyncio
import hashlib
import secrets
from base64 import b64encode
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from urllib.parse import quote
from xml.etree import ElementTree

from shared.clients.blob.access import TokenAccess
from shared.clients.blob.account import API_VERSION, BlobAccount
from shared.clients.blob.container import MAX_PAGE_ITEMS, BlobContainer, OpenBlob
from shared.clients.blob.listing import read_ref
from shared.clients.credentials import TokenSource
from shared.clients.http import Answer, Classify, Transport, retry_after_s
from shared.clients.onelake.classify import service_code
from shared.errors import (
    Authentication,
    Configuration,
    IntegrityMismatch,
    ItemError,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    TargetConflict,
    Throttled,
    TransientError,
    Unsupported,
)
from shared.ports import CopySource, ListedItems, OpenItem, SourceItem, Written

SINGLE_CALL_BYTES = 8 * 1024 * 1024
BLOCK_BYTES = 8 * 1024 * 1024
# Put Blob From URL takes 5,000 MiB in one call; above this, blocks are copied at the same time.
COPY_SINGLE_BYTES = 256 * 1024 * 1024
COPY_BLOCK_BYTES = 64 * 1024 * 1024
_BLOCKS_AT_ONCE = 4
_SAS_LIFE_S = 3600.0
_RENEW_BEFORE_S = 900.0
_CLOCK_SKEW_S = 900.0
_VERSION = {"x-ms-version": API_VERSION}
_KEPT = ("content-type", "content-encoding", "content-language", "content-disposition", "cache-control")
_OWNER = "x-ms-meta-migration_owner"
_COPY_REFUSED = "copy_refused"
_TAKEN = ("BlobAlreadyExists", "UnauthorizedBlobOverwrite", "BlobImmutableDueToPolicy")
_SOURCE_REFUSED = ("CannotVerifyCopySource", "CopyIdMismatch", "InvalidSourceBlobUrl", "InvalidSourceBlobType",
                   "PendingCopyOperation", "APINotImplemented", "FeatureNotSupportedByAccount")  # fmt: skip


def side_classifier(side: str, remedy: str) -> Classify:
    """What an account's answers mean to whoever copies between two. Any refusal of the identity stops the run.

    Args:
        side: ``source`` or ``target``.
        remedy: What a refused identity needs.
    """

    def classify(status: int, headers: Mapping[str, str], body: bytes, subject: str) -> MigrationError:
        """Source: "Common REST API error codes" and "Blob Storage error codes" of the Azure Storage reference."""
        code = service_code(headers, body)
        said = f"{status} {code}".rstrip()
        wait_s = retry_after_s(headers)
        if code in _SOURCE_REFUSED:
            return Unsupported(f"the service does not read the source by itself ({said})", code=_COPY_REFUSED,
                               subject=subject)  # fmt: skip
        if status == 429 or code == "ServerBusy":
            return Throttled(f"the {side} account asks to slow down ({said})", subject=subject, retry_after_s=wait_s)
        if status in (408, 500, 502, 503, 504):
            return ServiceUnavailable(f"the {side} account answers {said}", subject=subject, retry_after_s=wait_s)
        if code in ("ContainerNotFound", "ContainerBeingDeleted", "ContainerDisabled", "AccountIsDisabled"):
            return Configuration(
                f"the container behind the {side}'s default datastore is not there ({said})",
                code="container_not_found", subject=f"{side}_workspace_config",
            )  # fmt: skip
        if status == 401 or code == "InvalidAuthenticationInfo":
            text = body[:4096].decode("utf-8", "replace").lower()
            expired = "token is expired" in text or "token has expired" in text
            return Authentication(
                f"the {side} account rejects the token ({said}); check that the credential's tenant is the account's",
                code="token_expired" if expired else "token_rejected",
                subject=subject,
            )
        if status == 403:
            return Authentication(
                f"the {side}'s credential may not do this in the storage account ({said}); {remedy}",
                code="storage_permission_denied",
                subject=f"{side}_workspace_config",
            )
        if code in _TAKEN or (status == 409 and "AlreadyExists" in code):
            return TargetConflict("something is there already", code="target_exists", subject=subject)
        if code == "SourceConditionNotMet" or (status in (412, 416) and side == "source"):
            return SourceChanged("the source blob is no longer the version that was listed", subject=subject)
        if status == 412:
            return TargetConflict("it was changed meanwhile", code="target_changed", subject=subject)
        if status == 404:
            return NotFound(f"the {side} blob is gone", code=f"{side}_gone", subject=subject)
        if code in ("BlobArchived", "BlobBeingRehydrated"):
            return Unsupported("the blob is in the archive tier; set its tier to Hot or Cool and start again when that "
                               "is done", code="archived", subject=subject)  # fmt: skip
        if code == "Md5Mismatch":
            return ServiceUnavailable("what arrived is not what was sent", code="block_damaged", subject=subject)
        if code == "InvalidBlockList":
            return ServiceUnavailable("the blocks are gone", code="block_list", subject=subject)
        return ItemError(f"the {side} account refuses ({said})", code=f"{side}_refused", subject=subject)

    return classify


@dataclass(frozen=True, slots=True)
class BlobCopySource(CopySource):
    """With what a copy by blocks has to be told; see :func:`_kept`."""

    kept: Callable[[], Awaitable[Mapping[str, str]]] = field(repr=False)


class DelegatedAccess(TokenAccess):
    """A token; for a copy a SAS of one blob and one hour, signed by a key that the account gives to the identity.

    Where the account gives no such key, the token itself goes along, which services of the public cloud take.
    """

    def __init__(self, tokens: TokenSource, account: str, url: str, transport: Transport) -> None:
        super().__init__(tokens)
        self._account = account
        self._url = url
        self._transport = transport
        self._key: dict[str, str] | None = None
        self._renew_at = datetime.min.replace(tzinfo=UTC)
        self._asking = asyncio.Lock()

    async def for_copy(self, container: str, name: str) -> tuple[Mapping[str, str], str] | None:
        now = datetime.now(UTC)
        async with self._asking:
            if now >= self._renew_at:
                self._key = await self._ask_key(now)
                self._renew_at = now + timedelta(seconds=_SAS_LIFE_S)
        if self._key is None:
            return await super().for_copy(container, name)
        from azure.storage.blob import BlobSasPermissions, UserDelegationKey, generate_blob_sas

        key = UserDelegationKey()  # type: ignore[no-untyped-call]
        for attribute, value in self._key.items():
            setattr(key, attribute, value)
        return {}, generate_blob_sas(
            self._account, container, name, user_delegation_key=key, permission=BlobSasPermissions(read=True),
            start=now - timedelta(seconds=_CLOCK_SKEW_S), expiry=now + timedelta(seconds=_SAS_LIFE_S),
            protocol="https",
        )  # fmt: skip

    async def _ask_key(self, now: datetime) -> dict[str, str] | None:
        ends = now + timedelta(seconds=2 * _SAS_LIFE_S + _RENEW_BEFORE_S)
        begins = now - timedelta(seconds=_CLOCK_SKEW_S)
        body = (
            f'<?xml version="1.0" encoding="utf-8"?><KeyInfo><Start>{begins:%Y-%m-%dT%H:%M:%SZ}</Start>'
            f"<Expiry>{ends:%Y-%m-%dT%H:%M:%SZ}</Expiry></KeyInfo>"
        ).encode()
        try:
            answer = await self._transport.send(
                "POST", f"{self._url}/?restype=service&comp=userdelegationkey",
                headers={**_VERSION, "Content-Type": "application/xml"}, data=body, subject="user delegation key",
            )  # fmt: skip
        except (ItemError, Authentication):
            return None
        if b"<!DOCTYPE" in answer.body[:4096]:
            return None
        root = ElementTree.fromstring(answer.body)  # noqa: S314 - without a DOCTYPE no entity can be declared
        fields = {"signed_oid": "SignedOid", "signed_tid": "SignedTid", "signed_start": "SignedStart",
                  "signed_expiry": "SignedExpiry", "signed_service": "SignedService",
                  "signed_version": "SignedVersion", "value": "Value"}  # fmt: skip
        return {name: root.findtext(tag, "") for name, tag in fields.items()}


class WritableContainer(BlobContainer):
    """A container with ways to write into it; names are literal. Implements ``ports.AssetBlobs``."""

    def __init__(
        self,
        account: BlobAccount,
        container: str,
        transport: Transport,
        *,
        copy_single_bytes: int = COPY_SINGLE_BYTES,
        copy_block_bytes: int = COPY_BLOCK_BYTES,
    ) -> None:
        super().__init__(account, container)
        self._copy_single_bytes = copy_single_bytes
        self._copy_block_bytes = copy_block_bytes
        self._to = account
        self._into = container
        self._writes = transport

    async def put(self, name: str, content: OpenItem, *, only_over: str | None = None) -> Written:
        """Write one blob whole or not at all.

        Args:
            name: Its name.
            content: What to write; read to its end, and asked whether it was one version throughout. Where it is a
                blob, its content type, encoding and metadata come along.
            only_over: The ETag of the blob to replace; None for one that must not be there.

        Raises:
            TargetConflict: code ``target_exists`` or ``target_changed``.
            SourceChanged: nothing was written.
        """
        size = content.size_bytes
        if size <= SINGLE_CALL_BYTES:
            data = await _whole(content, size)
            await content.finish()
            digest = hashlib.md5(data, usedforsecurity=False)
            sent = b64encode(digest.digest()).decode("ascii")
            headers = {"x-ms-blob-type": "BlockBlob", "Content-MD5": sent, "x-ms-blob-content-md5": sent,
                       **_kept_of(content), **_condition(only_over)}  # fmt: skip
            answer = await self._send("PUT", self._address(name), headers, data, name)
            return Written(size, digest.hexdigest(), _etag(answer))
        return await self._put_blocks(name, content, {**_kept_of(content), **_condition(only_over)})

    async def copy(self, name: str, source: CopySource, *, only_over: str | None = None) -> Written:
        """Let the service read the source by itself.

        Raises:
            Unsupported: code ``copy_refused``; nothing was written.
            SourceChanged: the source is another version by now.
            TargetConflict: as with :meth:`put`.
        """
        if source.learned.refusal:
            raise Unsupported(source.learned.refusal, code=_COPY_REFUSED, subject=name)
        try:
            if source.size_bytes <= self._copy_single_bytes:
                headers = {"x-ms-blob-type": "BlockBlob", **_promise(source), **_condition(only_over)}
                answer = await self._from_source(self._address(name), headers, source, name)
            else:
                # A call that copies a whole blob keeps these by itself; a list of blocks has none.
                kept = await source.kept() if isinstance(source, BlobCopySource) else {}
                answer = await self._copy_blocks(name, source, {**kept, **_condition(only_over)})
        except TargetConflict as error:
            if error.code == "target_changed" and only_over is None and await self.stat(name) is None:
                # Not every service tells the source's condition from the target's (Azurite does not).
                raise SourceChanged("the source blob is no longer the version that was listed", subject=name) from None
            raise
        except (Throttled, SourceChanged):
            raise
        except MigrationError as error:
            # Whatever else goes wrong may be about the source's door; if it is about the target's, streaming meets it.
            source.learned.refused(error.detail)
            raise Unsupported(error.detail, code=_COPY_REFUSED, subject=name) from None
        if not source.learned.has_copied:
            # Once, since a service that does not know the headers would make empty blobs of such calls.
            found = await self.stat(name)
            if found is None or found.size_bytes != source.size_bytes:
                raise IntegrityMismatch("the service's own copy has another size than its source", subject=name)
            source.learned.copied()
        return Written(source.size_bytes, source.md5, _etag(answer))

    async def delete(self, name: str, *, etag: str) -> bool:
        headers = {"If-Match": f'"{etag}"'} if etag else {}
        try:
            await self._send("DELETE", self._address(name), headers, b"", name)
        except (NotFound, TargetConflict):
            return False
        return True

    async def read_range(self, name: str, ref: str, start: int, size_bytes: int) -> bytes:
        etag, _, _ = read_ref(ref)
        headers = {"Range": f"bytes={start}-{start + size_bytes - 1}", **({"If-Match": f'"{etag}"'} if etag else {})}
        answer = await self._to.send("GET", self._address(name), headers=headers, subject=name)
        if answer.status != 206 or len(answer.body) != size_bytes:
            raise ServiceUnavailable("the account answers another range than asked for", subject=name)
        return answer.body

    async def copy_source(self, path: str, ref: str) -> CopySource | None:
        made = await super().copy_source(path, ref)
        if made is None:
            return None

        async def kept() -> Mapping[str, str]:
            answer = await self._to.send(
                "HEAD", self._address(path), headers={"If-Match": f'"{made.etag}"'}, subject=path
            )
            return _kept(answer.headers)

        return BlobCopySource(made.account, made.etag, made.size_bytes, made.md5, made.headers, made.learned, kept)

    async def claim(self, folder: str, owner: str) -> str:
        """Mark a folder, as Hadoop's tools do: an empty blob of its name, which listings of files leave out."""
        headers = {"x-ms-blob-type": "BlockBlob", "x-ms-meta-hdi_isfolder": "true", _OWNER: owner}
        try:
            await self._send("PUT", self._address(folder), {**headers, **_condition(None)}, b"", folder)
        except TargetConflict:
            marked = await self._marked(folder)
            if marked is None:
                raise
            found, etag = marked
            if found:
                return found
            # Another tool's mark, which names nobody.
            headers = {"x-ms-meta-hdi_isfolder": "true", _OWNER: owner, **_condition(etag)}
            await self._send("PUT", f"{self._address(folder)}?comp=metadata", headers, b"", folder)
        return owner

    async def owner(self, folder: str) -> str | None:
        try:
            marked = await self._marked(folder)
        except TargetConflict:
            return None
        return marked[0] or None if marked is not None else None

    async def has_owners_below(self, folder: str) -> bool:
        marker = ""
        while True:
            query = f"restype=container&comp=list&include=metadata&prefix={quote(folder, safe='')}%2F{marker}"
            answer = await self._to.send("GET", self._to.blob_url(self._into), query=query, subject=folder)
            if b"<!DOCTYPE" in answer.body[:4096]:
                raise ServiceUnavailable("the target account's listing is no listing", subject=folder)
            root = ElementTree.fromstring(answer.body)  # noqa: S314 - without a DOCTYPE no entity can be declared
            name = _OWNER.removeprefix("x-ms-meta-")
            if any(one.tag.lower() == name for one in root.iterfind("Blobs/Blob/Metadata/*")):
                return True
            following = root.findtext("NextMarker")
            if not following:
                return False
            marker = f"&marker={quote(following, safe='')}"

    async def release(self, folder: str, owner: str) -> None:
        marked = await self._marked(folder)
        if marked is not None and marked[0] == owner:
            await self.delete(folder, etag=marked[1])

    async def list_below(self, folder: str, cursor: str | None) -> ListedItems:
        page = await BlobContainer(self._to, self._into, folder).list_page(cursor, MAX_PAGE_ITEMS)
        return ListedItems([replace(item, path=f"{folder}{item.path}") for item in page.items], page.cursor)

    async def stat(self, path: str) -> SourceItem | None:
        try:
            return await super().stat(path)
        except NotFound:
            return None

    # -- parts -----------------------------------------------------------------------------------------------------

    async def _marked(self, folder: str) -> tuple[str, str] | None:
        """Owner (empty: nobody) and ETag of a folder's mark; None where there is none.

        Raises TargetConflict where a blob with content has the folder's name.
        """
        try:
            answer = await self._to.send("HEAD", self._address(folder), subject=folder)
        except NotFound:
            return None
        if answer.headers.get("Content-Length", "0") != "0":
            raise TargetConflict(f"a file has the name of the folder {folder!r}", code="folder_taken", subject=folder)
        return answer.headers.get(_OWNER, ""), _etag(answer)

    async def _put_blocks(self, name: str, content: OpenItem, condition: Mapping[str, str]) -> Written:
        size = content.size_bytes
        block_bytes = max(BLOCK_BYTES, -(-size // 50_000))
        upload = secrets.token_hex(8)
        ids: list[str] = []
        whole = hashlib.md5(usedforsecurity=False)
        places = asyncio.Semaphore(_BLOCKS_AT_ONCE)

        async def send(block_id: str, data: bytes, md5: str) -> None:
            try:
                url = f"{self._address(name)}?comp=block&blockid={quote(block_id, safe='')}"
                await self._send("PUT", url, {"Content-MD5": md5}, data, name)
            finally:
                places.release()

        try:
            async with asyncio.TaskGroup() as group:
                while sum_read := min(block_bytes, size - len(ids) * block_bytes):
                    if sum_read < 0:
                        break
                    await places.acquire()
                    data = await _whole(content, sum_read)
                    own = await asyncio.to_thread(_hash_block, whole, data)
                    ids.append(_block_id(upload, len(ids)))
                    group.create_task(send(ids[-1], data, own))
        except* MigrationError as failures:
            raise _gravest(failures) from None
        await content.finish()
        answer = await self._commit(name, ids, whole.digest(), condition)
        return Written(size, whole.hexdigest(), _etag(answer))

    async def _copy_blocks(self, name: str, source: CopySource, condition: Mapping[str, str]) -> Answer:
        upload = secrets.token_hex(8)
        starts = range(0, source.size_bytes, self._copy_block_bytes)
        ids = [_block_id(upload, number) for number in range(len(starts))]
        places = asyncio.Semaphore(_BLOCKS_AT_ONCE)

        async def copy(block_id: str, start: int) -> None:
            async with places:
                end = min(start + self._copy_block_bytes, source.size_bytes) - 1
                url = f"{self._address(name)}?comp=block&blockid={quote(block_id, safe='')}"
                await self._from_source(url, {"x-ms-source-range": f"bytes={start}-{end}"}, source, name)

        try:
            async with asyncio.TaskGroup() as group:
                for block_id, start in zip(ids, starts, strict=True):
                    group.create_task(copy(block_id, start))
        except* MigrationError as failures:
            raise _gravest(failures) from None
        return await self._commit(name, ids, bytes.fromhex(source.md5), condition)

    async def _commit(self, name: str, ids: list[str], md5: bytes, condition: Mapping[str, str]) -> Answer:
        listed = "".join(f"<Uncommitted>{block_id}</Uncommitted>" for block_id in ids)
        document = f'<?xml version="1.0" encoding="utf-8"?><BlockList>{listed}</BlockList>'.encode()
        headers = {"Content-Type": "application/xml"}
        if md5:
            headers["x-ms-blob-content-md5"] = b64encode(md5).decode("ascii")
        return await self._send(
            "PUT", f"{self._address(name)}?comp=blocklist", {**headers, **condition}, document, name
        )

    async def _from_source(self, url: str, headers: Mapping[str, str], source: CopySource, subject: str) -> Answer:
        async def once(attempt: int) -> Answer:
            # Made for each attempt: what opens the source does not live long.
            sent = {**_VERSION, **headers, **(await source.headers()), "x-ms-source-if-match": f'"{source.etag}"'}
            return await self._writes.send_once("PUT", url, sent, b"", subject, attempt)

        return await self._writes.attempts(once, subject)

    async def _send(self, method: str, url: str, headers: Mapping[str, str], data: bytes, subject: str) -> Answer:
        return await self._writes.send(method, url, headers={**_VERSION, **headers}, data=data, subject=subject)

    def _address(self, name: str) -> str:
        return self._to.blob_url(self._into, name)


def _kept_of(content: OpenItem) -> dict[str, str]:
    return _kept(content.headers) if isinstance(content, OpenBlob) else {}


def _kept(headers: Mapping[str, str]) -> dict[str, str]:
    """Properties and metadata of a blob, as headers of a write. Whatever bytes they are: both ways as Latin-1."""
    found = {f"x-ms-blob-{name}": headers[name] for name in _KEPT if headers.get(name)}
    found |= {name: value for name, value in headers.items() if name.lower().startswith("x-ms-meta-")}
    return {name: value.encode("utf-8", "surrogateescape").decode("latin-1") for name, value in found.items()}


def _hash_block(whole: "hashlib._Hash", data: bytes) -> str:
    whole.update(data)
    return b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")


def _block_id(upload: str, number: int) -> str:
    return b64encode(f"{upload}-{number:05d}".encode()).decode("ascii")


async def _whole(content: OpenItem, size_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = size_bytes
    while left:
        block = await content.read(left)
        if not block:
            raise SourceChanged("the source ended early", subject="source")
        parts.append(bytes(block))
        left -= len(block)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _promise(source: CopySource) -> dict[str, str]:
    """The source's stored MD5, for the service to compare with what it reads, and to keep."""
    if not source.md5:
        return {}
    encoded = b64encode(bytes.fromhex(source.md5)).decode("ascii")
    return {"x-ms-source-content-md5": encoded, "x-ms-blob-content-md5": encoded}


def _condition(only_over: str | None) -> dict[str, str]:
    return {"If-None-Match": "*"} if only_over is None else {"If-Match": f'"{only_over}"'}


def _etag(answer: Answer) -> str:
    return answer.headers.get("ETag", "").strip('"')


def _gravest(failures: BaseExceptionGroup[MigrationError]) -> MigrationError:
    """What is final says more than a lost connection beside it."""
    found = [one for one in failures.exceptions if isinstance(one, MigrationError)]
    final = [one for one in found if not isinstance(one, TransientError)]
    return (final or found)[0]
