"""What became of a table's columns, and what each policy allows."""

from itertools import permutations

import pytest

from shared.policy.sql.schema import (
    HISTORY_COLUMNS,
    SOFT_DELETE_COLUMNS,
    SchemaPlan,
    is_wider,
    lake_names,
    plan_schema,
    reserved_names,
)
from shared.policy.sql.types import PLAIN, decimal
from shared.ports.tables import CHANGE_COLUMNS, LakeColumn

ID = LakeColumn("id", "int32", nullable=False)
NAME = LakeColumn("name", "string")
PRICE = LakeColumn("price", "decimal128(10, 2)")


def planned(source, lake, policy="evolve", **more) -> SchemaPlan:
    return plan_schema(source, lake, policy=policy, **{"delta": True, **more})


def kinds(plan: SchemaPlan) -> list[tuple[str, str]]:
    return [(one.kind, one.column) for one in plan.differences]


@pytest.mark.parametrize("policy", ["create", "evolve", "strict"])
@pytest.mark.parametrize("lake", [None, (ID, NAME)])
def test_a_table_that_is_new_or_the_same_suits_every_policy(policy, lake) -> None:
    plan = planned([ID, NAME], lake, policy, last=lake)
    assert plan.columns == (ID, NAME)
    assert plan.names == {"id": "id", "name": "name"}
    assert not plan.differences
    assert not plan.failures
    assert not plan.changes_lake


@pytest.mark.parametrize("policy", ["create", "strict"])
@pytest.mark.parametrize(
    "source",
    [
        [ID, NAME, PRICE],
        [ID],
        [LakeColumn("id", "int64", nullable=False), NAME],
        [LakeColumn("id", "int16", nullable=False), NAME],
        [LakeColumn("id", "string", nullable=False), NAME],
        [LakeColumn("ID", "int32", nullable=False), NAME],
        [LakeColumn("id", "int32"), NAME],
    ],
)
def test_create_and_strict_refuse_every_difference(policy, source) -> None:
    plan = planned(source, [ID, NAME], policy)
    assert len(plan.failures) == 1
    assert f"schema: {policy}" in plan.failures[0]
    assert all(one.fails for one in plan.differences)


def test_only_strict_minds_what_the_lake_takes_without_a_change() -> None:
    now = [ID, LakeColumn("name", "string", nullable=False)]
    for policy, refused in (("create", False), ("evolve", False), ("strict", True)):
        plan = planned(now, [ID, NAME], policy, last=[ID, NAME])
        assert kinds(plan) == [("nullable", "name")]
        assert bool(plan.failures) == refused
        assert plan.columns == (ID, NAME)


def test_evolve_adds_at_the_end_and_keeps_what_is_gone() -> None:
    plan = planned([PRICE, ID], [ID, LakeColumn("name", "string", nullable=False)])
    assert kinds(plan) == [("added", "price"), ("removed", "name")]
    assert plan.columns == (ID, LakeColumn("name", "string"), PRICE)
    assert not plan.failures
    assert plan.changes_lake


def test_evolve_makes_a_new_column_nullable_since_rows_are_there_without_it() -> None:
    plan = planned([ID, LakeColumn("vat", "int16", nullable=False)], [ID])
    assert plan.columns[1] == LakeColumn("vat", "int16", nullable=True)


def test_a_column_that_went_is_told_once() -> None:
    lake = [ID, NAME]
    assert kinds(planned([ID], lake, last=[ID, NAME])) == [("removed", "name")]
    assert kinds(planned([ID], lake, last=[ID])) == []
    assert kinds(planned([ID], [ID, LakeColumn("a_b", "string")], last=[ID, LakeColumn("a b", "string")])) == [
        ("removed", "a_b")
    ]


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("int16", "int32"), ("int16", "int64"), ("int32", "int64"), ("float", "double"),
        ("decimal128(10, 2)", "decimal128(12, 2)"), ("decimal128(10, 2)", "decimal128(12, 4)"),
    ],
)  # fmt: skip
def test_evolve_takes_over_a_wider_type_and_keeps_the_wider_of_the_lake(was, now) -> None:
    wider = planned([LakeColumn("x", now)], [LakeColumn("x", was)])
    assert kinds(wider) == [("widened", "x")]
    assert wider.columns == (LakeColumn("x", now),)
    narrower = planned([LakeColumn("x", was)], [LakeColumn("x", now)])
    assert kinds(narrower) == [("narrowed", "x")]
    assert narrower.columns == (LakeColumn("x", now),)
    assert not narrower.changes_lake
    assert not wider.failures
    assert not narrower.failures
    assert not planned([LakeColumn("x", was)], [LakeColumn("x", now)], last=[LakeColumn("x", was)]).differences


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ("int32", "string"), ("string", "int32"), ("int64", "double"), ("timestamp[us]", "timestamp[us, UTC]"),
        ("decimal128(10, 2)", "decimal128(10, 4)"), ("decimal128(10, 4)", "decimal128(12, 2)"),
        ("date32", "timestamp[us]"),
    ],
)  # fmt: skip
def test_evolve_refuses_another_type_unless_the_table_is_written_anew(was, now) -> None:
    plan = planned([LakeColumn("x", now)], [LakeColumn("x", was)])
    assert kinds(plan) == [("changed", "x")]
    assert len(plan.failures) == 1
    assert "'x'" in plan.failures[0]
    assert "reset" in plan.failures[0]
    for policy in ("create", "evolve", "strict"):
        anew = planned([LakeColumn("x", now)], [LakeColumn("x", was)], policy, anew=True)
        assert kinds(anew) == [("changed", "x")]
        assert not anew.failures
        assert anew.columns == (LakeColumn("x", now),)


