"""The contract of a folder whose files are streamed, read in ranges and renamed whole."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from shared.clients import http
from shared.clients.onelake import OneLake
from shared.clients.onelake.service import SMALL_BLOCK_BYTES
from shared.clients.onelake.tree import LakeTree
from shared.errors import ConnectionLost, NotFound, TargetConflict
from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID, Lake, MakeOneLake

MIB = 1024 * 1024


def open_tree(lake: Lake, onelake: OneLake | None = None) -> LakeTree:
    return LakeTree(onelake or lake.onelake, WORKSPACE_ID, LAKEHOUSE_ID, f"Files/{lake.name}", owner="job")


@pytest.mark.parametrize("size", [0, 1, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1, 3 * SMALL_BLOCK_BYTES + 5])
async def test_a_file_appears_whole_at_its_end(lake: Lake, size: int) -> None:
    data = os.urandom(size)
    stream = await open_tree(lake).stream("d/file")
    for start in range(0, size, 3 * MIB):
        await stream.write(data[start : start + 3 * MIB])
    assert lake.on_disk() == {"d/file": b""}
    written = await stream.close()
    assert (written.size_bytes, written.md5) == (size, hashlib.md5(data).hexdigest())
    assert lake.on_disk() == {"d/file": data}
    found = await lake.folder.properties("d/file")
    assert found is not None
    assert (found.etag, found.md5) == (written.etag, written.md5)
    with pytest.raises(TargetConflict):
        await open_tree(lake).stream("d/file")


@pytest.mark.parametrize("operation", ["create", "append", "flush"])
@pytest.mark.parametrize("fault", ["throttle", "unavailable", "reset_before", "reset_after", "expired_token"])
async def test_a_call_that_fails_is_made_again(lake: Lake, operation: str, fault: str) -> None:
    lake.faults({"operation": operation, "fault": fault, "times": 1})
    data = os.urandom(2 * SMALL_BLOCK_BYTES)
    stream = await open_tree(lake).stream("file")
    await stream.write(data)
    written = await stream.close()
    assert lake.on_disk() == {"file": data}
    assert written.md5 == hashlib.md5(data).hexdigest()


async def test_a_damaged_block_is_sent_again(lake: Lake) -> None:
    lake.faults({"operation": "append", "fault": "corrupt_body", "times": 2})
    data = os.urandom(2 * SMALL_BLOCK_BYTES + 1)
    stream = await open_tree(lake).stream("file")
    await stream.write(data)
    await stream.close()
    assert lake.on_disk() == {"file": data}


async def test_nothing_is_left_of_a_file_that_was_given_up(lake: Lake, make_onelake: MakeOneLake) -> None:
    onelake = make_onelake(memory_bytes=SMALL_BLOCK_BYTES)
    stream = await open_tree(lake, onelake).stream("file")
    await stream.write(os.urandom(2 * SMALL_BLOCK_BYTES + 1))
    await stream.abort()
    assert lake.on_disk() == {}
    taken = await asyncio.wait_for(onelake.memory.take(SMALL_BLOCK_BYTES), 10)
    onelake.memory.give(taken)


async def test_many_open_files_share_the_memory_of_one_block(lake: Lake, make_onelake: MakeOneLake) -> None:
    tree = open_tree(lake, make_onelake(memory_bytes=SMALL_BLOCK_BYTES))
    data = [os.urandom(SMALL_BLOCK_BYTES + number) for number in range(6)]
    streams = [await tree.stream(f"f{number}") for number in range(6)]
    await asyncio.gather(*(stream.write(one) for stream, one in zip(streams, data, strict=True)))
    await asyncio.gather(*(stream.close() for stream in streams))
    assert lake.on_disk() == {f"f{number}": one for number, one in enumerate(data)}


async def test_ranges(lake: Lake) -> None:
    data = os.urandom(2 * SMALL_BLOCK_BYTES + 11)
    tree = open_tree(lake)
    stream = await tree.stream("file")
    await stream.write(data)
    await stream.close()
    lake.faults({"operation": "read", "fault": "short_body", "times": 1})
    ranges = [(0, 1), (5, 5 + SMALL_BLOCK_BYTES + 3), (len(data) - 8, len(data))]
    assert await tree.read_ranges("file", ranges) == [data[start:end] for start, end in ranges]
    assert await tree.read_whole("file") == data
    assert await tree.read_whole("missing") is None
    with pytest.raises(NotFound):
        await tree.read_ranges("missing", [(0, 1)])


@pytest.mark.parametrize("fault", ["", "reset_before", "reset_after", "server_error", "throttle"])
async def test_a_folder_is_renamed_in_one_step(lake: Lake, fault: str) -> None:
    tree = open_tree(lake)
    for name in ("a/1", "a/b/2"):
        await tree.put(name, name.encode())
    await tree.put("taken/3", b"3")
    if fault:
        lake.faults({"operation": "rename", "fault": fault, "times": 1})
    await tree.rename_folder("a", "z \u00e9%41")
    assert lake.on_disk() == {"z \u00e9%41/1": b"a/1", "z \u00e9%41/b/2": b"a/b/2", "taken/3": b"3"}
    with pytest.raises(NotFound):
        await tree.rename_folder("a", "y")
    with pytest.raises(TargetConflict):
        await tree.rename_folder("z \u00e9%41", "taken")
    assert {(one.path, one.is_directory) for one in await tree.entries()} == {("taken", True), ("z \u00e9%41", True)}
    assert {one.path for one in await tree.entries(recursive=True) if not one.is_directory} == set(lake.on_disk())
    assert await tree.entries("missing") == []
    assert await tree.delete_folder("z \u00e9%41")
    assert not await tree.delete_folder("z \u00e9%41")
    assert lake.on_disk() == {"taken/3": b"3"}


async def test_a_rename_onto_what_is_there_changes_nothing(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    tree = open_tree(lake)
    await tree.put("a/1", b"1")
    await tree.put("b/1", b"2")
    lake.faults({"operation": "rename", "fault": "reset_before", "times": 1})
    with pytest.raises((TargetConflict, ConnectionLost)):
        await tree.rename_folder("a", "b")
    assert lake.on_disk() == {"a/1": b"1", "b/1": b"2"}


async def test_a_small_file_is_replaced_on_condition(lake: Lake) -> None:
    tree = open_tree(lake)
    first = await tree.put("pointer", b"1")
    with pytest.raises(TargetConflict):
        await tree.put("pointer", b"2")
    second = await tree.put("pointer", b"2", only_over=first.etag)
    with pytest.raises(TargetConflict):
        await tree.put("pointer", b"3", only_over=first.etag)
    assert lake.on_disk() == {"pointer": b"2"}
    assert (await tree.put("pointer", b"4", only_over=second.etag)).size_bytes == 1
