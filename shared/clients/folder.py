"""A folder on a disk or share as a source tree."""

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

from shared.errors import AccessDenied, ItemError, NotFound, SourceChanged, SourceMissing
from shared.policy.paths import printable
from shared.ports import Block, SourceItem, SourcePage

# A file up to this size is opened, read, checked and closed in one visit to a thread.
_WHOLE_BYTES = 8 * 1024 * 1024

# Not blocking: where a pipe took the file's place, opening it would wait for a writer that never comes.
_OPEN_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)

_T = TypeVar("_T")
_Identity = tuple[int, int]
"""Device and inode."""

# One for all folders of the process; the threads start when they are first needed.
_THREADS = ThreadPoolExecutor(16, thread_name_prefix="folder-read")


class FolderTree:
    """Regular files below a folder; links are not followed. Implements ``ports.SourceTree``.

    A cursor is the last path that was listed, so a walk goes on from it in another process. Within one process the
    walk itself is kept, so that a page of a folder of 400,000 names does not list that folder again.
    """

    def __init__(self, root: str) -> None:
        self._root = root
        self._walk: tuple[str, Iterator[SourceItem], _Identity] | None = None

    async def check(self) -> None:
        """Raises SourceMissing where the folder cannot be listed."""

        def look() -> None:
            with os.scandir(self._root) as entries:
                next(entries, None)

        try:
            await self.in_thread(look)
        except OSError as error:
            raise SourceMissing(
                f"the source folder cannot be read ({_reason(error)}); check source.path and that it is mounted",
                subject="source.path",
            ) from None

    async def list_page(self, cursor: str | None, limit: int) -> SourcePage:
        """The next ``limit`` items in the order of ``sort_key``."""
        return await self.in_thread(partial(self._list_page, cursor, limit))

    def _list_page(self, cursor: str | None, limit: int) -> SourcePage:
        kept, self._walk = self._walk, None
        if kept is not None and kept[0] == cursor:
            _, walk, root = kept
        else:
            walk, root = self._items("", cursor.split("/") if cursor is not None else []), self._identity()
        items: list[SourceItem] = []
        following: str | None = None
        for item in walk:
            items.append(item)
            if len(items) >= limit:
                following = item.path
                break
        if self._identity() != root:
            # What was listed before is met no more, so the walk would end early and look complete.
            raise SourceMissing("the source folder was replaced or unmounted while it was listed", subject="source")
        if following is not None:
            self._walk = (following, walk, root)
        return SourcePage(items, following)

    def _identity(self) -> "_Identity":
        try:
            found = os.stat(self._root)  # noqa: PTH116
        except OSError as error:
            raise SourceMissing(f"the source folder cannot be read ({_reason(error)})", subject="source") from None
        return found.st_dev, found.st_ino

    def _items(self, folder: str, after: list[str], *, is_cursor: bool = False) -> Iterator[SourceItem]:
        """Items below ``folder``, depth first, names sorted; after the path ``after``, if one is given.

        ``is_cursor``: the folder's own path is the cursor, so what there is to say of the folder itself was said.
        """
        try:
            # Names alone, not paths: a folder may hold 400,000 of them.
            names = sorted(os.listdir(self._full(folder)))  # noqa: PTH208
        except OSError as error:
            if not folder:
                # The root was there when the run began; an empty answer would read as "everything was deleted".
                raise SourceMissing(f"the source folder cannot be read ({_reason(error)})", subject="source") from None
            if is_cursor or isinstance(error, FileNotFoundError):
                return
            yield SourceItem(folder, 0, "", ("folder_unreadable", f"cannot be listed ({_reason(error)})"))
            return
        for name in names:
            if after and name < after[0]:
                continue
            path = f"{folder}/{name}" if folder else name
            is_on_cursor = bool(after) and name == after[0]
            below = after[1:] if is_on_cursor else []
            try:
                found = os.lstat(self._full(path))
            except FileNotFoundError:
                continue
            except OSError as error:
                if is_on_cursor:
                    continue
                yield SourceItem(path, 0, "", ("access_denied", f"cannot be examined ({_reason(error)})"))
                continue
            if stat.S_ISDIR(found.st_mode):
                # Also where the cursor is this very path: of a file that was there when the walk or the plan passed.
                yield from self._items(path, below, is_cursor=is_on_cursor and not below)
            elif not is_on_cursor:
                yield _item(path, found)

    async def identity(self) -> str | None:
        """Device and inode of the folder: another one once a share is unmounted, or replaced."""

        def look() -> str | None:
            device, inode = self._identity()
            with os.scandir(self._root) as entries:
                return f"{device:x}-{inode:x}" if next(entries, None) is not None else None

        try:
            return await self.in_thread(look)
        except OSError as error:
            raise SourceMissing(f"the source folder cannot be read ({_reason(error)})", subject="source") from None

    async def copy_source(self, path: str, ref: str) -> None:
        """Nobody else sees the worker's disks."""

    def load(self) -> None:
        """A disk tells no limit."""

    async def stat(self, path: str, ref: str = "") -> SourceItem | None:
        """The file as it is now, or None if nothing is there (any more)."""
        try:
            found = await self.in_thread(partial(os.lstat, self._full(path)))
        except (FileNotFoundError, NotADirectoryError):
            # A root that is gone would make every file below look deleted.
            await self.check()
            return None
        except OSError as error:
            raise AccessDenied(f"cannot be examined ({_reason(error)})", subject=printable(path)) from None
        # A folder in its place is another item: the file of this path is gone.
        return None if stat.S_ISDIR(found.st_mode) else _item(path, found)

    async def open(self, path: str, ref: str = "", *, fresh: bool = False) -> "OpenFile":
        """Open for one consistent read.

        Raises:
            NotFound, AccessDenied: this item only.
        """
        try:
            return await self.in_thread(partial(OpenFile, self, self._root, path))
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound("the source file is gone", code="source_gone", subject=printable(path)) from None
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise AccessDenied("the source file may not be read", subject=printable(path)) from None
            if error.errno == errno.ELOOP:
                raise NotFound("the source file became a link", code="source_gone", subject=printable(path)) from None
            raise ItemError(
                f"the source file cannot be read ({_reason(error)})", code="source_unreadable", subject=printable(path)
            ) from None

    async def in_thread(self, call: Callable[[], _T]) -> _T:
        """Run a blocking call among this tree's threads."""
        return await asyncio.get_running_loop().run_in_executor(_THREADS, call)

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


