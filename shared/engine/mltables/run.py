"""One MLTable migration as its activities see it: the job, both workspaces, and where its documents lie.

::

    runs/<run>/run.json                          the job as it was posted
    runs/<run>/prepared.json                     both default datastores, the batch's id
    runs/<run>/inventory.json                    every data asset of the source
    runs/<run>/plan/<page>.json                  the versions of one asset, in the order of the source
    runs/<run>/versions/<page>/v0000.json        what was decided about a version: blueprint, folder, counts
    runs/<run>/files/<page>/v0000-f0000.jsonl    its files, a part each
    runs/<run>/copied/<page>/v0000-f0000.jsonl   the journal: what was copied of a part, written as it goes on
    runs/<run>/records/<page>/v0000.json         what became of it
    mltables/done/<hash>.json                    the last success of a version, over all runs

Which asset a folder of the target belongs to lies in the target itself, so that runs of two hosts see the same.
"""

import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from shared.engine.run_records import RunRecords
from shared.errors import ItemError, RunError
from shared.model.mltable_job import MltableJob, Options, WorkspaceConfig
from shared.model.mltable_steps import AssetFile, AssetRecord, CopiedFile, asset_page
from shared.model.records import dump_lines, load_lines
from shared.model.steps import Counts, no_counts
from shared.policy.blueprint import Home
from shared.ports import AssetBlobs, AssetRegistry, BlobDatastore, Clock, TableLoader


@dataclass
class Side:
    """A workspace with the storage behind its default datastore.

    Attributes:
        stores: Its other blob datastores; only those of the source are known.
        blobs: Opens a container of the account of a datastore.
    """

    config: WorkspaceConfig
    registry: AssetRegistry
    datastore: BlobDatastore
    stores: list[BlobDatastore]
    blobs: Callable[[BlobDatastore, str], AssetBlobs]

    @property
    def container(self) -> AssetBlobs:
        return self.blobs(self.datastore, self.datastore.container)

    @property
    def every_store(self) -> list[BlobDatastore]:
        return [self.datastore, *self.stores]

    def home(self, root: str, store: BlobDatastore | None = None) -> Home:
        """A folder of a datastore, by default of the default one."""
        store = store or self.datastore
        return Home(self.config.workspace, store.name, store.account, store.container, root)

    def at(self, account: str, container: str) -> AssetBlobs:
        """A container of an account that one of the datastores lies in."""
        store = next(one for one in self.every_store if one.account == account)
        return self.blobs(store, container)

    def holding(self, file: AssetFile) -> AssetBlobs:
        """Where a file of a plan lies."""
        return self.at(file["account"], file["container"])


@dataclass
class MltableRun:
    """Everything that stays the same while one run goes on."""

    job: MltableJob
    records: "AssetRecords"
    source: Side
    target: Side
    loader: TableLoader
    clock: Clock
    batch: str
    tool_version: str
    storage_urls: dict[str, str]

    def now(self) -> str:
        return self.clock().strftime("%Y-%m-%dT%H:%M:%SZ")

    def options(self, spec: int) -> Options:
        return self.job.config.options(spec)

    @property
    def dry_run(self) -> bool:
        return self.job.config.defaults.dry_run


