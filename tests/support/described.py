"""Holds the API's answers against its own description: nothing is lacking, of another type, or not described."""

from __future__ import annotations

import re
from typing import Any

from jsonschema import Draft202012Validator

from tests.support.platform import Answer, Platform


class Description:
    """Of one platform, as it serves it."""

    def __init__(self, platform: Platform) -> None:
        document = platform.call("GET", "/openapi.json").json
        self._paths: dict[str, Any] = document["paths"]
        self._schemas = _closed(document["components"]["schemas"])
        self._validators: dict[str, Draft202012Validator] = {}

    def check(self, method: str, path: str, answer: Answer) -> None:
        plain = path.partition("?")[0]
        fit = [one for one in self._paths if re.fullmatch(re.sub(r"{\w+}", "[^/]+", one), plain)]
        assert fit, f"{path} is not described"
        # Of a route with a word and one with a parameter in its place, the word's.
        found = min(fit, key=lambda one: one.count("{"))
        described = self._paths[found][method.lower()]["responses"].get(str(answer.status))
        assert described is not None, (method, found, answer.status, answer.body[:500])
        if answer.status == 204:
            assert not answer.body
            return
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in described["content"], (method, found, answer.status, kind)
        if kind == "application/json":
            self.validate(described["content"][kind]["schema"]["$ref"], answer.json)

    def validate(self, ref: str, document: Any) -> None:
        if ref not in self._validators:
            schema = {"$ref": ref, "components": {"schemas": self._schemas}}
            self._validators[ref] = Draft202012Validator(schema)
        problems = [
            f"{'/'.join(map(str, one.absolute_path))}: {one.message[:300]}"
            for error in self._validators[ref].iter_errors(document)
            for one in [error, *(error.context or [])]
        ]
        assert not problems, (ref, problems[:20])


def _closed(schema: Any) -> Any:
    """The schema, with what it does not describe taken for a mistake."""
    if isinstance(schema, list):
        return [_closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed
