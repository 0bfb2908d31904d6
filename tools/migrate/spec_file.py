"""Job specs as files, YAML or JSON."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Any

import yaml


class BadSpecFile(Exception):
    """The file cannot be read as a spec; the text names the file, and the line where there is one."""


def read_spec(name: str) -> dict[str, Any]:
    """Read a spec file; ``-`` is standard input.

    Raises:
        BadSpecFile: It is missing, unreadable, or not a YAML mapping.
    """
    try:
        text = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    except OSError as error:
        raise BadSpecFile(f"{name}: {error.strerror or error}") from None
    try:
        document = _parsed(name, text.decode("utf-8-sig"))
        made = plain(document, name)
    except UnicodeDecodeError as error:
        raise BadSpecFile(f"{name}: is not UTF-8 (byte {error.start})") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadSpecFile(f"{name}{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise BadSpecFile(f"{name}: is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(made, dict):
        raise BadSpecFile(f"{name}: must hold a mapping of fields, such as 'kind: files'")
    fields: dict[str, Any] = made
    return fields


def _parsed(name: str, text: str) -> Any:
    if name.endswith(".json"):
        # JSON may be indented with tabs, which YAML refuses.
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise BadSpecFile(f"{name}, line {error.lineno}, column {error.colno}: {error.msg}") from None
    return yaml.safe_load(text)


def plain(value: Any, name: str) -> Any:
    """What JSON can say: YAML reads dates from plain-looking text, which was meant as text.

    Raises:
        BadSpecFile: It holds something else that JSON cannot say; the text names the file.
    """
    if isinstance(value, dict):
        return {str(key): plain(one, name) for key, one in value.items()}
    if isinstance(value, list):
        return [plain(one, name) for one in value]
    if isinstance(value, dt.date):
        return value.isoformat()
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise BadSpecFile(f"{name}: holds a value of a type that a spec cannot have ({type(value).__name__})")
