"""``kind: sql``: tables of a database into a lakehouse, in full or by what has changed, as Parquet or Delta.

Where a field can stand both at the top and at a table, the table's own wins.
"""

import math
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from shared.model.lake_target import LakeTarget
from shared.model.spec import ByteSize, JobName, Spec
from shared.policy.ncrontab import parse as parse_ncrontab
from shared.policy.quantities import parse_seconds
from shared.policy.sql.names import check_output_name, check_table_wish, is_wish_for_many

Change = Literal["watermark", "rowversion", "tracking", "cdc"]
Disposition = Literal["append", "replace", "merge", "history"]
Action = Literal["warn", "quarantine", "fail"]


class SqlSpec(Spec):
    """``schema`` and ``validate`` are words that pydantic keeps for itself, so they are aliases here."""

    model_config = ConfigDict(serialize_by_alias=True, validate_by_alias=True, validate_by_name=False)


def _seconds(value: Any) -> Any:
    return parse_seconds(value) if isinstance(value, str) else value


def _wish(value: str) -> str:
    check_table_wish(value)
    return value


def _output(value: str) -> str:
    return check_output_name(value)


Seconds = Annotated[float, BeforeValidator(_seconds, json_schema_input_type=float | str)]
ColumnName = Annotated[str, Field(min_length=1, max_length=256)]
TableText = Annotated[str, Field(min_length=1, max_length=600), AfterValidator(_wish)]
"""``dbo.Orders``, ``"odd schema".[odd table]``, ``sales.*``; quotes of all dialects are understood."""
OutputName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_output)]


class SqlSource(SqlSpec):
    """The database, by the name of the setting that holds its connection, and how hard it may be worked."""

    connection: str = Field(
        pattern=r"^[A-Za-z][A-Za-z0-9_]{0,63}$", description="the setting that holds the connection"
    )
    name: OutputName | None = Field(
        None, description="the source's folder below target.path; by default the database's own name"
    )
    max_connections: int = Field(8, ge=1, le=64, description="connections of one run at most, of all its tables")
    rows_per_s: int | None = Field(None, ge=1, description="cap of one worker")
    maxdop: int | None = Field(None, ge=1, le=64, description="SQL Server: MAXDOP hint of every reading statement")
    statement_timeout_s: int = Field(3600, ge=1, le=86_400)
    consistency: Literal["auto", "snapshot", "slice"] = Field(
        "auto",
        description=(
            "snapshot: a table is read as of one moment, and from its beginning again after a crash; slice: slice by "
            "slice, each as of its own moment, and only the slices in hand again; auto: by size and change"
        ),
    )


class Partition(SqlSpec):
    """How a table is cut into slices that are read side by side."""

    rows: int = Field(1_000_000, ge=1, description="rows of a slice, about")
    parallel: int = Field(4, ge=1, le=32, description="slices of a table at once")
    column: ColumnName | None = Field(None, description="by whose ranges to cut; by default the key's first column")


class Files(SqlSpec):
    """What the written files are like."""

    size: ByteSize = Field(256 * 1024**2, ge=64 * 1024, le=4 * 1024**3, description="of one file, about")
    row_group: ByteSize = Field(
        32 * 1024**2, ge=64 * 1024, le=1024**3, description="of values in a row group, in memory"
    )
    sort_by: list[ColumnName] = Field(default_factory=list, max_length=16, description="order of rows in each slice")


class Types(SqlSpec):
    """What becomes of values that a lake's own types cannot hold. Nothing is rounded but where a job says so."""

    sub_microsecond: Literal["split", "text", "truncate"] = Field(
        "split",
        description=(
            "datetime2(7), datetimeoffset(7): a microsecond timestamp and the 100 ns digit in a column beside "
            "it; ISO text; or cut off at the microsecond, which is counted and reported"
        ),
    )
    offset: Literal["split", "text", "utc"] = Field(
        "split", description="datetimeoffset: a UTC timestamp and the offset in minutes beside it; text; or UTC alone"
    )


class Write(SqlSpec):
    """What a run does to what is there."""

    disposition: Disposition | None = Field(
        None, description="by default replace for mode full, merge for incremental with a key into Delta, else append"
    )
    deletes: Literal["soft", "hard", "ignore"] = Field(
        "soft", description="rows that the source tells as deleted: marked in _deleted, removed, or left as they are"
    )


def assert_distinct(names: list[str]) -> None:
    """Raises ValueError for names that a lakehouse does not tell apart."""
    seen: set[str] = set()
    for name in names:
        if name.casefold() in seen:
            raise ValueError(f"two tables would be written under the name {name!r}; give each of them one of its own")
        seen.add(name.casefold())


