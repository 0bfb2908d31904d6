"""Every row of the guide's table of checks (section 11) and of errors (section 12), produced on purpose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.mltables import App, Workspaces, rows

LOADED: dict[str, Any] = {"validation": {}}
FAILS = {"ends": "completed_with_failures"}


def only(manifest: dict[str, Any]) -> dict[str, Any]:
    (item,) = manifest["items"]
    found: dict[str, Any] = item
    return found


# -- section 11 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "ends", "verdict"), [("fail", "completed_with_failures", "failed"),
                                                           ("warn", "completed", "warning")])  # fmt: skip
def test_file_count_and_bytes(app: App, ws: Workspaces, job: str, severity: str, ends: str, verdict: str) -> None:
    ws.add("counted")
    app.run(job, ["counted"])
    # Somebody puts a file into the folder, which is ours as the run store knows; the version is gone meanwhile.
    ws.put("target", {"migrated/counted/1/stray.csv": b"id,name\n"})
    ws.emulators.clear_assets("ws-target")
    checks = {"file_count": severity, "total_bytes": severity}
    item = only(app.run(job, ["counted"], checks=checks, ends=ends))
    assert (item["checks"]["file_count"], item["checks"]["total_bytes"]) == (verdict, verdict)
    assert (item["source_file_count"], item["dest_file_count"]) == (2, 3)
    assert item["dest_bytes"] == item["source_bytes"] + 8
    if severity == "fail":
        assert item["error_code"] == "integrity_mismatch"
        assert "not of the source: stray.csv" in item["error_detail"]
        assert ws.versions("counted") == []


def test_hash_sample(app: App, ws: Workspaces, job: str) -> None:
    """A file of the same size and other bytes under a stored MD5 that lies: only reading it shows it."""
    ws.add("hashed", files={"a.csv": rows(4)})
    app.run(job, ["hashed"])
    good = rows(4)
    bad = good.replace(b"name 1", b"nome 1")
    with ws.container("target") as client, ws.container("source") as source:
        from azure.storage.blob import ContentSettings

        stored = source.get_blob_client("data/hashed/1/a.csv").get_blob_properties().content_settings.content_md5
        blob = client.get_blob_client("migrated/hashed/1/a.csv")
        blob.upload_blob(bad, overwrite=True)
        blob.set_http_headers(ContentSettings(content_md5=stored))
    ws.emulators.clear_assets("ws-target")
    item = only(app.run(job, ["hashed"], **FAILS))
    assert (item["error_code"], item["hash_mismatches"], item["hash_sample_count"]) == ("integrity_mismatch", 1, 1)
    item = only(app.run(job, ["hashed"], checks={"hash_sample": "warn"}))
    assert (item["checks"]["hash_sample"], item["hash_mismatches"], item["status"]) == ("warning", 1, "success")
    item = only(app.run(job, [{"name": "hashed", "versions": ["1"], "hash_sample_files": 0}]))
    assert item["checks"]["hash_sample"] == "skipped"


def test_the_load_test_fails(app: App, ws: Workspaces, job: str) -> None:
    text = "type: mltable\npaths:\n  - file: ./a.parquet\ntransformations:\n  - read_parquet\n"
    ws.add("broken", files={"a.parquet": b"no parquet at all"}, text=text)
    manifest = app.run(job, ["broken"], **LOADED, **FAILS)
    item = only(manifest)
    assert (item["error_code"], item["validation_loaded"], item["checks"]["load"]) == ("load_failed", False, "failed")
    assert "the source's does not load either" in item["error_detail"]
    assert item["final_version"] == "1"
    item = only(app.run(job, ["broken"], checks={"load": "warn"}, **LOADED))
    assert item["checks"]["load"] == "warning"
    assert item["warnings"]


def test_an_empty_table(app: App, ws: Workspaces, job: str) -> None:
    text = "type: mltable\npaths:\n  - file: ./a.csv\ntransformations:\n  - read_delimited\n"
    text += "  - filter: \"col('id') > 99\"\n"
    ws.add("empty", files={"a.csv": rows(5)}, text=text)
    item = only(app.run(job, ["empty"], **LOADED))
    assert (item["rows"], item["validation_loaded"]) == (0, True)
    item = only(app.run(job, ["empty"], validation={"require_rows": True}, batch="b", **FAILS))
    assert item["error_code"] == "load_failed"


def test_a_hang_or_a_hunger_of_the_engine_fails_the_check_alone(app: App, ws: Workspaces, job: str) -> None:
    ws.add("hangs")
    ws.add("hungers")
    ws.add("thrives")
    manifest = app.run(job, [
        {"name": "hangs", "versions": ["1"], "validation": {"enabled": True, "timeout_s": 1, "memory": "4GiB",
                                                            "count_rows": 1000000}},
        {"name": "hungers", "versions": ["1"], "validation": {"enabled": True, "memory": "256MiB"}},
        {"name": "thrives", "versions": ["1"], "validation": {"enabled": True}},
    ], ends="completed_with_failures")  # fmt: skip
    found = {item["asset_name"]: item for item in manifest["items"]}
    assert found["thrives"]["status"] == "success"
    assert found["hungers"]["error_code"] == "load_failed"
    assert "256 MiB" in found["hungers"]["error_detail"]
    # On a fast machine a second is enough; then it is no hang.
    assert found["hangs"]["error_code"] in ("load_failed", None)


def test_source_and_target_load_differently(app: App, ws: Workspaces, job: str) -> None:
    """Where the hash of a file is not in the sample, the load test still compares what is read."""
    ws.add("differs", files={"a.csv": rows(4)})
    app.run(job, ["differs"])
    with ws.container("target") as client, ws.container("source") as source:
        from azure.storage.blob import ContentSettings

        stored = source.get_blob_client("data/differs/1/a.csv").get_blob_properties().content_settings.content_md5
        blob = client.get_blob_client("migrated/differs/1/a.csv")
        blob.upload_blob(rows(4).replace(b"name 1", b"nome 1"), overwrite=True)
        blob.set_http_headers(ContentSettings(content_md5=stored))
    options = {"hash_sample_files": 0, **LOADED}
    item = only(app.run(job, ["differs"], **options, **FAILS))
    assert item["error_code"] in ("tables_differ", "integrity_mismatch")


# -- section 12 --------------------------------------------------------------------------------------------------------


def test_a_missing_asset_is_recorded_and_the_batch_goes_on(app: App, ws: Workspaces, job: str) -> None:
    ws.add("there")
    manifest = app.run(job, [{"name": "gone", "versions": ["4"]}, {"name": "there", "versions": ["1", "2"]}], **FAILS)
    assert {item["path"]: (item["status"], item["error_code"]) for item in manifest["items"]} == {
        "gone/4": ("missing", "asset_missing"), "there/1": ("success", None), "there/2": ("missing", "asset_missing"),
    }  # fmt: skip


@pytest.mark.parametrize("client", ["reader", "outsider"])
def test_403_stops_the_batch(azureml: Any, ws: Workspaces, tmp_path: Path, client: str) -> None:
    """A reader may read everything and write nothing: it is stopped by the target's storage, not asset by asset."""
    ws.add("one")
    ws.add("two")
    app = App(ws, tmp_path, client=client)
    try:
        run = app.start(app.spec("forbidden", ["one", "two"]))
        document = app.wait(run, "failed")
        manifest = app.manifest(run)
    finally:
        app.close()
    code = "storage_permission_denied" if client == "reader" else "workspace_permission_denied"
    assert document["error"]["code"] == code
    assert "role" in document["error"]["message"]
    assert not [item for item in manifest["items"] if item["status"] == "success"]
    assert ws.blobs("target") == {}
    assert manifest["signoff"]["may_delete_source"] == "no"


