"""Every command of the README does what it says, in the README's order, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_S = 120.0
COMMANDS = [
    match[1].strip()
    for match in re.finditer(r"^\$ (.+)$", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
]
# What continuous integration runs anyway; a suite cannot run itself.
RUN_BY_CI = {"python3 dev.py test", "python3 dev.py check"}
RUN_HERE = {
    "python3 dev.py demo",
    "python3 dev.py emulators",
    "python3 dev.py start --settings .state/emulators/local.settings.json",
    ".venv/bin/python -m tools.migrate start docs/examples/first.yaml --watch",
    ".venv/bin/python -m tools.migrate list",
    ".venv/bin/python -m tools.migrate start docs/examples/library.yaml --watch",
    "python3 dev.py bench",
}


def test_the_example_is_the_one_that_is_run() -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    comment, _, example = (REPOSITORY / "docs/examples/library.yaml").read_text(encoding="utf-8").partition("\n")
    assert comment.startswith("#")
    assert f"```yaml\n{example}```" in readme


def test_every_command_is_run_somewhere() -> None:
    assert set(COMMANDS) == RUN_HERE | RUN_BY_CI
    script = (REPOSITORY / ".ci/run").read_text(encoding="utf-8")
    assert all(command in script for command in RUN_BY_CI)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout as a newcomer has it, with this environment in place of a new one."""
    folder = tmp_path_factory.mktemp("readme") / "checkout"
    left_out = shutil.ignore_patterns(".git", ".venv", ".state", "__pycache__", ".*_cache", "node_modules")
    shutil.copytree(REPOSITORY, folder, ignore=left_out)
    (folder / ".venv").symlink_to(Path(sys.prefix), target_is_directory=True)
    return folder


def words(command: str) -> list[str]:
    """The command with this environment's Python for the machine's, whose version may be another one."""
    program, *arguments = command.split()
    return [sys.executable if program == "python3" else program, *arguments]


def run(folder: Path, command: str, *more: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [*words(command), *more],
        cwd=folder,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Background:
    """A command that goes on until it is interrupted, with what it prints in a file."""

    def __init__(self, folder: Path, name: str, command: str, *more: str) -> None:
        self.log = folder.parent / f"{name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*words(command), *more], cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait_for(self, pattern: str) -> re.Match[str]:
        deadline_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline_s:
            text = self.log.read_text(encoding="utf-8", errors="replace")
            if found := re.search(pattern, text):
                return found
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(f"{pattern!r} was not printed: {text}")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def started() -> Iterator[list[Background]]:
    found: list[Background] = []
    yield found
    for one in reversed(found):
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def test_the_demo(copy: Path) -> None:
    assert "60" in run(copy, "python3 dev.py demo", "--files", "60")


def test_the_first_migration(copy: Path, started: list[Background]) -> None:
    emulators = Background(copy, "emulators", "python3 dev.py emulators")
    started.append(emulators)
    emulators.wait_for("Emulators ready")
    host = Background(
        copy, "host", "python3 dev.py start --settings .state/emulators/local.settings.json", "--port", "0"
    )
    started.append(host)
    url = host.wait_for(r"Host ready on (http://\S+)")[1]
    environment = {"MIGRATE_URL": url}
    shown = run(
        copy, ".venv/bin/python -m tools.migrate start docs/examples/first.yaml --watch", environment=environment
    )
    assert "completed" in shown
    assert "files-first-" in run(copy, ".venv/bin/python -m tools.migrate list", environment=environment)
    lake = copy / ".state/emulators/onelake/Migration/Landing.Lakehouse/Files/first"
    moved = {path.relative_to(lake): path.read_bytes() for path in lake.rglob("*") if path.is_file()}
    docs = copy / "docs"
    assert moved == {path.relative_to(docs): path.read_bytes() for path in docs.rglob("*") if path.is_file()}
    assert moved
    library = run(
        copy, ".venv/bin/python -m tools.migrate start docs/examples/library.yaml --watch", environment=environment
    )
    assert "48 of 48 items" in library
    assert len([path for path in (lake.parent / "library").rglob("*") if path.is_file()]) == 48
    assert host.stop() == 0
    assert emulators.stop() == 0


def test_bench_without_a_name_lists_the_benchmarks(copy: Path) -> None:
    done = subprocess.run(
        words("python3 dev.py bench"), cwd=copy, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert "upload" in done.stdout + done.stderr
