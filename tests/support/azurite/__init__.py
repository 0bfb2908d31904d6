"""Azurite, the vendor's storage emulator: installed once into a cache folder, started for one test session."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HERE = Path(__file__).parent
_READY_WITHIN_S = 30
_INSTALLED_WITHIN_S = 300
ACCOUNT = "contract"
KEY = base64.b64encode(b"a key that opens nothing but an emulator of this test").decode()


class AzuriteMissing(Exception):
    """It cannot be run here; the text says how to enable it."""


def install() -> Path:
    """The script to run with node; installs it on first use, and anew when the lock changes.

    Raises:
        AzuriteMissing: node or npm is missing, or the installation failed.
    """
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise AzuriteMissing("Azurite needs node and npm; install them to check the run store against Azure's protocol")
    lock = hashlib.sha256((_HERE / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "onelake-migration" / f"azurite-{lock}"
    script = folder / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
    if script.is_file():
        return script
    # Made beside it and renamed, so that an installation that broke off is not taken for a whole one.
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    making.mkdir(parents=True, exist_ok=True)
    for name in ("package.json", "package-lock.json"):
        shutil.copy(_HERE / name, making)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=making, capture_output=True, text=True, timeout=_INSTALLED_WITHIN_S, check=False)
    if done.returncode:
        shutil.rmtree(making)
        raise AzuriteMissing(f"Azurite could not be installed with npm: {done.stderr.strip()[-300:]}")
    try:
        making.rename(folder)
    except OSError:
        # Another process was faster.
        shutil.rmtree(making)
    return script


@contextmanager
def running(folder: Path) -> Iterator[str]:
    """The connection string of a blob service on a free port of loopback, for the time of a ``with``."""
    script = install()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["node", str(script), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder),
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
