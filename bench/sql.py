"""Tables of a PostgreSQL into Parquet files: ours beside dlt and ConnectorX, on one server, in one run.

``python3 dev.py bench sql [--narrow N] [--wide N] [--peers A,B] [--memory N,N] [--ways N] [--runs N]``

The benchmark starts the server itself. *narrow* are 5 million rows of eight everyday columns; *wide* have 24 columns,
two of them LOBs, and fewer rows, since what counts of them is bytes. Contenders take turns and each writes into a
folder of its own, whose rows DuckDB then reads and sums up in full; a sum that is not the server's ends the benchmark
with status 1. Ours goes through TLS into the emulated lake, which spends CPU of the same machine; the others write to a
local folder.

``--memory`` measures the peak of ours over tables of several sizes. ``--ways`` reads rows into Arrow and drops them, by
each way to read a PostgreSQL that there is.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench._contenders import Unavailable
from bench._document import UPDATE_FLAG, made_by, write_down
from bench._postgres import PostgresMissing, running
from bench._sql_contenders import SLICES, Arena, Contender, Cost, contenders
from bench._sql_tables import Table, fingerprint_of, make
from bench._sql_ways import table_of_ways
from bench._watch import QUIET_CORES, ContenderFailed, wait_for_quiet
from local.emulators.launch import launch as launch_emulators

_TRIES = 2
_HEAD = (
    "| | does | rows/s | MB/s | s | beside dlt | CPU s/million rows | peak MB | files | MB written "
    "| cores: contender, server, lake, others |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
)


@dataclass
class _Row:
    """One contender's readings of one table; ``missing`` says why there are none."""

    contender: Contender
    costs: list[Cost] = field(default_factory=list)
    missing: str = ""

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(cost, name) for cost in self.costs))


class _Different(Exception):
    """Files do not hold the rows of the table."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; 0, or 1 if a contender left other rows than the table has."""
    arguments = _parser().parse_args(argv)
    # As Ctrl-C does: whoever ends the benchmark must find neither servers nor gigabytes left of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    known = contenders()
    keys = arguments.peers or [contender.key for contender in known]
    if unknown := set(keys) - {contender.key for contender in known}:
        _parser().error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(one.key for one in known)}")
    sections = [made_by("sql", argv)]
    with tempfile.TemporaryDirectory(prefix="onelake-bench-sql-", dir=arguments.work) as folder:
        work = Path(folder)
        # The server may run as somebody else, who has to get through here.
        work.chmod(0o755)
        try:
            with running(work / "postgres") as server, launch_emulators(work / "emulators") as emulators:
                arena = Arena(server, emulators, work)
                make(server, "narrow", 1000)
                server.run("ALTER TABLE narrow_1000 RENAME TO warm")
                tables: dict[tuple[str, int], Table] = {}
                for kind, rows in (("narrow", arguments.narrow), ("wide", arguments.wide)):
                    if not rows:
                        continue
                    table = tables[kind, rows] = _made(arena, kind, rows)
                    chosen = [_Row(contender) for contender in known if contender.key in keys]
                    _compete(arena, table, chosen, arguments)
                    sections.append(_table(table, chosen, server.version))
                    print(f"\n{sections[-1]}\n", flush=True)
                if arguments.memory:
                    sections.append(_memory(arena, tables, arguments))
                    print(f"\n{sections[-1]}\n", flush=True)
                if arguments.ways:
                    way_table = tables.get(("narrow", arguments.ways)) or _made(arena, "narrow", arguments.ways)
                    sections.append(table_of_ways(arena, way_table, arguments.quiet_s))
                    print(f"\n{sections[-1]}\n", flush=True)
        except PostgresMissing as missing:
            print(missing, file=sys.stderr)
            return 1
        except _Different as different:
            print(different, file=sys.stderr)
            return 1
    if arguments.update_docs:
        write_down("sql", "\n\n".join(sections))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py bench sql", description="Tables into Parquet, ours beside its peers.")
    parser.add_argument("--narrow", type=int, default=5_000_000, metavar="N", help="narrow rows (5000000; 0 for none)")
    parser.add_argument("--wide", type=int, default=100_000, metavar="N", help="wide rows (100000; 0 for none)")
    parser.add_argument("--runs", type=int, default=1, help="turns of each contender; the table has medians (1)")
    parser.add_argument("--peers", type=lambda text: text.split(","), metavar="A,B", help="who takes part (all)")
    parser.add_argument(
        "--memory", type=_counts, default=[1_000_000, 5_000_000, 10_000_000], metavar="N,N",
        help="rows of the tables over which ours's memory is measured (1, 5 and 10 million; 0 for none)",
    )  # fmt: skip
    parser.add_argument("--ways", type=int, default=1_000_000, metavar="N", help="rows for each way to read (1000000)")
    parser.add_argument(
        "--quiet-s", type=float, default=0, metavar="S",
        help=f"before each turn wait so long at most until the machine is quiet; repeat it, {_TRIES} times at most, "
        "where the machine was not quiet meanwhile (0)",
    )  # fmt: skip
    parser.add_argument("--work", type=Path, metavar="DIR", help="where everything lies meanwhile (temporary folder)")
    parser.add_argument(UPDATE_FLAG, action="store_true", help="put the tables into docs/performance.md")
    return parser


