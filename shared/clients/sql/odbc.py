"""Connections over ODBC: SQL Server, and PostgreSQL where its ODBC driver is asked for.

A connection is pyodbc's, all of whose statements see the same transaction and may be cancelled from another thread.
Large results are fetched in blocks into Arrow (:mod:`shared.clients.sql.odbc_blocks`); those with columns of unbounded
length (``nvarchar(max)``, ``xml``) row by row, complete, with no more in memory than a batch and one row.

arrow-odbc, which fetches blocks too, opens a connection of its own: it takes no access token, nothing else could be
read in its transaction, its statements cannot be cancelled, and it cuts long values off at a size given beforehand.
"""

import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from shared.clients.sql.classify import DriverError, Record, classify_mssql, classify_postgresql_odbc
from shared.clients.sql.connection import UNBOUNDED_POSTGRESQL, Connection
from shared.clients.sql.dialect import DriverConnection, Statement
from shared.errors import Configuration, MigrationError, Unsupported

if TYPE_CHECKING:
    import pyarrow as pa
    import pyodbc

# SQL_COPT_SS_ACCESS_TOKEN. Source: "Using Microsoft Entra ID with the ODBC Driver".
_ACCESS_TOKEN = 1256
_LOGIN_TIMEOUT_S = 30
# Longer columns of SQL Server are of type (max), whose size it gives as 0.
_LONGEST_MSSQL = 8000
# A driver that knows nothing of a transaction begun by a statement may refuse to disconnect while it is open (25000).
_ROLL_BACK = "IF @@TRANCOUNT > 0 ROLLBACK TRANSACTION"

Token = Callable[[], str]
"""Gives an access token for the scope ``connection.SQL_SCOPE`` that is valid now; called in any thread."""


class OdbcDriver:
    """Implements ``dialect.Driver``."""

    def __init__(
        self,
        connection: Connection,
        *,
        token: Token | None = None,
        statement_timeout_s: int = 0,
        login_timeout_s: int = _LOGIN_TIMEOUT_S,
    ) -> None:
        try:
            import pyodbc
        except ImportError:
            raise Configuration(
                "ODBC's driver manager is missing; install unixODBC (libodbc.so.2)", code="driver_missing",
                subject=connection.setting,
            ) from None  # fmt: skip
        # A connection that another session has left behind would bring what that session has set.
        pyodbc.pooling = False
        self.errors: tuple[type[Exception], ...] = (pyodbc.Error, DriverError)
        self._connection = connection
        self._token = token
        self._statement_timeout_s = statement_timeout_s
        self._login_timeout_s = login_timeout_s

    def connect(self) -> DriverConnection:
        """Raises what the driver raises, and Configuration where a token is needed and nobody gives one."""
        import pyodbc

        attributes: dict[int, bytes] = {}
        if self._connection.needs_token:
            if self._token is None:
                raise Configuration(
                    f"the setting {self._connection.setting} has no user and password, and there is no identity to ask "
                    "for a token; write UID and PWD, or Authentication=...",
                    code="no_identity", subject=self._connection.setting,
                )  # fmt: skip
            attributes[_ACCESS_TOKEN] = packed_token(self._token())
        opened = pyodbc.connect(
            self._connection.text, autocommit=True, timeout=self._login_timeout_s, attrs_before=attributes
        )
        if self._connection.dialect == "mssql":
            opened.timeout = self._statement_timeout_s
            # As the driver's char it would be in the encoding of the process's locale, whatever that can hold.
            opened.setdecoding(pyodbc.SQL_CHAR, encoding="utf-16le", ctype=pyodbc.SQL_WCHAR)
            return OdbcConnection(opened, _LONGEST_MSSQL, at_end=_ROLL_BACK)
        # Its driver knows timeouts of statements only as the server's own setting.
        connection = OdbcConnection(opened, UNBOUNDED_POSTGRESQL - 1)
        connection.execute(f"SET statement_timeout = {self._statement_timeout_s * 1000}")
        return connection

    def classify(self, error: Exception, subject: str) -> MigrationError:
        classify = classify_mssql if self._connection.dialect == "mssql" else classify_postgresql_odbc
        return classify(error, setting=self._connection.setting, subject=subject)


def packed_token(token: str) -> bytes:
    """A token as the driver takes it: its length in bytes, and each character followed by a zero byte."""
    wide = token.encode("utf-16-le")
    return struct.pack("<I", len(wide)) + wide


