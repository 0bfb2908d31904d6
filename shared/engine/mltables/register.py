"""Put the blueprint into place, and register the version: under its own name if that is free, else by the policy."""

import asyncio
import hashlib
from typing import Any

from shared.engine.mltables.plan import owner_of
from shared.engine.mltables.run import MltableRun
from shared.errors import ItemError, TargetConflict
from shared.model.mltable_job import Options
from shared.policy.asset_uri import is_same_uri
from shared.policy.asset_versions import candidates, migration_tags
from shared.policy.blueprint import BLUEPRINT, parse_blueprint
from shared.ports import DataVersion


async def register_version(run: MltableRun, group: int, version: int) -> dict[str, Any]:
    """Idempotent: a blueprint and a version that are there already are recognised.

    Returns:
        The version's document, with ``final_version``; empty if the policy skips it.

    Raises:
        TargetConflict: the policy is to fail, or no suffix is free.
        ItemError: the service refuses the registration, or does not show it as it was asked for.
    """
    document = await run.records.version(group, version)
    wish = await run.records.wish(group, version)
    options = run.options(document["spec"])
    await _put_blueprint(run, document)
    await run.records.save(run.records.version_key(group, version), document)
    final, is_new = await _register(run, document, options, archived=wish["archived"])
    record = document["record"]
    if final is None:
        record |= {"status": "skipped", "reason": "the target has this version already, with other data "
                   "(collision_policy: skip)"}  # fmt: skip
        await run.records.save(run.records.version_key(group, version), document)
        return document
    if wish["archived"]:
        await run.target.registry.archive(record["asset_name"], final)
    try:
        warnings = await _carry_asset(run, group, version)
    except ItemError as error:
        # The version is registered all the same.
        warnings = [f"what belongs to the asset as a whole did not come along: {error.detail}"]
    record["warnings"] = [*record["warnings"], *warnings]
    record |= {"final_version": final, "collision_resolved": final != record["requested_version"]}
    if not is_new and record["skipped_existing"]:
        record["reason"] = "the same files were there already, and registered"
    document["is_new"] = is_new
    await run.records.save(run.records.version_key(group, version), document)
    return document


async def unregister(run: MltableRun, document: dict[str, Any]) -> None:
    """After a registration whose table does not load: archive it, since a version cannot be taken back."""
    record = document["record"]
    if document.get("is_new") and record.get("final_version"):
        await run.target.registry.archive(record["asset_name"], record["final_version"])


async def is_registered_by_others(run: MltableRun, document: dict[str, Any]) -> bool:
    """Whether any version of the asset at the target has this folder, but for the one that this run registered."""
    record, own = document["record"], document["record"].get("final_version") if document.get("is_new") else None
    for archived in (False, True):
        for one in await run.target.registry.versions(record["asset_name"], archived=archived):
            if one.version != own and is_same_uri(one.uri, record["target_uri"], run.target.config.workspace):
                return True
    return False


async def release_claim(run: MltableRun, document: dict[str, Any]) -> None:
    await run.target.container.release(document["root"], owner_of(document["source"]["id"]))


# -- parts -------------------------------------------------------------------------------------------------------------


async def _carry_asset(run: MltableRun, group: int, version: int) -> list[str]:
    """Bring over what belongs to the asset as a whole; warnings about what the target has otherwise, and keeps."""
    plan = await run.records.plan(group)
    name, source = plan["name"], plan["asset"]
    found = await run.target.registry.container(name)
    if found is None:
        return []
    warnings = []
    if source["description"] and found.description and source["description"] != found.description:
        warnings.append("the asset as a whole has another description at the target, which stays")
    other = sorted(key for key, value in source["tags"].items() if found.tags.get(key, value) != value)
    if other:
        warnings.append(f"the asset as a whole has other tags at the target, which stay: {', '.join(other)}")
    description = found.description or source["description"]
    tags = {**source["tags"], **found.tags}
    if (description, tags) != (found.description, dict(found.tags)):
        await run.target.registry.describe(name, description, tags)
    is_last = version == len(plan["versions"]) - 1
    if source["archived"] and is_last and not found.archived:
        # As a whole only where nothing of the target's own would vanish with it.
        if await run.target.registry.versions(name, archived=False):
            warnings.append("the asset as a whole is archived in the source; at the target it has other versions")
        else:
            await run.target.registry.archive(name, None)
    return warnings


class _Text:
    """Bytes in memory as an open item."""

    version = ""
    facts = None

    def __init__(self, data: bytes) -> None:
        self.size_bytes = len(data)
        self._data = data

    async def read(self, size_bytes: int) -> bytes:
        block, self._data = self._data[:size_bytes], self._data[size_bytes:]
        return block

    async def finish(self) -> None: ...

    async def close(self) -> None: ...


