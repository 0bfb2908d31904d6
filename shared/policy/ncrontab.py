"""NCRONTAB schedules: the six-field cron of Azure Functions timers, as a pure calculation.

Fields, in order: second, minute, hour, day of month, month, day of week. With five fields the second is 0.
Each field takes ``*``, a value, a range ``a-b``, a step (``*/n``, ``a-b/n``, ``a/n`` for "from a to the end") and
lists of these. Months and weekdays may be named (``Jan``, ``Monday``); Sunday is 0, and 7 is refused as NCRONTAB
refuses it. Day of month and day of week must *both* match, unlike in Unix cron.

Source: https://learn.microsoft.com/azure/azure-functions/functions-bindings-timer#ncrontab-expressions
"""

from __future__ import annotations

import calendar
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta

# Spelled out because the calendar module's names follow the process's locale.
_MONTHS = (
    *("january", "february", "march", "april", "may", "june"),
    *("july", "august", "september", "october", "november", "december"),
)
_WEEKDAYS = ("sunday", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday")
_LONGEST_DAY_OF_MONTH = dict.fromkeys(range(1, 13), 31) | {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


@dataclass(frozen=True, slots=True)
class _Field:
    label: str
    lowest: int
    highest: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("second", 0, 59),
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, _MONTHS),
    _Field("day of week", 0, 6, _WEEKDAYS),
)


@dataclass(frozen=True, slots=True)
class Schedule:
    """A parsed expression; equal schedules compare equal.

    Attributes:
        expression: What was parsed, with single spaces.
    """

    expression: str
    seconds: tuple[int, ...]
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: frozenset[int]

    def next_after(self, moment: datetime) -> datetime:
        """The first occurrence strictly later than `moment`, in UTC with whole seconds.

        Raises:
            ValueError: `moment` has no time zone, or the calendar (year 9999) ends before the next occurrence.
        """
        if moment.tzinfo is None:
            raise ValueError("The moment has no time zone: pass an aware datetime, for example datetime.now(UTC).")
        start = moment.astimezone(UTC).replace(microsecond=0) + timedelta(seconds=1)
        time_of_day = self._time_from(start.hour, start.minute, start.second)
        year, month, day = start.year, start.month, start.day
        if time_of_day is None:
            day += 1
        while year <= MAXYEAR:
            index = bisect_left(self.months, month)
            if index == len(self.months):
                year, month, day = year + 1, 1, 1
                continue
            if self.months[index] != month:
                month, day = self.months[index], 1
            found = self._day_from(year, month, day)
            if found is None:
                year, month, day = (year, month + 1, 1) if month < 12 else (year + 1, 1, 1)
                continue
            if (year, month, found) != (start.year, start.month, start.day) or time_of_day is None:
                time_of_day = (self.hours[0], self.minutes[0], self.seconds[0])
            return datetime(year, month, found, *time_of_day, tzinfo=UTC)
        raise ValueError(f"The schedule '{self.expression}' has no occurrence after {moment.isoformat()}.")

    def _time_from(self, hour: int, minute: int, second: int) -> tuple[int, int, int] | None:
        """The first time of a day at or after the one given; None when only another day has one."""
        first_minute, first_second = self.minutes[0], self.seconds[0]
        if hour in self.hours:
            if minute in self.minutes:
                index = bisect_left(self.seconds, second)
                if index < len(self.seconds):
                    return hour, minute, self.seconds[index]
            index = bisect_left(self.minutes, minute + 1)
            if index < len(self.minutes):
                return hour, self.minutes[index], first_second
        index = bisect_left(self.hours, hour + 1)
        return None if index == len(self.hours) else (self.hours[index], first_minute, first_second)

    def _day_from(self, year: int, month: int, day: int) -> int | None:
        first_weekday, days_in_month = calendar.monthrange(year, month)
        for candidate in self.days[bisect_left(self.days, day) :]:
            if candidate > days_in_month:
                return None
            # calendar counts Monday as 0, NCRONTAB counts Sunday as 0.
            if (first_weekday + candidate) % 7 in self.weekdays:
                return candidate
        return None


def parse(expression: str) -> Schedule:
    """Parse an NCRONTAB expression of six fields, or of five with the second left out.

    Raises:
        ValueError: With a sentence that names the field, the value and what to write instead; also when the days and
            months can never meet (30 February).
    """
    parts = expression.split()
    if len(parts) == 5:
        parts.insert(0, "0")
    if len(parts) != 6:
        raise ValueError(
            f"The schedule '{expression}' has {len(parts)} fields: write six (second minute hour day month"
            " day-of-week), or five without the second."
        )
    seconds, minutes, hours, days, months, weekdays = (
        _parse_field(field, text, expression) for field, text in zip(_FIELDS, parts, strict=True)
    )
    if not any(days[0] <= _LONGEST_DAY_OF_MONTH[month] for month in months):
        raise ValueError(
            f"The schedule '{expression}' never fires: day {days[0]} does not exist in month {months[0]};"
            " choose a day that one of its months has."
        )
    return Schedule(" ".join(expression.split()), seconds, minutes, hours, days, months, frozenset(weekdays))


def _parse_field(field: _Field, text: str, expression: str) -> tuple[int, ...]:
    values: set[int] = set()
    for item in text.split(","):
        values.update(_parse_item(field, item, text, expression))
    return tuple(sorted(values))


def _parse_item(field: _Field, item: str, text: str, expression: str) -> range:
    def refuse(problem: str) -> ValueError:
        return ValueError(f"The {field.label} field '{text}' of the schedule '{expression}' {problem}.")

    body, slash, step_text = item.partition("/")
    step = 1
    if slash:
        if not _is_number(step_text) or int(step_text) == 0:
            raise refuse(f"has the step '{step_text}': write a whole number of at least 1 after the slash")
        step = int(step_text)
    if body == "*":
        return range(field.lowest, field.highest + 1, step)
    first_text, dash, last_text = body.partition("-")
    first = _parse_value(field, first_text, refuse)
    if dash:
        last = _parse_value(field, last_text, refuse)
        if last < first:
            raise refuse(
                f"has the range '{body}' that runs backwards:"
                f" write '{first_text}-{field.highest},{field.lowest}-{last_text}'"
            )
    else:
        last = field.highest if slash else first
    return range(first, last + 1, step)


def _parse_value(field: _Field, text: str, refuse: Callable[[str], ValueError]) -> int:
    if _is_number(text):
        value = int(text)
        if not field.lowest <= value <= field.highest:
            hint = "; Sunday is 0" if field.names is _WEEKDAYS and value == 7 else ""
            raise refuse(f"has the value {value}: use {field.lowest} to {field.highest}{hint}")
        return value
    matches = [index for index, name in enumerate(field.names) if text and name.startswith(text.lower())]
    if len(matches) == 1:
        return matches[0] + field.lowest
    allowed = f"{field.lowest} to {field.highest}" + (" or an English name such as " if field.names else "")
    example = field.names[0][:3].title() if field.names else ""
    raise refuse(f"has the value '{text}': use {allowed}{example}")


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
