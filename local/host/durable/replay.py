"""Runs the SDK's own replay of an orchestrator, reads what it answers, and compares that with the history.

An orchestrator is called as the platform calls it: one JSON text in, one JSON text out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Any, Final

from azure.durable_functions.models.history import HistoryEvent

_ERROR_MARK: Final = "$OutOfProcData$:"
CUSTOM_STATUS_LIMIT_BYTES: Final = 16 * 1024


class ActionType(IntEnum):
    """Numbers of the SDK's actions (``ActionType`` of the SDK)."""

    CALL_ACTIVITY = 0
    CALL_ACTIVITY_WITH_RETRY = 1
    CALL_SUB_ORCHESTRATOR = 2
    CALL_SUB_ORCHESTRATOR_WITH_RETRY = 3
    CONTINUE_AS_NEW = 4
    CREATE_TIMER = 5
    WAIT_FOR_EXTERNAL_EVENT = 6
    CALL_ENTITY = 7
    CALL_HTTP = 8
    SIGNAL_ENTITY = 9


_KINDS: Final = {
    ActionType.CALL_ACTIVITY: "activity",
    ActionType.CALL_ACTIVITY_WITH_RETRY: "activity with retry",
    ActionType.CALL_SUB_ORCHESTRATOR: "sub-orchestration",
    ActionType.CALL_SUB_ORCHESTRATOR_WITH_RETRY: "sub-orchestration with retry",
    ActionType.CREATE_TIMER: "timer",
}
_REFUSED: Final[dict[int, str]] = {
    ActionType.CALL_ENTITY: "calls a durable entity",
    ActionType.SIGNAL_ENTITY: "signals a durable entity",
    ActionType.CALL_HTTP: "uses call_http",
}
_SERVED: Final = frozenset({*_KINDS, ActionType.CONTINUE_AS_NEW, ActionType.WAIT_FOR_EXTERNAL_EVENT})


class OrchestrationFailure(Exception):
    """The instance fails with this text, which its status shows."""


@dataclass(frozen=True, slots=True)
class TaskKey:
    """What must stay the same between replays about one task of the orchestrator.

    Attributes:
        kind: As the error message names it.
        name: The function's name; empty for a timer.
    """

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'" if self.name else f"a {self.kind}"

    @property
    def is_activity(self) -> bool:
        return self.kind.startswith("activity")

    @property
    def is_sub_orchestration(self) -> bool:
        return self.kind.startswith("sub-orchestration")

    @property
    def is_retried(self) -> bool:
        return self.kind.endswith("with retry")


