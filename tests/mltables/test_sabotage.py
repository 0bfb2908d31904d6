"""What else may happen to a migration: each step is taken by itself, and something is done between two of them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from azure.storage.blob import ContentSettings

from shared.engine.mltables.scratch import scratch_folder
from shared.errors import Authentication
from shared.mltable_services import open_run
from tests.support.mltables import CSV, App, Walk, Workspaces, rows

FAILS = {"ends": "completed_with_failures"}
LOADED: dict[str, Any] = {"validation": {}}
ALL = ("plan", "copy", "check", "register", "validate")


@pytest.fixture
async def walk(ws: Workspaces, tmp_path: Path) -> AsyncIterator[Walk]:
    made = Walk(ws, tmp_path)
    yield made
    await made.close()


def only(manifest: dict[str, Any]) -> dict[str, Any]:
    (item,) = manifest["items"]
    found: dict[str, Any] = item
    return found


def text(*paths: str) -> str:
    return "type: mltable\npaths:\n" + "".join(f"  - {path}\n" for path in paths) + (
        "transformations:\n  - read_delimited\n"
    )  # fmt: skip


def without_md5(ws: Workspaces, side: str, name: str, data: bytes) -> None:
    with ws.container(side) as client:
        blob = client.get_blob_client(name)
        blob.upload_blob(data, overwrite=True)
        blob.set_http_headers(ContentSettings(content_type="text/csv"))


# -- the source changes ------------------------------------------------------------------------------------------------


async def test_a_file_that_changes_between_two_rounds_is_copied_again(walk: Walk, ws: Workspaces) -> None:
    """The journal of the first round must not pass for the second's."""
    ws.add("moving", files={f"{n:02d}.csv": rows(4, n) for n in range(12)})
    await walk.begin(["moving"], hash_sample_files=1)
    await walk.take("plan", "copy")
    # Of the same size; and something makes the round fail.
    changed = rows(4, 11).replace(b"name 12", b"nome 12")
    ws.put("source", {"data/moving/1/11.csv": changed})
    await walk.take("check")
    assert (await walk.record())["error_code"] == "source_changed"
    await walk.again()
    await walk.take(*ALL)
    assert (await walk.record())["status"] == "success"
    assert ws.migrated("moving")["11.csv"] == changed


@pytest.mark.parametrize("change", ["added", "deleted", "blueprint"])
async def test_what_changes_in_the_source_while_it_is_copied_is_said(walk: Walk, ws: Workspaces, change: str) -> None:
    ws.add("moving")
    await walk.begin(["moving"])
    await walk.take("plan", "copy")
    if change == "deleted":
        with ws.container("source") as client:
            client.delete_blob("data/moving/1/b.csv")
    else:
        name = "MLTable" if change == "blueprint" else "late.csv"
        ws.put("source", {f"data/moving/1/{name}": CSV.encode() + b"# more\n"})
    await walk.take("check")
    record = await walk.record()
    assert record["error_code"] in ("source_changed", "integrity_mismatch")
    assert ws.versions("moving") == []


def test_the_same_batch_looks_at_the_source_once_more(app: App, ws: Workspaces, job: str) -> None:
    ws.add("grows")
    app.run(job, ["grows"], batch="b-1")
    assert only(app.run(job, ["grows"], batch="b-1"))["reason"] == "migrated before in this batch"
    ws.put("source", {"data/grows/1/late.csv": rows(2)})
    item = only(app.run(job, ["grows"], batch="b-1"))
    assert (item["status"], item["final_version"], item["files_copied"]) == ("success", "1", 1)
    assert ws.migrated("grows")["late.csv"] == rows(2)


# -- the target changes ------------------------------------------------------------------------------------------------


async def test_a_file_that_somebody_overwrites_at_the_target_is_found_beyond_the_sample(
    walk: Walk, ws: Workspaces
) -> None:
    ws.add("over", files={f"{n:02d}.csv": rows(4, n) for n in range(12)})
    await walk.begin(["over"], hash_sample_files=1)
    await walk.take("plan", "copy")
    ws.put("target", {"migrated/over/1/11.csv": rows(4, 11).replace(b"name 12", b"nome 12")})
    await walk.take("check")
    record = await walk.record()
    assert (record["error_code"], record["hash_mismatches"]) == ("integrity_mismatch", 1)
    assert "other content: 11.csv" in record["error_detail"]


