"""Planning: the pages of a tree are the tree, in order, however small the pages and whatever is delivered twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clients.folder import FolderTree
from shared.engine import plan_page as planning
from shared.engine.catalog import PartWriter, encode_index
from shared.engine.files_run import FilesRun
from shared.engine.ledger import commit_ledger
from shared.engine.plan_page import plan_page
from shared.engine.run_records import RunRecords
from shared.engine.sources import JoinedTree, SourcePart
from shared.engine.survey import survey_target
from shared.engine.transfer_batch import transfer_batch
from shared.errors import SourceMissing, Unsupported
from shared.model.steps import Counts, add_counts, no_counts
from shared.names import page_name
from shared.policy.paths import sort_key
from shared.ports import LakePage
from tests.support.emulated import Content, Lake
from tests.support.runs import PAIR, make_run, memory_store, plant, put_page, record

NAMES = st.sampled_from(["a", "b", "a b", "a-", "a.x", "\u00e4", "e\u0301", "%41", "\U0001f600", "z."])
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=3).map("/".join), max_size=14)


@pytest.fixture(autouse=True)
def _small_pages() -> Iterator[None]:
    """Not monkeypatch: a property's examples share one function."""
    items, batches = planning.PAGE_ITEMS, planning.PAGE_BATCHES
    yield
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = items, batches


@pytest.fixture
def folder() -> Iterator[Path]:
    with TemporaryDirectory() as name:
        yield Path(name)


def tree_of(paths: list[str]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for path in paths:
        if not any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in files):
            files[path] = b"x" * (len(path) % 4)
    return files


def another_walk(run: FilesRun) -> SourcePart:
    tree = run.source.parts[0].tree
    assert isinstance(tree, FolderTree)
    return SourcePart("", FolderTree(tree._root))


async def plan_all(
    run: FilesRun, *, twice: frozenset[int] = frozenset(), restarts: bool = False, round_number: int = 1
) -> tuple[list[str], Counts, int]:
    """Every page's cursor, the counts in all, and the number of pages."""
    cursor: str | None = None
    counts, number, cursors = no_counts(), 0, []
    while True:
        number += 1
        page = page_name(number, round_number)
        for _ in range(2 if number in twice else 1):
            if restarts:
                # Another worker: nothing of the walk is remembered.
                run.source, run.ledger, run.survey = JoinedTree([another_walk(run)]), None, None
            batches, found, following = await plan_page(run, page, round_number, cursor)
        add_counts(counts, found)
        assert batches <= planning.PAGE_BATCHES
        assert following is None or cursor is None or sort_key(following) > sort_key(cursor), "the walk goes on"
        cursor = following
        if cursor is None:
            return cursors, counts, number
        cursors.append(cursor)


async def planned(run: FilesRun) -> list[dict[str, Any]]:
    """Packages' items and settled records, page by page, in the order in which they were planned."""
    found: list[dict[str, Any]] = []
    for page in await run.records.pages():
        rows: list[dict[str, Any]] = []
        for key in await run.records.store.list(run.records.key(f"plan/{page}")):
            rows += await run.records.batch(page, int(key[-10:-6]))  # type: ignore[arg-type]
        rows += await run.records.results(page, "settled") or []
        found += sorted(rows, key=lambda row: sort_key(row["path"]))
    return found


@settings(max_examples=40)
@given(TREES, st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.frozensets(st.integers(1, 6)), st.booleans())
async def test_the_union_of_the_pages_is_the_tree_in_order(
    paths: list[str], page_items: int, page_batches: int, batch_items: int, twice: frozenset[int], restarts: bool
) -> None:
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = page_items, page_batches
    files = tree_of(paths)
    with TemporaryDirectory() as name:
        plant(Path(name), files)
        run = make_run(Path(name), limits={"batch_items": batch_items})
        _, counts, _ = await plan_all(run, twice=twice, restarts=restarts)
    rows = await planned(run)
    assert [row["path"] for row in rows] == sorted(files, key=sort_key)
    assert counts["planned"] == len(files)
    unmappable = {row["path"] for row in rows if row.get("status") == "failed"}
    assert unmappable == {path for path in files if any(part.endswith(".") for part in path.split("/"))}
    assert counts["failed"] == len(unmappable)
    assert counts["bytes_planned"] == sum(len(data) for path, data in files.items() if path not in unmappable)


