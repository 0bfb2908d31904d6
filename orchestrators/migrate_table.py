"""Migrate one table: plan -> extract -> commit, and once more where a load by slices has to catch up.

1. ``plan_table`` decides what to read and how, and takes the position of the source's changes before the first row.
2. ``extract_table`` reads all of it as of one moment, or a window of ``extract_slice`` each slice as of its own.
3. ``commit_table`` verifies, makes the files visible at once, and then saves how far the source has been read. After a
   load by slices it asks for one more turn, which reads what changed meanwhile, from the position of step 1.

Each step says what the next one is; ``settled`` ends the table. A transient failure is tried again on durable timers,
of slices only of those that failed; when the attempts are used up, ``fail_table`` records it. An error that would meet
every table ends this one, and is handed up.
"""

from datetime import timedelta
from typing import Any

from azure.durable_functions import DurableOrchestrationContext
from azure.durable_functions.models.Task import TaskBase

from orchestrators.durable import Aborted, Steps, activity, bug_of, opened, sliding_window, step
from shared.model.sql_steps import MigrateTableOutcome, MigrateTableRequest
from shared.model.steps import Transient, add_counts
from shared.names import COMMIT_TABLE, EXTRACT_SLICE, EXTRACT_TABLE, FAIL_TABLE, PLAN_TABLE
from shared.policy.backoff import durable_delay_s

SLICES_PER_GENERATION = 200
_ACTIVITIES = {"plan": PLAN_TABLE, "table": EXTRACT_TABLE, "commit": COMMIT_TABLE}


class _Exhausted(Exception):
    """A step's attempts are used up."""

    def __init__(self, transient: Transient) -> None:
        super().__init__(transient["detail"])
        self.transient = transient


def migrate_table(context: DurableOrchestrationContext) -> Steps:
    """Sub-orchestration of a SQL migration; see the module's protocol."""
    table = _Table(context, context.get_input())
    try:
        going_on = yield from table.migrate()
    except Aborted as aborted:
        table.result["abort"] = aborted.abort
    except Exception as bug:  # noqa: BLE001 - a bug, or a worker that was lost three times
        table.result["abort"] = bug_of(bug)
    else:
        if going_on is not None:
            context.continue_as_new(going_on)
            return None
    return table.result


class _Table:
    def __init__(self, context: DurableOrchestrationContext, given: MigrateTableRequest) -> None:
        self.context = context
        self.given = given
        self.retry = given["retry"]
        self.result: MigrateTableOutcome = {"counts": given["counts"], "abort": None, "cancelled": False}

    def request(self, turn: int) -> dict[str, Any]:
        return {"run": self.given["run"], "round": self.given["round"], "table": self.given["table"], "turn": turn}

    def migrate(self) -> Steps:
        """Returns the input of the next generation where this one has seen enough slices, else None."""
        done: Any = self.given["plan"]
        name, turn, first = (done["next"], done["turn"], self.given["slice"]) if done else ("plan", 0, 0)
        try:
            while name != "settled":
                if name == "slices":
                    last = min(done["slices"], first + SLICES_PER_GENERATION)
                    ended = yield from self.slices(done, list(range(first, last)))
                    if ended is None and last < done["slices"]:
                        return {**self.given, "plan": done, "slice": last, "counts": self.result["counts"]}
                    if ended is None:
                        name, first = "commit", 0
                        continue
                    done = ended
                else:
                    done = yield from self.attempts(_ACTIVITIES[name], self.request(turn))
                self.take(done)
                name, turn = done["next"], done["turn"]
        except _Exhausted as exhausted:
            request = {**self.request(turn), "step": name, "error": exhausted.transient}
            self.take((yield from step(self.context, FAIL_TABLE, request, self.retry)))
        return None

    def take(self, done: Any) -> None:
        add_counts(self.result["counts"], done["counts"])
        self.result["cancelled"] = self.result["cancelled"] or done["cancelled"]
        self.context.set_custom_status({"counts": self.result["counts"]})

    def attempts(self, function: str, request: Any) -> Steps:
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

    def slices(self, plan: Any, waiting: list[int]) -> Steps:
        """These slices; those with transient failures again, with growing pauses. What a slice settled, else None."""
        attempt = 1
        while True:
            again: list[tuple[int, Transient]] = []
            settled: list[Any] = []
            aborted: list[Exception] = []

            def schedule(number: int) -> TaskBase:
                return activity(self.context, EXTRACT_SLICE, {**self.request(plan["turn"]), "slice": number})

            def settle(
                number: int, envelope: Any, again: list[tuple[int, Transient]] = again, settled: list[Any] = settled,
                aborted: list[Exception] = aborted,
            ) -> bool:  # fmt: skip
                try:
                    done = opened(envelope)
                except Exception as error:  # noqa: BLE001 - kept until the slices that run have ended
                    aborted.append(error)
                    return False
                if done is None:
                    again.append((number, envelope["transient"]))
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
                return None
            waiting = sorted(number for number, _ in again)
            attempt += 1
            if attempt > self.retry["attempts"]:
                raise _Exhausted(again[0][1])
            yield from self.wait(attempt, max(one["retry_after_s"] or 0.0 for _, one in again) or None)
