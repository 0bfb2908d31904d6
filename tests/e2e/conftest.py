"""One platform for a module; a test that breaks or configures it in its own way makes its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.platform import Platform, running


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Emulators and host, shared by a module's tests; each uses a job, a source and a target of its own name."""
    with running(tmp_path_factory.mktemp("platform")) as started:
        yield started


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The root of a platform that a test makes for itself."""
    return tmp_path / "platform"
