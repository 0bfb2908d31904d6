"""Sizes, rates and times as people write them: ``256MiB``, ``1.5 GB``, ``50MiB/s``, ``15m``."""

import re
from decimal import Decimal

_UNITS = {
    "": 1, "b": 1,
    "k": 1000, "kb": 1000, "kib": 1024,
    "m": 1000**2, "mb": 1000**2, "mib": 1024**2,
    "g": 1000**3, "gb": 1000**3, "gib": 1024**3,
    "t": 1000**4, "tb": 1000**4, "tib": 1024**4,
}  # fmt: skip
_SECONDS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400}
_QUANTITY = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]{0,3})\s*")


def parse_bytes(text: str) -> int:
    """Bytes of ``256MiB`` (binary) or ``256MB`` (decimal).

    Raises:
        ValueError: naming the value and the form that is expected.
    """
    match = _QUANTITY.fullmatch(text)
    unit = match and _UNITS.get(match[2].lower())
    if not match or unit is None:
        raise ValueError("not a size; write a number with a unit, such as 256MiB or 1GB")
    return int(Decimal(match[1]) * unit)


def parse_bytes_per_s(text: str) -> int:
    """Bytes a second of ``50MiB/s``."""
    number, slash, second = text.partition("/")
    if not slash or second.strip().lower() not in ("s", "sec"):
        raise ValueError("not a rate; write a size per second, such as 50MiB/s")
    return parse_bytes(number)


def parse_seconds(text: str) -> float:
    """Seconds of ``15m``, ``2h``, ``1.5d`` or a bare number.

    Raises:
        ValueError: naming the form that is expected.
    """
    match = _QUANTITY.fullmatch(text)
    unit = match and _SECONDS.get(match[2].lower())
    if not match or unit is None:
        raise ValueError("not a time; write a number with a unit, such as 90s, 15m, 2h or 1d")
    return float(Decimal(match[1]) * unit)


def show_bytes(count: float) -> str:
    """``1.4 GiB``: for people; never parsed again."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def show_duration(seconds: float) -> str:
    """``1 h 04 min``, ``3 min 20 s``, ``12 s``."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"
