"""Quality rules over a real SQLite database: which rows break them, and what becomes of those."""

import json
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from shared.clients.sql import open_database
from shared.engine.sql.quality import (
    RowChecks,
    ages_of,
    check_patterns,
    from_documents,
    quarantine_columns,
    quarantine_path,
    raise_if_failed,
    rules_of,
    to_documents,
    verdict_of,
    warnings_of,
)
from shared.errors import Configuration, ItemError, Unsupported
from shared.model.sql_job import QualityRule, SqlJob, SqlSource, Types
from shared.policy.sql.names import TableName, matching
from shared.ports.tables import KeyRange, Selection, TableDatabase, TableSession, TableShape

ORDERS = TableName("", "Orders")
ROWS = [
    (1, 10, "A-1", 5, "2026-01-01 00:00:00"),
    (2, 10, "A-22", -1, "2026-01-01 00:00:00"),
    (3, 11, "b-3", 7, "2026-01-02 00:00:00"),
    (4, 99, None, None, None),
    (5, None, "A-5\nA-6", 8, "2026-01-03 00:00:00"),
    (6, 12, "A-1", 1001, "2026-01-03 00:00:00"),
]


@pytest.fixture
def database(tmp_path: Path) -> TableDatabase:
    path = tmp_path / "shop.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE Customers (Id INTEGER PRIMARY KEY)")
        connection.executemany("INSERT INTO Customers VALUES (?)", [(10,), (11,), (12,)])
        connection.execute(
            "CREATE TABLE Orders (Id INTEGER PRIMARY KEY, Customer BIGINT, Code TEXT, Total INTEGER, At TIMESTAMP)"
        )
        connection.executemany("INSERT INTO Orders VALUES (?, ?, ?, ?, ?)", ROWS)
    connection.close()
    return open_database(f"sqlite:///{path}", SqlSource(connection="SHOP"), Types())


@pytest.fixture
def session(database: TableDatabase) -> Iterator[TableSession]:
    with database.sessions(1, consistent=True) as sessions:
        yield sessions[0]


def job(*rules: dict[str, Any]) -> SqlJob:
    return SqlJob.model_validate({
        "kind": "sql", "name": "shop", "source": {"connection": "SHOP"}, "tables": [{"table": "Orders"}],
        "target": {"workspace": "w", "lakehouse": "l", "path": "Files/shop"},
        "quality": [{"table": "Orders", **rule} for rule in rules],
    })  # fmt: skip


def rules_for(database: TableDatabase, *given: dict[str, Any]) -> tuple[TableShape, list]:
    shape = database.describe(ORDERS)
    rules = rules_of(job(*given), lambda text: bool(matching(text, [ORDERS], "")), shape, database.tables, "")
    # As they come out of what was decided about the table.
    return shape, from_documents(json.loads(json.dumps(to_documents(rules))))


def read(session: TableSession, shape: TableShape, rules: list, **more: Any) -> tuple[list, list, dict[str, Any]]:
    checks = RowChecks(rules)
    good, bad = [], []
    for batch in session.batches(Selection(shape, rules=checks.compiled, **more), batch_bytes=1 << 20):
        kept, apart = checks.split(batch)
        good += kept.to_pylist()
        bad += apart.to_pylist() if apart is not None else []
    return good, bad, checks.result()


def test_rows_that_break_a_rule_are_kept_apart_with_the_reason(database, session) -> None:
    shape, rules = rules_for(
        database,
        {"rule": "not_null", "columns": ["customer"], "action": "quarantine"},
        {"rule": "range", "columns": ["Total"], "min": 0, "max": 1000, "action": "quarantine"},
        {"rule": "regex", "columns": ["Code"], "pattern": "[A-Z]-[0-9]+", "action": "quarantine", "name": "code-form"},
        {"rule": "unique", "columns": ["Code"], "action": "warn"},
        {"rule": "foreign_key", "columns": ["Customer"], "references": "Customers", "reference_columns": ["Id"],
         "action": "quarantine"},
        {"rule": "sql", "sql": "Id <> 6", "action": "quarantine"},
    )  # fmt: skip
    good, bad, result = read(session, shape, rules)
    assert [row["Id"] for row in good] == [1]
    assert set(good[0]) == {"Id", "Customer", "Code", "Total", "At"}
    assert {row["Id"]: json.loads(row["_rules"]) for row in bad} == {
        2: ["range Total"], 3: ["code-form"], 4: ["foreign_key Customer"], 5: ["not_null customer", "code-form"],
        6: ["range Total", "sql 6"],
    }  # fmt: skip
    reasons = {row["Id"]: row["_reason"] for row in bad}
    assert reasons[2] == "Total is not at least 0 and at most 1000"
    assert reasons[5] == "Customer is null; Code does not match [A-Z]-[0-9]+"
    assert "Customers" in reasons[4]
    assert result == {
        "rows": 6, "quarantined": 5,
        "broken": {"not_null customer": 1, "range Total": 2, "code-form": 2, "unique Code": 2,
                   "foreign_key Customer": 1, "sql 6": 1},
    }  # fmt: skip


