"""Uploads the same files with everything that can, against the same emulators, and prints one table.

``python3 dev.py bench upload [--set small|mixed|large|all] [--latency-ms 0,40,120] [--runs N] [--peers run,engine]``

Each contender uploads into a folder of its own; afterwards that folder is compared with the source byte by byte, and a
difference ends the benchmark. Contenders take turns, so that a busy minute of the machine hits all of them, and the
table shows medians. Everything lies in memory (``/dev/shm``) where there is room, and is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench._clients import files_below
from bench._contenders import Arena, Contender, Unavailable, contenders
from bench._watch import QUIET_CORES, ContenderFailed, Cost, wait_for_quiet
from local.emulators.launch import launch as launch_emulators
from shared.settings import Settings

_SETS = ("small", "mixed", "large")
_PEERS = ("run", "engine", "azcopy", "rclone", "sdk", "curl", "ceiling")
_MIXED_FILES, _MIXED_MEAN_BYTES = 600, 800_000
_LARGE_FILES = 4
_TRIES = 2
_SPARE_BYTES = 2 * 1024**3
_READ_BYTES = 8 * 1024 * 1024
_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


@dataclass
class Row:
    """One contender's uploads of one set at one latency; ``missing`` says why there are none."""

    contender: Contender
    costs: list[Cost] = field(default_factory=list)
    missing: str = ""

    def median(self, name: str) -> float:
        return float(statistics.median(getattr(cost, name) for cost in self.costs))


