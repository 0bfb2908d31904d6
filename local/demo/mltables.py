"""The act of the demo that copies MLTables from one tenant's Azure ML workspace to another's.

Three assets, one of which meets its own name at the target. What lies in the target's storage afterwards is compared
with the source byte by byte, by Microsoft's own client and with the accounts' keys, not with what the app used.
"""

from __future__ import annotations

import json
from typing import Any, Final

from local.demo.platform import Platform, StepFailed
from local.demo.stage import Stage, listed
from local.emulators.azureml.azurite import AzuriteMissing, install
from local.emulators.azureml.seeding import SampleAsset, seed_workspace
from shared.policy.quantities import show_bytes

_WISHES: Final = (("customer_profiles", "9"), ("customer_features", "3"), ("clickstream", "1"))
_TAKEN: Final = ("customer_profiles", "9")


def why_not() -> str | None:
    """Why Azure ML cannot be emulated here; None if it can. Installs Azurite, once."""
    try:
        install()
    except AzuriteMissing as missing:
        return str(missing)
    return None


def migrate_mltables(stage: Stage, platform: Platform, missing: str | None, seed: int) -> None:
    """Play the act, or say why it is left out.

    Raises:
        StepFailed: Something is not as it must be.
    """
    if missing is not None:
        stage.say(f"\n  Left out: MLTables between two tenants. {missing}")
        stage.rows.append(("MLTables", f"left out: {missing}"))
        return
    stage.say("\n  MLTables of an Azure ML workspace, to a workspace of another tenant:")
    stage.begin("seeding the source workspace")
    addresses = platform.emulators.addresses
    assets = {(asset.name, asset.version): asset for asset in seed_workspace(addresses, seed=seed)}
    name, version = _TAKEN
    uri = "azureml://datastores/workspaceblobstore/paths/somebody/elses/"
    platform.emulators.register_assets([
        {"workspace": "ws-target", "name": name, "version": version,
         "properties": {"dataType": "mltable", "dataUri": uri}}
    ])  # fmt: skip
    stage.begin("migrating MLTables")
    run = stage.follow(platform, _spec(platform))
    manifest = platform.call("GET", run.document["links"]["manifest"])
    wrong = [problem for item in manifest["items"] for problem in _problems(platform, item, assets)]
    if wrong or len(manifest["items"]) != len(_WISHES):
        raise StepFailed("source and target differ:\n" + listed(wrong or ["an asset is missing in the manifest"]))
    copied = sum(item["bytes_copied"] for item in manifest["items"])
    stage.done(f"{len(_WISHES)} assets copied and registered, {show_bytes(copied)}", run.elapsed_s)
    renamed = next(item for item in manifest["items"] if item["collision_resolved"])
    stage.say(f"    {name}:{version} was taken at the target, so it became {renamed['final_version']}, and says so")
    changed = [item["asset_name"] for item in manifest["items"] if item["blueprint_changed"]]
    stage.say(f"    blueprints that named the old workspace, and name the new one now: {', '.join(changed)}")
    stage.say(f"    may the source be deleted? {manifest['signoff']['may_delete_source']}: others were not asked for")
    stage.rows.append((
        "MLTables",
        f"{len(_WISHES)} assets between two tenants, every byte the same; each loads with the real mltable",
    ))  # fmt: skip


def _spec(platform: Platform) -> dict[str, Any]:
    workspaces = platform.emulators.addresses["azureml"]["workspaces"]

    def config(name: str) -> dict[str, str]:
        found = workspaces[name]
        return {"subscription_id": found["subscription_id"], "resource_group": found["resource_group"],
                "workspace_name": found["name"]}  # fmt: skip

    return {
        "kind": "mltable", "name": "mltables",
        "config": {
            "source_workspace_config": config("ws-source"), "target_workspace_config": config("ws-target"),
            "assets": [{"name": name, "versions": [version]} for name, version in _WISHES],
        },
    }  # fmt: skip


def _problems(platform: Platform, item: dict[str, Any], assets: dict[tuple[str, str], SampleAsset]) -> list[str]:
    """What is wrong with one version, seen from outside."""
    asset = assets[item["asset_name"], item["requested_version"]]
    label = f"{asset.name}:{asset.version}"
    if item["status"] != "success" or set(item["checks"].values()) != {"passed"}:
        return [f"{label} is {item['status']}: {item['error_detail'] or json.dumps(item['checks'])}"]
    root = str(item["target_uri"]).partition("/paths/")[2]
    there = _target_blobs(platform, root)
    wrong = [f"{label}: {path} is missing" for path in asset.files if path not in there]
    wrong += [f"{label}: {path} is not of the source" for path in there if path not in asset.files]
    source = platform.emulators.addresses["azureml"]["workspaces"]["ws-source"]
    for path, data in there.items():
        if path == "MLTable":
            if b"azureml://" in data and source["subscription_id"].encode() + b"/resourcegroups" in data:
                wrong.append(f"{label}: the blueprint still points to the source")
        elif asset.files.get(path) != data:
            wrong.append(f"{label}: {path} has other bytes")
    taken = (asset.name, asset.version) == _TAKEN
    if item["collision_resolved"] is not taken or (item["final_version"] == asset.version) is taken:
        wrong.append(f"{label} became {item['final_version']}")
    return wrong


def _target_blobs(platform: Platform, root: str) -> dict[str, bytes]:
    from azure.storage.blob import ContainerClient

    addresses = platform.emulators.addresses
    azureml = addresses["azureml"]
    container = next(one["container"] for one in azureml["workspaces"]["ws-target"]["datastores"] if one["is_default"])
    with ContainerClient(
        azureml["storage_urls"]["amltargetstore"], container, credential=azureml["account_keys"]["amltargetstore"],
        connection_verify=addresses["ca_bundle"], api_version="2023-11-03",
    ) as client:  # fmt: skip
        names = [blob.name for blob in client.list_blobs(name_starts_with=root)]
        return {name.removeprefix(root): client.download_blob(name).readall() for name in names}
