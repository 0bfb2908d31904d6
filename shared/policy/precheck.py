"""What a dry run found, summed up: the report that somebody reads before moving an estate.

Records pass by once, in the order of ``sort_key``; what is kept of them does not grow with their number. Sums are
exact, whatever is cut off: what has no row of its own is in the row of the others.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from shared.policy.case_twins import CaseTwins, Twin
from shared.policy.paths import printable, too_long_reason, unmappable_reason

SIZE_CLASSES: Final = (
    ("empty", 0), ("up to 64 KiB", 2**16), ("up to 1 MiB", 2**20), ("up to 8 MiB", 2**23), ("up to 128 MiB", 2**27),
    ("up to 1 GiB", 2**30), ("up to 10 GiB", 10 * 2**30), ("more than 10 GiB", None),
)  # fmt: skip
ACTIONS: Final = ("create", "replace", "compare", "rename", "delete", "skip", "leave_out", "fail")
"""What a run would do. ``skip``: it is in the lake already; ``leave_out``: it is nothing that can be moved."""
MOVING: Final = frozenset({"create", "replace", "compare"})
"""Actions that read the item. Of those to be compared, some have to be read and written, and nobody knows which."""

_EXAMPLES = 10
_EXAMPLE_CHARACTERS = 2000
_ROWS = 50
_KINDS = 200
_LARGEST = 10
# What of a name counts as its type.
_TYPE_CHARACTERS = 12
_MAX_TYPES = 2000
# Documents into which SharePoint writes a library's columns, so that it gives out other bytes than it announces.
_OFFICE = frozenset(
    ("doc", "docm", "docx", "dot", "dotm", "dotx", "pot", "potm", "potx", "pps", "ppsm", "ppsx", "ppt", "pptm", "pptx",
     "xls", "xlsb", "xlsm", "xlsx", "xlt", "xltm", "xltx")
)  # fmt: skip
_SEVERITIES = ("fails", "left_out", "notice")


class Place(NamedTuple):
    """A source of the job: its folder below the target (empty for the only one), and its type."""

    sub: str
    type: str


@dataclass(slots=True)
class _Tally:
    items: int = 0
    size_bytes: int = 0
    moving_items: int = 0
    moving_bytes: int = 0

    def add(self, size_bytes: int, *, is_moving: bool) -> None:
        self.items += 1
        self.size_bytes += size_bytes
        if is_moving:
            self.moving_items += 1
            self.moving_bytes += size_bytes

    def merge(self, other: "_Tally") -> None:
        self.items += other.items
        self.size_bytes += other.size_bytes
        self.moving_items += other.moving_items
        self.moving_bytes += other.moving_bytes

    def shown(self) -> dict[str, int]:
        return {"items": self.items, "bytes": self.size_bytes, "moving_items": self.moving_items,
                "moving_bytes": self.moving_bytes}  # fmt: skip


class _ByName:
    """Sums by a name of which there may be any number, each met at any time: those that come too late are others."""

    def __init__(self) -> None:
        self._rows: dict[str, _Tally] = {}
        self._others = _Tally()

    def add(self, name: str, size_bytes: int, *, is_moving: bool) -> None:
        row = self._rows.get(name)
        if row is None:
            row = self._rows.setdefault(name, _Tally()) if len(self._rows) < _MAX_TYPES else self._others
        row.add(size_bytes, is_moving=is_moving)

    def shown(self) -> dict[str, Any]:
        rows = sorted(self._rows.items(), key=lambda row: _by_size(*row))
        others = _Tally()
        others.merge(self._others)
        for _, row in rows[_ROWS:]:
            others.merge(row)
        return _table(rows[:_ROWS], others)


class _ByFolder:
    """Sums by folders that are met one after the other: the largest are kept, whenever they come."""

    def __init__(self) -> None:
        self._kept: dict[str, _Tally] = {}
        self._open: tuple[str, _Tally] | None = None
        self._others = _Tally()

    def add(self, folder: str, size_bytes: int, *, is_moving: bool) -> None:
        if self._open is None or self._open[0] != folder:
            self._close()
            self._open = (folder, self._kept.pop(folder, None) or _Tally())
        self._open[1].add(size_bytes, is_moving=is_moving)

    def _close(self) -> None:
        if self._open is not None:
            self._kept[self._open[0]] = self._open[1]
        if len(self._kept) > 2 * _ROWS:
            for folder, row in sorted(self._kept.items(), key=lambda row: _by_size(*row))[_ROWS:]:
                self._others.merge(row)
                del self._kept[folder]

    def shown(self) -> dict[str, Any]:
        self._close()
        self._open = None
        rows = sorted(self._kept.items(), key=lambda row: _by_size(*row))
        others = _Tally()
        others.merge(self._others)
        for _, row in rows[_ROWS:]:
            others.merge(row)
        return _table(rows[:_ROWS], others)


@dataclass(slots=True)
class _Finding:
    severity: str
    items: int = 0
    size_bytes: int = 0
    examples: list[dict[str, str]] = field(default_factory=list)

    def add(self, path: str, size_bytes: int, detail: str) -> None:
        self.items += 1
        self.size_bytes += size_bytes
        if len(self.examples) < _EXAMPLES:
            self.examples.append({"path": _cut(path), "detail": _cut(detail)})


class Precheck:
    """Feed every record to :meth:`add`; then, if :attr:`wants_second_look`, every record to :meth:`look_again`.

    Args:
        places: The job's sources.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = list(places)
        self._all = _Tally()
        self._actions: dict[str, _Tally] = {}
        self._sources = [_Tally() for _ in self._places]
        self._types = _ByName()
        self._folders = _ByFolder()
        self._rootfiles = [_Tally() for _ in self._places]
        self._sizes = [_Tally() for _ in SIZE_CLASSES]
        self._largest: list[tuple[int, str]] = []
        self._longest = ("", 0)
        self._deepest = ("", 0)
        self._findings: dict[str, _Finding] = {}
        self._twins = CaseTwins()
        self._file_before: tuple[str, int] | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Take in the final record of an item of a dry run."""
        action, path, size_bytes = _action(record), record["path"], record["size_bytes"]
        is_moving = action in MOVING
        self._actions.setdefault(action, _Tally()).add(size_bytes, is_moving=is_moving)
        if action == "delete":
            # The lake has it and the source has not, so it is no part of what there is to move.
            return
        self._all.add(size_bytes, is_moving=is_moving)
        number = self._source_of(path)
        self._sources[number].add(size_bytes, is_moving=is_moving)
        self._types.add(_type(path), size_bytes, is_moving=is_moving)
        self._count_folder(number, path, size_bytes, is_moving=is_moving)
        for (_, most), row in zip(SIZE_CLASSES, self._sizes, strict=True):
            if most is None or size_bytes <= most:
                row.add(size_bytes, is_moving=is_moving)
                break
        # The path breaks ties, so that the same records give the same report.
        heapq.heappush(self._largest, (size_bytes, path))
        if len(self._largest) > _LARGEST:
            heapq.heappop(self._largest)
        if action != "leave_out":
            self._look_at_path(record, path)
        self._look_at_problem(record, action, path, size_bytes)
        if self._places[number].type == "sharepoint" and is_moving:
            self._look_at_document(record, path, size_bytes)

    @property
    def wants_second_look(self) -> bool:
        """Whether paths may differ only in case. Asked once, after the last :meth:`add`."""
        return self._twins.has_suspects

    def look_again(self, record: Mapping[str, Any]) -> None:
        """Take in the same records once more, in the same order."""
        if _action(record) in ("delete", "leave_out"):
            return
        for twin in self._twins.look_again(record["path"]):
            self._note_twin(twin, record["size_bytes"])

    def load(self, source_type: str | None = None) -> tuple[int, int]:
        """Items and bytes that a run would read, at most; of one type of source, or of all."""
        wanted = [
            row for row, place in zip(self._sources, self._places, strict=True) if source_type in (None, place.type)
        ]
        return sum(row.moving_items for row in wanted), sum(row.moving_bytes for row in wanted)

    def report(self) -> dict[str, Any]:
        """Everything, as JSON; see docs/operations.md."""
        findings = sorted(
            self._findings.items(),
            key=lambda one: (_SEVERITIES.index(one[1].severity), -one[1].items, one[0]),
        )
        known = [name for name in ACTIONS if name in self._actions]
        folders = self._folders.shown()
        for place, row in zip(self._places, self._rootfiles, strict=True):
            if row.items:
                folders["rows"].insert(0, {"name": f"{place.sub}/" if place.sub else "/", **row.shown()})
        return {
            "items": self._all.items,
            "bytes": self._all.size_bytes,
            "moving_items": self._all.moving_items,
            "moving_bytes": self._all.moving_bytes,
            "actions": [
                {"action": name, "items": self._actions[name].items, "bytes": self._actions[name].size_bytes}
                for name in [*known, *sorted(self._actions.keys() - set(known))]
            ],
            "sources": [
                {"target_path": place.sub, "type": place.type, **row.shown()}
                for place, row in zip(self._places, self._sources, strict=True)
            ],
            "types": self._types.shown(),
            "folders": folders,
            "sizes": [
                {"name": name, **row.shown()} for (name, _), row in zip(SIZE_CLASSES, self._sizes, strict=True)
            ],
            "largest": [
                {"path": _cut(path), "bytes": size_bytes}
                for size_bytes, path in sorted(self._largest, key=lambda one: (-one[0], one[1]))
                if size_bytes
            ],
            "longest_path": {"path": _cut(self._longest[0]), "characters": self._longest[1]},
            "deepest_path": {"path": _cut(self._deepest[0]), "segments": self._deepest[1]},
            "findings": [
                {"kind": kind, "severity": one.severity, "items": one.items, "bytes": one.size_bytes,
                 "is_exact": kind not in ("case_twins", "case_twin_folders") or self._twins.is_exact,
                 "examples": one.examples}
                for kind, one in findings
            ],
        }  # fmt: skip

    # -- parts -------------------------------------------------------------------------------------------------------

    def _source_of(self, path: str) -> int:
        for number, place in enumerate(self._places):
            if not place.sub or path.startswith(f"{place.sub}/"):
                return number
        raise LookupError(f"no source of the job has {path!r}")

    def _count_folder(self, number: int, path: str, size_bytes: int, *, is_moving: bool) -> None:
        sub = self._places[number].sub
        inner = path[len(sub) + 1 :] if sub else path
        top, slash, _ = inner.partition("/")
        if slash:
            self._folders.add(f"{sub}/{top}" if sub else top, size_bytes, is_moving=is_moving)
        else:
            self._rootfiles[number].add(size_bytes, is_moving=is_moving)

    def _look_at_path(self, record: Mapping[str, Any], path: str) -> None:
        target = record["target"]
        if len(target) > self._longest[1]:
            self._longest = (target, len(target))
        segments = target.count("/") + 1
        if segments > self._deepest[1]:
            self._deepest = (target, segments)
        # What lies below a path comes right after it.
        if self._file_before and path.startswith(f"{self._file_before[0]}/"):
            self._note("file_and_folder", "fails", *self._file_before, f"a file, and the folder of {printable(path)}")
        self._file_before = (path, record["size_bytes"])
        self._twins.add(path)

    def _look_at_problem(self, record: Mapping[str, Any], action: str, path: str, size_bytes: int) -> None:
        own_name = (record.get("source") or {}).get("source_path")
        if own_name and action != "leave_out":
            why = unmappable_reason(own_name) or "would read as an escape"
            self._note("name_mapped", "notice", own_name, size_bytes, f"{printable(path)}: the name {why}")
        code = record["error_code"]
        if action not in ("fail", "leave_out") or not code:
            return
        detail = record["error_detail"] or ""
        kind = code
        if code == "unmappable_path":
            kind = "path_too_long" if too_long_reason(record["target"]) and not unmappable_reason(path) else code
        if kind not in self._findings and len(self._findings) >= _KINDS:
            kind = "other"
        self._note(kind, "fails" if action == "fail" else "left_out", path, size_bytes, detail)

    def _look_at_document(self, record: Mapping[str, Any], path: str, size_bytes: int) -> None:
        if _type(path) in _OFFICE:
            self._note("office_documents", "notice", path, size_bytes, "")
        checked_out_by = (record.get("source") or {}).get("checked_out_by")
        if checked_out_by:
            self._note("checked_out", "notice", path, size_bytes, f"by {checked_out_by}")

    def _note_twin(self, twin: Twin, size_bytes: int) -> None:
        kind = "case_twins" if twin.kind == "file" else "case_twin_folders"
        counted = size_bytes if twin.kind == "file" else 0
        self._note(kind, "notice", twin.path, counted, f"beside {printable(twin.first)}")

    def _note(self, kind: str, severity: str, path: str, size_bytes: int, detail: str) -> None:
        self._findings.setdefault(kind, _Finding(severity)).add(path, size_bytes, detail)


def _action(record: Mapping[str, Any]) -> str:
    if record["status"] == "planned":
        # Of a run that was cut short, what it has planned and not come to has no action.
        return str(record.get("action") or "create")
    if record["status"] == "skipped":
        return "leave_out" if record["error_code"] else "skip"
    return "fail" if record["status"] == "failed" else str(record["status"])


def _type(path: str) -> str:
    """The name's ending in small letters; empty where it has none, or one that is too long to be a type."""
    name = path.rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    if not stem or not dot or not 0 < len(ending) <= _TYPE_CHARACTERS or not ending.isalnum():
        return ""
    return ending.lower()


def _by_size(name: str, row: _Tally) -> tuple[int, int, str]:
    return -row.size_bytes, -row.items, name


def _table(rows: list[tuple[str, _Tally]], others: _Tally) -> dict[str, Any]:
    return {
        "rows": [{"name": _cut(name), **row.shown()} for name, row in rows],
        "others": others.shown() if others.items else None,
    }


def _cut(text: str) -> str:
    shown = printable(text)
    return shown if len(shown) <= _EXAMPLE_CHARACTERS else f"{shown[: _EXAMPLE_CHARACTERS - 1]}…"