class TableWish(SqlSpec):
    """Tables by name or pattern, or the rows of a query, and how to read them."""

    table: TableText | None = None
    name: OutputName | None = Field(None, description="of a query's result; or another name for a table's folder")
    query: str | None = Field(None, min_length=1, max_length=100_000, description="one SELECT")
    mode: Literal["full", "incremental"] = "full"
    change: Change | None = None
    column: ColumnName | None = Field(None, description="of change: watermark or rowversion")
    lookback: Seconds | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="how far behind its watermark a row may appear: 15m, or a number for a numeric column",
    )
    changes: Literal["net", "all"] = Field("net", description="of change: cdc; a row's last state, or all its states")
    columns: list[ColumnName] = Field(default_factory=list, max_length=4096, description="default all")
    exclude_columns: list[ColumnName] = Field(default_factory=list, max_length=4096)
    exclude: list[TableText] = Field(default_factory=list, max_length=1000, description="of a pattern's tables")
    key: list[ColumnName] = Field(default_factory=list, max_length=32, description="default the primary key")
    partition: Partition | None = None
    files: Files | None = None
    write: Write | None = None

    @model_validator(mode="after")
    def _consistent(self) -> "TableWish":
        if (self.table is None) == (self.query is None):
            raise ValueError("give either table, or name and query")
        if self.query is not None and self.name is None:
            raise ValueError("a query needs a name for its result")
        many = self.table is not None and is_wish_for_many(self.table)
        if many and self.name is not None:
            raise ValueError("name would be the same for several tables; leave it away where table is a pattern")
        if self.exclude and not many:
            raise ValueError("exclude belongs to a pattern such as sales.*")
        if self.mode == "incremental" and self.change is None:
            raise ValueError("mode: incremental needs change: watermark, rowversion, tracking or cdc")
        if self.mode == "full" and self.change is not None:
            raise ValueError("change belongs to mode: incremental")
        if self.change == "watermark" and self.column is None:
            raise ValueError("change: watermark needs column, the column that grows with every change")
        if self.column is not None and self.change not in ("watermark", "rowversion"):
            raise ValueError("column belongs to change: watermark or rowversion")
        if self.lookback is not None and self.change != "watermark":
            raise ValueError("lookback belongs to change: watermark")
        if self.changes == "all" and self.change != "cdc":
            raise ValueError("changes: all belongs to change: cdc")
        if self.query is not None and self.change not in (None, "watermark"):
            raise ValueError(f"a query has no change: {self.change}; only watermark")
        if self.columns and self.exclude_columns:
            raise ValueError("give either columns or exclude_columns")
        return self


_BELONGS = {
    "min": "range", "max": "range", "pattern": "regex", "references": "foreign_key",
    "reference_columns": "foreign_key", "max_age": "freshness", "sql": "sql",
}  # fmt: skip


class QualityRule(SqlSpec):
    """A rule that rows, or a table as a whole (unique, freshness, sql), have to keep."""

    table: TableText = Field(description="a table, a pattern, or a query's name")
    rule: Literal["not_null", "unique", "range", "regex", "foreign_key", "freshness", "sql"]
    name: OutputName | None = None
    columns: list[ColumnName] = Field(default_factory=list, max_length=32)
    min: float | str | None = None
    max: float | str | None = None
    pattern: str | None = Field(None, max_length=1000, description="of rule: regex (RE2); the whole value must match")
    references: TableText | None = Field(None, description="of rule: foreign_key")
    reference_columns: list[ColumnName] = Field(default_factory=list, max_length=32)
    max_age: Seconds | None = Field(None, gt=0, description="of rule: freshness")
    sql: str | None = Field(None, max_length=10_000, description="of rule: sql; a condition that every row must meet")
    action: Action = "fail"

    @model_validator(mode="after")
    def _complete(self) -> "QualityRule":
        needs = {
            "not_null": self.columns, "unique": self.columns, "range": self.columns, "regex": self.columns,
            "foreign_key": self.columns, "freshness": self.columns, "sql": self.sql,
        }  # fmt: skip
        if not needs[self.rule]:
            raise ValueError(f"rule: {self.rule} needs {'sql' if self.rule == 'sql' else 'columns'}")
        for name, rule in _BELONGS.items():
            if getattr(self, name) not in (None, []) and self.rule != rule:
                raise ValueError(f"{name} belongs to rule: {rule}")
        if self.rule == "range":
            self._check_limits()
        if self.rule == "regex":
            if self.pattern is None:
                raise ValueError("rule: regex needs pattern")
            try:
                re.compile(self.pattern)
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"pattern is no regular expression: {error}") from None
        if self.rule == "foreign_key" and (
            self.references is None or len(self.reference_columns) not in (0, len(self.columns))
        ):
            raise ValueError("rule: foreign_key needs references, and as many reference_columns as columns")
        if self.rule == "freshness" and (self.max_age is None or len(self.columns) != 1):
            raise ValueError("rule: freshness needs max_age and one column")
        if self.action == "quarantine" and self.rule == "freshness":
            raise ValueError("freshness is of a table, not of rows; use action: warn or fail")
        return self

    def _check_limits(self) -> None:
        if self.min is None and self.max is None:
            raise ValueError("rule: range needs min, max or both")
        for name, limit in (("min", self.min), ("max", self.max)):
            if isinstance(limit, float) and not math.isfinite(limit):
                raise ValueError(f"{name}: {limit} is no limit; leave it away where there is none")
        if isinstance(self.min, float) and isinstance(self.max, float) and self.min > self.max:
            raise ValueError("min is greater than max, so that no row could keep the rule")


