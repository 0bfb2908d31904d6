"""Paths of a blueprint that lead elsewhere: refused, carried or kept as the job says, and never broken unsaid."""

from __future__ import annotations

from typing import Any

from tests.support.mltables import App, Workspaces, rows

FAILS = {"ends": "completed_with_failures"}
LOADED: dict[str, Any] = {"validation": {}}


def text(*paths: str) -> str:
    return "type: mltable\npaths:\n" + "".join(f"  - {path}\n" for path in paths) + (
        "transformations:\n  - read_delimited\n"
    )  # fmt: skip


def only(manifest: dict[str, Any]) -> dict[str, Any]:
    (item,) = manifest["items"]
    found: dict[str, Any] = item
    return found


def test_outside_of_the_root(app: App, ws: Workspaces, job: str) -> None:
    own = text("file: ./own.csv", "file: ../common/lookup.csv", "pattern: ../common/parts/*.csv")
    ws.add("out", root="x/out", files={"own.csv": rows(2)}, text=own)
    ws.put("source", {"x/common/lookup.csv": rows(2, 2), "x/common/parts/1.csv": rows(2, 4), "x/common/no.csv": b"x"})
    item = only(app.run(job, ["out"], **FAILS))
    assert item["error_code"] == "outside_root"
    assert "../common/lookup.csv" in item["error_detail"]
    assert "../common/parts/*.csv" in item["error_detail"]
    item = only(app.run(job, ["out"], outside_root="carry", **LOADED))
    there = ws.migrated("out")
    assert there == {
        "own.csv": rows(2), "_outside/x/common/lookup.csv": rows(2, 2), "_outside/x/common/parts/1.csv": rows(2, 4),
        "MLTable": own.replace("../common", "./_outside/x/common").encode(),
    }  # fmt: skip
    assert (item["rows"], item["source_file_count"], item["status"]) == (6, 3, "success")


def test_carried_files_must_not_be_loaded_twice(app: App, ws: Workspaces, job: str) -> None:
    ws.add("wide", root="x/wide", files={"own.csv": rows(2)}, text=text("pattern: ./**/*.csv", "file: ../other.csv"))
    ws.put("source", {"x/other.csv": rows(2, 2)})
    item = only(app.run(job, ["wide"], outside_root="carry", **FAILS))
    assert item["error_code"] == "outside_root"
    assert "twice" in item["error_detail"]


def test_another_datastore(app: App, ws: Workspaces, job: str) -> None:
    ws.add("elsewhere", datastore="sas_store")
    item = only(app.run(job, ["elsewhere"], **FAILS))
    assert (item["error_code"], "sas_store" in item["error_detail"]) == ("other_datastore", True)
    for number, path in enumerate((
        "azureml://datastores/nowhere/paths/a.csv", ws.long("target", "p/a.csv"), "azureml:another:1",
        "wasbs://c@stranger.blob.core.windows.net/a.csv",
    )):  # fmt: skip
        ws.add(f"mixed{number}", files={"own.csv": rows(2)}, text=text("file: ./own.csv", f"file: {path}"))
        item = only(app.run(job, [f"mixed{number}"], other_datastore="carry", **FAILS))
        assert (item["error_code"], "cannot be carried" in item["error_detail"]) == ("other_datastore", True)


def test_another_container_of_the_account(app: App, ws: Workspaces, job: str) -> None:
    """As the public container of the emulated account: it goes when the account goes."""
    url = f"{ws.azureml['storage_urls']['amlsourcestore']}/public/ref/countries.csv"
    ws.put("source", {"ref/countries.csv": rows(3)}, "public")
    ws.add("ref", files={}, text=text(f"file: {url}"))
    assert only(app.run(job, ["ref"], **FAILS))["error_code"] == "other_datastore"
    item = only(app.run(job, ["ref"], other_datastore="carry", **LOADED))
    assert ws.migrated("ref")["_outside/public/ref/countries.csv"] == rows(3)
    assert (item["rows"], item["status"]) == (3, "success")


