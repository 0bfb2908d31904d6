"""Azurite, the vendor's storage emulator, started for one test session."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from local.emulators.azureml.azurite import AzuriteMissing, install, node

_READY_WITHIN_S = 30
ACCOUNT = "contract"
KEY = base64.b64encode(b"a key that opens nothing but an emulator of this test").decode()


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The connection string of a blob service on a free port of loopback, for the time of a ``with``."""
    script = install()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [node(), str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder),
               "--silent", "--skipApiVersionCheck", "--disableTelemetry"]  # fmt: skip
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with (folder / "azurite.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        _await_port(port, process)
        endpoint = f"http://127.0.0.1:{port}/{ACCOUNT}"
        yield f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
    finally:
        process.kill()
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise RuntimeError(f"Azurite ended with status {process.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise RuntimeError("Azurite was not ready in time")


__all__ = ["ACCOUNT", "KEY", "AzuriteMissing", "running"]
