"""Pause, resume, cancel, retry-failed and purge: what each does, when it is refused, and what it leaves behind."""

import json
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_faults import restless
from tests.support.platform import Lake, Platform, compare, files_below, http, make_files, running, until

_SLOW = [{"fault": "latency", "latency_ms": 40}]
_LIMITS = {"batch_items": 5, "parallel_batches": 2, "concurrency": 2}


@pytest.fixture
def slow(platform: Platform) -> Iterator[Platform]:
    """The platform with a lake that takes its time, so that there is a middle of a run to act in."""
    platform.emulators.set_faults(_SLOW)
    yield platform
    platform.emulators.set_faults([])


def _act(platform: Platform, run: str, action: str, status: int) -> None:
    answer = platform.post(f"/migrations/{run}/{action}")
    assert answer.status == status, (action, answer.body)
    if status == 409:
        assert answer.error["code"] == "wrong_state"


def _await_idle(platform: Platform) -> None:
    """Wait until no activity is on its way any more."""

    def look() -> bool:
        with sqlite3.connect(f"file:{platform.state / 'host.db'}?mode=ro", uri=True) as database:
            (queued,) = database.execute("SELECT count(*) FROM activities").fetchone()
        database.close()
        return bool(queued == 0)

    until(look, "the activities to end")


def test_pause_holds_over_a_kill_and_resume_goes_on(slow: Platform) -> None:
    make_files(slow.source("pause"), 100)
    run = slow.start(slow.spec("pause", limits=_LIMITS))
    _act(slow, run, "resume", 409)
    slow.wait_uploaded(run, 5)
    _act(slow, run, "pause", 202)
    assert slow.status(run)["status"] == "paused"
    _act(slow, run, "pause", 409)
    _act(slow, run, "retry-failed", 409)
    assert slow.call("DELETE", f"/migrations/{run}").status == 409
    assert slow.get(f"/migrations/{run}/manifest").status == 409
    assert slow.post("/migrations", slow.spec("pause")).status == 409
    _await_idle(slow)
    mark = slow.mark()
    slow.kill_host()
    slow.start_host()
    # Long enough for many batches, if anything went on.
    time.sleep(1.0)
    assert slow.status(run)["status"] == "paused"
    assert slow.effects("pause", mark) == []
    held = slow.status(run)["progress"]
    assert 0 < held["uploaded"] < 100
    # What ended after the pause is in the lake, and counted when the run goes on.
    assert held["uploaded"] <= len(files_below(slow.lake("pause"))) < 100
    _act(slow, run, "resume", 202)
    slow.wait(run, "completed")
    assert set(slow.commits("pause").values()) == {1}
    slow.assert_agreement(run, "pause")
    assert not compare(slow.source("pause"), slow.lake("pause"))


def test_nothing_is_allowed_on_a_run_that_completed(platform: Platform) -> None:
    make_files(platform.source("done"), 3)
    run = platform.run(platform.spec("done"))["id"]
    for action in ("pause", "resume", "cancel", "retry-failed"):
        _act(platform, run, action, 409)
    assert platform.post(f"/migrations/{run}/explode").status == 404
    for method, path in (("POST", "/pause"), ("POST", "/resume"), ("POST", "/cancel"), ("POST", "/retry-failed"),
                         ("GET", ""), ("DELETE", ""), ("GET", "/manifest"), ("GET", "/items")):  # fmt: skip
        for nobody in ("files-nobody-20200101T000000Z", "x", "%2e%2e", "files-done-20200101T000000Z-p00001-a1"):
            answer = platform.call(method, f"/migrations/{nobody}{path}", raw=b"" if method == "POST" else None)
            assert (answer.status, answer.error["code"]) == (404, "not_found"), (method, path, nobody)


def test_cancel_leaves_the_truth_and_a_new_start_the_rest(slow: Platform) -> None:
    make_files(slow.source("cancel"), 100)
    spec = slow.spec("cancel", limits=_LIMITS)
    run = slow.start(spec)
    slow.wait_uploaded(run, 5)
    _act(slow, run, "cancel", 202)
    document = slow.wait(run, "cancelled")
    assert document["error"] is None
    manifest = slow.assert_agreement(run, "cancel")
    counts = manifest["counts"]
    assert set(counts) == {"items", "uploaded", "planned"}
    assert 0 < counts["uploaded"] < 100
    assert counts["uploaded"] == len(files_below(slow.lake("cancel")))
    for action in ("pause", "resume", "cancel", "retry-failed"):
        _act(slow, run, action, 409)
    again = slow.run(spec)
    assert again["progress"]["skipped"] == counts["uploaded"]
    assert again["progress"]["uploaded"] == counts["planned"]
    assert set(slow.commits("cancel").values()) == {1}
    slow.assert_agreement(again["id"], "cancel")


