"""What a SQL job may say, and what holds for a table where the job says something for all of them."""

from typing import Any

import pytest

from shared.model.job import SpecError, parse_job
from shared.model.sql_job import SqlJob

CONTRACT: dict[str, Any] = {
    "kind": "sql", "name": "erp", "source": {"connection": "ERP_DB"},
    "tables": [
        {"table": "dbo.Orders", "mode": "incremental", "change": "watermark", "column": "ModifiedAt"},
        {"table": "dbo.Customers", "mode": "incremental", "change": "tracking"},
        {"table": "sales.*", "mode": "full"},
        {"name": "big_orders", "query": "select 1 as one", "mode": "full"},
    ],
    "target": {"workspace": "W", "lakehouse": "L", "path": "Files/erp", "format": "parquet"},
    "partition": {"rows": 1000000, "parallel": 4}, "compression": "zstd", "validate": ["row_count", "checksum"],
    "quality": [{"table": "dbo.Orders", "rule": "not_null", "columns": ["OrderId"]},
                {"table": "dbo.Orders", "rule": "unique", "columns": ["OrderId"]}],
    "schema": "evolve", "write": {"disposition": "merge", "deletes": "soft"},
}  # fmt: skip


def job(**changes: Any) -> SqlJob:
    parsed = parse_job({**CONTRACT, **changes})
    assert isinstance(parsed, SqlJob)
    return parsed


def test_the_contract_s_own_example_is_a_job_in_both_formats() -> None:
    parquet = job()
    delta = job(target={**CONTRACT["target"], "path": "Tables/erp", "format": "delta"})
    for wish, in_parquet in zip(parquet.tables, ("append", "append", "replace", "replace"), strict=True):
        assert parquet.write_of(wish, has_key=True)[0] == in_parquet
        assert "Parquet" in parquet.unmergeable(wish, has_key=True)
    for wish, without_key in zip(delta.tables, ("append", "append", "replace", "replace"), strict=True):
        assert delta.write_of(wish, has_key=True) == ("merge", "soft")
        assert delta.unmergeable(wish, has_key=True) == ""
        assert delta.write_of(wish, has_key=False)[0] == without_key
        assert "key" in delta.unmergeable(wish, has_key=False)


def test_a_job_is_the_same_after_it_was_kept_as_json() -> None:
    assert parse_job(job().model_dump(mode="json")) == job()


def test_a_table_s_own_merge_is_a_demand() -> None:
    demanding = {"table": "dbo.Orders", "mode": "full", "write": {"disposition": "merge"}}
    with pytest.raises(SpecError, match=r"write\.disposition: merge needs target\.format: delta"):
        job(tables=[demanding])
    delta = job(tables=[demanding], target={**CONTRACT["target"], "path": "Tables/erp", "format": "delta"})
    assert delta.write_of(delta.tables[0], has_key=False)[0] == "merge"


@pytest.mark.parametrize(
    ("changes", "path", "message"),
    [
        ({"write": {"disposition": "history"}}, "", "needs target.format: delta"),
        ({"tables": [{"table": "a.b.c.d"}]}, "tables[0].table", "more than a schema and a table"),
        ({"tables": [{"table": "a", "mode": "incremental"}]}, "tables[0]", "needs change"),
        ({"tables": [{"query": "select 1"}]}, "tables[0]", "needs a name"),
        ({"tables": [{"table": "s.*", "name": "x"}]}, "tables[0]", "several tables"),
        ({"tables": []}, "tables", "at least 1"),
        ({"source": {"connection": "ERP DB"}}, "source.connection", "pattern"),
        ({"target": {**CONTRACT["target"], "format": "delta"}}, "target", "belongs below Tables/"),
        ({"schema": "loose"}, "schema", "'strict'"),
        ({"validate": ["rows"]}, "validate[0]", "'checksum'"),
        ({"quality": [{"table": "t", "rule": "regex", "columns": ["a"], "pattern": "("}]}, "quality[0]", "regular"),
        ({"quality": [{"table": "t", "rule": "regex", "columns": ["a"], "pattern": "a{1" + "0" * 30 + "}"}]},
         "quality[0]", "regular"),
        ({"quality": [{"table": "t", "rule": "regex", "columns": ["a"], "pattern": "(" * 480 + ")" * 480}]},
         "quality[0]", "regular"),
        ({"quality": [{"table": "t", "rule": "range", "columns": ["a"], "min": float("nan")}]}, "quality[0]",
         "min: nan"),
        ({"quality": [{"table": "t", "rule": "range", "columns": ["a"], "max": float("inf")}]}, "quality[0]",
         "max: inf"),
        ({"quality": [{"table": "t", "rule": "range", "columns": ["a"], "min": 2, "max": 1}]}, "quality[0]",
         "min is greater than max"),
        ({"quality": [{"table": "t", "rule": "not_null", "columns": ["a"], "min": 0}]}, "quality[0]",
         "min belongs to rule: range"),
        ({"quality": [{"table": "t", "rule": "unique", "columns": ["a"], "references": "b"}]}, "quality[0]",
         "references belongs to rule: foreign_key"),
        ({"tables": [{"table": "t", "mode": "incremental", "change": "watermark", "column": "c",
                      "lookback": float("inf")}]}, "tables[0].lookback", "finite"),
        ({"tables": [{"table": "t", "mode": "incremental", "change": "tracking", "changes": "all"}]}, "tables[0]",
         "changes: all belongs to change: cdc"),
        ({"tables": [{"table": "a"}, {"table": "b", "write": {"disposition": "merge"}}]}, "", "tables[1]"),
        ({"partition": {"rows": 0}}, "partition.rows", "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_a_job_may_not_say_is_named_with_its_field(changes: dict[str, Any], path: str, message: str) -> None:
    with pytest.raises(SpecError) as refused:
        job(**changes)
    detail = refused.value.details[0]
    assert detail["path"] == path
    assert message in detail["message"]


def test_what_is_wrong_with_the_job_as_a_whole_is_told_without_the_whole_job() -> None:
    with pytest.raises(SpecError) as refused:
        job(reconcile="compare", dry_run=True)
    assert str(refused.value) == "reconcile: compare is the dry run of reconcile: repair"
