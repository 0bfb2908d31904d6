"""Reads ``local.settings.json`` as Core Tools does, and the parts of ``host.json`` that mean something here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_COMMENT = re.compile(r'"(?:\\.|[^"\\])*"|//[^\n]*|/\*.*?\*/', re.DOTALL)
_TRAILING_COMMA = re.compile(r'"(?:\\.|[^"\\])*"|,(?=\s*[}\]])', re.DOTALL)
_TIME_SPAN = re.compile(r"(?:(\d+)\.)?(\d{1,2}):(\d{2})(?::(\d{2}))?")


class HostError(Exception):
    """The host cannot start or go on; the text is one sentence for whoever started it."""


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """What ``local.settings.json`` says.

    Attributes:
        values: To become environment variables where none of that name is set.
        http_port: ``Host.LocalHttpPort``, when given.
        cors_origins: ``Host.CORS`` split at commas; ``*`` allows every origin.
        cors_credentials: ``Host.CORSCredentials``.
    """

    values: Mapping[str, str] = field(default_factory=dict)
    http_port: int | None = None
    cors_origins: tuple[str, ...] = ()
    cors_credentials: bool = False


@dataclass(frozen=True, slots=True)
class HostOptions:
    """What ``host.json`` says, with the platform's defaults.

    ``maxConcurrentOrchestratorFunctions`` is not here: episodes run one at a time, which keeps to any value of it.

    Attributes:
        route_prefix: Stands before every HTTP route; may be empty.
        hub_name: The task hub's name, as the client binding reports it.
        max_activities: Activities that run at once.
        max_concurrent_requests: HTTP functions that run at once; None for no limit.
        max_outstanding_requests: Requests running and waiting; more are answered 429. None for no limit.
        function_timeout_s: None for no limit.
        log_levels: Category to level name, from ``logging.logLevel``.
        response_headers: Added to every HTTP answer.
    """

    route_prefix: str = "api"
    hub_name: str = "TestHubName"
    max_activities: int = 10
    max_concurrent_requests: int | None = None
    max_outstanding_requests: int | None = None
    function_timeout_s: float | None = None
    log_levels: Mapping[str, str] = field(default_factory=dict)
    response_headers: Mapping[str, str] = field(default_factory=dict)


def read_local_settings(path: Path) -> LocalSettings:
    """Read the file; a missing one is the same as an empty one.

    Comments and trailing commas are accepted, and numbers and booleans in ``Values`` become text.

    Raises:
        HostError: The file is not what Core Tools accepts, or its values are encrypted.
    """
    content = _read_object(path)
    if content.get("IsEncrypted") is True:
        raise HostError(
            f"{path} is encrypted (IsEncrypted is true) and its key is not on this machine:"
            " run 'func settings decrypt' where it was made, then start again."
        )
    values = {
        name: _setting_text(path, "Values", name, value)
        for name, value in _section(content, "Values", path).items()
        if value is not None
    }
    for name, value in _section(content, "ConnectionStrings", path).items():
        connection = value.get("ConnectionString") if isinstance(value, dict) else value
        if connection is not None:
            values[f"ConnectionStrings:{name}"] = _setting_text(path, "ConnectionStrings", name, connection)
    host = _section(content, "Host", path)
    port = host.get("LocalHttpPort")
    if isinstance(port, str) and port.isdigit():
        port = int(port)
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535):
        raise HostError(f"Host.LocalHttpPort in {path} is {port!r}: write a port number from 0 to 65535.")
    origins = str(host.get("CORS") or "")
    return LocalSettings(
        values=values,
        http_port=port,
        cors_origins=tuple(origin.strip().rstrip("/") for origin in origins.split(",") if origin.strip()),
        cors_credentials=str(host.get("CORSCredentials", False)).lower() == "true",
    )


def apply_settings(settings: LocalSettings) -> None:
    """Make the values environment variables; a variable that is already set wins, as with Core Tools."""
    for name, value in settings.values.items():
        os.environ.setdefault(name, value)


def read_host_options(path: Path) -> HostOptions:
    """Read ``host.json``; a missing one gives the defaults.

    Raises:
        HostError: It is not JSON, or a value has the wrong form.
    """
    content = _read_object(path)
    extensions = _section(content, "extensions", path)
    http = _section(extensions, "http", path)
    durable = _section(extensions, "durableTask", path)
    levels = _section(_section(content, "logging", path), "logLevel", path)
    default_activities = 10 * (os.cpu_count() or 1)
    timeout = content.get("functionTimeout")
    return HostOptions(
        route_prefix=str(http.get("routePrefix", "api")).strip("/"),
        hub_name=str(resolve_setting(str(durable.get("hubName") or "TestHubName"), f"hubName in {path}")),
        max_activities=_count(durable, "maxConcurrentActivityFunctions", path) or default_activities,
        max_concurrent_requests=_count(http, "maxConcurrentRequests", path),
        max_outstanding_requests=_count(http, "maxOutstandingRequests", path),
        function_timeout_s=None if timeout in (None, "-1", -1) else _seconds(str(timeout), path),
        log_levels={str(category): str(level) for category, level in levels.items()},
        response_headers={str(k): str(v) for k, v in _section(http, "customHeaders", path).items()},
    )


def resolve_setting(text: str, where: str) -> str:
    """Replace each ``%NAME%`` by the app setting of that name.

    Raises:
        HostError: There is no such setting.
    """

    def replace(match: re.Match[str]) -> str:
        value = os.environ.get(match.group(1))
        if value is None:
            raise HostError(f"'{match.group(0)}' in {where} does not resolve: set the app setting '{match.group(1)}'.")
        return value

    return re.sub(r"%([^%\s]+)%", replace, text)


def _read_object(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"{path} cannot be read: {error}.") from error
    text = _COMMENT.sub(lambda match: match.group(0) if match.group(0).startswith('"') else " ", text)
    text = _TRAILING_COMMA.sub(lambda match: "" if match.group(0) == "," else match.group(0), text)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise HostError(f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from error
    if not isinstance(content, dict):
        raise HostError(f"{path} must hold a JSON object.")
    return content


def _section(content: Mapping[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = content.get(name)
    if section is None:
        return {}
    if not isinstance(section, dict):
        raise HostError(f"'{name}' in {path} must be a JSON object.")
    return section


def _setting_text(path: Path, section: str, name: str, value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float):
        return str(value)
    raise HostError(f"{section}.{name} in {path} must be text: a setting cannot hold a list or an object.")


def _count(section: Mapping[str, Any], name: str, path: Path) -> int | None:
    value = section.get(name)
    if value is None or value == -1:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise HostError(f"'{name}' in {path} is {value!r}: write a whole number of at least 1, or -1 for no limit.")
    return value


def _seconds(text: str, path: Path) -> float:
    match = _TIME_SPAN.fullmatch(text)
    if match is None:
        raise HostError(f"functionTimeout in {path} is '{text}': write hh:mm:ss, or -1 for no limit.")
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
