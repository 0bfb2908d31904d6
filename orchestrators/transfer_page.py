"""Transfer the batches of one page.

1. Keep a window of ``transfer_batch`` activities running; one whose time was up before it was done is scheduled again.
2. Add up what they report, and show it as custom status.
3. Stop scheduling as soon as one says that the run must stop or was cancelled; wait for those that run.
4. Return the sums, and the numbers of the batches that hold items to be tried again.
"""

from typing import Any

from azure.durable_functions import DurableOrchestrationContext
from azure.durable_functions.models.Task import TaskBase

from orchestrators.durable import Steps, Waiting, activity, bug_of, sliding_window
from shared.model.steps import (
    LevelChange,
    TransferBatchRequest,
    TransferPageOutcome,
    TransferPageRequest,
    add_changes,
    add_counts,
    no_counts,
)
from shared.names import TRANSFER_BATCH


def transfer_page(context: DurableOrchestrationContext) -> Steps:
    """Sub-orchestration of a files migration; see the module's protocol."""
    page: TransferPageRequest = context.get_input()
    outcome: TransferPageOutcome = {
        "abort": None, "cancelled": False, "counts": no_counts(), "retry": [], "retry_after_s": None,
    }  # fmt: skip

    waiting = Waiting(page["batches"])

    def schedule(batch: int) -> TaskBase:
        request: TransferBatchRequest = {
            "run": page["run"], "round": page["round"], "page": page["page"], "batch": batch,
            "attempt": page["attempt"], "final": page["final"],
        }  # fmt: skip
        return activity(context, TRANSFER_BATCH, request)

    changes: list[LevelChange] = []

    def settle(batch: int, envelope: Any) -> bool:
        nonlocal changes
        going_on = _add(outcome, batch, envelope)
        done = envelope.get("ok") if isinstance(envelope, dict) else None
        if done and done.get("unfinished"):
            waiting.add(batch)
        if done and done.get("concurrency", {}).get("changes"):
            changes = outcome["concurrency_changes"] = add_changes(changes, done["concurrency"]["changes"])
        context.set_custom_status({
            "counts": outcome["counts"],
            "concurrency": {**done["concurrency"], "changes": changes} if done and "concurrency" in done else None,
            "source_load": done and done.get("source_load"),
        })  # fmt: skip
        return going_on

    yield from sliding_window(context, page["parallel"], waiting, schedule, settle)
    outcome["retry"].sort()
    return outcome


def _add(outcome: TransferPageOutcome, batch: int, envelope: Any) -> bool:
    """Add one batch's result; whether to go on."""
    if isinstance(envelope, Exception):
        # A bug, or a worker that was lost three times: the run must not go on as if nothing were.
        outcome["abort"] = outcome["abort"] or bug_of(envelope)
        return False
    if "abort" in envelope:
        outcome["abort"] = outcome["abort"] or envelope["abort"]
        return False
    done = envelope.get("ok")
    if done is None:
        outcome["retry"].append(batch)
        asked_s = envelope["transient"]["retry_after_s"]
    else:
        add_counts(outcome["counts"], done["counts"])
        outcome["abort"] = outcome["abort"] or done["abort"]
        outcome["cancelled"] = outcome["cancelled"] or done["cancelled"]
        if done["retry"]:
            outcome["retry"].append(batch)
        asked_s = done["retry_after_s"]
    if asked_s:
        outcome["retry_after_s"] = max(outcome["retry_after_s"] or 0.0, asked_s)
    return outcome["abort"] is None and not outcome["cancelled"]
