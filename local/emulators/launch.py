"""Starts the emulators from a program: a subprocess, ready when `launch` returns. Standard library only."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local.emulators.graph.control import GraphControl

_REPOSITORY = Path(__file__).resolve().parents[2]
_READY_WITHIN_S = 30
# The first start installs Azurite.
_READY_WITH_AZUREML_WITHIN_S = 330
_STOPPED_WITHIN_S = 10
_ANSWERED_WITHIN_S = 60


class EmulatorsFailed(RuntimeError):
    """The emulators did not start or refused a request; the message is what they said."""


def app_settings(addresses: Mapping[str, Any], client: str = "migrator") -> dict[str, str]:
    """The app's settings that point it at the emulators, as one of their clients."""
    registration = addresses["clients"][client]
    credential = {
        "kind": "client_secret",
        "tenant_id": addresses["tenant_id"],
        "client_id": registration["client_id"],
        "client_secret": registration["client_secret"],
        "authority": addresses["authority_url"],
    }
    settings = {
        "ONELAKE_DFS_URL": addresses["onelake_dfs_url"],
        "FABRIC_API_URL": addresses["fabric_url"],
        "GRAPH_URL": addresses["graph_url"],
        "CREDENTIAL_ONELAKE": json.dumps(credential),
        "CREDENTIAL_SHAREPOINT": json.dumps(credential),
        "CA_BUNDLE": addresses["ca_bundle"],
    }
    if addresses.get("azureml"):
        settings |= azureml_settings(addresses)
    return settings


def azureml_settings(addresses: Mapping[str, Any], client: str = "migrator") -> dict[str, str]:
    """Settings that point at Azure ML: its address, the URL of each storage account, a credential for each tenant."""
    azureml = addresses["azureml"]
    settings = {"AZUREML_URL": azureml["url"], "AZUREML_STORAGE_URLS": json.dumps(azureml["storage_urls"])}
    for name, tenant in azureml["tenants"].items():
        registration = tenant["clients"].get(client)
        if registration is None:
            continue
        settings[f"CREDENTIAL_AZUREML_{name.upper()}"] = json.dumps(
            {
                "kind": "client_secret",
                "tenant_id": tenant["tenant_id"],
                "client_id": registration["client_id"],
                "client_secret": registration["client_secret"],
                "authority": addresses["authority_url"],
            }
        )
    return settings


