"""What a benchmark leaves in docs/performance.md: its table, under the command and the machine that made it."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

_DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "performance.md"
UPDATE_FLAG = "--update-docs"


def made_by(benchmark: str, argv: Sequence[str]) -> str:
    """The command, and what it ran on."""
    command = " ".join([f"python3 dev.py bench {benchmark}", *(one for one in argv if one != UPDATE_FLAG)])
    model = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
         if line.startswith("model name")),
        platform.machine(),
    )  # fmt: skip
    return (
        f"```console\n$ {command}\n```\n\n"
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores ({model}), Python {platform.python_version()}, "
        f"Linux {platform.release().partition('-')[0]}."
    )


def write_down(benchmark: str, text: str) -> None:
    """Put a benchmark's text in the place of the one that the document has of it."""
    begin, end = (f"<!-- bench {benchmark}: {edge} -->" for edge in ("begin", "end"))
    before, found, rest = _DOCUMENT.read_text(encoding="utf-8").partition(begin)
    if not found:
        raise SystemExit(f"{_DOCUMENT} has no {begin}")
    after = rest.partition(end)[2]
    _DOCUMENT.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
