"""A document library and a lake in memory, and whole runs between them that can be killed at any step."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

from obstore.store import MemoryStore

from shared.clients.run_store import ObjectRunStore
from shared.engine.emptied_folders import remove_emptied_folders
from shared.engine.files_run import FilesRun
from shared.engine.index_source import commit_drives, index_source
from shared.engine.ledger import commit_ledger, open_ledger
from shared.engine.plan_page import plan_page
from shared.engine.run_records import RunRecords
from shared.engine.sources import DriveTree, JoinedTree, SourcePart
from shared.engine.transfer_batch import transfer_batch
from shared.errors import ItemError, NotFound, SourceChanged, TargetConflict
from shared.model.job import parse_files_job
from shared.model.records import FileRecord
from shared.names import page_name
from shared.policy.paths import lake_path
from shared.ports import Concurrency, DriveItem, DrivePage, LakeFile, LakePage, LakeProperties, SourceLoad, Written
from tests.support.runs import NOW, PAIR, job_spec


def _md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


class Killed(BaseException):
    """Stands for kill -9: nothing in the engine may catch it."""


@dataclass
class Mortality:
    """Counts effects, and ends the process before or after chosen ones."""

    before: frozenset[int] = frozenset()
    after: frozenset[int] = frozenset()
    count: int = 0
    dead: bool = False

    def step(self, effect: Callable[[], Any]) -> Any:
        if self.dead:
            raise Killed
        self.count += 1
        number = self.count
        if number in self.before:
            self.dead = True
            raise Killed
        result = effect()
        if number in self.after:
            self.dead = True
            raise Killed
        return result


class MortalStore(ObjectRunStore):
    """A run store in memory whose process may die at any of its writes."""

    def __init__(self, mortality: Mortality) -> None:
        super().__init__(MemoryStore())
        self.mortality = mortality

    async def put(self, key: str, data: bytes) -> None:
        self.mortality.step(lambda: None)
        await super().put(key, data)
        self.mortality.step(lambda: None)

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            self.mortality.step(lambda: None)
        await super().delete(keys)


# -- the lake ----------------------------------------------------------------------------------------------------------


class _Room:
    """There is always room."""

    def holds(self, size_bytes: int) -> bool:
        return True

    async def widen(self, size_bytes: int) -> None: ...

    def turn(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()


@dataclass
class _File:
    data: bytes
    etag: str


class MemoryLake:
    """Implements ``ports.LakeStore`` with the service's rules on names that are taken, and a journal of effects."""

    def __init__(self, mortality: Mortality | None = None) -> None:
        self.mortality = mortality or Mortality()
        self.files: dict[str, _File] = {}
        self.folders: set[str] = set()
        self.journal: list[tuple[str, str]] = []
        self._etags = itertools.count(1)

    def plant(self, path: str, data: bytes) -> None:
        """A file of somebody else."""
        self._put(path, data)

    def content(self) -> dict[str, bytes]:
        return {path: file.data for path, file in self.files.items()}

    def _put(self, path: str, data: bytes) -> _File:
        self._make_way(path)
        self.files[path] = _File(data, f"e{next(self._etags)}")
        return self.files[path]

    def _make_way(self, path: str) -> None:
        if path in self.folders:
            raise TargetConflict("a folder is there", code="path_conflict", subject=path)
        parents = list(_parents(path))
        if any(parent in self.files for parent in parents):
            raise TargetConflict("a parent is a file", code="path_conflict", subject=path)
        self.folders.update(parents)

    def _effect(self, name: str, path: str, effect: Callable[[], Any]) -> Any:
        def carried_out() -> Any:
            result = effect()
            self.journal.append((name, path))
            return result

        return self.mortality.step(carried_out)

    async def check(self, *, write: bool) -> bool:
        return False

    async def list_page(self, continuation: str | None, *, hashes: bool = False) -> LakePage:
        return LakePage([LakeFile(p, len(f.data), f.etag) for p, f in sorted(self.files.items())], None)

    async def properties(self, path: str) -> LakeProperties | None:
        if path in self.folders:
            return LakeProperties(True, 0, "d", "")
        file = self.files.get(path)
        return LakeProperties(False, len(file.data), file.etag, _md5(file.data), NOW) if file else None

    def concurrency(self) -> Concurrency:
        return Concurrency(4, "fixed")

    @asynccontextmanager
    async def room(self, size_bytes: int) -> AsyncIterator[_Room]:
        await asyncio.sleep(0)
        yield _Room()

    async def create(self, path: str, content: Any) -> Written:
        data = await _read(content)
        if path in self.files:
            raise TargetConflict("there is one", code="target_exists", subject=path)
        return _written(self._effect("upload", path, lambda: self._put(path, data)))

    async def replace(self, path: str, content: Any, *, only_over: str | None = None) -> Written:
        data = await _read(content)
        if only_over is not None and (path not in self.files or self.files[path].etag != only_over):
            raise TargetConflict("another one", code="target_changed", subject=path)
        return _written(self._effect("upload", path, lambda: self._put(path, data)))

    async def copy(self, path: str, source: Any, *, new: bool) -> Written:
        raise AssertionError("nothing offers a copy here")

    async def move(self, old: str, path: str, was: Written) -> str:
        def rename() -> str:
            file = self.files.get(old)
            if file is None:
                there = self.files.get(path)
                if there is not None and (len(there.data), _md5(there.data)) == (was.size_bytes, was.md5):
                    return there.etag
                raise NotFound("no such file", subject=old)
            if file.etag != was.etag:
                raise TargetConflict("another one", code="target_changed", subject=old)
            if path in self.files:
                raise TargetConflict("taken", code="target_exists", subject=path)
            self._make_way(path)
            self.files[path] = _File(self.files.pop(old).data, f"e{next(self._etags)}")
            return self.files[path].etag

        etag: str = self._effect("rename", path, rename)
        return etag

    async def delete(self, path: str, *, etag: str) -> bool:
        file = self.files.get(path)
        if file is None:
            return False
        if etag and file.etag != etag:
            raise TargetConflict("another one", code="target_changed", subject=path)
        self._effect("delete", path, lambda: self.files.pop(path))
        return True

    async def remove_empty_folder(self, path: str) -> bool:
        held = any(other.startswith(f"{path}/") for other in (*self.files, *self.folders))
        if path not in self.folders or held:
            return False
        self._effect("remove_folder", path, lambda: self.folders.remove(path))
        return True

    async def read(self, path: str, size_bytes: int = 0) -> AsyncIterator[bytes]:
        yield self.files[path].data


