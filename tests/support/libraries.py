"""Document libraries for tests of whole runs: an estate with one for each test, and what they and the lake hold."""

from __future__ import annotations

import base64
import hashlib
import itertools
from collections.abc import Mapping
from typing import Any

from local.emulators.estate import DEFAULT_ESTATE
from tests.support.platform import Platform, files_below

SITE = "contoso.sharepoint.com:/sites/finance"
_EMPTY = 40


def estate() -> dict[str, Any]:
    """The default one, with many empty libraries for tests to fill."""
    document = DEFAULT_ESTATE.model_dump()
    document["sites"][0]["libraries"] += [{"name": f"Work {number}"} for number in range(_EMPTY)]
    return document


class Library:
    """A library that one test uses, and the job of the same name that migrates it."""

    _numbers = itertools.count()

    def __init__(self, platform: Platform, name: str = "", files: Mapping[str, bytes | int] | None = None) -> None:
        self.platform = platform
        number = next(self._numbers)
        self.name = name or f"Work {number % _EMPTY}"
        self.job = f"job-{number}"
        if files:
            self.put(files)

    # what people do

    def put(self, files: Mapping[str, bytes | int]) -> None:
        """Files with their content, or of a size."""
        self.apply(*(
            {"op": "put", "path": path, "size": data} if isinstance(data, int)
            else {"op": "put", "path": path, "content": base64.b64encode(data).decode()}
            for path, data in files.items()
        ))  # fmt: skip

    def apply(self, *changes: Mapping[str, Any]) -> None:
        self.platform.emulators.graph.apply([{"library": self.name, **change} for change in changes])

    def rename(self, path: str, name: str) -> None:
        self.apply({"op": "rename", "path": path, "name": name})

    def move(self, path: str, to: str, name: str | None = None) -> None:
        self.apply({"op": "move", "path": path, "to": to, **({"name": name} if name else {})})

    def delete(self, *paths: str, descendants: bool = True) -> None:
        self.apply(*({"op": "delete", "path": path, "descendants": descendants} for path in paths))

    # runs

    def source(self, **changes: Any) -> dict[str, Any]:
        return {"type": "sharepoint", "site": SITE, "library": self.name, **changes}

    def spec(self, *, folder: str = "", **changes: Any) -> dict[str, Any]:
        document = self.platform.spec(self.job, **{"mode": "incremental", "deleted": "mirror", **changes})
        if document["mode"] == "full":
            document.pop("deleted")
        document["source"] = self.source(**({"folder": folder} if folder else {}))
        return document

    def run(self, *ending: str, **changes: Any) -> dict[str, Any]:
        return self.platform.run(self.spec(**changes), *ending)

    # what there is

    def holds(self, folder: str = "") -> dict[str, str]:
        """SHA-256 of every file, as the emulated SharePoint itself tells it."""
        prefix = f"{folder}/" if folder else ""
        return {
            line["path"].removeprefix(prefix): line["sha256"]
            for line in self.platform.emulators.graph.tree(self.name)
            if line["kind"] == "file" and line["path"].startswith(prefix)
        }

    def lake(self, sub: str = "") -> dict[str, str]:
        """The same of the lake's folder, looked at on disk."""
        below = self.platform.lake(self.job) / sub
        return {path: hashlib.sha256(file.read_bytes()).hexdigest() for path, file in files_below(below).items()}

    def statuses(self, run: Mapping[str, Any]) -> dict[str, tuple[str, str | None]]:
        """Status and error code of each item of a run."""
        items = self.platform.manifest(str(run["id"]))["items"]
        return {item["path"]: (item["status"], item["error_code"]) for item in items}


def counted(run: Mapping[str, Any]) -> dict[str, int]:
    """Items by what became of them, without those of which there are none."""
    names = ("uploaded", "skipped", "renamed", "deleted", "failed")
    return {name: run["progress"][name] for name in names if run["progress"][name]}
