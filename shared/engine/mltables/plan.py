"""Decide what to do about one version before anything is written: its blueprint, its files, its folder."""

import asyncio
import json
import re
from dataclasses import dataclass
from typing import Any

from shared.engine.mltables.copying import hash_of, list_items, source_state, stored_md5
from shared.engine.mltables.run import MltableRun, digest, empty_record
from shared.errors import ItemError, NotFound, TargetConflict, Unsupported
from shared.model.mltable_job import Options
from shared.model.mltable_steps import AssetFile, AssetRecord
from shared.policy.asset_uri import is_below, is_same_uri, long_uri, normal_path, parse_datastore_path, shown_uri
from shared.policy.asset_versions import candidates
from shared.policy.blueprint import (
    BLUEPRINT,
    MAX_BLUEPRINT_BYTES,
    Blueprint,
    Home,
    Place,
    Store,
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
_SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,254}")


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
    record |= {"original_asset_id": source.id, "source_uri": shown_uri(source.uri)}
    _assert_names(source)
    home = home_of(run, source, options)
    blobs = run.source.at(home.account, home.container)
    listed = await list_items(blobs, home.root)
    state = source_state(listed)
    done = await _done_in_batch(run, source, state)
    if done is not None:
        return Settled({**done, **_identity(record), "status": "skipped", "skipped_existing": True,
                        "reason": "migrated before in this batch"})  # fmt: skip
    blueprint = await asyncio.to_thread(parse_blueprint, await read_blueprint(blobs, home.root))
    files = _own_files(listed, home)
    stores = [Store(one.name, one.account, one.container) for one in run.source.every_store]
    places = locate(blueprint, home, run.storage_urls, stores=stores)
    warnings = judge_places(places, options, [file["path"] for file in files])
    carried = await _carried_files(run, places, home)
    _assert_apart(places, files, carried)
    files += carried
    chosen = await _choose_folder(run, _Wanted(source, blueprint, places, home, options, files, wish))
    if isinstance(chosen, str):
        return Settled({**record, "status": "skipped", "reason": chosen, "migrated_on_utc": run.now()})
    root, registered, existing = chosen.root, chosen.registered, chosen.existing
    target = run.target.home(root)
    text = await asyncio.to_thread(rewrite, blueprint, places, home, target, run.storage_urls)
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
        "record": record, "source": _as_document(source), "root": root,
        "home": {"store": home.datastore, "root": home.root}, "source_state": state, "may_replace": chosen.may_replace,
        "source_text": blueprint.text, "target_text": text, "parts": len(parts), "spec": wish["spec"],
        "is_registered": registered is not None, "started_at": run.clock().isoformat(),
    }  # fmt: skip
    await run.records.save(run.records.version_key(group, version), document)
    return document


def start_record(run: MltableRun, wish: dict[str, Any]) -> AssetRecord:
    return {**empty_record(wish, "failed"), "migration_batch_id": run.batch}


def home_of(run: MltableRun, source: DataVersion, options: Options) -> Home:
    """Where the source's version lies.

    Raises:
        Unsupported: code ``not_mltable`` or ``other_datastore``.
    """
    if source.type != "mltable":
        raise Unsupported(f"is a data asset of type {source.type}, not an MLTable", code="not_mltable")
    named = parse_datastore_path(source.uri)
    side = run.source
    mine = named is not None and (named.workspace is None or named.workspace.is_same(side.config.workspace))
    store = next((one for one in side.every_store if named and mine and one.name == named.datastore), None)
    if named is None or store is None:
        raise Unsupported(
            f"the data lies at {shown_uri(source.uri)!r}, which is in no blob datastore of the source's workspace",
            code="other_datastore",
        )
    if store is not side.datastore and options.other_datastore == "refuse":
        raise Unsupported(
            f"the data lies at {shown_uri(source.uri)!r}, outside of the workspace's default datastore "
            f"{side.datastore.name!r}; other_datastore: carry copies it into the target's default one",
            code="other_datastore",
        )
    root = normal_path(named.path)
    if ".." in root.split("/"):
        raise Unsupported(f"the data lies at {shown_uri(source.uri)!r}, which holds '..'", code="other_datastore")
    if root == BLUEPRINT or root.endswith(f"/{BLUEPRINT}"):
        root = root.removesuffix(BLUEPRINT).strip("/")
    return side.home(root, store)


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
    there = set(files)
    for place in places:
        value = shown_uri(place.entry.value)
        if place.kind == "inside":
            if place.entry.kind == "file" and place.relative not in there:
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


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What is to lie in the folder that is looked for."""

    source: DataVersion
    blueprint: Blueprint
    places: list[Place]
    home: Home
    options: Options
    files: list[AssetFile]
    wish: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A folder at the target.

    Attributes:
        registered: The version that is registered over it already.
        existing: Size, MD5 and ETag of its blobs.
        may_replace: Whether a file with other content may be written over: only where the folder is this asset's own,
            and nothing is registered over it.
    """

    root: str
    registered: DataVersion | None
    existing: dict[str, list[Any]]
    may_replace: bool


