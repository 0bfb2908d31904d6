"""The API's own description, from the routes and the job's schema."""

from typing import Any

from shared import VERSION
from shared.model.job import FilesJob
from shared.model.mltable_job import MltableJob
from shared.model.sql_job import SqlJob
from triggers.status import STATUSES


def document(server: str) -> dict[str, Any]:
    """OpenAPI 3.1 of every route."""
    schemas: dict[str, Any] = {}
    for job in (FilesJob, MltableJob, SqlJob):
        schema = job.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**schema.pop("$defs", {}), job.__name__: schema}
    schemas |= {
        "Job": {"oneOf": [_schema_of("FilesJob"), _schema_of("MltableJob"), _schema_of("SqlJob")]},
        "Error": _ERROR,
        "Status": _STATUS,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "OneLake migration", "version": VERSION},
        "servers": [{"url": server}],
        "paths": _paths(),
        "components": {"schemas": schemas},
    }


_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {
                "code": {"type": "string"},
                "message": {"type": "string"},
                "details": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "properties": {"path": {"type": "string"}, "message": {"type": "string"}},
                    },
                },
            },
        }
    },
}

_STATUS = {
    "type": "object",
    "required": ["id", "kind", "name", "status", "started_at", "progress", "links"],
    "properties": {
        "id": {"type": "string"},
        "kind": {"type": "string"},
        "name": {"type": "string"},
        "status": {"type": "string", "enum": list(STATUSES)},
        "started_at": {"type": "string", "format": "date-time"},
        "updated_at": {"type": "string", "format": "date-time"},
        "ended_at": {"type": ["string", "null"], "format": "date-time"},
        "progress": {
            "type": "object",
            "properties": {
                **{
                    name: {"type": "integer"}
                    for name in (
                        "planned",
                        "uploaded",
                        "skipped",
                        "renamed",
                        "failed",
                        "deleted",
                        "bytes_planned",
                        "bytes_done",
                        "rows_planned",
                        "rows_done",
                    )
                },
                "planning_done": {"type": "boolean"},
                "listed": {
                    "type": "integer",
                    "description": "items read so far of libraries and containers, which is done before planning",
                },
                "items_per_s": {"type": "number"},
                "bytes_per_s": {"type": "number"},
                "eta_s": {"type": ["integer", "null"]},
                "success_rate": {"type": ["number", "null"]},
            },
        },
        "source_load": {
            "type": ["object", "null"],
            "description": "resource units of SharePoint that a worker spent in the last minute, while items are moved",
            "properties": {
                "units": {"type": "integer"},
                "ceiling": {"type": ["integer", "null"], "description": "allowed in a minute; null as long as unknown"},
                "share": {"type": ["number", "null"]},
            },
        },
        "error": {"type": ["object", "null"]},
        "links": {"type": "object"},
    },
}


def _schema_of(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _ref(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _answers(*codes: int, body: str | None = "Status") -> dict[str, Any]:
    texts = {200: "done", 201: "created", 202: "accepted", 204: "gone", 400: "the request is at fault",
             404: "there is none", 409: "the state does not allow it", 503: "not ready"}  # fmt: skip
    found: dict[str, Any] = {}
    for code in codes:
        found[str(code)] = {"description": texts[code]}
        if code >= 400:
            found[str(code)]["content"] = _ref("Error")
        elif body and code != 204:
            found[str(code)]["content"] = _ref(body)
    return found


def _parameter(name: str, where: str, kind: str = "string", values: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    if values:
        schema["enum"] = values
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _paths() -> dict[str, Any]:
    run, schedule = _parameter("id", "path"), _parameter("name", "path")
    top, continuation = _parameter("top", "query", "integer"), _parameter("continuation", "query")
    spec = {"required": True, "content": _ref("Job")}
    paths: dict[str, Any] = {
        "/migrations": {
            "post": {"summary": "Start a migration", "requestBody": spec, "responses": _answers(202, 400, 409)},
            "get": {
                "summary": "List migrations, newest first",
                "parameters": [
                    _parameter("kind", "query"), _parameter("status", "query", values=list(STATUSES)),
                    _parameter("name", "query"), top, continuation,
                ],
                "responses": _answers(200, 400, body=None),
            },
        },
        "/migrations/{id}": {
            "get": {"summary": "Where a migration stands", "parameters": [run], "responses": _answers(200, 404)},
            "delete": {
                "summary": "Purge history and run store of a finished migration",
                "parameters": [run], "responses": _answers(200, 404, 409, body=None),
            },
        },
        "/migrations/{id}/manifest": {
            "get": {
                "summary": "The manifest",
                "parameters": [
                    run, _parameter("format", "query", values=["json", "summary", "csv", "md", "html", "signoff"])
                ],
                "responses": _answers(200, 400, 404, 409, body=None),
            }
        },
        "/migrations/{id}/items": {
            "get": {
                "summary": "Records of items",
                "parameters": [run, _parameter("status", "query"), top, continuation],
                "responses": _answers(200, 400, 404, body=None),
            }
        },
        "/schedules": {"get": {"summary": "List schedules", "responses": _answers(200, body=None)}},
        "/schedules/{name}": {
            "put": {
                "summary": "Create or replace a schedule", "parameters": [schedule], "requestBody": spec,
                "responses": _answers(200, 201, 400, body=None),
            },
            "delete": {"summary": "Delete a schedule", "parameters": [schedule], "responses": _answers(204, 404)},
        },
        "/schedules/{name}/run": {
            "post": {"summary": "Start it now", "parameters": [schedule], "responses": _answers(202, 404, 409)}
        },
        "/health": {"get": {"summary": "Readiness of each dependency", "responses": _answers(200, 503, body=None)}},
        "/openapi.json": {"get": {"summary": "This document", "responses": _answers(200, body=None)}},
    }  # fmt: skip
    for action in ("pause", "resume", "cancel", "retry-failed"):
        paths[f"/migrations/{{id}}/{action}"] = {
            "post": {"summary": action, "parameters": [run], "responses": _answers(202, 404, 409)}
        }
    return paths
