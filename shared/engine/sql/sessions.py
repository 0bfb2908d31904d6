"""Sessions of a database, each on a thread of its own, for code that awaits.

Threads of their own, not those of a pool that others share: a session may wait long for its turn, and one that holds
connections must be able to go on meanwhile.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from shared.ports.tables import Selection, TableDatabase, TableSession, TableShape

if TYPE_CHECKING:
    import pyarrow as pa

T = TypeVar("T")


async def apart(function: Callable[..., T], *args: Any) -> T:
    """Call a function in a thread that is there for this alone."""
    executor = ThreadPoolExecutor(1)
    try:
        return await asyncio.get_running_loop().run_in_executor(executor, lambda: function(*args))
    finally:
        executor.shutdown(wait=False)


class SessionThread:
    """A session and its thread."""

    def __init__(self, session: TableSession) -> None:
        self.session = session
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="table")

    async def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        return await self._submit(function, *args, **kwargs)

    async def batches(self, selection: Selection, batch_bytes: int) -> "AsyncGenerator[pa.RecordBatch, None]":
        """The rows; the next batch is being read while one is looked at, and no more than that."""
        rows = self.session.batches(selection, batch_bytes=batch_bytes)
        coming = self._submit(next, rows, None)
        try:
            while (batch := await coming) is not None:
                coming = self._submit(next, rows, None)
                yield batch
        finally:
            coming.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._executor.submit(_end, rows)

    def close(self) -> None:
        self.session.close()
        self._executor.shutdown(wait=False)

    def _submit(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> "asyncio.Future[T]":
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._executor, lambda: function(*args, **kwargs))


def _end(rows: "Iterator[pa.RecordBatch]") -> None:
    close = getattr(rows, "close", None)
    if close is not None:
        close()


@asynccontextmanager
async def opened(
    database: TableDatabase, count: int, *, consistent: bool, shape: TableShape
) -> AsyncIterator[list[SessionThread]]:
    """Sessions for as long as the context lasts; whatever they are doing at its end is broken off."""
    context = database.sessions(count, consistent=consistent, for_table=shape)
    executor = ThreadPoolExecutor(1, thread_name_prefix="sessions")
    loop = asyncio.get_running_loop()
    entering = loop.run_in_executor(executor, context.__enter__)
    threads: list[SessionThread] = []
    try:
        threads = [SessionThread(session) for session in await asyncio.shield(entering)]
        yield threads
    finally:
        for thread in threads:
            await apart(thread.close)

        def leave() -> None:
            # Of sessions that were never opened there is nothing to leave.
            if entering.done() and not entering.cancelled() and entering.exception() is None:
                context.__exit__(None, None, None)

        await loop.run_in_executor(executor, leave)
        executor.shutdown(wait=False)
