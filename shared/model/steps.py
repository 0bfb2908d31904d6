"""Requests and outcomes of the activities of a files migration. Plain JSON dicts: they are written into history.

Only references and counts stand here; items and records lie in the run store.
"""

from typing import Any, Literal, NotRequired, TypedDict


class Abort(TypedDict):
    """An error that stops the run, as data."""

    code: str
    detail: str


class RetryPolicy(TypedDict):
    """How failed items are tried again on durable timers."""

    attempts: int
    first_delay_s: float


class RunDecisions(TypedDict):
    """What ``prepare_run`` decided; the orchestrator follows it and asks nobody again."""

    survey: bool
    index: NotRequired[list[int]]
    """Sources, by number, that do not list themselves in the order of paths."""
    dry_run: bool
    verify: str
    sample_items: int
    parallel_batches: int
    retry: RetryPolicy


class Counts(TypedDict):
    """Items and bytes by what became of them."""

    planned: int
    bytes_planned: int
    uploaded: int
    skipped: int
    renamed: int
    failed: int
    deleted: int
    bytes_done: int


class IndexSourceRequest(TypedDict):
    run: str
    round: int
    source: int


class IndexSourceOutcome(TypedDict):
    items: int
    """Read so far."""
    done: bool
    cancelled: NotRequired[bool]
    """It ended early, since somebody cancelled; the event may come later than the marker."""


class SurveyRequest(TypedDict):
    run: str
    round: int
    survey: str
    chunk: int
    continuation: str | None


class SurveyOutcome(TypedDict):
    files: int
    continuation: str | None


class PlanPageRequest(TypedDict):
    run: str
    round: int
    page: str
    cursor: str | None


class PlanPageOutcome(TypedDict):
    page: str
    batches: int
    counts: Counts
    """``planned`` and ``bytes_planned`` hold everything the page found; the rest what was settled in planning."""
    cursor: str | None


class TransferBatchRequest(TypedDict):
    run: str
    round: int
    page: str
    batch: int
    attempt: int
    final: bool


class LevelChange(TypedDict):
    """A larger move of the number of uploads that a worker has in flight; ``at`` is ISO 8601 in UTC."""

    at: str
    level: int
    reason: str


class Concurrency(TypedDict):
    """How many uploads a worker has in flight, and why; ``changes`` are those that a batch has seen, if any."""

    level: int
    reason: str
    changes: NotRequired[list[LevelChange]]


class SourceLoad(TypedDict):
    """Resource units that a worker spent in the last minute, and how many the source allows (None: not known)."""

    units: int
    ceiling: int | None


class TransferBatchOutcome(TypedDict):
    concurrency: Concurrency
    unfinished: NotRequired[bool]
    """Its time was up: the same batch is to be delivered again, and counts then."""
    source_load: NotRequired[SourceLoad | None]
    abort: Abort | None
    cancelled: bool
    counts: Counts
    retry: int
    retry_after_s: float | None


class TransferPageRequest(TypedDict):
    run: str
    round: int
    page: str
    batches: list[int]
    attempt: int
    final: bool
    parallel: int


class TransferPageOutcome(TypedDict):
    concurrency_changes: NotRequired[list[LevelChange]]
    abort: Abort | None
    cancelled: bool
    counts: Counts
    retry: list[int]
    retry_after_s: float | None


class VerifyPageRequest(TypedDict):
    run: str
    round: int
    page: str
    survey: str
    position: int
    sample_share: float


class Verification(TypedDict):
    """Sums of what was compared."""

    listed: int
    missing: int
    size_mismatches: int
    hashes_checked: int
    hash_mismatches: int
    unreadable: int


class VerifyPageOutcome(TypedDict):
    result: Verification
    counts: Counts
    """What turned from uploaded or skipped into failed."""
    position: int | None
    """Where to go on, or None when the page is done."""


class RunRequest(TypedDict):
    """Input of ``prepare_run`` and ``commit_ledger``."""

    run: str
    round: int


class ManifestRequest(TypedDict):
    concurrency_changes: NotRequired[list[LevelChange]]
    run: str
    round: int
    status: str
    error: Abort | None
    verification: "VerificationReport | None"
    ended_at: str


class VerificationReport(Verification):
    """The sums with what they mean."""

    mode: str
    verdict: str


class Transient(TypedDict):
    """A failure that is worth another try, as data."""

    code: str
    detail: str
    retry_after_s: float | None


class Envelope(TypedDict, total=False):
    """What crosses the activity boundary: exactly one of the three."""

    ok: Any
    transient: Transient
    abort: Abort


Phase = Literal["planning", "transferring", "retrying", "verifying", "finishing"]


class MigrateFilesInput(TypedDict):
    """Input of the orchestration. ``state`` is what one generation hands to the next."""

    run: str
    round: int
    kind: str
    name: str
    started_at: str
    base: Counts | None
    """Where failed items are tried again: what the rounds before had reached."""
    state: "State | None"


class State(TypedDict):
    """All that a files migration has to remember between two generations of its orchestration."""

    phase: Phase
    decisions: RunDecisions
    cursor: str | None
    planning_done: bool
    next_page: int
    counts: Counts
    waiting: dict[str, list[int]]
    """Pages with the batches that hold items to be tried again."""
    due: dict[str, list[int]]
    """Those of the present attempt that it has not come to yet."""
    attempt: int
    retry_after_s: float | None
    verified_pages: int
    unverified: list[tuple[int, int]]
    """Pages up to ``verified_pages`` whose verification goes on, and the positions from which."""
    verification: Verification | None
    cancelled: bool
    concurrency_changes: NotRequired[list[LevelChange]]
    """The last moves of the uploads in flight, over all workers."""


# What status and manifest show of them.
_CHANGES_KEPT = 20


def add_changes(known: list[LevelChange], more: list[LevelChange]) -> list[LevelChange]:
    """Moves in the order of time, each once however many batches have seen it; the last ones."""
    merged = {(one["at"], one["level"], one["reason"]): one for one in [*known, *more]}
    return [merged[key] for key in sorted(merged)][-_CHANGES_KEPT:]


def no_counts() -> Counts:
    return {
        "planned": 0, "bytes_planned": 0, "uploaded": 0, "skipped": 0, "renamed": 0, "failed": 0, "deleted": 0,
        "bytes_done": 0,
    }  # fmt: skip


def add_counts(total: Counts, more: Counts) -> None:
    """Add ``more`` onto ``total`` in place."""
    for key in total:
        # What an older release wrote into a history may lack a count.
        total[key] += more.get(key, 0)  # type: ignore[literal-required]


def no_verification() -> Verification:
    return {
        "listed": 0, "missing": 0, "size_mismatches": 0, "hashes_checked": 0, "hash_mismatches": 0, "unreadable": 0,
    }  # fmt: skip
