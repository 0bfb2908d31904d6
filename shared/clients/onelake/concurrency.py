"""How many uploads are in flight: a number that finds its own level."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

from shared.ports import Concurrency, LevelChange

_log = logging.getLogger("migration.concurrency")

START = 64
FLOOR = 8
_WINDOW_SAMPLES = 24
# At least so long, and at least as long as an answer takes: what is judged was sent under the present level.
_WINDOW_S = 0.05
_LONGEST_WINDOW_S = 1.0
# Latency that a busy worker adds by itself, and that says nothing about the service.
_SLACK_S = 0.004
_STEADY = 1.25
_QUEUEING = 2.0
_DRIFT_PER_S = 0.05
_CHANGES_KEPT = 20
_COOL_S = 1.0


class AdaptiveLimit:
    """A semaphore whose size follows the service: shared by all activities of one worker.

    While calls answer as fast as they do on an idle connection, more of them at once cost nothing, so the level rises:
    it doubles until it has once met a limit, then goes in small steps. When answers take more than twice as long, they
    are waiting in a queue somewhere, and the level falls a little. When the service says that it is too much (429, 503)
    it falls by half, once a second at the most, since everything in flight is told at the same time.

    The idea is that of TCP Vegas: a rising delay is the sign of a queue before anything is refused.

    Args:
        ceiling: Most at once.
        fixed: Stay at the ceiling, whatever happens.
        now_s: A monotonic clock.
    """

    def __init__(self, ceiling: int, *, fixed: bool = False, now_s: Callable[[], float] = time.monotonic) -> None:
        self._ceiling = ceiling
        self._fixed = fixed
        self._now_s = now_s
        self._level = ceiling if fixed else min(START, ceiling)
        self._in_flight = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._samples: list[float] = []
        self._window_began_s = now_s()
        self._was_full = False
        self._idle_latency_s: float | None = None
        self._met_a_limit = False
        self._cool_until_s = 0.0
        self._told_level = self._level
        self.last_change = LevelChange(_now(), self._level, "start")
        # The level moves a little all the time; these are the moves that matter.
        self._changes: deque[LevelChange] = deque([self.last_change], maxlen=_CHANGES_KEPT)

    @property
    def level(self) -> int:
        """How many may be in flight now."""
        return self._level

    def now(self) -> Concurrency:
        """The level with the reason for its last move, and the larger ones before."""
        return Concurrency(self._level, self.last_change.reason, tuple(self._changes))

    async def __aenter__(self) -> None:
        if self._in_flight < self._level and not self._waiting:
            self._in_flight += 1
            return
        self._was_full = True
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                # The place was given in the same moment; it goes to the next one.
                self._leave()
            else:
                with suppress(ValueError):
                    self._waiting.remove(place)
            raise

    async def __aexit__(self, *_: object) -> None:
        self._leave()

    def _leave(self) -> None:
        self._in_flight -= 1
        self._admit()

    def _admit(self) -> None:
        while self._waiting and self._in_flight < self._level:
            place = self._waiting.popleft()
            if not place.done():
                self._in_flight += 1
                place.set_result(None)

    def answered(self, latency_s: float) -> None:
        """Tell how long a call without a body took, from sending to its answer."""
        if self._fixed:
            return
        self._samples.append(latency_s)
        now_s = self._now_s()
        window_s = max(_WINDOW_S, min(self._idle_latency_s or 0.0, _LONGEST_WINDOW_S))
        if len(self._samples) < _WINDOW_SAMPLES or now_s - self._window_began_s < window_s:
            return
        samples, was_full, passed_s = sorted(self._samples), self._was_full, now_s - self._window_began_s
        self._samples, self._window_began_s, self._was_full = [], now_s, False
        typical_s = samples[len(samples) // 2]
        # The idle latency may grow, slowly: another route, or a service that has become slower for good. By time and
        # not by windows, which are the longer the fewer calls there are.
        known_s = self._idle_latency_s
        grown = 1 + _DRIFT_PER_S * passed_s
        idle_s = self._idle_latency_s = typical_s if known_s is None else min(known_s * grown, typical_s)
        shown = f"{typical_s * 1000:.0f} ms an answer, {idle_s * 1000:.0f} ms when idle"
        if typical_s > idle_s * _QUEUEING + _SLACK_S:
            self._met_a_limit = True
            self._set(max(FLOOR, int(self._level * 0.85)), f"answers queue: {shown}")
        elif typical_s <= idle_s * _STEADY + _SLACK_S and was_full and now_s >= self._cool_until_s:
            step = max(2, self._level // 10) if self._met_a_limit else self._level
            self._set(self._level + step, f"answers are steady: {shown}")

    def refused(self, reason: str) -> None:
        """Tell that the service asked to slow down."""
        now_s = self._now_s()
        if self._fixed or now_s < self._cool_until_s:
            return
        self._cool_until_s = now_s + _COOL_S
        self._met_a_limit = True
        self._set(max(FLOOR, self._level // 2), reason)

    def _set(self, level: int, reason: str) -> None:
        level = max(1, min(level, self._ceiling))
        if level == self._level:
            return
        self._level = level
        self.last_change = LevelChange(_now(), level, reason)
        if not 2 / 3 < level / self._told_level < 3 / 2:
            _log.info(
                "upload concurrency %d -> %d: %s", self._told_level, level, reason,
                extra={"custom_dimensions": {"metric": "upload_concurrency", "level": level, "reason": reason}},
            )  # fmt: skip
            self._told_level = level
            self._changes.append(self.last_change)
        self._admit()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
