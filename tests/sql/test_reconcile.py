"""Source and lake compared at any time, and what differs mended; DuckDB checks what readers find."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from tests.support.emulated import Lake
from tests.support.tables import Crash, Engine, item

Make = Callable[..., Engine]
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)"
WATERMARK = {"table": "t", "mode": "incremental", "change": "watermark", "column": "at"}
TRACKING = {"table": "t", "mode": "incremental", "change": "tracking"}
CDC = {"table": "t", "mode": "incremental", "change": "cdc"}


@pytest.fixture
def make(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    # So that tables of a test have several ranges.
    monkeypatch.setattr("shared.engine.sql.reconcile._LEAF_ROWS", 50)

    def engine(*tables: dict[str, Any], **spec: Any) -> Engine:
        return Engine(lake, tmp_path, list(tables), **{"partition": {"rows": 200, "parallel": 2}, **spec})

    return engine


def filled(engine: Engine, rows: int = 500) -> Engine:
    engine.source.run(TABLE)
    engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(rows)])
    return engine


async def reconciled(engine: Engine, how: str) -> tuple[dict[str, Any], dict[str, Any]]:
    record = item(await engine.run(reconcile=how))
    assert record["reconcile"] is not None, record["error_detail"]
    return record, record["reconcile"]


async def shown(engine: Engine) -> str:
    """The last run's manifest for people."""
    data = await engine.store.get(f"runs/sql-{engine.spec['name']}-{engine.runs}/manifest.md")
    assert data is not None
    return data.decode()


def counts(found: dict[str, Any]) -> tuple[int, int, int]:
    return found["missing"], found["different"], found["extra"]


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_equal_sides_are_said_to_be_equal_and_nothing_is_written(make: Make, form: str) -> None:
    engine = filled(make({"table": "t"}, format=form))
    before = item(await engine.run())
    files = engine.table().files()
    for how in ("compare", "repair"):
        record, found = await reconciled(engine, how)
        assert (record["status"], found["verdict"], counts(found)) == ("success", "equal", (0, 0, 0))
        assert found["source_rows"] == found["lake_rows"] == 500
        assert found["ranges"] > 1
        assert found["where"] == found["columns"] == []
    assert engine.table().files() == files
    assert before["status"] == "success"


async def test_rows_that_differ_are_counted_by_range_and_never_shown(make: Make) -> None:
    engine = filled(make({"table": "t"}))
    await engine.run()
    engine.source.run(
        "UPDATE t SET name = 'secret' WHERE id = 120", "DELETE FROM t WHERE id IN (7, 8)",
        "INSERT INTO t VALUES (1000, 'secret', 1000)", "UPDATE t SET at = NULL WHERE id = 499",
    )  # fmt: skip
    record, found = await reconciled(engine, "compare")
    assert (record["status"], record["error_code"], found["verdict"]) == ("failed", "lake_differs", "differs")
    assert counts(found) == (1, 2, 2)
    assert (found["source_rows"], found["lake_rows"]) == (499, 500)
    assert found["columns"] == ["at", "id", "name"]
    assert "1 rows missing, 2 rows different, 2 rows only in the lake" in record["error_detail"]
    assert sum(one["missing"] + one["different"] + one["extra"] for one in found["where"]) == 5
    assert 1 < len(found["where"]) < found["ranges"]
    assert "secret" not in repr(record)
    assert len(engine.lake_rows()) == 500, "comparing changes nothing"


@pytest.mark.parametrize("tables", [{"table": "t"}, WATERMARK, TRACKING], ids=["full", "watermark", "tracking"])
async def test_a_repair_mends_rows_of_every_kind_and_is_idempotent(make: Make, tables: dict[str, Any]) -> None:
    engine = filled(make(tables, write={"deletes": "hard"}))
    engine.source.track("t")
    await engine.run()
    untouched = {file.name for file in engine.table().files()}
    meddle(engine)
    record, found = await reconciled(engine, "repair")
    assert (record["status"], found["verdict"]) == ("success", "repaired")
    assert found["repair"]["how"] == "rows"
    assert counts(found) == (2, 1, 1)
    assert (found["repair"]["written"], found["repair"]["removed"]) == (3, 1)
    engine.assert_same()
    assert {file.name for file in engine.table().files()} & untouched, "files that are right stay as they are"
    assert engine.table().left_over() == []
    assert "the lake was mended: 3 rows written, 1 removed" in await shown(engine)
    _, again = await reconciled(engine, "repair")
    assert again["verdict"] == "equal"
    assert "the lake is what the source is" in await shown(engine)
    engine.source.run("UPDATE t SET name = 'later', at = 9000 WHERE id = 3")
    after = item(await engine.run())
    assert after["status"] == "success"
    assert after["load"] == ("full" if tables == {"table": "t"} else "increment"), "the cursor is as good as before"
    engine.assert_same()


