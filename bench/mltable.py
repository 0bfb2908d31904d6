"""MLTables between two storage accounts: the whole migration of an asset, beside ``azcopy copy`` between the same two.

``python3 dev.py bench mltable [--small N] [--small-bytes B] [--large N] [--large-bytes B] [--runs service,...]``

*service* lets the target's service read the source by itself, as AzCopy does; *stream* takes every byte through the
worker. Ours is timed from the POST until the status is final: plan, copy, the comparison of count, bytes and a hash
sample, and the registration; AzCopy from its start to its end, and it only copies. After each run the target's blobs
are compared with what was seeded, by name, size and stored MD5; a difference ends the benchmark with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from azure.storage.blob import AccountSasPermissions, ContainerClient, ResourceTypes, generate_account_sas

from bench._contenders import Unavailable, _fetched_azcopy
from bench._platform import FINISHED, call, start_host
from bench._watch import ContenderFailed, Cost, Stopwatch, peak_of, run_command, tree_cpu_s
from local.emulators.launch import RunningEmulators
from local.emulators.launch import launch as launch_emulators

_RUNS = ("service", "stream", "azcopy")
_SOURCE, _TARGET = "amlsourcestore", "amltargetstore"
_BLUEPRINT = b"type: mltable\npaths:\n  - file: ./first.csv\ntransformations:\n  - read_delimited\n"
_WITHIN_S = 3600.0
_SEEDERS = 8
_HEAD = (
    "| | files/s | MB/s | s | CPU s | peak MB | cores: client, emulators, others | source and target |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | --- | --- |"
)


def main(argv: Sequence[str]) -> int:
    """Run the benchmark; returns the exit status."""
    arguments = _parser().parse_args(argv)
    runs = arguments.runs.split(",")
    if unknown := [name for name in runs if name not in _RUNS]:
        _parser().error(f"there is no run {unknown[0]!r}; there are {', '.join(_RUNS)}")
    work = Path(tempfile.mkdtemp(prefix="onelake-bench-mltable-", dir=arguments.work))
    wrong = False
    try:
        with launch_emulators(work / "emulators", azureml=True) as emulators:
            estate = _Estate(emulators, work)
            for kind, count, size in (
                ("small", arguments.small, arguments.small_bytes), ("large", arguments.large, arguments.large_bytes)
            ):  # fmt: skip
                if not count:
                    continue
                estate.seed(kind, count, size)
                print(f"\n{count:,} files of {size:,} bytes\n\n{_HEAD}")
                for name in runs:
                    row, is_same = _measured(estate, name, kind, count, size)
                    print(row, flush=True)
                    wrong |= not is_same
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if wrong else 0


class _Estate:
    """Both accounts, seen from outside."""

    def __init__(self, emulators: RunningEmulators, work: Path) -> None:
        self.emulators = emulators
        self.work = work
        self.seeded: dict[str, tuple[int, bytes]] = {}
        self.azureml: dict[str, Any] = emulators.addresses["azureml"]

    def container(self, side: str) -> str:
        stores = self.azureml["workspaces"][f"ws-{side}"]["datastores"]
        return str(next(one["container"] for one in stores if one["is_default"]))

    def client(self, side: str) -> ContainerClient:
        account = f"aml{side}store"
        return ContainerClient(
            self.azureml["storage_urls"][account], self.container(side),
            credential=self.azureml["account_keys"][account], connection_verify=self.emulators.addresses["ca_bundle"],
            api_version="2023-11-03", max_single_put_size=256 * 2**20, max_block_size=64 * 2**20,
        )  # fmt: skip

    def seed(self, kind: str, count: int, size: int) -> None:
        """An asset of so many files of this size, each with other bytes."""
        self.seeded = {}
        with self.client("source") as client, ThreadPoolExecutor(_SEEDERS if size < 2**24 else 2) as pool:

            def put(number: int) -> None:
                data = (hashlib.sha256(f"{kind}/{number}".encode()).digest() * (size // 32 + 1))[:size]
                self.seeded[f"f{number:05d}.bin"] = (size, hashlib.md5(data, usedforsecurity=False).digest())
                client.upload_blob(f"bench/{kind}/f{number:05d}.bin", data, overwrite=True)

            list(pool.map(put, range(count)))
            client.upload_blob(f"bench/{kind}/first.csv", b"id,name\n1,one\n", overwrite=True)
            client.upload_blob(f"bench/{kind}/MLTable", _BLUEPRINT, overwrite=True)
        uri = f"azureml://datastores/workspaceblobstore/paths/bench/{kind}/"
        properties = {"dataType": "mltable", "dataUri": uri}
        self.emulators.register_assets([
            {"workspace": "ws-source", "name": kind, "version": "1", "properties": properties}
        ])  # fmt: skip

    def is_same(self, root: str) -> bool:
        """Whether the target's folder holds the files that were seeded: names, sizes, and MD5 where one is stored."""
        with self.client("target") as client:
            found = {
                blob.name.removeprefix(root): (blob.size, blob.content_settings.content_md5)
                for blob in client.list_blobs(name_starts_with=root) if blob.name.endswith(".bin")
            }  # fmt: skip
        return found.keys() == self.seeded.keys() and all(
            size == self.seeded[name][0] and (md5 is None or bytes(md5) == self.seeded[name][1])
            for name, (size, md5) in found.items()
        )

    def clear_target(self) -> None:
        with self.client("target") as client:
            for blob in client.list_blobs():
                client.delete_blob(blob.name)
        self.emulators.clear_assets("ws-target")

    def sas_url(self, side: str, path: str) -> str:
        account = f"aml{side}store"
        sas = generate_account_sas(
            account, self.azureml["account_keys"][account], ResourceTypes(service=True, container=True, object=True),
            AccountSasPermissions(read=True, write=True, list=True, add=True, create=True, delete=True),
            expiry=datetime.now(UTC) + timedelta(hours=3),
        )  # fmt: skip
        return f"{self.azureml['storage_urls'][account]}/{self.container(side)}/{path}?{sas}"


