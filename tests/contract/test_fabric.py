"""Names to GUIDs: over all pages, exactly one, with the sentence that says what to change."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from local.emulators.launch import RunningEmulators, launch
from shared.clients.credentials import FABRIC_SCOPE, STORAGE_SCOPE
from shared.clients.fabric import Fabric
from shared.errors import Authentication, Configuration, DestinationMissing
from tests.support.emulated import LAKEHOUSE_ID, WORKSPACE_ID, MakeTokens

Make = Callable[..., Fabric]


@pytest.fixture
async def make(emulators: RunningEmulators, make_tokens: MakeTokens) -> AsyncIterator[Make]:
    emulators.set_faults([])
    made: list[Fabric] = []

    def fabric(*, scope: str = FABRIC_SCOPE, client: str = "migrator", url: str | None = None) -> Fabric:
        environment = emulators.environment()
        where = url or environment["FABRIC_API_URL"]
        made.append(Fabric(where, make_tokens(scope, client), environment["CA_BUNDLE"]))
        return made[-1]

    yield fabric
    for one in made:
        await one.close()
    emulators.set_faults([])


async def test_names_are_found_on_any_page(make: Make, emulators: RunningEmulators) -> None:
    fabric = make()
    assert await fabric.workspace_id("Migration") == WORKSPACE_ID
    assert await fabric.workspace_id("Paused") == "a1b2c3d4-0003-4000-8000-00000000000a"
    assert await fabric.lakehouse_id(WORKSPACE_ID, "Landing") == LAKEHOUSE_ID
    assert await fabric.lakehouse_id(WORKSPACE_ID, "Archive") == "a1b2c3d4-0001-4000-8000-000000000002"
    assert emulators.stats()["fabric"]["list"]["200"] >= 10, "one entry a page"


@pytest.mark.parametrize("name", ["Nowhere", "migration", "Migration ", "%4Digration"])
async def test_a_name_that_is_not_there(make: Make, name: str) -> None:
    with pytest.raises(DestinationMissing) as caught:
        await make().workspace_id(name)
    assert caught.value.subject == "target.workspace"
    with pytest.raises(DestinationMissing) as caught:
        await make().lakehouse_id(WORKSPACE_ID, "Finance")
    assert caught.value.subject == "target.lakehouse"


async def test_a_name_that_several_bear(tmp_path: Path, make_tokens: MakeTokens, make: Make) -> None:
    client = {"name": "migrator", "id": "c1000000-0000-4000-8000-000000000001", "secret": "emulator-only-migrator"}
    workspaces = [
        {"name": name, "id": f"a1b2c3d4-000{number}-4000-8000-00000000000a", "items": [
            {"name": "Twin", "id": f"a1b2c3d4-000{number}-4000-8000-00000000000{item}", "type": "Lakehouse"}
            for item in (1, 2)]}
        for number, name in enumerate(["One", "Two"], 1)
    ]  # fmt: skip
    config = tmp_path / "estate.json"
    config.write_text(json.dumps({
        "tenant_id": "7e0a1d00-0000-4000-8000-000000000001", "workspaces": workspaces,
        "clients": [{**client, "roles": {"One": "contributor", "Two": "contributor"}}],
    }))  # fmt: skip
    with launch(tmp_path / "emulators", config=config, page_items=1) as running:
        environment = running.environment()
        credential = json.loads(environment["CREDENTIAL_ONELAKE"])
        tokens = make_tokens(FABRIC_SCOPE, authority=credential["authority"])
        from shared.clients.credentials import TokenSource, build_credential

        own = TokenSource(lambda: build_credential(credential, environment["CA_BUNDLE"]), FABRIC_SCOPE, lambda: 0.0)
        fabric = Fabric(environment["FABRIC_API_URL"], own, environment["CA_BUNDLE"])
        with pytest.raises(Configuration, match="2 of them are named 'Twin'"):
            await fabric.lakehouse_id("a1b2c3d4-0001-4000-8000-00000000000a", "Twin")
        await fabric.close()
        await own.close()
        await tokens.close()


async def test_throttling_and_lost_answers_are_ridden_out(make: Make, emulators: RunningEmulators) -> None:
    faults = ("throttle", "unavailable", "reset_before", "reset_after", "expired_token")
    emulators.set_faults([{"service": "fabric", "fault": fault, "times": 1} for fault in faults])
    assert await make().workspace_id("Migration") == WORKSPACE_ID
    assert emulators.fault_hits() == [1] * len(faults)


async def test_a_token_for_another_service(make: Make) -> None:
    with pytest.raises(Authentication) as caught:
        await make(scope=STORAGE_SCOPE).workspace_id("Migration")
    assert "FABRIC_SCOPE" in caught.value.detail


async def test_an_identity_without_a_role(make: Make) -> None:
    with pytest.raises(Authentication) as caught:
        await make(client="outsider").lakehouse_id(WORKSPACE_ID, "Landing")
    assert caught.value.code == "permission_denied"


async def test_an_endpoint_that_is_not_fabric(make: Make, emulators: RunningEmulators) -> None:
    with pytest.raises((Configuration, Authentication)):
        await make(url=emulators.addresses["onelake_dfs_url"]).workspace_id("Migration")
