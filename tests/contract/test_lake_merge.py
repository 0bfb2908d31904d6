"""Changes by key into a Delta table, against a model in plain Python; read back by DuckDB."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from shared.ports.tables import LakeColumn
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