@dataclass(frozen=True, slots=True)
class TaskAction:
    """A task that the orchestrator has scheduled, in the order in which the SDK numbers them."""

    key: TaskKey
    input: str | None = None
    instance_id: str | None = None
    version: str | None = None
    fire_at: str | None = None
    is_cancelled: bool = False
    retry_interval_ms: int = 0
    max_attempts: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one replay answered.

    Attributes:
        tasks: Every task so far, those of earlier episodes first.
        waits: How often the orchestrator has waited for each event name so far.
        is_done: It returned.
        output: JSON text of what it returned.
        error: It raised; the text of the exception.
        continue_as_new: The JSON text of the next generation's input, when it continues as new.
        custom_status: JSON text, or None when it has set none in this generation.
        exception: What it raised, for the log.
    """

    tasks: Sequence[TaskAction]
    waits: dict[str, int]
    is_done: bool
    output: str
    error: str | None
    continue_as_new: str | None
    custom_status: str | None
    exception: BaseException | None = None


def use_fast_timestamps() -> None:
    """Let the SDK read our timestamps with `datetime.fromisoformat`.

    The SDK parses the time of every event of every replay with dateutil at 25 µs each, which is 85 % of a replay
    (28 ms with 200 completed activities, 4 ms so). The result is the same moment.
    """
    module: Any = sys.modules[HistoryEvent.__module__]
    slow_parse: Callable[[str], datetime] = module.dt_parse

    def parse(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            return slow_parse(text)

    module.dt_parse = parse


def run_orchestrator(
    call: Callable[[str], str],
    history: Sequence[str],
    *,
    input_json: str | None,
    instance_id: str,
    parent_instance_id: str | None,
    is_replaying: bool,
) -> Outcome:
    """Replay once.

    `call` is what `azure.durable_functions.Orchestrator.create` made; `history` is the JSON text of each event,
    in which the last start of an episode marks where the new ones begin.

    Raises:
        OrchestrationFailure: The orchestrator asked for something that this host refuses.
    """
    fields = {
        "instanceId": instance_id,
        "isReplaying": is_replaying,
        "parentInstanceId": parent_instance_id,
        "upperSchemaVersion": 2,
        "longRunningTimerIntervalDuration": None,
        "maximumShortTimerDuration": None,
    }
    request = f'{json.dumps(fields)[:-1]}, "input": {input_json or "null"}, "history": [{",".join(history)}]}}'
    try:
        answer = json.loads(call(request))
    except (Exception, SystemExit) as error:  # noqa: BLE001
        # Whatever user code raises fails its instance and not the host; SystemExit too, as in the worker.
        text = str(error)
        before, mark, state = text.partition(_ERROR_MARK)
        if not mark:
            return Outcome((), {}, False, "null", text or type(error).__name__, None, None, error)
        answer = json.loads(state)
        answer.setdefault("error", before.strip())
        return _read_answer(answer, error.__cause__ or error)
    return _read_answer(answer)


def _read_answer(answer: dict[str, Any], exception: BaseException | None = None) -> Outcome:
    tasks: list[TaskAction] = []
    waits: dict[str, int] = {}
    continue_as_new: str | None = None
    pending: list[dict[str, Any]] = [action for group in answer["actions"] for action in group]
    pending.reverse()
    while pending:
        action = pending.pop()
        if "compoundActions" in action:
            pending.extend(reversed(action["compoundActions"]))
            continue
        number = action["actionType"]
        if number not in _SERVED:
            what = _REFUSED.get(number, f"asks for the action {number}")
            raise OrchestrationFailure(f"it {what}, which this host does not serve; use an activity")
        kind = ActionType(number)
        if kind is ActionType.WAIT_FOR_EXTERNAL_EVENT:
            name = str(action["externalEventName"])
            waits[name] = waits.get(name, 0) + 1
        elif kind is ActionType.CONTINUE_AS_NEW:
            continue_as_new = json.dumps(action.get("input"))
        else:
            tasks.append(_task_of(kind, action))
    status = answer.get("customStatus")
    return Outcome(
        tasks=tasks,
        waits=waits,
        is_done=bool(answer.get("isDone")),
        output=json.dumps(answer.get("output")),
        error=answer.get("error"),
        continue_as_new=continue_as_new,
        custom_status=None if status is None else json.dumps(status),
        exception=exception,
    )


def _task_of(kind: ActionType, action: dict[str, Any]) -> TaskAction:
    retry = action.get("retryOptions") or {}
    return TaskAction(
        key=TaskKey(_KINDS[kind], str(action.get("functionName") or "")),
        input=action.get("input"),
        instance_id=action.get("instanceId"),
        version=action.get("version"),
        fire_at=action.get("fireAt"),
        is_cancelled=bool(action.get("isCanceled")),
        retry_interval_ms=int(retry.get("firstRetryIntervalInMilliseconds") or 0),
        max_attempts=int(retry.get("maxNumberOfAttempts") or 0),
    )


def check_determinism(recorded: Sequence[TaskKey], outcome: Outcome) -> None:
    """Compare the tasks that the history holds with those that the orchestrator scheduled this time.

    The SDK accepts a history that belongs to other code, and then waits for ever or mixes up results.

    Raises:
        OrchestrationFailure: They differ; the text names both.
    """
    for index, key in enumerate(recorded):
        if index >= len(outcome.tasks):
            if outcome.error is not None:
                # It raised before it came this far: its own error says more.
                return
            raise _non_deterministic(index, key, "has not scheduled it")
        if outcome.tasks[index].key != key:
            raise _non_deterministic(index, key, f"scheduled {outcome.tasks[index].key} in its place")


def _non_deterministic(index: int, key: TaskKey, what: str) -> OrchestrationFailure:
    return OrchestrationFailure(
        f"Non-deterministic orchestrator: task {index + 1} of the history is {key}, but the code {what} on replay."
        " The function was changed while the instance was running, or it decides by something other than its input"
        " and its tasks' results. Bring the old code back and rewind the instance, or start a new one."
    )


def check_custom_status(status: str) -> None:
    """Refuse a custom status that the platform refuses.

    Raises:
        OrchestrationFailure: It is over 16 KB of UTF-16 text.
    """
    compact = json.dumps(json.loads(status), ensure_ascii=False, separators=(",", ":"))
    size_bytes = len(compact.encode("utf-16-le", "surrogatepass"))
    if size_bytes > CUSTOM_STATUS_LIMIT_BYTES:
        raise OrchestrationFailure(
            f"the custom status has {size_bytes} bytes of UTF-16 text as JSON and the limit is"
            f" {CUSTOM_STATUS_LIMIT_BYTES}; keep counts in it and the rest elsewhere"
        )