def _measured(estate: _Estate, name: str, kind: str, count: int, size: int) -> tuple[str, bool]:
    estate.clear_target()
    label = {"service": "ours, copied by the service", "stream": "ours, streamed", "azcopy": "azcopy copy"}[name]
    try:
        cost = _azcopy(estate, kind) if name == "azcopy" else _ours(estate, kind, name)
    except (ContenderFailed, Unavailable) as failed:
        return f"| {label} | {failed} | | | | | | |", name == "azcopy"
    is_same = estate.is_same(f"migrated/{kind}/1/")
    total = count * size
    cores = ", ".join(f"{one:.2f}" for one in (cost.client_cores, cost.emulator_cores, cost.other_cores))
    return (
        f"| {label} | {count / cost.elapsed_s:,.0f} | {total / cost.elapsed_s / 1e6:,.1f} | {cost.elapsed_s:.1f} | "
        f"{cost.cpu_s:.1f} | {cost.peak_bytes / 1e6:.0f} | {cores} | {'identical' if is_same else 'DIFFERENT'} |",
        is_same,
    )


def _ours(estate: _Estate, kind: str, way: str) -> Cost:
    work = estate.work / f"{kind}-{way}"

    def config(name: str) -> dict[str, str]:
        found = estate.azureml["workspaces"][name]
        return {"subscription_id": found["subscription_id"], "resource_group": found["resource_group"],
                "workspace_name": found["name"]}  # fmt: skip

    spec = {
        "kind": "mltable", "name": kind,
        "config": {
            "source_workspace_config": config("ws-source"), "target_workspace_config": config("ws-target"),
            "defaults": {"server_side_copy": "auto" if way == "service" else "never", "parallel_copies": 32,
                         "validation": {"enabled": False}},
            "assets": [{"name": kind, "versions": ["1"]}],
        },
    }  # fmt: skip
    with start_host(work, work, estate.emulators) as host:
        call(host, "GET", "/api/health")
        watch, before_s = Stopwatch(estate.emulators.pid), tree_cpu_s(host.pid)
        began_s = time.perf_counter()
        run = call(host, "POST", "/api/migrations", spec)["id"]
        peak_bytes = 0
        while (document := call(host, "GET", f"/api/migrations/{run}"))["status"] not in FINISHED:
            peak_bytes = max(peak_bytes, peak_of(host.pid))
            time.sleep(0.1)
        elapsed_s = time.perf_counter() - began_s
        cost = watch.cost(tree_cpu_s(host.pid) - before_s, peak_bytes, elapsed_s)
    if document["status"] != "completed":
        raise ContenderFailed(f"the run is {document['status']}: {document['error']}")
    return cost


def _azcopy(estate: _Estate, kind: str) -> Cost:
    program = _fetched_azcopy()
    work = estate.work / f"{kind}-azcopy"
    work.mkdir()
    command = [
        str(program), "copy", estate.sas_url("source", f"bench/{kind}/*"),
        estate.sas_url("target", f"migrated/{kind}/1/"),
        "--recursive", "--from-to", "BlobBlob", "--s2s-preserve-access-tier=false", "--skip-version-check",
    ]  # fmt: skip
    environment = {
        **os.environ, "SSL_CERT_FILE": str(estate.emulators.addresses["ca_bundle"]),
        "AZCOPY_LOG_LOCATION": str(work / "log"), "AZCOPY_JOB_PLAN_LOCATION": str(work / "plan"),
    }  # fmt: skip
    return run_command(command, environment, work / "azcopy.log", estate.emulators.pid, _WITHIN_S)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py bench mltable", description=__doc__.partition("\n")[0])
    parser.add_argument("--small", type=int, default=5000, metavar="N", help="how many small files (5000; 0 for none)")
    parser.add_argument("--small-bytes", type=int, default=100_000, metavar="B", help="of each (100000)")
    parser.add_argument("--large", type=int, default=20, metavar="N", help="how many large files (20; 0 for none)")
    parser.add_argument("--large-bytes", type=int, default=500_000_000, metavar="B", help="of each (500000000)")
    parser.add_argument("--runs", default=",".join(_RUNS), help=f"some of {','.join(_RUNS)}")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where everything lies meanwhile (temporary folder)")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
