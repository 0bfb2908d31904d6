"""A PostgreSQL of a benchmark's own: made in a folder, on 127.0.0.1, gone at the end."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

_INSTALLED = Path("/usr/lib/postgresql")
_READY_WITHIN_S = 60
_STOPPED_WITHIN_S = 60
# What is measured is reading: nothing has to survive a power cut, and nothing else is to run in the middle of it.
_SETTINGS = {
    "autovacuum": "off", "checkpoint_timeout": "1h", "fsync": "off", "full_page_writes": "off",
    "listen_addresses": "127.0.0.1", "maintenance_work_mem": "256MB", "max_wal_size": "8GB",
    "max_wal_senders": "0", "shared_buffers": "512MB", "synchronous_commit": "off", "wal_level": "minimal",
}  # fmt: skip


class PostgresMissing(Exception):
    """There is no PostgreSQL to start here; the text says how to get one."""


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running server.

    Attributes:
        pid: Of the process that the others are children of.
        version: For people.
        url: Of its one database, without any secret: it trusts everybody on this machine.
    """

    pid: int
    port: int
    version: str

    @property
    def url(self) -> str:
        return f"postgresql://bench@127.0.0.1:{self.port}/bench?sslmode=disable"

    def run(self, *statements: str) -> None:
        """Execute statements, each in a transaction of its own."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def one(self, statement: str) -> tuple[Any, ...]:
        """The first row of an answer."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row


@contextmanager
def running(folder: Path) -> Iterator[Postgres]:
    """Start a server over a new folder, and end it with everything in it.

    Raises:
        PostgresMissing: There is none on this machine.
    """
    programs = _programs()
    # It refuses to run as root.
    account = pwd.getpwnam("postgres") if os.geteuid() == 0 else None
    owner: dict[str, Any] = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    folder.mkdir(parents=True)
    if account:
        os.chown(folder, account.pw_uid, account.pw_gid)
    data = folder / "data"
    _done(
        [str(programs / "initdb"), "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"],
        owner,
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)]
    for name, value in _SETTINGS.items():
        command += ["-c", f"{name}={value}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/", **owner)
    try:
        _await_ready(process, port, folder / "log")
        with psycopg.connect(f"postgresql://bench@127.0.0.1:{port}/postgres", autocommit=True) as connection:
            connection.execute("CREATE DATABASE bench")
            version = f"PostgreSQL {connection.info.server_version // 10000}.{connection.info.server_version % 10000}"
        yield Postgres(process.pid, port, version)
    finally:
        # "Fast": it ends its sessions and does not wait for them.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGQUIT)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = shutil.which("initdb")
    folders = [Path(found).resolve().parent] if found else []
    if _INSTALLED.is_dir():
        folders += sorted(_INSTALLED.glob("*/bin"), key=lambda folder: int(folder.parent.name), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissing("this needs a PostgreSQL server: apt install postgresql")


def _done(command: Sequence[str], owner: dict[str, Any]) -> None:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False, cwd="/", **owner)
    if done.returncode:
        raise PostgresMissing(f"{command[0]} failed: {done.stderr.strip()[-500:]}")


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline_s = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < deadline_s:
        if process.poll() is not None:
            raise PostgresMissing(f"postgres ended: {log.read_text(encoding='utf-8', errors='replace').strip()[-500:]}")
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(f"postgresql://bench@127.0.0.1:{port}/postgres").close()
            return
        time.sleep(0.1)
    raise PostgresMissing(f"postgres was not ready after {_READY_WITHIN_S} s; see {log}")