def meddle(engine: Engine) -> None:
    """Somebody changes the table in the lake: two rows are gone, one is another, one should not be there."""
    table = DeltaTable(str(engine.table().folder))
    table.delete("id IN (3, 450)")
    table.update(predicate="id = 120", updates={"name": "'wrong'"})
    stray = pa.table({"id": [7000], "name": ["stray"], "at": [1]})
    write_deltalake(table, stray, mode="append")


# -- what is no difference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tables", [WATERMARK, TRACKING, CDC], ids=["watermark", "tracking", "cdc"])
async def test_what_the_next_increment_will_bring_is_pending_and_the_rest_differs(
    make: Make, tables: dict[str, Any]
) -> None:
    engine = filled(make(tables))
    engine.source.track("t")
    await engine.run()
    engine.source.run("UPDATE t SET name = 'new', at = 9000 WHERE id = 7", "INSERT INTO t VALUES (900, 'x', 9001)")
    if tables is not WATERMARK:
        engine.source.run("DELETE FROM t WHERE id = 9")
    record, found = await reconciled(engine, "compare")
    assert (record["status"], counts(found)) == ("success", (0, 0, 0))
    assert found["pending"] == (2 if tables is WATERMARK else 3)
    DeltaTable(str(engine.table().folder)).update(predicate="id = 120", updates={"name": "'wrong'"})
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found)) == ("repaired", (0, 1, 0))
    await engine.run()
    engine.assert_same()
    assert (await reconciled(engine, "compare"))[1]["verdict"] == "equal"


async def test_rows_that_a_rule_keeps_apart_are_missing_on_purpose(make: Make) -> None:
    rule = {"table": "t", "rule": "range", "columns": ["at"], "max": 300, "action": "quarantine"}
    engine = filled(make({"table": "t"}, quality=[rule]))
    await engine.run()
    assert len(engine.lake_rows()) == 301
    _, found = await reconciled(engine, "compare")
    assert (found["verdict"], counts(found)) == ("equal", (0, 0, 0))
    DeltaTable(str(engine.table().folder)).delete("id = 4")
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found)) == ("repaired", (1, 0, 0))
    assert len(engine.lake_rows()) == 301


async def test_a_changed_row_that_is_kept_apart_leaves_its_old_state_alone(make: Make) -> None:
    rule = {"table": "t", "rule": "not_null", "columns": ["name"], "action": "quarantine"}
    engine = filled(make(WATERMARK, quality=[rule]))
    await engine.run()
    engine.source.run("UPDATE t SET name = NULL, at = 9000 WHERE id = 7")
    await engine.run()
    # So that the row is no longer at the boundary, which the next increment reads again.
    engine.source.run("INSERT INTO t VALUES (900, 'x', 9001)")
    await engine.run()
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found), found["quarantined"]) == ("equal", (0, 0, 0), 1)
    assert {"id": 7, "name": "name 7", "at": 7} in engine.lake_rows()


async def test_rows_that_the_job_leaves_in_the_lake_are_kept(make: Make) -> None:
    engine = filled(make(WATERMARK, write={"deletes": "ignore"}))
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id < 3")
    for how in ("compare", "repair"):
        record, found = await reconciled(engine, how)
        assert (record["status"], found["verdict"], counts(found), found["kept"]) == ("success", "equal", (0, 0, 0), 3)
    assert len(engine.lake_rows()) == 500


async def test_rows_that_are_marked_deleted_are_gone_for_both(make: Make) -> None:
    engine = filled(make(WATERMARK))
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id < 3")
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found)) == ("repaired", (0, 0, 3))
    assert sorted(row["id"] for row in engine.table().rows() if row["_deleted"]) == [0, 1, 2]
    assert (await reconciled(engine, "compare"))[1]["verdict"] == "equal"
    # And one that comes back is missing, marked as it is.
    engine.source.run("INSERT INTO t VALUES (1, 'again', 1)")
    _, found = await reconciled(engine, "repair")
    assert counts(found) == (1, 0, 0)
    engine.assert_same()


async def test_of_a_history_the_current_states_are_compared_and_mended(make: Make) -> None:
    engine = filled(make(WATERMARK, write={"disposition": "history"}))
    await engine.run()
    engine.source.run("UPDATE t SET name = 'second', at = 9000 WHERE id = 7")
    await engine.run()
    assert (await reconciled(engine, "compare"))[1]["verdict"] == "equal"
    engine.source.run("UPDATE t SET name = 'unseen' WHERE id = 8", "DELETE FROM t WHERE id = 9")
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found)) == ("repaired", (0, 1, 1))
    engine.assert_same()
    assert sorted(row["name"] for row in engine.table().rows() if row["id"] == 8) == ["name 8", "unseen"]


