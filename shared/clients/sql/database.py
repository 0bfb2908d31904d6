"""A database that tables are read from, of any dialect over any driver.

Reading is synchronous. A session belongs to one thread at a time; another may close it, which breaks off its statement.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from shared.clients.sql.conform import conform
from shared.clients.sql.dialect import Dialect, Driver, DriverConnection
from shared.clients.sql.limits import pace_of, quota_of
from shared.errors import ConnectionLost, MigrationError, RunError, SourceMissing, TransientError
from shared.model.sql_job import SqlSource
from shared.policy.sql.names import TableName
from shared.ports.tables import (
    Change,
    ColumnSum,
    DatabaseFacts,
    KeyRange,
    RowRule,
    Selection,
    Summary,
    TableSession,
    TableShape,
)

if TYPE_CHECKING:
    import pyarrow as pa

_CANCEL_AGAIN_S = 0.05


class Database:
    """Implements ``ports.TableDatabase``."""

    def __init__(self, dialect: Dialect, driver: Driver, source: SqlSource) -> None:
        self._dialect = dialect
        self._driver = driver
        self._source = source
        self._quota = quota_of(source.connection)

    def check(self) -> DatabaseFacts:
        try:
            with self._connected("") as connection:
                return self._dialect.facts(connection)
        except (RunError, TransientError):
            # A server that is restarting, or a file that somebody holds, is asked again.
            raise
        except MigrationError as error:
            # Whatever it is, no table can be read.
            raise SourceMissing(
                f"the database of the setting {self._source.connection} cannot be read: {error.detail}",
                code=error.code,
                subject=self._source.connection,
            ) from error

    def tables(self) -> Sequence[TableName]:
        with self._connected("") as connection:
            return self._dialect.tables(connection)

    def describe(self, table: TableName, query: str | None = None) -> TableShape:
        with self._connected(str(table)) as connection:
            return self._dialect.describe(connection, table, query)

    @contextmanager
    def sessions(
        self, count: int, *, consistent: bool, for_table: TableShape | None = None
    ) -> Iterator[Sequence[TableSession]]:
        """At most ``source.max_connections``, and fewer where the database can show one moment only to fewer."""
        spare = self._dialect.spare if consistent and count > 1 else 0
        count = max(1, min(count + spare, self._source.max_connections))
        subject = str(for_table.table) if for_table else ""
        with self._quota.taken(count, self._source.max_connections), ExitStack() as stack:
            connections = [self._connect(stack, subject) for _ in range(count)]
            with _understood(self._driver, subject):
                begun, one_moment = self._dialect.begin(connections, consistent=consistent, for_table=for_table)
            sessions = [
                Session(self._dialect, self._driver, self._source, connection, consistent=one_moment)
                for connection in connections[:begun]
            ]
            for session in sessions:
                stack.callback(session.close)
            yield sessions

    @contextmanager
    def _connected(self, subject: str) -> Iterator[DriverConnection]:
        with self._quota.taken(1, self._source.max_connections), ExitStack() as stack:
            connection = self._connect(stack, subject)
            with _understood(self._driver, subject):
                yield connection

    def _connect(self, stack: ExitStack, subject: str) -> DriverConnection:
        with _understood(self._driver, subject):
            connection = self._driver.connect()
            stack.callback(_close_quietly, connection, self._driver)
            self._dialect.prepare(connection)
        return connection


class Session:
    """Implements ``ports.TableSession``."""

    def __init__(
        self, dialect: Dialect, driver: Driver, source: SqlSource, connection: DriverConnection, *, consistent: bool
    ) -> None:
        self.consistent = consistent
        self._dialect = dialect
        self._driver = driver
        self._source = source
        self._connection = connection
        self._in_use = threading.Lock()
        self._closed = threading.Event()

    def position(self, shape: TableShape, change: Change, column: str | None) -> str | None:
        return self._text(shape, self._dialect.position(shape, change, column).sql)

    def oldest(self, shape: TableShape, change: Change, capture: str | None) -> str | None:
        statement = self._dialect.oldest(shape, change, capture)
        return None if statement is None else self._text(shape, statement.sql)

    def cut(self, shape: TableShape, column: str, rows: int) -> list[KeyRange]:
        with self._statement(shape):
            return self._dialect.cut(self._connection, shape, column, rows)

    def summary(self, selection: Selection, *, checksums: bool) -> Summary:
        count, columns = 0, dict[str, ColumnSum]()
        for statement in self._dialect.summaries(selection, checksums=checksums):
            with self._statement(selection.shape):
                ((rows, *sums),) = self._connection.rows(statement.sql, statement.parameters)
            count = int(rows)
            for column, nulls, total in zip(statement.columns, sums[::2], sums[1::2], strict=True):
                columns[column.name] = ColumnSum(int(nulls), int(total))
        return Summary(count, columns, self._dialect.definition)

    def batches(self, selection: Selection, *, batch_bytes: int) -> "Iterator[pa.RecordBatch]":
        statement = self._dialect.rows(selection)
        subject = str(selection.shape.table)
        pace, rows_per_s = pace_of(self._source.connection), self._source.rows_per_s
        with self._statement(selection.shape):
            batches = self._connection.batches(statement, batch_bytes=batch_bytes)
        is_over = False
        try:
            while True:
                with self._statement(selection.shape):
                    batch = next(batches, None)
                if batch is None:
                    is_over = True
                    return
                if not batch.num_rows:
                    continue
                yield conform(batch, statement.columns, subject)
                rows = batch.num_rows
                # It may hold a long value, and the next one is on its way.
                del batch
                if rows_per_s:
                    self._closed.wait(pace.delay_s(rows, rows_per_s))
        finally:
            self._end(batches, is_over=is_over)

    def broken_rows(self, selection: Selection, rule: RowRule) -> int:
        statement = self._dialect.broken_rows(selection, rule)
        with self._statement(selection.shape):
            ((rows,),) = self._connection.rows(statement.sql, statement.parameters)
        return int(rows)

    def try_rule(self, shape: TableShape, rule: RowRule) -> None:
        statement = self._dialect.trial(Selection(shape), rule)
        with self._statement(shape):
            self._connection.rows(statement.sql, statement.parameters)

    def age_s(self, shape: TableShape, column: str) -> float | None:
        statement = self._dialect.age(shape, column)
        with self._statement(shape):
            ((age,),) = self._connection.rows(statement.sql, statement.parameters)
        return None if age is None else float(age)

    def close(self) -> None:
        self._closed.set()
        # A statement that has not begun yet when it is cancelled is not cancelled.
        while not self._in_use.acquire(timeout=_CANCEL_AGAIN_S):
            with suppress(*self._driver.errors):
                self._connection.cancel()
        try:
            _close_quietly(self._connection, self._driver)
        finally:
            self._in_use.release()

    def _end(self, batches: "Iterator[pa.RecordBatch]", *, is_over: bool) -> None:
        close = getattr(batches, "close", None)
        if close is not None:
            # What a driver says of a statement that nobody wants any more is of no interest.
            with self._in_use, suppress(*self._driver.errors):
                close()
                if not is_over and not self._closed.is_set():
                    self._dialect.recover(self._connection)

    def _text(self, shape: TableShape, sql: str) -> str | None:
        with self._statement(shape):
            ((value,),) = self._connection.rows(sql)
        return None if value is None else str(value)

    @contextmanager
    def _statement(self, shape: TableShape) -> Iterator[None]:
        with self._in_use:
            if self._closed.is_set():
                raise _broken_off(shape)
            try:
                with _understood(self._driver, str(shape.table)):
                    yield
            except MigrationError as error:
                if self._closed.is_set():
                    raise _broken_off(shape) from error
                # Where the connection is gone, the failure that led here says so.
                with suppress(*self._driver.errors):
                    self._dialect.recover(self._connection)
                raise


def _broken_off(shape: TableShape) -> ConnectionLost:
    return ConnectionLost("the session was closed while it was read", code="session_closed", subject=str(shape.table))


@contextmanager
def _understood(driver: Driver, subject: str) -> Iterator[None]:
    try:
        yield
    except driver.errors as error:
        raise driver.classify(error, subject) from error


def _close_quietly(connection: DriverConnection, driver: Driver) -> None:
    with suppress(*driver.errors):
        connection.close()