def test_a_tenant_that_is_not_the_workspaces(app: App, ws: Workspaces, job: str) -> None:
    spec = app.spec(job, ["one"])
    spec["config"]["target_workspace_config"]["credential"] = "azureml_source"
    run = app.start(spec)
    document = app.wait(run, "failed")
    assert document["error"]["code"] == "token_rejected"
    assert "tenant" in document["error"]["message"]


@pytest.mark.parametrize("fault", ["unavailable", "server_error", "reset_after", "throttle"])
def test_transient_errors_of_the_storage_are_tried_again(app: App, ws: Workspaces, job: str, fault: str) -> None:
    ws.add("shaky")
    ws.emulators.set_faults([
        {"service": "azureml_blob", "path": f"{account}/*", "operation": operation, "fault": fault, "times": 2}
        for account, operation in (("amltargetstore", "append_flush"), ("amlsourcestore", "read"))
    ])  # fmt: skip
    item = only(app.run(job, ["shaky"], server_side_copy="never"))
    assert (item["status"], item["files_copied"]) == ("success", 2)
    assert sum(ws.emulators.fault_hits()) >= 2


def test_when_the_attempts_are_used_up_the_version_fails_and_the_next_begins(
    app: App, ws: Workspaces, job: str
) -> None:
    ws.add("down")
    ws.add("up")
    ws.emulators.set_faults([
        {"service": "azureml", "path": "ws-target/data/down/*", "operation": "create", "fault": "unavailable"}
    ])  # fmt: skip
    manifest = app.run(job, ["down", "up"], **FAILS)
    found = {item["asset_name"]: item for item in manifest["items"]}
    assert (found["down"]["error_code"], found["down"]["step"]) == ("service_unavailable", "register")
    assert found["up"]["status"] == "success"
    # And once it is well, those alone.
    ws.emulators.set_faults([])
    run = manifest["id"]
    assert app.call("POST", f"/migrations/{run}/retry-failed").status == 202
    assert app.wait(run)["status"] == "completed"
    again = app.manifest(run)
    assert {item["status"] for item in again["items"]} == {"success"}
    assert again["round"] == 2