def _written(file: _File) -> Written:
    return Written(len(file.data), _md5(file.data), file.etag)


async def _read(content: Any) -> bytes:
    data: bytes = await content.read(content.size_bytes) if content.size_bytes else b""
    await content.finish()
    return data


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


# -- the library -------------------------------------------------------------------------------------------------------


@dataclass
class Node:
    parent: str | None
    name: str
    kind: Literal["root", "folder", "file"]
    data: bytes = b""
    gone: bool = False
    edits: int = 0
    blocked: bool = False


@dataclass
class MemoryDrive:
    """A library, and the feed over it: implements ``ports.DriveFeed``.

    A page shows its items as they are at that moment. ``before_page`` and ``before_open`` run first, so that a test
    changes the library while it is read.
    """

    start: str | None = None
    page_items: int = 3
    tells_descendants: bool = True
    late_in_next_walk: bool = False
    nodes: dict[str, Node] = field(default_factory=lambda: {"root": Node(None, "", "root")})
    log: list[str] = field(default_factory=lambda: ["root"])
    epoch: int = 0
    before_page: Callable[[], None] = lambda: None
    before_open: Callable[[], None] = lambda: None
    opened: list[str] = field(default_factory=list)

    # what people do

    def add(self, parent: str, name: str, data: bytes | None) -> str:
        item = f"i{len(self.nodes):03d}"
        self.nodes[item] = Node(parent, name, "folder" if data is None else "file", data or b"")
        self.log.append(item)
        return item

    def edit(self, item: str, data: bytes) -> None:
        self.nodes[item].data = data
        self.touch(item)

    def touch(self, item: str) -> None:
        self.nodes[item].edits += 1
        self.log.append(item)

    def move(self, item: str, parent: str | None = None, name: str | None = None) -> None:
        node = self.nodes[item]
        node.parent, node.name = parent or node.parent, name or node.name
        self.touch(item)

    def delete(self, item: str) -> None:
        below = [one for one in self.nodes if one != item and item in self.above(one) and not self.nodes[one].gone]
        if self.tells_descendants:
            for one in reversed(below):
                self.nodes[one].gone = True
                self.log.append(one)
        self.nodes[item].gone = True
        self.log.append(item)

    def restore(self, item: str) -> None:
        """With everything that was in it."""
        for one in self.nodes:
            if one == item or item in self.above(one):
                self.nodes[one].gone = False
                self.log.append(one)

    def expire_tokens(self) -> None:
        self.epoch += 1

    # what there is

    def above(self, item: str) -> list[str]:
        found = []
        at = self.nodes[item].parent
        while at is not None:
            found.append(at)
            at = self.nodes[at].parent
        return found

    def is_there(self, item: str) -> bool:
        return not any(self.nodes[one].gone for one in (item, *self.above(item)))

    def taken(self, parent: str, name: str) -> bool:
        """As SharePoint sees it, whatever the case."""
        return any(
            node.parent == parent and node.name.casefold() == name.casefold() and self.is_there(item)
            for item, node in self.nodes.items()
        )

    def path(self, item: str) -> str | None:
        """Below the start; None for what is elsewhere."""
        names: list[str] = []
        for one in (item, *self.above(item)):
            if one == (self.start or "root"):
                return "/".join(reversed(names))
            names.append(self.nodes[one].name)
        return None

    def places(self) -> dict[str, tuple[str, bytes]]:
        """Id and content of every file that a run can move, by the lake's path."""
        found = {}
        for item, node in self.nodes.items():
            path = self.path(item)
            if node.kind == "file" and not node.blocked and self.is_there(item) and path is not None:
                found[lake_path(path)] = (item, node.data)
        return found

    def blocked(self) -> set[str]:
        """Where the lake would have what is not given out."""
        found = [(item, self.path(item)) for item, node in self.nodes.items() if node.blocked and self.is_there(item)]
        return {lake_path(path) for _, path in found if path is not None}

    # the feed

    async def check(self) -> None: ...

    async def identity(self) -> str:
        return "drive"

    async def start_id(self) -> str | None:
        return self.start

    async def place(self) -> list[str | None]:
        return ["drive", self.start]

    def load(self) -> SourceLoad:
        return {"units": 0, "ceiling": None}

    async def page(self, cursor: str | None) -> DrivePage:
        self.before_page()
        epoch, began, position = json.loads(cursor) if cursor else (self.epoch, len(self.log), 0)
        if epoch != self.epoch:
            return DrivePage([], json.dumps([self.epoch, len(self.log), 0]), None, reset=True)
        end = min(len(self.log), position + self.page_items)
        # A walk over everything does not tell of what was lost before it began.
        shown = dict.fromkeys(
            one for at, one in enumerate(self.log[position:end], position) if at >= began or self.is_there(one)
        )
        items = [self.item(one) for one in shown]
        moment = began if self.late_in_next_walk and began > position else len(self.log)
        if end >= moment:
            return DrivePage(items, None, json.dumps([self.epoch, 0, end]))
        return DrivePage(items, json.dumps([self.epoch, began, end]), None)

    def item(self, item: str) -> DriveItem:
        node = self.nodes[item]
        if node.gone:
            return DriveItem(item, node.parent, "", "gone")
        if node.kind != "file":
            return DriveItem(item, node.parent, node.name, node.kind)
        version = f"{_md5(node.data)}:{len(node.data)}"
        problem = ("malware_detected", "is not given out") if node.blocked else None
        return DriveItem(item, node.parent, node.name, "file", len(node.data), version, json.dumps([item, version]),
                         {"edits": node.edits}, problem)  # fmt: skip

    async def stat(self, ref: str) -> DriveItem | None:
        item = json.loads(ref)[0]
        return self.item(item) if self.is_there(item) else None

    async def open(self, path: str, ref: str) -> Any:
        self.before_open()
        item, version = json.loads(ref)
        if not self.is_there(item):
            raise NotFound("gone", code="source_gone", subject=path)
        if self.nodes[item].blocked:
            raise ItemError("is not given out", code="malware_detected", subject=path)
        self.opened.append(item)
        return _Open(self, item, version)


