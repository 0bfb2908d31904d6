"""``dev.py`` as a program: each test runs a copy of it over a small checkout whose locks are empty, so offline."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

DEV = Path(__file__).parents[2] / "dev.py"
COMMANDS = ("demo", "test", "check", "start", "emulators", "bench")
MARKER = "onelake-migration.json"
PRINTS_WHERE_IT_RUNS = """
import os, sys
print("prefix", sys.prefix)
print("cwd", os.getcwd())
print("args", sys.argv[1:])
sys.exit(7)
"""
DRAINS_ON_CTRL_C = """
import sys, time
try:
    # Inside, so that a signal sent as soon as the line is read finds somebody who catches it.
    print("serving", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    print("drained", flush=True)
    sys.exit(42)
"""
# The standard library's takes seconds. This one is found before it, and waits in the middle for as long as it is told.
QUICK_VENV = """
import os, pathlib, shutil, sys, time
made, target = pathlib.Path(os.environ["MADE"]), pathlib.Path(sys.argv[1])
(target / "bin").mkdir(parents=True)
while (target.parent / "hold").exists():
    time.sleep(0.01)
shutil.copytree(made, target, symlinks=True, dirs_exist_ok=True, copy_function=os.link)
"""
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="process groups and execv are POSIX; run it on Linux")


def offline(checkout: Path) -> dict[str, str]:
    """An environment in which pip can reach no index, wherever it is configured."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    quick = checkout.parent / "quick"
    ready = {"PYTHONPATH": str(quick), "MADE": (quick / "made").read_text(encoding="utf-8")} if quick.exists() else {}
    return {**inherited, **ready, "PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull, "HOME": str(checkout)}


def run(checkout: Path, *args: str, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [python, str(checkout / "dev.py"), *args],
        cwd=checkout.parent,
        env=offline(checkout),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def start(checkout: Path, *args: str, output: IO[str] | int = subprocess.PIPE) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, str(checkout / "dev.py"), *args],
        cwd=checkout,
        env=offline(checkout),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def marker(checkout: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads((checkout / ".venv" / MARKER).read_text(encoding="utf-8"))
    return found


def installs(output: str) -> int:
    return output.count("Installing the")


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout without an environment."""
    checkout = tmp_path / "a checkout"
    files = {
        "requirements.txt": "# empty\n",
        "requirements-dev.txt": "# empty\n",
        "local/__init__.py": "",
        "local/demo.py": PRINTS_WHERE_IT_RUNS,
        "local/emulators.py": PRINTS_WHERE_IT_RUNS,
        "local/host.py": DRAINS_ON_CTRL_C,
        "bench/__init__.py": "",
        "bench/upload.py": 'if __name__ == "__main__":' + PRINTS_WHERE_IT_RUNS.replace("\n", "\n    "),
        "bench/_peers.py": "",
    }
    for name, content in files.items():
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    shutil.copy(DEV, checkout)
    return checkout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One environment with pip in it, for others to be made from; making one takes seconds."""
    made = tmp_path_factory.mktemp("made") / ".venv"
    subprocess.run([sys.executable, "-m", "venv", str(made)], check=True, capture_output=True)
    return made


@pytest.fixture
def quick(bare: Path, environment: Path) -> Path:
    """A checkout without an environment, where making one is quick."""
    folder = bare.parent / "quick"
    folder.mkdir()
    (folder / "venv.py").write_text(QUICK_VENV, encoding="utf-8")
    (folder / "made").write_text(str(environment), encoding="utf-8")
    return bare


@pytest.fixture
def checkout(quick: Path, environment: Path) -> Path:
    """A checkout with an environment that somebody made by hand."""
    shutil.copytree(environment, quick / ".venv", symlinks=True, copy_function=os.link)
    return quick


@pytest.mark.parametrize("args", [(), ("-h",), ("--help",), ("help",), ("check", "-h"), ("bench", "--help")])
def test_help_names_every_command_and_installs_nothing(bare: Path, args: tuple[str, ...]) -> None:
    done = run(bare, *args)
    assert done.returncode == 0
    assert all(f"\n  {command} " in done.stdout for command in COMMANDS)
    assert not (bare / ".venv").exists()


def test_help_of_a_command_does_not_install_either(bare: Path) -> None:
    done = run(bare, "demo", "-h")
    assert (done.returncode, (bare / ".venv").exists()) == (0, False)
    assert "--keep" in done.stdout


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("deploy",), "there is no command 'deploy'"),
        (("check", "shared"), "check takes no arguments"),
        (("bench",), "which benchmark? there are: upload."),
        (("bench", "nothing"), "there is no benchmark 'nothing'; there are: upload."),
        (("bench", "_peers"), "there is no benchmark '_peers'"),
    ],
)
def test_wrong_command_line_exits_2_with_a_sentence_before_installing(
    bare: Path, args: tuple[str, ...], sentence: str
) -> None:
    done = run(bare, *args)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert not (bare / ".venv").exists()


@pytest.mark.parametrize("version", [(3, 8, 18), (3, 10, 13), (3, 14, 0)])
def test_other_pythons_are_told_which_ones_will_do(bare: Path, version: tuple[int, int, int]) -> None:
    pretend = f"import runpy, sys; sys.version_info = {version}; runpy.run_path('dev.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", pretend], cwd=bare, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "needs Python 3.11, 3.12 or 3.13" in done.stderr
    assert "python3.12 dev.py" in done.stderr