def test_broken_yaml_fails_that_version_alone(app: App, ws: Workspaces, job: str) -> None:
    ws.add("torn", text="type: mltable\npaths:\n  - file: [./a.csv\n")
    ws.add("whole")
    manifest = app.run(job, ["torn", "whole"], **FAILS)
    found = {item["asset_name"]: item for item in manifest["items"]}
    assert found["torn"]["error_code"] == "blueprint_invalid"
    assert "line" in found["torn"]["error_detail"]
    assert found["whole"]["status"] == "success"


def test_another_refusal_of_a_registration_is_recorded(app: App, ws: Workspaces, job: str) -> None:
    """The target has the name with another type, so no version of an MLTable can be registered under it."""
    ws.add("typed")
    ws.add("fine")
    document = {"dataType": "uri_folder", "dataUri": "azureml://datastores/workspaceblobstore/paths/x/"}
    ws.emulators.register_assets([
        {"workspace": "ws-target", "name": "typed", "version": "7", "properties": document}
    ])  # fmt: skip
    manifest = app.run(job, ["typed", "fine"], collision_max=2, **FAILS)
    found = {item["asset_name"]: item for item in manifest["items"]}
    assert found["typed"]["status"] == "failed"
    assert found["typed"]["error_code"] in ("collisions_exhausted", "registration_refused", "version_exists")
    assert found["fine"]["status"] == "success"


def test_rollback_leaves_nothing_of_a_version_that_failed(app: App, ws: Workspaces, job: str) -> None:
    ws.add("half")
    ws.put("target", {"migrated/kept.txt": b"not ours"})
    ws.emulators.set_faults([
        {"service": "azureml", "path": "ws-target/data/half/*", "operation": "create", "fault": "unavailable"}
    ])  # fmt: skip
    item = only(app.run(job, ["half"], rollback_on_failure=True, **FAILS))
    assert item["rolled_back"] is True
    assert ws.blobs("target") == {"migrated/kept.txt": b"not ours"}
    ws.emulators.set_faults([])
    item = only(app.run(job, ["half"], rollback_on_failure=True))
    assert item["status"] == "success"


def test_no_secret_in_log_history_store(app: App, ws: Workspaces, job: str) -> None:
    ws.add("quiet")
    app.run(job, ["quiet"])
    secrets = [*ws.azureml["account_keys"].values(), "sig=", "emulator-only-source-migrator", "eyJ0eXAiOiJKV1Qi"]
    secrets += ["Bearer ey"]
    places = [path for path in app.root.rglob("*") if path.is_file() and path.suffix != ".pem"]
    assert len(places) > 5
    for path in places:
        text = path.read_bytes()
        for secret in secrets:
            assert secret.encode() not in text, (path, secret)


# -- specs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"source_workspace_config": "config/source.json"}, "config.source_workspace_config", "names a file"),
        ({"assets": []}, "config.assets", "at least 1"),
        ({"assets": [{"name": "a b", "versions": ["1"]}]}, "config.assets[0].name", "no name of a data asset"),
        ({"assets": [{"name": "a", "versions": ["9..3"]}]}, "config.assets[0].versions[0]", "ends before it begins"),
        ({"assets": [{"name": "a", "versions": ["1"], "destination_subpath": "../x"}]},
         "config.assets[0].destination_subpath", "must be a folder"),
        ({"assets": [{"name": "a*", "versions": ["1"], "destination_subpath": "x"}]},
         "config.assets[0].destination_subpath", "the same folder for several"),
        ({"defaults": {"collision_policy": "overwrite"}}, "config.defaults.collision_policy", "suffix"),
        ({"defaults": {"collision_suffix_pattern": "x{n}"}}, "config.defaults.collision_suffix_pattern", "{version}"),
        ({"defaults": {"paralel_copies": 3}}, "config.defaults.paralel_copies", "not permitted"),
        ({"migration_batch_id": "a b"}, "config.migration_batch_id", "64 letters"),
    ],
)  # fmt: skip
def test_bad_input_names_the_field(app: App, job: str, change: dict[str, Any], field: str, says: str) -> None:
    spec = app.spec(job, ["one"])
    spec["config"] |= change
    answer = app.call("POST", "/migrations", spec)
    assert answer.status == 400
    detail = answer.error["details"][0]
    assert detail["path"] == field
    assert says in detail["message"], json.dumps(detail)


