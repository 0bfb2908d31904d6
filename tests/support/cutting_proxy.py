"""A way to a server that breaks off in the middle of what the server says."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

_BLOCK = 16_384


class CuttingProxy:
    """Passes connections on, and cuts some of them.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        port_behind: Where the server does.
        cuts: After how many bytes from the server the next connections are cut, one each; of several that are open
            whichever gets there first. Empty: nothing is cut.
    """

    def __init__(self, port: int) -> None:
        self.cuts: list[int] = []
        self.port_behind = port
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        # Closing alone does not wake whoever waits in accept.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.port_behind))
                except OSError:
                    client.close()
                    continue
                for way in ((client, server, False), (server, client, True)):
                    threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, giver: socket.socket, taker: socket.socket, is_answer: bool) -> None:
        passed = 0
        with suppress(OSError):
            while data := giver.recv(_BLOCK):
                cut = self._cut_at(passed, passed + len(data)) if is_answer else None
                if cut is not None:
                    taker.sendall(data[: cut - passed])
                    break
                taker.sendall(data)
                passed += len(data)
        for side in (giver, taker):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)
            side.close()

    def _cut_at(self, begin: int, end: int) -> int | None:
        with self._lock:
            if self.cuts and begin <= self.cuts[0] < end:
                return self.cuts.pop(0)
        return None


@contextmanager
def cutting(port: int, cuts: Sequence[int] = ()) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(port)
    proxy.cuts = list(cuts)
    try:
        yield proxy
    finally:
        proxy.close()
