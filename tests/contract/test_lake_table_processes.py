"""Tables in the lake under readers at the same time, under kills, and with little memory."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from shared.ports.tables import LakeColumn, PartOptions
from tests.support.emulated import Lake
from tests.support.lake_tables import SMALL, EmulatedTable, Row, discarded

REPOSITORY = Path(__file__).resolve().parents[2]
COLUMNS = (LakeColumn("id", "int64"), LakeColumn("text", "string"))
CHANGES = (*COLUMNS, LakeColumn("_operation", "string"), LakeColumn("_order", "int64"))
ROWS = 200


class Reader:
    """Reads the table again and again, as a program that knows nothing of who writes it."""

    def __init__(self, table: EmulatedTable) -> None:
        self.seen: set[tuple[int, int, tuple[str, ...]]] = set()
        self.reads = 0
        self.is_to_end = False
        self._table = table

    def read(self) -> None:
        while not self.is_to_end:
            try:
                rows = self._table.rows()
            except (duckdb.IOException, FileNotFoundError):
                # Replaced between the pointer and the files; a reader asks the pointer again.
                continue
            self.seen.add((len(rows), len({row["id"] for row in rows}), tuple(sorted({row["text"] for row in rows}))))
            self.reads += 1


@pytest.mark.parametrize(
    ("format", "disposition"),
    [("parquet", "replace"), ("delta", "replace"), ("delta", "merge")],
)
async def test_readers_meet_one_state_or_the_next(lake: Lake, format: Any, disposition: str) -> None:
    table = EmulatedTable(lake, format)
    reader = Reader(table)
    loads = 8
    for number in range(loads):
        opened = table.open(run=f"run-{number}")
        is_merge = disposition == "merge" and number > 0
        rows: list[Row] = [{"id": n, "text": str(number), "_operation": "update", "_order": n} for n in range(ROWS)]
        if not is_merge:
            rows = [{"id": row["id"], "text": row["text"]} for row in rows]
        parts = []
        for at in range(2):
            columns = CHANGES if is_merge else COLUMNS
            parts += await table.write(opened, columns, rows[at::2], changes=is_merge, name=str(at))
        await table.commit(
            opened, COLUMNS, parts, number=number, run=f"run-{number}", key=("id",), deletes="hard",
            disposition=disposition if number else "append",
        )  # fmt: skip
        if number == 0:
            reading = asyncio.create_task(asyncio.to_thread(reader.read))
        while reader.reads < number and not reading.done():  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    reader.is_to_end = True
    await reading
    assert reader.seen <= {(ROWS, ROWS, (str(number),)) for number in range(loads)}, "never nothing, half or double"
    assert len(reader.seen) > 1


# -- kills -----------------------------------------------------------------------------------------------------------


def start(table: EmulatedTable, **given: Any) -> subprocess.Popen[bytes]:
    document = {
        "environment": table.lake.emulators.environment(), "path": table.path, "format": table.format,
        "run": "killed", "options": dataclasses.asdict(SMALL), "memory_bytes": 1 << 26, "parts": [], **given,
    }  # fmt: skip
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.lake_writer"], cwd=REPOSITORY, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )  # fmt: skip
    assert child.stdin is not None
    child.stdin.write(json.dumps(document).encode())
    child.stdin.close()
    return child


@pytest.mark.parametrize("effects", [2, 6, 9, 11])
@pytest.mark.parametrize(("format", "disposition"), [("parquet", "replace"), ("delta", "append"), ("delta", "merge")])
async def test_a_killed_process_leaves_nothing_or_everything(
    lake: Lake, format: Any, disposition: str, effects: int
) -> None:  # fmt: skip
    table = EmulatedTable(lake, format)
    opened = table.open(run="first")
    old: list[Row] = [{"id": 1, "text": "old"}]
    await table.commit(opened, COLUMNS, await table.write(opened, COLUMNS, old), run="first")
    is_merge = disposition == "merge"
    new: list[Row] = [{"id": 1, "text": "new"}, {"id": 2, "text": "new"}]
    if is_merge:
        new = [{**row, "_operation": "upsert", "_order": row["id"]} for row in new]
    columns = CHANGES if is_merge else COLUMNS
    table.lake.emulators.set_faults([{"fault": "latency", "latency_ms": 20}])
    began = len(lake.emulators.journal())
    child = start(
        table, number=1, disposition=disposition, rows=new, changes=is_merge,
        columns=[dataclasses.asdict(column) for column in columns],
    )  # fmt: skip
    while child.poll() is None and len(lake.emulators.journal()) - began < effects:  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    child.kill()
    child.wait()
    table.lake.emulators.set_faults([])
    texts = {"replace": ["new", "new"], "append": ["old", "new", "new"], "merge": ["new", "new"]}[disposition]
    assert [row["text"] for row in table.rows("id, text DESC")] in (["old"], texts)
    again = table.open(run="again")
    if (await again.state()).applied < 1:
        await discarded(again)
        parts = await table.write(again, columns, new, changes=is_merge)
        assert not (await table.commit(again, COLUMNS, parts, number=1, run="again", disposition=disposition,
                                       key=("id",))).already  # fmt: skip
    else:
        assert (await again.state()).position == {"n": 1}
    await discarded(again)
    assert [row["text"] for row in table.rows("id, text DESC")] == texts
    assert table.left_over() == []


# -- memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disposition", ["merge", "history"])
async def test_a_merge_needs_less_memory_than_the_table(lake: Lake, disposition: str) -> None:
    """Every file of a table of 200 MB is written anew within a fraction of that."""
    table = EmulatedTable(lake, "delta")
    columns = (LakeColumn("id", "int64"), LakeColumn("noise", "binary"))
    options = PartOptions("none", file_bytes=24 << 20, row_group_bytes=2 << 20)
    files, rows, width = 8, 250, 100_000
    opened = table.open()
    for number in range(files):
        writer = opened.writer("0", columns, options)
        for at in range(0, rows, 50):
            ids = range(number * rows + at, number * rows + at + 50)
            await writer.write(pa.record_batch({"id": list(ids), "noise": [os.urandom(width) for _ in ids]}))
        await table.commit(opened, columns, await writer.close(), number=number)
    target_bytes = sum(file.stat().st_size for file in table.files())
    changes = [{"id": number * rows + 5, "_operation": "delete", "_order": number} for number in range(files)]
    child = start(
        table, number=files, disposition=disposition, rows=changes, changes=True,
        columns=[dataclasses.asdict(column) for column in (*columns, *CHANGES[2:])],
        options=dataclasses.asdict(options), memory_bytes=8 << 20,
    )  # fmt: skip
    assert child.stdout is not None
    before, after = json.loads(await asyncio.to_thread(child.stdout.read))
    assert child.wait() == 0
    assert target_bytes > files * rows * width
    assert after - before < target_bytes / 2
    with duckdb.connect() as connection:
        names = ", ".join(f"'{file}'" for file in table.files())
        sql = f"SELECT count(*), count(*) FILTER (_deleted) FROM read_parquet([{names}])"
        assert connection.sql(sql).fetchall() == [(files * rows, files)]
