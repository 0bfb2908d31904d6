"""One pair of workspaces and one host for all tests here; each begins with no assets and no blobs at the target."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from local.emulators.azureml.azurite import AzuriteMissing, install
from local.emulators.launch import RunningEmulators, launch
from tests.support.mltables import App, Workspaces


@pytest.fixture(scope="session")
def azureml(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulators]:
    try:
        install()
    except AzuriteMissing as missing:
        pytest.skip(str(missing))
    with launch(tmp_path_factory.mktemp("azureml"), azureml=True, page_items=3, journal=True) as running:
        yield running


@pytest.fixture(scope="session")
def shared_app(azureml: RunningEmulators, tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    app = App(Workspaces(azureml), tmp_path_factory.mktemp("app"))
    yield app
    app.close()


@pytest.fixture
def ws(azureml: RunningEmulators) -> Iterator[Workspaces]:
    """Both workspaces without assets, faults or blobs at the target."""
    azureml.set_faults([])
    azureml.set_azureml(conflict_status=400, expirable_secrets="AccountKey")
    azureml.clear_assets()
    found = Workspaces(azureml)
    for side in ("source", "target"):
        with found.container(side) as client:
            for blob in client.list_blobs():
                client.delete_blob(blob.name)
    yield found
    azureml.set_faults([])


@pytest.fixture
def app(shared_app: App, ws: Workspaces) -> App:
    """The app, which has forgotten what it knew of folders at the target."""
    for key in (shared_app.store / "mltables").rglob("*.json"):
        key.unlink()
    return shared_app


@pytest.fixture
def job(request: pytest.FixtureRequest) -> str:
    """A job of this test alone."""
    return re.sub(r"[^a-z0-9]+", "-", request.node.name.lower())[:40].strip("-")
