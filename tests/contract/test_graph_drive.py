"""The contract of a drive, held by the client against the emulated SharePoint over HTTPS."""

from __future__ import annotations

import json
import logging
from base64 import b64decode
from collections.abc import Callable
from typing import Any

import pytest

from shared.clients.graph import DrivePlace
from shared.clients.graph.download import WHOLE_BYTES
from shared.errors import (
    AccessDenied,
    Authentication,
    Configuration,
    IntegrityMismatch,
    ItemError,
    MigrationError,
    NotFound,
    RunError,
    SourceChanged,
    SourceMissing,
    TransientError,
    Unsupported,
)
from shared.policy.quick_xor import QuickXorHash
from shared.ports import DriveFeed, DriveItem
from tests.support.sharepoint import SITE, SharePoint, Walk

MIB = 1024 * 1024
URL = "https://contoso.sharepoint.com/sites/finance"


async def item_at(drive: DriveFeed, path: str) -> DriveItem:
    return (await Walk().go(drive)).paths()[path]


async def read_all(drive: DriveFeed, path: str, item: DriveItem, block: int = MIB) -> tuple[bytes, Any]:
    content = await drive.open(path, item.ref)
    try:
        parts = []
        while data := await content.read(block):
            parts.append(data)
            assert len(data) == block or sum(map(len, parts)) == content.size_bytes, "blocks are whole but the last"
        await content.finish()
        assert sum(map(len, parts)) == content.size_bytes
        return b"".join(parts), content
    finally:
        await content.close()


# -- resolve -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "site", [SITE, "contoso.sharepoint.com/sites/finance", URL, f"{URL}/", " Contoso.SharePoint.com:/sites/finance "]
)
async def test_a_site_in_any_form(sharepoint: SharePoint, site: str) -> None:
    expected = await sharepoint.drive("Work").identity()
    assert await sharepoint.drive("Work", site=site).identity() == expected


@pytest.mark.parametrize(
    "library",
    [
        "Shared Documents", "shared documents", f"{URL}/Shared%20Documents", f"{URL}/Shared Documents/",
        f"{URL}/Shared%20Documents/Forms/AllItems.aspx?viewid=1",
    ],
)  # fmt: skip
async def test_a_library_in_any_form(sharepoint: SharePoint, library: str) -> None:
    found = await sharepoint.drive(library).resolve()
    expected = sharepoint.control.touch("Shared Documents", "2024")["drive_id"]
    assert found == DrivePlace(expected, None)


async def test_names_of_every_kind(sharepoint: SharePoint) -> None:
    await sharepoint.drive("ärger", site="https://contoso.sharepoint.com/sites/N%C3%A4h%20&%20Co").check()
    await sharepoint.drive("ärger", site="contoso.sharepoint.com:/sites/Näh & Co").check()
    await sharepoint.drive("Documents", site="contoso.sharepoint.com").check()
    await sharepoint.drive("Documents", site="https://contoso.sharepoint.com/").check()


async def test_a_folder(sharepoint: SharePoint) -> None:
    expected = sharepoint.tree("Shared Documents")["Case 1/upper"]["id"]
    drive = sharepoint.drive("Shared Documents", "/case 1/Upper/")
    assert (await drive.resolve()).folder_id == await drive.start_id() == expected
    whole = sharepoint.drive("Shared Documents")
    assert await whole.start_id() is None
    assert await whole.identity() != await drive.identity()


async def test_what_was_resolved_is_not_asked_again(sharepoint: SharePoint) -> None:
    place = await sharepoint.drive("Work").resolve()
    sharepoint.control.reset_counters()
    drive = sharepoint.drive("Work", place=place)
    assert await drive.identity() == await drive.identity()
    assert sharepoint.control.counters()["units"] == 0


