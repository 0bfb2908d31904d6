"""SQLite with tables of changes, so that what the engine makes of change tracking and CDC runs for real.

Triggers write each change into ``_log_<table>``; all changes of one :meth:`ChangingSource.transaction` have one
version, as rows of one transaction have one LSN. What lies at or below the floor has been cleaned up.

- ``tracking`` tells, for each key that was touched, the row as it is in the moment that is read, or that it is gone.
- ``cdc`` tells every change with its image; ``net`` the last one of each key. Rows come in the wrong order on purpose:
  only ``_order`` says which was first.
- ``rowversion`` is a column that whoever writes sets to the version.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.clients.sql.database import Database
from shared.clients.sql.dialect import DriverConnection, Statement
from shared.clients.sql.sqlite import SqliteDialect, SqliteDriver
from shared.model.sql_job import SqlJob
from shared.policy.sql.names import TableName
from shared.ports.tables import (
    Capture,
    Change,
    DatabaseFacts,
    LakeColumn,
    Selection,
    SourceColumn,
    TableShape,
    Tracking,
    Window,
)

_NO_LSN = "0x" + "F" * 20


class ChangingSource:
    """A SQLite file, and what somebody else does with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self.connect() as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("CREATE TABLE _clock (version INTEGER, floor INTEGER, fork TEXT)")
            connection.execute("INSERT INTO _clock VALUES (0, 0, '')")
            # Of each capture of a table: what it has, and the last version before it.
            connection.execute("CREATE TABLE _captures (table_name TEXT, name TEXT, columns TEXT, since INTEGER, "
                               "note TEXT DEFAULT '')")  # fmt: skip
            connection.execute("CREATE TABLE _tracking (table_name TEXT, name TEXT, since INTEGER)")

    def connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.path, timeout=30)

    def run(self, *statements: str) -> None:
        """One transaction; all that it changes has one version."""
        connection = self.connect()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE _clock SET version = version + 1")
            for statement in statements:
                connection.execute(statement)
        connection.close()

    def many(self, statement: str, rows: Sequence[Sequence[Any]]) -> None:
        connection = self.connect()
        with connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE _clock SET version = version + 1")
            connection.executemany(statement, rows)
        connection.close()

    def track(self, table: str, key: str = "id") -> None:
        """Write the table's changes down from now on."""
        connection = self.connect()
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        log = f"_log_{table}"
        named = ", ".join(columns)
        gone = ", ".join(f"OLD.{name}" if name == key else "NULL" for name in columns)
        image = ", ".join(f"NEW.{name}" for name in columns)
        version = "(SELECT version FROM _clock)"
        insert = f"INSERT INTO {log} (_v, _op, {named})"
        same, other = f"WHEN OLD.{key} IS NEW.{key}", f"WHEN OLD.{key} IS NOT NEW.{key}"
        with connection:
            connection.execute(f"CREATE TABLE {log} (_seq INTEGER PRIMARY KEY, _v INTEGER, _op TEXT, {named})")
            # Another key is another row.
            for name, event, when, told in (
                ("insert", "INSERT", "", [("insert", image)]), ("update", "UPDATE", same, [("update", image)]),
                ("rekey", "UPDATE", other, [("delete", gone), ("insert", image)]),
                ("delete", "DELETE", "", [("delete", gone)]),
            ):  # fmt: skip
                body = " ".join(f"{insert} VALUES ({version}, '{operation}', {values});" for operation, values in told)
                connection.execute(f"CREATE TRIGGER {log}_{name} AFTER {event} ON {table} {when} BEGIN {body} END")
            connection.execute("INSERT INTO _tracking SELECT ?, 'log', version FROM _clock", (table,))
            connection.execute("INSERT INTO _captures VALUES (?, ?, ?, 0, '')", (table, table, ",".join(columns)))
        connection.close()

    def capture(self, table: str, name: str, columns: Sequence[str], since: int | None = None) -> None:
        """A second capture; without ``since`` the last version before it is not known yet."""
        connection = self.connect()
        with connection:
            connection.execute("INSERT INTO _captures VALUES (?, ?, ?, ?, '')",
                               (table, name, ",".join(columns), since))  # fmt: skip
        connection.close()

    def truncate(self, table: str) -> None:
        """Empty a table; no change tells of it, and the version stays what it is."""
        connection = self.connect()
        with connection:
            triggers = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?",
                                          (table,)).fetchall()  # fmt: skip
            for name, _ in triggers:
                connection.execute(f"DROP TRIGGER {name}")
            connection.execute(f"DELETE FROM {table}")
            connection.execute(f"DELETE FROM _log_{table}")
            for _, sql in triggers:
                connection.execute(sql)
            connection.execute("UPDATE _tracking SET since = (SELECT version FROM _clock) WHERE table_name = ?",
                               (table,))  # fmt: skip
        connection.close()

    def keep(self, backup: Path) -> None:
        with self.connect() as connection, sqlite3.connect(backup) as kept:
            connection.backup(kept)

    def restore(self, backup: Path, fork: str = "") -> None:
        """As it was when it was kept, from where it goes on; ``fork`` is what it says of that."""
        with sqlite3.connect(backup) as kept, self.connect() as connection:
            kept.backup(connection)
        self.restore_mark(fork)

    def restore_mark(self, fork: str) -> None:
        with self.connect() as connection:
            connection.execute("UPDATE _clock SET fork = ?", (fork,))

    def clean_up(self) -> None:
        """Forget all changes so far, as retention does."""
        connection = self.connect()
        with connection:
            for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE '\\_log\\_%' ESCAPE '\\' "
                                              "AND type = 'table'").fetchall():  # fmt: skip
                connection.execute(f"DELETE FROM {name}")
            connection.execute("UPDATE _clock SET floor = version")
        connection.close()

    def rows(self, table: str) -> list[dict[str, Any]]:
        connection = self.connect()
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute(f'SELECT * FROM "{table}"')]
        connection.close()
        return found

    def database(self, job: SqlJob) -> Database:
        driver = SqliteDriver(str(self.path), setting=job.source.connection, statement_timeout_s=60)
        return Database(ChangeTables(job.types), driver, job.source)


