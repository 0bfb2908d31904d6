"""The ledger: what a commit remembers and forgets, repeats, kills between its writes, runs that never committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from shared.clients.run_store import ObjectRunStore
from shared.engine import catalog
from shared.engine.ledger import commit_ledger, fold_unfinished, open_ledger
from shared.engine.run_records import RunRecords
from tests.support.runs import PAIR, job_spec, memory_store, put_page, record


class Killed(Exception):
    """Stands for kill -9 at a write."""


class DyingStore(ObjectRunStore):
    """A store whose process dies before its n-th change."""

    def __init__(self, inner: ObjectRunStore, after: int) -> None:
        super().__init__(inner._store)
        self.left = after

    def _change(self) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1

    async def put(self, key: str, data: bytes) -> None:
        self._change()
        await super().put(key, data)

    async def delete(self, keys: Sequence[str]) -> None:
        if keys:
            self._change()
        await super().delete(keys)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROWS_PER_PART", 3)


async def rows(store: ObjectRunStore, job: str = "job") -> dict[str, str]:
    found = await (await open_ledger(store, job, PAIR)).between(None, None)
    return {path: row["hash"] for path, row in found.items()}


async def moved(store: ObjectRunStore, run: str, *records: Any) -> RunRecords:
    opened = RunRecords(store, run)
    await opened.save("run.json", {"spec": job_spec()})
    await opened.save("prepared.json", {"pair": PAIR})
    await put_page(opened, "p00001", records)
    return opened


async def test_what_is_remembered() -> None:
    store = memory_store()
    first = await moved(
        store, "run-1",
        record("a"), record("b", "skipped"), record("c", "failed", hash=None, error_code="throttled"),
        record("d"), record("e"), record("f"), record("g", "skipped", hash=None, error_code="link_not_followed"),
    )  # fmt: skip
    assert await commit_ledger(first, "job") == 5
    assert list(await rows(store)) == ["a", "b", "d", "e", "f"]
    second = await moved(
        store, "run-2",
        record("a", "deleted"),
        record("b", "failed", error_code="throttled"),
        record("d", "failed", error_code="missing_in_lake"),
        record("e", hash="new"),
        record("h"),
    )  # fmt: skip
    await commit_ledger(second, "job")
    # What merely failed keeps its memory; what was deleted is forgotten; what is damaged in the lake has no hash.
    assert await rows(store) == {
        "b": "hash of b", "d": "", "e": "new", "f": "hash of f", "h": "hash of h",
    }  # fmt: skip


@pytest.mark.parametrize(("code", "left"), [
    ("missing_in_lake", {"a": ""}), ("size_mismatch", {"a": ""}), ("integrity_mismatch", {"a": ""}),
    ("not_verified", {}),
])  # fmt: skip
async def test_what_verification_found_damaged_is_remembered_as_such(code: str, left: dict[str, str]) -> None:
    store = memory_store()
    await commit_ledger(await moved(store, "run-1", record("a")), "job")
    await commit_ledger(await moved(store, "run-2", record("a", "failed", error_code=code)), "job")
    assert await rows(store) == left


async def test_a_repeat_changes_nothing_and_leaves_nothing_behind() -> None:
    store = memory_store()
    records = await moved(store, "run-1", *(record(f"f{number}") for number in range(8)))
    expected = None
    for _ in range(3):
        assert await commit_ledger(records, "job") == 8
        found = await rows(store)
        assert expected in (None, found)
        expected = found
        named = {part.key for part in (await open_ledger(store, "job", PAIR)).parts}
        assert set(await store.list("jobs/job/ledger")) == named | {"jobs/job/ledger/index.json"}


async def test_a_kill_at_any_write_leaves_the_old_ledger_or_the_new_one() -> None:
    old = {f"f{number}": f"hash of f{number}" for number in range(8)}
    new = {**old, "f3": "changed", "g": "hash of g"}
    del new["f6"]
    deaths = 0
    while True:
        store = memory_store()
        await commit_ledger(await moved(store, "run-1", *(record(path) for path in old)), "job")
        records = await moved(
            store, "run-2", record("f3", hash="changed"), record("f6", "deleted"), record("g"),
        )  # fmt: skip
        try:
            await commit_ledger(RunRecords(DyingStore(store, deaths), "run-2"), "job")
        except Killed:
            assert await rows(store) in (old, new)
            await commit_ledger(records, "job")
            assert await rows(store) == new
            deaths += 1
            continue
        assert await rows(store) == new
        break
    assert deaths >= 5, "parts, the index, the deletion and the mark are writes of their own"


async def test_a_run_that_never_committed_is_taken_over_once() -> None:
    store = memory_store()
    records = await moved(store, "run-1", record("a"))
    await fold_unfinished(records, "job")
    assert list(await rows(store)) == ["a"]
    await commit_ledger(await moved(store, "run-2", record("a", "deleted")), "job")
    await fold_unfinished(records, "job")
    assert await rows(store) == {}, "an older run must not speak again"


async def test_a_committed_a_dry_and_a_purged_run_are_not_taken_over() -> None:
    store = memory_store()
    committed = await moved(store, "run-1", record("a"))
    await commit_ledger(committed, "job")
    dry = await moved(store, "run-2", record("b"))
    await dry.save("run.json", {"spec": job_spec(dry_run=True)})
    purged = RunRecords(store, "run-3")
    for records in (committed, dry, purged):
        await fold_unfinished(records, "job")
    assert list(await rows(store)) == ["a"]


async def test_ledgers_of_jobs_with_like_names_are_apart() -> None:
    store = memory_store()
    await commit_ledger(await moved(store, "run-1", record("a")), "job")
    await commit_ledger(await moved(store, "run-2", record("b")), "job-2")
    await commit_ledger(await moved(store, "run-1-0", record("c")), "job")
    assert list(await rows(store)) == ["a", "c"]
    assert list(await rows(store, "job-2")) == ["b"]


async def test_a_job_that_moves_between_other_places_now_has_nothing_to_remember() -> None:
    store = memory_store()
    await commit_ledger(await moved(store, "run-1", record("a"), record("b")), "job")
    other = "folder /source -> workspace/another/Files/target"
    assert not (await open_ledger(store, "job", other)).parts
    elsewhere = await moved(store, "run-2", record("c"))
    await elsewhere.save("prepared.json", {"pair": other})
    assert await commit_ledger(elsewhere, "job") == 1
    assert list(await (await open_ledger(store, "job", other)).between(None, None)) == ["c"]
    assert not await rows(store)


async def test_a_run_that_never_knew_its_target_changes_nothing() -> None:
    store = memory_store()
    await commit_ledger(await moved(store, "run-1", record("a")), "job")
    stopped = RunRecords(store, "run-2")
    await stopped.save("run.json", {"spec": job_spec()})
    await commit_ledger(stopped, "job")
    await fold_unfinished(stopped, "job")
    assert list(await rows(store)) == ["a"]
