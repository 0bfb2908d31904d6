"""The platform of the demo: emulators and host as processes, and the HTTP API as a caller reaches it."""

from __future__ import annotations

import json
import socket
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from local.emulators.launch import EmulatorsFailed, RunningEmulators
from local.emulators.launch import launch as launch_emulators
from local.host.process import HostFailed, RunningHost
from local.host.process import launch as launch_host

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_CALL_TIMEOUT_S: Final = 60.0
_USUAL_PORT: Final = 7071
# Of the emulated tenant.
WORKSPACE: Final = "Migration"
LAKEHOUSE: Final = "Landing"
SHOP_SETTING: Final = "SHOP_DB"
"""The setting that holds the connection to the shop's database."""


class StepFailed(Exception):
    """A step of the demo did not come out as it must; the text says which and how."""


class Platform:
    """Emulators and host over one work folder; as a context manager both have ended on the way out.

    Args:
        work: The folder.
        sources: The folder that a job may read.
        shop: The SQLite database that a job may read.
        estate: What the emulated tenant holds, as `local.emulators.estate` has it.
        azureml: Whether Azure ML and its storage are emulated as well.
        latency_ms: Added to every call to the emulators.
        wants_usual_port: Whether the host takes the port that command lines expect, where it is free.

    Attributes:
        emulators: The stand-ins for the clouds.
        host: The process that serves the app now; another one after `kill_host`.
        logs: Where the two write their output.
    """

    def __init__(
        self,
        work: Path,
        sources: Path,
        shop: Path,
        *,
        estate: dict[str, Any],
        azureml: bool = False,
        latency_ms: float = 0,
        wants_usual_port: bool = False,
    ) -> None:
        self._state = work / "host"
        self._settings = work / "local.settings.json"
        # The checkout's own settings file may point at real accounts; the demo must not see it.
        self._settings.write_text('{"IsEncrypted": false, "Values": {}}', encoding="utf-8")
        described = work / "estate.json"
        described.write_text(json.dumps(estate), encoding="utf-8")
        self.logs = {"host": self._state / "host.log", "emulators": work / "emulators" / "emulators.log"}
        # A proxy in the environment must not see, nor break, a call to this machine.
        self._http = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with ExitStack() as started:
            try:
                self.emulators: RunningEmulators = started.enter_context(
                    launch_emulators(work / "emulators", latency_ms=latency_ms, config=described, azureml=azureml)
                )
                self._environment = {
                    **self.emulators.environment(),
                    "RUN_STORE_URL": f"file:{work / 'run-store'}",
                    "FOLDER_SOURCE_ROOTS": str(sources),
                    SHOP_SETTING: f"sqlite:///{shop}",
                    "SCHEDULE_TICK": "0 * * * * *",
                    "RETRY_FIRST_DELAY_S": "1",
                }
                self.host: RunningHost = self._launch_host(_usable_port() if wants_usual_port else 0)
            except (EmulatorsFailed, HostFailed) as failed:
                raise StepFailed(str(failed)) from failed
            self._started = started.pop_all()

    @property
    def api_url(self) -> str:
        return f"{self.host.url}/api"

    @property
    def lake_files(self) -> Path:
        """Where the bytes of the lakehouse's ``Files`` lie on disk."""
        return self._lakehouse / "Files"

    @property
    def lake_tables(self) -> Path:
        """The same of its ``Tables``."""
        return self._lakehouse / "Tables"

    @property
    def _lakehouse(self) -> Path:
        return self.emulators.lake_folder / WORKSPACE / f"{LAKEHOUSE}.Lakehouse"

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Call the API and return the decoded answer.

        Args:
            method: HTTP method.
            path: Below ``/api``, or a whole address.
            body: Sent as JSON.

        Raises:
            StepFailed: The host has ended, does not answer, or answers with an error.
        """
        url = path if path.startswith("http") else f"{self.api_url}{path}"
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(  # noqa: S310 - the host's own address
            url, method=method, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with self._http.open(request, timeout=_CALL_TIMEOUT_S) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            text = error.read().decode("utf-8", "replace")
            raise StepFailed(f"{method} {url} was answered with {error.code}: {text[:1000]}") from None
        except (OSError, ValueError) as error:
            code = self.host.exit_code
            ended = f"; the host has ended with status {code}" if code is not None else ""
            raise StepFailed(f"{method} {url} failed: {error}{ended}") from None

    def kill_host(self) -> None:
        """End the host at once, as a power cut would."""
        self.host.kill()

    def restart_host(self) -> None:
        """Start a host over the same state, at the same address."""
        try:
            self.host = self._launch_host(int(self.host.url.rpartition(":")[2]))
        except HostFailed as failed:
            raise StepFailed(str(failed)) from failed

    def _launch_host(self, port: int) -> RunningHost:
        return launch_host(
            _REPOSITORY,
            self._state,
            env=self._environment,
            port=port,
            settings_file=self._settings,
            log_path=self.logs["host"],
        )

    def stop(self) -> None:
        """Let the host drain, then end both.

        Raises:
            StepFailed: One of them did not end well.
        """
        try:
            status = self.host.stop()
            self.emulators.stop()
        except (TimeoutError, EmulatorsFailed) as failed:
            raise StepFailed(str(failed)) from failed
        if status != 0:
            raise StepFailed(f"the host ended with status {status}")

    def __enter__(self) -> Platform:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.host.kill()
        self._started.close()


def _usable_port() -> int:
    """The port that command lines expect, or 0 (any) where something else has it."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", _USUAL_PORT))
        except OSError:
            return 0
    return _USUAL_PORT
