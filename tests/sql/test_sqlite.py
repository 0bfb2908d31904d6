"""What is SQLite's own: values that their declaration does not tell, files, locks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.errors import MigrationError, RunError, Unsupported
from shared.policy.sql.names import TableName
from shared.ports.tables import KeyRange, Selection, Window
from tests.sql.databases import World, rows_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "odd name %20 ?.db"


@pytest.fixture
def sqlite(path: Path) -> Iterator[World]:
    yield World(
        "sqlite", "", f"sqlite:///{str(path).replace('%', '%25').replace('?', '%3F')}", lambda: sqlite3.connect(path)
    )


@pytest.mark.parametrize(
    ("declared", "literal", "storage"),
    [
        ("INTEGER", "'many'", "text"), ("INTEGER", "1.5", "real"), ("INTEGER", "x'01'", "blob"),
        ("REAL", "'1,5'", "text"), ("DECIMAL(10, 2)", "9007199254740993", "integer"), ("BOOLEAN", "2", "integer"),
        ("BOOLEAN", "'true'", "text"), ("TEXT", "x'ff'", "blob"), ("BLOB", "'text'", "text"),
        ("DATETIME", "x'00'", "blob"), ("", "x'00'", "blob"),
    ],
)  # fmt: skip
def test_a_value_that_its_column_does_not_tell(sqlite: World, declared: str, literal: str, storage: str) -> None:
    sqlite.run(
        f"CREATE TABLE mixed (id INTEGER PRIMARY KEY, v {declared})", "INSERT INTO mixed VALUES (1, NULL)",
        f"INSERT INTO mixed VALUES (77, {literal})",
    )  # fmt: skip
    selection = Selection(sqlite.shape("mixed"))
    with sqlite.database.sessions(1, consistent=True) as (session,):
        for attempt in (
            lambda: rows_of(session, selection),
            lambda: session.summary(selection, checksums=True),
        ):
            with pytest.raises(Unsupported) as raised:
                attempt()
            assert raised.value.code == "value_unfit"
            for word in ("column v", "rowid 77", storage):
                assert word in raised.value.detail
        sound = Selection(selection.shape, KeyRange("id", None, "77"))
        assert rows_of(session, sound) == [{"id": 1, "v": None}]


def test_text_that_is_not_utf8(sqlite: World) -> None:
    sqlite.run("CREATE TABLE mixed (v TEXT)", "INSERT INTO mixed VALUES (CAST(x'ff41' AS TEXT))")
    with pytest.raises(Unsupported) as raised:
        sqlite.read(Selection(sqlite.shape("mixed")))
    assert raised.value.code == "value_unfit"


def test_a_row_is_told_where_columns_take_the_rowids_names(sqlite: World) -> None:
    sqlite.run("CREATE TABLE mixed (rowid TEXT, _rowid_ INTEGER, v INTEGER)", "INSERT INTO mixed VALUES ('a', 1, 'x')")
    shape = sqlite.shape("mixed")
    assert shape.facts["rowid"] == "oid"
    with pytest.raises(Unsupported, match="rowid 1,"):
        sqlite.read(Selection(shape))


def test_tables_without_rowid_and_strict_ones(sqlite: World) -> None:
    sqlite.run(
        "CREATE TABLE pairs (a TEXT, b INTEGER, PRIMARY KEY (b, a)) WITHOUT ROWID",
        "INSERT INTO pairs VALUES ('x', 2), ('y', 1)",
    )
    shape = sqlite.shape("pairs")
    assert (shape.key, [column.nullable for column in shape.columns]) == (("b", "a"), [False, False])
    assert "rowid" not in shape.facts
    with sqlite.database.sessions(1, consistent=True) as (session,):
        assert session.cut(shape, "b", 1)[0] == KeyRange("b", None, "1", nulls=True)
        assert len(rows_of(session, Selection(shape))) == 2


def test_shadow_tables_and_hidden_columns_stay_away(sqlite: World) -> None:
    sqlite.run("CREATE VIRTUAL TABLE words USING fts5(body)", "INSERT INTO words VALUES ('hello')")
    assert sqlite.database.tables() == [TableName("", "words")]
    assert sqlite.read(Selection(sqlite.shape("words"))) == [{"body": "hello"}]


def test_results_of_expressions_are_as_their_rows_are(sqlite: World) -> None:
    sqlite.run("CREATE TABLE base (id INTEGER PRIMARY KEY, v REAL)", "INSERT INTO base VALUES (1, 1.5), (2, 2)")
    shape = sqlite.shape(
        "mine",
        "SELECT COUNT(*) AS c, SUM(v) AS s, MAX(id) || 'x' AS t, x'00' AS b, NULL AS n, "
        "CASE id WHEN 1 THEN 'one' ELSE 2 END AS m, id FROM base GROUP BY id",
    )
    assert [column.type for column in shape.lake_columns] == [
        "int64", "double", "string", "binary", "string", "string", "int64",
    ]  # fmt: skip
    assert sorted(str(row["m"]) for row in sqlite.read(Selection(shape))) == ["2", "one"]


def test_a_watermark_without_a_declared_type_is_refused(sqlite: World) -> None:
    """It could be 5 or '5', which SQLite does not hold for the same."""
    sqlite.run("CREATE TABLE loose (id INTEGER PRIMARY KEY, v)", "INSERT INTO loose VALUES (1, 5), (2, '5')")
    shape = sqlite.shape("loose")
    with sqlite.database.sessions(1, consistent=True) as (session,):
        assert session.cut(shape, "v", 1) == [KeyRange("v", None, None, nulls=True)]
        with pytest.raises(Unsupported) as raised:
            rows_of(session, Selection(shape, window=Window("watermark", None, "5", "v")))
    assert raised.value.code == "column_unfit"


def test_a_file_that_is_not_there_is_not_made(sqlite: World, path: Path) -> None:
    with pytest.raises(RunError) as raised:
        sqlite.database.check()
    assert raised.value.code == "database_missing"
    assert not path.exists()


def test_a_file_that_is_no_database(sqlite: World, path: Path) -> None:
    path.write_bytes(b"no database at all" * 1000)
    with pytest.raises(RunError) as raised:
        sqlite.database.check()
    assert raised.value.code == "database_missing"


def test_reading_changes_no_byte(sqlite: World, path: Path) -> None:
    sqlite.run("CREATE TABLE base (id INTEGER PRIMARY KEY)", "INSERT INTO base VALUES (1)")
    before = path.read_bytes()
    with sqlite.database.sessions(3, consistent=True) as sessions:
        assert [rows_of(session, Selection(sqlite.shape("base"))) for session in sessions] == [[{"id": 1}]] * 3
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]  # noqa: PTH208


def test_a_file_that_may_not_be_written_gives_one_session(sqlite: World, path: Path) -> None:
    """That several began at one moment cannot be proved there."""
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; run the tests as somebody else")
    sqlite.run("CREATE TABLE base (id INTEGER PRIMARY KEY)")
    path.chmod(0o444)
    with sqlite.database.sessions(3, consistent=True) as sessions:
        assert [session.consistent for session in sessions] == [True]


def test_the_whole_of_a_long_lock_is_waited_for_and_then_told(sqlite: World, path: Path) -> None:
    sqlite.run("CREATE TABLE base (id INTEGER PRIMARY KEY)")
    with sqlite3.connect(path, isolation_level=None) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(MigrationError) as raised:
            sqlite.database.tables()
        writer.execute("ROLLBACK")
    writer.close()
    assert raised.value.code == "throttled"
