"""Bookkeeping of one file or folder: etag, content type, MD5, metadata.

It travels with the inode, in an extended attribute, so a rename of a file or of a whole tree moves it atomically and
several processes see the same truth without a database. Where the file system has no user attributes, or the value
is larger than an inode takes, it lies in a side file named after the inode.

While bytes are written into an empty file in place, its bookkeeping is marked *pending*: whatever the disk says, the
file is still the empty one described there. The mark goes away in the same step that describes the new bytes.

A file's bookkeeping carries the size and modification time it was written for. If somebody edits the file by hand
they no longer agree, and the file is described from what the disk says, as one that was put there by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ATTRIBUTE = "user.onelake"
# An ext4 inode without a block of its own for attributes holds about 100 bytes, with one about 4,000.
_INODE_LIMIT_BYTES = 3000
_IN_SIDE_FILE = b"side file"
_PENDING = b"!"
DEFAULT_CONTENT_TYPE = "application/octet-stream"


class Clock:
    """Time in nanoseconds that never repeats within a process: a modification time that can serve as an etag."""

    def __init__(self) -> None:
        self._last_ns = 0

    def tick_ns(self) -> int:
        """Returns now, or just after the last answer."""
        self._last_ns = max(self._last_ns + 1, time.time_ns())
        return self._last_ns


@dataclass(slots=True)
class Attributes:
    """What the service knows of a path beside its bytes.

    Attributes:
        generation: names the uncommitted data that belongs to this state of the file.
        md5: base64, as given by the writer; the service does not compute it for DFS writes.
        by_blob: written by the Blob API, hence closed to DFS appends.
        headers: the other stored content headers, by their HTTP names.
    """

    created_ns: int
    modified_ns: int
    generation: str
    content_type: str = DEFAULT_CONTENT_TYPE
    md5: str = ""
    by_blob: bool = False
    headers: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    is_pending: bool = field(default=False, compare=False)

    @property
    def etag(self) -> str:
        """The entity tag without quotes."""
        return f"0x{self.modified_ns:X}"

    @property
    def modified_s(self) -> float:
        """Last-Modified in seconds since the epoch."""
        return self.modified_ns / 1e9


def _encode(attributes: Attributes, size_bytes: int, mtime_ns: int) -> bytes:
    fields: list[Any] = [size_bytes, mtime_ns, attributes.created_ns, attributes.modified_ns, attributes.generation]
    rest = [attributes.content_type, attributes.md5, attributes.by_blob, attributes.headers, attributes.metadata]
    if rest != [DEFAULT_CONTENT_TYPE, "", False, {}, {}]:
        fields += rest
    return json.dumps(fields, separators=(",", ":")).encode()


class AttributeStore:
    """Reads and writes the bookkeeping of open files and paths.

    Args:
        side_files: folder for what extended attributes cannot hold.
        probe: folder in which to find out whether the file system has extended attributes.
    """

    def __init__(self, side_files: Path, probe: Path) -> None:
        self._side_files = side_files
        side_files.mkdir(parents=True, exist_ok=True)
        self._extended = _has_extended_attributes(probe)

    def write(self, descriptor: int, attributes: Attributes) -> None:
        """Writes the bookkeeping of an open file whose bytes are final, in one atomic step."""
        status = os.fstat(descriptor)
        self._put(descriptor, status.st_ino, _encode(attributes, status.st_size, status.st_mtime_ns))

    def mark_pending(self, descriptor: int, attributes: Attributes) -> None:
        """Marks an open file as still empty, whatever is written to it from now on until `write`."""
        status = os.fstat(descriptor)
        self._put(descriptor, status.st_ino, _PENDING + _encode(attributes, 0, status.st_mtime_ns))

    def _put(self, descriptor: int, inode: int, value: bytes) -> None:
        if self._extended:
            if len(value) <= _INODE_LIMIT_BYTES:
                os.setxattr(descriptor, _ATTRIBUTE, value)
                return
            self._write_side_file(inode, value)
            os.setxattr(descriptor, _ATTRIBUTE, _IN_SIDE_FILE)
            return
        self._write_side_file(inode, value)

    def write_path(self, path: str, attributes: Attributes) -> None:
        """As `write`, for a file or folder by path."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            self.write(descriptor, attributes)
        finally:
            os.close(descriptor)

    def read(self, target: str | int, status: os.stat_result) -> Attributes:
        """Returns the bookkeeping of a path or open file; made up from the status where there is none."""
        value: bytes | None = None
        if self._extended:
            with contextlib.suppress(OSError):
                value = os.getxattr(target, _ATTRIBUTE)
        if value is None or value == _IN_SIDE_FILE:
            value = self._read_side_file(status.st_ino) if value or not self._extended else None
        if value is not None:
            is_pending = value.startswith(_PENDING)
            fields = json.loads(value[1:] if is_pending else value)
            size_bytes, mtime_ns, created_ns, modified_ns, generation, *rest = fields
            is_current = size_bytes == status.st_size and mtime_ns == status.st_mtime_ns
            # A folder's size and time change with what is put into it; its bookkeeping does not.
            if is_current or is_pending or stat.S_ISDIR(status.st_mode):
                attributes = Attributes(created_ns, modified_ns, generation, *rest)
                attributes.is_pending = is_pending
                return attributes
        by_hand = f"{status.st_ino:x}-{status.st_mtime_ns:x}"
        return Attributes(status.st_mtime_ns, status.st_mtime_ns, by_hand)

    def _side_file(self, inode: int) -> Path:
        return self._side_files / f"{inode & 0xFF:02x}" / str(inode)

    def _write_side_file(self, inode: int, value: bytes) -> None:
        path = self._side_file(inode)
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{inode}.{os.getpid()}.new")
        temporary.write_bytes(value)
        temporary.replace(path)

    def _read_side_file(self, inode: int) -> bytes | None:
        try:
            return self._side_file(inode).read_bytes()
        except FileNotFoundError:
            return None


def _has_extended_attributes(probe: Path) -> bool:
    if not hasattr(os, "setxattr"):
        return False
    file = probe / f"probe-{os.getpid()}"
    file.touch()
    try:
        os.setxattr(file, _ATTRIBUTE, b"1")
    except OSError:
        return False
    finally:
        file.unlink()
    return True
