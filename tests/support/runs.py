"""A files migration's parts put together by hand, over a real folder, a real store and an emulated lake."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from obstore.store import MemoryStore

from shared.clients.folder import FolderTree
from shared.clients.run_store import ObjectRunStore
from shared.engine.files_run import FilesRun
from shared.engine.run_records import RunRecords
from shared.engine.sources import JoinedTree, SourcePart
from shared.model.job import parse_job
from shared.model.records import FileRecord

NOW = datetime(2026, 11, 21, 2, 0, 0, tzinfo=UTC)


def job_spec(**changes: Any) -> dict[str, Any]:
    """The smallest job, with changes."""
    return {
        "kind": "files", "name": "job", "source": {"type": "folder", "path": "/mnt/source"},
        "target": {"workspace": "W", "lakehouse": "L", "path": "Files/job"}, **changes,
    }  # fmt: skip


# What a run's ledger is about, in tests that have no more than one source and target.
PAIR = "folder /mnt/source -> workspace/lakehouse/Files/job"


def memory_store() -> ObjectRunStore:
    """A run store that is gone with the test: obstore's own, in memory."""
    return ObjectRunStore(MemoryStore())


def make_run(
    source: Path, *, store: ObjectRunStore | None = None, lake: Any = None, run: str = "files-job-1", **changes: Any
) -> FilesRun:
    """A run as its activities see it."""
    return FilesRun(
        job=parse_job(job_spec(**changes)),
        records=RunRecords(store or memory_store(), run),
        source=JoinedTree([SourcePart("", FolderTree(str(source)))]),
        lake=lake,
        clock=lambda: NOW,
        pair=PAIR,
        source_identity=f"{source.stat().st_dev:x}-{source.stat().st_ino:x}",
    )


def plant(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files; a path may be any that the file system takes."""
    for path, data in files.items():
        full = folder / path
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(data)


def record(path: str, status: str = "uploaded", **changes: Any) -> FileRecord:
    """A record as a transfer writes it."""
    return {
        "path": path, "target": f"Files/job/{path}", "status": status, "size_bytes": 3, "hash": f"hash of {path}",
        "hash_kind": "md5", "source_version": "v1", "etag": "e1", "attempts": 1, "error_code": None,
        "error_detail": None, "batch": "p00001/b0000", "finished_at": "2026-11-21T02:00:00Z", **changes,
    }  # fmt: skip


async def put_page(records: RunRecords, page: str, rows: Iterable[FileRecord], name: str = "b0000") -> None:
    """Write one package's plan and results."""
    rows = list(rows)
    await records.put_batch(page, int(name[1:]), [
        {"path": row["path"], "size_bytes": row["size_bytes"], "source_version": "v1", "action": "create", "etag": ""}
        for row in rows
    ])  # fmt: skip
    await records.put_results(page, name, rows)
