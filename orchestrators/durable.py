"""What the 1.x API of Durable Functions makes every orchestrator of this app need, and nothing else."""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from datetime import timedelta
from typing import Any

from azure.durable_functions import DurableOrchestrationContext, RetryOptions
from azure.durable_functions.models.Task import TaskBase

from shared.model.steps import Abort, RetryPolicy
from shared.policy.backoff import durable_delay_s

# Only against lost workers: what an activity can name, it returns as data, and that is retried by `step`.
LOST_WORKER = RetryOptions(first_retry_interval_in_milliseconds=5000, max_number_of_attempts=3)

Steps = Generator[TaskBase, Any, Any]


class Aborted(Exception):
    """An activity said that the whole run must stop."""

    def __init__(self, abort: Abort) -> None:
        super().__init__(f"{abort['code']}: {abort['detail']}")
        self.abort = abort


def bug_of(error: Exception) -> Abort:
    """What no classifier knows: a fault of this program, or a worker that was lost three times.

    The first line alone: the SDK puts the traceback behind it, with paths of the worker, and the log has that.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return {"code": "internal_error", "detail": lines[0].strip()[:500]}


def activity(context: DurableOrchestrationContext, name: str, request: Any) -> TaskBase:
    """Schedule an activity that survives the loss of its worker."""
    return context.call_activity_with_retry(name, LOST_WORKER, request)


def opened(envelope: Any) -> Any:
    """The outcome in an activity's envelope, or None where the failure was transient; raises Aborted."""
    if isinstance(envelope, Exception):
        raise envelope
    if "abort" in envelope:
        raise Aborted(envelope["abort"])
    return envelope.get("ok")


def step(context: DurableOrchestrationContext, name: str, request: Any, retry: RetryPolicy) -> Steps:
    """Call one activity and wait; a transient failure is tried again on durable timers.

    Raises:
        Aborted: the activity says so, or its attempts are used up.
    """
    attempt = 1
    while True:
        envelope = yield activity(context, name, request)
        outcome = opened(envelope)
        if outcome is not None:
            return outcome
        transient = envelope["transient"]
        attempt += 1
        if attempt > retry["attempts"]:
            raise Aborted(
                {"code": transient["code"], "detail": f"{transient['detail']} ({retry['attempts']} attempts)"}
            )
        delay_s = durable_delay_s(attempt, retry["first_delay_s"], transient["retry_after_s"])
        yield context.create_timer(context.current_utc_datetime + timedelta(seconds=delay_s))


def pause(context: DurableOrchestrationContext, seconds: float, unless: TaskBase) -> Steps:
    """Wait on a durable timer, or shorter if the task ``unless`` completes; whether it was that."""
    if unless.is_completed:
        return True
    timer = context.create_timer(context.current_utc_datetime + timedelta(seconds=seconds))
    winner = yield context.task_any([timer, unless])
    if winner is timer:
        return False
    timer.cancel()
    return True


class Waiting(Iterator[Any]):
    """Requests for a sliding window that may become more while it moves on."""

    def __init__(self, requests: Iterable[Any]) -> None:
        self._left = deque(requests)

    def add(self, request: Any) -> None:
        self._left.append(request)

    def __next__(self) -> Any:
        if not self._left:
            raise StopIteration
        return self._left.popleft()


def sliding_window(
    context: DurableOrchestrationContext,
    width: int,
    requests: Iterable[Any],
    schedule: Callable[[Any], TaskBase],
    settle: Callable[[Any, Any], bool],
) -> Steps:
    """Keep ``width`` tasks running until the requests are used up.

    Args:
        context: The orchestration's context.
        width: Most tasks at once.
        requests: What to do; taken one by one, and asked again after each that is settled, so that it may grow.
        schedule: Makes the task of a request.
        settle: Told each request and its task's result, in the order of completion; False stops the scheduling, and
            the tasks that run are waited for.
    """
    waiting = iter(requests)
    running: dict[TaskBase, Any] = {}
    going_on = True
    while True:
        while going_on and len(running) < width:
            request = next(waiting, None)
            if request is None:
                break
            running[schedule(request)] = request
        if not running:
            return
        winner = yield context.task_any(list(running))
        going_on = settle(running.pop(winner), winner.result) and going_on
