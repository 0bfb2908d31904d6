"""Migrate the tables of a database: prepare -> a window of one sub-orchestration a table -> reports.

1. ``prepare_sql`` proves that database and lakehouse can be reached, and turns the job's wishes into a list of tables.
2. A window of ``migrate_table`` sub-orchestrations. A table that fails is recorded, and the others go on.
3. ``write_sql_reports`` writes the manifest, however the run ended.

An error that would meet every table (a refused identity, a missing lakehouse) ends the run once what is running has
ended. Cancelling is an external event here and a marker in the run store that every step looks at.
"""

from typing import Any

from azure.durable_functions import DurableOrchestrationContext
from azure.durable_functions.models.Task import TaskBase

from orchestrators.durable import Aborted, Steps, bug_of, step
from shared.model.sql_steps import MigrateTableRequest, SqlDecisions, no_sql_counts
from shared.model.steps import Abort, RetryPolicy, add_counts
from shared.names import (
    CANCEL_EVENT,
    MIGRATE_TABLE,
    PREPARE_SQL,
    WRITE_SQL_REPORTS,
    page_instance_id,
    page_name,
)

TABLES_PER_GENERATION = 200
_RETRY: RetryPolicy = {"attempts": 5, "first_delay_s": 2.0}


class SqlFailed(Exception):
    """Ends the orchestration as failed, once the reports are written."""


def migrate_sql(context: DurableOrchestrationContext) -> Steps:
    """Orchestration of ``kind: sql``; see the module's protocol."""
    given: Any = context.get_input()
    migration = _Migration(context, given)
    error: Abort | None = None
    try:
        if given["state"] is None:
            yield from migration.prepare()
        done = yield from migration.migrate()
        if not done:
            context.continue_as_new({**given, "state": migration.state})
            return None
    except Aborted as aborted:
        error = aborted.abort
    except Exception as bug:  # noqa: BLE001 - whatever it is, the manifest must still say what was done
        error = bug_of(bug)
    return (yield from migration.finish(error))


class _Migration:
    """The state of a run and the steps that change it."""

    def __init__(self, context: DurableOrchestrationContext, given: Any) -> None:
        self.context = context
        self.run = given["run"]
        self.round = given["round"]
        self.request = {"run": self.run, "round": self.round}
        state = given["state"] or {}
        nothing: SqlDecisions = {
            "dry_run": False, "parallel_tables": 1, "tables": [], "counts": no_sql_counts(), "retry": _RETRY,
        }  # fmt: skip
        self.decisions: SqlDecisions = state.get("decisions", nothing)
        self.position: int = state.get("position", 0)
        self.counts = state.get("counts", no_sql_counts())
        self.cancelled: bool = state.get("cancelled", False)
        self.planning_done = bool(state)
        self.phase = "transferring" if state else "planning"
        self.cancel = context.wait_for_external_event(CANCEL_EVENT)
        self.verification: dict[str, Any] | None = None

    @property
    def state(self) -> dict[str, Any]:
        return {
            "decisions": self.decisions, "position": self.position, "counts": self.counts,
            "cancelled": self.cancelled,
        }  # fmt: skip

    def prepare(self) -> Steps:
        self.show()
        self.decisions = yield from step(self.context, PREPARE_SQL, self.request, _RETRY)
        self.planning_done = True
        add_counts(self.counts, self.decisions["counts"])

    def migrate(self) -> Steps:
        """Keep a window of tables running. False if a new generation is to go on."""
        self.phase = "transferring"
        tables = self.decisions["tables"]
        last = min(len(tables), self.position + TABLES_PER_GENERATION)
        running: dict[TaskBase, int] = {}
        failure: Abort | None = None
        while True:
            stopped = self.cancelled or failure is not None
            while self.position < last and len(running) < self.decisions["parallel_tables"] and not stopped:
                running[self.migrate_table(tables[self.position])] = tables[self.position]
                self.position += 1
            if not running:
                break
            self.show(list(running.values()))
            winner = yield self.context.task_any([*running, *([] if stopped else [self.cancel])])
            if winner is self.cancel:
                self.cancelled = True
                continue
            del running[winner]
            done = winner.result
            if isinstance(done, Exception):
                failure = failure or bug_of(done)
                continue
            add_counts(self.counts, done["counts"])
            self.cancelled = self.cancelled or done["cancelled"]
            failure = failure or done["abort"]
        if failure is not None:
            raise Aborted(failure)
        return self.cancelled or self.position == len(tables)

    def migrate_table(self, number: int) -> TaskBase:
        request: MigrateTableRequest = {
            "run": self.run, "round": self.round, "table": number, "retry": self.decisions["retry"], "plan": None,
            "slice": 0, "counts": no_sql_counts(),
        }  # fmt: skip
        return self.context.call_sub_orchestrator(MIGRATE_TABLE, request, self.child(number))

    def child(self, number: int) -> str:
        return page_instance_id(self.run, page_name(number, self.round), 1)

    def finish(self, error: Abort | None) -> Steps:
        self.phase = "finishing"
        self.cancelled = self.cancelled or bool(self.cancel.is_completed)
        status = (
            "failed" if error is not None
            else "cancelled" if self.cancelled
            else "completed_with_failures" if self.counts["failed"]
            else "completed"
        )  # fmt: skip
        request = {
            **self.request, "status": status, "error": error,
            "ended_at": self.context.current_utc_datetime.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        self.show(status=status, error=error)
        written = yield from step(self.context, WRITE_SQL_REPORTS, request, _RETRY)
        totals, self.verification = written["totals"], written["verification"]
        # The records have the last word: of a table that was settled twice, or not at all.
        if status == "completed" and totals.get("failed"):
            status = "completed_with_failures"
        self.show(status=status, error=error, totals=totals)
        if error is not None:
            raise SqlFailed(f"{error['code']}: {error['detail']}")
        return {"status": status, "counts": self.counts, "totals": totals, "verification": self.verification}

    def show(
        self,
        running: list[int] | None = None,
        *,
        status: str | None = None,
        error: Abort | None = None,
        totals: dict[str, int] | None = None,
    ) -> None:
        """Publish where the run stands, as custom status."""
        self.context.set_custom_status({
            "phase": self.phase, "status": status, "counts": self.counts, "planning_done": self.planning_done,
            "error": error, "verification": self.verification, "totals": totals, "waiting": 0, "attempt": 1,
            "children": [self.child(number) for number in running or []],
        })  # fmt: skip
