"""SQL Server 2016 and later, and Azure SQL: the catalog, selections as T-SQL, sessions of one moment.

Sizes and rows come of ``sys.partitions`` and ``sys.allocation_units``, which whoever may read a table may read; the
views of ``sys.dm_db_partition_stats`` ask for VIEW DATABASE STATE.

That a database was restored to an earlier state, or lost something in a failover, its recovery fork tells: recovery at
a point where transactions are rolled back starts a new one, and so does a failover that is forced ("Recovery Paths",
"sys.database_recovery_status", "Database Mirroring Operating Modes"). The view shows a database's row to its owner and
to whoever has VIEW ANY DATABASE, which is everybody unless it was taken from them ("VIEW ANY DATABASE Permission");
Azure SQL Database has no such view. There a restore makes another database, which may take the place of the first by
its name; the time when a database was made or got its name is another one then ("sys.databases", "Restore a database
from a backup in Azure SQL Database").
"""

# Statements are put together here; what goes into them is quoted or checked.
# ruff: noqa: S608

from collections.abc import Collection, Sequence
from typing import Any, ClassVar

from shared.clients.sql import tsql_changes as changes
from shared.clients.sql import tsql_types
from shared.clients.sql.dialect import COLUMN_TYPES, ROWS, Dialect, DriverConnection, Statement, modulo
from shared.clients.sql.own_sql import checked_query
from shared.errors import AccessDenied, Configuration, NotFound, Unsupported
from shared.model.sql_job import Types
from shared.policy.sql.checksum import HASH_MASK, MD5_UTF_16, P
from shared.policy.sql.names import TableName
from shared.policy.sql.types import decimal_of
from shared.ports.tables import (
    Capture,
    Change,
    DatabaseFacts,
    KeyRange,
    LakeColumn,
    RowRule,
    Selection,
    SourceColumn,
    TableShape,
    Tracking,
    Window,
)

MEMORY_OPTIMIZED = "memory_optimized"
"""Key of ``TableShape.facts``."""
_NO_SNAPSHOT = (
    "the database does not allow snapshots; run ALTER DATABASE [{}] SET ALLOW_SNAPSHOT_ISOLATION ON, or set "
    "source.consistency: slice"
)
_LOCK_WAIT_MS = 3000
_SAMPLED_A_SLICE = 50
_WHOLE_ROWS = 2_000_000
# Statistics keep the beginning of a text, whose place in the collation's order need not be that of the whole.
_WHOLE_IN_STATISTICS = 50
_AZURE_EDITIONS = (5, 8, 9, 11, 12)
# Where no database is restored over another.
_AZURE_DATABASES = (5, 12)
_FIRST_VERSION = 13

_FACTS = """\
SELECT CAST(SERVERPROPERTY('ProductVersion') AS nvarchar(128)), CAST(SERVERPROPERTY('Edition') AS nvarchar(128)),
 CAST(SERVERPROPERTY('EngineEdition') AS int), DB_NAME(), CAST(SERVERPROPERTY('ServerName') AS nvarchar(128)),
 CONVERT(nvarchar(36), d.group_database_id), CONVERT(nvarchar(36), d.service_broker_guid),
 d.snapshot_isolation_state, COALESCE(SCHEMA_NAME(), N'dbo'), CONVERT(nvarchar(23), d.create_date, 126)
FROM sys.databases AS d WHERE d.database_id = DB_ID()"""

# In a batch of its own: that a view is not there is an error which the batch that names it cannot catch.
_FORK = """\
BEGIN TRY EXEC sys.sp_executesql N'SELECT CONVERT(nvarchar(36), recovery_fork_guid)
 FROM sys.database_recovery_status WHERE database_id = DB_ID()' END TRY BEGIN CATCH SELECT TOP (0) 1 END CATCH"""

