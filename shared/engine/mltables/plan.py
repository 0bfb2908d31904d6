"""Decide what to do about one version before anything is written: its blueprint, its files, its folder."""

import json
from base64 import b64decode
from dataclasses import dataclass
from typing import Any

from shared.engine.mltables.run import MltableRun, digest_key, empty_record
from shared.errors import ItemError, NotFound, TargetConflict, Unsupported
from shared.model.mltable_job import Options
from shared.model.mltable_steps import AssetFile, AssetRecord
from shared.policy.asset_uri import is_same_uri, long_uri, normal_path, parse_datastore_path
from shared.policy.asset_versions import candidates
from shared.policy.blueprint import (
    BLUEPRINT,
    MAX_BLUEPRINT_BYTES,
    Home,
    Place,
    carried_path,
    covers,
    literal_base,
    locate,
    parse_blueprint,
    rewrite,
    unified_diff,
)
from shared.policy.paths import sort_key
from shared.ports import AssetBlobs, DataVersion, SourceItem

PART_FILES = 500
PART_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Settled:
    """A version about which nothing more is to be done."""

    record: AssetRecord


async def plan_version(run: MltableRun, group: int, version: int) -> Settled | dict[str, Any]:
    """Write the version's plan down, or say why there is nothing to do.

    Nothing at the target is changed but a claim in the run store: this asset's files lie in that folder.

    Returns:
        Settled, or the document that was written.

    Raises:
        ItemError: this version cannot be migrated.
    """
    wish = await run.records.wish(group, version)
    options = run.options(wish["spec"])
    record = start_record(run, wish)
    source = await run.source.registry.get(wish["name"], wish["version"])
    if source is None:
        return Settled({
            **record, "status": "missing", "step": "plan", "error_code": "asset_missing",
            "error_detail": "the source has no such version of it", "migrated_on_utc": run.now(),
        })  # fmt: skip
    record |= {"original_asset_id": source.id, "source_uri": source.uri}
    done = await _done_in_batch(run, source)
    if done is not None:
        return Settled({**done, **_identity(record), "status": "skipped", "skipped_existing": True,
                        "reason": "migrated before in this batch"})  # fmt: skip
    home = home_of(run, source)
    blueprint = parse_blueprint(await read_blueprint(run.source.container, home.root))
    files = await _list_files(run.source.container, home.container, home.root)
    # Beforehand: a claim is made on a folder, and what is refused must not make one.
    preview = locate(blueprint, home, run.target.home(""), run.storage_urls)
    warnings = judge_places(preview, options, [file["path"] for file in files])
    files += await _carried_files(run, preview, home, options)
    _assert_apart(preview, files)
    chosen = await _choose_folder(run, source, options, files, wish)
    if isinstance(chosen, str):
        return Settled({**record, "status": "skipped", "reason": chosen, "migrated_on_utc": run.now()})
    root, registered, existing = chosen
    target = run.target.home(root)
    places = locate(blueprint, home, target, run.storage_urls)
    text = rewrite(blueprint, places, home, target, run.storage_urls)
    if any(token.field for token in blueprint.tokens):
        warnings.append("a column is turned into streams (stream_info): addresses in the data itself stay as they are")
    record |= {
        "source_file_count": len(files), "source_bytes": sum(file["size_bytes"] for file in files),
        "target_uri": long_uri(target.workspace, target.datastore, root), "warnings": warnings,
        "blueprint_changed": text != blueprint.text, "blueprint_diff": unified_diff(blueprint.text, text),
    }  # fmt: skip
    if run.dry_run:
        return Settled(await _simulated(run, record, options, registered))
    for file in files:
        file["there"] = existing.get(file["path"])
    parts = _parts(files)
    for number, part in enumerate(parts):
        await run.records.put_files(group, version, number, part)
    document = {
        "record": record, "source": _as_document(source), "home_root": home.root, "root": root,
        "source_text": blueprint.text, "target_text": text, "parts": len(parts), "spec": wish["spec"],
        "is_registered": registered is not None, "started_at": run.clock().isoformat(),
    }  # fmt: skip
    await run.records.save(run.records.version_key(group, version), document)
    return document


def start_record(run: MltableRun, wish: dict[str, Any]) -> AssetRecord:
    return {**empty_record(wish, "failed"), "migration_batch_id": run.batch}


