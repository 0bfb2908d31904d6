"""The change feed: walks, what they may and may not rely on, and what changes while they are on."""

from __future__ import annotations

import urllib.parse
from typing import Any

import pytest

from tests.emulators.graph_client import GraphWire, LibraryWire, Mirror
from tests.emulators.test_graph import refusal


def held(library: LibraryWire) -> dict[str, str]:
    """Ids by path of what the library holds now."""
    return {line["path"]: line["id"] for line in library.control.tree(library.name, hashes=())}


def changes(library: LibraryWire, link: str) -> list[dict[str, Any]]:
    items, _ = library.walk(link)
    return items


def shown(items: list[dict[str, Any]]) -> list[tuple[str, bool]]:
    """Names, and whether each is gone; parents that only accompany are left to `folders_above`."""
    return [(item.get("name", ""), "deleted" in item) for item in items]


# a walk over everything


@pytest.mark.parametrize("name", ["Invoices", "Documents"])
@pytest.mark.parametrize("top", [1, 7, 1000])
def test_a_walk_shows_everything_once(graph: GraphWire, name: str, top: int) -> None:
    library = LibraryWire(graph, name)
    items, _ = library.walk(f"{library.url}/root/delta?$top={top}")
    assert len(items) == len({item["id"] for item in items})
    mirror = Mirror()
    mirror.take(items)
    assert mirror.paths() == held(library)
    assert [item["name"] for item in items if "root" in item] == ["root"]


def test_parents_need_not_come_first(graph: GraphWire) -> None:
    items, _ = LibraryWire(graph, "Documents").walk()
    order = {item["id"]: place for place, item in enumerate(items)}
    assert any(order[item["parentReference"]["id"]] > order[item["id"]] for item in items if "root" not in item)


def test_what_the_feed_leaves_out(library: LibraryWire) -> None:
    items, _ = library.walk()
    assert all("path" not in item["parentReference"] for item in items)
    assert all("cTag" not in item and "@microsoft.graph.downloadUrl" not in item for item in items)
    assert all(item["eTag"] and item["name"] for item in items)


def test_pages_hold_what_was_asked_for(library: LibraryWire) -> None:
    pages = list(library.pages(f"{library.url}/root/delta?$top=2"))
    assert max(len(page["value"]) for page in pages) == 2
    library.control.behave(most_page_items=3)
    pages = list(library.pages(f"{library.url}/root/delta?$top=500"))
    assert max(len(page["value"]) for page in pages) == 3


def test_a_page_may_be_empty_in_the_middle(library: LibraryWire) -> None:
    library.control.behave(page_items=2, empty_page_every=2)
    sizes = [len(page["value"]) for page in library.pages(f"{library.url}/root/delta")]
    assert sizes == [2, 0, 2, 0, 2, 0, 2, 0, 1]


def test_a_selection_holds_for_the_whole_walk(library: LibraryWire) -> None:
    library.control.behave(page_items=2)
    items, link = library.walk(f"{library.url}/root/delta?$select=id,name,file,@microsoft.graph.downloadUrl")
    assert {frozenset(item) for item in items} == {
        frozenset({"id", "name"}),
        frozenset({"id", "name", "file", "@microsoft.graph.downloadUrl"}),
    }
    library.control.put(library.name, "2024/new.txt", b"x")
    (new,) = (item for item in changes(library, link) if item["name"] == "new.txt")
    assert library.graph.fetch(new["@microsoft.graph.downloadUrl"]).body == b"x"
    items, _ = library.walk(f"{library.url}/root/delta?$select=*,sharepointIds")
    assert all("sharepointIds" in item and "parentReference" in item for item in items)


def test_who_does_not_select_deleted_is_not_told(library: LibraryWire) -> None:
    _, link = library.walk(f"{library.url}/root/delta?$select=id,name")
    library.control.delete(library.name, "2024")
    assert all(item.keys() <= {"id", "name"} for item in changes(library, link))


# what changed


def test_nothing_changed(library: LibraryWire) -> None:
    _, link = library.walk()
    items, again = library.walk(link)
    assert items == []
    assert library.walk(again)[0] == []


def test_the_latest_link_shows_what_comes_after(library: LibraryWire) -> None:
    page = library.graph.json(f"{library.url}/root/delta?token=latest")
    assert page["value"] == []
    library.control.put(library.name, "2024/new.txt", b"x")
    items = changes(library, page["@odata.deltaLink"])
    assert shown(items) == [("root", False), ("2024", False), ("new.txt", False)]


def test_a_moment_stands_for_a_token(library: LibraryWire) -> None:
    library.control.put(library.name, "new.txt", b"x")
    moment = urllib.parse.quote("2025-01-01T00:00:00Z", safe="")
    assert shown(changes(library, f"{library.url}/root/delta?token={moment}")) == [("root", False), ("new.txt", False)]
    early = urllib.parse.quote("2020-01-01T01:00:00+01:00", safe="")
    assert len(changes(library, f"{library.url}/root/delta?token={early}")) == 10


