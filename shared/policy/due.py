"""When a schedule is due."""

from datetime import datetime

from shared.policy.ncrontab import parse


def is_due(expression: str, last_considered: datetime, now: datetime) -> bool:
    """Whether an occurrence lies in ``(last_considered, now]``.

    Several missed occurrences are one: a load that was missed while the app was down runs once, not once for each.
    """
    return parse(expression).next_after(last_considered) <= now
