"""Listing the lake once for the whole plan, instead of asking for each file."""

import time

from shared.engine.catalog import Catalog, Part, PartWriter, Row, decode_index, encode_index
from shared.engine.files_run import FilesRun
from shared.engine.ledger import open_ledger
from shared.engine.run_records import RunRecords
from shared.policy.paths import STAGING_PREFIX, sort_key, staging_prefix
from shared.ports import LakeFile

# An activity hands back its cursor after so long, far below any function timeout.
_BUDGET_S = 120.0
_CHUNK_FILES = 25_000
BEFORE = "before"


async def survey_target(run: FilesRun, survey: str, chunk: int, continuation: str | None) -> tuple[int, str | None]:
    """List the target from ``continuation`` on and write what was seen as one sorted chunk.

    Before a job's first run, the MD5 of each file that is there is listed too, so that what has the same size can be
    compared without a call for each file.

    What an earlier run of this job left half-way beside its targets is deleted: no other run of the job is alive.
    Idempotent: a repeat writes the same chunk again.

    Returns:
        Files of this chunk, and the continuation, None at the end.
    """
    started_s = time.monotonic()
    files: list[LakeFile] = []
    if run.ledger is None:
        run.ledger = await open_ledger(run.records.store, run.job.name, run.pair)
    hashes = survey == BEFORE and not run.ledger.rows
    while True:
        page = await run.lake.list_page(continuation, hashes=hashes)
        for file in page.files:
            if not _is_staging(file.path):
                files.append(file)
            elif _is_own_staging(file.path, run.job.name) and not run.job.dry_run:
                await run.lake.delete(file.path, etag=file.etag)
        continuation = page.continuation
        if continuation is None or len(files) >= _CHUNK_FILES or time.monotonic() - started_s > _BUDGET_S:
            break
    folder = run.records.key(f"survey-{survey}/c{chunk:05d}")
    writer = PartWriter(run.records.store, f"{folder}/part")
    for file in sorted(files, key=lambda file: sort_key(file.path)):
        row: Row = {"path": file.path, "size_bytes": file.size_bytes, "etag": file.etag}
        await writer.add({**row, "md5": file.md5} if hashes else row)
    await writer.flush()
    await run.records.store.put(f"{folder}/index.json", encode_index(writer.parts))
    return len(files), continuation


async def open_survey(records: RunRecords, phase: str) -> Catalog:
    """All chunks of one phase as one catalog."""
    parts: list[Part] = []
    for key in await records.store.list(records.key(f"survey-{phase}")):
        if key.endswith("/index.json"):
            parts += decode_index(await records.store.get(key))
    return Catalog(records.store, parts)


def _is_staging(path: str) -> bool:
    return path.rpartition("/")[2].startswith(STAGING_PREFIX)


def _is_own_staging(path: str, job: str) -> bool:
    return path.rpartition("/")[2].startswith(staging_prefix(job))
