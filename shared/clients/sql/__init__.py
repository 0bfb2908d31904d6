"""Databases as sources of tables: SQL Server, PostgreSQL, SQLite."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shared.model.sql_job import SqlSource, Types
    from shared.ports.tables import TableDatabase


def open_database(
    value: str,
    source: "SqlSource",
    types: "Types",
    *,
    token: Callable[[], str] | None = None,
    ca_bundle: str | None = None,
) -> "TableDatabase":
    """The database of a job's source.

    Args:
        value: Of the setting ``source.connection``: a SQLAlchemy URL or an ODBC connection string.
        source: The job's, with the caps that hold for all of this process that use the same setting.
        types: The job's wishes about values that a lake's types cannot hold.
        token: Gives an access token for ``connection.SQL_SCOPE``; asked for whenever a connection is opened to Azure
            SQL without user and password, in any thread.
        ca_bundle: A PEM file that PostgreSQL's certificate is checked against in place of the system's.

    Raises:
        Configuration: The value is no connection. No connection is opened here.
    """
    from shared.clients.sql.connection import parse_connection
    from shared.clients.sql.database import Database

    connection = parse_connection(source.connection, value, ca_bundle=ca_bundle)
    if connection.dialect == "sqlite":
        from shared.clients.sql.sqlite import SqliteDialect, SqliteDriver

        driver = SqliteDriver(
            connection.text, setting=connection.setting, statement_timeout_s=source.statement_timeout_s
        )
        return Database(SqliteDialect(types), driver, source)
    if connection.dialect == "postgresql" and connection.transport == "native":
        from shared.clients.sql.adbc import AdbcDriver
        from shared.clients.sql.postgresql import PostgresqlDialect

        return Database(
            PostgresqlDialect(types, decimals_as_integers=True),
            AdbcDriver(connection.text, setting=connection.setting, statement_timeout_s=source.statement_timeout_s),
            source,
        )
    from shared.clients.sql.odbc import OdbcDriver

    odbc = OdbcDriver(connection, token=token, statement_timeout_s=source.statement_timeout_s)
    if connection.dialect == "postgresql":
        from shared.clients.sql.postgresql import PostgresqlDialect

        return Database(PostgresqlDialect(types, times_checked_in_sql=True), odbc, source)
    from shared.clients.sql.tsql import TSqlDialect

    return Database(TSqlDialect(types, maxdop=source.maxdop), odbc, source)