class OdbcConnection:
    """Implements ``dialect.DriverConnection``.

    Args:
        connection: In autocommit.
        longest: Columns of more characters count as unbounded.
        at_end: A statement before the connection is closed; what becomes of it does not matter.
    """

    def __init__(self, connection: "pyodbc.Connection", longest: int, *, at_end: str = "") -> None:
        self._connection = connection
        self._longest = longest
        self._at_end = at_end
        self._running: pyodbc.Cursor | None = None
        # Whoever breaks a statement off must be done with its handle before that is freed; else the process is gone.
        self._handle = threading.RLock()

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        cursor = self._begin(sql, parameters)
        try:
            # An error of a later statement of the batch comes with the result it belongs to.
            while cursor.nextset():
                pass
        finally:
            self._end(cursor)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        cursor = self._begin(sql, parameters)
        try:
            while cursor.description is None:
                if not cursor.nextset():
                    return []
            return [tuple(row) for row in cursor.fetchall()]
        finally:
            self._end(cursor)

    def batches(self, statement: Statement, *, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
        from shared.clients.sql.odbc_blocks import BlockReader, layout

        cursor = self._begin(statement.sql, statement.parameters)
        try:
            columns = layout(cursor, statement.columns, longest=self._longest)
            if columns is None:
                yield from long_rows(cursor, statement, batch_bytes)
            else:
                yield from BlockReader(cursor, columns, batch_bytes).batches()
        finally:
            self._end(cursor)

    def cancel(self) -> None:
        with self._handle:
            if self._running is not None:
                self._running.cancel()

    def close(self) -> None:
        if self._at_end and not self._connection.closed:
            import pyodbc

            with suppress(pyodbc.Error, DriverError):
                self.execute(self._at_end)
        self._connection.close()

    def _begin(self, sql: str, parameters: Sequence[Any]) -> "pyodbc.Cursor":
        if self._connection.closed:
            raise DriverError([Record("08003", 0, "the connection is closed")])
        cursor = self._connection.cursor()
        # Braces in names and texts are no escapes of ODBC's.
        cursor.noscan = True
        self._running = cursor
        try:
            cursor.execute(sql, *parameters)
        except BaseException:
            self._end(cursor)
            raise
        return cursor

    def _end(self, cursor: "pyodbc.Cursor") -> None:
        with self._handle:
            self._running = None
            cursor.close()


def long_rows(cursor: "pyodbc.Cursor", statement: Statement, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
    """Rows one by one, so that no more than one long value is in memory beyond a batch.

    Raises:
        Unsupported: code ``value_unfit``: text that is no Unicode, or over 2 GB of one column in a row.
    """
    from shared.clients.sql.conform import arrow_schema

    schema = arrow_schema(statement.columns)
    sized = [index for index, column in enumerate(statement.columns) if column.type in ("string", "binary")]
    fixed = 16 * (len(statement.columns) - len(sized)) + 8 * len(sized)
    rows: list[Any] = []
    gathered = 0
    while True:
        try:
            row = cursor.fetchone()
        except UnicodeDecodeError:
            raise not_unicode(", ".join(statement.columns[index].name for index in sized)) from None
        is_over = row is None
        if row is not None:
            gathered += fixed + sum(len(row[index]) for index in sized if row[index] is not None)
            rows.append(row)
        # Of a long row nothing is kept, neither as it came nor as it went, while the next one is read.
        row = None
        if rows and (is_over or gathered >= batch_bytes):
            batch = _batch(rows, schema)
            rows, gathered = [], 0
            yield batch
            del batch
        if is_over:
            return


def _batch(rows: "list[Any]", schema: "pa.Schema") -> "pa.RecordBatch":
    import pyarrow as pa

    arrays = [_array([row[index] for row in rows], field) for index, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(arrays, schema.names)


def _array(values: Sequence[Any], field: "pa.Field") -> "pa.Array":
    import pyarrow as pa

    try:
        if pa.types.is_boolean(field.type):
            return pa.array([None if value is None else bool(value) for value in values], pa.bool_())
        made = pa.array(values, field.type)
    except UnicodeEncodeError:
        raise not_unicode(field.name) from None
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        # Whoever makes the lake's types of it says what does not fit.
        made = pa.array([None if value is None else str(value) for value in values], pa.string())
    if isinstance(made, pa.ChunkedArray):
        raise Unsupported(f"column {field.name} holds a value of over 2 GB, which Parquet readers do not take",
                          code="value_unfit", subject=field.name)  # fmt: skip
    return made


def not_unicode(column: str) -> Unsupported:
    return Unsupported(
        f"column {column} holds text that is no Unicode (half of a surrogate pair), so it cannot be written as it is; "
        "read the table by a query that casts the column to varbinary, or leave it out by exclude_columns",
        code="value_unfit", subject=column,
    )  # fmt: skip
