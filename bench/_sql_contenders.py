"""Who takes part in the SQL benchmark: ours as a caller meets it, its engine alone, and what people use instead."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench._contenders import Unavailable
from bench._platform import FINISHED, REPOSITORY, call, start_host
from bench._postgres import Postgres
from bench._sql_tables import Table
from bench._watch import ContenderFailed, TreePeak, last_words, machine_cpu_s, tree_cpu_s
from local.emulators.launch import RunningEmulators

DLT, CONNECTORX = "1.31.0", "0.4.6"
_TOOLS = REPOSITORY / ".state" / "bench-tools" / f"sql-dlt-{DLT}-connectorx-{CONNECTORX}"
_PACKAGES = (f"dlt[filesystem,parquet,sql-database]=={DLT}", f"connectorx=={CONNECTORX}", "psycopg2-binary")
_FETCH_WITHIN_S = 600
_RUN_WITHIN_S = 3600
_POLL_S = 0.1
# The emulated tenant's.
_WORKSPACE, _WORKSPACE_ID = "Migration", "a1b2c3d4-0001-4000-8000-00000000000a"
_LAKEHOUSE, _LAKEHOUSE_ID = "Landing", "a1b2c3d4-0001-4000-8000-000000000001"
_CONNECTION = "BENCH_DB"
SLICES = 8
"""Of a table that several sessions read side by side: twice as many as sessions, so that none of them idles long."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One table, from the database into Parquet files.

    Attributes:
        cpu_s: Of the contender and its children.
        peak_bytes: Largest resident memory of it and its children together.
        server_cpu_s: What PostgreSQL spent meanwhile.
        lake_cpu_s: What the emulated lake spent meanwhile.
        other_cores: Cores that were busy with something else.
        files: Written Parquet files.
        written_bytes: Of them all.
    """

    elapsed_s: float
    cpu_s: float
    peak_bytes: int
    server_cpu_s: float
    lake_cpu_s: float
    other_cores: float
    files: int
    written_bytes: int


@dataclass
class Arena:
    """Where all contenders compete: one server, one emulated lake, one work folder."""

    server: Postgres
    emulators: RunningEmulators
    work: Path

    def lake(self, target: str) -> Path:
        """Where the files of a target lie on disk."""
        return self.emulators.lake_folder / _WORKSPACE / f"{_LAKEHOUSE}.Lakehouse" / target


class _Meter:
    """Clock and CPU of everybody, from its making until `cost`."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._at = self._now()
        self._began_s = time.perf_counter()

    def _now(self) -> tuple[float, float, float]:
        return tree_cpu_s(self._arena.server.pid), tree_cpu_s(self._arena.emulators.pid), machine_cpu_s()

    def cost(self, cpu_s: float, peak_bytes: int, folder: Path, elapsed_s: float | None = None) -> Cost:
        window_s = time.perf_counter() - self._began_s
        server_s, lake_s, machine_s = (now - then for now, then in zip(self._now(), self._at, strict=True))
        sizes = [path.stat().st_size for path in folder.rglob("*.parquet")]
        return Cost(
            elapsed_s=window_s if elapsed_s is None else elapsed_s,
            cpu_s=cpu_s, peak_bytes=peak_bytes, server_cpu_s=server_s, lake_cpu_s=lake_s,
            other_cores=max(0.0, machine_s - server_s - lake_s - cpu_s) / window_s,
            files=len(sizes), written_bytes=sum(sizes),
        )  # fmt: skip


Read = Callable[[Arena, Table, str], tuple[Cost, Path]]


@dataclass(frozen=True, slots=True)
class Contender:
    """One row.

    Attributes:
        key: For ``--peers``.
        does: What is done between the two readings of the clock, for people.
        read: Brings a table into a target, and says where the files lie.
    """

    key: str
    label: str
    does: str
    read: Read


