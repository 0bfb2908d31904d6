"""A client of the emulated Graph that sends exactly what a test says, and one library for each test that asks."""

from __future__ import annotations

import itertools
import json
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from local.emulators.estate import DEFAULT_ESTATE
from local.emulators.graph.control import GraphControl
from local.emulators.launch import RunningEmulators
from tests.emulators.wire_client import Answer, WireClient

GRAPH = "https://graph.microsoft.com/.default"
FINANCE = "contoso.sharepoint.com:/sites/finance"
SCRATCH = "contoso.sharepoint.com:/sites/scratch"
MIGRATOR = "c1000000-0000-4000-8000-000000000001"
LIBRARIES = 120


def write_estate(path: Path) -> Path:
    """The default estate, and a site with a small library for each test that changes one."""
    document = DEFAULT_ESTATE.model_dump(mode="json")
    libraries = [{"name": f"L{number:02d}", "items": 6, "depth": 1, "folder_items": 3} for number in range(LIBRARIES)]
    document["sites"].append({"address": SCRATCH, "libraries": libraries})
    document["sites"].append({"address": "contoso.sharepoint.com", "libraries": [{"name": "Root", "items": 1}]})
    for client in document["clients"]:
        if client["name"] in ("migrator", "reader"):
            client["sites"] |= {SCRATCH: "read", "contoso.sharepoint.com": "read"}
    path.write_text(json.dumps(document))
    return path


def target_of(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(("", "", parts.path, parts.query, ""))


class GraphWire:
    """Graph calls as one of the clients."""

    def __init__(self, emulators: RunningEmulators, client: str = "migrator") -> None:
        self.emulators = emulators
        self.control: GraphControl = emulators.graph
        self.wire = WireClient(emulators)
        self.client = client

    def send(self, method: str, url: str, *args: Any, **options: Any) -> Answer:
        target = target_of(url) if url.startswith("https:") else url
        return self.wire.send(
            method, target, *args, **{"client": self.client, "scope": GRAPH, "url_key": "graph_url", **options}
        )

    def get(self, url: str, headers: dict[str, str] | None = None, **options: Any) -> Answer:
        return self.send("GET", url, headers, **options)

    def json(self, url: str, headers: dict[str, str] | None = None) -> Any:
        answer = self.get(url, headers)
        assert answer.status == 200, answer
        return answer.json

    def fetch(self, url: str, headers: dict[str, str] | None = None) -> Answer:
        """Follows a pre-authenticated URL: no token."""
        return self.get(url, headers, client=None)

    def drive_id(self, library: str, site: str = FINANCE) -> str:
        drives = self.json(f"/v1.0/sites/{site}:/drives")["value"]
        return next(str(drive["id"]) for drive in drives if drive["name"] == library)


class LibraryWire:
    """One library through Graph and through the switchboard."""

    def __init__(self, graph: GraphWire, name: str, site: str = FINANCE) -> None:
        self.graph = graph
        self.control = graph.control
        self.name = name
        self.drive_id = graph.drive_id(name, site)
        self.url = f"/v1.0/drives/{self.drive_id}"

    def by_path(self, path: str, query: str = "") -> Any:
        return self.graph.json(f"{self.url}/root:/{urllib.parse.quote(path)}{query}")

    def pages(self, url: str, headers: dict[str, str] | None = None) -> Iterator[dict[str, Any]]:
        """Pages of a walk, each link followed as it is."""
        link: str | None = url
        while link:
            page = self.graph.json(link, headers)
            assert ("@odata.nextLink" in page) != ("@odata.deltaLink" in page)
            yield page
            link = page.get("@odata.nextLink")

    def walk(self, url: str = "", headers: dict[str, str] | None = None) -> tuple[list[dict[str, Any]], str]:
        """Every item of a walk as it came, and the link for the next one."""
        items: list[dict[str, Any]] = []
        page: dict[str, Any] = {}
        for page in self.pages(url or f"{self.url}/root/delta", headers):
            items += page["value"]
        return items, page["@odata.deltaLink"]

    def link_now(self) -> str:
        return str(self.graph.json(f"{self.url}/root/delta?token=latest")["@odata.deltaLink"])

    def location(self, path: str) -> str:
        answer = self.graph.get(f"{self.url}/root:/{urllib.parse.quote(path)}:/content")
        assert answer.status == 302, answer
        return answer.headers["location"]


class Mirror:
    """What a client holds that lets the last occurrence win and rebuilds paths from parents."""

    def __init__(self) -> None:
        self.items: dict[str, dict[str, Any]] = {}

    def take(self, items: list[dict[str, Any]]) -> None:
        for item in items:
            if "deleted" in item:
                self.items.pop(item["id"], None)
            else:
                self.items[item["id"]] = item

    def path(self, item: dict[str, Any]) -> str | None:
        """Below the root; None below a folder that is gone."""
        if "root" in item:
            return ""
        parent = self.items.get(item["parentReference"]["id"])
        above = None if parent is None else self.path(parent)
        return None if above is None else f"{above}/{item['name']}".lstrip("/")

    def paths(self) -> dict[str, str]:
        """Ids by path, the root left out."""
        found = {self.path(item): item["id"] for item in self.items.values() if "root" not in item}
        return {path: item_id for path, item_id in found.items() if path is not None}


def names() -> Iterator[str]:
    return (f"L{number:02d}" for number in itertools.count())
