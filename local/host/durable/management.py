"""What a client may do with instances; each operation is one transaction on the store's thread."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from local.host.app_index import AppIndex
from local.host.durable.events import EventType, event_text, now_text
from local.host.durable.lifecycle import (
    check_instance_id,
    create_instance,
    finish_instance,
    unknown_function,
)
from local.host.durable.store import Instance, RecordedResult, Status, Store

_log = logging.getLogger("Host.Triggers.DurableTask")


class NotFoundError(Exception):
    """There is no instance with that id."""


class GoneError(Exception):
    """The instance has ended, so that the operation has no meaning any more."""


class ConflictError(Exception):
    """An instance with that id is alive."""


class InvalidRequestError(Exception):
    """The request names something that cannot be."""


@dataclass(frozen=True, slots=True)
class InstanceFilter:
    """Which instances a query or purge is about; times as `events.utc_text` writes them, None for no bound."""

    statuses: Sequence[str] = ()
    created_from: str | None = None
    created_to: str | None = None
    id_prefix: str | None = None


class Management:
    """The operations of the management API.

    Args:
        wake: Told which instances have something to process.
        forget: Told which instance's rows are being changed.
    """

    def __init__(
        self,
        store: Store,
        app: AppIndex,
        wake: Callable[[Iterable[str]], None],
        forget: Callable[[str], None],
    ) -> None:
        self._store = store
        self._app = app
        self._wake = wake
        self._forget = forget

    def start(self, name: str, instance_id: str | None, input_json: str | None, version: str | None = None) -> str:
        """Start an instance and return its id; an ended one with the same id is replaced.

        Raises:
            InvalidRequestError: No such orchestrator, or the id cannot be one.
            ConflictError: An instance with that id is alive.
        """
        if name not in self._app.orchestrators:
            raise InvalidRequestError(unknown_function(name, "orchestrator", self._app.orchestrators))
        instance_id = instance_id or uuid.uuid4().hex
        if problem := check_instance_id(instance_id):
            raise InvalidRequestError(problem)
        with self._store.transaction():
            existing = self._store.get_instance(instance_id)
            if existing is not None and not existing.status.is_final:
                raise ConflictError(
                    f"An Orchestration instance with the status {existing.status.value} already exists."
                )
            create_instance(self._store, instance_id, name, input_json, version=version)
        self._forget(instance_id)
        self._wake((instance_id,))
        return instance_id

    def restart(self, instance_id: str, *, with_new_id: bool) -> str:
        """Start the same orchestrator with the same input; returns the id of the instance.

        Raises:
            NotFoundError, ConflictError, InvalidRequestError: As `start`.
        """
        instance = self.get(instance_id)
        return self.start(instance.name, None if with_new_id else instance_id, instance.input, instance.version)

    def get(self, instance_id: str) -> Instance:
        """Raises NotFoundError when there is none."""
        instance = self._store.get_instance(instance_id)
        if instance is None:
            raise NotFoundError(instance_id)
        return instance

    def history(self, instance_id: str) -> list[dict[str, Any]]:
        """The events of the instance's present generation."""
        return [json.loads(text) for _, text in self._store.get_history(instance_id)]

    def find(self, wanted: InstanceFilter, *, after: tuple[str, str] | None, limit: int) -> list[Instance]:
        return self._store.find_instances(
            statuses=wanted.statuses,
            created_from=wanted.created_from,
            created_to=wanted.created_to,
            id_prefix=wanted.id_prefix,
            after=after,
            limit=limit,
        )

    def raise_event(self, instance_id: str, name: str, data_json: str) -> None:
        """Put an external event into the instance's inbox, where it stays until the instance waits for its name.

        That is what the platform documents. SDK 1.x, given a history that holds an event before its wait, sets
        the event aside and never takes it off (`deferred_tasks` of its replay), hence the warning.
        """
        with self._store.transaction():
            instance = self._alive(instance_id)
            if instance.is_started and name not in json.loads(instance.waits):
                _log.warning(
                    "%s: event '%s' came before the orchestrator waited for it and is kept; on Azure, SDK 1.x gives"
                    " such an event to every later wait of that name.",
                    *(instance_id, name),
                )
            self._store.put_message(instance_id, EventType.EVENT_RAISED, name=name, payload=data_json)
        self._wake((instance_id,))

    def terminate(self, instance_id: str, reason: str) -> None:
        """End an instance now; what it has started runs on, and its parent sees a failure."""
        with self._store.transaction():
            instance = self._alive(instance_id)
            self._forget(instance_id)
            woken = finish_instance(self._store, instance, Status.TERMINATED, json.dumps(reason))
        _log.warning("%s: Function '%s (Orchestrator)' was terminated.", instance_id, instance.name)
        self._wake(woken)

    def suspend(self, instance_id: str, reason: str) -> None:
        """Let messages pile up unprocessed until `resume`; activities under way go on."""
        with self._store.transaction():
            instance = self._alive(instance_id)
            if instance.status is Status.SUSPENDED:
                return
            self._change_status(instance, Status.SUSPENDED, EventType.EXECUTION_SUSPENDED, reason)

    def resume(self, instance_id: str, reason: str) -> None:
        """Undo `suspend`; no effect on an instance that is not suspended."""
        with self._store.transaction():
            instance = self._alive(instance_id)
            if instance.status is not Status.SUSPENDED:
                return
            status = Status.RUNNING if instance.is_started else Status.PENDING
            self._change_status(instance, status, EventType.EXECUTION_RESUMED, reason)
        self._wake((instance_id,))

    def rewind(self, instance_id: str, reason: str) -> None:
        """Set a failed instance back to before its failures; see `_set_back`.

        Raises:
            NotFoundError: There is none.
            GoneError: It has ended otherwise than by failing.
            InvalidRequestError: It is alive.
        """
        with self._store.transaction():
            instance = self.get(instance_id)
            if instance.status is not Status.FAILED:
                if instance.status.is_final:
                    raise GoneError(instance_id)
                raise InvalidRequestError("The rewind operation is only supported on failed orchestration instances.")
            self._set_back(instance)
            self._store.update_instance(instance)
        _log.warning("%s: Function '%s (Orchestrator)' was rewound: %s", instance_id, instance.name, reason)
        self._wake((instance_id,))

    def set_back_child(self, instance: Instance) -> None:
        """Rewind a failed sub-orchestration inside its parent's episode; the caller writes the row."""
        self._set_back(instance)
        self._wake((instance.instance_id,))

    def purge(self, instance_id: str) -> int:
        """Delete an ended instance; returns how many were deleted, 0 for one that is alive."""
        with self._store.transaction():
            if not self.get(instance_id).status.is_final:
                return 0
            self._forget(instance_id)
            self._store.delete_instance(instance_id)
        return 1

    def purge_by(self, wanted: InstanceFilter) -> int:
        """Delete the ended instances that match; returns how many."""
        final = [status.value for status in Status if status.is_final]
        statuses = [status for status in wanted.statuses if status in final] if wanted.statuses else final
        if not statuses:
            return 0
        with self._store.transaction():
            found = self._store.find_instances(
                statuses=statuses, created_from=wanted.created_from, created_to=wanted.created_to
            )
            for instance in found:
                self._forget(instance.instance_id)
                self._store.delete_instance(instance.instance_id)
        return len(found)

    def _alive(self, instance_id: str) -> Instance:
        instance = self.get(instance_id)
        if instance.status.is_final:
            raise GoneError(instance_id)
        return instance

    def _change_status(self, instance: Instance, status: Status, kind: EventType, reason: str) -> None:
        self._forget(instance.instance_id)
        instance.status = status
        instance.updated_at = now_text()
        self._store.update_instance(instance)
        # A history must begin with the start of the orchestrator.
        if instance.is_started:
            position = self._store.count_history(instance.instance_id)
            event = event_text(kind, instance.updated_at, Reason=reason)
            self._store.append_history(instance.instance_id, position, [(kind, event)])

    def _set_back(self, instance: Instance) -> None:
        """Let a failed instance run again from the start, with all that had succeeded given to it once more.

        The history begins anew. Each result, each activity still under way and each sub-orchestration is kept aside
        under its task's name and input; when the orchestrator schedules such a task again it gets that, instead of
        running it. Failed tasks run again, failed sub-orchestrations are set back in turn, timers start again, and
        external events are delivered again in their order.
        """
        instance_id = instance.instance_id
        self._forget(instance_id)
        events, succeeded, scheduled = self._read_past(instance)
        under_way = {activity.task_id: activity.id for activity in self._store.activities_of(instance_id)
                     if activity.execution_id == instance.execution_id}  # fmt: skip
        self._store.delete_recorded(instance_id)
        for task_id, event in scheduled.items():
            is_activity = event["EventType"] == EventType.TASK_SCHEDULED
            kind = "activity" if is_activity else "sub-orchestration"
            if task_id in succeeded:
                kept = RecordedResult(0, "result", succeeded[task_id])
            elif not is_activity:
                kept = RecordedResult(0, "child", event["InstanceId"])
            elif task_id in under_way:
                kept = RecordedResult(0, "activity", str(under_way[task_id]))
            else:
                continue
            self._store.put_recorded(instance_id, kind, event["Name"], event["Input"], kept)
        self._store.delete_messages(instance_id)
        for name, data in events:
            self._store.put_message(instance_id, EventType.EVENT_RAISED, name=name, payload=data)
        self._store.clear_history(instance_id)
        instance.execution_id = uuid.uuid4().hex
        instance.status = Status.PENDING
        instance.is_started = False
        instance.is_rewound = True
        instance.output = None
        instance.next_task_id = 0
        instance.waits = "{}"
        instance.updated_at = now_text()

    def _read_past(
        self, instance: Instance
    ) -> tuple[list[tuple[str, str | None]], dict[int, str | None], dict[int, dict[str, Any]]]:
        """External events in order, results by task number, and scheduling events by task number."""
        events: list[tuple[str, str | None]] = []
        succeeded: dict[int, str | None] = {}
        scheduled: dict[int, dict[str, Any]] = {}
        for kind, text in self._store.get_history(instance.instance_id):
            event = json.loads(text)
            if kind in (EventType.TASK_SCHEDULED, EventType.SUB_ORCHESTRATION_CREATED):
                scheduled[event["EventId"]] = event
            elif kind in (EventType.TASK_COMPLETED, EventType.SUB_ORCHESTRATION_COMPLETED):
                succeeded[event["TaskScheduledId"]] = event["Result"]
            elif kind is EventType.EVENT_RAISED:
                events.append((event["Name"], event["Input"]))
        for message in self._store.messages(instance.instance_id):
            if message.kind in (EventType.TASK_COMPLETED, EventType.SUB_ORCHESTRATION_COMPLETED):
                succeeded[message.task_id or 0] = message.payload
            elif message.name is not None:
                events.append((message.name, message.payload))
        # Of a retried task only the attempt that counts is kept, or each would be used for another call.
        last_attempts = {event["HostTask"]["ordinal"]: task_id for task_id, event in scheduled.items()}
        return events, succeeded, {task_id: scheduled[task_id] for task_id in sorted(last_attempts.values())}
