"""A folder as a source: the walk and its cursors, links, and files that change, vanish or are replaced meanwhile."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clients.folder import FolderTree, resolve_below
from shared.errors import AccessDenied, MigrationError, NotFound, SourceChanged, SourceMissing
from shared.policy.paths import sort_key
from shared.ports import SourceItem
from tests.support.runs import plant

NAMES = st.sampled_from(["a", "b", "a b", "a-", "a.x", "ä", "\U0001f600", "\x01", "~"])
TREES = st.lists(st.lists(NAMES, min_size=1, max_size=4).map("/".join), max_size=14)
LARGE = 9 * 1024 * 1024


async def walk(tree: FolderTree, cursor: str | None = None, limit: int = 3) -> list[SourceItem]:
    items: list[SourceItem] = []
    while True:
        page = await tree.list_page(cursor, limit)
        assert len(page.items) <= limit
        items += page.items
        if page.cursor is None:
            return items
        cursor = page.cursor


def without_prefixes(paths: list[str]) -> list[str]:
    kept: list[str] = []
    for path in dict.fromkeys(paths):
        if not any(other.startswith(f"{path}/") or path.startswith(f"{other}/") for other in kept):
            kept.append(path)
    return kept


@settings(max_examples=50)
@given(TREES, st.integers(1, 5), NAMES)
async def test_a_walk_goes_on_from_any_cursor_in_another_process(paths: list[str], limit: int, stray: str) -> None:
    files = without_prefixes(paths)
    with TemporaryDirectory() as name:
        plant(Path(name), dict.fromkeys(files, b"1"))
        whole = [item.path for item in await walk(FolderTree(name), limit=limit)]
        assert whole == sorted(files, key=sort_key)
        # Also from paths that are not there (any more), or that are folders.
        cursors = {*files, *(f"{path}/{stray}" for path in files), *(path.rpartition("/")[0] + stray for path in files)}
        for cursor in cursors:
            expected = [path for path in whole if sort_key(path) > sort_key(cursor)]
            found = [item.path for item in await walk(FolderTree(name), cursor, limit)]
            assert found == expected


async def test_the_walk_is_kept_between_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path, {f"d/f{number:02d}": b"" for number in range(20)})
    listed: list[str] = []
    original = os.listdir

    def counting(path: str) -> list[str]:
        listed.append(path)
        return original(path)

    monkeypatch.setattr(os, "listdir", counting)
    assert len(await walk(FolderTree(str(tmp_path)), limit=2)) == 20
    assert len(listed) == 2


async def test_a_page_asked_for_again_is_the_same(tmp_path: Path) -> None:
    plant(tmp_path, {f"f{number:02d}": b"" for number in range(9)})
    tree = FolderTree(str(tmp_path))
    first = await tree.list_page(None, 3)
    second = await tree.list_page(first.cursor, 3)
    assert (await tree.list_page(first.cursor, 3)).items == second.items
    assert (await tree.list_page(None, 3)).items == first.items
    assert [item.path for item in (await tree.list_page(second.cursor, 99)).items] == ["f06", "f07", "f08"]


async def test_links_are_named_and_not_followed(tmp_path: Path) -> None:
    plant(tmp_path, {"real/a": b"1", "other/b": b"2"})
    (tmp_path / "link-to-file").symlink_to(tmp_path / "real/a")
    (tmp_path / "link-to-folder").symlink_to(tmp_path / "real")
    (tmp_path / "link-to-nothing").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    tree = FolderTree(str(tmp_path))
    items = {item.path: item for item in await walk(tree)}
    odd = {path: item.problem[0] for path, item in items.items() if item.problem}
    assert odd == {
        "link-to-file": "link_not_followed", "link-to-folder": "link_not_followed",
        "link-to-nothing": "link_not_followed", "loop": "link_not_followed", "pipe": "not_a_file",
    }  # fmt: skip
    assert all(items[path].skip for path in odd)
    assert set(items) == {*odd, "real/a", "other/b"}
    with pytest.raises(NotFound):
        await tree.open("link-to-file")


async def test_a_file_that_became_something_else_is_gone_and_blocks_nobody(tmp_path: Path) -> None:
    """Opening a pipe for reading waits for its writer, which never comes."""
    plant(tmp_path, {"a/b": b"1"})
    os.mkfifo(tmp_path / "pipe")
    tree = FolderTree(str(tmp_path))
    for path in ("pipe", "a", "missing", "a/b/c"):
        with pytest.raises(NotFound) as caught:
            await tree.open(path)
        assert caught.value.code == "source_gone"


async def test_stat(tmp_path: Path) -> None:
    plant(tmp_path, {"a/b": b"123"})
    tree = FolderTree(str(tmp_path))
    found = await tree.stat("a/b")
    assert found == (await walk(tree))[0]
    assert await tree.stat("a/c") is None
    assert await tree.stat("a/b/c") is None
    assert await tree.stat("x/y") is None
    assert await tree.stat("a") is None, "a folder where a file was"


async def test_a_root_that_is_gone_is_not_an_empty_source(tmp_path: Path) -> None:
    root = tmp_path / "root"
    plant(root, {f"d{number}/f": b"" for number in range(6)})
    kept, fresh = FolderTree(str(root)), FolderTree(str(root))
    first = await kept.list_page(None, 2)
    root.rename(tmp_path / "elsewhere")
    for call in (
        kept.check, partial(kept.stat, "d0/f"), partial(kept.list_page, first.cursor, 2),
        partial(fresh.list_page, None, 2), partial(fresh.list_page, first.cursor, 2),
    ):  # fmt: skip
        with pytest.raises(SourceMissing):
            await call()


async def test_a_root_that_was_unmounted_during_the_walk_is_not_the_end_of_it(tmp_path: Path) -> None:
    """What is left of a mount is an empty folder of the same name."""
    root = tmp_path / "root"
    plant(root, {f"d{number}/f": b"" for number in range(6)})
    tree = FolderTree(str(root))
    first = await tree.list_page(None, 2)
    root.rename(tmp_path / "elsewhere")
    root.mkdir()
    with pytest.raises(SourceMissing):
        await tree.list_page(first.cursor, 99)


async def test_what_vanishes_during_the_walk_is_left_out(tmp_path: Path) -> None:
    plant(tmp_path, {f"d/f{number}": b"" for number in range(4)} | {"e/f": b"", "g": b""})
    tree = FolderTree(str(tmp_path))
    first = await tree.list_page(None, 2)
    (tmp_path / "d/f2").unlink()
    (tmp_path / "e/f").unlink()
    (tmp_path / "e").rmdir()
    assert [item.path for item in await walk(tree, first.cursor)] == ["d/f3", "g"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything; run the tests as another user to check refusals")
async def test_a_folder_that_may_not_be_listed_is_an_item(tmp_path: Path) -> None:
    plant(tmp_path, {"a": b"", "shut/x": b"", "z": b""})
    (tmp_path / "shut").chmod(0)
    items = await walk(FolderTree(str(tmp_path)), limit=1)
    assert [(item.path, item.problem and item.problem[0]) for item in items] == [
        ("a", None), ("shut", "folder_unreadable"), ("z", None),
    ]  # fmt: skip


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything; run the tests as another user to check refusals")
async def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    plant(tmp_path, {"a": b""})
    (tmp_path / "a").chmod(0)
    with pytest.raises(AccessDenied):
        await FolderTree(str(tmp_path)).open("a")


async def read_all(tree: FolderTree, path: str) -> bytes:
    content = await tree.open(path)
    try:
        parts = []
        while part := await content.read(1024 * 1024):
            parts.append(part)
        await content.finish()
        return b"".join(parts)
    finally:
        await content.close()


@pytest.mark.parametrize("size", [0, 1, 8 * 1024 * 1024, 8 * 1024 * 1024 + 1, LARGE])
async def test_bytes_and_version(tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    plant(tmp_path, {"a": data})
    tree = FolderTree(str(tmp_path))
    assert await read_all(tree, "a") == data
    content = await tree.open("a")
    item = await tree.stat("a")
    assert item is not None
    assert (content.size_bytes, content.version) == (size, item.version)
    await content.close()
    await content.close()


@pytest.mark.parametrize("how", ["grows", "shrinks", "rewritten"])
async def test_a_large_file_that_changes_while_it_is_read(tmp_path: Path, how: str) -> None:
    plant(tmp_path, {"a": b"x" * LARGE})
    tree = FolderTree(str(tmp_path))
    content = await tree.open("a")
    await content.read(1024)
    match how:
        case "grows":
            with (tmp_path / "a").open("ab") as file:
                file.write(b"more")
        case "shrinks":
            os.truncate(tmp_path / "a", 4096)
        case "rewritten":
            with (tmp_path / "a").open("r+b") as file:
                file.write(b"y")
            os.utime(tmp_path / "a", ns=(1, 1))
    while await content.read(1024 * 1024):
        pass
    with pytest.raises(SourceChanged):
        await content.finish()
    await content.close()


@pytest.mark.parametrize("size", [10, LARGE])
async def test_a_file_that_is_replaced_or_removed_while_it_is_read_stays_one_version(tmp_path: Path, size: int) -> None:
    plant(tmp_path, {"a": b"x" * size, "b": b"x" * size})
    tree = FolderTree(str(tmp_path))
    replaced, removed = await tree.open("a"), await tree.open("b")
    plant(tmp_path, {"new": b"y" * size})
    (tmp_path / "new").replace(tmp_path / "a")
    (tmp_path / "b").unlink()
    for content in (replaced, removed):
        data = b""
        while block := await content.read(1024 * 1024):
            data += block
        await content.finish()
        await content.close()
        assert data == b"x" * size
    item = await tree.stat("a")
    assert item is not None
    assert item.version != replaced.version, "the next run must see that it is another file"


async def test_versions_tell_writes_of_the_same_second_apart(tmp_path: Path) -> None:
    plant(tmp_path, {"a": b"1"})
    tree = FolderTree(str(tmp_path))
    os.utime(tmp_path / "a", ns=(10**18, 10**18))
    before = await tree.stat("a")
    os.utime(tmp_path / "a", ns=(10**18, 10**18 + 1))
    after = await tree.stat("a")
    assert before is not None
    assert after is not None
    assert before.version != after.version


async def test_errors_name_the_file_so_that_it_can_be_printed(tmp_path: Path) -> None:
    with pytest.raises(MigrationError) as caught:
        await FolderTree(str(tmp_path)).open(b"caf\xe9".decode("utf-8", "surrogateescape"))
    assert caught.value.subject == "caf\\xe9"


def test_roots(tmp_path: Path) -> None:
    plant(tmp_path, {"roots/in/x": b"", "out/x": b"", "roots-not/x": b""})
    (tmp_path / "roots/way-out").symlink_to(tmp_path / "out")
    (tmp_path / "way-in").symlink_to(tmp_path / "roots/in")
    roots = [str(tmp_path / "roots")]
    real = str((tmp_path / "roots/in").resolve())
    assert resolve_below(str(tmp_path / "roots/in"), roots, tmp_path) == real
    assert resolve_below("roots/in", ["roots"], tmp_path) == real
    assert resolve_below(str(tmp_path / "way-in"), roots, tmp_path) == real
    for outside in ("out", "roots-not", "roots/way-out", "roots/../out", "."):
        assert resolve_below(str(tmp_path / outside), roots, tmp_path) is None
    assert resolve_below(str(tmp_path / "roots/in"), [], tmp_path) is None
