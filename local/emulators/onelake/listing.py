# A Path object per call costs more than the call itself on these hot paths.
# ruff: noqa: PTH116, PTH208
"""Listings in the order of the service: by path, component by component, a folder before what it holds.

A page starts strictly after a given path, so a continuation stays right when entries come and go between pages.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from local.emulators.onelake.errors import ServiceError
from local.emulators.onelake.store import Entry, Store

_REMEMBERED_FOLDERS = 16
_REMEMBER_FROM_NAMES = 1000
# A change within the same tick of the kernel's clock would not show in the folder's modification time.
_SETTLED_NS = 1_000_000_000


@dataclass(slots=True)
class Listed:
    """An entry of a listing; the path is relative to the folder listed."""

    path: str
    entry: Entry


class Lister:
    """Lists folders page by page; large folders that rest are not read anew for every page."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._remembered: OrderedDict[tuple[int, int], list[tuple[str, str]]] = OrderedDict()
        self._lock = threading.Lock()

    def names(self, folder: str) -> list[tuple[str, str]]:
        """Returns (name, name on disk) of what the folder holds, sorted by name; empty if it is gone."""
        try:
            status = os.stat(folder)
            key = (status.st_ino, status.st_mtime_ns)
            with self._lock:
                if key in self._remembered:
                    self._remembered.move_to_end(key)
                    return self._remembered[key]
            of_disk = self._store.long_names.of_disk
            names = sorted((of_disk(name), name) for name in os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        if len(names) >= _REMEMBER_FROM_NAMES and time.time_ns() - status.st_mtime_ns > _SETTLED_NS:
            with self._lock:
                self._remembered[key] = names
                if len(self._remembered) > _REMEMBERED_FOLDERS:
                    self._remembered.popitem(last=False)
        return names

    def walk(self, folder: str, *, recursive: bool, after: tuple[str, ...] = (), prefix: str = "") -> Iterator[Listed]:
        """Yields the entries below a folder that come after the given path."""
        start = after[0] if after else ""
        for name, disk_name in self.names(folder):
            if name < start:
                continue
            path = f"{folder}/{disk_name}"
            entry = self._store.look(path)
            if entry is None:
                continue
            relative = f"{prefix}{name}"
            is_passed = bool(after) and name == start
            if not is_passed:
                yield Listed(relative, entry)
            if recursive and entry.is_directory:
                rest = after[1:] if is_passed else ()
                yield from self.walk(path, recursive=True, after=rest, prefix=f"{relative}/")


def continuation(last_path: str, scope: list[object]) -> str:
    """Returns an opaque token for what comes after a path, valid for one kind of listing only."""
    return base64.b64encode(json.dumps([last_path, scope]).encode()).decode()


def read_continuation(token: str, scope: list[object]) -> tuple[str, ...]:
    """Returns the segments of the path a token stands for.

    Raises:
        ServiceError: not a token of this listing.
    """
    try:
        last_path, token_scope = json.loads(base64.b64decode(token, validate=True))
    except (binascii.Error, ValueError, TypeError):
        raise ServiceError("InvalidQueryParameterValue") from None
    if token_scope != scope or not isinstance(last_path, str):
        raise ServiceError("InvalidQueryParameterValue")
    return tuple(last_path.split("/"))
