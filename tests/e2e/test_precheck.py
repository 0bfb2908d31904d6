"""A dry run's report: what it says of a folder, of a library with every special item in it, and of several sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob import StandardBlobTier

from local.emulators.certificates import Certificates
from tests.support import azurite
from tests.support.platform import Lake, Platform, files_below, make_files, running
from tests.support.storage_account import StorageAccount

SITE = "contoso.sharepoint.com:/sites/finance"


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("precheck")) as started:
        yield started


@pytest.fixture
def storage(platform: Platform, tmp_path: Path) -> Iterator[StorageAccount]:
    """A storage account that the platform's jobs may read, under the platform's own certificates."""
    tls = platform.emulators.root / "state" / "tls"
    certificates = Certificates(tls / "ca.pem", tls / "server-chain.pem", tls / "server-key.pem")
    try:
        with azurite.running(tmp_path, certificates) as connection:
            url = dict(part.split("=", 1) for part in connection.split(";") if part)["BlobEndpoint"]
            key = json.dumps({"kind": "account_key", "account_key": azurite.KEY})
            platform.restart_host(CREDENTIAL_SOURCE=key, BLOB_SOURCE_HOSTS="127.0.0.1")
            with (account := StorageAccount(url, str(certificates.ca))).sdk:
                yield account
    except azurite.AzuriteMissing as missing:
        pytest.skip(str(missing))


def library(name: str, **changes: Any) -> dict[str, Any]:
    return {"type": "sharepoint", "site": SITE, "library": name, **changes}


def checked(
    platform: Platform, job: dict[str, Any], ending: str = "completed"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run it dry; its report, and the manifest's items by path."""
    mark = platform.mark()
    run = platform.run({**job, "dry_run": True}, ending)["id"]
    written = [one for one in platform.emulators.journal()[mark:] if one["method"] not in ("GET", "HEAD", "POST")]
    assert written == [], "a dry run writes nothing"
    manifest = platform.manifest(run)
    summary = platform.get(f"/migrations/{run}/manifest?format=summary").json
    assert summary == {name: value for name, value in manifest.items() if name != "items"}
    for form in ("md", "html"):
        assert "Estimated duration" in platform.get(f"/migrations/{run}/manifest?format={form}").body.decode()
    check: dict[str, Any] = manifest["precheck"]
    assert check["complete"]
    assert sum(row["items"] for row in check["actions"] if row["action"] != "delete") == check["items"]
    for table in ("types", "folders"):
        rows = [*check[table]["rows"], *([check[table]["others"]] if check[table]["others"] else [])]
        assert sum(row["items"] for row in rows) == sum(row["items"] for row in check["sizes"]) == check["items"]
        assert sum(row["bytes"] for row in rows) == sum(row["bytes"] for row in check["sizes"]) == check["bytes"]
    return check, {item["path"]: item for item in manifest["items"]}


def actions(check: dict[str, Any]) -> dict[str, int]:
    return {row["action"]: row["items"] for row in check["actions"]}


def findings(check: dict[str, Any]) -> dict[str, int]:
    return {one["kind"]: one["items"] for one in check["findings"]}


def test_a_folder(platform: Platform) -> None:
    source, lake = platform.source("folder"), Lake(platform.emulators)
    for path, data in {
        "a.pdf": b"new", "b.pdf": b"mine", "c.pdf": b"longer", "deep/D.TXT": b"x" * 5000, "deep/d.txt": b"",
        "deep/bad.": b"1", f"{'l' * 200}/{'o' * 200}/{'n' * 200}/{'g' * 200}/{'e' * 200}/{'r' * 100}": b"2",
    }.items():  # fmt: skip
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    (source / "link.pdf").symlink_to("a.pdf")
    lake.write("Files/folder/b.pdf", b"your")
    lake.write("Files/folder/c.pdf", b"no")
    check, items = checked(platform, platform.spec("folder"), "completed_with_failures")
    assert actions(check) == {"create": 3, "replace": 1, "compare": 1, "leave_out": 1, "fail": 2}
    assert {path: items[path]["action"] for path in ("a.pdf", "b.pdf", "c.pdf", "link.pdf")} == {
        "a.pdf": "create", "b.pdf": "compare", "c.pdf": "replace", "link.pdf": None,
    }  # fmt: skip
    assert findings(check) == {"path_too_long": 1, "unmappable_path": 1, "link_not_followed": 1, "case_twins": 1}
    assert check["largest"][0] == {"path": "deep/D.TXT", "bytes": 5000}
    assert check["estimate"]["expected_s"] is None
    # What it said is what happens.
    progress = platform.run(platform.spec("folder"), "completed_with_failures")["progress"]
    assert {name: progress[name] for name in ("uploaded", "skipped", "failed")} == {
        "uploaded": 5, "skipped": 1, "failed": 2,
    }  # fmt: skip


def test_an_earlier_run_tells_how_long_it_takes(platform: Platform) -> None:
    make_files(platform.source("again"), 20)
    first = platform.run(platform.spec("again"))["id"]
    make_files(platform.sources / "again" / "more", 10)
    check, _ = checked(platform, platform.spec("again"))
    assert actions(check) == {"create": 10, "skip": 20}
    (bound,) = check["estimate"]["bounds"]
    assert bound["basis"] == "measured"
    assert first in bound["says"]
    assert "rough" in bound["says"]
    # Its own dry run is no measure, and neither is it for another job.
    make_files(platform.source("other"), 5)
    check, _ = checked(platform, platform.spec("other", limits={"bandwidth": "1MiB/s"}))
    assert [bound["basis"] for bound in check["estimate"]["bounds"]] == ["bandwidth", "measured"]
    # Of runs of the same second it may be any.
    assert "another job's run files-" in check["estimate"]["bounds"][1]["says"]


