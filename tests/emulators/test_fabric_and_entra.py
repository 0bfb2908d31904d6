"""Names to GUIDs, tokens, and the launcher's own promises."""

from __future__ import annotations

import json
import urllib.parse
from pathlib import Path
from typing import Any

import pytest

from local.emulators.launch import RunningEmulators, launch
from tests.emulators.wire_client import FABRIC, STORAGE, Answer, WireClient, credential

MIGRATION = "a1b2c3d4-0001-4000-8000-00000000000a"


def fabric(wire: WireClient, target: str, client: str = "migrator") -> Answer:
    return wire.send("GET", target, client=client, scope=FABRIC, url_key="fabric_url")


def all_pages(wire: WireClient, target: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    while target:
        page = fabric(wire, target).json
        found += page["value"]
        uri = urllib.parse.urlsplit(page.get("continuationUri", ""))
        assert bool(uri.query) is ("continuationToken" in page)
        target = f"{uri.path}?{uri.query}" if uri.query else ""
    return found


def test_workspaces(wire: WireClient) -> None:
    assert [found["displayName"] for found in all_pages(wire, "/v1/workspaces")] == [
        "Migration",
        "Second Workspace",
        "Paused",
    ]
    assert fabric(wire, "/v1/workspaces", "outsider").json == {"value": []}
    assert fabric(wire, f"/v1/workspaces/{MIGRATION}").json["displayName"] == "Migration"


def test_items(wire: WireClient) -> None:
    names = [(found["displayName"], found["type"]) for found in all_pages(wire, f"/v1/workspaces/{MIGRATION}/items")]
    assert names == [("Landing", "Lakehouse"), ("Archive", "Lakehouse"), ("Finance", "Warehouse")]
    filtered = all_pages(wire, f"/v1/workspaces/{MIGRATION}/items?type=Lakehouse")
    assert filtered == all_pages(wire, f"/v1/workspaces/{MIGRATION}/lakehouses")
    assert {found["workspaceId"] for found in filtered} == {MIGRATION}


@pytest.mark.parametrize(
    ("target", "client", "status", "code"),
    [
        (f"/v1/workspaces/{MIGRATION}/items", "outsider", 403, "InsufficientPrivileges"),
        ("/v1/workspaces/00000000-0000-0000-0000-000000000000/items", "migrator", 404, "WorkspaceNotFound"),
        ("/v1/workspaces?continuationToken=x", "migrator", 400, "InvalidParameter"),
        ("/v1/workspaces?top=5", "migrator", 400, "InvalidParameter"),
        ("/v1/capacities", "migrator", 404, "EntityNotFound"),
    ],
)
def test_fabric_refusals(wire: WireClient, target: str, client: str, status: int, code: str) -> None:
    answer = fabric(wire, target, client)
    assert (answer.status, answer.json["errorCode"]) == (status, code)
    assert set(answer.json) == {"errorCode", "message", "requestId"}


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"client_secret": "wrong"}, 401, 7000215),
        ({"client_id": "nobody"}, 400, 700016),
        ({"scope": "https://storage.azure.com/user"}, 400, 1002012),
        ({"scope": "https://unknown.example/.default"}, 400, 500011),
        ({"grant_type": "password"}, 400, 70003),
    ],
)
def test_entra_refusals(
    emulators: RunningEmulators, wire: WireClient, change: dict[str, str], status: int, code: int
) -> None:
    registration = emulators.addresses["clients"]["migrator"]
    form = {
        "grant_type": "client_credentials",
        "client_id": registration["client_id"],
        "client_secret": registration["client_secret"],
        "scope": STORAGE,
        **change,
    }
    target = f"/{emulators.addresses['tenant_id']}/oauth2/v2.0/token"
    answer = wire.send("POST", target, body=urllib.parse.urlencode(form).encode(), client=None, url_key="authority_url")
    assert (answer.status, answer.json["error_codes"]) == (status, [code])
    assert answer.json["error_description"].startswith(f"AADSTS{code}: ")
    answer = wire.send("POST", "/other/oauth2/v2.0/token", body=b"", client=None, url_key="authority_url")
    assert answer.json["error_codes"] == [90002]


def test_environment(emulators: RunningEmulators) -> None:
    environment = emulators.environment()
    assert set(environment) == {
        "ONELAKE_DFS_URL",
        "FABRIC_API_URL",
        "GRAPH_URL",
        "CREDENTIAL_ONELAKE",
        "CREDENTIAL_SHAREPOINT",
        "CA_BUNDLE",
    }
    assert environment["CREDENTIAL_SHAREPOINT"] == environment["CREDENTIAL_ONELAKE"]
    stated = json.loads(environment["CREDENTIAL_ONELAKE"])
    assert stated.pop("kind") == "client_secret"
    assert Path(environment["CA_BUNDLE"]).is_file()
    assert credential(emulators, **stated).get_token(STORAGE).token


def test_another_estate(tmp_path: Path) -> None:
    config = tmp_path / "estate.yaml"
    config.write_text(
        """
tenant_id: 11111111-1111-4111-8111-111111111111
workspaces:
  - name: Sales & Co
    id: 22222222-2222-4222-8222-222222222222
    items: [{name: Lake, id: 33333333-3333-4333-8333-333333333333, type: Lakehouse}]
clients:
  - {name: migrator, id: someone, secret: hush, roles: {Sales & Co: contributor}}
"""
    )
    with launch(tmp_path / "root", config=config) as running:
        wire = WireClient(running)
        answer = wire.send("PUT", "/Sales%20%26%20Co/Lake.lakehouse/Files/x?resource=file")
        assert answer.status == 201
        assert (running.lake_folder / "Sales & Co" / "Lake.Lakehouse" / "Files" / "x").is_file()


def test_a_root_of_its_own(tmp_path: Path) -> None:
    with launch(tmp_path / "folder with space") as running:
        log = (running.root / "emulators.log").read_text()
        assert log.endswith("Emulators ready\n")
        secrets = [client["client_secret"] for client in running.addresses["clients"].values()]
        assert not any(secret in log for secret in secrets)
