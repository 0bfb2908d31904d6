"""Whether a source can still tell what has changed since a position, and why not where it cannot.

What it told up to then is in the lake. Where a source has forgotten changes, was set back to an earlier state, or began
to count anew, an increment would pass over rows without a word; such a table is read from its beginning.
"""

from shared.engine.sql.cursor import Cursor
from shared.ports.tables import Capture, Change, Selection, TableSession, TableShape, Window

TELLS_CHANGES = ("tracking", "cdc")
_LAST_VERSION = str(2**63 - 1)


def reached(change: str, position: str, oldest: str) -> bool:
    """Whether changes after ``position`` can still be asked for, where ``oldest`` is the last one that is gone."""
    if change == "cdc":
        return _number(position, 16) >= _number(oldest, 16)
    return _number(position, 10) >= _number(oldest, 10)


def is_ahead(change: str, now: str, position: str | None) -> bool:
    """Whether a source that is at ``now`` is where it was read to, or beyond.

    Of a watermark it need not be: the greatest row may have been deleted.
    """
    return change == "watermark" or position is None or reached(change, now, position)


def _number(position: str, base: int) -> int:
    return int(position, 16 if position[:2].lower() == "0x" else base)


def capture_of(shape: TableShape, cursor: Cursor) -> Capture:
    """The newest instance that reaches back to the cursor, so that a new one takes over when its time has come."""
    position = cursor.position or ""
    old = [one for one in shape.captures if one.name == cursor.capture]
    fit = [one for one in shape.captures if reached("cdc", position, one.since)]
    whole = [one for one in fit if one in shape.whole_captures]
    return (whole or fit or old or list(shape.captures))[-1]


def told_by(shape: TableShape, change: Change | None, capture: Capture | None) -> str | None:
    """What tells of changes, for the cursor."""
    if change == "tracking" and shape.tracking is not None:
        return f"{shape.tracking.name}@{shape.tracking.since}"
    return capture.name if capture else None


def why_anew(
    session: TableSession, shape: TableShape, change: Change, column: str | None, cursor: Cursor,
    capture: Capture | None,
) -> str:  # fmt: skip
    """Why changes since a cursor's position cannot be had; empty where they can. Asks the database; blocks."""
    position = cursor.position
    assert position is not None
    now_by = told_by(shape, change, capture)
    if change == "tracking" and cursor.capture and now_by and cursor.capture != now_by:
        return (
            "the tracking of its changes began anew: the table was emptied by TRUNCATE TABLE or made anew, or tracking "
            "was off for a time"
        )
    if change == "watermark":
        return ""
    oldest = session.oldest(shape, change, capture.name if capture else None)
    if oldest is not None and not reached(change, position, oldest):
        kept = "change tracking's retention being shorter than the time between runs"
        if capture:
            kept = f"CDC's retention being shorter than the time between runs, or {capture.name} being younger"
        return f"changes since {position} are gone, {kept} (the oldest that is left is {oldest})"
    if capture and (others := shape.whole_captures) and capture not in others:
        return (
            f"the capture instance {capture.name} lacks columns that are read now, and {others[-1].name}, which has "
            f"them, does not reach back to {position}"
        )
    now = session.position(shape, change, column)
    if now is not None and not is_ahead(change, now, position):
        # Switched off and on again for the database, or a backup: what it told in between is not known.
        return f"the database counts its changes anew: it is at {now}, and {position} was read before"
    if change == "tracking" and _may_be_emptied(session, shape, position):
        return (
            f"tracking of its changes began at {position}, up to where it was read, and no row is from before: it may "
            "have been emptied by TRUNCATE TABLE meanwhile"
        )
    return ""


def _may_be_emptied(session: TableSession, shape: TableShape, position: str) -> bool:
    """Whether the table may have been emptied at the very version that it was read to.

    TRUNCATE TABLE begins tracking anew at the present version. Where that is the one that was read to, and the one that
    tracking began with before, no version tells. But then all rows that are there came after it.
    """
    if shape.tracking is None or int(shape.tracking.since) != int(position):
        return False
    rows = session.summary(Selection(shape), checksums=False).rows
    # In this order, since without snapshots rows may be added between the two.
    changes = Window("tracking", position, _LAST_VERSION)
    return rows <= session.summary(Selection(shape, window=changes), checksums=False).rows
