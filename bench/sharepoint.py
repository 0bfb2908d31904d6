"""A document library through the whole app: at the pace that SharePoint allows, and as fast as it goes.

``python3 dev.py bench sharepoint [--items N] [--units-per-minute N] [--latency-ms N] [--runs throttled,unthrottled]``

*throttled*: the emulated SharePoint refuses what goes beyond the resource units of a tenant with 5,000 licences, and
the app does not know that limit: it learns it from the answers. *unthrottled*: the same library without a limit, and
then the same files from a folder. After each run the lake's bytes are compared with what the emulator, or the folder,
holds; a difference ends the benchmark with status 1.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench._clients import files_below
from bench._document import UPDATE_FLAG, made_by, write_down
from bench._platform import FINISHED, call, start_host
from bench._watch import Cost, Stopwatch, peak_of, tree_cpu_s
from local.emulators.estate import DEFAULT_ESTATE
from local.emulators.launch import RunningEmulators
from local.emulators.launch import launch as launch_emulators

_RUNS = ("throttled", "unthrottled")
_SITE, _LIBRARY = "contoso.sharepoint.com:/sites/finance", "Archive"
# Twice an average file, and as much again for records and history.
_BYTES_A_FILE = 3 * 31_000
_MINUTE_S = 60.0
_LISTING = ("delta", "delta_token", "children")
_MEASURED_EVERY_S = 0.5


@dataclass
class Outcome:
    """One run.

    Attributes:
        source: Where the files came from.
        files: How many.
        elapsed_s: From the POST until the status is final.
        size_bytes: Of all files.
        cost: Of the host; cores of host, emulators and others.
        moving_s: From the last look at which nothing was downloaded to the first at which everything was.
        counters: What the emulated Graph counted.
        different: What is not the same in lake and source; empty if nothing is.
    """

    source: str
    files: int
    elapsed_s: float
    size_bytes: int
    cost: Cost
    moving_s: float = 0.0
    counters: dict[str, Any] = field(default_factory=dict)
    different: str = ""


def main(argv: Sequence[str]) -> int:
    """Run and print the tables; 0, or 1 if a run left other bytes in the lake than its source has."""
    arguments = _parser().parse_args(argv)
    # As Ctrl-C does: whoever ends the benchmark must find neither emulators nor gigabytes left of it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory(prefix="onelake-bench-", dir=_roomy(arguments.items)) as folder:
        sections = [made_by("sharepoint", argv)]
        if "throttled" in arguments.runs:
            outcomes.append(_library(Path(folder, "throttled"), arguments, arguments.units_per_minute))
            sections.append(_throttled_table(outcomes[-1], arguments))
            print(f"\n{sections[-1]}\n", flush=True)
        if "unthrottled" in arguments.runs:
            source = Path(folder, "source")
            free = [_library(Path(folder, "free"), arguments, None, keep=source)]
            free.append(_folder(Path(folder, "folder"), source, arguments))
            outcomes += free
            shutil.rmtree(source)
            sections.append(_free_table(free, arguments))
            print(f"\n{sections[-1]}\n", flush=True)
    for outcome in outcomes:
        if outcome.different:
            print(f"{outcome.source}: the lake differs from the source: {outcome.different}", file=sys.stderr)
            return 1
    if arguments.update_docs:
        write_down("sharepoint", "\n\n".join(sections))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="dev.py bench sharepoint", description="A library through the whole app.")
    parser.add_argument("--items", type=int, default=20_000, help="files of the library, of 2 to 60 KB (20000)")
    parser.add_argument(
        "--units-per-minute", type=int, default=2500, help="what SharePoint allows; 2500 with 5,000 licences (2500)"
    )
    parser.add_argument("--latency-ms", type=float, default=100.0, help="of every call, to Graph and the lake (100)")
    parser.add_argument("--page-items", type=int, default=200, help="most items of a page of the change feed (200)")
    parser.add_argument("--runs", type=_names, default=list(_RUNS), metavar="A,B", help=f"of {','.join(_RUNS)} (both)")
    parser.add_argument(UPDATE_FLAG, action="store_true", help="put the tables into docs/performance.md")
    return parser


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(_RUNS):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(_RUNS)}")
    return names


def _roomy(items: int) -> str | None:
    """Memory if all fits in a half of it, so that no disk is measured; else the usual place for temporary files."""
    memory = Path("/dev/shm")  # noqa: S108 - a file system in memory, wherever there is one
    return str(memory) if memory.is_dir() and items * _BYTES_A_FILE < shutil.disk_usage(memory).free / 2 else None


# -- the runs ----------------------------------------------------------------------------------------------------------


def _library(work: Path, arguments: argparse.Namespace, limit: int | None, keep: Path | None = None) -> Outcome:
    """The library into the lake; ``keep`` is where the lake's files go afterwards, as the source of another run."""
    work.mkdir()
    (work / "estate.json").write_text(json.dumps(_estate(arguments, limit)), encoding="utf-8")
    with launch_emulators(
        work / "emulators", latency_ms=arguments.latency_ms, config=work / "estate.json"
    ) as emulators:
        source = {"type": "sharepoint", "site": _SITE, "library": _LIBRARY}
        name = "a library" if limit is None else f"a library, {limit:,} units a minute"
        outcome = _migrate(name, work, work, source, emulators, arguments.items)
        lake = _lake(emulators)
        there = {path: _sha256(lake / path) for path, _ in files_below(lake)}
        wanted = {
            line["path"]: line["sha256"]
            for line in emulators.graph.tree(_LIBRARY, site=_SITE) if line["kind"] == "file"
        }  # fmt: skip
        outcome.different = _difference(wanted, there)
        if keep is not None:
            lake.rename(keep)
    shutil.rmtree(work)
    return outcome