def test_cancel_while_paused(slow: Platform) -> None:
    make_files(slow.source("both"), 60)
    run = slow.start(slow.spec("both", limits=_LIMITS))
    slow.wait_uploaded(run, 5)
    _act(slow, run, "pause", 202)
    _act(slow, run, "cancel", 202)
    slow.wait(run, "cancelled", "paused")
    slow.wait(run, "cancelled")
    slow.assert_agreement(run, "both")


def test_cancel_before_anything_moved(platform: Platform) -> None:
    make_files(platform.source("early"), 20)
    # The target's folder is what is made first.
    platform.emulators.set_faults([{"fault": "latency", "operation": "create", "latency_ms": 1500}])
    run = platform.start(platform.spec("early"))
    _act(platform, run, "cancel", 202)
    platform.wait(run, "cancelled")
    platform.emulators.set_faults([])
    platform.assert_agreement(run, "early")
    assert not files_below(platform.lake("early"))
    assert platform.run(platform.spec("early"))["progress"]["uploaded"] == 20


def test_cancel_while_verifying(platform: Platform) -> None:
    """Reading everything back can take longer than moving it, so that too can be called off."""
    make_files(platform.source("checking"), 60)
    platform.emulators.set_faults([{"fault": "latency", "operation": "list", "latency_ms": 1500}])
    run = platform.start(platform.spec("checking", verify="all"))
    platform.wait(run, "verifying")
    _act(platform, run, "cancel", 202)
    platform.wait(run, "cancelled")
    platform.emulators.set_faults([])
    manifest = platform.assert_agreement(run, "checking")
    assert manifest["counts"] == {"items": 60, "uploaded": 60}
    assert manifest["verification"] is None or manifest["verification"]["verdict"] != "passed"


def test_cancel_while_waiting_for_another_attempt(root: Path) -> None:
    with running(root, RETRY_FIRST_DELAY_S="3000") as platform:
        source = platform.source("waiting")
        make_files(source, 10)
        (source / "restless.bin").write_bytes(bytes(20_000_000))
        with restless(source / "restless.bin"):
            run = platform.start(platform.spec("waiting"))
            until(lambda: platform.status(run)["phase"] == "retrying", "the retry")
            shown = platform.status(run)
            assert shown["status"] == "transferring"
            assert shown["progress"]["waiting_batches"] == 1
            _act(platform, run, "cancel", 202)
            platform.wait(run, "cancelled")
        manifest = platform.assert_agreement(run, "waiting")
        failed = [item["path"] for item in manifest["items"] if item["status"] == "failed"]
        assert failed == ["restless.bin"]
        assert platform.run(platform.spec("waiting"))["progress"]["uploaded"] == 1


def test_retry_failed_after_the_cause_was_mended(platform: Platform) -> None:
    source = platform.source("mend")
    make_files(source, 12)
    taken = [platform.lake("mend") / "d0" / "f0000.bin", platform.lake("mend") / "d1" / "f0001.bin"]
    for file in taken:
        file.parent.mkdir(parents=True)
        file.write_bytes(b"somebody else's")
    run = platform.run(platform.spec("mend", existing="fail", verify="all"), "completed_with_failures")["id"]
    manifest = platform.assert_agreement(run, "mend", lake_has_extra=["d0/f0000.bin", "d1/f0001.bin"])
    assert manifest["errors"] == {"target_exists": 2}
    for action in ("pause", "resume", "cancel"):
        _act(platform, run, action, 409)
    # One of the two causes is mended: the round ends with one failure, and everything else stays as it was.
    taken[0].unlink()
    _act(platform, run, "retry-failed", 202)
    document = platform.wait(run, "completed_with_failures")
    assert document["round"] == 2
    manifest = platform.assert_agreement(run, "mend", lake_has_extra=["d1/f0001.bin"])
    assert manifest["counts"] == {"items": 12, "uploaded": 11, "failed": 1}
    taken[1].unlink()
    mark = platform.mark()
    _act(platform, run, "retry-failed", 202)
    document = platform.wait(run, "completed")
    assert (document["id"], document["round"]) == (run, 3)
    assert document["progress"]["failed"] == 0
    assert document["progress"]["success_rate"] == 1.0
    assert platform.commits("mend", mark) == {"d1/f0001.bin": 1}
    manifest = platform.assert_agreement(run, "mend")
    assert manifest["counts"] == {"items": 12, "uploaded": 12}
    assert manifest["round"] == 3
    assert manifest["errors"] == {}
    assert not compare(source, platform.lake("mend"))
    assert len(platform.get("/migrations?name=mend").json["value"]) == 1
    _act(platform, run, "retry-failed", 409)
    again = platform.run(platform.spec("mend", existing="fail"))
    assert again["progress"]["skipped"] == 12


def test_a_cancel_that_came_too_late_is_no_wish_about_the_next_round(platform: Platform) -> None:
    make_files(platform.source("late"), 4)
    blocked = platform.lake("late") / "d0" / "f0000.bin"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"taken")
    run = platform.run(platform.spec("late", existing="fail"), "completed_with_failures")["id"]
    # What a cancel leaves that comes when the run has looked for the last time.
    (platform.store / "runs" / run / "cancel").write_bytes(b"{}")
    blocked.unlink()
    _act(platform, run, "retry-failed", 202)
    assert platform.wait(run, "completed")["round"] == 2
    platform.assert_agreement(run, "late")