def _assert_names(source: DataVersion) -> None:
    """Name and version become folders, and come from a service of another tenant."""
    for name in (source.name, source.version):
        if not _SAFE_NAME.fullmatch(name):
            raise Unsupported(f"{name[:100]!r} cannot be the name of a folder", code="unmappable_path")


def _file(item: SourceItem, path: str, account: str, container: str) -> AssetFile:
    if item.problem is not None:
        code, sentence = item.problem
        raise ItemError(f"{item.path!r} {sentence}", code=code)
    return {"path": path, "account": account, "container": container, "name": item.path, "size_bytes": item.size_bytes,
            "md5": stored_md5(item), "ref": item.ref, "there": None}  # fmt: skip


def _own_files(listed: list[SourceItem], home: Home) -> list[AssetFile]:
    """The asset's files but for the blueprint, in path order."""
    found = []
    for item in listed:
        path = item.path.removeprefix(f"{home.root}/") if home.root else item.path
        if path != BLUEPRINT:
            found.append(_file(item, path, home.account, home.container))
    return sorted(found, key=lambda file: sort_key(file["path"]))


async def _carried_files(run: MltableRun, places: list[Place], home: Home) -> list[AssetFile]:
    """What lies outside of the root and is to come along, each file once."""
    found: dict[str, AssetFile] = {}
    for place in places:
        if place.kind not in ("outside_root", "other_datastore"):
            continue
        blobs = run.source.at(place.account, place.container)
        if place.entry.kind == "file":
            item = await blobs.stat(place.path)
            items = [item] if item is not None else []
        else:
            base = place.path if place.entry.kind == "folder" else literal_base(place.path)
            if not base:
                raise Unsupported(
                    f"{shown_uri(place.entry.value)!r} means the whole container {place.container!r}; name a folder of "
                    "it",
                    code=place.kind,
                )
            items = [one for one in await list_items(blobs, base) if covers(place.entry.kind, place.path, one.path)]
        if not items:
            raise ItemError(f"{shown_uri(place.entry.value)!r}: there is nothing there", code="path_missing")
        before = carried_path(place, home)
        for one in items:
            path = before.removesuffix(place.path) + one.path
            file = _file(one, path, place.account, place.container)
            if found.setdefault(path, file)["ref"] != file["ref"]:
                raise Unsupported(
                    f"{shown_uri(place.entry.value)!r} and another path both become {path!r}; copy one of them into "
                    "the asset's folder by hand",
                    code=place.kind,
                )
    return sorted(found.values(), key=lambda file: sort_key(file["path"]))


def _assert_apart(places: list[Place], files: list[AssetFile], carried: list[AssetFile]) -> None:
    """What is carried must not fall into what another path of the blueprint means already."""
    for place in places:
        if place.kind == "inside" and place.entry.kind != "file":
            for file in carried:
                if covers(place.entry.kind, place.relative, file["path"]):
                    raise Unsupported(
                        f"{place.entry.value!r} would mean the files as well that come from outside of the asset's "
                        "folder, and load them twice; narrow that path, or copy the files by hand",
                        code="outside_root",
                    )
    if {file["path"] for file in files} & {file["path"] for file in carried}:
        raise Unsupported("the asset has a folder _outside of its own; nothing can be carried into it",
                          code="outside_root")  # fmt: skip


