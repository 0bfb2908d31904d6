"""Sites, drives, items and downloads of the emulated Graph, and who may have them."""

from __future__ import annotations

import base64
import hashlib
import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from local.emulators.graph.content import Given
from local.emulators.launch import EmulatorsFailed, launch
from tests.emulators.graph_client import (
    FINANCE,
    GRAPH,
    LIBRARIES,
    MIGRATOR,
    SCRATCH,
    GraphWire,
    LibraryWire,
    write_estate,
)
from tests.emulators.wire_client import FABRIC, Answer, WireClient

SITES = f"/v1.0/sites/{FINANCE}"


@pytest.fixture
def documents(graph: GraphWire) -> LibraryWire:
    """The library with one or two of everything out of the ordinary; not to be changed."""
    return LibraryWire(graph, "Documents")


def refusal(answer: Answer) -> tuple[int, str, str | None]:
    error = answer.json["error"]
    inner = error["innerError"]
    assert inner["request-id"] == answer.headers["request-id"]
    assert inner["client-request-id"] == answer.headers["client-request-id"]
    assert error["message"]
    assert inner["date"]
    return answer.status, error["code"], inner.get("code")


# sites and drives


def test_a_site_by_path_by_id_and_at_the_root(graph: GraphWire) -> None:
    site = graph.json(SITES)
    assert site["id"].startswith("contoso.sharepoint.com,")
    assert (site["name"], site["webUrl"]) == ("finance", "https://contoso.sharepoint.com/sites/finance")
    assert graph.json(f"/v1.0/sites/{site['id']}") == site
    assert graph.json("/v1.0/sites/Contoso.SharePoint.com:/Sites/Finance") == site
    assert graph.json(f"{SITES}?$select=id,name") == {"id": site["id"], "name": "finance"}
    root = graph.json("/v1.0/sites/root")
    assert root["root"] == {}
    assert graph.json("/v1.0/sites/contoso.sharepoint.com") == root


def test_drives_of_a_site(graph: GraphWire) -> None:
    site_id = graph.json(SITES)["id"]
    drives = graph.json(f"/v1.0/sites/{site_id}/drives")["value"]
    assert [drive["name"] for drive in drives] == ["Invoices", "Documents"]
    assert {drive["driveType"] for drive in drives} == {"documentLibrary"}
    assert all(drive["id"].startswith("b!") and len(drive["id"]) == 66 for drive in drives)
    assert graph.json(f"{SITES}:/drive") == drives[0]
    assert graph.json(f"/v1.0/drives/{drives[1]['id']}") == drives[1]
    assert graph.json(f"/v1.0/drives/{drives[1]['id']}?$select=id") == {"id": drives[1]["id"]}
    assert graph.json(f"{SITES}:/drives/{drives[1]['id']}/root") == graph.json(f"/v1.0/drives/{drives[1]['id']}/root")


def test_drives_come_in_pages(graph: GraphWire) -> None:
    found: list[dict[str, Any]] = []
    page: dict[str, Any] = {"@odata.nextLink": f"/v1.0/sites/{SCRATCH}:/drives?%24select=id,name&$top=50"}
    while "@odata.nextLink" in page:
        page = graph.json(page["@odata.nextLink"])
        assert len(page["value"]) <= 50
        found += page["value"]
    assert len(found) == LIBRARIES
    assert all(set(drive) == {"id", "name"} for drive in found)


def test_a_system_library_shows_only_to_those_who_ask(tmp_path: Path) -> None:
    config = write_estate(tmp_path / "estate.json")
    document = json.loads(config.read_text())
    document["sites"][0]["libraries"].append({"name": "Style Library", "system": True})
    config.write_text(json.dumps(document))
    with launch(tmp_path / "state", config=config) as running:
        graph = GraphWire(running)
        assert "Style Library" not in [drive["name"] for drive in graph.json(f"{SITES}:/drives")["value"]]
        listed = graph.json(f"{SITES}:/drives?$select=name,system")["value"]
        assert listed[-1] == {"name": "Style Library", "system": {}}


# items


