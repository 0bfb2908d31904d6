"""Loads in full and by what changed, against a real database and the emulated lake; read back by DuckDB."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from tests.support.emulated import Lake
from tests.support.tables import Engine, item, ordered

Make = Callable[..., Engine]
TIED = {"table": "t", "mode": "incremental", "change": "watermark", "column": "at"}
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)"


@pytest.fixture
def make(lake: Lake, tmp_path: Path) -> Make:
    def engine(*tables: dict[str, Any], **spec: Any) -> Engine:
        return Engine(lake, tmp_path, list(tables), **spec)

    return engine


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_full_load_and_the_next_that_replaces_it(make: Make, form: str) -> None:
    engine = make({"table": "*"}, format=form)
    engine.source.run(TABLE, "CREATE TABLE empty (id INTEGER)", 'CREATE TABLE "odd [name]" (id INTEGER, "a b" TEXT)')
    engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(500)])
    engine.source.run("INSERT INTO \"odd [name]\" VALUES (1, 'x')")
    manifest = await engine.run(partition={"rows": 100, "parallel": 3})
    assert {one["table"]: one["status"] for one in manifest["items"]} == {
        "t": "success", "empty": "success", '[odd [name]]]': "success",
    }  # fmt: skip
    engine.assert_same()
    assert item(manifest)["source_checksum"] == item(manifest)["target_checksum"] is not None
    assert item(manifest)["plan"]["slices"] >= 5
    empty = engine.table("empty")
    names = (
        pa.schema(DeltaTable(str(empty.folder)).schema().to_arrow())
        if form == "delta"
        else pq.read_schema(empty.files()[0])
    )
    assert [field.name for field in names] == ["id"], "readers of an empty table meet its columns"
    odd = item(manifest, "[odd [name]]]")
    assert [list(row.values()) for row in engine.lake_rows(odd["path"].rpartition("/")[2])] == [[1, "x"]]
    engine.source.run("DELETE FROM t WHERE id < 100", "UPDATE t SET name = 'new' WHERE id = 200")
    await engine.run()
    engine.assert_same()
    assert engine.table().left_over() == []


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_ties_at_a_watermark_are_neither_lost_nor_doubled(make: Make, form: str) -> None:
    engine = make(TIED, format=form, write={"disposition": "append"})
    engine.source.run("CREATE TABLE t (name TEXT, at INTEGER)")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("a", 1), ("b", 5), ("c", 5), ("c", 5)])
    await engine.run()
    engine.assert_same()
    # The same row once more, another one, and one that looks like one from before.
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("c", 5), ("d", 5), ("e", 6)])
    second = item(await engine.run())
    engine.assert_same()
    assert (second["rows"], second["repeated"], second["from_watermark"], second["to_watermark"]) == (3, 3, "5", "6")
    assert second["source_checksum"] == second["target_checksum"]
    nothing = item(await engine.run())
    assert (nothing["rows"], nothing["repeated"], nothing["files"], nothing["status"]) == (0, 1, 0, "success")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("f", 6)])
    await engine.run()
    engine.assert_same()


async def test_late_rows_are_found_by_lookback_and_no_row_is_doubled(make: Make) -> None:
    engine = make({**TIED, "lookback": 10}, format="parquet")
    engine.source.run("CREATE TABLE t (name TEXT, at INTEGER)")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("a", n) for n in range(0, 100, 5)])
    await engine.run()
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("late", 86), ("a", 90), ("new", 101)])
    second = item(await engine.run())
    engine.assert_same()
    assert second["rows"] == 3
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("too late", 50), ("late", 91)])
    await engine.run()
    missing = [row for row in ordered(engine.source.rows("t")) if row not in engine.lake_rows()]
    assert missing == [{"name": "too late", "at": 50}]


async def test_a_watermark_with_seven_digits_is_compared_with_all_of_them(make: Make) -> None:
    engine = make(TIED, format="parquet", write={"disposition": "append"})
    engine.source.run("CREATE TABLE t (name TEXT, at TEXT)")
    stamp = "2026-01-01T00:00:00.123456"
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("a", f"{stamp}1")])
    await engine.run()
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("b", f"{stamp}2"), ("c", f"{stamp}1")])
    assert item(await engine.run())["to_watermark"] == f"{stamp}2"
    engine.assert_same()


async def test_the_greatest_row_may_disappear(make: Make) -> None:
    engine = make({**TIED, "lookback": 3}, format="parquet", write={"disposition": "append"})
    engine.source.run("CREATE TABLE t (name TEXT, at INTEGER)")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("a", 7), ("b", 8), ("c", 10)])
    await engine.run()
    engine.source.run("DELETE FROM t WHERE at = 10")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("d", 8)])
    gone = item(await engine.run())
    assert (gone["rows"], gone["to_watermark"]) == (1, "10")
    engine.source.many("INSERT INTO t VALUES (?, ?)", [("e", 9), ("f", 11)])
    await engine.run()
    assert sorted(row["name"] for row in engine.lake_rows()) == ["a", "b", "c", "d", "e", "f"]


async def test_a_table_without_rows_begins_when_it_has_some(make: Make) -> None:
    engine = make(TIED, format="parquet")
    engine.source.run(TABLE)
    assert item(await engine.run())["to_watermark"] is None
    assert item(await engine.run())["status"] == "success"
    engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(1, "a", 4), (2, "b", None)])
    second = item(await engine.run())
    assert second["rows"] == 1
    assert any("have no value in at" in warning for warning in second["warnings"])


async def test_changes_by_watermark_are_merged_by_key(make: Make) -> None:
    engine = make(TIED)
    engine.source.run(TABLE)
    engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, "old", n) for n in range(100)])
    await engine.run()
    engine.source.run("UPDATE t SET name = 'new', at = 200 WHERE id = 7", "INSERT INTO t VALUES (500, 'x', 201)")
    second = item(await engine.run())
    engine.assert_same()
    assert (second["load"], second["disposition"], second["updated"], second["inserted"]) == (
        "increment", "merge", 1, 1,
    )  # fmt: skip


@pytest.mark.parametrize("change", ["tracking", "cdc"])
@pytest.mark.parametrize("deletes", ["soft", "hard"])
async def test_changes_and_deletes_that_the_source_tells(make: Make, change: str, deletes: str) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": change}, write={"deletes": deletes})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, "old", n) for n in range(20)])
    assert item(await engine.run())["load"] == "full"
    engine.source.run(
        "UPDATE t SET name = 'first' WHERE id = 1", "UPDATE t SET name = 'second' WHERE id = 1",
        "DELETE FROM t WHERE id = 2", "INSERT INTO t VALUES (2, 'back', 0)", "DELETE FROM t WHERE id = 3",
        "INSERT INTO t VALUES (99, 'new', 0)",
    )  # fmt: skip
    second = item(await engine.run())
    engine.assert_same()
    assert (second["load"], second["reload_reason"]) == ("increment", None)
    marked = [row["id"] for row in engine.table().rows() if row.get("_deleted")]
    assert marked == ([3] if deletes == "soft" else [])
    # The very next version, and nothing in between.
    engine.source.run("UPDATE t SET name = 'third' WHERE id = 1")
    third = item(await engine.run())
    assert third["source_rows"] == 1, "the change at the boundary comes once"
    engine.assert_same()
    nothing = item(await engine.run())
    assert (nothing["source_rows"], nothing["table_version"]) == (0, None)


async def test_all_states_of_a_row_are_logged_in_their_order(make: Make) -> None:
    wish = {"table": "t", "mode": "incremental", "change": "cdc", "changes": "all"}
    engine = make(wish, format="parquet", write={"disposition": "append"})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0)")
    await engine.run()
    engine.source.run("UPDATE t SET name = 'b'", "UPDATE t SET name = 'c'", "DELETE FROM t")
    await engine.run()
    rows = sorted(engine.table().rows(), key=lambda row: (row["_position"], row["_order"]))
    assert [(row["_operation"], row["name"]) for row in rows] == [
        ("insert", "a"), ("update", "b"), ("update", "c"), ("delete", None),
    ]  # fmt: skip


@pytest.mark.parametrize("change", ["tracking", "cdc"])
async def test_changes_that_are_gone_lead_to_a_reload_that_is_told(make: Make, change: str) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": change})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    await engine.run()
    engine.source.clean_up()
    kept = item(await engine.run())
    assert kept["load"] == "increment", "nothing was lost as long as the cursor is not behind what was cleaned up"
    engine.source.run("DELETE FROM t WHERE id = 1")
    engine.source.clean_up()
    manifest = await engine.run()
    reloaded = item(manifest)
    assert reloaded["load"] == "full"
    assert "are gone" in reloaded["reload_reason"]
    assert manifest["reloaded"] == {"t": reloaded["reload_reason"]}
    engine.assert_same()
    engine.source.run("UPDATE t SET name = 'c'")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


async def test_history_keeps_every_state(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "tracking"}, write={"disposition": "history"})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    await engine.run()
    engine.source.run("UPDATE t SET name = 'A' WHERE id = 1", "DELETE FROM t WHERE id = 2")
    await engine.run()
    engine.assert_same()
    states = [(row["id"], row["name"], row["_is_current"]) for row in engine.table().rows("id, _is_current")]
    assert (1, "a", False) in states
    assert (1, "A", True) in states


async def test_reset_reads_one_table_anew(make: Make) -> None:
    second = {**TIED, "table": "u"}
    engine = make(TIED, second)
    engine.source.run(TABLE, TABLE.replace(" t ", " u "))
    for table in "tu":
        engine.source.many(f"INSERT INTO {table} VALUES (?, ?, ?)", [(1, "a", 1), (2, "b", 2)])
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id = 1", "DELETE FROM u WHERE id = 1")
    manifest = await engine.run(reset=["t"])
    assert (item(manifest)["load"], item(manifest, "u")["load"]) == ("full", "increment")
    assert "reset" in item(manifest)["reload_reason"]
    engine.assert_same()
    assert len(engine.lake_rows("u")) == 2


async def test_a_database_that_counts_its_changes_anew_is_read_anew(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "tracking"})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0), (3, 'b', 0)")
    engine.source.run("UPDATE t SET name = 'c' WHERE id = 2")
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id = 1", "DELETE FROM _log_t", "UPDATE _clock SET version = 0, floor = 0",
                      "UPDATE _tracking SET since = 0")  # fmt: skip
    reloaded = item(await engine.run())
    assert reloaded["load"] == "full" and "anew" in reloaded["reload_reason"]
    engine.assert_same()
    engine.source.run("UPDATE t SET name = 'd' WHERE id = 2")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


WITH_VERSION = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, v INTEGER)"
CHANGES: dict[str, dict[str, str]] = {
    "tracking": {}, "cdc": {}, "rowversion": {"column": "v"}, "watermark": {"column": "v"},
}  # fmt: skip


def lost_and_restored(make: Make, change: str) -> Engine:
    """A source whose versions are those of its transactions: two rows at 2, then one at 3, 4 and 5."""
    engine = make({"table": "t", "mode": "incremental", "change": change, **CHANGES[change]})
    engine.source.run(WITH_VERSION)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 2), (2, 'b', 2)")
    return engine


@pytest.mark.parametrize("change", ["tracking", "cdc", "rowversion"])
async def test_a_database_that_is_behind_what_was_read_of_it_is_read_anew(
    make: Make, change: str, tmp_path: Path
) -> None:
    engine = lost_and_restored(make, change)
    engine.source.keep(tmp_path / "backup")
    for version in (3, 4, 5):
        engine.source.run(f"INSERT INTO t VALUES ({version}, 'lost', {version})")
    await engine.run()
    engine.assert_same()
    engine.source.restore(tmp_path / "backup")
    engine.source.run("INSERT INTO t VALUES (9, 'other', 3)")
    reloaded = item(await engine.run())
    assert reloaded["load"] == "full" and "was read before" in reloaded["reload_reason"]
    engine.assert_same()
    engine.source.run("INSERT INTO t VALUES (10, 'more', 4)")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


@pytest.mark.parametrize("change", CHANGES)
async def test_a_database_that_says_that_it_was_restored_is_read_anew(make: Make, change: str, tmp_path: Path) -> None:
    """Though it has got beyond what was read of it, so that no position tells."""
    engine = lost_and_restored(make, change)
    engine.source.restore_mark("first")
    engine.source.keep(tmp_path / "backup")
    for version in (3, 4, 5):
        engine.source.run(f"INSERT INTO t VALUES ({version}, 'lost', {version})")
    await engine.run()
    engine.source.restore(tmp_path / "backup", "second")
    for version in (3, 4, 5, 6):
        engine.source.run(f"INSERT INTO t VALUES ({10 + version}, 'other', {version})")
    reloaded = item(await engine.run())
    assert reloaded["load"] == "full" and "restored" in reloaded["reload_reason"]
    engine.assert_same()
    # Who may no longer be told still knows what was told before.
    engine.source.restore_mark("")
    engine.source.run("INSERT INTO t VALUES (30, 'more', 7)")
    assert item(await engine.run())["load"] == "increment"
    engine.source.restore_mark("third")
    assert item(await engine.run())["load"] == "full"
    engine.assert_same()


@pytest.mark.parametrize("change", ["tracking", "cdc", "rowversion"])
async def test_a_database_that_is_set_back_after_the_plan_moves_no_cursor(
    make: Make, change: str, tmp_path: Path
) -> None:
    engine = lost_and_restored(make, change)
    engine.source.keep(tmp_path / "backup")
    for version in (3, 4, 5):
        engine.source.run(f"INSERT INTO t VALUES ({version}, 'lost', {version})")
    await engine.run()
    engine.source.run("INSERT INTO t VALUES (6, 'lost', 6)")

    async def between(turn: int, step: str) -> None:
        engine.source.restore(tmp_path / "backup")

    engine.between = between  # type: ignore[method-assign]
    failed = item(await engine.run())
    assert (failed["status"], failed["error_code"]) == ("failed", "position_expired")
    del engine.between
    assert item(await engine.run())["load"] == "full"
    engine.assert_same()


@pytest.mark.parametrize("after", [[], ["INSERT INTO t VALUES (7, 'new', 0), (8, 'new', 0)"]], ids=["empty", "filled"])
@pytest.mark.parametrize("began", ["before", "at the version"])
async def test_a_tracked_table_that_is_emptied_without_a_word_is_read_anew(
    make: Make, began: str, after: list[str]
) -> None:
    """By TRUNCATE TABLE, at the version that it was read to."""
    engine = make({"table": "t", "mode": "incremental", "change": "tracking"})
    engine.source.run(TABLE)
    if began == "before":
        engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    if began != "before":
        engine.source.track("t")
    await engine.run()
    assert item(await engine.run())["load"] == "increment", "rows are there from before tracking began"
    engine.source.truncate("t")
    for statement in after:
        engine.source.run(statement)
    reloaded = item(await engine.run())
    assert reloaded["load"] == "full" and "TRUNCATE TABLE" in reloaded["reload_reason"]
    engine.assert_same()
    engine.source.run("INSERT INTO t VALUES (9, 'later', 0)")
    await engine.run()
    engine.assert_same()
    engine.source.run("UPDATE t SET name = 'changed' WHERE id = 9")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


async def test_tracking_that_was_off_for_a_time_begins_anew(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "tracking"})
    engine.source.run(TABLE, "INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    engine.source.track("t")
    await engine.run()
    engine.source.run("UPDATE t SET name = 'untold'", "DELETE FROM _log_t", "UPDATE _tracking SET name = 'log2'",
                      "UPDATE _clock SET version = version - 1")  # fmt: skip
    reloaded = item(await engine.run())
    assert reloaded["load"] == "full" and "began anew" in reloaded["reload_reason"]
    engine.assert_same()


async def test_a_new_capture_takes_over_when_its_time_has_come(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "cdc"})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0)")
    await engine.run()
    engine.source.capture("t", "second", ["id", "name", "at"])
    for since in (None, None, 100):
        engine.source.run("UPDATE t SET name = name || 'b'")
        engine.source.run(f"UPDATE _captures SET since = {since or 'NULL'} WHERE name = 'second'")
        changed = item(await engine.run())
        assert (changed["load"], changed["reload_reason"]) == ("increment", None), "the old one still tells"
        engine.assert_same()
    engine.source.run("UPDATE _captures SET since = 3 WHERE name = 'second'", "UPDATE t SET name = 'c'")
    engine.source.run("DELETE FROM _captures WHERE name = 't'")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


async def test_a_capture_that_has_not_begun_yet_tells_nothing_and_nothing_is_missed(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "cdc"})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("UPDATE _captures SET since = NULL", "INSERT INTO t VALUES (1, 'a', 0)")
    await engine.run()
    engine.source.run("UPDATE t SET name = 'untold'", "DELETE FROM _log_t")
    again = item(await engine.run())
    assert again["load"] == "full" and "t being younger" in again["reload_reason"]
    engine.assert_same()
    engine.source.run("UPDATE _captures SET since = (SELECT version - 1 FROM _clock)")
    engine.source.run("UPDATE t SET name = 'told'")
    await engine.run()
    engine.source.run("UPDATE t SET name = 'told again'")
    assert item(await engine.run())["load"] == "increment"
    engine.assert_same()


async def test_what_a_capture_may_not_keep_is_told(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "cdc"}, {"table": "u"})
    engine.source.run(TABLE, "CREATE TABLE u (id INTEGER PRIMARY KEY)")
    for table in "tu":
        engine.source.track(table)
    engine.source.run("UPDATE _captures SET note = 'other characters'")
    for _ in range(2):
        manifest = await engine.run()
        assert "the capture instance t: other characters" in item(manifest)["warnings"]
        assert item(manifest, "u")["warnings"] == []


async def test_a_new_column_that_only_a_younger_capture_has_leads_to_a_reload(make: Make) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": "cdc"})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    await engine.run()
    engine.source.run("ALTER TABLE t ADD COLUMN extra TEXT")
    engine.source.run("UPDATE t SET extra = 'untold' WHERE id = 1")
    engine.source.capture("t", "second", ["id", "name", "at", "extra"], since=4)
    reloaded = item(await engine.run())
    assert reloaded["load"] == "full" and "the capture instance t lacks columns" in reloaded["reload_reason"]
    engine.assert_same()
    engine.source.run("INSERT INTO t VALUES (3, 'c', 0, NULL)")
    assert item(await engine.run())["load"] == "increment"


@pytest.mark.parametrize("change", ["tracking", "cdc"])
async def test_changes_that_are_cleaned_up_before_they_are_read_are_not_passed_over(make: Make, change: str) -> None:
    engine = make({"table": "t", "mode": "incremental", "change": change})
    engine.source.run(TABLE)
    engine.source.track("t")
    engine.source.run("INSERT INTO t VALUES (1, 'a', 0), (2, 'b', 0)")
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id = 1")

    async def between(turn: int, step: str) -> None:
        engine.source.clean_up()

    engine.between = between  # type: ignore[method-assign]
    failed = item(await engine.run())
    assert (failed["status"], failed["error_code"]) == ("failed", "position_expired")
    del engine.between
    assert item(await engine.run())["load"] == "full"
    engine.assert_same()


async def test_a_full_load_by_merge_tells_what_is_gone(make: Make) -> None:
    engine = make({"table": "t"}, write={"disposition": "merge", "deletes": "soft"})
    engine.source.run(TABLE, "INSERT INTO t VALUES (1, 'a', 1), (2, 'b', 2)")
    await engine.run()
    engine.source.run("DELETE FROM t WHERE id = 2", "UPDATE t SET name = 'A' WHERE id = 1")
    await engine.run()
    engine.assert_same()
    assert [row["id"] for row in engine.table().rows() if row["_deleted"]] == [2]
