"""Migrate MLTable data assets: prepare -> discover -> one sub-orchestration an asset -> reports.

1. ``prepare_mltables`` proves that both workspaces and the storage behind them can be reached, and writes down where.
2. ``discover_assets`` turns names, globs, ``latest`` and ranges into versions; what is not in the source is recorded.
3. A window of ``migrate_asset`` sub-orchestrations; the versions of one asset go one after the other, oldest first, so
   that what is latest at the target is what is latest at the source.
4. ``write_asset_reports`` writes manifest and sign-off, however the run ended.

An error that would meet every asset (a refused identity, a missing workspace) ends the run once what is running has
ended. Cancelling is an external event here and a marker in the run store that every step looks at.
"""

from typing import Any

from azure.durable_functions import DurableOrchestrationContext
from azure.durable_functions.models.Task import TaskBase

from orchestrators.durable import Aborted, Steps, bug_of, step
from shared.model.mltable_steps import MigrateAssetRequest
from shared.model.steps import Abort, MigrateFilesInput, RetryPolicy, add_counts, no_counts
from shared.names import (
    CANCEL_EVENT,
    DISCOVER_ASSETS,
    MIGRATE_ASSET,
    PREPARE_MLTABLES,
    WRITE_ASSET_REPORTS,
    page_instance_id,
    page_name,
)

_RETRY: RetryPolicy = {"attempts": 5, "first_delay_s": 2.0}


class MltablesFailed(Exception):
    """Ends the orchestration as failed, once the reports are written."""


def migrate_mltables(context: DurableOrchestrationContext) -> Steps:
    """Orchestration of ``kind: mltable``; see the module's protocol."""
    given: MigrateFilesInput = context.get_input()
    migration = _Migration(context, given)
    error: Abort | None = None
    try:
        yield from migration.prepare()
        yield from migration.migrate()
    except Aborted as aborted:
        error = aborted.abort
    except Exception as bug:  # noqa: BLE001 - whatever it is, the manifest must still say what was done
        error = bug_of(bug)
    return (yield from migration.finish(error))


class _Migration:
    """The state of a run and the steps that change it."""

    def __init__(self, context: DurableOrchestrationContext, given: MigrateFilesInput) -> None:
        self.context = context
        self.run = given["run"]
        self.round = given["round"]
        self.request = {"run": self.run, "round": self.round}
        self.phase = "planning"
        self.counts = no_counts()
        self.groups: list[int] = []
        self.decisions: dict[str, Any] = {"dry_run": False, "parallel_assets": 1, "retry": _RETRY}
        self.cancel = context.wait_for_external_event(CANCEL_EVENT)
        self.cancelled = False
        self.verification: dict[str, Any] | None = None

    def prepare(self) -> Steps:
        self.show()
        self.decisions = yield from step(self.context, PREPARE_MLTABLES, self.request, _RETRY)
        found = yield from step(self.context, DISCOVER_ASSETS, self.request, self.decisions["retry"])
        self.groups = found["groups"]
        add_counts(self.counts, found["counts"])

    def migrate(self) -> Steps:
        """Keep a window of assets running."""
        self.phase = "transferring"
        waiting = [(number, size) for number, size in enumerate(self.groups, start=1)]
        running: dict[TaskBase, int] = {}
        failure: Abort | None = None
        while True:
            stopped = self.cancelled or failure is not None
            while waiting and len(running) < self.decisions["parallel_assets"] and not stopped:
                number, size = waiting.pop(0)
                running[self.migrate_asset(number, size)] = number
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

    def migrate_asset(self, number: int, size: int) -> TaskBase:
        request: MigrateAssetRequest = {
            "run": self.run, "round": self.round, "group": number, "versions": size, "first": 0,
            "counts": no_counts(), "retry": self.decisions["retry"],
        }  # fmt: skip
        return self.context.call_sub_orchestrator(MIGRATE_ASSET, request, self.child(number))

    def child(self, number: int) -> str:
        return page_instance_id(self.run, page_name(number, self.round), 1)

    def finish(self, error: Abort | None) -> Steps:
        self.phase = "finishing"
        self.cancelled = self.cancelled or bool(self.cancel.is_completed)
        failed = self.counts["failed"]
        status = (
            "failed" if error is not None
            else "cancelled" if self.cancelled
            else "completed_with_failures" if failed
            else "completed"
        )  # fmt: skip
        request = {
            **self.request, "status": status, "error": error,
            "ended_at": self.context.current_utc_datetime.strftime("%Y-%m-%dT%H:%M:%SZ"),
        }  # fmt: skip
        self.show(status=status, error=error)
        written = yield from step(self.context, WRITE_ASSET_REPORTS, request, _RETRY)
        totals, self.verification = written["totals"], written["verification"]
        # The records have the last word: of a version that was settled twice, or not at all.
        if status == "completed" and totals.get("failed"):
            status = "completed_with_failures"
        self.show(status=status, error=error, totals=totals)
        if error is not None:
            raise MltablesFailed(f"{error['code']}: {error['detail']}")
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
            "phase": self.phase, "status": status, "counts": self.counts, "planning_done": bool(self.groups),
            "error": error, "verification": self.verification, "totals": totals, "waiting": 0, "attempt": 1,
            "children": [self.child(number) for number in running or []],
        })  # fmt: skip