class _Open:
    facts = None

    def __init__(self, drive: MemoryDrive, item: str, version: str) -> None:
        self._drive, self._item, self.version = drive, item, version
        self._data = drive.nodes[item].data
        self.size_bytes = len(self._data)

    async def read(self, size_bytes: int) -> bytes:
        data, self._data = self._data[:size_bytes], self._data[size_bytes:]
        return data

    async def finish(self) -> None:
        if self._drive.item(self._item).version != self.version:
            raise SourceChanged("another one by now", subject=self._item)

    async def close(self) -> None: ...


# -- runs --------------------------------------------------------------------------------------------------------------


class Job:
    """A job between a library and a lake in memory. Each step is delivered until a process lives through it."""

    def __init__(self, drive: MemoryDrive, **changes: Any) -> None:
        self.mortality = Mortality()
        self.store = MortalStore(self.mortality)
        self.lake = MemoryLake(self.mortality)
        self.drive = drive
        self.spec = job_spec(**{
            "source": {"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/x", "library": "Docs"},
            "mode": "incremental", "deleted": "mirror", "verify": "none", **changes,
        })  # fmt: skip
        self.runs = 0
        self._run: FilesRun | None = None

    def open(self) -> FilesRun:
        """The run as a process sees it that has just started."""
        job = parse_files_job(self.spec)
        records = RunRecords(self.store, f"run-{self.runs}")
        ((_, sub),) = job.places()
        tree = DriveTree(records, 0, self.drive, incremental=job.mode == "incremental")
        return FilesRun(
            job=job, records=records, source=JoinedTree([SourcePart(sub, tree)]), lake=self.lake, clock=lambda: NOW,
            pair=PAIR, source_identity="drive", identities=("drive d/",), prepared_at=NOW,
        )  # fmt: skip

    async def deliver(self, step: Callable[[FilesRun], Any]) -> Any:
        while True:
            if self._run is None:
                self._run = self.open()
            try:
                return await step(self._run)
            except BaseException:
                if not self.mortality.dead:
                    raise
                self.mortality.dead = False
                self._run = None

    async def run(self, *, kill_before: Sequence[int] = (), kill_after: Sequence[int] = ()) -> dict[str, FileRecord]:
        """One run; its records by path. Kills are counted in effects from its beginning."""
        self.runs += 1
        self._run = None
        records = RunRecords(self.store, f"run-{self.runs}")
        await records.save("run.json", {"spec": self.spec})
        await records.save("prepared.json", {"pair": PAIR, "sources": [{}]})
        base = self.mortality.count
        self.mortality.before = frozenset(base + number for number in kill_before)
        self.mortality.after = frozenset(base + number for number in kill_after)
        while not (await self.deliver(lambda run: index_source(run, 0)))[1]:
            pass
        cursor, number = None, 0
        waiting: list[tuple[str, int]] = []
        while True:
            number += 1
            page = page_name(number, 1)
            batches, _, cursor = await self.deliver(lambda run, p=page, c=cursor: plan_page(run, p, 1, c))
            waiting += [(page, batch) for batch in range(batches)]
            if cursor is None:
                break
        for attempt in range(1, 5):
            again = []
            for page, batch in waiting:
                outcome = await self.deliver(
                    lambda run, p=page, b=batch, a=attempt: transfer_batch(run, p, b, a, final=a == 4)
                )
                assert outcome["abort"] is None
                if outcome["retry"]:
                    again.append((page, batch))
            waiting = again
        await self.deliver(commit)
        self.mortality.before = self.mortality.after = frozenset()
        return {record["path"]: record async for record in records.records()}

    async def ledger(self) -> dict[str, dict[str, Any]]:
        return await (await open_ledger(self.store, "job", PAIR)).between(None, None)


async def commit(run: FilesRun) -> None:
    """As the activity does it."""
    await commit_ledger(run.records, run.job.name)
    await commit_drives(run.records)
    await remove_emptied_folders(run)