@pytest.mark.parametrize(
    ("options", "error", "code", "subject", "said"),
    [
        ({"site": f"{SITE}x"}, SourceMissing, "site_not_found", "source.site", "/sites/financex"),
        ({"site": f"{SITE}/Work"}, SourceMissing, "site_not_found", "source.site", "before the library"),
        ({"site": "contoso.sharepoint.com:/sites/closed"}, Authentication, "permission_denied", "source.site",
         "Sites.Selected"),
        ({"library": "Nothing"}, SourceMissing, "library_not_found", "source.library",
         "'Invoices', 'Shared Documents', 'Work'"),
        ({"library": f"{URL}/Nothing"}, SourceMissing, "library_not_found", "source.library", "Correct source.library"),
        ({"folder": "2024/nowhere"}, SourceMissing, "folder_not_found", "source.folder", "'2024/nowhere'"),
        ({"site": "finance"}, Configuration, "configuration", "source.site", "contoso.sharepoint.com:/sites/finance"),
        ({"site": ""}, Configuration, "configuration", "source.site", "write host and path"),
        ({"site": "https://user@evil/sites/x"}, Configuration, "configuration", "source.site", "write host"),
        ({"site": "contoso.sharepoint.com:/sites/../x"}, Configuration, "configuration", "source.site", "write host"),
    ],
)  # fmt: skip
async def test_what_cannot_be_resolved(
    sharepoint: SharePoint, options: dict[str, Any], error: type[RunError], code: str, subject: str, said: str
) -> None:
    drive = sharepoint.drive(**{"library": "Work", **options})
    with pytest.raises(error) as raised:
        await drive.check()
    assert (raised.value.code, raised.value.subject) == (code, subject)
    assert said in raised.value.detail


async def test_a_file_is_no_folder(sharepoint: SharePoint) -> None:
    with pytest.raises(Configuration, match="is no folder"):
        await sharepoint.drive("Shared Documents", "Special/empty 1.txt").check()


async def test_tokens_that_do_not_fit(sharepoint: SharePoint) -> None:
    with pytest.raises(Authentication, match="GRAPH_SCOPE") as raised:
        await sharepoint.drive("Work", graph=sharepoint.graph(scope="https://storage.azure.com/.default")).check()
    assert raised.value.code == "token_audience"
    with pytest.raises(Authentication) as raised:
        await sharepoint.drive("Work", graph=sharepoint.graph("outsider")).check()
    assert raised.value.code == "permission_denied"
    with pytest.raises(Configuration, match="GRAPH_URL"):
        sharepoint.graph(url="https://graph.microsoft.com/v1.0")


async def test_an_expired_token_is_renewed(sharepoint: SharePoint) -> None:
    sharepoint.faults({"operation": "site", "fault": "expired_token", "times": 2})
    await sharepoint.drive("Work").check()


async def test_another_service_at_the_address(sharepoint: SharePoint) -> None:
    url = sharepoint.emulators.environment()["FABRIC_API_URL"]
    with pytest.raises(RunError):
        await sharepoint.drive("Work", graph=sharepoint.graph(url=url)).check()


# -- the feed ------------------------------------------------------------------------------------------------------


def assert_equal(walk: Walk, tree: dict[str, dict[str, Any]]) -> None:
    """What a walk found is what the library holds."""
    assert set(walk.paths()) | set(walk.paths(where="package")) == set(tree)
    for path, item in (walk.paths() | walk.paths(where="package")).items():
        told = tree[path]
        expected_kind = {"notebook": "other", "shortcut": "other", "section": "file"}.get(told["kind"], told["kind"])
        assert (item.id, item.kind) == (told["id"], expected_kind)
        if told["kind"] == "file":
            assert item.size_bytes == told["listed_size"]
            assert item.facts is not None
            assert item.facts["etag"] == told["etag"]
            assert len(item.ref.encode()) <= 1024


@pytest.mark.parametrize("library", ["Shared Documents", "Invoices"])
async def test_a_walk_shows_the_whole_library(sharepoint: SharePoint, library: str) -> None:
    walk = await Walk().go(sharepoint.drive(library))
    assert walk.pages > 3
    assert_equal(walk, sharepoint.tree(library))