class ChangeTables(SqliteDialect):
    def facts(self, connection: DriverConnection) -> DatabaseFacts:
        ((fork,),) = connection.rows("SELECT fork FROM _clock")
        return replace(super().facts(connection), fork=str(fork))

    def tables(self, connection: DriverConnection) -> Sequence[TableName]:
        return [table for table in super().tables(connection) if not table.name.startswith("_")]

    def describe(self, connection: DriverConnection, table: TableName, query: str | None) -> TableShape:
        shape = super().describe(connection, table, query)
        ((logged,),) = connection.rows("SELECT COUNT(*) FROM sqlite_master WHERE name = ?", (f"_log_{table.name}",))
        if not logged or query is not None:
            return shape
        captures = connection.rows(
            "SELECT name, columns, since, note FROM _captures WHERE table_name = ? ORDER BY rowid", (table.name,)
        )
        ((tracking, began),) = connection.rows("SELECT name, since FROM _tracking WHERE table_name = ?", (table.name,))
        return replace(
            shape, tracked=True, tracking=Tracking(str(tracking), str(began)),
            captures=tuple(
                Capture(str(name), tuple(str(columns).split(",")), net=True, since=_NO_LSN if since is None else
                        f"0x{since:020x}", note=str(note))
                for name, columns, since, note in captures
            ),
        )  # fmt: skip

    def position(self, shape: TableShape, change: Change, column: str | None) -> Statement:
        if change == "tracking":
            return Statement("SELECT CAST(version AS TEXT) FROM _clock")
        if change == "cdc":
            return Statement("SELECT printf('0x%020x', version) FROM _clock")
        if change == "rowversion":
            return Statement("SELECT printf('0x%016x', version + 1) FROM _clock")
        return super().position(shape, change, column)

    def oldest(self, shape: TableShape, change: Change, capture: str | None) -> Statement | None:
        name = self.text(shape.table.name)
        if change == "tracking":
            began = f"(SELECT since FROM _tracking WHERE table_name = {name})"
            return Statement(f"SELECT CAST(MAX(floor, {began}) AS TEXT) FROM _clock")
        if change == "cdc":
            since = f"(SELECT since FROM _captures WHERE table_name = {name} AND name = {self.text(capture or '')})"
            last = f"CASE WHEN {since} IS NULL THEN '{_NO_LSN}' ELSE printf('0x%020x', MAX(floor, {since})) END"
            return Statement(f"SELECT {last} FROM _clock")
        if change == "rowversion":
            return None
        return super().oldest(shape, change, capture)

    def source(self, selection: Selection) -> str:
        window, shape = selection.window, selection.shape
        if window is None or window.change not in ("tracking", "cdc"):
            return super().source(selection)
        low, high = int(window.after or "0", 0), int(window.upto, 0)
        log, key = f'"_log_{shape.table.name}"', self.quoted(shape.key[0])
        changed = f"SELECT * FROM {log} WHERE _v > {low} AND _v <= {high}"
        last = f"SELECT {key}, MAX(_seq) AS _seq FROM ({changed}) GROUP BY {key}"
        if window.change == "cdc":
            rows = f"SELECT * FROM {log} WHERE _seq IN (SELECT _seq FROM ({last}))" if window.net else changed
            return f"({rows} ORDER BY _seq DESC) AS t"
        now = self.table(shape.table)
        columns = ", ".join(
            f"c.{key} AS {key}" if column.name == shape.key[0] else f"n.{self.quoted(column.name)}"
            for column in shape.columns
        )
        gone = f"CASE WHEN n.{key} IS NULL THEN 'delete' ELSE 'upsert' END AS _op"
        return (
            f"(SELECT {columns}, {gone}, l._v AS _v, l._seq AS _seq FROM ({last}) AS c JOIN {log} AS l "
            f"ON l._seq = c._seq LEFT JOIN {now} AS n ON n.{key} = c.{key} ORDER BY c._seq DESC) AS t"
        )

    def change_columns(self, selection: Selection) -> list[tuple[LakeColumn, str]]:
        if selection.window is None or selection.window.change not in ("tracking", "cdc"):
            return []
        return [
            (LakeColumn("_operation", "string"), "t._op"),
            (LakeColumn("_position", "string"), "CAST(t._v AS TEXT)"),
            (LakeColumn("_order", "int64"), "t._seq"),
        ]

    def window(self, selection: Selection, window: Window) -> list[str]:
        if window.change == "rowversion":
            value = self.reference(selection, self.column(selection.shape, window.column or ""))
            return [f"{value} >= {int(window.after or '0', 0)}", f"{value} < {int(window.upto, 0)}"]
        return super().window(selection, window) if window.change == "watermark" else []

    def projection(self, selection: Selection, column: SourceColumn, value: str) -> tuple[str, ...]:
        # Rows of changes have no rowid of the table's.
        if selection.window is not None and selection.window.change in ("tracking", "cdc"):
            facts = {name: fact for name, fact in selection.shape.facts.items() if name != "rowid"}
            selection = replace(selection, shape=replace(selection.shape, facts=facts))
        return super().projection(selection, column, value)
