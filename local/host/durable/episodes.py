"""Episodes: one new event each, in one transaction.

An episode takes one message from an instance's inbox, appends it to the history, replays the orchestrator, and
appends and queues what it scheduled. With exactly one new event there is no doubt which number the SDK gives a retry's
timer and which the user's next task, so that any mix of retries and `task_any` replays the same way.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from local.host.app_index import AppIndex
from local.host.durable.events import EventType, as_new, event_text, now_text, utc_text
from local.host.durable.lifecycle import check_instance_id, create_instance, finish_instance, unknown_function
from local.host.durable.replay import (
    OrchestrationFailure,
    Outcome,
    TaskAction,
    TaskKey,
    check_custom_status,
    check_determinism,
    run_orchestrator,
)
from local.host.durable.store import Instance, Message, Status, Store
from local.host.invoke import running_function

_log = logging.getLogger("Host.Triggers.DurableTask")
_CACHE_LIMIT_BYTES: Final = 64 * 1024 * 1024
_FAILURES: Final = (EventType.TASK_FAILED, EventType.SUB_ORCHESTRATION_FAILED)
_SCHEDULINGS: Final = (EventType.TASK_SCHEDULED, EventType.SUB_ORCHESTRATION_CREATED, EventType.TIMER_CREATED)


@dataclass(frozen=True, slots=True)
class _Task:
    """One number that the SDK gave out: a task, or the timer before its next attempt.

    Attributes:
        ordinal: Which of the orchestrator's tasks it belongs to, counted in the order of scheduling.
        attempt: From 1.
    """

    ordinal: int
    attempt: int
    is_retry_timer: bool


@dataclass(slots=True)
class _Live:
    """An unfinished instance with what its next replay needs; `new_events` are not in the file yet."""

    instance: Instance
    history: list[str] = field(default_factory=list)
    new_events: list[tuple[EventType, str]] = field(default_factory=list)
    tasks: dict[int, _Task] = field(default_factory=dict)
    keys: list[TaskKey] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    raised: dict[str, int] = field(default_factory=dict)
    cancelled: set[int] = field(default_factory=set)
    size_bytes: int = 0

    def append(self, kind: EventType, text: str) -> None:
        self.new_events.append((kind, text))
        self.take_in(kind, text)

    def take_in(self, kind: EventType, text: str) -> None:
        self.history.append(text)
        self.size_bytes += len(text)
        if kind in _SCHEDULINGS:
            event = json.loads(text)
            about = event["HostTask"]
            task = _Task(about["ordinal"], about["attempt"], about["isRetryTimer"])
            self.tasks[event["EventId"]] = task
            if task.ordinal == len(self.keys):
                self.keys.append(TaskKey(about["kind"], event.get("Name") or ""))
                self.ids.append(event["EventId"])
        elif kind is EventType.EVENT_RAISED:
            name = json.loads(text)["Name"]
            self.raised[name] = self.raised.get(name, 0) + 1

    def write(self, store: Store) -> None:
        first = len(self.history) - len(self.new_events)
        store.append_history(self.instance.instance_id, first, self.new_events)
        self.new_events.clear()


class EpisodeRunner:
    """Runs episodes on the store's thread.

    Args:
        rewind: Sets a failed sub-orchestration back; called when its rewound parent schedules it again.
    """

    def __init__(self, store: Store, app: AppIndex, rewind: Callable[[Instance], None]) -> None:
        self._store = store
        self._app = app
        self._rewind = rewind
        self._live: OrderedDict[str, _Live] = OrderedDict()
        self._cached_bytes = 0

    def forget(self, instance_id: str) -> None:
        """Drop what is kept in memory of an instance, because its rows are being changed elsewhere."""
        self._take(instance_id)

    def run(self, instance_id: str) -> set[str]:
        """Run the next episode, if there is one; returns the instances that may have one now."""
        live = self._take(instance_id)
        with self._store.transaction():
            live = live or self._load(instance_id)
            if live is None:
                return set()
            message: Message | None = None
            if live.instance.is_started:
                message = self._store.next_message(instance_id, list(json.loads(live.instance.waits)))
                if message is not None:
                    self._store.delete_message(message.id)
            if live.instance.is_started and message is None:
                woken: set[str] = set()
            else:
                woken = self._run(live, message)
        # Only after the commit: an episode that did not happen must not be remembered.
        if not live.instance.status.is_final:
            self._keep(live)
        return woken

    def _take(self, instance_id: str) -> _Live | None:
        live = self._live.pop(instance_id, None)
        if live is not None:
            self._cached_bytes -= live.size_bytes
        return live

    def _keep(self, live: _Live) -> None:
        self._live[live.instance.instance_id] = live
        self._cached_bytes += live.size_bytes
        while self._cached_bytes > _CACHE_LIMIT_BYTES and len(self._live) > 1:
            _, oldest = self._live.popitem(last=False)
            self._cached_bytes -= oldest.size_bytes

    def _load(self, instance_id: str) -> _Live | None:
        instance = self._store.get_instance(instance_id)
        if instance is None or instance.status.is_final or instance.status is Status.SUSPENDED:
            return None
        live = _Live(instance)
        for kind, text in self._store.get_history(instance_id):
            live.take_in(kind, text)
        return live

    def _run(self, live: _Live, message: Message | None) -> set[str]:
        instance = live.instance
        now = now_text()
        began = event_text(EventType.ORCHESTRATOR_STARTED, now)
        kind, new = _event_of(instance, message, now)
        past = list(live.history)
        live.append(EventType.ORCHESTRATOR_STARTED, began)
        live.append(kind, new)
        try:
            outcome = self._replay(live, [*past, began, as_new(new)], is_replaying=bool(past))
        except OrchestrationFailure as failure:
            return self._fail(live, failure)
        instance.is_started = True
        instance.status = Status.RUNNING
        instance.updated_at = now
        if outcome.continue_as_new is not None:
            return self._continue_as_new(live, outcome.continue_as_new)
        woken = {instance.instance_id}
        if message is not None and message.task_id is not None:
            self._retry(live, outcome, message, now, woken)
        for ordinal in range(len(live.keys), len(outcome.tasks)):
            self._schedule(live, outcome.tasks[ordinal], ordinal, 1, now, woken)
        for ordinal, task in enumerate(outcome.tasks):
            if task.is_cancelled and ordinal not in live.cancelled:
                live.cancelled.add(ordinal)
                self._store.cancel_timer(instance.instance_id, live.ids[ordinal])
        live.append(EventType.ORCHESTRATOR_COMPLETED, event_text(EventType.ORCHESTRATOR_COMPLETED, now_text()))
        live.write(self._store)
        if outcome.is_done:
            level = logging.DEBUG if instance.parent_id else logging.INFO
            _log.log(level, "%s: Function '%s (Orchestrator)' completed.", instance.instance_id, instance.name)
            return woken | finish_instance(self._store, instance, Status.COMPLETED, outcome.output)
        unanswered = {name: count - live.raised.get(name, 0) for name, count in outcome.waits.items()}
        instance.waits = json.dumps({name: count for name, count in unanswered.items() if count > 0})
        self._store.update_instance(instance)
        return woken

    def _replay(self, live: _Live, history: Sequence[str], *, is_replaying: bool) -> Outcome:
        instance = live.instance
        function = self._app.orchestrators.get(instance.name)
        if function is None:
            raise OrchestrationFailure(unknown_function(instance.name, "orchestrator", self._app.orchestrators))
        if not is_replaying and instance.parent_id is None:
            _log.info("%s: Function '%s (Orchestrator)' started.", instance.instance_id, instance.name)
        name_token = running_function.set(function.name)
        try:
            outcome = run_orchestrator(
                function.call,
                history,
                input_json=instance.input,
                instance_id=instance.instance_id,
                parent_instance_id=instance.parent_id,
                is_replaying=is_replaying,
            )
        finally:
            running_function.reset(name_token)
        check_determinism(live.keys, outcome)
        if outcome.custom_status is not None and outcome.custom_status != instance.custom_status:
            check_custom_status(outcome.custom_status)
            # Before the error: what an orchestrator shows on its way out stays visible, as on the platform.
            instance.custom_status = outcome.custom_status
        if outcome.error is not None:
            raise OrchestrationFailure(outcome.error) from outcome.exception
        for task in outcome.tasks[len(live.keys) :]:
            if task.key.is_activity and task.key.name not in self._app.activities:
                raise OrchestrationFailure(unknown_function(task.key.name, "activity", self._app.activities))
            if task.key.is_sub_orchestration:
                if task.key.name not in self._app.orchestrators:
                    raise OrchestrationFailure(unknown_function(task.key.name, "orchestrator", self._app.orchestrators))
                if task.instance_id is not None and (problem := check_instance_id(task.instance_id)):
                    raise OrchestrationFailure(problem)
        return outcome

    def _fail(self, live: _Live, failure: OrchestrationFailure) -> set[str]:
        instance = live.instance
        text = f"Orchestrator function '{instance.name}' failed: {failure}"
        _log.error("%s: %s", instance.instance_id, text, exc_info=failure.__cause__)
        instance.is_started = True
        live.append(EventType.ORCHESTRATOR_COMPLETED, event_text(EventType.ORCHESTRATOR_COMPLETED, now_text()))
        live.write(self._store)
        return finish_instance(self._store, instance, Status.FAILED, json.dumps(text))

    def _continue_as_new(self, live: _Live, next_input: str) -> set[str]:
        """Begin the next generation: external events that nobody has taken yet stay in the inbox."""
        instance = live.instance
        self._store.clear_history(instance.instance_id)
        self._store.delete_timers(instance.instance_id)
        self._store.delete_messages(instance.instance_id, keep_events=True)
        self._store.delete_recorded(instance.instance_id)
        instance.execution_id = uuid.uuid4().hex
        instance.input = next_input
        instance.is_started = False
        instance.is_rewound = False
        instance.next_task_id = 0
        instance.waits = "{}"
        self._store.put_instance(instance)
        live.history, live.new_events, live.keys, live.ids = [], [], [], []
        live.tasks, live.raised, live.cancelled, live.size_bytes = {}, {}, set(), 0
        return {instance.instance_id}

    def _retry(self, live: _Live, outcome: Outcome, message: Message, now: str, woken: set[str]) -> None:
        """Do the host's part of a retry: a timer after each failure, also the last, and then the task again."""
        task = live.tasks.get(message.task_id if message.task_id is not None else -1)
        if task is None:
            return
        action = outcome.tasks[task.ordinal]
        if not action.key.is_retried:
            return
        if message.kind in _FAILURES:
            due = datetime.fromisoformat(now) + timedelta(milliseconds=action.retry_interval_ms)
            self._create_timer(live, action, task.ordinal, task.attempt, utc_text(due), now, is_retry_timer=True)
        elif message.kind is EventType.TIMER_FIRED and task.is_retry_timer and task.attempt < action.max_attempts:
            self._schedule(live, action, task.ordinal, task.attempt + 1, now, woken)

    def _schedule(self, live: _Live, action: TaskAction, ordinal: int, attempt: int, now: str, woken: set[str]) -> None:
        if action.key.is_activity:
            self._schedule_activity(live, action, ordinal, attempt, now)
        elif action.key.is_sub_orchestration:
            self._start_child(live, action, ordinal, attempt, now, woken)
        else:
            due = utc_text(datetime.fromisoformat(action.fire_at or now))
            self._create_timer(live, action, ordinal, attempt, due, now, is_retry_timer=False)

    def _number(self, live: _Live) -> int:
        task_id = live.instance.next_task_id
        live.instance.next_task_id += 1
        return task_id

    def _create_timer(
        self, live: _Live, action: TaskAction, ordinal: int, attempt: int, due: str, now: str, *, is_retry_timer: bool
    ) -> None:
        task_id = self._number(live)
        about = {"ordinal": ordinal, "attempt": attempt, "isRetryTimer": is_retry_timer, "kind": action.key.kind}
        text = event_text(EventType.TIMER_CREATED, now, task_id, FireAt=due, HostTask=about)
        live.append(EventType.TIMER_CREATED, text)
        self._store.put_timer(live.instance.instance_id, task_id, due)

    def _schedule_activity(self, live: _Live, action: TaskAction, ordinal: int, attempt: int, now: str) -> None:
        instance = live.instance
        task_id = self._number(live)
        about = {"ordinal": ordinal, "attempt": attempt, "isRetryTimer": False, "kind": action.key.kind}
        fields: dict[str, Any] = {"Name": action.key.name, "Version": "", "Input": action.input, "HostTask": about}
        live.append(EventType.TASK_SCHEDULED, event_text(EventType.TASK_SCHEDULED, now, task_id, **fields))
        recorded = None
        if instance.is_rewound and attempt == 1:
            recorded = self._store.take_recorded(instance.instance_id, "activity", action.key.name, action.input)
        if recorded is not None and recorded.source == "result":
            self._store.put_message(
                instance.instance_id, EventType.TASK_COMPLETED, task_id=task_id, payload=recorded.payload
            )
        elif (
            recorded is None
            or recorded.source != "activity"
            or not self._store.adopt_activity(int(recorded.payload or 0), instance, task_id)
        ):
            self._store.put_activity(instance, task_id, action.key.name, action.input)

    def _start_child(
        self, live: _Live, action: TaskAction, ordinal: int, attempt: int, now: str, woken: set[str]
    ) -> None:
        instance = live.instance
        task_id = self._number(live)
        recorded = None
        if instance.is_rewound and attempt == 1:
            recorded = self._store.take_recorded(
                instance.instance_id, "sub-orchestration", action.key.name, action.input
            )
        child_id = action.instance_id or f"{instance.execution_id}:{task_id:04x}"
        if recorded is not None and recorded.source == "child" and action.instance_id is None:
            child_id = recorded.payload or child_id
        about = {"ordinal": ordinal, "attempt": attempt, "isRetryTimer": False, "kind": action.key.kind}
        fields: dict[str, Any] = {
            "Name": action.key.name,
            "InstanceId": child_id,
            "Input": action.input,
            "HostTask": about,
        }
        live.append(
            EventType.SUB_ORCHESTRATION_CREATED,
            event_text(EventType.SUB_ORCHESTRATION_CREATED, now, task_id, **fields),
        )
        if recorded is not None and recorded.source == "result":
            self._store.put_message(
                instance.instance_id, EventType.SUB_ORCHESTRATION_COMPLETED, task_id=task_id, payload=recorded.payload
            )
            return
        existing = self._store.get_instance(child_id)
        if recorded is not None and existing is not None and self._adopt_child(instance, task_id, existing):
            woken.add(child_id)
            return
        if existing is not None and not existing.status.is_final:
            reason = f"An orchestration instance with the id '{child_id}' is already {existing.status.value}."
            self._store.put_message(
                instance.instance_id, EventType.SUB_ORCHESTRATION_FAILED, task_id=task_id, payload=reason, details=""
            )
            return
        self.forget(child_id)
        create_instance(
            self._store,
            child_id,
            action.key.name,
            None if action.input is None else json.dumps(action.input),
            version=action.version,
            parent=(instance.instance_id, instance.execution_id, task_id),
        )
        woken.add(child_id)

    def _adopt_child(self, parent: Instance, task_id: int, child: Instance) -> bool:
        """Let a sub-orchestration of before the rewind report to the task that stands for it now."""
        if child.status is Status.TERMINATED:
            return False
        self.forget(child.instance_id)
        child.parent_execution_id, child.parent_task_id = parent.execution_id, task_id
        if child.status is Status.COMPLETED:
            self._store.put_message(
                parent.instance_id, EventType.SUB_ORCHESTRATION_COMPLETED, task_id=task_id, payload=child.output
            )
        elif child.status is Status.FAILED:
            self._rewind(child)
        self._store.update_instance(child)
        return True


def _event_of(instance: Instance, message: Message | None, now: str) -> tuple[EventType, str]:
    if message is None:
        parent = None if instance.parent_id is None else {"InstanceId": instance.parent_id}
        fields: dict[str, Any] = {
            "Name": instance.name,
            "Version": instance.version or "",
            "Input": instance.input,
            "OrchestrationInstance": {"InstanceId": instance.instance_id, "ExecutionId": instance.execution_id},
            "ParentInstance": parent,
        }
        return EventType.EXECUTION_STARTED, event_text(EventType.EXECUTION_STARTED, now, **fields)
    if message.kind is EventType.EVENT_RAISED:
        fields = {"Name": message.name, "Input": message.payload}
    elif message.kind is EventType.TIMER_FIRED:
        fields = {"TimerId": message.task_id, "FireAt": message.payload}
    elif message.kind in _FAILURES:
        fields = {"TaskScheduledId": message.task_id, "Reason": message.payload, "Details": message.details}
    else:
        fields = {"TaskScheduledId": message.task_id, "Result": message.payload}
    return message.kind, event_text(message.kind, now, **fields)