@settings(max_examples=30)
@given(TREES, TREES, st.integers(1, 4), st.integers(1, 3), st.booleans())
async def test_a_mirror_plans_what_the_source_lost_and_only_that(
    before: list[str], after: list[str], page_items: int, page_batches: int, restarts: bool
) -> None:
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = page_items, page_batches
    old = [path for path in tree_of(before) if not path.endswith(".") and "./" not in path]
    new = tree_of([*after, "a survivor"])
    store = memory_store()
    earlier = RunRecords(store, "files-job-0")
    await put_page(earlier, "p00001", [record(path) for path in sorted(old, key=sort_key)])
    await earlier.save("prepared.json", {"pair": PAIR})
    await commit_ledger(earlier, "job")
    with TemporaryDirectory() as name:
        plant(Path(name), new)
        run = make_run(Path(name), store=store, mode="incremental", deleted="mirror", limits={"batch_items": 1})
        await plan_all(run, restarts=restarts)
    rows = await planned(run)
    assert [row["path"] for row in rows] == sorted({*new, *old}, key=sort_key)
    assert {row["path"] for row in rows if row.get("action") == "delete"} == set(old) - set(new)


async def test_pages_are_cut_at_the_last_whole_batch(folder: Path) -> None:
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = 100, 2
    plant(folder, {f"f{number}": b"" for number in range(10)} | {"f3.": b"", "f9.": b""})
    run = make_run(folder, limits={"batch_items": 2})
    cursors, counts, pages = await plan_all(run)
    # f3. settles between the batches of the first page, and f9. behind the last batch of the last one.
    assert cursors == ["f3", "f7"]
    assert (counts["planned"], counts["failed"], pages) == (12, 2, 3)
    assert [row["path"] for row in await run.records.results("p00002", "settled") or []] == ["f3."]


async def test_a_page_may_end_exactly_at_the_limits(folder: Path) -> None:
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = 4, 2
    plant(folder, {f"f{number}": b"" for number in range(4)})
    run = make_run(folder, limits={"batch_items": 2})
    cursors, counts, pages = await plan_all(run)
    assert cursors == ["f3"]
    assert (counts["planned"], pages) == (4, 2)
    assert [row["path"] for row in await planned(run)] == ["f0", "f1", "f2", "f3"]


async def test_an_empty_source_is_one_empty_page(folder: Path) -> None:
    run = make_run(folder)
    assert await plan_page(run, "p00001", 1, None) == (0, no_counts(), None)


async def test_a_repeat_of_a_page_leaves_nothing_of_the_first(folder: Path) -> None:
    planning.PAGE_ITEMS = 10
    plant(folder, {f"f{number}": b"" for number in range(6)} | {"bad.": b""})
    run = make_run(folder, limits={"batch_items": 2})
    assert (await plan_page(run, "p00001", 1, None))[0] == 3
    await run.records.put_results("p00001", "b0002", [record("f5")])
    for path in ("f2", "f3", "f4", "f5", "bad."):
        (folder / path).unlink()
    assert (await plan_page(run, "p00001", 1, None))[0] == 1
    assert [row["path"] for row in await planned(run)] == ["f0", "f1"]
    assert await run.records.results("p00001", "b0002") is None