@pytest.mark.parametrize("gone", ["a.csv", "MLTable"])
async def test_a_file_that_vanishes_between_check_and_registration_is_missed(
    walk: Walk, ws: Workspaces, gone: str
) -> None:
    ws.add("thin")
    await walk.begin(["thin"])
    await walk.take("plan", "copy", "check", "register")
    with ws.container("target") as client:
        client.delete_blob(f"migrated/thin/1/{gone}")
    await walk.take("validate")
    assert (await walk.record())["error_code"] == "integrity_mismatch"


@pytest.mark.parametrize("policy", ["suffix", "fail"])
def test_a_file_of_the_same_size_in_nobodys_folder_is_not_written_over(
    app: App, ws: Workspaces, job: str, policy: str
) -> None:
    ws.add("mine", files={"a.csv": rows(4)})
    theirs = rows(4).replace(b"name 1", b"nome 1")
    without_md5(ws, "target", "migrated/mine/1/a.csv", theirs)
    ends = "completed_with_failures" if policy == "fail" else "completed"
    item = only(app.run(job, ["mine"], collision_policy=policy, ends=ends))
    assert ws.migrated("mine")["a.csv"] == theirs
    assert "MLTable" not in ws.migrated("mine")
    if policy == "suffix":
        assert ws.migrated("mine", "1_m1")["a.csv"] == rows(4)
    else:
        assert item["error_code"] == "folder_taken"


def test_data_registered_under_a_suffix_of_another_pattern_is_not_written_over(
    app: App, ws: Workspaces, job: str
) -> None:
    ws.add("kept", files={"a.csv": rows(2)})
    ws.register("target", "kept", "1", "azureml://datastores/workspaceblobstore/paths/other/")
    assert only(app.run(job, ["kept"]))["final_version"] == "1_m1"
    ws.put("source", {"data/kept/1/a.csv": rows(5)})
    item = only(app.run(job, ["kept"], collision_suffix_pattern="{version}-copy{n}"))
    assert (item["status"], item["final_version"]) == ("success", "1-copy1")
    assert ws.migrated("kept", "1")["a.csv"] == rows(2)
    assert ws.migrated("kept", "1-copy1")["a.csv"] == rows(5)


def test_registered_data_without_a_hash_is_not_written_over_by_other_data_of_its_size(
    app: App, ws: Workspaces, job: str
) -> None:
    ws.add("unhashed", files={"a.csv": rows(4)})
    without_md5(ws, "source", "data/unhashed/1/a.csv", rows(4))
    app.run(job, ["unhashed"])
    without_md5(ws, "source", "data/unhashed/1/a.csv", rows(4).replace(b"name 1", b"nome 1"))
    without_md5(ws, "target", "migrated/unhashed/1/a.csv", rows(4))
    item = only(app.run(job, ["unhashed"], **FAILS))
    assert (item["error_code"], "destination_subpath" in item["error_detail"]) == ("folder_taken", True)
    assert ws.migrated("unhashed")["a.csv"] == rows(4)


def test_the_same_data_that_lies_elsewhere_at_the_target_is_not_copied_again(
    app: App, ws: Workspaces, job: str
) -> None:
    """As another tool put it there: same name and version, same files and blueprint, another folder."""
    ws.add("twin")
    ws.put("target", {f"theirs/{path}": data for path, data in (
        ("MLTable", CSV.encode()), ("a.csv", rows(4)), ("b.csv", rows(4, 4)))})  # fmt: skip
    ws.register("target", "twin", "1", "azureml://datastores/workspaceblobstore/paths/theirs/")
    before = ws.blobs("target")
    item = only(app.run(job, ["twin"], **LOADED))
    assert (item["status"], item["final_version"], item["skipped_existing"]) == ("skipped", "1", True)
    assert (item["target_uri"], item["validation_loaded"]) == (ws.long("target", "theirs/"), True)
    assert (ws.blobs("target"), ws.versions("twin")) == (before, ["1"])
    ws.put("target", {"theirs/more.csv": rows(1)})
    assert only(app.run(job, ["twin"]))["final_version"] == "1_m1"


# -- folders in one another --------------------------------------------------------------------------------------------


