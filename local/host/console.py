"""The host's log lines: time stamped, coloured on a terminal only, levels by category as host.json says."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime

from local.host.invoke import running_function

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "information": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
    "none": logging.CRITICAL + 10,
}
_COLOURS = {logging.WARNING: "\x1b[33m", logging.ERROR: "\x1b[31m", logging.CRITICAL: "\x1b[31m"}
_HOST_LOGGERS = ("Host", "Function")


class _LineFormatter(logging.Formatter):
    def __init__(self, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        stamp = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        colour = _COLOURS.get(record.levelno) if self._coloured else None
        return f"[{stamp}] {colour}{text}\x1b[0m" if colour else f"[{stamp}] {text}"


class _CategoryFilter(logging.Filter):
    """Applies the level of the longest matching category.

    A line logged by user code counts as ``Function.<name>.User``, whatever its logger is called.
    """

    def __init__(self, levels: Mapping[str, int]) -> None:
        super().__init__()
        self._levels = levels

    def filter(self, record: logging.LogRecord) -> bool:
        category = record.name
        name = running_function.get()
        if name is not None and not category.startswith(_HOST_LOGGERS):
            category = f"Function.{name}.User"
        while category:
            if category in self._levels:
                return record.levelno >= self._levels[category]
            category = category.rpartition(".")[0]
        return record.levelno >= self._levels["default"]


def configure_logging(levels: Mapping[str, str]) -> None:
    """Send every logger's lines to standard output.

    Args:
        levels: Category to level name, as ``logging.logLevel`` of host.json; unknown names count as Information.
    """
    numbers = {category: _LEVELS.get(level.lower(), logging.INFO) for category, level in levels.items()}
    numbers = {category.removesuffix(".*"): number for category, number in numbers.items()}
    numbers["default"] = numbers.pop("Default", numbers.get("default", logging.INFO))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A file name that is not UTF-8 must not cost the line that speaks of it.
        sys.stdout.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_LineFormatter(coloured=sys.stdout.isatty()))
    handler.addFilter(_CategoryFilter(numbers))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(min(numbers.values()))
    # Warnings of the interpreter belong with the rest, and Python's own asyncio chatter does not.
    logging.captureWarnings(True)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def print_line(text: str = "") -> None:
    """Print a line that is not a log line, such as the list of functions; flushed for whoever reads a pipe."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