async def test_a_dry_run_settles_everything_and_names_what_it_would_do(folder: Path) -> None:
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = 3, 2
    plant(folder, {f"f{number}": b"12" for number in range(7)} | {"f3.": b""})
    run = make_run(folder, dry_run=True, limits={"batch_items": 1})
    _, counts, _ = await plan_all(run)
    assert counts == {**no_counts(), "planned": 8, "bytes_planned": 14, "failed": 1}
    rows = await planned(run)
    assert {(row["status"], row.get("action")) for row in rows if row["path"] != "f3."} == {("planned", "create")}


async def test_filters_are_no_items(folder: Path) -> None:
    plant(folder, {"a.pdf": b"", "b.txt": b"", "tmp/c.pdf": b"", "d/e.pdf": b""})
    run = make_run(folder, include=["**/*.pdf"], exclude=["tmp/**"])
    _, counts, _ = await plan_all(run)
    assert counts["planned"] == 2
    assert [row["path"] for row in await planned(run)] == ["a.pdf", "d/e.pdf"]


async def test_a_filter_does_not_delete_what_it_hides(folder: Path) -> None:
    store = memory_store()
    earlier = RunRecords(store, "files-job-0")
    await put_page(earlier, "p00001", [record("a.pdf"), record("b.txt"), record("gone.pdf")])
    await earlier.save("prepared.json", {"pair": PAIR})
    await commit_ledger(earlier, "job")
    plant(folder, {"a.pdf": b"", "b.txt": b""})
    run = make_run(folder, store=store, mode="incremental", deleted="mirror", include=["**/*.pdf"])
    await plan_all(run)
    assert [(row["path"], row["action"]) for row in await planned(run)] == [
        ("a.pdf", "replace"),
        ("gone.pdf", "delete"),
    ]


async def test_an_empty_source_never_mirrors(folder: Path) -> None:
    store = memory_store()
    earlier = RunRecords(store, "files-job-0")
    await put_page(earlier, "p00001", [record("a")])
    await earlier.save("prepared.json", {"pair": PAIR})
    await commit_ledger(earlier, "job")
    run = make_run(folder, store=store, mode="incremental", deleted="mirror")
    with pytest.raises(SourceMissing, match="would delete them all"):
        await plan_page(run, "p00001", 1, None)


@pytest.mark.parametrize("mode", ["full", "incremental"])
async def test_what_ledger_and_lake_agree_on_is_skipped(folder: Path, mode: str) -> None:
    store = memory_store()
    plant(folder, {"same": b"123", "changed": b"123", "lost": b"123", "touched": b"123", "new": b"123"})
    versions = {item.path: item.version for item in (await FolderTree(str(folder)).list_page(None, 99)).items}
    earlier = RunRecords(store, "files-job-0")
    await put_page(earlier, "p00001", [
        record(path, source_version=versions[path]) for path in sorted(versions) if path != "new"])  # fmt: skip
    await earlier.save("prepared.json", {"pair": PAIR})
    await commit_ledger(earlier, "job")
    (folder / "changed").write_bytes(b"12345")
    run = make_run(folder, store=store, mode=mode)
    seen = PartWriter(store, run.records.key("survey-before/c00000/part"))
    for path, etag in (("changed", "e1"), ("same", "e1"), ("touched", "e2")):
        await seen.add({"path": path, "size_bytes": 3, "etag": etag})
    await seen.flush()
    await store.put(run.records.key("survey-before/c00000/index.json"), encode_index(seen.parts))
    await plan_all(run)
    decided = {row["path"]: row.get("action") or row["status"] for row in await planned(run)}
    if mode == "full":
        assert decided == {
            "same": "skipped", "changed": "replace", "lost": "create", "touched": "compare", "new": "create",
        }  # fmt: skip
    else:
        assert decided == {
            "same": "skipped", "changed": "replace", "lost": "skipped", "touched": "skipped", "new": "create",
        }  # fmt: skip


