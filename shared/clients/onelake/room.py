"""Room for one upload: in memory from the moment its content is read, and on the wire when its turn comes."""

import asyncio

from shared.clients.onelake.concurrency import AdaptiveLimit
from shared.clients.onelake.service import ByteBudget, block_bytes


def held_bytes(size_bytes: int) -> int:
    """What an upload of this size holds in memory at least: a small file whole, a large one block by block."""
    return min(size_bytes, block_bytes(size_bytes))


class Room:
    """What one upload takes from a process: memory first, then a place in flight. Implements ``ports.Room``.

    The order keeps uploads from waiting for each other: who is in flight needs no more than what it has, so that places
    and memory always come back.

    Args:
        size_bytes: As planned.
        memory: The process's.
        ahead: Places for uploads whose content is being read, or was, before it is their turn.
        uploads: Places in flight.
    """

    __slots__ = ("_ahead", "_is_ahead", "_memory", "_size_bytes", "_taken", "_uploads")

    def __init__(self, size_bytes: int, memory: ByteBudget, ahead: asyncio.Semaphore, uploads: AdaptiveLimit) -> None:
        self._size_bytes = size_bytes
        self._memory = memory
        self._ahead = ahead
        self._uploads = uploads
        self._taken = 0
        self._is_ahead = False

    async def __aenter__(self) -> "Room":
        await self._ahead.acquire()
        self._is_ahead = True
        try:
            self._taken = await self._memory.take(held_bytes(self._size_bytes))
        except BaseException:
            self._leave_ahead()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self._leave_ahead()
        self._memory.give(self._taken)

    def _leave_ahead(self) -> None:
        if self._is_ahead:
            self._is_ahead = False
            self._ahead.release()

    def holds(self, size_bytes: int) -> bool:
        """Whether content of this size fits, which may be more than was planned: what is free at once is taken."""
        missing = self._memory.at_most(held_bytes(size_bytes)) - self._taken
        if missing <= 0:
            return True
        if not self._memory.take_now(missing):
            return False
        self._taken += missing
        return True

    async def widen(self, size_bytes: int) -> None:
        """Wait until content of this size fits; hold no content and no place in flight meanwhile."""
        self._memory.give(self._taken)
        self._taken = 0
        self._taken = await self._memory.take(held_bytes(size_bytes))

    def turn(self) -> "_Turn":
        """A place in flight, as a context."""
        return _Turn(self)


class _Turn:
    __slots__ = ("_room",)

    def __init__(self, room: Room) -> None:
        self._room = room

    async def __aenter__(self) -> None:
        await self._room._uploads.__aenter__()
        self._room._leave_ahead()

    async def __aexit__(self, *_: object) -> None:
        await self._room._uploads.__aexit__()
