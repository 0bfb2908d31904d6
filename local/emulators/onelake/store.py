# A Path object per call costs more than the call itself on these hot paths.
# ruff: noqa: PTH102, PTH104, PTH108, PTH112, PTH116, PTH123
"""Bytes on disk.

``<root>/onelake/<workspace>/<item>.<Type>/Files/...`` holds committed bytes at their own path and nothing else, so a
person can open the folder and compare. Everything else is under ``<root>/state``:

* ``staging/<hex digit>/``: bytes on their way in, and appended blocks as ``<generation>.<position>``
* ``blocks/``: blocks of the Blob dialect, by path and block id
* ``trash/``: trees renamed away by a delete, emptied afterwards
* ``intents/``: for each process, the file it is writing into at this moment
* ``long-names/``: full names of segments longer than a file system takes (255 bytes of UTF-8)

A commit is one rename of a complete file with its bookkeeping already on it, so a kill leaves the old file or the new
one. Only bytes in memory that go into an empty file are written in place, under a pending mark and an intent, and
taken back on the next start if they were cut off: ext4 finds a free inode the slower the more were freed just now, and
create-then-replace would free one for every file. For the same reason emptied staging files are used again.

Appended blocks are whole files too, so an acknowledged append survives. Blocks belong to the *generation* of the
file they were appended to; when a commit or an overwrite changes the generation they can no longer be reached, and
are removed after a week, as the service does.

Calls hold a lock on the path they change: within the process because nothing is awaited meanwhile, between processes
by `flock` on one of a fixed number of files.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from local.emulators.onelake.addresses import Address
from local.emulators.onelake.attributes import Attributes, AttributeStore, Clock
from local.emulators.onelake.errors import ServiceError

_SEGMENT_LIMIT_BYTES = 255
_DIGEST_LENGTH = 64
_ENCODED_LONG_NAME = re.compile(r"~[0-9a-f]{64}$")
_LOCKS = 256
_UNCOMMITTED_KEPT_S = 7 * 24 * 3600
_COPY_BYTES = 1024 * 1024
_INTENT_BYTES = 16 * 1024
_SPARE_PARTS = 64
_HEX = "0123456789abcdef"


@dataclass(slots=True)
class Entry:
    """A file or folder of the lake as it is now."""

    is_directory: bool
    size_bytes: int
    attributes: Attributes

    @property
    def etag(self) -> str:
        """The entity tag without quotes."""
        return self.attributes.etag


class LongNames:
    """Maps names longer than the file system takes to a prefix and a digest, and back."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, str] = {}

    def on_disk(self, name: str) -> str:
        """Returns the name a segment has on disk."""
        if len(name) * 4 <= _SEGMENT_LIMIT_BYTES - _DIGEST_LENGTH:
            return name
        encoded = name.encode("utf-8", "surrogatepass")
        if len(encoded) <= _SEGMENT_LIMIT_BYTES and not _ENCODED_LONG_NAME.search(name):
            return name
        digest = hashlib.sha256(encoded).hexdigest()
        if digest not in self._known:
            record = self._folder / digest
            if not record.exists():
                temporary = record.with_name(f"{digest}.{os.getpid()}.new")
                temporary.write_bytes(encoded)
                temporary.replace(record)
            self._known[digest] = name
        prefix = encoded[: _SEGMENT_LIMIT_BYTES - _DIGEST_LENGTH - 1].decode("utf-8", "ignore")
        return f"{prefix}~{digest}"

    def of_disk(self, disk_name: str) -> str:
        """Returns the segment behind a name on disk."""
        if len(disk_name) <= _DIGEST_LENGTH or not _ENCODED_LONG_NAME.search(disk_name):
            return disk_name
        digest = disk_name[-_DIGEST_LENGTH:]
        if digest not in self._known:
            try:
                self._known[digest] = (self._folder / digest).read_text("utf-8")
            except FileNotFoundError:
                return disk_name
        return self._known[digest]


