"""A real PostgreSQL of the tests' own: made empty, reachable on 127.0.0.1 alone, gone with the process that asked."""

from __future__ import annotations

import itertools
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, LiteralString, cast

import psycopg
import pytest

from local.emulators.certificates import ensure_certificates

_PLACES = ("/usr/lib/postgresql/*/bin", "/usr/pgsql-*/bin", "/opt/homebrew/opt/postgresql*/bin")
_START_S = 60.0
# Ends the server when the pipe closes, which it does however the tests' process ends.
_GUARD = '"$@" & server=$!; trap "" INT TERM; cat >/dev/null; kill -INT $server; wait $server'
_DATABASES = itertools.count(1)
# Unlike what the code asks of its own sessions, in everything that shows in the text of a value.
_ODD_SETTINGS = {
    "timezone": "Asia/Kolkata", "datestyle": "SQL, DMY", "intervalstyle": "postgres_verbose", "extra_float_digits": "0",
    "bytea_output": "escape", "statement_timeout": "0",
}  # fmt: skip


class PostgresMissing(Exception):
    """There is no PostgreSQL on this machine; the text says how to get one."""


class PostgresDatabase:
    """One that only this test uses. ``url`` and ``odbc`` are what a setting may hold."""

    def __init__(self, host: str, port: int, user: str, password: str, name: str) -> None:
        self.host, self.port, self.user, self.password, self.name = host, port, user, password, name

    @property
    def url(self) -> str:
        return f"postgresql://{self.user}:{self.password}@{self.host}:{self.port}/{self.name}"

    @property
    def odbc(self) -> str:
        """For psqlodbc; see :func:`odbc_missing`."""
        return (
            f"Driver={{PostgreSQL Unicode}};Server={self.host};Port={self.port};Database={self.name};"
            f"UID={self.user};PWD={self.password}"
        )

    def run(self, *statements: str, parameters: Any = None) -> list[tuple[Any, ...]]:
        """Each in a transaction of its own; the rows of the last one."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(cast(LiteralString, statement).encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def connect(self, **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.url, **options)


class PostgresServer:
    """A server; ``launch`` starts its guard, whose end is the server's."""

    def __init__(self, port: int, password: str, folder: Path, launch: Callable[[], subprocess.Popen[bytes]]) -> None:
        self._admin = PostgresDatabase("127.0.0.1", port, "postgres", password, "postgres")
        self._folder = folder
        self._launch = launch
        self.start()

    def start(self) -> None:
        """Returns when it lets in."""
        self._guard = self._launch()
        try:
            _wait_for(self._admin, self._guard, self._folder / "log")
        except BaseException:
            self.stop()
            raise

    def crash(self) -> None:
        """Every connection breaks off, and nothing is put in order: ``pg_ctl stop -m immediate``."""
        os.kill(int((self._folder / "data" / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
        self.stop()

    def stop(self) -> None:
        assert self._guard.stdin is not None
        self._guard.stdin.close()
        try:
            self._guard.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(self._guard.pid, signal.SIGKILL)
            self._guard.wait()

    @contextmanager
    def offering_tls(self) -> Iterator[None]:
        """For the time of a ``with``, with a certificate that nobody trusts."""
        made = ensure_certificates(self._folder / "tls")
        data = self._folder / "data"
        owner = data.stat()
        for file, name in ((made.key, "server.key"), (made.chain, "server.crt")):
            shutil.copy(file, data / name)
            os.chown(data / name, owner.st_uid, owner.st_gid)
            (data / name).chmod(0o600)
        self._admin.run("ALTER SYSTEM SET ssl = on", "SELECT pg_reload_conf()")
        try:
            self._await_tls("on")
            yield
        finally:
            self._admin.run("ALTER SYSTEM RESET ssl", "SELECT pg_reload_conf()")
            self._await_tls("off")

    def _await_tls(self, wanted: str) -> None:
        # A session sees a new setting once it was told of it.
        while self._admin.run("SHOW ssl") != [(wanted,)]:
            time.sleep(0.02)

    def make_database(self, *, encoding: str = "UTF8") -> PostgresDatabase:
        name = f"test{next(_DATABASES):04d}"
        admin = self._admin
        admin.run(f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        admin.run(*(f"ALTER DATABASE {name} SET {key} = '{value}'" for key, value in _ODD_SETTINGS.items()))
        return PostgresDatabase(admin.host, admin.port, admin.user, admin.password, name)


@contextmanager
def running() -> Iterator[PostgresServer]:
    """A server for the time of a ``with``.

    Raises:
        PostgresMissing: its programs are not installed.
    """
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # A socket's path may have no more than 107 bytes.
    try:
        as_user = _not_root(folder)
        password, data = secrets.token_urlsafe(18), folder / "data"
        (folder / "password").write_text(password)
        (folder / "password").chmod(0o644)
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "postgres", "--auth=scram-sha-256", "--no-sync", "-E", "UTF8",
             "--locale=C", f"--pwfile={folder / 'password'}"],
            check=True, stdout=subprocess.DEVNULL, cwd=folder, **as_user,
        )  # fmt: skip
        (folder / "password").unlink()
        port = _free_port()
        options = {
            "port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": str(folder),
            "fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_connections": "60",
            "shared_buffers": "64MB", "autovacuum": "off", "track_counts": "on",
        }  # fmt: skip
        command = [str(programs / "postgres"), "-D", str(data)]
        for key, value in options.items():
            command += ["-c", f"{key}={value}"]

        def launch() -> subprocess.Popen[bytes]:
            with (folder / "log").open("ab") as log:
                return subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD, "guard", *command],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=folder, start_new_session=True, **as_user,
                )  # fmt: skip

        server = PostgresServer(port, password, folder, launch)
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One for all tests of a process."""
    try:
        with running() as server:
            yield server
    except PostgresMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture
def postgres(postgres_server: PostgresServer) -> PostgresDatabase:
    """An empty database."""
    return postgres_server.make_database()


def odbc_missing() -> str:
    """Why PostgreSQL cannot be read over ODBC here; empty where it can."""
    try:
        import pyodbc
    except ImportError:
        return "ODBC's driver manager is missing; apt-get install unixodbc"
    if "PostgreSQL Unicode" not in pyodbc.drivers():
        return "PostgreSQL's ODBC driver is missing; apt-get install odbc-postgresql"
    return ""


def _programs() -> Path:
    found = [Path(place) for place in (os.environ.get("PG_BINDIR"),) if place]
    for pattern in _PLACES:
        found += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    if on_path := shutil.which("postgres"):
        found.append(Path(on_path).resolve().parent)
    for place in found:
        if (place / "postgres").exists() and (place / "initdb").exists():
            return place
    raise PostgresMissing("PostgreSQL is not installed; apt-get install postgresql, or name its programs in PG_BINDIR")


def _not_root(folder: Path) -> dict[str, Any]:
    """How to start a process, since PostgreSQL does not run as root; the folder is made its own."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        os.chown(folder, user.pw_uid, user.pw_gid)
        return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise PostgresMissing("PostgreSQL does not run as root, and there is no user to run it as")


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def _wait_for(admin: PostgresDatabase, guard: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            admin.connect(connect_timeout=5).close()
        except psycopg.OperationalError as error:
            if guard.poll() is not None or time.monotonic() > until:
                said = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"PostgreSQL did not start: {error}\n{said}") from error
            time.sleep(0.05)
        else:
            return
