"""Damage done to the lake between transfer and verification: found, named exactly, and mended."""

import os
from pathlib import Path

import pytest

from tests.support.platform import Platform, compare, make_files, until

# While the listing before verification is under way, files can be damaged.
_SLOW_LISTING = {"operation": "list", "fault": "latency", "latency_ms": 1500}
_GONE, _LONGER, _ROTTEN = "d0/f0000.bin", "d1/f0001.bin", "d2/f0002.bin"
_CODES = {_GONE: "missing_in_lake", _LONGER: "size_mismatch", _ROTTEN: "integrity_mismatch"}


def _rot(file: Path) -> None:
    """Change one byte and nothing that a service knows of the file: as a disk does it."""
    before = file.stat()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    with file.open("r+b") as opened:
        opened.write(data)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def _run_with_damage(platform: Platform, name: str, verify: str) -> str:
    platform.emulators.set_faults([_SLOW_LISTING])
    if not platform.source(name).exists() or not any(platform.source(name).iterdir()):
        make_files(platform.source(name), 30, low=50)
    run = platform.start(platform.spec(name, verify=verify))
    if verify == "none":
        platform.wait(run, "completed")
    until(lambda: platform.status(run)["status"] in ("verifying", "completed"), "the verification")
    lake = platform.lake(name)
    (lake / _GONE).unlink()
    with (lake / _LONGER).open("ab") as file:
        file.write(b"more")
    _rot(lake / _ROTTEN)
    return run


@pytest.mark.parametrize(("verify", "found"), [
    ("none", ()), ("listing", (_GONE, _LONGER)), ("sample", (_GONE, _LONGER, _ROTTEN)),
    ("all", (_GONE, _LONGER, _ROTTEN)),
])  # fmt: skip
def test_each_mode_finds_what_it_promises(platform: Platform, verify: str, found: tuple[str, ...]) -> None:
    name = f"damage-{verify}"
    run = _run_with_damage(platform, name, verify)
    document = platform.wait(run, "completed_with_failures" if found else "completed")
    manifest = platform.manifest(run)
    failed = {item["path"]: item["error_code"] for item in manifest["items"] if item["status"] == "failed"}
    assert failed == {path: _CODES[path] for path in found}
    assert document["progress"]["failed"] == len(found)
    assert document["progress"]["uploaded"] == 30 - len(found)
    assert manifest["counts"] == {"items": 30, "uploaded": 30 - len(found), **({"failed": len(found)} if found else {})}
    verification = manifest["verification"]
    if verify == "none":
        assert verification is None
        return
    assert verification["verdict"] == "failed"
    assert (verification["listed"], verification["missing"], verification["size_mismatches"]) == (30, 1, 1)
    assert verification["hashes_checked"] == (0 if verify == "listing" else 28)
    assert verification["hash_mismatches"] == (0 if verify == "listing" else 1)


@pytest.mark.parametrize("how", ["retry", "restart"])
def test_what_was_damaged_is_moved_again(platform: Platform, how: str) -> None:
    """The service still shows the old hash of a file that rotted, so its word must not be taken for the bytes."""
    name = f"mend-{how}"
    run = _run_with_damage(platform, name, "all")
    platform.wait(run, "completed_with_failures")
    platform.emulators.set_faults([])
    mark = platform.mark()
    if how == "retry":
        assert platform.post(f"/migrations/{run}/retry-failed").status == 202
        document = platform.wait(run, "completed")
    else:
        document = platform.run(platform.spec(name, verify="all"))
    assert platform.commits(name, mark) == {_GONE: 1, _LONGER: 1, _ROTTEN: 1}
    assert not compare(platform.source(name), platform.lake(name))
    platform.assert_agreement(document["id"], name)
    assert document["progress"]["bytes_done"] == document["progress"]["bytes_planned"]


def test_answers_that_are_damaged_on_the_way(platform: Platform) -> None:
    """Bytes that arrive damaged on every read cannot be told from bytes that lie there damaged: they are named."""
    make_files(platform.source("wire"), 10, low=50)
    platform.emulators.set_faults(
        [{"operation": "read", "fault": "corrupt_body", "path": "*/f0003.bin"},
         {"operation": "read", "fault": "short_body", "path": "*/f0004.bin"}]
    )  # fmt: skip
    run = platform.run(platform.spec("wire", verify="all"), "completed_with_failures")["id"]
    platform.emulators.set_faults([])
    failed = {
        item["path"]: item["error_code"] for item in platform.manifest(run)["items"] if item["status"] == "failed"
    }
    assert failed == {"d3/f0003.bin": "integrity_mismatch", "d4/f0004.bin": "not_verified"}


def test_uploads_that_are_damaged_on_the_way_never_stay(platform: Platform) -> None:
    make_files(platform.source("garbled"), 20, low=50)
    platform.emulators.set_faults([{"operation": "append_flush", "fault": "corrupt_body", "probability": 0.3}])
    document = platform.run(platform.spec("garbled", verify="all"))
    assert platform.emulators.fault_hits()[0] > 0
    platform.emulators.set_faults([])
    platform.assert_agreement(document["id"], "garbled")
    assert not compare(platform.source("garbled"), platform.lake("garbled"))