def test_a_run_that_is_terminated_keeps_its_job_until_its_pages_end(slow: Platform) -> None:
    """The durable runtime ends the parent alone; two runs must not write to one target at the same time."""
    make_files(slow.source("terminated"), 100)
    spec = slow.spec("terminated", limits=_LIMITS)
    started = slow.post("/migrations", spec).json
    slow.wait_uploaded(started["id"], 5)
    assert http("POST", started["terminatePostUri"].replace("{text}", "enough"), b"").status == 202
    until(lambda: slow.status(started["id"])["status"] == "cancelled", "the termination")
    refused = slow.post("/migrations", spec)
    mark = slow.mark()
    assert (refused.status, refused.error["code"]) == (409, "job_busy")
    until(lambda: slow.effects("terminated", mark), "the page to go on")
    again = until(lambda: (answer := slow.post("/migrations", spec)).status == 202 and answer.json["id"], "its end")
    slow.wait(again, "completed")
    assert set(slow.commits("terminated").values()) == {1}
    assert not compare(slow.source("terminated"), slow.lake("terminated"))


def test_a_run_that_another_one_followed_is_not_retried(platform: Platform) -> None:
    """Its records would take the ledger back to what the lake no longer holds."""
    source = platform.source("superseded")
    make_files(source, 4)
    blocked = platform.lake("superseded") / "d0" / "f0000.bin"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"taken")
    spec = platform.spec("superseded", existing="fail")
    run = platform.run(spec, "completed_with_failures")["id"]
    platform.run({**spec, "dry_run": True}, "completed_with_failures")
    second = platform.run(spec, "completed_with_failures")["id"]
    answer = platform.post(f"/migrations/{run}/retry-failed")
    assert (answer.status, answer.error["code"]) == (409, "superseded")
    assert second in answer.error["message"]
    blocked.unlink()
    platform.run({**spec, "dry_run": True})
    assert platform.post(f"/migrations/{second}/retry-failed").status == 202, "a dry run moved nothing"
    platform.wait(second, "completed")


def test_two_retries_at_once(platform: Platform) -> None:
    from concurrent.futures import ThreadPoolExecutor

    make_files(platform.source("retries"), 4)
    blocked = platform.lake("retries") / "d0" / "f0000.bin"
    blocked.parent.mkdir(parents=True)
    blocked.write_bytes(b"taken")
    run = platform.run(platform.spec("retries", existing="fail"), "completed_with_failures")["id"]
    blocked.unlink()
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: platform.post(f"/migrations/{run}/retry-failed").status, range(4)))
    assert sorted(answers) == [202, 409, 409, 409]
    platform.wait(run, "completed")
    platform.assert_agreement(run, "retries")


def test_purge_removes_a_run_and_keeps_what_the_job_knows(platform: Platform) -> None:
    make_files(platform.source("purge"), 10)
    run = platform.run(platform.spec("purge"))["id"]
    answer = platform.call("DELETE", f"/migrations/{run}")
    assert answer.status == 200
    assert platform.get(f"/migrations/{run}").status == 404
    assert platform.get(f"/migrations/{run}/manifest").status == 404
    assert platform.call("DELETE", f"/migrations/{run}").status == 404
    assert platform.get("/migrations?name=purge").json["value"] == []
    assert not files_below(platform.store / "runs" / run)
    with sqlite3.connect(f"file:{platform.state / 'host.db'}?mode=ro", uri=True) as database:
        for table in ("instances", "history", "inputs", "inbox", "timers"):
            rows = database.execute(f"SELECT count(*) FROM {table} WHERE instance_id LIKE ?", (f"{run}%",)).fetchone()
            assert rows == (0,), table
    database.close()
    mark = platform.mark()
    assert platform.run(platform.spec("purge"))["progress"]["skipped"] == 10
    assert platform.effects("purge", mark) == []


def test_a_round_whose_start_was_cut_short_can_be_asked_for_again(platform: Platform) -> None:
    """A kill between writing the round down and starting it leaves a document that is ahead of the instance."""
    source = platform.source("cut-short")
    make_files(source, 3)
    Lake(platform.emulators).write("Files/cut-short/taken.bin", b"another")
    (source / "taken.bin").write_bytes(b"ours, and longer")
    run = platform.run(platform.spec("cut-short", existing="fail"), "completed_with_failures")["id"]
    stored = platform.store / "runs" / run / "run.json"
    stored.write_text(json.dumps({**json.loads(stored.read_bytes()), "round": 2}), encoding="utf-8")
    _act(platform, run, "retry-failed", 202)
    ended = platform.wait(run, "completed", "completed_with_failures")
    assert ended["round"] == 2
