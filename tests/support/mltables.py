"""Two Azure ML workspaces in two tenants, the app on its host, and assets put there as their owners would.

What a test claims rests on the real ``azure-ai-ml`` and ``azure-storage-blob``, never on the code under test.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from azure.ai.ml import MLClient
from azure.ai.ml.constants import ListViewType
from azure.ai.ml.entities import Data
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import ClientSecretCredential
from azure.storage.blob import ContainerClient

from local.emulators.launch import RunningEmulators, azureml_settings
from local.host.process import RunningHost
from local.host.process import launch as launch_host
from shared.engine.mltables import steps
from shared.engine.mltables.discover import discover
from shared.services import Services
from shared.settings import read_settings
from tests.support.platform import FINISHED, PATIENCE_S, REPOSITORY, Answer, http

STORE = "workspaceblobstore"
CSV = "type: mltable\npaths:\n  - pattern: ./*.csv\ntransformations:\n  - read_delimited:\n      delimiter: ','\n"
QUICK: dict[str, Any] = {"validation": {"enabled": False}}
"""Options for what is not about the load test."""


def rows(count: int, first: int = 0) -> bytes:
    return ("id,name\n" + "".join(f"{first + n},name {first + n}\n" for n in range(count))).encode()


class Workspaces:
    """Both workspaces of running emulators."""

    def __init__(self, emulators: RunningEmulators) -> None:
        self.emulators = emulators
        self.azureml = emulators.addresses["azureml"]
        self._clients: dict[str, MLClient] = {}

    def workspace(self, side: str) -> dict[str, Any]:
        found: dict[str, Any] = self.azureml["workspaces"][f"ws-{side}"]
        return found

    def config(self, side: str) -> dict[str, str]:
        """Its config.json."""
        found = self.workspace(side)
        return {"subscription_id": found["subscription_id"], "resource_group": found["resource_group"],
                "workspace_name": found["name"]}  # fmt: skip

    def long(self, side: str, path: str, datastore: str = STORE) -> str:
        found = self.workspace(side)
        return (
            f"azureml://subscriptions/{found['subscription_id']}/resourcegroups/{found['resource_group']}"
            f"/workspaces/{found['name']}/datastores/{datastore}/paths/{path}"
        )

    def container(self, side: str, name: str | None = None) -> ContainerClient:
        account = f"aml{side}store"
        return ContainerClient(
            self.azureml["storage_urls"][account], name or self.workspace(side)["datastores"][0]["container"],
            credential=self.azureml["account_keys"][account], connection_verify=self.emulators.addresses["ca_bundle"],
            api_version="2023-11-03", retry_total=0,
        )  # fmt: skip

    def put(self, side: str, blobs: Mapping[str, bytes], container: str | None = None) -> None:
        with self.container(side, container) as client:
            for name, data in blobs.items():
                client.upload_blob(name, data, overwrite=True)

    def blobs(self, side: str, prefix: str = "") -> dict[str, bytes]:
        """Every blob with its bytes; none of those that only mark a folder."""
        with self.container(side) as client:
            listed = client.list_blobs(name_starts_with=prefix, include=["metadata"])
            names = [blob.name for blob in listed if "hdi_isfolder" not in (blob.metadata or {})]
            return {name: client.download_blob(name).readall() for name in names}

    def add(
        self, name: str, version: str = "1", files: Mapping[str, bytes] | None = None, *, text: str | bytes = CSV,
        root: str | None = None, datastore: str = STORE, **properties: Any,
    ) -> str:  # fmt: skip
        """An asset of the source with its blueprint and files; returns its folder."""
        root = root or f"data/{name}/{version}"
        blueprint = text if isinstance(text, bytes) else text.encode()
        given = {"a.csv": rows(4), "b.csv": rows(4, 4)} if files is None else files
        self.put("source", {f"{root}/MLTable": blueprint, **{f"{root}/{path}": data for path, data in given.items()}})
        self.register("source", name, version, f"azureml://datastores/{datastore}/paths/{root}/", **properties)
        return root

    def register(self, side: str, name: str, version: str, uri: str, **properties: Any) -> None:
        document = {"dataType": "mltable", "dataUri": uri, **properties}
        self.emulators.register_assets([
            {"workspace": f"ws-{side}", "name": name, "version": version, "properties": document}
        ])  # fmt: skip

    def ml(self, side: str) -> MLClient:
        """The SDK, as that tenant's migrator."""
        if side not in self._clients:
            tenant = self.azureml["tenants"][side]
            client = tenant["clients"]["migrator"]
            bundle = self.emulators.addresses["ca_bundle"]
            credential = ClientSecretCredential(
                tenant["tenant_id"], client["client_id"], client["client_secret"],
                authority=self.emulators.addresses["authority_url"], disable_instance_discovery=True,
                connection_verify=bundle,
            )  # fmt: skip
            found = self.workspace(side)
            before = os.environ.get("AZUREML_DEV_URL_MFE")
            os.environ["AZUREML_DEV_URL_MFE"] = self.azureml["url"]
            try:
                self._clients[side] = MLClient(
                    credential, found["subscription_id"], found["resource_group"], found["name"],
                    enable_telemetry=False, connection_verify=bundle,
                )  # fmt: skip
            finally:
                if before is None:
                    del os.environ["AZUREML_DEV_URL_MFE"]
        return self._clients[side]

    def get(self, name: str, version: str, side: str = "target") -> Data | None:
        try:
            return self.ml(side).data.get(name, version)
        except ResourceNotFoundError:
            return None

    def versions(self, name: str, side: str = "target", *, archived: bool = False) -> list[str]:
        view = ListViewType.ARCHIVED_ONLY if archived else ListViewType.ACTIVE_ONLY
        try:
            return sorted(str(one.version) for one in self.ml(side).data.list(name, list_view_type=view))
        except ResourceNotFoundError:
            return []

    def migrated(self, name: str, version: str = "1", prefix: str = "migrated") -> dict[str, bytes]:
        """The files of a migrated version by their path below its folder."""
        root = f"{prefix}/{name}/{version}/"
        return {path.removeprefix(root): data for path, data in self.blobs("target", root).items()}