def ask_admin(addresses: Mapping[str, Any], method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    """Asks the switchboard of running emulators and returns its answer.

    Raises:
        EmulatorsFailed: it refused; the message says why.
    """
    text = _ask(addresses, method, path, body)
    document: dict[str, Any] = json.loads(text) if text else {}
    return document


def _ask(addresses: Mapping[str, Any], method: str, path: str, body: bytes | None) -> bytes:
    request = urllib.request.Request(addresses["admin_url"] + path, data=body, method=method)  # noqa: S310
    # A proxy in the environment must not see, nor break, a call to this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=_ANSWERED_WITHIN_S) as answer:
            text: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise EmulatorsFailed(str(json.loads(error.read())["error"])) from error
    return text


class RunningEmulators:
    """Emulators in a subprocess; as a context manager they stop at the end.

    Attributes:
        addresses: the content of ``emulators.json``.
    """

    def __init__(
        self, root: Path, process: subprocess.Popen[bytes], log: Path, ready_within_s: float = _READY_WITHIN_S
    ) -> None:
        self.root = root
        self._ready_within_s = ready_within_s
        self._process = process
        self._log = log
        self._reading = threading.Lock()
        self._journal_bytes = 0
        self._effects: list[dict[str, Any]] = []
        try:
            self.addresses: dict[str, Any] = self._await_ready()
        except BaseException:
            # Whoever is interrupted while they start has no handle on them yet, and they would outlive them.
            self.kill()
            raise

    def _await_ready(self) -> dict[str, Any]:
        announcement = self.root / "emulators.json"
        deadline_s = time.monotonic() + self._ready_within_s
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise EmulatorsFailed(self._log.read_text(encoding="utf-8", errors="replace").strip())
            with contextlib.suppress(FileNotFoundError):
                addresses: dict[str, Any] = json.loads(announcement.read_text(encoding="utf-8"))
                if addresses["pid"] == self._process.pid:
                    return addresses
            time.sleep(0.02)
        raise EmulatorsFailed(f"The emulators were not ready after {self._ready_within_s} s; see {self._log}.")

    @property
    def pid(self) -> int:
        """Process id of the emulators."""
        return self._process.pid

    @property
    def lake_folder(self) -> Path:
        """Where the committed bytes lie."""
        return Path(self.addresses["lake_folder"])

    def kill(self) -> None:
        """Ends them as a crash would: SIGKILL, no chance to write anything."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends them cleanly.

        Raises:
            EmulatorsFailed: they ended by themselves before, with an error.
        """
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOPPED_WITHIN_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise EmulatorsFailed(f"The emulators did not stop; see {self._log}.") from None
        elif self._process.returncode > 0:
            raise EmulatorsFailed(self._log.read_text(encoding="utf-8", errors="replace").strip())

    def set_faults(self, rules: Sequence[Mapping[str, Any]]) -> None:
        """Puts another fault plan in force; an empty one ends all faults.

        Raises:
            EmulatorsFailed: names the rule and the key that are wrong.
        """
        self._admin("PUT", "/faults", json.dumps(list(rules)).encode())

    def fault_hits(self) -> list[int]:
        """Returns how often each rule of the plan has fired."""
        hits: list[int] = self._admin("GET", "/faults")["hits"]
        return hits

    def stats(self) -> dict[str, dict[str, dict[str, int]]]:
        """Returns calls by service, operation and status (status 0: connection reset)."""
        stats: dict[str, dict[str, dict[str, int]]] = self._admin("GET", "/stats")
        return stats

    def reset_stats(self) -> None:
        """Begins counting anew."""
        self._admin("DELETE", "/stats")

    @property
    def graph(self) -> GraphControl:
        """What changes the libraries of the emulated SharePoint, and tells what they hold."""
        return GraphControl(functools.partial(_ask, self.addresses))

    def set_azureml(self, **settings: Any) -> None:
        """Changes what Azure ML does where the service is not known: conflict_status, expirable_secrets.

        Raises:
            EmulatorsFailed: says what will not do.
        """
        self._admin("PUT", "/azureml/settings", json.dumps(settings).encode())

    def register_assets(self, assets: Sequence[Mapping[str, Any]]) -> None:
        """Registers data versions: ``workspace``, ``name``, ``version`` and ``properties`` as Azure ML's PUT has them.

        Raises:
            EmulatorsFailed: names the asset that will not do.
        """
        self._admin("PUT", "/azureml/assets", json.dumps(list(assets)).encode())

    def clear_assets(self, *workspaces: str) -> None:
        """Forgets the data assets of these workspaces, or of all; blobs stay."""
        self._admin("DELETE", "/azureml/assets", json.dumps(workspaces).encode() if workspaces else None)

    def _admin(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        return ask_admin(self.addresses, method, path, body)

    def journal(self) -> list[dict[str, Any]]:
        """Returns the recorded effects; they must have been started with ``journal=True``."""
        with self._reading, (self.root / "journal.jsonl").open("rb") as file:
            # It only grows, and those who wait for an effect ask again and again.
            file.seek(self._journal_bytes)
            lines, end, _ = file.read().rpartition(b"\n")
            self._journal_bytes += len(lines) + len(end)
            text = lines.decode("utf-8", "surrogatepass")
            self._effects += [json.loads(line) for line in text.split("\n") if line]
            return list(self._effects)

    def environment(self, client: str = "migrator") -> dict[str, str]:
        """Returns the environment that points the app's settings here, as the named client."""
        return app_settings(self.addresses, client)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def launch(
    root: str | Path,
    *,
    fault_plan: Path | Iterable[Mapping[str, Any]] | None = None,
    latency_ms: float = 0,
    seed: int = 0,
    token_lifetime_s: int = 3600,
    journal: bool = False,
    plain: bool = False,
    processes: int = 1,
    config: Path | None = None,
    page_items: int = 100,
    copy_source_ca: Path | None = None,
    azureml: bool = False,
    azureml_config: Path | None = None,
    conflict_status: int = 400,
    python: str = sys.executable,
) -> RunningEmulators:
    """Starts the emulators on a root and waits until they are ready.

    Started again on the same root they serve the same bytes on the same ports and honour the tokens issued before.

    Args:
        root: folder for everything; made if missing.
        fault_plan: a file, or the rules themselves.
        latency_ms: added to every call.
        seed: of the fault plan's draws.
        token_lifetime_s: validity of the tokens issued.
        journal: record every effect, for `RunningEmulators.journal`.
        processes: how many serve OneLake; more than one excludes a fault plan.
        config: YAML or JSON with another tenant than the default one.
        page_items: entries of one page of Fabric's and Azure ML's listings.
        copy_source_ca: a PEM file to trust beside the emulators' own where OneLake copies from a URL.
        azureml: also serve Azure ML; needs node (``addresses["azureml"]``).
        azureml_config: YAML or JSON with other tenants, accounts and workspaces than the default ones.
        conflict_status: of a PUT that would change the data URI of a version, 400 or 409.
        plain: also serve OneLake and Graph without TLS (``addresses["onelake_plain_url"]``, ``["graph_plain_url"]``).
        python: the interpreter to run them with; it needs the locked requirements.

    Raises:
        EmulatorsFailed: they ended before they were ready; the message is what they printed.
    """
    root = Path(root).resolve()
    root.mkdir(parents=True, exist_ok=True)
    command = [python, "-m", "local.emulators", "--root", str(root), "--latency-ms", str(latency_ms)]
    command += ["--seed", str(seed), "--token-lifetime-s", str(token_lifetime_s), "--processes", str(processes)]
    command += ["--page-items", str(page_items)]
    if fault_plan is not None and not isinstance(fault_plan, Path):
        rules, fault_plan = list(fault_plan), root / "fault-plan.json"
        fault_plan.write_text(json.dumps(rules), encoding="utf-8")
    if fault_plan is not None:
        command += ["--fault-plan", str(fault_plan)]
    if copy_source_ca is not None:
        command += ["--copy-source-ca", str(copy_source_ca)]
    if config is not None:
        command += ["--config", str(config)]
    if azureml:
        command += ["--azureml", "--azureml-conflict-status", str(conflict_status)]
    if azureml_config is not None:
        command += ["--azureml-config", str(azureml_config)]
    if journal:
        command.append("--journal")
    if plain:
        command += ["--plain-port", "0"]
    log = root / "emulators.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=_REPOSITORY,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    return RunningEmulators(root, process, log, _READY_WITH_AZUREML_WITHIN_S if azureml else _READY_WITHIN_S)
