"""Calls the user's functions as the Python worker does: ``async def`` on the event loop, ``def`` in a thread pool."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import azure.functions as func

from local.host.app_index import ACTIVITY_TRIGGER, IndexedFunction

_local_storage = threading.local()
running_function: contextvars.ContextVar[str | None] = contextvars.ContextVar("running_function", default=None)


class FunctionTimeoutError(Exception):
    """The function ran longer than ``functionTimeout`` of host.json allows."""


class FunctionEndedError(Exception):
    """The function asked to end more than itself: it called `sys.exit`, or let a cancellation out."""


class _TraceContext(func._abc.TraceContext):
    """No tracing: the ids that a function may read are empty."""

    @property
    def trace_state(self) -> str:
        return ""

    @property
    def trace_parent(self) -> str:
        return ""

    @property
    def attributes(self) -> dict[str, str]:
        return {}


@dataclass(frozen=True, slots=True)
class _InvocationIdentity:
    invocation_id: str
    function: IndexedFunction


class InvocationContext(func.Context):
    """What a function sees as ``context``."""

    def __init__(self, identity: _InvocationIdentity) -> None:
        self._identity = identity

    @property
    def invocation_id(self) -> str:
        return self._identity.invocation_id

    @property
    def thread_local_storage(self) -> Any:
        return _local_storage

    @property
    def function_name(self) -> str:
        return self._identity.function.name

    @property
    def function_directory(self) -> str:
        return self._identity.function.directory

    @property
    def trace_context(self) -> Any:
        return _TraceContext()

    @property
    def retry_context(self) -> Any:
        return None


class FunctionRunner:
    """Runs user functions, counts those under way and logs their start and end.

    Args:
        timeout_s: Longest run of one call; None for no limit. An async function is cancelled; a thread cannot be, so
            its late result is thrown away.
    """

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        threads = os.environ.get("PYTHON_THREADPOOL_THREAD_COUNT", "")
        self._pool = ThreadPoolExecutor(int(threads) if threads.isdigit() else None, thread_name_prefix="function")
        self._under_way = 0
        self._has_abandoned_threads = False
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def has_abandoned_threads(self) -> bool:
        """Whether a thread may still run for a call that was given up; it would hold up an orderly exit."""
        return self._has_abandoned_threads

    async def wait_idle(self) -> None:
        """Wait until no call is under way."""
        await self._idle.wait()

    async def call(self, function: IndexedFunction, arguments: Mapping[str, Any], reason: str) -> Any:
        """Call the function and return what it returns; `reason` says in the log why it runs.

        Raises:
            FunctionTimeoutError: It ran too long.
            FunctionEndedError: It asked to end more than itself.
            Exception: What the function raises.
        """
        identity = _InvocationIdentity(str(uuid.uuid4()), function)
        keywords = dict(arguments)
        if function.wants_context:
            keywords["context"] = InvocationContext(identity)
        log = logging.getLogger(f"Function.{function.name}")
        # One line for each of thousands of activities would hide the lines that matter.
        level = logging.DEBUG if function.trigger_type == ACTIVITY_TRIGGER else logging.INFO
        log.log(level, "Executing 'Functions.%s' (Reason='%s', Id=%s)", function.name, reason, identity.invocation_id)
        started_s = time.monotonic()
        self._under_way += 1
        self._idle.clear()
        outcome = "Failed"
        name_token = running_function.set(function.name)
        try:
            result = await self._call_in_time(identity, keywords)
        except SystemExit as error:
            raise FunctionEndedError(f"The function called sys.exit({error.code!r}).") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise FunctionEndedError("The function was cancelled from within.") from error
        else:
            outcome = "Succeeded"
            return result
        finally:
            running_function.reset(name_token)
            self._under_way -= 1
            if not self._under_way:
                self._idle.set()
            duration_ms = int((time.monotonic() - started_s) * 1000)
            log.log(
                level,
                "Executed 'Functions.%s' (%s, Id=%s, Duration=%dms)",
                *(function.name, outcome, identity.invocation_id, duration_ms),
            )

    async def _call_in_time(self, identity: _InvocationIdentity, keywords: dict[str, Any]) -> Any:
        function = identity.function
        if function.is_async:
            pending = function.call(**keywords)
        else:
            call_context = contextvars.copy_context()

            def run_in_thread() -> Any:
                _local_storage.invocation_id = identity.invocation_id
                return call_context.run(function.call, **keywords)

            pending = asyncio.get_running_loop().run_in_executor(self._pool, run_in_thread)
        if self._timeout_s is None:
            return await pending
        try:
            async with asyncio.timeout(self._timeout_s) as limit:
                return await pending
        except TimeoutError as error:
            if not limit.expired():
                raise
            self._has_abandoned_threads = self._has_abandoned_threads or not function.is_async
            raise FunctionTimeoutError(
                f"Timeout value of {self._timeout_s:g} s was exceeded by function: Functions.{function.name}"
            ) from error
