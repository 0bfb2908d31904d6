"""The case study replayed: hundreds of thousands of small files through the whole app, with SIGKILLs on the way.

Runs of growing size, each on a fresh platform: emulators and embedded host as processes, the job over HTTP with default
limits. What is looked at is whether a file costs the same in a large run as in a small one, and whether memory stays
flat; and, after every kill, how long it takes until the first new file is uploaded.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench._platform import FINISHED, REPOSITORY, call, start_host
from bench._watch import tree_cpu_s
from local.demo.comparison import compare_folders
from local.emulators.launch import RunningEmulators
from local.emulators.launch import launch as launch_emulators
from local.host.process import RunningHost

CASE_STUDY_FILES = 376_888
_MIB = 1024 * 1024
_FILES_PER_FOLDER = 500
_COMMITS = ("append_flush", "flush")


@dataclass
class Outcome:
    """What one run cost. Memory is the host's resident set; ``moving`` is that while files were transferred."""

    files: int
    elapsed_s: float = 0.0
    host_cpu_s: float = 0.0
    peak_moving_bytes: int = 0
    peak_bytes: int = 0
    restarts_s: list[float] = field(default_factory=list)
    history_bytes: int = 0
    store_bytes: int = 0
    commits: int = 0
    verdict: str = ""


def main(argv: Sequence[str]) -> int:
    """Run the sizes and print the table; exit status 1 if any run lost, changed or doubled a file."""
    parser = argparse.ArgumentParser(prog="python3 dev.py bench scale", description=__doc__)
    parser.add_argument("--sizes", default=f"10000,100000,{CASE_STUDY_FILES}", help="numbers of files, by commas")
    parser.add_argument("--kills", type=int, default=5, help="SIGKILLs in each run")
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".state/bench-scale", help="is emptied")
    arguments = parser.parse_args(argv)
    outcomes = []
    for size in [int(text) for text in arguments.sizes.split(",")]:
        outcomes.append(_measure(size, arguments.kills, arguments.work))
        sys.stdout.write(_table(outcomes) + "\n")
        sys.stdout.flush()
    return 0 if all(outcome.verdict == "identical" for outcome in outcomes) else 1


def _measure(size: int, kills: int, work: Path) -> Outcome:
    shutil.rmtree(work, ignore_errors=True)
    source = work / "source"
    _say(f"making {size:,} files")
    _make_files(source, size)
    outcome = Outcome(size)
    try:
        with launch_emulators(work / "emulators") as emulators:
            _run(outcome, kills, work, source, emulators)
            stats = emulators.stats()["onelake"]
            outcome.commits = sum(sum(stats.get(operation, {}).values()) for operation in _COMMITS)
            lake = emulators.lake_folder / "Migration/Landing.Lakehouse/Files/scale"
            _say("comparing every byte")
            comparison = compare_folders(source, lake)
            outcome.verdict = "identical" if comparison.is_identical else "DIFFERENT"
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return outcome