async def _choose_folder(run: MltableRun, wanted: _Wanted) -> _Chosen | str:
    """The folder at the target, or why the version is skipped.

    The folder is free, or this asset's own, or holds nothing but files that are the same. Otherwise somebody else's
    data lies there, and the collision policy speaks.
    """
    source, options = wanted.source, wanted.options
    asset = run.job.config.assets[wanted.wish["spec"]]
    prefix = asset.destination_prefix or options.destination_prefix
    workspace = run.target.config.workspace
    first = await run.target.registry.get(source.name, source.version)
    for number, name in enumerate(candidates(source.version, options.collision_suffix_pattern, options.collision_max)):
        root = _join(prefix, asset.destination_subpath or source.name, name)
        uri = long_uri(workspace, run.target.datastore.name, root)
        if number == 0 and first is not None and not is_same_uri(first.uri, uri, workspace):
            same = await _same_elsewhere(run, wanted, first)
            if same is not None:
                return same
            reason = f"the target has {source.name}:{source.version} already, with other data"
            if options.collision_policy == "skip":
                return f"{reason} (collision_policy: skip)"
            if options.collision_policy == "fail":
                raise TargetConflict(f"{reason} (collision_policy: fail)", code="version_exists")
        if (chosen := await _usable(run, wanted, root, uri)) is not None:
            return chosen
        if options.collision_policy == "skip":
            return f"the folder {root!r} of the target holds other data (collision_policy: skip)"
        if options.collision_policy == "fail":
            raise TargetConflict(f"the folder {root!r} of the target holds other data (collision_policy: fail)",
                                 code="folder_taken")  # fmt: skip
    raise TargetConflict(
        f"every folder up to the {options.collision_max}th suffix is taken at the target", code="collisions_exhausted"
    )


async def _usable(run: MltableRun, wanted: _Wanted, root: str, uri: str) -> _Chosen | None:
    """The folder, once it is this asset's; None if it is another's, lies in another's, or holds other data."""
    source, target = wanted.source, run.target.container
    home = wanted.home
    if (home.account, home.container) == (run.target.datastore.account, run.target.datastore.container) and (
        is_below(root, home.root) or is_below(home.root, root)
    ):
        # Two workspaces over one container: the copy must not become a part of what is copied.
        return None
    owner = await target.owner(root)
    if owner is not None and owner != owner_of(source.id):
        return None
    if (owner is not None or run.dry_run) and await _is_among_others(run, root):
        return None
    registered = await _registered_over(run, source, uri, wanted.options)
    existing = await _existing(run, root)
    mine = {file["path"]: file for file in wanted.files}
    foreign = [path for path, blob in existing.items() if path != BLUEPRINT and not _may_be(mine.get(path), blob)]
    if foreign and (owner is None or registered is not None):
        return None
    if foreign and await _is_registered(run, source.name, uri):
        # Under a name that today's suffix pattern does not make.
        return None
    if owner is None and not await _holds_the_same(run, mine, existing, root):
        return None
    if not run.dry_run and owner is None and not await _claimed(run, root, owner_of(source.id)):
        return None
    return _Chosen(root, registered, existing, may_replace=registered is None)


async def _holds_the_same(
    run: MltableRun, mine: dict[str, AssetFile], existing: dict[str, list[Any]], root: str
) -> bool:
    """Whether files of the same size, of which no MD5 is stored, are the same; a folder of ours may be written over."""
    for path, (size, md5, _) in existing.items():
        file = mine.get(path)
        if file is None or not size or (md5 and file["md5"]):
            continue
        own = file["md5"] or await hash_of(run.source.holding(file), file["name"], file["ref"])
        if own != (md5 or await hash_of(run.target.container, _join(root, path), "")):
            return False
    return True


