"""The commands of this checkout; see ``python3 dev.py -h``.

Needs Python 3.11, 3.12 or 3.13 and its standard library, nothing else. It keeps an environment in ``.venv`` beside
itself with the locked requirements in it, and runs each command inside that environment. The exit status is the
command's own; 2 means that the command line, or the Python, will not do; 130 that Ctrl-C ended it.
"""

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

SUPPORTED = ((3, 11), (3, 12), (3, 13))
# Before anything that an older Python would stumble over.
if sys.version_info[:2] not in SUPPORTED:
    sys.stderr.write(
        f"dev.py needs Python 3.11, 3.12 or 3.13, and this is {sys.version.split()[0]} ({sys.executable}).\n"
        "Run it with one of those, for example: python3.12 dev.py\n"
    )
    sys.exit(2)

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
MARKER = VENV / "onelake-migration.json"
STATE = ROOT / ".state"
INSTALL_LOG = STATE / "install.log"
RUNTIME_LOCK = "requirements.txt"
# Holds every pin of the runtime lock as well.
DEV_LOCK = "requirements-dev.txt"
USAGE_ERROR = 2
INTERRUPTED = 130

HELP = """\
Moves an estate into Microsoft Fabric OneLake: the commands of this checkout.

usage: python3 dev.py COMMAND [arguments]

  demo        see it work, on this machine alone: starts emulators and the app, makes sample data, migrates it,
              checks every byte and prints the report
                --files N      how many sample files
                --seed S       the same sample data again
                --kill         kill the app several times on the way
                --keep         leave it running afterwards until Ctrl-C, and print the addresses
  test        the whole test suite; says at the end what it skipped and how to enable that
                -- ARGS        arguments for pytest, for example: test -- -k retry -x
  check       format, lint, types and import layers
  start       the app on this machine over your own local.settings.json
                --port 7071    where it listens
                --state DIR    where it keeps its history
  emulators   just the stand-ins for the cloud services; prints their addresses
                --fault-plan FILE   the failures to play
                --latency-ms N      how slow to be
                --root DIR          where they keep their data (.state/emulators)
                --azureml           Azure ML in two tenants as well; needs node
  bench NAME  one benchmark; without a name, lists them

The first command makes an environment in .venv and installs the locked requirements there: several hundred megabytes
and a few minutes, once, and again when the locks change. To start over, delete .venv. Relative paths in arguments
count from this folder. Behind a proxy or with a package index of your own, configure pip as usual (PIP_* or its
configuration file).
"""


class UsageError(Exception):
    """The command line will not do; the text says why."""


class SetupError(Exception):
    """The environment cannot be made; the text says why and what to do."""


def main(argv: Sequence[str]) -> int:
    """Runs one command and returns its exit status; on POSIX most commands replace this process instead."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    command, args = argv[0], list(argv[1:])
    if args[:1] == ["--"]:
        args = args[1:]
    try:
        return dispatch(command, args)
    except UsageError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return USAGE_ERROR
    except SetupError as error:
        print(f"dev.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndev.py: interrupted.", file=sys.stderr)
        return INTERRUPTED


def dispatch(command: str, args: list[str]) -> int:
    """Prepares the environment that the command needs and runs the command in it.

    Raises:
        UsageError: The command or its arguments are unknown. Found out before anything is installed.
        SetupError: The environment cannot be made.
    """
    if command not in ("demo", "test", "check", "start", "emulators", "bench"):
        raise UsageError(f"there is no command {command!r}; python3 dev.py -h lists those that there are.")
    lock = RUNTIME_LOCK if command in ("demo", "start", "emulators") else DEV_LOCK
    if args[:1] in (["-h"], ["--help"]) and (command in ("check", "bench") or not is_ready(lock)):
        print(HELP, end="")
        return 0
    if command == "check":
        if args:
            raise UsageError(f"check takes no arguments, and got {' '.join(args)!r}.")
        prepare(lock)
        return check()
    if command == "bench":
        module, args = benchmark(args)
    elif command == "test":
        # The whole suite mostly waits, for processes and sockets; a part of it is for somebody who looks at its output.
        # In the order that tests/conftest.py gives, which begins with the files that take longest.
        workers = str((os.cpu_count() or 1) + 1)
        together = [] if args else ["-n", workers, "--dist", "loadfile", "--no-loadscope-reorder"]
        module, args = "pytest", ["-rs", *together, *args]
    elif command == "emulators":
        module = "local.emulators"
        if not any(arg == "--root" or arg.startswith("--root=") for arg in args):
            args = ["--root", str(STATE / "emulators"), *args]
    else:
        module = {"demo": "local.demo", "start": "local.host"}[command]
    prepare(lock)
    return run_inside([*module_command(module), *args])


def benchmark(args: list[str]) -> tuple[str, list[str]]:
    """The module of the benchmark that the arguments name, and the arguments that are left for it.

    Raises:
        UsageError: No name, or one that ``bench/`` does not have.
    """
    names = sorted(
        path.stem for path in (ROOT / "bench").glob("[!_]*.py") if "__main__" in path.read_text(encoding="utf-8")
    )
    known = "there are: " + ", ".join(names) if names else "there are none yet"
    if not args:
        raise UsageError(f"which benchmark? {known}.")
    if args[0] not in names:
        raise UsageError(f"there is no benchmark {args[0]!r}; {known}.")
    rest = args[1:]
    return f"bench.{args[0]}", rest[1:] if rest[:1] == ["--"] else rest


# Running


def venv_python() -> Path:
    """The environment's interpreter, whether it exists or not."""
    return VENV / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")


