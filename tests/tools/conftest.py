"""One platform for a module, and the command line as an operator calls it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.platform import PATIENCE_S, REPOSITORY, Platform, running


@pytest.fixture(scope="module")
def platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Emulators and host, shared by a module's tests; each uses a job, a source and a target of its own name."""
    with running(tmp_path_factory.mktemp("platform")) as started:
        yield started


def environment(url: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MIGRATE_")}
    return {**inherited, "MIGRATE_URL": url, "PYTHONIOENCODING": "utf-8"}


def run_migrate(url: str, *arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """``python -m tools.migrate``, with the API's address in the environment."""
    return subprocess.run(
        [sys.executable, "-m", "tools.migrate", *arguments],
        cwd=REPOSITORY,
        env=environment(url) | more,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


def begin_migrate(url: str, *arguments: str) -> subprocess.Popen[str]:
    """The same, still running; Ctrl-C reaches it even where the tests themselves run in the background."""
    return subprocess.Popen(
        [sys.executable, "-m", "tools.migrate", *arguments],
        cwd=REPOSITORY,
        env=environment(url),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


Migrate = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def migrate(platform: Platform) -> Migrate:
    """Run a command against the module's platform."""
    return lambda *arguments, **more: run_migrate(platform.host.url, *arguments, **more)


@pytest.fixture
def spec_file(tmp_path: Path) -> Callable[[str], str]:
    """Write a spec file; its path."""

    def write(text: str, name: str = "spec.yaml") -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write
