"""How throughput and the number of requests suffer when the service refuses, fails or goes silent.

The same 2,000 small files through the whole app, with 0, 1, 5 and 10 % of all calls to the lake answered by 429 with
Retry-After, 503, a reset before or after the effect, or by nothing at all until the client gives up. Every byte is
compared after each run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench._platform import FINISHED, REPOSITORY, call, start_host
from local.demo.comparison import compare_folders
from local.emulators.launch import launch as launch_emulators

_UPLOAD_OPERATIONS = ("create", "append", "flush", "append_flush", "properties", "rename", "delete")
_KINDS: dict[str, dict[str, Any]] = {
    "429": {"fault": "throttle", "retry_after_s": 1},
    "503": {"fault": "unavailable", "retry_after_s": 1},
    "reset": {"fault": "reset_before"},
    "lost answer": {"fault": "reset_after"},
    # Longer than the client waits: the effect is there, and nobody hears of it.
    "timeout": {"fault": "reset_after", "latency_ms": 65_000},
    "mixed": {},
}


def main(argv: Sequence[str]) -> int:
    """Run each kind at each share and print the table; exit status 1 if a byte is wrong anywhere."""
    parser = argparse.ArgumentParser(prog="python3 dev.py bench faults", description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--shares", default="0,0.01,0.05,0.1", help="of all calls, by commas")
    parser.add_argument("--kinds", default="mixed,timeout", help=f"of {', '.join(_KINDS)}; by commas")
    parser.add_argument("--latency-ms", type=float, default=10.0)
    parser.add_argument("--work", type=Path, default=REPOSITORY / ".state/bench-faults", help="is emptied")
    arguments = parser.parse_args(argv)
    shutil.rmtree(arguments.work, ignore_errors=True)
    source = arguments.work / "source"
    source.mkdir(parents=True)
    dice = random.Random(1)  # noqa: S311 - content, not a secret
    for number in range(arguments.files):
        (source / f"{number:05d}.pdf").write_bytes(dice.randbytes(dice.randrange(2_000, 60_000)))
    head = "| faults | share | files/s | calls | calls / faultless | items failed | verdict |"
    sys.stdout.write(head + "\n| " + " | ".join(["---"] * 7) + " |\n")
    faultless: int | None = None
    good = True
    try:
        for kind in arguments.kinds.split(","):
            for share in [float(text) for text in arguments.shares.split(",")]:
                elapsed_s, calls, failed, same = _measure(arguments, source, kind, share)
                faultless = faultless or calls
                good = good and same and not failed
                cells = (
                    kind, f"{share:.0%}", f"{arguments.files / elapsed_s:.0f}", f"{calls:,}",
                    f"{calls / faultless:.2f}", str(failed), "identical" if same else "DIFFERENT",
                )  # fmt: skip
                sys.stdout.write("| " + " | ".join(cells) + " |\n")
                sys.stdout.flush()
    finally:
        shutil.rmtree(arguments.work, ignore_errors=True)
    return 0 if good else 1


def _measure(arguments: argparse.Namespace, source: Path, kind: str, share: float) -> tuple[float, int, int, bool]:
    work = arguments.work / "run"
    shutil.rmtree(work, ignore_errors=True)
    with launch_emulators(work / "emulators", latency_ms=arguments.latency_ms) as emulators:
        emulators.set_faults(_rules(kind, share))
        with start_host(work, source, emulators, RETRY_FIRST_DELAY_S="1") as host:
            spec = {
                "kind": "files",
                "name": "faults",
                "source": {"type": "folder", "path": str(source)},
                "target": {"workspace": "Migration", "lakehouse": "Landing", "path": "Files/faults"},
                "verify": "none",
            }
            started_s = time.monotonic()
            run = call(host, "POST", "/api/migrations", spec)["id"]
            while (status := call(host, "GET", f"/api/migrations/{run}"))["status"] not in FINISHED:
                time.sleep(0.05)
            elapsed_s = time.monotonic() - started_s
        stats = emulators.stats()["onelake"]
        calls = sum(sum(stats.get(operation, {}).values()) for operation in _UPLOAD_OPERATIONS)
        lake = emulators.lake_folder / "Migration/Landing.Lakehouse/Files/faults"
        return elapsed_s, calls, status["progress"]["failed"], compare_folders(source, lake).is_identical


def _rules(kind: str, share: float) -> list[dict[str, Any]]:
    if not share:
        return []
    # Timeouts are a kind of their own: each takes a minute, and would drown the throughput of the others.
    kinds = [one for name, one in _KINDS.items() if one and name != "timeout"] if kind == "mixed" else [_KINDS[kind]]
    return [{"service": "onelake", "operation": "any", "probability": share / len(kinds), **one} for one in kinds]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