_TABLES = """\
SELECT s.name, o.name FROM sys.objects AS o JOIN sys.schemas AS s ON s.schema_id = o.schema_id
WHERE o.type IN ('U', 'V') AND o.is_ms_shipped = 0 AND s.name NOT IN (N'sys', N'cdc', N'INFORMATION_SCHEMA')
 AND HAS_PERMS_BY_NAME(QUOTENAME(s.name) + N'.' + QUOTENAME(o.name), N'OBJECT', N'SELECT') = 1
 AND NOT EXISTS (SELECT 1 FROM sys.extended_properties AS e WHERE e.class = 1 AND e.major_id = o.object_id
  AND e.minor_id = 0 AND e.name = N'microsoft_database_tools_support')
ORDER BY s.name, o.name"""

_TABLE = """\
SELECT o.object_id, RTRIM(o.type), COALESCE(t.temporal_type, 0), COALESCE(t.is_external, 0),
 COALESCE(t.is_memory_optimized, 0), COALESCE(t.is_tracked_by_cdc, 0),
 CASE WHEN c.object_id IS NULL THEN 0 ELSE 1 END, size.rows, size.bytes,
 HAS_PERMS_BY_NAME(QUOTENAME(s.name) + N'.' + QUOTENAME(o.name), N'OBJECT', N'SELECT'),
 HAS_PERMS_BY_NAME(QUOTENAME(s.name) + N'.' + QUOTENAME(o.name), N'OBJECT', N'VIEW CHANGE TRACKING'),
 HAS_PERMS_BY_NAME(DB_NAME(), N'DATABASE', N'UNMASK'),
 CAST(DATABASEPROPERTYEX(DB_NAME(), 'Collation') AS nvarchar(128)), s.name, o.name,
 CONCAT(o.object_id, N'.', (SELECT MAX(i.object_id) FROM sys.internal_tables AS i
  WHERE i.parent_id = o.object_id AND i.internal_type = 209)), CONVERT(nvarchar(20), c.begin_version)
FROM sys.objects AS o JOIN sys.schemas AS s ON s.schema_id = o.schema_id
LEFT JOIN sys.tables AS t ON t.object_id = o.object_id
LEFT JOIN sys.change_tracking_tables AS c ON c.object_id = o.object_id
OUTER APPLY (SELECT
 (SELECT SUM(p.rows) FROM sys.partitions AS p WHERE p.object_id = o.object_id AND p.index_id IN (0, 1)) AS rows,
 (SELECT SUM(CAST(a.used_pages AS bigint)) * 8192 FROM sys.partitions AS p JOIN sys.allocation_units AS a
  ON a.container_id = CASE WHEN a.type IN (1, 3) THEN p.hobt_id ELSE p.partition_id END
  WHERE p.object_id = o.object_id AND p.index_id IN (0, 1)) AS bytes) AS size
WHERE s.name = ? AND o.name = ? AND o.type IN ('U', 'V')"""

_COLUMNS = """\
SELECT c.name, TYPE_NAME(CASE WHEN c.system_type_id = 240 OR c.user_type_id < 256 THEN c.user_type_id
  ELSE c.system_type_id END),
 CAST(c.max_length AS int), CAST(c.precision AS int), CAST(c.scale AS int), c.is_nullable, c.collation_name,
 c.is_identity, c.is_computed, c.encryption_type, c.is_masked, k.key_ordinal, c.system_type_id,
 CASE WHEN CAST(COLLATIONPROPERTY(c.collation_name, 'CodePage') AS int) <> CAST(COLLATIONPROPERTY(
  CAST(DATABASEPROPERTYEX(DB_NAME(), 'Collation') AS nvarchar(128)), 'CodePage') AS int) THEN 1 ELSE 0 END
FROM sys.columns AS c
LEFT JOIN (SELECT ic.column_id, ic.key_ordinal FROM sys.indexes AS i JOIN sys.index_columns AS ic
  ON ic.object_id = i.object_id AND ic.index_id = i.index_id
  WHERE i.object_id = ? AND i.is_primary_key = 1 AND ic.key_ordinal > 0) AS k ON k.column_id = c.column_id
WHERE c.object_id = ? AND COALESCE(COLUMNPROPERTY(c.object_id, c.name, 'GraphType'), 0) IN (0, 2, 5, 8)
ORDER BY c.column_id"""

