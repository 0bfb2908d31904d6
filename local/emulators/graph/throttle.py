"""Resource units: what each kind of request costs, and the minute that an application may not overdraw.

Costs and limits: "How to avoid getting throttled or blocked in SharePoint Online" (docs/protocols/graph.md section 7).
The minute is a fixed one that begins with an application's first request; the page does not say how it slides.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from local.emulators.estate import GraphBehaviour
from local.emulators.graph.errors import throttled

# The request to a pre-authenticated URL does not pass through Graph; the redirect to it is what "download" costs.
UNITS = {
    "site": 1,
    "drives": 2,
    "drive": 1,
    "item": 1,
    "children": 2,
    "delta": 2,
    "delta_token": 1,
    "content": 1,
    "download": 0,
    "permissions": 5,
}
"""Resource units by kind of request; a batch costs what is in it."""

# Other traffic is served last when the service is busy, which is not emulated, only counted.
_DECORATIONS = ("ISV|", "NONISV|")
_BANDS = ((1000, 1250), (5000, 2500), (15000, 3750), (50000, 5000))
_MOST_UNITS = 6250
_TOLD_FROM = 0.8
_REMEMBERED_MINUTES = 10_000


@dataclass(slots=True)
class _Minute:
    client_id: str
    began_s: float
    units: int = 0
    requests: int = 0
    throttled: int = 0


class Throttle:
    """Counts, and refuses what is too much."""

    def __init__(self, behaviour: GraphBehaviour) -> None:
        self._requests: Counter[str] = Counter()
        self._throttled: Counter[str] = Counter()
        self._minutes: list[_Minute] = []
        self._current: dict[str, _Minute] = {}
        self._undecorated = 0
        self.follow(behaviour)

    def follow(self, behaviour: GraphBehaviour) -> None:
        """Puts other limits in force; what was used of the present minute stays used."""
        self._behaviour = behaviour
        self._first_left = behaviour.throttle_first
        self._limit = behaviour.units_per_minute
        if self._limit is None and behaviour.licences is not None:
            bands = (units for most, units in _BANDS if behaviour.licences <= most)
            self._limit = next(bands, _MOST_UNITS)

    def count(self, kind: str) -> None:
        """Counts a request that costs nothing."""
        self._requests[kind] += 1

    def charge(self, client_id: str, kind: str, user_agent: str) -> dict[str, str]:
        """Counts a request of an application and returns the headers that its answer carries.

        Raises:
            GraphError: 429; the request counts all the same.
        """
        self._requests[kind] += 1
        self._undecorated += not user_agent.startswith(_DECORATIONS)
        now_s = time.time()
        minute = self._current.get(client_id)
        if minute is None or now_s >= minute.began_s + self._behaviour.minute_s:
            minute = self._current[client_id] = _Minute(client_id, now_s)
            self._minutes.append(minute)
            del self._minutes[:-_REMEMBERED_MINUTES]
        minute.units += UNITS[kind]
        minute.requests += 1
        limit = self._limit
        headers = {}
        reset_s = math.ceil(minute.began_s + self._behaviour.minute_s - now_s)
        if limit is not None and minute.units >= _TOLD_FROM * limit:
            left = max(0, limit - minute.units)
            headers = {"RateLimit-Limit": str(limit), "RateLimit-Remaining": str(left), "RateLimit-Reset": str(reset_s)}
        if self._first_left:
            self._first_left -= 1
            reset_s = math.ceil(self._behaviour.retry_after_s)
        elif limit is None or minute.units <= limit:
            return headers
        minute.throttled += 1
        self._throttled[kind] += 1
        raise throttled({"Retry-After": str(reset_s), **headers})

    def reset(self) -> None:
        """Begins counting anew, the minutes included."""
        self._requests.clear()
        self._throttled.clear()
        self._minutes.clear()
        self._current.clear()
        self._undecorated = 0

    def document(self) -> dict[str, Any]:
        """Returns what was counted; the minutes in the order in which they began."""
        return {
            "requests": {kind: self._requests[kind] for kind in (*UNITS, "batch")},
            "throttled": dict(self._throttled),
            "undecorated": self._undecorated,
            "units": sum(minute.units for minute in self._minutes),
            "minutes": [
                {
                    "client_id": minute.client_id,
                    "began_s": minute.began_s,
                    "units": minute.units,
                    "requests": minute.requests,
                    "throttled": minute.throttled,
                }
                for minute in self._minutes
            ],
        }
