"""Crashes, writers at work, refusals: whatever happens, readers meet a state of the source, and no row is lost."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shared.errors import Configuration
from tests.support.emulated import Lake
from tests.support.tables import Crash, Engine, item, ordered

Make = Callable[..., Engine]
TABLE = "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)"
BY_SLICE = {"connection": "DB", "name": "src", "consistency": "slice"}
SMALL = {"rows": 20, "parallel": 2}
WATERMARK = {"table": "t", "mode": "incremental", "change": "watermark", "column": "at"}
TRACKING = {"table": "t", "mode": "incremental", "change": "tracking"}


@pytest.fixture
def make(lake: Lake, tmp_path: Path) -> Make:
    def engine(*tables: dict[str, Any], **spec: Any) -> Engine:
        made = Engine(lake, tmp_path, list(tables) or [{"table": "t"}], **spec)
        made.source.run(TABLE)
        made.source.track("t")
        made.source.many("INSERT INTO t VALUES (?, ?, ?)", [(n, f"name {n}", n) for n in range(100)])
        return made

    return engine


CRASHES = [
    ("after", r"/tables/p00001-t0"), ("before", r"/slices/p00001-t0/s0000"), ("after", r"/slices/p00001-t0/s0000"),
    ("before", r"/slices/p00001-t0/s00002"), ("before", r"^jobs/.*\.seen$"), ("after", r"^jobs/.*\.seen$"),
    ("before", r"^jobs/[^/]*/sql/[^-]*\.json$"), ("after", r"^jobs/[^/]*/sql/[^-]*\.json$"),
    ("before", r"/done/p00001-t0"), ("before", r"/records/p00001"), ("after", r"/records/p00001"),
]  # fmt: skip


@pytest.mark.parametrize("resumes", [True, False], ids=["goes on", "next run"])
@pytest.mark.parametrize(("form", "disposition", "consistency"), [
    ("parquet", "append", "snapshot"), ("parquet", "append", "slice"), ("delta", "append", "snapshot"),
    ("delta", "merge", "slice"),
])  # fmt: skip
async def test_a_crash_anywhere_loses_and_doubles_nothing(
    make: Make, form: str, disposition: str, consistency: str, resumes: bool
) -> None:
    source = {**BY_SLICE, "consistency": consistency}
    engine = make(WATERMARK, format=form, source=source, partition=SMALL, write={"disposition": disposition})
    number = 100
    for place, (when, pattern) in enumerate([("before", "^$"), *CRASHES, *CRASHES]):
        # Each of them in increments, and every third time in loads from the beginning too.
        if place <= len(CRASHES) or place % 3 == 0:
            load = "increment" if place <= len(CRASHES) else "full"
            changes: dict[str, Any] = {} if load == "increment" else {"reset": ["t"]}
            engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(number, "new", number), (number + 1, "n", number)])
            number += 1
            engine.source.many("INSERT INTO t VALUES (?, ?, ?)", [(number * 1000, "tied", number - 1)])
            number += 1
            setattr(engine.store, when, re.compile(pattern))
            run, spec = engine.begin(), engine.spec | changes
            try:
                await engine.go_on(run, spec)
            except Crash:
                source = ordered(engine.source.rows("t"))
                assert all(row in source for row in engine.lake_rows())
                if resumes:
                    await engine.go_on(run, spec)
            engine.store.before = engine.store.after = None
            if not resumes:
                await engine.run()
            engine.assert_same()
            assert engine.table().left_over() == [], (when, pattern, load)


async def test_a_crash_before_the_cursor_was_saved_is_mended_from_the_lake(make: Make) -> None:
    engine = make(TRACKING)
    await engine.run()
    engine.source.run("UPDATE t SET name = 'changed' WHERE id = 5")
    engine.store.before = re.compile(r"^jobs/")
    with pytest.raises(Crash):
        await engine.run()
    engine.assert_same()
    third = item(await engine.run())
    assert (third["load"], third["source_rows"]) == ("increment", 0), "what was committed is not read again"


@pytest.mark.parametrize("change", ["tracking", "cdc", "watermark"])
async def test_writers_during_a_load_by_slices_are_caught_up_with(make: Make, change: str) -> None:
    wish = {**TRACKING, "change": change} if change != "watermark" else WATERMARK
    engine = make(wish, source=BY_SLICE, partition=SMALL)
    moment = 1000

    async def between(turn: int, step: str) -> None:
        nonlocal moment
        moment += 1
        statements = [
            f"INSERT INTO t VALUES ({moment}, 'new', {moment})", f"INSERT INTO t VALUES (-{moment}, 'new', {moment})",
            f"UPDATE t SET name = '{step}', at = {moment} WHERE id % 7 = {moment % 7}",
            f"UPDATE t SET id = id + 5000, at = {moment} WHERE id = {moment % 50}",
        ]  # fmt: skip
        if change != "watermark":
            statements += [f"DELETE FROM t WHERE id % 11 = {moment % 11}"]
        else:
            # Nothing tells of what is deleted, and a key that changes is a row deleted.
            statements.pop()
        if turn == 0:
            engine.source.run(*statements)

    engine.between = between  # type: ignore[method-assign]
    first = item(await engine.run())
    assert len(first["passes"]) == 2
    assert [one["load"] for one in first["passes"]] == ["full", "increment"]
    engine.assert_same()
    del engine.between
    engine.source.run("DELETE FROM t WHERE id < 30" if change != "watermark" else "UPDATE t SET at = 9999")
    await engine.run()
    engine.assert_same()


async def test_a_snapshot_is_one_moment_though_others_write(make: Make) -> None:
    engine = make(source={**BY_SLICE, "consistency": "snapshot"}, partition=SMALL)
    before = ordered(engine.source.rows("t"))
    database = engine.source.database

    def writing(job: Any) -> Any:
        made = database(job)
        plain = made.sessions

        def sessions(*given: Any, **options: Any) -> Any:
            context = plain(*given, **options)
            enter = context.__enter__

            class Entered:
                def __enter__(self) -> Any:
                    found = enter()
                    if len(found) > 1:
                        engine.source.run("UPDATE t SET name = 'later'", "DELETE FROM t WHERE id > 50")
                    return found

                def __exit__(self, *error: object) -> None:
                    context.__exit__(None, None, None)

            return Entered()

        made.sessions = sessions  # type: ignore[method-assign]
        return made

    engine.source.database = writing  # type: ignore[method-assign]
    assert item(await engine.run())["plan"]["parallel"] == 2
    assert ordered(engine.lake_rows()) == before
    assert ordered(engine.source.rows("t")) != before


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_dry_run_touches_nothing_and_shows_the_plan(make: Make, form: str) -> None:
    engine = make(WATERMARK, {"table": "nothing"}, {"table": "none.*"}, format=form, partition=SMALL)
    mark = len(engine.lake.emulators.journal())
    manifest = await engine.run(dry_run=True)
    planned = item(manifest)
    assert (planned["status"], planned["load"], planned["disposition"]) == (
        "planned", "full", "merge" if form == "delta" else "append",
    )  # fmt: skip
    assert planned["plan"]["rows"] == 100
    assert planned["plan"]["reasons"]
    assert manifest["estimate"]["rows"] == 100
    assert item(manifest, "nothing")["error_code"] == "not_found"
    assert manifest["warnings"] == ["none.* matches no table"]
    effects = {one["operation"] for one in engine.lake.emulators.journal()[mark:] if engine.lake.name in one["path"]}
    assert effects <= {"properties", "list", "read"}
    assert await engine.store.list("jobs") == []


async def test_a_table_that_is_gone_from_the_lake_or_belongs_to_somebody_else(make: Make) -> None:
    engine = make(WATERMARK, partition=SMALL)
    await engine.run()
    import shutil

    shutil.rmtree(engine.table().folder)
    again = item(await engine.run())
    assert (again["load"], again["reload_reason"]) == ("full", "the table is no longer in the lake")
    engine.assert_same()
    engine.spec["name"] = "another-job"
    refused = item(await engine.run())
    assert (refused["status"], refused["error_code"]) == ("failed", "target_exists")
    assert item(await engine.run(reset=["t"]))["status"] == "success"
    engine.assert_same()


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_a_full_load_does_not_replace_what_another_job_has_written(make: Make, form: str) -> None:
    engine = make({"table": "t", "mode": "full"}, format=form)
    await engine.run()
    engine.spec["name"] = "another-job"
    before = engine.lake_rows()
    engine.source.run("DELETE FROM t WHERE id < 50")
    refused = item(await engine.run())
    assert (refused["status"], refused["error_code"]) == ("failed", "target_exists")
    assert engine.lake_rows() == before
    assert item(await engine.run(reset=["t"]))["status"] == "success"
    engine.assert_same()


async def test_a_column_to_sort_by_that_is_not_there_is_told(make: Make) -> None:
    engine = make({"table": "t", "mode": "full", "files": {"sort_by": ["id", "nmae"]}})
    assert "files.sort_by names 'nmae', which is no column that is read here" in item(await engine.run())["warnings"]


async def test_a_table_without_a_key_is_not_merged_where_the_whole_job_is(make: Make) -> None:
    engine = make({"table": "*", "mode": "full"}, format="delta", write={"disposition": "merge"})
    engine.source.run("CREATE TABLE loose (a INTEGER)", "INSERT INTO loose VALUES (1), (1)")
    manifest = await engine.run()
    loose = item(manifest, "loose")
    assert (loose["status"], loose["rows"]) == ("success", 2)
    assert "write.disposition is replace here, since rows of a table without a key are not merged" in loose["warnings"]
    assert item(manifest)["plan"]["disposition"] == "merge"


async def test_two_tables_do_not_share_a_folder(make: Make) -> None:
    engine = make({"table": "*"})
    engine.source.run('CREATE TABLE "a b" (id INTEGER)', "CREATE TABLE a_b (id INTEGER)")
    with pytest.raises(Configuration, match=r"\[a b\].* and a_b would both be written"):
        await engine.run()


async def test_one_table_fails_and_is_tried_again_alone(make: Make) -> None:
    engine = make({"table": "t", "key": ["nope"]}, {"table": "missing"}, {"table": "u"})
    engine.source.run("CREATE TABLE u (id INTEGER)")
    run = engine.begin()
    manifest = await engine.go_on(run, engine.spec)
    assert {one["table"]: one["status"] for one in manifest["items"]} == {
        "t": "failed", "missing": "failed", "u": "success",
    }  # fmt: skip
    assert "nope" in item(manifest)["error_detail"]
    engine.source.run("ALTER TABLE t ADD COLUMN nope INTEGER", "CREATE TABLE missing (id INTEGER)")
    manifest = await engine.go_on(run, engine.spec, round_number=2)
    assert {one["status"] for one in manifest["items"]} == {"success"}


async def test_columns_that_come_and_go(make: Make) -> None:
    engine = make(WATERMARK)
    await engine.run()
    engine.source.run("ALTER TABLE t ADD COLUMN extra TEXT", "INSERT INTO t VALUES (500, 'x', 500, 'there')")
    changed = item(await engine.run())
    assert [one["kind"] for one in changed["schema_changes"]] == ["added"]
    engine.assert_same()
    engine.source.run("UPDATE t SET at = 600, extra = 'y' WHERE id = 3")
    strict = item(await engine.run(schema="strict"))
    assert strict["status"] == "success", "nothing has changed since"
    engine.source.run("ALTER TABLE t ADD COLUMN more TEXT")
    refused = item(await engine.run(schema="strict"))
    assert (refused["status"], refused["error_code"]) == ("failed", "schema_changed")


async def test_rules_of_quality_decide_about_rows_and_tables(make: Make) -> None:
    engine = make(format="parquet", quality=[
        {"table": "t", "rule": "range", "columns": ["at"], "max": 90, "action": "quarantine"},
        {"table": "t", "rule": "not_null", "columns": ["name"], "action": "warn"},
    ])  # fmt: skip
    engine.source.run("UPDATE t SET name = NULL WHERE id = 1")
    good = item(await engine.run())
    assert (good["rows"], good["quarantined"], good["quality"]["verdict"]) == (91, 9, "quarantined")
    assert good["source_checksum"] == good["target_checksum"]
    aside = engine.table()
    aside.path, aside.folder = f"{aside.path}/_quarantine", aside.folder / "_quarantine"
    assert sorted(row["id"] for row in aside.rows()) == list(range(91, 100))
    assert all("at is not at most 90" in row["_reason"] for row in aside.rows())
    before = engine.lake_rows()
    engine.source.run("DELETE FROM t WHERE id < 50")
    failed = item(await engine.run(quality=[{"table": "*", "rule": "range", "columns": ["at"], "max": 90}]))
    assert (failed["status"], failed["error_code"], failed["quality"]["verdict"]) == (
        "failed", "quality_failed", "failed",
    )  # fmt: skip
    assert engine.lake_rows() == before
    assert [path for path in engine.table().left_over() if not path.startswith("_quarantine/")] == []


async def test_what_differs_from_the_source_does_not_become_visible(make: Make) -> None:
    engine = make(format="parquet")
    await engine.run()
    before = engine.lake_rows()
    engine.lake.emulators.set_faults([{"operation": "read", "path": f"*{engine.lake.name}*part-*",
                                       "fault": "corrupt_body"}])  # fmt: skip
    engine.source.run("DELETE FROM t WHERE id < 50")
    failed = item(await engine.run())
    assert failed["status"] == "failed"
    engine.lake.emulators.set_faults([])
    assert engine.lake_rows() == before


async def test_cancel_between_slices_leaves_nothing_behind(make: Make) -> None:
    engine = make(source=BY_SLICE, partition=SMALL)
    run = engine.begin()

    async def between(turn: int, step: str) -> None:
        if step == "slice 2":
            await engine.store.put(f"runs/{run}/cancel", b"{}")

    engine.between = between  # type: ignore[method-assign]
    manifest = await engine.go_on(run, engine.spec)
    assert item(manifest)["status"] == "planned"
    assert engine.lake_rows() == []
    await engine.run()
    engine.assert_same()
    assert engine.table().left_over() == []


async def test_a_rule_and_a_reset_that_mean_no_table_are_told(make: Make) -> None:
    rule = {"rule": "not_null", "columns": ["id"]}
    engine = make(quality=[{"table": "t", **rule}, {"table": "tt", **rule}], reset=["t", "other"])
    assert (await engine.run())["warnings"] == [
        "quality[1]: tt means no table of this run, so that not_null is not checked",
        "reset: other means no table of this run, so that nothing is reset",
    ]


async def test_a_file_that_the_lake_has_lost_is_named_at_once(make: Make) -> None:
    engine = make(TRACKING)
    await engine.run()
    folder = engine.table().folder
    (lost,) = folder.glob("*.parquet")
    lost.unlink()
    engine.source.run("UPDATE t SET name = 'changed' WHERE id = 5")
    for changes in ({}, {"reconcile": "compare"}, {"reconcile": "repair"}):
        record = item(await engine.run(**changes))
        assert (record["status"], record["error_code"]) == ("failed", "table_unreadable"), changes
        assert lost.name in record["error_detail"]
        assert "reset" in record["error_detail"]
    assert item(await engine.run(reset=["t"]))["status"] == "success"
    engine.assert_same()


@pytest.mark.parametrize("damage", [b"garbage", b"", b'{"add": 5}'])
async def test_a_log_that_nobody_can_read_is_told_with_a_way_out(make: Make, damage: bytes) -> None:
    engine = make(TRACKING)
    await engine.run()
    folder = engine.table().folder
    (folder / "_delta_log" / f"{0:020d}.json").write_bytes(damage)
    record = item(await engine.run(reset=["t"]))
    assert (record["status"], record["error_code"]) == ("failed", "table_unreadable")
    assert "delete the folder" in record["error_detail"]
    assert ".S:" not in record["error_detail"], "lines of a stack say nothing"
    shutil.rmtree(folder)
    assert item(await engine.run())["status"] == "success"
    engine.assert_same()


@pytest.mark.parametrize("form", ["parquet", "delta"])
async def test_the_first_loads_of_two_jobs_into_one_table_do_not_replace_each_other(
    make: Make, lake: Lake, tmp_path: Path, form: str
) -> None:
    engine = make(format=form)
    (tmp_path / "other").mkdir()
    other = Engine(lake, tmp_path / "other", [WATERMARK], format=form)
    other.spec["name"] = "other"
    other.source.run(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, at INTEGER)", "INSERT INTO t VALUES (7, 'x', 7)"
    )

    async def between(_: int, step: str) -> None:
        if step == "commit" and not other.runs:
            assert item(await other.run())["status"] == "success"

    engine.between = between  # type: ignore[method-assign]
    record = item(await engine.run())
    assert (record["status"], record["error_code"]) == ("failed", "target_exists")
    assert [row["id"] for row in engine.table().rows()] == [7]
    assert item(await other.run())["status"] == "success"