async def test_a_large_table_takes_several_calls_and_says_the_same(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shared.engine.sql.reconcile._BUDGET_S", 0.0)
    engine = filled(make({"table": "t"}, partition={"rows": 50}))
    await engine.run()
    meddle(engine)
    calls: list[str] = []

    async def between(turn: int, step: str) -> None:
        calls.append(step)

    monkeypatch.setattr(engine, "between", between)
    _, found = await reconciled(engine, "compare")
    assert (found["verdict"], counts(found), found["source_rows"]) == ("differs", (2, 1, 1), 500)
    assert calls.count("plan") >= 9, "each range in a call of its own"
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found)) == ("repaired", (2, 1, 1))
    assert (found["repair"]["written"], found["repair"]["removed"]) == (3, 1)
    engine.assert_same()


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_worker_that_dies_leaves_a_repair_that_can_be_finished(make: Make, form: str) -> None:
    engine = filled(make({"table": "t"}, format=form))
    await engine.run()
    engine.source.run("UPDATE t SET name = 'other' WHERE id = 7", "DELETE FROM t WHERE id = 8")
    for key in ("/reconciled/", "/records/", "^jobs/"):
        for when in ("before", "after"):
            engine.source.run("UPDATE t SET name = name || 'x' WHERE id = 9")
            name, spec = engine.begin(), engine.spec | {"reconcile": "repair"}
            setattr(engine.store, when, re.compile(key))
            with pytest.raises(Crash):
                await engine.go_on(name, spec)
            record = item(await engine.go_on(name, spec))
            assert (record["status"], record["error_detail"]) == ("success", None)
            engine.assert_same()
            assert engine.table().left_over() == []


# -- what is read anew -------------------------------------------------------------------------------------------------


