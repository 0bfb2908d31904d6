"""A folder, a library and a container in one job: one run, one ledger, one manifest."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.libraries import Library, counted, estate
from tests.support.platform import Platform, files_below, running
from tests.support.storage_account import StorageAccount, beside


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("several"), estate=estate()) as started:
        yield started


@pytest.fixture(scope="module")
def account(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageAccount]:
    with beside(platform, tmp_path_factory.mktemp("storage")) as made:
        yield made


def joined(platform: Platform, library: Library, sources: dict[str, dict[str, Any]], **changes: Any) -> dict[str, Any]:
    document = {**library.spec(**changes)}
    del document["source"]
    document["sources"] = [{**source, "target_path": path} for path, source in sources.items()]
    return document


def lake(platform: Platform, library: Library) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in files_below(platform.lake(library.job)).items()}


def test_three_sources_in_one_run(platform: Platform, account: StorageAccount) -> None:
    library = Library(platform, files={"a/one.txt": b"one", "two.": b"two", "skip.tmp": b"no"})
    empty = Library(platform)
    container = account.make_container()
    for name in ("one.txt", "deep/blob"):
        container.upload_blob(name, f"blob {name}".encode())
    folder = platform.source(library.job)
    (folder / "one.txt").write_bytes(b"from a folder")
    (folder / "skip.tmp").write_bytes(b"no")
    sources = {
        "z/docs": library.source(), "empty": empty.source(),
        "blobs": {"type": "blob", "account_url": account.url, "container": container.container_name},
        "disk": {"type": "folder", "path": str(folder)},
    }  # fmt: skip
    job = joined(platform, library, sources, exclude=["skip.tmp"], verify="all")
    first = platform.run(job)
    wanted = {
        "blobs/one.txt": b"blob one.txt", "blobs/deep/blob": b"blob deep/blob", "disk/one.txt": b"from a folder",
        "z/docs/a/one.txt": b"one", "z/docs/two%2E": b"two",
    }  # fmt: skip
    assert lake(platform, library) == wanted
    manifest = platform.manifest(first["id"])
    assert {item["path"] for item in manifest["items"]} == {*wanted, "z/docs/two."} - {"z/docs/two%2E"}
    assert manifest["counts"] == {"items": 5, "uploaded": 5}
    # Only the folder and the container tell everything again; nothing is sent twice.
    mark = platform.mark()
    assert counted(platform.run(job)) == {"skipped": 3}
    assert not platform.commits(library.job, mark)
    library.rename("a", "b")
    library.delete("two.")
    container.delete_blob("one.txt")
    (folder / "new").write_bytes(b"new")
    assert counted(platform.run(job)) == {"skipped": 2, "uploaded": 1, "renamed": 1, "deleted": 2}
    wanted |= {"disk/new": b"new", "z/docs/b/one.txt": b"one"}
    for gone in ("z/docs/a/one.txt", "z/docs/two%2E", "blobs/one.txt"):
        del wanted[gone]
    assert lake(platform, library) == wanted


@pytest.mark.parametrize("which", ["disk", "docs", "blobs"])
def test_a_source_that_is_emptied_loses_nothing(platform: Platform, account: StorageAccount, which: str) -> None:
    library = Library(platform, files={"one": b"1", "two": b"2"})
    container = account.make_container()
    container.upload_blob("one", b"blob")
    folder = platform.source(library.job)
    (folder / "sub").mkdir()
    (folder / "sub" / "one").write_bytes(b"file")
    job = joined(platform, library, {
        "disk": {"type": "folder", "path": str(folder)}, "docs": library.source(),
        "blobs": {"type": "blob", "account_url": account.url, "container": container.container_name},
    })  # fmt: skip
    platform.run(job)
    before = lake(platform, library)
    match which:
        case "disk":
            shutil.rmtree(folder / "sub")
        case "docs":
            library.delete("one", "two")
        case "blobs":
            container.delete_blob("one")
    document = platform.run(job, "failed")
    assert document["error"]["code"] == "source_empty"
    assert lake(platform, library) == before


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b/", "/a"), ("a/../b", "c")])
def test_sources_that_would_lie_in_each_other_are_refused(platform: Platform, paths: tuple[str, str]) -> None:
    folder = {"type": "folder", "path": str(platform.source("apart"))}
    spec = platform.spec("apart")
    del spec["source"]
    answer = platform.post("/migrations", {**spec, "sources": [{**folder, "target_path": path} for path in paths]})
    assert answer.status == 400
    assert answer.fields[0].startswith("sources")
    both = platform.spec("apart", sources=[{**folder, "target_path": "a"}])
    assert platform.post("/migrations", both).fields == ["source"]
