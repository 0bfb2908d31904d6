"""A process of its own that commits to a table of the emulated lake: what a kill hits, and whose memory is measured.

Reads one JSON document from its standard input; prints the peak of its memory in bytes before and after the commit.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
import time
from typing import Any

import pyarrow as pa

from shared.clients.credentials import STORAGE_SCOPE, TokenSource, build_credential, parse_credential
from shared.clients.lake_tables import open_lake_table
from shared.clients.lake_tables.arrow import schema_of
from shared.clients.onelake import OneLake
from shared.ports.tables import LakeColumn, PartFile, PartOptions, TableCommit
from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID


async def commit(given: dict[str, Any]) -> None:
    environment = given["environment"]
    credential = parse_credential("CREDENTIAL_ONELAKE", environment["CREDENTIAL_ONELAKE"])
    bundle = environment["CA_BUNDLE"]
    tokens = TokenSource(lambda: build_credential(credential, bundle), STORAGE_SCOPE, time.time)
    lake = OneLake(environment["ONELAKE_DFS_URL"], tokens, ca_bundle=bundle, memory_bytes=16 * 1024 * 1024)
    try:
        options = PartOptions(**given["options"])
        table = open_lake_table(
            lake, WORKSPACE_ID, LAKEHOUSE_ID, given["path"], given["format"], owner="job", run=given["run"],
            options=options, memory_bytes=given["memory_bytes"],
        )  # fmt: skip
        columns = [LakeColumn(**column) for column in given["columns"]]
        parts = [PartFile(**part) for part in given["parts"]]
        if given["rows"] is not None:
            writer = table.writer("0", columns, options, changes=given["changes"])
            rows = pa.Table.from_pylist(given["rows"], schema=schema_of(columns))
            for batch in rows.to_batches():
                await writer.write(batch)
            parts = await writer.close()
        before = peak_bytes()
        table_columns = tuple(column for column in columns if not column.name.startswith("_"))
        await table.commit(
            TableCommit(
                number=given["number"], run=given["run"], disposition=given["disposition"], deletes="soft",
                columns=table_columns, key=("id",), parts=tuple(parts), position={"n": given["number"]},
            )
        )  # fmt: skip
        sys.stdout.write(json.dumps([before, peak_bytes()]))
    finally:
        await lake.close()
        await tokens.close()


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    asyncio.run(commit(json.load(sys.stdin)))
