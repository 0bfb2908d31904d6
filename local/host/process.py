"""Runs the embedded host as a child process; standard library only, so that any Python can use it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_READY = re.compile(r"Host ready on (http://127\.0\.0\.1:\d+)")
_REPOSITORY = Path(__file__).resolve().parents[2]


class HostFailed(RuntimeError):
    """The host ended before it was ready, or was not ready in time.

    Attributes:
        exit_code: Its exit status; None when it was still starting.
        log: All it had printed.
    """

    def __init__(self, message: str, exit_code: int | None, log: str) -> None:
        super().__init__(f"{message}\n{log[-4000:]}")
        self.exit_code = exit_code
        self.log = log


@dataclass(slots=True)
class RunningHost:
    """A host process that has announced itself; as a context manager it is killed on the way out.

    Attributes:
        url: Where it listens, without a trailing slash.
        log_path: The file that receives all its output.
    """

    url: str
    log_path: Path
    _process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def kill(self) -> None:
        """End it at once (SIGKILL), as a power cut would; no effect when it has ended."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def interrupt(self) -> None:
        """Send one Ctrl-C without waiting: the first drains, a second stops."""
        self._process.send_signal(signal.SIGINT)

    def stop(self, timeout_s: float = 30.0) -> int:
        """Drain and wait for the end; returns the exit status.

        Raises:
            TimeoutError: It was still draining after `timeout_s`; it is killed then.
        """
        if self._process.poll() is None:
            self.interrupt()
        return self.wait(timeout_s)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Wait for it to end by itself; kills it and raises TimeoutError after `timeout_s`."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise TimeoutError(f"The host was still running after {timeout_s:g} s.\n{self.log()[-4000:]}") from None

    def __enter__(self) -> RunningHost:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()


def launch(
    app_dir: Path,
    state_dir: Path,
    env: Mapping[str, str] | None = None,
    *,
    port: int | None = 0,
    python: str | None = None,
    settings_file: Path | None = None,
    log_path: Path | None = None,
    timeout_s: float = 60.0,
) -> RunningHost:
    """Start the host and wait until it is ready.

    Args:
        app_dir: The directory that holds ``function_app.py``.
        state_dir: Where history is kept; made when missing.
        env: Added to this process's environment; wins over ``local.settings.json``.
        port: 0 takes a free one; None leaves it to the settings file, else 7071.
        python: The interpreter that has the app's packages; default this one.
        settings_file: Instead of ``local.settings.json`` in `app_dir`.
        log_path: Where its output goes (appended); default ``host.log`` in `state_dir`.
        timeout_s: How long it may take to be ready.

    Raises:
        HostFailed: It ended, or was not ready in time.
    """
    state_dir.mkdir(parents=True, exist_ok=True)
    log_path = log_path or state_dir / "host.log"
    command = [python or sys.executable, "-u", "-m", "local.host", "--app", str(app_dir), "--state", str(state_dir)]
    if port is not None:
        command += ["--port", str(port)]
    if settings_file is not None:
        command += ["--settings", str(settings_file)]
    environment = {**os.environ, **(env or {})}
    search_path = environment.get("PYTHONPATH")
    environment["PYTHONPATH"] = f"{_REPOSITORY}{os.pathsep}{search_path}" if search_path else str(_REPOSITORY)
    with log_path.open("ab") as log_file:
        beginning = log_file.tell()
        # In its own session: a Ctrl-C in the caller's terminal is the caller's to pass on.
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log_file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
    try:
        return RunningHost(_await_ready(process, log_path, beginning, timeout_s), log_path, process)
    except BaseException:
        # Whoever is interrupted while it starts has no handle on it yet, and it would outlive them.
        process.kill()
        process.wait()
        raise


def _await_ready(process: subprocess.Popen[bytes], log_path: Path, beginning: int, timeout_s: float) -> str:
    """The host's address, once it has announced it in what it wrote to its log after ``beginning``."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        exit_code = process.poll()
        with log_path.open("rb") as log_file:
            log_file.seek(beginning)
            log = log_file.read().decode("utf-8", errors="replace")
        if ready := _READY.search(log):
            return ready.group(1)
        if exit_code is not None:
            raise HostFailed(f"The host ended with status {exit_code} before it was ready.", exit_code, log)
        if time.monotonic() > deadline_s:
            raise HostFailed(f"The host was not ready after {timeout_s:g} s.", None, log)
        time.sleep(0.02)