def test_the_folders_above_come_along_unless_they_are_not_wanted(library: LibraryWire) -> None:
    link = library.link_now()
    library.control.put(library.name, "2024/deep/deeper/new.txt", b"x")
    link_after = library.link_now()
    library.control.put(library.name, "2024/deep/deeper/new.txt", b"y")
    assert [name for name, _ in shown(changes(library, link_after))] == ["root", "2024", "deep", "deeper", "new.txt"]
    items, _ = library.walk(link_after, {"deltaExcludeParent": "true"})
    assert shown(items) == [("new.txt", False)]
    items, _ = library.walk(link, {"deltaExcludeParent": "true"})
    assert [name for name, _ in shown(items)] == ["deep", "deeper", "new.txt"]


def test_the_latest_state_is_shown_once(library: LibraryWire) -> None:
    library.control.put(library.name, "a.txt", b"one")
    link = library.link_now()
    for content in (b"two", b"three!"):
        library.control.put(library.name, "a.txt", content)
    items = [item for item in changes(library, link) if item["name"] == "a.txt"]
    assert [item["size"] for item in items] == [6]


def test_content_and_metadata_are_told_apart_by_hash_not_by_etag(library: LibraryWire) -> None:
    library.control.put(library.name, "a.txt", b"one")
    before, link = library.by_path("a.txt"), library.link_now()
    library.control.touch(library.name, "a.txt")
    (touched,) = (item for item in changes(library, link) if item["name"] == "a.txt")
    assert touched["eTag"] != before["eTag"]
    assert touched["file"] == before["file"]
    assert library.by_path("a.txt")["cTag"] == before["cTag"]
    library.control.put(library.name, "a.txt")
    (replaced,) = (item for item in changes(library, link) if item["name"] == "a.txt")
    assert replaced["size"] == before["size"]
    assert replaced["file"] != before["file"]


@pytest.mark.parametrize("move", [False, True])
def test_a_folder_that_moves_is_told_alone(library: LibraryWire, move: bool) -> None:
    mirror = Mirror()
    items, link = library.walk()
    mirror.take(items)
    if move:
        library.control.move(library.name, "2024", "2025/old")
    else:
        library.control.rename(library.name, "2024", "2024 old")
    items, _ = library.walk(link)
    assert not any("file" in item for item in items)
    mirror.take(items)
    assert mirror.paths() == held(library)
    assert all(path.startswith(("2025", "2024 old")) for path in mirror.paths())


def test_what_is_deleted_has_no_name(library: LibraryWire) -> None:
    path = next(path for path in held(library) if path.startswith("2024/"))
    link = library.link_now()
    gone = library.control.delete(library.name, path)
    (item,) = (item for item in changes(library, link) if "deleted" in item)
    assert item["id"] == gone["id"]
    assert item.keys() <= {"id", "deleted", "eTag", "file", "parentReference", "size"}
    assert refusal(library.graph.get(f"{library.url}/items/{gone['id']}")) == (404, "itemNotFound", None)


@pytest.mark.parametrize("descendants", [True, False])
def test_a_folder_that_is_deleted(library: LibraryWire, descendants: bool) -> None:
    mirror = Mirror()
    items, link = library.walk()
    mirror.take(items)
    folder = library.control.delete(library.name, "2024", descendants=descendants)
    items, link = library.walk(link)
    gone = [item["id"] for item in items if "deleted" in item]
    assert len(gone) == (4 if descendants else 1)
    assert gone[-1] == folder["id"]
    mirror.take(items)
    assert mirror.paths() == held(library)
    assert {item["id"] for item in library.walk()[0]} == {
        *held(library).values(),
        library.graph.json(f"{library.url}/root")["id"],
    }
    library.control.restore(library.name, "2024")
    items, _ = library.walk(link)
    assert folder["id"] in {item["id"] for item in items}
    assert len([item for item in items if "file" in item]) == 3
    mirror.take(items)
    assert mirror.paths() == held(library)


def test_what_was_deleted_apart_stays_deleted(library: LibraryWire) -> None:
    library.control.put(library.name, "2024/a.txt", b"x")
    library.control.delete(library.name, "2024/a.txt")
    library.control.delete(library.name, "2024")
    library.control.restore(library.name, "2024")
    assert "2024/a.txt" not in held(library)
    library.control.restore(library.name, "2024/a.txt")
    assert library.by_path("2024/a.txt")["size"] == 1


def test_what_came_and_went_between_two_walks(library: LibraryWire) -> None:
    link = library.link_now()
    library.control.put(library.name, "a.txt", b"x")
    library.control.delete(library.name, "a.txt")
    assert shown(changes(library, link)) == [("root", False), ("", True)]


def test_a_folder_counts_what_is_in_it(library: LibraryWire) -> None:
    before = library.by_path("2024")
    library.control.put(library.name, "2024/sub/a.txt", size=10)
    after = library.by_path("2024")
    assert after["size"] == before["size"] + 10
    assert after["folder"]["childCount"] == before["folder"]["childCount"] + 1
    library.control.move(library.name, "2024/sub", "")
    assert library.by_path("2024")["size"] == before["size"]
    library.control.delete(library.name, "sub")
    assert library.graph.json(f"{library.url}/root")["size"] == sum(
        library.by_path(year)["size"] for year in ("2024", "2025")
    )


