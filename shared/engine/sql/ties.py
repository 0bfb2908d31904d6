"""Rows at a watermark's boundary: each delivered once, however often a window shows them.

A window begins where the last one ended, both ends included, and with ``lookback`` before that; so it shows rows again
that were delivered already. Where rows are merged by key that does no harm. Where they are appended, they are known
again by a digest of the whole row, with its multiplicity; a row that was changed without its watermark is another row,
and is delivered. Digests are kept of the rows that the next window will show again, and of no others.
"""

import asyncio
import hashlib
import json
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Context, Decimal
from math import ceil
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import Unsupported
from shared.ports import RunStore

MOST = 1_000_000
_DIGEST_BYTES = 16
# The usual context rounds a difference to 28 digits, databases do not.
_EXACT = Context(prec=200)


@dataclass
class Seen:
    """What was delivered near a boundary: for each digest its watermark and how often.

    Attributes:
        columns: Lake columns, under the source's names, that digests are made of.
        top: The greatest watermark that was read, None where there was none.
        rows: Digest -> watermark, how often it was read, how often it was delivered for the first time.
    """

    columns: list[str]
    top: Any = None
    rows: dict[str, tuple[Any, int, int]] = field(default_factory=dict)

    def dump(self) -> bytes:
        rows = [[digest, _text(value), read, new] for digest, (value, read, new) in self.rows.items()]
        return zlib.compress(json.dumps({"columns": self.columns, "top": _text(self.top), "rows": rows}).encode())

    @classmethod
    def load(cls, data: bytes) -> "Seen":
        found = json.loads(zlib.decompress(data))
        rows = {digest: (_value(value), read, new) for digest, value, read, new in found["rows"]}
        return cls(found["columns"], _value(found["top"]), rows)


async def load_seen(store: RunStore, key: str) -> Seen:
    data = await store.get(key)
    if data is None:
        raise LookupError(f"{key} is gone from the run store")
    return await asyncio.to_thread(Seen.load, data)


