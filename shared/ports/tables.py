"""Tables: what the engine asks of a database that is read, and of the lake that its tables are written to.

The database's side is synchronous, as the drivers are: a session belongs to one thread at a time, and the engine gives
it one. The lake's side is asynchronous. Between them travel Arrow record batches whose columns are the *lake columns*
of the table, in the order of its shape; types are named as Arrow names them (``decimal128(38, 4)``).

Positions, bounds and keys are text in a form that the dialect makes and takes back without loss (a ``datetime2(7)``
keeps its seven digits); the engine stores and compares them only for equality.
"""

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from shared.policy.sql.checksum import MD5_UTF_8, Definition
from shared.policy.sql.names import TableName

if TYPE_CHECKING:
    import pyarrow as pa

Change = Literal["watermark", "rowversion", "tracking", "cdc"]
Operation = Literal["insert", "update", "delete", "upsert"]

OPERATION_COLUMN = "_operation"
"""string: what happened to the row; ``upsert`` where the source does not tell insert and update apart."""
POSITION_COLUMN = "_position"
"""string: where in the source's history it happened (an LSN, a version), for people and for other readers."""
ORDER_COLUMN = "_order"
"""int64: rows of one batch of changes, applied in this order, give the source's state."""
CHANGE_COLUMNS = (OPERATION_COLUMN, POSITION_COLUMN, ORDER_COLUMN)
RULE_COLUMN = "_rule_{}"
"""bool, one for each of a selection's row rules by its number: whether the row breaks it; null is no."""


