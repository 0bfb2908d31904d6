"""The pace of Graph's calls against a service that counts in fixed minutes, in simulated time."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.clients.graph.units import ResourceUnits
from shared.errors import Throttled


class Time:
    """A clock that jumps to the next sleeper as soon as nobody has anything else to do."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def now_s(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.now + seconds, next(self._numbers), future))
        await future

    async def run_until(self, end: float) -> None:
        while True:
            for _ in range(12):
                await asyncio.sleep(0)
            if not self._sleepers or self._sleepers[0][0] > end:
                self.now = end
                return
            self.now, _, future = heapq.heappop(self._sleepers)
            if not future.done():
                future.set_result(None)


class Service:
    """Counts in minutes that begin at ``phase``; tells its limit from 80 % on, as SharePoint does."""

    def __init__(self, time: Time, limit: int, phase: float, *, tells: bool = True) -> None:
        self.time, self.limit, self.phase, self.tells = time, limit, phase, tells
        self.used: dict[int, int] = {}
        self.refused: dict[int, int] = {}

    def minute(self) -> tuple[int, float]:
        number, into = divmod(self.time.now - self.phase, 60)
        return int(number), into

    def call(self, units: int) -> tuple[bool, Mapping[str, str]]:
        number, into = self.minute()
        used = self.used[number] = self.used.get(number, 0) + units
        headers = {}
        if self.tells and used >= 0.8 * self.limit:
            headers = {
                "RateLimit-Limit": str(self.limit),
                "RateLimit-Remaining": str(max(0, self.limit - used)),
                "RateLimit-Reset": str(int(60 - into) + 1),
            }
        if used > self.limit:
            self.refused[number] = self.refused.get(number, 0) + 1
            return False, headers
        return True, headers


async def run(
    limit: int, phase: float, *, given_limit: int | None, latency: float, callers: int, workers: int = 1,
    minutes: int = 4, tells: bool = True,
) -> tuple[Service, list[ResourceUnits], int]:  # fmt: skip
    time = Time()
    service = Service(time, limit, phase, tells=tells)
    all_units = []

    async def caller(units: ResourceUnits, pause: list[float]) -> None:
        while True:
            await units.spend(1)
            await time.sleep(latency / 2)
            taken, headers = service.call(1)
            await time.sleep(latency / 2)
            units.observe(headers)
            if not taken:
                pause[0] = max(pause[0], time.now + 60 - service.minute()[1])

    tasks = []
    for _ in range(workers):
        pause = [0.0]
        units = ResourceUnits(
            given_limit, now_s=time.now_s, sleep=time.sleep, paused_s=lambda pause=pause: min(40.0, pause[0] - time.now)
        )
        all_units.append(units)
        tasks += [asyncio.create_task(caller(units, pause)) for _ in range(callers)]
    first = service.minute()[0]
    await time.run_until(time.now + 60 * minutes)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return service, all_units, first


@given(st.sampled_from([120, 600, 1250]), st.floats(0, 59), st.sampled_from([0.02, 0.3, 2.0]))
@settings(max_examples=6)
async def test_a_given_ceiling_is_used_and_never_met(limit: int, phase: float, latency: float) -> None:
    service, units, first = await run(limit, phase, given_limit=limit, latency=latency, callers=64)
    assert service.refused == {}
    whole = [service.used[number] for number in range(first + 1, first + 4)]
    assert min(whole) >= 0.95 * limit
    used, ceiling = units[0].share()
    assert ceiling == limit
    assert 0.95 * limit <= used <= limit


@given(st.sampled_from([600, 1250]), st.floats(0, 59), st.sampled_from([0.02, 0.3]), st.sampled_from([8, 128]))
@settings(max_examples=6)
async def test_a_limit_that_is_learnt_is_kept_after_the_first_minute(
    limit: int, phase: float, latency: float, callers: int
) -> None:
    service, units, first = await run(limit, phase, given_limit=None, latency=latency, callers=callers)
    assert set(service.refused) <= {first}
    assert min(service.used[number] for number in range(first + 1, first + 4)) >= 0.95 * limit
    assert units[0].ceiling == limit


async def test_several_workers_share_what_the_service_says_remains() -> None:
    service, _, first = await run(1250, 7.0, given_limit=None, latency=0.1, callers=8, workers=3)
    assert set(service.refused) <= {first}
    assert min(service.used[number] for number in range(first + 1, first + 4)) >= 0.95 * 1250


async def test_without_any_word_there_is_no_pace() -> None:
    time = Time()
    units = ResourceUnits(now_s=time.now_s, sleep=time.sleep)
    for _ in range(10_000):
        await units.spend(2)
    assert units.share() == (20_000, None)
    time.now += 61
    assert units.share() == (0, None)


async def test_the_lower_of_what_is_given_and_what_is_told_counts() -> None:
    units = ResourceUnits(1000)
    assert units.ceiling == 1000
    units.observe({"RateLimit-Limit": "2500, 2500;w=60"})
    assert units.ceiling == 1000
    units.observe({"RateLimit-Limit": "500"})
    assert units.ceiling == 500


@pytest.mark.parametrize("value", ["", "-1", "many", "1e9", "9" * 30])
async def test_headers_that_make_no_sense_are_as_none(value: str) -> None:
    units = ResourceUnits()
    units.observe({f"RateLimit-{name}": value for name in ("Limit", "Remaining", "Reset")})
    await units.spend(1)
    assert units.ceiling is None


async def test_a_long_pause_is_not_slept_through() -> None:
    units = ResourceUnits(paused_s=lambda: 300.0)
    with pytest.raises(Throttled) as raised:
        await units.spend(1)
    assert raised.value.retry_after_s == 300.0


async def test_a_caller_that_gives_up_leaves_its_place_in_the_queue() -> None:
    time = Time()
    units = ResourceUnits(60, now_s=time.now_s, sleep=time.sleep)
    for _ in range(5):
        await units.spend(1)
    waiting = [asyncio.create_task(units.spend(1)) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    await time.run_until(time.now + 10)
    assert [task.done() for task in waiting] == [True, True, True]
    assert units.share()[0] == 7
