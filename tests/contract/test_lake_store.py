"""The contract of a lake folder, held by the client against the emulated service over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web

from shared.clients import http
from shared.clients.blob import BlobContainer
from shared.clients.onelake import OneLake
from shared.clients.onelake.service import SMALL_BLOCK_BYTES, block_bytes
from shared.engine.survey import survey_target
from shared.errors import (
    Authentication,
    CapacityPaused,
    Configuration,
    ConnectionLost,
    DestinationMissing,
    ItemError,
    NotFound,
    SourceChanged,
    TargetConflict,
    Throttled,
)
from shared.policy.paths import staging_prefix
from tests.support.emulated import Content, Lake, MakeOneLake, MakeTokens
from tests.support.runs import make_run
from tests.support.storage_account import MakeAccount, StorageAccount, unsigned_tokens

MIB = 1024 * 1024
NAMES = [
    "%41", "a%2Fb", "a b", "a+b", "\u00e9", "e\u0301", "\U0001f600", "#1?x=2&y", "a'b\"c", "~tilde", "a;b,c", "=x",
    "100%", "x" * 200, "d/%20/\u00fc",
]  # fmt: skip


async def read(lake: Lake, path: str) -> bytes:
    return b"".join([block async for block in lake.folder.read(path)])


@pytest.mark.parametrize("sequence", ["auto", "three_step", "put_blob"])
@pytest.mark.parametrize("how", ["create", "replace"])
@pytest.mark.parametrize("size", [0, 1, SMALL_BLOCK_BYTES - 1, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1])
async def test_bytes_arrive(lake: Lake, how: str, size: int, sequence: str) -> None:
    data = os.urandom(size)
    written = await getattr(lake.open(sequence=sequence), how)("d/file", Content(data))
    found = await lake.folder.properties("d/file")
    assert found is not None
    assert (written.size_bytes, written.md5) == (size, hashlib.md5(data).hexdigest())
    assert (found.size_bytes, found.is_directory, found.etag) == (size, False, written.etag)
    assert found.md5 == written.md5, "the service keeps the hash of the whole file"
    assert [(one.path, one.size_bytes, one.etag) for one in (await lake.folder.list_page(None)).files] == [
        ("d/file", size, written.etag)
    ]
    assert not written.etag.startswith('"')
    assert await read(lake, "d/file") == data
    assert lake.on_disk() == {"d/file": data}


async def test_a_large_file_is_streamed(lake: Lake) -> None:
    data = os.urandom(80 * MIB)
    content = Content(data)
    written = await lake.folder.create("large", content)
    assert written.md5 == hashlib.md5(data).hexdigest()
    assert lake.on_disk()["large"] == data
    assert content.longest_read == SMALL_BLOCK_BYTES
    assert len(lake.effects("append")) == 10
    digest = hashlib.md5()
    async for block in lake.folder.read("large"):
        digest.update(block)
    assert digest.hexdigest() == written.md5


@pytest.mark.parametrize("size", [1, MIB, SMALL_BLOCK_BYTES, SMALL_BLOCK_BYTES + 1, 300 * MIB, 10**13, 190 * 2**40])
def test_blocks_are_few_enough_and_whole_meters(size: int) -> None:
    block = block_bytes(size)
    assert -(-size // block) <= 50_000
    assert block % (4 * MIB) == 0


async def test_replacing_never_shows_a_part(lake: Lake) -> None:
    await lake.folder.create("f", Content(b"old"))
    seen: list[bytes] = []

    async def look() -> None:
        seen.append(lake.on_disk()["f"])

    data = os.urandom(3 * SMALL_BLOCK_BYTES)
    await lake.folder.replace("f", Content(data, before_block=look))
    assert seen == [b"old"] * len(seen)
    assert len(seen) >= 2
    assert lake.on_disk() == {"f": data}


@pytest.mark.parametrize("size", [0, 5, SMALL_BLOCK_BYTES + 1])
async def test_a_file_that_is_there_is_not_written_over_by_create(lake: Lake, size: int) -> None:
    await lake.folder.create("f", Content(b"first"))
    with pytest.raises(TargetConflict) as caught:
        await lake.folder.create("f", Content(os.urandom(size)))
    assert caught.value.code == "target_exists"
    assert lake.on_disk() == {"f": b"first"}


async def test_folders_and_files_that_want_the_same_name(lake: Lake) -> None:
    await lake.folder.create("a/b", Content(b"1"))
    for path in ("a", "a/b/c"):
        for write in (lake.folder.create, lake.folder.replace):
            with pytest.raises(TargetConflict):
                await write(path, Content(b"2"))
    assert lake.on_disk() == {"a/b": b"1"} or set(lake.on_disk()) == {"a/b"} | {
        path for path in lake.on_disk() if ".olm-staging-" in path
    }
    found = await lake.folder.properties("a")
    assert found is not None
    assert found.is_directory


async def test_any_name_is_the_same_name_everywhere(lake: Lake) -> None:
    for number, name in enumerate(NAMES):
        await lake.open(sequence="three_step" if number % 2 else "auto").create(name, Content(b"1"))
    assert set(lake.on_disk()) == set(NAMES), "normalisation forms stay apart"
    listed = {one.path: one for one in (await lake.folder.list_page(None)).files}
    assert set(listed) == set(NAMES)
    for name in NAMES:
        replaced = await lake.folder.replace(name, Content(b"22"))
        assert await read(lake, name) == b"22"
        found = await lake.folder.properties(name)
        assert found is not None
        assert found.etag == replaced.etag
        assert await lake.folder.delete(name, etag=replaced.etag)
    assert lake.on_disk() == {}


# -- renaming and copying ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["g", "d/g", "new/deep/g", "d/f.txt", "d/\u00e9 %41 #?"])
@pytest.mark.parametrize("fault", ["", "reset_before", "reset_after", "server_error", "throttle"])
async def test_a_rename_takes_the_file_and_nothing_else(lake: Lake, path: str, fault: str) -> None:
    data = os.urandom(9)
    was = await lake.folder.create("d/F.txt", Content(data))
    if fault:
        lake.faults({"operation": "rename", "fault": fault, "times": 1})
    sent = len(lake.effects("append", "append_flush", "flush"))
    etag = await lake.folder.move("d/F.txt", path, was)
    assert lake.on_disk() == {path: data}
    found = await lake.folder.properties(path)
    assert found is not None
    assert (found.etag, found.md5) == (etag, was.md5)
    assert len(lake.effects("append", "append_flush", "flush")) == sent, "not a byte"
    assert await lake.folder.move("d/F.txt", path, was) == etag, "a second delivery finds it where it was to go"
    assert await lake.folder.delete(path, etag=etag), "the ETag is good for a condition"


async def test_a_rename_with_a_lost_answer_after_its_parent_was_made(lake: Lake) -> None:
    was = await lake.folder.create("f", Content(b"1"))
    lake.faults({"operation": "rename", "fault": "reset_after", "after": 1, "times": 1})
    etag = await lake.folder.move("f", "new/f", was)
    assert lake.on_disk() == {"new/f": b"1"}
    assert await lake.folder.delete("new/f", etag=etag)


@pytest.mark.parametrize("fault", ["", "reset_after"])
async def test_a_rename_changes_nothing_where_it_is_not_what_was_meant(
    lake: Lake, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    was = await lake.folder.create("f", Content(b"1"))
    for path, data in (("taken", b"2"), ("twin", b"1"), ("folder/file", b"3")):
        await lake.folder.create(path, Content(data))
    before = lake.on_disk()
    if fault:
        lake.faults({"operation": "rename", "fault": fault})
    for path, codes in (
        # The twin has the very bytes, and is not it as long as the file stands where it was.
        ("taken", {"target_exists"}), ("twin", {"target_exists"}),
        ("folder", {"target_exists", "path_conflict"}), ("taken/below", {"path_conflict", "parent_missing"}),
    ):  # fmt: skip
        with pytest.raises((TargetConflict, NotFound, ConnectionLost)) as caught:
            await lake.folder.move("f", path, was)
        assert fault or caught.value.code in codes, (path, caught.value.code)
    lake.faults()
    with pytest.raises(NotFound):
        await lake.folder.move("missing", "g", was)
    changed = await lake.folder.replace("f", Content(b"by somebody else"))
    with pytest.raises(TargetConflict) as refused:
        await lake.folder.move("f", "g", was)
    assert refused.value.code == "target_changed"
    assert lake.on_disk() == {**before, "f": b"by somebody else"}
    await lake.folder.move("f", "g", changed)


async def test_an_empty_folder_goes_and_no_other(lake: Lake) -> None:
    was = await lake.folder.create("a/b/f", Content(b"1"))
    assert not await lake.folder.remove_empty_folder("a/b")
    assert not await lake.folder.remove_empty_folder("a/b/f"), "a file is no folder"
    await lake.folder.move("a/b/f", "f", was)
    assert not await lake.folder.remove_empty_folder("a")
    lake.faults({"operation": "delete", "fault": "reset_after", "times": 1})
    await lake.folder.remove_empty_folder("a/b")
    assert await lake.folder.properties("a/b") is None
    assert await lake.folder.remove_empty_folder("a")
    assert not await lake.folder.remove_empty_folder("a")
    assert lake.on_disk() == {"f": b"1"}


@pytest.mark.parametrize("fault", ["", "reset_before", "reset_after"])
@pytest.mark.parametrize("size", [0, 5])
async def test_a_copy_by_the_service(
    lake: Lake, make_onelake: MakeOneLake, storage: StorageAccount, make_account: MakeAccount, size: int, fault: str
) -> None:
    container = storage.make_container()
    data = os.urandom(size)
    uploaded = container.upload_blob("a/b c", data)
    tree = BlobContainer(make_account(tokens=unsigned_tokens()), container.container_name)
    item = await tree.stat("a/b c")
    assert item is not None
    source = await tree.copy_source("a/b c", item.ref)
    assert source is not None
    folder = lake.open(make_onelake(blob_url=lake.emulators.addresses["onelake_blob_url"]))
    if fault:
        lake.faults({"operation": "append_flush", "fault": fault, "times": 1})
    written = await folder.copy("new/\u00e9", source, new=True)
    assert lake.on_disk() == {"new/\u00e9": data}
    found = await lake.folder.properties("new/\u00e9")
    assert found is not None
    assert (written.size_bytes, written.md5, written.etag) == (size, hashlib.md5(data).hexdigest(), found.etag)
    assert sum(one["bytes"] for one in lake.effects()) == 0, "not a byte went through here"
    await lake.folder.create("taken", Content(b"1"))
    with pytest.raises(TargetConflict) as caught:
        await folder.copy("taken", source, new=True)
    assert caught.value.code == "target_exists"
    container.upload_blob("a/b c", b"another", overwrite=True)
    if size:
        with pytest.raises(SourceChanged):
            await folder.copy("late", source, new=True)
        assert "late" not in lake.on_disk()
    assert uploaded.blob_name == "a/b c"


async def test_deleting(lake: Lake) -> None:
    first = await lake.folder.create("f", Content(b"1"))
    second = await lake.folder.replace("f", Content(b"2"))
    assert first.etag != second.etag
    with pytest.raises(TargetConflict) as caught:
        await lake.folder.delete("f", etag=first.etag)
    assert caught.value.code == "target_changed"
    assert lake.on_disk() == {"f": b"2"}
    assert await lake.folder.delete("f", etag=f'"{second.etag}"'), "with the quotes of a header too"
    assert not await lake.folder.delete("f", etag=second.etag)
    await lake.folder.create("g", Content(b"1"))
    assert await lake.folder.delete("g", etag="")


async def test_what_is_not_there(lake: Lake, make_onelake: MakeOneLake) -> None:
    assert await lake.folder.properties("missing") is None
    with pytest.raises(NotFound):
        await read(lake, "missing")
    lake.name = "never-made"
    assert list((await lake.open().list_page(None)).files) == []


async def test_a_listing_has_pages(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.clients.onelake.folder._LIST_PAGE", 3)
    paths = [f"d{number % 3}/f{number}" for number in range(8)]
    for path in paths:
        await lake.folder.create(path, Content(b"1"))
    found: list[str] = []
    continuation, pages = None, 0
    while True:
        page = await lake.folder.list_page(continuation)
        found += [one.path for one in page.files]
        pages += 1
        if (continuation := page.continuation) is None:
            break
    assert sorted(found) == sorted(paths)
    assert pages >= 3


@pytest.mark.parametrize(
    "document",
    [
        b"<html>a proxy's page</html>",
        b"<EnumerationResults><Blobs><Blob><Name>\x01</Name></Blob></Blobs></EnumerationResults>",
        b"<EnumerationResults><Blobs><Blob><Name>f</Name><Properties><Content-Length>many</Content-Length>"
        b"</Properties></Blob></Blobs></EnumerationResults>",
    ],
)
async def test_a_listing_with_hashes_that_cannot_be_read_is_made_without(lake: Lake, document: bytes) -> None:
    """The Blob endpoint's is XML, which not every name fits into."""
    await lake.folder.create("f", Content(b"1"))
    page = await lake.folder.list_page(None, hashes=True)
    assert [(one.path, one.md5) for one in page.files] == [("f", hashlib.md5(b"1").hexdigest())]
    send = lake.onelake.transport.send

    async def garbled(method: str, url: str, **given: Any) -> Any:
        return http.Answer(200, {}, document, 1) if "comp=list" in url else await send(method, url, **given)

    lake.onelake.transport.send = garbled  # type: ignore[method-assign]
    page = await lake.folder.list_page(None, hashes=True)
    assert [(one.path, one.md5) for one in page.files] == [("f", "")]