async def test_a_folder_of_it(sharepoint: SharePoint) -> None:
    drive = sharepoint.drive("Invoices", "2024/02")
    walk = await Walk().go(drive)
    expected = {path.removeprefix("2024/02/") for path in sharepoint.tree("Invoices") if path.startswith("2024/02/")}
    assert expected
    assert set(walk.paths(await drive.start_id())) == expected


async def test_a_page_can_be_asked_for_again_by_another_process(sharepoint: SharePoint) -> None:
    page = await sharepoint.drive("Invoices").page(None)
    following = await sharepoint.drive("Invoices").page(page.cursor)
    assert page.token is None
    assert following.items
    assert await sharepoint.drive("Invoices").page(page.cursor) == following


@pytest.mark.parametrize("late", ["walk", "next"])
async def test_changes_during_the_walk(sharepoint: SharePoint, late: str) -> None:
    sharepoint.control.behave(late_changes=late)
    control = sharepoint.control
    files = [path for path, one in sharepoint.tree("Work").items() if one["kind"] == "file"]

    def change(page: int) -> None:
        if page == 1:
            control.put("Work", files[0], size=7)
            control.put("Work", f"during/{late}/new.txt", b"new")
            control.rename("Work", files[1], f"renamed {late}.txt")
            control.delete("Work", files[2])
        if page == 2:
            control.move("Work", f"during/{late}", "", f"moved {late}")
            control.restore("Work", files[2])
            control.delete("Work", files[3], descendants=False)

    drive = sharepoint.drive("Work")
    walk = await Walk().go(drive, between=change)
    walk = await walk.go(drive, walk.token)
    assert_equal(walk, sharepoint.tree("Work"))


async def test_the_next_run_sees_only_what_changed(sharepoint: SharePoint) -> None:
    control = sharepoint.control
    control.put("Work", "next/a.bin", b"one")
    control.put("Work", "next/b.bin", b"two")
    drive = sharepoint.drive("Work")
    walk = await Walk().go(drive)
    before = walk.paths()
    control.touch("Work", "next/a.bin")
    control.put("Work", "next/b.bin", b"tow")
    after = await Walk().go(sharepoint.drive("Work"), walk.token)
    changed = {item.name: item for item in after.items.values() if item.kind == "file"}
    assert set(changed) == {"a.bin", "b.bin"}
    assert changed["a.bin"].version == before["next/a.bin"].version, "only its metadata changed"
    assert changed["a.bin"].ref != before["next/a.bin"].ref
    assert changed["b.bin"].version != before["next/b.bin"].version
    control.rename("Work", "next", "then")
    walk = await walk.go(drive, after.token)
    assert "then/a.bin" in walk.paths()
    control.delete("Work", "then", descendants=False)
    walk = await walk.go(drive, walk.token)
    assert "then/a.bin" not in walk.paths()
    assert "then/a.bin" in walk.paths(where="gone")
    assert_equal(walk, sharepoint.tree("Work"))
    idle = await Walk().go(drive, walk.token)
    assert not idle.items
    assert idle.token


@pytest.mark.parametrize("asked", ["resyncChangesApplyDifferences", "resyncChangesUploadDifferences"])
async def test_a_walk_that_is_told_to_begin_again(sharepoint: SharePoint, asked: str) -> None:
    sharepoint.control.behave(resync=asked)
    drive = sharepoint.drive("Invoices")
    walk = await Walk().go(drive, between=lambda page: page == 2 and sharepoint.control.expire_tokens("Invoices"))
    assert walk.resets == 1
    assert_equal(walk, sharepoint.tree("Invoices"))
    sharepoint.control.expire_tokens("Invoices")
    page = await drive.page(walk.token)
    assert (page.reset, page.token, list(page.items)) == (True, None, [])
    assert page.cursor
    assert_equal(await Walk().go(drive, page.cursor), sharepoint.tree("Invoices"))


async def test_a_token_that_nobody_knows_begins_again(sharepoint: SharePoint) -> None:
    drive = sharepoint.drive("Work")
    url = sharepoint.emulators.environment()["GRAPH_URL"]
    place = await drive.resolve()
    page = await drive.page(f"{url}/v1.0/drives/{place.drive_id}/root/delta?token=made-up")
    assert page.reset


