"""An MLTable migration's decisions: the order of things, stops, retries, cancels, generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrators.migrate_asset import VERSIONS_PER_GENERATION, migrate_asset
from orchestrators.migrate_mltables import migrate_mltables
from shared.model.mltable_steps import outcome
from shared.model.steps import no_counts
from shared.names import (
    CANCEL_EVENT,
    CHECK_ASSET_FILES,
    COPY_ASSET_FILES,
    DISCOVER_ASSETS,
    FAIL_ASSET_VERSION,
    MIGRATE_ASSET,
    PLAN_ASSET_VERSION,
    PREPARE_MLTABLES,
    REGISTER_ASSET_VERSION,
    VALIDATE_ASSET_VERSION,
    WRITE_ASSET_REPORTS,
)
from tests.support.orchestration import Call, Lost, Never, Orchestration

RETRY = {"attempts": 3, "first_delay_s": 10.0}
ABORT = {"abort": {"code": "workspace_permission_denied", "detail": "give it the role"}}
TRANSIENT = {"transient": {"code": "throttled", "detail": "slow down", "retry_after_s": None}}
RUN = {"run": "mltable-job-1", "round": 1, "kind": "mltable", "name": "job", "started_at": "2026-11-21T02:00:00Z",
       "base": None, "state": None}  # fmt: skip
ASSET = {"run": "mltable-job-1", "round": 1, "group": 1, "versions": 2, "first": 0, "counts": no_counts(),
         "retry": RETRY}  # fmt: skip

Override = dict[str, Callable[[Call], Any]]


def settled(**counts: int) -> dict[str, Any]:
    return {"ok": outcome("settled", {**no_counts(), **counts})}  # type: ignore[typeddict-item]


def version_steps(call: Call) -> Any:
    """A version of two parts that goes through."""
    answers = {
        PLAN_ASSET_VERSION: {"ok": outcome("copy", no_counts(), parts=2, parallel=2)},
        COPY_ASSET_FILES: {"ok": outcome("check", {**no_counts(), "bytes_done": 5})},
        CHECK_ASSET_FILES: {"ok": outcome("register", no_counts())},
        REGISTER_ASSET_VERSION: {"ok": outcome("validate", no_counts())},
        VALIDATE_ASSET_VERSION: settled(uploaded=1),
        FAIL_ASSET_VERSION: settled(failed=1),
    }
    return answers[call.name]


def asset(override: Override | None = None, **changes: Any) -> Orchestration:
    def answer(call: Call) -> Any:
        found = (override or {}).get(call.name, lambda call: None)(call)
        return version_steps(call) if found is None else found

    return Orchestration(migrate_asset, {**ASSET, **changes}, answer, "mltable-job-1-p00001-a1")


def run(override: Override | None = None, groups: tuple[int, ...] = (1, 1, 1), **decisions: Any) -> Orchestration:
    made = {"dry_run": False, "parallel_assets": 2, "retry": RETRY, **decisions}
    done = {"counts": {**no_counts(), "uploaded": 1}, "abort": None, "cancelled": False}
    answers = {
        PREPARE_MLTABLES: {"ok": made},
        DISCOVER_ASSETS: {"ok": {"groups": list(groups), "counts": {**no_counts(), "planned": sum(groups)}}},
        MIGRATE_ASSET: done,
        WRITE_ASSET_REPORTS: {"ok": {"totals": {"uploaded": len(groups)}, "verification": {"verdict": "passed"}}},
    }

    def answer(call: Call) -> Any:
        found = (override or {}).get(call.name, lambda call: None)(call)
        return answers[call.name] if found is None else found

    return Orchestration(migrate_mltables, RUN, answer, "mltable-job-1")


# -- one asset ---------------------------------------------------------------------------------------------------------


def test_versions_one_after_the_other_each_step_in_order() -> None:
    started = asset()
    ended = started.run()
    one = [PLAN_ASSET_VERSION, COPY_ASSET_FILES, COPY_ASSET_FILES, CHECK_ASSET_FILES, REGISTER_ASSET_VERSION,
           VALIDATE_ASSET_VERSION]  # fmt: skip
    assert [call.name for call in started.calls] == one * 2
    assert [call.input["version"] for call in started.calls] == [0] * 6 + [1] * 6
    assert [given["part"] for given in started.inputs(COPY_ASSET_FILES)] == [0, 1, 0, 1]
    assert ended.output["counts"]["uploaded"] == 2
    assert ended.output["counts"]["bytes_done"] == 20


def test_a_version_that_a_step_settles_goes_no_further() -> None:
    started = asset({CHECK_ASSET_FILES: lambda call: settled(failed=1) if call.input["version"] == 0 else None})
    ended = started.run()
    assert [given["version"] for given in started.inputs(REGISTER_ASSET_VERSION)] == [1]
    assert (ended.output["counts"]["failed"], ended.output["counts"]["uploaded"]) == (1, 1)


def test_only_the_parts_that_failed_are_copied_again() -> None:
    started = asset(
        {COPY_ASSET_FILES: lambda call: TRANSIENT if call.input["part"] == 1 and call.task_id < 4 else None}, versions=1
    )
    started.run()
    assert [given["part"] for given in started.inputs(COPY_ASSET_FILES)] == [0, 1, 1]
    assert started.timers == [(10.0, False)]


def test_when_the_attempts_are_used_up_the_next_version_begins() -> None:
    started = asset({REGISTER_ASSET_VERSION: lambda call: TRANSIENT if call.input["version"] == 0 else None})
    ended = started.run()
    assert [seconds for seconds, _ in started.timers] == [10.0, 20.0]
    (failed,) = started.inputs(FAIL_ASSET_VERSION)
    assert (failed["step"], failed["version"], failed["error"]["code"]) == ("register", 0, "throttled")
    assert (ended.output["counts"]["failed"], ended.output["counts"]["uploaded"]) == (1, 1)


def test_copying_that_never_succeeds() -> None:
    started = asset({COPY_ASSET_FILES: lambda call: TRANSIENT}, versions=1)
    started.run()
    assert len(started.named(COPY_ASSET_FILES)) == 6
    assert started.inputs(FAIL_ASSET_VERSION)[0]["step"] == "copy"


@pytest.mark.parametrize("step", [PLAN_ASSET_VERSION, COPY_ASSET_FILES, VALIDATE_ASSET_VERSION])
def test_what_would_meet_every_version_ends_the_asset(step: str) -> None:
    started = asset({step: lambda call: ABORT})
    ended = started.run()
    assert ended.output["abort"]["code"] == "workspace_permission_denied"
    assert {call.input["version"] for call in started.calls} == {0}


def test_a_bug_is_no_silent_success() -> None:
    ended = asset({CHECK_ASSET_FILES: lambda call: Lost("boom")}).run()
    assert ended.output["abort"]["code"] == "internal_error"


def test_a_cancelled_version_is_the_last() -> None:
    started = asset({PLAN_ASSET_VERSION: lambda call: {"ok": outcome("settled", no_counts(), cancelled=True)}})
    assert started.run().output["cancelled"] is True
    assert len(started.calls) == 1


def test_many_versions_make_generations() -> None:
    started = asset({PLAN_ASSET_VERSION: lambda call: settled(skipped=1)}, versions=2 * VERSIONS_PER_GENERATION + 3)
    ended = started.run()
    assert ended.output["counts"]["skipped"] == 2 * VERSIONS_PER_GENERATION + 3
    assert started.generation == 3
    assert max(started.tasks_by_generation()) <= VERSIONS_PER_GENERATION


# -- the run -----------------------------------------------------------------------------------------------------------


def test_the_steps_in_their_order() -> None:
    started = run()
    ended = started.run()
    assert list(dict.fromkeys(call.name for call in started.calls)) == [
        PREPARE_MLTABLES, DISCOVER_ASSETS, MIGRATE_ASSET, WRITE_ASSET_REPORTS,
    ]  # fmt: skip
    assert [call.instance_id for call in started.named(MIGRATE_ASSET)] == [
        f"mltable-job-1-p0000{number}-a1" for number in (1, 2, 3)
    ]
    assert ended.output["status"] == ended.status["status"] == "completed"
    assert ended.status["totals"] == {"uploaded": 3}
    assert ended.status["verification"] == {"verdict": "passed"}


def test_no_more_assets_at_once_than_asked_for() -> None:
    started = run({MIGRATE_ASSET: lambda call: Never}, groups=(1,) * 5)
    while started.step():
        pass
    assert len(started.running) == 2


def test_failed_versions_are_told() -> None:
    failed = {"counts": {**no_counts(), "failed": 1}, "abort": None, "cancelled": False}
    started = run({MIGRATE_ASSET: lambda call: failed if call.input["group"] == 2 else None})
    assert started.run().output["status"] == "completed_with_failures"
    assert len(started.named(MIGRATE_ASSET)) == 3


def test_an_abort_waits_for_what_runs_and_starts_nothing_more() -> None:
    aborted = {"counts": no_counts(), "abort": ABORT["abort"], "cancelled": False}
    started = run({MIGRATE_ASSET: lambda call: aborted if call.input["group"] == 1 else None}, groups=(1,) * 6)
    ended = started.run()
    assert ended.error is not None
    assert "workspace_permission_denied" in ended.error
    assert len(started.named(MIGRATE_ASSET)) == 2
    assert started.inputs(WRITE_ASSET_REPORTS)[0]["error"]["code"] == "workspace_permission_denied"


@pytest.mark.parametrize("step", [PREPARE_MLTABLES, DISCOVER_ASSETS])
def test_a_run_that_cannot_begin_has_a_manifest(step: str) -> None:
    started = run({step: lambda call: ABORT})
    assert started.run().error is not None
    assert started.named(MIGRATE_ASSET) == []
    assert started.inputs(WRITE_ASSET_REPORTS)[0]["status"] == "failed"


def test_cancel() -> None:
    started = run({MIGRATE_ASSET: lambda call: Never}, groups=(1,) * 5)
    started.run_until(lambda: len(started.named(MIGRATE_ASSET)) == 2)
    started.raise_event(CANCEL_EVENT)
    while started.step():
        pass
    for call in started.named(MIGRATE_ASSET):
        started.settle(call, {"counts": no_counts(), "abort": None, "cancelled": True})
    assert started.run().output["status"] == "cancelled"
    assert len(started.named(MIGRATE_ASSET)) == 2


def test_a_source_without_what_was_asked_for() -> None:
    assert run(groups=()).run().output["status"] == "completed"