def test_a_folder_within_another_assets_folder_is_not_taken(app: App, ws: Workspaces, job: str) -> None:
    """Its files would be loaded with the other's."""
    ws.add("outer", text="type: mltable\npaths:\n  - pattern: ./**/*.csv\ntransformations:\n  - read_delimited\n")
    ws.add("inner", "2")
    wishes: list[dict[str, Any]] = [
        {"name": "outer", "versions": ["1"], "destination_subpath": "x"},
        {"name": "inner", "versions": ["2"], "destination_subpath": "x/1"},
    ]
    found = {item["asset_name"]: item for item in app.run(job, wishes, parallel_assets=1, **FAILS)["items"]}
    assert found["outer"]["status"] == "success"
    assert found["inner"]["error_code"] == "collisions_exhausted"
    assert {name for name in ws.blobs("target") if name.startswith("migrated/x/")} == {
        "migrated/x/1/MLTable", "migrated/x/1/a.csv", "migrated/x/1/b.csv",
    }  # fmt: skip


async def test_two_hosts_that_know_nothing_of_each_other_never_share_a_folder(ws: Workspaces, tmp_path: Path) -> None:
    """Two assets that want the same folder, planned at the same moment, with a run store each."""
    ws.add("one", files={"one.csv": rows(2)})
    ws.add("two", files={"two.csv": rows(3)})
    walks = [Walk(ws, tmp_path / name, name) for name in ("a", "b")]
    try:
        for walk, name in zip(walks, ("one", "two"), strict=True):
            await walk.begin([{"name": name, "versions": ["1"], "destination_subpath": "shared"}])
        await asyncio.gather(*(walk.take("plan") for walk in walks))
        for step in ALL[1:]:
            await asyncio.gather(*(walk.take(step) for walk in walks))
        assert [(await walk.record())["status"] for walk in walks] == ["success", "success"]
    finally:
        for walk in walks:
            await walk.close()
    there = {name.removeprefix("migrated/shared/") for name in ws.blobs("target")}
    assert there in (
        {"1/MLTable", "1/one.csv", "1_m1/MLTable", "1_m1/two.csv"},
        {"1/MLTable", "1/two.csv", "1_m1/MLTable", "1_m1/one.csv"},
    )


async def test_a_rollback_leaves_what_another_run_has_registered(ws: Workspaces, tmp_path: Path) -> None:
    ws.add("both")
    walks = [Walk(ws, tmp_path / name, name) for name in ("a", "b")]
    try:
        for walk in walks:
            await walk.begin(["both"], rollback_on_failure=True)
        await walks[0].take("plan", "copy", "check")
        await walks[1].take(*ALL)
        assert (await walks[1].record())["status"] == "success"
        whole = ws.migrated("both")
        run = await walks[0].services.mltable_run(walks[0].id)
        from shared.engine.mltables import steps

        await steps.fail_version(run, 1, 0, "register", {"code": "x", "detail": "y", "retry_after_s": None})
        record = await walks[0].record()
        assert (record["rolled_back"], "another version" in record["reason"]) == (False, True)
    finally:
        for walk in walks:
            await walk.close()
    assert ws.migrated("both") == whole
    assert ws.versions("both") == ["1"]


async def test_assets_whose_names_differ_in_case_alone_are_two(walk: Walk, ws: Workspaces) -> None:
    ws.add("Sales", files={"a.csv": rows(2)})
    ws.add("sales", files={"a.csv": rows(3)})
    await walk.begin([
        {"name": "Sales", "versions": ["1"], "destination_subpath": "x"},
        {"name": "sales", "versions": ["1"], "destination_subpath": "x"},
    ], batch="one")  # fmt: skip
    for group in (1, 2):
        await walk.take(*ALL, group=group)
        assert (await walk.record(group))["status"] == "success"
    assert [len(ws.blobs("target", f"migrated/x/{name}/a.csv")[f"migrated/x/{name}/a.csv"].splitlines()) for name in (
        "1", "1_m1")] == [3, 4]  # fmt: skip


