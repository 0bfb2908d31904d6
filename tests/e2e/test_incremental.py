"""Incremental loads by ledger: what changed is moved, what is gone is kept or deleted, and never more than that."""

import os
import shutil
import stat
import sys
from pathlib import Path

import pytest

from tests.support.platform import Lake, Platform, compare, files_below, make_files, running

_WITHOUT_OVERRIDE = """#!{python}
import ctypes, os, sys
for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv({python!r}, [{python!r}, *sys.argv[1:]])
"""


def _spec(platform: Platform, name: str, **changes: object) -> dict[str, object]:
    return platform.spec(name, mode="incremental", **changes)


def test_only_what_changed_is_moved_and_what_is_gone_is_kept(platform: Platform) -> None:
    source = platform.source("keep")
    make_files(source, 20)
    platform.run(_spec(platform, "keep"))
    (source / "d0" / "f0000.bin").unlink()
    (source / "d1" / "f0001.bin").write_bytes(b"changed")
    (source / "d2" / "new.bin").write_bytes(b"new")
    mark = platform.mark()
    document = platform.run(_spec(platform, "keep", verify="all"))
    assert platform.commits("keep", mark) == {"d1/f0001.bin": 1, "d2/new.bin": 1}
    assert (document["progress"]["uploaded"], document["progress"]["skipped"]) == (2, 18)
    platform.assert_agreement(document["id"], "keep", lake_has_extra=["d0/f0000.bin"])


def test_mirror_deletes_what_is_gone_and_nothing_else(platform: Platform) -> None:
    source = platform.source("mirror")
    make_files(source, 20)
    Lake(platform.emulators).write("Files/mirror/stranger.bin", b"not ours")
    platform.run(_spec(platform, "mirror"))
    for gone in ("d0/f0000.bin", "d0/f0005.bin", "d4/f0019.bin"):
        (source / gone).unlink()
    shutil.rmtree(source / "d3")
    # Somebody worked on one of them in the lake: it is not this job's file any more.
    Lake(platform.emulators).write("Files/mirror/d0/f0005.bin", b"edited in the lake")
    document = platform.run(_spec(platform, "mirror", deleted="mirror", verify="all"), "completed_with_failures")
    manifest = platform.assert_agreement(document["id"], "mirror", lake_has_extra=["d0/f0005.bin", "stranger.bin"])
    by_status: dict[str, set[str]] = {}
    for item in manifest["items"]:
        by_status.setdefault(item["status"], set()).add(item["path"])
    assert by_status["deleted"] == {"d0/f0000.bin", "d4/f0019.bin", *(f"d3/f{n:04d}.bin" for n in (3, 8, 13, 18))}
    assert by_status["failed"] == {"d0/f0005.bin"}
    assert manifest["errors"] == {"target_changed": 1}
    assert (platform.lake("mirror") / "d0/f0005.bin").read_bytes() == b"edited in the lake"
    # Said once: the file is not the job's any more.
    platform.run(_spec(platform, "mirror", deleted="mirror", verify="all"))


def test_an_emptied_or_unmounted_source_deletes_nothing(platform: Platform) -> None:
    source = platform.source("emptied")
    make_files(source, 10)
    spec = _spec(platform, "emptied", deleted="mirror")
    platform.run(spec)
    for entry in source.iterdir():
        shutil.rmtree(entry)
    document = platform.run(spec, "failed")
    assert document["error"]["code"] == "source_empty"
    assert len(files_below(platform.lake("emptied"))) == 10
    source.rmdir()
    refused = platform.post("/migrations", spec)
    assert (refused.status, refused.fields) == (400, ["source.path"])
    assert len(files_below(platform.lake("emptied"))) == 10
    make_files(source := platform.source("emptied"), 10)
    assert platform.run(spec)["progress"]["failed"] == 0
    assert not compare(source, platform.lake("emptied"))


def test_filters_that_change_delete_nothing(platform: Platform) -> None:
    """A file that a filter now leaves out is not gone from the source."""
    make_files(platform.source("filters"), 10)
    platform.run(_spec(platform, "filters", deleted="mirror"))
    platform.run(_spec(platform, "filters", deleted="mirror", exclude=["d1/**"]))
    assert len(files_below(platform.lake("filters"))) == 10


