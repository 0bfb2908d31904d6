"""What the engine asks of the outside, by role. Each has one contract suite that every implementation passes."""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, TypedDict

Block = bytes | bytearray
"""A piece of content."""


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One item as the source's listing shows it.

    Attributes:
        path: Relative to the source, ``/`` between segments. May hold lone surrogates where a file system's name is
            not UTF-8.
        size_bytes: Size at listing time.
        version: Opaque; differs when the content may differ.
        problem: ``(code, sentence)`` if the item cannot be moved as it is, known from the listing alone.
        skip: Whether the problem is a reason to skip rather than a failure (a link, for example).
        id: Stable over renames and moves; empty where the source has no such thing.
        ref: What the source needs beside the path to open the item without asking again; its own text, at most 1 KB.
        facts: What the source knows of the item that goes with it into the manifest; no secret, no token.
    """

    path: str
    size_bytes: int
    version: str
    problem: tuple[str, str] | None = None
    skip: bool = False
    id: str = ""
    ref: str = ""
    facts: Mapping[str, str | int | None] | None = None


@dataclass(frozen=True, slots=True)
class Moved:
    """Where the lake has an item that the source has renamed or moved since.

    ``same`` says that its content is what it was; ``etag``, ``hash`` and ``size_bytes`` are those of the lake's file.
    """

    path: str
    etag: str
    hash: str
    size_bytes: int
    same: bool


@dataclass(frozen=True, slots=True)
class SourcePage:
    """Items in the order of ``sort_key``, all after the cursor asked for, and the cursor to go on with.

    Attributes:
        gone: What the source has lost, with what ``stat`` needs to make sure, where the source tells only changes. None
            where it was listed whole, so that whatever is not among the items is gone.
        moved: By the item's present path, where it was.
        begins: Whether these are the first of their source.
    """

    items: Sequence[SourceItem]
    cursor: str | None
    gone: Mapping[str, str] | None = None
    moved: Mapping[str, Moved] | None = None
    begins: bool = False


class OpenItem(Protocol):
    """A source item being read. ``size_bytes`` and ``version`` are those of the moment it was opened."""

    size_bytes: int
    version: str

    @property
    def facts(self) -> Mapping[str, str | int | None] | None:
        """What reading it showed that belongs into the manifest beside the listing's facts; known after ``finish``."""

    async def read(self, size_bytes: int) -> Block:
        """The next block, shorter only at the end; raises SourceChanged if the item was changed meanwhile."""

    async def finish(self) -> None:
        """Assert that what was read is one consistent version; raises SourceChanged if it is not."""

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ListedItems:
    """A page of a listing in the source's own order, which need not be that of ``sort_key``."""

    items: Sequence[SourceItem]
    cursor: str | None


@dataclass(frozen=True, slots=True)
class DriveItem:
    """One item of a drive's change feed, as it is now.

    A feed tells a name and a parent, not a path, and neither in a useful order; see ``policy.drive_tree``.

    Attributes:
        id: Stable over renames and moves.
        parent_id: None for the root.
        name: Empty where the feed leaves it out, as it may for what is gone.
        kind: ``other`` for what is neither a file nor a folder, and carries a ``problem``.
        version: Differs when the content differs; equal over changes of the metadata where the service allows it.
    """

    id: str
    parent_id: str | None
    name: str
    kind: Literal["root", "folder", "file", "other", "gone"]
    size_bytes: int = 0
    version: str = ""
    ref: str = ""
    facts: Mapping[str, str | int | None] | None = None
    problem: tuple[str, str] | None = None
    skip: bool = False


@dataclass(frozen=True, slots=True)
class DrivePage:
    """One page of a change feed: either ``cursor`` for the next page, or ``token`` for the next run's changes.

    With ``reset`` the feed begins again at ``cursor``: what was seen of it before is void, and what the new walk does
    not show is gone.
    """

    items: Sequence[DriveItem]
    cursor: str | None
    token: str | None
    reset: bool = False


class CopyingLearned:
    """What this process learned about copying from one account on the target's side.

    A refusal before anything was ever copied is about the account: who may read it, a firewall, a service that does
    not copy at all. After a success it is about the one item, and the next may be tried again.
    """

    def __init__(self) -> None:
        self.has_copied = False
        """Whether a file has been seen to arrive."""
        self.refusal = ""
        """Why nothing more is tried; empty as long as there is no reason."""

    def copied(self) -> None:
        self.has_copied = True

    def refused(self, why: str) -> None:
        if not self.has_copied:
            self.refusal = self.refusal or why


