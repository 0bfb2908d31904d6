"""``python -m local.emulators --root DIR``: starts the emulators and prints where they are."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from local.emulators.azureml.emulated import AzureMLOptions
from local.emulators.azureml.estate import DEFAULT_AZUREML_ESTATE, load_azureml_estate
from local.emulators.estate import DEFAULT_ESTATE, ConfigurationMistake, load_estate
from local.emulators.faults import load_rules
from local.emulators.launch import app_settings
from local.emulators.server import Emulators, Options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m local.emulators",
        description="OneLake, the Fabric REST calls around it and a token issuer, on this machine only.",
    )
    parser.add_argument("--root", type=Path, required=True, help="folder for the lake's bytes and all state")
    remembered = "0 = the port used before on this root, or a free one"
    parser.add_argument("--port", type=int, default=0, help=f"OneLake, both dialects, TLS ({remembered})")
    parser.add_argument("--blob-port", type=int, default=0, help="OneLake, Blob dialect only, TLS")
    parser.add_argument("--fabric-port", type=int, default=0, help="Fabric REST, TLS")
    parser.add_argument("--graph-port", type=int, default=0, help="Microsoft Graph, TLS")
    parser.add_argument("--authority-port", type=int, default=0, help="token issuer, TLS")
    parser.add_argument("--admin-port", type=int, default=0, help="faults and counters, plain HTTP")
    parser.add_argument(
        "--plain-port",
        type=int,
        default=None,
        metavar="N",
        help="also serve OneLake without TLS, for benchmarks; Graph too",
    )
    parser.add_argument("--fault-plan", type=Path, help="YAML or JSON list of fault rules")
    parser.add_argument("--latency-ms", type=float, default=0, help="added to every call")
    parser.add_argument("--seed", type=int, default=0, help="of the fault plan's draws")
    parser.add_argument("--token-lifetime-s", type=int, default=3600)
    parser.add_argument("--journal", action="store_true", help="write every effect to ROOT/journal.jsonl")
    parser.add_argument("--config", type=Path, help="YAML or JSON with tenant, workspaces, sites and clients")
    parser.add_argument("--processes", type=int, default=1, help="processes that serve OneLake")
    parser.add_argument("--page-items", type=int, default=100, help="entries of one page of Fabric's listings")
    parser.add_argument(
        "--azureml", action="store_true", help="also serve Azure ML in two tenants, with Azurite behind"
    )
    parser.add_argument("--azureml-config", type=Path, help="YAML or JSON with tenants, accounts and workspaces")
    parser.add_argument("--azureml-port", type=int, default=0, help="Azure ML's control plane, TLS")
    parser.add_argument("--azureml-blob-port", type=int, default=0, help="blobs of the storage accounts, TLS")
    parser.add_argument(
        "--azureml-conflict-status",
        type=int,
        choices=(400, 409),
        default=400,
        help="of a PUT that would change the data URI of a version",
    )
    parser.add_argument(
        "--copy-source-ca",
        type=Path,
        metavar="FILE",
        help="PEM to trust beside our own where OneLake copies from a URL",
    )
    return parser


def _options(arguments: argparse.Namespace) -> Options:
    rules = load_rules(arguments.fault_plan) if arguments.fault_plan else []
    if arguments.processes > 1 and rules:
        raise ConfigurationMistake("A fault plan counts in one process and cannot be used with --processes.")
    if arguments.copy_source_ca is not None and not arguments.copy_source_ca.is_file():
        raise ConfigurationMistake(f"{arguments.copy_source_ca} is not a file.")
    if (
        arguments.processes < 1
        or arguments.token_lifetime_s < 1
        or arguments.page_items < 1
        or arguments.latency_ms < 0
    ):
        raise ConfigurationMistake("Processes, token lifetime, page size and latency must be positive.")
    return Options(
        root=arguments.root,
        estate=load_estate(arguments.config) if arguments.config else DEFAULT_ESTATE,
        ports={
            "onelake": arguments.port,
            "onelake_blob": arguments.blob_port,
            "fabric": arguments.fabric_port,
            "graph": arguments.graph_port,
            "authority": arguments.authority_port,
            "admin": arguments.admin_port,
            "onelake_plain": arguments.plain_port or 0,
            "azureml": arguments.azureml_port,
            "azureml_blob": arguments.azureml_blob_port,
        },
        plain=arguments.plain_port is not None,
        rules=tuple(rules),
        latency_ms=arguments.latency_ms,
        seed=arguments.seed,
        token_lifetime_s=arguments.token_lifetime_s,
        journal=arguments.journal,
        processes=arguments.processes,
        page_items=arguments.page_items,
        copy_source_ca=arguments.copy_source_ca,
        azureml=_azureml(arguments),
    )


def _azureml(arguments: argparse.Namespace) -> AzureMLOptions | None:
    if not arguments.azureml:
        return None
    given = arguments.azureml_config
    return AzureMLOptions(
        load_azureml_estate(given) if given else DEFAULT_AZUREML_ESTATE, arguments.azureml_conflict_status
    )


def _write_settings(root: Path, document: dict[str, Any]) -> Path:
    """A settings file for the host, so that a first migration needs nothing to be filled in."""
    path = root / "local.settings.json"
    values = {
        "FUNCTIONS_WORKER_RUNTIME": "python",
        "RUN_STORE_URL": f"file:{(root / 'store').resolve()}",
        "FOLDER_SOURCE_ROOTS": "docs",
        "SCHEDULE_TICK": "0 * * * * *",
        **app_settings(document),
    }
    path.write_text(json.dumps({"IsEncrypted": False, "Values": values}, indent=2) + "\n", encoding="utf-8")
    return path


def _announce(document: dict[str, Any]) -> None:
    labels = {
        "onelake_dfs_url": "OneLake",
        "onelake_blob_url": "OneLake, Blob only",
        "onelake_plain_url": "OneLake without TLS",
        "fabric_url": "Fabric REST",
        "graph_url": "Microsoft Graph",
        "graph_plain_url": "Graph without TLS",
        "authority_url": "Token issuer",
        "admin_url": "Faults and counters",
        "ca_bundle": "CA to trust",
        "lake_folder": "Bytes",
    }
    for key, label in labels.items():
        if document[key]:
            sys.stdout.write(f"{label:20} {document[key]}\n")
    if document["azureml"]:
        sys.stdout.write(f"{'Azure ML':20} {document['azureml']['url']}\n")
        for account, url in document["azureml"]["storage_urls"].items():
            sys.stdout.write(f"{'Blobs':20} {account}: {url}\n")
    settings = _write_settings(Path(document["lake_folder"]).parent, document)
    sys.stdout.write(f"{'Settings of a host':20} {settings}\n")
    sys.stdout.write("Emulators ready\n")
    sys.stdout.flush()


def main() -> int:
    """Runs until SIGINT or SIGTERM; returns the exit status: 0, or 2 with one sentence on a mistake."""
    try:
        emulators = Emulators(_options(_parser().parse_args()))
        emulators.prepare()
        asyncio.run(emulators.run(_announce))
    except ConfigurationMistake as mistake:
        sys.stderr.write(f"{mistake}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