def test_versions_that_are_the_same_number_are_two(app: App, ws: Workspaces, job: str) -> None:
    ws.add("padded", "1", files={"a.csv": rows(1)})
    ws.add("padded", "01", files={"a.csv": rows(2)})
    manifest = app.run(job, [{"name": "padded", "versions": ["1..1"]}])
    assert {item["final_version"] for item in manifest["items"]} == {"1", "01"}
    assert (ws.migrated("padded", "1")["a.csv"], ws.migrated("padded", "01")["a.csv"]) == (rows(1), rows(2))


# -- what a blob has beside its content --------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["auto", "never"])
def test_type_encoding_and_metadata_come_along(app: App, ws: Workspaces, job: str, way: str) -> None:
    """A blob that is stored compressed and says so is another table once it no longer says so."""
    ws.add("typed", files={"a.csv": rows(2)})
    large = bytes(range(256)) * (36 * 1024)
    with ws.container("source") as client:
        for name, data in (("b.csv", rows(3)), ("large.bin", large)):
            client.upload_blob(
                f"data/typed/1/{name}", data, overwrite=True, metadata={"Owner": "crm"},
                content_settings=ContentSettings("text/csv", "gzip", "de", cache_control="no-cache"),
            )  # fmt: skip
    app.run(job, ["typed"], server_side_copy=way, destination_prefix=way)
    with ws.container("target") as client:
        for name in ("b.csv", "large.bin"):
            found = client.get_blob_client(f"{way}/typed/1/{name}").get_blob_properties()
            told = found.content_settings
            assert (told.content_type, told.content_encoding, told.content_language, told.cache_control) == (
                "text/csv", "gzip", "de", "no-cache",
            )  # fmt: skip
            assert {key.lower(): value for key, value in found.metadata.items()} == {"owner": "crm"}


def test_append_blobs_and_markers_of_folders(app: App, ws: Workspaces, job: str) -> None:
    ws.add("odd", files={"a.csv": rows(2)})
    with ws.container("source") as client:
        blob = client.get_blob_client("data/odd/1/log.csv")
        blob.create_append_blob()
        blob.append_block(rows(2, 2))
        client.upload_blob("data/odd/1/sub", b"", metadata={"hdi_isfolder": "true"})
        client.upload_blob("data/odd/1/sub/b.csv", rows(2, 4))
    item = only(app.run(job, ["odd"], **LOADED))
    assert (item["status"], item["source_file_count"], item["rows"]) == ("success", 3, 4)
    assert ws.migrated("odd")["log.csv"] == rows(2, 2)


# -- paths -------------------------------------------------------------------------------------------------------------


def test_a_short_path_out_of_the_root_is_refused_or_carried(app: App, ws: Workspaces, job: str) -> None:
    own = text("file: ./own.csv", "file: azureml://datastores/workspaceblobstore/paths/common/lookup.csv")
    ws.add("short", files={"own.csv": rows(2)}, text=own)
    ws.put("source", {"common/lookup.csv": rows(2, 2)})
    assert only(app.run(job, ["short"], **FAILS))["error_code"] == "outside_root"
    item = only(app.run(job, ["short"], outside_root="carry", **LOADED))
    assert ws.migrated("short")["_outside/common/lookup.csv"] == rows(2, 2)
    assert item["rows"] == 4


def test_data_in_other_datastores_is_refused_or_carried(app: App, ws: Workspaces, job: str) -> None:
    """An asset that lies in another datastore as a whole, and one with a path into one."""
    path = ws.long("source", "p/a.csv", "sas_store")
    ws.put("source", {"whole/MLTable": CSV.encode(), "whole/a.csv": rows(3), "p/a.csv": rows(2, 9)}, "by-sas")
    ws.register("source", "whole", "1", "azureml://datastores/sas_store/paths/whole/")
    ws.add("mixed", files={"own.csv": rows(2)}, text=text("file: ./own.csv", f"file: {path}"))
    manifest = app.run(job, ["whole", "mixed"], **FAILS)
    assert [item["error_code"] for item in manifest["items"]] == ["other_datastore", "other_datastore"]
    manifest = app.run(job, ["whole", "mixed"], other_datastore="carry", **LOADED)
    assert [item["rows"] for item in manifest["items"]] == [3, 4]
    assert ws.migrated("whole") == {"MLTable": CSV.encode(), "a.csv": rows(3)}
    assert ws.migrated("mixed")["_outside/by-sas/p/a.csv"] == rows(2, 9)


