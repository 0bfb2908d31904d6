"""Changes by key into a Delta table, against a model in plain Python; read back by DuckDB."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import pytest

from shared.errors import Unsupported
from shared.ports.tables import KeyRange, LakeColumn
from tests.support.emulated import Lake
from tests.support.lake_tables import EmulatedTable, Row

COLUMNS = (LakeColumn("id", "int64"), LakeColumn("text", "string"))
CHANGES = (
    *COLUMNS,
    LakeColumn("_operation", "string"),
    LakeColumn("_position", "string"),
    LakeColumn("_order", "int64"),
)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def change(operation: str, id_: Any, text: str | None = None, order: int = 0) -> Row:
    return {"id": id_, "text": text, "_operation": operation, "_position": f"0x{order:04x}", "_order": order}


class Merging:
    """A table that changes come to, commit by commit, an hour apart."""

    def __init__(self, lake: Lake, **options: Any) -> None:
        self.table = EmulatedTable(lake, "delta")
        self.options = options
        self._numbers = itertools.count()

    async def rows(self, rows: Sequence[Row], *, disposition: str = "append", **options: Any) -> Any:
        return await self._commit(COLUMNS, rows, disposition=disposition, changes=False, **options)

    async def changes(self, changes: Sequence[Row], *, disposition: str = "merge", **options: Any) -> Any:
        return await self._commit(CHANGES, changes, disposition=disposition, changes=True, **options)

    async def _commit(
        self, columns: Sequence[LakeColumn], rows: Sequence[Row], *, disposition: str, changes: bool, **options: Any
    ) -> Any:
        number = next(self._numbers)
        opened = self.table.open(now=lambda: MOMENT + timedelta(hours=number), **self.options)
        parts = await self.table.write(opened, columns, rows, changes=changes)
        return await self.table.commit(
            opened, options.pop("columns", COLUMNS), parts, number=number, disposition=disposition,
            **{"key": ("id",), "deletes": "soft", **options},
        )  # fmt: skip

    def read(self, order_by: str = "id") -> list[Row]:
        return self.table.rows(order_by)

    def plain(self, order_by: str = "id") -> list[tuple[Any, ...]]:
        return [tuple(row.values())[:2] for row in self.read(order_by)]


@pytest.fixture
def merging(lake: Lake) -> Merging:
    return Merging(lake)


async def test_the_last_change_of_a_row_is_its_state(merging: Merging) -> None:
    await merging.rows([{"id": n, "text": f"old {n}"} for n in range(5)])
    done = await merging.changes(
        [
            change("update", 1, "second", order=9), change("update", 1, "first", order=8),
            change("delete", 2, order=10), change("insert", 7, "new", order=11),
            change("delete", 3, order=12), change("insert", 3, "again", order=13),
            change("insert", 8, "gone at once", order=14), change("delete", 8, order=15),
            change("delete", 99, order=16), change("upsert", 0, "old 0", order=17),
        ]
    )  # fmt: skip
    assert (done.inserted, done.updated, done.deleted) == (1, 2, 1), "what is as it was is no update"
    later = MOMENT + timedelta(hours=1)
    assert merging.read() == [
        {"id": 0, "text": "old 0", "_deleted": None, "_deleted_at": None},
        {"id": 1, "text": "second", "_deleted": False, "_deleted_at": None},
        {"id": 2, "text": "old 2", "_deleted": True, "_deleted_at": later},
        {"id": 3, "text": "again", "_deleted": False, "_deleted_at": None},
        {"id": 4, "text": "old 4", "_deleted": None, "_deleted_at": None},
        {"id": 7, "text": "new", "_deleted": False, "_deleted_at": None},
    ]
    done = await merging.changes(
        [change("delete", 2), change("insert", 4, "old 4"), change("upsert", 2, "back", order=1)]
    )
    assert (done.inserted, done.updated, done.deleted) == (0, 1, 0)
    assert merging.read()[2] == {"id": 2, "text": "back", "_deleted": False, "_deleted_at": None}
    assert merging.table.left_over() == []


async def test_hard_deletes_and_ignored_ones(merging: Merging) -> None:
    await merging.changes([change("insert", n, str(n)) for n in range(4)], deletes="hard")
    assert [*merging.read()[0]] == ["id", "text"]
    await merging.changes([change("delete", 1), change("update", 2, "two")], deletes="hard")
    assert merging.plain() == [(0, "0"), (2, "two"), (3, "3")]
    done = await merging.changes([change("delete", n) for n in range(3)], deletes="ignore")
    assert done.deleted == 0
    assert merging.plain() == [(0, "0"), (2, "two"), (3, "3")]
    await merging.changes([change("delete", n) for n in range(4)], deletes="hard")
    assert merging.read() == []
    assert merging.table.files() == []


async def test_history_keeps_each_state(merging: Merging) -> None:
    await merging.changes([change("insert", 1, "a"), change("insert", 2, "b", 1)], disposition="history")
    done = await merging.changes(
        [
            change("update", 1, "c", 1), change("update", 1, "d", 2), change("update", 1, "d", 3),
            change("delete", 2, order=4), change("insert", 3, "x", 5), change("delete", 3, order=6),
            change("insert", 3, "y", 7), change("delete", 9, order=8), change("upsert", 2, "b", 9),
        ],
        disposition="history",
    )  # fmt: skip
    assert (done.inserted, done.updated, done.deleted) == (3, 2, 2)
    first, second = MOMENT, MOMENT + timedelta(hours=1)
    us = timedelta(microseconds=1)

    def row(id_: int, text: str, since: datetime, until: datetime | None, *, lost: bool = False) -> Row:
        return {
            "id": id_, "text": text, "_valid_from": since, "_valid_to": until, "_is_current": until is None,
            "_deleted": lost, "_deleted_at": until if lost else None,
        }  # fmt: skip

    assert merging.read("id, _valid_from") == [
        row(1, "a", first, second),
        row(1, "c", second, second + us),
        row(1, "d", second + us, None),
        row(2, "b", first, second, lost=True),
        row(2, "b", second + us, None),
        row(3, "x", second, second + us, lost=True),
        row(3, "y", second + 2 * us, None),
    ]
    done = await merging.changes([change("upsert", 1, "d"), change("upsert", 3, "y", 1)], disposition="history")
    assert (done.inserted, done.updated, done.deleted) == (0, 0, 0), "what is as it was is no state"
    await merging.changes([change("delete", 1), change("upsert", 2, "z", 1)], disposition="history", deletes="hard")
    assert [(row["id"], row["text"], row["_is_current"]) for row in merging.read("id, _valid_from")] == [
        (2, "b", False), (2, "b", False), (2, "z", True), (3, "x", False), (3, "y", True),
    ]  # fmt: skip


@pytest.mark.parametrize("disposition", ["merge", "history"])
@pytest.mark.parametrize("memory_bytes", [1 << 26, 20_000])
async def test_more_changes_than_memory(lake: Lake, disposition: str, memory_bytes: int) -> None:
    """Range by range of keys, with the same end; states of one key are never torn apart."""
    merging = Merging(lake, memory_bytes=memory_bytes)
    columns = (LakeColumn("tenant", "string"), LakeColumn("id", "int64"), LakeColumn("text", "string"))
    changes = (*columns, *CHANGES[2:])
    random = Random(7)
    keys = [("one", number) for number in range(300)] + [(None, None), ("two", None)]

    async def apply(number: int, rows: list[Row]) -> Any:
        opened = merging.table.open(now=lambda: MOMENT + timedelta(hours=number), memory_bytes=memory_bytes)
        parts = []
        for name in range(3):
            parts += await merging.table.write(opened, changes, rows[name::3], changes=True, name=str(name))
        return await merging.table.commit(
            opened, columns, parts, number=number, disposition=disposition, key=("tenant", "id"), deletes="hard"
        )

    def some(count: int, operations: Sequence[str]) -> list[Row]:
        rows = []
        for order in range(count):
            tenant, id_ = random.choice(keys)
            rows.append(
                {"tenant": tenant, "id": id_, "text": f"{order} {'x' * 50}", "_operation": random.choice(operations),
                 "_position": "", "_order": order}
            )  # fmt: skip
        random.shuffle(rows)
        return rows

    model: dict[Any, list[str]] = {}
    for number in range(3):
        rows = some(1500, ["upsert", "upsert", "delete"])
        await apply(number, rows)
        for row in sorted(rows, key=lambda one: one["_order"]):
            key = (row["tenant"], row["id"])
            if row["_operation"] == "delete":
                model.pop(key, None)
            elif disposition == "merge":
                model[key] = [row["text"]]
            else:
                model.setdefault(key, []).append(row["text"])
    found: dict[Any, list[str]] = {}
    for row in merging.read("_valid_from" if disposition == "history" else "id"):
        found.setdefault((row["tenant"], row["id"]), []).append(row["text"])
    assert found == model
    if disposition == "history":
        current = [(row["tenant"], row["id"]) for row in merging.read("id") if row["_is_current"]]
        assert sorted(map(repr, current)) == sorted(map(repr, model))
    assert merging.table.left_over() == []


KEYS: dict[str, list[Any]] = {
    "bool": [True, False, None],
    "int16": [-(2**15), 0, 2**15 - 1],
    "int64": [-(2**63), 2**53, 2**53 + 1],
    "string": ["a", "A", "a ", "", "\u00e9", "e\u0301", "x" * 40 + "1", "x" * 40 + "2"],
    "binary": [b"", b"\x00", b"\xff\x00"],
    "date32": [date.min, date(2024, 2, 29), date.max],
    "timestamp[us]": [datetime.min, datetime(2024, 1, 1, 0, 0, 0, 1), datetime.max],  # noqa: DTZ001, DTZ901
    "timestamp[us, UTC]": [MOMENT, MOMENT + timedelta(microseconds=1), None],
    "decimal128(38, 4)": [Decimal("0.0001"), Decimal("-99999999999999999999999999999999.9999"), Decimal(7)],
}


@pytest.mark.parametrize("key_type", KEYS)
async def test_keys_of_every_type(merging: Merging, key_type: str) -> None:
    columns = (LakeColumn("k", key_type), LakeColumn("text", "string"))
    changes = (*columns, *CHANGES[2:])
    table, values = merging.table, KEYS[key_type]
    opened = table.open()
    rows = [{"k": value, "text": "old"} for value in values]
    await table.commit(opened, columns, await table.write(opened, columns, rows))
    changed = [
        {"k": values[0], "text": "new", "_operation": "update", "_order": 0},
        {"k": values[1], "_operation": "delete", "_order": 1},
    ]
    parts = await table.write(opened, changes, changed, changes=True)
    done = await table.commit(opened, columns, parts, number=1, disposition="merge", key=("k",), deletes="hard")
    assert (done.inserted, done.updated, done.deleted) == (0, 1, 1)
    kept = {(values[0], "new"), *((value, "old") for value in values[2:])}
    assert {(row["k"], row["text"]) for row in table.rows()} == kept
    assert len(table.rows()) == len(kept)


@pytest.mark.parametrize(
    ("key", "key_type", "said"),
    [((), "int64", "needs a key"), (("id",), "double", "floating"), (("no",), "int64", "'no'")],
)
async def test_keys_that_tell_no_rows_apart(merging: Merging, key: tuple[str, ...], key_type: str, said: str) -> None:
    columns = (LakeColumn("id", key_type), LakeColumn("text", "string"))
    for disposition in ("merge", "history"):
        with pytest.raises(Unsupported, match=said) as caught:
            await merging.table.commit(merging.table.open(), columns, [], disposition=disposition, key=key)
        assert caught.value.code == "key"
    assert not (await merging.table.open().state()).exists


async def test_rows_of_a_range_that_are_not_told_are_gone(merging: Merging) -> None:
    await merging.rows([{"id": n, "text": "a"} for n in [*range(10), None]])
    within = KeyRange("id", "3", "6")
    options: dict[str, Any] = {"disposition": "merge", "whole_key_range": within}
    done = await merging.rows([{"id": 4, "text": "a"}, {"id": 5, "text": "b"}], **options)
    assert (done.inserted, done.updated, done.deleted) == (0, 1, 1)
    assert [row["id"] for row in merging.read() if row["_deleted"]] == [3]
    assert (await merging.rows([{"id": 4, "text": "a"}, {"id": 5, "text": "b"}], **options)).deleted == 0
    done = await merging.rows([], **{**options, "deletes": "ignore"})
    assert done.deleted == 0
    first = KeyRange("id", None, "1", nulls=True)
    done = await merging.rows([{"id": 0, "text": "a"}], **{**options, "whole_key_range": first, "deletes": "hard"})
    assert done.deleted == 1
    done = await merging.rows(
        [{"id": n, "text": "a"} for n in range(9)],
        **{**options, "whole_key_range": KeyRange("id", None, None, nulls=True), "deletes": "hard"},
    )
    assert (done.inserted, done.updated, done.deleted) == (0, 2, 1), "one comes back, one is as it was"
    assert merging.plain() == [(n, "a") for n in range(9)]


async def test_a_full_load_into_a_history(merging: Merging) -> None:
    everything = KeyRange("id", None, None, nulls=True)
    options: dict[str, Any] = {"disposition": "history", "whole_key_range": everything}
    await merging.rows([{"id": n, "text": "a"} for n in range(4)], **options)
    done = await merging.rows([{"id": 1, "text": "a"}, {"id": 2, "text": "b"}, {"id": 9, "text": "c"}], **options)
    assert (done.inserted, done.updated, done.deleted) == (1, 1, 2)
    shown = [(row["id"], row["text"], row["_is_current"], row["_deleted"]) for row in merging.read("id, _valid_from")]
    assert shown == [
        (0, "a", False, True), (1, "a", True, False), (2, "a", False, False), (2, "b", True, False),
        (3, "a", False, True), (9, "c", True, False),
    ]  # fmt: skip
    done = await merging.rows([{"id": n, "text": "a"} for n in range(2)], **options)
    assert (done.inserted, done.updated, done.deleted) == (1, 0, 2), "what comes again is a new state"


async def test_only_files_with_changes_are_written_anew(merging: Merging) -> None:
    for start in (0, 100, 200):
        await merging.rows([{"id": n, "text": "x" * 50} for n in range(start, start + 100)])
    before = {file.name for file in merging.table.files()}
    merging.table.lake.emulators.reset_stats()
    done = await merging.changes([change("update", 150, "new"), change("update", 250, "x" * 50, 1)])
    after = {file.name for file in merging.table.files()}
    assert (len(before & after), len(after), done.updated) == (2, 3, 1)
    assert (await merging.changes([change("delete", 1000)])).files == 3
    assert {file.name for file in merging.table.files()} == after


async def test_a_merge_takes_new_columns_and_wider_types(merging: Merging) -> None:
    await merging.rows([{"id": 1, "text": "a"}, {"id": 2, "text": "b"}])
    narrow = (LakeColumn("id", "int64"), LakeColumn("text", "string"), LakeColumn("n", "int16"))
    table = merging.table
    opened = table.open()
    rows = [{"id": 2, "text": "c", "n": 7, "_operation": "update", "_order": 0}]
    parts = await table.write(opened, (*narrow, *CHANGES[2:]), rows, changes=True)
    await table.commit(opened, narrow, parts, number=1, disposition="merge", key=("id",), deletes="hard")
    wide = (*narrow[:2], LakeColumn("n", "int64"))
    rows = [{"id": 3, "text": "d", "n": 2**40, "_operation": "insert", "_order": 0}]
    parts = await table.write(opened, (*wide, *CHANGES[2:]), rows, changes=True)
    done = await table.commit(opened, wide, parts, number=2, disposition="merge", key=("id",), deletes="hard")
    assert (done.inserted, done.updated, done.files) == (1, 0, 1)
    assert table.rows("id") == [
        {"id": 1, "text": "a", "n": None}, {"id": 2, "text": "c", "n": 7}, {"id": 3, "text": "d", "n": 2**40}
    ]  # fmt: skip
    assert [one.type for one in (await table.open().state()).columns] == ["int64", "string", "int64"]
    assert table.left_over() == []


@pytest.mark.parametrize("key_type", KEYS)
async def test_new_rows_of_every_key_type(merging: Merging, key_type: str) -> None:
    columns = (LakeColumn("k", key_type), LakeColumn("text", "string"))
    table = merging.table
    opened = table.open()
    for number in range(2):
        rows = [{"k": value, "text": str(number)} for value in KEYS[key_type]]
        parts = await table.write(opened, columns, rows)
        await table.commit(opened, columns, parts, number=number, disposition="history", key=("k",), deletes="hard")
    current = [(row["k"], row["text"]) for row in table.rows() if row["_is_current"]]
    assert len(current) == len(KEYS[key_type])
    assert set(current) == {(value, "1") for value in KEYS[key_type]}
    assert len(table.rows()) == 2 * len(KEYS[key_type])


async def test_a_range_is_exact_to_100_ns(merging: Merging) -> None:
    columns = (LakeColumn("id", "int64"), LakeColumn("at", "timestamp[us]"), LakeColumn("at_100ns", "int16"))
    table = merging.table
    second = datetime(2024, 1, 1)  # noqa: DTZ001 - the source has no zone
    rows: list[Row] = [
        {"id": 10 * us + ticks, "at": second + timedelta(microseconds=us), "at_100ns": ticks}
        for us in range(3) for ticks in range(10)
    ]  # fmt: skip
    rows.append({"id": 99, "at": None, "at_100ns": None})
    opened = table.open()
    await table.commit(opened, columns, await table.write(opened, columns, rows))

    async def ids(within: KeyRange) -> list[int]:
        return sorted([row["id"] async for batch in opened.read(["id"], within=within) for row in batch.to_pylist()])

    assert await ids(KeyRange("at", "2024-01-01T00:00:00.0000007", "2024-01-01 00:00:00.0000012")) == [7, 8, 9, 10, 11]
    assert await ids(KeyRange("at", "2024-01-01T00:00:00.0000028", None)) == [28, 29]
    assert await ids(KeyRange("at", None, "2024-01-01", nulls=True)) == [99]
    assert await ids(KeyRange("at", "2024-01-01T02:00:00.0000029+02:00", "2025-01-01")) == [29]
    with pytest.raises(Unsupported, match="no bound"):
        await ids(KeyRange("at", "yesterday", None))