class Ties:
    """Sorts out the rows of one slice. Not thread-safe.

    Args:
        column: The watermark's first lake column, under the source's name.
        columns: All lake columns, under the source's names.
        lookback_s: As in the window (of a number: so much).
        before: What was delivered before; None in a load from the beginning.
    """

    def __init__(self, column: str, columns: Sequence[str], lookback_s: float, before: Seen | None) -> None:
        self._column = column
        self._columns = list(columns)
        self._lookback_s = lookback_s
        self._before = before if before is not None and before.rows else None
        self._left = Counter({digest: one[1] for digest, one in before.rows.items()} if before else {})
        self._top: Any = None
        self._near: list[tuple[Any, str, bool]] = []

    def fresh(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """The rows that were not delivered before, and those that were (None: none of them)."""
        values = batch.column(self._column)
        greatest = pc.max(values).as_py()
        if greatest is not None and (self._top is None or greatest > self._top):
            self._top = greatest
            self._forget()
        repeated = self._repeated(batch, values)
        near = self._from(values, self._threshold())
        for place, digest in self._digests(batch, near, self._columns):
            self._near.append((values[place].as_py(), digest, not repeated[place]))
        if len(self._near) > 2 * MOST:
            self._forget()
        if not any(repeated):
            return batch, None
        mask = pa.array(repeated)
        return batch.filter(pc.invert(mask)), batch.filter(mask)

    def seen(self) -> Seen:
        """What was read near this slice's own boundary; :func:`gathered` makes of all slices what is to be kept."""
        self._forget()
        found = Seen(self._columns, self._top)
        for value, digest, is_new in self._near:
            _, read, new = found.rows.get(digest, (value, 0, 0))
            found.rows[digest] = (value, read + 1, new + is_new)
        return found

    # -- parts -------------------------------------------------------------------------------------------------------

    def _repeated(self, batch: pa.RecordBatch, values: pa.Array) -> list[bool]:
        found = [False] * batch.num_rows
        before = self._before
        if before is None or not set(before.columns) <= set(batch.schema.names):
            return found
        mask = pc.fill_null(pc.less_equal(values, pa.scalar(before.top, values.type)), False)
        for place, digest in self._digests(batch, mask, before.columns):
            if self._left[digest] > 0:
                self._left[digest] -= 1
                found[place] = True
        return found

    def _digests(self, batch: pa.RecordBatch, mask: pa.Array, columns: Sequence[str]) -> list[tuple[int, str]]:
        places = pc.indices_nonzero(mask).to_pylist()
        if not places:
            return []
        chosen = batch.take(pa.array(places, pa.int64())).select(list(columns))
        rows = zip(*(column.to_pylist() for column in chosen.columns), strict=True)
        return [(place, _digest(row)) for place, row in zip(places, rows, strict=True)]

    def _threshold(self) -> Any:
        return _less(self._top, self._lookback_s)

    def _from(self, values: pa.Array, threshold: Any) -> pa.Array:
        if threshold is None:
            return pc.is_valid(values) if self._top is not None else pa.array([False] * len(values))
        return pc.fill_null(pc.greater_equal(values, pa.scalar(threshold, values.type)), False)

    def _forget(self) -> None:
        threshold = self._threshold()
        if threshold is not None:
            self._near = [one for one in self._near if one[0] >= threshold]


def gathered(slices: Sequence[Seen], lookback_s: float, before: Seen | None) -> tuple[Seen, bool]:
    """What is to be remembered once the rows of all slices are delivered, and whether the boundary stays where it was.

    It stays where the rows with the greatest watermark are gone from the source: what lies behind them was delivered,
    and would be again if the boundary went back.

    Raises:
        Unsupported: more rows than are kept.
    """
    tops = [one.top for one in slices if one.top is not None]
    top = max(tops) if tops else None
    stays = before is not None and before.top is not None and (top is None or top < before.top)
    found = Seen(slices[0].columns, top)
    if stays and before is not None:
        found = Seen(before.columns, before.top, {digest: (one[0], one[1], 0) for digest, one in before.rows.items()})
    threshold = _less(found.top, lookback_s)
    for one in slices:
        for digest, (value, read, new) in one.rows.items():
            count = new if stays else read
            if count and (threshold is None or value >= threshold):
                found.rows[digest] = (value, count + found.rows.get(digest, (value, 0, 0))[1], 0)
    if len(found.rows) > MOST:
        raise Unsupported(
            f"{len(found.rows):,} rows share the greatest watermark or lie within its lookback, and at most {MOST:,} "
            "are remembered so as not to be delivered twice; choose write.disposition: merge, a shorter lookback, or a "
            "finer column",
            code="too_many_ties",
        )
    return found, stays


def _digest(row: tuple[Any, ...]) -> str:
    return hashlib.blake2b(repr(row).encode("utf-8", "surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()


def _less(top: Any, lookback_s: float) -> Any:
    """``top`` without the lookback, no greater than what a database makes of it; None where there is no such value."""
    if top is None or not lookback_s:
        return top
    try:
        if isinstance(top, datetime):
            return top - timedelta(seconds=lookback_s)
        if isinstance(top, date):
            return top - timedelta(days=ceil(lookback_s / 86_400))
        if isinstance(top, Decimal):
            return _EXACT.subtract(top, Decimal(repr(lookback_s)))
        if isinstance(top, int):
            return top - ceil(lookback_s)
        if isinstance(top, float):
            return top - lookback_s
        if isinstance(top, str):
            # A time as text, as some databases keep it: the day sorts before all of its moments.
            return (datetime.fromisoformat(top) - timedelta(seconds=lookback_s)).date().isoformat()
    except (OverflowError, ValueError):
        return None
    return None


def _text(value: Any) -> Any:
    if isinstance(value, datetime):
        return ["datetime", value.isoformat()]
    if isinstance(value, date):
        return ["date", value.isoformat()]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return value


def _value(document: Any) -> Any:
    if not isinstance(document, list):
        return document
    kind, text = document
    made: dict[str, Any] = {
        "datetime": datetime.fromisoformat, "date": date.fromisoformat, "decimal": Decimal, "bytes": bytes.fromhex,
    }  # fmt: skip
    return made[kind](text)
