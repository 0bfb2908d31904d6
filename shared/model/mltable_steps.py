"""Requests and outcomes of the activities of an MLTable migration, and the record of a version. Plain JSON dicts.

Only references and counts go into history; lists of files, blueprints and records lie in the run store.
"""

from typing import Any, Literal, TypedDict

from shared.model.steps import Abort, Counts, RetryPolicy, Transient

Step = Literal["copy", "check", "register", "validate", "settled"]
RecordStatus = Literal["success", "skipped", "failed", "missing", "planned"]

# The guide's section 16 first, as it stands there; then what this program adds.
RECORD_FIELDS = (
    "asset_name", "requested_version", "final_version", "collision_resolved", "original_asset_id", "source_file_count",
    "dest_file_count", "source_bytes", "dest_bytes", "hash_sample_count", "hash_mismatches", "validation_loaded",
    "status", "migrated_on_utc", "migration_batch_id",
    "path", "source_version", "wish", "skipped_existing", "reason", "step", "error_code", "error_detail", "checks",
    "warnings", "source_uri", "target_uri", "blueprint_changed", "blueprint_diff", "files_copied", "files_by_service",
    "bytes_copied", "duration_s", "rows", "archived", "rolled_back",
)  # fmt: skip


class AssetRecord(TypedDict, total=False):
    """What became of one version. See docs/operations.md for each field."""

    asset_name: str
    requested_version: str
    final_version: str | None
    collision_resolved: bool
    original_asset_id: str | None
    source_file_count: int
    dest_file_count: int
    source_bytes: int
    dest_bytes: int
    hash_sample_count: int
    hash_mismatches: int
    validation_loaded: bool | None
    status: str
    migrated_on_utc: str | None
    migration_batch_id: str
    path: str
    """``<asset>/<version>``: what generic listings of items know it by."""
    source_version: str
    wish: str
    skipped_existing: bool
    reason: str | None
    step: str | None
    error_code: str | None
    error_detail: str | None
    checks: dict[str, str]
    warnings: list[str]
    source_uri: str | None
    target_uri: str | None
    blueprint_changed: bool
    blueprint_diff: str
    files_copied: int
    files_by_service: int
    bytes_copied: int
    duration_s: float
    rows: int | None
    archived: bool
    rolled_back: bool


class AssetFile(TypedDict):
    """One file of a version's plan. ``path`` is below both roots but for what is carried from outside."""

    path: str
    account: str
    container: str
    name: str
    size_bytes: int
    md5: str
    """Hex, as the source promises it; empty where it does not."""
    ref: str
    there: list[Any] | None
    """Size, MD5 and ETag of the blob that lies at its place at the target already."""


class CopiedFile(TypedDict):
    """What became of one file.

    ``how``: ``service`` copied it by itself, ``stream`` went through here, ``present`` was there when the plan was
    made, ``found`` came to be there since: a write whose answer was lost, or another run's.
    """

    path: str
    size_bytes: int
    md5: str
    etag: str
    how: str
    ref: str
    """Of the source's blob that was copied: in a later round there may be another one under this path."""


class MltableRequest(TypedDict):
    """Input of activities about the whole run."""

    run: str
    round: int


class MltableDecisions(TypedDict):
    dry_run: bool
    parallel_assets: int
    retry: RetryPolicy


class DiscoverOutcome(TypedDict):
    groups: list[int]
    """Versions of each asset, in the plan's order."""
    counts: Counts


class VersionRequest(TypedDict):
    run: str
    round: int
    group: int
    version: int


class PartRequest(VersionRequest):
    part: int


class FailRequest(VersionRequest):
    step: str
    error: Transient


class StepOutcome(TypedDict):
    """Of every activity about one version: where it stands now."""

    next: Step
    parts: int
    parallel: int
    counts: Counts
    cancelled: bool


class MigrateAssetRequest(TypedDict):
    """Input of the sub-orchestration of one asset."""

    run: str
    round: int
    group: int
    versions: int
    first: int
    counts: Counts
    retry: RetryPolicy


class MigrateAssetOutcome(TypedDict):
    counts: Counts
    abort: Abort | None
    cancelled: bool


class MltableReportRequest(TypedDict):
    run: str
    round: int
    status: str
    error: Abort | None
    ended_at: str


class ReportOutcome(TypedDict):
    totals: dict[str, int]
    verification: dict[str, Any] | None


def outcome(
    next_step: Step, counts: Counts, *, parts: int = 0, parallel: int = 1, cancelled: bool = False
) -> StepOutcome:
    """What an activity about one version returns."""
    return {"next": next_step, "parts": parts, "parallel": parallel, "counts": counts, "cancelled": cancelled}


def asset_page(number: int) -> str:
    """Under what name the documents of an asset lie, and listings of items page through them: ``p00001``."""
    return f"p{number:05d}"
