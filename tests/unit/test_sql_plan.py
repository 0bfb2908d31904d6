"""How a table is read, by its size and by how its changes are told."""

import json
from dataclasses import replace

import pytest

from shared.policy.sql.plan import Measured, Table, TablePlan, plan_table

GB, TB = 1000**3, 1000**4
ORDERS = Table(
    rows=10_000_000, size_bytes=2 * GB, change=None, cut_by="OrderId", snapshots=True, why_not="", consistency="auto",
    slice_rows=1_000_000, parallel=4, max_connections=8, rows_per_s=None, file_bytes=256 * 1024**2, compression="zstd",
)  # fmt: skip


def plan(**more: object) -> TablePlan:
    return plan_table(replace(ORDERS, **more))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("size_bytes", "size"),
    [(0, "small"), (100 * GB - 1, "small"), (100 * GB, "medium"), (TB, "medium"), (TB + 1, "large")],
)
def test_sizes_have_the_bounds_that_are_documented(size_bytes, size) -> None:
    assert plan(size_bytes=size_bytes).size == size


def test_a_table_of_one_slice_is_one_stream_of_one_moment() -> None:
    found = plan(rows=1_000_000, size_bytes=200 * GB, change="cdc")
    assert (found.way, found.moments, found.slices, found.parallel) == ("single_stream", "snapshot", 1, 1)
    assert not found.catch_up
    assert not found.warnings
    assert plan(rows=1_000_001).slices == 2
    assert plan(rows=0).slices == 1


def test_a_small_table_is_read_by_slices_of_one_moment() -> None:
    found = plan(change="tracking")
    assert (found.way, found.moments, found.slices, found.parallel) == ("parallel_slices", "snapshot", 10, 4)
    assert not found.catch_up
    assert not found.warnings


@pytest.mark.parametrize("size_bytes", [100 * GB, 2 * TB])
@pytest.mark.parametrize("change", ["tracking", "cdc", "rowversion", "watermark"])
def test_what_is_bigger_is_read_slice_by_slice_and_caught_up_with(size_bytes, change) -> None:
    found = plan(size_bytes=size_bytes, rows=2_000_000_000, change=change)
    assert (found.way, found.moments, found.catch_up) == ("slices_with_catch_up", "slice", True)
    assert any(change in reason for reason in found.reasons)
    assert bool(found.warnings) == (change in ("rowversion", "watermark")), "these do not tell of deletes"


def test_without_changes_a_big_table_is_told_to_be_of_many_moments() -> None:
    found = plan(size_bytes=2 * TB, rows=2_000_000_000)
    assert (found.way, found.moments, found.catch_up) == ("parallel_slices", "slice", False)
    assert "source.consistency: snapshot" in found.warnings[0]
    kept = plan(size_bytes=2 * TB, rows=2_000_000_000, consistency="snapshot")
    assert (kept.moments, kept.warnings, kept.failure) == ("snapshot", (), "")


def test_a_database_without_snapshots() -> None:
    why = "ALLOW_SNAPSHOT_ISOLATION is off"
    found = plan(snapshots=False, why_not=why, change="cdc")
    assert (found.moments, found.catch_up, found.failure) == ("slice", True, "")
    assert any(why in reason for reason in found.reasons)
    asked = plan(snapshots=False, why_not=why, consistency="snapshot")
    assert why in asked.failure


def test_the_job_may_ask_for_slices() -> None:
    found = plan(consistency="slice", change="tracking")
    assert (found.moments, found.catch_up) == ("slice", True)


@pytest.mark.parametrize(("more", "word"), [({"cut_by": None}, "partition.column"), ({"rows": -1}, "not known")])
def test_what_cannot_be_cut_is_one_stream(more, word) -> None:
    found = plan(**more)
    assert (found.way, found.slices) == ("single_stream", 1)
    assert any(word in reason for reason in found.reasons)


def test_connections_bound_the_streams() -> None:
    assert plan(max_connections=2).parallel == 2
    assert plan(rows=3_000_000, parallel=8).parallel == 3


def test_nothing_known_gives_no_estimate() -> None:
    found = plan(rows=-1, size_bytes=-1)
    assert (found.size, found.basis, found.seconds, found.files, found.lake_bytes) == ("unknown", "none", -1, -1, -1)


def test_rows_without_a_size_are_estimated() -> None:
    assert plan(rows=1_000_000_000, size_bytes=-1).size == "medium"


def test_estimates_grow_with_data_and_shrink_with_streams() -> None:
    one, ten = plan(rows=1_000_000, size_bytes=GB // 5), plan()
    assert one.lake_bytes < ten.lake_bytes < 2 * GB
    assert plan(parallel=1).seconds > ten.seconds > one.seconds
    assert ten.files == 10
    assert plan(file_bytes=10 * 1024**2).files > 10
    assert plan(compression="none").lake_bytes > ten.lake_bytes


def test_what_was_measured_takes_the_place_of_constants() -> None:
    measured = Measured(rows=5_000_000, lake_bytes=GB, seconds=100.0, parallel=2)
    found = plan(earlier=measured)
    assert found.basis == "measured"
    assert found.lake_bytes == 2 * GB
    assert found.seconds == 100.0, "twice the rows with twice the streams"
    assert plan(earlier=Measured(0, 0, 0.0, 1)).basis == "constants"


def test_a_cap_on_rows_is_a_floor_of_time() -> None:
    assert plan(rows_per_s=1_000).seconds == 10_000


def test_the_plan_is_json() -> None:
    assert json.loads(json.dumps(plan().document()))["way"] == "parallel_slices"
