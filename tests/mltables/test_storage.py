"""The container that is written to, over both accounts: conditions, copies by the service, refusals."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import ContentSettings

from local.emulators.launch import azureml_settings
from shared.clients.blob import BlobAccount
from shared.clients.blob.writing import DelegatedAccess, WritableContainer, side_classifier
from shared.clients.credentials import STORAGE_SCOPE, TokenSource, build_credential
from shared.clients.http import Transport
from shared.engine.mltables import excerpt
from shared.errors import Authentication, SourceChanged, TargetConflict, Unsupported
from tests.support.emulated import Content
from tests.support.mltables import Workspaces


class Sides:
    """Both containers, as the app has them."""

    def __init__(self, ws: Workspaces) -> None:
        self.ws = ws
        self._made: list[Any] = []

    def open(self, side: str, client: str = "migrator", **options: Any) -> WritableContainer:
        addresses = self.ws.emulators.addresses
        settings = azureml_settings(addresses, client)
        fields = json.loads(settings[f"CREDENTIAL_AZUREML_{side.upper()}"])
        tokens = TokenSource(lambda: build_credential(fields, addresses["ca_bundle"]), STORAGE_SCOPE, time.time)
        account = f"aml{side}store"
        url = addresses["azureml"]["storage_urls"][account]
        classify = side_classifier(side, "give it a role")
        transport = Transport(tokens, classify, ca_bundle=addresses["ca_bundle"])
        access = DelegatedAccess(tokens, account, url, transport)
        opened = BlobAccount(url, access, ca_bundle=addresses["ca_bundle"], classify=classify)
        self._made += [opened, transport, tokens]
        container = self.ws.workspace(side)["datastores"][0]["container"]
        return WritableContainer(opened, container, transport, **options)

    async def close(self) -> None:
        for made in self._made:
            await made.close()


@pytest.fixture
async def sides(ws: Workspaces) -> AsyncIterator[Sides]:
    made = Sides(ws)
    yield made
    await made.close()


async def listed(container: WritableContainer, name: str) -> Any:
    found = await container.stat(name)
    assert found is not None
    return found


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
async def test_put_is_conditional(sides: Sides, ws: Workspaces, size: int) -> None:
    target = sides.open("target")
    data = bytes(range(256)) * (size // 256 + 1)
    written = await target.put("x/a b", Content(data[:size]))
    with pytest.raises(TargetConflict):
        await target.put("x/a b", Content(b"other"))
    with pytest.raises(TargetConflict):
        await target.put("x/a b", Content(b"other"), only_over="0x1")
    assert ws.blobs("target") == {"x/a b": data[:size]}
    again = await target.put("x/a b", Content(b"other"), only_over=written.etag)
    assert not await target.delete("x/a b", etag=written.etag)
    assert await target.delete("x/a b", etag=again.etag)
    assert not await target.delete("x/a b", etag=again.etag)


@pytest.mark.parametrize(("limits", "calls"), [
    ({}, {"append_flush": {"201": 1}}),
    ({"copy_single_bytes": 1000, "copy_block_bytes": 4000}, {"append": {"201": 3}, "flush": {"201": 1}}),
])  # fmt: skip
async def test_the_service_copies_by_itself(
    sides: Sides, ws: Workspaces, limits: dict[str, int], calls: dict[str, Any]
) -> None:
    data = bytes(range(250)) * 40
    ws.put("source", {"from/a b%20#.bin": data})
    source, target = sides.open("source"), sides.open("target", **limits)
    item = await listed(source, "from/a b%20#.bin")
    grant = await source.copy_source(item.path, item.ref)
    assert grant is not None
    assert "sig=" in (await grant.headers())["x-ms-copy-source"]
    assert "sig=" not in repr(grant)
    ws.emulators.reset_stats()
    written = await target.copy("to.bin", grant)
    stats = ws.emulators.stats()["azureml_blob"]
    assert {name: stats[name] for name in calls} == calls
    assert ws.blobs("target") == {"to.bin": data}
    assert written.size_bytes == len(data)
    with pytest.raises(TargetConflict):
        await target.copy("to.bin", grant)
    ws.put("source", {"from/a b%20#.bin": b"changed"})
    with pytest.raises(SourceChanged):
        await target.copy("other.bin", grant)


async def test_a_source_that_the_target_may_not_read_is_streamed_instead(sides: Sides, ws: Workspaces) -> None:
    ws.put("source", {"a.bin": b"data"})
    source, target = sides.open("source"), sides.open("target")
    item = await listed(source, "a.bin")
    grant = await source.copy_source("a.bin", item.ref)
    assert grant is not None

    async def refused() -> dict[str, str]:
        return {"x-ms-copy-source": (await grant.headers())["x-ms-copy-source"].partition("?")[0]}

    from dataclasses import replace

    with pytest.raises(Unsupported) as caught:
        await target.copy("a.bin", replace(grant, headers=refused))
    assert caught.value.code == "copy_refused"
    # Learned: the next is not even tried.
    assert await source.copy_source("a.bin", item.ref) is None
    assert ws.blobs("target") == {}


async def test_one_tenants_token_opens_nothing_in_the_other(sides: Sides, ws: Workspaces) -> None:
    target = sides.open("target", client="reader")
    with pytest.raises(Authentication) as caught:
        await target.put("a", Content(b"x"))
    assert caught.value.code == "storage_permission_denied"
    assert "give it a role" in caught.value.detail


async def test_a_folder_has_one_owner(sides: Sides, ws: Workspaces) -> None:
    one, other = sides.open("target"), sides.open("target")
    assert await one.owner("x/y") is None
    first, second = await asyncio.gather(one.claim("x/y", "aa"), other.claim("x/y", "bb"))
    assert first == second == await one.owner("x/y")
    assert await one.has_owners_below("x")
    assert not await one.has_owners_below("x/y")
    assert (await one.list_below("x/", None)).items == []
    await one.release("x/y", "cc")
    assert await one.owner("x/y") == first
    await one.release("x/y", first)
    assert await one.owner("x/y") is None


async def test_a_folder_that_another_tool_has_marked_can_be_claimed(sides: Sides, ws: Workspaces) -> None:
    target = sides.open("target")
    with ws.container("target") as client:
        client.upload_blob("x/y", b"", metadata={"hdi_isfolder": "true"})
        client.upload_blob("x/z", b"a file")
    assert await target.owner("x/y") is None
    assert await target.claim("x/y", "aa") == "aa"
    assert await target.claim("x/y", "bb") == "aa"
    with pytest.raises(TargetConflict):
        await target.claim("x/z", "aa")


@pytest.mark.parametrize("limits", [{}, {"copy_single_bytes": 1000, "copy_block_bytes": 4000}])
async def test_what_a_blob_has_beside_its_content_is_copied_with_it(
    sides: Sides, ws: Workspaces, limits: dict[str, int]
) -> None:
    with ws.container("source") as client:
        client.upload_blob(
            "a.bin", bytes(10_000), metadata={"owner": "crm"},
            content_settings=ContentSettings("text/csv", content_encoding="gzip", content_disposition="inline"),
        )  # fmt: skip
    source, target = sides.open("source"), sides.open("target", **limits)
    grant = await source.copy_source("a.bin", (await listed(source, "a.bin")).ref)
    assert grant is not None
    await target.copy("b.bin", grant)
    with ws.container("target") as client:
        found = client.get_blob_client("b.bin").get_blob_properties()
    told = found.content_settings
    assert (told.content_type, told.content_encoding, told.content_disposition) == ("text/csv", "gzip", "inline")
    assert dict(found.metadata) == {"owner": "crm"}


async def test_the_beginning_of_a_parquet_file_is_all_that_is_fetched(
    sides: Sides, ws: Workspaces, tmp_path: Path
) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = 200_000
    table = pa.table({"id": pa.array(range(rows)), "text": [f"row {n} {n * 7919 % 104729}" for n in range(rows)]})
    pq.write_table(table, tmp_path / "whole.parquet", row_group_size=20_000)
    data = (tmp_path / "whole.parquet").read_bytes()
    ws.put("source", {"a.parquet": data, "b.parquet": bytes(5000), "c.parquet": b"PAR1"})
    source = sides.open("source")
    ref = (await listed(source, "a.parquet")).ref
    head = tmp_path / "head.parquet"
    for limit, wanted, there in ((len(data), 1, 20_000), (len(data), 20_001, 40_000), (len(data) // 4, rows, 40_000)):
        assert await excerpt.parquet(source, "a.parquet", ref, head, limit, wanted) == there
        with pq.ParquetFile(head) as made:
            assert made.read_row_groups(range(there // 20_000)).equals(table.slice(0, there))
    with pytest.raises(excerpt.TooLarge):
        await excerpt.parquet(source, "a.parquet", ref, head, len(data) // 20, 10)
    for name in ("b.parquet", "c.parquet"):
        with pytest.raises(excerpt.Unreadable):
            await excerpt.parquet(source, name, "", head, limit, 10)
    ws.put("source", {"a.parquet": data + b"changed"})
    with pytest.raises(SourceChanged):
        await excerpt.parquet(source, "a.parquet", ref, head, limit, 10)
