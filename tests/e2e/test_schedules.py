"""Schedules: kept, shown, started when due, never two of one job at once, and a missed one once."""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.platform import Platform, make_files, running, until

_NEVER = "0 0 0 1 1 *"


@pytest.fixture(scope="module")
def ticking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """A platform whose timer looks every second."""
    with running(tmp_path_factory.mktemp("ticking"), SCHEDULE_TICK="* * * * * *") as platform:
        yield platform


def _runs(platform: Platform, name: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = platform.get(f"/migrations?name={name}&top=500").json["value"]
    return found


def test_put_get_delete(ticking: Platform) -> None:
    make_files(ticking.source("kept"), 2)
    spec = ticking.spec("kept", schedule=_NEVER)
    assert ticking.call("PUT", "/schedules/kept", spec).status == 201
    assert ticking.call("PUT", "/schedules/kept", spec).status == 200
    (shown,) = ticking.get("/schedules").json["value"]
    assert (shown["name"], shown["schedule"], shown["last_run"]) == ("kept", _NEVER, None)
    assert shown["next_at"].endswith("-01-01T00:00:00+00:00")
    assert ticking.call("DELETE", "/schedules/kept").status == 204
    assert ticking.get("/schedules").json == {"value": []}
    assert ticking.call("DELETE", "/schedules/kept").status == 404
    assert ticking.post("/schedules/kept/run").status == 404
    assert _runs(ticking, "kept") == []


@pytest.mark.parametrize(("changes", "named"), [
    ({"schedule": "0 0 25 * * *"}, "schedule"), ({"schedule": None}, "schedule"), ({"schedule": "soon"}, "schedule"),
    ({"name": "another"}, "name"), ({"verify": "x"}, "verify"), ({"schedule": "0 0 0 30 2 *"}, "schedule"),
])  # fmt: skip
def test_a_bad_schedule_is_refused(ticking: Platform, changes: dict[str, object], named: str) -> None:
    spec = {**ticking.spec("bad", schedule=_NEVER), **changes}
    answer = ticking.call("PUT", "/schedules/bad", spec)
    assert (answer.status, answer.fields) == (400, [named])
    assert ticking.call("PUT", "/schedules/Bad%20Name", spec).status == 404
    assert ticking.get("/schedules").json == {"value": []}


def test_run_now(ticking: Platform) -> None:
    make_files(ticking.source("now"), 3)
    ticking.call("PUT", "/schedules/now", ticking.spec("now", schedule=_NEVER))
    answer = ticking.post("/schedules/now/run")
    assert answer.status == 202
    ticking.wait(answer.json["id"], "completed")
    (shown,) = ticking.get("/schedules").json["value"]
    assert shown["last_run"] == answer.json["id"]
    ticking.call("DELETE", "/schedules/now")


def test_the_timer_starts_what_is_due_and_one_run_at_a_time(ticking: Platform) -> None:
    """The job takes longer than its period: occurrences that find it alive are passed over."""
    make_files(ticking.source("due"), 30)
    ticking.emulators.set_faults([{"fault": "latency", "latency_ms": 100}])
    spec = ticking.spec("due", schedule="* * * * * *", limits={"concurrency": 2})
    assert ticking.call("PUT", "/schedules/due", spec).status == 201
    until(lambda: "still alive" in (ticking.get("/schedules").json["value"][0]["last_result"] or ""), "one passed over")
    alive = 0
    while len(runs := _runs(ticking, "due")) < 3:
        alive = max(alive, sum(run["status"] in ("planning", "transferring", "verifying") for run in runs))
    assert alive == 1
    assert ticking.call("DELETE", "/schedules/due").status == 204
    ticking.emulators.set_faults([])
    until(lambda: all(run["status"] == "completed" for run in _runs(ticking, "due")), "the last run")
    spans = sorted((str(run["started_at"]), str(run["ended_at"])) for run in _runs(ticking, "due"))
    assert all(ended <= started for (_, ended), (started, _) in pairwise(spans))
    count = len(spans)
    time.sleep(2.5)
    assert len(_runs(ticking, "due")) == count, "a deleted schedule starts nothing"


def test_a_schedule_that_is_replaced_while_it_starts_stays_replaced(ticking: Platform) -> None:
    """The timer is nearly always in the middle of a start here; what it notes must not bring the old schedule back."""
    make_files(ticking.source("replaced"), 2)
    assert ticking.call("PUT", "/schedules/replaced", ticking.spec("replaced", schedule="* * * * * *")).status == 201
    ticking.emulators.set_faults([{"fault": "latency", "operation": "properties", "latency_ms": 400}])
    until(lambda: _runs(ticking, "replaced"), "the first run")
    answer = ticking.call("PUT", "/schedules/replaced", ticking.spec("replaced", schedule=_NEVER, verify="none"))
    assert answer.status == 200
    # Time for every start that was under way to come to its end.
    time.sleep(2.5)
    ticking.emulators.set_faults([])
    (shown,) = ticking.get("/schedules").json["value"]
    assert (shown["schedule"], shown["spec"]["verify"]) == (_NEVER, "none")
    assert ticking.call("DELETE", "/schedules/replaced").status == 204
    until(lambda: all(run["status"] == "completed" for run in _runs(ticking, "replaced")), "the last run")


def test_a_schedule_that_is_deleted_while_it_is_run_stays_deleted(platform: Platform) -> None:
    """Starting by hand takes its time; what it notes at its end must not bring the schedule back."""
    make_files(platform.source("undone"), 2)
    spec = platform.spec("undone", schedule=_NEVER)
    assert platform.call("PUT", "/schedules/undone", spec).status == 201
    platform.emulators.set_faults([{"fault": "latency", "operation": "properties", "latency_ms": 2000}])
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(platform.post, "/schedules/undone/run")
        # Long enough to find the schedule, and far shorter than the look at the lake that follows.
        time.sleep(1.0)
        assert platform.call("DELETE", "/schedules/undone").status == 204
        assert not asked.done(), "the start is still on its way"
        answer = asked.result()
    platform.emulators.set_faults([])
    assert answer.status == 202
    assert platform.get("/schedules").json == {"value": []}
    platform.wait(answer.json["id"], "completed")


def test_a_missed_occurrence_fires_once(root: Path) -> None:
    with running(root, SCHEDULE_TICK="* * * * * *") as platform:
        make_files(platform.source("missed"), 3)
        assert platform.call("PUT", "/schedules/missed", platform.spec("missed", schedule=_NEVER)).status == 201
        platform.kill_host()
        # As if the host had been down over two new years.
        file = platform.store / "schedules" / "missed.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "considered_at": "2024-12-30T00:00:00+00:00"}))
        platform.start_host()
        until(lambda: [run["status"] for run in _runs(platform, "missed")] == ["completed"], "the missed run")
        platform.kill_host()
        platform.start_host()
        time.sleep(2.5)
        assert len(_runs(platform, "missed")) == 1


def test_a_spec_that_went_bad_holds_up_no_other(ticking: Platform) -> None:
    make_files(ticking.source("well"), 2)
    (ticking.sources / "gone").mkdir()
    for name in ("gone", "well"):
        spec = ticking.spec(name, schedule="* * * * * *")
        assert ticking.call("PUT", f"/schedules/{name}", spec).status == 201
    (ticking.sources / "gone").rmdir()

    def results() -> dict[str, str]:
        return {one["name"]: one["last_result"] or "" for one in ticking.get("/schedules").json["value"]}

    until(lambda: results()["gone"].startswith("refused: source.path"), "the refusal to be shown")
    until(lambda: _runs(ticking, "well"), "the other job")
    for name in ("gone", "well"):
        ticking.call("DELETE", f"/schedules/{name}")
