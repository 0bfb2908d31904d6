"""A SQL migration's decisions: the order of things, stops, retries, cancels, generations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from orchestrators.migrate_sql import TABLES_PER_GENERATION, migrate_sql
from orchestrators.migrate_table import SLICES_PER_GENERATION, migrate_table
from shared.model.sql_steps import no_sql_counts, outcome
from shared.names import (
    CANCEL_EVENT,
    COMMIT_TABLE,
    EXTRACT_SLICE,
    EXTRACT_TABLE,
    FAIL_TABLE,
    MIGRATE_TABLE,
    PLAN_TABLE,
    PREPARE_SQL,
    WRITE_SQL_REPORTS,
)
from tests.support.orchestration import Call, Lost, Never, Orchestration

RETRY = {"attempts": 3, "first_delay_s": 10.0}
ABORT = {"abort": {"code": "authentication", "detail": "the password is wrong"}}
TRANSIENT = {"transient": {"code": "throttled", "detail": "slow down", "retry_after_s": None}}
RUN = {"run": "sql-job-1", "round": 1, "kind": "sql", "name": "job", "started_at": "2026-11-21T02:00:00Z",
       "base": None, "state": None}  # fmt: skip
TABLE = {"run": "sql-job-1", "round": 1, "table": 7, "retry": RETRY, "plan": None, "slice": 0,
         "counts": no_sql_counts()}  # fmt: skip

Override = dict[str, Callable[[Call], Any]]


def settled(**counts: int) -> dict[str, Any]:
    return {"ok": outcome("settled", {**no_sql_counts(), **counts})}  # type: ignore[typeddict-item]


def counted(next_step: Any, turn: int = 0, **counts: int) -> dict[str, Any]:
    return {"ok": outcome(next_step, {**no_sql_counts(), **counts}, turn=turn)}  # type: ignore[typeddict-item]


def table(override: Override | None = None, slices: int = 3, **changes: Any) -> Orchestration:
    """A table in slices that goes through."""
    answers = {
        PLAN_TABLE: {"ok": outcome("slices", slices=slices, parallel=2)},
        EXTRACT_TABLE: counted("commit", rows_done=5),
        EXTRACT_SLICE: counted("commit", rows_done=5),
        COMMIT_TABLE: settled(uploaded=1),
        FAIL_TABLE: settled(failed=1),
    }

    def answer(call: Call) -> Any:
        found = (override or {}).get(call.name, lambda call: None)(call)
        return answers[call.name] if found is None else found

    return Orchestration(migrate_table, {**TABLE, **changes}, answer, "sql-job-1-p00007-a1")


def run(override: Override | None = None, tables: int = 3, **decisions: Any) -> Orchestration:
    made = {"dry_run": False, "parallel_tables": 2, "tables": list(range(1, tables + 1)), "retry": RETRY,
            "counts": {**no_sql_counts(), "planned": tables}, **decisions}  # fmt: skip
    answers = {
        PREPARE_SQL: {"ok": made},
        MIGRATE_TABLE: {"counts": {**no_sql_counts(), "uploaded": 1, "rows_done": 2}, "abort": None,
                        "cancelled": False},
        WRITE_SQL_REPORTS: {"ok": {"totals": {"uploaded": tables}, "verification": {"verdict": "passed"}}},
    }  # fmt: skip

    def answer(call: Call) -> Any:
        found = (override or {}).get(call.name, lambda call: None)(call)
        return answers[call.name] if found is None else found

    return Orchestration(migrate_sql, RUN, answer, "sql-job-1")


# -- one table ---------------------------------------------------------------------------------------------------------


def test_plan_slices_commit() -> None:
    started = table()
    ended = started.run()
    assert [call.name for call in started.calls] == [PLAN_TABLE, *[EXTRACT_SLICE] * 3, COMMIT_TABLE]
    assert [given["slice"] for given in started.inputs(EXTRACT_SLICE)] == [0, 1, 2]
    assert ended.output["counts"]["rows_done"] == 15
    assert ended.output["counts"]["uploaded"] == 1
    assert ended.status["counts"]["rows_done"] == 15


def test_a_table_of_one_moment_is_one_activity() -> None:
    started = table({PLAN_TABLE: lambda call: {"ok": outcome("table")}})
    started.run()
    assert [call.name for call in started.calls] == [PLAN_TABLE, EXTRACT_TABLE, COMMIT_TABLE]


def test_a_load_by_slices_is_followed_by_what_changed_meanwhile() -> None:
    def plan(call: Call) -> Any:
        return {"ok": outcome("slices", slices=2)} if call.input["turn"] == 0 else {"ok": outcome("table", turn=1)}

    def commit(call: Call) -> Any:
        return {"ok": outcome("plan", turn=1)} if call.input["turn"] == 0 else None

    started = table({PLAN_TABLE: plan, COMMIT_TABLE: commit, EXTRACT_TABLE: lambda call: counted("commit", turn=1)})
    started.run()
    assert [(call.name, call.input["turn"]) for call in started.calls] == [
        (PLAN_TABLE, 0), (EXTRACT_SLICE, 0), (EXTRACT_SLICE, 0), (COMMIT_TABLE, 0),
        (PLAN_TABLE, 1), (EXTRACT_TABLE, 1), (COMMIT_TABLE, 1),
    ]  # fmt: skip


def test_only_the_slices_that_failed_are_read_again() -> None:
    started = table({EXTRACT_SLICE: lambda call: TRANSIENT if call.input["slice"] == 1 and call.task_id < 4 else None})
    started.run()
    assert [given["slice"] for given in started.inputs(EXTRACT_SLICE)] == [0, 1, 2, 1]
    assert started.timers == [(10.0, False)]


@pytest.mark.parametrize("step", [PLAN_TABLE, EXTRACT_SLICE, COMMIT_TABLE])
def test_when_the_attempts_are_used_up_the_table_has_failed(step: str) -> None:
    started = table({step: lambda call: TRANSIENT}, slices=1)
    ended = started.run()
    (failed,) = started.inputs(FAIL_TABLE)
    assert failed["error"]["code"] == "throttled"
    assert [seconds for seconds, _ in started.timers] == [10.0, 20.0]
    assert (ended.output["counts"]["failed"], ended.output["abort"]) == (1, None)


def test_a_slice_that_settles_its_table_ends_it() -> None:
    started = table({EXTRACT_SLICE: lambda call: settled(failed=1) if call.input["slice"] == 0 else None}, slices=50)
    ended = started.run()
    assert not started.named(COMMIT_TABLE)
    assert len(started.named(EXTRACT_SLICE)) <= 3
    assert ended.output["counts"]["failed"] == 1


@pytest.mark.parametrize(
    ("answer", "code"), [(ABORT, "authentication"), (Lost("division by zero\n  File secret.py"), "internal_error")]
)
def test_what_would_meet_every_table_is_handed_up(answer: Any, code: str) -> None:
    ended = table({EXTRACT_SLICE: lambda call: answer}).run()
    assert ended.output["abort"]["code"] == code
    assert "secret" not in ended.output["abort"]["detail"]


def test_many_slices_take_several_generations() -> None:
    started = table(slices=2 * SLICES_PER_GENERATION + 1)
    ended = started.run()
    numbers = [given["slice"] for given in started.inputs(EXTRACT_SLICE)]
    assert sorted(numbers) == list(range(2 * SLICES_PER_GENERATION + 1))
    assert [call.name for call in started.calls].count(PLAN_TABLE) == 1
    assert ended.output["counts"]["rows_done"] == 5 * len(numbers)
    assert max(started.tasks_by_generation()) < 1000


def test_a_cancelled_table_says_so() -> None:
    ended = table({EXTRACT_SLICE: lambda call: {"ok": outcome("settled", cancelled=True)}}).run()
    assert ended.output["cancelled"]


# -- a run -------------------------------------------------------------------------------------------------------------


def test_tables_in_a_window_then_reports() -> None:
    open_tables: list[Call] = []

    def later(call: Call) -> Any:
        open_tables.append(call)
        return Never

    started = run({MIGRATE_TABLE: later})
    started.run_until(lambda: len(open_tables) == 2)
    assert [call.instance_id for call in open_tables] == ["sql-job-1-p00001-a1", "sql-job-1-p00002-a1"]
    assert started.statuses[-1]["children"] == ["sql-job-1-p00001-a1", "sql-job-1-p00002-a1"]
    done = {"counts": {**no_sql_counts(), "uploaded": 1}, "abort": None, "cancelled": False}
    started.settle(open_tables[0], done)
    started.run_until(lambda: len(open_tables) == 3)
    for call in open_tables[1:]:
        started.settle(call, done)
    ended = started.run()
    assert ended.output["status"] == "completed"
    assert ended.output["counts"]["planned"] == 3
    assert [call.name for call in started.calls][-1] == WRITE_SQL_REPORTS


def test_five_hundred_tables_of_which_one_fails() -> None:
    def answer(call: Call) -> Any:
        name = "failed" if call.input["table"] == 250 else "uploaded"
        return {"counts": {**no_sql_counts(), name: 1}, "abort": None, "cancelled": False}

    started = run({MIGRATE_TABLE: answer,
                   WRITE_SQL_REPORTS: lambda call: {"ok": {"totals": {"failed": 1}, "verification": None}}},
                  tables=500, parallel_tables=8)  # fmt: skip
    ended = started.run()
    assert ended.output["status"] == "completed_with_failures"
    assert (ended.output["counts"]["uploaded"], ended.output["counts"]["failed"]) == (499, 1)
    assert sorted(given["table"] for given in started.inputs(MIGRATE_TABLE)) == list(range(1, 501))
    assert len(started.histories) == 1 + (500 - 1) // TABLES_PER_GENERATION
    assert max(started.tasks_by_generation()) < 1000
    assert len(started.named(PREPARE_SQL)) == 1


def test_an_abort_stops_what_has_not_begun_and_the_reports_are_written() -> None:
    aborted = {"counts": no_sql_counts(), "abort": ABORT["abort"], "cancelled": False}
    started = run({MIGRATE_TABLE: lambda call: aborted}, tables=9)
    ended = started.run()
    assert len(started.named(MIGRATE_TABLE)) == 2
    (report,) = started.inputs(WRITE_SQL_REPORTS)
    assert (report["status"], report["error"]["code"]) == ("failed", "authentication")
    assert ended.error is not None
    assert "the password is wrong" in ended.error


def test_what_cannot_be_prepared_fails_with_reports() -> None:
    started = run({PREPARE_SQL: lambda call: ABORT})
    assert started.run().error is not None
    assert started.inputs(WRITE_SQL_REPORTS)[0]["status"] == "failed"


def test_a_cancel_lets_what_runs_end_and_begins_nothing_more() -> None:
    open_tables: list[Call] = []

    def later(call: Call) -> Any:
        open_tables.append(call)
        return Never

    started = run({MIGRATE_TABLE: later}, tables=9)
    started.run_until(lambda: len(open_tables) == 2)
    started.raise_event(CANCEL_EVENT)
    started.run_until(lambda: not started.step() or True)
    for call in open_tables:
        started.settle(call, {"counts": no_sql_counts(), "abort": None, "cancelled": True})
    ended = started.run()
    assert len(open_tables) == 2
    assert ended.output["status"] == "cancelled"


def test_records_have_the_last_word() -> None:
    report = {"ok": {"totals": {"uploaded": 2, "failed": 1}, "verification": None}}
    assert run({WRITE_SQL_REPORTS: lambda call: report}).run().output["status"] == "completed_with_failures"
