"""The types that tables have in the lake: few, each one that Parquet, Delta, Spark and SQL endpoints share.

They are written as Arrow writes them. Time of day is text (``HH:MM:SS.fffffff``), since neither Delta nor Spark has a
type for it; unsigned and 8-bit integers are ``int16``, since Delta's bytes are signed.
"""

import re

PLAIN = (
    "bool", "int16", "int32", "int64", "float", "double", "date32", "timestamp[us]", "timestamp[us, UTC]", "string",
    "binary",
)  # fmt: skip
_DECIMAL = re.compile(r"decimal128\((\d{1,2}), (\d{1,2})\)")

TICKS_SUFFIX = "_100ns"
"""int16, 0 to 9: what a microsecond timestamp beside it leaves over of a value with seven digits."""
OFFSET_SUFFIX = "_offset_min"
"""int16: the offset from UTC, in minutes, that a value had in the source."""


def decimal(precision: int, scale: int) -> str:
    """Raises ValueError outside of 1 <= precision <= 38, 0 <= scale <= precision."""
    if not 1 <= precision <= 38 or not 0 <= scale <= precision:
        raise ValueError(f"a decimal of {precision} digits, {scale} of them behind the point, does not fit 38 digits")
    return f"decimal128({precision}, {scale})"


def decimal_of(lake_type: str) -> tuple[int, int] | None:
    """Precision and scale of a decimal, None of any other type."""
    match = _DECIMAL.fullmatch(lake_type)
    return (int(match[1]), int(match[2])) if match else None


def is_lake_type(text: str) -> bool:
    return text in PLAIN or decimal_of(text) is not None
