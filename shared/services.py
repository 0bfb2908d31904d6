"""From settings to the objects that do the work: made when first needed, one of each."""

import time
from collections import OrderedDict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.errors import Configuration
from shared.settings import Settings, read_settings

if TYPE_CHECKING:
    from shared.clients.blob import BlobAccount
    from shared.clients.credentials import TokenSource
    from shared.clients.fabric import Fabric
    from shared.clients.graph import Drive, Graph
    from shared.clients.onelake import LakeFolder, OneLake
    from shared.clients.run_store import ObjectRunStore
    from shared.engine.admission import IsAlive
    from shared.engine.files_run import FilesRun
    from shared.engine.mltables.run import AssetRecords, MltableRun
    from shared.engine.run_records import RunRecords
    from shared.engine.sources import JoinedTree
    from shared.engine.sql.run import SqlRecords, SqlRun
    from shared.model.job import BlobSource, FilesJob, SharePointSource
    from shared.model.lake_target import LakeTarget
    from shared.model.mltable_job import MltableJob
    from shared.model.sql_job import SqlJob
    from shared.model.sql_steps import SqlCounts
    from shared.ports import SourceTree

_RUNS_KEPT = 8


class Services:
    """What triggers and activities are given. Vendor packages are imported by what needs them, when it is needed."""

    def __init__(self, settings: Settings | None = None) -> None:
        self._given = settings
        self._tokens: dict[tuple[str, str], TokenSource] = {}
        self._lakes: dict[str, OneLake] = {}
        self._fabrics: dict[str, Fabric] = {}
        self._graphs: dict[str, Graph] = {}
        self._accounts: dict[tuple[str, str], BlobAccount] = {}
        self.mltable_clients: dict[tuple[str, ...], Any] = {}
        self._runs: OrderedDict[tuple[str, int], FilesRun] = OrderedDict()

    @cached_property
    def settings(self) -> Settings:
        """Raises Configuration; the environment is read on first use, so that an app with a gap still starts."""
        return self._given or read_settings()

    @cached_property
    def store(self) -> "ObjectRunStore":
        from shared.clients.run_store import open_run_store

        settings = self.settings
        return open_run_store(settings.run_store_url, settings.base, settings.run_store_connection)

    def clock(self) -> datetime:
        return datetime.now(UTC)

    def credential_fields(self, name: str) -> dict[str, str]:
        """The checked fields of a credential that a job names.

        Raises:
            Configuration: the credential is not configured, or not well.
        """
        from shared.clients.credentials import parse_credential

        setting = f"CREDENTIAL_{name.upper()}"
        value = self.settings.credentials.get(name.lower())
        if value is None:
            if name in ("onelake", "sql"):
                return {"kind": "default"}
            raise Configuration(f"the credential {name!r} is not configured; add the setting {setting}",
                                subject="credential")  # fmt: skip
        return parse_credential(setting, value)

    def workspace_credential(self, name: str, tenant_id: str | None) -> dict[str, str]:
        """The fields of a credential for a workspace of a tenant. Raises Configuration, subject the field at fault."""
        from shared.clients.credentials import ACCOUNT_KINDS

        fields = self.credential_fields(name)
        if fields["kind"] in ACCOUNT_KINDS:
            raise Configuration(f"the credential {name!r} is of kind {fields['kind']}, which opens no workspace",
                                subject="credential")  # fmt: skip
        if tenant_id and fields.get("tenant_id", tenant_id).lower() != tenant_id.lower():
            raise Configuration(
                f"is not the tenant of the credential {name!r} (got {tenant_id!r})", code="wrong_tenant",
                subject="tenant_id",
            )  # fmt: skip
        if tenant_id and fields["kind"] in ("cli", "workload_identity"):
            return {**fields, "tenant_id": tenant_id}
        return fields

    def tokens(self, credential: str, scope: str) -> "TokenSource":
        from shared.clients.credentials import TokenSource, build_credential

        key = (credential, scope)
        if key not in self._tokens:
            fields = self.credential_fields(credential)
            bundle = self.settings.ca_bundle
            self._tokens[key] = TokenSource(lambda: build_credential(fields, bundle), scope, time.time)
        return self._tokens[key]

    def onelake(self, credential: str) -> "OneLake":
        from shared.clients.onelake import OneLake

        if credential not in self._lakes:
            settings = self.settings
            self._lakes[credential] = OneLake(
                settings.onelake_dfs_url,
                self.tokens(credential, settings.onelake_scope),
                blob_url=settings.onelake_blob_url,
                ca_bundle=settings.ca_bundle,
                in_flight=settings.upload_concurrency,
                memory_bytes=settings.upload_memory_bytes,
            )
        return self._lakes[credential]

    async def resolve(self, target: "LakeTarget") -> tuple[str, str]:
        """GUIDs of a target's workspace and lakehouse; asks Fabric only for what is given by name."""
        from shared.clients.fabric import Fabric
        from shared.model.job import is_guid

        workspace, lakehouse = target.workspace, target.lakehouse
        if is_guid(workspace) and is_guid(lakehouse):
            return workspace.lower(), lakehouse.lower()
        if target.credential not in self._fabrics:
            settings = self.settings
            tokens = self.tokens(target.credential, settings.fabric_scope)
            self._fabrics[target.credential] = Fabric(settings.fabric_api_url, tokens, settings.ca_bundle)
        fabric = self._fabrics[target.credential]
        workspace_id = workspace.lower() if is_guid(workspace) else await fabric.workspace_id(workspace)
        lakehouse_id = lakehouse.lower() if is_guid(lakehouse) else await fabric.lakehouse_id(workspace_id, lakehouse)
        return workspace_id, lakehouse_id

    def target_folder(self, owner: str, target: "LakeTarget", workspace_id: str, lakehouse_id: str) -> "LakeFolder":
        """A target's folder, to see whether it can be reached."""
        from shared.clients.onelake import LakeFolder

        return LakeFolder(self.onelake(target.credential), workspace_id, lakehouse_id, target.path, owner=owner)

    def lake_folder(self, job: "FilesJob", workspace_id: str, lakehouse_id: str) -> "LakeFolder":
        from shared.clients.onelake import LakeFolder

        limits = job.limits
        return LakeFolder(
            self.onelake(job.target.credential),
            workspace_id,
            lakehouse_id,
            job.target.path,
            owner=job.name,
            in_flight=limits.concurrency if isinstance(limits.concurrency, int) else None,
            sequence=limits.upload_sequence,
            bandwidth=limits.bandwidth,
        )

    def graph(self, credential: str) -> "Graph":
        from shared.clients.graph import Graph

        if credential not in self._graphs:
            settings = self.settings
            tokens = self.tokens(credential, settings.graph_scope)
            self._graphs[credential] = Graph(
                settings.graph_url, tokens, settings.ca_bundle, settings.graph_units_per_minute
            )
        return self._graphs[credential]

    def drive(self, job: "FilesJob", source: "SharePointSource", place: list[str | None] | None) -> "Drive":
        """A library; ``place`` is what it was resolved to before."""
        from shared.clients.graph import Drive, DrivePlace

        return Drive(
            self.graph(source.credential),
            site=source.site,
            library=source.library,
            folder=source.folder,
            accept_rewrites=job.sharepoint_rewrites == "accept_recorded",
            place=DrivePlace(str(place[0]), place[1]) if place else None,
        )

    def blob_account(self, source: "BlobSource") -> "BlobAccount":
        from shared.clients.blob import open_account
        from shared.clients.credentials import STORAGE_SCOPE

        url = self.check_account(source.account_url)
        key = (url, source.credential)
        if key not in self._accounts:
            fields = self.credential_fields(source.credential)
            self._accounts[key] = open_account(
                url, fields, lambda: self.tokens(source.credential, STORAGE_SCOPE), ca_bundle=self.settings.ca_bundle
            )
        return self._accounts[key]

    def check_account(self, url: str) -> str:
        """The address of a blob source's account, if a job may make the worker talk to it. Raises Configuration."""
        from shared.policy.account_url import check_account_url

        return check_account_url(url, self.settings.blob_source_hosts)

    def sources(self, job: "FilesJob", prepared: list[dict[str, Any]], records: "RunRecords") -> "JoinedTree":
        """All sources of a job.

        Args:
            job: The job.
            prepared: For each of ``job.places()``, the ``real_path`` of a folder and the ``place`` of a library, as far
                as they are known.
            records: Of the run, which hold what was read of sources that do not list themselves in order.
        """
        from shared.engine.sources import JoinedTree, SourcePart

        return JoinedTree([
            SourcePart(sub, self._tree(job, number, prepared[number], records))
            for number, (_, sub) in enumerate(job.places())
        ])  # fmt: skip

    def _tree(self, job: "FilesJob", number: int, known: dict[str, Any], records: "RunRecords") -> "SourceTree":
        from shared.clients.blob import BlobContainer
        from shared.clients.folder import FolderTree
        from shared.engine.sources import DriveTree, ListedTree

        source, _ = job.places()[number]
        match source.type:
            case "folder":
                return FolderTree(known["real_path"])
            case "sharepoint":
                drive = self.drive(job, source, known.get("place"))
                return DriveTree(records, number, drive, incremental=job.mode == "incremental")
            case "blob":
                container = BlobContainer(self.blob_account(source), source.container, source.prefix)
                return ListedTree(records, number, container)

    def check_source(self, path: str) -> str:
        """The real path of a folder source, if a job may read it.

        Raises:
            Configuration: outside the allowed roots, or no folder.
        """
        from shared.clients.folder import resolve_below

        try:
            real = resolve_below(path, self.settings.folder_source_roots, self.settings.base)
            is_folder = real is not None and Path(real).is_dir()
        except (OSError, RuntimeError):
            # A name that is too long, or links that lead in a circle, which pathlib reports as a RuntimeError.
            raise Configuration("cannot be looked up; it is no path of a folder", code="no_folder",
                                subject="source.path") from None  # fmt: skip
        if real is None:
            raise Configuration(
                "lies in none of the folders that FOLDER_SOURCE_ROOTS allows",
                code="outside_roots",
                subject="source.path",
            )
        if not is_folder:
            raise Configuration("is not a folder that the worker sees", code="no_folder", subject="source.path")
        return real

    async def claim(self, job: str, run: str, is_alive: "IsAlive") -> tuple[str, list[str]]:
        """See :func:`shared.engine.admission.claim`."""
        from shared.engine.admission import claim

        return await claim(self.store, job, run, self.clock().isoformat(), is_alive)

    def records(self, run: str) -> "RunRecords":
        from shared.engine.mltables.run import AssetRecords
        from shared.engine.run_records import RunRecords
        from shared.engine.sql.run import SqlRecords

        by_kind = {"mltable": AssetRecords, "sql": SqlRecords}
        return by_kind.get(run.partition("-")[0], RunRecords)(self.store, run)

    def asset_records(self, run: str) -> "AssetRecords":
        from shared.engine.mltables.run import AssetRecords

        return AssetRecords(self.store, run)

    async def prepare_mltables(self, run: str) -> "MltableJob":
        """See :func:`shared.mltable_services.prepare`."""
        from shared.mltable_services import prepare

        return await prepare(self, run)

    async def mltable_run(self, run: str) -> "MltableRun":
        """An MLTable migration as its activities need it. Raises LookupError where nothing was prepared."""
        from shared.mltable_services import open_run

        return await open_run(self, run)

    def sql_records(self, run: str) -> "SqlRecords":
        from shared.engine.sql.run import SqlRecords

        return SqlRecords(self.store, run)

    async def rows_under_way(self, run: str) -> int:
        """Rows of tables that are being read at the moment, which no step has counted yet."""
        return await self.sql_records(run).rows_under_way()

    def connection(self, setting: str) -> str:
        """The value of the setting that holds a job's connection; never to be put into a message.

        Raises:
            Configuration: there is no such setting.
        """
        value = self.settings.environment.get(setting, "").strip()
        if not value:
            raise Configuration(
                f"there is no setting {setting}; add one that holds a SQLAlchemy URL or an ODBC connection string",
                code="setting_missing",
                subject="source.connection",
            )
        return value

    def check_connection(self, job: "SqlJob") -> None:
        """That the setting of a job's source is there and can be read. Raises Configuration."""
        from shared.sql_services import open_source

        open_source(self, job)

    async def prepare_sql(self, run: str, round_number: int) -> "tuple[SqlJob, list[int], SqlCounts, int]":
        """See :func:`shared.sql_services.prepare`."""
        from shared.sql_services import prepare

        return await prepare(self, run, round_number)

    async def sql_run(self, run: str) -> "tuple[SqlRun, str]":
        """A SQL migration as its activities need it, and its target. Raises LookupError where nothing was prepared."""
        from shared.sql_services import open_run

        return await open_run(self, run)

    async def files_run(self, run: str, round_number: int) -> "FilesRun":
        """The run as its activities need it; kept between them, since one worker serves many batches of a run."""
        key = (run, round_number)
        if key in self._runs:
            self._runs.move_to_end(key)
            return self._runs[key]
        from shared.engine.files_run import FilesRun
        from shared.model.job import parse_files_job

        records = self.records(run)
        document, prepared = await records.load("run.json"), await records.load("prepared.json")
        if key in self._runs:
            # Made by another activity meanwhile: what a run has in common is common to all of them.
            return self._runs[key]
        if document is None or prepared is None:
            raise LookupError(f"the run store holds no run {run}")
        job = parse_files_job(document["spec"])
        made = FilesRun(
            job=job,
            records=records,
            source=self.sources(job, prepared["sources"], records),
            lake=self.lake_folder(job, prepared["workspace_id"], prepared["lakehouse_id"]),
            clock=self.clock,
            pair=prepared["pair"],
            source_identity=prepared["source_identity"],
            identities=tuple(source["about"] for source in prepared["sources"]),
            prepared_at=datetime.fromisoformat(prepared["prepared_at"]),
        )
        self._runs[key] = made
        while len(self._runs) > _RUNS_KEPT:
            self._runs.popitem(last=False)
        return made

    async def followed_by(self, job: str, run: str) -> str | None:
        """See :func:`shared.engine.admission.followed_by`."""
        from shared.engine.admission import followed_by

        return await followed_by(self.store, job, run)

    async def withdraw_claims(self, job: str, run: str) -> None:
        """Forget that ``run`` was a run of ``job``, since it is purged."""
        from shared.engine.admission import withdraw

        await withdraw(self.store, job, run)

    def forget_run(self, run: str) -> None:
        """Drop what is kept of a run, since it is prepared anew or purged."""
        for key in [key for key in self._runs if key[0] == run]:
            del self._runs[key]
