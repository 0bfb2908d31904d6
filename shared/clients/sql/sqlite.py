"""SQLite: a file, read in read transactions, over the standard library's ``sqlite3``.

A column's declared type is a preference to SQLite, and any row may hold something else. What becomes of a column is
told by its declaration alone, and a value that does not fit is an error that names its row:

==================================== ========= ===================================================================
declared                             lake      values
==================================== ========= ===================================================================
``BOOL...``                          bool      0 and 1
``...INT...``                        int64     integers
``...CHAR...``, ``...CLOB...``,      string    text; numbers as the shortest text that means them
``...TEXT...``, dates, times, JSON,
other words, nothing
``...BLOB...``                       binary    blobs
``...REAL...``, ``...FLOA...``,      double    floating point, and integers that it holds exactly: SQLite has no
``...DOUB...``, ``NUMERIC``,                   decimals, it stores such columns as binary floating point
``DECIMAL``, ``NUMBER``
==================================== ========= ===================================================================

Results of expressions, in views and queries, have no declared type: their first rows decide.

Source: "Datatypes In SQLite", section 3.1; "Write-Ahead Logging".
"""

# Statements are put together here; what goes into them is quoted or checked.
# ruff: noqa: S608

import hashlib
import math
import re
import sqlite3
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote as url_quote

from shared.clients.sql.dialect import COLUMN_TYPES, Dialect, DriverConnection, Statement, modulo
from shared.clients.sql.own_sql import checked_query
from shared.errors import (
    AccessDenied,
    ConnectionLost,
    MigrationError,
    NotFound,
    ServiceUnavailable,
    SourceChanged,
    SourceMissing,
    Throttled,
    TransientError,
    Unsupported,
)
from shared.policy.sql.checksum import HASH_MASK, P
from shared.policy.sql.names import TableName
from shared.ports.tables import DatabaseFacts, LakeColumn, Selection, SourceColumn, TableShape

if TYPE_CHECKING:
    import pyarrow as pa

ROWID = "rowid"
"""Key of ``TableShape.facts``: the name by which a table's rows can be told, where there is one."""
_EXACT = 2**53
_SAMPLED_ROWS = 10_000
_LOCK_WAIT_S = 10.0
_PROGRESS_STEPS = 50_000
_FIRST_MOMENT = datetime.fromisoformat("0001-01-01")
_TIME = re.compile(r"(\d{4}-\d\d-\d\d)(?:([ T])(\d\d:\d\d(?::\d\d)?)(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?")
# Storage classes that a column of a lake type takes as they are.
_TAKEN = {
    "int64": "'integer', 'null'", "double": "'real', 'null'", "string": "'text', 'null'", "binary": "'blob', 'null'",
}  # fmt: skip


