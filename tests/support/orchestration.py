"""Drives an orchestrator as a host does: through the SDK's own replay, one new event an episode, with a made-up clock.

What the activities and sub-orchestrations answer is the test's; everything about replay is real.
"""

from __future__ import annotations

import heapq
import json
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import azure.durable_functions as df

from local.host.durable.events import EventType, as_new, event_text, utc_text
from local.host.durable.replay import (
    Outcome,
    TaskAction,
    TaskKey,
    check_determinism,
    run_orchestrator,
    use_fast_timestamps,
)

use_fast_timestamps()

BEGAN = datetime(2026, 11, 21, 2, 0, 0, tzinfo=UTC)


class Lost(Exception):
    """Answered by a test for an activity whose worker was lost, or that had a bug."""


class Never:
    """Answered by a test for a task that goes on until the test settles it."""


@dataclass
class Call:
    """One task that the orchestrator has scheduled, each attempt of it counted as one."""

    kind: str
    name: str
    input: Any
    instance_id: str | None
    generation: int
    task_id: int
    attempt: int = 1
    settled: bool = False


Answer = Callable[[Call], Any]


@dataclass
class Ended:
    """How an orchestration ended."""

    output: Any
    error: str | None
    status: Any


@dataclass
class Orchestration:
    """One instance and what became of it.

    Args:
        function: The orchestrator.
        given: Its input.
        answer: What a call gives: a result, an exception to fail it, or ``Never``.
        instance_id: The instance's id.

    Attributes:
        calls: Everything scheduled, in order.
        timers: Seconds of each timer the orchestrator itself asked for, and whether it was cancelled.
        statuses: Custom statuses in the order in which they were shown.
        histories: The events of each generation.
    """

    function: Callable[..., Any]
    given: Any
    answer: Answer
    instance_id: str = "files-job-1"
    calls: list[Call] = field(default_factory=list)
    statuses: list[Any] = field(default_factory=list)
    histories: list[list[str]] = field(default_factory=list)
    ended: Ended | None = None
    generation: int = 0
    now: datetime = BEGAN

    def __post_init__(self) -> None:
        self._handle = df.Orchestrator.create(self.function)
        self._begin(self.given)

    # -- what tests ask ------------------------------------------------------------------------------------------

    def run(self) -> Ended:
        """Go on until it has ended; a deadlock is an error."""
        while self.ended is None:
            assert self.step(), f"nothing can happen any more; waiting for {[c for c in self.calls if not c.settled]}"
        return self.ended

    def run_until(self, condition: Callable[[], bool]) -> None:
        """Go on until something is so."""
        while not condition():
            assert self.ended is None, "it has ended before"
            assert self.step(), "nothing can happen any more"

    def raise_event(self, name: str) -> None:
        """An external event, behind what has happened already."""
        self._inbox.append((EventType.EVENT_RAISED, {"Name": name, "Input": "null"}))

    def settle(self, call: Call, result: Any) -> None:
        """End a task that was answered ``Never``."""
        assert not call.settled
        self._complete(call, result)

    def named(self, name: str) -> list[Call]:
        return [call for call in self.calls if call.name == name]

    def inputs(self, name: str) -> list[Any]:
        return [call.input for call in self.named(name)]

    @property
    def running(self) -> list[Call]:
        return [call for call in self.calls if not call.settled and call.generation == self.generation]

    @property
    def timers(self) -> list[tuple[float, bool]]:
        return [(seconds, task_id in self._cancelled) for task_id, seconds in self._timer_seconds]

    def tasks_by_generation(self) -> list[int]:
        """How many tasks, timers and retries each generation's history holds."""
        kinds = (EventType.TASK_SCHEDULED, EventType.SUB_ORCHESTRATION_CREATED, EventType.TIMER_CREATED)
        return [
            sum(json.loads(event)["EventType"] in [int(kind) for kind in kinds] for event in history)
            for history in self.histories
        ]

    # -- the host's part -----------------------------------------------------------------------------------------

    def _begin(self, given: Any) -> None:
        self._given = json.dumps(given)
        self._history: list[str] = []
        self.histories.append(self._history)
        self._keys: list[TaskKey] = []
        self._calls: dict[int, Call] = {}
        self._actions: dict[int, TaskAction] = {}
        self._retry_timers: dict[int, Call] = {}
        self._timer_ids: dict[int, int] = {}
        self._timer_seconds: list[tuple[int, float]] = []
        self._cancelled: set[int] = set()
        self._next_id = 0
        self._due: list[tuple[datetime, int]] = []
        self._inbox: deque[tuple[EventType, dict[str, Any]]] = deque()
        self.generation += 1
        self._episode(EventType.EXECUTION_STARTED, {
            "Name": self.function.__name__, "Version": "", "Input": self._given,
            "OrchestrationInstance": {"InstanceId": self.instance_id, "ExecutionId": str(self.generation)},
            "ParentInstance": None,
        })  # fmt: skip

    def step(self) -> bool:
        """Deliver one event, if there is one; else let the next timer fire."""
        if self._inbox:
            kind, fields = self._inbox.popleft()
        else:
            while self._due and self._due[0][1] in self._cancelled:
                heapq.heappop(self._due)
            if not self._due:
                return False
            at, task_id = heapq.heappop(self._due)
            self.now = max(self.now, at)
            kind, fields = EventType.TIMER_FIRED, {"TimerId": task_id, "FireAt": utc_text(at)}
        self._episode(kind, fields)
        return True

    def _episode(self, kind: EventType, fields: dict[str, Any]) -> None:
        self.now += timedelta(milliseconds=10)
        now = utc_text(self.now)
        past = list(self._history)
        began, new = event_text(EventType.ORCHESTRATOR_STARTED, now), event_text(kind, now, **fields)
        self._history += [began, new]
        outcome = run_orchestrator(
            self._handle, [*past, began, as_new(new)], input_json=self._given, instance_id=self.instance_id,
            parent_instance_id=None, is_replaying=bool(past),
        )  # fmt: skip
        check_determinism(self._keys, outcome)
        if outcome.custom_status is not None and (shown := json.loads(outcome.custom_status)) not in self.statuses[-1:]:
            self.statuses.append(shown)
        if outcome.continue_as_new is not None:
            events = [one for one in self._inbox if one[0] is EventType.EVENT_RAISED]
            self._begin(json.loads(outcome.continue_as_new))
            self._inbox.extendleft(reversed(events))
            return
        self._retry(kind, fields)
        for action in outcome.tasks[len(self._keys) :]:
            self._schedule(action)
        for ordinal, action in enumerate(outcome.tasks):
            if action.is_cancelled:
                self._cancelled.add(self._timer_ids[ordinal])
        self._history.append(event_text(EventType.ORCHESTRATOR_COMPLETED, now))
        self._end(outcome)

    def _end(self, outcome: Outcome) -> None:
        if outcome.is_done or outcome.error is not None:
            status = self.statuses[-1] if self.statuses else None
            self.ended = Ended(json.loads(outcome.output), outcome.error, status)

    def _retry(self, kind: EventType, fields: dict[str, Any]) -> None:
        """After each failure a timer, also after the last; when it fires, the task once more."""
        if kind in (EventType.TASK_FAILED, EventType.SUB_ORCHESTRATION_FAILED):
            call = self._calls[fields["TaskScheduledId"]]
            action = self._actions[fields["TaskScheduledId"]]
            if action.key.is_retried:
                at = self.now + timedelta(milliseconds=action.retry_interval_ms)
                self._retry_timers[self._timer(at, call.attempt, is_retry=True)] = call
        elif kind is EventType.TIMER_FIRED and (failed := self._retry_timers.pop(fields["TimerId"], None)):
            action = self._actions[failed.task_id]
            if failed.attempt < action.max_attempts:
                self._call(action, failed.attempt + 1)

    def _schedule(self, action: TaskAction) -> None:
        self._keys.append(action.key)
        if action.key.kind == "timer":
            at = datetime.fromisoformat(action.fire_at or "")
            at = at if at.tzinfo else at.replace(tzinfo=UTC)
            ordinal = len(self._keys) - 1
            self._timer_ids[ordinal] = self._timer(at, 1, is_retry=False)
            self._timer_seconds.append((self._timer_ids[ordinal], round((at - self.now).total_seconds(), 3)))
        else:
            self._call(action, 1)

    def _timer(self, at: datetime, attempt: int, *, is_retry: bool) -> int:
        task_id = self._number()
        heapq.heappush(self._due, (at, task_id))
        self._history.append(event_text(EventType.TIMER_CREATED, utc_text(self.now), task_id, FireAt=utc_text(at)))
        return task_id

    def _call(self, action: TaskAction, attempt: int) -> None:
        task_id = self._number()
        is_activity = action.key.is_activity
        kind = EventType.TASK_SCHEDULED if is_activity else EventType.SUB_ORCHESTRATION_CREATED
        extra = {} if is_activity else {"InstanceId": action.instance_id}
        self._history.append(
            event_text(kind, utc_text(self.now), task_id, Name=action.key.name, Version="", Input=action.input, **extra)
        )
        given = json.loads(action.input) if isinstance(action.input, str) else action.input
        call = Call(action.key.kind, action.key.name, given, action.instance_id, self.generation, task_id, attempt)
        self.calls.append(call)
        self._calls[task_id] = call
        self._actions[task_id] = action
        result = self.answer(call)
        if result is not Never:
            self._complete(call, result)

    def _complete(self, call: Call, result: Any) -> None:
        call.settled = True
        is_activity = call.kind.startswith("activity")
        if isinstance(result, Exception):
            kind = EventType.TASK_FAILED if is_activity else EventType.SUB_ORCHESTRATION_FAILED
            fields = {"TaskScheduledId": call.task_id, "Reason": str(result), "Details": ""}
        else:
            kind = EventType.TASK_COMPLETED if is_activity else EventType.SUB_ORCHESTRATION_COMPLETED
            fields = {"TaskScheduledId": call.task_id, "Result": json.dumps(result)}
        self._inbox.append((kind, fields))

    def _number(self) -> int:
        self._next_id += 1
        return self._next_id - 1
