"""One set of emulators for all tests of a session, and the clients that the app would build on them."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from local.emulators.launch import RunningEmulators, launch
from shared.clients.credentials import FABRIC_SCOPE, STORAGE_SCOPE, TokenSource, build_credential, parse_credential
from shared.clients.onelake import LakeFolder, OneLake

WORKSPACE_ID = "a1b2c3d4-0001-4000-8000-00000000000a"
LAKEHOUSE_ID = "a1b2c3d4-0001-4000-8000-000000000001"
LAKEHOUSE = "Migration/Landing.Lakehouse"

_FOLDERS = itertools.count(1)


class Lake:
    """A folder of the emulated lake that only one test uses.

    Attributes:
        name: The folder below ``Files``.
        onelake: What the process shares of the endpoint.
        folder: The port's implementation.
    """

    def __init__(self, emulators: RunningEmulators, onelake: OneLake) -> None:
        self.emulators = emulators
        self.onelake = onelake
        self.name = f"t{next(_FOLDERS):04d}"
        self.folder = self.open()
        self._began = len(emulators.journal())

    def open(self, onelake: OneLake | None = None, **options: Any) -> LakeFolder:
        """The same folder, as a client of its own."""
        owner = options.pop("owner", "job")
        return LakeFolder(
            onelake or self.onelake, WORKSPACE_ID, LAKEHOUSE_ID, f"Files/{self.name}", owner=owner, **options
        )

    def on_disk(self) -> dict[str, bytes]:
        """Every file of the folder with its bytes, looked at behind the service's back."""
        root = self.emulators.lake_folder / LAKEHOUSE / "Files" / self.name
        return {str(file.relative_to(root)): file.read_bytes() for file in root.rglob("*") if file.is_file()}

    def faults(self, *rules: dict[str, Any]) -> None:
        """Faults for calls about this folder."""
        self.emulators.set_faults([{"path": f"*/Files/{self.name}*", **rule} for rule in rules])

    def effects(self, *operations: str) -> list[dict[str, Any]]:
        """What the journal says of this folder since the test began; of these operations, or of all."""
        prefix = f"{LAKEHOUSE}/Files/{self.name}"
        return [
            one
            for one in self.emulators.journal()[self._began :]
            if one["path"].startswith(prefix) and (not operations or one["operation"] in operations)
        ]


@pytest.fixture(scope="session")
def emulators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningEmulators]:
    """OneLake, Fabric's names and the token issuer."""
    with launch(tmp_path_factory.mktemp("emulators"), journal=True, plain=True, page_items=1) as running:
        yield running


MakeTokens = Callable[..., TokenSource]


@pytest.fixture
async def make_tokens(emulators: RunningEmulators) -> AsyncIterator[MakeTokens]:
    """Token sources over the real credential; closed with the test."""
    made: list[TokenSource] = []

    def make(scope: str = STORAGE_SCOPE, client: str = "migrator", **fields: str) -> TokenSource:
        environment = emulators.environment(client)
        given = json.dumps({**json.loads(environment["CREDENTIAL_ONELAKE"]), **fields})
        parsed = parse_credential("CREDENTIAL_ONELAKE", given)
        made.append(TokenSource(lambda: build_credential(parsed, environment["CA_BUNDLE"]), scope, time.time))
        return made[-1]

    yield make
    for tokens in made:
        await tokens.close()


MakeOneLake = Callable[..., OneLake]


@pytest.fixture
async def make_onelake(emulators: RunningEmulators, make_tokens: MakeTokens) -> AsyncIterator[MakeOneLake]:
    """Processes' worth of OneLake; closed with the test."""
    made: list[OneLake] = []

    def make(tokens: TokenSource | None = None, url: str | None = None, **options: Any) -> OneLake:
        environment = emulators.environment()
        where, bundle = url or environment["ONELAKE_DFS_URL"], environment["CA_BUNDLE"]
        made.append(OneLake(where, tokens or make_tokens(), ca_bundle=bundle, **options))
        return made[-1]

    yield make
    for onelake in made:
        await onelake.close()


@pytest.fixture
async def lake(emulators: RunningEmulators, make_onelake: MakeOneLake) -> AsyncIterator[Lake]:
    """A folder of its own, without faults before and after."""
    emulators.set_faults([])
    opened = Lake(emulators, make_onelake())
    await opened.folder.check(write=True)
    yield opened
    emulators.set_faults([])


class Content:
    """Bytes as an open source item. ``before_block`` runs before each block but the first."""

    version = "v1"
    facts = None

    def __init__(
        self, data: bytes, *, size_bytes: int | None = None, before_block: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        self.size_bytes = len(data) if size_bytes is None else size_bytes
        self._data = memoryview(data)
        self._position = 0
        self._before_block = before_block
        self.longest_read = 0

    async def read(self, size_bytes: int) -> bytes:
        if self._position and self._before_block:
            await self._before_block()
        block = bytes(self._data[self._position : self._position + size_bytes])
        self._position += len(block)
        self.longest_read = max(self.longest_read, len(block))
        return block

    async def finish(self) -> None: ...

    async def close(self) -> None: ...


def folder_on_disk(emulators: RunningEmulators) -> Path:
    """Where the lakehouse's files lie."""
    return emulators.lake_folder / LAKEHOUSE / "Files"


__all__ = [
    "FABRIC_SCOPE", "LAKEHOUSE", "LAKEHOUSE_ID", "WORKSPACE_ID", "Content", "Lake", "MakeOneLake", "MakeTokens",
    "emulators", "folder_on_disk", "lake", "make_onelake", "make_tokens",
]  # fmt: skip
