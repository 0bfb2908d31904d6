"""Programs of the SQL benchmark in this repository's own environment: ``python -m bench._sql_ours NAME``.

As those of `bench._sql_peers` they import what they need, say ``ready``, wait for a line of JSON, do their work and
answer with the seconds that it took. ``engine`` extracts one table into the lake; the others read it and drop it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

_FETCH_ROWS = 10_000
_BATCH_BYTES = 16 * 1024 * 1024

Plan = dict[str, Any]
Work = Callable[[Plan], int]


def _engine() -> Work:
    """Reads, encodes and uploads one table as one slice: no orchestration, no plan, no check of what was written."""
    import asyncio

    # A warm host has imported all of it before its first row.
    from shared.clients.lake_tables import open_lake_table, parquet
    from shared.clients.sql import adbc, postgresql
    from shared.engine.sql.sessions import opened
    from shared.policy.sql.names import TableName
    from shared.ports.tables import PartOptions, Selection, TableCommit
    from shared.services import Services
    from shared.settings import read_settings

    assert adbc and parquet and postgresql

    async def extract(plan: Plan) -> int:
        services = Services(read_settings())
        database, job = _database(plan)
        shape = database.describe(TableName("public", plan["table"]))
        options = PartOptions(job.compression, job.files.size, job.files.row_group)
        table = open_lake_table(
            services.onelake("onelake"), plan["workspace_id"], plan["lakehouse_id"], plan["target"], "parquet",
            owner="bench", run="engine", options=options,
        )  # fmt: skip
        columns = shape.lake_columns
        writer = table.writer("s00000", columns, options)
        async with opened(database, 1, consistent=True, shape=shape) as sessions:
            async for batch in sessions[0].batches(Selection(shape), _BATCH_BYTES):
                await writer.write(batch)
        parts = await writer.close()
        await table.commit(TableCommit(
            number=0, run="engine", disposition="append", deletes="soft", columns=columns, key=(), parts=tuple(parts),
            position={},
        ))  # fmt: skip
        return sum(part.rows for part in parts)

    return lambda plan: asyncio.run(extract(plan))


def _database(plan: Plan) -> Any:
    from shared.clients.sql import open_database
    from shared.model.sql_job import SqlJob

    job = SqlJob.model_validate({
        "kind": "sql", "name": "bench", "source": {"connection": "BENCH_DB"}, "tables": [{"table": plan["table"]}],
        "target": {"workspace": "w", "lakehouse": "l", "path": "Files/bench"},
    })  # fmt: skip
    return open_database(plan["url"], job.source, job.types), job


def _ours(*, odbc: bool = False) -> Work:
    from shared.clients.sql import adbc, conform, odbc_blocks, postgresql
    from shared.policy.sql.names import TableName
    from shared.ports.tables import Selection

    assert adbc and conform and odbc_blocks and postgresql

    def work(plan: Plan) -> int:
        database, _ = _database({**plan, "url": _odbc_string(plan, fetch=True)} if odbc else plan)
        shape = database.describe(TableName("public", plan["table"]))
        with database.sessions(1, consistent=True, for_table=shape) as sessions:
            batches = sessions[0].batches(Selection(shape), batch_bytes=_BATCH_BYTES)
            return sum(batch.num_rows for batch in batches)

    return work


def _adbc() -> Work:
    import adbc_driver_postgresql.dbapi as adbc

    def work(plan: Plan) -> int:
        with adbc.connect(plan["url"]) as connection, connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {plan['table']}")  # noqa: S608 - the benchmark's own name
            return sum(batch.num_rows for batch in cursor.fetch_record_batch())

    return work


def _odbc_string(plan: Plan, *, fetch: bool) -> str:
    return (
        f"Driver={plan['driver']};Server=127.0.0.1;Port={plan['port']};Database=bench;UID=bench;SSLmode=disable;"
        f"UseDeclareFetch={int(fetch)};Fetch={_FETCH_ROWS};BoolsAsChar=0"
    )


def _arrow_odbc(*, fetch: bool) -> Work:
    from arrow_odbc import read_arrow_batches_from_odbc

    def work(plan: Plan) -> int:
        batches = read_arrow_batches_from_odbc(
            f"SELECT * FROM {plan['table']}",  # noqa: S608 - the benchmark's own name
            _odbc_string(plan, fetch=fetch),
            batch_size=_FETCH_ROWS,
        )
        return sum(batch.num_rows for batch in batches)

    return work


def _rows_to_arrow(columns: list[str], rows: list[tuple[Any, ...]]) -> int:
    import pyarrow as pa

    arrays = [pa.array(values) for values in zip(*rows, strict=True)]
    return int(pa.record_batch(arrays, names=columns).num_rows)


def _pyodbc() -> Work:
    import pyarrow as pa
    import pyodbc

    assert pa

    def work(plan: Plan) -> int:
        connection = pyodbc.connect(_odbc_string(plan, fetch=True))
        cursor = connection.execute(f"SELECT * FROM {plan['table']}")  # noqa: S608 - the benchmark's own name
        columns = [one[0] for one in cursor.description]
        count = 0
        while rows := cursor.fetchmany(_FETCH_ROWS):
            count += _rows_to_arrow(columns, rows)
        connection.close()
        return count

    return work


def _psycopg() -> Work:
    import psycopg
    import pyarrow as pa

    assert pa

    def work(plan: Plan) -> int:
        count = 0
        with psycopg.connect(plan["url"]) as connection, connection.cursor(name="bench") as cursor:
            cursor.execute(f"SELECT * FROM {plan['table']}".encode())  # noqa: S608 - the benchmark's own name
            columns = [one.name for one in cursor.description or ()]
            while rows := cursor.fetchmany(_FETCH_ROWS):
                count += _rows_to_arrow(columns, rows)
        return count

    return work


_WORK: dict[str, Callable[[], Work]] = {
    "engine": _engine,
    "ours": _ours,
    "ours-odbc": lambda: _ours(odbc=True),
    "adbc": _adbc,
    "arrow-odbc": lambda: _arrow_odbc(fetch=False),
    "arrow-odbc-fetch": lambda: _arrow_odbc(fetch=True),
    "pyodbc": _pyodbc,
    "psycopg": _psycopg,
}


def _main(name: str) -> None:
    work = _WORK[name]()
    print("ready", flush=True)
    plan = json.loads(sys.stdin.readline())
    began_s = time.perf_counter()
    count = work(plan)
    print(json.dumps({"bench_elapsed_s": time.perf_counter() - began_s, "rows": count}), flush=True)
    # Whoever measures looks at CPU and memory now, while the process is still there.
    sys.stdin.readline()


if __name__ == "__main__":
    _main(sys.argv[1])