# -- the one-call commit -------------------------------------------------------------------------------------------


@pytest.fixture
async def refusing_url(lake: Lake) -> AsyncIterator[tuple[str, list[str]]]:
    """The service behind a front door that refuses ``flush`` on an append, as an older version would."""
    import aiohttp
    from yarl import URL

    refused: list[str] = []
    session = aiohttp.ClientSession(auto_decompress=False)

    async def forward(request: web.Request) -> web.Response:
        if request.query.get("action") == "append" and "flush" in request.query:
            refused.append(request.path)
            body = b'{"error":{"code":"UnsupportedQueryParameter","message":"not supported"}}'
            return web.Response(status=400, body=body, headers={"x-ms-error-code": "UnsupportedQueryParameter"})
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        url = URL(lake.emulators.addresses["onelake_plain_url"] + request.raw_path, encoded=True)
        async with session.request(request.method, url, headers=headers, data=await request.read()) as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() != "transfer-encoding"}
            return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    app = web.Application(client_max_size=64 * MIB)
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    yield f"http://127.0.0.1:{port}", refused
    await runner.cleanup()
    await session.close()


async def test_that_a_service_refuses_the_one_call_is_learned_once(
    lake: Lake, refusing_url: tuple[str, list[str]], make_onelake: MakeOneLake
) -> None:
    url, refused = refusing_url
    onelake = make_onelake(url=url)
    folder = lake.open(onelake)
    for number in range(4):
        await folder.create(f"f{number}", Content(b"1"))
    assert len(refused) == 1
    await lake.open(onelake).replace("f0", Content(b"2"))
    assert len(refused) == 1, "every folder of the process knows"
    assert lake.on_disk() == {"f0": b"2", "f1": b"1", "f2": b"1", "f3": b"1"}