def home_of(run: MltableRun, source: DataVersion) -> Home:
    """Where the source's version lies.

    Raises:
        Unsupported: code ``not_mltable`` or ``other_datastore``.
    """
    if source.type != "mltable":
        raise Unsupported(f"is a data asset of type {source.type}, not an MLTable", code="not_mltable")
    named = parse_datastore_path(source.uri)
    side = run.source
    mine = named is not None and (named.workspace is None or named.workspace.is_same(side.config.workspace))
    if named is None or not mine or named.datastore != side.datastore.name:
        raise Unsupported(
            f"the data lies at {source.uri.partition('?')[0]!r}; only the workspace's default datastore "
            f"{side.datastore.name!r} is supported",
            code="other_datastore",
        )
    root = normal_path(named.path)
    if root == BLUEPRINT or root.endswith(f"/{BLUEPRINT}"):
        root = root.removesuffix(BLUEPRINT).strip("/")
    return side.home(root)


async def read_blueprint(blobs: AssetBlobs, root: str) -> bytes:
    """Raises ItemError, code ``blueprint_missing``, where the folder has none."""
    try:
        content = await blobs.open(_join(root, BLUEPRINT))
    except NotFound:
        raise ItemError(f"there is no {BLUEPRINT} file in {root!r}", code="blueprint_missing") from None
    try:
        if content.size_bytes > MAX_BLUEPRINT_BYTES:
            raise ItemError(f"the MLTable file has {content.size_bytes:,} bytes", code="blueprint_invalid")
        data = bytes(await content.read(content.size_bytes)) if content.size_bytes else b""
        await content.finish()
    finally:
        await content.close()
    return data


def judge_places(places: list[Place], options: Options, files: list[str]) -> list[str]:
    """Warnings about paths that are kept.

    Raises:
        Unsupported: a path leads where the job's policy does not follow; every such path is named.
    """
    refused: list[tuple[str, str]] = []
    warnings: list[str] = []
    for place in places:
        value = place.entry.value.partition("?")[0]
        if place.kind == "inside":
            if place.entry.kind == "file" and place.relative not in files:
                refused.append(("path_missing", f"{value!r}: there is no such file"))
            elif place.entry.kind != "file" and not any(
                covers(place.entry.kind, place.relative, file) for file in files
            ):
                warnings.append(f"{value!r} means no file of the asset")
        elif place.kind == "public_url":
            if options.public_urls == "refuse":
                refused.append(("public_url", f"{value!r}: {place.reason}; public_urls: keep leaves it as it is"))
            else:
                warnings.append(f"{value!r} stays as it is: {place.reason}")
        elif place.kind == "outside_root":
            if options.outside_root == "refuse":
                refused.append(("outside_root", f"{value!r}: {place.reason}; outside_root: carry copies it along"))
        elif place.kind == "other_datastore" and not place.can_carry:
            refused.append(("other_datastore", f"{value!r}: {place.reason}, and cannot be carried along"))
        elif place.kind == "other_datastore" and options.other_datastore == "refuse":
            refused.append(("other_datastore", f"{value!r}: {place.reason}; other_datastore: carry copies it along"))
    if refused:
        raise Unsupported("; ".join(text for _, text in refused), code=refused[0][0])
    return warnings


async def list_items(blobs: AssetBlobs, folder: str) -> list[SourceItem]:
    """Every blob below a folder, under its whole name."""
    found: list[SourceItem] = []
    cursor: str | None = None
    while True:
        page = await blobs.list_below(f"{folder}/" if folder else "", cursor)
        found += page.items
        cursor = page.cursor
        if cursor is None:
            return found


# -- parts -------------------------------------------------------------------------------------------------------------


def _join(*parts: str) -> str:
    return "/".join(part for part in parts if part)


def _identity(record: AssetRecord) -> Any:
    names = ("asset_name", "requested_version", "path", "source_version", "wish", "migration_batch_id")
    return {name: record[name] for name in names}  # type: ignore[literal-required]


def _as_document(source: DataVersion) -> dict[str, Any]:
    return {
        "name": source.name, "version": source.version, "uri": source.uri, "type": source.type, "id": source.id,
        "description": source.description, "tags": dict(source.tags), "properties": dict(source.properties),
    }  # fmt: skip


def _file(item: SourceItem, path: str, container: str) -> AssetFile:
    if item.problem is not None:
        code, sentence = item.problem
        raise ItemError(f"{item.path!r} {sentence}", code=code)
    stored = str((item.facts or {}).get("content_md5") or "")
    is_block = (item.facts or {}).get("blob_type") == "BlockBlob"
    md5 = b64decode(stored).hex() if stored and is_block else ""
    return {"path": path, "container": container, "name": item.path, "size_bytes": item.size_bytes, "md5": md5,
            "ref": item.ref, "there": None}  # fmt: skip