async def _put_blueprint(run: MltableRun, document: dict[str, Any]) -> None:
    """Last of the files: a folder with a blueprint is a whole one."""
    target = run.target.container
    name = f"{document['root']}/{BLUEPRINT}"
    data = document["target_text"].encode()
    there = await target.stat(name)
    if there is not None:
        content = await target.open(name, there.ref)
        try:
            found = await content.read(content.size_bytes) if content.size_bytes else b""
            await content.finish()
        finally:
            await content.close()
        if found == data:
            return
        if document["is_registered"]:
            raise TargetConflict(
                f"the folder {document['root']!r} is registered and has another MLTable file", code="folder_taken"
            )
    try:
        written = await target.put(name, _Text(data), only_over=there.version if there is not None else None)
    except TargetConflict:
        again = await target.stat(name)
        if again is None or again.size_bytes != len(data) or not await _is_text(run, name, again.ref, data):
            raise
        return
    document["blueprint_etag"] = written.etag


async def _is_text(run: MltableRun, name: str, ref: str, data: bytes) -> bool:
    content = await run.target.container.open(name, ref)
    try:
        found = await content.read(content.size_bytes)
    finally:
        await content.close()
    return hashlib.sha256(found).digest() == hashlib.sha256(data).digest()


async def _register(
    run: MltableRun, document: dict[str, Any], options: Options, *, archived: bool
) -> tuple[str | None, bool]:
    """The version under which the folder is registered (None: skipped), and whether that was done here.

    Safe when two runs race: what is there is asked first, a conflict is answered by asking again, and a version that
    was taken meanwhile leads to the next candidate.
    """
    source = document["source"]
    record = document["record"]
    uri: str = record["target_uri"]
    registry, workspace = run.target.registry, run.target.config.workspace
    blueprint = await asyncio.to_thread(parse_blueprint, document["target_text"].encode())
    referenced = [entry.value for entry in blueprint.paths]
    for number, name in enumerate(
        candidates(source["version"], options.collision_suffix_pattern, options.collision_max)
    ):
        found = await registry.get(source["name"], name)
        if found is None or (not archived and await _is_put_away(run, found, uri)):
            tags = migration_tags(
                workspace=run.source.config.workspace_name, subscription_id=run.source.config.subscription_id,
                batch=run.batch, tool_version=run.tool_version, asset_id=source["id"], requested=source["version"],
                final=name, on_utc=run.now(),
            )  # fmt: skip
            wanted = DataVersion(
                source["name"],
                name,
                uri,
                source["type"],
                source["description"],
                {**source["tags"], **tags},
                source["properties"],
            )
            try:
                await registry.register(wanted, referenced)
            except TargetConflict:
                found = await registry.get(source["name"], name)
            else:
                return name, await _is_ours(run, wanted)
        if found is not None and found.type == "mltable" and is_same_uri(found.uri, uri, workspace):
            return name, False
        if number == 0 and options.collision_policy == "skip":
            return None, False
        if number == 0 and options.collision_policy == "fail":
            raise TargetConflict(
                f"the target has {source['name']}:{source['version']} already, with other data (collision_policy: "
                "fail)",
                code="version_exists",
            )
    raise TargetConflict(
        f"the target has {source['name']}:{source['version']} and every suffix up to {options.collision_max}",
        code="collisions_exhausted",
    )


async def _is_put_away(run: MltableRun, found: DataVersion, uri: str) -> bool:
    """Whether the version is ours and archived, as a rollback leaves it; to register it again brings it back."""
    if not is_same_uri(found.uri, uri, run.target.config.workspace):
        return False
    return any(one.version == found.version for one in await run.target.registry.versions(found.name, archived=True))


async def _is_ours(run: MltableRun, wanted: DataVersion) -> bool:
    """Ask once more: what counts is what the service shows, not that it said yes.

    Returns:
        False where another run registered the same folder of the same asset at the same moment, and its tags stand.

    Raises:
        TargetConflict, ItemError: it shows something else.
    """
    found = await run.target.registry.get(wanted.name, wanted.version)
    if found is None or not is_same_uri(found.uri, wanted.uri, run.target.config.workspace):
        raise TargetConflict("another run registered this version at the same moment", code="version_exists")
    lacking = [name for name, value in wanted.tags.items() if found.tags.get(name) != value]
    same_asset = found.tags.get("original_asset_id") == wanted.tags["original_asset_id"]
    if same_asset and lacking and set(lacking) <= {"migration_batch_id", "migrated_on_utc"}:
        return False
    if found.type != wanted.type or lacking:
        raise ItemError(
            f"the service shows the version without {', '.join(lacking) or 'its type'}", code="registration_differs"
        )
    return True
