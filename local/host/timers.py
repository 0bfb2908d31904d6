"""Timer triggers: NCRONTAB schedules whose last and next occurrence survive the process.

Source: https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from azure.functions import meta

from local.host.app_index import TIMER_TRIGGER, AppIndex, IndexedFunction, binding_converter
from local.host.durable.events import now_text, utc_text
from local.host.durable.store import ScheduleState, Store
from local.host.invoke import FunctionRunner
from local.host.settings import HostError, resolve_setting
from shared.policy.ncrontab import Schedule, parse

_log = logging.getLogger("Host.Triggers.Timer")
_Result = TypeVar("_Result")
_LONGEST_SLEEP_S: Final = 60.0


class Submit(Protocol):
    """Runs an operation on the store's thread."""

    def __call__(self, operation: Callable[[], _Result]) -> Awaitable[_Result]: ...


@dataclass(frozen=True, slots=True)
class TimerFunction:
    """A timer trigger.

    Attributes:
        is_monitored: Whether its occurrences are kept, so that one missed while the host was down fires once.
    """

    function: IndexedFunction
    schedule: Schedule
    runs_on_startup: bool
    is_monitored: bool


def timer_functions(app: AppIndex) -> list[TimerFunction]:
    """The timer triggers of the app.

    Raises:
        HostError: A schedule is not NCRONTAB, or names a setting that is not there.
    """
    found = []
    for function in app.of_type(TIMER_TRIGGER):
        where = f"the schedule of function '{function.name}'"
        expression = resolve_setting(str(function.trigger["schedule"]), where)
        try:
            schedule = parse(expression)
        except ValueError as error:
            raise HostError(f"Function '{function.name}' cannot be scheduled. {error}") from error
        wants_monitor = function.trigger.get("useMonitor") is not False
        found.append(
            TimerFunction(
                function=function,
                schedule=schedule,
                runs_on_startup=function.trigger.get("runOnStartup") is True,
                is_monitored=wants_monitor and _is_at_least_a_minute(schedule),
            )
        )
    return found


def _is_at_least_a_minute(schedule: Schedule) -> bool:
    """As on the platform, schedules that fire more often than once a minute are not monitored."""
    first = schedule.next_after(datetime.now(UTC))
    return schedule.next_after(first) - first >= timedelta(minutes=1)


class TimerLoop:
    """Fires the timer triggers, each in a task of its own, so that one never overlaps itself."""

    def __init__(
        self,
        timers: list[TimerFunction],
        store: Store,
        submit: Submit,
        runner: FunctionRunner,
        bind_clients: Callable[[IndexedFunction], dict[str, str]],
    ) -> None:
        self._timers = timers
        self._store = store
        self._submit = submit
        self._runner = runner
        self._bind_clients = bind_clients
        self._tasks: list[asyncio.Task[None]] = []
        self._stopping = asyncio.Event()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._run(timer)) for timer in self._timers]

    async def drain(self) -> None:
        """Fire no more; returns when the last call has ended and is recorded."""
        self._stopping.set()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def fire_by_hand(self, name: str) -> bool:
        """Call a timer function now, as the admin API does; False when there is none of that name."""
        for timer in self._timers:
            if timer.function.name.lower() == name.lower():
                await self._fire(timer, None, is_past_due=False, reason="This function was called via the admin API")
                return True
        return False

    async def _run(self, timer: TimerFunction) -> None:
        state = await self._initial_state(timer)
        missed = datetime.now(UTC) > datetime.fromisoformat(state.next_at)
        if missed or timer.runs_on_startup:
            await self._fire(timer, state, is_past_due=missed, reason="Timer fired at host start")
            state = await self._advance(timer, state)
        while await self._wait_until(datetime.fromisoformat(state.next_at)):
            await self._fire(timer, state, is_past_due=False, reason="Timer fired")
            state = await self._advance(timer, state)

    async def _initial_state(self, timer: TimerFunction) -> ScheduleState:
        name = timer.function.name
        if timer.is_monitored:
            stored = await self._submit(partial(self._store.get_schedule, name))
            if stored is not None and stored.expression == timer.schedule.expression:
                return stored
        # A new or changed schedule has missed nothing.
        return await self._save(timer, None)

    async def _advance(self, timer: TimerFunction, state: ScheduleState) -> ScheduleState:
        # Written only now: a kill during the call leaves the occurrence due, and it fires again.
        due = datetime.fromisoformat(state.next_at)
        return await self._save(timer, utc_text(min(due, datetime.now(UTC))))

    async def _save(self, timer: TimerFunction, last_at: str | None) -> ScheduleState:
        following = utc_text(timer.schedule.next_after(datetime.now(UTC)))
        state = ScheduleState(timer.schedule.expression, last_at, following, now_text())

        def write() -> None:
            with self._store.transaction():
                self._store.put_schedule(timer.function.name, state)

        if timer.is_monitored:
            await self._submit(write)
        return state

    async def _wait_until(self, due: datetime) -> bool:
        """False when the host is stopping instead."""
        while True:
            remaining_s = (due - datetime.now(UTC)).total_seconds()
            if self._stopping.is_set():
                return False
            if remaining_s <= 0:
                return True
            try:
                # In steps: the machine may sleep, and then the clock moves on without the wait.
                await asyncio.wait_for(self._stopping.wait(), min(remaining_s, _LONGEST_SLEEP_S))
            except TimeoutError:
                continue

    async def _fire(self, timer: TimerFunction, state: ScheduleState | None, *, is_past_due: bool, reason: str) -> None:
        function = timer.function
        status: dict[str, Any] | None = None
        if state is not None and timer.is_monitored:
            status = {
                "Last": state.last_at or "0001-01-01T00:00:00+00:00",
                "LastUpdated": state.updated_at,
                "Next": state.next_at,
            }
        info = {"Schedule": {"AdjustForDST": True}, "ScheduleStatus": status, "IsPastDue": is_past_due}
        datum = meta.Datum(json.dumps(info), "json")
        request = binding_converter(TIMER_TRIGGER).decode(datum, trigger_metadata=None)
        try:
            arguments = {function.trigger_param: request, **self._bind_clients(function)}
            await self._runner.call(function, arguments, reason)
        except Exception:  # noqa: BLE001
            # A failed run is a run: the next one is at the next occurrence.
            _log.exception("Function 'Functions.%s' failed.", function.name)