async def _list_files(blobs: AssetBlobs, container: str, root: str) -> list[AssetFile]:
    """The asset's files but for the blueprint, in path order."""
    found = []
    for item in await list_items(blobs, root):
        path = item.path.removeprefix(f"{root}/") if root else item.path
        if path != BLUEPRINT:
            found.append(_file(item, path, container))
    return sorted(found, key=lambda file: sort_key(file["path"]))


async def _carried_files(run: MltableRun, places: list[Place], home: Home, options: Options) -> list[AssetFile]:
    """What lies outside of the root and is to come along, each file once."""
    found: dict[str, AssetFile] = {}
    for place in places:
        if place.kind not in ("outside_root", "other_datastore"):
            continue
        blobs = run.source.blobs(place.container)
        if place.entry.kind == "file":
            item = await blobs.stat(place.path)
            items = [item] if item is not None else []
        else:
            base = place.path if place.entry.kind == "folder" else literal_base(place.path)
            if not base:
                raise Unsupported(
                    f"{place.entry.value.partition('?')[0]!r} means the whole container {place.container!r}; name a "
                    "folder of it",
                    code=place.kind,
                )
            items = [one for one in await list_items(blobs, base) if covers(place.entry.kind, place.path, one.path)]
        if not items:
            raise ItemError(f"{place.entry.value.partition('?')[0]!r}: there is nothing there", code="path_missing")
        before = carried_path(place, home)
        for one in items:
            path = before.removesuffix(place.path) + one.path
            found[path] = _file(one, path, place.container)
    return sorted(found.values(), key=lambda file: sort_key(file["path"]))


def _assert_apart(places: list[Place], files: list[AssetFile]) -> None:
    """What is carried must not fall into what another path of the blueprint means already."""
    carried = [file["path"] for file in files if file["path"].startswith("_outside/")]
    for place in places:
        if place.kind == "inside" and place.entry.kind != "file":
            for path in carried:
                if covers(place.entry.kind, place.relative, path):
                    raise Unsupported(
                        f"{place.entry.value!r} would mean the files as well that come from outside of the asset's "
                        "folder, and load them twice; narrow that path, or copy the files by hand",
                        code="outside_root",
                    )
    if len({file["path"] for file in files}) != len(files):
        raise Unsupported("the asset has a folder _outside of its own; nothing can be carried into it",
                          code="outside_root")  # fmt: skip


async def _choose_folder(
    run: MltableRun, source: DataVersion, options: Options, files: list[AssetFile], wish: dict[str, Any]
) -> tuple[str, DataVersion | None, dict[str, list[Any]]] | str:
    """The folder at the target, with the version that is registered over it already, if one is, and what lies there.

    The folder is free, or this asset's own, or holds nothing but files that are the same. Otherwise somebody else's
    data lies there, and the collision policy speaks.

    Returns:
        Folder, registered version, and size, MD5 and ETag of its blobs; or why the version is skipped.
    """
    asset = run.job.config.assets[wish["spec"]]
    prefix = asset.destination_prefix or options.destination_prefix
    first = await run.target.registry.get(source.name, source.version)
    wanted = {file["path"]: file for file in files}
    for number, name in enumerate(candidates(source.version, options.collision_suffix_pattern, options.collision_max)):
        root = _join(prefix, asset.destination_subpath or source.name, name)
        uri = long_uri(run.target.config.workspace, run.target.datastore.name, root)
        if number == 0 and first is not None and not is_same_uri(first.uri, uri, run.target.config.workspace):
            reason = f"the target has {source.name}:{source.version} already, with other data"
            if options.collision_policy == "skip":
                return f"{reason} (collision_policy: skip)"
            if options.collision_policy == "fail":
                raise TargetConflict(f"{reason} (collision_policy: fail)", code="version_exists")
        registered = await _registered_over(run, source, uri, options)
        owner = await _owner(run, root, source.id)
        existing = await _existing(run, root)
        foreign = [path for path, blob in existing.items() if path != BLUEPRINT and not _may_be(wanted.get(path), blob)]
        if (owner and (not foreign or registered is None)) or (owner is None and not foreign):
            if owner is None and not run.dry_run and not await _claim(run, root, source.id):
                continue
            return root, registered, existing
        if options.collision_policy == "skip":
            return f"the folder {root!r} of the target holds other data (collision_policy: skip)"
        if options.collision_policy == "fail":
            raise TargetConflict(f"the folder {root!r} of the target holds other data (collision_policy: fail)",
                                 code="folder_taken")  # fmt: skip
    raise TargetConflict(
        f"every folder up to the {options.collision_max}th suffix is taken at the target", code="collisions_exhausted"
    )