def test_a_datastore_of_another_kind_stops_nothing(app: App, ws: Workspaces, job: str) -> None:
    """Of a kind that the SDK does not know, as older workspaces have them."""
    client = ws.ml("source")
    found = ws.workspace("source")
    url = (
        f"{ws.azureml['url']}/subscriptions/{found['subscription_id']}/resourceGroups/{found['resource_group']}"
        f"/providers/Microsoft.MachineLearningServices/workspaces/{found['name']}/datastores/warehouse"
    )
    token = client._credential.get_token("https://management.azure.com/.default").token
    asked: dict[str, Any] = {
        "params": {"api-version": "2024-10-01-preview"}, "headers": {"Authorization": f"Bearer {token}"},
        "verify": str(ws.emulators.addresses["ca_bundle"]), "timeout": 30,
    }  # fmt: skip
    properties = {"datastoreType": "AzureSqlDatabase", "credentials": {"credentialsType": "None"},
                  "accountName": "server", "filesystem": "database"}  # fmt: skip
    try:
        assert requests.put(url, json={"properties": properties}, **asked).status_code == 201
        ws.add("plain")
        assert only(app.run(job, ["plain"], other_datastore="carry"))["status"] == "success"
    finally:
        requests.delete(url, **asked)


def test_a_file_of_the_folders_name(app: App, ws: Workspaces, job: str) -> None:
    ws.add("named")
    ws.put("target", {"migrated/named/1": b"a file", "migrated": b"another"})
    item = only(app.run(job, ["named"]))
    assert (item["status"], item["target_uri"]) == ("success", ws.long("target", "migrated/named/1_m1/"))


def test_two_paths_that_would_become_one_file_are_refused(app: App, ws: Workspaces, job: str) -> None:
    url = f"{ws.azureml['storage_urls']['amlsourcestore']}/public/a.csv"
    ws.put("source", {"a.csv": rows(2)}, "public")
    ws.put("source", {"public/a.csv": rows(3)})
    ws.add("clash", root="x/clash", files={}, text=text(f"file: {url}", "file: ../../public/a.csv"))
    item = only(app.run(job, ["clash"], outside_root="carry", other_datastore="carry", **FAILS))
    assert "both become" in item["error_detail"]
    assert ws.blobs("target") == {}


def test_a_signature_in_the_assets_own_address_is_in_no_report(app: App, ws: Workspaces, job: str) -> None:
    ws.register("source", "signed", "1", "https://acct.blob.core.windows.net/c/a/?sv=2024&sig=c2VjcmV0")
    run = app.start(app.spec(job, ["signed"]))
    app.wait(run, "completed_with_failures")
    for form in ("json", "csv", "md", "html", "signoff"):
        assert "c2VjcmV0" not in str(app.manifest(run, form))
    for path in app.store.rglob(f"*{run}*/records/**/*.json"):
        assert b"c2VjcmV0" not in path.read_bytes()


# -- hostile assets beside good ones -----------------------------------------------------------------------------------


def test_hostile_blueprints_fail_alone(app: App, ws: Workspaces, job: str) -> None:
    odd = CSV + "metadata: "
    aliases = "\n".join(f"  b{n}: &b{n} [*b{n - 1}, *b{n - 1}]" for n in range(1, 40))
    for name, added in (("tag", "{x: !!int ''}\n"), ("itself", "&a [*a]\n"), ("bomb", f"\n  b0: &b0 [x]\n{aliases}\n")):
        ws.add(name, text=odd + added)
    ws.add("huge", text=CSV + "# " + "x" * 1_100_000)
    ws.add("good")
    manifest = app.run(job, ["tag", "itself", "bomb", "huge", "good"], **FAILS)
    assert [item["error_code"] or item["status"] for item in manifest["items"]] == ["blueprint_invalid"] * 4 + [
        "success"
    ]


def test_names_that_this_machine_cannot_have_are_a_warning(app: App, ws: Workspaces, job: str) -> None:
    ws.add("long", files={"n" * 300 + ".csv": rows(2)})
    ws.add("twofold", files={"a.csv": rows(2), "a.csv/b.csv": rows(2)}, text=text("pattern: ./**/*.csv"))
    ws.add("good")
    manifest = app.run(job, ["long", "twofold", "good"], **LOADED)
    found = {item["asset_name"]: item for item in manifest["items"]}
    assert {name: (item["checks"]["load"], item["validation_loaded"]) for name, item in found.items()} == {
        "long": ("warning", None), "twofold": ("warning", None), "good": ("passed", True),
    }  # fmt: skip
    assert "validation.enabled" in found["long"]["warnings"][0]
    assert manifest["signoff"]["may_delete_source"] == "review"


