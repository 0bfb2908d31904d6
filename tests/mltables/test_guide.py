"""The guide's sections, in their order: configuration, paths, workflow, collisions, idempotency, tags, manifest."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import pytest

from local.emulators.azureml.seeding import seed_workspace
from shared import VERSION
from tests.support.mltables import App, Workspaces, rows

SECTION_16 = (
    "asset_name", "requested_version", "final_version", "collision_resolved", "original_asset_id", "source_file_count",
    "dest_file_count", "source_bytes", "dest_bytes", "hash_sample_count", "hash_mismatches", "validation_loaded",
    "status", "migrated_on_utc", "migration_batch_id",
)  # fmt: skip
LOADED: dict[str, Any] = {"validation": {}}


def test_every_sample_comes_over_or_is_refused_by_name(app: App, ws: Workspaces, job: str) -> None:
    seed_workspace(ws.emulators.addresses)
    manifest = app.run(job, [{"name": "*", "versions": ["*"]}], ends="completed_with_failures", **LOADED)
    assert {item["path"]: item["error_code"] or item["status"] for item in manifest["items"]} == {
        "broken_blueprint/1": "blueprint_invalid", "clickstream/1": "success", "country_reference/1": "other_datastore",
        "customer_features/3": "success", "customer_profiles/9": "success", "empty_folder/1": "blueprint_missing",
        "orders_daily/9": "success", "orders_daily/12": "success", "regional_stock/1": "other_datastore",
        "retired_report/2": "success", "sales_delta/1": "delta_unsupported", "shared_lookup/1": "outside_root",
    }  # fmt: skip
    for item in manifest["items"]:
        if item["status"] != "success":
            assert ws.migrated(item["asset_name"], item["requested_version"]) == {}
            continue
        assert set(item["checks"].values()) == {"passed"}
        assert item["validation_loaded"] is True
        assert item["rows"] > 0
        source = ws.get(item["asset_name"], item["requested_version"], "source")
        target = ws.get(item["asset_name"], item["final_version"])
        assert source is not None
        assert target is not None
        own = ws.blobs("source", str(source.path).partition("/paths/")[2])
        root = str(source.path).partition("/paths/")[2]
        there = ws.migrated(item["asset_name"], item["requested_version"])
        assert {path.removeprefix(root) for path in own} == set(there)
        for path, data in own.items():
            if not path.endswith("/MLTable"):
                assert there[path.removeprefix(root)] == data
        assert str(target.path) == ws.long("target", f"migrated/{item['asset_name']}/{item['requested_version']}/")
        assert (target.type, target.description) == (source.type, source.description)
        assert target.tags.items() >= (source.tags or {}).items()
    # The archived state came along, and what latest means.
    assert ws.versions("retired_report", archived=True) == ["2"]
    assert ws.versions("retired_report") == []
    assert ws.ml("target").data.get("orders_daily", label="latest").version == "12"
    labels = {label["asset_name"]: label["verdict"] for label in manifest["latest"]}
    assert labels["orders_daily"] == labels["customer_profiles"] == "same"
    assert manifest["other_data_assets"] == [{"name": "raw_files", "type": "uri_folder"}]
    assert manifest["signoff"]["may_delete_source"] == "no"


def test_a_blueprint_with_long_uris_points_to_the_target_afterwards(app: App, ws: Workspaces, job: str) -> None:
    text = (
        "# made by hand\ntype: mltable\npaths:\n"
        f"  - file: {ws.long('source', 'data/long/1/a.csv')}  # the first\n"
        f'  - pattern: "{ws.long("source", "data/long/1/more/*.csv")}"\n'
        "transformations:\n  - read_delimited: {delimiter: ','}\n"
        f"metadata:\n  made_in: {ws.long('source', 'elsewhere')}\n"
    )
    ws.add("long", files={"a.csv": rows(3), "more/b.csv": rows(3, 3)}, text=text)
    (item,) = app.run(job, ["long"], **LOADED)["items"]
    wanted = text.replace(ws.long("source", "data/long/1/"), ws.long("target", "migrated/long/1/"))
    assert ws.migrated("long")["MLTable"].decode() == wanted
    assert item["blueprint_changed"] is True
    assert f"+  - file: {ws.long('target', 'migrated/long/1/a.csv')}  # the first" in item["blueprint_diff"]
    assert "made_in" not in "".join(line for line in item["blueprint_diff"].splitlines() if line[:1] in "+-")
    assert item["rows"] == 6


def test_configuration_by_versions_globs_and_overrides(app: App, ws: Workspaces, job: str) -> None:
    for version in ("1", "2", "3", "10"):
        ws.add("sales", version)
    ws.add("stock_a")
    ws.add("stock_b")
    ws.add("left_out")
    manifest = app.run(job, [
        {"name": "sales", "versions": ["2..3"], "destination_subpath": "custom/sales"},
        {"name": "sales", "versions": ["latest"], "destination_prefix": "elsewhere"},
        {"name": "stock_*", "versions": ["*"]},
    ])  # fmt: skip
    assert [item["path"] for item in manifest["items"]] == [
        "sales/2", "sales/3", "sales/10", "stock_a/1", "stock_b/1",
    ]  # fmt: skip
    roots = {name.rpartition("/")[0] for name in ws.blobs("target")}
    assert roots == {
        "migrated/custom/sales/2", "migrated/custom/sales/3", "elsewhere/sales/10", "migrated/stock_a/1",
        "migrated/stock_b/1",
    }  # fmt: skip
    assert manifest["not_requested"] == [
        {"name": "left_out", "versions": ["1"], "archived": False},
        {"name": "sales", "versions": ["1"], "archived": False},
    ]  # fmt: skip
    assert manifest["signoff"]["may_delete_source"] == "review"


def test_metadata_comes_along(app: App, ws: Workspaces, job: str) -> None:
    ws.add("rich", description="Ours", tags={"owner": "crm"}, properties={"origin": "sensor"})
    (item,) = app.run(job, ["rich"], batch="b-1")["items"]
    found = ws.get("rich", "1")
    assert found is not None
    assert found.description == "Ours"
    assert found.properties["origin"] == "sensor"
    source = ws.workspace("source")
    expected = {
        "owner": "crm", "migrated_from_workspace": "ws-source", "migrated_from_subscription": source["subscription_id"],
        "migration_batch_id": "b-1", "migration_tool_version": VERSION, "original_version": "1", "final_version": "1",
        "collision_resolved": "false", "original_version_retained": "true",
        "original_asset_id": item["original_asset_id"],
    }  # fmt: skip
    assert {name: found.tags[name] for name in expected} == expected
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found.tags["migrated_on_utc"])
    assert set(found.tags) == {*expected, "migrated_on_utc"}


@pytest.mark.parametrize("conflict_status", [400, 409])
def test_collision_with_suffix(app: App, ws: Workspaces, job: str, conflict_status: int) -> None:
    ws.emulators.set_azureml(conflict_status=conflict_status)
    ws.add("taken")
    for version in ("1", "1_m1"):
        ws.register("target", "taken", version, f"azureml://datastores/workspaceblobstore/paths/other/{version}/")
    (item,) = app.run(job, ["taken"])["items"]
    assert (item["status"], item["final_version"], item["collision_resolved"]) == ("success", "1_m2", True)
    found = ws.get("taken", "1_m2")
    assert found is not None
    assert str(found.path) == ws.long("target", "migrated/taken/1/")
    assert {name: found.tags[name] for name in ("original_version", "final_version", "collision_resolved",
                                                "original_version_retained")} == {
        "original_version": "1", "final_version": "1_m2", "collision_resolved": "true",
        "original_version_retained": "false",
    }  # fmt: skip
    # Again: the version that was made is recognised, and no third one is.
    (again,) = app.run(job, ["taken"])["items"]
    assert (again["status"], again["final_version"], again["skipped_existing"]) == ("skipped", "1_m2", True)
    assert ws.versions("taken") == ["1", "1_m1", "1_m2"]


def test_collision_with_skip_and_fail(app: App, ws: Workspaces, job: str) -> None:
    ws.add("taken")
    ws.register("target", "taken", "1", "azureml://datastores/workspaceblobstore/paths/other/")
    manifest = app.run(job, ["taken"], collision_policy="skip")
    (item,) = manifest["items"]
    assert (item["status"], item["skipped_existing"], item["final_version"]) == ("skipped", False, None)
    assert manifest["signoff"]["may_delete_source"] == "no"
    (item,) = app.run(job, ["taken"], collision_policy="fail", ends="completed_with_failures")["items"]
    assert (item["status"], item["error_code"]) == ("failed", "version_exists")
    assert ws.blobs("target") == {}
    assert ws.versions("taken") == ["1"]


def test_collisions_exhausted(app: App, ws: Workspaces, job: str) -> None:
    ws.add("taken")
    for version in ("1", "1-n1", "1-n2"):
        ws.register("target", "taken", version, "azureml://datastores/workspaceblobstore/paths/other/")
    options = {"collision_suffix_pattern": "{version}-n{n}", "collision_max": 2, "ends": "completed_with_failures"}
    (item,) = app.run(job, ["taken"], **options)["items"]
    assert (item["status"], item["error_code"]) == ("failed", "collisions_exhausted")


def test_a_folder_of_somebody_elses_data_is_left_alone(app: App, ws: Workspaces, job: str) -> None:
    ws.add("mine")
    ws.put("target", {"migrated/mine/1/a.csv": b"not mine", "migrated/mine/1/other.csv": b"neither"})
    (item,) = app.run(job, ["mine"])["items"]
    assert item["target_uri"] == ws.long("target", "migrated/mine/1_m1/")
    assert (item["final_version"], item["status"]) == ("1", "success")
    assert ws.blobs("target", "migrated/mine/1/") == {
        "migrated/mine/1/a.csv": b"not mine", "migrated/mine/1/other.csv": b"neither",
    }  # fmt: skip


def test_done_before_in_the_same_batch(app: App, ws: Workspaces, job: str) -> None:
    ws.add("once")
    (first,) = app.run(job, ["once"], batch="b-7")["items"]
    ws.emulators.reset_stats()
    (again,) = app.run(job, ["once"], batch="b-7")["items"]
    assert (again["status"], again["skipped_existing"]) == ("skipped", True)
    assert again["reason"] == "migrated before in this batch"
    assert (again["final_version"], again["target_uri"]) == (first["final_version"], first["target_uri"])
    stats = ws.emulators.stats()
    assert not {"append_flush", "create", "append", "flush", "delete"} & set(stats["azureml_blob"])
    assert "create" not in stats["azureml"]


def test_another_batch_finds_the_same_files(app: App, ws: Workspaces, job: str) -> None:
    ws.add("twice")
    app.run(job, ["twice"], batch="b-1")
    (again,) = app.run(job, ["twice"], batch="b-2")["items"]
    assert (again["status"], again["skipped_existing"], again["files_copied"]) == ("skipped", True, 0)
    found = ws.get("twice", "1")
    assert found is not None
    assert found.tags["migration_batch_id"] == "b-1"


def test_files_that_are_there_but_not_registered(app: App, ws: Workspaces, job: str) -> None:
    ws.add("copied", files={"a.csv": rows(4), "b.csv": rows(5)})
    # One whole, one missing: as if another tool had been stopped half way.
    ws.put("target", {"migrated/copied/1/a.csv": rows(4)})
    (item,) = app.run(job, ["copied"])["items"]
    assert (item["status"], item["files_copied"], item["skipped_existing"]) == ("success", 1, False)
    assert ws.migrated("copied")["b.csv"] == rows(5)


def test_a_dry_run_touches_nothing(app: App, ws: Workspaces, job: str) -> None:
    ws.add("plan")
    ws.register("target", "plan", "1", "azureml://datastores/workspaceblobstore/paths/other/")
    ws.emulators.reset_stats()
    manifest = app.run(job, ["plan"], dry_run=True)
    (item,) = manifest["items"]
    assert (item["status"], item["final_version"], item["collision_resolved"]) == ("planned", "1_m1", True)
    assert (item["source_file_count"], item["source_bytes"]) == (2, 2 * len(rows(4)))
    assert ws.blobs("target") == {}
    assert ws.versions("plan") == ["1"]
    stats = ws.emulators.stats()
    assert "create" not in stats["azureml"]
    assert not {"append_flush", "create", "append", "flush", "delete"} & set(stats["azureml_blob"])
    assert not list((app.store / "mltables").rglob("*.json"))
    assert manifest["signoff"]["no_because"] == ["this was a dry run; nothing was copied"]


def test_the_manifest_in_every_format(app: App, ws: Workspaces, job: str) -> None:
    ws.add("whole", text=f"type: mltable\npaths:\n  - file: {ws.long('source', 'data/whole/1/a.csv')}\n")
    ws.add("other", text="type: nonsense\npaths: []\n")
    run = app.start(app.spec(job, ["whole", "other", "gone"], **LOADED))
    app.wait(run, "completed_with_failures")
    manifest = app.manifest(run)
    by_name = {item["asset_name"]: item for item in manifest["items"]}
    good = by_name["whole"]
    assert all(name in good for name in SECTION_16)
    assert {name: good[name] for name in SECTION_16[:14]} == {
        "asset_name": "whole", "requested_version": "1", "final_version": "1", "collision_resolved": False,
        "original_asset_id": good["original_asset_id"], "source_file_count": 2, "dest_file_count": 2,
        "source_bytes": 2 * len(rows(4)), "dest_bytes": 2 * len(rows(4)), "hash_sample_count": 2, "hash_mismatches": 0,
        "validation_loaded": True, "status": "success", "migrated_on_utc": good["migrated_on_utc"],
    }  # fmt: skip
    assert good["original_asset_id"].endswith("/workspaces/ws-source/data/whole/versions/1")
    assert (by_name["gone"]["status"], by_name["other"]["status"]) == ("missing", "failed")
    table = list(csv.DictReader(io.StringIO(app.manifest(run, "csv"))))
    assert [row["status"] for row in table] == [item["status"] for item in manifest["items"]]
    for form in ("md", "html", "signoff"):
        assert "whole" in app.manifest(run, form)
    assert "No. Something that was asked for is not at the target" in app.manifest(run, "signoff")
    assert "<ins>+" in app.manifest(run, "html")
    items = app.call("GET", f"/migrations/{run}/items?status=missing").json["value"]
    assert [item["path"] for item in items] == ["gone/1"]
    everything = json.dumps(manifest) + "".join(app.manifest(run, form) for form in ("csv", "md", "html", "signoff"))
    for secret in ("sig=", "Bearer", "AccountKey", *ws.azureml["account_keys"].values()):
        assert secret not in everything


def test_nothing_left_to_say(app: App, ws: Workspaces, job: str) -> None:
    ws.add("all")
    manifest = app.run(job, [{"name": "*", "versions": ["*"]}], **LOADED)
    assert manifest["signoff"] == {"may_delete_source": "yes", "no_because": [], "to_review": []}