async def _registered_over(run: MltableRun, source: DataVersion, uri: str, options: Options) -> DataVersion | None:
    """The version at the target whose data this folder is: under its own name, or under a suffix."""
    for name in candidates(source.version, options.collision_suffix_pattern, options.collision_max):
        found = await run.target.registry.get(source.name, name)
        if found is None or is_same_uri(found.uri, uri, run.target.config.workspace):
            return found
    return None


async def _existing(run: MltableRun, root: str) -> dict[str, list[Any]]:
    return {
        item.path.removeprefix(f"{root}/"): [item.size_bytes, _file(item, "", "")["md5"], item.version]
        for item in await list_items(run.target.container, root)
    }


def _may_be(file: AssetFile | None, blob: list[Any]) -> bool:
    size, md5, _ = blob
    return file is not None and file["size_bytes"] == size and (not md5 or not file["md5"] or md5 == file["md5"])


def claim_key(run: MltableRun, root: str) -> str:
    store = run.target.datastore
    return digest_key("claims", store.account, store.container, root)


async def _owner(run: MltableRun, root: str, asset_id: str) -> bool | None:
    """Whether this asset owns the folder; None where nobody does, as far as this run store knows."""
    found = await run.records.store.get(claim_key(run, root))
    return None if found is None else found == asset_id.lower().encode()


async def _claim(run: MltableRun, root: str, asset_id: str) -> bool:
    if await run.records.store.put_new(claim_key(run, root), asset_id.lower().encode()):
        return True
    return await _owner(run, root, asset_id) is True


def done_key(run: MltableRun, source_id: str) -> str:
    return digest_key("done", run.target.config.workspace.arm_id.lower(), source_id.lower())


async def _done_in_batch(run: MltableRun, source: DataVersion) -> AssetRecord | None:
    """The record of an earlier success of this very batch, if all that it says is still there."""
    data = await run.records.store.get(done_key(run, source.id))
    done: AssetRecord | None = json.loads(data) if data is not None else None
    if done is None or done["migration_batch_id"] != run.batch or not done["final_version"]:
        return None
    registered = await run.target.registry.get(source.name, done["final_version"])
    named = parse_datastore_path(done["target_uri"] or "")
    if registered is None or named is None:
        return None
    if not is_same_uri(registered.uri, done["target_uri"] or "", run.target.config.workspace):
        return None
    there = await _existing(run, normal_path(named.path))
    sizes = [blob[0] for path, blob in there.items() if path != BLUEPRINT]
    whole = BLUEPRINT in there and (len(sizes), sum(sizes)) == (done["dest_file_count"], done["dest_bytes"])
    return done if whole else None


async def _simulated(
    run: MltableRun, record: AssetRecord, options: Options, registered: DataVersion | None
) -> AssetRecord:
    """What a registration would come to, had it happened now."""
    version = record["requested_version"]
    final: str | None = None
    for name in candidates(version, options.collision_suffix_pattern, options.collision_max):
        found = await run.target.registry.get(record["asset_name"], name)
        if found is None or is_same_uri(found.uri, record["target_uri"] or "", run.target.config.workspace):
            final = name
            break
    if final is None:
        raise TargetConflict(f"every suffix up to {options.collision_max} is taken at the target",
                             code="collisions_exhausted")  # fmt: skip
    reason = "dry run: would be copied and registered"
    if registered is not None:
        reason = "dry run: is registered already; would be compared, and copied where it differs"
    return {**record, "status": "planned", "final_version": final, "collision_resolved": final != version,
            "reason": reason}  # fmt: skip


def _parts(files: list[AssetFile]) -> list[list[AssetFile]]:
    parts: list[list[AssetFile]] = []
    size = 0
    for file in files:
        if not parts or len(parts[-1]) >= PART_FILES or (size and size + file["size_bytes"] > PART_BYTES):
            parts.append([])
            size = 0
        parts[-1].append(file)
        size += file["size_bytes"]
    return parts
