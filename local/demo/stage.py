"""What all acts of the demo have in common: they print alike, and follow a run to its end alike."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from local.demo.comparison import Comparison, visible
from local.demo.platform import Platform, StepFailed
from shared.policy.progress_line import LiveLine, progress_line, settled_items
from shared.policy.quantities import show_duration

_FINISHED: Final = frozenset({"completed", "completed_with_failures", "failed", "cancelled"})
_POLL_S: Final = 0.1
_WITHOUT_PROGRESS_S: Final = 300.0
_SHOWN: Final = 10


@dataclass(frozen=True, slots=True)
class Run:
    """A finished run: its status document and how long the caller waited."""

    document: dict[str, Any]
    elapsed_s: float

    @property
    def progress(self) -> dict[str, Any]:
        progress: dict[str, Any] = self.document["progress"]
        return progress


class Stage:
    """Where an act prints what it does.

    Args:
        line: Where to print.
        is_unicode: Whether a progress bar may have block characters.

    Attributes:
        step: What is being done, for who has to say where it failed.
        rows: What the acts want in the report, as name and text.
    """

    def __init__(self, line: LiveLine, *, is_unicode: bool) -> None:
        self.step = "beginning"
        self.rows: list[tuple[str, str]] = []
        self._line = line
        self._is_unicode = is_unicode

    def begin(self, step: str) -> None:
        """A step begins."""
        self.step = step
        self.show(f"  ... {step}")

    def done(self, text: str, elapsed_s: float) -> None:
        """It is done, and this is how it came out."""
        self.say(f"  ok  {text}  ({elapsed_s:.1f} s)")

    def say(self, text: str) -> None:
        """Print a line that stays."""
        self._line.say(text)

    def show(self, text: str) -> None:
        """Print a line that the next one takes the place of."""
        self._line.show(text, time.monotonic())

    def counting(self, what: str) -> Callable[[int, int], None]:
        """What to call with how many of how many ``what``."""

        def progress(done: int, total: int) -> None:
            if done % 20 == 0:
                self.show(f"    {done:,} of {total:,} {what}")

        return progress

    def table(self, rows: list[tuple[str, str]]) -> None:
        """Print names and texts side by side."""
        for name, text in rows:
            self.say(f"  {name:<22}{text}")

    def follow(
        self, platform: Platform, spec: dict[str, Any], disturb: Callable[[dict[str, Any]], bool] | None = None
    ) -> Run:
        """Start a job over HTTP and follow it to its end.

        Args:
            platform: Where.
            spec: The job.
            disturb: Called with each status document; True if it did something that makes this one out of date.

        Raises:
            StepFailed: It did not complete, did not pass its own verification, or stands still.
        """
        began_s = time.monotonic()
        own = platform.call("POST", "/migrations", spec)["links"]["self"]
        settled, moved_at_s = -1, began_s
        while True:
            document: dict[str, Any] = platform.call("GET", own)
            now_s = time.monotonic()
            if document["status"] in _FINISHED:
                break
            self.show(f"    {self._progress(document)}")
            if disturb is not None and disturb(document):
                continue
            if settled_items(document) != settled:
                settled, moved_at_s = settled_items(document), now_s
            elif now_s - moved_at_s > _WITHOUT_PROGRESS_S:
                raise StepFailed(f"nothing has moved for {show_duration(_WITHOUT_PROGRESS_S)}: {document}")
            time.sleep(_POLL_S)
        self.say(f"    {self._progress(document)}")
        if document["status"] != "completed":
            raise StepFailed(f"the run {document['id']} is {document['status']}: {document['error']}")
        verification = document["verification"]
        if verification is None or verification["verdict"] != "passed":
            raise StepFailed(f"the run {document['id']} did not pass its own verification: {verification}")
        return Run(document, time.monotonic() - began_s)

    def _progress(self, document: dict[str, Any]) -> str:
        return progress_line(document, is_unicode=self._is_unicode)


def require_identical(found: Comparison) -> None:
    """Raises StepFailed naming what is not the same in lake and source."""
    if found.is_identical:
        return
    wrong = [f"missing in the lake: {visible(name)}" for name in found.missing]
    wrong += [f"only in the lake: {visible(name)}" for name in found.extra]
    wrong += [f"other bytes in the lake: {visible(name)}" for name in found.different]
    raise StepFailed("lake and source differ:\n" + listed(wrong))


def listed(lines: list[str]) -> str:
    """The first of many lines, indented."""
    more = [f"... and {len(lines) - _SHOWN:,} more"] if len(lines) > _SHOWN else []
    return "\n".join(f"    {line}" for line in [*lines[:_SHOWN], *more])
