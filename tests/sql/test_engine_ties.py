"""What is remembered of rows at a watermark's boundary."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest

from shared.engine.sql import ties
from shared.engine.sql.ties import Seen, Ties, gathered
from shared.errors import Unsupported


def batch(rows: Sequence[tuple[Any, str]], kind: pa.DataType = pa.int64()) -> pa.RecordBatch:  # noqa: B008
    return pa.RecordBatch.from_arrays(
        [pa.array([row[0] for row in rows], kind), pa.array([row[1] for row in rows])], names=["at", "name"]
    )


def read(rows: Sequence[tuple[Any, str]], before: Seen | None, lookback_s: float = 0.0, **options: Any) -> Any:
    """The rows that are delivered, and what is remembered after them."""
    one = Ties("at", ["at", "name"], lookback_s, before)
    # As a database may hand them over: in batches, in any order.
    delivered = [row for start in range(0, len(rows), 2)
                 for row in one.fresh(batch(rows[start : start + 2], **options))[0].to_pylist()]  # fmt: skip
    seen, stays = gathered([Seen.load(one.seen().dump())], lookback_s, before)
    return [(row["at"], row["name"]) for row in delivered], Seen.load(seen.dump()), stays


def test_equal_rows_are_told_by_how_many_there_are() -> None:
    _, seen, _ = read([(5, "a"), (5, "a"), (4, "b")], None)
    delivered, seen, _ = read([(5, "a"), (5, "a"), (5, "a"), (6, "c")], seen)
    assert delivered == [(5, "a"), (6, "c")]
    delivered, _, _ = read([(6, "c"), (6, "c")], seen)
    assert delivered == [(6, "c")]


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [
        (pa.timestamp("us"), datetime(2026, 1, 1, 0, 0, 0, 1), datetime(2026, 1, 1, 0, 0, 0, 2)),  # noqa: DTZ001
        (pa.timestamp("us", "UTC"), datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)),
        (pa.date32(), date(2026, 1, 1), date(2026, 1, 2)),
        (pa.decimal128(38, 4), Decimal("0.0001"), Decimal("9" * 30 + ".0001")),
        (pa.float64(), -0.5, 1e300),
        (pa.binary(), b"\x00\xff", b"\x01"),
        (pa.string(), "a", "b"),
    ],
)
def test_watermarks_of_every_type(kind: pa.DataType, low: Any, high: Any) -> None:
    _, seen, _ = read([(low, "x"), (high, "y"), (high, "z")], None, kind=kind)
    assert seen.top == high
    delivered, _, _ = read([(high, "y"), (high, "new"), (high, "z")], seen, kind=kind)
    assert delivered == [(high, "new")]


@pytest.mark.parametrize(
    ("kind", "values", "lookback_s"),
    [
        (pa.timestamp("us"), [datetime(2026, 1, 1, 0, minute) for minute in range(9)], 300.0),  # noqa: DTZ001
        (pa.date32(), [date(2026, 1, day) for day in range(1, 10)], 5 * 86_400.0),
        (pa.decimal128(10, 2), [Decimal(n) for n in range(9)], 5.0),
        (pa.decimal128(38, 0), [Decimal(10**37 + 8 * 10**9 + n) for n in range(9)], 5.0),
        (pa.float64(), [float(n) for n in range(9)], 5.0),
        (pa.string(), [f"2026-01-0{n}T10:00:00.1234567" for n in range(1, 10)], 5 * 86_400.0),
        (pa.string(), [f"no time {n}" for n in range(9)], 5.0),
    ],
)
def test_what_lookback_shows_again_is_known(kind: pa.DataType, values: list[Any], lookback_s: float) -> None:
    rows = [(value, "x") for value in values]
    _, seen, _ = read(rows, None, lookback_s, kind=kind)
    delivered, _, _ = read([(values[-3], "late"), *rows[-4:]], seen, lookback_s, kind=kind)
    assert delivered == [(values[-3], "late")]


def test_the_boundary_stays_where_the_greatest_rows_are_gone() -> None:
    _, seen, _ = read([(8, "a"), (10, "b")], None, 3)
    delivered, seen, stays = read([(8, "a"), (8, "c")], seen, 3)
    assert (delivered, stays, seen.top) == ([(8, "c")], True, 10)
    delivered, _, stays = read([(8, "a"), (8, "c"), (9, "d"), (11, "e")], seen, 3)
    assert (delivered, stays) == ([(9, "d"), (11, "e")], False)


def test_slices_remember_together() -> None:
    found = []
    for rows in ([(5, "a"), (1, "b")], [(5, "c")], [(2, "d")]):
        one = Ties("at", ["at", "name"], 0.0, None)
        one.fresh(batch(rows))
        found.append(one.seen())
    seen, stays = gathered(found, 0.0, None)
    assert (seen.top, len(seen.rows), stays) == (5, 2, False)
    delivered, _, _ = read([(5, "c"), (5, "new"), (5, "a")], seen)
    assert delivered == [(5, "new")]


def test_too_many_are_refused_and_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ties, "MOST", 3)
    with pytest.raises(Unsupported, match="share the greatest watermark"):
        read([(1, str(n)) for n in range(10)], None)