def test_an_item_by_id_and_by_path(documents: LibraryWire) -> None:
    item = documents.by_path("Special/empty 1.txt")
    assert documents.graph.json(f"{documents.url}/items/{item['id']}") | {
        "@microsoft.graph.downloadUrl": ""
    } == item | {"@microsoft.graph.downloadUrl": ""}
    assert documents.by_path("SPECIAL/Empty 1.TXT")["id"] == item["id"]
    assert item["parentReference"]["path"] == f"/drives/{documents.drive_id}/root:/Special"
    assert item["eTag"].startswith('"{')
    assert item["cTag"].startswith('"c:{')
    assert item["file"] == {"mimeType": "text/plain", "hashes": {"quickXorHash": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}}
    root = documents.graph.json(f"{documents.url}/root")
    assert root["root"] == {}
    assert root["id"] == documents.graph.json(f"{documents.url}/items/root")["id"]
    assert root["size"] == sum(
        line["listed_size"] for line in documents.control.tree("Documents") if "sha256" in line
    ) + (7000 + 4000)


def test_children_come_in_pages(documents: LibraryWire) -> None:
    page = documents.graph.json(f"{documents.url}/root/children?$select=id,name&$top=4")
    found = page["value"]
    while "@odata.nextLink" in page:
        page = documents.graph.json(page["@odata.nextLink"])
        found += page["value"]
    root = documents.graph.json(f"{documents.url}/root")
    assert len({item["id"] for item in found}) == root["folder"]["childCount"]
    assert all(set(item) == {"id", "name"} for item in found)


@pytest.mark.parametrize(
    ("path", "facet"),
    [
        ("Notebook 1", {"package": {"type": "oneNote"}}),
        ("Special/malware 1.exe", {"malware": {"description": "Virus:DOS/EICAR_Test_File"}}),
        ("Special/dlp_blocked 1.pdf", {"restricted": {"decision": "Restricted", "restrictionType": "OwnerOnly"}}),
        ("Empty 1/and empty inside", {"folder": {"childCount": 0}}),
        ("Special/hash_pending 1.pdf", {"file": {"mimeType": "application/pdf"}}),
    ],
)
def test_facets(documents: LibraryWire, path: str, facet: dict[str, Any]) -> None:
    item = documents.by_path(path)
    assert {name: item[name] for name in facet} == facet
    assert len(item.keys() & {"file", "folder", "package", "remoteItem"}) == 1


def test_a_shortcut_is_neither_a_file_nor_a_folder(documents: LibraryWire) -> None:
    item = documents.by_path("Shortcut 1")
    assert item["remoteItem"]["parentReference"]["driveId"] != documents.drive_id
    assert item.keys().isdisjoint({"file", "folder", "package"})


def test_what_is_not_shown_by_default(documents: LibraryWire) -> None:
    path = "Special/checked_out 1.docx"
    assert documents.by_path(path).keys().isdisjoint({"publication", "sharepointIds"})
    item = documents.by_path(path, "?$select=id,publication,sharepointIds")
    assert set(item) == {"id", "publication", "sharepointIds"}
    assert item["publication"]["level"] == "checkout"
    assert item["publication"]["checkedOutBy"]["user"]["displayName"]
    assert item["sharepointIds"]["siteId"] in documents.graph.json(SITES)["id"]
    assert documents.by_path("Special/empty 1.txt", "?$select=publication")["publication"]["level"] == "published"


@pytest.mark.parametrize("name", ["@microsoft.graph.downloadUrl", "content.downloadUrl"])
def test_a_download_url_can_be_selected(documents: LibraryWire, name: str) -> None:
    item = documents.by_path("Special/promoted 1.xlsx", f"?select=id,{name}")
    assert set(item) == {"id", "@microsoft.graph.downloadUrl"}
    body = documents.graph.fetch(item["@microsoft.graph.downloadUrl"]).body
    assert body == documents.control.content("Documents", "Special/promoted 1.xlsx")


def test_the_names_that_trouble_a_lake_are_there(documents: LibraryWire) -> None:
    paths = [line["path"] for line in documents.control.tree("Documents", hashes=())]
    assert {
        "Folder 1./inside.txt",
        "Special/ends in a dot 1.",
        "Case 1/upper/Report.TXT",
        "Case 1/lower/report.txt",
    } <= {*paths}
    assert max(map(len, paths)) == 360
    assert any(not path.isascii() for path in paths)
    assert all(documents.by_path(path)["name"] == path.rpartition("/")[2] for path in paths)


# downloads


