"""An emulated SharePoint with libraries of its own, and drives over it."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from local.emulators.estate import DEFAULT_ESTATE
from local.emulators.graph.control import GraphControl
from local.emulators.launch import RunningEmulators, launch
from shared.clients.credentials import TokenSource, build_credential, parse_credential
from shared.clients.graph import Drive, Graph
from shared.policy.drive_tree import DriveTree, Node, learn
from shared.ports import DriveFeed, DriveItem

SITE = "contoso.sharepoint.com:/sites/finance"
SCOPE = "https://graph.microsoft.com/.default"
ORDINARY = {
    "retry_after_s": 0, "throttle_first": 0, "ignore_ranges": False, "most_page_items": 9, "late_changes": "walk",
    "units_per_minute": None, "download_lifetime_s": 300, "resync": "resyncChangesApplyDifferences",
}  # fmt: skip
SPECIALS = (
    "case", "checked_out", "dlp_blocked", "empty_file", "empty_folder", "hash_pending", "locked", "long_path",
    "malware", "onenote", "promoted", "shortcut", "trailing_dot", "unicode",
)  # fmt: skip


def _estate() -> dict[str, Any]:
    document = DEFAULT_ESTATE.model_dump()
    specials = dict.fromkeys(SPECIALS, 1)
    shuffled = {"order": "shuffled"}
    document["sites"] = [
        {
            "address": SITE,
            "libraries": [
                {"name": "Shared Documents", "items": 5, "seed": 2, "depth": 1, "specials": specials, **shuffled},
                {"name": "Invoices", "items": 60, "seed": 1, "folder_items": 8, **shuffled},
                {"name": "Work", "items": 12, "seed": 3, "folder_items": 4},
            ],
        },
        {"address": "contoso.sharepoint.com:/sites/Näh & Co", "libraries": [{"name": "Ärger", "items": 1}]},
        {"address": "contoso.sharepoint.com", "libraries": [{"name": "Documents", "items": 1}]},
        {"address": "contoso.sharepoint.com:/sites/closed", "libraries": [{"name": "Documents", "items": 1}]},
    ]  # fmt: skip
    for client in document["clients"]:
        granted = [site["address"] for site in document["sites"][:3]] if client["name"] == "migrator" else []
        client["sites"] = dict.fromkeys(granted, "read")
    return document


@dataclass
class SharePoint:
    """The emulators, and what the tests of drives ask of them."""

    emulators: RunningEmulators
    made: list[tuple[Graph, TokenSource]] = field(default_factory=list)

    @property
    def control(self) -> GraphControl:
        return self.emulators.graph

    def graph(self, client: str = "migrator", *, url: str | None = None, scope: str = SCOPE, **options: Any) -> Graph:
        environment = self.emulators.environment(client)
        fields = parse_credential("CREDENTIAL_SHAREPOINT", environment["CREDENTIAL_SHAREPOINT"])
        tokens = TokenSource(lambda: build_credential(fields, environment["CA_BUNDLE"]), scope, time.time)
        graph = Graph(url or environment["GRAPH_URL"], tokens, environment["CA_BUNDLE"], **options)
        self.made.append((graph, tokens))
        return graph

    def drive(self, library: str, folder: str = "", *, graph: Graph | None = None, **options: Any) -> Drive:
        options = {"site": SITE, "accept_rewrites": True, **options}
        return Drive(graph or self.graph(), library=library, folder=folder, **options)

    def tree(self, library: str) -> dict[str, dict[str, Any]]:
        """What the library holds, by path, looked at behind Graph's back."""
        return {one["path"]: one for one in self.control.tree(library) if one["path"]}

    def faults(self, *rules: dict[str, Any]) -> None:
        self.emulators.set_faults([{"service": "graph", **rule} for rule in rules])


@dataclass
class Walk:
    """A walk over a drive: what is known after it."""

    known: dict[str, Node] = field(default_factory=dict)
    items: dict[str, DriveItem] = field(default_factory=dict)
    pages: int = 0
    resets: int = 0
    token: str | None = None

    async def go(
        self, drive: DriveFeed, cursor: str | None = None, between: Callable[[int], None] = lambda page: None
    ) -> Walk:
        """Follow the feed to its end; ``between`` is called after each page but the last."""
        while True:
            page = await drive.page(cursor)
            self.pages += 1
            if page.reset:
                self.resets += 1
                self.known.clear()
                self.items.clear()
            learn(self.known, page.items)
            self.items.update({item.id: item for item in page.items})
            cursor = page.cursor
            if page.token is not None:
                self.token = page.token
                return self
            between(self.pages)

    def paths(self, start_id: str | None = None, *, where: str = "inside") -> dict[str, DriveItem]:
        tree = DriveTree(self.known, start_id)
        placed = ((tree.place(one), item) for one, item in self.items.items())
        return {place.path: item for place, item in placed if place.where == where and place.path}


@pytest.fixture(scope="session")
def sharepoint_emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulators]:
    root = tmp_path_factory.mktemp("sharepoint")
    (root / "estate.json").write_text(json.dumps(_estate()))
    with launch(root, config=root / "estate.json") as running:
        yield running


@pytest.fixture
async def sharepoint(sharepoint_emulators: RunningEmulators) -> AsyncIterator[SharePoint]:
    """Without faults and behaving ordinarily before and after; only ``Work`` is to be changed."""
    opened = SharePoint(sharepoint_emulators)
    opened.faults()
    opened.control.behave(**ORDINARY)
    opened.control.reset_counters()
    yield opened
    opened.faults()
    opened.control.behave(**ORDINARY)
    for graph, tokens in opened.made:
        await graph.close()
        await tokens.close()