@pytest.mark.parametrize(
    "link",
    ["https://graph.evil.example/v1.0/x", "http://127.0.0.1/v1.0/drives", "//evil", "/v1.0", "file:///etc/passwd"],
)
async def test_a_link_to_elsewhere_gets_no_token(sharepoint: SharePoint, link: str) -> None:
    drive = sharepoint.drive("Work")
    await drive.resolve()
    with pytest.raises(Configuration, match="gets no token"):
        await drive.page(link)


async def test_what_an_item_carries(sharepoint: SharePoint) -> None:
    path = "Special/checked_out 1.docx"
    item = await item_at(sharepoint.drive("Shared Documents"), path)
    told = sharepoint.tree("Shared Documents")[path]
    quick_xor_hash = told["listed_quick_xor_hash"]
    assert (item.problem, item.skip) == (None, False), "a file that is checked out can be read"
    assert item.version == f"qx:{quick_xor_hash}:{told['listed_size']}"
    assert item.facts == {
        "drive_item_id": told["id"],
        "etag": told["etag"],
        "ctag": None,
        "quick_xor_hash": quick_xor_hash,
        "created_at": "2024-01-01T09:00:00Z",
        "created_by": "meganb@contoso.com",
        "modified_at": told["modified"],
        "modified_by": "meganb@contoso.com",
        "web_url": f"{URL}/Shared%20Documents/Special/checked_out%201.docx",
        "version_label": "1.0",
        "checked_out_by": "meganb@contoso.com",
    }


async def test_stat(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "stat/a.bin", b"one")
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "stat/a.bin")
    again = await drive.stat(item.ref)
    assert again is not None
    assert (again.version, again.ref, again.parent_id) == (item.version, item.ref, item.parent_id)
    sharepoint.control.put("Work", "stat/a.bin", b"other")
    changed = await drive.stat(item.ref)
    assert changed is not None
    assert changed.version != item.version
    sharepoint.control.delete("Work", "stat/a.bin")
    assert await drive.stat(item.ref) is None


