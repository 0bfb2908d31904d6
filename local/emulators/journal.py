"""What happened: counters of every call, and on demand a line for every effect.

The journal is for tests that ask how often a file was committed, so its line is on disk before the caller hears of
the effect. One line is one write to a file opened for appending, so several processes may share it.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Stats:
    """Counts calls by service, operation and status."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str, int]] = Counter()

    def count(self, service: str, operation: str, status: int) -> None:
        """Adds one; status 0 stands for a connection that was reset instead of answered."""
        self._counts[service, operation, status] += 1

    def reset(self) -> None:
        """Begins anew."""
        self._counts.clear()

    def document(self) -> dict[str, dict[str, dict[str, int]]]:
        """Returns ``{service: {operation: {status: calls}}}``."""
        document: dict[str, dict[str, dict[str, int]]] = {}
        for (service, operation, status), calls in sorted(self._counts.items()):
            document.setdefault(service, {}).setdefault(operation, {})[str(status)] = calls
        return document


def merged(documents: list[dict[str, dict[str, dict[str, int]]]]) -> dict[str, dict[str, dict[str, int]]]:
    """Adds up the counters of several processes."""
    total: dict[str, dict[str, dict[str, int]]] = {}
    for document in documents:
        for service, operations in document.items():
            for operation, statuses in operations.items():
                target = total.setdefault(service, {}).setdefault(operation, {})
                for status, calls in statuses.items():
                    target[status] = target.get(status, 0) + calls
    return total


class Journal:
    """An append-only file of JSON lines."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    def record(self, **fields: Any) -> None:
        """Appends one line, stamped with the time in seconds; it is with the kernel on return."""
        line = json.dumps({"ts": round(time.time(), 6), **fields}, ensure_ascii=False) + "\n"
        os.write(self._descriptor, line.encode("utf-8", "surrogatepass"))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._descriptor)
