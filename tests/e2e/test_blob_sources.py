"""Containers of a storage account into the lake: by the service itself where it can, streamed where it cannot."""

from __future__ import annotations

import hashlib
import json
import os
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import pytest
from azure.storage.blob import ContainerClient, ContentSettings

from tests.e2e.test_secrets import places
from tests.support.azurite import KEY
from tests.support.libraries import counted
from tests.support.platform import Platform, files_below, running
from tests.support.storage_account import StorageAccount, beside

ODD = [
    "a b/c d",
    "100%",
    "%41",
    "plus+sign",
    "n\u00e4\u00efve/\u65e5\u672c\u8a9e",
    "quote'\"s",
    "tilde~",
    "<tag>&amp;",
    "end ",
]


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("blob")) as started:
        yield started


@pytest.fixture(scope="module")
def account(platform: Platform, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageAccount]:
    with beside(platform, tmp_path_factory.mktemp("storage")) as made:
        yield made


@pytest.fixture
def container(platform: Platform, account: StorageAccount) -> ContainerClient:
    platform.emulators.set_faults([])
    return account.make_container()


def fill(container: ContainerClient, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        container.upload_blob(name, data, overwrite=True)


def spec(platform: Platform, account: StorageAccount, container: ContainerClient, **changes: Any) -> dict[str, Any]:
    source = {"type": "blob", "account_url": account.url, "container": container.container_name,
              **changes.pop("source", {})}  # fmt: skip
    return {**platform.spec(container.container_name, verify="all", **changes), "source": source}


def lake(platform: Platform, container: ContainerClient) -> dict[str, bytes]:
    below = platform.lake(container.container_name)
    return {path: file.read_bytes() for path, file in files_below(below).items()}


def test_a_container_and_what_became_of_it(
    platform: Platform, account: StorageAccount, container: ContainerClient
) -> None:
    name = container.container_name
    files = {f"in/{folder}/f{number}": os.urandom(20 + number) for folder in ("x", "y") for number in range(6)}
    fill(container, {**files, "in/empty": b"", "elsewhere/not this": b"1"})
    job = spec(platform, account, container, source={"prefix": "in"})
    wanted = {path.removeprefix("in/"): data for path, data in files.items()} | {"empty": b""}
    first = platform.run(job)
    assert counted(first) == {"uploaded": 13}
    assert lake(platform, container) == wanted
    assert platform.bytes_uploaded(name) == 0, "OneLake has read every byte by itself"
    assert sum("copy_source" in one for one in platform.effects(name)) == 12
    item = next(one for one in platform.manifest(first["id"])["items"] if one["path"] == "x/f0")
    assert item["hash"] == hashlib.md5(wanted["x/f0"]).hexdigest()
    assert item["source"]["content_md5"]
    mark = platform.mark()
    assert counted(platform.run(job)) == {"skipped": 13}
    assert counted(platform.run({**job, "mode": "incremental"})) == {"skipped": 13}
    assert not platform.commits(name, mark)
    fill(container, {"in/x/f0": b"changed", "in/new": b"new"})
    container.delete_blob("in/y/f1")
    mark = platform.mark()
    mirrored = platform.run({**job, "mode": "incremental", "deleted": "mirror"})
    assert counted(mirrored) == {"uploaded": 2, "deleted": 1, "skipped": 11}
    assert platform.commits(name, mark) == {"x/f0": 1, "new": 1}
    wanted |= {"x/f0": b"changed", "new": b"new"}
    del wanted["y/f1"]
    assert lake(platform, container) == wanted
    for blob in list(container.list_blob_names()):
        container.delete_blob(blob)
    emptied = platform.run({**job, "mode": "incremental", "deleted": "mirror"}, "failed")
    assert emptied["error"]["code"] == "source_empty"
    assert lake(platform, container) == wanted


def test_without_copies_by_the_service_everything_is_streamed(
    platform: Platform, account: StorageAccount, container: ContainerClient
) -> None:
    name = container.container_name
    files = {f"f{number}": os.urandom(50) for number in range(5)}
    fill(container, files)
    platform.run(spec(platform, account, container, limits={"server_side_copy": False}))
    assert lake(platform, container) == files
    assert platform.bytes_uploaded(name) == 250
    assert not any("copy_source" in one for one in platform.effects(name))


def test_what_cannot_be_copied_is_streamed(
    platform: Platform, account: StorageAccount, container: ContainerClient
) -> None:
    """A blob without a hash is not left to a service that nobody watches; a wrong hash is found either way."""
    fill(container, {"good": b"good"})
    container.upload_blob("none", b"no hash")
    blob = container.get_blob_client("none")
    blob.set_http_headers(ContentSettings(content_md5=None, content_type="text/plain"))
    wrong = ContentSettings(content_md5=bytearray(hashlib.md5(b"other").digest()))
    container.get_blob_client("wrong").upload_blob(b"bytes")
    container.get_blob_client("wrong").set_http_headers(wrong)
    document = platform.run(spec(platform, account, container), "completed_with_failures")
    items = {item["path"]: (item["status"], item["error_code"]) for item in platform.manifest(document["id"])["items"]}
    assert items == {
        "good": ("uploaded", None), "none": ("uploaded", None), "wrong": ("failed", "integrity_mismatch"),
    }  # fmt: skip
    assert lake(platform, container) == {"good": b"good", "none": b"no hash"}
    assert platform.bytes_uploaded(container.container_name) == len(b"no hash")


def test_odd_names(platform: Platform, account: StorageAccount, container: ContainerClient) -> None:
    fill(container, {name: name.encode() for name in (*ODD, "dot./x", "trailing.")})
    job = spec(platform, account, container, exclude=["quote*"])
    document = platform.run(job)
    assert lake(platform, container) == {
        **{name: name.encode() for name in ODD if name != "%41" and not name.startswith("quote")},
        "dot%2E/x": b"dot./x", "trailing%2E": b"trailing.", "%2541": b"%41",
    }  # fmt: skip
    items = {item["path"]: item["target"].rpartition("/")[2] for item in platform.manifest(document["id"])["items"]}
    assert items["trailing."] == "trailing%2E"
    assert items["dot./x"] == "x"
    assert items["%41"] == "%2541"
    assert counted(platform.run(job)) == {"skipped": len(ODD) + 1}


def test_more_than_a_page_and_a_blob_that_goes_meanwhile(
    platform: Platform, account: StorageAccount, container: ContainerClient
) -> None:
    """The first batches are slow enough that the last blob is gone before its turn."""
    files = {f"{number % 3}/f{number:03d}": b"%d" % number for number in range(60)}
    fill(container, files)
    platform.emulators.set_faults([{"fault": "latency", "operation": "append_flush", "latency_ms": 150}])
    job = spec(platform, account, container, limits={"concurrency": 2, "batch_items": 10, "parallel_batches": 1})
    run = platform.start(job)
    platform.wait_uploaded(run, 5)
    container.delete_blob("2/f059")
    platform.emulators.set_faults([])
    document = platform.wait(run, "completed_with_failures")
    items = {item["path"]: (item["status"], item["error_code"]) for item in platform.manifest(document["id"])["items"]}
    assert items.pop("2/f059") == ("failed", "source_gone")
    assert set(items.values()) == {("uploaded", None)}
    del files["2/f059"]
    assert lake(platform, container) == files


@pytest.mark.parametrize(("changes", "field"), [
    ({"account_url": "https://nobody.example.org"}, "source.account_url"),
    ({"container": "No Name"}, "source.container"), ({"credential": "unheard_of"}, "source.credential"),
    ({"account_url": "http://10.0.0.1/x"}, "source.account_url"),
])  # fmt: skip
def test_a_spec_that_cannot_be_right_is_refused(
    platform: Platform, account: StorageAccount, container: ContainerClient, changes: dict[str, str], field: str
) -> None:
    answer = platform.post("/migrations", spec(platform, account, container, source=changes))
    assert (answer.status, answer.fields) == (400, [field]), answer.body


def test_what_fails_for_the_whole_container_stops_the_run(platform: Platform, account: StorageAccount) -> None:
    class Missing:
        container_name = "never-made"

    document = platform.run(spec(platform, account, Missing()), "failed")  # type: ignore[arg-type]
    assert "container" in document["error"]["message"]
    other = b64encode(b"the key of another account").decode()
    platform.restart_host(CREDENTIAL_WRONG=json.dumps({"kind": "account_key", "account_key": other}))
    refused = platform.run(spec(platform, account, Missing(), source={"credential": "wrong"}), "failed")  # type: ignore[arg-type]
    assert refused["error"]["code"] in ("source_credential_refused", "source_permission_denied")


def test_nothing_that_the_runs_left_behind_holds_a_key_or_a_signature(
    platform: Platform, account: StorageAccount
) -> None:
    found = places(platform)
    assert any(b"blob_etag" in data for data in found.values())
    secrets = (KEY.encode(), b"sig=", b"se=20", b"skoid", b"emulator-only-", b"eyJ", b"Bearer ")
    assert not {place: secret for place, data in found.items() for secret in secrets if secret in data}