def test_what_takes_a_files_place_is_not_a_loss_of_the_others(platform: Platform) -> None:
    """A folder in place of a file, a link in place of a folder: what was there is gone, and only that."""
    source = platform.source("swap")
    make_files(source, 10)
    platform.run(_spec(platform, "swap", deleted="mirror"))
    (source / "d0" / "f0000.bin").unlink()
    (source / "d0" / "f0000.bin").mkdir()
    (source / "d0" / "f0000.bin" / "inside.bin").write_bytes(b"inside")
    shutil.rmtree(source / "d1")
    (source / "d1").symlink_to(source / "d2")
    document = platform.run(_spec(platform, "swap", deleted="mirror"), "completed", "completed_with_failures")
    manifest = platform.manifest(document["id"])
    gone = {item["path"] for item in manifest["items"] if item["status"] == "deleted"}
    assert {path for path in gone if not path.startswith("d1/")} <= {"d0/f0000.bin"}
    kept = {path for path in files_below(source) if not path.startswith("d1/") and "f0000.bin" not in path}
    assert kept <= set(files_below(platform.lake("swap")))


def test_files_and_folders_that_change_places_settle(platform: Platform) -> None:
    """A file cannot be written while what stood in its way is still to be deleted, with the folders that held it."""
    source = platform.source("places")
    make_files(source, 10)
    (source / "flat").write_bytes(b"a file")
    for name in ("one", "two", "further/down/three"):
        (source / "deep" / name).parent.mkdir(parents=True, exist_ok=True)
        (source / "deep" / name).write_bytes(name.encode())
    spec = _spec(platform, "places", deleted="mirror", verify="all")
    platform.run(spec)
    (source / "flat").unlink()
    (source / "flat").mkdir()
    (source / "flat" / "inside").write_bytes(b"inside")
    shutil.rmtree(source / "deep")
    (source / "deep").write_bytes(b"now a file")
    document = platform.run(spec)
    assert not compare(source, platform.lake("places"))
    platform.assert_agreement(document["id"], "places")
    shutil.rmtree(source / "flat")
    platform.run(spec)
    assert not (platform.lake("places") / "flat").exists(), "an emptied folder is not left behind"


def test_an_unreadable_folder_is_no_reason_to_delete(root: Path) -> None:
    if os.geteuid() == 0 and sys.platform != "linux":
        pytest.skip("root reads everything here; run the suite as another user")
    root.mkdir()
    wrapper = root / "python"
    with running(root) as platform:
        if os.geteuid() == 0:
            wrapper.write_text(_WITHOUT_OVERRIDE.format(python=sys.executable))
            wrapper.chmod(0o755)
            platform.python = str(wrapper)
            platform.restart_host()
        source = platform.source("locked")
        make_files(source, 20)
        spec = _spec(platform, "locked", deleted="mirror")
        platform.run(spec)
        (source / "d1" / "f0001.bin").chmod(0)
        (source / "d2").chmod(0)
        (source / "d4" / "f0004.bin").unlink()
        try:
            (source / "d1" / "f0001.bin").write_bytes(b"changed, and unreadable")
            document = platform.run(spec, "completed_with_failures")
        finally:
            (source / "d2").chmod(stat.S_IRWXU)
            (source / "d1" / "f0001.bin").chmod(stat.S_IRWXU)
        manifest = platform.manifest(document["id"])
        deleted = [item["path"] for item in manifest["items"] if item["status"] == "deleted"]
        assert deleted == ["d4/f0004.bin"]
        denied = {item["path"]: item["error_code"] for item in manifest["items"] if item["status"] == "failed"}
        assert denied["d1/f0001.bin"] == "access_denied"
        assert denied["d2"] == "folder_unreadable"
        assert len(files_below(platform.lake("locked"))) == 19


def test_a_job_that_is_pointed_elsewhere_remembers_nothing(platform: Platform) -> None:
    """The ledger is about one source and one target: a new target gets everything, a new source deletes nothing."""
    make_files(platform.source("house"), 5)
    first = _spec(platform, "house", verify="none")
    assert platform.run(first)["progress"]["uploaded"] == 5
    elsewhere = {**first, "target": {**platform.spec("house")["target"], "path": "Files/new-house"}}
    assert platform.run(elsewhere)["progress"]["uploaded"] == 5
    make_files(platform.source("other-house"), 2)
    swapped = {**elsewhere, "deleted": "mirror", "source": platform.spec("other-house")["source"]}
    assert platform.run(swapped)["progress"]["deleted"] == 0
    assert len(files_below(platform.lake("new-house"))) == 5
