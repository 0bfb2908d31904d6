"""Tables in the emulated lake, and what readers that know nothing of this app find there."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import duckdb
import pyarrow as pa
from deltalake import DeltaTable

from shared.clients.lake_tables import open_lake_table
from shared.clients.lake_tables.arrow import schema_of
from shared.clients.onelake import OneLake
from shared.ports.tables import Committed, LakeColumn, LakeTable, PartFile, PartOptions, TableCommit
from tests.support.emulated import LAKEHOUSE, LAKEHOUSE_ID, WORKSPACE_ID, Lake

SMALL = PartOptions("zstd", file_bytes=256 * 1024, row_group_bytes=64 * 1024)
Row = dict[str, Any]


async def discarded(table: LakeTable, keep: Sequence[str] = ()) -> int:
    """How many files that no commit refers to were there; they are gone."""
    return await table.remove(await table.leftovers(keep))


@functools.cache
def _duckdb() -> duckdb.DuckDBPyConnection:
    """One for all tests of a process, since making it takes ten times as long as reading; it keeps no file."""
    return duckdb.connect(config={"enable_external_file_cache": False})


class EmulatedTable:
    """One table that only one test uses."""

    def __init__(self, lake: Lake, format: Literal["parquet", "delta"], name: str = "t") -> None:
        self.lake = lake
        self.format = format
        self.path = f"Tables/{lake.name}_{name}" if format == "delta" else f"Files/{lake.name}/src/dbo/{name}"
        self.folder = lake.emulators.lake_folder / LAKEHOUSE / self.path

    def open(
        self, *, onelake: OneLake | None = None, run: str = "run-1", owner: str = "job", **options: Any
    ) -> LakeTable:
        return open_lake_table(
            onelake or self.lake.onelake, WORKSPACE_ID, LAKEHOUSE_ID, self.path, self.format,
            owner=owner, run=run, **{"options": SMALL, **options},
        )  # fmt: skip

    def faults(self, *rules: dict[str, Any]) -> None:
        """Faults for calls about this table."""
        self.lake.emulators.set_faults([{"path": f"*/{self.path}*", **rule} for rule in rules])

    async def write(
        self, table: LakeTable, columns: Sequence[LakeColumn], rows: Sequence[Mapping[str, Any]],
        *, options: PartOptions = SMALL, changes: bool = False, name: str = "0",
    ) -> list[PartFile]:  # fmt: skip
        writer = table.writer(name, columns, options, changes=changes)
        if rows:
            given = pa.Table.from_pylist([dict(row) for row in rows], schema=schema_of(columns))
            for batch in given.to_batches():
                await writer.write(batch)
        return await writer.close()

    async def commit(
        self, table: LakeTable, columns: Sequence[LakeColumn], parts: Sequence[PartFile], *,
        number: int = 0, run: str = "run-1", disposition: str = "append", **options: Any,
    ) -> Committed:  # fmt: skip
        return await table.commit(
            TableCommit(
                number=number, run=run, disposition=disposition, columns=tuple(columns), parts=tuple(parts),
                **{"deletes": "soft", "key": (), "position": {}, **options},
            )
        )  # fmt: skip

    # -- readers that are none of ours ---------------------------------------------------------------------------

    def files(self) -> list[Path]:
        """The data files that a reader of this format follows, in the order in which they were written."""
        if self.format == "delta":
            if not (self.folder / "_delta_log").exists():
                return []
            return sorted(
                (Path(uri) for uri in DeltaTable(str(self.folder)).file_uris()), key=lambda f: f.stat().st_mtime
            )
        pointer = self.folder / "_current.json"
        if not pointer.exists():
            return []
        folders = json.loads(pointer.read_text())["folders"]
        return [file for folder in folders for file in sorted((self.folder / folder).glob("[!_.]*.parquet"))]

    def rows(self, order_by: str = "") -> list[Row]:
        """What DuckDB reads from the disk."""
        files = self.files()
        if not files:
            return []
        with _duckdb().cursor() as connection:
            connection.execute("SET TimeZone = 'UTC'")
            names = ", ".join(f"'{file}'" for file in files)
            sql = f"SELECT * FROM read_parquet([{names}], union_by_name = true)"
            found = connection.sql(f"{sql} ORDER BY {order_by}" if order_by else sql).to_arrow_table()
        rows: list[Row] = found.to_pylist()
        return rows

    def left_over(self) -> list[str]:
        """Data files on the disk that no reader of any version follows, and folders of work under way."""
        known = {str(file) for file in self.files()}
        if self.format == "delta":
            for entry in (self.folder / "_delta_log").glob("*.json"):
                for line in entry.read_text().splitlines():
                    action = json.loads(line)
                    if "add" in action:
                        known.add(str(self.folder / action["add"]["path"]))
        work = ("_pending-", "_staging-", "_commit-")
        found = [file for file in self.folder.rglob("*") if file.is_file() and "_delta_log" not in file.parts]
        return sorted(
            str(file.relative_to(self.folder))
            for file in found
            if str(file) not in known
            and (file.suffix == ".parquet" or str(file.relative_to(self.folder)).startswith(work))
        )