class Walk:
    """One run whose steps are taken one by one in this process, so that a test can do something between them.

    What ``App`` does with the same steps is its own tests' matter; here it is about what they meet.
    """

    def __init__(self, workspaces: Workspaces, root: Path, name: str = "walk", client: str = "migrator") -> None:
        self.workspaces = workspaces
        self.id = f"mltable-{name}-20260101T000000Z"
        self.store = root / "store"
        self.services = Services(read_settings({
            **workspaces.emulators.environment(), **azureml_settings(workspaces.emulators.addresses, client),
            "RUN_STORE_URL": f"file:{self.store}",
        }))  # fmt: skip
        self.round = 1

    async def begin(self, assets: Iterable[Any], **defaults: Any) -> None:
        """Post the job and discover its versions."""
        records = self.services.asset_records(self.id)
        spec = job_spec(self.workspaces, "walk", assets, **defaults)
        await records.save("run.json", {"spec": spec, "name": "walk", "kind": "mltable", "round": 1,
                                        "started_at": "2026-01-01T00:00:00Z"})  # fmt: skip
        await self.services.prepare_mltables(self.id)
        await discover(await self.services.mltable_run(self.id), self.round)

    async def again(self) -> None:
        """What retry-failed does first."""
        self.round += 1
        await discover(await self.services.mltable_run(self.id), self.round)

    async def take(self, *names: str, group: int = 1, version: int = 0) -> None:
        """Steps of one version: ``plan``, ``copy`` (of all parts), ``check``, ``register``, ``validate``."""
        for name in names:
            run = await self.services.mltable_run(self.id)
            if name == "copy":
                document = await run.records.load(run.records.version_key(group, version))
                for part in range((document or {"parts": 0})["parts"]):
                    await steps.copy_step(run, group, version, part)
            else:
                await getattr(steps, f"{name}_step")(run, group, version)

    async def record(self, group: int = 1, version: int = 0) -> Any:
        return await self.services.asset_records(self.id).record(group, version)

    async def close(self) -> None:
        for made in self.services.mltable_clients.values():
            for one in made if isinstance(made, tuple) else (made,):
                if hasattr(one, "close"):
                    await one.close()


