"""Rows that quality rules keep apart, from the database to the lake and to what a reader finds beside the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.emulated import LAKEHOUSE, Lake
from tests.support.lake_tables import EmulatedTable
from tests.support.tables import Engine, item

Make = Callable[..., Engine]
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)"
NAMED = {"table": "t", "rule": "not_null", "columns": ["name"], "action": "quarantine"}


@pytest.fixture
def make(lake: Lake, tmp_path: Path) -> Make:
    def engine(*tables: dict[str, Any], **spec: Any) -> Engine:
        made = Engine(lake, tmp_path, list(tables), quality=[NAMED], **spec)
        made.source.run(TABLE)
        made.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(20)])
        return made

    return engine


def kept_apart(engine: Engine, below: str) -> list[dict[str, Any]]:
    table = EmulatedTable(engine.lake, "parquet")
    table.path = below
    table.folder = engine.lake.emulators.lake_folder / LAKEHOUSE / below
    return table.rows()


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_they_are_found_beside_the_table_run_by_run(make: Make, form: str) -> None:
    engine = make({"table": "t"}, format=form)
    path = engine.table().path
    below = f"{path}/_quarantine" if form == "parquet" else f"Files/_quarantine/{path.removeprefix('Tables/')}"
    await engine.run()
    assert kept_apart(engine, below) == []
    for number in (3, 4):
        engine.source.run(f"UPDATE t SET name = NULL WHERE id = {number}")
        record = item(await engine.run())
        assert record["quality"]["verdict"] == "quarantined"
        assert record["source_checksum"] == record["target_checksum"], "rows that were kept apart are counted in"
    assert sorted(row["id"] for row in engine.lake_rows()) == [n for n in range(20) if n not in (3, 4)]
    rows = kept_apart(engine, below)
    assert sorted(row["id"] for row in rows) == [3, 3, 4], "each run has a folder of its own"
    assert {(json.loads(row["_rules"])[0], row["_reason"]) for row in rows} == {("not_null name", "name is null")}


@pytest.mark.parametrize("disposition", ["merge", "history"])
@pytest.mark.parametrize("deletes", ["soft", "hard"])
async def test_a_row_that_is_kept_apart_is_not_taken_for_one_that_was_deleted(
    make: Make, disposition: str, deletes: str
) -> None:
    engine = make({"table": "t"}, write={"disposition": disposition, "deletes": deletes})
    await engine.run()
    engine.source.run("UPDATE t SET name = NULL WHERE id = 3", "DELETE FROM t WHERE id = 5")
    record = item(await engine.run())
    assert {"id": 3, "name": "name 3", "at": 3} in engine.lake_rows(), "the lake keeps the row as it was"
    assert any("state before" in warning for warning in record["warnings"])
    assert any("reconcile: repair" in warning for warning in record["warnings"])
    found = item(await engine.run(reconcile="repair"))["reconcile"]
    assert (found["missing"], found["different"], found["extra"]) == (0, 0, 1)
    assert 5 not in [row["id"] for row in engine.lake_rows()]
    assert {"id": 3, "name": "name 3", "at": 3} in engine.lake_rows()
    engine.source.run("UPDATE t SET name = 'mended' WHERE id = 3")
    await engine.run()
    engine.assert_same()


async def test_an_increment_keeps_the_state_before_of_a_row_that_it_keeps_apart(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "tracking"})
    engine.source.track("t")
    await engine.run()
    engine.source.run("UPDATE t SET name = NULL WHERE id = 3", "DELETE FROM t WHERE id = 5")
    record = item(await engine.run())
    assert (record["quarantined"], record["deleted"]) == (1, 1)
    assert {"id": 3, "name": "name 3", "at": 3} in engine.lake_rows()
    assert 5 not in [row["id"] for row in engine.lake_rows()]


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"rule": "foreign_key", "columns": ["name"], "references": "other"}, "reference_columns"),
    ({"rule": "foreign_key", "columns": ["name"], "references": "other", "reference_columns": ["nowhere"]}, "nowhere"),
    ({"rule": "sql", "sql": "nowhere > 1"}, "nowhere"),
    ({"rule": "range", "columns": ["at"], "min": "soon"}, "soon"),
]


@pytest.mark.parametrize(("rule", "word"), UNFIT)
async def test_a_rule_that_the_database_does_not_take_is_named_before_anything_is_read(
    make: Make, rule: dict[str, Any], word: str
) -> None:
    engine = make({"table": "t"})
    engine.source.run("CREATE TABLE other (no INTEGER PRIMARY KEY)")
    for dry_run in (True, False):
        record = item(await engine.run(quality=[{"table": "t", "name": "mine", **rule}], dry_run=dry_run))
        assert (record["status"], record["step"]) == ("failed", "plan")
        assert "rule mine" in record["error_detail"]
        assert word in record["error_detail"]
    everywhere = [{"table": "*", "name": "mine", "action": "quarantine", **rule}, NAMED]
    engine.source.run("UPDATE t SET name = NULL WHERE id = 3")
    record = item(await engine.run(quality=everywhere))
    assert record["status"] == "success", record["error_detail"]
    said = {one["rule"]: one["verdict"] for one in record["quality"]["rules"]}
    assert said == {"mine": "not applicable", "not_null name": "quarantined"}
    assert sorted(row["id"] for row in engine.lake_rows()) == [n for n in range(20) if n != 3]
    found = item(await engine.run(quality=everywhere, reconcile="compare"))["reconcile"]
    assert found["verdict"] == "equal", "a comparison knows the same rows as kept apart"
