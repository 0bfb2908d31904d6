"""The beginning and the end of an instance, as rows: shared by episodes and by the management operations."""

from __future__ import annotations

import json
import unicodedata
import uuid
from collections.abc import Iterable
from typing import Final

from local.host.durable.events import EventType, event_text, now_text
from local.host.durable.store import Instance, Status, Store

MAX_INSTANCE_ID_LENGTH: Final = 100


def check_instance_id(instance_id: str) -> str | None:
    """What is wrong with an instance id that a caller chose, or None.

    Source: https://learn.microsoft.com/azure/azure-functions/durable/durable-functions-instance-management
    """
    if not 1 <= len(instance_id) <= MAX_INSTANCE_ID_LENGTH:
        return f"An instance id has 1 to {MAX_INSTANCE_ID_LENGTH} characters; this one has {len(instance_id)}."
    if instance_id.startswith("@"):
        return f"The instance id '{instance_id}' starts with '@', which is kept for entities."
    if any(character in "/\\#?" or unicodedata.category(character) in {"Cc", "Cs"} for character in instance_id):
        return f"The instance id {instance_id!r} holds one of / \\ # ? or a control character: leave them out."
    return None


def unknown_function(name: str, kind: str, known: Iterable[str]) -> str:
    """The sentence for a function name that the app does not have."""
    article = "an" if kind[0] in "ao" else "a"
    return (
        f"The function '{name}' doesn't exist, is disabled, or is not {article} {kind} function. Additional info:"
        f" the following are the known {kind} functions: {', '.join(sorted(known)) or 'none'}"
    )


def create_instance(
    store: Store,
    instance_id: str,
    name: str,
    input_json: str | None,
    *,
    version: str | None = None,
    parent: tuple[str, str, int] | None = None,
) -> Instance:
    """Write a new instance, in place of an ended one with the same id.

    `parent` is the instance id, execution id and task id of who waits for it.
    """
    store.delete_instance(instance_id, keep_activities=True)
    now = now_text()
    parent_id, parent_execution_id, parent_task_id = parent or (None, None, None)
    instance = Instance(
        instance_id=instance_id,
        execution_id=uuid.uuid4().hex,
        name=name,
        input=input_json,
        output=None,
        custom_status=None,
        status=Status.PENDING,
        is_started=False,
        is_rewound=False,
        created_at=now,
        updated_at=now,
        version=version,
        parent_id=parent_id,
        parent_execution_id=parent_execution_id,
        parent_task_id=parent_task_id,
    )
    store.put_instance(instance)
    return instance


def finish_instance(store: Store, instance: Instance, status: Status, output: str | None) -> set[str]:
    """End an instance and tell its parent; returns the instances that have something to process now.

    Activities under way or queued run to their end, as on the platform, and their results go nowhere. Only a failed
    instance still takes them in, for the case that it is rewound.
    """
    now = now_text()
    instance.status, instance.output, instance.updated_at, instance.waits = status, output, now, "{}"
    store.update_instance(instance)
    store.append_history(
        instance.instance_id, store.count_history(instance.instance_id), [_end_event(status, output, now)]
    )
    store.delete_timers(instance.instance_id)
    if status is not Status.FAILED:
        store.delete_messages(instance.instance_id)
        store.delete_recorded(instance.instance_id)
    if instance.parent_id is None or instance.parent_task_id is None:
        return set()
    parent = store.get_instance(instance.parent_id)
    if parent is None or parent.execution_id != instance.parent_execution_id or not takes_results(parent):
        return set()
    if status is Status.COMPLETED:
        store.put_message(
            parent.instance_id,
            EventType.SUB_ORCHESTRATION_COMPLETED,
            task_id=instance.parent_task_id,
            payload=output,
        )
    else:
        store.put_message(
            parent.instance_id,
            EventType.SUB_ORCHESTRATION_FAILED,
            task_id=instance.parent_task_id,
            payload=failure_reason(instance),
            details="",
        )
    return {parent.instance_id}


def takes_results(instance: Instance) -> bool:
    """Whether what its tasks report is still of use."""
    return not instance.status.is_final or instance.status is Status.FAILED


def failure_reason(instance: Instance) -> str:
    """What the parent of a failed or terminated instance gets to read."""
    text = json.loads(instance.output or "null")
    verb = "was terminated" if instance.status is Status.TERMINATED else "failed"
    return f"The sub-orchestrator function '{instance.name}' {verb}: {text}"


def _end_event(status: Status, output: str | None, now: str) -> tuple[EventType, str]:
    if status is Status.TERMINATED:
        return EventType.EXECUTION_TERMINATED, event_text(EventType.EXECUTION_TERMINATED, now, Input=output)
    text = event_text(EventType.EXECUTION_COMPLETED, now, OrchestrationStatus=status.value, Result=output)
    return EventType.EXECUTION_COMPLETED, text
