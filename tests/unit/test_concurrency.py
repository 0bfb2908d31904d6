"""The upload concurrency finds its level: it rises while answers are steady, falls with queues and refusals."""

import asyncio

import pytest

from shared.clients.onelake.concurrency import FLOOR, START, AdaptiveLimit


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


async def full_window(limit: AdaptiveLimit, clock: Clock, latency_s: float) -> None:
    """One window of answers while somebody waits for a place."""
    blockers = [asyncio.create_task(limit.__aenter__()) for _ in range(limit.level + 1)]
    await asyncio.sleep(0)
    for _ in range(60):
        clock.now_s += 0.01
        limit.answered(latency_s)
    for task in blockers:
        await asyncio.wait_for(task, 10)
        await limit.__aexit__()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_rises_to_the_ceiling_while_answers_are_steady(clock: Clock) -> None:
    limit = AdaptiveLimit(256, now_s=clock)
    assert limit.level == START
    for _ in range(10):
        await full_window(limit, clock, 0.04)
    assert limit.level == 256
    assert "steady" in limit.last_change.reason


async def test_does_not_rise_where_nobody_waits_for_a_place(clock: Clock) -> None:
    limit = AdaptiveLimit(256, now_s=clock)
    for _ in range(200):
        clock.now_s += 0.01
        limit.answered(0.04)
    assert limit.level == START


async def test_falls_when_answers_queue_and_rises_in_small_steps_afterwards(clock: Clock) -> None:
    limit = AdaptiveLimit(256, now_s=clock)
    for _ in range(3):
        await full_window(limit, clock, 0.04)
    high = limit.level
    await full_window(limit, clock, 0.2)
    fallen = limit.level
    assert fallen < high
    assert "queue" in limit.last_change.reason
    clock.now_s += 5
    before = limit.level
    await full_window(limit, clock, 0.04)
    assert before < limit.level <= before + max(2, before // 10) * 3


async def test_a_refusal_halves_once_for_all_that_were_told_at_the_same_time(clock: Clock) -> None:
    limit = AdaptiveLimit(256, now_s=clock)
    for _ in range(10):
        await full_window(limit, clock, 0.04)
    for _ in range(50):
        limit.refused("429")
    assert limit.level == 128
    clock.now_s += 2
    limit.refused("429")
    assert limit.level == 64
    for _ in range(20):
        clock.now_s += 2
        limit.refused("429")
    assert limit.level == FLOOR


async def test_a_fixed_number_stays(clock: Clock) -> None:
    limit = AdaptiveLimit(7, fixed=True, now_s=clock)
    limit.refused("429")
    await full_window(limit, clock, 3.0)
    assert limit.level == 7


@pytest.mark.parametrize("fixed", [True, False])
async def test_never_more_in_flight_than_the_level_and_cancelled_waiters_lose_no_place(fixed: bool) -> None:
    limit = AdaptiveLimit(5, fixed=fixed)
    inside = 0
    most = 0

    async def work() -> None:
        nonlocal inside, most
        async with limit:
            inside += 1
            most = max(most, inside)
            try:
                await asyncio.sleep(0)
            finally:
                inside -= 1

    tasks = [asyncio.create_task(work()) for _ in range(200)]
    await asyncio.sleep(0)
    for task in tasks[::3]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 5
    await asyncio.wait_for(asyncio.gather(*(work() for _ in range(20))), 30)


async def test_the_larger_moves_are_remembered_with_their_reasons(clock: Clock) -> None:
    limit = AdaptiveLimit(256, now_s=clock)
    for _ in range(5):
        await full_window(limit, clock, 0.04)
    limit.refused("429 from the service")
    now = limit.now()
    assert (now.level, now.reason) == (128, "429 from the service")
    assert [change.level for change in now.changes] == [START, 128, 256, 128]
    assert now.changes[0].reason == "start"
    assert sorted(change.at for change in now.changes) == [change.at for change in now.changes]