# while a walk is on


def test_what_changes_during_a_walk_comes_again_and_the_last_time_counts(library: LibraryWire) -> None:
    mirror = Mirror()
    walk = library.pages(f"{library.url}/root/delta?$top=2")
    items = next(walk)["value"]
    mirror.take(items)
    seen, unseen = "2024", "2025"
    assert seen in [item["name"] for item in items]
    library.control.rename(library.name, seen, "seen, renamed")
    library.control.rename(library.name, unseen, "unseen, renamed")
    library.control.put(library.name, "seen, renamed/new.txt", b"x")
    victim = next(path for path in held(library) if path.startswith("unseen, renamed/"))
    library.control.delete(library.name, victim)
    for page in walk:
        items += page["value"]
        mirror.take(page["value"])
    names = [item.get("name") for item in items]
    assert names.count("2024") == 1
    assert names.count("seen, renamed") == 1
    assert names.count("unseen, renamed") == 2
    assert mirror.paths() == held(library)


def test_what_was_seen_and_deleted_during_a_walk_is_told_gone(library: LibraryWire) -> None:
    mirror = Mirror()
    walk = library.pages(f"{library.url}/root/delta?$top=2")
    mirror.take(next(walk)["value"])
    assert "2024" in mirror.paths()
    library.control.delete(library.name, "2024")
    for page in walk:
        mirror.take(page["value"])
    assert mirror.paths() == held(library)
    assert all(item["name"] != "2024" for item in mirror.items.values())


def test_late_changes_can_be_left_to_the_next_walk(library: LibraryWire) -> None:
    library.control.behave(late_changes="next")
    mirror = Mirror()
    walk = library.pages(f"{library.url}/root/delta?$top=2")
    mirror.take(next(walk)["value"])
    library.control.rename(library.name, "2024", "renamed")
    library.control.put(library.name, "new.txt", b"x")
    page: dict[str, Any] = {}
    for page in walk:
        mirror.take(page["value"])
    assert "new.txt" not in mirror.paths()
    mirror.take(changes(library, page["@odata.deltaLink"]))
    assert mirror.paths() == held(library)


# links


def test_links_are_followed_as_they_are(library: LibraryWire) -> None:
    link = library.graph.json(f"{library.url}/root/delta?$top=2&$select=id,name")["@odata.nextLink"]
    assert library.graph.get(link).status == 200
    requoted = link.replace("$select", "%24select")
    assert library.graph.get(requoted).status == 200
    token = urllib.parse.parse_qs(urllib.parse.urlsplit(link).query)["token"][0]
    for rebuilt in (
        f"{link}&$top=5",
        link.replace("id%2Cname", "id"),
        f"{library.url}/root/delta?token={token}",
        f"{library.url}/root/delta(token='{token}')",
    ):
        assert refusal(library.graph.get(rebuilt)) == (400, "invalidRequest", None)


def test_a_link_belongs_to_its_drive(library: LibraryWire) -> None:
    other = library.graph.drive_id("Invoices")
    link = library.link_now().replace(library.drive_id, other)
    assert refusal(library.graph.get(link)) == (400, "invalidRequest", None)


def test_links_take_several_shapes(graph: GraphWire) -> None:
    library = LibraryWire(graph, "Invoices")
    links = [page.get("@odata.nextLink", "") for page in library.pages(f"{library.url}/root/delta?$top=9")]
    assert any("delta(token='" in link for link in links)
    assert any("delta?token=" in link for link in links)
    assert all(link.startswith(graph.emulators.addresses["graph_url"]) for link in links if link)


@pytest.mark.parametrize("kind", ["resyncChangesApplyDifferences", "resyncChangesUploadDifferences"])
def test_expired_tokens_begin_anew(library: LibraryWire, kind: str) -> None:
    library.control.behave(page_items=2, resync=kind)
    in_mid_walk = library.graph.json(f"{library.url}/root/delta")["@odata.nextLink"]
    after_walk = library.link_now()
    library.control.expire_tokens(library.name)
    for link in (in_mid_walk, after_walk, f"{library.url}/root/delta?token=nonsense"):
        answer = library.graph.get(link)
        assert refusal(answer) == (410, "resyncRequired", kind)
        mirror = Mirror()
        items, again = library.walk(answer.headers["location"])
        mirror.take(items)
        assert mirror.paths() == held(library)
        assert library.graph.get(again).status == 200


def test_the_tokens_of_other_libraries_stay(library: LibraryWire) -> None:
    other = LibraryWire(library.graph, "Invoices")
    link = other.link_now()
    library.control.expire_tokens(library.name)
    assert library.graph.get(link).status == 200
    library.control.expire_tokens()
    assert library.graph.get(link).status == 410


def test_a_selection_survives_a_resync(library: LibraryWire) -> None:
    _, link = library.walk(f"{library.url}/root/delta?$select=id,name")
    library.control.expire_tokens(library.name)
    items, _ = library.walk(library.graph.get(link).headers["location"])
    assert all(set(item) == {"id", "name"} for item in items)