class OpenFile:
    """One file being read; implements ``ports.OpenItem``. Constructed in a thread."""

    facts = None

    def __init__(self, tree: FolderTree, root: str, path: str) -> None:
        self._tree = tree
        self._path = path
        self._held = b""
        self._checked = False
        self._descriptor = _open_below(root, path)
        try:
            self._before = os.fstat(self._descriptor)
            _assert_file(self._before)
            self.size_bytes = self._before.st_size
            self.version = _version(self._before)
            if self.size_bytes <= _WHOLE_BYTES:
                self._held = self._read_fully(self.size_bytes)
                self._changed = self._has_changed()
                self._checked = True
        except BaseException:
            os.close(self._descriptor)
            raise
        if self._checked:
            os.close(self._descriptor)
            self._descriptor = -1

    async def read(self, size_bytes: int) -> Block:
        """The next block."""
        if self._checked:
            held, self._held = self._held[:size_bytes], self._held[size_bytes:]
            return held
        # Made here and not in the thread, since what a thread allocates stays with it when it is freed: with as many
        # threads as read, that is as many blocks again.
        block = bytearray(size_bytes)
        try:
            read = await self._tree.in_thread(partial(self._read_into, block))
        except OSError as error:
            raise ItemError(
                f"the source file cannot be read ({_reason(error)})",
                code="source_unreadable", subject=printable(self._path),
            ) from None  # fmt: skip
        return block if read == size_bytes else block[:read]

    async def finish(self) -> None:
        """Raises SourceChanged unless size, time and identity are still those of the moment it was opened."""
        try:
            changed = self._changed if self._checked else await self._tree.in_thread(self._has_changed)
        except OSError as error:
            raise ItemError(
                f"the source file cannot be read ({_reason(error)})",
                code="source_unreadable", subject=printable(self._path),
            ) from None  # fmt: skip
        if changed:
            raise SourceChanged("the source file changed while it was read", subject=printable(self._path))

    async def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _read_fully(self, size_bytes: int) -> bytes:
        block = os.read(self._descriptor, size_bytes) if size_bytes else b""
        if len(block) == size_bytes:
            return block
        parts = [block]
        left = size_bytes - len(block)
        while left and parts[-1]:
            parts.append(os.read(self._descriptor, left))
            left -= len(parts[-1])
        return b"".join(parts)

    def _read_into(self, block: bytearray) -> int:
        """Fill the block; how many bytes there were."""
        view, read = memoryview(block), 0
        while read < len(block):
            count = _read(self._descriptor, view[read:])
            if not count:
                break
            read += count
        return read

    def _has_changed(self) -> bool:
        now = os.fstat(self._descriptor)
        return _version(now) != _version(self._before)


def _read(descriptor: int, view: memoryview) -> int:
    if hasattr(os, "readv"):
        return os.readv(descriptor, [view])
    data = os.read(descriptor, len(view))
    view[: len(data)] = data
    return len(data)


def _open_below(root: str, path: str) -> int:
    """Open a file for reading without following a link at any step below ``root``.

    A folder that is exchanged for a link between listing and reading must not lead out of the allowed roots.
    """
    if os.open not in os.supports_dir_fd:
        return os.open(f"{root}/{path}", _OPEN_FLAGS)
    *folders, name = path.split("/")
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in folders:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = below
        return os.open(name, _OPEN_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)


def _assert_file(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise FileNotFoundError(errno.ENOENT, "no longer a file")


def _item(path: str, found: os.stat_result) -> SourceItem:
    if stat.S_ISREG(found.st_mode):
        return SourceItem(path, found.st_size, _version(found))
    if stat.S_ISLNK(found.st_mode):
        return SourceItem(path, 0, "", ("link_not_followed", "is a symbolic link, which is not followed"), True)
    return SourceItem(path, 0, "", ("not_a_file", "is not a regular file"), True)


def _version(found: os.stat_result) -> str:
    # Size and modification time, as rsync and rclone tell versions apart; nanoseconds, since seconds miss changes.
    return f"{found.st_mtime_ns:x}-{found.st_size:x}"


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def resolve_below(path: str, roots: Sequence[str], base: Path) -> str | None:
    """The real path of a folder if it lies in (or is) one of the allowed roots, links resolved; else None."""
    real = Path(base, path).resolve()
    for root in roots:
        if real.is_relative_to(Path(base, root).resolve()):
            return str(real)
    return None
