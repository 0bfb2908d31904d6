"""How hard a database may be worked: by all of this process that use the same setting."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from shared.errors import Throttled

_WAIT_S = 120.0


class ConnectionQuota:
    """Connections of one setting that are open in this process."""

    def __init__(self, setting: str) -> None:
        self._setting = setting
        self._open = 0
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, count: int, most: int, *, wait_s: float = _WAIT_S) -> Iterator[None]:
        """Holds ``count`` connections, all or none, waiting until there are no more than ``most``.

        Raises:
            Throttled: code ``connections_in_use``, after ``wait_s``.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._open + count <= most, timeout=wait_s):
                raise Throttled(
                    f"{self._open} of {most} connections are in use; raise source.max_connections or run fewer at once",
                    code="connections_in_use",
                    subject=self._setting,
                )
            self._open += count
        try:
            yield
        finally:
            with self._changed:
                self._open -= count
                self._changed.notify_all()


class RowPace:
    """Rows a second of one setting, over all its sessions of this process."""

    def __init__(self) -> None:
        self._free_at = 0.0
        self._lock = threading.Lock()

    def delay_s(self, rows: int, rows_per_s: int) -> float:
        """How long to wait now that so many rows came."""
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now) + rows / rows_per_s
            return self._free_at - now


_lock = threading.Lock()
_quotas: dict[str, ConnectionQuota] = {}
_paces: dict[str, RowPace] = {}


def quota_of(setting: str) -> ConnectionQuota:
    with _lock:
        return _quotas.setdefault(setting, ConnectionQuota(setting))


def pace_of(setting: str) -> RowPace:
    with _lock:
        return _paces.setdefault(setting, RowPace())