async def test_a_grant_that_is_taken_away_stops_the_run(sharepoint: SharePoint) -> None:
    client_id = sharepoint.emulators.addresses["clients"]["migrator"]["client_id"]
    drive = sharepoint.drive("Work")
    walk = await Walk().go(drive)
    path, item = next((path, item) for path, item in walk.paths().items() if item.kind == "file")
    sharepoint.control.grant(client_id, SITE, None)
    try:
        calls: list[Callable[[], Any]] = [
            lambda: drive.page(None), lambda: drive.page(walk.token), lambda: drive.stat(item.ref),
            lambda: drive.open(path, item.ref),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises(Authentication, match=r"Sites\.Selected") as raised:
                await call()
            assert raised.value.code == "permission_denied"
    finally:
        sharepoint.control.grant(client_id, SITE, "read")


# -- downloads -----------------------------------------------------------------------------------------------------


async def test_every_file_arrives_with_one_call_to_graph(sharepoint: SharePoint) -> None:
    drive = sharepoint.drive("Invoices")
    walk = await Walk().go(drive)
    files = {path: item for path, item in walk.paths().items() if item.kind == "file"}
    sharepoint.control.reset_counters()
    for path, item in files.items():
        data, content = await read_all(drive, path, item)
        assert data == sharepoint.control.content("Invoices", path)
        assert (content.version, content.facts) == (item.version, None)
    counters = sharepoint.control.counters()
    requests = {kind: n for kind, n in counters["requests"].items() if n}
    assert requests == {"content": len(files), "download": len(files)}
    assert counters["undecorated"] == 0


async def test_the_units_counted_are_those_of_the_service(sharepoint: SharePoint) -> None:
    graph = sharepoint.graph()
    drive = sharepoint.drive("Shared Documents", "Special", graph=graph)
    await drive.check()
    for path, item in (await Walk().go(drive)).paths().items():
        if path == "Special/empty 1.txt":
            await read_all(drive, path, item)
            await drive.stat(item.ref)
    assert drive.load() == {"units": sharepoint.control.counters()["units"], "ceiling": None}


@pytest.mark.parametrize(
    ("path", "error", "code"),
    [
        ("Special/malware 1.exe", ItemError, "malware_detected"),
        ("Special/dlp_blocked 1.pdf", AccessDenied, "blocked_by_policy"),
        ("Special/locked 1.xlsx", ItemError, "locked"),
        ("Notebook 1/Section.one", Unsupported, "refused_by_source"),
    ],
)
async def test_files_that_are_not_given_out(
    sharepoint: SharePoint, path: str, error: type[ItemError], code: str
) -> None:
    drive = sharepoint.drive("Shared Documents")
    walk = await Walk().go(drive)
    item = (walk.paths() | walk.paths(where="package"))[path]
    sharepoint.control.reset_counters()
    with pytest.raises(error) as raised:
        await drive.open(path, item.ref)
    assert (raised.value.code, raised.value.subject) == (code, path)
    assert not isinstance(raised.value, TransientError)
    assert sharepoint.control.counters()["requests"]["content"] == 1, "asking again would not help"


async def test_what_is_known_from_the_listing(sharepoint: SharePoint) -> None:
    items = (await Walk().go(sharepoint.drive("Shared Documents"))).paths()
    told = {path: (item.kind, item.problem[0], item.skip) for path, item in items.items() if item.problem}
    assert told == {
        "Notebook 1": ("other", "package_not_a_file", True),
        "Shortcut 1": ("other", "shortcut_not_followed", True),
        "Special/malware 1.exe": ("file", "malware_detected", False),
    }


@pytest.mark.parametrize("marks", [[], ["hash_pending"]])
async def test_files_of_every_size(sharepoint: SharePoint, marks: list[str]) -> None:
    drive = sharepoint.drive("Work")
    for size in (0, 1, WHOLE_BYTES, WHOLE_BYTES + 1):
        sharepoint.control.put("Work", "sizes/a.bin", size=size)
        for mark in marks:
            sharepoint.control.mark("Work", "sizes/a.bin", mark)
        item = await item_at(drive, "sizes/a.bin")
        data, content = await read_all(drive, "sizes/a.bin", item, 3 * MIB)
        assert data == sharepoint.control.content("Work", "sizes/a.bin")
        assert content.version == item.version
        if marks and size:
            assert content.version.startswith("etag:")
            assert content.facts == {"hash_checked": False, "received_hash": QuickXorHash(data).base64()}
        else:
            assert content.facts is None
        assert item.version.startswith("etag:" if marks and size else "qx:")
    sharepoint.control.delete("Work", "sizes")


@pytest.mark.parametrize("ignores_ranges", [False, True])
@pytest.mark.parametrize("expires", [False, True])
async def test_a_download_that_breaks_off_goes_on_where_it_broke(
    sharepoint: SharePoint, ignores_ranges: bool, expires: bool
) -> None:
    sharepoint.control.behave(ignore_ranges=ignores_ranges)
    sharepoint.control.put("Work", "large.bin", size=12 * MIB)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "large.bin")
    sharepoint.control.reset_counters()
    sharepoint.faults({"operation": "download", "fault": "short_body", "times": 1})
    content = await drive.open("large.bin", item.ref)
    first = await content.read(MIB)
    if expires:
        sharepoint.control.expire_downloads()
    data = first + await content.read(20 * MIB)
    await content.finish()
    await content.close()
    assert sharepoint.emulators.fault_hits() == [1]
    assert data == sharepoint.control.content("Work", "large.bin")
    requests = sharepoint.control.counters()["requests"]
    assert (requests["content"], requests["item"]) == (2 if expires else 1, 0)