def _folder(work: Path, source: Path, arguments: argparse.Namespace) -> Outcome:
    work.mkdir()
    with launch_emulators(work / "emulators", latency_ms=arguments.latency_ms) as emulators:
        outcome = _migrate(
            "a folder", work, source, {"type": "folder", "path": str(source)}, emulators, arguments.items
        )
        lake = _lake(emulators)
        wanted, there = ({path: _sha256(root / path) for path, _ in files_below(root)} for root in (source, lake))
        outcome.different = _difference(wanted, there)
    shutil.rmtree(work)
    return outcome


def _estate(arguments: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    estate = DEFAULT_ESTATE.model_dump(mode="json")
    library = {"name": _LIBRARY, "items": arguments.items, "seed": 7}
    estate["sites"] = [{"address": _SITE, "libraries": [library]}]
    estate["graph"] = {"units_per_minute": limit, "most_page_items": arguments.page_items}
    return estate


def _migrate(
    name: str, work: Path, root: Path, source: dict[str, Any], emulators: RunningEmulators, files: int
) -> Outcome:
    host = start_host(work, root, emulators)
    try:
        spec = {
            "kind": "files", "name": "bench", "source": source,
            "target": {"workspace": "Migration", "lakehouse": "Landing", "path": "Files/bench"},
        }  # fmt: skip
        emulators.graph.reset_counters()
        watch, cpu_s, started_s = Stopwatch(emulators.pid), tree_cpu_s(host.pid), time.monotonic()
        run = call(host, "POST", "/api/migrations", spec)["id"]
        looks: list[tuple[float, int]] = []
        while (status := call(host, "GET", f"/api/migrations/{run}"))["status"] not in FINISHED:
            looks.append((time.monotonic(), emulators.graph.counters()["requests"]["content"]))
            _say(f"{name}: {status['status']}, {status['progress']['uploaded']:,} of {files:,} files", len(looks))
            time.sleep(_MEASURED_EVERY_S)
        elapsed_s = time.monotonic() - started_s
        cost = watch.cost(tree_cpu_s(host.pid) - cpu_s, peak_of(host.pid), elapsed_s)
        progress = status["progress"]
        if status["status"] != "completed" or progress["uploaded"] != files:
            raise SystemExit(f"the run ended {status['status']} with {progress}: {status['error']}")
    finally:
        host.stop()
    outcome = Outcome(name, files, elapsed_s, progress["bytes_done"], cost, counters=emulators.graph.counters())
    if outcome.counters["requests"]["content"]:
        began = max((look for look in looks if not look[1]), default=looks[0])
        ended = next((look for look in looks if look[1] >= files), looks[-1])
        outcome.moving_s = ended[0] - began[0]
    return outcome


def _lake(emulators: RunningEmulators) -> Path:
    return emulators.lake_folder / "Migration/Landing.Lakehouse/Files/bench"


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _difference(wanted: dict[str, str], there: dict[str, str]) -> str:
    wrong = sorted(path for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))
    return f"{len(wrong):,} files, such as {wrong[0]!r}" if wrong else ""


