"""The checksum of a column, defined so that databases and Arrow compute it alike, in any order of rows.

Each value that is not null becomes an integer; a column's total is the exact sum of these, and its nulls are counted
beside it. There are two definitions, so that each database can take the one that costs it least. With ``P`` = 2**31 - 1
and ``mod`` never negative:

===================== ================================================= ============================================
type                  ``md5 …``: what any database can say              ``lookup3``: what PostgreSQL says quickly
===================== ================================================= ============================================
bool                  1 or 0                                            1 or 0
int16, int32, int64   value mod P                                       value
date32                days since 1970-01-01 mod P                       days since 1970-01-01
timestamp[us(, UTC)]  microseconds since 1970-01-01 (UTC) mod P         hash of 32 bits, ``low ^ high`` of the
                                                                        microseconds since 2000-01-01 (UTC), before
                                                                        that day ``low ^ ~high``
decimal128(p, s)      (value * 10**s) mod P                             value * 10**s
float, double         the 64 bits as IEEE double, as a signed integer,  hash of these 64 bits; 0.0 as 0, -0.0 as 1,
                      mod P; every NaN as 0x7ff8000000000000            every NaN as 2
string                first four bytes of MD5 of the text as the        hash of the text in UTF-8; where that has more
                      database encodes it, big-endian, highest bit off  bytes than ``WHOLE``, as the binary that is
                                                                        its SHA-256
binary                the same of the bytes                             hash of the bytes, plus 31 mod 2**64; of more
                                                                        than ``WHOLE`` bytes, of their SHA-256
===================== ================================================= ============================================

``hash`` is the second and third word of Bob Jenkins' lookup3 with ``hash_bytes_extended``'s beginning, as a signed
integer of 64 bits; 31 is what ``hash_array_extended`` adds for an array of one. These are the functions by which
PostgreSQL places rows in partitions (``hashfn.c``, ``hashfunc.c``, ``timestamp.c``, ``arrayfuncs.c``); whether a server
computes them so is asked of it at the beginning of a session. A sum of 2**32 rows of the first definition fits 63 bits;
of the second it may have any size.
"""

from typing import Literal

Definition = Literal["md5 utf-8", "md5 utf-16-le", "lookup3"]
MD5_UTF_8: Definition = "md5 utf-8"
MD5_UTF_16: Definition = "md5 utf-16-le"
LOOKUP3: Definition = "lookup3"

P = 2**31 - 1
NAN_BITS = 0x7FF8000000000000
HASH_MASK = 0x7FFFFFFF

WHOLE = 1024
"""Longer values are hashed by SHA-256, for which both sides have a library that is quicker than lookup3 in numpy."""
ARRAY_OF_ONE = 31
ZERO, MINUS_ZERO, NOT_A_NUMBER = 0, 1, 2
DAYS_TO_2000 = 10_957
