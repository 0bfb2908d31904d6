"""The environment, read once. ``docs/settings.md`` explains each setting beside ``local.settings.sample.json``."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from shared.errors import Configuration
from shared.policy.account_url import check_host_patterns
from shared.policy.quantities import parse_bytes

_CREDENTIAL_PREFIX = "CREDENTIAL_"


@dataclass(frozen=True)
class Settings:
    """What the app is told by its environment.

    Attributes:
        run_store_url: RUN_STORE_URL. Where plans, results, ledgers and manifests lie.
        run_store_connection: RUN_STORE_CONNECTION, or AzureWebJobsStorage.
        onelake_dfs_url: ONELAKE_DFS_URL. Scheme and host of OneLake's DFS endpoint.
        onelake_blob_url: ONELAKE_BLOB_URL. The same for the Blob endpoint; by default made from the DFS endpoint's.
        onelake_scope: ONELAKE_SCOPE. Scope of its tokens.
        fabric_api_url: FABRIC_API_URL. Where names are resolved.
        fabric_scope: FABRIC_SCOPE. Scope of its tokens.
        graph_url: GRAPH_URL. Scheme and host of Microsoft Graph.
        graph_scope: GRAPH_SCOPE. Scope of its tokens.
        graph_units_per_minute: GRAPH_UNITS_PER_MINUTE. Resource units that a worker spends at most; None to learn it.
        azureml_url: AZUREML_URL. Where Azure ML is; empty for its own address.
        azureml_storage_urls: AZUREML_STORAGE_URLS. Storage accounts whose blobs are at another address than their own.
        ca_bundle: CA_BUNDLE. A PEM file to trust in place of the system's.
        folder_source_roots: FOLDER_SOURCE_ROOTS. Folders below which a folder source may lie, separated by ``;``.
        blob_source_hosts: BLOB_SOURCE_HOSTS. Hosts that a blob source's account may have, separated by commas.
        credentials: CREDENTIAL_<NAME>. One JSON object for each credential that a job may name.
        upload_concurrency: UPLOAD_CONCURRENCY. Most uploads in flight of one worker.
        upload_memory_bytes: UPLOAD_MEMORY. Bytes of blocks in memory of one worker.
        retry_attempts: RETRY_ATTEMPTS. Attempts for an item in all.
        retry_first_delay_s: RETRY_FIRST_DELAY_S. Wait before the second attempt; doubles from there.
        verify_sample_items: VERIFY_SAMPLE_ITEMS. How many files ``verify: sample`` reads back.
        base: The app's folder, which relative paths are relative to.
        environment: All settings, since a SQL job names the one that holds its connection.
    """

    run_store_url: str
    run_store_connection: str = ""
    onelake_dfs_url: str = "https://onelake.dfs.fabric.microsoft.com"
    onelake_blob_url: str = ""
    onelake_scope: str = "https://storage.azure.com/.default"
    fabric_api_url: str = "https://api.fabric.microsoft.com"
    fabric_scope: str = "https://api.fabric.microsoft.com/.default"
    graph_url: str = "https://graph.microsoft.com"
    graph_scope: str = "https://graph.microsoft.com/.default"
    graph_units_per_minute: int | None = None
    azureml_url: str = ""
    azureml_storage_urls: Mapping[str, str] = field(default_factory=dict)
    ca_bundle: str | None = None
    folder_source_roots: tuple[str, ...] = ()
    blob_source_hosts: tuple[str, ...] = (
        "*.blob.core.windows.net",
        "*.blob.core.usgovcloudapi.net",
        "*.blob.core.chinacloudapi.cn",
        "*.blob.fabric.microsoft.com",
    )
    credentials: Mapping[str, str] = field(default_factory=dict, repr=False)
    upload_concurrency: int = 256
    upload_memory_bytes: int = 128 * 1024 * 1024
    retry_attempts: int = 6
    retry_first_delay_s: float = 15.0
    verify_sample_items: int = 100
    base: Path = Path()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)


def read_settings(environment: Mapping[str, str] | None = None) -> Settings:
    """Read and check the environment.

    Raises:
        Configuration: naming the setting, its value (never of a credential) and the remedy.
    """
    given = os.environ if environment is None else environment

    def text(name: str, default: str = "") -> str:
        return given.get(name, "").strip() or default

    def number(name: str, default: float, low: float, high: float) -> float:
        value = text(name, str(default))
        try:
            parsed = float(value)
        except ValueError:
            parsed = float("nan")
        if not low <= parsed <= high:
            raise Configuration(f"{name} is {value!r}; write a number from {low:g} to {high:g}", subject=name)
        return parsed

    try:
        memory = parse_bytes(text("UPLOAD_MEMORY", "128MiB"))
    except ValueError as error:
        raise Configuration(f"UPLOAD_MEMORY: {error}", subject="UPLOAD_MEMORY") from None
    if memory < 64 * 1024 * 1024:
        raise Configuration("UPLOAD_MEMORY must be at least 64MiB, room for two blocks", subject="UPLOAD_MEMORY")
    store = text("RUN_STORE_URL")
    if not store:
        raise Configuration(
            "RUN_STORE_URL is not set; write azure://<container>, or file:<folder> on one machine",
            subject="RUN_STORE_URL",
        )
    bundle = text("CA_BUNDLE") or None
    if bundle and not Path(bundle).is_file():
        raise Configuration(f"CA_BUNDLE names {bundle!r}, which is not a file", subject="CA_BUNDLE")
    return Settings(
        run_store_url=store,
        run_store_connection=text("RUN_STORE_CONNECTION") or text("AzureWebJobsStorage"),
        onelake_dfs_url=text("ONELAKE_DFS_URL", Settings.onelake_dfs_url),
        onelake_blob_url=text("ONELAKE_BLOB_URL"),
        onelake_scope=text("ONELAKE_SCOPE", Settings.onelake_scope),
        fabric_api_url=text("FABRIC_API_URL", Settings.fabric_api_url),
        fabric_scope=text("FABRIC_SCOPE", Settings.fabric_scope),
        graph_url=text("GRAPH_URL", Settings.graph_url),
        graph_scope=text("GRAPH_SCOPE", Settings.graph_scope),
        graph_units_per_minute=(
            int(number("GRAPH_UNITS_PER_MINUTE", 1250, 60, 1_000_000)) if text("GRAPH_UNITS_PER_MINUTE") else None
        ),
        azureml_url=text("AZUREML_URL").rstrip("/"),
        azureml_storage_urls=_storage_urls(text("AZUREML_STORAGE_URLS")),
        ca_bundle=bundle,
        folder_source_roots=tuple(root.strip() for root in text("FOLDER_SOURCE_ROOTS").split(";") if root.strip()),
        blob_source_hosts=check_host_patterns(
            "BLOB_SOURCE_HOSTS", text("BLOB_SOURCE_HOSTS", ",".join(Settings.blob_source_hosts)).split(",")
        ),
        credentials={
            name.removeprefix(_CREDENTIAL_PREFIX).lower(): value
            for name, value in given.items()
            if name.startswith(_CREDENTIAL_PREFIX) and value.strip()
        },
        upload_concurrency=int(number("UPLOAD_CONCURRENCY", 256, 1, 1024)),
        upload_memory_bytes=memory,
        retry_attempts=int(number("RETRY_ATTEMPTS", 6, 1, 20)),
        retry_first_delay_s=number("RETRY_FIRST_DELAY_S", 15, 0.1, 3600),
        verify_sample_items=int(number("VERIFY_SAMPLE_ITEMS", 100, 1, 1_000_000)),
        base=Path(__file__).resolve().parent.parent,
        environment=dict(given),
    )


def _storage_urls(text: str) -> dict[str, str]:
    """Account -> URL. Raises Configuration."""
    try:
        given = json.loads(text or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict) or not all(
        isinstance(url, str) and url.startswith(("https://", "http://127.0.0.1")) for url in given.values()
    ):
        raise Configuration(
            'AZUREML_STORAGE_URLS must be a JSON object of accounts and URLs, such as {"account": "https://..."}',
            subject="AZUREML_STORAGE_URLS",
        )
    return {str(name): url.rstrip("/") for name, url in given.items()}
