"""The integer of a value as shared/policy/sql/checksum.py says, in plain Python, from what it says alone."""

from __future__ import annotations

import hashlib
import math
import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Context, Decimal
from typing import Any

MERSENNE = 2**31 - 1
_WIDE = Context(prec=100)
_WORD = 0xFFFFFFFF


def integer_of(value: Any, lake_type: str, definition: str) -> int:
    if lake_type == "bool":
        return int(value)
    if definition == "lookup3":
        return _by_lookup3(value, lake_type)
    if lake_type in ("float", "double"):
        bits = 0x7FF8000000000000 if math.isnan(value) else struct.unpack("<q", struct.pack("<d", value))[0]
        return int(bits) % MERSENNE
    if isinstance(value, str | bytes):
        data = value.encode(definition.removeprefix("md5 ")) if isinstance(value, str) else value
        return int.from_bytes(hashlib.md5(data).digest()[:4], "big") & 0x7FFFFFFF
    return _whole(value, lake_type, datetime(1970, 1, 1)) % MERSENNE  # noqa: DTZ001 - the zone is taken off


def _by_lookup3(value: Any, lake_type: str) -> int:
    if lake_type in ("float", "double"):
        if math.isnan(value):
            return 2
        if not value:
            return 1 if math.copysign(1, value) < 0 else 0
        return _signed(lookup3(struct.pack("<d", value)))
    if lake_type.startswith("timestamp"):
        since = _whole(value, lake_type, datetime(2000, 1, 1))  # noqa: DTZ001
        low, high = since & _WORD, since >> 32 & _WORD
        folded = low ^ (high if since >= 0 else high ^ _WORD)
        return _signed(lookup3(folded.to_bytes(4, "little")))
    if isinstance(value, str | bytes):
        data = value.encode() if isinstance(value, str) else value
        if len(data) > 1024:
            return _signed(lookup3(hashlib.sha256(data).digest()) + 31)
        return _signed(lookup3(data) + (31 if isinstance(value, bytes) else 0))
    return _whole(value, lake_type, datetime(1970, 1, 1))  # noqa: DTZ001


def _whole(value: Any, lake_type: str, epoch: datetime) -> int:
    if lake_type == "date32":
        return int((value - date(1970, 1, 1)).days)
    if lake_type.startswith("timestamp"):
        moment = value.astimezone(UTC).replace(tzinfo=None) if value.tzinfo else value
        return int((moment - epoch) // timedelta(microseconds=1))
    if lake_type.startswith("decimal128"):
        return int(Decimal(value).scaleb(int(lake_type.rstrip(")").rpartition(", ")[2]), context=_WIDE))
    return int(value)


def lookup3(data: bytes) -> int:
    """``hash_bytes_extended`` of PostgreSQL's src/common/hashfn.c with seed 0, one byte at a time."""
    a = b = c = 0x9E3779B9 + len(data) + 3923095 & _WORD
    while len(data) >= 12:
        one, two, three = struct.unpack("<3I", data[:12])
        a, b, c, data = a + one & _WORD, b + two & _WORD, c + three & _WORD, data[12:]
        a = a - c & _WORD ^ _turned(c, 4)
        c = c + b & _WORD
        b = b - a & _WORD ^ _turned(a, 6)
        a = a + c & _WORD
        c = c - b & _WORD ^ _turned(b, 8)
        b = b + a & _WORD
        a = a - c & _WORD ^ _turned(c, 16)
        c = c + b & _WORD
        b = b - a & _WORD ^ _turned(a, 19)
        a = a + c & _WORD
        c = c - b & _WORD ^ _turned(b, 4)
        b = b + a & _WORD
    for place, byte in enumerate(data):
        if place < 4:
            a += byte << 8 * place
        elif place < 8:
            b += byte << 8 * (place - 4)
        else:
            c += byte << 8 * (place - 7)
    a, b, c = a & _WORD, b & _WORD, c & _WORD
    c = (c ^ b) - _turned(b, 14) & _WORD
    a = (a ^ c) - _turned(c, 11) & _WORD
    b = (b ^ a) - _turned(a, 25) & _WORD
    c = (c ^ b) - _turned(b, 16) & _WORD
    a = (a ^ c) - _turned(c, 4) & _WORD
    b = (b ^ a) - _turned(a, 14) & _WORD
    c = (c ^ b) - _turned(b, 24) & _WORD
    return b << 32 | c


def _turned(word: int, left: int) -> int:
    return (word << left | word >> 32 - left) & _WORD


def _signed(number: int) -> int:
    number %= 2**64
    return number - 2**64 if number >= 2**63 else number
