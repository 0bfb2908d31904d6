"""Ways to read a PostgreSQL into Arrow, side by side: rows are read in full, batch by batch, and dropped."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bench._platform import REPOSITORY
from bench._sql_contenders import Arena, Cost, measured
from bench._sql_tables import Table
from bench._watch import ContenderFailed, wait_for_quiet

_WAYS = (
    ("ours", "ours: ADBC, with values cast by the server to what a lake takes, in a transaction"),
    ("ours-odbc", "ours over psqlodbc: blocks bound to arrays, the same casts, in a transaction"),
    ("adbc", "ADBC as it comes (decimals are text)"),
    ("arrow-odbc", "arrow-odbc over psqlodbc, which holds the whole result"),
    ("arrow-odbc-fetch", "arrow-odbc over psqlodbc with a cursor (UseDeclareFetch)"),
    ("pyodbc", "pyodbc over psqlodbc with a cursor, rows to Arrow"),
    ("psycopg", "psycopg with a cursor, rows to Arrow"),
)
_DRIVERS = "/usr/lib/*-linux-gnu/odbc/psqlodbcw.so"


def table_of_ways(arena: Arena, table: Table, quiet_s: float) -> str:
    """Measure each way once; the table of it in Markdown."""
    lines = [
        f"### Ways to read {table.rows:,} narrow rows, with one session", "",
        "| | rows/s | CPU s/million rows | peak MB | cores: reader, server, others |",
        "| --- | ---: | ---: | ---: | --- |",
    ]  # fmt: skip
    driver = next((str(path) for path in sorted(Path("/").glob(_DRIVERS[1:]))), None)
    for name, label in _WAYS:
        if driver is None and "odbc" in name:
            lines.append(f"| {label} | psqlodbc is not installed: apt install odbc-postgresql | | | |")
            continue
        wait_for_quiet(quiet_s)
        try:
            cost = _cost(arena, name, table, driver or "")
        except ContenderFailed as failed:
            lines.append(f"| {label} | {failed} | | | |")
            continue
        print(f"{table.name}: {name}: {table.rows / cost.elapsed_s:,.0f} rows/s", flush=True)
        cores = (cost.cpu_s / cost.elapsed_s, cost.server_cpu_s / cost.elapsed_s, cost.other_cores)
        lines.append(
            f"| {label} | {table.rows / cost.elapsed_s:,.0f} | {cost.cpu_s / table.rows * 1e6:,.2f} | "
            f"{cost.peak_bytes / 1e6:,.0f} | {', '.join(f'{one:.2f}' for one in cores)} |"
        )
    return "\n".join(lines)


def _cost(arena: Arena, name: str, table: Table, driver: str) -> Cost:
    plan = {"url": arena.server.url, "port": arena.server.port, "table": table.name, "driver": driver}
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return measured(arena, [sys.executable, "-m", "bench._sql_ours", name], plan, environment, arena.work / "nothing")