def module_command(module: str) -> list[str]:
    return [str(venv_python()), "-m", module]


def run_inside(command: list[str]) -> int:
    """Becomes the command, in the checkout's folder.

    On POSIX this process is replaced, so that a signal reaches the command itself and its exit status is ours. Windows
    has no such thing: there Ctrl-C reaches both, and this process waits until the command has drained.
    """
    os.chdir(ROOT)
    sys.stdout.flush()
    sys.stderr.flush()
    if sys.platform == "win32":
        with subprocess.Popen(command) as process:
            while True:
                try:
                    return process.wait()
                except KeyboardInterrupt:
                    continue
    else:
        return os.execv(command[0], command)


def check() -> int:
    """Runs every check, prints what failed and then a table; 0 if all passed, else 1."""
    checks = {
        "format": [*module_command("ruff"), "format", "--check", "."],
        "lint": [*module_command("ruff"), "check", "."],
        "types": module_command("mypy"),
        "import layers": [
            str(venv_python()),
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-logo",
        ],
    }
    rows = []
    for name, command in checks.items():
        started = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if done.returncode:
            print(f"--- {name}\n{done.stdout.decode(errors='replace').rstrip()}\n", flush=True)
        rows.append((name, done.returncode == 0, time.monotonic() - started))
    for name, passed, elapsed_s in rows:
        print(f"{name:<16}{'passed' if passed else 'FAILED':<10}{elapsed_s:6.1f} s")
    return 0 if all(passed for _, passed, _ in rows) else 1


# The environment
#
# MARKER is the truth about .venv: {"state": "installing"} from before the first file is written until the last one is,
# then {"state": "ready", "python", "lock", "sha256"}. Whoever finds "installing" while holding the lock knows that the
# one who wrote it is gone, and starts over.


def prepare(lock: str) -> None:
    """Makes sure that ``.venv`` holds what ``lock`` pins. Does nothing, and needs no network, when it does.

    Raises:
        SetupError: It cannot be made.
    """
    if is_ready(lock):
        return
    try:
        STATE.mkdir(exist_ok=True)
        with installing_alone() as lock_file:
            # The one that we waited for may have installed the very thing.
            if not is_ready(lock):
                install(lock, lock_file)
    except OSError as error:
        raise SetupError(f"cannot make the environment in {VENV}: {error}") from error


def is_ready(lock: str) -> bool:
    """Whether ``.venv`` works, belongs to this Python, and holds what ``lock`` pins."""
    marker = read_marker()
    if marker.get("state") != "ready" or marker.get("python") != python_version():
        return False
    held = marker.get("lock")
    if held not in (lock, DEV_LOCK) or marker.get("sha256") != digest(held):
        return False
    return is_usable()


def install(lock: str, lock_file: IO[bytes]) -> None:
    """Brings ``.venv`` from whatever state it is in to ``ready``. The caller holds the lock.

    An environment that somebody made by hand is kept and completed.

    Raises:
        SetupError: venv or pip failed; ``.venv`` stays marked as unfinished.
    """
    finished = read_marker().get("state") != "installing"
    if VENV.exists() and not (finished and is_usable()):
        print("The environment in .venv is unfinished, broken or for another Python: making it anew.", flush=True)
        shutil.rmtree(VENV)
    VENV.mkdir(exist_ok=True)
    write_marker({"state": "installing"})
    INSTALL_LOG.write_bytes(b"")
    if not is_usable():
        # The base interpreter, because this very process may run inside the .venv that has just gone.
        base = getattr(sys, "_base_executable", None) or sys.executable
        run_logged([base, "-m", "venv", str(VENV)], "Making an environment in .venv", lock_file)
    sha256 = digest(lock)
    pins = sum("==" in line for line in (ROOT / lock).read_text(encoding="utf-8").splitlines())
    run_logged(
        [
            *module_command("pip"),
            "install",
            "--disable-pip-version-check",
            "--no-input",
            "--progress-bar",
            "off",
            "-r",
            str(ROOT / lock),
        ],
        f"Installing the {pins} packages of {lock} into .venv (the first time: hundreds of megabytes, a few minutes)",
        lock_file,
    )
    write_marker({"state": "ready", "python": python_version(), "lock": lock, "sha256": sha256})


