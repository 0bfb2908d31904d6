"""History events as JSON text, in the shape that the Durable Functions SDK reads.

An event is serialised once, when it happens; every later replay joins the stored texts.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any


class EventType(IntEnum):
    """Numbers of the Durable Task history events (``HistoryEventType`` of the SDK)."""

    EXECUTION_STARTED = 0
    EXECUTION_COMPLETED = 1
    EXECUTION_TERMINATED = 3
    TASK_SCHEDULED = 4
    TASK_COMPLETED = 5
    TASK_FAILED = 6
    SUB_ORCHESTRATION_CREATED = 7
    SUB_ORCHESTRATION_COMPLETED = 8
    SUB_ORCHESTRATION_FAILED = 9
    TIMER_CREATED = 10
    TIMER_FIRED = 11
    ORCHESTRATOR_STARTED = 12
    ORCHESTRATOR_COMPLETED = 13
    EVENT_RAISED = 15
    EXECUTION_SUSPENDED = 19
    EXECUTION_RESUMED = 20


_PLAYED = '{"IsPlayed": true, '
_NEW = '{"IsPlayed": false, '


def event_text(event_type: EventType, timestamp: str, event_id: int = -1, **fields: Any) -> str:
    """The event as it is stored: already played, as every later replay must see it."""
    common = {"EventType": int(event_type), "EventId": event_id, "Timestamp": timestamp}
    return _PLAYED + json.dumps(common | fields)[1:]


def as_new(text: str) -> str:
    """The same event as the one episode sees it in which it is new."""
    return _NEW + text[len(_PLAYED) :]


def utc_text(moment: datetime) -> str:
    """ISO 8601 with microseconds and ``Z``; texts sort as the moments do."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def now_text() -> str:
    """The current time as `utc_text` writes it."""
    return utc_text(datetime.now(UTC))