def contenders() -> list[Contender]:
    """All of them, in the order of the table."""
    return [
        Contender("run-1", "**ours, whole run, 1 slice**", "plan, extract, validate, commit, report", _run(1)),
        Contender("run-4", "**ours, whole run, 4 at once**", "plan, extract, validate, commit, report", _run(4)),
        Contender("bare-1", "**ours, whole run, 1 slice, `validate: []`**", "plan, extract, commit, report",
                  _run(1, validate=())),
        Contender("bare-4", "**ours, whole run, 4 at once, `validate: []`**", "plan, extract, commit, report",
                  _run(4, validate=())),
        Contender("like-1", "**ours, whole run, 1 slice, `validate: []`, snappy as dlt's**",
                  "plan, extract, commit, report", _run(1, validate=(), compression="snappy")),
        Contender("like-4", "**ours, whole run, 4 at once, `validate: []`, snappy as dlt's**",
                  "plan, extract, commit, report", _run(4, validate=(), compression="snappy")),
        Contender("engine", "**ours, engine alone, 1 slice**", "extract", _engine),
        Contender("dlt", f"dlt {DLT}, pyarrow backend", "extract, normalize, load", _peer("dlt-pyarrow")),
        Contender("dlt-cx", f"dlt {DLT}, connectorx backend", "extract, normalize, load", _peer("dlt-connectorx")),
        Contender("cx-1", f"ConnectorX {CONNECTORX}, 1 partition", "read it all, then write one file",
                  _peer("connectorx-1")),
        Contender("cx-4", f"ConnectorX {CONNECTORX}, 4 partitions", "read it all, then write one file",
                  _peer("connectorx-4")),
    ]  # fmt: skip


# -- ours ------------------------------------------------------------------------------------------------------------


def _run(parallel: int, validate: Sequence[str] | None = None, compression: str = "zstd") -> Read:
    """From the POST that starts a migration until its status says that it has ended, on a host that is warm."""

    def read(arena: Arena, table: Table, target: str) -> tuple[Cost, Path]:
        with host(arena, f"{target}-host") as running:
            migrate(running, "warm", "warm", 1, validate)
            before_s, meter = tree_cpu_s(running.pid), _Meter(arena)
            with TreePeak(running.pid) as peak:
                migrate(running, target, table.name, parallel, validate, rows=table.rows, compression=compression)
            cost = meter.cost(tree_cpu_s(running.pid) - before_s, peak.bytes, arena.lake(f"Files/{target}"))
            running.stop()
        return cost, arena.lake(f"Files/{target}")

    return read


@contextmanager
def host(arena: Arena, name: str) -> Iterator[Any]:
    """The app on the embedded host, with the server's address in its settings."""
    state = arena.work / name
    state.mkdir()
    try:
        with start_host(state, state, arena.emulators, **{_CONNECTION: arena.server.url}) as running:
            yield running
    finally:
        shutil.rmtree(state, ignore_errors=True)


