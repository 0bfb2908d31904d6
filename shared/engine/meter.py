"""What a worker moves, as log lines for a monitoring system: a few a minute, however many batches there are."""

import json
import logging
import time
from collections.abc import Callable

from shared.model.steps import Counts

_log = logging.getLogger("migration.metrics")
_EVERY_S = 10.0


class Meter:
    """Adds up batches and tells the sums now and then.

    A line is ``metrics`` and a JSON object. The same values are the record's ``custom_dimensions``, which exporters for
    Application Insights take over as customDimensions.
    """

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._began_s = now_s()
        self._sums: dict[str, int] = {}

    def add(self, counts: Counts, level: int) -> None:
        """Take a batch in; ``level`` is how many uploads are in flight at most."""
        for name in ("uploaded", "skipped", "renamed", "failed", "deleted", "bytes_done"):
            self._sums[name] = self._sums.get(name, 0) + counts[name]
        passed_s = self._now_s() - self._began_s
        if passed_s < _EVERY_S:
            return
        told = {"metric": "transfer", "seconds": round(passed_s, 1), "concurrency": level, **self._sums}
        _log.info("metrics %s", json.dumps(told), extra={"custom_dimensions": told})
        self._began_s, self._sums = self._now_s(), {}


METER = Meter()