async def test_a_job_that_asks_for_three_steps_never_asks(lake: Lake) -> None:
    await lake.open(sequence="three_step").create("f", Content(b"1"))
    assert [one["operation"] for one in lake.effects()[1:]] == ["create", "append", "flush"]


async def test_the_happy_path_is_two_calls(lake: Lake) -> None:
    await lake.folder.create("f", Content(b"1"))
    assert [one["operation"] for one in lake.effects()[1:]] == ["create", "append_flush"]


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["reset_before", "reset_after", "server_error", "unavailable", "throttle"])
@pytest.mark.parametrize("operation", ["create", "append", "append_flush", "flush", "rename", "put_blob"])
@pytest.mark.parametrize("how", ["create", "replace"])
@pytest.mark.parametrize("size", [5, SMALL_BLOCK_BYTES + 1])
async def test_a_lost_answer_changes_nothing(lake: Lake, operation: str, fault: str, how: str, size: int) -> None:
    sequence = {"append": "three_step", "flush": "three_step", "put_blob": "put_blob"}.get(operation, "auto")
    if operation == "rename" and how == "create":
        how = "replace"
    if operation == "put_blob":
        # A fault plan counts a Blob write as what it does.
        operation = "append_flush"
    if operation == "append_flush" and size > SMALL_BLOCK_BYTES:
        operation = "append"
    if how == "replace":
        await lake.folder.create("f", Content(b"old"))
    data = os.urandom(size)
    before = len(lake.effects())
    lake.faults({"operation": operation, "fault": fault, "times": 1})
    written = await getattr(lake.open(sequence=sequence), how)("f", Content(data))
    assert lake.emulators.fault_hits() == [1]
    assert lake.on_disk() == {"f": data}
    found = await lake.folder.properties("f")
    assert found is not None
    assert (found.etag, found.md5) == (written.etag, written.md5)
    moved = [one for one in lake.effects("rename")[before:] if one["status"] == 201]
    assert len(moved) <= 1, "the effect is there once"


