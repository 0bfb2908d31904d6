"""A Delta table as it lies on a disk, read by its log as the protocol says, without the library that wrote it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_LOG = "_delta_log"


def rows_of_delta(table: Path, columns: Sequence[str]) -> list[tuple[Any, ...]]:
    """All rows of the newest version, as Python values, in no particular order.

    Raises:
        OSError: There is no such table, or a file of it is missing.
        ValueError: The table uses what this reader does not know: it would give other rows than there are.
    """
    import pyarrow.parquet as parquet

    rows: list[tuple[Any, ...]] = []
    for path in _files(table):
        found = parquet.ParquetFile(table / path).read(columns=list(columns))
        rows += zip(*(found.column(name).to_pylist() for name in columns), strict=True)
    return rows


def _files(table: Path) -> list[str]:
    commits = _commits(table)
    if not commits:
        raise FileNotFoundError(f"{table} has no {_LOG}")
    if [int(commit.stem) for commit in commits] != list(range(len(commits))):
        raise ValueError(f"the log of {table} does not begin with its first commit")
    live: dict[str, None] = {}
    for commit in commits:
        for line in commit.read_text(encoding="utf-8").splitlines():
            action = json.loads(line)
            if protocol := action.get("protocol"):
                if protocol["minReaderVersion"] > 2:
                    raise ValueError(f"{table} wants a reader of version {protocol['minReaderVersion']}")
            elif metadata := action.get("metaData"):
                if metadata["partitionColumns"] or "delta.columnMapping.mode" in metadata["configuration"]:
                    raise ValueError(f"{table} has partitions or mapped columns")
            elif removed := action.get("remove"):
                live.pop(unquote(removed["path"]), None)
            elif added := action.get("add"):
                live[unquote(added["path"])] = None
    return list(live)


def _commits(table: Path) -> list[Path]:
    return sorted(path for path in (table / _LOG).glob("*.json") if path.stem.isdigit())
