"""NCRONTAB: what is accepted, what is refused and with which words, and when a schedule fires next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.policy.ncrontab import parse


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 */5 * * * *", "2026-01-01T00:00:00", "2026-01-01T00:05:00"),
        ("0 */5 * * * *", "2026-01-01T00:04:59", "2026-01-01T00:05:00"),
        ("*/5 * * * *", "2026-01-01T23:56:00", "2026-01-02T00:00:00"),
        ("0 0 * * * *", "2026-12-31T23:00:00", "2027-01-01T00:00:00"),
        ("0 30 9 * * Mon-Fri", "2026-11-20T09:30:00", "2026-11-23T09:30:00"),
        ("0 30 9 * * mon,WED", "2026-11-23T09:30:00", "2026-11-25T09:30:00"),
        ("0 0 0 1 Jan *", "2026-01-01T00:00:00", "2027-01-01T00:00:00"),
        ("0 0 0 29 2 *", "2026-01-01T00:00:00", "2028-02-29T00:00:00"),
        ("0 0 0 29 2 *", "2096-03-01T00:00:00", "2104-02-29T00:00:00"),
        ("0 0 0 29 2 Mon", "2044-03-01T00:00:00", "2072-02-29T00:00:00"),
        ("0 0 0 31 * *", "2026-01-31T00:00:00", "2026-03-31T00:00:00"),
        ("0 0 0 13 * Friday", "2026-01-01T00:00:00", "2026-02-13T00:00:00"),
        ("0 0 0 * * 0", "2026-11-21T00:00:00", "2026-11-22T00:00:00"),
        ("0 5/20 * * * *", "2026-01-01T00:05:00", "2026-01-01T00:25:00"),
        ("0 5/20 * * * *", "2026-01-01T00:45:00", "2026-01-01T01:05:00"),
        ("10-30/10 0 0 * * *", "2026-01-01T00:00:10", "2026-01-01T00:00:20"),
        ("* * * * * *", "2026-01-01T00:00:00.999999", "2026-01-01T00:00:01"),
    ],
)
def test_next_after(expression: str, after: str, expected: str) -> None:
    assert parse(expression).next_after(moment(after)) == moment(expected)


def test_other_time_zones_are_converted() -> None:
    after = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    found = parse("0 0 * * * *").next_after(after)
    assert found == moment("2026-01-01T00:00:00")
    assert found.tzinfo is UTC


def test_a_moment_without_time_zone_is_refused() -> None:
    with pytest.raises(ValueError, match="aware datetime"):
        parse("0 0 * * * *").next_after(datetime(2026, 1, 1))  # noqa: DTZ001


def test_the_end_of_the_calendar_is_an_error() -> None:
    with pytest.raises(ValueError, match="no occurrence"):
        parse("0 0 0 1 1 *").next_after(moment("9999-06-01T00:00:00"))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("0 0 0", ["3 fields", "six"]),
        ("", ["0 fields"]),
        ("0 0 0 * * * *", ["7 fields"]),
        ("60 * * * * *", ["second", "60", "0 to 59"]),
        ("0 0 24 * * *", ["hour", "24", "0 to 23"]),
        ("0 0 0 0 * *", ["day of month", "1 to 31"]),
        ("0 0 0 * 13 *", ["month", "13"]),
        ("0 0 0 * * 7", ["day of week", "7", "Sunday is 0"]),
        ("0 0 0 * * Foo", ["day of week", "Foo", "Sun"]),
        ("0 0 0 * J *", ["month", "'J'"]),
        ("0 */0 * * * *", ["minute", "step '0'"]),
        ("0 */x * * * *", ["minute", "step 'x'"]),
        ("0 1,,2 * * * *", ["minute", "''"]),
        ("0 0 22-2 * * *", ["hour", "22-23,0-2"]),
        ("0 0 0 L * *", ["day of month", "'L'"]),
        ("0 -1 * * * *", ["minute"]),
        ("0 ٣ * * * *", ["minute"]),
        ("0 0 0 30 2 *", ["never fires", "30"]),
        ("0 0 0 31 4,6,9,11 *", ["never fires"]),
    ],
)
def test_refusals_name_field_value_and_remedy(expression: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match="schedule") as refusal:
        parse(expression)
    for word in words:
        assert word in str(refusal.value)


_fields = st.tuples(
    st.sampled_from(["*", "0", "*/7", "5-9", "59"]),
    st.sampled_from(["*", "0", "*/13", "1,2,58"]),
    st.sampled_from(["*", "3", "20-23"]),
    st.sampled_from(["*", "1", "*/10"]),
    st.sampled_from(["*", "Feb", "1-3"]),
    st.sampled_from(["*", "Sat", "1-5"]),
)


@settings(max_examples=150, deadline=None)
@given(_fields, st.datetimes(datetime(2024, 1, 1), datetime(2030, 1, 1)))  # noqa: DTZ001
def test_agrees_with_a_minute_by_minute_search(fields: tuple[str, ...], start: datetime) -> None:
    schedule = parse(" ".join(fields))
    after = start.replace(tzinfo=UTC)
    found = schedule.next_after(after)
    assert found > after

    def fires(at: datetime) -> bool:
        return (
            at.minute in schedule.minutes
            and at.hour in schedule.hours
            and at.day in schedule.days
            and at.month in schedule.months
            and at.isoweekday() % 7 in schedule.weekdays
        )

    assert fires(found)
    assert found.second in schedule.seconds
    probe = after.replace(second=0, microsecond=0) + timedelta(minutes=1)
    for _ in range(3000):
        if probe >= found.replace(second=0):
            break
        assert not fires(probe)
        probe += timedelta(minutes=1)