def test_wider_means_that_every_value_has_its_place() -> None:
    types = [
        *PLAIN,
        *(decimal(precision, scale) for precision in (1, 5, 38) for scale in (0, 1, 5) if scale <= precision),
    ]
    for one, other in permutations(types, 2):
        assert not (is_wider(one, other) and is_wider(other, one))
    assert not any(is_wider(one, one) for one in types)
    assert is_wider("decimal128(38, 5)", "decimal128(5, 5)")
    assert not is_wider("decimal128(38, 38)", "decimal128(1, 0)")
    assert not is_wider("double", "int64")


def test_a_name_in_other_case_keeps_the_lakes_spelling() -> None:
    plan = planned([LakeColumn("ID", "int64", nullable=False), NAME], [ID, NAME])
    assert kinds(plan) == [("case", "ID"), ("widened", "ID")]
    assert plan.names == {"ID": "id", "name": "name"}
    assert plan.columns[0].name == "id"
    assert not plan.failures


def test_a_name_in_other_case_is_a_new_column_where_the_old_name_stays() -> None:
    both = [LakeColumn("Id", "int32"), LakeColumn("id", "int32")]
    plan = planned(both, [LakeColumn("id", "int32")], delta=False)
    assert kinds(plan) == [("added", "Id")]
    assert plan.names == {"Id": "Id", "id": "id"}


def test_what_looks_renamed_is_said_and_stays_an_addition() -> None:
    plan = planned([ID, LakeColumn("full_name", "string")], [ID, NAME])
    assert kinds(plan) == [("added", "full_name"), ("removed", "name"), ("renamed", "full_name")]
    assert not plan.failures
    assert kinds(planned([ID, LakeColumn("full_name", "binary")], [ID, NAME])) == [
        ("added", "full_name"),
        ("removed", "name"),
    ]


def test_a_key_that_is_gone_is_refused_even_by_evolve() -> None:
    plan = planned([NAME], [ID, NAME], key=["id"])
    assert len(plan.failures) == 1
    assert "key" in plan.failures[0]
    again = planned([NAME], [ID, NAME], key=["id"], last=[NAME])
    assert len(again.failures) == 1


def test_columns_of_soft_deletes_and_history_are_ours() -> None:
    ours = [LakeColumn(name, "bool") for name in (*SOFT_DELETE_COLUMNS, *HISTORY_COLUMNS)]
    plan = planned([ID], [ID, *ours], "strict")
    assert not plan.differences
    assert plan.columns == (ID,)


# -- names -------------------------------------------------------------------------------------------------------------


def test_delta_names_lose_what_spark_refuses() -> None:
    odd = ["a b", "x,;{}y", "t\tn\n=", "naïve ünï", "ok_1", "[br]", "dash-ed", "quo\"te's"]
    names, failures = lake_names(odd, delta=True)
    assert names == {
        "a b": "a_b", "x,;{}y": "x_y", "t\tn\n=": "t_n_", "naïve ünï": "naïve_ünï", "ok_1": "ok_1", "[br]": "[br]",
        "dash-ed": "dash-ed", "quo\"te's": "quo\"te's",
    }  # fmt: skip
    assert not failures
    assert lake_names(odd, delta=False)[0] == {name: name for name in odd}


@pytest.mark.parametrize("pair", [("a b", "a_b"), ("Id", "ID"), ("a b", "A,B"), ("STRASSE", "straße")])
def test_names_that_become_one_are_refused_in_delta_alone(pair) -> None:
    _, failures = lake_names(pair, delta=True)
    assert len(failures) == 1
    assert repr(pair[0]) in failures[0]
    assert repr(pair[1]) in failures[0]
    assert "exclude_columns" in failures[0]
    assert not lake_names(pair, delta=False)[1]


def test_names_of_ours_are_refused_in_any_case_where_they_are_added() -> None:
    reserved = reserved_names(changes=CHANGE_COLUMNS, disposition="merge", deletes="soft", rules=2, quarantine=True)
    for name in ("_operation", "_POSITION", "_rule_1", "_deleted", "_Deleted_At", "_rules", "_reason"):
        assert lake_names([name], delta=True, reserved=reserved)[1], name
        assert planned([LakeColumn(name, "string")], None, reserved=reserved).failures, name
    assert not lake_names(["_rule_2", "_valid_from", "deleted"], delta=True, reserved=reserved)[1]
    assert not reserved_names(disposition="append", deletes="soft")
    assert set(HISTORY_COLUMNS) <= reserved_names(disposition="history", deletes="hard")


def test_a_key_of_an_odd_name_is_known_under_its_name_in_the_lake() -> None:
    plan = planned([NAME], [LakeColumn("order_no", "int32"), NAME], key=["order no"], last=[NAME])
    assert len(plan.failures) == 1
