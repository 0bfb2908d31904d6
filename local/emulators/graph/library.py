"""A document library: its items in columns, the log of their changes, and the changes one can make to it.

An item is a slot, that is a place in every column, and never moves; slot 0 is the root. The log has one entry a
change. Where an item changed again, its older entry names the newer one, so that a feed can tell at each entry whether
it was the latest at a given moment.

Deleting keeps the slot, as SharePoint keeps the id: what is restored is the same item.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
import uuid
from array import array
from collections.abc import Iterator
from typing import Final

from local.emulators.graph.content import KEY_BYTES, Content, Generated, Given

FOLDER: Final = 0
FILE: Final = 1
NOTEBOOK: Final = 2
SHORTCUT: Final = 3
SECTION: Final = 4
KIND_NAMES = ("folder", "file", "notebook", "shortcut", "section")

MARKS = {"malware": 1, "checked_out": 2, "dlp_blocked": 4, "locked": 8, "hash_pending": 16, "promoted": 32}
"""States of a file, as bits of the ``marks`` column."""

_PROMOTED_BYTES = 137
_NEVER = 0xFFFFFFFF


class ChangeRefused(Exception):
    """A change that the library cannot take; the message is one sentence."""


class Library:
    """One document library.

    Args:
        name: as shown.
        identity: from which every id in it is made, so that the same estate has the same ids everywhere.
        seed: of the bytes of its files.
        created_s: when it came to be.
    """

    def __init__(self, name: str, identity: str, seed: int, created_s: float, *, system: bool = False) -> None:
        self.name = name
        self.system = system
        self.created_s = created_s
        self.list_id = uuid.uuid5(uuid.NAMESPACE_URL, identity)
        self._ids = self.list_id.bytes
        self._bytes = f"{seed}".encode()[:32] or b"0"
        self.names: list[str] = []
        self.kinds = bytearray()
        self.marks = bytearray()
        self.gone = bytearray()
        self.parents = array("I")
        self.sizes = array("Q")
        self.versions = array("I")
        self.contents = array("I")
        self.created = array("d")
        self.modified = array("d")
        self.downloads = array("I")
        self.latest = array("I")
        self.log = array("I")
        self.log_times = array("d")
        self.log_next = array("I")
        self.epoch = 0
        self._children: dict[int, list[int]] = {}
        self._given: dict[int, bytes] = {}
        self._trash: dict[str, list[int]] = {}
        self.add(0, "root", FOLDER, 0, created_s)

    # what there is

    def guid(self, slot: int) -> bytes:
        """The item's own GUID."""
        own = hashlib.blake2b(slot.to_bytes(4, "big"), digest_size=12, key=self._ids).digest()
        return (slot ^ int.from_bytes(own[:4], "big")).to_bytes(4, "big") + own

    def unique_id(self, slot: int) -> str:
        """The GUID as it stands in an eTag and among the SharePoint ids."""
        return str(uuid.UUID(bytes=self.guid(slot)))

    def item_id(self, slot: int) -> str:
        """The id in Graph's form: ``01`` and 32 characters, of which the first tell the library."""
        return "01" + base64.b32encode(self._ids[:4] + self.guid(slot)).decode()

    def slot_of(self, item_id: str) -> int | None:
        """The slot with that id, deleted or not; None if it is not an id of this library."""
        try:
            raw = base64.b32decode(item_id.upper().removeprefix("01"))
        except binascii.Error:
            return None
        slot = int.from_bytes(raw[4:8], "big") ^ int.from_bytes(raw[8:12], "big")
        return slot if slot < len(self.names) and item_id.upper() == self.item_id(slot) else None

    def path(self, slot: int) -> str:
        """The path below the root; empty for the root itself."""
        parts = []
        while slot:
            parts.append(self.names[slot])
            slot = self.parents[slot]
        return "/".join(reversed(parts))

    def ancestors(self, slot: int) -> list[int]:
        """The folders above, the root first."""
        found = []
        while slot:
            slot = self.parents[slot]
            found.append(slot)
        return found[::-1]

    def children(self, slot: int) -> list[int]:
        """What lies in a folder now."""
        return self._children.get(slot, [])

    def find(self, path: str) -> int | None:
        """The item at a path, whatever the case; None if there is none."""
        slot = 0
        for part in path.split("/"):
            if part:
                found = self._named(slot, part)
                if found is None:
                    return None
                slot = found
        return slot

    def _named(self, folder: int, name: str) -> int | None:
        wanted = name.casefold()
        return next((slot for slot in self.children(folder) if self.names[slot].casefold() == wanted), None)

    def below(self, slot: int) -> Iterator[int]:
        """Everything below a folder, what is deeper first."""
        for child in self.children(slot):
            yield from self.below(child)
            yield child

    def listed_content(self, slot: int) -> Content:
        """What size and hash of the item speak of."""
        given = self._given.get(slot)
        if given is not None:
            return Given(given)
        return Generated(self._key(slot, b""), self.sizes[slot])

    def content(self, slot: int) -> Content:
        """What a download gives: other bytes, and more of them, where SharePoint wrote properties into the file."""
        if not self.marks[slot] & MARKS["promoted"]:
            return self.listed_content(slot)
        return Generated(self._key(slot, b"promoted"), self.sizes[slot] + _PROMOTED_BYTES)

    def _key(self, slot: int, kind: bytes) -> bytes:
        stated = struct.pack(">II", slot, self.contents[slot]) + kind
        return hashlib.blake2b(stated, digest_size=KEY_BYTES, key=self._bytes).digest()

    # how it changes

    def add(self, parent: int, name: str, kind: int, size: int, when_s: float, *, logged: bool = True) -> int:
        """Adds an item; the name must be free. Without ``logged`` the feed does not tell until `log_change`."""
        slot = len(self.names)
        self.names.append(name)
        self.kinds.append(kind)
        self.marks.append(0)
        self.gone.append(0)
        self.parents.append(parent)
        self.sizes.append(0)
        self.versions.append(1)
        self.contents.append(1)
        self.created.append(when_s)
        self.modified.append(when_s)
        self.downloads.append(0)
        self.latest.append(_NEVER)
        if slot:
            self._children.setdefault(parent, []).append(slot)
        self._grow(slot, size)
        if logged:
            self.log_change(slot, when_s)
        return slot

    def log_change(self, slot: int, when_s: float) -> None:
        """Makes the item's present state the newest entry of the feed."""
        position = len(self.log)
        if self.latest[slot] != _NEVER:
            self.log_next[self.latest[slot]] = position
        self.latest[slot] = position
        self.log.append(slot)
        self.log_times.append(max(when_s, self.log_times[-1]) if position else when_s)
        self.log_next.append(_NEVER)

    def _grow(self, slot: int, by: int) -> None:
        # A folder's size is that of everything in it.
        while by:
            self.sizes[slot] += by
            if not slot:
                return
            slot = self.parents[slot]

    def _touch(self, slot: int, when_s: float) -> None:
        self.versions[slot] += 1
        self.modified[slot] = when_s
        self.log_change(slot, when_s)

    def _existing(self, path: str) -> int:
        slot = self.find(path)
        if not slot:
            raise ChangeRefused(f"There is no {path!r} in {self.name!r}.")
        return slot

    def _free(self, folder: int, name: str, allowed: int | None = None) -> None:
        if not name or "/" in name:
            raise ChangeRefused(f"{name!r} is no name.")
        if self._named(folder, name) not in (None, allowed):
            raise ChangeRefused(f"There is another {name!r} in that folder.")

    def folder(self, path: str, when_s: float) -> int:
        """Returns the folder at a path, made with those above it where missing."""
        slot = 0
        for part in path.split("/"):
            if part:
                found = self._named(slot, part)
                slot = self.add(slot, part, FOLDER, 0, when_s) if found is None else found
                if self.kinds[slot] not in (FOLDER, NOTEBOOK):
                    raise ChangeRefused(f"{self.path(slot)!r} is no folder.")
        return slot

    def put(self, path: str, size: int | None, data: bytes | None, when_s: float) -> int:
        """Adds a file, or gives an existing one other content: ``data``, or generated bytes, by default as many."""
        head, _, name = path.rpartition("/")
        parent = self.folder(head, when_s)
        slot = self._named(parent, name)
        if slot is None:
            self._free(parent, name)
            slot = self.add(parent, name, FILE, 0, when_s, logged=False)
            size = 1000 if size is None else size
        elif self.kinds[slot] != FILE:
            raise ChangeRefused(f"{path!r} is no file.")
        else:
            self.versions[slot] += 1
            self.contents[slot] += 1
            size = self.sizes[slot] if size is None else size
        self._given.pop(slot, None)
        if data is not None:
            size, self._given[slot] = len(data), data
        self._grow(slot, size - self.sizes[slot])
        self.modified[slot] = when_s
        self.log_change(slot, when_s)
        return slot

    def touch(self, path: str, when_s: float) -> int:
        """Changes the metadata of an item only."""
        slot = self._existing(path)
        self._touch(slot, when_s)
        return slot

    def mark(self, path: str, mark: str, *, on: bool, when_s: float) -> int:
        """Puts a file into one of the states of `MARKS`, or out of it."""
        slot = self._existing(path)
        if self.kinds[slot] != FILE:
            raise ChangeRefused(f"{path!r} is no file.")
        self.marks[slot] = self.marks[slot] | MARKS[mark] if on else self.marks[slot] & ~MARKS[mark]
        self._touch(slot, when_s)
        return slot

    def move(self, path: str, folder: str, name: str | None, when_s: float) -> int:
        """Moves and perhaps renames an item; of a folder the feed tells the folder alone."""
        slot = self._existing(path)
        target = self.folder(folder, when_s)
        if target == slot or slot in self.ancestors(target):
            raise ChangeRefused(f"{path!r} cannot be moved into itself.")
        name = name or self.names[slot]
        self._free(target, name, slot)
        self.children(self.parents[slot]).remove(slot)
        self._children.setdefault(target, []).append(slot)
        size = self.sizes[slot]
        self._grow(self.parents[slot], -size)
        self._grow(target, size)
        self.parents[slot] = target
        self.names[slot] = name
        self._touch(slot, when_s)
        return slot

    def delete(self, path: str, when_s: float, *, tells_descendants: bool) -> int:
        """Deletes an item and all below it; the feed tells what is deeper first, or the topmost alone."""
        top = self._existing(path)
        for slot in (*self.below(top), top):
            self.gone[slot] = 1
            if tells_descendants or slot == top:
                self.log_change(slot, when_s)
        self.children(self.parents[top]).remove(top)
        self._grow(self.parents[top], -self.sizes[top])
        self._trash.setdefault(path.strip("/").casefold(), []).append(top)
        return top

    def restore(self, path: str, when_s: float) -> int:
        """Brings back what was deleted at a path, with everything that went with it."""
        tops = self._trash.get(path.strip("/").casefold(), [])
        if not tops:
            raise ChangeRefused(f"Nothing was deleted at {path!r}.")
        top = tops[-1]
        parent = self.parents[top]
        if self.gone[parent]:
            raise ChangeRefused(f"The folder of {path!r} is deleted itself.")
        self._free(parent, self.names[top])
        tops.pop()
        # What had been deleted before, by itself, is not among the children any more.
        for slot in (top, *self.below(top)):
            self.gone[slot] = 0
            self.versions[slot] += 1
            self.log_change(slot, when_s)
        self._children.setdefault(parent, []).append(top)
        self._grow(parent, self.sizes[top])
        return top


def braced(guid: str, version: int) -> str:
    """An eTag or the like: the GUID in braces and a number, in quotes."""
    return f'"{{{guid.upper()}}},{version}"'
