"""From a drive's change feed to paths.

The feed tells of each item its id, its parent's id and its name, as they are now: not a path, in no useful order, and
the same item perhaps several times. A renamed folder is told alone, though it renames all that is below it. So the
names are kept by id, and paths are made of them when they are needed.

Source: Microsoft Graph, "driveItem: delta" (the last occurrence counts; parentReference has no path).
"""

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Literal, NamedTuple, Protocol

Kind = Literal["root", "folder", "file", "other", "gone"]


class Item(Protocol):
    """What is needed of ``ports.DriveItem``."""

    @property
    def id(self) -> str: ...
    @property
    def parent_id(self) -> str | None: ...
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> Kind: ...


class Node(NamedTuple):
    """What is kept of an item. Also of one that is gone: the feed may not say so of what was below it."""

    parent_id: str | None
    name: str
    kind: Kind


class Place(NamedTuple):
    """Where an item is.

    Attributes:
        where: ``inside`` or ``outside`` the start folder; ``package`` if in something there that is no folder, as the
            sections of a notebook are; ``gone`` with itself or a folder above it; ``orphan`` if a folder above it is
            unknown or has no name; ``cycle`` if it is above itself. The last two are for a report: the feed owes what
            would place the item.
        path: Relative to the start folder if ``inside`` (empty for that folder itself), else as far up as it is known.
    """

    where: Literal["inside", "outside", "package", "gone", "orphan", "cycle"]
    path: str


def learn(known: MutableMapping[str, Node], items: Iterable[Item]) -> None:
    """Take in items in the order in which the feed tells them; the last word on an item counts. Idempotent.

    What is gone keeps the name and parent that it had, since the feed may leave them out.
    """
    for item in items:
        before = known.get(item.id)
        if item.kind == "gone" and before is not None:
            known[item.id] = Node(item.parent_id or before.parent_id, item.name or before.name, "gone")
        else:
            known[item.id] = Node(item.parent_id, item.name, item.kind)


class DriveTree:
    """The places of all known items. Each folder is looked at once, however much lies below it.

    Args:
        known: Items by id; it must not change while this is in use.
        start_id: The folder that paths are relative to; None for the drive's root.
    """

    def __init__(self, known: Mapping[str, Node], start_id: str | None = None) -> None:
        self._known = known
        self._start_id = start_id
        self._folders: dict[str, Place] = {}

    def place(self, item_id: str) -> Place:
        """Where an item is; ``orphan`` with an empty path if it is not known at all."""
        climbed: list[tuple[str, Node]] = []
        seen: set[str] = set()
        at: str | None = item_id
        while True:
            found = self._end(at, seen)
            if found is not None:
                break
            assert at is not None
            node = self._known[at]
            seen.add(at)
            climbed.append((at, node))
            at = node.parent_id
        while climbed:
            at, node = climbed.pop()
            above = self._known.get(node.parent_id or "")
            found = _below(found, node, in_package=above is not None and above.kind == "other")
            if climbed or node.kind != "file":
                self._folders[at] = found
        return found

    def _end(self, at: str | None, seen: set[str]) -> Place | None:
        """The place of ``at`` if it can be told without looking at what is above it."""
        if at is None:
            return Place("orphan", "")
        if at in self._folders:
            return self._folders[at]
        if at == self._start_id:
            # Also where the feed has not told of it (yet): its id is known from elsewhere.
            gone = at in self._known and self._known[at].kind == "gone"
            return Place("gone" if gone else "inside", "")
        if at in seen:
            return Place("cycle", "")
        node = self._known.get(at)
        if node is None:
            return Place("orphan", "")
        if node.kind == "root":
            return Place("inside" if self._start_id is None else "outside", "")
        return None


def _below(above: Place, node: Node, *, in_package: bool) -> Place:
    # A slash within a name would make two segments of one; no service gives such a name, but a path is made of it.
    name = node.name.replace("/", "%2F")
    path = f"{above.path}/{name}" if above.path and name else above.path or name
    if node.kind == "gone":
        return Place("gone", path)
    if not name and above.where in ("inside", "outside"):
        return Place("orphan", path)
    return Place("package" if in_package and above.where == "inside" else above.where, path)
