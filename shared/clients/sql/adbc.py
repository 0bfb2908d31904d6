"""PostgreSQL over ADBC: COPY in binary, decoded into Arrow batches by the driver, outside of Python's lock."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as dbapi
from adbc_driver_manager._reader import AdbcRecordBatchReader

from shared.clients.sql.dialect import Statement
from shared.clients.sql.postgresql import classify_postgresql
from shared.errors import MigrationError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH_BYTES = "adbc.postgresql.batch_size_hint_bytes"
_USE_COPY = "adbc.postgresql.use_copy"
# Of libpq, where the setting does not say them. What lies between forgets a connection on which nothing is said while a
# long statement works (Azure's load balancers after four minutes); the system's own two hours would never tell.
_OPTIONS = (
    ("connect_timeout", 15), ("keepalives_idle", 60), ("keepalives_interval", 15), ("keepalives_count", 4),
)  # fmt: skip


class AdbcDriver:
    """Implements ``dialect.Driver``. ``uri`` is one of libpq, with its password."""

    errors: tuple[type[Exception], ...] = (adbc_driver_manager.Error, OSError)

    def __init__(self, uri: str, *, setting: str, statement_timeout_s: float) -> None:
        for option, value in _OPTIONS:
            if f"{option}=" not in uri:
                uri += f"{'&' if '?' in uri else '?'}{option}={value}"
        self._uri = uri
        self._setting = setting
        self._timeout_s = statement_timeout_s

    def connect(self) -> "AdbcConnection":
        connection = AdbcConnection(dbapi.connect(self._uri, autocommit=True))
        try:
            connection.execute(f"SET statement_timeout = {int(self._timeout_s * 1000)}")
        except BaseException:
            connection.close()
            raise
        return connection

    def classify(self, error: Exception, subject: str) -> MigrationError:
        state = getattr(error, "sqlstate", None)
        return classify_postgresql(state, str(error), setting=self._setting, subject=subject)


class AdbcConnection:
    """Implements ``dialect.DriverConnection``. Parameters are not taken: values are literals of the statement."""

    def __init__(self, connection: dbapi.Connection) -> None:
        self._connection = connection
        self._cursor: dbapi.Cursor | None = None

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> None:
        self.rows(sql, parameters)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        assert not parameters
        # What is no query, such as SET or EXPLAIN, cannot be copied from.
        cursor = self._open({_USE_COPY: "false"})
        try:
            cursor.execute(sql)
            return list(cursor.fetchall()) if cursor.description else []
        finally:
            self._end(cursor)

    def batches(self, statement: Statement, *, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
        assert not statement.parameters
        cursor = self._open({_BATCH_BYTES: str(batch_bytes)})
        is_over = False
        try:
            cursor.execute(statement.sql)
            # The cursor's own reader of batches loses the SQLSTATE of what goes wrong on the way.
            stream = cursor.fetch_arrow()
            reader = AdbcRecordBatchReader._import_from_c(stream.address)
            try:
                while True:
                    try:
                        batch = reader.read_next_batch()
                    except StopIteration:
                        is_over = True
                        return
                    yield batch
            finally:
                if not is_over and self._cursor is not None:
                    # Else the next statement would wait for all the rest of this one.
                    cursor.adbc_cancel()
                reader.close()
        finally:
            self._end(cursor)

    def cancel(self) -> None:
        cursor = self._cursor
        if cursor is not None:
            cursor.adbc_cancel()

    def close(self) -> None:
        if self._cursor is not None:
            self._end(self._cursor)
        self._connection.close()

    def _open(self, options: dict[str, str]) -> dbapi.Cursor:
        self._cursor = self._connection.cursor(adbc_stmt_kwargs=options)
        return self._cursor

    def _end(self, cursor: dbapi.Cursor) -> None:
        if self._cursor is cursor:
            self._cursor = None
        cursor.close()