def job_spec(workspaces: Workspaces, name: str, assets: Iterable[Any], **defaults: Any) -> dict[str, Any]:
    """A job; an asset may be given by its name alone, then version 1. ``batch`` is the batch's id."""
    batch = defaults.pop("batch", None)
    return {
        "kind": "mltable", "name": name,
        "config": {
            "migration_batch_id": batch,
            "source_workspace_config": workspaces.config("source"),
            "target_workspace_config": workspaces.config("target"),
            "defaults": {**QUICK, **defaults},
            "assets": [{"name": one, "versions": ["1"]} if isinstance(one, str) else one for one in assets],
        },
    }  # fmt: skip


class App:
    """The app on the embedded host, pointed at the emulators."""

    def __init__(self, workspaces: Workspaces, root: Path, client: str = "migrator", **environment: str) -> None:
        self.workspaces = workspaces
        self.root = root
        root.mkdir(parents=True, exist_ok=True)
        self.store = root / "store"
        self.settings = root / "settings.json"
        self.settings.write_text('{"IsEncrypted": false, "Values": {}}', encoding="utf-8")
        self.environment = {
            **workspaces.emulators.environment(), **azureml_settings(workspaces.emulators.addresses, client),
            "RUN_STORE_URL": f"file:{self.store}",
            "SCHEDULE_TICK": "0 0 0 1 1 *", "RETRY_FIRST_DELAY_S": "0.1", "RETRY_ATTEMPTS": "3", **environment,
        }  # fmt: skip
        self.host = self._launch()

    def _launch(self) -> RunningHost:
        return launch_host(REPOSITORY, self.root / "state", env=self.environment, settings_file=self.settings)

    def restart(self) -> None:
        """Kill it as a power cut would, and start it on the same state."""
        self.host.kill()
        self.host = self._launch()

    def close(self) -> None:
        self.host.kill()

    def spec(self, name: str, assets: Iterable[Any], **defaults: Any) -> dict[str, Any]:
        return job_spec(self.workspaces, name, assets, **defaults)

    def call(self, method: str, path: str, document: Any = None) -> Answer:
        body = json.dumps(document).encode() if document is not None else None
        return http(method, f"{self.host.url}/api{path}", body, {"Content-Type": "application/json"})

    def start(self, spec: Mapping[str, Any]) -> str:
        answer = self.call("POST", "/migrations", spec)
        assert answer.status == 202, answer.body
        return str(answer.json["id"])

    def status(self, run: str) -> dict[str, Any]:
        answer = self.call("GET", f"/migrations/{run}")
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.json
        return found

    def wait(self, run: str, *wanted: str) -> dict[str, Any]:
        """Wait for its end, or for one of these statuses, which it then has to have."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            document = self.status(run)
            if document["status"] in (wanted or FINISHED):
                return document
            assert document["status"] not in FINISHED, (document, self.host.log()[-3000:])
            assert time.monotonic() < deadline_s, (document, self.host.log()[-3000:])
            time.sleep(0.05)

    def run(self, name: str, assets: Iterable[Any], *, ends: str = "completed", **defaults: Any) -> dict[str, Any]:
        """Start a run, wait for its end, which has to be this one; returns the manifest."""
        run = self.start(self.spec(name, assets, **defaults))
        document = self.wait(run)
        manifest = self.manifest(run)
        assert document["status"] == ends, (document["error"], manifest["items"], self.host.log()[-3000:])
        return manifest

    def manifest(self, run: str, form: str = "json") -> Any:
        answer = self.call("GET", f"/migrations/{run}/manifest?format={form}")
        assert answer.status == 200, answer.body
        return answer.json if form == "json" else answer.body.decode()
