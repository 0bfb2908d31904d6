"""From the configuration to the versions that are to be migrated, and what else the source holds."""

import asyncio
from typing import Any

from shared.engine.mltables.run import MltableRun, empty_record
from shared.model.mltable_steps import asset_page
from shared.model.steps import Counts, no_counts
from shared.policy.asset_versions import ListedVersion, Selected, is_glob, select
from shared.policy.globs import Globs
from shared.ports import DataContainer

_AT_ONCE = 8
MLTABLE = "mltable"


async def discover(run: MltableRun, round_number: int) -> tuple[list[int], Counts]:
    """Resolve names, globs, ``latest``, ``*`` and ranges, and write the plan down, one document an asset.

    In a later round only what failed before is left to do; the plan stays what it was.

    Returns:
        Versions of each asset, and the counts of what was settled here (versions that the source does not have).
    """
    if round_number > 1:
        return await _again(run)
    inventory = await _inventory(run)
    await run.records.save("inventory.json", inventory)
    wishes = [(asset.name, asset.versions) for asset in run.job.config.assets]
    listed = {
        name: [ListedVersion(one["version"], one["created_at"], one["archived"]) for one in asset["versions"]]
        for name, asset in inventory["mltables"].items()
    }
    latest = await _latest(run, wishes, listed)
    chosen, unmet = select(wishes, listed, latest)
    others = inventory["others"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for one in chosen:
        groups.setdefault(one.name, []).append(_wish(one, listed))
    for lack in unmet:
        other = next((asset["type"] for asset in others if asset["name"] == lack.name), None)
        groups.setdefault(lack.name, []).append({
            "name": lack.name, "version": lack.requested, "requested": lack.requested, "spec": lack.spec,
            "archived": False, "missing": lack.reason, "other_type": other,
        })  # fmt: skip
    counts = no_counts()
    for number, (name, versions) in enumerate(groups.items(), start=1):
        await run.records.save(f"plan/{asset_page(number)}.json", {
            "name": name, "versions": versions, "source_latest": latest.get(name),
            "asset": _asset(inventory["mltables"].get(name)),
        })  # fmt: skip
        counts["planned"] += len(versions)
        for position, wish in enumerate(versions):
            if "missing" in wish:
                await _record_missing(run, number, position, wish)
                counts["failed"] += 1
    return [len(versions) for versions in groups.values()], counts


def _asset(found: dict[str, Any] | None) -> dict[str, Any]:
    """What is the asset's own, beside its versions."""
    return {key: (found or {}).get(key) or empty for key, empty in (("archived", False), ("description", None),
                                                                    ("tags", {}))}  # fmt: skip


def _wish(one: Selected, listed: dict[str, list[ListedVersion]]) -> dict[str, Any]:
    archived = any(found.archived for found in listed[one.name] if found.version == one.version)
    return {"name": one.name, "version": one.version, "requested": one.requested, "spec": one.spec,
            "archived": archived}  # fmt: skip


async def _record_missing(run: MltableRun, group: int, position: int, wish: dict[str, Any]) -> None:
    if wish["other_type"]:
        record = empty_record(wish, "failed")
        record |= {"step": "discover", "error_code": "not_mltable",
                   "error_detail": f"is a data asset of type {wish['other_type']}, not an MLTable"}  # fmt: skip
    else:
        record = empty_record(wish, "missing")
        record |= {"step": "discover", "error_code": "asset_missing", "error_detail": wish["missing"]}
    record |= {"migration_batch_id": run.batch, "migrated_on_utc": run.now()}
    await run.records.put_record(group, position, record)


async def _again(run: MltableRun) -> tuple[list[int], Counts]:
    """A round of retry-failed: versions without success become open again."""
    sizes: list[int] = []
    open_again: list[str] = []
    for number, plan in await run.records.groups():
        sizes.append(len(plan["versions"]))
        for position, wish in enumerate(plan["versions"]):
            record = await run.records.record(number, position)
            if record is None or (record["status"] == "failed" and "missing" not in wish):
                open_again.append(run.records.key(run.records.version_key(number, position, "records")))
            elif record["status"] == "missing" and await run.source.registry.get(wish["name"], wish["version"]):
                # It has been registered since.
                plan["versions"][position] = {key: value for key, value in wish.items() if key != "missing"}
                await run.records.save(f"plan/{asset_page(number)}.json", plan)
                open_again.append(run.records.key(run.records.version_key(number, position, "records")))
    await run.records.store.delete(open_again)
    counts = no_counts()
    counts["planned"] = len(open_again)
    return sizes, counts


async def _inventory(run: MltableRun) -> dict[str, Any]:
    """Every MLTable of the source with its versions, and the names of all other data assets."""
    registry = run.source.registry
    containers = await registry.containers()
    places = asyncio.Semaphore(_AT_ONCE)

    async def versions(asset: DataContainer) -> dict[str, Any]:
        found: list[dict[str, Any]] = []
        async with places:
            for is_archived in (False, True):
                found += [
                    {"version": one.version, "created_at": one.created_at, "archived": is_archived, "type": one.type}
                    for one in await registry.versions(asset.name, archived=is_archived)
                ]
        return {"archived": asset.archived, "description": asset.description, "tags": dict(asset.tags),
                "versions": found}  # fmt: skip

    tables = [one for one in containers if one.type == MLTABLE]
    found = await asyncio.gather(*(versions(one) for one in tables))
    return {
        "mltables": dict(zip([one.name for one in tables], found, strict=True)),
        "others": [{"name": one.name, "type": one.type} for one in containers if one.type != MLTABLE],
    }


async def _latest(
    run: MltableRun, wishes: list[tuple[str, list[str]]], listed: dict[str, list[ListedVersion]]
) -> dict[str, str]:
    """What ``latest`` means for each asset that any entry names; the report compares it with the target's."""
    names = {
        name for wished, _ in wishes for name in listed
        if name == wished or (is_glob(wished) and Globs([wished]).match(name))
    }  # fmt: skip
    found: dict[str, str] = {}
    for name in sorted(names):
        version = await run.source.registry.latest(name)
        if version is not None:
            found[name] = version
    return found
