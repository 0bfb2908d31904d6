"""Tables in a lakehouse: a folder of Parquet files, or a Delta table; implements ``ports.tables.LakeTable``.

``open_lake_table`` makes no call; it is cheap, and what it returns may be used by many tasks of one loop at once.

Of a Parquet table (``Files/...``) readers meet folders ``{run}/``, one for each commit, and ``_current.json``, which
names them; what begins with an underscore is no data. ``PartFile.path`` is ``{run}/{file}`` there; a second commit of
the same run makes ``{run}-{number}/``. Of a Delta table (``Tables/...``) the log says what there is.

Columns that a table gets beside those of ``TableCommit.columns``, and that need not be named there: ``_deleted`` (bool)
and ``_deleted_at`` (timestamp[us, UTC]) with merge or history and ``deletes: soft``; ``_valid_from``, ``_valid_to``
(timestamp[us, UTC], null while current) and ``_is_current`` (bool) with history.
"""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal

from shared.ports.tables import LakeTable, PartOptions

if TYPE_CHECKING:
    from shared.clients.onelake import OneLake

MIB = 1024 * 1024
DEFAULT_OPTIONS = PartOptions("zstd", file_bytes=256 * MIB, row_group_bytes=32 * MIB)


def _now() -> datetime:
    return datetime.now(UTC)


def open_lake_table(
    lake: "OneLake",
    workspace_id: str,
    lakehouse_id: str,
    path: str,
    format: Literal["parquet", "delta"],
    *,
    owner: str,
    run: str,
    options: PartOptions = DEFAULT_OPTIONS,
    memory_bytes: int = 64 * MIB,
    now: Callable[[], datetime] = _now,
) -> LakeTable:
    """One table of a lakehouse.

    Args:
        lake: The endpoint.
        workspace_id: GUID of the workspace.
        lakehouse_id: GUID of the lakehouse.
        path: Of the table's folder, such as ``Tables/dbo_Orders`` or ``Files/raw/erp/dbo/Orders``.
        format: What the folder is.
        owner: The job: whose commits are numbered, and whose uncommitted files ``leftovers`` finds.
        run: The run's id; names the folder of Parquet files.
        options: Of the files that merge and history rewrite, which no writer was asked for.
        memory_bytes: Of changes in memory at once, about; more of them are applied in several passes.
        now: When a commit happens, for ``_deleted_at`` and ``_valid_from``.
    """
    if format == "delta":
        from shared.clients.lake_tables.delta import DeltaLakeTable

        return DeltaLakeTable(
            lake, workspace_id, lakehouse_id, path, owner=owner, options=options, memory_bytes=memory_bytes, now=now
        )
    from shared.clients.lake_tables.parquet import ParquetLakeTable

    return ParquetLakeTable(lake, workspace_id, lakehouse_id, path, owner=owner, run=run)
