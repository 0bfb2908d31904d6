"""Which versions a configuration means, and what they become."""

from __future__ import annotations

import pytest

from shared.policy.asset_versions import (
    ListedVersion,
    candidates,
    check_suffix_pattern,
    check_version_wish,
    migration_tags,
    select,
)

LISTED = {
    "orders": [ListedVersion("12", "2025-03"), ListedVersion("9", "2025-01"), ListedVersion("10", "2025-02"),
               ListedVersion("beta", "2025-04", archived=True)],
    "stock": [ListedVersion("1", "")],
    "sales_eu": [ListedVersion("2"), ListedVersion("10"), ListedVersion("1")],
}  # fmt: skip
LATEST = {"orders": "beta", "stock": "1"}


def chosen(*wishes: tuple[str, list[str]]) -> list[str]:
    return [f"{one.name}:{one.version}" for one in select(wishes, LISTED, LATEST)[0]]


def test_wishes() -> None:
    assert chosen(("orders", ["9"])) == ["orders:9"]
    assert chosen(("orders", ["latest"])) == ["orders:beta"]
    assert chosen(("orders", ["*"])) == ["orders:9", "orders:10", "orders:12", "orders:beta"]
    assert chosen(("orders", ["10..12"])) == ["orders:10", "orders:12"]
    assert chosen(("orders", ["..9"])) == ["orders:9"]
    assert chosen(("orders", ["11.."])) == ["orders:12"]
    # Without times the numbers tell the order.
    assert chosen(("sales_eu", ["*"])) == ["sales_eu:1", "sales_eu:2", "sales_eu:10"]
    assert chosen(("s*", ["1"])) == ["sales_eu:1", "stock:1"]


def test_each_version_once_and_by_the_first_who_asked() -> None:
    found, _ = select([("orders", ["9"]), ("*", ["*"])], LISTED, LATEST)
    assert [(one.spec, one.requested) for one in found if (one.name, one.version) == ("orders", "9")] == [(0, "9")]
    assert len(found) == len({(one.name, one.version) for one in found}) == 8


def test_what_is_not_there() -> None:
    _, unmet = select([("gone", ["1"]), ("orders", ["77", "9"]), ("x*", ["*"]), ("sto*", ["5"])], LISTED, LATEST)
    assert [(one.name, one.requested) for one in unmet] == [
        ("gone", "1"), ("orders", "77"), ("x*", "*"), ("sto*", "5"),
    ]  # fmt: skip


@pytest.mark.parametrize("wish", ["9..3", "..", "a..b", "1 2", "", "../x", "*x"])
def test_no_wish(wish: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        check_version_wish(wish)


def test_candidates() -> None:
    assert list(candidates("9", "{version}_m{n}", 2)) == ["9", "9_m1", "9_m2"]
    for pattern in ("{version}", "{n}", "{version}/{n}", "{version} {n}"):
        with pytest.raises(ValueError, match=r"."):
            check_suffix_pattern(pattern)


def test_tags_are_those_of_section_10() -> None:
    tags = migration_tags(workspace="w", subscription_id="s", batch="b", tool_version="0.1.0", asset_id="/id",
                          requested="9", final="9_m1", on_utc="2025-08-27T10:11:12Z")  # fmt: skip
    assert tags == {
        "migrated_from_workspace": "w", "migrated_from_subscription": "s", "migration_batch_id": "b",
        "migration_tool_version": "0.1.0", "original_asset_id": "/id", "original_version": "9",
        "final_version": "9_m1", "collision_resolved": "true", "original_version_retained": "false",
        "migrated_on_utc": "2025-08-27T10:11:12Z",
    }  # fmt: skip


def test_a_latest_version_that_was_registered_after_the_listing() -> None:
    chosen, unmet = select([("orders", ["latest", "9"])], LISTED, {**LATEST, "orders": "99"})
    assert ([one.version for one in chosen], unmet) == (["9", "99"], [])