def test_deletions_that_a_mirror_would_make(platform: Platform) -> None:
    source = platform.source("mirror")
    make_files(source, 4)
    job = platform.spec("mirror", mode="incremental", deleted="mirror")
    platform.run(job)
    (source / "d0/f0000.bin").unlink()
    (source / "d1/f0001.bin").write_bytes(b"changed and longer")
    check, _ = checked(platform, job)
    assert actions(check) == {"replace": 1, "delete": 1, "skip": 2}
    assert check["items"] == 3
    assert len(files_below(platform.lake("mirror"))) == 4


def test_a_library_with_every_special_item(platform: Platform) -> None:
    job = {**platform.spec("special"), "source": library("Documents")}
    check, items = checked(platform, job, "completed_with_failures")
    assert actions(check) == {"create": 20, "leave_out": 4, "fail": 1}
    assert findings(check) == {
        "malware_detected": 1, "package_not_a_file": 3, "shortcut_not_followed": 1, "office_documents": 6,
        "name_mapped": 2, "checked_out": 1,
    }  # fmt: skip
    (mapped,) = [one["examples"] for one in check["findings"] if one["kind"] == "name_mapped"]
    assert [one["path"] for one in mapped] == ["Folder 1./inside.txt", "Special/ends in a dot 1."]
    assert "Folder 1%2E/inside.txt" in mapped[0]["detail"]
    assert items["Folder 1./inside.txt"]["target"].endswith("/Folder 1%2E/inside.txt")
    assert [band["units_per_minute"] for band in check["estimate"]["bands"]] == [1250, 2500, 3750, 5000, 6250]
    assert not platform.lake("special").exists()


def test_what_has_changed_in_a_library(platform: Platform) -> None:
    job = {**platform.spec("changes", mode="incremental", deleted="mirror"), "source": library("Invoices")}
    check, _ = checked(platform, job)
    assert actions(check) == {"create": 48}
    assert not check["changes_only"]
    graph = platform.emulators.graph
    first = platform.run(job)
    assert first["progress"]["uploaded"] == 48, "a dry run leaves no memory behind"
    paths = sorted(line["path"] for line in graph.tree("Invoices") if line["kind"] == "file")
    moving = [path for path in paths if path.startswith("2024/01/")]
    graph.rename("Invoices", "2024/01", "renamed")
    graph.delete("Invoices", paths[-1])
    graph.put("Invoices", "new.pdf", b"new")
    for _ in range(2):
        check, _ = checked(platform, job)
        assert actions(check) == {"create": 1, "rename": len(moving), "delete": 1}
        assert check["changes_only"]
        assert check["moving_items"] == 1
    # What the dry runs have seen was not forgotten by the one that counts.
    progress = platform.run(job)["progress"]
    assert {name: progress[name] for name in ("uploaded", "renamed", "deleted")} == {
        "uploaded": 1, "renamed": len(moving), "deleted": 1,
    }  # fmt: skip


def test_several_sources_and_a_known_ceiling(platform: Platform) -> None:
    make_files(platform.source("share"), 6)
    job = platform.spec("both")
    del job["source"]
    job["sources"] = [
        {**library("Documents"), "target_path": "library"},
        {"type": "folder", "path": str(platform.sources / "share"), "target_path": "share"},
    ]
    platform.restart_host(GRAPH_UNITS_PER_MINUTE="1250")
    check, _ = checked(platform, job, "completed_with_failures")
    assert [(row["target_path"], row["type"], row["items"]) for row in check["sources"]] == [
        ("library", "sharepoint", 25), ("share", "folder", 6),
    ]  # fmt: skip
    assert {"library/Special", "share/d0"} < {row["name"] for row in check["folders"]["rows"]}
    (bound,) = check["estimate"]["bounds"]
    assert bound["says"].startswith("20 downloads from SharePoint, one resource unit each, at the 1,250 a minute")
    assert bound["seconds"] == pytest.approx(20 / 1250 * 60)
    assert check["estimate"]["bands"] == []


def test_a_container(platform: Platform, storage: StorageAccount) -> None:
    container = storage.make_container()
    for name in ("both", "both/below.txt", "dot.", "A.TXT", "a.txt", "deep/1.pdf", "deep/2.pdf"):
        container.upload_blob(name, b"12345")
    container.upload_blob("archived.bin", b"1", standard_blob_tier=StandardBlobTier.ARCHIVE)
    job = platform.spec("container")
    job["source"] = {"type": "blob", "account_url": storage.url, "container": container.container_name}
    check, items = checked(platform, job, "completed_with_failures")
    assert actions(check) == {"create": 7, "fail": 1}
    assert findings(check) == {"archived": 1, "file_and_folder": 1, "case_twins": 1, "name_mapped": 1}
    assert items["dot."]["target"].endswith("/dot%2E")
    assert (check["items"], check["bytes"], check["moving_bytes"]) == (8, 36, 35)
    assert check["estimate"]["bands"] == []
    # What it said is what happens: the archived one fails, and one of the two of the same name.
    run = platform.run(job, "completed_with_failures")["id"]
    failed = {
        item["path"]: item["error_code"] for item in platform.manifest(run)["items"] if item["status"] == "failed"
    }
    assert len(failed) == 2
    assert failed.pop("archived.bin") == "archived"
    assert set(failed) < {"both", "both/below.txt"}