class SqlTarget(LakeTarget):
    """A folder of a lakehouse, and the format of what is written there."""

    format: Literal["parquet", "delta"] = "parquet"


class SqlLimits(SqlSpec):
    """How much at once."""

    parallel_tables: int = Field(4, ge=1, le=64)
    memory: ByteSize = Field(256 * 1024**2, ge=32 * 1024**2, description="of rows in hand of one table, about")


class SqlJob(SqlSpec):
    """Tables of a database into a folder of a lakehouse."""

    kind: Literal["sql"]
    name: JobName
    source: SqlSource
    tables: list[TableWish] = Field(min_length=1, max_length=10_000)
    target: SqlTarget
    partition: Partition = Partition()  # type: ignore[call-arg]
    files: Files = Files()  # type: ignore[call-arg]
    compression: Literal["zstd", "snappy", "gzip", "lz4", "none"] = "zstd"
    types: Types = Types()  # type: ignore[call-arg]
    checks: list[Literal["row_count", "checksum"]] = Field(["row_count", "checksum"], alias="validate")
    quality: list[QualityRule] = Field(default_factory=list, max_length=10_000)
    schema_policy: Literal["create", "evolve", "strict"] = Field("evolve", alias="schema")
    write: Write = Write()  # type: ignore[call-arg]
    reset: list[TableText] = Field(
        default_factory=list, max_length=10_000, description="tables to be read anew from their beginning"
    )
    reconcile: Literal["compare", "repair"] | None = Field(
        None, description="in place of loading: compare source and lake, and mend what differs"
    )
    limits: SqlLimits = SqlLimits()  # type: ignore[call-arg]
    dry_run: bool = False
    schedule: str | None = Field(None, description="six-field NCRONTAB; only for PUT /schedules/{name}")

    @field_validator("schedule")
    @classmethod
    def _schedule(cls, value: str | None) -> str | None:
        if value is not None:
            parse_ncrontab(value)
        return value

    @field_validator("tables")
    @classmethod
    def _queries(cls, value: list[TableWish]) -> list[TableWish]:
        assert_distinct([wish.name for wish in value if wish.query is not None and wish.name is not None])
        return value

    @field_validator("target")
    @classmethod
    def _place(cls, value: SqlTarget) -> SqlTarget:
        root = value.path.partition("/")[0]
        wanted = "Tables" if value.format == "delta" else "Files"
        if root != wanted:
            raise ValueError(
                f"format: {value.format} belongs below {wanted}/, such as {wanted}/erp; path is {value.path!r}"
            )
        return value

    @model_validator(mode="after")
    def _names(self) -> "SqlJob":
        # Parquet's folders have that of the schema between them.
        if self.target.format == "delta":
            assert_distinct([wish.name for wish in self.tables if wish.name is not None])
        return self

    @model_validator(mode="after")
    def _dispositions(self) -> "SqlJob":
        for number, wish in enumerate(self.tables):
            disposition = (wish.write or self.write).disposition
            where = f"tables[{number}]: write.disposition: {disposition}"
            explicit = wish.write is not None or disposition == "history"
            if disposition in ("merge", "history") and self.target.format != "delta" and explicit:
                raise ValueError(f"{where} needs target.format: delta")
            if wish.mode == "incremental" and disposition == "replace":
                raise ValueError(f"{where} would leave nothing but the changes of an incremental table")
        if self.reconcile and self.dry_run:
            raise ValueError("reconcile: compare is the dry run of reconcile: repair")
        return self

    # -- what holds for one table ------------------------------------------------------------------------------------

    def partition_of(self, wish: TableWish) -> Partition:
        return wish.partition or self.partition

    def files_of(self, wish: TableWish) -> Files:
        return wish.files or self.files

    def unmergeable(self, wish: TableWish, *, has_key: bool) -> str:
        """Why a table is not merged though the job says so for all its tables; empty where it is, or need not be.

        ``merge`` at the top means what can be merged; at a table it is a demand.
        """
        if wish.write is not None or self.write.disposition != "merge":
            return ""
        if self.target.format != "delta":
            return "Parquet files are not merged"
        return "" if has_key else "rows of a table without a key are not merged"

    def write_of(self, wish: TableWish, *, has_key: bool) -> tuple[Disposition, str]:
        """Disposition and what to do about deletes, with the defaults of the table's mode filled in."""
        write = wish.write or self.write
        if write.disposition is not None and not self.unmergeable(wish, has_key=has_key):
            return write.disposition, write.deletes
        if wish.mode == "full":
            return "replace", write.deletes
        return ("merge" if has_key and self.target.format == "delta" else "append"), write.deletes
