"""The act of the demo that migrates a SharePoint library.

1. The library as it is: every file against the hashes that the emulated SharePoint computes of its own.
2. People work on in it: a folder is renamed, one file is amended, one is added, one is deleted.
3. The same job again: the lake follows, and only what has other bytes is downloaded.
"""

from __future__ import annotations

import time
from typing import Any, Final

from local.demo.comparison import Comparison, Digest, check_manifest, compare_with
from local.demo.platform import LAKEHOUSE, WORKSPACE, Platform, StepFailed
from local.demo.stage import Stage, listed, require_identical
from local.emulators.estate import DEFAULT_ESTATE
from shared.policy.quantities import show_bytes

_SITE: Final = "contoso.sharepoint.com:/sites/finance"
_LIBRARY: Final = "Records"
_FILES: Final = 240
_JOB: Final = "library"
_TARGET: Final = f"Files/{_JOB}"
_SPECIALS: Final = {"empty_file": 1, "unicode": 4, "promoted": 2, "onenote": 1, "shortcut": 1}
_FOLDER: Final = "2024/01"
_RENAMED: Final = "January"
_AMENDED: Final = "Special/empty 1.txt"
_ADDED: Final = "2025/new/Invoice from today.pdf"


def estate_with_library(seed: int) -> dict[str, Any]:
    """The emulated tenant, with the act's library in it."""
    estate = DEFAULT_ESTATE.model_dump(mode="json")
    site = next(site for site in estate["sites"] if site["address"] == _SITE)
    site["libraries"].append(
        {"name": _LIBRARY, "items": _FILES, "seed": seed, "folder_items": 60, "specials": _SPECIALS}
    )
    return estate


def migrate_library(stage: Stage, platform: Platform) -> None:
    """Play the act.

    Raises:
        StepFailed: Something is not as it must be.
    """
    stage.say(f"\n  The library {_LIBRARY!r} of a SharePoint site, through Microsoft Graph:")
    before = _migrate(stage, platform)
    _follow_changes(stage, platform, before)


def _migrate(stage: Stage, platform: Platform) -> dict[str, Digest]:
    stage.begin("migrating a SharePoint library")
    run = stage.follow(platform, _spec())
    stage.done(f"{run.progress['uploaded']:,} files uploaded, {show_bytes(run.progress['bytes_done'])}", run.elapsed_s)
    manifest = platform.call("GET", run.document["links"]["manifest"])
    skipped = [item for item in manifest["items"] if item["status"] == "skipped"]
    rewritten = [item for item in manifest["items"] if (item.get("source") or {}).get("rewritten")]
    stage.say(f"    named and not moved: {', '.join(repr(item['path']) for item in skipped)}")
    stage.say(
        f"    {len(rewritten)} Office files came with other bytes than SharePoint announces; the manifest has both"
    )
    found = _compare(stage, platform, "comparing lake and library")
    moved = [item for item in manifest["items"] if item["status"] == "uploaded"]
    wrong = check_manifest({"counts": {"items": len(moved)}, "items": moved}, found.source, _TARGET)
    if wrong:
        raise StepFailed("the manifest does not agree with the library:\n" + listed(wrong))
    expected = _SPECIALS["onenote"] + _SPECIALS["shortcut"]
    if len(skipped) < expected or len(rewritten) != _SPECIALS["promoted"]:
        raise StepFailed(f"what is out of the ordinary is not in the manifest: {skipped} {rewritten}")
    stage.rows.append(("A SharePoint library", f"{found.files:,} files, the same in library and lake, every byte"))
    return found.source


def _follow_changes(stage: Stage, platform: Platform, before: dict[str, Digest]) -> None:
    stage.begin("changing the library")
    began_s = time.monotonic()
    renamed = sum(name.startswith(f"{_FOLDER}/") for name in before)
    deleted = next(name for name in sorted(before, reverse=True) if name.startswith("2025/"))
    graph = platform.emulators.graph
    graph.rename(_LIBRARY, _FOLDER, _RENAMED)
    graph.put(_LIBRARY, _AMENDED, b"no longer empty\n")
    graph.put(_LIBRARY, _ADDED, size=30_000)
    graph.delete(_LIBRARY, deleted)
    stage.done(
        f"in the library, folder {_FOLDER!r} ({renamed} files) is now {_RENAMED!r}; 1 file amended, 1 added, 1 deleted",
        time.monotonic() - began_s,
    )
    stage.begin("following the library's changes")
    graph.reset_counters()
    run = stage.follow(platform, _spec())
    downloads = graph.counters()["requests"]["download"]
    wanted = {"renamed": renamed, "uploaded": 2, "deleted": 1, "failed": 0}
    if {name: run.progress[name] for name in wanted} != wanted or downloads != wanted["uploaded"]:
        raise StepFailed(f"the run was to bring {wanted}, and did {run.progress} with {downloads} downloads")
    stage.done(
        f"the lake followed: {renamed} files renamed, 2 uploaded, 1 deleted, with {downloads} downloads", run.elapsed_s
    )
    _compare(stage, platform, "comparing lake and library again")
    stage.rows.append((
        "The library changed",
        f"{renamed} renamed, 2 uploaded, 1 deleted, with {downloads} downloads; the same again, every byte",
    ))  # fmt: skip


def _compare(stage: Stage, platform: Platform, step: str) -> Comparison:
    stage.begin(step)
    began_s = time.monotonic()
    library = {
        item["path"]: Digest(item["size"], item["sha256"], item["md5"])
        for item in platform.emulators.graph.tree(_LIBRARY, hashes=("sha256", "md5")) if item["kind"] == "file"
    }  # fmt: skip
    found = compare_with(library, platform.lake_files / _JOB, stage.counting("files read"))
    require_identical(found)
    stage.done(
        f"lake and library are the same: {found.files:,} files, {show_bytes(found.size_bytes)}, by size and sha256",
        time.monotonic() - began_s,
    )
    return found


def _spec() -> dict[str, Any]:
    return {
        "kind": "files", "name": _JOB, "source": {"type": "sharepoint", "site": _SITE, "library": _LIBRARY},
        "target": {"workspace": WORKSPACE, "lakehouse": LAKEHOUSE, "path": _TARGET},
        "mode": "incremental", "deleted": "mirror", "limits": {"batch_items": 25},
    }  # fmt: skip
