"""A run's progress as a line of text, and a line that changes in place; the caller owns clock and terminal."""

from collections.abc import Callable, Mapping
from typing import Any

from shared.policy.quantities import show_bytes, show_duration

_BAR_CELLS = 24
_PLAIN_EVERY_S = 5.0
_CLEAR = "\r\x1b[K"


def progress_line(document: Mapping[str, Any], *, is_unicode: bool = True) -> str:
    """One line for a status document of ``GET /migrations/{id}``.

    Args:
        document: The status document.
        is_unicode: Whether the terminal shows block characters.

    Returns:
        Such as ``transferring ████░░░░  51 %  1,020 of 2,000 items  190.2 MiB of 380.0 MiB  410/s  76.1 MiB/s  3 s
        left``.
    """
    progress = document["progress"]
    done = settled_items(document)
    planned = progress["planned"]
    share = _share(done, planned) if progress["planning_done"] else None
    filled = int((share or 0.0) * _BAR_CELLS)
    full, empty = ("█", "░") if is_unicode else ("#", ".")
    parts = [f"{document['status']:<13}{full * filled}{empty * (_BAR_CELLS - filled)}"]
    if share is None and not planned and progress.get("listed"):
        # A source that does not list itself in order is read to its end before the first item is planned.
        parts.append(f"{progress['listed']:,} items listed so far")
        return "  ".join([*parts, *_load(document)])
    if share is None:
        # The end of the source is not in sight, so a share would be a share of nobody knows what.
        parts.append(f"{done:,} items of {planned:,} found so far")
    else:
        parts[0] += f" {int(share * 100):3d} %"
        parts.append(f"{done:,} of {planned:,} items")
    parts.append(f"{show_bytes(progress['bytes_done'])} of {show_bytes(progress['bytes_planned'])}")
    if document["ended_at"] is None and progress["items_per_s"]:
        parts.append(f"{progress['items_per_s']:,.0f}/s  {show_bytes(progress['bytes_per_s'])}/s")
        if progress["eta_s"] is not None and document["status"] == "transferring":
            parts.append(f"{show_duration(progress['eta_s'])} left")
    if progress.get("renamed"):
        parts.append(f"{progress['renamed']:,} renamed")
    if progress["failed"]:
        parts.append(f"{progress['failed']:,} failed")
    return "  ".join([*parts, *_load(document)])


def settled_items(document: Mapping[str, Any]) -> int:
    """Items that are done with, whatever became of them."""
    progress = document["progress"]
    settled = ("uploaded", "skipped", "renamed", "deleted", "failed")
    return sum(int(progress.get(name, 0)) for name in settled)


class LiveLine:
    """A line that changes in place on a terminal; elsewhere a line every few seconds.

    Args:
        write: Receives the text, control characters included; flushes.
        columns: Width of the terminal; None if the output is not one.
    """

    def __init__(self, write: Callable[[str], None], columns: int | None) -> None:
        self._write = write
        self._columns = columns
        self._is_open = False
        self._shown_at_s: float | None = None

    def show(self, text: str, now_s: float) -> None:
        """Show the text in place of the one before; ``now_s`` is of a monotonic clock."""
        if self._columns is not None:
            # A line that wraps can no longer be taken back.
            self._write(f"{_CLEAR}{text[: self._columns - 1]}")
            self._is_open = True
        elif self._shown_at_s is None or now_s - self._shown_at_s >= _PLAIN_EVERY_S:
            self._write(f"{text}\n")
            self._shown_at_s = now_s

    def say(self, text: str) -> None:
        """Print text that stays; it takes the place of what was shown last."""
        self._write(f"{_CLEAR if self._is_open else ''}{text}\n")
        self._is_open = False
        self._shown_at_s = None

    def close(self) -> None:
        """End the line that is being changed, if there is one."""
        if self._is_open:
            self._write("\n")
        self._is_open = False


def _load(document: Mapping[str, Any]) -> list[str]:
    """How much of what SharePoint allows is in use, while a run reads from it and the limit is known."""
    load = document.get("source_load")
    if not load or load["share"] is None or document["ended_at"] is not None:
        return []
    return [f"{load['share'] * 100:.0f} % of {load['ceiling']:,} units/min"]


def _share(done: int, planned: int) -> float:
    return min(1.0, done / planned) if planned else 1.0
