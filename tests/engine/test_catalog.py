"""The catalog: merging changes into sorted parts is what a dict would do, whatever the parts are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.engine import catalog
from shared.engine.catalog import Catalog, PartWriter, apply_changes, decode_index, encode_index
from shared.policy.paths import sort_key
from tests.support.runs import memory_store

PATHS = st.lists(st.sampled_from(["a", "b", "c-", "d e", "ä", "\U0001f600"]), min_size=1, max_size=3).map("/".join)
CHANGES = st.dictionaries(PATHS, st.none() | st.integers(0, 9), max_size=12)
RUNS = st.lists(CHANGES, min_size=1, max_size=4)


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "ROWS_PER_PART", 4)


def row(path: str, value: int) -> dict[str, Any]:
    return {"path": path, "value": value}


async def stream(changes: Mapping[str, int | None]) -> AsyncIterator[tuple[str, dict[str, Any] | None]]:
    for path in sorted(changes, key=sort_key):
        value = changes[path]
        yield path, None if value is None else row(path, value)


def in_order(paths: Mapping[str, object]) -> list[str]:
    return sorted(paths, key=sort_key)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(RUNS)
async def test_changes_are_applied_as_to_a_dict(runs: list[dict[str, int | None]]) -> None:
    store = memory_store()
    model: dict[str, int] = {}
    parts: list[catalog.Part] = []
    for number, changes in enumerate(runs):
        kept = {part.key for part in parts}
        parts = await apply_changes(store, parts, stream(changes), f"catalog/{number}")
        for path, value in changes.items():
            if value is None:
                model.pop(path, None)
            else:
                model[path] = value
        found = await Catalog(store, parts).between(None, None)
        assert list(found) == in_order(model)
        assert {path: one["value"] for path, one in found.items()} == model
        assert Catalog(store, parts).rows == len(model)
        assert all(1 <= part.rows <= catalog.ROWS_PER_PART for part in parts)
        # Parts that stay are the old ones untouched; new ones never take an old one's name.
        assert {part.key for part in parts} <= kept | {f"catalog/{number}-{n:05d}.parquet" for n in range(99)}
        assert decode_index(encode_index(parts)) == parts


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(PATHS, st.integers(0, 9), max_size=15), st.none() | PATHS, st.none() | PATHS)
async def test_between_is_a_slice(rows: dict[str, int], after: str | None, last: str | None) -> None:
    store = memory_store()
    opened = Catalog(store, await apply_changes(store, [], stream(rows), "catalog/0"))
    expected = [
        path
        for path in in_order(rows)
        if (after is None or sort_key(path) > sort_key(after)) and (last is None or sort_key(path) <= sort_key(last))
    ]
    for _ in range(2):  # what is kept of the first reading must not change the second
        assert list(await opened.between(after, last)) == expected


async def test_pages_that_follow_each_other_read_each_part_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = memory_store()
    paths = [f"f{number:02d}" for number in range(20)]
    opened = Catalog(store, await apply_changes(store, [], stream(dict.fromkeys(paths, 1)), "catalog/0"))
    read: list[str] = []
    original = catalog.load_part

    async def counting(*arguments: Any) -> Any:
        read.append(arguments[1].key)
        return await original(*arguments)

    monkeypatch.setattr(catalog, "load_part", counting)
    bounds = [None, *paths]
    found = [path for low, high in zip(bounds, paths, strict=False) for path in await opened.between(low, high)]
    assert found == paths
    assert len(read) == len(opened.parts) == 5


async def test_untouched_parts_are_kept_and_not_written_again() -> None:
    store = memory_store()
    parts = await apply_changes(store, [], stream({f"f{number:02d}": 1 for number in range(12)}), "catalog/0")
    changed = await apply_changes(store, parts, stream({"f05": 2}), "catalog/1")
    assert [part.key for part in changed] == [parts[0].key, "catalog/1-00000.parquet", parts[2].key]


async def test_short_runs_do_not_leave_a_part_each() -> None:
    store = memory_store()
    parts: list[catalog.Part] = []
    for number in range(12):
        parts = await apply_changes(store, parts, stream({f"f{number:02d}": 1}), f"catalog/{number}")
    assert Catalog(store, parts).rows == 12
    assert len(parts) <= 6


async def test_a_part_that_is_gone_is_no_empty_part() -> None:
    store = memory_store()
    parts = await apply_changes(store, [], stream({"a": 1}), "catalog/0")
    await store.delete([parts[0].key])
    with pytest.raises(LookupError, match="is gone"):
        await Catalog(store, parts).between(None, None)


async def test_the_writer_cuts_at_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PartWriter(memory_store(), "x/part")
    for number in range(9):
        await writer.add(row(f"f{number}", number))
    await writer.flush()
    await writer.flush()
    assert [(part.first, part.last, part.rows) for part in writer.parts] == [
        ("f0", "f3", 4), ("f4", "f5", 2), ("f6", "f8", 3),
    ]  # fmt: skip