@settings(max_examples=30)
@given(
    st.sets(st.integers(0, 12)), st.integers(1, 3), st.integers(1, 2), st.frozensets(st.integers(1, 6)), st.booleans()
)
async def test_a_later_round_plans_exactly_what_failed(
    failed: set[int], page_items: int, page_batches: int, twice: frozenset[int], gone: bool
) -> None:
    planning.PAGE_ITEMS, planning.PAGE_BATCHES = page_items, page_batches
    with TemporaryDirectory() as name:
        plant(
            Path(name), {f"f{number:02d}": b"1" for number in range(13) if not gone or number != min(failed, default=0)}
        )
        run = make_run(Path(name), limits={"batch_items": 1})
        rows = [record(f"f{number:02d}", "failed" if number in failed else "uploaded") for number in range(13)]
        await put_page(run.records, "p00001", rows[:7])
        await put_page(run.records, "p00002", rows[7:])
        _, counts, _ = await plan_all(run, twice=twice, round_number=2)
    pages = [page for page in await run.records.pages() if page.startswith("r2")]
    paths = [row["path"] for page in pages for row in await run.records.page_records(page)]
    assert paths == [f"f{number:02d}" for number in sorted(failed)]
    assert counts["planned"] == len(failed)
    assert counts["failed"] == int(gone and bool(failed))


async def test_names_that_are_not_utf8_fail_alone(folder: Path) -> None:
    os.close(os.open(os.fsencode(folder) + b"/caf\xe9", os.O_CREAT | os.O_WRONLY))
    plant(folder, {"a": b"", "z": b""})
    run = make_run(folder)
    _, counts, _ = await plan_all(run)
    assert (counts["planned"], counts["failed"]) == (3, 1)
    settled = await run.records.results("p00001", "settled") or []
    assert settled[0]["error_code"] == "unmappable_path"
    assert settled[0]["target"] == "Files/job/caf\\xe9"


async def test_packages_are_small_enough_for_the_bandwidth(folder: Path) -> None:
    """16 packages of 256 MiB under a cap of 1 MiB/s would be under way for more than an hour."""
    plant(folder, {f"f{number}": b"x" * 4_000_000 for number in range(12)})
    run = make_run(folder, limits={"bandwidth": "1MiB/s", "parallel_batches": 32})
    batches, counts, _ = await planning.plan_page(run, "p00001", 1, None)
    assert counts["planned"] == 12
    assert batches == 6, "of 300 MiB / 32 each"


@pytest.mark.parametrize("shows_hashes", [True, False])
async def test_a_first_run_into_files_that_are_there_asks_for_none_that_is_identical(
    lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shows_hashes: bool
) -> None:
    """The listing says which files are the same; where the Blob endpoint does not list, each is asked for."""
    source = tmp_path / "source"
    files = {f"d/f{number} \u00e9&<.bin": bytes([number]) * 50 for number in range(6)}
    plant(source, files)
    for path, data in files.items():
        await lake.folder.create(path, Content(data))
    await lake.folder.replace("d/f5 \u00e9&<.bin", Content(b"x" * 50))
    if not shows_hashes:

        async def refused(marker: str) -> LakePage:
            raise Unsupported("no listing here")

        monkeypatch.setattr(lake.folder, "_list_blobs", refused)
    run = make_run(source, lake=lake.folder)
    chunk, continuation = 0, None
    while chunk == 0 or continuation is not None:
        _, continuation = await survey_target(run, "before", chunk, continuation)
        chunk += 1
    batches, _, _ = await plan_page(run, "p00001", 1, None)
    asked: list[str] = []
    properties = lake.folder.properties

    async def watched(path: str) -> Any:
        asked.append(path)
        return await properties(path)

    monkeypatch.setattr(lake.folder, "properties", watched)
    for number in range(batches):
        await transfer_batch(run, "p00001", number, 1, final=False)
    statuses = [one["status"] for one in await run.records.page_records("p00001")]
    assert statuses == ["skipped"] * 5 + ["uploaded"]
    assert lake.on_disk() == files
    assert len(asked) == (1 if shows_hashes else 6)