class SqliteDialect(Dialect):
    name = "sqlite"

    # -- the catalog -------------------------------------------------------------------------------------------------

    def facts(self, connection: DriverConnection) -> DatabaseFacts:
        ((version, path),) = connection.rows(
            "SELECT sqlite_version(), file FROM pragma_database_list WHERE name = 'main'"
        )
        # The first statement that reads the file, which tells whether it is a database.
        connection.rows("SELECT COUNT(*) FROM sqlite_master")
        return DatabaseFacts(
            dialect=self.name,
            product=f"SQLite {version}",
            database=Path(path).stem,
            identity=f"sqlite:{path}",
            default_schema="",
            snapshots=True,
        )

    def tables(self, connection: DriverConnection) -> Sequence[TableName]:
        hidden = ""
        if sqlite3.sqlite_version_info >= (3, 37):
            # Where a virtual table keeps its data.
            hidden = " AND name NOT IN (SELECT name FROM pragma_table_list WHERE type = 'shadow')"
        rows = connection.rows(
            "SELECT name FROM sqlite_master WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
            + hidden
        )
        return sorted(TableName("", name) for (name,) in rows)

    def describe(self, connection: DriverConnection, table: TableName, query: str | None) -> TableShape:
        if query is None:
            return self._described(connection, table, None, table.name, "main")
        name = "lake_query"
        connection.execute(f"CREATE TEMP VIEW {name} AS {checked_query(query, table)}")
        try:
            return self._described(connection, table, query, name, "temp")
        finally:
            connection.execute(f"DROP VIEW temp.{name}")

    def _described(
        self, connection: DriverConnection, table: TableName, query: str | None, name: str, schema: str
    ) -> TableShape:
        kinds = connection.rows(
            "SELECT type, sql FROM sqlite_master WHERE name = ? COLLATE NOCASE AND type IN ('table', 'view')", (name,)
        )
        if query is None and (not kinds or table.schema):
            raise NotFound(f"there is no table or view {table}", code="table_not_found", subject=str(table))
        is_table = query is None and kinds[0][0] == "table"
        found = connection.rows(
            'SELECT name, type, "notnull", pk, hidden FROM pragma_table_xinfo(?, ?) WHERE hidden <> 1 ORDER BY cid',
            (name, schema),
        )
        key = tuple(row[0] for row in sorted(found, key=lambda row: int(row[3])) if row[3])
        rowid = self._rowid(connection, table, [row[0] for row in found]) if is_table else None
        # The one kind of key that SQLite keeps free of NULL by itself.
        alias = key[0] if rowid and len(key) == 1 and self._is_rowid_alias(found, key[0]) else None
        columns = []
        for column, declared, not_null, _, _ in found:
            source_type = str(declared or "")
            if not is_table and source_type.upper() in ("", "NUM", "BLOB"):
                source_type = self._sampled(connection, name, schema, column) or source_type
            columns.append(self._column(column, source_type, nullable=not not_null and column != alias))
        if not columns:
            raise Unsupported(f"{table} has no columns", code="no_columns", subject=str(table))
        rows, size = self._size(connection, table, rowid, [column.name for column in columns])
        facts: dict[str, object] = {COLUMN_TYPES: {column.name: column.type for column in columns}}
        if rowid:
            facts[ROWID] = rowid
        if not is_table and query is None:
            facts["view"] = True
        if generated := [row[0] for row in found if row[4] in (2, 3)]:
            facts["generated"] = generated
        return TableShape(table, query, tuple(columns), key, rows, size, facts=facts)

    def _column(self, name: str, declared: str, *, nullable: bool) -> SourceColumn:
        lake, note = _lake_type(declared)
        return SourceColumn(name, declared, nullable, (LakeColumn(name, lake, nullable),), note)

    def unread(self, name: str, source_type: str) -> SourceColumn:
        return self._column(name, source_type, nullable=True)

    def _rowid(self, connection: DriverConnection, table: TableName, columns: Sequence[str]) -> str | None:
        taken = {column.lower() for column in columns}
        for name in ("rowid", "_rowid_", "oid"):
            if name not in taken:
                try:
                    connection.rows(f"SELECT {name} FROM {self.table(table)} LIMIT 0")
                except sqlite3.OperationalError:
                    return None
                return name
        return None

    def _is_rowid_alias(self, found: Sequence[tuple[Any, ...]], key: str) -> bool:
        return any(row[0] == key and str(row[1]).upper() == "INTEGER" for row in found)

    def _sampled(self, connection: DriverConnection, name: str, schema: str, column: str) -> str:
        rows = connection.rows(
            f"SELECT DISTINCT typeof(v) FROM (SELECT {self.quoted(column)} AS v FROM {schema}.{self.quoted(name)} "
            f"LIMIT {_SAMPLED_ROWS})"
        )
        classes = {str(row[0]) for row in rows} - {"null"}
        if classes == {"integer"}:
            return "INTEGER"
        if classes and classes <= {"integer", "real"}:
            return "REAL"
        if len(classes) == 1:
            return classes.pop().upper()
        return ""

    def _size(
        self, connection: DriverConnection, table: TableName, rowid: str | None, columns: Sequence[str]
    ) -> tuple[int, int]:
        """From the statistics of ANALYZE, else from the span of row ids; rows are not counted."""
        rows = -1
        if connection.rows("SELECT 1 FROM sqlite_master WHERE name = 'sqlite_stat1'"):
            stats = connection.rows("SELECT stat FROM sqlite_stat1 WHERE tbl = ? COLLATE NOCASE", (table.name,))
            rows = max((int(str(stat).split()[0]) for (stat,) in stats if stat), default=-1)
        if rows < 0 and rowid:
            ((first,),) = connection.rows(f"SELECT min({rowid}) FROM {self.table(table)}")
            ((last,),) = connection.rows(f"SELECT max({rowid}) FROM {self.table(table)}")
            ((pages, page),) = connection.rows("SELECT page_count, page_size FROM pragma_page_count, pragma_page_size")
            # A row takes no less than some bytes, however far apart the ids are.
            rows = 0 if first is None else min(int(last) - int(first) + 1, int(pages) * int(page) // 4)
        if rows < 0 or not rowid:
            return rows, -1
        lengths = " + ".join(f"COALESCE(length(CAST({self.quoted(column)} AS BLOB)), 0)" for column in columns[:200])
        ((mean,),) = connection.rows(f"SELECT avg({lengths}) FROM (SELECT * FROM {self.table(table)} LIMIT 200)")
        return rows, int(rows * (mean or 0))

    # -- sessions ----------------------------------------------------------------------------------------------------

    def begin(
        self, connections: Sequence[DriverConnection], *, consistent: bool, for_table: TableShape | None
    ) -> tuple[int, bool]:
        first = connections[0]
        assert isinstance(first, SqliteConnection)
        if not consistent or len(connections) == 1:
            for connection in connections:
                _begin_reading(connection)
            return len(connections), True
        with first.writers_held() as held:
            if not held:
                # Nobody can prove that nothing is written between the beginning of one and of the next.
                _begin_reading(first)
                return 1, True
            for connection in connections:
                _begin_reading(connection)
        return len(connections), True

    # -- values ------------------------------------------------------------------------------------------------------

    def literal(self, column: SourceColumn, text: str) -> str:
        kind = column.lake[0].type
        try:
            if kind in ("int64", "bool"):
                return _integer(int(text))
            if kind == "double":
                if re.fullmatch(r"-?\d+", text):
                    return _integer(int(text))
                return f"lake_real({self.text(repr(float(text)))})"
            if kind == "binary":
                return f"x'{bytes.fromhex(text).hex()}'"
        except (ValueError, OverflowError):
            raise Unsupported(
                f"{text[:100]!r} is no value of column {column.name}, which is {column.type}", code="value_unfit"
            ) from None
        if not column.type:
            # Without affinity, '5' is another value than 5, and which one is meant cannot be told.
            raise Unsupported(
                f"column {column.name} has no declared type, so its values have no order to rely on; choose another "
                "column, or a query that casts it",
                code="column_unfit",
                subject=column.name,
            )
        return self.text(text)

    def as_text(self, column: SourceColumn, value: str) -> str:
        kind = column.lake[0].type
        if kind == "binary":
            return f"hex({value})"
        return f"lake_text({value})"

    def earlier(self, column: SourceColumn, text: str, seconds: float) -> str:
        if column.lake[0].type in ("int64", "double"):
            exact = Decimal(text) - Decimal(repr(seconds))
            whole = str(max(math.floor(exact), -(2**63)))
            return self.literal(column, whole if column.lake[0].type == "int64" else repr(float(exact)))
        match = _TIME.fullmatch(text)
        if column.lake[0].type != "string" or match is None:
            return super().earlier(column, text, seconds)
        day, sign, clock = match[1], match[2], match[3]
        moment = datetime.fromisoformat(f"{day}T{clock or '00:00'}")
        moment -= timedelta(seconds=min(seconds, (moment - _FIRST_MOMENT).total_seconds()))
        # Text sorts a moment without a fraction before those with one.
        if not sign:
            return self.literal(column, moment.date().isoformat())
        digits = "seconds" if len(clock) > 5 else "minutes"
        return self.literal(column, moment.isoformat(sep=sign, timespec=digits))

    # -- rows --------------------------------------------------------------------------------------------------------

    def projection(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        kind, row = column.lake[0].type, selection.shape.facts.get(ROWID)
        misfit = f"lake_misfit({self.text(column.name)}, typeof({value}), {f't.{row}' if row else 'NULL'})"
        if kind == "bool":
            taken = f"WHEN {value} IS NULL OR typeof({value}) = 'integer' AND {value} IN (0, 1) THEN {value}"
        else:
            taken = f"WHEN typeof({value}) IN ({_TAKEN[kind]}) THEN {value}"
        if kind == "string":
            taken += f" WHEN typeof({value}) <> 'blob' THEN lake_text({value})"
        if kind == "double":
            exact = f"typeof({value}) = 'integer' AND {value} BETWEEN -{_EXACT} AND {_EXACT}"
            taken += f" WHEN {exact} THEN CAST({value} AS REAL)"
        return (f"CASE {taken} ELSE {misfit} END",)

    def checksum(self, column: LakeColumn, value: str) -> str:
        if column.type == "double":
            return f"lake_bits({value})"
        if column.type in ("string", "binary"):
            return f"lake_hash({value})"
        return modulo(value)

    def age(self, shape: TableShape, column: str) -> Statement:
        found = self.column(shape, column)
        newest = f"MAX({self.reference(Selection(shape), found)})"
        if found.lake[0].type != "string":
            raise Unsupported(
                f"column {found.name} is {found.type}; SQLite tells a time from text alone", code="column_unfit"
            )
        days = f"julianday({newest})"
        misfit = f"lake_misfit({self.text(found.name)}, 'text that is no time', NULL)"
        seconds = f"(julianday('now') - {days}) * 86400.0"
        case = f"CASE WHEN {newest} IS NULL THEN NULL WHEN {days} IS NULL THEN {misfit} ELSE {seconds} END"
        return Statement(f"SELECT {case} {self._from(Selection(shape))}")

    def bounds(self, connection: DriverConnection, shape: TableShape, column: SourceColumn, rows: int) -> list[str]:
        if not column.type:
            return []
        statement = self.every_nth(shape, column, rows, self.source(Selection(shape)))
        return [str(text) for (text,) in connection.rows(statement)]


def _lake_type(declared: str) -> tuple[str, str]:
    words = declared.upper()
    if words.startswith("BOOL"):
        return "bool", ""
    if "INT" in words:
        return "int64", ""
    if any(word in words for word in ("CHAR", "CLOB", "TEXT")):
        return "string", ""
    if "BLOB" in words:
        return "binary", ""
    if any(word in words for word in ("REAL", "FLOA", "DOUB")):
        return "double", ""
    if words.startswith(("NUM", "DEC")):
        return "double", "SQLite stores it as binary floating point"
    return "string", "as text" if declared else "no declared type; as text"


def _integer(value: int) -> str:
    if not -(2**63) <= value < 2**63:
        raise OverflowError(value)
    # The digits behind the minus are a literal of their own, and would be too large for an integer.
    return f"({value + 1} - 1)" if value == -(2**63) else str(value)


def _begin_reading(connection: DriverConnection) -> None:
    connection.execute("BEGIN")
    # Only a first read settles which state the transaction sees.
    connection.rows("SELECT COUNT(*) FROM sqlite_master")


# -- the driver --------------------------------------------------------------------------------------------------------


class SqliteDriver:
    """Implements ``dialect.Driver``. ``path`` is a file that exists; it is never written to."""

    errors: tuple[type[Exception], ...] = (sqlite3.Error,)

    def __init__(self, path: str, *, setting: str, statement_timeout_s: float) -> None:
        self._path = path
        self._setting = setting
        self._timeout_s = statement_timeout_s

    def connect(self) -> "SqliteConnection":
        return SqliteConnection(self._path, self._timeout_s)

    def classify(self, error: Exception, subject: str) -> MigrationError:
        """What SQLite says may quote a value, so it is repeated only where it is about the statement."""
        code = getattr(error, "sqlite_errorcode", None)
        name = getattr(error, "sqlite_errorname", "") or type(error).__name__
        primary = None if code is None else code & 0xFF
        said, subject = str(error), subject or self._setting
        if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return Throttled(f"the database is locked by another program ({name})", subject=subject, retry_after_s=2.0)
        if primary == sqlite3.SQLITE_INTERRUPT:
            return TransientError(
                f"a statement was ended, or took longer than source.statement_timeout_s ({self._timeout_s:g} s)",
                code="statement_timeout",
                subject=subject,
            )
        if primary in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return SourceMissing(
                f"the file of the setting {self._setting} cannot be opened or is no sound SQLite database ({name}); "
                "check the path, and that the app may read the file and its folder",
                code="database_missing",
                subject=self._setting,
            )
        if primary in (sqlite3.SQLITE_PERM, sqlite3.SQLITE_AUTH, sqlite3.SQLITE_READONLY):
            return AccessDenied(f"SQLite may not do this ({name})", subject=subject)
        if primary == sqlite3.SQLITE_SCHEMA:
            return SourceChanged(f"the schema changed while it was read ({name})", subject=subject)
        if primary in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL):
            return ServiceUnavailable(f"SQLite could not read its file ({name})", subject=subject)
        if isinstance(error, sqlite3.ProgrammingError) and code is None:
            return ConnectionLost("the connection is closed", subject=subject)
        if "no such table" in said or "no such column" in said:
            return NotFound(f"{said[:300]}", code="table_not_found", subject=subject)
        if "decode to UTF-8" in said:
            return Unsupported(
                f"{subject} holds text that is not UTF-8; read the table by a query that casts the column to BLOB",
                code="value_unfit",
                subject=subject,
            )
        return Unsupported(
            f"SQLite does not take a statement: {said[:300]}; check query and rules of the job",
            code="statement_refused",
            subject=subject,
        )


class SqliteConnection:
    """Implements ``dialect.DriverConnection``."""

    def __init__(self, path: str, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._deadline = math.inf
        self._misfit: Unsupported | None = None
        self._connection = _open(path, "ro")
        self._connection.set_progress_handler(self._is_late, _PROGRESS_STEPS)
        for name, count, function in (
            ("lake_misfit", 3, self._refuse), ("lake_hash", 1, _hash), ("lake_bits", 1, _bits),
            ("lake_real", 1, _real), ("lake_text", 1, _text),
        ):  # fmt: skip
            self._connection.create_function(name, count, function, deterministic=True)

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        with self._statement():
            self._connection.execute(sql, parameters).close()

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._statement():
            return self._connection.execute(sql, parameters).fetchall()

    def batches(self, statement: Statement, *, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
        import pyarrow as pa

        from shared.clients.sql.conform import arrow_type

        types = [pa.int64() if column.type == "bool" else arrow_type(column.type) for column in statement.columns]
        names = [column.name for column in statement.columns]
        unbounded = [number for number, type_ in enumerate(types) if type_ in (pa.string(), pa.binary())]
        with self._statement():
            cursor = self._connection.execute(statement.sql, statement.parameters)
        try:
            step = 16
            while True:
                rows: list[tuple[Any, ...]] = []
                size = 0
                while size < batch_bytes:
                    with self._statement(restart=False):
                        chunk = cursor.fetchmany(step)
                    rows += chunk
                    taken = 9 * len(types) * len(chunk) + sum(
                        len(row[number]) for number in unbounded for row in chunk if row[number] is not None
                    )
                    size += taken
                    if len(chunk) < step:
                        break
                    # No more at once than what a batch can take of rows like these.
                    step = max(1, min(4 * step, batch_bytes // 8 * step // taken, 8192))
                if not rows:
                    return
                arrays = [pa.array(column, type_) for column, type_ in zip(zip(*rows, strict=True), types, strict=True)]
                yield pa.RecordBatch.from_arrays(arrays, names=names)
        finally:
            cursor.close()

    def cancel(self) -> None:
        self._connection.interrupt()

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def writers_held(self) -> Iterator[bool]:
        """Keeps others from writing; False where the file or its folder may not be written to.

        Nothing is written: a reserved lock is taken and given back.
        """
        try:
            lock = _open(self._path, "rw", timeout_s=_LOCK_WAIT_S)
        except sqlite3.OperationalError:
            yield False
            return
        try:
            held = True
            try:
                lock.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN):
                    raise
                held = False
            yield held
        finally:
            lock.close()

    @contextmanager
    def _statement(self, *, restart: bool = True) -> Iterator[None]:
        if restart:
            self._deadline = time.monotonic() + self._timeout_s
            self._misfit = None
        try:
            yield
        except sqlite3.OperationalError as error:
            if self._misfit is not None:
                raise self._misfit from error
            raise

    def _is_late(self) -> int:
        return int(time.monotonic() > self._deadline)

    def _refuse(self, column: str, storage: str, row: int | None) -> None:
        where = "" if row is None else f" in the row with rowid {row}"
        self._misfit = Unsupported(
            f"column {column} holds a value of {storage}{where}, which its declared type does not; mend the row, read "
            "the table by a query with CAST, or leave the column out by exclude_columns",
            code="value_unfit",
            subject=column,
        )
        raise self._misfit


def _open(path: str, mode: str, *, timeout_s: float = _LOCK_WAIT_S) -> sqlite3.Connection:
    # Without a transaction of its own making; threads take turns, as sessions see to.
    return sqlite3.connect(
        f"file:{url_quote(path)}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=timeout_s,
    )


def _hash(value: str | bytes | None) -> int | None:
    if value is None:
        return None
    data = value.encode() if isinstance(value, str) else value
    return int.from_bytes(hashlib.md5(data, usedforsecurity=False).digest()[:4], "big") & HASH_MASK


def _bits(value: float | None) -> int | None:
    return None if value is None else int(struct.unpack("<q", struct.pack("<d", value))[0]) % P


def _real(text: str) -> float:
    return float(text)


def _text(value: Any) -> str | None:
    """Of a number, the shortest text that means it."""
    return value if value is None or isinstance(value, str) else repr(value)