def run_logged(command: list[str], what: str, lock_file: IO[bytes]) -> None:
    """Runs one step of the installation, its output in the log, and shows that it is alive.

    The step inherits the lock: if this process is killed, nobody else starts before the step has ended as well.

    Raises:
        SetupError: It failed; the text holds the end of its output.
    """
    print(f"{what} ...", flush=True)
    started = time.monotonic()
    inherited = () if sys.platform == "win32" else (lock_file.fileno(),)
    with INSTALL_LOG.open("ab") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=inherited
        )
        try:
            while not exited_within(process, 1 if sys.stdout.isatty() else 20):
                show_progress(time.monotonic() - started)
        except BaseException:
            process.terminate()
            process.wait()
            raise
    if sys.stdout.isatty():
        print("\r\033[K", end="")
    if process.returncode:
        tail = "\n".join(log_lines()[-30:])
        raise SetupError(
            f"{what}: this failed with exit status {process.returncode}.\n\n{tail}\n\n"
            f"The whole output is in {INSTALL_LOG.relative_to(ROOT)}. {remedy(tail)}"
        )
    print(f"  done in {time.monotonic() - started:.0f} s", flush=True)


def remedy(output: str) -> str:
    """What to try after a step failed with this output."""
    if "ensurepip" in output:
        return "On Debian and Ubuntu venv is a package of its own: apt install python3-venv."
    if "No space left" in output:
        return "The disk is full: free about 2 GB and run the command again."
    return (
        "If this machine has no way to the package index, configure pip for your proxy or mirror (PIP_INDEX_URL, "
        "PIP_PROXY, PIP_CERT or its configuration file) and run the command again."
    )


def exited_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def show_progress(elapsed_s: float) -> None:
    doing = next((line.strip() for line in reversed(log_lines()) if line.strip()), "")
    line = f"  {elapsed_s:4.0f} s  {doing}"[: shutil.get_terminal_size().columns - 1]
    if sys.stdout.isatty():
        print(f"\r\033[K{line}", end="", flush=True)
    else:
        print(line, flush=True)


def log_lines() -> list[str]:
    return INSTALL_LOG.read_text(encoding="utf-8", errors="replace").splitlines()


@contextlib.contextmanager
def installing_alone() -> Iterator[IO[bytes]]:
    """Holds the installation's lock; waits, and says so, while another process holds it."""
    with (STATE / "install.lock").open("ab") as lock_file:
        if not try_lock(lock_file):
            print("Another dev.py is installing; waiting for it ...", flush=True)
            while not try_lock(lock_file):
                time.sleep(0.5)
        yield lock_file


if sys.platform == "win32":
    import msvcrt

    def try_lock(lock_file: IO[bytes]) -> bool:
        """Whether this process now holds the lock; it goes when the file is closed."""
        try:
            lock_file.seek(0)
            msvcrt.locking(lock_file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import fcntl

    def try_lock(lock_file: IO[bytes]) -> bool:
        """Whether this process now holds the lock; it goes when the last process that inherited the file ends."""
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def is_usable() -> bool:
    """Whether ``.venv`` has an interpreter that starts, is of this version, and has pip."""
    probe = (
        "import importlib.util, sys; "
        f"sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r} or importlib.util.find_spec('pip') is None)"
    )
    if not (VENV / "pyvenv.cfg").exists() or not venv_python().exists():
        return False
    try:
        probed = subprocess.run(
            [str(venv_python()), "-I", "-c", probe], stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
    except OSError:
        return False
    return probed.returncode == 0


def python_version() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def digest(lock: str) -> str:
    return hashlib.sha256((ROOT / lock).read_bytes()).hexdigest()


def read_marker() -> dict[str, str]:
    """What the marker says; empty when there is none or it cannot be read."""
    try:
        marker = json.loads(MARKER.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


def write_marker(marker: dict[str, str]) -> None:
    """Replaces the marker in one step."""
    draft = MARKER.with_suffix(".new")
    draft.write_text(json.dumps(marker), encoding="utf-8")
    draft.replace(MARKER)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
