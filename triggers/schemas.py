"""What the API answers, as JSON schemas; the jobs' own are in their models."""

import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from shared.model.mltable_steps import AssetRecord
from shared.model.records import FileRecord
from shared.model.sql_steps import TableRecord
from triggers.status import STATUSES

_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}
_MOMENT = {"type": "string", "format": "date-time"}
_MOMENT_OR_NONE = {"type": ["string", "null"], "format": "date-time"}
_COUNTS = (
    "planned", "uploaded", "skipped", "renamed", "failed", "deleted", "bytes_planned", "bytes_done", "waiting_batches",
)  # fmt: skip


def of_record(record: type) -> dict[str, Any]:
    """A typed dictionary's own fields. What a record says nothing of is null in a manifest, and absent elsewhere."""
    hints = get_type_hints(record)
    return {"type": "object", "properties": {name: _of(hint | None) for name, hint in hints.items()}}


def _of(hint: Any) -> dict[str, Any]:
    if hint is Any:
        return {}
    if hint in _TYPES:
        return {"type": _TYPES[hint]}
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_of(one) for one in arguments]}
    if origin is list:
        return {"type": "array", "items": _of(arguments[0])}
    if origin is dict:
        return {"type": "object", "additionalProperties": _of(arguments[1])}
    raise TypeError(f"{hint} has no schema")


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(properties: dict[str, Any], *, optional: tuple[str, ...] = ()) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _texts(*names: str) -> dict[str, Any]:
    return {name: {"type": "string"} for name in names}


def _page(item: dict[str, Any]) -> dict[str, Any]:
    return _object({"value": {"type": "array", "items": item}, "continuation": {"type": ["string", "null"]}})


_ACTIONS = ("self", "manifest", "items", "pause", "resume", "cancel", "retry-failed")
_LINKS = _object(_texts(*_ACTIONS))

_PROGRESS = _object(
    {
        **{name: {"type": "integer"} for name in _COUNTS},
        "planning_done": {"type": "boolean"},
        "listed": {
            "type": "integer",
            "description": "items read so far of libraries and containers, which is done before planning",
        },
        "items_per_s": {"type": "number"},
        "bytes_per_s": {"type": "number"},
        "eta_s": {"type": ["integer", "null"]},
        "success_rate": {"type": ["number", "null"]},
        "rows_planned": {"type": "integer", "description": "kind: sql; estimated"},
        "rows_done": {"type": "integer", "description": "kind: sql"},
    },
    optional=("rows_planned", "rows_done"),
)

_CONCURRENCY = {
    **_object({
        "level": {"type": ["integer", "null"], "description": "null once the run has ended"},
        "reason": {"type": ["string", "null"]},
        "changes": {
            "type": "array",
            "description": "the larger moves of it so far",
            "items": _object({"at": _MOMENT, "level": {"type": "integer"}, "reason": {"type": "string"}}),
        },
    }),
    "type": ["object", "null"],
    "description": "how many uploads a worker has in flight, while files are moved",
}  # fmt: skip

_SOURCE_LOAD = {
    **_object({
        "units": {"type": "integer"},
        "ceiling": {"type": ["integer", "null"], "description": "allowed in a minute; null as long as unknown"},
        "share": {"type": ["number", "null"]},
    }),
    "type": ["object", "null"],
    "description": "resource units of SharePoint that a worker spent in the last minute, while items are moved",
}  # fmt: skip

_STATUS = _object({
    **_texts("id", "kind", "name"),
    "status": {"type": "string", "enum": list(STATUSES)},
    "started_at": _MOMENT,
    "updated_at": _MOMENT_OR_NONE,
    "ended_at": _MOMENT_OR_NONE,
    "round": {"type": "integer", "description": "2 and more after retry-failed"},
    "phase": {"type": "string"},
    "progress": _PROGRESS,
    "concurrency": _CONCURRENCY,
    "source_load": _SOURCE_LOAD,
    "verification": {"type": ["object", "null"], "additionalProperties": True},
    "error": {**_object(_texts("code", "message")), "type": ["object", "null"]},
    "links": _LINKS,
})  # fmt: skip

_ERROR = _object({
    "error": _object({
        **_texts("code", "message"),
        "details": {"type": "array", "items": _object(_texts("path", "message"))},
    })
})  # fmt: skip

_STARTED = {
    **_object({**_texts("id", "kind", "name"), "links": _LINKS}),
    "description": "with the runtime's own addresses for managing the run",
    "additionalProperties": {"type": "string"},
}

_MANIFEST = {
    **_object({
        **_texts("id", "kind", "name", "app_version"),
        "status": {"type": "string"},
        "started_at": {"type": "string"},
        "ended_at": {"type": "string"},
        "spec": {"type": "object", "additionalProperties": True},
        "counts": {"type": "object", "additionalProperties": {"type": "integer"}},
        "bytes": {"type": "object", "additionalProperties": {"type": "integer"}},
        "verification": {"type": ["object", "null"], "additionalProperties": True},
        "error": {"type": ["object", "null"], "additionalProperties": True},
        "items": {"type": "array", "items": ref("Record"), "description": "not with format=summary"},
    }, optional=("items",)),
    "additionalProperties": True,
}  # fmt: skip

_SCHEDULE = _object({
    **_texts("name", "schedule"),
    "spec": ref("Job"),
    "considered_at": _MOMENT,
    "last_run": {"type": ["string", "null"]},
    "last_result": {"type": ["string", "null"]},
    "next_at": _MOMENT,
})  # fmt: skip

_HEALTH = _object({
    "ready": {"type": "boolean"},
    "version": {"type": "string"},
    "checks": {
        "type": "object",
        "additionalProperties": _object(
            {"ready": {"type": "boolean"}, "message": {"type": "string"}}, optional=("message",)
        ),
    },
})  # fmt: skip

ANSWERS: dict[str, Any] = {
    "Error": _ERROR,
    "Status": _STATUS,
    "Started": _STARTED,
    "Runs": _page(ref("Status")),
    "Purged": _object({"id": {"type": "string"}, "purged": {"type": "boolean"}}),
    "FileRecord": of_record(FileRecord),
    "TableRecord": of_record(TableRecord),
    "AssetRecord": of_record(AssetRecord),
    "Record": {"anyOf": [ref("FileRecord"), ref("TableRecord"), ref("AssetRecord")]},
    "Items": _page(ref("Record")),
    "Manifest": _MANIFEST,
    "Schedule": _SCHEDULE,
    "Schedules": _object({"value": {"type": "array", "items": ref("Schedule")}}),
    "Health": _HEALTH,
}