@pytest.mark.parametrize("way", ["corrupt_body", "short_body"])
def test_answers_of_azure_ml_that_make_no_sense_stop_no_run(app: App, ws: Workspaces, job: str, way: str) -> None:
    ws.add("garbled")
    ws.add("good")
    ws.emulators.set_faults([
        {"service": "azureml", "path": "ws-target/data/garbled/*", "fault": way}
    ])  # fmt: skip
    run = app.start(app.spec(job, ["garbled", "good"]))
    document = app.wait(run)
    found = {item["asset_name"]: item["status"] for item in app.manifest(run)["items"]}
    assert (document["status"], found["good"]) == ("completed_with_failures", "success"), app.host.log()[-3000:]


def test_a_wish_for_a_version_that_no_asset_of_a_glob_has_is_accounted_for(app: App, ws: Workspaces, job: str) -> None:
    ws.add("set_a")
    ws.add("set_b", "2")
    manifest = app.run(job, [{"name": "set_*", "versions": ["2", "9"]}], **FAILS)
    assert {item["path"]: item["status"] for item in manifest["items"]} == {"set_b/2": "success", "set_*/9": "missing"}


# -- permissions, in the middle ----------------------------------------------------------------------------------------


async def test_a_permission_that_is_taken_away_in_the_middle_stops_the_run(walk: Walk, ws: Workspaces) -> None:
    ws.add("first")
    await walk.begin(["first"], server_side_copy="never")
    await walk.take("plan")
    run = await open_run(walk.services, walk.id)
    # From now on with the credential of somebody who may only read.
    other = Walk(ws, walk.store.parent, client="reader")
    with pytest.raises(Authentication) as caught:
        await other.take("copy")
    await other.close()
    assert caught.value.code == "storage_permission_denied"
    assert (await run.records.record(1, 0) or {})["error_code"] == "storage_permission_denied"
    # Once it is back, a new round goes on.
    await walk.again()
    await walk.take(*ALL)
    assert (await walk.record())["status"] == "success"


# -- the asset as a whole ----------------------------------------------------------------------------------------------


def describe(ws: Workspaces, side: str, name: str, description: str | None, tags: dict[str, str]) -> None:
    operations = ws.ml(side).data._container_operation
    found = ws.workspace(side)
    where = (found["resource_group"], found["name"], name)
    container = operations.get(*where)
    container.properties.description, container.properties.tags = description, tags
    operations.create_or_update(*where, body=container)


def described(ws: Workspaces, side: str, name: str) -> tuple[str | None, dict[str, str], bool]:
    found = ws.workspace(side)
    told = ws.ml(side).data._container_operation.get(found["resource_group"], found["name"], name).properties
    return told.description, dict(told.tags), bool(told.is_archived)


def test_what_belongs_to_the_asset_as_a_whole_comes_along(app: App, ws: Workspaces, job: str) -> None:
    ws.add("rich", "1")
    ws.add("rich", "2")
    describe(ws, "source", "rich", "All our customers", {"owner": "crm", "tier": "gold"})
    app.run(job, [{"name": "rich", "versions": ["*"]}])
    assert described(ws, "target", "rich") == ("All our customers", {"owner": "crm", "tier": "gold"}, False)
    # What the target says itself stays, and is said.
    describe(ws, "target", "rich", "Theirs", {"tier": "silver"})
    item = app.run(job, [{"name": "rich", "versions": ["*"]}])["items"][0]
    assert described(ws, "target", "rich") == ("Theirs", {"owner": "crm", "tier": "silver"}, False)
    assert ["description" in item["warnings"][0], "tier" in item["warnings"][1]] == [True, True]


