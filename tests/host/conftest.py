"""Starts the embedded host as a process of its own and talks to it over HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from local.host import RunningHost, launch

APPS = Path(__file__).parent / "apps"
FINAL = {"Completed", "Failed", "Terminated"}
PATIENCE_S = 30.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until a condition holds and return its value; the limit only ends a wait for something that never comes."""
    deadline_s = time.monotonic() + PATIENCE_S
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            pytest.fail(f"waited {PATIENCE_S:g} s for {what}")
        time.sleep(0.01)
    return value


class Client:
    """The management API of one host, as an operator's script would use it."""

    def __init__(self, host: RunningHost, traces: Path) -> None:
        self.host = host
        self.traces = traces
        self.http = requests.Session()

    def url(self, path: str) -> str:
        return f"{self.host.url}/{path.lstrip('/')}"

    def webhook(self, path: str) -> str:
        return self.url(f"runtime/webhooks/durabletask/{path}")

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.http.request(method, self.webhook(path), timeout=PATIENCE_S, **options)

    def start(self, name: str, instance_id: str | None = None, given: Any = None) -> str:
        path = f"api/start/{name}/{instance_id}" if instance_id else f"api/start/{name}"
        answer = self.http.post(self.url(path), data=json.dumps(given), timeout=PATIENCE_S)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def client(self, operation: str, **given: Any) -> requests.Response:
        return self.http.post(self.url(f"api/client/{operation}"), json=given, timeout=PATIENCE_S)

    def status(self, instance_id: str, query: str = "") -> dict[str, Any]:
        answer = self.call("GET", f"instances/{instance_id}{query}")
        assert answer.status_code in {200, 202}, (answer.status_code, answer.text)
        return dict(answer.json())

    def wait(self, instance_id: str, query: str = "") -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            status = self.status(instance_id, query)
            return status if status["runtimeStatus"] in FINAL else None

        return dict(until(ended, f"the end of {instance_id}"))

    def output(self, instance_id: str) -> Any:
        status = self.wait(instance_id)
        assert status["runtimeStatus"] == "Completed", status
        return status["output"]

    def run(self, name: str, given: Any = None, instance_id: str | None = None) -> Any:
        return self.output(self.start(name, instance_id, given))

    def raise_event(self, instance_id: str, name: str, data: Any = None) -> requests.Response:
        headers = {"Content-Type": "application/json"}
        return self.call("POST", f"instances/{instance_id}/raiseEvent/{name}", data=json.dumps(data), headers=headers)

    def lines(self, trace: str) -> int:
        path = self.traces / trace
        return len(path.read_text().splitlines()) if path.exists() else 0


@pytest.fixture(scope="module")
def durable(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """One host over the durable sample app for all tests of a module."""
    directory = tmp_path_factory.mktemp("durable")
    with launch(APPS / "durable", directory / "state", {"TRACES": str(directory)}) as host:
        yield Client(host, directory)


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Start hosts that share a state directory; whatever still runs is killed with the test."""
    hosts: list[RunningHost] = []

    def begin(app: str | Path = "durable", **env: str) -> Client:
        app_dir = APPS / app if isinstance(app, str) else app
        host = launch(app_dir, tmp_path / "state", {"TRACES": str(tmp_path), **env})
        hosts.append(host)
        return Client(host, tmp_path)

    yield begin
    for host in hosts:
        host.kill()
