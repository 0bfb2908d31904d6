"""Databases as sources of tables: SQL Server, PostgreSQL, SQLite."""
