"""How long a run may take: what each bound says, and which one holds."""

from __future__ import annotations

from typing import Any

import pytest

from shared.policy.durations import BANDS, Load, Measured, estimate

MIB, GIB = 2**20, 2**30


def estimated(items: int, size_bytes: int, **changes: Any) -> dict[str, Any]:
    known = {"sharepoint": Load(0, 0), "units_per_minute": None, "bandwidth": None, "measured": None, **changes}
    return estimate(Load(items, size_bytes), **known)


def test_nothing_known_is_said() -> None:
    found = estimated(10, 10)
    assert found["expected_s"] is None
    assert found["bounds"] == found["bands"] == []
    assert "no run of this job" in found["rests_on"]


def test_nothing_to_move_takes_no_time() -> None:
    measured = Measured("files-a-1", True, Load(100, 100), 10.0)
    found = estimated(0, 0, bandwidth=MIB, measured=measured)
    assert (found["expected_s"], found["bounds"]) == (0.0, [])


def test_the_ceiling_that_a_setting_gives() -> None:
    found = estimated(25_000, GIB, sharepoint=Load(25_000, GIB), units_per_minute=2_500)
    assert found["expected_s"] == pytest.approx(600)
    assert "25,000 downloads" in found["rests_on"]
    assert "2,500 a minute of GRAPH_UNITS_PER_MINUTE" in found["rests_on"]
    assert found["bands"] == []


def test_without_a_setting_each_band_has_its_line() -> None:
    found = estimated(12_500, GIB, sharepoint=Load(12_500, GIB))
    assert found["expected_s"] is None
    assert [band["seconds"] for band in found["bands"]] == pytest.approx([600, 300, 200, 150, 120])


@pytest.mark.parametrize("band", BANDS)
def test_a_day_gives_no_more_than_a_days_worth(band: Any) -> None:
    def seconds(items: int) -> float:
        found = estimated(items, 0, sharepoint=Load(items, 0), units_per_minute=band.units_per_minute)
        return float(found["expected_s"])

    assert seconds(band.units_per_day) == pytest.approx(16 * 3600)
    assert seconds(band.units_per_day + band.units_per_minute) == pytest.approx(24 * 3600 + 60)
    assert seconds(2 * band.units_per_day) == pytest.approx(40 * 3600)


def test_few_large_files_are_limited_by_what_an_app_may_receive() -> None:
    found = estimated(10, 800 * 10**9, sharepoint=Load(10, 800 * 10**9), units_per_minute=6_250)
    assert found["expected_s"] == pytest.approx(2 * 3600)


def test_only_what_comes_from_sharepoint_costs_units() -> None:
    found = estimated(1_000_000, GIB, sharepoint=Load(1_250, MIB), units_per_minute=1_250)
    assert found["expected_s"] == pytest.approx(60)


def test_a_bandwidth_cap() -> None:
    found = estimated(3, 600 * MIB, bandwidth=10 * MIB)
    assert found["expected_s"] == pytest.approx(60)
    assert "10.0 MiB/s" in found["rests_on"]


@pytest.mark.parametrize(("load", "seconds"), [
    ((2_000, GIB), 20.0),  # twice the items
    ((1_000, 3 * GIB), 30.0),  # three times the bytes
    ((500, GIB // 2), 5.0),
])  # fmt: skip
def test_an_earlier_run_counts_by_items_or_bytes_whichever_takes_longer(
    load: tuple[int, int], seconds: float
) -> None:  # fmt: skip
    found = estimated(*load, measured=Measured("files-a-1", True, Load(1_000, GIB), 10.0))
    assert found["expected_s"] == pytest.approx(seconds)
    assert "this job's run files-a-1" in found["rests_on"]
    assert "100.0/s" in found["rests_on"]
    assert not found["at_least"]
    assert "rough" not in found["rests_on"]


def test_a_small_or_foreign_run_is_called_so() -> None:
    found = estimated(10, 10, measured=Measured("files-b-1", False, Load(3, 30), 6.0))
    assert "another job's run files-b-1" in found["rests_on"]
    assert "rough" in found["rests_on"]


def test_the_longest_bound_holds() -> None:
    found = estimated(
        5_000, GIB, sharepoint=Load(5_000, GIB), units_per_minute=1_250, bandwidth=GIB,
        measured=Measured("files-a-1", True, Load(5_000, GIB), 100.0),
    )  # fmt: skip
    assert [bound["basis"] for bound in found["bounds"]] == ["source_ceiling", "bandwidth", "measured"]
    assert found["expected_s"] == pytest.approx(240)
    assert found["at_least"]


def test_an_earlier_run_of_empty_files_divides_by_nothing() -> None:
    assert estimated(10, 5, measured=Measured("files-a-1", True, Load(10, 0), 2.0))["expected_s"] == pytest.approx(2.0)