_QUERY = """\
SELECT name, CASE WHEN system_type_id = 240 THEN user_type_name ELSE TYPE_NAME(system_type_id) END,
 CAST(max_length AS int), CAST(precision AS int), CAST(scale AS int), is_nullable, collation_name, error_number,
 error_message, system_type_id, CAST(DATABASEPROPERTYEX(DB_NAME(), 'Collation') AS nvarchar(128))
FROM sys.dm_exec_describe_first_result_set(?, NULL, 0) WHERE COALESCE(is_hidden, 0) = 0 ORDER BY column_ordinal"""

_STATISTICS = """\
SELECT TOP (1) st.object_id, st.stats_id FROM sys.stats AS st
JOIN sys.stats_columns AS sc ON sc.object_id = st.object_id AND sc.stats_id = st.stats_id AND sc.stats_column_id = 1
JOIN sys.columns AS c ON c.object_id = sc.object_id AND c.column_id = sc.column_id
WHERE st.object_id = OBJECT_ID(?) AND c.name = ? AND st.has_filter = 0
 AND OBJECT_ID(N'sys.dm_db_stats_histogram') IS NOT NULL
ORDER BY STATS_DATE(st.object_id, st.stats_id) DESC"""


class TSqlDialect(Dialect):
    name = "mssql"
    definition = MD5_UTF_16
    quotes = ("[", "]")
    count = "COUNT_BIG"
    spare: ClassVar[int] = 1

    def __init__(self, types: Types, *, maxdop: int | None = None) -> None:
        super().__init__(types)
        self.hint = f" OPTION (MAXDOP {int(maxdop)})" if maxdop else ""

    # -- the catalog -------------------------------------------------------------------------------------------------

    def facts(self, connection: DriverConnection) -> DatabaseFacts:
        (facts,) = connection.rows(_FACTS)
        version, edition, engine, database, server, group, broker, snapshots, schema, made = facts
        if engine not in _AZURE_EDITIONS and int(str(version).partition(".")[0]) < _FIRST_VERSION:
            raise Configuration(
                f"the server is version {version}; SQL Server 2016 (13.0) is the oldest that can be read",
                code="server_too_old",
            )
        allowed = int(snapshots or 0) == 1
        forks = [str(fork) for (fork,) in connection.rows(_FORK) if fork]
        return DatabaseFacts(
            dialect=self.name,
            product=f"SQL Server {version} ({edition})",
            database=str(database),
            # Replicas of an availability group are one database under several servers' names.
            identity=f"mssql:{group or server}/{database}/{broker or ''}".lower(),
            default_schema=str(schema),
            snapshots=allowed,
            why_not="" if allowed else _NO_SNAPSHOT.format(str(database).replace("]", "]]")),
            fork=forks[0].lower() if forks else str(made) if engine in _AZURE_DATABASES else "",
        )

    def tables(self, connection: DriverConnection) -> Sequence[TableName]:
        return [TableName(str(schema), str(name)) for schema, name in connection.rows(_TABLES)]

    def describe(self, connection: DriverConnection, table: TableName, query: str | None) -> TableShape:
        if query is not None:
            return self._described_query(connection, table, query)
        found = connection.rows(_TABLE, (table.schema, table.name))
        if not found:
            raise NotFound(f"there is no table or view {table}, or the login may not see it", code="table_not_found",
                           subject=str(table))  # fmt: skip
        (
            number, kind, temporal, external, in_memory, captured, tracked, rows, size, readable, trackable, unmasked,
            collation, schema, name, tracker, began,
        ) = found[0]  # fmt: skip
        if not readable:
            raise AccessDenied(f"the login may not read {table}; grant SELECT", subject=str(table))
        # The catalog's own spelling, which the statements are made with.
        table = TableName(str(schema), str(name))
        catalog = connection.rows(_COLUMNS, (number, number))
        self._check_columns(table, catalog)
        types = {
            row[0]: _type_of(row[1], row[12], row[2], row[3], row[4], row[6], collation)
            for row in catalog
        }  # fmt: skip
        columns = self._columns(table, [(row[0], types[row[0]], bool(row[5])) for row in catalog])
        masked = [row[0] for row in catalog if row[10]] if not unmasked else []
        key = tuple(row[0] for row in sorted((row for row in catalog if row[11]), key=lambda row: int(row[11])))
        facts: dict[str, object] = {COLUMN_TYPES: types, changes.PRIMARY_KEY: list(key)}
        noted = {
            "view": kind == "V",
            "temporal": {1: "history", 2: "current"}.get(int(temporal), ""),
            "external": bool(external),
            MEMORY_OPTIMIZED: bool(in_memory),
            "identity": [row[0] for row in catalog if row[7]],
            changes.COMPUTED: [row[0] for row in catalog if row[8]],
            "collation": collation,
            "masked": masked,
        }
        facts.update({name: value for name, value in noted.items() if value})
        if tracked:
            facts[changes.MAY_TRACK] = bool(trackable)
        captures: tuple[Capture, ...] = ()
        if captured:
            captures, facts[changes.COMMANDS] = self._captures(connection, table, changes.other_code_pages(catalog))
        unknown = rows is None or kind == "V" or external or (in_memory and not rows)
        return TableShape(
            table=table, query=None,
            columns=tuple(_masked(column) if column.name in masked else column for column in columns),
            key=key, rows=-1 if unknown else int(rows), size_bytes=-1 if unknown or size is None else int(size),
            tracked=bool(tracked), captures=captures, facts=facts,
            tracking=Tracking(str(tracker), str(began)) if tracked and began is not None else None,
        )  # fmt: skip

    def _described_query(self, connection: DriverConnection, table: TableName, query: str) -> TableShape:
        text = f"SELECT * FROM ({checked_query(query, table)}\n) AS {ROWS}"
        found = connection.rows(_QUERY, (text,))
        for row in found:
            if row[7]:
                raise Unsupported(
                    f"SQL Server does not take the query of {table}: {str(row[8])[:300].rstrip('. ')} "
                    f"(error {row[7]}); it is read as SELECT ... FROM (query), so it can have neither WITH nor "
                    "ORDER BY of its own",
                    code="query_refused", subject=str(table),
                )  # fmt: skip
        if not found:
            raise Unsupported(f"the query of {table} has no rows to give; write one SELECT", code="query_refused",
                              subject=str(table))  # fmt: skip
        types = {str(row[0]): _type_of(row[1], row[9], row[2], row[3], row[4], row[6], row[10]) for row in found}
        columns = self._columns(table, [(str(row[0]), types[str(row[0])], bool(row[5])) for row in found])
        return TableShape(table, query, tuple(columns), (), -1, -1, facts={COLUMN_TYPES: types})

    def _columns(self, table: TableName, found: Sequence[tuple[str, str, bool]]) -> list[SourceColumn]:
        taken = {name.casefold() for name, _, _ in found}
        columns = []
        for name, text, nullable in found:
            if not tsql_types.is_known(text):
                raise Unsupported(
                    f"column {name} of {table} is {text}, a type that is not known; read the table by a query that "
                    "casts it to nvarchar(max)",
                    code="type_unsupported", subject=str(table),
                )  # fmt: skip
            lake, note = tsql_types.lake_columns(name, text, nullable, self.types, taken)
            columns.append(SourceColumn(name, text, nullable, lake, note))
        return columns

    def _check_columns(self, table: TableName, catalog: Sequence[Sequence[Any]]) -> None:
        if not catalog:
            raise AccessDenied(f"the login may not see the columns of {table}; grant VIEW DEFINITION",
                               subject=str(table))  # fmt: skip
        encrypted = [str(row[0]) for row in catalog if row[9]]
        if encrypted:
            raise Unsupported(
                f"{table} has columns under Always Encrypted ({', '.join(encrypted)[:300]}), which the server itself "
                "cannot read; read the table by a query without them",
                code="encrypted_column", subject=str(table),
            )  # fmt: skip

    def _captures(
        self, connection: DriverConnection, table: TableName, other_code_pages: Collection[str]
    ) -> tuple[tuple[Capture, ...], dict[str, bool]]:
        """Capture instances, oldest first, and of each whether the order of commands can be read."""
        # Whoever may not use any of them can still read the table.
        found = connection.rows(
            f"BEGIN TRY EXEC sys.sp_cdc_help_change_data_capture @source_schema = {self.text(table.schema)}, "
            f"@source_name = {self.text(table.name)}; END TRY BEGIN CATCH SELECT TOP (0) 1; END CATCH"
        )
        captures, commands = [], {}
        for row in sorted(found, key=lambda row: (row[12], bytes(row[5] or b""))):
            name = str(row[2])
            ((since, ordered),) = connection.rows(changes.capture_since(name))
            columns = changes.listed(str(row[14]))
            note = changes.doubtful(column for column in columns if column in other_code_pages)
            captures.append(Capture(name, columns, bool(row[7]), str(since), note))
            commands[name] = bool(ordered)
        return tuple(captures), commands

    # -- sessions ----------------------------------------------------------------------------------------------------

    def prepare(self, connection: DriverConnection) -> None:
        # In a deadlock with those who write, the reader gives way.
        connection.execute(
            "SET NOCOUNT ON; SET DATEFORMAT ymd; SET ANSI_NULLS ON; SET ANSI_WARNINGS ON; SET ANSI_PADDING ON; "
            "SET QUOTED_IDENTIFIER ON; SET CONCAT_NULL_YIELDS_NULL ON; SET ARITHABORT ON; SET TEXTSIZE 2147483647; "
            "SET DEADLOCK_PRIORITY LOW"
        )

    def begin(
        self, connections: Sequence[DriverConnection], *, consistent: bool, for_table: TableShape | None
    ) -> tuple[int, bool]:
        in_memory = bool(for_table and for_table.facts.get(MEMORY_OPTIMIZED))
        ((state, database),) = connections[0].rows(
            "SELECT snapshot_isolation_state, name FROM sys.databases WHERE database_id = DB_ID()"
        )
        if int(state or 0) != 1 and not in_memory:
            if consistent:
                raise Unsupported(_NO_SNAPSHOT.format(str(database).replace("]", "]]")), code="no_snapshot")
            return len(connections), False
        if not consistent or len(connections) == 1:
            for connection in connections:
                self._begin_snapshot(connection, for_table)
            return len(connections), True
        if len(connections) > 2 and for_table is not None and not in_memory and self._is_lockable(for_table):
            *readers, holder = connections
            if self._held(holder, for_table):
                for connection in readers:
                    self._begin_snapshot(connection, for_table)
                holder.execute("COMMIT TRANSACTION")
                return len(readers), True
        self._begin_snapshot(connections[0], for_table)
        return 1, True

    def _is_lockable(self, shape: TableShape) -> bool:
        return shape.query is None and not shape.facts.get("view") and not shape.facts.get("external")

    def _held(self, holder: DriverConnection, shape: TableShape) -> bool:
        """Keep writers off a table, but make nobody wait for long: those who come now queue behind this lock."""
        ((held,),) = holder.rows(
            f"SET LOCK_TIMEOUT {_LOCK_WAIT_MS}; BEGIN TRANSACTION; BEGIN TRY "
            f"DECLARE @held int = (SELECT TOP (1) 1 FROM {self.table(shape.table)} WITH (TABLOCK, HOLDLOCK)); "
            "SELECT 1; END TRY BEGIN CATCH "
            "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION; IF ERROR_NUMBER() <> 1222 THROW; SELECT 0; END CATCH"
        )
        return bool(held)

    def _begin_snapshot(self, connection: DriverConnection, shape: TableShape | None) -> None:
        # Positions are taken before the moment that is read: what comes in between is delivered twice, not never.
        connection.execute(changes.REMEMBER)
        in_memory = bool(shape and shape.facts.get(MEMORY_OPTIMIZED))
        isolation = "READ COMMITTED" if in_memory else "SNAPSHOT"
        connection.execute(f"SET TRANSACTION ISOLATION LEVEL {isolation}; BEGIN TRANSACTION")
        if shape is not None and self._is_lockable(shape):
            # The moment is that of the first row that is read, not that of BEGIN.
            connection.rows(f"SELECT TOP (1) 1 FROM {self.source(Selection(shape))}")

    def recover(self, connection: DriverConnection) -> None:
        """An error may have ended the transaction, a deadlock does; what came after would be of another moment."""
        ((lost,),) = connection.rows(changes.IS_LOST)
        if lost:
            connection.close()

    # -- names and values --------------------------------------------------------------------------------------------

    def text(self, value: str) -> str:
        return "N" + super().text(value)

    def literal(self, column: SourceColumn, text: str) -> str:
        return tsql_types.literal(column.name, column.type, text)

    def as_text(self, column: SourceColumn, value: str) -> str:
        return tsql_types.as_text(column.name, column.type, value)

    def earlier(self, column: SourceColumn, text: str, seconds: float) -> str:
        return tsql_types.earlier(column.name, column.type, text, seconds)

    # -- rows --------------------------------------------------------------------------------------------------------

    def source(self, selection: Selection) -> str:
        shape, window = selection.shape, selection.window
        if window is not None and window.change == "tracking":
            types = shape.facts.get(COLUMN_TYPES)
            assert isinstance(types, dict)
            return changes.tracked_rows(self.table(shape.table), shape, window, types)
        if window is not None and window.change == "cdc":
            return changes.captured_rows(shape, window)
        plain = super().source(selection)
        return f"{plain} WITH (SNAPSHOT)" if shape.facts.get(MEMORY_OPTIMIZED) else plain

    def projection(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        projected = tsql_types.projected(column.type, value, self.types)
        return tuple(changes.unless_deleted(selection, column.name, expression) for expression in projected)

    def change_columns(self, selection: Selection) -> list[tuple[LakeColumn, str]]:
        return changes.change_columns(selection)

    def window(self, selection: Selection, window: Window) -> list[str]:
        if window.change == "tracking":
            return changes.tracked_conditions(selection.shape, window)
        if window.change == "cdc":
            return changes.captured_conditions(selection.shape, window)
        if window.change == "rowversion":
            column = self._rowversion(selection.shape, window.column)
            value = self.reference(selection, column)
            # MIN_ACTIVE_ROWVERSION is the first that may still be given out, so it belongs to the next window.
            lower = [f"{value} >= {self.literal(column, window.after)}"] if window.after is not None else []
            return [*lower, f"{value} < {self.literal(column, window.upto)}"]
        return super().window(selection, window)

    def checksum(self, column: LakeColumn, value: str) -> str:
        """Source: "HASHBYTES", "DATEDIFF_BIG" (which counts the boundaries crossed, so it rounds down)."""
        kind = column.type
        if kind == "bool":
            return f"CAST({value} AS bigint)"
        if kind in ("int16", "int32", "int64"):
            return modulo(f"CAST({value} AS bigint)")
        if kind == "date32":
            return modulo(f"CAST(DATEDIFF(day, '19700101', {value}) AS bigint)")
        if kind in ("timestamp[us]", "timestamp[us, UTC]"):
            return modulo(f"DATEDIFF_BIG(microsecond, CAST('19700101' AS datetime2(7)), {value})")
        if kind in ("float", "double"):
            return modulo(f"CAST(CONVERT(binary(8), CAST({value} AS float)) AS bigint)")
        if kind == "string":
            return _hashed(f"CAST({value} AS nvarchar(max))")
        if kind == "binary":
            return _hashed(value)
        decimal = decimal_of(kind)
        assert decimal, kind
        # Its digits as one whole number: a product with a power of ten would not fit 38 digits, nor would the zero
        # before the point, where all digits stand behind it.
        point = "0." if decimal[0] == decimal[1] else "."
        digits = f"CAST(REPLACE(CONVERT(varchar(41), {value}), '{point}', '') AS decimal(38,0))"
        return f"CAST((({digits} % {P}) + {P}) % {P} AS bigint)"

    def _rule(self, selection: Selection, rule: RowRule, number: int) -> tuple[str, str]:
        join, broken = super()._rule(selection, rule, number)
        kept = changes.is_kept(selection)
        return join, f"({broken}) AND {kept}" if kept else broken

    # -- positions, cuts ---------------------------------------------------------------------------------------------

    def position(self, shape: TableShape, change: Change, column: str | None) -> Statement:
        if change == "tracking":
            return Statement(changes.tracked_position(shape))
        if change == "cdc":
            return Statement(changes.captured_position(shape))
        if change == "rowversion":
            self._rowversion(shape, column)
            return Statement(changes.ROWVERSION_POSITION)
        return super().position(shape, change, column)

    def oldest(self, shape: TableShape, change: Change, capture: str | None) -> Statement | None:
        if change == "tracking":
            return Statement(changes.tracked_oldest(self.text(self.table(shape.table)), shape))
        if change == "cdc":
            return Statement(changes.captured_oldest(shape, capture))
        if change == "rowversion":
            return None
        return super().oldest(shape, change, capture)

    def _rowversion(self, shape: TableShape, name: str | None) -> SourceColumn:
        types = shape.facts.get(COLUMN_TYPES, {})
        assert isinstance(types, dict)
        found = [column for column, text in types.items() if text in ("timestamp", "rowversion")]
        if name is not None:
            column = self.column(shape, name)
            if column.name in found:
                return column
        elif found:
            return self.column(shape, found[0])
        raise Unsupported(
            f"{shape.table} has no column {name or ''} of type rowversion, which change: rowversion needs; ALTER TABLE "
            "... ADD [version] rowversion adds one",
            code="no_rowversion", subject=str(shape.table),
        )  # fmt: skip

    def age(self, shape: TableShape, column: str) -> Statement:
        """The clock is the server's own; a column without an offset is taken as its local time (UTC in Azure SQL)."""
        found = self.column(shape, column)
        name = tsql_types.parsed(found.type).name
        if name not in ("date", "datetime", "smalldatetime", "datetime2", "datetimeoffset"):
            raise Unsupported(f"column {found.name} is {found.type}, and freshness needs a time", code="column_unfit")
        clock = "SYSDATETIMEOFFSET()" if name == "datetimeoffset" else "SYSDATETIME()"
        newest = f"MAX({self.reference(Selection(shape), found)})"
        age = f"CAST(DATEDIFF_BIG(millisecond, {newest}, {clock}) / 1000.0 AS float)"
        return Statement(f"SELECT {age} {self._from(Selection(shape))}{self.hint}")

    def bounds(self, connection: DriverConnection, shape: TableShape, column: SourceColumn, rows: int) -> list[str]:
        self.as_text(column, "k")
        is_table = self._is_lockable(shape)
        if is_table and 0 <= shape.rows <= rows:
            return []
        if is_table and (steps := self._histogram(connection, shape, column)):
            bounds = from_histogram(steps, shape.rows, rows, whole=column.type in ("int", "bigint", "smallint"))
            if bounds is not None:
                return bounds
        source = self.source(Selection(shape))
        if not is_table or shape.rows < _WHOLE_ROWS or shape.facts.get(MEMORY_OPTIMIZED):
            return [str(text) for (text,) in connection.rows(self.every_nth(shape, column, rows, source))]
        # Pages at random, enough of them for some rows of each slice.
        percent = min(100.0, max(0.5, 100.0 * _SAMPLED_A_SLICE / rows))
        every = max(1, int(rows * percent / 100))
        sampled = f"{source} TABLESAMPLE SYSTEM ({percent:.4f} PERCENT)"
        return [str(text) for (text,) in connection.rows(self.every_nth(shape, column, every, sampled))]

    def _histogram(
        self, connection: DriverConnection, shape: TableShape, column: SourceColumn
    ) -> list[tuple[str, float, float]]:
        """Steps of the newest statistics that begin with a column: greatest value, rows below it, rows equal to it."""
        found = connection.rows(_STATISTICS, (self.table(shape.table), column.name))
        if not found:
            return []
        number, statistics = (int(value) for value in found[0])
        declared = tsql_types.parsed(column.type).declared
        is_text = "char" in declared
        # Text leaves its code page behind only by way of Unicode.
        key = self.as_text(column, f"CAST(range_high_key AS {'nvarchar(4000)' if is_text else declared})")
        steps = connection.rows(
            f"SELECT {key}, range_rows, equal_rows FROM sys.dm_db_stats_histogram({number}, {statistics}) "
            "WHERE range_high_key IS NOT NULL ORDER BY step_number"
        )
        if is_text and any(len(text) >= _WHOLE_IN_STATISTICS for text, _, _ in steps):
            return []
        return [(str(text), float(below), float(equal)) for text, below, equal in steps]

    def cut(self, connection: DriverConnection, shape: TableShape, column: str, rows: int) -> list[KeyRange]:
        return super().cut(connection, shape, column, max(1, rows))


def from_histogram(
    steps: Sequence[tuple[str, float, float]], table_rows: int, rows: int, *, whole: bool
) -> list[str] | None:
    """Bounds with about ``rows`` rows between them; None where the steps are too coarse for that.

    Statistics may be older than the table's rows, so theirs are taken in proportion. Between two whole numbers rows are
    taken as spread evenly.
    """
    known = sum(below + equal for _, below, equal in steps)
    if known <= 0:
        return None
    wanted = rows * known / table_rows if table_rows > 0 else float(rows)
    bounds: list[str] = []
    gathered = 0.0
    previous: str | None = None
    for text, below, equal in steps:
        if gathered + below > 2 * wanted:
            if not whole or previous is None:
                return None
            first, last = int(previous), int(text)
            start = wanted - gathered if gathered < wanted else 0.0
            while start < below:
                bound = first + 1 + int((last - first) * start / below)
                if first < bound <= last:
                    bounds.append(str(bound))
                start += wanted
            gathered = below - (start - wanted)
        else:
            gathered += below
            if gathered >= wanted:
                bounds.append(text)
                gathered = 0.0
        gathered += equal
        previous = text
    return list(dict.fromkeys(bounds))


def _hashed(value: str) -> str:
    return f"(CAST(SUBSTRING(HASHBYTES('MD5', {value}), 1, 4) AS bigint) & {HASH_MASK})"


def _type_of(
    name: str | None,
    system_type: int | None,
    length: int,
    precision: int,
    scale: int,
    collation: str | None,
    usual: str,
) -> str:
    """The type's text, with its collation where that is another one than the database's."""
    if system_type == 240 and name not in ("hierarchyid", "geography", "geometry"):
        return f"clr {name}"
    own = collation if collation and collation != usual else None
    # Text without its code page would be compared in another one.
    own = own if name in ("char", "varchar") else None
    return tsql_types.type_text(str(name), int(length), int(precision), int(scale), own)


def _masked(column: SourceColumn) -> SourceColumn:
    note = "masked by the database, since the login lacks UNMASK"
    return SourceColumn(
        column.name, column.type, column.nullable, column.lake, f"{column.note}; {note}".removeprefix("; ")
    )