def migrate(
    running: Any,
    target: str,
    table: str,
    parallel: int,
    validate: Sequence[str] | None = None,
    *,
    rows: int = 1000,
    compression: str = "zstd",
) -> None:
    """Raises ContenderFailed where the run does not complete."""
    job: dict[str, Any] = {
        "kind": "sql", "name": target, "source": {"connection": _CONNECTION}, "tables": [{"table": f"public.{table}"}],
        "target": {"workspace": _WORKSPACE, "lakehouse": _LAKEHOUSE, "path": f"Files/{target}"},
        "partition": {"rows": rows if parallel == 1 else -(-rows // SLICES), "parallel": parallel},
        "compression": compression,
    }  # fmt: skip
    if parallel == 1:
        # Statistics are estimates: one row more must not make a second slice.
        job["partition"]["rows"] *= 2
    if validate is not None:
        job["validate"] = list(validate)
    document = call(running, "POST", "/api/migrations", job)
    deadline_s = time.monotonic() + _RUN_WITHIN_S
    while document.get("status") not in FINISHED:
        if time.monotonic() > deadline_s:
            raise ContenderFailed(f"the run was {document.get('status')} after {_RUN_WITHIN_S} s")
        time.sleep(_POLL_S)
        document = call(running, "GET", f"/api/migrations/{document['id']}")
    if document["status"] != "completed":
        raise ContenderFailed(f"the run ended as {document['status']}: {document.get('error')}")


def _engine(arena: Arena, table: Table, target: str) -> tuple[Cost, Path]:
    plan = {
        "url": arena.server.url, "table": table.name, "target": f"Files/{target}", "workspace_id": _WORKSPACE_ID,
        "lakehouse_id": _LAKEHOUSE_ID,
    }  # fmt: skip
    environment = {
        **os.environ, **arena.emulators.environment(), "PYTHONPATH": str(REPOSITORY), "RUN_STORE_URL": f"file:{target}",
        "SCHEDULE_TICK": "0 0 0 1 1 *",
    }  # fmt: skip
    command = [sys.executable, "-m", "bench._sql_ours", "engine"]
    return measured(arena, command, plan, environment, arena.lake(f"Files/{target}")), arena.lake(f"Files/{target}")


# -- peers -----------------------------------------------------------------------------------------------------------


def _peer(name: str) -> Read:
    def read(arena: Arena, table: Table, target: str) -> tuple[Cost, Path]:
        folder, work = arena.work / target, arena.work / f"{target}-work"
        plan = {"url": arena.server.url, "table": table.name, "folder": str(folder), "work": str(work)}
        # A home of its own: nothing of the user's settings, and nothing left in them. No calls to anybody else.
        environment = {
            **os.environ, "HOME": str(work), "DLT_DATA_DIR": str(work / "dlt"), "RUNTIME__DLTHUB_TELEMETRY": "false",
            "RUNTIME__LOG_LEVEL": "ERROR",
        }  # fmt: skip
        work.mkdir()
        try:
            command = [str(peers_python()), str(REPOSITORY / "bench" / "_sql_peers.py"), name]
            return measured(arena, command, plan, environment, folder), folder
        finally:
            shutil.rmtree(work, ignore_errors=True)

    return read


def peers_python() -> Path:
    """The interpreter of the peers' own environment, which is made where it is not there yet.

    Raises:
        Unavailable: They cannot be installed here.
    """
    python = _TOOLS / "bin" / "python"
    done = _TOOLS / "complete"
    if done.exists():
        return python
    print(f"Installing {', '.join(_PACKAGES)} ...", flush=True)
    shutil.rmtree(_TOOLS, ignore_errors=True)
    for command in (
        [sys.executable, "-m", "venv", str(_TOOLS)],
        [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *_PACKAGES],
    ):
        try:
            ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_FETCH_WITHIN_S)
        except subprocess.TimeoutExpired:
            raise Unavailable(f"pip could not install it within {_FETCH_WITHIN_S} s") from None
        if ended.returncode:
            print((ended.stderr or ended.stdout).strip()[-2000:], file=sys.stderr)
            raise Unavailable("pip could not install it; is there a network?")
    done.touch()
    return python


# -- watching --------------------------------------------------------------------------------------------------------


def measured(
    arena: Arena, command: Sequence[str], plan: Mapping[str, Any], environment: Mapping[str, str], folder: Path
) -> Cost:
    """Run one program of `bench._sql_peers` or `bench._sql_ours`, from its ``ready`` until it has answered.

    Raises:
        ContenderFailed: it did not do its work.
    """
    log = arena.work / "program.log"
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            list(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            env=dict(environment), cwd=arena.work,
        ) as process,
    ):  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            if not _line_with(process.stdout, "ready"):
                raise ContenderFailed(last_words(log) or "it ended at once")
            before_s, meter = tree_cpu_s(process.pid), _Meter(arena)
            with TreePeak(process.pid) as peak:
                _tell(process.stdin, json.dumps(plan))
                answer = _line_with(process.stdout, "bench_elapsed_s")
            if not answer:
                raise ContenderFailed(last_words(log) or f"it ended with status {process.wait()}")
            elapsed_s = json.loads(answer)["bench_elapsed_s"]
            return meter.cost(tree_cpu_s(process.pid) - before_s, peak.bytes, folder, elapsed_s)
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def _line_with(stream: Any, word: str) -> str:
    for line in stream:
        if word in line:
            return str(line)
    return ""


def _tell(stream: Any, line: str) -> None:
    try:
        stream.write(line + "\n")
        stream.flush()
    except BrokenPipeError:
        # It has ended; why is in its log, which the caller reads next.
        return
