"""How a table is read, by its size and by how its changes are told; with reasons and estimates for the plan.

========= ================ =========================================================================================
size      data             way of reading, where the job leaves it open (``source.consistency: auto``)
========= ================ =========================================================================================
small     below 100 GB     one stream where the table is a single slice, else slices side by side; all as of one
                           moment where the database offers it
medium    100 GB to 1 TB   slices side by side, each as of its own moment and resumable; a catch-up increment where the
                           table's changes are told
large     above 1 TB       the same; without changes to catch up with, the plan says what is missing
========= ================ =========================================================================================

Estimates are there to tell minutes from days. Their constants are of a small worker beside the database; what an
earlier run of the same job measured takes their place.
"""

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Literal

from shared.policy.quantities import show_bytes

SMALL_BELOW_BYTES = 100 * 1000**3
LARGE_ABOVE_BYTES = 1000**4

ROWS_PER_S = 150_000
"""Of one stream, narrow rows, checks and writing included."""
BYTES_PER_S = 20 * 1024**2
"""Of one stream, as the source counts its data; wide rows are bound by it."""
START_S = 3.0
"""To open sessions, cut slices and commit."""
BYTES_PER_ROW = 100
"""Where the database knows rows and not bytes."""
LAKE_SHARE = {"zstd": 0.35, "gzip": 0.35, "snappy": 0.5, "lz4": 0.5, "none": 0.9}
"""Bytes of Parquet files for each byte in the source, by compression."""

Size = Literal["small", "medium", "large", "unknown"]
Way = Literal["single_stream", "parallel_slices", "slices_with_catch_up"]
Moments = Literal["snapshot", "slice"]
# A watermark or a rowversion shows what was inserted or updated, and these show what was deleted as well.
_TELLS_DELETES = ("tracking", "cdc")


@dataclass(frozen=True, slots=True)
class Measured:
    """What an earlier full load of the table took. ``seconds`` of reading and writing; sizes in bytes."""

    rows: int
    lake_bytes: int
    seconds: float
    parallel: int


@dataclass(frozen=True, slots=True)
class Table:
    """What is known of a table, -1 where nothing is, and what the job asks for.

    Attributes:
        rows: From the database's statistics.
        size_bytes: Of the data in the source, from the same.
        change: As in the job; None for a full load.
        cut_by: The column by whose ranges the table can be cut; None where there is none.
        snapshots: Whether the database offers several sessions the state of one moment.
        why_not: What to change so that it does.
        consistency: The job's ``source.consistency``.
        slice_rows: The job's ``partition.rows``.
        parallel: The job's ``partition.parallel``.
        max_connections: The job's ``source.max_connections``.
        rows_per_s: The job's cap, of all streams together.
        file_bytes: The job's ``files.size``.
        compression: The job's.
        earlier: What a run before this one measured.
    """

    rows: int
    size_bytes: int
    change: str | None
    cut_by: str | None
    snapshots: bool
    why_not: str
    consistency: Literal["auto", "snapshot", "slice"]
    slice_rows: int
    parallel: int
    max_connections: int
    rows_per_s: int | None
    file_bytes: int
    compression: str
    earlier: Measured | None = None


@dataclass(frozen=True, slots=True)
class TablePlan:
    """How a table is read from its beginning.

    Attributes:
        size: By the data in the source.
        way: Of the three in the module's table.
        moments: ``snapshot``: all slices show one moment, and a crash repeats the table; ``slice``: each its own, and
            a crash repeats the slices in hand.
        catch_up: Whether an increment follows, from a position taken before the first row.
        slices: About so many; the exact cut is made when the table is read.
        parallel: Streams at once.
        reasons: Sentences.
        warnings: Sentences on what the lake may lack, and how to have it.
        failure: Why the job's own choice is not to be had; empty where it is.
        rows: Estimated; -1 where not known, as are the next three.
        lake_bytes: Of the files to be written.
        files: To be written, about.
        seconds: From start to commit.
        basis: ``measured`` or ``constants``, or ``none``.
    """

    size: Size
    way: Way
    moments: Moments
    catch_up: bool
    slices: int
    parallel: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    failure: str
    rows: int
    lake_bytes: int
    files: int
    seconds: float
    basis: Literal["measured", "constants", "none"]

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "reasons": list(self.reasons), "warnings": list(self.warnings)}


