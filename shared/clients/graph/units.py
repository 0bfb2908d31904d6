"""Resource units: what SharePoint counts, and how fast they may be spent.

Facts (SharePoint, "Avoid getting throttled or blocked"): an app may spend 1,250 to 6,250 units a minute in a tenant, by
its number of licences; one item, a page of changes with a token and a download cost 1, a page without a token 2. From
80 % of that on, answers carry ``RateLimit-Limit``, ``-Remaining`` and ``-Reset`` (seconds), if the service can.

The service counts in minutes that begin when it likes. Who spends at an even pace keeps under the limit in each of
them, wherever they begin; who spends as fast as it goes meets a refusal in each of them, and refusals count too. So the
pace is even, with half a second's worth of slack for what comes in bursts.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping

from shared.clients.http import BUDGET_S
from shared.errors import Throttled

_WINDOW_S = 60.0
# Of the ceiling. What is left covers the slack below, and calls that bunch up on their way.
_PACE = 0.98
# Of the ceiling, left over of what the service says remains: other workers spend of the same, and hear of it as late.
_RESERVE = 0.01
_SLACK_S = 0.5
_LEAST_SLACK_UNITS = 5.0
# How often the one who is next looks whether the pace has changed.
_LOOK_S = 0.25


class ResourceUnits:
    """The pace of one credential's calls to one endpoint; what each call costs is the caller's to say.

    Args:
        per_minute: The most to spend, or None to go unpaced until the service tells its limit. Where both are known,
            the lower one counts.
        paused_s: Seconds for which the service asked everybody to wait; 0 or less if it did not.
        now_s: A clock that only goes forward.
        sleep: Waits for so many seconds.
    """

    def __init__(
        self,
        per_minute: int | None = None,
        *,
        paused_s: Callable[[], float] = lambda: 0.0,
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._given = per_minute
        self._told: int | None = None
        self._paused_s = paused_s
        self._now_s = now_s
        self._sleep = sleep
        self._queue = asyncio.Lock()
        self._held = math.inf
        self._filled_at_s = now_s()
        self._left_in_window = math.inf
        self._window_ends_at_s = 0.0
        self._spent: deque[tuple[float, int]] = deque()

    @property
    def ceiling(self) -> int | None:
        """Units a minute that may be spent, as far as anybody has said."""
        known = [one for one in (self._given, self._told) if one is not None]
        return min(known) if known else None

    def share(self) -> tuple[int, int | None]:
        """Units spent in the last minute, and the ceiling."""
        self._forget()
        return sum(units for _, units in self._spent), self.ceiling

    async def spend(self, units: int) -> None:
        """Wait until a call of this cost may be sent. Callers are served in the order in which they come.

        Raises:
            Throttled: the service asked for a longer pause than an activity can sleep through.
        """
        async with self._queue:
            while (wait_s := max(self._wait_s(units), self._paused_s())) > 0:
                if (pause_s := self._paused_s()) > BUDGET_S:
                    raise Throttled("the service asked for a long pause", retry_after_s=pause_s)
                await self._sleep(min(wait_s, _LOOK_S))
            self._held -= units
            self._left_in_window -= units
            self._spent.append((self._now_s(), units))
            self._forget()

    def observe(self, headers: Mapping[str, str]) -> None:
        """Learn from the ``RateLimit-*`` headers of an answer, where it has them.

        Until that minute ends, what remains of it is spread over the rest: others may spend of it too.
        """
        limit, remaining, reset_s = (
            _leading_int(headers.get(f"RateLimit-{name}")) for name in ("Limit", "Remaining", "Reset")
        )
        if limit:
            self._fill()
            self._told = limit
        if remaining is not None and reset_s is not None:
            self._fill()
            self._left_in_window = remaining
            self._window_ends_at_s = self._now_s() + min(reset_s, _WINDOW_S)

    def _pace(self) -> float:
        """Units a second at this moment."""
        ceiling = self.ceiling
        even = math.inf if ceiling is None else ceiling * _PACE / _WINDOW_S
        rest_s = self._window_ends_at_s - self._now_s()
        if rest_s <= 0:
            return even
        left = self._left_in_window - (self._told or 0) * _RESERVE
        return min(even, max(0.0, left) / rest_s)

    def _fill(self) -> float:
        """Bring what may be spent at once up to this moment; the pace."""
        pace, now_s = self._pace(), self._now_s()
        passed_s, self._filled_at_s = now_s - self._filled_at_s, now_s
        if math.isinf(pace):
            self._held = math.inf
        elif math.isinf(self._held):
            # Nothing was counted so far; to begin with, the whole slack.
            self._held = max(_LEAST_SLACK_UNITS, pace * _SLACK_S)
        else:
            self._held = min(self._held + pace * passed_s, max(_LEAST_SLACK_UNITS, pace * _SLACK_S))
        return pace

    def _wait_s(self, units: int) -> float:
        pace = self._fill()
        if self._held > units - 1e-6:
            return 0.0
        return (units - self._held) / pace if pace else _LOOK_S

    def _forget(self) -> None:
        since_s = self._now_s() - _WINDOW_S
        while self._spent and self._spent[0][0] <= since_s:
            self._spent.popleft()


def _leading_int(value: str | None) -> int | None:
    # The draft allows a list of policies behind the number: "1250, 1250;w=60".
    digits = (value or "").partition(",")[0].partition(";")[0].strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else None
