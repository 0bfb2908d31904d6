"""One page's transfer: its window, its sums, and how it stops."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrators.transfer_page import transfer_page
from shared.model.steps import no_counts
from shared.names import TRANSFER_BATCH
from tests.support.orchestration import Call, Lost, Never, Orchestration


def page(batches: int, parallel: int = 3, attempt: int = 1) -> dict[str, Any]:
    return {"run": "run", "round": 1, "page": "p00001", "batches": list(range(batches)), "attempt": attempt,
            "final": False, "parallel": parallel}  # fmt: skip


def done(**changes: Any) -> dict[str, Any]:
    counts = {**no_counts(), "uploaded": 2, "bytes_done": 10, **changes.pop("counts", {})}
    return {"ok": {"abort": None, "cancelled": False, "counts": counts, "retry": 0, "retry_after_s": None, **changes}}


def start(answer: Any, batches: int = 7, **options: Any) -> Orchestration:
    return Orchestration(transfer_page, page(batches, **options), answer, "files-job-1-p00001-a1")


def test_every_batch_once_within_the_window() -> None:
    started = start(lambda call: Never)
    most = 0
    while started.running:
        most = max(most, len(started.running))
        # The last one first: the window must not wait for the oldest.
        started.settle(started.running[-1], done())
        started.step()
    ended = started.run()
    assert most == 3
    assert sorted(given["batch"] for given in started.inputs(TRANSFER_BATCH)) == list(range(7))
    assert {
        (given["run"], given["page"], given["attempt"], given["final"]) for given in started.inputs(TRANSFER_BATCH)
    } == {("run", "p00001", 1, False)}
    assert ended.output == {
        "abort": None, "cancelled": False, "counts": {**no_counts(), "uploaded": 14, "bytes_done": 70}, "retry": [],
        "retry_after_s": None,
    }  # fmt: skip
    assert started.statuses[-1]["counts"] == ended.output["counts"]


def test_no_batches_are_no_tasks() -> None:
    started = start(lambda call: done(), batches=0)
    assert started.run().output["counts"] == no_counts()
    assert started.calls == []


def test_what_is_to_be_tried_again_is_named_with_the_longest_wait_asked_for() -> None:
    answers = {
        0: done(retry=2, retry_after_s=5.0), 3: done(retry=1, retry_after_s=30.0), 2: done(retry=1),
        5: {"transient": {"code": "throttled", "detail": "", "retry_after_s": 7.0}},
        6: {"transient": {"code": "throttled", "detail": "", "retry_after_s": None}},
    }  # fmt: skip
    ended = start(lambda call: answers.get(call.input["batch"], done()), parallel=2).run()
    assert ended.output["retry"] == [0, 2, 3, 5, 6]
    assert ended.output["retry_after_s"] == 30.0
    assert ended.output["counts"]["uploaded"] == 10


@pytest.mark.parametrize("how", ["abort in the outcome", "abort of the activity", "lost", "cancelled"])
def test_a_stop_schedules_nothing_more_and_waits_for_what_runs(how: str) -> None:
    abort = {"code": "capacity_paused", "detail": "resume it"}
    stops = {
        "abort in the outcome": done(abort=abort), "abort of the activity": {"abort": abort},
        "lost": Lost("the worker was lost"), "cancelled": done(cancelled=True),
    }  # fmt: skip
    started = start(lambda call: stops[how] if call.input["batch"] == 0 else Never)
    while started.step():
        pass
    assert started.ended is None, "two batches still run"
    waiting = [call for call in started.running if call.input["batch"] != 0]
    assert [call.input["batch"] for call in waiting] == [1, 2]
    started.settle(waiting[1], done())
    started.settle(waiting[0], done(retry=1))
    output = started.run().output
    assert {call.input["batch"] for call in started.calls} == {0, 1, 2}
    assert output["counts"]["uploaded"] == 4 + (2 if how in ("abort in the outcome", "cancelled") else 0)
    assert output["retry"] == [1]
    assert output["cancelled"] == (how == "cancelled")
    if how == "cancelled":
        assert output["abort"] is None
    else:
        assert output["abort"]["code"] == ("internal_error" if how == "lost" else "capacity_paused")


def test_the_first_reason_to_stop_is_kept() -> None:
    def answer(call: Call) -> Any:
        batch = call.input["batch"]
        return {"abort": {"code": f"code_{batch}", "detail": ""}} if batch != 1 else Never

    started = start(answer)
    started.run_until(lambda: len(started.running) == 1)
    started.settle(started.running[0], {"abort": {"code": "later", "detail": ""}})
    assert started.run().output["abort"]["code"] == "code_0"


def test_a_lost_worker_is_replaced_before_it_counts() -> None:
    started = start(lambda call: Lost("lost") if call.attempt < 3 else done(), batches=4)
    output = started.run().output
    assert output["abort"] is None
    assert output["counts"]["uploaded"] == 8
    assert len(started.calls) == 12


def test_a_retry_within_a_full_window_does_not_mix_up_results() -> None:
    def answer(call: Call) -> Any:
        batch = call.input["batch"]
        if batch % 2 and call.attempt == 1:
            return Lost("lost")
        return done(retry=1 if batch == 4 else 0, counts={"uploaded": batch})

    output = start(answer, batches=9, parallel=4).run().output
    assert output["counts"]["uploaded"] == sum(range(9))
    assert output["retry"] == [4]


def test_a_batch_whose_time_was_up_is_delivered_again_beside_the_others() -> None:
    deliveries: list[int] = []

    def answer(call: Call) -> Any:
        deliveries.append(call.input["batch"])
        if call.input["batch"] == 1 and deliveries.count(1) < 4:
            return done(unfinished=True, counts={"uploaded": 0, "bytes_done": 0})
        return done()

    ended = start(answer, batches=3, parallel=2).run()
    assert sorted(deliveries) == [0, 1, 1, 1, 1, 2]
    assert ended.output["counts"]["uploaded"] == 6
    assert ended.output["retry"] == []


def test_what_is_unfinished_is_not_delivered_again_once_the_run_has_to_stop() -> None:
    deliveries: list[int] = []

    def answer(call: Call) -> Any:
        deliveries.append(call.input["batch"])
        if call.input["batch"] == 0:
            return done(unfinished=True)
        return done(abort={"code": "capacity_paused", "detail": "x"})

    ended = start(answer, batches=2, parallel=2).run()
    assert ended.output["abort"]["code"] == "capacity_paused"
    assert deliveries.count(0) <= 2


def test_moves_of_the_concurrency_are_kept_once_in_order_and_not_all() -> None:
    def moved(*numbers: int) -> dict[str, Any]:
        changes = [{"at": f"2026-11-21T02:00:{number:02d}.000Z", "level": number, "reason": "r"} for number in numbers]
        return {"level": numbers[-1], "reason": "r", "changes": changes}

    answers = {0: done(concurrency=moved(1, 3)), 1: done(concurrency=moved(2, 3)),
               2: done(concurrency=moved(*range(10, 40)))}  # fmt: skip
    ended = start(lambda call: answers[call.input["batch"]], batches=3, parallel=1)
    output = ended.run().output
    assert [change["level"] for change in output["concurrency_changes"]] == list(range(20, 40))
    assert [change["level"] for change in ended.statuses[1]["concurrency"]["changes"]] == [1, 2, 3]
