"""Block blobs: what foreign clients write through the Blob API, and how the two dialects meet."""

from __future__ import annotations

import base64
import hashlib
import xml.etree.ElementTree as ElementTree

import obstore
import pytest
from azure.storage.blob import BlobServiceClient, ContainerClient
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.store import AzureStore

from local.emulators.launch import RunningEmulators
from tests.emulators.wire_client import WireClient, credential, quoted
from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID

BLOB = "onelake_blob_url"


@pytest.fixture
def container(emulators: RunningEmulators) -> ContainerClient:
    service = BlobServiceClient(
        emulators.addresses[BLOB],
        credential=credential(emulators),
        connection_verify=emulators.addresses["ca_bundle"],
        retry_total=0,
        max_single_put_size=100_000,
        max_block_size=50_000,
    )
    return service.get_container_client("Migration")


def test_blob_sdk(container: ContainerClient, wire: WireClient, folder: str) -> None:
    small, large = container.get_blob_client(f"{folder}/small"), container.get_blob_client(f"{folder}/sub/large")
    small.upload_blob(b"small", metadata={"k": "v"})
    content = hashlib.sha512(b"x").digest() * 4000
    large.upload_blob(content)
    assert large.download_blob().readall() == content
    properties = small.get_blob_properties()
    assert properties.metadata == {"k": "v"}
    assert bytes(properties.content_settings.content_md5) == hashlib.md5(b"small", usedforsecurity=False).digest()
    assert wire.send("GET", f"/Migration/{quoted(folder)}/sub/large").body == content
    flat = {blob.name: blob.size for blob in container.list_blobs(f"{folder}/", results_per_page=1)}
    assert flat == {f"{folder}/small": 5, f"{folder}/sub": 0, f"{folder}/sub/large": len(content)}
    assert {blob.name for blob in container.walk_blobs(f"{folder}/")} == {f"{folder}/small", f"{folder}/sub/"}
    assert [blob.name for blob in container.list_blobs(f"{folder}/sm")] == [f"{folder}/small"]
    assert "Landing.Lakehouse/" in [blob.name for blob in container.walk_blobs()]
    small.delete_blob()
    assert not small.exists()


def test_put_if_absent(wire: WireClient, folder: str) -> None:
    target, headers = f"/Migration/{quoted(folder)}/x", {"x-ms-blob-type": "BlockBlob", "If-None-Match": "*"}
    assert wire.send("PUT", target, headers, b"one", url_key=BLOB).status == 201
    answer = wire.send("PUT", target, headers, b"two", url_key=BLOB)
    assert (answer.status, answer.code) == (409, "BlobAlreadyExists")
    answer = wire.send("PUT", target, {"x-ms-blob-type": "BlockBlob", "If-Match": '"0x1"'}, b"two", url_key=BLOB)
    assert (answer.status, answer.code) == (412, "ConditionNotMet")
    answer = wire.send("PUT", target, {}, b"two", url_key=BLOB)
    assert answer.code == "MissingRequiredHeader"