async def test_parquet_files_are_read_anew(make: Make) -> None:
    engine = filled(make({"table": "t"}, format="parquet"))
    await engine.run()
    engine.source.run("UPDATE t SET name = 'other' WHERE id = 7")
    record, found = await reconciled(engine, "repair")
    assert (record["status"], found["verdict"], found["repair"]["how"]) == ("success", "repaired", "reload")
    assert record["source_checksum"] == record["target_checksum"]
    engine.assert_same()


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_table_without_a_key_is_compared_row_by_row_and_read_anew(make: Make, form: str) -> None:
    engine = make({"table": "t"}, format=form)
    engine.source.run("CREATE TABLE t (a INTEGER, b TEXT)")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [(n // 2, "x") for n in range(200)])
    await engine.run()
    assert (await reconciled(engine, "compare"))[1]["verdict"] == "equal"
    engine.source.many("INSERT INTO t VALUES (?, ?)", [(5, "x"), (5, "x")])
    engine.source.run("DELETE FROM t WHERE a = 6")
    _, found = await reconciled(engine, "compare")
    assert counts(found) == (2, 0, 2), "a row that is there twice more is missing twice"
    _, found = await reconciled(engine, "repair")
    assert found["repair"]["how"] == "reload"
    engine.assert_same()


async def test_rows_without_a_value_to_cut_by_are_compared_too(make: Make) -> None:
    engine = make({"table": "t"}, partition={"rows": 50, "column": "a"})
    engine.source.run("CREATE TABLE t (a INTEGER, b TEXT)")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [(n if n % 10 else None, "x") for n in range(200)])
    await engine.run()
    _, found = await reconciled(engine, "compare")
    assert (found["verdict"], found["source_rows"], found["lake_rows"]) == ("equal", 200, 200)
    assert found["ranges"] > 2
    engine.source.run("INSERT INTO t VALUES (NULL, 'x')")
    assert counts((await reconciled(engine, "compare"))[1]) == (1, 0, 0)


async def test_a_table_that_is_not_there_is_loaded(make: Make) -> None:
    engine = filled(make(WATERMARK))
    record, found = await reconciled(engine, "compare")
    assert (record["error_code"], found["notes"]) == ("lake_differs", ["the table is not in the lake"])
    record, found = await reconciled(engine, "repair")
    assert (record["status"], found["verdict"]) == ("success", "repaired")
    engine.assert_same()


async def test_appended_rows_are_compared_as_of_the_last_run_and_never_lost(make: Make) -> None:
    engine = filled(make(WATERMARK, write={"disposition": "append"}))
    await engine.run()
    engine.source.run("UPDATE t SET name = 'second', at = 9000 WHERE id = 7", "INSERT INTO t VALUES (900, 'x', 9001)")
    await engine.run()
    engine.source.run("INSERT INTO t VALUES (901, 'not yet', 9002)")
    _, found = await reconciled(engine, "compare")
    assert (found["verdict"], counts(found), found["kept"]) == ("equal", (0, 0, 0), 1)
    DeltaTable(str(engine.table().folder)).delete("id = 4")
    record, found = await reconciled(engine, "compare")
    assert (record["error_code"], counts(found)) == ("lake_differs", (1, 0, 0))
    record = item(await engine.run(reconcile="repair"))
    assert (record["status"], record["error_code"]) == ("failed", "not_mendable")
    assert "reset" in record["error_detail"]


async def test_a_log_of_changes_cannot_be_compared(make: Make) -> None:
    engine = filled(make(TRACKING, write={"disposition": "append"}))
    engine.source.track("t")
    await engine.run()
    record = item(await engine.run(reconcile="compare"))
    assert (record["status"], record["error_code"]) == ("failed", "not_comparable")


# -- keys and columns --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        ("code TEXT PRIMARY KEY, name TEXT", [(f"Ä{n}", f"name {n}") for n in range(300)]),
        (
            "a INTEGER, b TEXT, name TEXT, PRIMARY KEY (a, b)",
            [(n // 3, f"b{n % 3}", f"name {n}") for n in range(300)],
        ),
        (
            "d DATE PRIMARY KEY, name TEXT",
            [(f"2026-{n // 28 + 1:02}-{n % 28 + 1:02}", f"name {n}") for n in range(300)],
        ),
    ],
    ids=["text", "two columns", "date"],
)
async def test_keys_of_every_kind(make: Make, columns: str, rows: list[tuple[Any, ...]]) -> None:
    engine = make({"table": "t"})
    engine.source.run(f"CREATE TABLE t ({columns})")
    marks = ", ".join("?" * len(rows[0]))
    engine.source.many(f"INSERT INTO t VALUES ({marks})", rows)
    await engine.run()
    engine.source.run(
        "UPDATE t SET name = 'other' WHERE name = 'name 7'", "DELETE FROM t WHERE name = 'name 100'",
        "UPDATE t SET name = NULL WHERE name = 'name 280'",
    )  # fmt: skip
    _, found = await reconciled(engine, "repair")
    assert (found["verdict"], counts(found)) == ("repaired", (0, 2, 1))
    assert by_name(engine.lake_rows()) == by_name(engine.source.rows("t"))


def by_name(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A source without a type for dates has them as text."""
    return sorted(({key: str(value) for key, value in row.items()} for row in rows), key=lambda row: row["name"])


async def test_a_new_column_is_told_and_mended(make: Make) -> None:
    engine = filled(make({"table": "t"}))
    await engine.run()
    engine.source.run("ALTER TABLE t ADD COLUMN vat INTEGER", "UPDATE t SET vat = 19, name = 'new' WHERE id = 7")
    _, found = await reconciled(engine, "compare")
    assert any("'vat'" in note for note in found["notes"])
    assert "not compared: vat" in found["notes"]
    assert counts(found) == (0, 1, 0)
    await reconciled(engine, "repair")
    (row,) = [row for row in engine.lake_rows() if row["id"] == 7]
    assert (row["name"], row["vat"]) == ("new", 19)
    engine.spec["schema"] = "strict"
    engine.source.run("ALTER TABLE t ADD COLUMN more INTEGER", "UPDATE t SET name = 'newer' WHERE id = 7")
    record = item(await engine.run(reconcile="repair"))
    assert record["error_code"] == "schema_changed"


@pytest.mark.parametrize("tables", [TRACKING, CDC], ids=["tracking", "cdc"])
async def test_a_source_that_is_behind_what_was_read_of_it_tells_no_pending_rows(
    make: Make, tables: dict[str, Any], tmp_path: Path
) -> None:
    engine = filled(make(tables))
    engine.source.track("t")
    engine.source.keep(tmp_path / "backup")
    engine.source.run("INSERT INTO t VALUES (900, 'lost', 900)")
    await engine.run()
    engine.source.restore(tmp_path / "backup")
    _, found = await reconciled(engine, "compare")
    assert (counts(found), found["pending"]) == ((0, 0, 1), 0)
    assert any("behind what was read of it" in note for note in found["notes"])
    await reconciled(engine, "repair")
    engine.assert_same()
    assert item(await engine.run())["load"] == "full", "a repair does not move the cursor"
    engine.source.run("INSERT INTO t VALUES (901, 'other', 901)")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


async def test_retry_compares_again(make: Make) -> None:
    engine = filled(make({"table": "t"}))
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id = 1")
    name = engine.begin()
    spec = engine.spec | {"reconcile": "compare"}
    assert item(await engine.go_on(name, spec))["status"] == "failed"
    engine.source.run("INSERT INTO t VALUES (1, 'name 1', 1)")
    again = item(await engine.go_on(name, spec, round_number=2))
    assert (again["status"], again["reconcile"]["verdict"]) == ("success", "equal")
