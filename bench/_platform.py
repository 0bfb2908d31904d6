"""The app as a caller meets it: the embedded host as a process, and its API over HTTP."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

from local.emulators.launch import RunningEmulators
from local.host.process import RunningHost, launch

REPOSITORY = Path(__file__).resolve().parents[1]
FINISHED = ("completed", "completed_with_failures", "failed", "cancelled")


def start_host(work: Path, source: Path, emulators: RunningEmulators, **settings: str) -> RunningHost:
    """The app on the embedded host, pointed at the emulators; its state stays below ``work``."""
    environment = {
        **emulators.environment(),
        "RUN_STORE_URL": f"file:{work / 'store'}",
        "FOLDER_SOURCE_ROOTS": str(source),
        "SCHEDULE_TICK": "0 0 0 1 1 *",
        **settings,
    }
    return launch(REPOSITORY, work / "host", environment)


def call(host: RunningHost, method: str, path: str, body: Any = None) -> Any:
    """One request to the API; its JSON answer."""
    request = urllib.request.Request(  # noqa: S310 - the host's own address
        host.url + path,
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
        return json.loads(answer.read())
