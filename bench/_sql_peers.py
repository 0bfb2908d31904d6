"""The peers of the SQL benchmark, as a program in an environment of their own: it imports nothing of this repository.

``python _sql_peers.py NAME`` imports what it needs, says ``ready``, waits for a line, reads the table that the JSON on
that line names into Parquet files in a local folder, and answers with the seconds that it took.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

_CHUNK_ROWS = 100_000

Work = Callable[[dict[str, Any]], None]


def _dlt(backend: str) -> Work:
    """One table by dlt's own SQL source into its own filesystem destination, extracted, normalized and loaded."""
    import dlt
    from dlt.sources.sql_database import sql_table

    def work(plan: dict[str, Any]) -> None:
        options: dict[str, Any] = {"backend": backend, "chunk_size": _CHUNK_ROWS}
        if backend == "connectorx":
            options["backend_kwargs"] = {"return_type": "arrow"}
        else:
            # Precision of decimals, so that they do not travel as text.
            options["reflection_level"] = "full_with_precision"
        pipeline = dlt.pipeline(
            "bench", pipelines_dir=os.path.join(plan["work"], "pipelines"), dataset_name="bench",  # noqa: PTH118
            destination=dlt.destinations.filesystem(bucket_url="file://" + plan["folder"]),
        )  # fmt: skip
        url = plan["url"].replace("postgresql://", "postgresql+psycopg2://")
        table = sql_table(credentials=url, schema="public", table=plan["table"], **options)
        pipeline.run(table, loader_file_format="parquet", write_disposition="replace").raise_on_failed_jobs()

    return work


def _connectorx(partitions: int) -> Work:
    """The whole table into memory, and from there into one file."""
    import connectorx
    import pyarrow.parquet as parquet

    def work(plan: dict[str, Any]) -> None:
        cut = {"partition_on": "id", "partition_num": partitions} if partitions > 1 else {}
        query = f"SELECT * FROM {plan['table']}"  # noqa: S608 - the benchmark's own name
        table = connectorx.read_sql(plan["url"], query, return_type="arrow", **cut)
        os.makedirs(plan["folder"], exist_ok=True)  # noqa: PTH103
        parquet.write_table(table, os.path.join(plan["folder"], "part-0.parquet"), compression="zstd")  # noqa: PTH118

    return work


def _made(name: str) -> Work:
    if name.startswith("dlt-"):
        return _dlt(name.removeprefix("dlt-"))
    return _connectorx(int(name.removeprefix("connectorx-")))


def _main(name: str) -> None:
    work = _made(name)
    print("ready", flush=True)
    plan = json.loads(sys.stdin.readline())
    began_s = time.perf_counter()
    work(plan)
    # dlt writes its progress to the same stream.
    print(json.dumps({"bench_elapsed_s": time.perf_counter() - began_s}), flush=True)
    # Whoever measures looks at CPU and memory now, while the process is still there.
    sys.stdin.readline()


if __name__ == "__main__":
    _main(sys.argv[1])
