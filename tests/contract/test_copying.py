"""Server-side copies from a storage account into OneLake: Azurite as the source, the emulator as the target."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, ContainerSasPermissions, ContentSettings, generate_container_sas

from shared.clients import http
from shared.clients.blob import BlobContainer
from shared.clients.http import Answer
from shared.clients.onelake import classify
from shared.clients.onelake.copying import put_from_url
from shared.clients.onelake.service import OneLake, encode_path
from shared.errors import IntegrityMismatch, SourceChanged, TargetConflict, TransientError, Unsupported
from shared.ports import CopySource
from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID, Lake
from tests.support.storage_account import MakeAccount, StorageAccount, unsigned_tokens

MIB = 1024 * 1024


@pytest.fixture
def container(storage: StorageAccount) -> ContainerClient:
    return storage.make_container()


@pytest.fixture
def source(container: ContainerClient, make_account: MakeAccount) -> BlobContainer:
    return BlobContainer(make_account(tokens=unsigned_tokens()), container.container_name)


@pytest.fixture
async def target(lake: Lake, make_onelake: Any) -> AsyncIterator[OneLake]:
    yield make_onelake(blob_url=lake.emulators.addresses["onelake_blob_url"])


def url_of(lake: Lake, onelake: OneLake, path: str) -> str:
    return f"{onelake.blob_url}/{WORKSPACE_ID}/{LAKEHOUSE_ID}/Files/{lake.name}/{encode_path(path)}"


async def prepared(source: BlobContainer, path: str) -> CopySource:
    item = await source.stat(path)
    assert item is not None
    copying = await source.copy_source(path, item.ref)
    assert copying is not None
    return copying


async def copy(
    lake: Lake, onelake: OneLake, copying: CopySource, path: str = "f", *, new: bool = True, **options: Any
) -> Answer:
    options = {"md5": copying.md5, **options}
    return await put_from_url(
        onelake, url_of(lake, onelake, path), copying, copying.size_bytes, new=new, subject=path, **options
    )


@pytest.mark.parametrize("size", [0, 1, 3 * MIB + 5])
async def test_a_file_in_one_call(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient, size: int
) -> None:
    data = os.urandom(size)
    container.upload_blob("a b/é #?%.bin", data)
    copying = await prepared(source, "a b/é #?%.bin")
    answer = await copy(lake, target, copying, "x/é #?%.bin")
    assert lake.on_disk() == {"x/é #?%.bin": data}
    found = await lake.folder.properties("x/é #?%.bin")
    assert found is not None
    assert (found.etag, found.md5) == (answer.headers["ETag"].strip('"'), hashlib.md5(data).hexdigest())
    (effect,) = lake.effects("append_flush")
    assert effect["bytes"] == 0
    assert ("copy_source" in effect) is (size > 0)


async def test_a_large_file_in_blocks(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient
) -> None:
    data = os.urandom(10 * MIB + 3)
    digest = hashlib.md5(data).digest()
    container.upload_blob("f", data, content_settings=ContentSettings(content_md5=bytearray(digest)))
    copying = await prepared(source, "f")
    await copy(lake, target, copying, single_call_bytes=MIB, block_bytes=4 * MIB)
    assert lake.on_disk() == {"f": data}
    found = await lake.folder.properties("f")
    assert found is not None
    assert found.md5 == copying.md5 == digest.hex()
    assert len(lake.effects("append")) == 3
    with pytest.raises(TargetConflict) as caught:
        await copy(lake, target, copying, single_call_bytes=MIB, block_bytes=4 * MIB)
    assert caught.value.code == "target_exists"


@pytest.mark.parametrize("kind", ["account_key", "sas", "token"])
async def test_every_kind_of_credential(
    lake: Lake, target: OneLake, storage: StorageAccount, container: ContainerClient, make_account: MakeAccount,
    kind: str,
) -> None:  # fmt: skip
    container.upload_blob("p/f", b"data")
    sas = generate_container_sas(
        storage.name, container.container_name, account_key=storage.key,
        permission=ContainerSasPermissions(read=True, list=True), expiry=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    options: dict[str, Any] = {
        "account_key": {}, "sas": {"kind": "sas", "sas_token": sas}, "token": {"tokens": unsigned_tokens()},
    }[kind]  # fmt: skip
    copying = await prepared(BlobContainer(make_account(**options), container.container_name, "p"), "f")
    await copy(lake, target, copying)
    assert lake.on_disk() == {"f": b"data"}
    secrets = [value.removeprefix("Bearer ") for value in (await copying.headers()).values()]
    assert not any(secret in repr(copying) for secret in secrets)
    journal = (lake.emulators.root / "journal.jsonl").read_text()
    assert "sig=" not in journal
    assert not any(secret in journal for secret in secrets if "?" in secret or ("." in secret and "://" not in secret))


async def test_arrival_is_asked_for_once(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient
) -> None:
    container.upload_blob("f", b"data")
    copying = await prepared(source, "f")

    def asked() -> int:
        return sum(lake.emulators.stats()["onelake"]["properties"].values())

    before = asked()
    await copy(lake, target, copying, "one")
    assert asked() == before + 1
    for name in ("two", "three"):
        await copy(lake, target, copying, name)
    assert asked() == before + 1
    await copy(lake, target, replace(copying, md5=""), "four")
    assert asked() == before + 2, "without a hash there is only the size"


async def test_conditions_on_the_target(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient
) -> None:
    container.upload_blob("f", b"one")
    copying = await prepared(source, "f")
    with pytest.raises(Unsupported):
        await copy(lake, target, copying, new=False)
    assert not copying.learned.refusal
    first = await copy(lake, target, copying)
    with pytest.raises(TargetConflict) as caught:
        await copy(lake, target, copying)
    assert caught.value.code == "target_exists"
    container.upload_blob("f", b"two", overwrite=True)
    copying = await prepared(source, "f")
    with pytest.raises(TargetConflict) as caught:
        await copy(lake, target, copying, new=False, only_over="0x1")
    assert caught.value.code == "target_changed"
    assert lake.on_disk() == {"f": b"one"}
    await copy(lake, target, copying, new=False, only_over=first.headers["ETag"].strip('"'))
    assert lake.on_disk() == {"f": b"two"}
    await copy(lake, target, copying, new=False)


@pytest.mark.parametrize("block", [MIB, 64 * MIB])
async def test_a_source_that_changed_is_not_copied(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient, block: int
) -> None:
    container.upload_blob("f", b"a" * 2 * MIB)
    copying = await prepared(source, "f")
    container.upload_blob("f", b"b" * 2 * MIB, overwrite=True)
    with pytest.raises(SourceChanged):
        await copy(lake, target, copying, single_call_bytes=block, block_bytes=block)
    assert lake.on_disk() == {}
    assert not copying.learned.refusal


async def test_content_that_is_not_what_its_hash_says(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient
) -> None:
    container.upload_blob("f", b"data")
    wrong = hashlib.md5(b"other").digest()
    container.get_blob_client("f").set_http_headers(ContentSettings(content_md5=bytearray(wrong)))
    copying = await prepared(source, "f")
    with pytest.raises(TransientError) as caught:
        await copy(lake, target, copying)
    assert caught.value.code == "integrity_mismatch"
    assert not isinstance(caught.value, IntegrityMismatch)
    assert lake.on_disk() == {}


async def test_a_lost_answer_finds_its_own_file(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient
) -> None:
    container.upload_blob("f", b"data" * MIB, content_settings=ContentSettings(
        content_md5=bytearray(hashlib.md5(b"data" * MIB).digest())))  # fmt: skip
    copying = await prepared(source, "f")
    lake.faults({"operation": "append_flush", "fault": "reset_after", "times": 1})
    await copy(lake, target, copying, "one")
    lake.faults({"operation": "flush", "fault": "reset_after", "times": 1})
    await copy(lake, target, copying, "blocks", single_call_bytes=MIB, block_bytes=MIB)
    lake.faults({"operation": "append", "fault": "throttle", "times": 2, "retry_after_s": 0})
    await copy(lake, target, copying, "busy", single_call_bytes=MIB, block_bytes=MIB)
    assert lake.on_disk() == dict.fromkeys(("one", "blocks", "busy"), b"data" * MIB)


def broken(copying: CopySource, **headers: str) -> CopySource:
    async def other() -> dict[str, str]:
        return {**await copying.headers(), **headers}

    return replace(copying, headers=other)


@pytest.mark.parametrize("headers", [
    {"x-ms-copy-source-authorization": "Bearer no.token.atall"},
    {"x-ms-copy-source": "https://acct.blob.core.windows.net/c/b"},
    {"x-ms-copy-source": "ftp://127.0.0.1/c/b"},
    {"x-ms-source-range": "lines=1-2"},
    {"x-ms-copy-source-unknown": "1", "x-ms-lease-id": "1"},
])  # fmt: skip
async def test_a_refusal_is_learned_and_leads_to_streaming(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient, headers: dict[str, str]
) -> None:
    container.upload_blob("f", b"data")
    copying = await prepared(source, "f")
    with pytest.raises(Unsupported) as caught:
        await copy(lake, target, broken(copying, **headers))
    assert caught.value.code == "copy_refused"
    assert copying.learned.refusal
    assert lake.on_disk() == {}
    assert await source.copy_source("f", "") is None
    before = lake.emulators.stats()
    with pytest.raises(Unsupported):
        await copy(lake, target, copying)
    after = lake.emulators.stats()
    assert before["onelake"]["append_flush"] == after["onelake"]["append_flush"], "not asked again"
    item = await source.stat("f")
    assert item is not None
    opened = await source.open("f", item.ref)
    await lake.folder.create("f", opened)
    assert lake.on_disk() == {"f": b"data"}


async def test_a_refusal_after_a_success_is_about_the_item(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient
) -> None:
    container.upload_blob("f", b"data")
    copying = await prepared(source, "f")
    await copy(lake, target, copying, "one")
    refused = broken(copying, **{"x-ms-copy-source-authorization": "Bearer no.token.atall"})
    with pytest.raises(Unsupported):
        await copy(lake, target, refused, "two")
    await copy(lake, target, copying, "three")
    assert set(lake.on_disk()) == {"one", "three"}


async def test_a_source_that_only_this_process_reaches(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_ATTEMPTS", 2)
    container.upload_blob("f", b"data")
    copying = await prepared(source, "f")
    refused = broken(copying, **{"x-ms-copy-source": "https://127.0.0.1:1/c/b"})
    with pytest.raises(Unsupported) as caught:
        await copy(lake, target, refused)
    assert caught.value.code == "copy_refused"
    assert copying.learned.refusal


async def test_a_service_that_ignores_the_header_leaves_nothing(
    lake: Lake, target: OneLake, source: BlobContainer, container: ContainerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.upload_blob("f", b"data")
    copying = await prepared(source, "f")

    async def none() -> dict[str, str]:
        return {}

    with pytest.raises(Unsupported):
        await copy(lake, target, replace(copying, headers=none, md5=""))
    assert lake.on_disk() == {}
    assert copying.learned.refusal


async def test_what_cannot_be_handed_to_another_service(
    storage: StorageAccount, container: ContainerClient, make_account: MakeAccount
) -> None:
    container.upload_blob("f", b"data")
    bound = generate_container_sas(
        storage.name, container.container_name, account_key=storage.key, ip="127.0.0.1",
        permission=ContainerSasPermissions(read=True, list=True), expiry=datetime.now(UTC) + timedelta(hours=1),
    )  # fmt: skip
    for account in (
        make_account(kind="sas", sas_token=bound),
        make_account(url=storage.url.replace("https:", "http:")),
    ):
        source = BlobContainer(account, container.container_name)
        assert await source.copy_source("f", '{"e":"0x1","s":4,"m":""}') is None


@pytest.mark.parametrize(("status", "error", "code"), [
    (400, Unsupported, "copy_refused"), (401, Unsupported, "copy_refused"), (403, Unsupported, "copy_refused"),
    (404, Unsupported, "copy_refused"), (409, Unsupported, "copy_refused"), (412, SourceChanged, "source_changed"),
    (429, TransientError, "copy_source_busy"), (500, TransientError, "copy_source_busy"),
    (503, TransientError, "copy_source_busy"),
])  # fmt: skip
def test_what_is_said_of_the_source_is_not_said_of_the_target(status: int, error: type[Exception], code: str) -> None:
    found = classify.classify(status, {"x-ms-error-code": "CannotVerifyCopySource"}, b"", "f")
    assert type(found) is error
    assert found.code == code
