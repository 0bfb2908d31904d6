"""The contract of a run store, held on a local folder and on Azure Blob's own emulator."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.clients.run_store import ObjectRunStore, open_run_store
from shared.errors import Configuration, StoreUnavailable
from tests.support.azurite import AzuriteMissing, running

MIB = 1024 * 1024


@pytest.fixture(scope="session")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    try:
        with running(tmp_path_factory.mktemp("azurite")) as given:
            from azure.storage.blob import BlobServiceClient

            with BlobServiceClient.from_connection_string(given, api_version="2023-11-03") as service:
                service.create_container("runs")
            yield given
    except AzuriteMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(params=["folder", "azure"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectRunStore:
    if request.param == "folder":
        return open_run_store(f"file:{tmp_path}", tmp_path, "")
    given = request.getfixturevalue("connection")
    return open_run_store(f"azure://runs/{tmp_path.name}", tmp_path, given)


async def test_what_was_put_is_got(store: ObjectRunStore) -> None:
    assert await store.get("a/b.json") is None
    for data in (b"", b"1", os.urandom(3 * MIB), b"2"):
        await store.put("a/b.json", data)
        assert await store.get("a/b.json") == data


async def test_of_many_that_create_a_key_one_does(store: ObjectRunStore) -> None:
    results = await asyncio.gather(*(store.put_new("claims/1.json", str(n).encode()) for n in range(24)))
    assert results.count(True) == 1
    assert await store.get("claims/1.json") == str(results.index(True)).encode()
    assert not await store.put_new("claims/1.json", b"later")


async def test_a_prefix_is_a_folder(store: ObjectRunStore) -> None:
    keys = ["p/p1/b.jsonl", "p/p1/a.jsonl", "p/p10/a.jsonl", "p/p1.json", "q", "p/p1/c/d"]
    for key in keys:
        await store.put(key, b"x")
    assert await store.list("p/p1") == ["p/p1/a.jsonl", "p/p1/b.jsonl", "p/p1/c/d"]
    assert await store.list("p") == sorted(key for key in keys if key.startswith("p/"))
    assert await store.list("nothing") == []


async def test_a_listing_is_whole(store: ObjectRunStore) -> None:
    keys = [f"many/{number:04d}" for number in range(300)]
    await asyncio.gather(*(store.put(key, b"") for key in keys))
    assert await store.list("many") == keys


async def test_deleting_what_is_and_what_is_not_there(store: ObjectRunStore) -> None:
    keys = [f"d/{number}" for number in range(50)]
    await asyncio.gather(*(store.put(key, b"1") for key in keys))
    await store.delete([*keys[:-1], "d/never"])
    await store.delete([])
    assert await store.list("d") == keys[-1:]


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 20 * MIB + 1])
async def test_a_written_object_appears_when_it_is_whole(store: ObjectRunStore, size: int) -> None:
    data = os.urandom(size)
    async with store.open_writer("manifest.json") as writer:
        for start in range(0, size, 3 * MIB):
            await writer.write(data[start : start + 3 * MIB])
        assert await store.get("manifest.json") is None
    assert await store.get("manifest.json") == data


@pytest.mark.parametrize("size", [10, 20 * MIB])
async def test_a_writer_that_breaks_off_leaves_what_was_there(store: ObjectRunStore, size: int) -> None:
    await store.put("manifest.json", b"old")
    with pytest.raises(KeyError):
        async with store.open_writer("manifest.json") as writer:
            await writer.write(b"x" * size)
            raise KeyError
    assert await store.get("manifest.json") == b"old"


async def test_a_store_that_cannot_be_used_stops_the_run(tmp_path: Path, connection: str) -> None:
    missing = open_run_store("azure://no-such-container", tmp_path, connection)
    with pytest.raises(StoreUnavailable) as caught:
        await missing.put("a", b"1")
    key = dict(part.split("=", 1) for part in connection.split(";") if part)["AccountKey"]
    assert key not in str(caught.value)
    broken = open_run_store(f"file:{tmp_path}/store", tmp_path, "")
    (tmp_path / "store").rmdir()
    (tmp_path / "store").write_bytes(b"a file")
    with pytest.raises(StoreUnavailable):
        await broken.put("a", b"1")


@pytest.mark.parametrize("url", ["", "runs", "file://host/x", "azure:", "s3://bucket"])
def test_urls_that_are_no_store(url: str, tmp_path: Path) -> None:
    with pytest.raises(Configuration, match="write file:<folder> or azure://"):
        open_run_store(url, tmp_path, "UseDevelopmentStorage=true")


@pytest.mark.parametrize("given", ["", "AccountName=a;EndpointSuffix=core.windows.net"])
def test_connections_that_name_no_account(given: str, tmp_path: Path) -> None:
    with pytest.raises(Configuration) as caught:
        open_run_store("azure://runs", tmp_path, given)
    assert caught.value.subject == "RUN_STORE_CONNECTION"
