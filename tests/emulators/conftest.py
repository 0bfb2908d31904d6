"""Emulators as real subprocesses, and the clients that talk to them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from azure.storage.filedatalake import DataLakeServiceClient, FileSystemClient

from local.emulators.estate import GraphBehaviour
from local.emulators.launch import RunningEmulators, launch
from tests.emulators.graph_client import SCRATCH, GraphWire, LibraryWire, names, write_estate
from tests.emulators.wire_client import WireClient, credential


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulators]:
    with launch(tmp_path_factory.mktemp("lake"), journal=True, plain=True, page_items=2) as running:
        yield running


@pytest.fixture(autouse=True)
def no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "emulators" in request.fixturenames:
        request.getfixturevalue("emulators").set_faults([])


@pytest.fixture(scope="session")
def wire(emulators: RunningEmulators) -> WireClient:
    return WireClient(emulators)


@pytest.fixture
def folder(request: pytest.FixtureRequest) -> str:
    """A folder of the lake for this test alone, by names."""
    return f"Landing.Lakehouse/Files/{request.node.name.replace('/', '_')[:80].rstrip('.')}"


@pytest.fixture
def on_disk(emulators: RunningEmulators, folder: str) -> Path:
    """Where the bytes of `folder` lie."""
    return emulators.lake_folder / "Migration" / folder


@pytest.fixture(scope="session")
def service(emulators: RunningEmulators) -> Iterator[DataLakeServiceClient]:
    with DataLakeServiceClient(
        emulators.addresses["onelake_dfs_url"],
        credential=credential(emulators),
        connection_verify=emulators.addresses["ca_bundle"],
        retry_total=0,
    ) as client:
        yield client


@pytest.fixture
def lake(service: DataLakeServiceClient) -> FileSystemClient:
    return service.get_file_system_client("Migration")


@pytest.fixture(scope="session")
def graph_emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulators]:
    root = tmp_path_factory.mktemp("graph")
    with launch(root / "state", plain=True, config=write_estate(root / "estate.json")) as running:
        yield running


@pytest.fixture
def graph(graph_emulators: RunningEmulators) -> Iterator[GraphWire]:
    """Graph as the migrator, with nothing left of the test before."""
    yield GraphWire(graph_emulators)
    graph_emulators.set_faults([])
    graph_emulators.graph.behave(**GraphBehaviour().model_dump())


_NAMES = names()


@pytest.fixture
def library(graph: GraphWire) -> LibraryWire:
    """A library that no other test changes: 6 files in the folders 2024 and 2025."""
    return LibraryWire(graph, next(_NAMES), SCRATCH)
