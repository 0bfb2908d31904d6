"""A files migration's decisions: the order of things, stops, retries, generations."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from orchestrators.migrate_files import migrate_files
from shared.model.steps import no_counts, no_verification
from shared.names import (
    CANCEL_EVENT,
    COMMIT_LEDGER,
    PLAN_PAGE,
    PREPARE_RUN,
    SURVEY_TARGET,
    TRANSFER_PAGE,
    VERIFY_PAGE,
    WRITE_MANIFEST,
)
from tests.support.orchestration import Call, Lost, Never, Orchestration

GIVEN = {"run": "files-job-1", "round": 1, "kind": "files", "name": "job", "started_at": "2026-11-21T02:00:00Z",
         "base": None, "state": None}  # fmt: skip
ABORT = {"abort": {"code": "capacity_paused", "detail": "resume it"}}
TRANSIENT = {"transient": {"code": "throttled", "detail": "slow down", "retry_after_s": None}}
ITEMS = 10


class World:
    """A source of so many pages and what each function answers, unless a test says otherwise.

    ``override`` maps a function's name to a function of the call; what it returns is the answer, None the usual one.
    """

    def __init__(self, pages: int = 3, *, batches: int = 2, verify: str = "all", **decisions: Any) -> None:
        self.pages = pages
        self.batches = batches
        self.override: dict[str, Callable[[Call], Any]] = {}
        self.decisions = {
            "survey": True, "dry_run": False, "verify": verify, "sample_items": 15, "parallel_batches": 16,
            "retry": {"attempts": 3, "first_delay_s": 10.0}, **decisions,
        }  # fmt: skip

    def __call__(self, call: Call) -> Any:
        if call.name in self.override and (given := self.override[call.name](call)) is not None:
            return given
        return getattr(self, call.name)(call)

    def start(self, **changes: Any) -> Orchestration:
        return Orchestration(migrate_files, {**GIVEN, **changes}, self)

    def prepare_run(self, call: Call) -> Any:
        return {"ok": self.decisions}

    def survey_target(self, call: Call) -> Any:
        return {"ok": {"files": 5, "continuation": "more" if call.input["chunk"] == 0 else None}}

    def plan_page(self, call: Call) -> Any:
        number = int(call.input["cursor"] or 0) + 1
        counts = {**no_counts(), "planned": ITEMS, "bytes_planned": ITEMS}
        cursor = str(number) if number < self.pages else None
        return {"ok": {"page": call.input["page"], "batches": self.batches, "counts": counts, "cursor": cursor}}

    def transfer_page(self, call: Call) -> Any:
        return moved(ITEMS)

    def verify_page(self, call: Call) -> Any:
        return {"ok": {"result": {**no_verification(), "listed": ITEMS}, "counts": no_counts(), "position": None}}

    def commit_ledger(self, call: Call) -> Any:
        return {"ok": {"rows": 5}}

    def write_manifest(self, call: Call) -> Any:
        return {"ok": {"uploaded": 5}}


def moved(uploaded: int = 0, *, retry: list[int] | None = None, **changes: Any) -> dict[str, Any]:
    counts = {**no_counts(), "uploaded": uploaded, "bytes_done": uploaded, **changes.pop("counts", {})}
    return {
        "abort": None, "cancelled": False, "counts": counts, "retry": retry or [], "retry_after_s": None, **changes,
    }  # fmt: skip


def order(started: Orchestration) -> list[str]:
    """Functions in the order of their first call."""
    return list(dict.fromkeys(call.name for call in started.calls))


def test_the_steps_in_their_order() -> None:
    started = World(3).start()
    ended = started.run()
    assert order(started) == [
        PREPARE_RUN, SURVEY_TARGET, PLAN_PAGE, TRANSFER_PAGE, VERIFY_PAGE, COMMIT_LEDGER, WRITE_MANIFEST,
    ]  # fmt: skip
    assert [(given["survey"], given["chunk"], given["continuation"]) for given in started.inputs(SURVEY_TARGET)] == [
        ("before", 0, None), ("before", 1, "more"), ("after1", 0, None), ("after1", 1, "more"),
    ]  # fmt: skip
    assert [given["cursor"] for given in started.inputs(PLAN_PAGE)] == [None, "1", "2"]
    assert [given["page"] for given in started.inputs(VERIFY_PAGE)] == ["p00001", "p00002", "p00003"]
    assert [call.instance_id for call in started.named(TRANSFER_PAGE)] == [
        f"files-job-1-p0000{number}-a1" for number in (1, 2, 3)
    ]
    assert ended.error is None
    assert ended.output["status"] == "completed"
    assert ended.output["counts"]["uploaded"] == ended.output["counts"]["planned"] == 30
    assert ended.output["verification"]["verdict"] == "passed"
    assert ended.status["status"] == "completed"
    assert started.inputs(WRITE_MANIFEST)[0]["status"] == "completed"


def test_planning_goes_on_while_pages_are_moved() -> None:
    world = World(6)
    world.override[TRANSFER_PAGE] = lambda call: Never
    started = world.start()
    while started.step():
        pass
    assert len(started.named(PLAN_PAGE)) == 6
    assert [call.name for call in started.running] == [TRANSFER_PAGE] * 2
    assert started.statuses[-1]["children"] == ["files-job-1-p00001-a1", "files-job-1-p00002-a1"]


def test_parallel_batches_are_shared_by_the_pages_in_flight() -> None:
    started = World(1, parallel_batches=5).start()
    started.run()
    assert [given["parallel"] for given in started.inputs(TRANSFER_PAGE)] == [3]


def test_empty_pages_have_no_transfer() -> None:
    started = World(2, batches=0).start()
    assert started.run().output["status"] == "completed"
    assert started.named(TRANSFER_PAGE) == []


@pytest.mark.parametrize("verify", ["none", "listing", "sample", "all"])
def test_modes_of_verification(verify: str) -> None:
    started = World(3, verify=verify).start()
    started.run()
    shares = {given["sample_share"] for given in started.inputs(VERIFY_PAGE)}
    assert shares == {"none": set(), "listing": {0.0}, "sample": {0.5}, "all": {1.0}}[verify]
    assert ("after1" in {given["survey"] for given in started.inputs(SURVEY_TARGET)}) == (verify != "none")


def test_a_dry_run_changes_nothing_and_remembers_nothing() -> None:
    started = World(2, dry_run=True, batches=0).start()
    started.run()
    assert order(started) == [PREPARE_RUN, SURVEY_TARGET, PLAN_PAGE, WRITE_MANIFEST]


# -- stops ---------------------------------------------------------------------------------------------------------


STOPS = {
    "abort of the activity": (ABORT, "capacity_paused"),
    "a bug, or a worker lost three times": (Lost("boom"), "internal_error"),
    "a transient failure at every attempt": (TRANSIENT, "throttled"),
}


@pytest.mark.parametrize("how", STOPS)
@pytest.mark.parametrize("name", [PREPARE_RUN, SURVEY_TARGET, PLAN_PAGE, VERIFY_PAGE])
def test_whatever_stops_a_run_ledger_and_manifest_are_written(name: str, how: str) -> None:
    answer, code = STOPS[how]
    world = World(2)
    world.override[name] = lambda call: answer
    started = world.start()
    ended = started.run()
    assert code in (ended.error or "")
    assert [call.name for call in started.calls][-2:] == [COMMIT_LEDGER, WRITE_MANIFEST]
    assert started.inputs(WRITE_MANIFEST)[-1]["error"]["code"] == code
    assert ended.status["status"] == "failed"
    assert ended.status["error"]["code"] == code


@pytest.mark.parametrize("how", STOPS)
def test_a_planning_that_fails_waits_for_the_pages_that_are_moved(how: str) -> None:
    answer, code = STOPS[how]
    world = World(5)
    world.override[TRANSFER_PAGE] = lambda call: Never
    world.override[PLAN_PAGE] = lambda call: answer if call.input["cursor"] == "2" else None
    started = world.start()
    while started.step():
        pass
    assert started.ended is None, "two pages still run, and their uploads must be in ledger and manifest"
    assert len(started.running) == 2
    assert not started.named(COMMIT_LEDGER)
    for call in started.running:
        started.settle(call, moved(ITEMS))
    ended = started.run()
    assert code in (ended.error or "")
    assert ended.status["counts"]["uploaded"] == 2 * ITEMS
    assert len(started.named(TRANSFER_PAGE)) == 2


def test_an_abort_of_one_page_waits_for_the_other_and_starts_no_more() -> None:
    world = World(6)
    world.override[TRANSFER_PAGE] = lambda call: moved(3, **ABORT) if call.input["page"] == "p00002" else Never
    started = world.start()
    while started.step():
        pass
    assert started.ended is None
    assert not started.named(COMMIT_LEDGER)
    started.settle(started.running[0], moved(4))
    ended = started.run()
    assert "capacity_paused" in (ended.error or "")
    assert ended.status["counts"]["uploaded"] == 7
    assert len(started.named(TRANSFER_PAGE)) == 2


def test_a_page_that_breaks_stops_the_run_and_its_sibling_is_waited_for() -> None:
    world = World(6)
    world.override[TRANSFER_PAGE] = lambda call: Lost("broken") if call.input["page"] == "p00002" else Never
    started = world.start()
    while started.step():
        pass
    started.settle(started.running[0], moved(4))
    ended = started.run()
    assert "internal_error: broken" in (ended.error or "")
    assert ended.status["counts"]["uploaded"] == 4


def test_a_manifest_is_written_although_the_ledger_cannot_be() -> None:
    world = World(1)
    world.override[COMMIT_LEDGER] = lambda call: ABORT
    started = world.start()
    ended = started.run()
    assert started.inputs(WRITE_MANIFEST)[0]["status"] == "failed"
    assert started.inputs(WRITE_MANIFEST)[0]["error"]["code"] == "capacity_paused"
    assert "capacity_paused" in (ended.error or "")
    assert ended.status["status"] == "failed"


def test_the_first_error_is_the_one_that_is_told() -> None:
    world = World(1)
    world.override[PREPARE_RUN] = lambda call: {"abort": {"code": "first", "detail": ""}}
    world.override[COMMIT_LEDGER] = lambda call: ABORT
    assert "first" in (world.start().run().error or "")


@pytest.mark.parametrize("retries", [1, 2])
def test_a_transient_failure_of_planning_is_tried_again_on_timers(retries: int) -> None:
    world = World(3)
    failed: list[str] = []

    def answer(call: Call) -> Any:
        if call.input["cursor"] == "1" and len(failed) < retries:
            failed.append(call.input["page"])
            return TRANSIENT
        return None

    world.override[PLAN_PAGE] = answer
    started = world.start()
    ended = started.run()
    assert ended.output["status"] == "completed"
    assert ended.output["counts"]["planned"] == 30
    assert [given["page"] for given in started.inputs(PLAN_PAGE)] == (
        ["p00001"] + ["p00002"] * (retries + 1) + ["p00003"]
    )
    # The first try does not wait: it stands for the call that failed beside the transfers.
    assert [seconds for seconds, _ in started.timers] == [10.0][: retries - 1]


# -- cancel --------------------------------------------------------------------------------------------------------


def test_a_cancel_waits_for_what_runs_and_then_ends_without_verifying() -> None:
    world = World(8)
    world.override[TRANSFER_PAGE] = lambda call: Never
    started = world.start()
    started.run_until(lambda: len(started.named(PLAN_PAGE)) == 4)
    started.raise_event(CANCEL_EVENT)
    while started.step():
        pass
    assert started.ended is None
    for call in started.running:
        started.settle(call, moved(1, cancelled=True))
    ended = started.run()
    assert ended.output["status"] == "cancelled"
    assert ended.output["counts"]["uploaded"] == 2
    assert len(started.named(TRANSFER_PAGE)) == 2
    assert len(started.named(PLAN_PAGE)) < 8
    assert not started.named(VERIFY_PAGE)
    assert [call.name for call in started.calls][-2:] == [COMMIT_LEDGER, WRITE_MANIFEST]


def test_batches_that_saw_the_mark_cancel_too() -> None:
    world = World(8)
    world.override[TRANSFER_PAGE] = lambda call: moved(1, cancelled=True)
    assert world.start().run().output["status"] == "cancelled"


def test_a_cancel_ends_the_wait_before_a_retry_and_the_timer_is_withdrawn() -> None:
    world = World(1, retry={"attempts": 5, "first_delay_s": 500.0})
    world.override[TRANSFER_PAGE] = lambda call: moved(5, retry=[1])
    started = world.start()
    started.run_until(lambda: bool(started.timers))
    started.raise_event(CANCEL_EVENT)
    ended = started.run()
    assert ended.output["status"] == "cancelled"
    assert started.timers == [(500.0, True)]
    assert len(started.named(TRANSFER_PAGE)) == 1


def test_a_cancel_before_anything_was_planned() -> None:
    world = World(3)
    world.override[PREPARE_RUN] = lambda call: Never
    started = world.start()
    started.raise_event(CANCEL_EVENT)
    started.step()
    started.settle(started.running[0], {"ok": world.decisions})
    ended = started.run()
    assert ended.output["status"] == "cancelled"
    assert not started.named(TRANSFER_PAGE)


# -- retries -------------------------------------------------------------------------------------------------------


def test_failed_batches_and_only_they_are_tried_again_with_growing_pauses() -> None:
    world = World(3, retry={"attempts": 4, "first_delay_s": 10.0})
    left = {("p00001", 1): [1], ("p00003", 1): [0, 1], ("p00003", 2): [0], ("p00003", 3): [0]}
    world.override[TRANSFER_PAGE] = lambda call: moved(
        1, retry=left.get((call.input["page"], call.input["attempt"]), [])
    )
    started = world.start()
    ended = started.run()
    assert [
        (given["page"], given["attempt"], given["batches"], given["final"]) for given in started.inputs(TRANSFER_PAGE)
    ] == [
        ("p00001", 1, [0, 1], False), ("p00002", 1, [0, 1], False), ("p00003", 1, [0, 1], False),
        ("p00001", 2, [1], False), ("p00003", 2, [0, 1], False),
        ("p00003", 3, [0], False),
        ("p00003", 4, [0], True),
    ]  # fmt: skip
    assert [seconds for seconds, _ in started.timers] == [10.0, 20.0, 40.0]
    assert len({call.instance_id for call in started.named(TRANSFER_PAGE)}) == 7
    assert ended.output["status"] == "completed"


def test_the_service_is_given_the_time_that_it_asked_for() -> None:
    world = World(2)
    world.override[TRANSFER_PAGE] = lambda call: (
        moved(1, retry=[0], retry_after_s={"p00001": 90.0, "p00002": 300.0}[call.input["page"]])
        if call.input["attempt"] == 1 else None
    )  # fmt: skip
    started = world.start()
    started.run()
    assert [seconds for seconds, _ in started.timers] == [300.0]


def test_what_is_left_after_the_last_attempt_is_told() -> None:
    world = World(1)
    world.override[TRANSFER_PAGE] = lambda call: moved(1, retry=[1])
    started = world.start()
    assert started.run().output["status"] == "completed_with_failures"
    assert len(started.named(TRANSFER_PAGE)) == 3


def test_a_service_that_is_down_is_not_run_into() -> None:
    world = World(5, retry={"attempts": 2, "first_delay_s": 10.0})
    world.override[TRANSFER_PAGE] = lambda call: moved(0, retry=[0, 1]) if call.input["attempt"] == 1 else None
    started = world.start()
    started.run()
    assert [seconds for seconds, _ in started.timers] == [10.0] * 6


def test_failed_items_are_told() -> None:
    world = World(1)
    world.override[TRANSFER_PAGE] = lambda call: moved(9, counts={"failed": 1})
    ended = world.start().run()
    assert ended.output["status"] == "completed_with_failures"


# -- verification --------------------------------------------------------------------------------------------------


def test_verification_goes_on_from_where_a_page_ended_and_adds_up() -> None:
    world = World(6)
    steps = {"p00002": {0: 16, 16: 32, 32: None}, "p00005": {0: 16, 16: None}}

    def answer(call: Call) -> Any:
        position = steps.get(call.input["page"], {}).get(call.input["position"])
        result = {**no_verification(), "listed": 0 if call.input["position"] else ITEMS, "hashes_checked": 1}
        if call.input["page"] == "p00004":
            counts = {**no_counts(), "uploaded": -1, "failed": 1}
            return {"ok": {"result": {**result, "missing": 1}, "counts": counts, "position": None}}
        return {"ok": {"result": result, "counts": no_counts(), "position": position}}

    world.override[VERIFY_PAGE] = answer
    ended = world.start().run()
    verification = ended.output["verification"]
    assert (verification["listed"], verification["hashes_checked"], verification["missing"]) == (60, 9, 1)
    assert verification["verdict"] == "failed"
    assert ended.output["status"] == "completed_with_failures"
    assert ended.output["counts"]["uploaded"] == 59


def test_a_transient_failure_of_verification_is_tried_again() -> None:
    world = World(6)
    asked: list[str] = []

    def answer(call: Call) -> Any:
        asked.append(call.input["page"])
        return TRANSIENT if asked.count("p00003") < 3 and call.input["page"] == "p00003" else None

    world.override[VERIFY_PAGE] = answer
    ended = world.start().run()
    assert ended.output["verification"]["listed"] == 60
    assert asked.count("p00003") == 3


def test_a_verification_that_must_stop_waits_for_its_window() -> None:
    world = World(8)
    world.override[VERIFY_PAGE] = lambda call: ABORT if call.input["page"] == "p00001" else Never
    started = world.start()
    while started.step():
        pass
    assert started.ended is None
    assert len(started.running) == 3
    for call in started.running:
        started.settle(call, world.verify_page(call))
    assert "capacity_paused" in (started.run().error or "")
    assert len(started.named(VERIFY_PAGE)) == 4


# -- generations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def _small_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    # The package's attribute of that name is the function.
    monkeypatch.setattr(sys.modules["orchestrators.migrate_files"], "PAGES_PER_GENERATION", 4)


@pytest.mark.usefixtures("_small_generations")
@pytest.mark.parametrize("pages", [1, 3, 4, 5, 8, 11])
def test_generations_carry_everything(pages: int) -> None:
    world = World(pages, retry={"attempts": 3, "first_delay_s": 1.0})
    world.override[TRANSFER_PAGE] = lambda call: moved(
        *([4] if call.input["attempt"] == 1 else [6]), retry=[1] if call.input["attempt"] == 1 else []
    )
    started = world.start()
    ended = started.run()
    assert ended.output["status"] == "completed"
    assert ended.output["counts"]["planned"] == ended.output["counts"]["uploaded"] == 10 * pages
    assert ended.output["verification"]["listed"] == 10 * pages
    names = [f"p{number:05d}" for number in range(1, pages + 1)]
    assert [given["page"] for given in started.inputs(PLAN_PAGE)] == names
    assert [given["page"] for given in started.inputs(VERIFY_PAGE)] == names
    attempts = [(given["page"], given["attempt"]) for given in started.inputs(TRANSFER_PAGE)]
    assert sorted(attempts) == [(page, attempt) for page in names for attempt in (1, 2)]
    assert (
        len(started.named(PREPARE_RUN)) == len(started.named(COMMIT_LEDGER)) == len(started.named(WRITE_MANIFEST)) == 1
    )
    assert len({given["chunk"] for given in started.inputs(SURVEY_TARGET) if given["survey"] == "after1"}) == 2
    assert len(started.named(SURVEY_TARGET)) == 4
    assert [seconds for seconds, _ in started.timers if seconds >= 1.0] in ([1.0], []), "one pause for one attempt"


@pytest.mark.usefixtures("_small_generations")
def test_what_every_page_failed_is_tried_in_every_attempt_however_many_generations_that_takes() -> None:
    world = World(11, retry={"attempts": 4, "first_delay_s": 1.0})
    world.override[TRANSFER_PAGE] = lambda call: moved(1, retry=[0])
    started = world.start()
    ended = started.run()
    assert ended.output["status"] == "completed_with_failures"
    attempts = [(given["page"], given["attempt"]) for given in started.inputs(TRANSFER_PAGE)]
    assert len(attempts) == len(set(attempts)) == 44
    assert all(given["final"] == (given["attempt"] == 4) for given in started.inputs(TRANSFER_PAGE))


@pytest.mark.usefixtures("_small_generations")
def test_a_cancel_is_remembered_by_the_next_generation() -> None:
    world = World(20)
    started = world.start()
    started.run_until(lambda: started.generation == 2)
    world.override[TRANSFER_PAGE] = lambda call: Never
    started.run_until(lambda: bool(started.running))
    started.raise_event(CANCEL_EVENT)
    while started.step():
        pass
    for call in started.running:
        started.settle(call, moved(1, cancelled=True))
    assert started.run().output["status"] == "cancelled"


# Tasks, timers and further attempts of a page in one generation: planned and moved, or tried again, or verified.
TASKS_PER_PAGE = 3
# Surveys, preparation, ledger, manifest, and the pauses between attempts.
TASKS_BESIDE = 20


@pytest.mark.parametrize(
    ("pages", "trouble"),
    [(2000, "none"), (300, "every page is tried again"), (300, "verification takes several steps"),
     (150, "the service is down")],
)  # fmt: skip
def test_no_generation_of_a_large_source_comes_near_a_thousand_tasks(
    pages: int, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaying is quadratic in a generation's length, so the bound is shown on short ones: it is linear in them."""
    module = sys.modules["orchestrators.migrate_files"]
    assert migrating_pages() * TASKS_PER_PAGE + TASKS_BESIDE < 1000
    monkeypatch.setattr(module, "PAGES_PER_GENERATION", 12)
    world = World(pages, retry={"attempts": 5, "first_delay_s": 1.0})
    if trouble == "every page is tried again":
        world.override[TRANSFER_PAGE] = lambda call: moved(1, retry=[0] if call.input["attempt"] < 4 else [])
    if trouble == "verification takes several steps":
        world.override[VERIFY_PAGE] = lambda call: {"ok": {
            "result": {**no_verification(), "listed": 0 if call.input["position"] else ITEMS}, "counts": no_counts(),
            "position": call.input["position"] + 16 if call.input["position"] < 64 else None,
        }}  # fmt: skip
    if trouble == "the service is down":
        world.override[TRANSFER_PAGE] = lambda call: moved(0, retry=[0]) if call.input["attempt"] < 4 else None
    started = world.start()
    ended = started.run()
    assert ended.output["status"] == "completed"
    assert ended.output["verification"]["listed"] == ITEMS * pages
    assert max(started.tasks_by_generation()) <= 12 * TASKS_PER_PAGE + TASKS_BESIDE
    assert len(started.histories) >= pages // 12


def migrating_pages() -> int:
    pages: int = sys.modules["orchestrators.migrate_files"].PAGES_PER_GENERATION  # type: ignore[attr-defined]
    return pages


def test_the_custom_status_stays_small() -> None:
    world = World(40)
    world.override[TRANSFER_PAGE] = lambda call: moved(1, retry=[0])
    started = world.start()
    started.run()
    assert max(len(json.dumps(status)) for status in started.statuses) < 4096