async def test_a_condition_on_an_etag_is_sent_in_quotes(lake: Lake) -> None:
    """An ETag without its quotes is no entity tag; after a lost answer it comes from another header than usual."""
    lake.faults({"operation": "create", "fault": "reset_after", "times": 1})
    folder = lake.open(sequence="three_step")
    await folder.create("f", Content(b"1"))
    await folder.create("g", Content(b"1"))
    sent = [one["if_match"] for one in lake.effects("flush")]
    assert len(sent) == 2
    assert all(tag.startswith('"') and tag.endswith('"') for tag in sent)


async def test_deletes_with_lost_answers(lake: Lake) -> None:
    for fault in ("reset_before", "reset_after"):
        written = await lake.folder.create("f", Content(b"1"))
        lake.faults({"operation": "delete", "fault": fault, "times": 1})
        assert await lake.folder.delete("f", etag=written.etag) == (fault == "reset_before")
        assert lake.on_disk() == {}


@pytest.mark.parametrize("operation", ["append", "append_flush"])
async def test_a_block_that_is_damaged_on_the_way_is_sent_again(lake: Lake, operation: str) -> None:
    lake.faults({"operation": operation, "fault": "corrupt_body", "times": 1})
    await lake.open(sequence="three_step" if operation == "append" else "auto").create("f", Content(b"12345"))
    assert lake.emulators.fault_hits() == [1]
    assert lake.on_disk() == {"f": b"12345"}
    assert [one.get("error_code") for one in lake.effects(operation)] == ["Md5Mismatch", None]


