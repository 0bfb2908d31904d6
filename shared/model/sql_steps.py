"""Requests and outcomes of the activities of a SQL migration, and the record of a table. Plain JSON dicts.

Only references and counts go into history; plans, lists of files, checksums and records lie in the run store.
"""

from typing import Any, Literal, TypedDict

from shared.model.steps import Abort, Counts, RetryPolicy, Transient

Step = Literal["plan", "slices", "table", "commit", "settled"]
"""What is to be done next about a table: ``slices`` one activity a slice, ``table`` all of it in one."""

# The contract's fields first; then what this program adds.
RECORD_FIELDS = (
    "table", "mode", "from_watermark", "to_watermark", "rows", "files", "bytes", "source_checksum", "target_checksum",
    "quality", "status",
    "path", "wish", "load", "reload_reason", "disposition", "deletes", "change", "source_rows", "inserted", "updated",
    "deleted", "quarantined", "repeated", "table_version", "passes", "plan", "schema_changes", "warnings", "reason",
    "reconcile", "step", "error_code", "error_detail", "started_at", "finished_at",
)  # fmt: skip


class TableRecord(TypedDict, total=False):
    """What became of one table. See docs/sql.md for each field."""

    table: str
    mode: str
    from_watermark: str | None
    to_watermark: str | None
    rows: int
    """Written by this run."""
    files: int
    bytes: int
    source_checksum: str | None
    target_checksum: str | None
    """Of the written files, with what was set aside (quarantined, repeated) counted in; equals the source's."""
    quality: dict[str, Any]
    status: str
    path: str
    wish: str
    load: str | None
    """``full`` or ``increment``."""
    reload_reason: str | None
    """Why an incremental table was read from its beginning; None where it was not, or where nothing was there yet."""
    disposition: str | None
    deletes: str | None
    change: str | None
    source_rows: int
    inserted: int
    updated: int
    deleted: int
    quarantined: int
    repeated: int
    """Rows at a watermark's boundary that had been delivered before, and were left out."""
    table_version: int | None
    passes: list[dict[str, Any]]
    plan: dict[str, Any]
    schema_changes: list[dict[str, Any]]
    warnings: list[str]
    reason: str | None
    reconcile: dict[str, Any] | None
    """What a comparison of source and lake found and mended; None where none was asked for."""
    step: str | None
    error_code: str | None
    error_detail: str | None
    started_at: str | None
    finished_at: str | None


class SqlCounts(Counts):
    """Tables by what became of them, with the rows that are expected (estimated) and written."""

    rows_planned: int
    rows_done: int


class SqlRequest(TypedDict):
    """Input of activities about the whole run."""

    run: str
    round: int


class SqlDecisions(TypedDict):
    """What ``prepare_sql`` decided; ``tables`` are the numbers of those that are to be migrated in this round."""

    dry_run: bool
    parallel_tables: int
    tables: list[int]
    counts: SqlCounts
    retry: RetryPolicy


class TableRequest(TypedDict):
    """``turn``: 0, and 1 for the increment that catches up with what happened during a load slice by slice."""

    run: str
    round: int
    table: int
    turn: int


class SliceRequest(TableRequest):
    slice: int


class FailTableRequest(TableRequest):
    step: str
    error: Transient


class TableOutcome(TypedDict):
    """Of every activity about one table: where it stands now."""

    next: Step
    turn: int
    slices: int
    parallel: int
    counts: SqlCounts
    cancelled: bool


class MigrateTableRequest(TypedDict):
    """Input of the sub-orchestration of one table; ``slice`` and ``plan`` are what a generation hands to the next."""

    run: str
    round: int
    table: int
    retry: RetryPolicy
    plan: TableOutcome | None
    slice: int
    counts: SqlCounts


class MigrateTableOutcome(TypedDict):
    counts: SqlCounts
    abort: Abort | None
    cancelled: bool


class SqlState(TypedDict):
    """What one generation of the whole run hands to the next."""

    decisions: SqlDecisions
    position: int
    counts: SqlCounts
    cancelled: bool


class SqlReportRequest(TypedDict):
    run: str
    round: int
    status: str
    error: Abort | None
    ended_at: str


class SqlReportOutcome(TypedDict):
    totals: dict[str, int]
    verification: dict[str, Any] | None


def no_sql_counts() -> SqlCounts:
    return {
        "planned": 0, "bytes_planned": 0, "uploaded": 0, "skipped": 0, "renamed": 0, "failed": 0, "deleted": 0,
        "bytes_done": 0, "rows_planned": 0, "rows_done": 0,
    }  # fmt: skip


def outcome(
    next_step: Step, counts: SqlCounts | None = None, *, turn: int = 0, slices: int = 0, parallel: int = 1,
    cancelled: bool = False,
) -> TableOutcome:  # fmt: skip
    """What an activity about one table returns."""
    return {
        "next": next_step, "turn": turn, "slices": slices, "parallel": parallel, "counts": counts or no_sql_counts(),
        "cancelled": cancelled,
    }  # fmt: skip


def table_page(number: int) -> str:
    """Under what name the documents of a table lie, and listings of items page through them: ``p00001``."""
    return f"p{number:05d}"
