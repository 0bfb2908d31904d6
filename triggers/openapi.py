"""The API's own description, from the routes and the job's schema."""

from typing import Any

from shared import VERSION
from shared.model.job import FilesJob
from shared.model.mltable_job import MltableJob
from shared.model.sql_job import SqlJob
from triggers.schemas import ANSWERS, ref
from triggers.status import STATUSES


def document(server: str) -> dict[str, Any]:
    """OpenAPI 3.1 of every route."""
    schemas: dict[str, Any] = {}
    for job in (FilesJob, MltableJob, SqlJob):
        schema = job.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= {**schema.pop("$defs", {}), job.__name__: schema}
    schemas |= {
        "Job": {"oneOf": [ref("FilesJob"), ref("MltableJob"), ref("SqlJob")]},
        "Document": {"type": "object", "required": ["openapi", "info", "paths", "components"]},
        **ANSWERS,
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "OneLake migration", "version": VERSION},
        "servers": [{"url": server}],
        "paths": _paths(),
        "components": {"schemas": schemas},
    }


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": ref(name)}}


def _answers(*codes: int, body: str = "Status") -> dict[str, Any]:
    """``body`` is that of what succeeds; every route may also find the run store, or the app, out of order."""
    texts = {200: "done", 201: "created", 202: "accepted", 204: "gone", 400: "the request is at fault",
             404: "there is none", 409: "the state does not allow it", 500: "it failed",
             503: "the run store cannot be reached"}  # fmt: skip
    found: dict[str, Any] = {}
    for code in (*codes, 500, 503):
        found[str(code)] = {"description": texts[code]}
        if code >= 400:
            found[str(code)]["content"] = _json("Error")
        elif code != 204:
            found[str(code)]["content"] = _json(body)
    return found


def _manifest() -> dict[str, Any]:
    found = _answers(200, 400, 404, 409, body="Manifest")
    texts = {name: {"schema": {"type": "string"}} for name in ("text/csv", "text/markdown", "text/html")}
    found["200"]["content"] |= texts
    return found


def _health() -> dict[str, Any]:
    found = _answers(200, body="Health")
    found["503"] = {"description": "not ready", "content": _json("Health")}
    return found


def _parameter(name: str, where: str, kind: str = "string", values: list[str] | None = None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": kind}
    if values:
        schema["enum"] = values
    return {"name": name, "in": where, "required": where == "path", "schema": schema}


def _paths() -> dict[str, Any]:
    run, schedule = _parameter("id", "path"), _parameter("name", "path")
    top, continuation = _parameter("top", "query", "integer"), _parameter("continuation", "query")
    spec = {"required": True, "content": _json("Job")}
    paths: dict[str, Any] = {
        "/migrations": {
            "post": {
                "summary": "Start a migration", "requestBody": spec,
                "responses": _answers(202, 400, 409, body="Started"),
            },
            "get": {
                "summary": "List migrations, newest first",
                "parameters": [
                    _parameter("kind", "query"), _parameter("status", "query", values=list(STATUSES)),
                    _parameter("name", "query"), top, continuation,
                ],
                "responses": _answers(200, 400, body="Runs"),
            },
        },
        "/migrations/{id}": {
            "get": {"summary": "Where a migration stands", "parameters": [run], "responses": _answers(200, 404)},
            "delete": {
                "summary": "Purge history and run store of a finished migration",
                "parameters": [run], "responses": _answers(200, 404, 409, body="Purged"),
            },
        },
        "/migrations/{id}/manifest": {
            "get": {
                "summary": "The manifest",
                "parameters": [
                    run, _parameter("format", "query", values=["json", "summary", "csv", "md", "html", "signoff"])
                ],
                "responses": _manifest(),
            }
        },
        "/migrations/{id}/items": {
            "get": {
                "summary": "Records of items",
                "parameters": [run, _parameter("status", "query"), top, continuation],
                "responses": _answers(200, 400, 404, body="Items"),
            }
        },
        "/schedules": {"get": {"summary": "List schedules", "responses": _answers(200, body="Schedules")}},
        "/schedules/{name}": {
            "put": {
                "summary": "Create or replace a schedule", "parameters": [schedule], "requestBody": spec,
                "responses": _answers(200, 201, 400, 404, body="Schedule"),
            },
            "delete": {"summary": "Delete a schedule", "parameters": [schedule], "responses": _answers(204, 404)},
        },
        "/schedules/{name}/run": {
            "post": {
                "summary": "Start it now", "parameters": [schedule],
                "responses": _answers(202, 400, 404, 409, body="Started"),
            }
        },
        "/health": {"get": {"summary": "Readiness of each dependency", "responses": _health()}},
        "/openapi.json": {"get": {"summary": "This document", "responses": _answers(200, body="Document")}},
    }  # fmt: skip
    for action in ("pause", "resume", "cancel", "retry-failed"):
        paths[f"/migrations/{{id}}/{action}"] = {
            "post": {"summary": action, "parameters": [run], "responses": _answers(202, 404, 409)}
        }
    return paths
