"""Claims: however many starts there are at once, one of them wins."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from shared.clients.run_store import ObjectRunStore, open_run_store
from shared.engine.admission import claim, withdraw
from shared.errors import JobBusy
from tests.support.runs import memory_store

AT = "2026-11-21T02:00:00+00:00"


@pytest.fixture(params=["memory", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectRunStore:
    return memory_store() if request.param == "memory" else open_run_store(f"file:{tmp_path}", tmp_path, "")


class Engine:
    """Which runs are alive; a claimed run is alive from the moment of its claim."""

    def __init__(self) -> None:
        self.ended: set[str] = set()

    async def is_alive(self, run: str, claimed_at: str) -> bool:
        assert claimed_at == AT
        await asyncio.sleep(0)
        return run not in self.ended


async def test_of_many_claims_at_once_one_wins(store: ObjectRunStore) -> None:
    engine = Engine()
    for turn in range(5):
        runs = [f"run-{turn}-{number}" for number in range(24)]
        results = await asyncio.gather(
            *(claim(store, "job", run, AT, engine.is_alive) for run in runs), return_exceptions=True
        )
        won = [run for run, result in zip(runs, results, strict=True) if not isinstance(result, BaseException)]
        assert len(won) == 1
        assert all(isinstance(result, tuple | JobBusy) for result in results)
        engine.ended.add(won[0])


async def test_a_living_run_is_named(store: ObjectRunStore) -> None:
    engine = Engine()
    await claim(store, "job", "run-1", AT, engine.is_alive)
    with pytest.raises(JobBusy) as busy:
        await claim(store, "job", "run-2", AT, engine.is_alive)
    assert busy.value.run == "run-1"


async def test_earlier_runs_are_told_oldest_first_and_old_claims_go() -> None:
    store, engine = memory_store(), Engine()
    for number in range(30):
        _, earlier = await claim(store, "job", f"run-{number}", AT, engine.is_alive)
        engine.ended.add(f"run-{number}")
        assert earlier == [f"run-{n}" for n in range(max(0, number - 20), number)]
    assert len(await store.list("jobs/job/runs")) == 21


async def test_the_next_round_of_a_run_is_not_its_own_predecessor() -> None:
    store, engine = memory_store(), Engine()
    await claim(store, "job", "run-1", AT, engine.is_alive)
    engine.ended.add("run-1")
    _, earlier = await claim(store, "job", "run-1", AT, engine.is_alive)
    assert earlier == []


async def test_a_withdrawn_claim_leaves_the_job_free(store: ObjectRunStore) -> None:
    engine = Engine()
    key, _ = await claim(store, "job", "run-1", AT, engine.is_alive)
    await store.delete([key])
    await claim(store, "job", "run-2", AT, engine.is_alive)
    await withdraw(store, "job", "run-2")
    await claim(store, "job", "run-3", AT, engine.is_alive)


async def test_jobs_do_not_stand_in_each_others_way(store: ObjectRunStore) -> None:
    engine = Engine()
    for job in ("a", "a-b", "ab"):
        await claim(store, job, f"run-{job}", AT, engine.is_alive)


async def test_a_claim_that_was_overtaken_while_it_looked_loses(store: ObjectRunStore) -> None:
    engine = Engine()
    await claim(store, "job", "run-0", AT, engine.is_alive)
    engine.ended.add("run-0")
    numbers = itertools.count(1)

    async def slow(run: str, claimed_at: str) -> bool:
        # Another start claims and ends while this one still asks whether the old run is alive.
        number = next(numbers)
        await claim(store, "job", f"fast-{number}", AT, engine.is_alive)
        return False

    with pytest.raises(JobBusy):
        await claim(store, "job", "slow", AT, slow)