def test_an_asset_that_is_archived_as_a_whole(app: App, ws: Workspaces, job: str) -> None:
    for version in ("1", "2"):
        ws.add("old", version)
    ws.ml("source").data.archive("old")
    manifest = app.run(job, [{"name": "old", "versions": ["*"]}])
    assert [item["archived"] for item in manifest["items"]] == [True, True]
    assert described(ws, "target", "old")[2] is True
    assert ws.versions("old", archived=True) == ["1", "2"]


# -- the load test's own folder ----------------------------------------------------------------------------------------


def test_a_table_of_large_files_is_loaded_from_the_beginning_of_one(app: App, ws: Workspaces, job: str) -> None:
    ws.add("vast", files={"a.csv": rows(5000)})
    item = only(app.run(job, ["vast"], validation={"fetch": "2KiB"}))
    assert (item["validation_loaded"], item["checks"]["load"], item["checks"]["comparison"]) == (
        True, "passed", "passed",
    )  # fmt: skip
    assert 50 < item["rows"] < 1000
    assert "the beginning of one" in item["warnings"][-1]


PARQUET = "type: mltable\npaths:\n  - file: ./a.parquet\ntransformations:\n  - read_parquet\n"


async def test_a_table_of_large_parquet_files_is_loaded_by_its_first_row_groups(
    walk: Walk, ws: Workspaces, tmp_path: Path
) -> None:
    ids = pa.array(range(50_000))
    table = pa.table({"id": ids, "name": [f"name {n * 7919 % 104729}" for n in range(50_000)]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5000)
    data = (tmp_path / "a.parquet").read_bytes()
    ws.add("vast", files={"a.parquet": data}, text=PARQUET)
    ws.add("behind", files={"a.parquet": data}, text=PARQUET + "  - filter: \"col('id') > 49990\"\n")
    ws.add("broken", files={"a.parquet": bytes(len(data))}, text=PARQUET)
    fetch = {"validation": {"fetch": len(data) // 4, "count_rows": 8000}}
    await walk.begin(["vast", "behind", "broken"], **fetch)
    for group in (1, 2, 3):
        await walk.take(*ALL, group=group)
    vast, behind, broken = [await walk.record(group) for group in (1, 2, 3)]
    assert (vast["status"], vast["rows"], vast["checks"]["comparison"]) == ("success", 8000, "passed")
    for item in (behind, broken):
        # What cannot be told is no success, and no failure.
        assert (item["checks"]["load"], item["validation_loaded"]) == ("warning", None)
        assert "validation.fetch" in item["warnings"][-1]


async def test_a_large_parquet_file_that_is_broken_at_the_target_alone(
    walk: Walk, ws: Workspaces, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"id": pa.array(range(50_000))}), tmp_path / "a.parquet", row_group_size=5000)
    data = (tmp_path / "a.parquet").read_bytes()
    ws.add("torn", files={"a.parquet": data}, text=PARQUET)
    await walk.begin(["torn"], validation={"fetch": len(data) // 4, "count_rows": 100})
    await walk.take(*ALL[:-1])
    ws.put("target", {"migrated/torn/1/a.parquet": data[:2000] + bytes(len(data) - 4000) + data[-2000:]})
    await walk.take("validate")
    record = await walk.record()
    assert (record["error_code"], record["validation_loaded"]) == ("load_failed", False)


def test_a_killed_load_test_leaves_nothing_after_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import sys, time\nfrom shared.engine.mltables.scratch import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    (folder / 'target').mkdir()\n    (folder / 'target' / 'a.csv').write_bytes(bytes(10000))\n"
        "    print(folder, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)}, cwd=Path(__file__).resolve().parents[2],
    ) as other:  # fmt: skip
        assert other.stdout is not None
        theirs = Path(other.stdout.readline().strip())
        with scratch_folder() as mine:
            # It lives, and keeps what it has.
            assert (theirs / "target" / "a.csv").exists()
            assert mine.parent == theirs.parent == tmp_path
        other.send_signal(signal.SIGKILL)
    assert theirs.exists()
    with scratch_folder() as mine:
        assert [path for path in tmp_path.iterdir() if path != mine] == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_behind_a_link_is_none_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / ".held").touch()
    (tmp_path / "tmp" / "mltable-x").symlink_to(tmp_path / "precious")
    with scratch_folder() as mine, (mine / ".held").open() as held, pytest.raises(BlockingIOError):
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert (tmp_path / "precious" / ".held").exists()
