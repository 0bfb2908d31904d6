"""Rows found again by their key: exact in type, NULL equal to NULL, any number of columns."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shared.errors import Unsupported

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def assert_key(schema: pa.Schema, key: Sequence[str], disposition: str) -> None:
    """Raises Unsupported, code ``key``: no key, one that the table lacks, or one that equality means nothing of."""
    if not key:
        raise Unsupported(
            f"write.disposition: {disposition} needs a key; name key, the columns that tell rows apart", code="key"
        )
    for name in key:
        if name not in schema.names:
            raise Unsupported(f"the key's column {name!r} is not among the table's", code="key", subject=name)
        if pa.types.is_floating(schema.field(name).type):
            raise Unsupported(
                f"the key's column {name!r} is a floating-point number, which tells rows apart only by chance; name "
                "another key",
                code="key",
                subject=name,
            )


class KeyIndex:
    """Numbers the distinct keys of some rows from 0 on, and finds them in other rows."""

    def __init__(self, rows: pa.Table, key: Sequence[str]) -> None:
        self._key = list(key)
        self._values: list[pa.Array] = []
        self._pairs: list[pa.Array] = []
        self.ids: Ids = np.empty(0, np.int64)
        codes: Any = None
        for name in self._key:
            column = whole_column(rows, name)
            values = pc.unique(column)
            self._values.append(values)
            found = pc.index_in(column, value_set=values).cast(pa.int64())
            if codes is None:
                codes = found
                continue
            pairs = pc.add(pc.multiply(codes, len(values)), found)
            self._pairs.append(pc.unique(pairs))
            codes = pc.index_in(pairs, value_set=self._pairs[-1]).cast(pa.int64())
        self.ids = codes.to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        self.count = int(self.ids.max()) + 1 if len(self.ids) else 0

    def find(self, rows: pa.Table) -> Ids:
        """For each row the number of its key, -1 where it is none of these."""
        codes: Any = None
        for place, name in enumerate(self._key):
            values = self._values[place]
            found = pc.index_in(whole_column(rows, name), value_set=values).cast(pa.int64())
            if codes is None:
                codes = found
                continue
            pairs = pc.add(pc.multiply(codes, len(values)), found)
            codes = pc.index_in(pairs, value_set=self._pairs[place - 1]).cast(pa.int64())
        ids: Ids = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
        return ids


def differing(left: pa.Table, right: pa.Table, columns: Sequence[str]) -> Mask:
    """Whether rows at the same place differ; NULL is equal to NULL, NaN to NaN."""
    found = np.zeros(left.num_rows, np.bool_)
    for name in columns:
        one, other = _bits(whole_column(left, name)), _bits(whole_column(right, name))
        unlike = pc.fill_null(pc.not_equal(one, other), False)
        unlike = pc.or_(unlike, pc.xor(pc.is_null(one), pc.is_null(other)))
        found |= as_mask(unlike)
    return found


def as_mask(values: Any) -> Mask:
    """Arrow's truth values for numpy; null is no."""
    mask: Mask = pc.fill_null(_whole(values), False).to_numpy(zero_copy_only=False).astype(np.bool_, copy=False)
    return mask


def whole_column(rows: pa.Table, name: str) -> pa.Array:
    """A column in one piece."""
    return _whole(rows.column(name))


def _bits(values: pa.Array) -> pa.Array:
    if pa.types.is_float64(values.type):
        return values.view(pa.int64())
    if pa.types.is_float32(values.type):
        return values.view(pa.int32())
    return values


def _whole(values: Any) -> pa.Array:
    if not isinstance(values, pa.ChunkedArray):
        return values
    found = values.combine_chunks()
    return found if isinstance(found, pa.Array) else pa.concat_arrays(found.chunks)