def _counts(text: str) -> list[int]:
    return [count for count in map(int, text.split(",")) if count]


def _made(arena: Arena, kind: str, rows: int) -> Table:
    print(f"Making {rows:,} {kind} rows ...", flush=True)
    return make(arena.server, kind, rows)


def _compete(arena: Arena, table: Table, rows: list[_Row], arguments: argparse.Namespace) -> None:
    for turn in range(arguments.runs):
        for number, row in enumerate(rows):
            if not row.missing:
                _take_turn(arena, table, row, f"{table.kind}-{turn}-{number}", arguments.quiet_s)


def _take_turn(arena: Arena, table: Table, row: _Row, target: str, quiet_s: float) -> None:
    """One measured reading; where the machine was busy with something else meanwhile, the quietest of a few."""
    costs: list[Cost] = []
    for attempt in range(_TRIES if quiet_s else 1):
        wait_for_quiet(quiet_s)
        try:
            cost, folder = row.contender.read(arena, table, f"{target}-{attempt}")
        except (Unavailable, ContenderFailed) as problem:
            row.missing = str(problem)
            print(f"{table.name}: {row.contender.key}: not measured: {problem}", flush=True)
            return
        found = fingerprint_of(table.kind, folder)
        if found != table.fingerprint:
            raise _Different(
                f"{row.contender.key} left other rows than {table.name} has: {found}, and not {table.fingerprint}"
            )
        shutil.rmtree(folder)
        costs.append(cost)
        if cost.other_cores < QUIET_CORES:
            break
    cost = min(costs, key=lambda one: one.other_cores)
    row.costs.append(cost)
    print(
        f"{table.name}: {row.contender.key}: {cost.elapsed_s:.1f} s, {table.rows / cost.elapsed_s:,.0f} rows/s, "
        f"CPU {cost.cpu_s:.1f} + {cost.server_cpu_s:.1f} + {cost.lake_cpu_s:.1f} s, {cost.peak_bytes / 1e6:.0f} MB, "
        f"{cost.other_cores:.2f} cores busy elsewhere, identical",
        flush=True,
    )


# -- the tables ------------------------------------------------------------------------------------------------------


def _table(table: Table, rows: list[_Row], server: str) -> str:
    dlt = next((row for row in rows if row.contender.key == "dlt" and row.costs), None)
    lines = [
        f"### {table.kind}: {table.rows:,} rows of {table.size_bytes / table.rows:,.0f} bytes, {server}",
        "",
        _HEAD,
    ]
    for row in rows:
        contender = row.contender
        if not row.costs:
            lines.append(f"| {contender.label} | {row.missing} | | | | | | | | | |")
            continue
        elapsed_s = row.median("elapsed_s")
        cells = [
            contender.label,
            contender.does,
            f"{table.rows / elapsed_s:,.0f}",
            f"{table.size_bytes / elapsed_s / 1e6:,.1f}",
            f"{elapsed_s:,.1f}",
            f"{dlt.median('elapsed_s') / elapsed_s:.2f}x" if dlt is not None and dlt is not row else "",
            f"{row.median('cpu_s') / table.rows * 1e6:,.2f}",
            f"{row.median('peak_bytes') / 1e6:,.0f}",
            f"{row.median('files'):,.0f}",
            f"{row.median('written_bytes') / 1e6:,.1f}",
            ", ".join(
                f"{cores:.2f}"
                for cores in (
                    row.median("cpu_s") / elapsed_s,
                    row.median("server_cpu_s") / elapsed_s,
                    row.median("lake_cpu_s") / elapsed_s,
                    row.median("other_cores"),
                )
            ),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"*4 at once* reads {SLICES} slices with 4 sessions of one snapshot. All rows are identical."]
    return "\n".join(lines)


def _memory(arena: Arena, tables: dict[tuple[str, int], Table], arguments: argparse.Namespace) -> str:
    """Peak of the host, started afresh for each table."""
    ours = next(contender for contender in contenders() if contender.key == "run-4")
    lines = [
        "### Memory of ours, 4 at once",
        "",
        "| narrow rows | peak MB | s | rows/s |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for rows in arguments.memory:
        table = tables.get(("narrow", rows)) or _made(arena, "narrow", rows)
        row = _Row(ours)
        _take_turn(arena, table, row, f"memory-{rows}", arguments.quiet_s)
        if row.missing:
            lines.append(f"| {rows:,} | {row.missing} | | |")
            continue
        (cost,) = row.costs
        lines.append(
            f"| {rows:,} | {cost.peak_bytes / 1e6:,.0f} | {cost.elapsed_s:.1f} | {rows / cost.elapsed_s:,.0f} |"
        )
        if (table.kind, rows) not in tables:
            arena.server.run(f"DROP TABLE {table.name}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