def test_every_file_downloads_as_the_tree_says(graph: GraphWire) -> None:
    invoices = LibraryWire(graph, "Invoices")
    tree = [line for line in graph.control.tree("Invoices", hashes=("sha256", "md5")) if line["kind"] == "file"]
    assert len(tree) == 48
    assert any(line["path"].startswith("2024/") for line in tree)
    for line in tree[::6]:
        body = graph.fetch(invoices.location(line["path"])).body
        assert (len(body), hashlib.sha256(body).hexdigest()) == (line["size"], line["sha256"])
        assert hashlib.md5(body, usedforsecurity=False).hexdigest() == line["md5"]
        item = invoices.by_path(line["path"])
        assert (item["size"], item["eTag"]) == (len(body), line["etag"])
        assert item["file"]["hashes"]["quickXorHash"] == Given(body).quick_xor_hash()


def test_a_promoted_file_is_not_what_its_metadata_say(documents: LibraryWire) -> None:
    path = "Special/promoted 2.pptx"
    item = documents.by_path(path)
    answer = documents.graph.fetch(documents.location(path))
    assert int(answer.headers["content-length"]) == len(answer.body) == item["size"] + 137
    assert Given(answer.body).quick_xor_hash() != item["file"]["hashes"]["quickXorHash"]
    line = next(line for line in documents.control.tree("Documents") if line["path"] == path)
    assert (line["size"], line["listed_size"]) == (len(answer.body), item["size"])
    assert hashlib.sha256(answer.body).hexdigest() == line["sha256"]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("Special/malware 1.exe", (403, "malwareDetected", "virusSuspicious")),
        ("Special/dlp_blocked 1.pdf", (403, "accessDenied", "accessRestricted")),
        ("Special/locked 1.xlsx", (423, "accessDenied", None)),
        ("Notebook 1", (400, "invalidRequest", None)),
        ("Notebook 1/Section.one", (400, "notSupported", None)),
        ("Shortcut 1", (400, "invalidRequest", None)),
        ("Special", (400, "invalidRequest", None)),
        ("nothing here", (404, "itemNotFound", None)),
    ],
)
def test_what_cannot_be_downloaded(documents: LibraryWire, path: str, expected: tuple[int, str, str | None]) -> None:
    answer = documents.graph.get(f"{documents.url}/root:/{quote(path)}:/content")
    assert refusal(answer) == expected
    assert ("x-virus-infected" in answer.headers) is ("malware" in path)


def test_malware_can_be_had_on_purpose(documents: LibraryWire) -> None:
    answer = documents.graph.get(f"{documents.url}/root:/Special/malware%201.exe:/content?AVOverride=1")
    body = documents.graph.fetch(answer.headers["location"]).body
    assert body == documents.control.content("Documents", "Special/malware 1.exe")


