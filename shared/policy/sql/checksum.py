"""The checksum of a column, defined so that databases and Arrow compute it alike, in any order of rows.

Each value that is not null becomes an integer from 0 to 2**31 - 2 or, hashed, to 2**31 - 1; a column's total is their
sum, and its nulls are counted beside it. With ``P`` = 2**31 - 1, and ``mod`` never negative:

===================== ==============================================================================================
type                  integer of a value
===================== ==============================================================================================
bool                  1 or 0
int16, int32, int64   value mod P
date32                days since 1970-01-01 mod P
timestamp[us(, UTC)]  microseconds since 1970-01-01 (UTC) mod P
decimal128(p, s)      (value * 10**s) mod P
float, double         the 64 bits as IEEE double, as a signed integer, mod P; every NaN as 0x7ff8000000000000
string                first four bytes of MD5 of the text as the database encodes it, big-endian, highest bit off
binary                the same of the bytes
===================== ==============================================================================================

A sum of 2**32 rows fits 63 bits.
"""

P = 2**31 - 1
NAN_BITS = 0x7FF8000000000000
HASH_MASK = 0x7FFFFFFF