async def _claimed(run: MltableRun, root: str, owner: str) -> bool:
    """Make the folder this asset's.

    First the claim, then the look at what lies around it, so that of two who claim one within the other one sees it.
    """
    target = run.target.container
    try:
        if await target.claim(root, owner) != owner:
            return False
    except TargetConflict:
        # A file has the folder's name, or somebody marked it at this moment.
        return False
    if await _is_among_others(run, root):
        await target.release(root, owner)
        return False
    return True


async def _is_among_others(run: MltableRun, root: str) -> bool:
    """Whether a folder above or below is an asset's: one would be loaded with the other."""
    target = run.target.container
    parts = root.split("/")
    above = ["/".join(parts[:count]) for count in range(1, len(parts))]
    found = await asyncio.gather(
        target.has_owners_below(root), *(target.owner(folder) for folder in above),
        *(target.stat(_join(folder, BLUEPRINT)) for folder in above),
    )  # fmt: skip
    return any(found)


async def _same_elsewhere(run: MltableRun, wanted: _Wanted, first: DataVersion) -> _Chosen | None:
    """The folder that the target's version of this name has, if its files and blueprint are what a copy would make."""
    named = parse_datastore_path(first.uri)
    store = run.target.datastore
    mine = named is not None and (named.workspace is None or named.workspace.is_same(run.target.config.workspace))
    if named is None or not mine or named.datastore != store.name or first.type != "mltable":
        return None
    root = normal_path(named.path)
    if not root or ".." in root.split("/"):
        return None
    existing = await _existing(run, root)
    if existing.keys() != {BLUEPRINT, *(file["path"] for file in wanted.files)}:
        return None
    for file in wanted.files:
        size, md5, _ = existing[file["path"]]
        if size != file["size_bytes"] or (size and (not md5 or md5 != file["md5"])):
            return None
    text = rewrite(wanted.blueprint, wanted.places, wanted.home, run.target.home(root), run.storage_urls)
    if await read_blueprint(run.target.container, root) != text.encode():
        return None
    return _Chosen(root, first, existing, may_replace=False)


async def _registered_over(run: MltableRun, source: DataVersion, uri: str, options: Options) -> DataVersion | None:
    """The version at the target whose data this folder is: under its own name, or under a suffix."""
    for name in candidates(source.version, options.collision_suffix_pattern, options.collision_max):
        found = await run.target.registry.get(source.name, name)
        if found is None or is_same_uri(found.uri, uri, run.target.config.workspace):
            return found
    return None


async def _is_registered(run: MltableRun, name: str, uri: str) -> bool:
    """Whether any version of the asset at the target has this folder."""
    for archived in (False, True):
        for one in await run.target.registry.versions(name, archived=archived):
            if is_same_uri(one.uri, uri, run.target.config.workspace):
                return True
    return False


async def _existing(run: MltableRun, root: str) -> dict[str, list[Any]]:
    return {
        item.path.removeprefix(f"{root}/"): [item.size_bytes, _file(item, "", "", "")["md5"], item.version]
        for item in await list_items(run.target.container, root)
    }


def _may_be(file: AssetFile | None, blob: list[Any]) -> bool:
    size, md5, _ = blob
    return file is not None and file["size_bytes"] == size and (not md5 or not file["md5"] or md5 == file["md5"])


def owner_of(source_id: str) -> str:
    """By what a folder at the target is known as that of this version of the source."""
    return digest("owner", _identity_of(source_id))


def done_key(run: MltableRun, source_id: str) -> str:
    return f"mltables/done/{digest(run.target.config.workspace.arm_id.lower(), _identity_of(source_id))}.json"


def _identity_of(asset_id: str) -> str:
    """Resource Manager does not tell upper case from lower in what it names itself; assets' own names may differ so."""
    scope, mark, name = asset_id.partition("/data/")
    return scope.lower() + mark + name


async def _done_in_batch(run: MltableRun, source: DataVersion, state: str) -> AssetRecord | None:
    """The record of an earlier success of this very batch, if all that it says is still there, on both sides."""
    data = await run.records.store.get(done_key(run, source.id))
    found = json.loads(data) if data is not None else None
    if found is None or found.get("source_state") != state:
        return None
    done: AssetRecord = found["record"]
    if done["migration_batch_id"] != run.batch or not done["final_version"]:
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