def test_a_download_url_wants_no_token(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", b"hello")
    location = library.location("a.bin")
    assert library.graph.fetch(location).body == b"hello"
    assert library.graph.get(location).status == 401
    forged = location[:-5] + ("A" if location[-5] != "A" else "B") + location[-4:]
    assert library.graph.fetch(forged).status == 401
    assert library.graph.fetch(location.partition("?")[0]).status == 401
    assert library.graph.fetch("/_download/nonsense?tempauth=nonsense").status == 401


def test_a_download_url_expires(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", b"hello")
    location = library.location("a.bin")
    library.control.expire_downloads()
    assert library.graph.fetch(location).status == 401
    assert library.graph.fetch(library.location("a.bin")).status == 200
    library.control.behave(download_lifetime_s=0)
    assert library.graph.fetch(library.location("a.bin")).status == 401


def test_a_download_url_gives_what_is_there_when_it_is_used(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", b"before")
    location = library.location("a.bin")
    library.control.put(library.name, "a.bin", b"after")
    answer = library.graph.fetch(location)
    assert (answer.body, answer.headers["etag"]) == (b"after", library.by_path("a.bin")["eTag"])
    library.control.mark(library.name, "a.bin", "locked")
    assert refusal(library.graph.fetch(location))[0] == 423
    library.control.delete(library.name, "a.bin")
    assert refusal(library.graph.fetch(location)) == (404, "itemNotFound", None)


@pytest.mark.parametrize("url_key", ["graph_url", "graph_plain_url"])
@pytest.mark.parametrize("size", [0, 5, 100_000, 3_000_000])
def test_ranges(library: LibraryWire, size: int, url_key: str) -> None:
    library.control.put(library.name, "a.bin", size=size)
    whole = library.control.content(library.name, "a.bin")
    assert len(whole) == size
    location = urlsplit(library.location("a.bin"))
    host = urlsplit(library.graph.emulators.addresses[url_key])

    def fetch(given: str) -> Answer:
        if url_key == "graph_url":
            return library.graph.fetch(location.geturl(), {"Range": given} if given else None)
        url = f"http://{host.netloc}{location.path}?{location.query}"
        request = urllib.request.Request(url, headers={"Range": given} if given else {})
        try:
            with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
                return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        except urllib.error.HTTPError as error:
            return Answer(error.code, {k.lower(): v for k, v in error.headers.items()}, error.read())

    assert (fetch("").status, fetch("").body) == (200, whole)
    for given, start, stop in (("bytes=1-", 1, size), ("bytes=2-3", 2, 4), ("bytes=-2", max(0, size - 2), size)):
        answer = fetch(given)
        if not size:
            assert (answer.status, answer.headers["content-range"]) == (416, "bytes */0")
            continue
        assert (answer.status, answer.body) == (206, whole[start:stop])
        assert answer.headers["content-range"] == f"bytes {start}-{stop - 1}/{size}"
    assert fetch(f"bytes={size}-").status == 416
    assert fetch("bytes=0-1,3-4").status == 200
    library.control.behave(ignore_ranges=True)
    assert (fetch("bytes=1-").status, fetch("bytes=1-").body) == (200, whole)


def test_head_of_a_download(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", size=2_000_000)
    answer = library.graph.send("HEAD", library.location("a.bin"), client=None)
    assert (answer.status, answer.headers["content-length"], answer.body) == (200, "2000000", b"")


def test_not_modified(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", b"one")
    item = library.by_path("a.bin")
    url = f"{library.url}/items/{item['id']}/content"
    for tag in (item["eTag"], item["cTag"], f'"other", {item["eTag"]}'):
        assert library.graph.get(url, {"If-None-Match": tag}).status == 304
    library.control.touch(library.name, "a.bin")
    assert library.graph.get(url, {"If-None-Match": item["eTag"]}).status == 302
    assert library.graph.get(url, {"If-None-Match": item["cTag"]}).status == 304
    library.control.put(library.name, "a.bin", b"two")
    assert library.graph.get(url, {"If-None-Match": item["cTag"]}).status == 302


def test_downloads_are_counted_for_each_item(library: LibraryWire) -> None:
    library.control.put(library.name, "a.bin", b"one")
    library.graph.fetch(library.location("a.bin"))
    counted = {line["path"]: line["downloads"] for line in library.control.tree(library.name) if line["kind"] == "file"}
    assert counted["a.bin"] == 1
    assert sum(counted.values()) == 1


# who may


@pytest.mark.parametrize(
    ("client", "scope", "status", "code"),
    [
        ("outsider", GRAPH, 403, "accessDenied"),
        ("migrator", FABRIC, 401, "InvalidAuthenticationToken"),
        (None, GRAPH, 401, "InvalidAuthenticationToken"),
    ],
)
def test_who_is_refused(graph: GraphWire, client: str | None, scope: str, status: int, code: str) -> None:
    drive_id = graph.drive_id("Invoices")
    for target in (SITES, f"{SITES}:/drives", f"/v1.0/drives/{drive_id}/root/delta", f"/v1.0/drives/{drive_id}"):
        answer = graph.wire.send("GET", target, client=client, scope=scope, url_key="graph_url")
        assert refusal(answer) == (status, code, None)
        assert ("www-authenticate" in answer.headers) is (status == 401)


def test_a_token_that_is_none(graph: GraphWire) -> None:
    answer = graph.get(SITES, {"Authorization": "Bearer a.b.c"})
    assert refusal(answer) == (401, "InvalidAuthenticationToken", None)


def test_a_token_that_expired(tmp_path: Path) -> None:
    with launch(tmp_path, token_lifetime_s=1) as running:
        graph = GraphWire(running)
        while (answer := graph.get(SITES)).status == 200:
            pass
        assert refusal(answer) == (401, "InvalidAuthenticationToken", None)
        assert "expired" in answer.json["error"]["message"]


def test_a_grant_comes_and_goes(graph: GraphWire) -> None:
    url = "/v1.0/sites/contoso.sharepoint.com"
    graph.control.grant(MIGRATOR, "contoso.sharepoint.com", None)
    assert refusal(graph.get(url)) == (403, "accessDenied", None)
    graph.control.grant(MIGRATOR, "contoso.sharepoint.com", "write")
    assert graph.get(url).status == 200
    with pytest.raises(EmulatorsFailed, match="grant"):
        graph.control.grant("nobody", FINANCE)


def test_an_application_with_grants_may_not_look_at_them(graph: GraphWire) -> None:
    assert refusal(graph.get(f"{SITES}:/permissions")) == (403, "accessDenied", None)


# requests that make no sense


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v1.0/sites/contoso.sharepoint.com:/sites/other", 404, "itemNotFound"),
        ("/v1.0/sites/fabrikam.sharepoint.com", 404, "itemNotFound"),
        ("/v1.0/sites/a,b,c", 404, "itemNotFound"),
        ("/v1.0/drives/b!nonsense/root", 404, "itemNotFound"),
        ("/v1.0/drives/{drive}/items/01NONSENSE", 404, "itemNotFound"),
        ("/v1.0/drives/{drive}/root:/no/such/path", 404, "itemNotFound"),
        ("/v1.0/drives/{drive}/root/thumbnails", 400, "BadRequest"),
        ("/v1.0/me/drive", 400, "BadRequest"),
        ("/v2.0/sites/root", 400, "BadRequest"),
        ("/v1.0/drives/{drive}/root?$select=id,nonsense", 400, "BadRequest"),
        ("/v1.0/drives/{drive}/root?$expand=permissions", 400, "invalidRequest"),
        ("/v1.0/drives/{drive}/root/delta?$filter=x", 400, "invalidRequest"),
        ("/v1.0/drives/{drive}/root/delta?$top=0", 400, "invalidRequest"),
        ("/v1.0/drives/{drive}/root/children?$skiptoken=x", 400, "invalidRequest"),
        ("/v1.0/drives/{drive}/root:/2024:/delta", 400, "notSupported"),
        ("/v1.0/drives/{drive}/root:/%FF", 400, "invalidRequest"),
    ],
)
def test_refusals(graph: GraphWire, target: str, status: int, code: str) -> None:
    answer = graph.get(target.format(drive=graph.drive_id("Invoices")))
    assert refusal(answer) == (status, code, None)


def test_nothing_can_be_written(library: LibraryWire) -> None:
    answer = library.graph.send("PUT", f"{library.url}/root:/a.txt:/content", body=b"hello")
    assert answer.status == 404
    answer = library.graph.send("DELETE", f"{library.url}/root:/2024")
    assert refusal(answer) == (405, "notAllowed", None)
    assert library.by_path("2024")["folder"]


# batches


def batch(graph: GraphWire, *requests: dict[str, Any]) -> dict[str, dict[str, Any]]:
    answer = graph.send("POST", "/v1.0/$batch", body=json.dumps({"requests": requests}).encode())
    assert answer.status == 200, answer
    return {one["id"]: one for one in answer.json["responses"]}


def test_a_batch(graph: GraphWire) -> None:
    drive_id = graph.drive_id("Invoices")
    item = LibraryWire(graph, "Invoices").by_path("2024/01/Receipt 000001.pdf")
    got = batch(
        graph,
        {"id": "1", "method": "GET", "url": f"/drives/{drive_id}/root?$select=id,root"},
        {"id": "2", "method": "GET", "url": f"drives/{drive_id}/items/{item['id']}/content"},
        {"id": "3", "method": "GET", "url": f"/drives/{drive_id}/items/nothing"},
        {"id": "4", "method": "GET", "url": f"/drives/{drive_id}", "dependsOn": ["3"]},
    )
    assert {one: got[one]["status"] for one in got} == {"1": 200, "2": 302, "3": 404, "4": 424}
    assert got["1"]["body"]["root"] == {}
    assert len(graph.fetch(got["2"]["headers"]["Location"]).body) == item["size"]
    assert got["3"]["body"]["error"]["code"] == "itemNotFound"


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [{"id": "a", "method": "GET", "url": "/x"}, {"id": "A", "method": "GET", "url": "/x"}],
        [{"id": str(number), "method": "GET", "url": "/x"} for number in range(21)],
        [{"id": "a", "url": "/x"}],
    ],
)
def test_batches_that_make_no_sense(graph: GraphWire, requests: list[dict[str, str]]) -> None:
    answer = graph.send("POST", "/v1.0/$batch", body=json.dumps({"requests": requests}).encode())
    assert refusal(answer) == (400, "invalidRequest", None)


# the estate


def test_emulators_started_again_hold_what_they_held(tmp_path: Path) -> None:
    config = write_estate(tmp_path / "estate.json")
    with launch(tmp_path / "state", config=config) as running:
        library = LibraryWire(GraphWire(running), "Invoices")
        running.graph.put("Invoices", "new/a.bin", b"hello")
        running.graph.rename("Invoices", "2024", "2024 old")
        link = library.link_now()
        running.graph.delete("Invoices", "2025")
        before = list(running.graph.tree("Invoices"))
        running.kill()
    with launch(tmp_path / "state", config=config) as running:
        assert list(running.graph.tree("Invoices")) == before
        assert running.graph.content("Invoices", "new/a.bin") == b"hello"
        items, _ = LibraryWire(GraphWire(running), "Invoices").walk(link)
        assert any("deleted" in item for item in items)


def test_graph_beside_further_processes(tmp_path: Path) -> None:
    with launch(tmp_path, processes=2) as running:
        graph = GraphWire(running)
        assert len(LibraryWire(graph, "Invoices").walk()[0]) == 57


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"op": "put", "library": "Nowhere", "path": "a"}, "no library"),
        ({"op": "delete", "library": "Invoices", "path": "nothing"}, "no 'nothing'"),
        ({"op": "delete", "library": "Invoices", "path": ""}, "no ''"),
        ({"op": "mark", "library": "Invoices", "path": "2024", "mark": "locked"}, "no file"),
        ({"op": "mark", "library": "Invoices", "path": "2024", "mark": "sold"}, "marks are"),
        ({"op": "move", "library": "Invoices", "path": "2024", "to": "2024/01"}, "into itself"),
        ({"op": "move", "library": "Invoices", "path": "2024", "to": "", "name": "2025"}, "another"),
        ({"op": "restore", "library": "Invoices", "path": "2024"}, "Nothing was deleted"),
        ({"op": "put", "library": "Invoices", "path": "a", "content": "?"}, "Base64"),
        ({"op": "put", "library": "Invoices", "path": "a", "colour": "red"}, "colour"),
        ({"op": "paint"}, "op"),
    ],
)
def test_changes_that_cannot_be_made(graph: GraphWire, change: dict[str, str], words: str) -> None:
    with pytest.raises(EmulatorsFailed, match=words):
        graph.control.apply([change])


