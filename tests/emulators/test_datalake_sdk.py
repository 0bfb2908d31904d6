"""The contract that azure-storage-file-datalake and azure-identity, unmodified, find kept."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator

import pytest
from azure.core import MatchConditions
from azure.core.exceptions import (
    ClientAuthenticationError,
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)
from azure.identity.aio import ClientSecretCredential as AsyncCredential
from azure.storage.filedatalake import ContentSettings, DataLakeServiceClient, FileSystemClient
from azure.storage.filedatalake.aio import DataLakeServiceClient as AsyncService
from azure.storage.filedatalake.aio import FileSystemClient as AsyncFileSystem

from local.emulators.launch import RunningEmulators, launch
from tests.emulators.wire_client import credential

MEGABYTE = 1024 * 1024


@pytest.fixture
async def async_lake(emulators: RunningEmulators) -> AsyncIterator[AsyncFileSystem]:
    addresses = emulators.addresses
    registration = addresses["clients"]["migrator"]
    async with (
        AsyncCredential(
            addresses["tenant_id"],
            registration["client_id"],
            registration["client_secret"],
            authority=addresses["authority_url"],
            disable_instance_discovery=True,
            connection_verify=addresses["ca_bundle"],
        ) as identity,
        AsyncService(
            addresses["onelake_dfs_url"],
            credential=identity,
            connection_verify=addresses["ca_bundle"],
            retry_total=0,
        ) as service,
    ):
        yield service.get_file_system_client("Migration")


def test_upload_and_download(lake: FileSystemClient, folder: str, on_disk: object) -> None:
    file = lake.get_file_client(f"{folder}/report.bin")
    content = bytes(range(256)) * 1000
    file.upload_data(content, overwrite=True)
    assert file.download_file().readall() == content
    assert file.download_file(offset=1000, length=17).readall() == content[1000:1017]
    assert (on_disk / "report.bin").read_bytes() == content


def test_upload_in_chunks(lake: FileSystemClient, folder: str) -> None:
    content = hashlib.sha512(b"seed").digest() * 160_000
    file = lake.get_file_client(f"{folder}/large.bin")
    file.upload_data(content, length=len(content), overwrite=True, chunk_size=3 * MEGABYTE, validate_content=True)
    assert file.get_file_properties().size == len(content)
    assert file.download_file(max_concurrency=4).readall() == content


def test_zero_bytes_need_create_file(lake: FileSystemClient, folder: str) -> None:
    file = lake.get_file_client(f"{folder}/empty")
    file.upload_data(b"", overwrite=False)
    assert not file.exists()
    file.create_file()
    assert file.exists()
    assert file.get_file_properties().size == 0
    assert file.download_file().readall() == b""


def test_append_and_flush(lake: FileSystemClient, folder: str) -> None:
    file = lake.create_file(f"{folder}/log")
    file.append_data(b"one", 0)
    assert file.get_file_properties().size == 0
    file.append_data(b"two", 3)
    file.flush_data(6)
    assert file.download_file().readall() == b"onetwo"
    file.append_data(b"three", 6, flush=True)
    assert file.download_file().readall() == b"onetwothree"


def test_create_if_missing(lake: FileSystemClient, folder: str) -> None:
    file = lake.get_file_client(f"{folder}/once")
    file.create_file(match_condition=MatchConditions.IfMissing)
    with pytest.raises(ResourceExistsError) as caught:
        file.create_file(match_condition=MatchConditions.IfMissing)
    assert caught.value.error_code == "PathAlreadyExists"


def test_flush_only_what_was_seen(lake: FileSystemClient, folder: str) -> None:
    file = lake.get_file_client(f"{folder}/guarded")
    etag = file.create_file()["etag"]
    file.append_data(b"data", 0)
    with pytest.raises(ResourceModifiedError) as caught:
        file.flush_data(4, etag='"0x1"', match_condition=MatchConditions.IfNotModified)
    assert caught.value.error_code == "ConditionNotMet"
    file.flush_data(4, etag=etag, match_condition=MatchConditions.IfNotModified)
    assert file.download_file().readall() == b"data"


def test_overwrite_false_cannot_create(lake: FileSystemClient, folder: str) -> None:
    with pytest.raises(ResourceNotFoundError):
        lake.get_file_client(f"{folder}/absent").upload_data(b"data", overwrite=False)
    lake.create_file(f"{folder}/present")
    with pytest.raises(ResourceModifiedError):
        lake.get_file_client(f"{folder}/present").upload_data(b"data", overwrite=False)


def test_properties(lake: FileSystemClient, folder: str) -> None:
    digest = hashlib.md5(b"content", usedforsecurity=False).digest()
    settings = ContentSettings(content_type="text/plain", content_md5=digest, cache_control="no-store")
    file = lake.get_file_client(f"{folder}/described.txt")
    file.upload_data(b"content", overwrite=True, content_settings=settings, metadata={"source": "library", "n": "1"})
    properties = file.get_file_properties()
    assert properties.content_settings.content_type == "text/plain"
    assert bytes(properties.content_settings.content_md5) == digest
    assert properties.metadata == {"source": "library", "n": "1"}
    before = properties.etag
    file.set_metadata({"other": "2"})
    file.set_http_headers(ContentSettings(content_type="application/pdf"))
    properties = file.get_file_properties()
    assert (properties.metadata, properties.content_settings.content_type) == ({"other": "2"}, "application/pdf")
    assert properties.etag != before
    assert file.download_file().readall() == b"content"


def test_listing_in_pages(lake: FileSystemClient, folder: str) -> None:
    names = [f"{folder}/{name}" for name in ("a/1", "a/2", "a b/x", "b", "c/d/e")]
    for name in names:
        lake.create_file(name)
    expected = [f"{folder}/{name}" for name in ("a", "a/1", "a/2", "a b", "a b/x", "b", "c", "c/d", "c/d/e")]
    assert [path.name for path in lake.get_paths(folder, max_results=2)] == expected
    shallow = list(lake.get_paths(folder, recursive=False))
    assert [(path.name.rpartition("/")[2], path.is_directory) for path in shallow] == [
        ("a", True),
        ("a b", True),
        ("b", False),
        ("c", True),
    ]
    assert shallow[2].etag == lake.get_file_client(f"{folder}/b").get_file_properties().etag.strip('"')


def test_rename(lake: FileSystemClient, folder: str) -> None:
    lake.get_file_client(f"{folder}/new #1 & 100").upload_data(b"new", overwrite=True)
    lake.get_file_client(f"{folder}/old").upload_data(b"old", overwrite=True)
    staged = lake.get_file_client(f"{folder}/new #1 & 100")
    with pytest.raises(ResourceExistsError):
        staged.rename_file(f"Migration/{folder}/old", match_condition=MatchConditions.IfMissing)
    moved = staged.rename_file(f"Migration/{folder}/old")
    assert moved.download_file().readall() == b"new"
    assert not staged.exists()
    directory = lake.get_directory_client(folder)
    lake.create_directory(f"{folder}-target")
    renamed = directory.rename_directory(f"Migration/{folder}-target/inside")
    assert renamed.get_file_client("old").download_file().readall() == b"new"


def test_delete(lake: FileSystemClient, folder: str) -> None:
    lake.create_file(f"{folder}/sub/x")
    lake.create_file(f"{folder}/y").delete_file()
    with pytest.raises(ResourceNotFoundError):
        lake.get_file_client(f"{folder}/y").get_file_properties()
    lake.get_directory_client(folder).delete_directory()
    assert not lake.get_directory_client(folder).exists()
    with pytest.raises(ResourceNotFoundError) as caught:
        list(lake.get_paths(folder))
    assert caught.value.error_code == "PathNotFound"


def test_directory(lake: FileSystemClient, folder: str) -> None:
    directory = lake.create_directory(folder)
    assert directory.exists()
    assert directory.get_directory_properties().metadata["hdi_isfolder"] == "true"
    with pytest.raises(ResourceExistsError):
        directory.create_directory(match_condition=MatchConditions.IfMissing)


def test_guids_and_names_are_one_place(
    emulators: RunningEmulators, service: DataLakeServiceClient, folder: str
) -> None:
    workspace = emulators.addresses["workspaces"][0]
    by_guid = service.get_file_system_client(workspace["id"])
    lakehouse = workspace["items"][0]
    path = folder.replace("Landing.Lakehouse", lakehouse["id"])
    by_guid.get_file_client(f"{path}/x").upload_data(b"x", overwrite=True)
    by_name = service.get_file_system_client("Migration")
    assert by_name.get_file_client(f"{folder}/x").download_file().readall() == b"x"
    assert [found.name for found in by_guid.get_paths(path)] == [f"{path}/x"]


async def test_async_client(async_lake: AsyncFileSystem, folder: str) -> None:
    content = b"0123456789" * 300_000
    file = async_lake.get_file_client(f"{folder}/async.bin")
    await file.upload_data(content, length=len(content), overwrite=True, chunk_size=MEGABYTE)
    assert await (await file.download_file()).readall() == content
    assert await (await file.download_file(offset=5, length=5)).readall() == content[5:10]
    empty = await async_lake.create_file(f"{folder}/empty")
    assert await (await empty.download_file()).readall() == b""
    await file.set_metadata({"k": "v"})
    assert (await file.get_file_properties()).metadata == {"k": "v"}
    assert [found.name async for found in async_lake.get_paths(folder, max_results=1)] == [
        f"{folder}/async.bin",
        f"{folder}/empty",
    ]
    with pytest.raises(ResourceExistsError):
        await empty.rename_file(f"Migration/{folder}/async.bin", match_condition=MatchConditions.IfMissing)
    await empty.rename_file(f"Migration/{folder}/async.bin")
    await async_lake.get_file_client(f"{folder}/async.bin").delete_file()
    assert [found.name async for found in async_lake.get_paths(folder)] == []


async def test_many_at_once(async_lake: AsyncFileSystem, folder: str) -> None:
    async def write(number: int) -> None:
        file = async_lake.get_file_client(f"{folder}/{number % 7}/{number}")
        await file.upload_data(str(number).encode() * 100, overwrite=True)

    await asyncio.gather(*[write(number) for number in range(100)])
    found = [path async for path in async_lake.get_paths(folder) if not path.is_directory]
    assert len(found) == 100
    assert sum(path.content_length for path in found) == sum(len(str(number)) * 100 for number in range(100))


def test_throttling_reaches_the_caller(emulators: RunningEmulators, lake: FileSystemClient, folder: str) -> None:
    emulators.set_faults([{"fault": "throttle", "operation": "create", "times": 1, "retry_after_s": 3}])
    with pytest.raises(HttpResponseError) as caught:
        lake.create_file(f"{folder}/x")
    assert (caught.value.status_code, caught.value.error_code) == (429, "CapacityLimitExceeded")
    assert caught.value.response.headers["Retry-After"] == "3"
    lake.create_file(f"{folder}/x")


def test_expired_token_is_got_again_once(emulators: RunningEmulators, lake: FileSystemClient, folder: str) -> None:
    emulators.set_faults([{"fault": "expired_token", "operation": "create", "times": 1}])
    lake.create_file(f"{folder}/x")
    assert emulators.fault_hits() == [1]
    emulators.set_faults([{"fault": "expired_token", "operation": "create"}])
    with pytest.raises(ClientAuthenticationError):
        lake.create_file(f"{folder}/y")
    assert emulators.fault_hits() == [2]


def test_another_audience(emulators: RunningEmulators, folder: str) -> None:
    class FabricTokens:
        def get_token(self, *scopes: str, **options: object) -> object:
            return credential(emulators).get_token("https://api.fabric.microsoft.com/.default")

    with (
        DataLakeServiceClient(
            emulators.addresses["onelake_dfs_url"],
            credential=FabricTokens(),
            connection_verify=emulators.addresses["ca_bundle"],
        ) as service,
        pytest.raises(ClientAuthenticationError) as caught,
    ):
        service.get_file_system_client("Migration").create_file(f"{folder}/x")
    assert caught.value.error_code == "InvalidAuthenticationInfo"


@pytest.mark.parametrize("client", ["reader", "outsider"])
def test_roles(emulators: RunningEmulators, lake: FileSystemClient, folder: str, client: str) -> None:
    lake.get_file_client(f"{folder}/x").upload_data(b"x", overwrite=True)
    with DataLakeServiceClient(
        emulators.addresses["onelake_dfs_url"],
        credential=credential(emulators, client),
        connection_verify=emulators.addresses["ca_bundle"],
    ) as service:
        theirs = service.get_file_system_client("Migration")
        if client == "reader":
            assert theirs.get_file_client(f"{folder}/x").download_file().readall() == b"x"
        with pytest.raises(HttpResponseError) as caught:
            theirs.create_file(f"{folder}/y")
        assert (caught.value.status_code, caught.value.error_code) == (403, "AuthorizationPermissionMismatch")


def test_wrong_secret(emulators: RunningEmulators) -> None:
    with pytest.raises(ClientAuthenticationError, match="AADSTS7000215"):
        credential(emulators, client_secret="wrong").get_token("https://storage.azure.com/.default")


def test_short_tokens_are_renewed(tmp_path_factory: pytest.TempPathFactory) -> None:
    with launch(tmp_path_factory.mktemp("short"), token_lifetime_s=1) as running:
        old = credential(running).get_token("https://storage.azure.com/.default").token
        with DataLakeServiceClient(
            running.addresses["onelake_dfs_url"],
            credential=credential(running),
            connection_verify=running.addresses["ca_bundle"],
        ) as service:
            lake = service.get_file_system_client("Migration")
            for number in range(3):
                lake.create_file(f"Landing.Lakehouse/Files/{number}")
        assert running.stats()["entra"]["token"]["200"] >= 2
        assert base64.b64decode(old.split(".")[1] + "==")