def test_makes_the_environment_and_runs_the_command_in_it_with_its_exit_status(bare: Path) -> None:
    done = run(bare, "demo", "--files", "3")
    assert done.returncode == 7, done.stderr
    assert f"prefix {bare / '.venv'}" in done.stdout
    assert f"cwd {bare}" in done.stdout
    assert "args ['--files', '3']" in done.stdout
    assert installs(done.stdout) == 1
    assert marker(bare)["state"] == "ready"


def test_installs_once_and_again_when_the_lock_changes(checkout: Path) -> None:
    assert installs(run(checkout, "demo").stdout) == 1
    assert installs(run(checkout, "demo").stdout) == 0
    (checkout / "requirements.txt").write_text("# changed\n", encoding="utf-8")
    assert installs(run(checkout, "demo").stdout) == 1


def test_the_development_lock_does_for_the_app_too_but_not_the_other_way_round(checkout: Path) -> None:
    assert installs(run(checkout, "demo").stdout) == 1
    assert installs(run(checkout, "bench", "upload").stdout) == 1
    assert installs(run(checkout, "demo").stdout) == 0


def test_passes_the_arguments_on(checkout: Path) -> None:
    assert "args ['-n', '3']" in run(checkout, "bench", "upload", "--", "-n", "3").stdout
    assert "args ['--keep']" in run(checkout, "demo", "--", "--keep").stdout
    default = str(checkout / ".state" / "emulators")
    assert (
        f"args ['--root', {default!r}, '--latency-ms', '4']" in run(checkout, "emulators", "--latency-ms", "4").stdout
    )
    assert "args ['--root=elsewhere']" in run(checkout, "emulators", "--root=elsewhere").stdout


def test_an_environment_made_by_hand_is_kept(checkout: Path) -> None:
    (checkout / ".venv" / "mine").touch()
    assert run(checkout, "demo").returncode == 7
    assert (checkout / ".venv" / "mine").exists()


@pytest.mark.parametrize("damage", ["unfinished", "no interpreter", "no pip", "other Python"])
def test_a_broken_environment_is_made_anew(checkout: Path, damage: str) -> None:
    venv = checkout / ".venv"
    (venv / "stray").touch()
    python = next(path for path in (venv / "bin/python", venv / "Scripts/python.exe") if path.exists())
    if damage == "unfinished":
        (venv / MARKER).write_text('{"state": "installing"}', encoding="utf-8")
    elif damage == "no interpreter":
        python.unlink()
        python.symlink_to("/nowhere/python")
    elif damage == "no pip":
        for pip in venv.glob("**/site-packages/pip"):
            shutil.rmtree(pip)
    else:
        assert run(checkout, "demo").returncode == 7
        (venv / MARKER).write_text(json.dumps({**marker(checkout), "python": "3.9"}), encoding="utf-8")
        python.unlink()
        python.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
        python.chmod(0o755)
    done = run(checkout, "demo")
    assert done.returncode == 7, done.stderr
    assert "making it anew" in done.stdout
    assert not (venv / "stray").exists()


def test_a_failing_installation_shows_why_and_the_next_run_recovers(checkout: Path) -> None:
    lock = checkout / "requirements.txt"
    lock.write_text("no-such-package==1.0\n", encoding="utf-8")
    failed = run(checkout, "demo")
    assert failed.returncode == 1
    assert "no-such-package" in failed.stderr
    assert ".state/install.log" in failed.stderr.replace(os.sep, "/")
    lock.write_text("# empty again\n", encoding="utf-8")
    assert run(checkout, "demo").returncode == 7


@posix_only
def test_a_kill_half_way_is_noticed(quick: Path) -> None:
    hold = quick / "hold"
    hold.touch()
    with start(quick, "demo") as killed:
        wait_until(lambda: (quick / ".venv" / "bin").exists())
        os.killpg(killed.pid, signal.SIGKILL)
    hold.unlink()
    assert marker(quick)["state"] == "installing"
    done = run(quick, "demo")
    assert done.returncode == 7, done.stderr
    assert "making it anew" in done.stdout


@posix_only
def test_whoever_comes_second_waits_even_for_the_orphan_of_a_killed_one(quick: Path) -> None:
    hold, output = quick / "hold", quick / "output"
    hold.touch()
    with output.open("w", encoding="utf-8") as written, start(quick, "demo") as killed:
        wait_until(lambda: (quick / ".venv" / "bin").exists())
        killed.kill()
        with start(quick, "demo", output=written) as second:
            wait_until(lambda: "waiting for it" in output.read_text(encoding="utf-8"))
            assert installs(output.read_text(encoding="utf-8")) == 0
            hold.unlink()
    assert second.returncode == 7, output.read_text(encoding="utf-8")
    assert installs(output.read_text(encoding="utf-8")) == 1


def test_two_at_once_install_once(quick: Path) -> None:
    hold, outputs = quick / "hold", [quick / "output 1", quick / "output 2"]
    hold.touch()

    def printed() -> list[str]:
        return [output.read_text(encoding="utf-8") for output in outputs]

    with outputs[0].open("w", encoding="utf-8") as one, outputs[1].open("w", encoding="utf-8") as other:
        both = [start(quick, "demo", output=output) for output in (one, other)]
        wait_until(lambda: any("waiting for it" in output for output in printed()))
        hold.unlink()
        assert [process.wait(timeout=120) for process in both] == [7, 7], printed()
    assert sum(map(installs, printed())) == 1


@posix_only
def test_ctrl_c_reaches_the_command_which_may_drain(checkout: Path) -> None:
    with start(checkout, "start") as host:
        assert host.stdout is not None
        seen = iter(host.stdout.readline, "")
        assert any(line.startswith("serving") for line in seen)
        os.kill(host.pid, signal.SIGINT)
        assert host.stdout.read() == "drained\n"
        assert host.wait(timeout=30) == 42