def test_the_same_specification_gives_the_same_ids(tmp_path: Path, graph: GraphWire) -> None:
    with launch(tmp_path) as running:
        other = GraphWire(running)
        assert other.drive_id("Invoices") == graph.drive_id("Invoices")
        ours = [(line["id"], line["sha256"]) for line in graph.control.tree("Documents") if "sha256" in line]
        assert ours == [(line["id"], line["sha256"]) for line in running.graph.tree("Documents") if "sha256" in line]


def test_a_given_content_has_its_hash(library: LibraryWire) -> None:
    # The vectors are rclone's, backend/onedrive/quickxorhash.
    for number, (content, expected) in enumerate(
        [("Sg==", "SgAAAAAAAAAAAAAAAQAAAAAAAAA="), ("tbQ=", "taAFAAAAAAAAAAAAAgAAAAAAAAA=")]
    ):
        library.control.put(library.name, f"{number}.bin", base64.b64decode(content))
        assert library.by_path(f"{number}.bin")["file"]["hashes"]["quickXorHash"] == expected


@pytest.mark.parametrize("size", [1, 16, 17, 65_440, 200_000])
def test_a_generated_content_has_its_hash(library: LibraryWire, size: int) -> None:
    library.control.put(library.name, "a.bin", size=size)
    shown = library.by_path("a.bin")["file"]["hashes"]["quickXorHash"]
    assert Given(library.control.content(library.name, "a.bin")).quick_xor_hash() == shown


def test_a_change_that_a_kill_cut_short_did_not_happen(tmp_path: Path) -> None:
    with launch(tmp_path) as running:
        running.graph.put("Invoices", "kept.txt", b"x")
        (log,) = (tmp_path / "state").glob("graph-changes-*.jsonl")
        running.kill()
    log.write_text(log.read_text() + '{"op":"put","libr')
    for _ in range(2):
        with launch(tmp_path) as running:
            assert running.graph.content("Invoices", "kept.txt") == b"x"
            running.graph.put("Invoices", "kept too.txt", b"x")


def test_another_audience_is_no_other_client(graph_emulators: Any) -> None:
    wire = WireClient(graph_emulators)
    assert wire.send("GET", "/v1/workspaces", scope=GRAPH, url_key="fabric_url").status == 401
