"""Verification: what the records claim against what the lake shows."""

import asyncio
import hashlib
import time

from shared.engine.files_run import FilesRun
from shared.engine.survey import open_survey
from shared.engine.transfer_batch import hash_lake
from shared.errors import ItemError, TransientError
from shared.model.records import FileRecord
from shared.model.steps import Counts, Verification, no_counts, no_verification

_BUDGET_S = 120.0
_READERS = 128
_READ_ATTEMPTS = 4
# Read by one step, or one file where it is larger: at 50 MB/s, a few minutes.
_STEP_BYTES = 16 * 1024**3
_SHARE_SCALE = 2**32

# Codes of records that verification overruled; what they mean for the ledger is that the lake must be asked again.
MISSING = "missing_in_lake"
WRONG_SIZE = "size_mismatch"
WRONG_HASH = "integrity_mismatch"
UNREADABLE = "not_verified"


async def verify_page(
    run: FilesRun, page: str, survey: str, position: int, sample_share: float
) -> tuple[Verification, Counts, int | None]:
    """Compare one page's records with the lake, from ``position`` of its list of re-reads on.

    The listing is compared for the whole page on the first call (``position`` 0). Files to re-read are chosen by a
    hash of run and path, so that a repeat chooses the same.

    Idempotent: a call judges the records as the transfer left them and the calls before it, never its own words.

    Args:
        run: The run.
        page: The page's name.
        survey: Name of the survey that was made after the transfer.
        position: Where an earlier call ended.
        sample_share: Share of the files to re-read, 0 to 1.

    Returns:
        What this call found, what became failed by it, and the position to go on from (None when the page is done).
    """
    started_s = time.monotonic()
    result = no_verification()
    first = position
    records = [
        record
        for record in await run.records.page_records(page, verified=False)
        if record["status"] in ("uploaded", "skipped", "renamed") and record["hash"]
    ]
    known = await run.records.verdicts(page, before=first) if first else {}
    overruled: dict[str, FileRecord] = {}
    if first == 0 and records:
        if survey not in run.surveys_after:
            run.surveys_after[survey] = await open_survey(run.records, survey)
        catalog = run.surveys_after[survey]
        shown = await catalog.spanning(records[0]["path"], records[-1]["path"])
        for record in records:
            found = shown.get(record["path"])
            result["listed"] += 1
            if found is None:
                result["missing"] += 1
                _overrule(overruled, record, MISSING, "the lake's listing does not show the file")
            elif found["size_bytes"] != record["size_bytes"]:
                result["size_mismatches"] += 1
                _overrule(overruled, record, WRONG_SIZE,
                          f"the lake shows {found['size_bytes']} bytes, not {record['size_bytes']}")  # fmt: skip
    chosen = [r for r in records if _is_chosen(run.records.run, r["path"], sample_share)]
    while position < len(chosen) and time.monotonic() - started_s < _BUDGET_S:
        following = _reach(chosen, position)
        group = [r for r in chosen[position:following] if r["path"] not in overruled and r["path"] not in known]
        for record, found_hash in zip(group, await asyncio.gather(*(_read(run, r) for r in group)), strict=True):
            if found_hash is None:
                result["unreadable"] += 1
                _overrule(overruled, record, UNREADABLE, "the file could not be read back from the lake")
                continue
            result["hashes_checked"] += 1
            if found_hash != record["hash"]:
                result["hash_mismatches"] += 1
                _overrule(overruled, record, WRONG_HASH,
                          f"the bytes in the lake have MD5 {found_hash}, not {record['hash']}")  # fmt: skip
        position = following
    await run.records.put_verdicts(page, first, list(overruled.values()))
    counts = no_counts()
    for record in records:
        if record["path"] in overruled:
            counts["failed"] += 1
            counts[record["status"]] -= 1  # type: ignore[literal-required]
            # Only what a transfer settled was counted in bytes; see transfer_batch.
            counts["bytes_done"] -= record["size_bytes"] if record["attempts"] else 0
    return result, counts, position if position < len(chosen) else None


def _reach(chosen: list[FileRecord], position: int) -> int:
    """Up to where files are read at once: one at least, and no more of them or of their bytes than a step takes."""
    end, left = position + 1, _STEP_BYTES - chosen[position]["size_bytes"]
    while end < min(position + _READERS, len(chosen)) and (left := left - chosen[end]["size_bytes"]) >= 0:
        end += 1
    return end


def _overrule(overruled: dict[str, FileRecord], record: FileRecord, code: str, detail: str) -> None:
    overruled[record["path"]] = {**record, "status": "failed", "error_code": code, "error_detail": detail}


def _is_chosen(run: str, path: str, share: float) -> bool:
    if share >= 1:
        return True
    digest = hashlib.sha256(f"{run}\x00{path}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") < share * _SHARE_SCALE


async def _read(run: FilesRun, record: FileRecord) -> str | None:
    """The hash of what the lake gives back, or None if it gives nothing whole.

    A place in flight for each, so that a service that asks uploads to slow down is not read from faster.
    """
    for attempt in range(1, _READ_ATTEMPTS + 1):
        try:
            async with run.lake.room(record["size_bytes"]) as room, room.turn():
                return await hash_lake(run, record["path"], record["size_bytes"])
        except TransientError as error:
            await asyncio.sleep(error.retry_after_s or 0.2 * 2**attempt)
        except ItemError:
            return None
    return None