@dataclass(frozen=True, slots=True)
class CopySource:
    """One version of one item, to be read by another service.

    Attributes:
        account: Scheme, host and, for path-style addresses, account; for messages.
        etag: Without quotes; what is copied is this version or nothing.
        size_bytes: Of that version.
        md5: Hex, as the source's own promise; empty where it makes none.
        headers: Makes ``x-ms-copy-source`` and, where a token is needed, ``x-ms-copy-source-authorization``, for use at
            once. They hold secrets (a token, or a SAS in the URL): never to be kept, logged or put into an error.
        learned: Shared by all items of the account.
    """

    account: str
    etag: str
    size_bytes: int
    md5: str
    headers: Callable[[], Awaitable[Mapping[str, str]]] = field(repr=False)
    learned: CopyingLearned = field(repr=False, compare=False)


class SourceLoad(TypedDict):
    """Resource units that this worker spent in the last minute, and how many the service allows (None: unknown)."""

    units: int
    ceiling: int | None


class SourceTree(Protocol):
    """A tree of files to be read."""

    async def check(self) -> None:
        """Raise a RunError that says what to change if the source cannot be read at all."""

    async def list_page(self, cursor: str | None, limit: int) -> SourcePage:
        """The next items after ``cursor``. ``cursor`` of the answer is None at the end."""

    async def identity(self) -> str | None:
        """What tells this source from another one at the same place; None where it holds nothing at all."""

    async def stat(self, path: str, ref: str = "") -> SourceItem | None:
        """The item as it is now; None only if it is provably gone. Raises AccessDenied where that cannot be told."""

    async def open(self, path: str, ref: str = "", *, fresh: bool = False) -> OpenItem:
        """Open the version that was listed, or with ``fresh`` the one that is there now.

        Raises NotFound or AccessDenied, and SourceChanged where the listed version is no longer there.
        """

    async def copy_source(self, path: str, ref: str) -> CopySource | None:
        """What a lake needs to read the item by itself, if this source and its credential can give that."""

    def load(self) -> SourceLoad | None:
        """How much of what the source allows is in use, where it tells."""


@dataclass(frozen=True, slots=True)
class LakeFile:
    """A file of a listing; ``path`` is relative to the listed folder, ``md5`` (hex) empty where it is not shown."""

    path: str
    size_bytes: int
    etag: str
    md5: str = ""


@dataclass(frozen=True, slots=True)
class LakePage:
    files: Sequence[LakeFile]
    continuation: str | None