async def test_a_small_download_that_breaks_off_is_read_again(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "small.bin", size=50_000)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "small.bin")
    sharepoint.faults({"operation": "download", "fault": "short_body", "times": 2},
                      {"operation": "content", "fault": "reset_before", "times": 1})  # fmt: skip
    data, _ = await read_all(drive, "small.bin", item)
    assert data == sharepoint.control.content("Work", "small.bin")
    assert sharepoint.emulators.fault_hits() == [2, 1]


async def test_an_address_that_expires_before_it_is_used(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "late.bin", size=5000)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "late.bin")
    sharepoint.faults({"operation": "download", "fault": "expired_token", "times": 1})
    data, _ = await read_all(drive, "late.bin", item)
    assert data == sharepoint.control.content("Work", "late.bin")
    sharepoint.faults({"operation": "download", "fault": "expired_token"})
    with pytest.raises(AccessDenied) as raised:
        await drive.open("late.bin", item.ref)
    assert raised.value.code == "download_refused"


@pytest.mark.parametrize("size", [12 * MIB, 13 * MIB])
@pytest.mark.parametrize("ignores_ranges", [False, True])
async def test_a_file_that_changes_while_it_is_read(sharepoint: SharePoint, size: int, ignores_ranges: bool) -> None:
    sharepoint.control.behave(ignore_ranges=ignores_ranges)
    sharepoint.control.put("Work", "moving.bin", size=12 * MIB)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "moving.bin")
    sharepoint.faults({"operation": "download", "fault": "short_body", "times": 1})
    content = await drive.open("moving.bin", item.ref)
    await content.read(MIB)
    sharepoint.control.put("Work", "moving.bin", size=size)
    with pytest.raises(SourceChanged):
        await content.read(20 * MIB)
    await content.close()


@pytest.mark.parametrize("how", ["content", "size"])
async def test_a_file_that_changed_since_it_was_listed(sharepoint: SharePoint, how: str) -> None:
    sharepoint.control.put("Work", "listed.docx", size=4000)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "listed.docx")
    sharepoint.control.put("Work", "listed.docx", size=4000 if how == "content" else 4100)
    with pytest.raises(SourceChanged):
        await read_all(drive, "listed.docx", item)
    again = await drive.stat(item.ref)
    assert again is not None
    await read_all(drive, "listed.docx", again)


async def test_a_file_whose_metadata_changed_is_still_the_one_listed(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "touched.bin", size=4000)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "touched.bin")
    sharepoint.control.touch("Work", "touched.bin")
    _, content = await read_all(drive, "touched.bin", item)
    assert content.version == item.version


async def test_a_file_that_is_gone(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "brief.bin", size=4000)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "brief.bin")
    sharepoint.control.delete("Work", "brief.bin")
    with pytest.raises(NotFound) as raised:
        await drive.open("brief.bin", item.ref)
    assert raised.value.code == "source_gone"


@pytest.mark.parametrize("accept", [False, True])
@pytest.mark.parametrize("name", ["damaged.pdf", "damaged", "damaged.docx"])
async def test_damage_on_the_way_is_worth_another_try(sharepoint: SharePoint, name: str, accept: bool) -> None:
    sharepoint.control.put("Work", name, size=4000)
    drive = sharepoint.drive("Work", accept_rewrites=accept)
    item = await item_at(drive, name)
    sharepoint.faults({"operation": "download", "fault": "corrupt_body", "times": 1})
    with pytest.raises(TransientError) as raised:
        await read_all(drive, name, item)
    assert (type(raised.value), raised.value.code) == (TransientError, "integrity_mismatch")
    data, _ = await read_all(drive, name, item)
    assert data == sharepoint.control.content("Work", name)


async def test_documents_that_sharepoint_writes_into(sharepoint: SharePoint) -> None:
    path = next(path for path, one in sharepoint.tree("Shared Documents").items() if "promoted" in one["marks"])
    drive = sharepoint.drive("Shared Documents")
    item = await item_at(drive, path)
    data, content = await read_all(drive, path, item)
    assert data == sharepoint.control.content("Shared Documents", path)
    assert len(data) != item.size_bytes
    assert item.facts is not None
    assert content.version == item.version
    assert content.facts == {
        "rewritten": True,
        "announced_size": item.size_bytes,
        "announced_hash": item.facts["quick_xor_hash"],
        "received_size": len(data),
        "received_hash": QuickXorHash(data).base64(),
    }
    with pytest.raises(IntegrityMismatch) as raised:
        await read_all(sharepoint.drive("Shared Documents", accept_rewrites=False), path, item)
    assert raised.value.code == "sharepoint_rewrote"


