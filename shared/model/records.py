"""What a run leaves behind: one record for each item, and the manifest's header."""

import json
from typing import Any, Literal, NotRequired, TypedDict

from shared.policy.paths import lake_path

FileStatus = Literal["uploaded", "skipped", "renamed", "failed", "deleted", "planned", "retrying", "cancelled"]


class MovedFrom(TypedDict):
    """Where the lake has an item that its source renamed; see ``ports.Moved``."""

    path: str
    etag: str
    hash: str
    size_bytes: int
    same: bool


class FoundFile(TypedDict):
    """A file of the lake as a listing showed it; ``md5`` is hex."""

    etag: str
    md5: str
    size_bytes: int


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
    id: NotRequired[str]
    """The source's own name for the item, if it has one; see ``ports.SourceItem``, as for the next two."""
    ref: NotRequired[str]
    facts: NotRequired[dict[str, str | int | None]]
    moved: NotRequired[MovedFrom]
    found: NotRequired[FoundFile]
    """Of an item to be compared: what the listing shows at its place, where it shows a hash."""


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
    action: str
    """Of an item of a dry run: what a run would do; see ``policy.copying.decide``, and rename and delete."""
    renamed_from: str
    """Of a file that was renamed in the lake, since its source renamed the item."""
    source: dict[str, str | int | None]
    """What the source knows of the item: ids, tags, who changed it and when, and what reading it showed."""
    source_id: str
    source_ref: str


MANIFEST_FIELDS = (
    "path", "target", "status", "size_bytes", "hash", "hash_kind", "source_version", "etag", "attempts",
    "error_code", "error_detail", "batch", "finished_at", "renamed_from", "source", "action",
)  # fmt: skip

# Of an item of a package. Not "planned": a checkpoint says that of what the package has not come to yet.
FINAL_STATUSES = frozenset({"uploaded", "skipped", "renamed", "failed", "deleted"})


def shown(record: FileRecord) -> FileRecord:
    """The record as people read it: ``path`` is what the source calls the item, where the lake takes another name.

    With several sources, it stays below the source's folder of the target.
    """
    source = record.get("source")
    own = source.get("source_path") if isinstance(source, dict) else None
    if not isinstance(own, str):
        return record
    return {**record, "path": record["path"].removesuffix(lake_path(own)) + own}


# Made once: json.dumps makes one for each call that wants other separators.
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def dump_lines(rows: list[Any]) -> bytes:
    """JSON lines. ASCII, so that any name survives, lone surrogates included."""
    return ("\n".join([_ENCODE(row) for row in rows]) + "\n").encode("ascii") if rows else b""


def load_lines(data: bytes) -> list[Any]:
    """The rows of :func:`dump_lines`."""
    # As one document: a call for each line costs more than reading it.
    rows: list[Any] = json.loads(b"[%b]" % b",".join([line for line in data.splitlines() if line]))
    return rows
