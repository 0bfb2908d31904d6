"""The databases that every test of the contract runs on, each empty, and what a test asks of them beside reading."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from shared.clients.sql import open_database
from shared.model.sql_job import SqlSource, Types
from shared.policy.sql.names import TableName
from shared.ports.tables import Selection, TableDatabase, TableSession, TableShape
from tests.support.checksums import integer_of
from tests.support.postgres import PostgresDatabase, odbc_missing

BATCH_BYTES = 1 << 20
KINDS = ("sqlite", "postgresql", "postgresql-odbc")
_SETTINGS = itertools.count(1)


class World:
    """A database of one kind.

    Attributes:
        dialect: ``sqlite``, ``postgresql``.
        schema: Where tables are made without a schema's name.
        value: Of the setting that holds the connection.
    """

    def __init__(self, dialect: str, schema: str, value: str, connect: Callable[[], Any]) -> None:
        self.dialect, self.schema, self.value, self._connect = dialect, schema, value, connect
        self.mark = "?" if dialect == "sqlite" else "%s"
        self._default: TableDatabase | None = None

    def open(self, **source: Any) -> TableDatabase:
        """Under a setting of its own, since caps hold for a setting in all of a process."""
        return open_database(self.value, SqlSource(connection=f"DB_{next(_SETTINGS)}", **source), Types())

    @property
    def database(self) -> TableDatabase:
        if self._default is None:
            self._default = self.open()
        return self._default

    def run(self, *statements: str) -> None:
        """As somebody else who works with the database, in one transaction."""
        connection = self._connect()
        try:
            for statement in statements:
                connection.execute(statement.encode() if self.dialect == "postgresql" else statement)
            connection.commit()
        finally:
            connection.close()

    def insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        """``table`` is quoted already."""
        if not rows:
            return
        connection = self._connect()
        try:
            marks = ", ".join([self.mark] * len(rows[0]))
            escaped = table.replace("%", "%%") if self.mark == "%s" else table
            connection.cursor().executemany(f"INSERT INTO {escaped} VALUES ({marks})", rows)
            connection.commit()
        finally:
            connection.close()

    def shape(self, name: str, query: str | None = None) -> TableShape:
        return self.database.describe(TableName("" if query else self.schema, name), query)

    def read(self, selection: Selection) -> list[dict[str, Any]]:
        with self.database.sessions(1, consistent=True) as (session,):
            return rows_of(session, selection)


@pytest.fixture(params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    kind = request.param
    if kind == "sqlite":
        path = tmp_path / "shop.db"
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        yield World("sqlite", "", f"sqlite:///{path}", lambda: sqlite3.connect(path, timeout=30))
        return
    if kind == "postgresql-odbc" and (missing := odbc_missing()):
        pytest.skip(missing)
    postgres: PostgresDatabase = request.getfixturevalue("postgres")
    yield World("postgresql", "public", postgres.url if kind == "postgresql" else postgres.odbc, postgres.connect)


def rows_of(session: TableSession, selection: Selection) -> list[dict[str, Any]]:
    return [row for batch in session.batches(selection, batch_bytes=BATCH_BYTES) for row in batch.to_pylist()]


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def totals(rows: Sequence[dict[str, Any]], shape: TableShape, definition: str) -> dict[str, tuple[int, int]]:
    """Nulls and total of each column."""
    return {
        column.name: (
            sum(row[column.name] is None for row in rows),
            sum(integer_of(row[column.name], column.type, definition) for row in rows if row[column.name] is not None),
        )
        for column in shape.lake_columns
    }
