"""The durable engine: one thread that owns the SQLite file, and the activities that the event loop runs for it.

Episodes are Python code and transactions are disk access; on a thread of their own neither holds up the event loop,
on which the app's uploads run.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import traceback
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Final, TypeVar

from azure.functions import meta

from local.host.app_index import ACTIVITY_TRIGGER, AppIndex, IndexedFunction, binding_converter
from local.host.durable.episodes import EpisodeRunner
from local.host.durable.events import EventType, now_text
from local.host.durable.lifecycle import takes_results
from local.host.durable.management import Management
from local.host.durable.store import Instance, QueuedActivity, Store
from local.host.invoke import FunctionRunner

_log = logging.getLogger("Host.Triggers.DurableTask")
_Result = TypeVar("_Result")
_LONGEST_WAIT_S: Final = 60.0


class DurableEngine:
    """Runs episodes and activities.

    Args:
        bind_clients: Gives the values of a function's durable client parameters.
        max_activities: Activities that run at once.
        on_broken: Called on the event loop when the file can no longer be read or written; nothing is lost.
    """

    def __init__(
        self,
        store: Store,
        app: AppIndex,
        runner: FunctionRunner,
        bind_clients: Callable[[IndexedFunction], dict[str, str]],
        max_activities: int,
        on_broken: Callable[[sqlite3.Error], None],
    ) -> None:
        self._store = store
        self._app = app
        self._runner = runner
        self._bind_clients = bind_clients
        self._on_broken = on_broken
        self._loop = asyncio.get_running_loop()
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._ready: dict[str, None] = {}
        self._free_slots = max_activities
        self._last_claimed_id = 0
        self._has_unclaimed = True
        self._is_draining = False
        self._is_stopped = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._episodes = EpisodeRunner(store, app, self._set_back_child)
        self.management = Management(store, app, self._wake, self._episodes.forget)
        self._thread = threading.Thread(target=self._run, name="durable", daemon=True)

    def start(self) -> None:
        """Take up what an earlier process left, and go on."""
        self._wake(self._store.runnable_instances())
        self._thread.start()

    async def submit(self, operation: Callable[[], _Result]) -> _Result:
        """Run an operation on the store's thread and return what it returns."""
        future: Future[_Result] = Future()

        def job() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(operation())
            except BaseException as error:
                future.set_exception(error)
                if isinstance(error, sqlite3.Error):
                    raise

        self._jobs.put(job)
        return await asyncio.wrap_future(future)

    async def drain(self) -> None:
        """Start nothing more; returns when every activity that runs has had its result recorded."""

        def begin() -> None:
            self._is_draining = True

        await self.submit(begin)
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """End the thread; call `drain` first, or what runs is delivered again by the next process."""

        def end() -> None:
            self._is_draining = self._is_stopped = True

        self._jobs.put(end)
        await asyncio.to_thread(self._thread.join)

    # On the store's thread

    def _wake(self, instance_ids: Iterable[str]) -> None:
        for instance_id in instance_ids:
            self._ready[instance_id] = None

    def _set_back_child(self, instance: Instance) -> None:
        self.management.set_back_child(instance)

    def _run(self) -> None:
        try:
            while not self._is_stopped:
                self._run_jobs()
                if self._is_draining:
                    continue
                self._fire_timers()
                self._claim_activities()
                self._run_episode()
        except sqlite3.Error as error:
            self._loop.call_soon_threadsafe(self._on_broken, error)

    def _run_jobs(self) -> None:
        """Run every job that waits; with nothing else to do, wait for one."""
        try:
            job = self._jobs.get(timeout=self._idle_time_s())
        except queue.Empty:
            return
        job()
        # Only those that wait now: a busy client must not keep the episodes from running.
        for _ in range(self._jobs.qsize()):
            self._jobs.get()()

    def _idle_time_s(self) -> float:
        if self._is_draining:
            return _LONGEST_WAIT_S
        if self._ready or (self._has_unclaimed and self._free_slots):
            return 0.0
        due = self._store.next_timer()
        if due is None:
            return _LONGEST_WAIT_S
        remaining_s = (datetime.fromisoformat(due) - datetime.now(UTC)).total_seconds()
        # Not for the whole time: the machine may sleep, and then the clock moves on without the wait.
        return min(max(remaining_s, 0.0), _LONGEST_WAIT_S)

    def _fire_timers(self) -> None:
        due = self._store.next_timer()
        if due is not None and due <= now_text():
            with self._store.transaction():
                woken = self._store.take_due_timers(now_text())
            self._wake(woken)

    def _run_episode(self) -> None:
        instance_id = next(iter(self._ready), None)
        if instance_id is None:
            return
        del self._ready[instance_id]
        try:
            woken = self._episodes.run(instance_id)
        except sqlite3.Error:
            raise
        except Exception:  # noqa: BLE001
            # The transaction was rolled back; the message stays, so the next start tries it again.
            self._episodes.forget(instance_id)
            _log.exception("%s: an episode could not be run; it is tried again when the host starts.", instance_id)
            return
        self._wake(woken)
        self._has_unclaimed = True

    def _claim_activities(self) -> None:
        if not self._free_slots or not self._has_unclaimed:
            return
        claimed = self._store.activities_after(self._last_claimed_id, self._free_slots)
        self._has_unclaimed = len(claimed) == self._free_slots
        if claimed:
            self._last_claimed_id = claimed[-1].id
            self._free_slots -= len(claimed)
            self._loop.call_soon_threadsafe(self._start_activities, claimed)

    def _record(self, activity: QueuedActivity, kind: EventType, payload: str, details: str | None) -> None:
        """Put what an activity reported into its instance's inbox."""
        self._free_slots += 1
        with self._store.transaction():
            queued = self._store.get_activity(activity.id)
            if queued is None:
                return
            self._store.delete_activity(queued.id)
            instance = self._store.get_instance_state(queued.instance_id)
            if instance is None:
                return
            if instance.execution_id == queued.execution_id and takes_results(instance):
                self._store.put_message(
                    queued.instance_id, kind, task_id=queued.task_id, payload=payload, details=details
                )
            elif instance.is_rewound and kind is EventType.TASK_COMPLETED:
                self._store.record_late_result(queued.instance_id, queued.id, payload)
        self._wake((activity.instance_id,))

    # On the event loop

    def _start_activities(self, claimed: list[QueuedActivity]) -> None:
        for activity in claimed:
            task = self._loop.create_task(self._run_activity(activity))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _run_activity(self, activity: QueuedActivity) -> None:
        kind, details = EventType.TASK_COMPLETED, None
        try:
            payload = await self._call_activity(activity)
        except Exception as error:  # noqa: BLE001 - whatever user code raises is the task's failure
            kind = EventType.TASK_FAILED
            payload = _storable(f"Activity function '{activity.name}' failed:  {type(error).__name__}: {error}")
            details = _storable("".join(traceback.format_exception(error)))
            _log.error("%s: %s", activity.instance_id, payload, exc_info=error)
        await self.submit(lambda: self._record(activity, kind, payload, details))

    async def _call_activity(self, activity: QueuedActivity) -> str:
        function = self._app.activities.get(activity.name)
        if function is None:
            raise LookupError(f"the app no longer has the activity function '{activity.name}'")
        converter = binding_converter(ACTIVITY_TRIGGER)
        datum = meta.Datum("null" if activity.input is None else activity.input, "json")
        arguments = {function.trigger_param: converter.decode(datum, trigger_metadata=None)}
        arguments.update(self._bind_clients(function))
        result = await self._runner.call(function, arguments, f"instance {activity.instance_id}")
        return str(converter.encode(result, expected_type=None).value)


def _storable(text: str) -> str:
    """The text without lone surrogates, as names of files that are not UTF-8 bring into messages."""
    return text.encode("utf-8", "backslashreplace").decode()