@dataclass(frozen=True)
class Files:
    """A set: how it is called, and what it holds."""

    name: str
    title: str
    count: int
    size_bytes: int


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark; 0, or 1 if a contender left other bytes in the lake than the source has."""
    arguments = _parser().parse_args(argv)
    # As Ctrl-C does: whoever ends the benchmark must find neither emulators nor gigabytes left of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sets = _SETS if arguments.set == "all" else (arguments.set,)
    with tempfile.TemporaryDirectory(prefix="onelake-bench-", dir=_roomy(sets, arguments)) as folder:
        work = Path(folder)
        for name in sets:
            source = work / "source"
            files = _make(name, source, arguments)
            sections = [_machine(argv)]
            for latency_ms in arguments.latency_ms if name != "large" else arguments.latency_ms[:1]:
                rows = _compete(work, source, files, latency_ms, arguments)
                sections.append(_table(files, latency_ms, rows, arguments.processes))
                print(f"\n{sections[-1]}\n", flush=True)
            shutil.rmtree(source)
            if arguments.update_docs:
                _write_down(name, "\n\n".join(sections))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py bench upload", description="Uploads, ours beside its peers.")
    parser.add_argument("--set", choices=(*_SETS, "all"), default="small", help="which files (small)")
    parser.add_argument(
        "--latency-ms", type=_numbers, default=[0.0, 40.0, 120.0], metavar="A,B", help="of every call (0,40,120)"
    )
    parser.add_argument("--runs", type=int, default=3, help="uploads of each contender; the table has medians (3)")
    parser.add_argument(
        "--peers", type=_names, default=list(_PEERS), metavar="A,B", help=f"who takes part ({','.join(_PEERS)})"
    )
    parser.add_argument("--small-files", type=int, default=2000, help="files of the small set (2000)")
    parser.add_argument(
        "--large-bytes", type=int, default=2 * 1024**3, help=f"size of each of the {_LARGE_FILES} large files (2 GiB)"
    )
    parser.add_argument("--processes", type=int, default=2, help="processes that serve the emulated lake (2)")
    parser.add_argument(
        "--quiet-s", type=float, default=0, metavar="S",
        help=f"before each upload wait so long at most until the machine is quiet; repeat it, {_TRIES} times at most, "
        "where the machine was not quiet meanwhile (0)",
    )  # fmt: skip
    parser.add_argument("--update-docs", action="store_true", help=f"put the tables into docs/{_DOCUMENT.name}")
    return parser


def _numbers(text: str) -> list[float]:
    return [float(part) for part in text.split(",")]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(_PEERS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(_PEERS)}")
    return names


def _roomy(sets: Sequence[str], arguments: argparse.Namespace) -> str | None:
    """Memory if all fits in it, so that no disk is measured; else the usual place for temporary files."""
    needed = {
        "small": 2 * arguments.small_files * 60_000,
        "mixed": 2 * _MIXED_FILES * _MIXED_MEAN_BYTES,
        # The source, the uploaded blocks, and the file that is made of them.
        "large": 3 * _LARGE_FILES * arguments.large_bytes,
    }
    memory = Path("/dev/shm")  # noqa: S108 - a file system in memory, wherever there is one
    if not memory.is_dir():
        return None
    available = int(
        next(
            line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable")
        ).split()[1]
    )
    room = min(shutil.disk_usage(memory).free, available * 1024) - _SPARE_BYTES
    return str(memory) if max(needed[name] for name in sets) <= room else None


def _make(name: str, folder: Path, arguments: argparse.Namespace) -> Files:
    """Files of random bytes, the same ones each time."""
    drawn = random.Random(name)  # noqa: S311 - repeatable, not secret
    if name == "small":
        sizes = [drawn.randint(2_000, 60_000) for _ in range(arguments.small_files)]
        title = f"small: {len(sizes):,} files of 2 to 60 KB"
    elif name == "mixed":
        sizes = [min(16_000_000, int(drawn.expovariate(1 / _MIXED_MEAN_BYTES)) + 1) for _ in range(_MIXED_FILES)]
        title = f"mixed: {len(sizes):,} files of {sum(sizes) / len(sizes) / 1000:,.0f} KB on average"
    else:
        sizes = [arguments.large_bytes] * _LARGE_FILES
        shrunk = "" if arguments.large_bytes == 2 * 1024**3 else " (shrunk from 2,048 MiB)"
        title = f"large: {_LARGE_FILES} files of {arguments.large_bytes / 1024**2:,.0f} MiB{shrunk}"
    for number, size_bytes in enumerate(sizes):
        path = folder / f"d{number // 100:02d}" / f"f{number:05d}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for at in range(0, size_bytes, _READ_BYTES):
                file.write(drawn.randbytes(min(_READ_BYTES, size_bytes - at)))
    return Files(name, title, len(sizes), sum(sizes))


def _compete(work: Path, source: Path, files: Files, latency_ms: float, arguments: argparse.Namespace) -> list[Row]:
    rows = [
        Row(contender)
        for contender in contenders(Settings.upload_concurrency)
        if contender.key in arguments.peers and files.name in contender.sets
    ]
    root = work / "emulators"
    with launch_emulators(root, latency_ms=latency_ms, plain=True, processes=arguments.processes) as emulators:
        arena = Arena(emulators, arguments.processes, source, work)
        for turn in range(arguments.runs):
            for number, row in enumerate(rows):
                if not row.missing:
                    target = f"Files/bench-{turn}-{number}"
                    where = f"{files.name}, {latency_ms:g} ms, turn {turn + 1}"
                    _take_turn(row, arena, target, where, arguments.quiet_s)
    shutil.rmtree(root)
    return rows


def _take_turn(row: Row, arena: Arena, target: str, where: str, quiet_s: float) -> None:
    """One measured upload; where the machine was busy with something else meanwhile, the quietest of a few."""
    where = f"{where}: {row.contender.label.strip('*')} over {row.contender.over}"
    costs: list[Cost] = []
    for _ in range(_TRIES if quiet_s else 1):
        wait_for_quiet(quiet_s)
        try:
            costs.append(row.contender.upload(arena, target))
        except (Unavailable, ContenderFailed) as problem:
            row.missing = str(problem)
            print(f"{where}: not measured: {problem}", flush=True)
            return
        finally:
            shutil.rmtree(arena.work / "run-store", ignore_errors=True)
        if difference := first_difference(arena.source, arena.lake(target)):
            raise SystemExit(f"{where} left the lake different from the source: {difference}")
        shutil.rmtree(arena.lake(target))
        if costs[-1].other_cores < QUIET_CORES:
            break
    cost = min(costs, key=lambda one: one.other_cores)
    row.costs.append(cost)
    print(
        f"{where}: {cost.elapsed_s:.2f} s, CPU {cost.cpu_s:.2f} s, {cost.other_cores:.2f} cores busy elsewhere",
        flush=True,
    )


def first_difference(source: Path, lake: Path) -> str:
    """What differs first between two folders, read byte by byte; empty if nothing does."""
    wanted, there = files_below(source), files_below(lake)
    if wanted != there:
        return f"{len(wanted)} files and {len(there)}, or other names or sizes: {set(wanted) ^ set(there)!r:.200}"
    for path, _ in wanted:
        with Path(source, path).open("rb") as ours, Path(lake, path).open("rb") as theirs:
            while block := ours.read(_READ_BYTES):
                if block != theirs.read(_READ_BYTES):
                    return path
    return ""


# -- the table -------------------------------------------------------------------------------------------------------


def _table(files: Files, latency_ms: float, rows: list[Row], processes: int) -> str:
    # The first of each: a warm host, and plain HTTP.
    run, engine = (
        next((row for row in rows if row.contender.key == key and row.costs), None) for key in ("run", "engine")
    )
    lines = [
        f"### {files.title}, {latency_ms:g} ms a call",
        "",
        "| | over | files/s | MB/s | CPU ms/file | peak MB | our run is | our engine is "
        "| cores: client, emulator, others | measured is |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    for row in rows:
        contender = row.contender
        if not row.costs:
            lines.append(f"| {contender.label} | {contender.over} | {row.missing} | | | | | | | |")
            continue
        elapsed_s = row.median("elapsed_s")
        cells = [
            contender.label,
            contender.over,
            f"{files.count / elapsed_s:,.{0 if files.count > 100 else 2}f}",
            f"{files.size_bytes / elapsed_s / 1e6:,.1f}",
            f"{row.median('cpu_s') / files.count * 1000:,.2f}",
            f"{row.median('peak_bytes') / 1e6:,.0f}" if contender.kind != "ceiling" else "",
            _times(row, run),
            _times(row, engine),
            ", ".join(f"{row.median(f'{who}_cores'):.2f}" for who in ("client", "emulator", "other")),
            _limit(row, files, latency_ms, processes),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _times(row: Row, ours: Row | None) -> str:
    if ours is None or row.contender.kind == "ours":
        return ""
    return f"{row.median('elapsed_s') / ours.median('elapsed_s'):.2f}x as fast"


def _limit(row: Row, files: Files, latency_ms: float, processes: int) -> str:
    """What held the contender back: whoever was busy, else the latency."""
    client, emulator, others = (row.median(f"{who}_cores") for who in ("client", "emulator", "other"))
    cores = os.cpu_count() or 1
    found = []
    if emulator >= 0.85 * min(processes, cores):
        found.append("the emulator")
    elif not row.contender.threads and client >= 0.85:
        found.append("its CPU")
    elif client + emulator + others >= 0.9 * cores:
        found.append("the machine's CPU")
    contender = row.contender
    if latency_ms and contender.calls and contender.in_flight and files.name == "small":
        arithmetic = contender.in_flight / (contender.calls * latency_ms / 1000)
        share = files.count / row.median("elapsed_s") / arithmetic
        found.append(f"{share:.0%} of {contender.in_flight} / ({contender.calls} x {latency_ms:g} ms)")
    elif latency_ms and not found:
        found.append("latency")
    return ", ".join(found)


def _machine(argv: Sequence[str]) -> str:
    command = " ".join(["python3 dev.py bench upload", *(one for one in argv if one != "--update-docs")])
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    return (
        f"```console\n$ {command}\n```\n\n"
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({model}), Python {platform.python_version()}, "
        f"Linux {platform.release().partition('-')[0]}."
    )


def _write_down(name: str, text: str) -> None:
    """Put a set's tables in the place of those that the document has of it."""
    begin, end = (f"<!-- bench upload, {name}: {edge} -->" for edge in ("begin", "end"))
    before, _, rest = _DOCUMENT.read_text(encoding="utf-8").partition(begin)
    after = rest.partition(end)[2]
    _DOCUMENT.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