def test_a_credential_that_is_not_there_or_of_another_tenant(app: App, job: str) -> None:
    spec = app.spec(job, ["one"])
    spec["config"]["source_workspace_config"]["credential"] = "nobody"
    answer = app.call("POST", "/migrations", spec)
    assert (answer.status, answer.fields) == (400, ["config.source_workspace_config.credential"])
    assert "CREDENTIAL_NOBODY" in answer.error["message"]
    spec = app.spec(job, ["one"])
    spec["config"]["source_workspace_config"]["tenant_id"] = "00000000-0000-4000-8000-000000000000"
    answer = app.call("POST", "/migrations", spec)
    assert (answer.status, answer.fields) == (400, ["config.source_workspace_config.tenant_id"])
    spec["config"]["source_workspace_config"] = spec["config"]["target_workspace_config"]
    answer = app.call("POST", "/migrations", spec)
    assert (answer.status, answer.fields) == (400, ["config.target_workspace_config"])


def test_a_token_that_is_refused_is_asked_for_once_more(app: App, ws: Workspaces, job: str) -> None:
    ws.add("stale")
    ws.emulators.set_faults([
        {"service": "azureml", "fault": "expired_token", "times": 1},
        {"service": "azureml_blob", "path": "amltargetstore/*", "fault": "expired_token", "times": 1},
    ])  # fmt: skip
    assert only(app.run(job, ["stale"]))["status"] == "success"
    assert ws.emulators.fault_hits() == [1, 1]


def test_azure_ml_that_throttles(app: App, ws: Workspaces, job: str) -> None:
    ws.add("busy")
    ws.emulators.set_faults([{"service": "azureml", "fault": "throttle", "probability": 0.15, "times": 4}])
    assert only(app.run(job, ["busy"]))["status"] == "success"


def test_rollback_after_the_load_test_puts_the_version_away_until_it_loads(app: App, ws: Workspaces, job: str) -> None:
    text = "type: mltable\npaths:\n  - file: ./a.parquet\ntransformations:\n  - read_parquet\n"
    ws.add("mended", files={"a.parquet": b"no parquet at all"}, text=text)
    item = only(app.run(job, ["mended"], rollback_on_failure=True, **LOADED, **FAILS))
    assert (item["error_code"], item["rolled_back"]) == ("load_failed", True)
    assert ws.blobs("target") == {}
    assert (ws.versions("mended"), ws.versions("mended", archived=True)) == ([], ["1"])
    ws.put("source", {"data/mended/1/a.parquet": rows(3), "data/mended/1/MLTable": text.replace(
        "read_parquet", "read_delimited").encode()})  # fmt: skip
    item = only(app.run(job, ["mended"], rollback_on_failure=True, **LOADED))
    assert (item["status"], item["final_version"], item["rows"]) == ("success", "1", 3)
    assert (ws.versions("mended"), ws.versions("mended", archived=True)) == (["1"], [])


def test_registered_data_is_never_written_over(app: App, ws: Workspaces, job: str) -> None:
    """The source's files change after a version was migrated under a suffix: the next run makes a folder of its own."""
    ws.add("moving", files={"a.csv": rows(2)})
    ws.register("target", "moving", "1", "azureml://datastores/workspaceblobstore/paths/other/")
    assert only(app.run(job, ["moving"]))["final_version"] == "1_m1"
    ws.put("source", {"data/moving/1/a.csv": rows(5)})
    item = only(app.run(job, ["moving"]))
    assert (item["status"], item["final_version"]) == ("success", "1_m2")
    assert ws.migrated("moving", "1")["a.csv"] == rows(2)
    assert str(item["target_uri"]).endswith("/migrated/moving/1_m1/")
    assert ws.migrated("moving", "1_m1")["a.csv"] == rows(5)