async def test_bytes_that_are_damaged_at_every_try_are_never_committed(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    await lake.folder.create("f", Content(b"old"))
    lake.faults({"operation": "append_flush", "fault": "corrupt_body"})
    with pytest.raises(Exception, match="damaged"):
        await lake.folder.replace("f", Content(b"new"))
    assert lake.on_disk()["f"] == b"old"


async def test_a_source_that_shrinks_leaves_nothing(lake: Lake) -> None:
    for size in (5, SMALL_BLOCK_BYTES + 5):
        with pytest.raises(SourceChanged):
            await lake.folder.create("f", Content(b"123", size_bytes=size))
        assert lake.on_disk() == {}


async def test_what_a_kill_left_beside_a_target_is_overwritten_and_swept(lake: Lake, tmp_path: Any) -> None:
    await lake.folder.create("d/f", Content(b"old"))

    async def killed() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await lake.folder.replace("d/f", Content(b"x" * (SMALL_BLOCK_BYTES + 1), before_block=killed))
    left = set(lake.on_disk()) - {"d/f"}
    assert {path.startswith(f"d/{staging_prefix('job')}") for path in left} == {True}
    await lake.open(owner="other").create(f"d/{staging_prefix('other')}x", Content(b""))
    run = make_run(tmp_path, lake=lake.folder)
    assert await survey_target(run, "before", 0, None) == (1, None)
    assert set(lake.on_disk()) == {"d/f", f"d/{staging_prefix('other')}x"}, "another job's is another job's"
    await lake.folder.replace("d/f", Content(b"new"))
    assert lake.on_disk()["d/f"] == b"new"


async def test_half_an_answer_is_never_a_whole_file(lake: Lake) -> None:
    await lake.folder.create("f", Content(b"x" * 100_000))
    lake.faults({"operation": "read", "fault": "short_body", "times": 1})
    with pytest.raises(ConnectionLost):
        await read(lake, "f")
    assert len(await read(lake, "f")) == 100_000


# -- tokens and pacing ---------------------------------------------------------------------------------------------


async def test_many_uploads_with_an_expired_token_refresh_it_once(lake: Lake) -> None:
    await lake.folder.create("warm", Content(b"1"))
    lake.emulators.reset_stats()
    lake.faults({"operation": "create", "fault": "expired_token", "times": 30})
    await asyncio.gather(*(lake.folder.create(f"f{n}", Content(b"1")) for n in range(30)))
    assert len(lake.on_disk()) == 31
    assert lake.emulators.stats()["entra"]["token"] == {"200": 1}


async def test_a_token_that_is_rejected_again_stops_the_run(lake: Lake) -> None:
    lake.faults({"operation": "create", "fault": "expired_token"})
    with pytest.raises(Authentication) as caught:
        await lake.folder.create("f", Content(b"1"))
    assert caught.value.code == "token_expired"


async def test_listing_and_deleting_renew_an_expired_token_too(lake: Lake) -> None:
    written = await lake.folder.create("f", Content(b"1"))
    lake.emulators.set_faults([{"operation": "list", "fault": "expired_token", "times": 1},
                               {"operation": "delete", "fault": "expired_token", "times": 1}])  # fmt: skip
    assert len((await lake.folder.list_page(None)).files) == 1
    assert await lake.folder.delete("f", etag=written.etag)


@pytest.mark.parametrize(
    ("options", "error", "code"),
    [
        ({"client": "reader"}, Authentication, "permission_denied"),
        ({"client": "outsider"}, Authentication, "permission_denied"),
        ({"scope": "https://api.fabric.microsoft.com/.default"}, Authentication, "token_rejected"),
        ({"client_secret": "wrong-but-secret"}, Authentication, "token_refused"),
    ],
)
async def test_what_every_item_would_fail_at_stops_the_run(
    lake: Lake, make_onelake: MakeOneLake, make_tokens: MakeTokens, options: dict[str, str], error: Any, code: str
) -> None:
    with pytest.raises(error) as caught:
        await lake.open(make_onelake(make_tokens(**options))).check(write=True)
    assert caught.value.code == code
    assert "wrong-but-secret" not in str(caught.value)


async def test_addresses_that_lead_nowhere(lake: Lake, make_onelake: MakeOneLake) -> None:
    from shared.clients.onelake import LakeFolder
    from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID

    def at(workspace: str, item: str, root: str = "Files/x") -> LakeFolder:
        return LakeFolder(lake.onelake, workspace, item, root, owner="job")

    paused = ("a1b2c3d4-0003-4000-8000-00000000000a", "a1b2c3d4-0003-4000-8000-000000000001")
    with pytest.raises(DestinationMissing):
        await at(WORKSPACE_ID, "00000000-0000-4000-8000-000000000000").check(write=False)
    with pytest.raises(CapacityPaused):
        await at(*paused).check(write=False)
    await lake.folder.create("file", Content(b"1"))
    for root in (f"Files/{lake.name}/file", f"Files/{lake.name}/file/below"):
        with pytest.raises(Configuration) as caught:
            await at(WORKSPACE_ID, LAKEHOUSE_ID, root).check(write=True)
        assert caught.value.code == "target_is_file"


async def test_only_who_made_the_folder_is_told_that_it_is_new(lake: Lake) -> None:
    from shared.clients.onelake import LakeFolder
    from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID

    below = LakeFolder(lake.onelake, WORKSPACE_ID, LAKEHOUSE_ID, f"Files/{lake.name}/new/below", owner="job")
    assert not await below.check(write=False)
    assert await below.check(write=True)
    assert not await below.check(write=True)
    lake.faults({"operation": "create", "fault": "reset_after", "times": 1})
    other = LakeFolder(lake.onelake, WORKSPACE_ID, LAKEHOUSE_ID, f"Files/{lake.name}/other", owner="job")
    assert not await other.check(write=True), "whoever made it, this answer does not tell"


async def test_of_a_file_that_became_longer_no_more_is_read_than_tells_it_apart(lake: Lake) -> None:
    await lake.folder.create("f", Content(b"12345"))
    assert b"".join([block async for block in lake.folder.read("f", 5)]) == b"12345"
    assert b"".join([block async for block in lake.folder.read("f", 3)]) == b"1234"
    await lake.folder.create("empty", Content(b""))
    assert b"".join([block async for block in lake.folder.read("empty", 0)]) == b""
    lake.faults({"operation": "read", "fault": "short_body", "times": 1})
    assert b"".join([block async for block in lake.folder.read("f", 5)]) == b"12345"


async def test_of_a_file_that_became_empty_nothing_is_read(lake: Lake) -> None:
    """The service answers 416, which says nothing against the run as a whole."""
    await lake.folder.create("f", Content(b""))
    assert b"".join([block async for block in lake.folder.read("f", 5)]) == b""


async def test_what_stands_there_in_place_of_a_lost_file_is_not_taken_for_it(lake: Lake) -> None:
    """Somebody removed what was staged; at its place stands a file of the same size, of whom no hash is stored."""
    rename = lake.onelake.transport.send

    async def removed_before(method: str, url: str, **given: Any) -> Any:
        if "mode=legacy" in url:
            lake.onelake.transport.send = rename  # type: ignore[method-assign]
            staged = next(path for path in lake.on_disk() if ".olm-staging-" in path)
            await lake.folder.delete(staged, etag="")
        return await rename(method, url, **given)

    await _create_without_a_hash(lake, "f", b"somebody's")
    lake.onelake.transport.send = removed_before  # type: ignore[method-assign]
    with pytest.raises(NotFound):
        await lake.folder.replace("f", Content(b"0123456789"))
    assert lake.on_disk() == {"f": b"somebody's"}


async def test_a_lost_answer_to_a_rename_is_found_out_where_no_hash_is_stored(lake: Lake) -> None:
    """By reading what stands there."""
    properties = lake.folder.properties

    async def without_hash(path: str) -> Any:
        found = await properties(path)
        return replace(found, md5="") if found is not None else None

    lake.folder.properties = without_hash  # type: ignore[method-assign]
    lake.faults({"operation": "rename", "fault": "reset_after", "times": 1})
    written = await lake.folder.replace("f", Content(b"0123456789"))
    assert written.size_bytes == 10
    assert lake.on_disk() == {"f": b"0123456789"}


async def _create_without_a_hash(lake: Lake, path: str, data: bytes) -> None:
    folder, send = lake.folder, lake.onelake.transport.send
    base = f"{folder._url(path)}"
    version = {"x-ms-version": "2023-11-03"}
    await send("PUT", f"{base}?resource=file", headers=version, subject=path)
    await send("PATCH", f"{base}?action=append&position=0", headers=version, data=data, subject=path)
    await send("PATCH", f"{base}?action=flush&position={len(data)}", headers=version, subject=path)
    found = await folder.properties(path)
    assert found is not None
    assert (found.size_bytes, found.md5) == (len(data), "")


async def test_a_name_that_the_lake_refuses_is_that_items_fault(lake: Lake) -> None:
    with pytest.raises(ItemError):
        await lake.folder.create("/".join(["d"] * 70), Content(b"1"))


class Clock:
    """Time that passes only in sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []

        class Time:
            @staticmethod
            def monotonic() -> float:
                return self.now_s

        monkeypatch.setattr(http, "time", Time)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


async def test_retry_after_holds_for_everybody(clock: Clock) -> None:
    pacing = http.Pacing(clock.sleep)
    await pacing.turn()
    assert clock.slept == []
    pacing.pause(30)
    pacing.pause(10)
    order: list[str] = []

    async def send(name: str) -> None:
        await pacing.turn()
        assert clock.now_s >= 1030
        order.append(name)

    await asyncio.gather(*(send(str(number)) for number in range(5)))
    assert len(order) == 5
    assert 30 <= clock.slept[0] <= 31


async def test_who_waited_for_the_same_moment_comes_back_one_after_the_other(clock: Clock) -> None:
    all_wait = asyncio.Barrier(20)
    moments: list[float] = []

    async def sleep(seconds: float) -> None:
        moments.append(clock.now_s + seconds)
        await all_wait.wait()
        clock.now_s = max(clock.now_s, moments[0])

    pacing = http.Pacing(sleep)
    pacing.pause(30)
    await asyncio.gather(*(pacing.turn() for _ in range(20)))
    assert all(1030 <= moment <= 1031 for moment in moments)
    assert len(set(moments)) > 1


async def test_what_is_sent_again_counts_against_the_bandwidth(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    spent: list[int] = []
    original = lake.onelake.transport.pacing.spend

    async def watched(size_bytes: int, bytes_per_s: int | None) -> None:
        spent.append(size_bytes)
        await original(size_bytes, bytes_per_s)

    monkeypatch.setattr(lake.onelake.transport.pacing, "spend", watched)
    lake.faults({"operation": "append_flush", "fault": "reset_before", "times": 2})
    await lake.open(bandwidth=10**9).create("f", Content(b"x" * 700))
    await lake.open(bandwidth=10**9, sequence="put_blob").create("g", Content(b"x" * 300))
    assert sum(spent) == 3 * 700 + 300


async def test_a_service_that_goes_on_refusing_holds_nobody_for_longer_than_an_activity_waits(
    lake: Lake, clock: Clock
) -> None:
    """Whoever comes back first is refused again, and everybody else's pause becomes longer."""

    async def refused_meanwhile(seconds: float) -> None:
        await clock.sleep(seconds)
        assert clock.now_s < 1000 + 2 * http.BUDGET_S
        lake.onelake.transport.pacing.pause(10)

    lake.onelake.transport.pacing = http.Pacing(refused_meanwhile)
    lake.onelake.transport.pacing.pause(10)
    with pytest.raises(Throttled):
        await lake.folder.create("f", Content(b"1"))
    assert clock.now_s <= 1000 + http.BUDGET_S
    assert lake.on_disk() == {}


async def test_a_bandwidth_cap_serves_callers_in_turn(clock: Clock) -> None:
    pacing = http.Pacing(clock.sleep)
    for _ in range(4):
        await pacing.spend(500, 1000)
    assert clock.now_s == pytest.approx(1001.5)
    await pacing.spend(10**9, None)
    assert clock.now_s == pytest.approx(1001.5)


async def test_the_service_asking_one_pauses_all(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    original: Callable[[float], None] = lake.onelake.transport.pacing.pause
    monkeypatch.setattr(
        lake.onelake.transport.pacing, "pause", lambda seconds: (pauses.append(seconds), original(0.01))
    )
    lake.faults({"operation": "create", "fault": "throttle", "retry_after_s": 1, "times": 1})
    monkeypatch.setattr("shared.clients.http.transport_delay_s", lambda *_: 0.0)
    await lake.folder.create("f", Content(b"1"))
    assert pauses == [1.0]


async def test_a_pause_longer_than_an_activity_waits_is_handed_to_the_durable_timer(lake: Lake) -> None:
    """Otherwise every worker sleeps through its function timeout."""
    lake.faults({"operation": "create", "fault": "throttle", "retry_after_s": 3600, "times": 1})
    with pytest.raises(Throttled) as caught:
        await lake.folder.create("f", Content(b"1"))
    assert caught.value.retry_after_s == 3600
    async with asyncio.timeout(30):
        with pytest.raises(Throttled) as second:
            await lake.folder.create("g", Content(b"1"))
    assert second.value.retry_after_s is not None
    assert 800 < second.value.retry_after_s <= 900, "an hour is asked about again after a quarter of it"


async def test_memory_is_bounded_and_given_back(make_onelake: MakeOneLake) -> None:
    budget = OneLakeBudget(make_onelake(memory_bytes=100))
    big = await budget.take(1000)
    assert big == 100, "more than there is waits until it is alone"
    waiting = [asyncio.create_task(budget.take(60)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    budget.give(big)
    for _ in range(5):
        await asyncio.sleep(0)
    assert sum(task.done() for task in waiting) == 1
    waiting[1].cancel()
    budget.give(60)
    for _ in range(5):
        await asyncio.sleep(0)
    assert sum(task.done() and not task.cancelled() for task in waiting) == 2


def OneLakeBudget(onelake: OneLake) -> Any:  # noqa: N802 - reads as what it stands for
    return onelake.memory