def test_public_urls(app: App, ws: Workspaces, job: str) -> None:
    own = text("file: https://example.org/open/countries.csv")
    ws.add("open", files={}, text=own)
    manifest = app.run(job, ["open"], **LOADED)
    item = only(manifest)
    assert ws.migrated("open") == {"MLTable": own.encode()}
    assert (item["validation_loaded"], item["checks"]["load"]) == (None, "warning")
    assert "stays as it is" in item["warnings"][0]
    assert manifest["signoff"]["may_delete_source"] == "review"
    assert only(app.run(job, ["open"], public_urls="refuse", batch="b", **FAILS))["error_code"] == "public_url"


def test_a_signature_is_not_handed_on(app: App, ws: Workspaces, job: str) -> None:
    ws.add("signed", text=text("file: https://acct.blob.core.windows.net/c/a.csv?sv=2024&sig=c2VjcmV0"))
    manifest = app.run(job, ["signed"], **FAILS)
    assert only(manifest)["error_code"] == "signed_url"
    assert "c2VjcmV0" not in str(manifest)


def test_a_path_that_names_nothing(app: App, ws: Workspaces, job: str) -> None:
    ws.add("hole", files={"a.csv": rows(1)}, text=text("file: ./a.csv", "file: ./b.csv"))
    item = only(app.run(job, ["hole"], **FAILS))
    assert (item["error_code"], "b.csv" in item["error_detail"]) == ("path_missing", True)


def test_names_that_have_broken_migrations_before(app: App, ws: Workspaces, job: str) -> None:
    files = {
        "with space/ü é#1.csv": rows(1), "100% %20/+&=.csv": rows(2), "a'b(c)[d]{e}.csv": rows(3),
        "請求書/файл.csv": rows(4), "empty.csv": b"", "deep/" + "x/" * 20 + "y.csv": rows(1),
    }  # fmt: skip
    ws.add("names", files=files, text=text("file: ./empty.csv"))
    for way in ("auto", "never"):
        ws.emulators.clear_assets("ws-target")
        item = only(app.run(job, ["names"], server_side_copy=way, destination_prefix=way))
        assert (item["status"], item["dest_file_count"]) == ("success", len(files))
        assert item["files_by_service"] == (len(files) - 1 if way == "auto" else 0)
        there = ws.migrated("names", prefix=way)
        assert {path: there[path] for path in files} == files


def test_a_large_file_goes_in_blocks(app: App, ws: Workspaces, job: str) -> None:
    large = bytes(range(256)) * (80 * 1024)
    assert len(large) > 16 * 1024 * 1024
    ws.add("large", files={"a.csv": rows(1), "large.bin": large}, text=text("file: ./a.csv"))
    item = only(app.run(job, ["large"], server_side_copy="never"))
    assert ws.migrated("large")["large.bin"] == large
    assert (item["bytes_copied"], item["files_by_service"]) == (len(large) + len(rows(1)), 0)
    with ws.container("target") as client:
        found = client.get_blob_client("migrated/large/1/large.bin").get_blob_properties()
    import hashlib

    assert bytes(found.content_settings.content_md5) == hashlib.md5(large).digest()


def test_archived_versions_and_order(app: App, ws: Workspaces, job: str) -> None:
    """Registered last is latest, so that the order of the source is the order of the target."""
    for version in ("3", "1", "2"):
        ws.add("order", version)
    ws.add("order", "0", isArchived=True)
    manifest = app.run(job, [{"name": "order", "versions": ["1", "2", "3", "0"]}])
    assert [item["path"] for item in manifest["items"]] == ["order/3", "order/1", "order/2", "order/0"]
    source, target = ws.ml("source").data, ws.ml("target").data
    assert source.get("order", label="latest").version == target.get("order", label="latest").version == "0"
    assert ws.versions("order", archived=True) == ["0"]
    assert manifest["latest"][0]["verdict"] == "same"


def test_latest_that_means_something_else_is_said(app: App, ws: Workspaces, job: str) -> None:
    ws.add("newer", "1")
    ws.add("newer", "2")
    app.run(job, [{"name": "newer", "versions": ["2"]}])
    manifest = app.run(job, [{"name": "newer", "versions": ["1", "2"]}])
    assert manifest["latest"][0] == {
        "asset_name": "newer", "source_latest": "2", "expected": "2", "target_latest": "1", "verdict": "differs",
    }  # fmt: skip
    assert any("'latest' is 1" in reason for reason in manifest["signoff"]["to_review"])