async def test_a_large_document_that_sharepoint_writes_into(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "large.pptx", size=WHOLE_BYTES + 9)
    sharepoint.control.mark("Work", "large.pptx", "promoted")
    drive = sharepoint.drive("Work")
    data, content = await read_all(drive, "large.pptx", await item_at(drive, "large.pptx"), 3 * MIB)
    assert data == sharepoint.control.content("Work", "large.pptx")
    assert content.facts["received_size"] == len(data) != WHOLE_BYTES + 9
    sharepoint.control.delete("Work", "large.pptx")


async def test_other_bytes_than_announced_of_a_type_that_nobody_writes_into(sharepoint: SharePoint) -> None:
    sharepoint.control.put("Work", "odd.pdf", size=4000)
    sharepoint.control.mark("Work", "odd.pdf", "promoted")
    drive = sharepoint.drive("Work")
    with pytest.raises(TransientError) as raised:
        await read_all(drive, "odd.pdf", await item_at(drive, "odd.pdf"))
    assert raised.value.code == "integrity_mismatch"
    sharepoint.control.delete("Work", "odd.pdf")


# -- throttling, secrets -------------------------------------------------------------------------------------------


async def test_refusals_from_the_first_request_on(sharepoint: SharePoint) -> None:
    sharepoint.control.behave(throttle_first=4)
    drive = sharepoint.drive("Invoices")
    walk = await Walk().go(drive)
    assert_equal(walk, sharepoint.tree("Invoices"))
    assert sum(sharepoint.control.counters()["throttled"].values()) == 4


async def test_a_limit_that_the_service_tells_is_learnt(sharepoint: SharePoint) -> None:
    sharepoint.control.behave(units_per_minute=100_000)
    graph = sharepoint.graph()
    await sharepoint.drive("Work", graph=graph).check()
    assert graph.units.ceiling is None
    sharepoint.control.behave(units_per_minute=10)
    await sharepoint.drive("Work", graph=graph, place=await sharepoint.drive("Work").resolve()).page(None)
    assert graph.units.ceiling == 10


async def test_a_service_that_is_down_for_a_moment(sharepoint: SharePoint) -> None:
    sharepoint.faults(
        {"operation": "delta", "fault": "unavailable", "retry_after_s": 0, "times": 1},
        {"operation": "download", "fault": "unavailable", "retry_after_s": 0, "times": 1},
        {"operation": "content", "fault": "server_error", "times": 1},
    )
    drive = sharepoint.drive("Invoices")
    path, item = next((path, item) for path, item in (await Walk().go(drive)).paths().items() if item.kind == "file")
    await read_all(drive, path, item)
    assert sharepoint.emulators.fault_hits() == [1, 1, 1]


async def test_no_secret_is_told(sharepoint: SharePoint, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    sharepoint.control.put("Work", "secret.bin", size=12 * MIB)
    drive = sharepoint.drive("Work")
    item = await item_at(drive, "secret.bin")
    await read_all(drive, "secret.bin", item)
    said = [repr(item)]
    for fault in ("expired_token", "corrupt_body"):
        sharepoint.faults({"operation": "download", "fault": fault})
        with pytest.raises(MigrationError) as raised:
            await read_all(drive, "secret.bin", item)
        said += [str(raised.value), repr(vars(raised.value))]
    whole = "\n".join([*said, caplog.text])
    fields = json.loads(sharepoint.emulators.environment()["CREDENTIAL_SHAREPOINT"])
    for secret in ("tempauth", "_download/", "Bearer ", "eyJ", fields["client_secret"]):
        assert secret not in whole
    assert b64decode(json.loads(item.ref)[2])