def plan_table(table: Table) -> TablePlan:
    """Choose; the same facts give the same plan."""
    reasons: list[str] = []
    warnings: list[str] = []
    size, size_bytes = _size(table, reasons)
    slices = _slices(table, reasons)
    parallel = min(slices, table.parallel, table.max_connections)
    moments, failure = _moments(table, size, slices, reasons)
    catch_up = moments == "slice" and slices > 1 and table.change is not None
    if catch_up:
        reasons.append(f"an increment by {table.change} from a position taken before the first row follows")
    if moments == "slice" and slices > 1 and table.change not in _TELLS_DELETES:
        warnings.append(_missing(table))
    lake_bytes, files, seconds, basis = _estimates(table, size_bytes, slices, parallel)
    return TablePlan(
        size=size,
        way="slices_with_catch_up" if catch_up else "parallel_slices" if slices > 1 else "single_stream",
        moments=moments,
        catch_up=catch_up,
        slices=slices,
        parallel=parallel,
        reasons=tuple(reasons),
        warnings=tuple(warnings),
        failure=failure,
        rows=table.rows,
        lake_bytes=lake_bytes,
        files=files,
        seconds=seconds,
        basis=basis,
    )


def _size(table: Table, reasons: list[str]) -> tuple[Size, int]:
    size_bytes = table.size_bytes
    if size_bytes < 0 <= table.rows:
        size_bytes = table.rows * BYTES_PER_ROW
        reasons.append(f"the database tells no size, so {BYTES_PER_ROW} bytes a row are assumed")
    if size_bytes < 0:
        reasons.append("the database keeps no statistics of it, so it is taken for small")
        return "unknown", -1
    size: Size = "small" if size_bytes < SMALL_BELOW_BYTES else "medium" if size_bytes <= LARGE_ABOVE_BYTES else "large"
    rows = f"{table.rows:,} rows, " if table.rows >= 0 else ""
    bounds = {"small": "below 100 GB", "medium": "100 GB to 1 TB", "large": "above 1 TB"}
    reasons.append(f"{rows}{show_bytes(size_bytes)} in the source: {size} ({bounds[size]})")
    return size, size_bytes


def _slices(table: Table, reasons: list[str]) -> int:
    if table.cut_by is None:
        reasons.append("one stream, since it has no key to cut it by; partition.column names another column")
        return 1
    if table.rows < 0:
        reasons.append("one stream, since its rows are not known")
        return 1
    slices = max(1, ceil(table.rows / table.slice_rows))
    if slices == 1:
        reasons.append(f"one stream, since it is no more than one slice of {table.slice_rows:,} rows")
    else:
        reasons.append(f"about {slices:,} slices of {table.slice_rows:,} rows, cut by {table.cut_by}")
    return slices


def _moments(table: Table, size: Size, slices: int, reasons: list[str]) -> tuple[Moments, str]:
    why_not = table.why_not or "the database does not offer it"
    if table.consistency == "snapshot":
        reasons.append("as of one moment, as source.consistency asks")
        failure = "" if table.snapshots else f"source.consistency: snapshot cannot be had: {why_not}"
        return "snapshot", failure
    if table.consistency == "slice":
        reasons.append("slice by slice, each as of its own moment, as source.consistency asks")
        return "slice", ""
    if not table.snapshots:
        reasons.append(f"each slice as of its own moment, since one moment for all cannot be had: {why_not}")
        return "slice", ""
    if slices == 1 or size in ("small", "unknown"):
        reasons.append("as of one moment")
        return "snapshot", ""
    reasons.append(
        "slice by slice, each as of its own moment, since one moment would have to be kept for too long; a crash "
        "repeats the slices in hand alone"
    )
    return "slice", ""


def _missing(table: Table) -> str:
    if table.change is None:
        return (
            "rows that are written while the table is read may be missing, or be there twice where the column it is "
            "cut by changes; name a change (tracking, cdc) to catch up with, or choose source.consistency: snapshot"
        )
    return (
        f"rows that are deleted while the table is read may stay in the lake, since change: {table.change} does not "
        "tell of them; choose tracking or cdc, or source.consistency: snapshot"
    )


def _estimates(
    table: Table, size_bytes: int, slices: int, parallel: int
) -> tuple[int, int, float, Literal["measured", "constants", "none"]]:
    """Bytes in the lake, files, seconds, and what they were computed from."""
    earlier = table.earlier
    if earlier is not None and earlier.rows > 0 and earlier.seconds > 0 and table.rows >= 0:
        lake_bytes = round(earlier.lake_bytes / earlier.rows * table.rows)
        stream_rows_per_s = earlier.rows / earlier.seconds / max(1, earlier.parallel)
        seconds = table.rows / (stream_rows_per_s * parallel)
        basis: Literal["measured", "constants"] = "measured"
    elif size_bytes >= 0:
        lake_bytes = round(size_bytes * LAKE_SHARE.get(table.compression, 1.0))
        seconds = START_S + max(max(0, table.rows) / ROWS_PER_S, size_bytes / BYTES_PER_S) / parallel
        basis = "constants"
    else:
        return -1, -1, -1.0, "none"
    if table.rows_per_s is not None:
        seconds = max(seconds, table.rows / table.rows_per_s)
    files = slices * max(1, ceil(lake_bytes / slices / table.file_bytes))
    return lake_bytes, files, round(seconds, 1), basis
