"""A library that people work in, and the lake that follows it: renames are renames, and nothing is lost or taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.engine import catalog, index_source, plan_page
from shared.engine.ledger import commit_ledger
from shared.engine.run_records import RunRecords
from shared.errors import SourceMissing
from shared.model.records import FileRecord
from tests.support.drives import Job, MemoryDrive
from tests.support.runs import PAIR, put_page, record


@pytest.fixture(autouse=True, scope="module")
def _small() -> Iterator[None]:
    """Several chunks, parts and pages, however few the items."""
    before = index_source._CHUNK_ITEMS, plan_page.PAGE_ITEMS, catalog.ROWS_PER_PART
    index_source._CHUNK_ITEMS, plan_page.PAGE_ITEMS, catalog.ROWS_PER_PART = 4, 5, 4
    yield
    index_source._CHUNK_ITEMS, plan_page.PAGE_ITEMS, catalog.ROWS_PER_PART = before


# -- anything that people do, and kills in between ---------------------------------------------------------------------

NAMES = st.sampled_from(["a", "A", "b", "c.", "d e"])
NUMBERS = st.integers(0, 9)
OPERATIONS = st.one_of(
    st.tuples(st.just("file"), NUMBERS, NAMES, st.sampled_from([b"", b"1", b"22"])),
    st.tuples(st.just("folder"), NUMBERS, NAMES),
    st.tuples(st.just("edit"), NUMBERS, st.sampled_from([b"3", b"44"])),
    st.tuples(st.just("rename"), NUMBERS, NAMES),
    st.tuples(st.just("move"), NUMBERS, NUMBERS, NAMES),
    st.tuples(st.just("delete"), NUMBERS),
    st.tuples(st.just("restore"), NUMBERS),
    st.tuples(st.just("touch"), NUMBERS),
    st.tuples(st.just("block"), NUMBERS),
    st.just(("expire",)),
)
KILLS = st.lists(st.integers(1, 60), max_size=3)


@st.composite
def episodes(draw: st.DrawFn) -> list[dict[str, Any]]:
    """What is done before each run and while it walks and reads, and where it is killed."""
    return [
        {
            "before": draw(st.lists(OPERATIONS, max_size=6)),
            "walking": draw(st.lists(OPERATIONS, max_size=2)),
            "reading": draw(st.lists(OPERATIONS, max_size=1)),
            "kill_before": draw(KILLS),
            "kill_after": draw(KILLS),
        }
        for _ in range(draw(st.integers(1, 3)))
    ]


def pick(items: list[str], number: int) -> str | None:
    return items[number % len(items)] if items else None


def carry_out(drive: MemoryDrive, operation: tuple[Any, ...]) -> None:
    """One change, if the library takes it."""
    kind, *given = operation
    nodes = drive.nodes
    if kind == "expire":
        return drive.expire_tokens()
    # An empty library stops a mirror, so something stays.
    fixed = [one for one, node in nodes.items() if node.name in ("", "kept", "always")]
    folders = [one for one, node in nodes.items() if node.kind != "file" and drive.is_there(one)]
    movable = [one for one in nodes if one not in fixed and drive.is_there(one)]
    files = [one for one in movable if nodes[one].kind == "file"]
    if kind in ("file", "folder"):
        parent = pick(folders, given[0])
        assert parent is not None
        if not drive.taken(parent, given[1]):
            drive.add(parent, given[1], given[2] if kind == "file" else None)
        return None
    if kind == "restore":
        gone = [one for one, node in nodes.items() if node.gone and all(
            not nodes[up].gone for up in drive.above(one))]  # fmt: skip
        item = pick(gone, given[0])
        if item is not None and not drive.taken(nodes[item].parent or "", nodes[item].name):
            drive.restore(item)
        return None
    item = pick(files if kind in ("edit", "block") else movable, given[0])
    if item is None:
        return None
    match kind:
        case "edit":
            drive.edit(item, given[1])
        case "touch":
            drive.touch(item)
        case "block":
            nodes[item].blocked = not nodes[item].blocked
            drive.touch(item)
        case "delete":
            drive.delete(item)
        case "rename":
            parent = nodes[item].parent or ""
            is_case = nodes[item].name.casefold() == given[1].casefold()
            if is_case or not drive.taken(parent, given[1]):
                drive.move(item, name=given[1])
        case "move":
            parent = pick([one for one in folders if one != item and item not in drive.above(one)], given[1])
            if parent is not None and not drive.taken(parent, given[2]):
                drive.move(item, parent, given[2])
    return None


def once(operations: list[tuple[Any, ...]], drive: MemoryDrive) -> Any:
    """One of the operations at each call, until there are none left."""
    left = list(operations)

    def hook() -> None:
        if left:
            carry_out(drive, left.pop(0))

    return hook


def state_of(drive: MemoryDrive) -> dict[str, tuple[str, bytes]]:
    return {item: (path, data) for path, (item, data) in drive.places().items()}


@settings(max_examples=120, deadline=None)
@given(episodes(), st.sampled_from(["mirror", "keep"]), st.booleans(), st.booleans(), st.booleans())
async def test_the_lake_follows_the_library(
    happened: list[dict[str, Any]], deleted: str, tells_descendants: bool, late: bool, in_folder: bool
) -> None:
    drive = MemoryDrive(tells_descendants=tells_descendants, late_in_next_walk=late)
    kept = drive.add("root", "kept", None)
    drive.add(kept, "always", b"there")
    if in_folder:
        drive.start = kept
        drive.add("root", "outside", b"not ours")
    job = Job(drive, deleted=deleted)
    job.lake.plant("kept/foreign", b"of somebody else")
    for episode in happened:
        for operation in episode["before"]:
            carry_out(drive, operation)
        drive.before_page, drive.before_open = once(episode["walking"], drive), once(episode["reading"], drive)
        await job.run(kill_before=episode["kill_before"], kill_after=episode["kill_after"])
        drive.before_page = drive.before_open = lambda: None
    await job.run()
    await assert_equal(job)
    # Nothing happens any more.
    mark, opened = len(job.lake.journal), len(drive.opened)
    records = await job.run()
    assert {record["status"] for record in records.values()} <= {"failed"}
    # What is kept may stand where a folder is now.
    expected = {"malware_detected"} if deleted == "mirror" else {"malware_detected", "path_conflict"}
    assert {record["error_code"] for record in records.values()} <= expected
    assert (job.lake.journal[mark:], len(drive.opened)) == ([], opened)


async def assert_equal(job: Job) -> None:
    """The lake is the library, the file of another beside it, and the ledger knows just that."""
    wanted = {path: data for path, (_, data) in job.drive.places().items()}
    there = job.lake.content()
    assert there.pop("kept/foreign") == b"of somebody else"
    if job.spec["deleted"] == "keep":
        in_the_way = [path for path in wanted if any(crossing(path, other) for other in there)]
        assert {path: there.get(path) for path in wanted if path not in in_the_way} == {
            path: data for path, data in wanted.items() if path not in in_the_way
        }
        return
    # What is not given out any more stays as it was moved last.
    for path in job.drive.blocked():
        there.pop(path, None)
    assert there == wanted
    assert set(await job.ledger()) - job.drive.blocked() == set(wanted)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(OPERATIONS, max_size=8),
    st.lists(OPERATIONS.filter(lambda one: one[0] in ("rename", "move", "touch", "folder")), max_size=5),
    KILLS,
    KILLS,
)
async def test_what_was_only_renamed_is_never_uploaded(
    first: list[tuple[Any, ...]], then: list[tuple[Any, ...]], kill_before: list[int], kill_after: list[int]
) -> None:
    drive = MemoryDrive()
    for operation in first:
        carry_out(drive, operation)
    job = Job(drive)
    await job.run()
    before = state_of(drive)
    for operation in then:
        carry_out(drive, operation)
    after = state_of(drive)
    mark = len(job.lake.journal)
    await job.run(kill_before=kill_before, kill_after=kill_after)
    old_paths, new_paths = {path for path, _ in before.values()}, {path for path, _ in after.values()}
    # What changed places with another file has to be read again: neither can go before the other.
    free = {
        after[item][0] for item in after if item in before
        and after[item][0] not in old_paths - {before[item][0]}
        and before[item][0] not in new_paths - {after[item][0]}
        and not crossing(before[item][0], after[item][0])
    }  # fmt: skip
    uploaded = {path for kind, path in job.lake.journal[mark:] if kind == "upload"}
    assert not uploaded & free
    assert job.lake.content() == dict(after.values())


def crossing(old: str, new: str) -> bool:
    """Whether one would have to lie in the other."""
    return old.startswith(f"{new}/") or new.startswith(f"{old}/")


# -- single cases ------------------------------------------------------------------------------------------------------


def library(**files: bytes) -> tuple[MemoryDrive, dict[str, str]]:
    """Files in the root, by name, and a folder ``f``; their ids."""
    drive = MemoryDrive()
    ids = {"f": drive.add("root", "f", None)}
    return drive, ids | {name: drive.add("root", name, data) for name, data in files.items()}


def outcome(records: dict[str, FileRecord]) -> dict[str, tuple[str, str | None]]:
    return {path: (one["status"], one.get("renamed_from") or one["error_code"]) for path, one in records.items()}


async def test_a_rename_out_of_what_the_job_wants_leaves_nothing_behind() -> None:
    drive, ids = library(a=b"1", b=b"2", c=b"3")
    job = Job(drive, exclude=["*.tmp"])
    await job.run()
    drive.move(ids["a"], name="a.tmp")
    drive.move(ids["b"], name="b.new")
    assert outcome(await job.run()) == {"a": ("deleted", None), "b.new": ("renamed", "b")}
    assert job.lake.content() == {"b.new": b"2", "c": b"3"}
    assert await job.run() == {}


async def test_what_is_not_given_out_any_more_is_not_kept_under_its_old_name() -> None:
    drive, ids = library(a=b"1", b=b"2")
    job = Job(drive)
    await job.run()
    drive.nodes[ids["a"]].blocked = True
    drive.move(ids["a"], name="c")
    assert outcome(await job.run()) == {"a": ("deleted", None), "c": ("failed", "malware_detected")}
    assert job.lake.content() == {"b": b"2"}


@pytest.mark.parametrize("kill_after", [[], [10], [11], [12], [13], [14]])
async def test_the_ledger_forgets_where_a_file_was_that_was_renamed_and_edited(kill_after: list[int]) -> None:
    drive, ids = library(a=b"old")
    job = Job(drive, deleted="keep")
    await job.run()
    drive.edit(ids["a"], b"new")
    drive.move(ids["a"], name="b")
    await job.run(kill_after=kill_after)
    assert job.lake.content() == {"b": b"new"}
    drive.add("root", "a", b"old")
    await job.run()
    assert job.lake.content() == {"a": b"old", "b": b"new"}


async def test_a_file_that_was_renamed_in_the_lake_and_could_not_be_read_is_remembered_where_it_is() -> None:
    drive, ids = library(a=b"old")
    job = Job(drive)
    await job.run()
    drive.edit(ids["a"], b"new")
    drive.move(ids["a"], name="b")

    def block() -> None:
        drive.nodes[ids["a"]].blocked = True

    drive.before_open = block
    assert outcome(await job.run()) == {"b": ("failed", "a")}
    assert job.lake.content() == {"b": b"old"}
    assert list(await job.ledger()) == ["b"]
    drive.before_open = lambda: None
    drive.nodes[ids["a"]].blocked = False
    drive.add("root", "a", b"old")
    assert outcome(await job.run()) == {"a": ("uploaded", None), "b": ("uploaded", None)}
    assert job.lake.content() == {"a": b"old", "b": b"new"}


async def test_a_file_that_goes_into_a_folder_of_its_own_name() -> None:
    drive, ids = library(a=b"1", b=b"2")
    job = Job(drive)
    await job.run()
    drive.move(ids["a"], drive.add("root", "a2", None))
    drive.move("i003", name="c")
    folder = drive.nodes[ids["a"]].parent
    assert folder is not None
    drive.move(folder, name="a")
    await job.run()
    assert job.lake.content() == {path: data for path, (_, data) in drive.places().items()}
    assert set(job.lake.content()) == {"a/a", "c"}
    drive.move(ids["a"], "root", "b")
    drive.delete(folder)
    drive.move(ids["a"], name="a")
    await job.run()
    assert job.lake.content() == {"a": b"1", "c": b"2"}
    assert not job.lake.folders


@pytest.mark.parametrize("deleted", ["keep", "mirror"])
async def test_a_file_takes_the_place_of_a_folder_that_was_renamed(deleted: str) -> None:
    drive, ids = library(x=b"1")
    deep = drive.add(drive.add(ids["f"], "d", None), "deep", None)
    drive.add(deep, "y", b"2")
    job = Job(drive, deleted=deleted)
    await job.run()
    mark = len(job.lake.journal)
    drive.move(ids["f"], name="g")
    drive.move(ids["x"], name="f")
    await job.run()
    assert job.lake.content() == {"f": b"1", "g/d/deep/y": b"2"}
    assert job.lake.folders == {"g", "g/d", "g/d/deep"}
    assert ("upload", "g/d/deep/y") not in job.lake.journal[mark:]


async def test_folders_that_a_run_emptied_go_and_those_that_somebody_uses_stay() -> None:
    drive, ids = library(x=b"1")
    for name in ("one", "two", "three"):
        folder = drive.add(ids["f"], name, None)
        ids[name] = drive.add(drive.add(folder, "deep", None), "file", name.encode())
    job = Job(drive)
    await job.run()
    job.lake.plant("f/two/theirs", b"of somebody else")
    job.lake.folders.add("f/never ours")
    drive.delete(ids["one"])
    drive.move(ids["two"], "root", "two")
    await job.run(kill_after=[17])
    assert job.lake.folders == {"f", "f/two", "f/three", "f/three/deep", "f/never ours"}
    assert set(job.lake.content()) == {"x", "two", "f/two/theirs", "f/three/deep/file"}


async def test_what_the_drive_cannot_place_takes_no_place_and_loses_none() -> None:
    drive, ids = library(a=b"1", b=b"2")
    inner = drive.add(ids["f"], "c", b"3")
    job = Job(drive)
    await job.run()
    # The feed tells that it lies in a folder of which it has told nothing.
    hidden = drive.add("root", "hidden", None)
    drive.log.remove(hidden)
    drive.move(inner, hidden, "a")
    assert outcome(await job.run()) == {"f/c": ("skipped", "source_not_gone")}
    assert job.lake.content() == {"a": b"1", "b": b"2", "f/c": b"3"}
    drive.log.append(hidden)
    await job.run()
    assert job.lake.content() == {"a": b"1", "b": b"2", "hidden/a": b"3"}


async def test_half_a_surrogate_pair_in_a_name_holds_up_nothing() -> None:
    drive, ids = library(a=b"1")
    odd = drive.add("root", "odd \ud83d", b"2")
    job = Job(drive)
    await job.run()
    drive.move(odd, ids["f"])
    await job.run()
    assert job.lake.content() == {"a": b"1", "f/odd %ED%A0%BD": b"2"}


async def test_filters_are_about_the_names_that_the_library_has() -> None:
    drive, _ = library(**{"kept": b"1", "left out.": b"2", "100%25": b"3"})
    job = Job(drive, exclude=["left out.", "100%25"])
    await job.run()
    assert job.lake.content() == {"kept": b"1"}


async def test_an_emptied_library_is_no_reason_to_delete() -> None:
    drive, ids = library(a=b"1")
    job = Job(drive)
    await job.run()
    drive.delete(ids["a"])
    with pytest.raises(SourceMissing):
        await job.run()
    assert job.lake.content() == {"a": b"1"}
    drive.restore(ids["a"])
    assert await job.run() == {}


async def test_a_library_that_never_had_anything_is_not_an_emptied_one() -> None:
    """What the ledger knows of other sources is no memory of this one."""
    drive = MemoryDrive()
    source = {"type": "sharepoint", "site": "contoso.sharepoint.com:/sites/x", "library": "Docs", "target_path": "docs"}
    job = Job(drive, source=None, sources=[source])
    before = RunRecords(job.store, "run-0")
    await before.save("run.json", {"spec": job.spec})
    await before.save("prepared.json", {"pair": PAIR})
    await put_page(before, "p00001", [record("other/file")])
    await commit_ledger(before, "job")
    assert await job.run() == {}
    assert list(await job.ledger()) == ["other/file"]


async def test_a_reading_ends_where_somebody_cancels() -> None:
    drive, _ = library(**{f"f{number}": b"1" for number in range(12)})
    job = Job(drive)
    job.runs = 1
    run = job.open()
    pages = 0

    def cancel_at_the_second() -> None:
        nonlocal pages
        pages += 1
        if pages == 2:
            job.store._store.put("runs/run-1/cancel", b"{}")

    drive.before_page = cancel_at_the_second
    assert (await index_source.index_source(run, 0))[1] is False
    assert pages == 2