def test_a_value_must_match_as_a_whole_and_null_breaks_nothing_but_not_null(database, session) -> None:
    shape, rules = rules_for(
        database,
        {"rule": "regex", "columns": ["Code"], "pattern": "A-1|A-2"},
        {"rule": "regex", "columns": ["Code"], "pattern": "(?i)a-[0-9]+"},
        {"rule": "range", "columns": ["Total"], "min": -10},
        {"rule": "foreign_key", "columns": ["Customer"], "references": "Customers", "reference_columns": ["Id"]},
    )
    _, _, result = read(session, shape, rules)
    assert list(result["broken"].values()) == [3, 2, 0, 1]
    assert len(result["broken"]) == 4, "rules of one kind and column do not share a name"


def test_unique_looks_at_the_whole_table_whatever_is_read(database, session) -> None:
    shape, rules = rules_for(database, {"rule": "unique", "columns": ["Code"], "action": "quarantine"})
    found = [
        read(session, shape, rules, range=KeyRange("Id", lower, upper))[1]
        for lower, upper in ((None, "4"), ("4", None))
    ]
    assert [[row["Id"] for row in rows] for rows in found] == [[1], [6]]


def test_a_deleted_row_breaks_no_rule(database) -> None:
    _, rules = rules_for(
        database,
        {"rule": "not_null", "columns": ["Customer"], "action": "quarantine"},
        {"rule": "regex", "columns": ["Code"], "pattern": "x", "action": "quarantine"},
    )
    checks = RowChecks(rules)
    batch = pa.record_batch({
        "Id": [1, 2], "Code": ["y", "y"], "_operation": ["delete", "update"], "_rule_0": [True, True],
    })  # fmt: skip
    good, bad = checks.split(batch)
    assert good.to_pylist() == [{"Id": 1, "Code": "y", "_operation": "delete"}]
    assert [row["Id"] for row in bad.to_pylist()] == [2]
    assert checks.result()["broken"] == {"not_null Customer": 1, "regex Code": 1}


def test_quarantined_rows_fit_the_columns_that_are_promised_for_them(database, session) -> None:
    shape, rules = rules_for(database, {"rule": "not_null", "columns": ["Total"], "action": "quarantine"})
    _, bad, _ = read(session, shape, rules)
    columns = quarantine_columns(shape.lake_columns)
    assert list(bad[0]) == [column.name for column in columns]
    assert all(column.nullable for column in columns)


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ("Files/erp/shop/Orders", "Files/erp/shop/Orders/_quarantine"),
        ("Tables/dbo_Orders", "Files/_quarantine/dbo_Orders"),
        ("Tables/erp/dbo_Orders", "Files/_quarantine/erp/dbo_Orders"),
    ],
)
def test_where_quarantined_rows_lie(table: str, path: str) -> None:
    assert quarantine_path(table) == path


# -- verdicts ----------------------------------------------------------------------------------------------------------


def verdict(database, session, *given: dict[str, Any]) -> dict[str, Any]:
    shape, rules = rules_for(database, *given)
    results = [
        read(session, shape, rules, range=KeyRange("Id", lower, upper))[2]
        for lower, upper in ((None, "4"), ("4", None))
    ]
    return verdict_of(rules, results, ages_of(session, shape, rules))


def test_slices_add_up_to_a_verdict_of_the_table(database, session) -> None:
    found = verdict(
        database,
        session,
        {"rule": "not_null", "columns": ["Id"], "action": "fail"},
        {"rule": "range", "columns": ["Total"], "min": 0, "max": 1000, "action": "quarantine"},
        {"rule": "unique", "columns": ["Code"], "action": "warn"},
    )
    assert [(one["rule"], one["broken"], one["verdict"]) for one in found["rules"]] == [
        ("not_null Id", 0, "passed"), ("range Total", 2, "quarantined"), ("unique Code", 2, "warned"),
    ]  # fmt: skip
    assert (found["verdict"], found["rows"], found["quarantined"]) == ("quarantined", 6, 2)
    raise_if_failed(found)
    assert len(warnings_of(found, merged=False)) == 2
    assert "state before" in warnings_of(found, merged=True)[-1]
    assert json.loads(json.dumps(found)) == found


