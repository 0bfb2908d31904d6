"""Compares the lake with the source from outside: bytes on disk against bytes on disk, nothing of the app between."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_READ_BYTES: Final = 1024 * 1024
_READERS: Final = 4


@dataclass(frozen=True, slots=True)
class Digest:
    """One file's bytes, told in short. ``md5`` is what the manifest records."""

    size_bytes: int
    sha256: str
    md5: str


@dataclass(slots=True)
class Comparison:
    """What a comparison found.

    Attributes:
        files: Files of the source.
        size_bytes: Of the source's files together; this many were read on either side.
        missing: In the source, not in the lake.
        extra: In the lake, not in the source.
        different: In both, with other bytes.
        source: Digest of each file of the source, by relative path.
    """

    files: int = 0
    size_bytes: int = 0
    missing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    source: dict[str, Digest] = field(default_factory=dict)

    @property
    def is_identical(self) -> bool:
        return not (self.missing or self.extra or self.different)


def compare_folders(source: Path, lake: Path, progress: Callable[[int, int], None] | None = None) -> Comparison:
    """Read every file of both folders and compare names, sizes and hashes.

    Args:
        source: Where the files came from.
        lake: Where their bytes lie now; a folder that is missing counts as empty.
        progress: Told how many of how many files are read.

    Raises:
        OSError: A file cannot be read.
    """
    wanted = _files(source)
    total = len(wanted) + len(wanted.keys() & _files(lake).keys())
    digests: dict[str, Digest] = {}
    with ThreadPoolExecutor(_READERS) as pool:
        for name, digest in zip(wanted, pool.map(_digest, wanted.values()), strict=True):
            digests[name] = digest
            if progress:
                progress(len(digests), total)

    def of_all(done: int, both: int) -> None:
        if progress:
            progress(len(digests) + done, total)

    return compare_with(digests, lake, of_all)


def compare_with(
    source: Mapping[str, Digest], lake: Path, progress: Callable[[int, int], None] | None = None
) -> Comparison:
    """The same for a source whose digests somebody else has computed.

    Args:
        source: Digest of each file, by relative path.
        lake: Where their bytes lie now; a folder that is missing counts as empty.
        progress: Told how many of how many files of the lake are read.

    Raises:
        OSError: A file cannot be read.
    """
    found = _files(lake)
    result = Comparison(len(source), sum(digest.size_bytes for digest in source.values()), source=dict(source))
    result.missing = sorted(source.keys() - found.keys())
    result.extra = sorted(found.keys() - source.keys())
    both = [name for name in source if name in found]
    with ThreadPoolExecutor(_READERS) as pool:
        digests = pool.map(_digest, [found[name] for name in both])
        for done, (name, digest) in enumerate(zip(both, digests, strict=True), 1):
            if digest != source[name]:
                result.different.append(name)
            if progress:
                progress(done, len(both))
    return result


def check_manifest(manifest: Mapping[str, Any], source: Mapping[str, Digest], target: str) -> list[str]:
    """Hold a run's manifest against digests that were computed without it.

    Args:
        manifest: The JSON manifest.
        source: Digest of each file that the run should have moved or recognised.
        target: The path in the lakehouse that the job names.

    Returns:
        What is wrong, in sentences; empty if every file stands there once, with its size, hash and place.
    """
    wrong = []
    times = Counter(item["path"] for item in manifest["items"])
    wrong += [f"{name!r} stands there {count} times" for name, count in times.items() if count > 1]
    wrong += [f"{name!r} is not in the manifest" for name in sorted(source.keys() - times.keys())]
    wrong += [f"{name!r} is in the manifest and not in the source" for name in sorted(times.keys() - source.keys())]
    for item in manifest["items"]:
        name = item["path"]
        digest = source.get(name)
        if digest is None:
            continue
        if item["status"] not in ("uploaded", "skipped"):
            wrong.append(f"{name!r} is {item['status']} ({item['error_code']})")
        elif item["hash_kind"] != "md5" or item["hash"] != digest.md5:
            wrong.append(
                f"{name!r} has the {item['hash_kind']} {item['hash']}, and its bytes have the md5 {digest.md5}"
            )
        if item["size_bytes"] != digest.size_bytes:
            wrong.append(f"{name!r} has {item['size_bytes']} bytes, and really {digest.size_bytes}")
        if item["target"] != f"{target}/{name}":
            wrong.append(f"{name!r} is said to lie at {item['target']!r}")
    if manifest["counts"]["items"] != len(source):
        wrong.append(f"the header counts {manifest['counts']['items']} items, and there are {len(source)}")
    return wrong


def visible(name: str) -> str:
    """A name for a report, so that composed and decomposed accents do not look the same."""
    return name if unicodedata.is_normalized("NFC", name) else f"{name} (decomposed)"


def _files(root: Path) -> dict[str, str]:
    """Full path of every file below a folder by its relative path with slashes, in the order of the walk."""
    return dict(_walk(str(root), ""))


def _walk(folder: str, prefix: str) -> Iterator[tuple[str, str]]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        if prefix:
            raise
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(entry.path, f"{prefix}{entry.name}/")
        else:
            yield f"{prefix}{entry.name}", entry.path


def _digest(path: str) -> Digest:
    sha256, md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
    size_bytes = 0
    with Path(path).open("rb", buffering=0) as file:
        while block := file.read(_READ_BYTES):
            sha256.update(block)
            md5.update(block)
            size_bytes += len(block)
    return Digest(size_bytes, sha256.hexdigest(), md5.hexdigest())
