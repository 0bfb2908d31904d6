"""Memory for blocks: never more than the budget, and first come, first served."""

import asyncio

import pytest

from shared.clients.onelake.service import ByteBudget


async def test_a_large_one_is_not_overtaken_by_small_ones() -> None:
    budget = ByteBudget(100)
    await budget.take(60)
    large = asyncio.create_task(budget.take(80))
    await asyncio.sleep(0)
    small = asyncio.create_task(budget.take(10))
    await asyncio.sleep(0)
    assert not small.done()
    assert not budget.take_now(10)
    budget.give(60)
    assert await large == 80
    assert await small == 10


async def test_more_than_all_waits_until_it_is_alone() -> None:
    budget = ByteBudget(100)
    await budget.take(1)
    whole = asyncio.create_task(budget.take(10_000))
    await asyncio.sleep(0)
    assert not whole.done()
    budget.give(1)
    assert await whole == 100


@pytest.mark.parametrize("given_first", [False, True])
async def test_one_that_is_cancelled_keeps_nothing(given_first: bool) -> None:
    budget = ByteBudget(100)
    await budget.take(100)
    first, second = asyncio.create_task(budget.take(60)), asyncio.create_task(budget.take(60))
    await asyncio.sleep(0)
    if given_first:
        budget.give(100)
        first.cancel()
    else:
        first.cancel()
        budget.give(100)
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == 60
    budget.give(60)
    assert budget.take_now(100)