def test_a_broken_rule_with_fail_is_an_error_that_says_how_many_and_no_value(database, session) -> None:
    found = verdict(database, session, {"rule": "range", "columns": ["Total"], "max": 1000})
    assert found["verdict"] == "failed"
    with pytest.raises(ItemError) as caught:
        raise_if_failed(found)
    assert caught.value.code == "quality_failed"
    assert "1 rows: Total is not at most 1000" in caught.value.detail
    assert "1001" not in caught.value.detail


def test_freshness_is_of_the_table(database, session) -> None:
    old = {"rule": "freshness", "columns": ["At"], "max_age": "1d", "action": "warn"}
    found = verdict(database, session, old, {**old, "max_age": 10**12, "action": "fail"})
    assert [one["verdict"] for one in found["rules"]] == ["warned", "passed"]
    assert "1 min" not in found["rules"][0]["detail"]
    assert "24 h 00 min are allowed" in found["rules"][0]["detail"]
    raise_if_failed(found)


def test_freshness_of_no_rows_is_broken(database, tmp_path) -> None:
    with sqlite3.connect(tmp_path / "shop.db") as connection:
        connection.execute("DELETE FROM Orders")
    connection.close()
    with database.sessions(1, consistent=True) as sessions:
        found = verdict(database, sessions[0], {"rule": "freshness", "columns": ["At"], "max_age": "1d"})
    assert found["verdict"] == "failed"
    assert "no value" in found["rules"][0]["detail"]


def test_without_rules_nothing_was_checked() -> None:
    assert verdict_of([], [], {}) == {"verdict": "not checked"}
    batch = pa.record_batch({"Id": [1]})
    assert RowChecks([]).split(batch) == (batch, None)


# -- rules that cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "word"),
    [
        ({"rule": "not_null", "columns": ["Nowhere"]}, "Nowhere"),
        ({"rule": "regex", "columns": ["Total"], "pattern": "x"}, "needs text"),
        ({"rule": "foreign_key", "columns": ["Customer"], "references": "Gone"}, "Gone"),
    ],
)
def test_a_rule_that_does_not_fit_its_table_is_refused_and_one_of_a_pattern_is_told(database, rule, word) -> None:
    with pytest.raises(Unsupported, match=word):
        rules_for(database, rule)
    _, (pattern_rule,) = rules_for(database, {**rule, "table": "Ord*"})
    assert word in pattern_rule.not_applicable
    checks = RowChecks([pattern_rule])
    assert checks.compiled == ()
    found = verdict_of([pattern_rule], [checks.result()], {})
    assert found["verdict"] == "not applicable"
    assert word in warnings_of(found, merged=False)[0]


@pytest.mark.parametrize("pattern", ["(?=x)", r"(a)\1"])
def test_patterns_that_arrow_refuses_are_refused_before_anything_is_read(pattern: str) -> None:
    with pytest.raises(Configuration, match=r"quality\[1\]\.pattern"):
        check_patterns(
            job({"rule": "not_null", "columns": ["Id"]}, {"rule": "regex", "columns": ["Code"], "pattern": pattern})
        )


def test_a_pattern_cannot_leave_its_brackets() -> None:
    with pytest.raises(ValueError, match="regular expression"):
        QualityRule(table="t", rule="regex", columns=["c"], pattern="a)|(b")
    check_patterns(job({"rule": "regex", "columns": ["Code"], "pattern": "a|b"}))


def test_other_tables_rules_do_not_apply(database) -> None:
    shape = database.describe(ORDERS)
    rules = rules_of(job({"rule": "not_null", "columns": ["Id"]}), lambda _: False, shape, database.tables, "")
    assert rules == []


def test_a_rule_may_speak_of_a_column_that_is_not_read(database, session) -> None:
    shape, _ = rules_for(database)
    narrow = replace(shape, columns=tuple(one for one in shape.columns if one.name != "Total"))
    rules = rules_of(
        job({"rule": "range", "columns": ["total"], "min": 0, "action": "quarantine"}), lambda _: True, narrow,
        database.tables, "",
    )  # fmt: skip
    good, bad, _ = read(session, narrow, rules)
    assert [row["Id"] for row in bad] == [2]
    assert "Total" not in good[0]
