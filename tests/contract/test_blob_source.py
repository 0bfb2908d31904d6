"""A storage account as a source, against the vendor's own emulator; its faults against OneLake's Blob endpoint."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import socket
from base64 import b64encode
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.storage.blob import (
    ContainerClient,
    ContainerSasPermissions,
    ContentSettings,
    StandardBlobTier,
    generate_container_sas,
)

from shared.clients.blob import BlobContainer
from shared.clients.blob.listing import parse_page, read_ref
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    ConnectionLost,
    NotFound,
    RunError,
    ServiceUnavailable,
    SourceChanged,
    SourceMissing,
    TransientError,
    Unsupported,
)
from shared.policy.paths import unmappable_reason
from shared.ports import SourceItem
from tests.support.emulated import Content, Lake, MakeTokens
from tests.support.storage_account import MakeAccount, StorageAccount, unsigned_tokens

MIB = 1024 * 1024
ODD_NAMES = [
    "plain.txt", "a b/c d.txt", "100%.txt", "%41.txt", "a#b.txt", "a?b=c&d.txt", "plus+sign.txt", "naïve/日本語.txt",
    "emoji 🚀.bin", "quote'\"s.txt", "semi;colon:.txt", "tilde~.txt", "dots.../x", "<tag>&amp;.txt", "end ",
]  # fmt: skip
# The service turns a backslash into a slash itself.
UNMAPPABLE = ["a//b.txt", "/leading.txt", "dot./x", "trailing."]
# Azurite has one code for a signature that is wrong and for a firewall; the service has AuthenticationFailed for that.
REFUSED = {"source_credential_refused", "source_permission_denied"}


def md5(data: bytes) -> bytes:
    return hashlib.md5(data, usedforsecurity=False).digest()


def put(container: ContainerClient, name: str, data: bytes = b"x", **options: Any) -> None:
    container.upload_blob(name, data, overwrite=True, **options)


async def everything(source: BlobContainer, limit: int = 5000) -> list[SourceItem]:
    items: list[SourceItem] = []
    cursor = None
    while True:
        page = await source.list_page(cursor, limit)
        assert len(page.items) <= limit
        items += page.items
        cursor = page.cursor
        if cursor is None:
            return items


async def content(source: BlobContainer, item: SourceItem, block: int = MIB) -> bytes:
    opened = await source.open(item.path, item.ref)
    try:
        assert (opened.size_bytes, opened.version) == (item.size_bytes, item.version)
        parts = []
        while data := await opened.read(block):
            parts.append(data)
        await opened.finish()
        return b"".join(parts)
    finally:
        await opened.close()


@pytest.fixture
def container(storage: StorageAccount) -> ContainerClient:
    return storage.make_container()


@pytest.fixture
def source(container: ContainerClient, make_account: MakeAccount) -> BlobContainer:
    return BlobContainer(make_account(), container.container_name)


# -- listing -----------------------------------------------------------------------------------------------------------


async def test_pages_hold_every_blob_once(source: BlobContainer, container: ContainerClient) -> None:
    names = [f"f{number:03d}/x" for number in range(57)]
    for name in names:
        put(container, name)
    for limit in (1, 7, 57, 9999):
        assert sorted(item.path for item in await everything(source, limit)) == names
    first = await source.list_page(None, 10)
    elsewhere = BlobContainer(source._account, container.container_name)
    assert {i.path for i in (await elsewhere.list_page(first.cursor, 10)).items}.isdisjoint(
        {i.path for i in first.items}
    )


@pytest.mark.parametrize("name", ODD_NAMES)
async def test_names_are_what_they_are(source: BlobContainer, container: ContainerClient, name: str) -> None:
    put(container, name, name.encode())
    (item,) = await everything(source)
    assert item.path == name
    assert await content(source, item) == name.encode()
    assert await source.stat(name) == item


@pytest.mark.parametrize("name", UNMAPPABLE)
async def test_names_that_no_lake_takes_are_told_and_not_lost(
    source: BlobContainer, container: ContainerClient, name: str
) -> None:
    put(container, name)
    (item,) = await everything(source)
    assert item.path == name
    assert unmappable_reason(item.path)


@pytest.mark.parametrize("folder", ["p", "p/q", "a b", "100%", "a#b", "a?b", "naïve 日本", "x'y&z"])
async def test_a_prefix_is_a_folder(make_account: MakeAccount, container: ContainerClient, folder: str) -> None:
    for name in (f"{folder}/one", f"{folder}/two/three", f"{folder}x/no", f"{folder}", "other"):
        put(container, name)
    for prefix in (folder, f"{folder}/"):
        source = BlobContainer(make_account(), container.container_name, prefix)
        items = await everything(source)
        assert [item.path for item in items] == ["one", "two/three"]
        assert [await content(source, item) for item in items] == [b"x", b"x"]


async def test_markers_of_folders_are_no_items(make_account: MakeAccount, container: ContainerClient) -> None:
    put(container, "p", b"", metadata={"hdi_isfolder": "true"})
    put(container, "p/", b"")
    put(container, "p/sub", b"", metadata={"Hdi_isfolder": "true"})
    put(container, "p/portal/", b"")
    put(container, "p/sub/file", b"")
    put(container, "p/strange/", b"content")
    for prefix, expected in (("", {"p/sub/file", "p/strange/"}), ("p/", {"sub/file", "strange/"})):
        source = BlobContainer(make_account(), container.container_name, prefix)
        assert {item.path for item in await everything(source)} == expected
        assert await source.stat("sub" if prefix else "p/sub") is None
    put(container, "p/", b"content")
    item = (await source.list_page(None, 1)).items[0]
    assert item.problem is not None
    assert item.problem[0] == "unmappable_path"


async def test_what_is_not_the_present_content_is_not_listed(source: BlobContainer, container: ContainerClient) -> None:
    put(container, "kept", b"1")
    container.get_blob_client("kept").create_snapshot()
    put(container, "kept", b"2")
    container.get_blob_client("uncommitted").stage_block("YQ==", b"x")
    (item,) = await everything(source)
    assert await content(source, item) == b"2"


async def test_facts(source: BlobContainer, container: ContainerClient) -> None:
    put(container, "a.pdf", b"12345", content_settings=ContentSettings(content_type="application/pdf"))
    (item,) = await everything(source)
    properties = container.get_blob_client("a.pdf").get_blob_properties()
    assert item.size_bytes == 5
    assert item.facts is not None
    assert item.version == item.facts["blob_etag"] == properties.etag.strip('"')
    assert item.facts["content_md5"] == b64encode(md5(b"12345")).decode()
    assert item.facts["last_modified"] == properties.last_modified.strftime("%Y-%m-%dT%H:%M:%SZ")
    assert item.facts["content_type"] == "application/pdf"
    assert item.facts["blob_type"] == "BlockBlob"
    assert item.facts["access_tier"] == "Hot"
    assert read_ref(item.ref) == (item.version, 5, item.facts["content_md5"])
    assert len(item.ref) < 200
    put(container, "a.pdf", b"12345")
    assert (await everything(source))[0].version != item.version


async def test_an_archived_blob_is_named(source: BlobContainer, container: ContainerClient) -> None:
    put(container, "cold", standard_blob_tier=StandardBlobTier.ARCHIVE)
    put(container, "warm")
    cold, warm = await everything(source)
    assert warm.problem is None
    assert cold.problem is not None
    assert cold.problem[0] == "archived"
    assert "rehydrate" in cold.problem[1]
    stat = await source.stat("cold")
    assert stat is not None
    assert stat.problem == cold.problem
    with pytest.raises(Unsupported) as caught:
        await source.open("cold", cold.ref)
    assert caught.value.code == "archived"
    container.get_blob_client("cold").set_standard_blob_tier(StandardBlobTier.HOT)
    again = (await everything(source))[0]
    assert again.problem is None or "rehydrated" in again.problem[1]


async def test_identity(make_account: MakeAccount, container: ContainerClient) -> None:
    source = BlobContainer(make_account(), container.container_name, "p")
    put(container, "elsewhere")
    put(container, "p/", b"")
    assert await source.identity() is None
    put(container, "p/x")
    here = await source.identity()
    assert here is not None
    assert await BlobContainer(make_account(), container.container_name, "p/").identity() == here
    assert await BlobContainer(make_account(), container.container_name).identity() != here


XML = '<?xml version="1.0" encoding="utf-8"?><EnumerationResults>{}</EnumerationResults>'


def blob_xml(name: str, inside: str = "", properties: str = "", attribute: str = "") -> str:
    length = "" if "Content-Length" in properties else "<Content-Length>1</Content-Length>"
    return f"<Blob><Name{attribute}>{name}</Name>{inside}<Properties>{length}{properties}</Properties></Blob>"


def test_listings_as_other_accounts_give_them() -> None:
    blobs = "".join([
        blob_xml("folder", properties="<ResourceType>directory</ResourceType><Content-Length>0</Content-Length>"),
        blob_xml("odd%EF%BF%BE%01%25", attribute=' Encoded="true"'),
        blob_xml("old", "<VersionId>1</VersionId><IsCurrentVersion>false</IsCurrentVersion>"),
        blob_xml("new", "<VersionId>2</VersionId><IsCurrentVersion>true</IsCurrentVersion>", "<Etag>0x1</Etag>"),
        blob_xml("gone", "<Deleted>true</Deleted>"),
        blob_xml("page", properties="<BlobType>PageBlob</BlobType><Content-MD5>c3RhbGU=</Content-MD5>"),
    ])  # fmt: skip
    items, cursor = parse_page(XML.format(f"<Blobs>{blobs}</Blobs><NextMarker>2!76!x--</NextMarker>").encode(), "")
    assert [item.path for item in items] == ["odd\ufffe\x01%", "new", "page"]
    assert cursor == "2!76!x--"
    assert items[1].facts is not None
    assert items[1].facts["version_id"] == "2"
    assert read_ref(items[2].ref)[2] == "", "Put Page leaves the stored hash as it was"


@pytest.mark.parametrize("document", [
    b"", b"<html></html>", b"<EnumerationResults>", XML.format("").encode(),
    b'<!DOCTYPE x [<!ENTITY a "b">]><EnumerationResults><Blobs/></EnumerationResults>',
])  # fmt: skip
def test_what_is_no_listing_is_not_taken_for_an_empty_one(document: bytes) -> None:
    with pytest.raises(ServiceUnavailable):
        parse_page(document, "")


# -- reading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 8 * MIB, 8 * MIB + 1, 20 * MIB + 17])
async def test_bytes(source: BlobContainer, container: ContainerClient, size: int) -> None:
    data = os.urandom(size)
    put(container, "f", data, content_settings=ContentSettings(content_md5=bytearray(md5(data))))
    (item,) = await everything(source)
    assert await content(source, item, 3 * MIB) == data
    opened = await source.open("f")
    assert opened.version == item.version
    assert await opened.read(5) == data[:5]
    await opened.close()


async def test_a_hash_is_checked_where_there_is_one(source: BlobContainer, container: ContainerClient) -> None:
    for name, stored in (("right", md5(b"data")), ("wrong", md5(b"other")), ("none", None)):
        put(container, name, b"data")
        settings = ContentSettings(content_md5=bytearray(stored) if stored else None)
        container.get_blob_client(name).set_http_headers(settings)
    put(container, "appended", b"data", blob_type="AppendBlob")
    container.get_blob_client("appended").set_http_headers(ContentSettings(content_md5=bytearray(md5(b"data"))))
    container.get_blob_client("appended").append_block(b" and more")
    items = {item.path: item for item in await everything(source)}
    assert await content(source, items["right"]) == b"data"
    assert await content(source, items["none"]) == b"data"
    assert await content(source, items["appended"]) == b"data and more"
    assert items["none"].facts is not None
    assert items["none"].facts["content_md5"] is None
    with pytest.raises(TransientError) as caught:
        await content(source, items["wrong"])
    assert caught.value.code == "integrity_mismatch"
    assert md5(b"other").hex() in caught.value.detail


@pytest.mark.parametrize("size", [5, 40 * MIB])
async def test_what_changed_is_not_read(source: BlobContainer, container: ContainerClient, size: int) -> None:
    put(container, "f", b"a" * size)
    (item,) = await everything(source)
    put(container, "f", b"b" * size)
    with pytest.raises(SourceChanged):
        await source.open("f", item.ref)
    now = await source.stat("f")
    assert now is not None
    assert await content(source, now) == b"b" * size
    container.delete_blob("f")
    with pytest.raises(NotFound) as caught:
        await source.open("f", now.ref)
    assert caught.value.code == "source_gone"
    assert await source.stat("f") is None


@pytest.mark.parametrize(("change", "error"), [("write", SourceChanged), ("delete", NotFound)])
async def test_a_break_meets_another_version(
    source: BlobContainer, container: ContainerClient, change: str, error: type[Exception]
) -> None:
    put(container, "f", b"a" * 40 * MIB)
    (item,) = await everything(source)
    opened = await source.open("f", item.ref)
    await opened.read(MIB)
    if change == "write":
        put(container, "f", b"b" * 40 * MIB)
    else:
        container.delete_blob("f")
    await opened._disconnect()
    with pytest.raises(error):
        while await opened.read(MIB):
            pass
    await opened.close()


async def test_a_break_is_taken_up_where_it_was(source: BlobContainer, container: ContainerClient) -> None:
    data = os.urandom(24 * MIB)
    put(container, "f", data)
    (item,) = await everything(source)
    opened = await source.open("f", item.ref)
    parts = []
    while block := await opened.read(5 * MIB + 3):
        parts.append(block)
        await opened._disconnect()
    await opened.finish()
    assert b"".join(parts) == data


async def test_half_read_is_not_finished(source: BlobContainer, container: ContainerClient) -> None:
    put(container, "f", b"12345")
    opened = await source.open("f")
    assert await opened.read(2) == b"12"
    await opened.read(10)
    await opened.finish()
    put(container, "f", b"a" * 9 * MIB)
    large = await source.open("f")
    await large.read(2)
    with pytest.raises(SourceChanged):
        await large.finish()
    await large.close()


async def test_many_at_once(source: BlobContainer, container: ContainerClient) -> None:
    for number in range(40):
        put(container, f"{number:02d}", str(number).encode() * 1000)
    items = await everything(source)
    found = await asyncio.gather(*(content(source, item) for item in items))
    assert found == [str(number).encode() * 1000 for number in range(40)]


# -- who may -----------------------------------------------------------------------------------------------------------


def sas(storage: StorageAccount, container: str, permission: str = "rl", hours: float = 1, **options: Any) -> str:
    return generate_container_sas(
        storage.name, container, account_key=storage.key,
        permission=ContainerSasPermissions.from_string(permission),
        expiry=datetime.now(UTC) + timedelta(hours=hours), **options,
    )  # fmt: skip


async def test_every_kind_of_credential_reads(
    storage: StorageAccount, container: ContainerClient, make_account: MakeAccount
) -> None:
    put(container, "a b/f", b"data")
    name = container.container_name
    for account in (
        make_account(),
        make_account(kind="sas", sas_token=sas(storage, name)),
        make_account(tokens=unsigned_tokens()),
    ):
        source = BlobContainer(account, name)
        await source.check()
        (item,) = await everything(source)
        assert await content(source, item) == b"data"


async def test_what_cannot_be_read_stops_the_run_with_a_remedy(
    storage: StorageAccount, container: ContainerClient, make_account: MakeAccount, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    name = container.container_name
    other_key = b64encode(b"another key").decode()
    no_list, late = sas(storage, name, "r"), sas(storage, name, hours=-1)
    broken = sas(storage, name)[:-8] + "AAAAAA%3D"
    secrets = [other_key, *(one.rpartition("sig=")[2] for one in (no_list, late, broken)), storage.key]
    wrong_audience = unsigned_tokens(aud="https://graph.microsoft.com")
    cases: list[tuple[dict[str, Any], str, type[RunError], set[str], str]] = [
        ({"kind": "account_key", "account_key": other_key}, name, Authentication, REFUSED, "key1"),
        ({"kind": "sas", "sas_token": no_list}, name, Authentication, {"source_permission_denied"}, "list"),
        ({"kind": "sas", "sas_token": late}, name, Authentication, {"source_credential_refused"}, "expired"),
        ({"kind": "sas", "sas_token": broken}, name, Authentication, REFUSED, "SAS"),
        ({"tokens": wrong_audience}, name, Authentication, REFUSED, "Storage Blob Data Reader"),
        ({}, "no-such-container", SourceMissing, {"source_missing"}, "source.container"),
    ]
    for options, where, kind, codes, remedy in cases:
        with pytest.raises(kind) as caught:
            await BlobContainer(make_account(**options), where).check()
        error = caught.value
        assert error.code in codes
        assert remedy in error.detail
        said = f"{error!r} {error.detail} {error.subject}"
        assert not any(secret in said for secret in secrets)
    assert not any(secret in caplog.text for secret in secrets)


async def test_an_expired_sas_is_refused_by_the_service_too(
    storage: StorageAccount, container: ContainerClient, make_account: MakeAccount
) -> None:
    late = sas(storage, container.container_name, hours=-1)
    with pytest.raises(Authentication) as caught:
        await BlobContainer(make_account(kind="sas", sas_token=late), container.container_name).list_page(None, 1)
    assert caught.value.code in REFUSED


async def test_a_sas_that_lists_and_does_not_read(
    storage: StorageAccount, container: ContainerClient, make_account: MakeAccount
) -> None:
    put(container, "f")
    source = BlobContainer(
        make_account(kind="sas", sas_token=sas(storage, container.container_name, "l")), container.container_name
    )
    (item,) = await everything(source)
    with pytest.raises(AccessDenied):
        await source.open("f", item.ref)
    with pytest.raises(AccessDenied):
        await source.stat("f")


async def test_an_account_that_is_not_there(make_account: MakeAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(SourceMissing) as caught:
        await BlobContainer(make_account(url="https://nobody.blob.core.windows.net"), "c").check()
    assert caught.value.subject == "source.account_url"


async def test_an_account_that_does_not_answer(make_account: MakeAccount, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.clients import http

    monkeypatch.setattr(http, "MAX_ATTEMPTS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"https://127.0.0.1:{taken.getsockname()[1]}/nobody"
        with pytest.raises(ConnectionLost, match=r"source\.account_url"):
            await BlobContainer(make_account(url=url), "c").check()


async def test_an_endpoint_that_is_no_blob_storage(
    make_account: MakeAccount, storage: StorageAccount, lake: Lake, make_tokens: MakeTokens
) -> None:
    url = lake.emulators.addresses["fabric_url"]
    with pytest.raises((Configuration, Authentication)):
        await BlobContainer(make_account(url=f"{url}/account", tokens=make_tokens()), "c").check()


# -- faults, and OneLake as a source ----------------------------------------------------------------------------------


@pytest.fixture
def lake_source(lake: Lake, make_account: MakeAccount, make_tokens: MakeTokens) -> Callable[[], BlobContainer]:
    url = lake.emulators.addresses["onelake_blob_url"]
    account = make_account(url=url, tokens=make_tokens())
    return lambda: BlobContainer(account, "Migration", f"Landing.Lakehouse/Files/{lake.name}/")


def on_lake(lake: Lake, name: str, data: bytes) -> None:
    path = lake.emulators.lake_folder / "Migration" / "Landing.Lakehouse" / "Files" / lake.name / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


async def test_a_lakehouse_as_a_source(lake: Lake, lake_source: Callable[[], BlobContainer]) -> None:
    on_lake(lake, "a/b/f.txt", b"data")
    on_lake(lake, "empty", b"")
    source = lake_source()
    await source.check()
    items = await everything(source, 1)
    assert {item.path for item in items} == {"a/b/f.txt", "empty"}
    assert {await content(source, item) for item in items} == {b"data", b""}


@pytest.mark.parametrize("size", [100_000, 20 * MIB])
@pytest.mark.parametrize("fault", ["short_body", "reset_before", "unavailable", "throttle", "expired_token"])
async def test_faults_are_outlived(lake: Lake, lake_source: Callable[[], BlobContainer], fault: str, size: int) -> None:
    data = os.urandom(size)
    on_lake(lake, "f", data)
    source = lake_source()
    (item,) = await everything(source)
    extra = {"retry_after_s": 0} if fault in ("unavailable", "throttle") else {}
    lake.faults({"operation": "read", "fault": fault, "times": 2, **extra})
    assert await content(source, item) == data
    assert lake.emulators.fault_hits() == [2]


async def test_an_account_that_always_breaks_off(lake: Lake, lake_source: Callable[[], BlobContainer]) -> None:
    on_lake(lake, "f", b"x" * 9 * MIB)
    source = lake_source()
    (item,) = await everything(source)
    lake.faults({"operation": "read", "fault": "short_body"})
    with pytest.raises(ConnectionLost, match=f"of {9 * MIB} bytes"):
        await content(source, item)


async def test_damage_on_the_way_is_noticed(lake: Lake, lake_source: Callable[[], BlobContainer]) -> None:
    await lake.folder.create("f", Content(b"x" * 1000))
    source = lake_source()
    (item,) = await everything(source)
    lake.faults({"operation": "read", "fault": "corrupt_body", "times": 1})
    with pytest.raises(TransientError) as caught:
        await content(source, item)
    assert caught.value.code == "integrity_mismatch"
    assert await content(source, item) == b"x" * 1000
