"""The MLTable guide's ``migration_config.json`` as a job spec: JSON with comments or YAML, workspaces put in place."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from tools.migrate.spec_file import BadSpecFile, plain

_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])', re.DOTALL)
_WORKSPACES = ("source_workspace_config", "target_workspace_config")


class BadConfig(Exception):
    """The configuration cannot be read; the text names the file, and the line where there is one."""


def read_document(path: Path) -> dict[str, Any]:
    """Read one file, JSON (``//`` and ``/* */`` comments and trailing commas allowed) or YAML.

    Raises:
        BadConfig: it is missing, unreadable, or no mapping.
    """
    try:
        data = path.read_bytes()
        # What PowerShell's redirection writes.
        text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8; save it as that"
        raise BadConfig(f"{path}: {reason}") from None
    try:
        document = json.loads(_plain_json(text)) if text.lstrip()[:1] in ("{", "/") else yaml.safe_load(text)
    except json.JSONDecodeError as error:
        hint = "; in JSON write a backslash twice, or / in its place" if "escape" in error.msg else ""
        raise BadConfig(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}{hint}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise BadConfig(f"{path}{where}: {error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise BadConfig(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise BadConfig(f"{path}: must hold an object")
    try:
        fields: dict[str, Any] = plain(document, str(path))
    except BadSpecFile as error:
        raise BadConfig(str(error)) from None
    return fields


def read_config(path: Path) -> dict[str, Any]:
    """The configuration with the two workspaces' ``config.json`` in the place of their names.

    Relative names count from the configuration's own folder.

    Raises:
        BadConfig: one of the files cannot be read.
    """
    return with_workspaces(read_document(path), path.parent)


def with_workspaces(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A configuration with the content of files in the place of their names, which count from the folder.

    Raises:
        BadConfig: one of the files cannot be read.
    """
    found = dict(config)
    for field in _WORKSPACES:
        named = found.get(field)
        if isinstance(named, str):
            path = folder / named
            if not path.exists() and "\\" in named:
                # As a configuration that was written on Windows names it.
                path = folder / named.replace("\\", "/")
            found[field] = read_document(path)
    return found


def _plain_json(text: str) -> str:
    """The same with comments and trailing commas blanked, so that lines keep their numbers."""
    text = _COMMENT.sub(lambda found: found[0] if found[0].startswith('"') else re.sub(r"[^\n]", " ", found[0]), text)
    return _TRAILING_COMMA.sub(lambda found: " " if found[0] == "," else found[0], text)
