# Statements are made of names and numbers of this module's own.
# ruff: noqa: S608
"""The tables of the SQL benchmark, and what tells whether Parquet files hold the same rows.

*narrow* has eight columns of everyday types, about 90 bytes a row. *wide* has those, fourteen more, and two LOBs of
some kilobytes, with one of two megabytes every 10,000 rows; far fewer rows of it are as many bytes.

Of each row a text is made of all its values, of that its MD5, and of all rows the sum of its first 60 bits: once by
PostgreSQL, and of the files by DuckDB. So order and distribution over files do not matter, and everything else does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import duckdb

from bench._postgres import Postgres

_LOB_EVERY = 10_000
_WIDE_NUMBERS, _WIDE_WORDS = 6, 6


@dataclass(frozen=True, slots=True)
class _Column:
    """``value`` makes it from ``n``, the row's number; ``source`` and ``file`` show it as text, in either's own SQL."""

    name: str
    type: str
    value: str
    source: str
    file: str


def _draw(salt: int) -> str:
    """An integer from 0 to 2**31 - 1 that looks random and is the same each time."""
    return f"abs(hashint8(n * 31 + {salt})::bigint) % 2147483647"


_NARROW = (
    _Column("id", "bigint PRIMARY KEY", "n", "{}::text", "{}::BIGINT::VARCHAR"),
    _Column("quantity", "integer", f"({_draw(1)}) % 1000", "{}::text", "{}::BIGINT::VARCHAR"),
    _Column(
        "price", "numeric(18, 4)", f"CASE WHEN n % 10 <> 0 THEN ({_draw(2)})::numeric / 10000 END",
        "({} * 10000)::bigint::text", "({} * 10000)::BIGINT::VARCHAR",
    ),
    _Column(
        "ordered_at", "timestamp", f"timestamp '2020-01-01' + ({_draw(3)}) * interval '101 milliseconds'"
        " + n % 1000 * interval '1 microsecond'",
        "(extract(epoch FROM {}) * 1000000)::bigint::text", "epoch_us({})::VARCHAR",
    ),
    _Column("name", "varchar(40)", f"CASE WHEN n % 7 <> 0 THEN 'customer ' || ({_draw(4)}) % 100000 || ' é' END",
            "{}", "{}"),
    _Column("is_paid", "boolean", f"({_draw(5)}) % 3 = 0", "{}::int::text", "{}::INTEGER::VARCHAR"),
    _Column("weight", "double precision", f"({_draw(6)}) / 7.0::float8",
            "floor({} * 1000)::bigint::text", "floor({} * 1000)::BIGINT::VARCHAR"),
    _Column("due", "date", f"date '2020-01-01' + (({_draw(7)}) % 3000)::int",
            "({} - date '1970-01-01')::text", "date_diff('day', DATE '1970-01-01', {}::DATE)::VARCHAR"),
)  # fmt: skip
_WIDE = (
    *_NARROW,
    *(
        _Column(f"number_{at}", "bigint", f"({_draw(20 + at)}) * 100003", "{}::text", "{}::BIGINT::VARCHAR")
        for at in range(_WIDE_NUMBERS)
    ),
    *(_Column(f"word_{at}", "varchar(60)", f"md5((n * 7 + {at})::text)", "{}", "{}") for at in range(_WIDE_WORDS)),
    _Column("changed_at", "timestamptz", f"timestamptz '2020-01-01Z' + ({_draw(40)}) * interval '1 second'",
            "(extract(epoch FROM {}) * 1000000)::bigint::text", "epoch_us({})::VARCHAR"),
    _Column("rate", "numeric(38, 10)", f"({_draw(41)})::numeric / 1000000",
            "({} * 1000000)::bigint::text", "({}::DECIMAL(38, 10) * 1000000)::BIGINT::VARCHAR"),
    _Column(
        "body", "text",
        f"CASE WHEN n % {_LOB_EVERY} = 0 THEN repeat(md5(n::text), 65536) ELSE "
        "(SELECT string_agg(md5((n * 100 + part)::text), ' ') FROM generate_series(1, 20 + n % 100) part) END",
        "md5({})", "md5({})",
    ),
    _Column(
        "photo", "bytea",
        "(SELECT string_agg(decode(md5((n * 300 + part)::text), 'hex'), ''::bytea)"
        " FROM generate_series(1, 20 + n % 150) part)",
        "md5({})", "md5({})",
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Table:
    """A table that is there.

    Attributes:
        size_bytes: Of its values as PostgreSQL has them, LOBs uncompressed, without what it adds to rows and pages.
        fingerprint: What its files must have too.
    """

    name: str
    kind: str
    rows: int
    size_bytes: int
    fingerprint: tuple[int, int]


def make(server: Postgres, kind: str, rows: int) -> Table:
    """Make a table and read it once, so that what is in memory is so for everybody."""
    columns = {"narrow": _NARROW, "wide": _WIDE}[kind]
    name = f"{kind}_{rows}"
    server.run(
        f"CREATE UNLOGGED TABLE {name} ({', '.join(f'{column.name} {column.type}' for column in columns)})",
        f"INSERT INTO {name} SELECT {', '.join(column.value for column in columns)} "
        f"FROM generate_series(1, {rows}::bigint) n",
        f"VACUUM (ANALYZE, FREEZE) {name}",
    )
    shown = _shown(columns, "source")
    count, total, size_bytes = server.one(
        f"SELECT count(*), sum(('x' || substr(md5({shown}), 1, 15))::bit(60)::bigint)::text, "
        f"sum(({' + '.join(f'coalesce({_size(column)}, 0)' for column in columns)})::bigint) FROM {name}"
    )
    return Table(name, kind, rows, int(size_bytes), (int(count), int(total)))


def fingerprint_of(kind: str, folder: Path) -> tuple[int, int]:
    """Rows and sum of all Parquet files below a folder."""
    columns = {"narrow": _NARROW, "wide": _WIDE}[kind]
    files = sorted(str(path) for path in folder.rglob("*.parquet"))
    with duckdb.connect() as reader:
        found = reader.execute(
            f"SELECT count(*), sum(('0x' || substr(md5({_shown(columns, 'file')}), 1, 15))::BIGINT) "
            "FROM read_parquet(?)",
            [files],
        ).fetchone()
    assert found is not None
    return int(found[0]), int(found[1] or 0)


def _size(column: _Column) -> str:
    # A LOB's own size is that of what is left of it after compression.
    return f"{'octet_length' if column.type in ('text', 'bytea') else 'pg_column_size'}({column.name})"


def _shown(columns: Sequence[_Column], side: str) -> str:
    return " || '|' || ".join(f"coalesce({str(getattr(column, side)).format(column.name)}, '~')" for column in columns)