class AssetRecords(RunRecords):
    """The documents of one run; ``final_pages`` gives one page an asset."""

    def version_key(self, group: int, version: int, folder: str = "versions") -> str:
        return f"{folder}/{asset_page(group)}/v{version:04d}.json"

    async def plan(self, group: int) -> dict[str, Any]:
        document = await self.load(f"plan/{asset_page(group)}.json")
        if document is None:
            raise LookupError(f"the plan of asset {group} of {self.run} is gone from the run store")
        return document

    async def wish(self, group: int, version: int) -> dict[str, Any]:
        """One entry of an asset's plan: ``name``, ``version``, ``requested``, ``spec``, ``archived``."""
        found: dict[str, Any] = (await self.plan(group))["versions"][version]
        return found

    async def version(self, group: int, version: int) -> dict[str, Any]:
        document = await self.load(self.version_key(group, version))
        if document is None:
            raise LookupError(f"what was decided about version {group}/{version} of {self.run} is gone")
        return document

    async def put_files(self, group: int, version: int, part: int, files: list[AssetFile]) -> None:
        await self.store.put(self._part("files", group, version, part), dump_lines(files))

    async def files(self, group: int, version: int, part: int) -> list[AssetFile]:
        data = await self.store.get(self._part("files", group, version, part))
        return load_lines(data or b"")

    async def put_copied(self, group: int, version: int, part: int, files: list[CopiedFile]) -> None:
        await self.store.put(self._part("copied", group, version, part), dump_lines(files))

    async def copied(self, group: int, version: int, part: int) -> list[CopiedFile]:
        return load_lines(await self.store.get(self._part("copied", group, version, part)) or b"")

    async def all_copied(self, group: int, version: int, parts: int) -> list[CopiedFile]:
        return [file for part in range(parts) for file in await self.copied(group, version, part)]

    async def forget_copied(self, group: int, version: int, parts: int) -> None:
        await self.store.delete([self._part("copied", group, version, part) for part in range(parts)])

    def _part(self, folder: str, group: int, version: int, part: int) -> str:
        return self.key(f"{folder}/{asset_page(group)}/v{version:04d}-f{part:04d}.jsonl")

    async def record(self, group: int, version: int) -> AssetRecord | None:
        found: Any = await self.load(self.version_key(group, version, "records"))
        return found  # type: ignore[no-any-return]

    async def put_record(self, group: int, version: int, record: AssetRecord) -> None:
        await self.save(self.version_key(group, version, "records"), dict(record))

    async def groups(self) -> list[tuple[int, dict[str, Any]]]:
        """Every asset's number and plan, in order."""
        keys = [key for key in await self.store.list(self.key("plan")) if key.endswith(".json")]
        numbers = sorted(int(key.rpartition("/p")[2].removesuffix(".json")) for key in keys)
        return [(number, await self.plan(number)) for number in numbers]

    async def final_pages(self, after: str | None = None) -> AsyncIterator[tuple[str, list[Any]]]:
        """Assets after the named page, with a record for each version; one that nothing came of yet is planned."""
        for number, plan in await self.groups():
            page = asset_page(number)
            if after is None or number > int(after.removeprefix("p")):
                yield (
                    page,
                    [
                        await self.record(number, version) or not_reached(wish)
                        for version, wish in enumerate(plan["versions"])
                    ],
                )


def empty_record(wish: dict[str, Any], status: str) -> AssetRecord:
    return {
        "asset_name": wish["name"], "requested_version": wish["version"], "final_version": None,
        "collision_resolved": False, "original_asset_id": None, "source_file_count": 0, "dest_file_count": 0,
        "source_bytes": 0, "dest_bytes": 0, "hash_sample_count": 0, "hash_mismatches": 0, "validation_loaded": None,
        "status": status, "migrated_on_utc": None, "path": f"{wish['name']}/{wish['version']}",
        "source_version": wish["version"], "wish": wish["requested"], "skipped_existing": False, "reason": None,
        "step": None, "error_code": None, "error_detail": None, "checks": {}, "warnings": [], "source_uri": None,
        "target_uri": None, "blueprint_changed": False, "blueprint_diff": "", "files_copied": 0,
        "files_by_service": 0, "bytes_copied": 0, "duration_s": 0.0, "rows": None,
        "archived": bool(wish.get("archived")), "rolled_back": False,
    }  # fmt: skip


def not_reached(wish: dict[str, Any]) -> AssetRecord:
    """The record of a version that the run has not come to."""
    return {**empty_record(wish, "planned"), "reason": "the run has not come to it"}


def settled_counts(record: AssetRecord) -> Counts:
    """What a version adds to the run's counts once nothing more will be done about it."""
    counts = no_counts()
    name = {"success": "uploaded", "skipped": "skipped", "failed": "failed", "missing": "failed"}.get(record["status"])
    if name:
        counts[name] += 1  # type: ignore[literal-required]
    return counts


def digest(*parts: str) -> str:
    """A name of letters and digits for something that has one of any characters."""
    return hashlib.sha256(chr(0).join(parts).encode()).hexdigest()[:40]


def error_fields(error: ItemError | RunError, step: str) -> dict[str, Any]:
    return {"step": step, "error_code": error.code, "error_detail": error.detail}