def _run(outcome: Outcome, kills: int, work: Path, source: Path, emulators: RunningEmulators) -> None:
    host = start_host(work, source, emulators)
    try:
        started_s = time.monotonic()
        spec = {
            "kind": "files",
            "name": "scale",
            "source": {"type": "folder", "path": str(source)},
            "target": {"workspace": "Migration", "lakehouse": "Landing", "path": "Files/scale"},
        }
        run = call(host, "POST", "/api/migrations", spec)["id"]
        moments = [outcome.files * (number + 1) // (kills + 1) for number in range(kills)]
        status: dict[str, Any] = {"status": "planning"}
        with _Memory(host) as memory:
            while status["status"] not in FINISHED:
                time.sleep(0.25)
                status = call(host, "GET", f"/api/migrations/{run}")
                memory.is_moving = status["status"] == "transferring"
                if moments and status["progress"]["uploaded"] >= moments[0]:
                    moments.pop(0)
                    _say(f"SIGKILL at {status['progress']['uploaded']:,} files")
                    outcome.host_cpu_s += tree_cpu_s(host.pid)
                    host.kill()
                    before = _commits(emulators)
                    killed_s = time.monotonic()
                    host = start_host(work, source, emulators)
                    memory.host = host
                    while _commits(emulators) == before:
                        time.sleep(0.02)
                    outcome.restarts_s.append(time.monotonic() - killed_s)
            outcome.elapsed_s = time.monotonic() - started_s
            outcome.host_cpu_s += tree_cpu_s(host.pid)
            outcome.peak_bytes, outcome.peak_moving_bytes = memory.peak_bytes, memory.peak_moving_bytes
        outcome.history_bytes = sum(path.stat().st_size for path in (work / "host").glob("host.db*"))
        outcome.store_bytes = sum(path.stat().st_size for path in (work / "store").rglob("*") if path.is_file())
        _check_manifest(work / "store" / "runs" / run / "manifest.json", outcome.files, status)
    finally:
        host.stop()


def _check_manifest(path: Path, files: int, status: dict[str, Any]) -> None:
    records = json.loads(path.read_bytes())["items"]
    statuses = Counter(record["status"] for record in records)
    if statuses != Counter(uploaded=files) or len({record["path"] for record in records}) != files:
        raise SystemExit(f"the manifest says {dict(statuses)} of {files:,} files")
    if status["status"] != "completed" or status["verification"]["verdict"] != "passed":
        raise SystemExit(f"the run ended {status['status']}: {status['error']}")


class _Memory(threading.Thread):
    """Looks at the host's resident memory four times a second."""

    def __init__(self, host: RunningHost) -> None:
        super().__init__(daemon=True)
        self.host = host
        self.is_moving = False
        self.peak_bytes = 0
        self.peak_moving_bytes = 0
        self._ended = threading.Event()

    def __enter__(self) -> _Memory:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.join()

    def run(self) -> None:
        while not self._ended.wait(0.25):
            try:
                pages = int(Path(f"/proc/{self.host.pid}/statm").read_text(encoding="ascii").split()[1])
            except (FileNotFoundError, ProcessLookupError, IndexError):
                continue
            self.peak_bytes = max(self.peak_bytes, pages * 4096)
            if self.is_moving:
                self.peak_moving_bytes = max(self.peak_moving_bytes, pages * 4096)


def _commits(emulators: RunningEmulators) -> int:
    stats = emulators.stats().get("onelake", {})
    return sum(sum(stats.get(operation, {}).values()) for operation in _COMMITS)


def _make_files(root: Path, count: int) -> None:
    """Small files of 2 to 6 KB, no two the same, the same ones each time."""
    pool = random.Random(1).randbytes(64 * 1024)  # noqa: S311 - content, not a secret
    for number in range(count):
        folder = root / f"{number // (_FILES_PER_FOLDER * 50):03d}" / f"{number // _FILES_PER_FOLDER:05d}"
        if number % _FILES_PER_FOLDER == 0:
            folder.mkdir(parents=True)
        begin = number * 37 % (len(pool) - 8192)
        data = b"%012d" % number + pool[begin : begin + 2000 + number * 13 % 4000]
        (folder / f"invoice-{number:06d}.pdf").write_bytes(data)


def _table(outcomes: list[Outcome]) -> str:
    head = (
        "| files | files/s | host CPU ms/file | peak MiB moving | peak MiB | history MiB | store bytes/file "
        "| restart to first upload s | uploads beyond one each | verdict |"
    )
    rows = [head, "| " + " | ".join(["---"] * 10) + " |"]
    for one in outcomes:
        restarts = ", ".join(f"{seconds:.1f}" for seconds in one.restarts_s) or "-"
        cells = (
            f"{one.files:,}",
            f"{one.files / one.elapsed_s:.0f}",
            f"{one.host_cpu_s * 1000 / one.files:.2f}",
            f"{one.peak_moving_bytes / _MIB:.0f}",
            f"{one.peak_bytes / _MIB:.0f}",
            f"{one.history_bytes / _MIB:.1f}",
            f"{one.store_bytes / one.files:.0f}",
            restarts,
            f"{one.commits - one.files:,}",
            one.verdict,
        )
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