def _say(text: str, look: int) -> None:
    if look % 20 == 1:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {text}\n")
        sys.stderr.flush()


# -- the tables --------------------------------------------------------------------------------------------------------


def _throttled_table(outcome: Outcome, arguments: argparse.Namespace) -> str:
    counters, minutes = outcome.counters, outcome.counters["minutes"]
    requests, limit = counters["requests"], arguments.units_per_minute
    # A minute of the emulator's begins with the first call after the one before has ended; the last one is not whole.
    share = sum(one["units"] for one in minutes[:-1]) / (limit * (len(minutes) - 1)) if len(minutes) > 1 else 1.0
    whole = counters["units"] * _MINUTE_S / (limit * outcome.elapsed_s)
    downloads = requests["content"] / outcome.files
    listing = outcome.files / sum(requests[kind] for kind in _LISTING)
    later = sum(one["throttled"] for one in minutes[1:])
    rows = [
        ("files", f"{outcome.files:,}", ""),
        ("files/s", f"{outcome.files / outcome.elapsed_s:.1f}", ""),
        ("whole run", f"{outcome.elapsed_s:,.0f} s", ""),
        ("share of the ceiling, in all minutes but the last", f"{share:.1%}", "at least 95 %"),
        ("share of the ceiling, from the start to the manifest", f"{whole:.1%}", ""),
        ("units in each minute", ", ".join(f"{one['units']:,}" for one in minutes), f"at most {limit:,}"),
        ("refusals (429) in the first minute", f"{minutes[0]['throttled']:,}", ""),
        ("refusals (429) after it", f"{later:,}", "0"),
        ("downloads a file", f"{downloads:.3f}", "at most 1.05"),
        ("listing calls a file", f"1/{listing:.0f}", "at most 1/150"),
        ("host's CPU", f"{outcome.cost.cpu_s * 1000 / outcome.files:.2f} ms/file", ""),
        ("host's peak memory", f"{outcome.cost.peak_bytes / 1e6:.0f} MB", ""),
        ("lake and library", outcome.different or "identical", "identical"),
    ]
    head = [f"### At {limit:,} resource units a minute, {arguments.latency_ms:g} ms a call", ""]
    return "\n".join([*head, "| | measured | wanted |", "| --- | ---: | ---: |", *(_row(*row) for row in rows)])


def _free_table(outcomes: list[Outcome], arguments: argparse.Namespace) -> str:
    head = [
        f"### Without a limit, {arguments.latency_ms:g} ms a call",
        "",
        "| from | files | files/s | MB/s | whole run s | from first download to last s | CPU ms/file | peak MB "
        "| cores: host, emulators, others | lake and source |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |",
    ]
    rows = []
    for one in outcomes:
        cost = one.cost
        rows.append(_row(
            one.source, f"{one.files:,}", f"{one.files / one.elapsed_s:,.0f}",
            f"{one.size_bytes / one.elapsed_s / 1e6:.1f}", f"{one.elapsed_s:.1f}",
            f"{one.moving_s:.1f}" if one.moving_s else "", f"{cost.cpu_s * 1000 / one.files:.2f}",
            f"{cost.peak_bytes / 1e6:.0f}",
            ", ".join(f"{cores:.2f}" for cores in (cost.client_cores, cost.emulator_cores, cost.other_cores)),
            one.different or "identical",
        ))  # fmt: skip
    return "\n".join([*head, *rows])


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