@dataclass(frozen=True, slots=True)
class LakeColumn:
    """A column as it is written. ``type`` is an Arrow type's text that :mod:`shared.policy.sql.types` knows."""

    name: str
    type: str
    nullable: bool = True


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """A column of a table, and what becomes of it in the lake: several columns where one could not hold it all.

    Attributes:
        name: As the catalog has it.
        type: The source's own type with its parameters, such as ``datetime2(7)``.
        nullable: As the catalog says.
        lake: What is written, never empty.
        note: What a person should know (``rounded where finer than a microsecond``); empty where nothing is lost.
    """

    name: str
    type: str
    nullable: bool
    lake: tuple[LakeColumn, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Capture:
    """A CDC capture instance.

    Attributes:
        name: Its name.
        columns: In its order.
        net: Whether it can give net changes.
        since: The oldest position that it can be asked from.
        note: What of the table it may not keep as it is; empty where nothing is lost.
    """

    name: str
    columns: tuple[str, ...]
    net: bool
    since: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Tracking:
    """What SQL Server tracks changes of a table with.

    Attributes:
        name: Another one after the table was made anew, or tracking was switched off and on.
        since: The version at which it began; TRUNCATE TABLE begins anew.
    """

    name: str
    since: str


@dataclass(frozen=True, slots=True)
class TableShape:
    """What the catalog says of a table, or of a query's result.

    Attributes:
        table: Its name; of a query, the job's name for it with an empty schema.
        query: The text of a query, or None.
        columns: All that are to be read, in the catalog's order.
        key: The primary key, or the key that the job gives; empty where there is none.
        rows: Estimated from statistics; -1 where the database keeps none.
        size_bytes: Of the data in the source, estimated; -1 where not known.
        tracked: Whether SQL Server tracks changes of it.
        tracking: With what; None where that is not known.
        captures: Its CDC capture instances, oldest first.
        facts: For the manifest: ``view``, collations, computed and identity columns.
    """

    table: TableName
    query: str | None
    columns: tuple[SourceColumn, ...]
    key: tuple[str, ...]
    rows: int
    size_bytes: int
    tracked: bool = False
    captures: tuple[Capture, ...] = ()
    facts: Mapping[str, object] = field(default_factory=dict)
    tracking: Tracking | None = None

    @property
    def lake_columns(self) -> tuple[LakeColumn, ...]:
        return tuple(column for source in self.columns for column in source.lake)

    @property
    def whole_captures(self) -> tuple[Capture, ...]:
        """Capture instances that have all columns."""
        names = {column.name.casefold() for column in self.columns}
        return tuple(one for one in self.captures if names <= {name.casefold() for name in one.columns})


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Rows whose ``column`` lies in [lower, upper); None is open. ``nulls``: those without a value belong to it too."""

    column: str
    lower: str | None
    upper: str | None
    nulls: bool = False


@dataclass(frozen=True, slots=True)
class Window:
    """The changes between two positions.

    ``watermark``: rows with ``after`` <= column <= ``upto`` (both inclusive: the engine sorts out the ties), all rows
    up to ``upto`` where ``after`` is None. ``rowversion``: ``after`` <= column < ``upto``, since
    ``MIN_ACTIVE_ROWVERSION`` is the first that may still be given out.
    ``tracking``, ``cdc``: what happened after ``after`` (exclusive) and up to ``upto`` (inclusive).
    """

    change: Change
    after: str | None
    upto: str
    column: str | None = None
    lookback_s: float = 0.0
    net: bool = True
    capture: str | None = None


@dataclass(frozen=True, slots=True)
class RowRule:
    """A quality rule as the dialect compiles it into a column that says whether a row breaks it."""

    rule: Literal["not_null", "unique", "range", "foreign_key", "sql"]
    columns: tuple[str, ...] = ()
    minimum: float | str | None = None
    maximum: float | str | None = None
    references: TableName | None = None
    reference_columns: tuple[str, ...] = ()
    sql: str | None = None


@dataclass(frozen=True, slots=True)
class Selection:
    """Which rows of a table, and what to know of each. Without range and window: all of them."""

    shape: TableShape
    range: KeyRange | None = None
    window: Window | None = None
    rules: tuple[RowRule, ...] = ()
    order_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ColumnSum:
    """Of one lake column: how many nulls, and the sum of its values, as :mod:`shared.policy.sql.checksum` says."""

    nulls: int
    total: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Of the rows of a selection, computed by the database. ``columns`` is empty where only rows were asked for.

    ``definition`` is that of :mod:`shared.policy.sql.checksum` by which the database made integers of values.
    """

    rows: int
    columns: Mapping[str, ColumnSum] = field(default_factory=dict)
    definition: Definition = MD5_UTF_8


@dataclass(frozen=True, slots=True)
class DatabaseFacts:
    """What a connection leads to.

    Attributes:
        dialect: ``mssql``, ``postgresql``, ``sqlite``.
        product: With its version, for people.
        database: Name of the database; names the source's folder.
        identity: Tells this database from another one behind the same setting; no secret.
        fork: Another one after the database was restored, or lost something in a failover; empty where it does not say.
        default_schema: What a bare table name means.
        snapshots: Whether several sessions can read one moment's state; ``why_not`` says what to change.
    """

    dialect: str
    product: str
    database: str
    identity: str
    default_schema: str
    snapshots: bool
    why_not: str = ""
    fork: str = ""


class TableSession(Protocol):
    """One connection, in one transaction; one thread at a time.

    Everything raises MigrationError: ConnectionLost, Throttled (deadlock, too many connections, a resource limit) and
    ServiceUnavailable to be tried again; NotFound, AccessDenied, Unsupported for a table; RunError for all tables.
    """

    consistent: bool
    """Whether everything read in this session is the state of one moment."""

    def position(self, shape: TableShape, change: Change, column: str | None) -> str | None:
        """The upper bound of what this session sees: greatest watermark (None: no rows), version, LSN."""

    def oldest(self, shape: TableShape, change: Change, capture: str | None) -> str | None:
        """The oldest position that changes can still be asked from, exclusive; None where everything can."""

    def cut(self, shape: TableShape, column: str, rows: int) -> list[KeyRange]:
        """Ranges of about ``rows`` rows that cover every possible value and NULL, each row in exactly one."""

    def summary(self, selection: Selection, *, checksums: bool) -> Summary: ...

    def batches(self, selection: Selection, *, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
        """The rows: lake columns, CHANGE_COLUMNS with a window of tracking or cdc, then a column for each rule.

        Of a deleted row all but the key is null. Closing the iterator early ends the statement.
        """

    def broken_rows(self, selection: Selection, rule: RowRule) -> int:
        """How many rows of a selection break a rule."""

    def try_rule(self, shape: TableShape, rule: RowRule) -> None:
        """Raises NotFound or Unsupported for a rule that the database does not take; reads no row of the table."""

    def age_s(self, shape: TableShape, column: str) -> float | None:
        """Seconds since the newest value of a time column, by the database's own clock; None without rows."""

    def close(self) -> None:
        """End transaction and connection; never raises. Another thread may call it to break off a statement."""


class TableDatabase(Protocol):
    """A database that tables are read from. Thread-safe."""

    def check(self) -> DatabaseFacts:
        """Raises RunError, with what to change, if it cannot be read; TransientError where it may be by and by."""

    def tables(self) -> Sequence[TableName]:
        """Tables and views that the identity may see, without those of the system."""

    def describe(self, table: TableName, query: str | None = None) -> TableShape:
        """All columns. Raises NotFound, AccessDenied, or Unsupported where a type cannot be carried."""

    def sessions(
        self, count: int, *, consistent: bool, for_table: TableShape | None = None
    ) -> "AbstractContextManager[Sequence[TableSession]]":
        """Open sessions; with ``consistent`` all of them see the state of one moment, else each that of its own.

        Raises:
            Unsupported: code ``no_snapshot``: consistent sessions, and the database does not offer them.
        """


# -- the lake's side -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PartFile:
    """A Parquet file that was written whole; no reader sees it before it is committed.

    Attributes:
        path: Relative to the table's folder, where the file is (Delta) or where it will be after the commit (Parquet).
        rows: In the file.
        size_bytes: Of the file.
        md5: Hex, of the file, computed while it was written.
        etag: Of the file as it was flushed.
        stats: Delta's statistics as JSON: numRecords, minValues, maxValues, nullCount.
    """

    path: str
    rows: int
    size_bytes: int
    md5: str
    etag: str
    stats: str = ""


@dataclass(frozen=True, slots=True)
class PartOptions:
    """How files are written. Sizes in bytes: of a file as it is stored, of a row group's values in memory."""

    compression: str
    file_bytes: int
    row_group_bytes: int


class PartsWriter(Protocol):
    """Writes batches into files of about the asked size, streamed to the lake; memory bounded by a row group."""

    async def write(self, batch: "pa.RecordBatch") -> None: ...

    async def close(self) -> list[PartFile]:
        """Finish the last file. Without rows: one file without rows, so that the schema is there."""

    async def abort(self) -> None:
        """Delete what was begun; never raises."""


@dataclass(frozen=True, slots=True)
class LakeTableState:
    """What is in the lake. ``applied`` is the number of the last commit of this job, -1 before the first.

    ``position`` is what that commit said about the cursor.
    """

    exists: bool
    columns: tuple[LakeColumn, ...]
    version: int
    applied: int
    position: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class TableCommit:
    """What is to become visible at once.

    Attributes:
        number: Of the job's commits of this table, growing; one that was applied already is not applied again.
        run: The run's id; names the folder of Parquet files.
        disposition: ``append``; ``replace`` all rows; ``merge`` changes by key; ``history``: type 2.
        deletes: What a deleted row becomes with merge and history.
        columns: All columns of the table after the commit, without CHANGE_COLUMNS.
        key: For merge and history; lake columns.
        parts: Files to add; with merge and history, files of changes that are applied and then deleted.
        position: Kept with the commit, so that a crash before the cursor was saved is mended from the lake.
        only_new: There was no table when the commit was planned, so that one which somebody else has made meanwhile is
            left alone.
        token: Of the plan that the commit belongs to. One of the same number and another token is somebody else's.
        whole_key_range: With merge and history: rows in the lake whose key is not among the parts are to go (repair,
            full load into history). None: they stay.
    """

    number: int
    run: str
    disposition: str
    deletes: str
    columns: tuple[LakeColumn, ...]
    key: tuple[str, ...]
    parts: tuple[PartFile, ...]
    position: Mapping[str, object]
    whole_key_range: KeyRange | None = None
    only_new: bool = False
    token: str = ""


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit did. ``rows`` are those of the table (Delta) or of the files (Parquet)."""

    version: int
    inserted: int
    updated: int
    deleted: int
    files: int
    size_bytes: int
    already: bool = False


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Files of a job that no commit referred to when they were looked for.

    Attributes:
        files: With rows.
        marks: What else there is to delete, after the files.
        folders: To go once they are empty, in this order.
    """

    files: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()


class LakeTable(Protocol):
    """One table's folder in a lakehouse, as Parquet files or as a Delta table."""

    async def state(self) -> LakeTableState: ...

    def writer(
        self, name: str, columns: Sequence[LakeColumn], options: PartOptions, *, changes: bool = False
    ) -> PartsWriter:
        """Files of one slice. ``name`` is the same for every attempt of a slice, and the files' names differ."""

    async def commit(self, commit: TableCommit) -> Committed:
        """Make it visible, all or nothing.

        Idempotent. Readers meet the state before or the state after, and never none. Raises TargetConflict if somebody
        else changed the table in a way that does not go together with this, or another run of the job has made a commit
        of this number; nothing is changed then.
        """

    def read_parts(self, parts: Sequence[PartFile]) -> "AsyncIterator[pa.RecordBatch]":
        """What lies in files that were written, committed or not, read back from the lake."""

    async def leftovers(self, keep: Sequence[str] = ()) -> Leftovers:
        """Files of this job that no commit refers to, but for those kept.

        Some may be in the hands of another delivery of the same activity. So whoever is about to delete them first
        looks whether that one is still needed: what was listed before is deleted, and nothing that came later.
        """

    async def remove(self, leftovers: Leftovers) -> int:
        """Delete them, but for files that a commit refers to by now; how many files with rows there were."""

    def read(
        self, columns: Sequence[str] | None = None, *, within: KeyRange | None = None
    ) -> "AsyncIterator[pa.RecordBatch]":
        """What a reader of the table sees. Memory bounded by a row group."""
