"""What a run leaves behind: one record for each item, and the manifest's header."""

import json
from typing import Any, Literal, TypedDict

FileStatus = Literal["uploaded", "skipped", "failed", "deleted", "planned", "retrying", "cancelled"]


class PlannedItem(TypedDict):
    """One line of a batch: what to do with one item. Decided once, in planning."""

    path: str
    size_bytes: int
    source_version: str
    action: str
    etag: str
    """Of the file in the lake that this job remembers, for what is done on that condition; else empty."""
    own: bool
    """Whether the file that is in the lake now is, as far as the plan can tell, the one that this job wrote."""


class FileRecord(TypedDict, total=False):
    """One line of a result object and of the manifest. See docs/operations.md for each field."""

    path: str
    target: str
    status: str
    size_bytes: int
    hash: str | None
    hash_kind: str | None
    source_version: str | None
    etag: str | None
    own: bool
    """Whether this job wrote the bytes, rather than found them. For the ledger."""
    attempts: int
    error_code: str | None
    error_detail: str | None
    batch: str
    finished_at: str


MANIFEST_FIELDS = (
    "path", "target", "status", "size_bytes", "hash", "hash_kind", "source_version", "etag", "attempts",
    "error_code", "error_detail", "batch", "finished_at",
)  # fmt: skip

# Of an item of a package. Not "planned": a checkpoint says that of what the package has not come to yet.
FINAL_STATUSES = frozenset({"uploaded", "skipped", "failed", "deleted"})


def dump_lines(rows: list[Any]) -> bytes:
    """JSON lines. ASCII, so that any name survives, lone surrogates included."""
    return ("\n".join([json.dumps(row, separators=(",", ":")) for row in rows]) + "\n").encode("ascii") if rows else b""


def load_lines(data: bytes) -> list[Any]:
    """The rows of :func:`dump_lines`."""
    return [json.loads(line) for line in data.splitlines() if line]
