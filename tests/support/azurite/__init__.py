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
from local.emulators.certificates import Certificates

_READY_WITHIN_S = 30
ACCOUNT = "contract"
KEY = base64.b64encode(b"a key that opens nothing but an emulator of this test").decode()


@contextmanager
def running(folder: Path, certificates: Certificates | None = None) -> Iterator[str]:
    """The connection string of a blob service on a free port of loopback, for the time of a ``with``.

    With certificates it speaks TLS and takes bearer tokens, of which it checks all but the signature.
    """
    script = install()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [node(), str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder),
               "--silent", "--skipApiVersionCheck", "--disableTelemetry"]  # fmt: skip
    if certificates is not None:
        command += ["--cert", str(certificates.chain), "--key", str(certificates.key), "--oauth", "basic"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    with (folder / "azurite.log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
    try:
        _await_port(port, process)
        scheme = "http" if certificates is None else "https"
        endpoint = f"{scheme}://127.0.0.1:{port}/{ACCOUNT}"
        yield f"DefaultEndpointsProtocol={scheme};AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={endpoint};"
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