class Intent:
    """Where this process is writing in place; memory shared with the kernel, so a kill does not lose it."""

    def __init__(self, file: Path) -> None:
        descriptor = os.open(file, os.O_CREAT | os.O_RDWR, 0o600)
        os.ftruncate(descriptor, _INTENT_BYTES)
        self._memory = mmap.mmap(descriptor, _INTENT_BYTES)
        os.close(descriptor)

    def begin(self, path: str) -> None:
        """Notes the file; the length comes last, and with it the note counts."""
        encoded = os.fsencode(path)
        self._memory[4 : 4 + len(encoded)] = encoded
        self._memory[:4] = len(encoded).to_bytes(4, "little")

    def end(self) -> None:
        """Takes the note back."""
        self._memory[:4] = b"\0\0\0\0"

    @staticmethod
    def noted(file: Path) -> str:
        """Returns what a process that is gone was writing, "" if nothing."""
        content = file.read_bytes()
        length = int.from_bytes(content[:4], "little")
        return os.fsdecode(content[4 : 4 + length])


class Store:
    """The lake of one root; see the module for the layout and the promises.

    Args:
        root: everything lies below.
        shared: whether other processes serve the same root.
    """

    def __init__(self, root: Path, *, shared: bool = False) -> None:
        self.lake = root / "onelake"
        state = root / "state"
        self._staging = state / "staging"
        self._blocks = state / "blocks"
        self._trash = state / "trash"
        self._intents = state / "intents"
        for folder in (self.lake, self._blocks, self._trash, self._intents, *(self._staging / digit for digit in _HEX)):
            folder.mkdir(parents=True, exist_ok=True)
        self.attributes = AttributeStore(state / "attributes", self._staging)
        self.long_names = LongNames(state / "long-names")
        self.clock = Clock()
        self._lake_text = str(self.lake)
        self._staging_text = str(self._staging)
        self._process = uuid.uuid4().hex[:8]
        self._serial = 0
        self._spare_parts: list[str] = []
        self._intent: Intent | None = None
        self._lock_descriptors: list[int] = []
        if shared:
            folder = state / "locks"
            folder.mkdir(exist_ok=True)
            self._lock_descriptors = [
                os.open(folder / f"{number:02x}", os.O_CREAT | os.O_RDWR, 0o600) for number in range(_LOCKS)
            ]

    def clean(self) -> None:
        """Removes what kills and abandoned uploads left behind; for one process, before serving."""
        for file in self._intents.iterdir():
            self._take_back(Intent.noted(file))
            file.unlink()
        for tree in self._trash.iterdir():
            shutil.rmtree(tree)
        horizon_s = time.time() - _UNCOMMITTED_KEPT_S
        for digit in _HEX:
            for file in (self._staging / digit).iterdir():
                if file.suffix == ".part" or file.stat().st_mtime < horizon_s:
                    file.unlink()
        for upload in self._blocks.iterdir():
            if upload.stat().st_mtime < horizon_s:
                shutil.rmtree(upload)

    def _take_back(self, path: str) -> None:
        entry = self.look(path) if path else None
        if entry is not None and entry.attributes.is_pending:
            self.rewrite_attributes(path, entry, entry.attributes)

    # names

    def path_of(self, address: Address) -> str:
        """Returns where the bytes of an address lie."""
        workspace, item = address.workspace, address.item
        if item is None:
            return f"{self._lake_text}/{workspace.name}"
        parts = [self._lake_text, workspace.name, item.full_name]
        parts += [self.long_names.on_disk(segment) for segment in address.segments]
        return "/".join(parts)

    @contextlib.contextmanager
    def holding(self, *paths: str) -> Iterator[None]:
        """Keeps other processes from changing the paths meanwhile; nothing may be awaited inside."""
        if not self._lock_descriptors:
            yield
            return
        numbers = sorted(
            {hashlib.blake2b(p.encode("utf-8", "surrogatepass"), digest_size=1).digest()[0] for p in paths}
        )
        for number in numbers:
            fcntl.flock(self._lock_descriptors[number], fcntl.LOCK_EX)
        try:
            yield
        finally:
            for number in numbers:
                fcntl.flock(self._lock_descriptors[number], fcntl.LOCK_UN)

    def _generation(self) -> str:
        self._serial += 1
        return f"{self._process}{self._serial:x}"

    def fresh(self, created_ns: int = 0) -> Attributes:
        """Returns bookkeeping for a state that begins now."""
        now_ns = self.clock.tick_ns()
        return Attributes(created_ns or now_ns, now_ns, self._generation())

    # looking

    def look(self, path: str) -> Entry | None:
        """Returns what is at the path, or None."""
        try:
            status = os.stat(path)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return self._entry(path, status)

    def _entry(self, target: str | int, status: os.stat_result) -> Entry:
        is_directory = stat.S_ISDIR(status.st_mode)
        attributes = self.attributes.read(target, status)
        is_empty = is_directory or attributes.is_pending
        return Entry(is_directory, 0 if is_empty else status.st_size, attributes)

    def open(self, path: str) -> tuple[int, Entry] | None:
        """Opens for reading: bytes and bookkeeping of one state, whatever is committed meanwhile.

        Returns:
            The descriptor, which the caller closes, and the entry; or None if nothing is there.
        """
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return None
        return descriptor, self._entry(descriptor, os.fstat(descriptor))

    # folders

    def make_parents(self, path: str) -> None:
        """Makes the missing folders above a path.

        Raises:
            ServiceError: PathConflict where a file is in the way.
        """
        missing = []
        parent = path.rpartition("/")[0]
        while not os.path.isdir(parent):
            missing.append(parent)
            parent = parent.rpartition("/")[0]
        for folder in reversed(missing):
            self.make_directory(folder)

    def make_directory(self, path: str) -> None:
        """Makes one folder with fresh bookkeeping; an existing one stays as it is."""
        try:
            os.mkdir(path)
        except FileExistsError:
            if os.path.isdir(path):
                return
            raise ServiceError("PathConflict") from None
        except NotADirectoryError:
            raise ServiceError("PathConflict") from None
        self.attributes.write_path(path, self.fresh())

    # writing

    def staged(self, generation: str, position: int) -> str:
        """Returns the path of an appended block."""
        return f"{self._staging_text}/{generation[-1]}/{generation}.{position}"

    def open_part(self) -> tuple[int, str]:
        """Opens an empty file for bytes on their way in; returns descriptor and path."""
        while self._spare_parts:
            path = self._spare_parts.pop()
            try:
                return os.open(path, os.O_RDWR | os.O_TRUNC), path
            except FileNotFoundError:
                continue
        self._serial += 1
        path = f"{self._staging_text}/{self._serial & 15:x}/{self._process}{self._serial:x}.part"
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644), path

    def create_new(self, path: str, attributes: Attributes) -> None:
        """Creates an empty file where nothing is, parents included."""
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        try:
            descriptor = os.open(path, flags, 0o644)
        except FileNotFoundError:
            self.make_parents(path)
            descriptor = os.open(path, flags, 0o644)
        except NotADirectoryError:
            raise ServiceError("PathConflict") from None
        try:
            self.attributes.write(descriptor, attributes)
        finally:
            os.close(descriptor)

    def create_empty_over(self, path: str, attributes: Attributes) -> None:
        """Replaces a file by an empty one."""
        descriptor, part = self.open_part()
        self.commit_part(descriptor, part, path, attributes)

    def commit_part(
        self, descriptor: int, part: str, path: str, attributes: Attributes, *, makes_parents: bool = False
    ) -> None:
        """Publishes a complete file: bookkeeping first, then one rename. Closes the descriptor.

        Raises:
            ServiceError: PathNotFound if the folder has gone meanwhile, PathConflict if a folder is in the way.
        """
        try:
            self.attributes.write(descriptor, attributes)
        finally:
            os.close(descriptor)
        try:
            if makes_parents:
                self.make_parents(path)
            os.rename(part, path)
        except FileNotFoundError:
            os.unlink(part)
            raise ServiceError("PathNotFound") from None
        except (NotADirectoryError, IsADirectoryError):
            os.unlink(part)
            raise ServiceError("PathConflict") from None

    def fill(self, path: str, entry: Entry, data: bytes, attributes: Attributes) -> None:
        """Writes bytes into an empty file in place; see the module for what a kill leaves."""
        if self._intent is None:
            self._intent = Intent(self._intents / self._process)
        self._intent.begin(path)
        descriptor = os.open(path, os.O_RDWR)
        try:
            self.attributes.mark_pending(descriptor, entry.attributes)
            if entry.attributes.is_pending:
                os.ftruncate(descriptor, 0)
            write_all(descriptor, data)
            self.attributes.write(descriptor, attributes)
        finally:
            os.close(descriptor)
        self._intent.end()

    def rewrite_attributes(self, path: str, entry: Entry, attributes: Attributes) -> None:
        """Changes the bookkeeping of a path and nothing else."""
        if entry.attributes.is_pending:
            os.truncate(path, 0)
        self.attributes.write_path(path, attributes)

    def spare(self, parts: list[str]) -> None:
        """Gives up staged files whose bytes are committed; some are kept to be used again."""
        for part in parts:
            if len(self._spare_parts) < _SPARE_PARTS:
                self._spare_parts.append(part)
            else:
                os.unlink(part)

    def commit_block(self, block: str, path: str, attributes: Attributes) -> None:
        """Publishes a staged block that is the whole file."""
        self.commit_part(os.open(block, os.O_RDWR), block, path, attributes)

    def chain(self, generation: str, start: int, end: int) -> list[str] | None:
        """Returns the staged blocks that cover start to end without gap, or None if they do not."""
        blocks = []
        position = start
        while position < end:
            block = self.staged(generation, position)
            try:
                size_bytes = os.stat(block).st_size
            except FileNotFoundError:
                return None
            if size_bytes == 0:
                return None
            blocks.append(block)
            position += size_bytes
        return blocks if position == end else None

    def assemble(self, sources: list[str]) -> tuple[int, str]:
        """Copies files one after the other into a new part."""
        descriptor, part = self.open_part()
        for source in sources:
            with open(source, "rb") as file:
                copy_all(file.fileno(), descriptor)
        return descriptor, part

    # blocks of the Blob dialect

    def block_path(self, path: str, block_id: str) -> str:
        """Returns where an uncommitted block of a blob lies; its folder exists."""
        key = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        folder = self._blocks / key
        folder.mkdir(exist_ok=True)
        return str(folder / hashlib.sha256(block_id.encode()).hexdigest())

    def drop_blocks(self, path: str) -> None:
        """Removes all uncommitted blocks of a blob."""
        key = hashlib.sha256(path.encode("utf-8", "surrogatepass")).hexdigest()
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._blocks / key)

    # removing and moving

    def set_aside(self, path: str) -> Path:
        """Takes a folder with all it holds out of the lake in one step; the caller empties what is returned."""
        aside = self._trash / uuid.uuid4().hex
        os.rename(path, aside)
        return aside


def copy_all(source: int, destination: int) -> None:
    """Copies an open file to the end of another, inside the kernel where it can."""
    if hasattr(os, "copy_file_range"):
        try:
            while os.copy_file_range(source, destination, _COPY_BYTES * 64):
                pass
        except OSError:  # not between these two file systems: by hand, from wherever it got to
            pass
        else:
            return
    while data := os.read(source, _COPY_BYTES):
        write_all(destination, data)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all bytes, whatever a single write takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def read_file(path: str) -> bytes:
    """Returns the bytes of a small file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return os.read(descriptor, os.fstat(descriptor).st_size)
    finally:
        os.close(descriptor)