@dataclass(frozen=True, slots=True)
class LakeProperties:
    """Properties of a path; ``md5`` is hex, and empty where the service keeps none."""

    is_directory: bool
    size_bytes: int
    etag: str
    md5: str
    modified_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What a committed upload is."""

    size_bytes: int
    md5: str
    etag: str


@dataclass(frozen=True, slots=True)
class LongWritten:
    """What an upload in parts was read from and is; ``facts`` are those of the content."""

    version: str
    facts: Mapping[str, str | int | None] | None
    written: Written


class UploadJournal(Protocol):
    """Remembers how far an upload in parts got, from one delivery to the next. Holds JSON, no secret."""

    async def load(self) -> dict[str, Any] | None: ...

    async def save(self, document: dict[str, Any]) -> None: ...

    async def clear(self) -> None: ...


class Listing(Protocol):
    """A source that lists itself in an order of its own (a blob container). Paths are as the source has them."""

    async def check(self) -> None: ...

    async def identity(self) -> str | None: ...

    async def list_page(self, cursor: str | None, limit: int) -> ListedItems: ...

    async def stat(self, path: str) -> SourceItem | None: ...

    async def open(self, path: str, ref: str = "") -> OpenItem: ...

    async def copy_source(self, path: str, ref: str) -> CopySource | None: ...


class DriveFeed(Protocol):
    """A drive that tells its changes (SharePoint, by Graph's delta)."""

    async def check(self) -> None:
        """Raise a RunError that says what to change if the drive cannot be read at all."""

    async def identity(self) -> str:
        """What tells this drive (and folder of it) from another one of the same name."""

    async def start_id(self) -> str | None:
        """The id of the folder that paths are relative to; None for the drive's root."""

    async def page(self, cursor: str | None) -> DrivePage:
        """The next page: from the beginning (None), or from the cursor or token of an earlier page."""

    async def stat(self, ref: str) -> DriveItem | None:
        """The item as it is now; None only if it is provably gone."""

    async def open(self, path: str, ref: str) -> OpenItem:
        """Raises NotFound, AccessDenied, IntegrityMismatch or Unsupported, named for what the service says."""

    async def place(self) -> list[str | None]:
        """What names of the job were resolved to, for JSON."""

    def load(self) -> SourceLoad: ...


@dataclass(frozen=True, slots=True)
class LevelChange:
    """A move of the number of uploads in flight; ``at`` is ISO 8601 in UTC."""

    at: str
    level: int
    reason: str


@dataclass(frozen=True, slots=True)
class Concurrency:
    """How many uploads a worker has in flight at most, why so many, and the larger moves before, oldest first."""

    level: int
    reason: str
    changes: tuple[LevelChange, ...] = ()


class Room(Protocol):
    """Room in memory for one upload, and a place in flight when its turn comes."""

    def holds(self, size_bytes: int) -> bool:
        """Whether content of this size fits, which may have grown since it was planned."""

    async def widen(self, size_bytes: int) -> None:
        """Wait until it does; hold no content meanwhile, and not inside a turn."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for a place among the uploads in flight."""


class LakeStore(Protocol):
    """A folder of a lakehouse; every path is relative to it."""

    async def check(self, *, write: bool) -> bool:
        """Raise a RunError if the folder cannot be reached (or written); makes the folder when ``write``.

        True only if it was not there before this call, and therefore is empty.
        """

    async def list_page(self, continuation: str | None, *, hashes: bool = False) -> LakePage:
        """Files below the folder, recursively; a missing folder is empty.

        With ``hashes``, by the listing that shows the MD5 of a file, if the lake gives one.
        """

    async def properties(self, path: str) -> LakeProperties | None: ...

    def concurrency(self) -> Concurrency: ...

    def room(self, size_bytes: int) -> AbstractAsyncContextManager["Room"]:
        """Wait until an upload of this size may be in memory; what is small may be read inside, ahead of its turn."""

    async def create(self, path: str, content: OpenItem) -> Written:
        """Write a file that is not there. Raises TargetConflict if one is."""

    async def replace(self, path: str, content: OpenItem, *, only_over: str | None = None) -> Written:
        """Write a file over one that may be there; readers meet the old or the new, never a part.

        With ``only_over``, an ETag: only if that file is there still; else TargetConflict, code ``target_changed``.
        """

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
        """Write a very large file in parts that are kept; None where ``is_over`` said so before the end.

        Readers meet the file whole, or not at all with ``new``. Raises as ``create`` and ``replace`` do.
        """

    async def close_parked(self) -> None:
        """Close what is held open for uploads that were handed back; they are opened again if they go on."""

    async def copy(self, path: str, source: CopySource, *, new: bool) -> Written:
        """Let the service read the file by itself. Raises Unsupported where it does not, with nothing written."""

    async def move(self, old: str, path: str, was: Written) -> str:
        """Rename a file if it is still that one and nothing stands at ``path``; its new ETag.

        Raises NotFound or TargetConflict; nothing has changed then.
        """

    async def delete(self, path: str, *, etag: str) -> bool:
        """Delete if the file is still the one with this ETag. False if it was gone. Raises TargetConflict."""

    async def remove_empty_folder(self, path: str) -> bool:
        """Delete a folder that holds nothing; False if it holds something or was gone."""

    def read(self, path: str, size_bytes: int = 0) -> AsyncIterator[bytes]:
        """The committed content in blocks. Raises NotFound; a short or broken answer is a TransientError.

        Where ``size_bytes`` is given, of a file that is longer by now only enough to tell it apart.
        """


class ObjectWriter(Protocol):
    async def write(self, data: bytes) -> object: ...


class RunStore(Protocol):
    """Object storage for plans, results, ledgers and manifests. Keys are ``[a-zA-Z0-9._/-]``."""

    async def get(self, key: str) -> bytes | None: ...

    async def put(self, key: str, data: bytes) -> None:
        """Write whole or not at all, over what is there."""

    async def put_new(self, key: str, data: bytes) -> bool:
        """Write unless the key exists; whether it was written."""

    async def list(self, prefix: str) -> list[str]:
        """Keys below ``prefix`` (a folder, without its slash), sorted."""

    async def delete(self, keys: Sequence[str]) -> None: ...

    def open_writer(self, key: str) -> AbstractAsyncContextManager["ObjectWriter"]:
        """Write an object of any size in blocks; it appears when the context ends."""


Clock = Callable[[], datetime]
Sleep = Callable[[float], Awaitable[None]]


# -- MLTables ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DataVersion:
    """One version of a data asset. ``uri`` is the long ``azureml://`` form; ``created_at`` ISO 8601 or empty."""

    name: str
    version: str
    uri: str
    type: str = "mltable"
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    created_at: str = ""


@dataclass(frozen=True, slots=True)
class DataContainer:
    """A data asset without regard to versions."""

    name: str
    type: str
    archived: bool
    description: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BlobDatastore:
    """A datastore of a workspace over a container of a storage account."""

    name: str
    account: str
    container: str
    endpoint: str = "core.windows.net"


class AssetRegistry(Protocol):
    """The data assets of one workspace."""

    async def default_datastore(self) -> BlobDatastore:
        """Raises RunError where the workspace cannot be reached, or keeps its data elsewhere than in blobs."""

    async def datastores(self) -> list[BlobDatastore]:
        """Every datastore whose data can be read as blobs."""

    async def containers(self) -> list[DataContainer]: ...

    async def container(self, name: str) -> DataContainer | None: ...

    async def describe(self, name: str, description: str | None, tags: Mapping[str, str]) -> None:
        """Give an asset as a whole this description and these tags, in place of what it has."""

    async def versions(self, name: str, *, archived: bool) -> list[DataVersion]:
        """Those that are archived, or those that are not; empty where there is no such asset."""

    async def get(self, name: str, version: str) -> DataVersion | None: ...

    async def latest(self, name: str) -> str | None:
        """The version that the label ``latest`` means."""

    async def register(self, version: DataVersion, referenced_uris: Sequence[str]) -> None:
        """Register a version, or update description and tags of one with the same URI.

        Raises TargetConflict if it exists with another URI or type; ItemError, code ``registration_refused``, for
        another refusal.
        """

    async def archive(self, name: str, version: str | None) -> None:
        """Archive a version, or the asset with all of them."""


class AssetBlobs(Listing, Protocol):
    """A container that assets' files are written into; names are literal."""

    async def list_below(self, folder: str, cursor: str | None) -> ListedItems:
        """A page of what lies below a folder (with its slash), under whole names."""

    async def read_range(self, name: str, ref: str, start: int, size_bytes: int) -> bytes:
        """A part of one version of a blob. Raises as ``open`` does."""

    async def put(self, name: str, content: OpenItem, *, only_over: str | None) -> Written:
        """Write a blob that is not there, or with ``only_over`` (an ETag) over that one. Raises TargetConflict."""

    async def copy(self, name: str, source: CopySource, *, only_over: str | None) -> Written:
        """The same, read by the service itself. Raises Unsupported where it does not, with nothing written."""

    async def delete(self, name: str, *, etag: str) -> bool:
        """Delete if it is still that one; False if it is gone or another."""

    async def claim(self, folder: str, owner: str) -> str:
        """Mark a folder as this owner's, unless it has one; whose it is then. Two that do so at once see the same."""

    async def owner(self, folder: str) -> str | None:
        """Whose the folder is; None where it was never marked."""

    async def has_owners_below(self, folder: str) -> bool:
        """Whether any folder within it is somebody's."""

    async def release(self, folder: str, owner: str) -> None:
        """Take back a claim, if it is this owner's."""


class LoadedTable(TypedDict):
    """What loading a table gave. ``error`` is empty if it loaded; values are told by a digest alone."""

    error: str
    rows: int
    columns: list[list[str]]
    head_digest: str
    sample_digest: str


class TableLoader(Protocol):
    """Loads MLTables from folders, apart from this process."""

    async def load(
        self, folders: Sequence[str], *, head_rows: int, count_rows: int, timeout_s: float, memory_bytes: int
    ) -> list[LoadedTable]:
        """One result a folder, in their order.

        Never raises for what a table or the engine does: a crash or hang is the ``error`` of the folder where it
        happened, and of those after it.
        """
