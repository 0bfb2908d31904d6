"""When a schedule is due: once, however many occurrences were missed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from shared.policy.due import is_due

HOURLY = "0 0 * * * *"
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("last", "now", "due"),
    [
        (NOON, NOON, False),
        (NOON - timedelta(seconds=1), NOON, True),
        (NOON - timedelta(seconds=1), NOON - timedelta(microseconds=1), False),
        (NOON, NOON + timedelta(minutes=59, seconds=59), False),
        (NOON, NOON + timedelta(hours=1), True),
        (NOON - timedelta(days=30), NOON, True),
        (NOON, NOON - timedelta(days=1), False),
    ],
)
def test_an_occurrence_in_the_half_open_interval_is_due(last: datetime, now: datetime, due: bool) -> None:
    assert is_due(HOURLY, last, now) is due


def test_missed_occurrences_are_one() -> None:
    now = NOON + timedelta(days=3)
    assert is_due(HOURLY, NOON, now)
    assert not is_due(HOURLY, now, now)
