"""Verification: what it finds, what it overrules, and that a repeat of any of its steps finds the same."""

from __future__ import annotations

import hashlib
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from shared.engine import verify_page as verifying
from shared.engine.files_run import FilesRun
from shared.engine.survey import survey_target
from shared.engine.verify_page import verify_page
from shared.model.steps import add_counts, no_counts, no_verification
from tests.support.emulated import Content, Lake
from tests.support.runs import make_run, put_page, record

FILES = {f"f{number:02d}": f"content {number}".encode() for number in range(10)}


@pytest.fixture
async def run(lake: Lake, tmp_path: Path) -> FilesRun:
    for path, data in FILES.items():
        await lake.folder.create(path, Content(data))
    made = make_run(tmp_path, lake=lake.folder)
    await put_page(made.records, "p00001", [
        record(path, "skipped" if path == "f04" else "uploaded", size_bytes=len(data),
               hash=hashlib.md5(data).hexdigest()) for path, data in FILES.items()])  # fmt: skip
    return made


async def break_it(run: FilesRun, lake: Lake) -> None:
    """One file is lost, one has another size, one other bytes of the same size."""
    await lake.folder.delete("f01", etag="")
    await lake.folder.replace("f04", Content(b"short"))
    await lake.folder.replace("f07", Content(b"CONTENT 7"))


async def found_by(run: FilesRun, share: float, *, twice: bool = False) -> tuple[dict[str, int], dict[str, int]]:
    """All steps of one page's verification, each perhaps delivered twice; its sums."""
    await survey_target(run, "after", 0, None)
    total, counts, position = no_verification(), no_counts(), 0
    while position is not None:
        first = await verify_page(run, "p00001", "after", position, share)
        if twice:
            assert await verify_page(run, "p00001", "after", position, share) == first
        for name in total:
            total[name] += first[0][name]  # type: ignore[literal-required]
        add_counts(counts, first[1])
        position = first[2]
    return dict(total), {name: value for name, value in counts.items() if value}


async def codes(run: FilesRun) -> dict[str, str | None]:
    return {one["path"]: one["error_code"] for one in await run.records.page_records("p00001") if one["error_code"]}


@pytest.mark.parametrize("twice", [False, True])
async def test_what_all_finds(run: FilesRun, lake: Lake, twice: bool) -> None:
    await break_it(run, lake)
    total, counts = await found_by(run, 1.0, twice=twice)
    assert total == {
        "listed": 10, "missing": 1, "size_mismatches": 1, "hashes_checked": 8, "hash_mismatches": 1, "unreadable": 0,
    }  # fmt: skip
    assert counts == {"failed": 3, "uploaded": -2, "skipped": -1, "bytes_done": -27}
    assert await codes(run) == {"f01": "missing_in_lake", "f04": "size_mismatch", "f07": "integrity_mismatch"}


@pytest.mark.parametrize("twice", [False, True])
async def test_steps_of_a_page_leave_no_file_out(
    run: FilesRun, lake: Lake, twice: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step reads a few files; what an earlier step overruled must not shift the places of the others."""
    monkeypatch.setattr(verifying, "_READERS", 1)
    await break_it(run, lake)
    ticks = itertools.count()
    monkeypatch.setattr(verifying, "time", SimpleNamespace(monotonic=lambda: next(ticks) * 50.0))
    total, counts = await found_by(run, 1.0, twice=twice)
    assert total == {
        "listed": 10, "missing": 1, "size_mismatches": 1, "hashes_checked": 8, "hash_mismatches": 1, "unreadable": 0,
    }  # fmt: skip
    assert counts == {"failed": 3, "uploaded": -2, "skipped": -1, "bytes_done": -27}
    assert await codes(run) == {"f01": "missing_in_lake", "f04": "size_mismatch", "f07": "integrity_mismatch"}


async def test_a_step_reads_no_more_at_once_than_an_activity_has_time_for(
    run: FilesRun, lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many very large files a page has, one of them a step is enough to come to its end."""
    monkeypatch.setattr(verifying, "_STEP_BYTES", 2 * len(FILES["f00"]))
    read, begun = run.lake.read, 0

    def watched(path: str, size_bytes: int = 0) -> Any:
        nonlocal begun
        begun += 1
        return read(path, size_bytes)

    monkeypatch.setattr(run.lake, "read", watched)
    ticks = itertools.count()
    monkeypatch.setattr(verifying, "time", SimpleNamespace(monotonic=lambda: next(ticks) * 100.0))
    await survey_target(run, "after", 0, None)
    position: int | None = 0
    steps: list[int] = []
    while position is not None:
        begun = 0
        _, _, position = await verify_page(run, "p00001", "after", position, 1.0)
        steps.append(begun)
    assert steps == [2, 2, 2, 2, 2]


async def test_a_sound_page_passes(run: FilesRun) -> None:
    total, counts = await found_by(run, 1.0, twice=True)
    assert total == {**no_verification(), "listed": 10, "hashes_checked": 10}
    assert counts == {}
    assert await codes(run) == {}


async def test_the_listing_alone_reads_nothing_back(run: FilesRun, lake: Lake) -> None:
    await break_it(run, lake)
    total, counts = await found_by(run, 0.0)
    assert (total["missing"], total["size_mismatches"], total["hashes_checked"]) == (1, 1, 0)
    assert counts == {"failed": 2, "uploaded": -1, "skipped": -1, "bytes_done": -18}


async def test_a_sample_is_the_same_every_time(run: FilesRun) -> None:
    samples = []
    for _ in range(2):
        samples.append((await found_by(run, 0.5))[0]["hashes_checked"])
    assert samples[0] == samples[1]
    assert 0 < samples[0] < 10
    assert not verifying._is_chosen("run", "caf\udce9", 0.0)


async def test_what_cannot_be_read_back_is_not_verified(run: FilesRun, lake: Lake) -> None:
    await survey_target(run, "after", 0, None)
    await lake.folder.delete("f02", etag="")
    total, counts, position = await verify_page(run, "p00001", "after", 0, 1.0)
    assert (total["unreadable"], total["hashes_checked"], position) == (1, 9, None)
    assert counts["failed"] == 1
    assert await codes(run) == {"f02": "not_verified"}


async def test_reading_back_is_tried_again(run: FilesRun, lake: Lake) -> None:
    lake.faults(
        {"operation": "read", "fault": "short_body", "times": 1},
        {"operation": "read", "fault": "reset_before", "times": 1},
        {"operation": "read", "fault": "reset_after", "times": 1},
        {"operation": "read", "fault": "throttle", "times": 1},
        {"operation": "read", "fault": "expired_token", "times": 1},
    )
    total, _ = await found_by(run, 1.0)
    assert total == {**no_verification(), "listed": 10, "hashes_checked": 10}


async def test_damage_on_the_way_back_is_not_taken_for_damage_in_the_lake_only_if_it_goes_away(
    run: FilesRun, lake: Lake
) -> None:
    lake.faults({"operation": "read", "path": f"*/{lake.name}/f03", "fault": "corrupt_body"})
    total, _ = await found_by(run, 1.0)
    assert total["hash_mismatches"] == 1
