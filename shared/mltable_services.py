"""From settings to the two sides of an MLTable migration: clients are made once and kept by ``Services``."""

import time
import uuid
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from shared import VERSION
from shared.engine.mltables.run import MltableRun, Side
from shared.model.job import parse_job
from shared.model.mltable_job import MltableJob, WorkspaceConfig
from shared.ports import BlobDatastore

if TYPE_CHECKING:
    from shared.clients.azureml import AzureMLRegistry
    from shared.clients.blob.writing import WritableContainer
    from shared.clients.credentials import TokenSource
    from shared.services import Services

_REMEDY = {
    "source": "give the identity the Storage Blob Data Reader role on the account",
    "target": "give the identity the Storage Blob Data Contributor role on the account",
}


async def prepare(services: "Services", run: str) -> MltableJob:
    """Ask both workspaces for their default datastores, and list a page of each container.

    Raises:
        RunError: one of them cannot be reached or read.
    """
    records = services.asset_records(run)
    document = await records.load("run.json")
    if document is None:
        raise LookupError(f"the run store holds no run {run}")
    job = _job(document["spec"])
    before = await records.load("prepared.json")
    stores: dict[str, Any] = {}
    for side, config, credential in _sides(job):
        registry = _registry(services, side, config, credential)
        datastore = await registry.default_datastore()
        blobs = _container(services, side, config, credential, datastore, datastore.container)
        await blobs.list_page(None, 1)
        stores[side] = asdict(datastore)
        if side == "source":
            stores["others"] = [asdict(one) for one in await registry.datastores() if one.name != datastore.name]
    batch = job.config.migration_batch_id or (before or {}).get("batch") or str(uuid.uuid4())
    await records.save("prepared.json", {**stores, "batch": batch})
    return job


async def open_run(services: "Services", run: str) -> MltableRun:
    """Raises LookupError where nothing was prepared."""
    from shared.clients.table_loader import SubprocessTableLoader

    records = services.asset_records(run)
    document, prepared = await records.load("run.json"), await records.load("prepared.json")
    if document is None or prepared is None:
        raise LookupError(f"the run store holds no run {run}")
    job = _job(document["spec"])
    others = [BlobDatastore(**one) for one in prepared.get("others", [])]
    made = {
        side: _side(
            services, side, config, credential, BlobDatastore(**prepared[side]), others if side == "source" else []
        )
        for side, config, credential in _sides(job)
    }
    return MltableRun(
        job=job,
        records=records,
        source=made["source"],
        target=made["target"],
        loader=SubprocessTableLoader(),
        clock=services.clock,
        batch=prepared["batch"],
        tool_version=VERSION,
        storage_urls=dict(services.settings.azureml_storage_urls),
    )


def _job(spec: object) -> MltableJob:
    job = parse_job(spec)
    if not isinstance(job, MltableJob):
        raise TypeError(f"a job of kind {job.kind} where one of MLTables belongs")
    return job


def _sides(job: MltableJob) -> list[tuple[str, WorkspaceConfig, str]]:
    return [
        ("source", job.config.source_workspace_config, job.source_credential),
        ("target", job.config.target_workspace_config, job.target_credential),
    ]


def _side(
    services: "Services",
    side: str,
    config: WorkspaceConfig,
    credential: str,
    datastore: BlobDatastore,
    others: list[BlobDatastore],
) -> Side:
    def blobs(store: BlobDatastore, container: str) -> "WritableContainer":
        return _container(services, side, config, credential, store, container)

    return Side(config, _registry(services, side, config, credential), datastore, others, blobs)


def _registry(services: "Services", side: str, config: WorkspaceConfig, credential: str) -> "AzureMLRegistry":
    from shared.clients.azureml import AzureMLRegistry

    key = ("registry", side, credential, config.tenant_id or "", config.workspace.arm_id.lower())
    found: AzureMLRegistry | None = services.mltable_clients.get(key)
    if found is None:
        settings = services.settings
        found = services.mltable_clients[key] = AzureMLRegistry(
            config.workspace,
            side,
            lambda scope: _tokens(services, credential, config.tenant_id, scope),
            url=settings.azureml_url,
            ca_bundle=settings.ca_bundle,
        )
    return found


def _container(
    services: "Services", side: str, config: WorkspaceConfig, credential: str, datastore: BlobDatastore, container: str
) -> "WritableContainer":
    from shared.clients.blob import BlobAccount
    from shared.clients.blob.writing import DelegatedAccess, WritableContainer, side_classifier
    from shared.clients.credentials import STORAGE_SCOPE
    from shared.clients.http import Transport

    key = ("account", side, credential, config.tenant_id or "", datastore.account, datastore.endpoint)
    found: tuple[BlobAccount, Transport] | None = services.mltable_clients.get(key)
    if found is None:
        settings = services.settings
        own = settings.azureml_storage_urls.get(datastore.account)
        url = own or services.check_account(f"https://{datastore.account}.blob.{datastore.endpoint}")
        tokens = _tokens(services, credential, config.tenant_id, STORAGE_SCOPE)
        classify = side_classifier(side, _REMEDY[side])
        transport = Transport(tokens, classify, ca_bundle=settings.ca_bundle)
        access = DelegatedAccess(tokens, datastore.account, url, transport)
        account = BlobAccount(url, access, ca_bundle=settings.ca_bundle, classify=classify)
        found = services.mltable_clients[key] = (account, transport)
    return WritableContainer(found[0], container, found[1])


def _tokens(services: "Services", credential: str, tenant_id: str | None, scope: str) -> "TokenSource":
    from shared.clients.credentials import TokenSource, build_credential

    key = ("tokens", credential, tenant_id or "", scope)
    found: TokenSource | None = services.mltable_clients.get(key)
    if found is None:
        fields = services.workspace_credential(credential, tenant_id)
        bundle = services.settings.ca_bundle
        found = services.mltable_clients[key] = TokenSource(lambda: build_credential(fields, bundle), scope, time.time)
    return found
