"""What a process costs while it works: CPU of the process and its children, peak of memory, and who else was busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO

_TICKS_S = os.sysconf("SC_CLK_TCK")
_LOOK_EVERY_S = 0.01
_LOOK_AT_TREE_EVERY_S = 0.05
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_QUIET_FOR_S = 1.0
QUIET_CORES = 0.3
"""What other programs may take of the machine without disturbing a measurement much."""


class ContenderFailed(Exception):
    """A contender did not finish its work; the text is what it said last."""


@dataclass(frozen=True, slots=True)
class Cost:
    """One upload of one contender.

    Attributes:
        elapsed_s: From the first request to the last answer; for a command line from its start to its end.
        cpu_s: Of the client and its children.
        peak_bytes: Largest resident memory of the client.
        client_cores: Cores that the client kept busy on average; the next two likewise.
        emulator_cores: The emulators' share.
        other_cores: What the rest of the machine did meanwhile.
    """

    elapsed_s: float
    cpu_s: float
    peak_bytes: int
    client_cores: float
    emulator_cores: float
    other_cores: float


class Stopwatch:
    """Wall time and the CPU of machine and emulators, from its making until `cost`."""

    def __init__(self, emulators_pid: int) -> None:
        self._pid = emulators_pid
        self._machine_s, self._emulators_s = machine_cpu_s(), tree_cpu_s(emulators_pid)
        self._started_s = time.perf_counter()

    def cost(self, cpu_s: float, peak_bytes: int, elapsed_s: float | None = None) -> Cost:
        """What was spent until now, of which ``cpu_s`` by the client."""
        window_s = time.perf_counter() - self._started_s
        emulators_s = tree_cpu_s(self._pid) - self._emulators_s
        others_s = max(0.0, machine_cpu_s() - self._machine_s - emulators_s - cpu_s)
        return Cost(
            elapsed_s=window_s if elapsed_s is None else elapsed_s,
            cpu_s=cpu_s,
            peak_bytes=peak_bytes,
            client_cores=cpu_s / window_s,
            emulator_cores=emulators_s / window_s,
            other_cores=others_s / window_s,
        )


def run_command(
    command: Sequence[str], environment: Mapping[str, str], log: Path, emulators_pid: int, timeout_s: float
) -> Cost:
    """Run a command line to its end.

    Raises:
        ContenderFailed: its status was not 0, or it was not done in time.
    """
    with log.open("wb") as output:
        watch = Stopwatch(emulators_pid)
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=dict(environment)
        )
        deadline_s = time.monotonic() + timeout_s
        peak_bytes = 0
        while True:
            peak_bytes = max(peak_bytes, peak_of(process.pid))
            ended, status, used = os.wait4(process.pid, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline_s:
                process.kill()
                deadline_s = float("inf")
            time.sleep(_LOOK_EVERY_S)
        # It is reaped already; left to itself, Popen would warn of a child that is still running.
        process.returncode = os.waitstatus_to_exitcode(status)
        cost = watch.cost(used.ru_utime + used.ru_stime, peak_bytes)
    if process.returncode:
        raise ContenderFailed(last_words(log) or f"it ended with status {process.returncode}")
    return cost


def run_client(name: str, plan: str, log: Path, emulators_pid: int) -> Cost:
    """Run one of the clients of ``bench._clients``.

    Raises:
        ContenderFailed: it did not upload everything.
    """
    with (
        log.open("wb") as errors,
        subprocess.Popen(
            [sys.executable, "-m", "bench._clients", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _tell(process.stdin, plan)
            if process.stdout.readline() != "ready\n":
                raise ContenderFailed(last_words(log))
            watch = Stopwatch(emulators_pid)
            _tell(process.stdin, "go\n")
            answer = process.stdout.readline()
            if not answer:
                raise ContenderFailed(last_words(log))
            own = json.loads(answer)
            return watch.cost(own["cpu_s"], peak_of(process.pid), own["elapsed_s"])
        finally:
            process.stdin.close()


def wait_for_quiet(most_s: float) -> None:
    """Wait until the machine does little else, ``most_s`` at most."""
    deadline_s = time.monotonic() + most_s
    while time.monotonic() < deadline_s:
        before_s = machine_cpu_s()
        time.sleep(_QUIET_FOR_S)
        if machine_cpu_s() - before_s < QUIET_CORES * _QUIET_FOR_S:
            return


def tree_cpu_s(pid: int) -> float:
    """CPU seconds of a process, of its children that live, and of those that it has waited for."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    # utime, stime, cutime, cstime: fields 14 to 17 of the line, counted from the process's state at 3.
    return sum(map(int, fields[11:15])) / _TICKS_S + sum(tree_cpu_s(int(child)) for child in children)


def peak_of(pid: int) -> int:
    """Largest resident memory that a process has had, in bytes; 0 if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) * 1024


class TreePeak:
    """While it is entered: the largest resident memory of a process and its children together, looked at all the time.

    What they share counts for each of them.

    Attributes:
        bytes: The largest so far.
    """

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> TreePeak:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while True:
            self.bytes = max(self.bytes, sum(map(_resident_bytes, _tree(self._pid))))
            if self._ended.wait(_LOOK_AT_TREE_EVERY_S):
                return


def _tree(pid: int) -> list[int]:
    found = [pid]
    try:
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                found += _tree(int(child))
    except (FileNotFoundError, ProcessLookupError):
        return found
    return found


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * _PAGE_BYTES
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def machine_cpu_s() -> float:
    """CPU seconds that the machine has worked."""
    user, nice, system, _, _, irq, softirq, *_ = map(
        int, Path("/proc/stat").read_text(encoding="utf-8").splitlines()[0].split()[1:]
    )
    return (user + nice + system + irq + softirq) / _TICKS_S


def _tell(pipe: IO[str], line: str) -> None:
    try:
        pipe.write(line)
        pipe.flush()
    except BrokenPipeError:
        # It has ended; why is in its log, which the caller reads next.
        return


def last_words(log: Path) -> str:
    """The end of what a program has written, in one line."""
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:])[-500:]