def test_dialects_do_not_mix_in_one_file(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    wire.send("PUT", target, {"x-ms-blob-type": "BlockBlob"}, b"blob")
    for query in ("action=append&position=4", "action=append&position=4&flush=true"):
        answer = wire.send("PATCH", f"{target}?{query}", body=b"more")
        assert (answer.status, answer.code) == (409, "InvalidFlushOperation")
    assert wire.send("PATCH", f"{target}?action=flush&position=4").code == "InvalidFlushOperation"
    assert wire.send("GET", target).body == b"blob"
    wire.put_file(f"{folder}/x", b"now a file of the other kind")


def test_block_lists(wire: WireClient, folder: str) -> None:
    target = f"/Migration/{quoted(folder)}/x"
    ids = [base64.b64encode(f"{number:03}".encode()).decode() for number in range(3)]
    for block_id, content in zip(ids, (b"a", b"b", b"c"), strict=True):
        answer = wire.send("PUT", f"{target}?comp=block&blockid={quoted(block_id)}", body=content)
        assert answer.status == 201
    assert wire.send("HEAD", target).status == 404

    def commit(inner: str) -> tuple[int, str]:
        answer = wire.send("PUT", f"{target}?comp=blocklist", body=f"<BlockList>{inner}</BlockList>".encode())
        return answer.status, answer.code

    assert commit("<Latest>YWJzZW50</Latest>") == (400, "InvalidBlockList")
    assert commit(f"<Committed>{ids[0]}</Committed>") == (400, "InvalidBlockList")
    assert commit("<Other>x</Other>") == (400, "InvalidXmlDocument")
    assert commit(f"<Latest>{ids[2]}</Latest><Uncommitted>{ids[0]}</Uncommitted>") == (201, "")
    assert wire.send("GET", target).body == b"ca"
    assert commit(f"<Latest>{ids[1]}</Latest>") == (400, "InvalidBlockList"), "what was left out is gone"


def test_listing_is_well_formed(wire: WireClient, folder: str) -> None:
    names = ["a & b", "<tag>", "quote\"'", "emoji \U0001f680", "odd \ufffe"]
    for name in names:
        wire.put_file(f"{folder}/{name}", b"x")
    answer = wire.send("GET", f"/Migration?restype=container&comp=list&prefix={quoted(folder)}/&include=metadata")
    root = ElementTree.fromstring(answer.body.decode("utf-8-sig").encode())
    assert len(root.findall("Blobs/Blob/Name")) == len(names)
    answer = wire.send("GET", "/Migration?restype=container&comp=list&beginFrom=x")
    assert answer.code == "UnsupportedQueryParameter"
    answer = wire.send("GET", "/Migration?restype=container&comp=list&prefix=Landing.Lakehouse/Files/nothing/")
    assert b"<Blobs></Blobs>" in answer.body


def test_a_listing_from_a_name_on(wire: WireClient, folder: str) -> None:
    """As object_store lists the log of a Delta table."""
    for name in ("log/1", "log/2", "log/3/x", "other/9"):
        wire.put_file(f"{folder}/{name}", b"x")
    by_guid = f"{LAKEHOUSE_ID}/{folder.partition('/')[2]}"

    def listed(workspace: str, prefix: str, begin: str, more: str = "") -> tuple[list[str], str]:
        query = f"restype=container&comp=list&prefix={quoted(prefix)}/&startFrom={quoted(begin)}{more}"
        root = ElementTree.fromstring(wire.send("GET", f"/{workspace}?{query}").body.decode("utf-8-sig").encode())
        names = [str(name.text).removeprefix(prefix) for name in root.findall("Blobs/Blob/Name")]
        return names, root.findtext("NextMarker") or ""

    log = f"{by_guid}/log"
    assert listed(WORKSPACE_ID, log, f"{log}/2") == (["/2", "/3", "/3/x"], "")
    assert listed(WORKSPACE_ID, log, f"{log}/25")[0] == ["/3", "/3/x"]
    page, marker = listed(WORKSPACE_ID, log, f"{log}/2", "&maxresults=1")
    assert page == ["/2"]
    assert listed(WORKSPACE_ID, log, f"{log}/2", f"&maxresults=1&marker={quoted(marker)}")[0] == ["/3"]
    assert listed("Migration", f"{folder}/log", f"{folder}/log/2")[0] == [], "by names the service has shown nothing"


def test_delete(wire: WireClient, folder: str) -> None:
    wire.put_file(f"{folder}/d/x", b"")
    assert wire.send("DELETE", f"/Migration/{quoted(folder)}/d", url_key=BLOB).code == "DirectoryIsNotEmpty"
    assert wire.send("DELETE", f"/Migration/{quoted(folder)}/d/x", url_key=BLOB).status == 202
    assert wire.send("DELETE", f"/Migration/{quoted(folder)}/d", url_key=BLOB).status == 202
    assert wire.send("DELETE", f"/Migration/{quoted(folder)}/d", url_key=BLOB).code == "BlobNotFound"


async def test_object_store_copies_and_renames(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    """It sends Copy Blob, and takes the copy for done when it is answered."""
    store = AzureStore(
        "Migration", account_name="onelake", endpoint=emulators.addresses["onelake_plain_url"],
        bearer_token=wire.token(), client_options={"allow_http": True},
    )  # fmt: skip
    content = b"0123456789" * 500_000
    await obstore.put_async(store, f"{folder}/a b/\u00fc", content, attributes={"Content-Type": "text/plain"})
    await obstore.copy_async(store, f"{folder}/a b/\u00fc", f"{folder}/new/copy")
    assert bytes(await (await obstore.get_async(store, f"{folder}/new/copy")).bytes_async()) == content
    answer = wire.send("HEAD", f"/Migration/{quoted(folder)}/new/copy", url_key=BLOB)
    assert answer.headers["content-type"] == "text/plain"
    await obstore.put_async(store, f"{folder}/other", b"other")
    with pytest.raises(AlreadyExistsError):
        await obstore.copy_async(store, f"{folder}/a b/\u00fc", f"{folder}/other", overwrite=False)
    await obstore.copy_async(store, f"{folder}/a b/\u00fc", f"{folder}/other")
    assert (await obstore.head_async(store, f"{folder}/other"))["size"] == len(content)
    with pytest.raises(FileNotFoundError):
        await obstore.copy_async(store, f"{folder}/nothing", f"{folder}/x")
    with pytest.raises(FileNotFoundError):
        await obstore.head_async(store, f"{folder}/x")


async def test_object_store(emulators: RunningEmulators, wire: WireClient, folder: str) -> None:
    """A client in another language, which knows nothing of DFS."""
    store = AzureStore(
        "Migration",
        account_name="onelake",
        endpoint=emulators.addresses["onelake_plain_url"],
        bearer_token=wire.token(),
        client_options={"allow_http": True},
    )
    content = b"0123456789" * 1_000_000
    await obstore.put_async(store, f"{folder}/a b/x", content, chunk_size=3_000_000, use_multipart=True)
    await obstore.put_async(store, f"{folder}/y", b"y", mode="create")
    with pytest.raises(AlreadyExistsError):
        await obstore.put_async(store, f"{folder}/y", b"z", mode="create")
    assert bytes(await (await obstore.get_async(store, f"{folder}/a b/x")).bytes_async()) == content
    assert bytes(await obstore.get_range_async(store, f"{folder}/a b/x", start=5, end=12)) == content[5:12]
    listed = [found["path"] for batch in obstore.list(store, folder) for found in batch]
    assert listed == [f"{folder}/a b/x", f"{folder}/y"]
    shallow = obstore.list_with_delimiter(store, folder)
    assert (list(shallow["common_prefixes"]), [found["path"] for found in shallow["objects"]]) == (
        [f"{folder}/a b"],
        [f"{folder}/y"],
    )
    # It deletes in batches only, which the real service refuses in these words.
    with pytest.raises(GenericError, match="Either WorkspaceId or ArtifactId are missing in the request"):
        await obstore.delete_async(store, f"{folder}/y")
    assert (await obstore.head_async(store, f"{folder}/y"))["size"] == 1
    with pytest.raises(FileNotFoundError):
        await obstore.head_async(store, f"{folder}/z")
