"""Migrate the versions of one asset, oldest first.

For each version: ``plan_asset_version``, then ``copy_asset_files`` for each part of its files, ``check_asset_files``,
``register_asset_version``, ``validate_asset_version``. Each step says what the next one is; ``settled`` ends the
version. A transient failure is tried again on durable timers; when the attempts are used up, ``fail_asset_version``
records it and the next version begins. An error that would meet every version ends the asset, and is handed up.
"""

from datetime import timedelta
from typing import Any

from azure.durable_functions import DurableOrchestrationContext
from azure.durable_functions.models.Task import TaskBase

from orchestrators.durable import Aborted, Steps, activity, bug_of, opened, sliding_window, step
from shared.model.mltable_steps import MigrateAssetOutcome, MigrateAssetRequest, outcome
from shared.model.steps import Transient, add_counts, no_counts
from shared.names import (
    CHECK_ASSET_FILES,
    COPY_ASSET_FILES,
    FAIL_ASSET_VERSION,
    PLAN_ASSET_VERSION,
    REGISTER_ASSET_VERSION,
    VALIDATE_ASSET_VERSION,
)
from shared.policy.backoff import durable_delay_s

VERSIONS_PER_GENERATION = 50
_ACTIVITIES = {"plan": PLAN_ASSET_VERSION, "check": CHECK_ASSET_FILES, "register": REGISTER_ASSET_VERSION,
               "validate": VALIDATE_ASSET_VERSION}  # fmt: skip


class _Exhausted(Exception):
    """A step's attempts are used up."""

    def __init__(self, transient: Transient) -> None:
        super().__init__(transient["detail"])
        self.transient = transient


def migrate_asset(context: DurableOrchestrationContext) -> Steps:
    """Sub-orchestration of an MLTable migration; see the module's protocol."""
    asset: MigrateAssetRequest = context.get_input()
    result: MigrateAssetOutcome = {"counts": asset["counts"], "abort": None, "cancelled": False}
    last = min(asset["versions"], asset["first"] + VERSIONS_PER_GENERATION)
    for version in range(asset["first"], last):
        try:
            yield from _Version(context, asset, version, result).migrate()
        except Aborted as aborted:
            result["abort"] = aborted.abort
        except Exception as bug:  # noqa: BLE001 - a bug, or a worker that was lost three times
            result["abort"] = bug_of(bug)
        if result["abort"] is not None or result["cancelled"]:
            return result
    if last < asset["versions"]:
        context.continue_as_new({**asset, "first": last, "counts": result["counts"]})
        return None
    return result


class _Version:
    def __init__(
        self, context: DurableOrchestrationContext, asset: MigrateAssetRequest, version: int,
        result: MigrateAssetOutcome,
    ) -> None:  # fmt: skip
        self.context = context
        self.retry = asset["retry"]
        self.request = {"run": asset["run"], "round": asset["round"], "group": asset["group"], "version": version}
        self.result = result

    def migrate(self) -> Steps:
        name = "plan"
        done: Any = None
        try:
            while name != "settled":
                if name == "copy":
                    done = yield from self.copy(done)
                else:
                    done = yield from self.attempts(name, _ACTIVITIES[name], self.request)
                self.take(done)
                name = done["next"]
        except _Exhausted as exhausted:
            request = {**self.request, "step": name, "error": exhausted.transient}
            self.take((yield from step(self.context, FAIL_ASSET_VERSION, request, self.retry)))

    def take(self, done: Any) -> None:
        add_counts(self.result["counts"], done["counts"])
        self.result["cancelled"] = self.result["cancelled"] or done["cancelled"]
        self.context.set_custom_status({"counts": self.result["counts"]})

    def attempts(self, name: str, function: str, request: Any) -> Steps:
        """One activity, tried again on timers while its failure is transient."""
        attempt = 1
        while True:
            envelope = yield activity(self.context, function, request)
            done = opened(envelope)
            if done is not None:
                return done
            attempt += 1
            if attempt > self.retry["attempts"]:
                raise _Exhausted(envelope["transient"])
            yield from self.wait(attempt, envelope["transient"]["retry_after_s"])

    def wait(self, attempt: int, asked_s: float | None) -> Steps:
        delay_s = durable_delay_s(attempt, self.retry["first_delay_s"], asked_s)
        yield self.context.create_timer(self.context.current_utc_datetime + timedelta(seconds=delay_s))

    def copy(self, plan: Any) -> Steps:
        """Every part of the version's files; those with transient failures again, with growing pauses."""
        waiting = list(range(plan["parts"]))
        attempt = 1
        while True:
            again: list[int] = []
            asked_s: list[float] = [0.0]
            last: list[Transient] = []
            settled: list[Any] = []
            aborted: list[Exception] = []

            def schedule(part: int) -> TaskBase:
                return activity(self.context, COPY_ASSET_FILES, {**self.request, "part": part})

            def settle(
                part: int, envelope: Any, again: list[int] = again, asked_s: list[float] = asked_s,
                last: list[Transient] = last, settled: list[Any] = settled, aborted: list[Exception] = aborted,
            ) -> bool:  # fmt: skip
                try:
                    done = opened(envelope)
                except Exception as error:  # noqa: BLE001 - kept until the parts that run have ended
                    aborted.append(error)
                    return False
                if done is None:
                    again.append(part)
                    last.append(envelope["transient"])
                    asked_s.append(envelope["transient"]["retry_after_s"] or 0.0)
                elif done["next"] == "settled":
                    settled.append(done)
                    return False
                else:
                    self.take(done)
                return True

            yield from sliding_window(self.context, plan["parallel"], waiting, schedule, settle)
            if aborted:
                raise aborted[0]
            if settled:
                return settled[0]
            if not again:
                return outcome("check", no_counts())
            waiting = sorted(again)
            attempt += 1
            if attempt > self.retry["attempts"]:
                raise _Exhausted(last[0])
            yield from self.wait(attempt, max(asked_s) or None)
