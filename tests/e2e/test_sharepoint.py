"""Document libraries into the lake: whole and by their changes, whatever people and SharePoint do on the way."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.test_kills import has_ended, in_flight_items, queued
from tests.e2e.test_secrets import places
from tests.support.libraries import SITE, Library, counted, estate
from tests.support.platform import Lake, Platform, running, until

_ORDINARY = {"retry_after_s": 1, "throttle_first": 0, "most_page_items": 1000, "late_changes": "walk",
             "units_per_minute": None, "download_lifetime_s": 300}  # fmt: skip


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    with running(tmp_path_factory.mktemp("sharepoint"), estate=estate(), SCHEDULE_TICK="* * * * * *") as started:
        yield started


@pytest.fixture
def platform(shared: Platform) -> Iterator[Platform]:
    """Without faults and behaving ordinarily before and after."""
    for _ in range(2):
        shared.emulators.set_faults([])
        shared.emulators.graph.behave(**_ORDINARY)
        if _ == 0:
            yield shared


def graph_faults(platform: Platform, *rules: dict[str, Any]) -> None:
    platform.emulators.set_faults([{"service": "graph", **rule} for rule in rules])


def walked(platform: Platform) -> int:
    """Requests to the change feed, of which the first of a run is a check."""
    requests = platform.emulators.graph.counters()["requests"]
    return int(requests["delta"] + requests["delta_token"])


FILES: dict[str, bytes | int] = {
    **{f"a/f{number}": f"a{number}".encode() for number in range(6)},
    **{f"b/deep/f{number}": f"b{number}".encode() for number in range(6)},
    "top.txt": b"top", "other.txt": b"other", "empty": b"",
}  # fmt: skip


# -- what people do ----------------------------------------------------------------------------------------------------


def test_a_library_then_its_changes(platform: Platform) -> None:
    library = Library(platform, "Invoices")
    first = library.run(verify="all")
    assert counted(first) == {"uploaded": 48}
    assert library.lake() == library.holds()
    paths = sorted(library.holds())
    library.rename("2024/01", "renamed")
    library.delete(paths[-1])
    library.put({"new folder/new.pdf": b"new", paths[-2]: b"changed"})
    # Metadata alone is no reason to read anything.
    library.apply(*({"op": "touch", "path": path} for path in paths[20:30]))
    renamed = sum(path.startswith("2024/01/") for path in paths)
    second = library.run(verify="all")
    assert library.lake() == library.holds()
    assert renamed
    assert counted(second) == {"uploaded": 2, "renamed": renamed, "deleted": 1}
    manifest = platform.manifest(second["id"])
    one = next(item for item in manifest["items"] if item["status"] == "renamed")
    assert one["renamed_from"] == one["path"].replace("renamed", "01")
    assert one["source"]["drive_item_id"]
    listed = platform.get(f"/migrations/{second['id']}/items?status=renamed").json["value"]
    assert len(listed) == renamed
    assert library.run()["progress"]["planned"] == 0
    assert not (platform.lake(library.job) / "2024/01").exists(), "no empty folder is left behind"


def test_a_folder_of_300_files_is_renamed_without_a_byte(platform: Platform) -> None:
    library = Library(platform, files={f"old/{number % 7}/f{number:03d}": 50 for number in range(300)})
    library.put({"stays": b"1"})
    library.run(verify="none")
    library.rename("old", "new")
    mark = platform.mark()
    graph = platform.emulators.graph
    graph.reset_counters()
    assert counted(library.run(verify="none")) == {"renamed": 300}
    assert library.lake() == library.holds()
    assert platform.bytes_uploaded(library.job, mark) == 0
    assert graph.counters()["requests"]["content"] == 0
    below = platform.lake(library.job)
    assert sorted(path.name for path in below.iterdir()) == ["new", "stays"]


@pytest.mark.parametrize("deleted", ["mirror", "keep"])
def test_what_people_do_in_a_library(platform: Platform, deleted: str) -> None:
    library = Library(platform, files=FILES)
    library.put({name: name.encode() * 3 for name in (
        "swap1", "swap2", "chain1", "chain2", "edited", "replaced", "CASE.txt", "gone", "flat", "mine")})  # fmt: skip
    library.put({"box/one": b"box1", "box/sub/two": b"box2", "bin/x": b"bin", "nest/in/deep/file": b"nest"})
    Lake(platform.emulators).write(f"Files/{library.job}/b/theirs", b"of somebody else")
    library.run(deleted=deleted)
    before = library.lake()
    for path, name in (("swap1", "t"), ("swap2", "swap1"), ("t", "swap2"), ("chain2", "chain3"), ("chain1", "chain2"),
                       ("edited", "edited2"), ("replaced", "replaced2"), ("CASE.txt", "case.TXT"), ("b", "bb"),
                       ("flat", "flat2")):  # fmt: skip
        library.rename(path, name)
    library.put({"edited2": b"edited", "replaced": b"anew", "flat/inside": b"a folder now"})
    library.move("mine", "a/new folder", "yours")
    library.move("bb/deep", "")
    library.delete("gone", "bin", descendants=False)
    library.delete("box", "nest")
    library.put({"nest": b"a file now"})
    library.apply({"op": "restore", "path": "box"})
    mark = platform.mark()
    # Under keep, the file of the folder that was deleted stays, and stands in the way of one of its name.
    blocked = deleted == "keep"
    document = library.run("completed_with_failures" if blocked else "completed", deleted=deleted, verify="all")
    wanted = {path: data for path, data in library.holds().items() if not (blocked and path == "nest")}
    there = library.lake()
    assert there.pop("b/theirs") == before.pop("b/theirs"), "never what is not the job's own"
    gone = {"gone", "bin/x", "nest/in/deep/file", "chain1"}
    assert {path: there.get(path) for path in wanted} == wanted
    assert set(there) - set(wanted) == (gone if blocked else set())
    expected = {"swap1", "swap2", "chain2", "chain3", "edited2", "replaced", "replaced2", "flat/inside", "nest"}
    assert set(platform.commits(library.job, mark)) >= expected - {"nest"}
    sent = {one["path"].split(f"Files/{library.job}/")[1].split("/.olm-")[0]
            for one in platform.effects(library.job, mark) if one["operation"] in ("append", "append_flush")
            and ".olm-staging-" not in one["path"]}  # fmt: skip
    assert sent <= expected, "not a byte of what was only renamed"
    renamed = {path for path, (status, _) in library.statuses(document).items() if status == "renamed"}
    assert {"case.TXT", "a/new folder/yours", "flat2", *(f"deep/f{number}" for number in range(6))} <= renamed
    quiet = platform.mark()
    library.run("completed_with_failures" if blocked else "completed", deleted=deleted)
    assert not platform.commits(library.job, quiet)


def test_in_and_out_of_the_jobs_folder(platform: Platform) -> None:
    library = Library(platform, files=FILES)
    assert counted(library.run(folder="a")) == {"uploaded": 6}
    assert library.lake() == library.holds("a")
    library.move("a/f0", "b")
    library.move("top.txt", "a")
    library.move("b/deep", "a")
    library.rename("a/f1", "renamed")
    assert counted(library.run(folder="a")) == {"uploaded": 7, "renamed": 1, "deleted": 1}
    assert library.lake() == library.holds("a")
    library.move("a/deep", "")
    assert counted(library.run(folder="a")) == {"deleted": 6}
    assert library.lake() == library.holds("a")


def test_include_and_exclude(platform: Platform) -> None:
    library = Library(platform, files={**FILES, "a/dot.": b"dot", "a/no.tmp": b"no"})
    library.run(include=["a/**", "*.txt"], exclude=["**/*.tmp", "a/dot."])
    wanted = {f"a/f{number}" for number in range(6)} | {"top.txt", "other.txt"}
    assert set(library.lake()) == wanted
    library.rename("a/f0", "f0.tmp")
    library.rename("a/no.tmp", "yes")
    document = library.run(include=["a/**", "*.txt"], exclude=["**/*.tmp", "a/dot."])
    assert counted(document) == {"uploaded": 1, "deleted": 1}
    assert set(library.lake()) == wanted - {"a/f0"} | {"a/yes"}


@pytest.mark.parametrize("late", ["walk", "next"])
@pytest.mark.parametrize("mode", ["full", "incremental"])
def test_changes_while_it_is_walked_and_read(platform: Platform, mode: str, late: str) -> None:
    library = Library(platform, files=FILES)
    if mode == "incremental":
        library.run()
        library.apply(*({"op": "touch", "path": path} for path in library.holds()))
    graph = platform.emulators.graph
    graph.behave(most_page_items=4, late_changes=late)
    graph.reset_counters()
    graph_faults(platform, {"operation": "delta", "fault": "latency", "latency_ms": 150})
    run = platform.start(library.spec(mode=mode))
    until(lambda: walked(platform) >= 3, "the middle of the walk")
    assert platform.post("/migrations", library.spec(mode=mode)).status == 409, "one run of a job at a time"
    library.rename("a", "renamed")
    library.delete("b/deep/f1", "top.txt")
    library.put({"other.txt": b"edited", "late/new": b"new", "b/deep/f2": b"edited", "top.txt": b"another item"})
    document = platform.wait(run, "completed", "completed_with_failures")
    assert {code for _, code in library.statuses(document).values()} <= {None, "source_gone", "source_not_gone"}
    platform.emulators.set_faults([])
    library.run()
    assert library.lake() == library.holds()
    assert library.run()["progress"]["planned"] == 0


# -- what the service does ---------------------------------------------------------------------------------------------


def test_a_feed_that_begins_again(platform: Platform) -> None:
    library = Library(platform, files=FILES)
    graph = platform.emulators.graph
    graph.behave(most_page_items=4)
    graph_faults(platform, {"operation": "delta", "path": f"*{library.name}*", "fault": "resync", "after": 4,
                            "times": 1})  # fmt: skip
    assert counted(library.run()) == {"uploaded": len(FILES)}
    assert platform.emulators.fault_hits() == [1]
    assert library.lake() == library.holds()
    # The link of the last run is no longer good, and what has happened since can only be told from the whole.
    library.rename("a", "renamed")
    library.delete("top.txt")
    graph.expire_tokens(library.name)
    mark = platform.mark()
    assert counted(library.run()) == {"renamed": 6, "deleted": 1}
    assert library.lake() == library.holds()
    assert platform.bytes_uploaded(library.job, mark) == 0
    library.delete("b/deep/f0")
    library.apply(*({"op": "touch", "path": path} for path in library.holds()))
    graph_faults(platform, {"operation": "delta", "path": f"*{library.name}*", "fault": "resync", "after": 2,
                            "times": 1})  # fmt: skip
    assert counted(library.run()) == {"deleted": 1}
    assert platform.emulators.fault_hits() == [1]
    assert library.lake() == library.holds()


def test_a_download_is_taken_up_at_a_new_address(platform: Platform) -> None:
    library = Library(platform, files={"big.bin": 9 * 1024 * 1024})
    platform.emulators.graph.behave(retry_after_s=1)
    graph_faults(
        platform,
        {"operation": "download", "fault": "short_body", "times": 1},
        {"operation": "download", "fault": "throttle", "times": 1, "retry_after_s": 1},
    )
    run = platform.start(library.spec(verify="all"))
    until(lambda: platform.emulators.fault_hits() == [1, 1], "the download to break off")
    platform.emulators.graph.reset_counters()
    platform.emulators.graph.expire_downloads()
    document = platform.wait(run, "completed")
    assert library.lake() == library.holds()
    assert platform.emulators.graph.counters()["requests"]["content"] == 1, "for another address"
    (item,) = platform.manifest(document["id"])["items"]
    assert item["attempts"] == 1
    assert platform.bytes_uploaded(library.job) == 9 * 1024 * 1024


def test_bytes_that_are_not_those_announced(platform: Platform) -> None:
    library = Library(platform, files={"once.pdf": 5000, "always.pdf": 5000})
    graph_faults(
        platform,
        {"operation": "download", "path": "*/once.pdf", "fault": "corrupt_body", "times": 1},
        {"operation": "download", "path": "*/always.pdf", "fault": "corrupt_body"},
    )
    document = library.run("completed_with_failures")
    assert library.statuses(document) == {
        "once.pdf": ("uploaded", None), "always.pdf": ("failed", "integrity_mismatch"),
    }  # fmt: skip
    assert set(library.lake()) == {"once.pdf"}
    platform.emulators.set_faults([])
    assert counted(library.run()) == {"uploaded": 1}, "what failed is in the next run's plan"
    assert library.lake() == library.holds()


SPECIALS = {
    "Notebook 1": ("skipped", "package_not_a_file"), "Notebook 1/Section.one": ("skipped", "package_not_a_file"),
    "Notebook 1/Open Notebook.onetoc2": ("skipped", "package_not_a_file"),
    "Shortcut 1": ("skipped", "shortcut_not_followed"), "Special/malware 1.exe": ("failed", "malware_detected"),
    "Special/dlp_blocked 1.pdf": ("failed", "blocked_by_policy"), "Special/locked 1.xlsx": ("failed", "locked"),
    "Special/checked_out 1.docx": ("uploaded", None), "Special/hash_pending 1.pdf": ("uploaded", None),
    "Special/empty 1.txt": ("uploaded", None), "Special/ends in a dot 1.": ("uploaded", None),
    "Folder 1./inside.txt": ("uploaded", None), "Case 1/upper/Report.TXT": ("uploaded", None),
    "Case 1/lower/report.txt": ("uploaded", None),
}  # fmt: skip


def test_every_special_item_by_name(platform: Platform) -> None:
    library = Library(platform, "Documents")
    document = library.run("completed_with_failures", verify="all")
    manifest = platform.manifest(document["id"])
    items = {item["path"]: item for item in manifest["items"]}
    statuses = library.statuses(document)
    assert {path: statuses[path] for path in SPECIALS} == SPECIALS
    assert {path for path, (status, _) in statuses.items() if status == "failed"} == {
        path for path, (status, _) in SPECIALS.items() if status == "failed"
    }
    assert {item["error_detail"] for item in items.values() if item["status"] == "failed"} >= {
        "SharePoint found malware in the file and does not give it out"
    }
    assert items["Special/ends in a dot 1."]["target"].endswith("/Special/ends in a dot 1%2E")
    assert items["Folder 1./inside.txt"]["target"].endswith("/Folder 1%2E/inside.txt")
    assert items["Special/hash_pending 1.pdf"]["source"]["hash_checked"] is False
    promoted = {path: item for path, item in items.items() if "/promoted " in path}
    assert len(promoted) == 2
    for item in promoted.values():
        source = item["source"]
        assert (item["status"], source["rewritten"]) == ("uploaded", True)
        assert source["received_size"] == item["size_bytes"] == source["announced_size"] + 137
    there = library.lake()
    lake_names = {path: item["target"].split(f"Files/{library.job}/")[1] for path, item in items.items()}
    holds = library.holds()
    assert there == {lake_names[path]: holds[path] for path, item in items.items() if item["status"] == "uploaded"}, (
        "even of what SharePoint rewrites, the lake has what a download gives"
    )
    listed = platform.get(f"/migrations/{document['id']}/items?top=1000").json["value"]
    assert {one["path"] for one in listed} == set(items)
    # The failed ones hold up nothing, and are tried again by each run; the skipped are not told again.
    library.put({"Special/later.txt": b"later"})
    again = library.run("completed_with_failures")
    failed = {path for path, (status, _) in SPECIALS.items() if status == "failed"}
    assert library.statuses(again) == {"Special/later.txt": ("uploaded", None)} | {
        path: SPECIALS[path] for path in failed
    }
    for path, mark in (("malware 1.exe", "malware"), ("dlp_blocked 1.pdf", "dlp_blocked"), ("locked 1.xlsx", "locked")):
        platform.emulators.graph.mark("Documents", f"Special/{path}", mark, on=False)
    answer = platform.post(f"/migrations/{again['id']}/retry-failed")
    assert answer.status == 202, answer.body
    mended = platform.wait(again["id"], "completed")
    assert counted(mended) == {"uploaded": 4}
    assert library.run()["progress"]["planned"] == 0


def test_what_sharepoint_rewrites_fails_where_the_job_says_so(platform: Platform) -> None:
    library = Library(platform, "Documents")
    document = library.run("completed_with_failures", sharepoint_rewrites="fail", include=["Special/promoted*"])
    assert set(library.statuses(document).values()) == {("failed", "sharepoint_rewrote")}
    assert library.lake() == {}


def test_a_service_that_throttles_from_the_first_request(platform: Platform) -> None:
    library = Library(platform, files=FILES)
    platform.emulators.graph.reset_counters()
    platform.emulators.graph.behave(throttle_first=4, retry_after_s=1)
    assert counted(library.run()) == {"uploaded": len(FILES)}
    assert library.lake() == library.holds()
    counters = platform.emulators.graph.counters()
    assert sum(counters["throttled"].values()) >= 4
    assert counters["undecorated"] == 0, "who asks says so in the form that SharePoint prefers"


# -- the job and its runs ----------------------------------------------------------------------------------------------


def test_a_schedule_follows_the_library(platform: Platform) -> None:
    library = Library(platform, files={"one": b"1", "two": b"2"})
    spec = library.spec(schedule="* * * * * *", verify="none")
    assert platform.call("PUT", f"/schedules/{library.job}", spec).status == 201
    until(lambda: library.lake() == library.holds(), "the first run")
    library.rename("one", "renamed")
    library.put({"three": b"3"})
    until(lambda: library.lake() == library.holds(), "a later one")
    assert platform.call("DELETE", f"/schedules/{library.job}").status == 204
    runs = f"/migrations?name={library.job}&top=100"
    until(lambda: all(run["status"] == "completed" for run in platform.get(runs).json["value"]), "the last to end")
    assert platform.commits(library.job) == {"one": 1, "two": 1, "three": 1, "renamed": 1}


def test_a_cancel_while_the_library_is_walked(platform: Platform) -> None:
    library = Library(platform, files=FILES)
    graph = platform.emulators.graph
    graph.behave(most_page_items=1)
    graph.reset_counters()
    graph_faults(platform, {"operation": "delta", "fault": "latency", "latency_ms": 300})
    run = platform.start(library.spec())
    until(lambda: walked(platform) >= 3, "the middle of the walk")
    assert platform.post(f"/migrations/{run}/cancel").status == 202
    document = platform.wait(run, "cancelled")
    assert document["progress"]["planned"] == 0
    assert walked(platform) < len(FILES), "it did not walk to the end first"
    platform.emulators.set_faults([])
    assert counted(library.run()) == {"uploaded": len(FILES)}
    assert library.lake() == library.holds()


@pytest.mark.parametrize(("changes", "field"), [
    ({"site": "contoso.sharepoint.com:/sites/nowhere"}, "source.site"), ({"site": "no site"}, "source.site"),
    ({"library": "Nothing"}, "source.library"), ({"folder": "not/there"}, "source.folder"),
    ({"folder": "file.txt"}, "source.folder"), ({"folder": "a/../b"}, "source.folder"),
    ({"credential": "unheard_of"}, "source.credential"), ({"site": ""}, "source.site"),
])  # fmt: skip
def test_a_spec_that_names_what_is_not_there_is_refused(platform: Platform, changes: Any, field: str) -> None:
    library = Library(platform, "Invoices")
    spec = library.spec()
    spec["source"] = {**spec["source"], **changes}
    answer = platform.post("/migrations", spec)
    assert (answer.status, answer.fields) == (400, [field]), answer.body
    several = {**spec, "source": None, "sources": [
        {"type": "folder", "path": str(platform.source("beside")), "target_path": "a"},
        {**spec["source"], "target_path": "b"},
    ]}  # fmt: skip
    answer = platform.post("/migrations", several)
    assert (answer.status, answer.fields) == (400, [field.replace("source", "sources[1]", 1)]), answer.body


def test_without_a_grant_the_run_says_what_to_grant(platform: Platform) -> None:
    library = Library(platform, files={"a": b"1"})
    client = platform.emulators.addresses["clients"]["migrator"]["client_id"]
    platform.emulators.graph.grant(client, SITE, None)
    try:
        document = library.run("failed")
    finally:
        platform.emulators.graph.grant(client, SITE, "read")
    assert document["error"]["code"] == "permission_denied"
    assert "Sites.Selected" in document["error"]["message"]
    assert "POST /sites/" in document["error"]["message"]
    assert counted(library.run()) == {"uploaded": 1}


def test_ten_kills_at_random_moments_of_an_incremental_run(platform: Platform) -> None:
    drawn = random.Random(20261121)
    library = Library(platform, files={f"d{number % 6}/f{number:03d}": 400 for number in range(120)})
    library.run(verify="none")
    library.rename("d0", "renamed")
    library.put({f"d1/f{number:03d}": 500 for number in range(1, 120, 6)})
    library.put({f"new/f{number}": 300 for number in range(30)})
    library.delete("d2", *(f"d3/f{number:03d}" for number in range(3, 60, 6)))
    library.rename("d1/f001", "edited and renamed")
    platform.emulators.graph.behave(most_page_items=30)
    # So slow that the run cannot end before the last kill.
    slow = [{"fault": "latency", "operation": one, "latency_ms": 400} for one in (
        "create", "append", "append_flush", "rename", "delete", "list", "properties")]  # fmt: skip
    slow.append({"service": "graph", "fault": "latency", "latency_ms": 30})
    platform.emulators.set_faults([
        *slow, {"service": "graph", "operation": "delta", "fault": "latency", "latency_ms": 300},
    ])  # fmt: skip
    mark = platform.mark()
    run = platform.start(library.spec(limits={"batch_items": 12, "parallel_batches": 2, "concurrency": 3}))
    in_flight: Counter[str] = Counter()
    hit: Counter[str] = Counter()
    for kill in range(10):
        if kill == 3:
            platform.emulators.set_faults(slow)
        if kill < 3:
            # The walk is short beside the transfer, so that chance alone would seldom meet it.
            until(lambda: any(name == "index_source" for name, _ in queued(platform)), "the walk")
        time.sleep(drawn.uniform(0.05, 0.5) if kill < 3 else drawn.uniform(0.3, 2.5))
        platform.kill_host()
        assert not has_ended(platform, run), "the run ended before the last kill"
        hit.update({name for name, _ in queued(platform)})
        in_flight.update(set(in_flight_items(platform)))
        platform.start_host()
    assert {"index_source", "transfer_batch"} <= set(hit), f"the kills missed a step: {hit}"
    platform.emulators.set_faults([])
    document = platform.wait(run, "completed")
    assert library.lake() == library.holds()
    assert counted(document) == {"uploaded": 50, "renamed": 20, "deleted": 30}
    commits = platform.commits(library.job, mark)
    too_often = {path: count for path, count in commits.items() if count > 1 + in_flight[path]}
    assert not too_often, "uploaded more often than its batch was in flight at a kill"
    renames = {path for path in commits if path.startswith("renamed/")}
    sent = {one["path"] for one in platform.effects(library.job, mark) if one["operation"] == "append_flush"}
    assert len(renames) == 20
    assert not any("/renamed/" in path for path in sent)
    quiet = platform.mark()
    assert library.run()["progress"]["planned"] == 0
    assert platform.bytes_uploaded(library.job, quiet) == 0


def test_nothing_that_the_runs_left_behind_holds_a_secret(shared: Platform) -> None:
    """Run store, state and log of all the runs above, with what went wrong in them."""
    answers = [shared.get(path).body for path in ("/migrations?top=500", "/schedules", "/health")]
    found = places(shared) | {f"answer {number}": body for number, body in enumerate(answers)}
    assert len(found) > 50
    secrets = (b"emulator-only-", b"eyJ", b"Bearer ", b"tempauth")
    assert not {place: secret for place, data in found.items() for secret in secrets if secret in data}
    assert any(b"drive_item_id" in data for data in found.values())
    assert json.loads(answers[0])["value"]
